"""Directions that share one mean direction: the spherical prior of the views."""

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.nn.functional import normalize

from ..special import log_area, log_vmf_normaliser
from .spherical import VonMisesFisher
from .spherical_uniform import SphericalUniform

__all__ = ["SharedDirection"]

Shape = Size | list[int] | tuple[int, ...]


class SharedDirection(TorchDistribution):
    r"""Views that are von Mises-Fisher around one direction, uniform on the sphere.

    .. math:: y \sim U(S^{d-1}), \qquad z_v \mid y \sim \mathrm{vMF}(y, \kappa)

    With :math:`S = \sum_v z_v` and the direction integrated out,

    .. math:: \log p(z_1, \dots, z_V) = V \log C_d(\kappa)
        - \log C_d(\kappa \lVert S \rVert) - \log |S^{d-1}|

    For large κ the two normalisers nearly cancel; what is left is taken from
    :math:`\kappa (V - \lVert S \rVert) = \kappa \sum_{v < w} \lVert z_v - z_w \rVert^2
    / (V + \lVert S \rVert)`.

    Arguments:
        concentration: The concentration :math:`\kappa`, with the batch shape.
        views: The number V of views.
        dim: The dimension d of the space the sphere lies in.
    """

    arg_constraints = {"concentration": constraints.positive}
    support = constraints.independent(constraints.sphere, 1)

    def __init__(
        self,
        concentration: Tensor,
        views: int,
        dim: int,
        validate_args: bool | None = None,
    ) -> None:
        self.concentration = concentration
        super().__init__(
            concentration.shape, Size((views, dim)), validate_args=validate_args
        )

    @property
    def mean(self) -> Tensor:
        return self.concentration.new_zeros(self.batch_shape + self.event_shape)

    def expand(
        self, batch_shape: Shape, _instance: "SharedDirection | None" = None
    ) -> "SharedDirection":
        new = self._get_checked_instance(SharedDirection, _instance)
        new.concentration = self.concentration.expand(batch_shape)
        super(SharedDirection, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch view dim"]:
        shape = Size(sample_shape) + self.batch_shape
        like = self.concentration
        uniform = SphericalUniform(
            self.event_shape[1], dtype=like.dtype, device=like.device
        )
        y = uniform.sample(shape)
        y = y.unsqueeze(-2).expand(shape + self.event_shape)
        concentration = like.unsqueeze(-1).expand(shape + self.event_shape[:1])
        return VonMisesFisher(y, concentration, validate_args=False).sample()

    def log_prob(self, value: Float[Tensor, "*batch view dim"]) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        views, dim = self.event_shape
        kappa, length = self.concentration, resultant_length(value)
        return (
            views * log_vmf_normaliser(dim, kappa, scaled=True)
            - log_vmf_normaliser(dim, kappa * length, scaled=True)
            - kappa * _shortfall(value, length)
            - log_area(dim)
        )

    def direction(self, value: Float[Tensor, "*batch view dim"]) -> VonMisesFisher:
        """The posterior of the shared direction given the views."""
        length = resultant_length(value)
        loc = normalize(value.sum(-2), dim=-1)
        return VonMisesFisher(loc, self.concentration * length, validate_args=False)


def resultant_length(z: Float[Tensor, "*batch view dim"]) -> Float[Tensor, "*batch"]:
    """The length of the sum of the views; its gradient is zero where the sum is."""
    square = z.sum(-2).square().sum(-1)
    return square.clamp(min=torch.finfo(z.dtype).tiny).sqrt()


def _shortfall(z: Tensor, length: Tensor) -> Tensor:
    r""":math:`V - \lVert S \rVert`, from the distances between the views."""
    views = z.shape[-2]
    centred = z - z.mean(-2, keepdim=True)
    return views * centred.square().sum((-2, -1)) / (views + length)
