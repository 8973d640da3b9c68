"""Refined evidence: against closed forms, and the grid of two dimensions."""

import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.catalogue import joint
from helpers.linear import evidence as exact_evidence
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.data import groups
from probssl.posterior.coordinates import Latents
from probssl.posterior.refinement import LocalNormal, Refined, mixed

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Pareto:UserWarning"),
]
DIM, EVENT, NOISE, SCALE, PARTICLES = 2, 5, 0.4, 0.6, 2_000


def astray(prior: ps.priors.Prior) -> ps.Joint:
    """A linear-Gaussian model whose encoder knows nothing of it."""
    model = linear.linear_gaussian(
        prior, EVENT, NOISE, guide=ps.guides.DiagonalGaussian
    )
    torch.manual_seed(1)
    for part in model.posterior.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1.0)
    return model


def error(found: ps.posterior.Evidence) -> np.ndarray:
    """Of the log of a mean of weights, by the delta method."""
    return np.sqrt(np.maximum(1 / found.ess - 1 / PARTICLES, 1e-6))


@pytest.mark.parametrize("views", [1, 2, 3])
def test_evidence_of_a_bad_encoder_is_mended(views):
    model, x = astray(ps.priors.Gaussian(DIM, SCALE)), torch.randn(6, views, EVENT)
    found = ps.evidence(model, groups(x.numpy()), particles=PARTICLES, refine=200)
    gap = found.log_evidence - exact_evidence(model, x).numpy()
    assert (np.abs(gap) < 5 * error(found)).all() and (found.pareto_k < 0.7).all()
    assert found.ess.min() > 3 * np.median(found.before.ess)
    assert "(before: " in repr(found) and found.cost > 0


@pytest.mark.parametrize("views", [1, 3])
def test_score_matching_finds_a_normal_posterior_exactly(views):
    """Up to rounding, from gradient steps that have not reached it."""
    model, x = astray(ps.priors.Gaussian(DIM, SCALE)), torch.randn(4, views, EVENT)
    with torch.no_grad():
        latents = Latents(model, ps.Batch(x))
        refined = Refined(LocalNormal(latents, 40))
        z, decoder, _ = linear.covariances(model, views)
        precision = z.inverse() + decoder.T @ decoder / NOISE**2
        loc = x.flatten(1) @ decoder @ precision.inverse() / NOISE**2
    covariance, exact = refined.tril @ refined.tril.mT, precision.inverse()
    assert_close(refined.loc, loc, rtol=1e-8, atol=1e-8)
    assert_close(covariance, exact.expand_as(covariance), rtol=1e-8, atol=1e-10)
    fitted = LocalNormal(latents, 40)
    assert (fitted.factor @ fitted.factor.mT - covariance).abs().max() > 1e-2


def test_rounds_that_lower_the_elbo_are_undone():
    model, x = bent(ps.priors.Gaussian(2, SCALE)), torch.randn(5, 1, 6)
    with torch.no_grad():
        fitted = LocalNormal(Latents(model, ps.Batch(x)), 20)

        class Lost(Refined):
            def _move(self, noise: Tensor, score: Tensor, rate: float) -> None:
                self.loc = self.loc + 3.0 * torch.tensor([[1.0], [0], [1], [0], [0]])
                self.tril = self.tril * 1.0

        found = Lost(fitted)
    assert_close((found.loc, found.tril), (fitted.loc, fitted.factor))


def test_weights_of_thirty_dimensions_have_no_heavy_tail():
    dim, event = 30, 60
    torch.manual_seed(5)
    parts = ps.likelihoods.Bernoulli(), ps.nn.MLPEncoder((event,), dim, hidden=(8,))
    decoder = ps.nn.MLPDecoder(dim, (event,), hidden=(40,))
    for part in decoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1.5 / part.in_features**0.5)
    model = ps.Joint(ps.priors.Gaussian(dim, SCALE), *parts, decoder)
    x = ps.calibration.simulate(model, 12).data.views[:, 0]
    found = ps.evidence(model, x, particles=1_000, refine=100)
    assert (found.pareto_k < 0.7).all() and np.median(found.ess) > 100
    assert (found.before.pareto_k > 0.7).all()


