r"""A fit in phases: a base alone, then clusters of its items, then both tiers.

.. math:: \alpha(t) = 0 \quad (t < f), \qquad
    \alpha(t) = a^{1 - u} \, b^u, \quad u = \frac{t - f}{1 - f} \quad (t \ge f)

with t the share of the run that is done, f that of the first phase. It is one fit, with
one optimiser, one schedule and one order of the items from beginning to end, so that a
base fitted alone for as many epochs is what it compares with.

References:
    Rethinking Self-Supervised Learning Within the Framework of Partial Information
    Decomposition (Mohamadi et al., 2024)
    https://arxiv.org/abs/2412.02121
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..processes import broadcast
from .batches import Data
from .fit import fit
from .history import History, Row
from .prepare import check_at_least_one
from .schedules import Schedule, geometric

__all__ = ["fit_phases"]


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
