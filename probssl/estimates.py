"""Estimates with standard errors and bootstrap intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .arrays import Array, plain

__all__ = ["MIN_RESAMPLES", "Estimate", "Interval", "Undefined", "estimate"]
__all__ += ["intervals"]

MIN_RESAMPLES = 20  # of which the outer twentieths can be left out


class Interval(NamedTuple):
    """An estimate and its 90 % bootstrap interval (percentile method)."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(x, spec or ".4g") for x in self)
        return f"{value} ({low} to {high})"

    def __str__(self) -> str:
        return format(self)


def intervals(
    values: Float[np.ndarray, " figure"], draws: Float[np.ndarray, "resample figure"]
) -> list[Interval]:
    """The percentile bootstrap interval at 90 % of each of several estimates.

    The lowest and the highest twentieth of the resamples are left out. The ends are
    order statistics, not interpolated, which would give NaN between infinities.

    Arguments:
        values: The estimates from all items.
        draws: The estimates from at least 20 resamples.

    References:
        An Introduction to the Bootstrap, chapter 13 (Efron and Tibshirani, 1993)
        https://doi.org/10.1201/9780429246593
    """
    ordered, outside = np.sort(draws, axis=0), len(draws) // MIN_RESAMPLES
    columns = (values, ordered[outside], ordered[-1 - outside])
    return [Interval(*map(float, row)) for row in zip(*columns, strict=True)]


class Estimate(NamedTuple):
    """An estimate and its standard error over items."""

    value: float
    standard_error: float


class Undefined(ValueError):
    """Raised for representations that have no such measure; the message says why."""


def estimate(items: Float[Array, " n"]) -> Estimate:
    r"""The mean of values over items, with standard error :math:`s / \sqrt n`.

    For an estimate that is not a mean, the values are its influence function, shifted
    so that their mean is the estimate. The error is too large for nearly degenerate
    statistics of pairs, such as the uniformity of uniform items.
    """
    items = plain(items)
    error = items.std(ddof=1) / np.sqrt(len(items))
    return Estimate(float(items.mean()), float(error))
