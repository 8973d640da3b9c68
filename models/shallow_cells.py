"""Which shallow cells can be told? Types of simulated cells at 20 to 1,000 counts.

Cells come from `probssl.data.cells`: types in a tree, negative binomial counts. Models
are fitted to deep cells without labels. Each test cell is thinned to the depths, and
its type is asked for in two ways: by the 15 nearest training cells, whose types are
known, in z; and as the set of types with 90 % of the posterior.

JointEmbeddingSCVI of scvi-tools adds to the ELBO of a cell, with a weight that is set
by hand, Barlow Twins' loss of the cell and a thinned view of it ("Improving SCVI for
low-count cells through self-supervised augmentation", Svensson, 2026). Here `Weighted`
is that objective, for a row of weights. SimVAE of the same two views has its prior in
the place of the weight, with a scale that is fixed, learned, or random. All have the
same networks, views and number of epochs: the first view is the cell, the second is
thinned to a depth that is log-uniform from 10 counts to the cell's own.

The truth of a simulation is known. Its row is Bayes' rule with the true shares of genes
of each type: no method can be more accurate on average, and none can have smaller sets
with their coverage. The probabilities of types come in three ways:

- guide: the mean, over draws of q(z|x), of a logistic regression that was fitted to
  draws of the labelled training cells;
- weighted: the same with the draws' importance weights, which turn q(z|x) into the
  posterior of the model;
- cells: p(x|z) at the z of each training cell, summed over those of a type. Training
  cells take the place of the prior, and q(z|x) of the shallow cell is not used.

The weighted draws also give a lower bound of log p(x), which says more of q(z|x) than
of the model where few of them count. So `--refined` fits a proposal of its own to each
of some test cells, and compares both with the truth.

The learning rate, the size of a batch, and whether Barlow Twins' loss compares means
or draws of q(z|x) are chosen by `--choose` on validation cells: a first setting is
exchanged for one that is better by more than two standard errors. No test cell is seen.

Results: docs/results.md, "Shallow cells". Prints the tables and writes
benchmarks/results/shallow_cells.json, and a figure beside it. Every row is kept, so
that a run that was stopped goes on. `--tables` prints the tables in Markdown. The
sizes are those that one core carries; `--cells 10000 --genes 2000 --types 20` are those
of a study. `--longer` adds fits of some methods to three times as many epochs,
`--refined` writes shallow_cells_refined.json.

Takes twenty minutes of one CPU core, the longer and the refined fits included.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import report
import torch
from report import Row
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import softplus

import probssl as ps
from probssl import guides, limits, priors
from probssl.plots.style import BLUE, INK, ORANGE, PALE, blank, clean

CHOSEN_ON = "validation"
SEEDS, LONGER_SEEDS, CHOICE_SEEDS, DIM, HIDDEN = 5, 3, 2, 10, 128
VALIDATION, TEST, FEW = 500, 1_000, 200
DEPTHS = (20, 50, 100, 200, 500, 1_000)
DEEP = (1_000.0, 10_000.0)  # expected counts of training cells
LEAST = 10.0  # of a thinned view
EFFECT, DISPERSION = 0.5, 0.2  # of the simulation
NEIGHBOURS, MASS, SEEN, DRAWS, WEIGHED = 15, 0.9, 4, 100, 200
WEIGHTS = (1, 10, 100, 1_000)
SCALES = (0.1, 0.3, 1.0)
OFF_DIAGONAL = 0.01  # published
TRUTH = "truth"
RESULTS = report.RESULTS / "shallow_cells.json"
WAYS = ("guide", "weighted", "cells")


class Setting(NamedTuple):
    """How models are fitted, chosen on validation cells."""

    rate: float = 4e-3
    batch: int = 128
    epochs: int = 30
    twins: str = "draws"


class Sizes(NamedTuple):
    """The size of a simulation: training cells, genes, types."""

    cells: int = 2_000
    genes: int = 200
    types: int = 10


FIRST = Setting()
SETTING = FIRST
TRIED = {  # settings of all methods, and of those with Barlow Twins' loss
    "all": (
        FIRST,
        FIRST._replace(rate=8e-3),
        FIRST._replace(batch=64),
    ),
    "twins": (FIRST, FIRST._replace(twins="means")),
}


SIZES = Sizes()


def simulated(seed: int, sizes: Sizes) -> dict[str, Any]:
    """The cells of a seed, and the shares of genes of each type, which are the truth.

    The training set has the validation cells at its end.
    """
    torch.manual_seed(seed)
    kept, (n, genes, types) = VALIDATION + TEST, sizes
    effects = {"effect": EFFECT, "dispersion": DISPERSION}
    drawn = ps.data.cells(n + kept, genes, types=types, depth=DEEP, **effects)
    parts = (
        drawn.split.rows(slice(n + VALIDATION)),
        drawn.split.rows(slice(-TEST, None)),
    )
    return {"data": ps.data.Dataset(*parts, None, "cells"), "share": drawn.share[0]}


def thinned(split: ps.data.Split, depth: int, seed: int = 0) -> ps.data.Split:
    """The cells at an expected depth, each unit kept with the same probability."""
    drawn = torch.Generator().manual_seed(1_000 * seed + depth)
    share = depth / 1_000 / split.covariates["size"]
    counts = torch.binomial(split.images, share.expand_as(split.images), drawn)
    known = {"size": torch.full_like(share, depth / 1_000)}
    return split._replace(images=counts, covariates=known)


class Shallow(nn.Module):
    """A cell and a thinned view of it, whose depth is log-uniform from 10 counts on."""

    def forward(self, x: Tensor) -> ps.Batch:
        count = x.sum(1, keepdim=True).clamp(min=LEAST)
        share = (LEAST / count) ** torch.rand_like(count)
        views = torch.stack([x, torch.binomial(x, share.expand_as(x))], 1)
        shares = torch.stack([torch.ones_like(share), share], 1)
        return ps.Batch(views, clean=x, covariates={"share": shares})


class LogCounts(ps.nn.MLPEncoder):
    """An encoder of log(1 + x)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.log1p())


