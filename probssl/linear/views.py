r"""Views: those with moments in closed form, and samplers that draw them.

A view of a row x with a closed form has the mean :math:`A x + b`, and around it a
covariance whose mean over the rows depends on their mean and covariance alone. The
estimators never sample such views: their moments follow from those of the data. Any
other function of rows is a sampler, from which views are drawn.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor, nn
from tqdm import tqdm

from ..arguments import between, instance
from ..arrays import doubles, left_alone
from ..bars import shown
from .moments import Moments

__all__ = [
    "LARGEST_ENTRY",
    "AdditiveNoise",
    "Chain",
    "ClosedForm",
    "Flattened",
    "LinearMaps",
    "Masking",
    "Sampler",
    "drawn",
    "in_parts",
]

Sampler = Callable[[Array], Array]
ROWS_AT_ONCE = 2_048  # whose views are drawn together
LARGEST_ENTRY = 1e150  # of data: sums of squares of such entries do not overflow


class ClosedForm(ABC):
    """Views with a linear mean and a known covariance; a call draws one.

    Raises:
        TypeError: When a class is defined that draws other views, by a `__call__` of
            its own, without moments of its own.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        place = {
            name: next(i for i, base in enumerate(cls.__mro__) if name in vars(base))
            for name in ("__call__", "linear", "spread", "moments")
        }
        if place.pop("__call__") < min(place.values()):
            raise TypeError(
                f"expected linear and spread, the moments of its views, in "
                f"{cls.__name__}, got __call__ alone, whose views they must describe; "
                "define them, or give a function that draws views, which are sampled"
            )

    def __repr__(self) -> str:
        """The call of the constructor, with the shapes of arrays."""
        given = (
            f"{name}=array{value.shape}"
            if isinstance(value, np.ndarray) and value.ndim
            else f"{name}={value!r}"
            for name, value in vars(self).items()
        )
        return f"{type(self).__name__}({', '.join(given)})"

    @abstractmethod
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n e"]:
        """Draw one view of each row with torch's generator."""

    @abstractmethod
    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        """A (e, d) and b (e,), where A x + b is the mean of the views of x.

        Arguments:
            mean: The mean of the data, with which some views fill in features.
        """

    @abstractmethod
    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "e e"]:
        """The covariance of the views of a row, averaged over the rows."""

    def fitted(self, mean: Float[Array, " d"]) -> "ClosedForm":
        """The same views with what they take from the data fixed to this mean.

        Other data then get the views of the training data.
        """
        return self

    def moments(self, data: Moments) -> Moments:
        """The moments of data and views, from those of the data."""
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
        ValueError: If it is not a covariance: finite, symmetric, no negative variance.
    """

    def __init__(self, covariance: float | Array) -> None:
        self.covariance = covariance
        matrix = doubles(covariance, "covariance")
        if matrix.ndim > 2 or matrix.ndim == 2 and len(matrix) != matrix.shape[1]:
            raise ValueError(
                "expected a variance, variances (d,) or a covariance (d, d), got shape "
                f"{matrix.shape}"
            )
        if not np.isfinite(matrix).all():
            raise ValueError("expected a finite covariance, got NaN or infinity in it")
        scale = np.abs(matrix).max(initial=0.0)
        if matrix.ndim == 2 and np.abs(matrix - matrix.T).max() > 1e-10 * scale:
            raise ValueError(
                "expected a symmetric covariance, got another; symmetrise it"
            )
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
                f"expected noise of {dim} features, like the data, got {len(matrix)}"
            )
        return matrix if matrix.ndim == 2 else matrix * np.eye(dim)


class Masking(ClosedForm):
    r"""Each feature is replaced, with probability p, by its mean over the data.

    .. math:: \Sigma = p (1 - p)\, \mathrm{diag}\, \mathrm{Cov}(x),

    so that the units of features do not matter to joint embedding.

    Arguments:
        probability: p, the probability that a feature is masked.
        fill: The value of a masked feature, or one for each. None is its mean: over the
            data that an estimator was fitted to in closed form, over the given rows
            where views are drawn.

    Raises:
        TypeError: If the probability is not a number.
        ValueError: If the probability is not between 0 and 1, or the fill not finite.
    """

    def __init__(
        self, probability: float = 0.5, fill: float | Array | None = None
    ) -> None:
        if fill is not None and not np.isfinite(fill).all():
            raise ValueError(f"expected a finite fill, or None, got {fill}")
        self.probability = between("probability", probability, 0, 1, open=True)
        self.fill = fill

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        masked = torch.rand(x.shape, dtype=torch.float64).numpy() < self.probability
        return np.where(masked, self._fill(x.mean(0)), x)

    def linear(self, mean: Float[Array, " d"]) -> tuple[Array, Array]:
        p = self.probability
        return (1 - p) * np.eye(len(mean)), p * self._fill(mean)

    def spread(
        self, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
    ) -> Float[Array, "d d"]:
        p, square = self.probability, np.square(mean - self._fill(mean))
        return p * (1 - p) * np.diag(np.diagonal(covariance) + square)

    def fitted(self, mean: Float[Array, " d"]) -> "Masking":
        found = copy(self)  # of a subclass too
        found.fill = self._fill(mean)
        return found

    def _fill(self, mean: Array) -> Array:
        return mean if self.fill is None else np.full_like(mean, self.fill)


class LinearMaps(ClosedForm):
    r""":math:`\tau(x) = A_j x`, with a map j drawn for each row.

    Arguments:
        maps: The :math:`A_j`, (map, e, d): shifts, crops, blurs, permutations.
        probabilities: The probabilities of the maps, up to a factor; None makes them
            equal.

    Raises:
        ValueError: If the maps are not a stack of finite matrices, or there is not one
            probability of at least 0 for each.
    """

    def __init__(
        self, maps: Array, probabilities: Sequence[float] | None = None
    ) -> None:
        self.maps, self.probabilities = maps, probabilities
        stack = doubles(maps, "maps")
        if stack.ndim != 3 or not len(stack):
            raise ValueError(
                f"expected maps of shape (map, e, d), got {stack.shape}; for one map, "
                "give maps[None]"
            )
        if not np.isfinite(stack).all():
            raise ValueError("expected finite maps, got NaN or infinity in them")
        share = np.ones(len(stack)) if probabilities is None else probabilities
        share = doubles(share, "probabilities")
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
                f"expected maps of {dim} features, like the data, got {maps.shape[2]}"
            )
        return maps

    def _share(self) -> Float[Array, " map"]:
        if self.probabilities is None:
            return np.full(len(self.maps), 1 / len(self.maps))
        share = np.asarray(self.probabilities, float)
        return share / share.sum()


class Chain(ClosedForm):
    """Views composed: Chain(first, second)(x) is second(first(x)).

    Arguments:
        steps: Views with a closed form, in the order in which they are applied.

    Raises:
        ValueError: If there is no step.
        TypeError: If a step has no closed form.
    """

    def __init__(self, *steps: ClosedForm) -> None:
        hint = "compose samplers in a function of your own"
        if not steps:
            raise ValueError("expected at least one step, got none")
        for step in steps:
            instance("a step", step, ClosedForm, "views with a closed form", hint)
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

    def fitted(self, mean: Float[Array, " d"]) -> "Chain":
        steps = []
        for step in self.steps:
            steps.append(step.fitted(mean))
            a, b = step.linear(mean)
            mean = a @ mean + b
        found = copy(self)
        found.steps = tuple(steps)
        return found

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


class Flattened:
    """Adapt a sampler of views of images, such as `views.Augment`, to rows of features.

    Arguments:
        sampler: Images (n, \\*event) -> views (n, view, \\*event), or a batch of them,
            in torch's default dtype. Those of `views` take values in [0, 1].
        shape: The event shape of an image, (channel, height, width).

    Raises:
        ValueError: If rows do not have that many features, or the sampler does not
            return one tensor (n, view, \\*event) with all views present.
    """

    def __init__(self, sampler: Callable[[Any], Any], shape: Sequence[int]) -> None:
        self.sampler, self.shape = sampler, tuple(shape)

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n view e"]:
        if x.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"expected rows of {math.prod(self.shape)} features, for images of "
                f"shape {self.shape}, got {x.shape[1]}"
            )
        images = torch.as_tensor(x, dtype=torch.get_default_dtype())
        images = images.reshape(-1, *self.shape).clone()
        with torch.no_grad(), left_alone("views", images):
            found = self.sampler(images)
        views, present = getattr(found, "views", found), getattr(found, "present", None)
        if not isinstance(views, Tensor) or views.ndim < 3 or present is not None:
            raise ValueError(
                "expected a sampler that returns one tensor (n, view, *event) with all "
                f"views present, got {getattr(views, 'shape', type(views))}"
            )
        return views.flatten(2).to("cpu", torch.float64).numpy()


def drawn(
    views: Sampler, rows: Float[Array, "n d"], many: int, calls: int = 1
) -> Float[Array, "n call view e"]:
    """Draw at least so many views of each row, in float64, the calls kept apart.

    Views of one call may depend on one another given the row. Of a sampler of one view
    a call, all views count as one call.

    Arguments:
        calls: The least number of calls of a sampler of several views.
    """
    parts: list[Array] = []
    while sum(part.shape[1] for part in parts) < many or len(parts) < calls:
        part = np.array(views(rows.copy()), np.float64)  # may be written in place
        if part.ndim not in (2, 3) or len(part) != len(rows) or not part.size:
            raise ValueError(
                f"expected views of shape ({len(rows)}, features) or ({len(rows)}, "
                f"view, features) of {len(rows)} rows, got {part.shape}"
            )
        if not (np.abs(part) < LARGEST_ENTRY).all():
            raise ValueError(
                f"expected views with entries below {LARGEST_ENTRY:g}, got NaN, "
                "infinity or larger ones among them"
            )
        parts.append(part[:, None] if part.ndim == 2 else part)
        if (width := parts[-1].shape[1:]) != parts[0].shape[1:]:
            raise ValueError(
                "expected as many views and features in every call, got (view, "
                f"features) {parts[0].shape[1:]} and then {width}"
            )
    if parts[0].shape[1] == 1:
        return np.concatenate(parts, 1)[:, None]
    return np.stack(parts, 1)


def in_parts(
    views: Sampler, x: Float[Array, "n d"], many: int, progress: bool, calls: int = 1
) -> Iterator[tuple[Float[Array, "part d"], Float[Array, "part call view e"]]]:
    """Yield some rows and their views as `drawn`, then the next rows."""
    if isinstance(views, nn.Module):  # which takes tensors, as `views.Augment` does
        views = Flattened(views, x.shape[1:])
    starts = range(0, len(x), ROWS_AT_ONCE)
    for start in tqdm(starts, "views", leave=False, **shown(progress)):
        rows = x[start : start + ROWS_AT_ONCE]
        yield rows, drawn(views, rows, many, calls)


def _eigen(covariance: Array) -> tuple[Array, Array | None]:
    """Variances and their directions; None stands for the axes."""
    return np.linalg.eigh(covariance) if covariance.ndim == 2 else (covariance, None)
