"""What do two modalities share? Halves of a digit; a digit and its label. MNIST.

A joint of two modalities has a likelihood, an encoder and a decoder for each, a z for
each, and a content y that both share. Held-out items are scored by log p(x₁, x₂), by
log p(x₂ | x₁) = log p(x₁, x₂) − log p(x₁), where the model integrates the absent x₂
out, and by what the modalities share, log p(x₁, x₂) − log p(x₁) − log p(x₂), whose mean
is an estimate of their mutual information. The modalities are the upper and the lower
half of an image, or an image and its label. The prior is a Gaussian, or
`priors.ContentStyle`, whose style belongs to one modality; the guide is factorised, or
`guides.Coupled`, a product of experts. Where "some" are "absent", a fifth of the items
in training lack the first modality, a fifth the second, so that each expert learns to
work alone. Beside them stand two VAEs, one for each half, and one VAE of the whole
image, a model of the same pixels, with the same guide: `Coupled` is then a diagonal
normal, with a scale in units of the prior's. All see as many items.

Completions are judged by neighbours: the share of images with one half drawn, or drawn
for a label, whose 5-NN class among training images is the right one.

Pixels are drawn with their grey value as the probability of white: those of training
anew in each epoch, those of validation and test images once. Likelihoods of images that
are binarised otherwise, as by a threshold, do not compare. Evidences are of importance
sampling, lower bounds in expectation; their differences are no bounds, and what is
shared comes out too large where experts never worked alone. The last 5,000 training
images are held out, 500 of them scored; nothing was chosen on test images.

Every fit leaves a folder in runs/; fits whose folder is there are not run again.

Results: docs/results.md, "Two modalities". Writes
benchmarks/results/multimodal_halves.json; `--tables` prints the table. Needs MNIST in
the folder named by the environment variable PROBSSL_DATA.

References:
    Joint Multimodal Learning with Deep Generative Models (Suzuki et al., 2016)
    https://arxiv.org/abs/1611.01891
    Multimodal Generative Models for Scalable Weakly-Supervised Learning (Wu and
    Goodman, 2018), for products of experts
    https://arxiv.org/abs/1802.05335
"""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import probssl as ps
from probssl.guides import Coupled, DiagonalGaussian
from probssl.priors import ContentStyle, Gaussian, Independent, Prior

CHOSEN_ON = "validation"
SEEDS, EPOCHS, BATCH, LEARNING_RATE = 3, 8, 200, 2e-3
HIDDEN, CLASSES, PIXELS = (256, 256), 10, 28 * 28
SCORED, PARTICLES, NEIGHBOURS = 500, 300, 20_000
BOTH, FIRST, GIVEN = "log p(x₁, x₂)", "log p(x₁)", "log p(x₂ given x₁)"
SHARED, TOLD = "shared", ("class of x₁, drawn x₂", "class of drawn x₁, x₂")
COLUMNS = {f"validation: {BOTH}": 1, BOTH: 1, FIRST: 1, GIVEN: 2, SHARED: 2}
COLUMNS |= dict.fromkeys(TOLD, 3)  # of the table, and their digits

