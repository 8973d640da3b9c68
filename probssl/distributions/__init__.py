"""Distributions that Pyro lacks: on the sphere, Student-t, mixtures, item views."""

from .gaussian import OneFactorNormal
from .markov import Autoregressive, GaussMarkov
from .mixture import CoupledComponents, NormalMixture, SharedComponent
from .sphere import PowerSpherical, SharedDirection, SphericalUniform, VonMisesFisher
from .student import IsotropicStudentT, SharedPrecision

__all__ = [
    "Autoregressive",
    "CoupledComponents",
    "GaussMarkov",
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
