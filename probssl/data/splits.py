"""Data sets in memory: items with labels, groups of views, training and test set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from textwrap import shorten
from typing import Any, Literal, NamedTuple, NoReturn, Self

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from ..arguments import typed, whole
from ..arrays import Array, check_alike, gate, plain, tensor, unlabelled, whole_numbers
from ..arrays import labels as class_names
from ..covariates import Covariates, checked_covariates, rows_at
from ..runtime.digests import digest

__all__ = ["Dataset", "Groups", "Split", "fixed_split"]


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Tensors with one row for each item; `len` is the number of items."""

    def __post_init__(self) -> None:
        lengths: list[int] = []
        first = next(iter(self._columns.values()))
        for i, (name, value) in enumerate(self._columns.items()):
            if value is None and i:
                continue
            if name == "covariates":
                continue
            listed = isinstance(value, list | tuple)
            if listed and not len(value):
                raise ValueError(
                    f"expected at least one item in {name}, got an empty "
                    f"{type(value).__name__}; give one row for each item"
                )
            check_alike(first, value, name, "index")
            several = i == 0 and type(value) is tuple
            if name == "views" and listed and hasattr(value[0], "__array__"):
                several = True  # a list too has an array for each modality, as `groups`
            parts = value if several else (value,)
            kept = [
                x if isinstance(x, np.memmap) else _converted(x, name, words=i > 0)
                for x in parts
            ]
            if not all(part.ndim for part in kept):
                raise ValueError(
                    f"expected {name} (n, …), a row for each item, got one number; "
                    f"give [{value}] for one item"
                )
            lengths += [len(part) for part in kept]
            object.__setattr__(self, name, tuple(kept) if several else kept[0])
        if len(set(lengths)) > 1:
            raise ValueError(
                f"expected as many rows in all parts of a {type(self).__name__}, one "
                f"for each item, got {lengths}; give them in the same order"
            )
        if (known := vars(self).get("covariates")) is not None:
            known = checked_covariates(known, len(self), like=first)
            object.__setattr__(self, "covariates", known)
        if (names := vars(self).get("classes")) is not None:
            labels = vars(self)["labels"]
            object.__setattr__(self, "classes", _names(names, labels))
            if isinstance(labels, Tensor):  # told apart where those of two sets meet
                labels = labels.detach()
                vars(labels)["classes"] = vars(self)["classes"]
                object.__setattr__(self, "labels", labels)

    @property
    def _columns(self) -> dict[str, Any]:
        """What has a row for each item: all but the names of classes."""
        left = {"classes"}
        if vars(self).get("covariates") is None:
            left.add("covariates")  # digests of data without them stay
        return {k: value for k, value in vars(self).items() if k not in left}

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        """The images or views, one tensor for each modality."""
        values = next(iter(vars(self).values()))
        return values if isinstance(values, tuple) else (values,)

    def __len__(self) -> int:
        return len(self._parts[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_summary(self)})"

    def _repr_html_(self) -> str:
        return f"<table>{_row(type(self).__name__, self)}</table>"

    def __getitem__(self, row: Any) -> NoReturn:
        """Items are taken by `rows`; a DataLoader, which asks here, takes tensors."""
        name = type(self).__name__
        values = next(iter(vars(self)))
        raise TypeError(
            f"expected a {name} in fit or embed, which make its batches, or its rows "
            f"by .rows(slice(10)), got one that is indexed, as a DataLoader does; for "
            f"that give DataLoader(data.{values}, 128), bytes as data.{values} / 255"
        )

    __iter__ = None

    def rows(self, index: Shaped[Array, " m"] | Sequence[int] | slice) -> Self:
        """The items with these row numbers, in this order; or where a mask is true."""
        n = len(self)
        hint = f"give [3] for row 3 of 0 to {n - 1}, a mask of {n}, or a slice"
        if not isinstance(index, slice):
            index = tensor(index, "index")
            if index.ndim != 1 or index.is_floating_point():
                raise TypeError(
                    "expected row numbers (m,), a mask (n,) or a slice as index, got "
                    f"{index.dtype} of shape {tuple(index.shape)}; {hint}"
                )
            if index.dtype != torch.bool:  # bytes are numbers too
                index = whole_numbers(index, "index", hint)
        try:
            taken: dict[str, Any] = {
                name: tuple(part_rows(part, index) for part in value)
                if isinstance(value, tuple)
                else part_rows(value, index)
                for name, value in self._columns.items()
                if value is not None and name != "covariates"
            }
            if (known := vars(self).get("covariates")) is not None:
                taken["covariates"] = rows_at(known, index)
        except (IndexError, TypeError, ValueError) as error:
            raise type(error)(
                f"expected index of the {n} items here, got {index}; {hint}"
            ) from error
        return replace(self, **taken)

    @typed
    def take(self, n: int, seed: int | None = 0) -> Self:
        """A random subset of n items, always the same for one seed.

        With ``seed=None`` the first n items, as `to_arviz` takes them; files are often
        sorted by class, which is why this is not the default.

        Raises:
            ValueError: If there are fewer than n items.
        """
        n = whole("n", n, 1, len(self), "there are no more items here")
        if seed is None:
            return self.rows(slice(n))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.rows(order[:n])

    def _replace(self, **changes: Any) -> Self:
        """A copy with other tensors; named as for the tuples `Batch` and `Dataset`."""
        return replace(self, **changes)


