"""All scores of a representation that need labels, in one go."""

import numpy as np
from jaxtyping import Float, Shaped

from ..arrays import Array, train_test
from .clustering import cluster
from .collapse import effective_rank
from .neighbours import knn
from .probes import FewLabel, few_label_probe, linear_probe

__all__ = ["scores", "scores_and_draws"]


def scores(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
    seed: int = 0,
    *,
    max_train: int | None = None,
) -> dict[str, float]:
    """Probes and neighbours from training to test; clusters and rank of the test part.

    The keys are linear_probe, few_label_probe (5 labels per class), few_label_probe_se
    (its standard error over 20 draws), knn (k = 5), cluster_accuracy, nmi, ari and
    effective_rank.

    Arguments:
        seed: Of the draws of labels, of the clustering and of `max_train`.
        max_train: Use at most so many training items, drawn at random; all by default.
    """
    return scores_and_draws(z_train, y_train, z_test, y_test, seed, max_train)[0]


def scores_and_draws(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
    seed: int = 0,
    max_train: int | None = None,
) -> tuple[dict[str, float], FewLabel]:
    """What `scores` returns, and the few-label probe with each of its draws."""
    z_train, y_train, z_test, y_test = train_test(z_train, y_train, z_test, y_test)
    if max_train is not None and max_train < len(z_train):
        random = np.random.default_rng(seed)
        kept = random.choice(len(z_train), max_train, replace=False)
        z_train, y_train = z_train[kept], y_train[kept]
    data = (z_train, y_train, z_test, y_test)
    few, clusters = (
        few_label_probe(*data, seed=seed),
        cluster(z_test, y_test, seed=seed),
    )
    found = {
        "linear_probe": linear_probe(*data),
        "few_label_probe": few.mean,
        "few_label_probe_se": few.standard_error,
        "knn": knn(*data),
        "cluster_accuracy": clusters.accuracy,
        "nmi": clusters.nmi,
        "ari": clusters.ari,
        "effective_rank": effective_rank(z_test),
    }
    return found, few
