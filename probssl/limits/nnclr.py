r"""NNCLR: the positive is the nearest neighbour of the other view, from a queue.

With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual
Representations (Dwibedi et al., 2021)
https://arxiv.org/abs/2104.14548

The choices: p(y) empirical over a queue Q of representations of earlier batches; the
content y of an item is the place nearest to one of its views, and p(z|y) is von
Mises-Fisher around it with concentration κ = 1/τ, for z the prediction g of another
view. z is kept informative by a kernel density with the N predictions of a batch.

.. math:: E_{v \ne w} \log p(z_w \mid y_v) - E \log \frac1N \sum_k
    p(z_{kw} \mid y_v) = \log N - \text{the published loss}, \qquad
    y_v = \arg\max_{q \in Q} q^\top u_v

with u the output of the networks on the sphere and z that of the predictor. As the
kernel is symmetric, the second term is the density of y smoothed at the predictions. It
is InfoNCE with y in the place of the other view: items share a content wherever they
share a nearest neighbour, not only as views of one image.

The limit: that of SimCLR; q → a point on the sphere, the posterior of y → its mode, the
nearest place, and H[z] → its kernel estimate.

Status: identity for the value at each step. The steps together maximise no one
function, since the queue changes. It drops the decoder, the noise of the encoder, the
uncertainty of y, and the gradient through y. While the queue is empty, y is the view
itself; the published method starts from random places, and queues one view alone.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..entropies import Queue
from ..hyper import Learned, Reciprocal
from ..nn import dim_of, each_view
from ..priors import Spherical
from ..runtime.distributed import gather
from ..terms import Batch, Terms
from ._base import check_not_random, over_pairs
from ._distillation import Distillation
from ._place import KERNEL, MOVING, VMF, Place

__all__ = ["NNCLR"]


class NNCLR(Distillation):
    r"""The log-probability of the right prediction plus log N, per view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        predictor: The predictor g, as in `SimSiam`.
        temperature: The temperature :math:`\tau = 1 / \kappa`, a number or
            ``learned(number)``.
        queue: The number of representations kept from earlier batches; 98304 for
            ImageNet. Few steps should fill it.
        dim: The dimension of z, for networks without an attribute `out` or `dim`.

    Raises:
        ValueError: If a number is out of range, or the dimension is not known.
    """

    place = Place(
        2021,
        MOVING("a neighbour in a queue"),
        VMF,
        KERNEL("kernel density of predictions"),
        "NNCLR is log N minus its loss",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        predictor: nn.Module | None = None,
        *,
        temperature: float | Learned = 0.1,
        queue: int = 4096,
        dim: int | None = None,
    ) -> None:
        dim = dim_of(encoder, projector, dim)
        own = dim if predictor is None else None
        super().__init__(encoder, projector, predictor, own, concentration=10.0)
        self.prior = Spherical(None, Reciprocal(temperature, "temperature"))
        check_not_random(self.prior)
        self.queue = Queue(queue, dim)

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        predicted = gather(self.prior.on_support(each_view(self.predictor, z)))
        seen = gather(self.prior.on_support(z).detach())
        content = self.nearest(seen).transpose(0, 1).unsqueeze(1)
        log_kernel = self.prior.log_kernel(
            content, predicted.transpose(0, 1).unsqueeze(0), plug_in=True
        )
        alignment = log_kernel.diagonal(dim1=-2, dim2=-1).mean(-1)
        entropy = math.log(len(seen)) - log_kernel.logsumexp(-1).mean(-1)
        self.queue.push(seen.flatten(0, 1))
        return Terms(entropy=over_pairs(entropy), alignment=over_pairs(alignment))

    def nearest(
        self, u: Float[Tensor, "batch view dim"]
    ) -> Float[Tensor, "batch view dim"]:
        """Return the nearest place of the queue, or u itself while that is empty."""
        queue = self.queue
        memory, places = queue.memory.to(u), torch.arange(queue.size, device=u.device)
        cosines = (u @ memory.mT).masked_fill(places >= queue.filled, -math.inf)
        return torch.where(queue.count == 0, u, memory[cosines.argmax(-1)])
