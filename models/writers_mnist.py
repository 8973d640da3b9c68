"""Does a prior know the writer of a digit? MNIST with an effect of each writer.

SimVAE of one view of each of 10,000 training images, half of 14 × 14 pixels a side, is
fitted with p(y) = N(0, I), and with an effect u of each writer added to y: `Grouped`,
with a random scale of u. The same networks, seeds and steps for both. Measured are the
share of the variance of y that is the writers', τ² / (τ² + 1), with its central 90 %
interval under the guide; log p(x) of held-out images of the same writers, with the
writer known and unknown; log p(x) of 2,000 test images and a linear probe on all of
them, which are by writers that the training set does not have.

Reached: the writers have a tenth of the variance of y. A known writer is worth 0.54
nats over p(y) = N(0, I); for new writers nothing is gained, in log p(x) or the probe.

Nothing was chosen by these figures: the number of steps is what a few minutes allow.

Results: docs/results.md, "Writers". Writes benchmarks/results/writers_mnist.json after
each fit, and goes on from there. Needs MNIST, with `mnist-writers.npz`, in the folder
named by the environment variable PROBSSL_DATA.

Takes three minutes of one CPU core.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import report
import torch
from report import Row
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim.lr_scheduler import OneCycleLR

import probssl as ps

CHOSEN_ON = "nothing"
SEEDS, EPOCHS, BATCH, LEARNING_RATE = 3, 20, 200, 2e-3
SIDE, HIDDEN, DIM, SCALE, NOISE = 14, (256,), 16, 0.2, 0.3
IMAGES, HELD, SCORED, PARTICLES = 10_000, 2_000, 2_000, 100
INTERVAL = (0.05, 0.5, 0.95)
SHARE = ("share, 5 %", "share, median", "share, 95 %")
KNOWN, UNKNOWN, UNSEEN, PROBE = (
    "log p(x), writer known",
    "log p(x), writer unknown",
    "log p(x), other writers",
    "linear probe, other writers",
)


class Images(NamedTuple):
    """Images to fit, others by the same writers, and test images by others."""

    train: ps.data.Split
    held: ps.data.Split
    test: ps.data.Split
    writers: int


def images(number: int, held: int) -> Images:
    """MNIST in [0, 1], averaged down to a few pixels a side, with numbered writers."""
    data = ps.data.load("mnist")
    found = report.parts(data)
    drawn = found["train"].take(number + held)
    writer = torch.as_tensor(drawn.style).long().numpy()
    known, numbers = np.unique(writer[:number], return_inverse=True)
    same = number + np.flatnonzero(np.isin(writer[number:], known))
    others = torch.as_tensor(np.searchsorted(known, writer[same]))
    return Images(
        _shown(drawn.rows(slice(number)), torch.as_tensor(numbers)),
        _shown(drawn.rows(torch.as_tensor(same)), others),
        _shown(found["test"], torch.full((len(found["test"]),), -1)),
        len(known),
    )


def _shown(split: ps.data.Split, writer: Tensor) -> ps.data.Split:
    small = adaptive_avg_pool2d(torch.as_tensor(split.images).float() / 255, SIDE)
    return ps.data.Split(small, split.labels, covariates={"writer": writer})


def gaussian(writers: int) -> ps.priors.Prior:
    """p(y) = N(0, I)."""
    return ps.priors.Gaussian(DIM, SCALE)


def grouped(writers: int) -> ps.priors.Prior:
    """p(y) = N(u, I), u of each writer."""
    tau = dist.LogNormal(-0.5, 1.0)
    return ps.priors.Grouped(ps.priors.Gaussian(DIM, SCALE), "writer", writers, tau)


PRIORS: dict[str, Callable[[int], ps.priors.Prior]] = {
    "Gaussian": gaussian,
    "Grouped": grouped,
}


def fitted(data: Images, prior: ps.priors.Prior, epochs: int) -> ps.limits.SimVAE:
    """SimVAE of one view, with one cycle of the learning rate."""
    shape = (1, SIDE, SIDE)
    joint = ps.Joint(
        prior,
        ps.likelihoods.Gaussian(NOISE),
        ps.nn.MLPEncoder(shape, DIM, hidden=HIDDEN),
        ps.nn.MLPDecoder(DIM, shape, hidden=HIDDEN),
    )
    simvae = ps.limits.SimVAE(joint)
    steps = epochs * max(1, len(data.train) // BATCH)
    ps.fit(
        simvae,
        data.train,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scheduler=lambda o: OneCycleLR(o, [g["lr"] for g in o.param_groups], steps),
        progress=False,
    )
    return simvae


def scored(cell: Row) -> Row:
    """The figures of one fit."""
    began, data = time.process_time(), images(IMAGES, HELD)
    torch.manual_seed(cell["seed"])
    prior = PRIORS[cell["prior"]](data.writers)
    simvae = fitted(data, prior, cell["epochs"])
    unknown = {"writer": torch.full((len(data.held),), -1)}
    others = data.test.take(min(SCORED, len(data.test)))
    held = {UNKNOWN: data.held._replace(covariates=unknown), UNSEEN: others}
    found: Row = {"writers": data.writers}
    if isinstance(prior, ps.priors.Grouped):
        held[KNOWN] = data.held
        tau = prior.scale
        log_tau = dist.Normal(tau.loc, tau.log_scale.exp())
        levels = log_tau.icdf(torch.tensor(INTERVAL)).detach().mul(2).sigmoid()
        found |= zip(SHARE, levels.tolist(), strict=True)
    for name, part in held.items():
        evidence = ps.evidence(simvae, part, particles=PARTICLES)
        found |= {name: evidence.mean, f"k̂ above 0.7, {name}": evidence.unreliable}
    z, z_test = (ps.embed(simvae, part) for part in (data.train, data.test))
    found[PROBE] = float(
        ps.evaluation.linear_probe(z, data.train.labels, z_test, data.test.labels)
    )
    return found | {"seconds": round(time.process_time() - began)}


def main(
    seeds: int = SEEDS, epochs: int = EPOCHS, results: Path = report.RESULTS
) -> list[Row]:
    """Return the figures of each prior and seed."""
    cells = [
        {"prior": prior, "seed": seed, "epochs": epochs}
        for seed in range(seeds)
        for prior in PRIORS
    ]
    path = results / "writers_mnist.json"
    return report.collected(path, "writers_mnist.py", cells, scored)


def table(rows: list[Row]) -> str:
    """Mean and standard deviation over seeds, and the paired gain, in Markdown."""
    by = {name: [row for row in rows if row["prior"] == name] for name in PRIORS}
    lines = []
    for name, digits in ((UNKNOWN, 2), (KNOWN, 2), (UNSEEN, 2), (PROBE, 3)):
        each = [[row[name] for row in own if name in row] for own in by.values()]
        base = each[0] or [row[UNKNOWN] for row in by["Gaussian"]]
        cells = [report.spread(values, digits) for values in each]
        lines.append([name, *cells, report.gain(each[1], base, digits)])
    return report.markdown(["", *PRIORS, "gain"], lines)


def shares(rows: list[Row]) -> str:
    """The share of the writers in the variance of y, of each seed, in Markdown."""
    own = [row for row in rows if SHARE[0] in row]
    lines = [[str(row["seed"]), *(f"{row[name]:.3f}" for name in SHARE)] for row in own]
    return report.markdown(["seed", *SHARE], lines)


def tables() -> str:
    """Both tables, in Markdown."""
    rows = report.read(report.RESULTS / "writers_mnist.json")
    return f"{table(rows)}\n\n{shares(rows)}\n"


if __name__ == "__main__":
    report.command(__doc__, main, tables)
