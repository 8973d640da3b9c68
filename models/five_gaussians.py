r"""Five Gaussians: SimCLR arranges them as a pentagon, and views of noise or mixup.

Two analyses of contrastive learning as neighbour embedding, on mixtures :math:`\frac15
\sum_k N(\mu_k, \sigma^2 I)` of 250 items.

The circle: σ = 0.1, centres in the plane, views with noise of scale σ, SimCLR with
representations on a circle. Perfect alignment puts each class in one point, and perfect
uniformity puts five points as far apart as possible (Tammes's problem): a regular
pentagon, 72 degrees from one class mean to the next.

The views: noise, :math:`x + s \epsilon`, or mixup, :math:`x + \lambda (x' - x)` with
another item :math:`x'` and λ uniform up to r. Centres are the corners of a regular
simplex of side 1 (in the plane a pentagon), in a random direction in d dimensions. The
classes are round, σ = 0.1 in every dimension, or flat: the total variance that σ = 0.1
has in the plane, spread over all dimensions, so that the data lie near the span of the
centres.

Nothing was chosen: items are simulated, views of all strengths are shown, and networks,
steps and learning rate are those of the first version.

Results: docs/papers.md, "Five Gaussians". On the circle, five seeds, class means are 63
to 81 degrees apart, uniformity is -1.495 to -1.507 (a pentagon has -1.489, points all
over the circle -1.575), alignment 0.001 to 0.016.

Results of the views: median crowding (after normalisation for SimCLR, which sees
directions) and 5-NN accuracy (1.00 for flat classes and in the plane).

- Noise of s = 0.3 is best nearly everywhere: SimCLR's crowding is 0.002 in the plane
  and 0.004 for round classes in 200 dimensions, where that of the data is 1.9. The
  spread of these classes is noise, and such views remove it.
- The scale must be right: s = 1 does well in the plane (0.009) and has 1.4 in 200
  dimensions, with a 5-NN accuracy of 0.50.
- Mixup with r = 0.3 has no scale to adapt to the dimension. It separates flat classes
  better in more dimensions, 0.002 in the plane and below 0.0001 in 200, nearly as well
  as the best noise. In 200 dimensions either r is better than noise of s = 1.
- Mixup keeps the spread of round classes, since both views contain most of their item:
  0.40, with a 5-NN accuracy of 0.93. So it adapts to data of few dimensions, and is
  better than noise where noise is too large.
- With t-SimCLR the order is the same in 200 dimensions for s = 0.3, r = 0.3 and s = 1;
  mixup leaves less of round classes (0.23), noise of 0.3 leaves more (0.013).

Prints all figures and writes them to benchmarks/results/five_gaussians.json, and draws
them to five_gaussians.png beside it.

Takes five minutes on one CPU core.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from torch import Tensor, nn

import probssl as ps
from probssl.plots.style import BLUE, INK, ORANGE, blank, clean

CHOSEN_ON = "nothing"
SEEDS, CLASSES, ITEMS, TEST, SIGMA = 5, 5, 250, 500, 0.1
CIRCLE_STEPS, STEPS, BATCH, LEARNING_RATE = 600, 150, 64, 3e-3
HIDDEN, DIM, DIMS = (64, 64), 8, (2, 10, 50, 200)
OBJECTIVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "SimCLR": lambda encoder: ps.limits.SimCLR(encoder, temperature=0.5),
    "t-SimCLR": lambda encoder: ps.limits.TSimCLR(encoder, dof=5.0, temperature=1.0),
}

Views = Callable[[Tensor], Tensor]


def noise(scale: float) -> Views:
    """Two noisy views of each item."""
    return lambda x: x[:, None] + scale * torch.randn(len(x), 2, x.shape[1])


def mixup(reach: float) -> Views:
    """Two views of each item, mixed with other items of the batch."""

    def view(x: Tensor) -> Tensor:
        other = x[torch.randperm(len(x))]
        return x + reach * torch.rand(len(x), 1) * (other - x)

    return lambda x: torch.stack([view(x), view(x)], 1)


VIEWS = {
    ("noise", 0.3): noise(0.3),
    ("noise", 1.0): noise(1.0),
    ("mixup", 0.3): mixup(0.3),
    ("mixup", 1.0): mixup(1.0),
}


def scattered() -> Tensor:
    """Centres in the plane, at random but six standard deviations apart."""
    while True:
        centres = torch.randn(CLASSES, 2)
        if torch.pdist(centres).min() > 6 * SIGMA:
            return centres


def corners(dim: int) -> Tensor:
    """Centres with smallest distance 1, turned at random: a simplex or a pentagon."""
    if dim < CLASSES - 1:
        angles = 2 * math.pi * torch.arange(CLASSES) / CLASSES
        centres = torch.stack([angles.cos(), angles.sin()], 1)
    else:
        left, spread, _ = torch.linalg.svd(torch.eye(CLASSES) - 1 / CLASSES)
        centres = (left * spread)[:, : CLASSES - 1]
    turned = torch.linalg.qr(torch.randn(dim, dim))[0][: centres.shape[1]]
    return centres @ turned / torch.pdist(centres).min()


def mixture(centres: Tensor, scale: float, items: int) -> ps.data.Split:
    """Equally many items of each class, in random order."""
    labels = torch.arange(items)[torch.randperm(items)] % CLASSES
    x = centres[labels] + scale * torch.randn(items, centres.shape[1])
    return ps.data.Split(x, labels)


def fitted(
    make: Callable[[nn.Module], nn.Module], data: Tensor, dim: int, views: Views, n: int
) -> nn.Module:
    """The objective after n steps."""
    encoder = ps.nn.MLPEncoder(tuple(data.shape[1:]), dim, hidden=HIDDEN)
    objective = make(encoder)

    def batches() -> Iterator[ps.Batch]:
        for _ in range(n):
            yield ps.Batch(views(data[torch.randperm(len(data))[:BATCH]]))

    optimizer = torch.optim.Adam(objective.parameters(), LEARNING_RATE, fused=True)
    for _ in ps.steps(objective, batches(), optimizer):
        pass
    return objective.eval()


def on_circle(seed: int, steps: int) -> dict[str, Any]:
    """Alignment and uniformity of test items, and the angles between class means."""
    torch.manual_seed(seed)
    centres = scattered()
    train, test = mixture(centres, SIGMA, ITEMS), mixture(centres, SIGMA, TEST)
    make, views = OBJECTIVES["SimCLR"], noise(SIGMA)
    objective = fitted(make, train.images, 2, views, steps)
    both = [ps.embed(objective, view) for view in views(test.images).unbind(1)]
    found = ps.evaluation.alignment_uniformity(np.stack(both, 1))
    z = ps.embed(objective, test)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    means = np.stack([z[test.labels.numpy() == k].mean(0) for k in range(CLASSES)])
    angles = np.sort(np.degrees(np.arctan2(means[:, 1], means[:, 0])))
    gaps = np.diff(angles, append=angles[0] + 360)
    return {
        "seed": seed,
        "alignment": found.alignment,
        "uniformity": found.uniformity,
        "gaps": gaps.tolist(),
        "length of class means": np.linalg.norm(means, axis=1).tolist(),
        "items": [z[test.labels.numpy() == k] for k in range(CLASSES)],
    }


def pentagon() -> float:
    """The uniformity of a regular pentagon."""
    angles = 2 * np.pi * np.arange(5) / 5
    return float(np.log(np.exp(-2 * (2 - 2 * np.cos(angles))).mean()))


def separation(z: Any, known: Any, labels: Tensor, y: Tensor, unit: bool) -> dict:
    """5-NN accuracy and crowding of test items z."""
    found = ps.evaluation.crowding(z, y, normalise=unit, bootstrap=20, progress=False)
    knn = ps.evaluation.knn(known, labels, z, y)
    return {"knn": knn, "crowding": found.crowding.value}


def by_views(seed: int, dim: int, shape: str, steps: int) -> Iterator[dict[str, Any]]:
    """Separation of classes in the data, and for each objective and view sampler."""
    torch.manual_seed(seed)
    centres = corners(dim)
    scale = SIGMA if shape == "round" else SIGMA * math.sqrt(2 / dim)
    train, test = mixture(centres, scale, ITEMS), mixture(centres, scale, TEST)
    y = train.labels, test.labels
    label = {"seed": seed, "dim": dim, "shape": shape}
    raw = separation(test.images, train.images, *y, unit=False)
    yield label | {"method": "data", "views": None, "strength": None} | raw
    for method, make in OBJECTIVES.items():
        for (kind, strength), views in VIEWS.items():
            objective = fitted(make, train.images, DIM, views, steps)
            z, known = ps.embed(objective, test), ps.embed(objective, train)
            figures = separation(z, known, *y, unit=method == "SimCLR")
            of = {"method": method, "views": kind, "strength": strength}
            yield label | of | figures


def draw(
    circle: list[dict[str, Any]], rows: list[dict[str, Any]], dims: Any, path: Path
) -> None:
    """The circle of the first seed, and median crowding against the dimension."""
    figure = blank(10, 3.4)
    left, *panels = figure.subplots(1, 3, width_ratios=(1, 1.3, 1.3))
    panels[1].sharey(panels[0])
    for items in circle[0]["items"]:
        left.scatter(*items.T, s=8, alpha=0.5)
    # the regular pentagon nearest to all items
    z = np.concatenate(circle[0]["items"])
    start = np.angle(np.mean((z @ (1, 1j)) ** CLASSES)) / CLASSES
    angles = start + 2 * np.pi * np.arange(CLASSES + 1) / CLASSES
    left.plot(np.cos(angles), np.sin(angles), ":", color=INK, lw=1, zorder=0)
    gaps = np.concatenate([row["gaps"] for row in circle])
    said = f"gaps {gaps.min():.0f}° to {gaps.max():.0f}°"
    left.set_title(said, fontsize=10)
    left.set_aspect("equal")
    left.axis("off")
    for panel, shape in zip(panels, ("round", "flat"), strict=True):
        clean(panel)
        own = [row for row in rows if row["shape"] in (shape, "both")]
        for method, line in (("SimCLR", "-"), ("t-SimCLR", ":")):
            for (kind, strength), colour, mark in zip(
                VIEWS, (BLUE, BLUE, ORANGE, ORANGE), "o^o^", strict=True
            ):
                of = (method, kind, strength)
                median = [
                    np.median([r["crowding"] for r in own if key(r) == (d, *of)])
                    for d in dims
                ]
                said = f"{method}, {kind} {strength:g}"
                style = {"color": colour, "marker": mark, "ms": 4, "label": said}
                panel.plot(dims, median, line, **style)
        raw = [
            np.median([r["crowding"] for r in own if key(r)[:2] == (d, "data")])
            for d in dims
        ]
        panel.plot(dims, raw, color=INK, lw=1, label="the data")
        panel.set(xscale="log", yscale="log", xlabel="dimensions of the data")
        panel.set_xticks(dims, [str(d) for d in dims])
        panel.minorticks_off()
        panel.set_title(f"{shape} classes", fontsize=10)
    panels[0].set_ylabel("crowding")
    lines, texts = panels[0].get_legend_handles_labels()
    figure.legend(lines, texts, loc="outside right", frameon=False, fontsize=8)
    report.draw(path, figure)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """The settings of a row, without seed and shape."""
    return row["dim"], row["method"], row["views"], row["strength"]


def main(
    seeds: int = SEEDS,
    circle_steps: int = CIRCLE_STEPS,
    steps: int = STEPS,
    dims: tuple[int, ...] = DIMS,
    results: Path = report.RESULTS,
) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of every seed: of the circle, and of the views."""
    began = time.process_time()
    circle, rows = [], []
    for seed in range(seeds):
        circle.append(on_circle(seed, circle_steps))
        shown = circle[-1]
        print(
            f"circle {seed}: alignment {shown['alignment']:.4f}, uniformity "
            f"{shown['uniformity']:.3f} (pentagon {pentagon():.3f}), gaps",
            *(f"{gap:.0f}" for gap in shown["gaps"]),
            flush=True,
        )
        for dim in dims:
            for shape in ("both",) if dim == 2 else ("round", "flat"):
                for row in by_views(seed, dim, shape, steps):
                    rows.append(row)
                    print(*row.values(), flush=True)
    path = results / "five_gaussians.json"
    report.write(
        path,
        "five_gaussians.py",
        steps=[circle_steps, steps],
        cpu_seconds=time.process_time() - began,
        **{"uniformity of a pentagon": pentagon()},
        circle=[{k: row[k] for k in row if k != "items"} for row in circle],
        views=rows,
    )
    draw(circle, rows, dims, path.with_suffix(".png"))
    return {"circle": circle, "views": rows}


if __name__ == "__main__":
    report.command(__doc__, main)
