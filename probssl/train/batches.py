"""Batches of a data set: on the device, in a new order at every epoch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from ..data.memory import observed_content
from ..data.splits import Groups, Split
from ..data.tensors import check_values, value_tensor
from ..terms import Batch

__all__ = ["At", "Data", "Items", "Loaded", "Target", "Views", "grouped", "source"]

Data = Split | Groups | Tensor | np.ndarray | DataLoader
Views = Callable[[Tensor], Tensor | Batch]
At = Callable[[Tensor], Batch]  # of row numbers


class Target(NamedTuple):
    """Where batches go: the device, and the precision of the objective."""

    device: torch.device
    dtype: torch.dtype

    def values(self, x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Bytes k as k/255, other numbers as they are, in the objective's precision."""
        x = x.to(self.device, non_blocking=True)
        bytes_ = x.dtype == torch.uint8
        return x.to(self.dtype).div_(255) if bytes_ else x.to(self.dtype)

    def move(self, value: Any) -> Any:
        """All tensors in a nest of lists, tuples and dictionaries, on the device."""
        if isinstance(value, Tensor):
            return value.to(self.device, non_blocking=True)
        if isinstance(value, dict):
            return {key: self.move(part) for key, part in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.move, value))
        if isinstance(value, list | tuple):
            return type(value)(map(self.move, value))
        return value


class Items:
    """A data set that lies on the device as a whole.

    Arguments:
        at: The batch of the items with given rows.
        count: The number of items.
        order: What the order of the items is drawn from.
    """

    def __init__(
        self,
        at: At,
        count: int,
        batch_size: int,
        order: Generator,
        device: torch.device,
    ) -> None:
        self.at, self.count, self.batch_size = at, count, batch_size
        self.order, self.device = order, device

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self.count // self.batch_size)

    def epoch(self) -> Iterator[Batch]:
        """Batches in random order, without what does not fill the last one."""
        rows = torch.randperm(self.count, generator=self.order).to(self.device)
        for batch in rows[: len(self) * self.batch_size].split(self.batch_size):
            yield self.at(batch)

    def sweep(self) -> Iterator[Batch]:
        """All items in their own order, in batches as equal as can be."""
        rows = torch.arange(self.count, device=self.device)
        for batch in rows.tensor_split(math.ceil(self.count / self.batch_size)):
            yield self.at(batch)


class Loaded:
    """A data set that comes from a DataLoader, batch by batch."""

    def __init__(
        self, loader: DataLoader, views: Views | None, order: Generator, target: Target
    ) -> None:
        self.loader, self.views, self.target = loader, views, target
        self.order = order if loader.generator is None else loader.generator
        data = loader.dataset
        self.count = len(data) if isinstance(data, Sized) else None

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self) -> Iterator[Batch]:
        """What the loader gives."""
        for loaded in self.loader:
            yield self.batch(loaded)

    sweep = epoch

    def batch(self, loaded: Any) -> Batch:
        """The batch in what was loaded: a batch, the items, or (items, labels, …)."""
        if isinstance(loaded, Batch):
            if self.views is not None:
                raise ValueError(
                    "expected no views for a DataLoader of Batches, which has its own; "
                    "leave views out, or load the items alone"
                )
            return _converted(self.target.move(loaded), self.target)
        x = loaded[0] if isinstance(loaded, list | tuple) else loaded
        if not isinstance(x, Tensor):
            raise TypeError(
                "expected the DataLoader to yield tensors, (tensor, label) or Batches, "
                f"got {type(x).__name__}; give it a collate_fn that makes one of these"
            )
        return viewed(self.target.values(x), self.views)


def source(
    data: Data,
    views: Views | None,
    batch_size: int,
    order: Generator,
    target: Target,
    content: Any = None,
) -> Items | Loaded:
    """The batches of a data set, which is checked, and moved unless it is loaded.

    A view sampler that is a module is moved as well.

    Raises:
        TypeError: If the data are of no known kind.
        ValueError: If there are no items, NaN or infinity, lengths that do not match,
            both groups and views, or contents twice or beside a loader.
    """
    if isinstance(views, nn.Module):
        views.to(target.device)
    if content is not None and isinstance(data, DataLoader):
        raise ValueError(
            "expected no content for a DataLoader, got one; let it yield Batches with "
            "their content"
        )
    if isinstance(data, DataLoader):
        return Loaded(data, views, order, target)
    if isinstance(data, Groups):
        at, count = _of_groups(data, views, target)
    else:
        at, count = _of_items(data, views, target)
    if isinstance(data, Groups) and data.content is not None:
        if content is not None:
            raise ValueError(
                "expected contents once, got those of the Groups and others; leave "
                "content out of one of them"
            )
        content = data.content
    if content is not None:
        at = _with_content(at, observed_content(content, count).to(target.device))
    return Items(at, count, batch_size, order, target.device)


