"""Methods fitted side by side in worker processes on the CPU, else one by one.

Every fit is seeded by itself and has the same number of threads whatever the number of
workers, so that results do not depend on it.
"""

import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory, gettempdir
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from .. import recipes
from ..arguments import typed, whole
from ..bars import shown
from ..data import Dataset
from ..runtime.distributed import world_size
from ..train import History
from ..train.prepare import settle

__all__ = ["Fitted", "fit_methods"]

POLL = 0.2  # seconds between updates of the progress bar
LONGEST_ADDRESS = 70  # letters of the folder; Linux takes 107 in all
WATCH = 1.0  # seconds between looks of a worker at its parent


class Fitted(NamedTuple):
    """A fitted objective, its history and the seconds that the fit took."""

    objective: nn.Module
    history: History
    seconds: float


@typed
def fit_methods(
    methods: Sequence[str],
    data: Dataset,
    *,
    epochs: int,
    dim: int = recipes.DIM,
    seed: int = 0,
    jobs: int | None = None,
    device: str = "auto",
    progress: bool = True,
    on_fitted: Callable[[str, Fitted], Any] | None = None,
    share: int | None = None,
    **options: Any,
) -> dict[str, Fitted]:
    """Fit the objectives of `recipes` by those names, each from the same seed.

    The global random state ends where the last fit in this process left it.

    Arguments:
        methods: Keys of `recipes.METHODS`.
        jobs: The number of worker processes; 1 fits one method after another in this
            process. None means one worker per core on the CPU, and 1 on other devices,
            for a single method, under torchrun, and for recipes of one's own. Threads
            are shared out by the number of methods: the threads of torch over methods,
            at least 1 for each.
        on_fitted: A callback with the name and the fit of each method as soon as it is
            fitted, in this process: it may save it.
        share: The number of methods that threads are shared out by; None means those
            given. A comparison that goes on with some of its methods has the threads of
            all.
        options: For `recipes.fit`. Each method has a copy of them, so that the state
            of a callback starts anew. What cannot be pickled, such as a lambda, is
            shared by all methods and needs ``jobs=1``.

    Raises:
        ValueError: If there are several jobs on a GPU, under torchrun or for recipes of
            one's own, no methods or the same twice, or several jobs and an option that
            cannot be pickled.
        ChildProcessError: If a worker is killed, as for want of memory. The fits of
            other methods are lost, but for those that `on_fitted` has kept.
        Exception: The error of a worker, with a note that names the method and the
            traceback in the worker as its cause. All other workers end, as on an
            interrupt.
    """
    _check_methods(methods)
    gpu = device != "cpu" and (device != "auto" or torch.cuda.is_available())
    single = gpu or world_size() > 1
    own = [method for method in methods if recipes.is_own(method)]
    if jobs is None:
        jobs = 1 if single or own else _cores()
    if whole("jobs", jobs) > 1 and single:
        raise ValueError(
            f"expected jobs=1 on {device} or under torchrun, got {jobs}; workers run "
            "on the CPU of one process: leave jobs out, or give device='cpu'"
        )
    if jobs > 1 and own:
        raise ValueError(
            f"expected jobs=1 for {own[0]}, which was added to recipes.METHODS or "
            f"replaced there, or extends one that was, got {jobs}; workers know the "
            "original recipes alone"
        )
    jobs = min(jobs, len(methods))
    options |= {"epochs": epochs, "device": device}
    done = on_fitted or (lambda method, fit: None)
    with _threads(torch.get_num_threads() // (share or len(methods))) as threads:
        if jobs == 1:
            found = {}
            for method in methods:
                given = _copied({**options, "progress": progress})
                found[method] = _fit(method, data, dim, seed, given)
                done(method, found[method])
            return found
        pickled = {name: _pickled(name, option) for name, option in options.items()}
        with TemporaryDirectory(prefix="probssl") as folder:
            path = Path(folder) / "data.pickle"
            path.write_bytes(pickle.dumps(data))
            work = _Work(path, dim, seed, pickled, threads)
            bar = _Bar(methods, jobs, epochs, progress)
            return _side_by_side(methods, data, jobs, work, bar, done)


def _check_methods(methods: Sequence[str]) -> None:
    if not methods:
        raise ValueError(
            "expected at least one method, got none; give keys of recipes.METHODS"
        )
    names = [recipes.name(method) for method in methods]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"expected each method once, got {twice[0]} {names.count(twice[0])} times; "
            "leave the others out"
        )


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the options, as workers have them, where they can be pickled."""
    copies = dict(options)
    for name, option in options.items():
        with suppress(Exception):  # a pickle may raise anything
            copies[name] = pickle.loads(pickle.dumps(option))
    return copies


def _pickled(name: str, option: object) -> bytes:
    try:
        return pickle.dumps(option)
    except Exception as error:
        raise ValueError(
            f"expected options that can be pickled for workers, got {name}={option!r}; "
            "set jobs=1, or define it at the top of a module"
        ) from error


def _unpickled(name: str, option: bytes) -> Any:
    try:
        return pickle.loads(option)
    except Exception as error:
        raise ValueError(
            f"expected options that workers can load, got {name} ({error}); set "
            "jobs=1, or define it in a module of its own"
        ) from error


class _Work(NamedTuple):
    """The arguments of a worker, with the file of the data: a pipe would block.

    Options are pickled one by one, and loaded for each method.
    """

    data: Path
    dim: int
    seed: int
    options: dict[str, bytes]
    threads: int


def _fit(
    method: str, data: Dataset, dim: int, seed: int, options: Mapping[str, Any]
) -> Fitted:
    torch.manual_seed(seed)
    objective = recipes.objective(method, data, dim)
    start = time.perf_counter()
    history = recipes.fit(objective, data, views=recipes.views(data), **options)
    if history.interrupted:
        raise KeyboardInterrupt
    return Fitted(objective, history, time.perf_counter() - start)


def _cores() -> int:
    """The cores that this process may use, where the system says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _threads(number: int) -> Iterator[int]:
    """Limit the threads of torch and of linear algebra libraries, at least to 1."""
    from threadpoolctl import threadpool_limits

    number, before = max(1, number), torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield number
    finally:
        torch.set_num_threads(before)


