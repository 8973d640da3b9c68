r"""EMA teacher: a momentum encoder, also called target network.

.. math:: \theta' \leftarrow m \, \theta' + (1 - m) \, \theta
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import between
from ..runtime.buffers import register_varying
from ..runtime.copies import copied

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """A frozen copy of a network whose parameters are the EMA of the network's.

    `follow` moves it in training mode and does nothing in evaluation mode. Its buffers,
    such as the moments of batch norm, are its own.

    Arguments:
        network: The network to copy.
        momentum: The share m that stays in a step, from 0 to 1; a buffer, which a
            schedule may set. float32 holds m = 0.996 to 3e-8, and so 1 - m to a
            relative 8e-6.

    Raises:
        ValueError: If the momentum is out of range, or the network cannot be copied.
    """

    momentum: Tensor

    def __init__(self, network: nn.Module, momentum: float = 0.99) -> None:
        super().__init__()
        hint = "0.99 averages over about 100 steps"
        check = partial(between, low=0, high=1, hint=hint)
        register_varying(self, "momentum", momentum, check)
        try:
            self.network = copied(network).requires_grad_(False)
        except RuntimeError as error:
            raise ValueError(
                "expected a network that can be copied, for the teacher, got "
                f"{type(network).__name__} with a part that cannot: compile with "
                "torch.compile in place of torch.jit, and take "
                "nn.utils.parametrizations.weight_norm in place of nn.utils.weight_norm"
            ) from error

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Update the average with the network's parameters, in training mode."""
        if not self.training:
            return
        averages, parameters = self.network.parameters(), network.parameters()
        try:
            for average, new in zip(averages, parameters, strict=True):
                moved = (1 - self.momentum).to(average.dtype)
                average.lerp_(new.to(average.dtype), moved)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                "expected a network with the parameters of the teacher's copy, got "
                f"others ({error}); build the objective anew with this encoder"
            ) from error

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)
