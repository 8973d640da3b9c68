"""The posterior of hyper-parameters against quadrature in one dimension.

With a known linear-Gaussian decoder and the exact guide of z, a scale of the prior is
all there is to infer: its posterior is one-dimensional, and the evidence of an item
given it a normal density with a dense covariance matrix.
"""

import math
from itertools import repeat
from typing import NamedTuple

import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_mean
from helpers.linear import exact
from torch import Tensor, nn
from torch.distributions import LogNormal, MultivariateNormal, Normal
from torch.testing import assert_close

import probssl as ps
from probssl.bounds import ELBO, IWAE, log_weights

pytestmark = pytest.mark.usefixtures("float64")
DIM, NOISE, BEFORE = 2, 0.3, (-0.5, 0.6)  # log scale is N(-0.5, 0.6²) under the prior
TOLERATED = 0.05  # nats between q(scale) and its exact posterior


class Known(nn.Module):
    """The exact factors of p(x|z) = N(z, NOISE²)."""

    scale = NOISE

    def forward(self, x: Tensor) -> Tensor:
        return x


def random_scale(name: str = "scale") -> ps.Joint:
    """A joint of which one scale is random, and all else known."""
    scales = {"scale": 0.5, "y_scale": 1.0} | {name: dist.LogNormal(*BEFORE)}
    return ps.Joint(
        ps.priors.Gaussian(DIM, **scales),
        ps.likelihoods.Gaussian(NOISE),
        encoder=Known(),
        decoder=nn.Identity(),
        guide=exact(ps.guides.CoupledLikelihoods),
    )


def drawn(items: int, views: int, scale: float = 0.4) -> Tensor:
    content = torch.randn(items, 1, DIM)
    z = content + scale * torch.randn(items, views, DIM)
    return z + NOISE * torch.randn_like(z)


class Exact(NamedTuple):
    """p(log scale | x) on a grid, and log p(x)."""

    grid: Tensor
    log_p: Tensor
    log_evidence: Tensor

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        weight = self.log_p.exp() * (self.grid[1] - self.grid[0])
        mean = (weight * self.grid).sum()
        return mean, (weight * (self.grid - mean).square()).sum()

    def divergence(self, joint: ps.Joint) -> Tensor:
        """KL(q ‖ p) in nats: the same for the scale as for its logarithm."""
        (h,) = joint.prior.random()
        log_q = Normal(h.loc, h.log_scale.exp()).log_prob(self.grid).detach()
        gap = log_q.exp() * (log_q - self.log_p)
        return gap.sum() * (self.grid[1] - self.grid[0])


def quadrature(
    x: Tensor, name: str = "scale", copies: int = 1, present: Tensor | None = None
) -> Exact:
    """Bayes' rule on a grid of log scale, the views of an item in one vector."""
    grid = torch.linspace(-3.0, 1.5, 901)
    _, views, _ = x.shape
    scales = {"scale": torch.tensor(0.5), "y_scale": torch.tensor(1.0)}
    scales[name] = grid.exp()
    one = torch.ones(views, views)
    own = scales["scale"].square().expand_as(grid)[:, None, None] * torch.eye(views)
    shared = scales["y_scale"].square().expand_as(grid)[:, None, None] * one
    over_views = own + shared + NOISE**2 * torch.eye(views)
    log_p = Normal(*BEFORE).log_prob(grid)
    for mask in [None] if present is None else present.unique(dim=0):
        rows = slice(None) if mask is None else (present == mask).all(1)
        if mask is not None and not mask.any():
            continue  # no view, no evidence
        seen = torch.arange(views) if mask is None else mask.nonzero().squeeze(1)
        kept = over_views[:, seen][:, :, seen].contiguous()
        covariance = torch.stack([torch.kron(c, torch.eye(DIM)) for c in kept])
        law = MultivariateNormal(torch.zeros(len(seen) * DIM), covariance)
        flat = x[rows][:, seen].flatten(1)
        log_p = log_p + copies * law.log_prob(flat.unsqueeze(1)).sum(0)
    log_evidence = log_p.logsumexp(0) + (grid[1] - grid[0]).log()
    return Exact(grid, log_p - log_evidence, log_evidence)


@pytest.mark.parametrize("name", ["scale", "y_scale"])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("incomplete", [False, True])
def test_bound_of_a_data_set_is_its_evidence_less_the_divergence(
    name, views, incomplete
):
    joint, x = random_scale(name), drawn(40, views)
    present = torch.rand(40, views) < 0.7 if incomplete else None
    exact = quadrature(x, name, present=present)
    mean, variance = exact.moments
    joint.population = torch.tensor(40.0)
    (h,) = joint.prior.random()
    h.loc.data = mean + 0.5 * variance.sqrt()  # a guide that is not exact
    h.log_scale.data = (1.3 * variance.sqrt()).log()
    with torch.no_grad():
        weights = log_weights(joint, ps.Batch(x, present=present), particles=4_000)
    total = weights.local().sum(1) + 40 * weights.hyper.squeeze(1)
    error = 5 * total.std() / math.sqrt(len(total))
    expected = exact.log_evidence - exact.divergence(joint)
    assert exact.divergence(joint) > 0.1 and error < 0.1
    assert abs(total.mean() - expected) < error


