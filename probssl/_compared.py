"""What an objective holds, in words and checksums: a saved and a loaded one compared.

`look` goes through modules, settings, functions and the objects in them. What it can
put into words it does, so that a warning shows the numbers. All else it compares by a
checksum of the content; what has none, such as a lock, it says cannot be compared.
"""

import dis
import inspect
import re
import sys
import weakref
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from functools import cache, cached_property, partial
from logging import Logger
from random import Random
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from ._arguments import NAMES, describe
from .arrays import plain
from .hyper import mapped
from .runtime.copies import attributes, of_library

__all__ = ["differences", "look", "original", "uncompared"]

CAPTURED = " captures "  # between a function and the name of a constant in it
INSIDE = " with "  # between the name of an object and that of an attribute in it
DEPTH = 10  # of objects in objects
HELD = " holds"  # after an attribute: numbers of arrays, or what a class has for all
NO_CHECKSUM = ", which cannot be compared"
LIBRARIES = __package__, "torch", "pyro"  # have no classes of one's own
MAKERS = "__init__", "__post_init__", "__new__"
SHOWING = "extra_repr", "_repr_html_"  # methods that change no value
FEW = 8  # numbers that a warning shows
LONG = 2000  # characters, beyond which words are compared by a checksum
LOADS = "LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST"
SETS = set, frozenset
HOLDERS = tuple, list, dict, *SETS, Tensor, np.ndarray, np.generic
PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
PLAIN = bool, int, float, complex, str, bytes, range, torch.dtype, Enum
# Every use changes them, or they say where something is: they are no settings.
CHANGING: tuple[type, ...] = (torch.Generator, np.random.Generator, Random)
CHANGING += (np.random.RandomState, np.random.BitGenerator, Optimizer, LRScheduler)
CHANGING += (RemovableHandle, weakref.ref, torch.device, Logger)
# Their parts are gone through.
WALKED: tuple[type, ...] = (tuple, list, Mapping, partial, SimpleNamespace, Namespace)
WALKED += (FunctionType, MethodType, type, ModuleType, nn.Module, Distribution)
WALKED += (Transform,)


