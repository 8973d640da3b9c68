r"""VICReg: keep variances up, views together and covariances at zero.

VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning
(Bardes et al., 2022)
https://arxiv.org/abs/2105.04906

The choices: p(y) flat, p(z|y) = N(y, s² I); z is kept informative by a hinge on its
standard deviations and a penalty on its covariances.

The published loss of two views, with the variance term halved as in the authors' code,

.. math:: L = \lambda \frac{\lVert z_1 - z_2 \rVert^2}{d}
    + \frac{\mu}{2 d} \sum_{v, i} \max(0, 1 - s_{v i})
    + \frac{\nu}{d} \sum_v \sum_{i \ne j} \hat \Sigma_{v, i j}^2

becomes nats by the factor d/μ: then the hinge has the gradient of log s at s = 1, and

.. math:: -\frac d\mu L + \text{const} = E \log p(z_1, z_2) + \hat H[z], \qquad
    \mathrm{Var}(z \mid y) = \frac{\mu}{4 \lambda}

With λ = μ = 25 and ν = 1 that is the factor d/25 and Var(z|y) = 1/4. The covariance
term has weight 2 ν / μ = 0.08 for the mean over views, where the second order of the
Gaussian entropy has 1/4: VICReg's is 3.125 times lighter.

The limit: log-det, with :math:`\log |\Sigma|` replaced by its tangent at standard
deviation 1 (below it) and its second order in the correlations, at unit variances.

Status: surrogate. The hinge is a tangent, first order at standard deviation 1 and
constant above; the covariance term is second order. It drops what log-det drops. With a
linear encoder the optimum lies in the subspace of `linear.JointEmbeddingSSL`; but so
light a covariance term may give up the direction on which the views agree least
(`tests/test_linear_bridges.py`).
"""

import math

from torch import nn

from ..arguments import at_least, positive
from ..entropies import VarianceCovariance
from ..priors import Gaussian
from ._base import Embedding

__all__ = ["VICReg"]


class VICReg(Embedding):
    r"""Gaussian alignment plus variance and covariance terms, per item, in nats.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim).
        projector: The projection head. Without one the decorrelation acts on the
            representation itself.
        invariance: The published weight :math:`\lambda`.
        variance: The published weight :math:`\mu`.
        covariance: The published weight :math:`\nu`.
    """

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
