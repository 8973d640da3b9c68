r"""FroSSL: a small Frobenius norm of the correlations of each view, and views together.

FroSSL: Frobenius Norm Minimization for Efficient Multiview Self-Supervised Learning
(Skean et al., 2024)
https://arxiv.org/abs/2310.02903

The choices: p(y) flat, p(z|y) = N(y, s² I) for z standardised over the batch; z is kept
informative by the logarithm of the Frobenius norm of its correlations.

With z standardised in each dimension of each view, its d × d correlation matrix
:math:`R_v`, and N items, the published loss is, with weight λ = 1,

.. math:: L = \sum_v 2 \log \frac{\lVert R_v \rVert_F}d
    + \frac{\lambda V}N \sum_v E \lVert z_v - \bar z \rVert^2

The authors scale dimensions to length √d over the batch in place of standard deviation
1, which is why their mean squared error has N in it. :math:`-2 \log (\lVert R \rVert_F
/ d)` is the Rényi-2 (collision) entropy of the eigenvalues of R/d. With E the
correlations off the diagonal, times d/4 it is the entropy of a Gaussian of unit
variances up to a constant and third order:

.. math:: \hat H[z] = \frac d2 \log 2 \pi e - \frac d4 \log \Big( 1 +
    \frac{\lVert E \rVert_F^2}d \Big)
    = \frac12 \log |2 \pi e R| + O(\lVert E \rVert^3)

.. math:: -\frac{(V - 1) d}{4 V} L + \text{const} = E \log p(z_2, \dots, z_V \mid z_1)
    + (V - 1) \hat H[z], \qquad s^2 = \frac{2 N}{(V - 1) \lambda d}

So the published weight assumes that views scatter more around their content the larger
the batch and the fewer the dimensions: as widely as z itself, s = 1, for two views and
2N = d.

The limit: log-det at unit variances, with :math:`\log |R|` replaced by a function of
its second order.

Status: surrogate, of second order in the correlations. The value is the published loss
of two views times −(V−1)d/4V plus a constant, exactly. It drops what log-det drops, and
the variances of z.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import positive
from ..priors.base import one_factor
from ..terms import Batch, Terms
from ._base import JointEmbedding
from ._place import FLAT, MOMENTS, NORMAL, Place

__all__ = ["FroSSL"]

ROUNDING = 1e-12  # below it the length of a dimension over the batch counts as zero


class FroSSL(JointEmbedding):
    r"""Gaussian alignment plus a Frobenius-norm entropy, per item, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        invariance: The published weight :math:`\lambda` of the distance of views.

    Raises:
        ValueError: If the weight is not positive.
    """

    place = Place(
        2024,
        FLAT,
        NORMAL,
        MOMENTS("Frobenius norm of correlations"),
        "FroSSL tends to log-det at third order in the correlations",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        invariance: float = 1.0,
    ) -> None:
        super().__init__(encoder, projector)
        self.invariance = positive("invariance", invariance, "1 is published")

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        items, views, dim = z.shape
        unit = z.new_ones(())
        variance = 2 * items / ((views - 1) * self.invariance * dim)
        scale = math.sqrt(variance) * unit
        law = one_factor((views, dim), scale, unit, flat=True, present=None)
        return Terms(
            entropy=(views - 1) * frobenius_entropy(z), alignment=law.log_prob(z).mean()
        )

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """z of all processes' items, each dimension of each view standardised."""
        z = super().prepared(z)
        centred = z - z.mean(0)
        length = centred.norm(dim=0, keepdim=True).clamp(min=ROUNDING)
        return math.sqrt(len(z)) * centred / length


def frobenius_entropy(z: Float[Tensor, "batch view dim"]) -> Float[Tensor, ""]:
    r"""Return :math:`\hat H[z]` of standardised z, the mean over the views."""
    items, _, dim = z.shape
    z = z.transpose(0, 1)
    gram = z.mT @ z if items > dim else z @ z.mT  # of the same norm
    variance = z.square().mean(-2)
    square = (gram / items).square().sum((-2, -1)) - variance.square().sum(-1)
    unit = dim / 2 * math.log(2 * math.pi * math.e)
    return unit - dim / 4 * (square / dim).log1p().mean()