def look(objective: nn.Module) -> dict[str, str]:
    """The classes, settings and shapes of all modules and tensors, by name."""
    found: dict[str, str] = {}
    firsts: dict[int, str] = {}  # names of shared parts, by identity
    used: dict[type, dict[str, str]] = {}  # by methods
    for name, module in objective.named_modules(remove_duplicate=False):
        if hasattr(module, "_orig_mod"):
            continue
        name = original(name)
        same = firsts.setdefault(id(module), name)
        found[name] = type(module).__qualname__
        found[name] += f" of {same}" if same != name else ""
        prefix = f"{name}." if name else ""
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and attribute != "training":
                found[prefix + attribute] = _setting(value)
                found |= _within(prefix + attribute, value)
        for attribute, value in _private(module).items():
            found[f"{prefix}{attribute}{HELD}"] = _told(value)
            found |= _within(prefix + attribute, value)
        if type(module) not in used:
            used[type(module)] = _used(type(module))
        found |= {prefix + name: text for name, text in used[type(module)].items()}
        found |= {prefix + name: text for name, text in _held(module).items()}
        if hooks := len(module._forward_hooks) + len(module._forward_pre_hooks):
            found[f"{prefix}hooks"] = str(hooks)
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                same = firsts.setdefault(id(tensor), prefix + attribute)
                found[prefix + attribute] = f"{same} {tuple(tensor.shape)}"
    return found


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Where two looks differ, in words, one line for each name."""
    return [
        f"{name or 'the objective'} {found.get(name, 'gone')} instead of "
        f"{expected.get(name, 'nothing')}"
        for name in expected | found
        if found.get(name) != expected.get(name)
        # A folder of before has no constants of functions, nor what attributes hold.
        and (
            not (CAPTURED in name or INSIDE in name or name.endswith(HELD))
            or (name in found and name in expected)
        )
    ]


def uncompared(found: dict[str, str]) -> dict[str, str]:
    """What a look could not compare: its class, by the name of the setting."""
    ends = f"{NO_CHECKSUM}$"
    return {
        re.sub(f"{INSIDE}value$", "", name): re.sub(ends, "", text)
        for name, text in found.items()
        if re.search(ends, text)
    }


def _within(name: str, value: Any) -> dict[str, str]:
    """What functions and objects in a setting of this name hold, by name."""
    captured, inside = _captured(value), _inside(value)
    found = {f"{name}{CAPTURED}{constant}": text for constant, text in captured.items()}
    return found | {f"{name}{INSIDE}{inner}": text for inner, text in inside.items()}


def _setting(value: Any, around: tuple[int, ...] = ()) -> str:
    """A setting in words that are the same in every process.

    Arguments:
        around: The identities of the containers that it is in: one may hold itself.
    """
    if id(value) in around:
        return "..."
    words = partial(_setting, around=(*around, id(value)))
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()  # as `describe` writes it
    if isinstance(value, tuple | list):
        name = type(value).__qualname__ if hasattr(value, "_fields") else ""
        return f"{name}({', '.join(map(words, value))})"
    if isinstance(value, SETS):
        return f"{{{', '.join(sorted(map(words, value)))}}}"
    if isinstance(value, dict):
        parts = (f"{words(k)}: {words(v)}" for k, v in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, partial):
        return f"partial{words((value.func, value.args, value.keywords))}"
    if isinstance(value, Distribution):
        return words(describe(mapped(value, _single)))
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__qualname__} {tuple(value.shape)}"
    if value is None or isinstance(value, PLAIN):
        return repr(value)
    if type(value) in NAMES and not isinstance(value, nn.Module):
        return f"{type(value).__qualname__}{words([*_public(value).items()])}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return str(named.__qualname__)


def _single(number: Tensor) -> Tensor:
    """A number in float32 where it is in float64, in which it may have been built."""
    return number.float() if number.dtype == torch.float64 else number


def _public(value: Any) -> dict[str, Any]:
    held = attributes(value).items()
    return {name: part for name, part in held if not name.startswith("_")}


def _told(value: Any) -> str:
    """A setting in words, with the numbers of its arrays."""
    return " ".join([_setting(value), *_numbers(value)])


def _private(value: Any) -> dict[str, Any]:
    """The private settings of an object of one's own, by name.

    They are what its class or its constructor sets. What another method sets is its
    state, such as a cache, and so is a container that begins empty.
    """
    kinds = [kind for kind in type(value).__mro__ if not of_library(kind.__module__)]
    held: dict[str, Any] = {}
    made, again = set[str](), set[str]()
    for kind in reversed(kinds):
        for name, part in vars(kind).items():
            if isinstance(part, property) and part.fset is not None:
                made |= _stored(part.fset.__code__)
            elif isinstance(part, FunctionType):
                stored = _stored(part.__code__)
                made |= stored if name in MAKERS else set()
                again |= set() if name in MAKERS else stored
            elif isinstance(part, (*PLAIN, *HOLDERS)):
                held[name] = part
                made.add(name)
    held |= attributes(value) if kinds else {}
    return {
        name: part
        for name, part in held.items()
        if name.startswith("_") and not name.startswith("__")
        if name in made - again
        if not isinstance(part, nn.Module)
        if not (isinstance(part, tuple | list | dict | set | frozenset) and not part)
    }


@cache
def _stored(code: CodeType) -> frozenset[str]:
    """The names of the attributes that a function sets, those within it too."""
    sets = (i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")
    inner = (_stored(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(sets).union(*inner)


def _methods(kind: type) -> dict[str, FunctionType]:
    """The functions of a class of one's own and of such bases, by name.

    Not those that build or show an object.
    """
    found: dict[str, FunctionType] = {}
    for base in kind.__mro__:
        if of_library(base.__module__):
            continue
        for name, part in vars(base).items():
            if isinstance(part, property):
                part = part.fget
            elif isinstance(part, cached_property):
                part = part.func
            elif isinstance(part, staticmethod | classmethod):
                part = part.__func__
            part = _unwrapped(part)
            special = name.startswith("__") and name != "__call__"
            if isinstance(part, FunctionType) and not special and name not in SHOWING:
                found[f"{base.__name__}.{name}" if name in found else name] = part
    return found


def _used(kind: type) -> dict[str, str]:
    """The constants that the methods of a class of one's own use, by name."""
    return {
        f"{name}{CAPTURED}{constant}": text
        for name, method in _methods(kind).items()
        for constant, text in _captured(method).items()
    }


