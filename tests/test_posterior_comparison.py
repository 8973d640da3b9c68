"""Comparison by log evidence: exact differences, weights by their optimality."""

import math
import warnings

import arviz as az
import numpy as np
import pytest
import torch
from helpers import linear
from helpers.catalogue import joint
from helpers.checks import refusals
from matplotlib import pyplot
from scipy.special import logsumexp
from torch.testing import assert_close

import probssl as ps
from probssl.posterior import containers
from probssl.posterior.comparison import pseudo_bma, stacking

pytestmark = pytest.mark.usefixtures("float64")
EVENT, NOISE = 5, 0.4


def models(*scales: float) -> dict[str, ps.Joint]:
    """Linear-Gaussian models with one decoder and exact guides."""
    made = {}
    for scale in scales:
        torch.manual_seed(2)
        prior = ps.priors.Gaussian(2, scale)
        made[f"scale {scale}"] = linear.linear_gaussian(prior, EVENT, NOISE)
    return made


@pytest.mark.parametrize("views", [1, 2, 3])
def test_differences_and_errors_are_those_of_exact_evidences(views):
    given = models(0.3, 0.6, 1.5)
    x = ps.calibration.simulate(given["scale 0.6"], 60, views).data
    found = ps.compare_evidence(given, x, particles=30, batch_size=17)
    exact = {name: linear.evidence(m, x.views) for name, m in given.items()}
    exact = {name: value.detach().numpy() for name, value in exact.items()}
    table = found.table
    assert [*table.index] == sorted(exact, key=lambda name: -exact[name].mean())
    best = exact[table.index[0]]
    for name, row in table.iterrows():
        away = exact[name] - best
        assert_close(row["log_evidence"], exact[name].mean(), rtol=1e-9, atol=1e-9)
        assert_close(row["difference"], away.mean(), rtol=1e-9, atol=1e-9)
        error = away.std(ddof=1) / math.sqrt(60)
        assert_close(row["difference_se"], error, rtol=1e-9, atol=1e-9)
    assert table["difference_se"].iloc[0] == 0 and table["unreliable"].sum() == 0
    for weight in ("stacking", "pseudo_bma"):
        assert_close(table[weight].sum(), 1.0)
        assert (table[weight] >= 0).all()


def test_all_models_see_the_same_random_views():
    torch.manual_seed(2)
    model = linear.linear_gaussian(ps.priors.Gaussian(2, 0.6), EVENT, NOISE)
    found = ps.compare_evidence(
        {"a": model, "b": ps.limits.SimVAE(model)},
        torch.randn(20, EVENT),
        views=lambda x: torch.stack([x + torch.randn_like(x), x], 1),
        batch_size=6,
    )
    values = [own.log_evidence for own in found.evidences.values()]
    assert_close(values[0], values[1], rtol=1e-9, atol=1e-9)
    assert_close(list(found.stacking.values()), [0.5, 0.5])


def test_stacking_weights_are_optimal():
    """The Karush-Kuhn-Tucker conditions of a concave maximum on the simplex."""
    rng = np.random.default_rng(0)
    log_p = 30 * rng.normal(size=(200, 1)) + rng.normal(size=(200, 4)) * [1, 2, 3, 1]
    log_p[:, 3] = log_p[:, 0] - 0.5  # never better than the first
    weights = stacking(log_p)
    mixed = logsumexp(log_p, axis=1, b=weights, keepdims=True)
    gradient = np.exp(log_p - mixed).mean(0)
    assert (gradient < 1 + 1e-5).all() and weights[3] < 1e-6
    np.testing.assert_allclose(gradient[weights > 1e-3], 1, atol=1e-5)
    assert (weights > 1e-3).sum() > 1


@pytest.mark.parametrize("few", [1, 3])
def test_a_model_that_few_items_prefer_has_their_share(few):
    log_density = np.zeros((10_000, 2))
    log_density[:few, 0] = log_density[few:, 1] = -1_000
    np.testing.assert_allclose(stacking(log_density)[1], few / 10_000, rtol=1e-6)


def test_pseudo_bma_is_that_of_two_models_in_closed_form():
    """The sum of Bayesian bootstrap shares times ±d is nearly normal for many items."""
    rng = np.random.default_rng(0)
    log_p = np.zeros((4_000, 2))
    log_p[:, 0] = rng.normal(size=4_000) * 3 / math.sqrt(4_000)
    mean, spread = log_p[:, 0].sum(), log_p[:, 0].std() * math.sqrt(4_000)
    nodes, shares = np.polynomial.hermite_e.hermegauss(60)
    expected = shares @ (1 / (1 + np.exp(-mean - spread * nodes))) / shares.sum()
    error = 5 * 0.5 / math.sqrt(1_000)
    assert abs(pseudo_bma(log_p)[0] - expected) < error


