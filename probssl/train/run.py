"""All that a training run carries from one epoch to the next."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from ..processes import agreed
from ..varying import complete
from .history import History, Row
from .optimizer import load_optimizer, optimizer_state
from .randomness import go_on, random_states
from .steps import Step
from .stopping import EarlyStopping

__all__ = ["Run"]


@dataclass
class Run:
    """What a checkpoint holds.

    Arguments:
        step: The objective, its optimiser and schedule.
        order: What the order of the items is drawn from.
    """

    step: Step
    order: Generator
    stopping: EarlyStopping
    device: torch.device
    history: History = field(default_factory=History)
    compiled: bool | None = None  # not yet decided

    def remaining(self, epochs: int) -> Iterator[int]:
        """The numbers of the epochs still to do, until patience runs out."""
        for epoch in range(len(self.history) + 1, epochs + 1):
            if self.stopping.gives_up(epoch - 1):
                return
            yield epoch

    def finish(self, row: Row) -> bool:
        """End an epoch with its row of the history; return whether it is the best.

        The row is that of the first process.
        """
        row = {name: x if isinstance(x, int) else float(x) for name, x in row.items()}
        row = agreed(row)
        self.history.rows.append(row)
        return self.stopping.improves(row, self.step.objective)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, with the random states of all processes."""
        step = self.step
        return {
            "objective": step.objective.state_dict(),
            "optimizer": optimizer_state(step.optimizer),
            "scheduler": step.scheduler and step.scheduler.state_dict(),
            "steps": step.count,
            "compiled": self.compiled,
            "stopping": self.stopping.state(),
            "history": self.history.rows,
            "random": random_states(self.device, self.order),
        }

    def load(self, state: Mapping[str, Any], origin: object) -> None:
        """Go on from what `state` gave, as if nothing had been in between.

        Raises:
            ValueError: If a key or a shape differs, with the first one and the origin.
        """
        step, current = self.step, self.state()
        complete(step.objective, state["objective"])
        for part in ("objective", "optimizer", "scheduler"):
            saved, built = (_entries(s[part]) for s in (state, current))
            _check(saved, built, f"the {part} in {origin}")
        self.stopping.load(state["stopping"])
        step.objective.load_state_dict(state["objective"])
        load_optimizer(step.optimizer, state["optimizer"])
        if step.scheduler is not None:
            step.scheduler.load_state_dict(state["scheduler"])
        step.count, self.history = state["steps"], History(state["history"])
        self.compiled = state.get("compiled")  # older files do not say
        go_on(state["random"], self.device, self.order)


def _entries(state: Mapping[str, Any] | None) -> dict[str, str]:
    """The keys of a state, each with what must agree of its value.

    What an optimiser remembers of each parameter is left out: a fresh one has none.
    """
    if state is None:
        return {}
    if "param_groups" in state:
        groups = enumerate(state["param_groups"])
        state = {f"{i}.{key}": v for i, group in groups for key, v in group.items()}
    return {key: _kind(value) for key, value in state.items()}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    return f"{len(value)} entries" if isinstance(value, list) else "a value"


def _check(saved: Mapping[str, str], built: Mapping[str, str], what: str) -> None:
    for key in [*built, *saved]:
        expected, found = built.get(key, "nothing"), saved.get(key, "nothing")
        if expected != found:
            raise ValueError(
                f"expected {expected} under {key!r}, got {found} for {what}; build it "
                "as in the run that wrote the checkpoint, or pass another folder"
            )
