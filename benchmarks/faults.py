"""Kills and disk errors at each step of each writer: what is lost, mixed or unclear.

A writer flushes, renames and removes files. Each of these steps is made to fail once,
by the end of the process (``os._exit``) and by a full disk (ENOSPC); contents are cut
in half first. After each fault the folder is read, the work is done again, or resumed,
and compared bit by bit with work that nothing disturbed.

    python benchmarks/faults.py --out faults.json
"""

import errno
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from measure import options, report
from tqdm import tqdm

import probssl as ps
from probssl import cli
from probssl.compare.kept import kept_rows
from probssl.evaluation import FewLabel
from probssl.runtime import files
from probssl.train.checkpoint import read

RESULTS = Path(__file__).parent / "results" / "faults.json"
KILLED, REFUSED, UNCLEAR, BROKEN = 9, 3, 4, 5  # how a process with a fault ends
EPOCHS, EVERY = 3, 2  # of a fit, and between two checkpoints of its last epoch
DIM, ITEMS = 3, 24


class Writer(NamedTuple):
    """Work that writes files in a folder.

    Arguments:
        before: Makes what the folder holds beforehand.
        work: What is disturbed.
        look: What is wrong in the folder after a fault: "lost", "mixed" or nothing.
        again: Does the work anew, or resumes it; whether it ends as undisturbed work.
    """

    before: Callable[[Path], object]
    work: Callable[[Path], object]
    look: Callable[[Path], str]
    again: Callable[[Path], bool]


class Faults:
    """Counts the steps of a writer, and fails at one of them.

    Arguments:
        at: The step that fails, from 1; 0 only counts.
        kill: Whether the process ends there; otherwise the disk is full.
    """

    def __init__(self, at: int = 0, kill: bool = True) -> None:
        self.at, self.kill, self.count = at, kill, 0

    def fails(self) -> bool:
        """Count a step; whether it is the one that fails."""
        self.count += 1
        return self.count == self.at

    def fail(self, path: object) -> None:
        """End the process, or raise what a full disk raises."""
        if self.kill:
            os._exit(KILLED)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which steps are counted."""
        fill = files._fill

        def halved(path: Path, content: Any) -> None:
            fails = self.fails()
            fill(path, content)
            if fails:
                os.truncate(path, path.stat().st_size // 2)
                self.fail(path)

        with mock.patch.object(files, "_fill", halved):
            with mock.patch.object(os, "fsync", self._watched(os.fsync)):
                with mock.patch.object(os, "replace", self._watched(os.replace)):
                    with mock.patch.object(os, "unlink", self._watched(os.unlink)):
                        yield

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *others: Any, **options: Any) -> Any:
            if self.fails():
                self.fail(path)
            return call(path, *others, **options)

        return watched


def disturbed(work: Callable[[], object], faults: Faults, folder: Path) -> int:
    """Do the work in a process of its own; return how that ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        with faults.active():
            work()
        os._exit(0)
    except OSError as error:
        clear = str(folder) in str(error) and "\n" not in str(error)
        os._exit(REFUSED if clear else UNCLEAR)
    except BaseException:
        os._exit(BROKEN)


def steps_of(writer: Writer) -> int:
    """The number of steps that can fail."""
    faults = Faults()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        writer.before(folder)
        with faults.active():
            writer.work(folder)
    return faults.count


