"""Saved objectives: safetensors for the weights, JSON for the constructors' arguments.

The constructor of every public module of this package records its arguments, once, so
that a class keeps no attribute for the sake of saving. A file can name only these
classes and Pyro's distributions: nothing is unpickled and no name causes an import.
Classes of your own are saved as well; build the objective again and load ``into`` it.
"""

import inspect
import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property
from torch.utils._python_dispatch import TorchDispatchMode

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

FORMAT = 2
DESCRIPTION, WEIGHTS = "probssl.json", "model.safetensors"
NEW = f"{WEIGHTS}.new"  # until the description that belongs to it is in place
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
    and not issubclass(getattr(room, public), Distribution)
}
NAMES = {known: name for name, known in CLASSES.items()}

# Arguments that version 0.1.0 wrote under another name.
RENAMED: dict[str, dict[str, str]] = {
    "limits.DINO": {"prototypes": "components"},
    "limits.SwAV": {"prototypes": "components"},
}

Plain = bool | int | float | str


class _Function(NamedTuple):
    """A function that was an argument: its name, since no file can hold it."""

    name: str


def save(objective: nn.Module, folder: str | Path, **notes: Any) -> Path:
    """Write an objective to a folder, which is made if need be.

    An objective whose layers or settings were changed after it was built is written
    with a warning; it loads only ``into`` one with the same changes. If the process
    dies while it writes over an earlier save, the folder holds all of the old objective
    or all of the new. Of several processes, all of which call it, the first one writes.

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
    description: dict[str, Any] = {
        "format": FORMAT,
        "objective": describe(objective),
        "dtype": _dtype(objective),
        "frozen": sorted(
            _original(name)
            for name, parameter in objective.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad
        ),
        "changed": [],
        "save": uuid.uuid4().hex,
        "notes": notes,
    }
    if not any(_foreign_parts(description["objective"])):
        description["changed"] = _changes(objective, description)
    for change in description["changed"][:1]:
        warnings.warn(
            f"expected {type(objective).__name__} as its constructor builds it, got "
            f"{change}; it is saved, and loads only with ps.load(folder, "
            "into=objective) into one with the same changes",
            stacklevel=3,
        )
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
    tensors = {
        _original(name): tensor.detach().clone().contiguous()
        for name, tensor in objective.state_dict().items()
    }

    # A description names the weights that belong to it. Until it is replaced the folder
    # holds the old objective, from then on the new one.
    if (folder / DESCRIPTION).is_file() and (folder / NEW).is_file():
        os.replace(_weights(folder, read(folder)), folder / WEIGHTS)
    save_file(tensors, folder / NEW, metadata={"save": description["save"]})
    _flush(folder / NEW)
    draft = folder / f"{DESCRIPTION}.new"
    draft.write_text(text + "\n", encoding="utf-8")
    _flush(draft)
    os.replace(draft, folder / DESCRIPTION)
    os.replace(folder / NEW, folder / WEIGHTS)


def load(folder: str | Path, into: nn.Module | None = None) -> nn.Module:
    """Read an objective from a folder, in evaluation mode.

    Arguments:
        folder: What `save` wrote.
        into: An objective built as the saved one was; needed where parts of it are
            classes of your own, or were changed after it was built. It is changed in
            place and returned.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no saved objective.
        ValueError: If a file is damaged, if `into` is needed and not given, or if the
            weights do not fit.
    """
    description = read(folder)
    path = _weights(Path(folder), description)
    with _readable(path):
        tensors = load_file(path)
    if into is None:
        if description.get("changed"):
            raise ValueError(
                f"expected into=objective for {folder}, saved with "
                f"{description['changed'][0]}; build the objective with the same "
                "changes and give it as into"
            )
        objective = _built(description, sum(t.numel() for t in tensors.values()))
        objective.to(getattr(torch, description["dtype"]))
    else:
        objective = into
    _make_room(objective, tensors)
    names = {_original(name): name for name in objective.state_dict()}
    try:
        objective.load_state_dict(
            {names.get(name, name): tensor for name, tensor in tensors.items()},
            assign=into is None,
        )
    except RuntimeError as error:
        raise ValueError(
            f"expected the weights in {folder} to fit {type(objective).__name__}, got "
            f"{error}; build it with the arguments it was saved with"
        ) from None
    if into is not None and "changed" in description:
        _check_same_changes(into, description)
    if "frozen" in description:
        for name, parameter in objective.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(_original(name) not in description["frozen"])
    return objective.eval()


def read(folder: str | Path) -> dict[str, Any]:
    """Read and check the description of a saved objective."""
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(
            f"expected a folder written by ps.save, got {folder} without "
            f"{DESCRIPTION}; give the folder itself, for instance runs/simvae"
        )
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        version, dtype = description["format"], description["dtype"]
        description["objective"]
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"no dtype {dtype!r}")
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
    if version == 1:
        _renew(description["objective"])
    return description


def describe(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """Turn a constructor's argument into what JSON can hold.

    Arguments:
        seen: The descriptions so far, by the identity of the module. A module that
            occurs again is described as the same one.
    """
    seen = {} if seen is None else seen
    value = getattr(value, "_orig_mod", value)  # what torch.compile wraps
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Tensor):
        return {"tensor": describe(value.tolist())}
    if isinstance(value, np.ndarray):
        return {"array": describe(value.tolist())}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, Plain):
        return value
    if isinstance(value, partial):
        return {
            "partial": describe(value.func),
            "positional": [describe(part, seen) for part in value.args],
            "arguments": {k: describe(v, seen) for k, v in value.keywords.items()},
        }
    if isinstance(value, type):
        return {"type": NAMES[value]} if value in NAMES else _foreign(value)
    if isinstance(value, _Function):
        return {"foreign": value.name}
    if type(value) in NAMES:
        return _describe_built(value, seen)
    if isinstance(value, Distribution):
        return _describe_distribution(value)
    if isinstance(value, tuple | list | nn.ModuleList):
        return [describe(part, seen) for part in value]
    return _foreign(value if hasattr(value, "__qualname__") else type(value))


def build(description: Any, made: dict[int, Any] | None = None) -> Any:
    """Build again what `describe` described.

    Raises:
        ValueError: If it names a class that is not this package's.
    """
    made = {} if made is None else made
    if isinstance(description, list):
        return tuple(build(part, made) for part in description)
    if not isinstance(description, dict):
        return description
    if "same" in description:
        return made[description["same"]]
    if "float" in description:
        return float(description["float"])
    if "tensor" in description:
        return torch.tensor(build(description["tensor"]))
    if "array" in description:
        return np.array(build(description["array"]))
    if "of" in description:
        return build(description["of"]).to_event(description["event"])
    if "type" in description:
        return _class(description["type"])
    given = description.get("arguments", {})
    arguments = {name: build(part, made) for name, part in given.items()}
    if "partial" in description:
        positional = build(description.get("positional", []), made)
        return partial(build(description["partial"]), *positional, **arguments)
    if "distribution" in description:
        return _distribution(description["distribution"])(**arguments)
    kind = _class(description.get("class", description.get("foreign")))
    built = _called(kind, arguments)
    if "id" in description:
        made[description["id"]] = built
    return built


def _record(kind: type) -> None:
    """Let the constructor of a class keep the arguments it is called with.

    The outermost constructor comes first; those of the bases find its arguments there.
    """
    construct: Callable[..., None] = kind.__init__  # type: ignore[misc]

    @wraps(construct)
    def recording(self: Any, *args: Any, **options: Any) -> None:
        if "_arguments" not in vars(self):
            given = tuple(map(_kept, args)), {k: _kept(v) for k, v in options.items()}
            object.__setattr__(self, "_arguments", given)
        construct(self, *args, **options)

    kind.__init__ = recording  # type: ignore[misc]


def _kept(argument: Any) -> Any:
    """An argument as it was given, whatever happens later; modules are not copied."""
    if isinstance(argument, Tensor):
        return argument.detach().clone()
    if isinstance(argument, FunctionType | MethodType):  # may be none to pickle
        return _Function(f"{argument.__module__}.{argument.__qualname__}")
    return tuple(argument) if isinstance(argument, list) else argument


def _describe_built(value: Any, seen: dict[int, Any]) -> dict[str, Any]:
    if id(value) in seen:
        first_one = seen[id(value)]
        number = sum("id" in other for other in seen.values())
        return {"same": first_one.setdefault("id", number)}
    description: dict[str, Any] = {"class": NAMES[type(value)]}
    if isinstance(value, nn.Module):
        seen[id(value)] = description
    if isinstance(value, nn.Identity):
        given: dict[str, Any] = {}
    elif isinstance(value, tuple):
        given = value._asdict()  # type: ignore[attr-defined]
    else:
        args, options = value._arguments
        signature = inspect.signature(type(value))
        given = signature.bind(*args, **options).arguments
    description["arguments"] = {k: describe(v, seen) for k, v in given.items()}
    return description


def _called(kind: type, arguments: dict[str, Any]) -> Any:
    signature = inspect.signature(kind)
    unknown = sorted(arguments.keys() - signature.parameters.keys())
    if unknown:
        raise ValueError(
            f"expected arguments of {kind.__name__} in the file, got {unknown[0]!r}; "
            "build the objective as it was and call ps.load(folder, into=objective)"
        )
    bound = signature.bind_partial()
    order = [name for name in signature.parameters if name in arguments]
    bound.arguments.update({name: arguments[name] for name in order})
    return kind(*bound.args, **bound.kwargs)


def _describe_distribution(value: Distribution) -> Any:
    name = type(value).__name__
    if getattr(dist, name, None) is not type(value):
        return _foreign(type(value))
    if isinstance(value, dist.Independent):
        event = value.reinterpreted_batch_ndims
        return {"event": event, "of": _describe_distribution(value.base_dist)}
    # Of several forms of one parameter, as probs and logits, the one that was given.
    forms = [
        form
        for form in value.arg_constraints
        if isinstance(getattr(type(value), form, None), lazy_property)
    ]
    given = [form for form in forms if form in vars(value)][:1]
    names = [n for n in value.arg_constraints if n not in forms or n in given]
    return {
        "distribution": name,
        "arguments": {n: describe(getattr(value, n)) for n in names},
    }


def _foreign(value: Any) -> dict[str, str]:
    return {"foreign": f"{value.__module__}.{value.__qualname__}"}


def _foreign_parts(description: Any) -> Iterator[str]:
    if isinstance(description, dict) and "foreign" in description:
        yield description["foreign"]
    parts = description.values() if isinstance(description, dict) else description
    if isinstance(description, dict | list):
        for part in parts:
            yield from _foreign_parts(part)


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


def _renew(description: Any) -> None:
    """Bring what version 0.1.0 described to the arguments of today, in place."""
    if isinstance(description, dict):
        name, given = description.get("class"), description.get("arguments", {})
        for old, new in RENAMED.get(str(name), {}).items():
            if old in given:
                given[new] = given.pop(old)
        if name == "limits.MoCo" and given.get("prior") is not None:
            # The prior made of the temperature was written as if it had been given,
            # with the temperature for its reciprocal, the concentration.
            made = {"dim": None, "concentration": given["temperature"]}
            same = given["prior"] == {"class": "priors.Spherical", "arguments": made}
            given.pop("prior" if same else "temperature")
        for part in description.values():
            _renew(part)
    elif isinstance(description, list):
        for part in description:
            _renew(part)


class _Bounded(TorchDispatchMode):
    """Refuses to make more numbers than the weights in the file account for."""

    MAKERS = ("empty", "full", "ones", "rand", "randn", "zeros")

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = 4 * numbers + 2**22

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in self.MAKERS:
            self.left -= math.prod(args[0])
            if self.left < 0:
                raise ValueError(
                    f"expected {WEIGHTS} to hold the weights that {DESCRIPTION} "
                    "declares, got far fewer; save the objective again"
                )
        return func(*args, **(kwargs or {}))


def _built(description: dict[str, Any], numbers: int) -> nn.Module:
    """The objective as its constructor builds it; the random state stays as it was."""
    try:
        with torch.random.fork_rng(devices=[]), _Bounded(numbers):
            built: nn.Module = build(description["objective"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {DESCRIPTION} as ps.save writes it, got {error!r}; save the "
            "objective again"
        ) from None
    return built


def _changes(objective: nn.Module, description: dict[str, Any]) -> list[str]:
    """Where an objective differs from what its constructor builds."""
    numbers = sum(t.numel() for t in objective.state_dict().values())
    try:
        built = _built(description, numbers)
    except (ValueError, RuntimeError) as error:
        return [f"arguments that build no objective again ({error})"]
    found, expected = _look(objective), _look(built)
    return [
        f"{name or 'the objective'} {found.get(name, 'gone')} instead of "
        f"{expected.get(name, 'nothing')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]


def _look(objective: nn.Module) -> dict[str, str]:
    """The classes, settings and shapes of all modules and tensors, by name."""
    look: dict[str, str] = {}
    firsts: dict[int, str] = {}  # names of shared parts, by identity
    for name, module in objective.named_modules(remove_duplicate=False):
        if hasattr(module, "_orig_mod"):
            continue
        name = _original(name)
        same = firsts.setdefault(id(module), name)
        look[name] = type(module).__qualname__ + (f" of {same}" if same != name else "")
        prefix = f"{name}." if name else ""
        for attribute, value in vars(module).items():
            if isinstance(value, FunctionType | MethodType):
                look[prefix + attribute] = value.__qualname__
            elif not attribute.startswith("_") and attribute != "training":
                if isinstance(value, Plain):
                    look[prefix + attribute] = repr(value)
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        if hooks:
            look[f"{prefix}hooks"] = str(hooks)
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                same = firsts.setdefault(id(tensor), prefix + attribute)
                look[prefix + attribute] = f"{same} {tuple(tensor.shape)}"
    return look


def _check_same_changes(into: nn.Module, description: dict[str, Any]) -> None:
    if any(_foreign_parts(description["objective"])):
        return
    found, expected = _changes(into, description), description["changed"]
    for change in sorted(set(found) ^ set(expected))[:1]:
        where = "into" if change in found else "saved"
        raise ValueError(
            "expected into=objective built as the saved one was, got a difference "
            f"({where}: {change}); build it with the same arguments and changes"
        )


def _weights(folder: Path, description: dict[str, Any]) -> Path:
    """The file of weights that the description belongs to."""
    wanted = description.get("save")
    for path in (folder / WEIGHTS, folder / NEW):
        if path.is_file():
            with _readable(path), safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get("save")
            if found == wanted or (found is None and path.name == WEIGHTS):
                return path
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"expected a folder written by ps.save, got {folder} without {WEIGHTS}; "
            "give the folder itself, for instance runs/simvae"
        )
    raise ValueError(
        f"expected {folder / WEIGHTS} of the same save as {DESCRIPTION}, got one of "
        "another; copy both files"
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"expected {path} in the format safetensors, got a damaged file ({error}); "
            "save the objective again"
        ) from None


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _original(name: str) -> str:
    """The name of a tensor or module without what torch.compile puts in."""
    return name.replace("_orig_mod.", "").removesuffix("_orig_mod").removesuffix(".")


def _dtype(objective: nn.Module) -> str:
    kinds = [t.dtype for t in objective.state_dict().values() if t.is_floating_point()]
    return str(kinds[0] if kinds else torch.get_default_dtype()).removeprefix("torch.")


def _make_room(objective: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Register buffers that are None until training sets them, such as population."""
    for prefix, module in objective.named_modules():
        for name, buffer in module._buffers.items():
            key = _original(f"{prefix}.{name}" if prefix else name)
            if buffer is None and key in tensors:
                setattr(module, name, torch.zeros_like(tensors[key]))


for kind in set(CLASSES.values()):
    if not issubclass(kind, tuple | nn.Identity):
        _record(kind)
