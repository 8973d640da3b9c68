"""Does one modality know what the others show? Five modalities of one digit class.

A synthetic set in the manner of PolyMNIST: an item is five images of one class of
MNIST, each another digit of 14 × 14 pixels that inverts the colours of its background.
Each modality has a background process of its own (gradients, stripes, blocks, smooth
fields, rings), a colour, and noise. The class is all that the modalities share.

A joint of five modalities is fitted with a Gaussian p(z|y), with 8 content and 12 style
dimensions (`priors.ContentStyle`) and with components of the content
(`priors.TwoTier`), under the factorised guide and under `guides.Coupled`, a product of
experts. Where "some" are "absent", half of the items in training lack modalities, each
with probability one half, so that experts learn to work in all sets of modalities.

Scored are log p(x₁, …, x₅) of held-out items by importance sampling, a lower bound in
expectation; the coherence, the share of generated images of absent modalities, given
one to four others, in which a classifier of that modality sees the class of the item;
the share of draws from the prior in which all five classifiers agree; and a linear
probe of the mean z. Generated is the mean of p(x|z) at a draw of z. A classifier for
each modality is fitted to the training images. Widths, with as many epochs as take the
same time, and the learning rate were chosen by log p of validation items, which are
made of the last 5,000 training digits (``--choose``, a Gaussian with `Coupled`, one
seed: no other setting was better). The textures are the data, and no score chose them.

Every fit leaves a folder in runs/; fits whose folder is there are not run again.

Results: docs/results.md, "Five modalities". Writes benchmarks/results/poly_mnist.json;
`--tables` prints the table. Needs MNIST in the folder named by the environment variable
PROBSSL_DATA.

References:
    Generalized Multimodal ELBO (Sutter et al., 2021), for PolyMNIST and coherence
    https://arxiv.org/abs/2105.02470
"""

import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import report
import torch
from joblib import Parallel, delayed
from torch import Generator, Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, interpolate
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import probssl as ps
from probssl.guides import Coupled, DiagonalGaussian
from probssl.priors import ContentStyle, Gaussian, Prior, TwoTier

CHOSEN_ON = "validation"
SEEDS, EPOCHS, BATCH, LEARNING_RATE, DIM = 3, 10, 100, 2e-3, 20
ITEMS, SCORED, PARTICLES = 10_000, 500, 100
SIDE, NOISE, HIDDEN, CLASSES, JUDGE_EPOCHS = 14, 0.1, (128, 128), 10, 12


class Method(NamedTuple):
    """The prior, the guide, and whether modalities are absent in training."""

    prior: Callable[[], Prior]
    guide: Callable[..., nn.Module] = Coupled
    some_absent: bool = False


def gaussian() -> Prior:
    return Gaussian(DIM, ps.learned(0.5))


def split() -> Prior:
    return ContentStyle(8, DIM - 8, ps.learned(0.3))


def clusters() -> Prior:
    return TwoTier(DIM, CLASSES, ps.learned(0.5), 0.3)


METHODS = {
    "Gaussian": Method(gaussian, DiagonalGaussian),
    "Gaussian, Coupled, some absent": Method(gaussian, some_absent=True),
    "8 + 12": Method(split, DiagonalGaussian),
    "8 + 12, Coupled": Method(split),
    "8 + 12, Coupled, some absent": Method(split, some_absent=True),
    "TwoTier": Method(clusters, DiagonalGaussian),
    "TwoTier, Coupled, some absent": Method(clusters, some_absent=True),
}
# What was chosen: widths, epochs and learning rate, for as many seconds of a fit.
SETTING: dict[str, Any] = {"hidden": list(HIDDEN), "epochs": EPOCHS}
SETTING |= {"rate": LEARNING_RATE}
CHANGES: tuple[dict[str, Any], ...] = (
    {"rate": 1e-3},
    {"rate": 4e-3},
    {"hidden": [64, 64], "epochs": 13},
    {"hidden": [256, 256], "epochs": 6},
)
CHOSEN_BY = "Gaussian, Coupled, some absent"
COHERENCE = [f"given {n}" for n in (1, 2, 3, 4)]
COLUMNS = {"validation: log p": 1, "log p": 1, **dict.fromkeys(COHERENCE, 3)}
COLUMNS |= {"agreement": 3, "linear probe": 3}  # and their digits


