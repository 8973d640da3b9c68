"""Flush denormals to zero: float32 numbers below 1e-38, with which CPUs are slow.

Squares of vanishing gradients become denormal, and Adam's averages stay so for
thousands of steps, each many times slower (`benchmarks/denormals.py`). They do not
change a parameter.
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
    """A context in which torch's CPU threads flush denormals to zero."""
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
    """Switch flushing in this thread and in the threads of torch's OpenMP pool."""
    torch.set_flush_denormal(on)
    # torch switches the calling thread only; existing threads keep their mode.
    call = _Call(lambda data: bool(torch.set_flush_denormal(on)) and None)
    for library in _libraries():
        library.GOMP_parallel(call, None, torch.get_num_threads(), 0)


@cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """The loaded OpenMP libraries with GNU's call of a function in all threads."""
    paths = [d["filepath"] for d in threadpool_info() if d["user_api"] == "openmp"]
    found = map(ctypes.CDLL, paths)
    return tuple(library for library in found if hasattr(library, "GOMP_parallel"))
