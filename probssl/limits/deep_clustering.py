r"""DeepCluster: alternate K-means on z with a classification by its pseudo-labels.

Deep Clustering for Unsupervised Learning of Visual Features (Caron et al., 2018)
https://arxiv.org/abs/1807.05520

The choices: p(y) categorical, 1/K for each of K clusters; p(z|y = k) von Mises-Fisher
around c_k with concentration κ (or another, such as N(c_k, s² I)); the cluster a_i of
each item, its pseudo-label, is a point estimate that is kept between rounds. z is kept
informative by H[y] = log K: weights make all clusters count the same,

.. math:: w_i = \frac{N}{K N_{a_i}}, \qquad
    E w_i \log p(z_i \mid y = a_i) - E w_i \log \frac1K \sum_k p(z_i \mid y = k)
    = \log K - E w_i \, \text{cross-entropy}(a_i)

with N_k items in cluster k; in the weights K counts the clusters that are not empty.
The authors sample items uniformly over clusters instead, which has the same mean. The
logits are those of their linear classifier, with features and weights of unit length:
:math:`\kappa \, c_k^\top z`. For a Gaussian they are
:math:`c_k^\top z / s^2 - \lVert c_k \rVert^2 / 2 s^2`.

The limit: hard expectation maximisation. q(z|x) → a point, the posterior of y → its
mode, found by K-means, and H[z] → the cross-entropy under the mixture, an upper bound.

Status: identity of the published loss with these terms; surrogate of the likelihood of
the mixture: assignments lag behind z, and an assignment that maximises the alignment
ignores the entropy. It drops the decoder, the noise of the encoder, and of the
published recipe the whitening of the input of K-means (not its unit length) and the new
classifier of each round: here the c_k restart at the means.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..arguments import whole
from ..priors import Prior, Spherical
from ..runtime.buffers import register_unknown
from ..runtime.distributed import gather
from ..terms import Batch, Terms, check_rows
from ._place import ONE_OF_K, SHARES, VMF, Place
from ._prototypes import Clustered, k_means, points_of

__all__ = ["DeepClustering"]


class DeepClustering(Clustered):
    r"""Classification by the pseudo-labels of K-means, per view, in nats.

    Pseudo-labels are random until `assign` is called with the representations of all
    items; `train.fit_rounds` does so before every round:

    ``fit_rounds(o, data, lambda: o.assign(ps.embed(o, data, layer="projector")))``

    (without a projector ``layer="backbone"``). One view is enough. Batches need
    `index`, which `fit` sets for data that do not come from a DataLoader.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        components: The number K of clusters.
        items: The number N of items in the training set.
        prior: The prior whose kernel is p(z|y); None means von Mises-Fisher with
            κ = 10. With ``Gaussian(None, scale)`` z may grow without bound from round
            to round.
        balanced: Whether all clusters count the same, whatever their size.
        dim: The dimension of z; None takes it from the projector or the encoder.

    Raises:
        ValueError: If there are fewer items than clusters, a number is out of its
            range, or the dimension is not known.
    """

    place = Place(
        2018,
        ONE_OF_K,
        VMF,
        SHARES("equal shares of components"),
        "Deep clustering is log K minus cross-entropy",
    )

    least = 1
    assignment: Tensor
    weight: Tensor
    population: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        components: int,
        items: int,
        projector: nn.Module | None = None,
        *,
        prior: Prior | None = None,
        balanced: bool = True,
        dim: int | None = None,
    ) -> None:
        prior = Spherical(None, 10.0) if prior is None else prior
        super().__init__(encoder, prior, components, projector, dim)
        self.items = whole(
            "items", items, components, hint="give len(data), or fewer components"
        )
        self.components = components
        self.balanced = balanced
        start = torch.arange(items)[torch.randperm(items)] % components
        self.register_buffer("assignment", start)
        self.register_buffer("weight", self._weights(start))
        # The number of items in the data set of `fit`, to be compared with `items`.
        register_unknown(self, "population")

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        index = gather(batch.rows)
        log_density = self.entropy.log_density(z, self.prior)
        cluster = self.assignment[index]
        place = cluster.expand(log_density.shape[:2]).unsqueeze(-1)
        weight = self.weight[cluster]
        log_mixture = log_density.logsumexp(-1) - math.log(self.components)
        return Terms(
            entropy=-(weight * log_mixture).mean(),
            alignment=(weight * log_density.gather(-1, place).squeeze(-1)).mean(),
        )

    @torch.no_grad()
    def assign(self, z: Float[Any, "item dim"], seed: int = 0) -> None:
        """Assign the items to clusters by K-means, and move the c_k to its means.

        Arguments:
            z: The output of the projector, or else of the encoder, for each item of the
                training set, in its order: a tensor or array.
            seed: The seed of K-means.

        Raises:
            ValueError: If there is not one representation for each item, or there are
                fewer distinct ones than clusters.
        """
        layer = "backbone" if self.projector is None else "projector"
        points = points_of(z, self.items, self.entropy.dim, layer)
        points = self.prior.centre(points)  # the c_k are mapped to the support later
        assignment, centres = k_means(points, self.components, seed)
        self.assignment.copy_(assignment)
        self.weight.copy_(self._weights(assignment))
        self.entropy.centres.copy_(self.prior.centre(centres))

    def check(self, batch: Batch) -> None:
        """Raise an error if rows are unknown or out of range, or views are absent."""
        super().check(batch)
        check_rows(batch, self.items, self.population)

    def _weights(self, assignment: Int[Tensor, " item"]) -> Float[Tensor, " component"]:
        sizes = torch.bincount(assignment, minlength=self.components)
        taken = sizes > 0
        if not self.balanced:
            return taken.to(torch.get_default_dtype())
        equal = self.items / (taken.sum() * sizes.clamp(min=1))
        return equal.where(taken, 0.0)
