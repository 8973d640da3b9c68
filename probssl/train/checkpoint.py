"""Checkpoints: one safetensors file each, whose header holds the rest as JSON.

One file is written under another name, flushed to the disk and renamed, so that there
is always a whole one. Nothing is pickled: a file can give values, never run code.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..processes import agreed_bytes, first
from .run import Run

__all__ = ["Checkpoints", "read", "write"]

# The first one has a single random state, that of one process.
FORMATS = ("probssl checkpoint 1", "probssl checkpoint 2")
LAST, BEST, HISTORY = "last.safetensors", "best.safetensors", "history.json"


class Checkpoints:
    """The folder of a run: its last epoch, its best one, and its history as JSON.

    Of several processes the first one alone reads and writes files.

    ``read(folder / "best.safetensors")["objective"]`` is a `state_dict`.

    Arguments:
        folder: None keeps nothing.
        every: So many epochs lie between two of the last one.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, every: int) -> None:
        self.folder, self.every = None if folder is None else Path(folder), every
        self.epoch = 0

    def begin(self, run: Run, resume: bool) -> None:
        """Go on from the last epoch, or write down the start, before any work is lost.

        Raises:
            FileExistsError: If there is a checkpoint, but nothing is to be resumed.
            FileNotFoundError: If the folder holds other files, but no checkpoint.
            ValueError: If the checkpoint is that of another objective or optimiser, or
                there is no folder to resume from.
        """
        if self.folder is None:
            if resume:
                raise ValueError(
                    "expected a folder to resume from, got checkpoint=None; name it"
                )
            return
        last = self.folder / LAST
        data = agreed_bytes(_found(self.folder, resume) if first() else b"")
        if data:
            run.load(_parsed(data, last), last)
            self.epoch = len(run.history)
        else:
            _write(last, run)

    def save(self, run: Run, best: bool) -> None:
        """Write down the epoch that is done, if it is the best or its turn has come."""
        if self.folder is not None and best:
            _write(self.folder / BEST, run)
        if len(run.history) % self.every == 0:
            self.close(run)

    def close(self, run: Run) -> None:
        """Write down the last epoch, unless it was."""
        if self.folder is not None and self.epoch != len(run.history):
            _write(self.folder / LAST, run)
            if first():
                _replace(self.folder / HISTORY, run.history.to_json().encode())
            self.epoch = len(run.history)

    @property
    def remedy(self) -> str:
        """What to do when the parameters are lost."""
        advice = "lower learning_rate or set clip"
        if self.folder is None:
            return f"{advice}; with checkpoint=FOLDER the epochs before would be kept"
        return f"{advice}; {self.folder / LAST} holds the run after epoch {self.epoch}"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dictionaries, lists and tuples of tensors and plain values.

    Raises:
        TypeError: If there is anything else in it.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_pack(state, "", tensors))
    data = safetensors.torch.save(tensors, {"format": FORMATS[-1], "state": plain})
    _replace(path, data)


def read(path: Path) -> dict[str, Any]:
    """What was written, its tensors on the CPU.

    Raises:
        ValueError: If the file is no checkpoint.
    """
    return _parsed(path.read_bytes(), path)


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    tensors = safetensors.torch.load(data)
    end = 8 + int.from_bytes(data[:8], "little")  # of the header, behind its length
    header = json.loads(data[8:end]).get("__metadata__", {})
    if header.get("format") not in FORMATS:
        raise ValueError(
            f"expected {FORMATS[-1]!r} in the header of {path}, got "
            f"{header.get('format')!r}; pass the folder of a run of fit"
        )
    state = _unpack(json.loads(header["state"]), tensors)
    if header["format"] == FORMATS[0]:
        state["random"] = [state["random"] | {"order": state.pop("order")}]
    return state


def _found(folder: Path, resume: bool) -> bytes:
    """The checkpoint to go on from; empty if there is none, and the folder is made."""
    last = folder / LAST
    if last.exists() and not resume:
        raise FileExistsError(
            f"expected a folder without a checkpoint, got {last}; pass resume=True "
            "to go on from it, or another folder"
        )
    if last.exists():
        return last.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    others = [f.name for f in folder.iterdir() if f.name[0] != "."]
    if resume and others:
        raise FileNotFoundError(
            f"expected {last} to resume from, got a folder with {others[0]!r} but "
            "no checkpoint; pass the folder of the run, or an empty one"
        )
    return b""


def _write(path: Path, run: Run) -> None:
    """Write a run, whose state all processes have a part in."""
    state = run.state()
    if first():
        write(path, state)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON, its tensors under their names; containers keep their types."""
    if isinstance(value, Tensor):
        # A copy: tied parameters share their memory, which the format does not allow.
        tensors[name] = value.detach().to(
            "cpu", copy=True, memory_format=torch.contiguous_format
        )
        return {"tensor": name}
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        inner = f"{name}." if name else ""
        pairs = [[k, _pack(v, f"{inner}{k}", tensors)] for k, v in value.items()]
        return {kind: pairs}
    if isinstance(value, list | tuple):
        parts = [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"expected tensors and plain values in a checkpoint, got "
        f"{type(value).__name__} at {name}; keep it in a buffer, or out of state_dict"
    )


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_unpack(inner, tensors))
    pairs = {key: _unpack(part, tensors) for key, part in inner}
    return Counter(pairs) if kind == "counter" else pairs


def _replace(path: Path, data: bytes) -> None:
    """Write a file at once or not at all, also when the machine stops in between."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
