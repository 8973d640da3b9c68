"""Data sets from what lies in memory: arrays of images, ready-made groups of views."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .splits import Dataset, Groups, Split
from .tensors import check_grid, check_values, fixed_split, label_tensors, value_tensor

__all__ = ["arrays", "groups", "observed_content"]


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
    """A data set from what lies in memory: NumPy arrays, tensors or pandas objects.

    Event shapes are taken as they stand; images have their channel first. Bytes stay
    bytes and stand for k/255; Boolean images become the bytes 0 and 255; other numbers
    become floating point. Labels become int64, strings by their sorted order.

    Arguments:
        test: The test images; None sets a fixed quarter of every class aside.
        levels: Grey levels minus one, which puts every image on the grid k/levels;
            None means 1 for Boolean images, 255 for bytes, otherwise not quantised.
        seed: Which split, where `test` is None.

    Raises:
        TypeError: Values that are no numbers, labels that are no classes.
        ValueError: No items, lengths or shapes that do not match, NaN or infinity,
            images outside [0, 1] or off the grid.
    """
    levels = _default_levels(images) if levels is None else levels
    whole = _checked(images, levels, "images")
    if test is None:
        if test_labels is not None:
            raise ValueError(
                "expected test with test_labels, got test_labels only; hand in both"
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
            "hand in both labels and test_labels"
        )
    codes, test_codes = label_tensors(
        labels=(labels, whole), test_labels=(test_labels, held_out)
    )
    return Dataset(Split(whole, codes), Split(held_out, test_codes), levels, name)


def groups(
    views: Any, labels: Any = None, present: Any = None, *, content: Any = None
) -> Groups:
    """Ready-made groups: pairs of photographs, modalities, repeated measurements.

    Arguments:
        views: An array (n, view, \\*event), or a list with one array (n, \\*event) for
            each view. Views of one event shape are stacked, which a `Joint` with a
            modality for each view takes as well; modalities of different event shapes
            stay a tuple of tensors (n, 1, \\*event).
        present: Booleans (n, view), False where a view is missing. What stands there,
            NaN included, is replaced by zeros.
        content: Whole numbers (n,) that the objective may see, as the components of a
            mixture that the items belong to; -1 where one is not known. Labels, which
            evaluate, are seen by no objective.

    Raises:
        TypeError: Values that are no numbers, `present` that is not Boolean, `content`
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
    """Contents that are observed, -1 where one is not known, as a tensor.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If there are not n of them, or one is below -1.
    """
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
