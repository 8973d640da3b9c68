"""How well do variational autoencoders model a digit? log p(x) on MNIST.

Dynamic binarisation: every pixel of a training image is drawn anew in each epoch, with
its grey value as the probability of white; the 10,000 test images are drawn once. All
models have the two hidden layers of 200 units and the 50 latent dimensions of the
importance-weighted autoencoder's authors; the VampPrior has their 500 pseudo-inputs,
the sphere the 40 dimensions of its authors. SimVAE sees pairs of small
rotations, scalings and shifts of an image, and is asked for its marginal of one image.

log p(x) is estimated by importance sampling with 5,000 samples, a lower bound in
expectation. The mean over 1,000 validation images, with 100 samples, is the curve over
the epochs; parameters are those after the last epoch. Nothing was chosen on test
images.

The importance-weighted autoencoder with 5 samples and 512 units a layer reaches
−log p(x) = 86.2 nats in 120 epochs, 20 minutes of one core; the test images take 19
more. The VampPrior has 87.1, the VAE 92.7, the sphere 97.1, and SimVAE 112.9, of which
proposals of each image's own take 12.5 back. With 50 samples, 30 epochs give 91.3.

Results: docs/results.md, "Likelihoods of binary MNIST". Writes
benchmarks/results/vae_baselines.json after each model, and goes on from there. Needs
MNIST in the folder named by the environment variable PROBSSL_DATA.

References:
    Importance Weighted Autoencoders (Burda et al., 2016)
    https://arxiv.org/abs/1509.00519
    VAE with a VampPrior (Tomczak and Welling, 2018)
    https://arxiv.org/abs/1705.07120
    Hyperspherical Variational Auto-Encoders (Davidson et al., 2018)
    https://arxiv.org/abs/1804.00891
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
from report import Row
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import probssl as ps
from probssl.views import Affine, Augment

CHOSEN_ON = "nothing"
EVENT, HIDDEN, WIDE = (1, 28, 28), (200, 200), (512, 512)
DIM, SPHERE, PSEUDO, SCALE = 50, 40, 500, 0.3
VALIDATION, SHOWN, PARTICLES, SAMPLES = 10_000, 1_000, 100, 5_000
SEEDS, SEED, FIRST, SOME = 3, 0, 2_000, "nats of the first images"
REFINE, REFINED, FEWER = 500, 250, 1_000  # steps, images and samples
ANNEAL, ANNEALED, CHAINS = 100, 20, 30  # temperatures, images and samples
EPOCHS, BATCH, LEARNING_RATE, EVERY = 60, 100, 1e-3, 10
IDENTITY, SMALL = nn.Identity(), Affine(rotate=15, scale=(0.85, 1.15), shift=0.1)
ONE = Augment(IDENTITY, views=1, levels=1, rounding="random")
PAIRS = Augment(SMALL, views=2, levels=1, rounding="random")

Make = Callable[[ps.data.Dataset], nn.Module]


def joint(
    prior: ps.priors.Prior, hidden: tuple[int, ...] = (), **options: Any
) -> ps.Joint:
    """A distribution of binary images with fully connected networks."""
    dim, hidden = prior.known_dim(), hidden or HIDDEN
    return ps.Joint(
        prior,
        ps.likelihoods.Bernoulli(),
        ps.nn.MLPEncoder(EVENT, dim, hidden),
        ps.nn.MLPDecoder(dim, EVENT, hidden),
        **options,
    )


def vae(data: ps.data.Dataset) -> nn.Module:
    """The variational autoencoder."""
    return ps.limits.VAE(joint(ps.priors.Independent(DIM)))


def iwae(data: ps.data.Dataset) -> nn.Module:
    """The importance-weighted autoencoder with 50 samples."""
    bound = ps.bounds.IWAE(50)
    return ps.limits.VAE(joint(ps.priors.Independent(DIM)), bound=bound)


def wide(data: ps.data.Dataset) -> nn.Module:
    """The importance-weighted autoencoder with 5 samples and wider networks."""
    bound = ps.bounds.IWAE(5)
    return ps.limits.VAE(joint(ps.priors.Independent(DIM), WIDE), bound=bound)


def vamp(data: ps.data.Dataset) -> nn.Module:
    """A mixture of posteriors at pseudo-inputs, which start at training images."""
    guide = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder(EVENT, DIM, HIDDEN))
    start = data.train.images[:PSEUDO].float() / 255
    components = ps.priors.VampComponents.at(guide.factors, start)
    prior = ps.priors.Mixture(DIM, components, learn_weights=False)
    decoder = ps.nn.MLPDecoder(DIM, EVENT, HIDDEN)
    made = ps.Joint(
        prior,
        ps.likelihoods.Bernoulli(),
        guide.encoder,
        decoder,
        guide=lambda encoder: guide,
    )
    return ps.limits.SimVAE(made)  # of one view


def sphere(data: ps.data.Dataset) -> nn.Module:
    """The hyperspherical variational autoencoder, with a power spherical posterior."""
    prior = ps.priors.Spherical(SPHERE)
    return ps.limits.SimVAE(joint(prior, guide=ps.guides.PowerSpherical))  # of one view


def simvae(data: ps.data.Dataset) -> nn.Module:
    """SimVAE of pairs; its marginal of one view is a model of images."""
    return ps.limits.SimVAE(joint(ps.priors.Gaussian(DIM, SCALE)))


MODELS: dict[str, tuple[Make, Augment]] = {
    "VAE": (vae, ONE),
    "IWAE, 50 samples": (iwae, ONE),
    "IWAE, 5 samples, 512 units": (wide, ONE),
    "VampPrior": (vamp, ONE),
    "VAE on a sphere": (sphere, ONE),
    "SimVAE": (simvae, PAIRS),
}


def split(data: ps.data.Dataset) -> tuple[ps.data.Split, torch.Tensor]:
    """The images for training, and binary ones for validation, drawn once."""
    found = report.parts(data, VALIDATION)
    grey = found["validation"].images[:SHOWN].double() / 255
    drawn = torch.rand(grey.shape, generator=torch.Generator().manual_seed(1)) < grey
    return found["train"], drawn.float()


def nats(found: ps.posterior.Evidence) -> Row:
    """The mean of −log p(x) with its standard error, ESS, and the share of k̂ > 0.7."""
    value = -found.log_evidence
    return {
        "nats": float(value.mean()),
        "standard error": float(value.std() / math.sqrt(len(value))),
        "median ESS": float(median(found.ess)),
        "k̂ > 0.7": float((found.pareto_k > 0.7).mean()),
    }


def measured(objective: nn.Module, images: torch.Tensor, samples: int) -> Row:
    """−log p(x) of images."""
    torch.manual_seed(SEED)
    return nats(ps.evidence(objective, images, particles=samples, batch_size=20))


def refined(
    objective: nn.Module, images: torch.Tensor, samples: int, refine: int
) -> Row:
    """By how much proposals of an image's own, with fewer samples, lower −log p(x).

    And by how much they differ from annealed importance sampling, of some images.
    """
    torch.manual_seed(SEED)
    found = ps.evidence(objective, images, particles=samples, batch_size=20)
    with warnings.catch_warnings():  # their share is a result
        warnings.filterwarnings("ignore", "Pareto k̂ is above")
        better = ps.evidence(
            objective, images, particles=FEWER, refine=refine, batch_size=len(images)
        )
        few = images[:ANNEALED]
        annealed = ps.evidence(
            objective, few, particles=CHAINS, anneal=ANNEAL, batch_size=len(few)
        )
    gained = better.log_evidence - found.log_evidence
    apart = better.log_evidence[:ANNEALED] - annealed.log_evidence
    return {
        "refined: nats less": float(gained.mean()),
        "refined: standard error": float(gained.std() / math.sqrt(len(gained))),
        "refined: median ESS": float(median(better.ess)),
        "refined: k̂ > 0.7": float((better.pareto_k > 0.7).mean()),
        "refined: times the seconds": round(better.cost, 1),
        "refined less annealed": float(apart.mean()),
        "refined less annealed: standard error": float(
            apart.std() / math.sqrt(len(apart))
        ),
    }


def fitted(
    name: str, seed: int, data: ps.data.Dataset, epochs: int, folder: Path
) -> tuple[nn.Module, Row]:
    """The model, and −log p(x) of validation images after some of its epochs."""
    make, views = MODELS[name]
    torch.manual_seed(seed)
    objective = make(data)
    notes = report.kept(folder)
    if notes is not None:
        return ps.load(folder, into=objective), notes
    began = time.process_time()
    train, held_out = split(data)
    curve: dict[str, float] = {}
    steps = epochs * max(1, len(train) // BATCH)

    def validated(epoch: int, row: Any) -> None:
        if epoch % EVERY == 0 or epoch == epochs:
            found = ps.evidence(objective, held_out, particles=PARTICLES, batch_size=50)
            curve[str(epoch)] = round(nats(found)["nats"], 2)

    ps.fit(
        objective,
        train,
        views=views,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scheduler=lambda o: CosineAnnealingLR(o, steps),
        on_epoch=validated,
    )
    seconds = round(time.process_time() - began)
    notes = {"validation": curve, "CPU seconds of training": seconds}
    ps.save(objective, folder, **notes)
    return objective, notes


def main(
    names: tuple[str, ...] = tuple(MODELS),
    epochs: int = EPOCHS,
    seeds: Sequence[int] = range(SEEDS),
    samples: int = SAMPLES,
    refine: int = REFINE,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[Row]:
    """Return −log p(x) of the test images under each model, in nats per image.

    Of the first fit all test images are measured, of each some. What the file of
    results has is kept.
    """
    if data is None:
        data = ps.data.load("mnist", binary="dynamic")
    path, images = results / "vae_baselines.json", data.test.images.float() / 255
    for name, seed in product(names, seeds):
        cell = {"model": name, "seed": seed, "epochs": epochs}
        rows: list[Row] = report.known(path)
        row = next((row for row in rows if cell.items() <= row.items()), cell)
        if SOME in row and ("refined: times the seconds" in row or seed != SEED):
            continue
        others = [each for each in rows if each is not row]
        folder = runs / "vae_baselines" / f"{name}, {epochs} epochs, seed {seed}"
        objective, notes = fitted(name, seed, data, epochs, folder)
        began = time.process_time()
        row |= notes
        if "nats" not in row and seed == SEED:
            row |= measured(objective, images, samples)
            row["CPU seconds of measuring"] = round(time.process_time() - began)
        if seed == SEED:
            row |= refined(objective, images[:REFINED], samples, refine)
        if SOME not in row:
            row[SOME] = measured(objective, images[:FIRST], samples)["nats"]
        print(row, flush=True)
        report.write(
            path, "vae_baselines.py", samples=samples, first=FIRST, rows=[*others, row]
        )
    return [
        row
        for name, seed in product(names, seeds)
        for row in report.known(path)
        if (row["model"], row["seed"], row["epochs"]) == (name, seed, epochs)
    ]


def table(rows: list[Row]) -> str:
    """The models with their figures, in Markdown."""
    head = ["model", "epochs", "−log p(x)", "k̂ > 0.7", "refined: less by", "k̂ > 0.7"]
    head += ["times the cost", "over fits", "training, minutes of one core"]
    lines = []
    for name, epochs in dict.fromkeys((row["model"], row["epochs"]) for row in rows):
        own = [row for row in rows if (row["model"], row["epochs"]) == (name, epochs)]
        row = next(row for row in own if row["seed"] == SEED)
        value = f"{row['nats']:.2f} ± {row['standard error']:.2f}"
        cells = [name, str(epochs), value, f"{row['k̂ > 0.7']:.0%}", "–", "–", "–"]
        if "refined: nats less" in row:
            error = row["refined: standard error"]
            cells[4] = f"{row['refined: nats less']:.2f} ± {error:.2f}"
            cells[5] = f"{row['refined: k̂ > 0.7']:.1%}"
        if "refined: times the seconds" in row:
            cells[6] = f"{row['refined: times the seconds']:.0f}"
        cells.append(report.spread([each[SOME] for each in own if SOME in each], 2))
        cells.append(f"{row['CPU seconds of training'] / 60:.0f}")
        lines.append(cells)
    return report.markdown(head, lines)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("names", nargs="*", default=list(MODELS), help="some models")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="*", default=range(SEEDS))
    options = parser.parse_args()
    if options.tables:
        print(table(report.read(report.RESULTS / "vae_baselines.json")))
    else:
        torch.set_num_threads(1)
        given = tuple(options.names), options.epochs, options.seeds
        main(*given, results=options.out)
