"""What do hand-set weights decide? VICReg and LeJEPA over three decades, on digits.

VICReg weighs variance and covariance against invariance, LeJEPA its statistic against
the distance of views. Both weights are varied over three decades around the published
ones: the ratio of what keeps z informative to what pulls views together is multiplied
by a factor. Beside them are objectives of the same network without such a weight:

- LogDet: its scale sets the size of z alone;
- LogDet with a proper p(y), whose scale of z given y is learned;
- LeJEPA's form, with that scale learned too, and z standardised in its statistic, as
  `entropies.Sketched` requires of a free scale.

A scale that is learned could drift instead of settling; the script writes it after each
third of the fit.

Four fifths of the training images fit encoders and probes; the others are for
validation. The best factor is the one of the best linear probe on validation images;
the figure shows test images, and nothing was chosen on these.

Results: docs/results.md, "Weights set by hand". Writes
benchmarks/results/hand_set_weights.json and a figure beside it. A run that was stopped
goes on.

The published weight is the best of VICReg's row, and too heavy in LeJEPA's. Takes two
minutes of one CPU core.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import report
import torch
from report import Row
from table_of_limits import DIM, encoder, head

import probssl as ps
from probssl import limits, priors, recipes
from probssl.entropies import EppsPulley, LogDeterminant, Sketched
from probssl.plots.style import BLUE, INK, ORANGE, blank, clean

CHOSEN_ON = "validation"
SEEDS, EPOCHS, SLICES = 3, 20, 64
FACTORS = (1 / 30, 1 / 5.5, 1.0, 5.5, 30.0)
SCALE = 0.5  # at the start, where it is learned

Build = Callable[[ps.data.Dataset], limits.JointEmbedding]


def vicreg(data: ps.data.Dataset, factor: float) -> limits.JointEmbedding:
    weights = {"variance": 25 * factor, "covariance": factor}
    return limits.VICReg(encoder(data), head(), **weights)


def lejepa(data: ps.data.Dataset, factor: float) -> limits.JointEmbedding:
    ratio = factor * 0.05 / 0.95
    weight = ratio / (1 + ratio)
    return limits.LeJEPA(encoder(data), head(), weight=weight, slices=SLICES)


def log_det(data: ps.data.Dataset) -> limits.JointEmbedding:
    return limits.LogDet(encoder(data), head())


def learned_log_det(data: ps.data.Dataset) -> limits.JointEmbedding:
    prior = priors.Gaussian(None, ps.learned(SCALE))
    return limits.Embedding(encoder(data), prior, LogDeterminant(), projector=head())


def learned_sketch(data: ps.data.Dataset) -> limits.JointEmbedding:
    prior = priors.ContentStyle(head_dim(), 0, ps.learned(SCALE))
    sketch = Sketched(EppsPulley(), SLICES, standardise=True)
    return limits.Embedding(encoder(data), prior, sketch, projector=head())


def head_dim() -> int:
    """The dimension of the projector's output."""
    return head()(torch.zeros(2, DIM)).shape[1]


WEIGHTED: dict[str, Callable[[ps.data.Dataset, float], limits.JointEmbedding]] = {
    "VICReg": vicreg,
    "LeJEPA": lejepa,
}
WITHOUT: dict[str, Build] = {
    "LogDet": log_det,
    "LogDet, proper p(y), scale learned": learned_log_det,
    "LeJEPA's form, scale learned": learned_sketch,
}
COLOURS = dict(
    zip((*WEIGHTED, *WITHOUT), (BLUE, ORANGE, INK, BLUE, ORANGE), strict=True)
)


def cells(seeds: int, factors: Sequence[float]) -> list[Row]:
    """What is fitted; all have a seed before any has the next."""
    found = []
    for seed in range(seeds):
        for name in WITHOUT:
            found.append({"objective": name, "factor": None, "seed": seed})
        for name in WEIGHTED:
            for k in factors:
                found.append({"objective": name, "factor": k, "seed": seed})
    return found


