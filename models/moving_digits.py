"""Does the order of views help? SimVAE on series of a moving digit, under three priors.

Digits of 8 × 8 pixels drift and bounce in frames of 16 × 16 (`data.moving_digits`), six
frames for each series, which are the views of an item. The encoder, the decoder, the
guide (`guides.Coupled`) and the number of steps are the same under all priors:

- `priors.Independent`: frames have nothing in common (a VAE of single frames).
- `priors.Gaussian`: frames share a content y, in any order (exchangeable), with a
  learned scale for each dimension of z.
- `priors.Sequence`: each frame is drawn given the one before it, with a learned
  coefficient for each dimension; and with a learned matrix, `priors.Contraction`.

The series for the scores are of digits that no fit saw: those of the test set of
`data.digits`, and for validation of the last fifth of its training set. Settings are
the same under all priors, and were chosen on validation series: networks of this size
and so many steps. Nothing was chosen on test series.

Scores: the importance-weighted bound on the evidence log p(x_1, …, x_6) in nats per
series, with 200 draws (a bound: the weights are too uneven for an estimate, and the
share of series with Pareto k̂ above 0.7 is in the report); the digit by a linear probe
of the mean of z over frames; the place of the digit in a frame, R² of a linear
regression on the mean of z of that frame; and the same of the fourth frame where it is
hidden, its z given the five others.

A chain places a hidden frame, R² 0.92, where a shared content gives 0.56. Its bound is
17 ± 10 nats above that of `Gaussian`.

Results: docs/results.md, "Views in order". Writes moving_digits.json in
benchmarks/results.

``--tables`` prints the table. Takes 17 minutes of one CPU core. A run that was stopped
goes on.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from sklearn.linear_model import Ridge
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

import probssl as ps
from probssl.data import MovingDigits
from probssl.priors import Contraction, Gaussian, Independent, Prior, Sequence

CHOSEN_ON = "validation"
SEEDS, EPOCHS, SERIES, HELD_OUT, FRAMES, HIDDEN_FRAME = 3, 40, 4_096, 200, 6, 3
DIM, BATCH, HIDDEN, LEARNING_RATE, PARTICLES = 10, 64, (256, 256), 2e-3, 200
SHAPE = (1, 16, 16)
PRIORS: dict[str, Callable[[], Prior]] = {
    "Independent": lambda: Independent(DIM),
    "Gaussian": lambda: Gaussian(DIM, ps.learned([0.7] * DIM)),
    "Sequence": lambda: Sequence(DIM, ps.learned([0.8] * DIM)),
    "Sequence, a matrix": lambda: Sequence(DIM, Contraction(DIM, 0.8)),
}
BOUND, DIGIT, PLACE, UNSEEN = "bound", "digit", "place", "place, hidden frame"
COLUMNS = {BOUND: 1, DIGIT: 3, PLACE: 3, UNSEEN: 3}


def series(data: ps.data.Dataset, n: int, held_out: int) -> dict[str, MovingDigits]:
    """Series for fits, of other digits for validation, and of test digits."""
    found = report.parts(data)
    return {
        name: ps.data.moving_digits(
            n if name == "train" else held_out, FRAMES, images=part, seed=seed
        )
        for seed, (name, part) in enumerate(found.items())
    }


def fitted(prior: Prior, train: MovingDigits, epochs: int) -> ps.Joint:
    joint = ps.Joint(
        prior,
        ps.likelihoods.Binomial(16),
        ps.nn.MLPEncoder(SHAPE, DIM, hidden=HIDDEN),
        ps.nn.MLPDecoder(DIM, SHAPE, hidden=HIDDEN),
        guide=ps.guides.Coupled,
    )
    steps = epochs * max(1, len(train.groups) // BATCH)

    def decay(optimizer: Optimizer) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, steps)

    ps.fit(
        ps.limits.SimVAE(joint),
        train.groups,
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scheduler=decay,
        compile=False,
        progress=False,
    )
    return joint


@torch.no_grad()
def latents(joint: ps.Joint, drawn: MovingDigits, hide: int | None = None) -> Any:
    """The mean of z of each frame, (n, frame, dim), or with one frame hidden."""
    views = drawn.groups.views
    present = None
    if hide is not None:
        present = (torch.arange(FRAMES) != hide).expand(len(views), -1)
    return joint.encode(ps.Batch(views, present=present)).mean


def measured(
    joint: ps.Joint, drawn: dict[str, MovingDigits], particles: int
) -> dict[str, float]:
    """The scores of the held-out series."""
    train = drawn["train"]
    z, labels = latents(joint, train), train.groups.labels
    regression = Ridge(1e-3).fit(z.flatten(0, 1), train.position.flatten(0, 1))
    figures: dict[str, float] = {}
    for name in ("validation", "test"):
        part = drawn[name]
        torch.manual_seed(0)
        evidence = ps.evidence(joint, part.groups, particles=particles)
        own, hidden = latents(joint, part), latents(joint, part, HIDDEN_FRAME)
        figures |= {
            f"{name}: {BOUND}": evidence.mean,
            f"{name}: share of k̂ > 0.7": evidence.unreliable / len(part.groups),
            f"{name}: {DIGIT}": ps.evaluation.linear_probe(
                z.mean(1), labels, own.mean(1), part.groups.labels
            ),
            f"{name}: {PLACE}": regression.score(
                own.flatten(0, 1), part.position.flatten(0, 1)
            ),
            f"{name}: {UNSEEN}": regression.score(
                hidden[:, HIDDEN_FRAME], part.position[:, HIDDEN_FRAME]
            ),
        }
    return figures


def main(
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    n: int = SERIES,
    held_out: int = HELD_OUT,
    particles: int = PARTICLES,
    data: ps.data.Dataset | None = None,
    results: Path = report.RESULTS,
) -> list[report.Row]:
    """Return the scores of every prior and seed."""
    drawn = series(ps.data.digits() if data is None else data, n, held_out)

    def fit(cell: report.Row) -> report.Row:
        began = time.process_time()
        torch.manual_seed(cell["seed"])
        joint = fitted(PRIORS[cell["prior"]](), drawn["train"], epochs)
        found = measured(joint, drawn, particles)
        return found | {"cpu seconds": time.process_time() - began}

    return report.collected(
        results / "moving_digits.json",
        "moving_digits.py",
        [{"prior": name, "seed": seed} for seed in range(seeds) for name in PRIORS],
        fit,
        series=n,
        **{"held-out series": held_out},
        epochs=epochs,
        particles=particles,
    )


def table(rows: list[report.Row]) -> str:
    """Mean and standard deviation over seeds, and paired gains, in Markdown."""
    base = [row for row in rows if row["prior"] == "Gaussian"]
    lines = []
    for prior in PRIORS:
        own = [row for row in rows if row["prior"] == prior]
        values = {c: [row[f"test: {c}"] for row in own] for c in COLUMNS}
        cells = [report.spread(values[c], digits) for c, digits in COLUMNS.items()]
        above = report.gain(values[BOUND], [row[f"test: {BOUND}"] for row in base], 1)
        lines.append([prior, *cells, "–" if own == base else above])
    heads = [f"test: {column}" for column in COLUMNS]
    return report.markdown(["prior", *heads, "bound above Gaussian"], lines)


if __name__ == "__main__":
    saved = report.RESULTS / "moving_digits.json"
    report.command(__doc__, main, lambda: table(report.read(saved)))
