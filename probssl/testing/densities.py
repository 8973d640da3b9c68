r"""Laws of a density: its integral, its samples, and gradients through its samples."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor

from .laws import BARS, Estimate, mean_of
from .proposals import LogDensity, Proposal, draw

__all__ = ["integral", "mean_is_that_of_samples", "pathwise_is_score", "samples_follow"]

LARGEST_ERROR = 0.25  # standard error relative to the mean; a larger one is undecided
MORE_DRAWS = 4  # times as many, before a fault is reported
WAVES, FREQUENCIES = 32, (0.5, 1.0, 2.0, 4.0)
GROUPS = 40  # of draws, for error bars of gradients
DIRECTIONS = 4  # of a gradient, in each parameter


def integral(
    log_density: LogDensity,
    proposals: Sequence[Proposal],
    n: int,
    what: str,
    look: str,
) -> Iterator[str]:
    r"""The density of every item integrates to one, :math:`E_r[p / r] = 1`.

    A fault is checked again with more draws: rare draws with large weights, missed the
    first time, make an error bar too short.
    """
    faults: list[str] = []
    for many in (n, MORE_DRAWS * n):
        _, log_ratio = draw(log_density, proposals, many)
        found = (_mass(log_w, what, look) for log_w in log_ratio.unbind(1))
        faults = [fault for fault in found if fault]
        if not faults:
            return
    yield from faults


def _mass(log_w: Float[Tensor, " n"], what: str, look: str) -> str | None:
    top = log_w.max().clamp(min=-700, max=700)
    ratio = mean_of((log_w - top).exp())
    log_mean, error = float(ratio.value.log() + top), float(ratio.error / ratio.value)
    mean = math.exp(min(log_mean, 700.0))
    if not math.isfinite(log_mean):
        return f"expected {what} to integrate to 1, got {mean}; {look}"
    bar = f"got {mean:.4g} ± {error * mean:.2g}"
    if abs(mean - 1) > BARS * error * mean + 1e-6:
        side = "large" if log_mean > 0 else "small"
        return (
            f"expected {what} to integrate to 1, {bar}; it is too {side} by "
            f"{abs(log_mean):.3g} nats: {look}"
        )
    if error > LARGEST_ERROR:
        return (
            f"expected an error bar below {LARGEST_ERROR} for {what}, {bar}: "
            "undecided; build it with fewer dimensions, or raise draws"
        )
    return None


def samples_follow(
    log_density: LogDensity,
    proposals: Sequence[Proposal],
    samples: Float[Tensor, "n item view dim"],
    what: str,
) -> Iterator[str]:
    """The means of bounded functions over the samples are those under the density.

    The functions are random Fourier features (cosines of several frequencies) and one
    function of the log-density; heavy tails cannot spoil their error bars. The density
    need not integrate to one. A fault is checked again, as in `integral`.
    """
    faults: list[str] = []
    log_prob = log_density(samples).detach()
    for many in (1, MORE_DRAWS):
        z, log_ratio = draw(log_density, proposals, many * len(samples))
        found = (
            _unlike(r, samples[:, i], log_prob[:, i], z[:, i], log_ratio[:, i], what)
            for i, r in enumerate(proposals)
        )
        faults = [fault for fault in found if fault]
        if not faults:
            return
    yield from faults


def _unlike(
    proposal: Proposal,
    samples: Float[Tensor, "n view dim"],
    log_prob: Float[Tensor, " n"],
    z: Float[Tensor, "m view dim"],
    log_ratio: Float[Tensor, " m"],
    what: str,
) -> str | None:
    """How samples differ from importance-weighted draws of a proposal, if they do."""
    level = log_prob.median()
    if not level.isfinite():
        return f"expected a finite log_prob at {what}, got {float(level)}"
    weight = (log_ratio - log_ratio.max()).exp()
    below = torch.sigmoid(log_prob - level)
    under = torch.sigmoid(log_ratio + proposal.log_prob(z) - level)
    u, v = proposal.standard(samples), proposal.standard(z)
    waves = _waves(u.shape[1])
    drawn = mean_of(torch.cat([waves(u), below.unsqueeze(1)], 1))
    right = _weighted(torch.cat([waves(v), under.unsqueeze(1)], 1), weight)
    away = drawn._replace(error=torch.hypot(drawn.error, right.error))
    most = float(away.misses(right.value).max())
    if most <= BARS:
        return None
    return (
        f"expected {what} to follow log_prob, got means that differ by {most:.0f} "
        f"standard errors ({_reading(u, v, weight)}); look at the scales in sample and "
        "in log_prob, and at what views share"
    )


def _waves(size: int) -> Callable[[Tensor], Tensor]:
    """Random Fourier features: (n, size) -> (n, wave)."""
    direction = torch.randn(WAVES, size)
    length = torch.tensor(FREQUENCIES).repeat(WAVES // len(FREQUENCIES))
    norm = direction.norm(dim=1, keepdim=True).clamp(min=1e-6)
    direction = direction / norm * length.unsqueeze(1)
    phase = 2 * math.pi * torch.rand(WAVES)
    return lambda u: torch.cos(u @ direction.mT + phase)


def _weighted(value: Float[Tensor, "n k"], weight: Float[Tensor, " n"]) -> Estimate:
    """The mean under self-normalised weights, with its error to first order."""
    share = (weight / weight.sum()).unsqueeze(1)
    mean = (share * value).sum(0)
    return Estimate(mean, (share * (value - mean)).square().sum(0).sqrt())


def _reading(u: Tensor, v: Tensor, weight: Tensor) -> str:
    """How wide the samples are, by mean logarithms, which exist for all tails."""
    share = (weight / weight.sum()).unsqueeze(1)
    wide = (u - u.median(0).values).abs().clamp(min=1e-30).log().mean()
    centre = (share * v).sum(0) if float(weight.max()) > 0 else v.mean(0)
    right = (share * (v - centre).abs().clamp(min=1e-30).log()).sum(0).mean()
    return f"they are about {float((wide - right).exp()):.2g} times as wide"


def mean_is_that_of_samples(
    samples: Float[Tensor, "n *shape"],
    expected: Float[Tensor, "*shape"],
    deviation: Tensor | None = None,
) -> Iterator[str]:
    """The samples have the mean that a distribution declares.

    Its standard deviation, if given, counts where samples happen to be all alike.
    """
    drawn = mean_of(samples)
    if deviation is not None:
        least = deviation.nan_to_num(0.0, 0.0) / math.sqrt(len(samples))
        drawn = drawn._replace(error=drawn.error.maximum(least))
    away = drawn.misses(expected)
    if float(away.max()) > BARS:
        worst = int(away.argmax())
        yield (
            f"expected the mean {float(drawn.value.flatten()[worst]):.4g} ± "
            f"{float(drawn.error.flatten()[worst]):.2g} of the samples, got "
            f"{float(expected.flatten()[worst]):.4g}; look at the property mean"
        )


def pathwise_is_score(
    q: Callable[[], TorchDistribution],
    named: Sequence[tuple[str, Tensor]],
    draws: int,
) -> Iterator[str]:
    r"""The pathwise (reparameterised) gradient is the score-function gradient.

    .. math:: E[\nabla f(z(\epsilon))] = E[(f(z) - c) \, \nabla \log q(z)]

    Arguments:
        q: Builds the distribution, differentiable in the parameters.
        named: Names and parameters.
        draws: The number of draws for either side.
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
                f"expected the gradient {float(score.value[i, k]):.3g} of E[f(z)] "
                f"in {name}, by the score, got {float(path.value[i, k]):.3g} through "
                f"rsample, ± {float(error[i, k]):.2g}; look for samples that are "
                "detached, or declare has_rsample = False"
            )


def _wave(pilot: Float[Tensor, "n item view dim"]) -> Callable[[Tensor], Tensor]:
    """A smooth function of each item that depends on its location and its width."""
    loc, scale = pilot.mean(0), pilot.std(0).mean().clamp(min=1e-12)
    weight = torch.randn(pilot.shape[1:]).sign() / math.sqrt(pilot[0, 0].numel())

    def f(z: Tensor) -> Tensor:
        return torch.sin((weight * (z - loc) / scale).sum((-2, -1)) + math.pi / 4)

    centre = f(pilot).mean(0)  # a control variate
    return lambda z: f(z) - centre


def _along(
    value: Float[Tensor, "n item"],
    parameters: Sequence[Tensor],
    directions: Sequence[Tensor],
) -> Float[Tensor, "parameter direction"]:
    """Gradients of the mean of a value over draws, along the directions."""
    if not value.requires_grad:
        return torch.zeros(len(parameters), DIRECTIONS)
    grads = torch.autograd.grad(
        value.mean(0).sum(), parameters, allow_unused=True, materialize_grads=True
    )
    pairs = zip(grads, directions, strict=True)
    return torch.stack([(grad * d).flatten(1).sum(1) for grad, d in pairs])
