"""One thread at a time, where threads of a process share what a computation changes.

They share torch's random generators, Pyro's stack of handlers, its validation, the
default dtype and the filters of warnings; and of an objective that several of them read
its modes and buffers. So `fit`, and what draws from an objective or measures it, holds
`LOCK`; `fit` lets other threads go between its steps. Results of threads are right, and
there as fast as one after another, which several threads of Python are not.

Random numbers are one sequence, of which each thread takes a part: which one depends on
the order of their steps.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ContextDecorator, contextmanager
from threading import Lock, RLock, get_ident
from typing import TypeVar

import torch

__all__ = ["LOCK"]

Item = TypeVar("Item")


class _Lock(ContextDecorator):
    """A re-entrant lock that waiting threads get before the one that let it go.

    The backward pass on a GPU runs in a thread of its own, on behalf of one that holds
    the lock: there nothing is locked.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget who holds it."""
        self._lock, self._next = RLock(), Lock()
        self._holder: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        if _in_backward():
            return
        if self._holder == get_ident():
            self._lock.acquire()
        else:
            with self._next:  # one thread waits for the lock, the others for its place
                self._lock.acquire()
            self._holder = get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        if _in_backward():
            return
        self._depth -= 1
        if not self._depth:
            self._holder = None
        self._lock.release()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let waiting threads go, unless an outer context holds the lock as well."""
        if self._holder != get_ident() or self._depth > 1:
            yield
            return
        self.__exit__()
        try:
            yield
        finally:
            try:
                self.__enter__()
            except KeyboardInterrupt:
                self.__enter__()  # the context around this one lets it go
                raise

    def open_between(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; waiting threads may go while the next one is made."""
        rest, end = iter(items), object()
        while True:
            with self.open():
                item = next(rest, end)
            if item is end:
                return
            yield item  # type: ignore[misc]


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


LOCK = _Lock()
if hasattr(os, "register_at_fork"):  # a child has no other thread that could let it go
    os.register_at_fork(after_in_child=LOCK.reset)
