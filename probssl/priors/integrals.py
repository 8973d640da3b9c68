"""Rules that integrate y out: quadrature, importance sampling, an exact sum."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from numpy.polynomial import legendre
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Cauchy,
    MixtureSameFamily,
    StudentT,
    constraints,
)
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..arguments import at_least, whole
from ..distributions._base import Views
from ..distributions.content import SharedContent
from ..distributions.supports import (
    dimensions,
    states_of,
    support_of,
)
from ..runtime.randomness import restored_randomness
from ..special import effective_sample_size
from ._proposal import STARTS, ModeMixture
from ._unconstrained import Unconstrained

__all__ = ["Enumeration", "ImportanceSampling", "Quadrature"]

LogDensity = Callable[[Tensor], Tensor]

# Of quadrature. Offsets from the centre of p(y), in its standard deviations, at which
# peaks are searched; the far ones serve views that are improbable under p(y).
PEAK_OFFSETS = (1.5, 3.0, 5.0, 8.0, 16.0, 64.0, 256.0, 1024.0)
COMPONENT_OFFSETS = (-6.0, -2.5, 0.0, 2.5, 6.0)  # of p(y)'s components, likewise
# Tails that fall as a power need ends of panels at all distances.
TAIL_OFFSETS = (*(-(4.0**k) for k in range(7)), 0.0, *(4.0**k for k in range(7)))
MOST_TIMES = 8  # as many samples, of importance sampling, where the ESS is small
ZOOM, ZOOMS = 9, 6  # nodes of each search between neighbours, number of searches
OCTAVES = range(-14, 3)  # exponents of the widths of a peak that are tried
LADDER = (2.0, 4.0, 7.0, 12.0, 30.0, 200.0)  # panels around a peak, in its widths
HALVED_AT_ONCE = 4  # panels that are halved
PLACES = 256  # at which one further peak is searched, within eight widths of p(y)
FINER = 16  # least number of further peaks, or of starts, in estimates of the error
EXAMINED = 128  # numbers z, of which the error is estimated
LARGEST_ERROR = 0.05  # nats per item that are accepted
DROPPED_NATS = 45.0  # nats: a panel below e^-45 of the integral is dropped


class Quadrature:
    r"""Adaptive Gauss-Legendre quadrature over y, separately in each dimension of z.

    .. math:: \log p(z_1, \dots, z_V)
        = \sum_d \log \int p(y_d) \prod_v p(z_{v d} \mid y_d) \, dy_d

    Panels end at the views, where the integrand may have a kink, and around its
    largest peak; panels whose highest Legendre coefficients are not small are halved.
    With a Gaussian or Laplace conditional at least a thousandth as wide as p(y), the
    error is below 1e-8 nats in double precision. It is about 1e-4 where a kink is at
    none of the views, and larger where p(z|y) jumps. A second peak that is narrower
    than a twentieth of p(y), and at none of the views, can be missed without `peaks`.

    `Custom.quadrature_error` estimates the error by a finer rule. Without a gradient
    the rule does so itself for a few items, in its first call, the second, fourth,
    eighth and so on: above 0.05 nats in the mean it raises an error, and warns if
    single items are above. In training `ps.fit` examines draws of the prior.

    The ends of the panels carry no gradient, so the gradient is the integral of the
    gradient of the integrand: exact where panels end at the kinks. The rule does not
    synchronise with the host.

    Arguments:
        panels: The number of panels that are kept, besides one for each view.
        nodes: The number of nodes in each panel, at least 4.
        levels: How often panels are halved, four at a time.
        peaks: How many peaks besides the largest have panels of their own: the highest
            local maxima at 256 places for each of them, within eight widths of p(y).

    Raises:
        ValueError: When called without a gradient, if its error is large.
    """

    each = True
    peaks = 0

    def __init__(
        self, panels: int = 24, nodes: int = 8, levels: int = 3, peaks: int = 0
    ) -> None:
        self.panels, self.nodes = whole("panels", panels), whole("nodes", nodes, 4)
        self.levels = whole("levels", levels)
        if whole("peaks", peaks, 0):  # rules saved before it was an argument have none
            self.peaks = peaks
        self._calls: int | None = 0  # without a gradient; None examines none

    def __repr__(self) -> str:
        more = f", peaks={self.peaks}" if self.peaks else ""
        return f"Quadrature({self.panels}, {self.nodes}, {self.levels}{more})"

    def finer(self) -> "Quadrature":
        """Return a rule with more panels, nodes, levels and peaks, for the error."""
        peaks = max(2 * self.peaks, FINER)
        panels = 2 * self.panels + 4 * (2 * len(LADDER) + 1)
        rule = Quadrature(panels, self.nodes + 4, self.levels + 4, peaks)
        rule._calls = None
        return rule

    def __call__(
        self, views: SharedContent, value: Views
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch dim"]]:
        if not views.factorised:
            raise ValueError(
                "expected p(y) and p(z|y) to be products over the dimensions for "
                "quadrature, got a dependence between them; write it elementwise, "
                "as dist.Laplace(y, 0.3).to_event(1), or sample y: "
                "Custom(…, integral=ps.priors.ImportanceSampling())"
            )
        base = dimensions(views.content)
        content = Unconstrained(base, value, views.sparse)

        def log_density(u: Tensor) -> Tensor:
            return content.log_prob(u) + views.log_views(content(u), value)

        marks = content.numbers(value.detach().movedim(-2, 0))
        marks = marks.nan_to_num(0.0, 0.0, 0.0)
        more = _ends_of_components(base, content, marks)
        centre = _centre(base, content)
        if self.peaks:
            more = [*more, *_further_peaks(log_density, marks, *centre, self.peaks)]
        left, right = self._panels(log_density, marks, more, *centre)
        place, weight, _ = _rule(self.nodes, left)
        width = right - left
        u = (left + width * place).flatten(0, 1)
        log_weight = (width.log() + weight.log()).flatten(0, 1)
        y, log_weight = content(u), log_density(u) + log_weight
        tracing = get_proxy_mode() is not None or torch.compiler.is_compiling()
        if not (tracing or log_weight.requires_grad or log_weight.is_meta):
            self._examine(views, value, log_weight)
        return y, log_weight

    def _examine(self, views: SharedContent, value: Views, log_weight: Tensor) -> None:
        """Compare with a finer rule, for some items, in few of the calls."""
        if (some := _to_examine(self, views, value)) is None:
            return
        fewer, part, rows = some
        log_prob = log_weight.logsumexp(0).sum(-1).flatten()[rows]
        fewer.sparse = True
        finer = self.finer()(fewer, part)[1].logsumexp(0).sum(-1)
        error = (finer - log_prob).abs().nan_to_num(0.0, math.inf)
        size = torch.minimum(finer.abs(), log_prob.abs())
        rounding = torch.finfo(error.dtype).eps ** 0.75 * size
        error = (error - rounding).clamp(min=0)
        if float(error.mean()) > LARGEST_ERROR:
            raise ValueError(inaccurate(self, error))
        if float(error.max()) > LARGEST_ERROR:
            warnings.warn(inaccurate(self, error), RuntimeWarning, stacklevel=2)

    @torch.no_grad()
    def _panels(
        self,
        log_density: LogDensity,
        marks: Tensor,
        more: list[Tensor],
        centre: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The ends of the panels with the most mass, each (panel, *batch, dim)."""
        offsets = _column(
            [*(-g for g in reversed(PEAK_OFFSETS)), 0.0, *PEAK_OFFSETS], marks
        )
        edges = torch.cat([centre + scale * offsets, marks, *more]).sort(0).values
        peak = _peak(log_density, edges)
        edges = torch.cat([edges, peak, _ladder(log_density, peak, scale)])
        count = self.panels + len(marks)
        left, right = _highest_panels(log_density, edges.sort(0).values, count)
        panels = _measure(log_density, self.nodes, left, right)
        for _ in range(self.levels):
            panels = _halve(log_density, self.nodes, panels)
        log_mass, kept = panels.log_mass.topk(min(count, len(panels.left)), 0)
        left, right = panels.left.gather(0, kept), panels.right.gather(0, kept)
        # A panel without mass may lie where the density is NaN.
        dead = log_mass < panels.log_mass.logsumexp(0) - DROPPED_NATS
        return torch.where(dead, peak, left), torch.where(dead, peak, right)


