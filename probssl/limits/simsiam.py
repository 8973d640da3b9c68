r"""SimSiam: the content predicted, and a gradient that is stopped.

Exploring Simple Siamese Representation Learning (Chen and He, 2021)
https://arxiv.org/abs/2011.10566

The choices: p(y) empirical, y = g(z_v), a prediction from one view; p(z_w|y) von
Mises-Fisher with concentration κ = 1, evaluated at z_w, the encoder's own output for
the other view, through which no gradient flows (sg).

The published loss of two views is

.. math:: L = -\frac12 \sum_{v \ne w} \cos(g(z_v), \text{sg}(z_w)), \qquad
    E_{v \ne w} \log p(\text{sg}(z_w) \mid y = g(z_v)) = \log C_d(1) - E L

so that κ = 1 gives its gradient, with the factor 1. With more views L is minus the mean
over their ordered pairs.

The limit: BYOL with momentum 0, a teacher that is the encoder itself; its gradient is
four times this one, as κ is.

Status: heuristic. The update is the gradient of no scalar: its Jacobian is not
symmetric. Without a predictor it is, the stop then only halves the gradient of the mean
cosine, an objective that is largest where all z are one point. So is the value here:
that the update does not lead there is observed, and no property of it. It drops the
decoder, the noise of the encoder, and the entropy.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..terms import Batch
from ._distillation import Distillation

__all__ = ["SimSiam"]


class SimSiam(Distillation):
    r"""Log-density of z around the prediction from another view, in nats.

    It does not say whether z is informative: a value near its bound, log C_d(1) + 1, is
    that of a good fit and of a collapse.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim).
        projector: A module behind it, whose output the objective sees; published with
            3 layers and 2048 dimensions, and batch norm behind the last as well.
        predictor: The module g, (n, dim) -> (n, dim). None makes a `Projector` of two
            layers with 512 units between; for ``nn.Identity()`` as encoder,
            `nn.Identity`.
        dim: The dimension of z, for a predictor to be made where neither projector nor
            encoder tells it by an attribute `out` or `dim`.

    Raises:
        ValueError: If the dimension is needed and not known.
    """

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
        """Return z without its gradient."""
        return z.detach()
