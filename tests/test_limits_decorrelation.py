"""Barlow Twins and W-MSE: what they are of log-det, as theorems."""

import math
from functools import partial

import pytest
import torch
from helpers.checks import assert_same, value_and_grad
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.limits import LogDet, VICReg
from probssl.limits.barlow import BarlowTwins, standardised
from probssl.limits.frossl import FroSSL
from probssl.limits.wmse import WMSE, whitened
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


def value(objective: nn.Module, z: Tensor) -> Tensor:
    return torch.as_tensor(sum(objective(Batch(z))))


def pairs(views: int) -> list[tuple[int, int]]:
    return [(v, w) for v in range(views) for w in range(v)]


def barlow(a: Tensor, b: Tensor, redundancy: float, epsilon: float = 1e-5) -> Tensor:
    """The loss as printed, entry by entry, on what batch norm makes of a and b."""
    norm, (n, dim) = nn.BatchNorm1d(a.shape[1], affine=False, eps=epsilon), a.shape
    c, loss = norm(a).T @ norm(b) / n, torch.zeros(())
    for i in range(dim):
        loss = loss + (1 - c[i, i]) ** 2
        for j in range(dim):
            loss = loss + redundancy * (c[i, j] ** 2 if i != j else 0.0)
    return loss


@pytest.mark.parametrize("redundancy", [0.005, 0.25, 3.0])
@pytest.mark.parametrize("views", [2, 3])
def test_barlow_twins_is_minus_its_loss_over_four_times_its_weight(views, redundancy):
    z = (2 + 0.7 * torch.randn(9, views, 4)).requires_grad_()
    ours = value(BarlowTwins(nn.Identity(), redundancy=redundancy), z)
    losses = [barlow(z[:, v], z[:, w], redundancy) for v, w in pairs(views)]
    plain = -sum(losses) / len(losses) / (4 * redundancy)
    plain = plain + 2 * math.log(2 * math.pi * math.e)
    assert_same(ours, plain, z)


def test_the_diagonal_is_half_the_distance_of_standardised_views():
    """1 − C_ii = ½ E(z_1i − z_2i)²: the Gaussian alignment is linear in C_ii."""
    z = standardised(3 * torch.randn(9, 2, 4), epsilon=0.0)
    c = (z[:, 0] * z[:, 1]).mean(0)
    assert_close(1 - c, (z[:, 0] - z[:, 1]).square().mean(0) / 2)
    s = 0.3
    alignment = ps.priors.Gaussian(4, s, y_scale=math.inf).log_prob(z).mean()
    constant = -2 * math.log(4 * math.pi * s**2)
    assert_close(alignment, constant - (1 - c).sum() / (2 * s**2))


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.95])
def test_the_square_has_the_gradient_of_a_gaussian_of_variance_lambda_over_what_is_left(
    agreement,
):
    redundancy, c = 0.005, torch.tensor(agreement, requires_grad=True)
    penalty = -((1 - c) ** 2) / (4 * redundancy)
    variance = redundancy / (1 - agreement)
    gaussian = -(1 - c) / (2 * variance)
    grads = [torch.autograd.grad(value, c)[0] for value in (penalty, gaussian)]
    assert_close(*grads)
    # So the objective says, at two dimensions with this cross-correlation.
    first = torch.tensor([1.0, 1.0, -1.0, -1.0]).unsqueeze(1)
    other = torch.tensor([1.0, -1.0, 1.0, -1.0]).unsqueeze(1)
    second = agreement * first + math.sqrt(1 - agreement**2) * other
    objective = BarlowTwins(nn.Identity(), redundancy=redundancy, epsilon=0.0)
    found = objective(Batch(torch.stack([first, second], 1))).penalty
    assert_close(found, penalty.detach())


def order_near_white_views(surrogate: nn.Module) -> float:
    """Of the gap to log-det, where correlations of unit variances vanish."""
    noise, gaps = torch.randn(6, 6), []
    noise = (noise + noise.T) / 2
    log_det = LogDet(nn.Identity(), scale=0.5, epsilon=0.0)
    for size in (1e-2, 1e-3):
        z = torch.randn(50, 6)  # two equal views with this very covariance
        root = torch.linalg.cholesky(torch.eye(6) + size * noise.fill_diagonal_(0.0))
        z = (whitening(z) @ root.T).unsqueeze(1).repeat(1, 2, 1)
        gaps.append(log_det(Batch(z)).entropy - surrogate(Batch(z)).entropy)
        assert_close(torch.as_tensor(surrogate(Batch(z)).penalty), torch.tensor(0.0))
    return float((gaps[0] / gaps[1]).log10())


def test_barlow_twins_tends_to_log_det_at_third_order_near_white_views():
    surrogate = BarlowTwins(nn.Identity(), epsilon=0.0)
    assert order_near_white_views(surrogate) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize(("covariance", "order"), [(1.0, 2), (3.125, 3)])
