"""The runtime of training: processes, precision, random state, signals, files."""

from . import (
    buffers,
    denormals,
    digests,
    distributed,
    files,
    interrupts,
    precision,
    randomness,
)

__all__ = ["buffers", "denormals", "digests", "distributed", "files", "interrupts"]
__all__ += ["precision", "randomness"]
