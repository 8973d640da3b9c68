"""Networks and parameters in plain attributes, which no module has registered.

PyTorch finds the parts of a module that are its attributes, or in an `nn.ModuleList`,
`nn.ModuleDict` or `nn.ParameterList`. A plain list, dictionary or object hides them:
they are not in `parameters()` nor in the `state_dict`, and do not move to a device.
"""

from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import getclosurevars
from itertools import chain
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from .copies import attributes, held_by, of_library

__all__ = ["OF_MODULES", "message", "unregistered"]

# Attributes that hold no constants, the last two the parameters of recurrent layers.
OF_MODULES = vars(nn.Module()).keys() - {"training"} | {
    "_flat_weights",
    "_flat_weight_refs",
}
RECORDED = "_arguments"  # of constructors: parts may have been replaced since
Hidden = dict[str, nn.Module | Tensor]


def unregistered(
    objective: nn.Module, trainable: bool = False, functions: bool = True
) -> Hidden:
    """Networks and parameters that the objective has not registered, by name.

    They are those in lists, dictionaries and other containers, in objects and classes
    of one's own, and in the closures of functions.

    Arguments:
        trainable: Whether to leave out frozen networks, such as a teacher.
        functions: Whether to look into functions, which a graph follows by itself.
    """
    tensors = chain(objective.parameters(), objective.buffers())
    known = {id(part) for part in chain(objective.modules(), tensors)}
    found: Hidden = {}
    for name, module in objective.named_modules():
        for attribute, value in (_of_class(type(module)) | vars(module)).items():
            if attribute not in OF_MODULES and attribute != RECORDED:
                at = f"{name}.{attribute}".lstrip(".")
                found |= _hidden(at, value, known, functions)
    return {k: part for k, part in found.items() if not trainable or _trains(part)}


def _of_class(kind: type) -> dict[str, Any]:
    """The networks, parameters and containers that a class of one's own holds."""
    holders = nn.Module, Tensor, list, tuple, Mapping, set, deque
    own = [base for base in kind.__mro__ if not of_library(base.__module__)]
    return {
        name: value
        for base in reversed(own)
        for name, value in vars(base).items()
        if isinstance(value, holders)
    }


def _trains(part: nn.Module | Tensor) -> bool:
    tensors = part.parameters() if isinstance(part, nn.Module) else [part]
    return any(tensor.requires_grad for tensor in tensors)


def message(hidden: Hidden, consequence: str) -> str:
    """What was found and what follows, in words, and where it belongs."""
    (name, part), *others = hidden.items()
    more = f" and {len(others)} more" if others else ""
    kind = "Parameter" if isinstance(part, Tensor) else "Module"
    return (
        f"expected all networks and parameters to be registered, got {name} "
        f"({type(part).__name__}){more}, which {consequence}; keep it in an attribute "
        f"of its own, an nn.{kind}List or an nn.{kind}Dict"
    )


def _hidden(
    name: str, value: Any, known: set[int], functions: bool, depth: int = 10
) -> Hidden:
    if id(value) in known or not depth:
        return {}
    if not functions and isinstance(value, FunctionType | MethodType | partial):
        return {}
    if isinstance(value, nn.Module):
        state = chain(value.parameters(), value.buffers())
        return {} if all(id(tensor) in known for tensor in state) else {name: value}
    if isinstance(value, Tensor):
        return {name: value} if value.requires_grad and value.is_leaf else {}
    known.add(id(value))  # since a list may contain itself
    found: Hidden = {}
    for key, part in _parts(value):
        found |= _hidden(f"{name}.{key}", part, known, functions, depth - 1)
    return found


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container, a function or an object of one's own holds, by name."""
    if isinstance(value, list | tuple | set | frozenset | deque):
        return iter(enumerate(value))
    if isinstance(value, FunctionType):
        return iter(getclosurevars(value).nonlocals.items())
    if isinstance(value, MethodType) or type(value).__module__ == "functools":
        return iter((held_by(value) or {}).items())
    own = not isinstance(value, type) and not of_library(type(value).__module__)
    own = own or isinstance(value, SimpleNamespace | Namespace)
    held = attributes(value) if own else {}
    return iter({**held, **(value if isinstance(value, Mapping) else {})}.items())
