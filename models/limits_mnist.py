"""Every objective of the package on MNIST: scores, and terms in nats.

What models/digits.py does for scikit-learn's digits: methods, their hyper-parameters,
networks and optimiser are the defaults of `recipes`, and all have the same encoder (two
hidden layers of 256, z of 10 dimensions), views (small rotations, scalings and shifts)
and number of images seen. `probssl.compare` measures each on two views of test images.
10,000 training images, binary, fit the encoder, in 936 steps, and the probes; scores
are those of the 10,000 test images. Nothing was chosen on either: the defaults are
those of digits.

Every fit leaves a folder in runs/, which `probssl inspect` reads; fits whose folder is
there are not run again, so that a run that was stopped goes on. Names of methods as
arguments fit these alone.

``--tables`` prints the tables. Writes benchmarks/results/limits_mnist.json. Needs MNIST
in the folder named by the environment variable PROBSSL_DATA.

After so short a fit DeepClustering has the best linear probe, 0.897, before the
denoising autoencoder and LogDet; none is above raw pixels in 5-NN.

Results: docs/results.md, "All objectives on MNIST". Three seeds take half an hour of
one CPU core.
"""

import time
from itertools import product
from pathlib import Path

import report
import torch
from report import Row
from simvae_mnist import DIM, SEEDS

import probssl as ps
from probssl import recipes

CHOSEN_ON = "nothing"
IMAGES, EPOCHS = 10_000, 12
BASELINES, PCA = "baselines", f"PCA-{DIM}"
METHODS = (*recipes.METHODS, BASELINES)
SCORES = {  # columns of the first table, and their digits
    "linear probe": ("linear_probe", 3),
    "few-label probe": ("few_label_probe", 3),
    "5-NN": ("knn", 3),
    "effective rank": ("effective_rank", 1),
}
TERMS = {  # and of the second
    "Gaussian + log-det": ("log_det", 1),
    "Gaussian + KDE": ("gaussian_kernel", 1),
    "Gaussian + neighbours": ("gaussian_nearest", 1),
    "sphere + KDE": ("spherical_kernel", 1),
    "I(z; z′), InfoNCE": ("info_nce", 1),
    "I(z; z′), Gaussian": ("gaussian_information", 1),
    "log p(x given z)": ("decoded", 1),
}


def fitted(method: str, data: ps.data.Dataset, epochs: int) -> torch.nn.Module:
    """The objective with its defaults; of the baselines an encoder, not fitted."""
    if method == BASELINES:
        return recipes.encoder(data, DIM)
    objective, views = recipes.objective(method, data, DIM), recipes.views(data)
    recipes.fit(objective, data, views=views, epochs=epochs, progress=False)
    return objective


def place(runs: Path, method: str, epochs: int, seed: int) -> Path:
    """The folder of a fit, from which other scripts read it as well."""
    return runs / "limits_mnist" / f"{method}, {epochs} epochs, seed {seed}"


def cell(
    method: str, seed: int, epochs: int, saved: Path, data: ps.data.Dataset
) -> list[Row]:
    """Fit and compare one method, unless its folder is there; return its rows."""
    if (notes := report.kept(saved)) is not None:
        known: list[Row] = notes["rows"]
        return known
    began = time.process_time()
    torch.manual_seed(seed)
    objective = fitted(method, data, epochs)
    trained = time.process_time()
    found = ps.compare(
        {method: objective},
        data,
        views=recipes.views(data),
        baselines=method == BASELINES,
        seed=seed,
        progress=False,
    ).methods
    if method == BASELINES:
        del found[method]  # the encoder by which their dimension was known
    seconds = {
        "CPU seconds of the fit": round(trained - began),
        "CPU seconds in all": round(time.process_time() - began),
    }
    rows = []
    for name, row in found.items():
        bound = {k: v for k, v in row["terms"].items() if k == "elbo"}
        figures = row["scores"] | row["matrix"] | bound
        rows.append({"method": name, "seed": seed, **figures, **seconds})
    ps.save(objective, saved, rows=rows)
    return rows


def main(
    names: tuple[str, ...] = METHODS,
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
    runs: Path = report.ROOT / "runs",
) -> list[Row]:
    """Return the figures of these methods, and of others whose folders are there.

    All methods have a seed before any has the next.
    """
    if data is None:
        data = ps.data.load("mnist")
        data = data._replace(train=data.train.take(IMAGES))
    rows: list[Row] = []
    path, images = results / "limits_mnist.json", len(data.train)
    for seed, method in product(range(seeds), METHODS):
        saved = place(runs, method, epochs, seed)
        if method in names or saved.is_dir():
            rows += cell(method, seed, epochs, saved, data)
            report.write(
                path, "limits_mnist.py", images=images, epochs=epochs, rows=rows
            )
    return rows


def tables(rows: list[Row]) -> str:
    """Scores and terms of all methods, in Markdown."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    gain = f"few labels, gain over {PCA}"
    parts = []
    for columns, more in ((SCORES, [gain]), (TERMS, [])):
        lines = []
        for name in names:
            own = [row for row in rows if row["method"] == name]
            values = [([r.get(key) for r in own], n) for key, n in columns.values()]
            cells = [report.spread([] if None in x else x, n) for x, n in values]
            lines.append([name, *cells, *([_gain(own, rows)] if more else [])])
        parts.append(report.markdown(["method", *columns, *more], lines))
    return "\n\n".join(parts) + "\n"


def _gain(own: list[Row], rows: list[Row]) -> str:
    """The gain over PCA with few labels, the same of a seed, and its standard error."""
    base = {row["seed"]: row["few_label_probe"] for row in rows if row["method"] == PCA}
    pairs = [(row["few_label_probe"], base[row["seed"]]) for row in own]
    return report.gain(*zip(*pairs, strict=True))


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="some")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.tables:
        print(tables(report.read(report.RESULTS / "limits_mnist.json")))
    else:
        main(tuple(options.methods), results=options.out)