class _Panels(NamedTuple):
    """Panels, the log of their mass, and the log of the last Legendre coefficients."""

    left: Float[Tensor, "panel *batch dim"]
    right: Float[Tensor, "panel *batch dim"]
    log_mass: Float[Tensor, "panel *batch dim"]
    log_error: Float[Tensor, "panel *batch dim"]


def _measure(
    log_density: LogDensity, nodes: int, left: Tensor, right: Tensor
) -> _Panels:
    place, _, matrix = _rule(nodes, left)
    u = left + (right - left) * place
    log_value = _finite(log_density(u.flatten(0, 1))).view_as(u)
    top = log_value.amax(0).clamp(min=torch.finfo(left.dtype).min)
    value = (log_value - top).exp()
    mass, *last = torch.tensordot(matrix, value, 1)
    log_width = (right - left).log() + top
    log_error = torch.hypot(*last).log()
    return _Panels(left, right, log_width + mass.log(), log_width + log_error)


def _halve(log_density: LogDensity, nodes: int, panels: _Panels) -> _Panels:
    """Halve the four worst panels; an accurate one keeps its whole width."""
    log_error, worst = panels.log_error.topk(min(HALVED_AT_ONCE, len(panels.left)), 0)
    left, right = panels.left.gather(0, worst), panels.right.gather(0, worst)
    tolerance = math.log(torch.finfo(left.dtype).eps) / 3
    enough = panels.log_mass.logsumexp(0) + tolerance
    middle = torch.where(log_error > enough, (left + right) / 2, right)
    ends = torch.cat([left, middle]), torch.cat([middle, right])
    halves = zip(panels, _measure(log_density, nodes, *ends), strict=True)
    return _Panels(
        *(
            torch.cat([whole.scatter(0, worst, half[: len(worst)]), half[len(worst) :]])
            for whole, half in halves
        )
    )


