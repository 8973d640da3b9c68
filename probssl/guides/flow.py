r"""A normalising-flow guide: Real-NVP coupling layers with rational-quadratic splines.

References:
    Density estimation using Real NVP (Dinh et al., 2017)
    https://arxiv.org/abs/1605.08803
    Neural Spline Flows (Durkan et al., 2019)
    https://arxiv.org/abs/1906.04032
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus
from torch.quasirandom import SobolEngine

from ..arguments import whole
from ..covariates import Covariates
from ..distributions._base import Expandable, Present, Shape
from ..nn import dense
from ..runtime.validation import validation_kept
from .views import Factors, Guide, Views

__all__ = ["Flow"]

SPLINE_BINS = 8
LEAST_SPLINE_SLOPE = 0.1  # relative to the mean slope: the inverse then keeps digits
LEAST_AFFINE_SLOPE = 1e-3
MEAN_POINTS = 128  # points of the base over which `mean` averages


class Flow(Guide):
    r"""Normalising flow for each view: a Gaussian transformed by coupling layers.

    .. math:: z_v = m(x_v) + r(x_v) \, T(\epsilon_v; x_v), \qquad
        \epsilon_v \sim N(0, I)

    T is a chain of coupling layers. Each keeps one half of the dimensions and
    transforms the other by a monotone spline, a scale and a shift, whose parameters
    depend on the kept half and on features of x; the halves alternate. A sample and a
    density cost one pass each. T starts as the identity, so that q starts as
    `DiagonalGaussian`. Absent views are drawn from the prior given the present ones.

    The mean of q has no closed form. `mean` and `variance` average over 128 fixed
    quasi-random points of the base distribution: a deterministic representation, exact
    where T is affine in each dimension.

    It needs the package zuko: ``pip install "probssl[zuko]"``.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); see `Factors`.
        transforms: The number of coupling layers.
        hidden: The widths of the hidden layers of each coupling network.
        floor: The least scale r.
        dim: The dimension of z, for encoders without the attribute `dim`.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If dim is not known, or a size is not a positive whole number.
    """

    support = constraints.real_vector
    points: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        transforms: int = 2,
        hidden: Sequence[int] = (64, 64),
        floor: float = 1e-4,
        *,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        _transforms()
        self.transforms, self.floor = whole("transforms", transforms), floor
        self.hidden = tuple(whole("hidden", width) for width in hidden)
        self.factors = Factors(
            encoder, lambda dim: dim + max(self.hidden, default=dim), dim
        )
        size = self.factors.dim
        context = 2 * size + max(self.hidden, default=size)
        self.layers = nn.ModuleList(
            _Coupling(size, context, self.hidden, flipped=bool(i % 2))
            for i in range(self.transforms)
        )
        self.register_buffer("points", _base_points(size), persistent=False)

    def each(
        self, x: Views, present: Present = None, covariates: Covariates | None = None
    ) -> TorchDistribution:
        named = {} if covariates is None else {"covariates": covariates}
        loc, raw = self.factors(x, present, **named)
        scale = softplus(raw[..., : loc.shape[-1]]) + self.floor
        context = torch.cat([loc, raw], -1)
        return _Bent(loc, scale, context, self.layers, self.points)


class _Bent(Expandable):
    """The distribution of loc + scale · T(ε; context)."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*batch dim"],
        scale: Float[Tensor, "*batch dim"],
        context: Float[Tensor, "*batch context"],
        layers: nn.ModuleList,
        points: Float[Tensor, "point dim"],
    ) -> None:
        self.loc, self.scale, self.context = loc, scale, context
        self.layers, self.points = layers, points
        self.drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Shape, _instance: "_Bent | None" = None) -> "_Bent":
        new = super().expand(batch_shape, _instance)
        new.drawn = None
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        return self._images().mean(0)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        return self._images().var(0, correction=0)

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch dim"]:
        shape = self._extended_shape(Size(sample_shape))
        base = self.loc.new_empty(shape).normal_()
        bent, stretch = self._bend(base)
        z = self.loc + self.scale * bent
        # Cached, so that log_prob of this draw needs no inverse.
        self.drawn = z, _log_normal(base) - stretch - self.scale.log().sum(-1)
        return z

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        if self.drawn is not None and value is self.drawn[0]:
            return self.drawn[1]
        base = (value - self.loc) / self.scale
        total = -self.scale.log().sum(-1)
        for layer in reversed(self.layers):
            base, stretch = layer(base, self.context, inverse=True)
            total = total + stretch
        return _log_normal(base) + total

    def _bend(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return T(base) and the log-determinant of its Jacobian."""
        total = base.new_zeros(base.shape[:-1])
        for layer in self.layers:
            base, stretch = layer(base, self.context)
            total = total + stretch
        return base, total

    def _images(self) -> Float[Tensor, "point *batch dim"]:
        ones = (1,) * len(self.batch_shape)
        base = self.points.view(-1, *ones, *self.event_shape)
        base = base.expand(-1, *self.batch_shape, *self.event_shape)
        return self.loc + self.scale * self._bend(base)[0]


class _Coupling(nn.Module):
    """A coupling layer: one half of the dimensions transformed given the other."""

    def __init__(
        self, dim: int, context: int, hidden: Sequence[int], flipped: bool
    ) -> None:
        super().__init__()
        # A single dimension is always transformed.
        self.kept = dim // 2 if not flipped or dim == 1 else (dim + 1) // 2
        self.flipped, self.numbers = flipped, 3 * SPLINE_BINS + 1
        layers = dense(self.kept + context, *hidden)
        width = hidden[-1] if hidden else self.kept + context
        last = nn.Linear(width, (dim - self.kept) * self.numbers)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def forward(
        self,
        z: Float[Tensor, "*batch dim"],
        context: Float[Tensor, "*b context"],
        inverse: bool = False,
    ) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch"]]:
        """Return the image and the log-determinant of the Jacobian."""
        z = z.flip(-1) if self.flipped else z
        kept, bent = z[..., : self.kept], z[..., self.kept :]
        context = context.expand(*z.shape[:-1], -1)
        numbers = self.net(torch.cat([kept, context], -1))
        numbers = numbers.unflatten(-1, (-1, self.numbers))
        shift, log_scale, *spline = numbers.split(
            (1, 1, SPLINE_BINS, SPLINE_BINS, SPLINE_BINS - 1), -1
        )
        zuko = _transforms()
        chain = [
            zuko.MonotonicRQSTransform(*spline, slope=LEAST_SPLINE_SLOPE),
            zuko.MonotonicAffineTransform(
                shift.squeeze(-1), log_scale.squeeze(-1), slope=LEAST_AFFINE_SLOPE
            ),
        ]
        stretch = torch.zeros_like(bent)
        for each in reversed(chain) if inverse else chain:
            bent, log_slope = (each.inv if inverse else each).call_and_ladj(bent)
            stretch = stretch + log_slope
        z = torch.cat([kept, bent], -1)
        return z.flip(-1) if self.flipped else z, stretch.sum(-1)


def _log_normal(base: Tensor) -> Tensor:
    constant = base.shape[-1] * math.log(2 * math.pi) / 2
    return -0.5 * base.square().sum(-1) - constant


def _base_points(dim: int) -> Float[Tensor, "point dim"]:
    """Antithetic quasi-random points of N(0, I), scaled to unit variance."""
    uniform = SobolEngine(dim, scramble=True, seed=0).draw(
        MEAN_POINTS // 2, dtype=torch.float64
    )
    half = torch.special.ndtri(uniform)
    half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half]).to(torch.get_default_dtype())


def _transforms() -> Any:
    try:
        with validation_kept():  # zuko switches that of torch off for all
            return importlib.import_module("zuko.transforms")
    except ImportError as error:
        raise ImportError(
            "expected the package zuko, which the guide Flow is built on, got none; "
            'install it: pip install "probssl[zuko]"'
        ) from error
