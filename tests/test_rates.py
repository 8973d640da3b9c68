"""Collapse: rate, distortion and information of z, LiDAR, remarks and probes."""

import logging
import math
import sys

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.catalogue import DIM, EVENT, Everything, encoder, joint, spherical_joint
from helpers.checks import refusals
from scipy.integrate import quad
from scipy.stats import norm
from torch.testing import assert_close

import probssl as ps
from probssl.data import groups
from probssl.evaluation import effective_rank, knn, lidar, linear_probe
from probssl.posterior import rate_distortion

NOISE, SCALE, Y_SCALE = 0.4, 0.6, 1.3


def near(found, value):
    return abs(found.value - value) < 5 * found.standard_error


# Rate and distortion


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("views", [1, 2])
def test_rate_and_distortion_are_minus_the_evidence_under_the_exact_posterior(views):
    prior = ps.priors.Gaussian(2, SCALE, Y_SCALE)
    model, x = linear.linear_gaussian(prior, EVENT, NOISE), torch.randn(6, views, EVENT)
    found = rate_distortion(model, groups(x.numpy()), draws=3)
    bound = -linear.evidence(model, x).mean().item()
    assert found.rate.value + found.distortion.value == pytest.approx(bound)
    parts = found.information.value + found.aggregated.value
    assert found.rate.value == pytest.approx(parts)
    assert (found.kl_per_dimension is None) == (views > 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("guide", [ps.guides.DiagonalGaussian, ps.guides.Coupled])
def test_the_rate_is_the_sum_of_the_divergences_of_the_dimensions(guide):
    model, x = (
        joint(ps.priors.Gaussian(DIM, SCALE, Y_SCALE), guide=guide),
        torch.randn(40, EVENT),
    )
    found = rate_distortion(model, x, draws=300)
    z, std = ps.embed(model, x, return_std=True)
    variance = SCALE**2 + Y_SCALE**2
    each = ((z**2 + std**2) / variance - 1 - np.log(std**2 / variance)) / 2
    np.testing.assert_allclose(found.kl_per_dimension, each.mean(0))
    np.testing.assert_allclose(found.mean_variance, z.var(0, ddof=1))
    # the same items: only the draws differ, far less than items do
    assert near(found.rate, each.sum(1).mean())
    assert abs(found.rate.value - each.sum(1).mean()) < 0.05


@pytest.mark.usefixtures("float64")
class Halved(ps.guides.DiagonalGaussian):
    """A guide whose q(z|x) is a subclass of a normal, with another density."""

    def forward(self, *args, **options):
        q = super().forward(*args, **options)
        return Tilted(q.base_dist.loc, q.base_dist.scale).to_event(2)


class Tilted(dist.Normal):
    def log_prob(self, value):
        tilt = torch.special.log_ndtr((value - self.loc) / self.scale)
        return super().log_prob(value) + tilt + math.log(2)

    def expand(self, batch_shape, _instance=None):
        return Tilted(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


def test_a_subclass_of_a_normal_has_no_divergence_in_closed_form():
    model = joint(ps.priors.Independent(DIM), guide=Halved)
    found = rate_distortion(model, torch.randn(5, EVENT))
    assert found.kl_per_dimension is None


def test_the_information_is_that_of_a_mixture_of_the_guides():
    model, x = joint(ps.priors.Gaussian(1, SCALE, Y_SCALE)), 3 * torch.randn(5, EVENT)
    z, std = (each[:, 0] for each in ps.embed(model, x, return_std=True))
    scale = math.hypot(SCALE, Y_SCALE)

    def mixture(t):
        return norm.pdf(t, z, std).mean()

    def mean(log_ratio):
        ends = [(m - 8 * s, m + 8 * s) for m, s in zip(z, std, strict=True)]
        each = [quad(log_ratio, *ends[i], (i,))[0] for i in range(5)]
        return np.mean(each)

    def told_apart(t, i):
        one = norm.pdf(t, z[i], std[i])
        return one * np.log(one / mixture(t))

    def beside_the_prior(t, i):
        return norm.pdf(t, z[i], std[i]) * np.log(mixture(t) / norm.pdf(t, 0, scale))

    information, aggregated = mean(told_apart), mean(beside_the_prior)
    n = 20_000
    found = rate_distortion(model, x, draws=n)
    bar = 5 * 2 / math.sqrt(5 * n)  # of log ratios that vary by less than 2
    assert abs(found.information.value - information) < bar
    assert abs(found.aggregated.value - aggregated) < bar


@pytest.mark.usefixtures("float64")
def test_items_far_apart_have_the_information_of_their_number():
    prior = ps.priors.Gaussian(2, SCALE, Y_SCALE)
    model = linear.linear_gaussian(prior, EVENT, NOISE)
    found = rate_distortion(model, 1e4 * torch.randn(7, EVENT))
    assert found.information.value == pytest.approx(math.log(7))
    same = rate_distortion(model, torch.ones(7, EVENT))
    assert same.information.value == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(same.mean_variance, 0, atol=1e-20)


@pytest.mark.usefixtures("float64")
def test_in_parts_and_on_spheres_it_is_the_same(monkeypatch):
    from probssl.posterior import rates

    for model in (spherical_joint(), joint(ps.priors.TwoTier(DIM, 2))):
        x = torch.randn(9, EVENT)
        found = []
        for size in (2**22, 30):
            monkeypatch.setattr(rates, "NUMBERS_AT_ONCE", size)
            torch.manual_seed(3)
            found.append(rate_distortion(model, x, batch_size=64))
        assert found[0].kl_per_dimension is None
        assert_close(found[0].information.value, found[1].information.value)


test_what_has_no_rate_is_refused = refusals(
    (lambda: rate_distortion(encoder(), torch.ones(3, EVENT)), ValueError, "joint"),
    (
        lambda: rate_distortion(
            joint(ps.priors.Gaussian(DIM), guide=ps.guides.Point), torch.ones(3, EVENT)
        ),
        ValueError,
        "guide with a density",
    ),
    (
        lambda: rate_distortion(joint(ps.priors.Gaussian(DIM)), torch.ones(1, EVENT)),
        ValueError,
        "at least 2 items",
    ),
)


# LiDAR


def views_of(means, spread, n_views=4, seed=0):
    noise = np.random.default_rng(seed).normal(
        size=(len(means), n_views, means.shape[1])
    )
    return means[:, None] + spread * (noise - noise.mean(1, keepdims=True))


def test_lidar_is_the_entropy_of_the_spectrum_beside_the_views():
    random = np.random.default_rng(0)
    means, spread = (
        random.normal(size=(50, 3)) * [1.0, 3.0, 0.2],
        np.array([0.5, 2, 0.1]),
    )
    z = views_of(means, spread)
    between = np.cov(means.T, bias=True)
    within = sum(np.cov(item.T) for item in z) / 50 + 1e-4 * np.eye(3)
    p = np.linalg.eigvals(np.linalg.inv(within) @ between).real
    p = p / p.sum() + 1e-7
    assert lidar(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_lidar_leaves_out_what_views_differ_in_and_the_rank_does_not():
    random = np.random.default_rng(0)
    means = random.normal(size=(400, 6))
    spread = np.array([0.1] * 3 + [30.0] * 3)  # style in three dimensions
    z = views_of(means, spread)
    assert 2.5 < lidar(z) < 3.2
    even = z / z.std((0, 1))
    assert lidar(even) == pytest.approx(lidar(z), rel=1e-2)
    assert effective_rank(even[:, 0]) > 5.5  # counts style as content


test_lidar_is_refused = refusals(
    (lambda: lidar(np.ones((3, 1, 2))), ValueError, "at least 2 items with 2 views"),
    (lambda: lidar(np.ones((3, 2))), ValueError, "n, view, dim"),
    (lambda: lidar(np.ones((3, 2, 2)), ridge=0.0), ValueError, "ridge"),
)


def test_lidar_of_equal_means_is_zero():
    assert lidar(views_of(np.ones((5, 2)), 1.0)) == 0.0


# What a fit says of units that die


def fitted(prior, caplog, **options):
    model = joint(prior, **options)
    with torch.no_grad():  # the encoder ignores the last dimension
        model.encoder.head.weight[-1] = 0.0
        model.encoder.head.weight[:-1] *= 20
    objective = ps.limits.SimVAE(model)
    optimizer = torch.optim.SGD(objective.parameters(), 1e-9)
    with caplog.at_level(logging.WARNING):
        ps.fit(
            objective,
            torch.randn(64, EVENT),
            views=pairs,
            epochs=2,
            optimizer=optimizer,
            progress=False,
        )
    return model


def pairs(x):
    return torch.stack([x, x + 0.1 * torch.randn_like(x)], 1)


def test_a_fit_says_once_how_many_dimensions_are_inactive(caplog):
    fitted(ps.priors.Gaussian(DIM), caplog)
    assert caplog.text.count("1 of 3 dimensions of z are inactive") == 1


def test_a_fit_says_nothing_where_all_are_active(caplog):
    model = joint(ps.priors.Gaussian(DIM))
    with torch.no_grad():
        model.encoder.head.weight *= 20
    assert model.remark_on(ps.Batch(torch.randn(64, 1, EVENT))) is None
    assert spherical_joint().remark_on(ps.Batch(torch.randn(64, 1, EVENT))) is None


def test_the_threshold_is_a_share_of_the_variance_of_the_prior():
    model = joint(ps.priors.Gaussian(DIM, 6.0, 8.0))  # of variance 100
    model.encoder.forward = lambda x: x[:, :DIM] * torch.tensor([0.9, 1.1, 9.0])
    x = torch.randn(4000, 1, EVENT)
    x = (x - x.mean(0)) / x.std(0)
    assert model.remark_on(ps.Batch(x)).startswith("1 of 3 dimensions")


def test_the_remark_leaves_state_and_random_numbers_of_a_fit_alone(monkeypatch):
    module = sys.modules["probssl.train.fit"]
    found = []
    for silent in (False, True):
        if silent:
            monkeypatch.setattr(module, "closing_remarks", lambda *_: None)
        torch.manual_seed(0)
        objective = ps.limits.SimVAE(joint(ps.priors.Gaussian(DIM)))
        ps.fit(objective, torch.randn(64, EVENT), views=pairs, epochs=2, progress=False)
        found.append((objective.state_dict(), torch.rand(3)))
    assert_close(found[0], found[1], rtol=0, atol=0)


# Probes of each epoch


def labelled(n, seed):
    torch.manual_seed(seed)
    y = torch.arange(n) % 3
    return ps.data.Split(torch.randn(n, EVENT) + torch.eye(EVENT)[y], y)


def test_probes_of_epochs_are_those_of_the_parameters_of_that_epoch():
    train, valid = labelled(60, 0), labelled(30, 1)
    objective = ps.limits.SimCLR(encoder())
    probe = ps.probing.probe_epochs(objective, train, valid, every=2, k=3)
    history = ps.fit(
        objective, train, views=pairs, epochs=4, on_epoch=probe, progress=False
    )
    z, z_valid = ps.embed(objective, train), ps.embed(objective, valid)
    data = z, train.labels, z_valid, valid.labels
    assert history["knn"][-1] == knn(*data, k=3)
    assert history["linear_probe"][-1] == linear_probe(*data)
    assert history["effective_rank"][-1] == effective_rank(z_valid)
    assert np.isnan(history["knn"]).tolist() == [True, False, True, False]


@pytest.mark.filterwarnings("ignore:z is one random draw")
def test_probes_change_neither_the_state_nor_the_random_numbers():
    train, valid = labelled(60, 0), labelled(30, 1)
    found = []
    for probed in (False, True):
        torch.manual_seed(0)
        objective = Everything()
        objective.represent = lambda x, m=objective: (
            m.network(x) + torch.rand(len(x), 1)
        )
        probe = ps.probing.probe_epochs(objective, train, valid, max_train=40)
        ps.fit(
            objective,
            train,
            views=pairs,
            epochs=2,
            progress=False,
            on_epoch=probe if probed else None,
        )
        found.append((objective.state_dict(), torch.rand(3)))
    assert_close(found[0], found[1], rtol=0, atol=0)


test_probes_are_refused_without_labels = refusals(
    (
        lambda: ps.probing.probe_epochs(
            encoder(), ps.data.Split(torch.randn(9, EVENT)), labelled(9, 0)
        ),
        ValueError,
        "labels of the items of train",
    ),
    (
        lambda: ps.probing.probe_epochs(
            encoder(), labelled(9, 0), labelled(9, 0), every=0
        ),
        ValueError,
        "every",
    ),
)
