r"""Distributions on the unit sphere of R^d, :math:`S^{d-1}`, with respect to its area.

References:
    Directional Statistics (Mardia and Jupp, 1999)
    https://doi.org/10.1002/9780470316979
    Simulation of the von Mises Fisher Distribution (Wood, 1994)
    https://doi.org/10.1080/03610919408813161
    The Power Spherical Distribution (De Cao and Aziz, 2020)
    https://arxiv.org/abs/2006.04437
"""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Gamma, constraints
from torch import Size, Tensor
from torch.distributions import Transform
from torch.distributions.kl import register_kl
from torch.nn.functional import normalize

from ..arguments import whole
from ..special import (
    bessel_ratio,
    digamma_difference,
    log_area,
    log_gamma_ratio,
    log_vmf_normaliser,
)
from ._base import (
    Expandable,
    Present,
    Shape,
    Vectors,
    Views,
    ViewsDistribution,
    broadcast_around,
    mean_of_present,
)

__all__ = ["PowerSpherical", "SharedDirection", "SphericalUniform", "Stereographic"]
__all__ += ["VonMisesFisher"]

PROPOSALS = 40  # all are rejected with a probability below 0.35^40, about 1e-18


class SphericalUniform(Expandable):
    """The uniform distribution on the unit sphere of R^dim.

    Arguments:
        dim: The dimension of the space around the sphere, at least 2.
        batch_shape: The batch shape.
        dtype: The dtype of samples; None means torch's default.
        device: The device of samples; None means torch's default.
    """

    support = constraints.sphere
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Shape = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.log_area = log_area(whole("dim", dim, 2))
        self.dtype, self.device = dtype, device
        super().__init__(Size(batch_shape), Size((dim,)), validate_args=validate_args)

    @property
    def dim(self) -> int:
        """The dimension of the space around the sphere."""
        return self.event_shape[0]

    @property
    def mean(self) -> Vectors:
        shape = self._extended_shape()
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def variance(self) -> Vectors:
        return torch.full_like(self.mean, 1 / self.dim)

    def log_prob(self, value: Vectors) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -self.log_area)

    def rsample(self, sample_shape: Shape = ()) -> Vectors:
        shape = self._extended_shape(sample_shape)
        return _direction(torch.randn(shape, dtype=self.dtype, device=self.device))

    def entropy(self) -> Float[Tensor, "*batch"]:
        shape = self.batch_shape
        return torch.full(shape, self.log_area, dtype=self.dtype, device=self.device)


