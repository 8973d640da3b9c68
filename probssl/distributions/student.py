r"""The multivariate Student-t distribution with one scale for all dimensions.

References:
    Multivariate T-Distributions and Their Applications (Kotz and Nadarajah, 2004)
    https://doi.org/10.1017/CBO9780511550683
"""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Gamma, TorchDistribution, constraints
from torch import Size, Tensor

from ..special import digamma_difference, log_gamma_ratio

__all__ = ["IsotropicStudentT"]

Shape = Size | list[int] | tuple[int, ...]


class IsotropicStudentT(TorchDistribution):
    r"""Student-t in d dimensions: a normal whose precision is random and shared.

    .. math:: p(z)
        = \frac{\Gamma((\nu + d)/2)}{\Gamma(\nu / 2) (\nu \pi \sigma^2)^{d/2}}
        \Big(1 + \frac{\lVert z - \mu \rVert^2}{\nu \sigma^2}\Big)^{-(\nu + d)/2}

    Arguments:
        dof: The degrees of freedom :math:`\nu`; a mean needs more than 1, a variance
            more than 2.
        loc: The centre :math:`\mu`.
        scale: The scale :math:`\sigma`; the standard deviation is larger.

    Raises:
        ValueError: If loc has no axis or the shapes do not broadcast; with validation,
            if dof or scale is not positive.
    """

    arg_constraints = {
        "dof": constraints.positive,
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        dof: Float[Tensor, "*batch"] | float,
        loc: Float[Tensor, "*batch dim"],
        scale: Float[Tensor, "*batch"] | float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if loc.ndim < 1:
            raise ValueError(
                "expected loc with shape (*batch, dim), got a scalar; give "
                "loc.unsqueeze(-1) for one dimension"
            )
        dof, scale = (
            part if isinstance(part, Tensor) else loc.new_full((), part)
            for part in (dof, scale)
        )
        try:
            shape = torch.broadcast_shapes(dof.shape, scale.shape, loc.shape[:-1])
        except RuntimeError as error:
            raise ValueError(
                "expected dof and scale to broadcast with the batch shape "
                f"{tuple(loc.shape[:-1])} of loc, got {tuple(dof.shape)} and "
                f"{tuple(scale.shape)}; their shapes have no axis for dim"
            ) from error
        self.dof, self.scale = dof.expand(shape), scale.expand(shape)
        self.loc = loc.expand(shape + loc.shape[-1:])
        super().__init__(shape, loc.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: Shape, _instance: "IsotropicStudentT | None" = None
    ) -> "IsotropicStudentT":
        new = self._get_checked_instance(IsotropicStudentT, _instance)
        batch_shape = Size(batch_shape)
        new.dof, new.scale = (
            self.dof.expand(batch_shape),
            self.scale.expand(batch_shape),
        )
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        super(IsotropicStudentT, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mode(self) -> Float[Tensor, "*batch dim"]:
        return self.loc

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        """The centre; not a number where dof is at most 1."""
        return torch.where(self.dof.unsqueeze(-1) > 1, self.loc, math.nan)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        """Of each dimension: infinite for dof in (1, 2], not a number below."""
        excess = torch.where(self.dof > 2, self.dof - 2, 1)
        variance = self.scale.square() * self.dof / excess
        variance = torch.where(self.dof > 2, variance, math.inf)
        variance = torch.where(self.dof > 1, variance, math.nan)
        return variance.unsqueeze(-1).expand(self.loc.shape)

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale.unsqueeze(-1)
        tail = torch.log1p(z.square().sum(-1) / self.dof)
        mode = self._log_mode().to(self.loc.dtype)
        return mode - (self.dof + self.event_shape[0]) / 2 * tail

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch dim"]:
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
