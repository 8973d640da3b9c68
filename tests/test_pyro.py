"""Pyro's own tools on the model and guide of a joint give the right numbers.

The closed forms are those of a linear Gaussian model, by dense linear algebra.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import GUIDES, RANDOM, encoder
from helpers.catalogue import batch as views_of
from helpers.catalogue import joint as joint_of
from pyro import infer, poutine
from pyro.infer import autoguide
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.inspect import get_model_relations
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Custom, Gaussian, Mixture, Spherical, StudentT, TwoTier
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64", "empty_store")
DIM, EVENT, VIEWS, NOISE = 2, 3, 2, 0.5
SCALE, Y_SCALE = 0.7, 1.3


@pytest.fixture
def empty_store() -> None:
    pyro.clear_param_store()


# A linear Gaussian model, of which all is known


def dense(model: ps.Joint) -> tuple[MultivariateNormal, Tensor, Tensor]:
    """p(z_1..V) and p(x_1..V | z_1..V) = N(z W + b, noise^2), all views in a row."""
    weight, bias = (p.detach() for p in model.decoder.parameters())
    share = SCALE**2 * torch.eye(VIEWS) + Y_SCALE**2
    covariance = torch.kron(share, torch.eye(DIM))
    prior = MultivariateNormal(torch.zeros(VIEWS * DIM), covariance)
    return prior, torch.kron(torch.eye(VIEWS), weight.T.contiguous()), bias.tile(VIEWS)


def evidence(model: ps.Joint, x: Tensor) -> Tensor:
    """log p(x_1..V) of each item."""
    prior, weight, bias = dense(model)
    noise = NOISE**2 * torch.eye(len(bias))
    covariance = weight.T @ prior.covariance_matrix @ weight + noise
    return MultivariateNormal(bias, covariance).log_prob(x.flatten(1))


def posterior(model: ps.Joint, x: Tensor) -> MultivariateNormal:
    """p(z_1..V | x_1..V) of each item."""
    prior, weight, bias = dense(model)
    precision = prior.precision_matrix + weight @ weight.T / NOISE**2
    signal = (x.flatten(1) - bias) @ weight.T / NOISE**2
    mean = torch.linalg.solve(precision, signal, left=False)
    return MultivariateNormal(mean, precision_matrix=precision)


def log_joint(model: ps.Joint, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z) of each item."""
    prior, weight, bias = dense(model)
    loc = z.flatten(1) @ weight + bias
    noise = torch.distributions.Normal(loc, NOISE)
    return noise.log_prob(x.flatten(1)).sum(1) + prior.log_prob(z.flatten(1))


