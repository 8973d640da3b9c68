"""MNIST and Fashion-MNIST from their idx files, compressed or not.

References:
    Gradient-based learning applied to document recognition (LeCun et al., 1998)
    https://doi.org/10.1109/5.726791

    Fashion-MNIST (Xiao et al., 2017)
    https://arxiv.org/abs/1708.07747
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from .splits import Dataset, Split

__all__ = ["fashion_mnist", "mnist", "read_idx"]

_WRITERS = "mnist-writers.npz"


def mnist(root: str | os.PathLike[str], binary: bool = True) -> Dataset:
    """The 60,000 + 10,000 handwritten digits of 28 × 28 pixels, as bytes.

    Where `mnist-writers.npz` lies beside the idx files (keys `train_writer` and
    `t10k_writer`), the style is the writer's number.

    Arguments:
        root: The folder of the four idx files, gzip-compressed or not.
        binary: Make pixels above 127 white and the others black.

    Raises:
        FileNotFoundError: An idx file that is missing.
        ValueError: A file that is damaged or does not match its neighbours.
    """
    folder = Path(root)
    train, test = _split(folder, ("train",)), _split(folder, ("t10k",))
    if binary:
        train, test = (
            part._replace(images=(part.images > 127).to(torch.uint8) * 255)
            for part in (train, test)
        )
    if (folder / _WRITERS).is_file():
        train = train._replace(style=_writers(folder, "train", len(train.images)))
        test = test._replace(style=_writers(folder, "t10k", len(test.images)))
    return Dataset(train, test, 1 if binary else 255, "mnist")


def fashion_mnist(root: str | os.PathLike[str]) -> Dataset:
    """Articles of clothing, ten classes of 28 × 28 grey bytes.

    Arguments:
        root: The folder of the four idx files, gzip-compressed or not; `train20k-…`
            (the first 20,000) serve where `train-…` are absent.

    Raises:
        FileNotFoundError: An idx file that is missing.
        ValueError: A file that is damaged or does not match its neighbours.
    """
    folder = Path(root)
    train, test = _split(folder, ("train", "train20k")), _split(folder, ("t10k",))
    return Dataset(train, test, 255, "fashion-mnist")


def read_idx(path: str | os.PathLike[str]) -> UInt8[Tensor, "*shape"]:
    """The bytes of an idx file; a name that ends in `.gz` is decompressed.

    Raises:
        ValueError: Another format, another type of number, too few or too many values.
    """
    path = Path(path)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            zero, kind, axes = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            size = math.prod(shape)
            if zero != 0 or kind != 8 or axes == 0:
                raise ValueError(
                    f"expected an idx file of bytes (00 00 08 and the number of axes), "
                    f"got {zero:04x} {kind:02x} {axes:02x}"
                )
            values = bytearray(file.read())
    except (EOFError, gzip.BadGzipFile, struct.error, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}; copy the file again"
        ) from error
    if len(values) != size or size == 0:
        raise ValueError(
            f"expected {size} bytes, 1 or more, for shape {shape} in {path}, "
            f"got {len(values)}; copy the file again"
        )
    return torch.frombuffer(values, dtype=torch.uint8).reshape(shape)


def _split(folder: Path, prefixes: tuple[str, ...]) -> Split:
    images = read_idx(_find(folder, prefixes, "images-idx3-ubyte"))
    labels = read_idx(_find(folder, prefixes, "labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"expected images (n, height, width) and n labels of {prefixes[0]} in "
            f"{folder}, got shapes {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return Split(images.unsqueeze(1), labels.long())


def _find(folder: Path, prefixes: tuple[str, ...], stem: str) -> Path:
    names = [f"{p}-{stem}{suffix}" for p in prefixes for suffix in (".gz", "")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"expected {' or '.join(names)} in {folder.absolute()}, found none; "
        "give the folder of the idx files as root"
    )


def _writers(folder: Path, prefix: str, n: int) -> Int[Tensor, " n"]:
    with np.load(folder / _WRITERS, allow_pickle=False) as file:
        writers = file[f"{prefix}_writer"]
    if writers.shape != (n,):
        raise ValueError(
            f"expected {n} writers of {prefix} in {folder / _WRITERS}, "
            f"got shape {writers.shape}"
        )
    return torch.from_numpy(writers.astype(np.int64))
