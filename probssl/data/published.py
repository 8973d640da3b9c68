"""Published data sets: scikit-learn's digits, MNIST, Fashion-MNIST, CIFAR-10, Omniglot.

Their files are read without trust: nothing is unpickled but lists, numbers and bytes.

References:
    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998)
    https://doi.org/10.24432/C50P49
    Gradient-based learning applied to document recognition (LeCun et al., 1998)
    https://doi.org/10.1109/5.726791
    Fashion-MNIST (Xiao et al., 2017)
    https://arxiv.org/abs/1708.07747
    Learning multiple layers of features from tiny images (Krizhevsky, 2009)
    https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf
    Human-level concept learning through probabilistic program induction
    (Lake et al., 2015), for Omniglot
    https://doi.org/10.1126/science.aab3050
"""

import gzip
import io
import math
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from ..arguments import typed
from ..bars import at_terminal
from ..reading import archive, check_declared, guarded, opened
from .splits import Dataset, Split, fixed_split

__all__ = ["cifar10", "digits", "fashion_mnist", "mnist", "omniglot_small"]
__all__ += ["read_idx"]

_COPY = "copy the file again"
_WRITERS = "mnist-writers.npz"
_PICKLES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CLOTHES = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, "
CLOTHES += "Ankle boot"  # the names of its authors, in the order of their numbers
PHOTOGRAPHS = "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"
_JPEGS = ("cifar10-train-jpeg.npz", "cifar10-test-jpeg.npz")
_END_OF_IMAGE = b"\xff\xd9"
_OMNIGLOT = "omniglot-small.npz"
_DRAWERS, _TRAINING_DRAWERS = 20, 15  # of every alphabet
_OPERATIONS = 500_000  # in a pickle: a batch has five for each label and file name


