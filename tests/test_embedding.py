"""Joint embedding with random hyper-parameters: its pseudo-posterior."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import gammaln, ive
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Gaussian, Spherical
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
ITEMS, DIM = 80, 3


def views(spread: float = 0.4) -> Tensor:
    """Two views of each item, around a direction of its own."""
    y = Spherical(DIM).on_support(torch.randn(ITEMS, 1, DIM))
    return y + spread * torch.randn(ITEMS, 2, DIM)


def log_instance_likelihood(z: Tensor, temperature: Tensor) -> Tensor:
    """Of telling every view's partner from all others, each item counted once."""
    z = nn.functional.normalize(z, dim=-1).transpose(0, 1).flatten(0, 1)
    n = len(z)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(n) > 0, -math.inf)
    partner = torch.arange(n).roll(n // 2)
    return logits.log_softmax(1)[torch.arange(n), partner].sum() / 2


def divergence(log_q: Tensor, log_p: Tensor, log_grid: Tensor) -> Tensor:
    """KL of q from p, a density up to a constant; both of log θ, on a grid."""
    step = log_grid[1] - log_grid[0]
    log_p = log_p - log_p.logsumexp(0) - step.log()
    return (log_q.exp() * (log_q - log_p)).sum() * step


def fitted(objective: nn.Module, batch: Batch, steps: int = 600) -> nn.Module:
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-sum(objective(batch))).backward()
        optimizer.step()
        decay.step()
    return objective


def test_pseudo_posterior_of_the_temperature_is_that_of_quadrature():
    prior = dist.LogNormal(-1.0, 1.0)
    objective = ps.limits.SimCLR(nn.Identity(), temperature=prior)
    objective.population = torch.tensor(float(ITEMS))
    batch = Batch(views())
    fitted(objective, batch)
    log_grid = torch.linspace(-4.0, 2.0, 2_001)
    grid = log_grid.exp()
    log_likelihood = [log_instance_likelihood(batch.views, t) for t in grid]
    wide = prior.log_prob(grid) + log_grid
    log_p = wide + torch.stack(log_likelihood)
    log_q = objective.prior.concentration.posterior().log_prob(grid) + log_grid
    assert divergence(log_q, log_p, log_grid) < 0.05  # nats
    assert divergence(wide, log_p, log_grid) > 1.0  # not trivial


def test_hyper_term_is_log_p_minus_log_q_over_the_population():
    prior = dist.LogNormal(-1.0, 1.0)
    objective = ps.limits.SimCLR(nn.Identity(), temperature=prior)
    objective.population = torch.tensor(1_000.0)
    batch = Batch(views())
    torch.manual_seed(2)
    terms = objective(batch)
    torch.manual_seed(2)
    q = objective.prior.concentration.posterior()
    drawn = q.rsample()
    plain = (prior.log_prob(drawn) - q.log_prob(drawn)) / 1_000
    assert_close(terms.hyper, plain)
    fixed = ps.limits.SimCLR(nn.Identity(), temperature=float(drawn.detach()))(batch)
    assert_close(terms.alignment + terms.entropy, fixed.alignment + fixed.entropy)


def test_model_is_the_pseudo_posterior_for_pyros_tools():
    prior = dist.LogNormal(-1.0, 1.0)
    objective, batch = ps.limits.SimCLR(nn.Identity(), temperature=prior), views()
    sites = {"temperature": torch.tensor(0.3)}
    trace = poutine.trace(poutine.condition(objective.model, sites)).get_trace(
        Batch(batch)
    )
    likelihood = log_instance_likelihood(batch, torch.tensor(0.3))
    constant = ITEMS * math.log(2 * ITEMS - 1)
    plain = prior.log_prob(torch.tensor(0.3)) + likelihood + constant
    assert_close(trace.log_prob_sum(), plain)
    guide = poutine.trace(objective.guide).get_trace(Batch(batch))
    assert list(guide.stochastic_nodes) == ["temperature"]


class TemperedValue(ps.limits.SimCLR):
    def value(self, z, batch):
        terms = super().value(z, batch)
        return terms._replace(alignment=terms.alignment / 3)


class TemperedForward(ps.limits.SimCLR):
    def forward(self, batch):
        terms = super().forward(batch)
        return terms._replace(alignment=terms.alignment / 3)


