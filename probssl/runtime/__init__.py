"""The runtime of training: distributed, precision, random state, denormals, buffers."""

from . import buffers, denormals, distributed, precision, randomness

__all__ = ["buffers", "denormals", "distributed", "precision", "randomness"]
