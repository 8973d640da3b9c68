"""Compiled gradients: when it pays, for which batches, and what if it cannot be."""

import logging
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from ..terms import Batch, Terms
from .graph import Graph, Tensors, compiled, is_plain
from .steps import add_gradient

__all__ = ["Busy", "Compiled", "check_compile", "worth_compiling"]

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
