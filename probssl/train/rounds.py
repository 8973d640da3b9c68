"""Fits in turn with what needs the whole data set in between, such as a clustering."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .batches import Data
from .fit import fit
from .history import History
from .prepare import check_at_least_one

__all__ = ["fit_rounds"]


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
