"""The flow guide: a density, its samples, and what it can hold that a normal cannot."""

import math
import sys
from functools import partial

import pyro
import pytest
import torch
from helpers import catalogue
from helpers.checks import minimise
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.bounds import ELBO, log_weights
from probssl.guides import DiagonalGaussian, Flow
from probssl.terms import Batch
from probssl.testing import check_guide

pytest.importorskip("zuko")
pytestmark = pytest.mark.usefixtures("float64")


def bent(dim: int = 2, **options) -> Flow:
    """A flow that no longer is at its start."""
    guide = Flow(ps.nn.MLPEncoder((3,), dim, hidden=(8,)), **options)
    for layer in guide.layers:
        nn.init.normal_(layer.net[-1].weight, std=0.5)
        nn.init.normal_(layer.net[-1].bias, std=0.5)
    return guide


def test_zuko_switches_no_validation_off(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    settings = pyro.settings.get()
    bent()
    assert "zuko.transforms" in sys.modules
    assert settings["validate_distributions_torch"]
    assert pyro.settings.get() == settings


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_it_starts_as_the_diagonal_gaussian(dim):
    guide, x = Flow(ps.nn.MLPEncoder((3,), dim, hidden=(8,))), torch.randn(4, 2, 3)
    q = guide(x, None)
    loc, raw = guide.factors(x)
    scale = nn.functional.softplus(raw[..., :dim]) + guide.floor
    plain = torch.distributions.Normal(loc, scale)
    z = plain.sample((7,))
    assert_close(q.log_prob(z), plain.log_prob(z).sum((-2, -1)))
    assert_close(q.mean, loc)
    assert_close(q.variance, scale.square())


@pytest.mark.parametrize("dim, transforms", [(1, 3), (2, 2)])
def test_it_keeps_the_laws_of_guides(dim, transforms):
    guide = bent(dim, transforms=transforms, hidden=(8,))
    prior, x = ps.priors.Gaussian(dim, 0.5), torch.randn(3, 2, 3)
    check_guide(guide, prior, x, draws=500)


def test_a_draw_is_scored_as_any_other_point():
    q = bent(3, transforms=3)(torch.randn(2, 2, 3), None)
    z = q.rsample((7,))
    assert_close(q.log_prob(z), q.log_prob(z.clone()))


def test_mean_and_variance_are_near_those_of_samples():
    q = bent(3)(torch.randn(5, 2, 3), None)
    z = q.rsample((4_000,))
    assert (q.mean - z.mean(0)).abs().div(z.std(0)).max() < 0.05
    assert (q.variance / z.var(0)).log().abs().max() < 0.2
    assert_close(q.mean, q.mean, rtol=0, atol=0)


def test_density_is_that_of_the_change_of_variables():
    q = bent(5, transforms=3)(torch.randn(1, 1, 3), None).base_dist
    base = torch.randn(5)
    jacobian = torch.autograd.functional.jacobian(
        lambda base: (q.loc + q.scale * q._bend(base.view(1, 1, 5))[0]).flatten(), base
    )
    z = q.loc + q.scale * q._bend(base.view(1, 1, 5))[0]
    plain = torch.distributions.Normal(0.0, 1.0).log_prob(base).sum()
    assert_close(q.log_prob(z).squeeze(), plain - torch.linalg.slogdet(jacobian)[1])


class Banana(nn.Module):
    """x = z_2 + z_1²: the posterior of z given x bends around the origin."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, 1:] + z[:, :1].square()


def fitted(guide: type[nn.Module], batch: Batch) -> ps.Joint:
    torch.manual_seed(5)
    joint = ps.Joint(
        ps.priors.Independent(2),
        ps.likelihoods.Gaussian(0.2),
        ps.nn.MLPEncoder((1,), 2, hidden=(32,)),
        Banana(),
        guide=guide,
    )
    guide = joint.posterior.parameters()
    minimise(lambda: -sum(ELBO(16)(joint, batch)), guide, 150)
    return joint


def test_it_holds_a_bent_posterior_that_a_normal_cannot():
    batch, values = Batch(torch.tensor([-0.5, 0.0, 0.5, 1.0]).view(4, 1, 1)), []
    for guide in (Flow, DiagonalGaussian):
        joint = fitted(guide, batch)
        with torch.no_grad():
            each = log_weights(joint, batch, 2_000).local().mean(1)
        values.append((each.mean(), each.std() / math.sqrt(len(each))))
    (flow, its_error), (normal, error) = values
    assert flow - normal > 5 * (its_error + error)
    # of the evidence, by summing over a grid, it misses little
    line = torch.linspace(-8.0, 8.0, 1601)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1).exp()
    mean = z[..., 1] + z[..., 0].square()
    exact = [
        (prior * torch.distributions.Normal(mean, 0.2).log_prob(x).exp()).sum() * 1e-4
        for x in batch.views.flatten()
    ]
    evidence = torch.stack(exact).log().mean()
    assert flow < evidence + 5 * its_error
    assert evidence - flow < (evidence - normal) / 3


@pytest.mark.parametrize("prior", [ps.priors.Gaussian, ps.priors.TwoTier])
def test_absent_views_follow_the_prior_and_add_nothing(prior):
    guide, prior = bent(2), prior(2)
    x, present = torch.randn(6, 3, 3), torch.rand(6, 3) < 0.5
    joint = catalogue.joint(prior, event=3, guide=lambda _: guide)
    torch.manual_seed(1)
    q = joint.encode(Batch(x, present=present))
    z = q.rsample()
    alone = guide(x, prior).base_dist
    seen = alone.log_prob(z).where(present, 0.0).sum(-1)
    rest = prior.log_prob(z) - prior.log_prob(z, present)
    assert_close(q.log_prob(z), seen + rest)
    assert_close(q.mean[present], alone.mean[present])


def test_particles_and_random_scales_go_through_the_bound():
    joint = catalogue.joint(ps.priors.Gaussian(2), event=3, guide=Flow)
    batch = Batch(torch.randn(6, 2, 3))
    value = sum(ELBO(4)(joint, batch))
    grads = torch.autograd.grad(value, joint.posterior.layers[1].net[-1].bias)
    assert value.isfinite() and grads[0].any()
    first, second = (joint.represent(batch.views[:, 0]) for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"transforms": 3, "hidden": (8,)}])
def test_it_is_saved_with_its_joint(tmp_path, options):
    guide = partial(Flow, **options)
    joint = catalogue.joint(ps.priors.Gaussian(2), event=3, guide=guide)
    nn.init.normal_(joint.posterior.layers[0].net[-1].weight)
    again = ps.load(ps.save(joint, tmp_path))
    x = torch.randn(5, 3)
    assert again.posterior.hidden == joint.posterior.hidden
    assert_close(again.represent(x), joint.represent(x), rtol=0, atol=0)


def test_single_precision_stays_single_and_finite():
    guide = bent(4, transforms=4).float()
    x = (100 * torch.randn(50, 2, 3)).float()
    q = guide(x, None)
    z = q.rsample((5,))
    value = q.log_prob(z).sum() + q.log_prob(3 * z.detach()).sum() + q.mean.sum()
    value = value + q.log_prob(z.clone()).sum()
    assert z.dtype == value.dtype == torch.float32 and value.isfinite()
    grads = torch.autograd.grad(value, list(guide.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="transforms as a whole number"):
        Flow(ps.nn.MLPEncoder((3,), 2), transforms=0)


def test_without_zuko_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setitem(sys.modules, "zuko.transforms", None)
    with pytest.raises(ImportError, match=r'pip install "probssl\[zuko\]"'):
        Flow(ps.nn.MLPEncoder((3,), 2))
