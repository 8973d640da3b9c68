"""Priors over the views of an item: p(y), p(z|y), and p(z_1..V), y integrated out."""

from .base import Prior
from .custom import Custom
from .gaussian import ContentStyle, Gaussian, Independent
from .integrals import Enumeration, ImportanceSampling, Quadrature
from .mixture import Components, Mixture, TwoTier, VampComponents
from .spherical import Spherical
from .student import TSNE, StudentT

__all__ = [
    "TSNE",
    "Components",
    "ContentStyle",
    "Custom",
    "Enumeration",
    "Gaussian",
    "ImportanceSampling",
    "Independent",
    "Mixture",
    "Prior",
    "Quadrature",
    "Spherical",
    "StudentT",
    "TwoTier",
    "VampComponents",
]
