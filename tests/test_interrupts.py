"""Ctrl-C and SIGTERM: the moment is kept, and the run goes on as if it had not been."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import EVENT, Everything, noisy
from killed import BATCHES, EPOCHS, fitted
from test_resume import assert_same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import probssl as ps
from probssl import cli
from probssl.compare.fitting import fit_methods
from probssl.runtime import interrupts
from probssl.runtime.interrupts import Interrupts
from probssl.train.checkpoint import read

STEPS = EPOCHS * BATCHES // 2
EACH = STEPS // EPOCHS  # steps of an epoch
fit = partial(ps.fit, progress=False)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def handlers():
    """Signal handlers are Python's, also in the background, and stay so."""
    numbers = signal.SIGINT, signal.SIGTERM
    kinds = [signal.default_int_handler, signal.SIG_DFL]
    before = [signal.signal(*each) for each in zip(numbers, kinds, strict=True)]
    yield
    assert [signal.getsignal(n) for n in numbers] == kinds
    assert Interrupts.current is None
    for each in zip(numbers, before, strict=True):
        signal.signal(*each)


def at(step: int, number: int = signal.SIGINT) -> Callable[..., None]:
    """A callback that sends a signal at a step or epoch."""

    def send(count: int, _: Any) -> None:
        if count == step:
            signal.raise_signal(number)

    return send


def points(items: int = 24) -> torch.Tensor:
    return torch.randn(items, EVENT, generator=torch.Generator().manual_seed(1))


