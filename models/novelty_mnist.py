"""Does SimVAE of MNIST notice other images? The scores of `ps.novelty`, and a VAE's.

Known are 1,000 test images of MNIST, novel as many images of other kinds: clothes and
letters of other data sets, other test images that are turned, noisy or inverted, and
the simplest ones: one dot, black, white. Other test images as they are stand beside
them, which no score should tell apart: AUROC 0.5. All images are binary. Scores are

- the evidence log p(x) of one image, by importance sampling: a lower bound, of the
  first 250 images of each kind, as is the information;
- the information of a pair of views, log p(x₁, x₂) − log p(x₁) − log p(x₂), which is 0
  for a VAE, whose views are independent;
- the log kernel density of z among those of training, and the distance to the fifth
  neighbour there.

The evidence has a trap: log p(x) of a black image is a hundred nats above that of a
digit, although the model never saw one. The place of z finds it. The information,
which says whether views have one content, is higher for novel images.

Objectives, views and hyper-parameters are those of `recipes`, fitted to the 10,000
images of models/limits_mnist.py for as many epochs; fits that it kept in runs/ are
taken from there. Nothing was chosen on these images.

Results: docs/results.md, "Novel images". ``--tables`` prints the tables. Writes
benchmarks/results/novelty_mnist.json. Needs MNIST, Fashion-MNIST and Omniglot in the
folder named by the environment variable PROBSSL_DATA.

Takes a few minutes of one CPU core.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import report
import torch
from limits_mnist import EPOCHS, IMAGES, fitted, place
from report import Row
from simvae_mnist import SEEDS
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from tqdm import tqdm

import probssl as ps
from probssl import evaluation, recipes

CHOSEN_ON = "nothing"
ITEMS, FEWER, PARTICLES, FLIPPED, DOT = 1_000, 250, 30, 0.1, 3
METHODS, KNOWN, SAME = ("SimVAE", "VAE"), "known", "other digits"
FIGURES = ("AUROC", "AUPR", "FPR95")
SCORES = ("evidence", "information", "log_density", "distance")

Sources = Mapping[str, ps.data.Dataset]


def images(data: ps.data.Dataset, others: Sources) -> dict[str, Tensor]:
    """Images of 0 and 1 by their kind, as many of each: the known ones first."""
    n = min(ITEMS, len(data.test) // 2)
    known, same = as_floats(data.test.take(2 * n)).chunk(2)
    height, width = known.shape[-2:]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flipped = torch.rand(same.shape) < FLIPPED
        top, left = (torch.randint(1, side - DOT, (n,)) for side in (height, width))
    dots = torch.zeros_like(same)
    for image, row, column in zip(dots, top, left, strict=True):
        image[:, row : row + DOT, column : column + DOT] = 1
    read = {
        name: adaptive_max_pool2d(
            as_floats(other.test.take(n)), (height, width)
        ).round()
        for name, other in others.items()
    }
    return (
        {KNOWN: known, SAME: same}
        | read
        | {
            "turned": same.rot90(1, (2, 3)),
            "noisy": torch.where(flipped, 1 - same, same),
            "inverted": 1 - same,
            "a dot": dots,
            "black": torch.zeros_like(same),
            "white": torch.ones_like(same),
        }
    )


def as_floats(part: ps.data.Split) -> Tensor:
    x = torch.as_tensor(part.images)
    return x / 255 if x.dtype == torch.uint8 else x


def measured(
    method: str,
    objective: nn.Module,
    data: ps.data.Dataset,
    kinds: Mapping[str, Tensor],
) -> list[Row]:
    """How well the scores of a fit tell each kind of image from the known one."""
    torch.manual_seed(0)  # of the particles, whether the fit is new or was kept
    some = torch.cat([x[:FEWER] for x in kinds.values()])
    z = ps.novelty(objective, torch.cat(list(kinds.values())), data.train)
    found = ps.novelty(objective, some, particles=PARTICLES)
    scores = found.scores | z.scores
    if method != "VAE":
        views = recipes.views(data)
        pairs = ps.novelty(objective, some, particles=PARTICLES, views=views)
        scores["information"] = pairs.scores["information"]
    parts = {name: s.reshape(len(kinds), -1) for name, s in scores.items()}
    high = (found.evidence.pareto_k > 0.7).reshape(len(kinds), -1)
    rows = []
    for number, kind in enumerate(kinds):
        row: Row = {"method": method, "kind": kind}
        row["log p(x)"] = float(-parts["evidence"][number].mean())
        row["above 0.7"] = float(high[number].mean())
        if "information" in parts:
            row["shared"] = float(-parts["information"][number].mean())
        for name, score in parts.items() if number else ():
            told = evaluation.detection(score[0], score[number])
            row[f"{name}: AUROC"], error = told.auroc
            row[f"{name}: standard error"] = error
            row[f"{name}: AUPR"], row[f"{name}: FPR95"] = told.aupr, told.fpr95
        rows.append(row)
    return rows


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    data: ps.data.Dataset | None = None,
    others: Sources | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[Row]:
    """Return how well each score tells each kind from known images, by fit."""
    if data is None:
        data = ps.data.load("mnist")
        data = data._replace(train=data.train.take(IMAGES))
    if others is None:
        others = {
            "Fashion-MNIST": ps.data.load("fashion-mnist"),
            "Omniglot": ps.data.load("omniglot"),
        }
    kinds, rows = images(data, others), list[Row]()
    fits = [(method, seed) for seed in range(seeds) for method in METHODS]
    for method, seed in tqdm(fits, unit="fit"):
        saved = place(runs, method, epochs, seed)
        torch.manual_seed(seed)
        kept = saved.is_dir()
        objective = ps.load(saved) if kept else fitted(method, data, epochs)
        found = measured(method, objective, data, kinds)
        rows += [{"seed": seed} | row for row in found]
        content = {"images": len(data.train), "epochs": epochs, "particles": PARTICLES}
        path = results / "novelty_mnist.json"
        report.write(path, "novelty_mnist.py", **content, rows=rows)
    return rows


def tables(rows: Sequence[Row]) -> str:
    """A table for each figure, and one of the evidence, in Markdown."""
    kinds = dict.fromkeys(row["kind"] for row in rows)

    def values(method: str, kind: str, column: str) -> list[float]:
        own = (r for r in rows if (r["method"], r["kind"]) == (method, kind))
        return [row[column] for row in own if column in row]

    first = METHODS[0]
    lines = [
        [kind]
        + [report.spread(values(method, kind, "log p(x)"), 1) for method in METHODS]
        + [f"{100 * mean(values(m, kind, 'above 0.7')):.0f} %" for m in METHODS]
        + [report.spread(values(first, kind, "shared"), 1)]
        for kind in kinds
    ]
    head = [f"{m}: {what}" for what in ("log p(x)", "k̂ > 0.7") for m in METHODS]
    head.append(f"{first}: information")
    parts = [report.markdown(["images", *head], lines)]
    columns = [(m, s) for m in METHODS for s in SCORES if (m, s) != ("VAE", SCORES[1])]
    for figure in FIGURES:
        lines = [
            [kind]
            + [report.spread(values(m, kind, f"{s}: {figure}")) for m, s in columns]
            for kind in kinds
            if kind != KNOWN
        ]
        head = [f"{method}: {score}" for method, score in columns]
        parts.append(report.markdown([figure, *head], lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    saved = report.RESULTS / "novelty_mnist.json"
    report.command(__doc__, main, lambda: tables(report.read(saved)))
