r"""Guides q(z_1..V | x_1..V): what the output of an encoder means.

Called with the views, the prior and the mask of present views, a guide returns a
distribution with event shape (view, dim). The prior comes as a function,
``prior(present=mask)``, so that a guide can follow it where a view is absent.
"""

from .factors import Factors, GaussianFactors
from .gaussian import Coupled, DiagonalGaussian, FullGaussian
from .point import Point
from .spherical import PowerSpherical

__all__ = [
    "Coupled",
    "DiagonalGaussian",
    "Factors",
    "FullGaussian",
    "GaussianFactors",
    "Point",
    "PowerSpherical",
]
