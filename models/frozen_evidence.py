"""Which objective implies the better generative model of the digits? Five seeds.

Objectives without a decoder have no density of images. Here every encoder, frozen, gets
the rest of one joint distribution, the same for all of them: a Gaussian content and
views, a Binomial decoder, and a spread of q(z|x) around the encoder's output
(`probssl.compare.implied_joint`), fitted to views of the training images. ELBO and
refined log p(x1, x2) are those of two views of each of 64 test images, in nats per
image; beside them stands the accuracy of the linear probe.

Encoders are those of models/digits.py, from its folder where they are there. Methods
have the settings of `probssl.recipes`, and the joint those of `probssl compare
--evidence`. Nothing was chosen here.

Results: docs/results.md, "Evidence of frozen encoders". Prints the table and writes all
rows, learning curves included, to benchmarks/results/frozen_evidence.json, and the
curves of the first seed to frozen_evidence.png. Every row is kept, so that a run that
was stopped goes on. `--tables` prints the tables in Markdown.

`--budgets` fits the joint of three encoders of the first seed in 250 to 2,000 steps,
and writes frozen_evidence_steps.json. It takes two minutes.

Takes three minutes of one CPU core for each seed, and a minute more where encoders are
to be fitted.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import report
import torch
from pandas import DataFrame
from report import Row
from torch import nn

import probssl as ps
from probssl import recipes
from probssl.compare import evidence_of, implied_joint, sampled
from probssl.compare.implied import curve

CHOSEN_ON = "nothing"
SEEDS, EPOCHS, DIM, STEPS, ITEMS = 5, 150, 10, 1_000, 64
METHODS: tuple[str, ...] = ("SimCLR", "VICReg", "LeJEPA", "BarlowTwins", "LogDet")
METHODS += ("BYOL", "VAE", "SimVAE")
PCA = "PCA"
ROWS = (*METHODS, PCA)
RESULTS = report.RESULTS / "frozen_evidence.json"
RUNS = report.ROOT / "runs" / "digits"
BUDGETS, COMPARED = (250, 500, 1_000, 2_000), ("SimVAE", "LeJEPA", "SimCLR")
BY_STEPS = report.RESULTS / "frozen_evidence_steps.json"
COLUMNS = {"elbo": 1, "evidence": 1, "linear probe": 3}


def encoder(method: str, seed: int, epochs: int, runs: Path) -> nn.Module:
    """The fitted objective, kept in the folder of models/digits.py, or a baseline."""
    digits = ps.data.digits()
    torch.manual_seed(seed)
    if method == PCA:
        return ps.limits.PrincipalComponents.of(digits.train.images.float(), DIM, seed)
    saved = runs / f"{method}, {epochs} epochs, seed {seed}"
    if report.kept(saved) is None:
        objective, began = recipes.objective(method, digits, DIM), time.process_time()
        views = recipes.views(digits)
        recipes.fit(objective, digits, views=views, epochs=epochs, progress=False)
        ps.save(objective, saved, seconds=time.process_time() - began)
    return ps.load(saved)


def measured(cell: Row, epochs: int, steps: int, items: int, runs: Path) -> Row:
    """ELBO, evidence and probe of one encoder, with the learning curve of its joint."""
    began, digits, seed = time.process_time(), ps.data.digits(), cell["seed"]
    objective = encoder(cell["method"], seed, epochs, runs)
    views = recipes.views(digits)
    torch.manual_seed(seed)
    joint, history = implied_joint(objective, digits, views=views, steps=steps)
    rows = np.random.default_rng(seed).permutation(len(digits.test))[:items]
    elbo, evidence = evidence_of(joint, sampled(views, digits.test, seed)[rows])
    known = ps.embed(objective, digits.train), digits.train.labels
    there = ps.embed(objective, digits.test), digits.test.labels
    probe = ps.evaluation.linear_probe(*known, *there)  # type: ignore[arg-type]
    return {
        "elbo": float(elbo.mean()),
        "elbo error": float(elbo.std() / len(elbo) ** 0.5),
        "evidence": evidence.mean,
        "evidence error": evidence.standard_error,
        "k̂ above 0.7": evidence.unreliable,
        "linear probe": probe,
        "curve": {k: [round(x, 3) for x in v] for k, v in curve(history).items()},
        "CPU seconds": round(time.process_time() - began, 1),
    }


def main(
    seeds: Sequence[int] = range(SEEDS),
    methods: tuple[str, ...] = ROWS,
    epochs: int = EPOCHS,
    steps: int = STEPS,
    items: int = ITEMS,
    results: Path = report.OUT,
    runs: Path = RUNS,
) -> list[Row]:
    """Return the rows of these methods and seeds; the file keeps all rows."""
    cells = [{"method": method, "seed": seed} for seed in seeds for method in methods]
    path, content = results / RESULTS.name, {"epochs": epochs, "steps": steps}
    content["items"] = items

    def fit(cell: Row) -> Row:
        return measured(cell, epochs, steps, items, runs)

    rows = report.collected(path, "frozen_evidence.py", cells, fit, **content)
    report.draw(path.with_suffix(".png"), ps.plots.learning_curves(curves(rows)))
    print(table(rows))
    return rows


def by_steps(
    steps: Sequence[int] = BUDGETS,
    methods: Sequence[str] = COMPARED,
    epochs: int = EPOCHS,
    items: int = ITEMS,
    results: Path = report.OUT,
    runs: Path = RUNS,
) -> list[Row]:
    """The rows of these methods, of the first seed, at several numbers of steps."""
    cells = [{"method": m, "seed": 0, "steps": n} for m in methods for n in steps]
    path, content = results / BY_STEPS.name, {"epochs": epochs, "items": items}

    def fit(cell: Row) -> Row:
        return measured(cell, epochs, cell["steps"], items, runs)

    rows = report.collected(path, "frozen_evidence.py", cells, fit, **content)
    print(table_by_steps(rows))
    return rows


def table_by_steps(rows: Sequence[Row]) -> str:
    """The evidence of each method, by the number of steps."""
    steps = sorted({row["steps"] for row in rows})
    found = {(row["method"], row["steps"]): f"{row['evidence']:.1f}" for row in rows}
    names = dict.fromkeys(row["method"] for row in rows)
    lines = [[name, *(found[name, n] for n in steps)] for name in names]
    return report.markdown(["encoder of", *(f"{n} steps" for n in steps)], lines)


def curves(rows: Sequence[Row]) -> dict[str, DataFrame]:
    """The learning curves of the first seed."""
    first = min(row["seed"] for row in rows)
    return {r["method"]: DataFrame(r["curve"]) for r in rows if r["seed"] == first}


def table(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, the largest evidence first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)

    def mean(name: str) -> float:
        return float(np.mean([row["evidence"] for row in found[name]]))

    lines = [
        [name, *(report.spread([r[c] for r in own], d) for c, d in COLUMNS.items())]
        for name, own in sorted(found.items(), key=lambda pair: -mean(pair[0]))
    ]
    columns = ["encoder of", "ELBO", "log p(x₁, x₂)", "linear probe"]
    return report.markdown(columns, lines)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=range(SEEDS))
    parser.add_argument("--budgets", action="store_true", help="by numbers of steps")
    options = parser.parse_args()
    if options.tables:
        print(
            table(report.read(RESULTS)),
            table_by_steps(report.read(BY_STEPS)),
            sep="\n\n",
        )
    elif options.budgets:
        torch.set_num_threads(1)
        by_steps(results=options.out)
    else:
        torch.set_num_threads(1)
        main(options.seeds, results=options.out)
