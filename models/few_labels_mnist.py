"""How many labels does a classifier of digits need? MNIST with 100 and 1,000 labels.

The components of a mixture prior are the classes: SimVAE is fitted to 10,000 training
images, of which 100 or 1,000 have a label, the same number of each class, and two views
of each image. Labelled images are repeated up to a tenth of all, each time with other
views. `classify` gives p(class | image) on all 10,000 test images. Beside it, two
classifiers of the same z: a linear probe on the labelled images, and the nearest mean
of the labelled images of a class.

`--choose` fits other settings and scores the last 5,000 training images, which are for
validation; no test image is seen. Style dimensions have one distribution for all
classes. Results: benchmarks/results/few_labels_mnist_choices.json.

Reaches 0.874 with 100 labels and 0.918 with 1,000, sixteen epochs; a linear probe of
the same z 0.888 and 0.938. The label weight was chosen on validation images.

Published numbers (Semi-supervised Learning with Deep Generative Models, Kingma et al.,
2014), with 50,000 images of twice the side and without data augmentation: M2 88.0 and
96.4 %, M1+M2 96.7 and 97.6 % with 100 and 1,000 labels.

Results: docs/results.md, "Few labels". Writes benchmarks/results/few_labels_mnist.json
after each fit, and goes on from there. Needs MNIST in the folder named by the
environment variable PROBSSL_DATA.

Takes five minutes of one CPU core, and ten for `--choose`.
"""

import time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import report
import torch
from report import Row
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad
from torch.optim.lr_scheduler import OneCycleLR

import probssl as ps
from probssl.views import Affine, Augment

LABELS, DRAWS, BATCH = (100, 1_000), 5, 100
SIDE, CHANNELS, DIM, SCALE, LEARNING_RATE = 14, (16, 32), 16, 0.3, 4e-3
SHARE = 0.1  # labelled images are repeated up to this share
VIEWS = Augment(Affine(rotate=15, scale=(0.8, 1.2), shift=0.1))
CHOSEN_ON = "validation"
NAMES = ("classify", "linear probe", "nearest mean")


class Setting(NamedTuple):
    """What is chosen on validation images."""

    label_weight: float = 30.0
    noise: float = 0.3  # standard deviation of a pixel given z
    style: int = 0  # dimensions of z, of DIM
    epochs: int = 16
    images: int = 10_000


SETTING = Setting(label_weight=10.0)
# Number of labels, draw of the labels, and settings of the choice.
SHORT = Setting(epochs=8)
FEW = tuple(
    SHORT._replace(**change)
    for change in (
        {},
        {"label_weight": 10.0},
        {"label_weight": 3.0},
        {"label_weight": 10.0, "style": 6},
        {"label_weight": 100.0},
        {"noise": 0.5},
        {"noise": 0.2},
    )
)
CHOICES: tuple[tuple[tuple[tuple[int, int], ...], tuple[Setting, ...]], ...] = (
    (((100, 0), (100, 1), (1_000, 0)), FEW),
)


class Classes(nn.Module):
    """Means of the classes; the last dimensions are the style, N(0, I) in all of them.

    Scales are relative to SCALE, the standard deviation of the first dimensions.
    """

    def __init__(self, components: int, style: int) -> None:
        super().__init__()
        self.components, self.dim, self.style = components, DIM, style
        self.loc = nn.Parameter(torch.randn(components, DIM - style))
        scale = torch.ones(1, DIM)
        scale[:, DIM - style :] = 1 / SCALE
        self.register_buffer("scale", scale)

    def forward(self) -> tuple[Tensor, Tensor]:
        return pad(self.loc, (0, self.style)), self.scale


def images(number: int, validation: bool = False) -> ps.data.Dataset:
    """MNIST in [0, 1], averaged down to a few pixels a side.

    Training images are some of all but the last, which are for validation and then take
    the place of the test images.
    """
    data = ps.data.load("mnist")
    found = report.parts(data)
    test = found["validation" if validation else "test"]
    train, test = (
        part._replace(images=adaptive_avg_pool2d(part.images.float() / 255, SIDE))
        for part in (found["train"].take(number), test)
    )
    return ps.data.Dataset(train, test, None, data.name)


