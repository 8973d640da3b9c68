"""Three papers' additions, each beside its base objective: do they help?

t-SimCLR beside SimCLR ("Your Contrastive Learning Is Secretly Doing Stochastic Neighbor
Embedding", Hu et al., 2023), DSA on two bases ("On the Discriminability of
Self-Supervised Representation Learning", Song et al., 2024), and PID on four
("Rethinking Self-Supervised Learning Within the Framework of Partial Information
Decomposition", Mohamadi et al., 2024), on MNIST and Fashion-MNIST. Images, data
augmentation, encoder, optimiser, number of steps and batches are the same for all.

Scores of the encoder's output: linear probe and k-NN on test images, crowding of the
classes, probe and k-NN on shifted test images (`probssl.shifts`; fitted to unshifted
ones), and both on data sets that the encoder never saw.

The weight of PID's clusters was chosen on validation images, the last 5,000 training
images of each set, by linear probe and 5-NN of PID on SimCLR (``--choose``): the
published ramp in place of a steep one. All tails of t-SimCLR that
were fitted are shown. Nothing was chosen on test images.

Results: docs/papers.md, "Do they help?", with tables made by ``--tables``. t-SimCLR
gains in three dimensions, DSA crowds less in closed form, PID helps on MNIST, and each
fails elsewhere.

Prints all scores and writes them to benchmarks/results/against_baselines.json. Needs
MNIST, Fashion-MNIST and Omniglot in the folder named by the environment variable
PROBSSL_DATA.

Takes a little over an hour of one CPU core; fits run in parallel processes. `--choose`
takes seven minutes.
"""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

import probssl as ps
from probssl.data.memory import as_float
from probssl.train import fit_phases
from probssl.views import Affine, Augment

CHOSEN_ON = "validation"
SEEDS, EPOCHS, IMAGES, TEST, BATCH = 3, 20, 10_000, 5_000, 250
SIDE, CHANNELS, DIM, FEW = 14, (16, 32), 32, 3
LEARNING_RATE = 5e-3
# Of PID, in shares of the epochs: the base alone, and one clustering to the next.
FIRST, REFRESH = 0.3, 0.2
# The weight of its clusters, from first to last; the first of these is published.
RAMP, STEEP = (1e-5, 1e-1), (1e-2, 1.0)
CHOICES = [{"ramp": list(ramp)} for ramp in (STEEP, RAMP, (1e-3, 3e-1))]

VIEWS = {
    "mnist": Affine(rotate=15, scale=(0.8, 1.2), shift=0.1),
    "fashion-mnist": Affine(crop=(0.4, 1.0), flip=0.5),
}
OTHERS = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}


def projector(dim: int = DIM) -> nn.Module:
    return ps.nn.Projector(dim, width=128, out=32)


BASES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "SimCLR": lambda net: ps.limits.SimCLR(net, projector(), temperature=0.5),
    "BYOL": lambda net: ps.limits.BYOL(net, projector()),
    "Barlow Twins": lambda net: ps.limits.BarlowTwins(net, projector()),
    "W-MSE": lambda net: ps.limits.WMSE(net, projector()),
}
# What each stands on, to be compared with.
METHODS = {name: name for name in BASES}
# Degrees of freedom and temperature of t-SimCLR; the second temperature is published.
TAILS = {
    "t-SimCLR": (5.0, 1.0),
    "t-SimCLR, temperature 8": (5.0, 8.0),
    "t-SimCLR, one degree of freedom": (1.0, 1.0),
}
METHODS |= dict.fromkeys(TAILS, "SimCLR")
METHODS |= {"SimCLR, 3-D": "SimCLR, 3-D", "t-SimCLR, 3-D": "SimCLR, 3-D"}
METHODS |= {f"{name} + DSA": name for name in ("SimCLR", "Barlow Twins")}
METHODS |= {"SimCLR + DSA, closed form": "SimCLR"}
METHODS |= {f"{name} + PID": name for name in BASES}
METHODS |= {f"{name} + PID, steep ramp": name for name in BASES}


