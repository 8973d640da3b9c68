"""Checks of arguments: one function for each kind of value, one form of message.

Each returns the argument as a plain Python value, so that a constructor reads
``self.momentum = between("momentum", momentum, 0, 1)``. A message says what was
expected, what was given and, by `hint`, what to do.
"""

import math
import operator
from collections.abc import Callable, Collection
from typing import Any, TypeVar

__all__ = ["at_least", "between", "choice", "instance", "positive", "whole"]

T = TypeVar("T")


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
    wanted = f"{name} as a whole number {limit}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(_message(wanted, value, hint)) from None
    if number < least or (most is not None and number > most):
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


def _number(wanted: str, value: Any, fits: Callable[[float], bool], hint: str) -> float:
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers
        raise TypeError(_message(wanted, value, hint)) from None
    if not fits(number):
        raise ValueError(_message(wanted, value, hint))
    return number


def _message(wanted: str, value: Any, hint: str) -> str:
    shown = repr(value)
    if len(shown) > 80:
        shown = f"{type(value).__name__} {shown[:60]} …"
    return f"expected {wanted}, got {shown}" + (f"; {hint}" if hint else "")