class Shares(ps.nn.MLPDecoder):
    """log μ: shares of genes, which sum to 1, times the depth."""

    def forward(self, z: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        depth = 1_000 * covariates["size"] * covariates.get("share", 1.0)
        return super().forward(z).log_softmax(-1) + depth.log()


class Weighted(nn.Module):
    """The ELBO of a cell, less w times Barlow Twins' loss of the cell and a view of it.

    Arguments:
        joint: That of the VAE.
        weight: w, set by hand.
        compared: Whether the loss is that of draws of q(z|x), as published, or of
            its means.
    """

    def __init__(self, joint: ps.Joint, weight: float, compared: str) -> None:
        super().__init__()
        self.vae, self.weight, self.compared = limits.VAE(joint), weight, compared
        self.twins = limits.BarlowTwins(nn.Identity(), redundancy=OFF_DIAGONAL)

    @property
    def joint(self) -> ps.Joint:
        return self.vae.joint

    def forward(self, batch: ps.Batch) -> ps.Terms:
        known = {k: v[:, :1] if v.ndim == 3 else v for k, v in batch.covariates.items()}
        cell = batch._replace(views=batch.views[:, :1], covariates=known)
        q = self.joint.encode(batch)
        z = q.rsample() if self.compared == "draws" else q.mean
        nats = sum(self.twins.value(self.twins.prepared(z), batch))
        published = -4 * OFF_DIAGONAL * nats  # and a constant
        return self.vae(cell)._replace(penalty=-self.weight * published)

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The mean of q(z|x)."""
        return self.vae.represent(x, layer)


def encoder(genes: int) -> nn.Module:
    """An MLP of one hidden layer."""
    return LogCounts((genes,), DIM, (HIDDEN,))


def joint(genes: int, prior: priors.Prior, **guide: Any) -> ps.Joint:
    """A negative binomial p(x|z), with a dispersion for each gene."""
    likelihood = ps.likelihoods.NegativeBinomial(ps.learned([0.5] * genes))
    decoder = Shares(DIM, (genes,), (HIDDEN,))
    return ps.Joint(prior, likelihood, encoder(genes), decoder, **guide)


Build = Callable[[int, Setting], nn.Module]
Worlds = Mapping[int, Mapping[str, Any]]


def vae(genes: int, _: Setting) -> nn.Module:
    return limits.VAE(joint(genes, priors.Independent(DIM)))


def weighted(weight: float) -> Build:
    def build(genes: int, setting: Setting) -> nn.Module:
        own = joint(genes, priors.Independent(DIM))
        return Weighted(own, weight, setting.twins)

    return build


def simvae(scale: Any, **guide: Any) -> Build:
    def build(genes: int, _: Setting) -> nn.Module:
        return limits.SimVAE(joint(genes, priors.Gaussian(DIM, scale), **guide))

    return build


def log_det(genes: int, _: Setting) -> nn.Module:
    return limits.LogDet(encoder(genes))


def lejepa(genes: int, _: Setting) -> nn.Module:
    head = ps.nn.Projector(DIM, width=HIDDEN, out=32)
    return limits.LeJEPA(encoder(genes), head, slices=64)


LEARNED, COUPLED = "SimVAE, learned scale", "SimVAE, learned scale, Coupled"
TWINS = "VAE + 100 × Barlow Twins"  # the published weight
HAND = {f"VAE + {w:,} × Barlow Twins": weighted(w) for w in WEIGHTS}
FIXED = {f"SimVAE, scale {s:g}": simvae(s) for s in SCALES}
METHODS: dict[str, Build] = {
    "VAE": vae,
    "VAE, both views": vae,
    **HAND,
    **FIXED,
    LEARNED: simvae(ps.learned(0.3)),
    "SimVAE, random scale": simvae(dist.LogNormal(-1.0, 1.0)),
    COUPLED: simvae(ps.learned(0.3), guide=guides.Coupled),
    "LogDet": log_det,
    "LeJEPA": lejepa,
}
ROWS = (TRUTH, *METHODS)
LONGER = 90  # epochs, of these
LONG = ("VAE, both views", "VAE + 10 × Barlow Twins", "SimVAE, scale 0.1")
LONG += (LEARNED, COUPLED)
REFINED = ("VAE", "VAE, both views", "VAE + 10 × Barlow Twins", TWINS)
REFINED += ("SimVAE, scale 0.1", LEARNED, COUPLED)
REFINED_SEEDS, ITEMS, STEPS = 3, 64, 500
LINES = {  # of the figure
    TRUTH: (INK, ":"),
    "VAE": (PALE, "-"),
    "VAE + 10 × Barlow Twins": (ORANGE, "-"),
    "VAE + 100 × Barlow Twins": (ORANGE, "--"),
    "SimVAE, scale 0.1": (BLUE, "-"),
    LEARNED: (BLUE, "--"),
    "LogDet": (INK, "-"),
}


def fitted(method: str, train: ps.data.Split, seed: int, setting: Setting) -> nn.Module:
    """An objective, fitted to training cells; the VAE to the cells alone."""
    torch.manual_seed(seed)
    objective = METHODS[method](train.images.shape[1], setting)
    ps.fit(
        objective,
        train,
        views=None if method == "VAE" else Shallow(),
        epochs=setting.epochs,
        batch_size=setting.batch,
        learning_rate=setting.rate,
        compile=False,
        progress=False,
    )
    return objective


def embedded(objective: nn.Module, split: ps.data.Split) -> np.ndarray:
    """z, of a joint the mean of q(z|x)."""
    return ps.embed(getattr(objective, "joint", objective), split)


def accuracies(
    objective: nn.Module, train: ps.data.Split, split: ps.data.Split
) -> dict[str, float]:
    """Of 15 nearest deep cells at each depth: the mean over types of their accuracy."""
    near = KNeighborsClassifier(NEIGHBOURS)
    near.fit(embedded(objective, train), train.labels.numpy())
    found = {}
    for depth in DEPTHS:
        shallow = thinned(split, depth)
        said = near.predict(embedded(objective, shallow))
        found[str(depth)] = float(balanced_accuracy_score(shallow.labels.numpy(), said))
    return found


def log_likelihoods(x: Tensor, log_mean: Tensor, dispersion: Tensor) -> Tensor:
    """log p(x|μ) of cells under each row of log μ, negative binomial, (cell, row).

    Only products of matrices have the size of both.
    """
    x, log_mean, alpha = x.double(), log_mean.double(), dispersion.double()
    r = 1 / alpha
    own = (x + r).lgamma() - r.lgamma() - (x + 1).lgamma() + x * alpha.log()
    past = softplus(log_mean + alpha.log())
    return own.sum(1, keepdim=True) + x @ log_mean.T - (x + r) @ past.T


def credible(share: np.ndarray, labels: np.ndarray) -> Row:
    """Coverage and mean size of the smallest sets of types that have 90 % of p(k|x),
    and the accuracy of the most probable type, a mean over types."""
    order = np.argsort(-share, 1, kind="stable")
    sorted_ = np.take_along_axis(share, order, 1)
    inside = sorted_.cumsum(1) - sorted_ < MASS - 1e-9
    held = (inside & (order == labels[:, None])).any(1)
    return {
        "accuracy": float(balanced_accuracy_score(labels, order[:, 0])),
        "coverage": float(held.mean()),
        "size": float(inside.sum(1).mean()),
    }


@torch.no_grad()
def drawn(joint: ps.Joint, split: ps.data.Split, draws: int) -> np.ndarray:
    """Draws from q(z|x) of each cell, (draw, cell, dim)."""
    batch = ps.Batch(split.images.unsqueeze(1), covariates=split.covariates)
    return joint.draw(batch, draws)[0].squeeze(2).numpy()


class Typed(NamedTuple):
    """p(k|z) and p(x|z) of a fitted joint, from labelled training cells.

    Arguments:
        z: Those of the training cells.
        probability: A classifier of z.
    """

    joint: ps.Joint
    z: np.ndarray
    labels: np.ndarray
    probability: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, joint: ps.Joint, train: ps.data.Split) -> "Typed":
        z, labels = ps.embed(joint, train), train.labels.numpy()
        classifier = LogisticRegression(max_iter=1_000)
        own = drawn(joint, train, SEEN)
        classifier.fit(own.reshape(-1, own.shape[-1]), np.tile(labels, SEEN))
        return cls(joint, z, labels, classifier.predict_proba)

    def each(self, z: np.ndarray) -> np.ndarray:
        """p(k|z) of draws, (draw, cell, type)."""
        flat = self.probability(z.reshape(-1, z.shape[-1]))
        return flat.reshape(*z.shape[:2], -1)

    def guide(self, split: ps.data.Split) -> np.ndarray:
        """E[p(k|z)] under q(z|x)."""
        return self.each(drawn(self.joint, split, DRAWS)).mean(0)

    def weighted(self, split: ps.data.Split) -> tuple[np.ndarray, Row]:
        """The same with importance weights, and log p(x) and k̂ by these."""
        found = ps.to_arviz(
            self.joint,
            split,
            draws=WEIGHED,
            items=len(split),
            predictive=False,
            content=False,
        )
        stats = found["sample_stats"]
        log_weight = (stats["log_p"] - stats["log_q"]).values[0]
        weight = np.exp(log_weight - log_weight.max(0))
        each = self.each(found["posterior"]["z"].values[0, :, :, 0])
        share = (weight[..., None] * each).sum(0) / weight.sum(0)[:, None]
        log_p = log_weight.max(0) + np.log(weight.mean(0))
        ess = weight.sum(0) ** 2 / np.square(weight).sum(0)
        return share, {"evidence": float(log_p.mean()), "ESS": float(np.median(ess))}

    @torch.no_grad()
    def cells(self, split: ps.data.Split) -> np.ndarray:
        """p(k|x) with the training cells in the place of the prior."""
        size = split.covariates["size"][:1].expand(len(self.z), 1)
        log_mean = self.joint.decoder(torch.as_tensor(self.z), {"size": size})
        alpha = self.joint.likelihood.dispersion()
        log_p = log_likelihoods(split.images, log_mean, alpha)
        each = log_p.softmax(1).numpy()
        return np.stack(
            [each[:, self.labels == k].sum(1) for k in np.unique(self.labels)], 1
        )


def measured(objective: nn.Module, train: ps.data.Split, test: ps.data.Split) -> Row:
    """Accuracies, sets of types by each way, and log p(x) at each depth."""
    found: Row = {"accuracy": accuracies(objective, train, test)}
    joint = getattr(objective, "joint", None)
    if joint is None:
        return found
    typed = Typed.of(joint, train)
    for depth in DEPTHS:
        shallow = thinned(test, depth)
        some = shallow.rows(slice(FEW))
        weighted, nats = typed.weighted(some)
        for way, share, split in (
            ("guide", typed.guide(shallow), shallow),
            ("weighted", weighted, some),
            ("cells", typed.cells(shallow), shallow),
        ):
            found.setdefault(way, {})[str(depth)] = credible(
                share, split.labels.numpy()
            )
        found.setdefault("nats", {})[str(depth)] = nats
    return found


def true_log_likelihoods(share: Tensor, split: ps.data.Split, depth: int) -> Tensor:
    """log p(x|k) of cells at a depth, (cell, type), by the true shares of genes."""
    alpha = torch.tensor(DISPERSION).expand(share.shape[1])
    return log_likelihoods(split.images, (depth * share).log(), alpha)


def bayes(share: Tensor, test: ps.data.Split) -> Row:
    """The same of the truth: Bayes' rule with the shares of genes of each type."""
    found: Row = {"accuracy": {}, "cells": {}, "nats": {}}
    for depth in DEPTHS:
        shallow = thinned(test, depth)
        log_p = true_log_likelihoods(share, shallow, depth)
        each, labels = log_p.softmax(1).numpy(), shallow.labels.numpy()
        name, few = str(depth), log_p[:FEW].logsumexp(1) - math.log(len(share))
        score = balanced_accuracy_score(labels, each.argmax(1))
        found["accuracy"][name] = float(score)
        found["cells"][name] = credible(each, labels)
        found["nats"][name] = {"evidence": float(few.mean())}
    return found


def measured_all(cell: Row, world: Mapping[str, Any], setting: Setting) -> Row:
    """A row: validation accuracies, test figures, a learned scale, CPU seconds."""
    began = time.process_time()
    parts = report.parts(world["data"], VALIDATION)
    if cell["method"] == TRUTH:
        return {"test": bayes(world["share"], parts["test"])}
    objective = fitted(cell["method"], parts["train"], cell["seed"], setting)
    found = {"fit: CPU seconds": round(time.process_time() - began, 1)}
    near = accuracies(objective, parts["train"], parts["validation"])
    found |= {"validation": {"accuracy": near}}
    found |= {"test": measured(objective, parts["train"], parts["test"])}
    prior = getattr(getattr(objective, "joint", None), "prior", None)
    if isinstance(prior, priors.Gaussian):
        found["scale"] = float(prior.scale().detach())
    return found | {"CPU seconds": round(time.process_time() - began, 1)}


def main(
    seeds: Sequence[int] = range(SEEDS),
    methods: Sequence[str] = ROWS,
    setting: Setting = SETTING,
    sizes: Sizes = SIZES,
    worlds: Worlds | None = None,
    results: Path = report.OUT,
) -> list[Row]:
    """Return the rows of these methods and seeds; the file keeps all rows.

    Arguments:
        worlds: The cells of each seed, and their truth; None simulates them.
    """
    rate, batch, epochs, twins = setting
    cells = [
        {"method": method, "epochs": epochs, "seed": seed}
        for seed in seeds
        for method in methods
    ]
    path = results / RESULTS.name
    content = {"rate": rate, "batch": batch, "twins": twins, "sizes": sizes._asdict()}
    if worlds is None:
        worlds = {seed: simulated(seed, sizes) for seed in seeds}

    def fit(cell: Row) -> Row:
        return measured_all(cell, worlds[cell["seed"]], setting)

    rows = report.collected(path, "shallow_cells.py", cells, fit, **content)
    draw(rows, path.with_name(f"{path.stem}_{epochs}.png"))
    print(tables(rows))
    return rows


def after(rows: Sequence[Row], epochs: int) -> list[Row]:
    """The rows of fits of so many epochs."""
    return [row for row in rows if row["epochs"] == epochs]


def refined(
    seeds: Sequence[int] = range(REFINED_SEEDS),
    methods: Sequence[str] = REFINED,
    setting: Setting = SETTING,
    sizes: Sizes = SIZES,
    worlds: Worlds | None = None,
    results: Path = report.OUT,
    steps: int = STEPS,
) -> list[Row]:
    """Return log p(x) of some test cells by a proposal that is fitted to each of them.

    The figures are nats below the truth, of the same cells, at the ends of the depths.
    """
    if worlds is None:
        worlds = {seed: simulated(seed, sizes) for seed in seeds}

    def below(cell: Row) -> Row:
        world, found = worlds[cell["seed"]], {}
        parts = report.parts(world["data"], VALIDATION)
        own = cell["method"], parts["train"], cell["seed"], setting
        joint = fitted(*own).joint
        for depth in (DEPTHS[0], DEPTHS[-1]):
            some = thinned(parts["test"], depth).rows(slice(ITEMS))
            truth = true_log_likelihoods(world["share"], some, depth).logsumexp(1)
            nats = float(truth.mean()) - math.log(len(world["share"]))
            each = ps.evidence(joint, some, particles=WEIGHED, refine=steps)
            found[str(depth)] = {
                "guide": nats - each.before.mean,
                "refined": nats - each.mean,
                "k̂ above 0.7": [each.before.unreliable, each.unreliable],
            }
        return {"nats below the truth": found}

    content = {"setting": setting._asdict(), "sizes": sizes._asdict(), "steps": steps}
    cells = [{"method": method, "seed": seed} for seed in seeds for method in methods]
    path = results / "shallow_cells_refined.json"
    script = "shallow_cells.py --refined"
    return report.collected(path, script, cells, below, **content)


def nats(rows: Sequence[Row]) -> str:
    """Nats below the truth at the ends of the depths, in Markdown."""
    ends = [str(DEPTHS[0]), str(DEPTHS[-1])]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [r["nats below the truth"] for r in rows if r["method"] == method]
        shown = [
            error([each[end][by] for each in own], 1)
            for end in ends
            for by in ("guide", "refined")
        ]
        lines.append([method, *shown])
    heads = [f"{int(end):,}, {by}" for end in ends for by in ("guide", "refined")]
    return report.markdown(["nats below the truth", *heads], lines)


def choose(
    seeds: Sequence[int] = range(CHOICE_SEEDS),
    sizes: Sizes = SIZES,
    worlds: Worlds | None = None,
    results: Path = report.OUT,
) -> list[Row]:
    """Return the scores of all settings: the mean accuracy over depths."""
    cells = [
        {"choice": choice, "setting": setting._asdict(), "method": method, "seed": seed}
        for choice, tried in TRIED.items()
        for setting in tried
        for method in (TWINS, LEARNED)[: 1 + (choice == "all")]
        for seed in seeds
    ]
    if worlds is None:
        worlds = {seed: simulated(seed, sizes) for seed in seeds}

    def score(cell: Row) -> Row:
        parts = report.parts(worlds[cell["seed"]]["data"], VALIDATION)
        own = cell["method"], parts["train"], cell["seed"], Setting(**cell["setting"])
        found = accuracies(fitted(*own), parts["train"], parts["validation"])
        return {"score": mean(found.values())}

    path = results / "shallow_cells_choices.json"
    script = "shallow_cells.py --choose"
    return report.collected(path, script, cells, score, sizes=sizes._asdict())


def choices(rows: Sequence[Row]) -> str:
    """Settings with their scores and their gains over the first, in Markdown."""
    return report.choices(rows, FIRST._asdict(), 2)


def values(rows: Sequence[Row], method: str, *keys: str) -> list[float]:
    """A figure of the test cells in each seed; none where the method has none."""
    found = []
    for row in (row for row in rows if row["method"] == method):
        value = row["test"]
        for key in keys:
            value = value.get(key, {})
        found += [value] if value != {} else []
    return found


def error(found: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error over seeds; of one seed the value, of none a dash."""
    if len(found) < 2:
        return report.spread(found, digits)
    return f"{mean(found):.{digits}f} ± {stdev(found) / len(found) ** 0.5:.{digits}f}"


def table(rows: Sequence[Row], *keys: str, last: str = "", digits: int = 2) -> str:
    """A figure of each method at each depth, in Markdown."""
    return by_depth(
        lambda method, depth: values(rows, method, *keys, depth, *last.split()),
        lambda found: error(found, digits),
    )


def sets(rows: Sequence[Row], way: str) -> str:
    """Coverage and mean size of the sets at each depth, in Markdown."""
    return by_depth(
        lambda method, depth: [
            (each["coverage"], each["size"])
            for each in values(rows, method, way, depth)
        ],
        lambda found: (
            f"{error([a for a, _ in found])}; {mean(b for _, b in found):.1f}"
        ),
    )


def ways(rows: Sequence[Row]) -> str:
    """Coverage and size of the sets by each way at the lowest depth, and the ESS."""
    depth, lines = str(DEPTHS[0]), []
    for method in (m for m in ROWS if values(rows, m, "guide")):
        shown = [
            f"{error(values(rows, method, way, depth, 'coverage'))}; "
            f"{mean(values(rows, method, way, depth, 'size')):.1f}"
            for way in WAYS
        ]
        lines.append(
            [method, *shown, f"{mean(values(rows, method, 'nats', depth, 'ESS')):.0f}"]
        )
    return report.markdown([f"{depth} counts", *WAYS, "ESS"], lines)


def by_depth(
    figure: Callable[[str, str], list[Any]], shown: Callable[[list[Any]], str]
) -> str:
    """A row for each method that has the figure, a column for each depth."""
    found = {m: [figure(m, str(depth)) for depth in DEPTHS] for m in ROWS}
    lines = [[m, *map(shown, each)] for m, each in found.items() if each[0]]
    return report.markdown(["counts", *(f"{depth:,}" for depth in DEPTHS)], lines)


def best(rows: Sequence[Row], methods: Iterable[str]) -> str:
    """The method of the best mean accuracy of validation cells."""

    def score(method: str) -> float:
        own = [row for row in rows if row["method"] == method]
        return mean(v for r in own for v in r["validation"]["accuracy"].values())

    return max((m for m in methods if values(rows, m, "accuracy")), key=score)


def gains(rows: Sequence[Row]) -> str:
    """Accuracies of 15-NN above those of the best hand-set weight, paired by seeds."""
    base = best(rows, HAND)
    found = {m: [values(rows, m, "accuracy", str(d)) for d in DEPTHS] for m in METHODS}
    lines = []
    for method in (m for m in METHODS if "SimVAE" in m and found[m][0]):
        both = zip(found[method], found[base], strict=True)
        lines.append([method, *(report.gain(a, b, 2) for a, b in both)])
    head = [f"above {base}", *(f"{depth:,}" for depth in DEPTHS)]
    return report.markdown(head, lines)


def tables(rows: Sequence[Row]) -> str:
    """All tables, each under its name."""
    found = {"accuracy, 15-NN": table(rows, "accuracy")}
    if values(rows, TWINS, "accuracy"):
        found["gains"] = gains(rows)
    for way in WAYS:
        found[f"accuracy, {way}"] = table(rows, way, last="accuracy")
        found[f"coverage; size, {way}"] = sets(rows, way)
    found["coverage; size at the lowest depth"] = ways(rows)
    found["log p(x), bound by the guide"] = table(
        rows, "nats", last="evidence", digits=1
    )
    scales = {
        m: [row["scale"] for row in rows if row["method"] == m and "scale" in row]
        for m in ROWS
    }
    found["scale"] = "\n".join(f"{m}: {error(s)}" for m, s in scales.items() if s)
    return "\n\n".join(f"{name}\n\n{shown}" for name, shown in found.items())


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of 15-NN, and coverage of sets by the guide, over the depth."""
    figure = blank(8.0, 3.4)
    panels = figure.subplots(1, 2)
    for panel, (way, *last) in zip(
        panels, (("accuracy",), ("guide", "coverage")), strict=True
    ):
        clean(panel)
        panel.set_xscale("log")
        panel.set_xlabel("counts of a cell")
        for method, (colour, style) in LINES.items():
            own = "cells" if last and method == TRUTH else way
            at = [values(rows, method, own, str(depth), *last) for depth in DEPTHS]
            if at[0]:
                means = [mean(each) for each in at]
                panel.plot(DEPTHS, means, color=colour, ls=style, label=method)
    panels[0].set_ylabel("balanced accuracy, 15-NN")
    panels[1].set_ylabel("coverage of sets of 90 %")
    panels[1].axhline(MASS, color=PALE, zorder=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    report.draw(path, figure)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("--choose", action="store_true", help="on validation cells")
    parser.add_argument("--seeds", nargs="*", type=int, help="by default all")
    parser.add_argument("--methods", nargs="*", help="by default all")
    parser.add_argument("--refined", action="store_true", help="log p(x) of some cells")
    parser.add_argument("--longer", action="store_true", help="three times the epochs")
    for name, size in SIZES._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    sizes = Sizes(options.cells, options.genes, options.types)
    torch.set_num_threads(1)
    if options.tables:
        found = report.read(RESULTS)
        for epochs in sorted({row["epochs"] for row in found}):
            print(f"{epochs} epochs", tables(after(found, epochs)), sep="\n\n")
        print(nats(report.read(RESULTS.with_name("shallow_cells_refined.json"))))
    elif options.refined:
        refined(sizes=sizes, results=options.out)
    elif options.choose:
        seeds = range(CHOICE_SEEDS) if options.seeds is None else options.seeds
        choose(seeds, sizes, results=options.out)
    else:
        seeds = range(LONGER_SEEDS if options.longer else SEEDS)
        seeds = seeds if options.seeds is None else options.seeds
        setting = SETTING._replace(epochs=LONGER) if options.longer else SETTING
        methods = options.methods or (LONG if options.longer else ROWS)
        main(seeds, methods, setting, sizes, results=options.out)
