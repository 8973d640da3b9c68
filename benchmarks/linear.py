"""Time and memory of fitting the linear estimators: views, moments, and solution.

MNIST, 60,000 images of 784 pixels, four crops and flips of each. The time of one fit is
split into its parts; beside it is the least time that the matrix products of the
moments could take, at the measured ceiling for float64. Memory is the peak of a fit
beyond the data. `partial_fit` in unequal parts is compared with the moments of the same
views, all in memory at once: the largest difference over the largest entry. Writes
benchmarks/results/linear.json.

Takes about two minutes on two CPU cores, and 5 GB of memory for all views at once. The
environment variable PROBSSL_DATA names the folder that holds MNIST.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    digits,
    matrix_ceiling,
    options,
    peak_memory,
    report,
    seconds_of,
    table,
)
from numpy import ndarray as Array
from torch import Tensor

import probssl as ps
from probssl.linear import Flattened, JointEmbeddingSSL, ReconstructionSSL
from probssl.linear.moments import of_views
from probssl.linear.solutions import reconstruction

VIEWS, COMPONENTS = 4, 32
PARTS = (10_000, 30_000, 1, 19_999)  # of partial_fit
RESULTS = Path(__file__).parent / "results" / "linear.json"


class Drawn:
    """Crops and flips of images, timed; on request it keeps the views."""

    def __init__(self, shape: Sequence[int], keep: bool = False) -> None:
        self.sampler = Flattened(ps.views.simvae_mnist(views=VIEWS), shape)
        self.kept: list[Array] = []
        self.seconds, self.keep = 0.0, keep

    def __call__(self, x: Array) -> Array:
        began = time.perf_counter()
        views = self.sampler(x)
        self.seconds += time.perf_counter() - began
        if self.keep:
            self.kept.append(views.astype(np.float32))
        return views


def fitted(x: Array, shape: Sequence[int]) -> dict[str, float]:
    """Seconds of a fit and of its parts."""
    views = Drawn(shape)
    model = JointEmbeddingSSL(COMPONENTS, views=views)
    seen = seconds_of(lambda: model.partial_fit(x))
    solve = seconds_of(lambda: model.components_)  # solved on first use
    other = seconds_of(lambda: reconstruction(model.moments_, COMPONENTS))
    return {
        "draw views": views.seconds,
        "moments": seen - views.seconds,
        "solve, joint embedding": solve,
        "solve, reconstruction": other,
        "whole fit": seen + solve,
    }


def products(n: int, dim: int) -> float:
    """GFLOP of the moments: three symmetric products, half each, and a full one."""
    return 1e-9 * n * dim**2 * (VIEWS + 1 + 1 + 2)


def apart(x: Array, shape: Sequence[int], sizes: Sequence[int]) -> float:
    """The relative difference between moments of parts and of all views at once."""
    views = Drawn(shape, keep=True)
    model, ends = ReconstructionSSL(COMPONENTS, views=views), np.cumsum(sizes)
    for size, end in zip(sizes, ends, strict=True):
        model.partial_fit(x[end - size : end])
    whole = of_views(x[: ends[-1]], np.concatenate(views.kept).astype(float)[:, None])
    pairs = zip(model.moments_, whole, strict=True)
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in pairs
        if a is not None  # sums of swaps, with several views in a call
    )


def main(
    images: Tensor | None = None,
    sizes: Sequence[int] = PARTS,
    results: Path = RESULTS,
) -> dict[str, Any]:
    """Return seconds, megabytes, and the difference of `partial_fit`.

    Arguments:
        images: Images as bytes; None loads MNIST.
        sizes: The rows of the parts of `partial_fit`.
    """
    torch.manual_seed(0)
    images = ps.data.load("mnist").train.images if images is None else images
    shape, x = images.shape[1:], images.flatten(1).double().numpy() / 255
    fitted(x[: 2 * COMPONENTS], shape)  # warm-up
    seconds = fitted(x, shape)
    ceiling = matrix_ceiling(torch.float64)
    seconds["moments, least"] = products(*x.shape) / ceiling
    model = JointEmbeddingSSL(COMPONENTS, views=Drawn(shape))
    figures = {
        "seconds": {name: digits(each) for name, each in seconds.items()},
        "megabytes": digits(peak_memory(lambda: model.fit(x))),
        "parts against memory": digits(apart(x, shape, sizes), 2),
    }
    settings = {"images": x.shape, "views": VIEWS, "parts": sizes}
    settings |= {"ceiling, GFLOP/s": digits(ceiling), "components": COMPONENTS}
    report("benchmarks/linear.py", results, figures, **settings)
    table({name: {"s": each} for name, each in figures["seconds"].items()})
    print(f"{figures['megabytes']} MB beyond the data")
    print(f"parts differ from memory by {figures['parts against memory']}")
    return figures


if __name__ == "__main__":
    main(results=options(__doc__, device=False).parse_args().out / RESULTS.name)
