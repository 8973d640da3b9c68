r"""Proposals for importance sampling, with which the laws integrate a density p.

With z drawn from a proposal r, :math:`E[p(z) / r(z)] = 1`. The error bar of that mean
is finite only where r has the heavier tails: on R^n r is a mixture of Student-t's, on
the sphere a mixture of von Mises-Fisher densities of all concentrations, 0 included.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    StickBreakingTransform,
)
from torch.nn.functional import normalize

from ..distributions.sphere import SphericalUniform, VonMisesFisher
from ..distributions.student import IsotropicStudentT
from ..distributions.supports import is_sphere
from ..special import (
    effective_sample_size,
    log_area,
    log_vmf_normaliser,
    square_distances,
)

__all__ = ["LogDensity", "Proposal", "around", "draw", "fitted", "inside"]
__all__ += ["END_OF_REALS", "farthest", "within"]

LogDensity = Callable[[Tensor], Tensor]  # (n, item, view, dim) -> (n, item)

DRAWN_DOFS = (1.0, 8.0)  # degrees of freedom of a proposal: heavy tail, and bulk
FITTED_DOF, EM_STEPS, COMPONENTS = 3.0, 5, 6  # of the mixture that is fitted
BROAD_SHARE = 0.25  # of the component fitted to all draws, relative to the others
ROUNDS, ROUND_SHARE = 3, 4  # of adaptation, each with a fourth of the draws
LEAST_ESS = 30  # effective sample size of a round
WIDTHS = [10.0 ** (k / 2) for k in range(-6, 7)]  # tried first
CONCENTRATIONS = [0.0, *(4.0**k for k in range(8))]
MOST_CENTRES = 64  # on the sphere
# Farther from zero than these, numbers of R^n stand for ends of the support: there the
# map rounds, and squares and reciprocals leave the range of numbers.
END_OF_REALS, END_OF_POSITIVE, END = 1e100, 230.0, 27.0
LEAST_SHARE = 1e-12  # of a simplex, that is no end


class Proposal(Protocol):
    """A proposal for one item."""

    def sample(self, n: int) -> Float[Tensor, "n view dim"]: ...

    def log_prob(self, z: Float[Tensor, "n view dim"]) -> Float[Tensor, " n"]: ...

    def standard(self, z: Float[Tensor, "n view dim"]) -> Float[Tensor, "n number"]:
        """The views as standardised numbers."""
        ...

    def inside(self, z: Float[Tensor, "n view dim"]) -> Bool[Tensor, " n"]:
        """Which z are no ends of the support, where densities round."""
        ...


def inside(
    proposals: Sequence[Proposal], z: Float[Tensor, "n item view dim"]
) -> Bool[Tensor, "n item"]:
    """Which z of each item are no ends of the support."""
    return torch.stack([r.inside(z[:, i]) for i, r in enumerate(proposals)], 1)


def draw(
    log_density: LogDensity, proposals: Sequence[Proposal], n: int
) -> tuple[Float[Tensor, "n item view dim"], Float[Tensor, "n item"]]:
    r"""Draw n times for each item; return z and :math:`\log p(z) - \log r(z)`.

    The density is not asked at the ends of the support: ratios are 0 there, and the
    mean of the others is the probability of all but the ends.
    """
    z = torch.stack([r.sample(n) for r in proposals], 1)
    ends = ~inside(proposals, z)
    others = z[ends.int().argmin(0), torch.arange(z.shape[1])]
    z = torch.where(ends[..., None, None], others, z)
    log_r = torch.stack([r.log_prob(z[:, i]) for i, r in enumerate(proposals)], 1)
    log_ratio = log_density(z).detach() - log_r
    return z, log_ratio.masked_fill(ends, -math.inf)


def fitted(
    log_density: LogDensity,
    samples: Float[Tensor, "n item view dim"],
    support: constraints.Constraint,
) -> list[Proposal]:
    """Proposals that are fitted to the samples, half of each, and to the density.

    The half that is fitted to the samples has all of their modes; weighted draws may
    lose one.
    """
    if is_sphere(support):
        return [_OnSphere(part[:MOST_CENTRES]) for part in samples.unbind(1)]
    transform = biject_to(support)
    start = [_student(part, None, transform) for part in samples.unbind(1)]
    adapted = _adapted(log_density, start, transform, len(samples))
    return [a.beside(b) for a, b in zip(adapted, start, strict=True)]


def around(
    log_density: LogDensity,
    centres: Float[Tensor, "item view dim"],
    support: constraints.Constraint,
    n: int,
) -> list[Proposal]:
    """Proposals that start around points, with all widths, and adapt to the density."""
    if is_sphere(support):
        return [_OnSphere(centre.unsqueeze(0)) for centre in centres]
    transform = biject_to(support)
    start = [_all_widths(centre, transform) for centre in centres]
    return list(_adapted(log_density, start, transform, n))


def _adapted(
    log_density: LogDensity,
    proposals: "Sequence[_Students]",
    transform: Transform,
    n: int,
) -> "list[_Students]":
    """Mixtures, each fitted to the importance-weighted draws of the one before."""
    for _ in range(ROUNDS):
        many = max(n // ROUND_SHARE, 8 * LEAST_ESS)
        z, log_weight = draw(log_density, proposals, many)
        pairs = zip(z.unbind(1), log_weight.unbind(1), strict=True)
        proposals = [_student(part, weight, transform) for part, weight in pairs]
    return list(proposals)


def _student(
    z: Float[Tensor, "n view dim"],
    log_weight: Float[Tensor, " n"] | None,
    transform: Transform,
) -> "_Students":
    u = transform.inv(z)
    shape, u = tuple(u.shape[1:]), u.flatten(1)
    if log_weight is not None:
        weight = _tempered(log_weight, LEAST_ESS + 5 * u.shape[1])
        u = u[weight.multinomial(len(u), replacement=True)]
    else:
        u = u[within(z, transform)]
    if len(u) < 2:
        raise ValueError("expected samples within the support, got all at its ends")
    # Heavy tails have no moments: fit Student's t by maximum likelihood. First one,
    # started at medians, then several, started at random points.
    loc = u.median(0).values.unsqueeze(0)
    spread = (u - loc).abs().median(0).values.square().diag_embed().unsqueeze(0)
    frame = _Mixture(torch.ones_like(loc[:, 0]), loc, _cholesky(spread))
    frame = _maximised(u, frame, None)
    parts = max(1, min(COMPONENTS, len(u) // (10 * u.shape[1])))
    loc = _apart(u, frame, parts)
    scale, share = frame.scale.expand(parts, -1, -1), torch.ones_like(loc[:, 0]) / parts
    mixture = _maximised(u, _Mixture(share, loc, scale), frame)
    both = zip(frame._replace(share=BROAD_SHARE * frame.share), mixture, strict=True)
    share, loc, scale = (torch.cat([one, several]) for one, several in both)
    return _Students(_Mixture(share / share.sum(), loc, scale), frame, shape, transform)


def within(z: Float[Tensor, "n *shape"], transform: Transform) -> Bool[Tensor, " n"]:
    """Which z are no ends of the support that a transform reaches."""
    numbers = transform.inv(z).abs() <= farthest(transform)
    near = numbers.reshape(len(z), -1).all(1)
    if isinstance(_core(transform), StickBreakingTransform):
        near &= (z >= LEAST_SHARE).reshape(len(z), -1).all(1)
    return near


def farthest(transform: Transform) -> float:
    """The largest number that a transform maps to what is no end of the support."""
    core = _core(transform)
    if isinstance(core, ExpTransform):
        return END_OF_POSITIVE
    real = isinstance(core, ComposeTransform) and not core.parts
    return END_OF_REALS if real else END


def _core(transform: Transform) -> Transform:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform


class _Mixture(NamedTuple):
    """A mixture of Student-t's: shares, locations, Cholesky factors of the scales."""

    share: Float[Tensor, " part"]
    loc: Float[Tensor, "part number"]
    scale: Float[Tensor, "part number number"]

    def noise(self, u: Float[Tensor, "n number"]) -> Float[Tensor, "part n number"]:
        ones = torch.eye(u.shape[1], dtype=u.dtype)
        inverse = torch.linalg.solve_triangular(self.scale, ones, upper=False)
        return (u - self.loc.unsqueeze(1)) @ inverse.mT

    def log_parts(self, square: Tensor, dof: float) -> Float[Tensor, "part n"]:
        size = self.loc.shape[1]
        peak = math.lgamma((dof + size) / 2) - math.lgamma(dof / 2)
        peak = peak - size / 2 * math.log(dof * math.pi)
        log_scale = self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        tail = (dof + size) / 2 * torch.log1p(square / dof)
        return peak - tail + (self.share.log() - log_scale).unsqueeze(1)


