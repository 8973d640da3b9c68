"""Batches of a data set, in a new random order every epoch, split over the ranks.

A `Source` yields loads, cheap descriptions of batches, and makes a `Batch` of a load on
the device: so a recorded step contains the views. Streamed data are put together in a
background thread, and copied to a CUDA device while the previous batch is in use.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from itertools import chain, islice, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from ..arrays import remark_swapped
from ..data.batches import Items, Loadable, Target, Views, accepted, loaded
from ..runtime.distributed import gather_to_cpu, rank, world_size
from ..runtime.randomness import random_state, same_randomness
from ..runtime.streams import moving
from ..terms import Batch

__all__ = ["Data", "Loaded", "Source", "Stored", "Target", "Views", "grouped"]
__all__ += ["loaded", "look_at", "made_ahead", "moved", "population_of", "source"]

logger = logging.getLogger(__name__)
Data = Loadable
ATTEMPTS = 5  # to draw views that no other thread disturbs
FEWEST = 8  # items whose views are not all alike by chance
Key = TypeVar("Key")
Load = TypeVar("Load")


class Stored:
    """A data set in memory or in a file: on the device, or streamed from the host.

    A load is the row numbers of a batch or, streamed, its items.

    Arguments:
        order: The generator of the order of the items.
        streamed: Whether batches are put together on the host, in the background.
    """

    def __init__(
        self, items: Items, batch_size: int, order: Generator, streamed: bool
    ) -> None:
        self.items, self.count, self.batch_size = items, len(items), batch_size
        self.order, self.streamed = order, streamed
        self.target = items.target
        self.place = torch.device("cpu") if streamed else self.target.device
        if not streamed:
            items.settle()

    @property
    def content(self) -> Int[Tensor, " item"] | None:
        """The observed contents of all items, if there are any."""
        return self.items.content

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self.count // self.batch_size)

    def epoch(self, number: int = 1, skip: int = 0) -> Iterator[Any]:
        """Loads in random order; a last batch that is not full is dropped.

        All ranks draw the same order, and each takes its share of every batch, or all
        of it (`replicated`).

        Arguments:
            skip: The number of loads that are left out at the start.
        """
        rows = torch.randperm(self.count, generator=self.order).to(self.place)
        size = min(self.batch_size, self.count)
        parts = rows[: len(self) * size].split(size)[skip:]
        return self._loads(parts if self.replicated else map(_part, parts))

    @property
    def replicated(self) -> bool:
        """Whether each rank has all of the only batch, which ranks cannot share."""
        return self.count < self.batch_size and self.count % world_size() > 0

    def sweep(self) -> Iterator[Any]:
        """All items in their own order, in loads of nearly equal size."""
        rows = torch.arange(self.count, device=self.place)
        return self._loads(rows.tensor_split(math.ceil(self.count / self.batch_size)))

    def batch(self, load: Any) -> Batch:
        """The batch of a load."""
        return self.items.make(load if self.streamed else self.items.take(load))

    def check_repeats(self) -> None:
        """Warn if the same seed of torch gives other views of the first items.

        A thread of the user may draw in between, without the lock that `fit` holds:
        then the generator ends elsewhere, and they are compared again.
        """
        items, before = self.items, self.items.views
        if before is None:
            return
        rows = torch.arange(min(self.count, self.batch_size), device=self.place)
        if isinstance(before, nn.Module):  # whose buffers shall stay as they are
            with suppress(TypeError, RuntimeError):
                items.views = deepcopy(before)
        try:
            for _ in range(ATTEMPTS):
                (one, end), (other, its_end) = self._drawn(rows), self._drawn(rows)
                alike = all(map(_alike, one, other))
                if alike or end.equal(its_end):
                    break
        finally:
            items.views = before
        if not alike:
            logger.warning(
                "expected views that draw from torch's global generator alone, got "
                "others from the same seed; a resumed run, validation and ps.compare "
                "do not repeat: draw with torch.rand or torch.randn"
            )

    def _drawn(self, rows: Int[Tensor, " batch"]) -> tuple[list[Tensor], Tensor]:
        """Views of items from a fixed seed, and the state of the generator after."""
        with same_randomness(0, self.target.device):
            leaves = tree_leaves(self.items.batch(rows))
            end = random_state(self.target.device)
        return [x for x in leaves if isinstance(x, Tensor)], torch.cat([*end.values()])

    def streams(self) -> dict[str, Any]:
        """What views draw from on their own."""
        return moving({"views": self.items.views})

    def _loads(self, parts: Iterable[Int[Tensor, " batch"]]) -> Iterator[Any]:
        if not self.streamed:
            return iter(parts)
        return moved(made_ahead(self._taken, parts), self.target)

    def _taken(self, rows: Int[Tensor, " batch"]) -> Batch:
        taken = self.items.take(rows)
        if self.target.device.type != "cuda":
            return taken
        return tree_map_only(Tensor, Tensor.pin_memory, taken)


class Loaded:
    """A data set that a DataLoader loads; a load is what the loader yields."""

    content = None  # of all items: it is not known before the loader yields them
    replicated = False
    check_content: Callable[[Tensor], Any] | None = None  # of a batch
    wanting: str | None = None  # what wants two items in every batch
    name = "the DataLoader"  # in errors
    own_views = False  # whether Batches are taken beside a view sampler for items

    def __init__(
        self, loader: DataLoader, views: Views | None, order: Generator, target: Target
    ) -> None:
        self.loader, self.views, self.target = loader, views, target
        self.sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        own = *getattr(self.sampler, "__dict__", {}).values(), loader.generator
        self.order = next((g for g in own if isinstance(g, Generator)), order)
        self.count = population_of(loader)
        if not isinstance(loader.dataset, IterableDataset):  # it splits its items
            _check_sampler(self.sampler)
        if isinstance(views, nn.Module):
            views.to(target.device)
        self._check_ranks()

    def __len__(self) -> int:
        return len(self.loader)

    def streams(self) -> dict[str, Any]:
        """What the loader and views draw from on their own."""
        own: dict[str, Any] = {"dataset": self.loader.dataset, "views": self.views}
        own |= {"sampler": self.sampler, "batch_sampler": self.loader.batch_sampler}
        return moving(own, self.order)

    def _check_ranks(self) -> None:
        """Raise a ValueError for ranks with other numbers of items or batches."""
        sampler, sizes = self.sampler, [-1, -1]
        self.known = self.count is not None and isinstance(sampler, Sized)
        if self.known:
            assert isinstance(sampler, Sized)
            sizes = [len(self.loader), len(sampler)]
        batches, items = gather_to_cpu(torch.tensor(sizes)).mT.tolist()
        for numbers, what in ((items, "items"), (batches, "batches")):
            if len(set(numbers)) > 1:
                raise ValueError(
                    f"expected as many {what} in all processes, got {_listed(numbers)} "
                    f"{what} from their DataLoaders; give each the same dataset, with "
                    "DistributedSampler(dataset), which makes equal shares"
                )

    def check_last(self, objective: nn.Module, training: bool = True) -> None:
        """Raise a ValueError for a batch of one item among others, if that is too few.

        It is for objectives that compare items and, in training, for batch norm. Where
        the sizes are not known beforehand, it is raised when such a batch is loaded.
        """
        norm = any(isinstance(m, _BatchNorm) for m in objective.modules())
        compared = getattr(objective, "least", 1) == 2
        self.wanting = type(objective).__name__ if compared else None
        if norm and training and not compared:
            self.wanting = "batch norm"
        batches = self.loader.batch_sampler
        size = getattr(batches, "batch_size", None)
        many = len(self.sampler) if isinstance(self.sampler, Sized) else 0
        sizes = [len(rows) for rows in batches] if isinstance(batches, list) else []
        if size not in (None, 1) and not getattr(batches, "drop_last", True):
            sizes = [size, many % size]
        self._check_sizes(sizes)

    def _check_sizes(self, sizes: Collection[int]) -> None:
        if self.wanting is not None and 1 in sizes and max(sizes) > 1:
            raise ValueError(
                f"expected at least two items in every batch for {self.wanting}, got "
                f"batches of {max(sizes)} and one of one item; pass drop_last=True to "
                "the DataLoader, or another batch_size or batch_sampler"
            )

    def epoch(self, number: int = 1, skip: int = 0) -> Iterator[Any]:
        """The loads of one epoch, by which a `DistributedSampler` orders the items.

        Arguments:
            skip: The number of loads that are made and left out at the start.
        """
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(number)
        if not skip:
            return self.sweep()
        loads = iter(self.loader)  # draws the order here and now
        for _ in islice(loads, skip):
            pass
        return self._checked(loads)

    def sweep(self) -> Iterator[Any]:
        """The loads, in the order of the loader, checked before they are moved."""
        return self._checked(self.loader)

    def _checked(self, loads: Iterable[Any]) -> Iterator[Any]:
        dtype = self.target.dtype
        check, views = self.check_content, None if self.own_views else self.views
        accept = (accepted(x, views, dtype, check, self.name) for x in loads)
        sized = self._sized(accept)
        alike = self.known or world_size() == 1
        return moved(sized if alike else _in_step(sized), self.target)

    def _sized(self, loads: Iterable[Tensor | Batch]) -> Iterator[Tensor | Batch]:
        sizes = set()
        for load in loads:
            sizes.add(load.shape[0])
            self._check_sizes(sizes)
            yield load

    def batch(self, load: Any) -> Batch:
        """The batch of a load."""
        return loaded(load, self.views, self.target)


def _in_step(loads: Iterable[Tensor | Batch]) -> Iterator[Tensor | Batch]:
    """The loads of this rank, as long as all ranks have one of the same size.

    Raises:
        ValueError: If another rank has a load of another size, or none.
    """
    each = iter(loads)
    while True:
        load = next(each, None)
        size = 0 if load is None else load.shape[0]
        sizes = gather_to_cpu(torch.tensor(size)).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"expected batches of one size in all processes, got {_listed(sizes)} "
                "items at once; give their DataLoaders as many items, drop_last=True "
                "and the same batch_size"
            )
        if load is None:
            return
        yield load


def population_of(loader: DataLoader) -> int | None:
    """The number of items that a DataLoader loads; None where it is not certain.

    It is not where the loader does not make the batches itself: with a collate_fn or
    a batch_sampler, and where its data are batches; nor with a sampler of one's own,
    which may repeat items.
    """
    own = type(loader.batch_sampler) is BatchSampler
    if not own or loader.collate_fn is not default_collate:
        return None
    data: Any = loader.dataset
    sampler = loader.batch_sampler.sampler  # type: ignore[union-attr]
    if isinstance(sampler, WeightedRandomSampler):
        return int((sampler.weights > 0).sum())
    if isinstance(sampler, SubsetRandomSampler):
        sampler = sampler.indices
    if isinstance(sampler, Sequence):
        return len(set(sampler))
    if isinstance(sampler, RandomSampler | SequentialSampler):
        data = sampler.data_source
    elif not isinstance(sampler, DistributedSampler):
        return None
    return len(data) if isinstance(data, Sized) else None


Source = Stored | Loaded


def look_at(batch: Batch, drew: bool = False) -> None:
    """Warn if the first batch has axes in another order, or no differing views.

    Arguments:
        drew: Whether making the batch drew random numbers.
    """
    if batch.index is None:  # from a DataLoader
        remark_swapped(batch.shape, "the first batch of the DataLoader")
    x = batch.clean
    if not isinstance(x, Tensor) or len(x) < FEWEST:
        return
    for part in batch.parts:
        one = part[:, 0]
        if part.shape[1] > 1 and part.equal(one.unsqueeze(1).expand_as(part)):
            if drew or not one.equal(x):
                logger.warning(
                    "expected views of an item that differ, got %d equal ones for each "
                    "of %d items; a part that draws once per call, as transforms of "
                    "torchvision do, gives all views the same draw: wrap it in "
                    "ps.views.PerItem(part)",
                    part.shape[1],
                    len(x),
                )
                return


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, up to rounding on an accelerator."""
    if one.shape != other.shape:
        return False
    pair = one.detach().cpu().double(), other.detach().cpu().double()
    return torch.allclose(*pair, rtol=1e-5, equal_nan=True)


