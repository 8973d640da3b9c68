r"""The default proposal q(y) of importance sampling: normals at the modes of p(y|z).

Each item has a few starts, the best of many samples of p(y) and its own views; where
more are wanted, the best sample in each of many parts of the space. From
each, Newton steps climb to a mode, with gradients at the mode and at one point in each
direction, which measure the curvature over the width of the normal, also of densities
with kinks. One more normal has the moments of weighted samples. All is done in R^n, of
which the support of y is the image: for a sphere the stereographic projection around
the best start. No step carries a gradient or synchronises with the host.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import normalize

from ..distributions._base import Views
from ..distributions.content import SharedContent
from ..distributions.supports import alike, is_real, is_sphere, support_of
from ._unconstrained import Unconstrained

__all__ = ["ModeMixture"]

LogDensity = Callable[[Tensor], Tensor]  # (node, *batch, number) -> (node, *batch)

TRIED, STARTS = 256, 3  # samples of p(y), and how many of them are starts
TRIED_EACH = 64  # least number of samples of p(y) for each start
STEPS, LENGTHS = 5, (1.0, 0.3, 0.0)  # Newton steps, tried parts of each
FLATTEST, RIDGE = 0.25, 0.05  # least curvature and its addition, in squared widths
WIDTHS, WIDE = (1.2, 4.0), 0.15  # of the normals over those of the modes; share of last
FROM_CONTENT = 0.05  # share of samples of p(y), which bound the weights
EVEN = 0.1  # share of the modes that is divided evenly
FITS, PILOT, FITTED = 2, 192, 0.5  # fits to weighted samples, and their share
POWERS = 8  # of the weights, each a quarter of the last, in the fit


class ModeMixture:
    """A mixture of normals at modes of the posterior of y, and of p(y)."""

    @torch.no_grad()
    def __init__(
        self, views: SharedContent, value: Views, starts: int = STARTS
    ) -> None:
        self.views, self.value, self.batch = views, value, value.shape[:-2]
        many = max(TRIED, TRIED_EACH * starts)
        tried = _tried(views, value, many)
        log_joint = views.log_joint(tried, value)
        log_joint = log_joint.nan_to_num(-math.inf, math.inf, -math.inf)
        best = _best(tried, log_joint, STARTS)
        sphere = is_sphere(support_of(views.content))
        map_ = _Stereographic(_best(tried, log_joint, 1)[0]) if sphere else None
        self.content = Unconstrained(views.content, tried, views.sparse, map_)
        u = self.content.numbers(tried[:many])
        spread = 1.5 * (u - u.median(0).values).abs().median(0).values
        loc = _bounded(self.content.numbers(best))
        if starts > STARTS:
            cells = _cells(_bounded(u), spread, starts - STARTS)
            loc = torch.cat([loc, _best_in(u, log_joint[:many], cells)])
        modes = _climbed(self._log_density, loc, spread)
        weight = (modes.log_density + modes.log_volume).softmax(0)
        tril = _cholesky(modes.scale @ modes.scale.mT)[0]
        share = (1 - EVEN) * weight + EVEN / len(weight)
        self._set(modes.loc, tril, share)
        for _ in range(FITS):
            u = self._sample(PILOT)
            loc, fitted = _moments(_bounded(u), self._weighted(u)[1])
            self._set(
                torch.cat([modes.loc, loc.unsqueeze(0)]),
                torch.cat([tril, fitted.unsqueeze(0)]),
                torch.cat([(1 - FITTED) * share, torch.full_like(share[:1], FITTED)]),
            )

    def draw(
        self, n: int
    ) -> tuple[Float[Tensor, "n *batch dim"], Float[Tensor, "n *batch"]]:
        """Samples y, and the logs of their weights p(y) p(z|y) / q(y)."""
        return self._weighted(self._sample(n))

    def _weighted(self, u: Tensor) -> tuple[Tensor, Tensor]:
        y, log_content = self.content(u), self.content.log_prob(u)
        log_proposal = self._log_prob(u, log_content)
        log_views = self.views.log_views(y, self.value)
        return y, log_content + log_views - log_proposal

    def _log_density(self, u: Tensor) -> Tensor:
        y = self.content(u)
        return self.content.log_prob(u) + self.views.log_views(y, self.value)

    def _set(self, loc: Tensor, tril: Tensor, share: Tensor) -> None:
        self.loc, self.tril, self.share = loc, tril, share
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        self.inverse = torch.linalg.solve_triangular(tril, eye, upper=False)

    @torch.no_grad()
    def _sample(self, n: int) -> Float[Tensor, "n *batch number"]:
        """Draw so many samples of u, a fixed number of them from p(y)."""
        few = self._from_content(n)
        prior = self.content.sample((few,), self.batch).to(self.loc.dtype)
        # Systematic sampling: the same place in each of so many equal intervals.
        place = torch.arange(n - few, dtype=self.share.dtype, device=self.share.device)
        place = place.view(-1, *[1] * len(self.batch)) + torch.rand_like(self.share[:1])
        ends = self.share.cumsum(0)[:-1].unsqueeze(1)
        mode = (place / (n - few) >= ends).sum(0)
        noise = self.loc.new_empty(*self.batch, n - few, self.loc.shape[-1]).normal_()
        narrow, wide = WIDTHS
        is_wide = torch.rand_like(noise[..., :1]) < WIDE
        noise = noise * torch.where(is_wide, wide, narrow).to(noise)
        moved = self.loc.unsqueeze(-2) + noise @ self.tril.mT  # by every mode
        index = mode.movedim(0, -1)[None, ..., None]
        u = moved.take_along_dim(index, 0).squeeze(0).movedim(-2, 0)
        return torch.cat([prior, u])

    @torch.no_grad()
    def _log_prob(
        self,
        u: Float[Tensor, "n *batch number"],
        log_content: Float[Tensor, "n *batch"],
    ) -> Float[Tensor, "n *batch"]:
        """The log-density of the mixture, as of the samples that are drawn."""
        part = self._from_content(len(u)) / len(u)
        size = u.shape[-1]
        away = u.movedim(0, -2) - self.loc.unsqueeze(-2)
        square = (away @ self.inverse.mT).square().sum(-1).movedim(-1, 0)
        log_volume = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_share = self.share.log() - log_volume - size / 2 * math.log(2 * math.pi)
        each = [
            math.log(share) - size * math.log(width) - square / (2 * width**2)
            for width, share in zip(WIDTHS, (1 - WIDE, WIDE), strict=True)
        ]
        near = (torch.logaddexp(*each) + log_share).logsumexp(1)
        near = near.nan_to_num(-math.inf, math.inf, -math.inf)
        return torch.logaddexp(near + math.log1p(-part), log_content + math.log(part))

    def _from_content(self, n: int) -> int:
        return max(1, round(FROM_CONTENT * n))


class _Modes(NamedTuple):
    """Normals at modes, for each start."""

    loc: Float[Tensor, "start *batch number"]
    scale: Float[Tensor, "start *batch number number"]  # a root of the covariance
    log_density: Float[Tensor, "start *batch"]
    log_volume: Float[Tensor, "start *batch"]


def _tried(
    views: SharedContent, value: Views, many: int
) -> Float[Tensor, "node *#batch dim"]:
    """Samples of p(y), the same for all items, and the views where y is like z."""
    content, batch = views.content, value.shape[:-2]
    own = content.batch_shape
    y = content.sample((many,))
    y = y.view(many, *[1] * (len(batch) - len(own)), *own, *content.event_shape)
    if not alike(content, views.example):
        return y
    if views.present is not None:
        present = views.present.expand(value.shape[:-1]).unsqueeze(-1)
        first = present.to(torch.uint8).argmax(-2, keepdim=True)
        first = value.take_along_dim(first, -2)
        value = torch.where(present, value, first)
    points = value.movedim(-2, 0)
    if is_real(support_of(content)):
        points = torch.cat([points, points.mean(0, keepdim=True)])
    return torch.cat([y.expand(many, *batch, -1), points])


def _best(y: Tensor, log_joint: Tensor, count: int) -> Tensor:
    """The best of so many equal parts of the samples, shape (count, *batch, dim)."""
    y = y.expand(*log_joint.shape, -1)
    parts = zip(y.chunk(count), log_joint.chunk(count), strict=True)
    best = [
        p.take_along_dim(log_p.argmax(0, keepdim=True).unsqueeze(-1), 0)
        for p, log_p in parts
    ]
    return torch.cat(best)


def _cells(
    u: Float[Tensor, "n *#batch number"], spread: Tensor, count: int
) -> Bool[Tensor, "cell n *#batch"]:
    """Which samples are in each of so many cells, whose centres are far apart."""
    u = torch.asinh((u - u.median(0).values) / spread.clamp(min=1e-6))
    away = torch.full_like(u[..., 0], math.inf)
    cell = torch.zeros_like(away)
    for k in range(count):
        far = away.argmax(0, keepdim=True).unsqueeze(-1)
        square = (u - u.take_along_dim(far, 0)).square().sum(-1)
        cell = torch.where(square < away, float(k), cell)
        away = torch.minimum(square, away)
    return cell.unsqueeze(0) == torch.arange(count).to(u).view(-1, *[1] * cell.dim())


def _best_in(u: Tensor, log_joint: Tensor, cells: Tensor) -> Tensor:
    """The best of the samples in each cell, shape (cell, *batch, number)."""
    u, none = u.expand(*log_joint.shape, -1), -math.inf
    best = [log_joint.where(c, none).argmax(0, keepdim=True) for c in cells]
    return torch.cat([u.take_along_dim(b.unsqueeze(-1), 0) for b in best])


def _climbed(log_density: LogDensity, loc: Tensor, spread: Tensor) -> _Modes:
    scale = _bounded(spread).clamp(min=1e-6).expand_as(loc).diag_embed()
    log_volume = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    lengths = loc.new_tensor(LENGTHS).view(-1, *[1] * loc.dim())
    for step in range(STEPS):
        columns = scale.movedim(-1, 0) * (-1) ** step  # the sides in turn
        points = torch.cat([loc.unsqueeze(0), loc + columns])
        gradient = (_gradients(log_density, points).unsqueeze(-2) @ scale).squeeze(-2)
        curvature = (gradient[:1] - gradient[1:]).movedim(0, -1) * (-1) ** step
        root = _root(curvature)
        move = torch.cholesky_solve(gradient[0].unsqueeze(-1), root)
        moved = loc + lengths * (scale @ move).squeeze(-1)
        height = _heights(log_density, moved)
        best = height.argmax(0, keepdim=True)
        loc = moved.take_along_dim(best.unsqueeze(-1), 0).squeeze(0)
        scale = torch.linalg.solve_triangular(root, scale.mT, upper=False).mT
        log_volume = log_volume - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _Modes(loc, scale, height.amax(0), log_volume)


def _gradients(log_density: LogDensity, points: Tensor) -> Tensor:
    with torch.enable_grad():
        u = points.flatten(0, 1).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_density(u).sum(), u)
    return _bounded(gradient).view_as(points)


def _heights(log_density: LogDensity, points: Tensor) -> Tensor:
    height = log_density(points.flatten(0, 1)).view(points.shape[:-1])
    return height.nan_to_num(-math.inf, math.inf, -math.inf)


def _moments(
    u: Float[Tensor, "node *batch number"], log_weight: Float[Tensor, "node *batch"]
) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor of weighted samples.

    The weights are tempered to a minimal effective sample size, and correlations shrunk
    according to it.
    """
    size = u.shape[-1]
    top = torch.finfo(u.dtype).max / 4
    log_weight = log_weight.nan_to_num(-top, top, -top).clamp(-top, top)
    log_weight = log_weight - log_weight.amax(0)
    powers = log_weight.new_tensor([0.25**k for k in range(POWERS)])
    weights = (powers.view(-1, *[1] * log_weight.dim()) * log_weight).exp()
    many = weights.sum(1).square() >= 4.0 * size * weights.square().sum(1)
    many[-1] = True
    index = many.to(torch.uint8).argmax(0)[None, None]
    share = weights.take_along_dim(index, 0).squeeze(0)
    share = share / share.sum(0)
    count = share.square().sum(0).reciprocal()[..., None, None]
    share = share.unsqueeze(-1)
    loc = (share * u).sum(0)
    away = (u - loc).movedim(0, -2)
    covariance = (share.movedim(0, -2) * away).mT @ away
    alone = covariance.diagonal(dim1=-2, dim2=-1) + torch.finfo(u.dtype).tiny
    trust = count / (count + 2 * size)
    covariance = trust * covariance + (1 - trust) * alone.diag_embed()
    root, failed = _cholesky(covariance)
    diagonal = alone.sqrt().diag_embed()
    return loc, torch.where(failed[..., None, None], diagonal, root)


