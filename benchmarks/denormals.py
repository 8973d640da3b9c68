"""The cost of denormal numbers on a CPU: steps early in a fit, and later.

Where images of MNIST are always black, gradients vanish during the fit, and Adam keeps
their squares: denormal numbers, below 1e-38, with which a CPU is slow. `fit` flushes
them to zero. SimVAE is fitted with and without that; milliseconds are medians over
parts of the fit. Writes them to benchmarks/results/denormals.json. Needs MNIST: the
environment variable PROBSSL_DATA names the folder that holds it.

Takes three minutes on two CPU cores.
"""

import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from measure import digits, options, report, table
from subjects import HIDDEN, simvae
from torch import Tensor

import probssl as ps

STEPS, PARTS, BATCH = 1_500, 5, 64
RESULTS = Path(__file__).parent / "results" / "denormals.json"


def timed(images: Tensor, hidden: tuple[int, ...], steps: int) -> list[float]:
    """Seconds of each step of an eager fit, views included."""
    seconds, before = [], time.perf_counter()

    def note(count: int, terms: ps.Terms) -> bool:
        nonlocal before
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
        return count == steps

    torch.manual_seed(0)
    ps.fit(
        simvae(hidden=hidden),
        ps.data.Split(images),
        views=ps.views.simvae_mnist(),
        epochs=1 + steps * BATCH // len(images),
        batch_size=BATCH,
        on_step=note,
        compile=None,
        device="cpu",
        progress=False,
    )
    return seconds


def main(
    images: Tensor | None = None,
    steps: int = STEPS,
    hidden: tuple[int, ...] = HIDDEN,
    results: Path = RESULTS,
) -> dict[str, dict[str, float]]:
    """Return milliseconds per step in each part of the fit.

    Arguments:
        images: Binary images as bytes; None loads MNIST.
    """
    images = ps.data.load("mnist").train.images if images is None else images
    kept = mock.patch("probssl.train.epoch.flushed", lambda _: nullcontext())
    contexts: dict[str, Any] = {"flushed to zero": nullcontext(), "kept": kept}
    figures, size = {}, steps // PARTS
    for name, context in contexts.items():
        with context:
            seconds = timed(images, hidden, steps)
        parts = [seconds[i * size : (i + 1) * size] for i in range(PARTS)]
        figures[name] = {
            f"to step {(i + 1) * size}": digits(1e3 * median(part))
            for i, part in enumerate(parts)
        }
    sizes = {"batch": BATCH, "steps": steps, "hidden": hidden}
    report("benchmarks/denormals.py", results, figures, **sizes)
    table(figures, "ms per step")
    return figures


if __name__ == "__main__":
    main(results=options(__doc__, device=False).parse_args().out / RESULTS.name)
