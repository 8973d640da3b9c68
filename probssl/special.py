r"""Bessel and Gamma functions, squared distances, and effective sample sizes.

Each special function is an asymptotic series at a large order (or argument), followed
by the recurrence of the function down to the one wanted. No branch depends on the data:
the same operations serve tiny and huge values, without synchronising with the host, and
can be traced and compiled. These functions compute in float64, for arguments up to
1e15, and return the dtype of the input.

The Bessel functions rest on the cumulant function of a direction u that is uniform on
the sphere of R^d, with :math:`\nu = d/2 - 1`,

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

from .arguments import at_least

__all__ = ["bessel_ratio", "digamma_difference", "effective_sample_size", "log_area"]
__all__ += ["log_bessel", "log_gamma_ratio", "log_vmf_normaliser", "square_distances"]

# From this order on, 20 terms of the asymptotic series are exact to rounding.
LARGE_ORDER, DEBYE_TERMS = 16, 20

# B_2k / (2k (2k - 1)), k = 1, 2, ...: exact to rounding from argument 10 on.
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
LARGE_ARGUMENT = 10


def log_area(dim: int) -> float:
    r"""Log area of the unit sphere in R^dim, :math:`\log 2 \pi^{d/2} / \Gamma(d/2)`."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def log_bessel(order: float, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Log of the exponentially scaled Bessel function, :math:`\log I_\nu(x) e^{-x}`.

    At x = 0 it is minus infinity, and 0 for order 0.

    Arguments:
        order: The order :math:`\nu \ge 0`.
        x: The argument, not negative.

    Raises:
        ValueError: If the order is negative.
    """
    order = at_least("order", order, 0)
    value, _ = _Cumulant.apply(x.double(), order, True)
    if order > 0:
        value = value + order * (x.double() / 2).log() - math.lgamma(order + 1)
    return value.to(x.dtype)


def log_vmf_normaliser(
    dim: int, concentration: Float[Tensor, "*shape"], *, scaled: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Log-normaliser :math:`\log C_d(\kappa)` of the von Mises-Fisher density.

    .. math:: p(z) = C_d(\kappa) \, e^{\kappa \mu^\top z}, \qquad C_d(\kappa)
        = \frac{\kappa^{d/2 - 1}}{(2 \pi)^{d/2} I_{d/2 - 1}(\kappa)}, \qquad
        \frac{d}{d\kappa} \log C_d(\kappa) = -A_d(\kappa)

    Arguments:
        dim: The dimension d of the space around the sphere, at least 1.
        concentration: The concentration :math:`\kappa \ge 0`; 0 is the uniform density.
        scaled: Return :math:`\log C_d(\kappa) e^\kappa`, the log-density at the mode,
            without cancellation, to be added to :math:`\kappa (\mu^\top z - 1)`.
    """
    value, _ = _Cumulant.apply(concentration.double(), dim / 2 - 1, scaled)
    return (-log_area(dim) - value).to(concentration.dtype)


def bessel_ratio(
    dim: int, concentration: Float[Tensor, "*shape"], *, complement: bool = False
) -> Float[Tensor, "*shape"]:
    r"""Mean resultant length :math:`A_d(\kappa) = I_{d/2}(\kappa) / I_{d/2-1}(\kappa)`.

    It is :math:`E[\mu^\top z]` of the von Mises-Fisher distribution.

    Arguments:
        dim: The dimension d of the space around the sphere, at least 1.
        concentration: The concentration :math:`\kappa \ge 0`.
        complement: Return :math:`1 - A_d(\kappa)`, without cancellation.
    """
    _, value = _Cumulant.apply(concentration.double(), dim / 2 - 1, complement)
    return (-value if complement else value).to(concentration.dtype)


def square_distances(
    a: Float[Tensor, "*batch n dim"],
    b: Float[Tensor, "*batch m dim"],
    *,
    exact: bool = False,
) -> Float[Tensor, "*batch n m"]:
    r"""Return the squared Euclidean distances :math:`\lVert a_i - b_j \rVert^2`.

    By default this is one matrix product of the points less the mean of b, in float64.
    With r the largest distance of a point to that mean, u the unit roundoff of the
    input, and :math:`\gamma = 4 (d + 4)\, 2^{-53}`, the error is at most :math:`\gamma
    r^2`, and u times the distance where that is more; no value is negative. The
    gradient has the dtype of the input: for upstream gradients :math:`g_{ij}` its error
    is at most :math:`4 (n + 4) u \, r \sum_j |g_{ij}|`, n the number of points.

    Arguments:
        exact: Sum the squared differences, which is slower: the relative error is at
            most :math:`2 (d + 4) u`, equal points have distance exactly 0, and the
            distances of points to themselves are symmetric.
    """
    if exact:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return _SquareDistances.apply(a, b)


