r"""The base class of objectives that keep each view near N(0, I), by a sketch.

.. math:: p(y) = N(0, (1 - s) I), \qquad p(z \mid y) = N(y, s I)

Under this prior each view is N(0, I), whatever s. With V views and t = V − (V − 1) s,

.. math:: \mathrm{PMI}(z_1, \dots, z_V)
    = -\frac{1}{2 r} \sum_v \lVert z_v - \bar z \rVert^2
    + \frac12 \Big(1 - \frac1t\Big) \sum_v \lVert z_v \rVert^2
    - \frac d2 \big[(V - 1) \log s + \log t\big], \qquad \frac1r = \frac1s - \frac1t

So where :math:`E \lVert z_v \rVert^2 = d` the mean PMI depends on the distance to the
centroid alone. Every r > 0 is that of one s between 0 and 1.
"""

import math

from jaxtyping import Float
from torch import Tensor, nn

from ..entropies import Sketched
from ..priors import Gaussian
from ..terms import Batch, Terms
from ._base import JointEmbedding

__all__ = ["SketchedEmbedding"]


class SketchedEmbedding(JointEmbedding):
    """The PMI of views with second moments d, less their sketched divergences.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        entropy: The entropy of one view, the unit normal's less its divergence.
    """

    entropy: Sketched

    def __init__(
        self, encoder: nn.Module, projector: nn.Module | None, entropy: Sketched
    ) -> None:
        super().__init__(encoder, projector)
        self.entropy = entropy

    def radius(self, items: int, views: int) -> float:
        """The variance r of a view around the centroid that the weights amount to."""
        raise NotImplementedError(f"{type(self).__name__} has no radius(items, views)")

    def variance(self, items: int, views: int) -> float:
        """Var(z|y), between 0 and 1, for a batch of so many items and views."""
        r = self.radius(items, views)
        root = math.sqrt((views * (1 + r)) ** 2 - 4 * (views - 1) * views * r)
        return 2 * views * r / (views * (1 + r) + root)

    def prior(self, items: int, views: int) -> Gaussian:
        """The prior that the weights amount to, for a batch of so many items."""
        s = self.variance(items, views)
        return Gaussian(None, math.sqrt(s), math.sqrt(1 - s))

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        items, views, dim = z.shape
        s = self.variance(items, views)
        t = views - (views - 1) * s
        apart = (z - z.mean(1, keepdim=True)).square().sum((1, 2)).mean()
        scale = views * math.log(2 * math.pi) + (views - 1) * math.log(s) + math.log(t)
        constant = -dim / 2 * (scale + views / t)
        alignment = constant - apart / (2 * self.radius(items, views))
        return Terms(entropy=views * self.entropy(z), alignment=alignment)