@dataclass(frozen=True, eq=False, repr=False)
class Split(Rows):
    """Images or other items, and what is known about each: its class and its style.

    Arguments:
        images: Bytes in 0..255, which stand for k/255, or floating point in [0, 1];
            arrays that are no images may hold any finite number. A list has the items,
            a tuple an array for each modality. Arrays are kept, not copied: who changes
            them later changes the data set.
        labels: The classes, whole numbers or strings, used for evaluation only: the
            content.
        style: What varies within a class (the writer, the factors of a simulator).
        classes: The names of the classes, in the order of their numbers. Where classes
            have names, the label -1 stands for an item without a class.
        covariates: A dictionary of what is observed of each item besides, such as the
            library size or the batch of a cell: `Batch.covariates`, (n,) or (n, k), of
            each view (n, view, k).

    Example:
        >>> import probssl as ps
        >>> ps.data.digits().train
        Split(1346 items (1, 8, 8), float32, 10 classes)
    """

    images: Shaped[Tensor, "n *event"]
    labels: Int[Tensor, " n"] | None = None
    style: Shaped[Tensor, "n *factors"] | None = None
    classes: tuple[str, ...] | None = None
    covariates: Covariates | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Groups(Rows):
    """Positive pairs or groups that need no augmentation; `groups` makes them.

    Arguments:
        views: The views of each item, with shape (n, view, \\*event); or one such
            tensor for each modality, where their event shapes differ.
        labels: The class numbers, used for evaluation only: no objective sees them. As
            in a `Split`, -1 is no class where classes have names.
        present: Which views were observed; None means all of them.
        content: Observed contents, which reach the objective in `Batch.content`: whole
            numbers, -1 where one is not known.
        classes: The names of the classes, in the order of their numbers.
        covariates: As those of a `Split`; of each view (n, view, k).
    """

    views: Shaped[Tensor, "n view *event"] | tuple[Tensor, ...]
    labels: Int[Tensor, " n"] | None = None
    present: Bool[Tensor, "n view"] | None = None
    content: Int[Tensor, " n"] | None = None
    classes: tuple[str, ...] | None = None
    covariates: Covariates | None = None


class Dataset(NamedTuple):
    """A training and a test set of one kind of data.

    Arguments:
        levels: The number of grey levels minus one: 1 for binary images, 16 for
            scikit-learn's digits, 255 for bytes; None for what is not quantised.
        rounding: How views are quantised, see `views.Grid`. With ``"random"`` training
            images may lie between the levels.
    """

    train: Split
    test: Split
    levels: int | None
    name: str
    rounding: Literal["nearest", "random"] = "nearest"

    def __getitems__(self, rows: Any) -> NoReturn:
        """A DataLoader, which asks here for a batch, takes one of the two splits."""
        raise TypeError(
            "expected items in a DataLoader, got a Dataset, which has two splits of "
            "them; give fit or embed data.train itself, and DataLoader(data.train."
            "images, 128) where a loader is needed"
        )

    @property
    def fingerprint(self) -> str:
        """A digest of all items, labels and classes, the same on every machine."""
        parts = [[split._columns, split.classes] for split in (self.train, self.test)]
        return digest(parts, self.levels, self.rounding)

    def take(self, train: int, test: int, seed: int | None = 0) -> "Dataset":
        """Random subsets of so many training and test items, as `Split.take`."""
        few = self.train.take(train, seed), self.test.take(test, seed)
        return self._replace(train=few[0], test=few[1])

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, levels={self.levels},\n"
            f"    train={self.train},\n    test={self.test})"
        )

    def _repr_html_(self) -> str:
        grid = "not quantised" if self.levels is None else f"{self.levels + 1} levels"
        caption = f"<caption>{escape(self.name)}, {grid}</caption>"
        rows = _row("train", self.train) + _row("test", self.test)
        return f"<table>{caption}{rows}</table>"


