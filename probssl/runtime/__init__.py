"""The runtime of training: distributed, precision, random state, signals, buffers."""

from . import buffers, denormals, distributed, interrupts, precision, randomness

__all__ = ["buffers", "denormals", "distributed", "interrupts", "precision"]
__all__ += ["randomness"]
