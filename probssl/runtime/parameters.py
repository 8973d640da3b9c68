"""Parameters of a plain module in Pyro's parameter store, for tools that train them."""

import pyro
from pyro.params import param_with_module_name
from pyro.params.param_store import StateDict
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn
from torch.distributions import constraints

__all__ = ["register"]


def register(name: str, module: nn.Module) -> None:
    """Make parameters known to a tool that collects them, such as `pyro.infer.SVI`.

    As `pyro.module`, for the trainable parameters and only where a handler asks for
    parameters alone: training by `fit` leaves the store empty. The store holds the
    parameters themselves, under names such as ``joint$$$prior.scale.log``.

    Raises:
        ValueError: If the store has another parameter of that name.
    """
    if not any(getattr(handler, "param_only", False) for handler in _PYRO_STACK):
        return
    store = pyro.get_param_store()
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        full = param_with_module_name(name, key)
        if full not in store:  # not store[full] = …, which copies some
            real: StateDict = {
                "params": {full: parameter},
                "constraints": {full: constraints.real},
            }
            store.set_state(real)
        if pyro.param(full) is not parameter:
            raise ValueError(
                f"expected {full!r} in Pyro's parameter store to be the parameter of "
                f"this {type(module).__name__}, got that of another; call "
                "pyro.clear_param_store() before training a new one"
            )
