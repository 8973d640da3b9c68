"""The thesis on scikit-learn's digits: six methods and three baselines, five seeds.

SimVAE is the distribution itself, on the plane or the sphere; VAE drops the content,
SimCLR, VICReg and log-det drop the decoder. All see the same images, the same views
(small turns, sizes and shifts) and z of 10 dimensions. Prints the means and standard
deviations that stand in the README and writes them, with hardware and versions, to
benchmarks/results/digits.json.

Takes about four minutes for each seed on one CPU core.
"""

import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

import probssl as ps
from probssl import recipes

METHODS = ("VAE", "SimVAE", "SphericalSimVAE", "SimCLR", "VICReg", "LogDet")
SEEDS, EPOCHS, DIM = 5, 150, 10
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "digits.json"


def one_seed(seed: int, epochs: int, methods: tuple[str, ...]) -> ps.Comparison:
    """Fit every method with this seed and measure it."""
    digits = ps.data.digits()
    views, fitted, seconds = recipes.views(digits), {}, {}
    for name in methods:
        torch.manual_seed(seed)
        fitted[name], began = recipes.objective(name, digits, DIM), time.perf_counter()
        ps.fit(fitted[name], digits.train, views=views, epochs=epochs)
        seconds[name] = time.perf_counter() - began
    return ps.compare(fitted, digits, views=views, seconds=seconds, seed=seed)


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    methods: tuple[str, ...] = METHODS,
    results: Path = RESULTS,
) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard deviation over the seeds of every figure."""
    tables = [one_seed(seed, epochs, methods).table for seed in range(seeds)]
    stacked = np.stack([table.to_numpy() for table in tables])
    mean, sd = stacked.mean(0), stacked.std(0, ddof=min(1, seeds - 1))
    columns, rows = list(tables[0].columns), list(tables[0].index)
    figures = {
        row: {
            column: [float(mean[i, j]), float(sd[i, j])]
            for j, column in enumerate(columns)
            if np.isfinite(mean[i, j])
        }
        for i, row in enumerate(rows)
    }
    report = {
        "script": "models/digits.py",
        "seeds": seeds,
        "epochs": epochs,
        "dim": DIM,
        "hardware": f"{platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads",
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
