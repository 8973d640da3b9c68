"""The parts, estimated from representations of two views and labels, with intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import check_alike, classes, representations
from ..bars import shown
from ..estimates import MIN_RESAMPLES, Interval, intervals, reflected
from .decomposition import Decomposition, parts
from .estimators import BAR_DELAY, Classifier, Estimator

__all__ = ["Estimate", "estimate"]

LOGISTIC = Classifier()
ROUNDING = 8 * np.finfo(float).eps  # of a sum of four parts


class Estimate(NamedTuple):
    r"""The result of `estimate`, in nats; printed, it is a table.

    Arguments:
        redundant: R.
        unique_1: :math:`U_1`.
        unique_2: :math:`U_2`.
        synergistic: S.
        first: :math:`I(z_1; t) = R + U_1`.
        second: :math:`I(z_2; t) = R + U_2`.
        total: :math:`I(z_1, z_2; t) = R + U_1 + U_2 + S`.
        entropy: :math:`H(t)`, which no information about t exceeds.
    """

    redundant: Interval
    unique_1: Interval
    unique_2: Interval
    synergistic: Interval
    first: Interval
    second: Interval
    total: Interval
    entropy: Interval

    @property
    def decomposition(self) -> Decomposition:
        """The values of the four parts."""
        return Decomposition(*(part.value for part in self[:4]))

    def as_dict(self) -> dict[str, dict[str, float]]:
        """All figures as plain numbers, for JSON."""
        return {name: each._asdict() for name, each in self._asdict().items()}

    def __str__(self) -> str:
        names = ("R", "U1", "U2", "S", "I(z1; t)", "I(z2; t)", "I(z1, z2; t)", "H(t)")
        rows = zip(names, self, strict=True)
        return "\n".join(f"{name:<14}{figure:.4f}" for name, figure in rows)


@typed
def estimate(
    first: Float[np.ndarray, "n first"],
    second: Float[np.ndarray, "n second"],
    target: Shaped[np.ndarray, " n"],
    *,
    by: Estimator = LOGISTIC,
    bootstrap: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> Estimate:
    r"""Estimate the PID of two views' representations about labels: R, U and S.

    `Classifier` and `Clusters` document what they find and what they miss. The bias
    that the bootstrap shows is subtracted from every figure. No part is below 0, no
    information above :math:`H(t)`, and :math:`R + U_i = I(z_i; t)` and :math:`R + U_1 +
    U_2 + S = I(z_1, z_2; t)` hold exactly, in each resample as well.

    The 90 % bootstrap intervals resample the counted items only. Classifiers and cells
    stay as fitted: the intervals show the error from finitely many items, not the
    variation of other fits, nor the gap between a bound and what it bounds. Labels and
    pseudo-labels count as given.

    Arguments:
        first: :math:`z_1`.
        second: :math:`z_2` of the same items.
        target: The label t of each item, or its pseudo-label.
        by: The estimator, `Classifier(…)` or `Clusters(…)`.
        bootstrap: The number of resamples, at least 20.
        seed: The seed of folds, cells and resamples; a model has its own.
        progress: Show a progress bar after two seconds.

    Raises:
        TypeError: If a setting of the estimator is not a number.
        ValueError: For items that do not match, numbers that are not finite, labels of
            a single class, or fewer items than the estimator needs.
    """
    check_alike(first, second, "second", "index")
    check_alike(first, target, "target", "index")
    views = representations(first)[0], representations(second)[0]
    if len(views[0]) != len(views[1]):
        raise ValueError(
            f"expected two views of the same items, got {len(views[0])} and "
            f"{len(views[1])} representations; give them in one order"
        )
    t = np.unique(classes(target, len(views[0])), return_inverse=True)[1]
    bootstrap = whole("bootstrap", bootstrap, MIN_RESAMPLES)
    random = np.random.default_rng(seed)
    items, figures = by.sample(views, t, random, progress)
    draws = np.empty((bootstrap, 5))
    options = {"delay": BAR_DELAY, "leave": False, **shown(progress)}
    for b in tqdm(range(bootstrap), "resamples", unit="resample", **options):
        draws[b] = figures(random.integers(items, size=items), True)
    # for the resamples, the frequencies of all items are the truth
    truth = figures(np.arange(items), False)
    value = figures(np.arange(items), True) - (draws.mean(0) - truth)
    most, likely = np.log(t.max() + 1), reflected(value, value + draws - draws.mean(0))
    again = np.stack([_named(each, most) for each in likely])
    return Estimate(*intervals(_named(value, most), again))


def _named(figures: Float[np.ndarray, "5"], most: float) -> Float[np.ndarray, "8"]:
    """The figures of an `Estimate`, made consistent, with H(t) of at most `most`."""
    *informations, redundant, entropy = figures.tolist()
    entropy = min(max(entropy, 0.0), most)
    below = entropy * (1 - ROUNDING)  # so that no sum of parts is rounded above it
    found = parts(*(min(each, below) for each in informations), redundant=redundant)
    return np.array([*found, found.first, found.second, found.total, entropy])
