r"""Mixture priors, whose content falls into K components (clusters).

References:
    Variational Deep Embedding (Jiang et al., 2017)
    https://arxiv.org/abs/1611.05148
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import Categorical, MixtureSameFamily, Normal, TorchDistribution
from torch import Tensor, nn

from ..arguments import positive, whole
from ..arrays import span, tensor
from ..distributions.mixture import SharedComponent
from ..hyper import Positive, random_in
from ..nn.base import unmoved
from ..runtime.randomness import restored_randomness
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
    log_normal,
)

__all__ = ["Components", "Mixture", "TwoTier", "VampComponents"]

COMPONENTS_HINT = "give a number K, or a module with it as attribute components"


class _Clusters(Prior):
    """The base of `Mixture` and `TwoTier`: weighted components."""

    components: nn.Module
    scale: Positive
    logits: Tensor

    def __init__(
        self, dim: int, components: int | nn.Module, scale: Scale, learn_weights: bool
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        if not isinstance(components, nn.Module):
            components = Components(self.known_dim(), components)
        for hyper in random_in(components):
            raise ValueError(
                f"expected no random hyper-parameter within components, got "
                f"{hyper.name!r}, of which no draw would reach them; fix or learn it, "
                "or write p(y) for priors.Custom, where it is a site"
            )
        found = getattr(components, "dim", dim)
        if found != dim:
            raise ValueError(
                f"expected components in dim={dim} as the prior is, got dim={found}; "
                "build both with the same dim"
            )
        self.components = components
        self.scale = Positive(scale, "scale")
        count = getattr(components, "components", None)
        logits = torch.zeros(whole("components", count, hint=COMPONENTS_HINT))
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)
        self.check()

    def check(self) -> None:
        """Raise a ValueError unless the components have finite, positive scales."""
        with torch.no_grad(), restored_randomness(), unmoved(self):
            loc, scale = self._placed()
        if loc.is_meta:
            return
        if not bool(loc.isfinite().all() & (scale > 0).all() & scale.isfinite().all()):
            ends = "means from {:.4g} to {:.4g} and scales from {:.4g} to {:.4g}"
            raise ValueError(
                "expected components with finite means and positive finite scales, got "
                f"{ends.format(*span(loc), *span(scale))}; return standard deviations, "
                "as softplus(raw) + 1e-4"
            )

    def _placed(self) -> tuple[Tensor, Tensor]:
        """The means and the relative scales, of checked shapes."""
        found = self.components()
        kinds = (
            [isinstance(p, Tensor) for p in found]
            if isinstance(found, Sequence)
            else []
        )
        if kinds != [True, True]:
            raise TypeError(
                "expected components() to return two tensors, means and scales, got "
                f"{found!r:.80}; return (means, scales)"
            )
        loc, scale = found
        shapes = tuple(loc.shape), tuple(scale.shape)
        many, dim = len(self.logits), self.known_dim()
        fits = {(), *product((1, many), (1, dim))}
        if shapes[0] != (many, dim) or shapes[1] not in fits:
            raise ValueError(
                f"expected components with means of shape ({many}, {dim}), component "
                f"and dim, and scales of shape ({many}, {dim}) or ({many}, 1), got "
                f"{shapes[0]} and {shapes[1]}; one scale for each component is "
                "scale.unsqueeze(-1), and prior and components have the same dim"
            )
        return loc, scale

    def forward(
        self,
        views: int,
        *,
        present: Present = None,
        component: Int[Tensor, "*batch"] | None = None,
        **drawn: Tensor,
    ) -> SharedComponent:
        """Return the distribution of the views, the component summed out.

        Arguments:
            component: Known components, which are conditioned on; -1 where the
                component is unknown and summed out.
        """
        loc, relative = self._placed()
        scales = self._scales(relative, drawn)
        logits = _restricted(self.logits, component)
        return SharedComponent(
            logits, loc, *scales, views, present=present, validate_args=False
        )

    def component(self) -> Categorical:
        r"""Return p(k), the weights π of the components."""
        return Categorical(logits=self.logits, validate_args=False)

    def responsibilities(
        self, z: Views, present: Present = None, **given: Tensor
    ) -> Categorical:
        r"""Return the posterior of the component, :math:`p(k \mid z_1..z_V)`."""
        return self.of(z, present, **given).component(z)

    def _log_predictive(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\log p(z' = b \mid z = a)`: the kernels of the components, weighted
        by :math:`p(k \mid z = a)`."""
        alone = a.unsqueeze(-2)
        views = self.of(alone)
        log_share = views.component(alone).logits
        variance, content = views.scale.square(), views.y_scale.square()
        shrink = content / (content + variance)
        centre = views.loc + shrink * (alone - views.loc)
        scale = (variance * (1 + shrink)).sqrt()
        log_normals = log_normal(
            centre.transpose(-3, -2), b.unsqueeze(-3), scale.unsqueeze(-2)
        )
        return (log_share.mT.unsqueeze(-1) + log_normals).logsumexp(-3)

    def _scales(self, relative: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The scales of a view and of the content, shapes (…, component, dim or 1)."""
        raise NotImplementedError


class Mixture(_Clusters):
    r"""A Gaussian mixture: y is the component (cluster), one of K.

    .. math:: p(y = k) = \pi_k, \qquad p(z_v \mid y = k) = N(m_k, \sigma_k^2 I)

    .. math:: \log p(z_1, \dots, z_V)
        = \log \sum_k \pi_k \prod_v N(z_v \mid m_k, \sigma_k^2 I)

    Given the component, views of one item are as far apart as views of two items: the
    prior does not tell items of one component apart. `TwoTier` does. With learned means
    a free scale is not identified: rescaling z and the means costs nothing.

    Arguments:
        dim: The dimension of z.
        components: The number K of components, whose means are learned from standard
            normal draws; or a module that returns means and relative scales, such as
            `Components` (for own scales, or ``Components.at(means)``) or
            `VampComponents`.
        scale: The standard deviation :math:`\sigma` of a view given its component; it
            multiplies the relative scales of a module.
        learn_weights: Whether the weights π, equal at the start, are learned.

    Raises:
        ValueError: If the scale is not positive, or free beside components with own
            scales, if there is no component, or if dimensions differ.
    """

    def __init__(
        self,
        dim: int,
        components: int | nn.Module = 10,
        scale: Scale = 1.0,
        learn_weights: bool = True,
    ) -> None:
        super().__init__(dim, components, scale, learn_weights)
        _check_own_scales(self.components, self.scale)

    def posterior_y(
        self, z: Views, present: Present = None, **given: Tensor
    ) -> Categorical:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, the responsibilities."""
        return self.responsibilities(z, present, **given)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = \sum_k p(k \mid z) \, N(z' \mid m_k, \sigma_k^2 I)

        Raises:
            TypeError: With `plug_in`: y is a component, which a cannot replace.
        """
        if plug_in:
            raise TypeError(
                "expected a prior whose content is a point of z, for which a view can "
                "stand (plug_in, as in kernel densities and contrastive objectives), "
                "got Mixture, whose content is a component; use TwoTier, or an entropy "
                "such as LogDeterminant() without plug_in"
            )
        return self._log_predictive(a, b)

    def _scales(self, relative: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        scale = self.scale.over(drawn) * relative
        return scale, torch.zeros_like(scale)


class TwoTier(_Clusters):
    r"""A Gaussian mixture of contents, and views around the content of their item.

    .. math:: p(k) = \pi_k, \qquad p(y \mid k) = N(m_k, \tau_k^2 I), \qquad
        p(z_v \mid y) = N(y, \sigma^2 I)

    .. math:: \log p(z_1, \dots, z_V) = \log \sum_k \pi_k
        \int N(y \mid m_k, \tau_k^2 I) \prod_v N(z_v \mid y, \sigma^2 I) \, dy

    The content y tells items apart, the component (cluster) k groups them. With one
    component at the origin it is `Gaussian`.

    Arguments:
        dim: The dimension of z.
        components: The number K of components, or a module of them; see `Mixture`.
        scale: The standard deviation :math:`\sigma` of a view given its content.
        y_scale: The standard deviation :math:`\tau` of the content given its
            component; it multiplies the relative scales of a module.
        learn_weights: Whether the weights π, equal at the start, are learned.

    Raises:
        ValueError: If a scale is not positive, if both are free, or one is free beside
            components with own scales, if there is no component, or if dimensions
            differ.
    """

    y_scale: Positive

    def __init__(
        self,
        dim: int,
        components: int | nn.Module = 10,
        scale: Scale = 1.0,
        y_scale: Scale = 1.0,
        learn_weights: bool = True,
    ) -> None:
        super().__init__(dim, components, scale, learn_weights)
        self.y_scale = Positive(y_scale, "y_scale")
        check_scales(self.scale, self.y_scale)
        for hyper in (self.scale, self.y_scale):
            _check_own_scales(self.components, hyper)

    def posterior_y(
        self, z: Views, present: Present = None, **given: Tensor
    ) -> MixtureSameFamily:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, a mixture of normals weighted by
        the responsibilities, event shape (dim,)."""
        return self.of(z, present, **given).content(z)

    def content(
        self, *, component: Int[Tensor, "*batch"] | None = None, **drawn: Tensor
    ) -> MixtureSameFamily:
        """Return p(y), a mixture of normals, event shape (dim,).

        Where the component is known (not -1) it is the normal of that component.
        """
        loc, relative = self._placed()
        scale = self.y_scale.over(drawn) * relative
        logits = _restricted(self.logits, component)
        normal = Normal(loc, scale, validate_args=False)
        shape = torch.broadcast_shapes(logits.unsqueeze(-1).shape, normal.batch_shape)
        cluster = Categorical(logits=logits.expand(shape[:-1]), validate_args=False)
        normal = normal.expand(shape).to_event(1)
        return MixtureSameFamily(cluster, normal, validate_args=False)

    def given(self, y: Vectors, **drawn: Tensor) -> TorchDistribution:
        """Return p(z|y), a normal, event shape (dim,)."""
        scale = self.scale.of(drawn).unsqueeze(-1)
        return Normal(y, scale, validate_args=False).to_event(1)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        With :math:`\rho_k = \tau_k^2 / (\tau_k^2 + \sigma^2)`,

        .. math:: p(z' \mid z) = \sum_k p(k \mid z) \, N\big(z' \mid
            m_k + \rho_k (z - m_k), \; \sigma^2 (1 + \rho_k) I\big)

        With `plug_in`, :math:`p(z' = b \mid y = a) = N(a, \sigma^2 I)`.
        """
        if plug_in:
            return log_normal(a, b, self.scale.over())
        return self._log_predictive(a, b)

    def _scales(self, relative: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        return self.scale.over(drawn), self.y_scale.over(drawn) * relative


def _restricted(
    logits: Float[Tensor, " component"], known: Int[Tensor, "*batch"] | None
) -> Float[Tensor, "*batch component"]:
    """Log-weights with all mass on the known component; unchanged where it is -1."""
    if known is None:
        return logits
    known = known.unsqueeze(-1)
    others = torch.arange(len(logits), device=logits.device) != known
    return logits.expand(others.shape).masked_fill(others & (known >= 0), -torch.inf)


def _check_own_scales(components: nn.Module, scale: Positive) -> None:
    if getattr(components, "own_scales", False) and scale.free:
        raise ValueError(
            f"expected a fixed {scale.name} beside components with own scales, got "
            f"{scale.value!r}; rescaling z trades one for the other: fix {scale.name}, "
            "or give components without own_scales"
        )


class Components(nn.Module):
    r"""Learned means :math:`m_k`, and relative scales, equal or learned.

    The means start as draws of :math:`N(0, \text{spread}^2 I)` from torch's generator,
    or `at` given values; the relative scales start at 1.

    A module of components has the attribute `components`, K, and returns means, shape
    (component, dim), and positive scales, shape (component, dim) or (component, 1).

    The means have ten times the learning rate of the networks: Adam moves a mean by at
    most its rate in one step, and means that lag behind z misclassify.

    Example:
        >>> import torch
        >>> from sklearn.cluster import KMeans
        >>> import probssl as ps
        >>> z = torch.randn(200, 2)  # of a model fitted without components
        >>> means = KMeans(5, random_state=0).fit(z).cluster_centers_
        >>> ps.priors.TwoTier(2, ps.priors.Components.at(means))(3).event_shape
        torch.Size([3, 2])

    Arguments:
        dim: The dimension of z.
        components: The number K of components.
        spread: The standard deviation of the means at the start.
        own_scales: Whether the components differ in scale.

    Raises:
        TypeError: If dim or number is not a whole number.
        ValueError: If one of them is below 1, or the spread is not positive.
    """

    learning_rate_factor = 10.0

    def __init__(
        self, dim: int, components: int, spread: float = 1.0, own_scales: bool = False
    ) -> None:
        super().__init__()
        self.dim, self.components = whole("dim", dim), whole("components", components)
        self.own_scales, spread = own_scales, positive("spread", spread)
        self.loc = nn.Parameter(spread * torch.randn(components, dim))
        scales = nn.Parameter(torch.zeros(components, 1)) if own_scales else None
        self.log_scale = scales

    @classmethod
    def at(cls, means: Any, own_scales: bool = False) -> "Components":
        """Start at these means, a tensor or array, such as the k-means of z.

        From random means a fit may end with all items in few components.

        Raises:
            ValueError: If the means do not have two axes, or are not all finite.
        """
        means = tensor(means, "means")
        if means.ndim != 2 or not means.isfinite().all():
            raise ValueError(
                "expected finite means, shape (component, dim), got shape "
                f"{tuple(means.shape)} with {int((~means.isfinite()).sum())} numbers "
                "that are not finite; KMeans(…).fit(z).cluster_centers_ has such means"
            )
        components = cls(means.shape[1], len(means), own_scales=own_scales)
        with torch.no_grad():
            components.loc.copy_(means)
        return components

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the means and the relative scales."""
        if self.log_scale is None:
            return self.loc, torch.ones_like(self.loc[:1, :1])  # one for all
        return self.loc, self.log_scale.exp()


class VampComponents(nn.Module):
    r"""Components at the encoder's posteriors of K pseudo-inputs: the VampPrior.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    Each call passes K inputs through the encoder of the guide: build the guide first,
    and give it to `Joint` as ``guide=lambda encoder: guide``.

    Example:
        >>> import probssl as ps
        >>> guide = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((6,), 2))
        >>> components = ps.priors.VampComponents.at(guide.factors, torch.rand(50, 6))
        >>> ps.priors.Mixture(2, components, learn_weights=False)(3).event_shape
        torch.Size([3, 2])

    Arguments:
        factors: A module (batch, view, \*event) -> means and standard deviations,
            (batch, view, dim) each, such as `guides.GaussianFactors`.
        components: The number K of components, or pseudo-inputs.
        event_shape: The shape of one input. The pseudo-inputs start as uniform draws
            from [0, 1); `at` starts them at given inputs.
        learn: Whether the pseudo-inputs are learned.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018)
        https://arxiv.org/abs/1705.07120

    Raises:
        TypeError: If the number is not a whole number, or factors are a whole guide or
            return raw numbers.
        ValueError: If it is below 1.
    """

    inputs: Tensor

    def __init__(
        self,
        factors: nn.Module,
        components: int,
        event_shape: Sequence[int],
        learn: bool = True,
    ) -> None:
        super().__init__()
        if hasattr(factors, "factors"):
            raise TypeError(
                f"expected the factors of a guide, got {type(factors).__name__}, the "
                "guide itself; give guide.factors"
            )
        if getattr(factors, "raw", False):
            raise TypeError(
                "expected factors that return means and standard deviations, got "
                f"{type(factors).__name__}, which returns raw numbers that a guide "
                "turns into its own parameters; give guides.GaussianFactors(encoder), "
                "or the factors of guides.DiagonalGaussian"
            )
        self.factors, self.components = factors, whole("components", components)
        inputs = torch.rand(components, *event_shape)
        if learn:
            self.inputs = nn.Parameter(inputs)
        else:
            self.register_buffer("inputs", inputs)

    @classmethod
    def at(
        cls,
        factors: nn.Module,
        inputs: Any,
        learn: bool = True,
    ) -> "VampComponents":
        """Start at the given inputs, (component, \\*event); without `learn` they stay.

        Raises:
            ValueError: If they are not all finite.
        """
        inputs = tensor(inputs, "inputs", finite=True)
        components = cls(factors, len(inputs), inputs.shape[1:], learn)
        with torch.no_grad():
            components.inputs.copy_(inputs)
        return components

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the means and standard deviations, (component, dim) each."""
        loc, scale = self.factors(self.inputs.unsqueeze(1))
        return loc.squeeze(1), scale.squeeze(1)
