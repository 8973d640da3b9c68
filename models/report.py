"""What every experiment writes: its rows with hardware and versions, and its tables."""

import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

__all__ = ["RESULTS", "ROOT", "gain", "kept", "markdown", "read", "spread", "write"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def write(path: Path, script: str, **content: Any) -> None:
    """Write a report as JSON: script, hardware, versions, then the content.

    Arguments:
        script: The name of the file in models/.
    """
    cores = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    gpus = torch.cuda.device_count()
    if gpus:
        cores += f", {gpus} × {torch.cuda.get_device_name()}"
    packages = ("torch", "numpy", "scikit-learn", "probssl")
    report = {
        "script": f"models/{script}",
        "hardware": cores,
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages},
        **content,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a report."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def kept(folder: Path) -> dict[str, Any] | None:
    """The notes that `probssl.save` left in the folder of a fit; None without one."""
    path = folder / "probssl.json"
    return json.loads(path.read_text())["notes"] if path.is_file() else None


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *lines = ("| " + " | ".join(cells) + " |" for cells in (columns, *rows))
    return "\n".join([head, "|" + "---|" * len(columns), *lines])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; of one seed the value, of none a dash."""
    if not values:
        return "–"
    shown = f"{mean(values):.{digits}f}"
    return f"{shown} ± {stdev(values):.{digits}f}" if len(values) > 1 else shown


def gain(values: Sequence[float], base: Sequence[float], digits: int = 3) -> str:
    """The mean of paired differences ± its standard error; of one pair no error."""
    each = [a - b for a, b in zip(values, base, strict=True)]
    if not each:
        return "–"
    shown = f"{mean(each):+.{digits}f}"
    if len(each) < 2:
        return shown
    return f"{shown} ± {stdev(each) / math.sqrt(len(each)):.{digits}f}"
