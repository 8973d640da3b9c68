"""Joint embedding or reconstruction where most of an image is irrelevant? MNIST.

Each digit lies over a smooth background of its own, :math:`(1 - m) x + m b`, in
training and in test. The linear theory (`probssl.linear`) says that joint embedding
ignores even a strong background if the views vary it by more than they vary the digit;
that reconstruction ignores only a weak one; and that neither can know what is
irrelevant if no view varies it. Do deep objectives agree? SimCLR and VICReg stand for
joint embedding, SimVAE, the denoising and the masked autoencoder for reconstruction,
all with one small convolutional encoder and z of 16 dimensions; baselines are both
closed forms, PCA and raw pixels. Views move the image a little; "with the noise" they
also add a new background, as strong as the image's own. No method sees a digit alone:
the target of the denoising autoencoder is the image with its background.

Results, linear probes of test images, means of three seeds (all in docs/results.md,
"Over a background of light and shade"):

- Backgrounds of twice the digit's standard deviation, views without them: 0.18 to 0.27
  for all trained methods. Views with them: SimCLR 0.85, VICReg 0.84 and linear joint
  embedding 0.83; SimVAE 0.20, the autoencoders 0.39 and 0.20, linear reconstruction
  0.44.
- At four times only joint embedding finds the digit: the linear one (0.78) better than
  the deep ones (0.42 and 0.60, seeds 0.25 and 0.14 apart), all others at most 0.20.
- Backgrounds half as strong as the digit, views without them: reconstruction loses a
  little (0.74 to 0.84), joint embedding most (0.46 to 0.57), since views agree best in
  the background.
- With views that vary the background the denoising autoencoder follows linear
  reconstruction. SimVAE and the masked autoencoder lose more: they also reconstruct the
  background.

`linear.advise`, on the training images and without labels, says "joint embedding" at 2
and 4 with the noise in the views (on all, and on 58 %, of random halves of the images),
"either" at 0, 0.5 and 1 with it, and "neither" wherever the views leave it out; also at
0.5, where seven of ten components of reconstruction are still relevant.

The backgrounds are sums of 16 long cosines, so that they take 16 of the 196 directions
of the pixels. Smooth random fields, which were tried first, have the directions of the
strokes, where no linear map separates the two: the answer holds for backgrounds that a
linear map can separate. The encoder, the learning rate and the size of the moves were
chosen on validation images, the last 5,000 training images, by the linear probe of
three methods that are fitted to 3,000 others (``--choose``).

Prints every probe with the advice and writes them to
benchmarks/results/paradigms_under_noise.json, and draws them to a .png beside it. Needs
MNIST in the folder named by the environment variable PROBSSL_DATA.

Takes half an hour of one CPU core; fits run in parallel processes. ``--choose`` takes
four minutes.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report
import torch
from torch import nn
from torch.nn.functional import avg_pool2d
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

import probssl as ps
from probssl.data.memory import as_float
from probssl.linear import Flattened, JointEmbeddingSSL, ReconstructionSSL, advise
from probssl.plots.style import INK, blank, clean

CHOSEN_ON = "validation"
SEEDS, EPOCHS, IMAGES, TEST, BATCH, DIM = 3, 8, 10_000, 5_000, 125, 16
RATIOS = (0.0, 0.5, 1.0, 2.0, 4.0)  # of standard deviations, background to digit
BACKGROUND = ps.views.Background(1.0, waves=4)
RIDGE = 0.01
# The encoder, the learning rate, and the size of the moves; what is tried beside them.
SETTING: dict[str, Any] = {"channels": [8, 16], "rate": 8e-3, "moves": 1.0}
CHANGES = ({"channels": [16, 32]}, {"rate": 4e-3}, {"rate": 1.6e-2}, {"moves": 2.0})
CHOSEN_BY = ("SimCLR", "SimVAE", "denoising autoencoder")
CHOICE_IMAGES = 3_000

# Joint embedding in blues, reconstruction in oranges, dashed where it is linear.
LOOKS = {
    "SimCLR": ("#0072B2", "-"),
    "VICReg": ("#56B4E9", "-"),
    "linear joint embedding": ("#0072B2", "--"),
    "SimVAE": ("#009E73", "-"),
    "denoising autoencoder": ("#D55E00", "-"),
    "masked autoencoder": ("#E69F00", "-"),
    "linear reconstruction": ("#D55E00", "--"),
    "PCA": (INK, ":"),
    "raw pixels": ("#999999", ":"),
}
PANELS = {False: "views without the noise", True: "views with it"}


@lru_cache
def mnist(validation: bool = False) -> ps.data.Dataset:
    """Digits of 14 x 14 pixels in [0, 1], each the mean of four, read once.

    The last training images, which no fit sees, are for validation and then take the
    place of the test images.
    """
    data = ps.data.load("mnist")
    if validation:
        data = report.without_test(data, TEST)
    train, test = (
        part._replace(images=avg_pool2d(as_float(part), 2))
        for part in (data.train.take(IMAGES), data.test.take(TEST))
    )
    return ps.data.Dataset(train, test, None, data.name)


def noisy(data: ps.data.Dataset, ratio: float, seed: int = 0) -> ps.data.Dataset:
    """Images (1 - m) x + m b, where each has one background b that never changes.

    Arguments:
        ratio: Total standard deviation of the background over that of the image.
        seed: Of the backgrounds.
    """
    m = amplitude(data, ratio)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        train, test = (
            part._replace(images=(1 - m) * x + m * BACKGROUND.draw(x))
            for part in (data.train, data.test)
            for x in (as_float(part),)
        )
    return ps.data.Dataset(train, test, None, f"{data.name}, noise {ratio:g}")


def amplitude(data: ps.data.Dataset, ratio: float) -> float:
    """The share m of the background that gives this ratio of standard deviations."""
    signal = float(as_float(data.train).var(0).mean().sqrt())
    return ratio * signal / (0.25 + ratio * signal)  # 1/4 is the background's own


def views(
    amplitude: float, matching: bool, size: float = SETTING["moves"]
) -> ps.views.Augment:
    """Two small affine maps of each image; `matching` ones add a fresh background.

    As strong as the image's own: an alignment of 1 with what does not matter.
    """
    # What comes in from outside is like the rest, so that no frame betrays the map.
    move = ps.views.Affine(
        rotate=8 * size,
        scale=(1 - 0.08 * size, 1 + 0.08 * size),
        shift=0.05 * size,
        padding="reflection",
    )
    parts = (move, ps.views.Background(amplitude)) if matching else (move,)
    return ps.views.Augment(*parts, clamp=False)


def build(method: str, shape: tuple[int, ...], channels: Sequence[int]) -> nn.Module:
    """An objective with the networks and the likelihood that all share."""
    encoder = ps.nn.ConvEncoder(shape, DIM, channels=tuple(channels))
    decoder = ps.nn.MLPDecoder(DIM, shape)
    pixels = ps.likelihoods.Gaussian(ps.learned(0.2), floor=0.01)
    prior = ps.priors.Gaussian(DIM, scale=0.15)
    objectives: dict[str, Callable[[], nn.Module]] = {
        "SimCLR": lambda: ps.limits.SimCLR(encoder, temperature=0.5),
        "VICReg": lambda: ps.limits.VICReg(encoder, ps.nn.Projector(DIM, 256, 64)),
        "SimVAE": lambda: ps.limits.SimVAE(ps.Joint(prior, pixels, encoder, decoder)),
        "denoising autoencoder": lambda: ps.limits.DenoisingAutoencoder(
            encoder, decoder, pixels
        ),
        "masked autoencoder": lambda: ps.limits.MaskedAutoencoder(
            encoder, decoder, pixels, share=0.5, patch=2
        ),
    }
    return objectives[method]()


DEEP = ("SimCLR", "VICReg", "SimVAE", "denoising autoencoder", "masked autoencoder")
LINEAR = {
    "linear joint embedding": JointEmbeddingSSL,
    "linear reconstruction": ReconstructionSSL,
}
FIXED = ("PCA", "raw pixels")  # which have no views


class Job(NamedTuple):
    """A method, a strength of the background, and a kind of views."""

    seed: int
    ratio: float
    matching: bool
    method: str

    def needed(self) -> bool:
        """Whether the job differs from the one without matching views."""
        return not self.matching or (self.ratio > 0 and self.method not in FIXED)


def represented(
    job: Job,
    data: ps.data.Dataset,
    sampler: nn.Module,
    epochs: int,
    setting: dict[str, Any] = SETTING,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a method; return z of the training and of the test images."""
    from sklearn.decomposition import PCA

    shape = tuple(data.train.images.shape[1:])
    if job.method in DEEP:
        objective = build(job.method, shape, setting["channels"])
        rate = setting["rate"]
        optimizer = Adam(objective.parameters(), rate, fused=True)
        steps = epochs * max(1, len(data.train.images) // BATCH)
        ps.fit(
            objective,
            data.train,
            views=sampler,
            epochs=epochs,
            batch_size=BATCH,
            optimizer=optimizer,
            scheduler=OneCycleLR(optimizer, rate, steps),
            compile=False,
            progress=False,
        )
        return ps.embed(objective, data.train), ps.embed(objective, data.test)
    x, x_test = (part.images.flatten(1).numpy() for part in (data.train, data.test))
    if job.method == "raw pixels":
        return x, x_test
    if job.method == "PCA":
        found = PCA(DIM, random_state=job.seed).fit(x)
    else:
        flat = Flattened(sampler, shape)
        found = LINEAR[job.method](DIM, views=flat, ridge=RIDGE).fit(x)
    return found.transform(x), found.transform(x_test)


def one(
    job: Job,
    epochs: int,
    data: ps.data.Dataset | None = None,
    setting: dict[str, Any] = SETTING,
) -> dict[str, Any]:
    """Fit one job and probe its z."""
    data, began = mnist() if data is None else data, time.process_time()
    images = noisy(data, job.ratio, job.seed)
    sampler = views(amplitude(data, job.ratio), job.matching, setting["moves"])
    torch.manual_seed(job.seed)
    z, z_test = represented(job, images, sampler, epochs, setting)
    known = z, images.train.labels, z_test, images.test.labels
    return job._asdict() | {
        "linear_probe": ps.evaluation.linear_probe(*known),
        "knn": ps.evaluation.knn(*known),
        "cpu_seconds": time.process_time() - began,
    }


def advised(
    ratio: float, matching: bool, data: ps.data.Dataset, seed: int = 0
) -> dict[str, Any]:
    """The answer of `linear.advise` for the same images and views."""
    torch.manual_seed(seed)
    sampler = views(amplitude(data, ratio), matching)
    images = noisy(data, ratio, seed).train.images
    found = advise(images, sampler, n_components=DIM, progress=False).as_dict()
    del found["spectra"]
    return {"ratio": ratio, "matching": matching} | found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw mean and half range of the linear probe over seeds against the ratio."""
    figure = blank(8.2, 4.0)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (matching, title) in zip(panels, PANELS.items(), strict=True):
        clean(panel)
        for method, (colour, line) in LOOKS.items():
            at: dict[float, list[float]] = {}
            for row in rows:
                alike = row["ratio"] == 0 or row["method"] in FIXED
                if row["method"] == method and (alike or row["matching"] == matching):
                    at.setdefault(row["ratio"], []).append(row["linear_probe"])
            panel.errorbar(
                list(at),
                [np.mean(values) for values in at.values()],
                [np.ptp(values) / 2 for values in at.values()],
                color=colour,
                linestyle=line,
                marker="." if line == "-" else None,
                label=method,
            )
        panel.set_title(title, fontsize=10)
        panel.set_xscale("symlog", linthresh=0.5, base=2)
        ratios = sorted({row["ratio"] for row in rows})
        panel.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    figure.supxlabel("standard deviation of background over that of digit", fontsize=10)
    panels[0].set_ylabel("linear probe")
    lines, texts = panels[0].get_legend_handles_labels()
    figure.legend(lines, texts, loc="outside right upper", frameon=False, fontsize=9)
    report.draw(path, figure)


def choose(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return the scores of each setting, of validation images.

    Backgrounds are as strong as the digits, and the views have them.
    """
    held = mnist(True) if data is None else report.without_test(data, TEST)
    held = held._replace(train=held.train.take(min(CHOICE_IMAGES, len(held.train))))

    def fitted(cell: dict[str, Any]) -> dict[str, Any]:
        job = Job(cell["seed"], 1.0, True, cell["method"])
        found = one(job, epochs, held, cell["setting"])
        names = ("linear_probe", "knn", "cpu_seconds")
        return {"score": found["linear_probe"]} | {name: found[name] for name in names}

    cells = [
        {"method": method, "setting": SETTING | change, "seed": seed}
        for seed, change, method in product(range(seeds), ({}, *CHANGES), CHOSEN_BY)
    ]
    path = results / "paradigms_under_noise_choices.json"
    script = "paradigms_under_noise.py --choose"
    return report.collected(path, script, cells, fitted, epochs=epochs)


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    ratios: tuple[float, ...] = RATIOS,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return the figures of every seed, ratio, kind of views and method."""
    rows: list[dict[str, Any]] = []
    images = mnist() if data is None else data
    advice = [
        advised(ratio, matching, images)
        for ratio, matching in product(ratios, (False, True))
        if ratio or not matching
    ]
    path = results / "paradigms_under_noise.json"
    every = map(Job._make, product(range(seeds), ratios, (False, True), LOOKS))
    jobs, run = filter(Job.needed, every), partial(one, epochs=epochs, data=data)
    for row in report.mapped(run, jobs, parallel=data is None):
        rows.append(row)
        print(*row.values(), flush=True)
        report.write(
            path,
            "paradigms_under_noise.py",
            epochs=epochs,
            dim=DIM,
            cpu_seconds=sum(row["cpu_seconds"] for row in rows),
            advice=advice,
            rows=rows,
        )
    draw(rows, path.with_suffix(".png"))
    return rows


def tables() -> str:
    """The settings that were compared on validation images, in Markdown."""
    saved = report.read(report.RESULTS / "paradigms_under_noise_choices.json")
    return report.choices(saved, SETTING)


if __name__ == "__main__":
    report.command(__doc__, main, tables, choose)
