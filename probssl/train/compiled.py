"""Compiled training steps: the gradient by Inductor, whole steps as CUDA graphs.

`CompiledStep` compiles value and gradient, once for each shape of batch. `RecordedStep`
records a whole step on a CUDA device and replays it as one CUDA graph: a step has
hundreds of kernels, and Python takes longer to launch them than a GPU to run them. The
record holds views, gradient, clipping and update; the loads of each step are copied to
where it reads them. Numbers that a schedule writes lie in tensors, and torch advances
the random number generator at each replay.

Whatever cannot be compiled or recorded runs eagerly, after one warning that says why.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map_only

from ..runtime.distributed import world_size
from ..terms import Batch, Terms
from .graph import (
    Graph,
    Tensors,
    compiled,
    fixed,
    foreign_randomness,
    is_plain,
    plain_attributes,
)
from .prepare import make_capturable
from .steps import Step

__all__ = ["CompiledStep", "RecordedStep", "compiled_step", "worth_compiling"]

Busy = Callable[[str], AbstractContextManager[Any]]

COMPILED_STEPS = 10_000  # the shortest run that "auto" compiles
MAX_GRAPHS = 8  # kinds of batches that are compiled, each of which takes seconds
STEPS_BEFORE_RECORD = 3  # in which libraries choose kernels and allocate
MOVES = (
    "settings of the optimiser change from step to step, which a record would freeze"
)
NO_RECORD = "steps are compiled, but no CUDA graph is recorded: %s"

logger = logging.getLogger(__name__)


def compiled_step(
    objective: nn.Module, optimizer: Optimizer, *, views: Any = None, **options: Any
) -> "CompiledStep":
    """The fastest kind of step: recorded on CUDA where possible, else compiled.

    Arguments:
        views: The view sampler, which a record contains.
    """
    if next(objective.parameters()).device.type == "cuda":
        obstacle = _obstacle(optimizer, options.get("scheduler"))
        if obstacle is None:
            return RecordedStep(objective, optimizer, views=views, **options)
        logger.warning(NO_RECORD, obstacle)
    return CompiledStep(objective, optimizer, **options)


def worth_compiling(
    compile: bool | str | None, steps: int | None, before: bool | None = None
) -> bool:
    """Whether to compile a run of that length; `before` is the checkpoint's choice."""
    if compile != "auto":
        return bool(compile)
    return (steps or 0) >= COMPILED_STEPS if before is None else before


