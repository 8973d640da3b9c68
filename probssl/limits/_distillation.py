r"""Self-distillation: predict a target network's output for another view.

.. math:: E_{v \ne w} \log p(z_w' \mid y = g(z_v)), \qquad
    p(z \mid y) = C_d(\kappa) \, e^{\kappa z^\top y}

with g the predictor and z' the target, behind a stop-gradient. It is the plug-in
alignment of `Embedding` with a predicted content and without an entropy: alone it is
largest, :math:`\log C_d(\kappa) + \kappa`, where all z collapse to one point.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import alone
from ..nn import Projector, dim_of, each_view
from ..nn.base import network
from ..nn.network import check_items_apart, check_width
from ..priors import Spherical
from ..terms import Batch, Terms
from ._base import PriorEmbedding, over_pairs

__all__ = ["Distillation"]


class Distillation(PriorEmbedding):
    r"""The base of objectives with a predictor and a stop-gradient.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        predictor: The predictor g, (n, dim) -> (n, dim). None makes a `Projector` of
            two layers, or `nn.Identity` if the network is one.
        dim: The dimension of z, for a default predictor behind networks without an
            attribute `out` or `dim`.
        concentration: The concentration :math:`\kappa`, which sets the size of the
            gradient and nothing else.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None,
        predictor: nn.Module | None,
        dim: int | None,
        concentration: float,
    ) -> None:
        super().__init__(encoder, projector)
        self.prior = Spherical(None, concentration)
        if predictor is None:
            predictor = _predictor(encoder, projector, dim)
        else:
            alone("dim", dim, "beside a predictor")
            network("predictor", predictor)
            check_width("predictor", predictor, projector or encoder)
        self.predictor = predictor

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        predicted = self.prior.on_support(each_view(self.predictor, z))
        target = self.prior.on_support(self.target(z, batch))
        if predicted.shape != target.shape:
            raise ValueError(
                f"expected a predictor to {target.shape[-1]} numbers, as the network "
                f"returns, got {predicted.shape[-1]}; give it as many outputs as inputs"
            )
        log_kernel = self.prior.log_kernel(predicted, target, plug_in=True)
        return Terms(alignment=over_pairs(log_kernel).mean())

    def check(self, batch: Batch) -> None:
        """Raise an error if the objective cannot take the batch, or mixes its items."""
        super().check(batch)
        predicted = lambda x: each_view(self.predictor, self.layers(x)[1])  # noqa: E731
        check_items_apart(self, predicted, batch.views)

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """The network's output: items are independent, so that none is gathered."""
        return z

    def target(
        self, z: Float[Tensor, "batch view dim"], batch: Batch
    ) -> Float[Tensor, "batch view dim"]:
        """Return the target z', without a gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no target(z, batch)")


def _predictor(
    encoder: nn.Module, projector: nn.Module | None, dim: int | None
) -> nn.Module:
    try:
        dim = dim_of(encoder, projector, dim)
    except ValueError:
        last = encoder if projector is None else projector
        if isinstance(last, nn.Identity):
            return nn.Identity()
        raise
    return Projector(dim, out=dim)
