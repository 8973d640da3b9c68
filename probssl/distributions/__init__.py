"""Distributions that Pyro lacks: on the sphere, Student's t, views that share."""

from .gaussian import OneFactorNormal
from .shared import SharedDirection
from .spherical import PowerSpherical, SphericalUniform, VonMisesFisher
from .student import IsotropicStudentT

__all__ = [
    "IsotropicStudentT",
    "OneFactorNormal",
    "PowerSpherical",
    "SharedDirection",
    "SphericalUniform",
    "VonMisesFisher",
]