def source(
    data: Data,
    views: Views | None,
    batch_size: int,
    order: Generator,
    target: Target,
    content: Any = None,
    covariates: Any = None,
    *,
    streamed: bool | None = None,
    name: str = "data",
) -> Source:
    """The source of batches of a data set, which is checked here.

    The data are moved to the device unless they are streamed or loaded; a view sampler
    that is a module is moved as well.

    Arguments:
        streamed: Whether the data stay on the host. By default they do if they are in a
            file (`numpy.memmap`), or would fill half of a CUDA device.
        name: What the data are called in errors.
    """
    if isinstance(data, DataLoader):
        if content is not None:
            raise ValueError(
                "expected no content for a DataLoader, got one; let it yield Batches "
                "with their content"
            )
        if covariates is not None:
            raise ValueError(
                "expected no covariates for a DataLoader, got some; let it yield "
                "Batches with their covariates"
            )
        return Loaded(data, views, order, target)
    items = Items(data, target, views, content, covariates, name)
    _check_shares(batch_size, len(items))
    streamed = _large(items) if streamed is None else streamed
    return Stored(items, batch_size, order, streamed)


def grouped(loads: Iterable[Load], size: int) -> Iterator[list[Load]]:
    """Consecutive loads in lists of one size; the last list may be shorter."""
    loads = iter(loads)
    while group := list(islice(loads, size)):
        yield group


