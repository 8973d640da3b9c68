"""CIFAR-10 from its Python pickles, read without trust, or from packed JPEGs.

References:
    Learning multiple layers of features from tiny images (Krizhevsky, 2009)
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from .splits import Dataset, Split

__all__ = ["cifar10"]

_PICKLES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_JPEGS = ("cifar10-train-jpeg.npz", "cifar10-test-jpeg.npz")
_END_OF_IMAGE = b"\xff\xd9"


def cifar10(root: str | os.PathLike[str]) -> Dataset:
    """The 50,000 + 10,000 photographs of ten classes, bytes of shape (3, 32, 32).

    Arguments:
        root: The folder of the canonical pickles `data_batch_1`, …, `test_batch`, or
            the one that holds it as `cifar-10-batches-py`; or the folder of
            `cifar10-train-jpeg.npz` and `cifar10-test-jpeg.npz`, which need Pillow.

    Raises:
        FileNotFoundError: A file that is missing.
        ImportError: JPEGs without Pillow.
        ValueError: A file that is damaged, or a pickle that holds anything but bytes.
    """
    root = Path(root)
    for folder in (root / "cifar-10-batches-py", root):
        if any((folder / name).is_file() for name in _PICKLES):
            _require(folder, _PICKLES)
            batches = [_unpickled(folder / name) for name in _PICKLES]
            train = Split(
                *(torch.cat(parts) for parts in zip(*batches[:-1], strict=True))
            )
            return Dataset(train, Split(*batches[-1]), 255, "cifar10")
    if not any((root / name).is_file() for name in _JPEGS):
        raise FileNotFoundError(
            f"expected {', '.join(_PICKLES)} in {root.absolute()} or its folder "
            f"cifar-10-batches-py, or {' and '.join(_JPEGS)} in it, found none; "
            "give the folder of these files as root"
        )
    _require(root, _JPEGS)
    train, test = (_decoded(root / name) for name in _JPEGS)
    return Dataset(train, test, 255, "cifar10")


def _require(folder: Path, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected {', '.join(names)} in {folder.absolute()}, "
            f"missing {', '.join(missing)}"
        )


class _Array:
    """What stands for a NumPy array while its pickle is read: bytes and a shape."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, column_major, values = state
        values = values.encode("latin1") if isinstance(values, str) else values
        flat = np.frombuffer(values, np.uint8)
        self.values = (
            flat.reshape(shape[::-1]).T if column_major else flat.reshape(shape)
        )


class _Bytes:
    """What stands for NumPy's type of a byte."""

    def __init__(self, code: str, *_: Any) -> None:
        if code != "u1":
            raise pickle.UnpicklingError(f"expected bytes ('u1'), got type {code!r}")

    def __setstate__(self, state: Any) -> None:
        """Nothing but the byte order, which a byte has not."""


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"expected latin1, got encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays of bytes, nothing else.

    Neither NumPy nor anything else is called: the five names that such a file refers
    to mean the stand-ins above, and every other name is refused.
    """

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return lambda *_: _Array()
            case "numpy", "ndarray":
                return None
            case "numpy", "dtype":
                return lambda *arguments: _Bytes(*arguments)
            case "_codecs", "encode":
                return lambda *arguments: _encoded(*arguments)
        raise pickle.UnpicklingError(
            f"it refers to {module}.{name}, which no CIFAR-10 batch does"
        )


def _unpickled(path: Path) -> tuple[UInt8[torch.Tensor, "n 3 32 32"], torch.Tensor]:
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        data, labels = content["data"].values, content["labels"]
        images = torch.from_numpy(data.copy()).reshape(-1, 3, 32, 32)
        classes = torch.tensor(labels, dtype=torch.int64)
    except Exception as error:  # a damaged pickle raises almost any
        raise ValueError(f"{path} is no CIFAR-10 batch: {error}") from error
    if data.shape != (len(labels), 3072) or not labels:
        raise ValueError(
            f"expected data of shape (n, 3072) and n labels in {path}, "
            f"got {data.shape} and {len(labels)}"
        )
    return images, classes


def _decoded(path: Path) -> Split:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{path.name} holds JPEGs, which need Pillow: pip install pillow"
        ) from error
    with np.load(path, allow_pickle=False) as file:
        keys = ("header", "scans", "lengths", "labels")
        if missing := set(keys) - set(file):
            raise ValueError(f"expected {', '.join(sorted(missing))} in {path}")
        header, scans, lengths, labels = (file[key] for key in keys)
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(labels) != len(ends) or len(ends) == 0 or ends[-1] != len(scans):
        raise ValueError(
            f"expected as many labels as lengths, and lengths that add up to the "
            f"{len(scans)} bytes of scans in {path}, got {len(labels)} labels, "
            f"{len(ends)} lengths, sum {lengths.sum()}"
        )
    header, scans = header.tobytes(), scans.tobytes()
    images = np.empty((len(ends), 32, 32, 3), np.uint8)
    starts = ends - lengths
    for row in tqdm(range(len(ends)), path.stem, leave=False, disable=None):
        jpeg = header + scans[starts[row] : ends[row]] + _END_OF_IMAGE
        try:
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
                if image.size != (32, 32):
                    raise ValueError(f"got {image.size}")
                images[row] = np.asarray(image)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"expected a JPEG of 32 × 32 coloured pixels as image {row} of {path}: "
                f"{error}"
            ) from error
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(channels_first, torch.from_numpy(labels.astype(np.int64)))
