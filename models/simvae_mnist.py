"""What does SimVAE represent, beside a VAE and SimCLR? MNIST or Fashion-MNIST.

All have one encoder, z of 10 dimensions, and see as many images: views of training
images, one at a time, in pairs or in sixes. Views are small rotations, scalings and
shifts ("affine") or the crops and flips of SimVAE's authors ("crops"). SimVAE has a
Gaussian p(z|y), or content and style dimensions (`priors.ContentStyle`), and the
factorised guide or `guides.Coupled`.

Scored is z of validation images, the last 5,000 of the training set (4,000 of
Fashion-MNIST), with probes fitted to the others: linear probe, few-label probe (five
labels per class), 5-NN, and the bound of pairs, in nats per pair of images. The test
images are scored beside them; nothing is chosen on them.

On MNIST the bound of SimVAE with 6 content and 4 style dimensions and `Coupled` is 6
nats above the VAE's where each image is seen 96 times, and its probes are above: linear
0.946 against 0.930. SimCLR has 0.948, and is ahead with few labels. Seen 384 times,
SimVAE has 0.949, the VAE 0.947 and SimCLR 0.960: the bound still rises, by nats of
pixels that say nothing of the class. A wider p(z|y), of scale 0.39, gains nothing. With
the crops no SimVAE is above the VAE. On Fashion-MNIST SimVAE has the best 5-NN, 0.792
against 0.776 of the VAE and 0.721 of SimCLR.

Every fit leaves a folder in runs/, which `probssl inspect` reads; fits whose folder is
there are not run again, so that a run that was stopped goes on. One process per core.

Results: docs/results.md, "SimVAE on MNIST and Fashion-MNIST". Writes
benchmarks/results/simvae_mnist.json or simvae_fashion_mnist.json. Needs the data in the
folder named by the environment variable PROBSSL_DATA.

Takes 70 minutes of one CPU core, and 36 for each seed of the longest fits;
Fashion-MNIST, eleven.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024), for the
    crops
    https://arxiv.org/abs/2402.01399
"""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import report
import torch
from joblib import Parallel, delayed
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import probssl as ps
from probssl.priors import ContentStyle, Gaussian, Independent, Prior

CHOSEN_ON = "validation"
SEEDS, DIM, HIDDEN, SCALE = 3, 10, (256, 256), 0.15
VIEWS_PER_STEP, LEARNING_RATE = 480, 2e-3
PAIRS, PARTICLES = 1_000, 5
SHOWN = {  # columns of the tables, and their digits
    "validation: linear": 3,
    "test: linear": 3,
    "test: few labels": 3,
    "test: 5-NN": 3,
    "test: bound of pairs": 1,
}

Build = Callable[[tuple[int, ...], int], nn.Module]


def generative(prior: Callable[[], Prior], guide: Any = None) -> Build:
    """SimVAE; binary images have a Bernoulli likelihood, grey ones a normal."""

    def build(shape: tuple[int, ...], levels: int) -> nn.Module:
        made = prior()
        likelihoods = ps.likelihoods
        joint = ps.Joint(
            made,
            likelihoods.Bernoulli() if levels == 1 else likelihoods.Gaussian(0.3),
            ps.nn.MLPEncoder(shape, made.known_dim(), HIDDEN),
            ps.nn.MLPDecoder(made.known_dim(), shape, HIDDEN),
            **({} if guide is None else {"guide": guide}),
        )
        return ps.limits.SimVAE(joint)

    return build


def simclr(temperature: float) -> Build:
    def build(shape: tuple[int, ...], levels: int) -> nn.Module:
        encoder = ps.nn.MLPEncoder(shape, DIM, HIDDEN)
        return ps.limits.SimCLR(encoder, temperature=temperature)

    return build


def split(content: int, scale: float = SCALE) -> Callable[[], Prior]:
    return lambda: ContentStyle(content, DIM - content, scale)


METHODS: dict[str, tuple[Build, int]] = {  # and the number of views
    "VAE": (generative(lambda: Independent(DIM)), 1),
    "SimCLR, τ = 0.5": (simclr(0.5), 2),
    "SimCLR, τ = 1": (simclr(1.0), 2),
    "SimVAE": (generative(lambda: Gaussian(DIM, SCALE)), 2),
    "SimVAE, Coupled": (generative(lambda: Gaussian(DIM, SCALE), ps.guides.Coupled), 2),
    "SimVAE, 6 + 4": (generative(split(6)), 2),
    "SimVAE, 6 + 4, Coupled": (generative(split(6), ps.guides.Coupled), 2),
    "SimVAE, 6 + 4, Coupled, six views": (generative(split(6), ps.guides.Coupled), 6),
    "SimVAE, 6 + 4, Coupled, scale 0.39": (
        generative(split(6, 0.15**0.5), ps.guides.Coupled),
        2,
    ),
}
LEVELS = {"mnist": 1, "fashion-mnist": 255}
LONG = ("VAE", "SimCLR, τ = 1", "SimVAE", "SimVAE, 6 + 4, Coupled")
LONGEST = ("SimVAE, 6 + 4, Coupled", "VAE", "SimCLR, τ = 1")
# What is fitted: kind of views, how often each image is seen, and methods.
RUNS: dict[str, tuple[tuple[str, int, tuple[str, ...]], ...]] = {
    "mnist": (
        ("affine", 24, tuple(METHODS)),
        ("crops", 24, tuple(METHODS)[:-1]),
        ("affine", 96, LONG),
        ("affine", 384, LONGEST),
    ),
    "fashion-mnist": (("affine", 48, tuple(METHODS)),),
}


