"""Fits and posteriors in several threads are those of one thread alone.

Threads share one sequence of random numbers, so what is compared does not depend on
them: exact evidences, means, fits of one batch without noise.
"""

import multiprocessing
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.catalogue import decoder, encoder
from helpers.linear import evidence, linear_gaussian
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Gaussian
from probssl.runtime.randomness import order_generator, restored_randomness
from probssl.runtime.threads import LOCK
from probssl.runtime.validation import unvalidated

THREADS = 8
fit = partial(ps.fit, progress=False)
pytestmark = pytest.mark.usefixtures("float64", "one_thread")


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What so many threads return, which start together."""
    start = threading.Barrier(len(calls))

    def call(each: Callable[[], Any]) -> Any:
        start.wait()
        return each()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


@pytest.fixture(scope="module")
def known() -> ps.limits.SimVAE:
    """One whose guide is the posterior, so that each draw gives the exact evidence."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    prior = Gaussian(2, 0.7, y_scale=1.3)
    joint = linear_gaussian(prior, 4, 0.5, guide=ps.guides.Coupled)
    torch.set_default_dtype(default)
    return ps.limits.SimVAE(joint).train()


def until_it_waits() -> None:
    """Until another thread waits for the lock."""
    end = time.monotonic() + 30
    while not LOCK._next.locked():
        assert time.monotonic() < end, "expected a thread that waits for the lock"
        time.sleep(1e-3)


def states() -> tuple[Any, ...]:
    """What a call may change for all threads."""
    kinds = pyro.settings.get()
    return torch.get_default_dtype(), *(kinds[k] for k in kinds if "validate" in k)


def simclr() -> nn.Module:
    return ps.limits.SimCLR(encoder())


def point() -> nn.Module:
    """A generative objective without noise."""
    parts = Gaussian(3, ps.learned(0.5)), ps.likelihoods.Gaussian(0.5), encoder()
    return ps.limits.SimVAE(ps.Joint(*parts, decoder(), guide=ps.guides.Point))


@pytest.mark.parametrize("make", [simclr, point])
def test_fits_in_threads_are_that_of_one_alone(make):
    views = ps.data.Groups(torch.randn(16, 2, 6))
    made = [make() for _ in range(THREADS)]
    alone = [deepcopy(objective) for objective in made]

    def run(objective: nn.Module) -> Any:
        return fit(objective, views, epochs=3, batch_size=16)["value"]

    before = states()
    found = at_once([partial(run, objective) for objective in made])
    assert states() == before
    for objective, twin, values in zip(made, alone, found, strict=True):
        assert_close(values, run(twin), rtol=1e-9, atol=1e-9)
        assert_close(objective.state_dict(), twin.state_dict(), rtol=1e-7, atol=1e-9)


def test_one_objective_is_read_while_others_are_fitted(known):
    """Readers give its exact evidence and its modes stay; fits end, all in threads."""
    x, views = torch.randn(12, 4), torch.randn(16, 2, 6)
    exact, z = evidence(known.joint, x[:, None]).detach(), ps.embed(known, x)
    other = deepcopy(known)
    kinds = (
        lambda: ps.evidence(known, x, particles=20).log_evidence,
        lambda: ps.compare_evidence({"a": known, "b": other}, x, particles=20),
        lambda: ps.to_arviz(known, x, draws=30),
        lambda: ps.embed(known, x),
        lambda: ps.posterior_y(known, x, draws=30).draws,
        lambda: fit(simclr(), ps.data.Groups(views), epochs=3, batch_size=8),
        lambda: fit(point(), ps.data.Groups(views), epochs=3, batch_size=8),
        lambda: ps.sample(known, 5),
    )
    before = states()
    found = at_once([kind for kind in kinds[:4] for _ in "ab"])
    more = at_once([*kinds, *kinds[2:5]])
    assert states() == before and all(m.training for m in known.modules())
    for log_p in found[:2]:
        np.testing.assert_allclose(log_p, exact, rtol=1e-9)
    for each in found[2:4]:
        assert np.abs(each.table["difference"]).max() < 1e-9
    for each in found[6:8]:
        assert np.array_equal(each, z)
    drawn = [idata.posterior["z"].values for idata in (*found[4:6], more[2], more[8])]
    assert all(np.isfinite(draws).all() for draws in drawn)
    every = np.concatenate([draws.ravel() for draws in drawn])
    assert len(np.unique(every)) == len(every)  # no two have the same numbers


def test_the_lock_goes_to_those_who_wait():
    """A loop that opens it lets a waiting thread go at once."""
    turns: list[str] = []

    def waits() -> None:
        with LOCK:
            turns.append("the other")

    with LOCK:
        other = threading.Thread(target=waits)
        other.start()
        until_it_waits()
        with LOCK:
            with LOCK.open():  # an outer context holds it
                turns.append("mine")
        for _ in LOCK.open_between(range(3)):
            turns.append("mine")
    other.join()
    assert turns == ["mine", "the other", "mine", "mine", "mine"]


