"""The gate for arrays from outside: converted exactly where that can be, or refused.

Whatever a user passes as images, labels, contents, masks or representations goes
through `gate`, by one of its faces: `tensor` and `numbers` for real numbers, `finite`
and `representations` for float64, `class_labels` and `labels` for classes. Byte order,
strides, pandas objects, lists and tensors of any device are converted; masked and
sparse arrays, objects, complex numbers, NaN and infinities are refused. Inside, `plain`
converts what is trusted.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import islice
from numbers import Integral
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Array", "categories", "centred", "check_alike", "check_classes"]
__all__ += ["check_kind", "class_labels", "class_names", "classes"]
__all__ += ["coded", "doubles", "finite", "gate", "has_missing", "is_categorical"]
__all__ += ["labels", "numbers"]
__all__ += ["plain", "raw_bytes", "refuse_mappings", "remark_swapped"]
__all__ += ["left_alone", "representations", "unlabelled"]
__all__ += ["rows_for_sklearn", "span", "tensor", "train_test", "whole_numbers"]

Array = np.ndarray | Tensor
FEW = 8  # views that an item usually has at most
SMALLEST = 1e-140  # whose square has all digits of float64

_REMEDY = {  # for NumPy's kinds of types that hold no real numbers
    "c": "stack x.real and x.imag",
    "M": "take a number such as (t - t.min()) / np.timedelta64(1, 's')",
    "m": "take a number such as t / np.timedelta64(1, 's')",
    "V": "stack its fields: np.stack([x[f] for f in x.dtype.names], 1)",
}

_PARTS = {  # of data sets
    "train": "train.images",
    "images": "images",
    "views": "views",
    "X": ".X, of a sparse matrix .X.toarray()",
}


def gate(values: Any, name: str, *, words: bool = False) -> Array:
    """Values from outside as a NumPy array of real numbers, or a dense tensor.

    Nothing is copied that need not be. Extended precision is rounded to float64.

    Arguments:
        name: The name of the argument in an error.
        words: Whether strings are taken too, and objects, which the caller sorts out.

    Raises:
        TypeError: Anything else than real numbers.
        ValueError: Masked or missing entries, rows of several lengths.
    """
    if isinstance(values, Tensor):
        return _dense(values, name)
    for part, remedy in _PARTS.items():
        if hasattr(values, part) and not _is_array(values):
            raise TypeError(
                f"expected an array in {name}, got a {type(values).__name__}; give its "
                f"{remedy}"
            )
    if isinstance(values, list | tuple) and any(map(_is_array, values)):
        return _stacked(values, name, words)
    refuse_mappings(values, name)
    if isinstance(values, Dataset):
        raise TypeError(
            f"expected an array in {name}, got a {type(values).__name__}, whose items "
            "may be tuples; stack them: torch.stack([item[0] for item in data])"
        )
    array = _array(values, name, words)
    if not (words and array.dtype.kind in "OUST"):
        check_kind(array.dtype, name, _described(values))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = _rounded(array, name)
    if array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="))


def check_kind(dtype: np.dtype, name: str, came: str = "") -> None:
    """Raise a TypeError unless arrays of this type hold real numbers."""
    if dtype.kind not in "buif":
        convert = "convert it first, for example with .astype('float32')"
        if dtype.kind == "O":
            convert += ", or np.stack(list(x)) where each row is an array"
        if came:
            convert = "give an array of numbers, or a list of them"
        if dtype.kind in "UST":
            convert = "code what is named as numbers: np.unique(x, return_inverse=True)"
        raise TypeError(
            f"expected real numbers in {name}, got {came or f'an array of {dtype}'}; "
            + _REMEDY.get(dtype.kind, convert)
        )


def check_alike(
    known: Any, values: Any, name: str, axis: str = "columns", names: bool = True
) -> None:
    """Raise a ValueError for a frame that an earlier one says to be in another order.

    Numbers count by position: another order of the same names is refused, and other
    names of columns where all are strings. Anything else than frames passes.

    Arguments:
        known: The earlier frame, or series.
        axis: ``"columns"``, or ``"index"`` for the rows.
        names: Whether other names of columns are refused.
    """
    if not (hasattr(known, "iloc") and hasattr(values, "iloc")):
        return
    one, two = (getattr(x, axis, None) for x in (known, values))
    if one is None or two is None or one.equals(two):
        return
    strings = all(isinstance(x, str) for x in (*one, *two))
    renamed = names and axis == "columns" and strings
    if not renamed and (len(one) != len(two) or set(one) != set(two)):
        return
    found = [_listed(names) for names in (one, two)]
    by_name = "[x.columns]" if axis == "columns" else ".loc[x.index]"
    raise ValueError(
        f"expected {name} with the {axis} of x, which came first, {found[0]}, "
        f"in this order, got {found[1]}; take them by name, {name}{by_name}, rename "
        f"them, or give {name}.to_numpy() to count by position"
    )


def check_classes(known: Any, values: Any) -> None:
    """Raise a ValueError for data sets, or their labels, with other names of classes.

    Their numbers then stand for other classes. What has no names passes.
    """
    one, two = (getattr(each, "classes", None) for each in (known, values))
    if one is not None and two is not None and tuple(one) != tuple(two):
        raise ValueError(
            "expected data sets that number their classes alike, got the classes "
            f"{_listed(one)} in the first and {_listed(two)} in the second; make the "
            "second by the names of the first: ps.data.groups(…, classes=first)"
        )


@contextmanager
def left_alone(what: str, *inputs: Tensor) -> Iterator[None]:
    """Raise a ValueError where a part from outside changes its inputs in place."""
    known = [x for x in inputs if not x.is_inference()]
    before = [x._version for x in known]
    yield
    if [x._version for x in known] != before:
        raise ValueError(
            f"expected {what} to leave the items as they are, got a change in place; "
            "write x = x + noise, or begin with x = x.clone()"
        )


def unlabelled(y: Any) -> np.ndarray:
    """Which items have no class: -1, where classes have names.

    Without names any number is a class, and none of the items is without.
    """
    named = isinstance(y, Tensor) and getattr(y, "classes", None) is not None
    return plain(y) < 0 if named else np.zeros(len(y), bool)


def class_names(known: Any) -> tuple[str, ...] | None:
    """Names of classes in the order of their numbers, from whatever has them.

    None are known of a data set, or a categorical, whose labels are whole numbers.

    Arguments:
        known: The names in their order, a dictionary from names to numbers or back, a
            data set that has them, a categorical of pandas, a fitted encoder of
            scikit-learn, or None.
    """
    if known is None:
        return None
    if _whole_categories(known) is not None:
        return ()
    named = getattr(known, "train", known)
    named = getattr(named, "dtype", named) if categories(named) else named
    names = getattr(named, "classes", getattr(named, "categories", named))
    names = getattr(named, "classes_", names)
    if names is None and getattr(named, "labels", None) is not None:
        return ()
    if isinstance(names, Mapping):
        names = _numbered(names)
    ordered = isinstance(names, Iterable) and not isinstance(names, str | Set)
    listed = list(names) if ordered else []
    if not listed or len({*map(str, listed)}) < len(listed):
        raise ValueError(
            "expected classes as the names of all classes, each once and in the order "
            f"of their numbers, or a data set that has them, got {known!r}; give "
            "['cat', 'dog'] or train"
        )
    return tuple(map(str, listed))


def _numbered(names: Mapping[Any, Any]) -> list[Any]:
    """The names of a dictionary by their numbers 0, 1, …; none if it has others."""
    for one in (names, {number: name for name, number in names.items()}):
        if all(isinstance(number, Integral) for number in one):
            whole = sorted(one) == list(range(len(names)))
            return [one[number] for number in sorted(one)] if whole else []
    return []


def tensor(values: Any, name: str, finite: bool = False) -> Shaped[Tensor, "*shape"]:
    """Real numbers as a tensor of their own type, without a copy where possible.

    Arguments:
        finite: Whether a ValueError is raised unless there are numbers, all finite.
    """
    found = _tensor(gate(values, name))
    if finite and not (found.numel() and np.isfinite(span(found)).all()):
        raise ValueError(
            f"expected finite numbers in {name}, got NaN or infinity, or none in shape "
            f"{tuple(found.shape)}; drop or impute them first"
        )
    return found


def _tensor(found: Array) -> Tensor:
    if isinstance(found, Tensor):
        return found
    if not (found.flags.writeable and found.flags.c_contiguous):
        found = found.copy()  # torch has no read-only memory, and rows are taken
    return torch.from_numpy(found)


def numbers(values: Any, name: str) -> np.ndarray:
    """Real numbers as a NumPy array."""
    return plain(gate(values, name))


def doubles(values: Any, name: str) -> Float[np.ndarray, "*shape"]:
    """Real numbers in float64."""
    return numbers(values, name).astype(np.float64, copy=False)


def rows_for_sklearn(values: Any, name: str = "X") -> Any:
    """Values for scikit-learn, whose checks drop masks and graphs, and take times."""
    refuse_mappings(values, name)
    listed = isinstance(values, list | tuple) and not hasattr(values, "_fields")
    known = "__array__", "__array_namespace__", "__dataframe__", "toarray"
    if not listed and not any(hasattr(values, kind) for kind in known):
        raise TypeError(
            f"expected {name} as an array (n, …), got {type(values).__name__}; give "
            "the items themselves, such as split.images, or all batches by torch.cat"
        )
    kinds = getattr(values, "dtypes", [getattr(values, "dtype", None)])
    times = any(getattr(kind, "kind", "x") in "Mm" for kind in kinds)
    foreign = isinstance(values, np.ma.MaskedArray | Tensor)
    return numbers(values, name) if foreign or times else values


def finite(values: Any, name: str = "values") -> Float[np.ndarray, "*shape"]:
    """Values in float64; raises a ValueError where one is not finite."""
    array = doubles(values, name)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):  # as every number is; without a mask in memory
            return array
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"expected finite numbers in {name}, got NaN or infinity in {bad} of "
            f"{array.size}; look for a fit that has diverged, or leave these items out"
        )
    return array


def span(x: Shaped[Tensor, "*shape"]) -> tuple[float, float]:
    """The smallest and the largest number; NaN where one is NaN."""
    low, high = torch.aminmax(x.detach())
    return float(low), float(high)


def raw_bytes(name: str) -> str:
    """The message that bytes are refused which may be images or counts."""
    return (
        f"expected {name} that say what they are, got bytes (uint8), which may be "
        "images or counts; for images, which are then k/255, give "
        "ps.data.arrays(x, levels=255) or x / 255, for counts floats"
    )


def whole_numbers(
    values: Any, name: str, hint: str, floats: bool = False
) -> Int[Tensor, "*shape"]:
    """Whole numbers as int64, such as contents; Booleans and floats are refused.

    Arguments:
        floats: Whether floats are taken, if all of them are whole.
    """
    found = tensor(values, name)
    if floats and found.is_floating_point():
        whole = (found % 1 == 0) & (found.abs() < 2**53)
        found = found.long() if bool(whole.all()) else found
    if found.dtype == torch.bool or found.is_floating_point():
        raise TypeError(f"expected whole numbers in {name}, got {found.dtype}; {hint}")
    return _tensor(_int64(plain(found), name)).to(found.device)


def class_labels(y: Any, name: str = "labels") -> np.ndarray:
    """Classes as they are: whole numbers as int64, or strings.

    Raises:
        TypeError: Numbers that are not whole; missing labels; strings among numbers.
        ValueError: Whole numbers beyond int64; a table.
    """
    if getattr(y, "ndim", 1) == 2 and hasattr(y, "columns"):
        raise ValueError(
            f"expected {name} (n,), got a frame with the columns "
            f"{_listed(y.columns)}; take one of them, which is a series: "
            f"frame[{next(iter(y.columns), 'y')!r}]"
        )
    array = plain(gate(y, name, words=True))
    if array.dtype.kind == "f" and is_categorical(y):
        array = _of_categories(array, y)
    if array.dtype.kind in "OT":
        array = _unboxed(array, name)
    if array.dtype.kind in "US":
        return array.astype(str)
    if array.dtype.kind == "f":
        fractions = array[~(array == np.floor(array)) | np.isinf(array)]
        if fractions.size:
            raise ValueError(
                f"expected classes, whole numbers or strings in {name}, got "
                f"{array.dtype} such as {fractions[0].item()!r}; code "
                "classes as 0, 1, …, leave out items without a label, and give "
                "continuous factors to style_probe"
            )
    return _int64(array, name)


def categories(y: Any) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """The codes of a categorical of pandas, -1 where missing, and the names of classes.

    In the order of its categories; None for anything else, and where these are whole
    numbers: they have no names.
    """
    if not is_categorical(y) or _whole_categories(y) is not None:
        return None
    known = getattr(y, "cat", y)  # of a Series, and of a Categorical or an index
    codes = np.array(known.codes, dtype=np.int64)
    return codes, tuple(map(str, known.categories))


def is_categorical(y: Any) -> bool:
    """Whether it is a categorical of pandas: classes, whatever their values."""
    return hasattr(getattr(y, "dtype", None), "categories")


def _of_categories(array: np.ndarray, y: Any) -> np.ndarray:
    """Fractions that are classes by their type, as strings; others as they are."""
    if _whole_categories(y) is not None or np.isnan(array).any():
        return array
    return array.astype(str)


def _whole_categories(y: Any) -> np.ndarray | None:
    """The categories of a categorical if they are whole numbers, else None."""
    if not is_categorical(y):
        return None
    known = np.asarray(y.dtype.categories)
    whole = known.dtype.kind in "iuf" and (known == np.floor(known)).all()
    return known.astype(np.int64) if whole and known.size else None


def coded(y: Any, classes: Sequence[str] | None, name: str) -> np.ndarray | None:
    """Names of classes as their numbers, -1 where one is missing; None for numbers.

    Arguments:
        classes: The names that are known, in the order of their numbers.

    Raises:
        TypeError: Names where none are known, or among other things.
        ValueError: A name that is not known.
    """
    if isinstance(y, Tensor):
        return None
    numbers = _whole_categories(y)
    if numbers is not None:
        return np.append(numbers, -1)[np.asarray(getattr(y, "cat", y).codes)]
    found = categories(y)
    listed = np.asarray(y, dtype=object).ravel().tolist() if found is None else []
    if found is None and not any(isinstance(value, str) for value in listed):
        return None
    if classes is None:
        raise TypeError(
            f"expected whole numbers in {name}, in the order of the data set's labels "
            "and -1 where one is not known, got names; names are known of what "
            "ps.data.arrays and ps.data.groups make of labels that are names, or with "
            "classes=: ps.data.groups(x, content=names, classes=('cat', 'dog'))"
        )
    if found is not None:
        codes, own = found
        listed = [None if code < 0 else own[code] for code in codes]
    number = {each: i for i, each in enumerate(classes)} | {None: -1}
    listed = [None if _is_missing(value) else value for value in listed]
    odd = [value for value in listed if value not in number]
    if odd:
        raise ValueError(
            f"expected names of classes in {name}, {', '.join(classes)}, or None where "
            f"one is not known, got {odd[0]!r}; spell them alike"
        )
    return np.array([number[value] for value in listed], dtype=np.int64)


def has_missing(values: Any) -> bool:
    """Whether one of them is None, NaN or NA of pandas."""
    if isinstance(values, Tensor):
        return False
    return any(map(_is_missing, np.asarray(values, dtype=object).ravel().tolist()))


def _is_missing(value: Any) -> bool:
    """Whether it is None, NaN or NA of pandas."""
    return (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and value != value)
    )


def remark_swapped(shape: Sequence[int], what: str) -> None:
    """Warn of 2 to 8 items with more than 8 views each: two stacked along axis 0?"""
    items, views = shape[:2]
    if 2 <= items <= FEW < views:
        warnings.warn(
            f"expected {what} as (n, view, *event), got {items} items with {views} "
            f"views each; if they are {items} views of {views} items, stack them along "
            "axis 1: np.stack([a, b], axis=1)",
            stacklevel=3,
        )


def representations(
    *parts: Float[Array, "n dim"], name: str = "representations", squared: bool = True
) -> list[np.ndarray]:
    """Representations z, shape (n, dim), of one or several data sets, in float64.

    Arguments:
        squared: Whether they are squared, so that they must not be too large or small.
    """
    for z in parts[1:]:
        check_alike(parts[0], z, name)
    arrays = [finite(z, name) for z in parts]
    for z in arrays:
        if z.ndim != 2 or 0 in z.shape:
            raise ValueError(
                f"expected representations (n, dim), got {z.shape}; flatten further "
                "axes by z.reshape(len(z), -1), or take one view by z[:, 0]"
            )
        largest = np.abs(z).max()
        if squared and largest and not SMALLEST < largest < 1 / SMALLEST:
            raise ValueError(
                f"expected {name} whose squares float64 holds, the largest entry from "
                f"{SMALLEST:g} to {1 / SMALLEST:g}, got {largest:g}; rescale them: z / "
                "abs(z).max()"
            )
    if len({z.shape[1] for z in arrays}) > 1:
        raise ValueError(
            "expected representations of one dimension, got "
            f"{[z.shape for z in arrays]}; embed all of them by the same encoder"
        )
    return arrays


def centred(z: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n dim"]:
    """Representations less their mean; exactly 0 in dimensions that do not vary.

    Those vary by their rounding alone, however far from zero they are.
    """
    apart = z - z.mean(0)
    apart -= apart.mean(0)  # what rounding left of a mean far from zero
    rounding = 8 * np.finfo(float).eps * np.abs(z).max(0)
    return np.where(np.ptp(z, axis=0) > rounding, apart, 0)


def labels(
    y: Shaped[Array, " n"], items: int | None, name: str = "labels"
) -> np.ndarray:
    """Discrete labels, shape (n,), one for each item: int64 or strings."""
    array = class_labels(y, name)
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"expected {name} (n,) of at least one item, got {array.shape}; take one "
            "column, or y.argmax(1) of a one-hot code"
        )
    if items is not None and len(array) != items:
        raise ValueError(
            f"expected a label for each representation, got {items} representations "
            f"and {len(array)} labels; give them in the same order"
        )
    if missing := int(unlabelled(y).sum()):
        raise ValueError(
            f"expected a class for each item in {name}, got -1, no class, for "
            f"{missing} of them; leave those out: data.rows(data.labels >= 0)"
        )
    return array


def classes(y: Shaped[Array, " n"], items: int) -> np.ndarray:
    """Discrete labels of at least two classes."""
    array = labels(y, items)
    if len(found := np.unique(array)) < 2:
        raise ValueError(
            f"expected labels of at least two classes, got {found} only; shuffle the "
            "items before taking some of them"
        )
    return array


def train_test(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A labelled training set and test set, checked for agreement."""
    check_classes(y_train, y_test)
    check_alike(z_train, y_train, "y_train", "index")
    check_alike(z_test, y_test, "y_test", "index")
    z_train, z_test = representations(z_train, z_test)
    y_train, y_test = classes(y_train, len(z_train)), labels(y_test, len(z_test))
    if (y_train.dtype.kind == "U") != (y_test.dtype.kind == "U"):
        raise TypeError(
            "expected labels of one kind in training and test, strings or whole "
            f"numbers, got {y_train[0].item()!r} and {y_test[0].item()!r}; code them "
            "alike"
        )
    if not np.isin(y_test, y_train).any():
        raise ValueError(
            "expected classes that occur in training and in test, got "
            f"{np.unique(y_train)[:5]} ... and {np.unique(y_test)[:5]} ...; split "
            "the items within classes, not between them"
        )
    return z_train, y_train, z_test, y_test


