"""Estimators of H[z]: in discriminative objectives they replace the reconstruction."""

from .base import Entropy
from .collision import Collision
from .equipartition import Clusters, Equipartition, sinkhorn
from .gaussian import LogDeterminant, VarianceCovariance
from .kernel import KernelDensity, Queue, QueuedKernelDensity
from .nearest import NearestNeighbour
from .plug_in import PlugIn
from .sketched import EppsPulley, Sketched, SlicedWasserstein, Statistic

__all__ = [
    "Clusters",
    "Collision",
    "Entropy",
    "EppsPulley",
    "Equipartition",
    "KernelDensity",
    "LogDeterminant",
    "NearestNeighbour",
    "PlugIn",
    "Queue",
    "QueuedKernelDensity",
    "Sketched",
    "SlicedWasserstein",
    "Statistic",
    "VarianceCovariance",
    "sinkhorn",
]
