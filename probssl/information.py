r"""Partial information decomposition: what two views tell of a target, in four parts.

.. math:: I(z_1, z_2; t) = R + U_1 + U_2 + S, \qquad I(z_1; t) = R + U_1,
    \qquad I(z_2; t) = R + U_2

R is redundant (either view tells it), U is unique (one view tells it, the other does
not) and S is synergistic (only both together tell it). There are three equations for
four numbers: a measure of one of them gives the rest. All are in nats.

References:
    Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
    https://arxiv.org/abs/1004.2515
    Rethinking Self-Supervised Learning Within the Framework of Partial Information
    Decomposition (Mohamadi et al., 2024)
    https://arxiv.org/abs/2412.02121
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Decomposition", "discrete", "gaussian"]

GAP, STEPS = 1e-11, 200  # nats that the minimum may be too large; for each weight
NOTHING = 1e-16  # probabilities below change no part by more than rounding does
SINGULAR = 1e-12  # below, the smallest eigenvalue of correlations is rounding error
ROUNDING = 1e-6  # how far from one the sum of float32 probabilities may be


class Decomposition(NamedTuple):
    r"""The four parts of :math:`I(z_1, z_2; t)`, in nats."""

    redundant: float
    unique_1: float
    unique_2: float
    synergistic: float

    @property
    def total(self) -> float:
        r"""The information of both, :math:`I(z_1, z_2; t)`."""
        return sum(self)

    @property
    def first(self) -> float:
        r"""The information of the first alone, :math:`I(z_1; t) = R + U_1`."""
        return self.redundant + self.unique_1

    @property
    def second(self) -> float:
        r"""The information of the second alone, :math:`I(z_2; t) = R + U_2`."""
        return self.redundant + self.unique_2


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

    def log_determinant(*parts: np.ndarray) -> float:
        rows = np.concatenate(parts)
        return float(np.linalg.slogdet(correlation[np.ix_(rows, rows)])[1])

    def information(*parts: np.ndarray) -> float:
        apart = log_determinant(*parts) + log_determinant(goal)
        return (apart - log_determinant(*parts, goal)) / 2

    alone = information(one), information(two)
    return _parts(*alone, information(one, two), redundant=min(alone))


def discrete(
    joint: Float[np.ndarray, "first second target"],
    measure: Literal["broja", "i_min"] = "broja",
) -> Decomposition:
    r"""The parts for discrete variables with probabilities :math:`p(z_1, z_2, t)`.

    `"broja"` takes as unique what one view tells and the other does not under every q
    that has p's pairs :math:`(z_1, t)` and :math:`(z_2, t)`:

    .. math:: U_1 = \min_q I_q(t; z_1 \mid z_2) = \min_q I_q(t; z_1, z_2) - I(t; z_2)

    The minimum is exact to 1e-11 nats. Time grows with the cube, memory with the square
    of the number of values of :math:`(z_1, z_2, t)`: a thousand of them take seconds,
    some thousands minutes.

    `"i_min"` takes as redundant what the view that tells less about a value t tells, on
    average over t. It compares amounts, not contents: of two independent bits,
    :math:`t = (z_1, z_2)`, it calls one redundant.

    .. math:: R = \sum_t p(t) \min_i \sum_{z_i} p(z_i \mid t)
        \log \frac{p(z_i \mid t)}{p(z_i)}

    Example:
        The exclusive or of two fair bits, of which one alone tells nothing:

        >>> xor = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]]) / 4
        >>> print(f"{discrete(xor).synergistic / np.log(2):.6f} bit")
        1.000000 bit

    Raises:
        ArithmeticError: If the minimum is not found, which is a defect.
        ValueError: If `joint` has other than three axes or is no distribution, or there
            is no such measure.

    References:
        Quantifying unique information (Bertschinger et al., 2014)
        https://arxiv.org/abs/1311.2852
        Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
        https://arxiv.org/abs/1004.2515
    """
    p = _probabilities(joint)
    pairs = p.sum(1), p.sum(0)
    specific = [_specific_information(pair) for pair in pairs]
    alone = float(specific[0].sum()), float(specific[1].sum())
    both = float(_specific_information(p.reshape(-1, p.shape[2])).sum())
    if measure == "i_min":
        redundant = float(np.minimum(*specific).sum())
    elif measure == "broja":
        redundant = (
            alone[0] + alone[1] - _least_information(np.where(p < NOTHING, 0, p))
        )
    else:
        raise ValueError(f'expected "broja" or "i_min", got {measure!r}; choose one')
    return _parts(*alone, both, redundant=redundant)


def _parts(
    first: float, second: float, both: float, *, redundant: float
) -> Decomposition:
    """The parts, all of which are at least 0 but for rounding."""
    first, second = max(first, 0.0), max(second, 0.0)
    both = max(both, first, second)
    redundant = min(max(redundant, first + second - both, 0.0), first, second)
    unique_1, unique_2 = first - redundant, second - redundant
    # `both` and `first` before `unique_2`: no difference below zero by rounding
    synergistic = max(both - first - unique_2, 0.0)
    return Decomposition(redundant, unique_1, unique_2, synergistic)


def _specific_information(
    pair: Float[np.ndarray, "z target"],
) -> Float[np.ndarray, " target"]:
    r"""What z tells about each t, :math:`\sum_z p(z, t) \log p(z, t) / p(z) p(t)`."""
    from scipy.special import xlogy

    apart = pair.sum(1, keepdims=True) * pair.sum(0)
    ratio = np.divide(pair, apart, out=np.ones_like(pair), where=pair > 0)
    return xlogy(pair, ratio).sum(0)


def _least_information(p: Float[np.ndarray, "first second target"]) -> float:
    r"""The least :math:`I_q(t; z_1, z_2)` of all q with the pairs of p.

    It is :math:`H(t) + \min_q f(q)` with the convex :math:`f(q) = \sum q \log q(t \mid
    z_1, z_2)`. The minimum may lie on the boundary, so that Newton's method follows the
    minima of :math:`f - \mu \sum \log q`, which are too large by at most :math:`\mu`
    for each variable. Over :math:`\mu` that is self-concordant, since :math:`|f'''|
    \le 3 f''` times the step's length for the barrier: damped steps always stay inside.
    """
    from scipy.special import entr

    target, first, second = p.sum((0, 1)), p.sum(1).T[:, :, None], p.sum(0).T[:, None]
    inside = (first > 0) & (second > 0)
    where = np.argwhere(inside)  # (t, z1, z2) of each variable
    _, cell = np.unique(where[:, 1:], axis=0, return_inverse=True)
    q = (first * second)[inside] / target[where[:, 0]]
    weight = 1.0
    while weight * len(q) > GAP:
        weight *= 0.01
        q = _centred(q, where, cell, weight)
    return float((q * _log_conditional(q, cell)).sum() + entr(target).sum())


def _log_conditional(q: np.ndarray, cell: np.ndarray) -> np.ndarray:
    r""":math:`\log q(t \mid z_1, z_2)`, which is the gradient of f."""
    return np.log(q / np.bincount(cell, q)[cell])


def _centred(
    q: Float[np.ndarray, " variable"],
    where: np.ndarray,
    cell: np.ndarray,
    weight: float,
) -> Float[np.ndarray, " variable"]:
    r"""The minimum of :math:`f(q) - \mu \sum \log q`, :math:`\mu` being `weight`."""
    for _ in range(STEPS):
        slope = _log_conditional(q, cell) - weight / q
        step, decrement = _newton(q, slope, where, cell, weight)
        sure = 1 / (1 + decrement)
        length = min(1.0, 0.95 / max((-step / q).max(), 0.95))
        while length > sure:
            there = q + length * step
            ahead = (_log_conditional(there, cell) - weight / there) @ step
            if ahead <= 0.5 * abs(slope @ step):
                break  # not far beyond the minimum along the step
            length /= 2
        q = q + max(length, sure) * step
        if decrement < 0.25:
            return q
    raise ArithmeticError(f"the least information was not found in {STEPS} steps")


def _newton(
    q: np.ndarray, slope: np.ndarray, where: np.ndarray, cell: np.ndarray, weight: float
) -> tuple[Float[np.ndarray, " variable"], float]:
    """Newton's step that keeps both pairs, and how long it is in the metric there."""
    from scipy.linalg import cho_factor, cho_solve

    moves = _moves(q, where)
    if not moves.shape[1]:
        return np.zeros_like(q), 0.0
    cells = np.zeros((cell.max() + 1, moves.shape[1]))
    np.add.at(cells, cell, moves)
    curvature = moves.T @ ((1 / q + weight / q**2)[:, None] * moves)
    curvature -= cells.T @ (cells / np.bincount(cell, q)[:, None])
    scale = 1 / np.sqrt(curvature.diagonal())
    gradient = scale * (slope @ moves)
    factor = cho_factor(scale[:, None] * curvature * scale)
    solution = -cho_solve(factor, gradient)
    decrement = np.sqrt(max(-gradient @ solution, 0.0) / weight)
    return moves @ (scale * solution), float(decrement)


