r"""Mixed precision: networks in bfloat16 under autocast, log-densities in float32.

A log-density sums many numbers of both signs, and a normaliser is a difference of large
ones: the 8 significant bits of bfloat16 suffice for networks, but for neither of these.
So an objective or a bound switches `torch.autocast` off in its `forward`
(`in_float32`), once per step, and on again around each network call (`lowered`), whose
output is cast to float32. A network inside a density, as in `guides.Flow` and
`guides.Content`, stays in float32. Tensors in float64 stay in float64.

The dtype of the networks is stored per thread, as autocast's own state is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from threading import local
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

__all__ = ["FULL_PRECISION", "Precision", "in_float32", "lowered", "lowering"]
__all__ += ["network_dtype"]

P = ParamSpec("P")
R = TypeVar("R")

HALF = (torch.bfloat16, torch.float16)


class _Networks(local):  # Dynamo cannot trace a ContextVar
    dtype: torch.dtype | None = None  # of networks, while autocast itself is off


_networks = _Networks()


class Precision(NamedTuple):
    """The precision of a training run.

    Arguments:
        autocast: The dtype of the networks; None means the dtype of their parameters.
        tf32: Whether matrix products of float32 tensors on a CUDA device round their
            factors to TF32 (11 significant bits), in densities as well.
    """

    autocast: torch.dtype | None = None
    tf32: bool = False

    def active(self, device: torch.device) -> AbstractContextManager[Any]:
        """A context with this precision, for views, forward and backward pass."""
        if self.tf32 and device.type == "cuda":
            return self._with_tf32()
        return nullcontext() if self.autocast is None else lowering(self.autocast)

    @contextmanager
    def _with_tf32(self) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            with lowering(self.autocast):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


FULL_PRECISION = Precision()


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: switch autocast off inside a function, except in `lowered`.

    For the `forward` of objectives, and other functions of tensors or nests of tensors
    that may be called under autocast. The first tensor determines the device. Without
    autocast the function is called as it is.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        kind = _device_type((*args, *kwargs.values()))
        if kind is None or not torch.is_autocast_enabled(kind):
            return function(*args, **kwargs)
        dtype = torch.get_autocast_dtype(kind)
        with lowering(dtype), torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return run


def lowered(network: Callable[..., Any], *inputs: Any) -> Any:
    """Return ``network(*inputs)``, under autocast if networks run in a lower precision.

    Outputs in half precision, a tensor or a nest of tensors, are cast to float32.
    Without autocast and outside of `lowering` they are returned unchanged.
    """
    kind = _device_type(inputs)
    dtype = None if kind is None else network_dtype(kind)
    if kind is None or dtype is None:
        return network(*inputs)
    with torch.autocast(kind, dtype):
        return tree_map_only(Tensor, _float32, network(*inputs))


@contextmanager
def lowering(dtype: torch.dtype | None) -> Iterator[None]:
    """A context in which `lowered`, and nothing else, runs under autocast to a dtype.

    Unlike `torch.autocast` it may enclose the views and the backward pass: views keep
    their precision, and gradients that of their parameters.
    """
    before, _networks.dtype = _networks.dtype, dtype
    try:
        yield
    finally:
        _networks.dtype = before


def network_dtype(kind: str) -> torch.dtype | None:
    """The dtype of networks on a device type; None without mixed precision."""
    on = torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else _networks.dtype


def _device_type(values: Iterable[Any]) -> str | None:
    """The device type of the first tensor, if autocast exists for it."""
    for value in values:
        if isinstance(value, Tensor):
            kind = value.device.type
            return kind if torch.amp.is_autocast_available(kind) else None
        if isinstance(value, tuple | list):
            found = _device_type(value)
            if found is not None:
                return found
    return None


def _float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x
