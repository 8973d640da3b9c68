"""Assertions on samples and gradients, and tables of refused arguments."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.testing import assert_close

__all__ = [
    "asymmetry",
    "assert_mean",
    "assert_same",
    "mean_and_bar",
    "minimise",
    "refusals",
    "seeded",
    "traces",
]
__all__ += ["value_and_grad"]

BARS = 5.0  # standard errors


def mean_and_bar(sample: Any) -> tuple[Any, Any]:
    """The mean over the first axis, and five of its standard errors.

    Takes a tensor, an array, or a list of numbers or of tensors.
    """
    if isinstance(sample, list):
        sample = torch.stack([torch.as_tensor(each) for each in sample]).detach()
    spread = sample.std(0, ddof=1) if isinstance(sample, np.ndarray) else sample.std(0)
    return sample.mean(0), BARS * spread / len(sample) ** 0.5


def assert_mean(sample: Any, expected: Any, rounding: float = 1e-12) -> None:
    """The mean over the first axis is the expected one, to five standard errors.

    Arguments:
        rounding: Allowed in addition, relative to the largest entry of the sample.
    """
    mean, bar = mean_and_bar(sample)
    parts = sample if isinstance(sample, list) else [sample]
    largest = max(float(torch.as_tensor(p).detach().abs().max()) for p in parts)
    away = abs(mean - expected)
    assert (away <= bar + rounding * (1 + largest)).all(), (
        f"expected means within {bar}, got them {away} away"
    )


def seeded(
    call: Callable[..., Any], *arguments: Any, seed: int = 1, **options: Any
) -> Any:
    """Return ``call(*arguments)`` at a fixed state of the random numbers."""
    torch.manual_seed(seed)
    return call(*arguments, **options)


def traces(joint: Any, batch: Any) -> tuple[Trace, Trace]:
    """Pyro's traces of guide and model, at what the guide drew, with log-densities."""
    guide = poutine.trace(joint.guide).get_trace(batch)
    model = poutine.trace(poutine.replay(joint.model, trace=guide)).get_trace(batch)
    guide.compute_log_prob()
    model.compute_log_prob()
    return guide, model


def value_and_grad(value: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A scalar without its graph, and its gradient in z."""
    return value.detach(), torch.autograd.grad(value, z)[0]


def assert_same(
    ours: Tensor,
    plain: Tensor,
    z: Tensor | Iterable[Tensor],
    rtol: float = 1e-10,
    atol: float = 1e-10,
) -> None:
    """Two scalar functions of z, or of several tensors, and their gradients agree."""
    leaves = [z] if isinstance(z, Tensor) else list(z)
    grads = [torch.autograd.grad(v, leaves, retain_graph=True) for v in (ours, plain)]
    for left, right in zip((ours, *grads[0]), (plain, *grads[1]), strict=True):
        assert_close(left, right, rtol=rtol, atol=atol)


def asymmetry(
    update: Callable[[Tensor], Tensor], start: Tensor, step: float = 1e-5
) -> float:
    """How far the Jacobian of an update is from symmetric, relative to its norm.

    It is symmetric for the gradient of a scalar. By central differences.
    """
    columns = []
    for direction in step * torch.eye(start.numel()).view(-1, *start.shape):
        change = update(start + direction) - update(start - direction)
        columns.append(change.flatten() / (2 * step))
    jacobian = torch.stack(columns)
    return float((jacobian - jacobian.T).norm() / jacobian.norm())


def minimise(
    loss: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    steps: int,
    rate: float = 1e-2,
) -> None:
    """Minimise a loss by Adam, with a rate that decays to zero."""
    optimizer = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def refusals(
    *cases: tuple[Callable[[], object], type[Exception], str],
) -> Callable[..., None]:
    """A test that every call raises its error with a message that matches.

    Assign it to a name that starts with ``test_``::

        test_arguments_out_of_range_are_refused = refusals(
            (lambda: Gaussian(2, -1.0), ValueError, "scale as a positive"),
            (lambda: Gaussian(2, "wide"), TypeError, "scale"),
        )
    """

    @pytest.mark.parametrize(
        "call, error, message", cases, ids=[message for _, _, message in cases]
    )
    def test(call: Callable[[], object], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            call()

    return test
