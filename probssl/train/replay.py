"""Whole steps on a CUDA device, recorded once and replayed as one graph.

A step is hundreds of kernels, and Python takes longer to launch them than a GPU to run
them. Recorded are the views, the gradient, clipping and the update; what comes with
each step, the loads, is copied to where the record reads it. What a schedule writes
lies in tensors, and random numbers go on, as torch sees to it.
"""

import logging
import warnings
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_map_only

from ..processes import number
from ..terms import Terms
from .compiled import Busy, Compiled
from .graph import plain
from .optimizer import make_capturable
from .prepare import device_of
from .steps import Step

__all__ = ["Replay", "accelerate"]

logger = logging.getLogger(__name__)

WARM = 3  # steps before a record, in which libraries choose and allocate


def accelerate(step: Step, busy: Busy = nullcontext) -> None:
    """Compile the gradient of a step, and on a CUDA device replay it as a whole.

    Arguments:
        busy: What is entered, with a text that says so, while it compiles.
    """
    compiled = Compiled(busy)
    step.add_gradient = compiled
    step.watchers.append(compiled.look)
    device = device_of(step.objective)
    if device.type != "cuda":
        return
    obstacle = _obstacle(step.optimizer)
    if obstacle is not None:
        logger.warning("steps are compiled, but not replayed: %s", obstacle)
        return
    make_capturable(step.optimizer, device)
    step.run = replay = Replay(step, device)
    step.watchers.append(replay.look)


class Replay:
    """What `Step.ascend` does, from a record of it.

    The first steps with loads of a kind are made as they are, on a stream of their own;
    the next one is recorded. If that fails, a warning says why, once, and steps are
    made as they are.

    Arguments:
        step: Its optimiser is `capturable`, with its rates in tensors.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step, self.device = step, device
        self.records: dict[Hashable, _Record] = {}
        self.made: dict[Hashable, int] = {}
        self.stream = torch.cuda.Stream(device)
        self.known: dict[Hashable, int] = {}  # long keys, each of which gets a number
        self.number: int | None = None
        self.broken = False

    def look(self) -> None:
        """Take note that the objective or the optimiser may have been changed."""
        self.number = None

    def __call__(self, loads: Sequence[Any]) -> Terms:
        with torch.cuda.device(self.device):
            return self._step(loads)

    def _step(self, loads: Sequence[Any]) -> Terms:
        if self.broken:
            return self.step.ascend(loads)
        if self.number is None:
            settings = plain(self.step.objective), _settings(self.step.optimizer)
            self.number = self.known.setdefault(settings, len(self.known))
        key = self.number, _kinds(loads)
        if key not in self.records and self.made.get(key, 0) < WARM:
            self.made[key] = self.made.get(key, 0) + 1
            return self._warm(loads)
        if key not in self.records:
            try:
                self.records[key] = self._record(loads)
            except RuntimeError as error:
                self.broken = True
                logger.warning("steps are compiled, but not replayed: %s", error)
                return self.step.ascend(loads)
        return self.records[key].replay(self.step, loads)

    def _warm(self, loads: Sequence[Any]) -> Terms:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # That a capturable optimiser makes a step of its own, as it now has to.
            warnings.filterwarnings("ignore", "This instance was constructed")
            terms = self.step.ascend(loads)
        torch.cuda.current_stream().wait_stream(self.stream)
        return terms

    def _record(self, loads: Sequence[Any]) -> "_Record":
        held = tree_map_only(Tensor, torch.clone, list(loads))
        self.step.optimizer.zero_grad()  # gradients are to lie in the graph's memory
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile, for the loads to come.
        with torch.cuda.graph(
            graph, stream=self.stream, capture_error_mode="thread_local"
        ):
            terms = self.step.ascend(held)
            tensors = [term for term in terms if isinstance(term, Tensor)]
            values = torch.stack(tensors)
        numbers = tuple(None if isinstance(t, Tensor) else t for t in terms)
        return _Record(graph, held, values, numbers, self.step.items)


class _Record(NamedTuple):
    graph: "torch.cuda.CUDAGraph"
    held: list[Any]  # the loads that the graph reads
    values: Tensor
    numbers: tuple[float | None, ...]  # the terms, None for those among the values
    items: int

    def replay(self, step: Step, loads: Sequence[Any]) -> Terms:
        for held, load in zip(*map(_tensors, (self.held, loads)), strict=True):
            held.copy_(load, non_blocking=True)
        self.graph.replay()
        step.items = self.items
        values = iter(self.values.clone().unbind())  # the next step writes over them
        return Terms(*(next(values) if t is None else t for t in self.numbers))


def _obstacle(optimizer: Optimizer) -> str | None:
    """Why steps cannot be recorded, if they cannot."""
    if number() > 1:
        return "several processes exchange their gradients between the graphs"
    if not all("capturable" in group for group in optimizer.param_groups):
        return (
            f"{type(optimizer).__name__} cannot be captured in a graph; take one with "
            "the argument capturable, such as torch.optim.Adam"
        )
    return None


def _settings(optimizer: Optimizer) -> Hashable:
    """The numbers of an optimiser, which a record freezes."""
    return tuple(
        (name, value)
        for group in optimizer.param_groups
        for name, value in group.items()
        if isinstance(value, bool | int | float | str | tuple)
    )


def _tensors(loads: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(list(loads))[0] if isinstance(leaf, Tensor)]


def _kinds(loads: Sequence[Any]) -> Hashable:
    leaves, tree = tree_flatten(list(loads))
    return tree, *(
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in leaves
    )
