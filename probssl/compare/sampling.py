"""Views of all items of a split, and randomness that is given back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ..arrays import left_alone
from ..data import Split
from ..data.memory import as_float
from ..runtime.randomness import restored_randomness
from ..terms import Batch
from .checks import check_views

__all__ = ["Sampler", "sampled", "seeded", "views_of"]

Sampler = Callable[[Tensor], Tensor | Batch]


def sampled(
    sampler: Sampler, split: Split, seed: int
) -> Float[Tensor, "n view *event"]:
    """Views of all items of a split, determined by the seed."""
    with seeded(seed, torch.device("cpu")):
        return views_of(sampler, split)


def views_of(sampler: Sampler, split: Split) -> Float[Tensor, "n view *event"]:
    """Views of all items of a split."""
    parts = []
    for x in as_float(split).split(1024):
        copy = x.clone()  # the data of the user stay, also if this is refused
        with left_alone("views", copy):
            parts.append(check_views(sampler(copy)))
    return torch.cat(parts)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within the context, on the device too; restore its state after it."""
    forked = [device] if device.type == "cuda" else []
    with restored_randomness(forked):
        torch.manual_seed(seed)
        yield
