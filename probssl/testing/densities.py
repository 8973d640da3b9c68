r"""Laws of a density: that it integrates to one, and that samples come from it."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .laws import BARS, Estimate, mean_of
from .references import LogDensity, Reference, draw

__all__ = ["integral", "samples_follow"]

UNDECIDED = 0.25  # of a standard error, relative to the mean
AGAIN = 4  # times as many draws, for what looks wrong
FEATURES, FREQUENCIES = 32, (0.5, 1.0, 2.0, 4.0)


def integral(
    log_density: LogDensity,
    references: Sequence[Reference],
    n: int,
    what: str,
    look: str,
) -> Iterator[str]:
    r"""The density of every item integrates to one, :math:`E_r[p / r] = 1`.

    What looks wrong is looked at again: rare draws with large weights, missed the first
    time, make an error bar too short.
    """
    faults: list[str] = []
    for many in (n, AGAIN * n):
        _, log_ratio = draw(log_density, references, many)
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
            f"expected E[p/r] = 1 for {what}, {bar}; it is too {side} by "
            f"{abs(log_mean):.3g} nats: {look}"
        )
    if error > UNDECIDED:
        return (
            f"expected an error bar below {UNDECIDED} for {what}, {bar}: undecided; "
            "build it with fewer dimensions, or raise draws"
        )
    return None


def samples_follow(
    log_density: LogDensity,
    references: Sequence[Reference],
    samples: Float[Tensor, "n item view dim"],
    what: str,
) -> Iterator[str]:
    """Means of bounded functions over the samples are those under the density.

    The functions are waves in all directions and of several lengths, and one of the
    log-density itself; no tail can spoil their error bars. The density need not
    integrate to one. What looks wrong is looked at again, as in `integral`.
    """
    faults: list[str] = []
    log_prob = log_density(samples).detach()
    for many in (1, AGAIN):
        z, log_ratio = draw(log_density, references, many * len(samples))
        items = zip(
            references,
            samples.unbind(1),
            log_prob.unbind(1),
            z.unbind(1),
            log_ratio.unbind(1),
            strict=True,
        )
        faults = [fault for item in items if (fault := _unlike(*item, what))]
        if not faults:
            return
    yield from faults


def _unlike(
    reference: Reference,
    samples: Float[Tensor, "n view dim"],
    log_prob: Float[Tensor, " n"],
    z: Float[Tensor, "m view dim"],
    log_ratio: Float[Tensor, " m"],
    what: str,
) -> str | None:
    """How samples differ from draws of a reference, weighted."""
    level = log_prob.median()
    if not level.isfinite():
        return f"expected a finite log_prob at {what}, got {float(level)}"
    weight = (log_ratio - log_ratio.max()).exp()
    below = torch.sigmoid(log_prob - level)
    under = torch.sigmoid(log_ratio + reference.log_prob(z) - level)
    u, v = reference.standard(samples), reference.standard(z)
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
    """Cosines of random directions and lengths: (n, size) -> (n, wave)."""
    direction = torch.randn(FEATURES, size)
    length = torch.tensor(FREQUENCIES).repeat(FEATURES // len(FREQUENCIES))
    norm = direction.norm(dim=1, keepdim=True).clamp(min=1e-6)
    direction = direction / norm * length.unsqueeze(1)
    phase = 2 * math.pi * torch.rand(FEATURES)
    return lambda u: torch.cos(u @ direction.mT + phase)


def _weighted(value: Float[Tensor, "n k"], weight: Float[Tensor, " n"]) -> Estimate:
    """The mean under normalised weights, with its error to first order."""
    share = (weight / weight.sum()).unsqueeze(1)
    mean = (share * value).sum(0)
    return Estimate(mean, (share * (value - mean)).square().sum(0).sqrt())


def _reading(u: Tensor, v: Tensor, weight: Tensor) -> str:
    """How wide samples are, in logarithms, whose means exist for all tails."""
    share = (weight / weight.sum()).unsqueeze(1)
    wide = (u - u.median(0).values).abs().clamp(min=1e-30).log().mean()
    centre = (share * v).sum(0) if float(weight.max()) > 0 else v.mean(0)
    right = (share * (v - centre).abs().clamp(min=1e-30).log()).sum(0).mean()
    return f"they are about {float((wide - right).exp()):.2g} times as wide"
