"""Eight objectives of joint embedding on CIFAR-10, beside lightly's accuracies.

SimCLR, VICReg, Barlow Twins, BYOL, SimSiam, MoCo, SwAV and DINO with the heads,
temperatures, optimisers and number of epochs of lightly's benchmark: 200 epochs of 128
images, SGD of rate 0.06 with a cosine, Adam for SwAV. VICReg is not in that benchmark
and has SwAV's optimiser. Networks, split, scores and folders: `cifar10.py`.

The published figure is lightly's for these 200 epochs. It is the best of all epochs on
the test images, of one fit to all 50,000 training images; here every fit is scored
after its last epoch, the mean over seeds is shown, and 5,000 images are held out.
Other differences: projectors have a batch norm in front of each ReLU and none at their
end; SwAV and DINO have the views of the others; the cosine is taken per step.

Every setting is published; nothing was chosen on test images.

At this size the script has not been run yet: there are no figures. What is tested is a
short form on a CPU.

Writes benchmarks/results/limits_cifar10.json. Needs CIFAR-10 in the folder named by the
environment variable PROBSSL_DATA, and a GPU; `benchmarks/gpu.py` measures the images
per second of the same SimCLR.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cifar10
from torch import nn
from torch.optim import Adam

import probssl as ps

CHOSEN_ON = "published"
RATE, DECAY, PROTOTYPES, CODES = 0.06, 5e-4, 512, 2_048
ADAM = partial(Adam, lr=1e-3, weight_decay=1e-6)
# 200-NN of lightly after 200 epochs of 128 images.
PUBLISHED = {
    "SimCLR": 0.847,
    "Barlow Twins": 0.842,
    "BYOL": 0.869,
    "SimSiam": 0.819,
    "MoCo": 0.838,
    "SwAV": 0.812,
    "DINO": 0.840,
}


def method(
    limit: Callable[..., nn.Module],
    width: int,
    out: int,
    predictor: int = 0,
    layers: int = 2,
    nats: float | None = 1.0,
    **options: Any,
) -> cifar10.Method:
    """An objective with a projector, and with a predictor of this width.

    Arguments:
        nats: How many times lightly's loss the value is; None for those that Adam fits.
    """

    def build(shape: tuple[int, ...], images: int) -> nn.Module:
        head = ps.nn.Projector(512, width, out, layers)
        own = {"predictor": ps.nn.Projector(out, predictor, out)} if predictor else {}
        return limit(cifar10.encoder(shape), head, **own, **options)

    if nats is None:
        return cifar10.Method(build, ADAM)
    given = {"rate": RATE, "decay": DECAY, "nats": nats}
    return cifar10.Method(build, partial(cifar10.sgd, **given))


METHODS = {
    "SimCLR": method(ps.limits.SimCLR, 512, 128, temperature=0.5),
    "VICReg": method(ps.limits.VICReg, 2_048, 2_048, layers=3, nats=None),
    "Barlow Twins": method(ps.limits.BarlowTwins, 2_048, 2_048, nats=50.0),
    # lightly's loss is the mean of −cos, the published one sums 2 − 2 cos over both.
    "BYOL": method(ps.limits.BYOL, 1_024, 256, predictor=1_024, nats=4.0),
    "SimSiam": method(ps.limits.SimSiam, 2_048, 2_048, predictor=512),
    "MoCo": method(ps.limits.MoCo, 512, 128, temperature=0.1, queue=4_096),
    "SwAV": method(ps.limits.SwAV, 512, 128, components=PROTOTYPES, nats=None),
    "DINO": method(ps.limits.DINO, 2_048, 256, components=CODES),
    "untrained encoder": method(ps.limits.SimCLR, 512, 128)._replace(optimizer=None),
}
EXPERIMENT = cifar10.Experiment(
    name="limits_cifar10",
    methods=METHODS,
    epochs=200,
    batch=128,
    views=cifar10.augmented(crop=0.08, grey=0.2),
    schedule=cifar10.cosine,
    scores=cifar10.probed,
    columns=cifar10.columns(),
    published={"lightly: 200-NN": PUBLISHED},
)


def main(**options: Any) -> list[dict[str, Any]]:
    """Return the scores of every method and seed, with the options of `cifar10.run`."""
    return cifar10.run(EXPERIMENT, **options)


if __name__ == "__main__":
    cifar10.command(EXPERIMENT, __doc__)
