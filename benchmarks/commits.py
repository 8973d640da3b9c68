"""The time of an eager training step here, beside that in another checkout.

    git worktree add ../before COMMIT
    python benchmarks/commits.py ../before

Two processes, one for each checkout, fit the same objective to the same data and take
turns: one epoch here, one there, the order swapped every time, so that other load on
the machine slows both alike. CPU seconds of one thread are counted; the ratio is the
median over the pairs of epochs, its standard error from their quartiles. Writes
benchmarks/results/commits.json.

Takes six minutes on one CPU core.
"""

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import digits, options, report
from tqdm import tqdm

ITEMS, BATCH, DIM, SCALE, HIDDEN, PAIRS = 2_048, 64, 10, 0.15, (256, 256), 60
ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "commits.json"
NAMES = (
    "SimVAE",
    "SimVAE, Coupled",
    "SimVAE, Mixture",
    "SimVAE, TwoTier",
    "SimVAE, Spherical",
    "VAE",
    "SimCLR",
    "VICReg",
    "LogDet",
    "BYOL",
    "SwAV",
    "DINO",
)


def objective(name: str) -> Any:
    """The objective of this name, on images of 8 × 8 pixels."""
    import probssl as ps

    shape = (1, 8, 8)
    encoder = ps.nn.MLPEncoder(shape, DIM, HIDDEN)
    family, _, part = name.partition(", ")
    if family not in ("SimVAE", "VAE"):
        return getattr(ps.limits, family)(encoder)
    priors = {
        "Mixture": lambda: ps.priors.Mixture(DIM, 10, SCALE),
        "TwoTier": lambda: ps.priors.TwoTier(DIM, 10, 2 * SCALE, SCALE),
        "Spherical": lambda: ps.priors.Spherical(DIM, 50.0),
    }
    guides = {"Coupled": ps.guides.Coupled, "Spherical": ps.guides.PowerSpherical}
    gaussian = lambda: ps.priors.Gaussian(DIM, SCALE)  # noqa: E731
    joint = ps.Joint(
        ps.priors.Independent(DIM) if family == "VAE" else priors.get(part, gaussian)(),
        ps.likelihoods.Bernoulli(),
        encoder,
        ps.nn.MLPDecoder(DIM, shape, HIDDEN),
        **({"guide": guides[part]} if part in guides else {}),
    )
    return getattr(ps.limits, family)(joint)


def turns(name: str) -> None:
    """Fit; after each epoch print its CPU seconds, and wait for a line to go on."""
    import time

    import torch

    import probssl as ps

    class Pairs(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.stack([batch, batch.flip(-1)], 1)

    began = math.nan

    def wait(epoch: int, row: object) -> bool:
        nonlocal began
        print(time.process_time() - began, flush=True)
        more = bool(sys.stdin.readline().strip())
        began = time.process_time()
        return not more

    torch.manual_seed(0)
    images = torch.rand(ITEMS, 1, 8, 8).bernoulli()
    ps.fit(
        objective(name),
        images,
        views=Pairs(),
        epochs=10**6,  # until told to stop
        batch_size=BATCH,
        compile=False,
        progress=False,
        on_epoch=wait,
    )


def started(checkout: Path, name: str) -> "subprocess.Popen[str]":
    """The process of a checkout, past its first epoch."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(checkout), "--turns", name],
        env=os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if not process.stdout or not process.stdout.readline():
        sys.exit(f"{name} does not run in {checkout}")
    return process


def seconds(process: "subprocess.Popen[str]") -> float:
    """CPU seconds of the next epoch."""
    assert process.stdin and process.stdout
    print("on", file=process.stdin, flush=True)
    return float(process.stdout.readline())


def compared(other: Path, name: str, pairs: int) -> dict[str, float]:
    """Milliseconds of a step in both checkouts, and their ratio."""
    sides = {"before": started(other, name), "here": started(ROOT, name)}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for pair in range(pairs):
        for side in list(sides)[:: 1 if pair % 2 else -1]:
            taken[side].append(seconds(sides[side]))
    for process in sides.values():
        process.communicate("\n")
    both = zip(taken["here"], taken["before"], strict=True)
    ratios = [here / before for here, before in both]
    low, median, high = statistics.quantiles(ratios, n=4)
    steps = ITEMS // BATCH
    return {
        f"{side}, ms": digits(1e3 * statistics.median(each) / steps)
        for side, each in taken.items()
    } | {
        "ratio": round(median, 4),
        # Of a median of normal values: 1.2533 sd / √n, sd = (quartiles' range) / 1.349.
        "standard error": round(0.929 * (high - low) / math.sqrt(pairs), 4),
    }


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


def main(
    other: Path,
    names: Sequence[str] = NAMES,
    pairs: int = PAIRS,
    results: Path = RESULTS,
) -> dict[str, dict[str, float]]:
    """Return the times of every objective and their ratio; write the report."""
    found = {}
    for name in tqdm(names, leave=False):
        found[name] = compared(other, name, pairs)
        tqdm.write(f"{name}: {found[name]}")
    commits = {"before": commit(other), "here": commit(ROOT)}
    report("benchmarks/commits.py", results, found, pairs=pairs, **commits)
    return found


if __name__ == "__main__":
    parser = options(__doc__, device=False)
    parser.add_argument("checkout", type=Path, help="the other checkout")
    parser.add_argument("--turns", help="(in a process of its own) take turns")
    arguments = parser.parse_args()
    if arguments.turns:
        turns(arguments.turns)
    else:
        main(arguments.checkout.resolve(), results=arguments.out / RESULTS.name)
