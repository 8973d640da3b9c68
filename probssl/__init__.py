"""probssl: self-supervised learning as probabilistic modelling.

One distribution, p(y) ∏ p(z_v|y) p(x_v|z_v), its variational inference, and the
objectives of joint embedding as its limits.
"""

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
    plots,
    priors,
    special,
    views,
)
from .compare import Comparison, compare
from .hyper import learned
from .joint import Joint
from .posterior import embed, evidence, reconstruct, sample, to_arviz
from .saving import load, save
from .terms import Batch, Terms
from .train import History, fit, steps

__all__ = [
    "Batch",
    "Comparison",
    "History",
    "Joint",
    "Terms",
    "bounds",
    "compare",
    "data",
    "distributions",
    "embed",
    "entropies",
    "evaluation",
    "evidence",
    "fit",
    "guides",
    "learned",
    "likelihoods",
    "limits",
    "load",
    "nn",
    "plots",
    "priors",
    "reconstruct",
    "sample",
    "save",
    "special",
    "steps",
    "to_arviz",
    "views",
]
