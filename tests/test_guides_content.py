"""Guides of the content: closed posteriors, symmetries, and an explicit y."""

import math
from itertools import cycle

import pytest
import torch
from helpers.checks import minimise, refusals
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.testing import assert_close

import probssl as ps
from probssl.guides import Content, SphericalContent

pytestmark = pytest.mark.usefixtures("float64")
BOTH = pytest.mark.parametrize("guide", [Content, SphericalContent])
SCALE, Y_SCALE, DIM = 0.6, 1.3, 3


def moved(guide: nn.Module) -> nn.Module:
    """With a head that no longer is zero."""
    nn.init.normal_(guide.summary.head.weight, std=0.3)
    return guide


def exact(views: int) -> Content:
    """The posterior of y under the Gaussian prior, written into the weights."""
    guide = Content(DIM, hidden=(4,))
    variance, content = SCALE**2, Y_SCALE**2
    shrink = views * content / (views * content + variance)
    scale = math.sqrt(content * variance / (variance + views * content))
    with torch.no_grad():
        to_move = guide.summary.head.weight[:DIM, 4 : 4 + DIM]
        to_move.copy_((shrink - 1) * torch.eye(DIM))
        guide.summary.head.bias[DIM:] = math.log(math.expm1(scale - guide.floor))
    return guide


@pytest.mark.parametrize("views", [1, 2, 5])
def test_content_contains_the_posterior_under_the_gaussian_prior(views):
    z, y = torch.randn(6, views, DIM), torch.randn(6, DIM)
    plain = ps.priors.Gaussian(DIM, SCALE, Y_SCALE).posterior_y(z)
    assert_close(exact(views)(z).log_prob(y), plain.log_prob(y))


def fitted(guide: nn.Module, prior: ps.priors.Prior, views: tuple, steps: int):
    """The guide after maximum likelihood on draws of y and z."""
    many = cycle(views)

    def loss() -> Tensor:
        y = prior.content().sample((256,))
        z = prior.given(y.unsqueeze(-2).expand(-1, next(many), -1)).sample()
        return -guide(z).log_prob(y).mean()

    minimise(loss, guide.parameters(), steps)
    return guide


def test_fitting_reaches_the_gaussian_posterior_for_any_number_of_views():
    prior = ps.priors.Gaussian(2, SCALE, Y_SCALE)
    guide = fitted(Content(2, hidden=(32,)), prior, (1, 2, 4), 600)
    for views in (1, 2, 4):
        z = prior(views).sample((2000,))
        assert kl_divergence(prior.posterior_y(z), guide(z)).mean() < 0.01


def test_fitting_comes_near_the_posterior_on_the_sphere():
    prior = ps.priors.Spherical(3, 5.0)
    guide = fitted(SphericalContent(3, hidden=(32,)), prior, (2,), 200)
    z = prior(2).sample((1000,))
    assert kl_divergence(guide(z), prior.posterior_y(z)).mean() < 0.05


@BOTH
def test_the_order_of_views_changes_nothing(guide):
    guide, z = moved(guide(DIM)), torch.randn(5, 4, DIM)
    y = nn.functional.normalize(torch.randn(5, DIM), dim=-1)
    assert_close(guide(z).log_prob(y), guide(z[:, [2, 0, 3, 1]]).log_prob(y))


@BOTH
def test_it_starts_around_the_mean_of_the_views(guide):
    z = nn.functional.normalize(torch.randn(5, 2, DIM), dim=-1)
    q, mean = guide(DIM)(z), z.mean(1)
    if guide is Content:
        assert_close(q.mean, mean)
    else:
        assert_close(q.loc, nn.functional.normalize(mean, dim=-1))


@BOTH
@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leading_axes_dtype_and_gradient_follow_z(guide, hidden, batch, dtype):
    guide = moved(guide(DIM, hidden)).to(dtype)
    for views in (1, 3):
        z = torch.randn(*batch, views, DIM, dtype=dtype, requires_grad=True)
        q = guide(z)
        y = q.rsample()
        assert q.batch_shape == batch and q.event_shape == (DIM,)
        assert y.shape == (*batch, DIM) and y.dtype == dtype
        grads = torch.autograd.grad(q.log_prob(y).sum(), [z, *guide.parameters()])
        assert all(grad.isfinite().all() for grad in grads)
        alone: Tensor = guide(z.detach()).log_prob(y.detach())
        assert alone.shape == batch


test_wrong_sizes_are_refused = refusals(
    (lambda: Content(0), ValueError, "dim as a whole number of at least 1"),
    (lambda: Content(3, (0,)), ValueError, "hidden as a whole number"),
    (lambda: SphericalContent(1), ValueError, "at least 2, .* use Content"),
    (lambda: Content(3)(torch.randn(5, 2, 4)), ValueError, r"\(\*batch, view, 3\)"),
)
