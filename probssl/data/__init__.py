"""Data sets: published, from files, from memory, and simulated."""

from .files import image_folder, load, npz
from .memory import arrays, groups
from .published import cifar10, digits, fashion_mnist, mnist, omniglot_small
from .simulators import (
    Cells,
    LinearGaussian,
    MovingDigits,
    cells,
    factors,
    linear_gaussian,
    moving_digits,
)
from .splits import Dataset, Groups, Split

__all__ = [
    "Cells",
    "Dataset",
    "Groups",
    "LinearGaussian",
    "MovingDigits",
    "Split",
    "arrays",
    "cells",
    "cifar10",
    "digits",
    "factors",
    "fashion_mnist",
    "groups",
    "image_folder",
    "linear_gaussian",
    "load",
    "mnist",
    "moving_digits",
    "npz",
    "omniglot_small",
]
