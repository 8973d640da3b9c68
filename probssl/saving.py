"""Saved objectives: safetensors for the weights, JSON for the constructors' arguments.

Classes of your own are saved as well; build the objective again and load ``into`` it.
"""

import dis
import inspect
import json
import math
import os
import re
import sys
import uuid
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from enum import Enum
from functools import cache, cached_property, partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode

from ._arguments import NAMES, ForeignError, build, describe
from .arguments import folder as checked_folder
from .arguments import typed
from .arrays import plain
from .hyper import mapped
from .runtime.buffers import storable, unshare
from .runtime.copies import attributes, of_library
from .runtime.distributed import barrier, is_main

__all__ = ["load", "save"]

FORMAT = 3
DESCRIPTION, WEIGHTS = "probssl.json", "model.safetensors"
NEW = f"{WEIGHTS}.new"  # until the description that belongs to it is in place
CAPTURED = " captures "  # between a function and the name of a constant in it
INSIDE = " with "  # between the name of an object and that of an attribute in it
DEPTH = 10  # of objects in objects
KINDS = {"objective": dict, "format": int, "extra": dict, "frozen": list}
HELD = " holds"  # after an attribute: numbers of arrays, or what a class has for all
LIBRARIES = __package__, "torch", "pyro"  # have no classes of one's own
MAKERS = "__init__", "__post_init__", "__new__"
SHOWING = "extra_repr", "_repr_html_"  # methods that change no value
FEW = 8  # numbers that a warning shows
LOADS = "LOAD_CONST", "LOAD_SMALL_INT", "RETURN_CONST"
HOLDERS = tuple, list, dict, set, frozenset, Tensor, np.ndarray, np.generic
PLAIN = bool, int, float, complex, str, bytes, range, torch.dtype, Enum
LIKELIHOODS = "CoupledLikelihoods"  # what `Coupled` was before format 3
# Arguments that version 0.1.0 wrote under another name.
RENAMED: dict[str, dict[str, str]] = {
    "limits.DINO": {"prototypes": "components"},
    "limits.SwAV": {"prototypes": "components"},
    "priors.Components": {"number": "components"},
    "priors.VampComponents": {"number": "components"},
}


@typed
def save(objective: nn.Module, folder: str | os.PathLike[str], **notes: Any) -> Path:
    """Write an objective to a folder, which is made if need be.

    An objective whose layers or settings were changed after it was built is written
    with a warning; it loads only ``into`` one with the same changes. If the process
    dies while it writes over an earlier save, the folder holds all of the old objective
    or all of the new. Of several processes, all of which call it, the first one writes.

    Arguments:
        objective: The objective, or any module of this package.
        folder: Where `model.safetensors` and `probssl.json` go.
        notes: What else to keep in `probssl.json`: what JSON can hold, and numbers of
            NumPy and torch.

    Raises:
        TypeError: If a note, or an extra state of a module, is of another kind.
        ValueError: If a note has a number that is not finite, or a tensor is sparse or
            of a type that safetensors has not.
    """
    folder = checked_folder("folder", folder)
    if is_main():
        description: dict[str, Any] = {
            "format": FORMAT,
            "objective": describe(objective),
            "dtype": _dtype(objective),
            "frozen": sorted(
                _original(name)
                for name, parameter in objective.named_parameters(
                    remove_duplicate=False
                )
                if not parameter.requires_grad
            ),
            "changed": [],
            "save": uuid.uuid4().hex,
            "notes": {name: _note(name, value) for name, value in notes.items()},
        }
        try:
            description["changed"] = _changes(objective, description)
        except ForeignError:
            description["built"] = _look(objective)
        for change in description["changed"][:1]:
            warnings.warn(
                f"expected {type(objective).__name__} as its constructor builds it, "
                f"got {change}; it is saved, and loads only with ps.load(folder, "
                "into=objective) into one with the same changes",
                stacklevel=3,
            )
        state = {_original(name): x for name, x in objective.state_dict().items()}
        tensors = {k: storable(k, x) for k, x in state.items() if isinstance(x, Tensor)}
        extra = {k: _extra(k, x) for k, x in state.items() if k not in tensors}
        description["extra"] = extra
        _write(folder, description, tensors)
    barrier()
    return folder