def test_absent_views_and_known_components_are_those_of_the_model():
    model = astray(ps.priors.Gaussian(DIM, SCALE))
    x = torch.randn(4, 2, EVENT)
    present = torch.tensor([[True, False]] * 4)
    data = groups(x.numpy(), present=present.numpy())
    found = ps.evidence(model, data, particles=PARTICLES, refine=200)
    gap = found.log_evidence - exact_evidence(model, x[:, :1]).numpy()
    assert (np.abs(gap) < 5 * error(found)).all()

    mixture = astray(ps.priors.Mixture(DIM, 3, SCALE))
    k = torch.tensor([0, 2, 1, 1])
    data = groups(x.numpy(), content=k.numpy())
    found = ps.evidence(mixture, data, particles=PARTICLES, refine=200)
    decoder, places = mixture.decoder.weight, mixture.prior.components.loc
    cov = SCALE**2 * decoder @ decoder.T + NOISE**2 * torch.eye(EVENT)
    each = MultivariateNormal((places[k] @ decoder.T).unsqueeze(1), cov)
    exact = each.log_prob(x).sum(1).detach() - math.log(3)
    gap = found.log_evidence - exact.numpy()
    assert (np.abs(gap) < 5 * error(found)).all()


def test_random_hyper_parameters_are_averaged_over_their_guide():
    model = astray(ps.priors.Gaussian(DIM, dist.LogNormal(-0.5, 0.3)))
    model.population = torch.tensor(10.0)
    x = torch.randn(3, 2, EVENT)
    found = ps.evidence(model, groups(x.numpy()), particles=PARTICLES, refine=200)
    nodes, shares = np.polynomial.hermite_e.hermegauss(30)
    hyper, each = next(model.prior.random()), []
    for node in nodes:
        value = (hyper.loc + hyper.log_scale.exp() * node).exp()
        with model.prior.at(scale=value):
            each.append(exact_evidence(model, x).detach())
    shares = torch.from_numpy(shares / shares.sum()).log()
    exact = (torch.stack(each) + shares[:, None]).logsumexp(0)
    assert (np.abs(found.log_evidence - exact.numpy()) < 5 * error(found)).all()


def test_a_nonlinear_model_agrees_with_the_grid():
    torch.manual_seed(3)
    model = joint(ps.priors.Gaussian(2, SCALE), event=6)
    for part in model.decoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.8)
    x = ps.sample(model, 5)
    data = torch.from_numpy(np.asarray(x)[:, 0])
    found = ps.evidence(model, data, particles=PARTICLES, refine=300)
    axis = torch.linspace(-8, 8, 801)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = model.decode(grid[:, None, None])
        log_p = p.log_prob(data[:, None]).sum(-1).view(len(grid), -1)
        log_p = log_p + model.prior(1).log_prob(grid[:, None])[:, None]
    exact = log_p.logsumexp(0) + 2 * (axis[1] - axis[0]).log()
    gap = found.log_evidence - exact.numpy()
    reliable = found.pareto_k < 0.7
    assert reliable.sum() >= 4 and (np.abs(gap) < 5 * error(found))[reliable].all()


class Squared(nn.Module):
    """The square of z, whose posterior has two modes."""

    def forward(self, z: Tensor) -> Tensor:
        return z.square()


def squared(prior: ps.priors.Prior, noise: float) -> ps.Joint:
    """A joint of z² + noise whose q(z|x) is wide and covers both modes."""
    encoder = nn.Linear(1, 1)
    made = ps.Joint(prior, ps.likelihoods.Gaussian(noise), encoder, Squared())
    with torch.no_grad():
        encoder.weight.zero_(), encoder.bias.zero_()
        made.posterior.factors.spread.weight.zero_()
        made.posterior.factors.spread.bias.fill_(1.5)
    return made


OBSERVED, SQUARED_NOISE = torch.tensor([[2.5], [3.0], [3.5], [4.0]]), 0.3


def of_squares() -> np.ndarray:
    """log p(x) of `squared` by the trapezoidal rule."""
    grid = torch.linspace(-8, 8, 100_001)
    p_z = dist.Normal(0.0, math.sqrt(1.25)).log_prob(grid)
    each = p_z + dist.Normal(grid.square(), SQUARED_NOISE).log_prob(OBSERVED)
    return (each.logsumexp(1) + (grid[1] - grid[0]).log()).numpy()


