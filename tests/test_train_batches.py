"""Batches: the same ones wherever the data lie, and however many processes share."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.catalogue import joint, noisy
from helpers.checks import refusals
from torch import Generator, Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

import probssl as ps
from probssl.data import Groups, Split
from probssl.data import batches as as_batches
from probssl.data.batches import Items
from probssl.terms import Batch
from probssl.train import fit
from probssl.train.batches import Source, Target, made_ahead, source

CPU = Target(torch.device("cpu"), torch.float32)
N, DIM = 23, 4
BYTES = torch.arange(N * DIM).to(torch.uint8).view(N, DIM)
FLOATS = torch.randn(N, DIM, dtype=torch.float64, generator=Generator().manual_seed(1))
KNOWN = torch.arange(N) % 3 - 1
PRESENT = torch.rand(N, 3, generator=Generator().manual_seed(2)) < 0.7
PRESENT[:, 0] |= ~PRESENT.any(1)
PARTS = (FLOATS[:, None].expand(N, 2, DIM), BYTES[:, None, :2])
DATA = {
    "bytes": Split(BYTES),
    "numbers": FLOATS,
    "a split": Split(FLOATS.float(), labels=KNOWN),
    "groups": Groups(FLOATS.float()[:, None], content=KNOWN),
    "modalities": Groups(PARTS, present=PRESENT),
    "single modalities": (BYTES / 255, FLOATS),
}


def twice(x: Tensor) -> Tensor:
    return torch.stack([x, 2 * x], 1)


def made(data: Any, views: Any = None, size: int = 5, **options: Any) -> Source:
    order = Generator().manual_seed(0)
    return source(data, views, size, order, CPU, **options)


def mapped(values: Tensor, folder: Path) -> np.memmap:
    """The same values in a file."""
    np.save(folder / "values.npy", values.numpy())
    found = np.load(folder / "values.npy", mmap_mode="r")
    assert isinstance(found, np.memmap)
    return found


def batches(data: Source, epochs: int = 2) -> list[Batch]:
    """The batches of some epochs and of a sweep."""
    loads = [load for epoch in range(epochs) for load in data.epoch(epoch + 1)]
    return [data.batch(load) for load in (*loads, *data.sweep())]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert_close(list(mine), list(theirs), rtol=0, atol=0)


# --- wherever the data lie -----------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_streamed_batches_are_those_on_the_device(name):
    here, there = made(DATA[name]), made(DATA[name], streamed=True)
    assert len(here) == len(there) == 4 and here.count == there.count == N
    assert_same(batches(here), batches(there))
    assert_close(here.order.get_state(), there.order.get_state())


@pytest.mark.parametrize("values", [BYTES, FLOATS, FLOATS.half(), BYTES > 7, KNOWN])
def test_a_file_is_read_batch_by_batch(values, tmp_path):
    values = values.view(N, -1)
    data, file = values.numpy(), mapped(values, tmp_path)
    there = made(Split(file), twice, content=KNOWN)
    assert there.streamed and there.items.parts[0] is file
    found = batches(there)
    for batch in found:
        assert_close(batch.content, KNOWN[batch.index])
    assert_same(found, batches(made(Split(data), twice, content=KNOWN)))
    split = made(Split(file), twice, content=KNOWN, streamed=False)
    assert_same(found, batches(split))


def test_modalities_of_different_shapes_stay_apart():
    parts = (FLOATS[:9, None, :3], BYTES.view(N, 1, 2, 2)[:9])
    first, _, *sweep = batches(made(Groups(parts), size=4), epochs=1)
    assert [tuple(part.shape) for part in first.views] == [(4, 1, 3), (4, 1, 2, 2)]
    assert_close(first.views[1], parts[1][first.index] / 255, rtol=0, atol=0)
    assert torch.cat([batch.index for batch in sweep]).tolist() == list(range(9))
    assert [batch.shape for batch in sweep] == [(3, 2)] * 3


def test_a_sweep_has_all_items_in_batches_as_equal_as_can_be():
    epoch, *sweep = batches(made(torch.rand(130, DIM), size=128), epochs=1)
    assert [batch.shape for batch in (epoch, *sweep)] == [(128, 1), (65, 1), (65, 1)]


def test_a_file_keeps_the_precision_of_its_numbers(tmp_path):
    exact = Target(torch.device("cpu"), torch.float64)
    rows = torch.tensor([3, 1])
    batch = Items(mapped(FLOATS, tmp_path), exact).batch(rows)
    assert_close(batch.stacked[:, 0], FLOATS[rows], rtol=0, atol=0)


def test_a_large_file_is_checked_in_parts(tmp_path, monkeypatch):
    broken, largest = FLOATS.clone(), 0
    broken[[2, 15, 16], [0, 1, 1]] = torch.tensor([np.nan, np.inf, np.nan]).double()
    file = mapped(broken, tmp_path)
    numbers = as_batches.value_tensor

    def watched(values: np.ndarray, *options: Any, **named: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, len(values))
        return numbers(values, *options, **named)

    monkeypatch.setattr(as_batches, "CHUNK", 4 * DIM)
    monkeypatch.setattr(as_batches, "value_tensor", watched)
    with pytest.raises(ValueError, match="infinity in 3 of 23 items"):
        made(file)
    assert largest == 4


def test_what_stands_in_absent_views_is_not_looked_at():
    x = FLOATS[:, None].repeat(1, 3, 1)
    x[~PRESENT] = np.nan
    made(Groups(x, present=PRESENT))
    with pytest.raises(ValueError, match="NaN"):
        made(Groups(x))


def test_large_data_stay_on_the_host(monkeypatch):
    data = {"bytes": (Split(BYTES), N * DIM), "numbers": (FLOATS, 4 * N * DIM)}
    for values, size in data.values():
        items = Items(values, Target(torch.device("cuda"), torch.float32))
        assert items.size == size
        for free, expected in ((2 * size, False), (2 * size - 1, True)):
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, f=free: (f, 0))
            assert ps.train.batches._large(items) is expected
        assert not ps.train.batches._large(Items(values, CPU))


def fitted(data: Any, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    objective = ps.limits.VAE(joint(ps.priors.Independent(2), event=DIM))
    fit(objective, data, views=noisy, batch_size=5, progress=False, **options)
    return objective.state_dict()


def test_a_streamed_run_resumes_bit_for_bit(tmp_path):
    file, folder = mapped(FLOATS, tmp_path), tmp_path / "run"
    fitted(file, epochs=2, checkpoint=folder)
    torch.rand(7)  # what came in between
    resumed = fitted(file, epochs=4, checkpoint=folder, resume=True)
    for straight in (fitted(file, epochs=4), fitted(FLOATS, epochs=4, valid=file)):
        assert_close(resumed, straight, rtol=0, atol=0)


# --- in the background ---------------------------------------------------------------


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("probssl")]


def test_what_is_made_ahead_comes_in_order_and_not_too_early():
    asked: list[int] = []
    keys = (asked.append(key) or key for key in range(12))

    def slow(key: int) -> int:
        time.sleep(0.002 * (key % 3))
        return key**2

    for n, square in enumerate(made_ahead(slow, keys)):
        assert square == n**2 and len(asked) == min(n + 3, 12)
        assert len(workers()) == 1
    assert n == 11 and not workers()
    assert list(made_ahead(slow, [])) == []


def test_an_error_in_the_background_is_raised_in_its_turn():
    with pytest.raises(ZeroDivisionError):
        for n, inverse in enumerate(made_ahead(lambda k: 1 / k, [4, 2, 1, 0, 5])):
            assert inverse == 1 / [4, 2, 1][n]
    assert n == 2 and not workers()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_loop_that_is_left_leaves_no_thread(error):
    data = made(FLOATS, streamed=True)
    with pytest.raises(error):
        for _ in data.epoch():
            assert workers()
            raise error
    loads = data.epoch()
    next(loads)
    assert workers()
    del loads
    assert not workers()


def test_the_background_draws_no_random_numbers():
    data = made(FLOATS, noisy, streamed=True)
    before, loads = torch.get_rng_state(), data.epoch()
    next(loads)
    drawn = data.order.get_state()
    assert_close(sum(len(load.index) for load in loads), 15)
    assert_close(data.order.get_state(), drawn)
    assert_close(torch.get_rng_state(), before)


# --- shared by several processes -----------------------------------------------------


def as_process(rank: int, of: int, make: Callable[[], Any]) -> Any:
    """What one of several processes would have."""
    module = "probssl.train.batches"
    with (
        mock.patch(f"{module}.world_size", lambda: of),
        mock.patch(f"{module}.rank", lambda: rank),
    ):
        return make()


def rows(size: int, streamed: bool = False, count: int = N) -> list[Tensor]:
    data = made(FLOATS[:count], size=size, streamed=streamed)
    return [data.batch(load).index for load in data.epoch()]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("size", "count"), [(6, N), (12, N), (36, N - 2)])
def test_the_parts_of_all_processes_are_the_batches_of_one(size, count, streamed):
    parts = [as_process(r, 3, partial(rows, size, streamed, count)) for r in range(3)]
    together = [torch.cat(part) for part in zip(*parts, strict=True)]
    assert_close(together, rows(size, count=count))
    assert all(len(part) == len(parts[0][0]) for process in parts for part in process)


def test_less_than_a_batch_that_cannot_be_shared_goes_to_every_process():
    for rank in range(3):
        assert_close(as_process(rank, 3, partial(rows, 36)), rows(36))
        assert as_process(rank, 3, lambda: made(FLOATS, size=36).replicated)
    assert not made(FLOATS, size=36).replicated


def test_every_process_sweeps_over_all_items():
    data = as_process(1, 3, partial(made, FLOATS, size=6))
    sweep = as_process(1, 3, lambda: [*map(data.batch, data.sweep())])
    assert torch.cat([batch.index for batch in sweep]).tolist() == list(range(N))


class Shares(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(FLOATS)


def loader(rank: int, of: int) -> DataLoader:
    sampler = DistributedSampler(BYTES, of, rank, drop_last=True)
    return DataLoader(BYTES / 255, 2, sampler=sampler)


def test_a_loader_is_shared_in_an_order_of_the_epoch():
    def loaded(rank: int, epoch: int) -> Tensor:
        data = as_process(rank, 2, lambda: made(loader(rank, 2)))
        found = [data.batch(load).clean[:, 0] * 255 for load in data.epoch(epoch)]
        return torch.cat(found).round() / DIM

    first, again, later = (
        torch.cat([loaded(r, epoch) for r in (0, 1)]) for epoch in (1, 1, 2)
    )
    assert len(set(first.tolist())) == N - 1
    assert_close(first, again)
    assert not torch.equal(first, later)
    assert as_process(0, 2, lambda: made(DataLoader(Shares(), 2))).count is None


def shared(*arguments: Any, of: int = 4, **options: Any) -> Callable[[], Source]:
    return lambda: as_process(0, of, lambda: made(*arguments, **options))


WHOLE, ALONE = DataLoader(FLOATS, 2), "rank 0 of 1 processes.*leave the sampler out"
test_what_cannot_be_shared_is_refused = refusals(
    (shared(FLOATS, size=6), ValueError, "batch_size that 4 processes can share"),
    (shared(FLOATS[:3], size=8), ValueError, "4 processes, got 3; start fewer"),
    (shared(WHOLE), ValueError, "0 of 4 processes, got one for rank 0 of 1; pass"),
    (shared(loader(1, 4)), ValueError, "got one for rank 1 of 4"),
    (shared(loader(0, 2), of=1), ValueError, ALONE),
)


# --- on a GPU ------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", DATA)
def test_what_is_streamed_to_a_gpu_is_what_lies_there(name):
    target = Target(torch.device("cuda"), torch.float32)

    def on_gpu(streamed: bool) -> list[Batch]:
        order = Generator().manual_seed(0)
        return batches(source(DATA[name], None, 5, order, target, streamed=streamed))

    busy = torch.randn(4000, 4000, device="cuda")
    for _ in range(20):  # so that copies and their uses overlap
        busy = busy @ busy / 100
    streamed = on_gpu(True)
    assert all(batch.stacked.is_cuda for batch in streamed if name == "bytes")
    assert_same(streamed, on_gpu(False))


@pytest.mark.gpu
@pytest.mark.parametrize("pin", [False, True])
def test_a_loader_reaches_a_gpu_unchanged(pin):
    target = Target(torch.device("cuda"), torch.float32)
    loader = DataLoader(BYTES / 255, 5, pin_memory=pin)
    data = source(loader, None, 5, Generator(), target)
    found = torch.cat([data.batch(load).clean for load in data.epoch()])
    assert_close(found.cpu(), BYTES / 255, rtol=0, atol=1e-7)


class Streamed(IterableDataset[Tensor]):
    """Nine items one by one, of unknown number."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.linspace(-1, 1, 27).reshape(9, 3))


