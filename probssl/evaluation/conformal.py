"""Conformal prediction: sets of classes that hold the right one with a set probability.

References:
    Algorithmic Learning in a Random World (Vovk, Gammerman and Shafer, 2005)
    https://doi.org/10.1007/b106715
    Least Ambiguous Set-Valued Classifiers With Bounded Error Levels (Sadinle, Lei and
    Wasserman, 2019)
    https://doi.org/10.1080/01621459.2017.1395341
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from ..arguments import between, positive, typed
from ..arrays import Array, check_alike, labels, representations, train_test
from ..estimates import Estimate, estimate
from .probes import fitted_probe

__all__ = ["PredictionSets", "prediction_sets"]

ROUNDING = 1e-12  # of a probability


class PredictionSets(NamedTuple):
    """A set of classes for each item.

    Arguments:
        sets: Whether each class is in the set of each item.
        classes: The classes, in the order of the columns.
        probability: p(class|z) by the probe, (item, class).
        threshold: The least probability of a class in a set.
    """

    sets: Bool[np.ndarray, "item class"]
    classes: Shaped[np.ndarray, " class"]
    probability: Float[np.ndarray, "item class"]
    threshold: float

    def __repr__(self) -> str:
        n, k = self.sets.shape
        mean = f"{self.sizes.mean():.2f} on average"
        return f"PredictionSets({n:,} items, {k} classes, sets of {mean})"

    @property
    def sizes(self) -> np.ndarray:
        """The number of classes in each set."""
        return self.sets.sum(1)

    def coverage(self, y: Shaped[Array, " item"]) -> Estimate:
        """The share of items whose class is in their set, with its standard error.

        Raises:
            ValueError: For a label that is none of the classes.
        """
        known = labels(y, len(self.sets))
        if unknown := sorted({*known.tolist()} - {*self.classes.tolist()}, key=str):
            raise ValueError(
                f"expected labels among the classes {self.classes[:5].tolist()} … of "
                f"the sets, got also {unknown[:5]}; code them alike, and leave items "
                "without a label, or of other classes, out"
            )
        return estimate((self.sets & (self.classes == known[:, None])).any(1) * 1.0)


@typed
def prediction_sets(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_calibration: Float[Array, "c dim"],
    y_calibration: Shaped[Array, " c"],
    z: Float[Array, "m dim"],
    *,
    error: float = 0.1,
    labels_per_class: int | None = None,
    penalty: float = 1.0,
    seed: int = 0,
) -> PredictionSets:
    r"""Split conformal prediction sets from a linear probe.

    With the probabilities p of the probe and the scores :math:`s_i = 1 - p(y_i \mid
    z_i)` of n calibration items, the set of an item is

    .. math:: C(z) = \{y : 1 - p(y \mid z) \le s_{(k)}\}, \qquad
        k = \lceil (n + 1)(1 - \alpha) \rceil

    with the k-th smallest score; all classes if k > n. If calibration and test items
    are exchangeable, whatever the probe,

    .. math:: 1 - \alpha \le P(y \in C(z)) \le 1 - \alpha + \frac{1}{n + 1},

    the upper bound where scores have no ties. This is on average over calibration sets
    and items, not for each class or item.

    Arguments:
        y_train: Labels, of all classes. As for all probes -1 is refused where classes
            have names, and otherwise a class like any other: leave items without a
            label out.
        z_calibration: Other labelled items than the training ones.
        z: The items whose classes are predicted.
        error: :math:`\alpha`, the probability that a set lacks the class.
        labels_per_class: How many labels of each class the probe is fitted to, drawn as
            by `few_label_probe`, with z scaled by all training items; None takes all.
        penalty: The ridge weight of `linear_probe`.
        seed: The seed of the drawn labels.

    Raises:
        ValueError: If `error` is not between 0 and 1, or a calibration item has a class
            that no training item has.
    """
    error = between("error", error, 0, 1, open=True)
    penalty = positive("penalty", penalty)
    check_alike(z_train, z, "z")
    data = train_test(z_train, y_train, z_calibration, y_calibration)
    train, y, held_out, y_held_out = data
    _, z = representations(train, z)
    probability, names = fitted_probe(train, y, penalty, labels_per_class, seed)
    if unknown := sorted({*y_held_out.tolist()} - {*names.tolist()}):
        raise ValueError(
            "expected calibration items of the classes of training items, got also "
            f"{unknown[:5]}; give labels of these in training"
        )
    own = probability(held_out)[names == y_held_out[:, None]]
    threshold = _threshold(own, error)
    found = probability(z)
    # Equal items differ by the rounding of products of matrices.
    return PredictionSets(found >= threshold - ROUNDING, names, found, threshold)


def _threshold(own: Float[np.ndarray, " n"], error: float) -> float:
    """The k-th largest probability of the calibration items' own classes; else 0."""
    n = len(own)
    k = math.ceil((n + 1) * (1 - error) - 1e-9)  # but for rounding
    return float(np.sort(own)[n - k]) if k <= n else 0.0