@pytest.mark.parametrize("anneal", [0, 20])
def test_a_mode_that_the_guide_has_is_not_lost(anneal):
    """The fitted normal has one of two, and would miss log 2 without a word."""
    model = squared(ps.priors.Gaussian(1, 0.5), SQUARED_NOISE)
    particles = PARTICLES if not anneal else 500
    settings = {"particles": particles, "refine": 100, "anneal": anneal}
    found = ps.evidence(model, OBSERVED.double(), **settings)
    sd = np.sqrt(1 / found.ess)
    gap = np.abs(found.log_evidence - of_squares())
    assert (gap < 4 * sd).all() and sd.max() < 0.15


def test_gaps_count_a_mode_that_the_best_guide_has_not():
    """The best normal has one of two modes, and leaves log 2 at least."""
    model = squared(ps.priors.Gaussian(1, 0.5), SQUARED_NOISE)
    found = ps.gaps(model, OBSERVED.double(), steps=100, particles=4_000)
    error = np.hypot(found.standard_error.total, found.standard_error.approximation)
    gap = np.abs(found.log_evidence - of_squares())
    assert (gap < np.minimum(4 * error, 0.5)).all()
    assert (found.approximation > math.log(2) - 0.3).all()


def test_refinement_leaves_an_exact_guide_of_two_modes_what_it_was():
    prior = ps.priors.Mixture(1, ps.priors.Components.at([[-6.0], [6.0]]), scale=0.5)
    slope, encoder, decoder = 0.1, nn.Linear(1, 1), nn.Linear(1, 1)
    guide = ps.guides.CoupledLikelihoods
    made = ps.Joint(prior, ps.likelihoods.Gaussian(1.0), encoder, decoder, guide=guide)
    with torch.no_grad():
        for part, weight in ((encoder, 1 / slope), (decoder, slope)):
            part.weight.fill_(weight), part.bias.zero_()
        spread = made.posterior.factors.spread
        spread.weight.zero_(), spread.bias.fill_(math.log(math.expm1(1 / slope - 1e-4)))
    x = 0.3 * torch.randn(6, 1)
    sd = math.sqrt(1 + slope**2 * 0.25)
    means = slope * torch.tensor([-6.0, 6.0])
    exact = dist.Normal(means, sd).log_prob(x).logsumexp(1) - math.log(2)
    found = ps.evidence(made, x, particles=PARTICLES, refine=50)
    gap = np.abs(found.log_evidence - exact.numpy())
    assert (gap < 5 * error(found)).all() and found.unreliable == 0
    assert found.ess.min() > 0.8 * PARTICLES


def bent(prior: ps.priors.Prior, **options: object) -> ps.Joint:
    """A model with a decoder that is not linear, and an encoder of chance."""
    torch.manual_seed(3)
    model = joint(prior, event=6, **options)
    for part in model.decoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.8)
    return model


def on_circle(**options: object) -> ps.Joint:
    """A model of z on a circle whose posterior has a single mode."""
    torch.manual_seed(3)
    guide, decoder = ps.guides.PowerSpherical, nn.Linear(2, 6)
    parts = ps.likelihoods.Gaussian(0.5), ps.nn.MLPEncoder((6,), 2, hidden=(8,))
    prior = ps.priors.Spherical(2, 3.0)
    nn.init.normal_(decoder.weight, std=0.7)
    return ps.Joint(prior, *parts, decoder, guide=guide, **options)


def on_circles(model: ps.Joint, x: Tensor, points: int = 360) -> np.ndarray:
    """log p(x_1, …, x_V) by the trapezoidal rule, V = 1 or 2, z on a circle."""
    angle = 2 * math.pi * torch.arange(points) / points
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    views = x.shape[1]
    with torch.no_grad():
        each = model.decode(circle[:, None, None]).log_prob(x).permute(1, 2, 0)
        places = torch.cartesian_prod(*[torch.arange(points)] * views)
        places = places.view(-1, views)
        log_p = model.prior(views).log_prob(circle[places])
        rows = torch.arange(views)
        log_p = log_p + each[:, rows, places].sum(-1)
    return (log_p.logsumexp(1) + views * math.log(2 * math.pi / points)).numpy()


@pytest.mark.parametrize("views", [1, 2])
def test_evidence_on_the_circle_is_that_of_the_grid(views):
    model = on_circle()
    x = ps.calibration.simulate(model, 5, views).data.views
    found = ps.evidence(model, groups(x.numpy()), particles=PARTICLES, refine=150)
    gap = found.log_evidence - on_circles(model, x)
    reliable = found.pareto_k < 0.7
    assert reliable.sum() >= 4 and (np.abs(gap) < 5 * error(found))[reliable].all()
    assert np.median(found.ess) > 2 * np.median(found.before.ess)


