r"""Gaussian priors: a shared content (SimVAE), none (VAE), or content beside style.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.nn.functional import pad

from ..arguments import whole
from ..distributions.gaussian import OneFactorNormal
from ..hyper import Fraction, Positive
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

__all__ = ["ContentStyle", "Gaussian", "Independent"]


class _OneFactor(Prior):
    """Normal views around a normal content, by their scale and the content's."""

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

    def posterior_y(
        self, z: Views, present: Present = None, **drawn: Tensor
    ) -> TorchDistribution:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, a normal."""
        factor, loading = self.of(z, present, **drawn).factor(z), self._scales(drawn)[1]
        loading = loading.squeeze(-2)[..., : self.content_dim]
        mean, stddev = (
            n[..., : self.content_dim] for n in (factor.mean, factor.stddev)
        )
        return Normal(loading * mean, loading * stddev).to_event(1)

    def mutual_information(self) -> Float[Tensor, ""]:
        r"""Return :math:`I(z; z') = -\frac12 \sum_{\text{dim}} \log(1 - \rho^2)`, with
        :math:`\rho = \tau^2 / (\tau^2 + \sigma^2)`, in nats."""
        single = self(1)
        correlation = single.loading.square() / single.variance
        return -0.5 * torch.log1p(-correlation.square()).sum()

    def _scales(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The scale and the loading of the content (y_scale, or 1 if flat), with axes
        for the views and the dimensions."""
        raise NotImplementedError


class Gaussian(_OneFactor):
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

    def _scales(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The scale and the loading of the content (y_scale, or 1 if flat), with axes
        for the views and the dimensions."""
        scale = self.scale.over(drawn)
        if not isinstance(self.y_scale, Positive):
            return scale, torch.ones_like(scale)
        return scale, self.y_scale.over(drawn)


class ContentStyle(_OneFactor):
    r"""Gaussian content dimensions, which the views share, and style dimensions.

    The first dimensions of z are the content's, :math:`c_v`, the others the style's,
    :math:`s_v`, which are independent for each view, :math:`z_v = (c_v, s_v)`:

    .. math:: p(y) = N(0, \tau^2 I), \quad p(c_v \mid y) = N(y, \sigma^2 I),
        \quad p(s_v) = N(0, I), \qquad \tau^2 = 1 - \sigma^2

    .. math:: \log p(z_1, \dots, z_V) = \log p(c_1, \dots, c_V)
        + \sum_v \log N(s_v \mid 0, I)

    with the first term of `Gaussian`. Style dimensions are for what data augmentation
    changes, such as angle, size and two shifts.

    Every dimension has variance 1, of the content :math:`E \, \mathrm{Var}(c_v \mid y)
    + \mathrm{Var} \, E(c_v \mid y) = \sigma^2 + \tau^2`. That holds at every value of
    :math:`\sigma`: for a learned one at each step, and for a random one given its value
    and on average. The contents of two views have the correlation :math:`\tau^2`.

    **Contrastive objectives** align the content alone. The kernel has a factor
    :math:`N(s' \mid 0, I)`, which the first view does not change. It cancels, value and
    gradient, in a softmax over first views, as in SimCLR: in `KernelDensity` plus a
    plugged-in alignment. Outputs of the encoder for the style are then as they started.
    The factor does not cancel in an entropy of all of z, such as `LogDeterminant`,
    which keeps the style informative, nor in `Collision`, whose normaliser all pairs
    share.

    ``ps.embed(objective, data, layer="content")`` is the mean of c under q(z|x). It is
    not E[y|x], which is shrunk towards 0: :math:`\tau^2 E[c \mid x]` for a single view.

    Arguments:
        content: The number of content dimensions, which y has too.
        style: The number of style dimensions; with 0 it is a `Gaussian` of variance 1.
        scale: The standard deviation :math:`\sigma` of c given y, between 0 and 1: one
            number, or one for each content dimension. Random, it has a distribution on
            (0, 1), such as ``Beta(2.0, 8.0)``.

    Raises:
        ValueError: If a scale is not between 0 and 1, or if there is no content
            dimension.

    Example:
        >>> ContentStyle(content=6, style=4, scale=0.15)
        ContentStyle(dim=10, content_dim=6, scale=0.15)
    """

    dim: int
    content_dim: int
    scale: Fraction

    def __init__(self, content: int, style: int, scale: Scale = 0.15) -> None:
        super().__init__()
        hint = "a prior without content dimensions is priors.Independent"
        content = whole("content", content, hint=hint)
        self.dim, self.content_dim = content + whole("style", style, 0), content
        self.scale = Fraction(scale, "scale", dim=content)

    def content(self, **drawn: Tensor) -> TorchDistribution:
        """Return p(y), a normal, event shape (content,)."""
        scale = self._scales(drawn)[1].squeeze(-2)[..., : self.content_dim]
        return Normal(torch.zeros_like(scale), scale, validate_args=False).to_event(1)

    def given(self, y: Vectors, **drawn: Tensor) -> TorchDistribution:
        """Return p(z|y), a normal, event shape (dim,).

        Arguments:
            y: The content, shape (\\*batch, content); or z, whose content dimensions
                stand for it.
        """
        scale = self._scales(drawn)[0].squeeze(-2)
        return Normal(self._centre(y), scale, validate_args=False).to_event(1)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = N\big(c' \mid \tau^2 c, (1 - \tau^4) I\big) \,
            N(s' \mid 0, I), \qquad \tau^2 = 1 - \sigma^2

        With `plug_in`, :math:`p(z' = b \mid y = c) = N(c' \mid c, \sigma^2 I) \,
        N(s' \mid 0, I)`.
        """
        (scale, loading), centre = self._scales({}), self._centre(a)
        if plug_in:
            return log_normal(centre, b, scale)
        shrink = loading.square()
        return log_normal(shrink * centre, b, scale * (1 + shrink).sqrt())

    def _centre(self, y: Vectors) -> Vectors:
        """The mean of z given y, or given a view whose content stands for y."""
        content = self.content_dim
        if y.shape[-1] not in (content, self.dim):
            raise ValueError(
                f"expected y with {content} dimensions, the content's, or z with "
                f"{self.dim}, got shape {tuple(y.shape)}; a vector lies along the last "
                "axis"
            )
        return pad(y[..., :content], (0, self.dim - content))

    def _scales(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        scale = self.scale.over(drawn)
        scale = scale.expand(*scale.shape[:-1], self.content_dim)
        loading = ((1 - scale) * (1 + scale)).sqrt()  # without cancellation near 1
        style = (0, self.dim - self.content_dim)
        return pad(scale, style, value=1.0), pad(loading, style)


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
