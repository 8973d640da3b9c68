"""Distributions that Pyro lacks: on the sphere, Student's t, views that share."""

from .gaussian import OneFactorNormal
from .mixture import SharedComponent
from .shared import SharedDirection
from .shared_precision import SharedPrecision
from .spherical import PowerSpherical, SphericalUniform, VonMisesFisher
from .student import IsotropicStudentT

__all__ = [
    "IsotropicStudentT",
    "OneFactorNormal",
    "PowerSpherical",
    "SharedComponent",
    "SharedDirection",
    "SharedPrecision",
    "SphericalUniform",
    "VonMisesFisher",
]
