"""How much style and how much content does z hold? VAE, SimVAE, SimCLR, VICReg, BYOL.

Bizeul et al. (2024) say that at comparable content z of SimVAE holds more style than z
of SimCLR, VICReg and BYOL. Here all have one encoder, z of 10 dimensions and the same
views, and see as many images: the 10,000 binary training images of MNIST that
models/limits_mnist.py fits, for 12 epochs as there, and 10,000 shapes of
`probssl.data.factors`. Methods and hyper-parameters are those of `recipes`; "SimVAE,
Coupled" has the guide `guides.Coupled` in the place of the factorised one.

- Content is the digit or the shape: linear probe and 5-NN on test images.
- Style is what the pixels measure (`evaluation.strokes`): size, slant and thickness of
  test images as they are, and the position of moved ones, since MNIST's digits are
  centred; for shapes, the factors that drew them. The score is R², by a linear probe
  and by 5-NN regression, within a digit or shape and then the mean over these: what is
  predicted from content alone has 0.
- The writer is another style: 100 writers with 100 training images each that no encoder
  saw, half of which fit the probes and half of which are scored.

For shapes there are also MIG, SAP, DCI, and MCC before and after FastICA. Nothing was
chosen on these data.

On MNIST the claim holds for SimCLR and VICReg, which lose the position, and for BYOL by
5-NN alone; VICReg and BYOL hold more of the thickness, and a VAE as much style.

Results: docs/results.md, "Style beside content". ``--tables`` prints the tables. Writes
benchmarks/results/style_plane.json, and draws the plane of both to style_plane.png
beside it. Fits are kept in runs/, where those of models/limits_mnist.py serve as well,
and rows in the report, so that a run that was stopped goes on. Needs MNIST with its
writers in the folder named by the environment variable PROBSSL_DATA.

Takes ten minutes of one CPU core.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from warnings import catch_warnings, simplefilter

import numpy as np
import report
import torch
from limits_mnist import EPOCHS, IMAGES, place
from report import Row
from simvae_mnist import DIM, SEEDS
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsRegressor
from torch import nn

import probssl as ps
from probssl import evaluation, recipes
from probssl.plots.style import blank, clean

CHOSEN_ON = "nothing"
SHAPES, SHAPES_TEST = 10_000, 5_000
WRITERS, OF_EACH, NEIGHBOURS = 100, 100, 5
COUPLED, PCA, UNTRAINED = "SimVAE, Coupled", f"PCA-{DIM}", "untrained encoder"
SIMVAES = ("SimVAE", COUPLED, "SphericalSimVAE")
OTHERS = ("SimCLR", "VICReg", "BYOL")
METHODS = ("VAE", *SIMVAES, *OTHERS, PCA, UNTRAINED)
PROBES = ("linear", "5-NN")
STYLE = {  # the columns of each set's style
    "mnist": ("position", "size", "slant", "thickness"),
    "factors": ps.data.simulators.FACTORS,
}
ALONE = ("MIG", "SAP", "DCI: disentanglement", "DCI: completeness")
ALONE += ("DCI: informativeness", "MCC", "MCC after ICA")
MARKS = ("o", "D", "s", "^", "v", "P", "X", "*")
COLOURS = ("#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00")
COLOURS += ("#CC79A7", "#999999")

Sets = Mapping[str, ps.data.Dataset]


def shapes() -> ps.data.Dataset:
    """Shapes with their factors, the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        train, test = ps.data.factors(SHAPES), ps.data.factors(SHAPES_TEST)
    return ps.data.Dataset(train, test, None, "factors")


def fitted(method: str, data: ps.data.Dataset, epochs: int) -> nn.Module:
    """The objective with its defaults; PCA and the untrained encoder see no views."""
    if method == PCA:
        return ps.limits.PrincipalComponents.of(data.train.images, DIM)
    if method == UNTRAINED:
        return recipes.encoder(data, DIM)
    if method == COUPLED:
        prior = ps.priors.Gaussian(DIM, recipes.SCALE)
        joint = recipes.joint(data, prior, ps.guides.Coupled)
        objective: nn.Module = ps.limits.SimVAE(joint)
    else:
        objective = recipes.objective(method, data, DIM)
    views = recipes.views(data)
    recipes.fit(objective, data, views=views, epochs=epochs, progress=False)
    return objective


