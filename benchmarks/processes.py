"""Weak scaling of `fit`: W processes (ranks), each with the items of a single one.

Epochs run on rank 0 alone, the others idle; on all ranks independently, which measures
what sharing the machine costs; and data-parallel on all ranks, with gradients averaged
by all-reduce. They are interleaved in one run. The efficiency is the data-parallel rate
divided by W times the rate of rank 0 alone. The all-reduce of a gradient is timed by
itself as well.

On a CPU each process has one thread, and steps are not compiled. With CUDA each has a
device, steps are compiled, and SimCLR is the one for CIFAR-10 with ResNet-18. Writes
items per second and the efficiency to benchmarks/results/processes.json.

Takes three minutes on two CPU cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from measure import Timing, device_of, digits, interleaved, options, report, table
from subjects import CIFAR, HIDDEN, MNIST, ink, simclr, simclr_resnet, simvae
from torch import nn

import probssl as ps
from probssl.runtime import distributed as processes

BLOCKS, STEPS, BATCH = 3, 40, 64
RESULTS = Path(__file__).parent / "results" / "processes.json"

Figures = dict[str, dict[str, Any]]
Case = tuple[nn.Module, nn.Module, tuple[int, ...]]  # objective, views, shape


def cases(cuda: bool, hidden: tuple[int, ...]) -> dict[str, Case]:
    """The fitted objectives by name, with views and shapes."""
    mnist = ps.views.simvae_mnist()
    found: dict[str, Case] = {"SimVAE, MLP": (simvae(hidden=hidden), mnist, MNIST)}
    if cuda:
        found["SimCLR, ResNet-18"] = simclr_resnet(), ps.views.simclr(), CIFAR
    else:
        found["SimCLR, MLP"] = simclr(hidden), mnist, MNIST
    return found


def seconds(case: Case, steps: int, device: torch.device) -> float:
    """Seconds of an epoch of so many steps."""
    objective, views, shape = case
    batch_size = BATCH * processes.world_size()
    history = ps.fit(
        objective,
        ps.data.Split(ink(batch_size * steps, shape)),
        views=views,
        epochs=2,  # the first one is a warm-up
        batch_size=batch_size,
        compile=device.type == "cuda",
        device=device,
        progress=False,
    )
    return history["seconds"][-1]


def in_turns(
    case: Case, steps: int, blocks: int, device: torch.device
) -> dict[str, Timing]:
    """Seconds of epochs on rank 0 alone, on all independently, and data-parallel."""
    timed: dict[str, list[float]] = {"alone": [], "side by side": [], "together": []}
    run = partial(seconds, case, steps, device)
    for _ in range(blocks):
        distributed.barrier()
        with processes.single_process():
            if distributed.get_rank() == 0:
                timed["alone"].append(run())
        distributed.barrier()
        with processes.single_process():
            timed["side by side"].append(run())
        distributed.barrier()
        timed["together"].append(run())
    return {name: Timing(tuple(each)) for name, each in timed.items() if each}


def measured(
    hidden: tuple[int, ...], steps: int, blocks: int, device: torch.device
) -> Figures:
    """The figures of all cases on rank 0; empty on the others."""
    torch.manual_seed(0)
    figures: Figures = {}
    for name, case in cases(device.type == "cuda", hidden).items():
        timed = in_turns(case, steps, blocks, device)
        gradient = [torch.zeros_like(p) for p in case[0].parameters()]
        average = partial(processes.average, gradient)
        spent = interleaved({"average": average}, 20, device=device)["average"]
        if not processes.is_main():
            continue
        one, many, items = timed["alone"], timed["together"], BATCH * steps
        figures[name] = {
            "items/s of one": digits(items / one.median),
            "items/s of all": digits(processes.world_size() * items / many.median),
            "efficiency": digits(one.ratio(many)),
            "side by side": digits(one.ratio(timed["side by side"])),
            "average, ms": digits(1e3 * spent.median),
            "its share of a step": digits(spent.median * steps / many.median),
        }
    return figures


def launched(world: int, *sizes: Any) -> Figures:
    """The figures of so many new processes, launched by torchrun."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        script = [f"--nproc-per-node={world}", __file__, "--worker", str(path)]
        command = [*launcher, *script, json.dumps(sizes)]
        subprocess.run(command, env=environment, check=True)
        return json.loads(path.read_text())


def work(path: Path, hidden: list[int], steps: int, blocks: int, device: str) -> None:
    """The work of each rank; rank 0 writes the figures."""
    place = torch.device(device)
    processes.start()
    if place.type == "cuda":
        place = torch.device("cuda", torch.cuda.current_device())
    figures = measured(tuple(hidden), steps, blocks, place)
    if processes.is_main():
        path.write_text(json.dumps(figures))


def main(
    world: int | None = None,
    hidden: tuple[int, ...] = HIDDEN,
    steps: int = STEPS,
    blocks: int = BLOCKS,
    device: str = "auto",
    results: Path = RESULTS,
    run: Callable[..., Figures] = launched,
) -> Figures:
    """Return rates, the efficiency and the share of the all-reduce, for each case.

    Arguments:
        world: The world size; None is the number of CUDA devices, or 2 without CUDA.
        steps: The steps of an epoch.
        run: Launches the processes and returns their figures.

    Raises:
        ValueError: If there are fewer than two processes.
    """
    place = device_of(device)
    if world is None:
        world = torch.cuda.device_count() if place.type == "cuda" else 2
    if world < 2:
        raise ValueError(
            f"expected at least 2 processes, got {world}; on a machine with one CUDA "
            "device pass --device cpu"
        )
    figures = run(world, hidden, steps, blocks, place.type)
    sizes = {"processes": world, "items_of_each": BATCH, "steps": steps}
    sizes |= {"blocks": blocks}
    report("benchmarks/processes.py", results, figures, device=place, **sizes)
    table(figures, f"{world} processes")
    return figures


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        path, sizes = arguments.worker
        work(Path(path), *json.loads(sizes))
    else:
        path = arguments.out / RESULTS.name
        main(arguments.processes, device=arguments.device, results=path)
