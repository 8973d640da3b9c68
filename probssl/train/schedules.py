"""Schedules of hyper-parameters: buffers of an objective that change during a run.

A schedule or `on_step` writes a buffer in place between two steps, and a compiled step
reads it anew. A number in a plain attribute is a constant of a compiled step.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn

from ..arguments import choice, positive, typed
from ..runtime.copies import of_library

__all__ = ["Schedule", "Schedules", "cosine", "geometric", "linear"]

Schedule = Callable[[float], float]  # of the finished share of the run, 0 to 1


class Schedules:
    """Sets buffers of an objective to functions of the finished share of the run.

    Arguments:
        schedules: For each name of a buffer, as in ``dict(objective.named_buffers())``,
            such as ``teacher.momentum``, a function t -> number. t is 0 before the
            first step, and would be 1 after the last. A fixed temperature, whose
            buffer stands within the concentration 1/temperature, is ``temperature``.
        total: The number of steps of the run; None if it is unknown.
    """

    def __init__(
        self,
        objective: nn.Module,
        schedules: Mapping[str, Schedule] | None,
        total: int | None,
    ) -> None:
        self.objective, self.schedules = objective, dict(schedules or {})
        self.total = math.inf if total is None else total
        if self.schedules and total is None:
            raise ValueError(
                "expected data of known length for schedules, got a DataLoader without "
                "one; give its data set a length, or write the buffers in on_step"
            )
        # With duplicates: parts of an objective may share a module under two names.
        buffers = objective.named_buffers(remove_duplicate=False)
        fit = [k for k, b in buffers if b.ndim == 0 and b.is_floating_point()]
        self.buffers = _named(objective, fit)
        hint = (
            "a schedule writes a buffer that is one real number; what is learned or "
            "random has none: give the objective a number"
        )
        for name, schedule in self.schedules.items():
            choice("schedules", name, tuple(self.buffers), hint)
            for share in (0.0, 1.0):  # errors before the first step
                self._number(name, schedule, share)

    @torch.no_grad()
    def set(self, step: int) -> None:
        """Write the buffers in place for the step after so many steps."""
        for name, schedule in self.schedules.items():
            # Looked up each time: a module that is moved has other tensors.
            buffer = self.objective.get_buffer(self.buffers[name])
            share = min(step / self.total, 1.0)
            buffer.fill_(self._number(name, schedule, share))

    def _number(self, name: str, schedule: Schedule, share: float) -> float:
        """The number of a schedule, checked also for the hyper-parameter that it is."""
        number = _number(name, schedule, share)
        place, _, leaf = self.buffers[name].rpartition(".")
        owner: Any = self.objective.get_submodule(place)
        if (check := vars(owner).get("_varying", {}).get(leaf)) is not None:
            check(f"the schedule of {name!r} at t = {share:g}", number)
        if hasattr(owner, "allows") and not owner.allows(number):
            raise ValueError(
                f"expected the schedule of {name!r} to return a {owner.kind}, as "
                f"{owner.name} is, got {number} at t = {share:g}; t goes from 0 to 1"
            )
        return number


@typed
def cosine(start: float, end: float) -> Schedule:
    r"""A schedule along half a period of a cosine (cosine annealing).

    .. math:: \text{end} + (\text{start} - \text{end}) \, \frac{1 + \cos \pi t}{2}

    Example:
        >>> rise = cosine(0.996, 1.0)  # of BYOL's momentum
        >>> rise(0.0), rise(1.0)
        (0.996, 1.0)
    """
    return lambda share: _between(start, end, (1 - math.cos(math.pi * share)) / 2)


@typed
def linear(start: float, end: float, until: float = 1.0) -> Schedule:
    r"""A schedule along a straight line (warm-up), constant after its end.

    .. math:: \text{start} + (\text{end} - \text{start}) \, \min(t / \text{until}, 1)

    Arguments:
        until: The share of the run at which the end is reached.

    Raises:
        ValueError: If `until` is not above 0 and at most 1.

    Example:
        >>> warm_up = linear(0.0, 1.0, until=0.25)
        >>> warm_up(0.125), warm_up(0.5)
        (0.5, 1.0)
    """
    if not 0 < until <= 1:
        raise ValueError(
            f"expected until above 0 and at most 1, got {until}; it is the share of "
            "the run at which the end is reached"
        )
    return lambda share: _between(start, end, min(share / until, 1.0))


@typed
def geometric(start: float, end: float) -> Schedule:
    r"""A schedule by equal factors in equal times (exponential decay or growth).

    .. math:: \text{start}^{1 - t} \, \text{end}^t

    Raises:
        ValueError: If an end is not a positive finite number.

    Example:
        >>> rise = geometric(1e-4, 1e-2)
        >>> rise(0.0), round(rise(0.5), 12), rise(1.0)
        (0.0001, 0.001, 0.01)
    """
    positive("start", start, "to start at zero use linear(0.0, end)")
    positive("end", end, "to end at zero use linear(start, 0.0)")
    return lambda share: start ** (1 - share) * end**share


def _named(objective: nn.Module, buffers: list[str]) -> dict[str, str]:
    """The names by which buffers are scheduled, each with that of its buffer.

    A hyper-parameter of the class `Reciprocal` holds the reciprocal of what its place
    in the objective is called: its buffer has the name of the number that it holds,
    behind its path if others, or something else of the objective, have that name.
    """
    parts = dict(objective.named_modules(remove_duplicate=False))
    owners = {name: parts[name.rpartition(".")[0]] for name in buffers}
    for name, owner in list(owners.items()):
        leaf, packaged = name.rpartition(".")[2], of_library(type(owner).__module__)
        hidden = packaged and leaf in owner._non_persistent_buffers_set  # such as a one
        if hidden or leaf in vars(owner).get("_unknown", ()):  # numbers that fit sets
            del owners[name]
    held = {n: o.name for n, o in owners.items() if getattr(o, "reciprocal", False)}
    found = {}
    for name in owners:
        shown, inner = held.get(name, name), name.count(".") > 2
        taken = [*held.values(), *owners].count(shown) > 1
        if name in held and (taken or (inner and hasattr(objective, shown))):
            shown = f"{name.rsplit('.', 2)[0]}.{shown}"
        found[shown] = name
    return found


def _between(start: float, end: float, weight: float) -> float:
    return (1 - weight) * start + weight * end  # exact at both ends


def _number(name: str, schedule: Schedule, share: float) -> float:
    """The number of a schedule, checked; a tensor would synchronise with the host."""
    number = schedule(share)
    if not isinstance(number, Real):
        raise TypeError(
            f"expected the schedule of {name!r} to return a number, got "
            f"{type(number).__name__} at t = {share:g}; return a Python float"
        )
    if not math.isfinite(number):
        raise ValueError(
            f"expected the schedule of {name!r} to return finite numbers, got {number} "
            f"at t = {share:g}; t goes from 0 to 1"
        )
    return float(number)