def handwriting(data: ps.data.Dataset) -> Sets:
    """Digits with what is asked of them: "still", "moved" and "writers".

    "still" and "moved" have the training images that encoders see, and the test images,
    with their style: as they are with size, slant and thickness, and one view of each
    with its position. "writers" has other training images, labelled with the writer.
    """
    drawn = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train), generator=drawn)  # that of `Split.take`
    seen, rest = (data.train.rows(part) for part in order.tensor_split([IMAGES]))
    views, asked = recipes.views(data), (seen, data.test)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = [with_position(part, views) for part in asked]
    return {
        "still": data._replace(train=with_strokes(seen), test=with_strokes(data.test)),
        "moved": data._replace(train=moved[0], test=moved[1]),
        "writers": by_writer(data, rest),
    }


def with_strokes(part: ps.data.Split) -> ps.data.Split:
    found = evaluation.strokes(part.images)
    style = np.stack([found.size, found.slant, found.thickness], 1)
    return part._replace(style=torch.as_tensor(style))


def with_position(part: ps.data.Split, views: nn.Module) -> ps.data.Split:
    images = torch.as_tensor(part.images)
    images = images / 255 if images.dtype == torch.uint8 else images
    view = views(images)[:, 0]
    found = evaluation.strokes(view)
    place = torch.as_tensor(np.stack([found.x, found.y], 1))
    return part._replace(images=view, style=place)


def by_writer(data: ps.data.Dataset, rest: ps.data.Split) -> ps.data.Dataset:
    """As many images of each of the writers with most, half of them for the probes."""
    names, counts = rest.style.unique(return_counts=True)
    often = names[counts.argsort(descending=True, stable=True)[:WRITERS]]
    rows = torch.stack([(rest.style == name).nonzero()[:OF_EACH, 0] for name in often])
    train, test = (rest.rows(half.flatten()) for half in rows.chunk(2, 1))
    return data._replace(
        train=train._replace(labels=train.style), test=test._replace(labels=test.style)
    )


def accuracies(objective: nn.Module, data: ps.data.Dataset) -> list[float]:
    """The accuracy of the linear probe and of 5-NN."""
    z, z_test = ps.embed(objective, data.train), ps.embed(objective, data.test)
    known = z, data.train.labels, z_test, data.test.labels
    return [evaluation.linear_probe(*known), evaluation.knn(*known)]


def within(objective: nn.Module, data: ps.data.Dataset) -> np.ndarray:
    """R² of each style factor within a class, a mean over classes: (probe, factor)."""
    parts = [(ps.embed(objective, part), part) for part in (data.train, data.test)]
    found = []
    for name in data.train.labels.unique():
        (z, s), (z_test, s_test) = (
            (z[part.labels == name], part.style[part.labels == name].double())
            for z, part in parts
        )
        near = KNeighborsRegressor(NEIGHBOURS).fit(z, s).predict(z_test)
        square = (s_test - torch.as_tensor(near)).square().sum(0)
        whole = (s_test - s_test.mean(0)).square().sum(0)
        found.append(
            [
                evaluation.style_probe(z, s, z_test, s_test),
                (1 - square / whole).tolist(),
            ]
        )
    return np.mean(found, 0)


def disentangled(objective: nn.Module, data: ps.data.Dataset) -> Row:
    """Whether each style factor has a dimension of z for itself."""
    z, z_test = ps.embed(objective, data.train), ps.embed(objective, data.test)
    s, s_test = data.train.style, data.test.style
    apart = evaluation.dci(z, s, z_test, s_test)
    with catch_warnings(record=True) as caught:
        simplefilter("always", ConvergenceWarning)
        rotated = evaluation.mcc(z_test, s_test, ica=True)
    found = (
        evaluation.mig(z_test, s_test),
        evaluation.sap(z_test, s_test),
        apart.disentanglement,
        apart.completeness,
        mean(apart.informativeness),
        evaluation.mcc(z_test, s_test),
        rotated,
    )
    converged = not any(w.category is ConvergenceWarning for w in caught)
    return dict(zip(ALONE, found, strict=True)) | {"ICA converged": converged}


def measured(objective: nn.Module, name: str, parts: Sets) -> Row:
    """All scores of a fitted encoder on a set, from 0 to 1, or below 0 for R²."""
    still = parts["still"]
    figures = {"content": accuracies(objective, still)}
    style = within(objective, still)
    if name == "mnist":
        figures["writer"] = accuracies(objective, parts["writers"])
        place = within(objective, parts["moved"]).mean(1, keepdims=True)
        style = np.concatenate([place, style], 1)
    figures |= dict(zip(STYLE[name], style.T.tolist(), strict=True))
    figures["style"] = style.mean(1).tolist()
    row: Row = {
        f"{figure}: {probe}": value
        for figure, values in figures.items()
        for probe, value in zip(PROBES, values, strict=True)
    }
    return row | (disentangled(objective, still) if name == "factors" else {})


