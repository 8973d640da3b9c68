"""The gradient of several processes, which is the mean of theirs."""

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from ..processes import average, collected, number

__all__ = ["Averaged"]


class Averaged:
    """Averages the gradients of an optimiser's parameters over the processes.

    Which of them have one is settled in the first step: those that have one on any of
    the processes. Where they have none it counts as zero from then on.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.used: list[Parameter] | None = None

    def __call__(self) -> None:
        """Do so, if there are several processes.

        Raises:
            RuntimeError: If a parameter has a gradient that had none in the first step.
        """
        if number() == 1:
            return
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        if self.used is None:
            self.used = _used(parameters)
        known = set(map(id, self.used))
        if any(p.grad is not None and id(p) not in known for p in parameters):
            raise RuntimeError(
                "expected a gradient for the same parameters in every step of several "
                "processes, got one that the first step had not; let all parts of the "
                "objective take part in the first step, if with weight zero"
            )
        average([_slope(parameter) for parameter in self.used])


def _used(parameters: list[Parameter]) -> list[Parameter]:
    here = torch.tensor([p.grad is not None for p in parameters])
    anywhere = collected(here).any(0).tolist()
    return [p for p, used in zip(parameters, anywhere, strict=True) if used]


def _slope(parameter: Parameter) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
