"""Whole epochs of SimVAE on MNIST: a hand-written training loop, and `fit`.

The loop is eager PyTorch: a DataLoader draws every view of every image with PIL, as
torchvision's transforms do; its optimiser is torch's default Adam, or fused Adam. `fit`
draws the same kinds of views (crops, rotations, flips) for whole batches. All have the
same architecture, and 64 images of two views per step. After every epoch of the
compiled fit each other subject runs one; the first compiled epoch, which includes
compilation, is reported apart. An image counts once, not once for each view.

The loader has the fastest number of workers: none, or one for each core. Writes
images per second and ratios to benchmarks/results/epochs.json. Needs MNIST: the
environment variable PROBSSL_DATA names the folder that holds it.

Takes about ten minutes on two CPU cores.
"""

import math
import os
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from handwritten import SimVAE
from measure import (
    Timing,
    device_of,
    digits,
    interleaved,
    options,
    report,
    seconds_of,
    table,
)
from PIL import Image
from subjects import HIDDEN, Steps, simvae
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import probssl as ps
from probssl.bars import at_terminal

EPOCHS, BATCH, TRIAL, RATE = 2, 64, 3_200, 1e-3
CROP, RATIO, TURN, FLIP = (0.4, 1.0), (0.75, 1.3), 15.0, 0.5
RESULTS = Path(__file__).parent / "results" / "epochs.json"


