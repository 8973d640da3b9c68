r"""SimSiam: predict one view's z from another, with a stop-gradient on the target.

Exploring Simple Siamese Representation Learning (Chen and He, 2021)
https://arxiv.org/abs/2011.10566

The choices: p(y) empirical, y = g(z_v), a prediction from one view; p(z_w|y) von
Mises-Fisher with concentration κ = 1, evaluated at z_w, the encoder's own output for
the other view behind a stop-gradient (sg).

The published loss of two views is

.. math:: L = -\frac12 \sum_{v \ne w} \cos(g(z_v), \text{sg}(z_w)), \qquad
    E_{v \ne w} \log p(\text{sg}(z_w) \mid y = g(z_v)) = \log C_d(1) - E L

so that κ = 1 gives its gradient, with the factor 1. With more views L is minus the mean
over their ordered pairs.

The limit: BYOL with momentum 0, whose target network is the encoder itself; BYOL's
gradient is four times this one, as its κ is.

Status: heuristic. The update is the gradient of no scalar: its Jacobian is not
symmetric. (Without a predictor it is half the gradient of the mean cosine.) The value
is largest for a collapse: that training avoids it is an observation, not a property of
the value. It drops the decoder, the noise of the encoder, and the entropy.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..terms import Batch
from ._distillation import Distillation
from ._place import HEURISTIC, PREDICTION, VMF, Place

__all__ = ["SimSiam"]


class SimSiam(Distillation):
    r"""Log-density of z around its prediction from another view, in nats.

    The value does not show whether z is informative: it is near its bound,
    log C_d(1) + 1, for a good fit and for a collapse.

    Arguments:
        encoder, projector: As in `JointEmbedding`; the projector is published with 3
            layers and 2048 dimensions, and a batch norm after the last as well.
        predictor: The predictor g, (n, dim) -> (n, dim). None makes a `Projector` of
            two layers with 512 hidden units; for ``nn.Identity()`` as encoder,
            `nn.Identity`.
        dim: The dimension of z, for a default predictor behind networks without an
            attribute `out` or `dim`.

    Raises:
        ValueError: If the dimension is needed and not known.
    """

    place = Place(
        2021,
        PREDICTION,
        VMF,
        HEURISTIC("predictor, stop-gradient"),
        "SimSiam follows the published rule",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        *,
        dim: int | None = None,
    ) -> None:
        super().__init__(encoder, projector, predictor, dim, concentration=1.0)

    def target(
        self, z: Float[Tensor, "batch view dim"], batch: Batch
    ) -> Float[Tensor, "batch view dim"]:
        """Return z behind a stop-gradient."""
        return z.detach()
