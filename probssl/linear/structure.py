r"""How far features are from Gaussian noise that is independent of all others.

Which directions are relevant is not known without labels, but noise that is a sum of
many small causes has no shape of its own: it is Gaussian, and independent of what an
image shows. Clusters, strokes and edges are neither.

New Approximations of Differential Entropy for Independent Component Analysis and
Projection Pursuit (Hyvärinen, 1998)
Advances in Neural Information Processing Systems 10, page 273
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

__all__ = ["is_structured", "structure"]

LEAST, SHARE = 0.005, 0.05  # in nats, and of the most structured feature
LEVEL = 0.01  # of the test that no feature is structured
# Of |s| and s exp(-s²/2) for a normal s whose mean and variance are estimated.
MEAN = math.sqrt(2 / math.pi)
EVEN, ODD = 1 - 3 / math.pi, 3**-1.5 - 1 / 8


def structure(
    features: Float[Array, "n p"],
) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
    r"""Nats by which each feature departs from independent noise, and the p-value.

    With standardised features s and :math:`a = |s|`, of mean m and correlations
    :math:`\rho`,

    .. math:: \frac{E[s_i e^{-s_i^2 / 2}]^2}{2 (3^{-3/2} - 1/8)}
        + \frac{(E\, a_i - m)^2}{2 (1 - 3 / \pi)}
        + \frac12 \sum_{j \ne i} \big[\rho(a_i, a_j)^2 + \rho(a_i, s_j)^2
        + \rho(s_i, a_j)^2\big], \qquad m = \sqrt{2 / \pi}.

    The first two are Hyvärinen's negentropy of one feature, which heavy tails do not
    rule; the others are the second order of mutual information with the rest. Under
    Gaussian noise 2n times the sum is one of as many squares of standard normals: that
    gives the p-value, and the mean, which is subtracted.
    """
    from scipy import stats

    n, many = features.shape
    s = _standardised(features)
    a = np.abs(s)
    odd = np.mean(s * np.exp(-(s**2) / 2), 0) ** 2 / ODD
    even = (a.mean(0) - MEAN) ** 2 / EVEN
    a = _standardised(a)
    sizes, mixed = a.T @ a / n, a.T @ s / n
    shared = sum(_off_diagonal(part) for part in (sizes, mixed, mixed.T))
    index, freedom = (odd + even + shared) / 2, 2 + 3 * (many - 1)
    return index - freedom / (2 * n), stats.chi2.sf(2 * n * index, freedom)


def is_structured(
    index: Float[Array, " p"], p_value: Float[Array, " p"], largest: float
) -> Bool[Array, " p"]:
    """Whether features are more than noise, in a way that matters.

    Arguments:
        largest: The index of the most structured feature known: a trace of it in what
            is noise otherwise is no structure.
    """
    return (index > max(LEAST, SHARE * largest)) & (p_value < LEVEL / len(index))


def _standardised(x: Float[Array, "n p"]) -> Float[Array, "n p"]:
    """Of mean 0 and variance 1; what is constant is 0."""
    x, spread = x - x.mean(0), x.std(0)
    return np.divide(x, spread, where=spread > 0, out=np.zeros_like(x))


def _off_diagonal(part: Float[Array, "p p"]) -> Float[Array, " p"]:
    return np.square(part).sum(1) - np.square(np.diagonal(part))
