"""Training: each promise that `steps` and `fit` make."""

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import joint, noisy
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.testing import assert_close
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import probssl as ps
from probssl import limits
from probssl.data import Dataset as Sets
from probssl.data import Groups, Split
from probssl.entropies import KernelDensity
from probssl.joint import Joint
from probssl.likelihoods import Gaussian as Normal
from probssl.nn import MLPDecoder, MLPEncoder
from probssl.priors import Gaussian
from probssl.terms import Batch, Terms
from probssl.train import History, Step, linear, prepare, steps
from probssl.train import fit as shown_fit
from probssl.train.checkpoint import read, write

fit = partial(shown_fit, progress=False)
DIM = 6

pytestmark = pytest.mark.usefixtures("one_thread")


class Autoencoder(nn.Module):
    """Gaussian reconstruction of every view by a linear code, and a weight penalty."""

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(DIM, 2), nn.Linear(2, DIM)
        self.decay = decay

    def forward(self, batch: Batch) -> Terms:
        x = batch.views
        error = (self.decoder(self.encoder(x)) - x).square().sum((1, 2)).mean()
        weight = self.encoder.weight.square().sum()
        return Terms(reconstruction=-error, penalty=-self.decay * weight)


class Noisy(Autoencoder):
    """With batch-norm, dropout and a sampled code: everything that carries state."""

    def __init__(self) -> None:
        super().__init__(decay=0.1)
        self.encoder = nn.Sequential(
            nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.decoder = nn.Linear(8, DIM)
        self.register_buffer("weight", torch.ones(()))

    def forward(self, batch: Batch) -> Terms:
        x = batch.views
        z = self.encoder(x.flatten(0, 1)).unflatten(0, batch.shape)
        z = z + 0.1 * torch.randn_like(z)
        return Terms(reconstruction=-(self.decoder(z) - x).square().sum((1, 2)).mean())


class Student(nn.Module):
    """Agreement with a teacher that moves in `forward`, and a count of its moves."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.teacher = nn.Linear(DIM, 2), nn.Linear(DIM, 2)
        self.teacher.requires_grad_(False)
        self.register_buffer("moves", torch.zeros(()))
        self.register_buffer("population", None)

    def forward(self, batch: Batch) -> Terms:
        if self.training:
            with torch.no_grad():
                for slow, fast in zip(
                    self.teacher.parameters(), self.net.parameters(), strict=True
                ):
                    slow.lerp_(fast, 0.5)
                self.moves += 1
        x = batch.views
        away = self.net(x) - self.teacher(x) - x[..., :2]
        return Terms(alignment=-away.square().mean())


class Fixed(nn.Module):
    """A value that is the parameter times the number in hand."""

    def __init__(self, *terms: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.terms, self.calls = terms, 0

    def forward(self, batch: Batch) -> Terms:
        if not self.training:
            return Terms(alignment=self.weight)
        term = self.terms[min(self.calls, len(self.terms) - 1)]
        self.calls += 1
        return Terms(reconstruction=self.weight, entropy=self.weight * term)


def points(n: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, DIM, dtype=dtype) @ torch.randn(DIM, DIM, dtype=dtype)


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two objectives in float64 with the same parameters."""
    one, other = make().double(), make().double()
    other.load_state_dict(one.state_dict())
    return one, other


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def without_time(history: History) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


# --- steps -------------------------------------------------------------------------


def test_steps_climb_to_the_maximum_of_the_value():
    class Parabola(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, batch: Batch) -> Terms:
            return Terms(alignment=3.0 - (self.at - batch.views).square().sum())

    top = torch.tensor([1.0, -2.0], dtype=torch.float64)
    objective = Parabola()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    path = list(steps(objective, [Batch(top)] * 200, optimizer))
    values = torch.stack([sum(terms) for terms in path])
    assert (values.diff() >= 0).all() and not values.requires_grad
    assert_close(objective.at.detach(), top)
    assert_close(values[0], torch.tensor(3.0 - 5.0, dtype=torch.float64))


def test_steps_are_lazy():
    objective, seen = Autoencoder(), []
    batches = (seen.append(i) or Batch(points()[:, None]) for i in range(9))
    path = steps(objective, batches, torch.optim.SGD(objective.parameters(), 0.01))
    next(path)
    assert seen == [0]


def test_fit_is_the_plain_loop_bit_for_bit():
    data, plain = points(43), Noisy()
    fitted = Noisy()
    fitted.load_state_dict(plain.state_dict())

    torch.manual_seed(5)
    history = fit(fitted, data, views=noisy, epochs=3, batch_size=10, valid=data[:7])

    torch.manual_seed(5)
    seed = int(torch.randint(2**63 - 1, ()))
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, fused=True)
    for epoch in range(3):
        values = []
        for rows in torch.randperm(43, generator=order)[:40].split(10):
            terms = plain(Batch(noisy(data[rows]), clean=data[rows], index=rows))
            optimizer.zero_grad()
            (-sum(terms)).backward()
            optimizer.step()
            values.append(sum(terms).item())
        assert history["value"][epoch] == pytest.approx(np.mean(values), rel=1e-6)
    assert_same(fitted, plain.eval())
    assert not fitted.training


@pytest.mark.parametrize("make", [partial(Autoencoder, 0.1), Student])
def test_accumulated_batches_make_the_step_of_the_whole_batch(make):
    """Weighted by their items; a teacher moves once, however many there are."""
    data, found = points(24, torch.float64)[:, None], []
    whole, parts = twins(make)
    for objective, sizes in ((whole, [24]), (parts, [14, 6, 4])):
        step = Step(objective, torch.optim.SGD(objective.parameters(), lr=0.1))
        batches = [Batch(part) for part in data.split(sizes)]
        found.append([sum(step(batches)) for _ in range(3)])
    assert_close(whole.state_dict(), parts.state_dict())
    assert_close(*found)


def test_accumulated_batches_write_all_their_rows_of_a_bank():
    data, found = points(12, torch.float64)[:, None], []
    whole, parts = twins(
        lambda: limits.InstanceDiscrimination(nn.Linear(DIM, 3), 12, dim=3)
    )
    for objective, sizes in ((whole, [12]), (parts, [5, 4, 3])):
        step = Step(objective, torch.optim.SGD(objective.parameters(), lr=0.1))
        rows = torch.arange(12).split(sizes)
        batches = [Batch(data[each], index=each) for each in rows]
        found.append([sum(step(batches)) for _ in range(3)])
    assert_close(whole.state_dict(), parts.state_dict())
    assert_close(*found)


def test_the_last_shorter_group_of_batches_is_a_step_too():
    history = fit(Autoencoder(), points(50), batch_size=10, accumulate=2, epochs=1)
    assert history["step"][-1] == 3


def test_clipping_bounds_the_norm_of_the_gradient():
    objective = Autoencoder()
    before = nn.utils.parameters_to_vector(objective.parameters()).detach()
    step = Step(objective, torch.optim.SGD(objective.parameters(), 1.0), clip=0.25)
    step([Batch(100 * points()[:, None])])
    after = nn.utils.parameters_to_vector(objective.parameters()).detach()
    assert_close((after - before).norm(), torch.tensor(0.25))


def test_the_scheduler_is_stepped_once_per_step():
    rates = []
    fit(
        Autoencoder(),
        points(40),
        batch_size=10,
        epochs=2,
        optimizer=partial(torch.optim.SGD, lr=1.0),
        scheduler=lambda o: LinearLR(o, 1.0, 0.5, total_iters=8),
        clip=1e-3,
        on_step=lambda step, terms: rates.append(step),
        on_epoch=lambda epoch, row: rates.append(row["lr"]),
    )
    assert rates == [1, 2, 3, 4, pytest.approx(0.75), 5, 6, 7, 8, pytest.approx(0.5)]


# --- data --------------------------------------------------------------------------


