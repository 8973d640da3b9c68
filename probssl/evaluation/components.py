"""The number of clusters: cross-validated likelihood of Gaussian mixtures.

References:
    Model Selection for Probabilistic Clustering Using Cross-Validated Likelihood
    (Smyth, 2000)
    https://doi.org/10.1023/A:1008940618127
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from ..arguments import typed, whole
from ..arrays import Array, representations
from ..bars import shown
from .clustering import gaussian_mixture, scaled

if TYPE_CHECKING:
    import pandas

__all__ = ["NumberOfComponents", "number_of_components"]

K_MEANS_STARTS = 3
Covariance = Literal["full", "tied", "diag", "spherical"]


class NumberOfComponents(NamedTuple):
    """Cross-validated log-densities of mixtures by their number of components.

    Arguments:
        best: The number with the highest log-density.
        fewest: The smallest number within one standard error of the difference from
            the best (the one-standard-error rule).
        candidates: All numbers, in ascending order.
        log_density: The mean held-out log-density of an item for each, in nats.
        difference: The log-density minus that of the best.
        standard_error: The standard error of the difference, over items.
    """

    best: int
    fewest: int
    candidates: tuple[int, ...]
    log_density: Float64[np.ndarray, " candidate"]
    difference: Float64[np.ndarray, " candidate"]
    standard_error: Float64[np.ndarray, " candidate"]

    @property
    def table(self) -> "pandas.DataFrame":
        """A row for each candidate."""
        import pandas

        columns = ("log_density", "difference", "standard_error")
        index = pandas.Index(self.candidates, name="components")
        return pandas.DataFrame({c: getattr(self, c) for c in columns}, index)


@typed
def number_of_components(
    z: Float[Array, "n dim"],
    candidates: Iterable[int] = range(1, 31),
    *,
    folds: int = 5,
    covariance: Covariance = "tied",
    seed: int = 0,
    progress: bool = True,
) -> NumberOfComponents:
    r"""Choose the number of clusters of z by cross-validated likelihood.

    The log-density of an item comes from mixtures fitted to the other folds,

    .. math:: \frac1n \sum_i \log p_K(z_i), \qquad
        p_K(z) = \sum_{k=1}^K \pi_k N(z \mid m_k, \Sigma)

    Differences are paired by item. Their standard error does not include the variation
    of the fits, and a cluster that is not normal may take several components. If the
    largest candidate is the best, give larger ones.

    The choice is invariant to shift, rotation and scale of z, which is centred, scaled
    and reduced as by `cluster`. Log-densities are of this z.

    Arguments:
        candidates: The numbers K of components (clusters) to try.
        folds: The number of folds.
        covariance: ``"tied"``, one for all components, whose posterior is a linear
            softmax; ``"full"``, one for each; or ``"diag"`` and ``"spherical"``, which
            depend on the axes less or not at all.
        seed: The seed of the folds and of the k-means that start the mixtures.
        progress: Whether to show a progress bar after 3 seconds.

    Raises:
        ValueError: If a number is out of range, or z has too few distinct items.
    """
    from sklearn.model_selection import KFold
    from threadpoolctl import threadpool_limits
    from tqdm.auto import tqdm

    (points,) = representations(z)
    numbers = _checked(candidates, folds, points)
    points = scaled(points)
    split = KFold(folds, shuffle=True, random_state=seed).split(points)
    fits = [(row, *parts) for parts in split for row in range(len(numbers))]
    log_density = np.empty((len(numbers), len(points)))
    options = {"n_init": K_MEANS_STARTS, "covariance_type": covariance}
    bar = tqdm(fits, "mixtures", delay=3, leave=False, **shown(progress))
    with threadpool_limits(1):  # more threads are slower on small data
        for row, train, test in bar:
            mixture = gaussian_mixture(numbers[row], seed, **options)
            mixture.fit(points[train])
            log_density[row, test] = mixture.score_samples(points[test])

    mean = log_density.mean(1)
    best = int(mean.argmax())
    paired = log_density - log_density[best]
    error = paired.std(1, ddof=1) / np.sqrt(len(points))
    difference = paired.mean(1)
    fewest = int((difference >= -error).argmax())
    return NumberOfComponents(
        numbers[best], numbers[fewest], numbers, mean, difference, error
    )


def _checked(candidates: Iterable[int], folds: int, z: np.ndarray) -> tuple[int, ...]:
    folds = whole("folds", folds, 2, len(z), "5 is usual")
    most, hint = len(z) - -(-len(z) // folds), "a mixture is fitted to so many items"
    numbers = {whole("candidates", k, 1, most, hint) for k in candidates}
    distinct = len(np.unique(z, axis=0))
    if not numbers or distinct < 2 * max(numbers):
        raise ValueError(
            f"expected candidates, and at least twice as many distinct items, got "
            f"{sorted(numbers)} and {distinct}; lower the candidates, or look for a "
            "collapse of the representations"
        )
    return tuple(sorted(numbers))
