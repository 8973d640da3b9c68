"""Priors over the views of an item: p(y), p(z|y), and p(z_1..V), y integrated out."""

from .base import Prior
from .gaussian import Gaussian, Independent
from .spherical import Spherical

__all__ = ["Gaussian", "Independent", "Prior", "Spherical"]
