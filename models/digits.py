"""All methods and three baselines on scikit-learn's digits, five seeds.

SimVAE is the distribution as it stands, on the plane or the sphere. The VAE drops the
content, autoencoders drop the density of z, and all others drop the decoder and
estimate the entropy of z instead. Images, data augmentation (small rotations, scalings
and shifts) and the 10 dimensions of z are the same for all.

Prints the means and standard deviations of README.md and docs/results.md, "Digits", and
writes them, with hardware and versions, to benchmarks/results/digits.json. The gain of
the few-label probe over PCA has a standard error over seeds: in each seed all methods
get the same labels. `--tables` prints the tables in Markdown.

Methods have the settings of `probssl.recipes`, chosen on validation images by
`--choose`: every method with hyper-parameters is fitted to four fifths of the training
images with its settings of version 0.1.0 and with others, one number changed at a time,
and z of the last fifth is scored by the mean of linear probe and few-label probe; each
seed holds another fifth out. A setting is changed where another is better by more than
two standard errors over three seeds. No test image is seen. Results:
benchmarks/results/digits_choices.json.

Every fit is kept, so that a run that was stopped goes on.
Takes five minutes of one CPU core for each seed; `--choose`, twenty.
"""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import report
import torch
from joblib import Parallel, delayed
from report import Row
from torch import nn

import probssl as ps
from probssl import limits, recipes
from probssl.views import Affine, Augment, Noise

CHOSEN_ON = "validation"
METHODS = tuple(recipes.METHODS)
SEEDS, EPOCHS, DIM = 5, 150, 10
FOLDS, CHOICE_SEEDS, CHOICE_EPOCHS = 5, 3, 50
RESULTS = report.RESULTS / "digits.json"
CHOICES = report.RESULTS / "digits_choices.json"

TITLES = {
    "linear_probe": "linear probe",
    "few_label_probe": "few-label probe",
    "few_label_gain": "gain over PCA-10",
    "knn": "5-NN",
    "cluster_accuracy": "clusters",
    "effective_rank": "effective rank",
    "log_det": "Gaussian + log-det",
    "gaussian_kernel": "Gaussian + KDE",
    "gaussian_nearest": "Gaussian + neighbours",
    "spherical_kernel": "sphere + KDE",
    "info_nce": "I(z; z′), InfoNCE",
    "gaussian_information": "I(z; z′), Gaussian",
    "decoded": "log p(x given z)",
}
SCORES = dict.fromkeys(list(TITLES)[:5], ".3f") | {"effective_rank": ".1f"}
SCORES["few_label_gain"] = "+.3f"
MATRIX = dict.fromkeys(list(TITLES)[6:], ".1f")

Figures = dict[str, dict[str, float]]