class Recorder(Autoencoder):
    """Keeps the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Batch] = []

    def forward(self, batch: Batch) -> Terms:
        self.seen.append(batch)
        return super().forward(batch)


def test_a_batch_holds_views_originals_and_rows():
    objective, data = Recorder(), points(20)
    split = Split(data, labels=torch.zeros(20))
    fit(objective, split, views=noisy, epochs=2, batch_size=8)
    first, second = ([b.index for b in objective.seen[i : i + 2]] for i in (0, 2))
    for batch in objective.seen:
        assert batch.views.shape == (8, 2, DIM) and batch.present is None
        assert_close(batch.clean, data[batch.index], rtol=0, atol=0)
    for rows in (first, second):
        assert len(set(torch.cat(rows).tolist())) == 16
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


BYTES = torch.arange(20 * DIM).to(torch.uint8).view(20, DIM)
EXACT = torch.randn(20, DIM, dtype=torch.float64)
FROZEN = EXACT.numpy().copy()
FROZEN.setflags(write=False)
KINDS = {
    "numbers": (EXACT.float(), EXACT.float()),
    "bytes are fractions of 255": (Split(BYTES), BYTES / 255),
    "numbers of the precision of the objective": (FROZEN, EXACT),
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_views_the_items_are_their_only_view(kind):
    data, values = KINDS[kind]
    objective = Recorder().to(values.dtype)
    fit(objective, data, epochs=1, learning_rate=1e-9)
    (batch,) = objective.seen
    assert_close(batch.views, values[batch.index][:, None], rtol=0, atol=0)
    assert_close(batch.clean, values[batch.index], rtol=0, atol=0)


def test_views_may_return_a_batch():
    def crop(x: Tensor) -> Batch:
        return Batch(noisy(x), transform={"left": torch.arange(len(x))})

    objective, data = Recorder(), points(20)
    fit(objective, data, views=crop, epochs=1)
    (batch,) = objective.seen
    assert batch.transform["left"].tolist() == list(range(20))
    assert_close(batch.clean, data[batch.index], rtol=0, atol=0)


def test_groups_are_their_own_views():
    pairs, present = torch.randn(20, 2, DIM), torch.rand(20, 2) < 0.5
    present[~present.any(1), 0] = True
    objective = Recorder()
    fit(objective, Groups(pairs, present=present), epochs=1, batch_size=5)
    assert len(objective.seen) == 4
    for batch in objective.seen:
        assert batch.clean is None
        assert_close(batch.views, pairs[batch.index], rtol=0, atol=0)
        assert_close(batch.present, present[batch.index])


def to_batch(rows: list[Tensor]) -> Batch:
    return Batch(torch.stack(rows)[:, None])


LOADED = {
    "tensors": (BYTES / 255, None),
    "arrays": (BYTES.numpy() / np.float32(255), None),
    "pairs": (TensorDataset(BYTES / 255, torch.arange(20)), None),
    "batches": (BYTES / 255, to_batch),
}


@pytest.mark.parametrize("kind", LOADED)
def test_a_loader_gives_what_the_tensor_would(kind):
    data, collate = LOADED[kind]
    loader = DataLoader(data, 5, shuffle=True, collate_fn=collate)
    objective = Recorder()
    history = fit(objective, loader, valid=loader, epochs=2)
    assert history["step"].tolist() == [4, 8]
    for first in (1, 5, 9):  # after a rehearsal an epoch, its validation, an epoch
        seen = torch.cat([b.views[:, 0] for b in objective.seen[first : first + 4]])
        assert_close(seen.sort(0).values, BYTES / 255, rtol=0, atol=0)


def test_a_loader_of_unknown_length_runs_to_its_end():
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(points(12))

    history = fit(Student(), DataLoader(Stream(), 4), epochs=2)
    assert history["step"].tolist() == [3, 6]


def test_the_population_is_the_number_of_training_items():
    objective, parent = Student(), nn.Sequential()
    parent.append(objective)
    parent.forward = objective.forward
    fit(parent, points(30), epochs=1, batch_size=8, valid=points(4))
    assert objective.population == 30
    assert "0.population" in parent.state_dict()


X = points(24)


class Repeated(Sampler[int]):
    """Goes over every item four times, as repeated augmentation does."""

    def __len__(self) -> int:
        return 4 * len(X)

    def __iter__(self) -> Iterator[int]:
        return iter((torch.randperm(len(self)) % len(X)).tolist())


COUNTED: dict[str, tuple[dict[str, Any], int | None]] = {
    "items": ({"dataset": X, "batch_size": 8}, 24),
    "items in random order": ({"dataset": X, "batch_size": 8, "shuffle": True}, 24),
    "ready batches": ({"dataset": X.unflatten(0, (4, 6)), "batch_size": None}, None),
    "joined batches": (
        {"dataset": X.unflatten(0, (4, 6)), "batch_size": 2, "collate_fn": torch.cat},
        None,
    ),
    "some of the items": (
        {"dataset": X, "batch_size": 4, "sampler": SubsetRandomSampler(range(8))},
        8,
    ),
    "weighted items": (
        {
            "dataset": X,
            "batch_size": 4,
            "sampler": WeightedRandomSampler([0.0] * 4 + [1.0] * 20, 100),
        },
        20,
    ),
    "few items in each epoch": (
        {
            "dataset": X,
            "batch_size": 4,
            "sampler": RandomSampler(X, num_samples=8),
        },
        24,
    ),
    "batches of a sampler": (
        {"dataset": X, "batch_sampler": BatchSampler(range(12), 4, False)},
        12,
    ),
    "items that a subset repeats": (
        {"dataset": X, "batch_size": 4, "sampler": SubsetRandomSampler([1, 2, 3] * 4)},
        3,
    ),
    "a part of the items in random order": (
        {"dataset": X, "batch_size": 4, "sampler": RandomSampler(range(8))},
        8,
    ),
    "a sampler that repeats items": (
        {"dataset": X, "batch_size": 4, "sampler": Repeated()},
        None,
    ),
    "batches by hand": ({"dataset": X, "batch_sampler": [[0, 1], [2, 3]]}, None),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_the_population_is_what_a_loader_loads_or_what_the_user_says(kind):
    options, count = COUNTED[kind]
    objective = Student()
    for before in (None, torch.tensor(7.0)):
        objective.population = before
        fit(objective, DataLoader(**options), epochs=1)
        expected = count if before is None else 7
        found = objective.population
        assert (None if found is None else float(found)) == expected


def test_a_number_that_fit_counted_is_counted_again():
    objective = Student()
    fit(objective, points(30), epochs=1)
    fit(objective, DataLoader(X, 8), epochs=1)
    assert objective.population == 24
    fit(objective, DataLoader(X.unflatten(0, (4, 6)), batch_size=None), epochs=1)
    assert objective.population is None


def test_a_random_scale_asks_for_a_number_that_fit_cannot_count():
    prior = Gaussian(3, dist.LogNormal(-1.0, 0.3))
    objective = limits.Embedding(MLPEncoder((DIM,), 3), prior, KernelDensity())
    loader = DataLoader(X.unflatten(0, (4, 6)), batch_size=None)
    with pytest.raises(ValueError, match="whose items fit cannot count, set pop"):
        fit(objective, loader, views=noisy, epochs=1)
    objective.population = torch.tensor(24.0)
    fit(objective, loader, views=noisy, epochs=1)


class Late(Autoencoder):
    """With a running mean that the first batch creates, and a memory that may grow."""

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.grows = grows
        self.register_buffer("mean", None)
        self.register_buffer("kept", torch.zeros(0))

    def forward(self, batch: Batch) -> Terms:
        if self.training:
            x = batch.stacked[:, 0].mean(0)
            self.mean = x if self.mean is None else 0.5 * self.mean + 0.5 * x
            self.kept = torch.cat([self.kept, x[: self.grows]])
        return super().forward(batch)


def test_a_buffer_that_the_first_batch_creates_is_there_for_accumulated_ones():
    x, objective = points(30), Late(grows=True)
    batches = [Batch(x[i : i + 10].unsqueeze(1)) for i in (0, 10, 20)]
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.0)
    step = Step(objective.train(), optimizer)
    step(batches[:2])  # both see the state before: the last one stays
    assert_close(objective.mean, x[10:20].mean(0))
    assert_close(objective.kept, x[10:20].mean(0)[:1])
    step(batches)
    assert_close(objective.mean, 0.5 * x[10:20].mean(0) + 0.5 * x[20:].mean(0))
    assert_close(objective.kept, x[10:].unflatten(0, (2, 10)).mean(1)[:, 0])


def test_a_buffer_that_the_first_batch_creates_is_resumed(tmp_path):
    x, options = points(), {"batch_size": 10, "patience": 3}
    through, halved, resumed = (deepcopy(late) for late in [Late()] * 3)
    for objective, epochs, resume in (
        (through, 4, None),
        (halved, 2, False),
        (resumed, 4, True),
    ):
        torch.manual_seed(0)
        folder = {} if resume is None else {"checkpoint": tmp_path, "resume": resume}
        fit(objective, x, epochs=epochs, **options, **folder)
    assert_close(resumed.state_dict(), through.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("freed", [True, False])
def test_parameters_freeze_and_thaw_during_a_run(compile, freed, traced):
    objective, seen = Autoencoder(), []
    objective.encoder.requires_grad_(not freed)

    def change(epoch: int, row: object) -> None:
        seen.append(objective.encoder.weight.detach().clone())
        objective.encoder.requires_grad_(freed)

    optimizer = Adam(objective.parameters(), weight_decay=0.1)
    before = objective.encoder.weight.detach().clone()
    options = {"optimizer": optimizer, "epochs": 3, "compile": compile}
    fit(objective, points(), on_epoch=change, **options)
    assert torch.equal(before, seen[0]) is freed
    assert torch.equal(seen[0], seen[1]) is torch.equal(seen[1], seen[2]) is not freed


@pytest.mark.parametrize("change", ["thaws", "replaces"])
def test_parameters_that_the_optimiser_does_not_have_are_refused(change):
    objective = Autoencoder()
    objective.encoder.requires_grad_(False)

    def on_epoch(epoch: int, row: object) -> None:
        if change == "thaws":
            objective.encoder.requires_grad_(True)
        else:
            objective.decoder = nn.Linear(2, DIM)

    found = "encoder" if change == "thaws" else "decoder"
    with pytest.raises(ValueError, match=f"got {found}.weight, which became trainable"):
        fit(objective, points(), on_epoch=on_epoch, epochs=2)


def test_what_was_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        objective = Autoencoder()
    with pytest.raises(ValueError, match="made in torch.inference_mode; build"):
        fit(objective, points())


def test_a_last_batch_of_a_sampler_with_one_item_is_refused_before_the_fit():
    simclr, seen = limits.SimCLR(MLPEncoder((DIM,), 3)), []
    loader = DataLoader(points(9), batch_sampler=BatchSampler(range(9), 4, False))
    with pytest.raises(ValueError, match="batches of 4 and one of one"):
        fit(simclr, loader, views=noisy, on_step=lambda *_: seen.append(1))
    assert not seen


def test_the_objective_may_check_the_first_batch():
    class Checked(Recorder):
        def check(self, batch: Batch) -> None:
            raise ValueError(f"expected 3 views, got {batch.shape[1]}")

    objective = Checked()
    with pytest.raises(ValueError, match="expected 3 views, got 2"):
        fit(objective, points(), views=noisy)
    assert not objective.seen


# --- history, validation, stopping -------------------------------------------------


def test_rows_are_means_over_items():
    class Mean(Autoencoder):
        def forward(self, batch: Batch) -> Terms:
            x = batch.views
            return Terms(entropy=x.mean() + 0 * sum(p.sum() for p in self.parameters()))

    data = points(23, torch.float64)
    loader = DataLoader(data, 10)  # batches of 10, 10 and 3 items
    kinds: set[type] = set()
    history = fit(
        Mean().double(),
        loader,
        valid=data,
        epochs=2,
        on_epoch=lambda epoch, row: kinds.update(map(type, row.values())),
    )
    assert kinds == {int, float}  # which any logger takes
    for column in ("value", "entropy", "valid_value", "valid_entropy"):
        assert_close(history[column], np.full(2, float(data.mean())))
    assert (history["alignment"] == 0).all()


def test_a_history_is_a_table_and_survives_json():
    history = fit(
        Autoencoder(0.1),
        points(),
        valid=points(),
        epochs=3,
        on_epoch=lambda epoch, row: row.update(probe=np.float32(epoch / 2)),
    )
    table = history.table
    assert table.index.name == "epoch" and table.index.tolist() == [1, 2, 3]
    assert table["value"].tolist() == history["value"].tolist()
    assert table["probe"].tolist() == [0.5, 1.0, 1.5]
    total = table[list(Terms._fields)].sum(axis=1).to_numpy()
    np.testing.assert_allclose(total, history["value"], rtol=1e-14)
    assert History.from_json(history.to_json()).rows == history.rows
    assert repr(history).startswith("History(3 epochs; last: value ")
    assert (history["seconds"] > 0).all() and len(History().table) == 0
    with pytest.raises(KeyError, match="expected one of .*'valid_value'.*, got 'loss'"):
        history["loss"]


def test_simvae_is_validated():
    simvae = limits.SimVAE(joint(Gaussian(2, 0.5), event=DIM))
    history = fit(simvae, points(), views=noisy, valid=points(9), epochs=1)
    assert math.isfinite(history["valid_value"][0])


def test_views_that_change_their_items_are_refused():
    def views(x: Tensor) -> Tensor:
        x += 0.5 * torch.randn_like(x)
        return x.unsqueeze(1)

    with pytest.raises(ValueError, match="leave the items as they are"):
        fit(Autoencoder(), points(), views=views, epochs=1)


def test_validation_leaves_training_as_it_is():
    data, (one, other) = points(), twins(Noisy)
    for objective, valid in ((one, None), (other, points(9))):
        torch.manual_seed(2)
        fit(objective, data, views=noisy, valid=valid, epochs=3, batch_size=16)
    assert_same(one, other)


def test_validation_draws_the_same_views_every_time():
    still = {"epochs": 3, "learning_rate": 1e-30}
    history = fit(Autoencoder(), points(), views=noisy, valid=points(9), **still)
    assert len(set(history["valid_value"])) == 1 and len(set(history["value"])) == 3


def of_rows(name: str) -> nn.Module:
    """An objective with a direction, a label or a parameter for each of 30 items."""

    class Table(limits.JointEmbedding):
        def __init__(self, encoder: nn.Module) -> None:
            super().__init__(encoder)
            self.table = nn.Parameter(torch.randn(30, 1, 2))

        def value(self, z: Tensor, batch: Batch) -> Terms:
            return Terms(alignment=-(z - self.table[batch.index]).square().mean())

    encoder = MLPEncoder((DIM,), 2, hidden=(8,))
    built = {
        "clusters": lambda: limits.DeepClustering(encoder, 3, 30),
        "bank": lambda: limits.InstanceDiscrimination(encoder, 30),
        "pid": lambda: limits.PID(limits.SimCLR(encoder), 3, 30),
        "extension": lambda: limits.DSA(
            limits.InstanceDiscrimination(encoder, 30), neighbours=2
        ),
        "own": lambda: Table(encoder),
    }
    return built[name]()


ROWS = "clusters", "bank", "pid", "extension", "own"


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("count", [9, 31])
@pytest.mark.parametrize("loaded", [False, True])
def test_objectives_of_training_rows_refuse_validation_at_the_start(
    name, count, loaded, tmp_path
):
    data, valid = Groups(noisy(points(30))), Groups(noisy(points(count)))
    if loaded:  # which may number its items itself
        valid = DataLoader([Batch(valid.views, index=torch.arange(count))], None)
    options = {"epochs": 1, "checkpoint": tmp_path / "run"}
    with pytest.raises(ValueError, match="no validation data .* in on_epoch") as info:
        fit(of_rows(name), data, valid=valid, **options)
    assert info.value.__notes__ == ["in the validation data"]
    assert len(fit(of_rows(name), data, **options)) == 1  # nothing was written


@pytest.mark.parametrize("name", ["clusters", "bank", "pid"])
@pytest.mark.parametrize("items", [29, 31])
def test_objectives_of_training_rows_have_as_many_as_the_data(name, items):
    with pytest.raises(ValueError, match=f"the 30 items .*, got {items}; .*len.data"):
        fit(of_rows(name), points(items), views=noisy, epochs=1)


def test_what_cannot_be_validated_is_said_before_training():
    objective = limits.SimCLR(MLPEncoder((DIM,), 2, hidden=(8,)))
    before = objective.encoder.state_dict()
    few = DataLoader(points(9), 8)
    wanted = {
        "at least 2 items with .* got 1 with 2; give more items": points(1),
        "two items in every batch for SimCLR, got batches .*drop_last=True": few,
        f"{DIM + 1}": torch.randn(9, DIM + 1),
    }
    for words, valid in wanted.items():
        with pytest.raises(Exception, match=words) as info:
            fit(objective, points(), views=noisy, valid=valid, epochs=1)
        assert info.value.__notes__ == ["in the validation data"]
    assert all(
        map(torch.equal, before.values(), objective.encoder.state_dict().values())
    )


def test_a_last_batch_of_one_item_is_refused_where_items_are_compared():
    for objective in (of_rows("pid"), limits.VICReg(nn.Linear(DIM, 2))):
        with pytest.raises(
            ValueError, match=r"two items .*one of one item.*drop_last=True"
        ):
            fit(objective, DataLoader(points(31), 10), views=noisy)
    fit(of_rows("bank"), points(30), views=noisy, epochs=1, batch_size=29)


def test_rehearsing_a_validation_leaves_the_order_of_its_loader():
    order = torch.Generator().manual_seed(0)
    valid = DataLoader(points(9), 4, shuffle=True, generator=order)
    seen = Recorder()
    fit(seen, points(8), valid=valid, epochs=1)
    first = seen.seen[0].views[:, 0]
    assert_close(first, seen.seen[2].views[:, 0], rtol=0, atol=0)


def test_validation_is_in_evaluation_mode_and_without_gradients():
    class Mode(Autoencoder):
        def forward(self, batch: Batch) -> Terms:
            assert torch.is_grad_enabled() == self.training == (len(batch.views) == 8)
            return super().forward(batch)

    fit(Mode(), points(8), valid=points(3), epochs=2)


def test_after_an_epoch_the_objective_is_in_evaluation_mode():
    objective, modes = Autoencoder(), []
    fit(
        objective,
        points(),
        epochs=2,
        on_step=lambda *_: modes.append(objective.training),
        on_epoch=lambda *_: modes.append(objective.training),
    )
    assert modes == [True, False, True, False]


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_the_fit_and_brings_the_best_epoch_back(patience):
    probes, kept = [1.0, 3.0, 2.0, math.nan, 4.0, 0.0, 0.0, 9.0], {}
    objective = Noisy()

    def probe(epoch: int, row: dict[str, float]) -> None:
        row["probe"] = probes[epoch - 1]
        kept[epoch] = {k: v.clone() for k, v in objective.state_dict().items()}

    watch = {"on_epoch": probe, "monitor": "probe", "patience": patience}
    history = fit(objective, points(), epochs=8, **watch)
    assert len(history) == 2 + patience
    assert_close(objective.state_dict(), kept[2], rtol=0, atol=0)


def test_validation_data_compare_epochs_by_default():
    options = {"epochs": 12, "patience": 2, "learning_rate": 0.3}
    torch.manual_seed(0)
    seen, held_out = points(), torch.randn_like(points()) * 5
    for valid, monitor in ((held_out, "valid_value"), (None, "value")):
        found = []
        for given in ({}, {"monitor": monitor}):
            torch.manual_seed(1)
            history = fit(Noisy(), seen, valid=valid, **options | given)
            found.append(history[monitor].tolist())
        assert found[0] == found[1]
        assert len(found[0]) == min(12, int(np.argmax(found[0])) + 3)


def test_a_probe_may_be_rarer_than_epochs(caplog):
    def probe(epoch: int, row: dict[str, float]) -> None:
        if epoch % 2 == 0:
            row["knn"] = 1 / epoch

    watch = {"on_epoch": probe, "monitor": "knn"}
    history = fit(Autoencoder(), points(), epochs=9, patience=4, **watch)
    assert len(history) == 6 and np.isnan(history["knn"][::2]).all()
    assert "the row of epoch 1 has no 'knn'" in caplog.text
    history = fit(Autoencoder(), points(), epochs=9, patience=1, **watch)
    assert len(history) == 4
    with pytest.raises(ValueError, match="one of .*'value'.*, got 'knn'"):
        fit(Autoencoder(), points(), epochs=1, patience=9, **watch)


RETURNED = {"row": {"value": 1.0}, "number": 1, "text": "", "tensor": torch.ones(2)}


@pytest.mark.parametrize("name", RETURNED)
@pytest.mark.parametrize("callback", ["on_step", "on_epoch"])
def test_callbacks_return_whether_to_end_or_nothing(callback, name):
    calls = {callback: lambda *_: RETURNED[name]}
    with pytest.raises(TypeError, match=f"{callback} to return True.*or None, got"):
        fit(Autoencoder(), points(), epochs=2, **calls)
    for ends in (True, np.bool_(True), torch.tensor(True)):
        assert (
            len(fit(Autoencoder(), points(), **{callback: lambda *_, e=ends: e})) == 1
        )
    for stays in (None, False, np.bool_(False), torch.tensor(False)):
        calls = {callback: lambda *_, s=stays: s}
        assert len(fit(Autoencoder(), points(), epochs=2, **calls)) == 2


@pytest.mark.parametrize("added", ["hi", "0.5", None, 1j, torch.ones(2), [1.0]])
def test_on_epoch_adds_numbers(added):
    with pytest.raises(TypeError, match="on_epoch to add numbers .* under 'note'"):
        fit(Autoencoder(), points(), on_epoch=lambda _, row: row.update(note=added))
    with pytest.raises(TypeError, match=r"numbers under strings .* 0.5 under 1"):
        fit(Autoencoder(), points(), on_epoch=lambda _, row: row.update({1: 0.5}))
    numbers = {"a": np.float32(2), "b": torch.tensor(2.0), "c": np.int64(2), "d": True}
    history = fit(
        Autoencoder(), points(), epochs=1, on_epoch=lambda _, row: row.update(numbers)
    )
    assert History.from_json(history.to_json()).rows == history.rows


def test_a_row_without_the_value_is_kept_where_nothing_compares_epochs(caplog):
    watch = {"on_epoch": lambda _, row: row.pop("value") and None}
    history = fit(Autoencoder(), points(), epochs=2, **watch)
    assert len(history) == 2 and "value" not in history.columns
    assert "by which epochs are compared" not in caplog.text
    with pytest.raises(ValueError, match="expected monitor as one of"):
        fit(Autoencoder(), points(), epochs=2, patience=2, **watch)


def test_a_monitored_column_that_is_always_nan_is_no_silent_stop():
    watch = {"on_epoch": lambda _, row: row.update(probe=math.nan), "monitor": "probe"}
    with pytest.warns(UserWarning, match="'probe', .* NaN in all 2 epochs; no epoch"):
        history = fit(Autoencoder(), points(), epochs=9, patience=2, **watch)
    assert len(history) == 2


@pytest.mark.parametrize("build", [limits.SimVAE, limits.VICReg])
def test_a_state_dict_of_before_a_fit_loads_after_it_and_the_other_way(build):
    def built() -> nn.Module:
        networks = MLPEncoder((3,), 2), MLPDecoder(2, (3,))
        gaussian = Joint(Gaussian(2), Normal(), *networks)
        return build(gaussian if build is limits.SimVAE else networks[0])

    objective, fresh = built(), built()
    before = deepcopy(objective.state_dict())
    fit(objective, torch.randn(24, 3), views=noisy, epochs=1)
    fresh.load_state_dict(objective.state_dict())
    assert_close(dict(fresh.state_dict()), dict(objective.state_dict()))
    objective.load_state_dict(before)
    name = next(k for k in objective.state_dict() if k.endswith("population"))
    assert objective.state_dict()[name] == 24  # of the data of the last fit
    assert_close({k: objective.state_dict()[k] for k in before}, dict(before))


def test_without_patience_the_last_epoch_stays(tmp_path):
    objective, kept = Autoencoder(), {}

    def probe(epoch: int, row: dict[str, float]) -> None:
        row["probe"] = -epoch
        kept.update({k: v.clone() for k, v in objective.state_dict().items()})

    watch = {"on_epoch": probe, "monitor": "probe", "checkpoint": tmp_path}
    fit(objective, points(), epochs=3, **watch)
    assert_close(objective.state_dict(), kept, rtol=0, atol=0)


def watched(
    folder: Path, epochs: int, **options: Any
) -> tuple[nn.Module, History, dict]:
    """A fit whose best epoch is the third, and the parameters of each epoch."""
    objective, kept = Autoencoder(), {}

    def probe(epoch: int, row: dict[str, float]) -> None:
        row["probe"] = -abs(epoch - 3)
        kept[epoch] = {k: v.clone() for k, v in objective.state_dict().items()}

    watch = {"on_epoch": probe, "monitor": "probe", "checkpoint": folder}
    torch.manual_seed(0)
    history = fit(objective, points(), epochs=epochs, resume=True, **watch, **options)
    return objective, history, kept


def test_a_resumed_run_without_patience_has_its_last_epoch(tmp_path):
    watched(tmp_path, 5, patience=9)
    objective, history, kept = watched(tmp_path, 7)
    assert len(history) == 7 and set(kept) == {6, 7}
    assert_close(objective.state_dict(), kept[7], rtol=0, atol=0)


def test_patience_that_comes_late_brings_the_best_epoch_back(tmp_path):
    _, _, before = watched(tmp_path, 7)
    objective, history, _ = watched(tmp_path, 9, patience=4)
    assert len(history) == 7
    assert_close(objective.state_dict(), before[3], rtol=0, atol=0)


def test_patience_that_comes_late_without_the_best_epoch_counts_from_there(tmp_path):
    watched(tmp_path, 7)
    (tmp_path / "best.safetensors").unlink()
    objective, history, kept = watched(tmp_path, 20, patience=2)
    assert len(history) == 10
    assert_close(objective.state_dict(), kept[8], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["epoch", "step"])
@pytest.mark.parametrize("change", [1000, math.nan, None])
def test_on_epoch_must_leave_the_counts_as_they_are(name, change, tmp_path):
    def count(epoch: int, row: dict[str, float]) -> None:
        if epoch == 2:
            row[name] = change
            if change is None:
                del row[name]

    few = partial(noisy_fit, checkpoint=tmp_path, epochs=3)
    torch.manual_seed(4)
    _, expected = noisy_fit(epochs=3)
    torch.manual_seed(4)
    with pytest.raises(ValueError, match=f"leave {name} = .*another name"):
        few(on_epoch=count)
    _, history = few(resume=True)
    assert without_time(history) == without_time(expected)


def test_steps_are_those_of_the_checkpoint_and_not_of_the_history(tmp_path):
    _, history = noisy_fit(epochs=2, checkpoint=tmp_path)
    steps, last = history.rows[-1]["step"], tmp_path / "last.safetensors"
    state = read(last)
    assert state["steps"] == steps > 0
    state["history"][-1]["step"] = 1000
    write(last, state)
    _, history = noisy_fit(epochs=3, checkpoint=tmp_path, resume=True)
    assert history.rows[-1]["step"] == steps * 3 // 2


def test_numbers_of_a_callback_that_equal_the_counts_are_whole_again():
    def count(epoch: int, row: dict[str, float]) -> None:
        row.update(epoch=np.float32(epoch), step=torch.tensor(row["step"]))

    (row,) = fit(Autoencoder(), points(), epochs=1, on_epoch=count).rows
    assert type(row["epoch"]) is type(row["step"]) is int


def test_either_callback_can_stop():
    short = partial(fit, data=points(), epochs=9, batch_size=8)
    assert len(short(Autoencoder(), on_epoch=lambda epoch, _: epoch == 2)) == 2
    history = short(Autoencoder(), on_step=lambda step, _: step == 7)
    assert history["step"].tolist() == [5, 7]


def test_the_bar_shows_the_terms(capfd):
    shown_fit(Autoencoder(0.1), points(), epochs=2, batch_size=20)
    shown = capfd.readouterr().err
    assert "epoch 2/2" in shown and "4/4" in shown
    assert "value=" in shown and "penalty=" in shown and "entropy=" not in shown
    fit(Autoencoder(), points(), epochs=1)
    assert not capfd.readouterr().err


def test_an_error_in_an_epoch_has_the_history_before_it():
    def fail(epoch: int, row: dict[str, float]) -> None:
        if epoch == 3:
            raise RuntimeError("mine")

    objective = Autoencoder()
    with pytest.raises(RuntimeError, match="mine") as caught:
        fit(objective, points(), epochs=5, on_epoch=fail)
    assert caught.value.history["epoch"].tolist() == [1, 2]
    assert "2 epochs are in history" in caught.value.__notes__[-1]
    assert not objective.training
    with pytest.raises(RuntimeError):
        fit(objective, points(), epochs=5, on_step=lambda step, terms: fail(3, {}))
    assert not objective.training


def test_an_interrupt_keeps_what_was_reached(caplog):
    def interrupt(step: int, terms: Terms) -> None:
        assert isinstance(terms, Terms) and not terms.reconstruction.requires_grad
        if step == 3:
            raise KeyboardInterrupt

    objective = Autoencoder()
    with caplog.at_level(logging.WARNING):
        history = fit(objective, points(), batch_size=20, epochs=9, on_step=interrupt)
    assert len(history) == 2 and history.interrupted and not objective.training
    assert "epoch 2, after step 3; the parameters stay as they are" in caplog.text


def test_an_interrupt_with_patience_says_whose_parameters_stay(caplog):
    def interrupt(epoch: int, row: dict[str, float]) -> None:
        row["probe"] = -epoch
        if epoch == 3:
            raise KeyboardInterrupt

    watch = {"on_epoch": interrupt, "monitor": "probe", "patience": 5}
    with caplog.at_level(logging.WARNING):
        fit(Autoencoder(), points(), epochs=9, **watch)
    assert "the parameters are those of the best epoch, 1" in caplog.text


# --- what is not finite ------------------------------------------------------------


def test_the_first_term_that_is_not_finite_is_named_with_its_step(tmp_path):
    objective = Fixed(1, 1, 1, 1, math.nan, 1, 1)
    with pytest.raises(FloatingPointError, match="entropy = nan at step 5; .*FOLDER"):
        fit(objective, points(), batch_size=10, epochs=3)
    objective = Fixed(1, 1, 1, 1, math.inf)
    with pytest.raises(FloatingPointError, match="entropy = inf at step 5; .*epoch 1"):
        fit(objective, points(), batch_size=10, epochs=3, checkpoint=tmp_path)
    assert torch.isfinite(read(tmp_path / "last.safetensors")["objective"]["weight"])


def test_a_term_that_is_not_finite_ends_the_fit_within_the_epoch(monkeypatch):
    monkeypatch.setattr("probssl.train.epoch.SECONDS_PER_READING", 0.0)
    objective = Fixed(1, 1, 1, 1, math.nan)
    with pytest.raises(FloatingPointError, match="step 5"):
        fit(objective, points(40), batch_size=2, epochs=1)
    assert objective.calls == 5


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    class Root(Fixed):
        def forward(self, batch: Batch) -> Terms:
            self.calls += 1
            at = 0.0 if self.calls == 8 else 1.0
            return Terms(alignment=(self.weight * at).sqrt())

    with pytest.raises(
        FloatingPointError, match="gradient, .* step 8; .* after epoch 1"
    ):
        fit(Root(), points(), batch_size=10, epochs=9, checkpoint=tmp_path)
    assert len(read(tmp_path / "last.safetensors")["history"]) == 1


def test_a_queue_and_its_count_are_put_back_together():
    calls = []

    def views(x: Tensor) -> Tensor:
        calls.append(0)
        found = noisy(x)
        if len(calls) > 4:  # two of the first batch are drawn to compare them
            found[0] = math.nan
        return found

    objective = limits.MoCo(MLPEncoder((DIM,), 2, hidden=(8,)), queue=200)
    with pytest.raises(FloatingPointError, match="finite views"):
        fit(objective, points(), views=views, batch_size=10, epochs=3)
    filled = objective.keys.memory.norm(dim=1) > 0
    assert int(filled.sum()) == int(objective.keys.count) < 200
    assert all(x.isfinite().all() for x in objective.state_dict().values())


def test_validation_that_is_not_finite_is_told_and_never_the_best(caplog):
    class Broken(Fixed):
        def forward(self, batch: Batch) -> Terms:
            return Terms(alignment=self.weight * (1 if self.training else math.nan))

    warned = pytest.warns(UserWarning, match="'valid_value', .* NaN in all 2 epochs")
    with caplog.at_level(logging.WARNING), warned:
        history = fit(
            Broken(), points(), valid=points(), monitor="valid_value", patience=2
        )
    assert len(history) == 2 and "alignment = nan" in caplog.text


# --- checkpoints -------------------------------------------------------------------

SCHEDULES = {
    "none": None,
    "cosine": lambda o: CosineAnnealingLR(o, T_max=12),
    "steps": lambda o: MultiStepLR(o, [5, 5, 11], gamma=0.5),
    "warm": lambda o: SequentialLR(
        o, [LinearLR(o, total_iters=3), MultiStepLR(o, [2])], [8]
    ),
    "cycle": lambda o: OneCycleLR(o, 0.05, total_steps=12),
}
OPTIMISERS = {
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "plain": partial(torch.optim.SGD, lr=0.01),
    "tensors": partial(torch.optim.AdamW, lr=torch.tensor(0.01), amsgrad=True),
}


def noisy_fit(**kwargs: Any) -> tuple[Noisy, History]:
    data = torch.randn(30, DIM, generator=torch.Generator().manual_seed(9))
    objective = Noisy()
    defaults = {
        "views": noisy,
        "valid": data[:11],
        "epochs": 4,
        "batch_size": 8,
        "accumulate": 1,
        "clip": 1.0,
    }
    if "optimizer" not in kwargs:
        defaults["learning_rate"] = 0.02
    if kwargs.keys() & {"patience", "checkpoint"}:
        defaults["monitor"] = "valid_value"
    return objective, fit(objective, data, **(defaults | kwargs))


class Killed(BaseException):
    """Of which a fit hears as little as of a signal that kills it."""


def kill_at(
    last: int, kind: type[BaseException] = Killed
) -> Callable[[int, Terms], None]:
    def on_step(step: int, terms: Terms) -> None:
        if step == last:
            raise kind("killed")

    return on_step


def assert_resumes(
    run: Callable[..., Any],
    folder: Path,
    last: int,
    kind: type[BaseException] = Killed,
) -> int:
    """A run that is killed in a step and resumed is the run in one piece.

    Returns the number of epochs in the checkpoint that it is resumed from.

    Arguments:
        run: Returns the objective and its history; passes its arguments on to `fit`.
    """
    torch.manual_seed(4)
    whole, history = run(checkpoint=folder / "whole")
    torch.manual_seed(4)
    with pytest.raises(kind, match="killed"):
        run(checkpoint=folder / "parts", on_step=kill_at(last, kind))
    kept = len(read(folder / "parts" / "last.safetensors")["history"])
    torch.manual_seed(123)  # another process: other parameters, another random state
    parts, resumed = run(checkpoint=folder / "parts", resume=True)
    assert_same(whole, parts)
    assert without_time(resumed) == without_time(history)
    return kept


OF_OTHERS = OSError, FloatingPointError, TimeoutError  # not of a disk or of the terms


@pytest.mark.parametrize(
    ("last", "kind"),
    [*((last, RuntimeError) for last in range(1, 12)), *((7, k) for k in OF_OTHERS)],
)
def test_a_run_that_ended_in_an_error_resumes_from_that_moment(last, kind, tmp_path):
    options = {"checkpoint_every": 9, "optimizer": OPTIMISERS["momentum"]}
    run = partial(noisy_fit, **options)
    assert assert_resumes(run, tmp_path, last, kind) == (last - 1) // 3


class Centred(Fixed):
    """One that centres its views by a running mean, which no `state_dict` has."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.net = nn.Linear(DIM, 2)
        if buffer:
            self.register_buffer("mean", torch.zeros(DIM), persistent=False)
        else:
            self.mean = torch.zeros(DIM)

    def forward(self, batch: Batch) -> Terms:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * batch.views.mean((0, 1))
        return Terms(alignment=-self.net(batch.views - self.mean).square().mean())


