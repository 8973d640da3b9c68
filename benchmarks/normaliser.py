"""The contrastive normaliser in blocks against all kernels at once: time and memory.

Value and gradient of the kernel density over all representations of a batch of two
views, 128 dimensions, float32. Times are medians over interleaved repeats in one run,
given as ratios to the dense form; memory is the peak of a fresh process beyond what it
held with the inputs made. Writes benchmarks/results/normaliser.json.

Takes about five minutes on two CPU cores, most of it for 16,384 items, where the dense
form is left out: one matrix of its kernels alone has 4.3 GB.
"""

import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

import probssl as ps
from probssl.entropies.normaliser import DENSE, log_sums

ITEMS, DIM, REPEATS = (1_024, 2_048, 4_096), 128, 5
MANY = 16_384
RESULTS = Path(__file__).parent / "results" / "normaliser.json"
FORMS = {"dense": 2**62, "blocks": DENSE}
PRIORS = {
    "von Mises-Fisher": lambda: ps.priors.Spherical(None, 2.0),
    "Gaussian": lambda: ps.priors.Gaussian(None, 0.5),
    "Student-t": lambda: ps.priors.TSNE(None, 1.0),
}


def inputs(items: int) -> Tensor:
    """Directions of two views for each item, in one row after the other."""
    return normalize(torch.randn(2 * items, DIM), dim=-1).requires_grad_()


def step(prior: ps.priors.Prior, z: Tensor, most: int) -> None:
    """The value of the kernel density and its gradient."""
    numbers = torch.arange(len(z))
    sums = log_sums(prior, z, z, lambda columns: numbers[:, None] != columns, most)
    (math.log(len(z) - 1) - sums.mean()).backward()


def seconds(items: int, repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of both forms for every prior, and their ratio."""
    z, found = inputs(items), {}
    for name, make in PRIORS.items():
        prior, timed = make(), {form: [] for form in FORMS}
        for _ in range(repeats + 1):
            for form, most in FORMS.items():
                began = time.perf_counter()
                step(prior, z, most)
                timed[form].append(time.perf_counter() - began)
        medians = {form: statistics.median(t[1:]) for form, t in timed.items()}
        ratio = medians["blocks"] / medians["dense"]
        found[name] = {form: round(t, 3) for form, t in medians.items()}
        found[name]["ratio"] = round(ratio, 2)
    return found


def megabytes(form: str, items: int) -> float:
    """The peak memory of a step in a fresh process, beyond its inputs."""
    command = [sys.executable, __file__, form, str(items)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


def _peak(form: str, items: int) -> float:
    """This process's own; called in a fresh one."""
    prior = PRIORS["von Mises-Fisher"]()
    step(prior, inputs(32), FORMS[form])  # what is loaded on first use
    z = inputs(items)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    step(prior, z, FORMS[form])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (peak - before) / 1e6


def main(
    items: tuple[int, ...] = ITEMS,
    many: int = MANY,
    repeats: int = REPEATS,
    results: Path = RESULTS,
) -> dict[str, dict]:
    """Return seconds for each number of items, and megabytes."""
    torch.manual_seed(0)
    memory = {f"blocks, {many}": round(megabytes("blocks", many))}
    for form in FORMS:
        memory[f"{form}, {items[-1]}"] = round(megabytes(form, items[-1]))
    figures = {
        "seconds": {str(n): seconds(n, repeats) for n in items},
        "megabytes": memory,
    }
    report = {
        "script": "benchmarks/normaliser.py",
        "views, dim": [2, DIM],
        "repeats": repeats,
        "hardware": f"{platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "figures": figures,
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for n, by_prior in figures["seconds"].items():
        for name, entry in by_prior.items():
            print(f"{n} items, {name}: blocks take {entry['ratio']:.2f} of dense")
    for name, size in memory.items():
        print(f"{name} items: {size} MB")
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(_peak(sys.argv[1], int(sys.argv[2])))
    else:
        main()