def sampler(kind: str, views: int, levels: int) -> nn.Module:
    if kind == "crops":
        return ps.views.simvae_mnist(views=views, levels=levels)
    return ps.views.Augment(views=views, levels=levels)


@torch.no_grad()
def measured(
    objective: nn.Module, found: dict[str, ps.data.Split], views: nn.Module
) -> dict[str, float]:
    """Scores of z of validation and test images, and the bound of pairs of views."""
    figures: dict[str, float] = {}
    z = {name: ps.embed(objective, part) for name, part in found.items()}
    for name in ("validation", "test"):
        known = z["train"], found["train"].labels, z[name], found[name].labels
        few = ps.evaluation.few_label_probe(*known)
        figures |= {
            f"{name}: linear": ps.evaluation.linear_probe(*known),
            f"{name}: few labels": few.mean,
            f"{name}: 5-NN": ps.evaluation.knn(*known),
        }
        joint = getattr(objective, "joint", None)
        if joint is not None and not joint.likelihood.pseudo:
            torch.manual_seed(0)
            pairs = ps.Batch(views(found[name].images[:PAIRS]))
            terms = ps.bounds.ELBO(PARTICLES)(joint, pairs)
            figures[f"{name}: bound of pairs"] = float(sum(terms))
    return figures


def cell(
    name: str,
    kind: str,
    passes: int,
    method: str,
    seed: int,
    folder: Path,
    methods: dict[str, tuple[Build, int]] = METHODS,
    **data: Any,
) -> dict[str, Any]:
    """Fit one method with one seed, unless its folder is there; return its figures."""
    saved = folder / f"{method}, {kind}, {passes} passes, seed {seed}"
    if (notes := report.kept(saved)) is not None:
        return notes
    began, levels = time.process_time(), LEVELS[name]
    found = report.parts(data.get("data") or ps.data.load(name), levels=levels)
    build, views = methods[method]
    torch.manual_seed(seed)
    objective = build(tuple(found["train"].images.shape[1:]), levels)
    batch = min(VIEWS_PER_STEP // views, len(found["train"]))
    epochs = passes // views
    steps = epochs * (len(found["train"]) // batch)
    ps.fit(
        objective,
        found["train"],
        views=sampler(kind, views, levels),
        epochs=epochs,
        batch_size=batch,
        learning_rate=LEARNING_RATE,
        scheduler=lambda o: CosineAnnealingLR(o, steps),
        progress=False,
    )
    row: dict[str, Any] = {"method": method, "views": kind, "seed": seed}
    row |= {"passes": passes, **measured(objective, found, sampler(kind, 2, levels))}
    row["CPU seconds"] = round(time.process_time() - began)
    ps.save(objective, saved, **row)
    return row


def main(
    name: str = "mnist",
    seeds: int = SEEDS,
    jobs: int = -1,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
    **data: Any,
) -> list[dict[str, Any]]:
    """Return the scores of every kind of views, number of passes, method and seed.

    Rows that the report has are kept.
    """
    stem = f"simvae_{name}".replace("-", "_")
    path = results / f"{stem}.json"
    cells = [
        (kind, passes, method, seed)
        for kind, passes, methods in RUNS[name]
        for method, seed in product(methods, range(seeds))
    ]
    rows = {
        (row["views"], row["passes"], row["method"], row["seed"]): row
        for row in report.known(path)
    }
    new = [each for each in cells if each not in rows]
    work = (delayed(cell)(name, *each, runs / stem, **data) for each in new)
    found = Parallel(jobs, return_as="generator")(work)
    for each, row in zip(new, tqdm(found, total=len(new), unit="fit"), strict=True):
        rows[each] = row
        report.write(path, "simvae_mnist.py", data=name, rows=[*rows.values()])
    return [rows[each] for each in cells]


def tables(rows: list[dict[str, Any]]) -> str:
    """A table for each kind of views and number of passes, in Markdown."""
    parts = []
    for kind, passes in dict.fromkeys((row["views"], row["passes"]) for row in rows):
        here = [r for r in rows if (r["views"], r["passes"]) == (kind, passes)]
        parts.append(f"Views: {kind}; each image is seen {passes} times.")
        vae = {r["seed"]: r["test: 5-NN"] for r in here if r["method"] == "VAE"}
        lines = []
        for method in dict.fromkeys(row["method"] for row in here):
            own = [row for row in here if row["method"] == method]
            values = {c: [r[c] for r in own if c in r] for c in SHOWN}
            cells = [report.spread(values[c], d) for c, d in SHOWN.items()]
            above = report.gain(values["test: 5-NN"], [vae[r["seed"]] for r in own])
            lines.append([method, *cells, "–" if method == "VAE" else above])
        head = ["method", *SHOWN, "5-NN above the VAE"]
        parts.append(report.markdown(head, lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("data", nargs="?", default="mnist", choices=LEVELS)
    parser.add_argument("--jobs", type=int, default=-1, help="fits at a time")
    options = parser.parse_args()
    if options.tables:
        path = report.RESULTS / f"simvae_{options.data}.json".replace("-", "_")
        print(tables(report.read(path)))
    else:
        main(options.data, results=options.out, jobs=options.jobs)
