r"""A copy of a network that follows it slowly, for objectives with a moving target.

.. math:: \theta' \leftarrow m \, \theta' + (1 - m) \, \theta
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.buffers import register_varying

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """A frozen copy of a network, whose parameters are a moving average of its.

    It moves when `follow` is called in training mode, at the start of a step; not in
    evaluation. Its buffers, such as the moments of batch norm, are its own.

    Arguments:
        network: What is copied.
        momentum: The share m of the copy that stays in a step, from 0 to 1. It is a
            buffer, which a schedule may set; float32 holds m = 0.996 to 3e-8, and so
            1 - m to 8e-6 of itself.

    Raises:
        ValueError: If the momentum is not from 0 to 1.
    """

    momentum: Tensor

    def __init__(self, network: nn.Module, momentum: float = 0.99) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(
                f"expected momentum from 0 to 1, got {momentum}; 0.99 follows within a "
                "hundred steps"
            )
        self.network = deepcopy(network).requires_grad_(False)
        register_varying(self, "momentum", momentum)

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move towards the network; in evaluation mode stay."""
        if not self.training:
            return
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        for own, leading in pairs:
            own.lerp_(leading.to(own.dtype), (1 - self.momentum).to(own.dtype))

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)
