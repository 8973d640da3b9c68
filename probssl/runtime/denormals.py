"""Numbers too small to be normal, below 1e-38 in float32, taken for zero.

Squares of vanishing gradients come there, and Adam keeps them for thousands of steps; a
processor is many times slower with them than with others (`benchmarks/denormals.py`).
What they add to a parameter is nothing.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import threadpool_info

__all__ = ["flushed"]

_Call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@contextmanager
def flushed(device: torch.device) -> Iterator[None]:
    """A context in which torch's threads on a processor compute without them."""
    before = _flushing()
    if device.type != "cpu" or before:
        yield
        return
    _set(True)
    try:
        yield
    finally:
        _set(before)


def _flushing() -> bool:
    return not torch.tensor(1e-39).mul(0.5).item()


def _set(on: bool) -> None:
    """Set it in this thread, and in those that OpenMP has ready for torch."""
    torch.set_flush_denormal(on)
    # torch sets it in the thread that calls; threads that exist keep what they have.
    call = _Call(lambda data: bool(torch.set_flush_denormal(on)) and None)
    for library in _libraries():
        library.GOMP_parallel(call, None, torch.get_num_threads(), 0)


@cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """The OpenMP that is loaded, which GNU's interface calls in all of its threads."""
    paths = [d["filepath"] for d in threadpool_info() if d["user_api"] == "openmp"]
    found = map(ctypes.CDLL, paths)
    return tuple(library for library in found if hasattr(library, "GOMP_parallel"))