def _highest_panels(
    log_density: LogDensity, edges: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The panels between sorted edges with the largest bounds of their mass."""
    left, right = edges[:-1], edges[1:]
    log_value = _finite(log_density(edges))
    bound = torch.maximum(log_value[:-1], log_value[1:]) + (right - left).log()
    best = bound.topk(min(count, len(left)), 0).indices
    return left.gather(0, best), right.gather(0, best)


def _finite(log_value: Tensor) -> Tensor:
    """The log-density, with −∞ for NaN, and for ∞ at a single point, without mass."""
    return log_value.nan_to_num(-math.inf, -math.inf, -math.inf)


def _peak(log_density: LogDensity, places: Tensor) -> Tensor:
    """The maximiser, found by repeated search between the neighbours of the highest."""
    zoom = _column([i / (ZOOM - 1) for i in range(ZOOM)], places)
    for _ in range(ZOOMS):
        low, _, high = _highest(log_density, places)
        places = low + (high - low) * zoom
    return _highest(log_density, places)[1]


def _highest(log_density: LogDensity, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The highest of sorted places, and its two neighbours."""
    best = _finite(log_density(places)).argmax(0, keepdim=True)
    low, high = (best - 1).clamp(min=0), (best + 1).clamp(max=len(places) - 1)
    return places.gather(0, low), places.gather(0, best), places.gather(0, high)


def _ladder(log_density: LogDensity, peak: Tensor, scale: Tensor) -> Tensor:
    """Ends of panels on both sides of a peak, in units of its one-nat half-width."""
    widths = scale * _column([2.0**k for k in OCTAVES], peak)
    steps, ends = _column(LADDER, peak), []
    for side in (-1, 1):
        fall = log_density(peak) - log_density(peak + side * widths)
        last = ((fall < 1).sum(0, keepdim=True) - 1).clamp(min=0)
        ends.append(peak + side * steps * widths.expand_as(fall).gather(0, last))
    return torch.cat(ends)


@torch.no_grad()
def _further_peaks(
    log_density: LogDensity, like: Tensor, centre: Tensor, scale: Tensor, many: int
) -> Iterator[Tensor]:
    """Ends of panels around so many of the highest local maxima at many places."""
    steps = _column(torch.linspace(-8, 8, PLACES * many).tolist(), like)
    places = (centre + scale * steps).expand(-1, *like.shape[1:])
    value = _finite(log_density(places))
    inner = value[1:-1]
    local = (inner > value[:-2]) & (inner >= value[2:])
    best = inner.where(local, -math.inf).topk(many, 0).indices + 1
    for peak in places.gather(0, best).split(1):
        yield torch.cat([peak, _ladder(log_density, peak, scale)])


def _centre(base: TorchDistribution, content: Unconstrained) -> tuple[Tensor, Tensor]:
    """Location and scale of p(y) after the transform; 0 and 1 if unknown."""
    try:
        centre, scale = content.numbers(base.mean), _deviation(base)
    except (NotImplementedError, AttributeError):
        return torch.zeros(()), torch.ones(())
    real = support_of(base) is constraints.real
    usable = scale.isfinite() & centre.isfinite() & real
    return centre.nan_to_num(0.0, 0.0, 0.0), torch.where(usable, scale, 1.0)


def _deviation(p: Any) -> Tensor:
    """The standard deviation; that of torch's Student-t selects by a mask."""
    if isinstance(p, StudentT):
        return p.scale * (p.df / (p.df - 2).clamp(min=0)).sqrt()
    return p.stddev


def _ends_of_components(
    base: TorchDistribution, content: Unconstrained, like: Tensor
) -> list[Tensor]:
    """Ends of panels around components of p(y) that are narrow or have heavy tails."""
    whole: Any = getattr(base, "vector", base)
    mixture = isinstance(whole, MixtureSameFamily)
    parts: Any = whole.component_distribution if mixture else base
    axis = -1 - len(parts.event_shape)  # of the components
    parts = dimensions(parts) if parts.event_shape else parts
    try:
        if isinstance(parts, StudentT | Cauchy):
            loc, scale, offsets = parts.loc, parts.scale, TAIL_OFFSETS
        elif mixture:
            loc, scale, offsets = parts.mean, parts.stddev, COMPONENT_OFFSETS
        else:
            return []
    except NotImplementedError:
        return []
    loc, scale = (
        each.movedim(axis, 0) if mixture else each[None] for each in (loc, scale)
    )
    ends = torch.cat([loc + offset * scale for offset in offsets])
    ends = content.numbers(ends).nan_to_num(0.0, 0.0, 0.0)
    shape = (len(ends), *[1] * (like.dim() - ends.dim()), *ends.shape[1:])
    return [ends.view(shape).expand(-1, *like.shape[1:])]


def _rule(nodes: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [0, 1], as columns; weights and Legendre coefficients."""
    place, rows = _legendre(nodes)
    column = (-1, *[1] * like.dim())
    matrix = like.new_tensor(rows)
    return like.new_tensor(place).view(column), matrix[0].view(column), matrix


@cache
def _legendre(nodes: int) -> tuple[list[float], list[list[float]]]:
    """The Gauss-Legendre rule, and rows for the two highest Legendre coefficients."""
    place, weight = legendre.leggauss(nodes)
    last = [legendre.Legendre.basis(k)(place) for k in (nodes - 2, nodes - 1)]
    rows = [weight / 2, *(weight * p * math.sqrt(nodes / 2) for p in last)]
    return ((place + 1) / 2).tolist(), [row.tolist() for row in rows]


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers along the first axis, with the dtype and the other axes of a tensor."""
    column = like.new_tensor(numbers).view(-1, *[1] * (like.dim() - 1))
    return column.expand(-1, *like.shape[1:])


REMEDY = (
    "raise samples, give ImportanceSampling a proposal nearer to p(y|z), or make y a "
    "variable of the model: Joint(…, content=ps.guides.Content(dim))"
)


def _to_examine(
    rule: Any, views: SharedContent, value: Views
) -> tuple[SharedContent, Views, Tensor] | None:
    """A few of the items in the calls 1, 2, 4, 8 … of a rule; None in the others."""
    if rule._calls is None:
        return None
    rule._calls += 1
    few = rule._calls & (rule._calls - 1) == 0
    return views.some(value, EXAMINED) if few else None


def inaccurate(rule: Quadrature, error: Tensor) -> str:
    """A message about the error of log p(z_1..V), by item."""
    more = Quadrature(128, peaks=max(8, 2 * rule.peaks))
    return (
        f"expected {rule} of y with an error below {LARGEST_ERROR} nats per item, got "
        f"{float(error.mean()):.2g} in the mean and {float(error.max()):.2g} at most, "
        "by a finer rule: p(y|z) has narrow peaks or jumps that its panels miss; take "
        f"integral=ps.priors.{more}, ps.priors.ImportanceSampling(), or make y a "
        "variable of the model: Joint(…, content=ps.guides.Content(dim))"
    )


def poor(least: float, share: float) -> str:
    """A warning about a share of items with a small effective sample size."""
    return (
        f"importance sampling of y has an effective sample size below {least:g} for "
        f"{100 * share:.0f} % of the items: their log p(z) and gradients are poor; "
        f"{REMEDY}"
    )


class ImportanceSampling:
    r"""Importance sampling of y from a proposal q(y), in all its dimensions together.

    .. math:: \hat p(z_1, \dots, z_V) = \frac1K \sum_k w_k, \qquad
        w_k = \frac{p(y_k) \prod_v p(z_v \mid y_k)}{q(y_k)}

    The estimate of p is unbiased, so the estimate of log p is too low in the mean: a
    lower bound stays a lower bound: by about 1 / (2 ESS) nats, where the effective
    sample size (ESS) is :math:`(\sum w)^2 / \sum w^2`. Each call draws new samples.
    Where the ESS of an item is below `least`, all items get up to eight times as many.
    If it still is, a warning gives the share of such items; and without a gradient, if
    the harmonic mean over the items is below, an error is raised. In training only
    `ps.fit` warns, after an epoch.

    A mode of p(y|z) that no start leads to leaves the ESS large and log p too low. So
    an estimate with more starts and samples is compared, as that of `Quadrature`: by
    the rule itself in few of its calls without a gradient, and by `ps.fit` at draws
    of the prior. Modes that this estimate misses as well are not seen.

    Arguments:
        samples: The number K of samples.
        proposal: A function of z and of the mask of present views (or None) that
            returns q(y), event shape that of y, with reparameterised samples. By
            default a mixture of normals at modes of p(y|z), in R^n where y is
            constrained, and of p(y); it carries no gradient.
        least: The smallest effective sample size that is accepted.
        starts: At most how many modes of p(y|z) the default proposal has.

    Raises:
        ValueError: If least is below 1, or samples below least.
    """

    each = False
    starts = STARTS  # rules saved before it was an argument have none
    _calls: int | None = 0  # without a gradient; None examines none

    def __init__(
        self,
        samples: int = 512,
        proposal: Callable[[Tensor, Tensor | None], TorchDistribution] | None = None,
        least: float = 20.0,
        starts: int = STARTS,
    ) -> None:
        self.proposal, self.least = proposal, at_least("least", least, 1)
        hint = "an effective sample size, at least `least`, is at most their number"
        self.samples = whole("samples", samples, math.ceil(least), hint=hint)
        if whole("starts", starts, STARTS) > STARTS:
            self.starts = starts

    def __repr__(self) -> str:
        more = f", starts={self.starts}" if self.starts > STARTS else ""
        return f"ImportanceSampling({self.samples}, least={self.least:g}{more})"

    def finer(self) -> "ImportanceSampling":
        """Return a rule with more starts and samples, which may find more modes."""
        starts = max(4 * self.starts, FINER)
        rule = ImportanceSampling(2 * self.samples, self.proposal, self.least, starts)
        rule._calls = None
        return rule

    def __call__(
        self, views: SharedContent, value: Views
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch"]]:
        y, log_weight = self.draw(views, value)
        # Neither a training step nor a trace may synchronise with the host.
        if log_weight.requires_grad and views.watch is not None:
            few = ~(effective_sample_size(log_weight.detach()) >= self.least)
            views.watch[0] += few.sum()
            views.watch[1] += few.numel()
        elif get_proxy_mode() is None and not log_weight.is_meta:
            y, log_weight = self._enough(views, value, y, log_weight)
            if not log_weight.requires_grad:
                self._examine(views, value, log_weight)
        return y, log_weight

    def _examine(self, views: SharedContent, value: Views, log_weight: Tensor) -> None:
        """Compare with more starts and samples, for some items, in few of the calls."""
        if self.proposal is not None:
            return
        if (some := _to_examine(self, views, value)) is None:
            return
        fewer, part, rows = some
        log_weight = log_weight.reshape(len(log_weight), -1)[:, rows]  # also of one z
        message = self.missed(fewer, part, log_weight)
        if message:
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    @torch.no_grad()
    def missed(
        self, views: SharedContent, value: Views, log_weight: Tensor
    ) -> str | None:
        """A warning, if an estimate of log p with more starts is better.

        It is larger, by more than five standard errors of both, for some item or in the
        mean; or its effective sample size alone is large enough.
        """
        cuda = [value.device] if value.is_cuda else []
        with restored_randomness(cuda):
            fewer = copy.copy(views)
            fewer.sparse = True
            finer = self.finer().draw(fewer, value)[1]
        higher = finer.logsumexp(0) - log_weight.logsumexp(0)
        less, more = (
            effective_sample_size(each).reciprocal() for each in (log_weight, finer)
        )
        error = less + more
        mean = higher.mean() - 5 * (error.mean() / len(higher)).sqrt()
        largest = (higher - 5 * error.sqrt()).max()
        few = less.mean() * self.least > 1 >= more.mean() * self.least
        found = float(mean) > LARGEST_ERROR or float(largest) > 4 * LARGEST_ERROR
        if not (found or bool(few)):
            return None
        return (
            f"importance sampling of y misses modes of p(y|z): with more starts log "
            f"p(z) is {float(higher.mean()):.2g} nats higher in the mean and "
            f"{float(higher.max()):.2g} at most; take integral=ps.priors."
            f"ImportanceSampling(starts={4 * self.starts}), or make y a variable of "
            "the model: Joint(…, content=ps.guides.Content(dim))"
        )

    def _enough(
        self, views: SharedContent, value: Views, y: Tensor, log_weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add samples while an item has a small effective sample size, up to a limit.

        Each addition fits the proposal anew.
        """
        for k in range(1, MOST_TIMES):
            if bool((effective_sample_size(log_weight) >= self.least).all()):
                return y, log_weight
            y_more, more = self.draw(views, value)
            y = torch.cat([y, y_more])
            parts = log_weight + math.log(k), more
            log_weight = torch.cat(parts) - math.log(k + 1)
        each = effective_sample_size(log_weight.detach())
        wrong = log_weight.isnan() | (log_weight == math.inf)
        if bool(wrong.any()) and not log_weight.requires_grad:
            raise ValueError(
                "expected a finite density p(y) ∏ p(z_v|y) at each draw of y, got "
                f"{int(wrong.sum())} of {wrong.numel()} infinite or NaN; look for a "
                "p(y) that is infinite on the edge of its support, as a Gamma, Beta or "
                "Dirichlet with a concentration below 1 is, and for rounding in "
                "log_prob; or make y a variable of the model: "
                "Joint(…, content=ps.guides.Content(dim))"
            )
        nowhere = (log_weight == -math.inf).all(0)
        if bool(nowhere.any()) and not log_weight.requires_grad:
            raise ValueError(
                "expected views z that some content y can give, got "
                f"{int(nowhere.sum())} of {nowhere.numel()} items with p(z|y) = 0 at "
                f"each of {len(y)} draws of y; move z into the support of p(z|y), or "
                f"{REMEDY}"
            )
        size = float(1 / each.reciprocal().mean())
        share = float((~(each >= self.least)).double().mean())
        if not size >= self.least and not log_weight.requires_grad:
            raise ValueError(
                f"expected an effective sample size of at least {self.least:g}, got "
                f"{size:.3g} of {len(y)}; {REMEDY}"
            )
        if share > 0:
            warnings.warn(poor(self.least, share), RuntimeWarning, stacklevel=2)
        return y, log_weight

    def draw(
        self, views: SharedContent, value: Views
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch"]]:
        """Return samples of the proposal and log w - log K, whatever the ESS."""
        if self.proposal is None:
            mixture = ModeMixture(views, value, self.starts)
            y, log_weight = mixture.draw(self.samples)
        else:
            proposal = self.proposal(value, views.present)
            y = proposal.rsample((self.samples,))
            log_weight = views.log_joint(y, value) - proposal.log_prob(y)
        return y, log_weight - math.log(self.samples)


class Enumeration:
    r"""The exact sum over a discrete y with finitely many values.

    .. math:: \log p(z_1, \dots, z_V) = \log \sum_y p(y) \prod_v p(z_v \mid y)

    All views of an item share one y.

    Arguments:
        each: Whether every dimension of z is summed on its own, as where p(y) and
            p(z|y) are products over the dimensions.
    """

    def __init__(self, each: bool = False) -> None:
        self.each = each

    def __repr__(self) -> str:
        return f"Enumeration({self.each})"

    def __call__(self, views: SharedContent, value: Views) -> tuple[Tensor, Tensor]:
        content: Any = views.content
        if self.each:
            states = content.base_dist.enumerate_support(expand=False).flatten()
            states = states.unsqueeze(-1).expand(-1, *content.event_shape)
        else:
            states = states_of(content)
        column = (len(states), *[1] * (value.dim() - 2))
        y = states.view(*column, *content.event_shape)
        log_weight = views.log_joint(y, value)
        if views.known is not None:
            state = torch.arange(len(states), device=y.device).view(column)
            given = log_weight - content.log_prob(y)
            given = given.masked_fill(state != views.known, -math.inf)
            log_weight = torch.where(views.known >= 0, given, log_weight)
        return y, log_weight
