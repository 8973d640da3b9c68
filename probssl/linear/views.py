r"""Views whose moments are known in closed form.

A view of a row x has the mean :math:`A x + b`, and around it a covariance whose mean
over the rows depends on their mean and covariance alone. Views of this kind are never
sampled by the estimators: their moments follow from those of the data.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array

from .moments import Moments

__all__ = [
    "AdditiveNoise",
    "Chain",
    "ClosedForm",
    "LinearMaps",
    "Masking",
]


class ClosedForm(ABC):
    """Views with a mean linear in x and a known covariance; called, it draws one."""

    def __repr__(self) -> str:
        """The constructor's call, with shapes for arrays."""
        given = (
            f"{name}=array{value.shape}"
            if isinstance(value, np.ndarray) and value.ndim
            else f"{name}={value!r}"
            for name, value in vars(self).items()
        )
        return f"{type(self).__name__}({', '.join(given)})"

    @abstractmethod
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n e"]:
        """One view of each row, drawn with torch's generator."""

    @abstractmethod
    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        """A (e, d) and b (e,), of the mean A x + b of the views of x.

        Arguments:
            mean: That of the data, which some views fill in.
        """

    @abstractmethod
    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "e e"]:
        """The covariance of the views of a row, averaged over rows of these moments."""

    def moments(self, data: Moments) -> Moments:
        """Those of data and views, from those of the data."""
        a, b = self.linear(data.mean)
        cross = data.data @ a.T
        between = a @ cross
        return data._replace(
            view_mean=a @ data.mean + b,
            total=between + self.spread(data.mean, data.data),
            between=between,
            cross=cross,
        )


class AdditiveNoise(ClosedForm):
    r""":math:`\tau(x) = x + \theta` with :math:`\theta \sim N(0, \Theta)`.

    Arguments:
        covariance: :math:`\Theta`, (d, d); or its diagonal, (d,); or one variance.

    Raises:
        ValueError: If it is no covariance.
    """

    def __init__(self, covariance: float | Array) -> None:
        self.covariance = covariance
        matrix = np.asarray(covariance, float)
        if matrix.ndim > 2 or matrix.ndim == 2 and len(matrix) != matrix.shape[1]:
            raise ValueError(
                "expected a variance, variances (d,) or a covariance (d, d), got shape "
                f"{matrix.shape}"
            )
        if not np.isfinite(matrix).all():
            raise ValueError("expected a finite covariance, got NaN or infinity in it")
        scale = np.abs(matrix).max(initial=0.0)
        if matrix.ndim == 2 and np.abs(matrix - matrix.T).max() > 1e-10 * scale:
            raise ValueError("expected a symmetric covariance, got one that is not")
        least = _eigen(matrix)[0].min(initial=0.0)
        if least < -1e-10 * scale * (matrix.ndim == 2):
            raise ValueError(
                f"expected variances of at least 0 in all directions, got {least:.3g}"
            )

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        self._matrix(x.shape[1])
        noise = torch.randn(x.shape, dtype=torch.float64).numpy()
        variances, directions = _eigen(np.asarray(self.covariance, float))
        noise *= np.sqrt(variances.clip(0))
        return x + (noise if directions is None else noise @ directions.T)

    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        return np.eye(len(mean)), np.zeros(len(mean))

    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "d d"]:
        return self._matrix(len(mean))

    def _matrix(self, dim: int) -> Float[Array, "d d"]:
        matrix = np.asarray(self.covariance, float)
        if matrix.ndim and len(matrix) != dim:
            raise ValueError(
                f"expected noise of {dim} features, as the data have, got {len(matrix)}"
            )
        return matrix if matrix.ndim == 2 else matrix * np.eye(dim)


class Masking(ClosedForm):
    r"""Each feature is replaced, with probability p, by its mean over the data.

    .. math:: \Sigma = p (1 - p)\, \mathrm{diag}\, \mathrm{Cov}(x),

    so that no feature's unit matters to joint embedding.

    Arguments:
        probability: p, of a feature to be hidden.
        fill: What is put in its place; None is the mean of the feature, which, where
            views are drawn, is that of the rows given.

    Raises:
        ValueError: If the probability is not between 0 and 1, or the fill not finite.
    """

    def __init__(self, probability: float = 0.5, fill: float | None = None) -> None:
        if not 0 < probability < 1:
            raise ValueError(
                "expected the probability of a feature to be hidden to lie between 0 "
                f"and 1, got {probability}"
            )
        if fill is not None and not np.isfinite(fill):
            raise ValueError(f"expected a finite fill, or None, got {fill}")
        self.probability, self.fill = probability, fill

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        hidden = torch.rand(x.shape, dtype=torch.float64).numpy() < self.probability
        return np.where(hidden, self._fill(x.mean(0)), x)

    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        p = self.probability
        return (1 - p) * np.eye(len(mean)), p * self._fill(mean)

    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "d d"]:
        p, square = self.probability, np.square(mean - self._fill(mean))
        return p * (1 - p) * np.diag(np.diagonal(covariance) + square)

    def _fill(self, mean: Array) -> Array:
        return mean if self.fill is None else np.full_like(mean, self.fill)