def test_vicreg_tends_to_log_det_at_second_order_at_covariance_3_125_at_third(
    covariance, order
):
    """As published, with w = 0.08, and with w = 1/4, at unit variances."""
    surrogate = VICReg(nn.Identity(), covariance=covariance)
    surrogate.entropy.epsilon = 0.0
    assert order_near_white_views(surrogate) == pytest.approx(order, abs=0.05)


def test_barlow_twins_ignores_shifts_and_stretches_of_each_dimension_of_a_view():
    z = torch.randn(9, 2, 4)
    stretch, shift = 10 ** torch.randn(2, 4), torch.randn(2, 4)
    objective = BarlowTwins(nn.Identity(), epsilon=0.0)
    assert_close(value(objective, z * stretch + shift), value(objective, z))
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert (value(objective, z @ rotation) - value(objective, z)).abs() > 1e-3


def whitening(a: Tensor) -> Tensor:
    """By the inverse of the Cholesky factor of the covariance, as in the paper."""
    root = torch.linalg.cholesky(torch.cov(a.T))
    return (a - a.mean(0)) @ torch.linalg.inv(root).T


@pytest.mark.parametrize("views", [2, 4])
def test_w_mse_is_a_constant_minus_its_loss(views):
    z = torch.randn(12, views, 3, requires_grad=True)
    ours = value(WMSE(nn.Identity(), epsilon=0.0), z)
    w = [whitening(z[:, v]) for v in range(views)]
    losses = [
        (2 - 2 * nn.functional.cosine_similarity(w[i], w[j])).mean()
        for i, j in pairs(views)
    ]
    # C_3(κ) = κ / (4 π sinh κ), and the area of the sphere is 4 π.
    constant = math.log(2 / (4 * math.pi * math.sinh(2))) + 2 + math.log(4 * math.pi)
    plain = constant - sum(losses) / len(losses)
    assert_same(ours, plain, z)


@pytest.mark.parametrize("views", [2, 4])
def test_euclidean_w_mse_is_log_det_of_whitened_views(views):
    z = torch.randn(12, views, 3, requires_grad=True)
    ours = value(WMSE(nn.Identity(), normalise=False, epsilon=0.0), z)
    w = torch.stack([whitening(z[:, v]) for v in range(views)], 1)
    plain = value(LogDet(nn.Identity(), scale=0.5, epsilon=0.0), w)
    assert_same(ours, plain, z)


def test_whitened_views_have_the_entropy_that_is_stated():
    z = whitened(3 + torch.randn(12, 2, 3) @ torch.randn(3, 3), 0.0)
    assert_close(z.mean(0), torch.zeros(2, 3))
    assert_close(torch.cov(z[:, 1].T), torch.eye(3))
    terms = WMSE(nn.Identity(), normalise=False)(Batch(z))
    assert_close(terms.entropy, ps.entropies.LogDeterminant(0.0)(z))


def test_directions_of_white_gaussians_have_the_entropy_that_is_stated():
    """Uniform, by the sample's second moments: E u uᵀ = I / d with five bars."""
    n, dim = 20_000, 3
    u = nn.functional.normalize(whitened(torch.randn(n, 1, dim), 0.0)[:, 0], dim=-1)
    products = u.unsqueeze(1) * u.unsqueeze(2)
    away = products.mean(0) - torch.eye(dim) / dim
    assert (away.abs() <= 5 * products.std(0) / math.sqrt(n)).all()
    terms = WMSE(nn.Identity())(Batch(torch.randn(9, 2, dim)))
    assert_close(terms.entropy, torch.tensor(math.log(4 * math.pi)))


@pytest.mark.parametrize("normalise", [True, False])
def test_w_mse_ignores_triangular_maps_of_z_and_of_equal_views_any_map(normalise):
    objective = WMSE(nn.Identity(), normalise=normalise, epsilon=0.0)
    z, linear = torch.randn(12, 2, 3), torch.randn(3, 3) + 2 * torch.eye(3)
    triangular = linear.tril()
    assert_close(value(objective, z @ triangular.T + 5), value(objective, z))
    equal = z[:, :1].repeat(1, 2, 1)
    assert_close(value(objective, equal @ linear.T), value(objective, equal))


def test_any_map_moves_w_mse_less_the_more_alike_the_covariances_of_the_views():
    """By a turn of one whitened view against the other, at second order."""
    objective, linear = WMSE(nn.Identity(), epsilon=0.0), torch.randn(3, 3)
    z, noise = torch.randn(40, 1, 3), torch.randn(40, 1, 3)
    gaps = []
    for size in (1e-3, 1e-4):
        views = torch.cat([z, z + size * noise], 1)
        gaps.append(value(objective, views @ linear.T) - value(objective, views))
    assert_close(gaps[0] / gaps[1], torch.tensor(100.0), rtol=0.05, atol=0)


