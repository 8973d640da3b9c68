r"""SimVAE: the joint distribution itself, fitted by its ELBO.

A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
https://arxiv.org/abs/2402.01399

The choices: p(y) Gaussian (or flat), p(z|y) Gaussian, y integrated out exactly; z is
kept informative by the reconstruction, p(x|z).

.. math:: \text{ELBO} = \sum_v E_q[\log p(x_v \mid z_v)] + H[q(z_1, \dots, z_V \mid x)]
    + E_q[\log p(z_1, \dots, z_V)]

The limit: none; with one view and a standard normal marginal it is the VAE.

Status: exact bound. It drops nothing. Observed contents (labels) add a penalty, which
`SimVAE` states.
"""

from functools import partial

from torch import Tensor, nn

from ..arguments import at_least
from ..bounds import ELBO, IWAE
from ..joint import Joint
from ..runtime.buffers import register_varying
from ..terms import Batch, Terms, check_batch
from ._place import DECODER, GAUSSIAN, NORMAL, ONE_OF_K, STUDENT, UNIFORM, VMF, Place

__all__ = ["SimVAE"]

LABEL_WEIGHT = 10.0


class SimVAE(nn.Module):
    r"""The evidence lower bound (ELBO) of a joint, per item, in nats.

    **Labels.** Where the component k of an item is observed (`Batch.content`), the
    bound is that of :math:`\log p(x_1, \dots, x_V, k)`, in which one label weighs a
    few nats beside the hundreds of an image: alone it leaves components to clusters
    that other items form first. So the penalty has, per item of the data set,

    .. math:: \frac{w}{s} \, E_{q(z \mid x)}[\log p(k \mid z_1, \dots, z_V)]
        \quad \text{where k is observed,}

    with the share s of labelled items: over the data it is w times the mean over the
    labelled ones. Each label is then counted 1 + w/s times, a tempered likelihood: for
    a guide that does not know k the value is the lower bound of

    .. math:: \log \int p(x_1, \dots, x_V \mid z) \, p(z_1, \dots, z_V) \,
        p(k \mid z_1, \dots, z_V)^{1 + w/s} \, dz,

    the evidence of so many annotators who know z, draw k each, and agree. Under the
    guide `Coupled` the label term is :math:`\log q(k \mid x)`, as in M2. With w = 0
    the penalty is 0 and the value the bound itself; the other terms are always that.

    Arguments:
        joint: The distribution and its guide.
        bound: The bound, `bounds.ELBO` or `bounds.IWAE`.
        label_weight: The weight w of the labels, all together, beside one item; a
            buffer, which a schedule may change.

    References:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014)
        https://arxiv.org/abs/1406.5298

    Raises:
        ValueError: If the weight is negative or not finite.
    """

    place = Place(
        2024,
        (GAUSSIAN, ONE_OF_K("mixture"), UNIFORM("sphere"), GAUSSIAN),
        (NORMAL, NORMAL, VMF, STUDENT),
        DECODER,
        "ELBO is below alignment plus entropies minus those of the data",
    )

    label_weight: Tensor
    labelled: Tensor | None

    def __init__(
        self,
        joint: Joint,
        bound: ELBO | IWAE = ELBO(),
        label_weight: float = LABEL_WEIGHT,
    ) -> None:
        super().__init__()
        self.joint, self.bound = joint, bound
        check = partial(at_least, least=0, hint="0 is the bound itself")
        register_varying(self, "label_weight", label_weight, check)
        # The share of items with a known content, which fit sets.
        self.register_buffer("labelled", None, persistent=False)

    def forward(self, batch: Batch) -> Terms:
        if not isinstance(batch, Batch):
            check_batch(batch)
        if batch.content is None:
            return self.bound(self.joint, batch)
        share = self.labelled
        if share is None:
            share = (batch.content >= 0).to(self.label_weight).mean()
            share = share.clamp(min=1 / len(batch.content))
        return self.bound(self.joint, batch, self.label_weight / share)

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The mean of q(z|x) for single views."""
        return self.joint.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the batch cannot have come from the model."""
        self.joint.check(batch)
