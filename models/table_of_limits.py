"""The table of limits in figures: main rows, and three cells that no paper fills.

Objectives are places of one table: p(y), p(z|y), and what keeps z informative. Rows of
papers stand beside three empty cells, which are built from `limits.Embedding` alone, a
prior and an entropy:

- Student-t p(z|y) under a flat p(y), with nearest neighbours;
- a mixture p(y) of fixed random means, with the log-determinant. Were the means
  learned, the value would have no upper bound: z at the means, whatever their distance,
  keeps the log-density of the prior, while the log-determinant grows with it;
- von Mises-Fisher p(z|y), with a sketched divergence from the uniform distribution on
  the sphere. `entropies.Sketched` compares with a normal, and refuses a sphere. Here
  slices are compared with the projection law of the uniform distribution itself.

All have the same encoder, z of 10 dimensions, views (small rotations, scalings and
shifts) and number of steps: on scikit-learn's digits an MLP and 40 epochs, on 10,000
images of MNIST a convolutional network and 12 epochs. Linear probe and 5-NN are those
of test images. Terms are measured on their views, with unit weights, and not read off a
loss: Gaussian alignment at its maximum-likelihood scale, the log-determinant, and the
sum, which is invariant to the scale of z; and the same sum with nearest neighbours.

Papers' rows have the settings of `recipes`. Those of the empty cells are chosen by
`--choose` on validation images of digits, as in digits.py: a fifth of the training
images is held out, another one for each seed, and a first setting is exchanged for one
that is better by more than two standard errors. MNIST has the same settings. No test
image is seen.

Results: docs/results.md, "The table of limits". Writes
benchmarks/results/table_digits.json and table_mnist.json, with all fits and a row for
each objective, and table_choices.json. A fit that is there is not run again. Needs
MNIST in the folder named by the environment variable PROBSSL_DATA.

Takes three minutes of one CPU core on digits, 25 minutes on MNIST.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import report
import torch
from digits import held_out
from report import Row
from scipy.stats import beta
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

import probssl as ps
from probssl import limits, priors, recipes
from probssl.compare.terms import representation_terms
from probssl.entropies import LogDeterminant, NearestNeighbour
from probssl.runtime.interrupts import Interrupts

CHOSEN_ON = "validation"
DIM, SEEDS, IMAGES, PAIRS, SLICES = 10, 5, 10_000, 2_000, recipes.SLICES
EPOCHS = {"digits": 40, "mnist": 12}
CHOICE_SEEDS, CHOICE_EPOCHS = 3, 20
CHANNELS, CLUSTERS = (16, 32, 64), 20

Build = Callable[..., nn.Module]


def encoder(data: ps.data.Dataset) -> nn.Module:
    """An MLP for the smallest images, else a small convolutional network."""
    shape = tuple(data.train.images.shape[1:])
    if shape[-1] < 2 ** (len(CHANNELS) + 1):
        return ps.nn.MLPEncoder(shape, DIM)
    return ps.nn.ConvEncoder(shape, DIM, CHANNELS)


def decoder(data: ps.data.Dataset) -> nn.Module:
    """The mirror of `encoder`."""
    shape = tuple(data.train.images.shape[1:])
    if shape[-1] < 2 ** (len(CHANNELS) + 1):
        return ps.nn.MLPDecoder(DIM, shape)
    return ps.nn.ConvDecoder(DIM, shape, CHANNELS)


def head() -> nn.Module:
    """The projector of `recipes`."""
    return ps.nn.Projector(DIM, width=256, out=64)


def simvae(data: ps.data.Dataset) -> nn.Module:
    networks = recipes.likelihood(data), encoder(data), decoder(data)
    return limits.SimVAE(ps.Joint(priors.Gaussian(DIM, recipes.SCALE), *networks))


def student(data: ps.data.Dataset, dof: float) -> nn.Module:
    prior = priors.StudentT(DIM, dof=dof, y_scale=math.inf)
    return limits.Embedding(encoder(data), prior, NearestNeighbour())


def mixture(data: ps.data.Dataset, scale: float) -> nn.Module:
    means = priors.Components(DIM, CLUSTERS).requires_grad_(False)
    prior = priors.Mixture(DIM, means, scale)
    return limits.Embedding(encoder(data), prior, LogDeterminant())


def sphere(data: ps.data.Dataset, concentration: float) -> nn.Module:
    prior = priors.Spherical(DIM, concentration)
    return limits.Embedding(encoder(data), prior, to_uniform)


def to_uniform(z: Tensor, prior: priors.Prior) -> Tensor:
    r"""The entropy on the sphere: the log-area, less a divergence of random slices.

    A slice of the uniform distribution on :math:`S^{d-1}` has the law of 2 b − 1, b ~
    Beta((d − 1)/2, (d − 1)/2). With its quantiles q the divergence is

    .. math:: \hat D = \frac{d (d - 1)(d + 2)}{2 (d + 1)} \, E_a \frac1n \sum_j
        (u_{(j)} - q_j)^2, \qquad u = a^\top z

    which is :math:`\kappa^2 / 2 d`, the KL divergence, of a von Mises-Fisher
    distribution of small concentration κ: the transport from q moves a point u of a
    slice by :math:`\kappa a_1 (1 - u^2) / (d - 1)`.
    """
    items, _, dim = z.shape
    half = (dim - 1) / 2
    place = (torch.arange(items) + 0.5) / items
    law = torch.as_tensor(2 * beta(half, half).ppf(place.double().numpy()) - 1).to(z)
    directions = normalize(torch.randn(SLICES, dim).to(z), dim=-1)
    slices = (directions @ z.permute(1, 2, 0)).sort(-1).values
    weight = dim * (dim - 1) * (dim + 2) / (2 * (dim + 1))
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    return log_area - weight * (slices - law).square().mean()


PAPERS: dict[str, Build] = {
    "VICReg": lambda data: limits.VICReg(encoder(data), head()),
    "LeJEPA": lambda data: limits.LeJEPA(encoder(data), head(), slices=SLICES),
    "VISReg": lambda data: limits.VISReg(
        encoder(data), head(), weight=0.6, slices=SLICES
    ),
    "SimCLR": lambda data: limits.SimCLR(
        encoder(data), temperature=recipes.TEMPERATURE
    ),
    "LogDet": lambda data: limits.LogDet(encoder(data)),
    "SimVAE": simvae,
}
EMPTY: dict[str, tuple[Build, tuple[Row, ...]]] = {  # and the settings that are tried
    "Student-t, nearest neighbour": (
        student,
        ({"dof": 5.0}, {"dof": 2.0}, {"dof": 20.0}),
    ),
    "mixture, log-determinant": (
        mixture,
        ({"scale": 0.5}, {"scale": 0.25}, {"scale": 1.0}),
    ),
    "von Mises-Fisher, sketch": (
        sphere,
        (
            {"concentration": 10.0},
            {"concentration": 3.0},
            {"concentration": 30.0},
            {"concentration": 100.0},
        ),
    ),
}
SETTINGS: dict[str, Row] = {
    "Student-t, nearest neighbour": {"dof": 5.0},
    "mixture, log-determinant": {"scale": 0.5},
    "von Mises-Fisher, sketch": {"concentration": 30.0},
}
OBJECTIVES = (*PAPERS, *EMPTY)
COLUMNS = {  # of the table, and their digits
    "probe": ("linear probe", 3),
    "knn": ("5-NN", 3),
    "alignment": ("alignment", 1),
    "entropy": ("log-determinant", 1),
    "value": ("sum", 1),
    "nearest": ("sum, neighbours", 1),
    "seconds": ("CPU seconds", 0),
}


NEIGHBOURS = (  # and those that they are compared with
    ("LeJEPA", "VICReg"),
    ("VISReg", "VICReg"),
    ("Student-t, nearest neighbour", "LogDet"),
    ("mixture, log-determinant", "LogDet"),
    ("von Mises-Fisher, sketch", "SimCLR"),
    ("von Mises-Fisher, sketch", "LeJEPA"),
)


def loaded(name: str) -> ps.data.Dataset:
    """The digits, or the first images of MNIST."""
    if name == "digits":
        return ps.data.digits()
    data = ps.data.load("mnist")
    return data._replace(train=data.train.take(IMAGES))


def built(name: str, data: ps.data.Dataset, setting: Row | None = None) -> nn.Module:
    """An objective by its name; an empty cell with its setting or another one."""
    if name in PAPERS:
        return PAPERS[name](data)
    return EMPTY[name][0](data, **(SETTINGS[name] if setting is None else setting))


def fit(objective: nn.Module, data: ps.data.Dataset, epochs: int) -> None:
    """Fit with the views and the optimiser of `recipes`."""
    options = {"epochs": epochs, "compile": False, "progress": False}
    recipes.fit(objective, data, views=recipes.views(data), **options)


def probes(objective: nn.Module, data: ps.data.Dataset) -> Row:
    """Accuracies of a linear probe and of 5-NN, fitted to z of the training images."""
    (z, y), (there, labels) = (
        (ps.embed(objective, part), part.labels) for part in (data.train, data.test)
    )
    return {
        "probe": ps.evaluation.linear_probe(z, y, there, labels),
        "knn": ps.evaluation.knn(z, y, there, labels),
    }


def cell(name: str, data: ps.data.Dataset, seed: int, epochs: int) -> Row:
    """Fit an objective; return scores of test images, and terms of their views."""
    torch.manual_seed(seed)
    began = time.process_time()
    objective = built(name, data)
    fit(objective, data, epochs)
    seconds = time.process_time() - began
    images = ps.data.memory.as_float(data.test.take(min(PAIRS, len(data.test))))
    torch.manual_seed(seed)
    pairs = recipes.views(data)(images)
    z = [torch.as_tensor(ps.embed(objective, pairs[:, v])) for v in range(2)]
    found = representation_terms(torch.stack(z, 1))
    return probes(objective, data) | {
        "alignment": found.terms["gaussian_alignment"].value,
        "entropy": found.terms["gaussian_entropy"].value,
        "value": found.matrix["log_det"].value,
        "nearest": found.matrix["gaussian_nearest"].value,
        "seconds": round(seconds, 1),
    }


def averaged(fits: Sequence[Row]) -> dict[str, Row]:
    """For each objective the means and standard deviations over seeds."""
    rows: dict[str, Row] = {}
    for name in (n for n in OBJECTIVES if any(f["objective"] == n for f in fits)):
        own = [f for f in fits if f["objective"] == name]
        rows[name] = {"seeds": len(own)}
        for key in COLUMNS:
            values = [f[key] for f in own]
            deviation = stdev(values) if len(values) > 1 else 0.0
            rows[name][key] = [mean(values), deviation]
    return rows


def main(
    sets: Sequence[str] = tuple(EPOCHS),
    names: Sequence[str] = OBJECTIVES,
    seeds: int = SEEDS,
    epochs: int | None = None,
    results: Path = report.RESULTS,
) -> dict[str, list[Row]]:
    """Return the fits to each data set. All objectives have a seed before the next."""
    found = {}
    for kind in sets:
        path, data = results / f"table_{kind}.json", loaded(kind)
        content = {"data": kind, "epochs": epochs or EPOCHS[kind], "dim": DIM}
        content |= {"settings": SETTINGS}
        fits: list[Row] = []
        if path.is_file():
            earlier = json.loads(path.read_text())
            if content.items() <= earlier.items():
                fits = earlier["fits"]
        have = {(f["objective"], f["seed"]) for f in fits}
        cells = [(n, s) for s, n in product(range(seeds), names) if (n, s) not in have]
        with Interrupts() as interrupts:
            for name, seed in tqdm(cells, desc=kind, unit="fit"):
                figures = cell(name, data, seed, content["epochs"])
                interrupts.check()  # its fit was cut short
                fits.append({"objective": name, "seed": seed} | figures)
                more = {"rows": averaged(fits), "fits": fits}
                report.write(path, "table_of_limits.py", **content, **more)
        found[kind] = fits
    return found


def choose(
    seeds: int = CHOICE_SEEDS,
    epochs: int = CHOICE_EPOCHS,
    results: Path = report.RESULTS,
) -> list[Row]:
    """Return the scores of all settings of the empty cells."""
    cells = [
        {"choice": name, "setting": setting, "seed": seed}
        for name, (_, tried) in EMPTY.items()
        for setting in tried
        for seed in range(seeds)
    ]

    def scored(cell: Row) -> Row:
        data = held_out(ps.data.digits(), cell["seed"])
        torch.manual_seed(cell["seed"])
        objective = built(cell["choice"], data, cell["setting"])
        fit(objective, data, epochs)
        linear, near = probes(objective, data).values()
        return {"linear": linear, "5-NN": near, "score": (linear + near) / 2}

    path, script = results / "table_choices.json", "table_of_limits.py --choose"
    return report.collected(path, script, cells, scored, epochs=epochs)


def chosen(rows: list[Row], name: str) -> Row:
    """The setting of an empty cell that validation images choose."""
    own = [row for row in rows if row["choice"] == name]
    return report.chosen(own, EMPTY[name][1][0])


def table(rows: dict[str, Row]) -> str:
    """The rows of a data set, in Markdown."""
    lines = []
    for name, row in rows.items():
        cells = [
            f"{row[k][0]:.{n}f} ± {row[k][1]:.{n}f}" for k, (_, n) in COLUMNS.items()
        ]
        lines.append([name, *cells])
    columns = [title for title, _ in COLUMNS.values()]
    return report.markdown(["objective", *columns], lines)


def gains(fits: Sequence[Row]) -> str:
    """Gains over neighbours, paired by seeds, with standard errors, in Markdown."""
    lines = []
    for name, base in NEIGHBOURS:
        both = [
            {f["seed"]: f for f in fits if f["objective"] == each}
            for each in (name, base)
        ]
        seeds = sorted(both[0].keys() & both[1].keys())
        cells = [
            report.gain(*([own[seed][key] for seed in seeds] for own in both))
            for key in ("probe", "knn")
        ]
        if seeds:
            lines.append([name, base, *cells])
    return report.markdown(["objective", "over", "linear probe", "5-NN"], lines)


def read(kind: str) -> Row:
    """The committed report of a data set; empty if there is none."""
    path = report.RESULTS / f"table_{kind}.json"
    found: Row = json.loads(path.read_text()) if path.is_file() else {}
    return found


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("sets", nargs="*", default=list(EPOCHS), help="digits, mnist")
    parser.add_argument("--choose", action="store_true", help="on validation data")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, help="by default 40 and 12")
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tables:
        for found in filter(None, map(read, options.sets)):
            print(table(found["rows"]), gains(found["fits"]), sep="\n\n", end="\n\n")
    elif options.choose:
        choose(results=options.out)
    else:
        main(
            options.sets,
            options.objectives,
            options.seeds,
            options.epochs,
            options.out,
        )
