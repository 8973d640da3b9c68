"""Objectives by distances and second moments on the sphere, against their papers."""

import math

import pytest
import torch
from helpers.checks import assert_same
from scipy.integrate import quad
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl.limits import MMCR, AlignmentUniformity, Embedding, TiCo
from probssl.special import log_area
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


def value(objective: nn.Module, z: Tensor) -> Tensor:
    return torch.as_tensor(sum(objective(Batch(z))))


def log_peak(dim: int, kappa: float) -> Tensor:
    """The log-density of von Mises and Fisher at its mode."""
    mode = torch.eye(dim)[0]
    return ps.distributions.VonMisesFisher(mode, torch.tensor(kappa)).log_prob(mode)


def uniformity(u: Tensor, t: float) -> Tensor:
    """log E exp(−t ‖x − y‖²) over pairs of different items, as printed."""
    pairs = [
        (-t * (u[i] - u[j]).square().sum()).exp()
        for i in range(len(u))
        for j in range(i)
    ]
    return torch.stack(pairs).mean().log()


@pytest.mark.parametrize(("t", "weight"), [(2.0, 1.0), (0.5, 2.0), (3.0, 0.2)])
@pytest.mark.parametrize("dim", [2, 5])
def test_alignment_and_uniformity_are_minus_their_loss_over_its_weight(dim, t, weight):
    z = torch.randn(6, 2, dim, requires_grad=True)
    objective = AlignmentUniformity(nn.Identity(), uniformity=t, weight=weight)
    u, v = normalize(z, dim=-1).unbind(1)
    loss = (u - v).norm(dim=-1).pow(2).mean()
    loss = loss + weight * (uniformity(u, t) + uniformity(v, t)) / 2
    constant = log_peak(dim, 2 / weight) - log_peak(dim, 2 * t)
    assert_same(value(objective, z), constant - loss / weight, z)
    if weight * t == 1:
        assert_close(constant, torch.tensor(0.0))


def test_they_are_an_embedding_by_the_collision_of_each_view():
    z = torch.randn(6, 3, 4, requires_grad=True)
    objective = AlignmentUniformity(nn.Identity(), uniformity=2.0, weight=0.5)
    plain = Embedding(
        nn.Identity(),
        ps.priors.Spherical(None, 4.0),
        lambda z, prior: sum(
            ps.entropies.Collision()(z[:, [v]], prior) / 3 for v in range(3)
        ),
        plug_in=True,
    )
    assert_same(value(objective, z), value(plain, z), z)
    found, expected = objective(Batch(z)), plain(Batch(z))
    assert_close(found.alignment, expected.alignment)


