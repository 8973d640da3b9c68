r"""DINO: predict the cluster that a momentum (EMA) teacher assigns to another view.

Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021)
https://arxiv.org/abs/2104.14294

The choices: p(y) categorical, 1/K for each of K prototypes c_k; p(z|y = k) von
Mises-Fisher around c_k with concentration 1/τ. The code of an item comes from the
teacher's z' of another view, sharpened by a smaller temperature and centred by the
running mean b of the teacher's logits:

.. math:: q_w(k) \propto \exp \frac{z_w'^\top c_k' - b_k}{\tau'}

z is kept informative by the entropy of y, H[y]: the centre b raises rare clusters, so
that no cluster takes all; the low temperature keeps q from being flat.

.. math:: E_{v \ne w} \sum_k q_w(k) \log p(z_v \mid y = k)
    - E \log \frac1K \sum_k p(z_v \mid y = k) = \log K - \text{the published loss}

The teacher holds the EMA of the parameters of encoder, projector and prototypes.

The limit: that of SwAV, with codes from a teacher instead of the network itself, and
H[y] supported by the centre instead of fixed at log K by Sinkhorn's algorithm.

Status: heuristic. The value is that of the published loss, and the gradient that of the
published rule, in which the codes are constants: it is the gradient of no scalar.
Nothing ensures H[y]. It drops the decoder, the noise of the encoder, and of the
published recipe the prototypes frozen in the first epoch, their number of 65536, and
the schedules, which `fit` takes: momentum from 0.996 to 1, τ' from 0.04 to 0.07.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..arguments import between, positive
from ..entropies.equipartition import Clusters
from ..hyper import Learned, Reciprocal
from ..priors import Spherical
from ..runtime.buffers import register_varying
from ..runtime.distributed import gather
from ..terms import Batch, Terms
from ._ema import Teacher
from ._place import HEURISTIC, ONE_OF_K, VMF, Place
from ._prototypes import Clustered, full_views, swapped

__all__ = ["DINO"]


class DINO(Clustered):
    r"""Prediction of a teacher's codes, per view, in nats.

    For views of several sizes, such as those of `views.MultiCrop`, the teacher sees
    those of the first size only.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        components: The number K of clusters, whose centres are called prototypes.
        temperature: The temperature :math:`\tau` of the clusters; a number or
            ``learned(number)``.
        teacher_temperature: The temperature :math:`\tau'` of the codes; a buffer.
        momentum: The initial share of the teacher that stays in a step; the buffer
            ``teacher.momentum`` holds it.
        centre_momentum: The share of the centre b that stays in a step; a buffer.
        dim: The dimension of z; None takes it from the projector or the encoder.

    Raises:
        ValueError: If a number is out of its range, or the dimension is not known.
    """

    place = Place(
        2021,
        ONE_OF_K,
        VMF,
        HEURISTIC("centred, sharpened teacher"),
        "DINO follows the published rule for two steps",
    )

    prior: Spherical
    centre: Tensor
    teacher_temperature: Tensor
    centre_momentum: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        components: int = 100,
        temperature: float | Learned = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.99,
        centre_momentum: float = 0.9,
        dim: int | None = None,
    ) -> None:
        prior = Spherical(None, Reciprocal(temperature, "temperature"))
        super().__init__(encoder, prior, components, projector, dim)
        check = partial(positive, hint="0.04 is published")
        register_varying(self, "teacher_temperature", teacher_temperature, check)
        check = partial(between, low=0, high=1, hint="0.9 is published")
        register_varying(self, "centre_momentum", centre_momentum, check)
        self.teacher = Teacher(self._cosines(), momentum)
        self.register_buffer("centre", torch.zeros(components))

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        self.teacher.follow(self._cosines())
        log_density = self.entropy.log_density(z, self.prior)
        logits = gather(self.teacher(full_views(self.encoder, batch.views)))
        codes = ((logits - self.centre) / self.teacher_temperature).softmax(-1)
        if self.training:
            mean = logits.mean((0, 1)).to(self.centre.dtype)
            self.centre.lerp_(mean, (1 - self.centre_momentum).to(mean))
        return swapped(codes.transpose(0, 1), log_density)

    def _cosines(self) -> "_Cosines":
        return _Cosines(self.network, self.entropy)


class _Cosines(nn.Module):
    """Network and prototypes as one, from views to cosines; the teacher copies it."""

    def __init__(self, network: nn.Module, clusters: Clusters) -> None:
        super().__init__()
        self.network, self.clusters = network, clusters

    def forward(
        self, views: Tensor | tuple[Tensor, ...]
    ) -> Float[Tensor, "batch view component"]:
        z = self.network(views)
        return normalize(z, dim=-1) @ normalize(self.clusters.centres, dim=-1).mT
