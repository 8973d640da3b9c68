"""Rate, distortion and information of z: what q(z|x) knows of x, and at what cost.

References:
    Fixing a Broken ELBO (Alemi et al., 2018), for rate and distortion
    https://arxiv.org/abs/1711.00464
    ELBO surgery: yet another way to carve up the variational evidence lower bound
    (Hoffman and Johnson, 2016), for the aggregated posterior
    https://approximateinference.org/accepted/HoffmanJohnson2016.pdf
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import plain
from ..data.batches import Loadable, Views
from ..distributions.gaussian import OneFactorNormal
from ..distributions.supports import has_density_of
from ..estimates import Estimate, estimate
from ..joint import Joint, mean_of
from ..terms import Batch
from .items import BAR_DELAY, evaluating
from .joints import (
    at_covariates,
    check_density,
    check_one_prior,
    check_proper,
    check_spread,
    checked,
    decoded,
    joint_of,
)

__all__ = ["RateDistortion", "rate_distortion"]

NUMBERS_AT_ONCE = 2**22


class RateDistortion(NamedTuple):
    r"""Rate, distortion and information of z, in nats per item.

    With the aggregated posterior :math:`q(z) = \frac1n \sum_i q(z \mid x_i)`,

    .. math:: R = E_x \mathrm{KL}(q(z|x) \,\Vert\, p(z)) = I_q(x; z) +
        \mathrm{KL}(q(z) \,\Vert\, p(z))

    Arguments:
        rate: R. Rate plus distortion is minus the evidence lower bound of z, which is
            that of the fit, except for the KL divergences of an explicit content's
            guide and of random hyper-parameters, which stand at their median.
        distortion: :math:`D = -E_q \log p(x|z)`.
        information: :math:`I_q(x; z)`, at most log n: how well z tells the n items
            apart. A posterior collapse has none.
        aggregated: :math:`\mathrm{KL}(q(z) \,\Vert\, p(z))`, how far the z of all items
            are from the prior.
        kl_per_dimension: :math:`E_x \mathrm{KL}(q(z_d|x) \,\Vert\, p(z_d))` of each
            dimension in closed form, for single views under a normal q(z|x) and prior;
            else None. Its sum is the rate if both are products over the dimensions.
        mean_variance: :math:`\mathrm{Var}_x E_q[z_d|x]` of each dimension, with views
            averaged; None for a q(z|x) without mean.
    """

    rate: Estimate
    distortion: Estimate
    information: Estimate
    aggregated: Estimate
    kl_per_dimension: Float[np.ndarray, " dim"] | None
    mean_variance: Float[np.ndarray, " dim"] | None


@typed
def rate_distortion(
    objective: nn.Module,
    data: Loadable,
    *,
    draws: int = 4,
    views: Views | None = None,
    batch_size: int = 64,
) -> RateDistortion:
    r"""Estimate rate, distortion and the information of z on the items of a data set.

    Each is a mean over items, with its standard error, of a mean over draws of q(z|x).
    The information is that of these n items, whose q(z) is summed over all of them:
    with fewer items it is lower. Time grows with n² · draws.

    Arguments:
        data: A `Split`, `Groups` without absent views, a tensor or array (n, \*event),
            or a tuple of these, one per modality; or a DataLoader that does not
            shuffle.
        draws: The number of draws of z for each item.
        views: A sampler of views; z is then z_1..V, that of all views of an item. By
            default an item is its only view.

    Raises:
        ValueError: Without a joint distribution, a density of x or of q(z|x), or a
            proper p(y); for fewer than 2 items, or absent views.
    """
    draws = whole("draws", draws)
    joint = joint_of(objective, "rate and distortion")
    for check in (check_one_prior, check_density, check_proper, check_spread):
        check(joint, "rate and distortion")
    guides: list[TorchDistribution] = []
    drawn, log_q, log_p, log_x = [], [], [], []
    with evaluating(objective) as like:
        for batch in checked(joint, data, like, views, batch_size, "rate"):
            if batch.present is not None and not bool(batch.present.all()):
                raise ValueError(
                    "expected all views to be present for a rate, got some that are "
                    "absent; take the rows that have all, data.rows(present.all(1))"
                )
            q = joint.encode(batch._replace(content=None, present=None))
            z = q.sample((draws,))
            guides.append(q)
            drawn.append(z)
            log_q.append(q.log_prob(z))
            log_p.append(joint.prior.log_prob(z))
            log_x.append(_log_likelihood(joint, z, batch))
        z = torch.cat(drawn, 1)
        if z.shape[1] < 2:
            raise ValueError(
                "expected at least 2 items for the information of z, got 1; give more"
            )
        aggregated = _log_aggregated(guides, z)
        own, prior, x = (torch.cat(parts, 1) for parts in (log_q, log_p, log_x))
        values = (own - prior, -x, own - aggregated, aggregated - prior)
        found = [estimate(plain(each.double().mean(0))) for each in values]
        single = joint.prior(1) if z.shape[-2] == 1 else None
        kl, spread = _kl_per_dimension(guides, single), _spread(guides)
        return RateDistortion(found[0], found[1], found[2], found[3], kl, spread)


def _log_likelihood(joint: Joint, z: Tensor, batch: Batch) -> Tensor:
    """log p(x|z) of all views and modalities, (draw, item)."""
    parts = batch.parts if joint.several else (batch.stacked,)
    found = decoded(joint, z, batch.widths, batch.covariates)
    each = zip(found, parts, strict=True)
    return torch.stack([at_covariates(p, x).log_prob(x).sum(-1) for p, x in each]).sum(
        0
    )


def _log_aggregated(guides: list[TorchDistribution], z: Tensor) -> Tensor:
    """log q(z), the mean over all items of q(z|x), (draw, item)."""
    items, flat = z.shape[1], z.flatten(0, 1)
    rows = max(1, NUMBERS_AT_ONCE // (z[0, 0].numel() * items))
    found = []
    for some in tqdm(flat.split(rows), "q(z)", delay=BAR_DELAY, leave=False):
        each = [q.log_prob(some.unsqueeze(1)) for q in guides]
        found.append(torch.cat(each, 1).logsumexp(1) - math.log(items))
    return torch.cat(found).unflatten(0, z.shape[:2])


def _kl_per_dimension(
    guides: list[TorchDistribution], prior: TorchDistribution | None
) -> Float[np.ndarray, " dim"] | None:
    """KL divergences of normals, the mean over items; None of other distributions."""
    inner = [q.base_dist if has_density_of(q, Independent) else q for q in guides]
    known = (Normal, OneFactorNormal)  # a subclass may have another density
    if prior is None or any(type(p) not in known for p in (prior, *inner)):
        return None
    mean, variance = (
        torch.cat([getattr(q, name).flatten(0, -2) for q in guides]).double()
        for name in ("mean", "variance")
    )
    spread = prior.variance.double().squeeze(-2)
    ratio = variance / spread
    square = (mean - prior.mean.double().squeeze(-2)).square() / spread
    return plain((ratio + square - 1 - ratio.log()).mean(0) / 2)


def _spread(guides: list[TorchDistribution]) -> Float[np.ndarray, " dim"] | None:
    """The variance over items of the means, with views averaged."""
    try:
        means = [mean_of(q).mean(-2) for q in guides]
    except ValueError:
        return None
    return plain(torch.cat(means).double().var(0))
