"""Data sets from memory: arrays of any origin, checked once, and groups of views."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from .. import arguments
from ..arguments import typed
from ..arrays import (
    categories,
    check_alike,
    class_labels,
    class_names,
    coded,
    gate,
    has_missing,
    raw_bytes,
    refuse_mappings,
    remark_swapped,
    span,
    tensor,
    whole_numbers,
)
from .splits import Dataset, Groups, Split, fixed_split

SHOWN = 5  # rows that a message names

__all__ = ["arrays", "as_float", "check_finite", "check_items", "groups"]
__all__ += ["observed_content", "value_tensor"]


@typed
def arrays(
    images: Any,
    labels: Any = None,
    *,
    test: Any = None,
    test_labels: Any = None,
    levels: int | None = None,
    classes: Any = None,
    name: str = "arrays",
    seed: int = 0,
) -> Dataset:
    """A data set from NumPy arrays, tensors, lists or pandas objects.

    Event shapes are kept; images have their channel first. With `levels` bytes stay
    bytes and stand for k/255, a quarter of the memory; Boolean images become the bytes
    0 and 255; floating point keeps its type, which `fit` and `embed` convert to that of
    the objective; whole numbers become floating point, exactly. Labels become int64,
    strings by their sorted order, a categorical of pandas by that of its categories,
    all without missing ones. `Split.classes` has their names, among which -1 is no
    class; of numbers without names it is a class like any other. Columns of a DataFrame
    count by position: give new data in the same order, ``new[frame.columns]``. A `test`
    whose columns are in another order, and labels whose index is in another order than
    that of the frame, are refused.

    Arguments:
        test: The test images; None sets a fixed quarter of every class aside.
        levels: Grey levels minus one, which puts every image on the grid k/levels:
            ``levels=255`` for images in bytes. None means 1 for Boolean images, and
            otherwise not quantised; bytes are then refused, which may be counts.
        classes: The names of all classes in the order of their numbers, a dictionary
            with these numbers, or a data set that has them: labels of several calls are
            then numbered alike.
        seed: The seed of the split, where `test` is None.

    Raises:
        TypeError: Values that are not real numbers, labels that are not classes.
        ValueError: No items, lengths or shapes that do not match, NaN or infinity,
            masked or missing entries, bytes without `levels`, images outside [0, 1] or
            off the grid.
    """
    check_alike(images, test, "test")
    check_alike(images, labels, "labels", "index")
    check_alike(test, test_labels, "test_labels", "index")
    images = gate(images, "images")
    if levels is None and images.dtype in (bool, torch.bool):
        levels = 1
    whole = _images(images, levels, "images")
    if test is None:
        if test_labels is not None:
            raise ValueError(
                "expected test with test_labels, got test_labels only; pass both"
            )
        (codes,), names = label_tensors(class_names(classes), labels=(labels, whole))
        return fixed_split(Split(whole, codes, classes=names), levels, name, seed)
    held_out = _images(test, levels, "test")
    whole, held_out = _alike(whole, held_out)
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
    (codes, test_codes), names = label_tensors(
        class_names(classes),
        labels=(labels, whole),
        test_labels=(test_labels, held_out),
    )
    train, held = (
        Split(x, y, classes=names) for x, y in ((whole, codes), (held_out, test_codes))
    )
    return Dataset(train, held, levels, name)


@typed
def groups(
    views: Any,
    labels: Any = None,
    present: Any = None,
    *,
    content: Any = None,
    levels: int | Sequence[int | None] | None = None,
    classes: Any = None,
    covariates: Any = None,
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
            mixture that the items belong to; -1 where one is not known. Where labels
            are names, or with `classes`, contents may be names too, None where one is
            not known. No objective sees the labels, which serve evaluation.
        levels: Grey levels minus one, as for `arrays`; needed for bytes. A list has one
            for each modality, None where it is not quantised.
        classes: As for `arrays`: ``classes=train`` numbers names as in those groups.
            Else each call numbers names by their sorted order, and where two data sets
            that number them otherwise meet, in a probe or in `fit`, that is an error.
        covariates: As `Groups.covariates`.

    Raises:
        TypeError: Values that are not numbers, `present` that is not Boolean, `content`
            that is not whole numbers.
        ValueError: No items, lengths that do not match, an item without any view, NaN
            or infinity in a view that is present, bytes without `levels`.
    """
    refuse_mappings(views, "views")
    many = isinstance(views, list | tuple)
    for each in views[1:] if many else ():
        check_alike(views[0], each, "views", names=False)
        check_alike(views[0], each, "views", "index")
    first = views[0] if many and len(views) else views
    for name, rows in (("labels", labels), ("present", present), ("content", content)):
        check_alike(first, rows, name, "index")
    grids = list(levels) if isinstance(levels, Sequence) else [levels]
    if len(grids) != (count := len(views) if many else 1):
        if isinstance(levels, Sequence):
            raise ValueError(
                f"expected levels for each of {count} modalities, got {levels}; give "
                "None for one that is not quantised"
            )
        grids *= count
    said = [each is not None for each in grids]
    parts = _stacked(views, said) if many else [_array(views, said[0])]
    if len(parts) == 1 and len(set(grids)) > 1:
        raise ValueError(
            f"expected one number of levels for views that are stacked, got {levels}; "
            "give their number, or None"
        )
    if not many:
        remark_swapped(parts[0].shape, "views")
    widths = [part.shape[1] for part in parts]
    mask = (
        None if present is None else observed_mask(present, len(parts[0]), sum(widths))
    )
    if mask is not None:
        mask = mask.to(parts[0].device)
        parts = [
            part.masked_fill(~seen.reshape(*seen.shape, *(1,) * (part.ndim - 2)), 0)
            for part, seen in zip(parts, mask.split(widths, 1), strict=True)
        ]
    for part in parts:
        check_values(part, "views")
    parts = [
        part if each is None else on_grid(part, each, "views")
        for part, each in zip(parts, grids, strict=False)
    ]
    (codes,), names = label_tensors(class_names(classes), labels=(labels, parts[0]))
    several = len(parts) > 1
    known = content
    if content is not None:
        known = observed_content(content, len(parts[0]), names)
    together = tuple(parts) if several else parts[0]
    return Groups(together, codes, mask, known, names, covariates)


