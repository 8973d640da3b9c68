"""Gaussian estimates of H[z], from the covariance of z: log-determinant and VICReg."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..arguments import at_least, whole
from ..priors import Prior
from .base import Entropy, Views, coordinates

__all__ = ["LogDeterminant", "VarianceCovariance", "covariance"]


class LogDeterminant(Entropy):
    r"""The entropy of a Gaussian with the covariance of z (log-determinant).

    .. math:: \hat H[z] = \tfrac12 \log |2 \pi e (\hat \Sigma + \epsilon I)|

    The Gaussian has the maximum entropy at this covariance: an upper bound on H[z], up
    to the sampling error of the covariance. It is computed in float64. With n items in
    more than n dimensions, :math:`|\hat \Sigma + \epsilon I| = \epsilon^{d - n} |K +
    \epsilon I|` for the (n, n) Gram matrix K of the centred items over n − 1.

    Arguments:
        epsilon: The variance of Gaussian noise added to z. It keeps the value finite
            where there are fewer items than dimensions, or z has collapsed: with 0 the
            entropy of a collapsed z is minus infinity.

    Raises:
        TypeError: If epsilon is not a number.
        ValueError: If epsilon is negative, or 0 with at most as many items as
            dimensions, or z lies on a sphere, where a Gaussian has no density.
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = at_least("epsilon", epsilon, 0)

    def forward(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        z = coordinates(z, prior)
        dim, least = z.shape[-1], 2 if self.epsilon else z.shape[-1] + 1
        hint = "use larger batches" + (" or a positive epsilon" if least > 2 else "")
        whole("the number of items", len(z), least, hint=hint)
        log_determinant, *_ = _LogDeterminant.apply(z.transpose(0, 1), self.epsilon)
        return 0.5 * (log_determinant.mean() + dim * math.log(2 * math.pi * math.e))

    def joint(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        r"""Return the entropy of a Gaussian with the joint covariance of all views.

        .. math:: \hat H[z_1, \dots, z_V] = \tfrac12 \log |2 \pi e (\hat
            \Sigma_{z_1, \dots, z_V} + \epsilon I)|
        """
        return self(coordinates(z, prior).flatten(1).unsqueeze(1))


class _LogDeterminant(torch.autograd.Function):
    r"""Of the covariance of each view plus epsilon, by Cholesky in float64.

    The gradient is :math:`\frac{2}{n - 1} C (\hat \Sigma + \epsilon I)^{-1}` for the
    centred items C. Along a direction in which z has collapsed C is rounding, which
    :math:`1 / \epsilon` would amplify. So in float32 the gradient is multiplied by
    :math:`\hat \Sigma (\hat \Sigma + \delta I)^{-1}`, where :math:`\delta` is the
    variance of rounding errors of 8 units: one in all other directions. By partial
    fractions the product of both is :math:`(\epsilon (\hat \Sigma + \epsilon I)^{-1} -
    \delta (\hat \Sigma + \delta I)^{-1}) / (\epsilon - \delta)`.
    """

    @staticmethod
    def forward(
        z: Float[Tensor, "view n dim"], epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (items, dim), centred = z.shape[-2:], z.to(torch.double, copy=True)
        centred -= centred.mean(-2, keepdim=True)
        wide = items < dim
        gram = centred @ centred.mT if wide else centred.mT @ centred
        noise = gram.new_full((1, 1, 1, 1), epsilon)
        if z.dtype != torch.double:
            unit, own = torch.finfo(z.dtype).eps / 2, torch.finfo(torch.double).eps
            share = (8 * unit) ** 2 * max(1, dim / (items - 1)) + 8 * dim * own
            delta = share * z.square().mean().double() + torch.finfo(torch.float).tiny
            noise = torch.cat([noise, delta.reshape(1, 1, 1, 1)])
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        root, failed = torch.linalg.cholesky_ex(gram / (items - 1) + noise * eye)
        value = 2 * root[0].diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if wide:
            value = value + (dim - items) * math.log(epsilon)
        value = value.masked_fill(failed[0] > 0, -math.inf)  # singular to rounding
        return value.to(z.dtype), centred, noise, root

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.dtype = inputs[0].dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:
        value, centred, noise, root = ctx.saved_tensors
        items, dim = centred.shape[-2:]
        grad = (grad + (value - value)) * 2 / (items - 1)  # NaN where that is infinite
        if len(noise) == 1:
            weight = torch.ones_like(noise)
        else:
            weight = noise / (noise - noise.flip(0))
        weight = weight * grad.double()[..., None, None]
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
        # cholesky_inverse would synchronise with the host
        inverse = (weight * torch.cholesky_solve(eye.expand_as(root), root)).sum(0)
        each = inverse @ centred if items < dim else centred @ inverse
        return each.to(ctx.dtype), None


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
        self.covariance = at_least("covariance", covariance, 0, "1/4 is second order")
        self.epsilon = at_least("epsilon", epsilon, 0, "1e-4 is usual")

    def forward(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        z = coordinates(z, prior)
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
