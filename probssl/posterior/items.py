"""Evaluation in parts: mode, dtype and device of an objective, memory of draws."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from ..arguments import whole
from ..terms import Batch

__all__ = ["BAR_DELAY", "chunks", "evaluating", "in_parts"]

BAR_DELAY = 3.0  # seconds before a progress bar shows
DECODED_AT_ONCE = 2048  # representations


@contextmanager
def evaluating(objective: nn.Module) -> Iterator[Tensor | None]:
    """Evaluation mode without gradients; the modes of all modules are restored.

    Yields a tensor with the device and dtype of the objective, if it has any.
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
    """All row numbers, in parts of a batch size; a progress bar shows after 3 s."""
    parts = torch.arange(items).split(whole("batch_size", size))
    yield from tqdm(parts, title, delay=BAR_DELAY, unit="batch")


def chunks(draws: int, batch: Batch) -> list[int]:
    """Sizes of parts of the draws, small enough for decoding to fit into memory."""
    most = max(1, DECODED_AT_ONCE // math.prod(batch.shape))
    return [min(most, draws - start) for start in range(0, draws, most)]
