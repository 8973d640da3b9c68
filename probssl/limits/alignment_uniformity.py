r"""Alignment and uniformity: views close on the sphere, and items spread over it.

Understanding Contrastive Representation Learning through Alignment and Uniformity on
the Hypersphere (Wang and Isola, 2020)
https://arxiv.org/abs/2005.10242

The choices: p(y) empirical, y = the other view; p(z|y) von Mises-Fisher with
concentration 2/λ; z is kept informative by the collision entropy of each view, with a
von Mises-Fisher kernel of concentration 2t.

The published loss of two views u, v on the sphere, with the power α = 2, is

.. math:: L = E \lVert u - v \rVert^2 + \frac\lambda2 \sum_{w \in \{u, v\}}
    \log \frac{1}{N (N - 1)} \sum_{i \ne j} e^{-t \lVert w_i - w_j \rVert^2}

On the sphere :math:`-t \lVert a - b \rVert^2 = \kappa a^\top b - \kappa` with κ = 2t:
the Gaussian kernel is a von Mises-Fisher density up to a constant, and so is
:math:`e^{-\lVert u - v \rVert^2 / \lambda}`. Hence, times −1/λ,

.. math:: -\frac L\lambda + \text{const} = E_{v \ne w} \log p(z_w \mid y = z_v)
    + \hat H_2[z], \qquad \kappa = \frac2\lambda

where the estimate of the collision entropy has the bandwidth of 2t. The weight λ is
thus the noise of a view around its content, and t only smooths the estimate. For
λ = 1/t one kernel serves both, as in SimCLR, and the constant is zero.

The limit: that of SimCLR; q → a point on the sphere, the content plugged in, and H[z] →
the kernel estimate of :math:`H_2[z] \le H[z]`.

Status: identity, with :math:`H_2` for H. It drops the decoder, the noise of the
encoder, and the uncertainty of y. Powers α other than 2 are no log-density.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import positive
from ..entropies import Collision, Entropy
from ..priors import Prior, Spherical
from ._base import Embedding
from ._place import COLLISION, OTHER_VIEW, VMF, Place

__all__ = ["AlignmentUniformity"]


class AlignmentUniformity(Embedding):
    r"""von Mises-Fisher alignment plus collision entropy of each view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        uniformity: The published t, half the concentration of the entropy's kernel.
        weight: The published weight λ of uniformity, two over the concentration of
            p(z|y).

    Raises:
        ValueError: If a number is not positive.
    """

    place = Place(
        2020,
        OTHER_VIEW,
        VMF,
        COLLISION("collision entropy of each view"),
        "Alignment and uniformity are minus their loss over its weight",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        uniformity: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        positive("uniformity", uniformity, "2 is published")
        positive("weight", weight, "1 is published")
        entropy = _EachView(Spherical(None, 2 * uniformity))
        prior = Spherical(None, 2 / weight)
        super().__init__(encoder, prior, entropy, projector=projector, plug_in=True)


class _EachView(Entropy):
    """The collision entropy of each view by itself, with a kernel of its own."""

    def __init__(self, kernel: Spherical) -> None:
        super().__init__()
        self.kernel, self.collision = kernel, Collision()

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        each = [self.collision(v.unsqueeze(1), self.kernel) for v in z.unbind(1)]
        return torch.stack(each).mean()