def _held(module: nn.Module) -> dict[str, str]:
    """The numbers of arrays and the class attributes of a module of one's own.

    Buffers that a `state_dict` leaves out are among them.
    """
    kind = type(module)
    if kind.__module__.partition(".")[0] == __package__:
        return {}
    held, within = dict[str, str](), dict[str, str]()
    for name in module._non_persistent_buffers_set & module._buffers.keys():
        if (buffer := module._buffers[name]) is not None:  # maybe of another precision
            buffer = buffer.float() if buffer.is_floating_point() else buffer
            shape = str(tuple(buffer.shape))
            held[name] = " ".join([shape, *_numbers(buffer.reshape(-1))])
    if _own(kind):
        values = vars(module).items()
        held |= {name: " ".join(_numbers(value)) for name, value in values}
    for kind in filter(_own, type(module).__mro__):
        for name, value in _class_attributes(kind).items():
            if value is None or isinstance(value, (*PLAIN, *HOLDERS)):
                held.setdefault(name, _told(value))
            within = _within(name, value) | within
    held = {f"{name}{HELD}": text for name, text in held.items() if text}
    buffers = module._non_persistent_buffers_set
    return {
        name: text
        for name, text in (held | within).items()
        if not name.startswith("_") or name.removesuffix(HELD) in buffers
    }


def _class_attributes(kind: type) -> dict[str, Any]:
    """What a class has for all its objects, without functions and properties."""
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith(("__", "_abc_")) and not hasattr(type(value), "__get__")
    }


def _inside(
    value: Any, seen: dict[int, Any] | None = None, depth: int = DEPTH
) -> dict[str, str]:
    """What a setting holds that its words do not show, by name.

    Attributes of objects of one's own, such as a configuration, what functions in lists
    and dictionaries use, and checksums of all that has no words.

    Arguments:
        seen: What was met already, by identity.
    """
    seen = {} if seen is None else seen
    if id(value) in seen or not depth:
        return {}
    seen[id(value)] = value
    found, public = dict[str, str](), _attributes(value)
    private = {} if isinstance(value, nn.Module) else _private(value)
    if public:
        found["attributes"] = ", ".join(public)
    found |= {name: _told(part) for name, part in (public | private).items()}
    if isinstance(value, Transform):
        words = _setting(describe(value))
        found["arguments"] = words if len(words) < LONG else _checked(words.encode())
    elif not _has_words(value):
        found |= _value(value)
    for name, part in (public | private | _items(value)).items():
        for constant, text in _captured(part, seen, depth - 1).items():
            found[f"{name}{CAPTURED}{constant}"] = text
        for inner, text in _inside(part, seen, depth - 1).items():
            found[f"{name}.{inner}"] = text
    return found


def _items(value: Any) -> dict[str, Any]:
    """What a container, or an argument of this package's classes, holds, by name."""
    if isinstance(value, Mapping):
        items = {str(key): part for key, part in value.items()}
        is_text = all(isinstance(key, PLAIN) for key in value)
        return items if is_text else items | {"keys": tuple(value)}
    if isinstance(value, tuple | list):
        return {str(i): part for i, part in enumerate(value)}
    return _public(value) if _described(value) else {}


def _described(value: Any) -> bool:
    """Whether a value is an object of this package that its arguments describe."""
    return type(value) in NAMES and not isinstance(value, nn.Module)


