"""Imputation of absent views and classification by components of the prior."""

import numpy as np
from jaxtyping import Float
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import plain
from ..data.batches import Loadable, Views
from ..data.splits import Groups
from ..joint import Joint
from ..terms import Batch
from .items import BAR_DELAY, chunks, evaluating
from .joints import checked, decoded, joint_of, mean_views
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
        p(z_\text{absent} \mid z_\text{present}) \,
        q(z_\text{present} \mid x_\text{present}) \, dz

    To generate one modality from another, mark it as absent. Observed contents of the
    data are conditioned on too. The result is an array (item, view, \*event), with a
    leading axis of draws; for several modalities, a tuple of these.

    Arguments:
        data: `Groups` or a `Batch`, with `present`; or a DataLoader of Batches that
            does not shuffle.
        draws: The number of draws of x. None means the mean of p(x_v | z_v) at the mean
            of z, which is not the posterior predictive mean; that is the mean of draws.

    Raises:
        ValueError: Without a joint distribution, or for data outside its support.
    """
    draws = None if draws is None else whole("draws", draws)
    joint = joint_of(objective, "completions")
    if isinstance(data, Batch):
        data = Groups(data.views, None, data.present, data.content)
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
    draws: int = 16,
    batch_size: int = 64,
) -> Float[np.ndarray, "item component"]:
    r"""Return :math:`p(k \mid x_1, \dots, x_V)` of each item under a mixture prior.

    If it was fitted with observed contents, components are classes, and this is a
    classifier. Contents of the data are ignored.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one per modality; or a DataLoader that does not shuffle.
        views: A sampler of views, all of which are conditioned on. By default an item
            is its only view.
        draws: The number of draws of q to average over; exact without draws under the
            guide `Coupled`.

    Raises:
        ValueError: If there is no joint distribution with a mixture prior, or the data
            are outside the support of the likelihood.
    """
    draws = whole("draws", draws)
    joint = joint_of(objective, "a classification")
    parts = []
    with evaluating(objective) as like:
        for batch in checked(joint, data, like, views, batch_size, "classify"):
            parts.append(plain(joint.responsibilities(batch, draws)))
    return np.concatenate(parts)


def _completed(joint: Joint, batch: Batch, draws: int | None) -> list[np.ndarray]:
    """For each modality the mean at the mean of z, or draws."""
    q, found = joint.encode(batch), []
    if draws is None:
        z = joint.prior.on_support(q.mean)
        return mean_views(joint, z, batch.widths)
    for n in tqdm(chunks(draws, batch), "draws", delay=BAR_DELAY, leave=False):
        each = decoded(joint, q.sample((n,)), batch.widths)
        found.append([plain(p.sample()) for p in each])
    return [np.concatenate(part) for part in zip(*found, strict=True)]
