"""Fitting: the training loop around `Step`, with all that a long run needs."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from time import perf_counter
from types import NoneType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ..arguments import alone, choice, counted, positive, typed
from ..arrays import check_alike, check_classes
from ..data.splits import Groups
from ..runtime.distributed import (
    any_rank,
    broadcast,
    is_main,
    single_process,
    start,
    world_size,
)
from ..runtime.interrupts import Interrupts
from ..runtime.randomness import order_generator
from ..runtime.threads import LOCK
from ..runtime.unregistered import message, unregistered
from ..terms import Terms
from .batches import Data, Loaded, Stored, Views, grouped, source
from .compiled import COMPILED_STEPS, compiled_step, worth_compiling
from .epoch import (
    Progress,
    Unsaved,
    Validation,
    closing_remarks,
    ended_by,
    remarks,
    train_epoch,
)
from .history import History, Row, Tally
from .prepare import (
    ContentCheck,
    check_contents,
    check_counts,
    check_covariates,
    check_decay,
    check_groups,
    check_held,
    check_horizon,
    check_monitor,
    prepared_optimizer,
    prepared_precision,
    prepared_scheduler,
    settle,
    target_of,
    total_steps,
    trainable_of,
)
from .run import Checkpoints, EarlyStopping, Place, Run
from .schedules import Schedule, Schedules
from .settings import setting_of
from .steps import Step

__all__ = ["fit"]

logger = logging.getLogger(__name__)
NOTED = "in history of the error"


@typed
@LOCK
def fit(
    objective: nn.Module,
    data: Data,
    *,
    views: Views | None = None,
    content: Any = None,
    covariates: Mapping[str, Any] | None = None,
    valid: Data | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    optimizer: Optimizer | Callable[[list[Parameter]], Optimizer] | None = None,
    learning_rate: float | None = None,
    scheduler: LRScheduler | Callable[[Optimizer], LRScheduler] | None = None,
    accumulate: int = 1,
    clip: float | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
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
    """Maximise the value of an objective on a data set; return the training history.

    The objective is any module with ``forward(batch) -> Terms``. It is changed in
    place, and ends on the device in evaluation mode. If it has a method ``check``, that
    is called with the first batch. Randomness follows ``torch.manual_seed``; the order
    of the items has a generator of its own, seeded from the global one.

    An epoch goes once over the items in a new random order. A last batch that is not
    full is dropped, unless it is the only one. Bytes k reach the views as k/255, other
    numbers unchanged, both in the dtype of the objective.

    Ctrl-C or SIGTERM ends the fit after the present step, a second Ctrl-C at once. The
    objective keeps what it has reached, with `patience` the parameters of the best
    epoch; the history says `interrupted` and has a last row of the epoch that was cut
    short; the checkpoint is of that very moment, from which `resume` goes on. A
    compilation ends first. Signals reach the main thread, and handlers of your own
    stay: then a KeyboardInterrupt within a step leaves the last checkpoint.

    **Data parallelism**: under torchrun, or after
    ``torch.distributed.init_process_group``, all ranks call `fit` alike. They start
    from the parameters of rank 0; each takes its share of every batch, and gradients
    are averaged (all-reduce). The order of the items is that of one process; each rank
    draws its own noise. Each rank validates on all items. Only rank 0 shows progress
    and writes files. A run that is resumed with another number of ranks keeps the order
    of the items, but not the noise. A KeyboardInterrupt ends the program; the last
    checkpoint stays.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \\*event), or a tuple of these,
            one for each modality. They are moved to the device as a whole;
            they are streamed if they would fill half of a CUDA device, and read from
            disk if they are a `numpy.memmap`. Or a DataLoader of tensors, of tuples
            that begin with a tensor, or of Batches; under data parallelism with a
            `DistributedSampler`. Buffers named ``population`` are set to the number of
            items, those named ``labelled`` to the share of items with a content, in
            validation to that of the validation data. Of a DataLoader the number is not
            certain with a collate_fn, a batch_sampler or a sampler of your own, nor is
            the share: numbers that you set beforehand stay.
        views: A data augmentation (batch, \\*event) -> (batch, view, \\*event), or ->
            Batch. Without one the items are their only view; Groups have their own.
        content: Observed contents of some items, as `Batch.content`: whole numbers
            (n,), the components of a mixture prior, -1 for unknown; names where the
            data know those of their classes (`Split.classes`), None for unknown.
            `limits.SimVAE` says what a label weighs. The labels of a `Split` are not
            used. Validation
            has no contents, unless its data are Groups with contents.
        covariates: What p(x|z) and q(z|x) are conditional on, as `Batch.covariates`: a
            dictionary of arrays (n,), (n, k) or, of each view, (n, view, k). Floating
            point gets the dtype of the objective, whole numbers stay. A `Split` and
            `Groups` have their own, as validation data do: `Split.covariates`. Those
            that a view sampler returns in a `Batch` take the place of others of the
            same name.
        valid: Validation data, measured after every epoch on all items, with the same
            views, unless they have their own (Groups, a DataLoader of Batches), and the
            same random numbers every time. They do not change the random
            numbers of training. Their first batch is measured before training, too, so
            that what cannot be measured is refused. Objectives that keep something for
            each training item, by `Batch.index`, take none.
        batch_size: The number of items of a batch over all ranks; None means 128. A
            DataLoader has its own batch size, for each rank.
        optimizer: An optimiser, or a function that makes one from the trainable
            parameters. What `on_epoch` makes trainable later must be in it:
            ``torch.optim.Adam(objective.parameters())`` leaves parameters alone while
            they are frozen. The default is fused Adam with `learning_rate`; modules
            with an attribute `learning_rate_factor`, such as hyper-parameters, have
            that many times the rate, as have the modules within them without one.
        learning_rate: That of the default optimiser; None means 1e-3.
        scheduler: A learning-rate schedule of torch, or a function that makes one from
            the optimiser. It is stepped once per optimiser step, not per epoch.
        accumulate: Gradient accumulation: the number of batches per optimiser step. All
            of them see the same buffers; an EMA teacher moves once per step, a queue
            takes the last batch, a memory bank all rows.
        clip: Gradient clipping: the largest Euclidean norm of the gradient.
        monitor: The column of the history that compares epochs for `patience` or
            `checkpoint`, larger is better: a term, or a column that `on_epoch` adds to
            the row; None takes ``"valid_value"``, or ``"value"`` without `valid`. An
            epoch without it is not the best one, and no early stop.
        patience: Early stopping: the number of epochs without a better one after which
            the fit ends; the objective gets the parameters of the best epoch.
        checkpoint: A folder for ``last.safetensors``, written every `checkpoint_every`
            epochs, by default each, and at the end, ``best.safetensors`` by `monitor`,
            and ``history.json``.
        resume: Resume from the last checkpoint; on the CPU bit by bit as if the run had
            not been interrupted or killed. If the folder is missing, or holds files of
            others alone, such as a log, the fit starts anew, so that a script can
            simply be run again after it was killed.
            If it holds more than `epochs` epochs, a warning says so, none is added. A
            warning also names data (by their number, the first 64 items, and all
            contents), arguments of `fit`, and what the objective, views and schedules
            are made of (public attributes and code) where they differ from the saved
            run; the learning rate, and buffers and parameters of the objective, such as
            a temperature, are the saved ones.
        on_step: A callback with the number of steps made and the terms of the step,
            scalars on the device. It may write buffers in place. If it returns True,
            the fit ends with the present epoch cut short.
        on_epoch: A callback with the number of the epoch and its row of the history, a
            dict of numbers, to which it may add; ``epoch`` and ``step`` must stay as
            they are. If it returns True, the fit ends. Loggers need no more than
            this::

                ps.fit(objective, data, on_epoch=lambda epoch, row: wandb.log(row))
        schedules: Numbers that change during the run: for the name of a buffer of the
            objective, such as ``teacher.momentum``, or ``temperature``, a function of
            the finished share of the run, such as `train.cosine` and `train.linear`
            return.
        compile: Whether value and gradient, Pyro's handlers included, are compiled for
            each shape of batch; on a CUDA device the whole step, views and update
            included, is then replayed as one CUDA graph. Compilation takes some ten
            seconds. ``"auto"`` compiles runs of at least 10,000 steps; None and False
            never compile. Results are equal up to rounding. If compilation fails, a
            warning says why, and the steps are eager. Numbers that change during the
            run belong in buffers: a plain attribute that `on_step` or `on_epoch`
            changes means another compilation.
        precision: Mixed precision: ``torch.bfloat16`` runs the networks under
            `torch.autocast`; densities, normalisers and entropies stay in float32, but
            for modules of your own, of which it covers all: a warning says where their
            terms are rounded. The default is the dtype of the objective.
        tf32: Whether float32 matrix products on a CUDA device may round their factors
            to TF32.
        device: ``"auto"`` is the objective's device if that is an accelerator, else a
            CUDA device if there is one, else the CPU.
        progress: Whether to show a progress bar.

    Raises:
        Exception: Errors of callbacks, views and data come as they are. An error in an
            epoch has the attribute ``history``, with the epochs that were finished; the
            objective is left in evaluation mode, with the parameters that it had. The
            checkpoint is of that moment, unless a step was broken off; there is none if
            no step was made.
        BlockingIOError: If another process or thread fits with the same folder.
        FileExistsError: If the folder holds a checkpoint, but `resume` is False; if it
            is that of a run of the command line, which has its own inside.
        FileNotFoundError: If it holds parts of a run, but no checkpoint to resume from.
        FloatingPointError: If a term, a gradient or a parameter is not finite. On the
            CPU the step is not made, and the error says what was not finite first; its
            attribute ``batches`` has the batches of the step. On a GPU fused optimisers
            leave out such steps, as the default one does, and the error comes within a
            second; with others the parameters are some seconds old.
        OSError: If a checkpoint cannot be written; the one before it stays.
        TypeError: If an argument, the views or the terms are of an unknown kind.
        ValueError: If an argument is out of range, does not fit another, or has no
            effect beside it.
    """
    check_counts(epochs=epochs, batch_size=batch_size, accumulate=accumulate)
    check_counts(patience=patience, checkpoint_every=checkpoint_every)
    if clip is not None:
        positive("clip", clip, "it bounds the norm of the gradient")
    hint = f"'auto' compiles runs of at least {COMPILED_STEPS:,} steps"
    choice("compile", compile, (True, False, None, "auto"), hint)
    compares = monitor or ("value" if valid is None else "valid_value")
    check_monitor(compares, validated=valid is not None, extended=on_epoch is not None)
    if checkpoint is None:
        alone("checkpoint_every", checkpoint_every, "without a checkpoint")
        if monitor != "value" and patience is None:
            hint = "it chooses the best epoch for patience or a checkpoint: set one"
            alone("monitor", monitor, "without patience or a checkpoint", hint)
    if all(isinstance(each, DataLoader | NoneType) for each in (data, valid)):
        alone("batch_size", batch_size, "beside a DataLoader, which has its own")
    start()

    check_alike(data, valid, "valid")
    check_alike(data, content, "content", "index")
    if getattr(valid, "content", None) is not None:
        check_classes(data, valid)
    if is_main() and (hidden := unregistered(objective, trainable=True)):
        warnings.warn(message(hidden, "fit does not train"), stacklevel=4)
    target = target_of(objective, device)
    numbers = prepared_precision(precision, tf32, target.dtype)
    make = partial(
        source, views=views, batch_size=batch_size or 128, order=order_generator()
    )
    check_covariates(objective, covariates)
    train = make(data, target=target, content=content, covariates=covariates)
    if isinstance(train, Loaded):
        train.check_last(objective)
        train.check_content = ContentCheck(objective)
    with single_process():
        drawn = None if isinstance(valid, Groups) else views
        held_out = (
            None
            if valid is None
            else make(valid, views=drawn, target=target, name="the validation data")
        )
    if isinstance(held_out, Loaded):
        held_out.own_views, held_out.name = True, "the validation DataLoader"
        held_out.check_content = ContentCheck(objective)
    elif held_out is not None and held_out.content is not None:
        check_contents(objective, held_out.content)
    for each in (train, held_out):
        check_groups(objective, each)
    stored = not isinstance(train, Loaded)
    settle(objective, target.device, train.count, train.content, stored=stored)
    broadcast([*objective.parameters(), *objective.buffers()])
    interrupts = Interrupts(active=world_size() == 1)  # ranks may wait for one another
    validate = None
    if held_out is not None:
        validate = Validation(objective, held_out, numbers, train.order, interrupts)
        validate.rehearse()

    if isinstance(train, Stored):
        train.check_repeats()

    optimizer = prepared_optimizer(optimizer, objective, learning_rate)
    scheduler = prepared_scheduler(scheduler, optimizer)
    total = total_steps(train, epochs, accumulate)
    check_horizon(scheduler, epochs, total)
    written = Schedules(objective, schedules, total)
    compared = patience is not None or checkpoint is not None
    stopping = EarlyStopping(compares if compared else None, patience)
    state = objective, optimizer, scheduler, train.order, stopping, target.device
    run = Run(*state, written, views)
    if checkpoint is not None:
        steps: dict[str, Any] = {"accumulate": accumulate, "clip": clip}
        trained = objective, written, optimizer, scheduler
        run.setting = setting_of(*trained, views, train, held_out, **steps)
    folder = Checkpoints(checkpoint, checkpoint_every or 1)
    folder.begin(run, resume, epochs)

    bar = Progress(total, run.steps, progress=progress and is_main())
    run.compiled = worth_compiling(compile, total, run.compiled)

    @contextmanager
    def busy(text: str) -> Iterator[None]:
        with interrupts.held(), bar.busy(text):
            yield

    compiling = partial(compiled_step, busy=busy, views=views)
    kind = compiling if run.compiled else Step
    step = kind(
        objective,
        optimizer,
        scheduler=scheduler,
        clip=clip,
        make=train.batch,
        schedules=written,
        precision=numbers,
        count=run.steps,
    )
    step.replicated = train.replicated
    begun = run.steps
    stop, remarked = False, set[int]()  # modules that made a remark
    trainable, rates = trainable_of(objective), [step.learning_rate]
    watched = scheduler is not None
    place: Place | None = None
    unseen: Unsaved | None = None
    tally, began = Tally(step.count), perf_counter()
    with interrupts:
        try:
            for epoch in run.remaining(epochs):
                bar.set_description(f"epoch {epoch}/{epochs}", refresh=False)
                place, tally, loads = run.open(train, epoch, accumulate, folder.kept)
                began = perf_counter() - place.seconds
                groups = grouped(loads, accumulate)
                if compared and unseen is None:
                    unseen = Unsaved(objective, train)
                stop = train_epoch(step, groups, tally, bar, on_step, interrupts)
                if unseen is not None and not rates[1:] and on_step is None:
                    unseen.tell_drawn()
                remarks(objective, remarked)
                row = {"epoch": epoch, "step": step.count} | tally.mean()
                if validate is not None:
                    row |= validate()
                row |= {"lr": step.learning_rate, "seconds": perf_counter() - began}
                rates.append(row["lr"])
                watched = watched and not check_decay(rates, epochs)
                if on_epoch is not None:
                    with LOCK.open():
                        answer = on_epoch(epoch, row)
                    stop |= any_rank(ended_by("on_epoch", answer))
                if unseen is not None:
                    unseen.tell_changed(epoch)
                check_held(objective, optimizer, trainable)
                folder.save(run, best=run.finish(row, step.count))
                place = None
                if stop or interrupts.asked:
                    break
            folder.close(run)
            if interrupts.asked:
                raise KeyboardInterrupt
            if not stop:
                stopping.check(run.history)
        except KeyboardInterrupt:
            if world_size() > 1:  # other ranks may be waiting for this one
                raise
            logger.warning("%s", _interrupted(run, folder, step, place, tally, began))
        except Exception as error:
            _keep(error, run, folder, step, place, tally)
            raise
        finally:
            bar.close()
            objective.eval()
            folder.release()
    stopping.restore(objective)
    if step.count > begun:
        closing_remarks(objective, train, numbers)
    return run.history


def _interrupted(
    run: Run,
    folder: Checkpoints,
    step: Step,
    place: Place | None,
    tally: Tally,
    began: float,
) -> str:
    """Keep the moment of an interrupt, with a row of what there is of the epoch."""
    history, stopping = run.history, run.stopping
    history.interrupted = True
    finished, rows = len(history), []
    if place is not None:
        place.seconds = perf_counter() - began
        if tally.count > tally.start:
            counts = {"epoch": finished + 1, "step": tally.count}
            last = {"lr": step.learning_rate, "seconds": place.seconds}
            rows = [counts | tally.mean() | last]
    whole = folder.keep(run, step, place, tally, *rows)
    history.rows += rows
    history.broken_off = bool(rows)
    where = f"after epoch {finished}"
    if rows:
        within = "after" if whole else "within the step after"
        where = f"in epoch {finished + 1}, {within} step {tally.count}"
    best = f"are those of the best epoch, {stopping.epoch}"
    parameters = "stay as they are" if stopping.kept is None else best
    return f"interrupted {where}; the parameters {parameters}"


def _keep(
    error: Exception,
    run: Run,
    folder: Checkpoints,
    step: Step,
    place: Place | None,
    tally: Tally,
) -> None:
    """Give an error the history; write the moment that it came up, if that is sound."""
    note_history(error, run.history)
    if world_size() > 1:  # writing takes all ranks
        return
    if step.count == 0:
        folder.withdraw()
    elif not (hasattr(error, "unwritten") or hasattr(error, "batches")):
        # Neither the disk nor the numbers of the run are at fault.
        with suppress(OSError):
            folder.keep(run, step, place, tally)


def note_history(error: Exception, history: History) -> None:
    """Give an error the history so far, in the place of one that it had."""
    error.history = history  # type: ignore[attr-defined]
    before = getattr(error, "__notes__", [])
    before[:] = [note for note in before if not note.endswith(NOTED)]
    verb = "is" if len(history) == 1 else "are"
    error.add_note(f"{counted(len(history), 'epoch')} {verb} {NOTED}")