def viewed(
    x: Shaped[Tensor, "batch *event"],
    views: Views | None,
    index: Int[Tensor, " batch"] | None = None,
) -> Batch:
    """Views of the items x; without a sampler the items are their only view.

    Raises:
        TypeError: If the sampler returns neither a tensor nor a Batch.
        ValueError: If the shape of what it returns is not (batch, view, \\*event).
    """
    drawn = x.unsqueeze(1) if views is None else views(x)
    if isinstance(drawn, Tensor) and drawn.ndim == x.ndim + 1:
        drawn = Batch(drawn)
    if not isinstance(drawn, Tensor | Batch):
        raise TypeError(
            "expected views to return a tensor (batch, view, *event) or a Batch, got "
            f"{type(drawn).__name__}; stack them: torch.stack([a, b], dim=1)"
        )
    if isinstance(drawn, Tensor) or drawn.shape[0] != len(x):
        shape = _shapes(drawn if isinstance(drawn, Batch) else Batch(drawn))
        raise ValueError(
            f"expected views of shape ({len(x)}, view, *event) for items of shape "
            f"{tuple(x.shape)}, got {shape}; stack them: torch.stack([a, b], dim=1)"
        )
    clean = x if drawn.clean is None else drawn.clean
    return drawn._replace(clean=clean, index=index)


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of so many batches in turn; the last one may be shorter."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def _of_items(data: Data, views: Views | None, target: Target) -> tuple[At, int]:
    values: Any = data.images if isinstance(data, Split) else data
    if not isinstance(values, Tensor | np.ndarray):
        hint = "its .train or .test" if hasattr(data, "train") else "one of these"
        raise TypeError(
            "expected data to be a Split, Groups, a tensor or array (n, *event) or a "
            f"DataLoader, got {type(data).__name__}; pass {hint}"
        )
    items = _moved(values, target, "data")
    return lambda rows: viewed(target.values(items[rows]), views, rows), len(items)


def _of_groups(data: Groups, views: Views | None, target: Target) -> tuple[At, int]:
    if views is not None:
        raise ValueError(
            "expected no views for Groups, which have their own; leave views out, or "
            "make a Split of single views"
        )
    many = isinstance(data.views, tuple)
    whole = data.views if isinstance(data.views, tuple) else (data.views,)
    parts = tuple(_moved(part, target, "the views of Groups") for part in whole)
    present = None if data.present is None else data.present.to(target.device)
    lengths = [len(part) for part in (*parts, present) if part is not None]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"expected views and present of one length, got {lengths}; "
            "make the groups with ps.data.groups, which matches them"
        )
    groups = Groups(parts if many else parts[0], present=present)

    def at(rows: Int[Tensor, " batch"]) -> Batch:
        chosen = groups.rows(rows)
        batch = Batch(chosen.views, index=rows, present=chosen.present)
        return _converted(batch, target)

    return at, lengths[0]


def _with_content(at: At, content: Int[Tensor, " n"]) -> At:
    """Batches with the observed contents of their items."""
    return lambda rows: at(rows)._replace(content=content[rows])


def _moved(values: Any, target: Target, what: str) -> Shaped[Tensor, "n *event"]:
    """The whole set on the device; bytes stay bytes, a quarter of the memory."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = torch.tensor(values)  # keeps float64 for an objective in float64
    tensor = value_tensor(values, what)
    check_values(tensor, what)
    dtype = tensor.dtype if tensor.dtype == torch.uint8 else target.dtype
    return tensor.to(target.device, dtype)


def _converted(batch: Batch, target: Target) -> Batch:
    views, clean = batch.views, batch.clean
    return batch._replace(
        views=tuple(map(target.values, views))
        if isinstance(views, tuple)
        else target.values(views),
        clean=None if clean is None else target.values(clean),
    )


def _shapes(batch: Batch) -> str:
    parts = batch.views if isinstance(batch.views, tuple) else (batch.views,)
    return ", ".join(str(tuple(part.shape)) for part in parts)
