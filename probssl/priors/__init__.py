"""Priors over the views of an item: p(y), p(z|y), and p(z_1..V), y integrated out."""

from .base import Prior
from .components import Components, VampComponents
from .gaussian import Gaussian, Independent
from .mixture import Mixture, TwoTier
from .spherical import Spherical
from .student import TSNE, StudentT

__all__ = [
    "Components",
    "Gaussian",
    "Independent",
    "Mixture",
    "Prior",
    "Spherical",
    "StudentT",
    "TSNE",
    "TwoTier",
    "VampComponents",
]
