r"""DINO: clusters told by a teacher, whose mean is kept in the middle.

Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021)
https://arxiv.org/abs/2104.14294

The choices: p(y) categorical, 1/K for each of K prototypes c_k; p(z|y = k) von
Mises-Fisher around c_k with concentration 1/τ. The code of an item is what a teacher
tells from another view, with a smaller temperature, less the mean b of what it told of
earlier batches:

.. math:: q_w(k) \propto \exp \frac{z_w'^\top c_k' - b_k}{\tau'}

z is kept informative by the entropy of y, H[y]: the centre b raises clusters that are
rare, so that no cluster takes all; the low temperature keeps q from being flat.

.. math:: E_{v \ne w} \sum_k q_w(k) \log p(z_v \mid y = k)
    - E \log \frac1K \sum_k p(z_v \mid y = k) = \log K - \text{the published loss}

The teacher has the parameters of encoder, projector and prototypes, averaged over
earlier steps.

The limit: that of SwAV, with codes from a teacher in the place of its own, and H[y]
held up by the centre in the place of log K by Sinkhorn's algorithm.

Status: heuristic. The value is that of the published loss, and the gradient that of
the published rule, in which the codes are held fixed: it is the gradient of no scalar.
Nothing ensures H[y]. It drops the decoder, the noise of the encoder, and of the
published recipe the prototypes frozen in the first epoch, and the 65536 of them for
ImageNet: the default is for small data. Momentum and τ' stay as they are, unless `fit`
has schedules for them; published are from 0.996 to 1, and from 0.04 to 0.07.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..entropies.equipartition import Clusters
from ..hyper import Learned, Reciprocal
from ..priors import Spherical
from ..runtime.buffers import register_varying
from ..runtime.distributed import gather
from ..terms import Batch, Terms
from ._ema import Teacher
from ._prototypes import Clustered, swapped, whole

__all__ = ["DINO"]


class DINO(Clustered):
    r"""Prediction of a teacher's clusters, per view, in nats.

    Of views of several sizes, as `views.MultiCrop` gives them, the teacher sees the
    first alone.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), whose output is normalised here.
        projector: A module behind it, whose output the objective sees.
        components: The number K of clusters, whose centres are called prototypes.
        temperature: The temperature :math:`\tau` of the clusters; a number or
            ``learned(number)``.
        teacher_temperature: That of the teacher's codes, :math:`\tau'`; a buffer,
            ``teacher_temperature``.
        momentum: The share of the teacher that stays in a step, at first: the buffer
            ``teacher.momentum`` has the present one.
        centre_momentum: The share of the centre b that stays in a step; a buffer,
            ``centre_momentum``.
        dim: The dimension of z; None takes it from the projector or the encoder.

    Raises:
        ValueError: If a number is out of its range, or the dimension is not known.
    """

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
        if not teacher_temperature > 0 or not 0 <= centre_momentum <= 1:
            raise ValueError(
                "expected teacher_temperature > 0 and centre_momentum from 0 to 1, got "
                f"{teacher_temperature} and {centre_momentum}; 0.04 and 0.9 are "
                "published"
            )
        prior = Spherical(None, Reciprocal(temperature, "temperature"))
        super().__init__(encoder, prior, components, projector, dim)
        register_varying(self, "teacher_temperature", teacher_temperature)
        register_varying(self, "centre_momentum", centre_momentum)
        self.teacher = Teacher(self._cosines(), momentum)
        self.register_buffer("centre", torch.zeros(components))

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        self.teacher.follow(self._cosines())
        log_density = self.entropy.log_density(z, self.prior)
        told = gather(self.teacher(whole(self.encoder, batch.views)))
        codes = ((told - self.centre) / self.teacher_temperature).softmax(-1)
        self._move_centre(told)
        return swapped(codes.transpose(0, 1), log_density)

    @torch.no_grad()
    def _move_centre(self, told: Float[Tensor, "batch view component"]) -> None:
        if self.training:
            mean = told.mean((0, 1)).to(self.centre.dtype)
            self.centre.lerp_(mean, (1 - self.centre_momentum).to(mean))

    def _cosines(self) -> "_Cosines":
        return _Cosines(self.network, self.entropy)


class _Cosines(nn.Module):
    """Views as cosines between z and the prototypes; what the teacher is a copy of."""

    def __init__(self, network: nn.Module, clusters: Clusters) -> None:
        super().__init__()
        self.network, self.clusters = network, clusters

    def forward(
        self, views: Tensor | tuple[Tensor, ...]
    ) -> Float[Tensor, "batch view component"]:
        z = self.network(views)
        return normalize(z, dim=-1) @ normalize(self.clusters.centres, dim=-1).mT