def build(method: str, data: ps.data.Dataset) -> nn.Module:
    """An objective with the networks that all share."""
    shape, few = tuple(data.train.images.shape[1:]), method.endswith("3-D")
    net = ps.nn.ConvEncoder(shape, FEW if few else DIM, channels=CHANNELS)
    behind = None if few else projector()
    if method.startswith("t-SimCLR"):
        dof, temperature = TAILS.get(method, TAILS["t-SimCLR"])
        return ps.limits.TSimCLR(net, behind, dof=dof, temperature=temperature)
    if few:
        return ps.limits.SimCLR(net, temperature=0.5)
    base = BASES[METHODS[method]](net)
    if "PID" in method:
        classes = len(data.train.labels.unique())
        return ps.limits.PID(base, classes, len(data.train.images))
    if method.endswith("closed form"):
        prior = ps.priors.Spherical(None, ps.learned(5.0))
        return ps.limits.DSA(
            base,
            ps.limits.PrincipalComponents.of(data.train.images, DIM),
            ps.limits.PriorAffinity(prior, ps.learned(0.1)),
            reference_temperature=2.0,
        )
    return ps.limits.DSA(base) if method.endswith("DSA") else base


class Job(NamedTuple):
    """One fit."""

    data: str
    seed: int
    method: str


@lru_cache
def images(name: str, validation: bool = False) -> ps.data.Dataset:
    """Images in [0, 1], averaged down to `SIDE` pixels, read once.

    The last training images, which no fit sees, are for validation and then take the
    place of the test images.
    """
    data = ps.data.load(name)
    if validation:
        data = report.without_test(data, TEST)
    train, test = (
        part._replace(images=adaptive_avg_pool2d(as_float(part), SIDE))
        for split, most in ((data.train, IMAGES), (data.test, TEST))
        for part in (split.take(min(most, len(split.images))),)
    )
    return ps.data.Dataset(train, test, None, data.name)


