"""One epoch: training steps, validation, and the progress bar over both.

Terms stay on the device until the bar reads them, a few times per second: each reading
synchronises with the host.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset
from tqdm import tqdm

from ..bars import shown
from ..runtime.denormals import flushed
from ..runtime.distributed import any_rank, broadcast, is_main, single_process
from ..runtime.interrupts import Interrupts
from ..runtime.precision import Precision, lowered
from ..runtime.randomness import random_state, same_randomness, set_random_state
from ..runtime.threads import LOCK
from ..terms import HeldOut, Terms
from .batches import Loaded, Source, look_at
from .graph import drifted, foreign_randomness, held
from .history import ADVICE, Row, Tally, not_finite
from .prepare import labelled_share
from .steps import Step, mutable_state

__all__ = ["Progress", "Unsaved", "Validation", "closing_remarks", "ended_by"]
__all__ += ["remarks", "train_epoch"]

HALF = torch.bfloat16, torch.float16
SECONDS_PER_READING = 0.25  # of the terms, each of which synchronises with the host

logger = logging.getLogger(__name__)


def train_epoch(
    step: Step,
    groups: Iterable[list[Any]],
    tally: Tally,
    bar: "Progress",
    on_step: Callable[[int, Terms], Any] | None = None,
    interrupts: Interrupts | None = None,
) -> bool:
    """Make one step for each group of loads; return whether `on_step` wants to stop.

    The objective is in training mode meanwhile, and in evaluation mode afterwards.

    Raises:
        FloatingPointError: If terms, gradient or parameters are not finite.
        KeyboardInterrupt: After a step, if a signal asked for it.
    """
    step.objective.train()
    step.refresh()
    step.guard.kept = tally.kept
    step.guard.read(step.count)
    try:
        stop = _steps(step, groups, tally, bar, on_step, interrupts or Interrupts())
        bar.look(tally, always=True)
        step.guard.read(step.count)
        _check_parameters(step, tally.kept)
    except FloatingPointError:
        step.guard.restore()
        raise
    finally:
        step.guard.release()
    tally.pool()
    # Buffers that depend on a rank's own items, as those of torch's BatchNorm, differ.
    broadcast(list(mutable_state(step.objective).values()))
    step.objective.eval()
    return stop


def _steps(
    step: Step,
    groups: Iterable[list[Any]],
    tally: Tally,
    bar: "Progress",
    on_step: Callable[[int, Terms], Any] | None,
    interrupts: Interrupts,
) -> bool:
    check, stop = getattr(step.objective, "check", None), False
    with flushed(step.device):
        for group in LOCK.open_between(groups):
            masked = getattr(group[0], "present", None) is not None
            new = step.count == 0 or (masked and not step.masked)
            step.masked |= masked
            if new:
                before = random_state(step.device)  # the step makes the batch once more
                batch = step.make(group[0])
                if step.count == 0:
                    now = random_state(step.device)
                    look_at(batch, any(not now[k].equal(x) for k, x in before.items()))
                if check is not None:
                    with step.alone():
                        check(batch)
                set_random_state(before, step.device)
            eager = type(step) is Step  # hooks cannot be traced
            with _told_if_rounded(step.objective) if new and eager else nullcontext():
                terms = step(group)
            tally.add(terms, step.items)
            if bar.look(tally):
                step.guard.read(step.count)
            if on_step is not None:
                with LOCK.open():
                    answer = on_step(step.count, terms)
                stop = any_rank(ended_by("on_step", answer))
                step.refresh()
                if stop:
                    break
            interrupts.check()
        step.finish()
    if step.count == tally.start:
        raise ValueError(
            "expected at least one batch in an epoch, got none; give the DataLoader a "
            "smaller batch_size, or drop_last=False"
        )
    return stop


@contextmanager
def _told_if_rounded(objective: nn.Module) -> Iterator[None]:
    """Log if it returns terms in half precision, as own modules do under autocast."""
    seen: list[torch.dtype] = []

    def look(module: nn.Module, inputs: object, terms: object) -> None:
        seen.extend(t.dtype for t in tree_leaves(terms) if isinstance(t, Tensor))

    hook = objective.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
    own = next((p.dtype for p in objective.parameters()), None)
    rounded = [kind for kind in seen if kind in HALF and kind != own]
    if rounded:
        name = str(rounded[0]).removeprefix("torch.")
        logger.warning(
            "expected terms in float32, got %s of %s, with three digits: autocast "
            "covers all of a module of your own; call .float() on what its networks "
            "return, or inherit from JointEmbedding and write value",
            name,
            type(objective).__name__,
        )


@contextmanager
def _noted(where: str) -> Iterator[None]:
    """Add to an error where it came up."""
    try:
        yield
    except Exception as error:
        error.add_note(where)
        raise


class Validation:
    """The mean terms over all items, in evaluation mode, with a fixed seed.

    With the same random numbers each time, epochs are comparable, and the random state
    of training is unchanged. Every rank measures all items by itself. The batches are
    `HeldOut`, without rows in the training set.

    Arguments:
        order: The generator whose seed it takes.
        interrupts: Signals, honoured between the batches.
    """

    def __init__(
        self,
        objective: nn.Module,
        data: Source,
        precision: Precision,
        order: torch.Generator,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.objective, self.data = objective, data
        self.interrupts = interrupts or Interrupts()
        self.precision, self.order = precision, order

    @_noted("in the validation data")
    def __call__(self) -> Row:
        """The row of an epoch."""
        tally = self._measured()
        row = {f"valid_{name}": value for name, value in tally.mean().items()}
        if tally.broken is not None:
            logger.warning("in validation, %s", tally.broken)
        return row

    @_noted("in the validation data")
    def rehearse(self) -> None:
        """Measure the first batch: what cannot be measured is refused before training.

        A DataLoader of a stream is left alone, since it may not be read twice.
        """
        if isinstance(self.data, Loaded):
            if isinstance(self.data.loader.dataset, IterableDataset):
                return
            self.data.check_last(self.objective, training=False)
        self.objective.eval()
        before = self.data.order.get_state()
        self._measured(batches=1)
        self.data.order.set_state(before)

    @torch.no_grad()
    def _measured(self, batches: int | None = None) -> Tally:
        tally, data, device = Tally(), self.data, self.data.target.device
        check = getattr(self.objective, "check", None) if batches else None
        with (
            same_randomness(self.order.initial_seed(), device),
            self.precision.active(device),
            single_process(),
            labelled_share(self.objective, data.content),
        ):
            for load in islice(data.sweep(), batches):
                batch = HeldOut(*data.batch(load))
                if check is not None:
                    check(batch)
                tally.add(lowered(self.objective, batch), batch.shape[0])
                self.interrupts.check()
        return tally


class Unsaved:
    """What an epoch changes and neither a checkpoint nor early stopping brings back.

    That is numbers in plain attributes, and the generators of Python and NumPy, and of
    samplers, data sets and views.
    """

    def __init__(self, objective: nn.Module, data: Source) -> None:
        self.objective, self.data = objective, data
        self.streams = data.streams()
        self.held, self.drawn = held(objective), foreign_randomness()
        self.told = False

    def tell_drawn(self) -> None:
        """Log if data or views drew such numbers."""
        if foreign_randomness() != self.drawn:
            logger.warning(
                "data or views draw from the generators of Python or NumPy, which are "
                "in no checkpoint: a resumed run draws other numbers; draw with "
                "torch.rand or torch.randn"
            )
        now = self.data.streams()
        names = [k for k, state in self.streams.items() if now.get(k) != state]
        if names:
            logger.warning(
                "data or views change %s, which is in no checkpoint: a resumed run "
                "gets other batches; draw with torch.rand or torch.randn, or give the "
                "DataLoader or its sampler the generator",
                ", ".join(names[:5]),
            )
        loader = getattr(self.data, "loader", None)
        if getattr(loader, "persistent_workers", False):
            logger.warning(
                "the DataLoader has persistent_workers=True, whose random numbers are "
                "in no checkpoint: a resumed run gets the items in another order; "
                "leave it out"
            )

    def tell_changed(self, epoch: int) -> None:
        """Log once, after epochs 1, 2, 4, 8 …, if training changed such numbers."""
        if self.told or epoch & (epoch - 1):
            return
        if names := drifted(self.held, self.objective):
            self.told = True
            logger.warning(
                "training or a callback changes %s, which is in no state_dict: "
                "checkpoints and the best epoch do not have it, so that a resumed run "
                "goes another way; keep it in a buffer: "
                "self.register_buffer(name, tensor)",
                ", ".join(names[:5]),
            )


def ended_by(name: str, answer: object) -> bool:
    """Whether a callback ends the fit, which returns True, False or nothing."""
    if answer is None or answer is False:
        return False
    if isinstance(answer, Tensor) and answer.dtype == torch.bool and not answer.ndim:
        return bool(answer)
    if isinstance(answer, bool | np.bool_):
        return bool(answer)
    raise TypeError(
        f"expected {name} to return True, which ends the fit, False or None, got "
        f"{type(answer).__name__}; let it return nothing, or True to end the fit"
    )


def remarks(objective: nn.Module, remarked: set[int]) -> None:
    """Log what modules with a method `remark` have to say, each of them once."""
    for module in objective.modules():
        remark = getattr(module, "remark", None)
        text = remark() if callable(remark) and id(module) not in remarked else None
        if text is not None:
            remarked.add(id(module))
            logger.warning("%s", text)


def closing_remarks(objective: nn.Module, data: Source, precision: Precision) -> None:
    """Log what modules with a method `remark_on` say of the first items of the data.

    It is called once, at the end of a fit, in evaluation mode; a DataLoader, which may
    be a stream, is left alone. The random state and the objective stay as they are.
    """
    each = (getattr(m, "remark_on", None) for m in objective.modules())
    methods = [method for method in each if callable(method)]
    if not methods or isinstance(data, Loaded):
        return
    device = data.target.device
    with (
        torch.no_grad(),
        same_randomness(data.order.initial_seed(), device),
        precision.active(device),
        single_process(),
    ):
        batch = data.batch(next(iter(data.sweep())))
        found = [lowered(method, batch) for method in methods]
    for text in dict.fromkeys(found):
        if text is not None and is_main():
            logger.warning("%s", text)


class Progress(tqdm):
    """A bar over the steps with the mean terms of the epoch; hidden, it checks them.

    Arguments:
        total: The number of steps of the whole run, None if it is not known.
        done: The number of steps made before.
    """

    def __init__(self, total: int | None, done: int, progress: bool) -> None:
        super().__init__(total=total, initial=done, unit="step", **shown(progress))
        self.due = perf_counter()

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Add a text to the title while something else than steps takes its time."""
        title = self.desc
        self.set_description(f"{title}{text}")
        try:
            yield
        finally:
            self.set_description(title.removesuffix(": "))

    def look(self, tally: Tally, always: bool = False) -> bool:
        """Read, check and show the terms if that is due; return whether it was."""
        if not always and perf_counter() < self.due:
            return False
        tally.check()
        if not self.disable:
            named = {name: f"{term:.4g}" for name, term in tally.mean().items() if term}
            self.set_postfix(named, refresh=False)
            self.update(tally.steps - self.n)
        self.due = perf_counter() + SECONDS_PER_READING
        return True


def _check_parameters(step: Step, kept: str) -> None:
    """Raise a FloatingPointError before parameters that are not finite are saved."""
    parameters = [p for p in step.objective.parameters() if p.requires_grad]
    if not torch.stack([p.isfinite().all() for p in parameters]).all():
        raise not_finite(
            f"expected finite parameters, got NaN or infinity after step {step.count}, "
            f"where terms and gradients were finite; {ADVICE}; {kept}"
        )