class LinearMaps(ClosedForm):
    r""":math:`\tau(x) = A_j x`, with j drawn at random for each row.

    Arguments:
        maps: The :math:`A_j`, (map, e, d): shifts, crops, blurs, permutations.
        probabilities: Those of the maps; None is equal ones.

    Raises:
        ValueError: If the maps are no stack of matrices, or the probabilities none.
    """

    def __init__(
        self, maps: Array, probabilities: Sequence[float] | None = None
    ) -> None:
        self.maps, self.probabilities = maps, probabilities
        stack = np.asarray(maps, float)
        if stack.ndim != 3 or not len(stack):
            raise ValueError(
                f"expected maps of shape (map, e, d), got {stack.shape}; one map alone "
                "is maps[None]"
            )
        if not np.isfinite(stack).all():
            raise ValueError("expected finite maps, got NaN or infinity in them")
        share = np.ones(len(stack)) if probabilities is None else probabilities
        share = np.asarray(share, float)
        fit = share.shape == stack.shape[:1] and (share >= 0).all()
        if not fit or not 0 < share.sum() < np.inf:
            raise ValueError(
                f"expected {len(stack)} probabilities of at least 0, one for each map, "
                f"got {probabilities}"
            )

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n e"]:
        maps, share = self._stack(x.shape[1]), torch.as_tensor(self._share())
        drawn = torch.multinomial(share, len(x), replacement=True).numpy()
        views = np.empty((len(x), maps.shape[1]))
        for j, one in enumerate(maps):
            views[drawn == j] = x[drawn == j] @ one.T
        return views

    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        maps = self._stack(len(mean))
        return np.tensordot(self._share(), maps, 1), np.zeros(maps.shape[1])

    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "e e"]:
        apart = np.asarray(self.maps, float) - self.linear(mean)[0]
        square = covariance + np.outer(mean, mean)
        return np.einsum(
            "j,jad,df,jbf->ab", self._share(), apart, square, apart, optimize=True
        )

    def _stack(self, dim: int) -> Float[Array, "map e d"]:
        maps = np.asarray(self.maps, float)
        if maps.shape[2] != dim:
            raise ValueError(
                f"expected maps of {dim} features, as the data have, got "
                f"{maps.shape[2]}"
            )
        return maps

    def _share(self) -> Float[Array, " map"]:
        if self.probabilities is None:
            return np.full(len(self.maps), 1 / len(self.maps))
        share = np.asarray(self.probabilities, float)
        return share / share.sum()


class Chain(ClosedForm):
    """One view of another: Chain(first, second)(x) is second(first(x)).

    Arguments:
        steps: Views of closed form, in the order in which they are applied.

    Raises:
        ValueError: If there are none.
        TypeError: If a step has no closed form.
    """

    def __init__(self, *steps: ClosedForm) -> None:
        if not steps:
            raise ValueError("expected at least one kind of view, got none")
        for step in steps:
            if not isinstance(step, ClosedForm):
                raise TypeError(
                    "expected steps of closed form, such as Masking(0.5), got "
                    f"{step!r}; a sampler is a view of its own"
                )
        self.steps = steps

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n e"]:
        for step in self.steps:
            x = step(x)
        return x

    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        a, b = np.eye(len(mean)), np.zeros(len(mean))
        for step in self.steps:
            each, shift = step.linear(a @ mean + b)
            a, b = each @ a, each @ b + shift
        return a, b

    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "e e"]:
        within = np.zeros_like(covariance)
        for step in self.steps:
            a, b = step.linear(mean)
            own = step.spread(mean, covariance)
            within = a @ within @ a.T + own
            mean, covariance = a @ mean + b, a @ covariance @ a.T + own
        return within


def _eigen(covariance: Array) -> tuple[Array, Array | None]:
    """Variances, and the directions that have them; None are the axes."""
    return np.linalg.eigh(covariance) if covariance.ndim == 2 else (covariance, None)
