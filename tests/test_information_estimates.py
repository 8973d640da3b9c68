"""Parts estimated from items: sources with known parts, bounds, bias and coverage."""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from helpers.gates import GATES
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier

from probssl.information import (
    Classifier,
    Clusters,
    discrete,
    estimate,
)
from probssl.information.estimators import Sample

SMALL = ["and", "xor", "two bit copy", "first", "redundant", "subtle"]


def source(p, n, seed=0, noise=0.1):
    """Items of p, with z1 and z2 as noisy corners of a simplex."""
    random = np.random.default_rng(seed)
    one, two, t = np.unravel_index(random.choice(p.size, n, p=p.ravel()), p.shape)
    z1, z2 = (np.eye(k)[z] for k, z in zip(p.shape, (one, two), strict=False))
    return (
        z1 + noise * random.normal(size=z1.shape),
        z2 + noise * random.normal(size=z2.shape),
        t,
    )


def signs(n, sd, seed=0):
    """A fair sign t in noise of these standard deviations, one for each view."""
    random = np.random.default_rng(seed)
    t = random.integers(2, size=n)
    return *(2 * t[:, None] - 1 + s * random.normal(size=(n, 1)) for s in sd), t


def of_a_sign(*sd):
    """The information of these views about the sign, by quadrature over log-odds."""
    signal = sum(s**-2 for s in sd)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    log_odds = 2 * signal + 2 * math.sqrt(signal) * nodes  # given t = 1
    lost = weights @ np.logaddexp(0, -log_odds) / weights.sum()
    return math.log(2) - lost


def thresholded(n, sd, seed=0):
    """Views of a standard normal y, and whether y is above 0."""
    random = np.random.default_rng(seed)
    y = random.normal(size=(n, 1))
    return *(y + s * random.normal(size=(n, 1)) for s in sd), y[:, 0] > 0


def of_a_threshold(*sd):
    """The information of these views about y > 0, by quadrature over E[y | z]."""
    from scipy.special import entr
    from scipy.stats import norm

    precision = sum(s**-2 for s in sd)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    p = norm.cdf(math.sqrt(precision) * nodes)
    return math.log(2) - weights @ (entr(p) + entr(1 - p)) / weights.sum()


def near(interval, truth, n):
    """Within five standard errors, and what is of second order."""
    error = (interval.high - interval.low) / 3.29  # 90 % of a Gaussian
    return abs(interval.value - truth) < 5 * error + 10 / n


@pytest.mark.parametrize(
    ("gate", "measure"),
    [(gate, "i_min") for gate in SMALL] + [("two bit copy", "broja")],
)
def test_clusters_find_the_parts_of_discrete_sources(gate, measure):
    p, n = GATES[gate], 1_000
    found = estimate(*source(p, n), by=Clusters(2, measure), bootstrap=20)
    for name, truth in discrete(p, measure)._asdict().items():
        assert near(getattr(found, name), truth, n), name


@pytest.mark.parametrize("gate", ["and", "two bit copy", "first", "subtle"])
def test_classifiers_find_the_parts_of_sources_that_are_linear(gate):
    p, n = GATES[gate], 1_000
    found = estimate(*source(p, n), by=Classifier(folds=2), bootstrap=20)
    for name, truth in discrete(p, "i_min")._asdict().items():
        # the penalty of logistic regression leaves some doubt in certain cases
        assert abs(getattr(found, name).value - truth) < 0.05, name


def test_an_exclusive_or_is_synergy_and_no_linear_classifier_sees_it():
    z1, z2, t = source(GATES["xor"], 1_000)
    linear = estimate(z1, z2, t, bootstrap=20)
    assert linear.total.value < 0.02
    network = MLPClassifier(
        (4,), "tanh", solver="lbfgs", max_iter=5_000, random_state=0
    )
    found = estimate(z1, z2, t, by=Classifier(network, folds=2), bootstrap=20)
    assert 0.9 * math.log(2) < found.synergistic.value <= math.log(2)
    assert found.first.value < 0.02 and found.second.value < 0.02


