"""Novelty: scores, their detection, and the coverage of conformal sets."""

import math

import numpy as np
import pytest
import torch
from helpers import linear
from helpers.catalogue import DIM, EVENT, encoder, joint
from helpers.checks import refusals
from scipy.spatial import cKDTree
from scipy.stats import multivariate_normal, norm

import probssl as ps
from probssl.data import groups
from probssl.evaluation import (
    Undefined,
    detection,
    few_label_probe,
    linear_probe,
    log_kernel_density,
    neighbour_distance,
    prediction_sets,
)

NOISE, SCALE, Y_SCALE = 0.4, 0.6, 1.3


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Detection


def test_the_area_is_the_share_of_pairs_in_order():
    known, novel = draws(30).round(1), draws(20, seed=1).round(1) + 0.5  # with ties
    pairs = np.sign(novel[:, None] - known) / 2 + 0.5
    found = detection(known, novel)
    assert found.auroc.value == pytest.approx(pairs.mean())
    precision = [
        ((novel >= t).sum() / ((novel >= t).sum() + (known >= t).sum())) for t in novel
    ]
    assert found.aupr == pytest.approx(np.mean(precision))
    accepted = [t for t in np.sort(known) if (known <= t).mean() >= 0.95][0]
    assert found.fpr95 == (novel <= accepted).mean()


def test_scores_that_are_normal_have_the_areas_of_normals():
    n, shift = 20_000, 1.2
    found = detection(draws(n), draws(n, seed=1) + shift)
    area = norm.cdf(shift / math.sqrt(2))
    assert abs(found.auroc.value - area) < 5 * found.auroc.standard_error
    share = norm.cdf(norm.ppf(0.95) - shift)
    quantile = norm.pdf(norm.ppf(0.95) - shift) / norm.pdf(norm.ppf(0.95))
    error = math.sqrt((share * (1 - share) + 0.0475 * quantile**2) / n)
    assert abs(found.fpr95 - share) < 5 * error
    worst = detection(np.arange(9.0), np.arange(9.0) - 20)
    assert worst.auroc == (0.0, 0.0) and worst.fpr95 == 1.0


def test_the_standard_error_of_the_area_is_its_spread():
    many = [
        detection(draws(20, seed=s), 1 + draws(200, seed=1000 + s)).auroc
        for s in range(400)
    ]
    value, error = np.transpose(many)
    spread = value.std(ddof=1)
    assert abs(error.mean() / spread - 1) < 5 / math.sqrt(2 * len(many))


# The place of z


def test_the_kernel_density_is_a_mean_of_normals():
    z_train, z = draws(40, 3), draws(7, 3, seed=1)
    each = [multivariate_normal(m, 0.25 * np.eye(3)).pdf(z) for m in z_train]
    found = log_kernel_density(z_train, z, bandwidth=0.5)
    np.testing.assert_allclose(found, np.log(np.mean(each, 0)))


def test_the_bandwidth_maximises_the_left_out_density(monkeypatch):
    from probssl.evaluation import novelty

    z = draws(80, 2) * [1.0, 3.0]

    def left_out(h):
        parts = [
            log_kernel_density(np.delete(z, i, 0), z[i : i + 1], h) for i in range(80)
        ]
        return np.concatenate(parts).mean()

    h = novelty._bandwidth(z)
    assert all(left_out(h) > left_out(h * factor) for factor in (0.98, 1.02, 0.3, 3))
    np.testing.assert_array_equal(log_kernel_density(z, z), log_kernel_density(z, z, h))
    monkeypatch.setattr(novelty, "DISTANCES_AT_ONCE", 100)  # in parts
    np.testing.assert_allclose(log_kernel_density(z, z), log_kernel_density(z, z, h))


def test_the_kernel_density_of_normal_items_tends_to_the_normal():
    z = draws(300, 2, seed=1)
    truth = norm.logpdf(z).sum(1)
    gaps = [
        np.square(log_kernel_density(draws(n, 2), z) - truth).mean()
        for n in (200, 5000)
    ]
    assert gaps[1] < gaps[0] / 2


