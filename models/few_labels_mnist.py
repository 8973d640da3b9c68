"""How many labels does a classifier of digits need? MNIST with 100 and 1,000 labels.

The components of a mixture prior are the classes: SimVAE is fitted to 10,000 training
images, of which 100 or 1,000 have a label, the same number of each class, and two views
of each image. Labelled images are repeated up to a tenth of all, each time with other
views. `classify` gives p(class | image) on all 10,000 test images. Beside it, two
classifiers of the same z: a linear probe on the labelled images, and the nearest mean
of the labelled images of a class.

Reaches 0.867 with 100 labels and 0.919 with 1,000, sixteen epochs; a linear probe of
the same z 0.871 and 0.932.

Published numbers (Semi-supervised Learning with Deep Generative Models, Kingma et al.,
2014), with 50,000 images of twice the side and without data augmentation: M2 88.0 and
96.4 %, M1+M2 96.7 and 97.6 % with 100 and 1,000 labels.

Results: docs/results.md, "Few labels". Writes benchmarks/results/few_labels_mnist.json.
Needs MNIST in the folder named by the environment variable PROBSSL_DATA.

Takes ten minutes of one CPU core.
"""

import json
import os
import platform
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

import probssl as ps
from probssl.views import Affine, Augment

IMAGES, LABELS, DRAWS, EPOCHS, BATCH = 10_000, (100, 1_000), 5, 16, 100
SIDE, CHANNELS, DIM, SCALE, NOISE, LEARNING_RATE = 14, (16, 32), 16, 0.3, 0.3, 4e-3
LABEL_WEIGHT, SHARE = 30.0, 0.1  # labelled images are repeated up to this share
VIEWS = Augment(Affine(rotate=15, scale=(0.8, 1.2), shift=0.1))
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def images() -> ps.data.Dataset:
    """MNIST in [0, 1], averaged down to a few pixels a side."""
    data = ps.data.load("mnist")
    train, test = (
        part._replace(images=adaptive_avg_pool2d(part.images.float() / 255, SIDE))
        for part in (data.train.take(IMAGES), data.test)
    )
    return ps.data.Dataset(train, test, None, data.name)


def drawn(labels: Tensor, number: int, seed: int) -> Tensor:
    """Keep a number of labels, as many of each class; -1 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    classes, known = labels.unique(), torch.full_like(labels, -1)
    for k in classes:
        rows = (labels == k).nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=generator)
        known[rows[order[: number // len(classes)]]] = k
    return known


def repeated(known: Tensor) -> Tensor:
    """Rows of all items, the labelled ones several times: with views of their own."""
    rows = (known >= 0).nonzero().squeeze(1)
    times = max(1, int(SHARE * len(known)) // len(rows))
    return torch.cat([torch.arange(len(known)), rows.repeat(times - 1)])


def fitted(data: ps.data.Dataset, known: Tensor, epochs: int) -> ps.limits.SimVAE:
    """SimVAE with a component for each class, with one cycle of the learning rate."""
    shape = tuple(data.train.images.shape[1:])
    joint = ps.Joint(
        ps.priors.Mixture(DIM, int(known.max()) + 1, SCALE),
        ps.likelihoods.Gaussian(NOISE),
        ps.nn.ConvEncoder(shape, DIM, channels=CHANNELS),
        ps.nn.ConvDecoder(DIM, shape, channels=CHANNELS[::-1]),
    )
    simvae, rows = ps.limits.SimVAE(joint, label_weight=LABEL_WEIGHT), repeated(known)
    steps = epochs * max(1, len(rows) // BATCH)
    ps.fit(
        simvae,
        data.train.rows(rows),
        views=VIEWS,
        content=known[rows],
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scheduler=lambda o: OneCycleLR(o, [g["lr"] for g in o.param_groups], steps),
        progress=False,
    )
    return simvae


def accuracies(
    simvae: ps.limits.SimVAE, data: ps.data.Dataset, known: Tensor
) -> dict[str, float]:
    """The accuracy on test images of `classify`, and of two classifiers of z."""
    right, seen = data.test.labels, known >= 0
    z, z_test = (torch.as_tensor(ps.embed(simvae, s)) for s in (data.train, data.test))
    found = torch.as_tensor(ps.classify(simvae, data.test)).argmax(1)
    means = torch.stack([z[known == k].mean(0) for k in known[seen].unique()])
    nearest = torch.cdist(z_test, means).argmin(1)
    return {
        "classify": float((found == right).double().mean()),
        "linear probe": float(
            ps.evaluation.linear_probe(z[seen], known[seen], z_test, right)
        ),
        "nearest mean": float((nearest == right).double().mean()),
    }


def main(
    draws: int = DRAWS,
    epochs: int = EPOCHS,
    labels: tuple[int, ...] = LABELS,
    data: ps.data.Dataset | None = None,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Return the accuracies of each number and draw of labels."""
    rows: list[dict[str, Any]] = []
    data = images() if data is None else data
    for seed, number in tqdm(list(product(range(draws), labels)), unit="fit"):
        began = time.process_time()
        torch.manual_seed(seed)
        known = drawn(data.train.labels, number, seed)
        simvae = fitted(data, known, epochs)
        found: dict[str, Any] = {"labels": number, "draw": seed}
        found |= accuracies(simvae, data, known)
        rows.append(found | {"seconds": round(time.process_time() - began)})
        tqdm.write(str(rows[-1]))
    results.mkdir(parents=True, exist_ok=True)
    report = {
        "script": "models/few_labels_mnist.py",
        "images": len(data.train.images),
        "epochs": epochs,
        "hardware": f"{platform.processor() or platform.machine()}, "
        f"{os.cpu_count()} cores",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "rows": rows,
    }
    path = results / "few_labels_mnist.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
