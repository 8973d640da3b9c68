"""Information between cells of representations and a target."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .sample import Codes, Sample, surprise
from .tables import discrete

__all__ = ["Clusters"]


class Clusters(NamedTuple):
    r"""Information between cells of z and t, from a table of how often they meet.

    The cells are those of K-means, fitted to some of the items; the others are counted.
    A cell is a function of z: it tells at most what z tells, by the data processing
    inequality. What is lost is how the items of one cell differ, and that is most of it
    where clusters have little to do with t. The parts are those of the cells, and need
    not be in the order of those of z.

    A large table looks informative by chance. The jackknife removes that to first order
    in 1/n from informations and from I_min; with few items for each entry of the table
    the total and S remain too large, by more than their intervals show.

    Arguments:
        cells: The number of cells of each view. With C classes the table has cells² C
            entries, and at least so many items must be left to count.
        measure: As in `discrete`. `"i_min"` compares amounts. `"broja"` compares
            contents: views that tell equally much can both have something unique. It
            minimises anew for each resample, in tenths of a second for 4 cells and
            classes, in seconds for 10 of each.
        share: The share of the items that the cells are fitted to.
    """

    cells: int = 8
    measure: Literal["broja", "i_min"] = "i_min"
    share: float = 0.2

    def sample(
        self,
        views: tuple[np.ndarray, np.ndarray],
        target: Codes,
        random: np.random.Generator,
        progress: bool,
    ) -> Sample:
        """Fit the cells to some of the items, and count the others."""
        if self.measure not in ("broja", "i_min"):
            raise ValueError(
                f'expected "broja" or "i_min", got {self.measure!r}; choose one, or '
                "take Classifier for others"
            )
        classes = int(target.max()) + 1
        fit, out = self._split(len(target), classes, random)
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
            entropy = surprise(t[chosen], classes).sum()
            return np.array([*specific.sum(1), redundant, entropy])

        return Sample(len(out), figures)

    def _split(
        self, n: int, classes: int, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """The items that cells are fitted to, and those that are counted."""
        if self.cells < 2 or not 0 < self.share < 1:
            raise ValueError(
                f"expected 2 cells or more and a share between 0 and 1, got "
                f"{self.cells} and {self.share}; take Clusters() for working ones"
            )
        fit = int(self.share * n)
        if fit < self.cells or n - fit < self.cells**2 * classes:
            raise ValueError(
                f"expected at least {self.cells} items to fit cells to and "
                f"{self.cells}² x {classes} to count, got {fit} and {n - fit}; take "
                "fewer cells or give more items"
            )
        order = random.permutation(n)
        return order[:fit], order[fit:]

    def _codes(
        self, fit: np.ndarray, out: np.ndarray, random: np.random.Generator
    ) -> Codes:
        from sklearn.cluster import KMeans

        if (different := len(np.unique(fit, axis=0))) < self.cells:
            raise ValueError(
                f"expected at least {self.cells} different representations to fit "
                f"cells to, got {different}; take fewer cells"
            )
        seed = int(random.integers(2**31))
        means = KMeans(self.cells, n_init=4, random_state=seed).fit(fit)
        return means.predict(out)


def _specific(
    counts: Int[np.ndarray, "z target"], corrected: bool
) -> Float[np.ndarray, " target"]:
    r"""What z tells about each t, :math:`\sum_z p(z, t) \log p(z, t) / p(z) p(t)`.

    Corrected, it is the jackknife's :math:`n s - (n - 1) \bar s`, the mean being over
    s without one of the n items.
    """
    from scipy.special import xlogy

    def terms(pair: np.ndarray, of_z: np.ndarray) -> np.ndarray:
        return xlogy(pair, pair) - xlogy(pair, of_z)

    n, of_z, of_t = counts.sum(), counts.sum(1, keepdims=True), counts.sum(0)
    sums = terms(counts, of_z).sum(0)
    whole = sums - xlogy(of_t, of_t / n)
    if not corrected:
        return whole / n
    # without an item of z and t: row z of the table changes, and n and the count of t
    z, t = np.nonzero(counts)
    item = np.eye(len(of_t), dtype=int)[t]
    row, less = counts[z] - item, of_t - item
    changed = sums + terms(row, of_z[z] - 1) - terms(counts[z], of_z[z])
    without = changed - xlogy(less, less / (n - 1))
    return whole - counts[z, t] / n @ without
