"""What does the objective of SimVAE's released code represent, beside the bound?

The code of SimVAE's authors does not compute the evidence lower bound of the paper's
distribution. Three things differ, and all are in `Released`: the content y is put at
the mean of z over the views, where the bound integrates it out; the entropy of q(z|x)
counts 2π times; the reconstruction counts e^4.6 ≈ 100 times. Here it is fitted beside
the exact bound of the same distribution, Var(z|y) = 0.15.

Images, views, networks, optimiser and the number of images seen are those of
models/simvae_mnist.py, and so are the scores; its VAE and SimVAE stand in the tables
too. The authors' networks are larger, their learning rate is smaller and they fit for
400 epochs: what is compared is the objective, and nothing was chosen for it. The
objective is no bound. Its column has the exact bound of the fitted encoder and decoder,
q(z|x) included; on Fashion-MNIST, where the code takes grey values for probabilities,
the decoder has no density and the column a dash.

On MNIST with small rotations, scalings and shifts its exact bound is 134 nats below
that of the exact objective, with the authors' crops 179. Its probes are level with
those, there and on Fashion-MNIST.

Every fit leaves a folder in runs/, and fits whose folder is there are not run again.
Takes 16 minutes of one CPU core.

Results: docs/results.md, "The objective of SimVAE's released code"; ``--tables`` prints
the tables. Writes benchmarks/results/simvae_release.json. Needs the data in the folder
named by the environment variable PROBSSL_DATA.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
    https://github.com/alicebizeul/simvae, its code
"""

import math
from itertools import product
from pathlib import Path
from typing import Any

import report
import simvae_mnist
import torch
from simvae_mnist import DIM, SEEDS, Build, generative

import probssl as ps

CHOSEN_ON = "nothing"
VARIANCE = 0.15  # of z given y
RECONSTRUCTION = math.exp(4.6)  # 1 / variance of x given z, also of binary pixels
ENTROPY = 2 * math.pi  # times ½ Σ log variance of q(z|x)


class Released(ps.limits.SimVAE):
    r"""The objective of the released code, per item, with z drawn from q(z|x).

    .. math:: e^{4.6} \sum_v \log p(x_v \mid z_v) + \pi \sum_{v,d} \log s_{vd}^2
        - \frac12 \sum_v \frac{\lVert z_v - \bar z \rVert^2}{0.15}
        - \frac12 \lVert \bar z \rVert^2, \qquad
        z_v \sim N(m(x_v), \mathrm{diag} \, s(x_v)^2)

    The Bernoulli likelihood is the code's binary cross-entropy. The joint gives the
    networks; its prior, p(y) = N(0, I) and Var(z|y) = 0.15, is that of the exact bound.
    """

    def forward(self, batch: ps.Batch) -> ps.Terms:
        q = self.joint.posterior.each(batch.views)
        z = q.rsample()
        centre = z.mean(1, keepdim=True)
        log_p = self.joint.decode(z).log_prob(batch.views).sum(1)
        log_s = q.stddev.log().sum((1, 2))
        apart = (z - centre).square().sum((1, 2)) / VARIANCE
        return ps.Terms(
            reconstruction=RECONSTRUCTION * log_p.mean(),
            entropy=ENTROPY * log_s.mean(),
            alignment=-(apart + centre.square().sum((1, 2))).mean() / 2,
        )


def prior() -> ps.priors.Gaussian:
    """p(y) = N(0, I) and p(z|y) of the released code's variance."""
    return ps.priors.Gaussian(DIM, math.sqrt(VARIANCE))


def released(shape: tuple[int, ...], levels: int) -> ps.limits.SimVAE:
    """The released objective; grey values stand for probabilities in its likelihood."""
    hidden = simvae_mnist.HIDDEN
    joint = ps.Joint(
        prior(),
        ps.likelihoods.Bernoulli(grey=levels > 1),
        ps.nn.MLPEncoder(shape, DIM, hidden),
        ps.nn.MLPDecoder(DIM, shape, hidden),
    )
    return Released(joint)


