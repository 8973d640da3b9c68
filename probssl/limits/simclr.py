r"""SimCLR: positive pairs attract, all other views of the batch are negatives.

A Simple Framework for Contrastive Learning of Visual Representations
(Chen et al., 2020)
https://arxiv.org/abs/2002.05709
Decoupled Contrastive Learning (Yeh et al., 2022)
https://arxiv.org/abs/2110.06848
Cross-Batch Memory for Embedding Learning (Wang et al., 2020)
https://arxiv.org/abs/1912.06798

The choices: p(y) empirical, y = the other view; p(z|y) von Mises-Fisher with
concentration κ = 1/τ, τ the temperature; z is kept informative by a leave-one-out
kernel density estimate of H[z] with the same kernel.

.. math:: \frac12 \sum_{v} E \log p(z_v \mid y = z_{\bar v}) + \hat H[z]
    = \log(2 N - 1) - \text{NT-Xent}

The constants of the von Mises-Fisher density cancel between the two. With V views the
alignment is the mean over their ordered pairs, and each view has VN − 1 neighbours.

Decoupled, the other views of an item are not its neighbours. That removes from the
estimate what it shares with the alignment, and the value is
:math:`\log(2 N - 2) - \text{DCL}`. With a queue, representations of earlier batches are
negatives too: log(2N − 1 + |Q|) minus the loss with that many more negatives.

The limit: q → a point on the sphere, the content plugged in, and H[z] → its kernel
estimate, in the bound behind `Embedding`.

Status: identity. It drops the decoder, the noise of the encoder, and the uncertainty
of y; with a queue also the gradient through the queue. The value is at most
log(2N − 1); decoupled it has no ceiling.
"""

from pyro.distributions import TorchDistribution
from torch import nn

from ..arguments import alone
from ..entropies import KernelDensity, QueuedKernelDensity
from ..hyper import Learned, Reciprocal
from ..nn import dim_of
from ..priors import Spherical
from ._base import Embedding
from ._place import KERNEL, OTHER_VIEW, VMF, Place

__all__ = ["SimCLR"]


class SimCLR(Embedding):
    r"""von Mises-Fisher alignment plus kernel-density entropy, per view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        temperature: The temperature :math:`\tau = 1 / \kappa`: a number,
            ``learned(number)``, or a Pyro distribution, which gives it a
            pseudo-posterior (see `Embedding`). Fitted together with the encoder it
            keeps falling as instances separate; for a posterior given an encoder,
            freeze the encoder.
        decoupled: Whether the other views of an item are left out of its negatives.
        queue: The number of negatives from earlier batches. They come from older
            encoders, so that few steps should fill the queue.
        dim: The dimension of z for a queue, if the networks have no attribute `out` or
            `dim`.

    Raises:
        ValueError: If the temperature is not positive, or the queue is no whole number
            of at least 0, or its dimension is not known.
    """

    place = Place(
        2020,
        OTHER_VIEW,
        VMF,
        KERNEL("kernel density of z"),
        "SimCLR is log 2N minus 1 minus NT-Xent",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        temperature: float | Learned | TorchDistribution = 0.5,
        *,
        decoupled: bool = False,
        queue: int = 0,
        dim: int | None = None,
    ) -> None:
        prior = Spherical(None, Reciprocal(temperature, "temperature"))
        entropy = KernelDensity(same_item=not decoupled)
        if not queue:
            alone("dim", dim, "without a queue")
        else:
            entropy = QueuedKernelDensity(
                queue, dim_of(encoder, projector, dim), same_item=not decoupled
            )
        super().__init__(encoder, prior, entropy, projector=projector, plug_in=True)