@pytest.mark.parametrize("measure", ["i_min", "mmi"])
@pytest.mark.parametrize("sd", [(1.0, 1.0), (0.8, 1.6)])
def test_classifiers_find_the_parts_of_a_sign_in_noise(sd, measure):
    n = 2_000
    found = estimate(*signs(n, sd), by=Classifier(measure=measure))
    one, two, both = of_a_sign(sd[0]), of_a_sign(sd[1]), of_a_sign(*sd)
    truth = {"redundant": two, "unique_1": one - two, "unique_2": 0.0}
    truth |= {"synergistic": both - one, "first": one, "second": two, "total": both}
    for name, value in truth.items():
        assert near(getattr(found, name), value, n), name
    assert near(found.entropy, math.log(2), n)
    assert found.entropy.high <= math.log(2)


def test_cells_lose_information_and_many_cells_lose_little():
    n, sd = 6_000, (0.5, 1.0)
    views, truth = thresholded(n, sd), of_a_threshold(*sd)
    few, many = (estimate(*views, by=Clusters(m), bootstrap=20).total for m in (2, 16))
    error = (many.high - many.low) / 3.29
    assert few.value < many.value - 5 * error
    assert abs(many.value - truth) < 5 * error + 0.01  # what 16 cells still lose
    alone = estimate(*views, bootstrap=20)
    assert alone.total.value < truth + 5 * error
    assert near(alone.first, of_a_threshold(sd[0]), 1_000)  # a logistic of a probit


@pytest.mark.parametrize("by", [Classifier(folds=2), Clusters(3)])
def test_the_parts_add_up_exactly(by):
    z1, z2, t = signs(300, (1.0, 1.5))
    found = estimate(z1, z2, t, by=by, bootstrap=20)
    r, u1, u2, s = found.decomposition
    assert found.first.value == r + u1 and found.second.value == r + u2
    assert found.total.value == r + u1 + u2 + s == found.decomposition.total
    assert min(figure.low for figure in found) >= 0


@pytest.mark.parametrize("measure", ["i_min", "broja"])
@pytest.mark.parametrize("n", [180, 400])
def test_no_information_exceeds_the_entropy(measure, n):
    for seed in range(3):
        random = np.random.default_rng(seed)
        t = random.permutation(np.arange(n) % 3)
        views = (np.eye(3)[t] + 0.05 * random.normal(size=(n, 3)) for _ in range(2))
        found = estimate(*views, t, by=Clusters(3, measure), bootstrap=40, seed=seed)
        assert found.total.value > 0.98 * math.log(3)  # the cells are the classes
        for each in found[:-1]:
            for figure, most in zip(each, found.entropy, strict=True):
                assert 0 <= figure <= most <= math.log(3)


def test_figures_above_the_entropy_are_lowered_to_it():
    """Of any estimator: here one whose informations are far too large."""
    z, t = np.zeros((40, 1)), np.arange(40) % 2

    def figures(chosen, corrected):
        return np.array([9.0, 0.3, 7.0, 2.0, np.log(2)])

    found = estimate(z, z, t, by=Pool(figures, 0, 40), bootstrap=20)
    assert found.first.value == pytest.approx(math.log(2), abs=1e-12)
    assert found.second.value == pytest.approx(0.3, abs=1e-12)
    assert max(max(each) for each in found) <= math.log(2)


class Pool(NamedTuple):
    """Items that were counted once: an estimator of so many of them, from a start."""

    figures: Callable[[np.ndarray, bool], np.ndarray]
    start: int
    n: int

    def sample(self, views, target, random, progress):
        return Sample(self.n, lambda i, flag: self.figures(self.start + i, flag))


def pools(p, n, runs, seed=0):
    """Disjoint samples of items of p, in cells that are their values."""
    z1, z2, t = source(p, int(1.02 * n * runs), seed, noise=0.01)
    cells, random = Clusters(max(p.shape[:2]), share=0.01), np.random.default_rng(0)
    figures = cells.sample((z1, z2), t, random, False).figures
    return [Pool(figures, n * run, n) for run in range(runs)]


def test_informations_are_without_bias_to_first_order():
    p = np.random.default_rng(0).dirichlet(np.full(18, 2.0)).reshape(3, 3, 2)
    n, runs = 150, 800
    items, truth = np.arange(n), discrete(p, "i_min")
    truth = np.array([truth.first, truth.second, truth.total])
    samples = [pool.sample(0, 0, 0, 0).figures for pool in pools(p, n, runs)]
    plain, less = (
        np.array([figures(items, flag)[:3] for figures in samples])
        for flag in (False, True)
    )
    error = less.std(0) / math.sqrt(runs)
    assert (plain.mean(0) - truth > 5 * error).all()
    assert (np.abs(less.mean(0) - truth) < 5 * error).all()


