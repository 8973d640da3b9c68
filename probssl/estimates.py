"""Estimates with standard errors and bootstrap intervals."""

import sys
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .arrays import Array, numbers

__all__ = ["MIN_RESAMPLES", "Estimate", "Interval", "Undefined", "estimate"]
__all__ += ["intervals", "places", "reflected"]

MIN_RESAMPLES = 20  # of which the outer twentieths can be left out
LONGEST = 6  # digits before or after the point, beyond which there is a power of ten


class Interval(NamedTuple):
    """An estimate and its 90 % bootstrap interval (the basic bootstrap)."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(x, spec or ".4g") for x in self)
        return f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return format(self)


def reflected(
    values: Float[np.ndarray, " figure"], draws: Float[np.ndarray, "resample figure"]
) -> Float[np.ndarray, "resample figure"]:
    r"""The values that the truth may have, by the basic bootstrap: :math:`2 t - t^*`.

    The errors :math:`t^* - t` of the estimates from resamples stand for the error of
    the estimate t. Their percentiles around t would double its bias instead.

    Arguments:
        values: The estimates from all items.
        draws: The estimates from resamples, or from random halves of the items.

    References:
        Bootstrap Methods and their Application, chapter 5 (Davison and Hinkley, 1997)
        https://doi.org/10.1017/CBO9780511802843
    """
    with np.errstate(invalid="ignore"):
        likely = 2 * values - draws
    return np.where(np.isnan(likely), values, likely)  # infinite less infinite


def intervals(
    values: Float[np.ndarray, " figure"], likely: Float[np.ndarray, "resample figure"]
) -> list[Interval]:
    """The interval at 90 % of each of several estimates.

    The lowest and the highest twentieth of the likely values are left out; then the
    interval is widened to its estimate, where the bias is larger than the error. The
    ends are order statistics, not interpolated, which would give NaN between
    infinities.

    Arguments:
        values: The estimates from all items.
        likely: At least 20 values that the truth may have, such as those of
            `reflected`.
    """
    ordered, outside = np.sort(likely, axis=0), len(likely) // MIN_RESAMPLES
    low, high = ordered[outside], ordered[-1 - outside]
    columns = (values, np.minimum(low, values), np.maximum(high, values))
    return [Interval(*map(float, row)) for row in zip(*columns, strict=True)]


class Estimate(NamedTuple):
    """An estimate and its standard error over items."""

    value: float
    standard_error: float


def places(value: float, error: float) -> tuple[int, int]:
    """The decimals, and the power of ten, with which a value and its error are written.

    Both are divided by the power of ten and end at the first digit of the error, once
    it is rounded: 1.23 ± 0.04, and (1.234 ± 0.005)e-07.

    Arguments:
        error: A positive number.
    """
    first, last = max(map(_order, (value, error))), _order(error)
    power = first if last < -LONGEST or first >= LONGEST else 0
    return max(power - last, 0), power


def _order(x: float) -> int:
    """The power of ten of the first digit of a number rounded to it."""
    return int(f"{x:.0e}".partition("e")[2]) if x else -sys.maxsize


class Undefined(ValueError):
    """Raised for representations that have no such measure; the message says why."""


def estimate(items: Float[Array, " n"]) -> Estimate:
    r"""The mean of values over items, with standard error :math:`s / \sqrt n`.

    For an estimate that is not a mean, the values are its influence function, shifted
    so that their mean is the estimate. The error is too large for nearly degenerate
    statistics of pairs, such as the uniformity of uniform items.
    """
    items = numbers(items, "items")
    error = items.std(ddof=1) / np.sqrt(len(items))
    return Estimate(float(items.mean()), float(error))
