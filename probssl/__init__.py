"""probssl: self-supervised learning as probabilistic modelling."""

from . import bounds, guides, likelihoods, limits, nn, priors
from .hyper import learned
from .joint import Joint
from .terms import Batch, Terms

__all__ = ["Batch", "Joint", "Terms", "bounds", "guides", "learned", "likelihoods"]
__all__ += ["limits", "nn", "priors"]
