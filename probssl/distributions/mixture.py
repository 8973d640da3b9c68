"""Views that share a component: the mixture priors of the views."""

import math

import torch
from jaxtyping import Bool, Float
from pyro.distributions import (
    Categorical,
    MixtureSameFamily,
    Normal,
    TorchDistribution,
    constraints,
)
from torch import Size, Tensor

from .coupled import CoupledComponents

__all__ = ["SharedComponent"]

Shape = Size | list[int] | tuple[int, ...]


class SharedComponent(TorchDistribution):
    r"""Views around a content that belongs to one of K components.

    .. math:: k \sim \mathrm{Categorical}(\pi), \qquad
        y \mid k \sim N(m_k, \tau_k^2), \qquad z_v \mid y, k \sim N(y, \sigma_k^2)

    With n the number of (present) views and :math:`\bar z` their mean, y integrated out
    and k summed out, :math:`\log p(z_1, \dots, z_V) = \log \sum_k \pi_k e^{\ell_k}`,

    .. math:: \ell_k = -\tfrac12 \sum_{\text{dim}} \Big[
        \frac{\sum_v (z_v - \bar z)^2}{\sigma_k^2}
        + \frac{n (\bar z - m_k)^2}{\sigma_k^2 + n \tau_k^2}
        + n \log 2 \pi + (n - 1) \log \sigma_k^2 + \log(\sigma_k^2 + n \tau_k^2) \Big]

    The cost is that of K distances per item, whatever the number of views.

    Arguments:
        logits: The log-weights :math:`\log \pi`, up to a constant, with shape
            (\*batch, component).
        loc: The means m, with shape (\*batch, component, dim).
        scale: The standard deviation :math:`\sigma` of a view given y, broadcastable to
            loc, with as many axes.
        y_scale: The standard deviation :math:`\tau` of y given k, likewise; 0 puts y on
            the mean of its component.
        views: The number of views.
        present: The views whose marginal density is meant, bool, with shape
            (\*batch, view); None means all.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "y_scale": constraints.independent(constraints.nonnegative, 2),
    }
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        logits: Float[Tensor, "*batch component"],
        loc: Float[Tensor, "*batch component dim"],
        scale: Tensor,
        y_scale: Tensor,
        views: int,
        *,
        present: Bool[Tensor, "*batch view"] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        # Kept as they come, not expanded: what they alone determine is computed once.
        self.logits, self.loc, self.scale, self.y_scale = logits, loc, scale, y_scale
        self.present = present
        shapes = [logits.shape[:-1], *(p.shape[:-2] for p in (loc, scale, y_scale))]
        if present is not None:
            shapes.append(present.shape[:-1])
        batch, event = torch.broadcast_shapes(*shapes), Size((views, loc.shape[-1]))
        super().__init__(batch, event, validate_args=validate_args)

    def expand(
        self, batch_shape: Shape, _instance: "SharedComponent | None" = None
    ) -> "SharedComponent":
        new = self._get_checked_instance(SharedComponent, _instance)
        new.logits, new.loc, new.present = self.logits, self.loc, self.present
        new.scale, new.y_scale = self.scale, self.y_scale
        super(SharedComponent, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch view dim"]:
        mean = (self._weights() * self.loc).sum(-2, keepdim=True)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch view dim"]:
        mean = (self._weights() * self.loc).sum(-2, keepdim=True)
        each = self.scale.square() + self.y_scale.square() + (self.loc - mean).square()
        variance = (self._weights() * each).sum(-2, keepdim=True)
        return variance.expand(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch view dim"]:
        logits = self.logits.expand(self.batch_shape + self.logits.shape[-1:])
        k = Categorical(logits=logits, validate_args=False).sample(Size(sample_shape))
        return self._around(k, self.loc, self.y_scale)

    def log_prob(self, value: Float[Tensor, "*batch view dim"]) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self._log_joint(value, self.present).logsumexp(-1)

    def component(self, value: Float[Tensor, "*batch view dim"]) -> Categorical:
        """The posterior of the component k given the views: the responsibilities."""
        logits = self._log_joint(value, self.present)
        return Categorical(logits=logits, validate_args=False)

    def content(self, value: Float[Tensor, "*batch view dim"]) -> MixtureSameFamily:
        """The posterior of the content y given the views: a mixture of normals."""
        normal = Normal(*self._content(value, self.present), validate_args=False)
        k = self.component(value)
        return MixtureSameFamily(k, normal.to_event(1), validate_args=False)

    def times(
        self, loc: Tensor, scale: Tensor, present: Tensor | None = None
    ) -> CoupledComponents:
        r"""The normalised product with a normal factor for each view.

        .. math:: q(z) \propto p(z) \prod_{v \text{ present}} N(z_v \mid m_v, r_v^2)

        Absent views follow the prior given the present ones. Unlike `complete` its
        samples carry a gradient.
        """
        return CoupledComponents(self, loc, scale, present)

    def complete(
        self, value: Float[Tensor, "*batch view dim"], present: Bool[Tensor, "*b view"]
    ) -> Float[Tensor, "*batch view dim"]:
        """Draw the absent views given the present ones, which are returned as given.

        No gradient reaches what is drawn: a component is chosen on the way.
        """
        with torch.no_grad():
            logits = self._log_joint(value, present)
            k = Categorical(logits=logits, validate_args=False).sample()
            drawn = self._around(k, *self._content(value, present))
        return torch.where(present.unsqueeze(-1), value, drawn)

    def complete_mean(
        self, value: Float[Tensor, "*batch view dim"], present: Bool[Tensor, "*b view"]
    ) -> Float[Tensor, "*batch view dim"]:
        """The mean of the absent views given the present ones, returned as given."""
        share = self._log_joint(value, present).softmax(-1).unsqueeze(-1)
        loc, _ = self._content(value, present)
        mean = (share * loc).sum(-2, keepdim=True)
        return torch.where(present.unsqueeze(-1), value, mean)

    def _weights(self) -> Float[Tensor, "*batch component 1"]:
        return self.logits.softmax(-1).unsqueeze(-1)

    def _log_joint(
        self, value: Tensor, present: Tensor | None
    ) -> Float[Tensor, "*batch component"]:
        r""":math:`\log \pi_k + \ell_k`."""
        count, mean = _mean(value, present)
        within = (value - mean).square()
        if present is not None:
            within = within * present.unsqueeze(-1)
        variance = self.scale.square()
        total = variance + count * self.y_scale.square()
        square = within.sum(-2, keepdim=True) / variance
        square = square + count * (mean - self.loc).square() / total
        each = count * math.log(2 * math.pi) + (count - 1) * variance.log()
        constant = self.event_shape[1] * (each + total.log()).mean(-1)
        value = self.logits.log_softmax(-1) - 0.5 * (square.sum(-1) + constant)
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.expand(batch + value.shape[-1:])

    def _content(self, value: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of y given the views and each component."""
        count, mean = _mean(value, present)
        total = self.scale.square() + count * self.y_scale.square()
        loc = self.loc + count * self.y_scale.square() / total * (mean - self.loc)
        return loc, self.y_scale * self.scale * total.rsqrt()

    def _around(self, k: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Draw the views around a y from component k, of which loc and scale tell."""
        y = _pick(loc, k)
        y = y + _pick(scale, k) * torch.randn_like(y)
        noise = y.new_empty(k.shape + self.event_shape).normal_()
        return y.unsqueeze(-2) + _pick(self.scale, k).unsqueeze(-2) * noise


def _mean(value: Tensor, present: Tensor | None) -> tuple[Tensor | int, Tensor]:
    """The number of present views and their mean, with an axis for the component."""
    if present is None:
        return value.shape[-2], value.mean(-2, keepdim=True)
    weight = present.unsqueeze(-1).to(value.dtype)
    count = weight.sum(-2, keepdim=True)
    return count, (weight * value).sum(-2, keepdim=True) / count.clamp(min=1)


def _pick(part: Float[Tensor, "*b component dim"], k: Tensor) -> Tensor:
    """The row of component k."""
    part = part.expand(k.shape + part.shape[-2:])
    return part.take_along_dim(k[..., None, None], -2).squeeze(-2)
