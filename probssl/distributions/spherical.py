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
from typing import Self

import torch
from jaxtyping import Float
from pyro.distributions import Gamma, TorchDistribution, constraints
from torch import Size, Tensor
from torch.distributions.kl import register_kl

from ..special import (
    bessel_ratio,
    digamma_difference,
    log_gamma_ratio,
    log_vmf_normaliser,
)
from .spherical_uniform import SphericalUniform, direction

__all__ = ["PowerSpherical", "VonMisesFisher"]

Shape = Size | list[int] | tuple[int, ...]

PROPOSALS = 40  # of which none is accepted once in 10^18 draws


class _AroundLoc(TorchDistribution):
    r"""A density of the cosine :math:`\mu^\top z` to the mean direction alone."""

    arg_constraints = {
        "loc": constraints.sphere,
        "concentration": constraints.nonnegative,
    }
    support = constraints.sphere

    def __init__(
        self,
        loc: Float[Tensor, "*batch dim"],
        concentration: Float[Tensor, "*batch"] | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if loc.ndim < 1 or loc.shape[-1] < 2:
            raise ValueError(
                "expected loc with shape (*batch, dim), dim at least 2, got shape "
                f"{tuple(loc.shape)}; give unit vectors along the last axis"
            )
        if not isinstance(concentration, Tensor):
            concentration = loc.new_full((), concentration)
        try:
            batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        except RuntimeError as error:
            raise ValueError(
                "expected concentration to broadcast with the batch shape "
                f"{tuple(loc.shape[:-1])} of loc, got {tuple(concentration.shape)}; "
                "its shape has no axis for dim"
            ) from error
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Self | None = None) -> Self:
        new = self._get_checked_instance(_AroundLoc, _instance)
        batch_shape = Size(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(_AroundLoc, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """The dimension d of the space around the sphere."""
        return self.event_shape[0]

    @property
    def mode(self) -> Float[Tensor, "*batch dim"]:
        return self.loc

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """The mean in R^d: inside the sphere, along `loc`."""
        length = (1 - self._shortfall()).to(self.loc.dtype)
        return length.unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        r"""Of each coordinate, with the cosine :math:`t = \mu^\top z`:
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
    r"""The von Mises-Fisher distribution on the sphere: a Gaussian kept at length 1.

    .. math:: p(z) = C_d(\kappa) \, e^{\kappa \mu^\top z}
        = C_d(\kappa) e^\kappa \cdot e^{-\kappa \lVert z - \mu \rVert^2 / 2}

    The second form is evaluated: nothing cancels, however large the concentration.
    Samples are exact, by rejection, and carry no gradient.

    Arguments:
        loc: The mean direction :math:`\mu`, of length 1.
        concentration: The concentration :math:`\kappa \ge 0`; 0 is uniform.

    Raises:
        ValueError: If dim is less than 2 or the shapes do not broadcast; with
            validation, if loc is not of length 1 or the concentration is negative.
    """

    has_rsample = False

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        square = (value - self.loc).square().sum(-1)
        mode = log_vmf_normaliser(self.dim, self.concentration, scaled=True)
        return mode - self.concentration * square / 2

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch dim"]:
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
    def draw(self) -> Float[Tensor, "*batch dim"]:
        """One sample each, without asking the host, so that it can be compiled.

        It is the first accepted of so many proposals that one surely is: each is
        accepted with a probability above 0.65.
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
        # The ratio to the concentration, which tends to 1 / d as that vanishes.
        ratio = (1 - short) / kappa.clamp(min=1e-6)
        across = (self.dim - 1) * torch.where(kappa < 1e-6, 1 / self.dim, ratio)
        return across, (short * (2 - short) - across).clamp(min=0)

    def _entropy(self) -> Float[Tensor, "*batch"]:
        kappa = self.concentration.double()
        mode = log_vmf_normaliser(self.dim, kappa, scaled=True)
        return kappa * self._shortfall() - mode


class PowerSpherical(_AroundLoc):
    r"""The power spherical distribution: like von Mises-Fisher, and reparameterised.

    .. math:: p(z) \propto (1 + \mu^\top z)^\kappa, \qquad
        \tfrac12 (1 + \mu^\top z) \sim
        \mathrm{Beta}(\tfrac{d-1}{2} + \kappa, \tfrac{d-1}{2})

    Arguments:
        loc: The mean direction :math:`\mu`, of length 1.
        concentration: The concentration :math:`\kappa \ge 0`; 0 is uniform.

    Raises:
        ValueError: If dim is less than 2 or the shapes do not broadcast; with
            validation, if loc is not of length 1 or the concentration is negative.
    """

    has_rsample = True

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        # (1 - cos) / (1 + cos), accurate at the mode and opposite to it.
        away, towards = (value - self.loc).square(), (value + self.loc).square()
        odds = away.sum(-1) / towards.sum(-1)
        mode = self._log_mode().to(self.concentration.dtype)
        return mode - torch.special.xlog1py(self.concentration, odds)

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch dim"]:
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


def _gamma(shape: Tensor) -> Tensor:
    return Gamma(shape, torch.ones_like(shape), validate_args=False).rsample()


def _propose(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Proposals of the odds (1 - cos) / (1 + cos), and which are accepted.

    Wood's algorithm VM*, written in 1 - cos, so that nothing cancels; the ratio of two
    gamma variables stands for his beta variable.
    """
    b = (dim - 1) / (2 * kappa + torch.hypot(2 * kappa, kappa.new_full((), dim - 1)))
    half = torch.full_like(kappa, (dim - 1) / 2)
    odds = b * _gamma(half) / _gamma(half)
    fall, centre = 2 * odds / (1 + odds), 2 * b / (1 + b)
    excess = (1 - centre) * fall / centre
    log_ratio = kappa * (centre - fall)
    log_ratio = log_ratio + (dim - 1) * ((1 + excess) / (2 - centre)).log()
    return odds, log_ratio >= torch.rand_like(kappa).log()


def _around(
    loc: Float[Tensor, "*batch dim"], odds: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch dim"]:
    """Points whose cosine to loc has the odds (1 - cos) / (1 + cos), else uniform.

    They are drawn around the first axis and reflected to loc, or to -loc and from there
    through the origin: by the mirror that is not degenerate.
    """
    odds = odds.unsqueeze(-1)
    noise = odds.new_empty(odds.shape[:-1] + (loc.shape[-1] - 1,)).normal_()
    sine = 2 * odds.sqrt() / (1 + odds)
    z = torch.cat([(1 - odds) / (1 + odds), sine * direction(noise)], -1)
    sign = torch.where(loc[..., :1] < 0, -1.0, 1.0).to(loc.dtype)
    mirror = torch.cat([loc[..., :1] + sign, loc[..., 1:]], -1)
    along = (z * mirror).sum(-1, keepdim=True) / mirror.square().sum(-1, keepdim=True)
    return sign * (2 * along * mirror - z)


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
