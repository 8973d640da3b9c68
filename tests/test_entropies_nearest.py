"""Nearest-neighbour entropies against known ones, and the area of a cap."""

import math

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_mean, assert_same, mean_and_bar
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import nearest
from probssl.entropies.nearest import NearestNeighbour, log_ball, log_cap
from probssl.priors import Spherical
from probssl.special import log_area

pytestmark = pytest.mark.usefixtures("float64")
UNIT = 0.5 * math.log(2 * math.pi * math.e)


def errors(draw, entropy: float, repeats: int, k: int = 3, prior=None) -> list[Tensor]:
    return [NearestNeighbour(k)(draw(), prior) - entropy for _ in range(repeats)]


@pytest.mark.parametrize("dim", [2, 3, 4, 17, 64, 512])
def test_area_of_a_cap_agrees_with_40_digits(dim):
    square = torch.tensor([1e-12, 1e-4, 0.1, 1.0, 1.9, 2.0, 2.1, 3.0, 3.99, 4.0])
    with mp.workdps(40):
        half = mp.mpf(dim - 1) / 2
        shares = [mp.betainc(half, half, 0, mp.mpf(c) / 4) for c in square.tolist()]
        plain = [float(mp.log(s / mp.beta(half, half))) for s in shares]
    assert_close(
        log_cap(dim, square), torch.tensor(plain) + log_area(dim), rtol=0, atol=1e-12
    )


def test_cap_is_an_arc_on_the_circle_and_a_disc_where_it_is_small():
    angle = torch.linspace(0.1, 3.1, 7)
    arc = log_cap(2, (2 * (angle / 2).sin()).square())
    assert_close(arc, (2 * angle).log())
    on_sphere = math.pi * torch.tensor([0.3, 2.0])  # Archimedes: π times squared chord
    assert_close(log_cap(3, torch.tensor([0.3, 2.0])), on_sphere.log())
    small = torch.tensor([1e-10])
    assert_close(log_cap(9, small), log_ball(8, small))


@pytest.mark.parametrize("dim", [2, 3, 4, 30])
def test_gradients_of_the_cap_are_exact(dim):
    square = torch.tensor([1e-3, 0.5, 1.99, 2.01, 3.5], requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: log_cap(dim, c), square)
    assert torch.autograd.gradgradcheck(lambda c: log_cap(dim, c), square)


@pytest.mark.parametrize("prior", [None, Spherical(4)])
@pytest.mark.parametrize("k", [1, 4])
def test_estimate_equals_plain_loops(k, prior):
    z = torch.randn(9, 2, 4)
    z = z if prior is None else normalize(z, dim=-1)
    total = 0.0
    for view in range(2):
        for i in range(9):
            others = [(z[i, view] - z[j, view]).norm() for j in range(9) if j != i]
            radius = torch.stack(others).sort().values[k - 1]
            if prior is None:
                volume = math.pi**2 / 2 * radius**4
            else:
                angle = 2 * (radius / 2).asin()
                volume = math.pi * (2 * angle - (2 * angle).sin())
            total += volume.log() / 18
    digammas = torch.digamma(torch.tensor([9.0, k]))
    assert_close(NearestNeighbour(k)(z, prior), total + digammas[0] - digammas[1])


def koleo(z: Tensor) -> Tensor:
    """The regulariser as printed, the mean over the views."""
    total = torch.zeros(())
    for view in z.unbind(1):
        for i in range(len(view)):
            others = [(view[i] - view[j]).norm() for j in range(len(view)) if j != i]
            total = total - torch.stack(others).min().log() / z.shape[:2].numel()
    return total


@pytest.mark.parametrize("dim", [2, 5])
def test_the_nearest_neighbour_alone_is_koleo_times_the_dimension(dim):
    z = torch.randn(9, 2, dim, requires_grad=True)
    digammas = torch.digamma(torch.tensor([9.0, 1.0]))
    constant = digammas[0] - digammas[1] + log_ball(dim, torch.tensor(1.0))
    assert_same(NearestNeighbour(1)(z), constant - dim * koleo(z), z)


