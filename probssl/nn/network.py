"""Encoder and projector as one network."""

from jaxtyping import Float
from torch import Tensor, nn

from .modalities import each_view

__all__ = ["Network", "dim_of"]


class Network(nn.Module):
    r"""The network from the views of a batch to the z that are compared.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for views of several kinds
            `PerModality`.
        projector: A module (n, dim) -> (n, dim') behind it.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(
        self, views: Tensor | tuple[Tensor, ...]
    ) -> Float[Tensor, "batch view dim"]:
        z = each_view(self.encoder, views)
        return z if self.projector is None else each_view(self.projector, z)


def dim_of(
    encoder: nn.Module, projector: nn.Module | None = None, dim: int | None = None
) -> int:
    """The dimension of z: that given, else that of the last network.

    Raises:
        ValueError: If it is not known.
    """
    last, name = (encoder, "dim") if projector is None else (projector, "out")
    for found in (dim, getattr(last, name, None), getattr(last, "out_features", None)):
        if found is not None:
            return int(found)
    raise ValueError(
        "expected to know the dimension of z, got a "
        f"{type(last).__name__} that does not tell; give dim=…"
    )
