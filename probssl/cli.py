"""The command line: ``compare``, ``fit``, ``inspect``, ``advise`` and ``table``."""

import argparse
import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from . import recipes
from .arguments import counted, whole
from .compare import compare
from .compare.checks import check_data
from .compare.fitting import Fitted, fit_methods
from .compare.kept import MEASURED, read_rows
from .data import Dataset, Split, load
from .joint import Joint
from .limits import Table, table
from .posterior import embed, reconstruct, sample, to_arviz
from .runtime.distributed import (
    barrier,
    broadcast_object,
    is_main,
    rank,
    single_process,
    start,
)
from .runtime.files import locked, remove_lock, write
from .runtime.interrupts import leave
from .saving import DESCRIPTION, WEIGHTS, read, save, weights
from .saving import load as load_objective
from .train import History
from .train.checkpoint import OBJECTIVE, class_of, read_run
from .train.prepare import check_counts, target_of
from .train.run import LAST

__all__ = ["main"]

# Epochs by data set, for about as many optimiser steps each.
EPOCHS = {"digits": 150, "mnist": 10, "fashion-mnist": 20, "cifar10": 10}
OTHER_EPOCHS = 20
METHODS = "VAE,SimVAE,SimCLR,VICReg"
MAX_TRAIN = 10_000  # training items for the probes, at most
COMPILE: dict[str, bool | str] = {"auto": "auto", "always": True, "never": False}
EVIDENCE_STEPS = 1_000  # of the joint of a frozen encoder
MAPPED = 1_000  # items in the figure of the latents, at most
HEADERS = 8192  # bytes that HDF5 may add for a variable
FORMS = {"Markdown": Table.to_markdown, "JSON": Table.to_json, "CSV": Table.to_csv}
CHECKPOINTS = "checkpoints"  # in the output folder of `fit`
# Of `compare`.
OVERALL = "comparison.json", "comparison.png", "matrix.png", "evidence.png"
DERIVED = ["history.json", "curves.png", "map.png", "posterior.nc"]  # of one run
DERIVED += ["reconstructions.png", "samples.png"]
MISUSE = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)
NO_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 2 after an error, which is printed, and 130 after Ctrl-C. Under torchrun all
    processes fit one model together, and rank 0 does the rest.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options = _parser().parse_args(arguments)
    try:
        with _ended_cleanly():
            start()
            options.run(options)
            barrier()
    except (*MISUSE, RuntimeError) as error:
        if not isinstance(error, MISUSE) and not NO_MEMORY.search(str(error)):
            raise
        which = "" if is_main() else f" in process {rank()}"
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        text = _as_options(f"{error}{notes}", vars(options))
        if isinstance(error, RuntimeError | MemoryError):
            reason = text.splitlines()[0] if text else "it is used up"
            text = f"expected enough memory, got {reason}; take a smaller --dim, or "
            text += "fewer --items"
        print(f"probssl{which}: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(
            f"probssl: interrupted{f'; {error}' if error.args else ''}", file=sys.stderr
        )
        return 130
    return 0


