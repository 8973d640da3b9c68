r"""BYOL: the content predicted, and what a slower copy of the encoder says of it.

Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning
(Grill et al., 2020)
https://arxiv.org/abs/2006.07733

The choices: p(y) empirical, y = g(z_v), a prediction from one view; p(z_w|y) von
Mises-Fisher with concentration κ = 4; what it is evaluated at is z', the output for the
other view of a teacher, whose parameters ξ follow the encoder's θ,

.. math:: \xi \leftarrow m \xi + (1 - m) \theta

The published loss of two views is a distance of directions, summed over both,

.. math:: L = \sum_{v \ne w} \lVert \overline{g(z_v)} - \bar z_w' \rVert^2
    = \sum_{v \ne w} (2 - 2 \cos(g(z_v), z_w')), \qquad
    E_{v \ne w} \log p(z_w' \mid y = g(z_v)) = \log C_d(4) + 4 - E L

so that κ = 4 gives its gradient, with the factor 1. With more views L is twice the mean
over their ordered pairs.

The limit: SimCLR's alignment, with a predicted content and without the entropy.

Status: heuristic. For a teacher that stands still the value is an objective, but one
that is largest where all z are one point. What is followed is the pair of updates of θ
and ξ, and that is the gradient of no scalar: the derivative of θ's update with respect
to ξ is not that of ξ's with respect to θ. It drops the decoder, the noise of the
encoder, and the entropy, for which the predictor and the slow target stand.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..terms import Batch
from ._distillation import Distillation
from ._ema import Teacher

__all__ = ["BYOL"]


class BYOL(Distillation):
    r"""Log-density of a teacher's z around the prediction from another view, in nats.

    It does not say whether z is informative: a value near its bound, log C_d(4) + 4, is
    that of a good fit and of a collapse.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim).
        projector: A module behind it, whose output the objective sees; published with
            2 layers and 256 dimensions.
        predictor: The module g, (n, dim) -> (n, dim). None makes a `Projector` of two
            layers; for ``nn.Identity()`` as encoder, `nn.Identity`.
        momentum: The share m of the teacher that stays in a step, at first: the buffer
            ``teacher.momentum`` has the present one. Published is 0.996, which rises to
            1 over the 1000 epochs of training, in `fit` by
            ``schedules={"teacher.momentum": ps.train.cosine(0.996, 1.0)}``.
        dim: The dimension of z, for a predictor to be made where neither projector nor
            encoder tells it by an attribute `out` or `dim`.

    Raises:
        ValueError: If momentum is not from 0 to 1, or the dimension is needed and not
            known.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        *,
        momentum: float = 0.99,
        dim: int | None = None,
    ) -> None:
        super().__init__(encoder, projector, predictor, dim, concentration=4.0)
        self.teacher = Teacher(self.network, momentum)

    def target(
        self, z: Float[Tensor, "batch view dim"], batch: Batch
    ) -> Float[Tensor, "batch view dim"]:
        """Return the teacher's z, after a move of it in training mode."""
        self.teacher.follow(self.network)
        return self.teacher(batch.views)
