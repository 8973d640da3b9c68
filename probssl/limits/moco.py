r"""MoCo: positives from a momentum (EMA) encoder, negatives from a queue.

Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)
https://arxiv.org/abs/1911.05722
Improved Baselines with Momentum Contrastive Learning (Chen et al., 2020), the source of
the projection head and the temperature
https://arxiv.org/abs/2003.04297
Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
(Hu et al., 2023), the source of t-MoCo
https://arxiv.org/abs/2205.14814

The choices: a query z is the encoder's output for one view. Its content y is its key t,
the momentum encoder's output for another view of the item; p(y) is empirical. p(z|y) is
von Mises-Fisher around y with concentration κ = 1/τ. z is kept informative by a kernel
density estimate of H[z], with kernels at the key and at a queue Q of earlier keys,
which are the negatives.

.. math:: E \log p(z \mid y = t) - E \log \frac{1}{1 + |Q|} \Big(p(z \mid y = t)
    + \sum_{k \in Q} p(z \mid y = k)\Big) = \log(1 + |Q|) - \text{InfoNCE}

E is the mean over items and ordered pairs of views: the first view of a pair gives the
query, the second the key. |Q| counts the filled places of the queue. The parameters of
the momentum encoder are an EMA, :math:`\theta' \leftarrow m \theta' + (1 - m) \theta`.

With `priors.TSNE` as the prior it is t-MoCo (Hu et al., 2023): the kernel is
heavy-tailed, and each query has a normaliser over its key and the queue. The paper
standardises z by a batch norm without parameters; a projector may end in one.

The limit: as for SimCLR, q(z|x) → a point, y → the key, and H[z] → its kernel estimate.
With m = 0, a gradient through the keys, and the other items of the batch as the queue
it would be InfoNCE.

Status: identity for the value at each step. The steps together maximise no one
function, since momentum encoder and queue change. It drops the decoder, the noise of
the encoder, the uncertainty of y, and the gradient through the keys. The published
method uses each pair of views in one order only, and shuffles items between processes
because of batch norm.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import alone
from ..entropies import Queue
from ..hyper import Learned, Reciprocal
from ..nn import dim_of
from ..priors import Prior, Spherical
from ..terms import Batch, Terms
from ._base import PriorEmbedding, check_not_random, over_pairs
from ._ema import Teacher
from ._place import KERNEL, MOVING, STUDENT, VMF, Place

__all__ = ["MoCo"]


class MoCo(PriorEmbedding):
    r"""The log-probability of the right key plus log(1 + |Q|), per view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        temperature: The temperature :math:`\tau = 1 / \kappa`, a number or
            ``learned(number)``; None means 0.2, as in the second paper (0.07 in the
            first).
        momentum: The initial share m of the momentum encoder that stays in a step; the
            buffer ``teacher.momentum`` holds it. Published is 0.999, for a million
            steps; 0.99 is for some thousands.
        queue: The number of keys kept from earlier batches; 65536 for ImageNet.
        dim: The dimension of z, for networks without an attribute `out` or `dim`.
        prior: Another prior, whose kernel is p(z|y); it replaces `temperature`.

    Raises:
        ValueError: If a number is out of range, the dimension is not known, both
            `temperature` and `prior` are given, or a hyper-parameter is random.
    """

    place = Place(
        2020,
        MOVING("an EMA encoder's view"),
        (VMF, STUDENT),
        KERNEL("kernel density over a queue"),
        "MoCo is the log of one and the queue minus its loss",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        temperature: float | Learned | None = None,
        momentum: float = 0.99,
        queue: int = 4096,
        dim: int | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(encoder, projector)
        if prior is None:
            temperature = 0.2 if temperature is None else temperature
            prior = Spherical(None, Reciprocal(temperature, "temperature"))
        else:
            hint = "set the scale of the prior instead"
            alone("temperature", temperature, "beside a prior", hint)
        self.prior = prior
        check_not_random(self.prior)
        self.teacher = Teacher(self.network, momentum)
        self.keys = Queue(queue, dim_of(encoder, projector, dim))

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        self.teacher.follow(self.network)
        keys = self.prepared(self.teacher(batch.views))

        queued = self.keys.log_sums(self.prior, z.flatten(0, 1)).view(len(z), 1, -1)
        alignment = self.prior.log_kernel(keys, z, plug_in=True)
        entropy = (1 + self.keys.filled.to(queued)).log() - alignment.logaddexp(queued)
        self.keys.push(keys.flatten(0, 1))
        return Terms(
            entropy=over_pairs(entropy).mean(), alignment=over_pairs(alignment).mean()
        )