class Ragged:
    """A batch sampler of one's own, without a batch_size."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([0, 1, 2, 3], [4], [5, 6, 7, 8])

    def __len__(self) -> int:
        return 3


LONE = {
    "a list": lambda x: DataLoader(x, batch_sampler=[*Ragged()]),
    "own batch sampler": lambda x: DataLoader(x, batch_sampler=Ragged()),
    "the last of a stream": lambda _: DataLoader(Streamed(), 4),
    "data that are batches": lambda x: DataLoader([x[1:], x[:1]], batch_size=None),
}


@pytest.mark.parametrize("loader", LONE.values(), ids=LONE)
def test_a_lone_item_among_batches_is_refused_where_items_are_compared(loader):
    norm = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    linear, x = torch.nn.Linear(3, 2), torch.linspace(-1, 1, 27).reshape(9, 3)

    def generative(encoder: torch.nn.Module) -> ps.limits.SimVAE:
        parts = {"encoder": encoder, "decoder": torch.nn.Linear(2, 3)}
        prior, likelihood = ps.priors.Gaussian(2), ps.likelihoods.Gaussian()
        return ps.limits.SimVAE(ps.Joint(prior, likelihood, **parts))

    def run(objective: torch.nn.Module) -> None:
        options = {"epochs": 1, "progress": False}
        fit(objective, loader(x), views=lambda x: torch.stack([x, x + 1], 1), **options)

    with pytest.raises(
        ValueError, match="items in every batch for SimCLR, got batches"
    ):
        run(ps.limits.SimCLR(linear))
    with pytest.raises(ValueError, match="items in every batch for batch norm"):
        run(generative(norm))
    run(generative(linear))  # takes items one by one


def test_contents_come_from_the_items_or_from_the_sampler():
    x, known = torch.rand(4, 3), torch.arange(4)
    views = lambda x: ps.Batch(x[:, None], content=torch.zeros(len(x)).long())  # noqa: E731
    with pytest.raises(ValueError, match="of the items or of the sampler, got both"):
        Items(x, None, views, content=known).batch(torch.arange(2))
    assert Items(x, None, views).batch(torch.arange(2)).content.tolist() == [0, 0]
