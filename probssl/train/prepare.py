"""Preparation of a fit: its arguments checked, optimiser and scheduler built.

The state of an optimiser is read and written here as well, in a form that does not
depend on the device: files hold learning rates as numbers, and no `capturable`.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..arguments import choice, instance, positive, whole
from ..arguments import device as checked_device
from ..runtime.buffers import note_counted, unshare, was_counted
from ..runtime.precision import Precision
from ..terms import Terms
from .batches import Source, Stored, Target

__all__ = ["ContentCheck", "check_contents", "check_counts", "check_covariates"]
__all__ += ["check_decay", "check_groups"]
__all__ += ["check_held", "check_horizon", "check_monitor"]
__all__ += ["trainable_of"]
__all__ += ["labelled_share", "load_optimizer", "make_capturable", "optimizer_state"]
__all__ += ["parameter_groups", "prepared_optimizer", "prepared_precision"]
__all__ += ["prepared_scheduler", "settle", "target_of", "total_steps"]

VANISHED = 1e-6  # of the largest learning rate: parameters no longer move

logger = logging.getLogger(__name__)


def check_counts(**counts: int | None) -> None:
    """Check that numbers are whole and at least 1, or None."""
    for name, count in counts.items():
        if count is not None:
            whole(name, count)


def check_monitor(monitor: str, validated: bool, extended: bool) -> None:
    """Check that the history has the column, unless a callback may add it."""
    columns = ["value", *Terms._fields]
    measured = [f"valid_{column}" for column in columns]
    if monitor in measured and not validated:
        raise ValueError(
            f"expected validation data for monitor={monitor!r}, got none; pass them as "
            f"valid, or monitor={monitor.removeprefix('valid_')!r}"
        )
    columns += measured if validated else []
    if not extended:
        choice("monitor", monitor, columns, "on_epoch may add it to the row")


def target_of(objective: nn.Module, device: str | torch.device) -> Target:
    """The device to fit on, and the dtype of the trainable parameters."""
    if getattr(objective.forward, "__func__", None) is nn.Module.forward:
        raise TypeError(
            "expected an objective with forward(batch) -> Terms, got "
            f"{type(objective).__name__}, which has no forward; a Joint is fitted by "
            "ps.limits.SimVAE(joint)"
        )
    trainable = trainable_of(objective)
    if not trainable:
        raise ValueError(
            f"expected trainable parameters in {type(objective).__name__}, got none; "
            "give it an encoder with parameters, or requires_grad_()"
        )
    if any(x.is_inference() for x in (*trainable, *objective.buffers())):
        raise ValueError(
            f"expected to train {type(objective).__name__}, got parameters or buffers "
            "made in torch.inference_mode; build or load it outside of that"
        )
    if device == "auto":
        device = trainable[0].device
        if device.type == "cpu" and torch.cuda.is_available():
            device = "cuda"
    return Target(checked_device("device", device), trainable[0].dtype)


def settle(
    objective: nn.Module,
    device: torch.device,
    population: int | None,
    content: Tensor | None = None,
    *,
    stored: bool = True,
) -> None:
    """Move the objective; set its buffers `population` to the number of items.

    Buffers `labelled` are set to the share of items with an observed content, and
    modules with a method `check_content` see all contents. What cannot be counted
    becomes None, but a number that the user set stays.

    Arguments:
        stored: Whether the data are in memory, where the number of items is certain. A
            population that the user set for a DataLoader stays.
    """
    labelled = None if content is None else _labelled(objective, content)
    objective.to(device)
    unshare(objective)
    for module in objective.modules():
        found: dict[str, float | None] = {
            "population": population,
            "labelled": labelled,
        }
        for name in found.keys() & module._buffers.keys():
            number, before = found[name], module._buffers[name]
            certain = number is not None and (stored or name == "labelled")
            if certain or before is None or was_counted(module, name):
                counted = None if number is None else torch.tensor(float(number))
                module._buffers[name] = None if counted is None else counted.to(device)
                note_counted(module, name)


def _labelled(objective: nn.Module, content: Tensor) -> float:
    """The share of items with an observed content, all of which are checked."""
    known = int((content >= 0).sum())
    if not known:
        raise ValueError(
            "expected content with labels, got -1 (unknown) for each of the "
            f"{len(content)} items; leave content out, and the components are clusters"
        )
    check_contents(objective, content)
    return known / len(content)


def check_covariates(objective: nn.Module, covariates: Any) -> None:
    """Raise a ValueError for covariates that no part of the objective takes."""
    found = (getattr(module, "conditional", ()) for module in objective.modules())
    if covariates is not None and not any(found):
        raise ValueError(
            "expected covariates for an encoder, decoder, likelihood or guide of a "
            "joint whose forward takes them, or for priors.Grouped, got "
            f"{type(objective).__name__} without one; let it take "
            "forward(self, x, covariates), or leave covariates out"
        )


def check_groups(objective: nn.Module, source: Source | None) -> None:
    """Raise a ValueError if the group of some item is none of a prior's.

    Groups that a view sampler gives, and those of a DataLoader, are not known here.
    """
    known = source.items.covariates if isinstance(source, Stored) else None
    for module in objective.modules():
        check: Any = getattr(module, "check_covariates", None)
        if check is not None and getattr(module, "groups", None) in (known or {}):
            check(known)


def check_contents(objective: nn.Module, content: Tensor) -> None:
    """Raise a ValueError if an observed content is no component of a prior."""
    for module in objective.modules():
        check = getattr(module, "check_content", None)
        if check is not None:
            check(content)


class ContentCheck:
    """`check_contents` of batch after batch, which reads the objective rarely.

    Contents are none below -1: a batch whose largest was accepted before is accepted.
    """

    def __init__(self, objective: nn.Module) -> None:
        self.objective, self.largest = objective, -1

    def __call__(self, content: Tensor) -> None:
        if (largest := int(content.max())) > self.largest:
            check_contents(self.objective, content)
            self.largest = largest


@contextmanager
def labelled_share(objective: nn.Module, content: Tensor | None) -> Iterator[None]:
    """Buffers `labelled` as for these contents.

    Where they are not known it is None, unless the user set it.
    """
    known = [module for module in objective.modules() if "labelled" in module._buffers]
    before = [module._buffers["labelled"] for module in known]
    share = None
    if content is not None and bool((content >= 0).any()):
        share = (content >= 0).to(torch.get_default_dtype()).mean()
    for module in known:
        if share is not None or was_counted(module, "labelled"):
            module._buffers["labelled"] = share
    try:
        yield
    finally:
        for module, kept in zip(known, before, strict=True):
            module._buffers["labelled"] = kept


def prepared_optimizer(
    optimizer: Optimizer | Callable[[list[Parameter]], Optimizer] | None,
    objective: nn.Module,
    learning_rate: float | None,
) -> Optimizer:
    """The given optimiser, the one that the callable makes, or fused Adam."""
    if optimizer is None:
        rate = 1e-3 if learning_rate is None else learning_rate
        rate = positive("learning_rate", rate, "1e-3 is usual")
        return Adam(parameter_groups(objective, rate), lr=rate, fused=True)
    if learning_rate is not None:
        raise ValueError(
            f"expected learning_rate or optimizer, got both, {learning_rate} and "
            f"{type(optimizer).__name__}; give the optimiser its own rate"
        )
    trainable = trainable_of(objective)
    if not isinstance(optimizer, Optimizer):
        optimizer = optimizer(trainable)
    hint = "pass lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
    expected = "a torch.optim.Optimizer, or a function that returns one"
    instance("optimizer", optimizer, Optimizer, expected, hint)
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            "expected an optimiser that steps along one gradient, got "
            f"{type(optimizer).__name__}, which evaluates the objective anew; take "
            "torch.optim.AdamW or another first-order method"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            f"expected an optimiser that minimises, got {type(optimizer).__name__} "
            "with maximize=True; leave it out: fit hands it minus the objective's value"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(map(id, trainable)):
        raise ValueError(
            "expected an optimiser of the objective's parameters, got one that holds "
            "none of them; make it from objective.parameters()"
        )
    named = objective.named_parameters()
    left = [name for name, p in named if p.requires_grad and id(p) not in held]
    if left:
        more = f" and {len(left) - 5} others" if len(left) > 5 else ""
        logger.warning(
            "the optimiser does not have all trainable parameters, and leaves %s%s as "
            "they are; make it from objective.parameters(), or freeze these by "
            "requires_grad_(False)",
            ", ".join(left[:5]),
            more,
        )
    return optimizer


def check_held(
    objective: nn.Module, optimizer: Optimizer, before: Sequence[Parameter]
) -> None:
    """Raise a ValueError for new trainable parameters that the optimiser does not have.

    Arguments:
        before: Those that were trainable at the start: some may be left out on purpose.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    held.update(map(id, before))
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise ValueError(
                f"expected the parameters that fit began with, got {name}, which "
                "became trainable, or took the place of another, during the run, and "
                "which the optimiser does not have; pass "
                "optimizer=torch.optim.Adam(objective.parameters()), which has frozen "
                "ones too, or call fit anew"
            )


