"""Objectives as folders: safetensors for the numbers, JSON for what they belong to.

Nothing is pickled, and no name in a file causes an import: a file can only name the
public classes of this package. What holds parts of your own is saved as well; build it
again and load the numbers ``into`` it.
"""

import inspect
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import (
    affinities,
    bounds,
    entropies,
    guides,
    hyper,
    joint,
    likelihoods,
    limits,
    priors,
    views,
)
from . import nn as networks
from .runtime.distributed import barrier, is_main

__all__ = ["load", "save"]

FORMAT = 1
DESCRIPTION, NUMBERS = "probssl.json", "model.safetensors"
ROOMS = {
    room.__name__.rpartition(".")[2]: room
    for room in (
        affinities,
        bounds,
        entropies,
        guides,
        hyper,
        joint,
        likelihoods,
        limits,
        networks,
        priors,
        views,
    )
}
CLASSES: dict[str, type] = {"torch.Identity": nn.Identity} | {
    f"{name}.{public}": getattr(room, public)
    for name, room in ROOMS.items()
    for public in room.__all__
    if inspect.isclass(getattr(room, public))
}
NAMES = {known: name for name, known in CLASSES.items()}


def save(objective: nn.Module, folder: str | Path, **notes: Any) -> Path:
    """Write an objective to a folder, which is made if need be.

    Of several processes, all of which call it, the first one writes.

    Arguments:
        objective: The objective, or any module of this package.
        folder: Where `model.safetensors` and `probssl.json` go.
        notes: What else to keep in `probssl.json`; anything JSON can hold.
    """
    if is_main():
        _write(objective, Path(folder), notes)
    barrier()
    return Path(folder)


def _write(objective: nn.Module, folder: Path, notes: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {k: v.detach().clone() for k, v in objective.state_dict().items()}
    description = {
        "format": FORMAT,
        "objective": describe(objective),
        "dtype": _dtype(objective),
        "notes": notes,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
    save_file({k: v.contiguous() for k, v in numbers.items()}, folder / NUMBERS)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Read an objective from a folder, in evaluation mode.

    Arguments:
        folder: What `save` wrote.
        into: An objective built as the saved one was; needed where parts of it are
            classes of your own. It is changed in place and returned.

    Raises:
        FileNotFoundError: If the folder does not exist or is no saved objective.
        ValueError: If parts are not from this package and `into` is not given, or if
            the numbers do not fit.
    """
    description = read(folder)
    numbers = load_file(Path(folder) / NUMBERS)
    objective = build(description["objective"]) if into is None else into
    if into is None:
        objective.to(getattr(torch, description["dtype"]))
    _make_room(objective, numbers)
    try:
        objective.load_state_dict(numbers, assign=into is None)
    except RuntimeError as error:
        raise ValueError(
            f"expected the numbers in {folder} to fit {type(objective).__name__}, got "
            f"{error}; build it with the arguments it was saved with"
        ) from None
    return objective.eval()


def read(folder: str | Path) -> dict[str, Any]:
    """Read and check the description of a saved objective."""
    folder = Path(folder)
    for name in (DESCRIPTION, NUMBERS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"expected a folder written by ps.save, got {folder} without {name}; "
                "give the folder itself, for instance runs/simvae"
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version = description["format"]
        description["objective"], description["dtype"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {folder / DESCRIPTION} as ps.save writes it, got {error!r}; "
            "save the objective again"
        ) from None
    if version > FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT} or older, got {version}; it was "
            "written by a newer probssl: upgrade"
        )
    return description


def describe(value: Any) -> Any:
    """Turn a constructor's argument into what JSON can hold."""
    if isinstance(value, hyper.Positive):
        value = value.value  # constructors take the number and make the module
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Tensor):
        return {"tensor": value.tolist()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, partial):
        arguments = {name: describe(part) for name, part in value.keywords.items()}
        return {"partial": describe(value.func), "arguments": arguments}
    if isinstance(value, type):
        return {"type": NAMES[value]} if value in NAMES else _foreign(value)
    if type(value) in NAMES:
        return {"class": NAMES[type(value)], "arguments": _described(value)}
    if isinstance(value, torch.distributions.Distribution):
        return _describe_distribution(value)
    if isinstance(value, tuple | list | nn.ModuleList):
        return [describe(part) for part in value]
    return _foreign(type(value))


def build(description: Any) -> Any:
    """Build again what `describe` described.

    Raises:
        ValueError: If it names a class that is not this package's.
    """
    if isinstance(description, list):
        return tuple(build(part) for part in description)
    if not isinstance(description, dict):
        return description
    if "float" in description:
        return float(description["float"])
    if "tensor" in description:
        return torch.tensor(description["tensor"])
    if "of" in description:
        return build(description["of"]).to_event(description["event"])
    if "type" in description:
        return _class(description["type"])
    arguments = {k: build(v) for k, v in description.get("arguments", {}).items()}
    if "partial" in description:
        return partial(build(description["partial"]), **arguments)
    if "distribution" in description:
        return _distribution(description["distribution"])(**arguments)
    return _class(description.get("class", description.get("foreign")))(**arguments)


def _described(value: Any) -> dict[str, Any]:
    if hasattr(value, "arguments"):
        arguments = value.arguments
    elif isinstance(value, hyper.Learned | bounds.ELBO | bounds.IWAE):
        arguments = dict(zip(value._fields, value, strict=True))
    else:
        parameters = inspect.signature(type(value)).parameters.values()
        names = [
            p.name
            for p in parameters
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        arguments = {name: getattr(value, name) for name in names}
    return {name: describe(argument) for name, argument in arguments.items()}


def _describe_distribution(value: torch.distributions.Distribution) -> Any:
    name = type(value).__name__
    if getattr(dist, name, None) is not type(value):
        return _foreign(type(value))
    if isinstance(value, dist.Independent):
        event = value.reinterpreted_batch_ndims
        return {"event": event, "of": _describe_distribution(value.base_dist)}
    parameters = {name: getattr(value, name) for name in value.arg_constraints}
    return {
        "distribution": name,
        "arguments": {name: describe(number) for name, number in parameters.items()},
    }


def _foreign(kind: type) -> dict[str, str]:
    return {"foreign": f"{kind.__module__}.{kind.__qualname__}"}


def _class(name: str | None) -> type:
    if name not in CLASSES:
        raise ValueError(
            f"expected only parts of probssl in the file, got {name}; build the "
            "objective as it was and call ps.load(folder, into=objective)"
        )
    return CLASSES[name]


def _distribution(name: str) -> type:
    kind = getattr(dist, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, TorchDistributionMixin):
        raise ValueError(f"expected a distribution of Pyro in the file, got {name}")
    return kind


def _dtype(objective: nn.Module) -> str:
    kinds = [t.dtype for t in objective.state_dict().values() if t.is_floating_point()]
    return str(kinds[0] if kinds else torch.get_default_dtype()).removeprefix("torch.")


def _make_room(objective: nn.Module, numbers: dict[str, Tensor]) -> None:
    """Register buffers that are None until training sets them, such as population."""
    for prefix, module in objective.named_modules():
        for name, buffer in module._buffers.items():
            key = f"{prefix}.{name}" if prefix else name
            if buffer is None and key in numbers:
                setattr(module, name, torch.zeros_like(numbers[key]))
