r"""What classes does SimVAE find in MNIST without labels?

SimVAE with a mixture prior, `priors.Mixture` or `priors.TwoTier`, sees pairs of views
of binary images and no label. An image's cluster is the component k of the largest
p(k|x), by `classify`. There are ten components; or twenty, which are then joined to ten
by what the views of an image have in common. The fit starts as VaDE does: at a model
without components, of ten content and four style dimensions (`priors.ContentStyle`),
and a Gaussian mixture fitted to its z. z gets a new basis, in which the covariances of
the prior are those of the mixture; the encoder's last layer and the decoder's first one
take it up, so that the fit goes on where it was. The joined components of that start
are also the pseudo-labels, in its first epochs, of a mixture of ten.

Beside them are k-means and that Gaussian mixture, of z of the model without components
and of a VAE, and two other starts of `priors.Mixture`: random means, and the classes
themselves, whose labels it sees in the first epochs only. The last says whether the
bound would keep the classes, and whether it is higher there.

Accuracy is under the best one-to-one matching of clusters with the classes of the
images that are scored. The views, the numbers of content and style dimensions, the
start and the number of components were chosen on validation images, the last 5,000
training images, by their accuracy with one seed: a choice by labels, which a user
without any cannot make. Nothing was chosen on test images.

Reaches 0.700 with ten components and 0.796 with twenty that are joined, less than the
published 0.945 of VaDE. From the classes it ends at 0.881, with a bound 21 nats above
that from random means: the search limits the clusters first.

Results: docs/results.md, "Clusters". Writes benchmarks/results/clusters_mnist.json.
Each fit leaves a file in runs/, and is not run again. Needs MNIST in the folder named
by the environment variable PROBSSL_DATA.

Takes an hour of one CPU core.

References:
    Variational Deep Embedding (Jiang et al., 2017)
    https://arxiv.org/abs/1611.05148
    Agglomerative Information Bottleneck (Slonim and Tishby, 1999)
    https://papers.nips.cc/paper/1651-agglomerative-information-bottleneck
"""

import copy
import json
import time
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from report import (
    RESULTS,
    ROOT,
    Parts,
    Row,
    gain,
    known,
    markdown,
    parser,
    parts,
    read,
    spread,
    write,
)
from scipy.linalg import eigh
from scipy.special import rel_entr
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import probssl as ps
from probssl.runtime import files
from probssl.views import Affine, Augment

SEEDS, CLASSES, MANY, IMAGES, PAIRS = 10, 10, 20, 20_000, 2_000
CONTENT, STYLE, SCALE, HIDDEN = 10, 4, 0.15, (256, 256)
BATCH, FIRST, THEN = 240, (16, 2e-3), (6, 1e-3)  # epochs and learning rates
JOINED = "Mixture, from joined components"
LABELLED = "Mixture, from the classes"
RANDOM = "Mixture, from random means"
FEW = 3  # seeds of the last two, and of the VAE
HELD_OUT = ("validation", "test")
CHOSEN_ON = "validation"
SHOWN = Affine(rotate=25, scale=(0.7, 1.3), shift=0.1)
JOINED_MANY = f"Mixture, {MANY} components joined"
FITS = {  # the prior and its number of components
    "Mixture": ("Mixture", CLASSES),
    "TwoTier": ("TwoTier", CLASSES),
    JOINED_MANY: ("Mixture", MANY),
}


