"""Partial information decomposition: closed forms, known gates, and exact theorems."""

import math
from functools import partial

import numpy as np
import pytest
from helpers.checks import refusals
from helpers.gates import GATES

from probssl.information import Decomposition, discrete, gaussian

MEASURES = ["broja", "i_min"]


AND = 0.75 * math.log2(4 / 3)  # I(z1; t) of the and gate, in bits
SHARED = math.log2(3) - 4 / 3  # I(z1; z2) of the subtle one
KNOWN = [
    ("xor", (0, 0, 0, 1), (0, 0, 0, 1)),
    ("and", (AND, 0, 0, 0.5), (AND, 0, 0, 0.5)),
    ("or", (AND, 0, 0, 0.5), (AND, 0, 0, 0.5)),
    ("sum", (0.5, 0, 0, 1), (0.5, 0, 0, 1)),
    ("two bit copy", (0, 1, 1, 0), (1, 0, 0, 1)),
    ("first", (0, 1, 0, 0), (0, 1, 0, 0)),
    ("redundant", (1, 0, 0, 0), (1, 0, 0, 0)),
    ("redundant and xor", (1, 0, 0, 1), (1, 0, 0, 1)),
    ("redundant and unique", (1, 1, 1, 0), (2, 0, 0, 1)),
    ("all four", (1, 1, 1, 1), (2, 0, 0, 2)),
    ("pointwise unique", (0.5, 0, 0, 0.5), (0.5, 0, 0, 0.5)),
    ("subtle", (SHARED, 2 / 3, 2 / 3, 0), (math.log2(1.5), 1 / 3, 1 / 3, 1 / 3)),
    ("nothing", (0, 0, 0, 0), (0, 0, 0, 0)),
]


@pytest.mark.parametrize("name, broja, i_min", KNOWN, ids=[row[0] for row in KNOWN])
def test_gates_have_their_published_parts(name, broja, i_min):
    for measure, bits in zip(MEASURES, (broja, i_min), strict=True):
        parts = np.array(discrete(GATES[name], measure)) / math.log(2)
        np.testing.assert_allclose(parts, bits, rtol=0, atol=1e-10)


def information(pair: np.ndarray) -> float:
    """I of a table, as a difference of entropies."""

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return -float((p * np.log(p)).sum())

    return entropy(pair.sum(0)) + entropy(pair.sum(1)) - entropy(pair.ravel())


def tables(count: int, *shape: int) -> list[np.ndarray]:
    """Random tables, nearly uniform to nearly all zero, some of round numbers."""
    random, found = np.random.default_rng(0), []
    while len(found) < count:
        p = random.dirichlet(np.full(math.prod(shape), 10 ** random.uniform(-1.5, 1)))
        if len(found) % 3 == 0:
            p = np.round(4 * p)  # exact zeros
        if p.sum() > 0:
            found.append((p / p.sum()).reshape(shape))
    return found


@pytest.mark.parametrize("measure", MEASURES)
def test_the_parts_are_consistent_and_at_least_zero(measure):
    for p in tables(10, 2, 2, 2) + tables(8, 3, 2, 4) + [np.ones((1, 1, 1))]:
        parts = discrete(p, measure)
        assert min(parts) >= 0
        assert parts.first == pytest.approx(information(p.sum(1)), abs=1e-12)
        assert parts.second == pytest.approx(information(p.sum(0)), abs=1e-12)
        both = information(p.reshape(-1, p.shape[2]))
        assert parts.total == pytest.approx(both, abs=1e-12)


def least_on_a_grid(p: np.ndarray) -> float:
    """The least I_q(t; z1, z2) for 2 x 2 x 2, by looking at all q, ever closer."""
    first, second, target = p.sum(1), p.sum(0), p.sum((0, 1))
    low = np.maximum(0, first[0] + second[0] - target)
    high = np.minimum(first[0], second[0])
    start, end = low, high
    for _ in range(12):
        axes = [np.linspace(start[t], end[t], 41) for t in (0, 1)]
        corner = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        q = np.stack(
            [
                corner,
                first[0] - corner,
                second[0] - corner,
                target - first[0] - second[0] + corner,
            ]
        ).clip(0)
        cell = q.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(q > 0, q * np.log(q / cell / target), 0)
        value = each.sum((0, -1))
        best = corner[np.unravel_index(value.argmin(), value.shape)]
        width = (end - start) / 6
        start, end = np.maximum(low, best - width), np.minimum(high, best + width)
    return float(value.min())


