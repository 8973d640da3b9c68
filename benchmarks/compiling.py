"""The first compiled step: what each prior costs, without and with a compiler's cache.

SimVAE for digits with each prior of the package, and SimCLR of an MLP, with a kernel
density, take their first step of 128 items in a new process: once with an empty cache
of the compiler, then, in a second process, with what the first one left. A step that is
not compiled has the reason in place of the second time. Seconds count from the call of
`fit`. Writes benchmarks/results/compiling.json.

Takes ten minutes on two CPU cores; on a busy machine the seconds mean little.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pyro.distributions as dist
import torch
from measure import digits, options, report, table
from tqdm import tqdm

import probssl as ps

EVENT, DIM, ITEMS, HIDDEN = (1, 8, 8), 10, 128, (256, 256)
FIRST = "--first"  # step of the name that follows, in a process of its own
RESULTS = Path(__file__).parent / "results" / "compiling.json"


def laplace(y: torch.Tensor) -> dist.TorchDistribution:
    """p(z|y) of an own prior."""
    return dist.Laplace(y, 0.3).to_event(1)


def simvae(prior: Callable[[], ps.priors.Prior]) -> ps.limits.SimVAE:
    """SimVAE for digits with this prior."""
    made = prior()
    encoder = ps.nn.MLPEncoder(EVENT, DIM, HIDDEN)
    decoder = ps.nn.MLPDecoder(DIM, EVENT, HIDDEN)
    sphere = isinstance(made, ps.priors.Spherical)
    guide = ps.guides.PowerSpherical if sphere else ps.guides.DiagonalGaussian
    likelihood = ps.likelihoods.Binomial(16)
    joint = ps.Joint(made, likelihood, encoder, decoder, guide=guide)
    return ps.limits.SimVAE(joint)


def simclr() -> ps.limits.SimCLR:
    """SimCLR of an MLP: the entropy is that of a kernel density."""
    return ps.limits.SimCLR(ps.nn.MLPEncoder(EVENT, 128, HIDDEN))


P = ps.priors
PRIORS: dict[str, Callable[[], P.Prior]] = {
    "Gaussian": lambda: P.Gaussian(DIM, 0.15),
    "Gaussian, random scale": lambda: P.Gaussian(DIM, dist.LogNormal(-2.0, 0.5)),
    "Independent": lambda: P.Independent(DIM),
    "StudentT": lambda: P.StudentT(DIM, 0.3, 4.0),
    "Spherical": lambda: P.Spherical(DIM, 20.0),
    "Mixture": lambda: P.Mixture(DIM, 10, 0.5),
    "TwoTier": lambda: P.TwoTier(DIM, 10, 0.3, 0.5),
    "Custom, quadrature": lambda: P.Custom(laplace, DIM),
    "Custom, Student-t content": lambda: P.Custom(
        laplace, DIM, y_prior=dist.StudentT(3.0, 0.0, 1.0).expand([DIM]).to_event(1)
    ),
    "Custom, importance sampling": lambda: P.Custom(
        laplace, DIM, y_prior=dist.MultivariateNormal(torch.zeros(DIM), torch.eye(DIM))
    ),
}
OBJECTIVES: dict[str, Callable[[], torch.nn.Module]] = {
    f"SimVAE, {name}": partial(simvae, prior) for name, prior in PRIORS.items()
} | {"SimCLR": simclr}


class Kept(logging.Handler):
    """Keeps why something was not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "is not compiled" in message:
            self.reasons.append(message.partition(": ")[2])


def first_step(name: str) -> tuple[float, str]:
    """Seconds from the call of `fit` to its first terms, and why it is not compiled."""
    kept, ended = Kept(), []
    logging.getLogger("probssl").addHandler(kept)

    def end(count: int, terms: ps.Terms) -> bool:
        float(sum(terms))
        ended.append(perf_counter())
        return True

    data, views, objective = ps.data.digits(), ps.views.digits(), OBJECTIVES[name]()
    options: dict[str, Any] = {"batch_size": ITEMS, "compile": True, "progress": False}
    began = perf_counter()
    ps.fit(objective, data.train, views=views, on_step=end, **options)
    return ended[0] - began, " ".join(kept.reasons)


def in_fresh_process(name: str, cache: str) -> tuple[float, str]:
    """The first step in a new process that keeps its compiled graphs in this folder."""
    command = [sys.executable, __file__, FIRST, name]
    variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, reason = json.loads(done.stdout)
    return seconds, reason


def main(
    names: Sequence[str] = tuple(OBJECTIVES),
    first: Callable[[str, str], tuple[float, str]] = in_fresh_process,
    results: Path = RESULTS,
) -> dict[str, dict[str, Any]]:
    """Return the seconds of the first step of each objective, or why it is eager.

    Arguments:
        first: A function of a name and a cache, as `in_fresh_process`.
    """
    figures: dict[str, dict[str, Any]] = {}
    for name in tqdm(names):
        with tempfile.TemporaryDirectory() as cache:
            cold, reason = first(name, cache)
            figures[name] = {"empty cache, s": digits(cold)}
            if reason:
                figures[name]["eager, because"] = reason
            else:
                figures[name]["filled cache, s"] = digits(first(name, cache)[0])
    report("benchmarks/compiling.py", results, figures, items=ITEMS)
    seconds = {
        n: {k: v for k, v in f.items() if k.endswith("s")} for n, f in figures.items()
    }
    table(seconds)
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == FIRST:
        print(json.dumps(first_step(sys.argv[2])))
    else:
        main(results=options(__doc__, device=False).parse_args().out / RESULTS.name)
