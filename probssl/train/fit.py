"""Fitting: steps with all that a notebook or a long run wants around them."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Generator, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from ..terms import Batch, Terms
from .batches import Data, Items, Loaded, Target, Views, grouped, source
from .checkpoint import Checkpoints
from .history import History, Row, Tally
from .randomness import same_randomness
from .run import Run
from .steps import Step
from .stopping import EarlyStopping

__all__ = ["fit"]

logger = logging.getLogger(__name__)

PERIOD = 0.25  # seconds between two looks at the device
