"""Numbers that may change while an objective is trained, such as a momentum.

A step that was compiled keeps a Python float for good, and reads a buffer anew.
"""

from collections.abc import MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["register_varying"]


def register_varying(module: nn.Module, name: str, value: float) -> None:
    """Keep a number in a buffer of one element, under its name.

    It is saved with the module, and moved and converted with it. A `state_dict` from
    before it was a buffer may lack it, and then leaves the present number as it is.
    """
    module.register_buffer(name, torch.tensor(float(value)))
    module.register_load_state_dict_pre_hook(partial(_complete, name))


def _complete(
    name: str,
    module: nn.Module,
    state: MutableMapping[str, Tensor],
    prefix: str,
    *_: Any,
) -> None:
    state.setdefault(prefix + name, getattr(module, name))
