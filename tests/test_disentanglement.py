"""Disentanglement scores and stroke factors, against plain formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.checks import refusals
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

import probssl as ps
from probssl.evaluation import Undefined, dci, mcc, mig, sap, strokes
from probssl.evaluation.disentanglement import dci_of


def factors(n=400, seed=0):
    """Two continuous factors that are not normal, and one of three classes."""
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (n, 2)), random.integers(3, size=n)


def information(a, b):
    """The plug-in mutual information of two columns of classes, in nats."""
    total = 0.0
    for i, j in itertools.product(set(a.tolist()), set(b.tolist())):
        p = np.mean((a == i) & (b == j))
        if p:
            total += p * math.log(p / (np.mean(a == i) * np.mean(b == j)))
    return total


def cut(x, bins):
    width = (x.max() - x.min()) / bins
    return np.minimum(((x - x.min()) / width).astype(int), bins - 1)


def mixed(v, k, seed=1):
    """Five dimensions: noisy mixtures of the factors."""
    random = np.random.default_rng(seed)
    all_factors = np.column_stack([v, k])
    noise = 0.3 * random.normal(size=(len(v), 5))
    return all_factors @ random.normal(size=(3, 5)) + noise


def test_the_information_gap_is_that_of_tables_of_counts():
    v, k = factors()
    z = mixed(v, k)
    for factor, classes in ((v[:, 0], cut(v[:, 0], 8)), (k, k)):
        each = sorted(information(classes, cut(column, 8)) for column in z.T)
        expected = (each[-1] - each[-2]) / information(classes, classes)
        assert mig(z, factor, bins=8) == pytest.approx(expected)
    both = np.mean([mig(z, v[:, 0], bins=8), mig(z, v[:, 1], bins=8)])
    assert mig(z, v, bins=8) == pytest.approx(both)


def test_the_separated_predictability_is_a_gap_of_single_dimensions():
    v, k = factors()
    z = mixed(v, k)
    squares = sorted(np.corrcoef(column, v[:, 0])[0, 1] ** 2 for column in z.T)
    assert sap(z, v[:, 0]) == pytest.approx(squares[-1] - squares[-2])
    accuracy = []
    for column in z.T:
        one = ((column - column.mean()) / column.std())[:, None]
        accuracy.append(LogisticRegression(C=1.0).fit(one, k).score(one, k))
    accuracy.sort()
    assert sap(z, k) == pytest.approx(accuracy[-1] - accuracy[-2])


@pytest.mark.parametrize("correlation", ["pearson", "spearman"])
def test_the_mean_correlation_is_the_best_over_all_matchings(correlation):
    v, k = factors()
    z = mixed(v, k)

    def r(a, b):
        pair = (
            np.corrcoef(a, b) if correlation == "pearson" else spearmanr(a, b).statistic
        )
        return abs(pair[0, 1] if correlation == "pearson" else pair)

    expected = max(
        (r(z[:, i], v[:, 0]) + r(z[:, j], v[:, 1])) / 2
        for i, j in itertools.permutations(range(5), 2)
    )
    assert mcc(z, v, correlation=correlation) == pytest.approx(expected)


def test_order_sign_and_scale_leave_all_scores_at_their_ends():
    v, _ = factors(2_000)
    random = np.random.default_rng(2)
    z = np.column_stack([-3 * v[:, 1], random.normal(size=2_000), 0.1 * v[:, 0]])
    assert mcc(z, v) == pytest.approx(1)
    assert mcc(np.sinh(z), v, correlation="spearman") == pytest.approx(1)
    assert mig(z, v) > 0.9 and sap(z, v) > 0.99
    found = dci(z[:1000], v[:1000], z[1000:], v[1000:])
    assert found.disentanglement > 0.95 and found.completeness > 0.95
    assert min(found.informativeness) > 0.99


def test_components_undo_a_rotation_of_independent_factors_that_are_not_normal():
    v, _ = factors(4_000)
    turned = v @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    assert mcc(turned, v) == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert mcc(turned, v, ica=True) > 0.995
    normal = np.random.default_rng(0).normal(size=(4_000, 2))
    both = normal @ np.array([[1, 1], [-1, 1]]) / math.sqrt(2)
    assert mcc(both, normal, ica=True) < 0.99  # normal factors are not identified


def test_a_dimension_that_does_not_vary_counts_nothing():
    v, k = factors()
    z = np.column_stack([v, np.full(len(v), 7.0)])
    assert mcc(z, v, ica=True) > 0.99 and mcc(z, v) == pytest.approx(1)
    assert 0 < mig(z, v) <= 1


def test_importances_become_entropies():
    r = np.array([[0.7, 0.1], [0.3, 0.2], [0.0, 0.7], [0.0, 0.0]])

    def gap(weights, base):
        p = np.array(weights) / sum(weights)
        return 1 + sum(q * math.log(q, base) for q in p if q)

    total = r.sum()
    expected = sum(sum(row) / total * gap(row, 2) for row in r if sum(row))
    disentanglement, completeness = dci_of(r)
    assert disentanglement == pytest.approx(expected)
    assert completeness == pytest.approx(np.mean([gap(r[:, k], 4) for k in range(2)]))
    assert dci_of(np.eye(3)) == pytest.approx((1, 1))
    assert dci_of(np.ones((3, 2))) == pytest.approx((0, 0))


def test_importances_of_forests_find_the_dimension_of_each_factor():
    v, k = factors(600)
    z = np.column_stack([v[:, 0], v[:, 0], k, np.zeros(600)])
    data = torch.from_numpy(v[:, 0]), torch.from_numpy(k)
    table = np.array([data[0].tolist(), data[1].tolist()], dtype=object).T
    found = dci(z[:400], table[:400], z[400:], table[400:])
    assert found.informativeness[1] == 1.0 and found.informativeness[0] > 0.99
    np.testing.assert_allclose(found.importance[:, 1], [0, 0, 1, 0], atol=0.02)
    assert found.importance[:2, 0].sum() > 0.95  # two dimensions hold one factor
    assert found.disentanglement > 0.9 > found.completeness


V, K = factors(50)
Z = mixed(V, K)
test_what_has_no_such_score_is_refused = refusals(
    (lambda: mig(Z[:, :1], V), ValueError, "at least 2 dimensions"),
    (lambda: sap(Z, np.ones(50)), Undefined, "factors that vary"),
    (lambda: mcc(Z, V[:9]), ValueError, "style factors"),
    (lambda: mcc(Z, np.array(["a", "b"] * 25)), ValueError, "factors as numbers"),
    (lambda: mcc(Z, np.where(V > 0.9, np.nan, V)), ValueError, "finite"),
    (lambda: dci(Z, K, Z, K), ValueError, "2 factors"),
    (lambda: dci(Z, V, Z[:, :3], V), ValueError, "same dimensions"),
    (lambda: mig(Z, V, bins=1), ValueError, "bins"),
)


# Strokes


@pytest.mark.parametrize("scale, offset", [(1e-7, 0), (1e-9, 0), (60, 1.7e9), (1, 1e8)])
def test_no_score_depends_on_units_or_offsets(scale, offset):
    """Such as seconds since 1970, whose squares and float32 leave no minutes."""
    v = np.random.default_rng(0).uniform(-1, 1, size=(400, 3))
    z = v + 0.2 * np.random.default_rng(1).normal(size=v.shape)
    moved = scale * v + offset, scale * z + offset

    def forests(v, z):
        return dci(z[:200], v[:200], z[200:], v[200:])

    once, found = forests(v, z), forests(*moved)
    assert once.disentanglement > 0.5 and min(once.informativeness) > 0.5
    assert found[:2] == pytest.approx(once[:2], abs=0.01)
    assert found.informativeness == pytest.approx(once.informativeness, abs=0.01)
    for score in (sap, mcc, mig):
        assert score(moved[1], moved[0]) == pytest.approx(score(z, v), abs=0.01)


def test_factors_of_a_test_set_in_another_order_are_refused():
    import pandas as pd

    v = pd.DataFrame(
        np.random.default_rng(0).normal(size=(60, 2)), columns=["slant", "size"]
    )
    z = v.to_numpy()
    with pytest.raises(ValueError, match="factors_test with the columns"):
        dci(z, v, z, v[["size", "slant"]])


def test_forests_are_those_of_scikit_learn():
    """In ranks of the training values trees split as they do in the values."""
    from sklearn.ensemble import RandomForestRegressor

    v = np.random.default_rng(0).uniform(-1, 1, size=(400, 3))
    z = (v + 0.2 * np.random.default_rng(1).normal(size=v.shape)).astype(np.float32)
    found = dci(z[:200], v[:200], z[200:], v[200:])
    for k in range(v.shape[1]):
        forest = RandomForestRegressor(10, max_features=None, random_state=0)
        forest.fit(z[:200], v[:200, k])
        assert found.informativeness[k] == pytest.approx(
            forest.score(z[200:], v[200:, k]), abs=0.01
        )
        np.testing.assert_allclose(
            found.importance[:, k], forest.feature_importances_, atol=0.01
        )


@pytest.mark.parametrize("kind, unit", [("f2", 10), ("f2", 1e-3), ("f4", 1e-25)])
def test_narrow_floats_of_factors_are_computed_in_float64(kind, unit):
    v = (unit * np.random.default_rng(0).uniform(-1, 1, size=(400, 3))).astype(kind)
    z = v / unit + 0.2 * np.random.default_rng(1).normal(size=v.shape)
    wide = v.astype(float) / unit
    assert sap(z, v) == pytest.approx(sap(z, wide), rel=1e-9)
    assert mig(z, v) == pytest.approx(mig(z, wide), rel=1e-9)


def bar(width=4, length=20, slant=0.0, shift=(0, 0), size=40):
    """A black and white bar, white of value 1, of exact corners on the grid."""
    image = np.zeros((size, size))
    top, left = (size - length) // 2 + shift[1], (size - width) // 2 + shift[0]
    for row in range(top, top + length):
        start = left + round(slant * (row - top - (length - 1) / 2))
        image[row, start : start + width] = 1
    return image[None, None]


def test_position_size_and_thickness_of_a_bar_are_those_of_a_rectangle():
    found = strokes(np.concatenate([bar(), bar(shift=(3, -5)), bar(width=6)]))
    np.testing.assert_allclose(found.x, [0, 3, 0])
    np.testing.assert_allclose(found.y, [0, -5, 0])
    spread = [(20**2 - 1) / 12 + (w**2 - 1) / 12 for w in (4, 4, 6)]
    np.testing.assert_allclose(found.size, np.sqrt(spread))
    np.testing.assert_allclose(found.slant, 0, atol=1e-12)
    rectangle = [2 * w * 20 / (2 * (w + 20)) for w in (4, 4, 6)]
    np.testing.assert_allclose(found.thickness, rectangle, rtol=0.04)  # of the corners
    assert found.table.shape == (3, 5)


@pytest.mark.parametrize("slant", [-0.5, -0.2, 0.3])
def test_the_slant_is_that_of_a_sheared_bar(slant):
    found = strokes(bar(slant=slant))
    assert found.slant == pytest.approx(slant, abs=0.02)
    levels = (255 * bar(slant=slant)).astype(np.uint8)
    for one, other in zip(strokes(levels), found, strict=True):
        np.testing.assert_allclose(one, other)  # the unit of ink does not matter


def test_strokes_recover_the_factors_of_the_simulator():
    torch.manual_seed(0)
    data = ps.data.factors(600)
    measured, style = strokes(data.images), data.style.numpy()
    of_shape = data.labels.numpy()[:, None] == np.arange(int(data.labels.max()) + 1)
    apart = measured.thickness - of_shape @ (
        measured.thickness @ of_shape / of_shape.sum(0)
    )
    assert np.corrcoef(apart, style[:, 3])[0, 1] > 0.9
    for place, column in ((measured.x, 0), (measured.y, 1)):
        assert np.corrcoef(place, style[:, column])[0, 1] > 0.8


test_what_is_no_ink_is_refused = refusals(
    (lambda: strokes(np.zeros((2, 1, 8, 8))), ValueError, "ink in each image"),
    (lambda: strokes(np.ones((2, 3, 8, 8))), ValueError, "grey images"),
    (lambda: strokes(-np.ones((2, 1, 8, 8))), ValueError, "negative"),
    (
        lambda: strokes(np.eye(8)[None, :1].repeat(1, 0)[None]),
        ValueError,
        "several rows",
    ),
)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("units", [1.0, 1e-9])
def test_mcc_after_ica_does_not_take_rounding_for_dimensions(single, units):
    random = np.random.default_rng(0)
    v = random.uniform(size=(2_000, 2))
    z = v @ random.normal(size=(2, 5)) * [units, 1, 1, 1, 1]
    z = np.column_stack([z, np.full(len(z), 0.1)])
    z = z.astype(np.float32) if single else z
    assert mcc(z, v, ica=True) > 0.995


def test_a_dimension_that_repeats_another_finds_no_second_factor():
    v = np.random.default_rng(0).uniform(size=(2_000, 2))
    collapsed = np.column_stack([v[:, 0], 2 * v[:, 0]])
    assert mcc(collapsed, v, ica=True) == pytest.approx(0.5, abs=0.02)
    assert mcc(np.ones((2_000, 2)), v, ica=True) == 0
