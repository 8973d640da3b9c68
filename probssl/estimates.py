"""Intervals: a figure, and where its resamples lie."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .arrays import Array, plain

__all__ = [
    "Estimate",
    "Interval",
    "Undefined",
    "check_resamples",
    "estimate",
    "intervals",
]


FEWEST = 20  # resamples, of which the outer twentieths can be left out


class Interval(NamedTuple):
    """A figure, and where 90 % of its resamples lie."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(x, spec or ".4g") for x in self)
        return f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return format(self)


def check_resamples(number: int) -> None:
    """Raise a ValueError for too few resamples."""
    if number < FEWEST:
        raise ValueError(f"expected bootstrap of at least {FEWEST}, got {number}")


def intervals(
    values: Float[np.ndarray, " figure"], draws: Float[np.ndarray, "resample figure"]
) -> list[Interval]:
    """Leave out the lowest and the highest twentieth of at least 20 resamples.

    The ends are resamples themselves: to interpolate between infinities gives NaN.
    """
    ordered, outside = np.sort(draws, axis=0), len(draws) // FEWEST
    columns = (values, ordered[outside], ordered[-1 - outside])
    return [Interval(*map(float, row)) for row in zip(*columns, strict=True)]


class Estimate(NamedTuple):
    """An estimate and its standard error over items."""

    value: float
    standard_error: float


class Undefined(ValueError):
    """These representations have no such measure; the message says why."""


def estimate(items: Float[Array, " n"]) -> Estimate:
    r"""The mean of values of items, with error :math:`s / \sqrt n`.

    For an estimate that is no mean the values are what weight on each item adds to it,
    its influence function, shifted so that their mean is the estimate. For a statistic
    of pairs near to degenerate, such as the uniformity of items that are uniform, the
    error is too large.
    """
    items = plain(items)
    error = items.std(ddof=1) / np.sqrt(len(items))
    return Estimate(float(items.mean()), float(error))
