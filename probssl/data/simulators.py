"""Simulated data with known factors: a linear-Gaussian joint, shapes, cells, digits."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import at_least, between, positive, typed, whole
from ..arrays import tensor
from .published import digits
from .splits import Groups, Split

__all__ = ["FACTORS", "SHAPES", "Cells", "LinearGaussian", "MovingDigits", "cells"]
__all__ += ["factors", "linear_gaussian", "moving_digits"]

SHAPES = ("bar", "corner", "tee", "cross")
"""The names of the classes that `factors` draws."""

FACTORS = ("x", "y", "angle", "thickness")
"""The columns of the style of `factors`, in pixels and radians."""

_SIZE = 16
_DIGIT = 8
_LOW = (-2.0, -2.0, -math.pi / 4, 0.6)
_HIGH = (2.0, 2.0, math.pi / 4, 1.6)
# Two strokes for each shape, from (x, y) to (x, y) in pixels; a bar is drawn twice.
_STROKES = (
    (((0.0, -4.0), (0.0, 4.0)), ((0.0, -4.0), (0.0, 4.0))),
    (((-2.5, -3.5), (-2.5, 3.5)), ((-2.5, 3.5), (2.5, 3.5))),
    (((0.0, -3.0), (0.0, 4.0)), ((-3.0, -3.0), (3.0, -3.0))),
    (((0.0, -4.0), (0.0, 4.0)), ((-4.0, 0.0), (4.0, 0.0))),
)


class LinearGaussian(NamedTuple):
    """The groups of views that `linear_gaussian` drew, and their true y, z and W."""

    groups: Groups
    y: Float[Tensor, "n dim"]
    z: Float[Tensor, "n view dim"]
    weight: Float[Tensor, "features dim"]

    def __repr__(self) -> str:
        shapes = [
            f"{name} {tuple(part.shape)}"
            for name, part in zip("yzW", self[1:], strict=True)
        ]
        return f"LinearGaussian({self.groups}, {', '.join(shapes)})"


@typed
def linear_gaussian(
    n: int,
    dim: int | None = None,
    features: int | None = None,
    *,
    views: int = 2,
    scale: float = 0.5,
    y_scale: float = 1.0,
    noise: float = 0.1,
    weight: Float[Tensor, "features dim"] | None = None,
) -> LinearGaussian:
    r"""Draw groups of views from a Gaussian prior and a linear-Gaussian likelihood.

    .. math:: y \sim N(0, \texttt{y\_scale}^2 I), \quad
        z_v \mid y \sim N(y, \texttt{scale}^2 I), \quad
        x_v \mid z_v \sim N(W z_v, \texttt{noise}^2 I)

    Arguments:
        dim: The dimension of y and z, by default 2, or that of `weight`.
        features: The dimension of x, by default 8, or that of `weight`.
        weight: W, which also sets the dtype and the device; None draws its entries from
            N(0, 1).

    Raises:
        ValueError: A scale that is negative or not finite, no items, no views, sizes
            other than those of `weight`.
    """
    scales = {"scale": scale, "y_scale": y_scale, "noise": noise}
    scale, y_scale, noise = (at_least(k, value, 0) for k, value in scales.items())
    n, views = whole("n", n), whole("views", views)
    given = None if features is None else whole("features", features)
    known = None if dim is None else whole("dim", dim)
    drawn = torch.randn(given or 8, known or 2) if weight is None else weight
    W = tensor(drawn, "weight")
    if W.ndim != 2 or W.shape != (given or W.shape[0], known or W.shape[1]):
        raise ValueError(
            f"expected weight of shape (features, dim), got {tuple(W.shape)} with "
            f"features={features} and dim={dim}; leave these out, or give them alike"
        )
    y = y_scale * torch.randn(n, W.shape[1], dtype=W.dtype, device=W.device)
    z = y.unsqueeze(1) + scale * y.new_empty(n, views, W.shape[1]).normal_()
    x = z @ W.mT + noise * y.new_empty(n, views, W.shape[0]).normal_()
    return LinearGaussian(Groups(x), y, z, W)


def factors(n: int) -> Split:
    """Draw shapes of 16 × 16 pixels in [0, 1]: the shape is content, the rest style.

    Shape, position, angle and thickness are independent and uniform. The labels number
    `SHAPES`; the columns of the style are named by `FACTORS`: the position x (to the
    right) and y (downwards) in pixels from the middle, the angle in radians from x
    towards y, within ±π/4, where no two drawings coincide, and half the thickness of a
    stroke in pixels. The centre of rotation is the middle of the shape.

    Example:
        >>> factors(3).images.shape
        torch.Size([3, 1, 16, 16])

    Raises:
        ValueError: No items.
    """
    shape = torch.randint(len(SHAPES), (whole("n", n),))
    low, high = torch.tensor(_LOW), torch.tensor(_HIGH)
    style = low + (high - low) * torch.rand(n, len(FACTORS))
    position, angle, thickness = style[:, :2], style[:, 2], style[:, 3]

    axis = torch.arange(_SIZE) - (_SIZE - 1) / 2
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    local = (pixels - position.unsqueeze(1)) @ turn  # by −angle: rows times R

    away = _distance(local, torch.tensor(_STROKES)[shape])
    images = torch.sigmoid(4 * (thickness.unsqueeze(1) - away))
    return Split(images.reshape(n, 1, _SIZE, _SIZE), shape, style)


class Cells(NamedTuple):
    r"""The cells that `cells` drew, and their truth.

    Arguments:
        split: Counts (n, gene), their types as labels, and the covariates ``"size"``,
            the depth in thousands of counts, (n, 1), and ``"batch"``, (n,).
        share: The expected share of a gene in the counts of a type in a batch, which
            sums to 1 over genes.
        depth: The expected number of counts of each cell.
        dispersion: :math:`\alpha` of the negative binomial.
        parents: The tree of types: the parent of each node, -1 of the root.
        leaves: The node of each type.
        doublet: Which cells are two.
        second: The type of the other cell of a doublet; else that of the cell.
    """

    split: Split
    share: Float[Tensor, "batch type gene"]
    depth: Float[Tensor, " n"]
    dispersion: float
    parents: tuple[int, ...]
    leaves: tuple[int, ...]
    doublet: Bool[Tensor, " n"]
    second: Int[Tensor, " n"]

    @property
    def mean(self) -> Float[Tensor, "n gene"]:
        """The expected counts of each cell."""
        split = self.split
        assert split.labels is not None and split.covariates is not None
        batch = split.covariates["batch"]
        pair = self.share[batch, split.labels] + self.share[batch, self.second]
        return self.depth.unsqueeze(1) * pair / 2

    def __repr__(self) -> str:
        return f"Cells({self.split}, {len(self.share)} batches, α = {self.dispersion})"


@typed
def cells(
    n: int,
    genes: int = 200,
    *,
    types: int = 8,
    batches: int = 1,
    depth: tuple[float, float] = (100.0, 20_000.0),
    dispersion: float = 0.2,
    program: float = 0.2,
    effect: float = 1.0,
    batch_effect: float = 0.3,
    doublets: float = 0.0,
) -> Cells:
    r"""Draw counts of genes in cells, whose types are the leaves of a tree.

    .. math:: x_{ig} \sim \mathrm{NB}(s_i \, \rho_{b_i k_i g}, \alpha), \qquad
        \rho_{bkg} \propto \exp \Big( a_g + \sum_{j \in \text{path}(k)} \delta_{jg}
        + \beta_{bg} \Big)

    The type k and the batch b of a cell are uniform and independent, its expected depth
    s is log-uniform. The variance of a count of mean m is :math:`m + \alpha m^2`. Each
    node j but the root has a program: a share `program` of the genes, drawn anew, with
    log-fold changes :math:`\delta \sim N(0, \texttt{effect}^2)`, which all types below
    it have: types that part late are alike. :math:`a \sim N(0, 1)`; the first batch has
    :math:`\beta = 0`, others :math:`\beta \sim N(0, \texttt{batch\_effect}^2)`. The
    tree grows by splits of leaves, each drawn uniformly.

    Arguments:
        depth: The least and the largest expected number of counts of a cell.
        dispersion: :math:`\alpha`; 0 is the Poisson.
        doublets: The probability that a cell is two of independent types, of which its
            counts have the mean shares; its label is that of the first.

    Example:
        >>> cells(50, genes=30, types=4).split.images.shape
        torch.Size([50, 30])

    Raises:
        ValueError: Sizes below 1, a depth that is not positive or whose ends are in the
            other order, a scale that is negative, a share that is no probability.
    """
    n, genes = whole("n", n), whole("genes", genes)
    types, batches = whole("types", types), whole("batches", batches)
    low, high = (positive("depth", end, "as (100, 20_000)") for end in depth)
    if low > high:
        raise ValueError(
            f"expected depth as (low, high), got {depth}; give the lower end first"
        )
    scales = {"dispersion": dispersion, "effect": effect, "batch_effect": batch_effect}
    alpha, effect, shift = (at_least(k, value, 0) for k, value in scales.items())
    program = between("program", program, 0, 1, "it is a share of the genes")
    doublets = between("doublets", doublets, 0, 1, "it is a probability")

    parents, leaves = _tree(types)
    change = effect * torch.randn(len(parents), genes)
    change = change * (torch.rand(len(parents), genes) < program)
    change[0] = torch.randn(genes)  # the root has a, of all genes
    logits = torch.stack([change[_path(leaf, parents)].sum(0) for leaf in leaves])
    beta = shift * torch.randn(batches, 1, genes)
    beta[0] = 0
    share = (logits + beta).softmax(-1)

    label, batch = torch.randint(types, (n,)), torch.randint(batches, (n,))
    other, doublet = torch.randint(types, (n,)), torch.rand(n) < doublets
    size = (math.log(low) + math.log(high / low) * torch.rand(n)).exp()
    known = {"size": size.unsqueeze(1) / 1000, "batch": batch}
    second = torch.where(doublet, other, label)
    empty = Split(torch.zeros(n, genes), label, covariates=known)
    truth = Cells(empty, share, size, alpha, parents, leaves, doublet, second)
    rate = truth.mean
    if alpha:
        r = torch.full_like(rate, 1 / alpha)
        rate = rate * torch.distributions.Gamma(r, r).sample()
    return truth._replace(split=empty._replace(images=torch.poisson(rate)))


def _tree(leaves: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The parent of each node of a random binary tree, and its leaves."""
    parents, ends = [-1], [0]
    while len(ends) < leaves:
        node = ends.pop(int(torch.randint(len(ends), ())))
        ends += [len(parents), len(parents) + 1]
        parents += [node, node]
    return tuple(parents), tuple(sorted(ends))


