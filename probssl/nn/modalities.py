"""Views of several kinds: one network for all of them, or one for each."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..runtime.precision import lowered

__all__ = ["PerModality", "each_view"]


class PerModality(nn.Module):
    """One network for each modality, in the order of `Batch.views`.

    Arguments:
        parts: The networks: encoders that agree in the dimension of z, or decoders.

    Raises:
        ValueError: If there is none, or encoders differ in their dimension.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        dims: set[Any] = {part.dim for part in parts if hasattr(part, "dim")}
        if not parts or len(dims) > 1:
            found = f"the dimensions {sorted(dims)}" if dims else "none"
            raise ValueError(
                "expected a network for each modality, all with one dimension of z, "
                f"got {found}; build all of them with the same dim"
            )
        self.parts = nn.ModuleList(parts)
        self.dim = dims.pop() if dims else None

    def __len__(self) -> int:
        return len(self.parts)

    def forward(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Apply each network to the part of its modality.

        Raises:
            ValueError: If there are not as many parts as networks.
        """
        if isinstance(parts, Tensor) or len(parts) != len(self.parts):
            found = "one tensor" if isinstance(parts, Tensor) else f"{len(parts)} parts"
            raise ValueError(
                f"expected {len(self.parts)} parts, one for each modality, got "
                f"{found}; give Batch.views as a tuple of so many tensors"
            )
        return tuple(net(part) for net, part in zip(self.parts, parts, strict=True))


def each_view(
    encoder: nn.Module, views: Tensor | tuple[Tensor, ...]
) -> Float[Tensor, "batch view dim"]:
    r"""Return z of every view, whatever kinds of views there are.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), which encodes all of them, as for
            views of several sizes; or a `PerModality`.
        views: Shape (batch, view, \*event), or a tuple of such tensors.
    """
    several = isinstance(views, tuple)
    parts: tuple[Tensor, ...] = views if isinstance(views, tuple) else (views,)
    flat = [part.flatten(0, 1) for part in parts]
    if isinstance(encoder, PerModality):
        encoded = lowered(encoder, flat if several else flat[0])
    else:
        encoded = [lowered(encoder, part) for part in flat]
    z = [
        out.flatten(1).unflatten(0, part.shape[:2])
        for out, part in zip(encoded, parts, strict=True)
    ]
    return z[0] if len(z) == 1 else torch.cat(z, 1)
