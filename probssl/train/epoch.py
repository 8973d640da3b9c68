"""One epoch: steps over the training data, a measurement on the validation data."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from ..runtime.denormals import flushed
from ..runtime.distributed import any_rank, broadcast, single_process
from ..runtime.precision import lowered
from ..runtime.randomness import random_state, same_randomness, set_random_state
from ..terms import Terms
from .batches import Source
from .history import Row, Tally
from .prepare import device_of
from .steps import Step, written

__all__ = ["Progress", "ascend", "validate"]


logger = logging.getLogger(__name__)


PERIOD = 0.25  # seconds between two looks at the device, each of which waits for it


class Progress:
    """A bar over the steps with the mean terms of the epoch; off, it only checks them.

    Arguments:
        total: The number of steps of the whole run, None if it is not known.
        done: The number of steps made before.
    """

    def __init__(self, total: int | None, done: int, shown: bool) -> None:
        self.bar = tqdm(total=total, initial=done, unit="step", disable=not shown)
        self.shown, self.done, self.due = shown, done, perf_counter()

    def title(self, text: str) -> None:
        """Write something before the bar."""
        self.bar.set_description(text, refresh=False)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Say so beside the title while something other than steps takes its time."""
        title = self.bar.desc
        self.bar.set_description(f"{title}{text}")
        try:
            yield
        finally:
            self.bar.set_description(title.removesuffix(": "))

    def look(self, tally: Tally, always: bool = False) -> None:
        """If it is time, read the terms, check them and show them."""
        if not always and perf_counter() < self.due:
            return
        tally.check()
        if self.shown:
            named = {name: f"{term:.4g}" for name, term in tally.mean().items() if term}
            self.bar.set_postfix(named, refresh=False)
            self.bar.update(tally.steps - self.done)
        self.done, self.due = tally.steps, perf_counter() + PERIOD

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def ascend(
    step: Step,
    groups: Iterable[list[Any]],
    tally: Tally,
    bar: Progress,
    on_step: Callable[[int, Terms], Any] | None = None,
) -> bool:
    """Make one step for each group of loads; return whether `on_step` wants to stop.

    The objective is in training mode meanwhile, and in evaluation mode afterwards.

    Raises:
        FloatingPointError: If a term, or a parameter at the end, is not finite.
        ValueError: If there are no batches.
    """
    step.objective.train()
    step.look()
    with flushed(device_of(step.objective)):
        stop = _steps(step, groups, tally, bar, on_step)
    if step.count == tally.start:
        raise ValueError(
            "expected at least one batch in an epoch, got none; give the DataLoader a "
            "smaller batch_size, or drop_last=False"
        )
    bar.look(tally, always=True)
    _check_parameters(step, tally.remedy)
    tally.pool()
    # Moments of a process's own items, such as those of torch's BatchNorm, differ.
    broadcast(list(written(step.objective).values()))
    step.objective.eval()
    return stop


def _steps(
    step: Step,
    groups: Iterable[list[Any]],
    tally: Tally,
    bar: Progress,
    on_step: Callable[[int, Terms], Any] | None,
) -> bool:
    for group in groups:
        if step.count == 0:
            _check_first(step, group[0])
        terms = step(group)
        tally.add(terms, step.items)
        bar.look(tally)
        if on_step is not None:
            stop = any_rank(bool(on_step(step.count, terms)))
            step.look()
            if stop:
                return True
    return False


@torch.no_grad()
def validate(step: Step, data: Source, seed: int, device: torch.device) -> Row:
    """The mean terms over all items, with the randomness of a seed.

    The same random numbers each time make epochs comparable, and leave those of
    training as they are. The mode is that of `ascend` at its end, evaluation. Every
    process measures all items by itself.
    """
    tally = Tally()
    with same_randomness(seed, device), step.around(), single_process():
        for load in data.sweep():
            batch = data.batch(load)
            tally.add(lowered(step.objective, batch), batch.shape[0])
    row = {f"valid_{name}": value for name, value in tally.mean().items()}
    if tally.broken is not None:
        logger.warning("in validation, %s", tally.broken)
    return row


def _check_first(step: Step, load: Any) -> None:
    """Have the objective check the first batch, which will be made once more."""
    check = getattr(step.objective, "check", None)
    if check is not None:
        device = device_of(step.objective)
        before = random_state(device)
        check(step.make(load))
        set_random_state(before, device)


def _check_parameters(step: Step, remedy: str) -> None:
    # The terms of the next step would tell, but after a checkpoint of these parameters.
    parameters = [p for p in step.objective.parameters() if p.requires_grad]
    if not torch.stack([p.isfinite().all() for p in parameters]).all():
        raise FloatingPointError(
            f"expected finite parameters, got NaN or infinity after step {step.count}, "
            f"where the terms were finite and their gradient was not; {remedy}"
        )