@pytest.mark.filterwarnings(  # ArviZ 0.23 and pandas 3.1
    "ignore:The inplace keyword in DataFrame.sort_values"
)
@pytest.mark.parametrize("major", [0, 1])
def test_arviz_draws_the_table(major, monkeypatch):
    given = models(0.3, 0.6)
    found = ps.compare_evidence(given, torch.randn(30, EVENT))
    monkeypatch.setattr(containers, "_major", lambda: major)
    drawn, table = found.to_arviz(), found.table
    name, sign = ("elpd_loo", -1) if major == 0 else ("elpd", 1)
    np.testing.assert_allclose(drawn[name], 30 * table["log_evidence"])
    np.testing.assert_allclose(drawn["elpd_diff"], sign * 30 * table["difference"])
    np.testing.assert_allclose(drawn["dse"], 30 * table["difference_se"])
    assert drawn["rank"].tolist() == [0, 1]
    if major == int(az.__version__[0]):
        az.plot_compare(drawn)
        pyplot.close("all")


@pytest.mark.filterwarnings("ignore:Pareto:UserWarning")
@pytest.mark.parametrize("last", [False, True])
def test_each_model_sees_the_data_in_its_own_precision(last):
    exact = models(0.6)["scale 0.6"]
    x = 1e3 + torch.randn(6, EVENT)
    expected = linear.evidence(exact, x.unsqueeze(1)).detach().numpy()
    given = {
        "exact": exact,
        "rounded": joint(ps.priors.Gaussian(2), event=EVENT).float(),
    }
    if last:
        given = dict(reversed(given.items()))
    found = ps.compare_evidence(given, x, particles=30)
    got = found.evidences["exact"].log_evidence
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def of_three(*likelihoods: ps.likelihoods.Likelihood) -> ps.Joint:
    prior, nets = ps.priors.Gaussian(2), ps.nn.PerModality
    encoders = nets([ps.nn.MLPEncoder((EVENT,), 2) for _ in likelihoods])
    decoders = nets([ps.nn.MLPDecoder(2, (EVENT,)) for _ in likelihoods])
    return ps.Joint(prior, likelihoods, encoders, decoders)


def test_modalities_of_several_measures_are_compared_in_turn():
    density, count = ps.likelihoods.Gaussian(0.5), ps.likelihoods.Poisson()
    one, other = of_three(density, count, count), of_three(density, density, count)
    data = ps.data.groups([torch.ones(4, EVENT)] * 3)
    with pytest.raises(ValueError, match="of one measure, got a: .* × .* × "):
        ps.compare_evidence({"a": one, "b": other}, data)
    alike = {"a": one, "b": of_three(density, count, count)}
    assert len(ps.compare_evidence(alike, data, particles=5).table) == 2


def test_it_is_shown_with_units_and_measure():
    found = ps.compare_evidence(models(0.3, 0.6), torch.randn(30, EVENT))
    for text in (repr(found), found._repr_html_()):
        assert "30 items, nats per item, measure: Lebesgue" in text
        assert "scale 0.3" in text and "pseudo_bma" in text


def test_unreliable_weights_are_said():
    given = {name: joint(ps.priors.Gaussian(3, 0.5)) for name in "ab"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ps.compare_evidence(given, 9 * torch.randn(8, 6), particles=50)
    told = ", ".join(f"{n}: {e.unreliable}" for n, e in given_evidences(found, given))
    assert f"({told})" in str(caught[-1].message)
    assert (found.table["unreliable"] > 0).any()
    assert caught[-1].filename == __file__


def given_evidences(found, given):
    return [(name, found.evidences[name]) for name in given]


def counting() -> ps.Joint:
    networks = ps.nn.MLPEncoder((EVENT,), 2), ps.nn.MLPDecoder(2, (EVENT,))
    return ps.Joint(ps.priors.Gaussian(2), ps.likelihoods.Poisson(), *networks)


test_what_does_not_compare_is_refused = refusals(
    (
        lambda: ps.compare_evidence(models(0.3) | {"c": counting()}, torch.ones(4, 5)),
        ValueError,
        "of one measure, got scale 0.3: Lebesgue; c: counting",
    ),
    (
        lambda: ps.compare_evidence(models(0.3), torch.ones(4, 5)),
        ValueError,
        "at least 2 models",
    ),
    (
        lambda: ps.compare_evidence(models(0.3, 0.6), torch.ones(1, 5)),
        ValueError,
        "at least 2 items",
    ),
    (
        lambda: ps.compare_evidence(models(0.3, 0.6), torch.ones(4, 6)),
        (ValueError, RuntimeError),
        "5|6",
    ),
    (
        lambda: ps.compare_evidence([counting()], torch.ones(4, 5)),
        TypeError,
        "objectives as",
    ),
)
