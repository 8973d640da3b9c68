"""Directions that share one mean direction: the spherical prior of the views."""

import torch
from jaxtyping import Bool, Float
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
        present: The views whose marginal density is meant, bool, with shape
            (\*batch, view); None means all. V and S are then those of present views.
    """

    arg_constraints = {"concentration": constraints.positive}
    support = constraints.independent(constraints.sphere, 1)

    def __init__(
        self,
        concentration: Tensor,
        views: int,
        dim: int,
        *,
        present: Bool[Tensor, "*batch view"] | None = None,
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

    def expand(
        self, batch_shape: Shape, _instance: "SharedDirection | None" = None
    ) -> "SharedDirection":
        new = self._get_checked_instance(SharedDirection, _instance)
        new.concentration, new.present = self.concentration.expand(batch_shape), None
        if self.present is not None:
            new.present = self.present.expand(Size(batch_shape) + self.event_shape[:1])
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
        dim, kappa = self.event_shape[1], self.concentration
        views = self.event_shape[0] if self.present is None else self.present.sum(-1)
        length = resultant_length(_seen(value, self.present))
        return (
            views * log_vmf_normaliser(dim, kappa, scaled=True)
            - log_vmf_normaliser(dim, kappa * length, scaled=True)
            - kappa * _shortfall(value, self.present, length)
            - log_area(dim)
        )

    def direction(self, value: Float[Tensor, "*batch view dim"]) -> VonMisesFisher:
        """The posterior of the shared direction given the (present) views."""
        return self._direction(value, self.present)

    def complete(
        self, value: Float[Tensor, "*batch view dim"], present: Bool[Tensor, "*b view"]
    ) -> Float[Tensor, "*batch view dim"]:
        """Draw the absent views given the present ones, which are returned as given.

        No gradient reaches what is drawn: it comes from rejection.
        """
        with torch.no_grad():
            y = self._direction(value, present).draw().unsqueeze(-2)
            kappa = self.concentration.unsqueeze(-1).expand(value.shape[:-1])
            drawn = VonMisesFisher(
                y.expand_as(value), kappa, validate_args=False
            ).draw()
        return torch.where(present.unsqueeze(-1), value, drawn)

    def complete_mean(
        self, value: Float[Tensor, "*batch view dim"], present: Bool[Tensor, "*b view"]
    ) -> Float[Tensor, "*batch view dim"]:
        r"""The mean of what `complete` draws, inside the sphere.

        .. math:: E[z_\text{absent}] = A_d(\kappa) \, A_d(\kappa \lVert S \rVert) \,
            S / \lVert S \rVert

        with :math:`A_d(\kappa)` the mean length of a von Mises-Fisher variable.
        """
        y = self._direction(value, present).mean
        mean = VonMisesFisher(y, self.concentration, validate_args=False).mean
        return torch.where(present.unsqueeze(-1), value, mean.unsqueeze(-2))

    def _direction(self, value: Tensor, present: Tensor | None) -> VonMisesFisher:
        value = _seen(value, present)
        loc = normalize(value.sum(-2), dim=-1)
        kappa = self.concentration * resultant_length(value)
        return VonMisesFisher(loc, kappa, validate_args=False)


def resultant_length(z: Float[Tensor, "*batch view dim"]) -> Float[Tensor, "*batch"]:
    """The length of the sum of the views; its gradient is zero where the sum is."""
    square = z.sum(-2).square().sum(-1)
    return square.clamp(min=torch.finfo(z.dtype).tiny).sqrt()


def _seen(z: Tensor, present: Tensor | None) -> Float[Tensor, "*batch view dim"]:
    """The views, zeros where they are absent."""
    return z if present is None else z.where(present.unsqueeze(-1), 0.0)


def _shortfall(z: Tensor, present: Tensor | None, length: Tensor) -> Tensor:
    r""":math:`V - \lVert S \rVert`, from the distances between the views."""
    if present is None:
        count: Tensor | int = z.shape[-2]
        apart = z - z.mean(-2, keepdim=True)
    else:
        count = present.sum(-1)
        total = _seen(z, present).sum(-2) / count.clamp(min=1).unsqueeze(-1)
        apart = _seen(z - total.unsqueeze(-2), present)
    return count * apart.square().sum((-2, -1)) / (count + length)
