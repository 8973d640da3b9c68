"""The scripts of experiments and benchmarks have one command line."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {"report", "cifar10", "handwritten", "measure", "subjects"}
FILES = [*ROOT.glob("models/*.py"), *ROOT.glob("benchmarks/*.py")]
SCRIPTS = sorted(path for path in FILES if path.stem not in SHARED)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_does_and_writes_where_it_is_told(
    path, capsys, monkeypatch
):
    """Without --out it leaves the committed results as they are."""
    if path.stem == "multimodal":
        pytest.importorskip("multivae", reason="MultiVae is no dependency")
    for folder in ("models", "benchmarks"):
        monkeypatch.syspath_prepend(ROOT / folder)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    said = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--out OUT" in said
    assert "benchmarks/results replaces the committed ones" in said
    assert "(default: runs/results)" in said