def gradient(grid: Tensor, free: Tensor) -> Tensor:
    return 0.5 + _along(grid, free[:, 0]) / 2


def stripes(grid: Tensor, free: Tensor) -> Tensor:
    waves = (1 + free[:, 1, None, None]) * _along(grid, free[:, 0])
    return 0.5 + torch.sin(2 * math.pi * (waves + free[:, 2, None, None])) / 2


def blocks(grid: Tensor, free: Tensor) -> Tensor:
    return interpolate(free[:, :9].view(-1, 1, 3, 3), SIDE).squeeze(1)


def field(grid: Tensor, free: Tensor) -> Tensor:
    coarse = free[:, :9].view(-1, 1, 3, 3)
    return interpolate(coarse, SIDE, mode="bilinear", align_corners=True).squeeze(1)


def rings(grid: Tensor, free: Tensor) -> Tensor:
    centre = 2 * free[:, :2, None, None] - 1
    waves = (0.6 + 0.6 * free[:, 2, None, None]) * (grid - centre).norm(dim=1)
    return 0.5 + torch.sin(2 * math.pi * (waves + free[:, 3, None, None])) / 2


def _along(grid: Tensor, turn: Tensor) -> Tensor:
    """The coordinate of each pixel along a direction, within ±1."""
    angle = 2 * math.pi * turn
    way = torch.stack([angle.cos(), angle.sin()], 1) / math.sqrt(2)
    return torch.einsum("nk,kij->nij", way, grid)


# Textures in [0, 1] of uniform numbers (n, 9), and the colours of the modalities.
TEXTURES = (gradient, stripes, blocks, field, rings)
COLOURS = torch.tensor(
    [
        [1.0, 0.3, 0.2],
        [0.2, 0.9, 0.4],
        [0.3, 0.4, 1.0],
        [0.9, 0.8, 0.1],
        [0.7, 0.2, 0.9],
    ]
)


def simulated(digits: ps.data.Split, items: int, seed: int) -> ps.data.Groups:
    """Draw groups of five images of one class, (items, 5, 3, 14, 14)."""
    g = Generator().manual_seed(seed)
    labels = torch.as_tensor(digits.labels)
    images = adaptive_avg_pool2d(torch.as_tensor(digits.images).float() / 255, SIDE)
    chosen = torch.randint(len(labels), (items,), generator=g)
    axis = torch.linspace(-1, 1, SIDE)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    parts = []
    for texture, colour in zip(TEXTURES, COLOURS, strict=True):
        same = torch.empty_like(chosen)
        for label in labels[chosen].unique():
            own, rows = (labels == label).nonzero()[:, 0], labels[chosen] == label
            drawn = torch.randint(len(own), (int(rows.sum()),), generator=g)
            same[rows] = own[drawn]
        free = torch.rand(items, 9, generator=g)
        back = 0.7 * texture(grid, free).unsqueeze(1) * colour[:, None, None]
        ink = images[same]
        x = (1 - ink) * back + ink * (1 - back)
        parts.append(x + NOISE * torch.randn(x.shape, generator=g))
    return ps.data.Groups(torch.stack(parts, 1), labels[chosen])


def parts(data: ps.data.Dataset, items: int) -> dict[str, ps.data.Groups]:
    """Items of training, validation and test digits; none is in two of them."""
    sizes = {"train": items, "validation": SCORED, "test": SCORED}
    found = report.parts(data)
    return {
        name: simulated(found[name], size, seed)
        for seed, (name, size) in enumerate(sizes.items())
    }


