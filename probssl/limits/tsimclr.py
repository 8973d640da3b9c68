r"""t-SimCLR: contrastive learning with the heavy-tailed kernel of t-SNE.

Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
(Hu et al., 2023)
https://arxiv.org/abs/2205.14814
Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
https://jmlr.org/papers/v9/vandermaaten08a.html

The choices: p(y) empirical, y = the other view; p(z|y) the kernel of t-SNE, Student's t
with the exponent of one dimension; z is kept informative by its collision entropy,
estimated with the same kernel over all pairs of the batch.

.. math:: E_{v \ne w} \log p(z_w \mid y = z_v) + \hat H_2[z]
    = \log M (M - 1) - \frac{\nu + 1}2 E \log \Big(1 + \frac{D^+}{\tau \nu}\Big)
    - \log \sum_{i \ne j} \Big(1 + \frac{D_{ij}}{\tau \nu}\Big)^{-(\nu + 1) / 2}

with D the squared distances, D⁺ those of positive pairs, and M representations. The
constant of the kernel cancels. With P uniform over positive pairs, and Q the kernel,
normalised over all pairs, it is t-SNE's divergence, up to a constant:

.. math:: \text{value} = \log \frac{M - 1}{V - 1} - KL(P \,\|\, Q)

SimCLR's value likewise is the divergence of SNE, with P and Q normalised for each
representation.

The limit: q → a point, the content plugged in, H[z] → its kernel estimate in the bound
behind `Embedding`, and then :math:`H_2[z] \le H[z]` in place of H[z]. For ν → ∞ the
kernel is Gaussian with variance τ.

Status: identity, with :math:`H_2` for H. The kernel is a density only for dim < ν + 1;
above, as for the published dim 128 and ν = 5, only the sum of the terms has a meaning.
It drops the decoder, the noise of the encoder, and the uncertainty of y.
"""

import math

from torch import Tensor, nn

from ..arguments import positive
from ..entropies.collision import Collision
from ..priors import TSNE
from ._base import Embedding
from ._place import COLLISION, OTHER_VIEW, STUDENT, Place

__all__ = ["TSimCLR"]


class TSimCLR(Embedding):
    r"""Heavy-tailed alignment plus collision entropy, per view, in nats.

    z is not normalised: to stretch it by s is to divide τ by s².

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        dof: The degrees of freedom :math:`\nu`.
        temperature: The temperature :math:`\tau`, a squared length.

    Raises:
        ValueError: If dof or temperature is not a positive finite number.
    """

    place = Place(
        2023,
        OTHER_VIEW,
        STUDENT,
        COLLISION("collision entropy"),
        "t-SimCLR is the log of all pairs minus its loss",
    )

    prior: TSNE

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        dof: float = 5.0,
        temperature: float = 8.0,
    ) -> None:
        temperature = positive("temperature", temperature, "8 is published")
        prior = TSNE(None, math.sqrt(temperature), dof)
        super().__init__(encoder, prior, Collision(), projector=projector, plug_in=True)

    @property
    def temperature(self) -> Tensor:
        r"""The temperature :math:`\tau`."""
        return self.prior.scale().square()