WIDTHS = {"image": (PIXELS,), "halves": (PIXELS // 2,) * 2, "label": (PIXELS, CLASSES)}


class Method(NamedTuple):
    """The modalities, the prior, the guide, and the share of items in training of which
    the first modality is absent, and the second."""

    modalities: str
    prior: Callable[[], Prior]
    guide: Callable[..., nn.Module] = Coupled
    absent: float = 0.0


def split(content: int, style: int) -> Prior:
    return ContentStyle(content, style, ps.learned(0.3))


METHODS = {
    "one VAE": Method("image", lambda: Independent(40)),
    "two VAEs": Method("halves", lambda: Independent(20)),
    "Gaussian, Coupled": Method("halves", lambda: Gaussian(20, ps.learned(0.5))),
    "12 + 8": Method("halves", lambda: split(12, 8), DiagonalGaussian),
    "12 + 8, Coupled": Method("halves", lambda: split(12, 8)),
    "12 + 8, Coupled, some absent": Method("halves", lambda: split(12, 8), absent=0.2),
    "label: 10 + 30, Coupled, some absent": Method(
        "label", lambda: split(10, 30), absent=0.2
    ),
}


class Drawn(nn.Module):
    """Draw numbers in [0, 1] as Bernoulli variables, and cut them into modalities.

    A one-hot label is drawn as itself. Each of two modalities is absent with a
    probability, at most one of them.
    """

    def __init__(self, widths: tuple[int, ...], absent: float = 0.0) -> None:
        super().__init__()
        self.widths, self.absent = widths, absent

    def forward(self, x: Tensor) -> ps.Batch:
        parts = torch.bernoulli(x).split(self.widths, -1)
        batch = ps.Batch(tuple(part.unsqueeze(1) for part in parts))
        if not self.absent:
            return batch
        u = torch.rand(len(x), 1, device=x.device)
        present = torch.cat([u >= self.absent, u < 1 - self.absent], 1)
        return batch._replace(present=present)


def numbers(data: ps.data.Split, modalities: str) -> Tensor:
    """The bytes of images, and of their one-hot labels where these are a modality."""
    images = data.images.flatten(1)
    if modalities != "label":
        return images
    return torch.cat([images, 255 * one_hot(data.labels, CLASSES).byte()], 1)


def build(method: Method) -> ps.limits.SimVAE:
    """A likelihood, an encoder and a decoder for each modality."""
    prior, widths = method.prior(), WIDTHS[method.modalities]
    dim, likelihoods = prior.known_dim(), ps.likelihoods
    joint = ps.Joint(
        prior,
        [
            likelihoods.Categorical(n) if n == CLASSES else likelihoods.Bernoulli()
            for n in widths
        ],
        ps.nn.PerModality([ps.nn.MLPEncoder((n,), dim, HIDDEN) for n in widths]),
        ps.nn.PerModality([ps.nn.MLPDecoder(dim, (n,), HIDDEN) for n in widths]),
        guide=method.guide,
    )
    return ps.limits.SimVAE(joint)


def parts(data: ps.data.Dataset) -> dict[str, ps.data.Split]:
    """Training images, grey; some validation and test images, drawn once."""
    found = report.parts(data)
    held_out = found["validation"].rows(slice(SCORED))
    grey = held_out.images.double() / 255
    drawn = torch.rand(grey.shape, generator=torch.Generator().manual_seed(1)) < grey
    return {
        "train": found["train"],
        "validation": held_out._replace(images=255 * drawn.byte()),
        "test": data.test.take(min(SCORED, len(data.test))),
    }


def judged(images: Tensor, found: dict[str, ps.data.Split], cut: slice) -> float:
    """The share of test images whose neighbours in training have their class."""
    near = found["train"].take(min(NEIGHBOURS, len(found["train"])))
    known = near.images.flatten(1)[:, cut].float() / 255
    return ps.evaluation.knn(known, near.labels, images, found["test"].labels)


def references(found: dict[str, ps.data.Split]) -> dict[str, float]:
    """What the judge says of true images, and of one half alone."""
    half = PIXELS // 2
    cuts = {"images": slice(None), "upper": slice(half), "lower": slice(half, None)}
    x = found["test"].images.flatten(1).float() / 255
    return {name: judged(x[:, cut], found, cut) for name, cut in cuts.items()}


def log_p(objective: nn.Module, items: ps.data.Groups) -> Tensor:
    """The evidence of each item, in nats."""
    found = ps.evidence(objective, items, particles=PARTICLES)
    return torch.as_tensor(found.log_evidence)


def items_of(data: ps.data.Split, method: Method) -> ps.data.Groups:
    """Images that are drawn already, as modalities."""
    x = numbers(data, method.modalities).float() / 255
    return ps.data.Groups(Drawn(WIDTHS[method.modalities])(x).views, data.labels)


@torch.no_grad()
def measured(
    objective: nn.Module, method: Method, found: dict[str, ps.data.Split]
) -> dict[str, float]:
    """Evidences of held-out items, in nats, and how one modality tells the other."""
    torch.manual_seed(0)
    valid, test = (items_of(found[name], method) for name in ("validation", "test"))
    both, told = log_p(objective, test), {}
    terms = {f"validation: {BOTH}": log_p(objective, valid), BOTH: both}
    if method.modalities != "image":
        ends = torch.eye(2).bool().unsqueeze(1).expand(2, len(test), 2)
        alone = [test._replace(present=seen) for seen in ends]
        first, second = (log_p(objective, one) for one in alone)
        terms |= {FIRST: first, GIVEN: both - first, SHARED: both - first - second}
        told = dict(zip(TOLD, completed(objective, alone, found), strict=True))
    return {name: float(value.mean()) for name, value in terms.items()} | told


def completed(
    objective: nn.Module, alone: list[ps.data.Groups], found: dict[str, ps.data.Split]
) -> tuple[float, float]:
    """How often the class is right: x₂ completed from x₁, and x₁ from x₂."""
    x1, x2 = (part.squeeze(1) for part in alone[0].views)
    x1_drawn = _first_draw(ps.complete(objective, alone[1], draws=1)[0])
    every = slice(None)
    if x2.shape[1] == CLASSES:  # the most probable label, not a draw
        shares = torch.as_tensor(ps.complete(objective, alone[0])[1]).squeeze(1)
        right = shares.argmax(1) == torch.as_tensor(alone[0].labels)
        return float(right.double().mean()), judged(x1_drawn, found, every)
    x2_drawn = _first_draw(ps.complete(objective, alone[0], draws=1)[1])
    images = torch.cat([x1, x2_drawn], 1), torch.cat([x1_drawn, x2], 1)
    first, second = (judged(x, found, every) for x in images)
    return first, second


def _first_draw(x: Any) -> Tensor:
    """The first draw of the only view of each item."""
    return torch.as_tensor(x)[0].squeeze(1)


def cell(
    name: str, seed: int, epochs: int, folder: Path, data: ps.data.Dataset
) -> dict[str, Any]:
    """Fit one method with one seed, unless its folder is there; return its figures."""
    saved = folder / f"{name.replace(':', '')}, {epochs} epochs, seed {seed}"
    if (notes := report.kept(saved)) is not None:
        return notes
    began, method, found = time.process_time(), METHODS[name], parts(data)
    torch.manual_seed(seed)
    objective, train = build(method), found["train"]
    steps = epochs * (len(train) // BATCH)
    ps.fit(
        objective,
        ps.data.Split(numbers(train, method.modalities)),
        views=Drawn(WIDTHS[method.modalities], method.absent),
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scheduler=lambda o: CosineAnnealingLR(o, steps),
        progress=False,
    )
    row: dict[str, Any] = {"modalities": method.modalities, "method": name}
    row |= {"seed": seed, "epochs": epochs, **measured(objective, method, found)}
    row["CPU seconds"] = round(time.process_time() - began)
    ps.save(objective, saved, **row)
    return row


def main(
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    jobs: int = -1,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[dict[str, Any]]:
    """Return the figures of some methods with every seed."""
    if data is None:
        data = ps.data.load("mnist", binary="dynamic")
    cells = [(name, seed) for seed, name in product(range(seeds), methods)]
    folder = runs / "multimodal_halves"
    work = (delayed(cell)(*each, epochs, folder, data) for each in cells)
    found = Parallel(jobs, return_as="generator")(work)
    rows = list(tqdm(found, total=len(cells), unit="fit"))
    path, known = results / "multimodal_halves.json", references(parts(data))
    report.write(path, "multimodal_halves.py", neighbours=known, rows=rows)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        found = {c: [row[c] for row in own if c in row] for c in COLUMNS}
        cells = (report.spread(found[c], digits) for c, digits in COLUMNS.items())
        lines.append([name, *cells])
    return report.markdown(["method", *COLUMNS], lines)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="some of all")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=-1, help="-1 is one per core")
    options = parser.parse_args()
    if options.tables:
        print(table(report.read(report.RESULTS / "multimodal_halves.json")))
    else:
        given = tuple(options.methods), options.seeds
        main(*given, results=options.out, jobs=options.jobs)
