r"""SigLIP: tell pairs of one item from pairs of two, each pair by itself.

Sigmoid Loss for Language Image Pre-Training (Zhai et al., 2023)
https://arxiv.org/abs/2303.15343
Noise-Contrastive Estimation of Unnormalized Statistical Models (Gutmann and Hyvärinen,
2012)
https://jmlr.org/papers/v13/gutmann12a.html
On Variational Bounds of Mutual Information (Poole et al., 2019), for the limit below
https://arxiv.org/abs/1905.06922

The choices: p(y) empirical, y = the other view; p(z|y) von Mises-Fisher with
concentration κ = 1/τ; z is kept informative by the logistic loss of pairs of different
items, N − 1 for each pair of one item. With the logits :math:`l_{ij} = \kappa
u_i^\top v_j + b` the published loss is

.. math:: L = -\frac1N \sum_i \Big( \log \sigma(l_{ii})
    + \sum_{j \ne i} \log \sigma(-l_{ij}) \Big)

The constant H of the value is N times the entropy of the labels, of which one in N is
positive: minus the loss plus H is at most N times the information that a pair has about
its label, which in turn is at most the mutual information of the views,

.. math:: H - L = \underbrace{E \log \frac{\sigma(l_{ii})}{1 / N}}_\text{alignment}
    + \underbrace{(N - 1) \, E \log \frac{\sigma(-l_{ij})}{1 - 1 / N}}_\text{entropy}
    \le I[z_1, z_2]

Over all functions it is largest at the pointwise mutual information and the log odds,

.. math:: l = \log \frac{p(z_1, z_2)}{p(z_1) \, p(z_2)} - \log (N - 1)

So with a proper `prior` the logits are these, `Prior.pmi` less log(N − 1), and there is
no bias to be learned.

The limit: q → a point on the sphere, the content plugged in. With :math:`s = l +
\log (N - 1)` and N → ∞ the value becomes :math:`E_{p(z_1, z_2)} s + 1 - E_{p(z_1)
p(z_2)} e^s`: the log-normaliser of InfoNCE is replaced by its tangent at 1.

Status: surrogate, of first order in 1/N and in the normaliser. The value is minus the
published loss plus the constant H, exactly, and at most the mutual information for
every N. It drops the decoder, the noise of the encoder, and the uncertainty of y.
"""

import math
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..arguments import alone, between
from ..hyper import Learned, Reciprocal
from ..priors import Prior, Spherical
from ..terms import Batch, Terms
from ._base import PriorEmbedding, check_not_random
from ._place import KERNEL, OTHER_VIEW, VMF, Place

__all__ = ["SigLIP"]

PUBLISHED_TEMPERATURE, PUBLISHED_BIAS = Learned(0.1), -10.0


class SigLIP(PriorEmbedding):
    r"""The logistic log-likelihood of all pairs plus the entropy of labels, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`, or as in `CLIP`, one for each
            modality; their z is normalised here.
        temperature: The temperature :math:`\tau = 1 / \kappa`, a number or
            ``learned(number)``; None means ``learned(0.1)``.
        bias: The bias b at the start, which is learned; None means −10, as published.
        prior: A proper prior, whose pointwise mutual information less log(N − 1) are
            the logits; it replaces both.

    Raises:
        ValueError: If a number is out of range, the temperature or bias is given
            beside a prior, the prior is flat, or a hyper-parameter is random.
    """

    place = Place(
        2023,
        OTHER_VIEW,
        VMF,
        KERNEL("logistic loss of other pairs"),
        "SigLIP tends to a bound on mutual information at first order",
    )

    bias: nn.Parameter | None

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        temperature: float | Learned | None = None,
        bias: float | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(encoder, projector)
        self.register_parameter("bias", None)
        if prior is None:
            temperature = PUBLISHED_TEMPERATURE if temperature is None else temperature
            prior = Spherical(None, Reciprocal(temperature, "temperature"))
            start = PUBLISHED_BIAS if bias is None else bias
            between("bias", start, -math.inf, math.inf, "-10 is published", open=True)
            self.bias = nn.Parameter(torch.tensor(start))
        else:
            hint = "its pointwise mutual information has both"
            alone("temperature", temperature, "beside a prior", hint)
            alone("bias", bias, "beside a prior", hint)
            if not prior.proper:
                raise ValueError(
                    f"expected a proper prior, got {prior}, of which one view has no "
                    "density; give a finite y_scale"
                )
        check_not_random(prior)
        self.prior = prior

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        items, views, _ = z.shape
        first, second = zip(*combinations(range(views), 2), strict=True)
        logits = self.logits(z[:, first].transpose(0, 1), z[:, second].transpose(0, 1))
        same = torch.eye(items, dtype=torch.bool, device=z.device)
        positive = logsigmoid(logits.diagonal(dim1=-2, dim2=-1)).mean()
        negative = logsigmoid(-logits).masked_fill(same, 0.0).sum((-2, -1)).mean()
        different = items - 1
        return Terms(
            entropy=negative / items + different * math.log(items / different),
            alignment=positive + math.log(items),
        )

    def logits(
        self, a: Float[Tensor, "*pair n dim"], b: Float[Tensor, "*pair n dim"]
    ) -> Float[Tensor, "*pair n n"]:
        """Return the log odds that two representations are views of one item."""
        if self.bias is None:
            return self.prior.pmi(a, b) - math.log(a.shape[-2] - 1)
        return a @ b.mT / self.temperature + self.bias