class CompiledStep(Step):
    """A step whose value and gradient are compiled for each shape of batch.

    A new graph is compared with the objective, on copies: terms, gradient and the state
    that `forward` writes. It draws random numbers from the same generators in the same
    order as the eager step. If compilation fails, a warning gives the reason, and all
    further steps are eager.

    Arguments:
        busy: A context that is entered with a message while it compiles.
        options: Those of `Step`.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Optimizer,
        *,
        busy: Busy = nullcontext,
        **options: Any,
    ) -> None:
        super().__init__(objective, optimizer, **options)
        self.busy = busy
        self.reason: str | None = None  # why steps are eager, if they are
        self.graphs: dict[Hashable, Graph] = {}
        self.tensors: Tensors | None = None
        self.attributes: Hashable = None  # plain ones, when the tensors were read
        self.keys: dict[Hashable, int] = {}  # long keys, each of which gets a number

    def refresh(self) -> None:
        """Look at the objective anew before the next step."""
        self.tensors = None

    def finish(self) -> None:
        """Warn where attributes have changed since they were looked at."""
        if self.reason is None and self.tensors is not None:
            if plain_attributes(self.objective) != self.attributes:
                self._give_up(
                    ValueError(
                        "plain attributes changed between the steps of an epoch, which "
                        "took the first values; change them in on_step or on_epoch, or "
                        "keep them in buffers"
                    )
                )

    def gradient(self, batch: Batch, share: float = 1.0) -> Terms:
        """Add the gradient of one batch by its graph; return the terms."""
        if self.reason is not None:
            return super().gradient(batch, share)
        if self.tensors is None:
            self.tensors = Tensors.of(self.objective)
            self.attributes = self.tensors.key[-1]
            self.key = self.keys.setdefault(self.tensors.key, len(self.keys))
        leaves, tree = tree_flatten(batch)
        leaves = [x.contiguous() if isinstance(x, Tensor) else x for x in leaves]
        key = (self.key, tree, *map(_leaf_key, leaves))
        if key not in self.graphs:
            try:
                with self.busy("compiling"):
                    self._compile(key, leaves, tree)
            except Exception as error:
                self._give_up(error)
                return super().gradient(batch, share)
        return self.graphs[key].add(self.tensors, leaves, share)

    def _compile(self, key: Hashable, leaves: list[Any], tree: TreeSpec) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor) and not is_plain(leaf):
                raise TypeError(
                    "a batch may hold tensors and plain values, but this one holds a "
                    f"{type(leaf).__name__}"
                )
        if len(self.graphs) == MAX_GRAPHS:
            raise ValueError(
                f"it would need more than {MAX_GRAPHS} graphs, one for each shape of "
                "batch and each value of a plain attribute; give batches of one shape, "
                "and keep numbers that change in buffers"
            )
        self.graphs[key] = compiled(self.objective, leaves, tree)

    def _give_up(self, error: Exception) -> None:
        known = isinstance(error, ValueError | TypeError)
        line = str(error).partition("\n")[0]
        self.reason = line if known else f"{type(error).__name__}: {line}"
        self.graphs = {}
        logger.warning(
            "%s is not compiled and runs eagerly: %s",
            type(self.objective).__name__,
            self.reason,
        )


class RecordedStep(CompiledStep):
    """A compiled step on a CUDA device, recorded once and replayed as a CUDA graph.

    The first steps with loads of one kind run on a side stream; then one is recorded.
    If that fails, a warning gives the reason, and further steps are only compiled. The
    optimiser is made `capturable`, with its learning rates in tensors.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Optimizer,
        *,
        views: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(objective, optimizer, **options)
        self.views = views
        make_capturable(optimizer, self.device)
        self.stream = torch.cuda.Stream(self.device)
        self.records: dict[Hashable, _Record] = {}
        self.warmed: Counter[Hashable] = Counter()
        self.settings: int | None = None
        self.held: Hashable = None  # the optimiser's, when they were read
        self.broken = False

    def refresh(self) -> None:
        """Look at the objective and the optimiser anew before the next step."""
        super().refresh()
        self.settings = None

    def run(self, loads: Sequence[Any]) -> Terms:
        """Replay the record of the step, or make one."""
        with torch.cuda.device(self.device):
            return super().run(loads) if self.broken else self._recorded(loads)

    def _recorded(self, loads: Sequence[Any]) -> Terms:
        if self.settings is None:
            held = plain_attributes(self.objective), fixed(self.views)
            self.held = _settings(self.optimizer)
            found = *held, self.held
            self.settings = self.keys.setdefault(found, len(self.keys))
        leaves, tree = tree_flatten(list(loads))
        key = self.settings, tree, *map(_leaf_key, leaves)
        if key not in self.records:
            if self.warmed[key] < STEPS_BEFORE_RECORD:
                self.warmed[key] += 1
                return self._warm_up(loads)
            if self._moves():
                return super().run(loads)
            if len(self.records) == MAX_GRAPHS:  # each of which holds memory
                del self.records[next(iter(self.records))]
            try:
                self.records[key] = self._record(loads)
            except RuntimeError as error:
                self._leave(error)
                return super().run(loads)
        terms, self.items = self.records[key].replay(leaves)
        return terms

    def finish(self) -> None:
        """Stay with compiled steps if the optimiser's settings moved in the epoch."""
        super().finish()
        if self.settings is not None and not self.broken:
            self._moves()

    def _moves(self) -> bool:
        """Whether the optimiser's settings changed since they were read."""
        moved = _settings(self.optimizer) != self.held
        if moved:
            self._leave(MOVES)
        return moved

    def _leave(self, reason: object) -> None:
        self.broken, self.records = True, {}
        logger.warning(NO_RECORD, reason)

    def _warm_up(self, loads: Sequence[Any]) -> Terms:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), warnings.catch_warnings():
            # The warning that a capturable optimiser steps without a graph.
            warnings.filterwarnings("ignore", "This instance was constructed")
            terms = super().run(loads)
        torch.cuda.current_stream().wait_stream(self.stream)
        return terms

    def _record(self, loads: Sequence[Any]) -> "_Record":
        held = tree_map_only(Tensor, torch.clone, list(loads))
        self.optimizer.zero_grad()  # so that gradients lie in the graph's memory
        graph, before = torch.cuda.CUDAGraph(), _on_the_host(self.views, self.device)
        # Other threads may pin memory meanwhile, for the next loads.
        with torch.cuda.graph(
            graph, stream=self.stream, capture_error_mode="thread_local"
        ):
            terms = super().run(held)
            values = torch.stack([term for term in terms if isinstance(term, Tensor)])
        if _on_the_host(self.views, self.device) != before:
            raise RuntimeError(
                "the views draw random numbers on the host, by Python, NumPy or a "
                "generator of the CPU, or count their calls, which a CUDA graph would "
                "freeze; draw with torch.rand(…, device=x.device)"
            )
        numbers = tuple(None if isinstance(t, Tensor) else t for t in terms)
        return _Record(graph, held, values, numbers, self.items)


