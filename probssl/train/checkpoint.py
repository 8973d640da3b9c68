"""The file of a checkpoint: what is written and read, and whether it fits a run.

A checkpoint is one safetensors file, whose header holds all that is no tensor as JSON.
It is replaced as a whole (`runtime.files`), so that a complete one always exists.
Nothing is pickled: a file can give values, never run code.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..reading import digest, guarded, parsed, stored
from ..runtime import files
from ..runtime.buffers import storable
from .history import check_rows

__all__ = ["OBJECTIVE", "check_fits", "class_of", "read", "read_run", "write"]

OBJECTIVE = "objective"  # the setting that names its class

# The first has the random state of a single process, the last a place in an epoch.
FORMATS = tuple(f"probssl checkpoint {number}" for number in (1, 2, 3))


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint: nested containers of tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_pack(state, "", tensors))
    kind = FORMATS[1 if state.get("place") is None else 2]
    texts = {"format": kind, "state": plain, "digest": digest(plain, tensors)}
    data = safetensors.torch.save(tensors, texts)
    files.write(path, data)


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        ValueError: If the file is no checkpoint, or damaged.
    """
    hint = "restore it, or take another folder to start anew"
    with guarded(path, "fit writes it", hint):
        tensors, texts = stored(path, path.parent)
        if texts.get("format") not in FORMATS:
            raise ValueError(
                f"expected {FORMATS[1]!r} in the header of {path}, got "
                f"{texts.get('format')!r}; pass the folder of a run of fit"
            )
        plain = texts["state"]
        if texts.get("digest", found := digest(plain, tensors)) != found:
            raise ValueError("its digest is that of other contents")
        state = _unpack(parsed(plain.encode(), constants=True), tensors)
        if texts["format"] == FORMATS[0]:
            state["random"] = [state["random"] | {"order": state.pop("order")}]
    return state


# Parts of an optimiser's state that have the shapes of their parameters.
MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum"}
MOMENTS |= {"square_avg", "acc_delta", "grad_avg", "exp_inf", "prev", "step_size"}
# What the state of a run holds; older files lack the last ones.
STATE: dict[str, Any] = {"objective": dict, "optimizer": dict, "history": list}
STATE |= {"scheduler": dict | None, "steps": int, "stopping": dict}
STATE |= {"random": list}
NEWER: dict[str, Any] = {"compiled": bool | None, "place": dict | None}
NEWER |= {"setting": dict, "unsaved": dict, "views": dict, "frozen": list}
STOPPING = {"monitor", "value", "epoch", "kept", "unsaved"}  # of `EarlyStopping.state`


def read_run(path: Path) -> dict[str, Any]:
    """The state of a run, read from a checkpoint."""
    state = read(path)
    with guarded(path, "fit writes it", "restore it, or take another folder"):
        _check_state(state)
    return state


def _check_state(state: Any) -> None:
    """Raise an error for a state that `Run.state` did not make."""
    kinds = STATE | NEWER
    for name in STATE.keys() | state.keys():
        if not isinstance(state[name], kinds[name]):
            raise ValueError(f"{name} is no {kinds[name]}")
    if not all(isinstance(name, str) for name in state.get("frozen", [])):
        raise ValueError("frozen are no names")
    stopping, random = state["stopping"], state["random"]
    if (place := state.get("place")) is not None:
        numbers = [place[name] for name in ("first", "items", "seconds")]
        if not all(type(x) in (int, float) for x in numbers + place["total"]):
            raise ValueError("the place in an epoch is none")
        random = [*random, *place["opening"]]
    others = [state.get(name, {}) for name in ("unsaved", "views")]
    for parts in (*random, *others, stopping.get("unsaved", {})):
        for name, x in parts.items():
            if not (isinstance(name, str) and isinstance(x, Tensor)):
                raise ValueError(f"{name} is no tensor")
    check_rows(state["history"])
    if state["steps"] < 0 or not all(
        isinstance(text, str)
        for pair in state.get("setting", {}).items()
        for text in pair
    ):
        raise ValueError("steps or setting")
    if not STOPPING - {"unsaved"} <= stopping.keys() <= STOPPING:
        raise ValueError(f"{', '.join(map(str, stopping))} in stopping")
    if (
        type(stopping["value"]) not in (int, float)
        or type(stopping["epoch"]) is not int
    ):
        raise ValueError("the epoch and the value in stopping are no numbers")
    if not isinstance(stopping["kept"], dict | None):
        raise ValueError("kept is no state_dict")