class _SquareDistances(torch.autograd.Function):
    """In float64, since the squares of the norms cancel where points nearly agree."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        centre = b.double().mean(-2, keepdim=True)
        y = b.double() - centre
        x = y if a is b else a.double() - centre
        square = (x @ y.mT).mul_(-2).add_(x.square().sum(-1, keepdim=True))
        square = square.add_(y.square().sum(-1).unsqueeze(-2)).clamp_(min=0)
        return square.to(torch.promote_types(a.dtype, b.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        centre = b.mean(-2, keepdim=True)
        x, y, of_a, of_b = a - centre, b - centre, None, None
        if ctx.needs_input_grad[0]:
            of_a = 2 * (grad.sum(-1, keepdim=True) * x - grad @ y)
        if ctx.needs_input_grad[1]:
            of_b = 2 * (grad.sum(-2).unsqueeze(-1) * y - grad.mT @ x)
        return _summed_to(of_a, a), _summed_to(of_b, b)


def _summed_to(grad: Tensor | None, like: Tensor) -> Tensor | None:
    """The gradient of a tensor that was broadcast."""
    return None if grad is None else grad.sum_to_size(like.shape)


def effective_sample_size(
    log_weight: Float[Tensor, "sample *batch"],
) -> Float[Tensor, "*batch"]:
    r"""Return the effective sample size :math:`(\sum w)^2 / \sum w^2`."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def log_gamma_ratio(a: Float[Tensor, "*shape"], b: float) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\log \Gamma(a + b) / \Gamma(a)` without cancellation, a, b > 0."""
    top, steps = _shifted(a)
    above, below = _stirling(torch.stack([top + b, top]))
    value = (top - 0.5) * torch.log1p(b / top) + b * torch.log(top + b) - b
    value = value + (above - below) - torch.log1p(b / steps).sum(-1)
    return value.to(a.dtype)


def digamma_difference(a: Float[Tensor, "*shape"], b: float) -> Float[Tensor, "*shape"]:
    r"""Return :math:`\psi(a + b) - \psi(a)` without cancellation, a, b > 0."""
    top, steps = _shifted(a)
    above, below = _stirling_derivative(torch.stack([top + b, top]))
    value = torch.log1p(b / top) + b / (2 * top * (top + b))
    value = value + (above - below) + (b / (steps * (steps + b))).sum(-1)
    return value.to(a.dtype)


