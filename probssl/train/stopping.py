"""Early stopping: the best epoch so far, and when to give up on a better one."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from .history import Row

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Watches a column of the history, of which larger is better.

    Arguments:
        monitor: The column.
        patience: So many epochs without a better one are the end; the parameters of the
            best one are then kept. None means neither.
    """

    def __init__(self, monitor: str, patience: int | None) -> None:
        self.monitor, self.patience = monitor, patience
        self.value, self.epoch = -math.inf, 0
        self.kept: dict[str, Tensor] | None = None

    def improves(self, row: Row, objective: nn.Module) -> bool:
        """Whether this is the best epoch so far; if so, and if needed, it is kept."""
        if self.monitor not in row:
            raise ValueError(
                f"expected monitor to be one of {list(row)}, got {self.monitor!r}; "
                "name one of these, or add it to the row in on_epoch"
            )
        if not row[self.monitor] > self.value:
            return False
        self.value, self.epoch = row[self.monitor], int(row["epoch"])
        if self.patience is not None:
            self.kept = deepcopy(objective.state_dict())
        return True

    def gives_up(self, epoch: int) -> bool:
        """Whether patience has run out after this epoch."""
        return self.patience is not None and epoch - self.epoch >= self.patience

    def restore(self, objective: nn.Module) -> None:
        """Give the objective the parameters that were kept, if any were."""
        if self.kept is not None:
            objective.load_state_dict(self.kept)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        names = ("monitor", "value", "epoch", "kept")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: If another column was watched.
        """
        if state["monitor"] != self.monitor:
            raise ValueError(
                f"expected monitor={state['monitor']!r} as in the checkpoint, got "
                f"{self.monitor!r}; resume with the same one"
            )
        self.value, self.epoch, self.kept = (
            state[name] for name in ("value", "epoch", "kept")
        )
