"""Arguments of constructors: recorded when an object is built, described as JSON.

`record` lets the constructor of every public class keep the arguments it is called
with, once, so that a class keeps no attribute for the sake of saving. A description
can name only these classes, Pyro's distributions and torch's transforms: nothing is
unpickled, and no name causes an import.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, transforms
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property

from . import (
    affinities,
    bounds,
    entropies,
    guides,
    hyper,
    joint,
    likelihoods,
    limits,
    priors,
    views,
)
from . import nn as networks
from .arguments import check_types

__all__ = ["ForeignError", "build", "describe", "record"]

CLASSES: dict[str, type] = {"torch.Identity": nn.Identity} | {
    f"{module.__name__.rpartition('.')[2]}.{name}": kind
    for module in [affinities, bounds, entropies, guides, hyper, joint, likelihoods]
    + [limits, networks, priors, views]
    for name, kind in vars(module).items()
    if name in module.__all__
    and inspect.isclass(kind)
    and not issubclass(kind, Distribution)
}
NUMBERS: dict[str, Any] = {"float": float, "tensor": torch.tensor, "array": np.array}
# Arguments of distributions and transforms: attributes of another name; no parameters.
PARTS = {"base_distribution": "base_dist"}
UNSEEN = {"validate_args", "cache_size"}
NAMES = {kind: name for name, kind in CLASSES.items()}


class ForeignError(ValueError):
    """A description names a class that is not of this package."""


class _Function(NamedTuple):
    """A function that was an argument: its name, since no file can hold it."""

    name: str


def record() -> None:
    """Let the constructors of all public classes check and keep their arguments.

    `probssl/__init__.py` calls it. Of a class and its bases the outermost constructor
    comes first; those of the bases find its arguments there.
    """
    for kind in NAMES:
        if not issubclass(kind, tuple | nn.Identity):
            kind.__init__ = _recording(kind.__init__)  # type: ignore[method-assign]


def describe(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Turn a constructor's argument into what JSON can hold.

    Arguments:
        seen: The descriptions so far, by the identity of the module. A module that
            occurs again is described as the same one.
    """
    seen = {} if seen is None else seen
    value = getattr(value, "_orig_mod", value)  # what torch.compile wraps
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return {kind: describe(value.tolist())}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, partial):
        return {
            "partial": describe(value.func),
            "positional": [describe(part, seen) for part in value.args],
            "arguments": {k: describe(v, seen) for k, v in value.keywords.items()},
        }
    if isinstance(value, type) and value in NAMES:
        return {"type": NAMES[value]}
    if isinstance(value, _Function):
        return {"foreign": value.name}
    if type(value) in NAMES:
        return _described(value, seen)
    if getattr(dist, type(value).__name__, None) is type(value):
        return _distribution(value)
    if isinstance(value, _InverseTransform):
        return {"inverse": describe(value.inv)}
    if getattr(transforms, type(value).__name__, None) is type(value):
        return _made_of("transform", value)
    if isinstance(value, tuple | list | nn.ModuleList):
        return [describe(part, seen) for part in value]
    if isinstance(value, Distribution | Transform):
        return _foreign(value)
    return {"foreign": _path(value if hasattr(value, "__qualname__") else type(value))}


def build(description: Any, made: dict[int, Any] | None = None) -> Any:
    """Build again what `describe` described.

    Raises:
        ForeignError: If it names a class that is not this package's.
        ValueError: If it names an argument that its class does not have.
    """
    made = {} if made is None else made
    if isinstance(description, list):
        return tuple(build(part, made) for part in description)
    if not isinstance(description, dict):
        return description
    if "same" in description:
        return made[description["same"]]
    for name, make in NUMBERS.items():
        if name in description:
            return make(build(description[name]))
    if "inverse" in description:
        return build(description["inverse"]).inv
    if "of" in description:
        return build(description["of"]).to_event(description["event"])
    if "type" in description:
        return _class(description["type"])
    given = description.get("arguments", {})
    arguments = {name: build(part, made) for name, part in given.items()}
    if {"distribution", "transform"} & description.keys():  # which want lists
        for name, part in arguments.items():
            arguments[name] = list(part) if isinstance(part, tuple) else part
    if "partial" in description:
        positional = build(description.get("positional", []), made)
        return partial(build(description["partial"]), *positional, **arguments)
    if "distribution" in description:
        kind = getattr(dist, name := description["distribution"], None)
        if not inspect.isclass(kind) or not issubclass(kind, TorchDistributionMixin):
            raise ValueError(f"expected a distribution of Pyro in the file, got {name}")
        return kind(**arguments)
    if "transform" in description:
        kind = getattr(transforms, name := description["transform"], None)
        if not inspect.isclass(kind) or not issubclass(kind, Transform):
            raise ValueError(f"expected a transform of torch in the file, got {name}")
        return kind(**arguments)
    kind = _class(description.get("class", description.get("foreign")))
    signature = inspect.signature(kind)
    for name in sorted(arguments.keys() - signature.parameters.keys()):
        raise ValueError(
            f"expected arguments of {kind.__name__} in the file, got {name!r}; "
            "build the objective as it was and call ps.load(folder, into=objective)"
        )
    bound = inspect.BoundArguments(signature, arguments)
    built = kind(*bound.args, **bound.kwargs)
    if "id" in description:
        made[description["id"]] = built
    return built