def _has_words(value: Any) -> bool:
    """Whether a setting's words, or those of its parts, say all that it is."""
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Tensor | np.ndarray):
        masked = isinstance(value, np.ma.MaskedArray)
        return not masked and (not value.ndim or bool(_numbers(value)))
    if isinstance(value, SETS):
        return all(isinstance(part, PLAIN) for part in value)
    if isinstance(value, BuiltinMethodType | MethodWrapperType):
        return value.__self__ is None or isinstance(value.__self__, ModuleType | type)
    if value is None or isinstance(value, (*PLAIN, *WALKED, *CHANGING)):
        return True
    module = type(value).__module__
    return (
        isinstance(_unwrapped(value), FunctionType)
        or module.partition(".")[0] == __package__
        or not (of_library(module) or _of_base(value))
    )


def _value(value: Any) -> dict[str, str]:
    """The checksum of what has no words, within one version of its library."""
    from ._checksum import checksum  # joblib, which it needs, takes long to import

    name = type(value).__qualname__
    top = type(value).__module__.partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", None)
    with_version = f"{top} {version}" if version else PYTHON
    try:
        found = checksum(value, _stand_in)
    except Exception:  # of any kind: objects refuse to be copied in many ways
        return {"value": f"{name}{NO_CHECKSUM}"}
    return {f"value ({with_version})": f"{name} with checksum {found}"}


def _stand_in(value: Any) -> Any:
    """What a checksum takes in place of a value that it could not compare."""
    kind = type(value)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, (nn.Module, *CHANGING)):
        return kind.__qualname__
    if isinstance(value, Distribution | Transform) and of_library(kind.__module__):
        return _setting(describe(value))
    function = _unwrapped(value)
    if isinstance(function, FunctionType):
        captured = _captured(function)
        if any(text.endswith(NO_CHECKSUM) for text in captured.values()):
            raise TypeError(f"{function.__qualname__} has constants without checksum")
        return function.__qualname__, sorted(captured.items())
    if of_library(kind.__module__) or isinstance(value, Enum):
        return value
    private = _private(value).items()  # without containers, which may be caches
    held = {k: x for k, x in private if not isinstance(x, list | dict | set)}
    held |= _attributes(value)
    return kind.__qualname__, held, _items(value), _of_base(value)


def _of_base(value: Any) -> list[Any]:
    """What an object of one's own holds as one of a library's class, such as numbers.

    It is what the class takes and lists when it is copied, and the state that a library
    defines; its attributes are known otherwise.
    """
    bases = [base for base in type(value).__mro__ if of_library(base.__module__)]
    if all(base in (object, *HOLDERS, SimpleNamespace, Namespace) for base in bases):
        return []
    held: list[Any] = []
    with suppress(Exception):  # of any kind: objects refuse to be copied in many ways
        _, given, state, *items = (*value.__reduce_ex__(2), None, None, None)[:5]
        held += [part for part in given if not isinstance(part, type)]
        held += [list(part) for part in items if part is not None]
        if any("__getstate__" in vars(base) for base in bases if base is not object):
            held.append(state)
    return [part for part in held if part is not None]


def _unwrapped(value: Any) -> Any:
    """The function in a wrapper that is none, such as `functools.lru_cache`."""
    held = getattr(value, "__dict__", {})
    if isinstance(value, FunctionType | type) or not of_library(type(value).__module__):
        return value
    return _unwrapped(held["__wrapped__"]) if "__wrapped__" in held else value


def _attributes(value: Any) -> dict[str, Any]:
    """The public attributes of an object that is of no library, also those in slots."""
    kind = type(value)
    if isinstance(value, MethodType):
        return {"self": value.__self__}
    if isinstance(value, partial):
        return {"args": value.args, **value.keywords}
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, type | nn.Module | Enum | dict) or not (
        isinstance(value, SimpleNamespace | Namespace)
        or (
            _own(kind)
            and kind.__module__.partition(".")[0]
            not in {"numpy", *sys.stdlib_module_names}
        )
    ):
        return {}
    return _public(value)


def _own(kind: type | FunctionType) -> bool:
    """Whether a class or function is neither of a library nor built into Python."""
    return kind.__module__.partition(".")[0] not in (*LIBRARIES, "builtins")


