"""Rules that integrate the content out: quadrature and importance sampling."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from numpy.polynomial import legendre
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..arguments import at_least, whole
from ..distributions._base import Vectors, Views
from ..distributions.content import SharedContent
from ..special import effective_sample_size

__all__ = ["ImportanceSampling", "Quadrature"]

LogDensity = Callable[[Tensor], Tensor]

# Of quadrature. Offsets from the centre of p(y), in its standard deviations, at which
# peaks are searched; the far ones serve views that are improbable under p(y).
PEAK_OFFSETS = (1.5, 3.0, 5.0, 8.0, 16.0, 64.0, 256.0, 1024.0)
ZOOM, ZOOMS = 9, 6  # nodes of each search between neighbours, number of searches
OCTAVES = range(-14, 3)  # exponents of the widths of a peak that are tried
LADDER = (2.0, 4.0, 7.0, 12.0, 30.0, 200.0)  # panels around a peak, in its widths
HALVED_AT_ONCE = 4  # panels that are halved
DROPPED_NATS = 45.0  # nats: a panel below e^-45 of the integral is dropped

# Of importance sampling.
CONTENT_STEPS = 12  # fixed-point steps towards the y whose views have a given mean
PROPOSAL_FITS = 3  # fits of the proposal
HALVINGS = 16  # of the exponent of the weights, in each fit
WIDER = 1.25  # scale of the proposal over that of the fit, for heavier tails


class Quadrature:
    r"""Adaptive Gauss-Legendre quadrature over y, separately in each dimension of z.

    .. math:: \log p(z_1, \dots, z_V)
        = \sum_d \log \int p(y_d) \prod_v p(z_{v d} \mid y_d) \, dy_d

    Panels end at the views, where the integrand may have a kink, and around its
    largest peak; panels whose highest Legendre coefficients are not small are halved.
    With a Gaussian or Laplace conditional at least a thousandth as wide as p(y), the
    error is below 1e-8 nats in double precision. It is about 1e-4 where a kink is at
    none of the views, and larger where p(z|y) jumps. A second peak that is narrower
    than a twentieth of p(y), and at none of the views, can be missed.
    `Custom.quadrature_error` reports the error.

    The ends of the panels carry no gradient, so the gradient is the integral of the
    gradient of the integrand: exact where panels end at the kinks. The rule does not
    synchronise with the host.

    Arguments:
        panels: The number of panels that are kept, besides one for each view.
        nodes: The number of nodes in each panel, at least 4.
        levels: How often panels are halved, four at a time.
    """

    each = True

    def __init__(self, panels: int = 24, nodes: int = 8, levels: int = 3) -> None:
        self.panels, self.nodes = whole("panels", panels), whole("nodes", nodes, 4)
        self.levels = whole("levels", levels)

    def __repr__(self) -> str:
        return f"Quadrature({self.panels}, {self.nodes}, {self.levels})"

    def finer(self) -> "Quadrature":
        """Return a rule with more panels, nodes and levels, for an error estimate."""
        return Quadrature(2 * self.panels, self.nodes + 4, self.levels + 4)

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
        base = views.content.base_dist
        transform = biject_to(base.support)

        def log_density(u: Tensor) -> Tensor:
            y = transform(u)
            log_joint = views.log_joint(y, value)
            return log_joint + transform.log_abs_det_jacobian(u, y)

        marks = transform.inv(value.detach()).nan_to_num(0.0, 0.0, 0.0).movedim(-2, 0)
        left, right = self._panels(log_density, marks, *_centre(base, transform))
        place, weight, _ = _rule(self.nodes, left)
        width = right - left
        u = (left + width * place).flatten(0, 1)
        log_weight = (width.log() + weight.log()).flatten(0, 1)
        return transform(u), log_density(u) + log_weight

    @torch.no_grad()
    def _panels(
        self, log_density: LogDensity, marks: Tensor, centre: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The ends of the panels with the most mass, each (panel, *batch, dim)."""
        offsets = _column(
            [*(-g for g in reversed(PEAK_OFFSETS)), 0.0, *PEAK_OFFSETS], marks
        )
        edges = torch.cat([centre + scale * offsets, marks]).sort(0).values
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
    """The log-density, with −∞ in place of NaN."""
    return log_value.nan_to_num(-math.inf, math.inf, -math.inf)


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


def _centre(base: TorchDistribution, transform: Transform) -> tuple[Tensor, Tensor]:
    """Location and scale of p(y) after the transform; 0 and 1 if unknown."""
    try:
        centre, scale = transform.inv(base.mean), base.stddev
    except NotImplementedError:
        return torch.zeros(()), torch.ones(())
    real = base.support is constraints.real
    usable = scale.isfinite() & centre.isfinite() & real
    return centre.nan_to_num(0.0, 0.0, 0.0), torch.where(usable, scale, 1.0)


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


