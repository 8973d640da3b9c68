"""The gradient of an expectation, along the samples and by the score."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor

from .laws import BARS, Estimate, mean_of

__all__ = ["pathwise_is_score"]

GROUPS = 40  # of draws, from which the error bars come
DIRECTIONS = 4  # in each parameter


def pathwise_is_score(
    q: Callable[[], TorchDistribution],
    named: Sequence[tuple[str, Tensor]],
    draws: int,
) -> Iterator[str]:
    r"""The gradient through samples is that by the density.

    .. math:: E[\nabla f(z(\epsilon))] = E[(f(z) - c) \, \nabla \log q(z)]

    Arguments:
        q: What makes the distribution, with a gradient in what is named.
        named: Names and parameters.
        draws: The number of draws of either side.
    """
    parameters = [part for _, part in named]
    directions = [torch.randn(DIRECTIONS, *part.shape) for part in parameters]
    f = _wave(q().sample((200,)).detach())
    paths, scores = [], []
    for _ in range(GROUPS):
        n = max(draws // GROUPS, 10)
        paths.append(_along(f(q().rsample((n,))), parameters, directions))
        views = q()
        z = views.sample((n,)).detach()
        weighted = f(z) * views.log_prob(z)
        scores.append(_along(weighted, parameters, directions))
    path, score = mean_of(torch.stack(paths)), mean_of(torch.stack(scores))
    error = torch.hypot(path.error, score.error)
    away = Estimate(path.value, error).misses(score.value)
    for i, (name, _) in enumerate(named):
        k = int(away[i].argmax())
        if float(away[i, k]) > BARS:
            yield (
                f"expected the slope {float(score.value[i, k]):.3g} of E[f(z)] in "
                f"{name}, by the score, got {float(path.value[i, k]):.3g} through "
                f"rsample, ± {float(error[i, k]):.2g}; look for samples that are "
                "detached, or declare has_rsample = False"
            )


def _wave(pilot: Float[Tensor, "n item view dim"]) -> Callable[[Tensor], Tensor]:
    """A smooth function of each item that feels its place and its width."""
    loc, scale = pilot.mean(0), pilot.std(0).mean().clamp(min=1e-12)
    weight = torch.randn(pilot.shape[1:]).sign() / math.sqrt(pilot[0, 0].numel())

    def f(z: Tensor) -> Tensor:
        return torch.sin((weight * (z - loc) / scale).sum((-2, -1)) + math.pi / 4)

    centre = f(pilot).mean(0)  # which the score does not feel, but its variance does
    return lambda z: f(z) - centre


def _along(
    value: Float[Tensor, "n item"],
    parameters: Sequence[Tensor],
    directions: Sequence[Tensor],
) -> Float[Tensor, "parameter direction"]:
    """Slopes of the mean of a value over draws, each along its directions."""
    if not value.requires_grad:
        return torch.zeros(len(parameters), DIRECTIONS)
    slopes = torch.autograd.grad(
        value.mean(0).sum(), parameters, allow_unused=True, materialize_grads=True
    )
    pairs = zip(slopes, directions, strict=True)
    return torch.stack([(slope * d).flatten(1).sum(1) for slope, d in pairs])