def _as_options(text: str, options: Collection[str]) -> str:
    """A message with arguments of the command as it has them: resume=True, --resume."""
    names = "|".join(options)
    text = re.sub(rf"\b({names})=True\b", r"--\1", text)
    return re.sub(rf"\b({names})=['\"]?([\w:.]+)['\"]?", r"--\1 \2", text)


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Exit on SIGTERM as on an error: workers end, temporary folders are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("probssl", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    names = ", ".join(recipes.METHODS)

    def command(name: str, run: Any, help: str) -> Any:
        made = commands.add_parser(name, help=help)
        made.set_defaults(run=run)
        return made.add_argument

    add = command("compare", _compare, "fit methods, measure them alike in one table")
    text = "folders that `fit` wrote, measured beside the methods"
    add("runs", nargs="*", type=Path, metavar="RUN", help=text)
    text = f"names separated by commas, or 'all' (default: {METHODS}, without a RUN); "
    text += f"names: {names}"
    add("--methods", help=text)
    text = (
        "worker processes that fit methods side by side on the CPU (default: one per "
    )
    add("--jobs", type=int, help=text + "core); results do not depend on it")
    text = (
        "leave out raw pixels, which take the most time, PCA and an untrained encoder"
    )
    add("--no-baselines", dest="baselines", action="store_false", help=text)
    text = "fit the same joint to each frozen encoder, and list its ELBO and evidence "
    text += f"(default: not; without a number of steps, {EVIDENCE_STEPS})"
    how: dict[str, Any] = {"nargs": "?", "const": EVIDENCE_STEPS, "default": 0}
    add("--evidence", type=int, metavar="STEPS", help=text, **how)
    text = "take what the output folder has, and fit and measure the rest (default: "
    add("--resume", action="store_true", help=text + "start anew, and overwrite it)")
    _add_data(add, "comparison")
    _add_training(add)

    add = command("fit", _fit, "fit one method and save it")
    add("method", help=f"one of {names}")
    _add_data(add, "run")
    _add_training(add)
    text = "go on from the checkpoint in the output folder, or start if there is none "
    text += "(default: start, and refuse a folder that has one)"
    add("--resume", action="store_true", help=text)

    add = command("inspect", _inspect, "describe a saved run")
    add("folder", type=Path, help="a folder that `fit` or `compare` wrote")

    text = "recommend joint embedding or reconstruction for a data set"
    _add_data(command("advise", _advise, text), "advice")

    command("table", _table, "print the table of limits, and its empty cells")
    group = commands.choices["table"].add_mutually_exclusive_group()
    group.set_defaults(form=str)
    for name, form in FORMS.items():
        add, text = group.add_argument, f"in {name} (default: plain text)"
        option = f"--{name.lower()}"
        add(option, action="store_const", dest="form", const=form, help=text)
    return parser


def _add_data(add: Callable[..., Any], out: str) -> None:
    text = "digits, mnist, fashion-mnist, cifar10, omniglot, a FILE.npz or a folder of "
    add("--data", default="digits", help=text + "images (default: %(default)s)")
    text = "folder with the files of the data set (default: the environment variable "
    add("--root", help=text + "PROBSSL_DATA)")
    text = "number of items of the training and of the test set, at most (default: all)"
    add("--items", type=int, help=text)
    text = "dimension of z (default: %(default)s)"
    add("--dim", type=int, default=recipes.DIM, help=text)
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    text = "output folder, made if need be (default: %(default)s)"
    add("--out", type=Path, default=Path(out), help=text)


def _add_training(add: Callable[..., Any]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in EPOCHS.items())
    text = f"number of epochs (default: {counts}, other data {OTHER_EPOCHS})"
    add("--epochs", type=int, help=text)
    text = "auto, cpu, cuda or cuda:N (default: %(default)s, a GPU if there is one)"
    add("--device", default="auto", help=text)
    text = "compile the training step (default: %(default)s, for long runs only)"
    add("--compile", choices=COMPILE, default="auto", help=text)
    text = "run the networks in bfloat16 (default: float32)"
    add("--bfloat16", action="store_true", help=text)


def _data(options: argparse.Namespace) -> Dataset:
    data = load(options.data, options.root)
    if options.items is None:
        return data
    items = whole("--items", options.items)
    train, test = min(items, len(data.train)), min(items, len(data.test))
    return data.take(train, test, options.seed)


def _check_out(*folders: Path) -> None:
    """Raise a ValueError for a folder that cannot be made or written, make none."""
    for folder in folders if is_main() else ():
        there = next(
            path
            for path in (folder, *folder.absolute().parents)
            if path.exists() or path.is_symlink()
        )
        try:
            with TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise ValueError(
                f"expected a folder to write to as --out, got {folder} "
                f"({there}: {error.strerror}); give another"
            ) from error


def _fit_options(data: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    epochs = options.epochs
    return {
        "epochs": EPOCHS.get(data.name, OTHER_EPOCHS) if epochs is None else epochs,
        "device": options.device,
        "compile": COMPILE[options.compile],
        "precision": torch.bfloat16 if options.bfloat16 else None,
    }


def _compare(options: argparse.Namespace) -> None:
    listed = options.methods or ("" if options.runs else METHODS)
    every = listed == "all"
    methods = list(recipes.METHODS) if every else listed.split(",") if listed else []
    methods = [recipes.name(method.strip()) for method in methods]  # before any work
    _check_out(options.out, *(options.out / method for method in methods))
    data = _data(options)
    check_data(data, MAX_TRAIN, options.seed)  # before any fit
    check_counts(epochs=_fit_options(data, options)["epochs"])
    whole("--evidence", options.evidence, least=0, hint="0 leaves it out")
    runs = _runs(options.runs, methods, data)
    with _alone(options.out, "compare"):
        try:
            fitted = _fitted(methods, data, options)
            if is_main():
                with single_process():
                    _show(data, fitted, runs, options)
        except KeyboardInterrupt:
            kept = "; ".join(_compared(options.out)) or "nothing yet"
            raise KeyboardInterrupt(
                f"{options.out} is unfinished, --resume goes on; it keeps {kept}"
            ) from None


@contextmanager
def _alone(folder: Path, work: str) -> Iterator[None]:
    """A context in which no other command does this work in a folder.

    A folder that is made for it, and stays empty, is removed.
    """
    if not is_main():
        yield
        return
    made = not folder.exists()
    with locked(folder, work):
        try:
            yield
        except BaseException:
            made = made and all(path.name[0] == "." for path in folder.iterdir())
            if made and work == "fit":
                remove_lock(folder, work)
                with suppress(OSError):  # others put files there
                    folder.rmdir()
            raise


def _compared(folder: Path) -> Iterator[str]:
    """What a comparison has done: methods that are fitted, rows that are measured."""
    fits = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}"))
    if fits:
        yield f"fits of {', '.join(fits)}"
    if rows := read_rows(folder):
        yield f"measured rows of {', '.join(rows)}"


def _fitted(
    methods: list[str], data: Dataset, options: argparse.Namespace
) -> dict[str, Fitted]:
    """Fit the methods, and save each when it is fitted; or take it from its folder."""
    arguments, known = _fit_options(data, options), list[str]()
    notes = _notes(data, options)
    if is_main() and options.resume:
        known = [m for m in methods if _is_kept(options.out / m, notes, method=m)]
    elif is_main():
        _remove(options.out, *OVERALL, MEASURED)

    def keep(method: str, fit: Fitted) -> None:
        if not is_main():
            return
        own = {"method": method, "seconds": fit.seconds}
        own["history"] = fit.history.to_json()
        with single_process():
            _save(fit.objective, options.out / method, **notes, **own)

    known = broadcast_object(known)
    left, found = [m for m in methods if m not in known], dict[str, Fitted]()
    if left:
        given = {"dim": options.dim, "seed": options.seed, "jobs": options.jobs}
        given |= {"share": len(methods), "on_fitted": keep}
        found = fit_methods(left, data, **given, **arguments)
    for method in known if is_main() else ():
        objective = recipes.objective(method, data, options.dim)
        objective.to(target_of(objective, options.device).device)
        load_objective(options.out / method, into=objective)
        kept = read(options.out / method)["notes"]
        history = History.from_json(kept["history"])
        found[method] = Fitted(objective, history, kept["seconds"])
    return {method: found[method] for method in methods if method in found}


def _notes(data: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """What a saved run says of its origin: data, settings and versions."""
    return {
        "data": data.name,
        "seed": options.seed,
        "dim": options.dim,
        "epochs": _fit_options(data, options)["epochs"],
        "precision": "bfloat16" if options.bfloat16 else "float32",
        "fingerprint": data.fingerprint,
        "versions": {name: version(name) for name in ("probssl", "torch", "pyro-ppl")},
    }


def _is_kept(folder: Path, notes: dict[str, Any], **more: Any) -> bool:
    """Whether a folder has a run with these notes; a ValueError if it has another."""
    if not any((folder / name).exists() for name in (DESCRIPTION, WEIGHTS)):
        return False
    found = read(folder)["notes"]
    for name, value in (notes | more).items():
        if name == "versions":
            value, other = value["probssl"], found.get(name, {}).get("probssl")
        else:
            other = found.get(name)
        if other != value:
            raise ValueError(
                f"expected a run with {name}={value} in {folder} to go on from, got "
                f"one with {name}={other}; give the settings it was begun with, or "
                "another --out"
            )
    return True


def _runs(
    folders: Sequence[Path], methods: Sequence[str], data: Dataset
) -> dict[str, nn.Module]:
    """The objectives of saved runs by the names of their folders."""
    found: dict[str, nn.Module] = {}
    for folder in folders:
        name = folder.absolute().name
        if name in (*methods, *found):
            raise ValueError(
                f"expected runs and methods of different names, got {name} twice; "
                "rename a folder"
            )
        notes = read(folder)["notes"]
        if notes.get("fingerprint") != data.fingerprint:
            has = notes.get("fingerprint", "without a fingerprint")
            raise ValueError(
                f"expected runs on the same data, {data.name} ({data.fingerprint}) by "
                f"--data, --items and --seed, got {folder} on {notes.get('data')} "
                f"({has}); give its data, or fit it again"
            )
        found[name] = load_objective(folder)
    return found


def _show(
    data: Dataset,
    fitted: dict[str, Fitted],
    runs: dict[str, nn.Module],
    options: argparse.Namespace,
) -> None:
    """Measure fitted objectives, print the table and write figures."""
    from . import plots

    torch.manual_seed(options.seed)
    seconds = {name: fit.seconds for name, fit in fitted.items()}
    found = compare(
        {name: fit.objective for name, fit in fitted.items()} | runs,
        data,
        baselines=options.baselines,
        seconds=seconds,
        max_train=MAX_TRAIN,
        evidence=options.evidence,
        seed=options.seed,
        checkpoint=options.out,
        resume=options.resume,
    )
    size = f", z of {options.dim} dimensions" if fitted else ""
    print(f"\n{data.name}{size}, seed {options.seed}")
    print("terms: nats per item, two views; scores: of the representation, before the")
    print("projector; compare ELBOs with one another, and scores with all\n")
    print(found)
    found.to_json(options.out / "comparison.json")
    for name, (objective, history, _) in fitted.items():
        _draw(objective, history, data, options.out / name)
    figures = {
        "comparison": plots.comparison(found.table),
        "matrix": plots.matrix(found.matrix),
    }
    if found.curves:
        figures["evidence"] = plots.learning_curves(found.curves)
    _save_figures(figures, options.out)
    print(f"\nwritten to {options.out}: comparison.json and .png, matrix.png, and for")
    print("each method a folder with its weights, figures and, if it is generative,")
    print("posterior.nc")


def _save(objective: nn.Module, folder: Path, **notes: Any) -> None:
    """Save over an earlier run, whose figures and other files do not outlive it."""
    _remove(folder, *DERIVED)
    save(objective, folder, **notes)


def _remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _fit(options: argparse.Namespace) -> None:
    _check_out(options.out)
    data = _data(options)
    with _alone(options.out, "fit"):
        _fit_alone(data, options)


def _fit_alone(data: Dataset, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    objective = recipes.objective(options.method, data, options.dim)
    _check_run(objective, options)
    arguments = _fit_options(data, options)
    history = recipes.fit(
        objective,
        data,
        views=recipes.views(data),
        checkpoint=options.out / CHECKPOINTS,
        checkpoint_every=max(1, arguments["epochs"] // 10),
        resume=options.resume,
        **arguments,
    )
    if not is_main():
        return
    notes = _notes(data, options) | {"method": recipes.name(options.method)}
    if history.interrupted:
        epochs = counted(arguments["epochs"], "epoch")
        notes["unfinished"] = f"{history.finished} of {epochs}"
    with single_process():
        _save(objective, options.out, **notes)
        write(options.out / "history.json", history.to_json())
        if history.interrupted:
            raise KeyboardInterrupt(f"{options.out} is unfinished, --resume goes on")
        _draw(objective, history, data, options.out)
    print(f"{history}\nwritten to {options.out}; look inside: probssl inspect", end=" ")
    print(options.out)


def _check_run(objective: nn.Module, options: argparse.Namespace) -> None:
    """Raise an error for a folder with a checkpoint of Python, or of another method."""
    out, method = options.out, recipes.name(options.method)
    if (out / LAST).exists():
        raise FileExistsError(
            f"expected a folder of the command line as --out, got {out} with {LAST}, "
            "which ps.fit wrote in Python; go on from it there, or give another --out"
        )
    if not (options.resume and (last := out / CHECKPOINTS / LAST).exists()):
        return
    if (out / DESCRIPTION).exists():
        other = read(out)["notes"].get("method", method)
    else:  # it was killed
        kind = class_of(objective)
        other = read_run(last).get("setting", {}).get(OBJECTIVE, kind)
        other = method if other == kind else other
    if other != method:
        raise ValueError(
            f"expected a run of {method} in {out} to go on from, got one of {other}; "
            "give its method, or another --out"
        )


def _inspect(options: argparse.Namespace) -> None:
    if not (options.folder / DESCRIPTION).exists():
        return _inspect_others(options.folder)
    description = read(options.folder)
    if "built" in description or description.get("changed"):
        print("\n".join(_outline(description["objective"])))
        print(
            "to load it, build it again, with your own parts (*) and changes, and call"
        )
        print("ps.load(folder, into=objective)")
        for change in description.get("changed", []):
            print("changed:", _printable(change))
        numbers = sum(t.numel() for t in weights(options.folder, description).values())
        print(f"{numbers:,} numbers, {description['dtype']}")
    else:
        objective = load_objective(options.folder)
        numbers = sum(p.numel() for p in objective.parameters())
        print(f"{objective}\n{numbers:,} parameters, {description['dtype']}")
    for name, value in description.get("notes", {}).items():
        if name == "versions":
            value = ", ".join(" ".join(pair) for pair in value.items())
        if name != "history":
            print(_printable(f"{name}: {value}"))
    _list(options.folder)


def _inspect_others(folder: Path) -> None:
    """Describe a comparison, or a run that was killed before its model was saved."""
    if (last := folder / CHECKPOINTS / LAST).exists():
        state = read_run(last)
        kind = state.get("setting", {}).get(OBJECTIVE, "a method")
        print(_printable(f"an unfinished run of {kind}: probssl fit --resume goes on"))
        print(f"the checkpoint has {counted(len(state['history']), 'epoch')}")
    elif (folder / ".compare.lock").exists() or (folder / MEASURED).exists():
        whole = (folder / OVERALL[0]).exists()
        print(f"a comparison{'' if whole else ', unfinished: --resume goes on'}")
        print("\n".join(_printable(text) for text in _compared(folder)))
    else:
        read(folder)  # it is refused
    _list(folder)


def _list(folder: Path) -> None:
    names = (path.name for path in folder.iterdir())
    print("files:", ", ".join(sorted(name for name in names if name[0] != ".")))


def _outline(part: Any, name: str = "", depth: int = 0) -> Iterator[str]:
    """A saved description in lines: below each class its arguments."""
    inside: dict[str, Any] = {}
    if isinstance(part, list) and any(isinstance(each, dict) for each in part):
        text, inside = f"{len(part)} of", {str(i): p for i, p in enumerate(part)}
    elif isinstance(part, dict):
        part = part.get("of", part)
        inside = {str(i): p for i, p in enumerate(part.get("positional", []))}
        inside |= part.get("arguments", {})
        part = part.get("partial", part)
        kind = part.get("class") or part.get("distribution") or part.get("type")
        numbers = part.get("tensor", part.get("array", part))
        text = kind.rpartition(".")[2] if kind else _in_short(numbers)
        text = f"{part['foreign']} *" if "foreign" in part else text
    else:
        text = _in_short(part)
    yield "  " * depth + _printable((f"{name}: " if name else "") + text)
    for key, each in inside.items():
        yield from _outline(each, key, depth + 1)


def _printable(text: str) -> str:
    """A text of a file without what would steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _in_short(value: Any) -> str:
    return shorten(json.dumps(value), 70, placeholder=" …]")


def _advise(options: argparse.Namespace) -> None:
    """Print the advice for the augmentation of `fit`, and write it to a folder."""
    from . import plots
    from .linear import advise

    _check_out(options.out)
    data = _data(options)
    torch.manual_seed(options.seed)
    found = advise(data.train, recipes.views(data), n_components=options.dim)
    print(f"{data.name}, {options.dim} components, the views of `probssl fit`\n")
    print(found)
    write(options.out / "advice.json", json.dumps(found.as_dict(), indent=1) + "\n")
    _save_figures({"advice": plots.advice(found)}, options.out)
    print(f"\nwritten to {options.out}: advice.json and advice.png")


def _table(options: argparse.Namespace) -> None:
    """Print the table of limits on one process."""
    if is_main():
        print(options.form(table()).rstrip("\n"))


def _draw(objective: nn.Module, history: History, data: Dataset, out: Path) -> None:
    """Write learning curves and latents; of a `Joint` the posterior, and images."""
    from . import plots

    items = data.test.take(min(MAPPED, len(data.test)))
    _save_figures({"curves": plots.learning_curves(history)}, out)
    if not isinstance(getattr(objective, "joint", None), Joint):
        z = embed(objective, items)
        _save_figures({"map": plots.latent_map(z, items.labels)}, out)
        return
    z, std = embed(objective, items, return_std=True)
    _save_figures({"map": plots.latent_map(z, items.labels, std)}, out)
    few = Split(items.images[:10])
    posterior = to_arviz(objective, few, draws=200)
    write(out / "posterior.nc", partial(_netcdf, posterior))
    if few.images.ndim != 4 or few.images.shape[1] not in (1, 3):
        return  # vectors, or channels that are no colours
    figures = {
        "reconstructions": plots.reconstructions(
            few.images, reconstruct(objective, few)
        ),
        "samples": plots.views(sample(objective, 10)),
    }
    _save_figures(figures, out)


def _netcdf(posterior: Any, path: Path) -> None:
    """Write a posterior where there is room: on a full disk HDF5 ends the process."""
    whole = hasattr(posterior, "nbytes")  # a DataTree; else groups of ArviZ before 1
    parts = [posterior] if whole else [posterior[g] for g in posterior.groups()]
    room = sum(part.nbytes + HEADERS * (1 + len(part.variables)) for part in parts)
    path.write_bytes(bytes(room))
    posterior.to_netcdf(str(path))


def _save_figures(figures: dict[str, Any], out: Path) -> None:
    from . import plots

    for name, figure in figures.items():
        write(out / f"{name}.png", partial(figure.savefig, dpi=120))
    plots.close(figures.values())


if __name__ == "__main__":
    sys.exit(main())
