"""Does the inferred Var(z|y) tell the best scale of views? SimVAE on MNIST.

The scale of z given y, whose square is Var(z|y), is usually set by hand. Here it is
fixed at each value of a grid, and inferred: it has a log-normal prior and a posterior,
fitted with encoder and decoder. A linear probe, a few-label probe (five labels per
class) and 5-NN score the representations, and the ELBO is that of pairs of views. The
images that are scored are other training images: no test image is looked at, and
nothing is chosen, all scales are shown.

Three guides are tried, since the scale is inferred from the bound.
`guides.DiagonalGaussian` cannot follow views that the prior ties together.
`guides.Coupled` can: its encoder gives the posterior of a single view.
`guides.CoupledLikelihoods` is the same family; its encoder gives the likelihood of a
view as a normal function of z.

Results, two seeds with 10,000 images and 12 epochs (docs/results.md has the table):

- Coupled has the highest bound where the scale is small, by 62 nats at 0.05, and there
  the best probes. From 0.15 on it differs from DiagonalGaussian by less than seeds do.
- CoupledLikelihoods leaves 3 to 5 of the 10 dimensions unused. It is the
  parametrisation: the mean of q moves by v / (v + r²) with the encoder's output, v the
  variance of z under the prior and r the width of the factor, so that a wide factor
  hardly learns. The family is not harder to train, as Coupled shows.
- The bound of all guides rises with the scale up to the inferred one, 2.1, 2.7 and with
  Coupled 4.8 (its bound is then 11 nats above that of DiagonalGaussian): nearly
  independent views. Probes hardly change from 0.15 on, so that the inferred scale does
  not tell the best of them.

Prints all figures and writes them to benchmarks/results/scale_of_views.json, and draws
accuracy against scale to scale_of_views.png beside it. Needs MNIST in the folder named
by the environment variable PROBSSL_DATA.

Takes a quarter of an hour of one CPU core.
"""

import time
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import report
import torch
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import probssl as ps
from probssl.plots.style import BLUE, INK, ORANGE, PALE, blank, clean

CHOSEN_ON = "nothing"
SEEDS, EPOCHS, IMAGES, BATCH, DIM, HIDDEN = 2, 12, 10_000, 125, 10, (128,)
SCALES = (0.05, 0.15, 0.4, 1.0)
BEFORE = (-1.5, 1.0)  # log scale under its prior: 0.03 to 1.6 with 95 %
LEARNING_RATE, HYPER_RATE = 2e-3, 3e-2
GUIDES = (
    ps.guides.DiagonalGaussian,
    ps.guides.CoupledLikelihoods,
    ps.guides.Coupled,
)
PROBES = {
    "linear_probe": "linear probe",
    "few_label_probe": "few-label probe",
    "knn": "5 neighbours",
}


def halves(data: ps.data.Dataset, images: int) -> tuple[ps.data.Split, ps.data.Split]:
    """Images to fit and other images to score, both from the training set."""
    taken = data.train.take(min(2 * images, len(data.train)))
    half = len(taken) // 2
    return taken.rows(slice(half)), taken.rows(slice(half, None))


def build(scale: Any, guide: Any, shape: tuple[int, ...]) -> ps.Joint:
    """SimVAE's distribution for binary images, with this scale."""
    return ps.Joint(
        ps.priors.Gaussian(DIM, scale),
        ps.likelihoods.Bernoulli(),
        ps.nn.MLPEncoder(shape, DIM, hidden=HIDDEN),
        ps.nn.MLPDecoder(DIM, shape, hidden=HIDDEN),
        guide=guide,
    )


