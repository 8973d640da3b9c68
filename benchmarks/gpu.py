"""Long fits, ResNet-18 in bfloat16 and large contrastive batches on a GPU.

Four figures: the seconds of a whole fit of SimVAE to MNIST, 400 epochs of 64 images of
two views, from the images in memory to the representations of the test images; images
per second of SimCLR with ResNet-18 on CIFAR-10 in bfloat16, two views counting as one
image; the memory of the contrastive term, value and gradient, for 65,536 items of two
views and 128 dimensions; and the number of synchronisations with the host in 20 steps.
On a CPU these are the reads of a number, each of which would synchronise with a GPU.

On a machine without CUDA all sizes are small, in float32 and not compiled, which only
shows that the script runs. Writes benchmarks/results/gpu.json. Needs MNIST and
CIFAR-10: the environment variable PROBSSL_DATA names the folder that holds them.

Takes about six minutes on an H200, and one on two CPU cores.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch
from measure import device_of, digits, options, report, seconds_of, table
from normaliser import DIM, FORMS, PRIORS, inputs, megabytes, step
from subjects import HIDDEN, Steps, simclr_resnet, simvae
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import probssl as ps

BATCH = 64
RESULTS = Path(__file__).parent / "results" / "gpu.json"
WARM_UP = 5  # steps: compiled, and recorded on a GPU
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Sizes(NamedTuple):
    """Sizes for MNIST, for CIFAR-10, and for the contrastive term."""

    epochs: int
    images: int
    pictures: int
    batch: int
    items: int
    steps: int = 20
    hidden: tuple[int, ...] = HIDDEN


FULL = Sizes(400, 60_000, 50_000, 1_024, 65_536)
SMALL = Sizes(1, 2_000, 64, 8, 1_024)


def whole_fit(train: Tensor, test: Tensor, sizes: Sizes, place: torch.device) -> dict:
    """Seconds of a whole fit of SimVAE, and of its start."""
    objective, started = simvae(hidden=sizes.hidden), []

    def run() -> None:
        history = ps.fit(
            objective,
            ps.data.Split(train[: sizes.images]),
            views=ps.views.simvae_mnist(),
            epochs=sizes.epochs,
            batch_size=BATCH,
            compile=place.type == "cuda",
            device=place,
            progress=False,
        )
        ps.embed(objective, ps.data.Split(test))
        started.append(history["seconds"][0] - median(history["seconds"]))

    seconds = seconds_of(run, device=place)
    return {
        "seconds": digits(seconds),
        "of these more in the first epoch": digits(started[0]),
        "epochs": sizes.epochs,
    }


def pictures(images: Tensor, sizes: Sizes, place: torch.device) -> dict[str, Any]:
    """Images per second of SimCLR, after the first epoch."""
    cuda = place.type == "cuda"
    history = ps.fit(
        simclr_resnet().to(memory_format=torch.channels_last),
        ps.data.Split(images[: sizes.pictures]),
        views=ps.views.simclr(),
        epochs=4 if cuda else 2,
        batch_size=sizes.batch,
        compile=cuda,
        precision=torch.bfloat16 if cuda else None,
        device=place,
        progress=False,
    )
    used = sizes.pictures // sizes.batch * sizes.batch
    rate = digits(used / median(history["seconds"][1:]))
    return {"pictures/s": rate, "batch": sizes.batch}


def contrastive(sizes: Sizes, place: torch.device) -> dict[str, Any]:
    """The memory and the time of the contrastive term and its gradient."""
    prior = PRIORS["von Mises-Fisher"]().to(place)
    z = inputs(sizes.items, place).requires_grad_()
    found = {"MB": megabytes("blocks", sizes.items, place)}
    once = partial(step, prior, z, FORMS["blocks"])
    found["seconds"] = digits(seconds_of(once, device=place))
    return found | {"items": sizes.items, "dim": DIM}


class Reads(TorchDispatchMode):
    """Counts the reads of a number from a tensor, which synchronise with a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += func in READS
        return func(*args, **kwargs or {})


def waits(call: Callable[[], object], steps: int, place: torch.device) -> int:
    """Synchronisations of host and GPU in some steps; on a CPU those that would be."""
    if place.type != "cuda":
        # On a GPU views look at the range of their first batch only, and the guard of
        # steps reads nothing.
        looks = mock.patch("probssl.views.augment.check_values")
        guard = mock.patch("probssl.train.finite.Guard.look")
        with looks, guard, Reads() as reads:
            for _ in range(steps):
                call()
        return reads.count
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(steps):
            call()
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in said)


def all_waits(
    mnist: Tensor, cifar: Tensor, sizes: Sizes, place: torch.device
) -> dict[str, int]:
    """Synchronisations of SimVAE and SimCLR, with compiled and recorded steps."""
    subjects: dict[str, tuple[nn.Module, Tensor, nn.Module, int]] = {
        "SimVAE": (simvae(hidden=sizes.hidden), mnist, ps.views.simvae_mnist(), BATCH),
        "SimCLR": (simclr_resnet(), cifar, ps.views.simclr(), sizes.batch),
    }
    compiled, found = place.type == "cuda", {}
    for name, (objective, images, views, size) in subjects.items():
        # One epoch: its order is copied to the device once.
        rows = torch.arange((WARM_UP + 2 * sizes.steps) * size) % len(images)
        call = Steps(objective, images[rows], views, size, compiled, place)
        for _ in range(WARM_UP):
            call()
        found[name] = waits(call, sizes.steps, place)
    return found


def main(
    sizes: Sizes | None = None,
    mnist: ps.data.Dataset | None = None,
    cifar: ps.data.Dataset | None = None,
    device: str = "auto",
    results: Path = RESULTS,
) -> dict[str, dict[str, Any]]:
    """Return the figures.

    Arguments:
        sizes: None means `FULL` on a GPU, `SMALL` on a CPU.
    """
    place = device_of(device)
    if sizes is None:
        sizes = FULL if place.type == "cuda" else SMALL
    torch.manual_seed(0)
    mnist = ps.data.load("mnist") if mnist is None else mnist
    cifar = ps.data.load("cifar10") if cifar is None else cifar
    train, coloured = mnist.train.images, cifar.train.images
    figures = {
        "SimVAE on MNIST": whole_fit(train, mnist.test.images, sizes, place),
        "SimCLR on CIFAR-10": pictures(coloured, sizes, place),
        "contrastive term": contrastive(sizes, place),
        f"waits in {sizes.steps} steps": all_waits(train, coloured, sizes, place),
    }
    report("benchmarks/gpu.py", results, figures, device=place, **sizes._asdict())
    for name, found in figures.items():
        table({name: found})
    return figures


if __name__ == "__main__":
    arguments = options(__doc__).parse_args()
    main(device=arguments.device, results=arguments.out / RESULTS.name)
