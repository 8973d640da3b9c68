r"""TiCo: views together, and z away from the directions that are already full.

TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual
Representation Learning (Zhu et al., 2022)
https://arxiv.org/abs/2206.10698

The choices: z is the encoder's output for one view, and its content y the momentum
encoder's output for another; p(z|y) is von Mises-Fisher around y with concentration
κ = d(d + 2)/2ρ; z is kept informative by its second moments.

On the sphere, with the momentum encoder's t and C, an EMA of the second moments of z
behind a stop-gradient, :math:`C \leftarrow \beta C + (1 - \beta) E z z^\top`, the
published loss is

.. math:: L = 1 - E \, t^\top z + \rho E \, z^\top C z

For C the present second moments (I + E)/d the contrast :math:`z^\top C z` is
:math:`(1 + \lVert E \rVert_F^2 / d) / d`, and as C carries no gradient, its gradient is
half of that of this function. The distribution of maximum entropy on the sphere with
these second moments has :math:`\log |S^{d-1}| - \frac{d + 2}{4 d} \lVert E \rVert_F^2 +
O(\lVert E \rVert^3)`. Times −κ the loss is thus in nats, and its gradient is that of

.. math:: E \log p(z \mid y = t) + \log |S^{d-1}| - \frac{d + 2}{4 d} \lVert E \rVert^2

With the published ρ = 8 and d = 256, κ is 4128: views have a standard deviation of 1/64
around their content in each direction.

The limit: that of MoCo, with H[z] → the maximum entropy at the second moments of z.

Status: surrogate: its gradient is exact to second order in the deviation of the second
moments from I/d, where C is up to date. The value is the published loss times −κ plus a
constant, exactly; in it the deviation counts twice. The steps together maximise no one
function, since momentum encoder and C change. It drops the decoder, the noise of the
encoder, the uncertainty of y, the gradient through t and C, and moments beyond the
second. The published method uses each pair of views in one order only; here C is that
of all views.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import between, positive
from ..nn import dim_of
from ..priors import Spherical
from ..special import log_area
from ..terms import Batch, Terms
from ._base import PriorEmbedding, over_pairs
from ._ema import Teacher
from ._place import MOMENTS, MOVING, VMF, Place

__all__ = ["TiCo"]


class TiCo(PriorEmbedding):
    r"""von Mises-Fisher alignment minus the covariance contrast, per view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        contrast: The published weight :math:`\rho` of the covariance contrast.
        memory: The share :math:`\beta` of C that stays in a step. C starts at zero.
        momentum: The share of the momentum encoder that stays in a step; the buffer
            ``teacher.momentum`` holds it.
        dim: The dimension of z, for networks without an attribute `out` or `dim`.

    Raises:
        ValueError: If a number is out of range, or the dimension is not known.
    """

    place = Place(
        2022,
        MOVING("an EMA encoder's view"),
        VMF,
        MOMENTS,
        "The gradient of TiCo is that of the second order of the maximum entropy",
    )

    moments: Tensor
    prior: Spherical

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        contrast: float = 8.0,
        memory: float = 0.9,
        momentum: float = 0.99,
        dim: int | None = None,
    ) -> None:
        super().__init__(encoder, projector)
        self.contrast = positive("contrast", contrast, "8 is published")
        self.memory = between("memory", memory, 0, 1, "0.9 is published")
        self.teacher = Teacher(self.network, momentum)
        dim = dim_of(encoder, projector, dim)
        self.prior = Spherical(dim, dim * (dim + 2) / (2 * contrast))
        self.register_buffer("moments", torch.zeros(dim, dim))

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        self.teacher.follow(self.network)
        content, dim = self.prepared(self.teacher(batch.views)), z.shape[-1]
        flat = z.flatten(0, 1)
        seen = flat.detach()
        moments = self.moments.to(z).lerp(seen.mT @ seen / len(seen), 1 - self.memory)
        if self.training:
            self.moments.copy_(moments)
        kappa = self.prior.concentration()
        contrast = self.contrast * (flat @ moments * flat).sum(-1).mean()
        alignment = over_pairs(self.prior.log_kernel(content, z, plug_in=True)).mean()
        even = self.contrast / dim
        return Terms(
            entropy=log_area(dim) - kappa * (contrast - even), alignment=alignment
        )