@typed
def digits(seed: int = 0) -> Dataset:
    """The 1,797 digits of 8 × 8 pixels that come with scikit-learn, in {0, 1/16, …, 1}.

    No file is needed. Each pixel counts the ink in a 4 × 4 block of a binary scan, so
    that a grey level is Binomial(16). A fixed quarter of every class is the test set.

    Example:
        >>> digits().train.images.shape
        torch.Size([1346, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    counts, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(counts.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    whole = Split(images, torch.from_numpy(labels.astype(np.int64)))
    return fixed_split(whole, levels=16, name="digits", seed=seed)


@typed
def mnist(
    root: str | os.PathLike[str], binary: bool | Literal["dynamic"] = True
) -> Dataset:
    """The 60,000 + 10,000 handwritten digits of 28 × 28 pixels, as bytes.

    The style is the writer's number where `mnist-writers.npz` lies beside the idx files
    (keys `train_writer` and `t10k_writer`).

    Arguments:
        root: The folder of the four idx files, gzip-compressed or not.
        binary: True makes pixels above 127 white and the others black. ``"dynamic"``
            draws each pixel with its grey value as the probability of white: those of
            the test set once, always the same; those of the training set, which stays
            grey, by the views whenever an image is taken, so anew in each epoch: give
            `fit` an ``Augment(…, levels=1, rounding="random")``, for a VAE
            ``Augment(nn.Identity(), views=1, levels=1, rounding="random")``. The
            log-likelihood of one binarisation compares with none of another.

    Raises:
        FileNotFoundError: A missing idx file.
        ValueError: A file that is damaged or does not match the others.

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray,
        2008), for pixels drawn as Bernoulli variables
    """
    folder = Path(root)
    train, test = _splits(folder, ("train",))
    if binary == "dynamic":
        grey = test.images.numpy()
        # NumPy promises that RandomState never changes its streams.
        white = np.random.RandomState(0).random_sample(grey.shape) < grey / 255
        test = test._replace(images=torch.from_numpy(255 * white.astype(np.uint8)))
    elif binary:
        train, test = (
            part._replace(images=(part.images > 127).to(torch.uint8) * 255)
            for part in (train, test)
        )
    if (folder / _WRITERS).exists():
        train = train._replace(style=_writers(folder, "train", len(train)))
        test = test._replace(style=_writers(folder, "t10k", len(test)))
    made = Dataset(train, test, 1 if binary else 255, "mnist")
    return made._replace(rounding="random") if binary == "dynamic" else made


@typed
def fashion_mnist(root: str | os.PathLike[str]) -> Dataset:
    """Articles of clothing, ten classes of 28 × 28 grey bytes.

    Arguments:
        root: The folder of the four idx files, gzip-compressed or not. Without
            `train-…`, `train20k-…` (the first 20,000) is read.

    Raises:
        FileNotFoundError: A missing idx file.
        ValueError: A file that is damaged or does not match the others.
    """
    folder = Path(root)
    return _named(*_splits(folder, ("train", "train20k")), "fashion-mnist", CLOTHES)


def read_idx(
    path: str | os.PathLike[str], folder: Path | None = None
) -> UInt8[Tensor, "*shape"]:
    """The bytes of an idx file, decompressed if its name ends in `.gz`.

    Arguments:
        folder: If given, no link may lead out of it.

    Raises:
        ValueError: If the file is damaged, or declares far more bytes than it holds.
    """
    path = Path(path)
    with guarded(path, "an idx file of bytes", _COPY), opened(path, folder) as raw:
        held = os.fstat(raw.fileno()).st_size
        file = gzip.open(raw) if path.suffix == ".gz" else raw
        zero, kind, axes = struct.unpack(">HBB", file.read(4))
        shape = struct.unpack(f">{axes}I", file.read(4 * axes))
        if zero != 0 or kind != 8 or axes == 0:
            raise ValueError(
                f"expected an idx file of bytes (00 00 08 and the number of axes), "
                f"got {zero:04x} {kind:02x} {axes:02x}; {_COPY}"
            )
        size = math.prod(shape)
        check_declared(path, held, size)
        # One byte more than declared, but not whatever else it unpacks to.
        values = bytearray(file.read(min(size, held) + 1 if file is raw else size + 1))
    if len(values) != size or size == 0:
        raise ValueError(
            f"expected {size} bytes, 1 or more, for shape {shape} in {path}, got "
            f"{'more' if len(values) > size else len(values)}; {_COPY}"
        )
    return torch.frombuffer(values, dtype=torch.uint8).reshape(shape)


def _archive(path: Path, *keys: str) -> list[np.ndarray]:
    """The arrays of a NumPy archive under these keys, whole numbers from 0 on."""
    content = archive(path, path.parent)
    if missing := set(keys) - set(content):
        raise ValueError(f"expected {', '.join(sorted(missing))} in {path}")
    for key in keys:
        numbers = content[key]
        if numbers.dtype.kind not in "iu" or numbers.size and numbers.min() < 0:
            raise ValueError(
                f"expected whole numbers from 0 on under {key} in {path}, got "
                f"{numbers.dtype}; {_COPY}"
            )
    return [content[key] for key in keys]


def _splits(folder: Path, prefixes: tuple[str, ...]) -> tuple[Split, Split]:
    train, test = _split(folder, prefixes), _split(folder, ("t10k",))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"expected images of one size in {folder}, got "
            f"{tuple(train.images.shape[2:])} of {prefixes[0]} and "
            f"{tuple(test.images.shape[2:])} of t10k; {_COPY}"
        )
    return train, test


def _classes(labels: Tensor, path: Path) -> Tensor:
    """Labels of ten classes as int64."""
    if labels.numel() and int(labels.max()) > 9:
        raise ValueError(
            f"expected labels from 0 to 9 in {path}, got {int(labels.max())}; {_COPY}, "
            "or give other data to probssl.data.arrays"
        )
    return labels.long()


def _split(folder: Path, prefixes: tuple[str, ...]) -> Split:
    images = read_idx(_find(folder, prefixes, "images-idx3-ubyte"), folder)
    named = _find(folder, prefixes, "labels-idx1-ubyte")
    labels = read_idx(named, folder)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"expected images (n, height, width) and n labels of {prefixes[0]} in "
            f"{folder}, got shapes {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return Split(images.unsqueeze(1), _classes(labels, named))


def _find(folder: Path, prefixes: tuple[str, ...], stem: str) -> Path:
    names = [f"{p}-{stem}{suffix}" for p in prefixes for suffix in (".gz", "")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"expected {' or '.join(names)} in {folder.absolute()}, found none; "
        "give the folder of the idx files as root"
    )


def _writers(folder: Path, prefix: str, n: int) -> Int[Tensor, " n"]:
    (writers,) = _archive(folder / _WRITERS, f"{prefix}_writer")
    if writers.shape != (n,):
        raise ValueError(
            f"expected {n} writers of {prefix} in {folder / _WRITERS}, "
            f"got shape {writers.shape}"
        )
    return torch.from_numpy(writers.astype(np.int64))


@typed
def cifar10(root: str | os.PathLike[str]) -> Dataset:
    """The 50,000 + 10,000 photographs of ten classes, bytes of shape (3, 32, 32).

    Arguments:
        root: The folder of the canonical pickles `data_batch_1`, …, `test_batch`, or
            the one that holds it as `cifar-10-batches-py`; or the folder of
            `cifar10-train-jpeg.npz` and `cifar10-test-jpeg.npz`.

    Raises:
        FileNotFoundError: A missing file.
        ValueError: A damaged file, or a pickle that holds anything but bytes.
    """
    root = Path(root)
    for folder in (root / "cifar-10-batches-py", root):
        if any((folder / name).exists() for name in _PICKLES):
            _require(folder, _PICKLES)
            *train, test = (_unpickled(folder / name) for name in _PICKLES)
            x, y = (torch.cat(parts) for parts in zip(*train, strict=True))
            return _named(Split(x, y), Split(*test), "cifar10", PHOTOGRAPHS)
    if not any((root / name).exists() for name in _JPEGS):
        raise FileNotFoundError(
            f"expected {', '.join(_PICKLES)} in {root.absolute()} or its folder "
            f"cifar-10-batches-py, or {' and '.join(_JPEGS)} in it, found none; "
            "give the folder of these files as root"
        )
    _require(root, _JPEGS)
    jpegs, held_out = (_decoded(root / name) for name in _JPEGS)
    return _named(jpegs, held_out, "cifar10", PHOTOGRAPHS)


def _named(train: Split, test: Split, name: str, classes: str) -> Dataset:
    """A data set of bytes whose classes have names, by the numbers of its labels."""
    known = tuple(classes.split(", "))
    train, test = (part._replace(classes=known) for part in (train, test))
    return Dataset(train, test, 255, name)


def _require(folder: Path, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"expected {', '.join(names)} in {folder.absolute()}, missing "
            f"{', '.join(missing)}; give the folder of these files as root"
        )


class _Array:
    """Replaces a NumPy array while its pickle is read: bytes and a shape."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, column_major, values = state
        values = values.encode("latin1") if isinstance(values, str) else values
        flat = np.frombuffer(values, np.uint8)
        self.values = flat.reshape(shape, order="F" if column_major else "C")


