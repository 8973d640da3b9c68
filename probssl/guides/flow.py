r"""The guide without a family: a normalising flow for each view.

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
from jaxtyping import Bool, Float
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus
from torch.quasirandom import SobolEngine

from ..nn import Encoder, PerModality, dense
from .factors import Factors, PriorOf, Shape, Views, of_views

__all__ = ["Flow"]

BINS = 8  # of each spline
SPLINE_SLOPE = 0.1  # the least in relation to the mean: its inverse then keeps digits
AFFINE_SLOPE = 1e-3
POINTS = 128  # of the base, over which the mean of q is taken


class Flow(nn.Module):
    r"""Independent views, each a normal that a normalising flow has bent.

    .. math:: z_v = m(x_v) + r(x_v) \, T(\epsilon_v; x_v), \qquad
        \epsilon_v \sim N(0, I)

    T is a chain of coupling layers: given one half of the dimensions, and the encoder's
    features, the other half goes through a monotone spline, a scale and a shift; the
    halves take turns. Samples and densities cost one pass each. T starts as the
    identity, so that q starts as that of `DiagonalGaussian`. Absent views are drawn
    from the prior given the present ones.

    The mean of q has no closed form. Here `mean` and `variance` are averages over 128
    quasi-random points of the base, the same at each call: a deterministic
    representation, and exact where T is affine in each dimension.

    It needs the package zuko: ``pip install "probssl[zuko]"``.

    Arguments:
        encoder: An `nn.Encoder`; or a module (n, \*event) -> (n, 2·dim), locations and
            raw scales side by side, with the attribute dim.
        transforms: The number of layers.
        hidden: The widths of the network in each layer.
        floor: The least scale r.

    Raises:
        ImportError: If zuko is not installed.
        ValueError: If the encoder does not tell the dimension of z, or a size is not a
            positive whole number.
    """

    points: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        transforms: int = 2,
        hidden: Sequence[int] = (64, 64),
        floor: float = 1e-4,
    ) -> None:
        super().__init__()
        _transforms()
        dim = getattr(encoder, "dim", None)
        if not isinstance(dim, int):
            raise ValueError(
                "expected an encoder with the attribute dim, the dimension of z, got "
                f"{type(encoder).__name__}; wrap its trunk as "
                "ps.nn.Encoder(trunk, width, dim)"
            )
        self.transforms, self.hidden, self.floor = transforms, tuple(hidden), floor
        if not all(isinstance(n, int) and n > 0 for n in (transforms, *self.hidden)):
            raise ValueError(
                "expected transforms and hidden as positive whole numbers, got "
                f"{transforms!r} and {hidden!r}; give for instance 2 and (64, 64)"
            )
        nets = encoder.parts if isinstance(encoder, PerModality) else [encoder]
        wide = all(isinstance(net, Encoder) for net in nets)
        features = max(self.hidden, default=dim) if wide else 0
        self.factors = Factors(encoder, lambda size: size + features)
        self.layers = nn.ModuleList(
            _Coupling(dim, 2 * dim + features, self.hidden, flipped=bool(i % 2))
            for i in range(transforms)
        )
        self.register_buffer("points", _base_points(dim), persistent=False)

    @property
    def encoder(self) -> nn.Module:
        return self.factors.encoder

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> TorchDistribution:
        loc, raw = self.factors(x)
        scale = softplus(raw[..., : loc.shape[-1]]) + self.floor
        context = torch.cat([loc, raw], -1)
        each = _Bent(loc, scale, context, self.layers, self.points)
        return of_views(each, prior, present)


class _Bent(TorchDistribution):
    """The law of loc + scale · T(ε; context)."""

    arg_constraints = {}
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
        new = self._get_checked_instance(_Bent, _instance)
        new.__dict__.update(self.__dict__)
        new.drawn = None
        super(_Bent, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
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
        # Kept, so that scoring one's own draw needs no inverse.
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
        """T, and the logarithm of its Jacobian determinant."""
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
    """One half of the dimensions bent, in each by itself, given the other half."""

    def __init__(
        self, dim: int, context: int, hidden: Sequence[int], flipped: bool
    ) -> None:
        super().__init__()
        # A single dimension is always bent.
        self.kept = dim // 2 if not flipped or dim == 1 else (dim + 1) // 2
        self.flipped, self.numbers = flipped, 3 * BINS + 1
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
        """Return the image and the logarithm of the Jacobian determinant."""
        z = z.flip(-1) if self.flipped else z
        kept, bent = z[..., : self.kept], z[..., self.kept :]
        context = context.expand(*z.shape[:-1], -1)
        numbers = self.net(torch.cat([kept, context], -1))
        numbers = numbers.unflatten(-1, (-1, self.numbers))
        shift, log_scale, *spline = numbers.split((1, 1, BINS, BINS, BINS - 1), -1)
        zuko = _transforms()
        chain = [
            zuko.MonotonicRQSTransform(*spline, slope=SPLINE_SLOPE),
            zuko.MonotonicAffineTransform(
                shift.squeeze(-1), log_scale.squeeze(-1), slope=AFFINE_SLOPE
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
    """Quasi-random points of N(0, I), opposite ones in pairs, each variance 1."""
    uniform = SobolEngine(dim, scramble=True, seed=0).draw(
        POINTS // 2, dtype=torch.float64
    )
    half = torch.special.ndtri(uniform)
    half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half]).to(torch.get_default_dtype())


def _transforms() -> Any:
    try:
        return importlib.import_module("zuko.transforms")
    except ImportError as error:
        raise ImportError(
            "expected the package zuko, which the guide Flow is built on, got none; "
            'install it: pip install "probssl[zuko]"'
        ) from error
