r"""Prototypes: a content that is one of K clusters, shared by SwAV, DINO and others.

.. math:: p(y = k) = \frac1K, \qquad p(z_v \mid y = k) = p(z_v \mid y = c_k)

A code q assigns an item to clusters. The log-density of z under its code and the
cross-entropy of z under the mixture add up to a classification by cluster:

.. math:: E \sum_k q(k) \log p(z \mid y = k) - E \log \frac1K \sum_k p(z \mid y = k)
    = \log K + E \sum_k q(k) \log p(y = k \mid z)

If the codes use all clusters equally, so that H[y] = log K, that is a lower bound on
the mutual information of y and z.
"""

import math
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..arrays import tensor
from ..entropies.equipartition import Clusters
from ..nn import PerModality, dim_of
from ..priors import Prior
from ..runtime.threads import LOCK
from ..terms import Terms
from ._base import Embedding, check_not_random

__all__ = ["Clustered", "full_views", "k_means", "points_of", "swapped"]


class Clustered(Embedding):
    r"""An embedding whose content is one of K clusters, around learned prototypes c_k.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        prior: The prior whose kernel is p(z|y).
        components: The number K of clusters.
        dim: The dimension of z; None takes `out` of the projector or `dim` of the
            encoder.
    """

    entropy: Clusters

    def __init__(
        self,
        encoder: nn.Module,
        prior: Prior,
        components: int,
        projector: nn.Module | None = None,
        dim: int | None = None,
    ) -> None:
        check_not_random(prior)
        dim = dim_of(encoder, projector, dim)
        clusters = Clusters(components, dim, 1 / math.sqrt(dim))  # lengths of about 1
        super().__init__(encoder, prior, clusters, projector=projector)


def points_of(
    z: Float[Any, "item dim"], items: int, dim: int, layer: str
) -> Float[Tensor, "item dim"]:
    """Return finite z of a layer on the CPU, one of dimension `dim` for each item."""
    points = tensor(z, "z").cpu()
    if points.shape != (items, dim) or not points.isfinite().all():
        raise ValueError(
            f"expected finite z of shape {(items, dim)}, got {tuple(points.shape)}; "
            f'give ps.embed(objective, data.train, layer="{layer}")'
        )
    return points


def k_means(
    points: Float[Tensor, "item dim"], components: int, seed: int, starts: int = 1
) -> tuple[Int[Tensor, " item"], Float[Tensor, "component dim"]]:
    """Return the cluster of each point and the cluster means, started by K-means++.

    Arguments:
        starts: The number of restarts; the best one counts.

    References:
        k-means++: The Advantages of Careful Seeding (Arthur and Vassilvitskii, 2007)
        https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    means = KMeans(components, n_init=starts, random_state=seed)
    # On small data several threads are slower than one.
    with threadpool_limits(1 if points.numel() < 1_000_000 else None):
        with LOCK, catch_warnings():
            simplefilter("ignore", ConvergenceWarning)  # the error below covers it
            found = torch.from_numpy(means.fit_predict(points.numpy())).long()
    distinct = len(found.unique())
    if distinct < components:
        raise ValueError(
            f"expected {components} clusters, got {distinct} distinct ones among "
            f"{len(points)} items; lower components, or look for an encoder whose "
            "representations have collapsed"
        )
    return found, torch.from_numpy(means.cluster_centers_)


def swapped(
    codes: Float[Tensor, "coded batch component"],
    log_density: Float[Tensor, "view batch component"],
) -> Terms:
    r"""Return the terms of swapped prediction: each view with the others' codes.

    .. math:: E_{w \ne v} \sum_k q_w(k) \log p(z_v \mid k)
        - E_{w \ne v} \log \frac1K \sum_k p(z_v \mid k)

    Arguments:
        codes: The codes q of the first views.
        log_density: :math:`\log p(z_v \mid k)` of all views.
    """
    coded, items, components = codes.shape
    alignment = codes.flatten(1) @ log_density.flatten(1).mT / items
    entropy = math.log(components) - log_density.logsumexp(-1).mean(-1)
    itself = torch.eye(*alignment.shape, dtype=torch.bool, device=codes.device)
    pairs = coded * (len(log_density) - 1)
    return Terms(
        entropy=entropy.expand_as(alignment).masked_fill(itself, 0.0).sum() / pairs,
        alignment=alignment.masked_fill(itself, 0.0).sum() / pairs,
    )


def full_views(encoder: nn.Module, views: Any) -> Any:
    """Return the full-size views: those of the first size, or of all modalities."""
    if isinstance(views, tuple) and not isinstance(encoder, PerModality):
        return views[0]
    return views