def _captured(
    value: Any, seen: dict[int, Any] | None = None, depth: int = DEPTH
) -> dict[str, str]:
    """The constants that a function of one's own uses, by name.

    They are those of its closure, its defaults, plain globals that it names, its
    literals, and those of functions and classes beside it that it calls. Literals are
    compared only within one version of Python, whose compiler may merge them.
    """
    value = value.func if isinstance(value, partial) else value
    value = value.__func__ if isinstance(value, MethodType) else value
    value, seen = _unwrapped(value), {} if seen is None else seen
    found: dict[str, str] = {}
    queue, of_class = [value], dict[Any, str]()
    while queue and depth:
        function = _unwrapped(queue.pop())
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen[id(function)] = function
        module = function.__module__ or ""
        if module.partition(".")[0] == __package__:
            continue
        if not of_library(module) and (literals := _literals(function.__code__)):
            named = of_class.get(function, getattr(function, "__name__", ""))
            where = "" if function is value else f"{named} "
            found[f"{where}literals ({PYTHON})"] = ", ".join(literals)
        inside = inspect.getclosurevars(function)
        inner_globals = _globals_within(function) - inside.globals.keys()
        signature = inspect.signature(function).parameters.values()
        given = {p.name: p.default for p in signature if p.default is not p.empty}
        given = {**inside.nonlocals, **given}
        named_globals = {} if of_library(module) else dict(inside.globals)
        if not of_library(module):
            known = function.__globals__
            named_globals |= {n: known[n] for n in inner_globals & known.keys()}
        constants = {**named_globals, **given}
        for kind in [each for each in constants.values() if isinstance(each, type)]:
            if kind.__module__ == module and not of_library(module):
                methods = _methods(kind)
                if isinstance(maker := vars(kind).get("__init__"), FunctionType):
                    methods["__init__"] = maker
                for method, part in methods.items():
                    of_class.setdefault(part, f"{kind.__name__}.{method}")
                queue += methods.values()
                constants |= {
                    f"{kind.__name__}.{name}": part
                    for name, part in _class_attributes(kind).items()
                }
        for name, constant in constants.items():
            if isinstance(part := _unwrapped(constant), FunctionType):
                queue += [part] if part.__module__ == module or name in given else []
            elif not isinstance(constant, ModuleType | type | nn.Module):
                numbers = _numbers(constant)
                found[name] = _setting(constant)
                if isinstance(constant, Tensor | np.ndarray):
                    found[name] = " ".join([found[name], *numbers])
                elif numbers:
                    found[name + HELD] = " ".join(numbers)
                for inner, text in _inside(constant, seen, depth - 1).items():
                    found[f"{name}{INSIDE}{inner}"] = text
    return found


def _globals_within(function: FunctionType) -> set[str]:
    """The global names that functions and comprehensions inside a function read."""
    found, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
        found |= {
            each.argval
            for each in dis.get_instructions(code)
            if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        }
    return found


def _literals(code: CodeType) -> list[str]:
    """The numbers and strings in the body of a function, in order, nested ones too."""
    found: list[str] = []
    for instruction in dis.get_instructions(code):
        constant = instruction.argval
        if isinstance(constant, CodeType):
            found += _literals(constant)
        elif instruction.opname in LOADS and constant is not None:
            found.append(_setting(constant))
    return found


def _numbers(value: Any, around: tuple[int, ...] = ()) -> list[str]:
    """What distinguishes the values of the arrays in an attribute or a constant.

    Arguments:
        around: The identities of the containers that it is in, as in `_setting`.
    """
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, tuple | list | dict) and id(value) not in around:
        within = partial(_numbers, around=(*around, id(value)))
        return [text for part in parts for text in within(part)]
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        # What NumPy has no numbers for, such as a tensor without storage.
        with suppress(TypeError, RuntimeError):
            numbers = np.ascontiguousarray(plain(value))
            if numbers.dtype.hasobject:
                return []
            if numbers.size <= FEW:
                return [str(numbers.tolist())]
            return [_checked(numbers.tobytes())]
    return []


def _checked(data: bytes) -> str:
    return f"with checksum {crc32(data):08x}"


def original(name: str) -> str:
    """The name of a tensor or module without what torch.compile puts in."""
    return name.replace("_orig_mod.", "").removesuffix("_orig_mod").removesuffix(".")
