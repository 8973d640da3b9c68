"""Fits in turn with what needs the whole data set in between, such as a clustering."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..runtime.distributed import broadcast
from .batches import Data
from .fit import fit
from .history import History, Row
from .prepare import check_at_least_one
from .schedules import Schedule, geometric

__all__ = ["fit_phases", "fit_rounds"]


def fit_rounds(
    objective: nn.Module,
    data: Data,
    assign: Callable[[], Any],
    *,
    rounds: int = 10,
    epochs: int = 10,
    **options: Any,
) -> History:
    """Assign and fit in turn; return the histories of all rounds as one.

    Epochs and steps are counted through, and a column ``round`` is added. Callbacks
    count within their round. A round that ends before its epochs are over, by a
    callback, by `patience` or from the keyboard, is the last.

    Example:
        >>> import torch
        >>> import probssl as ps
        >>> from probssl.limits.deep_clustering import DeepClustering
        >>> x = torch.randn(40, 3)
        >>> encoder = ps.nn.MLPEncoder((3,), 2, hidden=(8,))
        >>> objective = DeepClustering(encoder, components=4, items=40)
        >>> def assign():
        ...     objective.assign(ps.embed(objective, x))
        >>> history = fit_rounds(
        ...     objective, x, assign, rounds=2, epochs=3, progress=False
        ... )
        >>> history["round"].tolist()
        [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]

    Arguments:
        assign: Called without arguments before each round.
        rounds: How often that is.
        epochs: Of each round.
        options: For `fit`. An optimiser at hand goes on through all rounds; otherwise
            each has its own.

    Raises:
        ValueError: If a checkpoint is asked for, which holds one fit only, there are
            validation data, whose items have no assignment, or a number is below one.
    """
    check_at_least_one(rounds=rounds, epochs=epochs)
    if options.get("valid") is not None:
        raise ValueError(
            "expected no validation data for a fit in rounds, whose assignments are "
            "those of the training items, got some; measure them in on_epoch"
        )
    refused = {"checkpoint", "checkpoint_every", "resume"} & options.keys()
    if refused:
        raise ValueError(
            f"expected no {' or '.join(sorted(refused))} for a fit in rounds, which a "
            "checkpoint does not hold; leave it out, and save between rounds in assign"
        )
    history = History()
    for number in range(1, rounds + 1):
        assign()
        found = fit(objective, data, epochs=epochs, **options)
        before = history.rows[-1] if history.rows else {"epoch": 0, "step": 0}
        for row in found.rows:
            counts = {name: before[name] + row[name] for name in ("epoch", "step")}
            history.rows.append(row | counts | {"round": number})
        if len(found) < epochs:
            break
    return history


def fit_phases(
    objective: nn.Module,
    data: Data,
    assign: Callable[[], Any],
    *,
    first: int = 10,
    epochs: int = 100,
    refresh: int | None = 10,
    ramp: tuple[float, float] | Schedule = (1e-5, 1e-1),
    on_epoch: Callable[[int, Row], Any] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    **options: Any,
) -> History:
    """Fit with weight 0, assign clusters, and go on with a weight that rises.

    Published are 100 epochs alone of 1000 in all, a refresh every 100, ten times what
    is the default here, and a rise from 1e-5 to 1e-1, of a shape that is not stated: it
    is geometric here. That leaves most of the work to the last epochs; a run of a few
    tens of them may ask for a rise that starts higher.

    To the history are added ``phase``, 1 for the base alone and 3 for both tiers (the
    second is the clustering between them), ``round``, how often clusters had been
    assigned, and ``weight``, that of the last step.

    Checkpoints and `resume` are those of `fit`, which this is.

    Example:
        >>> import torch
        >>> import probssl as ps
        >>> from probssl.limits.pid import PID
        >>> x = torch.randn(40, 2, 3)  # two views of each item
        >>> base = ps.limits.SimCLR(ps.nn.MLPEncoder((3,), 2, hidden=(8,)))
        >>> objective = PID(base, components=4, items=40)
        >>> def assign():
        ...     objective.assign(ps.embed(objective, x[:, 0]))
        >>> history = fit_phases(
        ...     objective, ps.data.Groups(x), assign, first=2, epochs=5, refresh=2,
        ...     progress=False,
        ... )
        >>> history["round"].tolist()
        [0.0, 0.0, 1.0, 1.0, 2.0]

    Arguments:
        objective: One with a buffer ``weight``, such as `limits.PID`.
        assign: Called without arguments after the first phase and at each refresh, with
            the objective in evaluation mode.
        first: The epochs of the base alone; with 0 clusters are assigned at once.
        epochs: Of all phases together.
        refresh: The epochs between one assignment and the next. None keeps the first,
            as in the authors' ablation: ``first=800, epochs=1000``.
        ramp: The weight at the beginning and at the end of the third phase, between
            which it rises geometrically; or a function of the share of that phase that
            is done, such as `linear` makes.
        on_epoch: As in `fit`, after the columns are added and before the assignment.
        schedules: As in `fit`, of other buffers.
        options: For `fit`.

    Raises:
        ValueError: If the first phase is no part of the run, there is no such buffer or
            it has a schedule of its own, the ramp does not rise from a positive number,
            there are validation data, whose items have no clusters, or as `fit`.
    """
    check_at_least_one(epochs=epochs, refresh=refresh)
    _check(objective, first, epochs, schedules or {}, options)
    rise = ramp if callable(ramp) else geometric(*_rising(ramp))
    start = first / epochs

    def weight(share: float) -> float:
        return 0.0 if share < start else rise((share - start) / (1 - start))

    def after(epoch: int, row: Row) -> bool:
        row["phase"] = 1 if epoch <= first else 3
        row["round"] = _assigned(epoch - 1, first, refresh)
        row["weight"] = float(objective.get_buffer("weight"))
        stop = on_epoch is not None and bool(on_epoch(epoch, row))
        # Also where it stops here, so that it can be resumed.
        if epoch < epochs and _assigned(epoch, first, refresh) > row["round"]:
            together()
        return stop

    def together() -> None:
        objective.eval()
        assign()
        broadcast([*objective.parameters(), *objective.buffers()])

    if first == 0:
        together()
    return fit(
        objective,
        data,
        epochs=epochs,
        on_epoch=after,
        schedules={**(schedules or {}), "weight": weight},
        **options,
    )


def _assigned(epoch: int, first: int, refresh: int | None) -> int:
    """How often clusters have been assigned when so many epochs are done."""
    if epoch < first:
        return 0
    return 1 if refresh is None else 1 + (epoch - first) // refresh


def _rising(ramp: tuple[float, float]) -> tuple[float, float]:
    start, end = ramp
    if not 0 < start <= end < math.inf:
        raise ValueError(
            f"expected a ramp that rises from a positive number, got {ramp!r}; "
            "published is (1e-5, 1e-1)"
        )
    return start, end


def _check(
    objective: nn.Module,
    first: int,
    epochs: int,
    schedules: Mapping[str, Schedule],
    options: Mapping[str, Any],
) -> None:
    if not 0 <= first < epochs:
        raise ValueError(
            f"expected first from 0 to below the {epochs} epochs in all, got {first}; "
            "raise epochs, or lower first"
        )
    if "weight" not in dict(objective.named_buffers()) or "weight" in schedules:
        found = "a schedule of it" if "weight" in schedules else "none"
        raise ValueError(
            "expected an objective with a buffer 'weight' that is left to the phases, "
            f"got {found}; give limits.PID, and its weight as ramp"
        )
    if options.get("valid") is not None:
        raise ValueError(
            "expected no validation data for a fit in phases, whose clusters are those "
            "of the training items, got some; measure the base of the objective in "
            "on_epoch"
        )
