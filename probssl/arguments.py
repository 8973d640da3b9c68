"""Checks of arguments: one function for each kind of value, one form of message.

Each returns the argument as a plain Python value, so that a constructor reads
``self.momentum = between("momentum", momentum, 0, 1)``. A message says what was
expected, what was given and, by `hint`, what to do.

`typed` checks the types that the annotations of a function state. Constructors of
public classes are checked so without a decorator (`_arguments.record`).
"""

import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, cached_property, wraps
from pathlib import Path
from types import FunctionType, NoneType, UnionType
from typing import (
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import numpy as np
import torch
from jaxtyping import AbstractArray
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = [
    "Parted",
    "alone",
    "at_least",
    "between",
    "check_types",
    "choice",
    "device",
    "fixed",
]
__all__ += ["counted", "folder", "having", "instance", "positive", "typed", "whole"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Parted(nn.Module):
    """A module that refuses another one in place of a property or method.

    torch would keep and save the new module, and the property go on with the old one.

    Raises:
        AttributeError: When a module is assigned to the name of a property or method.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and name not in self._modules:
            held = inspect.getattr_static(type(self), name, None)
            if isinstance(held, property | cached_property | FunctionType):
                self._check_same(name, value)
        super().__setattr__(name, value)

    def _check_same(self, name: str, value: nn.Module) -> None:
        try:
            if getattr(self, name) is value:
                return
        except AttributeError:  # the property has nothing yet: torch finds the module
            return
        own, parts = type(self).__name__, [part for part, _ in self.named_children()]
        raise AttributeError(
            f"expected no module under the name {name!r} of {own}, a property or "
            f"method that goes on with the old one, got {type(value).__name__}; build "
            f"{own} anew with it, or assign one of the parts {', '.join(parts)}"
        )


class _Kind(NamedTuple):
    """What an annotation asks for, in words, and whether a value is such."""

    words: str
    fits: Callable[[Any], bool]
    error: type[Exception] = TypeError
    whole: bool = False  # whether a whole number is such


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function: a TypeError says which argument is of another type.

    Checked are modules and other classes, functions and how many arguments they take,
    numbers, strings, True and False, `Literal`, sequences and mappings, by the
    annotations. Whole numbers of NumPy and torch become plain ones, and a `seed` is
    one that NumPy takes.
    Arrays and tensors pass: what they hold is checked where they are read. An
    annotation that allows an array passes everything.
    """

    @wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        plain, named = check_types(function, *args, **options)
        return function(*plain, **named)

    return checked


def check_types(
    function: Callable[..., Any], *args: Any, **options: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments; a TypeError for one that is not what its annotation says.

    A ValueError for a string or seed of the right type.
    """
    signature, kinds = _kinds(function)
    try:
        bound = signature.bind(*args, **options)
    except TypeError as error:
        raise TypeError(_misfit(function, signature, args, options, error)) from None
    plain = {}
    for name, value in bound.arguments.items():
        kind = kinds.get(name)
        if kind is not None and not kind.fits(value):
            hint = ""
            if isinstance(value, type):
                hint = "build an object of the class"
            elif callable(value) and "Module" in kind.words:
                hint = "wrap it in a torch.nn.Module"
            raise kind.error(_message(f"{name} as {kind.words}", value, hint))
        if kind is not None and kind.whole and _is_scalar(value) and _is_whole(value):
            plain[name] = _index(value)
    if not plain:
        return args, options
    bound.arguments.update(plain)
    return bound.args, bound.kwargs


def _misfit(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    error: TypeError,
) -> str:
    """The message for arguments that a function does not have, or lacks."""
    names = list(signature.parameters)
    if constructor := function.__name__ == "__init__":
        names = names[1:]
    called = type(args[0]).__name__ if constructor else function.__name__
    near: list[str] = []
    for name in options.keys() - set(names):
        near += [
            full for full in names if name == "".join(re.findall("(?:^|_)(.)", full))
        ]
        near += get_close_matches(name, names, 2, 0.5)
    named = [
        name
        for name, each in signature.parameters.items()
        if each.kind is each.KEYWORD_ONLY
    ]
    if named and "too many positional" in str(error):
        return (
            f"expected arguments of {called}({', '.join(names)}), got {error}; "
            f"give {', '.join(f'{name}=…' for name in named)} by name"
        )
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    got = str(error).removeprefix("got ").replace("missing a", "none for a")
    return f"expected arguments of {called}({', '.join(names)}), got {got}{hint}"


@cache
def _kinds(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, _Kind]]:
    """The signature, and the kinds of the arguments whose annotation has one."""
    signature, found = inspect.signature(function), {}
    for name, parameter in signature.parameters.items():
        hint = parameter.annotation
        if isinstance(hint, str):
            with suppress(NameError):  # a name that only type checkers import
                hint = eval(hint, function.__globals__)
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        kind = None if variable else _kind(hint)
        if name == "seed" and kind is not None:
            kind = _OPTIONAL_SEED if kind.fits(None) else _SEED
        if kind is not None and hint is not parameter.empty:
            found[name] = kind
    return signature, found


def _kind(hint: Any) -> _Kind | None:
    """The kind that an annotation states; None where it allows an array or anything."""
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        each = [_kind(part) for part in parts]
        kinds = [kind for kind in each if kind is not None]
        *first, last = dict.fromkeys(kind.words for kind in kinds) or ["anything"]
        listed = f"{', '.join(first)} or {last}" if first else last
        fits = lambda value: any(kind.fits(value) for kind in kinds)  # noqa: E731
        wrong = any(kind.error is ValueError for kind in kinds)
        error = ValueError if wrong else TypeError
        found = _Kind(listed, fits, error, any(kind.whole for kind in kinds))
        return found if len(kinds) == len(each) else None
    if origin is Literal:
        listed = ", ".join(map(repr, parts))
        fits = lambda value: isinstance(value, str) and value in parts  # noqa: E731
        words = f"one of {listed}" if len(parts) > 1 else listed
        return _Kind(words, fits, ValueError)
    if origin is Callable:
        return _function(*parts)
    if origin in _PLAIN:
        return _PLAIN[origin]
    arrays = Tensor, np.ndarray, AbstractArray
    if origin in (Any, object) or not isinstance(origin, type):
        return None
    if issubclass(origin, arrays):
        return None
    if issubclass(origin, Mapping):
        inner = _kind(parts[1]) if parts else None
        words = "a dictionary" if inner is None else f"a dictionary to {inner.words}"
        return _Kind(words, lambda value: _is_mapping(value, inner))
    if origin in (Sequence, Collection, list, tuple):
        inner = _kind(parts[0]) if parts else None
        length = len(parts) if origin is tuple and Ellipsis not in parts else None
        words = "a sequence" if length is None else f"a sequence of {length}"
        words += "" if inner is None else f", each {inner.words}"
        return _Kind(words, lambda value: _is_sequence(value, inner, length))
    if issubclass(origin, Distribution):  # Pyro's and torch's share this base alone
        origin = Distribution
    article = "an" if origin.__name__[0] in "AEIO" else "a"
    words = _NAMED.get(origin.__name__, f"{article} {origin.__name__}")
    if getattr(origin, "_is_protocol", False):
        return _like(origin, words)
    return _Kind(words, lambda value: isinstance(value, origin))


def _like(protocol: type, words: str) -> _Kind:
    """An object with the methods of a protocol."""
    names = [name for name in vars(protocol) if not name.startswith("_")]
    names = names or ["__call__"]

    def fits(value: Any) -> bool:
        return not isinstance(value, type) and all(hasattr(value, n) for n in names)

    return _Kind(f"{words}, with {', '.join(names)}", fits)


def _function(takes: Any = ..., made: Any = Any) -> _Kind:
    """A function of so many arguments; a class if its instances are what it returns."""
    many = None if takes is Ellipsis else len(takes)
    parts = get_args(made) if get_origin(made) in (Union, UnionType) else [made]
    found = [get_origin(part) or part for part in parts]
    classes = tuple(
        Distribution if issubclass(part, Distribution) else part
        for part in found
        if isinstance(part, type) and not issubclass(part, np.ndarray | AbstractArray)
    )
    free = Any in found or object in found

    def fits(value: Any) -> bool:
        made = not isinstance(value, type) or free or issubclass(value, classes)
        return callable(value) and made and (many is None or _takes(value, many))

    number = "" if many is None else f" of {many} argument{'' if many == 1 else 's'}"
    return _Kind(f"a function{number}", fits)


def _takes(function: Any, many: int) -> bool:
    """Whether a function or module can be called with so many arguments, if known."""
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # of a built-in function
        return True
    try:
        return signature.bind(*[None] * many) is not None
    except TypeError:
        return False


def _is_mapping(value: Any, inner: _Kind | None) -> bool:
    if not isinstance(value, Mapping):
        return False
    return inner is None or all(map(inner.fits, value.values()))


def _is_sequence(value: Any, inner: _Kind | None, length: int | None) -> bool:
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__getitem__"):
        return False
    try:
        parts = list(value)
    except TypeError:  # a class such as list, an array without axes
        return False
    fits = inner is None or all(map(inner.fits, parts))
    return fits and (length is None or len(parts) == length)


def _is_scalar(value: Any) -> bool:
    """Whether it is a number of NumPy or torch, without axes."""
    return isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0


def _is_number(value: Any) -> bool:
    try:
        return _float(value) is not None
    except TypeError:
        return False


def _is_whole(value: Any) -> bool:
    try:
        return _index(value) is not None
    except TypeError:
        return False


_NAMED = {
    "Distribution": "a Pyro distribution",
    "Learned": "ps.learned(number)",
    "Module": "a torch.nn.Module",
    "PathLike": "a path",
}
_PLAIN: dict[Any, _Kind] = {
    NoneType: _Kind("None", lambda value: value is None),
    bool: _Kind("True or False", lambda value: isinstance(value, bool | np.bool_)),
    float: _Kind("a number", _is_number),
    int: _Kind("a whole number", _is_whole, whole=True),
    str: _Kind("a string", lambda value: isinstance(value, str)),
}
_SEED = _Kind(
    f"a whole number from 0 to {2**32 - 1}",
    lambda value: _is_whole(value) and 0 <= _index(value) < 2**32,
    ValueError,
    whole=True,
)
_OPTIONAL_SEED = _SEED._replace(
    words=f"{_SEED.words} or None",
    fits=lambda value: value is None or _SEED.fits(value),
)


def positive(name: str, value: Any, hint: str = "") -> float:
    """Return a positive finite number as a float.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.
    """
    wanted = f"{name} as a positive finite number"
    return _number(wanted, value, lambda x: 0 < x < math.inf, hint)


def at_least(name: str, value: Any, least: float, hint: str = "") -> float:
    """Return a finite number of at least `least` as a float; raises as `positive`."""
    wanted = f"{name} as a finite number of at least {least:g}"
    return _number(wanted, value, lambda x: least <= x < math.inf, hint)


def between(
    name: str,
    value: Any,
    low: float,
    high: float,
    hint: str = "",
    *,
    open: bool = False,
) -> float:
    """Return a number from `low` to `high` as a float; raises as `positive`.

    Arguments:
        open: Whether the two ends are excluded.
    """
    if open:
        wanted = f"{name} strictly between {low:g} and {high:g}"
        return _number(wanted, value, lambda x: low < x < high, hint)
    wanted = f"{name} from {low:g} to {high:g}"
    return _number(wanted, value, lambda x: low <= x <= high, hint)


def whole(
    name: str, value: Any, least: int = 1, most: int | None = None, hint: str = ""
) -> int:
    """Return a whole number from `least` to `most` as an int; raises as `positive`."""
    limit = f"of at least {least}" if most is None else f"from {least} to {most}"
    most = 2**63 - 1 if most is None else most
    wanted = f"{name} as a whole number {limit}"
    try:
        number = _index(value)
    except TypeError:
        raise TypeError(_message(wanted, value, hint)) from None
    if not least <= number <= most:
        raise ValueError(_message(wanted, value, hint))
    return number


def choice(name: str, value: T, options: Collection[T], hint: str = "") -> T:
    """Return one of the options; a ValueError names them all."""
    if not any(value is option or value == option for option in options):
        listed = ", ".join(map(repr, options))
        raise ValueError(_message(f"{name} as one of {listed}", value, hint))
    return value


def instance(name: str, value: Any, kinds: Any, expected: str, hint: str = "") -> Any:
    """Return an object of one of the classes `kinds`; a TypeError says `expected`."""
    if not isinstance(value, kinds):
        raise TypeError(_message(f"{name} as {expected}", value, hint))
    return value


def having(name: str, value: Any, attribute: str, expected: str, hint: str = "") -> Any:
    """Return what an object has by this name; a TypeError says what is `expected`."""
    if isinstance(value, type) or not hasattr(value, attribute):
        raise TypeError(_message(f"{name} as {expected}", value, hint))
    return getattr(value, attribute)


def alone(name: str, value: Any, other: str, hint: str = "") -> None:
    """Raise a ValueError for an argument that is given though it has no effect.

    Arguments:
        other: What takes its effect away.
    """
    if value is not None:
        raise ValueError(_message(f"no {name} {other}", value, hint or "leave it out"))


def counted(number: int, noun: str) -> str:
    """A number of things in words, such as "1 epoch" and "2 epochs"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def folder(name: str, value: str | os.PathLike[str]) -> Path:
    """Return a path; a ValueError refuses an empty one, which would be the present."""
    if not os.fspath(value):
        raise ValueError(
            _message(f"{name} as a path", value, "'.' is the present folder")
        )
    return Path(value)


def device(name: str, value: str | torch.device) -> torch.device:
    """Return a device that holds numbers; a ValueError for one that is not here."""
    try:
        found = torch.device(value)
        torch.empty(1, device=found).item()
        return found
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        hint = f"'cpu' is one, 'cuda' with a GPU ({reason})"
        raise ValueError(_message(f"{name} of this machine", value, hint)) from None


def fixed(name: str, value: T, hint: str = "give a number") -> T:
    """Return a value; a ValueError refuses a tensor that it would not train."""
    if isinstance(value, Tensor) and value.requires_grad:
        wanted = f"{name} as a value that stays as it is"
        raise ValueError(
            f"expected {wanted}, got a tensor with requires_grad=True, which would not "
            f"be trained; {hint}, x.detach() stays as it is"
        )
    return value


def _number(wanted: str, value: Any, fits: Callable[[float], bool], hint: str) -> float:
    fixed(re.split(" as | from | strictly", wanted)[0], value)
    try:
        number = _float(value)
    except TypeError:
        raise TypeError(_message(wanted, value, hint)) from None
    if not fits(number):
        raise ValueError(_message(wanted, value, hint))
    return number


def _float(value: Any) -> float:
    """A number as a float; a TypeError for what is none, though Python converts it."""
    dtype = str(getattr(value, "dtype", ""))
    other = any(word in dtype for word in ("bool", "complex", "time"))
    if other or isinstance(value, bool | str | bytes | bytearray):
        raise TypeError
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except OverflowError:  # an integer beyond the range of floats
        return math.inf if value > 0 else -math.inf
    except (ValueError, RuntimeError):  # a tensor of several numbers
        raise TypeError from None


def _index(value: Any) -> int:
    """A whole number as an int; a TypeError for what is none."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError
    return operator.index(value)


def _message(wanted: str, value: Any, hint: str) -> str:
    shown = repr(value)
    if len(shown) > 80:
        shown = f"{type(value).__name__} {shown[:60]} …"
    return f"expected {wanted}, got {shown}" + (f"; {hint}" if hint else "")
