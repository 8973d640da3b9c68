r"""Steps of gradient ascent on the value of an objective, the sum of its terms.

.. math:: \theta \leftarrow \theta - \eta \, \nabla_\theta \Bigl(-\sum_t t(\theta)\Bigr)

The minus sign stands here, and nowhere else.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..runtime.distributed import average, gather_to_cpu, world_size
from ..runtime.precision import lowered
from ..terms import Batch, Terms

__all__ = [
    "Averaged",
    "Gradient",
    "Step",
    "add_gradient",
    "loss",
    "parts_of",
    "steps",
    "written",
]


Gradient = Callable[[nn.Module, Batch, float], Terms]


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
    """Add the gradient of the loss on a batch to that of the parameters.

    Arguments:
        share: The weight of the batch among those of the same step.

    Raises:
        TypeError: As `loss`.
        ValueError: As `loss`.
    """
    terms = lowered(objective, batch)
    (share * loss(terms)).backward()
    return Terms(*(t.detach() if isinstance(t, Tensor) else t for t in terms))


def loss(terms: object) -> Float[Tensor, ""]:
    """Minus the sum of the terms.

    Raises:
        TypeError: If they are no `Terms`.
        ValueError: If one is no mean over the batch, or none has a gradient.
    """
    if not isinstance(terms, Terms):
        raise TypeError(
            f"expected the objective to return Terms, got {type(terms).__name__}; "
            "return Terms(reconstruction=…, alignment=…) with what it is made of"
        )
    for name, term in terms._asdict().items():
        if isinstance(term, Tensor) and term.ndim:
            raise ValueError(
                f"expected terms to be means over the batch, got {name} with shape "
                f"{tuple(term.shape)}; take its .mean()"
            )
    if not any(isinstance(term, Tensor) and term.requires_grad for term in terms):
        raise ValueError(
            "expected a value that depends on trainable parameters, got terms without "
            "a gradient; train a part that the objective uses"
        )
    # Plain numbers, the terms that are not in play, have no gradient.
    first, *rest = (term for term in terms if isinstance(term, Tensor))
    return -sum(rest, start=first)


def parts_of(
    objective: Callable[[Batch], Terms], batch: Batch, parameters: Sequence[Tensor]
) -> tuple[Terms, tuple[Tensor | None, ...]]:
    """The terms, and the gradient of the loss, None where a parameter has no part.

    What `add_gradient` adds, as a function that leaves the parameters alone.
    """
    terms = lowered(objective, batch)
    return terms, torch.autograd.grad(loss(terms), parameters, allow_unused=True)


class Step:
    """One step: the gradient over the given batches, clipping, update and schedule.

    Several batches count as one. All of them see the buffers and frozen parameters as
    they stood before the step, and only what the last one writes there stays: so a
    teacher or a queue moves once per step, however many batches it is made of.

    Arguments:
        scheduler: Is stepped once per step, not per epoch.
        clip: The largest Euclidean norm of the gradient.
        make: What makes a batch of what a step is called with; by default it is one.
        gradient: What adds the gradient of a batch, as `add_gradient` does.
        prepare: Called with the number of steps made before each one.
        around: The context of a step, such as that of a `Precision`.

    Raises:
        ValueError: If `clip` is not positive.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: Optimizer,
        *,
        scheduler: LRScheduler | None = None,
        clip: float | None = None,
        make: Callable[[Any], Batch] = lambda batch: batch,
        gradient: Gradient = add_gradient,
        prepare: Callable[[int], Any] = lambda count: None,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(
                f"expected clip > 0, got {clip}; it is the norm of the gradient at most"
            )
        self.objective, self.optimizer = objective, optimizer
        self.scheduler, self.clip = scheduler, clip
        self.make, self.add_gradient = make, gradient
        self.prepare, self.around = prepare, around
        self.average = Averaged(optimizer)
        self.count, self.items = 0, 0
        # What makes the step on the device: `ascend`, or a replay of it.
        self.run: Callable[[Sequence[Any]], Terms] = self.ascend
        # Called when others may have changed the objective or the optimiser.
        self.watchers: list[Callable[[], Any]] = []

    def __call__(self, loads: Sequence[Any]) -> Terms:
        """Make the step; return its terms, as means over the items of all batches."""
        self.prepare(self.count)
        with self.around():
            terms = self.run(loads)
        if self.scheduler is not None:
            self.scheduler.step()
        self.count += 1
        return terms

    def ascend(self, loads: Sequence[Any]) -> Terms:
        """What happens on the device: the batches, their gradient, the update."""
        self.optimizer.zero_grad()
        terms = self.gradient([self.make(load) for load in loads])
        self.update()
        return terms

    def gradient(self, batches: Sequence[Batch]) -> Terms:
        """Add the gradient of the mean over the items of all batches."""
        items = [batch.shape[0] for batch in batches]
        self.items = sum(items)
        if len(batches) == 1:
            return self.add_gradient(self.objective, batches[0], 1.0)
        shares = [n / self.items for n in items]
        before = [tensor.clone() for tensor in written(self.objective).values()]
        parts: list[Terms] = []
        for batch, share in zip(batches, shares, strict=True):
            if parts:
                _copy(before, written(self.objective).values())
            parts.append(self.add_gradient(self.objective, batch, share))
        columns = zip(*parts, strict=True)
        return Terms(
            *(sum(s * t for s, t in zip(shares, c, strict=True)) for c in columns)
        )

    def look(self) -> None:
        """Take note that the objective or the optimiser may have been changed."""
        for watcher in self.watchers:
            watcher()

    @property
    def learning_rate(self) -> float:
        """That of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self) -> None:
        """Move the parameters along their gradient, the mean of all processes'."""
        self.average()
        if self.clip is not None:
            groups = self.optimizer.param_groups
            parameters = [p for group in groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()


def written(objective: nn.Module) -> dict[str, Tensor]:
    """What `forward` may write, by name: buffers and frozen parameters."""
    frozen = {k: p for k, p in objective.named_parameters() if not p.requires_grad}
    return dict(objective.named_buffers()) | frozen


@torch.no_grad()
def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    for before, now in zip(source, target, strict=True):
        now.copy_(before)


class Averaged:
    """Averages the gradients of an optimiser's parameters over the processes.

    Which of them have one is settled in the first step: those that have one on any of
    the processes. Where they have none it counts as zero from then on.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.used: list[Parameter] | None = None

    def __call__(self) -> None:
        """Do so, if there are several processes.

        Raises:
            RuntimeError: If a parameter has a gradient that had none in the first step.
        """
        if world_size() == 1:
            return
        groups = self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        if self.used is None:
            self.used = _used(parameters)
        known = set(map(id, self.used))
        if any(p.grad is not None and id(p) not in known for p in parameters):
            raise RuntimeError(
                "expected a gradient for the same parameters in every step of several "
                "processes, got one that the first step had not; let all parts of the "
                "objective take part in the first step, if with weight zero"
            )
        average([_slope(parameter) for parameter in self.used])


def _used(parameters: list[Parameter]) -> list[Parameter]:
    here = torch.tensor([p.grad is not None for p in parameters])
    anywhere = gather_to_cpu(here).any(0).tolist()
    return [p for p, used in zip(parameters, anywhere, strict=True) if used]


def _slope(parameter: Parameter) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
