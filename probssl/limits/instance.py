r"""Instance discrimination: classify every training image as its own class.

Unsupervised Feature Learning via Non-Parametric Instance Discrimination
(Wu et al., 2018)
https://arxiv.org/abs/1805.01978

The choices: p(y) categorical over the N images of the training set, 1/N each; p(z|y=i)
von Mises-Fisher around a direction :math:`b_i` for each image, kept in a memory bank,
with concentration κ = 1/τ; z is kept informative by its entropy under their mixture.

.. math:: E \log p(z \mid y = i) - E \log \frac1N \sum_j p(z \mid y = j)
    = \log N + E \log p(y = i \mid z)

The constants of the von Mises-Fisher density cancel. The value is at most log N; in
expectation it would be the mutual information of z and the image if the mixture were
the density of z. After each step the bank follows the representations,

.. math:: b_i \leftarrow \frac{m \, b_i + (1 - m) \, \bar z_i}
    {\lVert m \, b_i + (1 - m) \, \bar z_i \rVert}

The limit: q → a point on the sphere, p(y) → a prototype for each image, and H[z] → the
cross-entropy of z with the mixture, an upper bound on it.

Status: identity. It drops the decoder, the noise of the encoder, and the gradient
through the bank. The published loss estimates the sum over all images by noise
contrastive estimation and adds a proximal term; here the sum is exact, in blocks, and
there is no such term.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..arguments import between, whole
from ..entropies._log_sums import log_sums
from ..hyper import Learned, Reciprocal
from ..nn import dim_of
from ..priors import Spherical
from ..runtime.buffers import register_unknown, register_varying
from ..runtime.distributed import gather
from ..terms import Batch, Terms, check_rows
from ._base import PriorEmbedding, check_not_random
from ._place import KERNEL, ONE_OF_K, VMF, Place

__all__ = ["InstanceDiscrimination"]


class InstanceDiscrimination(PriorEmbedding):
    r"""The log-probability of the right image plus log N, per view, in nats.

    It takes the training items only, whose rows are in `Batch.index`: the bank has no
    direction for others. One view is enough. If an item occurs twice in a batch, the
    bank keeps either occurrence.

    Arguments:
        encoder, projector: As in `JointEmbedding`; their z is normalised here.
        items: The number N of images in the training set.
        temperature: The temperature :math:`\tau = 1 / \kappa`, a number or
            ``learned(number)``.
        momentum: The share m of a direction that stays when its image is seen, from 0
            to below 1; a buffer.
        dim: The dimension of z, for networks without an attribute `out` or `dim`.

    Raises:
        ValueError: If there are fewer than two items, the temperature or the momentum
            is out of range, or the dimension is not known.
    """

    place = Place(
        2018,
        ONE_OF_K("one of N images"),
        VMF,
        KERNEL("softmax over images"),
        "Instance discrimination is log N plus the log-softmax over the bank",
    )

    least = 1
    bank: Tensor
    momentum: Tensor
    population: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        items: int,
        projector: nn.Module | None = None,
        *,
        temperature: float | Learned = 0.07,
        momentum: float = 0.5,
        dim: int | None = None,
    ) -> None:
        super().__init__(encoder, projector)
        self.items = whole("items", items, 2, hint="give items=len(data)")
        self.prior = Spherical(None, Reciprocal(temperature, "temperature"))
        check_not_random(self.prior)
        register_varying(self, "momentum", momentum, _momentum)
        directions = torch.randn(items, dim_of(encoder, projector, dim))
        self.register_buffer("bank", normalize(directions, dim=-1))
        # The number of items in the data set of `fit`, to be compared with `items`.
        register_unknown(self, "population")

    def value(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        index = gather(batch.rows)
        # A copy, since the bank is overwritten before the backward pass reads it.
        bank = self.bank.to(z, copy=True)
        alignment = self.prior.log_kernel(bank[index].unsqueeze(1), z, plug_in=True)
        every = torch.ones(1, 1, dtype=torch.bool, device=z.device)
        sums = log_sums(self.prior, bank, z.flatten(0, 1), lambda _: every)
        if self.training:
            with torch.no_grad():
                share = (1 - self.momentum).to(self.bank)
                seen = self.bank[index].lerp(z.mean(1).to(self.bank), share)
                self.bank.index_copy_(0, index, normalize(seen, dim=-1))
        entropy = math.log(self.items) - sums.mean()
        return Terms(entropy=entropy, alignment=alignment.mean())

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """The network's output for all processes' items, as directions."""
        if z.shape[-1] != self.bank.shape[1]:
            raise ValueError(
                f"expected z with dim {self.bank.shape[1]}, as the bank, got "
                f"{z.shape[-1]}; build the objective with dim={z.shape[-1]}"
            )
        return super().prepared(z)

    def check(self, batch: Batch) -> None:
        """Raise an error if rows are unknown or not in the bank."""
        super().check(batch)
        check_rows(batch, self.items, self.population)


def _momentum(name: str, value: float) -> float:
    if between(name, value, 0, 1, "0.5 is published") == 1:
        raise ValueError(f"expected {name} below 1, got 1; 0.5 is published")
    return float(value)