@pytest.mark.parametrize("kind", [TemperedValue, TemperedForward])
def test_the_model_has_the_value_of_a_subclass(kind):
    temperature, prior = torch.tensor(0.3), dist.LogNormal(-1.0, 1.0)
    objective, batch = kind(nn.Identity(), temperature=prior), Batch(views())
    model = poutine.condition(objective.model, {"temperature": temperature})
    terms = ps.limits.SimCLR(nn.Identity(), temperature=0.3)(batch)
    plain = ITEMS * (terms.alignment / 3 + terms.entropy)
    found = poutine.trace(model).get_trace(batch).log_prob_sum()
    assert_close(found, prior.log_prob(temperature) + plain)
    objective.population = torch.tensor(float(ITEMS))
    assert float(objective(batch).hyper.detach()) != 0  # of a draw of its own again


def test_a_proper_prior_has_a_posterior_of_its_scale_given_z():
    """With z as data, the entropy a constant: the posterior of a Gaussian scale."""
    log_prior = dist.LogNormal(0.0, 1.0)
    prior = Gaussian(DIM, log_prior)
    objective = ps.limits.Embedding(nn.Identity(), prior, ps.entropies.LogDeterminant())
    objective.population = torch.tensor(float(ITEMS))
    z = Gaussian(DIM, 0.3)(2).sample((ITEMS,))
    fitted(objective, Batch(z), 1_000)
    log_grid = torch.linspace(-3.0, 1.0, 2_001)
    grid = log_grid.exp()
    log_p = Gaussian(DIM, log_prior)(2, scale=grid[:, None]).log_prob(z).sum(1)
    log_p = log_p + log_prior.log_prob(grid) + log_grid
    log_q = prior.scale.posterior().log_prob(grid) + log_grid
    assert divergence(log_q, log_p, log_grid) < 0.05


def test_draws_of_the_temperature_open_in_arviz():
    objective = ps.limits.SimCLR(
        ps.nn.MLPEncoder((4,), DIM, hidden=(8,)), temperature=dist.LogNormal(-1.0, 1.0)
    )
    ps.fit(objective, torch.randn(30, 4), views=pair, epochs=2, progress=False)
    assert objective.population == 30
    idata = ps.to_arviz(objective, torch.randn(5, 4), draws=4_000)
    drawn = idata.posterior["temperature"]
    assert drawn.dims == ("chain", "draw") and drawn.shape == (1, 4_000)
    q = objective.prior.concentration
    error = 5 * q.log_scale.exp() / math.sqrt(4_000)
    assert (torch.tensor(drawn.values).log().mean() - q.loc).abs() < error
    stats = idata.sample_stats
    plain = q.posterior().log_prob(torch.from_numpy(drawn.values))
    assert_close(torch.from_numpy(stats["log_q_hyper"].values), plain)
    assert idata.prior["temperature"].shape == (1, 4_000)
    assert "pseudo-posterior" in idata.attrs["posterior"]


def pair(x: Tensor) -> Tensor:
    return x.unsqueeze(1) + 0.1 * torch.randn(len(x), 2, *x.shape[1:])


def test_without_a_population_a_random_temperature_is_refused():
    objective = ps.limits.SimCLR(nn.Identity(), temperature=dist.LogNormal(-1.0, 1.0))
    with pytest.raises(ValueError, match="population"):
        objective(Batch(views()))


def test_without_a_random_hyper_parameter_there_is_no_posterior():
    with pytest.raises(ValueError, match="no random hyper-parameter"):
        ps.to_arviz(ps.limits.SimCLR(nn.Identity()), torch.randn(5, 4))


def test_an_entropy_that_returns_nothing_is_refused():
    prior = ps.priors.Gaussian(2, 0.5)
    objective = ps.limits.Embedding(nn.Linear(3, 2), prior, lambda z, prior: None)
    with pytest.raises(TypeError, match="to return a scalar tensor, got NoneType"):
        objective(ps.Batch(torch.randn(4, 2, 3)))


def log_area(dim: int) -> float:
    return float(math.log(2) + dim / 2 * math.log(math.pi) - gammaln(dim / 2))


