"""View generation, batched and on the device, that ends on the data's own grid.

Images are (batch, channel, height, width) with values in [0, 1]; noise and masks take
items of any shape. All randomness is torch's global generator's.
"""

from .augment import Augment, Grid, digits, simclr, simvae_cifar10, simvae_mnist
from .colour import Colour, Grey
from .geometry import Affine
from .light import Background, Invert
from .multicrop import MultiCrop
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
    "digits",
    "simclr",
    "simvae_cifar10",
    "simvae_mnist",
]