def main(
    methods: Mapping[str, Sequence[str]] | None = None,
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    sets: Sets | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[Row]:
    """Return the scores of each set, method and seed, and draw them.

    Arguments:
        methods: Those of each set; None takes all.
    """
    if sets is None:
        sets = {"mnist": ps.data.load("mnist"), "factors": shapes()}
    parts = {
        name: handwriting(data) if name == "mnist" else {"still": data}
        for name, data in sets.items()
    }

    def fit(cell: Row) -> Row:
        name, method, seed = cell.values()
        own = runs / "style_plane" / f"{name}, {method}, {epochs} epochs, seed {seed}"
        kept = [own, *[place(runs, method, epochs, seed)] * (name == "mnist")]
        if found := [folder for folder in kept if folder.is_dir()]:
            return measured(ps.load(found[0]), name, parts[name])
        torch.manual_seed(seed)
        objective = fitted(method, parts[name]["still"], epochs)
        ps.save(objective, own)
        return measured(objective, name, parts[name])

    cells = [
        {"data": name, "method": method, "seed": seed}
        for name, seed in product(sets, range(seeds))
        for method in (METHODS if methods is None else methods[name])
    ]
    path = results / "style_plane.json"
    rows = report.collected(path, "style_plane.py", cells, fit, epochs=epochs)
    draw(rows, path.with_suffix(".png"))
    return rows


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Scores, single factors, disentanglement and paired gains, in Markdown."""
    found = {}
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        both = ["content", *["writer"] * (name == "mnist"), "style"]
        columns = [f"{figure}: {probe}" for figure in both for probe in PROBES]
        single = [f"{figure}: {probe}" for probe in PROBES for figure in STYLE[name]]
        found[f"{name}: scores"] = _scores(own, columns)
        found[f"{name}: gains"] = _gains(own, columns)
        found[f"{name}: single factors"] = _scores(own, single)
        if name == "factors":
            found[f"{name}: disentanglement"] = _scores(own, ALONE)
    return found


def shown(rows: Sequence[Row]) -> str:
    """All tables under their names."""
    return "\n\n".join(f"{name}\n\n{table}" for name, table in tables(rows).items())


def _values(rows: Sequence[Row], method: str, column: str) -> list[float]:
    return [row[column] for row in rows if row["method"] == method]


def _scores(rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = [
        [method, *(report.spread(_values(rows, method, column)) for column in columns)]
        for method in dict.fromkeys(row["method"] for row in rows)
    ]
    return report.markdown(["method", *columns], lines)


def _gains(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Of each SimVAE over the others, paired by seeds."""
    known = {row["method"] for row in rows}
    lines = [
        [f"{ours} over {other}"]
        + [
            report.gain(_values(rows, ours, column), _values(rows, other, column))
            for column in columns
        ]
        for ours, other in product(SIMVAES, OTHERS)
        if {ours, other} <= known
    ]
    return report.markdown(["gain", *columns], lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw style over content: a panel for each kind and probe, a mark for each fit.

    The untrained encoder, which has little of either, is left out.
    """
    panels = [
        (name, score)
        for name in dict.fromkeys(row["data"] for row in rows)
        for score in ["style", *["writer"] * (name == "mnist")]
    ]
    figure = blank(1 + 2.6 * len(panels), 6)
    grid = figure.subplots(2, len(panels), squeeze=False)
    for axis, (probe, (name, score)) in zip(
        grid.flat, product(PROBES, panels), strict=True
    ):
        clean(axis)
        own = [row for row in rows if row["data"] == name]
        for method, mark, colour in zip(METHODS[:-1], MARKS, COLOURS, strict=True):
            x, y = (_values(own, method, f"{at}: {probe}") for at in ("content", score))
            axis.plot(x, y, mark, color=colour, label=method, ms=6, alpha=0.8, mew=0)
        axis.set_title(f"{name}: {score}, {probe}", fontsize=9)
    figure.supxlabel("accuracy of the content, by the same probe", fontsize=10)
    figure.supylabel("R² of the style, accuracy of the writer", fontsize=10)
    marks, texts = grid[0, 0].get_legend_handles_labels()
    figure.legend(marks, texts, loc="outside upper center", ncols=4, frameon=False)
    report.draw(path, figure, dpi=110)


if __name__ == "__main__":
    torch.set_num_threads(1)
    saved = report.RESULTS / "style_plane.json"
    report.command(__doc__, main, lambda: shown(report.read(saved)))
