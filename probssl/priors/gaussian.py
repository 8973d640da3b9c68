r"""Gaussian priors: SimVAE's, with a shared content, and the VAE's, without one.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from ..distributions.gaussian import OneFactorNormal
from ..hyper import Positive
from .base import (
    Drawn,
    Pairs,
    Points,
    Present,
    Prior,
    Scale,
    Vectors,
    Views,
    check_dim,
    check_scales,
    content_scale,
    log_normal,
    one_factor,
)

__all__ = ["Gaussian", "Independent"]


class Gaussian(Prior):
    r"""Gaussian views around a Gaussian content, which is integrated out exactly.

    .. math:: p(y) = N(0, \tau^2 I), \qquad p(z_v \mid y) = N(y, \sigma^2 I)

    .. math:: \log p(z_1, \dots, z_V) = -\tfrac12 \sum_{\text{dim}} \Big[
        \frac{\sum_v (z_v - \bar z)^2}{\sigma^2}
        + \frac{\bar z^2}{\tau^2 + \sigma^2 / V}
        + V \log 2 \pi + (V - 1) \log \sigma^2 + \log(\sigma^2 + V \tau^2) \Big]

    ``y_scale=math.inf`` makes p(y) flat with density 1, for alignment terms only. Then
    there are no samples and no evidence; two views and a fixed scale are needed: with a
    free one the value grows by d·log c, without bound, when z is stretched by c.

    Arguments:
        dim: The dimension of z; None takes it from z, for objectives without samples.
        scale: The standard deviation :math:`\sigma` of a view given its content: one
            number, or one for each dimension.
        y_scale: The standard deviation :math:`\tau` of the content, likewise.

    Raises:
        ValueError: If a scale is not positive, if both scales are free, or if a free
            scale meets a flat p(y).
    """

    scale: Positive
    y_scale: Positive | float

    def __init__(
        self, dim: int | None, scale: Scale = 1.0, y_scale: Scale = 1.0
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.scale = Positive(scale, "scale", dim=dim)
        self.y_scale = content_scale(y_scale, dim)
        check_scales(self.scale, self.y_scale)

    @property
    def proper(self) -> bool:
        return self.y_scale != math.inf

    def forward(
        self,
        views: int,
        *,
        present: Present = None,
        dim: int | None = None,
        **drawn: Tensor,
    ) -> OneFactorNormal:
        """Return the distribution of the views, y integrated out."""
        shape = (views, dim or self.known_dim())
        return one_factor(shape, *self._scales(drawn), not self.proper, present)

    def content(self, **drawn: Tensor) -> TorchDistribution:
        """Return p(y), a normal, event shape (dim,).

        Raises:
            ValueError: If it is flat.
        """
        if not isinstance(self.y_scale, Positive):
            raise ValueError(
                "expected a proper p(y) for a latent content, got a flat one "
                "(y_scale=math.inf); give the prior a finite y_scale, such as 1.0"
            )
        y_scale = self.y_scale.over(drawn).squeeze(-2)
        scale = y_scale.expand(*y_scale.shape[:-1], self.known_dim())
        zero = torch.zeros_like(scale)
        return Normal(zero, scale, validate_args=False).to_event(1)

    def given(self, y: Vectors, **drawn: Tensor) -> TorchDistribution:
        """Return p(z|y), a normal, event shape (dim,)."""
        scale = self.scale.over(drawn).squeeze(-2)
        return Normal(y, scale, validate_args=False).to_event(1)

    def posterior_y(self, z: Views, present: Present = None) -> TorchDistribution:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, a normal, event shape (dim,)."""
        factor = self.of(z, present).factor(z)
        loading = self._scales({})[1].squeeze(-2)
        normal = Normal(loading * factor.mean, loading * factor.stddev)
        return normal.to_event(1)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = N\Big(\frac{\tau^2}{\tau^2 + \sigma^2} z, \;
            \sigma^2 + \frac{\sigma^2 \tau^2}{\sigma^2 + \tau^2}\Big)

        With `plug_in`, :math:`p(z' = b \mid y = a) = N(a, \sigma^2)`.
        """
        scale, y_scale = self._scales({})
        if plug_in:
            return log_normal(a, b, scale)
        shrink = torch.ones_like(scale)  # under a flat p(y)
        if self.proper:
            shrink = y_scale.square() / (y_scale.square() + scale.square())
        return log_normal(shrink * a, b, scale * (1 + shrink).sqrt())

    def mutual_information(self) -> Float[Tensor, ""]:
        r"""Return :math:`I(z; z') = -\frac{d}{2} \log(1 - \rho^2)`, with
        :math:`\rho = \tau^2 / (\tau^2 + \sigma^2)`, in nats."""
        single = self(1)
        correlation = single.loading.square() / single.variance
        return -0.5 * torch.log1p(-correlation.square()).sum()

    def _scales(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The scale and the loading of the content (y_scale, or 1 if flat), with axes
        for the views and the dimensions."""
        scale = self.scale.over(drawn)
        if not isinstance(self.y_scale, Positive):
            return scale, torch.ones_like(scale)
        return scale, self.y_scale.over(drawn)


class Independent(Prior):
    r"""Independent standard normal views: the VAE's prior.

    .. math:: p(z_1, \dots, z_V) = \prod_v N(z_v \mid 0, I)
    """

    one: Tensor

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.register_buffer("one", torch.ones(()), persistent=False)

    def forward(
        self, views: int, *, present: Present = None, dim: int | None = None
    ) -> OneFactorNormal:
        """Return the distribution of the views, event shape (view, dim)."""
        one = self.one.expand(views, dim or self.known_dim())
        zero = torch.zeros_like(one)
        return OneFactorNormal(zero, one, zero, present=present, validate_args=False)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b)`, which does not depend on a."""
        marginal = self.log_prob(b.unsqueeze(-2)).unsqueeze(-2)
        return marginal.expand(_pairs(a, b))

    def pmi(self, a: Points, b: Points) -> Pairs:
        """Return zero for all pairs: the views are independent."""
        return b.new_zeros(_pairs(a, b))

    def mutual_information(self) -> Float[Tensor, ""]:
        """Return zero: the views are independent."""
        return self.one.new_zeros(())


def _pairs(a: Points, b: Points) -> torch.Size:
    """The shape of a value for each pair of points, the batch axes broadcast."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return batch + (a.shape[-2], b.shape[-2])