def check_fits(
    objective: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    current: Mapping[str, Any],
    origin: object,
) -> None:
    """Raise a ValueError if a saved state is that of another objective or optimiser.

    Arguments:
        current: The state of the run that would take the saved one.
    """
    name, other = class_of(objective), state.get("setting", {}).get(OBJECTIVE)
    got = (
        "one of another, or with other arguments"
        if other is None
        else f"one of {other}"
    )
    got = "one with other arguments" if other == name else got
    lead = f"expected a checkpoint of this {name}, got {got}: "
    for part in ("objective", "optimizer", "scheduler"):
        saved, built = (_entries(s[part]) for s in (state, current))
        _check(saved, built, f"the {part} in {origin}", lead * (part == "objective"))
    if (kept := state["stopping"]["kept"]) is not None:
        built = _entries(current["objective"])
        _check(_entries(kept), built, f"the best epoch in {origin}")
    _check_numbers(objective, optimizer, state)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value for JSON; its tensors are added to `tensors` under their names."""
    if isinstance(value, Tensor):
        # A copy: safetensors does not allow tied parameters, which share memory.
        tensors[name] = storable(name, value)
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


def _entries(state: Mapping[str, Any] | None) -> dict[str, str]:
    """The keys of a state, each with the property of its value that must agree.

    The state of an optimiser per parameter is left out: a new optimiser has none.
    """
    if state is None:
        return {}
    if "param_groups" in state:
        groups = enumerate(state["param_groups"])
        state = {f"{i}.{key}": v for i, group in groups for key, v in group.items()}
    return {key: _kind(value) for key, value in state.items()}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        whole = not (value.is_floating_point() or value.is_complex())
        return f"shape {tuple(value.shape)}" + " of whole numbers" * whole
    if isinstance(value, list | tuple):
        kinds = {_kind(part) for part in value} - {"a value", "a number"}
        others = f" with {', '.join(sorted(kinds))}" if kinds else ""
        return f"{len(value)} entries{others}"
    if isinstance(value, str | Mapping):
        return "a text" if isinstance(value, str) else "a dictionary"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "NaN" if math.isnan(value) else "a number"
    return "a value"


def _check_numbers(
    objective: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]
) -> None:
    """Raise a ValueError for parameters that are not finite, or moments of others."""
    for name, _ in objective.named_parameters():
        if not state["objective"][name].isfinite().all():
            raise ValueError(f"{name} is not finite")
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    saved = state["optimizer"]["param_groups"]
    numbers = [number for group in saved for number in group["params"]]
    states = [
        {k: _kind(x)[:5] for k, x in s.items()}
        for s in state["optimizer"]["state"].values()
    ]
    if any(each != states[0] for each in states):
        raise ValueError("the optimiser has other numbers for some parameters")
    for number, parameter in zip(numbers, parameters, strict=True):
        for name, moment in state["optimizer"]["state"].get(number, {}).items():
            if name in MOMENTS and moment.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(moment.shape)}")


def class_of(objective: nn.Module) -> str:
    """The name of its class, also where torch compiled it."""
    return type(getattr(objective, "_orig_mod", objective)).__name__


def _check(
    saved: Mapping[str, str], built: Mapping[str, str], what: str, lead: str = ""
) -> None:
    """Raise a ValueError for the first key whose entries differ."""
    for key in [*built, *saved]:
        expected, found = built.get(key, "nothing"), saved.get(key, "nothing")
        if expected != found:
            raise ValueError(
                f"{lead}expected {expected} under {key!r}, got {found} for {what}; "
                "build it as in the run that wrote the checkpoint, or pass another "
                "folder"
            )
