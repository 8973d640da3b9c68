"""Numbers that may change while an objective is trained, such as a momentum.

A step that was compiled keeps a Python float for good, and reads a buffer anew.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["complete", "register_varying"]


def register_varying(module: nn.Module, name: str, value: float) -> None:
    """Keep a number in a buffer of one element, under its name.

    It is saved with the module, and moved and converted with it. A `state_dict` from
    before it was a buffer may lack it, and then leaves the present number as it is.
    """
    module.register_buffer(name, torch.tensor(float(value)))
    vars(module).setdefault("_varying", []).append(name)
    module.register_load_state_dict_pre_hook(_complete)


def complete(objective: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Give a `state_dict` the numbers that it lacks, as they are in the objective."""
    for prefix, module in objective.named_modules():
        _complete(module, state, f"{prefix}." if prefix else "")


def _complete(
    module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    for name in vars(module).get("_varying", ()):
        state.setdefault(prefix + name, module.get_buffer(name))
