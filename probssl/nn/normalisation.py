"""Batch normalisation over the items of all processes."""

import torch
from torch import Tensor, nn

from ..processes import mean, number

__all__ = ["BatchNorm1d", "BatchNorm2d"]


class BatchNorm1d(nn.BatchNorm1d):
    """torch's, with the moments of the batch over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        alone = number() == 1 or not self.training
        return super().forward(x) if alone else _normalised(self, x)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's, with the moments of the batch over all processes."""

    def forward(self, x: Tensor) -> Tensor:
        alone = number() == 1 or not self.training
        return super().forward(x) if alone else _normalised(self, x)


def _normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.dim())]
    centre = mean(x.mean(axes))
    apart = x - centre.view(shape)
    variance = mean(apart.square().mean(axes))
    _remember(norm, centre, variance, number() * x.numel() // x.shape[1])
    scaled = apart * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is None:
        return scaled
    return scaled * norm.weight.view(shape) + norm.bias.view(shape)


@torch.no_grad()
def _remember(
    norm: nn.BatchNorm1d | nn.BatchNorm2d, centre: Tensor, variance: Tensor, count: int
) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    share = norm.momentum
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    if share is None:  # a cumulative average
        share = 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(centre, share)
    norm.running_var.lerp_(variance * count / max(1, count - 1), share)
