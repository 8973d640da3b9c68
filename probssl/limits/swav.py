r"""SwAV: predict a view's cluster assignment, or code, from the other views.

Unsupervised Learning of Visual Features by Contrasting Cluster Assignments
(Caron et al., 2020)
https://arxiv.org/abs/2006.09882

The choices: p(y) categorical, 1/K for each of K prototypes c_k; p(z|y = k) von
Mises-Fisher around c_k with concentration 1/τ. z is kept informative by H[y] = log K:
the codes q_w of a view divide the items of a batch equally among the prototypes
(Sinkhorn's algorithm on :math:`z_w^\top c_k / \epsilon`), behind a stop-gradient.

.. math:: E_{v \ne w} \sum_k q_w(k) \log p(z_v \mid y = k)
    - E \log \frac1K \sum_k p(z_v \mid y = k) = \log K - \text{the published loss}

The constants of the von Mises-Fisher density cancel between the two.

The limit: q(z|x) → a point on the sphere, H[z] → the cross-entropy of z under the
mixture, an upper bound, and the sum over y, given all views, → the code of one of them.

Status: identity of the loss with these terms; surrogate of the likelihood of the
mixture. With the posterior of y given all views as the code, the alignment would be its
bound; the actual code comes from another view, is sharper (ε < τ) and equipartitioned.
As codes are constants, training follows the gradient of no scalar. It drops the
decoder, the noise of the encoder, and of the published recipe the queue, the frozen
first steps of the prototypes, and their number of 3000.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import positive, whole
from ..entropies.equipartition import sinkhorn
from ..hyper import Learned, Reciprocal
from ..priors import Spherical
from ..terms import Batch, Terms
from ._place import ONE_OF_K, SHARES, VMF, Place
from ._prototypes import Clustered, full_views, swapped

__all__ = ["SwAV"]


class SwAV(Clustered):
    r"""Swapped prediction of equipartitioned clusters, per view, in nats.

    For views of several sizes, such as those of `views.MultiCrop`, those of the first
    size have codes, which all other views predict.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        components: The number K of clusters, whose centres are called prototypes.
        temperature: The temperature :math:`\tau` of the clusters; a number or
            ``learned(number)``.
        epsilon: The temperature :math:`\epsilon` of the codes.
        iterations: The number of iterations of Sinkhorn's algorithm.
        dim: The dimension of z; None takes it from the projector or the encoder.

    Raises:
        ValueError: If a number is out of its range, or the dimension is not known.
    """

    place = Place(
        2020,
        ONE_OF_K,
        VMF,
        SHARES("equal shares of components"),
        "SwAV is log K minus the published loss",
    )

    prior: Spherical

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        components: int = 100,
        temperature: float | Learned = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        dim: int | None = None,
    ) -> None:
        epsilon = positive("epsilon", epsilon, "0.05 is published")
        iterations = whole("iterations", iterations, 0, hint="3 is published")
        prior = Spherical(None, Reciprocal(temperature, "temperature"))
        super().__init__(encoder, prior, components, projector, dim)
        self.epsilon, self.iterations = epsilon, iterations

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        log_density = self.entropy.log_density(z, self.prior)
        _, coded = Batch(full_views(self.encoder, batch.views)).shape
        scale = self.epsilon * self.prior.concentration()
        codes = sinkhorn(log_density[:coded], scale, self.iterations)
        return swapped(codes, log_density)
