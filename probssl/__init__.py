"""probssl: self-supervised learning as probabilistic modelling.

One distribution, p(y) ∏ p(z_v|y) p(x_v|z_v), its variational inference, and the
objectives of joint embedding as its limits.

`__all__` holds what most programs need. The other submodules (`ps.affinities`,
`ps.bounds`, `ps.hyper`, `ps.information`, `ps.maps`, …) are reached as attributes too.
"""

import typing as _typing

from . import (
    data,
    entropies,
    evaluation,
    guides,
    likelihoods,
    limits,
    nn,
    priors,
    train,
    views,
)
from ._arguments import record as _record
from .compare import Comparison as Comparison
from .compare import compare  # the function: it hides the package of the same name
from .hyper import learned
from .joint import Joint
from .posterior import (
    classify,
    compare_evidence,
    complete,
    embed,
    evidence,
    gaps,
    generate,
    interpolate,
    novelty,
    posterior_y,
    reconstruct,
    sample,
    swap,
    to_arviz,
    traverse,
)
from .saving import load, save
from .terms import Batch, Terms
from .train import History as History
from .train import fit, steps

if _typing.TYPE_CHECKING:
    from . import linear, plots, recipes, testing

__all__ = [
    "Batch",
    "Joint",
    "Terms",
    "classify",
    "compare",
    "compare_evidence",
    "complete",
    "data",
    "embed",
    "entropies",
    "evaluation",
    "evidence",
    "fit",
    "gaps",
    "generate",
    "guides",
    "interpolate",
    "learned",
    "likelihoods",
    "limits",
    "linear",
    "load",
    "nn",
    "novelty",
    "plots",
    "posterior_y",
    "priors",
    "recipes",
    "reconstruct",
    "sample",
    "save",
    "steps",
    "swap",
    "testing",
    "to_arviz",
    "train",
    "traverse",
    "views",
]

__version__ = "0.2.0"

_record()  # from here on constructors keep their arguments, for `save`


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> _typing.Any:
    """Import a submodule when it is first used."""
    from importlib import import_module, util

    public = name.isidentifier() and not name.startswith("_")
    if public and util.find_spec(f"{__name__}.{name}"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