def test_a_buffer_that_no_state_dict_has_is_resumed_and_of_the_best_epoch(tmp_path):
    def run(epochs: int, **options: Any) -> tuple[Centred, History]:
        torch.manual_seed(4)
        objective = Centred(buffer=True)
        options = {"epochs": epochs, "batch_size": 10} | options
        return objective, fit(objective, points() + 1, **options)

    whole, history = run(4)
    run(2, checkpoint=tmp_path)
    resumed, again = run(4, checkpoint=tmp_path, resume=True)
    assert torch.equal(whole.mean, resumed.mean)
    assert without_time(again) == without_time(history)

    def probe(epoch: int, row: dict[str, float]) -> None:
        row["probe"] = -abs(epoch - 2)

    best, _ = run(9, on_epoch=probe, monitor="probe", patience=3)
    second, _ = run(2)
    assert torch.equal(best.mean, second.mean)


@pytest.mark.parametrize("part", ["encoder", "views"])
def test_what_callbacks_change_is_resumed(part, tmp_path):
    """A part that is made trainable on the way, and a buffer of the views."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("noise", torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, None] + self.noise * torch.randn(len(x), 2, DIM)

    def run(epochs: int, **options: Any) -> tuple[nn.Module, History]:
        torch.manual_seed(4)
        objective, views = Autoencoder(), Views()
        objective.encoder.requires_grad_(False)

        def change(epoch: int, row: dict[str, float]) -> None:
            if epoch == 2 and part == "encoder":
                objective.encoder.requires_grad_(True)
            elif epoch == 2:
                views.noise.fill_(0.5)

        given = {"views": views, "on_epoch": change, "batch_size": 10}
        given["optimizer"] = Adam(objective.parameters(), lr=0.01)
        return objective, fit(objective, points(), epochs=epochs, **given, **options)

    whole, history = run(5)
    run(3, checkpoint=tmp_path)
    resumed, again = run(5, checkpoint=tmp_path, resume=True)
    assert without_time(again) == without_time(history)
    assert_same(whole, resumed)


def test_what_no_checkpoint_holds_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        fit(Centred(buffer=True), points(), epochs=2, checkpoint=tmp_path / "a")
        assert not caplog.text
        fit(Centred(buffer=False), points(), epochs=2)
        assert not caplog.text
        fit(Centred(buffer=False), points(), epochs=2, checkpoint=tmp_path / "b")
    assert caplog.text.count("changes mean, which is in no state_dict") == 1

    class Shuffled(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, row: int) -> Tensor:
            return torch.randn(DIM) + float(np.random.rand())  # noqa: NPY002

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        loader = DataLoader(Shuffled(), 4)
        fit(Centred(buffer=True), loader, epochs=2, checkpoint=tmp_path / "c")
    assert caplog.text.count("generators of Python or NumPy") == 1


def test_an_error_before_the_first_step_leaves_no_checkpoint(tmp_path):
    class Wrong(Fixed):
        def forward(self, batch: Batch) -> Terms:
            raise RuntimeError("mine")

    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path / "new", tmp_path):
        with pytest.raises(RuntimeError, match="mine"):
            fit(Wrong(), points(), epochs=2, checkpoint=folder)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", SCHEDULES | OPTIMISERS)
def test_a_killed_run_resumes_bit_for_bit(name, tmp_path):
    if name in SCHEDULES:
        run, last = partial(noisy_fit, scheduler=SCHEDULES[name]), 8
    else:
        kwargs = {"optimizer": OPTIMISERS[name], "checkpoint_every": 2, "accumulate": 2}
        run, last = partial(noisy_fit, **kwargs), 7
    assert assert_resumes(run, tmp_path, last) == 2


class Shuffled(Sampler[int]):
    """A random order from a generator of the sampler's own."""

    def __init__(self, items: int, rng: torch.Generator) -> None:
        self.items, self.rng = items, rng

    def __len__(self) -> int:
        return self.items

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.items, generator=self.rng).tolist())


SHUFFLED: dict[str, Callable[[torch.Generator], dict[str, Any]]] = {
    "of the loader": lambda g: {"shuffle": True, "generator": g},
    "of torch's sampler": lambda g: {"sampler": RandomSampler(range(20), generator=g)},
    "of weights": lambda g: {"sampler": WeightedRandomSampler([1.0] * 20, 20, True, g)},
    "of an own sampler": lambda g: {"sampler": Shuffled(20, g)},
}


@pytest.mark.parametrize("name", SHUFFLED)
def test_a_shuffled_loader_resumes_bit_for_bit(name, tmp_path):
    def run(**kwargs: Any) -> tuple[Noisy, History]:
        data = TensorDataset(torch.arange(20 * DIM).reshape(20, DIM) / 100)
        generator = torch.Generator().manual_seed(int(torch.randint(99, ())))
        loader = DataLoader(data, 5, **SHUFFLED[name](generator))
        objective = Noisy()
        options = {"views": noisy, "valid": loader, "epochs": 5} | kwargs
        return objective, fit(objective, loader, **options)

    assert_resumes(run, tmp_path, 10)


def test_the_memory_order_of_parameters_survives(tmp_path):
    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = nn.Conv2d(3, 4, 3)
            self.conv = conv.to(memory_format=torch.channels_last)

        def forward(self, batch: Batch) -> Terms:
            return Terms(alignment=-(self.conv(batch.views[:, 0]) - 1).square().mean())

    def run(**kwargs: Any) -> tuple[Picture, History]:
        data = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(9))
        objective = Picture()
        options = {"epochs": 4, "learning_rate": 0.1} | kwargs
        return objective, fit(objective, data, **options)

    assert_resumes(run, tmp_path, 3)


def test_a_run_can_be_made_longer(tmp_path):
    torch.manual_seed(4)
    whole, history = noisy_fit(epochs=4)
    torch.manual_seed(4)
    noisy_fit(epochs=2, checkpoint=tmp_path)
    longer, resumed = noisy_fit(epochs=4, checkpoint=tmp_path, resume=True)
    assert_same(whole, longer)
    again, same = noisy_fit(epochs=4, checkpoint=tmp_path, resume=True)
    assert_same(whole, again)
    with pytest.warns(UserWarning, match="at least the 4 that .*, got 3; no epoch"):
        noisy_fit(epochs=3, checkpoint=tmp_path, resume=True)
    assert without_time(resumed) == without_time(history) == without_time(same)


def test_patience_and_the_best_parameters_survive_a_kill(tmp_path):
    def probe(epoch: int, row: dict[str, float]) -> None:
        row["probe"] = -abs(epoch - 2)

    kwargs = {"monitor": "probe", "patience": 3, "epochs": 20, "on_epoch": probe}
    assert_resumes(partial(noisy_fit, **kwargs), tmp_path, 11)
    # Nothing is left to do:
    parts, history = noisy_fit(checkpoint=tmp_path / "parts", resume=True, **kwargs)
    assert len(history) == 5
    best = read(tmp_path / "parts" / "best.safetensors")["objective"]
    assert_close(best, dict(parts.state_dict()), rtol=0, atol=0)


def test_a_whole_checkpoint_is_always_there(tmp_path, monkeypatch):
    noisy_fit(epochs=2, checkpoint=tmp_path)
    before = read(tmp_path / "last.safetensors")

    def full(*_) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        noisy_fit(epochs=4, checkpoint=tmp_path, resume=True)
    monkeypatch.undo()
    after = read(tmp_path / "last.safetensors")
    assert_close(after["objective"], before["objective"], rtol=0, atol=0)
    names = ["best.safetensors", "history.json", "last.safetensors"]
    names += [".fit.lock"]  # held by the fit that is under way
    assert {path.name for path in tmp_path.iterdir()} == {*names}
    assert len(json.loads((tmp_path / "history.json").read_text())) == 2


def test_a_checkpoint_keeps_tied_parameters_and_types(tmp_path):
    tied = torch.randn(3)
    state = {
        "a": {"x": tied, "y": tied, 3: (1, [2.5, None], "s")},
        "b": [tied[:1], True, {"inner": torch.tensor(1 << 40)}],
        "c": math.inf,
    }
    write(tmp_path / "file", state)
    back = read(tmp_path / "file")
    assert back["a"][3] == (1, [2.5, None], "s") and back["c"] == math.inf
    assert_close(back["a"]["y"], tied) and back["b"][2]["inner"] == 1 << 40
    with pytest.raises(TypeError, match="got set at a.b"):
        write(tmp_path / "file", {"a": {"b": {1}}})


def test_a_checkpoint_of_something_else_names_what_differs(tmp_path):
    noisy_fit(epochs=1, checkpoint=tmp_path)
    again = partial(fit, data=points(), checkpoint=tmp_path, resume=True)
    other = "expected a checkpoint of this Autoencoder, got one of Noisy: expected .*"
    other += "'encoder.weight', got nothing for the obj"
    with pytest.raises(ValueError, match=other):
        again(Autoencoder())
    wide = Noisy()
    wide.decoder = nn.Linear(8, DIM + 1)
    wider = r"one with other arguments: expected shape \(7, 8\) under 'decoder.weight'"
    with pytest.raises(ValueError, match=wider):
        again(wide)
    with pytest.raises(ValueError, match="'0.momentum', got nothing for the optimizer"):
        again(Noisy(), optimizer=torch.optim.SGD)
    few = lambda parameters: torch.optim.Adam(parameters[:2], fused=True)  # noqa: E731
    with pytest.raises(ValueError, match="2 entries under '0.params', got 6 entries"):
        again(Noisy(), optimizer=few)
    with pytest.raises(ValueError, match="for the scheduler|'0.initial_lr'"):
        again(Noisy(), scheduler=SCHEDULES["cosine"])
    with pytest.raises(ValueError, match="expected monitor='valid_value' as in"):
        again(Noisy())


def test_a_run_is_never_overwritten_nor_resumed_from_nothing(tmp_path):
    noisy_fit(epochs=1, checkpoint=tmp_path / "run")
    with pytest.raises(FileExistsError, match="resume=True"):
        noisy_fit(epochs=1, checkpoint=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="'run/last.safetensors' but no check"):
        noisy_fit(epochs=1, checkpoint=tmp_path, resume=True)
    (tmp_path / "run" / "last.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="'best.safetensors' but no checkpoint"):
        noisy_fit(epochs=1, checkpoint=tmp_path / "run", resume=True)
    save_file({"x": torch.ones(1)}, tmp_path / "run" / "last.safetensors")
    with pytest.raises(ValueError, match="'probssl checkpoint 2' in the header"):
        noisy_fit(epochs=1, checkpoint=tmp_path / "run", resume=True)


def test_a_script_that_logs_to_its_folder_is_started_again_and_again(tmp_path):
    for epochs in (1, 2):
        with (tmp_path / "log.txt").open("a") as log:
            log.write(f"{epochs}\n")
        found = noisy_fit(epochs=epochs, checkpoint=tmp_path, resume=True)
        assert len(found[1]) == epochs
    assert (tmp_path / "log.txt").read_text() == "1\n2\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 1e-7}, "learning rate 0.02, now 1e-07; the saved learning"),
        ({"batch_size": 4}, "batch_size 8, now 4"),
        ({"clip": None}, "clip 1.0, now none"),
        ({"views": lambda x: noisy(x)}, "views noisy, now .*lambda"),
        ({"valid": None}, "valid 11, now none"),
        ({"valid": torch.ones(11, DIM)}, "first items of valid \\w+, now"),
        ({"schedules": {"weight": abs}}, "schedules none, now weight"),
    ],
)
def test_a_resumed_run_says_which_settings_are_others(change, words, tmp_path):
    monitor = {"monitor": "value"} if "valid" in change else {}
    noisy_fit(epochs=1, checkpoint=tmp_path, **monitor)
    with pytest.warns(UserWarning, match=words):
        noisy_fit(epochs=2, checkpoint=tmp_path, resume=True, **monitor, **change)


def _scaled(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: noisy(x) * scale


@pytest.mark.parametrize(
    ("begun", "change", "words"),
    [
        (
            {"views": ps.views.Augment(ps.views.Noise(0.1))},
            {"views": ps.views.Augment(ps.views.Noise(0.2))},
            r"views made of .*; views: parts.0.scale 0.1, now 0.2",
        ),
        (
            {"views": _scaled(1.0)},
            {"views": _scaled(2.0)},
            r"others: views made of \(Python 3.\d+\) (\w+), now (?!\1)\w+; if",
        ),
        (
            {"schedules": {"weight": linear(1.0, 0.0)}},
            {"schedules": {"weight": linear(1.0, 0.5)}},
            "others: schedule of weight made of",
        ),
        ({"content": [0, 1] * 15}, {"content": [1, 0] * 15}, "others: content "),
        (
            {"schedules": {"weight": linear(1.0, 0.0)}},
            {},
            "schedules weight, now none",
        ),
    ],
)
def test_a_resumed_run_says_what_its_parts_are_made_of(begun, change, words, tmp_path):
    noisy_fit(epochs=1, checkpoint=tmp_path, **begun)
    noisy_fit(epochs=2, checkpoint=tmp_path, resume=True, **begun)  # says nothing
    with pytest.warns(UserWarning, match=words):
        noisy_fit(epochs=3, checkpoint=tmp_path, resume=True, **change)


def test_a_resumed_run_says_which_arguments_of_the_objective_are_others(tmp_path):
    def resumed(objective: nn.Module, **options: Any) -> nn.Module:
        data = torch.randn(30, DIM, generator=torch.Generator().manual_seed(9))
        options |= {"batch_size": 10, "checkpoint": tmp_path, "resume": True}
        fit(objective, data, views=noisy, **options)
        return objective

    def vae(beta: float) -> nn.Module:
        nets = MLPEncoder((DIM,), 2), MLPDecoder(2, (DIM,))
        return limits.VAE(
            Joint(ps.priors.Independent(2), Normal(0.5), *nets), beta=beta
        )

    begun = vae(1.0)

    def halve(*_: object) -> None:
        begun.beta.fill_(0.5)

    resumed(begun, epochs=1, on_step=halve)
    resumed(begun, epochs=2)  # with the number that was saved
    begun = resumed(vae(1.0), epochs=3)  # or with that of the beginning
    assert begun.beta == 0.5
    words = "others: objective: beta 1, now 4; the saved beta stays; if"
    with pytest.warns(UserWarning, match=words):
        assert resumed(vae(4.0), epochs=4).beta == 0.5


def test_a_run_of_an_older_version_gives_no_warning_of_what_it_did_not_write(tmp_path):
    noisy_fit(epochs=1, checkpoint=tmp_path)
    state = read(tmp_path / "last.safetensors")
    old = {"objective", "items", "first items", "batch_size", "views", "optimizer"}
    old |= {"learning rate", "accumulate", "clip"}
    state["setting"] = {k: v for k, v in state["setting"].items() if k in old}
    write(tmp_path / "last.safetensors", state)
    noisy_fit(epochs=2, checkpoint=tmp_path, resume=True)


def test_a_run_resumed_with_other_data_says_so(tmp_path):
    options = {"batch_size": 20, "checkpoint": tmp_path, "views": noisy}
    fit(Autoencoder(), points(), epochs=1, **options)
    other = points().flip(0)[1:]
    with pytest.warns(UserWarning, match="items 40, now 39; first items"):
        fit(Autoencoder(), other, epochs=2, resume=True, **options)


@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[:-9], lambda x: x[7:]])
def test_a_damaged_checkpoint_is_named_and_is_no_new_start(damage, tmp_path):
    noisy_fit(epochs=1, checkpoint=tmp_path)
    last = tmp_path / "last.safetensors"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(ValueError, match=r"last.safetensors as fit writes.*damaged"):
        noisy_fit(epochs=2, checkpoint=tmp_path, resume=True)


# --- errors, before any work -------------------------------------------------------


class Bare(Autoencoder):
    """Returns a given value."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: Batch) -> object:
        return self.value


def other(kind: type, **kwargs):
    """An optimiser of another parameter, or its scheduler."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    return optimizer if kind is torch.optim.SGD else kind(optimizer, **kwargs)


