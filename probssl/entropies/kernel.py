"""Kernel density estimates of H[z] (leave-one-out), and a queue of earlier batches."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..arguments import whole
from ..priors import Prior
from ._log_sums import Allowed, all_others, log_sums, log_sums_of_views
from .base import Entropy, Views

__all__ = ["KernelDensity", "Queue", "QueuedKernelDensity"]


class KernelDensity(Entropy):
    r"""The leave-one-out kernel density estimate over a batch: SimCLR's denominator.

    .. math:: \hat H[z] = -\frac1M \sum_j \log \frac{1}{|A(j)|} \sum_{i \in A(j)}
        p(z' = z_j \mid y = z_i), \qquad M = \text{batch} \cdot \text{view}

    The kernel is the prior's conditional p(z'|y), y plugged in. The neighbours A(j),
    the negatives of contrastive learning, are all other representations as in SimCLR,
    or a part of them.

    Bias: where A(j) contains the other view of the item and views nearly agree, the
    estimate is too low, by up to :math:`\log |A|` plus the log-density of the kernel at
    its centre. Otherwise it is the cross-entropy of z under its smoothed density: too
    high by their divergence, which grows as the fourth power of a small bandwidth h,
    and by a variance term of order :math:`1 / (M h^d)`.

    Maximised alone it is unbounded: where z is scaled up until kernels no longer
    overlap, a Gaussian kernel gives an estimate that grows as the square of the scale.
    Under a flat p(y) that is integrated out the objective may then diverge. With
    ``plug_in=True`` and the other views among the neighbours it is at most
    :math:`\log |A|`; on the sphere z has no scale.

    Memory is linear in M: beyond a few thousand representations the kernels are
    computed in blocks, and recomputed in the backward pass (gradient checkpointing).

    Arguments:
        same_view: Whether representations of the same view are neighbours.
        other_views: Whether those of other views are. With ``same_view=False`` and two
            views the estimate is the denominator of InfoNCE and CLIP.
        same_item: Whether the other views of the same item are. Without them the
            estimate is decoupled from the alignment.

    Raises:
        ValueError: If same_view and other_views are both False, or if a batch leaves no
            neighbours.

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

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        items, views, _ = z.shape
        flat = z.flatten(0, 1)
        sums = log_sums(prior, flat, flat, self._allowed(z))
        return math.log(self.neighbours(items, views)) - sums.mean()

    def joint(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return the joint estimate for all views, with a product kernel.

        .. math:: \hat H[z_1, \dots, z_V] = -\frac1N \sum_j \log \frac{1}{N - 1}
            \sum_{i \ne j} \prod_v p(z_v' = z_{jv} \mid y = z_{iv})
        """
        sums = log_sums_of_views(prior, z, all_others(z))
        return math.log(len(z) - 1) - sums.mean()

    def following(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return the mean estimate of :math:`H[z_t]`, t > 1, from the views before.

        .. math:: \hat H[z_t] = -\frac1N \sum_j \log \frac{1}{|A(j)|} \sum_{i \in A(j)}
            p(z_t' = z_{jt} \mid z_{i, t - 1})

        A(j) are the items, without `same_item` the others. As the denominator of
        contrastive predictive coding it keeps the objective at most :math:`\log N`.
        """
        number = torch.arange(len(z), device=z.device)[:, None]

        def allowed(points: Tensor) -> Tensor:
            return (number != points) | self.same_item

        items = self.neighbours(len(z), 2) - (len(z) - 1) * self.same_view
        hint = "other_views=False leaves out the views before"
        count = whole("the number of neighbours", items, hint=hint)
        pairs = zip(z.unbind(1), z[:, 1:].unbind(1), strict=False)
        sums = [log_sums(prior, before, now, allowed) for before, now in pairs]
        return math.log(count) - torch.stack(sums).mean()

    def neighbours(self, items: int, views: int) -> int:
        """Return how many neighbours each representation has.

        Raises:
            ValueError: If there are none.
        """
        same = items - 1 if self.same_view else 0
        others = (views - 1) * (items if self.same_item else items - 1)
        hint = "use larger batches or more views"
        found = same + (others if self.other_views else 0)
        return whole("the number of neighbours", found, hint=hint)

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


class Queue(nn.Module):
    """A first-in, first-out queue of representations of earlier batches, as in MoCo.

    It is written in training mode only. Its entries carry no gradient; empty places do
    not count.

    Arguments:
        size: The number of places.
        dim: The dimension of a representation.

    Raises:
        TypeError: If one of them is not a whole number.
        ValueError: If one of them is below 1.
    """

    memory: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.size, self.dim = whole("size", size), whole("dim", dim)
        self.register_buffer("memory", torch.zeros(size, dim))
        self.register_buffer("count", torch.tensor(0))  # of all pushes so far

    @property
    def filled(self) -> Int[Tensor, ""]:
        """The number of filled places."""
        return self.count.clamp(max=self.size)

    def log_sums(
        self, prior: Prior, points: Float[Tensor, "m dim"]
    ) -> Float[Tensor, " m"]:
        r"""Return :math:`\log \sum_i p(z' = z_j \mid y = \text{memory}_i)`, by point.

        It is −∞ while the queue is empty.

        Raises:
            ValueError: If the points have another dimension than the queue.
        """
        if points.shape[-1] != self.dim:
            raise ValueError(
                f"expected representations of dimension {self.dim} for the queue, got "
                f"{points.shape[-1]}; build the objective with dim={points.shape[-1]}"
            )
        # A copy: the queue is overwritten before the backward pass, which needs these.
        centres = self.memory.to(points, copy=True)
        empty = self.count == 0
        places = torch.arange(self.size, device=points.device)
        # Without centres the gradient would be 0 / 0: an empty queue counts as full
        # here, and its sums are dropped.
        present = ((places < self.count) | empty).unsqueeze(1)
        sums = log_sums(prior, centres, points, lambda _: present)
        return sums.masked_fill(empty, -math.inf)

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "n dim"]) -> None:
        """Replace the oldest entries by rows; in evaluation mode do nothing."""
        if not self.training:
            return
        number = torch.arange(len(rows), device=rows.device)[-self.size :]
        places = (self.count + number) % self.size
        self.memory.index_copy_(0, places, rows[-self.size :].to(self.memory))
        self.count.add_(len(rows))


