r"""CLIP and InfoNCE: contrast two modalities, or two views, within a batch.

Learning Transferable Visual Models From Natural Language Supervision
(Radford et al., 2021)
https://arxiv.org/abs/2103.00020
Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018),
the source of the InfoNCE loss
https://arxiv.org/abs/1807.03748

The choices: p(y) empirical, y = the item's representation from the other modality;
p(z|y) von Mises-Fisher with concentration κ = 1/τ, τ learned; z is kept informative by
a kernel density estimate of the H[z] of one modality, with kernels at the other's z.

.. math:: \frac12 \sum_v E \log p(z_v \mid y = z_{\bar v}) + \hat H[z]
    = \log N - \tfrac12 (\text{CE}_\text{rows} + \text{CE}_\text{columns})

with the cross-entropies of finding, from the cosines over τ, the positive among the N
items of the batch. That is instance discrimination with the batch as p(y):

.. math:: \text{InfoNCE} = -E \log p(y = i \mid z_i), \qquad
    p(y = i \mid z) = \frac{p(z \mid y = i)}{\sum_j p(z \mid y = j)}

In expectation the value is a lower bound on the mutual information of the modalities;
it cannot exceed log N. With more than two views the sum runs over the items in all the
other views.

The limit: that of SimCLR; q → a point on the sphere, the content plugged in, and H[z] →
its kernel estimate.

Status: identity. It drops the decoders, the noise of the encoders, and the uncertainty
of y. Nothing spreads z within one modality: the two may occupy separate cones.
"""

from pyro.distributions import TorchDistribution
from torch import nn

from ..entropies import KernelDensity
from ..hyper import Learned, Reciprocal
from ..priors import Spherical
from ._base import Embedding
from ._place import KERNEL, OTHER_VIEW, VMF, Place

__all__ = ["CLIP"]

PUBLISHED_TEMPERATURE = Learned(0.07)
LEAST_TEMPERATURE = 0.01  # of a learned one: logits are at most 100, as published


class CLIP(Embedding):
    r"""von Mises-Fisher alignment plus a kernel density per modality, in nats.

    Arguments:
        encoder: `nn.PerModality` for views of several kinds; one module
            (n, \*event) -> (n, dim) for views of one kind, which gives InfoNCE.
        projector: A projection head shared by all modalities; separate heads belong in
            the encoders.
        temperature: The temperature :math:`\tau = 1 / \kappa`: a number,
            ``learned(number)``, which stays above 0.01, or a Pyro distribution, which
            gives it a pseudo-posterior (see `Embedding`).

    Raises:
        ValueError: If the temperature is not positive, or a learned one starts at 0.01
            or below.
    """

    place = Place(
        2021,
        OTHER_VIEW("the other modality"),
        VMF,
        KERNEL("kernel density of z"),
        "CLIP is log N minus the mean of both cross-entropies",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        temperature: float | Learned | TorchDistribution = PUBLISHED_TEMPERATURE,
    ) -> None:
        floor = LEAST_TEMPERATURE if isinstance(temperature, Learned) else 0.0
        prior = Spherical(None, Reciprocal(temperature, "temperature", floor))
        entropy = KernelDensity(same_view=False)
        super().__init__(encoder, prior, entropy, projector=projector, plug_in=True)
