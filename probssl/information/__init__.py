r"""Partial information decomposition: what two views tell of a target, in four parts.

.. math:: I(z_1, z_2; t) = R + U_1 + U_2 + S, \qquad I(z_1; t) = R + U_1,
    \qquad I(z_2; t) = R + U_2

R is redundant (either view tells it), U is unique (one view tells it, the other does
not) and S is synergistic (only both together tell it). There are three equations for
four numbers: a measure of one of them gives the rest. All are in nats.

`discrete` and `gaussian` decompose what is known: a table of probabilities, or a
covariance. `estimate` decomposes what representations of items tell of labels or of
pseudo-labels, by `Classifier` or by `Clusters`, with intervals.

References:
    Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
    https://arxiv.org/abs/1004.2515
    Rethinking Self-Supervised Learning Within the Framework of Partial Information
    Decomposition (Mohamadi et al., 2024)
    https://arxiv.org/abs/2412.02121
"""

from .classifier import Classifier
from .clusters import Clusters
from .covariances import gaussian
from .estimates import Estimate, estimate
from .parts import Decomposition
from .tables import discrete

__all__ = ["Classifier", "Clusters", "Decomposition", "Estimate"]
__all__ += ["discrete", "estimate", "gaussian"]
