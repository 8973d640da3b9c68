"""Does DSA relieve crowding? CIFAR-10, three bases with and without DSA.

Bases are SimCLR, BYOL and Barlow Twins; settings are those of DSA's authors: 300 epochs
of 256 images, a projector to 64 dimensions, Adam of rate 3e-3 that falls to a fifth
twice, weight 1 of the regulated loss relative to the published loss of the base. The
anchor of the affinity is `probssl.limits.DSA`'s and not theirs: a divergence from an
EMA of the encoder, where they took a network that was trained with labels. Networks,
split, scores and folders: `cifar10.py`.

Crowding is the scatter within classes over that between them, of features on the unit
sphere: small is good. It is measured before training, of each base, and of the base
with DSA; gains are paired by seeds.

Every setting is published, or the default of `limits.DSA`; nothing was chosen on test
images.

At this size the script has not been run yet: there are no figures. What is tested is a
short form on a CPU.

Writes benchmarks/results/dsa_cifar10.json. Needs CIFAR-10 in the folder named by the
environment variable PROBSSL_DATA, and a GPU.

References:
    On the Discriminability of Self-Supervised Representation Learning
    (Song et al., 2024)
    https://arxiv.org/abs/2407.13541
"""

from typing import Any

import cifar10
from torch import nn

import probssl as ps

CHOSEN_ON = "published"
ANCHOR, RESAMPLES = 10.0, 20
BASES = ("SimCLR", "BYOL", "Barlow Twins")


def regulated(name: str) -> cifar10.Method:
    """A base with DSA, whose weights are relative to the published loss of the base."""
    nats = cifar10.NATS[name]

    def build(shape: tuple[int, ...], images: int) -> nn.Module:
        base = cifar10.base(name, shape)
        return ps.limits.DSA(base, weight=nats, anchor=ANCHOR * nats)

    return cifar10.Method(build, cifar10.ADAM, base=name)


METHODS = {name: cifar10.alone(name) for name in BASES}
METHODS |= {f"{name} + DSA": regulated(name) for name in BASES}
METHODS["untrained encoder"] = cifar10.alone("SimCLR")._replace(optimizer=None)


def scores(objective: nn.Module, found: cifar10.Parts) -> dict[str, float]:
    """The probes, and the crowding of the classes."""
    figures = cifar10.probed(objective, found)
    for name in ("validation", "test"):
        z = cifar10.represented(objective, found[name])
        crowding = ps.evaluation.crowding(
            z, found[name].labels, bootstrap=RESAMPLES, progress=False
        )
        figures[f"{name}: crowding"] = crowding.crowding.value
    return figures


EXPERIMENT = cifar10.Experiment(
    name="dsa_cifar10",
    methods=METHODS,
    epochs=300,
    batch=256,
    views=cifar10.augmented(crop=0.2, grey=0.1),
    schedule=cifar10.stepped,
    scores=scores,
    columns=cifar10.columns({"crowding": 3}),
)


def main(**options: Any) -> list[dict[str, Any]]:
    """Return the scores of every method and seed, with the options of `cifar10.run`."""
    return cifar10.run(EXPERIMENT, **options)


if __name__ == "__main__":
    cifar10.command(EXPERIMENT, __doc__)
