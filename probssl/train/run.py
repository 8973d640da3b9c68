"""The state of a training run, its early stopping, and the folder of its checkpoints.

`checkpoint` has the format of the files.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..arguments import choice, counted
from ..arguments import folder as checked_folder
from ..reading import guarded
from ..runtime import files
from ..runtime.buffers import complete, copy_matching, make_room, unsaved
from ..runtime.distributed import broadcast_object, is_main
from ..runtime.randomness import random_states, set_random_states
from .batches import Source
from .checkpoint import check_fits, read, read_run, write
from .history import History, Row, Tally
from .prepare import load_optimizer, optimizer_state
from .schedules import Schedules
from .settings import numbers, resumed_setting
from .steps import Step

__all__ = ["Checkpoints", "EarlyStopping", "Run"]

logger = logging.getLogger(__name__)

LAST, BEST, HISTORY = "last.safetensors", "best.safetensors", "history.json"
SAVED = "probssl.json", HISTORY  # of a run of the command line
OURS = {*SAVED, BEST, "model.safetensors"}  # what says that there was a run


@dataclass
class Place:
    """Where an interrupted run stands within an epoch.

    Arguments:
        opening: The random states at the start of the epoch, which give its order.
        first: The number of steps before the epoch.
        items, total: The sums of the `Tally`.
        seconds: The time that the epoch has taken.
    """

    opening: list[dict[str, Tensor]]
    first: int
    items: int = 0
    total: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Run:
    """All that a training run carries from one step to the next: a checkpoint's state.

    Arguments:
        order: The generator of the order of the items.
        schedules: Those of the objective's buffers.
        views: The view sampler, whose buffers are kept if it is a module.
        compiled: Whether the steps are compiled; None before that is decided.
        steps: The number of steps made, when the state is written.
        setting: What a resumed run should have in common with it.
        place: That of a run that was interrupted within an epoch.
    """

    objective: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None
    order: Generator
    stopping: "EarlyStopping"
    device: torch.device
    schedules: Schedules
    views: Any = None
    history: History = field(default_factory=History)
    compiled: bool | None = None
    steps: int = 0
    setting: Mapping[str, str] = field(default_factory=dict)
    place: Place | None = None

    def remaining(self, epochs: int) -> Iterator[int]:
        """The numbers of the epochs left, until patience runs out."""
        for epoch in range(len(self.history) + 1, epochs + 1):
            if self.history.rows and self.stopping.gives_up(self.history.rows[-1]):
                return
            yield epoch

    def open(
        self, train: Source, epoch: int, accumulate: int, kept: str
    ) -> tuple[Place, Tally, Iterator[Any]]:
        """Begin an epoch, or go on with it: its place, running sums and loads.

        The order of an epoch that goes on is drawn anew, from the random state at its
        start, and the loads of the steps that were made are left out.
        """
        place, self.place = self.place, None
        tally = Tally(self.steps if place is None else place.first, kept)
        if place is None:
            opening = random_states(self.device, self.order)
            return Place(opening, self.steps), tally, train.epoch(epoch)
        now = random_states(self.device, self.order)
        set_random_states(place.opening, self.device, self.order)
        loads = train.epoch(epoch, skip=accumulate * (self.steps - place.first))
        set_random_states(now, self.device, self.order)
        tally.steps, tally.items = self.steps, place.items
        tally.total = np.array(place.total)
        return place, tally, loads

    def finish(self, row: Row, steps: int) -> bool:
        """End an epoch: add the row of rank 0; return whether the epoch is the best.

        Arguments:
            steps: The number of steps made.

        Raises:
            TypeError: If `on_epoch` added what is no number.
            ValueError: If `on_epoch` changed the number of the epoch or of the steps.
        """
        row = {name: _number(name, x) for name, x in row.items()}
        row = broadcast_object(row)
        for name, count in (("epoch", len(self.history) + 1), ("step", steps)):
            if row.get(name) != count:
                raise ValueError(
                    f"expected on_epoch to leave {name} = {count} in the row, which "
                    f"fit counts by, got {row.get(name)}; write your number under "
                    "another name"
                )
            row[name] = count  # a whole number, whatever wrote it
        self.steps = steps
        self.history.rows.append(row)
        return self.stopping.improves(row, self.objective)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, with the random states of all ranks."""
        return {
            "objective": self.objective.state_dict(),
            "unsaved": unsaved(self.objective),
            "frozen": [k for k, p in self._parameters() if not p.requires_grad],
            "views": self._of_views(),
            "optimizer": optimizer_state(self.optimizer),
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "steps": self.steps,
            "compiled": self.compiled,
            "setting": dict(self.setting),
            "stopping": self.stopping.state(),
            "history": self.history.rows,
            "place": self.place and vars(self.place),
            "random": random_states(self.device, self.order),
        }

    def _of_views(self) -> dict[str, Tensor]:
        return self.views.state_dict() if isinstance(self.views, nn.Module) else {}

    def _parameters(self) -> list[tuple[str, Tensor]]:
        named = self.objective.named_parameters()
        return [(name, p) for name, p in named if p.is_floating_point()]

    def write(self, path: Path) -> None:
        """Write a checkpoint on rank 0; all ranks contribute to its state."""
        state = self.state()
        if is_main():
            write(path, state)

    def load(self, state: Mapping[str, Any], origin: object) -> None:
        """Resume from a state: the run goes on as if it had not been interrupted."""
        hint = "restore it, or take another folder to start anew"
        with guarded(origin, "fit writes it", hint):
            self._load(state, origin)

    def _load(self, state: Mapping[str, Any], origin: object) -> None:
        make_room(self.objective, state["objective"])
        current = self.state()
        complete(self.objective, state["objective"])
        check_fits(self.objective, self.optimizer, state, current, origin)
        self.stopping.load(state["stopping"], len(state["history"]))
        self.objective.load_state_dict(state["objective"])
        copy_matching(unsaved(self.objective), state.get("unsaved", {}))
        if "frozen" in state:  # absent in older files
            for name, parameter in self._parameters():
                parameter.requires_grad_(name not in state["frozen"])
        copy_matching(self._of_views(), state.get("views", {}))
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.history, self.steps = History(state["history"]), state["steps"]
        self.compiled = state.get("compiled")  # absent in older files
        place = state.get("place")
        self.place = place and Place(**place)
        set_random_states(state["random"], self.device, self.order)


