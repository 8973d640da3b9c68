"""Hyper-parameters that change during training, such as an EMA momentum, as buffers.

A Python float is a constant of a compiled step; a buffer is read anew at every step.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["complete", "register_varying"]


def register_varying(module: nn.Module, name: str, value: float) -> None:
    """Register a number as a buffer without axes, saved and moved with the module.

    It is in float64, exact also in ``module.double()``. Without axes it does not change
    the dtype of tensors with axes that it multiplies; a tensor without axes it does, so
    there it is converted first. An older `state_dict` may lack it; loading that keeps
    the present number.
    """
    module.register_buffer(name, torch.tensor(float(value), dtype=torch.double))
    vars(module).setdefault("_varying", []).append(name)
    module.register_load_state_dict_pre_hook(_complete)


def complete(objective: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Add to a `state_dict` the numbers that it lacks, from the objective."""
    for prefix, module in objective.named_modules():
        _complete(module, state, f"{prefix}." if prefix else "")


def _complete(
    module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    for name in vars(module).get("_varying", ()):
        state.setdefault(prefix + name, module.get_buffer(name))