def observed_content(
    content: Any, n: int, classes: Sequence[str] | None = None
) -> Int[Tensor, " n"]:
    """Observed contents as a tensor, -1 where one is not known.

    Arguments:
        classes: The names of the classes; contents may then be names.
    """
    codes = coded(content, classes, "content")
    if codes is None and has_missing(content):
        raise ValueError(
            "expected whole numbers in content, -1 where one is not known, got missing "
            "ones (None, NaN or NA); give -1 for them, as in "
            "pandas.Series(content).fillna(-1).astype(int)"
        )
    known = whole_numbers(
        content if codes is None else codes,
        "content",
        "give the number of a component for each item, -1 where it is not known",
        floats=True,
    )
    if known.shape != (n,) or int(known.min()) < -1:
        raise ValueError(
            f"expected {n} contents, one for each item and none below -1 (unknown), "
            f"got shape {tuple(known.shape)}"
            + (f" and the least {int(known.min())}" if known.numel() else "")
            + "; of a table take one column: frame['y']" * (known.ndim > 1)
        )
    return known


def observed_mask(
    present: Any, n: int, views: int, *, read: bool = True
) -> Bool[Tensor, "n view"]:
    """Which views are present, as Booleans; whole numbers 0 and 1 are converted.

    Arguments:
        read: Whether values are read: on a CUDA device that synchronises.
    """
    mask = tensor(present, "present")
    if mask.dtype != torch.bool:
        found = mask.bool()
        if mask.is_floating_point() or not torch.equal(found.to(mask.dtype), mask):
            raise TypeError(
                f"expected Booleans in present, or 0 and 1, got {mask.dtype}; mark "
                "views that are there: present = ~torch.isnan(x).any(-1), for example"
            )
        mask = found
    if mask.shape != (n, views):
        raise ValueError(
            f"expected present with shape {(n, views)} (n, view), got "
            f"{tuple(mask.shape)}; give a Boolean for each view of each item"
        )
    if read and (missing := int((~mask.any(1)).sum())):
        raise ValueError(
            f"expected at least one view of every item, got none for {missing} of {n}; "
            "leave these items out"
        )
    return mask


def value_tensor(values: Any, what: str, said: bool) -> Shaped[Tensor, "*shape"]:
    """Numbers as a tensor: bytes unchanged, Booleans as 0 and 255, others as floats.

    Floating point keeps its type. Whole numbers take torch's default dtype, or float64
    where that does not hold them.

    Arguments:
        what: The name of the values in an error.
        said: Whether the data set says that bytes are images; they are refused if not.

    Raises:
        ValueError: Bytes that may be counts, whole numbers beyond float64.
    """
    found = tensor(values, what)
    if found.dtype == torch.bool:
        return found.to(torch.uint8) * 255
    if found.dtype == torch.uint8 and not said:
        raise ValueError(raw_bytes(what))
    if found.dtype == torch.uint8 or found.is_floating_point():
        return found
    return _floats(found, what)