def test_importance_weighted_bound_draws_the_scale_once_for_all_items():
    """Items of different spreads, for which a scale of each would do far better."""
    joint, x = random_scale(), torch.cat([drawn(10, 2, 0.05), drawn(10, 2, 2.0)])
    exact, (h,) = quadrature(x), joint.prior.random()
    joint.population = torch.tensor(20.0)
    h.loc.data, h.log_scale.data = torch.tensor([-0.5, math.log(0.4)])
    with torch.no_grad():
        values = [sum(IWAE(8)(joint, ps.Batch(x))) for _ in range(200)]
    # The guide of z is exact: the weights of all samples are p(x | scale).
    bound = (exact.log_evidence - exact.divergence(joint)) / 20
    assert_mean(values, bound)
    assert torch.stack(values).mean() < exact.log_evidence / 20 - 0.1


@pytest.mark.parametrize("event", [(), (DIM,)])
def test_samples_that_share_a_scale_are_weighed_at_it(event):
    law = dist.LogNormal(*BEFORE).expand(event).to_event(len(event))
    parts = ps.likelihoods.Gaussian(NOISE), Known(), nn.Identity()
    joint = ps.Joint(
        ps.priors.Gaussian(DIM, law), *parts, guide=exact(ps.guides.CoupledLikelihoods)
    )
    joint.population, batch = torch.tensor(6.0), ps.Batch(drawn(6, 2))
    terms = log_weights(joint, batch, 5, one_hyper=True)
    assert terms.hyper.shape == (5, 1) and terms.alignment.shape == (5, 6)
    assert_close(terms.hyper, terms.hyper[:1].expand(5, 1))
    # log p(x | scale) of an item is the same at each z of an exact guide.
    assert_close(terms.local(), terms.local()[:1].expand(5, 6))
    (gradient,) = torch.autograd.grad(
        terms.local().sum(), next(joint.prior.random()).loc
    )
    assert gradient.all()


@pytest.mark.parametrize("views", [2, 3])
def test_fitted_posterior_of_the_scale_is_that_of_quadrature(views):
    joint, x = random_scale(), drawn(200, views)
    simvae = ps.limits.SimVAE(joint, ELBO(8))
    ps.fit(
        simvae,
        ps.data.Groups(x),
        epochs=150,
        batch_size=200,
        # The first gradients, of a scale still far off, are large: a short memory.
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.9)),
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 150),
        progress=False,
    )
    assert joint.population == 200
    exact = quadrature(x)
    mean, variance = exact.moments
    assert exact.divergence(joint) < TOLERATED
    # It moved: the prior itself is far from the posterior.
    assert variance.sqrt() < BEFORE[1] / 5
    assert exact.divergence(random_scale()) > 100 * TOLERATED


def test_doubling_the_data_halves_the_variance_as_quadrature_does():
    x, fitted, exact = drawn(100, 2), [], []
    for copies in (1, 2):
        joint = random_scale()
        # The bound is a mean over items: only the population tells 100 from 200.
        joint.population = torch.tensor(100.0 * copies)
        optimizer = torch.optim.Adam(joint.parameters(), 0.1, betas=(0.9, 0.9))
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
        batches = repeat(ps.Batch(x), 150)
        for _ in ps.steps(ps.limits.SimVAE(joint, ELBO(8)), batches, optimizer):
            cosine.step()
        exact.append(quadrature(x, copies=copies))
        assert exact[-1].divergence(joint) < TOLERATED
        fitted.append(2 * joint.prior.scale.log_scale.detach())
    ratio = (fitted[0] - fitted[1]).exp()
    expected = exact[0].moments[1] / exact[1].moments[1]
    assert 1.8 < expected < 2.2
    # The last iterates differ from the optimum by some hundredths.
    assert_close(ratio, expected, rtol=0.2, atol=0)


def test_quadrature_agrees_with_the_evidence_of_a_known_scale():
    x = drawn(5, 3)
    exact = quadrature(x)
    at = 500
    scale = exact.grid[at].exp()
    covariance = (scale**2 + NOISE**2) * torch.eye(3) + 1.0
    law = MultivariateNormal(torch.zeros(3), covariance)
    log_likelihood = law.log_prob(x.mT).sum()
    prior = LogNormal(*BEFORE).log_prob(scale) + exact.grid[at]  # of log scale
    assert_close(exact.log_p[at] + exact.log_evidence, log_likelihood + prior)