class _Bytes:
    """Replaces NumPy's byte dtype while a pickle is read."""

    def __init__(self, code: str, *_: Any) -> None:
        if code != "u1":
            raise pickle.UnpicklingError(f"expected bytes ('u1'), got type {code!r}")

    def __setstate__(self, state: Any) -> None:
        """Ignore the byte order, which a single byte does not have."""


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"expected latin1, got encoding {encoding!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, strings and arrays of bytes, nothing else.

    It calls neither NumPy nor any other library: the five names that such a file refers
    to are replaced by those above, and every other name is refused.
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
    with guarded(path, "a CIFAR-10 batch", _COPY):
        with opened(path, path.parent) as file:
            pickled = file.read()
        _check_pickle(pickled)
        content = _Unpickler(io.BytesIO(pickled), encoding="latin1").load()
        data, labels = content["data"].values, content["labels"]
        if not (isinstance(labels, list) and all(type(x) is int for x in labels)):
            raise ValueError(f"expected a list of numbers as labels in {path}")
        if data.shape != (len(labels), 3072) or not labels:
            raise ValueError(
                f"expected data of shape (n, 3072) and n labels in {path}, "
                f"got {data.shape} and {len(labels)}"
            )
        if not 0 <= min(labels) <= max(labels) <= 9:
            raise ValueError(
                f"expected labels from 0 to 9 in {path}, got {min(labels)} to "
                f"{max(labels)}; {_COPY}"
            )
    images = torch.from_numpy(data.copy()).reshape(-1, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)


