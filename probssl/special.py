r"""Special functions of the sphere and of the Gamma function: stable, differentiable.

Everything is built in one way: an asymptotic series where the order (or the argument)
is large, brought down by the recurrence of the function. No case is told from another
by its data, so the same few operations serve tiny and huge values, run without
synchronisation, and can be traced and compiled. Floating-point inputs of lower precision
are taken to float64 and back.

The Bessel functions rest on the cumulant function of a uniform direction u on the
sphere of R^d, with :math:`\nu = d/2 - 1`,

.. math:: L_\nu(x) = \log E[e^{x u_1}] = \log \, \Gamma(\nu + 1) (2/x)^\nu I_\nu(x),
    \qquad L_\nu'(x) = \frac{I_{\nu+1}(x)}{I_\nu(x)}, \qquad L_\nu(0) = 0

References:
    NIST Digital Library of Mathematical Functions, 10.29 and 10.41 (Olver et al.)
    https://dlmf.nist.gov/10.41
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

__all__ = [
    "bessel_ratio",
    "digamma_difference",
    "log_area",
    "log_bessel",
    "log_gamma_ratio",
    "log_vmf_normaliser",
]

# From this order on, 16 terms of the asymptotic series are exact to rounding.
LARGE_ORDER, TERMS = 24, 16

# B_2k / (2k (2k - 1)), k = 1, 2, ...: exact to rounding from argument 10 on.
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
LARGE_ARGUMENT = 10


def log_area(dim: int) -> float:
    r"""Log area of the unit sphere in R^dim, :math:`\log 2 \pi^{d/2} / \Gamma(d/2)`."""
    _check_dim(dim)
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def log_bessel(order: float, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Exponentially scaled modified Bessel function :math:`\log I_\nu(x) e^{-x}`.

    At x = 0 it is minus infinity, and 0 for order 0.

    Arguments:
        order: The order :math:`\nu \ge 0`.
        x: The argument, not negative.

    Raises:
        ValueError: If the order is negative.
    """
    if not order >= 0:
        raise ValueError(f"expected an order of at least 0, got {order}; I_ν with ν ≥ 0")
    value = _cumulant(x, order, scaled=True)
    if order > 0:
        power = order * (x.double() / 2).log() - math.lgamma(order + 1)
        value = value + power
    return value.to(x.dtype)


