"""Encoder and decoder base classes, fully connected layers, and checks of sizes."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..arguments import whole
from ..covariates import Covariates, declares

__all__ = [
    "Decoder",
    "Encoder",
    "Reshape",
    "called",
    "called_plainly",
    "check_items",
    "dense",
    "features_checked",
    "features_of",
    "features_width",
    "halvings",
    "is_rows",
    "network",
    "output_error",
    "output_of",
    "recorded",
    "sizes",
    "takes",
    "unmoved",
    "with_features",
]

MISFITS = ("cannot be multiplied", "to have", "normalized_shape", "running_mean should")
LONE = "more than 1 value per channel"  # what torch says of batch norm of one row
UNINITIALISED = (UninitializedBuffer, UninitializedParameter)  # of lazy layers


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
        self.trunk = network("trunk", trunk)
        self.head = nn.Linear(self.width, self.dim)

    def features(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n width"]:
        """Return the activations before the head."""
        return self.trunk(x)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n dim"]:
        return self.head(features_checked(self, x, self.features(x), self.width))


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
        if not isinstance(f, Tensor):
            raise output_error(encoder, args[0], f, "width", ".features")
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
        if buffer is not None and not isinstance(buffer, UNINITIALISED)
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
    covariates: Covariates | None = None,
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
    if covariates is not None and declares(features):
        features = partial(features, covariates=covariates)
    with unmoved(encoder):
        f: Tensor = features(x)
    return f


def with_features(
    encoder: nn.Module,
    x: Float[Tensor, "n *event"],
    covariates: Covariates | None = None,
) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n width"]]:
    """Return ``encoder(x)``, one row per item, and `features_of` the encoder."""
    if isinstance(encoder, Encoder) and called_plainly(encoder, Encoder):
        features = called(encoder, x, encoder.features)
        features = features_checked(encoder, x, features, encoder.width)
        return encoder.head(features), features
    with recorded(encoder) as seen:
        z = output_of(encoder, x, covariates).flatten(1)
    return z, features_of(encoder, x, z, seen, covariates)


def output_of(
    network: nn.Module, x: Tensor, covariates: Covariates | None = None
) -> Float[Tensor, "n dim *rest"]:
    """Return ``network(x)``; raise an error unless it has a row of floats per item."""
    call = None if covariates is None else partial(network, covariates=covariates)
    z = called(network, x, call)
    if not is_rows(z, len(x)):
        raise output_error(network, x, z)
    return z


def called(
    network: Callable[..., Any],
    x: Tensor,
    call: Callable[[Tensor], Any] | None = None,
) -> Any:
    """Return ``network(x)``; a ValueError names it where its layers have other sizes.

    Or where it changes x in place: others are to see the same x.

    Arguments:
        call: A method of the network, by default the network itself.
    """
    counted = not torch.compiler.is_compiling() and not x.is_inference()
    before = x._version if counted else 0
    try:
        output = network(x) if call is None else call(x)
        if counted and x._version != before:
            raise ValueError(
                f"expected {type(network).__name__} to leave its input as it is, got a "
                "change in place, as by Dropout(inplace=True) in front, or x.sub_(m); "
                "write x = x - m, or let forward begin with x = x.clone()"
            )
        return output
    except ValueError as error:
        if LONE not in str(error):
            raise
        raise ValueError(
            "expected at least two items or views in every batch for the batch norm of "
            f"{type(network).__name__}, got {len(x)}; take a larger batch_size, "
            "drop_last=True for a DataLoader, or group or layer norm"
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        own = {p.dtype for p in getattr(network, "parameters", tuple)()} - {x.dtype}
        if own and "same" in reason:
            raise ValueError(
                f"expected {type(network).__name__} to take numbers of {x.dtype}, got "
                f"parameters of {', '.join(map(str, own))}; give networks and "
                "data one dtype with .float(); fit(precision=torch.bfloat16) mixes "
                "precisions"
            ) from error
        if not any(words in reason for words in MISFITS):
            error.add_note(
                f"inside {type(network).__name__}, given {len(x)} items or views of "
                f"shape {tuple(x.shape[1:])}; a view sampler keeps the shape that the "
                "network takes"
            )
            raise
        raise ValueError(
            f"expected {type(network).__name__} to take an input of shape "
            f"{tuple(x.shape)}, got layers of other sizes ({reason}); build it for "
            f"items of shape {tuple(x.shape[1:])}"
        ) from error


def takes(name: str, value: Any, *given: Any, **named: Any) -> None:
    """Raise a TypeError for a function or module that is not called with so much."""
    call = value.forward if isinstance(value, nn.Module) else value
    try:
        signature(call).bind(*given, **named)
    except ValueError:  # of a built-in function
        return
    except TypeError as error:
        shown = getattr(value, "__name__", type(value).__name__)
        many = len(given) + len(named)
        raise TypeError(
            f"expected {name} to take {many} argument{'s' if many > 1 else ''}, got "
            f"{shown}, which does not ({error}); wrap it in one that does"
        ) from None


def is_rows(z: Any, n: int) -> bool:
    """Whether it is a dense tensor of real numbers (n, dim) or (n, dim, ...)."""
    dense = isinstance(z, Tensor) and z.layout == torch.strided
    return dense and z.is_floating_point() and z.ndim > 1 and len(z) == n


def output_error(
    network: nn.Module, x: Tensor, z: Any, shape: str = "dim", method: str = ""
) -> TypeError | ValueError:
    """The error for a network whose output is no tensor of a row for each item."""
    name, expected = type(network).__name__ + method, f"a tensor ({len(x)}, {shape})"
    if isinstance(z, Tensor):
        got = f"shape {tuple(z.shape)}, {z.dtype}"
        got += "" if z.layout == torch.strided else ", sparse"
        hint = "return a row of floats for each of the items, which lie along axis 0"
        return ValueError(
            f"expected {name} to return {expected} for {tuple(x.shape)}, got {got}; "
            f"{hint}"
        )
    keys = f" with {', '.join(map(str, z))}" if isinstance(z, Mapping) else ""
    return TypeError(
        f"expected {name} to return {expected}, got {type(z).__name__}{keys}; wrap it "
        "in a module whose forward returns the tensor alone, such as "
        "net(x).pooler_output, net(x)['z'] or net(x)[0]"
    )


def features_checked(
    encoder: nn.Module, x: Tensor, f: Any, width: int
) -> Float[Tensor, "n width"]:
    """Return the features of an encoder; raise an error unless they are (n, width)."""
    if not is_rows(f, len(x)):
        raise output_error(encoder, x, f, str(width), ".features")
    if f.shape[1:] != (width,):
        raise ValueError(
            f"expected {type(encoder).__name__}.features to return ({len(x)}, {width}) "
            f"for width={width}, got shape {tuple(f.shape)}; set width to the number "
            "of features of an item"
        )
    return f


def check_no_covariates(**parts: Any) -> None:
    """Raise a TypeError for a part that takes covariates, where there are none."""
    for name, part in parts.items():
        if declares(part):
            raise TypeError(
                f"expected {name} to take one input, as {type(part).__name__}(x), got "
                "forward(x, covariates); only encoder, decoder, likelihood and guide "
                "of a ps.Joint get covariates: leave them out here"
            )


def network(name: str, value: nn.Module, covariates: bool = False) -> nn.Module:
    """Return a network; raise an error if it cannot be called as ``module(x)``.

    Arguments:
        covariates: Whether it may take covariates too.

    Raises:
        TypeError: If it needs other inputs than one, or takes covariates elsewhere.
        ValueError: If it has layers that are not initialised, such as ``LazyLinear``.
    """
    if not covariates:
        check_no_covariates(**{name: value})
    needed = _needed(value.forward)
    if needed is not None and covariates:
        needed = [each for each in needed if each != "covariates"]
    if needed is not None and len(needed) > 1:
        raise TypeError(
            f"expected {name} to take one input, as {type(value).__name__}(x), got "
            f"forward({', '.join(needed)}); wrap it in a module whose forward takes x"
        )
    for parameter in (*value.parameters(), *value.buffers()):
        if isinstance(parameter, UNINITIALISED):
            raise ValueError(
                f"expected {name} with all its layers initialised, got "
                f"{type(value).__name__} with a lazy one; call it once on some data "
                "before, or give the sizes of layers"
            )
    return value


def _needed(call: Any) -> list[str] | None:
    """The names of arguments that a call needs; None if that is not known."""
    try:
        parameters = signature(call).parameters.values()
    except (TypeError, ValueError):
        return None
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = (p for p in parameters if p.default is p.empty and p.kind not in several)
    return [p.name for p in needed]


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
        self.net = network("net", net)

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n *event"]:
        check_items(z, (self.dim,))
        x = output_of(self.net, z)
        if x[:1].numel() != math.prod(self.event_shape) * len(x[:1]):
            raise ValueError(
                f"expected {type(self.net).__name__} to return as many numbers as "
                f"{self.event_shape} for each item, got shape {tuple(x.shape)}; let "
                f"its last layer have {math.prod(self.event_shape)} outputs"
            )
        return x.reshape(len(z), *self.event_shape)


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
    if x.shape[1:] == event_shape and x.ndim:
        return
    expected, own = ", ".join(["n", *map(str, event_shape)]), tuple(x.shape[1:])
    hint = "put all items along one first axis, as x.flatten(0, 1) does for views"
    if x.ndim == 2 and len(event_shape) == 1:
        hint = "give the columns that it was built for, in their order"
    elif x.ndim == 1 + len(event_shape):
        hint = "resize the items"
    raise ValueError(
        f"expected ({expected}), got {tuple(x.shape)}; build the network for items of "
        f"shape {own}, or {hint}"
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
