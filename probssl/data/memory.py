"""Data sets from memory: arrays of any origin, checked once, and groups of views."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from .. import arguments
from .splits import Dataset, Groups, Split, fixed_split

__all__ = ["arrays", "check_finite", "check_items", "groups", "observed_content"]
__all__ += ["value_tensor"]


def arrays(
    images: Any,
    labels: Any = None,
    *,
    test: Any = None,
    test_labels: Any = None,
    levels: int | None = None,
    name: str = "arrays",
    seed: int = 0,
) -> Dataset:
    """A data set from NumPy arrays, tensors or pandas objects.

    Event shapes are kept; images have their channel first. Bytes stay bytes and stand
    for k/255; Boolean images become the bytes 0 and 255; other numbers become floating
    point. Labels become int64, strings by their sorted order.

    Arguments:
        test: The test images; None sets a fixed quarter of every class aside.
        levels: Grey levels minus one, which puts every image on the grid k/levels;
            None means 1 for Boolean images, 255 for bytes, otherwise not quantised.
        seed: The seed of the split, where `test` is None.

    Raises:
        TypeError: Values that are not numbers, labels that are not classes.
        ValueError: No items, lengths or shapes that do not match, NaN or infinity,
            images outside [0, 1] or off the grid.
    """
    levels = _default_levels(images) if levels is None else levels
    whole = _checked(images, levels, "images")
    if test is None:
        if test_labels is not None:
            raise ValueError(
                "expected test with test_labels, got test_labels only; pass both"
            )
        (codes,) = label_tensors(labels=(labels, whole))
        return fixed_split(Split(whole, codes), levels, name, seed)
    held_out = _checked(test, levels, "test")
    if whole.shape[1:] != held_out.shape[1:] or whole.dtype != held_out.dtype:
        raise ValueError(
            "expected test images like the training images, "
            f"{tuple(whole.shape[1:])} {whole.dtype}, "
            f"got {tuple(held_out.shape[1:])} {held_out.dtype}"
        )
    if (labels is None) != (test_labels is None):
        raise ValueError(
            "expected labels for both splits or for neither, got them for one; "
            "pass both labels and test_labels"
        )
    codes, test_codes = label_tensors(
        labels=(labels, whole), test_labels=(test_labels, held_out)
    )
    return Dataset(Split(whole, codes), Split(held_out, test_codes), levels, name)


def groups(
    views: Any, labels: Any = None, present: Any = None, *, content: Any = None
) -> Groups:
    """Positive pairs without augmentation: modalities, repeated measurements.

    Arguments:
        views: An array (n, view, \\*event), or a list with one array (n, \\*event) for
            each view. Views of one event shape are stacked, which a `Joint` with a
            modality for each view takes as well; modalities of different event shapes
            stay a tuple of tensors (n, 1, \\*event).
        present: Booleans (n, view), False where a view is missing. What stands there,
            NaN included, is replaced by zeros.
        content: Whole numbers (n,) that the objective may see, as the components of a
            mixture that the items belong to; -1 where one is not known. No objective
            sees the labels, which serve evaluation.

    Raises:
        TypeError: Values that are not numbers, `present` that is not Boolean, `content`
            that is not whole numbers.
        ValueError: No items, lengths that do not match, an item without any view, NaN
            or infinity in a view that is present.
    """
    parts = _stacked(views) if isinstance(views, list | tuple) else [_array(views)]
    widths = [part.shape[1] for part in parts]
    mask = None if present is None else _mask(present, len(parts[0]), sum(widths))
    if mask is not None:
        mask = mask.to(parts[0].device)
        parts = [
            part.masked_fill(~seen.reshape(*seen.shape, *(1,) * (part.ndim - 2)), 0)
            for part, seen in zip(parts, mask.split(widths, 1), strict=True)
        ]
    for part in parts:
        check_values(part, "views")
    (codes,) = label_tensors(labels=(labels, parts[0]))
    many = len(parts) > 1
    known = None if content is None else observed_content(content, len(parts[0]))
    return Groups(tuple(parts) if many else parts[0], codes, mask, known)


def observed_content(content: Any, n: int) -> Int[Tensor, " n"]:
    """Observed contents as a tensor, -1 where one is not known."""
    known = content if isinstance(content, Tensor) else torch.tensor(np.array(content))
    if known.dtype == torch.bool or known.is_floating_point() or known.is_complex():
        raise TypeError(
            f"expected whole numbers in content, got {known.dtype}; give the number of "
            "a component for each item, -1 where it is not known"
        )
    if known.shape != (n,) or int(known.min()) < -1:
        raise ValueError(
            f"expected {n} contents, one for each item and none below -1 (unknown), "
            f"got shape {tuple(known.shape)}"
            + (f" and the least {int(known.min())}" if known.numel() else "")
        )
    return known.long()


def value_tensor(values: Any, what: str) -> Shaped[Tensor, "*shape"]:
    """Numbers as a tensor: bytes unchanged, Booleans as 0 and 255, others as floats.

    NumPy's floating point takes torch's default dtype; a tensor keeps its own.

    Arguments:
        what: The name of the values in an error.
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
        chunks: The n items in chunks, a tensor for each modality.
    """
    broken = 0
    for parts in chunks:
        finite = [
            x.isfinite().flatten(1).all(1) for x in parts if x.is_floating_point()
        ]
        broken += int((~torch.stack(finite).all(0)).sum()) if finite else 0
    if broken:
        raise ValueError(
            f"expected finite numbers in {what}, got NaN or infinity in {broken} of "
            f"{n} items; drop or impute them first"
        )


def check_grid(images: Shaped[Tensor, "n *event"], levels: int, what: str) -> None:
    """Raise a ValueError unless all images lie on the grid k/levels in [0, 1]."""
    hint = "give the number of grey levels minus one"
    levels = arguments.whole("levels", levels, hint=hint)
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
            f"{images[off][0]:.6g}; rescale them, or omit levels if they are not "
            "quantised"
        )


def label_tensors(
    **parts: tuple[Any, Shaped[Tensor, "_ *event"]],
) -> list[Int[Tensor, " _"] | None]:
    """Class numbers as int64 for pairs of labels and their images.

    Strings are numbered by their sorted order over all labels; None stays None.

    Arguments:
        parts: The pairs, by the name that an error gives them.
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
        torch.from_numpy(codes[name]).to(images.device) if name in codes else None
        for name, (_, images) in parts.items()
    ]


