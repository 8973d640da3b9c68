"""probssl: self-supervised learning as probabilistic modelling."""

from . import bounds, data, distributions, entropies, evaluation, guides, likelihoods
from . import limits, nn, priors, special, views
from .hyper import learned
from .joint import Joint
from .terms import Batch, Terms
from .train import History, fit, steps

__all__ = ["Batch", "History", "Joint", "Terms", "bounds", "data", "distributions"]
__all__ += ["entropies", "evaluation", "fit", "guides", "learned", "likelihoods"]
__all__ += ["limits", "nn", "priors", "special", "steps", "views"]
