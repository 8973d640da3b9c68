"""Methods fitted side by side in worker processes on the CPU, else one by one.

Every fit is seeded by itself and has the same number of threads whatever the number of
workers, so that results do not depend on it.
"""

import os
import pickle
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from .. import recipes
from ..arguments import whole
from ..data import Dataset
from ..runtime.distributed import world_size
from ..train import History
from ..train.prepare import settle

__all__ = ["Fitted", "fit_methods"]

POLL = 0.2  # seconds between updates of the progress bar


class Fitted(NamedTuple):
    """A fitted objective, its history and the seconds that the fit took."""

    objective: nn.Module
    history: History
    seconds: float


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
    **options: Any,
) -> dict[str, Fitted]:
    """Fit the objectives of `recipes` by those names, each from the same seed.

    The global random state ends where the last fit in this process left it.

    Arguments:
        methods: Keys of `recipes.METHODS`.
        jobs: The number of worker processes; 1 fits one method after another in this
            process. None means one worker per core on the CPU, and 1 on other devices,
            for a single method and under torchrun. Threads are shared out by the number
            of methods: the threads of torch over methods, at least 1 for each.
        options: For `recipes.fit`.

    Raises:
        ValueError: If there are several jobs on a GPU or under torchrun.
        Exception: The error of a worker, with a note that names the method and the
            traceback in the worker as its cause. All other workers end, as on an
            interrupt.
    """
    gpu = device != "cpu" and (device != "auto" or torch.cuda.is_available())
    single = gpu or world_size() > 1
    if jobs is None:
        jobs = 1 if single else _cores()
    if whole("jobs", jobs) > 1 and single:
        raise ValueError(
            f"expected jobs=1 on {device} or under torchrun, got {jobs}; workers run "
            "on the CPU of one process: leave jobs out, or give device='cpu'"
        )
    jobs = min(jobs, len(methods))
    options |= {"epochs": epochs, "device": device}
    with _threads(torch.get_num_threads() // len(methods)) as threads:
        if jobs == 1:
            return {
                method: _fit(method, data, dim, seed, {**options, "progress": progress})
                for method in methods
            }
        with TemporaryDirectory(prefix="probssl") as folder:
            path = Path(folder) / "data.pickle"
            path.write_bytes(pickle.dumps(data))
            work = _Work(path, dim, seed, options, threads)
            return _side_by_side(methods, data, jobs, work, progress)


class _Work(NamedTuple):
    """The arguments of a worker, with the file of the data: a pipe would block."""

    data: Path
    dim: int
    seed: int
    options: dict[str, Any]
    threads: int


def _fit(
    method: str, data: Dataset, dim: int, seed: int, options: Mapping[str, Any]
) -> Fitted:
    torch.manual_seed(seed)
    objective = recipes.objective(method, data, dim)
    start = time.perf_counter()
    history = recipes.fit(objective, data, views=recipes.views(data), **options)
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
    methods: Sequence[str], data: Dataset, jobs: int, work: _Work, progress: bool
) -> dict[str, Fitted]:
    """Fit in worker processes. All end if one fails, or on an interrupt."""
    context, others = get_context("spawn"), active_children()
    epochs = context.Queue()
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (epochs, work))
    bar = _Bar(methods, jobs, work.options["epochs"], progress)
    try:
        futures = {pool.submit(_fit_in_worker, method): method for method in methods}
        found: dict[str, Fitted] = {}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, POLL, FIRST_COMPLETED)
            bar.read(epochs)
            for future in done:
                method = futures[future]
                found[method] = _rebuilt(method, data, work, future)
                bar.finish(method)
        pool.shutdown()
        return {method: found[method] for method in methods}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            if process not in others:
                process.terminate()
                process.join()
        bar.bar.close()


def _rebuilt(method: str, data: Dataset, work: _Work, future: Future[Any]) -> Fitted:
    """The objective of a recipe, with the state that a worker fitted."""
    try:
        state, rows, seconds = pickle.loads(future.result())
    except Exception as error:  # with the worker's traceback as its cause
        error.add_note(f"in the worker that fitted {method}")
        raise
    torch.manual_seed(work.seed)
    objective = recipes.objective(method, data, work.dim)
    settle(objective, torch.device("cpu"), len(data.train.images))  # as `fit` does
    objective.load_state_dict(state)
    return Fitted(objective.eval(), History(rows), seconds)


class _Bar:
    """One progress bar of the epochs of all methods, with those that run now."""

    def __init__(
        self, methods: Sequence[str], jobs: int, epochs: int, progress: bool
    ) -> None:
        self.epochs, self.counts = epochs, dict.fromkeys(methods, 0)
        title, total = f"fit {len(methods)} methods by {jobs} processes", len(methods)
        self.bar = tqdm(None, title, total * epochs, disable=not progress, unit="epoch")

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
    torch.set_num_threads(work.threads)
    threadpool_limits(work.threads)
    _worker.update(epochs=epochs, work=work, data=pickle.loads(work.data.read_bytes()))


_worker: dict[str, Any] = {}  # what `_start_worker` was given, in a worker process


def _fit_in_worker(method: str) -> bytes:
    """The pickled state, history and seconds of a fit."""
    work: _Work = _worker["work"]

    def on_epoch(epoch: int, row: Mapping[str, float]) -> None:
        _worker["epochs"].put(method)

    options = {**work.options, "progress": False, "on_epoch": on_epoch}
    fitted = _fit(method, _worker["data"], work.dim, work.seed, options)
    state = {name: t.cpu() for name, t in fitted.objective.state_dict().items()}
    return pickle.dumps((state, fitted.history.rows, fitted.seconds))