@typed
def load(folder: str | os.PathLike[str], into: nn.Module | None = None) -> nn.Module:
    """Read an objective from a folder, in evaluation mode.

    Arguments:
        folder: What `save` wrote.
        into: An objective built as the saved one was; needed where parts of it are
            classes of your own, or were changed after it was built. It is changed in
            place and returned; if it is refused, it stays as it was. If classes of your
            own differ from what was saved, a warning names the first difference: in
            plain attributes, also private ones that a constructor sets, arrays and
            configurations, buffers that a `state_dict` leaves out, or constants that
            your functions and methods use.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no saved objective.
        ValueError: If a file is damaged, if `into` is needed and not given, if it was
            built otherwise, or if the weights do not fit.
    """
    description = read(folder)
    tensors = weights(folder, description)
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
        _check_parametrisation(into, description, folder)
        _check_class(into, description["objective"].get("class"), folder)
        _check_changes(into, description)
    state = tensors | description.get("extra", {})
    unshare(objective)
    modules = list(objective.modules())
    absent = [(m, k) for m in modules for k, b in m._buffers.items() if b is None]
    before = None if into is None else deepcopy(objective.state_dict())
    _make_room(objective, tensors)
    names = {_original(name): name for name in objective.state_dict()}
    try:
        objective.load_state_dict(
            {names.get(name, name): value for name, value in state.items()},
            assign=into is None,
        )
    except RuntimeError as error:
        if before is not None:  # some layers are loaded already
            for module, name in absent:
                module._buffers[name] = None
            objective.load_state_dict(before)
        raise ValueError(
            f"expected the weights in {folder} to fit {type(objective).__name__}, got "
            f"{error}; build it with the arguments it was saved with"
        ) from None
    # Of foreign classes only plain attributes are known, which training may change too.
    built = description.get("built")
    for change in _differences(_look(objective), built)[:1] if built else []:
        short = re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.3g}", change)
        warnings.warn(
            f"expected into=objective built as the saved one was, got {short}; build "
            "it with the same classes and arguments, unless the difference is meant",
            stacklevel=3,
        )
    if "frozen" in description:
        for name, parameter in objective.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(_original(name) not in description["frozen"])
    return objective.eval()


def _check_class(into: nn.Module, saved: str | None, folder: Any) -> None:
    """Raise a ValueError if a class of this package was saved and another is given."""
    kind = type(getattr(into, "_orig_mod", into))
    if saved is not None and NAMES.get(kind, saved) != saved:
        raise ValueError(
            f"expected into=objective of the class {saved.rpartition('.')[2]}, saved "
            f"in {folder}, got {kind.__name__}; build the one that was saved"
        )


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the description of a saved objective."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise _absent(path)
    with _intact(path, ValueError, KeyError, TypeError):
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, dtype = description["format"], description["dtype"]
        for key in description.keys() & KINDS.keys() | {"objective"}:
            if not isinstance(description[key], KINDS[key]):
                raise ValueError(f"{key} is no {KINDS[key].__name__}")
        kind = getattr(torch, dtype, None)
        if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
            raise ValueError(f"no dtype {dtype!r}")
    if version > FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT} or older, got {version}; it was "
            "written by a newer probssl: upgrade"
        )
    for older, renewed in ((1, _renewed), (2, _coupled)):
        if version <= older:
            text = json.dumps(description["objective"])
            description["objective"] = json.loads(text, object_hook=renewed)
    if version < 3:
        built = description.get("built", {})
        built |= {k: LIKELIHOODS for k, kind in built.items() if kind == "Coupled"}
    return description


def weights(
    folder: str | os.PathLike[str], description: dict[str, Any]
) -> dict[str, Tensor]:
    """Read the tensors of a saved objective, by name."""
    path = _weights(Path(folder), description)
    with _intact(path, SafetensorError, OSError):
        return load_file(path)


def _note(name: str, value: Any) -> Any:
    """A note as JSON holds it."""
    hint = 'leave it out, or write it as text, such as "nan"'
    try:
        json.dumps(value, default=_number, allow_nan=False)
    except ValueError:
        raise ValueError(
            f"expected finite numbers in the note {name}, got {value!r}; {hint}"
        ) from None
    except TypeError:
        raise TypeError(
            f"expected numbers, text, lists and dictionaries in the note {name}, got "
            f"{value!r}; {hint}"
        ) from None
    return json.loads(
        json.dumps(value, default=_number), object_pairs_hook=partial(_once, name)
    )


def _once(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of JSON, whose names are all text: 1 and "1" are one."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(
            f"expected names in the note {name} that differ as text, as JSON holds "
            f"them, got {', '.join(key for key, _ in pairs)}; rename one"
        )
    return found


