"""probssl: self-supervised learning as probabilistic modelling.

One distribution, p(y) ∏ p(z_v|y) p(x_v|z_v), its variational inference, and the
objectives of joint embedding as its limits.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import (
    affinities,
    bounds,
    calibration,
    data,
    distributions,
    entropies,
    evaluation,
    guides,
    hyper,
    information,
    likelihoods,
    limits,
    nn,
    plots,
    priors,
    shifts,
    special,
    testing,
    views,
)
from .compare import Comparison, compare
from .hyper import learned
from .joint import Joint
from .posterior import (
    classify,
    complete,
    embed,
    evidence,
    reconstruct,
    sample,
    to_arviz,
)
from .saving import load, save
from .terms import Batch, Terms
from .train import History, fit, steps

if TYPE_CHECKING:
    from . import linear, maps

__all__ = [
    "Batch",
    "Comparison",
    "History",
    "Joint",
    "Terms",
    "affinities",
    "bounds",
    "calibration",
    "classify",
    "compare",
    "complete",
    "data",
    "distributions",
    "embed",
    "entropies",
    "evaluation",
    "evidence",
    "fit",
    "guides",
    "hyper",
    "information",
    "learned",
    "likelihoods",
    "limits",
    "linear",
    "load",
    "maps",
    "nn",
    "plots",
    "priors",
    "reconstruct",
    "sample",
    "save",
    "shifts",
    "special",
    "steps",
    "testing",
    "to_arviz",
    "views",
]


def __getattr__(name: str) -> Any:
    """`linear` and `maps`, made of scikit-learn, are imported when asked for."""
    if name in ("linear", "maps"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