def plain(values: Array) -> np.ndarray:
    """Trusted values as a NumPy array on the CPU, detached from the autograd graph."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # unknown to NumPy
            values = values.float()
    return np.asarray(values)


def refuse_mappings(values: Any, name: str) -> None:
    """Raise a TypeError for a dict of arrays, and for a list of dicts."""
    listed = isinstance(values, list | tuple) and len(values) > 0
    first = values[0] if listed else values
    if not isinstance(first, Mapping):
        return
    kind, keys = type(first).__name__, [*first] or ["image"]
    found = f"{kind} of {_listed(map(repr, keys))}"
    raise TypeError(
        f"expected an array in {name}, got a list, each row a {found}; take one key of "
        f"all: np.stack([row[{keys[0]!r}] for row in rows])"
        if listed
        else f"expected an array in {name}, got a {found}; give one of its arrays, "
        f"d[{keys[0]!r}], or all as modalities: ps.data.groups(list(d.values()))"
    )


def _listed(names: Iterable[Any]) -> str:
    """Some names, as an error shows them."""
    return shorten(", ".join(map(str, islice(names, 40))), 60, placeholder=" …")


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, np.generic)


def _stacked(values: Sequence[Any], name: str, words: bool) -> Array:
    """A list of arrays as one array, each of them through the gate."""
    for value in values:  # the index of a series has the names that columns have
        axis = "columns" if getattr(value, "ndim", 1) > 1 else "index"
        check_alike(values[0], value, name, axis)
    parts = [gate(value, name, words=words) for value in values]
    if len(shapes := {tuple(part.shape) for part in parts}) > 1:
        raise ValueError(
            f"expected rows of one shape in {name}, got {sorted(shapes)[:5]}; pad or "
            "cut them"
        )
    if all(isinstance(part, Tensor) for part in parts):
        return torch.stack(parts)  # type: ignore[arg-type]
    return np.stack([plain(part) for part in parts])


def _dense(values: Tensor, name: str) -> Tensor:
    """A tensor without its graph; refused unless dense and real."""
    masked = torch.masked.is_masked_tensor(values)
    for found, came, remedy in (
        (masked, "a masked tensor", "fill what is hidden: x.to_tensor(0)"),
        (values.is_nested, "a nested tensor", "pad it: x.to_padded_tensor(0)"),
        (values.layout != torch.strided, "a sparse tensor", "give x.to_dense()"),
        (values.is_quantized, "a quantised tensor", "give x.dequantize()"),
        (values.is_complex(), f"{values.dtype}", _REMEDY["c"]),
        (values.is_meta, "a tensor without data (meta)", "give one with numbers"),
    ):
        if found:
            raise TypeError(f"expected real numbers in {name}, got {came}; {remedy}")
    values = values.detach()
    if values.is_floating_point() and values.itemsize == 1:
        values = values.float()  # which torch hardly calculates in
    return values.resolve_neg() if values.is_neg() else values


def _array(values: Any, name: str, words: bool) -> np.ndarray:
    """Any other values as a NumPy array, nothing dropped from them."""
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            raise ValueError(
                f"expected numbers in all of {name}, got a masked array with "
                f"{int(np.ma.count_masked(values))} of {values.size} entries hidden; "
                "fill them, x.filled(…), or leave these items out"
            )
        return np.asarray(values.data)
    if hasattr(values, "nnz") and hasattr(values, "toarray"):
        raise TypeError(
            f"expected real numbers in {name}, got a sparse "
            f"{type(values).__name__}; give x.toarray()"
        )
    if "pandas" in sys.modules and hasattr(values, "isna"):
        return _pandas(values, name)
    # NumPy makes strings of numbers and bytes that stand beside strings.
    kept = object if words and isinstance(values, list | tuple) else None
    try:
        return np.asarray(values, dtype=kept)
    except ValueError:
        raise ValueError(
            f"expected rows of one length in {name}, got a nested "
            f"{type(values).__name__} of several; pad or cut them"
        ) from None


def _pandas(values: Any, name: str) -> np.ndarray:
    """A DataFrame, Series or index, nullable types without missing values included."""
    table = values.ndim > 1
    types = set(values.dtypes if table else [values.dtype])
    if any(str(kind).startswith("Sparse[") for kind in types):
        raise TypeError(
            f"expected real numbers in {name}, got sparse ones of pandas; give "
            "x.sparse.to_dense()"
        )
    if not all(isinstance(kind, np.dtype) for kind in types):
        if missing := int(np.asarray(values.isna()).sum()):
            raise ValueError(
                f"expected numbers in all of {name}, got {missing} of {values.size} "
                "missing (NaN or NA); drop or impute them first"
            )
    bad = sorted(str(kind) for kind in types if kind.kind not in "buif")
    if bad and table:
        raise TypeError(
            f"expected real numbers in {name}, got columns of {', '.join(bad)}; take "
            "those of numbers: frame.select_dtypes('number'), or one: frame['y']"
        )
    if table and len(types) > 1:  # which pandas may give as objects
        return np.column_stack([_pandas(column, name) for _, column in values.items()])
    own = {getattr(kind, "numpy_dtype", kind) for kind in types}
    return np.asarray(values, dtype=None if bad else own.pop())


def _described(values: Any) -> str:
    """What came, where it is no array."""
    known = isinstance(values, list | tuple) or hasattr(values, "dtype")
    return "" if known else type(values).__name__


def _rounded(array: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        double = array.astype(np.float64)
    if (np.isinf(double) & ~np.isinf(array)).any():
        raise ValueError(
            f"expected numbers within float64 in {name}, got {array.dtype} up to "
            f"{np.abs(array).max()}; rescale them"
        )
    return double


def _unboxed(array: np.ndarray, name: str) -> np.ndarray:
    """An array of Python objects as numbers or strings, all of one kind."""
    listed = array.ravel().tolist()
    real = int | float | np.number | np.bool_
    kind = str if listed and isinstance(listed[0], str) else real
    odd = next((value for value in listed if not isinstance(value, kind)), array)
    if odd is array:
        return np.array(listed).reshape(array.shape)
    raise TypeError(
        f"expected classes, whole numbers or strings in {name}, got an object such as "
        f"{odd!r}; leave out items without a label, and code the others alike"
    )


def _int64(array: np.ndarray, name: str) -> Int[np.ndarray, "*shape"]:
    """Whole numbers as int64, which must hold them."""
    if array.size and array.dtype.kind not in "bi":
        low, high = array.min().item(), array.max().item()
        most = 2**53 if array.dtype.kind == "f" else 2**63
        if low < -most or high >= most:
            raise ValueError(
                f"expected whole numbers that int64 holds exactly in {name}, got "
                f"{array.dtype} from {low} to {high}; number them: "
                "np.unique(y, return_inverse=True)[1]"
            )
    return array.astype(np.int64, copy=False)