def test_the_distance_is_that_of_the_k_th_neighbour():
    z_train, z = draws(50, 3), draws(9, 3, seed=1)
    expected = cKDTree(z_train).query(z, 4)[0][:, -1]
    np.testing.assert_allclose(neighbour_distance(z_train, z, 4), expected)


test_arguments_are_refused = refusals(
    (lambda: detection([1.0], [1.0, 2.0]), ValueError, "at least 2 items in known"),
    (lambda: detection([1.0, 2], [1.0, math.nan]), ValueError, "finite"),
    (
        lambda: neighbour_distance(draws(5, 2), draws(3, 2), 6),
        ValueError,
        "from 1 to 5",
    ),
    (
        lambda: log_kernel_density(draws(5, 2), draws(3, 2), 0.0),
        ValueError,
        "bandwidth",
    ),
    (lambda: log_kernel_density(np.ones((5, 2)), np.ones((1, 2))), Undefined, "copies"),
    (lambda: log_kernel_density(draws(5, 2), draws(3, 3)), ValueError, "one dimension"),
)


# Of a model


@pytest.mark.usefixtures("float64")
def test_novelty_of_a_linear_gaussian_model_is_its_closed_form():
    prior = ps.priors.Gaussian(2, SCALE, Y_SCALE)
    model, x = linear.linear_gaussian(prior, EVENT, NOISE), torch.randn(5, 2, EVENT)
    found = ps.novelty(model, groups(x.numpy()), particles=3)
    both = linear.evidence(model, x).numpy()
    apart = sum(linear.evidence(model, x[:, v : v + 1]).numpy() for v in range(2))
    np.testing.assert_allclose(found.evidence.log_evidence, both)
    np.testing.assert_allclose(found.information, both - apart)
    assert list(found.scores) == ["evidence", "information"]
    np.testing.assert_allclose(found.scores["information"], apart - both)
    assert found.distance is None


@pytest.mark.usefixtures("float64")
def test_the_information_of_modalities_is_that_of_their_views():
    prior = ps.priors.Gaussian(2, SCALE, Y_SCALE)
    one = linear.linear_gaussian(prior, EVENT, NOISE)
    parts = ps.nn.PerModality([one.encoder] * 2), ps.nn.PerModality([one.decoder] * 2)
    guide = linear.exact(ps.guides.CoupledLikelihoods)
    likelihoods = [ps.likelihoods.Gaussian(NOISE), ps.likelihoods.Gaussian(NOISE)]
    model = ps.Joint(prior, likelihoods, *parts, guide=guide)
    x = torch.randn(5, 2, EVENT)
    found = ps.novelty(model, (x[:, 0], x[:, 1]), particles=3)
    apart = sum(linear.evidence(one, x[:, v : v + 1]) for v in range(2))
    expected = linear.evidence(one, x) - apart
    np.testing.assert_allclose(found.information, expected.detach().numpy())


def test_the_place_of_z_needs_no_joint():
    simclr, x, known = (
        ps.limits.SimCLR(encoder()),
        torch.randn(4, EVENT),
        torch.randn(50, EVENT),
    )
    found = ps.novelty(simclr, x, known, k=3)
    z, z_known = ps.embed(simclr, x), ps.embed(simclr, known)
    np.testing.assert_allclose(found.distance, neighbour_distance(z_known, z, 3))
    np.testing.assert_allclose(found.log_density, log_kernel_density(z_known, z))
    scores = found.scores
    assert list(scores) == ["log_density", "distance"]
    np.testing.assert_allclose(scores["log_density"], -found.log_density)


def test_a_single_view_has_no_information():
    model = joint(ps.priors.Gaussian(DIM))
    found = ps.novelty(model, torch.randn(4, EVENT), particles=3)
    assert found.information is None and len(found.evidence.log_evidence) == 4


def pair(x):
    return torch.stack([x, x], 1)


test_what_has_no_novelty_is_refused = refusals(
    (lambda: ps.novelty(encoder(), torch.randn(4, EVENT)), ValueError, "got neither"),
    (
        lambda: ps.novelty(encoder(), torch.randn(4, EVENT), particles=3),
        ValueError,
        "joint distribution",
    ),
    (
        lambda: ps.novelty(
            encoder(), torch.randn(4, EVENT), torch.randn(9, EVENT), views=pair
        ),
        ValueError,
        "without particles",
    ),
)


