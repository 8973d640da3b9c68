"""What a resumed run should have in common with the saved one, as texts by name."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from joblib import hash as joblib_hash
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..arrays import plain
from ..runtime.fingerprints import PYTHON, fingerprint
from .batches import Source, Stored, Views
from .checkpoint import OBJECTIVE, class_of
from .schedules import Schedules

__all__ = ["numbers", "resumed_setting", "setting_of"]

RECOGNISED = 64  # items by which data are distinguished from others
LEARNING_RATE = "learning rate"
NONE = "none"
MADE_OF = f"made of ({PYTHON})"  # after the name of what has a fingerprint
# Settings that files of older versions may lack.
NEWER = f"{OBJECTIVE}$|content$|present$|.*valid$|schedule|\\w+: |.* made of"


def setting_of(
    objective: nn.Module,
    schedules: Schedules,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    views: Views | None,
    train: Source,
    valid: Source | None,
    **others: float | None,
) -> dict[str, str]:
    """The settings of a run, by name.

    Arguments:
        others: Arguments of `fit`; None is left out.
    """
    groups = optimizer.param_groups
    rates = sorted({float(group.get("initial_lr", group["lr"])) for group in groups})
    found: dict[str, Any] = {OBJECTIVE: class_of(objective), "items": train.count}
    if isinstance(train, Stored):
        items = train.items
        found |= {"first items": _recognised(train), "batch_size": train.batch_size}
        if items.covariates is not None:
            known = [(name, plain(x)) for name, x in items.covariates.items()]
            found["covariates"] = joblib_hash(known)[:8]
        for name, part in (("content", items.content), ("present", items.present)):
            found[name] = NONE if part is None else joblib_hash(plain(part))[:8]
    found["valid"] = NONE if valid is None else valid.count
    if isinstance(valid, Stored):
        found["first items of valid"] = _recognised(valid)
    named = {"views": views, "optimizer": optimizer, "scheduler": scheduler}
    found |= {name: _name(x) for name, x in named.items() if x is not None}
    found |= _made_of(OBJECTIVE, getattr(objective, "_orig_mod", objective))
    found |= numbers(objective, schedules)
    found |= _made_of("views", views)
    found |= _made_of("scheduler", getattr(scheduler, "lr_lambdas", None))
    found["schedules"] = ", ".join(sorted(schedules.schedules)) or NONE
    for name, schedule in schedules.schedules.items():
        found |= _made_of(f"schedule of {name}", schedule)
    found |= {LEARNING_RATE: ", ".join(f"{rate:g}" for rate in rates)} | others
    return {name: str(x) for name, x in found.items() if x is not None}


def resumed_setting(
    saved: Mapping[str, str],
    now: Mapping[str, str],
    taken: Mapping[str, str],
    where: Any,
) -> dict[str, str]:
    """The settings of a run that has taken a saved state, and `numbers` with it.

    A warning says where they differ from the saved ones. What older versions did not
    write is not compared, nor code of another Python. Buffers may be as the saved run
    began with, or as it ended with.
    """
    names = [
        name
        for name in {**saved, **now}
        if saved.get(name) != now.get(name) != taken.get(name, "")
        and ((name in saved and name in now) or not re.match(NEWER, name))
    ]
    stay = [name for name in (LEARNING_RATE, *taken) if name in saved]
    if saved and names:  # older files have none
        changed = [f"{n} {saved.get(n, NONE)}, now {now.get(n, NONE)}" for n in names]
        kept = ", ".join(n.removeprefix(f"{OBJECTIVE}: ") for n in stay if n in names)
        kept = f"; the saved {kept} stays" if kept else ""
        warnings.warn(
            f"expected the settings that the run in {where} was begun with, got "
            f"others: {'; '.join(changed)}{kept}; if that is not meant, resume with "
            "the old ones",
            stacklevel=6,
        )
    return {**now} | {name: saved[name] for name in stay}


def _recognised(data: Stored) -> str:
    """What distinguishes the first items from others."""
    first = data.items.take(torch.arange(min(data.count, RECOGNISED)))
    return str(joblib_hash([plain(part) for part in first.parts])[:8])


def _name(x: Any) -> str:
    """Of a function, or of the class of an object."""
    return str(getattr(x, "__qualname__", type(x).__qualname__))


def _made_of(name: str, x: Any) -> dict[str, str]:
    """The fingerprint of an object, and the numbers that a module's parts hold."""
    found = {f"{name} {MADE_OF}": fingerprint(x)[:8]}
    for place, part in x.named_modules() if isinstance(x, nn.Module) else ():
        for attribute, value in vars(part).items():
            if isinstance(value, int | float | str | tuple) and attribute[0] != "_":
                found[f"{name}: {place}.{attribute}".replace(": .", ": ")] = str(value)
    return {name: x for name, x in found.items() if not name.endswith("training")}


def numbers(objective: nn.Module, schedules: Schedules) -> dict[str, str]:
    """The buffers that a schedule could set, and none sets."""
    return {
        f"{OBJECTIVE}: {name}": f"{float(objective.get_buffer(place)):g}"
        for name, place in schedules.buffers.items()
        if name not in schedules.schedules
    }
