"""Kernel density estimates of H[z], with the kernel of the prior."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..priors import Prior
from .base import Entropy
from .normaliser import Allowed, log_sums, log_sums_of_views

__all__ = ["KernelDensity"]


class KernelDensity(Entropy):
    r"""Kernel density over the other representations of the batch.

    .. math:: \hat H[z] = -\frac1M \sum_j \log \frac{1}{|A(j)|} \sum_{i \in A(j)}
        p(z' = z_j \mid y = z_i), \qquad M = \text{batch} \cdot \text{view}

    The kernel is the prior's own conditional, y plugged in. The neighbours A(j) are all
    M representations but the one in question, as in SimCLR; or fewer. Where the other
    view of an item is among them and views nearly agree, the estimate is too low, by up
    to :math:`\log |A|` plus the log-density of the kernel at its centre. Otherwise it
    is the cross-entropy of z under its own smoothed density: too high by the divergence
    between them, which grows as the fourth power of a small width h of the kernel, and
    by a term of order :math:`1 / (M h^d)`, the noise of the average in the logarithm.

    To be raised it needs an alignment that falls as fast. Where z is stretched so far
    that kernels no longer reach each other, the estimate for a Gaussian kernel grows
    with the square of the stretch: under a flat p(y) that is integrated out the value
    may then grow without bound. With ``plug_in=True`` and the other views among the
    neighbours it is at most :math:`\log |A|`; on the sphere nothing can be stretched.

    Memory is linear in M: beyond a few thousand representations the kernels are made
    in blocks, and again on the way back.

    Arguments:
        same_view: Whether neighbours of the same view count.
        other_views: Whether those of other views do. With ``same_view=False`` and two
            views the estimate is the denominator of InfoNCE and CLIP.
        same_item: Whether the other views of the same item do. Without them the
            estimate is decoupled from the alignment.

    Raises:
        ValueError: If no neighbours are left.

    References:
        A Simple Framework for Contrastive Learning (Chen et al., 2020)
        https://arxiv.org/abs/2002.05709
        Decoupled Contrastive Learning (Yeh et al., 2022)
        https://arxiv.org/abs/2110.06848
    """

    def __init__(
        self,
        *,
        same_view: bool = True,
        other_views: bool = True,
        same_item: bool = True,
    ) -> None:
        super().__init__()
        if not (same_view or other_views):
            raise ValueError(
                "expected neighbours of the same view or of others, got neither; leave "
                "same_view or other_views at True"
            )
        self.same_view, self.other_views = same_view, other_views
        self.same_item = same_item

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        items, views, _ = z.shape
        flat = z.flatten(0, 1)
        sums = log_sums(prior, flat, flat, self._allowed(z))
        return math.log(self.neighbours(items, views)) - sums.mean()

    def joint(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        r"""Return the estimate for all views together, whose kernel is a product.

        .. math:: \hat H[z_1, \dots, z_V] = -\frac1N \sum_j \log \frac{1}{N - 1}
            \sum_{i \ne j} \prod_v p(z_v' = z_{jv} \mid y = z_{iv})
        """
        number = torch.arange(len(z), device=z.device)
        sums = log_sums_of_views(prior, z, lambda items: number[:, None] != items)
        return math.log(len(z) - 1) - sums.mean()

    def neighbours(self, items: int, views: int) -> int:
        """How many neighbours each representation has.

        Raises:
            ValueError: If there are none.
        """
        same = items - 1 if self.same_view else 0
        others = (views - 1) * (items if self.same_item else items - 1)
        found = same + (others if self.other_views else 0)
        if found < 1:
            raise ValueError(
                f"expected neighbours for a kernel density, got {items} items with "
                f"{views} views, which leave none; use larger batches or more views"
            )
        return found

    def _allowed(self, z: Tensor) -> Allowed:
        items, views, _ = z.shape
        number = torch.arange(items * views, device=z.device)
        item, view = number // views, number % views

        def allowed(columns: Tensor) -> Tensor:
            mask = number[:, None] != columns
            if not (self.same_view and self.other_views):
                together = view[:, None] == view[columns]
                mask = mask & (together if self.same_view else ~together)
            if not self.same_item:
                mask = mask & (item[:, None] != item[columns])
            return mask

        return allowed
