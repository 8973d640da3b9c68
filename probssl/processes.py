r"""Several processes, each with its share of a batch: what couples items sees them all.

With W processes, each with its own items, an objective gathers the representations and
has the value of the whole batch on every one of them. Gradients of the parameters are
then averaged over the processes, as `DistributedDataParallel` does, and are those of
one process with the whole batch. Values that are means over items, such as an ELBO,
need no gathering: their average is the whole batch's already.
"""

from typing import Any

import torch
import torch.distributed as distributed
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["gather", "mean", "number"]


def number() -> int:
    """How many processes there are; 1 without torch.distributed."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


def gather(x: Shaped[Tensor, "batch *shape"]) -> Shaped[Tensor, "all *shape"]:
    """Return the rows of all processes, in the order of their ranks.

    The gradient of a row is the sum of those from all processes. All must have equally
    many rows.
    """
    return x if number() == 1 else _Gather.apply(x)


def mean(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean over the processes; so is the gradient's."""
    return x if number() == 1 else _Mean.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(number())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        total = slope.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(number())[distributed.get_rank()]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total / number()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        total = slope.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total / number()
