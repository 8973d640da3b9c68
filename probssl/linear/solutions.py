"""The optimal linear maps of both paradigms, in closed form from the moments."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from .moments import Moments

__all__ = ["Solution", "agreement", "error", "joint_embedding", "reconstruction"]


class Solution(NamedTuple):
    """Encoder and decoder, the whole spectrum, and the means of x and of the views."""

    encoder: Float[Array, "k e"]
    decoder: Float[Array, "d k"]
    spectrum: Float[Array, " rank"]
    mean: Float[Array, " d"]
    view_mean: Float[Array, " e"]


def joint_embedding(
    moments: Moments, k: int | None = None, ridge: float = 0.0
) -> Solution:
    r"""W of joint embedding, from :math:`S^{-1/2} G S^{-1/2} = Q \Omega Q^\top`.

    The generalised eigenproblem of (G, S) on the range of S: directions in which the
    views do not vary are left out. `ridge` times the mean variance is added to S. There
    is no decoder.

    Raises:
        ValueError: If views vary in fewer than k directions, or all views of each image
            agree to within rounding.
    """
    root = _inverse_root(moments, k, ridge)
    changed = moments.within.diagonal() > 1e-12 * moments.total.diagonal()
    if not changed[np.any(root != 0, 1)].any():
        raise ValueError(
            "expected views that change the images, but all views of each image agree, "
            "so that any W is a solution; give other views, or use ReconstructionSSL"
        )
    omega, directions = np.linalg.eigh(root.T @ moments.between @ root)
    encoder = (root @ directions[:, ::-1][:, :k]).T
    none = np.empty((len(moments.mean), 0))
    means = moments.mean, moments.view_mean
    return Solution(encoder * _signs(encoder), none, omega[::-1], *means)


def reconstruction(
    moments: Moments, k: int | None = None, ridge: float = 0.0
) -> Solution:
    r""":math:`E = P_k^\top S^{-1/2}, D = R_k \Phi_k` with :math:`B S^{-1/2} = R \Phi
    P^\top`.

    Directions in which the views do not vary are left out. `ridge` times the mean
    variance is added to S.

    Raises:
        ValueError: If views vary in fewer than k directions, or images have fewer than
            k features.
    """
    root = _inverse_root(moments, k, ridge)
    if k is not None and k > len(moments.mean):
        raise ValueError(
            f"expected at most {len(moments.mean)} components, the number of features "
            f"of an image, got {k}"
        )
    left, phi, right = np.linalg.svd(moments.cross @ root, full_matrices=False)
    encoder = (root @ right[:k].T).T
    signs = _signs(encoder)
    decoder = left[:, :k] * phi[:k] * signs[:, 0]
    return Solution(encoder * signs, decoder, phi, moments.mean, moments.view_mean)


def agreement(moments: Moments, encoder: Float[Array, "k e"]) -> float:
    r"""Joint embedding's objective, :math:`E \lVert W \tau_1 - W \tau_2 \rVert^2`."""
    return 2 * float(np.sum((encoder @ moments.within) * encoder))


def error(
    moments: Moments, encoder: Float[Array, "k e"], decoder: Float[Array, "d k"]
) -> float:
    r"""Reconstruction's objective, :math:`E \lVert x - D E \tau(x) \rVert^2`."""
    both = decoder @ encoder
    explained = np.sum(both * moments.cross)
    size = np.sum((both @ moments.total) * both)
    return float(np.trace(moments.data) - 2 * explained + size)


def _inverse_root(
    moments: Moments, k: int | None, ridge: float
) -> Float[Array, "e rank"]:
    """A root of the pseudo-inverse of S, whose rank must be at least k."""
    dim, eps = len(moments.total), np.finfo(float).eps
    variance, mean = moments.total.diagonal(), np.abs(moments.view_mean)
    varies = variance > np.maximum((8 * eps * mean) ** 2, np.finfo(float).tiny)
    if not varies.any():
        raise ValueError(
            "expected features that vary, but all of them are constant, or so small "
            "that their squares underflow; give other data, or rescale them"
        )
    total = moments.total + ridge * np.trace(moments.total) / dim * np.eye(dim)
    total, scale = total[np.ix_(varies, varies)], np.sqrt(total.diagonal()[varies])
    # By correlations, so that no feature is lost for its units.
    values, vectors = np.linalg.eigh(total / scale / scale[:, None])
    # Rounding leaves directions without variance up to half of dim * eps.
    kept = values > 10 * values[-1] * dim * eps
    if k is not None and k > kept.sum():
        raise ValueError(
            f"expected at most {kept.sum()} components, the number of directions in "
            f"which views of {moments.n} rows vary, got {k}; give more rows, or a ridge"
        )
    still = vectors[:, ~kept] / scale[:, None]
    still = np.linalg.qr(still / np.linalg.norm(still, axis=0))[0]
    root = vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None]
    found = np.zeros((dim, root.shape[1]))
    found[varies] = root - still @ (still.T @ root)  # within the span of the views
    return found


def _signs(rows: Float[Array, "k e"]) -> Float[Array, "k 1"]:
    """The signs of the largest entries, which make the solution unique."""
    largest = np.abs(rows).argmax(1)[:, None]
    return np.where(np.take_along_axis(rows, largest, 1) < 0, -1.0, 1.0)
