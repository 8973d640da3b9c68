r"""PID: a base objective plus the prediction of pseudo-labels from each view.

Rethinking Self-Supervised Learning Within the Framework of Partial Information
Decomposition (Mohamadi et al., 2024)
https://arxiv.org/abs/2412.02121

The choices: those of the base for its lower tier, the views of one item. For the upper
tier, :math:`p(\hat y \mid z_v)` is a linear softmax of each view, and the pseudo-label
:math:`\hat y_i` of an item, its cluster under K-means, is a point estimate that is kept
between refreshes,

.. math:: \text{base} + \alpha \sum_v E \log p(\hat y \mid z_v), \qquad
    p(\hat y = k \mid z) = \operatorname{softmax}_k (w_k^\top z + b_k)

The term of a view is, up to the entropy of the labels, a lower bound on its mutual
information with them. In a partial information decomposition, with R for redundant, U
for unique and S for synergistic information of the two views,

.. math:: H[\hat y] + E \log p(\hat y \mid z_v) \le I(z_v; \hat y) = R + U_v, \qquad
    \sum_v I(z_v; \hat y) = 2 R + U_1 + U_2

so that unique parts count, which the alignment of views ignores. S does not: that would
take a classifier of both views at once.

The limit: the prior `TwoTier`, equal clusters of items and views around the content of
their item. For one view it gives

.. math:: p(z_v \mid k) = N(m_k, s^2 I), \quad s^2 = \tau^2 + \sigma^2, \qquad
    \log p(k \mid z_v) = \frac{m_k^\top z_v}{s^2} - \frac{\lVert m_k \rVert^2}{2 s^2}
    + \log \pi_k - \text{normaliser}

which is that linear softmax; for z of unit length so is that of von Mises-Fisher
clusters of equal concentration. The density of the clusters is replaced by their
posterior, the posterior by its mode, and the joint posterior of all views by one for
each view. Behind a projector, which keeps what views share, the base may use one z and
the clusters another, the encoder's output.

Status: surrogate of the cluster tier of `TwoTier`, as the base is of the other.
Pseudo-labels lag behind z and ignore their uncertainty; :math:`\alpha` gives their
likelihood a weight below 1. SimVAE with `TwoTier` sums the cluster out instead.

Not published and chosen here: the classifier; the layer that it and K-means see, for
which "learned representations" is read as the evaluated ones; unit length; and that the
classifier is kept at a refresh. The published K is the number of classes, which uses
the labels; `evaluation.number_of_components` estimates K from z alone.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, one_hot

from ..arguments import at_least, choice, whole
from ..nn import dim_of
from ..runtime.buffers import register_varying
from ..terms import Batch, Terms, check_rows
from ._base import Extension
from ._prototypes import k_means

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
        components: The number K of clusters. The number of classes uses the labels, and
            should be reported as such.
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
        TypeError: If the base is no `JointEmbedding`.
        ValueError: If there are fewer items than clusters or fewer than two clusters,
            the weight is negative or not finite, there is no such layer, or the
            dimension is not known.
    """

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
        hint = "give the length of the training set, or fewer components"
        self.items = whole("items", items, components, hint=hint)
        at_least("weight", weight, 0, "published is a rise to 0.1")
        choice("layer", layer, ("backbone", "projector"))
        self.unit = unit
        self.layer = "backbone" if self.projector is None else layer
        behind = self.projector if self.layer == "projector" else None
        dim = dim_of(self.encoder, behind, dim)
        self.classifier = _Classifier(dim, components)
        register_varying(self, "weight", weight)
        self.register_buffer("assignment", torch.full((items,), -1))
        # The number of items in the data set of `fit`, to be compared with `items`.
        self.register_buffer("population", None)

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
        return terms._replace(alignment=terms.alignment + self.weight * log_label)

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
        points = self._points(z)
        found, _ = k_means(points, self.components, seed, STARTS)
        before = self.assignment.cpu()
        if (before < 0).any():
            weight, bias = _start(points, found, self.components)
            self.classifier.weight.copy_(weight)
            self.classifier.bias.copy_(bias)
        else:
            found = _matched(found, before, self.components)
        self.assignment.copy_(found)

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch, or items are not known."""
        super().check(batch)
        check_rows(batch, self.items)
        if self.population is not None and self.population != self.items:
            raise ValueError(
                f"expected the {self.items} items that the objective was built with, "
                f"got {int(self.population)}; build it with items=len(data)"
            )

    def _logits(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch k"]:
        if z.shape[-1] != self.classifier.in_features:
            raise ValueError(
                f"expected z with dim {self.classifier.in_features}, as the classifier,"
                f" got {z.shape[-1]}; build the objective with dim={z.shape[-1]}"
            )
        return self.classifier(normalize(z, dim=-1) if self.unit else z)

    def _points(self, z: Float[Any, "item dim"]) -> Float[Tensor, "item dim"]:
        points = torch.as_tensor(z).detach().cpu()
        expected = (self.items, self.classifier.in_features)
        if tuple(points.shape) != expected or not points.isfinite().all():
            raise ValueError(
                f"expected finite z of shape {expected}, got {tuple(points.shape)}; "
                "give ps.embed(objective, data.train, layer=objective.layer)"
            )
        return normalize(points, dim=-1) if self.unit else points


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


def _start(
    points: Float[Tensor, "item dim"], label: Int[Tensor, " item"], components: int
) -> tuple[Float[Tensor, "component dim"], Float[Tensor, " component"]]:
    """The classifier of equal normal clusters with these members."""
    member = one_hot(label, components).to(points)
    sizes = member.sum(0)
    loc = member.mT @ points / sizes.unsqueeze(-1)
    within, total = (points - loc[label]).square(), (points - points.mean(0)).square()
    # Clusters that are points would give infinite weights.
    variance = within.mean().maximum(LEAST_VARIANCE * total.mean())
    return _classifier(loc, variance, (sizes / len(points)).log())


def _classifier(
    loc: Float[Tensor, "component dim"],
    variance: Float[Tensor, ""],
    log_share: Float[Tensor, " component"],
) -> tuple[Float[Tensor, "component dim"], Float[Tensor, " component"]]:
    r"""Weights and biases of :math:`p(k \mid z)` for clusters :math:`N(m_k, s^2 I)`."""
    return loc / variance, log_share - loc.square().sum(-1) / (2 * variance)


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