class EarlyStopping:
    """Compares epochs by a column of the history; larger is better.

    Arguments:
        monitor: The column; with None no epoch is the best.
        patience: The number of epochs without a better one after which the run stops,
            with the parameters of the best epoch; epochs without the column stop
            nothing. None means no early stopping.
    """

    def __init__(self, monitor: str | None, patience: int | None) -> None:
        self.monitor, self.patience = monitor, patience
        self.value, self.epoch = -math.inf, 0
        self.kept: dict[str, Tensor] | None = None
        self.unsaved: dict[str, Tensor] = {}  # with them

    def improves(self, row: Row, objective: nn.Module) -> bool:
        """Whether this is the best epoch so far; with patience, keep its parameters."""
        if self.monitor is None:
            return False
        if self.monitor not in row and row["epoch"] == 1:
            logger.warning(
                "the row of epoch 1 has no %r, by which epochs are compared; on_epoch "
                "may add it to a later one",
                self.monitor,
            )
        if not row.get(self.monitor, math.nan) > self.value:
            return False
        self.value, self.epoch = row[self.monitor], int(row["epoch"])
        if self.patience is not None:
            self.kept = deepcopy(objective.state_dict())
            self.unsaved = deepcopy(unsaved(objective))
        return True

    def gives_up(self, row: Row) -> bool:
        """Whether patience has run out after an epoch that has the column."""
        if self.patience is None or self.monitor not in row:
            return False
        return row["epoch"] - self.epoch >= self.patience

    def check(self, history: History) -> None:
        """Raise a ValueError if no epoch had the column; warn if it was always NaN."""
        if self.monitor is None:
            return
        hint = "on_epoch may add it to the row"
        choice("monitor", self.monitor, history.columns, hint)
        if all(math.isnan(row.get(self.monitor, math.nan)) for row in history.rows):
            warnings.warn(
                f"expected numbers in the column {self.monitor!r}, by which epochs are "
                f"compared, got NaN in {'all ' * (len(history) > 1)}"
                f"{counted(len(history), 'epoch')}; no epoch is the best, and the "
                "parameters are those of the last: write numbers, or monitor another "
                "column",
                stacklevel=5,
            )

    def restore(self, objective: nn.Module) -> None:
        """Load the kept parameters of the best epoch, if there are any."""
        if self.kept is not None:
            objective.load_state_dict(self.kept)
            copy_matching(unsaved(objective), self.unsaved)

    def state(self) -> dict[str, Any]:
        """Its part of a checkpoint."""
        return {k: v for k, v in vars(self).items() if k != "patience"}

    def load(self, state: Mapping[str, Any], epoch: int) -> None:
        """Resume from what `state` returned after this epoch, for the same monitor.

        Without patience nothing is kept. With it, but without the parameters of the
        best epoch, epochs are compared from here on.
        """
        if state["monitor"] != self.monitor:
            raise ValueError(
                f"expected monitor={state['monitor']!r} as in the checkpoint, got "
                f"{self.monitor!r}; resume with the same one"
            )
        vars(self).update(state)
        if self.patience is None:
            self.kept = None
        elif self.kept is None:
            self.value, self.epoch = -math.inf, epoch