def _check_pickle(pickled: bytes) -> None:
    """Raise an error for a pickle that takes far more memory than its size.

    A memo of four bytes could be the number of a place in a table of gigabytes, and one
    byte makes a list or a set.
    """
    for number, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if number > _OPERATIONS:
            raise ValueError(f"more than {_OPERATIONS:,} operations")
        if "PUT" in operation.name and int(str(argument)) > _OPERATIONS:
            raise ValueError(f"object {argument} in a table of a few")


def _decoded(path: Path) -> Split:
    arrays = _archive(path, "header", "scans", "lengths", "labels")
    header, scans, lengths, labels = arrays
    if any(x.ndim != 1 for x in arrays) or scans.dtype != np.uint8:
        raise ValueError(
            f"expected arrays of one axis, scans in bytes, in {path}, got "
            f"{', '.join(str(x.shape) for x in arrays)}, {scans.dtype}; {_COPY}"
        )
    ends = np.cumsum(lengths, dtype=np.int64)
    if len(labels) != len(ends) or len(ends) == 0 or ends[-1] != len(scans):
        raise ValueError(
            f"expected as many labels as lengths, and lengths that add up to the "
            f"{len(scans)} bytes of scans in {path}, got {len(labels)} labels, "
            f"{len(ends)} lengths, sum {lengths.sum()}"
        )
    classes = _classes(torch.from_numpy(labels.astype(np.int64)), path)
    start, bodies = header.tobytes(), scans.tobytes()
    images = np.empty((len(ends), 32, 32, 3), np.uint8)
    starts = ends - lengths
    for row in tqdm(range(len(ends)), path.stem, leave=False, **at_terminal()):
        jpeg = start + bodies[starts[row] : ends[row]] + _END_OF_IMAGE
        wanted = "an archive of JPEGs of 32 × 32 coloured pixels"
        with guarded(f"image {row} of {path}", wanted, _COPY):
            images[row] = _photograph(jpeg)
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(channels_first, classes)


def _photograph(jpeg: bytes) -> UInt8[np.ndarray, "32 32 3"]:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        if image.size != (32, 32) or image.mode != "RGB":
            raise ValueError(f"got {image.size} in {image.mode}")
        return np.asarray(image)


@typed
def omniglot_small(root: str | os.PathLike[str]) -> Dataset:
    """242 characters of 8 alphabets, each drawn by 20 people: 105 × 105, white ink.

    The labels number the characters over all alphabets, the style is the drawer, 1 to
    20, numbered anew in every alphabet. Drawers 1 to 15 train, 16 to 20 test.

    Arguments:
        root: The folder of `omniglot-small.npz`, which holds packed bits.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is damaged, or an array is missing in it.
    """
    _require(Path(root), (_OMNIGLOT,))
    keys = ("images", "shape", "alphabet", "character", "drawer")
    path = Path(root) / _OMNIGLOT
    packed, shape, alphabet, character, drawer = _archive(path, *keys)
    if shape.shape != (2,) or packed.ndim != 2 or packed.dtype != np.uint8:
        raise ValueError(
            f"expected bits of images, height and width in {path}; {_COPY}"
        )
    n, (height, width) = len(packed), map(int, shape)
    if n == 0 or packed.shape[1] != -(-height * width // 8):
        raise ValueError(
            f"expected {height} × {width} bits for each image in {path}, got bytes of "
            f"shape {packed.shape}; {_COPY}"
        )
    sizes = {part.shape for part in (alphabet, character, drawer)}
    if sizes != {(n,)} or not 1 <= drawer.min() <= drawer.max() <= _DRAWERS:
        raise ValueError(
            f"expected {n} alphabets, characters and drawers from 1 to {_DRAWERS} in "
            f"{path}, got shapes {sizes}; {_COPY}"
        )
    if max(alphabet.max(), character.max()) > 255:
        raise ValueError(f"expected numbers up to 255 in {path}; {_COPY}")
    ink = np.unpackbits(packed, axis=1, count=height * width) * np.uint8(255)
    pair = alphabet.astype(np.int64) * 256 + character
    classes = np.unique(pair, return_inverse=True)[1]
    style = torch.from_numpy(drawer.astype(np.int64))
    whole = Split(
        torch.from_numpy(ink).reshape(-1, 1, height, width),
        torch.from_numpy(classes.astype(np.int64)),
        style,
    )
    train = style <= _TRAINING_DRAWERS
    return Dataset(whole.rows(train), whole.rows(~train), 1, "omniglot")
