"""The bounds against exact evidences of linear-Gaussian models, and against Pyro's."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue, linear
from helpers.checks import seeded, traces
from helpers.linear import covariances, evidence
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.bounds import ELBO, IWAE, log_weights
from probssl.guides.views import of_views
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
DIM, EVENT, NOISE, SCALE, Y_SCALE = 2, 5, 0.4, 0.6, 1.3


def linear_gaussian(guide: type[nn.Module]) -> ps.Joint:
    return linear.linear_gaussian(
        ps.priors.Gaussian(DIM, SCALE, Y_SCALE), EVENT, NOISE, guide=guide
    )


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_elbo_is_the_evidence_under_the_coupled_guide(views):
    joint, x = (
        linear_gaussian(ps.guides.CoupledLikelihoods),
        torch.randn(6, views, EVENT),
    )
    value = log_weights(joint, Batch(x), particles=3).local()
    assert_close(value, evidence(joint, x).expand(3, -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_elbo_of_factorised_views_falls_short_by_the_computed_gap(views):
    joint, x = linear_gaussian(ps.guides.DiagonalGaussian), torch.randn(1, views, EVENT)
    z, decoder, _ = covariances(joint, views)
    precision = z.inverse() + decoder.T @ decoder / NOISE**2
    exact = MultivariateNormal(
        torch.linalg.solve(precision, decoder.T @ x.flatten() / NOISE**2),
        precision_matrix=precision,
    )
    loc, scale = joint.posterior.factors(x)
    q = MultivariateNormal(loc.flatten(), scale.flatten().square().diag())
    gap = torch.distributions.kl_divergence(q, exact)
    assert gap > 0.1
    samples = log_weights(joint, Batch(x), particles=100_000).local().squeeze(1)
    shortfall = evidence(joint, x) - samples
    error = 5 * samples.std() / math.sqrt(len(samples))
    assert abs(shortfall.mean() - gap) < error


class Near(ps.likelihoods.Likelihood):
    """x within 0.7 of the decoder's output, uniformly."""

    measure = "Lebesgue"

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Uniform(output - 0.7, output + 0.7).to_event(1)


def test_iwae_counts_samples_of_weight_zero():
    joint = ps.Joint(
        ps.priors.Gaussian(DIM), Near(), nn.Linear(2, DIM), nn.Linear(DIM, 2)
    )
    batch = Batch(torch.zeros(4, 1, 2))
    with dist.validation_enabled(False):
        found = seeded(lambda: sum(IWAE(200)(joint, batch)))
        weights = seeded(lambda: log_weights(joint, batch, 200).local())
    assert (weights == -math.inf).any() and (weights > -math.inf).any(0).all()
    assert_close(found, weights.logsumexp(0).mean() - math.log(200))
    found.backward()
    with dist.validation_enabled(False):
        weights = seeded(lambda: log_weights(joint, batch, 200).local())
    expected = torch.autograd.grad(weights.logsumexp(0).mean(), joint.encoder.weight)
    assert_close(joint.encoder.weight.grad, expected[0])


def test_iwae_rises_to_the_evidence_from_below():
    joint, x = linear_gaussian(ps.guides.DiagonalGaussian), torch.randn(2000, 2, EVENT)
    exact = evidence(joint, x).mean()
    gaps = []
    for particles in (1, 10, 100):
        log_weight = log_weights(joint, Batch(x), particles).local()
        bound = log_weight.logsumexp(0) - math.log(particles)
        error = 5 * (bound - evidence(joint, x)).std() / math.sqrt(len(x))
        gaps.append(exact - bound.mean())
        assert gaps[-1] > -error
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < gaps[0] / 5


def test_iwae_terms_sum_to_the_log_mean_weight():
    joint, batch = linear_gaussian(ps.guides.DiagonalGaussian), Batch(real())
    terms = seeded(IWAE(7), joint, batch)
    log_weight = seeded(log_weights, joint, batch, 7).local()
    plain = (log_weight.logsumexp(0) - math.log(7)).mean()
    assert_close(sum(terms), plain)
    weight = joint.decoder.weight
    assert_close(*(torch.autograd.grad(v, weight) for v in (sum(terms), plain)))


def test_one_particle_of_iwae_is_the_elbo():
    joint, batch = linear_gaussian(ps.guides.DiagonalGaussian), Batch(real())
    assert_close(seeded(IWAE(1), joint, batch), seeded(ELBO(), joint, batch))


def real() -> Tensor:
    return torch.randn(6, 2, EVENT)


def grey() -> Batch:
    return Batch(torch.randint(0, 5, (6, 3, EVENT)) / 4.0)


def mlp() -> ps.Joint:
    prior = ps.priors.Gaussian(DIM, ps.learned(0.4))
    return catalogue.joint(prior, ps.likelihoods.Binomial(4), EVENT)


