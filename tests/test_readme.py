"""The README keeps its word: its code runs, and its figures are the measured ones."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.usefixtures("short_decoders")
def test_the_code_runs(tmp_path, monkeypatch, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    short, found = re.subn(r"epochs=\d+", "epochs=1", code)
    assert found == len(re.findall(r"ps\.fit\(", code))
    monkeypatch.chdir(tmp_path)
    exec(compile(short.replace("draws=500", "draws=5"), "README", "exec"), {})
    assert "SimCLR" in capsys.readouterr().out
    assert (tmp_path / "runs" / "simvae" / "model.safetensors").is_file()


def test_the_commands_are_those_of_the_continuous_integration():
    commands = (ROOT / ".ci" / "run").read_text()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for command in block.strip().split(" && "):
            words = command.split()
            assert all(word in commands for word in words), command


def test_every_figure_in_the_table_was_measured():
    results = ROOT / "benchmarks" / "results" / "digits.json"
    measured = json.loads(results.read_text())["mean and sd"]
    columns = ["linear_probe", "few_label_probe", "knn", "cluster_accuracy"]
    rows = re.findall(r"^\| (.+?) \|((?: [.\d]+ ± [.\d]+ \|){4})", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(measured)
    for name, cells in rows:
        shown = [cell.strip() for cell in cells.strip(" |").split("|")]
        expected = (measured[name][column] for column in columns)
        assert shown == [f"{mean:.3f} ± {sd:.3f}" for mean, sd in expected]