class Checkpoints:
    """The folder of a run: its last epoch, its best epoch, and its history as JSON.

    Only rank 0 reads and writes files, and locks the folder until `release`.
    ``read(folder / "best.safetensors")`` has the `state_dict` under ``"objective"``.

    Arguments:
        folder: None means no checkpoints.
        every: The number of epochs between two checkpoints of the last epoch.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, every: int) -> None:
        self.folder = None if folder is None else checked_folder("checkpoint", folder)
        self.every = every
        self.epoch = 0  # of the last checkpoint
        self.new = False  # whether the run began with this call
        self.made = self.folder is not None and not self.folder.exists()
        self.lock = ExitStack()

    def begin(self, run: Run, resume: bool, epochs: int) -> None:
        """Resume from the last epoch, or write a checkpoint before the first one.

        A warning says if the checkpoint has more than `epochs` epochs.
        """
        try:
            self._begin(run, resume, epochs)
        except BaseException:
            self.release()
            raise

    def _begin(self, run: Run, resume: bool, epochs: int) -> None:
        if self.folder is None:
            if resume:
                raise ValueError(
                    "expected a folder to resume from, got checkpoint=None; name it"
                )
            return
        last = self.folder / LAST
        state = broadcast_object(self._locked(resume) if is_main() else None)
        if state is not None:
            run.load(state, last)
            saved, taken = (
                state.get("setting", {}),
                numbers(run.objective, run.schedules),
            )
            run.setting = resumed_setting(saved, run.setting, taken, last)
            self.epoch = len(run.history)
            self._write_history(run.history.rows)  # a kill may have left it behind
            begun = self.epoch + (run.place is not None)
            if begun > epochs:
                warnings.warn(
                    f"expected epochs of at least the {begun} that {last} has, "
                    f"got {epochs}; no epoch is added: raise epochs, or leave resume "
                    "out and take another folder",
                    stacklevel=5,
                )
        else:
            self.new = True
            run.write(last)

    def _locked(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint in the folder, in which no other process writes from now."""
        assert self.folder is not None
        self.lock.enter_context(files.locked(self.folder, "fit"))
        return _found(self.folder, resume)

    def release(self) -> None:
        """Let others write in the folder."""
        self.lock.close()

    def save(self, run: Run, best: bool) -> None:
        """Write the finished epoch, if it is the best or a checkpoint is due."""
        if self.folder is not None and best:
            run.write(self.folder / BEST)
        if len(run.history) % self.every == 0:
            self.close(run)

    def close(self, run: Run) -> None:
        """Write the last epoch, unless it is written already."""
        if self.epoch != len(run.history):
            self._write(run, run.history.rows)
            self.epoch = len(run.history)

    def keep(
        self, run: Run, step: Step, place: Place | None, tally: Tally, *more: Row
    ) -> bool:
        """Write the present moment, unless a step was broken off; return whether.

        Arguments:
            place: That of the epoch; None between two epochs.
            more: Rows of the history after those of the finished epochs.
        """
        whole = step.whole and step.count == tally.count
        rows = [*run.history.rows, *more]
        if not whole:
            self._write_history(rows)
        elif place is None or tally.count == tally.start:
            if place is not None:  # before the first step of an epoch
                set_random_states(place.opening, run.device, run.order)
            self.close(run)
        else:
            tally.read()
            place.items, place.total = tally.items, tally.total.tolist()
            run.place, run.steps = place, step.count
            self._write(run, rows)
        return whole

    def withdraw(self) -> None:
        """Remove the checkpoint from before the first step, of a call that failed."""
        if self.folder is not None and self.new and is_main():
            (self.folder / LAST).unlink(missing_ok=True)
            self.release()
            files.remove_lock(self.folder, "fit")
            if self.made:
                with suppress(OSError):  # others put files there
                    self.folder.rmdir()

    def _write(self, run: Run, rows: list[Row]) -> None:
        if self.folder is not None:
            run.write(self.folder / LAST)
            self._write_history(rows)

    def _write_history(self, rows: list[Row]) -> None:
        if self.folder is not None and is_main():
            files.write(self.folder / HISTORY, History(rows).to_json())

    @property
    def kept(self) -> str:
        """What is on disk, for error messages."""
        if self.folder is None:
            return "with checkpoint=FOLDER the epochs before would be kept"
        return f"{self.folder / LAST} holds the run after epoch {self.epoch}"


