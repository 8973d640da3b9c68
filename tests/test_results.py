"""RESULTS.md keeps its word: its tables are those of the measured figures."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "RESULTS.md").read_text()


def figures(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spread(values: list[float], digits: int = 3) -> str:
    x = torch.tensor(values, dtype=torch.float64)
    return f"{x.mean():.{digits}f} ± {x.std():.{digits}f}"


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its first two lines."""
    table = re.search(r"^\|.*?(?=\n\n)", TEXT.split(heading)[1], re.M | re.S)
    lines = table.group(0).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_tables_of_additions_are_those_of_their_fits():
    measured = figures("against_baselines")
    assert script("against_baselines").tables(measured["rows"]).strip() in TEXT
    fits = {(row["data"], row["seed"], row["method"]) for row in measured["rows"]}
    assert len(fits) == len(measured["rows"]) == 2 * 3 * 17


@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_the_areas_of_the_affinity_were_measured(data):
    measured = [row for row in figures("same_content")["rows"] if row["data"] == data]
    names = [key for key in measured[0] if key not in ("data", "seed", "affinity")]
    shown = {
        cells[1]: cells[2:] for cells in rows("## Same content") if cells[0] == data
    }
    assert shown.keys() == {"learned", "closed form"}
    for kind, cells in shown.items():
        own = [row for row in measured if row["affinity"] == kind]
        assert len(own) == 3
        assert cells == [spread([row[name] for row in own]) for name in names]


def test_the_scores_of_the_maps_were_measured():
    measured = figures("digit_map")["rows"]
    names = {"`maps.NeighbourMap`": "parametric", "t-SNE": "t-SNE", "PCA": "PCA"}
    digits = {"held_out": 3, "train": 3, "silhouette": 3, "wall_seconds": 0}
    shown = rows("## A map of ten thousand digits")
    assert [cells[0] for cells in shown] == list(names)
    for cells in shown:
        own = [row for row in measured if row["method"] == names[cells[0]]]
        assert len(own) == 3
        found = [spread([row[key] for row in own], n) for key, n in digits.items()]
        assert cells[1:] == found
    best = [row for row in measured if row["method"] == "parametric"]
    assert all(row["held_out"] >= 0.9 for row in best)
    assert all(row["wall_seconds"] < 600 for row in best)
