r"""VICReg: keep variances up, views together and covariances at zero.

VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning
(Bardes et al., 2022)
https://arxiv.org/abs/2105.04906

The choices: p(y) flat, p(z|y) = N(y, s² I). z is kept informative by two terms in place
of H[z]: a hinge on the standard deviation of each dimension, and a penalty on the
covariances of different dimensions.

The published loss of two views is, with the factor 1/2 of the authors' code,

.. math:: L = \lambda \frac{E \lVert z_1 - z_2 \rVert^2}{d}
    + \frac{\mu}{2 d} \sum_{v, i} \max(0, 1 - s_{v i})
    + \frac{\nu}{d} \sum_v \sum_{i \ne j} \hat \Sigma_{v, i j}^2

where view v has the covariance :math:`\hat \Sigma_v` and its dimension i the standard
deviation :math:`s_{v i}`. Times −d/μ it is in nats: at standard deviation 1 the hinge
then has the gradient of log s, which is the entropy of a Gaussian up to a constant.

.. math:: -\frac d\mu L + \text{const} = E \log p(z_1, z_2) + \hat H[z], \qquad
    \mathrm{Var}(z \mid y) = \frac{\mu}{4 \lambda}

The published λ = μ = 25 and ν = 1 give the factor d/25 and Var(z|y) = 1/4. The
covariance term gets the weight 2 ν / μ = 0.08 (for the mean over views). The
second-order expansion of the Gaussian entropy has 1/4, which is 3.125 times as much.

The limit: log-det, with two approximations of :math:`\log |\Sigma|`: its tangent at
standard deviation 1 (for smaller ones; constant above), and a share of its second order
in the correlations, at unit variances.

Status: surrogate. The value is the published loss times −d/μ, exactly; what it
approximates is log-det, to first order in the standard deviations and in the
correlations; of the second order in the correlations the published covariance term has
0.32 times as much, and ``covariance=3.125`` all. Like log-det it drops the decoder, the
noise of the encoder, and all moments of z beyond the second. With a linear encoder the
optimum lies in the subspace of `linear.JointEmbeddingSSL`, but a covariance term as
light as the published one may lose the direction on which the views agree least
(`tests/test_linear_bridges.py`).
"""

import math

from torch import nn

from ..arguments import at_least, positive
from ..entropies import VarianceCovariance
from ..priors import Gaussian
from ._base import Embedding
from ._place import FLAT, MOMENTS, NORMAL, Place

__all__ = ["VICReg"]


class VICReg(Embedding):
    r"""Gaussian alignment plus variance and covariance terms, per item, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; without a projector the
            representation itself is decorrelated.
        invariance: The published weight :math:`\lambda`.
        variance: The published weight :math:`\mu`.
        covariance: The published weight :math:`\nu`.
    """

    place = Place(
        2022,
        FLAT,
        NORMAL,
        MOMENTS("variances, covariances"),
        "VICReg tends to log-det at second order, at covariance 3.125 at third",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        positive("invariance", invariance, "25 is published")
        positive("variance", variance, "25 is published")
        at_least("covariance", covariance, 0, "1 is published")
        scale = math.sqrt(variance / (4 * invariance))
        super().__init__(
            encoder,
            Gaussian(None, scale, y_scale=math.inf),
            VarianceCovariance(2 * covariance / variance),
            projector=projector,
        )
