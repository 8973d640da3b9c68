"""Estimators of the entropy H[z] of the representations, in nats.

Called with z, of shape (batch, view, dim), and the prior whose kernel they may need,
they return the entropy of one view, averaged over the views. In a discriminative
objective they replace the reconstruction and the noise of the encoder.
"""

from .base import Entropy
from .collision import Collision
from .equipartition import Clusters, Equipartition, sinkhorn
from .gaussian import LogDeterminant, VarianceCovariance
from .kernel import KernelDensity, Queue, QueuedKernelDensity
from .nearest import NearestNeighbour
from .plug_in import PlugIn

__all__ = [
    "Clusters",
    "Collision",
    "Entropy",
    "Equipartition",
    "KernelDensity",
    "LogDeterminant",
    "NearestNeighbour",
    "PlugIn",
    "Queue",
    "QueuedKernelDensity",
    "VarianceCovariance",
    "sinkhorn",
]
