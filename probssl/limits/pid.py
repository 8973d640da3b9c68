r"""PID: a base objective plus a classification of each view by pseudo-labels.

Rethinking Self-Supervised Learning Within the Framework of Partial Information
Decomposition (Mohamadi et al., 2024)
https://arxiv.org/abs/2412.02121

The choices: those of the base for the views of an item, and a cluster for each item.
The cluster is found by K-means and kept until the next clustering; its number is the
pseudo-label :math:`\hat y`. A linear softmax classifier predicts it from one view:

.. math:: \text{value} = \text{base} + \alpha \sum_v E \log p(\hat y \mid z_v), \qquad
    p(\hat y = k \mid z) = \operatorname{softmax}_k (w_k^\top z + b_k)

Plus the entropy of the labels, the term of a view is a lower bound on the mutual
information of that view and the label. A partial information decomposition (PID) splits
what two views know about the label: R is redundant (both views have it), U_v unique to
view v, and S synergistic (only both views together have it).

.. math:: H[\hat y] + E \log p(\hat y \mid z_v) \le I(z_v; \hat y) = R + U_v, \qquad
    \sum_v I(z_v; \hat y) = 2 R + U_1 + U_2

So unique information raises the value, which the alignment of views ignores. S does
not: that would take a classifier of both views at once.

The limit: the prior `TwoTier`, in which contents are normal around the centre of their
cluster (variance τ²) and views normal around their content (variance σ²). For one view

.. math:: p(z_v \mid k) = N(m_k, s^2 I), \quad s^2 = \tau^2 + \sigma^2, \qquad
    \log p(k \mid z_v) = \frac{m_k^\top z_v}{s^2} - \frac{\lVert m_k \rVert^2}{2 s^2}
    + \log \pi_k - \text{normaliser}

which is the linear softmax above. For z of unit length, von Mises-Fisher clusters of
equal concentration give a linear softmax too. PID replaces the density of the clusters
by their posterior, the joint posterior of all views by one for each view, and the
unknown cluster by its mode. The base may compare the output of a projector, which keeps
what views share, while the clusters use the output of the encoder.

Status: surrogate of the cluster tier of `TwoTier`; the base keeps its own status. It
drops the density of the clusters and the uncertainty of pseudo-labels, which are older
than z; :math:`\alpha` below 1 gives them less weight. SimVAE with `TwoTier` sums over
the clusters instead.

The paper leaves open, and chosen here are: the classifier; the layer that it and
K-means use (the one that is evaluated); unit length; and that a new clustering keeps
the classifier. The paper takes the number of classes for K, which uses the labels;
`evaluation.number_of_components` estimates K from z alone.
"""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, one_hot

from ..arguments import at_least, choice, whole
from ..nn import dim_of
from ..runtime.buffers import register_unknown, register_varying
from ..terms import Batch, Terms, check_rows
from ._base import Extension
from ._place import ONE_OF_K, Conditional, Information, Place
from ._prototypes import k_means, points_of

__all__ = ["PID"]

STARTS = 5  # restarts of K-means; the best one counts
LEAST_VARIANCE = 1e-4  # of a cluster, as a share of the variance of z