class Reversed(DecisionTreeClassifier):
    """A classifier whose columns are in another order, as its `classes_` says."""

    def fit(self, z, t):
        super().fit(z, t)
        self.classes_ = self.classes_[::-1]
        return self

    def predict_proba(self, z):
        return super().predict_proba(z)[:, ::-1]


def test_columns_of_a_classifier_are_in_the_order_of_its_classes():
    views = signs(400, (0.5, 1.0))
    plain, turned = (
        estimate(*views, by=Classifier(kind(max_depth=2), folds=2), bootstrap=20)
        for kind in (DecisionTreeClassifier, Reversed)
    )
    assert turned.total.value == pytest.approx(plain.total.value)
    assert plain.total.value > 0.2


class Plain(NamedTuple):
    """An estimator whose figures are all the plug-in entropy of the labels."""

    def sample(self, views, target, random, progress):
        def figures(chosen, corrected):
            p = np.bincount(target[chosen]) / len(chosen)
            return np.full(5, -(p[p > 0] * np.log(p[p > 0])).sum())

        return Sample(len(target), figures)


def test_the_mean_error_of_resamples_is_subtracted():
    random, n, runs = np.random.default_rng(0), 60, 200
    z, truth = np.zeros((n, 1)), math.log(6)
    items = random.integers(6, size=(runs, n))
    found = [estimate(z, z, t, by=Plain(), bootstrap=20).total.value for t in items]
    error = np.std(found) / math.sqrt(runs)
    assert abs(np.mean(found) - truth) < 5 * error + 25 / n**2


def test_the_jackknife_leaves_out_one_item_at_a_time():
    (pool,) = pools(GATES["and"], 200, 1)
    items, n = np.arange(30), 30
    without = [pool.figures(np.delete(items, i), False) for i in items]
    slow = n * pool.figures(items, False) - (n - 1) * np.mean(without, 0)
    assert np.allclose(pool.figures(items, True)[:3], slow[:3], rtol=0, atol=1e-12)


def test_intervals_have_their_nominal_coverage():
    p = np.random.default_rng(1).dirichlet(np.full(18, 0.5)).reshape(3, 3, 2)
    n, runs, truth = 400, 60, discrete(p, "i_min")
    hits = {"redundant": 0, "unique_1": 0, "synergistic": 0, "total": 0}
    nothing = np.zeros((n, 1)), np.zeros((n, 1)), np.arange(n) % 2
    for pool in pools(p, n, runs):
        found = estimate(*nothing, by=pool, bootstrap=40)
        for name in hits:
            low, high = getattr(found, name)[1:]
            hits[name] += low <= getattr(truth, name) <= high
    error = math.sqrt(0.9 * 0.1 / runs)
    assert all(abs(hit / runs - 0.9) < 5 * error for hit in hits.values()), hits


def test_swapping_the_views_swaps_their_unique_parts():
    z1, z2, t = signs(400, (0.8, 1.6))
    one, two = (estimate(*views, t, bootstrap=20) for views in ((z1, z2), (z2, z1)))
    r, u1, u2, s = one.decomposition
    # as far as the optimiser of the classifier of both goes
    assert two.decomposition == pytest.approx((r, u2, u1, s), abs=1e-3)


def test_names_of_classes_and_units_do_not_matter():
    z1, z2, t = signs(400, (0.8, 1.6))
    one = estimate(z1, z2, t, bootstrap=20)
    two = estimate(100 * z1 + 3, z2, np.array(["cat", "dog"])[t], bootstrap=20)
    assert two.decomposition == pytest.approx(one.decomposition, abs=1e-9)


@pytest.mark.parametrize(
    "head",
    [
        lambda p: np.log(p),
        lambda p: 3 * p,
        lambda p: p[:, 1],
        lambda p: np.hstack([p / 2, p / 2]),
        lambda p: p * np.nan,
    ],
)
def test_what_is_no_probability_is_refused(head):
    class Own(LogisticRegression):
        def predict_proba(self, z):
            return head(super().predict_proba(z))

    with pytest.raises(ValueError, match="expected .* predict_proba, .*got"):
        estimate(*signs(100, (1.0, 1.0)), by=Classifier(Own()), bootstrap=20)