def _apart(u: Float[Tensor, "n number"], frame: _Mixture, parts: int) -> Tensor:
    """k-means++: points far apart, each drawn by its squared distance to the others."""
    noise = frame.noise(u)[0]
    picks = [int(torch.randint(len(u), ()))]
    for _ in range(parts - 1):
        square = square_distances(noise, noise[picks], exact=True).amin(1)
        square = square.clamp(max=float(square.quantile(0.9))) + 1e-12
        picks.append(int(square.multinomial(1)))
    return u[picks]


def _maximised(
    u: Float[Tensor, "n number"], mixture: _Mixture, frame: _Mixture | None
) -> _Mixture:
    """EM for Student-t mixtures; components without points stay as wide as `frame`."""
    size = u.shape[1]
    pull = 0.0 if frame is None else size + 2.0
    rest = 0.0 if frame is None else 0.1 * pull * frame.scale @ frame.scale.mT
    for _ in range(EM_STEPS):
        square = mixture.noise(u).square().sum(-1)
        part = mixture.log_parts(square, FITTED_DOF).softmax(0)
        weight = part * (FITTED_DOF + size) / (FITTED_DOF + square)
        loc = weight @ u / weight.sum(1, keepdim=True).clamp(min=1e-30)
        away = u - loc.unsqueeze(1)
        covariance = (weight.unsqueeze(-1) * away).mT @ away + rest
        count = (part.sum(1) + pull)[:, None, None]
        share = (part.sum(1) + 1) / (len(u) + len(loc))
        mixture = _Mixture(share, loc, _cholesky(covariance / count))
    return mixture