def directions(size: float, n: int = 40, dim: int = 4) -> tuple[Tensor, Tensor]:
    """Directions whose second moments are (I + E)/d with E of this size, and E.

    They are ± the columns of a frame near a tight one.
    """
    frame = torch.linalg.qr(torch.randn(n // 2, dim)).Q  # its moments are white
    for _ in range(300):  # to a tight frame of unit vectors, alternating projections
        frame = torch.linalg.svd(normalize(frame, dim=-1), full_matrices=False)
        frame = frame.U @ frame.Vh
    u = normalize(frame, dim=-1)
    bend = torch.randn(dim, dim)
    u = normalize(u + size * u @ (bend + bend.T) / 2, dim=-1)
    return torch.cat([u, -u]), dim * u.T @ u / len(u) - torch.eye(dim)


def most_entropy(u: Tensor) -> Tensor:
    """Of the sphere less the second order of the deficit, by the second moments."""
    dim = u.shape[-1]
    deviation = dim * u.T @ u / len(u) - torch.eye(dim)
    return log_area(dim) - (dim + 2) / (4 * dim) * deviation.square().sum()


def test_the_maximum_entropy_at_second_moments_is_that_of_bingham_to_second_order():
    """On the sphere of R³: p(x) ∝ exp(a x₁²), by quadrature over x₁."""

    def tilted(x: float, a: float, power: int) -> float:
        return x**power * math.exp(a * x * x)

    gaps = []
    for a in (0.04, 0.02):
        mass, square = (quad(tilted, -1, 1, (a, p), epsabs=1e-14)[0] for p in (0, 2))
        entropy = math.log(2 * math.pi * mass) - a * square / mass
        first = 3 * square / mass - 1
        deviation = torch.tensor([first, -first / 2, -first / 2])
        deficit = (3 + 2) / (4 * 3) * deviation.square().sum()
        gaps.append(log_area(3) - deficit - entropy)
    assert gaps[0] / gaps[1] == pytest.approx(8.0, rel=0.05)  # of third order


@pytest.mark.parametrize("weight", [0.0, 0.005, 1.0])
@pytest.mark.parametrize(("n", "views", "dim"), [(7, 2, 4), (5, 3, 8)])
def test_mmcr_is_minus_its_loss_times_its_factor(n, views, dim, weight):
    z = torch.randn(n, views, dim, requires_grad=True)
    u = normalize(z, dim=-1)
    loss = -torch.linalg.matrix_norm(u.mean(1), "nuc")
    for item in u:
        loss = loss + weight * torch.linalg.matrix_norm(item, "nuc") / n
    factor = 2 * (1 + 2 / dim) * math.sqrt(dim / n)
    kappa = (dim + 2) * (views - 1) / views
    constant = log_peak(dim, kappa) + log_area(dim) - 2 * (dim + 2)
    ours = value(MMCR(nn.Identity(), compression=weight), z)
    assert_same(ours, constant - factor * loss, z)


def test_mmcr_is_an_alignment_and_a_wasserstein_distance_of_gaussians():
    u = normalize(torch.randn(9, 2, 4), dim=-1)
    terms = MMCR(nn.Identity(), compression=0.0)(Batch(u))
    law = ps.distributions.VonMisesFisher(u[:, 0], torch.tensor(3.0))
    assert_close(terms.alignment, law.log_prob(u[:, 1]).mean())
    moments = 4 * u.mean(1).T @ u.mean(1) / 9
    values, vectors = torch.linalg.eigh(moments)
    root = vectors @ values.sqrt().diag() @ vectors.T
    wasserstein = torch.trace(moments + torch.eye(4) - 2 * root)
    assert_close(terms.entropy, log_area(4) - 1.5 * wasserstein)


@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_mmcr_tends_to_the_maximum_entropy_at_third_order(apart):
    gaps = []
    for size in (3e-3, 3e-4):
        torch.manual_seed(0)
        u, deviation = directions(size)
        noise = apart * size * torch.randn(len(u), 2, 4)
        u = normalize(u.unsqueeze(1) + noise, dim=-1)
        found = MMCR(nn.Identity())(Batch(u)).entropy
        gaps.append(found - most_entropy(u.flatten(0, 1)))
        assert 0.1 < deviation.norm() / size < 10
    assert_close(gaps[0] / gaps[1], torch.tensor(1000.0), rtol=0.1, atol=0)


def tico(z: Tensor, t: Tensor, moments: Tensor, rho: float) -> Tensor:
    """The loss as printed, item by item; z and t are directions."""
    loss = torch.zeros(())
    for a, b in zip(z, t, strict=True):
        loss = loss + (1 - a @ b + rho * a @ moments @ a) / len(z)
    return loss


@pytest.mark.parametrize("rho", [8.0, 20.0])
def test_tico_is_minus_its_loss_times_its_concentration(rho):
    objective = TiCo(nn.Linear(3, 4), contrast=rho, momentum=0.9, memory=0.8, dim=4)
    slow, moments = nn.Linear(3, 4), torch.zeros(4, 4)
    slow.load_state_dict(objective.encoder.state_dict())
    kappa = 4 * 6 / (2 * rho)
    constant = log_peak(4, kappa) + log_area(4) + kappa * rho / 4
    for _ in range(3):
        with torch.no_grad():
            slow.weight.copy_(0.9 * slow.weight + 0.1 * objective.encoder.weight)
            slow.bias.copy_(0.9 * slow.bias + 0.1 * objective.encoder.bias)
        x = torch.randn(5, 2, 3, requires_grad=True)
        z = normalize(objective.encoder(x), dim=-1).transpose(0, 1).flatten(0, 1)
        t = normalize(slow(x), dim=-1).flip(1).transpose(0, 1).flatten(0, 1).detach()
        moments = 0.8 * moments + 0.2 * (z.T @ z).detach() / len(z)
        plain = constant - kappa * tico(z, t, moments, rho)
        assert_same(value(objective, x), plain, (x, objective.encoder.weight))
        assert_close(objective.moments, moments)
        with torch.no_grad():
            objective.encoder.weight.add_(0.1 * torch.randn(4, 3))


def test_the_gradient_of_tico_is_that_of_the_second_order_of_the_maximum_entropy():
    u = torch.randn(9, 2, 4, requires_grad=True)
    found = TiCo(nn.Identity(), memory=0.0, dim=4)(Batch(u)).entropy
    expected = most_entropy(normalize(u, dim=-1).flatten(0, 1))
    assert_close(*(torch.autograd.grad(entropy, u)[0] for entropy in (found, expected)))
    # C is a constant of the gradient, not of the value: the deficit counts twice.
    assert_close(found - log_area(4), 2 * (expected - log_area(4)))
