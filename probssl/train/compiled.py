"""Compiled gradients: when it pays, for which batches, and what if it cannot be."""

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only

from ..runtime.distributed import world_size
from ..terms import Batch, Terms
from .graph import Graph, Tensors, compiled, is_plain, plain
from .prepare import device_of, make_capturable
from .steps import Step, add_gradient

__all__ = [
    "Busy",
    "Compiled",
    "Replay",
    "accelerate",
    "check_compile",
    "worth_compiling",
]


Busy = Callable[[str], AbstractContextManager[Any]]

logger = logging.getLogger(__name__)

MANY = 10_000  # steps, in which a compilation pays
SHAPES = 8  # of batches, each of which takes a compilation


def check_compile(compile: bool | str | None) -> None:
    """Raise a ValueError unless it is a truth value or "auto"."""
    if compile not in (True, False, None, "auto"):
        raise ValueError(
            f"expected compile to be True, False or 'auto', got {compile!r}; 'auto' "
            f"compiles runs of at least {MANY:,} steps"
        )


def worth_compiling(
    compile: bool | str | None, steps: int | None, before: bool | None = None
) -> bool:
    """Whether to compile a run of so many steps.

    Arguments:
        before: What was decided where the run was begun.
    """
    if compile != "auto":
        return bool(compile)
    return (steps or 0) >= MANY if before is None else before


class Compiled:
    """What `add_gradient` does, compiled for each shape of batch that comes.

    A graph is compared with the objective, on copies, when it is made: terms, gradient
    and what `forward` writes. Random numbers are drawn as the objective does it, and
    from the same generators. If there can be no graph, a warning says why, once, and
    the objective is called as it is.

    Arguments:
        busy: What is entered, with a text that says so, while it compiles.
    """

    def __init__(self, busy: Busy = nullcontext) -> None:
        self.busy = busy
        self.reason: str | None = None
        self.graphs: dict[Hashable, Graph] = {}
        self.tensors: Tensors | None = None
        self.known: dict[Hashable, int] = {}  # long keys, each of which gets a number

    def look(self) -> None:
        """Take note that anything in the objective may have been changed."""
        self.tensors = None

    def __call__(self, objective: nn.Module, batch: Batch, share: float = 1.0) -> Terms:
        if self.reason is not None:
            return add_gradient(objective, batch, share)
        if self.tensors is None:
            self.tensors = Tensors.of(objective)
            self.number = self.known.setdefault(self.tensors.key, len(self.known))
        leaves, tree = tree_flatten(batch)
        leaves = [x.contiguous() if isinstance(x, Tensor) else x for x in leaves]
        key = (self.number, tree, *map(_kind, leaves))
        if key not in self.graphs:
            try:
                with self.busy("compiling"):
                    self._add(key, objective, leaves, tree)
            except Exception as error:
                self._give_up(objective, error)
                return add_gradient(objective, batch, share)
        return self.graphs[key].add(self.tensors, leaves, share)

    def _add(
        self, key: Hashable, objective: nn.Module, leaves: list[Any], tree: TreeSpec
    ) -> None:
        for part in leaves:
            if not isinstance(part, Tensor) and not is_plain(part):
                raise TypeError(
                    "a batch holds what is neither a tensor nor a plain value, but a "
                    f"{type(part).__name__}"
                )
        if len(self.graphs) == SHAPES:
            raise ValueError(
                f"more than {SHAPES} kinds of batches or settings came, each of which "
                "would be compiled; give batches of one shape, and keep numbers that "
                "change in buffers"
            )
        self.graphs[key] = compiled(objective, leaves, tree)

    def _give_up(self, objective: nn.Module, error: Exception) -> None:
        known = isinstance(error, ValueError | TypeError)
        line = str(error).partition("\n")[0]
        self.reason = line if known else f"{type(error).__name__}: {line}"
        self.graphs = {}
        logger.warning(
            "%s is not compiled, its steps are made as they are: %s",
            type(objective).__name__,
            self.reason,
        )


def _kind(value: Any) -> Hashable:
    """What of a part of a batch a graph depends on."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    return (value,) if is_plain(value) else (type(value),)


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
    if world_size() > 1:
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
