r"""Log-det: maximise the log-determinant of the covariance, and pull views together.

Understanding Self-Supervised Learning via Latent Distribution Matching (2026)
https://arxiv.org/abs/2605.03517

The choices: p(y) flat, p(z|y) = N(y, s² I); z is kept informative by the entropy of the
Gaussian with its covariance.

.. math:: E \log p(z_1, \dots, z_V) + (V - 1) \tfrac12 \log |2 \pi e \hat \Sigma|

For two views and up to a constant
:math:`-\frac{1}{4 s^2} E \lVert z_1 - z_2 \rVert^2 + \frac12 \log |\hat \Sigma|`.

The limit: q → a point, and H[z] → its Gaussian upper bound, in the bound behind
`Embedding`.

Status: identity. It drops the decoder, the noise of the encoder, and all of the
distribution of z beyond second moments. The scale sets only the size of z: stretching z
by s turns the value for scale 1 into that for scale s.
"""

import math

from torch import nn

from ..entropies import LogDeterminant
from ..priors import Gaussian
from ._base import Embedding
from ._place import FLAT, LOG_DETERMINANT, NORMAL, Place

__all__ = ["LogDet"]


class LogDet(Embedding):
    """Gaussian alignment plus log-determinant entropy, per item, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        scale: The standard deviation of z given y.
        epsilon: The variance of the noise whose entropy is added (see
            `entropies.LogDeterminant`).
    """

    place = Place(
        2026,
        FLAT,
        NORMAL,
        LOG_DETERMINANT,
        "Log-det is a distance and a log-determinant",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        scale: float = 0.5,
        epsilon: float = 1e-4,
    ) -> None:
        prior = Gaussian(None, scale, y_scale=math.inf)
        super().__init__(encoder, prior, LogDeterminant(epsilon), projector=projector)
