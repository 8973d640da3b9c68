"""What a run depends on: processes, precision, random states, denormals, buffers."""

from . import buffers, denormals, distributed, precision, randomness

__all__ = ["buffers", "denormals", "distributed", "precision", "randomness"]