def test_so_it_is_on_the_sphere_of_three_dimensions():
    z = torch.randn(9, 2, 3, requires_grad=True)
    u, prior = normalize(z, dim=-1), Spherical(3)
    digammas = torch.digamma(torch.tensor([9.0, 1.0]))
    constant = digammas[0] - digammas[1] + math.log(math.pi)
    assert_same(NearestNeighbour(1)(u, prior), constant - 2 * koleo(u), z)


@pytest.mark.parametrize("dim", [2, 4, 17])
def test_on_other_spheres_it_is_that_to_second_order_in_the_distance(dim):
    centres = normalize(torch.randn(8, dim), dim=-1).repeat_interleave(2, 0)
    noise, prior, gaps = torch.randn(16, dim), Spherical(dim), []
    for size in (1e-2, 1e-3):
        u = normalize(centres + size * noise, dim=-1).unsqueeze(1)
        square = (u[::2] - u[1::2]).square().sum(-1).mean()
        digammas = torch.digamma(torch.tensor([16.0, 1.0]))
        constant = digammas[0] - digammas[1] + log_ball(dim - 1, torch.tensor(1.0))
        gap = constant - (dim - 1) * koleo(u) - NearestNeighbour(1)(u, prior)
        gaps.append(gap / square)
    order = torch.tensor((dim - 1) * (dim - 3) / (8 * (dim + 1)))
    assert_close(gaps[1], order, rtol=1e-3, atol=0)
    assert (gaps[0] - order).abs() < 0.05 * order.abs()


def test_neighbours_found_in_blocks_are_those_found_at_once(monkeypatch):
    z = torch.randn(40, 2, 3)
    prior = Spherical(3)
    estimates = [
        lambda: NearestNeighbour()(z),
        lambda: NearestNeighbour().joint(z),
        lambda: NearestNeighbour().joint(normalize(z, dim=-1), prior),
    ]
    at_once = [estimate() for estimate in estimates]
    monkeypatch.setattr(nearest, "DENSE", 300)
    for estimate, plain in zip(estimates, at_once, strict=True):
        assert_close(estimate(), plain, rtol=0, atol=0)


@pytest.mark.parametrize(("dim", "n", "k"), [(2, 4, 1), (3, 12, 5), (8, 12, 1)])
def test_estimate_is_unbiased_for_uniform_directions_even_of_few_items(dim, n, k):
    draw = lambda: normalize(torch.randn(n, 1, dim), dim=-1)  # noqa: E731
    assert_mean(errors(draw, log_area(dim), 200, k, Spherical(dim)), 0.0)


@pytest.mark.parametrize("n", [4, 12])
def test_joint_estimate_is_unbiased_for_independent_uniform_directions(n):
    entropy, prior = NearestNeighbour(2), Spherical(3)
    draws = [normalize(torch.randn(n, 2, 3), dim=-1) for _ in range(200)]
    assert_mean([entropy.joint(z, prior) for z in draws], 2 * log_area(3))


def test_estimate_is_the_entropy_of_von_mises_fisher():
    law = ps.distributions.VonMisesFisher(normalize(torch.randn(4), dim=-1), 5.0)
    draw = lambda: law.sample((700, 1))  # noqa: E731
    assert_mean(errors(draw, law.entropy(), 12, prior=Spherical(4)), 0.0)


def test_bias_is_downwards_in_few_dimensions_and_falls_with_more_items():
    law = ps.distributions.VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), 3.0)
    entropy, prior, biases = NearestNeighbour(5), Spherical(3), []
    for n, repeats in ((20, 450), (320, 100)):
        draws = law.sample((repeats, n, 1))
        # Against the entropy of the sample at hand, which has less noise.
        each = [entropy(z, prior) + law.log_prob(z).mean() for z in draws]
        biases.append(mean_and_bar(each))
    (few, few_bar), (many, many_bar) = biases
    assert few < -few_bar
    assert many - few > torch.hypot(few_bar, many_bar)