def log_normaliser(dim: int, kappa: np.ndarray) -> np.ndarray:
    """log C_d(κ) of a von Mises-Fisher density, by scipy's Bessel functions."""
    order = dim / 2 - 1
    bessel = np.log(ive(order, kappa)) + kappa
    return order * np.log(kappa) - dim / 2 * math.log(2 * math.pi) - bessel


def information(z: Tensor, kappa: float) -> float:
    """The mean of log p(z_1, …, z_V) / ∏ p(z_v), with y and each view uniform."""
    _, views, dim = z.shape
    length = kappa * np.linalg.norm(z.sum(1).numpy(), axis=-1)
    each = views * log_normaliser(dim, np.array(kappa)) - log_normaliser(dim, length)
    return float(each.mean()) + (views - 1) * log_area(dim)


class Uniform(ps.entropies.Entropy):
    """The exact entropy of independent views, each uniform on the sphere."""

    def forward(self, z: Tensor, prior: ps.priors.Prior) -> Tensor:
        return z.new_tensor(log_area(z.shape[-1]))

    def joint(self, z: Tensor, prior: ps.priors.Prior) -> Tensor:
        return z.shape[1] * self(z, prior)


class Directions(ps.priors.Prior):
    """A uniform p(y) on the sphere, as a prior of one's own."""

    dim, space = DIM, "a sphere"

    def forward(
        self, views: int, *, present: Tensor | None = None
    ) -> dist.Distribution:
        return Spherical(DIM, 7.0)(views, present=present)

    def gauge(self, views: int) -> int:
        return views - 1


@pytest.mark.parametrize("dim", [2, 3, 10, 64])
@pytest.mark.parametrize("number", [2, 3])
def test_the_value_on_the_sphere_is_the_information_of_the_views(number, dim):
    kappa = 2.0 * dim
    z = Spherical(dim, kappa)(number).sample((50,))
    batch, entropy = Batch(z), ps.entropies.KernelDensity()
    objective = ps.limits.Embedding(nn.Identity(), Spherical(None, kappa), Uniform())
    assert sum(objective(batch)) == pytest.approx(information(z, kappa), abs=1e-9)
    # Without information of the views it is zero, in every dimension.
    nothing = Spherical(None, 1e-6)
    for all_views in (False, True):
        found = ps.limits.Embedding(
            nn.Identity(), nothing, Uniform(), all_views=all_views
        )
        assert sum(found(batch)) == pytest.approx(0, abs=1e-4)
    blurred = ps.limits.Embedding(nn.Identity(), nothing, entropy)
    assert sum(blurred(batch)) == pytest.approx(0, abs=1e-4)


def test_an_own_prior_on_the_sphere_has_the_value_of_the_one_in_the_box(monkeypatch):
    z = Spherical(DIM).on_support(views())
    for entropy in (Uniform(), ps.entropies.NearestNeighbour()):
        own, known = (
            ps.limits.Embedding(nn.Identity(), prior, entropy)(Batch(z))
            for prior in (Directions(), Spherical(DIM, 7.0))
        )
        assert_close(sum(own), sum(known))
    monkeypatch.setattr(Directions, "space", "vectors")
    with pytest.raises(ValueError, match="with space = 'a sphere'"):
        ps.limits.Embedding(nn.Identity(), Directions(), entropy).check(Batch(z))


def centred_in_place(z: Tensor, prior: ps.priors.Prior) -> Tensor:
    z -= z.mean(0)
    return ps.entropies.LogDeterminant()(z, prior)


def test_an_entropy_that_changes_z_in_place_is_refused():
    objective = ps.limits.Embedding(nn.Identity(), Gaussian(DIM, 0.5), centred_in_place)
    with pytest.raises(ValueError, match="centred_in_place.*in place.*z = z - m"):
        objective(Batch(views()))


def test_what_is_no_entropy_or_no_kernel_is_named():
    with pytest.raises(TypeError, match=r"give entropies.Sketched\(EppsPulley\(\)"):
        ps.limits.Embedding(
            nn.Identity(), ps.priors.Gaussian(2), ps.entropies.EppsPulley()
        )
    mixture = ps.limits.Embedding(
        nn.Identity(), ps.priors.Mixture(2, 3), ps.entropies.KernelDensity()
    )
    with pytest.raises(
        TypeError, match="kernel densities .*, got Mixture, whose content"
    ):
        mixture(ps.Batch(torch.randn(4, 2, 2)))
