"""Training: the plain steps, and what a notebook wants around them."""

from .alternating import fit_phases, fit_rounds
from .fit import fit
from .history import History
from .schedules import cosine, geometric, linear
from .steps import Step, steps

__all__ = ["History", "Step", "cosine", "fit", "fit_phases", "fit_rounds", "geometric"]
__all__ += ["linear", "steps"]
