"""What the scripts for CIFAR-10 share: their split, networks, fits, scores and tables.

Each of ``limits_cifar10.py``, ``simvae_cifar10.py``, ``dsa_cifar10.py`` and
``pid_cifar10.py`` is a table of methods, an `Experiment`, and a call of `run`.

The encoder is the ResNet-18 of `probssl.nn`, in bfloat16 on a GPU. Scored are its 512
features, before the projection head; of a VAE the mean of q(z|x). The last 5,000
training images are held out for validation; the others fit the networks and the
probes. The 10,000 test images are scored beside them.

Scores: a linear probe, and 200 nearest neighbours by cosine, whose votes have the
weight exp(cosine / 0.1), as in the benchmarks of lightly.

Every fit leaves a folder in runs/, which `probssl inspect` reads. A script that was
stopped goes on from the last checkpoint when it is run again; fits whose folder is
finished are not repeated. Names of methods as arguments fit these alone. Each GPU has a
process of its own, with its share of the fits.

References:
    Unsupervised Feature Learning via Non-Parametric Instance-level Discrimination
    (Wu et al., 2018), for the weighted vote
    https://arxiv.org/abs/1805.01978
    lightly's benchmarks
    https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch
from joblib import Parallel, delayed
from report import Parts
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

import probssl as ps
from probssl.runtime import files
from probssl.views import Affine, Augment, Colour, Grey

SEEDS, NEIGHBOURS, TEMPERATURE = 3, 200, 0.1
CHECKPOINT_EVERY = 10  # epochs
# Of the bases of DSA and PID: the projector, and the items of W-MSE at a time.
WIDTH, OUT, WHITENED = 1_024, 64, 128
SCORES = ("linear", f"{NEIGHBOURS}-NN")


class Method(NamedTuple):
    """How an objective is built for images of a shape, and fitted.

    Arguments:
        build: From the shape of an image, and the number of training images.
        optimizer: From the parameters; None leaves the objective untrained.
        base: The method that it is compared with.
        views: The number of views of an image.
        fit: `probssl.fit`, or a function with its arguments.
    """

    build: Callable[[tuple[int, ...], int], nn.Module]
    optimizer: Callable[[list[Parameter]], Optimizer] | None
    base: str | None = None
    views: int = 2
    fit: Callable[..., ps.History] = ps.fit


class Experiment(NamedTuple):
    """The methods of a script, and what they have in common.

    Arguments:
        name: That of the script, and of its results.
        epochs, batch: Of two views of each image; with more views fewer of both, so
            that all methods see as many images.
        views: From the number of views.
        schedule: From an optimiser and the numbers of steps and epochs.
        scores: From a fitted objective and the images.
        columns: The columns of the table, and their digits.
        published: Figures of others: for a column the values by method.
    """

    name: str
    methods: dict[str, Method]
    epochs: int
    batch: int
    views: Callable[[int], nn.Module]
    schedule: Callable[[Optimizer, int, int], LRScheduler] | None
    scores: Callable[[nn.Module, Parts], dict[str, float]]
    columns: dict[str, int]
    published: dict[str, dict[str, float]] = {}


def encoder(shape: tuple[int, ...], dim: int = 512) -> nn.Module:
    """ResNet-18; the tests have a smaller one."""
    return ps.nn.ResNet18Encoder(shape, dim)


def decoder(dim: int, shape: tuple[int, ...]) -> nn.Module:
    """ResNet-18 in reverse; the tests have a smaller one."""
    return ps.nn.ResNet18Decoder(dim, shape)


def augmented(crop: float, grey: float) -> Callable[[int], nn.Module]:
    """SimCLR's views of small images, with the least area of a crop, without blur."""
    return lambda views: Augment(
        Affine(crop=(crop, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5),
        Colour(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grey(p=grey),
        views=views,
        levels=255,
    )


def sgd(
    parameters: list[Parameter], rate: float, decay: float, nats: float = 1.0
) -> Optimizer:
    """Stochastic gradient descent on a published loss.

    Arguments:
        nats: How many times the published loss the value is. A loss c times as large
            takes the same steps with the rate divided and the decay multiplied by c.
    """
    return SGD(parameters, rate / nats, momentum=0.9, weight_decay=decay * nats)


def cosine(optimizer: Optimizer, steps: int, epochs: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, steps)


def stepped(optimizer: Optimizer, steps: int, epochs: int) -> LRScheduler:
    """A linear warm-up over epochs / 2 steps, and a fifth of the rate twice at the end.

    50 and 25 epochs before it; in short fits a fourth and an eighth of them.
    """
    ends = ((50, 1 / 4), (25, 1 / 8))
    drops = [steps * (1 - min(n / epochs, most)) for n, most in ends]

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, epochs // 2))
        return float(warm * 0.2 ** sum(step >= drop for drop in drops))

    return LambdaLR(optimizer, factor)


# Nats for a unit of the published losses of these bases (`probssl.limits`).
NATS = {"SimCLR": 1.0, "BYOL": 1.0, "W-MSE": 1.0, "Barlow Twins": 50.0}
ADAM = partial(Adam, lr=3e-3, weight_decay=1e-6)


def base(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A base of DSA and PID, with the projection head of W-MSE's authors."""
    net, head = encoder(shape), ps.nn.Projector(512, WIDTH, OUT)
    limits, predictor = ps.limits, ps.nn.Projector(OUT, WIDTH, OUT)
    made: dict[str, Callable[[], nn.Module]] = {
        "SimCLR": lambda: limits.SimCLR(net, head, temperature=0.5),
        "BYOL": lambda: limits.BYOL(net, head, predictor),
        "W-MSE": lambda: limits.WMSE(net, head, size=WHITENED),
        "Barlow Twins": lambda: limits.BarlowTwins(net, head),
    }
    return made[name]()


def alone(name: str) -> Method:
    """A base without an addition."""
    return Method(lambda shape, images: base(name, shape), ADAM)


def columns(
    more: dict[str, int] = {},  # noqa: B006  a constant
    parts: Sequence[str] = ("validation", "test"),
) -> dict[str, int]:
    """The columns of a table: the scores of each part, and their digits."""
    each = dict.fromkeys(SCORES, 3) | more
    return {f"{part}: {score}": n for part in parts for score, n in each.items()}


def represented(objective: nn.Module, part: ps.data.Split) -> Any:
    """The features of the encoder; of a generative model the mean of q(z|x)."""
    if isinstance(objective, ps.limits.SimVAE | ps.limits.VAE):
        return ps.embed(objective, part)
    return ps.embed(objective.encoder.trunk, part)


def probed(objective: nn.Module, found: Parts) -> dict[str, float]:
    """The scores of all parts but the training images, which fit the probes."""
    tests = {
        name: (represented(objective, part), part.labels)
        for name, part in found.items()
        if name != "train"
    }
    known = represented(objective, found["train"]), found["train"].labels
    linear = ps.evaluation.linear_probes(*known, tests)
    near = ps.evaluation.knns(*known, tests, NEIGHBOURS, temperature=TEMPERATURE)
    each = (zip(SCORES, (linear[n], near[n]), strict=True) for n in tests)
    return {
        f"{name}: {score}": value
        for name, values in zip(tests, each, strict=True)
        for score, value in values
    }


def folder_of(
    experiment: Experiment, method: str, seed: int, epochs: int, runs: Path
) -> Path:
    """The folder of a fit."""
    return runs / experiment.name / f"{method}, {epochs} epochs, seed {seed}"


def cell(
    experiment: Experiment,
    method: str,
    seed: int,
    epochs: int,
    place: str,
    data: ps.data.Dataset,
    runs: Path,
) -> dict[str, Any]:
    """Fit one method with one seed, unless its folder is there; return its figures."""
    folder = folder_of(experiment, method, seed, epochs, runs)
    if (known := report.kept(folder)) is not None:
        return known
    found, made = report.parts(data), experiment.methods[method]
    train = found["train"]
    torch.manual_seed(seed)
    objective = made.build(tuple(train.images.shape[1:]), len(train))
    objective = objective.to(place, memory_format=torch.channels_last)
    row: dict[str, Any] = {"method": method, "seed": seed, "epochs": epochs}
    checkpoint = folder / "checkpoint"
    if made.optimizer is not None:
        times = 2 * epochs // made.views
        size = min(2 * experiment.batch // made.views, len(train))
        steps = times * (len(train) // size)
        schedule = experiment.schedule
        history = made.fit(
            objective,
            train,
            views=experiment.views(made.views),
            epochs=times,
            batch_size=size,
            optimizer=made.optimizer,
            scheduler=schedule and (lambda o: schedule(o, steps, times)),
            precision=None if place == "cpu" else torch.bfloat16,
            checkpoint=checkpoint,
            checkpoint_every=CHECKPOINT_EVERY,
            resume=True,
            device=place,
            progress=False,
        )
        row["seconds"] = round(sum(history["seconds"]))
    row |= experiment.scores(objective, found)
    ps.save(objective, folder, **row)
    if checkpoint.is_dir():
        files.move(checkpoint / "history.json", folder / "history.json")
        shutil.rmtree(checkpoint)
    print(*row.values(), flush=True)
    return row


def share(cells: Iterable[tuple[str, int]], data: Any, **given: Any) -> list[Any]:
    """The rows of one device's fits."""
    data = ps.data.load("cifar10") if data is None else data
    return [cell(method=m, seed=s, data=data, **given) for m, s in cells]


def run(
    experiment: Experiment,
    names: Sequence[str] | None = None,
    seeds: int = SEEDS,
    epochs: int | None = None,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[dict[str, Any]]:
    """Return the rows of all methods and seeds, and write them.

    Arguments:
        names: Methods to fit; of others the rows whose folders are finished.
    """
    gpus = torch.cuda.device_count()
    places = [f"cuda:{i}" for i in range(gpus)] or ["cpu"]
    epochs, names = epochs or experiment.epochs, names or list(experiment.methods)
    given = {"experiment": experiment, "epochs": epochs, "data": data, "runs": runs}
    cells = [
        each
        for each in product(experiment.methods, range(seeds))
        if each[0] in names or report.kept(folder_of(experiment, *each, epochs, runs))
    ]
    each = Parallel(len(places))(
        delayed(share)(cells[i :: len(places)], place=place, **given)
        for i, place in enumerate(places)
    )
    rows = sorted(sum(each, []), key=lambda r: cells.index((r["method"], r["seed"])))
    path = results / f"{experiment.name}.json"
    report.write(path, f"{experiment.name}.py", epochs=epochs, rows=rows)
    return rows


def table(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and paired gains over bases."""
    columns, known = experiment.columns, experiment.published
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["method"], {})[row["seed"]] = row
    lines = []
    for name, own in by.items():
        values = {c: [row[c] for row in own.values()] for c in columns}
        cells = [report.spread(values[c], n) for c, n in columns.items()]
        others = [f"{v[name]:.3f}" if name in v else "–" for v in known.values()]
        lines.append([name, *cells, *others])
    parts = [report.markdown(["method", *columns, *known], lines)]
    lines = []
    for name, own in by.items():
        base = by.get(experiment.methods[name].base or "", {})
        seeds = sorted(own.keys() & base.keys())
        pairs = {
            c: [[some[i][c] for i in seeds] for some in (own, base)] for c in columns
        }
        cells = [report.gain(*pairs[c], n) for c, n in columns.items()]
        lines += [[name, *cells]] if seeds else []
    if lines:
        parts.append(report.markdown(["above its base", *columns], lines))
    return "\n\n".join(parts)


def command(experiment: Experiment, about: str | None) -> None:
    """The command line of a script: run it, or print its tables."""
    parser = report.parser(about)
    parser.add_argument("names", nargs="*", help="some methods")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=experiment.epochs)
    options = parser.parse_args()
    if options.tables:
        saved = report.read(report.RESULTS / f"{experiment.name}.json")
        print(table(experiment, saved))
    else:
        given = options.names, options.seeds, options.epochs
        print(table(experiment, run(experiment, *given, results=options.out)))
