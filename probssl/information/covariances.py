"""Jointly Gaussian variables, of which the covariance says all."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from .parts import Decomposition, parts

__all__ = ["gaussian"]

SINGULAR = 1e-12  # below, the smallest eigenvalue of correlations is rounding error
ROUNDING = 1e-6  # how far from symmetric a float32 covariance may be


def gaussian(
    covariance: Float[np.ndarray, "dim dim"],
    first: Sequence[int],
    second: Sequence[int],
    target: Sequence[int],
) -> Decomposition:
    r"""The parts for jointly Gaussian variables, by minimum mutual information (MMI).

    .. math:: R = \min\{I(z_1; t), I(z_2; t)\}, \qquad
        I(a; t) = \frac12 \log \frac{|\Sigma_a| \, |\Sigma_t|}{|\Sigma_{at}|}

    The view that tells less has nothing unique. For a target of one dimension this is
    what every measure gives whose parts are at least 0 and whose R depends on the pairs
    :math:`(z_1, t)` and :math:`(z_2, t)` alone, :math:`I_\text{min}` and BROJA among
    them. For a target of several dimensions it is a choice: other measures can find
    something unique in both views.

    Arguments:
        covariance: The covariance of all variables, in any units.
        first: The dimensions of :math:`z_1`, as indices into `covariance`.
        second: Those of :math:`z_2`.
        target: Those of t.

    Raises:
        ValueError: If the matrix is no covariance or is singular in these dimensions,
            or if the lists are empty, overlap or point outside it.

    References:
        Exploration of synergistic and redundant information sharing in static and
        dynamical Gaussian systems (Barrett, 2015)
        https://arxiv.org/abs/1411.2832
    """
    sets = _indices(first, second, target, dim=len(np.atleast_1d(covariance)))
    used = np.concatenate(sets)
    correlation = _correlation(np.asarray(covariance, dtype=float), used)
    ends = np.cumsum([len(indices) for indices in sets])
    one, two, goal = np.split(np.arange(len(used)), ends[:-1])

    def log_determinant(*chosen: np.ndarray) -> float:
        rows = np.concatenate(chosen)
        return float(np.linalg.slogdet(correlation[np.ix_(rows, rows)])[1])

    def information(*views: np.ndarray) -> float:
        apart = log_determinant(*views) + log_determinant(goal)
        return (apart - log_determinant(*views, goal)) / 2

    alone = information(one), information(two)
    return parts(*alone, information(one, two), redundant=min(alone))


def _indices(*lists: Sequence[int], dim: int) -> list[np.ndarray]:
    sets = [np.asarray(indices) for indices in lists]
    if any(indices.ndim != 1 or not indices.size for indices in sets):
        raise ValueError(
            "expected lists of one index or more for first, second and target, got "
            f"shapes {[indices.shape for indices in sets]}; name each one's dimensions"
        )
    used = np.concatenate(sets)
    integers = all(indices.dtype.kind in "iu" for indices in sets)
    if not integers or used.min() < 0 or used.max() >= dim:
        raise ValueError(
            f"expected indices from 0 to {dim - 1}, got {used.tolist()}; count the "
            "rows of the covariance from 0"
        )
    if len(set(used.tolist())) < len(used):
        raise ValueError(
            f"expected lists that do not overlap, got {[s.tolist() for s in sets]}; "
            "give each dimension to one of first, second and target"
        )
    return sets


def _correlation(covariance: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The correlations of these dimensions, in their order."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(
            f"expected a square covariance, got shape {covariance.shape}; give that of "
            "all variables together"
        )
    chosen = covariance[np.ix_(used, used)]
    variance = chosen.diagonal()
    if not np.isfinite(chosen).all() or not (variance > 0).all():
        raise ValueError(
            f"expected finite numbers and variances above 0, got variances {variance}; "
            "leave out what does not vary"
        )
    scale = np.sqrt(variance)
    correlation = chosen / scale / scale[:, None]
    if np.abs(correlation - correlation.T).max() > ROUNDING:
        raise ValueError("expected a symmetric covariance, got another; symmetrise it")
    correlation = (correlation + correlation.T) / 2
    least = np.linalg.eigvalsh(correlation)[0]
    if least < SINGULAR:
        raise ValueError(
            "expected a positive definite covariance, got correlations with smallest "
            f"eigenvalue {least:.2g}; leave out dimensions that follow from others"
        )
    return correlation
