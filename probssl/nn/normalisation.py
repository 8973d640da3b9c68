"""Synchronised batch normalisation: moments over the batches of all ranks.

Ranks may have different numbers of rows, where views are absent.
"""

import torch
from torch import Tensor, nn

from ..runtime.distributed import gather, world_size

__all__ = ["BatchNorm1d", "BatchNorm2d"]


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with the moments of the batches of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if _is_ours(self) else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with the moments of the batches of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self, x) if _is_ours(self) else super().forward(x)


def _is_ours(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    # torch's cumulative average synchronises with the host: no tracing.
    cumulative = norm.track_running_stats and norm.momentum is None
    return norm.training and (world_size() > 1 or cumulative)


def _normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    # As in torch, moments and normalisation are in single precision at least.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if len(x):
        variance, centre = torch.var_mean(wide, axes, correction=0)
    else:  # a rank where no view is present, but which takes part in all exchanges
        variance, centre = wide.sum(axes), wide.sum(axes)
    count = torch.full_like(centre, x.numel() // x.shape[1])
    moments = gather(torch.stack([centre, variance, count])[None])
    centres, variances, counts = moments.unbind(1)
    total = counts.sum(0)
    weights = counts / total
    centre = (weights * centres).sum(0)
    variance = (weights * (variances + (centres - centre).square())).sum(0)
    _remember(norm, centre, variance, total)
    scaled = (wide - centre.view(shape)) * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(x.dtype)


@torch.no_grad()
def _remember(
    norm: nn.BatchNorm1d | nn.BatchNorm2d,
    centre: Tensor,
    variance: Tensor,
    count: Tensor,
) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share: float | Tensor | None = norm.momentum
    if share is None:  # a cumulative average
        share = norm.num_batches_tracked.to(centre.dtype).reciprocal()
    norm.running_mean.lerp_(centre, share)
    unbiased = variance * count / (count - 1).clamp(min=1)
    norm.running_var.lerp_(unbiased, share)
