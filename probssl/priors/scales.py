"""Which scales of content and views go together."""

import math
from collections.abc import Sequence

from pyro.distributions import TorchDistribution
from torch import Tensor

from ..hyper import Learned, Positive

__all__ = ["Scale", "check_scales", "content_scale"]

Scale = float | Sequence[float] | Tensor | Learned | TorchDistribution | Positive


def content_scale(y_scale: Scale, dim: int | None = None) -> Positive | float:
    """Return the scale of the content; infinity, a flat p(y), stays a number."""
    if isinstance(y_scale, float) and y_scale == math.inf:
        return math.inf
    return Positive(y_scale, "y_scale", dim=dim)


def check_scales(scale: Positive, y_scale: Positive | float) -> None:
    """Raise an error if stretching z can move one scale into the other.

    Raises:
        ValueError: If both are free, or if one is and p(y) is flat.
    """
    if not scale.free:
        return
    if not isinstance(y_scale, Positive):
        raise ValueError(
            "expected a fixed scale with a flat p(y) (y_scale=math.inf), got "
            f"scale={scale.value!r}; under a flat p(y) a free scale has no optimum: "
            "fix the scale or give a finite y_scale"
        )
    if y_scale.free:
        raise ValueError(
            "expected at most one free scale, got both scale and y_scale learned or "
            "random; stretching z moves one into the other: fix one of them"
        )
