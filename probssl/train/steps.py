r"""Training steps: gradient ascent on the value of an objective, the sum of its terms.

.. math:: \theta \leftarrow \theta - \eta \, \nabla_\theta \Bigl(-\sum_t t(\theta)\Bigr)

The minus sign stands in `loss`, and nowhere else. `steps` is the generator for a loop
of one's own. `Step` is the step of `fit`: it adds gradient accumulation, gradient
clipping, schedules, mixed precision, and the all-reduce of the gradients under data
parallelism. `train.compiled` has its compiled and its recorded kind.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import mul
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..arguments import positive, typed
from ..runtime.distributed import average, gather_to_cpu, single_process, world_size
from ..runtime.precision import FULL_PRECISION, Precision, lowered
from ..terms import Batch, Terms, check_terms
from .finite import Guard
from .schedules import Schedules

__all__ = ["Step", "Writes", "add_gradient", "loss", "mutable_state", "steps"]
__all__ += ["terms_and_grads"]


@typed
def steps(
    objective: nn.Module, batches: Iterable[Batch], optimizer: Optimizer
) -> Iterator[Terms]:
    """Maximise ``sum(objective(batch))``; yield the terms of every step, detached."""
    for batch in batches:
        optimizer.zero_grad()
        terms = add_gradient(objective, batch)
        optimizer.step()
        yield terms


def add_gradient(objective: nn.Module, batch: Batch, share: float = 1.0) -> Terms:
    """Forward and backward pass: add the gradient of the loss, times a share."""
    terms = lowered(objective, batch)
    (share * loss(terms)).backward()
    return Terms(*(t.detach() if isinstance(t, Tensor) else t for t in terms))


def terms_and_grads(
    objective: Callable[[Batch], Terms], batch: Batch, parameters: Sequence[Tensor]
) -> tuple[Terms, tuple[Tensor | None, ...]]:
    """The terms, and the gradient of the loss; None for a parameter without a part.

    The functional form of `add_gradient`: it changes no ``parameter.grad``.
    """
    terms = lowered(objective, batch)
    return terms, torch.autograd.grad(loss(terms), parameters, allow_unused=True)


def loss(terms: object) -> Float[Tensor, ""]:
    """Minus the sum of the terms.

    Raises:
        TypeError: If they are no `Terms`.
        ValueError: If a term is not a mean over the batch, or none has a gradient.
    """
    terms = check_terms(terms)
    for name, term in terms._asdict().items():
        if not isinstance(term, Tensor | float | int):
            raise TypeError(
                f"expected terms as tensors or numbers, got {name} of type "
                f"{type(term).__name__}; leave out terms that there are not"
            )
        if isinstance(term, Tensor) and (term.ndim or term.is_complex()):
            raise ValueError(
                f"expected terms to be real means over the batch, got {name} with "
                f"shape {tuple(term.shape)}, {term.dtype}; take its .mean()"
            )
    if not any(isinstance(term, Tensor) and term.requires_grad for term in terms):
        raise ValueError(
            "expected a value that depends on trainable parameters, got terms without "
            "a gradient; train a part that the objective uses"
        )
    # Absent terms are plain zeros and have no gradient.
    first, *rest = (term for term in terms if isinstance(term, Tensor))
    return -sum(rest, start=first)


class Step:
    """One training step: gradients, clipping, the optimiser's update, schedules.

    Called with several batches, it accumulates their gradients, each weighted by its
    number of items. Every batch sees the buffers and frozen parameters as they were
    before the step. What a batch wrote stays, of numbers that several wrote what the
    last one wrote: an EMA teacher or a queue moves once per step, however many batches
    it has, a memory bank in the rows of all of them.

    Subclasses override `gradient`, or `run` for the whole step on the device.

    Arguments:
        scheduler: A learning-rate scheduler, stepped once per step, not per epoch.
        clip: The largest Euclidean norm of the gradient.
        make: Makes a `Batch` of an element of the sequence that the step is called
            with; by default the elements are Batches.
        schedules: Writes buffers of the objective before each step.
        count: The number of steps made before, in a run that is resumed.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Optimizer,
        *,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
        make: Callable[[Any], Batch] = lambda batch: batch,
        schedules: Schedules | None = None,
        precision: Precision = FULL_PRECISION,
        count: int = 0,
    ) -> None:
        self.objective, self.optimizer, self.scheduler = objective, optimizer, scheduler
        self.clip = None if clip is None else positive("clip", clip)
        self.make, self.schedules, self.precision = make, schedules, precision
        self.device = next(objective.parameters()).device
        self.guard = Guard(objective, optimizer)
        self.count, self.items = count, 0  # steps made, items of the last one
        self.whole = True  # whether no step was broken off
        self.masked = False  # whether a batch with absent views was checked
        self.replicated = False  # whether each rank has all of a batch
        self._used: list[Parameter] | None = None

    def __call__(self, loads: Sequence[Any]) -> Terms:
        """Make the step; return its terms, means over the items of all batches."""
        self.whole = False
        if self.schedules is not None:
            self.schedules.set(self.count)
        with self.precision.active(self.device):
            terms = self.run(loads)
        if self.scheduler is not None:
            self.scheduler.step()
        self.count += 1
        self.whole = True
        return terms

    def run(self, loads: Sequence[Any]) -> Terms:
        """The step on the device: batches, their gradients, clipping, the update.

        Raises:
            FloatingPointError: Before the update, if a term or gradient is not finite.
        """
        self.optimizer.zero_grad()
        batches = [self.make(load) for load in loads]
        with self.alone():
            terms = self.accumulate(batches)
        if world_size() > 1:
            self._average_gradients()
        self.guard.look(batches, terms, self.count + 1)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(_parameters(self.optimizer), self.clip)
        self.optimizer.step()
        return terms

    def gradient(self, batch: Batch, share: float = 1.0) -> Terms:
        """Add the gradient of one batch, with a weight; return its terms."""
        return add_gradient(self.objective, batch, share)

    def accumulate(self, batches: Sequence[Batch]) -> Terms:
        """Add the gradient of the mean over the items of all batches."""
        items = [batch.shape[0] for batch in batches]
        self.items = sum(items)
        if len(batches) == 1:
            return self.gradient(batches[0])
        shares = [n / self.items for n in items]
        writes, parts = Writes(self.objective), list[Terms]()
        for batch, share in zip(batches, shares, strict=True):
            if parts:
                writes.reset()
            parts.append(self.gradient(batch, share))
            writes.keep()
        return Terms(
            *(sum(map(mul, shares, column)) for column in zip(*parts, strict=True))
        )

    def alone(self) -> AbstractContextManager[None]:
        """A context without other ranks where this one has all of a batch."""
        return single_process() if self.replicated else nullcontext()

    def refresh(self) -> None:
        """Forget what is cached of the objective and the optimiser: here nothing."""

    def finish(self) -> None:
        """End an epoch: here nothing."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _average_gradients(self) -> None:
        """All-reduce the gradients to their means over the ranks.

        The first step settles which parameters take part: those that have a gradient on
        any rank. Where such a parameter has no gradient, it counts as zero.
        """
        parameters = _parameters(self.optimizer)
        if self._used is None:
            here = torch.tensor([p.grad is not None for p in parameters])
            used = gather_to_cpu(here).any(0).tolist()
            self._used = [p for p, u in zip(parameters, used, strict=True) if u]
        known = set(map(id, self._used))
        if any(p.grad is not None and id(p) not in known for p in parameters):
            raise RuntimeError(
                "expected a gradient for the same parameters in every step of several "
                "processes, got one for a parameter that had none in the first step; "
                "use all parts of the objective in the first step, if with weight zero"
            )
        for parameter in self._used:
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        average([p.grad for p in self._used if p.grad is not None])


class Writes:
    """What several batches write to the buffers and frozen parameters of an objective.

    Each batch sees the values `before`; of a number that several write the last stays.
    """

    def __init__(self, objective: nn.Module) -> None:
        self.objective = objective
        self.before = {k: t.clone() for k, t in mutable_state(objective).items()}
        self.after = self.before

    def reset(self) -> None:
        """Restore the values from before."""
        self._write(self.before)

    def keep(self) -> None:
        """Add what the last batch wrote to what those before it wrote."""
        now = mutable_state(self.objective)
        self.after = self.after | {name: self._last(name, x) for name, x in now.items()}
        self._write(self.after)

    def _last(self, name: str, new: Tensor) -> Tensor:
        old, last = self.before.get(name), self.after.get(name)
        if old is None or last is None or not old.shape == new.shape == last.shape:
            return new.clone()
        return torch.where(new != old, new, last)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        now = mutable_state(self.objective)
        for name in now | dict(values):
            old, new = now.get(name), values.get(name)
            if old is not None and new is not None and old.shape == new.shape:
                old.copy_(new)
            else:  # a buffer that forward created, or gave another shape
                path, _, key = name.rpartition(".")
                module = self.objective.get_submodule(path)
                module._buffers[key] = None if new is None else new.clone()


def mutable_state(objective: nn.Module) -> dict[str, Tensor]:
    """The tensors that `forward` may write, by name: buffers and frozen parameters."""
    frozen = {k: p for k, p in objective.named_parameters() if not p.requires_grad}
    return dict(objective.named_buffers()) | frozen


def _parameters(optimizer: Optimizer) -> list[Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]
