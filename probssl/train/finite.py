"""Numbers that are not finite, found before the update that they would spoil.

On the CPU the step that meets them raises an error, which says what was not finite
first. On an accelerator, where reading synchronises with the host, a flag on the device
masks the update: fused optimisers take it as ``found_inf``, as they do from torch's
GradScaler. It is read where the progress is read. Other optimisers would need a
synchronisation: there the parameters of the last reading come back.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..terms import Batch, Terms
from .history import ADVICE, not_finite
from .prepare import trainable_of

__all__ = ["Guard"]

SECONDS_PER_COPY = 2.0
SHOWN = 5  # rows that a message names


class Guard:
    """Watches the steps of a fit: `look` before each update, `read` now and then.

    Attributes:
        kept: The end of an error message, which says what is on disk.
    """

    def __init__(self, objective: nn.Module, optimizer: Optimizer) -> None:
        self.objective, self.optimizer, self.kept = objective, optimizer, ""
        device = trainable_of(objective)[0].device
        self.flag = None if device.type == "cpu" else torch.zeros((), device=device)
        self.masks = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        self.copies: dict[str, Tensor] = {}
        self.due = 0.0

    def look(self, batches: Sequence[Batch], terms: Terms, step: int) -> None:
        """Look at terms and gradient before the update.

        Raises:
            FloatingPointError: On the CPU, if one is not finite. It has the batches in
                its attribute ``batches``.
        """
        held = [p for g in self.optimizer.param_groups for p in g["params"]]
        grads = [p.grad for p in held if p.grad is not None]
        if self.flag is not None:
            self._mask(terms, grads)
            return
        sums = chain(terms, map(torch.sum, grads))
        if all(map(math.isfinite, sums)):  # NaN and infinity reach a sum
            return
        if all(map(math.isfinite, terms)) and all(map(_finite, grads)):
            return  # a sum overflowed
        cause = _cause(self.objective, batches, terms, step)
        raise not_finite(f"{cause}; the step is not made; {self.kept}", batches)

    def _mask(self, terms: Terms, grads: list[Tensor]) -> None:
        """Set the flag on the device, by which a fused optimiser leaves out a step."""
        assert self.flag is not None
        dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
        broken = (~(get_total_norm(dense) + sum(terms)).isfinite()).float()
        self.flag += broken
        if self.masks:
            self.optimizer.found_inf = broken  # type: ignore[attr-defined]

    def read(self, step: int) -> None:
        """Read the flag, and copy what a later step could spoil.

        Raises:
            FloatingPointError: On an accelerator, if a step was not finite.
        """
        if self.flag is not None and self.flag.item():
            raise not_finite(
                "expected a finite gradient, got NaN or infinity in one of the steps "
                f"up to {step}, of finite terms; {ADVICE}; {self.kept}"
            )
        if perf_counter() >= self.due:
            self.copies = {name: t.clone() for name, t in self._at_risk()}
            self.due = perf_counter() + SECONDS_PER_COPY

    @torch.no_grad()
    def restore(self) -> None:
        """Copy back what `forward` wrote, such as a queue, if a part is not finite.

        All of it, so that the parts belong together: a queue and its count.
        """
        held = dict(self._at_risk())
        if all(map(_finite, held.values())):
            return
        for name, x in held.items():
            copy = self.copies.get(name)
            if copy is not None and copy.shape == x.shape:
                x.copy_(copy)

    def release(self) -> None:
        """Leave the optimiser without a flag, which would mask steps after the fit."""
        if self.masks:
            vars(self.optimizer).pop("found_inf", None)

    def _at_risk(self) -> Iterable[tuple[str, Tensor]]:
        """What `forward` writes and, where no flag masks it, what the optimiser does.

        On the CPU an update that would spoil the parameters is not made.
        """
        objective = self.objective
        named = [*objective.named_buffers(), *objective.named_parameters()]
        safe = self.flag is None or self.masks
        for name, x in named:
            kept = isinstance(x, Parameter) and x.requires_grad and safe
            if not kept:
                yield name, x.detach()


def _finite(x: Tensor) -> bool:
    """Whether all numbers are finite."""
    x = x.detach()
    return bool((x.coalesce().values() if x.is_sparse else x).isfinite().all())


def _cause(
    objective: nn.Module, batches: Sequence[Batch], terms: Terms, step: int
) -> str:
    """What was not finite first: parameters, data, views, a term or a gradient."""
    for name, parameter in objective.named_parameters():
        if not _finite(parameter):
            return (
                f"expected finite parameters, got NaN or infinity in {name} before "
                f"step {step}; {ADVICE}"
            )
    for batch in batches:
        if isinstance(batch.clean, Tensor) and (rows := _rows(batch, (batch.clean,))):
            return f"expected finite data, got NaN or infinity in {rows} at step {step}"
        if rows := _rows(batch, batch.parts):
            return (
                f"expected finite views, got NaN or infinity in those of {rows} at "
                f"step {step}, where the data are finite: look at the augmentation"
            )
    broken = [
        f"{name} = {float(term)}"
        for name, term in terms._asdict().items()
        if not math.isfinite(term)
    ]
    where = f"at step {step}; views and parameters were finite before it"
    seen = _items(batches[0], range(len(batches[0].parts[0])))
    if broken:
        found = " and ".join(broken)
        return f"expected finite terms, got {found} {where}, in {seen}; {ADVICE}"
    names = [
        name
        for name, p in objective.named_parameters()
        if p.grad is not None and not _finite(p.grad)
    ]
    more = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return (
        "expected a finite gradient, got NaN or infinity in that of "
        f"{names[0] if names else 'a parameter'}{more} {where}, as are the terms, in "
        f"{seen}; {ADVICE}"
    )


def _rows(batch: Batch, parts: Iterable[Tensor]) -> str:
    """The items of a batch with numbers that are not finite; empty if all are."""
    broken = sum(~x.isfinite().flatten(1).all(1) for x in parts)
    if not isinstance(broken, Tensor) or not broken.any():
        return ""
    return _items(batch, broken.nonzero().flatten().tolist())


def _items(batch: Batch, places: Sequence[int]) -> str:
    """Items of a batch, by their rows in the data where these are known."""
    index = None if type(batch) is not Batch else batch.index
    rows = list(places) if index is None else index[list(places)].tolist()
    shown = ", ".join(map(str, rows[:SHOWN])) + " …" * (len(rows) > SHOWN)
    where = "of the batch" if index is None else "of the data"
    return f"{'items' if len(rows) > 1 else 'item'} {shown} {where}"
