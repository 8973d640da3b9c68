r"""Barlow Twins: make the cross-correlation matrix of two views the identity.

Barlow Twins: Self-Supervised Learning via Redundancy Reduction
(Zbontar et al., 2021)
https://arxiv.org/abs/2103.03230

The choices: p(y) flat, p(z|y) = N(y, s² I) for z standardised over the batch; z is kept
informative by redundancy reduction, a penalty on squared correlations.

With :math:`C = E[\hat z_1 \hat z_2^\top]`, the cross-correlation of two views, the
published loss

.. math:: L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2

becomes nats by the factor 1/(4λ): then for equal views, whose C is the correlation
matrix R, the second sum is the second order of the entropy of a Gaussian of unit
variances, :math:`\frac12 \log |2 \pi e R|`,

.. math:: -\frac{L}{4 \lambda} + \frac d2 \log 2 \pi e
    = \underbrace{\frac d2 \log 2 \pi e - \frac14 \sum_{i \ne j} C_{ij}^2}_{\hat H[z]}
    \; \underbrace{- \frac{1}{4 \lambda} \sum_i (1 - C_{ii})^2}_{\text{no density}}

The first sum is the square of an alignment: the Gaussian alignment is
:math:`-\frac{1}{2 s^2} \sum_i (1 - C_{ii})` up to a constant, since
:math:`1 - C_{ii} = \frac12 E(\hat z_{1i} - \hat z_{2i})^2`. Their gradients in
:math:`C_{ii}` agree where :math:`s^2 = \lambda / (1 - C_{ii})`. So the published
λ = 0.005 pulls unrelated views as s = 0.07 does, and equal views not at all.

The limit: log-det at unit variances, with :math:`\log |R|` replaced by its second
order, the correlation within a view by that between views, and the alignment by its
square.

Status: surrogate. The entropy is exact to second order, for equal views; the square of
the alignment is no log-density and counts as a penalty. It drops what log-det drops,
and the variances of z: a shift or stretch of a dimension changes the value only through
`epsilon`.
"""

import math
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import at_least, positive
from ..entropies import Entropy
from ..priors import Gaussian, Prior
from ..terms import Batch, Terms
from ._base import Embedding
from ._place import FLAT, MOMENTS, NORMAL, Place

__all__ = ["BarlowTwins"]


class BarlowTwins(Embedding):
    r"""Barlow Twins' loss in nats per item, averaged over the pairs of views.

    Arguments:
        encoder, projector: As in `JointEmbedding`; the projector is published with
            three layers, far wider than the representation.
        redundancy: The published weight :math:`\lambda`.
        epsilon: Added to a variance before its square root, as in batch norm.

    Raises:
        ValueError: If redundancy is not positive, or epsilon negative.
    """

    place = Place(
        2021,
        FLAT,
        NORMAL,
        MOMENTS("squared correlations"),
        "Barlow Twins tends to log-det at third order near white views",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        redundancy: float = 0.005,
        epsilon: float = 1e-5,
    ) -> None:
        redundancy = positive("redundancy", redundancy, "0.005 is published")
        prior = Gaussian(None, math.sqrt(redundancy), y_scale=math.inf)
        super().__init__(encoder, prior, _CrossCorrelation(), projector=projector)
        self.redundancy = redundancy
        self.epsilon = at_least("epsilon", epsilon, 0, "1e-5 is published")

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        apart = (1 - _diagonals(z)).square().sum(-1).mean()
        return Terms(
            entropy=self.entropy(z, self.prior), penalty=-apart / (4 * self.redundancy)
        )

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """z of all processes' items, each dimension of each view standardised."""
        return standardised(super().prepared(z), self.epsilon)


class _CrossCorrelation(Entropy):
    """The second-order entropy of a unit-variance Gaussian, from pairs of views."""

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        first, second = _pairs(z)
        correlation = torch.einsum("npi,npj->pij", first, second) / len(z)
        square = correlation.square().sum((-2, -1)) - _diagonals(z).square().sum(-1)
        return 0.5 * z.shape[-1] * math.log(2 * math.pi * math.e) - square.mean() / 4


def standardised(
    z: Float[Tensor, "batch view dim"], epsilon: float
) -> Float[Tensor, "batch view dim"]:
    """Return z with mean 0 and variance 1 over the batch in each dimension and view."""
    variance = z.var(0, correction=0)
    return (z - z.mean(0)) * (variance + epsilon).rsqrt()


def _diagonals(z: Float[Tensor, "batch view dim"]) -> Float[Tensor, "pair dim"]:
    first, second = _pairs(z)
    return (first * second).mean(0)


def _pairs(z: Float[Tensor, "batch view dim"]) -> tuple[Tensor, Tensor]:
    """The first and the second views of all unordered pairs."""
    first, second = zip(*combinations(z.unbind(1), 2), strict=True)
    return torch.stack(first, 1), torch.stack(second, 1)