def _number(name: str, x: Any) -> float:
    """A number of a row, as a plain one."""
    with suppress(TypeError, ValueError, RuntimeError):
        if isinstance(name, str) and not isinstance(x, str | bytes):
            return x if isinstance(x, int) else float(x)
    raise TypeError(
        f"expected on_epoch to add numbers under strings to the row, got {x!r} under "
        f"{name!r}; leave it out, or NaN where there is none"
    )


def _found(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint in a folder, if there is one.

    Files of others, such as a log, make no run: beside them one starts anew.
    """
    last = folder / LAST
    if (inner := folder / "checkpoints" / LAST).exists() and not last.exists():
        raise FileExistsError(
            f"expected a folder for a checkpoint alone, got {folder}, a run of the "
            f"command line, whose checkpoint is {inner}; go on from it there, by "
            "probssl fit, or pass another folder"
        )
    if not (last.exists() or resume) and all((folder / n).exists() for n in SAVED):
        raise FileExistsError(
            f"expected a folder without a run, got {folder} with "
            f"{' and '.join(SAVED)} of the command line; pass another folder"
        )
    if last.exists():
        if resume:
            return _with_best(read_run(last), folder / BEST)
        raise FileExistsError(
            f"expected a folder without a checkpoint, got {last}; pass resume=True "
            "to go on from it, or another folder"
        )
    if not resume and (folder / BEST).exists():
        raise FileExistsError(
            f"expected a folder without a checkpoint, got {folder / BEST}, the best "
            f"epoch of a run whose {LAST} is gone; pass another folder"
        )
    others = [name for name in sorted(OURS) if (folder / name).exists()]
    others += [f"{path.parent.name}/{LAST}" for path in folder.glob(f"*/{LAST}")]
    if resume and others:
        raise FileNotFoundError(
            f"expected {last} to resume from, got a folder with {others[0]!r} but "
            "no checkpoint; pass the folder of the run, or another one to start anew"
        )
    (folder / HISTORY).unlink(missing_ok=True)  # of a run whose last epoch is gone
    return None


def _with_best(state: dict[str, Any], best: Path) -> dict[str, Any]:
    """A state with the parameters of its best epoch, which only patience keeps."""
    stopping = state["stopping"]
    if stopping["kept"] is None and stopping["epoch"] and best.exists():
        found = read(best)
        if found["history"] == state["history"][: stopping["epoch"]]:  # of this run
            stopping["kept"] = found["objective"]
            stopping["unsaved"] = found.get("unsaved", {})
    return state
