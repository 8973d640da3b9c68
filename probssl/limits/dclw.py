r"""DCLW: decoupled SimCLR in which pairs that are far apart count more.

Decoupled Contrastive Learning (Yeh et al., 2022)
https://arxiv.org/abs/2110.06848

The choices: p(y) empirical, y = the other view; p(z|y) von Mises-Fisher with
concentration κ = 1/τ, whose logarithm has a weight for each pair of views; z is kept
informative by the decoupled kernel density estimate of SimCLR, without the item itself.

With the cosine :math:`c_i` of the two views of item i, and the sum :math:`S_{iv}` of
the kernels :math:`e^{\cos / \tau}` between its view v and all views of other items,
the published loss is

.. math:: L = -\frac{1}{2 N} \sum_{i, v} \Big( w_i \frac{c_i}\tau - \log S_{iv} \Big),
    \qquad w_i = 2 - \frac{e^{c_i / \sigma}}{\frac1N \sum_j e^{c_j / \sigma}}

The mean of the weights is 1, so that the constants of the density cancel, and

.. math:: E \, w \log p(z_w \mid y = z_v) + \hat H[z] = \log(2 N - 2) - L

As :math:`w = 1 - (c - E c) / \sigma + O(1 / \sigma^2)`, the weights charge the
log-density for its variance over items:

.. math:: E \, w \log p = E \log p - \frac\tau\sigma \mathrm{Var}(\log p)
    + O(1 / \sigma^2)

Why decouple: for each view the gradient of SimCLR's loss is exactly
:math:`S / (S + e^{c / \tau})` times that of the decoupled one with w = 1. The factor is
near 0 where the views of an item already agree, and near 1 with many negatives.

The limit: that of SimCLR; without the weights, σ → ∞, it is ``SimCLR(decoupled=True)``.

Status: surrogate, of first order in 1/σ: with weights that depend on z the first term
is no log-density. The value is log(2N − 2) minus the published loss, exactly. It drops
the decoder, the noise of the encoder, and the uncertainty of y.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import positive
from ..entropies import KernelDensity
from ..hyper import Learned, Reciprocal
from ..priors import Spherical
from ._base import Embedding, over_pairs
from ._place import KERNEL, OTHER_VIEW, VMF, Place

__all__ = ["DCLW"]


class DCLW(Embedding):
    r"""Weighted von Mises-Fisher alignment plus decoupled entropy, per view, in nats.

    With more than two views each ordered pair of views has weights of its own.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        temperature: The temperature :math:`\tau = 1 / \kappa`, a number or
            ``learned(number)``.
        sigma: The temperature :math:`\sigma` of the weights. The smaller, the less do
            pairs count that agree.

    Raises:
        ValueError: If the temperature or sigma is not positive.
    """

    place = Place(
        2022,
        OTHER_VIEW,
        VMF,
        KERNEL("decoupled kernel density"),
        "DCLW tends to decoupled SimCLR at first order in one over sigma",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        temperature: float | Learned = 0.1,
        *,
        sigma: float = 0.5,
    ) -> None:
        entropy = KernelDensity(same_item=False)
        prior = Spherical(None, Reciprocal(temperature, "temperature"))
        super().__init__(encoder, prior, entropy, projector=projector, plug_in=True)
        self.sigma = positive("sigma", sigma, "0.5 is published")

    def alignment(self, z: Float[Tensor, "batch view dim"]) -> Float[Tensor, ""]:
        """The weighted mean of the log-densities of pairs of views, in nats."""
        shares = (z @ z.mT / self.sigma).softmax(0)  # of the items
        weights = 2 - len(z) * shares
        return over_pairs(weights * self.prior.log_kernel(z, z, plug_in=True)).mean()
