"""Annealed importance sampling: exact means, exact limits, and the grid."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.checks import assert_mean
from helpers.linear import evidence as exact_evidence
from test_posterior_refinement import astray, bent, error, on_circle, on_circles
from torch import Tensor, nn

import probssl as ps
from probssl.data import groups
from probssl.posterior import annealing
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


class Positive(ps.priors.Prior):
    """Independent views of a density of positive numbers."""

    def __init__(self, p: dist.TorchDistribution) -> None:
        super().__init__()
        self.p, self.dim = p.expand((1,)).to_event(1), 1

    def forward(self, views: int, *, present: object = None) -> dist.TorchDistribution:
        return self.p.expand((views,)).to_event(1)


class OfPositive(ps.guides.DiagonalGaussian):
    support = dist.constraints.independent(dist.constraints.positive, 1)

    def each(self, x: Tensor, present: object = None) -> dist.TorchDistribution:
        return dist.LogNormal(*self.factors(x, present)).to_event(1)


@pytest.mark.parametrize("p", [dist.LogNormal(0.0, 1.0), dist.Gamma(0.5, 1.0)])
def test_draws_that_overflow_are_rejected(p, monkeypatch):
    """Trajectories far too long at first, against sums on a grid of log z."""
    monkeypatch.setattr(annealing, "FIRST", 40.0)
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(1, 1), nn.Linear(1, 1, bias=False)
    nn.init.ones_(decoder.weight)
    joint = ps.Joint(
        Positive(p), ps.likelihoods.Gaussian(0.5), encoder, decoder, guide=OfPositive
    )
    x, u = torch.tensor([[0.3], [1.0], [2.0]]), torch.linspace(-40, 4, 40_001)
    z = u.double().exp()
    height = p.log_prob(z) + u + dist.Normal(z, 0.5).log_prob(x.double())
    exact = height.logsumexp(1) + math.log(44 / 40_000)
    found = ps.evidence(joint, x, particles=300, refine=20, anneal=10)
    away = torch.as_tensor(found.log_evidence) - exact
    assert (away.abs() < 5 / torch.as_tensor(found.ess).sqrt()).all(), away