# Conformal sets


def classes(n, seed):
    """Three normal classes that overlap, and their labels."""
    y = np.random.default_rng(seed).integers(3, size=n)
    return draws(n, 2, seed=seed + 10**6) + 1.2 * np.eye(3)[y, :2], y


@pytest.mark.parametrize("error, n", [(0.1, 19), (0.2, 12), (0.5, 3)])
def test_sets_hold_the_class_with_the_probability_of_split_conformal(error, n):
    train, y = classes(30, 0)
    covered, repeats, many = [], 300, 40
    for s in range(repeats):
        z, label = classes(n + many, 1 + s)
        found = prediction_sets(train, y, z[:n], label[:n], z[n:], error=error)
        covered.append(found.coverage(label[n:]).value)
    mean, bar = np.mean(covered), 5 * np.std(covered) / math.sqrt(repeats)
    exact = math.ceil((n + 1) * (1 - error)) / (n + 1)  # of scores without ties
    assert abs(mean - exact) < bar
    assert 1 - error <= exact <= 1 - error + 1 / (n + 1)


def test_sets_are_those_above_the_threshold_of_the_calibration_items():
    (train, y), (held, y_held), (z, label) = (classes(n, n) for n in (60, 30, 50))
    found = prediction_sets(train, y, held, y_held, z, error=0.2)
    own = prediction_sets(train, y, held, y_held, held).probability[range(30), y_held]
    assert found.threshold == np.sort(own)[::-1][math.ceil(31 * 0.8) - 1]
    np.testing.assert_array_equal(
        found.sets, found.probability >= found.threshold - 1e-12
    )
    np.testing.assert_array_equal(found.sizes, found.sets.sum(1))
    hits = [found.sets[i, label[i]] for i in range(50)]
    assert found.coverage(label).value == pytest.approx(np.mean(hits))
    assert repr(found).startswith(f"PredictionSets({len(found.sets)} items, ")
    top = found.classes[found.probability.argmax(1)]
    assert (top == label).mean() == linear_probe(train, y, z, label)
    for other in (label.astype(str), np.where(label == 0, -1, label), label + 7):
        with pytest.raises(ValueError, match="labels among the classes .* leave items"):
            found.coverage(other)
    # 3 calibration items cannot bound an error of 0.1
    assert prediction_sets(train, y, held[:3], y_held[:3], z).sets.all()


def test_equal_items_have_equal_sets():
    """A matrix product rounds the same item in other ways, by shape and row."""
    random = np.random.default_rng(0)
    places = random.normal(size=(4, 17))
    drawn = random.integers(4, size=400)
    z, y = places[drawn], (drawn + random.integers(2, size=400)) % 3
    found = prediction_sets(z[:90], y[:90], z[90:220], y[90:220], z[220:], error=0.3)
    for place in range(4):
        sets = found.sets[drawn[220:] == place]
        assert (sets == sets[0]).all()


def test_few_labels_are_the_first_of_the_few_label_probe():
    (train, y), (held, y_held), (z, label) = (classes(n, n) for n in (90, 30, 400))
    found = prediction_sets(train, y, held, y_held, z, labels_per_class=4, seed=3)
    top = found.classes[found.probability.argmax(1)]
    few = few_label_probe(train, y, z, label, labels_per_class=4, repeats=2, seed=3)
    assert (top == label).mean() == few.draws[0]


def bad_sets(**options):
    train, y = classes(30, 0)
    known = {"y_calibration": y} | options
    z_calibration = train[: len(known["y_calibration"])]
    return prediction_sets(train, y, z_calibration, z=train, **known)


test_sets_are_refused = refusals(
    (lambda: bad_sets(error=1.0), ValueError, "error strictly between 0 and 1"),
    (lambda: bad_sets(labels_per_class=99), ValueError, "labels_per_class"),
    (lambda: bad_sets(y_calibration=np.array([0, 1, 7])), ValueError, r"also \[7\]"),
    (lambda: bad_sets(penalty=-1.0), ValueError, "penalty"),
)
