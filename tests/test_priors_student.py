"""The Student-t prior: closed forms against quadrature over its precision."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from pyro.distributions import Gamma
from torch import Tensor
from torch.testing import assert_close

import probssl as ps
from probssl.priors import TSNE, Gaussian, Prior, StudentT

pytestmark = pytest.mark.usefixtures("float64")
SCALE, Y_SCALE, DOF = 0.6, 1.7, 3.5
Y_SCALES = pytest.mark.parametrize("y_scale", [Y_SCALE, math.inf])
exact = partial(assert_close, rtol=1e-11, atol=1e-11)


def student(dim: int | None = 2, y_scale: float = Y_SCALE) -> StudentT:
    return StudentT(dim, SCALE, DOF, y_scale)


def averaged(*log_normals: tuple[Tensor, float]) -> Tensor:
    """The log of products of normals, averaged over a precision from its Gamma.

    Each factor is a sum of squares over its variance, and the number of its dimensions
    times log 2π variance; the trapezoidal rule in log g is exact to rounding.
    """
    log_g = torch.linspace(-60.0, 12.0, 4_001)
    half = torch.tensor(DOF / 2)
    total = Gamma(half, half).log_prob(log_g.exp()) + log_g
    for square, variance, count in log_normals:
        constant = count * (math.log(2 * math.pi * variance) - log_g)
        power = square.unsqueeze(-1) * log_g.exp() / variance
        total = total - 0.5 * (power + constant)
    return total.logsumexp(-1) + (log_g[1] - log_g[0]).log()


def content(y: Tensor, y_scale: float) -> list[tuple[Tensor, float, int]]:
    """p(y | g), of which nothing is left where it is flat."""
    square = y.square().sum(-1)
    return [] if y_scale == math.inf else [(square, y_scale**2, y.shape[-1])]


def around(z: Tensor, y: Tensor) -> tuple[Tensor, float, int]:
    """The product of p(z_v | y, g) over the views."""
    square = (z - y.unsqueeze(-2)).square().sum((-2, -1))
    return square, SCALE**2, z.shape[-2] * z.shape[-1]


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_of_an_item_are_one_dense_multivariate_t(views, dim):
    z = torch.randn(5, views, dim)
    share = SCALE**2 * torch.eye(views) + Y_SCALE**2
    shape = torch.kron(share, torch.eye(dim)).numpy()
    dense = scipy.stats.multivariate_t(shape=shape, df=DOF)
    plain = torch.from_numpy(np.atleast_1d(dense.logpdf(z.flatten(1).numpy())))
    exact(student(dim).log_prob(z), plain)


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("views", [2, 5])
def test_flat_prior_equals_the_printed_formula(views, dim):
    z, s, m = torch.randn(6, views, dim), SCALE**2, (views - 1) * dim
    q = (z - z.mean(1, keepdim=True)).square().sum((1, 2)) / s
    plain = math.lgamma((DOF + m) / 2) - math.lgamma(DOF / 2)
    plain -= m / 2 * math.log(DOF * math.pi * s) + dim / 2 * math.log(views)
    plain = plain - (DOF + m) / 2 * (1 + q / DOF).log()
    exact(student(dim, math.inf).log_prob(z), plain)


@Y_SCALES
def test_density_is_that_of_normals_averaged_over_their_precision(y_scale):
    z, views, dim = torch.randn(5, 3, 2), 3, 2
    mean = z.mean(1)
    within = (z - mean.unsqueeze(1)).square().sum((1, 2))
    between = [(mean.square().sum(1), y_scale**2 + SCALE**2 / views, dim)]
    if y_scale == math.inf:
        between = []
    plain = averaged((within, SCALE**2, (views - 1) * dim), *between)
    plain = plain - dim / 2 * math.log(views)
    exact(student(dim, y_scale).log_prob(z), plain)


@Y_SCALES
def test_posterior_of_the_content_satisfies_bayes(y_scale):
    z, y = torch.randn(6, 3, 2), torch.randn(6, 2)
    prior = student(2, y_scale)
    joint = averaged(*content(y, y_scale), around(z, y))
    exact(prior.posterior_y(z).log_prob(y) + prior.log_prob(z), joint)


@Y_SCALES
def test_plugged_in_kernel_is_the_density_of_a_view_given_its_content(y_scale):
    y, z = torch.randn(4, 2), torch.randn(4, 2)
    kernel = student(2, y_scale).log_kernel(y, z, plug_in=True).diagonal()
    both = averaged(*content(y, y_scale), around(z.unsqueeze(-2), y))
    exact(kernel, both - averaged(*content(y, y_scale)))


@Y_SCALES
def test_student_tends_to_the_gaussian_at_first_order(y_scale):
    a, b, z = torch.randn(4, 3), torch.randn(5, 3), torch.randn(7, 3, 3)
    present = torch.rand(7, 3) < 0.8

    def values(prior: Prior) -> Tensor:
        y, kernel = prior.posterior_y(z), prior.log_kernel
        parts = [prior.log_prob(z), prior.log_prob(z, present), y.log_prob(z[:, 0])]
        parts += [kernel(a, b).flatten(), kernel(a, b, plug_in=True).flatten()]
        if prior.proper:
            parts += [prior(3).entropy().view(1), prior.mutual_information().view(1)]
        return torch.cat(parts)

    limit = values(Gaussian(3, SCALE, y_scale))
    gap = [values(StudentT(3, SCALE, v, y_scale)) - limit for v in (1e5, 1e6)]
    # A gap whose first order happens to vanish would leave the ratio to the second.
    kept = gap[0].abs() > 1e-6
    ratio = (gap[0] / gap[1])[kept]
    assert kept.sum() > 40
    assert_close(ratio, torch.full_like(ratio, 10.0), rtol=1e-2, atol=0)


def test_moments_exist_for_enough_degrees_of_freedom():
    heavy = student(2)(2, dof=torch.tensor([0.9, 1.5, 3.0]))
    assert heavy.mean[:, 0, 0].isnan().tolist() == [True, False, False]
    assert heavy.variance[1, 0, 0].isinf() and heavy.variance[0, 0, 0].isnan()


def test_tsne_in_one_dimension_is_student():
    z, a, b = torch.randn(4, 3, 1), torch.randn(5, 1), torch.randn(6, 1)
    tsne, plain = TSNE(1, SCALE, DOF), student(1, math.inf)
    exact(tsne.log_prob(z), plain.log_prob(z))
    exact(tsne.log_kernel(a, b), plain.log_kernel(a, b))
    y = torch.randn(4, 1)
    exact(tsne.posterior_y(z).log_prob(y), plain.posterior_y(z).log_prob(y))


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("plug_in", [False, True])
def test_tsne_kernel_integrates_to_one_below_dof_plus_one(dim, plug_in):
    # A radius of r = e^u; at dim 5 the tail falls as r^-(1/2) only, hence the range.
    prior, log_r = TSNE(None, SCALE, 4.5), torch.linspace(-40.0, 80.0, 40_001)
    assert prior.normalised(dim)
    b = torch.zeros(40_001, 1, dim)  # a batch of pairs: each has its own origin
    b[..., 0] = log_r.exp().unsqueeze(-1)
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    log_kernel = prior.log_kernel(torch.zeros_like(b), b, plug_in).flatten()
    density = (log_kernel + dim * log_r + log_area).exp()
    assert_close(torch.trapezoid(density, log_r), torch.tensor(1.0))


@pytest.mark.parametrize("dim, dof", [(2, 5.0), (16, 5.0), (6, 5.0)])
def test_tsne_kernel_is_that_of_t_simclr(dim, dof):
    temperature, z = 8.0, torch.randn(10, dim)
    plain = 1 + torch.cdist(z, z).square() / (temperature * dof)
    plain = -(dof + 1) / 2 * plain.log()
    kernel = TSNE(None, math.sqrt(temperature), dof).log_kernel(z, z, plug_in=True)
    assert_close(kernel - kernel[0, 0], plain)
    if dim >= dof + 1:
        assert_close(kernel, plain)
    else:  # y integrated out: twice the variance between two views
        both = TSNE(dim, math.sqrt(temperature / 2), dof).log_kernel(z, z)
        assert_close(both - both[0, 0], plain)


def test_tsne_refuses_a_density_where_there_is_none():
    prior, z = TSNE(6), torch.zeros(4, 2, 6)
    assert not prior.normalised(6) and prior.gauge(2) == 1
    for misuse in (
        lambda: prior(2),
        lambda: prior.log_prob(z),
        lambda: prior.posterior_y(z),
        lambda: prior.log_kernel(z[0], z[1]),
    ):
        with pytest.raises(ValueError, match="dim < dof"):
            misuse()
    with pytest.raises(TypeError, match="dof as a number"):
        TSNE(2, dof=ps.learned(3.0))


@pytest.mark.parametrize("dof", [0.5, 1.0, 5.0])
def test_draws_have_a_finite_density_in_float32(dof):
    prior = StudentT(2, 0.3, dof).float()
    z = prior(2).sample((20_000,))
    assert z.dtype == torch.float32
    assert bool(prior.log_prob(z).isfinite().all())


@pytest.mark.parametrize("dof", [0.05, 0.49, ps.learned(0.05)])
def test_so_few_degrees_of_freedom_that_draws_overflow_are_refused(dof):
    with pytest.raises(
        ValueError, match=r"dof of at least 0.5, got 0\.\d+; with fewer"
    ):
        StudentT(2, 0.3, dof)
    StudentT(
        None, 0.3, dof.value if isinstance(dof, ps.hyper.Learned) else dof, math.inf
    )
