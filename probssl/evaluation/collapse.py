"""Collapse: effective rank, RankMe, LiDAR, alignment and uniformity."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..arguments import at_least, positive
from ..arrays import (
    Array,
    centred,
    check_alike,
    finite,
    remark_swapped,
    representations,
)
from ..estimates import Undefined

__all__ = ["AlignmentUniformity", "active_units", "alignment_uniformity"]
__all__ += ["effective_rank", "lidar", "rankme"]
__all__ += ["alignment_uniformity_values", "effective_rank_values", "normalised"]


class AlignmentUniformity(NamedTuple):
    """Mean squared distance of views, and log-mean Gaussian kernel between items."""

    alignment: float
    uniformity: float


def effective_rank(z: Float[Array, "n dim"]) -> float:
    r"""Effective rank of the centred representations, from 1 to dim.

    .. math:: \exp\Bigl(-\sum_i p_i \log p_i\Bigr),
        \qquad p_i = \sigma_i / \sum_j \sigma_j,

    with the singular values :math:`\sigma_i`, not their squares, of z less its mean.
    It is invariant to shift, rotation and scale of z, and 0 if z is constant.

    References:
        The effective rank: a measure of effective dimensionality (Roy and Vetterli,
        2007)
        https://ieeexplore.ieee.org/document/7098875
    """
    return float(effective_rank_values(z).mean())


def active_units(z: Float[Array, "n dim"], least: float = 0.01) -> int:
    r"""The number of active units: dimensions in which q(z|x) depends on x.

    .. math:: \# \{d : \operatorname{Var}_x E_q[z_d \mid x] > 0.01\}

    Fewer than the dimensions of z show a posterior collapse. The threshold is meant for
    a prior whose z has about unit variance.

    Arguments:
        z: The means of q(z|x), as `embed` returns them.
        least: The threshold.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016)
        https://arxiv.org/abs/1509.00519
    """
    (z,) = representations(z)
    return int((z.var(0) > at_least("least", least, 0)).sum())


def effective_rank_values(z: Float[Array, "n dim"]) -> Float[np.ndarray, " n"]:
    r"""The effective rank plus its influence function, whose mean is the rank.

    The influence of item i on a singular value is
    :math:`d \log \sigma_j^2 = n u_{ij}^2 - 1`, u the left singular vectors.
    """
    (z,) = representations(z, squared=False)
    n = len(z)
    axes, spectrum, _ = np.linalg.svd(centred(z), full_matrices=False)
    if not spectrum[0] > 0:
        return np.zeros(n)
    # below, singular values are rounding errors
    kept = spectrum > np.finfo(float).eps * max(z.shape) * spectrum[0]
    p = spectrum[kept] / spectrum[kept].sum()
    rank = _exp_entropy(p)
    grad = -(np.log(p) + np.log(rank)) * p / 2  # of the entropy by log σ²
    return rank * (1 + (n * np.square(axes[:, kept]) - 1) @ grad)


def rankme(z: Float[Array, "n dim"]) -> float:
    r"""RankMe, the effective rank of the representations without centring.

    .. math:: \exp\Bigl(-\sum_i p_i \log p_i\Bigr),
        \qquad p_i = \sigma_i / \sum_j \sigma_j + 10^{-7}

    It is 0 if z is 0.

    References:
        RankMe: Assessing the downstream performance of pretrained self-supervised
        representations by their rank (Garrido et al., 2023)
        https://arxiv.org/abs/2210.02885
    """
    (z,) = representations(z, squared=False)
    spectrum = np.linalg.svd(z, compute_uv=False)
    return _exp_entropy(spectrum / spectrum.sum() + 1e-7) if spectrum[0] else 0.0


def lidar(z: Float[Array, "n view dim"], ridge: float = 1e-4) -> float:
    r"""LiDAR: the effective rank of what tells items apart, beside their views.

    With the covariance :math:`\Sigma_b` of the means of the n items, and that of views
    within items, :math:`\Sigma_w + \delta I`, each over n and n (V - 1),

    .. math:: \exp\Bigl(-\sum_i p_i \log p_i\Bigr), \qquad
        p_i = \lambda_i / \sum_j \lambda_j + 10^{-7},

    with the eigenvalues :math:`\lambda_i` of :math:`\Sigma_w^{-1/2} \Sigma_b
    \Sigma_w^{-1/2}`. A direction in which views differ as items do counts little, as it
    does not in `effective_rank`. It is at most n - 1, and 0 if all means are equal.

    Arguments:
        z: Representations of at least 2 views of each of at least 2 items; a tuple of
            arrays (n, dim) has one for each view.
        ridge: :math:`\delta`.

    References:
        LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures
        (Thilak et al., 2024)
        https://arxiv.org/abs/2312.04000
    """
    z, ridge = _views_of(z), positive("ridge", ridge)
    from scipy.linalg import eigh

    n, views, dim = z.shape
    (flat,) = representations(z.reshape(-1, dim))
    z = centred(flat).reshape(z.shape)
    means = z.mean(1)
    if np.ptp(means, axis=0).max() <= 8 * np.finfo(float).eps * np.abs(z).max():
        return 0.0  # but for rounding
    rest = (z - means[:, None]).reshape(-1, dim)
    between = means.T @ means / n
    within = rest.T @ rest / (n * (views - 1)) + ridge * np.eye(dim)
    spectrum = eigh(between, within, eigvals_only=True).clip(0)
    return _exp_entropy(spectrum / spectrum.sum() + 1e-7)


def alignment_uniformity(z: Float[Array, "n view dim"]) -> AlignmentUniformity:
    r"""Alignment of views, uniformity of items on the unit sphere; smaller is better.

    .. math:: E \lVert u_{iv} - u_{iw} \rVert^2 \quad (v \ne w), \qquad
        \log E \exp(-2 \lVert u_{iv} - u_{jv} \rVert^2) \quad (i \ne j),

    for :math:`u = z / \lVert z \rVert`; the uniformity is averaged over the views. Time
    grows with the square of n, memory with n. A tuple of arrays (n, dim) has one for
    each view.

    References:
        Understanding contrastive representation learning through alignment and
        uniformity on the hypersphere (Wang and Isola, 2020)
        https://arxiv.org/abs/2005.10242
    """
    apart, uniformity = alignment_uniformity_values(z)
    return AlignmentUniformity(float(apart.mean()), float(uniformity.mean()))


def alignment_uniformity_values(
    z: Float[Array, "n view dim"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Both plus their influence functions, whose means are the two values."""
    u = normalised(_views_of(z))
    apart = 2 * np.square(u - u.mean(1, keepdims=True)).sum((1, 2)) / (u.shape[1] - 1)
    uniformity = [_uniformity(u[:, view]) for view in range(u.shape[1])]
    return apart, np.mean(uniformity, 0)


