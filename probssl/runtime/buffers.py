"""Buffers of numbers that change during training, and of those known from `fit` on.

A Python float, such as an EMA momentum, is a constant of a compiled step; a buffer is
read anew at every step.
"""

from collections.abc import Callable, Mapping, MutableMapping
from functools import cache
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

__all__ = ["complete", "make_room", "note_counted", "register_unknown"]
__all__ += ["copy_matching", "register_varying", "storable", "unsaved", "unshare"]
__all__ += ["was_counted"]


def register_varying(
    module: nn.Module, name: str, value: Any, check: Callable[[str, Any], float]
) -> None:
    """Register a number as a buffer without axes, saved and moved with the module.

    It is in float64, exact also in ``module.double()``. Without axes it does not change
    the dtype of tensors with axes that it multiplies; a tensor without axes it does, so
    there it is converted first. An older `state_dict` may lack it; loading that keeps
    the present number.

    Arguments:
        check: Takes the name and a number, and returns it or raises an error; schedules
            call it as well.
    """
    number = check(name, value)
    module.register_buffer(name, torch.tensor(number, dtype=torch.double))
    vars(module).setdefault("_varying", {})[name] = check
    module.register_load_state_dict_pre_hook(_complete)


def register_unknown(module: nn.Module, name: str) -> None:
    """Register a buffer that is None until `fit` sets it, such as the population.

    A `state_dict` of before `fit` lacks it; loading that keeps the present tensor. One
    of after `fit` sets it.
    """
    module.register_buffer(name, None)
    vars(module).setdefault("_unknown", []).append(name)
    module.register_load_state_dict_pre_hook(_make_room)


def _make_room(
    module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    for name in vars(module)["_unknown"]:
        present, saved = module._buffers[name], state.get(prefix + name)
        if present is not None:
            state.setdefault(prefix + name, present)
        elif saved is not None:
            device = next(module.parameters(), saved).device
            module._buffers[name] = torch.zeros_like(saved, device=device)
            _counted(module)[name] = float(saved)


def note_counted(module: nn.Module, name: str) -> None:
    """Note that a buffer has the number that `fit` counted, or none."""
    value = module._buffers[name]
    _counted(module)[name] = None if value is None else float(value)


def was_counted(module: nn.Module, name: str) -> bool:
    """Whether a buffer is as `fit` left it; otherwise the user has set it."""
    value = module._buffers[name]
    return value is None or _counted(module).get(name) == float(value)


def _counted(module: nn.Module) -> dict[str, float | None]:
    return vars(module).setdefault("_counted", {})


def make_room(objective: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Give buffers that are None a tensor where a `state_dict` has one."""
    for prefix, module in objective.named_modules():
        for name, buffer in list(module._buffers.items()):
            saved = state.get(f"{prefix}.{name}".lstrip("."))
            if buffer is None and saved is not None:
                device = next(objective.parameters(), saved).device
                module._buffers[name] = torch.zeros_like(saved, device=device)


def complete(objective: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Add to a `state_dict` the numbers that it lacks, from the objective."""
    for prefix, module in objective.named_modules():
        _complete(module, state, f"{prefix}." if prefix else "")


def _complete(
    module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    for name in vars(module).get("_varying", ()):
        state.setdefault(prefix + name, module.get_buffer(name))


def unsaved(objective: nn.Module) -> dict[str, Tensor]:
    """The buffers that the `state_dict` leaves out (``persistent=False``), by name."""
    known = objective.state_dict(keep_vars=True).keys()
    return {k: x for k, x in objective.named_buffers() if k not in known}


@torch.no_grad()
def copy_matching(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Write numbers of the same name and shape into tensors."""
    for name, x in tensors.items():
        if name in state and state[name].shape == x.shape:
            x.copy_(state[name])


def unshare(objective: nn.Module) -> None:
    """Give a tensor whose numbers share memory, as those of `expand` do, its own.

    Such a tensor cannot be written in place, hence not loaded.
    """
    made: dict[int, Tensor] = {}  # a tensor under two names remains one
    for module in objective.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and _shares(buffer):
                module._buffers[name] = made.setdefault(id(buffer), _dense(buffer))
        for parameter in module._parameters.values():
            if parameter is not None and _shares(parameter):
                parameter.data = _dense(parameter.data)


def storable(name: str, tensor: Tensor) -> Tensor:
    """A dense copy on the CPU, as safetensors takes it.

    Raises:
        ValueError: If safetensors has no such tensors.
    """
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    if tensor.is_meta:
        raise ValueError(
            f"expected tensors with numbers, got one without (meta) at {name}; build "
            "the objective on a device that holds them"
        )
    if not dense or not _has_type(tensor.dtype):
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise ValueError(
            "expected dense tensors of a type that safetensors can hold, got "
            f"{str(kind).replace('torch.', '')} at {name}; keep a sparse one as its "
            "indices and values, and complex128 as torch.view_as_real(tensor)"
        )
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@cache
def _has_type(dtype: torch.dtype) -> bool:
    try:
        safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError):
        return False
    return True


def _dense(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _shares(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided:
        return False
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes)
