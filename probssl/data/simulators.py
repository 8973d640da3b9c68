"""Simulated data with known factors: a linear-Gaussian joint, and drawn shapes."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..arguments import at_least, typed, whole
from ..arrays import tensor
from .splits import Groups, Split

__all__ = ["FACTORS", "SHAPES", "LinearGaussian", "factors", "linear_gaussian"]

SHAPES = ("bar", "corner", "tee", "cross")
"""The names of the classes that `factors` draws."""

FACTORS = ("x", "y", "angle", "thickness")
"""The columns of the style of `factors`, in pixels and radians."""

_SIZE = 16
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


def _distance(
    points: Float[Tensor, "n points 2"], strokes: Float[Tensor, "n strokes 2 2"]
) -> Float[Tensor, "n points"]:
    """The distance of each point to the nearest of the strokes."""
    start, end = strokes.unsqueeze(1).unbind(-2)
    along, from_start = end - start, points.unsqueeze(2) - start
    share = (from_start * along).sum(-1) / along.square().sum(-1)
    nearest = share.clamp(0, 1).unsqueeze(-1) * along
    return (from_start - nearest).norm(dim=-1).amin(-1)