def _cholesky(covariance: Float[Tensor, "*part k k"]) -> Float[Tensor, "*part k k"]:
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    floor = 1e-9 * diagonal.mean(-1, keepdim=True) + 1e-24
    return torch.linalg.cholesky(covariance + floor.expand_as(diagonal).diag_embed())


def _tempered(log_weight: Float[Tensor, " n"], least: float) -> Float[Tensor, " n"]:
    """Weights raised to a power of at most 1 at which the ESS is at least `least`."""
    log_weight = log_weight.nan_to_num(-math.inf, neginf=-math.inf)
    for _ in range(12):
        if float(effective_sample_size(log_weight)) >= least:
            break
        log_weight = log_weight / 2
    return log_weight.softmax(0)


class _Students:
    """A mixture of Student-t's in R^n, mapped to the support."""

    def __init__(
        self,
        mixture: _Mixture,
        frame: _Mixture,
        shape: tuple[int, ...],
        transform: Transform,
    ) -> None:
        self.mixture, self.frame = mixture, frame
        self.shape, self.map = shape, transform

    def beside(self, other: "_Students") -> "_Students":
        """The mixture of both, in equal shares."""
        (share, *part), (more, *parts) = self.mixture, other.mixture
        both = [torch.cat(pair) for pair in zip(part, parts, strict=True)]
        mixture = _Mixture(torch.cat([share, more]) / 2, *both)
        return _Students(mixture, self.frame, self.shape, self.map)

    def sample(self, n: int) -> Tensor:
        share, loc, scale = self.mixture
        part = share.multinomial(n, replacement=True)
        dof = share.new_tensor(DRAWN_DOFS)[torch.randint(len(DRAWN_DOFS), (n,))]
        standard = IsotropicStudentT(dof, torch.zeros_like(loc[part]))
        noise = (scale[part] @ standard.sample().unsqueeze(-1)).squeeze(-1)
        return self.map((loc[part] + noise).unflatten(1, self.shape))

    def log_prob(self, z: Tensor) -> Tensor:
        square = self.mixture.noise(self.map.inv(z).flatten(1)).square().sum(-1)
        each = [self.mixture.log_parts(square, dof) for dof in DRAWN_DOFS]
        log_t = torch.cat(each).logsumexp(0) - math.log(len(DRAWN_DOFS))
        log_volume = self.map.log_abs_det_jacobian(self.map.inv(z), z)
        return log_t - sum_rightmost(log_volume, log_volume.dim() - 1)

    def inside(self, z: Tensor) -> Tensor:
        return within(z, self.map)

    def standard(self, z: Tensor) -> Tensor:
        return self.frame.noise(self.map.inv(z).flatten(1)).squeeze(0)