def _side_by_side(
    methods: Sequence[str],
    data: Dataset,
    jobs: int,
    work: _Work,
    bar: "_Bar",
    done: Callable[[str, Fitted], Any],
) -> dict[str, Fitted]:
    """Fit in worker processes. All end if one fails, or on an interrupt."""
    context, others = _workers(), active_children()
    epochs = context.Queue()
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (epochs, work))
    try:
        futures = {pool.submit(_fit_in_worker, method): method for method in methods}
        found: dict[str, Fitted] = {}
        pending, seen = set(futures), set[BaseProcess]()
        while pending:
            ended, pending = wait(pending, POLL, FIRST_COMPLETED)
            # The pool hears of a death only when another worker has a result.
            alive = set(active_children())
            seen |= alive - set(others)
            if pending and not ended and seen - alive:
                raise _killed()
            bar.read(epochs)
            for future in sorted(ended, key=_failed):  # those that are fitted first
                method = futures[future]
                found[method] = _rebuilt(method, data, work, future)
                bar.finish(method)
                done(method, found[method])
        pool.shutdown()
        return {method: found[method] for method in methods}
    finally:
        for process in active_children():
            if process not in others:
                process.terminate()
        # Its own thread joins them: who else did would race with it for their end.
        pool.shutdown(cancel_futures=True)
        bar.bar.close()


def _failed(future: Future[Any]) -> bool:
    return future.exception() is not None


