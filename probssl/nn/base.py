"""Encoder and decoder base classes, fully connected layers, and checks of sizes."""

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

from ..arguments import whole

__all__ = [
    "Decoder",
    "Encoder",
    "Reshape",
    "called_plainly",
    "check_items",
    "dense",
    "features_of",
    "features_width",
    "halvings",
    "recorded",
    "sizes",
    "unmoved",
    "with_features",
]


class Encoder(nn.Module):
    r"""An encoder with a linear head: z = head(features(x)).

    Objectives call it, and its output is z, or the location of q(z|x). A guide makes
    the spread of q(z|x) by a second head on `features`. A subclass may override
    `forward`, `features`, or both.

    Arguments:
        trunk: The network (n, \*event) -> (n, width), also called the backbone.
        width: The number of features that `trunk` returns.
        dim: The dimension of z.
    """

    def __init__(self, trunk: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.width, self.dim = whole("width", width), whole("dim", dim)
        self.trunk, self.head = trunk, nn.Linear(self.width, self.dim)

    def features(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n width"]:
        """Return the activations before the head."""
        return self.trunk(x)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n dim"]:
        return self.head(self.features(x))


def called_plainly(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module runs ``kind.forward`` and nothing else.

    Not so with an overridden `forward`, a forward or backward hook on the module
    itself, or a compiled call (``module.compile()``).
    """
    plain = type(module).forward is kind.forward and "forward" not in vars(module)
    return plain and module._compiled_call_impl is None and not hooked(module)


def hooked(module: nn.Module) -> bool:
    """Whether a module itself has hooks that run when it is called."""
    forward = module._forward_pre_hooks or module._forward_hooks
    return bool(forward or module._backward_pre_hooks or module._backward_hooks)


def features_width(encoder: nn.Module) -> int | None:
    """The number of an encoder's features, None where it has no method `features`.

    A submodule of that name, as in torchvision's networks, is no such method.
    """
    features: Any = getattr(encoder, "features", None)
    width: Any = getattr(encoder, "width", None)
    method = callable(features) and not isinstance(features, nn.Module)
    try:
        return operator.index(width) if method and width is not None else None
    except TypeError:  # not the number of features
        return None


@contextmanager
def recorded(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what ``encoder.features`` returns to calls of the encoder meanwhile."""
    seen: list[Tensor] = []
    own = vars(getattr(encoder, "_orig_mod", encoder))  # of what was compiled
    if features_width(encoder) is None:
        yield seen
        return
    features: Any = encoder.features
    before = {"features": own["features"]} if "features" in own else {}

    def record(*args: Any, **options: Any) -> Tensor:
        f = features(*args, **options)
        seen.append(f.clone())  # the caller may change f in place
        return f

    own["features"] = record
    try:
        yield seen
    finally:
        del own["features"]
        own.update(before)


@contextmanager
def unmoved(module: nn.Module) -> Iterator[list[Tensor]]:
    """Let calls of a module write to copies of its buffers, which are yielded."""
    buffers = [
        (part._buffers, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and not isinstance(buffer, UninitializedBuffer)
    ]
    try:
        for own, name, _, copy in buffers:
            own[name] = copy
        yield [copy for *_, copy in buffers]
    finally:
        for own, name, buffer, _ in buffers:
            own[name] = buffer


def features_of(
    encoder: nn.Module,
    x: Float[Tensor, "n *event"],
    z: Float[Tensor, "n dim"],
    seen: Sequence[Tensor],
) -> Float[Tensor, "n width"]:
    """Return the features of z = encoder(x); z where the encoder has no such method.

    They are those that were `recorded` in the call, if it made them once. Otherwise a
    second pass makes them, which leaves buffers as they are.
    """
    if features_width(encoder) is None:
        return z
    if len(seen) == 1 and len(seen[0]) == len(x):
        return seen[0].to(torch.promote_types(seen[0].dtype, z.dtype))
    features: Any = encoder.features
    with unmoved(encoder):
        f: Tensor = features(x)
    return f


def with_features(
    encoder: nn.Module, x: Float[Tensor, "n *event"]
) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n width"]]:
    """Return ``encoder(x)``, one row per item, and `features_of` the encoder."""
    if isinstance(encoder, Encoder) and called_plainly(encoder, Encoder):
        features = encoder.features(x)
        return encoder.head(features), features
    with recorded(encoder) as seen:
        z = encoder(x).flatten(1)
    return z, features_of(encoder, x, z, seen)


class Decoder(nn.Module):
    r"""A network from z to the parameters of a likelihood: unbounded means or logits.

    Arguments:
        net: The network from (n, dim) to (n, \*event), or to as many numbers in
            another shape.
        dim: The dimension of z.
        event_shape: The shape of one x.
    """

    def __init__(self, net: nn.Module, dim: int, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.event_shape = whole("dim", dim), sizes(event_shape=event_shape)
        self.net = net

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n *event"]:
        check_items(z, (self.dim,))
        return self.net(z).reshape(len(z), *self.event_shape)


class Reshape(nn.Module):
    """Reshape each item; the first module of every trunk, which checks its input."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        check_items(x, self.before)
        return x.reshape(len(x), *self.after)


def dense(*widths: int) -> list[nn.Module]:
    """Fully connected layers of these widths, each followed by ReLU."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers


def halvings(shape: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """Sizes of an image halved repeatedly, rounded up, the largest first."""
    least = 2**times
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(
            f"expected event_shape (channel, height, width) of at least {least} x "
            f"{least} pixels, got {shape}; take a fully connected network instead"
        )
    _, height, width = shape
    halves = [2**i for i in range(times + 1)]
    return [(math.ceil(height / half), math.ceil(width / half)) for half in halves]


def check_items(x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless x has the shape (n, \\*event_shape)."""
    if x.shape[1:] != event_shape or x.ndim == 0:
        expected = ", ".join(["n", *map(str, event_shape)])
        raise ValueError(
            f"expected ({expected}), got {tuple(x.shape)}; put all items along one "
            "first axis, as x.flatten(0, 1) does for views (batch, view, ...)"
        )


def sizes(**named: Sequence[int]) -> tuple[int, ...]:
    """Return the named argument as a tuple of positive ints, else raise a ValueError.

    Example:
        >>> sizes(hidden=[64, 32])
        (64, 32)
    """
    ((name, values),) = named.items()
    try:
        sizes = tuple(map(operator.index, values))
    except TypeError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise ValueError(
            f"expected {name} as a tuple of positive integers, got {values!r}; data x "
            "(n, ...) have event shape tuple(x.shape[1:]), (50,) for rows of 50 numbers"
        )
    return sizes
