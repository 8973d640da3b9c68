"""Arrays of any origin, checked once and made into tensors; the fixed split."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from .splits import Dataset, Split

__all__ = [
    "check_finite",
    "check_grid",
    "check_items",
    "check_values",
    "fixed_split",
    "label_tensors",
    "value_tensor",
]


def value_tensor(values: Any, what: str) -> Shaped[Tensor, "*shape"]:
    """Numbers as a tensor: bytes as they are, Booleans as 0 and 255, others as floats.

    NumPy's floating point takes torch's default precision, that of tensors stays.

    Arguments:
        what: The name of the values in an error.

    Raises:
        TypeError: Values that are no real numbers.
    """
    if isinstance(values, Tensor):
        tensor = values.detach()
    else:
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise TypeError(
                f"expected real numbers in {what}, got an array of {array.dtype}; "
                "convert it first, for example with .astype('float32')"
            )
        # A copy: NumPy's array may be read-only or in another machine's byte order.
        tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), "C"))
        if tensor.dtype.is_floating_point:
            tensor = tensor.to(torch.get_default_dtype())
    if tensor.is_complex():
        raise TypeError(f"expected real numbers in {what}, got {tensor.dtype}")
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    if tensor.dtype.is_floating_point or tensor.dtype == torch.uint8:
        return tensor
    return tensor.to(torch.get_default_dtype())


def check_values(tensor: Shaped[Tensor, "*shape"], what: str) -> None:
    """Raise a ValueError unless there are items (n, \\*event), all of them finite."""
    check_items(tensor.shape, what)
    check_finite([(tensor,)], len(tensor), what)


def check_items(shape: Sequence[int], what: str) -> None:
    """Raise a ValueError unless this is a shape (n, \\*event) with items."""
    if len(shape) < 2 or 0 in shape:
        raise ValueError(
            f"expected {what} with shape (n, *event) and at least one item, "
            f"got shape {tuple(shape)}"
        )


def check_finite(
    chunks: Iterable[tuple[Shaped[Tensor, "chunk *event"], ...]], n: int, what: str
) -> None:
    """Raise a ValueError if an item is not finite.

    Arguments:
        chunks: The n items, some at a time, with each of their modalities.
    """
    broken = sum(int(_broken(parts).sum()) for parts in chunks)
    if broken:
        raise ValueError(
            f"expected finite numbers in {what}, got NaN or infinity in {broken} of "
            f"{n} items; drop or impute them first"
        )


def check_grid(images: Shaped[Tensor, "n *event"], levels: int, what: str) -> None:
    """Raise a ValueError unless all images lie on the grid k/levels in [0, 1]."""
    if not isinstance(levels, Integral) or levels < 1:
        raise ValueError(
            "expected levels to be the number of grey levels minus one, 1 or more, "
            f"got {levels!r}"
        )
    if images.dtype == torch.uint8:
        if levels == 255:
            return
        images = images.float() / 255
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"expected {what} in [0, 1] where levels is given, got values from "
            f"{images.min():.4g} to {images.max():.4g}; divide by the largest level"
        )
    steps = images * levels
    # Rounding k/levels and multiplying it again are each off by half an eps, times k.
    off = (steps - steps.round()).abs() > levels * torch.finfo(steps.dtype).eps
    if off.any():
        raise ValueError(
            f"expected {what} on the grid k/{levels} (a byte k stands for k/255), got "
            f"{images[off][0]:.6g}; rescale them, or leave levels away if they are not "
            "quantised"
        )


def label_tensors(
    **parts: tuple[Any, Shaped[Tensor, "_ *event"]],
) -> list[Int[Tensor, " _"] | None]:
    """Class numbers as int64 for pairs of labels and their images.

    Strings are numbered by their sorted order over all the labels given; no labels
    (None) stay none.

    Arguments:
        parts: Each pair under its name in an error.

    Raises:
        TypeError: Labels that are neither whole numbers nor strings.
        ValueError: Labels of another length than the images.
    """
    codes = {
        name: _label_array(labels, len(images), name)
        for name, (labels, images) in parts.items()
        if labels is not None
    }
    strings = [array.dtype.kind == "U" for array in codes.values()]
    if any(strings):
        if not all(strings):
            raise TypeError("expected strings or numbers as labels, got some of each")
        classes = np.unique(np.concatenate(list(codes.values())))
        codes = {name: np.searchsorted(classes, part) for name, part in codes.items()}
    return [
        torch.from_numpy(codes[name].astype(np.int64)).to(images.device)
        if name in codes
        else None
        for name, (_, images) in parts.items()
    ]


def fixed_split(whole: Split, levels: int | None, name: str, seed: int = 0) -> Dataset:
    """Three quarters of every class for training, one for the test, in random order.

    A class with a single item is for training.

    Raises:
        ValueError: Too few items to set one aside.
    """
    n, labels = len(whole.images), whole.labels
    # NumPy promises that RandomState never changes its streams: the split is fixed
    # across versions.
    order = np.random.RandomState(seed).permutation(n)
    shuffled = np.zeros(n, int) if labels is None else labels.cpu().numpy()[order]
    by_class = np.argsort(shuffled, kind="stable")
    classes, first, size = np.unique(
        shuffled[by_class], return_index=True, return_counts=True
    )
    rank = np.empty(n, int)  # of an item within its class, in random order
    rank[by_class] = np.arange(n) - np.repeat(first, size)
    held_out = rank % 4 == 1
    if not held_out.any():
        raise ValueError(
            f"expected a class with two items or more to set a test set aside, got {n} "
            f"item(s) in {len(classes)} class(es); hand in a test set"
        )
    train, test = (
        torch.from_numpy(order[part]).to(whole.images.device)
        for part in (~held_out, held_out)
    )
    return Dataset(whole.rows(train), whole.rows(test), levels, name)


def _label_array(labels: Any, n: int, what: str) -> np.ndarray:
    tensor = isinstance(labels, Tensor)
    array = labels.detach().cpu().numpy() if tensor else np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(
            f"expected {what} with one class for each of the {n} images, "
            f"got {len(array) if array.ndim else 0} with shape {array.shape}"
        )
    if array.dtype.kind in "ST" or all(isinstance(label, str) for label in array):
        return array.astype(str)
    if array.dtype.kind == "O" and all(isinstance(label, Integral) for label in array):
        return array.astype(np.int64)
    whole = array.dtype.kind in "biu" or (
        array.dtype.kind == "f"
        and np.isfinite(array).all()
        and (array == np.round(array)).all()
    )
    if not whole:
        raise TypeError(
            f"expected whole numbers or strings in {what}, got {array.dtype} such as "
            f"{array[:1].tolist()[0]!r}"
        )
    return array


def _broken(
    parts: tuple[Shaped[Tensor, "chunk *event"], ...],
) -> Bool[Tensor, " chunk"]:
    floating = [part for part in parts if part.is_floating_point()]
    finite = [part.isfinite().flatten(1).all(1) for part in floating]
    return ~torch.stack(finite).all(0) if finite else torch.zeros(0, dtype=torch.bool)
