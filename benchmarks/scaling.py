"""How time and memory of a training step of SimVAE grow with each size.

One size at a time is changed: items per step, views per item, the dimension of z, and
the items of the data set, on which the time of a step must not depend. A step is one of
`fit`, views and update included, eager and compiled; the images are noise. Steps of all
sizes are timed interleaved in one run. Memory is the peak of a step beyond what is held
between steps: parameters, Adam's moments and the data. Writes medians to
benchmarks/results/scaling.json.

Takes about ten minutes on two CPU cores, most of it to compile.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measure import device_of, digits, interleaved, options, peak_memory, report, table
from subjects import HIDDEN, Steps, ink, simvae
from tqdm import tqdm

import probssl as ps
from probssl.train import Step

BLOCKS, REPEATS = 5, 3
RESULTS = Path(__file__).parent / "results" / "scaling.json"


class Sizes(NamedTuple):
    """Sizes of a step and of the data set; the defaults hold while another grows."""

    items: int = 64
    views: int = 2
    dim: int = 10
    data: int = 10_000


AXES: dict[str, Sequence[int]] = {
    "items": (16, 64, 256, 1_024),
    "views": (2, 4, 8),
    "dim": (2, 10, 64, 512),
    "data": (1_000, 10_000, 60_000),
}


def subject(
    sizes: Sizes, compiled: bool, hidden: tuple[int, ...], device: torch.device
) -> Steps:
    """Steps of these sizes, warmed up by one."""
    views = ps.views.simvae_mnist(views=sizes.views)
    objective, data = simvae(sizes.dim, hidden), ink(sizes.data)
    steps = Steps(objective, data, views, sizes.items, compiled, device)
    steps()
    return steps


def memory(steps: Steps, device: torch.device) -> float:
    """The peak memory of a step in megabytes, beyond what is held between steps."""
    steps.step.optimizer.zero_grad()
    load = next(steps.loads)
    # Not replayed as a CUDA graph, which holds all its memory between steps.
    return peak_memory(lambda: Step.run(steps.step, [load]), device)


def main(
    axes: Mapping[str, Sequence[int]] = AXES,
    forms: Mapping[str, bool] = {"eager": False, "compiled": True},
    hidden: tuple[int, ...] = HIDDEN,
    blocks: int = BLOCKS,
    repeats: int = REPEATS,
    device: str = "auto",
    results: Path = RESULTS,
) -> dict[str, dict[str, Any]]:
    """Return milliseconds per step and per item, and megabytes, for all sizes.

    Arguments:
        forms: Whether to compile, by name.
    """
    place = device_of(device)
    torch.manual_seed(0)
    base = Sizes()
    wanted = {axis: [base._replace(**{axis: n}) for n in axes[axis]] for axis in axes}
    distinct = dict.fromkeys(sizes for each in wanted.values() for sizes in each)
    made = {
        (sizes, form): subject(sizes, compiled, hidden, place)
        for sizes in tqdm(distinct, "building", leave=False)
        for form, compiled in forms.items()
    }
    timed = interleaved(made, blocks, repeats, place)
    measured = {
        key: {
            "ms per step": digits(1e3 * timing.median),
            "ms per item": digits(1e3 * timing.median / key[0].items),
            "MB": digits(memory(made[key], place)),
        }
        for key, timing in timed.items()
    }
    figures = {
        f"{axis} {getattr(sizes, axis)}, {form}": measured[sizes, form]
        for form in forms
        for axis, each in wanted.items()
        for sizes in each
    }
    settings = {"sizes_but_for_one": base._asdict(), "blocks": blocks}
    settings |= {"repeats": repeats}
    report("benchmarks/scaling.py", results, figures, device=place, **settings)
    table(figures)
    return figures


if __name__ == "__main__":
    arguments = options(__doc__).parse_args()
    main(device=arguments.device, results=arguments.out / RESULTS.name)
