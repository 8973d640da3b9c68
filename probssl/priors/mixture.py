r"""Content that falls into clusters: mixtures, of one tier and of two.

References:
    Variational Deep Embedding (Jiang et al., 2017)
    https://arxiv.org/abs/1611.05148
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions import (
    Categorical,
    MixtureSameFamily,
    Normal,
    TorchDistribution,
)
from torch import Tensor, nn

from ..distributions.mixture import SharedComponent
from ..hyper import Positive
from .base import Prior, check_dim
from .components import Components, check_number
from .pairs import log_normal
from .scales import Scale, check_scales

__all__ = ["Mixture", "TwoTier"]


class _Clusters(Prior):
    """What a mixture of one tier and of two share: weighted components."""

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
        self.components, self.learn_weights = components, learn_weights
        self._check_shapes(dim, getattr(components, "dim", dim))
        self.scale = Positive(scale, "scale")
        logits = torch.zeros(check_number(getattr(components, "number", None)))
        if learn_weights:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(
        self,
        views: int,
        *,
        present: Bool[Tensor, "*batch view"] | None = None,
        component: Int[Tensor, "*batch"] | None = None,
        **drawn: Tensor,
    ) -> SharedComponent:
        """Return the distribution of the views, the cluster summed out.

        Arguments:
            views: The number of views.
            present: The views whose marginal density is meant; None means all.
            component: The clusters that are known, which are then given; -1 where one
                is not, and is summed out.
            drawn: Values of hyper-parameters, whose shape becomes the batch shape.
        """
        loc, relative = self.components()
        self._check_shapes(self.known_dim(), loc.shape[-1])
        scales = self._scales(relative, drawn)
        logits = _restricted(self.logits, component)
        return SharedComponent(
            logits, loc, *scales, views, present=present, validate_args=False
        )

    def component(self) -> Categorical:
        r"""Return p(k), the weights π of the clusters."""
        return Categorical(logits=self.logits, validate_args=False)

    def responsibilities(
        self,
        z: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> Categorical:
        r"""Return the posterior of the cluster, :math:`p(k \mid z_1, \dots, z_V)`."""
        return self._views(z, present).component(z)

    def _log_predictive(self, a: Tensor, b: Tensor) -> Tensor:
        r""":math:`\log p(z' = b \mid z = a)`: that of each component, weighted by
        :math:`p(k \mid z = a)`."""
        alone = a.unsqueeze(-2)
        views = self._views(alone)
        log_share = views.component(alone).logits
        variance, content = views.scale.square(), views.y_scale.square()
        shrink = content / (content + variance)
        centre = views.loc + shrink * (alone - views.loc)
        scale = (variance * (1 + shrink)).sqrt()
        log_normals = log_normal(
            centre.transpose(-3, -2), b.unsqueeze(-3), scale.unsqueeze(-2)
        )
        return (log_share.mT.unsqueeze(-1) + log_normals).logsumexp(-3)

    def _scales(
        self, relative: Tensor, drawn: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The scales of a view and of the content, shapes (…, component, dim or 1)."""
        raise NotImplementedError

    def _views(self, z: Tensor, present: Tensor | None = None) -> SharedComponent:
        distribution = self.of(z, present)
        assert isinstance(distribution, SharedComponent)
        return distribution

    def _check_shapes(self, dim: int, found: int) -> None:
        if found != dim:
            raise ValueError(
                f"expected components in dim={dim} as the prior is, got dim={found}; "
                "build both with the same dim"
            )


