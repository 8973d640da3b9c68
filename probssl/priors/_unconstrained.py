r"""p(y) as a density of unconstrained numbers u, of which y is the image.

A sparse p(y) has much of its mass where y rounds to an end of its support: of a Beta
with concentration 0.05 a fifth is nearer to 1 than single precision resolves, and a
twelfth nearer than double precision does. In u that is an exponential tail.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Transform

from ..distributions.supports import (
    ends_of,
    from_real,
    is_real,
    is_sphere,
    number_of,
    space_of,
    support_of,
)
from ..hyper import mapped

__all__ = ["Unconstrained", "is_sparse"]

DIGITS, EXPONENTS = 0.5, 0.85  # shares of those of the dtype that are relied on
DRAWS = 4096  # of p(y), of which none is at an end unless it is sparse
TINY, LOST = 1e-300, 1e-3  # numbers of a simplex that underflow; share of draws
STEP = 4.0  # in u, over which the gradient of a tail is measured


class Unconstrained:
    r"""The density of p(y) over unconstrained numbers u, of which y is the image.

    .. math:: \log p(u) = \log p(y(u)) + \log \left| \frac{dy}{du} \right|

    Of a sparse p(y) it is computed in float64, if p(y) can be. Beyond the numbers whose
    y is resolved, the log-density continues along straight lines: exact where p(y) is
    a power of the distance to the end, as of Beta, Dirichlet, Gamma and Cauchy.

    Arguments:
        content: p(y).
        like: A tensor with the dtype of y.
        sparse: Whether p(y) may have mass where y is not resolved in that dtype.
        transform: A map to the support of y; None takes the bijection from R^n.
    """

    def __init__(
        self,
        content: Any,
        like: Tensor,
        sparse: bool = True,
        transform: Transform | None = None,
    ) -> None:
        self.content, self.dtype = content, like.dtype
        self.ends = transform is None and not is_real(support_of(content))
        self.sparse = sparse and self.ends
        self.transform = transform or from_real(content)
        if not self.ends:
            return
        if self.sparse:
            self._to_double(like)
        self.low, self.high = _resolved(self.content, like, self.dtype)
        if self.sparse and not self.transform.domain.event_dim:
            ends = (self.low, self.low + STEP), (self.high, self.high - STEP)
            self.rates = [
                (self._within(end) - self._within(before)).nan_to_num(0.0, 0.0, 0.0)
                / STEP
                for end, before in ends
            ]

    def _to_double(self, like: Tensor) -> None:
        exact = mapped(self.content, _double)
        map_ = from_real(exact)
        shape = map_.inverse_shape(exact.batch_shape + exact.event_shape)
        try:
            with torch.no_grad():
                exact.log_prob(map_(like.new_zeros(shape, dtype=torch.double)))
        except RuntimeError:  # it has a network in single precision
            return
        self.content, self.transform, self.dtype = exact, map_, torch.double

    def __call__(self, u: Float[Tensor, "*shape"]) -> Tensor:
        """The image y, in the dtype of u; not an end of the support, unless rounded."""
        if not self.ends:
            return self.transform(u)
        most = EXPONENTS * math.log(torch.finfo(u.dtype).max)
        y = self.transform(u.clamp(-most, most).to(self.dtype)).to(u.dtype)
        support = number_of(self.transform.codomain)
        if space_of(support) == "a simplex":
            return y.clamp(min=torch.finfo(y.dtype).tiny)
        if hasattr(support, "lower_bound") and hasattr(support, "upper_bound"):
            low, high = (
                torch.as_tensor(end, dtype=y.dtype, device=y.device)
                for end in (support.lower_bound, support.upper_bound)
            )
            return torch.minimum(
                torch.maximum(y, low.nextafter(high)), high.nextafter(low)
            )
        return y

    def log_prob(self, u: Float[Tensor, "*shape"]) -> Tensor:
        r"""Return :math:`\log p(u)`, for each item, or number of a product."""
        if not self.ends:
            return self._within(u)
        wide = u.to(self.dtype)
        inside = torch.minimum(torch.maximum(wide, self.low), self.high)
        log_prob, away = self._within(inside), wide - inside
        if not self.transform.domain.event_dim:
            low, high = self.rates if self.sparse else (-1.0, -1.0)
            fall = low * (-away).clamp(min=0) + high * away.clamp(min=0)
            return (log_prob + fall).to(u.dtype)
        if not self.sparse:
            return log_prob - away.abs().sum(-1)
        length = torch.linalg.vector_norm(away, dim=-1)
        step = STEP * away / length.unsqueeze(-1).clamp(min=1e-30)
        rate = (log_prob - self._within(inside - step)).nan_to_num(0.0, 0.0, 0.0) / STEP
        return (log_prob + rate * length).to(u.dtype)

    @torch.no_grad()
    def numbers(self, y: Tensor) -> Tensor:
        """The numbers u of which y is the image."""
        return self.transform.inv(y.to(self.dtype)).to(y.dtype)

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], batch: tuple[int, ...]) -> Tensor:
        """Draw u of p(y), with the tails beyond what a y resolves."""
        content = self.content
        if content.batch_shape:
            content = content.expand(batch)
        else:
            shape = (*shape, *batch)
        u = self.transform.inv(content.sample(shape))
        if not self.sparse:
            return u
        inside = torch.minimum(torch.maximum(u, self.low), self.high)
        with torch.enable_grad():
            leaf = inside.clone().requires_grad_()
            (rate,) = torch.autograd.grad(self._within(leaf).sum(), leaf)
        tail = torch.empty_like(u).exponential_() / rate.abs().clamp(min=1e-6)
        return torch.where(u == inside, u, inside + tail * (u - inside).sign())

    def _within(self, u: Tensor) -> Tensor:
        y = self.transform(u)
        return self.content.log_prob(y) + self.transform.log_abs_det_jacobian(u, y)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _resolved(content: Any, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The least and largest u whose distances from the ends of y have their digits."""
    support = number_of(support_of(content))
    info = torch.finfo(dtype)
    most = EXPONENTS * math.log(info.max)
    ends = ends_of(support)
    low, high = (
        None if end is None else torch.as_tensor(end, dtype=dtype, device=like.device)
        for end in ends
    )
    if low is not None and high is not None:
        digits = [_digits(end, high - low, info) for end in (low, high)]
        return -digits[0], digits[1]
    one = torch.ones((), dtype=dtype, device=like.device)
    end = low if low is not None else high
    if end is None:  # a simplex has products of shares; of others little is known
        most = most / max(1, content.event_shape[-1] - 1)
        return -most * one, most * one
    return -_digits(end, one, info), most * one


