"""The guides against dense normals and plain products of densities."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

import probssl as ps
from probssl.distributions.gaussian import OneFactorNormal

pytestmark = pytest.mark.usefixtures("float64")


def dense(q: OneFactorNormal) -> MultivariateNormal:
    """The same distribution of the views, one dense normal for each dimension."""
    loading, variance = q.loading.mT, q.scale.square().mT
    outer = loading.unsqueeze(-1) * loading.unsqueeze(-2)
    return MultivariateNormal(q.loc.mT, variance.diag_embed() + outer)


def random_one_factor(views: int, dim: int = 3) -> OneFactorNormal:
    shape = (4, views, dim)
    return OneFactorNormal(
        torch.randn(shape), torch.rand(shape) + 0.1, torch.randn(shape)
    )


@pytest.mark.parametrize("views", [1, 2, 5])
def test_one_factor_normal_equals_the_dense_normal(views):
    q = random_one_factor(views)
    z = torch.randn(7, 4, views, 3)
    assert_close(q.log_prob(z), dense(q).log_prob(z.mT).sum(-1))
    assert_close(q.entropy(), dense(q).entropy().sum(-1))
    assert_close(q.variance.mT, dense(q).variance)


@pytest.mark.parametrize("y_scale", [1.3, math.inf])
@pytest.mark.parametrize("views", [2, 3, 5])
def test_product_with_factors_is_normalised_and_proportional(views, y_scale):
    prior = ps.priors.Gaussian(3, 0.6, y_scale)(views).expand((4,))
    loc, scale = torch.randn(4, views, 3), torch.rand(4, views, 3) + 0.2
    q, z = prior.times(loc, scale), torch.randn(9, 4, views, 3)
    plain = prior.log_prob(z) + Normal(loc, scale).log_prob(z).sum((-2, -1))
    ratio = plain - q.log_prob(z)
    assert_close(ratio, ratio[:1].expand_as(ratio))
    assert_close(q.log_prob(z), dense(q).log_prob(z.mT).sum(-1))


def test_samples_of_one_factor_have_its_covariance():
    q, n = random_one_factor(3), 100_000
    z = q.rsample((n,)) - q.loc
    product = z[..., 0, :] * z[..., 2, :]
    error = 5 * product.std(0) / math.sqrt(n)
    expected = q.loading[:, 0] * q.loading[:, 2]
    assert ((product.mean(0) - expected).abs() < error).all()


def test_reparameterised_gradient_equals_that_of_the_expectation():
    loading = torch.tensor([[0.3], [-0.8]], requires_grad=True)
    q = OneFactorNormal(torch.zeros(2, 1), torch.full((2, 1), 0.5), loading)
    n = 100_000
    z = q.rsample((n,))
    value = z[:, 0, 0] * z[:, 1, 0]  # expectation: the product of the loadings
    slopes = torch.autograd.grad(value.mean(), loading)[0].flatten()
    assert_close(slopes, torch.tensor([-0.8, 0.3]), rtol=0, atol=5 * 2 / math.sqrt(n))


def test_factor_floor_keeps_log_densities_finite():
    encoder = ps.nn.MLPEncoder((3,), 2, hidden=())
    guide = ps.guides.DiagonalGaussian(encoder)
    nn.init.constant_(guide.factors.spread.bias, -1e4)
    q = guide(torch.randn(5, 2, 3), ps.priors.Gaussian(2))
    assert (q.stddev >= 1e-4).all() and q.log_prob(q.rsample()).isfinite().all()


def test_a_foreign_encoder_returns_location_and_raw_scale():
    guide = ps.guides.DiagonalGaussian(nn.Linear(3, 4))
    x = torch.randn(5, 2, 3)
    q = guide(x, ps.priors.Gaussian(2))
    loc, raw = guide.encoder(x).chunk(2, -1)
    assert_close(q.mean, loc)
    assert_close(q.stddev, nn.functional.softplus(raw) + 1e-4)


def test_an_encoder_with_an_odd_number_of_outputs_is_refused():
    with pytest.raises(ValueError, match="side by side"):
        ps.guides.DiagonalGaussian(nn.Linear(3, 5))(torch.randn(2, 2, 3), None)


def test_point_guide_is_the_encoder_with_no_entropy():
    encoder, x = ps.nn.MLPEncoder((3,), 2), torch.randn(5, 2, 3)
    q = ps.guides.Point(encoder)(x, ps.priors.Gaussian(2))
    assert_close(q.rsample(), encoder(x.flatten(0, 1)).view(5, 2, 2))
    assert_close(q.log_prob(q.rsample()), torch.zeros(5))


def test_full_gaussian_is_the_normal_of_its_triangle():
    encoder, x = ps.nn.MLPEncoder((3,), 4, hidden=(8,)), torch.randn(5, 2, 3)
    guide = ps.guides.FullGaussian(encoder)
    q, (loc, raw) = guide(x, None), guide.factors(x)
    tril = torch.diag_embed(nn.functional.softplus(raw[..., :4]) + 1e-4)
    for k, (i, j) in enumerate([(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]):
        tril[..., i, j] = raw[..., 4 + k]
    z = torch.randn(5, 2, 4)
    plain = MultivariateNormal(loc, tril @ tril.mT).log_prob(z).sum(-1)
    assert_close(q.log_prob(z), plain)
    assert q.event_shape == (2, 4)


def test_full_gaussian_is_the_exact_posterior_of_any_linear_model():
    """Without a common content its optimum has no gap, where the diagonal one has."""
    weight, noise, x = torch.randn(5, 2), 0.5, torch.randn(1, 1, 5)
    precision = torch.eye(2) + weight.T @ weight / noise**2
    exact = MultivariateNormal(
        torch.linalg.solve(precision, weight.T @ x.flatten() / noise**2),
        precision_matrix=precision,
    )
    tril = exact.scale_tril
    raw = (tril.diagonal() - 1e-4).expm1().log()
    output = torch.cat([exact.mean, raw, tril[1:, 0]])
    q = ps.guides.FullGaussian(_Constant(output))(x, ps.priors.Independent(2))
    z = torch.randn(100, 1, 1, 2)
    assert_close(q.log_prob(z).squeeze(1), exact.log_prob(z.flatten(1)))


class _Constant(nn.Module):
    """An encoder with one output for all items."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output.expand(len(x), -1)


def test_power_spherical_draws_from_its_density_on_the_sphere():
    encoder, x = ps.nn.MLPEncoder((3,), 4, hidden=(8,)), torch.randn(1, 2, 3)
    guide, n = ps.guides.PowerSpherical(encoder), 50_000
    q = guide(x, ps.priors.Spherical(4))
    z = q.rsample((n,))
    assert q.event_shape == (2, 4)
    assert_close(z.norm(dim=-1), torch.ones(n, 1, 2))
    flat = nn.functional.normalize(torch.randn(n, 1, 2, 4), dim=-1)
    ratio = (q.log_prob(flat) + 2 * ps.special.log_area(4)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(n)
    entropy = -q.log_prob(z)
    plain = q.base_dist.entropy().sum()
    assert abs(entropy.mean() - plain) < 5 * entropy.std() / math.sqrt(n)
