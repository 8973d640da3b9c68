"""Novelty: scores of z far from known items, how well a score detects them, and sets.

References:
    A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks (Hendrycks and Gimpel, 2017)
    https://arxiv.org/abs/1610.02136
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..arguments import positive, typed, whole
from ..arrays import Array, finite, representations
from ..estimates import Estimate, Undefined
from .information import maximiser
from .neighbours import nearest

__all__ = ["Detection", "detection", "log_kernel_density", "neighbour_distance"]

ACCEPTED = 0.95  # of the known items, at the threshold of the false positive rate
LEFT_OUT = 500  # items whose density chooses the bandwidth
DISTANCES_AT_ONCE = 2**22


class Detection(NamedTuple):
    """How well a score tells novel items from known ones.

    Arguments:
        auroc: The area under the receiver operating characteristic, with its standard
            error over items: the probability that a novel item scores higher, a tie
            counting half.
        aupr: The average precision, with the novel items as positives: the area under
            the precision-recall curve. That of chance is their share.
        fpr95: The share of novel items that are accepted at the threshold which accepts
            95 % of the known ones; smaller is better.
    """

    auroc: Estimate
    aupr: float
    fpr95: float


def detection(known: Float[Array, " n"], novel: Float[Array, " m"]) -> Detection:
    r"""AUROC, AUPR and FPR95 of a score that should be larger for novel items.

    .. math:: \mathrm{AUROC} = P(s' > s) + \tfrac12 P(s' = s)

    for scores s of known and s' of novel items. Its variance is that of a U-statistic
    of two samples, from the placements of each item among those of the other sample.

    Arguments:
        known: The scores of items in distribution, at least 2.
        novel: The scores of items out of distribution, at least 2.

    Raises:
        ValueError: For scores that are not finite, or not (n,) with at least 2 items.

    References:
        Comparing the Areas under Two or More Correlated Receiver Operating
        Characteristic Curves (DeLong, DeLong and Clarke-Pearson, 1988)
        https://doi.org/10.2307/2531595
        Enhancing The Reliability of Out-of-distribution Image Detection in Neural
        Networks (Liang, Li and Srikant, 2018), for FPR95
        https://arxiv.org/abs/1706.02690
    """
    from scipy.stats import rankdata
    from sklearn.metrics import average_precision_score

    parts = []
    for name, values in (("known", known), ("novel", novel)):
        scores = finite(values, name)
        if scores.ndim != 1 or len(scores) < 2:
            raise ValueError(
                f"expected scores (n,) of at least 2 items in {name}, got shape "
                f"{scores.shape}; give one number for each item"
            )
        parts.append(scores)
    n, m = map(len, parts)
    both = np.concatenate(parts)
    ranks = rankdata(both)
    placed_known = 1 - (ranks[:n] - rankdata(parts[0])) / m
    placed_novel = (ranks[n:] - rankdata(parts[1])) / n
    error = math.sqrt(placed_known.var(ddof=1) / n + placed_novel.var(ddof=1) / m)
    threshold = np.sort(parts[0])[math.ceil(ACCEPTED * n) - 1]
    return Detection(
        Estimate(float(placed_novel.mean()), error),
        float(average_precision_score(np.arange(n + m) >= n, both)),
        float((parts[1] <= threshold).mean()),
    )


@typed
def neighbour_distance(
    z_train: Float[Array, "n dim"], z: Float[Array, "m dim"], k: int = 5
) -> Float[np.ndarray, " m"]:
    """The Euclidean distance of each item to its k-th nearest neighbour in training.

    References:
        Out-of-Distribution Detection with Deep Nearest Neighbors (Sun et al., 2022)
        https://arxiv.org/abs/2204.06507
    """
    z_train, z = representations(z_train, z)
    k = whole("k", k, 1, len(z_train), "the number of training items is the most")
    return nearest(z_train, z, k)[0][:, -1]


@typed
def log_kernel_density(
    z_train: Float[Array, "n dim"],
    z: Float[Array, "m dim"],
    bandwidth: float | None = None,
) -> Float[np.ndarray, " m"]:
    r"""The log kernel density of each item, in nats, with a normal kernel.

    .. math:: \log \hat p(z) = \log \frac1n \sum_i N(z \mid z_i, h^2 I)

    The bandwidth h maximises the leave-one-out log-density of at most 500 training
    items, at equal distances in their order, given all the others. On a unit sphere the
    kernel is von Mises-Fisher's of concentration 1/h², up to a constant. Memory and
    time grow with n · m.

    Arguments:
        bandwidth: The bandwidth h; None chooses it.

    Raises:
        Undefined: If all training items are equal, or most are copies of others, for
            which the best bandwidth is zero.

    References:
        On the Choice of Smoothing Parameters for Parzen Estimators of Probability
        Density Functions (Duin, 1976)
        https://doi.org/10.1109/TC.1976.1674577
    """
    z_train, z = representations(z_train, z)
    n = len(z_train)
    if bandwidth is not None:
        h = positive("bandwidth", bandwidth)
    elif n < 2:
        raise ValueError(
            f"expected at least 2 training items to choose a bandwidth, got {n}; give "
            "bandwidth=…"
        )
    else:
        h = _bandwidth(z_train)
    rows = max(1, DISTANCES_AT_ONCE // n)
    parts = [
        _log_mean(_squares(z[i : i + rows], z_train), h, z.shape[1], n)
        for i in range(0, len(z), rows)
    ]
    return np.concatenate(parts)


def _bandwidth(z: Float[np.ndarray, "n dim"]) -> float:
    n, dim = z.shape
    some = np.unique(np.linspace(0, n - 1, min(n, LEFT_OUT)).astype(int))
    square = _squares(z[some], z)
    square[np.arange(len(some)), some] = np.inf
    nearest = square.min(1)
    if not np.median(nearest) > 0:
        raise Undefined(
            "expected representations that differ, got copies of half of them, whose "
            "kernel density has no best bandwidth; leave the copies out, or give "
            "bandwidth=…"
        )
    far = math.sqrt(square[np.isfinite(square)].mean())
    low = 1e-2 * math.sqrt(np.median(nearest) / dim)
    return maximiser(
        lambda h: float(_log_mean(square, h, dim, n - 1).mean()), low, 10 * far
    )


def _squares(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "a b"]:
    from scipy.spatial.distance import cdist

    return cdist(a, b, "sqeuclidean")


def _log_mean(
    square: Float[np.ndarray, "m n"], h: float, dim: int, n: int
) -> Float[np.ndarray, " m"]:
    """The log-mean of n normal kernels; infinite distances count nothing."""
    from scipy.special import logsumexp

    constant = math.log(n) + dim * (math.log(h) + math.log(2 * math.pi) / 2)
    found: np.ndarray = logsumexp(-square / (2 * h * h), axis=1) - constant
    return found
