"""Markov chains of views in order: a linear-Gaussian one, and one of a predictor."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch.distributions import Normal, constraints
from torch.nn.functional import pad

from ._base import Expandable, Present, Shape, Vectors, Views, ViewsDistribution
from .gaussian import quotient

__all__ = ["Autoregressive", "GaussMarkov", "cholesky", "product", "solve"]

Columns = Float[Tensor, "*batch block k 1"]
Blocks = Float[Tensor, "*batch block k k"]


class _Predicted(NamedTuple):
    """One time of a filter: p(z_t | present views before t), and then with view t."""

    mean: Columns
    tril: Blocks
    filtered: Columns
    covariance: Blocks


class GaussMarkov(ViewsDistribution):
    r"""A linear-Gaussian Markov chain over the views of an item.

    .. math:: z_1 = c_1 + L_1 \epsilon_1, \qquad
        z_t = A_t z_{t-1} + c_t + L_t \epsilon_t, \qquad \epsilon_t \sim N(0, I)

    The numbers of a view lie in blocks of size k, dim = block · k, that do not
    influence each other: one block for matrices, blocks of a single number for
    diagonal ones. The log-density is a sum over times, at a cost linear in their
    number,

    .. math:: \log p(z_1, \dots, z_V) = -\sum_t \big[ \tfrac12 \lVert \epsilon_t
        \rVert^2 + \log |L_t| + \tfrac d2 \log 2 \pi \big], \qquad
        \epsilon_t = L_t^{-1} (z_t - A_t z_{t-1} - c_t)

    Absent views are integrated out by the Kalman filter, in which a view that is
    present is observed without noise, and an absent one not at all. Their conditional
    mean given the present ones is that of the Rauch-Tung-Striebel smoother.

    Arguments:
        shift: The shifts c, with shape (\*batch, view, dim).
        transition: The matrices A, shape (\*batch, view, block, k, k); that of the
            first view is zero.
        scale_tril: The factors L, lower triangular, of the same shape.
        present: The present views, as in `ViewsDistribution`; None means all.

    References:
        A New Approach to Linear Filtering and Prediction Problems (Kalman, 1960)
        https://doi.org/10.1115/1.3662552
        Maximum Likelihood Estimates of Linear Dynamic Systems (Rauch, Tung and
        Striebel, 1965)
        https://doi.org/10.2514/3.3166
    """

    linear = True
    has_rsample = True
    arg_constraints = {"shift": constraints.independent(constraints.real, 2)}
    parts = {"shift": 2, "transition": 4, "scale_tril": 4, "present": 1}

    def __init__(
        self,
        shift: Float[Tensor, "*batch view dim"],
        transition: Float[Tensor, "*batch view block k k"],
        scale_tril: Float[Tensor, "*batch view block k k"],
        *,
        present: Present = None,
        validate_args: bool | None = None,
    ) -> None:
        event, matrices = shift.shape[-2:], transition.shape[-4:]
        leads = [shift.shape[:-2], transition.shape[:-4], scale_tril.shape[:-4]]
        leads += [] if present is None else [present.shape[:-1]]
        batch = torch.broadcast_shapes(*leads)
        self.shift = shift.expand(batch + event)
        self.transition = transition.expand(batch + matrices)
        self.scale_tril = scale_tril.expand(batch + matrices)
        self.present = None if present is None else present.expand(batch + event[:1])
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self._row([m for m, _ in self._moments()])

    @property
    def variance(self) -> Tensor:
        each = [c.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) for _, c in self._moments()]
        return self._row(each)

    def rsample(self, sample_shape: Shape = ()) -> Views:
        shape = self._extended_shape(Size(sample_shape))
        dtype, device = self.shift.dtype, self.shift.device
        noise = self._columns(torch.randn(shape, dtype=dtype, device=device))
        shift = self._columns(self.shift)
        z: list[Tensor] = []
        for t in range(shape[-2]):
            drawn = _at(shift, t) + product(self._tril(t), _at(noise, t))
            z.append(drawn + product(self._step(t), z[-1]) if t else drawn)
        return self._row(z)

    def log_prob(self, value: Views) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self.present is None:
            before = pad(value[..., :-1, :], (0, 0, 1, 0))
            rest = self._columns(value - self.shift)
            rest = rest - product(self.transition, self._columns(before))
            return _log_normal(rest, self.scale_tril).sum(-1)
        total: Tensor | float = 0.0
        z = self._columns(value.where(self.present.unsqueeze(-1), 0.0))
        for t, now in enumerate(self._filter(z, self.present)):
            each = _log_normal(_at(z, t) - now.mean, now.tril)
            total = total + each.where(self.present[..., t], 0.0)
        assert isinstance(total, Tensor)
        return total

    def entropy(self) -> Tensor:
        r"""The entropy of the present views, in nats.

        .. math:: \sum_t \big[ \log |L_t| + \tfrac d2 \log 2 \pi e \big]
        """
        constant = 0.5 * self.event_shape[1] * (1 + math.log(2 * math.pi))
        if self.present is None:
            return (constant + _log_determinant(self.scale_tril)).sum(-1)
        z = self._columns(torch.zeros_like(self.shift))
        found = [_log_determinant(now.tril) for now in self._filter(z, self.present)]
        return ((constant + torch.stack(found, -1)) * self.present).sum(-1)

    def times(
        self,
        loc: Tensor,
        scale: Tensor,
        present: Tensor | None = None,
        *,
        over: Normal | None = None,
    ) -> "GaussMarkov":
        r"""Return the normalised product with a normal density for each view.

        .. math:: q(z) \propto p(z) \prod_{v \text{ present}}
            \frac{N(z_v \mid m_v, r_v^2)}{N(z_v \mid \mu_v, s_v^2)}

        It is a chain as well. In deviations :math:`u_t = z_t - m_t`, which have shifts
        :math:`c_t + A_t m_{t-1} - m_t`, what the factors of time t and later say on
        :math:`u_t` is :math:`e^{h^\top u - u^\top J u / 2}`, carried back in time by

        .. math:: J \leftarrow G^\top X G, \quad
            h \leftarrow G^\top (M^{-1} L^\top h - X L^{-1} c), \quad
            M = I + L^\top J L, \quad X = M^{-1} (M - I), \quad G = L^{-1} A

        Arguments:
            over: The normal divided by, no narrower than the first one; None divides by
                nothing.
        """
        precision, gradient = quotient(loc, scale, present, over)
        if present is not None:
            loc = loc.where(present.unsqueeze(-1), 0.0)
        own, linear = self._columns(precision), self._columns(0 * precision + gradient)
        before = self._columns(pad(loc[..., :-1, :], (0, 0, 1, 0)))
        centre = self._columns(loc)
        shift = self._columns(self.shift) + product(self.transition, before) - centre
        one = torch.eye(self.transition.shape[-1]).to(loc)
        J, h = one * _at(own, -1), _at(linear, -1)
        steps, shifts, trils = [], [], []
        for t in reversed(range(self.event_shape[0])):
            L, A, c = self._tril(t), self._step(t), _at(shift, t)
            spread = product(L.mT, product(J, L))
            root = solve(_upper(one + spread), one, upper=True)  # M = U U^T: U^-1
            whitened, gain = solve(L, c), solve(L, A)
            tril = product(L, root.mT)
            pulled = product(tril.mT, h)
            step = product(tril, product(root, gain))
            moved = product(tril, product(root, whitened) + pulled)
            shifts.append(_at(centre, t) + moved - product(step, _at(before, t)))
            steps.append(step)
            trils.append(tril)
            if t:
                X = product(root.mT, product(root, spread))
                X = 0.5 * (X + X.mT)
                back = product(root.mT, pulled) - product(X, whitened)
                J = one * _at(own, t - 1) + product(gain.mT, product(X, gain))
                h = _at(linear, t - 1) + product(gain.mT, back)
        matrices = [torch.stack(each[::-1], -4) for each in (steps, trils)]
        return GaussMarkov(self._row(shifts[::-1]), *matrices, validate_args=False)

    def _mean_absent(self, value: Tensor, present: Tensor) -> Tensor:
        """The smoother: backwards, the mean of each time given all present views."""
        z = self._columns(value.where(present.unsqueeze(-1), 0.0))
        times = list(self._filter(z, present))
        found = [times[-1].filtered]
        for t in reversed(range(len(times) - 1)):
            now, after = times[t], times[t + 1]
            surprise = found[-1] - after.mean
            weight = solve(after.tril.mT, solve(after.tril, surprise), upper=True)
            back = product(self._step(t + 1).mT, weight)
            found.append(now.filtered + product(now.covariance, back))
        return self._row(found[::-1])

    def _draw_absent(self, value: Tensor, present: Tensor) -> Tensor:
        """A draw of the chain, moved by what its present views are off (Matheron)."""
        batch = torch.broadcast_shapes(value.shape[:-2], present.shape[:-1])
        drawn = self.expand(torch.broadcast_shapes(batch, self.batch_shape)).rsample()
        mean = self._mean_absent(value, present)
        return drawn + mean - self._mean_absent(drawn, present)

    def _filter(
        self, z: Float[Tensor, "*b view block k 1"], present: Tensor
    ) -> Iterator[_Predicted]:
        """The Kalman filter: each time given the present views before it."""
        shift = self._columns(self.shift)
        for t in range(self.event_shape[0]):
            L = self._tril(t)
            if t == 0:
                mean, covariance, tril = _at(shift, t), product(L, L.mT), L
            else:
                A = self._step(t)
                mean = product(A, mean) + _at(shift, t)
                covariance = product(A, product(covariance, A.mT)) + product(L, L.mT)
                tril = cholesky(covariance)
            seen, predicted = present[..., t, None, None, None], mean
            mean = torch.where(seen, _at(z, t), mean)
            covariance = torch.where(seen, 0.0, covariance)
            yield _Predicted(predicted, tril, mean, covariance)

    def _moments(self) -> Iterator[tuple[Columns, Blocks]]:
        """Mean and covariance of each view."""
        absent = torch.zeros_like(self.shift[..., 0], dtype=torch.bool)
        z = self._columns(torch.zeros_like(self.shift))
        for now in self._filter(z, absent):
            yield now.filtered, now.covariance

    def _columns(self, value: Tensor) -> Float[Tensor, "*b view block k 1"]:
        blocks, k = self.transition.shape[-3:-1]
        return value.unflatten(-1, (blocks, k)).unsqueeze(-1)

    def _row(self, columns: list[Tensor]) -> Views:
        """Columns of each time as one tensor of views."""
        return torch.stack(torch.broadcast_tensors(*columns), -4).flatten(-3)

    def _tril(self, t: int) -> Blocks:
        return self.scale_tril[..., t, :, :, :]

    def _step(self, t: int) -> Blocks:
        return self.transition[..., t, :, :, :]


class Autoregressive(Expandable):
    r"""A Markov chain with normal noise around a prediction from the view before.

    .. math:: z_1 = \tau \epsilon_1, \qquad
        z_t = f(z_{t-1}) + \sigma \epsilon_t, \qquad \epsilon_t \sim N(0, I)

    A flat first view has density 1 everywhere; it is improper and has no samples. The
    mean of later views has no closed form.

    Arguments:
        predictor: f, a function (\*batch, dim) -> (\*batch, dim).
        views: The number of views.
        scale: The standard deviation :math:`\sigma`, with shape (\*batch, dim).
        start: The standard deviation :math:`\tau` of the first view, likewise; None is
            a flat density.
    """

    parts = {"scale": 1, "start": 1}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        predictor: Callable[[Vectors], Vectors],
        views: int,
        scale: Vectors,
        start: Vectors | None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.predictor, self.scale, self.start = predictor, scale, start
        if start is not None:
            self.scale, self.start = torch.broadcast_tensors(scale, start)
        batch, event = self.scale.shape[:-1], (views, self.scale.shape[-1])
        super().__init__(batch, Size(event), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.start is not None

    def rsample(self, sample_shape: Shape = ()) -> Views:
        noise = self._first().new_empty(self._extended_shape(Size(sample_shape)))
        first, *later = noise.normal_().unbind(-2)
        z = [self._first() * first]
        for each in later:
            z.append(self.predictor(z[-1]) + self.scale * each)
        return torch.stack(z, -2)

    def log_prob(self, value: Views) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        mean = self.predictor(value[..., :-1, :])
        scale = self.scale.unsqueeze(-2)
        later = Normal(mean, scale, validate_args=False).log_prob(value[..., 1:, :])
        total = later.sum((-2, -1))
        if self.start is None:
            return total
        first = Normal(0.0, self.start, validate_args=False)
        return total + first.log_prob(value[..., 0, :]).sum(-1)

    def _first(self) -> Vectors:
        if self.start is None:
            raise ValueError(
                "expected a proper p(z_1) for samples, got a flat one "
                "(start=math.inf); give the prior a finite start, such as 1.0"
            )
        return self.start


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of blocks; of single numbers without the overhead of a matrix's."""
    return a * b if a.shape[-1] == 1 else a @ b


def solve(tril: Tensor, b: Tensor, *, upper: bool = False) -> Tensor:
    """The solution of triangular blocks."""
    if tril.shape[-1] == 1:
        return b / tril
    return torch.linalg.solve_triangular(tril, b, upper=upper)


def cholesky(covariance: Blocks) -> Blocks:
    """The lower Cholesky factor of blocks, without synchronising with the host."""
    if covariance.shape[-1] == 1:
        return covariance.sqrt()
    return torch.linalg.cholesky_ex(covariance).L


def _upper(matrix: Blocks) -> Blocks:
    """The upper triangular U of a matrix U U^T."""
    return cholesky(matrix.flip(-2, -1)).flip(-2, -1)


def _at(columns: Tensor, t: int) -> Columns:
    return columns[..., t, :, :, :]


def _log_determinant(tril: Blocks) -> Float[Tensor, "*batch"]:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))


def _log_normal(rest: Columns, tril: Blocks) -> Float[Tensor, "*batch"]:
    """The log-density of what is left of each view after its mean."""
    square = solve(tril, rest).square().sum((-3, -2, -1))
    size = rest.shape[-3] * rest.shape[-2]
    return -0.5 * (square + size * math.log(2 * math.pi)) - _log_determinant(tril)
