"""An objective in evaluation mode, and what it gives for items, part by part."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from ..terms import Batch

__all__ = ["PATIENCE", "Array", "array", "chunks", "evaluating", "in_parts"]

Array = np.ndarray

PATIENCE = 3.0  # seconds before a progress bar shows
AT_ONCE = 2048  # representations that are decoded at once


@contextmanager
def evaluating(objective: nn.Module) -> Iterator[Tensor | None]:
    """Evaluation mode without gradients; afterwards the mode that each module had.

    Gives a tensor of the device and the precision of the objective, if it has any.
    """
    modes = [(module, module.training) for module in objective.modules()]
    numbers = chain(objective.parameters(), objective.buffers())
    like = next((t for t in numbers if t.is_floating_point()), None)
    objective.eval()
    try:
        with torch.no_grad():
            yield like
    finally:
        for module, mode in modes:
            module.training = mode


def in_parts(items: int, size: int, title: str) -> Iterator[Int[Tensor, " batch"]]:
    """All row numbers, in parts; with a progress bar if it takes a while."""
    if size < 1:
        raise ValueError(f"expected batch_size of at least 1, got {size}; raise it")
    yield from tqdm(
        torch.arange(items).split(size), title, delay=PATIENCE, unit="batch"
    )


def array(values: Tensor) -> Array:
    """A tensor for NumPy, which does not know bfloat16."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def chunks(draws: int, batch: Batch) -> list[int]:
    """Parts of a number of draws, so small that their decoding fits the memory."""
    most = max(1, AT_ONCE // math.prod(batch.shape))
    return [min(most, draws - start) for start in range(0, draws, most)]
