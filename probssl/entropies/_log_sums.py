r"""Log-sums over the kernels of all pairs, in memory linear in the number of points.

.. math:: s_j = \log \sum_{i \in A(j)} p(z' = z_j \mid y = z_i), \qquad
    \frac{\partial s_j}{\partial \theta} = \sum_{i \in A(j)} e^{k_{ij} - s_j} \,
    \frac{\partial k_{ij}}{\partial \theta}, \qquad k_{ij} = \log p(z_j \mid y = z_i)

The kernel matrix is computed in blocks of columns. The forward pass keeps the log-sums
alone; each block is recomputed in the backward pass (gradient checkpointing) and
weighted by its softmax share :math:`e^{k_{ij} - s_j}`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ..hyper import Latent
from ..priors import Prior

__all__ = ["DENSE", "Allowed", "all_others", "log_sums", "log_sums_of_views"]

Allowed = Callable[[Int[Tensor, " columns"]], Bool[Tensor, "rows columns"]]

# The kernels in one block: more do not fit the caches of a CPU, and fewer make a GPU
# wait for launches. Up to this number, all kernels are kept and none recomputed.
DENSE, DENSE_ON_GPU = 2**21, 2**26


def log_sums(
    prior: Prior,
    centres: Float[Tensor, "n dim"],
    points: Float[Tensor, "m dim"],
    allowed: Allowed,
    most: int | None = None,
) -> Float[Tensor, " m"]:
    """Return for each point the log-sum of the kernels around the allowed centres.

    Arguments:
        allowed: Maps the indices of points to a mask of the centres that count for
            them; at least one for each point.
        most: The number of kernels in memory; None means 2^21 on a CPU, 2^26 on a GPU.
    """
    if most is None:
        most = DENSE if points.device.type == "cpu" else DENSE_ON_GPU
    numbers = torch.arange(len(points), device=points.device)
    if len(centres) * len(points) <= most:
        log_kernel = prior.log_kernel(centres, points, plug_in=True)
        return _masked(log_kernel, allowed(numbers)).logsumexp(-2)
    blocks = numbers.split(max(1, most // len(centres)))
    drawn = {h.name: h.drawn for h in prior.random() if h.drawn is not None}
    kernel = _Kernel(prior)
    state = dict(kernel.named_parameters())

    def of(a: Tensor, b: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        hypers = dict(zip(drawn, rest, strict=False))
        numbers = dict(zip(state, rest[len(drawn) :], strict=True))
        with prior.at(**hypers):
            return functional_call(kernel, numbers, (a, b))

    rest = (*drawn.values(), *state.values())
    return _LogSums.apply(of, allowed, blocks, centres, points, *rest)


def all_others(z: Tensor) -> Allowed:
    """Allow all centres but the point itself, where the centres are the points."""
    number = torch.arange(len(z), device=z.device).unsqueeze(1)
    return lambda points: number != points


def log_sums_of_views(
    prior: Prior,
    z: Float[Tensor, "n view dim"],
    allowed: Allowed,
    most: int | None = None,
) -> Float[Tensor, " n"]:
    r"""Return the log-sums of the product kernels over all views of an item.

    .. math:: s_j = \log \sum_{i \in A(j)} \prod_v p(z_v' = z_{jv} \mid y = z_{iv})
    """
    flat = z.flatten(1)
    return log_sums(_Product(prior, z.shape[1]), flat, flat, allowed, most)


class _Product(Prior):
    """The product of a prior's kernels over views, concatenated into one vector."""

    def __init__(self, prior: Prior, views: int) -> None:
        super().__init__()
        self.prior, self.views = prior, views

    def random(self) -> Iterator[Latent]:
        return self.prior.random()

    def log_kernel(self, a: Tensor, b: Tensor, plug_in: bool = False) -> Tensor:
        each = (x.unflatten(-1, (self.views, -1)).unbind(-2) for x in (a, b))
        first, *rest = (
            self.prior.log_kernel(x, y, plug_in) for x, y in zip(*each, strict=True)
        )
        return sum(rest, start=first)


class _Kernel(nn.Module):
    """The kernel of a prior as a module, for `functional_call`."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.prior.log_kernel(a, b, plug_in=True)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, of: Any, allowed: Allowed, blocks: Any, *inputs: Tensor
    ) -> Tensor:
        centres, points, *rest = inputs
        sums = points.new_empty(len(points))
        for block in blocks:
            log_kernel = of(centres, points[block], tuple(rest))
            sums[block] = _masked(log_kernel, allowed(block)).logsumexp(-2)
        ctx.of, ctx.allowed, ctx.blocks = of, allowed, blocks
        ctx.save_for_backward(sums, *inputs)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        totals = [
            torch.zeros_like(x) if need else None
            for x, need in zip(inputs, needed, strict=True)
        ]
        for block in ctx.blocks:
            parts = _block_grads(ctx, inputs, block, sums[block], grad[block])
            for place, (total, part) in enumerate(zip(totals, parts, strict=True)):
                if total is None or part is None:
                    continue
                if place == 1:  # only the points of this block
                    total[block] += part
                else:
                    total += part
        return (None, None, None, *totals)


def _block_grads(
    ctx: Any, inputs: list[Tensor], block: Tensor, sums: Tensor, grad: Tensor
) -> Iterator[Tensor | None]:
    """The gradients of one block with respect to the inputs that need one."""
    centres, points, *rest = inputs
    needed = ctx.needs_input_grad[3:]
    with torch.enable_grad():
        leaves = [
            x.detach().requires_grad_(need)
            for x, need in zip((centres, points[block], *rest), needed, strict=True)
        ]
        log_kernel = ctx.of(leaves[0], leaves[1], tuple(leaves[2:]))
    share = _masked(log_kernel.detach(), ctx.allowed(block)).sub_(sums).exp_()
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found = iter(
        torch.autograd.grad(log_kernel, wanted, share.mul_(grad), allow_unused=True)
    )
    return (next(found) if need else None for need in needed)


def _masked(log_kernel: Tensor, allowed: Tensor) -> Tensor:
    return log_kernel.masked_fill(~allowed, -math.inf)
