"""Small convolutional networks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from ..arguments import whole
from .base import Decoder, Encoder, Reshape, halvings, sizes

__all__ = ["ConvDecoder", "ConvEncoder"]


class ConvEncoder(Encoder):
    """A small convolutional encoder; each layer halves the image, rounding up.

    The features are the last feature maps, flattened, so that they keep positions.
    Group norm with one group normalises each image on its own: training and evaluation
    agree, and batches may have any size.

    Arguments:
        event_shape: (channel, height, width), at least 2 ** len(channels) pixels high
            and wide; meant for 8 to 64.
        channels: The number of channels after each halving.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: int,
        channels: Sequence[int] = (32, 64, 128),
    ) -> None:
        shape, channels = sizes(event_shape=event_shape), sizes(channels=channels)
        *_, (height, width) = halvings(shape, len(channels))
        layers: list[nn.Module] = [Reshape(shape, shape)]
        for a, b in pairwise((shape[0], *channels)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(1, b), nn.ReLU()]
        features = (shape[0], *channels)[-1] * height * width
        super().__init__(nn.Sequential(*layers, nn.Flatten()), features, dim)


class ConvDecoder(Decoder):
    """The mirror image of `ConvEncoder`: each transposed convolution doubles the image.

    Kernels have 4 pixels along an even side and 3 along an odd one, so that every
    size is matched exactly.

    Arguments:
        event_shape: (channel, height, width), at least 2 ** len(channels) pixels high
            and wide; meant for 8 to 64.
        channels: The number of channels before each doubling, the last one first, as
            in `ConvEncoder`.
    """

    def __init__(
        self,
        dim: int,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
    ) -> None:
        shape, channels = sizes(event_shape=event_shape), sizes(channels=channels)
        *larger, smallest = halvings(shape, len(channels))
        maps = ((shape[0], *channels)[-1], *smallest)
        flat = math.prod(maps)
        layers: list[nn.Module] = [nn.Linear(whole("dim", dim), flat)]
        layers += [Reshape((flat,), maps)]
        widths = pairwise((*reversed(channels), shape[0]))
        for (a, b), size in zip(widths, reversed(larger), strict=True):
            kernel = (4 - size[0] % 2, 4 - size[1] % 2)
            layers += [nn.GroupNorm(1, a), nn.ReLU()]
            layers += [nn.ConvTranspose2d(a, b, kernel, stride=2, padding=1)]
        super().__init__(nn.Sequential(*layers), dim, shape)
