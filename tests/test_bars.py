"""Progress bars are shown unless they are unwanted or TQDM_DISABLE is set."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import probssl as ps
from probssl.bars import at_terminal, shown

ROOT = Path(__file__).parent.parent
FIT = """
import sys, torch
import probssl as ps
sys.stderr.isatty = lambda: True
simclr = ps.limits.SimCLR(ps.nn.MLPEncoder((4,), 2, hidden=()))
ps.fit(simclr, ps.data.groups(torch.rand(8, 2, 4)), epochs=1, batch_size=8)
from probssl.bars import at_terminal
from tqdm import tqdm
list(tqdm(range(3), **at_terminal()))
"""


def test_the_environment_variable_silences_what_would_be_shown():
    """tqdm reads it when it is imported, hence another process."""
    variables = {"TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-W", "error", "-c", FIT]
    done = subprocess.run(
        run, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("progress", [True, False])
def test_a_fit_shows_its_bar_if_wanted(progress, capsys):
    simclr = ps.limits.SimCLR(ps.nn.MLPEncoder((4,), 2, hidden=()))
    views = ps.data.groups(torch.rand(8, 2, 4))
    ps.fit(simclr, views, epochs=1, batch_size=8, progress=progress)
    assert ("1/1" in capsys.readouterr().err) == progress


def test_a_bar_for_a_terminal_is_hidden_elsewhere(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda there=there: there)
        assert at_terminal() == shown(there) == ({} if there else {"disable": True})


def test_no_bar_is_given_an_option_that_overrides_the_environment():
    """`disable=False`, and `disable=None` at a terminal, would show it all the same."""
    for path in (ROOT / "probssl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                named = {keyword.arg for keyword in node.keywords}
                assert "disable" not in named, f"{path}, line {node.lineno}"
