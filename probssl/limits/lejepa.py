r"""LeJEPA: pull views to their centroid, and slices of z to a standard normal (SIGReg).

LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics
(Balestriero and LeCun, 2025)
https://arxiv.org/abs/2511.08544

The choices: p(y) = N(0, (1 − s) I), p(z|y) = N(y, s I), so that each view is N(0, I); z
is kept informative by its divergence from that marginal, on random slices.

Maximising E log p(z_1, …, z_V) + Σ_v H[z_v] is maximising

.. math:: E \, \mathrm{PMI}(z_1, \dots, z_V)
    - \sum_v \mathrm{KL}(q(z_v) \,\Vert\, N(0, I))

The published loss has n items and the mean of a statistic over the views, which is
:math:`n c / d` times the divergence :math:`\hat D` of `entropies.EppsPulley`:

.. math:: L = \lambda \frac1V \sum_v \frac{n c}{d} \hat D(z_v) + (1 - \lambda)
    \frac{1}{V d} E \sum_v \lVert z_v - \bar z \rVert^2

Times −V d/(λ n c) it is in nats: a common scale of z then costs as much as in the KL
divergence. With the PMI at :math:`E \lVert z_v \rVert^2 = d`, where up to a constant it
is :math:`-\frac{1}{2 r} \sum_v \lVert z_v - \bar z \rVert^2`,

.. math:: -\frac{V d}{\lambda n c} L + \text{const} = E \, \mathrm{PMI}(z_1, \dots, z_V)
    - \sum_v \hat D(z_v), \qquad r = \frac{\lambda n c}{2 (1 - \lambda)}, \qquad
    \frac1r = \frac1s - \frac{1}{V - (V - 1) s}

The statistic grows with n, and so does Var(z|y) = s: for two views and the published λ
= 0.05 it is 0.72 at n = 128 and 0.96 at n = 1024. A batch of twice the size pulls views
together half as much, beside the same divergence.

The limit: q → a point, and the KL divergence → a statistic of random slices, of second
order at N(0, I).

Status: surrogate. The value is the published loss times −V d/(λ n c), exactly; the
divergence in it is zero where that from N(0, I) is, and to second order has a mean
twice as heavy, and correlations and differences of variances d/2 + 1 times lighter: 33
times in 64 dimensions. It drops the decoder, the noise of the encoder, and the second
moment of z in the PMI, which a bounded statistic could not hold back.
"""

from torch import nn

from ..arguments import between
from ..entropies import EppsPulley, Sketched
from ._place import GAUSSIAN, NORMAL, SKETCHED, Place
from ._sketched import SketchedEmbedding

__all__ = ["LeJEPA"]


class LeJEPA(SketchedEmbedding):
    r"""PMI of the views less Epps–Pulley statistics of their slices, in nats per item.

    All views are global: each is pulled to the centroid of all.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        weight: The published weight :math:`\lambda` of the statistic.
        slices: The number of random directions; published is 1024, or 256.
        pooled: Whether all views are one sample (see `entropies.Sketched`).

    Raises:
        TypeError: If slices is not a whole number.
        ValueError: If weight is not between 0 and 1, or slices below 1.
    """

    place = Place(
        2025,
        GAUSSIAN("Gaussian, Var(z) = 1"),
        NORMAL,
        SKETCHED("characteristic function of slices"),
        "LeJEPA and VISReg are minus their loss times a factor",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        weight: float = 0.05,
        slices: int = 1024,
        pooled: bool = False,
    ) -> None:
        statistic = EppsPulley()
        super().__init__(encoder, projector, Sketched(statistic, slices, pooled=pooled))
        self.weight = between("weight", weight, 0, 1, "0.05 is published", open=True)
        self.curvature = statistic.curvature

    def radius(self, items: int, views: int) -> float:
        """The variance r of a view around the centroid that the weights amount to."""
        sample = items * views if self.entropy.pooled else items
        return self.weight * sample * self.curvature / (2 * (1 - self.weight))
