"""The joint with an explicit content y, and its guide q(y | z_1..V)."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue
from helpers.checks import assert_mean, refusals, seeded
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.bounds import log_weights
from probssl.joint import Joint
from probssl.priors import (
    ContentStyle,
    Custom,
    Gaussian,
    ImportanceSampling,
    Prior,
    Spherical,
    StudentT,
    TwoTier,
)
from probssl.terms import Batch
from probssl.testing import check_objective

pytestmark = pytest.mark.usefixtures("float64")
DIM, EVENT = 2, 5


class Exact(nn.Module):
    """q(y | z_1..V) as the prior's own posterior."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return self.prior.posterior_y(z)


class Mixing(nn.Module):
    """p(z|y) whose dimensions depend on all of y: no quadrature for it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.turn = nn.Linear(dim, dim, bias=False)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(y + self.turn(y.tanh()), 0.3).to_event(1)


def joint(prior: Prior, content: nn.Module | None, guide: Callable) -> Joint:
    torch.manual_seed(1)
    return catalogue.joint(prior, event=EVENT, guide=guide, content=content)


def priors() -> list[Prior]:
    laplace = Custom(lambda y: dist.Laplace(y, 0.4).to_event(1), DIM)
    return [
        Gaussian(DIM, 0.4),
        Gaussian(DIM, (0.4, 0.1)),
        ContentStyle(1, DIM - 1, 0.4),
        Spherical(DIM, 5.0),
        TwoTier(DIM, 3, 0.4),
        laplace,
    ]


@pytest.mark.parametrize("index", range(6))
def test_with_the_exact_posterior_of_y_the_bound_is_that_of_y_integrated_out(index):
    prior = priors()[index]
    sphere = isinstance(prior, Spherical)
    guide = ps.guides.PowerSpherical if sphere else ps.guides.DiagonalGaussian
    batch = Batch(torch.randn(6, 3, EVENT))
    models = (joint(prior, content, guide) for content in (None, Exact(prior)))
    with torch.no_grad():  # draws of y carry none under the last ones
        found = [seeded(log_weights, model, batch, 5) for model in models]  # z before y
    # Draws of a custom posterior are nodes of its rule, all else is exact.
    assert_close(*found, rtol=1e-9, atol=1e-7 if index == 5 else 1e-9)


def test_another_guide_of_y_is_short_by_its_divergence():
    prior = Gaussian(DIM, 0.4)
    z = prior(3).sample((50_000,))
    exact = prior.posterior_y(z)
    q = dist.Normal(exact.mean + 0.1, 1.5 * exact.stddev).to_event(1)
    y = q.sample()
    value = prior.content().log_prob(y) + prior.given(y.unsqueeze(1)).log_prob(z).sum(1)
    short = prior.log_prob(z) - (value - q.log_prob(y))
    assert_mean(short - torch.distributions.kl_divergence(q, exact), 0.0)


def test_model_has_the_sites_y_z_and_x_with_the_stated_shapes():
    prior = Gaussian(DIM, dist.LogNormal(-1.0, 0.5))
    model = joint(prior, Exact(prior), ps.guides.DiagonalGaussian)
    batch = Batch(torch.randn(4, 3, EVENT))
    trace = poutine.trace(model.model).get_trace(batch)
    sites = [name for name in trace.stochastic_nodes if name != "item"]
    assert sites == ["scale", "y", "z"]
    assert trace.nodes["y"]["fn"].event_shape == (DIM,)
    assert trace.nodes["z"]["fn"].batch_shape == (4,)
    assert trace.nodes["z"]["fn"].event_shape == (3, DIM)
    drawn = Predictive(model.model, num_samples=7, parallel=True)(batch)
    assert drawn["y"].shape == (7, 4, DIM) and drawn["z"].shape == (7, 4, 3, DIM)


@pytest.mark.parametrize("event", [(), (DIM,)])
def test_particles_of_a_random_scale_reach_p_of_z_given_y(event):
    wide = dist.LogNormal(-1.0, 0.5).expand(event).to_event(len(event))
    prior = Gaussian(DIM, wide)
    model = joint(prior, Exact(prior), ps.guides.DiagonalGaussian)
    scale, y = torch.rand(6, 1, *event) + 0.1, torch.randn(6, 4, DIM)
    conditioned = poutine.condition(model.model, {"scale": scale, "y": y})
    with pyro.plate("particles", 6, dim=-2):
        trace = poutine.trace(conditioned).get_trace(Batch(torch.randn(4, 3, EVENT)))
    z, found = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
    for k in range(6):
        each = dist.Normal(y[k].unsqueeze(1), scale[k]).log_prob(z[k])
        assert_close(found.log_prob(z)[k], each.sum((-2, -1)))


def test_a_prior_without_quadrature_is_fitted_with_an_explicit_content():
    torch.manual_seed(0)
    prior = Custom(Mixing(DIM), DIM)
    assert isinstance(prior.integral, ImportanceSampling)
    model = joint(prior, ps.guides.Content(DIM), ps.guides.DiagonalGaussian)
    objective = ps.limits.SimVAE(model)
    data = torch.randn(64, EVENT)
    history = ps.fit(objective, data, views=pair, epochs=30, progress=False)
    assert history["value"][-1] > history["value"][0] + 1.0
    idata = ps.to_arviz(objective, data, draws=9, items=4, views=pair)
    assert idata.posterior["y"].dims == ("chain", "draw", "item", "dim")
    assert idata.prior["y"].shape == (1, 9, DIM)
    assert ps.evidence(objective, data[:5], views=pair).log_evidence.shape == (5,)


def pair(x: Tensor) -> Tensor:
    return x.unsqueeze(1) + 0.1 * torch.randn(len(x), 2, *x.shape[1:])


def test_log_weights_in_arviz_count_y_on_both_sides():
    prior = Gaussian(DIM, 0.4)
    model = joint(prior, Exact(prior), ps.guides.Coupled)
    with torch.no_grad():  # x = z + noise: the coupled guide is then exact
        idata = ps.to_arviz(model, torch.randn(3, EVENT), draws=20)
    z = torch.from_numpy(idata.posterior["z"].values)
    y = torch.from_numpy(idata.posterior["y"].values)
    weight = idata.sample_stats["log_p"] - idata.sample_stats["log_q"]
    weight = torch.from_numpy(weight.values)
    likelihood = torch.from_numpy(idata.sample_stats["log_p_x_given_z"].values)
    q = torch.from_numpy(idata.sample_stats["log_q"].values)
    q = q - prior.posterior_y(z).log_prob(y)  # what is left is q(z | x)
    assert_close(weight, likelihood + prior.log_prob(z) - q)


def test_an_explicit_content_keeps_the_laws_of_objectives():
    content = ps.guides.Content(DIM)
    model = joint(Gaussian(DIM, 0.4), content, ps.guides.DiagonalGaussian)
    batch = Batch(torch.randn(4, 2, EVENT))
    check_objective(ps.limits.SimVAE(model), batch, repeats=10)


def test_a_guide_of_y_off_the_support_of_its_prior_is_refused():
    prior, batch = Spherical(DIM, 5.0), Batch(torch.randn(4, 2, EVENT))
    guides = ps.guides
    joint(prior, guides.SphericalContent(DIM), guides.PowerSpherical).check(batch)
    with pytest.raises(ValueError, match="a sphere, got Content on vectors"):
        joint(prior, guides.Content(DIM), guides.PowerSpherical).check(batch)


class Pooled(nn.Module):
    """q(y | z_1..V) as one writes it without keepdim: a single number."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(DIM, 1)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.head(z.mean(-2)), 0.5).to_event(1)


