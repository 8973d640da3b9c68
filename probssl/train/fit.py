"""Fitting: steps with all that a notebook or a long run wants around them."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..runtime.distributed import (
    any_rank,
    broadcast,
    is_main,
    single_process,
    start,
    world_size,
)
from ..runtime.randomness import drawn_order
from ..terms import Terms
from .batches import Data, Source, Views, grouped, source
from .compiled import accelerate, check_compile, worth_compiling
from .epoch import Progress, ascend, validate
from .history import History, Row, Tally
from .prepare import (
    check_at_least_one,
    check_monitor,
    prepared_optimizer,
    prepared_precision,
    prepared_scheduler,
    settle,
    target_of,
    total_steps,
)
from .run import Checkpoints, EarlyStopping, Run
from .schedules import Schedule, Schedules
from .steps import Step

__all__ = ["fit"]

logger = logging.getLogger(__name__)


def fit(
    objective: nn.Module,
    data: Data,
    *,
    views: Views | None = None,
    content: Any = None,
    valid: Data | None = None,
    epochs: int = 100,
    batch_size: int = 128,
    optimizer: Optimizer | Callable[[list[Parameter]], Optimizer] | None = None,
    learning_rate: float = 1e-3,
    scheduler: LRScheduler | Callable[[Optimizer], LRScheduler] | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    monitor: str = "value",
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    on_step: Callable[[int, Terms], Any] | None = None,
    on_epoch: Callable[[int, Row], Any] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    compile: bool | Literal["auto"] | None = "auto",
    precision: torch.dtype | None = None,
    tf32: bool = False,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> History:
    """Maximise the value of an objective on a data set; return what came of each epoch.

    The objective is changed in place: it ends on the device, in evaluation mode. All
    randomness follows ``torch.manual_seed``, called before; the order of the items has
    a generator of its own, which is seeded from the global one.

    An epoch is a new random order of the items in batches; those that do not fill the
    last batch are left out of it, unless there are fewer than one batch in all. Bytes
    reach the views as k/255, other numbers as they are, both in the precision of the
    objective. If the objective has a method `check`, it is given the first batch.

    Interrupting it from the keyboard ends the fit; what was reached is kept.

    Under torchrun, or where torch.distributed is set up, all processes call it alike,
    and it is one fit. They start with the first one's parameters; each takes its part
    of every batch, in the order that one process would have, with noise of its own, and
    gradients are averaged. Each validates on all items. The first one alone shows
    progress and writes files. Resumed with another number of processes, the order of
    the items goes on, but noise starts anew. Interrupting it from the keyboard ends the
    program; the last checkpoint is kept.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \\*event), or a tuple of these,
            one for each modality; they lie on the device as a whole, but are streamed
            to a CUDA device of which they would take half, and from the disk if they
            are a `numpy.memmap`. Or a DataLoader of tensors, of tuples whose first
            entry is one, or of Batches; for several processes with a
            `DistributedSampler`. Buffers named ``population`` are set to its length.
        views: A sampler (batch, \\*event) -> (batch, view, \\*event), or -> Batch.
            Without one the items are their only view; Groups have their own.
        content: Contents of some of the items that the objective may see, as
            `Batch.content`: whole numbers (n,), the components of a mixture prior, -1
            where one is not known. Labels of a `Split` are not seen. Validation goes
            without, unless its data are Groups that have their own.
        valid: Further data, measured after every epoch: all items, the same views, and
            the same random numbers every time, which leave those of training alone.
        batch_size: The items of a batch, over all processes; a DataLoader has its own,
            for each process.
        optimizer: One at hand, or what makes one from the trainable parameters. None
            means Adam, fused, with `learning_rate`; hyper-parameters, and what else is
            in a module with a `learning_rate_factor`, at that many times the rate.
        scheduler: One at hand, or what makes one from the optimiser. It is stepped once
            per step of the optimiser, not per epoch.
        accumulate: The batches that make up one step.
        clip: The largest Euclidean norm of the gradient.
        monitor: The column of the history by which epochs are compared, the larger the
            better: ``"valid_value"``, a term, or one that `on_epoch` adds to the row.
        patience: Stop after so many epochs without a better one, and give the objective
            the parameters of the best.
        checkpoint: A folder for ``last.safetensors``, written every `checkpoint_every`
            epochs and at the end, ``best.safetensors`` by `monitor`, and
            ``history.json``.
        resume: Go on from the last checkpoint: on the CPU bit by bit as if nothing had
            been in between. If the folder is empty or missing, the fit starts anew, so
            that a script can be run again after it was killed.
        on_step: Called after each step with the number of steps made and their terms,
            which lie on the device. It may write buffers in place. If it returns a true
            value, the epoch ends there, and with it the fit.
        on_epoch: Called after each epoch with its number and its row of the history, to
            which it may add numbers. If it returns a true value, the fit ends.
        schedules: Numbers that change as the run goes on: for the name of a buffer of
            the objective, such as ``teacher.momentum``, a function of the share of the
            run that is done, such as `train.cosine` and `train.linear` make.
        compile: Whether value and gradient are traced, handlers of Pyro and all, and
            compiled for each shape of batch; on a CUDA device whole steps, views and
            update included, are then replayed as one graph. It takes some ten seconds
            at the start; ``"auto"`` does it for runs of at least 10,000 steps, None and
            False never. The result is that of an uncompiled run, up to rounding. A
            warning says why, if it cannot be done. Numbers that are to change during
            the run belong in buffers; a plain attribute that changes, in `on_step` or
            `on_epoch`, means another compilation.
        precision: ``torch.bfloat16`` runs the networks in it, by `torch.autocast`;
            densities, normalisers and entropies stay in float32. None is the precision
            of the objective.
        tf32: Whether float32 matrix products on a CUDA device may round their factors
            to TF32.
        device: ``"auto"`` is where the objective lies if that is an accelerator, else a
            CUDA device if there is one, else the CPU.

    Raises:
        FileExistsError: If the folder holds a checkpoint, but nothing is to be resumed.
        FileNotFoundError: If it holds other files, but nothing to resume from.
        FloatingPointError: If a term or a parameter is not finite.
        TypeError: If the data, the views or the terms are of no known kind.
        ValueError: If an argument is out of its range, or does not fit another.
    """
    check_at_least_one(epochs=epochs, batch_size=batch_size, accumulate=accumulate)
    check_at_least_one(patience=patience, checkpoint_every=checkpoint_every)
    check_compile(compile)
    check_monitor(monitor, validated=valid is not None, extended=on_epoch is not None)
    start()
    target = target_of(objective, device)
    numbers = prepared_precision(precision, tf32, target.dtype)
    make = partial(source, views=views, batch_size=batch_size, order=drawn_order())
    train = make(data, target=target, content=content)
    with single_process():
        held_out = None if valid is None else make(valid, target=target)
    settle(objective, target.device, population=train.count)
    broadcast([*objective.parameters(), *objective.buffers()])
    optimizer = prepared_optimizer(optimizer, objective, learning_rate)
    total = total_steps(train, epochs, accumulate)
    step = Step(
        objective,
        optimizer,
        scheduler=prepared_scheduler(scheduler, optimizer),
        clip=clip,
        make=train.batch,
        prepare=Schedules(objective, schedules, total).set,
        around=partial(numbers.active, target.device),
    )
    run = Run(step, train.order, EarlyStopping(monitor, patience), target.device)
    folder = Checkpoints(checkpoint, checkpoint_every)
    folder.begin(run, resume)
    bar = Progress(total, step.count, shown=progress and is_main())
    run.compiled = worth_compiling(compile, total, run.compiled)
    if run.compiled:
        accelerate(step, bar.busy)
    try:
        for epoch in run.remaining(epochs):
            bar.title(f"epoch {epoch}/{epochs}")
            tally = Tally(step.count, folder.remedy)
            groups = grouped(train.epoch(epoch), accumulate)
            row, stop = _epoch(run, groups, held_out, tally, bar, on_step)
            stop |= on_epoch is not None and any_rank(bool(on_epoch(epoch, row)))
            folder.save(run, best=run.finish(row))
            if stop:
                break
        folder.close(run)
    except KeyboardInterrupt:
        if world_size() > 1:  # others may be waiting for this one
            raise
        logger.warning("interrupted after epoch %d: all is kept", len(run.history))
    finally:
        bar.close()
    run.stopping.restore(objective.eval())
    return run.history


def _epoch(
    run: Run,
    groups: Iterable[list[Any]],
    held_out: Source | None,
    tally: Tally,
    bar: Progress,
    on_step: Callable[[int, Terms], Any] | None,
) -> tuple[Row, bool]:
    """Make the steps and measure what came of them: a row, and whether to stop."""
    step, began = run.step, perf_counter()
    stop = ascend(step, groups, tally, bar, on_step)
    row = {"epoch": len(run.history) + 1, "step": step.count} | tally.mean()
    if held_out is not None:
        row |= validate(step, held_out, run.order.initial_seed(), run.device)
    return row | {"lr": step.learning_rate, "seconds": perf_counter() - began}, stop