def _all_widths(centre: Float[Tensor, "view dim"], transform: Transform) -> _Students:
    """Student-t's around one point, with widths from 0.001 to 1000."""
    start = transform.inv(centre)
    loc = start.flatten().expand(len(WIDTHS), -1)
    width = loc.new_tensor(WIDTHS)
    scale = width[:, None, None] * torch.eye(loc.shape[1], dtype=loc.dtype)
    mixture = _Mixture(torch.full_like(width, 1 / len(WIDTHS)), loc, scale)
    return _Students(mixture, mixture, tuple(start.shape), transform)


class _OnSphere:
    """Half around centres, half around a uniform first view; all concentrations."""

    def __init__(self, centres: Float[Tensor, "centre view dim"]) -> None:
        self.centres = normalize(centres, dim=-1)
        self.kappa = centres.new_tensor(CONCENTRATIONS)
        self.peak = log_vmf_normaliser(centres.shape[-1], self.kappa, scaled=True)

    def sample(self, n: int) -> Tensor:
        views, dim = self.centres.shape[1:]
        centre = self.centres[torch.randint(len(self.centres), (n,))]
        first = SphericalUniform(dim, (n, 1), dtype=centre.dtype).sample()
        kappa = self.kappa[torch.randint(len(self.kappa), (n, 1))].expand(-1, views)
        near = VonMisesFisher(centre, kappa, validate_args=False).sample()
        chain = VonMisesFisher(
            first.expand(-1, views, -1), kappa, validate_args=False
        ).sample()
        chain = torch.cat([first, chain[:, 1:]], 1)
        return torch.where(torch.rand(n, 1, 1) < 0.5, near, chain)

    def log_prob(self, z: Tensor) -> Tensor:
        fall = ((self.centres - z.unsqueeze(1)).square().sum(-1) / 2).sum(-1)
        near = self._peaks(fall, z.shape[1]).flatten(1).logsumexp(1)
        near = near - math.log(len(self.centres) * len(self.kappa))
        fall = ((z[:, 1:] - z[:, :1]).square().sum(-1) / 2).sum(-1)
        chain = self._peaks(fall, z.shape[1] - 1).logsumexp(1)
        chain = chain - math.log(len(self.kappa)) - log_area(z.shape[-1])
        return torch.logaddexp(near, chain) - math.log(2)

    def inside(self, z: Tensor) -> Tensor:
        return z.isfinite().flatten(1).all(1)

    def standard(self, z: Tensor) -> Tensor:
        return z.flatten(1) * math.sqrt(z.shape[-1])

    def _peaks(self, fall: Tensor, views: int) -> Tensor:
        """Log-densities of so many views under every concentration."""
        return views * self.peak - self.kappa * fall.unsqueeze(-1)
