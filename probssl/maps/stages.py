"""What a stage of training has around it: a learning rate, frozen parts, a seed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["alone", "seeded", "warm_up_and_cosine"]

WARM_UP = 0.1  # the share of the steps


def warm_up_and_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """The learning rate up to its highest in a straight line, and down by a cosine."""
    rise = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        share = max(0, step - rise) / max(1, steps - rise)
        return min((step + 1) / rise, (1 + math.cos(math.pi * min(share, 1))) / 2)

    return LambdaLR(optimizer, factor)


@contextmanager
def alone(objective: nn.Module, part: nn.Module) -> Iterator[None]:
    """Freeze all but a part, for a while."""
    thawed = [p for p in objective.parameters() if p.requires_grad]
    objective.requires_grad_(False)
    part.requires_grad_(True)
    yield
    for parameter in thawed:
        parameter.requires_grad_(True)


@contextmanager
def seeded(random_state: int | np.random.RandomState | None) -> Iterator[None]:
    """Draw from a seed for a while, and go on as before; None changes nothing."""
    if random_state is None:
        yield
        return
    seed = check_random_state(random_state).randint(2**31 - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