def test_callbacks_may_wait_for_other_threads(known):
    """Which evaluate meanwhile."""
    x, found = torch.randn(6, 4), list[Any]()

    def look(*_: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(ps.embed, known, x).result(timeout=60))

    views = ps.data.Groups(torch.randn(16, 2, 6))
    fit(simclr(), views, epochs=1, batch_size=16, on_epoch=look, on_step=look)
    assert len(found) == 2


def test_an_interrupted_wait_leaves_the_lock_with_its_context(monkeypatch):
    """A KeyboardInterrupt that comes while a fit waits for another thread."""
    enter, left = type(LOCK).__enter__, [KeyboardInterrupt]

    def interrupted(self: Any) -> None:
        if left:
            raise left.pop()
        enter(self)

    with pytest.raises(KeyboardInterrupt), LOCK:
        monkeypatch.setattr(type(LOCK), "__enter__", interrupted)
        with LOCK.open():
            pass
    assert at_once([lambda: LOCK.__enter__() or LOCK.__exit__() or 1]) == [1]


def test_threads_draw_no_numbers_that_another_restores():
    """The seed of a fit is the next number, after another thread has drawn and left."""
    expected = int(torch.manual_seed(1) and torch.randint(2**63 - 1, ()))
    torch.manual_seed(1)
    with ThreadPoolExecutor(1) as pool:
        with restored_randomness():
            seed = pool.submit(lambda: order_generator().initial_seed())
            until_it_waits()
            torch.rand(3)
            assert not seed.done()
        assert seed.result() == expected


def test_validation_is_as_before_where_two_threads_overlap():
    before, one, other = states(), unvalidated(), unvalidated()
    for context in (one, other):
        context.__enter__()
    one.__exit__(None, None, None)
    assert states() != before  # the other one is still within
    other.__exit__(None, None, None)
    assert states() == before
    with pyro.validation_enabled(False):  # torch's own stays off as well
        torch.distributions.Distribution.set_default_validate_args(True)
        within = states()
        with unvalidated(), unvalidated():
            assert states() != within
        assert states() == within


def _takes_the_lock() -> None:
    with LOCK:
        pass


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="has no fork"
)
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not():
    """As a worker of a DataLoader that one thread starts while another computes."""
    made: list[Any] = []

    def forks() -> None:
        made.append(multiprocessing.get_context("fork").Process(target=_takes_the_lock))
        made[0].start()

    with LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        other = threading.Thread(target=forks)
        other.start()
        other.join()
        made[0].join(timeout=20)
        assert made[0].exitcode == 0


def test_code_that_torch_compiles_lets_the_lock_go():
    """Also where a graph breaks within it."""

    def run(x: torch.Tensor) -> torch.Tensor:
        with LOCK:
            y = x + 1
            held.append(LOCK._depth)
            torch._dynamo.graph_break()
            held.append(LOCK._depth)
        return y * 2

    held: list[int] = []
    compiled = torch.compile(run, backend="eager")
    assert compiled(torch.ones(())) == 4 == compiled(torch.ones(()))
    assert held == [1] * 4 and LOCK._depth == 0


class Disturbed:
    """Views during which another thread draws at the first call, or at each."""

    def __init__(self, always: bool) -> None:
        self.always, self.calls = always, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        first = torch.randn(x.shape)
        if self.calls == 2 or self.always:  # the first one looks at the items
            other = threading.Thread(target=torch.rand, args=(self.calls,))
            other.start()
            other.join()
        return torch.stack([x + first, x + torch.randn(x.shape)], 1)


@pytest.mark.parametrize("always", [False, True])
def test_views_are_not_blamed_for_what_another_thread_draws(always, caplog):
    views = Disturbed(always)
    fit(simclr(), torch.randn(16, 6), views=views, epochs=1, batch_size=16)
    assert ("others from the same seed" in caplog.text) == always


def test_a_seed_repeats_a_fit_only_where_no_other_thread_draws():
    x = torch.randn(16, 6)

    def views(x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(1) + torch.randn(len(x), 2, *x.shape[1:])

    def run(beside: bool) -> Any:
        def other(step: int, terms: ps.Terms) -> None:
            thread = threading.Thread(target=torch.rand, args=(1,))
            thread.start()
            thread.join()

        torch.manual_seed(0)
        given = {"views": views, "epochs": 2, "batch_size": 8}
        return fit(simclr(), x, on_step=other if beside else None, **given)["value"]

    alone = run(False)
    assert (run(False) == alone).all() and not np.allclose(run(True), alone)
