r"""Fits that alternate with an assignment of all items, such as a clustering.

`fit_rounds` calls `fit` once per round. `fit_phases` is one fit, with one optimiser and
one order of the items, and a weight :math:`\alpha` of the clusters that rises: with t
the finished share of the run and f the share of the first phase, where the base is
alone,

.. math:: \alpha(t) = 0 \quad (t < f), \qquad
    \alpha(t) = a^{1 - u} \, b^u, \quad u = \frac{t - f}{1 - f} \quad (t \ge f).

A base fitted alone for as many epochs is its fair baseline.

References:
    Rethinking Self-Supervised Learning Within the Framework of Partial Information
    Decomposition (Mohamadi et al., 2024)
    https://arxiv.org/abs/2412.02121
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..arguments import between, typed, whole
from ..runtime.distributed import broadcast, world_size
from .batches import Data
from .fit import fit, note_history
from .history import History, Row
from .prepare import check_counts
from .schedules import Schedule, geometric

__all__ = ["fit_phases", "fit_rounds"]

logger = logging.getLogger(__name__)


@typed
def fit_rounds(
    objective: nn.Module,
    data: Data,
    assign: Callable[[], Any],
    *,
    rounds: int = 10,
    epochs: int | Sequence[int] = 10,
    **options: Any,
) -> History:
    """Alternate an assignment (pseudo-labels) and a fit; return one history.

    Epochs and steps are counted over all rounds, and a column ``round`` is added.
    Callbacks count within their round. A round that a callback, early stopping or an
    interrupt cuts short is the last.

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
        epochs: The epochs of each round: one number, or one for each.
        options: Arguments of `fit`. A given optimiser goes on through all rounds;
            otherwise each round has its own.

    Raises:
        ValueError: If there are checkpoints, which hold a single fit, or validation
            data, whose items have no assignment.
    """
    check_counts(rounds=rounds)
    each = [epochs] * rounds if isinstance(epochs, int) else list(epochs)
    for count in each:
        check_counts(epochs=count)
    if len(each) != rounds:
        raise ValueError(
            f"expected epochs of {rounds} rounds, got {len(each)} numbers; give one "
            "for each round, or one number for all"
        )
    _check_no_validation(options)
    refused = {"checkpoint", "checkpoint_every", "resume"} & options.keys()
    if refused:
        raise ValueError(
            f"expected no {' or '.join(sorted(refused))} for a fit in rounds, since a "
            "checkpoint holds one round; leave it out, and save the objective in assign"
        )
    history = History()
    for number, count in enumerate(each, 1):
        part = History()
        try:
            assign()
            part = fit(objective, data, epochs=count, **options)
        except KeyboardInterrupt:
            if world_size() > 1:  # other ranks may be waiting for this one
                raise
            logger.warning("interrupted before the first step of round %d", number)
            part.interrupted = True
        except Exception as error:
            _add(history, getattr(error, "history", part), number)
            note_history(error, history)
            raise
        _add(history, part, number)
        if len(part) < count or part.interrupted:
            break
    return history


def _add(history: History, part: History, number: int) -> None:
    """Add the rows of a round, whose epochs and steps go on."""
    before = history.rows[-1] if history.rows else {"epoch": 0, "step": 0}
    for row in part.rows:
        counts = {name: before[name] + row[name] for name in ("epoch", "step")}
        history.rows.append(row | counts | {"round": number})
    history.interrupted, history.broken_off = part.interrupted, part.broken_off


@typed
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
    """Fit the base alone, assign clusters, and go on with a weight that rises.

    The defaults are a tenth of the authors' 1000 epochs, with the base alone for 100
    and clusters every 100. They raise the weight from 1e-5 to 1e-1 in a way that they
    do not state: geometrically here, so that most of the rise falls into the last
    epochs. A run of a few tens of epochs may need a larger first weight.

    The history has further columns: ``phase``, 1 for the base alone and 3 for both
    tiers (2 is the clustering between them); ``round``, the number of assignments so
    far; ``weight``, that of the last step. Checkpoints and `resume` are those of `fit`.

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
        first: The epochs of the base alone; with 0 clusters are assigned at the start.
        epochs: The epochs of all phases together.
        refresh: The epochs between two assignments. None keeps the first assignment, as
            in the authors' ablation: ``first=800, epochs=1000``.
        ramp: The weight at the start and at the end of the third phase, between which
            it rises geometrically; or a function of the finished share of that phase,
            such as `linear` returns.
        on_epoch: As in `fit`, after the columns are added and before the assignment.
        schedules: As in `fit`, of other buffers.
        options: Arguments of `fit`.

    Raises:
        ValueError: If `first` is not below `epochs`, the buffer is missing or has a
            schedule of its own, the ramp does not rise from a positive number, or there
            are validation data, whose items have no clusters.
    """
    check_counts(epochs=epochs, refresh=refresh)
    whole("first", first, 0, epochs - 1, "epochs counts all phases, the first included")
    _check_no_validation(options)
    schedules = schedules or {}
    if "weight" not in dict(objective.named_buffers()) or "weight" in schedules:
        found = "a schedule of it" if "weight" in schedules else "none"
        raise ValueError(
            "expected an objective with a buffer 'weight' that fit_phases sets, got "
            f"{found}; pass limits.PID, and its weight as ramp"
        )
    if not callable(ramp):
        low, high = ramp
        hint = "it rises from a positive number, as (1e-5, 1e-1)"
        ramp = geometric(between("the start of ramp", low, 0, high, hint), high)
    start = first / epochs

    def weight(share: float) -> float:
        return 0.0 if share < start else ramp((share - start) / (1 - start))

    def after(epoch: int, row: Row) -> Any:
        row["phase"] = 1 if epoch <= first else 3
        row["round"] = _assigned(epoch - 1, first, refresh)
        row["weight"] = float(objective.get_buffer("weight"))
        stop = None if on_epoch is None else on_epoch(epoch, row)
        # Also if it stops here, so that it can be resumed.
        if epoch < epochs and _assigned(epoch, first, refresh) > row["round"]:
            assign_on_all_ranks()
        return stop

    def assign_on_all_ranks() -> None:
        objective.eval()
        assign()
        broadcast([*objective.parameters(), *objective.buffers()])

    if first == 0:
        assign_on_all_ranks()
    return fit(
        objective,
        data,
        epochs=epochs,
        on_epoch=after,
        schedules={**schedules, "weight": weight},
        **options,
    )


def _assigned(epoch: int, first: int, refresh: int | None) -> int:
    """The number of assignments after so many epochs."""
    if epoch < first:
        return 0
    return 1 if refresh is None else 1 + (epoch - first) // refresh


def _check_no_validation(options: Mapping[str, Any]) -> None:
    if options.get("valid") is not None:
        raise ValueError(
            "expected no validation data, since only training items have an "
            "assignment, got some; measure them in on_epoch"
        )