class Mixture(_Clusters):
    r"""Views around the mean of their cluster: y is the cluster, one of K.

    .. math:: p(y = k) = \pi_k, \qquad p(z_v \mid y = k) = N(m_k, \sigma_k^2 I)

    .. math:: \log p(z_1, \dots, z_V)
        = \log \sum_k \pi_k \prod_v N(z_v \mid m_k, \sigma_k^2 I)

    Items of one cluster are not told apart: given the cluster, views of one item are as
    far from one another as views of two. In `TwoTier` they need not be. The means being
    learned, a free scale leaves z to be stretched with them at no cost.

    Arguments:
        dim: The dimension of z.
        components: The number K of clusters, whose means are then learned and start as
            standard normal draws; or a module that returns means and relative scales,
            such as `Components` (for scales of their own, or ``Components.at(means)``)
            or `VampComponents`.
        scale: The standard deviation :math:`\sigma` of a view given its cluster; the
            relative scales of a module are multiplied by it.
        learn_weights: Whether the weights π, equal at the start, are learned.

    Raises:
        ValueError: If the scale is not positive, or free beside components with scales
            of their own, if there is no cluster, or if dimensions differ.
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
        self,
        z: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> Categorical:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, the responsibilities."""
        return self.responsibilities(z, present)

    def log_kernel(
        self,
        a: Float[Tensor, "*batch n dim"],
        b: Float[Tensor, "*batch m dim"],
        plug_in: bool = False,
    ) -> Float[Tensor, "*batch n m"]:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = \sum_k p(k \mid z) \, N(z' \mid m_k, \sigma_k^2 I)

        Raises:
            TypeError: With `plug_in`: y is a cluster, and a is not one.
        """
        if plug_in:
            raise TypeError(
                "expected plug_in=False for a Mixture, whose content is a cluster for "
                "which no point a can stand; leave plug_in out, or use TwoTier"
            )
        return self._log_predictive(a, b)

    def _scales(
        self, relative: Tensor, drawn: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        scale = self.scale.over(drawn) * relative
        return scale, torch.zeros_like(scale)


class TwoTier(_Clusters):
    r"""Clusters of items, and views around the content of their item.

    .. math:: p(k) = \pi_k, \qquad p(y \mid k) = N(m_k, \tau_k^2 I), \qquad
        p(z_v \mid y) = N(y, \sigma^2 I)

    .. math:: \log p(z_1, \dots, z_V) = \log \sum_k \pi_k
        \int N(y \mid m_k, \tau_k^2 I) \prod_v N(z_v \mid y, \sigma^2 I) \, dy

    The lower tier tells items apart, the upper one groups them. With one cluster at the
    origin it is `Gaussian`.

    Arguments:
        dim: The dimension of z.
        components: The number K of clusters, whose means are then learned and start as
            standard normal draws; or a module that returns means and relative scales,
            such as `Components` (for scales of their own, or ``Components.at(means)``)
            or `VampComponents`.
        scale: The standard deviation :math:`\sigma` of a view given its content.
        y_scale: The standard deviation :math:`\tau` of the content in its cluster; the
            relative scales of a module are multiplied by it.
        learn_weights: Whether the weights π, equal at the start, are learned.

    Raises:
        ValueError: If a scale is not positive, if both are free, or one is beside
            components with scales of their own, if there is no cluster, or if
            dimensions differ.
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
        self,
        z: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> MixtureSameFamily:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, normals weighted by the
        responsibilities, event shape (dim,)."""
        return self._views(z, present).content(z)

    def content(
        self, *, component: Int[Tensor, "*batch"] | None = None, **drawn: Tensor
    ) -> MixtureSameFamily:
        """Return p(y), a mixture of normals, event shape (dim,).

        Where a component is known, not -1, it is the normal of that component.
        """
        loc, relative = self.components()
        scale = self.y_scale.over(drawn) * relative
        logits = _restricted(self.logits, component)
        shape = torch.broadcast_shapes(
            logits.unsqueeze(-1).shape, loc.shape, scale.shape
        )
        normal = Normal(
            loc.expand(shape), scale.expand(shape), validate_args=False
        ).to_event(1)
        logits = logits.expand(shape[:-1])
        cluster = Categorical(logits=logits, validate_args=False)
        return MixtureSameFamily(cluster, normal, validate_args=False)

    def given(
        self, y: Float[Tensor, "*batch dim"], **drawn: Tensor
    ) -> TorchDistribution:
        """Return p(z|y), a normal, event shape (dim,)."""
        scale = self.scale.of(drawn).unsqueeze(-1)
        return Normal(y, scale, validate_args=False).to_event(1)

    def log_kernel(
        self,
        a: Float[Tensor, "*batch n dim"],
        b: Float[Tensor, "*batch m dim"],
        plug_in: bool = False,
    ) -> Float[Tensor, "*batch n m"]:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        With :math:`\rho_k = \tau_k^2 / (\tau_k^2 + \sigma^2)`,

        .. math:: p(z' \mid z) = \sum_k p(k \mid z) \, N\big(z' \mid
            m_k + \rho_k (z - m_k), \; \sigma^2 (1 + \rho_k) I\big)

        With `plug_in`, :math:`p(z' = b \mid y = a) = N(a, \sigma^2 I)`.
        """
        if plug_in:
            return log_normal(a, b, self.scale.over())
        return self._log_predictive(a, b)

    def _scales(
        self, relative: Tensor, drawn: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self.scale.over(drawn), self.y_scale.over(drawn) * relative


def _restricted(
    logits: Float[Tensor, " component"], known: Int[Tensor, "*batch"] | None
) -> Float[Tensor, "*batch component"]:
    """Log-weights with all the mass on the component that is known, if it is."""
    if known is None:
        return logits
    known = known.unsqueeze(-1)
    others = torch.arange(len(logits), device=logits.device) != known
    return logits.expand(others.shape).masked_fill(others & (known >= 0), -torch.inf)


def _check_own_scales(components: nn.Module, scale: Positive) -> None:
    if getattr(components, "own_scales", False) and scale.free:
        raise ValueError(
            f"expected a fixed {scale.name} beside components with scales of their "
            f"own, got {scale.value!r}; stretching moves one into the other: fix "
            f"{scale.name}, or give components without own_scales"
        )