class Normals(nn.Module):
    """Components with means and relative scales, of each dimension, as in VaDE."""

    learning_rate_factor = 10.0

    def __init__(self, means: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.components, self.dim = means.shape
        self.loc = nn.Parameter(means.float())
        self.log_scale = nn.Parameter(scales.float().log().expand_as(means).clone())

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.loc, self.log_scale.exp()


class Start(NamedTuple):
    """A prior of z after a change of basis."""

    prior: ps.priors.Mixture | ps.priors.TwoTier
    basis: Tensor


def views(number: int) -> Augment:
    return Augment(SHOWN, views=number, levels=1)


def simvae(prior: ps.priors.Prior, shape: tuple[int, ...]) -> ps.limits.SimVAE:
    """SimVAE of binary images; of one view a VAE."""
    dim = prior.known_dim()
    joint = ps.Joint(
        prior,
        ps.likelihoods.Bernoulli(),
        ps.nn.MLPEncoder(shape, dim, HIDDEN),
        ps.nn.MLPDecoder(dim, shape, HIDDEN),
        guide=ps.guides.Coupled,
    )
    return ps.limits.SimVAE(joint)


def fit(
    objective: nn.Module,
    images: ps.data.Split,
    plan: tuple[int, float],
    number: int = 2,
    **options: Any,
) -> None:
    epochs, rate = plan
    batch = min(2 * BATCH // number, len(images))
    steps = epochs * (len(images) // batch)
    ps.fit(
        objective,
        images,
        views=views(number),
        epochs=epochs,
        batch_size=batch,
        learning_rate=rate,
        scheduler=lambda o: CosineAnnealingLR(o, steps),
        progress=False,
        **options,
    )


def mixture(seed: int, components: int = CLASSES) -> GaussianMixture:
    """A Gaussian mixture whose components have one covariance."""
    return GaussianMixture(
        components, covariance_type="tied", n_init=3, random_state=seed
    )


def start(
    kind: str,
    components: int,
    objective: nn.Module,
    images: ps.data.Split,
    seed: int,
) -> Start:
    r"""The mixture prior at a Gaussian mixture of z, in a basis of its own.

    The mixture is fitted to z of the images; the moments of its components are those of
    z of two views of each. They have one covariance W, of which the part V lies between
    the views of an image. `TwoTier` has the basis A of the generalised
    eigenvectors,

    .. math:: A V A^\top = \sigma^2 I, \qquad A (W - V) A^\top = \mathrm{diag}(\tau^2),

    and `Mixture`, whose views differ as any two of its component do,
    :math:`A W A^\top = \sigma^2 I`. To both covariances of the means of q(z|x) its own
    variance is added. z keeps its mean variance, by the choice of :math:`\sigma`.
    """
    z = ps.embed(objective, images)
    found = mixture(seed, components).fit(z)
    k = found.predict(z).repeat(2)
    x = views(2)(images.images).flatten(0, 1)
    z, sd = ps.embed(objective, x, return_std=True)
    own = np.diag((sd**2).mean(0))
    apart = z[::2] - z[1::2]
    between = apart.T @ apart / (2 * len(apart)) + own
    means = np.stack([z[k == c].mean(0) for c in range(components)])
    within = np.cov((z - means[k]).T) + own
    if kind == "TwoTier":
        content, axes = eigh(within - between, between)
    else:
        content, axes = np.zeros(len(own)), eigh(within)[1] / eigh(within)[0] ** 0.5
    scale = (len(own) / np.trace(axes.T @ (np.cov(z.T) + own) @ axes)) ** 0.5
    basis = scale * axes.T
    loc = torch.as_tensor(means @ basis.T)
    relative = torch.as_tensor(content).clamp(min=0.01).sqrt() * scale
    if kind == "TwoTier":
        prior = ps.priors.TwoTier(len(own), Normals(loc, relative), scale)
    else:
        ones = torch.ones(1, 1)
        prior = ps.priors.Mixture(len(own), Normals(loc, ones), scale)
    with torch.no_grad():
        prior.logits.copy_(torch.as_tensor(found.weights_).log())
    return Start(prior, torch.as_tensor(basis).float())


@torch.no_grad()
def moved(first: ps.limits.SimVAE, to: Start) -> ps.limits.SimVAE:
    """The networks of a fitted model under another prior, in the basis of that."""
    joint = copy.deepcopy(first.joint)
    posterior, decoder = joint.posterior, joint.decoder
    head, one = joint.encoder.head, to.prior(1).matched()
    loc, scale = one.loc.squeeze(0), one.scale.squeeze(0)  # units of `Coupled`
    head.weight.copy_(to.basis @ head.weight / scale.unsqueeze(1))
    head.bias.copy_((to.basis @ head.bias - loc) / scale)
    inner = decoder.net[0]
    inner.weight.copy_(inner.weight @ to.basis.inverse())
    made = ps.Joint(
        to.prior,
        joint.likelihood,
        joint.encoder,
        decoder,
        guide=lambda encoder: posterior,
    )
    return ps.limits.SimVAE(made)


def scores(clusters: dict[str, np.ndarray], found: Parts) -> Row:
    """Accuracy and NMI of clusters of validation and test images."""
    row: Row = {}
    for name, k in clusters.items():
        right = np.asarray(found[name].labels)
        row[f"{name}: accuracy"] = ps.evaluation.matched_accuracy(k, right)
        row[f"{name}: NMI"] = float(normalized_mutual_info_score(right, k))
    return row


def of_z(objective: nn.Module, found: Parts, seed: int) -> dict[str, Row]:
    """Clusters of z, fitted to training images: k-means and a Gaussian mixture."""
    z = {name: ps.embed(objective, part) for name, part in found.items()}
    rows = {}
    for name, fitted in {
        "k-means": KMeans(CLASSES, n_init=5, random_state=seed),
        "Gaussian mixture": mixture(seed),
    }.items():
        fitted.fit(z["train"])
        rows[name] = scores({n: fitted.predict(z[n]) for n in HELD_OUT}, found)
    return rows


@torch.no_grad()
def bound(objective: ps.limits.SimVAE, found: Parts) -> Row:
    """The bound of pairs of views of validation images, in nats per pair."""
    torch.manual_seed(0)
    pairs = ps.Batch(views(2)(found["validation"].images[:PAIRS]))
    terms = ps.bounds.ELBO(5)(objective.joint, pairs)
    return {"validation: bound": float(sum(terms))}


def component(objective: nn.Module, images: Any) -> np.ndarray:
    """The component of the largest p(k|x)."""
    return ps.classify(objective, images, batch_size=1_000).argmax(1)


def joined(objective: nn.Module, images: ps.data.Split, components: int) -> np.ndarray:
    """Join components to as many clusters as classes; return the cluster of each.

    Two views of an image are of one class. With the shares of pairs of components, one
    of each view, the two components are joined whose union loses the least mutual
    information, until as many are left (the agglomerative information bottleneck).
    """
    x = views(2)(images.images)
    k = [component(objective, x[:, v]) for v in range(2)]
    table = np.zeros((components, components))
    np.add.at(table, tuple(k), 0.5 / len(x))
    table += table.T
    clusters = np.eye(components)  # a row for each cluster
    while len(clusters) > CLASSES:
        unions = []
        for i, j in combinations(range(len(clusters)), 2):
            union = np.delete(clusters, j, 0)
            union[i] += clusters[j]
            unions.append(union)
        clusters = max(unions, key=lambda rows: information(rows @ table @ rows.T))
    return clusters.argmax(0)


def information(table: np.ndarray) -> float:
    """Mutual information of rows and columns, in nats."""
    independent = table.sum(1, keepdims=True) * table.sum(0)
    return float(rel_entr(table, independent).sum())


def own(objective: ps.limits.SimVAE, found: Parts) -> Row:
    """Clusters by the model's components, its bound, and classes by clusters."""
    clusters = {name: component(objective, found[name]) for name in HELD_OUT}
    many = objective.joint.prior.component().logits.numel()
    if many > CLASSES:
        cluster = joined(objective, found["train"], many)
        clusters = {name: cluster[k] for name, k in clusters.items()}
    table = contingency_matrix(found["validation"].labels, clusters["validation"])
    row = scores(clusters, found) | bound(objective, found)
    return row | {"validation: classes by clusters": table.tolist()}


def first(seed: int, train: ps.data.Split, runs: Path) -> ps.limits.SimVAE:
    """The model without components, fitted or read from its folder."""
    folder = runs / f"SimVAE, seed {seed}"
    if (folder / "probssl.json").is_file():
        loaded = ps.load(folder)
        assert isinstance(loaded, ps.limits.SimVAE)
        return loaded
    prior = ps.priors.ContentStyle(CONTENT, STYLE, SCALE)
    objective = simvae(prior, tuple(train.images.shape[1:]))
    fit(objective, train, FIRST)
    ps.save(objective, folder)
    return objective


def cell(name: str, seed: int, found: Parts, runs: Path) -> dict[str, Row]:
    """The figures of what is fitted under one name, with one seed."""
    train, dim = found["train"], CONTENT + STYLE
    shape = tuple(train.images.shape[1:])
    torch.manual_seed(seed)
    if name in ("VAE", "SimVAE"):
        if name == "VAE":
            objective = simvae(ps.priors.Independent(dim), shape)
            fit(objective, train, (2 * FIRST[0], FIRST[1]), number=1)
        else:
            objective = first(seed, train, runs)
        value, rows = bound(objective, found), of_z(objective, found, seed)
        return {f"{name}, {kind} of z": row | value for kind, row in rows.items()}
    rows: dict[str, Row] = {}
    if name in FITS:
        before = first(seed, train, runs)
        torch.manual_seed(seed)
        objective = moved(before, start(*FITS[name], before, train, seed))
        rows[f"{name}, at the start"] = own(objective, found)
    else:
        objective = simvae(ps.priors.Mixture(dim, CLASSES), shape)
        plan, seen = FIRST, {"content": train.labels} if name == LABELLED else {}
        if name == JOINED:
            before = first(seed, train, runs)
            torch.manual_seed(seed)
            many = moved(before, start("Mixture", MANY, before, train, seed))
            clusters = joined(many, train, MANY)[component(many, train)]
            plan, seen = (THEN[0], FIRST[1]), {"content": torch.as_tensor(clusters)}
            for part in ("posterior", "decoder"):
                own_part, fitted = (getattr(o.joint, part) for o in (objective, before))
                own_part.load_state_dict(fitted.state_dict())
        fit(objective, train, plan, **seen)
        if name == LABELLED:
            rows["Mixture, with labels"] = own(objective, found)
    fit(objective, train, THEN)
    return rows | {name: own(objective, found)}


def main(
    seeds: Sequence[int] = range(SEEDS),
    data: ps.data.Dataset | None = None,
    results: Path = RESULTS,
    runs: Path = ROOT / "runs",
) -> list[Row]:
    """Return the figures of each method and seed; the report keeps other seeds."""
    path = results / "clusters_mnist.json"
    rows: list[Row] = [row for row in known(path) if row["seed"] not in seeds]
    runs = runs / "clusters_mnist"
    runs.mkdir(parents=True, exist_ok=True)
    found = parts(data or ps.data.load("mnist"), levels=1)
    found["train"] = found["train"].take(IMAGES)
    for seed, name in product(
        seeds, ("VAE", "SimVAE", *FITS, JOINED, RANDOM, LABELLED)
    ):
        if name in ("VAE", RANDOM, LABELLED) and seed >= FEW:
            continue
        fitted = runs / f"{name}, seed {seed}.json"
        if not fitted.is_file():
            began = time.process_time()
            each = cell(name, seed, found, runs)
            cost = {"CPU seconds": round(time.process_time() - began)}
            text = json.dumps({k: row | cost for k, row in each.items()})
            files.write(fitted, text)
        for method, row in json.loads(fitted.read_text()).items():
            rows.append({"method": method, "seed": seed, **row})
    rows.sort(key=lambda row: row["seed"])
    write(path, "clusters_mnist.py", rows=rows)
    return rows


def table(rows: list[Row]) -> str:
    """The methods with their accuracies over the seeds, in Markdown."""
    columns = ["method", "seeds", "validation: accuracy", "test: accuracy"]
    columns += ["least, largest", "of the highest bound", "above the mixture of z"]
    columns += ["test: NMI", "bound of validation pairs"]
    shown = []
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        seen = {row["seed"] for row in here}
        base = [
            row
            for row in rows
            if row["method"] == "SimVAE, Gaussian mixture of z" and row["seed"] in seen
        ]
        test, other = ([r["test: accuracy"] for r in each] for each in (here, base))
        cells = [method, str(len(here))]
        cells.append(spread([row["validation: accuracy"] for row in here]))
        cells += [spread(test), f"{min(test):.3f}, {max(test):.3f}"]
        best = max(here, key=lambda row: row["validation: bound"])
        cells.append("–" if "of z" in method else f"{best['test: accuracy']:.3f}")
        cells.append(gain(test, other) if here != base else "–")
        cells.append(spread([row["test: NMI"] for row in here]))
        cells.append(spread([row["validation: bound"] for row in here], 1))
        shown.append(cells)
    return markdown(columns, shown)


def shares(rows: list[Row], method: str = "Mixture") -> str:
    """How each class falls into components: the largest share, and other classes.

    Over seeds, the median share of a class in the component that has most of it; and in
    how many seeds that component has more of another class.
    """
    shown = []
    tables = [
        np.array(row["validation: classes by clusters"])
        for row in rows
        if row["method"] == method
    ]
    for k in range(len(tables[0])):
        held = [each[k].max() / each[k].sum() for each in tables]
        by = [int(each[:, each[k].argmax()].argmax()) for each in tables]
        others = sorted({j for j in by if j != k})
        named = ", ".join(f"{j} ({by.count(j)})" for j in others)
        shown.append([str(k), f"{median(held):.2f}", named or "–"])
    columns = ["class", "share in one component", "which has more of (seeds)"]
    return markdown(columns, shown)


if __name__ == "__main__":
    command = parser(__doc__)
    command.add_argument("seeds", nargs="*", type=int, default=list(range(SEEDS)))
    options = command.parse_args()
    torch.set_num_threads(1)
    if options.tables:
        saved = read(RESULTS / "clusters_mnist.json")
        print(table(saved), shares(saved), sep="\n\n")
    else:
        main(options.seeds, results=options.out)
