"""Gaps of the ELBO against closed forms of linear-Gaussian models, and NUTS."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue, linear
from helpers.checks import assert_mean, refusals
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from test_posterior_refinement import bent
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import probssl as ps
from probssl.data import groups

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:Pareto:UserWarning"),
]
DIM, EVENT, NOISE, SCALE, PARTICLES = 2, 5, 0.5, 0.3, 1_000
ITEMS, STEPS = 2, 300
SLACK = 0.1  # nats, by which gradient steps may miss an optimum


def model(guide: type[nn.Module], orthogonal: bool = False) -> ps.Joint:
    """A linear-Gaussian model, and an encoder of chance.

    With orthogonal columns of the decoder p(z|x) is a product over dimensions.
    """
    torch.manual_seed(4)
    decoder = nn.Linear(DIM, EVENT, bias=False)
    nn.init.normal_(decoder.weight, std=0.5)
    if orthogonal:
        columns = torch.linalg.qr(torch.randn(EVENT, DIM)).Q
        decoder.weight = nn.Parameter(columns * torch.tensor([0.5, 1.5]))
    likelihood = ps.likelihoods.Gaussian(NOISE)
    encoder = ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,))
    prior = ps.priors.Gaussian(DIM, SCALE)
    return ps.Joint(prior, likelihood, encoder, decoder, guide=guide)


def posterior(joint: ps.Joint, x: Tensor) -> MultivariateNormal:
    """p(z_1, …, z_V | x), of x (item, view, event)."""
    z, decoder, _ = linear.covariances(joint, x.shape[1])
    precision = z.inverse() + decoder.T @ decoder / NOISE**2
    loc = x.flatten(1) @ decoder @ precision.inverse() / NOISE**2
    return MultivariateNormal(loc, precision_matrix=precision)


def best(p: MultivariateNormal, blocks: int) -> MultivariateNormal:
    """The normal closest to p, KL(q ‖ p), that is independent between blocks."""
    precision = p.precision_matrix.detach()
    number = torch.arange(precision.shape[-1]) * blocks // precision.shape[-1]
    kept = precision * (number[:, None] == number)
    return MultivariateNormal(p.loc.detach(), precision_matrix=kept)


def guided(joint: ps.Joint, x: Tensor) -> MultivariateNormal:
    """q(z_1, …, z_V | x), from its moments, which are exact for normals."""
    with torch.no_grad():
        q = joint.encode(ps.Batch(x))
    loc = q.mean.flatten(1)
    eye = torch.eye(loc.shape[1]).view(-1, 1, *q.event_shape)
    with torch.no_grad():  # the quadratic form of log q, by its values
        top = q.log_prob(q.mean)
        one = top - q.log_prob(q.mean + eye)  # ½ Λ_ii
        two = top - q.log_prob(q.mean + eye[:, None] + eye)
    precision = (two - one[:, None] - one[None]).permute(2, 0, 1)
    return MultivariateNormal(loc, precision_matrix=precision)


def bar(q: MultivariateNormal, p: MultivariateNormal) -> Tensor:
    """Five standard errors of an ELBO, from the exact weights of other draws."""
    z = q.sample((PARTICLES,))
    return 5 * (p.log_prob(z) - q.log_prob(z)).std(0).detach() / PARTICLES**0.5


def check(
    found: ps.posterior.Gaps,
    q: MultivariateNormal,
    own: MultivariateNormal,
    apart: MultivariateNormal,
    p: MultivariateNormal,
) -> None:
    """Every gap is a divergence of exact normals.

    Arguments:
        own: The best q of the guide's family.
        apart: The best one that is independent between views.
    """
    total, left, coupling = (
        (kl_divergence(r, p).detach(), bar(r, p)) for r in (q, own, apart)
    )
    lost = total[0] - left[0], total[1] + left[1]
    near = {"total": total, "amortisation": lost, "approximation": left}
    near["coupling"] = coupling
    for name, (expected, allowed) in near.items():
        away = (torch.as_tensor(getattr(found, name)) - expected).abs()
        assert (away < allowed + SLACK).all(), (name, away, allowed)
    np.testing.assert_allclose(found.total, found.approximation + found.amortisation)


@pytest.mark.parametrize(
    "guide, views",
    [*(("DiagonalGaussian", v) for v in (1, 2, 3)), ("FullGaussian", 2)],
)
def test_gaps_of_independent_views_are_exact(guide, views):
    joint = model(getattr(ps.guides, guide))
    x = 0.7 * torch.randn(ITEMS, views, EVENT)
    found = ps.gaps(joint, groups(x.numpy()), steps=STEPS, particles=PARTICLES)
    p, q = posterior(joint, x), guided(joint, x)
    blocks = views * DIM if guide == "DiagonalGaussian" else views
    check(found, q, best(p, blocks), best(p, views), p)
    assert views == 1 or found.coupling.min() > 0.2


@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_coupled_guide_has_only_an_amortisation_gap(views):
    joint = model(ps.guides.Coupled, orthogonal=True)
    x = 0.7 * torch.randn(ITEMS, views, EVENT)
    found = ps.gaps(joint, groups(x.numpy()), steps=STEPS, particles=PARTICLES)
    p = posterior(joint, x)
    check(found, guided(joint, x), p, best(p, views), p)
    assert found.amortisation.min() > 0.2


@pytest.mark.parametrize("guide", ["DiagonalGaussian", "Coupled"])
def test_absent_views_add_no_gap(guide):
    joint = model(getattr(ps.guides, guide), orthogonal=True)
    x = 0.7 * torch.randn(ITEMS, 3, EVENT)
    present = torch.tensor([[False, True, True]] * ITEMS)
    data = groups(x.numpy(), present=present.numpy())
    found = ps.gaps(joint, data, steps=STEPS, particles=PARTICLES)
    p, q = posterior(joint, x[:, 1:]), guided(joint, x[:, 1:])
    own = p if guide == "Coupled" else best(p, 2 * DIM)
    check(found, q, own, best(p, 2), p)


class LogScale(ps.guides.Factors):
    def forward(self, x: Tensor, present: object = None) -> tuple[Tensor, Tensor]:
        loc, raw = super().forward(x, present)
        return loc, (raw + 0.5).clamp(-7.0, 7.0)


class OfLogScale(ps.guides.Guide):
    def __init__(self, encoder: nn.Module, *, dim: int | None = None) -> None:
        super().__init__()
        self.factors = LogScale(encoder, lambda dim: dim, dim)

    def each(self, x: Tensor, present: object = None) -> object:
        loc, log_scale = self.factors(x, present)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class OneScale(ps.guides.DiagonalGaussian):
    def each(self, x: Tensor, present: object = None) -> object:
        return dist.Normal(self.factors(x, present)[0], 0.3).to_event(1)


@pytest.mark.parametrize("guide", [OfLogScale, OneScale])
def test_own_spreads_move_on_the_scale_of_the_head(guide):
    """A log-scale of 0.5 has to become one below 0."""
    joint = model(guide, orthogonal=True)
    x = 0.7 * torch.randn(ITEMS, 1, EVENT)
    found = ps.gaps(joint, groups(x.numpy()), steps=100, particles=PARTICLES)
    p = own = posterior(joint, x)
    if guide is OneScale:
        own = MultivariateNormal(p.loc.detach(), 0.09 * torch.eye(DIM))
    check(found, guided(joint, x), own, p, p)
    assert guide is not OneScale or found.approximation.min() > 0.2


def test_standard_errors_are_those_of_the_gaps():
    """(gap − exact) / error has mean square 1, over items."""
    joint, views, items, draws = model(ps.guides.DiagonalGaussian), 2, 200, 200
    x = 0.7 * torch.randn(items, views, EVENT)
    found = ps.gaps(
        joint, groups(x.numpy()), steps=150, particles=draws, batch_size=items
    )
    p, q = posterior(joint, x), guided(joint, x)
    own, apart = best(p, views * DIM), best(p, views)
    exact = [kl_divergence(r, p).detach() for r in (q, own, apart)]
    exact.insert(2, exact[0] - exact[1])
    names = ("total", "approximation", "amortisation", "coupling")
    assert found.standard_error._fields == names
    for name, expected in zip(names, exact, strict=True):
        away = torch.as_tensor(getattr(found, name)) - expected
        error = torch.as_tensor(getattr(found.standard_error, name))
        assert error.shape == (items,) and 0.005 < error.median() < 0.5
        assert_mean((away / error).square(), 1.0)


@pytest.mark.slow
def test_nuts_agrees_with_the_gaps():
    """The posterior by NUTS: log p(x) by the mean of r / p over its draws.

    The best q of the family is found by quadrature.
    """
    joint = bent(ps.priors.Gaussian(1, SCALE))
    x = ps.calibration.simulate(joint, 3, 1).data.views
    batch, draws = ps.Batch(x), 300
    found = ps.gaps(joint, groups(x.numpy()), steps=200, particles=4_000)

    kernel = NUTS(joint.model, max_tree_depth=3)
    chain = MCMC(kernel, draws, warmup_steps=100, disable_progbar=True)
    chain.run(batch)
    z = chain.get_samples()["z"].flatten(1)  # (draw, item)

    def log_joint(z: Tensor) -> Tensor:
        z = z[..., None, None]
        with torch.no_grad():
            log_p = joint.decode(z).log_prob(x).sum(-1)
            return log_p + joint.prior(1).log_prob(z)

    first, rest = z[: draws // 4], z[draws // 4 :]
    r = dist.Normal(first.mean(0), 0.8 * first.std(0))
    ratio = (
        r.log_prob(rest) - log_joint(rest) + torch.as_tensor(found.log_evidence)
    ).exp()
    count = effective_sample_size(ratio.unsqueeze(0))
    error = ratio.std(0) / count.sqrt() / ratio.mean(0)
    evidence = torch.as_tensor(found.log_evidence) - ratio.mean(0).log()

    nodes, shares = np.polynomial.hermite_e.hermegauss(100)
    shares, nodes = torch.as_tensor(shares / shares.sum()), torch.as_tensor(nodes)

    def divergence(loc: Tensor, scale: Tensor) -> Tensor:
        """KL(q ‖ p(z|x)) of normals."""
        height = shares @ log_joint(loc + scale * nodes[:, None])
        entropy = 0.5 * math.log(2 * math.pi * math.e) + scale.log()
        return evidence - height - entropy

    with torch.no_grad():
        q = joint.encode(batch)
        loc, scale = q.mean.flatten(), q.stddev.flatten()
    each = torch.cartesian_prod(
        torch.linspace(-1, 1, 21), torch.linspace(-1.5, 0.5, 21)
    )
    grid = torch.stack(
        [divergence(z.mean(0) + a * z.std(0), z.std(0) * b.exp()) for a, b in each]
    )
    assert error.max() < 0.1
    near = {"total": divergence(loc, scale), "approximation": grid.min(0).values}
    for name, expected in near.items():
        away = (torch.as_tensor(getattr(found, name)) - expected).abs()
        own = torch.as_tensor(getattr(found.standard_error, name))
        bar = 5 * torch.hypot(error, own) + SLACK / 4
        assert (away < bar).all(), (name, away, bar)


def test_the_guide_stays_as_it_was_and_the_table_has_means_and_errors():
    joint = model(ps.guides.DiagonalGaussian)
    before = {name: value.clone() for name, value in joint.state_dict().items()}
    found = ps.gaps(joint, torch.randn(5, EVENT), steps=3, particles=50)
    torch.testing.assert_close(dict(joint.state_dict()), before)
    assert "_heads" not in vars(joint.posterior.factors)
    assert (found.coupling == 0).all()
    row = found.table.loc["total"]
    assert row["nats per item"] == found.total.mean()
    np.testing.assert_allclose(row["standard error"], found.total.std(ddof=1) / 5**0.5)
    assert "gaps of 5 items" in repr(found) and "<table" in found._repr_html_()


@pytest.mark.parametrize(
    "prior, guide",
    [
        (lambda: ps.priors.Spherical(3, 5.0), ps.guides.PowerSpherical),
        (lambda: ps.priors.Mixture(2, 3, 0.5), ps.guides.Coupled),
        (lambda: ps.priors.StudentT(2, 0.5, 5.0), ps.guides.FullGaussian),
    ],
    ids=["sphere", "mixture", "Student-t"],
)
def test_gaps_of_other_spaces_are_positive_and_add_up(prior, guide):
    joint = catalogue.joint(prior(), event=6, guide=guide)
    x = ps.calibration.simulate(joint, 6, 2).data
    found = ps.gaps(joint, x, steps=60, particles=500)
    assert (found.total > 0).all() and found.amortisation.mean() > 0.1
    assert (found.approximation > -0.2).all() and (found.coupling > -0.2).all()


class Own(nn.Module):
    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, prior: object, present: object = None) -> object:
        loc = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return dist.Normal(loc, 1.0).to_event(2)


def own_guide() -> ps.Joint:
    return bent(ps.priors.Gaussian(2, SCALE), guide=Own)


class WithoutFactors(ps.guides.DiagonalGaussian):
    def each(self, x: Tensor, present: object = None) -> object:
        return dist.Normal(ps.nn.each_view(self.encoder, x), 1.0).to_event(1)


class Twice(ps.guides.DiagonalGaussian):
    def each(self, x: Tensor, present: object = None) -> object:
        loc, scale = self.factors(x)[0], self.factors(x)[1]
        return dist.Normal(loc, scale).to_event(1)


class Detached(ps.guides.DiagonalGaussian):
    def each(self, x: Tensor, present: object = None) -> object:
        loc, scale = (part.detach() for part in self.factors(x))
        return dist.Normal(loc, scale).to_event(1)


X = torch.zeros(2, EVENT)
test_what_has_no_gaps_is_refused = refusals(
    (lambda: ps.gaps(own_guide(), torch.zeros(2, 6)), ValueError, "guide of the pack"),
    (lambda: ps.gaps(model(ps.guides.Point), X), ValueError, "Point"),
    (
        lambda: ps.gaps(model(ps.guides.DiagonalGaussian), X, steps=0),
        ValueError,
        "steps as",
    ),
    (lambda: ps.gaps(nn.Linear(2, 2), X), ValueError, "joint distribution"),
    (lambda: ps.gaps(model(WithoutFactors), X), ValueError, "calls it 0 times"),
    (lambda: ps.gaps(model(Twice), X), ValueError, "calls it 2 times"),
    (lambda: ps.gaps(model(Detached), X), ValueError, "does not depend on it"),
)