def fitted(scale: Any, guide: Any, data: ps.data.Split, epochs: int) -> ps.Joint:
    """Fit all at once: the scale moves faster, so that its posterior settles."""
    joint = build(scale, guide, tuple(data.images.shape[1:]))
    hyper = list(joint.prior.parameters())
    networks = [p for name, p in joint.named_parameters() if name[:6] != "prior."]
    groups = [{"params": networks}, {"params": hyper, "lr": HYPER_RATE}]
    optimizer = Adam(groups if hyper else networks, LEARNING_RATE)
    steps = epochs * max(1, len(data) // BATCH)
    ps.fit(
        ps.limits.SimVAE(joint),
        data,
        views=ps.views.Augment(levels=1),
        epochs=epochs,
        batch_size=BATCH,
        optimizer=optimizer,
        scheduler=CosineAnnealingLR(optimizer, steps),
        progress=False,
    )
    return joint


@torch.no_grad()
def measured(
    joint: ps.Joint, data: ps.data.Split, held: ps.data.Split
) -> dict[str, float]:
    """Probes, the ELBO of pairs, dimensions in use, the posterior of Var(z|y)."""
    z = ps.embed(joint, data)
    z_held, sd = ps.embed(joint, held, return_std=True)
    known = z, data.labels, z_held, held.labels
    figures = {
        "linear_probe": ps.evaluation.linear_probe(*known),
        "few_label_probe": ps.evaluation.few_label_probe(*known).mean,
        "knn": ps.evaluation.knn(*known),
    }
    x = held.images[:2_000].float() / 255
    batch = ps.Batch(ps.views.Augment(levels=1)(x))
    figures["elbo"] = float(sum(ps.bounds.ELBO(5)(joint, batch)[:3]))
    # A dimension in use is known better than it is under the prior.
    variance = joint.prior(1).variance.squeeze(0).numpy()
    figures["dimensions"] = float(((sd**2).mean(0) < variance / 2).sum())
    figures["scale"] = float(joint.prior.scale())
    if joint.prior.scale.random:
        square = joint.prior.scale.posterior().sample((10_000,)).square()
        figures["Var(z|y)"] = float(square.mean())
        figures["sd of Var(z|y)"] = float(square.std())
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/results.md: mean and standard deviation over seeds."""
    digits = {"elbo": 1, "dimensions": 0, "linear_probe": 3, "knn": 3}
    head = ["scale of z given y", "guide", "bound, nats per pair", "dimensions in use"]
    lines = []
    for (fixed, guide), own in groupby(rows, lambda row: (row["fixed"], row["guide"])):
        some = list(own)
        at = f"{fixed:g}" if fixed else f"inferred: {_spread(some, 'scale', 2)}"
        cells = [_spread(some, name, n) for name, n in digits.items()]
        lines.append([at, f"`{guide}`", *cells])
    return report.markdown([*head, "linear probe", "5-NN"], lines) + "\n"


def _spread(rows: list[dict[str, Any]], name: str, digits: int) -> str:
    values = [row[name] for row in rows]
    if not digits:
        return f"{np.mean(values):.1f}".removesuffix(".0")
    return report.spread(values, digits)


def draw(rows: list[dict[str, Any]], scales: tuple[float, ...], path: Path) -> None:
    """Draw mean and half range of accuracy over seeds, and the inferred scales."""
    names = list(dict.fromkeys(row["guide"] for row in rows))
    figure = blank(1 + 3.4 * len(names), 3.2)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for panel, name in zip(panels, names, strict=True):
        clean(panel)
        own = [row for row in rows if row["guide"] == name]
        free = [row for row in own if row["fixed"] is None]
        inferred = [row["scale"] for row in free]
        panel.axvspan(min(inferred) / 1.02, max(inferred) * 1.02, color=PALE)
        for (probe, said), colour in zip(
            PROBES.items(), (BLUE, ORANGE, INK), strict=True
        ):
            at = [[r[probe] for r in own if r["fixed"] == scale] for scale in scales]
            mean, spread = np.mean(at, 1), np.ptp(at, 1) / 2
            panel.errorbar(scales, mean, spread, color=colour, marker=".", label=said)
            panel.plot(inferred, [r[probe] for r in free], "D", color=colour, ms=4)
        panel.set_xscale("log")
        panel.set_title(name, fontsize=10)
    figure.supxlabel("scale of z given y; grey and diamonds: inferred", fontsize=10)
    panels[0].set_ylabel("accuracy")
    lines, texts = panels[0].get_legend_handles_labels()
    figure.legend(lines, texts, loc="outside upper right", ncols=3, frameon=False)
    report.draw(path, figure)


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    images: int = IMAGES,
    scales: tuple[float, ...] = SCALES,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return the figures of every scale, guide and seed; None is the inferred one."""
    data = ps.data.load("mnist") if data is None else data
    known, held = halves(data, images)
    rows, began = [], time.process_time()
    path = results / "scale_of_views.json"
    for fixed, guide, seed in product((*scales, None), GUIDES, range(seeds)):
        torch.manual_seed(seed)
        scale = dist.LogNormal(*BEFORE) if fixed is None else fixed
        figures = measured(fitted(scale, guide, known, epochs), known, held)
        label = {"guide": guide.__name__, "fixed": fixed, "seed": seed}
        rows.append(label | figures)
        shown = (f"{name} {value:.3f}" for name, value in figures.items())
        print(*label.values(), ", ".join(shown), flush=True)
        report.write(
            path,
            "scale_of_views.py",
            images=len(known),
            epochs=epochs,
            cpu_seconds=time.process_time() - began,
            rows=rows,
        )
    draw(rows, scales, path.with_suffix(".png"))
    return rows


if __name__ == "__main__":
    report.command(__doc__, main)
