"""Saved objectives: safetensors for the weights, JSON for the constructors' arguments.

Classes of your own are saved as well; build the objective again and load ``into`` it.
"""

import json
import math
import os
import re
import uuid
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ._arguments import NAMES, ForeignError, build, describe
from ._compared import differences, look, original, uncompared
from .arguments import folder as checked_folder
from .arguments import typed
from .reading import digest, guarded, header, json_of, stored
from .runtime.buffers import storable, unshare
from .runtime.distributed import barrier, is_main
from .runtime.files import locked, move, write
from .runtime.randomness import restored_randomness
from .runtime.unregistered import message, unregistered
from .train.run import LAST

__all__ = ["load", "save"]

FORMAT = 3
DESCRIPTION, WEIGHTS = "probssl.json", "model.safetensors"
NEW = f"{WEIGHTS}.new"  # until the description that belongs to it is in place
PATIENCE = 60.0  # seconds in which another process may finish its save
# What a description holds; a few that older versions did not write may be absent.
KINDS: dict[str, type] = {"format": int, "objective": dict, "dtype": str}
KINDS |= {"save": str, "notes": dict, "frozen": list, "extra": dict, "changed": list}
KINDS |= {"built": dict, "weights": str, "digest": str}
NEEDED = {"format", "objective", "dtype"}
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
    with a warning; it loads only ``into`` one with the same changes. Another warning
    names networks and parameters in plain lists, dictionaries or objects, which are not
    saved, and what `load` cannot compare.

    The description has digests of itself and of the weights, by which `load` sees a
    changed bit.

    If the process dies while it writes over an earlier save, the folder holds all of
    the old objective or all of the new. Of several processes, all of which call it, the
    first one writes.

    Arguments:
        objective: The objective, or any module of this package.
        folder: Where `model.safetensors` and `probssl.json` go.
        notes: What else to keep in `probssl.json`: what JSON can hold, and numbers of
            NumPy and torch.

    Raises:
        OSError: If the folder cannot be written; what it held before stays.
        TypeError: If a note, or an extra state of a module, is of another kind.
        ValueError: If a note or a parameter has a number that is not finite, or a
            tensor is sparse or of a type that safetensors has not.
    """
    folder = checked_folder("folder", folder)
    if is_main():
        description: dict[str, Any] = {
            "format": FORMAT,
            "objective": describe(objective),
            "dtype": _dtype(objective),
            "frozen": sorted(
                original(name)
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
            description["built"] = look(objective)
        if description["changed"]:  # which one line does not say in full
            description["built"] = look(objective)
        _warn_of_limits(objective, uncompared(description.get("built", {})))
        for change in description["changed"][:1]:
            warnings.warn(
                f"expected {type(objective).__name__} as its constructor builds it, "
                f"got {change}; it is saved, and loads only with ps.load(folder, "
                "into=objective) into one with the same changes",
                stacklevel=3,
            )
        state = {original(name): x for name, x in objective.state_dict().items()}
        tensors = {k: storable(k, x) for k, x in state.items() if isinstance(x, Tensor)}
        _check_finite(objective, tensors, "fit with a lower learning_rate, or set clip")
        extra = {k: _extra(k, x) for k, x in state.items() if k not in tensors}
        description |= {"extra": extra, "weights": digest("", tensors)}
        description["digest"] = digest(description)
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
            objects of any kind, buffers that a `state_dict` leaves out, or constants
            that your functions and methods use. Objects of a library are compared by a
            checksum, within one version of it; random generators are not. Nor is code
            beyond these functions: what other modules define, methods of objects that
            are held, private attributes that a constructor sets in other ways than
            ``self._name = …``. Where code has changed, measure again. Another
            warning names what cannot be compared, such as a lock, and networks that no
            module has registered, which are not loaded.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no saved objective.
        ValueError: If a file is damaged, is a link out of the folder or declares more
            than it holds; if a parameter is not finite; if `into` is needed and not
            given, if it was built otherwise, or if the weights do not fit.
    """
    description, tensors = _both(folder)
    path = Path(folder) / DESCRIPTION
    if into is None:
        if description.get("changed"):
            raise ValueError(
                f"expected into=objective for {folder}, saved with "
                f"{description['changed'][0]}; build the objective with the same "
                "changes and give it as into"
            )
        numbers = sum(t.numel() for t in tensors.values())
        with _guarded(path):
            objective = _built(description, numbers)
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
    names = {original(name): name for name in objective.state_dict()}
    try:
        _check_kinds(objective, tensors)
        _check_finite(objective, tensors, "load an earlier save")
        objective.load_state_dict(
            {names.get(name, name): value for name, value in state.items()},
            assign=into is None,
        )
    except Exception as error:
        if before is not None:  # some layers are loaded already
            for module, name in absent:
                module._buffers[name] = None
            objective.load_state_dict(before)
        raise ValueError(
            f"expected the weights in {folder} to fit {type(objective).__name__}, got "
            f"{error}; build it with the arguments it was saved with"
        ) from None
    built = description.get("built", {})
    found = look(objective) if built else {}
    for change in differences(found, built)[:1]:
        short = re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.3g}", change)
        warnings.warn(
            f"expected into=objective built as the saved one was, got {short}; build "
            "it with the same classes and arguments, unless the difference is meant",
            stacklevel=3,
        )
    if into is not None:
        unsure = {k: v for k, v in uncompared(found).items() if k in uncompared(built)}
        _warn_of_limits(into, unsure)
    if "frozen" in description:
        for name, parameter in objective.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(original(name) not in description["frozen"])
    return objective.eval()


