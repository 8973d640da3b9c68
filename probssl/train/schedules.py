"""Schedules: numbers in buffers of an objective that change as the run goes on.

Between two steps a buffer may be written in place, by a schedule or in `on_step`; a
step that was compiled reads it anew. What is not in a buffer, a compiled step keeps.
"""

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

__all__ = ["Schedule", "Schedules", "cosine", "geometric", "linear"]

Schedule = Callable[[float], float]  # of the share of the run that is done


class Schedules:
    """Sets buffers of an objective to functions of the share of the run that is done.

    Arguments:
        schedules: A function t -> number for each name of a buffer, as
            ``dict(objective.named_buffers())`` has them, such as ``teacher.momentum``.
            t is 0 before the first step, and would be 1 after the last.
        total: The steps of the whole run; None if that is not known.

    Raises:
        TypeError: If a function gives anything but a number.
        ValueError: If there is no such buffer, it does not hold one real number, a
            function does not give a finite one, or `total` is needed and not known.
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
        for name, schedule in self.schedules.items():
            _check_buffer(objective, name)
            for share in (0.0, 1.0):  # before any work is lost
                _number(name, schedule, share)

    @torch.no_grad()
    def set(self, step: int) -> None:
        """Write the buffers in place for the step that comes after so many."""
        for name, schedule in self.schedules.items():
            # Looked up each time: a module that is moved has other tensors.
            buffer = self.objective.get_buffer(name)
            buffer.fill_(_number(name, schedule, min(step / self.total, 1.0)))


def cosine(start: float, end: float) -> Schedule:
    r"""Half a wave of a cosine from one number to another.

    .. math:: \text{end} + (\text{start} - \text{end}) \, \frac{1 + \cos \pi t}{2}

    Example:
        >>> rise = cosine(0.996, 1.0)  # of BYOL's momentum
        >>> rise(0.0), rise(1.0)
        (0.996, 1.0)
    """
    return lambda share: _between(start, end, (1 - math.cos(math.pi * share)) / 2)


def linear(start: float, end: float, until: float = 1.0) -> Schedule:
    r"""A straight line from one number to another, which is then kept.

    .. math:: \text{start} + (\text{end} - \text{start}) \, \min(t / \text{until}, 1)

    Arguments:
        until: The share of the run where the end is reached.

    Raises:
        ValueError: If it is not above 0, and at most 1.

    Example:
        >>> warm_up = linear(0.0, 1.0, until=0.25)
        >>> warm_up(0.125), warm_up(0.5)
        (0.5, 1.0)
    """
    if not 0 < until <= 1:
        raise ValueError(
            f"expected until above 0 and at most 1, got {until}; it is the share of "
            "the run where the end is reached"
        )
    return lambda share: _between(start, end, min(share / until, 1.0))


def geometric(start: float, end: float) -> Schedule:
    r"""From one positive number to another by equal factors in equal times.

    .. math:: \text{start}^{1 - t} \, \text{end}^t

    Raises:
        ValueError: If one of them is not a positive finite number.

    Example:
        >>> rise = geometric(1e-4, 1e-2)
        >>> rise(0.0), round(rise(0.5), 12), rise(1.0)
        (0.0001, 0.001, 0.01)
    """
    if not (0 < start < math.inf and 0 < end < math.inf):
        raise ValueError(
            f"expected positive finite numbers, got {start} and {end}; to start at "
            "zero take linear(0.0, end)"
        )
    return lambda share: start ** (1 - share) * end**share


def _between(start: float, end: float, weight: float) -> float:
    return (1 - weight) * start + weight * end  # exact at both ends


def _check_buffer(objective: nn.Module, name: str) -> None:
    # Under all names that lead to it: parts of an objective may share a module.
    buffers = dict(objective.named_buffers(remove_duplicate=False))
    fit = [key for key, buffer in buffers.items() if _is_number(buffer)]
    if name not in buffers:
        raise ValueError(
            f"expected schedules for buffers of {type(objective).__name__}, got "
            f"{name!r}; those of one number are {fit}"
        )
    if name not in fit:
        buffer = buffers[name]
        raise ValueError(
            f"expected a buffer of one real number for a schedule, got {name!r} of "
            f"shape {tuple(buffer.shape)} and {buffer.dtype}; there are {fit}"
        )


def _is_number(buffer: Tensor) -> bool:
    return buffer.ndim == 0 and buffer.is_floating_point()


def _number(name: str, schedule: Schedule, share: float) -> float:
    """What a schedule gives, checked; a tensor would have to be waited for."""
    number = schedule(share)
    if not isinstance(number, Real):
        raise TypeError(
            f"expected the schedule of {name!r} to give a number, got "
            f"{type(number).__name__} at t = {share:g}; return a Python float"
        )
    if not math.isfinite(number):
        raise ValueError(
            f"expected the schedule of {name!r} to give finite numbers, got {number} "
            f"at t = {share:g}; t goes from 0 to 1"
        )
    return float(number)
