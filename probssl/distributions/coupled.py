"""Views that share a component, times a normal factor for each view."""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Categorical, Normal, TorchDistribution, constraints
from torch import Size, Tensor

from .gaussian import OneFactorNormal
from .normal_mixture import NormalMixture

if TYPE_CHECKING:  # which imports this file
    from .mixture import SharedComponent

__all__ = ["CoupledComponents"]

Shape = Size | list[int] | tuple[int, ...]


class CoupledComponents(TorchDistribution):
    r"""The normalised product of `SharedComponent` with a normal factor for each view.

    .. math:: q(z_1, \dots, z_V) = \frac1Z \, p(z_1, \dots, z_V)
        \prod_{v \text{ present}} N(z_v \mid m_v, r_v^2), \qquad
        Z = \sum_k \pi_k Z_k

    :math:`Z_k` is the density in component k of the pseudo-observations :math:`m_v`,
    whose variance is :math:`\sigma_k^2 + r_v^2`; absent views follow the prior given
    the present ones. Samples carry the exact gradient, by way of a `NormalMixture`:

    - where all components share the scale :math:`\sigma`, of the statistic T that is
      sufficient for y. Given y, :math:`z_v \sim N(a_v + b_v y, \sigma^2 b_v)` with
      :math:`b_v = r_v^2 / (\sigma^2 + r_v^2)`, so that :math:`T = \sum_v (z_v - a_v) /
      \sum_v b_v \sim N(y, \sigma^2 / \sum_v b_v)`; what z is beyond T knows nothing of
      the component;
    - where they do not, and y is the mean of its component, of all views at once.

    Arguments:
        prior: p(z_1..V).
        loc: The locations m of the factors, with shape (\*batch, view, dim).
        scale: Their standard deviations r, likewise.
        present: The views that have a factor, bool, with shape (\*batch, view); None
            means all.

    Raises:
        ValueError: With a prior that is validated, if the components have scales of
            their own and a content of their own beside them.
    """

    arg_constraints = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        prior: "SharedComponent",
        loc: Float[Tensor, "*batch view dim"],
        scale: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> None:
        self.prior, self.loc, self.scale, self.present = prior, loc, scale, present
        self.shared = prior.scale.shape[-2] == 1
        if prior._validate_args and not self.shared and bool(prior.y_scale.any()):
            raise ValueError(
                "expected components that share one scale, or y_scale = 0, got scales "
                "of their own and a content around each mean; give scale with one row"
            )
        self._integrate()
        batch = torch.broadcast_shapes(prior.batch_shape, self.logits.shape[:-1])
        super().__init__(batch, prior.event_shape, validate_args=False)

    def expand(
        self, batch_shape: Shape, _instance: "CoupledComponents | None" = None
    ) -> "CoupledComponents":
        new = self._get_checked_instance(CoupledComponents, _instance)
        # Its parts stay as they are: what they alone determine is computed once.
        new.__dict__.update(self.__dict__)
        super(CoupledComponents, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch view dim"]:
        mean = (self._weights() * self.each().mean).sum(-3)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch view dim"]:
        each, weights = self.each(), self._weights()
        mean = (weights * each.mean).sum(-3, keepdim=True)
        variance = (weights * (each.variance + (each.mean - mean).square())).sum(-3)
        return variance.expand(self.batch_shape + self.event_shape)

    @property
    def log_evidence(self) -> Float[Tensor, "*batch"]:
        r"""The log-density of the pseudo-observations, :math:`\log Z`."""
        return self.logits.logsumexp(-1).expand(self.batch_shape)

    @property
    def component(self) -> Categorical:
        r"""The posterior of the component, :math:`q(k) = \pi_k Z_k / Z`."""
        return Categorical(logits=self.logits, validate_args=False)

    def each(self) -> OneFactorNormal:
        """The product in each component, batch shape (\\*batch, component)."""
        parts = (self.prior.loc, self.prior.scale, self.prior.y_scale)
        alone = OneFactorNormal(
            *(part.unsqueeze(-2) for part in parts), validate_args=False
        )
        seen = None if self.present is None else self.present.unsqueeze(-2)
        return alone.times(self.loc.unsqueeze(-3), self.scale.unsqueeze(-3), seen)

    def log_prob(self, value: Float[Tensor, "*batch view dim"]) -> Tensor:
        factors = Normal(self.loc, self.scale, validate_args=False).log_prob(value)
        if self.present is not None:
            factors = factors * self.present.unsqueeze(-1)
        prior = self.prior.log_prob(value)
        return prior + factors.sum((-2, -1)) - self.log_evidence

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch view dim"]:
        shape = Size(sample_shape) + self.batch_shape
        return self._by_statistic(shape) if self.shared else self._at_once(shape)

    def _integrate(self) -> None:
        r"""Set :math:`\log \pi_k Z_k`, and q(y | k).

        Given the precision A of all factors as seen from y, and their mean M,
        :math:`Z_k \propto N(M \mid m_k, \tau_k^2 + 1 / A)`.
        """
        prior, m = self.prior, self.loc.unsqueeze(-3)
        # The axes (component, view, dim), with one component where all agree.
        variance = (
            prior.scale.unsqueeze(-2).square() + self.scale.unsqueeze(-3).square()
        )
        weight, constant = variance.reciprocal(), (2 * math.pi * variance).log()
        if self.present is not None:
            seen = self.present[..., None, :, None]
            weight, constant = weight * seen, constant * seen
        precision = weight.sum(-2)
        tiny = torch.finfo(precision.dtype).tiny  # no view at all: there is no mean
        mean = (weight * m).sum(-2) / precision.clamp(min=tiny)
        rest = (weight * (m - mean.unsqueeze(-2)).square() + constant).sum(-2)

        content = prior.y_scale.square()
        excess, apart = 1 + content * precision, mean - prior.loc
        square = precision * apart.square() / excess + excess.log()
        log_evidence = -0.5 * (square.sum(-1) + rest.sum(-1))
        self.logits = prior.logits.log_softmax(-1) + log_evidence
        self.y_loc = prior.loc + content * precision / excess * apart
        self.y_scale = prior.y_scale * excess.rsqrt()

    def _weights(self) -> Float[Tensor, "*batch component 1 1"]:
        return self.logits.softmax(-1)[..., None, None]

    def _at_once(self, shape: Size) -> Tensor:
        """Draw the views of an item as one vector; given k they are independent."""
        each = self.each()
        loc, scale = each.loc.flatten(-2), each.scale.flatten(-2)
        mixture = NormalMixture(self.logits, loc, scale, validate_args=False)
        return mixture.expand(shape).rsample().unflatten(-1, self.event_shape)

    def _by_statistic(self, shape: Size) -> Tensor:
        """Draw T, and the views given it."""
        variance = self.prior.scale.square()  # its axis for the component has one row
        slope = self.scale.square() / (variance + self.scale.square())
        if self.present is not None:
            slope = torch.where(self.present.unsqueeze(-1), slope, 1.0)
        total = slope.sum(-2, keepdim=True)

        scale = (self.y_scale.square() + variance / total).sqrt()
        mixture = NormalMixture(self.logits, self.y_loc, scale, validate_args=False)
        t = mixture.expand(shape).rsample().unsqueeze(-2)

        noise = self.loc.new_empty(shape + self.event_shape).normal_()
        noise = (variance * slope).sqrt() * noise
        apart = noise - slope * (noise.sum(-2, keepdim=True) / total)
        return self.loc + slope * (t - self.loc) + apart