def parameter_groups(
    objective: nn.Module, learning_rate: float
) -> list[dict[str, Any]]:
    """Parameter groups: one for each `learning_rate_factor` of the modules.

    It holds for all parameters within a module, but for parts with a factor of their
    own.
    """
    factors: dict[Parameter, float] = {}
    _note_factors(objective, 1.0, factors)
    groups: dict[float, list[Parameter]] = {1.0: []}
    for parameter in trainable_of(objective):
        groups.setdefault(factors[parameter], []).append(parameter)
    return [{"params": p, "lr": f * learning_rate} for f, p in groups.items() if p]


def _note_factors(
    module: nn.Module, factor: float, factors: dict[Parameter, float]
) -> None:
    factor = float(getattr(module, "learning_rate_factor", factor))
    for parameter in module.parameters(recurse=False):
        factors[parameter] = factor
    for child in module.children():
        _note_factors(child, factor, factors)


def prepared_scheduler(
    scheduler: LRScheduler | Callable[[Optimizer], LRScheduler] | None,
    optimizer: Optimizer,
) -> LRScheduler | None:
    """The given scheduler, or the one that the callable makes."""
    if scheduler is None:
        return None
    if not isinstance(scheduler, LRScheduler):
        scheduler = scheduler(optimizer)
    hint = "pass lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1000)"
    expected = "a torch.optim.lr_scheduler.LRScheduler, or a function that returns one"
    instance("scheduler", scheduler, LRScheduler, expected, hint)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "expected a scheduler that is stepped after every step, got "
            "ReduceLROnPlateau; step it in on_epoch: plateau.step(row['value'])"
        )
    if scheduler.optimizer is not optimizer:
        raise ValueError(
            "expected a scheduler of the optimiser that is used, got one of another; "
            "pass both, or scheduler=lambda optimizer: …"
        )
    return scheduler


