r"""Partial information decomposition (PID) of two views and a target.

.. math:: I(z_1, z_2; t) = R + U_1 + U_2 + S, \qquad I(z_1; t) = R + U_1,
    \qquad I(z_2; t) = R + U_2

R is redundant information (in either view), U is unique (in one view only) and S is
synergistic (only in both together). These are three equations for four numbers: a
measure of one of them, such as BROJA or I_min, gives the rest. All are in nats.

`discrete` and `gaussian` decompose known distributions: a table of probabilities, a
covariance. `estimate` decomposes the information of representations about labels or
pseudo-labels, by `Classifier` or by `Clusters`, with bootstrap intervals. Estimators of
mutual information alone (InfoNCE, KSG) are in `evaluation`.

References:
    Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
    https://arxiv.org/abs/1004.2515
    Rethinking Self-Supervised Learning Within the Framework of Partial Information
    Decomposition (Mohamadi et al., 2024)
    https://arxiv.org/abs/2412.02121
"""

from .decomposition import Decomposition, discrete, gaussian
from .estimates import Estimate, estimate
from .estimators import Classifier, Clusters

__all__ = ["Classifier", "Clusters", "Decomposition", "Estimate"]
__all__ += ["discrete", "estimate", "gaussian"]
