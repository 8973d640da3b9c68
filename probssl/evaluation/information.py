r"""The mutual information :math:`I(a; b)` of two views' representations, in nats.

All estimates are invariant to a common scale and rotation of a and b.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from ..arguments import typed, whole
from ..arrays import Array, centred, check_alike, representations
from ..estimates import Estimate, Undefined, estimate
from .collapse import normalised

__all__ = ["gaussian_information", "info_nce", "maximiser"]
__all__ += ["nearest_neighbour_information"]

MIN_RESIDUAL = 1e-12  # below, 1 - ρ² is rounding error
DISTANCES_AT_ONCE = 2**21
MAX_TIED = 0.01  # share of items; a density has none but by rounding
PARTITIONS = 6  # random ones, for a standard error
BRACKETS = 9  # points of a grid around the global maximum


def info_nce(a: Float[Array, "n dim"], b: Float[Array, "n dim"]) -> Estimate:
    r"""The InfoNCE lower bound with a von Mises-Fisher kernel, at its best temperature.

    .. math:: I \ge \max_\tau E_i \log
        \frac{e^{a_i^\top b_i / \tau}}{\frac1n \sum_j e^{a_i^\top b_j / \tau}},
        \qquad \lVert a \rVert = \lVert b \rVert = 1,

    averaged over both directions. It cannot exceed :math:`\log n`. The temperature is
    fitted to the same items, which adds an optimistic bias of about 1/n nats; 1/τ is
    sought up to a million over the mean squared distance. Memory is O(n²).

    Raises:
        Undefined: If a representation is zero.

    References:
        Representation Learning with Contrastive Predictive Coding (van den Oord et al.,
        2018)
        https://arxiv.org/abs/1807.03748
        On Variational Bounds of Mutual Information (Poole et al., 2019)
        https://arxiv.org/abs/1905.06922
    """
    check_alike(a, b, "b")  # by the columns: the cosine pairs them
    a, b = (normalised(z) for z in representations(*_pairs(a, b)))
    n = len(a)
    matched, square = np.square(a - b).sum(1), _squares(a, b)
    typical = square.mean()
    if not typical > 0:
        raise Undefined("all representations have one direction, without information")
    nearest = [square.min(axis, keepdims=True) for axis in (1, 0)]

    def kernels(inverse: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for axis, near in zip((1, 0), nearest, strict=True):
            kernel = np.exp(-0.5 * inverse * (square - near))
            total = kernel.sum(axis, keepdims=True)
            apart = 0.5 * inverse * (near.ravel() - matched)
            yield kernel, total, apart - np.log(total.ravel() / n)

    def bound(inverse: float) -> float:
        return float(np.mean([values for *_, values in kernels(inverse)]))

    # concave in 1 / τ
    best = maximiser(bound, 1e-3 / typical, 1e6 / typical)
    # as a negative, an item lowers the values by its share of their sums
    adds = [
        values - (kernel / total).sum(1 - axis) + 1
        for axis, (kernel, total, values) in zip((1, 0), kernels(best), strict=True)
    ]
    return estimate(np.mean(adds, 0))


def gaussian_information(
    a: Float[Array, "n dim"], b: Float[Array, "n dim"]
) -> Estimate:
    r"""The mutual information of two Gaussians, from their canonical correlations.

    .. math:: I = -\frac12 \sum_i \log(1 - \rho_i^2)
        = \frac12 \log \frac{|\Sigma_a| \, |\Sigma_b|}{|\Sigma|}

    minus its exact bias for Gaussian a and b (log-determinants of Wishart matrices).
    Dimensions without variance are left out. If a and b are marginally Gaussian it is
    a lower bound, up to sampling error.

    Raises:
        Undefined: If there are as many dimensions as items, or one of a is a linear
            function of b.
    """
    a, b = (_uncorrelated(z) for z in _pairs(a, b))
    left, rho, right = np.linalg.svd(a.T @ b)
    freedom, dims = len(a) - 1, (a.shape[1], b.shape[1])
    if freedom < sum(dims):
        raise Undefined(
            f"{len(a)} items are too few for the covariance of {dims[0]} + {dims[1]} "
            "dimensions"
        )
    rest = 1 - rho**2
    if rest.min() < MIN_RESIDUAL:
        raise Undefined("one view is a linear function of the other: I is infinite")
    bias = [_log_determinant_bias(freedom, dim) for dim in (*dims, sum(dims))]
    value = -0.5 * np.log(rest).sum() - (bias[0] + bias[1] - bias[2]) / 2

    p, q = ((z @ axes[:, : len(rho)]) for z, axes in ((a, left), (b, right.T)))
    apart = (p**2 + q**2 - 2 * rho * p * q) / rest - p**2 - q**2
    influence = -0.5 * freedom * apart.sum(1)
    return estimate(value + influence - influence.mean())


@typed
def nearest_neighbour_information(
    a: Float[Array, "n dim"], b: Float[Array, "n dim"], k: int = 3
) -> Estimate:
    r"""The KSG estimate (Kraskov, Stögbauer and Grassberger) by nearest neighbours.

    .. math:: \hat I = \psi(k) + \psi(n)
        - E_i\big[\psi(n_a(i) + 1) + \psi(n_b(i) + 1)\big],

    where :math:`n_a(i)` counts the items whose a is nearer to :math:`a_i` than the k-th
    neighbour in the maximum of the two distances, each in units of the median distance
    of items to their mean: the units of a and of b change nothing, while columns of
    one of them should have one unit. It is nearly unbiased for independent
    a and b, and too low for strong dependence or many dimensions. Time is O(n²), memory
    O(n). The standard error is from the spread of the estimates of random thirds of the
    items, with the variance proportional to 1/n; NaN for fewer than 6 items. The
    jackknife would not do: the estimate is not a smooth function of the items.

    The estimate is for densities, whose distances have no ties. Counts, codes and grey
    levels have, and so have repeated items.

    Arguments:
        k: The rank of the neighbour: larger k has less variance and more bias.

    Raises:
        Undefined: If an item has k copies, or if more than 1 % of the items have
            others as far away as their k-th neighbour, up to rounding in float32.

    References:
        Estimating mutual information (Kraskov, Stögbauer and Grassberger, 2004)
        https://arxiv.org/abs/cond-mat/0305641
        Estimation of mutual information for real-valued data with error bars and
        controlled bias (Holmes and Nemenman, 2019)
        https://arxiv.org/abs/1903.09280
    """
    first, second = _pairs(a, b)
    n = len(first)
    k = whole("k", k, 1, n - 2, "the most is two less than the items")
    first, second = centred(first), centred(second)
    if not first.any() or not second.any():
        raise Undefined("all representations are equal, without information")
    first, second = _of_one_unit(first), _of_one_unit(second)
    value, tied = _nearest_neighbours(first, second, k)
    if tied > MAX_TIED:
        raise Undefined(
            f"{tied:.0%} of the items have several k-th neighbours, or k copies: "
            "discrete or repeated items have no density"
        )
    parts, random, variances = min(3, n // 3), np.random.default_rng(0), []
    for _ in range(PARTITIONS if parts > 1 else 0):
        each = [
            _nearest_neighbours(first[rows], second[rows], min(k, len(rows) - 2))[0]
            for rows in np.array_split(random.permutation(n), parts)
        ]
        variances.append(np.var(each, ddof=1) / parts)
    error = math.sqrt(np.mean(variances)) if variances else math.nan
    return Estimate(value, error)


def _of_one_unit(z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
    """Centred z divided by the median of its lengths."""
    length = np.linalg.norm(z, axis=1)
    return z / (np.median(length) or length.max())


def _nearest_neighbours(
    first: Float[np.ndarray, "n a"], second: Float[np.ndarray, "n b"], k: int
) -> tuple[float, float]:
    """The estimate, and the share of items with ties; 1 if one has k copies."""
    from scipy.spatial.distance import cdist
    from scipy.special import digamma

    n, values, tied = len(first), np.empty(len(first)), 0.0
    rounding = [np.finfo(np.float32).eps * np.abs(z).max() for z in (first, second)]
    for rows in np.array_split(np.arange(n), -(-n * n // DISTANCES_AT_ONCE)):
        # by differences: a matrix product would break ties at random
        distances = [cdist(z[rows], z) for z in (first, second)]
        for distance in distances:
            distance[np.arange(len(rows)), rows] = np.inf  # no neighbour of itself
        reach = np.partition(np.maximum(*distances), k - 1, axis=1)[:, k - 1 : k]
        counts = [(distance < reach).sum(1) for distance in distances]
        values[rows] = digamma(k) - sum(digamma(count + 1) for count in counts)
        alike = [
            (np.abs(distance - reach) <= error).sum(1) > 1
            for distance, error in zip(distances, rounding, strict=True)
        ]
        tied += n if not reach.all() else np.logical_or(*alike).sum()
    return float(values.mean() + digamma(n)), min(1.0, tied / n)


def maximiser(
    function: Callable[[float], float], low: float, high: float, xatol: float = 1e-6
) -> float:
    """Return the maximiser of a function of a positive number, between low and high.

    The best of a geometric grid is refined by Brent's method between its neighbours.

    Arguments:
        xatol: The tolerance in the logarithm.
    """
    from scipy.optimize import minimize_scalar

    step = math.log(high / low) / (BRACKETS - 1)
    points = [low * math.exp(i * step) for i in range(BRACKETS)]
    best = math.log(max(points, key=function))
    ends = max(math.log(low), best - step), min(math.log(high), best + step)
    found = minimize_scalar(
        lambda t: -function(math.exp(t)), bounds=ends, options={"xatol": xatol}
    )
    return math.exp(found.x)


def _pairs(a: Array, b: Array) -> tuple[np.ndarray, np.ndarray]:
    check_alike(a, b, "b", "index")
    (a,), (b,) = representations(a), representations(b)
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(
            f"expected two representations of the same 3 items or more, got {len(a)} "
            f"and {len(b)}; embed the views of the same items, in one order"
        )
    return a, b


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs, by products of numbers near zero."""
    centre = b.mean(0)
    a, b = a - centre, b - centre
    norms = np.square(a).sum(1)[:, None] + np.square(b).sum(1)
    return np.maximum(norms - 2 * a @ b.T, 0)


def _uncorrelated(z: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the centred columns of z, in any units."""
    z = centred(z)
    scale = np.abs(z).max(0)
    if not scale.any():
        raise Undefined("all representations are equal, without information")
    z = z[:, scale > 0] / scale[scale > 0]
    columns, spread, _ = np.linalg.svd(z / z.std(0), full_matrices=False)
    return columns[:, spread > np.finfo(float).eps * max(z.shape) * spread[0]]


def _log_determinant_bias(freedom: int, dim: int) -> float:
    r"""The bias :math:`E \log |S| - \log |\Sigma|` for Gaussians."""
    from scipy.special import digamma

    each = digamma((freedom - np.arange(dim)) / 2) - np.log(freedom / 2)
    return float(each.sum())
