"""Clustering: agreement of clusters of the representations with the classes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..arguments import whole
from ..arrays import Array, classes, plain, representations

__all__ = ["Clustering", "cluster", "matched_accuracy"]


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

    (z,) = representations(z)
    labels = classes(labels, len(z))
    k = len(np.unique(labels)) if k is None else k
    k = whole("k", k, 1, len(z), "the number of items is the most")
    assigned = _gaussian_mixture(z, k, seed)
    return Clustering(
        matched_accuracy(assigned, labels),
        float(normalized_mutual_info_score(labels, assigned)),
        float(adjusted_rand_score(labels, assigned)),
    )


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

    together = contingency_matrix(plain(labels), plain(assigned))
    matching = linear_sum_assignment(together, maximize=True)
    return float(together[matching].sum() / together.sum())


def _gaussian_mixture(z: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    distinct, assigned = np.unique(z, axis=0, return_inverse=True)
    if len(distinct) <= k:  # a collapsed encoder: the points are the clusters
        return assigned.ravel()

    z = z - z.mean(0)
    variances, axes = np.linalg.eigh(z.T @ z / len(z))  # in ascending order
    z = z @ axes[:, -64:] / np.sqrt(variances.mean())
    mixture = GaussianMixture(
        k, n_init=5, max_iter=1_000, reg_covar=0.01, random_state=seed
    )
    # more threads are slower on small data
    with threadpool_limits(1 if z.size < 1_000_000 else None):
        return mixture.fit_predict(z)
