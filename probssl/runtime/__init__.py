"""The runtime of training: processes, precision, random state, signals, files."""

from . import (
    buffers,
    denormals,
    distributed,
    files,
    interrupts,
    precision,
    randomness,
)

__all__ = ["buffers", "denormals", "distributed", "files", "interrupts", "precision"]
__all__ += ["randomness"]