def test_bias_is_upwards_in_many_dimensions():
    gap, bar = mean_and_bar(errors(lambda: torch.randn(50, 1, 12), 12 * UNIT, 40))
    assert gap > bar


def test_estimate_is_the_entropy_of_a_correlated_gaussian_and_of_a_mixture():
    root = torch.tensor([[1.0, 0.0], [0.8, 0.5]])
    entropy = 2 * UNIT + math.log(0.5)
    draw = lambda: torch.randn(700, 1, 2) @ root.T  # noqa: E731
    assert_mean(errors(draw, entropy, 12), 0.0)

    def mixture() -> Tensor:
        sign = torch.randint(0, 2, (700, 1, 1)) * 2.0 - 1
        return 3 * sign + 0.3 * torch.randn(700, 1, 2)

    gap, bar = mean_and_bar(
        errors(mixture, 2 * UNIT + 2 * math.log(0.3) + math.log(2), 12)
    )
    assert gap.abs() < bar


def test_views_apart_minus_views_together_is_the_total_correlation():
    rho, entropy, gaps, joints = 0.8, NearestNeighbour(), [], []
    for _ in range(15):
        content = math.sqrt(rho) * torch.randn(500, 1, 1)
        z = content + math.sqrt(1 - rho) * torch.randn(500, 3, 1)
        joints.append(entropy.joint(z))
        gaps.append(3 * entropy(z) - joints[-1])
    log_det = math.log((1 - rho) ** 2 * (1 + 2 * rho))
    for values, exact in ((joints, 3 * UNIT + log_det / 2), (gaps, -log_det / 2)):
        assert_mean(values, exact)


@pytest.mark.parametrize("dim", [2, 3])
def test_opposite_directions_have_finite_gradients(dim):
    z = torch.zeros(2, 1, dim)
    z[0, 0, 0], z[1, 0, 0] = 1.0, -1.0
    z.requires_grad_()
    value = NearestNeighbour(1)(normalize(z, dim=-1), Spherical(dim))
    value.backward()
    assert_close(value, torch.tensor(log_area(dim) + 1.0))  # ψ(2) - ψ(1) = 1
    assert z.grad.isfinite().all()


def test_equal_items_are_as_far_apart_as_epsilon():
    value = NearestNeighbour(1, epsilon=1e-3)(torch.ones(5, 1, 2))
    assert_close(value, math.log(math.pi * 1e-6) + torch.tensor(25 / 12))


def test_on_spaces_of_own_priors_the_measure_is_that_of_their_densities():
    """A Dirichlet density is one in all coordinates but the last."""

    def around(y: Tensor) -> dist.Dirichlet:
        return dist.Dirichlet(y + 1)

    law = dist.Dirichlet(torch.tensor([3.0, 2.0, 4.0]))
    simplex = ps.priors.Custom(around, 3, y_prior=law)
    draw = lambda: law.sample((400, 1))  # noqa: E731
    assert_mean(errors(draw, law.entropy(), 30, prior=simplex), 0.0)
    both = lambda: law.sample((400, 2))  # noqa: E731
    joint = [NearestNeighbour().joint(both(), simplex) for _ in range(30)]
    assert abs(mean_and_bar(joint)[0] - 2 * law.entropy()) < 0.1
    z = both()
    gaussian = ps.entropies.LogDeterminant(0.0)
    assert_close(gaussian(z, simplex), gaussian(z[..., :2]))
    assert gaussian(z, simplex) > law.entropy()

    sphere = ps.priors.Custom(
        lambda y: ps.distributions.VonMisesFisher(y, torch.tensor(5.0)),
        4,
        y_prior=ps.distributions.SphericalUniform(4),
    )
    z = normalize(torch.randn(50, 2, 4), dim=-1)
    for form in (NearestNeighbour(), NearestNeighbour().joint):
        assert_close(form(z, sphere), form(z, Spherical(4)))