def scored(cell: Row, parts: report.Parts, epochs: int) -> Row:
    """Fit, and return linear probes on held-out images, and a learned scale."""
    began = time.process_time()
    data = ps.data.digits()._replace(train=parts["train"])
    torch.manual_seed(cell["seed"])
    name, factor = cell["objective"], cell["factor"]
    if factor is None:
        objective = WITHOUT[name](data)
    else:
        objective = WEIGHTED[name](data, factor)
    scale = getattr(getattr(objective, "prior", None), "scale", None)
    scales: list[float] = []

    def note(epoch: int, row: object) -> None:
        if getattr(scale, "learned", False) and epoch % max(1, epochs // 3) == 0:
            scales.append(float(scale().detach().mean()))  # type: ignore[misc]

    ps.fit(
        objective,
        data.train,
        views=recipes.views(data),
        epochs=epochs,
        on_epoch=note,
        compile=False,
        progress=False,
    )
    known = ps.embed(objective, data.train), data.train.labels
    probes = {
        f"{k}: linear probe": ps.evaluation.linear_probe(
            *known, ps.embed(objective, parts[k]), parts[k].labels
        )
        for k in ("validation", "test")
    }
    more = {"scales": scales} if scales else {}
    return probes | more | {"CPU seconds": round(time.process_time() - began, 1)}


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy on test images against the factor, and lines without one."""
    figure = blank(6.4, 3.6)
    panel = figure.subplots()
    clean(panel)
    factors = sorted({row["factor"] for row in rows if row["factor"] is not None})
    for name, colour in COLOURS.items():
        own = [row for row in rows if row["objective"] == name]
        if name in WITHOUT:
            level = mean(row["test: linear probe"] for row in own)
            style = "-" if name == "LogDet" else "--"
            panel.axhline(level, color=colour, ls=style, lw=1.2, label=name)
            continue
        at = [
            [r["test: linear probe"] for r in own if r["factor"] == k] for k in factors
        ]
        middle, spread = np.mean(at, 1), np.ptp(at, 1) / 2
        panel.errorbar(factors, middle, spread, color=colour, marker=".", label=name)
    panel.set_xscale("log")
    panel.set_xlabel("weight against that of the views, published = 1")
    panel.set_ylabel("linear probe, test images")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    report.draw(path, figure)


def best(rows: list[Row], name: str) -> float:
    """The factor of the best mean probe on validation images."""
    own = [row for row in rows if row["objective"] == name]

    def score(factor: float) -> float:
        return mean(r["validation: linear probe"] for r in own if r["factor"] == factor)

    return max({row["factor"] for row in own}, key=score)


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    factors: Sequence[float] = FACTORS,
    results: Path = report.RESULTS,
) -> list[Row]:
    """Return the probes of each objective, factor and seed."""
    parts = report.parts(ps.data.digits())
    fit = partial(scored, parts=parts, epochs=epochs)
    path, script = results / "hand_set_weights.json", "hand_set_weights.py"
    rows = report.collected(path, script, cells(seeds, factors), fit, epochs=epochs)
    draw(rows, path.with_suffix(".png"))
    return rows


def table(rows: list[Row]) -> str:
    """Probes of test images at each factor; in bold that of validation images."""
    factors = sorted({row["factor"] for row in rows if row["factor"] is not None})
    lines = []
    for name in (*WEIGHTED, *WITHOUT):
        cells = [name]
        for factor in factors if name in WEIGHTED else [None]:
            own = [
                row["test: linear probe"]
                for row in rows
                if row["objective"] == name and row["factor"] == factor
            ]
            shown = report.spread(own)
            bold = factor is not None and factor == best(rows, name)
            cells.append(f"**{shown}**" if bold else shown)
        lines.append(cells + [""] * (len(factors) + 1 - len(cells)))
    heads = [f"× {k:.2g}" if k >= 1 else f"÷ {1 / k:.2g}" for k in factors]
    return report.markdown(["objective", *heads], lines)


def scales(rows: list[Row]) -> dict[str, list[float]]:
    """The learned scales after each third of the fit, means over seeds."""
    found = {}
    for name in WITHOUT:
        own = [r["scales"] for r in rows if r["objective"] == name and "scales" in r]
        if own:
            found[name] = [mean(each) for each in zip(*own, strict=True)]
    return found


def tables() -> str:
    rows = report.read(report.RESULTS / "hand_set_weights.json")
    lines = []
    for name, values in scales(rows).items():
        squares = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"{name}: {squares}")
    return "\n".join([table(rows), *lines])


if __name__ == "__main__":
    torch.set_num_threads(1)
    report.command(__doc__, main, tables)
