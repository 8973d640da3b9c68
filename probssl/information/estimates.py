"""The parts, estimated from representations of two views and labels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from tqdm import tqdm

from ..estimates import Interval, check_resamples, intervals
from .classifier import PATIENCE, Classifier
from .parts import Decomposition, parts
from .sample import Codes, Estimator

__all__ = ["Estimate", "estimate"]

LOGISTIC = Classifier()


class Estimate(NamedTuple):
    r"""What `estimate` found, in nats; printed, it is a table.

    Arguments:
        redundant: R.
        unique_1: :math:`U_1`.
        unique_2: :math:`U_2`.
        synergistic: S.
        first: :math:`I(z_1; t) = R + U_1`.
        second: :math:`I(z_2; t) = R + U_2`.
        total: :math:`I(z_1, z_2; t) = R + U_1 + U_2 + S`.
        entropy: :math:`H(t)`, the most that can be known of t.
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
    r"""What representations of two views tell of labels: R, :math:`U_1, U_2`, S.

    By `Classifier` or by `Clusters`, which say what they find and what they miss. From
    every figure the mean error of resamples is subtracted; then no part is below 0, and
    :math:`R + U_i = I(z_i; t)` and :math:`R + U_1 + U_2 + S = I(z_1, z_2; t)` hold
    exactly, in each resample as well.

    The intervals leave out the lowest and the highest twentieth of resamples, which
    draw items with replacement. What has been fitted, classifiers or cells, stays: they
    say how far the figures of these are known from so many items, not how others would
    do, nor how far a bound is from what it bounds. Labels count as given, pseudo-labels
    too.

    Arguments:
        first: :math:`z_1`.
        second: :math:`z_2` of the same items.
        target: The label t of each item, or its pseudo-label.
        bootstrap: The number of resamples, at least 20.
        seed: Of folds, cells and resamples; a model has its own.
        progress: Show a bar if it takes more than two seconds.

    Raises:
        ValueError: For items that do not match, numbers that are not finite, labels of
            a single class, or fewer items than the estimator needs.

    References:
        Rethinking Self-Supervised Learning Within the Framework of Partial Information
        Decomposition (Mohamadi et al., 2024)
        https://arxiv.org/abs/2412.02121
    """
    views = _representations(first), _representations(second)
    t = _codes(target, *map(len, views))
    check_resamples(bootstrap)
    random = np.random.default_rng(seed)
    items, figures = by.sample(views, t, random, progress)
    draws = np.empty((bootstrap, 5))
    options = {"delay": PATIENCE, "disable": not progress, "leave": False}
    for b in tqdm(range(bootstrap), "resamples", unit="resample", **options):
        draws[b] = figures(random.integers(items, size=items), True)
    # among resamples the frequencies of all items are the truth
    truth = figures(np.arange(items), False)
    value = figures(np.arange(items), True) - (draws.mean(0) - truth)
    most, shifted = np.log(t.max() + 1), value + draws - draws.mean(0)
    again = np.stack([_named(draw, most) for draw in shifted])
    return Estimate(*intervals(_named(value, most), again))


def _named(figures: Float[np.ndarray, "5"], most: float) -> Float[np.ndarray, "8"]:
    """The figures of an `Estimate`, consistent with one another and with most H(t)."""
    first, second, both, redundant, entropy = figures.tolist()
    found = parts(first, second, both, redundant=redundant)
    informations = found.first, found.second, found.total
    return np.array([*found, *informations, min(entropy, most)])


def _representations(z: np.ndarray) -> Float[np.ndarray, "n dim"]:
    z = np.asarray(z, dtype=float)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(
            f"expected representations (n, dim), got {z.shape}; give one view of the "
            "items by z[:, 0], or z[:, None] for numbers"
        )
    if bad := int((~np.isfinite(z)).sum()):
        raise ValueError(
            f"expected finite numbers, got NaN or infinity in {bad} of {z.size}; look "
            "for a fit that has diverged, or leave these items out"
        )
    return z


def _codes(target: np.ndarray, first: int, second: int) -> Codes:
    """Labels as numbers from 0, one for each item of both views."""
    labels = np.asarray(target)
    if labels.ndim != 1 or not len(labels) == first == second:
        raise ValueError(
            f"expected two views and one label of the same items, got {first} and "
            f"{second} representations and labels {labels.shape}; give them in one "
            "order"
        )
    if labels.dtype.kind == "f" and not (labels == np.floor(labels)).all():
        raise ValueError(
            "expected classes, got labels that are not whole numbers; bin a continuous "
            "target first"
        )
    names, codes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"expected labels of at least two classes, got {names} only; shuffle the "
            "items before taking some of them"
        )
    return codes
