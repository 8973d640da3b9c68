r"""The entropy of z as one of K clusters of equal weight.

.. math:: p(y = k) = \frac1K, \qquad p(z \mid y = k) = p(z \mid y = c_k)

around points c_k, the prototypes, with the kernel of the prior.

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

from ..priors import Prior
from .base import Entropy

__all__ = ["Clusters", "Equipartition", "sinkhorn"]


@torch.no_grad()
def sinkhorn(
    log_density: Float[Tensor, "*batch n component"],
    temperature: float | Tensor = 1.0,
    iterations: int = 3,
) -> Float[Tensor, "*batch n component"]:
    r"""Return codes Q, which share the items equally among the clusters.

    .. math:: Q_{ik} = u_i \, p(z_i \mid k)^{1 / \epsilon} \, w_k, \qquad
        \sum_k Q_{ik} = 1, \qquad \sum_i Q_{ik} \to \frac nK

    Of all Q with these sums it is the one with the largest
    :math:`\sum_{ik} Q_{ik} \log p(z_i \mid k) + \epsilon H[Q]`. Columns and then rows
    are normalised in turn, in log space, rows last: they sum to one exactly, columns as
    the iterations converge. Without iterations it is the posterior of the cluster. No
    gradient goes through.

    Arguments:
        log_density: :math:`\log p(z_i \mid k)`, up to a constant for each item; of
            the items of all processes.
        temperature: The temperature :math:`\epsilon`, of the log-density.
        iterations: How often columns and rows are normalised.
    """
    log_codes = log_density / temperature
    for _ in range(iterations):
        log_codes = log_codes.log_softmax(-2).log_softmax(-1)
    return log_codes.softmax(-1)


class Clusters(Entropy):
    r"""The cross-entropy of z under a mixture of K equal clusters, at least H[z].

    .. math:: -E \log \frac1K \sum_k p(z \mid y = c_k)

    Raised alone, it pushes the c_k away from z: it is for objectives that place them by
    an alignment as well. `Equipartition` is for all others.

    Arguments:
        components: The number K of clusters.
        dim: The dimension of z.
        spread: The standard deviation of the points c_k at the start.

    Raises:
        ValueError: If components is not a whole number of at least 2, or dim not of at
            least 1.
    """

    def __init__(self, components: int, dim: int, spread: float = 1.0) -> None:
        super().__init__()
        for name, value, least in (("components", components, 2), ("dim", dim, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"expected {name} as a whole number of at least {least}, got "
                    f"{value!r}; give for instance components=100 and the dim of z"
                )
        self.components, self.dim, self.spread = components, dim, spread
        self.centres = nn.Parameter(spread * torch.randn(components, dim))

    def log_density(
        self,
        z: Float[Tensor, "batch view dim"],
        prior: Prior,
        centres: Float[Tensor, "component dim"] | None = None,
    ) -> Float[Tensor, "view batch component"]:
        r"""Return :math:`\log p(z \mid y = c_k)` for every cluster, in nats.

        Arguments:
            centres: Others than its own.

        Raises:
            ValueError: If z is not of the dimension of the clusters.
        """
        if z.shape[-1] != self.dim:
            raise ValueError(
                f"expected z with dim {self.dim} as its last axis, got shape "
                f"{tuple(z.shape)}; build the clusters with dim={z.shape[-1]}"
            )
        centres = prior.on_support(self.centres if centres is None else centres)
        return prior.log_kernel(centres, z.transpose(0, 1), plug_in=True).mT

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        log_sum = self.log_density(z, prior).logsumexp(-1)
        return math.log(self.components) - log_sum.mean()


class Equipartition(Clusters):
    r"""The entropy of z that falls into K clusters of equal size.

    .. math:: \hat H[z] = -\frac1n \sum_i \sum_k Q_{ik} \big( \log p(z_i \mid k)
        - \log K Q_{ik} \big) \ge -\frac1n \sum_i \log \frac1K \sum_k p(z_i \mid k)

    with codes Q that share the items of a batch equally among the clusters. By Jensen
    it is at least the cross-entropy of z under the mixture, with equality iff Q is the
    posterior of the cluster, and so in the mean at least H[z]: too high by how far z is
    from the mixture, and Q from the posterior. On K clusters far apart it is log K plus
    the entropy of one.

    A bound from above is tight where it is least. So the prototypes follow its gradient
    down, reversed, while z follows it up: the value has a saddle point.

    Arguments:
        components: The number K of clusters; their prototypes start as standard normal
            draws, brought to the support of the prior.
        dim: The dimension of z.
        temperature: The temperature of the codes; 1 gives the tightest bound there is
            with equal clusters, less makes the codes harder.
        iterations: Of Sinkhorn's algorithm; 0 gives the posterior, and clusters of any
            size.

    Raises:
        ValueError: If components is not a whole number of at least 2, dim not of at
            least 1, the temperature not positive, or iterations negative.
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
        if not temperature > 0 or iterations < 0:
            raise ValueError(
                "expected temperature > 0 and iterations >= 0, got "
                f"{temperature} and {iterations}; 1.0 and 3 are the defaults"
            )
        self.temperature, self.iterations = temperature, iterations

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        reversed_ = 2 * self.centres.detach() - self.centres  # themselves, slope −1
        log_density = self.log_density(z, prior, reversed_)
        codes = sinkhorn(log_density, self.temperature, self.iterations)
        bound = (codes * log_density + torch.special.entr(codes)).sum(-1)
        return math.log(self.components) - bound.mean()
