"""The edge for files: each file that the package reads comes in by these functions.

A file may be damaged, or made to harm. So it is a regular file, no pipe or device, and
no link leads out of its folder. What it declares is compared with its size before
memory is spent. Whatever a library raises while it reads becomes a ValueError that
names the file. Digests show changed bits; they are no signature, which would say who
wrote a file.
"""

import hashlib
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = [
    "archive",
    "check_declared",
    "digest",
    "guarded",
    "header",
    "json_of",
    "opened",
]
__all__ += ["parsed", "stored", "within"]

# What a file may unpack to: so many bytes, and so many times its own size.
BASE, RATIO = 100 * 2**20, 100
DEPTH = 200  # of brackets within brackets
TENSORS = 100_000
LARGEST = 2**26  # bytes of JSON
# Bytes of a list, a dictionary and an entry in memory, each at most about so many.
WEIGHTS = {b"[": 88, b"{": 240, b",": 60}
OTHERS = bytes(set(range(256)) - set(b"[]{}"))  # what is no bracket
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
NONBLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def guarded(path: object, wanted: str, hint: str) -> Iterator[None]:
    """Replace whatever is raised while a file is read by an error that names it.

    Errors of this package, which say what they expected, keep their words. Those of the
    system, such as a PermissionError, keep their kind.

    Arguments:
        wanted: What the file should be, such as "a picture".
        hint: The way out.
    """
    try:
        yield
    except Warning:  # where warnings are errors
        raise
    except (MemoryError, OSError) as error:
        known = isinstance(error, MemoryError) or error.errno is not None
        if f"{path}" in str(error) and str(error).startswith("expected"):
            raise
        reason = getattr(error, "strerror", None) or "too little memory"
        if not known:  # a library's own kind
            raise _damaged(path, wanted, hint, error) from error
        kind = MemoryError if isinstance(error, MemoryError) else type(error)
        raise kind(f"expected {path} as {wanted}, got {reason}; {hint}") from error
    except Exception as error:
        said = str(error)
        if not (
            said.startswith("expected") and isinstance(error, ValueError | TypeError)
        ):
            raise _damaged(path, wanted, hint, error) from error
        if f"{path}" in said:
            raise
        raise type(error)(f"{path}: {said}") from error


def _damaged(path: object, wanted: str, hint: str, error: Exception) -> ValueError:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    said = said if len(said) < 200 else f"{said[:200]} …"
    return ValueError(
        f"expected {path} as {wanted}, got a damaged file ({said}); {hint}"
    )


def within(path: Path, folder: Path) -> Path:
    """A path inside a folder, once links are followed.

    Raises:
        ValueError: If a link leads out of the folder.
    """
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise ValueError(
            f"expected {path} inside its folder, got a link that leads nowhere; copy "
            "the file"
        ) from error
    if real != root and root not in real.parents:
        raise ValueError(
            f"expected {path} inside its folder, got a link to {real}; copy the file, "
            "or give the folder that the link leads to"
        )
    return path


def opened(path: Path, folder: Path | None = None) -> BinaryIO:
    """A regular file, open for reading.

    Arguments:
        folder: If given, no link may lead out of it.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is a folder, pipe, socket or device, or a link leads out.
    """
    if folder is not None:
        within(path, folder)
    _check_regular(path, os.stat(path).st_mode)
    file = os.fdopen(os.open(path, os.O_RDONLY | NONBLOCKING), "rb")
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
    except ValueError:
        file.close()
        raise
    return file


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = (name for test, name in KINDS.items() if test(mode))
        raise ValueError(
            f"expected a file at {path}, got {next(kinds, 'something else')}; copy "
            "what it holds into a file"
        )


def check_declared(path: object, size: int, declared: int) -> None:
    """Raise a ValueError if a file of this size declares far more bytes than it holds.

    It may unpack to a hundred times its size, and to 100 MB in any case.
    """
    if declared > (allowed := BASE + RATIO * size):
        raise ValueError(
            f"expected {path} of {size:,} bytes to unpack to at most {allowed:,}, got "
            f"{declared:,} declared; if that is right, write it without compression"
        )


def json_of(path: Path, folder: Path | None = None, *, constants: bool = False) -> Any:
    """What a JSON file of at most 64 MB holds; `parsed` says what is refused."""
    with opened(path, folder) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST:
            raise ValueError(
                f"expected at most {LARGEST:,} bytes of JSON, got {size:,}"
            )
        return parsed(file.read(), constants=constants)