def verdict(writer: Writer, at: int, kill: bool) -> str:
    """What a fault does: "lost", "mixed", "unclear", "other", or nothing."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        writer.before(folder)
        ended = disturbed(partial(writer.work, folder), Faults(at, kill), folder)
        if ended not in (KILLED if kill else REFUSED, 0):
            return "unclear"
        if found := writer.look(folder):
            return found
        if not writer.again(folder):
            return "other"
        return "mixed" if list(folder.rglob("*.part.*")) else ""


# The writers


def linear(number: float) -> ps.nn.MLPEncoder:
    """An encoder whose numbers are all the same."""
    encoder = ps.nn.MLPEncoder((DIM,), 2, hidden=(2,))
    for parameter in encoder.parameters():
        torch.nn.init.constant_(parameter, number)
    return encoder


def saved(folder: Path, number: float) -> None:
    """A save, whose notes say what the weights are."""
    ps.save(linear(number), folder, number=number)


def number_of(folder: Path) -> float:
    """The number of a save; not a number if notes and weights differ."""
    note = json.loads((folder / "probssl.json").read_text())["notes"]["number"]
    weights = torch.cat([p.flatten() for p in ps.load(folder).parameters()])
    return float(note) if bool((weights == note).all()) else float("nan")


def look_at_save(folder: Path, earlier: float | None) -> str:
    """Whether a folder has the earlier save or the one with number 2."""
    try:
        number = number_of(folder)
    except FileNotFoundError:
        return "" if earlier is None else "lost"
    except ValueError:
        return "lost"
    return "" if number in (earlier, 2.0) else "mixed"


def save_again(folder: Path) -> bool:
    """Whether a save after the fault is right."""
    saved(folder, 2.0)
    return number_of(folder) == 2.0


def with_figures(folder: Path, number: float) -> None:
    """A run of the command line: weights, then history and figures."""
    cli._save(linear(number), folder, number=number)
    files.write(folder / "history.json", str(number))
    files.write(folder / "curves.png", lambda part: part.write_text(str(number)))


def look_at_run(folder: Path) -> str:
    """Whether all files are of the run that the weights are of."""
    number = number_of(folder)
    there = [f for f in ("history.json", "curves.png") if (folder / f).exists()]
    alike = all((folder / name).read_text() == str(number) for name in there)
    return "" if alike else "mixed"


def run_again(folder: Path) -> bool:
    """Whether the run is whole when it is written anew."""
    with_figures(folder, 2.0)
    return look_at_run(folder) == "" and (folder / "curves.png").exists()


def fitted(folder: Path, epochs: int = EPOCHS, note: Any = None) -> torch.nn.Module:
    """Fit a small SimVAE, or resume its fit."""
    torch.manual_seed(0)
    joint = ps.Joint(
        ps.priors.Gaussian(2, 0.3),
        ps.likelihoods.Gaussian(0.5),
        ps.nn.MLPEncoder((DIM,), 2, hidden=(4,)),
        ps.nn.MLPDecoder(2, (DIM,), hidden=(4,)),
    )
    objective, x = ps.limits.SimVAE(joint), torch.randn(2 * ITEMS, DIM)

    def after(epoch: int, row: dict[str, float]) -> None:
        row["score"] = -abs(epoch - 2.0)
        if note is not None:
            note(epoch, row, objective)

    ps.fit(
        objective,
        x[:ITEMS],
        views=ps.views.Augment(ps.views.Noise(0.1)),
        epochs=epochs,
        batch_size=ITEMS // 2,
        monitor="score",
        checkpoint=folder,
        checkpoint_every=EVERY,
        resume=True,
        on_epoch=after,
        progress=False,
    )
    return objective


@cache
def undisturbed() -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """The parameters after each epoch of a fit, and its rows."""
    states: list[dict[str, Any]] = [{}]
    rows: list[dict[str, float]] = []

    def note(epoch: int, row: dict[str, float], objective: torch.nn.Module) -> None:
        states.append({k: x.clone() for k, x in objective.state_dict().items()})
        rows.append(dict(row))

    with tempfile.TemporaryDirectory() as folder:
        fitted(Path(folder), note=note)
    return states, [timeless(row) for row in rows]


def timeless(row: dict[str, float]) -> dict[str, float]:
    """A row without what differs from run to run."""
    return {k: v for k, v in row.items() if k != "seconds"}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states are equal bit by bit."""
    return one.keys() == other.keys() and all(
        torch.equal(x, other[k]) for k, x in one.items()
    )


def look_at_fit(folder: Path, least: int) -> str:
    """Whether checkpoints and history are those of one epoch each, of this fit."""
    states, rows = undisturbed()
    last = folder / "last.safetensors"
    if not last.exists():
        return "lost" if least else ""
    for path in (last, folder / "best.safetensors"):
        if not path.exists():
            continue
        try:
            state = read(path)
        except ValueError:
            return "lost"
        epoch = len(state["history"])
        if path == last and epoch < least:
            return "lost"
        if [timeless(row) for row in state["history"]] != rows[:epoch]:
            return "mixed"
        if epoch and not alike(state["objective"], states[epoch]):
            return "mixed"
    if (history := folder / "history.json").exists():
        found = ps.History.from_json(history.read_text()).rows
        if [timeless(row) for row in found] != rows[: len(found)]:
            return "mixed"
    return ""


def fit_again(folder: Path) -> bool:
    """Whether the resumed fit ends bit by bit as the undisturbed one."""
    states, rows = undisturbed()
    ended = alike(fitted(folder).state_dict(), states[EPOCHS])
    history = ps.History.from_json((folder / "history.json").read_text()).rows
    same = [timeless(row) for row in history] == rows
    best = read(folder / "best.safetensors")
    return ended and same and alike(best["objective"], states[2])


