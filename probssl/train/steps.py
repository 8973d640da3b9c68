r"""Steps of gradient ascent on the value of an objective, the sum of its terms.

.. math:: \theta \leftarrow \theta - \eta \, \nabla_\theta \Bigl(-\sum_t t(\theta)\Bigr)

The minus sign stands here, and nowhere else.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..terms import Batch, Terms

__all__ = ["Step", "add_gradient", "steps"]


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
        TypeError: If the objective does not return `Terms`.
        ValueError: If a term is no mean over the batch, or none has a gradient.
    """
    terms = objective(batch)
    _check(terms)
    # Plain numbers, the terms that are not in play, have no gradient.
    first, *rest = (term for term in terms if isinstance(term, Tensor))
    (-share * sum(rest, start=first)).backward()
    return Terms(*(t.detach() if isinstance(t, Tensor) else t for t in terms))


class Step:
    """One step: the gradient over the given batches, clipping, update and schedule.

    Several batches count as one. All of them see the buffers and frozen parameters as
    they stood before the step, and only what the last one writes there stays: so a
    teacher or a queue moves once per step, however many batches it is made of.

    Arguments:
        scheduler: Is stepped once per step, not per epoch.
        clip: The largest Euclidean norm of the gradient.

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
    ) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(
                f"expected clip > 0, got {clip}; it is the norm of the gradient at most"
            )
        self.objective, self.optimizer = objective, optimizer
        self.scheduler, self.clip = scheduler, clip
        self.count = 0

    def __call__(self, batches: Sequence[Batch]) -> Terms:
        """Make the step; return its terms, as means over the items of all batches."""
        self.optimizer.zero_grad()
        terms = self.gradient(batches)
        self.update()
        return terms

    def gradient(self, batches: Sequence[Batch]) -> Terms:
        """Add the gradient of the mean over the items of all batches."""
        if len(batches) == 1:
            return add_gradient(self.objective, batches[0])
        items = [batch.shape[0] for batch in batches]
        shares = [n / sum(items) for n in items]
        before = [tensor.clone() for tensor in _written(self.objective)]
        parts: list[Terms] = []
        for batch, share in zip(batches, shares, strict=True):
            if parts:
                _copy(before, _written(self.objective))
            parts.append(add_gradient(self.objective, batch, share))
        columns = zip(*parts, strict=True)
        return Terms(
            *(sum(s * t for s, t in zip(shares, c, strict=True)) for c in columns)
        )

    @property
    def learning_rate(self) -> float:
        """That of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self) -> None:
        """Move the parameters along their gradient."""
        if self.clip is not None:
            groups = self.optimizer.param_groups
            parameters = [p for group in groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.count += 1


def _written(objective: nn.Module) -> list[Tensor]:
    """What `forward` may write: buffers and frozen parameters."""
    frozen = (p for p in objective.parameters() if not p.requires_grad)
    return [*objective.buffers(), *frozen]


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for before, now in zip(source, target, strict=True):
        now.copy_(before)


def _check(terms: object) -> None:
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
