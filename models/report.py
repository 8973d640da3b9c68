"""What experiments share: splits, choices, reports, tables and the command line."""

import json
import math
import os
import platform
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import probssl as ps
from probssl.runtime import files
from probssl.runtime.interrupts import Interrupts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # committed, and read by --tables
OUT = ROOT / "runs" / "results"  # where a script writes, unless --out says otherwise
VALID = 5_000

Parts = dict[str, ps.data.Split]
Row = dict[str, Any]


def parser(about: str | None) -> ArgumentParser:
    """The command line of a script, from its docstring: `--tables` and `--out`."""
    made = ArgumentParser(description=(about or "").partition("\n")[0])
    made.add_argument("--tables", action="store_true", help="of the committed figures")
    text = "folder of the results; benchmarks/results replaces the committed ones "
    text += "(default: runs/results)"
    made.add_argument("--out", type=Path, default=OUT, help=text)
    return made


def command(
    about: str | None,
    main: Callable[..., Any],
    tables: Callable[[], str] | None = None,
    choose: Callable[..., Any] | None = None,
) -> None:
    """Run a script without other arguments: `main`, `--tables`, or `--choose`."""
    made = parser(about)
    if choose is not None:
        made.add_argument("--choose", action="store_true", help="on validation data")
    options = made.parse_args()
    if options.tables and tables is None:
        made.error("this script prints no tables of its figures")
    if options.tables and tables is not None:
        print(tables())
    elif choose is not None and options.choose:
        torch.set_num_threads(1)
        choose(results=options.out)
    else:
        main(results=options.out)


def parts(data: ps.data.Dataset, most: int = VALID, levels: int | None = None) -> Parts:
    """Training, validation and test images.

    Arguments:
        most: The number of validation images, the last of the training set; at most a
            fifth of it.
        levels: If not None, images are floats on the grid of views of so many levels.
    """
    n = len(data.train) - min(most, len(data.train) // 5)
    train = data.train
    found = {
        "train": train.rows(slice(n)),
        "validation": train.rows(slice(n, None)),
        "test": data.test,
    }
    if levels is None:
        return found
    grid = ps.views.Grid(levels)
    return {
        name: part._replace(images=grid(torch.as_tensor(part.images).float() / 255))
        for name, part in found.items()
    }


def without_test(data: ps.data.Dataset, most: int = VALID) -> ps.data.Dataset:
    """Training images, and validation images in the place of the test images."""
    found = parts(data, most)
    return data._replace(train=found["train"], test=found["validation"])


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
    files.write(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def draw(path: Path, figure: "Figure", dpi: int = 150) -> None:
    """Write a figure as a picture."""
    files.write(path, lambda part: figure.savefig(part, dpi=dpi))


def read(path: Path) -> list[Row]:
    """The rows of a report."""
    rows: list[Row] = json.loads(path.read_text())["rows"]
    return rows


def known(path: Path, **content: Any) -> Any:
    """The rows of a report with this content; none where there is no such report."""
    report = json.loads(path.read_text()) if path.is_file() else {}
    return report["rows"] if report and content.items() <= report.items() else []


def mapped(
    function: Callable[..., Any], jobs: Iterable[Any], parallel: bool
) -> Iterator[Any]:
    """The results of jobs in their order, by a process for each core or by this one."""
    if not parallel:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        yield from pool.map(function, jobs)


def collected(
    path: Path,
    script: str,
    cells: Sequence[Row],
    fit: Callable[[Row], Row],
    **content: Any,
) -> list[Row]:
    """The rows of these cells: those that the report has, the others by `fit`.

    A row has what its cell has, and what `fit` finds. The report keeps other rows, and
    is written after each fit, so that a run that was stopped goes on.
    """

    def of(cell: Row) -> list[Row]:
        return [row for row in known(path, **content) if cell.items() <= row.items()]

    with Interrupts() as interrupts:
        for cell in tqdm([cell for cell in cells if not of(cell)], unit="fit"):
            row = cell | fit(cell)
            interrupts.check()  # its fit was cut short
            write(path, script, **content, rows=[*known(path, **content), row])
    return [row for cell in cells for row in of(cell)]


def scores(rows: Iterable[Row]) -> list[tuple[Row, list[float]]]:
    """Each setting with its score in each seed, a mean over what else was fitted."""
    by: dict[str, tuple[Row, dict[int, list[float]]]] = {}
    for row in rows:
        _, seeds = by.setdefault(json.dumps(row["setting"]), (row["setting"], {}))
        seeds.setdefault(row["seed"], []).append(row["score"])
    return [
        (setting, [mean(seeds[seed]) for seed in sorted(seeds)])
        for setting, seeds in by.values()
    ]


def gains(rows: Iterable[Row], first: Row) -> list[tuple[Row, float, float]]:
    """The other settings with their gains over the first, the best of them first.

    Gains are paired: each seed has its images, labels and first weights. Beside the
    mean stands its standard error, of one seed infinite.
    """
    found = scores(rows)
    old = next(each for setting, each in found if setting == first)
    others = []
    for setting, each in found:
        if setting != first and len(each) == len(old):
            apart = [a - b for a, b in zip(each, old, strict=True)]
            error = stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else math.inf
            others.append((setting, mean(apart), error))
    return sorted(others, key=lambda other: -other[1])


def chosen(rows: Iterable[Row], first: Row) -> Row:
    """The first setting, unless others gain more than two standard errors: the best of
    them."""
    better = [s for s, gain, error in gains(rows, first) if gain > 2 * error]
    return [*better, first][0]


def choices(rows: Sequence[Row], first: Row, digits: int = 3) -> str:
    """Settings with their scores and their gains over the first, in Markdown."""
    found = {json.dumps(setting): each for setting, each in scores(rows)}
    lines = [
        [*map(named, first.values()), spread(found[json.dumps(first)], digits), "–"]
    ]
    for setting, above, error in gains(rows, first):
        score = spread(found[json.dumps(setting)], digits)
        gained = f"{above:+.{digits}f}"
        gained += f" ± {error:.{digits}f}" if error < math.inf else ""
        lines.append([*map(named, setting.values()), score, gained])
    return markdown([*first, "score", "above the first"], lines)


def named(value: Any) -> str:
    """The value of a setting in a table."""
    if isinstance(value, list):
        return ", ".join(map(named, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def kept(folder: Path) -> Row | None:
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
