"""The uniform distribution on the unit sphere of R^d."""

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from ..special import log_area

__all__ = ["SphericalUniform", "direction"]

Shape = Size | list[int] | tuple[int, ...]


class SphericalUniform(TorchDistribution):
    """The uniform distribution on the unit sphere of R^dim.

    Arguments:
        dim: The dimension of the space around the sphere, at least 2.
        batch_shape: The shape of a batch of them.
        dtype: The type of the samples; None means torch's default, as for the device.

    Raises:
        ValueError: If dim is less than 2.
    """

    arg_constraints = {}
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
        self.log_area = log_area(dim)
        self.dtype, self.device = dtype, device
        super().__init__(Size(batch_shape), Size((dim,)), validate_args=validate_args)

    @property
    def dim(self) -> int:
        """The dimension of the space around the sphere."""
        return self.event_shape[0]

    def expand(
        self, batch_shape: Shape, _instance: "SphericalUniform | None" = None
    ) -> "SphericalUniform":
        new = self._get_checked_instance(SphericalUniform, _instance)
        new.log_area, new.dtype, new.device = self.log_area, self.dtype, self.device
        super(SphericalUniform, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        shape = self._extended_shape()
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        return torch.full_like(self.mean, 1 / self.dim)

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -self.log_area)

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch dim"]:
        shape = self._extended_shape(sample_shape)
        return direction(torch.randn(shape, dtype=self.dtype, device=self.device))

    def entropy(self) -> Float[Tensor, "*batch"]:
        shape = self.batch_shape
        return torch.full(shape, self.log_area, dtype=self.dtype, device=self.device)


def direction(normal: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Normalise to length 1."""
    # A vector of zeros, possible in one or two dimensions, has no direction.
    normal = torch.where(normal == 0, 1, normal)
    return normal / normal.norm(dim=-1, keepdim=True)
