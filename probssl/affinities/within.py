"""Views of one item: all alike, or by how much of it they share."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..runtime.distributed import gather, world_size
from ..terms import Batch
from .base import Affinity

__all__ = ["Overlap", "Positives", "intersection_over_union"]


class Positives(Affinity):
    r"""Any two views of one item alike, :math:`P_{ij} = 1 / N V (V - 1)`."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch view view"]:
        items, views = batch.shape
        partner = _others(views, batch.stacked)
        return (partner / (items * world_size() * views * (views - 1))).expand(
            items * world_size(), views, views
        )


class Overlap(Affinity):
    r"""Views of one item, the more the larger the part of it that both show.

    .. math:: P_{ij} \propto c + (1 - c) \, \frac{|B_i \cap B_j|}{|B_i \cup B_j|}

    with the boxes B that views show. `views.Augment` tells them with ``boxes=True``:
    ``Batch.transform``, of shape (batch, view, 4), left, top, right and bottom.

    Arguments:
        floor: The weight c of views that have nothing in common.

    Raises:
        ValueError: If the floor is not from 0 to 1, or a batch has no boxes. With a
            floor of 0 at least one pair of each batch has to overlap, and every view
            with another where each has a normaliser of its own: else P is 0 / 0.
    """

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        if not 0 <= floor <= 1:
            raise ValueError(f"expected floor from 0 to 1, got {floor}; 0.1 is usual")
        self.floor = floor

    def forward(self, batch: Batch) -> Float[Tensor, "batch view view"]:
        boxes = _boxes(batch)
        weight = self.floor + (1 - self.floor) * intersection_over_union(boxes)
        weight = gather(weight * _others(boxes.shape[1], boxes))
        return weight / weight.sum()


def intersection_over_union(
    boxes: Float[Tensor, "*batch view 4"],
) -> Float[Tensor, "*batch view view"]:
    """Return the area that two boxes share, over that which either covers."""
    a, b = boxes.unsqueeze(-2), boxes.unsqueeze(-3)
    size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    both = size.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return both / (area.unsqueeze(-1) + area.unsqueeze(-2) - both)


def _boxes(batch: Batch) -> Float[Tensor, "batch view 4"]:
    boxes: Any = batch.transform
    if not isinstance(boxes, Tensor) or boxes.shape != (*batch.shape, 4):
        found = tuple(boxes.shape) if isinstance(boxes, Tensor) else boxes
        raise ValueError(
            f"expected boxes of shape {(*batch.shape, 4)} in Batch.transform, got "
            f"{found}; give fit views=ps.views.Augment(..., boxes=True)"
        )
    return boxes


def _others(views: int, like: Tensor) -> Float[Tensor, "view view"]:
    """One where views differ, in the precision of densities."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.get_default_dtype()
    return 1 - torch.eye(views, dtype=dtype, device=like.device)