class _Cumulant(torch.autograd.Function):
    r"""Value and derivative of :math:`L_\nu(x)`, or scaled, of :math:`L_\nu(x) - x`.

    The derivatives have formulas of their own, since autograd through the formula of L
    would cancel: for large x, L is of order x, its second derivative of order 1 / x².
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: float, scaled: bool) -> tuple[Tensor, Tensor]:
        return _cumulant(x, order, scaled)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, ctx.order, _ = inputs
        ctx.save_for_backward(x, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_ratio: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        x, ratio = ctx.saved_tensors
        total = None if grad is None else grad * ratio
        if grad_ratio is not None:
            more = grad_ratio * _second_derivative(x, ctx.order)
            total = more if total is None else total + more
        return total, None, None


class _Debye(NamedTuple):
    r"""The large-order expansion at one order, as polynomials on [0, 1].

    With :math:`p = \nu / \sqrt{\nu^2 + x^2}`, 10.41.3 of the handbook reads

    .. math:: \log I_\nu(x) = \nu \eta + \tfrac12 \log \frac{p}{2 \pi \nu} + \psi(p)

    Arguments:
        drop: Coefficients of :math:`(\psi(1) - \psi(p)) / (1 - p)`.
        bend: Of :math:`h = \tfrac12 + p \psi'(p)`, which corrects the first derivative.
        turn: Of :math:`(1 - p^2) (p h)' - p^2 h`, which corrects the second.
    """

    drop: tuple[float, ...]
    bend: tuple[float, ...]
    turn: tuple[float, ...]


def _debye(order: float) -> _Debye:
    return _expand(order)


# The effect of torch.compiler.assume_constant_result, whose import of the compiler
# would double the import time of this package.
_debye._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def _expand(order: float) -> _Debye:
    # The recurrence of the polynomials U_k, 10.41.9, for g = ψ', ψ = log Σ U_k / ν^k:
    # ν g = [(s g)' + s g² + (1 - 5 p²) / 4] / 2, with s = p² (1 - p²).
    p, s = Polynomial([0.0, 1.0]), Polynomial([0.0, 0.0, 1.0, 0.0, -1.0])
    terms = [Polynomial([1.0, 0.0, -5.0]) / (8 * order)]
    for _ in range(DEBYE_TERMS - 1):
        square = sum(a * b for a, b in zip(terms, terms[-2::-1], strict=False))
        terms.append(((s * terms[-1]).deriv() + s * square) / (2 * order))
    # The same function with less than half as many coefficients.
    short = Chebyshev.interpolate(sum(terms, 0 * p), 28, domain=[0, 1]).trim(1e-14)
    g = short.convert(kind=Polynomial)

    h = 0.5 + p * g
    turn = (1 - p**2) * (p * h).deriv() - p**2 * h
    drop = g.integ().coef[:0:-1].cumsum()[::-1]
    return _Debye(*(tuple(map(float, c)) for c in (drop, h.coef, turn.coef)))


def _polynomial(coefficients: tuple[float, ...], p: Tensor) -> Tensor:
    value = p.new_full((), coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = torch.addcmul(p.new_full((), coefficient), value, p)
    return value


def _top(x: Tensor, order: float) -> tuple[float, Tensor, Tensor]:
    """The order at which to expand, and the cosine p and sine q of its expansion."""
    top = order + max(0, math.ceil(LARGE_ORDER - order))
    radius = torch.hypot(x, x.new_full((), top))
    return top, top / radius, x / radius


def _down(top: float, order: float) -> list[float]:
    """The orders above `order` up to `top`, from the top."""
    return [top - step for step in range(round(top - order))]


def _cumulant(x: Tensor, order: float, scaled: bool) -> tuple[Tensor, Tensor]:
    top, p, q = _top(x, order)
    debye = _debye(top)
    start = (p + 1).reciprocal()
    rest = (p + p.square() / (q + 1)) * start  # 1 - q start
    fall = q.square() * start  # 1 - p
    odds = fall / p
    value = -x * rest if scaled else x * q * start
    value = value - top * torch.log1p(odds / 2) - torch.log1p(odds) / 2
    value = value - fall * _polynomial(debye.drop, p)
    bend = p * _polynomial(debye.bend, p) / top

    # Downwards in F = exp(L), relative to the top, and in the gap G = (1 - A) F, by
    # F_{ν-1} = F_ν + x² / (4 ν (ν + 1)) F_{ν+1} and G_{ν-1} = F_ν - x / (2 ν) G_ν,
    # which both say I_{ν-1} = I_{ν+1} + (2 ν / x) I_ν.
    quarter, half = x.square() / 4, x / 2
    more, above = torch.zeros_like(x), (start - bend) * p * (2 * (top + 1) / top)
    gap = rest + q * bend
    for nu in _down(top, order):
        here = more + 1
        more = torch.add(more, quarter * above, alpha=1 / (nu * (nu + 1)))
        gap = torch.sub(here, half * gap, alpha=1 / nu) if scaled else gap
        above = here
    ratio = -gap if scaled else half * above / (order + 1)
    return value + torch.log1p(more), ratio / (more + 1)


def _second_derivative(x: Tensor, order: float) -> Tensor:
    """The second derivative A'; autograd differentiates it without cancellation."""
    top, p, q = _top(x, order)
    debye = _debye(top)
    start = (p + 1).reciprocal()
    ratio = q * (start - p * _polynomial(debye.bend, p) / top)
    second = p.square() / top * (start + _polynomial(debye.turn, p) / top)
    square = x.square()
    for nu in _down(top, order):
        total = x * ratio + 2 * nu
        ratio, second = x / total, (2 * nu - square * second) / total.square()
    return second


def _shifted(a: Tensor) -> tuple[Tensor, Tensor]:
    """An argument at which Stirling's formula is exact, and the steps to it from a."""
    x = a.double()
    steps = torch.arange(LARGE_ARGUMENT, dtype=x.dtype, device=x.device)
    return x + LARGE_ARGUMENT, x.unsqueeze(-1) + steps


def _stirling(x: Tensor) -> Tensor:
    r"""The remainder of Stirling's formula for :math:`\log \Gamma(x)`."""
    return _polynomial(STIRLING, x.square().reciprocal()) / x


def _stirling_derivative(x: Tensor) -> Tensor:
    odd = tuple(-(2 * k + 1) * c for k, c in enumerate(STIRLING))
    return _polynomial(odd, x.square().reciprocal()) / x.square()