def _workers() -> BaseContext:
    """How workers start: on Linux from one process that has this package loaded.

    It starts with the first workers, computes nothing, and ends with this process. Its
    address is a file in the folder of temporary files, whose name may be too long;
    there and elsewhere each worker loads the package anew, which takes seconds.
    """
    if sys.platform != "linux" or len(gettempdir()) > LONGEST_ADDRESS:
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # of optimisers
    return context


def _rebuilt(method: str, data: Dataset, work: _Work, future: Future[Any]) -> Fitted:
    """The objective of a recipe, with the state that a worker fitted."""
    try:
        state, rows, seconds = pickle.loads(future.result())
    except BrokenProcessPool as error:
        raise _killed() from error
    except Exception as error:  # with the worker's traceback as its cause
        error.add_note(f"in the worker that fitted {method}")
        raise
    torch.manual_seed(work.seed)
    objective = recipes.objective(method, data, work.dim)
    settle(objective, torch.device("cpu"), len(data.train.images))  # as `fit` does
    objective.load_state_dict(state)
    return Fitted(objective.eval(), History(rows), seconds)


def _killed() -> ChildProcessError:
    return ChildProcessError(
        "expected worker processes to run until the end, but one was killed, most "
        "often for want of memory; use fewer jobs, such as jobs=1; what on_fitted "
        "saved stays; in a script, call this under if __name__ == '__main__'"
    )


class _Bar:
    """One progress bar of the epochs of all methods, with those that run now."""

    def __init__(
        self, methods: Sequence[str], jobs: int, epochs: int, progress: bool
    ) -> None:
        self.epochs, self.counts = epochs, dict.fromkeys(methods, 0)
        title, total = f"fit {len(methods)} methods by {jobs} processes", len(methods)
        options = shown(progress)
        self.bar = tqdm(None, title, total * epochs, unit="epoch", **options)

    def read(self, finished: Any) -> None:
        """Count the epochs that the workers finished since."""
        before = sum(self.counts.values())
        with suppress(Empty):
            while True:
                self.counts[finished.get_nowait()] += 1
        if new := sum(self.counts.values()) - before:
            some = [f"{m} {n}" for m, n in self.counts.items() if 0 < n < self.epochs]
            self.bar.set_postfix_str(", ".join(some), refresh=False)
            self.bar.update(new)

    def finish(self, method: str) -> None:
        """Count the epochs that were left out, of rounds or by early stopping."""
        self.bar.update(self.epochs - self.counts[method])
        self.counts[method] = self.epochs


def _start_worker(epochs: Any, work: _Work) -> None:
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends all
    signal.signal(signal.SIGTERM, _end)  # which `fit` lets be
    torch.set_num_threads(work.threads)
    threadpool_limits(work.threads)
    Thread(target=_end_with_parent, args=(work.data.parent,), daemon=True).start()
    _worker.update(epochs=epochs, work=work, data=pickle.loads(work.data.read_bytes()))


def _end(number: int, frame: object) -> None:
    """End at once, also within a compilation; the parent process cleans up."""
    os._exit(128 + number)


def _end_with_parent(folder: Path) -> None:
    """Wait for the parent process to end without its workers; then clean up and end."""
    parent, number = parent_process(), os.getppid()
    assert parent is not None
    while parent.is_alive() and os.getppid() == number:
        parent.join(WATCH)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


_worker: dict[str, Any] = {}  # what `_start_worker` was given, in a worker process


def _fit_in_worker(method: str) -> bytes:
    """The pickled state, history and seconds of a fit."""
    work: _Work = _worker["work"]
    options = {name: _unpickled(name, option) for name, option in work.options.items()}
    given = options.get("on_epoch")

    def on_epoch(epoch: int, row: dict[str, float]) -> Any:
        _worker["epochs"].put(method)
        return None if given is None else given(epoch, row)

    options |= {"progress": False, "on_epoch": on_epoch}
    fitted = _fit(method, _worker["data"], work.dim, work.seed, options)
    state = {name: t.cpu() for name, t in fitted.objective.state_dict().items()}
    return pickle.dumps((state, fitted.history.rows, fitted.seconds))
