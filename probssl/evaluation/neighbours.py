"""Nearest neighbours by Euclidean distance, wherever the items lie."""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["nearest"]

ROUNDING = 1e6  # how many times the rounding of its square a distance's square is


def nearest(
    train: Float[np.ndarray, "n dim"],
    z: Float[np.ndarray, "m dim"],
    k: int,
    itself: bool = True,
) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
    r"""The distances of items to their k nearest training items, and the rows of these.

    In many dimensions a search multiplies matrices, which is fast, and rounds a squared
    distance by about :math:`2^{-52}` of the largest squared norm. Items whose k-th
    distance is not far above that are searched for again by differences.

    Arguments:
        itself: Whether an item is a neighbour of itself; without it, z are the training
            items.
    """
    from sklearn.neighbors import NearestNeighbors

    centre, asked = np.median(train, 0), k + (not itself)
    train, z = train - centre, z - centre
    distance, rows = NearestNeighbors(n_neighbors=asked).fit(train).kneighbors(z)
    norms = np.square(z).sum(1) + np.square(train).sum(1).max()
    near = distance[:, -1] ** 2 < ROUNDING * np.finfo(float).eps * norms
    if near.any():
        by_differences = NearestNeighbors(n_neighbors=asked, algorithm="kd_tree")
        distance[near], rows[near] = by_differences.fit(train).kneighbors(z[near])
    if itself:
        return distance, rows
    others = rows != np.arange(len(z))[:, None]
    others[others.all(1), -1] = False  # it has k copies that came first
    return distance[others].reshape(-1, k), rows[others].reshape(-1, k)