def test_broja_finds_the_minimum_that_a_search_of_all_tables_finds():
    on_the_boundary = [GATES[name] for name in ("xor", "and", "or", "first")]
    for p in on_the_boundary + tables(16, 2, 2, 2):
        if (p.sum((0, 1)) > 0).all():
            parts = discrete(p)
            least = parts.redundant + parts.unique_1 + parts.unique_2
            assert least == pytest.approx(least_on_a_grid(p), abs=1e-9)


def test_broja_of_independent_systems_is_the_sum_of_theirs():
    for p, q in zip(tables(4, 2, 2, 2), tables(8, 2, 3, 2)[4:], strict=True):
        shape = np.multiply(p.shape, q.shape)
        together = np.einsum("abt,cds->acbdts", p, q).reshape(shape)
        apart = np.array(discrete(p)) + np.array(discrete(q))
        np.testing.assert_allclose(discrete(together), apart, rtol=0, atol=1e-10)


def test_under_broja_a_view_that_blurs_the_other_has_nothing_unique():
    random = np.random.default_rng(1)
    for shape in [(2, 2), (3, 5), (4, 3)]:
        pair = random.dirichlet(np.ones(math.prod(shape))).reshape(shape)
        blur = random.dirichlet(np.full(3, 0.3), size=len(pair))
        parts = discrete(np.einsum("at,ab->abt", pair, blur))
        assert parts.unique_2 < 1e-10
        # together they may tell more: BROJA's unique parts see only pairs
        p = np.einsum("at,bt->abt", pair, blur.T @ pair / pair.sum(0))
        assert discrete(p).unique_2 < 1e-10
        assert discrete(p).redundant == pytest.approx(parts.second, abs=1e-10)


@pytest.mark.parametrize("measure", MEASURES)
def test_swapped_views_swap_their_parts_and_the_names_of_values_do_not_matter(measure):
    (p,) = tables(1, 3, 4, 2)
    parts = discrete(p, measure)
    swapped = discrete(p.swapaxes(0, 1), measure)
    expected = (parts.redundant, parts.unique_2, parts.unique_1, parts.synergistic)
    np.testing.assert_allclose(swapped, expected, rtol=0, atol=1e-10)
    padded = np.pad(p[::-1, [2, 0, 3, 1]], ((0, 1), (1, 0), (0, 1)))
    np.testing.assert_allclose(discrete(padded, measure), parts, rtol=0, atol=1e-10)


def test_tiny_probabilities_do_not_disturb_the_others():
    p = GATES["and"] * (1 - 3e-9)
    for size in (1e-300, 1e-17, 1e-12):
        p[0, 0, 1], p[0, 1, 1], p[1, 1, 0] = size, 2 * size, size
        exact = discrete(GATES["and"])
        np.testing.assert_allclose(discrete(p / p.sum()), exact, rtol=0, atol=1e-9)


def views(content: float, noise_1: float, noise_2: float) -> np.ndarray:
    """The covariance of z1, z2 and y where z_v = y + noise."""
    return content + np.diag([noise_1, noise_2, 0.0])


@pytest.mark.parametrize("y, s1, s2", [(1.7, 0.3, 0.3), (1.7, 0.3, 0.9)])
def test_of_gaussian_views_the_clearer_one_is_unique(y, s1, s2):
    """With equal noise the views are redundant and synergistic, and neither unique."""
    redundant = math.log1p(y / s2) / 2
    unique = math.log1p(y / s1) / 2 - redundant
    synergistic = math.log1p(y / s1 + y / s2) / 2 - redundant - unique
    for lists, expected in (
        (([0], [1]), (redundant, unique, 0, synergistic)),
        (([1], [0]), (redundant, 0, unique, synergistic)),
    ):
        parts = gaussian(views(y, s1, s2), *lists, [2])
        np.testing.assert_allclose(parts, expected, rtol=0, atol=1e-12)
        assert parts.total == pytest.approx(sum(expected), abs=1e-12)


