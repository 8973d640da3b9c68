"""All that a training run carries from one epoch to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from .history import History
from .randomness import random_state, set_random_state
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

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, with the states of all random generators."""
        step = self.step
        return {
            "model": step.objective.state_dict(),
            "optimizer": step.optimizer.state_dict(),
            "scheduler": step.scheduler and step.scheduler.state_dict(),
            "steps": step.count,
            "stopping": self.stopping.state(),
            "history": self.history.rows,
            "random": random_state(self.device),
            "order": self.order.get_state(),
        }

    def load(self, state: Mapping[str, Any], origin: str) -> None:
        """Go on from what `state` gave, as if nothing had been in between.

        Raises:
            ValueError: If keys or shapes differ, with the first that does and the origin.
        """
        step, current = self.step, self.state()
        _check(state["model"], current["model"], f"the objective in {origin}")
        saved, groups = (s["optimizer"]["param_groups"] for s in (state, current))
        for one, other in zip(saved, groups, strict=False):
            _check(one, other, f"the optimiser in {origin}")
        schedules = (s["scheduler"] or {} for s in (state, current))
        _check(*schedules, f"the scheduler in {origin}")
        step.objective.load_state_dict(state["model"])
        step.optimizer.load_state_dict(state["optimizer"])
        _follow_parameters(step.optimizer)
        if step.scheduler is not None:
            step.scheduler.load_state_dict(state["scheduler"])
        step.count, self.history = state["steps"], History(state["history"])
        self.stopping.load(state["stopping"])
        set_random_state(state["random"], self.device)
        self.order.set_state(state["order"])


def _check(saved: Mapping[str, Any], current: Mapping[str, Any], what: str) -> None:
    for key in [*current, *saved]:
        found = [
            "nothing"
            if key not in state
            else f"shape {tuple(state[key].shape)}"
            if isinstance(state[key], Tensor)
            else "a value"
            for state in (current, saved)
        ]
        if found[0] != found[1]:
            raise ValueError(
                f"expected {found[0]} under {key!r}, got {found[1]} for {what}; "
                "build both as in the run that wrote it, or pass another folder"
            )


def _follow_parameters(optimizer: Optimizer) -> None:
    # Fused updates take the memory in its own order, so averages of a parameter must lie
    # as it does (channels last, say), which files do not keep.
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype)
                state[name].copy_(value)
