"""What an estimator owes: the figures of its items, and of any resample of them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Codes", "Estimator", "Sample", "surprise"]

Codes = Int[np.ndarray, " n"]


class Sample(NamedTuple):
    r"""Items that are counted, and the figures of any of them.

    Arguments:
        items: Their number.
        figures: From some of them, as indices, :math:`I(z_1; t), I(z_2; t), I(z_1, z_2;
            t), R, H(t)`. The flag asks for estimates that are less biased than those
            that take frequencies for probabilities, as far as there are such.
    """

    items: int
    figures: Callable[[Codes, bool], Float[np.ndarray, "5"]]


class Estimator(Protocol):
    """Fits what it needs, and gives the sample that is left to count."""

    def sample(
        self,
        views: tuple[np.ndarray, np.ndarray],
        target: Codes,
        random: np.random.Generator,
        progress: bool,
    ) -> Sample:
        """The sample of two views, each (n, dim), and a target from 0 to C - 1."""
        ...


def surprise(target: Codes, classes: int) -> Float[np.ndarray, " target"]:
    r""":math:`-p(t) \log p(t)` of each class, with frequencies for probabilities."""
    from scipy.special import entr

    return entr(np.bincount(target, minlength=classes) / len(target))
