r"""Guides (amortised posteriors): q(z_1..V | x_1..V), and q(y | z_1..V) of the content.

A guide of z is called with the views, the prior and the mask of present views, and
returns a distribution with event shape (view, dim). The prior comes as a function,
``prior(present=mask)``, so that a guide can follow it where a view is absent. A guide
of the content is called with z alone.
"""

from .content import Content, SphericalContent
from .flow import Flow
from .views import (
    Coupled,
    CoupledLikelihoods,
    DiagonalGaussian,
    Factors,
    FullGaussian,
    GaussianFactors,
    Guide,
    Point,
    PowerSpherical,
)

__all__ = [
    "Content",
    "Coupled",
    "CoupledLikelihoods",
    "DiagonalGaussian",
    "Factors",
    "Flow",
    "FullGaussian",
    "GaussianFactors",
    "Guide",
    "Point",
    "PowerSpherical",
    "SphericalContent",
]
