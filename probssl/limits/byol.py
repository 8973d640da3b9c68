r"""BYOL: predict a momentum (EMA) encoder's output for another view.

Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning
(Grill et al., 2020)
https://arxiv.org/abs/2006.07733

The choices: p(y) empirical, y = g(z_v), a prediction from one view; p(z_w|y) von
Mises-Fisher with concentration κ = 4, evaluated at z', the output for the other view of
a target network, whose parameters ξ are an EMA of the encoder's θ,

.. math:: \xi \leftarrow m \xi + (1 - m) \theta

The published loss of two views is a squared distance of directions, summed over both,

.. math:: L = \sum_{v \ne w} \lVert \overline{g(z_v)} - \bar z_w' \rVert^2
    = \sum_{v \ne w} (2 - 2 \cos(g(z_v), z_w')), \qquad
    E_{v \ne w} \log p(z_w' \mid y = g(z_v)) = \log C_d(4) + 4 - E L

so that κ = 4 gives its gradient, with the factor 1. With more views L is twice the mean
over their ordered pairs.

The limit: SimCLR's alignment, with a predicted content and without the entropy.

Status: heuristic. For a fixed target network the value is an objective, but one whose
maximum is a collapse. The pair of updates of θ and ξ is the gradient of no scalar: the
derivative of θ's update in ξ is not that of ξ's in θ. It drops the decoder, the noise
of the encoder, and the entropy, which predictor and target network replace.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..terms import Batch
from ._distillation import Distillation
from ._ema import Teacher
from ._place import HEURISTIC, PREDICTION, VMF, Place

__all__ = ["BYOL"]


class BYOL(Distillation):
    r"""Log-density of the target network's z around a prediction of it, in nats.

    The value does not show whether z is informative: it is near its bound,
    log C_d(4) + 4, for a good fit and for a collapse.

    Arguments:
        encoder, projector: As in `JointEmbedding`; the projector is published with 2
            layers and 256 dimensions.
        predictor, dim: As in `SimSiam`.
        momentum: The initial share m of the target network that stays in a step; the
            buffer ``teacher.momentum`` holds it. Published is 0.996, rising to 1 over
            1000 epochs:
            ``fit(…, schedules={"teacher.momentum": ps.train.cosine(0.996, 1.0)})``.

    Raises:
        ValueError: If momentum is not from 0 to 1, or the dimension is needed and not
            known.
    """

    place = Place(
        2020,
        PREDICTION,
        VMF,
        HEURISTIC("predictor, stop-gradient"),
        "BYOL follows the published rule and its teacher too",
    )

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
        """Return the target network's z, after its update in training mode."""
        self.teacher.follow(self.network)
        return self.teacher(batch.views)
