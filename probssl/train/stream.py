"""Loads made in the background, and copied to the device while another is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from ..data.batches import Target, nested

__all__ = ["made_ahead", "moved"]

Key = TypeVar("Key")
Load = TypeVar("Load")


def made_ahead(
    make: Callable[[Key], Load], keys: Iterable[Key], ahead: int = 2
) -> Iterator[Load]:
    """``make(key)`` for each key in turn, so many of them ahead in a thread.

    What `make` raises is raised here, in its turn. The thread ends with the iteration,
    also where that is left early.
    """
    waiting: deque[Future[Load]] = deque()
    thread = ThreadPoolExecutor(1, "probssl-data", *_here())
    try:
        for key in keys:
            waiting.append(thread.submit(make, key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)


def moved(loads: Iterable[Any], target: Target) -> Iterator[Any]:
    """Loads on the device; a CUDA device copies the next one beside its work.

    The copy waits for nothing if the load lies in pinned memory.
    """
    if target.device.type != "cuda":
        yield from map(target.move, loads)
        return
    aside = torch.cuda.Stream(target.device)
    before: tuple[Any, torch.cuda.Event] | None = None
    for load in loads:
        with torch.cuda.stream(aside):
            copied = target.move(load), aside.record_event()
        if before is not None:
            yield _arrived(*before, torch.cuda.current_stream(target.device))
        before = copied
    if before is not None:
        yield _arrived(*before, torch.cuda.current_stream(target.device))


def _arrived(load: Any, copied: torch.cuda.Event, stream: torch.cuda.Stream) -> Any:
    """A load that is there for what follows on a stream, and as long as it is used."""
    stream.wait_event(copied)
    nested(lambda x: x.record_stream(stream), load)
    return load


def _here() -> tuple[Any, ...]:
    """What tells a new thread, which begins with the first, of the device in use."""
    if not torch.cuda.is_initialized():
        return ()
    return torch.cuda.set_device, (torch.cuda.current_device(),)