def test_a_content_of_its_own_leaves_the_evidence_what_it_is():
    model = astray(ps.priors.Gaussian(DIM, SCALE))
    model.content, x = ps.guides.Content(DIM), torch.randn(4, 2, EVENT)
    found = ps.evidence(model, groups(x.numpy()), particles=PARTICLES, refine=200)
    gap = found.log_evidence - exact_evidence(model, x).detach().numpy()
    assert (np.abs(gap) < 5 * error(found)).all() and (found.pareto_k < 0.7).all()

    model = on_circle(content=ps.guides.SphericalContent(2))
    x = ps.calibration.simulate(model, 4, 2).data.views
    found = ps.evidence(model, groups(x.numpy()), particles=PARTICLES, refine=200)
    gap = found.log_evidence - on_circles(model, x)
    assert (np.abs(gap) < 5 * error(found)).all()


def test_positive_z_are_refined_by_their_logarithm():
    class Positive(nn.Module):
        support = dist.constraints.independent(dist.constraints.positive, 1)

        def __init__(self, encoder: nn.Module, dim: int) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, x: Tensor, prior: object, present: object = None) -> object:
            loc = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return dist.LogNormal(0.3 * loc, 0.5).to_event(2)

    prior = ps.priors.Custom(
        lambda y: dist.LogNormal(y.log(), 0.4).to_event(1),
        dim=1,
        y_prior=dist.Gamma(2.0, torch.ones(1)).to_event(1),
    )
    model = bent(prior, guide=Positive)
    x = torch.rand(3, 1, 6)
    found = ps.evidence(model, groups(x.numpy()), particles=PARTICLES, refine=40)
    axis = torch.linspace(-9, 6, 1_001)  # of log z
    z = axis.exp()[:, None, None, None]
    with torch.no_grad():
        log_p = model.decode(z).log_prob(x).sum(-1) + axis[:, None]
        log_p = log_p + model.prior(1).log_prob(z[:, 0])[:, None]
    exact = log_p.logsumexp(0) + (axis[1] - axis[0]).log()
    assert (np.abs(found.log_evidence - exact.numpy()) < 5 * error(found)).all()


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_objective_stays_as_it_was():
    model = joint(ps.priors.Gaussian(2, SCALE), event=6)
    model.decoder.requires_grad_(False)
    before, modes = state(model), [p.requires_grad for p in model.parameters()]
    ps.evidence(model, torch.randn(3, 6), particles=30, refine=5)
    assert_close(state(model), before)
    assert [p.requires_grad for p in model.parameters()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_it_warns_where_weights_stay_heavy():
    model = joint(ps.priors.Gaussian(3, 0.5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ps.evidence(model, 9 * torch.randn(8, 6), particles=50, refine=1)
    bad = int((found.pareto_k > 0.7).sum())
    assert bad and f"for {bad} of 8 items after refinement" in str(caught[-1].message)
    with pytest.raises(ValueError, match="refine as a whole number of at least 0"):
        ps.evidence(model, torch.randn(2, 6), refine=-1)


@pytest.mark.parametrize("total", [1, 3, 1000])
def test_draws_of_a_mixture_have_its_density_however_few_they_are(total):
    one, other = dist.Normal(0.0, 1.0), dist.Normal(4.0, 0.5)
    shares, repeats = torch.tensor([[0.3, 0.9]]), 6_000 // total

    def part(p: dist.Normal) -> tuple:
        return p.sample((total, 2, 1)), lambda u: p.log_prob(u[..., 0])

    found = [mixed([part(one), part(other)], shares) for _ in range(repeats)]
    u = torch.cat([u for u, _ in found])[..., 0]
    weights = torch.stack([shares[0], 1 - shares[0]], -1)
    exact = dist.MixtureSameFamily(
        dist.Categorical(weights),
        dist.Normal(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.5])),
    )
    error = 5 * u.std(0) / math.sqrt(len(u))
    assert ((u.mean(0) - exact.mean).abs() < error).all()
    assert_close(found[0][1](found[0][0]), exact.log_prob(found[0][0][..., 0]))
