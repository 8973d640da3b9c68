"""Imputation of absent views and classification by components of the prior."""

import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import plain
from ..bounds import weighted_shares
from ..data.batches import Loadable, Views
from ..data.splits import Groups
from ..joint import Joint, mean_of
from ..terms import Batch
from .containers import pareto_k
from .evidence import RELIABLE_K
from .items import BAR_DELAY, chunks, evaluating
from .joints import (
    check_density,
    check_guides,
    check_no_covariates,
    check_proper,
    check_spread,
    checked,
    decoded,
    joint_of,
    mean_views,
)
from .representation import Images, joined

__all__ = ["classify", "complete"]


@typed
def complete(
    objective: nn.Module,
    data: Groups | Batch | DataLoader,
    *,
    draws: int | None = None,
    batch_size: int = 64,
) -> Images:
    r"""Impute absent views: the posterior predictive of every view given the present.

    .. math:: p(x_\text{absent} \mid x_\text{present}) \approx \int
        p(x_\text{absent} \mid z_\text{absent}) \,
        p(z_\text{absent} \mid z_\text{present}, h) \,
        q(z_\text{present} \mid x_\text{present}, h) \, q(h) \, dz \, dh

    with random hyper-parameters h, if there are any. To generate one modality from
    another, mark it as absent. Observed contents of the data are conditioned on too.
    The result is an array (item, view, \*event), with a leading axis of draws; for
    several modalities, a tuple of these.

    Arguments:
        data: `Groups` or a `Batch`, with `present`; or a DataLoader of Batches that
            does not shuffle.
        draws: The number of draws of x, each with its own z and h. None means the mean
            of p(x_v | z_v) at the mean of z, and h at the median of its guide, which is
            not the posterior predictive mean; that is the mean of draws.

    Raises:
        ValueError: Without a joint distribution, or for data outside its support.
    """
    draws = None if draws is None else whole("draws", draws)
    joint = joint_of(objective, "completions")
    if isinstance(data, Batch):
        known = data.covariates
        data = Groups(data.views, None, data.present, data.content, covariates=known)
    parts = []
    with evaluating(objective) as like:
        for batch in checked(joint, data, like, None, batch_size, "complete"):
            parts.append(_completed(joint, batch, draws))
    return joined(joint, parts, axis=0 if draws is None else 1)


@typed
def classify(
    objective: nn.Module,
    data: Loadable,
    *,
    views: Views | None = None,
    draws: int | None = None,
    weighted: bool = False,
    batch_size: int = 64,
) -> Float[np.ndarray, "item component"]:
    r"""Classify each item by the components of a mixture prior.

    By default it is the mean responsibility under the guide,

    .. math:: E_{q(h) \, q(z \mid x, h)} [p(k \mid z_1, \dots, z_V, h)],

    for which nothing is decoded; h are random hyper-parameters. That is :math:`p(k
    \mid x_1, \dots, x_V)` as far as q is the posterior of z and h. Under the guide
    `Coupled` it is :math:`E_{q(h)} [q(k \mid x, h)]`, without draws of z.

    `weighted` draws have the importance weights of `evidence`, which make it p(k|x)
    itself, in the limit of many draws, whatever the guide:

    .. math:: p(k \mid x) = \frac{E_q[w \, p(k \mid z)]}{E_q[w]}, \qquad
        w = \frac{p(x, z)}{q(z \mid x)}

    If the joint was fitted with observed contents, components are classes, and this is
    a classifier. Contents of the data are ignored.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one per modality; or a DataLoader that does not shuffle.
        views: A sampler of views, all of which are conditioned on. By default an item
            is its only view.
        draws: The number of draws of q, each with its own h; by default 16, or 1,000 if
            weighted.
        weighted: Whether draws are weighted. A warning says for how many items the
            Pareto k̂ of the weights is above 0.7, so that the shares are unreliable.

    Raises:
        ValueError: If there is no joint distribution with a mixture prior, or the data
            are outside the support of the likelihood; if draws are weighted, also where
            there is no `evidence`.
    """
    draws = whole("draws", (1000 if weighted else 16) if draws is None else draws)
    joint = joint_of(objective, "a classification")
    joint.prior.component()  # an error if there are no components
    if weighted:
        for check in (check_density, check_proper, check_spread):
            check(joint, "weighted draws")
    parts, tails = [], []
    with evaluating(objective) as like:
        for batch in checked(joint, data, like, views, batch_size, "classify"):
            batch = batch._replace(content=None)
            if weighted:
                check_guides(joint, batch, "weighted draws", weighted=True)
                share, k = _weighted(joint, batch, draws)
                tails.append(k)
            else:
                share = plain(joint.responsibilities(batch, draws))
            parts.append(share)
    if tails and (bad := int((np.concatenate(tails) > RELIABLE_K).sum())):
        n = sum(map(len, parts))
        warnings.warn(
            f"Pareto k̂ is above {RELIABLE_K} for {bad} of {n} items, whose shares of "
            "components are unreliable; raise draws, or fit the guide to these items",
            stacklevel=3,
        )
    return np.concatenate(parts)


def _weighted(
    joint: Joint, batch: Batch, draws: int
) -> tuple[Float[np.ndarray, "item component"], Float[np.ndarray, " item"]]:
    """p(k|x) by importance sampling, and the Pareto k̂ of each item."""
    each = [weighted_shares(joint, batch, n) for n in chunks(draws, batch)]
    log_weight, log_share = (torch.cat(part) for part in zip(*each, strict=True))
    k = pareto_k(plain(log_weight.T))
    weight = log_weight.double().softmax(0).unsqueeze(-1)
    return plain((weight * log_share.exp()).sum(0)), k


def _completed(joint: Joint, batch: Batch, draws: int | None) -> list[np.ndarray]:
    """For each modality the mean at the mean of z, or draws."""
    q, found = joint.encode(batch), []
    widths, known = batch.widths, batch.covariates
    for p in decoded(joint, q.sample(), widths, known):
        check_no_covariates(p)
    if draws is None:
        z = joint.prior.centre(mean_of(q))
        if not bool(z.isfinite().all()):
            raise ValueError(
                "expected a finite mean of q(z|x), got NaN or infinity, as for absent "
                f"views where p(z|y) of {joint.prior} has no mean; give draws=…"
            )
        return mean_views(joint, z, widths, covariates=known)
    for n in tqdm(chunks(draws, batch), "draws", delay=BAR_DELAY, leave=False):
        each = decoded(joint, joint.draw(batch, n)[0], widths, known)
        found.append([plain(p.sample()) for p in each])
    return [np.concatenate(part) for part in zip(*found, strict=True)]
