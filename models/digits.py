"""All methods and three baselines on scikit-learn's digits, five seeds.

SimVAE is the distribution as it stands, on the plane or the sphere. The VAE drops the
content, autoencoders drop the density of z, and all others drop the decoder and
estimate the entropy of z instead. Images, data augmentation (small rotations, scalings
and shifts) and the 10 dimensions of z are the same for all.

Prints the means and standard deviations that stand in README.md and docs/results.md,
and writes them, with hardware and versions, to benchmarks/results/digits.json. The gain
of the few-label probe over PCA has a standard error over seeds: in each seed all
methods get the same labels.

Takes about a quarter of an hour for each seed on one CPU core; seeds run in parallel
processes.
"""

import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import probssl as ps
from probssl import recipes

METHODS = tuple(recipes.METHODS)
SEEDS, EPOCHS, DIM = 5, 150, 10
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "digits.json"

Figures = dict[str, dict[str, float]]


def one_seed(seed: int, epochs: int, methods: tuple[str, ...]) -> Figures:
    """Fit every method with this seed and measure it."""
    digits = ps.data.digits()
    views, fitted, seconds = recipes.views(digits), {}, {}
    for name in methods:
        torch.manual_seed(seed)
        fitted[name], began = recipes.objective(name, digits, DIM), time.perf_counter()
        recipes.fit(fitted[name], digits, views=views, epochs=epochs, progress=False)
        seconds[name] = time.perf_counter() - began
    found = ps.compare(
        fitted, digits, views=views, seconds=seconds, seed=seed, progress=False
    )
    tables = (found.matrix.T.to_dict(), found.table.T.to_dict())
    return {
        row: {k: v for k, v in (tables[0][row] | tables[1][row]).items() if v == v}
        for row in tables[0]
    }


def by_seed(seeds: int, epochs: int, methods: tuple[str, ...]) -> list[Figures]:
    """The figures of all seeds, which run in processes of one thread each."""
    if seeds == 1:
        return [one_seed(0, epochs, methods)]
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        jobs = [pool.submit(one_seed, seed, epochs, methods) for seed in range(seeds)]
        return [job.result() for job in jobs]


def kept(results: Path, seeds: int, epochs: int) -> dict[str, dict[str, list[float]]]:
    """Earlier figures, if they have the same number of seeds and epochs."""
    if not results.is_file():
        return {}
    report = json.loads(results.read_text())
    same = (report["seeds"], report["epochs"]) == (seeds, epochs)
    return report["mean and sd"] if same else {}


def in_order(figures: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Methods in the order of recipes, then the baselines."""
    place = {name: i for i, name in enumerate(METHODS)}
    names = sorted(figures, key=lambda name: place.get(name, len(METHODS)))
    return {name: figures[name] for name in names}


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    methods: tuple[str, ...] = METHODS,
    results: Path = RESULTS,
) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard deviation over the seeds of every figure.

    Of other methods the figures that are there are kept, for as many seeds and epochs.
    """
    found = by_seed(seeds, epochs, methods)
    figures: dict[str, dict[str, list[float]]] = {}
    for row in found[0]:
        figures[row] = {}
        for name in found[0][row]:
            values = [each[row][name] for each in found if name in each[row]]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            if name == "few_label_gain":
                deviation /= np.sqrt(len(values))  # its standard error
            figures[row][name] = [float(np.mean(values)), deviation]
    figures = in_order(kept(results, seeds, epochs) | figures)
    report = {
        "script": "models/digits.py",
        "seeds": seeds,
        "epochs": epochs,
        "dim": DIM,
        "hardware": f"{platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores, one thread for each seed",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "mean and sd": figures,
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    for row, entries in figures.items():
        shown = (f"{name} {m:.3f} ± {s:.3f}" for name, (m, s) in entries.items())
        print(f"{row}: {', '.join(shown)}")
    return figures


if __name__ == "__main__":
    main()