def test_sub_batches_are_whitened_by_themselves_in_training_and_not_in_evaluation():
    z = torch.randn(13, 2, 3)
    objective = WMSE(nn.Identity(), size=5, rounds=3, epsilon=0.0)
    torch.manual_seed(3)
    ours = value(objective, z)
    torch.manual_seed(3)
    parts = [z[torch.randperm(13)].tensor_split(2) for _ in range(3)]
    plain = WMSE(nn.Identity(), epsilon=0.0)
    total = sum(len(part) * value(plain, part) for two in parts for part in two)
    assert_close(ours, total / 39)
    objective.eval()
    before = torch.get_rng_state()
    assert_close(value(objective, z), value(plain, z), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_covariance_without_a_factor_does_not_pass_as_one():
    z = torch.randn(9, 20, 1).repeat(1, 1, 2)  # a dimension twice
    sigma = ps.entropies.gaussian.covariance(z)
    failed = torch.linalg.cholesky_ex(sigma).info > 0
    assert failed.any() and whitened(z, 0.0)[:, failed].isnan().all()
    assert whitened(z, 1e-4).isfinite().all()


def test_equal_items_are_whitened_to_zero_and_have_a_finite_gradient():
    z = torch.ones(9, 2, 3, requires_grad=True)
    found, grad = value_and_grad(value(WMSE(nn.Identity()), z), z)
    assert found.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("limit", [BarlowTwins, WMSE, partial(WMSE, normalise=False)])
def test_equal_views_are_best(limit):
    z, objective = torch.randn(9, 2, 4), limit(nn.Identity())
    equal = z[:, :1].repeat(1, 2, 1)
    assert value(objective, equal) > value(objective, z)


def frossl(views: list[Tensor], weight: float) -> Tensor:
    """The loss of the authors' code, of traces, on dimensions of length √d."""
    (n, dim), loss = views[0].shape, torch.zeros(())
    z = [(a - a.mean(0)) / torch.linalg.norm(a - a.mean(0), dim=0) for a in views]
    z = [dim**0.5 * a for a in z]
    mean = sum(z) / len(z)
    for a in z:
        kernel = a @ a.T
        kernel = kernel / kernel.trace()
        loss = loss + torch.trace(kernel @ kernel).log()
        loss = loss + weight * len(z) * ((a - mean) ** 2).sum() / (n * dim)
    return loss


@pytest.mark.parametrize("weight", [1.0, 8.0])
@pytest.mark.parametrize(("n", "views", "dim"), [(9, 2, 4), (5, 3, 7)])
def test_frossl_is_minus_its_loss_times_its_factor(n, views, dim, weight):
    z = (2 + 0.7 * torch.randn(n, views, dim)).requires_grad_()
    ours = value(FroSSL(nn.Identity(), invariance=weight), z)
    variance = 2 * n / ((views - 1) * weight * dim)
    unit = math.log(2 * math.pi * math.e) - math.log(dim) / 2
    constant = math.log(2 * math.pi * variance) + math.log(views) / (views - 1)
    constant = (views - 1) * dim / 2 * (unit - constant)
    loss = frossl(list(z.unbind(1)), weight)
    assert_same(ours, constant - (views - 1) * dim / (4 * views) * loss, z)


def test_frossl_of_two_views_has_the_mean_squared_error_of_the_authors():
    a, b = (math.sqrt(4) * whitening(torch.randn(9, 4)) / math.sqrt(8) for _ in "ab")
    entropies = sum(2 * (torch.linalg.norm(x.T @ x, "fro") / 16).log() for x in (a, b))
    plain = entropies + nn.functional.mse_loss(a, b)
    assert_close(frossl([a, b], 1.0), plain)


def test_frossl_tends_to_log_det_at_third_order_in_the_correlations():
    noise, gaps = torch.randn(6, 6), []
    noise = (noise + noise.T) / 2
    objective, log_det = FroSSL(nn.Identity()), LogDet(nn.Identity(), epsilon=0.0)
    for size in (1e-2, 1e-3):
        root = torch.linalg.cholesky(torch.eye(6) + size * noise.fill_diagonal_(0.0))
        z = whitening(torch.randn(50, 6)) @ root.T  # with this very covariance
        z = z.unsqueeze(1).repeat(1, 2, 1)
        found = objective(Batch(z)).entropy
        assert_close(found, objective(Batch(3 * z + 1)).entropy)
        gaps.append(log_det(Batch(z)).entropy - found)
    assert_close(gaps[0] / gaps[1], torch.tensor(1000.0), rtol=0.1, atol=0)