def parsed(data: bytes, *, constants: bool = False) -> Any:
    """A value from JSON, whose size is bounded before it is built.

    Arguments:
        constants: Whether NaN and Infinity are allowed.

    Raises:
        ValueError: If it is no JSON, has a name twice, brackets more than 200 deep, or
            far more lists and dictionaries than its size is worth.
    """
    allowed = BASE + 10 * len(data)
    needed, depth = _costs(data)
    if needed > allowed or depth > DEPTH:
        needed, depth = _costs(_without_texts(data))  # signs in texts do not count
        if needed > allowed:
            raise ValueError(
                f"expected JSON of {len(data):,} bytes to need at most {allowed:,} in "
                f"memory, got lists and dictionaries that need about {needed:,}"
            )
        if depth > DEPTH:
            raise ValueError(f"expected brackets at most {DEPTH} deep, got {depth}")
    refuse = partial(_refuse, constants)
    text = data.decode("utf-8")
    return json.loads(text, object_pairs_hook=_once, parse_constant=refuse)


def _without_texts(data: bytes) -> bytes:
    """JSON without the texts in quotes."""
    data = data.replace(rb"\\", b"").replace(rb"\"", b"")  # in this order
    signs = np.frombuffer(data, np.uint8)
    inside = np.cumsum(signs == 0x22, dtype=np.uint8) & 1  # an odd number of quotes
    return signs[inside == 0].tobytes()


def _costs(data: bytes) -> tuple[int, int]:
    """About how many bytes JSON needs in memory, and how deep its brackets are."""
    needed = sum(cost * data.count(sign) for sign, cost in WEIGHTS.items())
    signs = np.frombuffer(data.translate(None, OTHERS), np.uint8)
    if needed > BASE + 10 * len(data) or not len(signs):
        return needed, 0
    # The opening ones have the bits 0x5B and 0x7B, the closing ones 0x5D and 0x7D.
    steps = np.where(signs & 0xDF == 0x5B, np.int8(1), np.int8(-1))
    return needed, int(np.cumsum(steps, dtype=np.int32).max())


def _refuse(allowed: bool, constant: str) -> float:
    if not allowed:
        raise ValueError(f"expected finite numbers, got {constant}")
    return float(constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"expected each name once, got {twice!r} twice")
    return found


def stored(
    path: Path, folder: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and the texts in its header.

    Raises:
        ValueError: If the file is damaged; `guarded` adds its name.
    """
    _, texts = header(path, folder)
    return load_file(path), texts


def header(
    path: Path, folder: Path | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the header of a safetensors file says of its tensors, and its texts."""
    with opened(path, folder) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        if length > LARGEST:
            raise ValueError(
                f"expected a header of at most {LARGEST:,} bytes, got {length:,}"
            )
        said = parsed(file.read(length))
    if not isinstance(said, dict) or len(said) > TENSORS:
        raise ValueError(f"no dictionary of at most {TENSORS:,} tensors")
    return said, said.pop("__metadata__", {})


def digest(value: Any, tensors: Mapping[str, Tensor] | None = None) -> str:
    """The SHA-256 of what JSON holds, and of tensors: names, types, shapes and bits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted((tensors or {}).items()):
        found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def archive(path: Path, folder: Path | None = None) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive, without pickled objects.

    The sizes that it declares are compared with one another and with that of the file
    before memory is spent.
    """
    with (
        guarded(
            path,
            "an archive that numpy.savez writes",
            "save arrays of numbers or strings anew",
        ),
        opened(path, folder) as file,
    ):
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as zipped:
            members = zipped.infolist()
            check_declared(path, size, sum(each.file_size for each in members))
            names = [each.filename.removesuffix(".npy") for each in members]
            for member in members:
                if names.count(name := member.filename.removesuffix(".npy")) > 1:
                    raise ValueError(f"expected each array once, got {name!r} twice")
                if not member.filename.endswith(".npy"):
                    raise ValueError(f"expected arrays .npy, got {member.filename!r}")
                _check_array(zipped, member)
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}


def _check_array(zipped: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise a ValueError if the header of an array does not agree with its size."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"a compression that NumPy does not write: {member.filename}")
    with zipped.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        else:  # NumPy writes (2, 0) for long headers, (3, 0) for names in Unicode
            shape, _, dtype = np.lib.format.read_array_header_2_0(opened)
        left = member.file_size - opened.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded, which are pickled")
    if dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"no array: shape {shape}, type {dtype}")
    if (bytes_ := math.prod(shape) * dtype.itemsize) != left:
        raise ValueError(
            f"expected {bytes_:,} bytes for the array {member.filename} of shape "
            f"{shape}, got {left:,}"
        )
