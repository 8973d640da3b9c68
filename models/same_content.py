"""Does the affinity of DSA know which items are of one class? MNIST and CIFAR-10.

DSA ("On the Discriminability of Self-Supervised Representation Learning", Song et al.,
2024) learns for every pair of items the probability M that they have the same content,
without labels. Here labels judge it: over all pairs of test images, the area under the
receiver operating characteristic of M for "same class", beside that of the cosine
similarity of the projector's output, of the encoder's, and of the reference that
anchors M. M is a network of both representations, anchored to a momentum (EMA) encoder,
or the closed form of a von Mises-Fisher prior, whose concentration and odds are
learned, anchored to principal components. The base is SimCLR.

Nothing was chosen: both kinds of M are shown, with the networks, the learning rate and
the settings of DSA of models/against_baselines.py.

Results: docs/papers.md, "Same content". M classifies pairs better than pixels do, but
no better than the cosine of the projector's output. The closed form is a function of
that cosine, and has its area.

Prints every area and writes them to benchmarks/results/same_content.json. Needs MNIST
and CIFAR-10 in the folder named by the environment variable PROBSSL_DATA.

Takes ten minutes of one CPU core.
"""

import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

import probssl as ps
from probssl.data.memory import as_float
from probssl.views import Affine, Augment, simclr

CHOSEN_ON = "nothing"
SEEDS, EPOCHS, IMAGES, TEST, BATCH = 3, 20, 5_000, 2_000, 250
SIDES = {"mnist": 14, "cifar10": 16}
CHANNELS, DIM, LEARNING_RATE = (16, 32), 32, 5e-3
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "mnist": Augment(Affine(rotate=15, scale=(0.8, 1.2), shift=0.1)),
    "cifar10": simclr(levels=None),
}


def images(name: str) -> ps.data.Dataset:
    """Images in [0, 1], averaged down to a few pixels a side."""
    data = ps.data.load(name)
    train, test = (
        part._replace(images=adaptive_avg_pool2d(as_float(part), SIDES[name]))
        for part in (data.train.take(IMAGES), data.test.take(TEST))
    )
    return ps.data.Dataset(train, test, None, data.name)


def build(affinity: str, data: ps.data.Dataset) -> ps.limits.DSA:
    """DSA on SimCLR, with M learned or in closed form."""
    encoder = ps.nn.ConvEncoder(
        tuple(data.train.images.shape[1:]), DIM, channels=CHANNELS
    )
    base = ps.limits.SimCLR(encoder, ps.nn.Projector(DIM, 128, 32), temperature=0.5)
    if affinity == "learned":
        return ps.limits.DSA(base)
    prior = ps.priors.Spherical(None, ps.learned(5.0))
    return ps.limits.DSA(
        base,
        ps.limits.PrincipalComponents.of(data.train.images, DIM),
        ps.limits.PriorAffinity(prior, ps.learned(0.1)),
        reference_temperature=2.0,
    )


def fit(
    dsa: nn.Module,
    data: ps.data.Dataset,
    views: Callable[[Tensor], Tensor],
    epochs: int,
) -> None:
    """Fit with one cycle of the learning rate."""
    optimizer = Adam(dsa.parameters(), LEARNING_RATE, fused=True)
    steps = epochs * max(1, len(data.train.images) // BATCH)
    ps.fit(
        dsa,
        data.train,
        views=views,
        epochs=epochs,
        batch_size=BATCH,
        optimizer=optimizer,
        scheduler=OneCycleLR(optimizer, LEARNING_RATE, steps),
        compile=False,
        progress=False,
    )


def areas(dsa: ps.limits.DSA, data: ps.data.Dataset) -> dict[str, float]:
    """The area under the curve of each score for "same class"."""
    from sklearn.metrics import roc_auc_score

    z = torch.from_numpy(ps.embed(dsa, data.test))
    compared = torch.from_numpy(ps.embed(dsa, data.test, layer="projector"))
    reference = dsa.reference or dsa.teacher.network.encoder
    u = torch.from_numpy(ps.embed(reference, data.test))
    scores = {
        "M": dsa.same(compared),
        "cosine of projection": _cosine(compared),
        "cosine of representation": _cosine(z),
        "cosine of reference": _cosine(u),
        "cosine of pixels": _cosine(data.test.images.flatten(1)),
    }
    y = data.test.labels
    first, second = torch.triu_indices(len(y), len(y), 1)
    same = (y[first] == y[second]).numpy()
    return {
        name: float(roc_auc_score(same, score[first, second].numpy()))
        for name, score in scores.items()
    }


def _cosine(z: Tensor) -> Tensor:
    directions = normalize(z, dim=-1)
    return directions @ directions.mT


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    sets: dict[str, ps.data.Dataset] | None = None,
    results: Path = report.RESULTS,
) -> list[dict[str, Any]]:
    """Return the areas of every data set, seed and kind of affinity."""
    rows: list[dict[str, Any]] = []
    sets = {name: images(name) for name in VIEWS} if sets is None else sets
    for name, seed, kind in product(sets, range(seeds), ("learned", "closed form")):
        began, data = time.process_time(), sets[name]
        torch.manual_seed(seed)
        dsa = build(kind, data)
        fit(dsa, data, VIEWS[name], epochs)
        found = areas(dsa, data)
        seconds = time.process_time() - began
        rows.append({"data": name, "seed": seed, "affinity": kind} | found)
        print(*rows[-1].values(), f"{seconds:.0f} s", flush=True)
    path = results / "same_content.json"
    report.write(path, "same_content.py", epochs=epochs, rows=rows)
    return rows


if __name__ == "__main__":
    report.command(__doc__, main)
