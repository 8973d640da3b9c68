"""Every benchmark runs in a short form; what it measures is never tested."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def priors(module: ModuleType, results: Path) -> None:
    figures = module.main(blocks=1, steps=1, results=results)
    assert figures["Gaussian"]["ratio"] == 1
    assert all(figure["ms"] > 0 for figure in figures.values())


def normaliser(module: ModuleType, results: Path) -> None:
    figures = module.main(items=(16,), many=64, repeats=1, results=results)
    assert set(figures["seconds"]["16"]) == set(module.PRIORS)
    assert all(size >= 0 for size in figures["megabytes"].values())


SHORT = {"normaliser": normaliser, "priors": priors}


def test_every_benchmark_has_a_short_form():
    shared = {"measure"}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - shared == set(SHORT)


@pytest.mark.parametrize("name", SHORT)
def test_benchmark_runs(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)  # as for a script that is run
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    SHORT[name](module, tmp_path / "results.json")
    assert (tmp_path / "results.json").is_file()