def _floats(whole: Shaped[Tensor, "*shape"], what: str) -> Shaped[Tensor, "*shape"]:
    """Whole numbers as floating point, exactly."""
    own = torch.get_default_dtype()
    held = 2 / torch.finfo(own).eps  # whole numbers to here are exact
    if not whole.numel() or 2 ** (8 * whole.itemsize) <= held:
        return whole.to(own)
    wide = whole.to(torch.float64)
    low, high = span(wide)
    most = max(-low, high)
    if most >= 2**53:
        raise ValueError(
            f"expected whole numbers that float64 holds exactly in {what}, got "
            f"{whole.dtype} from {low:g} to {high:g}; subtract their least, or give "
            "numbers of a coarser unit"
        )
    return wide if most > held else whole.to(own)


def as_float(split: Split) -> Tensor:
    """The items as floating point; bytes become k/255."""
    images = value_tensor(split.images, "images", said=True)
    return images if images.is_floating_point() else images.float() / 255


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
    chunks: Iterable[tuple[Shaped[Tensor, "chunk *event"], ...]],
    n: int,
    what: str,
    dtype: torch.dtype | None = None,
) -> tuple[float, float]:
    """The smallest and the largest number; a ValueError if an item is not finite.

    Arguments:
        chunks: The n items in chunks, a tensor for each modality.
        dtype: The type of number in which they must be finite; None means their own.
    """
    broken, large = list[int](), list[int]()  # rows
    begin, ends = 0, (math.inf, -math.inf)
    for parts in chunks:
        first, begin = begin, begin + len(parts[0])
        own = [x.dtype if x.is_floating_point() else torch.float for x in parts]
        limits = [_largest(dtype, one) for one in own]
        spans = [span(x) for x in parts]
        # NaN compares as false.
        if all(-m <= a and b <= m for (a, b), m in zip(spans, limits, strict=True)):
            ends = (
                min(ends[0], *(a for a, _ in spans)),
                max(ends[1], *(b for _, b in spans)),
            )
            continue
        for x, m in zip(parts, limits, strict=True):
            finite = x.isfinite().flatten(1).all(1)
            broken += _places(~finite, first)
            large += _places(finite & (x.double().abs() > m).flatten(1).any(1), first)
    if broken:
        way = "drop or impute them first"
        if what == "views":
            way = "mark absent views as False in present=, or drop the items"
        raise ValueError(
            f"expected finite numbers in {what}, got NaN or infinity in "
            f"{_rows(broken, n)}; {way}"
        )
    if large:
        raise ValueError(
            f"expected numbers up to {min(limits):.2g} in {what}, which "
            f"{dtype or own[0]} can square, got larger ones in {_rows(large, n)}; "
            "rescale them"
        )
    return ends


def _places(mask: Bool[Tensor, " chunk"], first: int) -> list[int]:
    """The rows where a mask is set, counted from the first."""
    return [first + row for row in mask.nonzero().flatten().tolist()]


def _rows(rows: Iterable[int], n: int) -> str:
    """How many of n items, and the first of their rows."""
    each = sorted(set(rows))
    shown = ", ".join(map(str, each[:SHOWN])) + " …" * (len(each) > SHOWN)
    return f"{len(each)} of {n} items: {shown}"


def _largest(dtype: torch.dtype | None, own: torch.dtype) -> float:
    """The largest number of its type; in that of an objective, one that it squares.

    A normalisation sums the squares of up to a million numbers, halves in float32.
    """
    if dtype is None:
        return torch.finfo(own).max
    summed = torch.finfo(torch.promote_types(dtype, torch.float32))
    return min(torch.finfo(dtype).max, 1e-3 * summed.max**0.5)


def on_grid(
    images: Shaped[Tensor, "n *event"], levels: int, what: str
) -> Shaped[Tensor, "n *event"]:
    """Images that lie on the grid k/levels in [0, 1]; 16 bits are widened to it.

    Raises:
        ValueError: Images elsewhere, or of a type too coarse for the grid.
    """
    hint = "give the number of grey levels minus one"
    levels = arguments.whole("levels", levels, hint=hint)
    if images.dtype == torch.uint8:
        if levels == 255:
            return images
        floats, eps = images.float() / 255, torch.finfo(torch.float).eps
    else:
        floats, eps = images, torch.finfo(images.dtype).eps
        if images.itemsize == 2:
            floats = images.to(torch.get_default_dtype())
    if floats.min() < 0 or floats.max() > 1:
        raise ValueError(
            f"expected {what} in [0, 1] where levels is given, got values from "
            f"{floats.min():.4g} to {floats.max():.4g}; divide by the largest level"
        )
    # Rounding k/levels and multiplying it again are each off by half an eps, times k.
    if levels * eps >= 0.5:
        raise ValueError(
            f"expected {what} of a type that tells {levels + 1} grey levels apart, got "
            f"{images.dtype}; give float32"
        )
    steps = floats * levels
    off = (steps - steps.round()).abs() > levels * eps
    if off.any():
        raise ValueError(
            f"expected {what} on the grid k/{levels} (a byte k stands for k/255), got "
            f"{images[off][0]:.6g}; rescale them, or omit levels if they are not "
            "quantised"
        )
    return steps.round() / levels if images.itemsize == 2 else images


