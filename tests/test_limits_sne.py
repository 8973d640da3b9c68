"""Contrastive objectives as stochastic neighbour embedding, P and Q as matrices."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl.embedding import Embedding
from probssl.entropies.collision import Collision
from probssl.limits.simclr import SimCLR
from probssl.limits.tsimclr import TSimCLR
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


def assert_same(ours: Tensor, plain: Tensor, z: Tensor) -> None:
    """In value and in slope."""
    slopes = [torch.autograd.grad(value, z)[0] for value in (ours, plain)]
    assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    assert_close(*slopes, rtol=1e-10, atol=1e-10)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def t_simclr(z: Tensor, dof: float, temperature: float) -> Tensor:
    """The released loss: positives, and one normaliser over all ordered pairs."""
    u, views = z.flatten(0, 1), z.shape[1]
    log_w = -(dof + 1) / 2 * torch.log1p(distances(u) / (temperature * dof))
    itself, mates = torch.eye(len(u)).bool(), together(len(u), views)
    return log_w[~itself].logsumexp(0) - log_w[mates].mean()


def distances(u: Tensor) -> Tensor:
    return (u[:, None] - u).square().sum(-1)


def together(points: int, views: int) -> Tensor:
    """Which ordered pairs are of different views of one item."""
    item = torch.arange(points) // views
    return (item[:, None] == item) & ~torch.eye(points).bool()


@pytest.mark.parametrize("dim", [2, 5, 6, 64])  # a density below 6
@pytest.mark.parametrize("views", [2, 3])
def test_t_simclr_is_the_log_of_all_pairs_minus_its_loss(views, dim):
    z = (2 * torch.randn(5, views, dim)).requires_grad_()
    ours = sum(TSimCLR(nn.Identity())(Batch(z)))
    pairs = 5 * views * (5 * views - 1)
    assert_same(ours, math.log(pairs) - t_simclr(z, 5.0, 8.0), z)


@pytest.mark.parametrize("views", [2, 3])
def test_t_simclr_is_the_divergence_of_t_sne_up_to_a_constant(views):
    z = (2 * torch.randn(5, views, 3)).requires_grad_()
    points = 5 * views
    weight = (1 + distances(z.flatten(0, 1)) / 40) ** -3
    q = weight / (weight - torch.eye(points)).sum()
    mates = together(points, views)
    p = mates / mates.sum()
    divergence = kl(p[mates], q[mates])
    ours = sum(TSimCLR(nn.Identity())(Batch(z)))
    assert_same(ours, math.log((points - 1) / (views - 1)) - divergence, z)


@pytest.mark.parametrize("views", [2, 3])
def test_simclr_is_the_divergence_of_sne_up_to_a_constant(views):
    z = torch.randn(5, views, 3, requires_grad=True)
    u, points = normalize(z, dim=-1).flatten(0, 1), 5 * views
    weight = (u @ u.T / 0.4).exp() * ~torch.eye(points).bool()
    q = weight / weight.sum(1, keepdim=True)
    mates = together(points, views)
    p = mates / mates.sum(1, keepdim=True)
    divergence = kl(p[mates], q[mates]) / points
    ours = sum(SimCLR(nn.Identity(), temperature=0.4)(Batch(z)))
    assert_same(ours, math.log((points - 1) / (views - 1)) - divergence, z)
    # With all pairs as one distribution: the loss plus log 1/(2 n).
    joint = mates / mates.sum()
    loss = math.log(points - 1) - ours
    assert_close(kl(joint[mates], q[mates]), loss - math.log(points * (views - 1)))


def test_t_simclr_tends_to_the_gaussian_kernel_at_first_order_in_one_over_dof():
    z = 2 * torch.randn(6, 2, 3)
    prior = ps.priors.Gaussian(None, math.sqrt(8.0), y_scale=math.inf)
    limit = sum(Embedding(nn.Identity(), prior, Collision(), plug_in=True)(Batch(z)))
    gaps = [sum(TSimCLR(nn.Identity(), dof=n)(Batch(z))) - limit for n in (1e4, 1e5)]
    assert abs(gaps[1]) > 1e-7
    assert_close(gaps[0] / gaps[1], torch.tensor(10.0), rtol=1e-2, atol=0)


def test_t_simclr_moves_with_neither_rotation_nor_translation_nor_a_common_stretch():
    z, objective = torch.randn(7, 2, 4), TSimCLR(nn.Identity())
    value = sum(objective(Batch(z)))
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert_close(sum(objective(Batch(z @ rotation + 3.0))), value)
    wide = TSimCLR(nn.Identity(), temperature=9 * 8.0)
    assert_close(sum(wide(Batch(3 * z))), value)
    assert (sum(objective(Batch(3 * z))) - value).abs() > 0.1
