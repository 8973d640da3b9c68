"""Logic gates with known information decompositions, as tables of probabilities."""

from collections.abc import Iterable

import numpy as np

__all__ = ["GATES"]


def gate(outcomes: Iterable[tuple]) -> np.ndarray:
    """p[z1, z2, t] where these outcomes are equally likely."""
    outcomes = list(outcomes)
    alphabets = [sorted(set(values)) for values in zip(*outcomes, strict=True)]
    p = np.zeros([len(alphabet) for alphabet in alphabets])
    for outcome in outcomes:
        p[tuple(map(list.index, alphabets, outcome))] += 1 / len(outcomes)
    return p


BITS = [(a, b) for a in (0, 1) for b in (0, 1)]
THREE = [(r, a, b) for r in (0, 1) for a, b in BITS]
GATES = {
    "xor": gate((a, b, a ^ b) for a, b in BITS),
    "and": gate((a, b, a & b) for a, b in BITS),
    "or": gate((a, b, a | b) for a, b in BITS),
    "sum": gate((a, b, a + b) for a, b in BITS),
    "two bit copy": gate((a, b, (a, b)) for a, b in BITS),
    "first": gate((a, b, a) for a, b in BITS),
    "redundant": gate((r, r, r) for r in (0, 1)),
    "redundant and xor": gate(((r, a), (r, b), (r, a ^ b)) for r, a, b in THREE),
    "redundant and unique": gate(((r, a), (r, b), (r, a, b)) for r, a, b in THREE),
    "all four": gate(
        ((r, a, u), (r, b, v), (r, a ^ b, u, v)) for r, a, b in THREE for u, v in BITS
    ),
    "pointwise unique": gate([(0, 1, 1), (1, 0, 1), (0, 2, 2), (2, 0, 2)]),
    "subtle": gate([(0, 0, 0), (0, 1, 1), (1, 0, 2)]),
    "nothing": np.full((2, 3, 2), 1 / 12),
}