def check_horizon(
    scheduler: LRScheduler | None, epochs: int | None, total: int | None
) -> None:
    """Warn of a schedule that is as many steps long as the run has epochs."""
    for name in ("T_max", "total_steps"):
        long = getattr(scheduler, name, None)
        if long is not None and long == epochs and long < (total or 0):
            logger.warning(
                "%s has %s=%d, the number of epochs, but is stepped once per step; "
                "pass %s=%d, the number of steps",
                type(scheduler).__name__,
                name,
                epochs,
                name,
                total,
            )


def check_decay(rates: Sequence[float], epochs: int) -> bool:
    """Warn if the learning rate is as good as zero with a tenth of the run to go."""
    gone = len(rates) <= 0.9 * epochs and rates[-1] < VANISHED * max(rates)
    if gone:
        logger.warning(
            "after epoch %d of %d the learning rate is %.2g, and was %.2g; a scheduler "
            "is stepped once per step, not per epoch: count its steps",
            len(rates) - 1,
            epochs,
            rates[-1],
            max(rates),
        )
    return gone


def prepared_precision(
    precision: torch.dtype | None, tf32: bool, own: torch.dtype
) -> Precision:
    """The precision of a fit, checked for the dtype of the objective."""
    hint = "float16 would need a scaled loss; for float64 call objective.double()"
    choice("precision", precision, (torch.bfloat16, None), hint)
    if precision is not None and own != torch.float32:
        raise ValueError(
            f"expected an objective in float32 for precision={precision}, got {own}; "
            "call objective.float() before, or leave precision out"
        )
    return Precision(precision, tf32)


def total_steps(data: Source, epochs: int, accumulate: int) -> int | None:
    """The number of steps of the run; None if the length of the data is unknown."""
    try:
        return epochs * math.ceil(len(data) / accumulate)
    except TypeError:
        return None


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The `state_dict`, with learning rates as numbers, also those in tensors."""
    state = optimizer.state_dict()
    groups = [
        {key: value.item() if _is_rate(value) else value for key, value in each.items()}
        for each in state["param_groups"]
    ]
    return state | {"param_groups": groups}


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state, but keep `capturable` and learning rates in tensors."""
    built = [
        {key: x for key, x in group.items() if key == "capturable" or _is_rate(x)}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, kept in zip(optimizer.param_groups, built, strict=True):
        for key, value in kept.items():
            group[key] = value.fill_(group[key]) if _is_rate(value) else value
    # Fused updates ignore strides, so the state must have the memory format of its
    # parameter (channels last, say), which files do not keep.
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Put learning rates and step counts in tensors, which a CUDA graph reads anew."""
    tensor = partial(torch.as_tensor, dtype=torch.float32, device=device)
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = tensor(group["lr"])
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = tensor(state["step"])


def trainable_of(objective: nn.Module) -> list[Parameter]:
    """The parameters that are not frozen."""
    return [p for p in objective.parameters() if p.requires_grad]


def _is_rate(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0