@pytest.mark.filterwarnings("ignore:expected classifiers that beat")
def test_overfitting_gives_no_information():
    random = np.random.default_rng(0)
    z, t = random.normal(size=(2, 400, 1)), random.integers(2, size=400)
    tree = DecisionTreeClassifier(random_state=0)
    found = estimate(*z, t, by=Classifier(tree), bootstrap=20)
    assert found.total.value == 0


@pytest.mark.filterwarnings("ignore:expected classifiers that beat")
def test_probabilities_of_zero_are_smoothed():
    z1, z2, t = signs(400, (1.0, 1.0))
    tree = DecisionTreeClassifier(random_state=0)
    found = estimate(z1, z2, t, by=Classifier(tree), bootstrap=20)
    assert np.isfinite(np.array(found)).all()


def test_an_estimate_prints_as_a_table_and_is_saved_as_numbers():
    found = estimate(*signs(200, (1.0, 1.0)), bootstrap=20)
    assert len(str(found).splitlines()) == 8 and "I(z1, z2; t)" in str(found)
    read = json.loads(json.dumps(found.as_dict()))
    assert read["redundant"]["low"] == found.redundant.low


def test_the_seed_decides():
    views = signs(300, (1.0, 1.0))
    one, two, other = (
        estimate(*views, by=Clusters(3), bootstrap=20, seed=seed) for seed in (0, 0, 1)
    )
    assert one == two != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": np.zeros(40)}, r"\(n, dim\)"),
        ({"first": np.full((40, 1), np.nan)}, "NaN or infinity in 40 of 40"),
        ({"second": np.zeros((39, 1))}, "40 and 39 representations"),
        ({"target": np.zeros(39)}, "40 representations and 39 labels"),
        ({"target": np.linspace(0, 1, 40)}, "expected classes, .* got float64"),
        ({"target": np.zeros(40)}, "at least two classes"),
        ({"target": np.arange(40) == 0}, "items of the smallest class .* at least 2"),
        ({"by": Classifier(measure="broja")}, "'i_min', 'mmi', got 'broja'"),
        ({"by": Classifier(folds=1)}, "got 1"),
        ({"by": Clusters(measure="mmi")}, "'broja', 'i_min', got 'mmi'"),
        ({"by": Clusters(1)}, "cells as a whole number of at least 2"),
        ({"by": Clusters(2, share=1.0)}, "share strictly between 0 and 1"),
        ({"by": Clusters(8)}, "8 items to fit cells to and 8² x 2 to count"),
        ({"by": Clusters(2), "first": np.zeros((40, 1))}, "2 different"),
        ({"bootstrap": 19}, "at least 20, got 19"),
    ],
)
def test_bad_input_is_refused(change, message):
    z1, z2, t = signs(40, (1.0, 1.0))
    given = {"first": z1, "second": z2, "target": t} | change
    with pytest.raises(ValueError, match=message):
        estimate(**given)


def test_classifiers_worse_than_frequencies_are_named_and_calibration_helps():
    """Neighbours that vote all alike give probability 0 to what does occur."""
    random = np.random.default_rng(0)
    *views, t = signs(600, (2.0, 2.0))
    views = [np.hstack([z, random.normal(size=(600, 20))]) for z in views]
    model = KNeighborsClassifier(3)
    options = {"bootstrap": 20, "progress": False}
    with pytest.warns(UserWarning, match="from z1, z2, both.*CalibratedClassifierCV"):
        found = estimate(*views, t, by=Classifier(model), **options)
    assert found.total.value == 0
    by = Classifier(CalibratedClassifierCV(model))
    assert 0 < estimate(*views, t, by=by, **options).total.value < of_a_sign(2.0, 2.0)


def test_clusters_do_not_see_how_far_from_zero_z_lie():
    random = np.random.default_rng(0)
    t = random.integers(0, 4, 500)
    corners = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 3.0]])
    views = [corners[t] + 0.2 * random.normal(size=(500, 2)) for _ in range(2)]
    for offset in (0.0, 2e9):  # 2e-7 is resolved there
        moved = [z + offset for z in views]
        found = estimate(*moved, t, by=Clusters(4), bootstrap=20).total.value
        assert found == pytest.approx(math.log(4), abs=0.05)
