"""A digest of what an object is made of: its attributes, and the code that it runs.

By it two view samplers, schedules or methods are the same or not, in another process as
well. Bytecode and literals are compared only within one version of Python.
"""

import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from logging import Logger
from random import Random
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .copies import attributes, held_by, of_library
from .digests import digest

__all__ = ["PYTHON", "fingerprint"]

PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
PLAIN = bool, int, float, complex, str, bytes, range, Enum, torch.dtype, type(None)
# Every use changes them, or they lead to all else: they are no settings.
CHANGING: tuple[type, ...] = (torch.Generator, np.random.Generator, Random, Logger)
CHANGING += (np.random.RandomState, np.random.BitGenerator, Optimizer, LRScheduler)
CHANGING += (ModuleType,)
DEPTH = 20  # of objects in objects


def fingerprint(value: Any) -> str:
    """The digest of an object's public attributes, its class and its functions.

    Of functions and classes that belong to no library the code counts, with what it
    refers to. Of a module the tensors in its `state_dict` do not count.
    """
    return digest(*_parts(value, {}, DEPTH))


def _parts(value: Any, seen: dict[int, Any], depth: int) -> Iterator[Any]:
    """Plain values and arrays, which `digest` takes, in a fixed order."""
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, Tensor | np.ndarray):
        yield value
    elif id(value) in seen or not depth:
        yield "again"
    else:
        seen[id(value)] = value  # kept, so that no other object takes its place
        named = value if hasattr(value, "__qualname__") else type(value)
        yield getattr(named, "__qualname__", "")
        for name, part in _held(value).items():
            yield name
            yield from _parts(part, seen, depth - 1)


def _held(value: Any) -> Mapping[str, Any]:
    """What an object holds, by name."""
    if isinstance(value, CHANGING):
        return {}
    if isinstance(value, set | frozenset):
        return {"items": sorted(map(fingerprint, value))}
    if isinstance(value, tuple | list):
        return {str(i): part for i, part in enumerate(value)}
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, CodeType):
        read = {"bytes": value.co_code, "names": value.co_names}
        return read | {"literals": value.co_consts}
    held = dict(sorted((held_by(value) or {}).items()))  # it comes from sets
    if isinstance(value, FunctionType) and not of_library(value.__module__ or ""):
        return held | {"code": value.__code__}
    if isinstance(value, FunctionType | type) or not (own := attributes(value)):
        return held
    public = {k: x for k, x in own.items() if k[:1] != "_" and k != "training"}
    if isinstance(value, nn.Module):
        loose = value._non_persistent_buffers_set
        public |= {k: x for k, x in value._buffers.items() if k in loose}
        public |= value._modules
    return public | {"class": held.get("class")}
