"""The collision entropy against closed forms, and queues of representations."""

import math

import pytest
import torch
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import Queue, QueuedKernelDensity
from probssl.entropies._log_sums import log_sums
from probssl.entropies.collision import Collision
from probssl.entropies.kernel import KernelDensity

pytestmark = pytest.mark.usefixtures("float64")


def renyi(variance: float, dim: int) -> float:
    """H_2 of N(0, variance · I)."""
    return dim / 2 * math.log(4 * math.pi * variance)


@pytest.mark.parametrize("dim", [1, 3])
def test_collision_is_the_cross_entropy_with_the_smoothed_density(dim):
    """−log ∫ p_h p of a Gaussian: that of H_2 with the variance s² + h²/2."""
    prior, scale = ps.priors.Gaussian(dim, 0.5), 1.3
    estimates = torch.stack(
        [Collision()(scale * torch.randn(300, 1, dim), prior) for _ in range(60)]
    )
    # What is unbiased is the mean kernel, not its logarithm.
    sample = (-estimates).exp()
    exact = math.exp(-renyi(scale**2 + 0.5**2 / 2, dim))
    assert abs(sample.mean() - exact) < 5 * sample.std() / math.sqrt(60)
    assert sample.std() / math.sqrt(60) < 0.02 * exact
    # And that is above H_2, which is below H.
    assert -math.log(exact) > renyi(scale**2, dim)
    normal = dim / 2 * math.log(2 * math.pi * math.e * scale**2)
    assert renyi(scale**2, dim) < normal


def test_collision_estimate_is_too_high_in_the_mean_by_the_convexity_of_the_log():
    prior = ps.priors.Gaussian(1, 0.5)
    sample = torch.stack(
        [Collision()(torch.randn(4, 1, 1), prior) for _ in range(3_000)]
    )
    error = sample.std() / math.sqrt(len(sample))
    assert sample.mean() - renyi(1 + 0.5**2 / 2, 1) > 5 * error


def test_views_that_agree_make_the_collision_estimate_too_low():
    prior = ps.priors.Gaussian(3, 0.1)
    z = torch.randn(100, 1, 3)
    once, twice = Collision()(z, prior), Collision()(z.expand(-1, 2, -1), prior)
    peak = -1.5 * math.log(2 * math.pi * 0.01)
    # Of 199 others 198 are as before, and one is the view itself.
    expected = -((198 * (-once).exp() + math.exp(peak)) / 199).log()
    assert_close(twice, expected)
    assert twice < once - 1


@pytest.mark.parametrize("pushes", [[2, 2, 2], [5, 5], [3, 12, 1], [7]])
def test_queue_holds_the_last_that_were_pushed(pushes):
    queue, past = Queue(7, 3), torch.zeros(0, 3)
    for n in pushes:
        rows = torch.randn(n, 3)
        queue.push(rows)
        past = torch.cat([past, rows])[-7:]
        assert queue.filled == len(past)
        held = queue.memory[: queue.filled]
        assert_close(held.sort(0).values, past.sort(0).values)
    queue.eval().push(torch.randn(4, 3))
    assert_close(queue.memory[: queue.filled].sort(0).values, past.sort(0).values)


def test_sums_over_an_empty_queue_are_log_zero_without_a_gradient(monkeypatch):
    prior, points = ps.priors.Gaussian(3, 0.7), torch.randn(4, 3, requires_grad=True)
    queue = Queue(7, 3)
    for most in (2**21, 8):  # all kernels at once, and in blocks
        monkeypatch.setattr(log_sums, "__defaults__", (most,))
        sums = queue.log_sums(prior, points)
        assert (sums == -math.inf).all()
        value = torch.logaddexp(sums, points.sum(-1)).sum()
        (gradient,) = torch.autograd.grad(value, points)
        assert_close(gradient, torch.ones(4, 3))


def test_sums_over_the_queue_count_what_was_filled_before_the_next_push(monkeypatch):
    prior, points = ps.priors.Gaussian(3, 0.7), torch.randn(4, 3, requires_grad=True)
    rows = torch.randn(5, 3)
    plain = prior.log_kernel(rows, points, plug_in=True).logsumexp(0)
    (expected,) = torch.autograd.grad(plain.sum(), points)
    for most in (2**21, 8):
        monkeypatch.setattr(log_sums, "__defaults__", (most,))
        queue = Queue(7, 3)
        queue.push(rows)
        sums = queue.log_sums(prior, points)
        queue.push(torch.randn(6, 3))
        assert_close(sums, plain)
        assert_close(torch.autograd.grad(sums.sum(), points)[0], expected)


def test_density_over_a_queue_is_that_over_one_batch_of_all_its_members():
    """Of independent items, whose neighbours are the batch and those before it."""
    prior, entropy = ps.priors.Gaussian(3, 0.7), QueuedKernelDensity(20, 3)
    first, second = torch.randn(4, 1, 3), torch.randn(5, 1, 3)
    assert_close(entropy(first, prior), KernelDensity()(first, prior))
    flat, total = torch.cat([first, second]).flatten(0, 1), 0.0
    for j in range(4, 9):
        others = torch.cat([flat[:j], flat[j + 1 :]])
        kernel = prior.log_kernel(others, flat[j : j + 1], plug_in=True)
        total = total - (kernel.logsumexp(0).squeeze() - math.log(8)) / 5
    assert_close(entropy(second, prior), total)
