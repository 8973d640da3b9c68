"""Checksums of objects by their content, the same in every process.

Nothing is written that could be unpickled: an object is taken apart as `pickle` would
do it, and the parts are hashed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from joblib.hashing import Hasher, NumpyHasher
from torch import Tensor

__all__ = ["checksum"]


def checksum(value: Any, stand_in: Callable[[Any], Any]) -> str:
    """The checksum of a value.

    Arguments:
        stand_in: Returns what is hashed in place of an object, or the object itself.

    Raises:
        Exception: Of any kind, where an object cannot be taken apart.
    """
    return str(_Hasher(stand_in).hash(value))[:8]


class _Hasher(NumpyHasher):
    """joblib's, with an order of sets and dictionaries that no hash seed changes.

    joblib sorts by `hash` what has no order, and leaves frozen sets as they are. Torch
    pickles where a tensor lies, and NumPy's masks are no part of the array.
    """

    def __init__(self, stand_in: Callable[[Any], Any]) -> None:
        super().__init__()
        self.stand_in = stand_in
        self.met: dict[int, tuple[int, Any]] = {}  # what has a stand-in

    def save(self, obj: Any) -> None:
        if id(obj) in self.met:
            super().save(("again", self.met[id(obj)][0]))
            return
        stand_in = self.stand_in(obj)
        if stand_in is not obj:
            self.met[id(obj)] = len(self.met), obj
            obj = stand_in
        if isinstance(obj, set | frozenset):
            parts = sorted(checksum(part, self.stand_in) for part in obj)
            obj = type(obj).__name__, parts
        elif isinstance(obj, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(obj)
            obj = "masked", np.ma.getdata(obj), mask, obj.fill_value
        elif isinstance(obj, Tensor):
            obj = "tensor", *_arrays(obj)
        super().save(obj)

    def _batch_setitems(self, items: Any, *args: Any) -> None:
        def order(item: tuple[Any, Any]) -> str:
            return checksum(item[0], self.stand_in)

        ordered = iter(sorted(items, key=order))
        super(Hasher, self)._batch_setitems(ordered, *args)  # not joblib's, which sorts


def _arrays(tensor: Tensor) -> tuple[Any, ...]:
    """The numbers of a tensor, for a sparse one those that it stores."""
    tensor = tensor.detach().cpu()
    if tensor.is_quantized:
        return str(tensor.dtype), *_arrays(tensor.dequantize())
    if tensor.layout != torch.strided:
        tensor = tensor.to_sparse_coo().coalesce()
        parts = tensor.indices(), tensor.values()
        return tuple(tensor.shape), *(_arrays(part) for part in parts)
    numbers = tensor.resolve_conj().resolve_neg().contiguous()
    kind, shape = str(tensor.dtype), tuple(tensor.shape)
    return kind, shape, numbers.reshape(-1).view(torch.uint8).numpy()
