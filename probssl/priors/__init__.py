"""Priors over the views of an item: p(y), p(z|y), and p(z_1..V), y integrated out."""

from .base import Prior
from .custom import Custom
from .gaussian import ContentStyle, Gaussian, Independent
from .grouped import Grouped
from .integrals import Enumeration, ImportanceSampling, Quadrature
from .mixture import Components, Mixture, TwoTier, VampComponents
from .predictive import Predictive
from .sequence import Contraction, Sequence
from .spherical import Spherical
from .student import TSNE, StudentT

__all__ = [
    "TSNE",
    "Components",
    "ContentStyle",
    "Contraction",
    "Custom",
    "Enumeration",
    "Gaussian",
    "Grouped",
    "ImportanceSampling",
    "Independent",
    "Mixture",
    "Predictive",
    "Prior",
    "Quadrature",
    "Sequence",
    "Spherical",
    "StudentT",
    "TwoTier",
    "VampComponents",
]
