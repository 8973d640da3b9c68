"""Annealed importance sampling: exact means, exact limits, and the grid."""

import numpy as np
import pytest
import torch
from helpers import linear
from helpers.checks import assert_mean
from helpers.linear import evidence as exact_evidence
from test_posterior_refinement import astray, bent, error, on_circle, on_circles

import probssl as ps
from probssl.data import groups
from probssl.posterior.annealing import Annealed
from probssl.posterior.coordinates import Latents
from probssl.posterior.refinement import LocalNormal, Refined

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Pareto:UserWarning"),
]
DIM, EVENT, NOISE, SCALE = 2, 5, 0.4, 0.6


@pytest.mark.parametrize("views", [1, 2, 3])
def test_weights_of_an_exact_guide_are_the_evidence_whatever_the_steps(views):
    model = linear.linear_gaussian(ps.priors.Gaussian(DIM, SCALE), EVENT, NOISE)
    x = torch.randn(4, views, EVENT)
    with torch.no_grad():
        annealed = Annealed(Latents(model, ps.Batch(x)), 5)
        found = annealed.log_weights(7)
    expected = exact_evidence(model, x).detach().expand(7, -1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("absent", [False, True])
def test_weights_are_unbiased_with_few_temperatures_and_bad_steps(views, absent):
    """The mean weight is p(x): before the posterior is reached, with steps unfit."""
    model, x = astray(ps.priors.Gaussian(DIM, SCALE)), 0.5 * torch.randn(1, 3, EVENT)
    present = None
    if absent:
        present = torch.arange(3).expand(1, 3) < views
    else:
        x = x[:, :views]
    with torch.no_grad():
        latents = Latents(model, ps.Batch(x, present=present))
        refined = Refined(LocalNormal(latents, 150))
        refined.loc = refined.loc + 0.7 * refined.tril.sum(-1)  # off again
        refined.tril = 1.5 * refined.tril
        annealed = Annealed(latents, 4, refined)
        for size in (annealed.steps, torch.tensor([[0.9], [0.1], [0.4]])):
            annealed.steps = size
            log_weight = annealed.log_weights(4_000)[:, 0]
            exact = exact_evidence(model, x[:, :views])[0].detach()
            assert_mean((log_weight - exact).exp(), 1.0)
            assert (log_weight - exact).std() > 0.1


def test_temperatures_close_the_gap():
    model, x = astray(ps.priors.Gaussian(DIM, SCALE)), torch.randn(4, 2, EVENT)
    with torch.no_grad():
        latents, ess = Latents(model, ps.Batch(x)), []
        for temperatures in (1, 8, 40):
            log_weight = Annealed(latents, temperatures).log_weights(100)
            ess.append(float(ps.special.effective_sample_size(log_weight).median()))
    assert ess[0] < ess[1] < ess[2] and ess[2] > 40
    exact = exact_evidence(model, x).detach()
    found = log_weight.logsumexp(0) - np.log(100)
    bar = 5 / ps.special.effective_sample_size(log_weight).sqrt()
    assert ((found - exact).abs() < bar).all()


def test_it_agrees_with_refined_importance_sampling_on_a_nonlinear_model():
    model = bent(ps.priors.Gaussian(2, SCALE))
    x = ps.calibration.simulate(model, 4, 2).data.views.numpy()
    refined = ps.evidence(model, groups(x), particles=2_000, refine=200)
    both = ps.evidence(model, groups(x), particles=500, refine=20, anneal=10)
    gap = np.abs(refined.log_evidence - both.log_evidence)
    errors = np.hypot(error(refined), np.sqrt(1 / both.ess))
    good = (both.pareto_k < 0.7) & (refined.pareto_k < 0.7)
    assert good.sum() >= 3 and (gap < 5 * errors)[good].all()
    assert "annealing" not in repr(both) and both.before is not None


@pytest.mark.parametrize("options", [{"anneal": 12}, {"refine": 20, "anneal": 6}])
@pytest.mark.parametrize("views", [1, 2])
def test_on_the_circle_it_agrees_with_the_grid(views, options):
    model = on_circle()
    x = ps.calibration.simulate(model, 4, views).data.views
    found = ps.evidence(model, groups(x.numpy()), particles=250, **options)
    gap = found.log_evidence - on_circles(model, x)
    assert (np.abs(gap) < 5 * np.sqrt(1 / found.ess)).all()
