"""Data sets: embedded, from files, from memory, and simulated with known factors."""

from .archives import npz
from .catalogue import load
from .cifar import cifar10
from .embedded import digits
from .folders import image_folder
from .idx import fashion_mnist, mnist
from .memory import arrays, groups
from .omniglot import omniglot_small
from .simulators import LinearGaussian, factors, linear_gaussian
from .splits import Dataset, Groups, Split

__all__ = [
    "Dataset",
    "Groups",
    "LinearGaussian",
    "Split",
    "arrays",
    "cifar10",
    "digits",
    "factors",
    "fashion_mnist",
    "groups",
    "image_folder",
    "linear_gaussian",
    "load",
    "mnist",
    "npz",
    "omniglot_small",
]