def log_vmf_normaliser(
    dim: int, concentration: Float[Tensor, "*shape"], *, scaled: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Log-normaliser of the von Mises-Fisher density :math:`C_d(\kappa) e^{\kappa\mu^\top z}`.

    .. math:: C_d(\kappa)
        = \frac{\kappa^{d/2 - 1}}{(2 \pi)^{d/2} I_{d/2 - 1}(\kappa)},
        \qquad \frac{d}{d\kappa} \log C_d = -A_d(\kappa)

    Arguments:
        dim: The dimension d of the space around the sphere, at least 2.
        concentration: The concentration :math:`\kappa \ge 0`; 0 is the uniform density.
        scaled: Return :math:`\log C_d(\kappa) e^\kappa`, the log-density at the mode,
            without cancellation: what multiplies :math:`e^{\kappa (\mu^\top z - 1)}`.

    Raises:
        ValueError: If dim is less than 2.
    """
    value = -log_area(dim) - _cumulant(concentration, dim / 2 - 1, scaled)
    return value.to(concentration.dtype)


def bessel_ratio(
    dim: int, concentration: Float[Tensor, "*shape"], *, complement: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Mean resultant length :math:`A_d(\kappa) = I_{d/2}(\kappa) / I_{d/2-1}(\kappa)`.

    It is :math:`E[\mu^\top z]` under the von Mises-Fisher distribution.

    Arguments:
        dim: The dimension d of the space around the sphere, at least 2.
        concentration: The concentration :math:`\kappa \ge 0`.
        complement: Return :math:`1 - A_d(\kappa)`, without cancellation.

    Raises:
        ValueError: If dim is less than 2.
    """
    _check_dim(dim)
    kappa = concentration.double()
    value = _Cumulant.apply(kappa, dim / 2 - 1, 1, complement)
    return (-value if complement else value).to(concentration.dtype)


def log_gamma_ratio(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"] | float
) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\log \Gamma(a + b) - \log \Gamma(a)` without cancellation, a, b > 0."""
    x = a.double()
    top = x + LARGE_ARGUMENT
    value = (top - 0.5) * torch.log1p(b / top) + b * torch.log(top + b) - b
    value = value + _stirling(top + b) - _stirling(top)
    for step in range(LARGE_ARGUMENT):
        value = value - torch.log1p(b / (x + step))
    return value.to(a.dtype)


def digamma_difference(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"] | float
) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\psi(a + b) - \psi(a)` without cancellation, a, b > 0."""
    x = a.double()
    top = x + LARGE_ARGUMENT
    value = torch.log1p(b / top) + b / (2 * top * (top + b))
    value = value + _stirling_slope(top + b) - _stirling_slope(top)
    for step in range(LARGE_ARGUMENT):
        value = value + b / ((x + step) * (x + step + b))
    return value.to(a.dtype)


def _check_dim(dim: int) -> None:
    if dim < 2:
        raise ValueError(f"expected dim of at least 2, got {dim}; a sphere has dim ≥ 2")


def _cumulant(x: Tensor, order: float, scaled: bool) -> Tensor:
    return _Cumulant.apply(x.double(), float(order), 0, scaled)


class _Cumulant(torch.autograd.Function):
    r"""The function :math:`L_\nu(x) - [x]`, or its derivative :math:`A - [1]`.

    Each derivative has a formula of its own, since differentiating the formula before
    it would cancel: for large x the slope is of order :math:`x^{-2}`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: float, derivative: int, scaled: bool) -> Tensor:
        return (_ratio if derivative else _value)(x, order, scaled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.order, ctx.derivative, ctx.scaled = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * _next(ctx), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent * _next(ctx)


def _next(ctx: Any) -> Tensor:
    (x,) = ctx.saved_tensors
    if ctx.derivative:
        return _slope(x, ctx.order)
    return _Cumulant.apply(x, ctx.order, 1, ctx.scaled)


class _Debye(NamedTuple):
    r"""The large-order expansion at one order, as polynomials on [0, 1].

    With :math:`p = \nu / \sqrt{\nu^2 + x^2}`, 10.41.3 of the handbook reads

    .. math:: \log I_\nu(x) = \nu \eta + \tfrac12 \log \frac{p}{2 \pi \nu} + \psi(p)

    Arguments:
        drop: Coefficients of :math:`(\psi(1) - \psi(p)) / (1 - p)`.
        bend: Of :math:`h = \tfrac12 + p \psi'(p)`, the correction of the first derivative.
        turn: Of :math:`(1 - p^2) (p h)' - p^2 h`, that of the second.
    """

    drop: tuple[float, ...]
    bend: tuple[float, ...]
    turn: tuple[float, ...]


@lru_cache(maxsize=1024)
def _debye(order: float) -> _Debye:
    # The recurrence of the polynomials U_k, 10.41.9, for the logarithm of their sum:
    # with g = psi', order g = [(s g)' + s g^2 + (1 - 5 p^2) / 4] / 2, s = p^2 (1 - p^2).
    p, s = Polynomial([0.0, 1.0]), Polynomial([0.0, 0.0, 1.0, 0.0, -1.0])
    terms = [Polynomial([1.0, 0.0, -5.0]) / (8 * order)]
    for _ in range(TERMS - 1):
        square = sum(a * b for a, b in zip(terms, terms[-2::-1], strict=False))
        terms.append(((s * terms[-1]).deriv() + s * square) / (2 * order))
    # The same function with less than half of the coefficients.
    short = Chebyshev.interpolate(sum(terms), 24, domain=[0, 1]).trim(1e-17)
    g = short.convert(kind=Polynomial)

    h = 0.5 + p * g
    turn = (1 - p**2) * (p * h).deriv() - p**2 * h
    drop = g.integ().coef[:0:-1].cumsum()[::-1]
    return _Debye(*(tuple(map(float, c)) for c in (drop, h.coef, turn.coef)))


def _polynomial(coefficients: tuple[float, ...], p: Tensor) -> Tensor:
    value = torch.full_like(p, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * p + coefficient
    return value


def _top(x: Tensor, order: float) -> tuple[float, Tensor, Tensor]:
    """The order at which to expand, and the cosine p and sine q of its expansion."""
    top = order + max(0, math.ceil(LARGE_ORDER - order))
    radius = torch.hypot(x, torch.full_like(x, top))
    return top, top / radius, x / radius


def _down(top: float, order: float) -> list[float]:
    """The orders ν of the recurrence I_{ν-1} = I_{ν+1} + (2ν / x) I_ν, downwards."""
    return [top - step for step in range(round(top - order))]


def _top_ratio(top: float, p: Tensor, q: Tensor) -> Tensor:
    return q * (1 / (1 + p) - p * _polynomial(_debye(top).bend, p) / top)


def _value(x: Tensor, order: float, scaled: bool) -> Tensor:
    top, p, q = _top(x, order)
    fall = q.square() / (1 + p)  # 1 - p
    odds = fall / p
    main = -x * p * (1 + p / (1 + q)) / (1 + p) if scaled else x * q / (1 + p)
    value = main - top * torch.log1p(odds / 2) - 0.5 * torch.log1p(odds)
    value = value - fall * _polynomial(_debye(top).drop, p)

    ratio = _top_ratio(top, p, q)
    for mu in _down(top, order):
        step = x * ratio
        value = value + torch.log1p(step / (2 * mu))
        ratio = x / (2 * mu + step)
    return value


def _ratio(x: Tensor, order: float, scaled: bool) -> Tensor:
    top, p, q = _top(x, order)
    ratio = _top_ratio(top, p, q)
    bend = q * p * _polynomial(_debye(top).bend, p) / top
    rest = p * (1 + p / (1 + q)) / (1 + p) + bend  # 1 - ratio
    for mu in _down(top, order):
        total = 2 * mu + x * ratio
        ratio, rest = x / total, (2 * mu - x * rest) / total
    return -rest if scaled else ratio


def _slope(x: Tensor, order: float) -> Tensor:
    r"""The second derivative :math:`A'`: autograd takes it further without cancellation."""
    top, p, q = _top(x, order)
    ratio = _top_ratio(top, p, q)
    slope = p.square() / top * (1 / (1 + p) + _polynomial(_debye(top).turn, p) / top)
    for mu in _down(top, order):
        total = 2 * mu + x * ratio
        ratio, slope = x / total, (2 * mu - x.square() * slope) / total.square()
    return slope


def _stirling(x: Tensor) -> Tensor:
    """What Stirling's formula leaves of log Γ(x)."""
    return _polynomial(STIRLING, x.square().reciprocal()) / x


def _stirling_slope(x: Tensor) -> Tensor:
    odd = tuple(-(2 * k + 1) * c for k, c in enumerate(STIRLING))
    return _polynomial(odd, x.square().reciprocal()) / x.square()
