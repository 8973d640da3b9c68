"""Training: plain steps, and `fit` with checkpoints, early stopping and callbacks."""

from .alternating import fit_phases, fit_rounds
from .fit import fit
from .history import History
from .schedules import cosine, geometric, linear
from .steps import Step, steps

__all__ = ["History", "Step", "cosine", "fit", "fit_phases", "fit_rounds", "geometric"]
__all__ += ["linear", "steps"]