class PID(Extension):
    r"""A base plus the log-probability of an item's pseudo-label given each view.

    Items without a pseudo-label contribute nothing: without labels, or with weight 0,
    the value is the base's, bit by bit. `assign` clusters the items, and
    `train.fit_phases` calls it after the base has been fitted alone:

    ``fit_phases(o, data, lambda: o.assign(ps.embed(o, data, layer=o.layer)), ...)``

    Batches need `index`, which `fit` sets for data that do not come from a DataLoader.
    Validation data have no pseudo-labels; measure them by the base.

    Arguments:
        base: A `JointEmbedding`.
        components: The number K of clusters.
        items: The number N of items in the training set.
        weight: The weight :math:`\alpha` of the sum over views; a buffer, which a
            schedule may set. Published is a rise from 1e-5 to 1e-1.
        layer: The layer that is clustered and classified: ``"backbone"``, the output of
            the encoder, or ``"projector"``, the z that the base compares.
        unit: Whether it is normalised to unit length first. Otherwise z may cluster by
            length.
        dim: The dimension of that layer, if the network has no attribute `out` or
            `dim`.

    Raises:
        TypeError: If the base is no `JointEmbedding`, overrides `forward` or `latents`,
            or has hooks.
        ValueError: If there are fewer items than clusters or fewer than two clusters,
            the weight is negative or not finite, there is no such layer, or the
            dimension is not known.
    """

    place = Place(
        2024,
        ONE_OF_K("cluster, then item"),
        Conditional("its base's"),
        Information("its base's, clusters"),
        "PID is the base and a weighted log-probability of each view",
    )

    assignment: Tensor
    weight: Tensor
    population: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        components: int,
        items: int,
        *,
        weight: float = 0.1,
        layer: str = "backbone",
        unit: bool = True,
        dim: int | None = None,
    ) -> None:
        super().__init__(base)
        self.components = whole("components", components, 2)
        self.items = whole(
            "items", items, components, hint="give len(data), or fewer components"
        )
        choice("layer", layer, ("backbone", "projector"))
        self.unit = unit
        self.layer = "backbone" if self.projector is None else layer
        behind = self.projector if self.layer == "projector" else None
        dim = dim_of(self.encoder, behind, dim)
        self.classifier = _Classifier(dim, components)
        check = partial(at_least, least=0, hint="published is a rise to 0.1")
        register_varying(self, "weight", weight, check)
        self.register_buffer("assignment", torch.full((items,), -1))
        # The number of items in the data set of `fit`, to be compared with `items`.
        register_unknown(self, "population")

    def extended(
        self,
        terms: Terms,
        backbone: Float[Tensor, "batch view dim"],
        z: Float[Tensor, "batch view out"],
        batch: Batch,
    ) -> Terms:
        label = self.assignment[batch.rows]
        z = backbone if self.layer == "backbone" else z
        log_probability = self._logits(z).log_softmax(-1)
        place = label.clamp(min=0).expand(z.shape[1], -1).mT.unsqueeze(-1)
        right = log_probability.gather(-1, place).sum((1, 2))
        log_label = right.masked_fill(label < 0, 0.0).mean()
        weighted = self.weight.to(log_label) * log_label
        return terms._replace(alignment=terms.alignment + weighted)

    def responsibilities(self, z: Float[Tensor, "*batch dim"]) -> Categorical:
        r"""Return :math:`p(\hat y \mid z)` of each view by itself."""
        return Categorical(logits=self._logits(z), validate_args=False)

    @torch.no_grad()
    def assign(self, z: Float[Any, "item dim"], seed: int = 0) -> None:
        r"""Cluster the items by K-means++, and keep their pseudo-labels.

        The first call starts the classifier at the posterior of equal normal clusters,
        with the means, the shares and the mean variance that K-means found. Later calls
        keep the classifier: the new clusters get the numbers of the old ones with which
        they share the most items, by the best one-to-one matching.

        Arguments:
            z: The layer's output for each item of the training set, in its order: a
                tensor or array.
            seed: The seed of K-means++.

        Raises:
            ValueError: If there is not one representation for each item, or there are
                fewer distinct ones than clusters.
        """
        points = points_of(z, self.items, self.classifier.in_features, self.layer)
        points = normalize(points, dim=-1) if self.unit else points
        found, _ = k_means(points, self.components, seed, STARTS)
        before = self.assignment.cpu()
        if (before < 0).any():
            self._start(points, found)
        else:
            found = _matched(found, before, self.components)
        self.assignment.copy_(found)

    def _start(
        self, points: Float[Tensor, "item dim"], label: Int[Tensor, " item"]
    ) -> None:
        """Set the classifier to that of equal normal clusters with these members."""
        member = one_hot(label, self.components).to(points)
        sizes = member.sum(0)
        loc = member.mT @ points / sizes.unsqueeze(-1)
        within = (points - loc[label]).square().mean()
        total = (points - points.mean(0)).square().mean()
        # Clusters that are points would give infinite weights.
        variance = within.maximum(LEAST_VARIANCE * total)
        log_share = (sizes / len(points)).log()
        self.classifier.weight.copy_(loc / variance)
        self.classifier.bias.copy_(log_share - loc.square().sum(-1) / (2 * variance))

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch, or items are not known."""
        super().check(batch)
        check_rows(batch, self.items, self.population)

    def _logits(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch k"]:
        if z.shape[-1] != self.classifier.in_features:
            raise ValueError(
                f"expected z with dim {self.classifier.in_features}, as the classifier,"
                f" got {z.shape[-1]}; build the objective with dim={z.shape[-1]}"
            )
        return self.classifier(normalize(z, dim=-1) if self.unit else z)


class _Classifier(nn.Module):
    """A linear layer that stays in float32 under autocast, as it is part of a density.

    It starts at zero and draws no random numbers, so that the base's stay the same.
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.in_features = dim
        self.weight = nn.Parameter(torch.zeros(components, dim))
        self.bias = nn.Parameter(torch.zeros(components))

    def forward(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch k"]:
        return linear(z, self.weight, self.bias)


def _matched(
    found: Int[Tensor, " item"], before: Int[Tensor, " item"], components: int
) -> Int[Tensor, " item"]:
    """The same clusters, numbered like the most similar ones before."""
    from scipy.optimize import linear_sum_assignment

    pairs = torch.bincount(components * before + found, minlength=components**2)
    old, new = linear_sum_assignment(pairs.view(components, -1).numpy(), maximize=True)
    number = torch.empty(components, dtype=torch.long)
    number[torch.from_numpy(new)] = torch.from_numpy(old)
    return number[found]