class QueuedKernelDensity(KernelDensity):
    r"""The kernel density estimate over the batch and a queue of earlier batches.

    .. math:: \hat H[z] = -\frac1M \sum_j \log \frac{1}{|A(j)| + |Q|}
        \sum_{i \in A(j) \cup Q} p(z' = z_j \mid y = z_i)

    A(j) are the neighbours in the batch as in `KernelDensity`, Q the filled part of the
    queue. Its entries come from the encoder of earlier steps and carry no gradient: the
    estimate averages over recent densities of z. In training mode each call ends with a
    push of z.

    Arguments:
        size: The number of places in the queue.
        dim: The dimension of z.
        same_item: Whether the other views of the same item in the batch are neighbours.

    References:
        Cross-Batch Memory for Embedding Learning (Wang et al., 2020)
        https://arxiv.org/abs/1912.06798
    """

    # The queue does not keep the views of an item together: no joint estimate.
    joint = Entropy.joint

    def following(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        """Raise a TypeError: the queue does not keep views in order."""
        raise TypeError(
            f"expected an estimator without a queue beside {type(prior).__name__}, a "
            "prior of views in order, which a queue does not keep; use KernelDensity()"
        )

    def __init__(self, size: int, dim: int, *, same_item: bool = True) -> None:
        super().__init__(same_item=same_item)
        self.queue = Queue(size, dim)

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        items, views, _ = z.shape
        flat = z.flatten(0, 1)
        queued = self.queue.log_sums(prior, flat)
        sums = log_sums(prior, flat, flat, self._allowed(z)).logaddexp(queued)
        neighbours = self.neighbours(items, views) + self.queue.filled.to(z)
        self.queue.push(flat)
        return neighbours.log() - sums.mean()