class _AroundLoc(Expandable):
    r"""A density that depends on z by the cosine :math:`\mu^\top z` alone."""

    arg_constraints = {
        "loc": constraints.sphere,
        "concentration": constraints.nonnegative,
    }
    support = constraints.sphere
    parts = {"loc": 1, "concentration": 0}

    def __init__(
        self,
        loc: Vectors,
        concentration: Float[Tensor, "*batch"] | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.concentration = broadcast_around(
            loc, 2, concentration=concentration
        )
        *batch, dim = self.loc.shape
        super().__init__(Size(batch), Size((dim,)), validate_args=validate_args)

    @property
    def dim(self) -> int:
        """The dimension d of the space around the sphere."""
        return self.event_shape[0]

    @property
    def mode(self) -> Vectors:
        return self.loc

    @property
    def mean(self) -> Vectors:
        """The mean in R^d: inside the sphere, along `loc`."""
        length = (1 - self._shortfall()).to(self.loc.dtype)
        return length.unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Vectors:
        r"""The variance of each coordinate, with :math:`t = \mu^\top z`:
        :math:`\mu_i^2 \mathrm{Var}[t] + (1 - \mu_i^2) E[1 - t^2] / (d - 1)`."""
        across, along = self._spread()
        square = self.loc.double().square()
        each = (1 - square) * across.unsqueeze(-1) / (self.dim - 1)
        return (each + square * along.unsqueeze(-1)).to(self.loc.dtype)

    def entropy(self) -> Float[Tensor, "*batch"]:
        return self._entropy().to(self.concentration.dtype)

    def _shortfall(self) -> Float[Tensor, "*batch"]:
        r"""The mean of :math:`1 - \mu^\top z`, without cancellation, in float64."""
        raise NotImplementedError

    def _spread(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        r"""The mean of :math:`1 - t^2` and the variance of t, in float64."""
        raise NotImplementedError

    def _entropy(self) -> Float[Tensor, "*batch"]:
        """The entropy in float64."""
        raise NotImplementedError


class VonMisesFisher(_AroundLoc):
    r"""The von Mises-Fisher distribution: a Gaussian restricted to the unit sphere.

    .. math:: p(z) = C_d(\kappa) \, e^{\kappa \mu^\top z}
        = C_d(\kappa) e^\kappa \cdot e^{-\kappa \lVert z - \mu \rVert^2 / 2}

    The second form is evaluated: it has no cancellation at large concentrations.
    Samples are exact, by rejection, and carry no gradient.

    Arguments:
        loc: The mean direction :math:`\mu`, of length 1.
        concentration: The concentration :math:`\kappa \ge 0`; 0 is uniform.
    """

    has_rsample = False

    def log_prob(self, value: Vectors) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        square = (value - self.loc).square().sum(-1)
        mode = log_vmf_normaliser(self.dim, self.concentration, scaled=True)
        return mode - self.concentration * square / 2

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Vectors:
        shape = self._extended_shape(sample_shape)
        kappa = self.concentration.double().expand(shape[:-1]).flatten()
        odds = torch.empty_like(kappa)
        rest = torch.arange(len(kappa), device=kappa.device)
        while len(rest):
            proposed, accepted = _propose(kappa[rest], self.dim)
            odds[rest[accepted]] = proposed[accepted]
            rest = rest[~accepted]
        return _around(self.loc, odds.reshape(shape[:-1]).to(self.loc.dtype))

    @torch.no_grad()
    def draw(self) -> Vectors:
        """Draw one sample each, without synchronising with the host; can be compiled.

        The sample is the first accepted one of 40 proposals, each of which is accepted
        with a probability above 0.65.
        """
        kappa = self.concentration.double().expand(PROPOSALS, *self.batch_shape)
        odds, accepted = _propose(kappa, self.dim)
        first = accepted.int().argmax(0, keepdim=True)
        odds = odds.take_along_dim(first, 0).squeeze(0)
        return _around(self.loc, odds.to(self.loc.dtype))

    def _shortfall(self) -> Float[Tensor, "*batch"]:
        return bessel_ratio(self.dim, self.concentration.double(), complement=True)

    def _spread(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        kappa, short = self.concentration.double(), self._shortfall()
        # The mean cosine over the concentration, which tends to 1 / d at 0.
        ratio = (1 - short) / kappa.clamp(min=1e-6)
        across = (self.dim - 1) * torch.where(kappa < 1e-6, 1 / self.dim, ratio)
        return across, (short * (2 - short) - across).clamp(min=0)

    def _entropy(self) -> Float[Tensor, "*batch"]:
        kappa = self.concentration.double()
        mode = log_vmf_normaliser(self.dim, kappa, scaled=True)
        return kappa * self._shortfall() - mode


class PowerSpherical(_AroundLoc):
    r"""The power spherical distribution: like von Mises-Fisher, but reparameterised.

    .. math:: p(z) \propto (1 + \mu^\top z)^\kappa, \qquad
        \tfrac12 (1 + \mu^\top z) \sim
        \mathrm{Beta}(\tfrac{d-1}{2} + \kappa, \tfrac{d-1}{2})

    The arguments are those of `VonMisesFisher`.
    """

    has_rsample = True

    def log_prob(self, value: Vectors) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        # (1 - cos) / (1 + cos), accurate at the mode and at its antipode.
        away, towards = (value - self.loc).square(), (value + self.loc).square()
        odds = away.sum(-1) / towards.sum(-1)
        mode = self._log_mode().to(self.concentration.dtype)
        return mode - torch.special.xlog1py(self.concentration, odds)

    def rsample(self, sample_shape: Shape = ()) -> Vectors:
        shape = self._extended_shape(sample_shape)
        half = (self.dim - 1) / 2
        near = (self.concentration + half).expand(shape[:-1])
        odds = _gamma(torch.full_like(near, half)) / _gamma(near)
        return _around(self.loc, odds)

    def _log_mode(self) -> Float[Tensor, "*batch"]:
        r"""The log-density at the mode, in float64."""
        kappa, half = self.concentration.double(), (self.dim - 1) / 2
        return log_gamma_ratio(half + kappa, half) - half * math.log(4 * math.pi)

    def _shortfall(self) -> Float[Tensor, "*batch"]:
        return (self.dim - 1) / (self.concentration.double() + (self.dim - 1))

    def _spread(self) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        half = (self.dim - 1) / 2
        near = self.concentration.double() + half
        across = 4 * near * half / ((near + half) * (near + half + 1))
        return across, across / (near + half)

    def _entropy(self) -> Float[Tensor, "*batch"]:
        kappa, half = self.concentration.double(), (self.dim - 1) / 2
        return kappa * digamma_difference(half + kappa, half) - self._log_mode()


class SharedDirection(ViewsDistribution):
    r"""Von Mises-Fisher views around a shared direction, uniform on the sphere.

    .. math:: y \sim U(S^{d-1}), \qquad z_v \mid y \sim \mathrm{vMF}(y, \kappa)

    With :math:`S = \sum_v z_v` and the direction integrated out,

    .. math:: \log p(z_1, \dots, z_V) = V \log C_d(\kappa)
        - \log C_d(\kappa \lVert S \rVert) - \log |S^{d-1}|

    For large κ the two normalisers nearly cancel; their difference is computed from
    :math:`\kappa (V - \lVert S \rVert) = \kappa \sum_{v < w} \lVert z_v - z_w \rVert^2
    / (V + \lVert S \rVert)`.

    Arguments:
        concentration: The concentration :math:`\kappa`, with the batch shape.
        views: The number V of views.
        dim: The dimension d of the space the sphere lies in.
        present: The present views, which V and S count; None means all.
    """

    arg_constraints = {"concentration": constraints.positive}
    support = constraints.independent(constraints.sphere, 1)
    parts = {"concentration": 0, "present": 1}

    def __init__(
        self,
        concentration: Tensor,
        views: int,
        dim: int,
        *,
        present: Present = None,
        validate_args: bool | None = None,
    ) -> None:
        batch = concentration.shape
        if present is not None:
            batch = torch.broadcast_shapes(batch, present.shape[:-1])
            present = present.expand(batch + present.shape[-1:])
        self.concentration, self.present = concentration.expand(batch), present
        super().__init__(batch, Size((views, dim)), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.concentration.new_zeros(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Views:
        shape = Size(sample_shape) + self.batch_shape
        normal = self.concentration.new_empty(shape + self.event_shape[1:]).normal_()
        y = _direction(normal).unsqueeze(-2).expand(shape + self.event_shape)
        kappa = self.concentration.unsqueeze(-1).expand(shape + self.event_shape[:1])
        return VonMisesFisher(y, kappa, validate_args=False).sample()

    def log_prob(self, value: Views) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        dim, kappa = self.event_shape[1], self.concentration
        views = self.event_shape[0] if self.present is None else self.present.sum(-1)
        value = _seen(value, self.present)
        count, mean = mean_of_present(value, self.present)
        length = _resultant_length(value)
        apart = _seen(value - mean, self.present).square()
        shortfall = (count * apart).sum((-2, -1)) / (views + length)
        return (
            views * log_vmf_normaliser(dim, kappa, scaled=True)
            - log_vmf_normaliser(dim, kappa * length, scaled=True)
            - kappa * shortfall
            - log_area(dim)
        )

    def direction(self, value: Views) -> VonMisesFisher:
        """Return the posterior of the shared direction given the present views."""
        value = _seen(value, self.present)
        loc = normalize(value.sum(-2), dim=-1)
        kappa = self.concentration * _resultant_length(value)
        return VonMisesFisher(loc, kappa, validate_args=False)

    @torch.no_grad()
    def _draw_absent(self, value: Tensor, present: Tensor) -> Tensor:
        """Draw by rejection: no gradient reaches the draws."""
        y = self.marginal(present).direction(value).draw().unsqueeze(-2)
        kappa = self.concentration.unsqueeze(-1).expand(value.shape[:-1])
        return VonMisesFisher(y.expand_as(value), kappa, validate_args=False).draw()

    def _mean_absent(self, value: Tensor, present: Tensor) -> Tensor:
        r""":math:`A_d(\kappa) A_d(\kappa \lVert S \rVert) S / \lVert S \rVert`."""
        y = self.marginal(present).direction(value).mean
        mean = VonMisesFisher(y, self.concentration, validate_args=False).mean
        return mean.unsqueeze(-2)


class Stereographic(Transform):
    r"""The stereographic projection of R^(d-1) onto the sphere without one point.

    .. math:: z = R \Big( \frac{1 - \lVert u \rVert^2}{1 + \lVert u \rVert^2}, \;
        \frac{2 u}{1 + \lVert u \rVert^2} \Big), \qquad
        dz = \Big( \frac{2}{1 + \lVert u \rVert^2} \Big)^{d-1} du

    u = 0 is the pole, the point opposite to it is at infinity; R takes the first axis
    to the pole. The uniform distribution becomes a Student-t with d - 1 degrees of
    freedom.

    Arguments:
        pole: Of length 1, shape (\*batch, d).
    """

    domain, codomain, bijective = constraints.real_vector, constraints.sphere, True

    def __init__(self, pole: Vectors) -> None:
        super().__init__()
        self.pole = pole

    def _call(self, u: Vectors) -> Vectors:
        square = u.square().sum(-1, keepdim=True)
        return _turned(torch.cat([1 - square, 2 * u], -1) / (1 + square), self.pole)

    def _inverse(self, z: Vectors) -> Vectors:
        z = _turned(z, self.pole)
        return z[..., 1:] / (1 + z[..., :1])

    def log_abs_det_jacobian(self, u: Vectors, z: Vectors) -> Float[Tensor, "*batch"]:
        return u.shape[-1] * (math.log(2) - u.square().sum(-1).log1p())

    def forward_shape(self, shape: Size) -> Size:
        return Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Size) -> Size:
        return Size((*shape[:-1], shape[-1] - 1))


def _gamma(shape: Tensor) -> Tensor:
    return Gamma(shape, torch.ones_like(shape), validate_args=False).rsample()


def _propose(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Proposals of the odds (1 - cos) / (1 + cos), and whether each is accepted.

    Wood's algorithm VM*, written in 1 - cos to avoid cancellation; the ratio of two
    gamma variables replaces his beta variable.
    """
    b = (dim - 1) / (2 * kappa + torch.hypot(2 * kappa, kappa.new_full((), dim - 1)))
    half = torch.full_like(kappa, (dim - 1) / 2)
    odds = b * _gamma(half) / _gamma(half)
    fall, centre = 2 * odds / (1 + odds), 2 * b / (1 + b)
    excess = (1 - centre) * fall / centre
    log_ratio = kappa * (centre - fall)
    log_ratio = log_ratio + (dim - 1) * ((1 + excess) / (2 - centre)).log()
    return odds, log_ratio >= torch.rand_like(kappa).log()


def _around(loc: Vectors, odds: Float[Tensor, "*batch"]) -> Vectors:
    """Uniform points among those whose odds (1 - cos) / (1 + cos) to loc are given.

    They are drawn around the first axis and reflected to loc, or to -loc and from there
    through the origin: by the reflection that is not degenerate.
    """
    odds = odds.unsqueeze(-1)
    noise = odds.new_empty(odds.shape[:-1] + (loc.shape[-1] - 1,)).normal_()
    sine = 2 * odds.sqrt() / (1 + odds)
    z = torch.cat([(1 - odds) / (1 + odds), sine * _direction(noise)], -1)
    return _turned(z, loc)


def _turned(z: Vectors, loc: Vectors) -> Vectors:
    """Reflect z, so that the first axis comes to loc; this is its own inverse."""
    sign = torch.where(loc[..., :1] < 0, -1.0, 1.0).to(loc.dtype)
    mirror = torch.cat([loc[..., :1] + sign, loc[..., 1:]], -1)
    along = (z * mirror).sum(-1, keepdim=True) / mirror.square().sum(-1, keepdim=True)
    return sign * (2 * along * mirror - z)


def _direction(normal: Vectors) -> Vectors:
    """Normalise to length 1."""
    # A zero vector, possible in one or two dimensions, has no direction.
    normal = torch.where(normal == 0, 1, normal)
    return normal / normal.norm(dim=-1, keepdim=True)


def _resultant_length(z: Views) -> Float[Tensor, "*batch"]:
    """The length of the sum of the views, with gradient zero where the sum is zero."""
    square = z.sum(-2).square().sum(-1)
    return square.clamp(min=torch.finfo(z.dtype).tiny).sqrt()


def _seen(z: Tensor, present: Tensor | None) -> Views:
    """The views, with zeros in place of the absent ones."""
    return z if present is None else z.where(present.unsqueeze(-1), 0.0)


@register_kl(_AroundLoc, VonMisesFisher)
def _kl_to_von_mises_fisher(p: _AroundLoc, q: VonMisesFisher) -> Tensor:
    _check_same_dim(p, q)
    kappa, shortfall = q.concentration.double(), p._shortfall()
    apart = (p.loc - q.loc).double().square().sum(-1) / 2
    away = shortfall + (1 - shortfall) * apart
    cross = kappa * away - log_vmf_normaliser(q.dim, kappa, scaled=True)
    return (cross - p._entropy()).to(p.concentration.dtype)


@register_kl(_AroundLoc, SphericalUniform)
def _kl_to_uniform(p: _AroundLoc, q: SphericalUniform) -> Tensor:
    _check_same_dim(p, q)
    value = (q.log_area - p._entropy()).to(p.concentration.dtype)
    return value.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


def _check_same_dim(p: _AroundLoc, q: VonMisesFisher | SphericalUniform) -> None:
    if p.dim != q.dim:
        raise ValueError(
            f"expected distributions on the same sphere, got dim {p.dim} and {q.dim}; "
            "give both the same dim"
        )