def _warn_of_limits(objective: nn.Module, unsure: dict[str, str]) -> None:
    """Warn of networks that no file holds, and of settings that none can compare."""
    if hidden := unregistered(objective):
        warnings.warn(message(hidden, "no file holds"), stacklevel=4)
    for name, kind in list(unsure.items())[:1]:
        more = f" and {len(unsure) - 1} more" if len(unsure) > 1 else ""
        warnings.warn(
            "expected settings that ps.load(folder, into=objective) can compare, got "
            f"{name} ({kind}){more}, which cannot be taken apart; see to it that into "
            "has the same, or give its numbers in an attribute beside it",
            stacklevel=4,
        )


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
    if not path.exists():
        raise _absent(path)
    with _guarded(path):
        description: dict[str, Any] = json_of(path, Path(folder))
        _check_description(description)
        version = description["format"]
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
    with _guarded(path):
        tensors, _ = stored(path, Path(folder))
        if description.get("weights", found := digest("", tensors)) != found:
            raise ValueError("its digest is not that in the description")
    return tensors


def _check_description(description: dict[str, Any]) -> None:
    """Raise an error for a description that `save` did not write."""
    version = description.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT} or older, got {version}; it was "
            "written by a newer probssl: upgrade"
        )
    for key in {*description, *NEEDED}:
        if key not in KINDS or type(description.get(key)) is not KINDS[key]:
            raise ValueError(f"{key} is no {KINDS.get(key, str).__name__}")
    for key in ("frozen", "changed"):
        if not all(isinstance(name, str) for name in description.get(key, [])):
            raise ValueError(f"{key} is no list of names")
    if not all(isinstance(x, str) for x in description.get("built", {}).values()):
        raise ValueError("built is no dictionary of texts")
    dtype = getattr(torch, description["dtype"], None)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"no dtype {description['dtype']!r}")
    written = {key: x for key, x in description.items() if key != "digest"}
    if description.get("digest", found := digest(written)) != found:
        raise ValueError(
            "its digest is that of another text; if you changed it yourself, remove "
            "the line with digest"
        )