def _moves(q: np.ndarray, where: np.ndarray) -> Float[np.ndarray, "variable move"]:
    """The changes of q that keep both pairs, as columns of -1, 0 and 1.

    For each t the variables are the edges between values of z1 and of z2. A spanning
    tree of the largest ones follows from the others: each of these makes one move, in
    which it is the smallest. So tiny probabilities stay exact.
    """
    from scipy.linalg import block_diag
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    blocks, nodes = [], where.max(0)[1:].sum() + 2
    for t in np.unique(where[:, 0]):
        here = where[:, 0] == t
        ends = where[here, 1], where[here, 2] + nodes - where[:, 2].max() - 1
        lengths = 1 - np.log(q[here])  # about 1 or more: a zero would be no edge
        graph = coo_array((lengths, ends), shape=(nodes, nodes)).tocsr()
        tree = minimum_spanning_tree(graph).tocoo()
        follows = np.isin(ends[0] * nodes + ends[1], tree.row * nodes + tree.col)
        incidence = np.zeros((nodes, len(follows)))
        incidence[ends, np.arange(len(follows))] = 1
        block = np.eye(len(follows))[:, ~follows]
        sums = incidence[:, ~follows]
        block[follows] = -np.round(np.linalg.lstsq(incidence[:, follows], sums)[0])
        blocks.append(block)
    return block_diag(*blocks)


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


def _probabilities(joint: np.ndarray) -> np.ndarray:
    p = np.asarray(joint, dtype=float)
    if p.ndim != 3 or not p.size:
        raise ValueError(
            f"expected axes (first, second, target), got shape {p.shape}; give "
            "p[z1, z2, t]"
        )
    if not (p >= 0).all() or not abs(p.sum() - 1) < ROUNDING:
        raise ValueError(
            "expected probabilities of at least 0 with sum 1, got smallest "
            f"{p.min():.3g} and sum {p.sum():.9g}; divide counts by their sum"
        )
    return p / p.sum()