def _converted(values: Any, name: str, words: bool) -> Tensor | np.ndarray:
    """Numbers as a tensor; strings, such as names of classes, as an array."""
    if name == "labels":
        return _classes(values)
    found = gate(values, name, words=words)
    strings = isinstance(found, np.ndarray) and found.dtype.kind not in "buif"
    return found if strings else tensor(found, name)


def _names(names: Any, labels: Any) -> tuple[str, ...]:
    """The names of classes, one for each number that occurs in the labels."""
    listed = () if isinstance(names, str) else tuple(names)
    numbers = isinstance(labels, Tensor) and len(labels)
    most = int(labels.max()) if numbers else len(listed) - 1
    least = int(labels.min()) if numbers else 0
    if least < -1:
        raise ValueError(
            f"expected labels from 0, or -1 of items without, got {least}; where "
            "classes have names, labels are their positions"
        )
    if not all(isinstance(name, str) for name in listed) or len(listed) <= max(most, 0):
        raise ValueError(
            "expected classes as the names of all classes, a tuple of strings in the "
            f"order of their numbers, got {names!r} for labels up to {most}; give "
            "('cat', 'dog') for labels 0 and 1"
        )
    return listed


def _classes(values: Any) -> Tensor | np.ndarray:
    """Classes (n,) as int64 on their device, or as strings."""
    on_device = isinstance(values, Tensor)
    if on_device and values.dtype == torch.int64 and values.ndim == 1:
        return values
    found = class_names(values, None)
    if found.dtype.kind == "U":
        return found
    return tensor(found, "labels").to(values.device if on_device else "cpu")


def fixed_split(whole: Split, levels: int | None, name: str, seed: int = 0) -> Dataset:
    """Three quarters of every class for training, one for the test, in random order.

    A class with a single item is for training.
    """
    n, labels = len(whole), whole.labels
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
            f"item(s) in {len(classes)} class(es); pass a test set"
        )
    train, test = (whole.rows(order[part]) for part in (~held_out, held_out))
    return Dataset(train, test, levels, name)


def part_rows(values: Array, index: Tensor | slice) -> Any:
    """These rows of a tensor on its device, or of an array, as which it stays."""
    if isinstance(index, slice):
        return values[index]
    if isinstance(values, Tensor):
        return values[index.to(values.device)]
    return values[index.cpu().numpy()]  # NumPy takes a tensor of one number as a scalar


def _row(name: str, data: Rows) -> str:
    return f"<tr><th>{name}</th><td>{escape(_summary(data))}</td></tr>"


def _summary(data: Rows) -> str:
    shapes = ", ".join(str(tuple(part.shape[1:])) for part in data._parts)
    dtype = str(data._parts[0].dtype).removeprefix("torch.")
    names = getattr(data, "classes", None)
    said = f" ({shorten(', '.join(names), 60)})" if names else ""
    known = [
        _counted(value, said)
        if name == "labels"
        else f"covariates {', '.join(value)}"
        if name == "covariates"
        else name
        for name, value in [*data._columns.items()][1:]
        if value is not None
    ]
    return ", ".join([f"{len(data)} items {shapes}", dtype, *known])


def _counted(labels: Tensor | np.ndarray, said: str) -> str:
    """The number of classes that occur, and that of items without one."""
    missing = unlabelled(labels)
    count = len(set(plain(labels)[~missing].tolist()))
    without = f", {missing.sum()} without a label" if missing.any() else ""
    return f"{count} classes{said}{without}"
