"""The evidence by importance sampling, with a check of the weights."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..bounds import log_weights
from ..data.batches import Data, Items, Views
from ..joint import Joint
from ..terms import Batch
from .containers import pareto_k
from .items import Array, array, chunks, evaluating, in_parts
from .joints import check_density, check_proper, check_spread, joint_of

__all__ = ["Evidence", "evidence"]


class Evidence(NamedTuple):
    r"""Estimates of :math:`\log p(x)`, in nats, and how far they can be trusted.

    Arguments:
        log_evidence: The estimate for each item; on average too low.
        ess: The effective sample size :math:`(\sum_k w_k)^2 / \sum_k w_k^2` of the
            importance weights of each item.
        pareto_k: The shape of the tail of these weights; where it is above 0.7 the
            estimate is not to be trusted. NaN where there is no tail to fit: below 25
            particles, or where the weights differ by no more than rounding.
        measure: What the density is a density of. Evidences compare under one measure.
    """

    log_evidence: Float[Array, " item"]
    ess: Float[Array, " item"]
    pareto_k: Float[Array, " item"]
    measure: str

    @property
    def mean(self) -> float:
        """The mean over items, in nats per item."""
        return float(self.log_evidence.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean over items; NaN for a single one."""
        n = len(self.log_evidence)
        return (
            float(self.log_evidence.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        )


def evidence(
    objective: nn.Module,
    data: Data,
    *,
    particles: int = 100,
    views: Views | None = None,
    batch_size: int = 64,
) -> Evidence:
    r"""Estimate the evidence of each item with samples of the guide.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K
        \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    Its mean is the importance-weighted bound, below the evidence and rising to it with
    K. Random hyper-parameters are drawn from their guide: then it is the predictive
    log-density of x under their posterior. Where contents are observed, in
    `Groups.content`, it is that of x and the content, :math:`\log p(x, k)`.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one for each modality.
        particles: The number K of samples.
        views: A sampler of views, all of which are then the data of an item,
            :math:`\log p(x_1, \dots, x_V)`; without one the item is seen alone.

    Raises:
        ValueError: If there is no evidence: no joint distribution, a flat p(y), a
            pseudo-likelihood, or a guide without a density.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016)
        https://arxiv.org/abs/1509.00519
        Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        https://arxiv.org/abs/1507.02646
    """
    if particles < 1:
        raise ValueError(f"expected particles of at least 1, got {particles}; raise it")
    joint = joint_of(objective, "an evidence")
    for check in (check_density, check_proper, check_spread):
        check(joint, "an evidence")
    parts = []
    with evaluating(objective) as like:
        items = Items(data, like, views)
        for rows in in_parts(len(items), batch_size, "evidence"):
            batch = items.batch(rows)
            joint.check(batch)
            parts.append(_weigh(_log_weights(joint, batch, particles)))
    log_evidence, ess, k = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Evidence(log_evidence, ess, k, joint.likelihood.measure)


def _log_weights(
    joint: Joint, batch: Batch, particles: int
) -> Float[Tensor, "item particle"]:
    parts = (log_weights(joint, batch, k) for k in chunks(particles, batch))
    return torch.cat([torch.as_tensor(sum(terms[:3])) for terms in parts]).T


def _weigh(log_weight: Float[Tensor, "item particle"]) -> tuple[Array, Array, Array]:
    """The log of the mean weight, the effective sample size, and Pareto's k."""
    k = pareto_k(array(log_weight))
    log_weight = log_weight.cpu().double()
    total = log_weight.logsumexp(1)
    ess = (2 * total - (2 * log_weight).logsumexp(1)).exp()
    mean = total - math.log(log_weight.shape[1])
    return array(mean), array(ess), k
