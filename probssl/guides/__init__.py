r"""Guides q(z_1..V | x_1..V): what the output of an encoder means.

Called with the views, the prior and the mask of present views, a guide returns a
distribution with event shape (view, dim). The prior comes as a function,
``prior(present=mask)``, so that a guide can follow it where a view is absent. Guides of
the content, q(y | z_1..V), are called with z alone.
"""

from .content import Content, SphericalContent
from .factors import Factors, GaussianFactors
from .flow import Flow
from .gaussian import Coupled, DiagonalGaussian, FullGaussian
from .point import Point
from .spherical import PowerSpherical

__all__ = [
    "Content",
    "Coupled",
    "DiagonalGaussian",
    "Factors",
    "Flow",
    "FullGaussian",
    "GaussianFactors",
    "Point",
    "PowerSpherical",
    "SphericalContent",
]
