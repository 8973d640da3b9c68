"""Information that classifiers read out of continuous representations."""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from .sample import Codes, Sample, surprise

__all__ = ["PATIENCE", "Classifier"]

PATIENCE = 2  # seconds before a progress bar is shown


class Classifier(NamedTuple):
    r"""Information that classifiers of t read out of z, on items they have not seen.

    .. math:: I(z; t) \ge H(t) + E \log r(t \mid z), \qquad
        R = \sum_t p(t) \min_i E\Big[\log \frac{r_i(t \mid z_i)}{p(t)} \Big| t\Big]

    with classifiers r of :math:`z_1`, of :math:`z_2` and of both side by side, each
    fitted to the other folds. In expectation the informations are lower bounds, short
    by :math:`E \, KL[p(t \mid z) \,\|\, r(t \mid z)]`: a linear classifier cannot see
    an exclusive or. R, U and S are minima and differences of such bounds and no bounds
    themselves: if the classifier of both is poor, S is too small; where the views tell
    equally much, R and S are too small and U too large, by what chance makes of it.

    Each z is standardised as the items fitted to. The frequencies of t, with the weight
    of one item, are mixed into r, so that nothing counts as impossible.

    Arguments:
        model: Anything with scikit-learn's `fit` and `predict_proba`; None is
            multinomial logistic regression.
        folds: The parts of the items, each of them held out once.
        measure: `"i_min"` for R as above, `"mmi"` for the smaller information. Both
            compare amounts, not contents: of views that tell equally much about each t
            neither has anything unique.

    References:
        Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
        https://arxiv.org/abs/1004.2515
    """

    model: Any = None
    folds: int = 5
    measure: Literal["i_min", "mmi"] = "i_min"

    def sample(
        self,
        views: tuple[np.ndarray, np.ndarray],
        target: Codes,
        random: np.random.Generator,
        progress: bool,
    ) -> Sample:
        """Fit to all folds but one, read the information of the items in that one."""
        if self.measure not in ("i_min", "mmi"):
            raise ValueError(
                f'expected "i_min" or "mmi", got {self.measure!r}; choose one, or take '
                "Clusters for others"
            )
        splits = self._splits(target, random)
        inputs, classes = (*views, np.hstack(views)), target.max() + 1
        scores = np.empty((len(inputs), len(target)))
        each = [(i, fit, out) for fit, out in splits for i in range(len(inputs))]
        options = {"delay": PATIENCE, "disable": not progress, "leave": False}
        for i, fit, out in tqdm(each, "classifiers", unit="fit", **options):
            scores[i, out] = self._scores(inputs[i], target, fit, out)

        def figures(chosen: Codes, corrected: bool) -> Float[np.ndarray, "5"]:
            t, own = target[chosen], surprise(target[chosen], classes)
            sums = [np.bincount(t, score[chosen], classes) for score in scores]
            specific = np.stack(sums) / len(t) + own
            informations = specific.sum(1)
            redundant = specific[:2].min(0).sum()
            if self.measure == "mmi":
                redundant = informations[:2].min()
            return np.array([*informations, redundant, own.sum()])

        return Sample(len(target), figures)

    def _splits(
        self, target: Codes, random: np.random.Generator
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The items fitted to and those held out, of each fold."""
        from sklearn.model_selection import StratifiedKFold

        fewest = np.bincount(target).min()
        if not 2 <= self.folds <= fewest:
            raise ValueError(
                f"expected from 2 folds to as many as the smallest class has items, "
                f"{fewest}, got {self.folds}; take other folds, or leave out small "
                "classes"
            )
        seed = int(random.integers(2**31))
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        return list(folds.split(target, target))

    def _scores(
        self, z: np.ndarray, target: Codes, fit: np.ndarray, out: np.ndarray
    ) -> Float[np.ndarray, " out"]:
        r""":math:`\log r(t \mid z)` of the items held out, each with its own t."""
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(max_iter=1_000) if self.model is None else self.model
        spread = z[fit].std(0)
        u = (z - z[fit].mean(0)) / np.where(spread > 0, spread, 1)
        fitted = clone(model, safe=False).fit(u[fit], target[fit])
        r = fitted.predict_proba(u[out])[np.arange(len(out)), target[out]]
        frequency = np.bincount(target[fit])[target[out]] / len(fit)
        return np.log(r + (frequency - r) / len(fit))
