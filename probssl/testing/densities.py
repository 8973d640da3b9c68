r"""Laws of a density: its integral, its samples, and gradients through its samples."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .laws import BARS, Estimate, mean_of
from .proposals import LogDensity, Proposal, draw, fitted, inside

__all__ = ["independent", "integral", "mean_is_that_of_samples", "pathwise_is_score"]
__all__ += ["samples_follow", "spread_is_that_of_samples"]

LEAST_DRAWS = 100  # for error bars
LARGEST_ERROR = 0.25  # standard error relative to the mean; a larger one is undecided
MORE_DRAWS = 4  # times as many, before a fault is reported
WAVES, FREQUENCIES = 32, (0.5, 1.0, 2.0, 4.0)
MOST_COLUMNS = 200  # of numbers, whose ranks are compared
LARGEST_FACTOR = 1.25  # by which a standard deviation may be off
LARGEST_SHARE = 0.05  # of one sample in a variance that is judged
GROUPS = 40  # of draws, for error bars of gradients
DIRECTIONS = 4  # of a gradient, in each parameter


def integral(
    log_density: LogDensity,
    proposals: Sequence[Proposal],
    n: int,
    what: str,
    look: str,
    samples: Float[Tensor, "m item view dim"] | None = None,
) -> Iterator[str]:
    r"""The density of every item integrates to one, :math:`E_r[p / r] = 1`.

    Samples, if given, say what probability the ends of the support have, where the
    density rounds; without samples it is taken as 0.

    A fault is checked again with more draws: rare draws with large weights, missed the
    first time, make an error bar too short.
    """
    faults: list[str] = []
    shares = [Estimate(torch.ones(()), torch.zeros(())) for _ in proposals]
    if samples is not None:
        seen = mean_of(inside(proposals, samples).double())
        least = seen.error.clamp(min=1 / len(samples))  # where none was at an end
        shares = [Estimate(*pair) for pair in zip(seen.value, least, strict=True)]
    for many in (n, MORE_DRAWS * n):
        _, log_ratio = draw(log_density, proposals, many)
        found = (
            _mass(log_w, share, what, look)
            for log_w, share in zip(log_ratio.unbind(1), shares, strict=True)
        )
        faults = [fault for fault in found if fault]
        if not faults:
            return
    yield from faults


def _mass(
    log_w: Float[Tensor, " n"], share: Estimate, what: str, look: str
) -> str | None:
    """What is wrong with the mean of weights, relative to that of samples inside."""
    top = log_w.max().clamp(min=-700, max=700)
    ratio = mean_of((log_w - top).exp())
    log_mean = float(ratio.value.log() + top - share.value.log())
    error = float(torch.hypot(ratio.error / ratio.value, share.error / share.value))
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
    sample: Callable[[int], Mapping[str, Float[Tensor, "n item view dim"]]],
    n: int,
    support: constraints.Constraint,
) -> Iterator[str]:
    """The means of bounded functions over the samples are those under the density.

    The functions are random Fourier features (cosines of several frequencies), and for
    the first samples one function of the log-density; heavy tails cannot spoil their
    error bars. The density need not integrate to one, and ends of the support are left
    out. A fault is checked again with more draws and samples, all of them new, and with
    proposals fitted to them: those fitted to few samples may miss a mode.

    Arguments:
        sample: Draws so many samples by what they are, such as "samples of x".
    """
    faults: list[str] = []
    for many in (n, MORE_DRAWS * n):
        samples = sample(many)
        first = next(iter(samples))
        log_prob = log_density(samples[first]).detach()
        if log_prob.isnan().any():
            yield f"expected log_prob of {first} without NaN, got one"
            return
        if faults:
            proposals = fitted(log_density, samples[first], support)
        z, log_ratio = draw(log_density, proposals, many)
        found = []
        for (what, drawn), (i, r) in product(samples.items(), enumerate(proposals)):
            kept = r.inside(drawn[:, i])
            level = log_prob[kept, i] if what == first else None
            pair = drawn[kept, i], level, z[:, i], log_ratio[:, i]
            found.append(_unlike(r, *pair, what))
        faults = [fault for fault in found if fault]
        if not faults:
            return
    yield from faults


def independent(
    samples: Mapping[str, Float[Tensor, "n part number"]], parts: str
) -> Iterator[str]:
    """Parts are drawn independently: ranks of their numbers are not correlated.

    Ranks u, drawn at random among equals, and their distances from the middle have the
    same distribution whatever that of the numbers. Bars are five standard errors, and
    wider for many pairs.
    """
    for what, drawn in samples.items():
        count = drawn.shape[2]
        x = drawn.flatten(1)
        columns = torch.randperm(x.shape[1])[:MOST_COLUMNS]
        x, part = x[:, columns], columns // count
        other = (part.unsqueeze(1) != part).repeat(2, 2)
        if not other.any():
            continue
        order = torch.rand_like(x).argsort(0)
        order = order.gather(0, x.gather(0, order).argsort(dim=0, stable=True))
        u = (order.argsort(0) + 0.5) / len(x) - 0.5
        score = torch.cat([u, u.abs() - 0.25], 1)
        score = score / score.square().mean(0).sqrt()
        correlation = (score.mT @ score / len(x)).abs() * other
        bar = math.sqrt(BARS**2 + 2 * math.log(int(other.sum()))) / math.sqrt(len(x))
        if float(correlation.max()) > bar:
            pair = (correlation == correlation.max()).nonzero()[0] % len(part)
            i, j = part[pair].tolist()
            yield (
                f"expected independent {parts} in {what}, got a correlation "
                f"{float(correlation.max()):.2g} of ranks, in parts {i} and {j} of "
                f"{drawn.shape[1]}; draw noise of the whole shape"
            )


def _unlike(
    proposal: Proposal,
    samples: Float[Tensor, "n view dim"],
    log_prob: Float[Tensor, " n"] | None,
    z: Float[Tensor, "m view dim"],
    log_ratio: Float[Tensor, " m"],
    what: str,
) -> str | None:
    """How samples differ from importance-weighted draws of a proposal, if they do."""
    weight = (log_ratio - log_ratio.max()).exp()
    u, v = proposal.standard(samples), proposal.standard(z)
    waves = _waves(u.shape[1])
    of_samples, of_z = [waves(u)], [waves(v)]
    if log_prob is not None:
        level = log_prob.median()
        if not level.isfinite():
            return f"expected a finite log_prob at {what}, got {float(level)}"
        of_samples.append(torch.sigmoid(log_prob - level).unsqueeze(1))
        under = torch.sigmoid(log_ratio + proposal.log_prob(z) - level)
        of_z.append(under.unsqueeze(1))
    drawn = mean_of(torch.cat(of_samples, 1))
    right = _weighted(torch.cat(of_z, 1), weight)
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


def spread_is_that_of_samples(
    samples: Float[Tensor, "n *shape"], stddev: Float[Tensor, "*shape"]
) -> Iterator[str]:
    """The samples have about the standard deviation that a distribution declares.

    It is wrong if it is off by a factor of more than 1.25, and its square by five
    standard errors. Heavy tails, where few samples make most of the variance, are not
    judged: their error bars are too short.
    """
    squares = (samples - samples.mean(0)).square()
    found, expected = mean_of(squares), stddev.square()
    heavy = squares.amax(0) > LARGEST_SHARE * squares.sum(0)
    ratio = (found.value / expected).sqrt()
    near = (ratio > 1 / LARGEST_FACTOR) & (ratio < LARGEST_FACTOR)
    judged = expected.isfinite() & ~heavy & ~near
    away = torch.where(judged, found.misses(expected), 0.0)
    if float(away.max()) > BARS:
        k = int(away.argmax())
        was, came = float(found.value.flatten()[k]), float(expected.flatten()[k])
        yield (
            f"expected the standard deviation {math.sqrt(was):.4g} of the samples, got "
            f"{math.sqrt(came):.4g}; look at the properties stddev and variance"
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
    return torch.stack([(grad * d).reshape(DIRECTIONS, -1).sum(1) for grad, d in pairs])
