"""Estimates with their standard errors, and measures that are not defined."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .arrays import Array, plain

__all__ = ["Estimate", "Undefined", "estimate"]


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