def _path(node: int, parents: tuple[int, ...]) -> list[int]:
    """A node and its ancestors."""
    return [] if node < 0 else [node, *_path(parents[node], parents)]


class MovingDigits(NamedTuple):
    """The series of frames that `moving_digits` drew, and where the digit was.

    Arguments:
        groups: Views (n, frame, 1, 16, 16), the frames in their order; the labels are
            the digits.
        position: The upper left corner of the digit, (x, y) in pixels to the right and
            downwards from that of the frame, 0 to 8.
        velocity: The motion from this frame on, (x, y) in pixels per frame.
    """

    groups: Groups
    position: Float[Tensor, "n frame 2"]
    velocity: Float[Tensor, "n frame 2"]

    def __repr__(self) -> str:
        shape = tuple(self.position.shape)
        return f"MovingDigits({self.groups}, position and velocity {shape})"


@typed
def moving_digits(
    n: int,
    frames: int = 6,
    *,
    images: Split | None = None,
    speed: float = 1.0,
    seed: int | None = None,
) -> MovingDigits:
    r"""Draw series of a digit of 8 × 8 pixels that drifts and bounces in 16 × 16.

    Each series has one digit, drawn from `images`, a start that is uniform over the
    places where it fits, and a velocity from :math:`N(0, \texttt{speed}^2 I)`, which
    changes its sign where the digit meets the edge. Between pixels the digit is
    interpolated linearly and rounded to the grey levels {0, 1/16, …, 1}.

    The frames are the views of an item, in their order: for `priors.Sequence`.

    Arguments:
        n: The number of series.
        frames: The number of frames of each.
        images: The digits that move, (m, 1, 8, 8); by default the training set of
            `data.digits`. For held-out series give ``data.digits().test``.
        speed: The standard deviation of the velocity, in pixels per frame.
        seed: A seed of their own, which leaves ``torch.manual_seed`` alone; None draws
            from that.

    Example:
        >>> moving_digits(3, frames=5).groups.views.shape
        torch.Size([3, 5, 1, 16, 16])

    Raises:
        ValueError: No items, no frames, a speed that is negative or not finite, images
            of another shape.
    """
    n, frames = whole("n", n), whole("frames", frames)
    speed = at_least("speed", speed, 0)
    source = digits().train if images is None else images
    shape = tuple(source.images.shape[1:])
    if shape != (1, _DIGIT, _DIGIT) or not source.images.is_floating_point():
        raise ValueError(
            f"expected images of shape (1, {_DIGIT}, {_DIGIT}) in [0, 1], got {shape}, "
            f"{source.images.dtype}; give digits such as ps.data.digits().test"
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    row = torch.randint(len(source), (n,), generator=generator)
    room = _SIZE - _DIGIT
    start = room * torch.rand(n, 1, 2, generator=generator)
    drift = speed * torch.randn(n, 1, 2, generator=generator)
    # A digit that bounces at the ends of [0, room] goes around a circle of twice that.
    around = (start + drift * torch.arange(frames).unsqueeze(-1)) % (2 * room)
    position = room - (around - room).abs()
    velocity = torch.where(around < room, drift, -drift)
    # Each pixel of the digit has a triangle of weights over those of the frame.
    pixels, own = torch.arange(_SIZE).unsqueeze(-1), torch.arange(_DIGIT)
    away = (pixels - own) - position[..., None, None]
    across, down = (1 - away.abs()).clamp(min=0).unbind(2)
    digit = source.images[row, 0].float().unsqueeze(1)
    drawn = ((down @ digit @ across.mT) * 16).round() / 16
    labels = None if source.labels is None else source.labels[row]
    return MovingDigits(Groups(drawn.unsqueeze(2), labels), position, velocity)


def _distance(
    points: Float[Tensor, "n points 2"], strokes: Float[Tensor, "n strokes 2 2"]
) -> Float[Tensor, "n points"]:
    """The distance of each point to the nearest of the strokes."""
    start, end = strokes.unsqueeze(1).unbind(-2)
    along, from_start = end - start, points.unsqueeze(2) - start
    share = (from_start * along).sum(-1) / along.square().sum(-1)
    nearest = share.clamp(0, 1).unsqueeze(-1) * along
    return (from_start - nearest).norm(dim=-1).amin(-1)
