r"""The entropy of z from K clusters (prototypes) of equal weight, with Sinkhorn codes.

.. math:: p(y = k) = \frac1K, \qquad p(z \mid y = k) = p(z \mid y = c_k)

around prototypes c_k, with the kernel of the prior.

References:
    Unsupervised Learning of Visual Features by Contrasting Cluster Assignments
    (Caron et al., 2020)
    https://arxiv.org/abs/2006.09882
    Sinkhorn Distances: Lightspeed Computation of Optimal Transport (Cuturi, 2013)
    https://arxiv.org/abs/1306.0895
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import at_least, positive, whole
from ..priors import Prior
from .base import Entropy, Views

__all__ = ["Clusters", "Equipartition", "sinkhorn"]


@torch.no_grad()
def sinkhorn(
    log_density: Float[Tensor, "*batch n component"],
    temperature: float | Tensor = 1.0,
    iterations: int = 3,
) -> Float[Tensor, "*batch n component"]:
    r"""Sinkhorn's algorithm: soft assignments Q of the items to clusters of equal size.

    .. math:: Q_{ik} = u_i \, p(z_i \mid k)^{1 / \epsilon} \, w_k, \qquad
        \sum_k Q_{ik} = 1, \qquad \sum_i Q_{ik} \to \frac nK

    Among all Q with these sums it maximises :math:`\sum_{ik} Q_{ik} \log p(z_i \mid k)
    + \epsilon H[Q]`: optimal transport with an entropic penalty. Columns and rows are
    normalised in turn, in log space, rows last: rows sum to one exactly, columns as the
    iterations converge. Without iterations Q is the posterior of the cluster. The codes
    carry no gradient (stop-gradient).

    Arguments:
        log_density: :math:`\log p(z_i \mid k)`, up to a constant for each item, of
            the items of all ranks.
        temperature: The temperature :math:`\epsilon` that divides the log-density.
        iterations: The number of iterations.

    Raises:
        ValueError: If the temperature is a number that is not positive, or the number
            of iterations is negative.
    """
    if not isinstance(temperature, Tensor):  # to read a tensor would synchronise
        temperature = positive("temperature", temperature)
    iterations = whole("iterations", iterations, 0)
    log_codes = log_density / temperature
    for _ in range(iterations):
        log_codes = log_codes.log_softmax(-2).log_softmax(-1)
    return log_codes.softmax(-1)


class Clusters(Entropy):
    r"""The cross-entropy of z under a mixture of K equal clusters, at least H[z].

    .. math:: -E \log \frac1K \sum_k p(z \mid y = c_k)

    Maximised alone, it pushes the c_k away from z: use it in objectives whose alignment
    also places the c_k. `Equipartition` is for all others.

    Arguments:
        components: The number K of clusters.
        dim: The dimension of z.
        spread: The standard deviation of the c_k at initialisation.

    Raises:
        TypeError: If components or dim is not a whole number.
        ValueError: If components is below 2, or dim below 1.
    """

    def __init__(self, components: int, dim: int, spread: float = 1.0) -> None:
        super().__init__()
        self.components = whole("components", components, 2, hint="100 is a start")
        self.dim = whole("dim", dim, hint="give the dimension of z")
        at_least("spread", spread, 0, "1 is usual")
        self.centres = nn.Parameter(spread * torch.randn(components, dim))

    def log_density(
        self,
        z: Views,
        prior: Prior,
        centres: Float[Tensor, "component dim"] | None = None,
    ) -> Float[Tensor, "view batch component"]:
        r"""Return :math:`\log p(z \mid y = c_k)` for every cluster, in nats.

        Arguments:
            centres: In place of its own prototypes.

        Raises:
            ValueError: If z has another dimension than the clusters.
        """
        if z.shape[-1] != self.dim:
            raise ValueError(
                f"expected z with dim {self.dim} as its last axis, got shape "
                f"{tuple(z.shape)}; build the clusters with dim={z.shape[-1]}"
            )
        centres = prior.on_support(self.centres if centres is None else centres)
        return prior.log_kernel(centres, z.transpose(0, 1), plug_in=True).mT

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        log_sum = self.log_density(z, prior).logsumexp(-1)
        return math.log(self.components) - log_sum.mean()


class Equipartition(Clusters):
    r"""The entropy of z in K clusters of equal size, by Sinkhorn codes, as in SwAV.

    .. math:: \hat H[z] = -\frac1n \sum_i \sum_k Q_{ik} \big( \log p(z_i \mid k)
        - \log K Q_{ik} \big) \ge -\frac1n \sum_i \log \frac1K \sum_k p(z_i \mid k)

    with codes Q of `sinkhorn`. By Jensen's inequality it is an upper bound on the
    cross-entropy of z under the mixture, with equality iff Q is the posterior of the
    cluster, and so in the mean an upper bound on H[z]: too high by the divergences of z
    from the mixture and of Q from the posterior. On K clusters far apart it is log K
    plus the entropy of one cluster.

    The objective maximises the bound in z, while the prototypes minimise it, to make it
    tight: their gradient is reversed, and the value has a saddle point.

    Arguments:
        components: The number K of clusters; their prototypes start as standard normal
            draws, mapped to the support of the prior.
        dim: The dimension of z.
        temperature: The temperature of the codes; 1 gives the tightest bound with equal
            clusters, less makes the codes harder.
        iterations: Iterations of Sinkhorn's algorithm, at least 1: without any the
            clusters are of any size, which is `Clusters`.

    Raises:
        TypeError: If a number is of the wrong type.
        ValueError: If components is below 2, dim below 1, the temperature not positive,
            or iterations below 1.
    """

    def __init__(
        self,
        components: int,
        dim: int,
        *,
        temperature: float = 1.0,
        iterations: int = 3,
    ) -> None:
        super().__init__(components, dim)
        self.temperature = positive("temperature", temperature)
        self.iterations = whole("iterations", iterations, hint="else take Clusters")

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        reversed_ = 2 * self.centres.detach() - self.centres  # gradient times −1
        log_density = self.log_density(z, prior, reversed_)
        codes = sinkhorn(log_density, self.temperature, self.iterations)
        bound = (codes * log_density + torch.special.entr(codes)).sum(-1)
        return math.log(self.components) - bound.mean()