def judges(train: ps.data.Groups) -> list[nn.Module]:
    """A classifier of the digit for each modality."""
    torch.manual_seed(0)
    found, labels = [], torch.as_tensor(train.labels)
    for x in torch.as_tensor(train.views).unbind(1):
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(x[0].numel(), 256),
            nn.ReLU(),
            nn.Linear(256, CLASSES),
        )
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(JUDGE_EPOCHS):
            for rows in torch.randperm(len(x)).split(100):
                loss = cross_entropy(net(x[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        found.append(net.eval())
    return found


def judged(x: Tensor, nets: list[nn.Module]) -> Tensor:
    """The classes that the judges see in images (n, 5, 3, 14, 14)."""
    pairs = zip(nets, x.unbind(1), strict=True)
    return torch.stack([net(part).argmax(1) for net, part in pairs], 1)


def some_absent(x: Tensor) -> ps.Batch:
    """Half of the items complete; of the others each modality, or at least one."""
    n, many = x.shape[:2]
    present = (torch.rand(n, 1) < 0.5) | (torch.rand(n, many) < 0.5)
    one = torch.arange(many) == torch.randint(many, (n, 1))
    return ps.Batch(x, present=(present | one).to(x.device))


Generate = Callable[[Tensor, Tensor], Tensor]  # of x and what is present, all of x


def coherence(
    generate: Generate, test: ps.data.Groups, nets: list[nn.Module]
) -> dict[str, float]:
    """The share of absent modalities of the right class, given one to four others.

    The given ones are neighbours in a circle: five sets of each size.
    """
    x, labels = torch.as_tensor(test.views), torch.as_tensor(test.labels)
    many, figures = x.shape[1], {}
    for n, name in enumerate(COHERENCE, 1):
        shares = []
        for first in range(many):
            seen = torch.zeros(many, dtype=torch.bool)
            seen[[(first + i) % many for i in range(n)]] = True
            right = judged(generate(x, seen), nets) == labels.unsqueeze(1)
            shares.append(float(right[:, ~seen].double().mean()))
        figures[name] = mean(shares)
    return figures


def agreement(x: Tensor, nets: list[nn.Module]) -> float:
    """The share of items in all modalities of which the judges see one class."""
    seen = judged(x, nets)
    return float((seen == seen[:, :1]).all(1).double().mean())


def build(method: Method, hidden: Sequence[int] = ()) -> ps.limits.SimVAE:
    """A likelihood, an encoder and a decoder for each modality."""
    many, shape, widths = len(TEXTURES), (3, SIDE, SIDE), tuple(hidden) or HIDDEN
    joint = ps.Joint(
        method.prior(),
        [ps.likelihoods.Gaussian(ps.learned(0.3)) for _ in range(many)],
        ps.nn.PerModality([ps.nn.MLPEncoder(shape, DIM, widths) for _ in range(many)]),
        ps.nn.PerModality([ps.nn.MLPDecoder(DIM, shape, widths) for _ in range(many)]),
        guide=method.guide,
    )
    return ps.limits.SimVAE(joint)


@torch.no_grad()
def measured(
    objective: ps.limits.SimVAE,
    found: dict[str, ps.data.Groups],
    nets: list[nn.Module],
) -> dict[str, float]:
    """Evidences of held-out items in nats, coherence, and the class in z."""
    torch.manual_seed(0)
    joint, test, figures = objective.joint, found["test"], {}

    def means(z: Tensor) -> Tensor:
        return torch.cat([p.mean for p in joint.decode(z.split(1, -2))], 1)

    def generate(x: Tensor, seen: Tensor) -> Tensor:
        present = seen.expand(len(x), -1)
        return means(joint.encode(ps.Batch(x, present=present)).sample())

    for name, label in (("validation", "validation: log p"), ("test", "log p")):
        evidence = ps.evidence(objective, found[name], particles=PARTICLES)
        figures[label] = evidence.mean
    figures |= coherence(generate, test, nets)
    drawn = joint.prior(len(TEXTURES)).sample((len(test),))
    figures["agreement"] = agreement(means(drawn), nets)
    z, z_test = (ps.embed(objective, found[name]) for name in ("train", "test"))
    known = z, found["train"].labels, z_test, test.labels
    return figures | {"linear probe": ps.evaluation.linear_probe(*known)}


def fitted(
    name: str,
    seed: int,
    epochs: int,
    train: ps.data.Groups,
    hidden: Sequence[int] = (),
    rate: float = LEARNING_RATE,
) -> ps.limits.SimVAE:
    """Fit one method with one seed."""
    method = METHODS[name]
    torch.manual_seed(seed)
    objective = build(method, hidden)
    steps = epochs * (len(train) // BATCH)
    ps.fit(
        objective,
        ps.data.Split(train.views) if method.some_absent else train,
        views=some_absent if method.some_absent else None,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=rate,
        scheduler=lambda o: CosineAnnealingLR(o, steps),
        progress=False,
    )
    return objective


def cell(
    name: str,
    seed: int,
    epochs: int,
    folder: Path,
    found: dict[str, ps.data.Groups],
    nets: list[nn.Module],
) -> dict[str, Any]:
    """Fit one method with one seed, unless its folder is there; return its figures."""
    saved = folder / f"{name}, {epochs} epochs, seed {seed}"
    if (notes := report.kept(saved)) is not None:
        return notes
    began = time.process_time()
    objective = fitted(name, seed, epochs, found["train"])
    row: dict[str, Any] = {"method": name, "seed": seed}
    row |= {"epochs": epochs, **measured(objective, found, nets)}
    row["CPU seconds"] = round(time.process_time() - began)
    ps.save(objective, saved, **row)
    return row


def choose(
    seeds: int = 1,
    items: int = ITEMS,
    changes: Sequence[dict[str, Any]] = CHANGES,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return log p of validation items under each setting, in nats per item."""
    found = parts(data or ps.data.load("mnist", binary=False), items)

    def score(cell: dict[str, Any]) -> dict[str, Any]:
        began = time.process_time()
        where, held = (CHOSEN_BY, cell["seed"]), found["validation"]
        objective = fitted(*where, train=found["train"], **cell["setting"])
        evidence = ps.evidence(objective, held, particles=PARTICLES)
        seconds = round(time.process_time() - began)
        return {"score": evidence.mean, "CPU seconds": seconds}

    cells = [
        {"setting": SETTING | change, "seed": seed}
        for seed, change in product(range(seeds), ({}, *changes))
    ]
    path, script = results / "poly_mnist_choices.json", "poly_mnist.py --choose"
    return report.collected(path, script, cells, score, items=items)


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    items: int = ITEMS,
    jobs: int = -1,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[dict[str, Any]]:
    """Return the figures of every method and seed."""
    if data is None:
        data = ps.data.load("mnist", binary=False)
    found = parts(data, items)
    nets, test = judges(found["train"]), found["test"]
    seen = judged(torch.as_tensor(test.views), nets)
    right = (seen == torch.as_tensor(test.labels).unsqueeze(1)).double()
    cells = [(name, seed) for seed, name in product(range(seeds), METHODS)]
    rest = epochs, runs / "poly_mnist", found, nets
    work = (delayed(cell)(*each, *rest) for each in cells)
    done = Parallel(jobs, return_as="generator")(work)
    rows = list(tqdm(done, total=len(cells), unit="fit"))
    known = {"items": items, "judges of true images": right.mean(0).tolist()}
    report.write(results / "poly_mnist.json", "poly_mnist.py", **known, rows=rows)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        cells = (report.spread([r[c] for r in own], d) for c, d in COLUMNS.items())
        lines.append([name, *cells])
    return report.markdown(["method", *COLUMNS], lines)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=-1, help="-1 is one per core")
    parser.add_argument("--choose", action="store_true", help="on validation items")
    options = parser.parse_args()
    if options.tables:
        print(table(report.read(report.RESULTS / "poly_mnist.json")))
        saved = report.read(report.RESULTS / "poly_mnist_choices.json")
        print(report.choices(saved, SETTING, 1))
    elif options.choose:
        torch.set_num_threads(1)
        choose(results=options.out)
    else:
        main(options.seeds, results=options.out, jobs=options.jobs)
