r"""A prior with an effect of each group of items: of a writer, a donor, a batch.

It is the linear mixed model of statistics for the content: the groups have random
effects, and the residual of an item is the content of the prior within.

References:
    Random-Effects Models for Longitudinal Data (Laird and Ware, 1982)
    https://doi.org/10.2307/2529876
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyro
import torch
from jaxtyping import Bool, Float
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from ..arguments import instance, whole
from ..covariates import Named
from ..distributions.gaussian import OneFactorNormal
from ..hyper import INITIAL_STD, Latent, Positive
from .base import Present, Prior, Scale, Views
from .gaussian import Gaussian

__all__ = ["Grouped"]

SITE, SCALE = "u", "group_scale"


class Grouped(Prior):
    r"""A prior in which items of a group share its effect u, added to their contents.

    .. math:: u_g \sim N(0, \tau^2 I), \qquad y_i = u_{g(i)} + e_i, \qquad
        e_i \sim p(y) \text{ of the prior within}

    u is a Pyro site outside the plate of items, ``"u"`` of event shape (group, dim),
    which a fit weights by 1 / N. Its guide :math:`q(u) = N(m, s^2)` has a mean and a
    standard deviation for each group and dimension. Given u the prior within is
    shifted, and y is integrated out:

    .. math:: p(z_1, \dots, z_V \mid u) = \int p(e) \prod_v p(z_v \mid u_g + e) \, de

    The group of an item is a covariate (`Batch.covariates`), a whole number from 0 to
    count - 1, or -1 for a group that was not seen in training. There u is integrated
    out as well, :math:`y \sim N(0, (\tau^2 + \tau_y^2) I)`, for each item alone: what
    items of one new group share is not known. Without covariates, as in ``prior(2)``,
    every item is of a new group.

    Both integrals are exact under `Gaussian` with a proper p(y): a shift of y is one of
    z, and the variances of normals add. Of the variance of y,
    :math:`\tau^2 / (\tau^2 + \tau_y^2)` is that of the groups. q(u) and q(τ) are
    independent, so that q(τ) is narrower than the posterior, the more so the fewer
    items a group has; NUTS samples both together.

    It is for a `Joint`, which gives it the covariates.

    Arguments:
        prior: p(e) and p(z|y), a `Gaussian` with a finite `y_scale`.
        groups: The name of the covariate that is the group of an item.
        count: The number of groups in the training data.
        scale: The standard deviation :math:`\tau` of u: one number, or one for each
            dimension; fixed, ``ps.learned(number)`` or a Pyro distribution. Its site is
            ``"group_scale"``.

    Raises:
        TypeError: If the prior within is another than `Gaussian`.
        ValueError: If its p(y) is flat, or its dimension not known; if a scale is not
            positive.

    Example:
        >>> import probssl as ps
        >>> within = ps.priors.Gaussian(10, scale=0.3)
        >>> ps.priors.Grouped(within, groups="writer", count=50, scale=0.5)
        Grouped(dim=10, groups='writer', count=50, group_scale=0.5, prior=Gaussian)
    """

    dim: int
    prior: Gaussian

    def __init__(
        self, prior: Prior, groups: str, count: int, scale: Scale = 1.0
    ) -> None:
        super().__init__()
        self.prior = _checked(prior)
        self.dim = self.prior.known_dim()
        self.groups = instance("groups", groups, str, "the name of a covariate")
        self.count = whole("count", count, hint="the number of groups in training")
        self.effects = _Effects(self.count, self.dim, scale)

    @property
    def scale(self) -> Positive:
        r"""The standard deviation :math:`\tau` of the effects."""
        return self.effects.scale

    def forward(
        self,
        views: int,
        *,
        present: Present = None,
        covariates: Mapping[str, Tensor] | None = None,
        **drawn: Tensor,
    ) -> OneFactorNormal:
        """Return the distribution of the views, y integrated out.

        Arguments:
            covariates: Those of the items, with their groups; None for items of new
                groups.
        """
        within = self.prior(views, **_others(drawn))
        tau = self.scale.over(drawn)
        u = drawn[SITE] if SITE in drawn else self.effects()
        known, shift = self._shift(u, covariates)
        new = (within.loading.square() + tau.square()).sqrt()
        return OneFactorNormal(
            within.loc + shift,
            within.scale,
            torch.where(known, within.loading, new),
            present=present,
            validate_args=False,
        )

    def posterior_y(
        self, z: Views, present: Present = None, **given: Any
    ) -> TorchDistribution:
        r"""Return :math:`p(y \mid z_1, \dots, z_V, u)`, a normal, event shape (dim,).

        Arguments:
            given: Drawn values, and covariates, as for a call.
        """
        p = self.of(z, present, **given)
        factor, loading = p.factor(z), p.loading.select(-2, 0)
        loc = p.loc.select(-2, 0) + loading * factor.mean
        return Normal(loc, loading * factor.stddev, validate_args=False).to_event(1)

    def random(self) -> Iterator[Latent]:
        """The random hyper-parameters, those of the prior within first, and u."""
        yield from self.prior.random()
        yield from (h for h in (self.scale,) if h.random)
        yield self.effects

    def check_covariates(self, covariates: Mapping[str, Tensor]) -> None:
        """Raise a ValueError if a group is no whole number from -1 to count - 1."""
        g = self._groups(covariates)
        low, high = int(g.min()), int(g.max())
        if low < -1 or high >= self.count:
            raise ValueError(
                f"expected groups from 0 to {self.count - 1}, or -1 for one that was "
                f"not seen in training, in covariates[{self.groups!r}], got {low} to "
                f"{high}; number them from 0, as by numpy.unique(x, "
                "return_inverse=True), and build the prior with their count"
            )

    def _groups(self, covariates: Mapping[str, Tensor]) -> Tensor:
        g = Named(covariates)[self.groups]
        if g.ndim != 1 or g.is_floating_point():
            raise ValueError(
                f"expected covariates[{self.groups!r}], the group of each item, as "
                f"whole numbers of shape (item,), got {g.dtype} of shape "
                f"{tuple(g.shape)}; the views of an item have one group"
            )
        return g

    def _shift(
        self,
        u: Float[Tensor, "*batch group dim"],
        covariates: Mapping[str, Tensor] | None,
    ) -> tuple[Bool[Tensor, "*#item 1 1"], Float[Tensor, "*batch #item 1 dim"]]:
        """Whether the group of an item is known, and its effect, 0 where it is not."""
        if covariates is None:
            nothing = torch.zeros_like(u[..., :1, :])
            return torch.zeros_like(nothing[..., :1], dtype=torch.bool), nothing
        g = self._groups(covariates)
        known = (g >= 0).view(-1, 1, 1)
        if u.ndim > 2:  # one draw for all items
            u = u.squeeze(-3)
        each = u.index_select(-2, g.clamp(min=0)).unsqueeze(-2)
        return known, each.where(known, 0.0)

    def _shown(self) -> list[str]:
        dim, count, within, *_ = super()._shown()
        own = f"groups={self.groups!r}", count, f"{SCALE}={self.scale.shown()}"
        return [dim, *own, within]


class _Effects(Latent):
    r"""The effects of the groups, :math:`u_g \sim N(0, \tau^2 I)`, with their guide."""

    name = SITE
    # As of hyper-parameters: a step of Adam at rate 1e-3 moves u by 0.01.
    learning_rate_factor = Positive.learning_rate_factor

    def __init__(self, count: int, dim: int, scale: Scale) -> None:
        super().__init__()
        self.scale = Positive(scale, SCALE, dim=dim)
        self.drawn = None
        self.loc = nn.Parameter(torch.zeros(count, dim))
        start = self.scale().detach().clamp(max=INITIAL_STD).log()
        self.log_scale = nn.Parameter(start.expand(count, dim).clone())

    def forward(self) -> Tensor:
        """The drawn value, or the mean of the guide."""
        return self.loc if self.drawn is None else self.drawn

    @property
    def value(self) -> TorchDistribution:
        """The prior at the current scale."""
        return self.given()

    def given(self, drawn: dict[str, Tensor] | None = None) -> TorchDistribution:
        """The prior at a drawn scale, event shape (group, dim)."""
        scale = self.scale.over(drawn)
        scale = scale.expand(*scale.shape[:-2], *self.loc.shape)
        zero = torch.zeros_like(scale)
        return Normal(zero, scale, validate_args=False).to_event(2)

    def sample(self, drawn: dict[str, Tensor] | None = None) -> Tensor:
        return pyro.sample(self.name, self.given(drawn))


def _others(drawn: dict[str, Tensor]) -> dict[str, Tensor]:
    """The drawn hyper-parameters of the prior within."""
    return {name: x for name, x in drawn.items() if name not in (SITE, SCALE)}


def _checked(prior: Prior) -> Gaussian:
    if type(prior) is not Gaussian:
        raise TypeError(
            "expected priors.Gaussian within Grouped, whose distribution, shifted or "
            f"with a group integrated out, is known exactly, got "
            f"{type(prior).__name__}; take priors.Gaussian(dim), or give the groups as "
            "covariates to the decoder"
        )
    if not prior.proper:
        raise ValueError(
            "expected a proper p(y) within Grouped, got a flat one (y_scale=math.inf), "
            "in which the effects of groups disappear; give it a finite y_scale"
        )
    return prior
