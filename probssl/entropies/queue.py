"""Representations of earlier batches, which widen what a batch is compared with."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..priors import Prior
from .base import Entropy
from .kernel import KernelDensity
from .normaliser import log_sums

__all__ = ["Queue", "QueuedKernelDensity"]


class Queue(nn.Module):
    """The last representations that were pushed, first in, first out.

    It is written in training mode only. What is in it has no gradient, and places that
    were never written do not count.

    Arguments:
        size: The number of places.
        dim: The dimension of a representation.

    Raises:
        ValueError: If one of them is no positive integer.
    """

    memory: Tensor
    count: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if not all(isinstance(n, int) and n > 0 for n in (size, dim)):
            raise ValueError(
                f"expected a queue of positive size and dim, got {size!r} and {dim!r}; "
                "a size of 4096 is common"
            )
        self.size, self.dim = size, dim
        self.register_buffer("memory", torch.zeros(size, dim))
        self.register_buffer("count", torch.tensor(0))  # of all that ever went in

    @property
    def filled(self) -> Int[Tensor, ""]:
        """How many places hold something."""
        return self.count.clamp(max=self.size)

    def log_sums(
        self, prior: Prior, points: Float[Tensor, "m dim"]
    ) -> Float[Tensor, " m"]:
        r"""Return :math:`\log \sum_i p(z' = z_j \mid y = \text{memory}_i)`, by points.

        It is −∞ while the queue is empty.

        Raises:
            ValueError: If points are of another dimension than the queue.
        """
        if points.shape[-1] != self.dim:
            raise ValueError(
                f"expected representations of dimension {self.dim} for the queue, got "
                f"{points.shape[-1]}; build the objective with dim={points.shape[-1]}"
            )
        # A copy: the queue is written before the way back, which needs what was there.
        centres = self.memory.to(points, copy=True)
        empty = self.count == 0
        places = torch.arange(self.size, device=points.device)
        # Of no centres at all the slope would be 0 / 0: an empty queue counts as full
        # here, and its sums are dropped.
        present = ((places < self.count) | empty).unsqueeze(1)
        sums = log_sums(prior, centres, points, lambda _: present)
        return sums.masked_fill(empty, -math.inf)

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "n dim"]) -> None:
        """Put rows in, in the place of the oldest; in evaluation mode do nothing."""
        if not self.training:
            return
        number = torch.arange(len(rows), device=rows.device)[-self.size :]
        places = (self.count + number) % self.size
        self.memory.index_copy_(0, places, rows[-self.size :].to(self.memory))
        self.count.add_(len(rows))


class QueuedKernelDensity(KernelDensity):
    r"""Kernel density over the batch and the representations of batches before it.

    .. math:: \hat H[z] = -\frac1M \sum_j \log \frac{1}{|A(j)| + |Q|}
        \sum_{i \in A(j) \cup Q} p(z' = z_j \mid y = z_i)

    A(j) are the neighbours in the batch as in `KernelDensity`, Q is the queue, of which
    only what is filled counts. Its members come from an encoder of some steps ago and
    have no gradient: the estimate is of the density z had of late. In training mode
    every call ends with a push of z.

    Arguments:
        size: The number of places in the queue.
        dim: The dimension of z.
        same_item: Whether the other views of the same item in the batch count.

    References:
        Cross-Batch Memory for Embedding Learning (Wang et al., 2020)
        https://arxiv.org/abs/1912.06798
    """

    # Pairs of queued views are not kept, so that there is no estimate for all views.
    joint = Entropy.joint

    def __init__(self, size: int, dim: int, *, same_item: bool = True) -> None:
        super().__init__(same_item=same_item)
        self.size, self.dim = size, dim
        self.queue = Queue(size, dim)

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        items, views, _ = z.shape
        flat = z.flatten(0, 1)
        queued = self.queue.log_sums(prior, flat)
        sums = log_sums(prior, flat, flat, self._allowed(z)).logaddexp(queued)
        neighbours = self.neighbours(items, views) + self.queue.filled.to(z)
        self.queue.push(flat)
        return neighbours.log() - sums.mean()
