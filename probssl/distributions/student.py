r"""Student-t distributions: one vector, or the views of an item that share a precision.

References:
    Multivariate T-Distributions and Their Applications (Kotz and Nadarajah, 2004)
    https://doi.org/10.1017/CBO9780511550683
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from pyro.distributions import Gamma, constraints
from torch import Size, Tensor

from ..special import digamma_difference, log_gamma_ratio
from ._base import (
    Expandable,
    Shape,
    Vectors,
    Views,
    ViewsDistribution,
    broadcast_around,
)
from .gaussian import OneFactorNormal

__all__ = ["IsotropicStudentT", "SharedPrecision"]


class IsotropicStudentT(Expandable):
    r"""Multivariate Student-t with one scale: a normal of one random precision.

    .. math:: p(z)
        = \frac{\Gamma((\nu + d)/2)}{\Gamma(\nu / 2) (\nu \pi \sigma^2)^{d/2}}
        \Big(1 + \frac{\lVert z - \mu \rVert^2}{\nu \sigma^2}\Big)^{-(\nu + d)/2}

    Arguments:
        dof: The degrees of freedom :math:`\nu`; the mean exists above 1, the variance
            above 2.
        loc: The centre :math:`\mu`.
        scale: The scale :math:`\sigma`, less than the standard deviation.
    """

    arg_constraints = {
        "dof": constraints.positive,
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True
    parts = {"dof": 0, "loc": 1, "scale": 0}

    def __init__(
        self,
        dof: Float[Tensor, "*batch"] | float,
        loc: Vectors,
        scale: Float[Tensor, "*batch"] | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.dof, self.scale = broadcast_around(loc, dof=dof, scale=scale)
        *batch, dim = self.loc.shape
        super().__init__(Size(batch), Size((dim,)), validate_args=validate_args)

    @property
    def mode(self) -> Vectors:
        return self.loc

    @property
    def mean(self) -> Vectors:
        return _mean(self.dof.unsqueeze(-1), self.loc)

    @property
    def variance(self) -> Vectors:
        variance = _variance(self.dof, self.scale.square())
        return variance.unsqueeze(-1).expand(self.loc.shape)

    def log_prob(self, value: Vectors) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale.unsqueeze(-1)
        tail = torch.log1p(z.square().sum(-1) / self.dof)
        mode = self._log_mode().to(self.loc.dtype)
        return mode - (self.dof + self.event_shape[0]) / 2 * tail

    def rsample(self, sample_shape: Shape = ()) -> Vectors:
        shape = self._extended_shape(sample_shape)
        half = (self.dof / 2).expand(shape[:-1])
        precision = Gamma(half, half, validate_args=False).rsample()
        noise = self.loc.new_empty(shape).normal_()
        return self.loc + (self.scale * precision.rsqrt()).unsqueeze(-1) * noise

    def entropy(self) -> Float[Tensor, "*batch"]:
        a, b = self.dof.double() / 2, self.event_shape[0] / 2
        value = (a + b) * digamma_difference(a, b) - self._log_mode()
        return value.to(self.loc.dtype)

    def _log_mode(self) -> Float[Tensor, "*batch"]:
        r"""The log-density at the centre, in float64."""
        dof, dim = self.dof.double(), self.event_shape[0]
        log_scale = self.scale.double().log() + (dof * math.pi).log() / 2
        return log_gamma_ratio(dof / 2, dim / 2) - dim * log_scale


class SharedPrecision(ViewsDistribution):
    r"""Student-t views of an item: normal views of one random precision.

    .. math:: g \sim \mathrm{Gamma}(\tfrac\nu2, \tfrac\nu2), \qquad
        z_v = \mu_v + u_v f + \frac{\sigma_v}{\sqrt g} \epsilon_v, \qquad
        f \mid g \sim N(0, 1 / g)

    All views and dimensions together are Student-t. Let N be the normal density for
    g = 1, M the squared Mahalanobis distance of z under N, and m = V·d the number of
    dimensions. Then

    .. math:: \log p(z) = \log N(\mu)
        + \log \frac{\Gamma((\nu + m) / 2)}{\Gamma(\nu / 2) \, (\nu / 2)^{m / 2}}
        - \frac{\nu + m}2 \log\Big(1 + \frac M\nu\Big)

    A flat factor has density 1 for every g: then m = (V − 1)·d, and there are no
    samples.

    Arguments:
        normal: The distribution of the (present) views for g = 1.
        dof: The degrees of freedom :math:`\nu`, broadcastable to the batch shape of the
            normal.
    """

    arg_constraints = {"dof": constraints.positive}
    parts = {"normal": 0, "dof": 0, "log_mode": 0}

    def __init__(
        self,
        normal: OneFactorNormal,
        dof: Float[Tensor, "*batch"],
        validate_args: bool | None = None,
    ) -> None:
        self.normal, self.dof = normal, dof
        # Before the parts are expanded: the constant is computed once for all items.
        log_mode = normal.log_prob(normal.loc) + self._of_half_count(_log_ratio)
        shape = torch.broadcast_shapes(normal.batch_shape, dof.shape)
        self.normal, self.dof = normal.expand(shape), dof.expand(shape)
        self.log_mode = log_mode.expand(shape)
        super().__init__(shape, normal.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.normal.has_rsample

    @property
    def mean(self) -> Views:
        return _mean(self.dof[..., None, None], self.normal.loc)

    @property
    def variance(self) -> Views:
        return _variance(self.dof[..., None, None], self.normal.variance)

    def rsample(self, sample_shape: Shape = ()) -> Views:
        z = self.normal.rsample(sample_shape)
        half = self.dof / 2
        precision = Gamma(half, half, validate_args=False).rsample(Size(sample_shape))
        loc = self.normal.loc
        return loc + (z - loc) * precision[..., None, None].rsqrt()

    def log_prob(self, value: Views) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        tail = torch.log1p(self._square(value) / self.dof)
        return self.log_mode - (self.dof + self._count()) / 2 * tail

    def entropy(self) -> Tensor:
        """The entropy, in nats."""
        self.normal.entropy()  # raises for a flat factor
        half = (self.dof + self._count()) / 2
        return half * self._of_half_count(digamma_difference) - self.log_mode

    def precision(self, value: Views) -> Gamma:
        r"""The posterior of g given the views,
        :math:`\mathrm{Gamma}((\nu + m) / 2, (\nu + M) / 2)`."""
        count, square = self.dof + self._count(), self.dof + self._square(value)
        count, square = torch.broadcast_tensors(count, square)
        return Gamma(count / 2, square / 2, validate_args=False)

    def marginal(self, present: Tensor) -> "SharedPrecision":
        normal = self.normal.marginal(present)
        return SharedPrecision(normal, self.dof, validate_args=False)

    def _draw_absent(self, value: Tensor, present: Tensor) -> Tensor:
        known, base = self.marginal(present), self.normal
        factor = known.normal.factor(value)
        deviation = factor.stddev * torch.randn_like(factor.stddev)
        noise = base.scale * torch.randn_like(value)
        noise = noise + base.loading * deviation.unsqueeze(-2)
        precision = known.precision(value).rsample()[..., None, None]
        return self._centre(factor.mean) + noise * precision.rsqrt()

    def _mean_absent(self, value: Tensor, present: Tensor) -> Tensor:
        return self._centre(self.marginal(present).normal.factor(value).mean)

    def _centre(self, factor: Tensor) -> Tensor:
        """The centres of the views given the factor."""
        return self.normal.loc + self.normal.loading * factor.unsqueeze(-2)

    def _square(self, value: Tensor) -> Tensor:
        """The squared Mahalanobis distance M, a sum of squares."""
        base, factor = self.normal, self.normal.factor(value).mean
        square = ((value - self._centre(factor)) / base.scale).square()
        if base.present is not None:
            square = square * base.present.unsqueeze(-1)
        total = square.sum((-2, -1))
        return total if base.flat else total + factor.square().sum(-1)

    def _count(self) -> Tensor | int:
        """The number of dimensions m of the present views, d fewer if flat."""
        (views, dim), fewer = self.normal.event_shape, int(self.normal.flat)
        if self.normal.present is None:
            return (views - fewer) * dim
        return (self.normal.present.sum(-1) - fewer).clamp(min=0) * dim

    def _of_half_count(self, function: Callable[[Tensor, float], Tensor]) -> Tensor:
        r"""The function of :math:`\nu / 2` and m / 2, computed in float64."""
        (views, dim), count = self.normal.event_shape, self._count()
        half = self.dof.double() / 2
        if isinstance(count, int):
            return function(half, count / 2).to(self.dof.dtype)
        # A table over the few values of m, from which each item gathers its own.
        table = torch.stack([function(half, n * dim / 2) for n in range(views + 1)], -1)
        table, pick = torch.broadcast_tensors(table, (count // dim).unsqueeze(-1))
        return table.gather(-1, pick)[..., 0].to(self.dof.dtype)


def _mean(dof: Tensor, loc: Tensor) -> Tensor:
    """The centre; NaN where dof is at most 1."""
    return torch.where(dof > 1, loc, math.nan)


def _variance(dof: Tensor, square: Tensor) -> Tensor:
    """The variance, of a squared scale: infinite for dof in (1, 2], NaN below."""
    excess = torch.where(dof > 2, dof - 2, 1)
    variance = torch.where(dof > 2, square * dof / excess, math.inf)
    return torch.where(dof > 1, variance, math.nan)


def _log_ratio(a: Tensor, b: float) -> Tensor:
    r""":math:`\log \Gamma(a + b) / (\Gamma(a) a^b)`, which is 0 for large a."""
    return log_gamma_ratio(a, b) - b * a.log()