def _recording(construct: Callable[..., None]) -> Callable[..., None]:
    @wraps(construct)
    def recording(self: Any, *args: Any, **options: Any) -> None:
        if "_arguments" not in vars(self):
            given = tuple(map(_kept, args)), {k: _kept(v) for k, v in options.items()}
            object.__setattr__(self, "_arguments", given)
        plain, named = check_types(construct, self, *args, **options)
        construct(*plain, **named)

    return recording


def _kept(argument: Any) -> Any:
    """An argument as it was given, whatever happens later; modules are not copied."""
    if isinstance(argument, Tensor):
        return argument.detach().clone()
    if isinstance(argument, FunctionType | MethodType):  # may be none to pickle
        return _Function(_path(argument))
    return tuple(argument) if isinstance(argument, list) else argument


def _described(value: Any, seen: dict[int, Any]) -> dict[str, Any]:
    if id(value) in seen:
        number = sum("id" in other for other in seen.values())
        return {"same": seen[id(value)].setdefault("id", number)}
    description: dict[str, Any] = {"class": NAMES[type(value)]}
    if isinstance(value, nn.Module):
        seen[id(value)] = description
    if isinstance(value, tuple):
        given = value._asdict()  # type: ignore[attr-defined]
    else:
        args, options = ((), {}) if isinstance(value, nn.Identity) else value._arguments
        given = inspect.signature(type(value)).bind(*args, **options).arguments
    description["arguments"] = {k: describe(v, seen) for k, v in given.items()}
    return description


def _distribution(value: Distribution) -> Any:
    if isinstance(value, dist.Independent):
        event = value.reinterpreted_batch_ndims
        return {"event": event, "of": describe(value.base_dist)}
    if not value.arg_constraints:  # it is made of other distributions
        return _made_of("distribution", value)
    # Of several forms of one parameter, as probs and logits, the one that was given.
    forms = [
        form
        for form in value.arg_constraints
        if isinstance(getattr(type(value), form, None), lazy_property)
    ]
    known = [form for form in forms if form in vars(value)]
    first = [form for form in known if vars(value)[form] is vars(value).get("_param")]
    given = (first or known)[:1]  # others are computed when they are asked for
    names = [n for n in value.arg_constraints if n not in forms or n in given]
    if {"probs", "logits"} <= set(names):  # of one that has both of its base's
        names.remove("probs")
    arguments = {n: describe(getattr(value, n)) for n in names}
    more = [n for n in _parameters(type(value)) if n not in value.arg_constraints]
    for name in (n for n in more if hasattr(value, n)):  # such as a temperature
        part = getattr(value, name)
        is_tensor = isinstance(part, Tensor)  # and stays one of a single number
        arguments[name] = {"tensor": part.tolist()} if is_tensor else describe(part)
    return {"distribution": type(value).__name__, "arguments": arguments}


def _made_of(what: str, value: Any) -> Any:
    """What the attributes say that have the names of the constructor's arguments."""
    attributes = {name: PARTS.get(name, name) for name in _parameters(type(value))}
    if not all(hasattr(value, attribute) for attribute in attributes.values()):
        return _foreign(value)
    given = {name: describe(getattr(value, a)) for name, a in attributes.items()}
    return {what: type(value).__name__, "arguments": given}


def _foreign(value: Any) -> Any:
    """A distribution or transform that cannot be built again, and what it holds."""
    held = {n: describe(v) for n, v in vars(value).items() if not n.startswith("_")}
    return {"foreign": _path(type(value)), "holds": held}


def _parameters(kind: type) -> list[str]:
    """The arguments of a constructor, without those that change no value."""
    return [n for n in inspect.signature(kind).parameters if n not in UNSEEN]


def _class(name: str | None) -> type:
    if name not in CLASSES:
        raise ForeignError(
            f"expected only parts of probssl in the file, got {name}; build the "
            "objective as it was and call ps.load(folder, into=objective)"
        )
    return CLASSES[name]


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