def test_terms_equal_the_log_densities_of_pyros_traces():
    joint, batch = mlp(), grey()
    terms = seeded(ELBO(), joint, batch)
    guide, model = seeded(traces, joint, batch)
    assert_close(6 * sum(terms), model.log_prob_sum() - guide.log_prob_sum())
    assert_close(6 * terms.reconstruction, model.nodes["x"]["log_prob"].sum())
    assert_close(6 * terms.alignment, model.nodes["z"]["log_prob"].sum())
    assert_close(6 * terms.entropy, -guide.nodes["z"]["log_prob"].sum())


def test_value_and_gradient_equal_pyros_trace_elbo():
    joint, batch = mlp(), grey()
    ours = sum(seeded(ELBO(), joint, batch))
    pyros = Trace_ELBO().differentiable_loss
    plain = -seeded(pyros, joint.model, joint.guide, batch) / 6
    assert_close(ours, plain)
    parameters = list(joint.parameters())
    assert_close(*(torch.autograd.grad(value, parameters) for value in (ours, plain)))


def test_bound_never_synchronises_with_the_host(monkeypatch):
    joint, batch = mlp(), grey()

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read by the host")

    for name in ("item", "__bool__", "__float__", "tolist", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    for bound in (ELBO(), ELBO(3), IWAE(3)):
        sum(bound(joint, batch)).backward()


class Detached(dist.Normal):
    """A normal distribution written with `sample` alone."""

    has_rsample = False


class Plain(nn.Module):
    """A guide q(z|x) of `family`, as one writes it for any encoder."""

    def __init__(self, encoder: nn.Module, family: type = Detached) -> None:
        super().__init__()
        self.encoder, self.family = encoder, family

    def forward(
        self, x: Tensor, prior: object, present: Tensor | None = None
    ) -> object:
        loc = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.family is Detached:
            each = Detached(loc, 0.3).to_event(1)
        else:
            concentration = torch.full(loc.shape[:-1], 9.0).to(loc)
            each = self.family(loc / loc.norm(dim=-1, keepdim=True), concentration)
        return of_views(each, prior, present)


class OfContent(nn.Module):
    """q(y | z_1..V) without a gradient of its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(DIM, DIM)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return Detached(self.head(z.mean(-2)), 0.5).to_event(1)


def without_gradient(name: str) -> ps.Joint:
    sphere = ps.distributions.VonMisesFisher
    if name == "y":
        return catalogue.joint(
            ps.priors.Gaussian(DIM), event=EVENT, content=OfContent()
        )
    if name == "sphere":
        prior, guide = ps.priors.Spherical(DIM, 5.0), lambda e: Plain(e, sphere)
        return catalogue.joint(prior, event=EVENT, guide=guide)
    return catalogue.joint(ps.priors.Gaussian(DIM), event=EVENT, guide=Plain)


@pytest.mark.parametrize("name", ["z", "sphere", "y"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_guide_whose_samples_carry_no_gradient_is_not_trained(name, masked):
    joint, x = without_gradient(name), real()
    present = torch.ones(6, 2).bool().tril(0) if masked else None
    batch = Batch(x, present=present)
    joint.check(batch)
    with torch.no_grad():  # a value is right
        assert log_weights(joint, batch, 3).local().isfinite().all()
    site = r"q\(y" if name == "y" else r"q\(z"
    for bound in (ELBO(), IWAE(3)):
        with pytest.raises(ValueError, match=f"reparameterised samples of {site}"):
            bound(joint, batch)
    if not masked:
        with pytest.raises(ValueError, match="no rsample"):
            ps.fit(
                ps.limits.SimVAE(joint), x[:, 0], views=lambda x: x[:, None], epochs=1
            )
        assert ps.evidence(joint, x[:, 0], particles=2).log_evidence.shape == (6,)


def test_a_frozen_guide_without_gradient_trains_the_rest():
    joint = without_gradient("z")
    joint.posterior.requires_grad_(False)
    weight = next(joint.decoder.parameters())
    (gradient,) = torch.autograd.grad(sum(ELBO()(joint, Batch(real()))), weight)
    assert gradient.any()


class TestRandomScale:
    """A hyper-parameter that is a random variable: one site outside the plate."""

    @pytest.fixture
    def joint(self) -> ps.Joint:
        prior = ps.priors.Gaussian(DIM, dist.LogNormal(-1.0, 0.5))
        joint = catalogue.joint(prior, event=EVENT)
        joint.population = torch.tensor(100.0)
        return joint

    def test_it_is_weighted_once_per_data_set(self, joint):
        batch = Batch(real())
        terms = seeded(ELBO(), joint, batch)
        guide, model = seeded(traces, joint, batch)
        scale = model.nodes["scale"]["log_prob"] - guide.nodes["scale"]["log_prob"]
        assert_close(terms.hyper, scale / 100)
        assert_close(terms.alignment, model.nodes["z"]["log_prob"].mean())

    def test_many_particles_draw_many_values(self, joint):
        terms = log_weights(joint, Batch(real()), particles=5)
        assert terms.hyper.shape == (5, 1) and terms.alignment.shape == (5, 6)
        assert terms.hyper.std() > 0

    def test_a_missing_population_is_an_error(self, joint):
        joint.population = None
        with pytest.raises(ValueError, match="population"):
            ELBO()(joint, Batch(real()))
