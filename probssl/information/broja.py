"""BROJA's minimum: the least information of two views with given pair marginals."""

import numpy as np
from jaxtyping import Float

__all__ = ["least_information"]

LARGEST_GAP = 1e-11  # nats by which the minimum may be too large
NEWTON_STEPS = 200  # for each weight of the barrier


def least_information(p: Float[np.ndarray, "first second target"]) -> float:
    r"""The least :math:`I_q(t; z_1, z_2)` over all q with the pair marginals of p.

    It is :math:`H(t) + \min_q f(q)` with the convex :math:`f(q) = \sum q \log q(t \mid
    z_1, z_2)`. The minimum may lie on the boundary: an interior-point method follows
    the minima of :math:`f - \mu \sum \log q`, which are too large by at most
    :math:`\mu` for each variable, by Newton's method. Over :math:`\mu` that is
    self-concordant, since :math:`|f'''| \le 3 f''` times the step's length for the
    barrier: damped steps stay inside.
    """
    from scipy.special import entr

    target, first, second = p.sum((0, 1)), p.sum(1).T[:, :, None], p.sum(0).T[:, None]
    inside = (first > 0) & (second > 0)
    where = np.argwhere(inside)  # (t, z1, z2) of each variable
    _, cell = np.unique(where[:, 1:], axis=0, return_inverse=True)
    q = (first * second)[inside] / target[where[:, 0]]
    weight = 1.0
    while weight * len(q) > LARGEST_GAP:
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
    for _ in range(NEWTON_STEPS):
        grad = _log_conditional(q, cell) - weight / q
        step, decrement = _newton(q, grad, where, cell, weight)
        sure = 1 / (1 + decrement)
        length = min(1.0, 0.95 / max((-step / q).max(), 0.95))
        while length > sure:
            there = q + length * step
            ahead = (_log_conditional(there, cell) - weight / there) @ step
            if ahead <= 0.5 * abs(grad @ step):
                break  # close to the minimum along the step
            length /= 2
        q = q + max(length, sure) * step
        if decrement < 0.25:
            return q
    raise ArithmeticError(
        f"the least information was not found in {NEWTON_STEPS} steps"
    )


def _newton(
    q: np.ndarray, grad: np.ndarray, where: np.ndarray, cell: np.ndarray, weight: float
) -> tuple[Float[np.ndarray, " variable"], float]:
    """Newton's step that keeps both pair marginals, and its decrement (local norm)."""
    from scipy.linalg import cho_factor, cho_solve

    moves = _moves(q, where)
    if not moves.shape[1]:
        return np.zeros_like(q), 0.0
    cells = np.zeros((cell.max() + 1, moves.shape[1]))
    np.add.at(cells, cell, moves)
    curvature = moves.T @ ((1 / q + weight / q**2)[:, None] * moves)
    curvature -= cells.T @ (cells / np.bincount(cell, q)[:, None])
    scale = 1 / np.sqrt(curvature.diagonal())
    gradient = scale * (grad @ moves)
    factor = cho_factor(scale[:, None] * curvature * scale)
    solution = -cho_solve(factor, gradient)
    decrement = np.sqrt(max(-gradient @ solution, 0.0) / weight)
    return moves @ (scale * solution), float(decrement)


def _moves(q: np.ndarray, where: np.ndarray) -> Float[np.ndarray, "variable move"]:
    """The changes of q that keep both pair marginals, as columns of -1, 0 and 1.

    For each t the variables are edges of a graph of the values of z1 and of z2. The
    other edges determine a spanning tree of the largest ones: each of them makes one
    move, in which it is the smallest. So tiny probabilities stay exact.
    """
    from scipy.linalg import block_diag
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    blocks, nodes = [], where.max(0)[1:].sum() + 2
    for t in np.unique(where[:, 0]):
        here = where[:, 0] == t
        ends = where[here, 1], where[here, 2] + nodes - where[:, 2].max() - 1
        lengths = 1 - np.log(q[here])  # about 1 or more: a zero would be no edge
        # SciPy before 1.17 takes graphs of 32-bit numbers alone.
        places = tuple(end.astype(np.int32) for end in ends)
        graph = coo_array((lengths, places), shape=(nodes, nodes)).tocsr()
        tree = minimum_spanning_tree(graph).tocoo()
        kept = tree.row.astype(np.int64) * nodes + tree.col
        follows = np.isin(ends[0] * nodes + ends[1], kept)
        incidence = np.zeros((nodes, len(follows)))
        incidence[ends, np.arange(len(follows))] = 1
        block = np.eye(len(follows))[:, ~follows]
        sums = incidence[:, ~follows]
        block[follows] = -np.round(np.linalg.lstsq(incidence[:, follows], sums)[0])
        blocks.append(block)
    return block_diag(*blocks)
