"""A run that is killed by a test, which then goes on with it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers.catalogue import EVENT, Everything, noisy
from torch import Tensor, nn

import probssl as ps
from probssl.train import graph

EPOCHS, BATCHES = 5, 6


def as_it_is(traced: torch.fx.GraphModule, values: list[Tensor]) -> Callable[..., Any]:
    """In the place of Inductor: what was traced, which is ready at once."""
    return traced


def fitted(folder: Path, mode: str, on_step: Any = None) -> tuple[nn.Module, Any]:
    """Go on with the run in a folder, or begin it; return what was fitted."""
    torch.set_num_threads(1)
    if mode == "traced":
        graph.inductor = as_it_is
    torch.manual_seed(0)
    objective = Everything()
    data = torch.randn(8 * BATCHES, EVENT)
    history = ps.fit(
        objective,
        data,
        views=noisy,
        valid=data[:8],
        epochs=EPOCHS,
        batch_size=8,
        accumulate=2,
        clip=1.0,
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
        schedules={"teacher.momentum": ps.train.cosine(0.9, 1.0)},
        checkpoint=folder,
        resume=True,
        on_step=on_step,
        compile=mode != "eager",
        progress=False,
    )
    return objective, history


def say(count: int, terms: ps.Terms) -> None:
    """Tell the test how far the run is."""
    print(count, flush=True)


if __name__ == "__main__":
    fitted(Path(sys.argv[1]), sys.argv[2], say)