def _check_kinds(objective: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise an error for whole numbers in place of floating point, and so on."""
    state = {original(name): x for name, x in objective.state_dict().items()}
    for name in state.keys() & tensors.keys():
        if _kind(state[name].dtype) != (kind := _kind(tensors[name].dtype)):
            raise ValueError(f"{kind} numbers for {name}")


def _kind(dtype: torch.dtype) -> str:
    floating = "floating" if dtype.is_floating_point else "whole"
    return "complex" if dtype.is_complex else floating


def _check_finite(objective: nn.Module, tensors: dict[str, Tensor], hint: str) -> None:
    """Raise an error for a parameter that is not finite."""
    for name, _ in objective.named_parameters():
        x = tensors.get(original(name))
        if x is not None and not x.isfinite().all():
            raise ValueError(
                f"expected finite numbers in the parameter {name}, got NaN or "
                f"infinity; {hint}"
            )


def _both(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of one save, also while another one is made."""
    description = read(folder)
    try:
        return description, weights(folder, description)
    except (ValueError, FileNotFoundError):
        description = read(folder)
        return description, weights(folder, description)


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
    new, place = folder / NEW, folder / DESCRIPTION

    def fill(path: Path) -> None:
        try:
            save_file(tensors, path, metadata={"save": description["save"]})
        except SafetensorError as error:  # of the system, in its words
            number = re.search(r"os error (\d+)", str(error))
            code = (
                () if number is None else (int(number[1]), os.strerror(int(number[1])))
            )
            raise OSError(*(code or (str(error),))) from error

    with locked(folder, "save", wait=PATIENCE):
        if new.is_file():  # the last save was killed before its last step
            with suppress(ValueError, FileNotFoundError):  # it is damaged
                move(_weights(folder, read(folder)), folder / WEIGHTS)
        write(new, fill)
        try:
            write(place, text + "\n")
        except OSError:
            with suppress(OSError):
                if description["save"] not in _text(place):
                    new.unlink()
            raise
        move(new, folder / WEIGHTS)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _weights(folder: Path, description: dict[str, Any]) -> Path:
    """The file of weights that the description belongs to."""
    for path in (folder / WEIGHTS, folder / NEW):
        if path.exists():
            with _guarded(path):
                found = header(path, folder)[1].get("save")
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


def _guarded(path: Path) -> AbstractContextManager[None]:
    return guarded(path, "ps.save writes it", "save the objective again")


def _absent(path: Path) -> FileNotFoundError:
    folder = path.parent
    got, way = f"{folder} without {path.name}", "give the folder itself, for instance "
    way += "runs/simvae"
    if (folder / LAST).exists():
        got = f"{folder} with {LAST}, a checkpoint of fit"
        way = "go on from it with ps.fit(…, checkpoint=folder, resume=True)"
    elif (folder / "checkpoints" / LAST).exists():
        got = f"{folder}, an unfinished run of the command line"
        way = "go on from it with probssl fit METHOD --out FOLDER --resume"
    return FileNotFoundError(f"expected a folder written by ps.save, got {got}; {way}")


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


SIZES: dict[str, Callable[..., int]] = {
    name: lambda size, *_, **__: math.prod(size)
    for name in ("empty", "empty_strided", "full", "ones", "rand", "randn", "zeros")
}
SIZES |= {
    f"new_{name}": lambda _, size, *__, **___: math.prod(size)
    for name in ("empty", "empty_strided", "full", "ones", "zeros")
}
SIZES |= {
    "arange": lambda *ends, **_: int(abs(max(ends[:2]) - min((0, *ends[:2])))),
    "eye": lambda *sides, **_: math.prod((*sides, *sides)[:2]),
    "linspace": lambda start, end, steps, **_: steps,
    "randint": lambda *numbers, **_: math.prod(numbers[-1]),
    "randperm": lambda n, **_: n,
    "repeat": lambda x, sizes, **_: x.numel() * math.prod(sizes),
    "tril_indices": lambda rows, columns, *_, **__: rows * columns,
    "triu_indices": lambda rows, columns, *_, **__: rows * columns,
}
LEAST = 64  # numbers that a tensor counts as, for what it takes beside them


class _Bounded(TorchDispatchMode):
    """Refuses to make more numbers than the weights in the file account for."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = 4 * numbers + 2**22

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if size := SIZES.get(func.overloadpacket.__name__):
            self.left -= max(LEAST, size(*args, **options))
            if self.left < 0:
                raise ValueError(
                    f"expected {WEIGHTS} to hold the weights that {DESCRIPTION} "
                    "declares, got far fewer; save the objective again"
                )
        return func(*args, **options)


def _built(description: dict[str, Any], numbers: int) -> nn.Module:
    """The objective as its constructor builds it; the random state stays as it was."""
    with restored_randomness(), _Bounded(numbers):
        objective: Any = build(description["objective"])
    if not isinstance(objective, nn.Module):
        raise ValueError(f"expected a module, got {type(objective).__name__}")
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
    except Exception as error:
        return [f"arguments that build no objective again ({error})"]
    built.to(getattr(torch, _dtype(objective)))
    return differences(look(objective), look(built))


def _check_changes(into: nn.Module, description: dict[str, Any]) -> None:
    """Raise an error for an objective that was changed otherwise than the saved one."""
    if "changed" in description and (
        description["changed"] or "built" not in description
    ):
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
            key = original(f"{prefix}.{name}" if prefix else name)
            if buffer is None and key in tensors:
                setattr(module, name, torch.zeros_like(tensors[key]))
