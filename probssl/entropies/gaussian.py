"""Gaussian estimates of H[z], from the covariance of z: log-determinant and VICReg."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import whole
from ..priors import Prior
from .base import Entropy, Views

__all__ = ["LogDeterminant", "VarianceCovariance", "covariance"]


class LogDeterminant(Entropy):
    r"""The entropy of a Gaussian with the covariance of z (log-determinant).

    .. math:: \hat H[z] = \tfrac12 \log |2 \pi e (\hat \Sigma + \epsilon I)|

    The Gaussian has the maximum entropy at this covariance: an upper bound on H[z], up
    to the sampling error of the covariance.

    Arguments:
        epsilon: The variance of Gaussian noise added to z. It keeps the value finite
            where there are fewer items than dimensions.
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        dim = z.shape[-1]
        noise = self.epsilon * torch.eye(dim, dtype=z.dtype, device=z.device)
        log_determinant = (covariance(z) + noise).logdet().mean()
        return 0.5 * (log_determinant + dim * math.log(2 * math.pi * math.e))

    def joint(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        r"""Return the entropy of a Gaussian with the joint covariance of all views.

        .. math:: \hat H[z_1, \dots, z_V] = \tfrac12 \log |2 \pi e (\hat
            \Sigma_{z_1, \dots, z_V} + \epsilon I)|
        """
        return self(z.flatten(1).unsqueeze(1))


class VarianceCovariance(Entropy):
    r"""VICReg's surrogate of the Gaussian entropy: variance hinge, squared covariances.

    .. math:: \hat H[z] = \frac d2 \log 2 \pi e - \sum_i \max(0, 1 - s_i)
        - w \sum_{i \ne j} \hat \Sigma_{ij}^2, \qquad
        s_i = \sqrt{\hat \Sigma_{ii} + \epsilon}

    Below 1 the hinge is the tangent of :math:`\log s_i` at 1, above it is zero; at unit
    variances the covariance term with :math:`w = 1/4` is the second-order expansion of
    :math:`\frac12 \log |\hat \Sigma|`.

    Arguments:
        covariance: The weight w.
        epsilon: Added to a variance before the square root.

    References:
        VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
        Learning (Bardes et al., 2022)
        https://arxiv.org/abs/2105.04906
    """

    def __init__(self, covariance: float = 0.25, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.covariance, self.epsilon = covariance, epsilon

    def forward(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        sigma = covariance(z)
        variance = sigma.diagonal(dim1=-2, dim2=-1)
        hinge = (1 - (variance + self.epsilon).sqrt()).relu().sum(-1).mean()
        square = sigma.square().sum((-2, -1)) - variance.square().sum(-1)
        unit = 0.5 * z.shape[-1] * math.log(2 * math.pi * math.e)
        return unit - hinge - self.covariance * square.mean()


def covariance(z: Views) -> Float[Tensor, "view dim dim"]:
    """The unbiased covariance of z over the batch, for each view."""
    items = whole("the number of items", len(z), 2, hint="use larger batches")
    centred = (z - z.mean(0)).transpose(0, 1)
    return centred.mT @ centred / (items - 1)
