"""What is asked of Inductor, and what is kept from it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

__all__ = ["optimised"]


def optimised(
    graph: torch.fx.GraphModule, values: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """A graph of tensors as compiled code, which draws the random numbers it draws."""
    from torch import _inductor  # takes a second, which not every run needs

    inputs: list[Any] = list(values)
    with _sums_by_index_as_they_are(values[0].device):
        return _inductor.compile(graph, inputs, options={"fallback_random": True})


@contextmanager
def _sums_by_index_as_they_are(device: torch.device) -> Iterator[None]:
    """Leave `index_put` with accumulation, the way back of z[:, index], to ATen.

    In tiles of two dimensions Inductor's C++ of torch 2.13 adds the tile's rows to the
    index twice, and writes beyond the memory (`atomic_add_vec`, more than one thread):
    issue 191837 of pytorch/pytorch.
    """
    if device.type != "cpu":
        yield
        return
    memory: Any = deterministic  # a module with a property
    mode, fill = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill
