"""A run that was killed goes on bit by bit as if it had not been."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.catalogue import EVENT, noisy
from killed import BATCHES, EPOCHS, fitted
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler

import probssl as ps
from probssl.train import graph
from probssl.train.checkpoint import read

SCRIPT = Path(__file__).parent / "killed.py"
STEPS = EPOCHS * BATCHES // 2
NEVER_THE_SAME = {"seconds"}


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graph, "inductor", graph.inductor)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def kill_at(step: int, folder: Path, mode: str) -> None:
    """Run the script, and end it with SIGKILL where it has made so many steps."""
    command = [sys.executable, str(SCRIPT), str(folder), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        reached = any(int(line) == step for line in run.stdout)
        run.kill()
    assert reached, f"the run ended before step {step}"
    assert run.returncode != 0, "the run was over before it was killed"


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All that is in a checkpoint, by name."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            if key not in NEVER_THE_SAME:
                yield from flat(part, f"{name}.{key}")
    else:
        yield name, value


def assert_same(found: Any, expected: Any) -> None:
    found, expected = dict(flat(found)), dict(flat(expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def check(folder: Path, mode: str, kills: list[int]) -> None:
    """Kill a run at a given place, resume it, and compare with one that ran through."""
    for step in kills:
        kill_at(step, folder / "killed", mode)
    objective, history = fitted(folder / "killed", mode)
    peaceful, expected = fitted(folder / "peaceful", mode)
    assert len(history) == EPOCHS
    assert_same(objective.state_dict(), peaceful.state_dict())
    assert_same(history.rows, expected.rows)
    for name in ("last", "best"):
        files = (folder / run / f"{name}.safetensors" for run in ("killed", "peaceful"))
        assert_same(*map(read, files))


@pytest.mark.parametrize("mode", ["eager", "traced"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(mode, tmp_path):
    check(tmp_path, mode, [random.randint(1, STEPS - 1)])


@pytest.mark.slow  # compiles five times
def test_a_compiled_run_survives_three_kills(tmp_path):
    check(tmp_path, "compiled", sorted(random.sample(range(1, STEPS), 3)))


class Shuffled(Sampler):
    """A sampler with a random state of its own, which no checkpoint has."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.source, random.Random):
            return iter(self.source.sample(range(24), 24))
        if isinstance(self.source, np.random.Generator):
            return iter(self.source.permutation(24).tolist())
        self.source += 1
        drawn = torch.Generator().manual_seed(self.source)
        return iter(torch.randperm(24, generator=drawn).tolist())


class Drawn(Dataset):
    def __init__(self, source: torch.Generator | None) -> None:
        self.items, self.source = torch.randn(24, EVENT), source

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> Tensor:
        return self.items[i] + 0.1 * torch.randn(EVENT, generator=self.source)


class Batched(Shuffled):
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        yield from torch.randperm(24, generator=self.source).view(3, 8).tolist()


GENERATOR = torch.Generator().manual_seed(0)
STREAMS = {
    "sampler.source": {"sampler": Shuffled(random.Random(0))},
    "sampler.source ": {"sampler": Shuffled(np.random.default_rng(0))},
    "sampler.source  ": {"sampler": Shuffled(0)},
    "sampler.source   ": {"batch_sampler": Batched(GENERATOR)},
    "dataset.source": {"dataset": Drawn(GENERATOR)},
    "persistent_workers=True": {"num_workers": 1, "persistent_workers": True},
    "": {"shuffle": True},
    " ": {"generator": torch.Generator()},
    "  ": {"sampler": RandomSampler(range(24), generator=torch.Generator())},
}


@pytest.mark.parametrize("name", STREAMS)
def test_random_numbers_of_loaders_that_no_checkpoint_has_are_named(
    name, tmp_path, caplog
):
    options = {"dataset": Drawn(None)} | STREAMS[name]
    size = {} if "batch_sampler" in options else {"batch_size": 8}
    loader = DataLoader(**options, **size)
    given = {"views": noisy, "epochs": 1, "progress": False, "checkpoint": tmp_path}
    with caplog.at_level("WARNING"):
        ps.fit(ps.limits.SimCLR(ps.nn.MLPEncoder((EVENT,), 2)), loader, **given)
    assert ("in no checkpoint" in caplog.text) is bool(name.strip())
    assert name.strip() in caplog.text
