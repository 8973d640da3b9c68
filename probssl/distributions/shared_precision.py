"""Views that share one factor and one precision: the Student-t prior of the views.

References:
    Multivariate T-Distributions and Their Applications (Kotz and Nadarajah, 2004)
    https://doi.org/10.1017/CBO9780511550683
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Gamma, TorchDistribution, constraints
from torch import Size, Tensor

from ..special import digamma_difference, log_gamma_ratio
from .gaussian import OneFactorNormal

__all__ = ["SharedPrecision"]

Shape = Size | list[int] | tuple[int, ...]


class SharedPrecision(TorchDistribution):
    r"""Normal views around one factor, all of whose noise has one random precision.

    .. math:: g \sim \mathrm{Gamma}(\tfrac\nu2, \tfrac\nu2), \qquad
        z_v = \mu_v + u_v f + \frac{\sigma_v}{\sqrt g} \epsilon_v, \qquad
        f \mid g \sim N(0, 1 / g)

    All views and dimensions together are Student-t. With M the Mahalanobis distance
    squared under the normal of g = 1, which is the density :math:`N(z)`, and m the
    number of its dimensions, V·d,

    .. math:: \log p(z) = \log N(\mu)
        + \log \frac{\Gamma((\nu + m) / 2)}{\Gamma(\nu / 2) \, (\nu / 2)^{m / 2}}
        - \frac{\nu + m}2 \log\Big(1 + \frac M\nu\Big)

    A flat factor has density 1 whatever g is: there m = (V − 1)·d, and there are no
    samples.

    Arguments:
        normal: The distribution of the views for g = 1, with its present views.
        dof: The degrees of freedom :math:`\nu`, with a shape that broadcasts with the
            normal's batch shape.
    """

    arg_constraints = {"dof": constraints.positive}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        normal: OneFactorNormal,
        dof: Float[Tensor, "*batch"],
        validate_args: bool | None = None,
    ) -> None:
        self.normal, self.dof = normal, dof
        # Before all is expanded: the constants are then computed once for all items.
        log_mode = normal.log_prob(normal.loc) + self._of_half_count(_log_ratio)
        shape = torch.broadcast_shapes(normal.batch_shape, dof.shape)
        self.normal, self.dof = normal.expand(shape), dof.expand(shape)
        self.log_mode = log_mode.expand(shape)
        super().__init__(shape, normal.event_shape, validate_args=validate_args)

    def expand(
        self, batch_shape: Shape, _instance: "SharedPrecision | None" = None
    ) -> "SharedPrecision":
        new = self._get_checked_instance(SharedPrecision, _instance)
        batch_shape = Size(batch_shape)
        new.normal = self.normal.expand(batch_shape)
        new.dof = self.dof.expand(batch_shape)
        new.log_mode = self.log_mode.expand(batch_shape)
        super(SharedPrecision, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.normal.has_rsample

    @property
    def mean(self) -> Float[Tensor, "*batch view dim"]:
        """The centre; not a number where dof is at most 1."""
        dof = self.dof[..., None, None]
        return torch.where(dof > 1, self.normal.loc, math.nan)

    @property
    def variance(self) -> Float[Tensor, "*batch view dim"]:
        """Of each dimension: infinite for dof in (1, 2], not a number below."""
        dof = self.dof[..., None, None]
        excess = torch.where(dof > 2, dof - 2, 1)
        variance = torch.where(dof > 2, self.normal.variance * dof / excess, math.inf)
        return torch.where(dof > 1, variance, math.nan)

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch view dim"]:
        z = self.normal.rsample(sample_shape)
        half = self.dof / 2
        precision = Gamma(half, half, validate_args=False).rsample(Size(sample_shape))
        loc = self.normal.loc
        return loc + (z - loc) * precision[..., None, None].rsqrt()

    def log_prob(self, value: Float[Tensor, "*batch view dim"]) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        tail = torch.log1p(self._square(value) / self.dof)
        return self.log_mode - (self.dof + self._count()) / 2 * tail

    def entropy(self) -> Tensor:
        """The entropy, in nats.

        Raises:
            ValueError: If the factor is flat.
        """
        self.normal.entropy()  # for its error alone
        half = (self.dof + self._count()) / 2
        return half * self._of_half_count(digamma_difference) - self.log_mode

    def precision(self, value: Float[Tensor, "*batch view dim"]) -> Gamma:
        r"""The posterior of g given the views,
        :math:`\mathrm{Gamma}((\nu + m) / 2, (\nu + M) / 2)`."""
        count, square = self.dof + self._count(), self.dof + self._square(value)
        count, square = torch.broadcast_tensors(count, square)
        return Gamma(count / 2, square / 2, validate_args=False)

    def complete(
        self, value: Float[Tensor, "*batch view dim"], present: Bool[Tensor, "*b view"]
    ) -> Float[Tensor, "*batch view dim"]:
        """Draw the absent views given the present ones, which are returned as given."""
        known, base = self._given(present), self.normal
        factor = known.normal.factor(value)
        deviation = factor.stddev * torch.randn_like(factor.stddev)
        noise = base.scale * torch.randn_like(value) + (
            base.loading * deviation.unsqueeze(-2)
        )
        precision = known.precision(value).rsample()[..., None, None]
        drawn = self._centre(factor.mean) + noise * precision.rsqrt()
        return torch.where(present.unsqueeze(-1), value, drawn)

    def complete_mean(
        self, value: Float[Tensor, "*batch view dim"], present: Bool[Tensor, "*b view"]
    ) -> Float[Tensor, "*batch view dim"]:
        """The centre of the absent views given the present ones, returned as given."""
        factor = self._given(present).normal.factor(value)
        return torch.where(present.unsqueeze(-1), value, self._centre(factor.mean))

    def _given(self, present: Tensor) -> "SharedPrecision":
        """The marginal of the present views."""
        base = self.normal
        known = OneFactorNormal(
            base.loc,
            base.scale,
            base.loading,
            flat=base.flat,
            present=present,
            validate_args=False,
        )
        return SharedPrecision(known, self.dof, validate_args=False)

    def _centre(self, factor: Tensor) -> Tensor:
        """Where the views are for a value of the factor."""
        return self.normal.loc + self.normal.loading * factor.unsqueeze(-2)

    def _square(self, value: Tensor) -> Tensor:
        """The Mahalanobis distance squared, M: a sum of squares, nothing cancels."""
        base, factor = self.normal, self.normal.factor(value).mean
        square = ((value - self._centre(factor)) / base.scale).square()
        if base.present is not None:
            square = square * base.present.unsqueeze(-1)
        total = square.sum((-2, -1))
        return total if base.flat else total + factor.square().sum(-1)

    def _count(self) -> Tensor | int:
        """The number of dimensions m: of the present views, less those of a flat y."""
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
        # Of the few values m can have, each item picks its own.
        table = torch.stack([function(half, n * dim / 2) for n in range(views + 1)], -1)
        table, pick = torch.broadcast_tensors(table, (count // dim).unsqueeze(-1))
        return table.gather(-1, pick)[..., 0].to(self.dof.dtype)


def _log_ratio(a: Tensor, b: float) -> Tensor:
    r""":math:`\log \Gamma(a + b) / (\Gamma(a) a^b)`, which is 0 for large a."""
    return log_gamma_ratio(a, b) - b * a.log()
