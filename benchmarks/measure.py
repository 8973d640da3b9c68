"""How all benchmarks measure: interleaved timing, memory, matrix ceiling, reports.

Subjects are timed interleaved, a block of calls of each in turn, so that other load on
the machine slows all of them alike. The result is a ratio of medians over the blocks;
seconds depend on the machine, which the report names.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

from probssl.runtime import files

__all__ = [
    "Timing",
    "compared",
    "device_of",
    "digits",
    "hardware",
    "interleaved",
    "matrix_ceiling",
    "matrix_units",
    "options",
    "peak_memory",
    "report",
    "seconds_of",
    "table",
]

# Where a benchmark writes, unless --out says otherwise.
OUT = Path(__file__).parent.parent / "runs" / "results"
Subject = Callable[[], object]
Name = TypeVar("Name")
# Writing 5 here resets the peak of the resident memory to the present value.
CLEAR = Path("/proc/self/clear_refs")


class Timing(NamedTuple):
    """Seconds per call, one number for each block."""

    blocks: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.blocks)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.blocks) < 2:
            return self.blocks[0], self.blocks[0]
        low, _, high = statistics.quantiles(self.blocks, n=4, method="inclusive")
        return low, high

    def ratio(self, other: "Timing") -> float:
        """The ratio of the medians."""
        return self.median / other.median

    def figures(self) -> dict[str, Any]:
        """Median and quartiles in milliseconds, for the report."""
        low, high = self.quartiles
        return {
            "ms": digits(1e3 * self.median),
            "quartiles": [digits(1e3 * low), digits(1e3 * high)],
        }


def interleaved(
    subjects: Mapping[Name, Subject],
    blocks: int = 7,
    repeats: int = 1,
    device: torch.device | str = "cpu",
) -> dict[Name, Timing]:
    """Time all subjects interleaved; the first block of each is a warm-up.

    Every round starts with another subject, so that none always follows the same one.

    Arguments:
        blocks: The number of blocks that count.
        repeats: The calls of a subject in a block.
        device: The device of the subjects; a GPU is synchronised around a block.
    """
    names = list(subjects)
    timed: dict[Name, list[float]] = {name: [] for name in names}
    bar = tqdm(total=(blocks + 1) * len(names), leave=False)
    for block in range(blocks + 1):
        first = block % len(names)
        for name in names[first:] + names[:first]:
            bar.set_description(str(name))
            timed[name].append(seconds_of(subjects[name], repeats, device))
            bar.update()
    bar.close()
    return {name: Timing(tuple(each[1:])) for name, each in timed.items()}


def seconds_of(
    subject: Subject, repeats: int = 1, device: torch.device | str = "cpu"
) -> float:
    """Seconds per call."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        subject()
    if cuda:
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeats


def device_of(name: str = "auto") -> torch.device:
    """The device of this name; ``"auto"`` is a GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def options(description: str | None, *, device: bool = True) -> argparse.ArgumentParser:
    """The command line of every benchmark, described by its first line.

    Arguments:
        device: Whether it runs on a GPU as well.
    """
    first = (description or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=first)
    if device:
        parser.add_argument("--device", default="auto", help="cpu or cuda")
    text = "folder of the results; benchmarks/results replaces the committed ones "
    text += "(default: runs/results)"
    parser.add_argument("--out", type=Path, default=OUT, help=text)
    return parser


def compared(timed: Mapping[str, Timing]) -> dict[str, dict[str, Any]]:
    """Milliseconds of all subjects, and the ratio of each to the first."""
    first = next(iter(timed.values()))
    return {
        name: each.figures() | {"ratio": digits(each.ratio(first))}
        for name, each in timed.items()
    }


def peak_memory(
    call: Callable[[], object], device: torch.device | str = "cpu"
) -> float:
    """The peak memory of a call in megabytes, beyond what is held before it.

    Call it once before as a warm-up. On a GPU this is the memory that torch allocates;
    on a CPU the resident memory of this process, after freed memory is returned to the
    system (Linux only).
    """
    if torch.device(device).type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in kibibytes
    call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * (peak - before) / 1e6


def matrix_ceiling(dtype: torch.dtype) -> float:
    """The best GFLOP/s of a CPU in products of large square matrices."""
    products = {}
    for n in (1_024, 2_048):
        a, b, out = torch.randn(3, n, n, dtype=dtype)
        products[n] = partial(torch.mm, a, b, out=out)
    timed = interleaved(products, 5)
    return max(2e-9 * n**3 / min(each.blocks) for n, each in timed.items())


def matrix_units(device: torch.device | str = "cpu") -> bool:
    """Whether the hardware has matrix units for bfloat16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = set(_processor("flags").split())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


def hardware(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads, memory and GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "processor": _processor("model name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory, GB": round(memory / 1e9),
    }
    if torch.device(device).type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found["GPU"] = gpu.name
        found["memory of the GPU, GB"] = round(gpu.total_memory / 1e9)
    return found


def _processor(key: str) -> str:
    """An entry of /proc/cpuinfo for the first processor, or an empty string."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for k, _, value in pairs if k.strip() == key), "")


def report(
    script: str,
    path: Path,
    figures: Any,
    *,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> None:
    """Write the figures with hardware, versions and settings, as JSON.

    Arguments:
        script: The path of the benchmark from the root of the repository.
        settings: Sizes and repeats. An underscore becomes a space.
    """
    packages = ("torch", "pyro-ppl", "probssl")
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in packages}
    content = {
        "script": script,
        **{name.replace("_", " "): value for name, value in settings.items()},
        "hardware": hardware(device),
        "versions": versions,
        "figures": figures,
    }
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def table(rows: Mapping[str, Mapping[str, object]], title: str = "") -> None:
    """Print a table: a row for each name, a column for each figure, - where missing."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [[title, *columns]]
    lines += [
        [name, *(str(row.get(c, "-")) for c in columns)] for name, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        padded = (cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))
        print(name.ljust(widths[0]), *padded, sep="  ")


def digits(x: float, figures: int = 3) -> float:
    """Round to so many significant digits."""
    return float(f"{x:.{figures}g}")
