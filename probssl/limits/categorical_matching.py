r"""Categorical matching: two views of an item fall into the same of K classes.

Understanding Self-Supervised Learning via Latent Distribution Matching (2026), whose
code is a package that is called probssl as well, and is not this one
https://arxiv.org/abs/2605.03517
Invariant Information Clustering for Unsupervised Image Classification and Segmentation
(Ji et al., 2019), the objective without a prior
https://arxiv.org/abs/1807.06653

The choices: z is a class, k of K, and p(k given x) the softmax of the encoder's output;
p(y) categorical, 1/K each; p(k given y) a symmetric channel, which keeps the content or
draws another class. So two views of an item have the joint distribution

.. math:: P(k, k') = \frac{e^{\beta [k = k']}}{K (e^\beta + K - 1)}, \qquad
    \beta = \log \frac{(K - 1) \, m}{1 - m}

where m is the probability that they match. z is kept informative by its entropy, which
needs no estimate of a density: with the K × K table of a batch

.. math:: T(k, k') = E \, p(k \mid x_1) \, p(k' \mid x_2), \qquad T(k) = \sum_{k'} T(k,
    k')

both entropies are sums. With `all_views` the value is minus the divergence of the table
from the prior, at most 0, with equality iff T = P:

.. math:: E_T \log P + H[T(k, k')] = -KL(T \,\|\, P)

Without, it is at most the mutual information of the two classes; without a prior,
``match=None``, it is this mutual information, where P is fitted to the table:

.. math:: E_T \log P + 2 H[T(k)] \le I[k, k'] = 2 H[T(k)] - H[T(k, k')]

T is the mean over both orders of all pairs of views; the authors' code has one order,
whose entropy is lower where T is not symmetric.

The limit: none is taken in q, which is the softmax; log p(x given z) is dropped, and
H[z] is exact for the batch.

Status: identity, of a symmetric table. It drops the decoder. In a batch of few items
entropies are too low in the mean.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.special import xlogy

from ..arguments import between, whole
from ..runtime.buffers import register_varying
from ..terms import Batch, Terms
from ._base import JointEmbedding, over_pairs
from ._place import CHANNEL, ONE_OF_K, SHARES, Place

__all__ = ["CategoricalMatching"]


def _probability(name: str, value: float) -> float:
    """A probability strictly between 0 and 1, also where float32 rounds it."""
    hint = "0.9 is published"
    number = between(name, value, 0, 1, hint, open=True)
    rounded = torch.tensor(number, dtype=torch.float32).item()
    if rounded in (0.0, 1.0):
        between(
            name, rounded, 0, 1, f"float32 rounds {number} to it; {hint}", open=True
        )
    return number


class CategoricalMatching(JointEmbedding):
    r"""A symmetric prior over pairs of classes, plus the entropy of classes, in nats.

    The encoder's output, or the projector's, are the logits of the classes; their
    number is its dimension. Published is a `match` that rises during training, so that
    items spread over the classes before these separate:
    ``fit(…, schedules={"match": ps.train.linear(0.5, 0.9)})``.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        match: The probability m that two views of an item are in the same class; a
            buffer. None fits P to the table, and the value is the mutual information.
        all_views: Whether the entropy is that of both views together, and the value
            minus a divergence.

    Raises:
        ValueError: If `match` is not between 0 and 1, or None with ``all_views=True``,
            where the value would be 0, or if there is only one class.
    """

    place = Place(
        2026,
        ONE_OF_K,
        CHANNEL("a symmetric channel"),
        SHARES("entropy of classes"),
        "Categorical matching is minus the divergence of its table from the prior",
    )

    match: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        match: float | None = 0.9,
        all_views: bool = True,
    ) -> None:
        super().__init__(encoder, projector)
        if match is None and all_views:
            raise ValueError(
                "expected a number as match for all_views=True, got None; minus the "
                "divergence of the table from itself is 0: give all_views=False for "
                "the mutual information"
            )
        self.fitted, self.all_views = match is None, all_views
        if match is not None:
            register_varying(self, "match", match, _probability)

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        table = self.table(z)
        joint, single = entropy(table), entropy(table.sum(0))
        if self.fitted:
            alignment = -joint
        else:
            match, classes = self.match.to(table), len(table)
            same = table.trace()
            other = ((1 - match) / (classes - 1)).log()
            alignment = same * match.log() + (1 - same) * other - math.log(classes)
        return Terms(
            entropy=joint if self.all_views else 2 * single, alignment=alignment
        )

    def table(
        self, z: Float[Tensor, "batch view dim"]
    ) -> Float[Tensor, "component component"]:
        """Return T, the joint distribution of the classes of two views of an item."""
        whole("outputs", z.shape[-1], 2, hint="give the encoder one for each class")
        p = z.softmax(-1).transpose(0, 1)
        pairs = p.unsqueeze(1).mT @ p.unsqueeze(0)
        return over_pairs(pairs.permute(2, 3, 0, 1) / len(z))


def entropy(p: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return the entropy of a table, whose gradient is finite also where it is 0."""
    return -xlogy(p, p.clamp(min=torch.finfo(p.dtype).tiny)).sum()