def _extra(name: str, value: Any) -> Any:
    """What a module's `get_extra_state` returned, if JSON holds it as it is."""
    with suppress(TypeError, ValueError):
        if json.loads(json.dumps(value, allow_nan=False)) == value:
            return value
    raise TypeError(
        f"expected numbers, text, lists and dictionaries with names in {name}, got "
        f"{value!r}; let get_extra_state return these or one tensor"
    )


def _number(value: Any) -> Any:
    """The number of NumPy or torch in plain Python."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise TypeError(type(value).__name__)


# The files


def _write(
    folder: Path, description: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Replace both files so that a reader never sees one of each save.

    A description names the weights that belong to it. Until it is replaced the folder
    holds the old objective, from then on the new one.
    """
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(
            f"expected a folder to save in, got the file {folder}; give another name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / NEW).is_file():
        with suppress(ValueError, FileNotFoundError):  # it is damaged
            os.replace(_weights(folder, read(folder)), folder / WEIGHTS)
    save_file(tensors, folder / NEW, metadata={"save": description["save"]})
    draft = folder / f"{DESCRIPTION}.new"
    draft.write_text(text + "\n", encoding="utf-8")
    for path in (folder / NEW, draft):  # on the disk before either takes its place
        with path.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(draft, folder / DESCRIPTION)
    os.replace(folder / NEW, folder / WEIGHTS)


def _weights(folder: Path, description: dict[str, Any]) -> Path:
    """The file of weights that the description belongs to."""
    for path in (folder / WEIGHTS, folder / NEW):
        if path.is_file():
            with _intact(path, SafetensorError, OSError), safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get("save")
            if found == description.get("save") or (
                found is None and path.name == WEIGHTS
            ):
                return path
    if not (folder / WEIGHTS).is_file():
        raise _absent(folder / WEIGHTS)
    raise ValueError(
        f"expected {folder / WEIGHTS} of the same save as {DESCRIPTION}, got one of "
        "another; copy both files"
    )


@contextmanager
def _intact(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Raise a ValueError that names the file in place of these errors."""
    try:
        yield
    except errors as error:
        raise ValueError(
            f"expected {path} as ps.save writes it, got a damaged file ({error!r}); "
            "save the objective again"
        ) from None


def _absent(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"expected a folder written by ps.save, got {path.parent} without {path.name}; "
        "give the folder itself, for instance runs/simvae"
    )


def _renewed(description: dict[str, Any]) -> dict[str, Any]:
    """One part of what version 0.1.0 described, with the arguments of today."""
    name, given = description.get("class"), description.get("arguments", {})
    for old, new in RENAMED.get(str(name), {}).items():
        if old in given:
            given[new] = given.pop(old)
    if name == "limits.MoCo" and given.get("prior") is not None:
        # The prior made of the temperature was written as if it had been given, with
        # the temperature for its reciprocal, the concentration.
        made = {"dim": None, "concentration": given["temperature"]}
        same = given["prior"] == {"class": "priors.Spherical", "arguments": made}
        given.pop("prior" if same else "temperature")
    return description


def _coupled(description: dict[str, Any]) -> dict[str, Any]:
    """One part of what format 2 described: what was `Coupled` has another name now."""
    for key in ("class", "type"):
        if description.get(key) == "guides.Coupled":
            description[key] = f"guides.{LIKELIHOODS}"
    return description


# The objective


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
    wrong = AttributeError, KeyError, TypeError
    with _intact(Path(DESCRIPTION), *wrong), torch.random.fork_rng(devices=[]):
        with _Bounded(numbers):
            objective: nn.Module = build(description["objective"])
    return objective


def _changes(objective: nn.Module, description: dict[str, Any]) -> list[str]:
    """Where an objective differs from what its constructor builds.

    Raises:
        ForeignError: If it has classes that are not this package's.
    """
    numbers = sum(t.numel() for t in _tensors(objective))
    try:
        built = _built(description, numbers)
    except ForeignError:
        raise
    except (ValueError, RuntimeError) as error:
        return [f"arguments that build no objective again ({error})"]
    return _differences(_look(objective), _look(built))


def _differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{name or 'the objective'} {found.get(name, 'gone')} instead of "
        f"{expected.get(name, 'nothing')}"
        for name in expected | found
        if found.get(name) != expected.get(name)
        # A folder of before has no constants of functions, nor what attributes hold.
        and (
            not (CAPTURED in name or INSIDE in name or name.endswith(HELD))
            or (name in found and name in expected)
        )
    ]


def _check_changes(into: nn.Module, description: dict[str, Any]) -> None:
    """Raise an error for an objective that was changed otherwise than the saved one."""
    if "changed" in description and "built" not in description:
        found = _changes(into, description)
        for change in sorted(set(found) ^ set(description["changed"])):
            where = "into" if change in found else "saved"
            raise ValueError(
                "expected into=objective built as the saved one was, got a difference "
                f"({where}: {change}); build it with the same arguments and changes"
            )


def _check_parametrisation(
    into: nn.Module, description: dict[str, Any], folder: str | os.PathLike[str]
) -> None:
    """Raise an error for a guide whose older weights had another meaning."""
    kinds = {NAMES.get(type(module)) for module in into.modules()}
    if description["format"] < 3 and "guides.Coupled" in kinds:
        raise ValueError(
            f"expected guides.{LIKELIHOODS} in into for {folder}, which an older "
            f"version wrote, got guides.Coupled; if the saved guide was Coupled, it is "
            f"{LIKELIHOODS} now: build into with that"
        )


def _look(objective: nn.Module) -> dict[str, str]:
    """The classes, settings and shapes of all modules and tensors, by name."""
    look: dict[str, str] = {}
    firsts: dict[int, str] = {}  # names of shared parts, by identity
    used: dict[type, dict[str, str]] = {}  # by methods
    for name, module in objective.named_modules(remove_duplicate=False):
        if hasattr(module, "_orig_mod"):
            continue
        name = _original(name)
        same = firsts.setdefault(id(module), name)
        look[name] = type(module).__qualname__ + (f" of {same}" if same != name else "")
        prefix = f"{name}." if name else ""
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and attribute != "training":
                look[prefix + attribute] = _setting(value)
                for constant, text in _captured(value).items():
                    look[f"{prefix}{attribute}{CAPTURED}{constant}"] = text
                for inner, text in _inside(value).items():
                    look[f"{prefix}{attribute}{INSIDE}{inner}"] = text
        for attribute, value in _private(module).items():
            look[f"{prefix}{attribute}{HELD}"] = _told(value)
            for constant, text in _captured(value).items():
                look[f"{prefix}{attribute}{CAPTURED}{constant}"] = text
            for inner, text in _inside(value).items():
                look[f"{prefix}{attribute}{INSIDE}{inner}"] = text
        if type(module) not in used:
            used[type(module)] = _used(type(module))
        look |= {prefix + name: text for name, text in used[type(module)].items()}
        for attribute, text in _held(module).items():
            look[f"{prefix}{attribute}{HELD}"] = text
        if hooks := len(module._forward_hooks) + len(module._forward_pre_hooks):
            look[f"{prefix}hooks"] = str(hooks)
        for attribute, tensor in module._parameters.items():
            if tensor is not None:
                same = firsts.setdefault(id(tensor), prefix + attribute)
                look[prefix + attribute] = f"{same} {tuple(tensor.shape)}"
    return look


def _setting(value: Any) -> str:
    """A setting in words that are the same in every process."""
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()  # as `describe` writes it
    if isinstance(value, tuple | list):
        name = type(value).__qualname__ if hasattr(value, "_fields") else ""
        return f"{name}({', '.join(map(_setting, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_setting, value)))}}}"
    if isinstance(value, dict):
        parts = (f"{_setting(k)}: {_setting(v)}" for k, v in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, partial):
        return f"partial{_setting((value.func, value.args, value.keywords))}"
    if isinstance(value, Distribution):  # its dtype may have changed on the way
        return _setting(describe(mapped(value, lambda tensor: tensor.bfloat16())))
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__qualname__} {tuple(value.shape)}"
    if value is None or isinstance(value, PLAIN):
        return repr(value)
    if type(value) in NAMES and not isinstance(value, nn.Module):
        public = [(k, v) for k, v in vars(value).items() if not k.startswith("_")]
        return f"{type(value).__qualname__}{_setting(public)}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return str(named.__qualname__)


def _told(value: Any) -> str:
    """A setting in words, with the numbers of its arrays."""
    return " ".join([_setting(value), *_numbers(value)])


def _private(value: Any) -> dict[str, Any]:
    """The private settings of an object of one's own, by name.

    They are what its class or its constructor sets. What another method sets is its
    state, such as a cache, and so is a container that begins empty.
    """
    kinds = [kind for kind in type(value).__mro__ if not of_library(kind.__module__)]
    held: dict[str, Any] = {}
    made, again = set[str](), set[str]()
    for kind in reversed(kinds):
        for name, part in vars(kind).items():
            if isinstance(part, property) and part.fset is not None:
                made |= _stored(part.fset.__code__)
            elif isinstance(part, FunctionType):
                stored = _stored(part.__code__)
                made |= stored if name in MAKERS else set()
                again |= set() if name in MAKERS else stored
            elif isinstance(part, (*PLAIN, *HOLDERS)):
                held[name] = part
                made.add(name)
    held |= attributes(value) if kinds else {}
    return {
        name: part
        for name, part in held.items()
        if name.startswith("_") and not name.startswith("__")
        if name in made - again
        if not isinstance(part, nn.Module)
        if not (isinstance(part, tuple | list | dict | set | frozenset) and not part)
    }


@cache
def _stored(code: CodeType) -> frozenset[str]:
    """The names of the attributes that a function sets, those within it too."""
    sets = (i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")
    inner = (_stored(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(sets).union(*inner)


def _methods(kind: type) -> dict[str, FunctionType]:
    """The functions of a class of one's own and of such bases, by name.

    Not those that build or show an object.
    """
    found: dict[str, FunctionType] = {}
    for base in kind.__mro__:
        if of_library(base.__module__):
            continue
        for name, part in vars(base).items():
            if isinstance(part, property):
                part = part.fget
            elif isinstance(part, cached_property):
                part = part.func
            elif isinstance(part, staticmethod | classmethod):
                part = part.__func__
            special = name.startswith("__") and name != "__call__"
            if isinstance(part, FunctionType) and not special and name not in SHOWING:
                found[f"{base.__name__}.{name}" if name in found else name] = part
    return found


def _used(kind: type) -> dict[str, str]:
    """The constants that the methods of a class of one's own use, by name."""
    return {
        f"{name}{CAPTURED}{constant}": text
        for name, method in _methods(kind).items()
        for constant, text in _captured(method).items()
    }


def _held(module: nn.Module) -> dict[str, str]:
    """The numbers of arrays and the class attributes of a module of one's own.

    Buffers that a `state_dict` leaves out are among them.
    """
    kind = type(module)
    if kind.__module__.partition(".")[0] == __package__:
        return {}
    held: dict[str, str] = {}
    for name in module._non_persistent_buffers_set & module._buffers.keys():
        if (buffer := module._buffers[name]) is not None:  # maybe of another precision
            buffer = buffer.float() if buffer.is_floating_point() else buffer
            shape = str(tuple(buffer.shape))
            held[name] = " ".join([shape, *_numbers(buffer.reshape(-1))])
    if _own(kind):
        values = vars(module).items()
        held |= {name: " ".join(_numbers(value)) for name, value in values}
    for kind in filter(_own, type(module).__mro__):
        for name, value in vars(kind).items():
            if value is None or isinstance(value, (*PLAIN, *HOLDERS)):
                held.setdefault(name, _told(value))
            held |= {f"{name}{INSIDE}{k}": text for k, text in _inside(value).items()}
    return {k: text for k, text in held.items() if text and not k.startswith("_")}


def _inside(
    value: Any, seen: dict[int, Any] | None = None, depth: int = DEPTH
) -> dict[str, str]:
    """What objects of one's own in a setting hold, such as a configuration, by name."""
    seen = {} if seen is None else seen
    if id(value) in seen or not depth:
        return {}
    seen[id(value)] = value
    parts, found = _attributes(value), dict[str, str]()
    if parts:
        found["attributes"] = ", ".join(parts)
        for name, part in parts.items():
            found[name] = _told(part)
            for constant, text in _captured(part).items():
                found[f"{name}{CAPTURED}{constant}"] = text
    if not isinstance(value, nn.Module):
        found |= {name: _told(part) for name, part in _private(value).items()}
    if isinstance(value, Mapping):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {str(i): part for i, part in enumerate(value)}
    for name, part in parts.items():
        for inner, text in _inside(part, seen, depth - 1).items():
            found[f"{name}.{inner}"] = text
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """The public attributes of an object that is of no library, also those in slots."""
    kind = type(value)
    if isinstance(value, MethodType):
        return {"self": value.__self__}
    if isinstance(value, partial):
        return {"args": value.args, **value.keywords}
    if isinstance(value, Mapping) and not isinstance(value, dict):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, type | nn.Module | Enum | dict) or not (
        isinstance(value, SimpleNamespace | Namespace)
        or (
            _own(kind)
            and kind.__module__.partition(".")[0]
            not in {"numpy", *sys.stdlib_module_names}
        )
    ):
        return {}
    held = attributes(value).items()
    return {name: part for name, part in held if not name.startswith("_")}


def _own(kind: type | FunctionType) -> bool:
    """Whether a class or function is neither of a library nor built into Python."""
    return kind.__module__.partition(".")[0] not in (*LIBRARIES, "builtins")


def _captured(value: Any) -> dict[str, str]:
    """The constants that a function of one's own uses, by name.

    They are those of its closure, its defaults, plain globals that it names, its
    literals, and those of functions and classes beside it that it calls. Literals are
    compared only within one version of Python, whose compiler may merge them.
    """
    value = value.func if isinstance(value, partial) else value
    value = value.__func__ if isinstance(value, MethodType) else value
    found: dict[str, str] = {}
    queue, seen, of_class = [value], set(), dict[Any, str]()
    while queue:
        function = queue.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        if function.__module__.partition(".")[0] == __package__:
            continue
        if _own(function) and (literals := _literals(function.__code__)):
            named = of_class.get(function, getattr(function, "__name__", ""))
            where = "" if function is value else f"{named} "
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            found[f"{where}literals (Python {version})"] = ", ".join(literals)
        inside = inspect.getclosurevars(function)
        signature = inspect.signature(function).parameters.values()
        given = {p.name: p.default for p in signature if p.default is not p.empty}
        for name, constant in {**inside.globals, **inside.nonlocals, **given}.items():
            if isinstance(constant, FunctionType):
                own = constant.__module__ == function.__module__
                queue += [constant] if own else []
            elif isinstance(constant, type) and not of_library(constant.__module__):
                if constant.__module__ == function.__module__:
                    methods = _methods(constant)
                    if isinstance(
                        maker := vars(constant).get("__init__"), FunctionType
                    ):
                        methods["__init__"] = maker
                    for method, part in methods.items():
                        of_class.setdefault(part, f"{constant.__name__}.{method}")
                    queue += methods.values()
            elif not isinstance(constant, ModuleType | type | nn.Module):
                inside_it = _numbers(constant)
                found[name] = _setting(constant)
                if isinstance(constant, Tensor | np.ndarray):
                    found[name] = " ".join([found[name], *inside_it])
                elif inside_it:
                    found[name + HELD] = " ".join(inside_it)
                for inner, text in _inside(constant).items():
                    found[f"{name}{INSIDE}{inner}"] = text
    return found


def _literals(code: CodeType) -> list[str]:
    """The numbers and strings in the body of a function, in order, nested ones too."""
    found: list[str] = []
    for instruction in dis.get_instructions(code):
        constant = instruction.argval
        if isinstance(constant, CodeType):
            found += _literals(constant)
        elif instruction.opname in LOADS and constant is not None:
            found.append(_setting(constant))
    return found


def _numbers(value: Any) -> list[str]:
    """What distinguishes the values of the arrays in an attribute or a constant."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [text for part in value for text in _numbers(part)]
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        # What NumPy has no numbers for, such as a tensor without storage.
        with suppress(TypeError, RuntimeError):
            numbers = np.ascontiguousarray(plain(value))
            if numbers.dtype.hasobject:
                return []
            if numbers.size <= FEW:
                return [str(numbers.tolist())]
            return [f"with checksum {crc32(numbers.tobytes()):08x}"]
    return []


def _original(name: str) -> str:
    """The name of a tensor or module without what torch.compile puts in."""
    return name.replace("_orig_mod.", "").removesuffix("_orig_mod").removesuffix(".")


def _dtype(objective: nn.Module) -> str:
    # Numbers without axes are in float64 whatever the objective is in.
    tensors = [t for t in _tensors(objective) if t.is_floating_point()]
    kinds = [t.dtype for t in sorted(tensors, key=lambda t: t.ndim == 0)]
    return str(kinds[0] if kinds else torch.get_default_dtype()).removeprefix("torch.")


def _tensors(objective: nn.Module) -> list[Tensor]:
    state = objective.state_dict().values()
    return [value for value in state if isinstance(value, Tensor)]


def _make_room(objective: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Register buffers that are None until training sets them, such as population."""
    for prefix, module in objective.named_modules():
        for name, buffer in module._buffers.items():
            key = _original(f"{prefix}.{name}" if prefix else name)
            if buffer is None and key in tensors:
                setattr(module, name, torch.zeros_like(tensors[key]))
