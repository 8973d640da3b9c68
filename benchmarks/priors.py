"""The time of a training step of SimVAE under each prior and guide, as ratios.

All objectives have the same networks and the same 128 digits of two views; a step is a
value and its gradient, without the optimiser. Ratios are to `priors.Gaussian` with
`guides.DiagonalGaussian`. Writes them and milliseconds to
benchmarks/results/priors.json.

Takes a minute on one CPU core.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from measure import compared, interleaved, options, report, table
from torch import Tensor, nn

import probssl as ps

ITEMS, DIM, BLOCKS, STEPS = 128, 10, 7, 10
RESULTS = Path(__file__).parent / "results" / "priors.json"


def laplace(y: Tensor) -> dist.TorchDistribution:
    """The conditional of the custom prior."""
    return dist.Laplace(y, 0.1).to_event(1)


def simvae(prior: ps.priors.Prior, **options: object) -> nn.Module:
    """SimVAE for digits with this prior."""
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
    """The objectives by name; ratios are to the first."""
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
) -> dict[str, dict[str, Any]]:
    """Return milliseconds per step and ratios to the first objective."""
    torch.manual_seed(0)
    batch = ps.Batch(ps.views.digits()(ps.data.digits().train.images[:ITEMS]))
    subjects = {name: partial(step, each, batch) for name, each in objectives().items()}
    figures = compared(interleaved(subjects, blocks, steps))
    sizes = {"items, views, dim": [ITEMS, 2, DIM], "blocks, steps": [blocks, steps]}
    report("benchmarks/priors.py", results, figures, **sizes)
    table(figures)
    return figures


if __name__ == "__main__":
    main(results=options(__doc__, device=False).parse_args().out / RESULTS.name)
