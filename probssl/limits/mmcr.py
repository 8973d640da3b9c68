r"""MMCR: a large nuclear norm of the items' mean directions.

Learning Efficient Coding of Natural Images with Maximum Manifold Capacity
Representations (Yerxa et al., 2023)
https://arxiv.org/abs/2303.03307
Towards an Improved Understanding and Utilization of Maximum Manifold Capacity
Representations (Schaeffer et al., 2024), which finds alignment and uniformity in it
https://arxiv.org/abs/2406.09366

The choices: p(y) empirical, y = another view; p(z|y) von Mises-Fisher with
concentration κ = (d + 2)(V − 1)/V; z is kept informative by the distance of its second
moments from those of the uniform distribution on the sphere.

With C the N × d matrix of the means :math:`\bar u_i` of the V views of an item on the
sphere, and U_i the V × d matrix of these views, the published loss is

.. math:: L = -\lVert C \rVert_* + \frac\lambda N \sum_i \lVert U_i \rVert_*

With :math:`M = \frac dN C^\top C` the first part is exactly an alignment and a squared
Wasserstein-2 distance of Gaussians, :math:`W_2^2 = \sum_j (\sqrt{m_j} - 1)^2` with the
eigenvalues m of M:

.. math:: 2 \sqrt{\frac dN} \lVert C \rVert_* - 2 d
    = \underbrace{d \, (E \lVert \bar u \rVert^2 - 1)}_{
        \frac{d (V - 1)}V E_{v \ne w} (u_v^\top u_w - 1)}
    - W_2^2\big(N(0, M), N(0, I)\big)

Of all distributions on the sphere with second moments (I + E)/d the one of maximum
entropy has :math:`\log |S^{d-1}| - \frac{d + 2}{4 d} \lVert E \rVert_F^2 +
O(\lVert E \rVert^3)`, and :math:`W_2^2 = \frac14 \lVert E \rVert_F^2 + O(\lVert E
\rVert^3)` where views agree. So the factor (1 + 2/d) makes it nats:

.. math:: 2 \Big(1 + \frac2d\Big) \sqrt{\frac dN} \lVert C \rVert_* + \text{const}
    = E_{v \ne w} \log p(z_w \mid y = z_v)
    + \log |S^{d-1}| - \Big(1 + \frac2d\Big) W_2^2

The limit: that of SimCLR, with H[z] → the maximum entropy at the second moments of z.

Status: surrogate, of second order in the deviation of the second moments from I/d, for
views whose distances are of its first order. The value is the published loss times
−2(1 + 2/d)√(d/N) plus a constant, exactly; its part with λ, which draws the views of an
item together once more, has no density and counts as a penalty. It drops the decoder,
the noise of the encoder, the uncertainty of y, and all moments beyond the second. Of
the published recipe it drops the momentum encoder.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..arguments import at_least
from ..special import log_area, log_vmf_normaliser
from ..terms import Batch, Terms
from ._base import JointEmbedding
from ._place import MOMENTS, OTHER_VIEW, VMF, Place

__all__ = ["MMCR"]


class MMCR(JointEmbedding):
    r"""von Mises-Fisher alignment, and entropy by second moments, per view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        compression: The published weight :math:`\lambda` of the nuclear norm of the
            views of each item.

    Raises:
        ValueError: If the weight is negative.
    """

    place = Place(
        2023,
        OTHER_VIEW,
        VMF,
        MOMENTS("nuclear norm of centroids"),
        "MMCR tends to the maximum entropy at third order",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        compression: float = 0.005,
    ) -> None:
        super().__init__(encoder, projector)
        self.compression = at_least("compression", compression, 0, "0.005 is published")

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        items, views, dim = z.shape
        centroids, nats = z.mean(1), 1 + 2 / dim
        root = torch.linalg.svdvals(centroids) * (dim / items) ** 0.5  # √m
        kappa = z.new_tensor((dim + 2) * (views - 1) / views)
        apart = nats * dim * (1 - centroids.square().sum(-1).mean())
        alignment = log_vmf_normaliser(dim, kappa, scaled=True) - apart
        missing = max(0, dim - items)  # eigenvalues 0 of M
        wasserstein = (root - 1).square().sum() + missing
        within = torch.linalg.svdvals(z).sum(-1).mean()
        weight = 2 * nats * self.compression * (dim / items) ** 0.5
        return Terms(
            entropy=log_area(dim) - nats * wasserstein,
            alignment=alignment,
            penalty=-weight * within,
        )

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """The network's output for all processes' items, as directions."""
        return normalize(super().prepared(z), dim=-1)
