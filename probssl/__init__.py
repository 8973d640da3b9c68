"""probssl: self-supervised learning as probabilistic modelling."""

from . import (
    bounds,
    data,
    distributions,
    entropies,
    evaluation,
    guides,
    likelihoods,
    limits,
    nn,
    priors,
    special,
    views,
)
from .hyper import learned
from .joint import Joint
from .saving import load, save
from .terms import Batch, Terms
from .train import History, fit, steps

__all__ = ["Batch", "History", "Joint", "Terms", "bounds", "data", "distributions"]
__all__ += ["entropies", "evaluation", "fit", "guides", "learned", "likelihoods"]
__all__ += ["limits", "load", "nn", "priors", "save", "special", "steps", "views"]
