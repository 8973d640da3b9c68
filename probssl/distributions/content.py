"""Views that are independent given a latent content: any p(y) and any p(z|y)."""

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Categorical, constraints

from ..runtime.validation import unvalidated
from ._base import Present, Shape, Views, ViewsDistribution
from .supports import dimensions, ends_of, number_of, states_of, within

__all__ = ["ContentPosterior", "Integral", "Rows", "SharedContent"]

Conditional = Callable[..., TorchDistribution]
Rows = Callable[[Tensor, int], Tensor]


class Integral(Protocol):
    """A rule of numerical integration over y: nodes and log-weights.

    The weights sum to the integral: of each dimension, with shape
    (node, \\*batch, dim), if `each`; else of all dimensions, (node, \\*batch).
    """

    each: bool

    def __call__(
        self, views: "SharedContent", value: Views
    ) -> tuple[Float[Tensor, "node *batch dim"], Tensor]: ...


class SharedContent(ViewsDistribution):
    r"""Views drawn independently given one content y, which is integrated out.

    .. math:: p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

    Arguments:
        conditional: p(z|y), a function of y with shape (\*batch, dim) that returns a
            distribution with that batch shape and event shape (dim,).
        content: p(y), event shape (dim,).
        views: The number V of views.
        integral: The rule of integration over y.
        example: p(z|y) for some y, which gives the event shape, and whether samples are
            reparameterised.
        space: The support of z, and whether that of p(z|y) may differ by y, as
            `supports.common_support` says of the example.
        factorised: Whether p(y) and p(z|y) are products over the dimensions.
        batch_shape: The batch shape of the parameters of `conditional` and `content`.
        present: The present views, as in `ViewsDistribution`; None means all.
        known: The row of a discrete content among its states, which is conditioned on;
            -1 where it is summed out. None means everywhere.
        watch: A tensor to which importance sampling adds, in steps with a gradient, how
            many items have a small effective sample size, and how many items there are.
        sparse: Whether p(y) may have mass where y rounds to an end of its support.
        rebuilt: A function that returns `conditional` and `content` for some of the
            items, given a function that takes theirs from a tensor with the batch shape
            and so many axes behind. Needed where `batch_shape` has axes.
    """

    parts = {"present": 1, "known": 0}

    def __init__(
        self,
        conditional: Conditional,
        content: TorchDistribution,
        views: int,
        integral: Integral,
        *,
        example: TorchDistribution,
        space: tuple[constraints.Constraint, bool],
        factorised: bool,
        batch_shape: Shape = (),
        present: Present = None,
        known: Int[Tensor, "*batch"] | None = None,
        watch: Float[Tensor, "2"] | None = None,
        sparse: bool = True,
        rebuilt: Callable[[Rows], tuple[Conditional, TorchDistribution]] | None = None,
    ) -> None:
        self.conditional, self.content, self.integral = conditional, content, integral
        self.example, self.factorised, self.present = example, factorised, present
        self.known, self.watch, self.sparse = known, watch, sparse
        self.space, self.moves = space
        self.own_batch, self.rebuilt = Size(batch_shape), rebuilt
        if present is not None:
            batch_shape = torch.broadcast_shapes(batch_shape, present.shape[:-1])
        if known is not None:
            batch_shape = torch.broadcast_shapes(batch_shape, known.shape)
        event_shape = Size((views,)) + example.event_shape
        super().__init__(Size(batch_shape), event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.content.has_rsample and self.example.has_rsample

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.space, 1)

    def sample(self, sample_shape: Shape = ()) -> Views:
        with torch.no_grad(), unvalidated():
            y = self._contents("sample", Size(sample_shape))
            return self._around(y).sample().movedim(0, -2)

    def rsample(self, sample_shape: Shape = ()) -> Views:
        with unvalidated():
            y = self._contents("rsample", Size(sample_shape))
            return self._around(y).rsample().movedim(0, -2)

    def log_prob(self, value: Views) -> Tensor:
        log_prob = self.nodes(value)[1].logsumexp(0)
        log_prob = log_prob.sum(-1) if self.integral.each else log_prob
        inside = self._inside(value)
        return log_prob if inside is None else log_prob.where(inside, -math.inf)

    def _inside(self, value: Views) -> Tensor | None:
        """Whether all present views are between the ends of the support of z.

        Off them densities of torch may be anything. None where there are no ends, or
        they may differ by y; where views are NaN so is the density.
        """
        support: Any = number_of(self.space)
        if self.moves or ends_of(support) == [None, None]:
            return None
        inside = (support.check(value) | value.isnan()).all(-1)
        return (inside if self.present is None else inside | ~self.present).all(-1)

    def nodes(self, value: Views) -> tuple[Float[Tensor, "node *batch dim"], Tensor]:
        """Return nodes y, and log-weights whose sum is the density of the views."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        with unvalidated():
            return self.integral(self, value.expand(shape))

    def some(
        self, value: Views, numbers: int
    ) -> tuple["SharedContent", Views, Int[Tensor, " n"]] | None:
        """A few of the items, their views and rows; None if there are no items.

        Arguments:
            value: Shape (\\*batch, view, dim) of all items.
            numbers: How many numbers they have in one view, at most.
        """
        batch, items = value.shape[:-2], value.shape[:-2].numel()
        if not items or (self.own_batch and self.rebuilt is None):
            return None
        count = min(items, max(1, numbers // value.shape[-1]))
        ends = torch.linspace(0, items - 1, count, dtype=torch.double)
        rows = ends.long().to(value.device)

        def chosen(part: Tensor, axes: int) -> Tensor:
            part = part.expand(batch + part.shape[part.ndim - axes :])
            return part.reshape(-1, *part.shape[len(batch) :])[rows]

        few = copy.copy(self)
        few._batch_shape = rows.shape
        if self.own_batch and self.rebuilt is not None:
            few.conditional, few.content = self.rebuilt(chosen)
            few.own_batch = rows.shape
        for name, axes in self.parts.items():
            part = getattr(self, name)
            if part is not None:
                setattr(few, name, chosen(part, axes))
        return few, chosen(value, 2), rows

    def posterior(self, value: Views) -> "ContentPosterior":
        """Return the posterior of the content given the views."""
        return ContentPosterior(self, value)

    def log_joint(self, y: Float[Tensor, "node *batch dim"], value: Views) -> Tensor:
        r"""Return :math:`\log p(y) + \sum_v \log p(z_v \mid y)` for all nodes.

        The shape is (node, \*batch, dim) if the integral has `each`, else
        (node, \*batch).
        """
        content = dimensions(self.content) if self.integral.each else self.content
        return content.log_prob(y) + self.log_views(y, value)

    def log_views(self, y: Float[Tensor, "node *batch dim"], value: Views) -> Tensor:
        r"""Return :math:`\sum_v \log p(z_v \mid y)`, of the shape of `log_joint`."""
        views = self.conditional(y.unsqueeze(1))
        if self.integral.each:
            views = dimensions(views)
        # Views in front: the axes that y shares with z stay contiguous. Densities
        # of one's own need not broadcast.
        value = value.movedim(-2, 0).contiguous()
        value = value.expand(len(y), *value.shape)
        log_prob = views.log_prob(value)
        if self.moves:
            log_prob = log_prob.where(within(views, value), -math.inf)
        if self.present is not None:
            shape = *value.shape[2:-1], value.shape[1]
            present = self.present.expand(shape).movedim(-1, 0)
            present = present.unsqueeze(-1) if self.integral.each else present
            log_prob = torch.where(present, log_prob, 0.0)
        return log_prob.sum(1)

    def _contents(self, method: str, sample_shape: Size) -> Tensor:
        """Samples of p(y), or the known contents."""
        batch, content = self.batch_shape, self.content
        if content.batch_shape:  # of random hyper-parameters
            y = getattr(content.expand(batch), method)(sample_shape)
        else:
            y = getattr(content, method)(sample_shape + batch)
        if self.known is None:
            return y
        states = states_of(content)[self.known.clamp(min=0)]
        known = (self.known >= 0).view(
            self.known.shape + (1,) * len(content.event_shape)
        )
        return torch.where(known, states, y)

    def _around(self, y: Tensor) -> TorchDistribution:
        return self.conditional(y.expand(self.event_shape[:1] + y.shape))

    def _draw_absent(self, value: Tensor, present: Tensor) -> Tensor:
        y = self.marginal(present).posterior(value).sample()
        with torch.no_grad(), unvalidated():
            return self._around(y).sample().movedim(0, -2)

    def _mean_absent(self, value: Tensor, present: Tensor) -> Tensor:
        y = self.marginal(present).posterior(value)
        with unvalidated():
            expected = self.conditional(y.nodes).mean
        share = y.log_share if self.integral.each else y.log_share.unsqueeze(-1)
        return (share.exp() * expected).sum(0).unsqueeze(-2)


class ContentPosterior(TorchDistribution):
    r"""The posterior of a content given its views, :math:`p(y \mid z_1, \dots, z_V)`.

    Its density is exact but for the evidence; its moments are weighted sums over the
    nodes of the integral. Its samples are nodes, drawn with their weights. Where p(z)
    is 0 it is not defined: moments and samples are NaN.

    Arguments:
        views: The distribution of the views.
        value: The views.

    Attributes:
        nodes: The nodes y, shape (node, \*batch, \*event).
        log_share: Their normalised log-weights, (node, \*batch), and a last axis dim if
            the integral has `each`.
    """

    arg_constraints = {}

    def __init__(self, views: SharedContent, value: Views) -> None:
        self.views, self.value = views, value
        nodes, log_weight = views.nodes(value)
        evidence = log_weight.logsumexp(0)
        self.log_share = log_weight - evidence
        self.log_evidence = evidence.sum(-1) if views.integral.each else evidence
        batch, event = self.log_evidence.shape, views.content.event_shape
        self.nodes = nodes.expand(nodes.shape[:1] + batch + event)
        super().__init__(batch, event, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint | None:
        return self.views.content.support

    @property
    def mean(self) -> Tensor:
        """The mean of y; NaN for numbers of classes, as of `Categorical`."""
        if not self.nodes.is_floating_point():
            return torch.full_like(self.nodes[0], math.nan, dtype=self.log_share.dtype)
        return (self._share() * self.nodes).sum(0)

    @property
    def variance(self) -> Tensor:
        if not self.nodes.is_floating_point():
            return self.mean
        return (self._share() * (self.nodes - self.mean).square()).sum(0)

    def _share(self) -> Tensor:
        """The weights of the nodes, with axes for the event."""
        share = self.log_share.exp()
        return share.view(share.shape + (1,) * (self.nodes.dim() - share.dim()))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        share = self._share().movedim(0, -1)
        nodes = self.nodes.movedim(0, -1)
        if nodes.is_floating_point():
            undefined = share.isnan()
            share = share.masked_fill(undefined, 1.0)
            nodes = nodes.masked_fill(undefined, math.nan)
        index = Categorical(share, validate_args=False).sample(sample_shape)
        nodes = nodes.expand(Size(sample_shape) + nodes.shape)
        return nodes.take_along_dim(index.unsqueeze(-1), -1).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        shape = self.batch_shape + self.event_shape
        many = value.expand(torch.broadcast_shapes(value.shape, shape))
        with unvalidated():  # axes in front of the batch count as nodes
            log_joint = self.views.log_joint(many.reshape(-1, *shape), self.value)
        if self.views.integral.each:
            log_joint = log_joint.sum(-1)
        batch = many.shape[: many.dim() - len(self.event_shape)]
        return log_joint.view(batch) - self.log_evidence
