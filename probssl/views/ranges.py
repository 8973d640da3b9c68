"""Ranges that augmentations draw from, the draws, and checks of images."""

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..arguments import between
from ..arrays import span

__all__ = [
    "Range",
    "checked_range",
    "check_floats",
    "check_images",
    "check_unit",
    "check_values",
    "ends",
    "happens",
    "looked_at",
    "per_item",
    "probability",
    "sometimes",
    "uniform",
    "wide",
]

ROUNDING = 1e-6
_LOOKED: WeakSet[nn.Module] = WeakSet()  # modules whose first batch was in [0, 1]

Range = float | tuple[float, float]
"""A pair (low, high), or a number that stands for a pair."""


def ends(value: Range, centre: float | None = None) -> tuple[float, float]:
    """The pair that a range means; a number a means (a, a), or (centre ± a)."""
    if isinstance(value, tuple):
        return value
    return (value, value) if centre is None else (centre - value, centre + value)


def checked_range(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    *,
    centre: float | None = None,
    positive: bool = False,
) -> Range:
    """`value` as plain numbers, if the range that it means lies within [low, high].

    Arguments:
        centre: See `ends`.
        positive: Whether zero is excluded.
    """
    try:
        plain = _plain(value)
        start, end = ends(plain, centre)
        within = low <= start <= end <= high and math.isfinite(end - start)
    except (TypeError, ValueError):
        within = False
    if not within or (positive and start <= 0):
        short = "" if centre is None else f" (a number a means {centre:g} ± a)"
        limits = f"{'(' if positive else '['}{low:g}, {high:g}]"
        raise ValueError(
            f"expected {name} as a number or a pair (low, high) within "
            f"{limits}{short}, got {value!r}; give the lower end first"
        )
    return plain


def probability(name: str, value: Any) -> float:
    """`value` as a plain number, if it is a probability."""
    return between(name, value, 0, 1, "1 is always, 0 is never")


def check_floats(x: Tensor) -> None:
    """Raise a TypeError unless x is a floating-point tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"expected a floating-point tensor, images in [0, 1], got {kind}; convert "
            "bytes to float in [0, 1] first: x.float() / 255"
        )


def check_unit(low: float, high: float, name: str) -> None:
    """Raise a ValueError unless numbers from `low` to `high` lie within [0, 1]."""
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise ValueError(
            f"expected values in [0, 1] for {name}, got {low:.4g} to {high:.4g}; "
            "divide bytes by 255, and normalise after the views, in the encoder; for "
            "items of any range Augment(…, clamp=False) takes Affine, Noise, Mask, Blur"
        )


def check_values(x: Float[Tensor, "n *event"], module: nn.Module) -> None:
    """Raise a ValueError unless x lies within [0, 1].

    On a device that would synchronise with the host at every call: there only the first
    batch of a module is looked at, and none within a CUDA graph.
    """
    if looked_at(x, module, _LOOKED):
        check_unit(*span(x), type(module).__name__)


def looked_at(x: Tensor, module: nn.Module, looked: WeakSet[nn.Module]) -> bool:
    """Whether the values of a batch are read: on a device only of the first one.

    Arguments:
        looked: The modules whose first batch was read, to which this one is added.
    """
    if x.device.type != "cpu":
        graph = x.is_cuda and torch.cuda.is_current_stream_capturing()
        if graph or x.is_meta or module in looked:
            return False
        looked.add(module)
    return bool(x.numel()) and type(x) is Tensor and not torch.compiler.is_compiling()


def check_images(x: Tensor, name: str, colour: bool = False) -> None:
    """Raise an error unless x holds images in floating point, their channel first.

    Images look channel-last if their last axis has 1, 3 or 4 entries and the two axes
    before it more than 4 each, in a ratio of at most 4: so (8, 8, 1) is refused, and
    feature maps (16, 3, 3), (64, 8, 4) are not.

    Arguments:
        name: The augmentation, for the message.
        colour: Whether there must be three channels, red, green and blue.
    """
    check_floats(x)
    if x.ndim != 4:
        raise ValueError(
            f"expected images of shape (n, channel, height, width) for {name}, got "
            f"{tuple(x.shape)}; reshape them, or for arrays pass parts that take any "
            "shape: Augment(Noise(0.1), Mask(0.2))"
        )
    first, second, last = x.shape[1:]
    low, high = sorted((first, second))
    if last in (1, 3, 4) and 4 < low <= high <= 4 * low:
        raise ValueError(
            f"expected images of shape (n, channel, height, width) for {name}, got "
            f"{tuple(x.shape)}, which looks like (n, height, width, channel); pass "
            "x.permute(0, 3, 1, 2)"
        )
    if colour and x.shape[1] != 3:
        raise ValueError(
            f"expected 3 channels (red, green, blue) for {name}, got {x.shape[1]}; "
            "only brightness and contrast take other images"
        )


def uniform(
    range_: tuple[float, float], shape: Sequence[int], x: Tensor
) -> Float[Tensor, "*shape"]:
    """Draws from U(low, high), with the dtype and device of x."""
    return x.new_empty(shape).uniform_(*range_)


def happens(
    p: float | Tensor, shape: Sequence[int], x: Tensor
) -> Bool[Tensor, "*shape"]:
    """Independent events of probability p, on the device of x."""
    return torch.rand(shape, dtype=wide(x), device=x.device) < p


def wide(x: Tensor) -> torch.dtype:
    """The type of x, at least float32: draws of fewer bits have other probabilities."""
    return torch.promote_types(x.dtype, torch.float32)


def sometimes(
    p: float, changed: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"]
) -> Float[Tensor, "n *event"]:
    """`changed` for each item with probability p, and x itself otherwise."""
    if p == 1:
        return changed
    return torch.where(per_item(happens(p, x.shape[:1], x), x), changed, x)


def per_item(value: Tensor, x: Tensor) -> Tensor:
    """One value for each item, (n,), reshaped to broadcast against x."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def _plain(value: Any) -> Range:
    if isinstance(value, tuple | list) or np.ndim(value):
        low, high = value
        return float(low), float(high)
    return float(value)
