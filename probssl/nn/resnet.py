"""ResNet-18 for small images, as encoder and as decoder."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..arguments import whole
from .base import Decoder, Encoder, Reshape, halvings, sizes
from .normalisation import BatchNorm2d

__all__ = ["ResNet18Decoder", "ResNet18Encoder"]


class ResNet18Encoder(Encoder):
    """ResNet-18 for small images (the CIFAR form); 512 features.

    The first convolution is 3 x 3 with stride 1 and there is no max-pooling; the
    features are global averages of the last feature maps. Meant for 28 to 64 pixels, at
    least 8.

    References:
        Deep Residual Learning for Image Recognition (He et al., 2016)
        https://arxiv.org/abs/1512.03385
    """

    def __init__(self, event_shape: Sequence[int], dim: int) -> None:
        shape = sizes(event_shape=event_shape)
        halvings(shape, 3)  # for its error alone: pooling takes any size
        trunk = nn.Sequential(
            Reshape(shape, shape),
            *(_conv3(shape[0], 64), BatchNorm2d(64), nn.ReLU()),
            *(_Block(64, 64), _Block(64, 64)),
            *(_Block(64, 128, stride=2), _Block(128, 128)),
            *(_Block(128, 256, stride=2), _Block(256, 256)),
            *(_Block(256, 512, stride=2), _Block(512, 512)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        super().__init__(trunk, 512, dim)


class ResNet18Decoder(Decoder):
    """ResNet-18 in reverse: nearest-neighbour upsampling enlarges the feature maps.

    Meant for 28 to 64 pixels, at least 8.
    """

    def __init__(self, dim: int, event_shape: Sequence[int]) -> None:
        shape = sizes(event_shape=event_shape)
        full, half, quarter, eighth = halvings(shape, 3)
        flat = 512 * math.prod(eighth)
        net = nn.Sequential(
            *(nn.Linear(whole("dim", dim), flat), Reshape((flat,), (512, *eighth))),
            *(_Block(512, 512), _Block(512, 512), nn.Upsample(quarter)),
            *(_Block(512, 256), _Block(256, 256), nn.Upsample(half)),
            *(_Block(256, 128), _Block(128, 128), nn.Upsample(full)),
            *(_Block(128, 64), _Block(64, 64)),
            nn.Conv2d(64, shape[0], 3, padding=1),
        )
        super().__init__(net, dim, shape)


class _Block(nn.Module):
    """A residual block: two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(_conv3(inputs, outputs, stride), BatchNorm2d(outputs), nn.ReLU()),
            *(_conv3(outputs, outputs), BatchNorm2d(outputs)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
