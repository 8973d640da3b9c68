r"""Priors of views in order, such as times of a series or frames of a video.

References:
    A New Approach to Linear Filtering and Prediction Problems (Kalman, 1960)
    https://doi.org/10.1115/1.3662552
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import between, fixed, whole
from ..arrays import tensor
from ..distributions.markov import GaussMarkov, cholesky, product, solve
from ..hyper import Fraction, Learned, Positive
from ..special import square_distances
from .base import DIM_HINT, Drawn, Pairs, Points, Present, Prior, Scale

__all__ = ["Contraction", "Sequence"]

DOUBLINGS = 40  # of the horizon of a stationary covariance, to 2^40 steps


class Contraction(nn.Module):
    r"""A learned matrix A of spectral norm below 1, by construction.

    .. math:: A = C^{-1} M, \qquad C C^\top = I + M M^\top, \qquad
        I - A A^\top = C^{-1} C^{-\top}

    M is any square matrix, and C lower triangular. Every contraction has one M, and the
    noise that keeps z at covariance I needs no decomposition of its own.

    Arguments:
        dim: The dimension of z.
        value: The number a of the initial matrix a·I, between 0 and 1.

    Raises:
        ValueError: If value is not between 0 and 1, or dim not a positive whole number.
    """

    learning_rate_factor = 10.0  # as of hyper-parameters

    def __init__(self, dim: int, value: float = 0.9) -> None:
        super().__init__()
        dim = whole("dim", dim, hint=DIM_HINT)
        value = between("value", value, 0, 1, open=True)
        self.matrix = nn.Parameter(value / math.sqrt(1 - value**2) * torch.eye(dim))

    def forward(self) -> tuple[Float[Tensor, "dim dim"], Float[Tensor, "dim dim"]]:
        """Return A, and the lower triangular factor of I − A Aᵀ."""
        one = torch.eye(len(self.matrix)).to(self.matrix)
        root = cholesky(one + self.matrix @ self.matrix.mT)
        tril = torch.linalg.solve_triangular(root, one, upper=False)
        return tril @ self.matrix, tril


class _Coefficient(Fraction):
    """The diagonal of a transition: any fixed numbers; free ones between 0 and 1."""

    kind = "finite number (a learned or random one between 0 and 1)"

    def allows(self, number: float) -> bool:
        return super().allows(number) if self.learned else math.isfinite(number)


class Sequence(Prior):
    r"""A linear-Gaussian Markov chain: each view is drawn given the one before it.

    .. math:: p(z_1) = N(m, P), \qquad p(z_t \mid z_{t-1}) = N(A z_{t-1} + b, Q)

    .. math:: \log p(z_1, \dots, z_V) = \log N(z_1 \mid m, P)
        + \sum_{t=2}^V \log N(z_t \mid A z_{t-1} + b, Q)

    The order of the views counts: they are times of a series, or frames of a video.
    There is no content y that is shared by all views; what one view says on the next
    takes its place. So `content`, `given` and `posterior_y` do not exist, and of the
    contrastive objectives those with ``plug_in=True`` let each view stand for the
    content of the next one, as in contrastive predictive coding (CPC).

    By default the chain is stationary, with :math:`P = I, \; Q = I - A A^\top, \; m =
    b = 0`: every view has the distribution N(0, I), and views s apart the covariance
    :math:`A^s`. Nothing is lost: a linear change of z, which a network can make, brings
    every stationary chain to this form. Two views with A = a·I have the density of
    `Gaussian` with :math:`\tau^2 = a, \; \sigma^2 = 1 - a`; with A = 0 views are
    `Independent`.

    Absent views are integrated out exactly (Kalman filter), and completed given those
    before and after them (smoother). A call with fewer views has the first of them.

    Arguments:
        dim: The dimension of z.
        transition: A: a number, one for each dimension, or a matrix (dim, dim);
            ``ps.learned`` of numbers, or a distribution over (0, 1), keeps them between
            0 and 1; a `Contraction` is a learned matrix. If the chain is stationary its
            spectral radius is below 1.
        noise: The standard deviation of Q, one number or one for each dimension, which
            may be learned or random; or Q itself, a matrix (dim, dim). None is
            :math:`I - A A^\top`, for which the spectral norm of A is below 1.
        start: The standard deviation of P, or P itself, likewise. None is the
            stationary one, :math:`P = A P A^\top + Q`.
        drift: b, a number or one for each dimension.
        mean: m, likewise; None is the mean of the stationary chain, :math:`(I -
            A)^{-1} b`, or 0 where `start` is given.

    Raises:
        ValueError: If the numbers give no density, if A is too large for a stationary
            chain, or if noise is free where start is None or free as well: then
            rescaling z trades one for the other.

    Example:
        >>> Sequence(dim=4, transition=0.9)
        Sequence(dim=4, transition=0.9)
        >>> import probssl as ps
        >>> walk = Sequence(4, transition=1.0, noise=ps.learned(0.1), start=1.0)
    """

    dim: int
    ordered = True
    transition: Any  # Positive, a matrix, or a Contraction
    noise: Any  # Positive, a matrix, or None
    start: Any
    drift: Tensor
    mean: Tensor | None

    def __init__(
        self,
        dim: int,
        transition: Scale | Contraction = 0.9,
        noise: Scale | None = None,
        start: Scale | None = None,
        *,
        drift: float | Tensor | list[float] | tuple[float, ...] = 0.0,
        mean: float | Tensor | list[float] | tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.dim = whole("dim", dim, hint=DIM_HINT)
        self._hold("transition", transition, _Coefficient)
        self._hold("noise", noise, Positive)
        self._hold("start", start, Positive)
        self.register_buffer("drift", _vector("drift", drift, dim))
        known = None if mean is None else _vector("mean", mean, dim)
        self.register_buffer("mean", known)
        self._check_free()
        self._check_stationary()

    def forward(
        self, views: int, *, present: Present = None, **drawn: Tensor
    ) -> GaussMarkov:
        """Return the distribution of the views, event shape (view, dim)."""
        views = whole("views", views)
        A, L = self._step(drawn)
        first, mean = self._first(A, L, drawn)
        shift = torch.stack([mean, *[self.drift.expand_as(mean)] * (views - 1)], -2)
        batch = torch.broadcast_shapes(*(part.shape[:-3] for part in (A, L, first)))
        A, L, first = (part.expand(batch + part.shape[-3:]) for part in (A, L, first))
        later = views - 1
        return GaussMarkov(
            shift,
            torch.stack([torch.zeros_like(A), *[A] * later], -4),
            torch.stack([first, *[L] * later], -4),
            present=present,
            validate_args=False,
        )

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z_{t+1} = b \mid z_t = a)` for all pairs.

        .. math:: \log N(b \mid A a + b_0, Q)

        with the drift :math:`b_0`. It is normalised in b. With `plug_in` it is the
        same: a view stands for the content of the next one.
        """
        A, L = self._step({})
        shape = A.shape[-3:-1]
        forward, later = (
            solve(L, part.unflatten(-1, shape).unsqueeze(-1)).flatten(-3)
            for part in (self._next(A, a), b)
        )
        square = square_distances(forward, later)
        size = self.dim * math.log(2 * math.pi)
        spread = L.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        return -0.5 * (square + size) - spread[..., None, None]

    def pmi(self, a: Points, b: Points) -> Pairs:
        r"""Return :math:`\log p(z_2 = b \mid z_1 = a) - \log p(z_2 = b)`, in nats."""
        second = torch.tensor([False, True], device=b.device)
        pair = b.unsqueeze(-2).expand(*b.shape[:-1], 2, self.dim)
        marginal = self(2, present=second).log_prob(pair)
        return self.log_kernel(a, b) - marginal.unsqueeze(-2)

    def mutual_information(self) -> Float[Tensor, ""]:
        r"""Return :math:`I(z_1; z_2) = H[z_1] + H[z_2] - H[z_1, z_2]`, in nats."""
        second = torch.tensor([False, True], device=self.drift.device)
        both = self(2)
        return self(1).entropy() + both.marginal(second).entropy() - both.entropy()

    @property
    def stationary(self) -> bool:
        """Whether all views have one distribution."""
        return self.start is None and self.mean is None

    def _next(self, A: Tensor, z: Points) -> Points:
        column = z.unflatten(-1, A.shape[-3:-1]).unsqueeze(-1)
        return product(A, column).flatten(-3) + self.drift

    @property
    def _full(self) -> bool:
        """Whether one of the three is a matrix."""
        parts = self.transition, self.noise, self.start
        return any(isinstance(part, Tensor | Contraction) for part in parts)

    def _step(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """A, and the factor of Q, in blocks."""
        rest: Tensor | None = None
        if isinstance(self.transition, Contraction):
            A, rest = (part.unsqueeze(-3) for part in self.transition())
        else:
            A = self._blocks(self.transition, drawn)
        if self.noise is not None:
            L = self._root(self.noise, drawn)
        elif rest is not None:
            L = rest
        elif self._full:
            L = cholesky(_one(A) - A @ A.mT)
        else:
            L = ((1 - A) * (1 + A)).sqrt()  # without cancellation near 1
        return A, L

    def _first(self, A: Tensor, L: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The factor of P in blocks, and m."""
        if self.start is not None:
            first = self._root(self.start, drawn)
        elif self.noise is None:
            first = _one(A).expand_as(A)
        elif self._full:
            first = cholesky(_stationary(A, L @ L.mT))
        else:
            first = L / ((1 - A) * (1 + A)).sqrt()
        if self.mean is not None:
            return first, self.mean
        if self.start is not None:
            return first, torch.zeros_like(self.drift)
        drift = self.drift.unflatten(-1, A.shape[-3:-1]).unsqueeze(-1)
        rest = _one(A) - A
        mean = torch.linalg.solve(rest, drift) if self._full else drift / rest
        return first, mean.flatten(-3)

    def _blocks(self, part: Any, drawn: Drawn) -> Tensor:
        """A matrix, or a diagonal one, in blocks."""
        if isinstance(part, Tensor):
            return part.unsqueeze(-3)
        value = part.over(drawn).squeeze(-2)
        value = value.expand(*value.shape[:-1], self.dim)
        if self._full:
            return value.diag_embed().unsqueeze(-3)
        return value[..., None, None]

    def _root(self, part: Any, drawn: Drawn) -> Tensor:
        """The factor of a covariance in blocks."""
        blocks = self._blocks(part, drawn)
        return cholesky(blocks) if isinstance(part, Tensor) else blocks

    def _hold(self, name: str, value: Any, kind: type[Positive]) -> None:
        """Keep A, Q or P: a matrix, numbers, a contraction, or None."""
        matrix = _matrix(name, value, self.dim)
        if matrix is not None:
            if kind is Positive:
                _check_covariance(name, matrix)
            self.register_buffer(name, matrix)
        elif isinstance(value, Contraction):
            _check_shape(name, value.matrix, self.dim)
            setattr(self, name, value)
        else:
            part = None if value is None else kind(value, name, dim=self.dim)
            setattr(self, name, part)

    def _check_free(self) -> None:
        free = {
            name: isinstance(part, Positive) and part.free
            for name, part in (("noise", self.noise), ("start", self.start))
        }
        if free["noise"] and (self.start is None or free["start"]):
            raise ValueError(
                "expected a fixed start beside a learned or random noise, got "
                f"start={'None' if self.start is None else 'a free one'}; rescaling z "
                "trades one for the other: fix start, or leave noise=None, where every "
                "view has variance 1"
            )

    @torch.no_grad()
    def _check_stationary(self) -> None:
        """Raise an error where no stationary chain has the given numbers."""
        if self.start is not None and self.noise is not None:
            return
        if self.noise is None and self.start is not None:
            what, hint = "where noise is None", "give noise"
        else:
            what, hint = "of a stationary chain", "give noise and start, as of a walk"
        if isinstance(self.transition, Contraction) or self._free_transition():
            return
        A = self._blocks(self.transition, {}).double()
        if self.noise is None:
            size = float(torch.linalg.matrix_norm(A, 2).max())
            name = "spectral norm"
        else:
            size = float(torch.linalg.eigvals(A).abs().max())
            name = "spectral radius"
        if not size < 1:
            raise ValueError(
                f"expected transition with {name} below 1 {what}, got {size:.6g}; "
                f"take smaller numbers, or {hint}"
            )

    def _free_transition(self) -> bool:
        return isinstance(self.transition, Positive) and self.transition.free


def _one(A: Tensor) -> Tensor:
    return torch.eye(A.shape[-1]).to(A)


def _stationary(A: Tensor, Q: Tensor) -> Tensor:
    r"""The solution P of P = A P Aᵀ + Q, the sum of :math:`A^k Q A^{k\top}`."""
    P = Q
    for _ in range(DOUBLINGS):
        P, A = P + A @ P @ A.mT, A @ A
    return 0.5 * (P + P.mT)


def _matrix(name: str, value: Any, dim: int) -> Tensor | None:
    """A matrix (dim, dim) as a tensor of its own; None for anything else."""
    if isinstance(value, Learned | Positive | nn.Module) or value is None:
        return None
    axes = getattr(value, "ndim", None)
    nested = isinstance(value, list | tuple) and len(value) > 0
    nested = nested and isinstance(value[0], list | tuple)
    if not (axes is not None and axes > 1 or nested):
        return None
    fixed(name, value, hint="priors.Contraction is a learned matrix")
    found = tensor(value, name, finite=True).to(torch.get_default_dtype()).clone()
    _check_shape(name, found, dim)
    return found


def _check_shape(name: str, matrix: Tensor, dim: int) -> None:
    if tuple(matrix.shape) != (dim, dim):
        raise ValueError(
            f"expected {name} as a matrix of shape ({dim}, {dim}), got "
            f"{tuple(matrix.shape)}; build it with the dim of the prior"
        )


def _check_covariance(name: str, matrix: Tensor) -> None:
    symmetric = torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-6)
    if not symmetric or int(torch.linalg.cholesky_ex(matrix).info):
        raise ValueError(
            f"expected {name} as a symmetric positive definite matrix, a covariance, "
            f"got {matrix.tolist()}; numbers for each dimension are standard deviations"
        )


def _vector(name: str, value: Any, dim: int) -> Float[Tensor, " dim"]:
    fixed(name, value)
    found = tensor(value, name, finite=True).to(torch.get_default_dtype())
    if tuple(found.shape) not in ((), (dim,)):
        raise ValueError(
            f"expected {name} as one number, or {dim} of them, got shape "
            f"{tuple(found.shape)}; one for each dimension of z"
        )
    return found.expand(dim).clone()
