"""The evidence (marginal likelihood) by importance sampling, with Pareto k̂ and ESS."""

import math
import time
import warnings
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import typed, whole
from ..arrays import plain
from ..bounds import log_weights
from ..data.batches import Loadable, Views
from ..estimates import estimate, places
from ..joint import Joint
from ..special import effective_sample_size
from ..terms import Batch
from .annealing import Annealed
from .containers import pareto_k
from .coordinates import Latents
from .items import batches, chunks, evaluating
from .joints import (
    check_density,
    check_guides,
    check_proper,
    check_spread,
    joint_of,
)
from .refinement import LocalNormal, Refined

__all__ = ["Evidence", "RELIABLE_K", "Run", "evidence", "summary", "weigh"]

RELIABLE_K = 0.7  # Pareto k̂ up to which importance sampling is reliable


class Evidence(NamedTuple):
    r"""Log evidence :math:`\log p(x)` of each item, in nats, with its diagnostics.

    Arguments:
        log_evidence: The estimate for each item, biased downwards.
        ess: The effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of the
            importance weights of each item.
        pareto_k: The Pareto k̂ of these weights, the shape of their tail; above 0.7 the
            estimate is unreliable. NaN where no tail can be fitted: below 25 particles,
            or where the weights differ by no more than rounding.
        measure: The measure of the density p(x). Evidences compare under one measure.
        before: The same by the guide alone, where draws were refined or annealed; of a
            guide without some of the support of the prior a bound only, for any number
            of particles.
        cost: How many times the CPU time of that it took.
    """

    log_evidence: Float[np.ndarray, " item"]
    ess: Float[np.ndarray, " item"]
    pareto_k: Float[np.ndarray, " item"]
    measure: str
    before: "Evidence | None" = None
    cost: float = 1.0

    @property
    def mean(self) -> float:
        """The mean over items, in nats per item."""
        return float(self.log_evidence.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over items; NaN for a single one."""
        if len(self.log_evidence) < 2:
            return math.nan
        return estimate(self.log_evidence).standard_error

    @property
    def unreliable(self) -> int:
        """The number of items whose Pareto k̂ is above 0.7."""
        return int((self.pareto_k > RELIABLE_K).sum())

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {value}" for name, value in self._rows())
        return f"Evidence({said})"

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{n}</th><td>{escape(v)}</td></tr>" for n, v in self._rows())
        return f"<table><caption>evidence</caption>{''.join(rows)}</table>"

    def _rows(self) -> list[tuple[str, str]]:
        """What a short form shows, by name."""
        mean, error, digits = self.mean, self.standard_error, 2
        if 0 < error < math.inf:
            decimals, power = places(mean, error)
            digits = max(digits, decimals - power)
        said = f"{mean:.{digits}f} ± {error:.{digits}f} nats per item"
        rows = {"mean": said, "median ESS": f"{np.median(self.ess):.1f}"}
        n, before = len(self.log_evidence), self.before
        rows[f"Pareto k̂ > {RELIABLE_K}"] = (
            f"{self.unreliable} of {n} items"
            if np.isfinite(self.pareto_k).any()
            else "unknown"
        )
        if before is not None:
            own = dict(before._rows())
            rows = {
                name: f"{value} (before: {own[name]})" for name, value in rows.items()
            }
            rows["cost"] = f"{self.cost:.1f} times as long"
        return [("items", f"{n:,}"), *rows.items(), ("measure", self.measure)]


@typed
def evidence(
    objective: nn.Module,
    data: Loadable,
    *,
    particles: int = 100,
    refine: int = 0,
    anneal: int = 0,
    views: Views | None = None,
    batch_size: int = 64,
) -> Evidence:
    r"""Estimate the log evidence (marginal likelihood) of each item, in nats.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K
        \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    This is importance sampling with the guide as proposal. Its mean is the IWAE bound,
    which is below the log evidence and tends to it as K grows; K = 1 is the ELBO, so
    that the difference of the two is the gap of the guide, amortisation included.
    Random hyper-parameters are drawn from their guide: the result is then the
    predictive log-density of x under their posterior. With observed contents, in
    `Groups.content`, it is :math:`\log p(x, k)`.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one per modality; or a DataLoader that does not shuffle.
        particles: The number K of samples.
        refine: How many gradient steps fit a proposal of its own to each item, in place
            of q(z|x) (`posterior.refinement`); 500 lower Pareto k̂ below 0.7 for most
            items. Neither the objective nor p(x) changes. A warning says for how many
            items k̂ is still above.
        anneal: How many temperatures lead the draws from there to the posterior by
            Hamiltonian Monte Carlo (`posterior.annealing`), the last resort: each costs
            six evaluations of the decoder and its gradient for each draw. 0 and 1 are
            importance sampling, 100 are usual. The estimate stays unbiased.
        views: A sampler of views; the data of an item are then all of its views,
            :math:`\log p(x_1, \dots, x_V)`. By default an item is its only view.

    Raises:
        ValueError: If there is no evidence: no joint distribution, a flat p(y), a
            pseudo-likelihood, or a guide without a density, as a point mass is; or data
            outside the support of the likelihood; without `refine` also for a guide
            without some of the support of the prior, whose draws give a bound only;
            with `refine` or `anneal` also for a prior whose distribution does not say
            its support.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016)
        https://arxiv.org/abs/1509.00519
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        https://arxiv.org/abs/1507.02646
        Annealed Importance Sampling (Neal, 2001)
        https://arxiv.org/abs/physics/9803008
    """
    run = Run(objective, particles, refine, anneal)
    with evaluating(objective) as like:
        for batch in batches(data, like, views, batch_size, "evidence"):
            run.add(batch)
    found = run.evidence()
    if found.before is not None and (bad := found.unreliable):
        warnings.warn(
            f"Pareto k̂ is above {RELIABLE_K} for {bad} of {len(found.ess)} items after "
            f"{run.how} (before: {found.before.unreliable}); take more steps, "
            "refine=… or anneal=…, or leave these items out of a claim",
            stacklevel=3,
        )
    return found


class Run:
    """The evidence of one objective, batch by batch, in evaluation mode.

    The arguments and errors are those of `evidence`.
    """

    def __init__(
        self, objective: nn.Module, particles: int, refine: int, anneal: int
    ) -> None:
        self.particles = whole("particles", particles)
        self.joint = joint_of(objective, "an evidence")
        for check in (check_density, check_proper, check_spread):
            check(self.joint, "an evidence")
        self.refine = whole("refine", refine, least=0)
        self.anneal = whole("anneal", anneal, least=0)
        self.how = "annealing" if anneal else "refinement"
        self.guided: list[Summary] = []
        self.better: list[Summary] = []
        self.seconds = [0.0, 0.0]

    def add(self, given: Batch) -> None:
        """Estimate the evidence of the items of a batch."""
        batch = self.joint.arranged(given)
        self.joint.check(batch)
        check_guides(self.joint, batch, "an evidence", weighted=not self.refine)
        began = time.process_time()
        self.guided.append(weigh(self.joint, batch, self.particles))
        self.seconds[0] += time.process_time() - began
        if self.refine or self.anneal:
            self.better.append(summary(self._own_weights(batch)))
            self.seconds[1] += time.process_time() - began

    def _own_weights(self, batch: Batch) -> Float[Tensor, "draw item"]:
        """The log-weights of draws by proposals of each item's own."""
        latents = Latents(self.joint, batch)
        fitted = LocalNormal(latents, self.refine) if self.refine else None
        refined = None if fitted is None else Refined(fitted)
        if self.anneal or refined is None:
            annealed = Annealed(latents, self.anneal, refined)
            return annealed.log_weights(self.particles)
        return refined.log_weights(self.particles)

    def evidence(self) -> Evidence:
        """The evidence of all items so far."""
        before = _joined(self.guided, self.joint)
        if not self.better:
            return before
        cost = self.seconds[1] / max(self.seconds[0], 1e-9)
        return _joined(self.better, self.joint)._replace(before=before, cost=cost)


Summary = tuple[np.ndarray, np.ndarray, np.ndarray]


def _joined(parts: Sequence[Summary], joint: Joint) -> Evidence:
    log_evidence, ess, k = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Evidence(log_evidence, ess, k, joint.likelihood.measure)


def weigh(joint: Joint, batch: Batch, particles: int) -> Summary:
    """The log evidence by the guide, with its diagnostics."""
    parts = (log_weights(joint, batch, n) for n in chunks(particles, batch))
    return summary(torch.cat([torch.as_tensor(sum(terms[:3])) for terms in parts]))


def summary(log_weight: Float[Tensor, "draw item"]) -> Summary:
    """The log of the mean weight, the effective sample size, and Pareto k̂."""
    k = pareto_k(plain(log_weight.T))
    log_weight = log_weight.cpu().double()
    mean = log_weight.logsumexp(0) - math.log(len(log_weight))
    return plain(mean), plain(effective_sample_size(log_weight)), k
