"""The Rényi-2 (collision) entropy of z by kernels: one normaliser for all pairs."""

import math

from jaxtyping import Float
from torch import Tensor

from ..arguments import whole
from ..priors import Prior
from ._log_sums import all_others, log_sums, log_sums_of_views
from .base import Entropy, Views

__all__ = ["Collision"]


class Collision(Entropy):
    r"""The Rényi-2 (collision) entropy, from the kernels of all pairs.

    .. math:: \hat H_2[z] = -\log \frac{1}{M (M - 1)} \sum_{i \ne j}
        p(z' = z_j \mid y = z_i), \qquad M = \text{batch} \cdot \text{view}

    The kernel is the prior's conditional p(z'|y), y plugged in, and the representations
    of all views are one sample. With :math:`p_h` the density of z smoothed by the
    kernel the sum estimates, without bias for independent representations,

    .. math:: E \, p(z' \mid y = z) = \int p_h(z) \, p(z) \, dz
        \;\le\; \int p(z)^2 \, dz = e^{-H_2[z]}, \qquad H_2[z] \le H[z]

    which becomes an equality as the kernel narrows. So the estimate of :math:`H_2` is
    too high, by the smoothing and, by Jensen's inequality, by O(1/M) in the mean. It is
    no bound on H[z], since :math:`H_2` is below H[z]. Nearby views of one item collide
    more often than independent ones, which makes the estimate too low.

    Where the kernel is no density (`priors.TSNE` in many dimensions) the value lacks a
    constant. Memory is linear in M, as in `KernelDensity`.

    References:
        On Measures of Entropy and Information (Rényi, 1961)
        https://projecteuclid.org/euclid.bsmsp/1200512181
        Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
        (Hu et al., 2023)
        https://arxiv.org/abs/2205.14814
    """

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        flat = z.flatten(0, 1)
        sums = log_sums(prior, flat, flat, all_others(flat))
        return _log_pairs(flat) - sums.logsumexp(0)

    def joint(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return the joint estimate for all views, with a product kernel.

        .. math:: \hat H_2[z_1, \dots, z_V] = -\log \frac{1}{N (N - 1)}
            \sum_{i \ne j} \prod_v p(z_v' = z_{jv} \mid y = z_{iv})
        """
        sums = log_sums_of_views(prior, z, all_others(z))
        return _log_pairs(z) - sums.logsumexp(0)


def _log_pairs(z: Tensor) -> float:
    hint = "use larger batches or more views"
    points = whole("the number of representations", len(z), 2, hint=hint)
    return math.log(points * (points - 1))
