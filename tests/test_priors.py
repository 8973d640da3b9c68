"""The priors: closed forms against dense and sampled ones."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Gaussian, Independent, Prior, Spherical

pytestmark = pytest.mark.usefixtures("float64")
VIEWS = range(1, 9)


def dense(views: int, scale: float, y_scale: float) -> MultivariateNormal:
    covariance = scale**2 * torch.eye(views) + y_scale**2 * torch.ones(views, views)
    return MultivariateNormal(torch.zeros(views), covariance)


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("views", VIEWS)
def test_gaussian_equals_the_dense_normal(views, dim):
    z = torch.randn(5, views, dim)
    prior = Gaussian(dim, 0.3, 1.7)
    plain = dense(views, 0.3, 1.7).log_prob(z.mT).sum(-1)
    assert_close(prior.log_prob(z), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("views", VIEWS)
def test_gaussian_equals_the_printed_formula(views):
    z, s, t = torch.randn(5, views, 3), 0.3**2, 1.7**2
    mean = z.mean(1)
    square = (z - mean[:, None]).square().sum(1) / s + mean.square() / (t + s / views)
    constant = views * math.log(2 * math.pi)
    constant += (views - 1) * math.log(s) + math.log(s + views * t)
    plain = -0.5 * (square + constant).sum(-1)
    assert_close(Gaussian(3, 0.3, 1.7).log_prob(z), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("views", VIEWS)
def test_marginal_of_present_views_equals_the_prior_of_so_many(views):
    z, prior = torch.randn(4, views + 2, 3), Gaussian(3, 0.3, 1.7)
    present = torch.arange(views + 2).expand(4, -1) < views
    assert_close(prior.log_prob(z, present), prior.log_prob(z[:, :views]))


def test_gaussian_in_float32_is_right_for_nearly_equal_views():
    z = torch.randn(100, 1, 8).expand(-1, 2, -1) + 1e-4 * torch.randn(100, 2, 8)
    z = z.float()
    exact = Gaussian(8, 1e-4).log_prob(z.double())
    single = Gaussian(8, 1e-4).float().log_prob(z)
    assert_close(single.double(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("views", [2, 3, 8])
def test_flat_prior_is_the_limit_of_wide_ones_at_second_order(views):
    z, flat = torch.randn(7, views, 3), Gaussian(3, 0.3, math.inf)
    # p(y) of density 1 instead of N(0, t): add log of the density at zero.
    gap = [
        Gaussian(3, 0.3, t).log_prob(z)
        + 1.5 * math.log(2 * math.pi * t**2)
        - flat.log_prob(z)
        for t in (1e2, 1e3)
    ]
    assert_close(gap[0] / gap[1], torch.full((7,), 100.0), rtol=1e-3, atol=0)


def test_gaussian_samples_have_its_covariance():
    n, prior = 200_000, Gaussian(2, 0.5, 1.5)
    z = prior(3).rsample((n,))
    products = z.unsqueeze(1) * z.unsqueeze(2)
    expected = 0.5**2 * torch.eye(3) + 1.5**2
    error = 5 * products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - expected.unsqueeze(-1)).abs() < error).all()


def test_gaussian_entropy_is_minus_the_mean_log_density():
    n, distribution = 50_000, Gaussian(3, 0.5, 1.5)(4)
    value = -distribution.log_prob(distribution.rsample((n,)))
    error = 5 * value.std() / math.sqrt(n)
    assert abs(value.mean() - distribution.entropy()) < error


def test_posterior_of_the_content_satisfies_bayes():
    z, y = torch.randn(6, 3, 2), torch.randn(6, 2)
    prior = Gaussian(2, 0.3, 1.7)
    joint = dist.Normal(0.0, 1.7).log_prob(y).sum(-1)
    joint = joint + dist.Normal(y[:, None], 0.3).log_prob(z).sum((1, 2))
    assert_close(prior.posterior_y(z).log_prob(y) + prior.log_prob(z), joint)


@pytest.mark.parametrize("plug_in", [False, True])
@pytest.mark.parametrize("y_scale", [1.7, math.inf])
def test_gaussian_kernel_integrates_to_one(y_scale, plug_in):
    a, n = torch.tensor([[0.4, -1.0]]), 200_000
    proposal = dist.Normal(torch.zeros(2), 3.0).to_event(1)
    b = proposal.sample((n,))
    prior = Gaussian(2, 0.6, y_scale)
    ratio = (prior.log_kernel(a, b, plug_in)[0] - proposal.log_prob(b)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(n)


@pytest.mark.parametrize("family, scales", [(Gaussian, (0.6, 1.7)), (Spherical, (5,))])
def test_kernel_is_the_joint_over_the_marginal(family, scales):
    prior = family(3, *scales)
    a, b = prior.on_support(torch.randn(4, 3)), prior.on_support(torch.randn(5, 3))
    pairs = torch.stack(torch.broadcast_tensors(a[:, None], b[None]), dim=-2)
    kernel = prior.log_prob(pairs) - prior.log_prob(a[:, None])[:, None]
    assert_close(prior.log_kernel(a, b), kernel)
    assert_close(prior.pmi(a, b), kernel - prior.log_prob(b[:, None]))


def test_kernel_under_a_flat_content_is_the_joint():
    a, b = torch.randn(4, 2), torch.randn(5, 2)
    prior = Gaussian(2, (0.4, 0.7), math.inf)
    pairs = torch.stack(torch.broadcast_tensors(a.unsqueeze(1), b), -2)
    assert_close(prior.log_kernel(a, b), prior.log_prob(pairs))


def test_kernel_of_a_prior_without_one_comes_from_its_joint_density():
    prior, a, b = Gaussian(3, 0.6, 1.7), torch.randn(4, 3), torch.randn(5, 3)
    assert_close(Prior.log_kernel(prior, a, b), prior.log_kernel(a, b))
    with pytest.raises(TypeError, match="log_kernel"):
        Prior.log_kernel(prior, a, b, plug_in=True)


def test_mutual_information_is_the_mean_pmi():
    prior, n = Gaussian(3, 0.6, 1.7), 40_000
    z = prior(2).rsample((n,))
    pmi = prior.pmi(z[:, :1], z[:, 1:]).flatten()
    assert abs(pmi.mean() - prior.mutual_information()) < 5 * pmi.std() / math.sqrt(n)


def test_independent_views_tell_nothing_of_one_another():
    assert Independent(2).mutual_information() == 0
    assert (Independent(2).pmi(torch.randn(3, 2), torch.randn(4, 2)) == 0).all()


def test_independent_views_are_standard_normal():
    z, prior = torch.randn(5, 3, 4), Independent(4)
    assert_close(prior.log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum((1, 2)))
    assert_close(prior.pmi(z, z), torch.zeros(5, 3, 3))
    assert_close(prior.log_kernel(z, z)[:, 1], prior.log_prob(z.unsqueeze(-2)))


@pytest.mark.parametrize(
    "family, scales",
    [
        (Gaussian, (0.4,)),
        (Gaussian, (0.4, math.inf)),
        (Independent, ()),
        (Spherical, ()),
    ],
)
def test_log_prob_is_unchanged_by_swapping_views_and_rotating(family, scales):
    prior, rotation = family(3, *scales), torch.linalg.qr(torch.randn(3, 3)).Q
    z = prior.on_support(torch.randn(5, 4, 3))
    value = prior.log_prob(z)
    assert_close(prior.log_prob(z.flip(1)), value)
    assert_close(prior.log_prob(z @ rotation), value)


@pytest.mark.parametrize("y_scale", [1.2, math.inf])
def test_gradients_are_exact(y_scale):
    z = torch.randn(2, 3, 2, requires_grad=True)
    prior = Gaussian(2, 0.4, y_scale)
    assert torch.autograd.gradcheck(prior.log_prob, z)
    assert torch.autograd.gradgradcheck(prior.log_prob, z)


def test_learned_scale_starts_where_it_is_told_and_has_the_right_gradient():
    prior, z = Gaussian(2, ps.learned(0.4)), torch.randn(6, 2, 2)
    assert_close(prior.scale(), torch.tensor(0.4))
    assert [name for name, _ in prior.named_parameters()] == ["scale.log"]
    (slope,) = torch.autograd.grad(prior.log_prob(z).sum(), prior.scale.log)
    step = 1e-6
    up, down = (Gaussian(2, 0.4 * math.exp(e)) for e in (step, -step))
    plain = (up.log_prob(z).sum() - down.log_prob(z).sum()) / (2 * step)
    assert_close(slope, plain, rtol=1e-7, atol=1e-7)


def test_drawn_hyper_parameters_become_the_batch_shape():
    prior = Gaussian(2, ps.learned(0.4))
    scales = torch.tensor([[0.1], [0.5], [2.0]])
    z = torch.randn(5, 3, 2)
    many = prior(3, scale=scales)
    assert many.batch_shape == (3, 1) and many.event_shape == (3, 2)
    each = torch.stack([Gaussian(2, float(s)).log_prob(z) for s in scales])
    assert_close(many.log_prob(z), each)


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("dim, concentration", [(2, 3.0), (3, 0.2), (5, 4.0)])
def test_spherical_is_the_mean_over_directions(dim, concentration, views):
    n, prior = 200_000, Spherical(dim, concentration)
    z = prior.on_support(torch.randn(views, dim) + 1.5)
    y = prior.on_support(torch.randn(n, dim))
    each = concentration * (z @ y.T) + ps.special.log_vmf_normaliser(
        dim, torch.tensor(concentration)
    )
    density = each.sum(0).exp()
    error = 5 * density.std() / math.sqrt(n)
    assert abs(density.mean() - prior.log_prob(z).exp()) < error + 1e-12


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("dim", [2, 3, 10, 64, 512, 4_096])
@pytest.mark.parametrize("exponent", range(-3, 9))
def test_spherical_in_float32_is_right_for_nearly_equal_views(exponent, dim, views):
    concentration = 10.0**exponent
    prior, spread = Spherical(dim, concentration), max(1.0, concentration) ** -0.5
    centre = prior.on_support(torch.randn(50, 1, dim))
    z = prior.on_support(centre + spread * torch.randn(50, views, dim)).float()
    exact, single = prior.log_prob(z.double()), prior.float().log_prob(z)
    # 1e-4 nats; thousands of nats have no such digits: a few units in the last place.
    least = 8 * torch.finfo(torch.float32).eps * exact.abs()
    assert ((single - exact).abs() <= least.clamp(min=1e-4)).all()


@pytest.mark.parametrize("dim, views", [(2, 2), (3, 2), (5, 4)])
def test_spherical_tends_to_the_gaussian_of_its_tangent_at_first_order(dim, views):
    """A flat content in the plane, of density 1 over the area of the sphere."""
    plane, gaps = torch.randn(views, dim - 1), []
    for concentration in (1e4, 1e5):
        step = plane / math.sqrt(concentration)
        angle = step.norm(dim=-1, keepdim=True)
        z = torch.cat([angle.cos(), angle.sin() / angle * step], -1)
        flat = Gaussian(None, concentration**-0.5, math.inf).log_prob(step)
        density = Spherical(dim, concentration).log_prob(z)
        gaps.append(density - flat + ps.special.log_area(dim))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)  # O(1 / κ)


def test_spherical_has_a_finite_gradient_where_the_views_cancel():
    z = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    Spherical(3, 5.0).log_prob(z).backward()
    assert z.grad.isfinite().all()


def test_spherical_posterior_of_the_direction_satisfies_bayes():
    prior = Spherical(4, 6.0)
    z, y = prior.on_support(torch.randn(3, 4)), prior.on_support(torch.randn(5, 4))
    views = ps.distributions.VonMisesFisher(y.unsqueeze(1), torch.tensor(6.0))
    joint = views.log_prob(z).sum(-1) - ps.special.log_area(4)
    assert_close(prior.posterior_y(z).log_prob(y) + prior.log_prob(z), joint)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "whole number of at least 1"),
        ((2, -1.0), "expected scale to be a positive"),
        ((2, float("nan")), "expected scale to be a positive"),
        ((2, 1.0, 0.0), "expected y_scale to be a positive"),
        ((2, ps.learned(1.0), math.inf), "y_scale"),
        ((2, ps.learned(1.0), ps.learned(1.0)), "at most one free scale"),
        ((2, "wide"), "ps.learned"),
        ((2, dist.LogNormal(0.0, 1.0), ps.learned(1.0)), "at most one free scale"),
        ((2, dist.LogNormal(0.0, 1.0), math.inf), "y_scale"),
    ],
)
def test_bad_hyper_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(*arguments)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda prior: prior(2).sample(),
        lambda prior: prior(2).entropy(),
        lambda prior: prior(1),
        lambda prior: prior.pmi(torch.zeros(1, 2), torch.zeros(1, 2)),
        lambda prior: prior.mutual_information(),
    ],
)
def test_flat_content_is_refused_where_it_cannot_serve(misuse):
    with pytest.raises(ValueError, match="y_scale"):
        misuse(Gaussian(2, 1.0, math.inf))


def test_z_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="expected z with dim 3"):
        Gaussian(3).log_prob(torch.zeros(4, 2, 5))
    with pytest.raises(ValueError, match="known dimension"):
        Gaussian(None)(2)
