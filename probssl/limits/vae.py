r"""VAE and beta-VAE: the ELBO of views that share no content.

Auto-Encoding Variational Bayes (Kingma and Welling, 2014)
https://arxiv.org/abs/1312.6114
beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
(Higgins et al., 2017)
https://openreview.net/forum?id=Sy2fzU9gl
Importance Weighted Autoencoders (Burda et al., 2016)
https://arxiv.org/abs/1509.00519

The choices: p(z_v|y) = N(0, I) for every y; z is kept informative by p(x|z).

.. math:: E_q[\log p(x \mid z)] + \beta \, (H[q(z \mid x)] + E_q[\log p(z)])

The limit: Var(z|y) → 1 and Var(y) → 0 in the Gaussian prior.

Status: exact bound for beta = 1 (and, with `bounds.IWAE`, a tighter one); a looser
bound for beta > 1. It drops the content.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ..arguments import at_least
from ..bounds import ELBO, IWAE
from ..joint import Joint
from ..priors import Independent
from ..runtime.buffers import register_varying
from ..terms import Batch, Terms
from ._place import ABSENT, DECODER, NORMAL, Place

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""The evidence lower bound (ELBO) of independent views, per item, in nats.

    Arguments:
        joint: The distribution and its guide; its prior is `priors.Independent`.
        beta: The weight :math:`\beta` of entropy plus alignment, which is minus the KL
            divergence KL(q ‖ p(z)); a buffer, which a schedule may warm up.
        bound: The bound, `bounds.ELBO` or `bounds.IWAE`.

    Raises:
        ValueError: If the views of the joint share a content, or beta is negative.
    """

    place = Place(
        2014,
        ABSENT("views independent"),
        NORMAL("N(0, I)"),
        DECODER,
        "SimVAE tends to the VAE at second order as the content vanishes",
    )

    beta: Tensor

    def __init__(
        self, joint: Joint, beta: float = 1.0, bound: ELBO | IWAE = ELBO()
    ) -> None:
        super().__init__()
        if not isinstance(joint.prior, Independent):
            raise ValueError(
                "expected a joint with independent views for VAE, got the prior "
                f"{type(joint.prior).__name__}; use priors.Independent(dim), or SimVAE"
            )
        self.joint, self.bound = joint, bound
        check = partial(at_least, least=0, hint="1 is the VAE's")
        register_varying(self, "beta", beta, check)

    def forward(self, batch: Batch) -> Terms:
        terms = self.bound(self.joint, batch)
        beta = self.beta.to(torch.as_tensor(terms.entropy))
        return terms._replace(
            entropy=beta * terms.entropy, alignment=beta * terms.alignment
        )

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The mean of q(z|x)."""
        return self.joint.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the batch cannot have come from the model."""
        self.joint.check(batch)