def _default_levels(values: Any) -> int | None:
    dtype = values.dtype if isinstance(values, Tensor) else np.asarray(values).dtype
    return {"bool": 1, "uint8": 255}.get(str(dtype).removeprefix("torch."))


def _checked(values: Any, levels: int | None, what: str) -> Tensor:
    images = value_tensor(values, what)
    check_values(images, what)
    if levels is not None:
        check_grid(images, levels, what)
    return images


def _array(views: Any) -> Tensor:
    tensor = value_tensor(views, "views")
    if tensor.ndim < 3:
        raise ValueError(
            f"expected views (n, view, *event), got shape {tuple(tensor.shape)}; "
            "a list with one array (n, *event) for each view also works"
        )
    return tensor


def _stacked(views: Sequence[Any]) -> list[Tensor]:
    parts = [value_tensor(view, f"view {i}") for i, view in enumerate(views)]
    shapes = [tuple(part.shape) for part in parts]
    if len({shape[:1] for shape in shapes}) != 1 or min(map(len, shapes)) < 2:
        raise ValueError(
            "expected a list with one array (n, *event) for each view, all of the same "
            f"n, got shapes {shapes}"
        )
    if len({part.dtype for part in parts}) != 1:
        raise ValueError(
            "expected one type of number in all views, got "
            f"{', '.join(str(part.dtype) for part in parts)}; convert them first"
        )
    alike = len(set(shapes)) == 1
    return [torch.stack(parts, 1)] if alike else [part.unsqueeze(1) for part in parts]


def _mask(present: Any, n: int, views: int) -> Bool[Tensor, "n view"]:
    mask = torch.as_tensor(
        present if isinstance(present, Tensor) else np.array(present)
    )
    if mask.dtype != torch.bool:
        raise TypeError(f"expected Booleans in present, got {mask.dtype}")
    if mask.shape != (n, views):
        raise ValueError(
            f"expected present with shape {(n, views)} (n, view), "
            f"got {tuple(mask.shape)}"
        )
    if missing := int((~mask.any(1)).sum()):
        raise ValueError(
            f"expected at least one view of every item, got none for {missing} of {n}; "
            "leave these items out"
        )
    return mask


def _label_array(labels: Any, n: int, what: str) -> np.ndarray:
    """One class for each of n images: strings, or whole numbers as int64."""
    from pandas.api.types import infer_dtype

    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (n,):
        raise ValueError(
            f"expected {what} with one class for each of the {n} images, "
            f"got {len(array) if array.ndim else 0} with shape {array.shape}"
        )
    kind = infer_dtype(array, skipna=False)
    if kind in ("string", "bytes"):
        return np.array(array.tolist(), str)
    integral = kind == "floating" and all(map(float.is_integer, array.tolist()))
    if kind not in ("integer", "boolean") and not integral:
        raise TypeError(
            f"expected whole numbers or strings in {what}, got {array.dtype} such as "
            f"{array[:1].tolist()[0]!r}"
        )
    return array.astype(np.int64)