@pytest.mark.parametrize("short", [True, False])
def test_a_guide_of_y_of_another_size_is_refused_wherever_it_is_used(short):
    if short:
        prior, sizes = Gaussian(DIM, 0.4), r"\(2,\).* got \(1,\)"
        contents = Pooled(), ps.guides.Content(DIM, y_dim=1)
    else:
        corners = torch.eye(3)[:, :DIM]
        simplex, sizes = dist.Dirichlet(2 * torch.ones(3)), r"\(3,\).* got \(4,\)"
        prior = Custom(
            lambda y: dist.Normal(y @ corners, 0.4).to_event(1), DIM, y_prior=simplex
        )
        support = dist.constraints.simplex
        contents = (ps.guides.Content(DIM, y_dim=4, support=support),)
    data = torch.randn(16, EVENT)
    for content in contents:
        model = joint(prior, content, ps.guides.DiagonalGaussian)
        calls = [
            lambda m=model: ps.fit(ps.limits.SimVAE(m), data, views=pair, epochs=1),
            lambda m=model: ps.evidence(m, data, particles=2),
            lambda m=model: ps.to_arviz(m, data, draws=2),
            lambda m=model: log_weights(m, Batch(pair(data))),
        ]
        for call in calls if short else calls[:3]:
            with pytest.raises(ValueError, match=rf"event shape .*{sizes}"):
                call()


def explicit(prior: Prior) -> Callable[[], Joint]:
    content = ps.guides.Content(DIM)
    return lambda: joint(prior, content, ps.guides.DiagonalGaussian)


test_a_prior_without_a_content_of_its_own_is_refused = refusals(
    (explicit(StudentT(DIM)), TypeError, "StudentT without a method content"),
    (explicit(ps.priors.Mixture(DIM, 3)), TypeError, "Mixture without"),
    (explicit(Gaussian(DIM, 1.0, math.inf)), ValueError, "y_scale"),
)


@pytest.mark.parametrize("prior", [ContentStyle(1, DIM - 1, 0.4), Gaussian(DIM, 0.4)])
def test_a_guide_of_another_y_is_refused(prior):
    other = DIM if isinstance(prior, ContentStyle) else DIM + 1
    guide = ps.guides.Content(DIM, y_dim=other)
    model = joint(prior, guide, ps.guides.DiagonalGaussian)
    with pytest.raises(ValueError, match=rf"of p\(y\), .* got \({other},\); .* y_dim"):
        model.check(Batch(torch.randn(4, 2, EVENT)))