class ImportanceSampling:
    r"""Importance sampling of y from a proposal q(y), in all dimensions of z together.

    .. math:: \hat p(z_1, \dots, z_V) = \frac1K \sum_k w_k, \qquad
        w_k = \frac{p(y_k) \prod_v p(z_v \mid y_k)}{q(y_k)}

    The estimate of p is unbiased, so the estimate of log p is too low in the mean: a
    lower bound stays a lower bound. Each call draws new samples. Without a gradient, an
    effective sample size (ESS) :math:`(\sum w)^2 / \sum w^2` below `least` raises.

    Arguments:
        samples: The number K of samples.
        proposal: A function of z and of the mask of present views (or None) that
            returns q(y), event shape (dim,), with reparameterised samples. By default a
            Gaussian from the first two moments of p(y) and p(z|y), fitted three times
            to separate weighted samples and then widened; it carries no gradient.
        least: The smallest effective sample size that is accepted.

    Raises:
        ValueError: If least is below 1, or samples below least.
    """

    each = False

    def __init__(
        self,
        samples: int = 512,
        proposal: Callable[[Tensor, Tensor | None], TorchDistribution] | None = None,
        least: float = 20.0,
    ) -> None:
        self.proposal, self.least = proposal, at_least("least", least, 1)
        hint = "an effective sample size, at least `least`, is at most their number"
        self.samples = whole("samples", samples, math.ceil(least), hint=hint)

    def __repr__(self) -> str:
        return f"ImportanceSampling({self.samples}, least={self.least:g})"

    def __call__(
        self, views: SharedContent, value: Views
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch"]]:
        y, log_weight = self.draw(views, value)
        # Neither a training step nor a trace may synchronise with the host.
        if not log_weight.requires_grad and get_proxy_mode() is None:
            size = float(effective_sample_size(log_weight).min())
            if not size >= self.least:
                raise ValueError(
                    f"expected an effective sample size of at least {self.least:g}, "
                    f"got {size:.3g} of {self.samples}; raise samples, give "
                    "ImportanceSampling a proposal nearer to p(y|z), or make y a "
                    "variable of the model: Joint(…, content=ps.guides.Content(dim))"
                )
        return y, log_weight

    def draw(
        self, views: SharedContent, value: Views
    ) -> tuple[Float[Tensor, "node *batch dim"], Float[Tensor, "node *batch"]]:
        """Return samples of the proposal and log w - log K, whatever the ESS."""
        if self.proposal is None:
            proposal = self._fitted(views, value)
        else:
            proposal = self.proposal(value, views.present)
        y = proposal.rsample((self.samples,))
        log_weight = views.log_joint(y, value) - proposal.log_prob(y)
        return y, log_weight - math.log(self.samples)

    @torch.no_grad()
    def _fitted(self, views: SharedContent, value: Views) -> TorchDistribution:
        proposal = _around_mean(views, value)
        for _ in range(PROPOSAL_FITS):
            y = proposal.sample((self.samples,))
            log_weight = views.log_joint(y, value) - proposal.log_prob(y)
            proposal = _moved(y, log_weight)
        return proposal


def _around_mean(views: SharedContent, value: Views) -> TorchDistribution:
    r"""The Gaussian posterior from the first two moments of p(y) and of p(z|y).

    It is linearised at the y whose views have the given mean, as if the mean of p(z|y)
    moved with y one to one, and widened by a quarter for heavier tails.
    """
    ones = torch.ones_like(value)
    if views.present is not None:
        ones = ones * views.present.unsqueeze(-1)
    count = ones.sum(-2)
    mean = (ones * value).sum(-2) / count.clamp(min=1)
    try:
        y = _content_of(views, mean)
        prior, noise = views.content, views.conditional(y).variance
        precision, pull = prior.variance.reciprocal(), count / noise
        loc = (precision * prior.mean + pull * y) / (precision + pull)
    except NotImplementedError as error:
        raise ValueError(
            "expected p(y) and p(z|y) with a mean and a variance for the default "
            "proposal, got none; give ImportanceSampling(proposal=…), a "
            "function of z and the mask of present views that returns q(y)"
        ) from error
    scale = WIDER * (precision + pull).rsqrt()
    return Normal(loc, scale.expand_as(loc)).to_event(1)


def _content_of(views: SharedContent, mean: Vectors) -> Vectors:
    """The y at which p(z|y) has the mean of the views, approximately."""

    def shift(y: Tensor) -> Tensor:
        return mean - views.conditional(y).mean

    y, step = mean, shift(mean)
    for _ in range(CONTENT_STEPS):
        further = shift(y + step)
        nearer = further.norm(dim=-1, keepdim=True) < step.norm(dim=-1, keepdim=True)
        y = torch.where(nearer, y + step, y)
        step = torch.where(nearer, further, step / 2)
    return y


def _tempered(
    log_weight: Float[Tensor, "node *batch"], least: float
) -> Float[Tensor, "node *batch"]:
    """Weights to a power of at most one with an effective sample size of `least`."""
    # NaN and zero weights come last; infinite weights first.
    top = torch.finfo(log_weight.dtype).max / 4
    log_weight = log_weight.nan_to_num(-top, top, -top).clamp(-top, top)
    log_weight = log_weight - log_weight.amax(0)
    power = torch.ones_like(log_weight[0])
    for _ in range(HALVINGS):
        few = effective_sample_size(power * log_weight) < least
        power = torch.where(few, power / 2, power)
    return (power * log_weight).softmax(0)


def _moved(
    y: Float[Tensor, "node *batch dim"], log_weight: Float[Tensor, "node *batch"]
) -> TorchDistribution:
    """The Gaussian with the moments of weighted samples, widened by a quarter.

    The weights are tempered to a minimal effective sample size, and correlations shrunk
    according to it.
    """
    dim = y.shape[-1]
    share = _tempered(log_weight, 4.0 * dim).unsqueeze(-1)
    loc = (share * y).sum(0)
    away = (y - loc).movedim(0, -2)
    weighted = share.movedim(0, -2) * away
    covariance = weighted.mT @ away
    variance = (weighted * away).sum(-2)
    size = share.square().sum(0).reciprocal().unsqueeze(-1)
    covariance = size / (size + 2 * dim) * covariance
    rest = 2 * dim / (size.squeeze(-1) + 2 * dim) * variance
    covariance = covariance + (rest + torch.finfo(y.dtype).tiny).diag_embed()
    # Unlike cholesky, cholesky_ex does not synchronise with the host.
    tril, _ = torch.linalg.cholesky_ex(WIDER**2 * covariance)
    return MultivariateNormal(loc, scale_tril=tril, validate_args=False)