def _digits(end: Tensor, width: Tensor, info: torch.finfo) -> Tensor:
    """The nats of the distances from an end, over the width, that are resolved."""
    most = EXPONENTS * math.log(info.max)
    digits = DIGITS * (width / (end.abs() * info.eps)).log()
    return digits.clamp(1.0, most)


@torch.no_grad()
def is_sparse(content: Any, like: Tensor) -> bool:
    """Whether draws of p(y) are near ends where the dtype does not resolve them.

    Raises:
        ValueError: If several numbers of a draw from a simplex are zero in float64.
    """
    if is_sphere(support_of(content)):
        return False
    exact = Unconstrained(content, like)
    if not exact.ends:
        return False
    u = exact.sample((DRAWS,), ())
    low, high = _resolved(content, like, like.dtype)
    y = exact.content.sample((DRAWS,))
    lost = (y <= TINY).sum(-1) > 1
    if (
        space_of(support_of(content)) == "a simplex"
        and float(lost.float().mean()) > LOST
    ):
        raise ValueError(
            f"expected p(y) with numbers above {TINY}, got several below in "
            f"{100 * float(lost.float().mean()):.0f} % of its draws, which no dtype "
            "tells apart; give a Dirichlet a concentration of at least 0.02"
        )
    return not bool(((u >= low) & (u <= high)).all())
