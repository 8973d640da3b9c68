r"""MoCo: a slow teacher shows the content, and a queue of its outputs the entropy.

Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)
https://arxiv.org/abs/1911.05722
Improved Baselines with Momentum Contrastive Learning (Chen et al., 2020), where the
projector and the temperature come from
https://arxiv.org/abs/2003.04297
Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
(Hu et al., 2023), for the heavy tail
https://arxiv.org/abs/2205.14814

The choices: p(y) empirical, y = the teacher's output t for the other view; p(z|y) von
Mises-Fisher with concentration κ = 1/τ; z is kept informative by a kernel density
estimate of H[z], whose kernels sit on that t and on a queue Q of earlier ones.

.. math:: E \log p(z \mid y = t^+) - E \log \frac{1}{1 + |Q|} \Big(p(z \mid y = t^+)
    + \sum_{k \in Q} p(z \mid y = k)\Big) = \log(1 + |Q|) - \text{InfoNCE}

in the mean over ordered pairs of views, one as the query, the other as the key. Only
what is filled of the queue counts. The teacher follows the encoder,
:math:`\theta' \leftarrow m \theta' + (1 - m) \theta`.

Another prior gives another kernel: with `priors.TSNE` it is t-MoCo, heavy-tailed, each
query with its own normaliser over its key and the queue (Hu et al., 2023; there z is
standardised by a batch norm without parameters, which a projector may end in).

The limit: that of SimCLR; with m = 0, a gradient through the keys, and the batch for a
queue it would be InfoNCE.

Status: identity for the value at a step; there is no one function that the steps
follow, as teacher and queue move. It drops the decoder, the noise of the encoder, the
uncertainty of y, and the gradient through the keys. The published method takes each
pair in one order only, and shuffles items between processes for batch norm.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..entropies import Queue
from ..hyper import Learned, Reciprocal
from ..nn import dim_of
from ..priors import Prior, Spherical
from ..runtime.distributed import gather
from ..terms import Batch, Terms
from ._base import JointEmbedding, check_not_random, over_pairs
from ._ema import Teacher

__all__ = ["MoCo"]


class MoCo(JointEmbedding):
    r"""The log-probability of the right key plus log(1 + |Q|), per view, in nats.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), whose output is normalised here.
        projector: A module behind it, whose output the objective sees.
        temperature: The temperature :math:`\tau = 1 / \kappa`, a number or
            ``learned(number)``; 0.07 in the first paper, 0.2 in the second.
        momentum: The share m of the teacher that stays in a step, at first: the buffer
            ``teacher.momentum`` has the present one. Published is 0.999, for a million
            steps; 0.99 is for some thousands.
        queue: How many keys of earlier batches are kept; 65536 for ImageNet.
        dim: The dimension of z, for networks that do not tell theirs.
        prior: What gives the kernel p(z|y), in the place of `temperature`; None means
            von Mises-Fisher.

    Raises:
        ValueError: If a number is out of range, the dimension is not known, or a
            hyper-parameter of the prior is random.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        temperature: float | Learned = 0.2,
        momentum: float = 0.99,
        queue: int = 4096,
        dim: int | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(encoder, projector)
        sphere = Spherical(None, Reciprocal(temperature, "temperature"))
        self.prior = sphere if prior is None else prior
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

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """The network's output for all processes' items, on the prior's support."""
        return self.prior.on_support(gather(z))