def test_gaussian_information_is_that_of_canonical_correlations():
    random = np.random.default_rng(0)
    root = random.normal(size=(7, 7))
    covariance = root @ root.T
    one, two, target = [5, 0], [3, 1, 6], [4, 2]
    parts = gaussian(covariance, one, two, target)

    def information(rows: list[int]) -> float:
        inner = np.linalg.solve(
            covariance[np.ix_(rows, rows)], covariance[np.ix_(rows, target)]
        )
        explained = covariance[np.ix_(target, rows)] @ inner
        squares = np.linalg.eigvals(
            np.linalg.solve(covariance[np.ix_(target, target)], explained)
        )
        return -0.5 * float(np.log1p(-squares.real).sum())

    assert parts.first == pytest.approx(information(one), abs=1e-10)
    assert parts.second == pytest.approx(information(two), abs=1e-10)
    assert parts.total == pytest.approx(information(one + two), abs=1e-10)
    assert parts.redundant == min(parts.first, parts.second)
    assert min(parts) >= 0


def test_gaussian_parts_do_not_depend_on_units_or_on_the_basis_of_a_view():
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 5))
    mixing = np.diag([1e4, 1, 1e-5, 1e3, 1.0])
    mixing[:2, :2] = [[1e4, 3e3], [0.5, 1]]
    there = mixing @ root @ root.T @ mixing.T
    parts = gaussian(root @ root.T, [0, 1], [2], [3, 4])
    np.testing.assert_allclose(
        gaussian(there, [0, 1], [2], [3, 4]), parts, rtol=0, atol=1e-9
    )


def test_independent_gaussian_views_of_nothing_have_no_parts():
    assert gaussian(np.diag([1.0, 2.0, 3.0]), [0], [1], [2]) == (0, 0, 0, 0)


def test_a_decomposition_names_its_parts_and_their_sums():
    parts = Decomposition(redundant=1.0, unique_1=2.0, unique_2=4.0, synergistic=8.0)
    assert (parts.total, parts.first, parts.second) == (15, 3, 5)


def test_probabilities_of_single_precision_are_accepted():
    (p,) = tables(1, 3, 2, 2)
    np.testing.assert_allclose(discrete(p.astype("float32")), discrete(p), atol=1e-6)


def test_dimensions_that_are_not_used_may_be_anything():
    covariance = np.full((4, 4), np.nan)
    covariance[:3, :3] = views(1.0, 0.5, 2.0)
    parts = gaussian(covariance, [0], [1], [2])
    assert parts == gaussian(covariance[:3, :3], [0], [1], [2])


NO_TABLES = [
    (np.full((2, 2), 0.25), "axes"),
    (np.full((2, 2, 2, 2), 1 / 16), "axes"),
    (np.zeros((2, 0, 2)), "axes"),
    (np.ones((2, 2, 2)), "sum 8"),
    (np.zeros((2, 2, 2)), "sum 0"),
    (np.array([[[1.25, -0.25]]]), "-0.25"),
    (np.array([[[1.0, np.nan]]]), "nan"),
    (np.array([[[1.0, np.inf]]]), "inf"),
]
NO_LISTS = [
    (([], [1], [2]), "one index or more"),
    (([0], [0, 1], [2]), "overlap"),
    (([0, 0], [1], [2]), "overlap"),
    (([0], [1], [3]), "from 0 to 2"),
    (([0], [1], [-1]), "from 0 to 2"),
]
NO_INDICES = [
    (([0], [1], [[2]]), "target as a sequence, each a whole number"),
    (([0], [True], [2]), "second as a sequence, each a whole number"),
    (([0.0], [1], [2]), "first as a sequence, each a whole number"),
]
NO_COVARIANCES = [
    (np.ones(3), "square"),
    (np.ones((3, 2)), "square"),
    (np.ones((3, 3)), "positive definite"),
    (views(1.0, 1.0, -0.75), "positive definite"),
    (views(1.0, 1.0, 0.0), "positive definite"),
    (np.diag([1.0, 0.0, 1.0]), "above 0"),
    (np.diag([1.0, np.nan, 1.0]), "finite"),
    (np.eye(3) + np.triu(np.full((3, 3), 0.1), 1), "symmetric"),
]
WHOLE = views(1.0, 1.0, 1.0)
test_invalid_arguments_are_refused = refusals(
    (lambda: discrete(GATES["and"], "mmi"), ValueError, "'mmi'"),
    *((partial(discrete, p), ValueError, words) for p, words in NO_TABLES),
    *((partial(gaussian, WHOLE, *sets), ValueError, w) for sets, w in NO_LISTS),
    *((partial(gaussian, WHOLE, *sets), TypeError, w) for sets, w in NO_INDICES),
    *(
        (partial(gaussian, matrix, [0], [1], [2]), ValueError, words)
        for matrix, words in NO_COVARIANCES
    ),
)