def _part(rows: Int[Tensor, " batch"]) -> Int[Tensor, " part"]:
    """The share of this rank; all ranks have the same number of rows."""
    return rows.chunk(world_size())[rank()]


def _large(items: Items) -> bool:
    """Whether the items are in a file, or would fill half of a CUDA device."""
    device, parts = items.target.device, items.parts
    if any(isinstance(part, np.memmap) for part in parts):
        return True
    if device.type != "cuda" or all(isinstance(p, Tensor) and p.is_cuda for p in parts):
        return False
    return items.size > torch.cuda.mem_get_info(device)[0] / 2


def _check_shares(batch_size: int, count: int) -> None:
    if batch_size % world_size():
        raise ValueError(
            f"expected a batch_size that {world_size()} processes can share, got "
            f"{batch_size}; take a multiple of {world_size()}"
        )
    if count < world_size():
        raise ValueError(
            f"expected an item for each of {world_size()} processes, got {count}; "
            "start fewer processes"
        )
    counts = gather_to_cpu(torch.tensor(count)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"expected the same items in all processes, got {_listed(counts)} in "
            f"processes 0 to {len(counts) - 1}; give each of them all items, of which "
            "fit takes its share"
        )


def _listed(numbers: Iterable[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}"


def _check_sampler(sampler: Any) -> None:
    """Raise a ValueError unless a loader loads the share of this rank."""
    shared = isinstance(sampler, DistributedSampler)
    found = (sampler.num_replicas, sampler.rank) if shared else (1, 0)
    if found != (world_size(), rank()):
        remedy = (
            "pass sampler=torch.utils.data.DistributedSampler(dataset)"
            if world_size() > 1
            else "leave the sampler out: each process goes over all validation data"
        )
        raise ValueError(
            f"expected a DataLoader for rank {rank()} of {world_size()} processes, got "
            f"one for rank {found[1]} of {found[0]}; {remedy}"
        )


def made_ahead(
    make: Callable[[Key], Load], keys: Iterable[Key], ahead: int = 2
) -> Iterator[Load]:
    """``make(key)`` for each key in turn, made ahead in a background thread.

    Errors of `make` are raised here, in turn. The thread ends with the iteration, also
    if that ends early.
    """
    waiting: deque[Future[Load]] = deque()
    thread = ThreadPoolExecutor(1, "probssl-data")
    if torch.cuda.is_initialized():  # a thread has a current device of its own
        thread.submit(torch.cuda.set_device, torch.cuda.current_device())
    try:
        for key in keys:
            waiting.append(thread.submit(make, key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def moved(loads: Iterable[Any], target: Target) -> Iterator[Any]:
    """Loads on the device; a CUDA device copies the next one on a side stream.

    From pinned memory the copy does not synchronise with the host.
    """
    if target.device.type != "cuda":
        yield from map(target.move, loads)
        return
    side = torch.cuda.Stream(target.device)

    def copied() -> Iterator[tuple[Any, Any]]:
        for load in loads:
            with torch.cuda.stream(side):
                here, event = target.move(load), side.record_event()
            yield here, event

    for (load, event), _ in pairwise(chain(copied(), [(None, None)])):
        stream = torch.cuda.current_stream(target.device)
        stream.wait_event(event)
        for leaf in tree_leaves(load):
            if isinstance(
                leaf, Tensor
            ):  # its memory is in use until the stream is here
                leaf.record_stream(stream)
        yield load
