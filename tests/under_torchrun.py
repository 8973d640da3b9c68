"""What test_torchrun.py runs under torchrun, and in one process to compare with.

``torchrun --nproc-per-node 2 tests/under_torchrun.py FOLDER`` writes what each process
finds to FOLDER/rank.pt, and the threads it ends with to FOLDER/rank.threads.
"""

import atexit
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from helpers.catalogue import noisy
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

import probssl as ps
from probssl import limits
from probssl.cli import main as command
from probssl.runtime import distributed as processes
from probssl.terms import Batch, Terms

ITEMS, DIM, EPOCHS, BEST = 60, 6, 8, 3


class Autoencoder(nn.Module):
    """Couples items, without noise; with an idle part, and moments of its own items."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(DIM, 2), nn.Linear(2, DIM)
        self.idle = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("moments", torch.zeros(DIM))

    def forward(self, batch: Batch) -> Terms:
        x = batch.views
        if self.training:
            self.calls += 1
            self.moments.lerp_(x.mean((0, 1)), 0.1)
        z = self.encoder(x)
        error = (self.decoder(z) - x).square().sum((1, 2)).mean()
        entropy = processes.gather(z).flatten(0, 1).mT.cov().logdet()
        weight = self.encoder.weight.square().sum()
        return Terms(reconstruction=-error, entropy=entropy, penalty=-0.1 * weight)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    code = torch.randn(2 * ITEMS, 2, generator=generator)
    x = code @ torch.randn(2, DIM, generator=generator)
    x = x + 0.3 * torch.randn(2 * ITEMS, DIM, generator=generator)
    return x[:ITEMS], x[ITEMS:]


def without_noise(folder: Path | None = None, **options: Any) -> dict[str, Any]:
    """A fit with all that has a part in its steps, and ends it early."""
    # The other processes are to have the first one's parameters, and its order.
    torch.manual_seed(7 + processes.rank())
    objective, (train, valid) = Autoencoder(), data()
    train = train[: options.pop("items", ITEMS)]

    def score(epoch: int, row: dict[str, float]) -> None:
        row["score"] = -abs(epoch - BEST) - processes.rank()

    given: dict[str, Any] = {
        "valid": valid,
        "epochs": EPOCHS,
        "batch_size": 8,
        "accumulate": 2,
        "clip": 0.5,
        "learning_rate": 0.05,
        "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, 40),
        "monitor": "score",
        "patience": 2,
        "on_epoch": score,
        "checkpoint": folder,
        "progress": False,
    }
    history = ps.fit(objective, train, **given | options)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    return {"rows": rows, "state": objective.state_dict()}


def ended_by_the_last(name: str) -> list[dict[str, float]]:
    """A fit that one of the processes ends, after three steps or epochs."""

    def stop(count: int, found: object) -> bool:
        return count == 3 and processes.rank() == processes.world_size() - 1

    options: dict[str, Callable] = {"on_epoch": lambda epoch, row: False, name: stop}
    return without_noise(monitor="value", patience=None, **options)["rows"]


ODD = 33  # items, which two processes cannot share


def odd() -> dict[str, Any]:
    """A fit of fewer items than a batch."""
    return without_noise(items=ODD, batch_size=64, accumulate=1)


class Stream(IterableDataset):
    """Items one after another."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def unequal() -> list[str]:
    """What fits say where each process has other numbers of items; alone nothing."""
    train, _ = data()
    own = train[: 40 + 9 * processes.rank()]
    shared = DistributedSampler(own) if processes.world_size() > 1 else None
    given = own, DataLoader(own, 4, sampler=shared), DataLoader(Stream(own), 4)
    said = []
    for each in given:
        try:
            ps.fit(Autoencoder(), each, epochs=1, progress=False)
        except ValueError as error:
            said.append(str(error))
    return said


def with_noise(folder: Path | None = None, **options: Any) -> dict[str, Tensor]:
    """A fit with noise of items and views, and a random scale."""
    torch.manual_seed(7)
    joint = ps.Joint(
        ps.priors.Gaussian(2, dist.LogNormal(math.log(0.5), 0.3)),
        ps.likelihoods.Gaussian(0.5),
        ps.nn.MLPEncoder((DIM,), 2, hidden=(8,)),
        ps.nn.MLPDecoder(2, (DIM,), hidden=(8,)),
    )
    objective, (train, _) = limits.SimVAE(joint), data()
    given: dict[str, Any] = {"epochs": 4, "batch_size": 10, "views": noisy}
    given |= {"checkpoint": folder, "progress": False} | options
    ps.fit(objective, train, **given)
    return objective.state_dict() | {"noise": torch.get_rng_state()}


def everything(folder: Path) -> dict[str, Any]:
    """What several processes, or one, make of it all."""
    without_noise(folder / "halved", epochs=2)
    with_noise(folder / "noise", epochs=2)
    return {
        "fit": without_noise(folder / "fit"),
        "odd": odd(),
        "unequal": unequal(),
        "on_step": ended_by_the_last("on_step"),
        "on_epoch": ended_by_the_last("on_epoch"),
        "noise": with_noise(),
        "resumed": with_noise(folder / "noise", resume=True),
        "saved": str(ps.save(nn.Identity(), folder / "saved")),
    }


def main(folder: Path, fails: str = "") -> None:
    torch.set_num_threads(1)
    if fails:
        fail(fails)
    torch.set_default_dtype(torch.float64)
    rank = os.environ["RANK"]
    # Comes last: what is registered first is called last.
    atexit.register(lambda: (folder / f"{rank}.threads").write_text(threads()))
    processes.start()
    found = everything(folder)
    found["warns"] = logging.getLogger("probssl.train").isEnabledFor(logging.WARNING)
    torch.save(found, folder / f"{rank}.pt")
    torch.set_default_dtype(torch.float32)
    options = ["--items", "100", "--epochs", "1", "--device", "cpu"]
    assert command(["fit", "SimCLR", "--out", str(folder / "run"), *options]) == 0


def threads() -> str:
    """The names of this process's threads, a line each, where Linux tells them."""
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def fail(how: str) -> None:
    """A fit without end, which one process leaves by an error, or all are made to."""

    def step(count: int, terms: Terms) -> None:
        if count == 5:
            print("STARTED", flush=True)
        if how == "error" and count == 10 and processes.rank() == 1:
            raise RuntimeError("one process fails")
        time.sleep(0.01)

    without_noise(epochs=100_000, monitor="value", patience=None, on_step=step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
