"""What functions, classes and objects refer to, and copies of networks.

A deep copy of a network keeps its functions: one that holds the network itself, as in
``net.forward = lambda x: net.layers(x)``, would run the original.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dis import get_instructions
from functools import cache, partial
from itertools import chain
from sysconfig import get_path
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["attributes", "copied", "held_by", "of_library"]

LIBRARIES = {"numpy", "probssl", "pyro", "torch"}  # whose objects cache what they are
Network = TypeVar("Network", bound=nn.Module)


def copied(network: Network) -> Network:
    """A deep copy that runs no part of the original.

    Raises:
        ValueError: If a function in it holds a part of the original.
    """
    copy = deepcopy(network)
    tensors = chain(network.parameters(), network.buffers())
    parts = {id(part) for part in chain(network.modules(), tensors)}
    seen = {id(module) for module in copy.modules()}
    for name, module in copy.named_modules():
        for key, value in vars(module).items():
            if "state_dict" not in key and _reaches(value, parts, seen):
                what = f"{name}.{key}".lstrip(".")
                raise ValueError(
                    f"expected a network that can be copied, got a function in {what} "
                    f"that holds a part of the {type(module).__name__} itself, so that "
                    "a copy would run the original; make it a method of a subclass"
                )
    return copy


def _reaches(value: Any, parts: set[int], seen: set[int], depth: int = 10) -> bool:
    """Whether a value refers to one of these parts, not through a known object."""
    if id(value) in parts:
        return True
    if id(value) in seen or isinstance(value, Tensor | int | float | str) or not depth:
        return False
    seen.add(id(value))
    if not isinstance(value, list | tuple | set | frozenset):
        held = value if isinstance(value, Mapping) else held_by(value)
        value = list((held or {}).values())
    return any(_reaches(each, parts, seen, depth - 1) for each in value)


def held_by(value: Any) -> Mapping[str, Any] | None:
    """What a function or class refers to; the attributes of another object.

    Those of objects of libraries, and what the code of libraries refers to, stay.
    """
    if isinstance(value, ModuleType):
        return None
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, type):
        return _of_class(value)
    if isinstance(value, MethodType):
        return {"self": value.__self__, "function": value.__func__}
    if isinstance(value, BuiltinMethodType | MethodWrapperType):
        return {"self": value.__self__}
    if isinstance(value, partial):
        return {"function": value.func, "args": value.args, **value.keywords}
    if isinstance(value, staticmethod | classmethod):
        return {"function": value.__func__}
    if isinstance(value, property):
        return {"function": value.fget}
    kind = type(value)
    if kind.__module__.partition(".")[0] in LIBRARIES:
        return None
    own = attributes(value)
    return own | ({} if of_library(kind.__module__) else {"class": kind}) or None


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, also those in slots."""
    named = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
    slots = chain(*([each] if isinstance(each, str) else each for each in named))
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return held | getattr(value, "__dict__", {})


def _of_function(function: FunctionType) -> Mapping[str, Any]:
    """The closure, defaults and attributes of a function, and the globals it reads."""
    held = {"defaults": function.__defaults__, "named": function.__kwdefaults__}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with suppress(ValueError):  # of an empty cell
            held[name] = cell.cell_contents
    held |= function.__dict__
    if not of_library(function.__module__ or ""):
        read, known = _names(function.__code__), function.__globals__
        held |= {f"global {name}": known[name] for name in read if name in known}
    for name, module in list(held.items()):
        if isinstance(module, ModuleType) and not of_library(module.__name__):
            read, known = function.__code__.co_names, vars(module)
            held |= {f"{name}.{key}": known[key] for key in read if key in known}
    return held


def _of_class(kind: type) -> Mapping[str, Any] | None:
    """The functions and attributes of a class and of those that it inherits from."""
    own = [k for k in kind.__mro__ if not of_library(k.__module__)]
    return {
        f"{k.__qualname__}.{name}": value
        for k in own
        for name, value in vars(k).items()
        if isinstance(value, FunctionType) or not name.startswith("__")
    }


@cache
def _names(code: CodeType) -> frozenset[str]:
    """The global names that a function reads, those of functions within it too."""
    read = {i.argval for i in get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    inner = (_names(x) for x in code.co_consts if isinstance(x, CodeType))
    return frozenset(read.union(*inner))


@cache
def of_library(name: str) -> bool:
    """Whether a module is of Python or installed: its own numbers stay as they are."""
    top = name.partition(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names or top == "builtins":
        return True
    file = getattr(sys.modules.get(top), "__file__", None) or ""
    return any(file.startswith(get_path(kind)) for kind in ("purelib", "platlib"))