def _root(curvature: Float[Tensor, "*batch k k"]) -> Float[Tensor, "*batch k k"]:
    """The Cholesky factor of a curvature made positive definite."""
    matrix = (curvature + curvature.mT) / 2
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    raised = (diagonal.clamp(min=FLATTEST) - diagonal + RIDGE).diag_embed()
    root, failed = _cholesky(matrix + raised)
    dominant = matrix.abs().sum(-1).clamp(min=FLATTEST).sqrt().diag_embed()
    return torch.where(failed[..., None, None], dominant, root)


def _cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The factor, and whether there is none: cholesky_ex does not synchronise."""
    root, info = torch.linalg.cholesky_ex(matrix)
    return root, info != 0


def _bounded(x: Tensor) -> Tensor:
    """Finite numbers: zero for NaN, and no infinities."""
    return x.nan_to_num(0.0, 1e6, -1e6).clamp(-1e6, 1e6)


class _Stereographic(Transform):
    """R^(n−1) to the sphere in R^n less one point, with zero at a given point."""

    domain = constraints.real_vector
    bijective = True

    def __init__(self, centre: Float[Tensor, "*batch dim"]) -> None:
        super().__init__()
        pole = torch.zeros_like(centre)
        pole[..., -1] = 1.0
        self.mirror = normalize(pole - centre, dim=-1)  # swaps the centre and the pole

    codomain = constraints.real_vector

    def _call(self, u: Tensor) -> Tensor:
        r = u.square().sum(-1, keepdim=True) / 4
        return self._reflected(torch.cat([u, 1 - r], -1) / (1 + r))

    def _inverse(self, y: Tensor) -> Tensor:
        y = self._reflected(y)
        return 2 * y[..., :-1] / (1 + y[..., -1:])

    def log_abs_det_jacobian(self, u: Tensor, y: Tensor) -> Tensor:
        return -u.shape[-1] * torch.log1p(u.square().sum(-1) / 4)

    def _reflected(self, y: Tensor) -> Tensor:
        along = (y * self.mirror).sum(-1, keepdim=True)
        return y - 2 * along * self.mirror
