"""Estimators of information from items: classifiers, and counts of K-means cells.

Each fits what it needs to some items, and returns a `Sample`: the information figures
of the items left, and of any bootstrap resample of them.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator
from tqdm import tqdm

from ..arguments import between, choice, having, whole
from ..arrays import finite
from ..bars import shown
from .decomposition import SUM_ERROR, discrete

__all__ = ["BAR_DELAY", "Classifier", "Clusters", "Codes", "Estimator", "Sample"]

BAR_DELAY = 2  # seconds before a progress bar is shown

Codes = Int[np.ndarray, " n"]
Pair = tuple[np.ndarray, np.ndarray]  # two views, each (n, dim)


class Sample(NamedTuple):
    r"""The items that are counted, and the figures of any of them.

    Arguments:
        items: The number of items.
        figures: Takes indices of items and a flag, and returns :math:`I(z_1; t),
            I(z_2; t), I(z_1, z_2; t), R, H(t)`. With the flag it corrects the bias of
            taking frequencies for probabilities, as far as it can.
    """

    items: int
    figures: Callable[[Codes, bool], Float[np.ndarray, "5"]]


class Estimator(Protocol):
    """Anything with a method `sample`, which fits what it needs to some items."""

    def sample(
        self, views: Pair, target: Codes, random: Generator, progress: bool
    ) -> Sample:
        """The sample for two views and a target from 0 to C - 1."""
        ...


class Classifier(NamedTuple):
    r"""Information by cross-validated classifiers of t from z.

    .. math:: I(z; t) \ge H(t) + E \log r(t \mid z), \qquad
        R = \sum_t p(t) \min_i E\Big[\log \frac{r_i(t \mid z_i)}{p(t)} \Big| t\Big]

    with classifiers r of :math:`z_1`, of :math:`z_2` and of both concatenated, each
    fitted to the other folds. In expectation the informations are lower bounds, short
    by :math:`E \, KL[p(t \mid z) \,\|\, r(t \mid z)]`: a linear classifier cannot see
    an exclusive or. R, U and S are minima and differences of such bounds, and no bounds
    themselves: if the classifier of both is poor, S is too small; where the views are
    equally informative, chance makes R and S too small and U too large.

    A model that is worse than the frequencies of t has a bound below 0, which counts as
    0; a warning names it. Neighbours and trees are such models unless calibrated.

    Each z is standardised by the items of the fit. The frequencies of t, with the
    weight of one item, are mixed into r, so that no class has probability 0.

    Arguments:
        model: Anything with scikit-learn's `fit` and `predict_proba`; None is its
            `LogisticRegression`, with the penalty of its default C = 1.
        folds: The number of cross-validation folds.
        measure: `"i_min"` for R as above, `"mmi"` for the smaller information. Both
            compare amounts, not contents: if two views are equally informative about
            each t, neither has anything unique.
    """

    model: Any = None
    folds: int = 5
    measure: Literal["i_min", "mmi"] = "i_min"

    def sample(
        self, views: Pair, target: Codes, random: Generator, progress: bool
    ) -> Sample:
        """Fit to all folds but one, and score the items of that one, for each fold."""
        from sklearn.model_selection import StratifiedKFold

        choice("measure", self.measure, ("i_min", "mmi"), "Clusters has others")
        if self.model is not None:
            kind = "a classifier of scikit-learn with fit and predict_proba"
            for name in ("fit", "predict_proba"):
                having("model", self.model, name, kind, "as SVC(probability=True) has")
        fewest = int(np.bincount(target).min())
        hint = (
            f"the smallest class has {fewest} items: take fewer folds, or leave out "
            "small classes"
        )
        small = "leave out classes of one item, which no fold would both fit and score"
        whole("the number of items of the smallest class", fewest, 2, hint=small)
        whole("folds", self.folds, 2, fewest, hint)
        seed = int(random.integers(2**31))
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        inputs, classes = (*views, np.hstack(views)), target.max() + 1
        scores = np.empty((len(inputs), len(target)))
        splits = folds.split(target, target)
        each = [(i, fit, out) for fit, out in splits for i in range(len(inputs))]
        options = {"delay": BAR_DELAY, "leave": False, **shown(progress)}
        for i, fit, out in tqdm(each, "classifiers", unit="fit", **options):
            scores[i, out] = self._scores(inputs[i], target, fit, out)
        if self.model is not None:
            frequency = np.bincount(target) / len(target)
            self._remark(scores - np.log(frequency)[target])

        def figures(chosen: Codes, corrected: bool) -> Float[np.ndarray, "5"]:
            t, own = target[chosen], _surprise(target[chosen], classes)
            sums = [np.bincount(t, score[chosen], classes) for score in scores]
            specific = np.stack(sums) / len(t) + own
            informations = specific.sum(1)
            redundant = specific[:2].min(0).sum()
            if self.measure == "mmi":
                redundant = informations[:2].min()
            return np.array([*informations, redundant, own.sum()])

        return Sample(len(target), figures)

    def _remark(self, gains: Float[np.ndarray, "3 n"]) -> None:
        """Warn where the classifiers are worse than the frequencies of t by far."""
        mean, error = gains.mean(1), gains.std(1) / gains.shape[1] ** 0.5
        names = ("z1", "z2", "both")
        poor = [n for n, worse in zip(names, mean < -5 * error, strict=True) if worse]
        if poor:
            warnings.warn(
                f"expected classifiers that beat the frequencies of t, got a mean "
                f"log r(t|z) from {', '.join(poor)} that is worse by up to "
                f"{-mean.min():.3g} nats: {type(self.model).__name__} is "
                "overconfident, and these informations count as 0; wrap it in "
                "scikit-learn's CalibratedClassifierCV",
                stacklevel=5,
            )

    def _scores(
        self, z: np.ndarray, target: Codes, fit: np.ndarray, out: np.ndarray
    ) -> Float[np.ndarray, " out"]:
        r""":math:`\log r(t \mid z)` of the items held out, each with its own t."""
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        model = LogisticRegression(max_iter=1_000) if self.model is None else self.model
        scaler = StandardScaler().fit(z[fit])
        fitted = clone(model, safe=False).fit(scaler.transform(z[fit]), target[fit])
        r = finite(fitted.predict_proba(scaler.transform(z[out])), "predict_proba")
        expected = len(out), int(target.max()) + 1
        if r.shape != expected or r.min() < 0 or abs(r.sum(1) - 1).max() > SUM_ERROR:
            kind = type(fitted).__name__
            sums = f", sums to {r.sum(-1).max():.3g}, least {r.min():.3g}"
            raise ValueError(
                f"expected probabilities {expected} from predict_proba, a row for each "
                f"item and a column for each class, got {r.shape}{sums} from {kind}; "
                "return softmax(scores, axis=1)"
            )
        order = getattr(fitted, "classes_", np.arange(r.shape[1]))  # of the columns
        r = r[np.arange(len(out)), np.argsort(order)[target[out]]]
        frequency = np.bincount(target[fit])[target[out]] / len(fit)
        return np.log(r + (frequency - r) / len(fit))


class Clusters(NamedTuple):
    r"""Information by counting K-means cells of z against t.

    K-means is fitted to some of the items; the others are counted. A cell is a function
    of z, so that by the data processing inequality it has at most the information of z.
    What differs within a cell is lost, which is most of the information where clusters
    have little to do with t. The parts belong to the cells, and need not be ordered
    like those of z.

    A large table looks informative by chance. The jackknife removes this bias to first
    order in 1/n from informations and from I_min. With few items for each entry of the
    table the total and S remain too large, by more than their intervals show.

    Arguments:
        cells: The number of K-means cells (clusters) of each view. With C classes the
            table has cells² C entries, and at least so many items must be left to
            count.
        measure: As in `discrete`. `"i_min"` compares amounts. `"broja"` compares
            contents: two equally informative views can both have something unique. It
            minimises anew for each resample, in tenths of a second for 4 cells and
            classes, in seconds for 10 of each.
        share: The share of the items to which K-means is fitted.
    """

    cells: int = 8
    measure: Literal["broja", "i_min"] = "i_min"
    share: float = 0.2

    def sample(
        self, views: Pair, target: Codes, random: Generator, progress: bool
    ) -> Sample:
        """Fit the cells to some of the items, and count the others."""
        choice("measure", self.measure, ("broja", "i_min"), "Classifier has others")
        whole("cells", self.cells, 2)
        n, classes = len(target), int(target.max()) + 1
        fitted = int(between("share", self.share, 0, 1, open=True) * n)
        if fitted < self.cells or n - fitted < self.cells**2 * classes:
            raise ValueError(
                f"expected at least {self.cells} items to fit cells to and "
                f"{self.cells}² x {classes} to count, got {fitted} and {n - fitted}; "
                "take fewer cells or give more items"
            )
        fit, out = np.split(random.permutation(n), [fitted])
        one, two = (self._codes(z[fit], z[out], random) for z in views)
        shape, t = (self.cells, self.cells, classes), target[out]
        where = np.ravel_multi_index((one, two, t), shape)

        def figures(chosen: Codes, corrected: bool) -> Float[np.ndarray, "5"]:
            table = np.bincount(where[chosen], minlength=np.prod(shape)).reshape(shape)
            pairs = table.sum(1), table.sum(0), table.reshape(-1, classes)
            specific = np.stack([_specific(pair, corrected) for pair in pairs])
            redundant = specific[:2].min(0).sum()
            if self.measure == "broja":
                redundant = discrete(table / len(chosen)).redundant
            entropy = _surprise(t[chosen], classes).sum()
            return np.array([*specific.sum(1), redundant, entropy])

        return Sample(len(out), figures)

    def _codes(self, fit: np.ndarray, out: np.ndarray, random: Generator) -> Codes:
        from sklearn.cluster import KMeans

        if (different := len(np.unique(fit, axis=0))) < self.cells:
            raise ValueError(
                f"expected at least {self.cells} different representations to fit "
                f"cells to, got {different}; take fewer cells"
            )
        seed = int(random.integers(2**31))
        centre = fit.mean(0)  # distances by products need numbers near zero
        means = KMeans(self.cells, n_init=4, random_state=seed).fit(fit - centre)
        return means.predict(out - centre)


def _surprise(target: Codes, classes: int) -> Float[np.ndarray, " target"]:
    r""":math:`-p(t) \log p(t)` of each class, with frequencies for probabilities."""
    from scipy.special import entr

    return entr(np.bincount(target, minlength=classes) / len(target))


def _specific(
    counts: Int[np.ndarray, "z target"], corrected: bool
) -> Float[np.ndarray, " target"]:
    r"""The information about each t, :math:`\sum_z p(z, t) \log p(z, t) / p(z) p(t)`.

    Corrected, it is the jackknife's :math:`n s - (n - 1) \bar s`, where :math:`\bar s`
    is the mean of s over leaving out one of the n items.
    """
    from scipy.special import xlogy

    def terms(pair: np.ndarray, of_z: np.ndarray) -> np.ndarray:
        return xlogy(pair, pair) - xlogy(pair, of_z)

    n, of_z, of_t = counts.sum(), counts.sum(1, keepdims=True), counts.sum(0)
    sums = terms(counts, of_z).sum(0)
    full = sums - xlogy(of_t, of_t / n)
    if not corrected:
        return full / n
    # without an item of z and t: row z of the table changes, and n and the count of t
    z, t = np.nonzero(counts)
    item = np.eye(len(of_t), dtype=int)[t]
    row, less = counts[z] - item, of_t - item
    changed = sums + terms(row, of_z[z] - 1) - terms(counts[z], of_z[z])
    without = changed - xlogy(less, less / (n - 1))
    return full - counts[z, t] / n @ without
