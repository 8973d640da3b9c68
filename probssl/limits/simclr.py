r"""SimCLR: one view stands for the content, and a kernel density for the entropy.

A Simple Framework for Contrastive Learning of Visual Representations
(Chen et al., 2020)
https://arxiv.org/abs/2002.05709

The choices: p(y) empirical, y = the other view; p(z|y) von Mises-Fisher with
concentration κ = 1/τ, τ the temperature; z is kept informative by a leave-one-out
kernel density estimate of H[z] with the same kernel.

.. math:: \frac12 \sum_{v} E \log p(z_v \mid y = z_{\bar v}) + \hat H[z]
    = \log(2 N - 1) - \text{NT-Xent}

The constants of the von Mises-Fisher density cancel between the two.

The limit: q → a point on the sphere, the content plugged in, and H[z] → its kernel
estimate, in the bound of `embedding`.

Status: identity. It drops the decoder, the noise of the encoder, and the uncertainty
of y. The estimate is never above log(2N − 1) plus the kernel's constants, so neither is
the value above log(2N − 1).
"""

from pyro.distributions import TorchDistribution
from torch import nn

from ..embedding import Embedding
from ..entropies import KernelDensity
from ..hyper import Learned, Reciprocal
from ..priors import Spherical

__all__ = ["SimCLR"]


class SimCLR(Embedding):
    r"""von Mises-Fisher alignment plus kernel-density entropy, per view, in nats.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), whose output is normalised here.
        projector: A module behind it, whose output the objective sees.
        temperature: The temperature :math:`\tau = 1 / \kappa`: a number,
            ``learned(number)``, or a Pyro distribution, which gives it a
            pseudo-posterior (see `Embedding`). Fitted together with the encoder it
            follows this down, as instances are told apart ever better: for a posterior
            given an encoder, freeze the encoder.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        temperature: float | Learned | TorchDistribution = 0.5,
    ) -> None:
        prior = Spherical(None, Reciprocal(temperature, "temperature"))
        super().__init__(
            encoder, prior, KernelDensity(), projector=projector, plug_in=True
        )
        self.temperature = prior.concentration.value
