"""Data augmentation, batched and on the device; a view is one augmented sample.

Images are (batch, channel, height, width) with values in [0, 1]; noise and masking take
items of any shape, and `Thinning` takes counts. Grey levels are quantised as the data
are. All random numbers come from torch's global generator.
"""

from .augment import (
    Augment,
    Grid,
    MultiCrop,
    PerItem,
    digits,
    simclr,
    simvae_cifar10,
    simvae_mnist,
)
from .colour import Background, Colour, Grey, Invert
from .counts import Thinning
from .geometry import Affine
from .noise import Blur, Mask, Noise

__all__ = [
    "Affine",
    "Augment",
    "Background",
    "Blur",
    "Colour",
    "Grey",
    "Grid",
    "Invert",
    "Mask",
    "MultiCrop",
    "Noise",
    "PerItem",
    "Thinning",
    "digits",
    "simclr",
    "simvae_cifar10",
    "simvae_mnist",
]