class _Record(NamedTuple):
    graph: "torch.cuda.CUDAGraph"
    held: list[Any]  # the loads that the graph reads
    values: Tensor
    numbers: tuple[float | None, ...]  # the terms, None where they are in `values`
    items: int

    def replay(self, leaves: Sequence[Any]) -> tuple[Terms, int]:
        """The terms of a step with loads of these leaves, and its number of items."""
        for held, leaf in zip(tree_leaves(self.held), leaves, strict=True):
            if isinstance(held, Tensor):
                held.copy_(leaf, non_blocking=True)
        self.graph.replay()
        values = iter(self.values.clone().unbind())  # the next replay overwrites them
        terms = Terms(*(next(values) if t is None else t for t in self.numbers))
        return terms, self.items


def _obstacle(optimizer: Optimizer, scheduler: LRScheduler | None = None) -> str | None:
    """Why a step with this optimiser cannot be recorded; None if it can."""
    if any(getattr(each, "cycle_momentum", False) for each in _parts(scheduler)):
        return f"{MOVES}; give the scheduler cycle_momentum=False"
    if world_size() > 1:
        return "several processes exchange their gradients between the graphs"
    if not all("capturable" in group for group in optimizer.param_groups):
        return (
            f"{type(optimizer).__name__} cannot be captured in a CUDA graph; take one "
            "with the argument capturable, such as torch.optim.Adam"
        )
    return None


def _parts(scheduler: LRScheduler | None) -> list[LRScheduler]:
    """A scheduler and those that it chains."""
    inner = getattr(scheduler, "_schedulers", ())
    own = [] if scheduler is None else [scheduler]
    return own + [part for each in inner for part in _parts(each)]


def _on_the_host(views: Any, device: torch.device) -> Hashable:
    """What a step may change or draw on the host, where no CUDA graph does."""
    default = torch.get_rng_state().numpy().tobytes()
    return foreign_randomness(), fixed(views), device.type == "cpu" or default


def _settings(optimizer: Optimizer) -> Hashable:
    """The plain values in an optimiser's groups, which a record freezes."""
    return tuple(
        (name, value)
        for group in optimizer.param_groups
        for name, value in group.items()
        if isinstance(value, bool | int | float | str | tuple)
    )


def _leaf_key(leaf: Any) -> Hashable:
    """The properties of a leaf of a batch that a graph or a record depends on."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return repr(leaf)
