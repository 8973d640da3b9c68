"""Kernel density entropies against known ones, and their sums in blocks."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_mean, assert_same, mean_and_bar
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import KernelDensity
from probssl.entropies._log_sums import all_others, log_sums, log_sums_of_views
from probssl.priors import Gaussian, Prior, Spherical, StudentT
from probssl.special import log_area, log_vmf_normaliser

pytestmark = pytest.mark.usefixtures("float64")
VARIANTS = {
    "all others": KernelDensity(),
    "same view": KernelDensity(other_views=False),
    "other views": KernelDensity(same_view=False),
    "other items": KernelDensity(same_item=False),
}
ROOT = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)


def cross_entropy(covariance: Tensor, scale: float) -> Tensor:
    """Of N(0, covariance) under the same, smoothed by N(0, scale²)."""
    smooth = covariance + scale**2 * torch.eye(len(covariance))
    trace = torch.linalg.solve(smooth, covariance).trace()
    return 0.5 * ((2 * math.pi * smooth).logdet() + trace)


@pytest.mark.parametrize("entropy", VARIANTS.values(), ids=VARIANTS)
def test_estimate_is_the_cross_entropy_under_the_smoothed_gaussian(entropy):
    """For items and views that have nothing in common."""
    covariance, prior = ROOT @ ROOT.T, Gaussian(2, 0.7)
    draws = [torch.randn(500, 2, 2) @ ROOT.T for _ in range(12)]
    found = [entropy(z, prior) for z in draws]
    assert_mean(found, cross_entropy(covariance, 0.7))


@pytest.mark.parametrize("entropy", VARIANTS.values(), ids=VARIANTS)
def test_estimate_is_too_high_where_views_are_independent(entropy):
    law = MultivariateNormal(torch.zeros(2), ROOT @ ROOT.T)
    draws = [law.sample((200, 2)) for _ in range(20)]
    # Against the entropy of the sample at hand, which has less noise.
    gaps = [entropy(z, Gaussian(2, 0.7)) + law.log_prob(z).mean() for z in draws]
    gap, bar = mean_and_bar(gaps)
    assert gap > bar


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_estimate_for_uniform_directions_is_too_high_by_the_noise_of_the_average(dim):
    kappa, n = 4.0, 200
    prior = Spherical(dim, kappa)
    draws = [normalize(torch.randn(n, 1, dim), dim=-1) for _ in range(40)]
    gaps = [KernelDensity()(z, prior) - log_area(dim) for z in draws]
    log_c = log_vmf_normaliser(dim, torch.tensor([kappa, 2 * kappa]))
    variance = (2 * log_c[0] - log_c[1] + log_area(dim)).exp() - 1
    assert mean_and_bar(gaps)[0] > 0
    assert_mean(gaps, variance / (2 * (n - 1)))


def test_estimate_for_von_mises_fisher_is_its_entropy_and_a_divergence():
    law = ps.distributions.VonMisesFisher(torch.tensor([0.0, 0.6, 0.8]), 5.0)
    for kappa, divergence in ((5.0, True), (60.0, False)):
        draws = [law.sample((400, 1)) for _ in range(15)]
        prior = Spherical(3, kappa)
        gaps = [KernelDensity()(z, prior) + law.log_prob(z).mean() for z in draws]
        gap, bar = mean_and_bar(gaps)
        assert gap > bar
        assert (gap > 0.1) == divergence


def test_estimate_for_a_mixture_is_that_of_a_part_and_of_which():
    entropy, prior, gaps = KernelDensity(other_views=False), Gaussian(2, 0.5), []
    exact = cross_entropy(0.25 * torch.eye(2), 0.5) + math.log(2)
    for _ in range(12):
        sign = torch.randint(0, 2, (500, 2, 1)) * 2.0 - 1
        gaps.append(entropy(5 * sign + 0.5 * torch.randn(500, 2, 2), prior) - exact)
    assert_mean(gaps, 0.0)


def test_estimate_for_equal_views_is_at_most_that_of_their_own_kernel():
    z = torch.randn(20, 1, 3).expand(20, 2, 3)
    for scale in (1.0, 1e-2):
        most = math.log(39) + 3 * math.log(scale) + 1.5 * math.log(2 * math.pi)
        value = KernelDensity()(z, Gaussian(3, scale))
        assert value < most + 1e-9  # the rounding of squared distances
    assert_close(value, torch.tensor(most))  # the others are out of sight


def test_estimate_of_views_together_is_the_cross_entropy_of_their_joint():
    scale = 0.6
    covariance = ROOT @ ROOT.T
    draws = [(torch.randn(600, 2) @ ROOT.T).unsqueeze(-1) for _ in range(15)]
    prior, entropy = Gaussian(1, scale), KernelDensity(other_views=False)
    joints = [entropy.joint(z, prior) for z in draws]
    assert_mean(joints, cross_entropy(covariance, scale))
    shared = [2 * entropy(z, prior) - j for z, j in zip(draws, joints, strict=True)]
    plain = 2 * cross_entropy(covariance[:1, :1], scale)
    assert_mean(shared, plain - cross_entropy(covariance, scale))
    # Less than the mutual information of the views: the kernel blurs it.
    assert sum(mean_and_bar(shared)) < -0.5 * covariance.logdet()


PRIORS: dict[str, Callable[[], tuple[Prior, dict[str, Tensor]]]] = {
    "fixed": lambda: (Gaussian(3, 0.7), {}),
    "learned": lambda: (Gaussian(3, ps.learned(0.7)), {}),
    "learned for each dimension": lambda: (
        Gaussian(3, ps.learned((0.5, 0.7, 1.0))),
        {},
    ),
    "drawn": lambda: (
        Gaussian(3, dist.LogNormal(0.0, 1.0)),
        {"scale": torch.tensor(0.6, dtype=torch.float64)},
    ),
    "learned on the sphere": lambda: (Spherical(3, ps.learned(5.0)), {}),
    "two learned": lambda: (StudentT(3, ps.learned(0.7), ps.learned(4.0)), {}),
    "one learned, one drawn": lambda: (
        StudentT(3, ps.learned(0.7), dist.LogNormal(1.0, 1.0)),
        {"dof": torch.tensor(4.0, dtype=torch.float64)},
    ),
}


def others(columns: Tensor) -> Tensor:
    """All centres but the point itself and its successor."""
    number = torch.arange(9)[:, None]
    return (number != columns) & (number != (columns + 1) % 7)


def sums(
    prior: Prior, drawn: dict[str, Tensor], most: int, *z: Tensor
) -> tuple[Tensor, ...]:
    """The sums, and the gradients of a function of them in all they depend on."""
    leaves = [x.detach().requires_grad_() for x in z]
    values = {k: v.detach().requires_grad_() for k, v in drawn.items()}
    with prior.at(**values):
        found = log_sums(prior, *leaves, others, most)
    free = [p for p in prior.parameters() if p.requires_grad]
    leaves += [*values.values(), *free]
    gradients = torch.autograd.grad(
        found.square().sum(), leaves, allow_unused=True, materialize_grads=True
    )
    return found, *gradients


@pytest.mark.parametrize("name", ["fixed", "learned"])
def test_sums_of_views_in_blocks_are_those_at_once_for_points_that_are_centres(name):
    prior, _ = PRIORS[name]()
    z = torch.randn(7, 3, 3, requires_grad=True)
    dense, blocks = (
        log_sums_of_views(prior, z, all_others(z), most) for most in (49, 15)
    )
    kernels = [prior.log_kernel(v, v, plug_in=True) for v in z.unbind(1)]
    plain = sum(kernels).masked_fill(torch.eye(7) > 0, -math.inf).logsumexp(0)
    leaves = [z, *prior.parameters()]
    for found in (dense, blocks):
        assert_close(found, plain, rtol=1e-12, atol=1e-12)
        weighted = (found.square().sum(), plain.square().sum())
        assert_same(*weighted, leaves, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("most", [1, 20, 45])
@pytest.mark.parametrize("name", PRIORS)
def test_sums_in_blocks_are_those_at_once_in_value_and_gradient(name, most):
    prior, drawn = PRIORS[name]()
    z = torch.randn(9, 3), torch.randn(7, 3)
    dense = sums(prior, drawn, 63, *z)
    if drawn or any(p.requires_grad for p in prior.parameters()):
        assert len(dense) > 3 and dense[3].any()
    for blocks, plain in zip(sums(prior, drawn, most, *z), dense, strict=True):
        assert_close(blocks, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "most"), [("fixed", 63), ("drawn", 20), ("learned", 20)]
)
def test_sums_and_gradients_are_those_of_the_trace(name, most):
    prior, drawn = PRIORS[name]()

    def step(a: Tensor, b: Tensor, drawn: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return sums(prior, drawn, most, a, b)

    z = torch.randn(9, 3), torch.randn(7, 3)
    trace = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)
    graph = trace(torch.zeros(9, 3), torch.zeros(7, 3), drawn)
    pairs = zip(graph(*z, drawn), step(*z, drawn), strict=True)
    for traced, eager in pairs:
        assert_close(traced, eager)
