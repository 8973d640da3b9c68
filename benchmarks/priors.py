"""What a prior and its guide cost in a training step of SimVAE, as ratios.

All objectives have the same nets and see the same 128 digits of two views; a step is a
value and its gradient, without the optimiser. Blocks of steps are interleaved in one
run, so that a busy machine slows all alike; the median over the blocks is compared with
that of `priors.Gaussian` and `guides.DiagonalGaussian`. Writes milliseconds and ratios
to benchmarks/results/priors.json.

Takes a minute on one CPU core.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro.distributions as dist
import torch
from measure import interleaved, report
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


def step(objective: nn.Module, batch: ps.Batch) -> None:
    """The value of an objective and its gradient."""
    objective.zero_grad()
    (-sum(objective(batch))).backward()


def main(
    blocks: int = BLOCKS, steps: int = STEPS, results: Path = RESULTS
) -> dict[str, dict[str, float]]:
    """Return milliseconds per step and ratios to the first objective."""
    torch.manual_seed(0)
    batch = ps.Batch(ps.views.digits()(ps.data.digits().train.images[:ITEMS]))
    subjects = {name: partial(step, each, batch) for name, each in objectives().items()}
    timed = interleaved(subjects, blocks, steps)
    first = next(iter(timed.values()))
    figures = {
        name: {
            "ms": round(1e3 * timing.median, 2),
            "ratio": round(timing.ratio(first), 2),
        }
        for name, timing in timed.items()
    }
    sizes = {"items, views, dim": [ITEMS, 2, DIM], "blocks, steps": [blocks, steps]}
    report("benchmarks/priors.py", results, figures, **sizes)
    for name, figure in figures.items():
        print(f"{name}: {figure['ms']:.1f} ms, {figure['ratio']:.2f} times")
    return figures


if __name__ == "__main__":
    main()