def fit(
    objective: nn.Module,
    data: ps.data.Dataset,
    views: nn.Module,
    epochs: int,
    ramp: tuple[float, float] = RAMP,
) -> ps.History:
    """Fit with one cycle of the learning rate; PID in phases, for its clusters."""
    optimizer = Adam(objective.parameters(), LEARNING_RATE, fused=True)
    steps = epochs * max(1, len(data.train.images) // BATCH)
    options = {
        "views": Augment(views),
        "epochs": epochs,
        "batch_size": BATCH,
        "optimizer": optimizer,
        "scheduler": OneCycleLR(optimizer, LEARNING_RATE, steps),
        "compile": False,
        "progress": False,
    }
    if not isinstance(objective, ps.limits.PID):
        return ps.fit(objective, data.train, **options)

    def assign() -> None:
        objective.assign(ps.embed(objective, data.train, layer=objective.layer))

    return fit_phases(
        objective,
        data.train,
        assign,
        first=int(FIRST * epochs),
        refresh=max(1, int(REFRESH * epochs)),
        ramp=ramp,
        **options,
    )


def scores(
    objective: nn.Module, data: ps.data.Dataset, others: dict[str, ps.data.Dataset]
) -> dict[str, Any]:
    """Scores in distribution, crowding, and scores on shifted and on other data."""
    z = ps.embed(objective, data.test)
    crowding = ps.evaluation.crowding(z, data.test.labels, bootstrap=20)
    return {
        "shifted": ps.shifts.shifted(objective, data),
        "transferred": ps.shifts.transferred(objective, others),
        "crowding": crowding.crowding.value,
        "silhouette": crowding.silhouette.value,
        "effective_rank": ps.evaluation.effective_rank(z),
    }


def one(
    job: Job, epochs: int, sets: dict[str, ps.data.Dataset] | None = None
) -> dict[str, Any]:
    """Fit and score one job."""
    began = time.process_time()
    names = (job.data, OTHERS[job.data], "omniglot")
    known = sets or {name: images(name) for name in names}
    data, *others = (known[name] for name in names if name in known)
    torch.manual_seed(job.seed)
    objective = build(job.method, data)
    ramp = STEEP if job.method.endswith("steep ramp") else RAMP
    fit(objective, data, VIEWS[job.data], epochs, ramp)
    seconds = time.process_time() - began
    found = scores(objective, data, {other.name: other for other in others})
    return job._asdict() | {"base": METHODS[job.method]} | found | {"seconds": seconds}


def choose(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    sets: dict[str, ps.data.Dataset] | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return the scores of PID on SimCLR with each ramp, of validation images."""

    def fitted(cell: dict[str, Any]) -> dict[str, Any]:
        began, name = time.process_time(), cell["data"]
        data = report.without_test(sets[name], TEST) if sets else images(name, True)
        torch.manual_seed(cell["seed"])
        objective = build("SimCLR + PID", data)
        fit(objective, data, VIEWS[name], epochs, cell["setting"]["ramp"])
        z, there = ps.embed(objective, data.train), ps.embed(objective, data.test)
        known = z, data.train.labels, there, data.test.labels
        linear, near = ps.evaluation.linear_probe(*known), ps.evaluation.knn(*known)
        seconds = round(time.process_time() - began)
        found = {"linear": linear, "5-NN": near, "score": (linear + near) / 2}
        return found | {"CPU seconds": seconds}

    cells = [
        {"data": name, "setting": setting, "seed": seed}
        for seed, name, setting in product(range(seeds), VIEWS, CHOICES)
    ]
    path = results / "against_baselines_choices.json"
    script = "against_baselines.py --choose"
    return report.collected(path, script, cells, fitted, epochs=epochs)


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    methods: tuple[str, ...] = tuple(METHODS),
    sets: dict[str, ps.data.Dataset] | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return the scores of every data set, seed and method.

    Of other methods the scores that are there already are kept.
    """
    path = results / "against_baselines.json"
    rows = [row for row in report.known(path) if row["method"] not in methods]
    jobs = [Job(d, s, m) for s, d, m in product(range(seeds), VIEWS, methods)]
    run = partial(one, epochs=epochs, sets=sets)
    for row in report.mapped(run, jobs, parallel=sets is None):
        rows.append(row)
        print(*row.values(), flush=True)
        report.write(path, "against_baselines.py", epochs=epochs, rows=rows)
    return rows


SHOWN = {"linear probe": "linear_probe", "5-NN": "knn"}
COMPARED = ("linear probe", "5-NN", "crowding")


def figures(row: dict[str, Any]) -> dict[str, float]:
    """The columns of the first table."""
    clean = row["shifted"]["clean"]
    return {name: clean[key] for name, key in SHOWN.items()} | {
        "crowding": row["crowding"],
        "silhouette": row["silhouette"],
        "effective rank": row["effective_rank"],
    }


def elsewhere(row: dict[str, Any]) -> dict[str, float]:
    """The columns of the second table: linear probes out of distribution."""
    parts = {k: v for k, v in row["shifted"].items() if k != "clean"}
    parts |= row["transferred"]
    return {name: part["linear_probe"] for name, part in parts.items()}


def table(
    rows: list[dict[str, Any]],
    columns: Callable[[dict[str, Any]], dict[str, float]],
    digits: int = 3,
) -> str:
    """Mean and standard deviation over seeds of each method, in Markdown."""
    names = list(columns(rows[0]))
    lines = []
    for method in METHODS:
        own = [columns(row) for row in rows if row["method"] == method]
        cells = [report.spread([each[name] for each in own], digits) for name in names]
        lines += [[method, *cells]] if own else []
    return report.markdown(["method", *names], lines)


def tables(rows: list[dict[str, Any]]) -> str:
    """Both tables of each data set, and the gains over the bases, in Markdown."""
    parts = []
    for data in VIEWS:
        here = [row for row in rows if row["data"] == data]
        title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}[data]
        parts += [f"### {title}", table(here, figures), _gains(here)]
        parts += [f"{title}, linear probe out of distribution:", table(here, elsewhere)]
    return "\n\n".join(parts) + "\n"


def _gains(rows: list[dict[str, Any]]) -> str:
    """Gains over the bases, paired by seeds, with their standard errors."""
    by = {(row["method"], row["seed"]): figures(row) for row in rows}
    lines = []
    for method, base in METHODS.items():
        seeds = [seed for name, seed in by if name == method != base]
        pairs = [[by[name, s] for s in seeds] for name in (method, base)]
        each = [[[row[c] for row in own] for own in pairs] for c in COMPARED]
        lines += [[method, *(report.gain(*pair) for pair in each)]] if seeds else []
    return report.markdown(["method, above its base", *COMPARED], lines)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="some of all")
    parser.add_argument("--choose", action="store_true", help="PID's ramp")
    options = parser.parse_args()
    if options.tables:
        print(tables(report.read(report.RESULTS / "against_baselines.json")))
        saved = report.read(report.RESULTS / "against_baselines_choices.json")
        print(report.choices(saved, CHOICES[0]))
    elif options.choose:
        torch.set_num_threads(1)
        choose(results=options.out)
    else:
        main(methods=tuple(options.methods), results=options.out)