def _views_of(z: Array) -> Float[np.ndarray, "n view dim"]:
    """Representations of views: an array, or a tuple of one array for each view."""
    several = type(z) is tuple
    if isinstance(z, list) and any(hasattr(part, "__array__") for part in z):
        raise TypeError(
            "expected representations as an array (n, view, dim), or a tuple of one "
            "array (n, dim) for each view, got a list of arrays, which may be items or "
            "views; give tuple(z) if they are views"
        )
    for part in z[1:] if several else ():
        check_alike(z[0], part, "views", "index")
    z = finite(z)
    z = np.swapaxes(z, 0, 1) if several and z.ndim == 3 else z
    if z.ndim != 3 or z.shape[0] < 2 or z.shape[1] < 2 or not z.shape[2]:
        raise ValueError(
            "expected representations (n, view, dim), at least 2 items with 2 views, "
            f"got {z.shape}; stack the views by np.stack([a, b], axis=1)"
        )
    if not several:
        remark_swapped(z.shape, "representations")
    return z


def normalised(z: Float[np.ndarray, "*n dim"]) -> Float[np.ndarray, "*n dim"]:
    """z on the unit sphere; raises `Undefined` where one is zero."""
    largest = np.abs(z).max(-1, keepdims=True)
    if not largest.all():
        raise Undefined(
            f"expected directions, got {(largest == 0).sum()} representations that are "
            "zero; leave these items out, or do not normalise"
        )
    z = z / largest  # whose squares neither overflow nor underflow
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def _uniformity(u: np.ndarray, rows: int = 1_024) -> np.ndarray:
    """Log-mean of exp(-2 |u_i - u_j|²) = exp(4 u_i·u_j - 4) over the pairs i ≠ j."""
    n = len(u)
    blocks = (u[start : start + rows] @ u.T for start in range(0, n, rows))
    kernels = [np.exp(4 * block - 4).sum(1) for block in blocks]
    each = (np.concatenate(kernels) - 1) / (n - 1)  # an item beside itself gives 1
    return np.log(each.mean()) + 2 * (each / each.mean() - 1)


def _exp_entropy(p: np.ndarray) -> float:
    return float(np.exp(-np.sum(p * np.log(p))))
