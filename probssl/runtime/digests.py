"""Digests of arrays, tensors and settings, by which two of them are the same or not."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["digest"]

ROWS = 4096  # of an array that may lie in a file


def digest(*parts: Any) -> str:
    """The first 16 hexadecimal digits of SHA-256, the same on every machine.

    Arguments:
        parts: Tensors, arrays, and tuples, lists and mappings of these; of all else
            its `repr`.
    """
    found = hashlib.sha256()
    for chunk in _chunks(parts):
        found.update(chunk)
    return found.hexdigest()[:16]


def _chunks(part: Any) -> Iterator[bytes]:
    if isinstance(part, Mapping):
        part = [*part.items()]
    if isinstance(part, tuple | list):
        yield f"{len(part)} parts;".encode()
        for each in part:
            yield from _chunks(each)
    elif isinstance(part, Tensor):
        numbers = part.detach().cpu().to_dense().resolve_conj().resolve_neg()
        yield f"{part.dtype} {tuple(part.shape)};".encode()
        yield numbers.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(part, np.ndarray) and part.ndim and part.dtype.kind in "biufc":
        kind = part.dtype.newbyteorder("<")
        yield f"{kind.str} {part.shape};".encode()
        for first in range(0, len(part), ROWS):
            yield part[first : first + ROWS].astype(kind).tobytes()
    elif isinstance(part, np.ndarray):
        yield from _chunks(part.tolist())
    else:
        yield f"{part!r};".encode()