# --- the moment on disk ------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_run_goes_on_from_the_step_at_which_it_was_interrupted(step, tmp_path):
    number = [signal.SIGINT, signal.SIGTERM][step % 2]
    _, history = fitted(tmp_path / "cut", "eager", at(step, number))
    assert history.interrupted and history["step"][-1] == step
    assert len(history) == -(-step // EACH)
    assert json.loads((tmp_path / "cut/history.json").read_text()) == history.rows
    objective, history = fitted(tmp_path / "cut", "eager")
    peaceful, expected = fitted(tmp_path / "through", "eager")
    assert not history.interrupted
    assert_same(objective.state_dict(), peaceful.state_dict())
    assert_same(history.rows, expected.rows)
    for name in ("last", "best"):
        files = (tmp_path / run / f"{name}.safetensors" for run in ("cut", "through"))
        assert_same(*map(read, files))


def test_a_run_that_is_interrupted_at_every_other_step_arrives(tmp_path):
    for step in range(2, STEPS, 2):
        _, history = fitted(tmp_path / "cut", "traced", at(step))
        assert history.interrupted and history["step"][-1] == step
    objective, history = fitted(tmp_path / "cut", "traced")
    peaceful, expected = fitted(tmp_path / "through", "traced")
    assert_same(objective.state_dict(), peaceful.state_dict())
    assert_same(history.rows, expected.rows)


class Dropped(Everything):
    """One that sends a signal in a validation batch."""

    calls, last = 0, 5  # the rehearsal, three batches, one batch

    def forward(self, batch: ps.Batch) -> ps.Terms:
        self.calls += not self.training
        if self.calls == self.last:
            signal.raise_signal(signal.SIGINT)
        return super().forward(batch)


Dropped.__name__ = Everything.__name__  # a setting that a run is resumed with


def loader(data: torch.Tensor, workers: int = 0) -> DataLoader:
    return DataLoader(
        TensorDataset(data), 8, shuffle=True, drop_last=True, num_workers=workers
    )


SOURCES: dict[str, Callable[[torch.Tensor, Path], Any]] = {
    "tensor": lambda data, path: data,
    "loader": lambda data, path: loader(data),
    "memory map": lambda data, path: mapped(data, path),
}


def mapped(data: torch.Tensor, path: Path) -> Any:
    import numpy as np

    np.save(path / "data.npy", data.numpy())
    return np.load(path / "data.npy", mmap_mode="r")


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", [Everything, Dropped])
def test_all_sources_go_on_within_an_epoch_and_in_validation(
    name, kind, tmp_path, monkeypatch
):
    def run(folder: str, made: type[nn.Module], **options: Any) -> Any:
        torch.manual_seed(0)
        objective, data = made(), SOURCES[name](points(32), tmp_path)
        size = {} if name == "loader" else {"batch_size": 8}
        given = {"valid": points(24), "epochs": 3, "resume": True} | size | options
        given |= {"checkpoint": tmp_path / folder, "views": noisy}
        return objective, fit(objective, data, **given)

    if name == "loader":  # its validation data are one batch
        monkeypatch.setattr(Dropped, "last", 3)
    on_step = None if kind is Dropped else at(6)
    _, history = run("cut", kind, on_step=on_step)
    assert history.interrupted and len(history) == 2
    assert ("valid_value" in history.rows[-1]) is False
    other = pytest.warns(UserWarning, match="got others: objective made of")
    with other if kind is Dropped else nullcontext():
        objective, history = run("cut", Everything)
    peaceful, expected = run("through", Everything)
    assert_same(objective.state_dict(), peaceful.state_dict())
    assert_same(history.rows, expected.rows)


def test_an_interrupt_keeps_the_last_epoch_that_was_not_yet_written(tmp_path):
    options = {"epochs": 9, "checkpoint": tmp_path, "checkpoint_every": 100}
    history = fit(Everything(), points(), views=noisy, on_epoch=at(2), **options)
    assert history.interrupted and len(history) == 2
    assert len(read(tmp_path / "last.safetensors")["history"]) == 2


def test_fewer_epochs_than_the_run_has_begun_are_warned_of(tmp_path):
    options = {"views": noisy, "checkpoint": tmp_path, "batch_size": 8}
    fit(Everything(), points(), epochs=9, on_step=at(4), **options)
    with pytest.warns(UserWarning, match="at least the 2 that .* has, got 1"):
        fit(Everything(), points(), epochs=1, resume=True, **options)


# --- who hears of it ---------------------------------------------------------------


def test_the_log_says_where_it_stopped_and_the_history_that_it_did(caplog):
    with caplog.at_level(logging.WARNING):
        history = fit(Everything(), points(), views=noisy, batch_size=8, on_step=at(4))
    assert "interrupted in epoch 2, after step 4; the parameters stay" in caplog.text
    assert "1 epoch and a part, interrupted" in repr(history)
    assert history.finished == 1 and len(history) == 2
    assert "interrupted" in history._repr_html_()


def test_rounds_and_phases_stop():
    objective = ps.limits.DeepClustering(
        ps.nn.MLPEncoder((EVENT,), 2, hidden=(8,)), components=3, items=24
    )

    def assign() -> None:
        objective.assign(ps.embed(objective, points()))

    options = {"views": noisy, "progress": False, "batch_size": 8}
    rounds = ps.train.fit_rounds(
        objective, points(), assign, rounds=4, epochs=2, on_step=at(2), **options
    )
    assert rounds.interrupted and rounds["round"].tolist() == [1]
    base = ps.limits.SimCLR(ps.nn.MLPEncoder((EVENT,), 2, hidden=(8,)))
    objective = ps.limits.PID(base, components=3, items=24)
    phases = ps.train.fit_phases(
        objective, points(), assign, first=1, epochs=4, on_step=at(5), **options
    )
    assert phases.interrupted and len(phases) == 2


@pytest.mark.parametrize("where", ["assign", "on_step"])
def test_rounds_before_an_error_or_an_interrupt_are_kept(where):
    objective = ps.limits.DeepClustering(
        ps.nn.MLPEncoder((EVENT,), 2, hidden=(8,)), components=3, items=24
    )
    begun, signals = [], [KeyboardInterrupt, ValueError]

    def assign() -> None:
        begun.append(0)
        if where == "assign" and len(begun) == 3:
            raise kind("no clusters")
        objective.assign(ps.embed(objective, points()))

    def on_step(step: int, terms: ps.Terms) -> None:
        if where == "on_step" and len(begun) == 3 and step == 4:
            raise kind("no step")

    options = {"views": noisy, "progress": False, "batch_size": 8, "epochs": 2}
    options["on_step"] = on_step
    for kind in signals:
        begun.clear()
        fitted = partial(ps.train.fit_rounds, objective, points(), assign, **options)
        if kind is KeyboardInterrupt:
            history = fitted()
            assert history.interrupted
        else:
            with pytest.raises(ValueError, match="no ") as caught:
                fitted()
            history = caught.value.history
            whole = len(history)
            assert caught.value.__notes__ == [
                f"{whole} epochs are in history of the error"
            ]
        # Two rounds, and with an error in a step the whole epoch before it.
        finished = [1, 1, 2, 2] + [3] * (where == "on_step")
        assert history["round"].tolist()[:5] == finished
        assert history["epoch"].tolist()[:5] == list(range(1, len(finished) + 1))


def test_calibration_stops():
    prior = ps.priors.Gaussian(1, ps.hyper.Positive(dist.LogNormal(-1.0, 0.3)))
    parts = ps.nn.MLPEncoder((2,), 1, hidden=(4,)), ps.nn.MLPDecoder(1, (2,))
    fits = []

    def build() -> ps.limits.SimVAE:
        return ps.limits.SimVAE(
            ps.Joint(deepcopy(prior), ps.likelihoods.Gaussian(0.5), *deepcopy(parts))
        )

    def short(objective: nn.Module, data: Any) -> None:
        fits.append(fit(objective, data, epochs=9, on_step=at(1)))

    with pytest.raises(KeyboardInterrupt):
        ps.calibration.simulation_based_calibration(
            build, short, items=8, views=2, draws=5, repeats=3
        )
    assert len(fits) == 1


def test_comparison_stops_without_a_table():
    data = ps.data.digits().take(60, 40)
    options = {"epochs": 3, "jobs": 1, "progress": False, "on_epoch": at(1)}
    with pytest.raises(KeyboardInterrupt):
        fit_methods(["VAE", "SimCLR"], data, dim=2, **options)


def test_the_command_ends_with_130_and_goes_on(tmp_path, monkeypatch, capsys):
    command = ["fit", "SimCLR", "--items", "200", "--epochs", "4", "--dim", "2"]
    command += ["--out", str(tmp_path)]
    given = cli.recipes.fit
    cut = partial(given, on_epoch=at(2))
    monkeypatch.setattr(cli.recipes, "fit", cut)
    assert cli.main(command) == 130
    assert "--resume" in capsys.readouterr().err
    assert ps.saving.read(tmp_path)["notes"]["unfinished"] == "2 of 4 epochs"
    monkeypatch.setattr(cli.recipes, "fit", given)
    assert cli.main([*command, "--resume"]) == 0
    assert "unfinished" not in ps.saving.read(tmp_path)["notes"]
    assert len(json.loads((tmp_path / "history.json").read_text())) == 4


# --- the context -------------------------------------------------------------------


def test_a_second_signal_ends_at_once_but_not_too_soon_nor_while_held(monkeypatch):
    monkeypatch.setattr(interrupts, "APART", 0.05)
    with pytest.raises(KeyboardInterrupt, match="^$"), Interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # of a program that passes it on
        time.sleep(0.06)
        signal.raise_signal(signal.SIGTERM)
        with asked.held():
            signal.raise_signal(signal.SIGINT)
        assert asked.asked
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


def test_contexts_within_one_another_hear_of_it_and_others_do_not():
    with Interrupts() as outer, Interrupts() as inner, Interrupts(False) as other:
        signal.raise_signal(signal.SIGTERM)
        assert outer.asked and inner.asked and not other.asked
        with pytest.raises(KeyboardInterrupt):
            inner.check()
    assert not Interrupts().asked


def test_handlers_of_others_stay():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with Interrupts() as asked:
            signal.raise_signal(signal.SIGINT)
        assert heard == [1] and not asked.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_fit_in_a_thread_leaves_signals_alone():
    found = []

    def run() -> None:
        found.append(fit(Everything(), points(), views=noisy, epochs=2))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(found[0]) == 2


def test_an_interrupt_within_a_step_leaves_the_last_checkpoint(tmp_path, caplog):
    def views(x: torch.Tensor) -> torch.Tensor:
        if len(asked) == 7:
            raise KeyboardInterrupt
        asked.append(1)
        return noisy(x)

    asked: list[int] = []
    with caplog.at_level(logging.WARNING):
        history = fit(
            Everything(), points(), views=views, batch_size=8, checkpoint=tmp_path
        )
    assert history.interrupted and "within the step after step" in caplog.text
    saved = read(tmp_path / "last.safetensors")
    assert saved["place"] is None and len(saved["history"]) == 1


@pytest.mark.slow  # starts a kernel
@pytest.mark.parametrize("compile", [False, True])
def test_in_a_notebook_the_kernel_lives_and_has_model_and_history(compile):
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        shown: list[str] = []

        def run(code: str, interrupt: str = "") -> None:
            """Run a cell, and interrupt the kernel when it has printed a text."""

            def hear(message: dict[str, Any]) -> None:
                if message["msg_type"] == "stream":
                    shown.append(message["content"]["text"])
                if message["msg_type"] == "stream" and interrupt in shown[-1].split():
                    manager.interrupt_kernel()

            reply = client.execute_interactive(code, timeout=300, output_hook=hear)
            assert reply["content"]["status"] == "ok", reply["content"]

        run("import torch, probssl as ps; torch.manual_seed(0)")
        run(
            "x = torch.rand(64, 6)\n"
            "o = ps.limits.VAE(ps.Joint(ps.priors.Independent(2), "
            "ps.likelihoods.Gaussian(0.1), ps.nn.MLPEncoder((6,), 2), "
            "ps.nn.MLPDecoder(2, (6,))))\n"
            "said = lambda step, terms: print('now') if step == 3 else None\n"
            f"h = ps.fit(o, x, epochs=10**6, compile={compile}, progress=False, "
            "on_step=said)",
            interrupt="now",
        )
        run("print(h.interrupted, 0 < len(h) < 10**6, ps.embed(o, x).shape)")
        assert "True True (64, 2)" in "".join(shown)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
