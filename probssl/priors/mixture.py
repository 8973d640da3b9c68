r"""Content that falls into clusters: mixtures, of one tier and of two.

References:
    Variational Deep Embedding (Jiang et al., 2017)
    https://arxiv.org/abs/1611.05148
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

import math

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Categorical, MixtureSameFamily, TorchDistribution
from torch import Tensor, nn

from ..distributions.mixture import SharedComponent
from ..hyper import Positive
from .base import Prior, check_dim
from .components import Components
from .pairs import square_distances
from .scales import Scale, check_scales

__all__ = ["Mixture", "TwoTier"]


class Mixture(Prior):
    r"""Views around the mean of their cluster: y is the cluster, one of K.

    .. math:: p(y = k) = \pi_k, \qquad p(z_v \mid y = k) = N(m_k, \sigma_k^2 I)

    .. math:: \log p(z_1, \dots, z_V)
        = \log \sum_k \pi_k \prod_v N(z_v \mid m_k, \sigma_k^2 I)

    Items of one cluster are not told apart: given the cluster, all views of all items
    are alike. In `TwoTier` they are.

    The weights start equal. Where means and scale are both learned, z may be stretched
    with them at no cost.

    Arguments:
        dim: The dimension of z.
        components: The number K of clusters, whose means are then learned and start as
            standard normal draws; or a module that returns means and relative scales,
            such as `Components` (clusters with scales of their own) or
            `VampComponents`.
        scale: The standard deviation :math:`\sigma` of a view given its cluster, by
            which the relative scales of a module are multiplied.
        learn_weights: Whether the weights π are learned, instead of equal.

    Raises:
        ValueError: If the scale is not positive or free twice, if there is no cluster,
            or if the components are of another dimension.
    """

    components: nn.Module
    scale: Positive
    logits: Tensor

    def __init__(
        self,
        dim: int,
        components: int | nn.Module = 10,
        scale: Scale = 1.0,
        learn_weights: bool = True,
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        if not isinstance(components, nn.Module):
            components = Components(dim, components)
        self.components, self.learn_weights = components, learn_weights
        _check_components(dim, components)
        self.scale = Positive(scale, "scale")
        logits = torch.zeros(components.number)
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)
        self._check_free()