def drawn(labels: Tensor, number: int, seed: int) -> Tensor:
    """Keep a number of labels, as many of each class; -1 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    classes, known = labels.unique(), torch.full_like(labels, -1)
    for k in classes:
        rows = (labels == k).nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=generator)
        known[rows[order[: number // len(classes)]]] = k
    return known


def repeated(known: Tensor) -> Tensor:
    """Rows of all items, the labelled ones several times: with views of their own."""
    rows = (known >= 0).nonzero().squeeze(1)
    times = max(1, int(SHARE * len(known)) // len(rows))
    return torch.cat([torch.arange(len(known)), rows.repeat(times - 1)])


def fitted(data: ps.data.Dataset, known: Tensor, setting: Setting) -> ps.limits.SimVAE:
    """SimVAE with a component for each class, with one cycle of the learning rate."""
    shape = tuple(data.train.images.shape[1:])
    classes = Classes(int(known.max()) + 1, setting.style)
    joint = ps.Joint(
        ps.priors.Mixture(DIM, classes, SCALE),
        ps.likelihoods.Gaussian(setting.noise),
        ps.nn.ConvEncoder(shape, DIM, channels=CHANNELS),
        ps.nn.ConvDecoder(DIM, shape, channels=CHANNELS[::-1]),
    )
    simvae = ps.limits.SimVAE(joint, label_weight=setting.label_weight)
    rows = repeated(known)
    steps = setting.epochs * max(1, len(rows) // BATCH)
    ps.fit(
        simvae,
        data.train.rows(rows),
        views=VIEWS,
        content=known[rows],
        epochs=setting.epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scheduler=lambda o: OneCycleLR(o, [g["lr"] for g in o.param_groups], steps),
        progress=False,
    )
    return simvae


def accuracies(
    simvae: ps.limits.SimVAE, data: ps.data.Dataset, known: Tensor
) -> dict[str, float]:
    """The accuracy on test images of `classify`, and of two classifiers of z."""
    right, seen = data.test.labels, known >= 0
    z, z_test = (torch.as_tensor(ps.embed(simvae, s)) for s in (data.train, data.test))
    found = torch.as_tensor(ps.classify(simvae, data.test)).argmax(1)
    means = torch.stack([z[known == k].mean(0) for k in known[seen].unique()])
    nearest = torch.cdist(z_test, means).argmin(1)
    return {
        "classify": float((found == right).double().mean()),
        "linear probe": float(
            ps.evaluation.linear_probe(z[seen], known[seen], z_test, right)
        ),
        "nearest mean": float((nearest == right).double().mean()),
    }


def scored(cell: Row, validation: bool = False) -> Row:
    """The accuracies of one fit, with a setting, a number and a draw of labels."""
    began, setting = time.process_time(), Setting(**cell["setting"])
    data = images(setting.images, validation)
    torch.manual_seed(cell["draw"])
    known = drawn(data.train.labels, cell["labels"], cell["draw"])
    found = accuracies(fitted(data, known, setting), data, known)
    return found | {"seconds": round(time.process_time() - began)}


def choose(choices: Any = CHOICES, results: Path = report.RESULTS) -> list[Row]:
    """Return the accuracies on validation images of several settings."""
    cells = [
        {"labels": labels, "draw": draw, "setting": setting._asdict()}
        for draws, settings in choices
        for setting, (labels, draw) in product(settings, draws)
    ]
    path, script = results / "few_labels_mnist_choices.json", "few_labels_mnist.py"
    fit = partial(scored, validation=True)
    return report.collected(path, f"{script} --choose", cells, fit)


def main(
    draws: int = DRAWS,
    labels: tuple[int, ...] = LABELS,
    setting: Setting = SETTING,
    results: Path = report.RESULTS,
) -> list[Row]:
    """Return the accuracies on test images of each number and draw of labels."""
    cells = [
        {"labels": number, "draw": draw, "setting": setting._asdict()}
        for draw, number in product(range(draws), labels)
    ]
    path = results / "few_labels_mnist.json"
    return report.collected(path, "few_labels_mnist.py", cells, scored)


def table(rows: list[Row]) -> str:
    """Mean and standard deviation over the draws, in Markdown."""
    lines = []
    for number in dict.fromkeys(row["labels"] for row in rows):
        own = [row for row in rows if row["labels"] == number]
        cells = (report.spread([row[name] for row in own]) for name in NAMES)
        lines.append([f"{number:,}", *cells])
    return report.markdown(["labels", f"`{NAMES[0]}`", *NAMES[1:]], lines)


def choices(rows: list[Row]) -> str:
    """Accuracy of `classify` for each setting, a mean over draws, in Markdown."""
    numbers, lines = list(dict.fromkeys(row["labels"] for row in rows)), []
    settings = [row["setting"] for row in rows]
    for setting in [s for i, s in enumerate(settings) if s not in settings[:i]]:
        own = [row for row in rows if row["setting"] == setting]
        cells = [f"{setting[key]:g}" for key in ("label_weight", "noise")]
        cells += [str(setting[key]) for key in ("style", "epochs")]
        for number in numbers:
            found = [row["classify"] for row in own if row["labels"] == number]
            cells.append(f"{mean(found):.3f}" if found else "–")
        lines.append(cells)
    columns = ["label weight", "noise", "style", "epochs"]
    return report.markdown([*columns, *(f"{n:,} labels" for n in numbers)], lines)


def tables() -> str:
    """Both tables, in Markdown."""
    paths = (report.RESULTS / f"few_labels_mnist{end}.json" for end in ("", "_choices"))
    found, tried = map(report.read, paths)
    return f"{table(found)}\n\n{choices(tried)}\n"


if __name__ == "__main__":
    report.command(__doc__, main, tables, choose)
