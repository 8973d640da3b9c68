"""Probes during a fit: a ready callback of `fit` that adds scores to each epoch."""

from collections.abc import Callable

import torch
from torch import nn

from .arguments import typed, whole
from .data import Split
from .evaluation import effective_rank, knn, linear_probe
from .posterior import embed
from .runtime.distributed import single_process
from .runtime.randomness import random_state, set_random_state
from .runtime.threads import LOCK
from .train.history import Row

__all__ = ["probe_epochs"]


@typed
def probe_epochs(
    objective: nn.Module,
    train: Split,
    valid: Split,
    *,
    every: int = 1,
    k: int = 5,
    layer: str = "backbone",
    max_train: int | None = 10_000,
    seed: int = 0,
) -> Callable[[int, Row], None]:
    """Return an `on_epoch` callback: k-NN, linear probe and effective rank of z.

    It adds the columns ``knn`` and ``linear_probe``, accuracies on validation items of
    probes fitted to training items, and ``effective_rank``, of validation items. They
    can be a `monitor` of `fit`. The state of the objective, its modes, and the random
    numbers of training stay as they are.

    Arguments:
        objective: The objective that is fitted.
        train: Labelled training items.
        valid: Labelled validation items, of which no test item is one: a monitor
            chooses an epoch by them.
        every: The number of epochs from one probe to the next; the columns of those
            between have no value.
        k: The number of neighbours.
        layer: As for `embed`.
        max_train: The largest number of training items, drawn at random once.
        seed: The seed of these.

    Raises:
        ValueError: If one of the two has no labels, or a number is out of range.
    """
    every, k = whole("every", every), whole("k", k)
    for name, part in (("train", train), ("valid", valid)):
        if part.labels is None:
            raise ValueError(
                f"expected labels of the items of {name} for a probe, got none; give "
                "ps.data.arrays(images, labels)"
            )
    if max_train is not None and whole("max_train", max_train) < len(train):
        train = train.take(max_train, seed)

    def on_epoch(epoch: int, row: Row) -> None:
        if epoch % every:
            return
        device = next(objective.parameters(), torch.empty(0)).device
        with LOCK:
            before = random_state(device)
            try:
                with single_process():
                    z, z_valid = (
                        embed(objective, part, layer=layer) for part in (train, valid)
                    )
            finally:
                set_random_state(before, device)
        assert train.labels is not None and valid.labels is not None
        known = z, train.labels, z_valid, valid.labels
        row["knn"] = knn(*known, k=k)
        row["linear_probe"] = linear_probe(*known)
        row["effective_rank"] = effective_rank(z_valid)

    return on_epoch
