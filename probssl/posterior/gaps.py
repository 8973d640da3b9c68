r"""The gaps between the ELBO of a guide and the log evidence, item by item.

.. math:: \log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_\text{approximation}
    + \underbrace{L[q^*] - L[q]}_\text{amortisation}

:math:`L` is the ELBO. :math:`q^*` is the best member of the guide's family for the item
itself: the same guide, with the outputs of its encoder replaced by free numbers.

References:
    Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
    https://arxiv.org/abs/1801.03558
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..arguments import typed, whole
from ..arrays import plain
from ..bounds import log_weights
from ..data.batches import Loadable, Views
from ..estimates import estimate
from ..guides.views import Factors
from ..joint import Joint
from ..terms import Batch
from .coordinates import Latents, Proposal
from .evidence import RELIABLE_K, summary
from .items import chunks, evaluating
from .joints import (
    check_density,
    check_guides,
    check_proper,
    check_spread,
    checked,
    joint_of,
)
from .refinement import SAMPLES, LocalNormal, Refined, climb, frozen, mixed

if TYPE_CHECKING:
    import pandas

__all__ = ["Gaps", "gaps"]

LOCAL_RATE = 0.3  # of a gradient step; outputs may have far to go

Items = Float[np.ndarray, " item"]


class GapErrors(NamedTuple):
    """Monte Carlo standard errors of gaps of each item, in nats."""

    total: Items
    approximation: Items
    amortisation: Items
    coupling: Items


class Gaps(NamedTuple):
    r"""Gaps of the ELBO of each item, in nats.

    Arguments:
        total: The log evidence less the ELBO of the guide,
            :math:`\mathrm{KL}(q \,\|\, p(z \mid x))`: the sum of the next two.
        approximation: What the best member of the guide's family leaves.
        amortisation: What an encoder for all items costs beside it.
        coupling: What independent views cost: the ELBO of the best normal of all views
            together, less that of the best one with independent present views, each
            with a full covariance. 0 for a single view.
        log_evidence: By importance sampling from the guide, the best member of its
            family and a normal fitted to the item, a third of the draws each, so that
            no mode of the posterior that one of them has is lost.
        pareto_k: Its Pareto k̂. Above 0.7 the evidence is a lower bound of unknown
            error, and so are total and approximation.
        standard_error: The Monte Carlo standard error of each gap of each item, for the
            optima that were found: of a mean of log-weights s / √K, of the log evidence
            √(1 / ESS − 1 / K) by the delta method. It holds where k̂ is below 0.7.
    """

    total: Items
    approximation: Items
    amortisation: Items
    coupling: Items
    log_evidence: Items
    pareto_k: Items
    standard_error: GapErrors

    @property
    def table(self) -> "pandas.DataFrame":
        """The mean of each gap over items, and its standard error, in nats per item."""
        import pandas

        rows = {}
        for name in ("total", "approximation", "amortisation", "coupling"):
            values = getattr(self, name)
            error = estimate(values).standard_error if len(values) > 1 else math.nan
            rows[name] = {"nats per item": values.mean(), "standard error": error}
        return pandas.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        return f"gaps of {len(self.total):,} items\n{self.table.round(3).to_string()}"

    def _repr_html_(self) -> str:
        table = self.table.round(3).to_html()
        return f"<p>gaps of {len(self.total):,} items</p>{table}"


@typed
def gaps(
    objective: nn.Module,
    data: Loadable,
    *,
    steps: int = 500,
    particles: int = 1_000,
    views: Views | None = None,
    batch_size: int = 64,
) -> Gaps:
    r"""Divide the gap between ELBO and log evidence: approximation and amortisation.

    A large approximation gap asks for another guide (`guides.Coupled` where the
    coupling is large, `guides.FullGaussian` or `guides.Flow` otherwise); a large
    amortisation gap for a larger encoder, more data or longer training.

    The optima are found by gradient steps, and so are fallen short of by a little:
    the approximation gap is overestimated by what the amortisation gap lacks. The total
    does not depend on them. Random hyper-parameters are drawn from their guide; their
    spread, and an explicit content whose guide stays as it is, are part of the
    approximation gap; and so is what a guide of your own computes from x beside its
    `Factors`.

    Arguments:
        data: As in `evidence`.
        steps: The number of gradient steps for each optimum.
        particles: The number of samples for each ELBO and for the evidence.
        views: As in `evidence`: the gaps are those of all views of an item. By default
            an item is its only view.

    Raises:
        ValueError: If there is no evidence, see `evidence`; or if q(z|x) is not made
            from one call of the package's `Factors`, whose outputs are made free.
    """
    steps, particles = whole("steps", steps), whole("particles", particles, least=2)
    joint = joint_of(objective, "gaps")
    for check in (check_density, check_proper, check_spread):
        check(joint, "gaps")
    factors = _factors(joint)
    parts = []
    with evaluating(objective) as like:
        for batch in checked(joint, data, like, views, batch_size, "gaps"):
            check_guides(joint, batch, "gaps")
            parts.append(_of_batch(joint, factors, batch, steps, particles))
    each = (np.concatenate(part) for part in zip(*parts, strict=True))
    total, approximation, amortisation, coupling, log_evidence, k, *errors = each
    errors_of = GapErrors(*errors)
    found = Gaps(
        total, approximation, amortisation, coupling, log_evidence, k, errors_of
    )
    if bad := int((found.pareto_k > RELIABLE_K).sum()):
        warnings.warn(
            f"Pareto k̂ is above {RELIABLE_K} for {bad} of {len(found.total)} items: "
            "their evidence, total and approximation gap are lower bounds; take more "
            "steps, or leave these items out of a claim",
            stacklevel=3,
        )
    return found


def _of_batch(
    joint: Joint, factors: Factors, batch: Batch, steps: int, particles: int
) -> tuple[Items, ...]:
    guided, latents = _elbo(joint, batch, particles), Latents(joint, batch)
    together = LocalNormal(latents, steps)
    coupling = coupling_error = np.zeros_like(guided[0])
    if batch.shape[1] > 1:
        apart = LocalNormal(latents, steps, _within_views(latents))
        each = [_mean(one.log_weights(particles)) for one in (together, apart)]
        coupling, coupling_error = each[0][0] - each[1][0], _hypot(*each)
    refined, sizes = Refined(together), chunks(particles, batch)
    drawn = [latents.hypers(n) for n in sizes]
    guides = [latents.guide(n, h) for n, h in zip(sizes, drawn, strict=True)]
    with _local(joint, factors, batch, steps):
        own = _elbo(joint, batch, particles)
        parts = zip(sizes, drawn, guides, strict=True)
        weights = torch.cat([_weights(latents, refined, *part) for part in parts])
    log_evidence, ess, k = summary(weights)
    total, approximation = log_evidence - guided[0], log_evidence - own[0]
    amortisation = total - approximation
    values = total, approximation, amortisation, coupling, log_evidence, k
    evidence = log_evidence, np.sqrt(np.maximum(1 / ess - 1 / particles, 0))
    errors = _hypot(evidence, guided), _hypot(evidence, own), _hypot(own, guided)
    return *values, *errors, coupling_error


def _mean(log_weight: Float[Tensor, "draw item"]) -> tuple[Items, Items]:
    """The mean of log-weights of each item, and its standard error."""
    log_weight = log_weight.double()
    error = log_weight.std(0) / math.sqrt(len(log_weight))
    return plain(log_weight.mean(0)), plain(error)


def _hypot(a: tuple[Items, Items], b: tuple[Items, Items]) -> Items:
    """The standard error of a difference of two independent estimates."""
    error: Items = np.hypot(a[1], b[1])
    return error


def _weights(
    latents: Latents,
    refined: Refined,
    draws: int,
    hypers: dict[str, Tensor],
    guide: Proposal,
) -> Float[Tensor, "draw item"]:
    """Log-weights of draws of q, q* and the refined proposal, a third of each.

    Their density is that of the mixture, which misses no mode that one of them has: q*
    and the refined one settle on one mode. Where q lacks some of the support, all are
    of the refined proposal.
    """
    last = refined.sample(draws), refined.log_prob
    parts = [last] if latents.narrow else [guide, latents.guide(draws, hypers), last]
    shares = latents.loc.new_full((len(parts) - 1, len(latents.loc)), 1 / 3)
    u, log_r = mixed(parts, shares)
    return latents.log_joint(u, hypers) - log_r(u)


def _elbo(joint: Joint, batch: Batch, particles: int) -> tuple[Items, Items]:
    """The ELBO of the guide, and its standard error."""
    parts = chunks(particles, batch)
    return _mean(torch.cat([log_weights(joint, batch, n).local() for n in parts]))


def _factors(joint: Joint) -> Factors:
    """The part of a guide that holds the outputs of its encoder."""
    found = [part for part in joint.posterior.modules() if isinstance(part, Factors)]
    if len(found) != 1:
        raise ValueError(
            "expected a guide of the package, the outputs of whose encoder can be made "
            f"free, got {type(joint.posterior).__name__}; build yours on "
            "guides.views.Factors, or compare bounds: history['value'] with ps.evidence"
        )
    return found[0]


@contextmanager
def _local(joint: Joint, factors: Factors, batch: Batch, steps: int) -> Iterator[None]:
    """The guide with outputs of the encoder of each item's own, which raise its ELBO.

    They are raw numbers, before a subclass of `Factors` makes them a scale. Locations
    move in units of the standard deviations of q.
    """
    q, (loc, raw) = _encoded(joint, factors, batch)
    spread = q.sample((2 * SAMPLES,)).std(0)
    if joint.prior.space == "a sphere":  # where only directions count
        spread = spread * loc.norm(dim=-1, keepdim=True)
    if spread.shape != loc.shape:  # one location for all views
        spread = torch.ones_like(loc)
    shift = torch.zeros_like(loc, requires_grad=True)
    change = torch.zeros_like(raw, requires_grad=True)

    def elbo(draws: int = SAMPLES) -> Tensor:
        return log_weights(joint, batch, draws).local().mean(0)

    def free(*_: object) -> tuple[Tensor, Tensor]:
        return loc + spread * shift, raw + change

    with _in_place_of_heads(factors, free):
        with frozen(joint), torch.enable_grad():
            climb(elbo, _used(elbo(1), [shift, change], joint), steps, LOCAL_RATE)
        yield


@contextmanager
def _in_place_of_heads(
    factors: Factors, method: Callable[..., tuple[Tensor, Tensor]]
) -> Iterator[None]:
    vars(factors)["_heads"] = method
    try:
        yield
    finally:
        del vars(factors)["_heads"]


def _encoded(
    joint: Joint, factors: Factors, batch: Batch
) -> tuple[TorchDistribution, tuple[Tensor, Tensor]]:
    """q(z|x), and the location and raw spread that it is made from."""
    heads, found = factors._heads, list[tuple[Tensor, Tensor]]()

    def recorded(*given: Any) -> tuple[Tensor, Tensor]:
        found.append(heads(*given))
        return found[-1]

    with _in_place_of_heads(factors, recorded):
        q = joint.encode(batch)
    if len(found) != 1:
        raise _not_made_from_factors(joint, f"which calls it {len(found)} times")
    return q, found[0]


def _used(elbo: Tensor, free: list[Tensor], joint: Joint) -> list[Tensor]:
    """Those of the free numbers that the ELBO depends on."""
    gradients: Sequence[Tensor | None] = [None]
    if elbo.requires_grad:
        gradients = torch.autograd.grad(elbo.sum(), free, allow_unused=True)
    moved = [part for part, g in zip(free, gradients, strict=False) if g is not None]
    if not moved:
        raise _not_made_from_factors(joint, "whose q(z|x) does not depend on it")
    return moved


def _not_made_from_factors(joint: Joint, how: str) -> ValueError:
    name = type(joint.posterior).__name__
    return ValueError(
        "expected a guide whose q(z|x) is made from one call of Factors.forward, the "
        f"outputs of whose encoder can be made free, got {name}, {how}; let `each` "
        "take self.factors(x, present), and an own forward of Factors take "
        "super().forward(x, present); or compare bounds: history['value'] with "
        "ps.evidence"
    )


def _within_views(latents: Latents) -> Bool[Tensor, "item number number"]:
    """The free elements of a factor with independent present views.

    Absent views may depend on the present ones, and an explicit content on all.
    """
    batch, sizes = latents.batch, [shape.numel() for shape in latents.shapes.values()]
    views = batch.shape[1]
    view = torch.arange(views).repeat_interleave(sizes[0] // views)
    present = torch.ones(batch.shape, dtype=torch.bool)
    if batch.present is not None:
        present = batch.present.cpu()
    # 0 for the present views, 1 for the absent ones, 2 for the content.
    rank = torch.cat(
        [(~present).long()[:, view], torch.full((len(present), sum(sizes[1:])), 2)], 1
    )
    view = torch.cat([view, torch.full((sum(sizes[1:]),), views)])
    number = torch.arange(len(view))
    later = rank[:, :, None] > rank[:, None, :]
    same = (rank[:, :, None] == rank[:, None, :]) & (
        (view[:, None] == view) | (rank[:, :, None] > 0)
    )
    free = later | same & (number[:, None] > number)
    return free.to(latents.loc.device)
