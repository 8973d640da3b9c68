r"""VISReg: pull views to their centroid, and moments and slices of z to a normal's.

VISReg (Wu et al., 2026)
https://arxiv.org/abs/2606.02572

The choices: p(y) = N(0, (1 − s) I), p(z|y) = N(y, s I), so that each view is N(0, I); z
is kept informative by its divergence from that marginal: by mean and standard deviation
of each dimension, and by the Wasserstein distance of slices.

The published loss has equal weights of these three, whose sum is 1/d times the
divergence :math:`\hat D` of `entropies.SlicedWasserstein`:

.. math:: L = \lambda \frac1V \sum_v \frac1d \hat D(z_v) + (1 - \lambda)
    \frac{1}{V d} E \sum_v \lVert z_v - \bar z \rVert^2

Times −V d/λ it is in nats: the scale of a dimension then costs as much as in the KL
divergence, to second order. Where :math:`E \lVert z_v \rVert^2 = d` the PMI of the
views is :math:`-\frac{1}{2 r} \sum_v \lVert z_v - \bar z \rVert^2` up to a constant,

.. math:: -\frac{V d}{\lambda} L + \text{const} = E \, \mathrm{PMI}(z_1, \dots, z_V)
    - \sum_v \hat D(z_v), \qquad r = \frac{\lambda}{2 (1 - \lambda)}, \qquad
    \frac1r = \frac1s - \frac{1}{V - (V - 1) s}

For two views the published λ = 0.9 gives Var(z|y) = s = 0.89, and 0.6, which is
published for small data sets, 0.5.

The limit: q → a point, and the KL divergence → a statistic of moments and slices, of
second order at N(0, I).

Status: surrogate, in its value: the published loss times −V d/λ, exactly, whose
divergence is that of N(0, I) to second order in the scales, but has a mean twice as
heavy, and correlations d/2 + 1 times lighter. Its gradient is a heuristic: that of no
scalar, by the stop-gradient on the standard deviation that divides the slices. It drops
the decoder, the noise of the encoder, and the second moment of z in the PMI.
"""

from torch import nn

from ..arguments import between
from ..entropies import Sketched, SlicedWasserstein
from ._place import GAUSSIAN, NORMAL, SKETCHED, Place
from ._sketched import SketchedEmbedding

__all__ = ["VISReg"]


class VISReg(SketchedEmbedding):
    r"""PMI of the views less a statistic of moments and slices, in nats per item.

    All views are global: each is pulled to the centroid of all.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        weight: The published weight :math:`\lambda` of the statistic; 0.6 is published
            for small data sets.
        slices: The number of random directions.
        pooled: Whether all views are one sample (see `entropies.Sketched`).

    Raises:
        TypeError: If slices is not a whole number.
        ValueError: If weight is not between 0 and 1, or slices below 1.
    """

    place = Place(
        2026,
        GAUSSIAN("Gaussian, Var(z) = 1"),
        NORMAL,
        SKETCHED("moments, quantiles of slices"),
        "LeJEPA and VISReg are minus their loss times a factor",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        weight: float = 0.9,
        slices: int = 4096,
        pooled: bool = False,
    ) -> None:
        entropy = Sketched(SlicedWasserstein(), slices, pooled=pooled)
        super().__init__(encoder, projector, entropy)
        self.weight = between("weight", weight, 0, 1, "0.9 is published", open=True)

    def radius(self, items: int, views: int) -> float:
        """The variance r of a view around the centroid that the weights amount to."""
        return self.weight / (2 * (1 - self.weight))
