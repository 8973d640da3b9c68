"""Likelihoods (observation models) p(x | z) with the decoder's output as parameter."""

from .base import Likelihood, Predicted
from .classes import Categorical, OneHot
from .continuous import Gaussian, HeteroscedasticGaussian, Laplace, StudentT
from .counts import Counts, NegativeBinomial, Poisson
from .grey import Bernoulli, Binomial, GreyLevels
from .ordered import CutLogistic, DiscretisedLogistic, Ordinal

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Counts",
    "CutLogistic",
    "DiscretisedLogistic",
    "Gaussian",
    "GreyLevels",
    "HeteroscedasticGaussian",
    "Laplace",
    "Likelihood",
    "NegativeBinomial",
    "OneHot",
    "Ordinal",
    "Poisson",
    "Predicted",
    "StudentT",
]
