"""Batches: rows of the data, moved to the device and augmented to views there."""

from collections.abc import Callable, Iterator, Sized
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..arrays import check_kind, left_alone, raw_bytes, tensor, whole_numbers
from ..covariates import Covariates, checked_covariates, joined, rows_at
from ..terms import Batch
from .memory import (
    check_finite,
    check_items,
    observed_content,
    observed_mask,
    value_tensor,
)
from .splits import Groups, Split, part_rows

__all__ = ["Data", "Items", "Loadable", "Target", "Views", "accepted", "checked"]
__all__ += ["in_order", "loaded", "rows_of", "viewed"]

Data = Split | Groups | Tensor | np.ndarray | tuple[Tensor | np.ndarray, ...]
"""The data of items; also lists of numbers and pandas objects."""
Loadable = Data | DataLoader
Views = Callable[[Tensor], Tensor | Batch]
Part = Tensor | np.memmap  # a file is read batch by batch

_SHUFFLES = (
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
BY_COLLATE = (  # how a loader gives views
    "let its collate_fn make ps.Batch(torch.stack([a, b], 1)): lambda rows: "
    "ps.Batch(torch.stack([torch.stack(list({row})) for row in rows]))"
)
CHUNK = 2**24  # numbers that are checked for NaN and infinity in one chunk


class Target(NamedTuple):
    """The device and the dtype of the objective, to which batches are moved."""

    device: torch.device
    dtype: torch.dtype

    def move(self, value: Any) -> Any:
        """All tensors of a nest of lists, tuples and dictionaries, on the device."""
        # A copy to the CPU must be complete before it is read.
        wait = self.device.type == "cpu"
        return _mapped(lambda x: x.to(self.device, non_blocking=not wait), value)

    def values(self, x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Bytes k as k/255, other numbers unchanged, in the objective's dtype."""
        return self._number(self.move(x))

    def batch(self, batch: Batch) -> Batch:
        """A batch on the device, its views and originals as `values`.

        Covariates in floating point get the dtype of the objective.
        """
        views, clean, *known = map(self.move, batch)
        views, clean = (_mapped(self._number, part) for part in (views, clean))
        moved = Batch(views, clean, *known)
        if moved.covariates is None:
            return moved
        return moved._replace(covariates=self.covariates(moved.covariates))

    def covariates(self, known: Covariates) -> Covariates:
        """Covariates on the device, floating point in the objective's dtype."""
        return {
            name: x.to(self.dtype) if x.is_floating_point() else x
            for name, x in self.move(known).items()
        }

    def _number(self, x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        numbers = x.to(self.dtype)
        return numbers.div_(255) if x.dtype == torch.uint8 else numbers


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`tree_map_only`, without its overhead where there is no nest."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    return tree_map_only(Tensor, change, value)


class Items:
    r"""The items of a data set, from which batches for an objective are made.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one for each modality. A `numpy.memmap` stays on the disk. Bytes stand for
            k/255 in a `Split` and in `Groups`, and are refused elsewhere.
        like: A tensor with the device and the dtype of the objective, such as one of
            its parameters; None means those of the data.
        views: The data augmentation (batch, \*event) -> (batch, view, \*event), or ->
            Batch. Groups and several modalities have their own views. Otherwise None
            means that each item is its only view.
        content: Contents of some of the items, as `Batch.content`.
        covariates: Those of the items, as `Batch.covariates`, if the data have none.
        name: What the data are called in errors.
    """

    def __init__(
        self,
        data: Data,
        like: Target | Tensor | None,
        views: Views | None = None,
        content: Any = None,
        covariates: Any = None,
        name: str = "data",
    ) -> None:
        values = _values(data)
        self.grouped, self.several = isinstance(data, Groups), isinstance(values, tuple)
        if views is not None and (self.grouped or self.several):
            raise ValueError(
                "expected no views for Groups or several modalities, which have their "
                "own; leave views out, or make a Split of single views"
            )
        groups = "the views of Groups" + f" in {name}" * (name != "data")
        what = groups if self.grouped else name
        parts, said = _parts(values), isinstance(data, Split | Groups)
        self.parts: tuple[Part, ...] = tuple(_part(x, what, said) for x in parts)
        self.present = data.present if isinstance(data, Groups) else None
        _check_lengths(self.parts, self.present)
        if self.present is not None:
            widths = sum(part.shape[1] for part in self.parts)
            self.present = observed_mask(self.present, len(self), widths)
        self.content = _known(data, content, len(self))
        self.covariates = _covariates(data, covariates, self._sizes)
        self.first = self._raw(slice(1)).parts  # has the dtypes of all items
        like = _own(self.first[0]) if like is None else like
        self.target, self.views = Target(like.device, like.dtype), views
        self._check_numbers(what)
        self._check_covariates()
        if isinstance(views, nn.Module):
            views.to(self.target.device)

    @property
    def _sizes(self) -> tuple[int, int | None]:
        """The numbers of items, and of views, None where that may change."""
        if self.grouped:
            return len(self), sum(part.shape[1] for part in self.parts)
        return len(self), None

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def size(self) -> int:
        """The memory that the views of all items take on the device, in bytes."""
        return len(self) * sum(x.numel() * self._kept(x).itemsize for x in self.first)

    def settle(self) -> None:
        """Move all items to the device; uint8 stays uint8, a quarter of the memory."""
        move = self.target.move
        parts = (_rows(part, slice(None)) for part in self.parts)
        self.parts = tuple(move(part).to(self._kept(part)) for part in parts)
        self.present, self.content = move(self.present), move(self.content)
        self.covariates = move(self.covariates)

    def take(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The items in these rows, not yet moved, converted or augmented."""
        return self._raw(rows)._replace(index=rows)

    def make(self, taken: Batch) -> Batch:
        """The batch of the items that `take` gave, on the device, with its views."""
        batch = self.target.batch(taken)
        if self.grouped or self.several:
            return batch
        drawn = viewed(batch.stacked[:, 0], self.views, batch.index)
        if None not in (batch.content, drawn.content):
            raise ValueError(
                "expected contents of the items or of the sampler, got both, which may "
                "differ; leave out content= (the labels), or content in the sampler's "
                "Batch"
            )
        content = drawn.content if batch.content is None else batch.content
        known = joined(batch.covariates, drawn.covariates)
        return drawn._replace(content=content, covariates=known)

    def batch(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The batch of the items in these rows."""
        return self.make(self.take(rows))

    def alone(
        self, rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *event"] | tuple[Tensor, ...]:
        """The items in these rows without augmentation, a tensor per modality."""
        if self.grouped:
            way = "pass one view: groups.views[:, 0]"
            if self.several:
                way = "pass a view of each modality: "
                way += "tuple(part[:, 0] for part in groups.views)"
            if self.present is not None:
                way = "a Joint takes them in ps.embed and ps.complete"
            raise TypeError(f"expected single items, got Groups; {way}")
        parts = tuple(self.target.values(_rows(part, rows)) for part in self.parts)
        return parts if self.several else parts[0]

    def _raw(self, rows: Int[Tensor, " batch"] | slice) -> Batch:
        parts = tuple(_rows(part, rows) for part in self.parts)
        if not self.grouped:
            parts = tuple(part.unsqueeze(1) for part in parts)
        present, content = (
            None if known is None else _rows(known, rows)
            for known in (self.present, self.content)
        )
        views = parts if self.several else parts[0]
        known = rows_at(self.covariates, rows)
        return Batch(views, present=present, content=content, covariates=known)

    def _kept(self, part: Tensor) -> torch.dtype:
        return part.dtype if part.dtype == torch.uint8 else self.target.dtype

    def _check_covariates(self) -> None:
        """Check that covariates are finite in the dtype of the objective."""
        for name, x in (self.covariates or {}).items():
            if x.is_floating_point():
                what = f"covariates[{name!r}]"
                check_finite([(x,)], len(x), what, self.target.dtype)

    def _check_numbers(self, what: str) -> None:
        """Check that numbers are finite, and in the range that the views expect."""
        if any(one.is_floating_point() for one in self.first):
            step = max(1, CHUNK // sum(one.numel() for one in self.first))
            starts = range(0, len(self), step)
            chunks = (self._raw(slice(start, start + step)).parts for start in starts)
            ends = check_finite(chunks, len(self), what, self.target.dtype)
            if (check := getattr(self.views, "check_range", None)) is not None:
                check(*ends, len(self.first[0].shape) - 1)


def viewed(
    x: Shaped[Tensor, "batch *event"],
    views: Views | None,
    index: Int[Tensor, " batch"] | None = None,
) -> Batch:
    """A batch of augmented views of the items x; without `views`, of x itself."""
    with left_alone("views", x):
        drawn = x.unsqueeze(1) if views is None else views(x)
    if isinstance(drawn, Tensor) and drawn.ndim == x.ndim + 1:
        drawn = Batch(drawn)
    elif isinstance(drawn, Batch):
        drawn = checked(drawn)
    if not isinstance(drawn, Tensor | Batch):
        raise TypeError(
            "expected views to return a tensor (batch, view, *event) or a Batch, got "
            f"{type(drawn).__name__}; stack them: torch.stack([a, b], dim=1)"
        )
    if isinstance(drawn, Tensor) or drawn.shape[0] != len(x):
        parts = drawn if isinstance(drawn, Tensor) else drawn.views
        parts = parts if isinstance(parts, tuple) else (parts,)
        raise ValueError(
            f"expected views of shape ({len(x)}, view, *event) for items of shape "
            f"{tuple(x.shape)}, got {', '.join(str(tuple(p.shape)) for p in parts)}; "
            "stack them: torch.stack([a, b], dim=1)"
        )
    if not drawn.shape[1]:
        raise ValueError(
            "expected views with at least one view of each item, got shapes "
            f"{[tuple(p.shape) for p in drawn.parts]}; stack them: "
            "torch.stack([a, b], dim=1)"
        )
    clean = x if drawn.clean is None else drawn.clean
    return drawn._replace(clean=clean, index=index)


def accepted(
    load: Any,
    views: Views | None,
    dtype: torch.dtype,
    check_content: Callable[[Tensor], Any] | None = None,
    name: str = "the DataLoader",
) -> Tensor | Batch:
    """What a DataLoader yields, checked: a Batch, or items without their labels.

    Arguments:
        load: A Batch, items, or (items, labels, …), before it is moved to the device.
        dtype: The dtype of the objective, in which the numbers must be finite.
        check_content: Called with observed contents that are on the CPU.
        name: What the loader is called in errors.
    """
    if isinstance(load, Batch):
        if views is not None:
            raise ValueError(
                "expected no views for a DataLoader of Batches, which has its own; "
                "leave views out, or load the items alone"
            )
        load = checked(load)
        for part in (*load.parts, *_parts(load.clean)):  # absent views hold anything
            if part is not None:
                _loaded_items(part, dtype, name)
        known = load.content
        if check_content is not None and known is not None and known.is_cpu:
            check_content(known)
        return load
    x, *others = load if isinstance(load, list | tuple) and load else (load,)
    kinds = Tensor | np.ndarray
    if isinstance(x, kinds) and any(_alike(x, other) for other in others):
        raise ValueError(
            "expected a DataLoader of items and their labels, got several arrays like "
            f"one of shape {tuple(x.shape)}: views, all but the first left out; "
            f"{BY_COLLATE.format(row='row')}, or give fit "
            "ps.data.groups([a, b]); if these are labels, load the items alone"
        )
    if isinstance(x, list | tuple) and all(isinstance(view, Tensor) for view in x):
        raise TypeError(
            "expected the DataLoader to yield tensors, (tensor, label) or Batches, "
            f"got {type(x).__name__} of {len(x)} tensors; for views "
            f"{BY_COLLATE.format(row='row[0]')}"
        )
    if not isinstance(x, kinds):
        keys = f" of {', '.join(map(repr, x))}" if isinstance(x, dict) else ""
        key = next(iter(x)) if keys and len(x) else "image"
        raise TypeError(
            "expected the DataLoader to yield tensors, (tensor, label) or Batches, "
            f"got {type(x).__name__}{keys}; give it a collate_fn that makes one of "
            f"these: lambda rows: torch.stack([torch.as_tensor(r[{key!r}]) for r in "
            "rows])"
        )
    return _loaded_items(x, dtype, name)


def _alike(x: Tensor | np.ndarray, other: Any) -> bool:
    """Whether another array of a load looks like views of x: images of any size, say.

    Not so the numbers (n, k) of another length, which may be labels.
    """
    if not isinstance(other, Tensor | np.ndarray) or x.ndim != other.ndim or x.ndim < 2:
        return False
    same = x.shape == other.shape or (x.ndim > 2 and len(x) == len(other))
    return same and all("float" in str(each.dtype) for each in (x, other))


def loaded(load: Tensor | Batch, views: Views | None, target: Target) -> Batch:
    """The batch of an accepted load."""
    if isinstance(load, Batch):
        return target.batch(load)
    return viewed(target.values(load), views)


def checked(batch: Batch) -> Batch:
    """A Batch that was not made here, with all of it in tensors of fitting shapes.

    Values are read on the CPU alone: elsewhere that would synchronise.

    Raises:
        TypeError: If a part holds anything but numbers, `present` but Booleans, `index`
            and `content` but whole numbers, `covariates` but a dictionary of tensors.
        ValueError: If shapes do not fit each other, or an item has no view.
    """
    several = isinstance(batch.views, tuple | list)
    given = batch.views if several else (batch.views,)
    parts = tuple(_in_tensor(x, "Batch.views") for x in given)
    shapes = [tuple(part.shape) for part in parts]
    n = shapes[0][0] if shapes and shapes[0] else 0
    if not n or any(len(shape) < 2 or shape[0] != n for shape in shapes):
        found = shapes if several else shapes[0]
        raise ValueError(
            "expected Batch.views as a tensor (batch, view, *event) with at least one "
            f"item, or a tuple of these with as many items, got {found}; stack the "
            "views of an item along axis 1"
        )
    known: dict[str, Any] = {"views": parts if several else parts[0]}
    if batch.present is not None:
        read = parts[0].device.type == "cpu"
        widths = sum(shape[1] for shape in shapes)
        known["present"] = observed_mask(batch.present, n, widths, read=read)
    if batch.covariates is not None:
        widths = sum(shape[1] for shape in shapes)
        known["covariates"] = checked_covariates(batch.covariates, n, widths)
    for name in ("index", "content"):
        value = getattr(batch, name)
        if value is None:
            continue
        if not isinstance(value, Tensor) or value.dtype != torch.int64:
            hint = "give a whole number for each item"
            floats = name == "content"
            value = whole_numbers(value, f"Batch.{name}", hint, floats)
        if value.shape != (n,):
            raise ValueError(
                f"expected Batch.{name} with shape ({n},), a number for each item, got "
                f"{tuple(value.shape)}; leave it out where it is not known"
            )
        if name == "content" and value.is_cpu and (low := int(value.min())) < -1:
            raise ValueError(
                f"expected Batch.content from -1 (unknown), got {low}; give the number "
                "of a component, -1 where it is not known"
            )
        known[name] = value
    return batch._replace(**known)


def _in_tensor(x: Any, name: str) -> Tensor:
    return x if isinstance(x, Tensor) and x.is_floating_point() else tensor(x, name)


def _loaded_items(
    x: Any, dtype: torch.dtype, name: str
) -> Shaped[Tensor, "batch *event"]:
    """The items of a load as a dense tensor of finite numbers that are no raw bytes."""
    found = tensor(x, f"the batches of {name}")
    if found.dtype == torch.uint8:
        raise ValueError(
            "expected a DataLoader of floating point, got bytes (uint8), which may be "
            "images or counts; let its collate_fn give x / 255 for images, x.float() "
            "for counts"
        )
    if found.is_floating_point() and found.numel():
        check_finite([(found,)], len(found), f"a batch of {name}", dtype)
    return found


def in_order(
    loader: DataLoader, like: Target | Tensor | None, views: Views | None = None
) -> Iterator[Batch]:
    """The batches of all items of a DataLoader in the order of its data set, checked.

    Raises:
        ValueError: If the loader gives items in another order, leaves some out, or
            yields none; if they are not finite.
    """
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    for order in (sampler, loader.batch_sampler):
        if not _is_ordered(loader, order):
            raise ValueError(
                "expected a DataLoader in the order of its items, which results and "
                f"labels share, got one with a {type(order).__name__}; pass "
                "shuffle=False, without a sampler or batch_sampler"
            )
    if getattr(loader.batch_sampler, "drop_last", loader.drop_last):
        raise ValueError(
            "expected a DataLoader of all items, got one with drop_last=True; pass "
            "drop_last=False"
        )
    seen = 0
    for load in loader:
        target = _own(_first(load)) if like is None else Target(like.device, like.dtype)
        batch = loaded(accepted(load, views, target.dtype), views, target)
        seen += batch.shape[0]
        yield batch
    if not seen:
        raise ValueError("expected a DataLoader of at least one item, got an empty one")
    many = len(sampler) if isinstance(sampler, Sized) else 0
    if loader.batch_sampler is not None and seen < many:
        raise ValueError(
            f"expected a DataLoader of all {many} items, got {seen} of them; "
            "let its batch_sampler keep every row, or load a torch.utils.data.Subset"
        )


def _is_ordered(loader: DataLoader, order: Any) -> bool:
    """Whether a sampler, or a batch sampler, gives the rows 0, 1, 2, …"""
    known = order is None or type(order) in (BatchSampler, SequentialSampler)
    if known or isinstance(loader.dataset, IterableDataset):
        return True
    if isinstance(order, _SHUFFLES) or not isinstance(order, Sized):
        return False
    each: Any = order
    rows = [np.ravel(row) for row in islice(each, len(order) + 1)]
    found = np.concatenate(rows) if rows else np.empty(0)
    return np.array_equal(found, np.arange(len(found)))


def rows_of(loader: DataLoader, n: int) -> Tensor | Groups:
    """The first n items of a DataLoader, or all, as a data set in memory."""
    found: list[Batch] = []
    for batch in in_order(loader, None):
        found.append(batch)
        if sum(each.shape[0] for each in found) >= n:
            break
    several = isinstance(found[0].views, tuple)
    parts = tuple(map(torch.cat, zip(*(each.parts for each in found), strict=True)))
    present = _joined([each.present for each in found], found, True)
    content = _joined([each.content for each in found], found, -1)
    known = _all_covariates([each.covariates for each in found])
    bare = present is content is known is None
    if bare and not several and parts[0].shape[1] == 1:
        return parts[0][:, 0]
    views = parts if several else parts[0]
    return Groups(views, None, present, content, covariates=known)


def _all_covariates(known: list[Covariates | None]) -> Covariates | None:
    """The covariates of all batches of a loader, which must have the same."""
    names = [tuple(sorted(each or {})) for each in known]
    if len(set(names)) > 1:
        raise ValueError(
            "expected the same covariates in all batches of the DataLoader, got "
            f"{names[0]} and {next(n for n in names if n != names[0])}; let its "
            "collate_fn give each of them"
        )
    first = known[0]
    if first is None:
        return None
    rows = [each for each in known if each is not None]
    return {name: torch.cat([each[name] for each in rows]) for name in first}


def _joined(
    known: list[Tensor | None], batches: list[Batch], default: bool | int
) -> Tensor | None:
    """What some of the batches say of their items, and the default for the others."""
    one = next((x for x in known if x is not None), None)
    if one is None:
        return None
    return torch.cat(
        [
            one.new_full((batch.shape[0], *one.shape[1:]), default) if x is None else x
            for x, batch in zip(known, batches, strict=True)
        ]
    )


def _first(load: Any) -> Tensor:
    """The tensor of a load whose device and dtype count, where no objective has one."""
    x = load[0] if isinstance(load, list | tuple) else load
    x = x[0] if isinstance(x, tuple) else x
    return x if isinstance(x, Tensor) else torch.zeros(())


def _values(data: Any) -> Any:
    """The tensors or arrays of the data, without labels."""
    values = data.images if isinstance(data, Split) else data
    values = data.views if isinstance(data, Groups) else values
    for part in _parts(values):
        several = isinstance(part, list) and any(hasattr(x, "__array__") for x in part)
        known = isinstance(part, Tensor | list) or hasattr(part, "__array__")
        if several or not (known or hasattr(part, "toarray")):
            hint = "its .train or .test" if hasattr(part, "train") else "one of these"
            if several:
                hint += (
                    ": np.stack(…) for items, ps.data.groups([…]) for their views"
                    ", tuple(…) for modalities"
                )
            elif hasattr(values, "X"):  # as of anndata
                hint = "its .X, of a sparse matrix .X.toarray()"
            elif isinstance(part, Split):
                hint = "one of them, the other as valid=, or join their tensors"
            elif isinstance(part, Dataset):
                hint = "DataLoader(data, 128)"
            raise TypeError(
                "expected data to be a Split, Groups, a tensor or array (n, *event), a "
                f"tuple of these or a DataLoader, got {type(part).__name__}"
                f"{' of arrays' * several}{' in a tuple' * (part is not values)}; "
                f"pass {hint}"
            )
    return values


def _parts(values: Any) -> tuple[Any, ...]:
    return values if type(values) is tuple else (values,)


def _part(values: Any, what: str, said: bool) -> Part:
    if isinstance(values, np.memmap):
        check_kind(values.dtype, what)
        if values.dtype == np.uint8 and not said:
            raise ValueError(raw_bytes(what))
        part: Part = values
    else:
        part = value_tensor(values, what, said)
    check_items(part.shape, what)
    return part


def _rows(values: Part, rows: Int[Tensor, " batch"] | slice) -> Shaped[Tensor, "..."]:
    if isinstance(values, np.memmap):
        return value_tensor(part_rows(values, rows), "data", said=True)
    return part_rows(values, rows)


def _own(values: Tensor) -> Target:
    dtype = values.dtype if values.is_floating_point() else torch.get_default_dtype()
    return Target(values.device, dtype)


def _check_lengths(parts: tuple[Part, ...], present: Tensor | None) -> None:
    lengths = [len(part) for part in (*parts, present) if part is not None]
    if len(set(lengths)) > 1:
        raise ValueError(
            "expected as many items in each modality, and in present, all of one "
            f"length, got {lengths}; mark what is absent in present: "
            "ps.data.groups(views, present=…)"
        )


def _covariates(
    data: Data, covariates: Any, sizes: tuple[int, int | None]
) -> Covariates | None:
    """The covariates of the data, or those given."""
    own = data.covariates if isinstance(data, Split | Groups) else None
    if own is not None and covariates is not None:
        raise ValueError(
            "expected covariates once, got those of the data and others; leave them "
            "out of one, or join them: data._replace(covariates={…})"
        )
    found, (n, views) = covariates if own is None else own, sizes
    like = data.images if isinstance(data, Split) else data
    return None if found is None else checked_covariates(found, n, views, like)


def _known(data: Data, content: Any, n: int) -> Int[Tensor, " n"] | None:
    """The observed contents: those of the Groups, or those given."""
    if isinstance(data, Groups) and data.content is not None:
        if content is not None:
            raise ValueError(
                "expected contents once, got those of the Groups and others; leave "
                "content out of one of them"
            )
        content = data.content
    names = data.classes if isinstance(data, Split | Groups) else None
    return None if content is None else observed_content(content, n, names)