FEW, NAN = torch.rand(4, DIM), torch.full((3, DIM), math.nan)
PAIRS, PRESENT = torch.rand(4, 2, DIM), torch.ones(3, 2).bool()
VECTOR = torch.ones(3, requires_grad=True)
BATCHES = {"data": DataLoader(FEW, collate_fn=to_batch), "views": noisy}
WRONG: list[tuple[type[Exception], str, object, str]] = [
    (ValueError, "data", FEW[:0], "at least one item"),
    (ValueError, "data", NAN, "infinity in 3 of 3 items: 0, 1, 2; drop or impute"),
    (ValueError, "valid", NAN, "in the validation data, .* in 3 of 3 items: 0, 1, 2;"),
    (ValueError, "data", DataLoader(FEW, 8, drop_last=True), "one batch in an epoch"),
    (ValueError, "views", lambda x: x, r"\(40, view, \*event\).*got \(40, 6\)"),
    (ValueError, "views", lambda x: noisy(x)[1:], r"got \(39, 2, 6\)"),
    (ValueError, "views", lambda x: Batch(noisy(x)[1:]), r"got \(39, 2, 6\)"),
    (ValueError, "epochs", 0, "epochs as a whole number of at least 1, got 0"),
    (ValueError, "batch_size", 0, "batch_size as a whole number"),
    (ValueError, "accumulate", 0, "accumulate as a whole number"),
    (ValueError, "patience", 0, "patience as a whole number"),
    (ValueError, "checkpoint_every", 0, "checkpoint_every as a whole number"),
    (ValueError, "clip", 0.0, "clip as a positive finite number"),
    (ValueError, "compile", "always", "'auto' or None, got 'always'"),
    (ValueError, "monitor", "loss", "one of .*'value'.*got 'loss'"),
    (ValueError, "monitor", "valid_value", "pass them as valid, or monitor='value'"),
    (ValueError, "objective", Autoencoder().requires_grad_(False), "in Autoencoder, g"),
    (ValueError, "objective", Bare(Terms(VECTOR)), r"reconstruction with shape \(3,\)"),
    (ValueError, "objective", Bare(Terms(torch.ones(()))), "without a gradient"),
    (ValueError, "optimizer", other(torch.optim.SGD), "holds none of them"),
    (ValueError, "scheduler", other(LinearLR), "one of another"),
    (ValueError, "scheduler", ReduceLROnPlateau, "step it in on_epoch"),
    (ValueError, "resume", True, "expected a folder to resume from"),
    (TypeError, "data", Sets(FEW, FEW, 1, ""), "a Split.*; pass its .train or .test"),
    (TypeError, "data", "x", "a Split.* got str; pass one of these"),
    (TypeError, "data", np.array([["a"]]), "expected real numbers"),
    (TypeError, "data", DataLoader([{"a": 1.0}]), "yield tensors.*got dict"),
    (TypeError, "views", lambda x: [x, x], "got list; stack them"),
    (TypeError, "objective", Bare(torch.ones(())), "return Terms, got Tensor"),
    (TypeError, "objective", Bare((1.0, 2.0)), "return Terms, got tuple"),
    (TypeError, "optimizer", lambda parameters: None, "returns one, got None"),
    (
        TypeError,
        "optimizer",
        "adam",
        "an Optimizer, a function of 1 argument or None, got 'adam'",
    ),
    (ValueError, "optimizer", torch.optim.LBFGS, "got LBFGS.*first-order"),
    (ValueError, "optimizer", partial(Adam, maximize=True), "got Adam with maximize"),
    (TypeError, "scheduler", lambda optimizer: None, "returns one, got None"),
    (ValueError, "learning_rate", 0.0, "positive finite number, got 0.0"),
    (ValueError, "learning_rate", math.nan, "positive finite number, got nan"),
    (TypeError, "epochs", 1.5, "epochs as a whole number, got 1.5"),
    (TypeError, "patience", 1.5, "patience as a whole number or None, got 1.5"),
    (TypeError, "progress", "no", "progress as True or False, got 'no'"),
    (TypeError, "on_epoch", 1, "on_epoch as a function of 2 arguments or None, got 1"),
    (TypeError, "schedules", {"weight": 1.0}, "a dictionary to a function"),
    (TypeError, "objective", None, "objective as a torch.nn.Module, got None"),
    (TypeError, "objective", Autoencoder, "build an object of the class"),
    (TypeError, "objective", joint(Gaussian(3)), r"fitted by ps.limits.SimVAE\(joint"),
    (ValueError, "device", "gpu", "device of this machine, got 'gpu'"),
    (ValueError, "device", "cuda:99", "device of this machine, got 'cuda:99'"),
    (ValueError, "device", "meta", "device of this machine, got 'meta'"),
    (ValueError, "checkpoint", "", "checkpoint as a path, got ''"),
    (ValueError, "views", lambda x: x[:, None][:, :0], "at least one view of each"),
    (ValueError, "", {"optimizer": Adam, "learning_rate": 0.1}, "its own rate"),
    (
        ValueError,
        "",
        {"monitor": "alignment"},
        "no monitor without patience",
    ),
    (ValueError, "checkpoint_every", 2, "no checkpoint_every without a checkpoint"),
    (ValueError, "", {"data": DataLoader(FEW), "batch_size": 2}, "beside a DataLoader"),
    (ValueError, "", {"data": Groups(PAIRS), "views": noisy}, "no views for Groups"),
    (ValueError, "", BATCHES, "no views for a DataLoader of Batches"),
    (
        ValueError,
        "",
        {"monitor": "knn", "on_epoch": print, "patience": 1},
        "one of .*'lr'.* got 'knn'",
    ),
]


@pytest.mark.filterwarnings("ignore:expected all networks and parameters")
@pytest.mark.parametrize("error, name, value, message", WRONG)
def test_an_error_says_what_was_expected(error, name, value, message):
    arguments = {"objective": Autoencoder(), "data": points(), "epochs": 2}
    with pytest.raises(error, match=message):
        fit(**arguments | ({name: value} if name else value))


def test_an_optimiser_and_a_scheduler_at_hand_are_used():
    objective = Autoencoder()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    scheduler = LinearLR(optimizer, 1.0, 0.5, total_iters=2)
    given = {"optimizer": optimizer, "scheduler": scheduler}
    history = fit(objective, points(), epochs=2, clip=0.1, **given)
    assert optimizer.state_dict()["param_groups"][0]["lr"] == 0.25
    assert history["lr"].tolist() == [pytest.approx(0.375), 0.25]


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_for_the_device():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("by", torch.ones(2, DIM))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, None] + self.by

    objective = Noisy()
    history = fit(objective, points(), views=Shift(), valid=points(), epochs=2)
    assert next(objective.parameters()).is_cuda and np.isfinite(history["value"]).all()
    optimizer = torch.optim.Adam(objective.parameters(), fused=True)
    step, batch = Step(objective, optimizer, clip=1.0), Batch(points().cuda()[:, None])
    step([batch])
    torch.cuda.set_sync_debug_mode("error")
    try:
        step([batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_module_may_have_a_learning_rate_of_its_own():
    """The first step of Adam is as long as the rate."""
    objective = Autoencoder()
    objective.decoder.learning_rate_factor = 10.0
    before = {k: v.detach().clone() for k, v in objective.named_parameters()}
    history = fit(objective, torch.randn(8, DIM), epochs=1, batch_size=8)
    moved = {k: (v - before[k]).abs().max() for k, v in objective.named_parameters()}
    assert_close(moved["decoder.weight"], torch.tensor(1e-2), rtol=1e-3, atol=0)
    assert_close(moved["encoder.weight"], torch.tensor(1e-3), rtol=1e-3, atol=0)
    assert history["lr"] == [1e-3]


def test_a_learning_rate_factor_holds_for_all_parts_but_those_with_their_own():
    """A class of one's own keeps its parameters in layers, not in itself."""
    table = torch.nn.Sequential(torch.nn.Embedding(3, 2), torch.nn.Linear(2, 2))
    table[1].learning_rate_factor = 0.5
    objective = torch.nn.ModuleDict({"table": table, "plain": torch.nn.Linear(2, 2)})
    objective["table"].learning_rate_factor = 10
    objective["again"] = table[1]
    rates = {
        parameter: group["lr"]
        for group in prepare.parameter_groups(objective, 0.1)
        for parameter in group["params"]
    }
    found = {name: rates[p] for name, p in objective.named_parameters()}
    expected = {"table.0.weight": 1.0, "table.1.weight": 0.05, "table.1.bias": 0.05}
    assert found == expected | {"plain.weight": 0.1, "plain.bias": 0.1}


class Drawn(nn.Module):
    """Views with noise of a source that has a state of its own, or of torch."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.numpy = source, np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        pair, self.calls = torch.stack([x, x], 1), self.calls + 1
        if self.source == "numpy":
            noise = torch.from_numpy(self.numpy.normal(size=pair.shape)).to(x)
        elif self.source == "generator":
            noise = torch.randn(pair.shape, generator=self.torch)
        else:
            noise = torch.randn(pair.shape)
        return pair + noise * (self.calls if self.source == "counter" else 1)


@pytest.mark.parametrize("source", ["numpy", "generator", "counter", "torch"])
def test_views_that_one_seed_does_not_repeat_are_named(source, caplog):
    views, x = Drawn(source), torch.randn(12, 3)
    torch.manual_seed(0)
    objective = limits.SimCLR(nn.Linear(3, 2))
    with caplog.at_level(logging.WARNING):
        fit(objective, x, views=views, epochs=1, batch_size=6)
    said = "others from the same seed" in caplog.text
    assert said == (source != "torch")
    assert views.calls == 3  # a first look and two steps: a copy was checked


def decayed(rate: float) -> Any:
    return lambda optimizer: ExponentialLR(optimizer, rate)


HORIZONS = {
    "as many steps as epochs": (lambda o: CosineAnnealingLR(o, 10), "T_max=40, the"),
    "steps of epochs": (
        lambda o: StepLR(o, 2),
        "a scheduler is stepped once per step, not per epoch",
    ),
    "gone after an epoch": (decayed(1e-2), "after epoch 1 of 10 the learning rate"),
    "to the end": (lambda o: CosineAnnealingLR(o, 40), None),
    "to zero": (lambda o: LinearLR(o, 1.0, 0.0, total_iters=40), None),
    "slowly": (decayed(0.9), None),
}


@pytest.mark.parametrize("kind", HORIZONS)
def test_a_schedule_that_counts_epochs_is_named_once(kind, caplog):
    scheduler, said = HORIZONS[kind]
    optimizer = partial(torch.optim.SGD, lr=0.01)
    options = {"optimizer": optimizer, "scheduler": scheduler, "batch_size": 6}
    fit(Autoencoder(), points(24), epochs=10, **options)
    assert (said or "") in caplog.text and len(caplog.records) == (said is not None)


def test_what_an_optimiser_leaves_out_is_named_unless_it_is_frozen(caplog):
    objective = Autoencoder()
    optimizer = Adam(objective.encoder.parameters())
    fit(objective, points(8), epochs=1, optimizer=optimizer)
    assert "leaves decoder.weight, decoder.bias as they are" in caplog.text
    caplog.clear()
    objective.decoder.requires_grad_(False)
    fit(objective, points(8), epochs=1, optimizer=optimizer)
    assert not caplog.text


@pytest.mark.parametrize("axis", [0, 1])
def test_loaded_views_stacked_along_the_first_axis_are_named(axis):
    def collate(rows: list[Tensor]) -> Batch:
        return Batch(torch.stack([torch.stack(rows)] * 2, axis))

    loader = DataLoader(points(10), 10, collate_fn=collate)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(Autoencoder(), loader, epochs=1)
    assert ["2 items with 10 views" in str(w.message) for w in said] == [True] * (
        axis == 0
    )