class Exact(nn.Module):
    """The exact posterior as a guide."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, *_: Any) -> dist.TorchDistribution:
        exact = posterior(self.model[0], x)
        flat = dist.MultivariateNormal(exact.mean, exact.covariance_matrix)
        to_views = dist.transforms.ReshapeTransform((VIEWS * DIM,), (VIEWS, DIM))
        return dist.TransformedDistribution(flat, to_views)


def linear(guide: Callable[..., nn.Module] = Exact) -> ps.Joint:
    model = ps.Joint(
        Gaussian(DIM, SCALE, Y_SCALE),
        ps.likelihoods.Gaussian(NOISE),
        ps.nn.MLPEncoder((EVENT,), DIM, hidden=()),
        ps.nn.MLPDecoder(DIM, (EVENT,), hidden=()),
        guide=guide,
    )
    model.posterior.model = (model,)  # in a tuple: no submodule
    return model


def views(items: int = 4) -> Tensor:
    return torch.randn(items, VIEWS, EVENT)


# SVI

JOINTS: dict[str, Callable[[], ps.Joint]] = {
    "diagonal": lambda: joint_of(Gaussian(3, 0.5)),
    "learned": lambda: joint_of(Gaussian(3, ps.learned(0.5))),
    "learned noise": lambda: joint_of(
        Gaussian(3, 0.5), ps.likelihoods.Gaussian(ps.learned(0.3))
    ),
    "random": lambda: joint_of(Gaussian(3, RANDOM)),
    "random concentration": lambda: joint_of(
        Spherical(3, dist.LogNormal(2.0, 0.5)), guide=ps.guides.PowerSpherical
    ),
    "flow": lambda: joint_of(Gaussian(3, 0.5), guide=ps.guides.Flow),
    "student": lambda: joint_of(StudentT(2, 0.5, ps.learned(4.0))),
    "random mixture": lambda: joint_of(Mixture(2, 3, RANDOM)),
    "two tiers": lambda: joint_of(TwoTier(2, 3, 0.3, RANDOM)),
    "custom": lambda: joint_of(Custom(lambda y: dist.Laplace(y, 0.4).to_event(1), 1)),
    "content of a Gaussian": lambda: joint_of(
        Gaussian(2, RANDOM), content=ps.guides.Content(2)
    ),
    "content of a custom prior": lambda: joint_of(
        Custom(lambda y: dist.Laplace(y, 0.4).to_event(1), 2),
        content=ps.guides.Content(2),
    ),
}
for _name in ("full", "coupled", "coupled, mixture", "point"):
    JOINTS[_name] = lambda name=_name: joint_of(
        GUIDES[name]()[1], guide=GUIDES[name]()[0]
    )

ABSENT = torch.ones(8, 2, dtype=torch.bool).index_put(
    (torch.tensor([0, 3, 4]), torch.tensor([0, 1, 1])), torch.tensor(False)
)
BATCHES: dict[str, Callable[[Batch], Batch]] = {
    "absent views": lambda batch: batch._replace(present=ABSENT),
    "four views": lambda _: views_of(views=4),
    "labels": lambda batch: batch._replace(content=torch.arange(8) % 4 - 1),
}
CASES = [(name, None) for name in JOINTS]
CASES += [("random", "absent views"), ("content of a custom prior", "absent views")]
CASES += [("coupled", "absent views"), ("random", "four views")]
CASES += [("random mixture", "labels"), ("two tiers", "labels")]
SIZE, RATE = 120, 0.01


@pytest.mark.parametrize(("name", "change"), CASES)
def test_svi_takes_the_steps_of_fit(name, change):
    """Parameters, and the loss, which is `size` times that of fit in nats per item."""
    model, batch = JOINTS[name](), BATCHES.get(change, lambda b: b)(views_of())
    other = deepcopy(model)
    other.population = torch.tensor(float(SIZE))
    # Adam does not see the scale of a loss, but for its eps.
    adam = pyro.optim.Adam({"lr": RATE, "eps": 1e-30})
    svi = infer.SVI(model.model, model.guide, adam, infer.Trace_ELBO())
    torch.manual_seed(1)
    losses = [svi.step(batch, size=SIZE) for _ in range(5)]
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(other.parameters(), RATE, eps=1e-30)
    objective = ps.limits.SimVAE(other, label_weight=0)  # the bound itself
    steps = ps.train.steps(objective, [batch] * 5, optimizer)
    expected = [-SIZE * float(sum(terms)) for terms in steps]
    assert_close(losses, expected, rtol=1e-9, atol=0.0)
    assert_close(dict(model.named_parameters()), dict(other.named_parameters()))


def svi(model: Any, guide: Any = None, loss: Any = None, **adam: Any) -> infer.SVI:
    optimizer = pyro.optim.Adam({"lr": RATE} | adam)
    loss = loss or infer.Trace_ELBO()
    return infer.SVI(model.model, guide or model.guide, optimizer, loss)


def test_the_store_holds_the_parameters_of_the_joint_by_their_names():
    model, batch = JOINTS["random"](), views_of()
    weight = model.decoder.net[0].weight
    weight.data = weight.data.T.contiguous().T  # of which the store would keep a copy
    model.decoder.net[0].bias.requires_grad_(False)
    svi(model).step(batch)
    named = {f"joint$$${name}": p for name, p in model.named_parameters()}
    frozen = named.pop("joint$$$decoder.net.0.bias")
    assert dict(pyro.get_param_store().named_parameters()).keys() == named.keys()
    for name, stored in pyro.get_param_store().named_parameters():
        assert stored is named[name]
    assert frozen.grad is None


def test_minibatches_are_scaled_to_the_data_set():
    """Means over batches are the whole: local sites by N / B, global ones once."""
    model, batch = JOINTS["random"](), views_of()
    sites = {"scale": torch.tensor(0.4), "z": torch.randn(8, 2, 3)}

    def total(rows: slice, **options: int) -> Tensor:
        here = sites | {"z": sites["z"][rows]}
        known = poutine.condition(model.model, here)
        part = Batch(batch.views[rows])
        return poutine.trace(known).get_trace(part, **options).log_prob_sum()

    halves = [total(rows, size=8) for rows in (slice(4), slice(4, 8))]
    whole = total(slice(8))
    assert_close(sum(halves) / 2, whole)
    hyper = RANDOM.log_prob(sites["scale"])
    assert_close(total(slice(4), size=40) - hyper, 10 * (total(slice(4)) - hyper))


def test_an_objective_trains_with_its_pseudo_posterior():
    prior, entropy = Gaussian(3, RANDOM), ps.entropies.KernelDensity()
    model = ps.limits.Embedding(encoder(), prior, entropy)
    other, batch = deepcopy(model), views_of()
    other.population = torch.tensor(float(SIZE))
    trained = svi(model, eps=1e-30)
    torch.manual_seed(1)
    losses = [trained.step(batch, size=SIZE) for _ in range(5)]
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(other.parameters(), RATE, eps=1e-30)
    steps = ps.train.steps(other, [batch] * 5, optimizer)
    assert_close(losses, [-SIZE * float(sum(terms)) for terms in steps])
    assert_close(dict(model.named_parameters()), dict(other.named_parameters()))


def test_pyros_autoguides_fit_a_batch_of_the_data_set_by_its_rows():
    """With `size` the plate of the guide has the rows of the batch."""
    model = linear().requires_grad_(False)
    x, rows = views(6), torch.tensor([4, 1])

    def plate(batch: Batch, size: int) -> pyro.plate:
        return pyro.plate("item", size, subsample=batch.index, dim=-1)

    guide = autoguide.AutoDelta(model.model, create_plates=plate)
    trained = svi(model, guide, lr=0.1)
    trained.step(Batch(x[rows], index=rows), size=6)
    start = guide.z.detach().clone()
    trained.step(Batch(x[rows], index=rows), size=6)
    moved = (guide.z.detach() != start).flatten(1).any(1)
    assert moved.tolist() == [i in rows for i in range(6)]


def fresh_store() -> None:
    batch = views_of()
    for model in (JOINTS["random"](), JOINTS["random"]()):
        svi(model).step(batch)


def guide_with_rows_of_its_own() -> None:
    model = linear()
    guide = autoguide.AutoNormal(model.model)
    svi(model, guide).step(Batch(views(4)), size=40)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (fresh_store, "that of another; call pyro.clear_param_store"),
        (guide_with_rows_of_its_own, "give the autoguide create_plates="),
        (lambda: linear().model(Batch(views(4)), size=3), "size .* of at least 4"),
    ],
    ids=["another joint", "an autoguide's rows", "size"],
)
def test_what_would_be_wrong_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Bounds of Pyro, under the exact posterior and under others

LOSSES = {
    "Trace_ELBO": infer.Trace_ELBO(),
    "TraceGraph_ELBO": infer.TraceGraph_ELBO(),
    "TraceEnum_ELBO": infer.TraceEnum_ELBO(max_plate_nesting=1),
    "TraceMeanField_ELBO": infer.TraceMeanField_ELBO(),
    "RenyiELBO": infer.RenyiELBO(alpha=0.5, num_particles=3),
    "vectorised": infer.Trace_ELBO(num_particles=3, vectorize_particles=True),
}


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", LOSSES)
def test_every_bound_is_the_evidence_under_the_exact_posterior(name):
    model, x = linear(), views()
    expected = -evidence(model, x).sum()
    assert_close(svi(model, loss=LOSSES[name]).evaluate_loss(Batch(x)), float(expected))
    assert svi(model, loss=LOSSES[name]).step(Batch(x)) == pytest.approx(
        expected.item()
    )


def test_a_bound_as_a_module_has_the_gradient_of_ours():
    model, batch = JOINTS["learned"](), views_of()
    other = deepcopy(model)
    for bound in (
        lambda: infer.Trace_ELBO()(model.model, model.guide)(batch) / 8,
        lambda: -sum(ps.bounds.ELBO()(other, batch)),
    ):
        torch.manual_seed(1)
        bound().backward()
    found, expected = ([p.grad for p in m.parameters()] for m in (model, other))
    assert_close(found, expected)


def elbo_of_normals(model: ps.Joint, x: Tensor, q: dist.TorchDistribution) -> Tensor:
    """log p(x) - KL(q, p(z|x)) for a normal q with independent coordinates."""
    loc, scale = q.mean.flatten(1), q.variance.flatten(1).sqrt()
    normal = MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    gap = torch.distributions.kl_divergence(normal, posterior(model, x))
    return (evidence(model, x) - gap).sum()


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceMeanField_ELBO"])
def test_a_bound_under_a_diagonal_guide_is_short_by_the_divergence(name):
    model, x = linear(ps.guides.DiagonalGaussian), views()
    loss = svi(model, loss=LOSSES[name])
    found = torch.tensor([loss.evaluate_loss(Batch(x)) for _ in range(400)])
    expected = -elbo_of_normals(model, x, model.encode(Batch(x)))
    assert (found.mean() - expected).abs() < 5 * found.std() / 20


# Guides of Pyro


def test_the_laplace_guide_is_the_exact_gaussian_posterior():
    model, x = linear().requires_grad_(False), views(1)
    guide = autoguide.AutoLaplaceApproximation(model.model)
    trained = svi(model, guide, lr=0.1)
    for _ in range(600):
        trained.step(Batch(x))
    exact, laplace = posterior(model, x), guide.laplace_approximation(Batch(x))
    found = laplace.get_posterior()
    assert_close(found.mean, exact.mean[0], atol=1e-5, rtol=0)
    assert_close(found.covariance_matrix, exact.covariance_matrix[0])


def test_the_delta_guide_finds_the_mode():
    model, x = linear().requires_grad_(False), views()
    guide = autoguide.AutoDelta(model.model)
    trained = svi(model, guide, lr=0.1)
    for _ in range(600):
        trained.step(Batch(x))
    assert_close(
        guide.median()["z"].flatten(1), posterior(model, x).mean, atol=1e-5, rtol=0
    )


def test_the_normal_guide_is_short_of_the_evidence_by_its_divergence():
    model, x = linear().requires_grad_(False), views()
    guide = autoguide.AutoNormal(model.model)
    trained = svi(model, guide, lr=0.05)
    for _ in range(100):
        trained.step(Batch(x))
    q = dist.Normal(guide.locs.z, guide.scales.z).to_event(2)
    found = torch.tensor([trained.evaluate_loss(Batch(x)) for _ in range(400)])
    expected = -elbo_of_normals(model, x, q).detach()
    assert (found.mean() - expected).abs() < 5 * found.std() / 20


# Samples


def assert_moments(draws: Tensor, expected: MultivariateNormal) -> None:
    """Mean and covariance of draws (draw, dim), within five standard errors."""
    n, variance = len(draws), expected.variance
    covariance = expected.covariance_matrix
    assert ((draws.mean(0) - expected.mean).abs() < 5 * (variance / n).sqrt()).all()
    error = ((variance[:, None] * variance + covariance.square()) / n).sqrt()
    assert ((draws.T.cov() - covariance).abs() < 5 * error).all()


def test_predictive_draws_from_prior_and_posterior():
    model, x = linear(), views(1)
    after = infer.Predictive(
        model.model, guide=model.guide, num_samples=2_000, parallel=True
    )
    with torch.no_grad():
        assert_moments(after(Batch(x))["z"].flatten(1), _of_one(posterior(model, x)))
        free = poutine.uncondition(model.model)
        before = infer.Predictive(free, num_samples=2_000, parallel=True)(Batch(x))
    prior, weight, bias = dense(model)
    noise = NOISE**2 * torch.eye(len(bias))
    marginal = weight.T @ prior.covariance_matrix @ weight + noise
    assert_moments(before["z"].flatten(1), prior)
    assert_moments(before["x"].flatten(1), MultivariateNormal(bias, marginal))


def _of_one(many: MultivariateNormal) -> MultivariateNormal:
    return MultivariateNormal(many.mean[0], many.covariance_matrix.squeeze(0))


def test_importance_sampling_gives_the_evidence():
    model, x = linear(), views()
    expected = evidence(model, x).sum()
    weights = infer.Importance(model.model, model.guide, num_samples=3).run(Batch(x))
    assert_close(weights.get_log_normalizer(), expected)
    found, *_ = vectorized_importance_weights(
        model.model,
        model.guide,
        Batch(x),
        num_samples=3,
        max_plate_nesting=1,
        normalized=False,
    )
    assert_close(found, expected.expand(3))


def test_the_potential_of_nuts_is_the_log_joint_density():
    model, x, z = linear(), views(), torch.randn(4, VIEWS, DIM)
    _, potential, _, _ = initialize_model(model.model, (Batch(x),))
    assert_close(potential({"z": z}), -log_joint(model, x, z).sum())


# Handlers


def test_condition_and_trace_give_the_log_joint_density_of_each_item():
    model, x, z = linear(), views(), torch.randn(4, VIEWS, DIM)
    for known in (poutine.condition, pyro.condition):
        trace = poutine.trace(known(model.model, data={"z": z})).get_trace(Batch(x))
        trace.compute_log_prob()
        found = trace.nodes["x"]["log_prob"] + trace.nodes["z"]["log_prob"]
        assert_close(found, log_joint(model, x, z))


def test_do_sets_z_and_leaves_p_of_x_given_z():
    model, x, z = linear(), views(), torch.randn(4, VIEWS, DIM)
    trace = poutine.trace(pyro.do(model.model, data={"z": z})).get_trace(Batch(x))
    trace.compute_log_prob()
    expected = log_joint(model, x, z) - dense(model)[0].log_prob(z.flatten(1))
    assert_close(trace.nodes["x"]["log_prob"], expected)


def test_scale_and_block_have_their_meaning():
    model, x, z = linear(), views(), torch.randn(4, VIEWS, DIM)
    known = poutine.condition(model.model, data={"z": z})
    halved = poutine.trace(poutine.scale(known, scale=0.5)).get_trace(Batch(x))
    assert_close(halved.log_prob_sum(), log_joint(model, x, z).sum() / 2)
    hidden = poutine.trace(poutine.block(known, hide=["x"])).get_trace(Batch(x))
    assert_close(hidden.log_prob_sum(), dense(model)[0].log_prob(z.flatten(1)).sum())


def test_the_graph_has_one_plate_and_the_hyper_parameter_outside():
    model, batch = JOINTS["content of a Gaussian"](), views_of()
    found = get_model_relations(model.model, (batch,))
    parents = {"scale": [], "y": [], "z": ["y", "scale"], "x": ["z"]}
    assert {k: set(v) for k, v in found["sample_sample"].items()} == {
        k: set(v) for k, v in parents.items()
    }
    assert found["plate_sample"] == {"item": ["y", "z", "x"]}
    assert found["observed"] == ["x"]


def test_render_model_draws_that_graph():
    pytest.importorskip("graphviz")
    source = pyro.render_model(JOINTS["random"]().model, (views_of(),)).source
    assert "scale -> z" in source and "z -> x" in source and "cluster_item" in source
