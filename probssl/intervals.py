"""Intervals: a figure, and where its resamples lie."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Interval", "check_resamples", "intervals"]

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