class Drawn(Dataset):
    """Two views of every image, drawn one by one with PIL; 1 where there is ink."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.squeeze(1).numpy()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        image = Image.fromarray(self.images[row])
        views = np.stack([np.array(view(image)) for _ in range(2)])
        return torch.from_numpy(views).flatten(1).gt(127).float()


def view(image: Image.Image) -> Image.Image:
    """A crop resized to full size, rotated, and perhaps flipped."""
    box = drawn_box(*image.size)
    image = image.resize(image.size, Image.Resampling.BILINEAR, box)
    image = image.rotate(random.uniform(-TURN, TURN), Image.Resampling.BILINEAR)
    if random.random() < FLIP:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def drawn_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop; the whole image if ten tries fail."""
    low, high = map(math.log, RATIO)
    for _ in range(10):
        area = width * height * random.uniform(*CROP)
        ratio = math.exp(random.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide <= width and tall <= height:
            left = random.randint(0, width - wide)
            top = random.randint(0, height - tall)
            return left, top, left + wide, top + tall
    return 0, 0, width, height


def batched() -> ps.views.Augment:
    """The same kinds of views for whole batches, on the device."""
    affine = ps.views.Affine(crop=CROP, ratio=RATIO, rotate=TURN, vertical_flip=FLIP)
    return ps.views.Augment(affine, levels=1)


def loader(images: Tensor, workers: int) -> DataLoader:
    """The views in random order, batch by batch."""
    return DataLoader(
        Drawn(images), BATCH, shuffle=True, drop_last=True, num_workers=workers
    )


def loop(
    model: SimVAE, optimizer: Optimizer, batches: Iterable[Tensor], device: torch.device
) -> float:
    """One epoch of a hand-written loop; returns the sum of the losses."""
    total = torch.zeros((), device=device)
    for x in tqdm(batches, "hand-written", leave=False, **at_terminal()):
        optimizer.zero_grad()
        loss = model(x.to(device))
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return total.item()


def loops(
    hidden: tuple[int, ...], batches: DataLoader, device: torch.device
) -> dict[str, Callable[[], float]]:
    """The loop with each optimiser, by name."""
    found: dict[str, Callable[[], float]] = {}
    for name, fused in {"default Adam": None, "fused Adam": True}.items():
        model = SimVAE(28 * 28, hidden, 10, 0.15).to(device)
        optimizer = Adam(model.parameters(), RATE, fused=fused)
        run = partial(loop, model, optimizer, batches, device)
        found[f"hand-written, {name}"] = run
    return found


def rate(timing: Timing, images: int) -> dict[str, Any]:
    """Images per second, the median and the quartiles of the blocks."""
    low, high = timing.quartiles
    return {
        "images/s": digits(images / timing.median),
        "quartiles": [digits(images / high), digits(images / low)],
    }


def best_loader(
    images: Tensor, hidden: tuple[int, ...], workers: Sequence[int], place: torch.device
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The fastest number of workers; the rates of the loop and of the loader alone."""
    run = {n: loops(hidden, loader(images, n), place) for n in workers}
    subjects: dict[str, Callable[[], object]] = {}
    for n in workers:
        subjects[f"loop, {n} workers"] = run[n]["hand-written, default Adam"]
        subjects[f"loader alone, {n} workers"] = partial(list, loader(images, n))
    timed = interleaved(subjects, 2, device=place)
    best = min(workers, key=lambda n: timed[f"loop, {n} workers"].median)
    return best, {name: rate(timing, len(images)) for name, timing in timed.items()}


def views_alone(images: Tensor, place: torch.device) -> dict[str, Any]:
    """The rate at which `fit` makes batches with views."""
    source = Steps(simvae(hidden=(1,)), images, batched(), BATCH, False, place).source

    def sweep() -> None:
        for load in source.epoch():
            source.batch(load)

    timed = interleaved({"views": sweep}, 3, device=place)["views"]
    return rate(timed, len(images))


def in_turns(
    rivals: Mapping[str, Callable[[], object]],
    images: Tensor,
    hidden: tuple[int, ...],
    epochs: int,
    compiled: bool | None,
    place: torch.device,
) -> dict[str, list[float]]:
    """Seconds of the epochs of all, interleaved; the compiled ones with the first."""
    fit = partial(
        ps.fit,
        data=ps.data.Split(images),
        views=batched(),
        batch_size=BATCH,
        device=place,
    )
    fit = partial(fit, learning_rate=RATE, progress=sys.stderr.isatty())
    ours, eager = simvae(hidden=hidden), simvae(hidden=hidden)
    plain = partial(fit, eager, epochs=1, compile=None)
    others = dict(rivals) | {"probssl, eager": plain}
    timed: dict[str, list[float]] = defaultdict(list)

    def turn(epoch: int, row: dict[str, float]) -> None:
        timed["probssl, compiled"].append(row["seconds"])
        for name, run in others.items() if epoch > 1 else ():
            timed[name].append(seconds_of(run, device=place))

    fit(ours, epochs=1 + epochs, compile=compiled, on_epoch=turn)
    return timed


def main(
    images: Tensor | None = None,
    epochs: int = EPOCHS,
    trial: int = TRIAL,
    hidden: tuple[int, ...] = HIDDEN,
    workers: Sequence[int] = (0, os.cpu_count() or 1),
    compiled: bool | None = True,
    device: str = "auto",
    results: Path = RESULTS,
) -> dict[str, dict[str, Any]]:
    """Return images per second, and ratios to the loop with torch's default Adam.

    Arguments:
        images: Binary images as bytes; None loads MNIST.
        epochs: The number of measured epochs.
        trial: The number of images for the choice of workers and for views alone.
        workers: The numbers of workers to choose from.
        compiled: The argument `compile` of the compiled fit.
    """
    place = device_of(device)
    torch.manual_seed(0)
    images = ps.data.load("mnist").train.images if images is None else images
    best, tried = best_loader(images[:trial], hidden, workers, place)
    rivals = loops(hidden, loader(images, best), place)
    timed = in_turns(rivals, images, hidden, epochs, compiled, place)
    first, *rest = timed.pop("probssl, compiled")
    blocks = {name: Timing(tuple(each)) for name, each in timed.items()}
    blocks["probssl, compiled"] = Timing(tuple(rest))
    reference = blocks["hand-written, default Adam"]
    used = len(images) // BATCH * BATCH
    figures = {
        name: rate(timing, used) | {"ratio": digits(reference.ratio(timing))}
        for name, timing in blocks.items()
    }
    figures |= tried | {"views alone": views_alone(images[:trial], place)}
    extra = first - blocks["probssl, compiled"].median
    figures["first epoch, compiled"] = {"seconds more than the others": digits(extra)}
    settings = {"images": len(images), "epochs": epochs, "workers": best}
    report("benchmarks/epochs.py", results, figures, device=place, **settings)
    table(figures)
    return figures


if __name__ == "__main__":
    arguments = options(__doc__).parse_args()
    main(device=arguments.device, results=arguments.out / RESULTS.name)
