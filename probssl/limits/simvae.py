r"""SimVAE: the joint distribution itself, fitted by its ELBO.

A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
https://arxiv.org/abs/2402.01399

The choices: p(y) Gaussian (or flat), p(z|y) Gaussian, y integrated out exactly; z is
kept informative by the reconstruction, p(x|z).

.. math:: \text{ELBO} = \sum_v E_q[\log p(x_v \mid z_v)] + H[q(z_1, \dots, z_V \mid x)]
    + E_q[\log p(z_1, \dots, z_V)]

The limit: none; with one view and a standard normal marginal it is the VAE.

Status: exact bound. It drops nothing.
"""

from torch import Tensor, nn

from ..bounds import ELBO, IWAE
from ..joint import Joint
from ..terms import Batch, Terms

__all__ = ["SimVAE"]


class SimVAE(nn.Module):
    """The evidence lower bound (ELBO) of a joint, per item, in nats.

    Arguments:
        joint: The distribution and its guide.
        bound: The bound, `bounds.ELBO` or `bounds.IWAE`.
    """

    def __init__(self, joint: Joint, bound: ELBO | IWAE = ELBO()) -> None:
        super().__init__()
        self.joint, self.bound = joint, bound

    def forward(self, batch: Batch) -> Terms:
        return self.bound(self.joint, batch)

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The mean of q(z|x) for single views."""
        return self.joint.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the batch cannot have come from the model."""
        self.joint.check(batch)