def label_tensors(
    names: tuple[str, ...] | None = None,
    /,
    **parts: tuple[Any, Shaped[Tensor, "_ *event"]],
) -> tuple[list[Int[Tensor, " _"] | None], tuple[str, ...] | None]:
    """Class numbers as int64 for pairs of labels and their images; names of classes.

    Strings are numbered by their sorted order over all labels, a categorical of pandas
    by the order of its categories; None stays None. Numbers have no names, nor has a
    categorical of whole numbers.

    Arguments:
        names: The names of all classes, where they are known beforehand.
        parts: The pairs, by the name that an error gives them.
    """
    given = {name: y for name, (y, _) in parts.items() if y is not None}
    orders = [own[1] for own in map(categories, given.values()) if own is not None]
    arrays = {
        name: _label_array(y, len(parts[name][1]), name) for name, y in given.items()
    }
    strings = [array.dtype.kind == "U" for array in arrays.values()]
    if names == () and (orders or any(strings)):
        raise TypeError(
            f"expected {' and '.join(given)} as whole numbers, as the labels of the "
            "data set given as classes, got names; label both alike"
        )
    names = names or None
    if names is None and any(strings) and not all(strings):
        raise TypeError("expected strings or numbers as labels, got some of each")
    if names is None and orders:
        if any(order != orders[0] for order in orders):
            raise ValueError(
                "expected the same categories in labels and test_labels, got "
                f"{orders[0]} and {orders[1]}; set them alike: .set_categories(…)"
            )
        names = orders[0]
    elif names is None and any(strings):
        names = tuple(np.unique(np.concatenate(list(arrays.values()))).tolist())
    if names is not None:
        for k, y in given.items():
            codes = coded(y if categories(y) else arrays[k], names, k)
            arrays[k] = arrays[k] if codes is None else codes
    tensors = [
        tensor(arrays[name], name).to(images.device) if name in arrays else None
        for name, (_, images) in parts.items()
    ]
    return tensors, names


def _images(values: Any, levels: int | None, what: str) -> Tensor:
    images = value_tensor(values, what, said=levels is not None)
    check_values(images, what)
    return images if levels is None else on_grid(images, levels, what)


def _alike(*parts: Tensor) -> list[Tensor]:
    """Floating point in the widest of its types, bytes unchanged."""
    floats = [part.dtype for part in parts if part.is_floating_point()]
    wide = reduce(torch.promote_types, floats) if floats else None
    return [part.to(wide) if part.is_floating_point() else part for part in parts]


def _array(views: Any, said: bool) -> Tensor:
    found = value_tensor(views, "views", said)
    if found.ndim < 3:
        raise ValueError(
            f"expected views (n, view, *event), got shape {tuple(found.shape)}; "
            "a list with one array (n, *event) for each view also works"
        )
    return found


def _stacked(views: Sequence[Any], said: Sequence[bool]) -> list[Tensor]:
    parts = [
        value_tensor(view, f"view {i}", known)
        for i, (view, known) in enumerate(zip(views, said, strict=True))
    ]
    shapes = [tuple(part.shape) for part in parts]
    if len({shape[:1] for shape in shapes}) != 1 or min(map(len, shapes)) < 2:
        raise ValueError(
            "expected a list with one array (n, *event) for each view, all of the same "
            f"n, got shapes {shapes}"
        )
    if len(set(shapes)) > 1:
        return [part.unsqueeze(1) for part in parts]
    if any(part.is_floating_point() for part in parts):  # bytes stand for k/255
        parts = [x if x.is_floating_point() else x.float() / 255 for x in parts]
    return [torch.stack(_alike(*parts), 1)]


def _label_array(labels: Any, n: int, what: str) -> np.ndarray:
    """One class for each of n images: strings, or whole numbers as int64."""
    array = class_labels(labels, what)
    if array.shape != (n,):
        raise ValueError(
            f"expected {what} with one class for each of the {n} images, "
            f"got {len(array) if array.ndim else 0} with shape {array.shape}"
        )
    return array
