r"""Mixed precision: networks in a lower one, everything that is a density in float32.

A log-density sums many numbers of both signs, and a normaliser is a difference of large
ones: with the 8 binary digits of bfloat16 little is left of either. Networks bear it.
So where `torch.autocast` is on, objectives and joints turn it off for what they compute
(`in_float32`), and on again for the networks they call (`lowered`), whose output comes
back in float32. A network that is part of a density, as in `guides.Flow` and
`guides.Content`, counts as one. Numbers in float64 stay in float64.

What is on inside belongs to a thread, as autocast itself does.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import local
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["in_float32", "lowered", "lowering", "network_dtype"]

P = ParamSpec("P")
R = TypeVar("R")

HALF = (torch.bfloat16, torch.float16)


class _Networks(local):
    """What networks are to be lowered to, while autocast itself is off.

    Of each thread, as autocast's own state; Dynamo cannot trace a ContextVar.
    """

    dtype: torch.dtype | None = None


_networks = _Networks()


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate what computes densities: autocast is off in it, but for `lowered`.

    For the `forward` of objectives, and other functions of tensors, or of nests of
    them, that may be called where autocast is on. The first tensor tells the device.
    Where autocast is off, nothing is done.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = _kind((*args, *kwargs.values()))
        if kind is None or not torch.is_autocast_enabled(kind):
            return function(*args, **kwargs)
        dtype = torch.get_autocast_dtype(kind)
        with lowering(dtype), torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return run


def lowered(network: Callable[..., Any], *inputs: Any) -> Any:
    """Return ``network(*inputs)``, under autocast if networks are to be lowered.

    What it returns in half precision, a tensor or a nest of them, becomes float32.
    Without autocast, and outside of `lowering`, it is returned as it is.
    """
    kind = _kind(inputs)
    dtype = None if kind is None else network_dtype(kind)
    if kind is None or dtype is None:
        return network(*inputs)
    with torch.autocast(kind, dtype):
        return _single(network(*inputs))


@contextmanager
def lowering(dtype: torch.dtype | None) -> Iterator[None]:
    """Let what is called by `lowered`, and nothing else, run under autocast.

    Unlike `torch.autocast` it may be around the making of views and the way back: views
    keep their precision, and gradients that of what they are gradients of.

    Arguments:
        dtype: That of the matrix products of networks; None leaves them alone.
    """
    before, _networks.dtype = _networks.dtype, dtype
    try:
        yield
    finally:
        _networks.dtype = before


def network_dtype(kind: str) -> torch.dtype | None:
    """What networks are lowered to, here and now; None means they are not.

    Arguments:
        kind: That of the device: ``"cpu"``, ``"cuda"``.
    """
    on = torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else _networks.dtype


def _kind(values: Iterable[Any]) -> str | None:
    """The kind of device of the first tensor, if there is autocast for it."""
    for value in values:
        if isinstance(value, Tensor):
            kind = value.device.type
            return kind if torch.amp.is_autocast_available(kind) else None
        if isinstance(value, tuple | list):
            found = _kind(value)
            if found is not None:
                return found
    return None


def _single(output: Any) -> Any:
    def cast(x: Tensor) -> Tensor:
        return x.float() if x.dtype in HALF else x

    return tree_map_only(Tensor, cast, output)
