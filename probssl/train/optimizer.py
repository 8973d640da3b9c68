"""The state of an optimiser, in a form that does not depend on where it runs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["load_optimizer", "make_capturable", "optimizer_state"]


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Its state, with rates as numbers also where they lie in tensors."""
    state = optimizer.state_dict()
    groups = [
        {key: value.item() if _is_rate(value) else value for key, value in each.items()}
        for each in state["param_groups"]
    ]
    return state | {"param_groups": groups}


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state, but keep how it is built for the device: `capturable`, tensors."""
    built = [
        {key: x for key, x in group.items() if key == "capturable" or _is_rate(x)}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, kept in zip(optimizer.param_groups, built, strict=True):
        for key, value in kept.items():
            group[key] = value.fill_(group[key]) if _is_rate(value) else value
    _follow_parameters(optimizer)


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Put in tensors what changes from step to step, for a graph that is replayed."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.as_tensor(
                state["step"], dtype=torch.float32, device=device
            )


def _is_rate(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _follow_parameters(optimizer: Optimizer) -> None:
    # Fused updates take memory in its own order, so the averages of a parameter must
    # lie as it does (channels last, say), which files do not keep.
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype)
                state[name].copy_(value)
