"""What a prior and its guide cost in a training step of SimVAE, as ratios.

All objectives have the same nets and see the same 128 digits of two views; a step is a
value and its gradient, without the optimiser. Blocks of steps are interleaved in one
run, so that a busy machine slows all alike; the median over the blocks is compared with
that of `priors.Gaussian` and `guides.DiagonalGaussian`. Writes milliseconds and ratios
to benchmarks/results/priors.json.

Takes a minute on one CPU core.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import probssl as ps

ITEMS, DIM, BLOCKS, STEPS = 128, 10, 7, 10
RESULTS = Path(__file__).parent / "results" / "priors.json"


def laplace(y: Tensor) -> dist.TorchDistribution:
    """The conditional of the custom prior."""
    return dist.Laplace(y, 0.1).to_event(1)


def simvae(prior: ps.priors.Prior, **options: object) -> nn.Module:
    """SimVAE for digits under this prior."""
    shape = (1, 8, 8)
    joint = ps.Joint(
        prior,
        ps.likelihoods.Binomial(16),
        ps.nn.MLPEncoder(shape, DIM),
        ps.nn.MLPDecoder(DIM, shape),
        **options,
    )
    joint.population = torch.tensor(1_000.0)
    return ps.limits.SimVAE(joint)


def objectives() -> dict[str, nn.Module]:
    """The objectives by name, the reference first."""
    coupled = {"guide": ps.guides.Coupled}
    priors: dict[str, Callable[[], ps.priors.Prior]] = {
        "Gaussian": lambda: ps.priors.Gaussian(DIM, 0.15),
        "Gaussian of random scale": lambda: ps.priors.Gaussian(
            DIM, dist.LogNormal(-2.0, 1.0)
        ),
        "StudentT": lambda: ps.priors.StudentT(DIM, 0.15),
        "Mixture(10)": lambda: ps.priors.Mixture(DIM, 10, 0.15),
        "TwoTier(10)": lambda: ps.priors.TwoTier(DIM, 10, 0.15),
        "Custom Laplace": lambda: ps.priors.Custom(laplace, DIM),
    }
    found = {name: simvae(make()) for name, make in priors.items()}
    for name in ("Gaussian", "Mixture(10)", "TwoTier(10)"):
        found[f"{name}, Coupled"] = simvae(priors[name](), **coupled)
    content = ps.guides.Content(DIM)
    found["Custom Laplace, explicit y"] = simvae(
        priors["Custom Laplace"](), content=content
    )
    return found


def main(
    blocks: int = BLOCKS, steps: int = STEPS, results: Path = RESULTS
) -> dict[str, dict[str, float]]:
    """Return milliseconds per step and ratios to the first objective."""
    torch.manual_seed(0)
    batch = ps.Batch(ps.views.digits()(ps.data.digits().train.images[:ITEMS]))
    timed: dict[str, list[float]] = {}
    subjects = objectives()
    for _ in range(blocks + 1):
        for name, objective in subjects.items():
            began = time.perf_counter()
            for _ in range(steps):
                objective.zero_grad()
                (-sum(objective(batch))).backward()
            seconds = time.perf_counter() - began
            timed.setdefault(name, []).append(1e3 * seconds / steps)
    medians = {name: statistics.median(t[1:]) for name, t in timed.items()}
    first = next(iter(medians.values()))
    figures = {
        name: {"ms": round(ms, 2), "ratio": round(ms / first, 2)}
        for name, ms in medians.items()
    }
    report = {
        "script": "benchmarks/priors.py",
        "items, views, dim": [ITEMS, 2, DIM],
        "blocks, steps": [blocks, steps],
        "hardware": f"{platform.processor() or platform.machine()}, "
        f"{torch.get_num_threads()} threads",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "figures": figures,
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for name, figure in figures.items():
        print(f"{name}: {figure['ms']:.1f} ms, {figure['ratio']:.2f} times")
    return figures


if __name__ == "__main__":
    main()
