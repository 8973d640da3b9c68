"""Posteriors under random hyper-parameters h average over their guide q(h)."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
LOC, SPREAD, NOISE, DRAWS = -0.5, 0.8, 0.3, 8_000
NODES, SHARES = np.polynomial.hermite_e.hermegauss(60)
SHARES = torch.from_numpy(SHARES / SHARES.sum())
SCALES = (LOC + SPREAD * torch.from_numpy(NODES)).exp()  # h at the nodes of q(h)
X = torch.tensor([[-1.0], [0.7], [1.2]], dtype=torch.float64)


class Same(nn.Module):
    """A decoder to the numbers that it is given."""

    def forward(self, z: Tensor) -> Tensor:
        return z


class Classes(nn.Module):
    """p(z|y) = N(±1, h²)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(dist.LogNormal(0.0, 1.0), "scale")
        self.register_buffer("loc", torch.tensor([-1.0, 1.0]))

    def forward(self, y: Tensor, scale: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.loc[y.long()].unsqueeze(-1), scale).to_event(1)


def mixture() -> ps.priors.Mixture:
    prior = ps.priors.Mixture(1, 2, scale=dist.LogNormal(0.0, 1.0))
    with torch.no_grad():
        prior.components.loc.copy_(torch.tensor([[-1.0], [1.0]]))
    return prior


def custom() -> ps.priors.Custom:
    return ps.priors.Custom(Classes(), 1, y_prior=dist.Categorical(torch.ones(2)))


def joint(prior: ps.priors.Prior, guide: type = ps.guides.DiagonalGaussian) -> ps.Joint:
    torch.manual_seed(0)
    likelihood = ps.likelihoods.Gaussian(NOISE)
    model = ps.Joint(prior, likelihood, nn.Linear(1, 1), Same(), guide=guide)
    for h in prior.random():
        nn.init.constant_(h.loc, LOC)
        nn.init.constant_(h.log_scale, math.log(SPREAD))
    model.population = torch.tensor(3.0)
    return model


def moments(model: ps.Joint) -> tuple[Tensor, Tensor]:
    """The means and standard deviations of q(z|x), which h does not change."""
    with torch.no_grad():
        q = model.alone(X)
        return q.mean.flatten(), q.stddev.flatten()


@pytest.mark.parametrize("prior", [mixture, custom])
def test_classes_are_averaged_over_the_guide_of_hyper_parameters(prior):
    model = joint(prior())
    mean, deviation = moments(model)
    z = mean[:, None] + deviation[:, None] * torch.from_numpy(NODES)  # item, node
    share = (2 * z[..., None] / SCALES.square()).sigmoid()  # p(k = 1 | z, h)
    right = torch.einsum("izh,z,h->i", share, SHARES, SHARES)
    square = torch.einsum("izh,z,h->i", share.square(), SHARES, SHARES)
    error = 5 * ((square - right.square()) / DRAWS).sqrt()
    found = torch.from_numpy(ps.classify(model, X, draws=DRAWS)[:, 1])
    assert ((found - right).abs() < error).all()
    at_median = (2 * z / math.exp(LOC) ** 2).sigmoid() @ SHARES
    assert ((at_median - right).abs() > 2 * error).any()


def test_known_shares_of_a_guide_are_averaged_as_well():
    model = joint(mixture(), ps.guides.Coupled)
    batch = Batch(X.unsqueeze(1))
    with torch.no_grad():
        q = model.encode(batch, scale=SCALES.unsqueeze(1))
        share, one = q.component.probs[..., 1], model.encode(batch)
    right, square = SHARES @ share, SHARES @ share.square()
    error = 5 * ((square - right.square()) / DRAWS).sqrt()
    found = torch.from_numpy(ps.classify(model, X, draws=DRAWS)[:, 1])
    assert ((found - right).abs() < error).all()
    assert ((one.component.probs[:, 1] - right).abs() > 2 * error).any()


def test_absent_views_are_drawn_at_draws_of_hyper_parameters():
    model = joint(ps.priors.Gaussian(1, scale=dist.LogNormal(0.0, 1.0)))
    mean, deviation = moments(model)
    present = torch.tensor([[True, False]] * 3)
    views = torch.stack([X, torch.zeros_like(X)], 1)
    data = ps.data.groups(views, present=present)
    found = torch.from_numpy(ps.complete(model, data, draws=DRAWS))[:, :, 1, 0]

    def second_moment(scale: Tensor) -> Tensor:
        """E[x_2²] given h: z_2 is normal given z_1 ~ q(z_1|x_1)."""
        total = 1 + scale.square()
        rest = total - 1 / total
        first = (mean.square() + deviation.square())[:, None]
        return first / total.square() + rest + NOISE**2

    right = second_moment(SCALES) @ SHARES
    at_median = second_moment(torch.tensor([math.exp(LOC)])).squeeze(1)
    square = found.square()
    error = 5 * square.std(0) / math.sqrt(DRAWS)
    assert ((square.mean(0) - right).abs() < error).all()
    assert ((at_median - right).abs() > 2 * error).all()
    z, drawn = model.draw(model.arranged(Batch(views, present=present)), 7)
    assert z.shape == (7, 3, 2, 1) and drawn["scale"].shape == (7, 1)


def test_a_mean_is_at_the_median_of_hyper_parameters():
    model = joint(ps.priors.Gaussian(1, scale=dist.LogNormal(0.0, 1.0)))
    present = torch.tensor([[True, False]] * 3)
    data = ps.data.groups(torch.stack([X, X], 1), present=present)
    slope = 1 / (1 + math.exp(LOC) ** 2)
    found = torch.from_numpy(ps.complete(model, data))[..., 0]
    assert_close(found[:, 1], slope * found[:, 0])


def test_annealed_evidence_is_that_under_the_guide_of_hyper_parameters():
    model = joint(ps.priors.Gaussian(1, scale=dist.LogNormal(0.0, 1.0)))
    deviation = (1 + SCALES.square() + NOISE**2).sqrt()
    right = torch.distributions.Normal(0.0, deviation).log_prob(X).exp() @ SHARES
    found = ps.evidence(model, X, particles=500, anneal=2)
    error = 5 / np.sqrt(found.ess)
    assert (np.abs(np.exp(found.log_evidence) / right.numpy() - 1) < error).all()
    assert (error < 0.5).all()
