"""Clustering: agreement of clusters of the representations with the classes."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..arguments import typed, whole
from ..arrays import Array, check_alike, classes, representations
from ..arrays import labels as each_label

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

__all__ = ["Clustering", "cluster", "gaussian_mixture", "matched_accuracy", "scaled"]

PRINCIPAL = 64  # components kept
RIDGE = 0.01  # of covariances


class Clustering(NamedTuple):
    """Agreement of clusters with classes.

    Arguments:
        accuracy: The share of items whose cluster is matched to their class.
        nmi: Normalised mutual information: over the mean of the two entropies.
        ari: The adjusted Rand index.
    """

    accuracy: float
    nmi: float
    ari: float


@typed
def cluster(
    z: Float[Array, "n dim"],
    labels: Shaped[Array, " n"],
    k: int | None = None,
    seed: int = 0,
) -> Clustering:
    """Agreement of a Gaussian mixture, fitted to z without labels, with the labels.

    The mixture has full covariances and the largest likelihood of 5 fits by EM, each
    started from k-means. It is invariant to rotation and scale of z: z is centred and
    scaled to a mean variance of 1, covariances get a ridge of 0.01, and beyond 64
    dimensions the leading 64 principal components are kept.

    Arguments:
        k: The number of components; as many as classes by default.
        seed: The seed of the k-means.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    check_alike(z, labels, "labels", "index")
    (z,) = representations(z)
    labels = classes(labels, len(z))
    k = len(np.unique(labels)) if k is None else k
    k = whole("k", k, 1, len(z), "the number of items is the most")
    assigned = _assigned(z, k, seed)
    return Clustering(
        matched_accuracy(assigned, labels),
        float(normalized_mutual_info_score(labels, assigned)),
        float(adjusted_rand_score(labels, assigned)),
    )


@typed
def matched_accuracy(
    assigned: Shaped[Array, " n"], labels: Shaped[Array, " n"]
) -> float:
    r"""Clustering accuracy: under the best one-to-one matching with classes.

    .. math:: \max_\pi \frac{1}{n} \sum_i 1[\pi(c_i) = y_i]

    Clusters in excess of the classes are unmatched, and vice versa.

    References:
        The Hungarian method for the assignment problem (Kuhn, 1955)
        https://doi.org/10.1002/nav.3800020109
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics.cluster import contingency_matrix

    check_alike(labels, assigned, "assigned", "index")
    y = each_label(labels, None)
    c = each_label(assigned, len(y), "assigned")
    together = contingency_matrix(y, c)
    matching = linear_sum_assignment(together, maximize=True)
    return float(together[matching].sum() / together.sum())


def _assigned(z: np.ndarray, k: int, seed: int) -> np.ndarray:
    from threadpoolctl import threadpool_limits

    distinct, assigned = np.unique(z, axis=0, return_inverse=True)
    if len(distinct) <= k:  # a collapsed encoder: the points are the clusters
        return assigned.ravel()
    # more threads are slower on small data
    with threadpool_limits(1 if z.size < 1_000_000 else None):
        return gaussian_mixture(k, seed, n_init=5).fit_predict(scaled(z))


def scaled(z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n axis"]:
    """z centred, at a mean variance of 1, on its leading 64 principal components."""
    z = z - z.mean(0)
    variances, axes = np.linalg.eigh(z.T @ z / len(z))  # in ascending order
    return z @ axes[:, -PRINCIPAL:] / np.sqrt(variances.mean())


def gaussian_mixture(k: int, seed: int, **options: Any) -> "GaussianMixture":
    """scikit-learn's mixture, with the ridge and the iterations used here."""
    from sklearn.mixture import GaussianMixture

    options |= {"max_iter": 1_000, "reg_covar": RIDGE, "random_state": seed}
    return GaussianMixture(k, **options)
