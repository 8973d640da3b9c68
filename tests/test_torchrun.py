"""A fit in two processes is that in one; what torchrun starts ends together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from under_torchrun import BEST, everything, with_noise, without_noise

import probssl as ps
from probssl.train import checkpoint
from probssl.train.checkpoint import read, write
from probssl.train.steps import Step

WORLD, ROOT = 2, Path(__file__).parent.parent
SCRIPT = str(Path(__file__).parent / "under_torchrun.py")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Two processes, started as a user would."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(WORLD), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    return printed(torchrun(SCRIPT, str(folder)))


@pytest.fixture(scope="module")
def found(folder: Path, output: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    try:
        return everything(tmp_path_factory.mktemp("alone"))
    finally:
        torch.set_default_dtype(torch.float32)


def but_moments(state: dict[str, Any]) -> dict[str, Any]:
    """All but what each process has of its own items."""
    return {k: v for k, v in state.items() if k != "moments"}


def test_a_fit_in_two_processes_is_that_in_one(found, alone):
    for has in found:
        assert_close(has["fit"]["rows"], alone["fit"]["rows"], **EXACT)
        states = (but_moments(one["fit"]["state"]) for one in (has, alone))
        assert_close(*states, **EXACT)
    assert len(alone["fit"]["rows"]) == BEST + 2  # ended early


def test_items_that_processes_cannot_share_are_all_fitted(found, alone):
    for has in found:
        assert_close(has["odd"]["rows"], alone["odd"]["rows"], **EXACT)
        assert_close(has["odd"]["state"], alone["odd"]["state"], **EXACT)


def test_processes_with_other_numbers_of_items_end_with_a_sentence(found, alone):
    assert alone["unequal"] == []
    for has in found:
        same, shares, batches = has["unequal"]
        assert "the same items in all processes, got 40 and 49 in" in same
        assert "as many items in all processes, got 20 and 25 items from" in shares
        assert "batches of one size in all processes, got 0 and 4 items" in batches


def test_it_has_the_same_checkpoints(found, folder, alone, tmp_path, float64):
    without_noise(tmp_path)
    for name in ("best", "last"):
        two, one = (read(f / f"{name}.safetensors") for f in (folder / "fit", tmp_path))
        assert_close(*(but_moments(s["objective"]) for s in (two, one)), **EXACT)
        assert_close(two["optimizer"], one["optimizer"], **EXACT)
        for part in ("scheduler", "steps"):
            assert two[part] == one[part]
        assert len(two["random"]) == WORLD and len(one["random"]) == 1
        for mine, theirs in zip(two["history"], one["history"], strict=True):
            assert_close(mine | {"seconds": 0}, theirs | {"seconds": 0}, **EXACT)


def test_all_processes_end_with_the_same_numbers(found):
    one, other = found
    assert_close(one["fit"], other["fit"], rtol=0, atol=0)  # moments included
    for name in ("noise", "resumed"):
        first, second = one[name] | {"noise": 0}, other[name] | {"noise": 0}
        assert_close(first, second, rtol=0, atol=0)
        assert not torch.equal(one[name]["noise"], other[name]["noise"])


def test_it_ends_where_one_process_wants_it(found, alone):
    for has in (*found, alone):
        assert [row["step"] for row in has["on_step"]] == [3]
        assert len(has["on_epoch"]) == 3


def test_it_is_resumed_bit_by_bit(found, alone):
    for has in (*found, alone):
        assert_close(has["resumed"], has["noise"], rtol=0, atol=0)


def test_resumed_by_fewer_processes_it_keeps_the_order(found, folder, alone, float64):
    resumed = without_noise(folder / "halved", resume=True)
    assert_close(resumed["rows"], alone["fit"]["rows"], **EXACT)
    noisy = with_noise(folder / "noise", resume=True, epochs=5)
    assert noisy.keys() == alone["noise"].keys()


def test_a_checkpoint_of_the_first_format_is_resumed(tmp_path, alone, float64):
    with_noise(tmp_path, epochs=2)
    last = tmp_path / "last.safetensors"
    state = read(last)
    (random,) = state["random"]
    state |= {"order": random.pop("order"), "random": random}
    with mock.patch.object(checkpoint, "FORMATS", 2 * checkpoint.FORMATS[:1]):
        write(last, state)
    assert b"probssl checkpoint 1" in last.read_bytes()
    assert_close(with_noise(tmp_path, resume=True), alone["noise"], rtol=0, atol=0)


def test_one_of_the_processes_prints_and_writes(found, folder, output):
    assert output.count("written to") == output.count("History(1 epoch;") == 1
    assert isinstance(ps.load(folder / "run"), ps.limits.SimCLR)
    assert {has["saved"] for has in found} == {str(folder / "saved")}
    assert (folder / "run" / "map.png").exists()
    assert [has["warns"] for has in found] == [True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the threads")
def test_no_thread_of_the_group_is_left_when_python_shuts_down(output, folder):
    for rank in range(WORLD):
        left = (folder / f"{rank}.threads").read_text().split()
        assert left and not any("gloo" in name for name in left)


def test_a_parameter_that_another_rank_uses_has_gradient_zero_here():
    parts = nn.ParameterList(torch.ones(2) for _ in range(3))
    mine, theirs, late = parts
    step, other = (
        Step(parts, torch.optim.SGD(parts)),
        torch.tensor([False, True, False]),
    )
    mine.grad = torch.ones(2)
    module = "probssl.train.steps"
    with (
        mock.patch(f"{module}.gather_to_cpu", lambda x: torch.stack([x, other])),
        mock.patch(f"{module}.average") as average,
    ):
        step._average_gradients()
        assert len(average.call_args.args[0]) == 2
        assert_close(theirs.grad, torch.zeros(2))
        assert late.grad is None
        theirs.requires_grad_(False).grad = None  # frozen: momentum must not move it
        step._average_gradients()
        assert theirs.grad is None
        late.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match="same parameters"):
            step._average_gradients()


@pytest.mark.slow  # starts the command line twice, with all its figures
@pytest.mark.parametrize(
    "command, files",
    [
        (["fit", "SimVAE"], ["posterior.nc", "samples.png", "history.json"]),
        (["compare", "--methods", "SimVAE,SimCLR"], ["comparison.json", "matrix.png"]),
    ],
)
def test_the_command_line_runs_under_torchrun(command, files, tmp_path):
    options = ["--data", "digits", "--epochs", "2", "--items", "200"]
    run = torchrun("-m", "probssl.cli", *command, *options, "--out", str(tmp_path))
    assert printed(run).count("written to") == 1
    for name in files:
        assert (tmp_path / name).exists()


@pytest.mark.slow  # waits for processes to be killed
@pytest.mark.parametrize("how", ["error", "interrupt"])
def test_when_one_process_fails_none_is_left(how, tmp_path):
    run = torchrun(SCRIPT, str(tmp_path), how)
    assert run.stdout is not None
    while "STARTED" not in run.stdout.readline():
        assert run.poll() is None
    began = time.monotonic()
    if how == "interrupt":
        run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - began < 45
    assert ("one process fails" in errors) == (how == "error")