def embedding(limit: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A builder of an objective without a decoder, with or without a projector."""

    def build(
        data: ps.data.Dataset, projector: bool = False, **options: Any
    ) -> nn.Module:
        encoder = recipes.encoder(data, DIM)
        head = ps.nn.Projector(DIM, width=256, out=64) if projector else None
        return limit(encoder, projector=head, **options)

    return build


def beta_vae(data: ps.data.Dataset, beta: float) -> nn.Module:
    return limits.VAE(recipes.joint(data, ps.priors.Independent(DIM)), beta=beta)


def simvae(
    data: ps.data.Dataset, content: int, scale: float, guide: str
) -> limits.SimVAE:
    """SimVAE with so many content dimensions; the others are the style's."""
    prior: ps.priors.Prior = ps.priors.Gaussian(DIM, scale)
    if content < DIM:
        prior = ps.priors.ContentStyle(content, DIM - content, scale)
    return limits.SimVAE(recipes.joint(data, prior, getattr(ps.guides, guide)))


def spherical(data: ps.data.Dataset, concentration: float) -> limits.SimVAE:
    prior = ps.priors.Spherical(DIM, concentration)
    return limits.SimVAE(recipes.joint(data, prior, ps.guides.PowerSpherical))


def instances(data: ps.data.Dataset, **options: Any) -> nn.Module:
    limit = embedding(limits.InstanceDiscrimination)
    return limit(data, items=len(data.train), **options)


def neighbours(data: ps.data.Dataset, perplexity: float, projector: bool) -> nn.Module:
    affinity = ps.affinities.Perplexity(perplexity, symmetric=True)
    return embedding(limits.TSNE)(data, projector, affinity=affinity)


def clusters(
    data: ps.data.Dataset, components: int, concentration: float
) -> limits.DeepClustering:
    return limits.DeepClustering(
        recipes.encoder(data, DIM),
        components,
        len(data.train),
        prior=ps.priors.Spherical(None, concentration),
    )


def denoising(data: ps.data.Dataset, noise: float) -> limits.DenoisingAutoencoder:
    networks = recipes.encoder(data, DIM), recipes.decoder(data, DIM)
    more = Noise(noise) if noise else None  # beside the data augmentation
    return limits.DenoisingAutoencoder(*networks, recipes.likelihood(data), noise=more)


def masked(data: ps.data.Dataset, share: float, patch: int) -> limits.MaskedAutoencoder:
    networks = recipes.encoder(data, DIM), recipes.decoder(data, DIM)
    return limits.MaskedAutoencoder(
        *networks, recipes.likelihood(data), share=share, patch=patch
    )


def dsa(data: ps.data.Dataset, **options: Any) -> limits.DSA:
    return limits.DSA(recipes.objective("SimCLR", data, DIM), **options)


def pid(data: ps.data.Dataset, components: int, weight: float) -> limits.PID:
    base, items = recipes.objective("SimCLR", data, DIM), len(data.train)
    return limits.PID(base, components, items, weight=weight)


# Settings of version 0.1.0, which had been chosen on test images.
BEFORE: dict[str, Row] = {
    "data augmentation": {"size": 1.0},
    "BetaVAE": {"beta": 4.0},
    "SimVAE": {"content": 10, "scale": 0.15, "guide": "DiagonalGaussian"},
    "SphericalSimVAE": {"concentration": 50.0},
    "SimCLR": {"temperature": 1.0, "projector": False},
    "InfoNCE": {"temperature": 1.0, "projector": False},
    "MoCo": {"temperature": 1.0, "projector": False, "queue": 1024},
    "InstanceDiscrimination": {"temperature": 1.0, "projector": False},
    "TSimCLR": {"temperature": 1.0, "projector": True},
    "TSNE": {"perplexity": 30.0, "projector": False},
    "LogDet": {"projector": False},
    "VICReg": {"covariance": 1.0, "projector": True},
    "BarlowTwins": {"redundancy": 0.005, "projector": True},
    "WMSE": {"normalise": True, "projector": False},
    "BYOL": {"momentum": 0.99, "projector": True},
    "SimSiam": {"projector": True},
    "SwAV": {"components": 100, "projector": False},
    "DeepClustering": {"components": 200, "concentration": 2.0},
    "DINO": {"components": 100, "projector": True},
    "DenoisingAutoencoder": {"noise": 0.0},
    "MaskedAutoencoder": {"share": 0.5, "patch": 1},
    "DSA": {"neighbours": 20, "weight": 1.0},
    "PID": {"components": 20, "weight": 0.1},
}


def one_by_one(**values: tuple[Any, ...]) -> list[Row]:
    """Changes of one number at a time."""
    return [{name: value} for name, some in values.items() for value in some]


# What is tried beside them. SimVAE has all combinations.
GRIDS: dict[str, tuple[Callable[..., nn.Module], list[Row]]] = {
    "BetaVAE": (beta_vae, one_by_one(beta=(1.5, 2.0, 8.0))),
    "SimVAE": (
        simvae,
        [
            {"content": content, "scale": scale, "guide": guide}
            for content in (10, 6)
            for scale in (0.05, 0.15, 0.3)
            for guide in ("DiagonalGaussian", "Coupled")
        ],
    ),
    "SphericalSimVAE": (spherical, one_by_one(concentration=(10.0, 25.0, 100.0))),
    "SimCLR": (
        embedding(limits.SimCLR),
        one_by_one(temperature=(0.5, 2.0), projector=(True,)),
    ),
    "InfoNCE": (
        embedding(limits.CLIP),
        one_by_one(temperature=(0.5, 2.0), projector=(True,)),
    ),
    "MoCo": (
        embedding(limits.MoCo),
        one_by_one(temperature=(0.5, 2.0), projector=(True,)),
    ),
    "InstanceDiscrimination": (
        instances,
        one_by_one(temperature=(0.5, 2.0), projector=(True,)),
    ),
    "TSimCLR": (
        embedding(limits.TSimCLR),
        one_by_one(temperature=(0.25, 8.0), projector=(False,)),
    ),
    "TSNE": (neighbours, one_by_one(perplexity=(10.0, 60.0), projector=(True,))),
    "LogDet": (embedding(limits.LogDet), one_by_one(projector=(True,))),
    "VICReg": (
        embedding(limits.VICReg),
        one_by_one(covariance=(5.0, 25.0), projector=(False,)),
    ),
    "BarlowTwins": (
        embedding(limits.BarlowTwins),
        one_by_one(redundancy=(0.02, 0.1), projector=(False,)),
    ),
    "WMSE": (
        embedding(limits.WMSE),
        one_by_one(normalise=(False,), projector=(True,)),
    ),
    "BYOL": (
        embedding(limits.BYOL),
        one_by_one(momentum=(0.9, 0.996), projector=(False,)),
    ),
    "SimSiam": (embedding(limits.SimSiam), one_by_one(projector=(False,))),
    "SwAV": (
        embedding(limits.SwAV),
        one_by_one(components=(30, 300), projector=(True,)),
    ),
    "DeepClustering": (
        clusters,
        one_by_one(components=(50,), concentration=(5.0, 10.0)),
    ),
    "DINO": (
        embedding(limits.DINO),
        one_by_one(components=(30, 300), projector=(False,)),
    ),
    "DenoisingAutoencoder": (denoising, one_by_one(noise=(0.05, 0.1, 0.3))),
    "MaskedAutoencoder": (masked, one_by_one(share=(0.25, 0.75), patch=(2,))),
    "DSA": (dsa, one_by_one(neighbours=(5, 50), weight=(0.3,))),
    "PID": (pid, one_by_one(components=(10, 50), weight=(0.3,))),
}
SIZES = (0.5, 1.0, 1.5, 2.0)  # of the data augmentation, the same for all methods
SHOW_SIZES = ("SimVAE", "SimCLR", "VICReg", "DenoisingAutoencoder")


def augmented(data: ps.data.Dataset, size: float) -> Augment:
    """The data augmentation `views.digits`, smaller or larger."""
    affine = Affine(
        rotate=10 * size, scale=(1 - 0.1 * size, 1 + 0.1 * size), shift=0.06 * size
    )
    return Augment(affine, levels=data.levels)


def held_out(data: ps.data.Dataset, seed: int) -> ps.data.Dataset:
    """The training images, the fifth of this seed in place of the test images."""
    n = len(data.train)
    end = n - seed * (n // FOLDS)
    out = torch.zeros(n, dtype=torch.bool)
    out[end - n // FOLDS : end] = True
    return data._replace(train=data.train.rows(~out), test=data.train.rows(out))


def cells(methods: tuple[str, ...], seeds: int) -> list[Row]:
    """What is fitted: for the data augmentation some methods, as their recipes are."""
    found: list[Row] = []
    if "data augmentation" in methods:
        found += [
            {"choice": "data augmentation", "setting": {"size": size}, "method": method}
            for size, method in product(SIZES, SHOW_SIZES)
        ]
    for method in (name for name in GRIDS if name in methods):
        settings = [BEFORE[method]]
        for change in GRIDS[method][1]:
            if (setting := BEFORE[method] | change) not in settings:
                settings.append(setting)
        found += [{"choice": method, "setting": s, "method": method} for s in settings]
    return [cell | {"seed": seed} for cell in found for seed in range(seeds)]


def scored(cell: Row, epochs: int) -> Row:
    """The scores of z of the images that are held out, of a setting and a seed."""
    began, data = time.process_time(), held_out(ps.data.digits(), cell["seed"])
    torch.manual_seed(cell["seed"])
    if cell["choice"] == "data augmentation":
        objective = recipes.objective(cell["method"], data, DIM)
        views = augmented(data, **cell["setting"])
    else:
        objective = GRIDS[cell["method"]][0](data, **cell["setting"])
        views = recipes.views(data)
    recipes.fit(objective, data, views=views, epochs=epochs, progress=False)
    z, there = ps.embed(objective, data.train), ps.embed(objective, data.test)
    known = z, data.train.labels, there, data.test.labels
    linear = ps.evaluation.linear_probe(*known)
    few = ps.evaluation.few_label_probe(*known, seed=cell["seed"]).mean
    seconds = round(time.process_time() - began, 1)
    found = {"linear": linear, "few labels": few, "score": (linear + few) / 2}
    return found | {"CPU seconds": seconds}


def choose(
    methods: tuple[str, ...] = tuple(BEFORE),
    seeds: int = CHOICE_SEEDS,
    epochs: int = CHOICE_EPOCHS,
    results: Path = CHOICES,
) -> list[Row]:
    """Return the scores of all settings of these methods; the file keeps them all."""
    script = "digits.py --choose"
    fit = partial(scored, epochs=epochs)
    report.collected(results, script, cells(methods, seeds), fit, epochs=epochs)
    rows = report.known(results, epochs=epochs)
    return [row for row in rows if row["choice"] in methods]


def of(rows: list[Row], choice: str) -> list[Row]:
    """The rows of one choice."""
    return [row for row in rows if row["choice"] == choice]


def chosen(rows: list[Row], choice: str) -> Row:
    """The setting that validation images choose, by default that of 0.1.0."""
    return report.chosen(of(rows, choice), BEFORE[choice])


def choices(rows: list[Row]) -> str:
    """The settings with their scores, in Markdown."""
    columns = ["method", "setting", "score", "others", "the best of them", "its gain"]
    lines = []
    for choice, old in BEFORE.items():
        if own := of(rows, choice):
            others = report.gains(own, old)
            score = next(mean(each) for some, each in report.scores(own) if some == old)
            best, gain, error = others[0]
            cells = [choice, _named(old), f"{score:.3f}", str(len(others))]
            lines.append([*cells, _named(best), f"{gain:+.3f} ± {error:.3f}"])
    return report.markdown(columns, lines)


def _named(setting: Row) -> str:
    """A setting in words, without what is the same in the whole grid."""
    words = []
    for key, value in setting.items():
        if key == "projector":
            words.append("projector" if value else "no projector")
        elif key == "guide":
            words.append(f"`{value}`")
        elif key == "content":
            words.append(f"{value} + {DIM - value}" if value < DIM else "Gaussian")
        elif key == "normalise":
            words.append("normalised" if value else "not normalised")
        elif key != "queue":
            words.append(f"{key} {value:g}")
    return ", ".join(words)


def one_seed(seed: int, epochs: int, methods: tuple[str, ...], runs: Path) -> Figures:
    """Fit every method with this seed, unless its folder is there, and measure all."""
    digits = ps.data.digits()
    views, fitted, seconds = recipes.views(digits), {}, {}
    for name in methods:
        saved = runs / f"{name}, {epochs} epochs, seed {seed}"
        if report.kept(saved) is None:
            torch.manual_seed(seed)
            objective, began = recipes.objective(name, digits, DIM), time.process_time()
            recipes.fit(objective, digits, views=views, epochs=epochs, progress=False)
            ps.save(objective, saved, seconds=time.process_time() - began)
        notes = report.kept(saved) or {}
        fitted[name], seconds[name] = ps.load(saved), notes["seconds"]
    found = ps.compare(
        fitted, digits, views=views, seconds=seconds, seed=seed, progress=False
    )
    tables = (found.matrix.T.to_dict(), found.table.T.to_dict())
    return {
        row: {k: v for k, v in (tables[0][row] | tables[1][row]).items() if v == v}
        for row in tables[0]
    }


def kept(results: Path, seeds: int, epochs: int) -> dict[str, dict[str, list[float]]]:
    """Earlier figures, if they have the same number of seeds and epochs."""
    if not results.is_file():
        return {}
    earlier = json.loads(results.read_text())
    same = (earlier["seeds"], earlier["epochs"]) == (seeds, epochs)
    return earlier["mean and sd"] if same else {}


def in_order(figures: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Methods in the order of recipes, then the baselines."""
    place = {name: i for i, name in enumerate(METHODS)}
    names = sorted(figures, key=lambda name: place.get(name, len(METHODS)))
    return {name: figures[name] for name in names}


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    methods: tuple[str, ...] = METHODS,
    jobs: int = -1,
    results: Path = RESULTS,
    runs: Path = report.ROOT / "runs" / "digits",
) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard deviation over the seeds of every figure.

    Of other methods the figures that are there are kept, for as many seeds and epochs.
    """
    work = (delayed(one_seed)(seed, epochs, methods, runs) for seed in range(seeds))
    found = Parallel(jobs)(work)
    figures: dict[str, dict[str, list[float]]] = {}
    for row in found[0]:
        figures[row] = {}
        for name in found[0][row]:
            values = [each[row][name] for each in found if name in each[row]]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            if name == "few_label_gain":
                deviation /= np.sqrt(len(values))  # its standard error
            figures[row][name] = [float(np.mean(values)), deviation]
    figures = in_order(kept(results, seeds, epochs) | figures)
    content = {"seeds": seeds, "epochs": epochs, "dim": DIM, "mean and sd": figures}
    report.write(results, "digits.py", **content)
    return figures


def table(figures: dict[str, dict[str, list[float]]], columns: dict[str, str]) -> str:
    """The methods with these columns and their formats, in Markdown."""
    lines = []
    for name, row in figures.items():
        cells = [name]
        for column, form in columns.items():
            m, s = row.get(column, (math.nan, math.nan))
            cells.append(f"{m:{form}} ± {s:{form.lstrip('+')}}" if m == m else "–")
        lines.append(cells)
    return report.markdown(["method", *map(TITLES.__getitem__, columns)], lines)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    text = "fit settings of these methods on the training images, by default of all"
    parser.add_argument("--choose", nargs="*", metavar="METHOD", help=text)
    parser.add_argument("--seed", type=int, help="fit with this seed alone")
    options = parser.parse_args()
    if options.tables:
        figures = json.loads(RESULTS.read_text())["mean and sd"]
        print(table(figures, SCORES), table(figures, MATRIX), sep="\n\n")
        print(choices(report.read(CHOICES)))
    elif options.choose is not None:
        choose(tuple(options.choose or BEFORE), results=options.out / CHOICES.name)
    elif options.seed is not None:
        one_seed(options.seed, EPOCHS, METHODS, report.ROOT / "runs" / "digits")
    else:
        main(results=options.out / RESULTS.name)
