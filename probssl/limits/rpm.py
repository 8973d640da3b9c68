r"""RPM, the recognition-parametrised model: an exact likelihood without a decoder.

Unsupervised Representation Learning with Recognition-Parametrised Probabilistic Models
(Walker et al., 2023)
https://arxiv.org/abs/2209.05661
InfoNCE Is Variational Inference in a Recognition Parameterised Model (Aitchison and
Ganev, 2024)
https://arxiv.org/abs/2107.02495

The choices: p(y) categorical over K classes, with learned weights; p(z|y) absent, since
p(x given y) is written by Bayes' rule with a recognition factor f(y given x), the
softmax of the encoder's output, and the measure p_0 of the views of the data, of which
there is no model:

.. math:: p(x_1, \dots, x_V, y) = p(y) \prod_v p_0(x_v) \, \frac{f(y \mid x_v)}{F_v(y)},
    \qquad F_v(y) = E_{p_0} f(y \mid x_v)

What keeps z informative is F, by which each class has to win its views from all others.
The value is the log-density of the views relative to p_0, y summed out,

.. math:: E \log \frac{p(x_1, \dots, x_V)}{\prod_v p_0(x_v)}
    = E \log \sum_k p(k) \prod_v \frac{f(k \mid x_v)}{F_v(k)}

With the batch as p_0, F is the mean over its N items, and the model is a distribution:
over all N^V combinations of views it sums to one. Hence the value is at most the total
correlation of the views, for two their mutual information; in a batch this is at most
(V − 1) log N.

With the N items as classes, p(k) = 1/N, and one view that knows its item, f(k given
x_2) = [k = i], while the other has f(k given x_1) the softmax of similarities, it is
log N minus the loss of InfoNCE, plus the divergence of F_1 from uniform weights.

The limit: none; with instance contents that of InfoNCE.

Status: exact bound, on the total correlation of the views, without a decoder. It is an
exact likelihood ratio given F; as an estimate for the population it is too high, since
F is that of the batch. It drops p(x given z), and with it all about the views that does
not concern y.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import whole
from ..nn import dim_of
from ..terms import Batch, Terms
from ._base import JointEmbedding
from ._place import NONE, ONE_OF_K, SHARES, Place

__all__ = ["RPM"]


class RPM(JointEmbedding):
    r"""The log-likelihood of an item's views relative to independent views, in nats.

    The encoder's output, or the projector's, are the logits of f(y given x).

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        components: The number K of classes, which is that of the outputs; for networks
            without an attribute `out` or `dim`.

    Raises:
        ValueError: If the number of classes is not known, is below 2, or is not that of
            the outputs.
    """

    place = Place(
        2023,
        ONE_OF_K,
        NONE,
        SHARES("shares of classes"),
        "RPM is the likelihood ratio of a distribution over all combinations",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        components: int | None = None,
    ) -> None:
        super().__init__(encoder, projector)
        hint = "give the encoder an output for each class"
        if components is not None:
            whole("components", components, 2, hint=hint)
        known = dim_of(encoder, projector, components)
        whole("components", known, 2, hint=hint)
        self.logits = nn.Parameter(torch.zeros(known))

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        if z.shape[-1] != len(self.logits):
            raise ValueError(
                f"expected {len(self.logits)} logits from the networks, got "
                f"{z.shape[-1]}; build the objective with components={z.shape[-1]}"
            )
        factors = z.log_softmax(-1)
        means = factors.logsumexp(0) - math.log(len(z))  # log F
        ratios = (factors - means).sum(1) + self.logits.log_softmax(-1)
        return Terms(alignment=ratios.logsumexp(-1).mean())
