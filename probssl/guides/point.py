"""The guide without spread."""

from jaxtyping import Bool
from pyro.distributions import Delta, TorchDistribution
from torch import Tensor, nn

from ..nn import each_view
from .factors import PriorOf, Views

__all__ = ["Point"]


class Point(nn.Module):
    r"""q puts all its mass on the encoder's output; its entropy is left out.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> TorchDistribution:
        if present is not None:
            raise ValueError(
                "expected all views to be present for the guide Point, got a mask; "
                "use DiagonalGaussian or Coupled, which follow the prior where a view "
                "is absent"
            )
        loc = each_view(self.encoder, x)
        return Delta(loc, event_dim=2, validate_args=False)