ROWS = {
    name: {"terms": {"elbo": float(i)}, "scores": {}} for i, name in enumerate("abc")
}


def measured(folder: Path, names: str = "abc") -> dict[str, Any]:
    """Rows of a comparison, those that are kept or made now."""
    with kept_rows(folder, resume=True) as kept:
        for name in names:
            if kept.get(name, name) is None:
                kept.add(name, name, ROWS[name], FewLabel(0.5, 0.1, (0.4, 0.6)))
        found = {name: kept.get(name, name) for name in names}
    return {name: row[0] for name, row in found.items() if row is not None}


def look_at_rows(folder: Path) -> str:
    """Whether the first rows are kept, and none is another's."""
    if not (folder / "measured.json").exists():
        return "lost"
    with kept_rows(folder, resume=True) as kept:
        if kept.get("a", "a") is None:
            return "lost"
        return "" if all(kept.rows[n]["row"] == ROWS[n] for n in kept.rows) else "mixed"


def one_file(folder: Path, number: int) -> None:
    """What reports, tables, advice and posteriors have in common: one file."""
    files.write(folder / "report.json", json.dumps({"number": number}))


def look_at_file(folder: Path) -> str:
    """Whether the file is the earlier or the later one."""
    try:
        found = json.loads((folder / "report.json").read_text())
    except (FileNotFoundError, ValueError):
        return "lost"
    return "" if found["number"] in (1, 2) else "mixed"


def write_again(folder: Path) -> bool:
    """Whether the file is right when it is written anew."""
    one_file(folder, 2)
    return json.loads((folder / "report.json").read_text()) == {"number": 2}


WRITERS = {
    "save, anew": Writer(
        Path.mkdir,
        lambda f: saved(f, 2.0),
        lambda f: look_at_save(f, None),
        save_again,
    ),
    "save, over another": Writer(
        lambda f: saved(f, 1.0),
        lambda f: saved(f, 2.0),
        lambda f: look_at_save(f, 1.0),
        save_again,
    ),
    "run folder": Writer(
        lambda f: with_figures(f, 1.0),
        lambda f: with_figures(f, 2.0),
        look_at_run,
        run_again,
    ),
    "fit, anew": Writer(Path.mkdir, fitted, lambda f: look_at_fit(f, 0), fit_again),
    "fit, resumed": Writer(
        lambda f: fitted(f, 1), fitted, lambda f: look_at_fit(f, 1), fit_again
    ),
    "rows of compare": Writer(
        lambda f: measured(f, "a"),
        measured,
        look_at_rows,
        lambda f: measured(f) == ROWS,
    ),
    "report": Writer(
        lambda f: one_file(f, 1), lambda f: one_file(f, 2), look_at_file, write_again
    ),
}


def main(results: Path = RESULTS, stride: int = 1) -> dict[str, dict[str, int]]:
    """Return the counts of each writer.

    Arguments:
        stride: Of the steps every so many is made to fail.
    """
    torch.set_num_threads(1)
    figures: dict[str, dict[str, int]] = {}
    cases = [
        (name, at, kill)
        for name, writer in WRITERS.items()
        for at in range(1, steps_of(writer) + 1, stride)
        for kill in (True, False)
    ]
    found: dict[str, Counter[str]] = {name: Counter() for name in WRITERS}
    for name, at, kill in tqdm(cases, unit="fault"):
        found[name]["injected"] += 1
        found[name][verdict(WRITERS[name], at, kill)] += 1
    for name in WRITERS:
        count = found[name]
        figures[name] = {
            "injected": count["injected"],
            "lost": count["lost"],
            "inconsistent": count["mixed"],
            "unclear": count["unclear"],
            "not bit by bit": count["other"],
        }
    total: Counter[str] = Counter()
    for row in figures.values():
        total.update(row)
    figures["all"] = {name: total[name] for name in figures["report"]}
    report("benchmarks/faults.py", results, figures)
    return figures


if __name__ == "__main__":
    arguments = options(__doc__, device=False).parse_args()
    logging.getLogger("probssl").setLevel(logging.ERROR)  # remarks on a fit so short
    for writer, counts in main(arguments.out / RESULTS.name).items():
        print(writer.ljust(20), ", ".join(f"{v} {k}" for k, v in counts.items()))