METHODS: dict[str, tuple[Build, int]] = {  # and the number of views
    "released code": (released, 2),
    "exact bound, Var(z given y) = 0.15": (generative(prior), 2),
}
BESIDE = ("VAE", "SimVAE")  # of simvae_mnist.json; Var(z|y) = 0.15²
# What is fitted: data, kind of views, and how often each image is seen.
RUNS: dict[str, tuple[str, str, int]] = {
    "affine": ("mnist", "affine", 24),
    "crops": ("mnist", "crops", 24),
    "fashion-mnist": ("fashion-mnist", "affine", 48),
}
TERMS = ("reconstruction", "entropy", "alignment")  # of the exact bound


@torch.no_grad()
def terms(
    objective: ps.limits.SimVAE, images: torch.Tensor, views: torch.nn.Module
) -> dict[str, float]:
    """The terms of the exact bound of pairs, in nats; none of a pseudo-likelihood."""
    if objective.joint.likelihood.pseudo:
        return {}
    torch.manual_seed(0)
    pairs = ps.Batch(views(images[: simvae_mnist.PAIRS]))
    found = ps.bounds.ELBO(simvae_mnist.PARTICLES)(objective.joint, pairs)
    return {f"test: {name}": float(getattr(found, name)) for name in TERMS}


def main(
    names: tuple[str, ...] = tuple(RUNS),
    seeds: int = SEEDS,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
    **data: Any,
) -> list[dict[str, Any]]:
    """Return the scores of these runs, each method and seed; others are kept."""
    path = results / "simvae_release.json"
    rows: list[dict[str, Any]] = []
    for run in names:
        name, kind, passes = RUNS[run]
        levels = simvae_mnist.LEVELS[name]
        known = data.get("data") or ps.data.load(name)
        test = report.parts(known, levels=levels)["test"].images
        folder = runs / f"simvae_release_{name}".replace("-", "_")
        for method, seed in product(METHODS, range(seeds)):
            row = simvae_mnist.cell(
                name, kind, passes, method, seed, folder, METHODS, **data
            )
            build = METHODS[method][0]
            saved = folder / f"{method}, {kind}, {passes} passes, seed {seed}"
            objective = ps.load(saved, into=build(tuple(test.shape[1:]), levels))
            shares = terms(objective, test, simvae_mnist.sampler(kind, 2, levels))
            rows.append({"data": name, **row, **shares})
        report.write(path, "simvae_release.py", rows=[*others(path, rows), *rows])
    return rows


def others(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the report that are of other data, views or numbers of passes."""
    keys = ("data", "views", "passes")
    new = {tuple(row[key] for key in keys) for row in rows}
    known: list[dict[str, Any]] = report.known(path)
    return [row for row in known if tuple(row[key] for key in keys) not in new]


def beside(name: str) -> list[dict[str, Any]]:
    """The rows of models/simvae_mnist.py that stand in the tables."""
    path = report.RESULTS / f"simvae_{name}.json".replace("-", "_")
    return [row for row in report.read(path) if row["method"] in BESIDE]


def tables(rows: list[dict[str, Any]]) -> str:
    """Scores of each data set and kind of views, and terms of MNIST, in Markdown."""
    parts = []
    known = (tuple(row[key] for key in ("data", "views", "passes")) for row in rows)
    for name, kind, passes in dict.fromkeys(known):
        at = {"views": kind, "passes": passes}
        own = [row for row in rows if row["data"] == name]
        here = [row for row in beside(name) + own if at.items() <= row.items()]
        title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}[name]
        parts.append(f"{title}. {simvae_mnist.tables(here)}")
    lines = []
    bound = [row for row in rows if row["data"] == "mnist"]
    for kind, method in dict.fromkeys((r["views"], r["method"]) for r in bound):
        own = [r for r in bound if (r["views"], r["method"]) == (kind, method)]
        values = ([row[f"test: {name}"] for row in own] for name in TERMS)
        lines.append([kind, method, *(report.spread(each, 1) for each in values)])
    parts.append(report.markdown(["views", "objective", *TERMS], lines))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("runs", nargs="*", default=list(RUNS), help="some of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tables:
        print(tables(report.read(report.RESULTS / "simvae_release.json")))
    else:
        main(tuple(options.runs), results=options.out)
