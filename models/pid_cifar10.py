"""What do pseudo-labels add? CIFAR-10, four bases with and without PID.

Bases are SimCLR, BYOL, W-MSE and Barlow Twins. As in PID's paper the base is fitted
alone for a tenth of 1,000 epochs, then also classifies each view by clusters, as many
as there are classes, found by K-means after each further tenth; their weight rises from
1e-5 to 0.1 relative to the published loss of the base. The paper does not state how the
weight rises (here by equal factors), nor optimiser and batch, which are those of
W-MSE's authors: 512 images, Adam of rate 3e-3 that falls to a fifth twice, a projector
to 64 dimensions. The number of classes is knowledge of the labels. Networks, split,
scores and folders: `cifar10.py`.

Scores are of clean images, and of test images that are noisy, pixelated or blurred by a
zoom, with the severities 1, 3 and 5 of CIFAR-10-C; the probes are fitted to clean
training images.

Every setting is published, by one of the two papers; nothing was chosen on test images.
Published gains by PID are 1.31 (BYOL), 1.34 (SimCLR), 1.87 (W-MSE) and 1.42 (Barlow
Twins) points of a linear probe, as a review of the paper reports them.

At this size the script has not been run yet: there are no figures. What is tested is a
short form on a CPU.

Writes benchmarks/results/pid_cifar10.json. Needs CIFAR-10 in the folder named by the
environment variable PROBSSL_DATA, and a GPU.

References:
    Rethinking Self-Supervised Learning Within the Framework of Partial Information
    Decomposition (Mohamadi et al., 2024)
    https://arxiv.org/abs/2412.02121
    Benchmarking Neural Network Robustness to Common Corruptions and Perturbations
    (Hendrycks and Dietterich, 2019), for the severities
    https://arxiv.org/abs/1903.12261
"""

from functools import partial
from statistics import mean
from typing import Any

import cifar10
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

import probssl as ps
from probssl.shifts import apply
from probssl.views import Noise

CHOSEN_ON = "published"
BASES = ("SimCLR", "BYOL", "W-MSE", "Barlow Twins")
CLUSTERS, TENTH, RAMP = 10, 10, (1e-5, 1e-1)


class Pixelate(nn.Module):
    """Images averaged down to a share of their pixels a side, and enlarged again."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        side = max(1, int(self.share * x.shape[-1]))
        few = interpolate(x, (side, side), mode="area")
        return interpolate(few, x.shape[-2:], mode="nearest-exact")


class ZoomBlur(nn.Module):
    """The mean of an image and of its enlargements by 1, 1.01, … below a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factors = [1 + n / 100 for n in range(round(100 * (factor - 1)))]

    def forward(self, x: Tensor) -> Tensor:
        total = x.clone()
        for factor in self.factors:
            centre = torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3) / factor
            grid = affine_grid(centre, list(x.shape), align_corners=False)
            total += grid_sample(x, grid, padding_mode="border", align_corners=False)
        return total / (len(self.factors) + 1)


CORRUPTIONS: dict[str, nn.Module] = {
    **{f"noise {s}": Noise(sd) for s, sd in ((1, 0.04), (3, 0.08), (5, 0.1))},
    **{f"pixels {s}": Pixelate(p) for s, p in ((1, 0.95), (3, 0.85), (5, 0.65))},
    **{f"zoom {s}": ZoomBlur(f) for s, f in ((1, 1.06), (3, 1.16), (5, 1.26))},
}


def clustered(name: str) -> cifar10.Method:
    def build(shape: tuple[int, ...], images: int) -> nn.Module:
        return ps.limits.PID(cifar10.base(name, shape), CLUSTERS, images)

    fit = partial(phases, nats=cifar10.NATS[name])
    return cifar10.Method(build, cifar10.ADAM, base=name, fit=fit)


def phases(
    objective: nn.Module,
    train: ps.data.Split,
    *,
    nats: float,
    epochs: int,
    **options: Any,
) -> ps.History:
    """Fit the base alone, then both tiers, with clusters found anew in between."""
    tenth = max(1, epochs // TENTH)
    return ps.train.fit_phases(
        objective,
        train,
        lambda: objective.assign(ps.embed(objective, train, layer=objective.layer)),
        first=tenth,
        refresh=tenth,
        ramp=(nats * RAMP[0], nats * RAMP[1]),
        epochs=epochs,
        **options,
    )


METHODS = {name: cifar10.alone(name) for name in BASES}
METHODS |= {f"{name} + PID": clustered(name) for name in BASES}


def scores(objective: nn.Module, found: cifar10.Parts) -> dict[str, float]:
    """Scores of clean images, and of corrupted test images; the means of the latter."""
    wrong = {f"test, {n}": apply(c, found["test"]) for n, c in CORRUPTIONS.items()}
    figures = cifar10.probed(objective, found | wrong)
    for score in cifar10.SCORES:
        figures[f"test, corrupted: {score}"] = mean(
            figures[f"{name}: {score}"] for name in wrong
        )
    return figures


EXPERIMENT = cifar10.Experiment(
    name="pid_cifar10",
    methods=METHODS,
    epochs=1_000,
    batch=512,
    views=cifar10.augmented(crop=0.2, grey=0.1),
    schedule=cifar10.stepped,
    scores=scores,
    columns=cifar10.columns(parts=("validation", "test", "test, corrupted")),
)


def main(**options: Any) -> list[dict[str, Any]]:
    """Return the scores of every method and seed, with the options of `cifar10.run`."""
    return cifar10.run(EXPERIMENT, **options)


if __name__ == "__main__":
    cifar10.command(EXPERIMENT, __doc__)
