"""Base classes: a distribution that expands, and a distribution of an item's views."""

from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Size, Tensor

__all__ = ["Expandable", "Present", "Shape", "Vectors", "Views", "ViewsDistribution"]
__all__ += ["broadcast_around", "mean_of_present"]

Shape = Size | list[int] | tuple[int, ...]
Vectors = Float[Tensor, "*batch dim"]
Views = Float[Tensor, "*batch view dim"]
Present = Bool[Tensor, "*batch view"] | None  # None means that all views are present


class Expandable(TorchDistribution):
    """A distribution whose parameters have one batch shape.

    A subclass lists in `parts` the attributes that have the batch axes, tensors or
    distributions, each with the number of axes behind these. `expand` expands the
    parts, without copies of numbers, and keeps all other attributes.
    """

    arg_constraints = {}
    parts: ClassVar[dict[str, int]] = {}

    def expand(self, batch_shape: Shape, _instance: Self | None = None) -> Self:
        new = self.__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        batch = new._batch_shape = Size(batch_shape)
        for name, axes in self.parts.items():
            part = getattr(self, name)
            if isinstance(part, Tensor):
                part = part.expand(batch + part.shape[part.ndim - axes :])
            elif part is not None:
                part = part.expand(batch)
            setattr(new, name, part)
        return new


class ViewsDistribution(Expandable):
    r"""A distribution of the views of an item, event shape (view, dim).

    `present` is a mask of the present views, bool, with shape (\*batch, view), whose
    marginal density is computed; None means all. A subclass with missing views writes
    `_draw_absent` and `_mean_absent`: values for all views given the present ones.

    Attributes:
        linear: Whether the mean of absent views is linear in the present ones.
    """

    linear: ClassVar[bool] = False

    support = constraints.independent(constraints.real, 2)
    present: Tensor | None

    def marginal(self, present: Bool[Tensor, "*batch view"]) -> Self:
        """Return the distribution of the views that are present."""
        batch = torch.broadcast_shapes(self.batch_shape, present.shape[:-1])
        new = self.expand(batch)
        new.present = present.expand(batch + present.shape[-1:])
        return new

    def matched(self) -> Normal:
        """Return the normals with the mean and the variance of each view."""
        return Normal(self.mean, self.variance.sqrt(), validate_args=False)

    def complete(self, value: Views, present: Bool[Tensor, "*b view"]) -> Views:
        """Draw the absent views given the present ones, which stay unchanged."""
        drawn = self._draw_absent(value, present)
        return torch.where(present.unsqueeze(-1), value, drawn)

    def complete_mean(self, value: Views, present: Bool[Tensor, "*b view"]) -> Views:
        """Return the mean of the draws of `complete`."""
        mean = self._mean_absent(value, present)
        return torch.where(present.unsqueeze(-1), value, mean)

    def _draw_absent(self, value: Tensor, present: Tensor) -> Tensor:
        raise NotImplementedError

    def _mean_absent(self, value: Tensor, present: Tensor) -> Tensor:
        raise NotImplementedError


def mean_of_present(
    value: Tensor, present: Tensor | None
) -> tuple[Tensor | int, Tensor]:
    """Return the number of present views and their mean, with an axis for the views."""
    if present is None:
        return value.shape[-2], value.mean(-2, keepdim=True)
    weight = present.unsqueeze(-1).to(value.dtype)
    count = weight.sum(-2, keepdim=True)
    return count, (weight * value).sum(-2, keepdim=True) / count.clamp(min=1)


def broadcast_around(
    loc: Vectors, least: int = 1, **numbers: Tensor | float
) -> list[Any]:
    """Return a vector and numbers without its last axis, of one batch shape."""
    if loc.ndim < 1 or loc.shape[-1] < least:
        raise ValueError(
            f"expected loc with shape (*batch, dim), dim at least {least}, got shape "
            f"{tuple(loc.shape)}; a vector lies along the last axis"
        )
    tensors = [
        n if isinstance(n, Tensor) else loc.new_full((), n) for n in numbers.values()
    ]
    shapes = [t.shape for t in tensors]
    try:
        batch = torch.broadcast_shapes(loc.shape[:-1], *shapes)
    except RuntimeError as error:
        raise ValueError(
            f"expected {' and '.join(numbers)} to broadcast with the batch shape "
            f"{tuple(loc.shape[:-1])} of loc, got "
            f"{' and '.join(str(tuple(s)) for s in shapes)}; without an axis for dim"
        ) from error
    return [loc.expand(batch + loc.shape[-1:]), *(t.expand(batch) for t in tensors)]
