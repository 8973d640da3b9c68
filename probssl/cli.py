"""The command line: ``probssl compare``, ``fit``, ``inspect`` and ``advise``."""

import argparse
import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from . import recipes
from .arguments import whole
from .compare import compare
from .compare.checks import check_data
from .compare.fitting import Fitted, fit_methods
from .data import Dataset, Split, load
from .joint import Joint
from .posterior import embed, reconstruct, sample, to_arviz
from .runtime.distributed import barrier, is_main, rank, single_process, start
from .runtime.interrupts import leave
from .saving import load as load_objective
from .saving import read, save, weights
from .train import History

__all__ = ["main"]

# Epochs by data set, for about as many optimiser steps each.
EPOCHS = {"digits": 150, "mnist": 10, "fashion-mnist": 20, "cifar10": 10}
OTHER_EPOCHS = 20
MAX_TRAIN = 10_000  # training items for the probes, at most
COMPILE: dict[str, bool | str] = {"auto": "auto", "always": True, "never": False}
MAPPED = 1_000  # items in the figure of the latents, at most
MISUSE = (ValueError, TypeError, OSError, FloatingPointError)


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
    except MISUSE as error:
        which = "" if is_main() else f" in process {rank()}"
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        text = _as_options(f"{error}{notes}", vars(options))
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
    text = f"names separated by commas, or 'all' (default: %(default)s); names: {names}"
    add("--methods", default="VAE,SimVAE,SimCLR,VICReg", help=text)
    text = (
        "worker processes that fit methods side by side on the CPU (default: one per "
    )
    add("--jobs", type=int, help=text + "core); results do not depend on it")
    text = (
        "leave out raw pixels, which take the most time, PCA and an untrained encoder"
    )
    add("--no-baselines", dest="baselines", action="store_false", help=text)
    _add_data(add, "comparison")
    _add_training(add)

    add = command("fit", _fit, "fit one method and save it")
    add("method", help=f"one of {names}")
    _add_data(add, "run")
    _add_training(add)
    text = "continue from the checkpoint in the output folder (default: start anew)"
    add("--resume", action="store_true", help=text)

    add = command("inspect", _inspect, "describe a saved run")
    add("folder", type=Path, help="a folder that `fit` wrote")

    text = "recommend joint embedding or reconstruction for a data set"
    _add_data(command("advise", _advise, text), "advice")
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
    every = options.methods == "all"
    methods = list(recipes.METHODS) if every else options.methods.split(",")
    methods = [recipes.name(method.strip()) for method in methods]  # before any work
    _check_out(options.out, *(options.out / method for method in methods))
    data = _data(options)
    check_data(data, MAX_TRAIN, options.seed)  # before any fit
    given = {"dim": options.dim, "seed": options.seed, "jobs": options.jobs}
    fitted = fit_methods(methods, data, **given, **_fit_options(data, options))
    if is_main():
        with single_process():
            _show(data, fitted, options)


def _show(
    data: Dataset, fitted: dict[str, Fitted], options: argparse.Namespace
) -> None:
    """Save the fitted objectives, measure them, print the table and write figures."""
    from . import plots

    for name, fit in fitted.items():  # so that they are there if an error follows
        save(fit.objective, options.out / name, data=data.name, seed=options.seed)
    torch.manual_seed(options.seed)
    found = compare(
        {name: fit.objective for name, fit in fitted.items()},
        data,
        baselines=options.baselines,
        seconds={name: fit.seconds for name, fit in fitted.items()},
        max_train=MAX_TRAIN,
        seed=options.seed,
    )
    print(f"\n{data.name}, z of {options.dim} dimensions, seed {options.seed}")
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
    _save_figures(figures, options.out)
    print(f"\nwritten to {options.out}: comparison.json and .png, matrix.png, and for")
    print("each method a folder with its weights, figures and, if it is generative,")
    print("posterior.nc")


def _fit(options: argparse.Namespace) -> None:
    _check_out(options.out)
    data = _data(options)
    torch.manual_seed(options.seed)
    objective = recipes.objective(options.method, data, options.dim)
    arguments = _fit_options(data, options)
    history = recipes.fit(
        objective,
        data,
        views=recipes.views(data),
        checkpoint=options.out / "checkpoints",
        checkpoint_every=max(1, arguments["epochs"] // 10),
        resume=options.resume,
        **arguments,
    )
    if not is_main():
        return
    notes = {"data": data.name, "seed": options.seed}
    if history.interrupted:
        notes["unfinished"] = f"{len(history)} epochs of {arguments['epochs']}"
    with single_process():
        save(objective, options.out, **notes)
        (options.out / "history.json").write_text(history.to_json(), encoding="utf-8")
        if history.interrupted:
            raise KeyboardInterrupt(f"{options.out} is unfinished, --resume goes on")
        _draw(objective, history, data, options.out)
    print(f"{history}\nwritten to {options.out}; look inside: probssl inspect", end=" ")
    print(options.out)


def _inspect(options: argparse.Namespace) -> None:
    description = read(options.folder)
    if "built" in description or description.get("changed"):
        print("\n".join(_outline(description["objective"])))
        print(
            "to load it, build it again, with your own parts (*) and changes, and call"
        )
        print("ps.load(folder, into=objective)")
        for change in description.get("changed", []):
            print("changed:", change)
        numbers = sum(t.numel() for t in weights(options.folder, description).values())
        print(f"{numbers:,} numbers, {description['dtype']}")
    else:
        objective = load_objective(options.folder)
        numbers = sum(p.numel() for p in objective.parameters())
        print(f"{objective}\n{numbers:,} parameters, {description['dtype']}")
    for name, value in description["notes"].items():
        print(f"{name}: {value}")
    print("files:", ", ".join(sorted(p.name for p in options.folder.iterdir())))


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
    yield "  " * depth + (f"{name}: " if name else "") + text
    for key, each in inside.items():
        yield from _outline(each, key, depth + 1)


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
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found.as_dict(), indent=1)
    (options.out / "advice.json").write_text(text + "\n", encoding="utf-8")
    _save_figures({"advice": plots.advice(found)}, options.out)
    print(f"\nwritten to {options.out}: advice.json and advice.png")


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
    posterior.to_netcdf(str(out / "posterior.nc"))
    if few.images.ndim != 4 or few.images.shape[1] not in (1, 3):
        return  # vectors, or channels that are no colours
    figures = {
        "reconstructions": plots.reconstructions(
            few.images, reconstruct(objective, few)
        ),
        "samples": plots.views(sample(objective, 10)),
    }
    _save_figures(figures, out)


def _save_figures(figures: dict[str, Any], out: Path) -> None:
    from . import plots

    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=120)
    plots.close(figures.values())


if __name__ == "__main__":
    sys.exit(main())
