"""Distributions that Pyro lacks: on the sphere, Student's t, views that share."""

from .coupled import CoupledComponents
from .gaussian import OneFactorNormal
from .mixture import SharedComponent
from .normal_mixture import NormalMixture
from .shared import SharedDirection
from .shared_precision import SharedPrecision
from .spherical import PowerSpherical, VonMisesFisher
from .spherical_uniform import SphericalUniform
from .student import IsotropicStudentT

__all__ = [
    "CoupledComponents",
    "IsotropicStudentT",
    "NormalMixture",
    "OneFactorNormal",
    "PowerSpherical",
    "SharedComponent",
    "SharedDirection",
    "SharedPrecision",
    "SphericalUniform",
    "VonMisesFisher",
]
