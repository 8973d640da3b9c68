"""Random states and counts of data, of which no checkpoint knows."""

from collections.abc import Iterator, Mapping
from random import Random
from types import FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Generator, Tensor

from .copies import held_by, of_library
from .digests import digest

__all__ = ["moving"]

GENERATORS: tuple[type, ...] = (Random, Generator, np.random.Generator)
GENERATORS += (np.random.RandomState, np.random.BitGenerator)
DEPTH = 5  # of objects in objects


def moving(parts: Mapping[str, Any], *saved: Generator) -> dict[str, Any]:
    """The states of generators, and whole numbers, in samplers, data sets and views.

    Arguments:
        parts: The objects, by name.
        saved: The generators that checkpoints have.
    """
    seen = {id(generator) for generator in saved}
    each = (_within(name, part, seen, DEPTH) for name, part in parts.items())
    return {name: state for found in each for name, state in found}


def _within(
    name: str, value: Any, seen: set[int], depth: int
) -> Iterator[tuple[str, Any]]:
    if id(value) in seen or not depth or isinstance(value, Tensor | np.ndarray):
        return
    if isinstance(value, int) and not isinstance(value, bool):
        yield name, value
        return
    seen.add(id(value))
    if isinstance(value, GENERATORS):
        yield name, digest(_state(value))
        return
    function = isinstance(value, FunctionType | MethodType)
    if not function and of_library(type(value).__module__):
        if depth < DEPTH:  # torch's loaders and samplers alone are looked into
            return
        held: Mapping[str, Any] = getattr(value, "__dict__", {})
        held = {k: x for k, x in held.items() if not isinstance(x, int)}
    else:
        held = held_by(value) or {}
    for key, part in held.items():
        if key != "class":
            yield from _within(f"{name}.{key}", part, seen, depth - 1)


def _state(generator: Any) -> Any:
    if isinstance(generator, Random):
        return generator.getstate()
    if isinstance(generator, Generator):
        return generator.get_state()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return getattr(generator, "bit_generator", generator).state
