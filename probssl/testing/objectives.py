"""Laws of an objective: a module that maps a batch of views to `Terms`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..arguments import typed, whole
from ..arrays import tensor
from ..nn import PerModality
from ..runtime.copies import copied
from ..terms import Batch, Terms
from ..train.prepare import settle
from . import modules
from .laws import BARS, Estimate, Trial, differs, examine, in_short, mean_of, twin
from .modules import Valued, under_a_seed

__all__ = ["check_objective"]

LARGEST_ERROR = 0.05  # relative, of a term that is judged to be a sum
DOUBLE = torch.empty(0, dtype=torch.float64)


@typed
def check_objective(
    objective: nn.Module, batch: Batch, *, repeats: int = 40, seed: int = 0
) -> None:
    r"""Check an objective of your own against what `fit`, `embed` and `compare` need.

    ================  ============================================================
    terms             `Terms` of finite scalars, some with a gradient
    gradients         finite, for every trainable parameter
    mean over items   terms are no sums over items that do not depend on each other
    order of items    does not matter
    order of views    does not matter, unless a prior of the objective is `ordered`
    corner cases      one item, two, one view, equal views, equal items, huge inputs:
                      finite terms, or a ValueError from `check` or `forward`
    representation    `represent(x)` has shape (n, dim), each item independent of others
    float32           device, state, saving, tracing: as in `check_prior`
    ================  ============================================================

    Terms are nats per image whatever the batch size. A sum over items is found where
    the terms of a batch are the sums of those of its parts. Contrastive terms, whose
    items depend on each other, change with the batch in a way of their own, and no law
    tells their sum from their mean.

    Random terms are compared by their means over repeated draws. The check runs on a
    copy in float64, in evaluation mode but for gradients. Gradients are not compared
    with finite differences, so that heuristics whose gradient is not that of a scalar
    (stop-gradient) pass too.

    Arguments:
        objective: A module with `forward(batch) -> Terms` and `represent`.
        batch: A small valid batch of at least two items.
        repeats: The number of draws of random terms, at least 5; error bars are five
            standard errors.
        seed: The seed of all draws.

    Raises:
        LawError: If a law is broken; it names all that are.
        ValueError: If there are fewer than two items, or present views that are not
            finite.

    Example:
        >>> import probssl as ps
        >>> encoder = ps.nn.MLPEncoder((3,), 2, hidden=(4,))
        >>> objective = ps.limits.SimCLR(encoder)
        >>> check_objective(objective, ps.Batch(torch.randn(5, 2, 3)))
    """
    whole("items of batch", batch.shape[0], 2, hint="some laws compare two")
    repeats = whole("repeats", repeats, 5, hint="40 are usual")
    for x in batch.parts:
        tensor(x, "present views", finite=True)
    copy = twin(objective)
    settle(copy, torch.device("cpu"), batch.shape[0])
    batch = tree_map_only(Tensor, lambda x: _like(x.detach(), DOUBLE), batch)
    case = _Case(copy, batch, repeats)
    own = (terms, gradients, mean_over_items, order_of_items, order_of_views)
    more = (corner_cases, representation)
    laws: list[Trial] = [(law, lambda: case) for law in (*own, *more)]
    numerical = (*modules.NUMERICAL, modules.tracing)
    laws += [(law, lambda: _valued(case, case.batch)) for law in numerical]
    examine(type(objective).__name__, laws, seed)


class _Case(NamedTuple):
    objective: Any  # a module, with methods of its own
    batch: Batch
    repeats: int


def terms(case: _Case) -> Iterator[str]:
    """`Terms` of finite scalars, some of which have a gradient."""
    found = case.objective(case.batch)
    if not isinstance(found, Terms):
        yield f"expected ps.Terms from forward, got {type(found).__name__}"
        return
    for name, term in found._asdict().items():
        if isinstance(term, Tensor) and term.dim():
            yield (
                f"expected {name} to be a mean over the batch, got shape "
                f"{tuple(term.shape)}; take its .mean()"
            )
        elif not torch.as_tensor(term).isfinite():
            yield f"expected a finite {name}, got {torch.as_tensor(term).item()}"
    if not any(isinstance(t, Tensor) and t.requires_grad for t in found):
        yield "expected a term with a gradient, got none; look for .detach()"


def gradients(case: _Case) -> Iterator[str]:
    """Every trainable parameter has a finite gradient."""
    objective = copied(case.objective).train()
    named = [(k, p) for k, p in objective.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(
        torch.as_tensor(sum(objective(case.batch))),
        [parameter for _, parameter in named],
        allow_unused=True,
    )
    for (name, _), grad in zip(named, grads, strict=True):
        if grad is None:
            yield (
                f"expected a gradient for {name}, got none; use it in forward, or set "
                "requires_grad_(False)"
            )
        elif not grad.isfinite().all():
            yield f"expected a finite gradient for {name}, got NaN or infinity"


def mean_over_items(case: _Case) -> Iterator[str]:
    """Terms of a batch are not the sums of the terms of its parts."""
    items = case.batch.shape[0]
    added = torch.ones(len(Terms._fields)).bool()
    whole = _means(case, case.batch)
    # Two ways to part a batch: random terms may happen to add up in one of them.
    for size in {(items + 1) // 2, (items + 2) // 3} - {items}:
        rows = torch.arange(items).split(size)
        batches = [_items(case.batch, part) for part in rows]
        try:
            for batch in batches if hasattr(case.objective, "check") else ():
                case.objective.check(batch)
            parts = [_means(case, batch) for batch in batches]
        except ValueError:  # too few items
            return
        values = torch.stack([part.value for part in parts])
        weight = torch.tensor([len(part) / items for part in rows]).unsqueeze(1)
        total, share = values.sum(0), (weight * values).sum(0)
        error = torch.stack([whole.error, *(part.error for part in parts)])
        each = Estimate(whole.value, error.square().sum(0).sqrt())
        slack = 1e-6 * whole.value.abs()
        added &= each.misses(total) <= BARS
        added &= (each.misses(share) > BARS) & ((total - share).abs() > slack)
        added &= each.error <= LARGEST_ERROR * whole.value.abs()
    for name, is_sum in zip(Terms._fields, added, strict=True):
        if is_sum:
            yield (
                f"expected {name} to be a mean over items, got a sum: that of the "
                "batch is the sum of those of its parts; take its .mean()"
            )


def order_of_items(case: _Case) -> Iterator[str]:
    """Permuted items have the same terms."""
    order = torch.arange(case.batch.shape[0]).roll(1)
    yield from _same(case, _items(case.batch, order), "items in another order")


def order_of_views(case: _Case) -> Iterator[str]:
    """Permuted views have the same terms; modalities are not permuted."""
    views = case.batch.shape[1]
    if isinstance(case.batch.views, tuple) or views < 2:
        return
    if any(getattr(module, "ordered", False) for module in case.objective.modules()):
        return
    order = torch.arange(views).roll(1)
    moved = case.batch._replace(views=case.batch.views[:, order])
    if case.batch.present is not None:
        moved = moved._replace(present=case.batch.present[:, order])
    yield from _same(case, moved, "views in another order; treat views alike")


def corner_cases(case: _Case) -> Iterator[str]:
    """Terms are finite, or a ValueError says what was expected."""
    batch = case.batch
    items = batch.shape[0]
    places = {
        "one item": _items(batch, torch.arange(1)),
        "two items": _items(batch, torch.arange(2)),
        "equal items": _items(batch, torch.zeros(items, dtype=torch.long)),
        "huge inputs": batch._replace(
            views=tree_map_only(Tensor, lambda x: 1e6 * x, batch.views)
        ),
    }
    if not isinstance(batch.views, tuple):
        first = batch.views[:, :1]
        alone = None if batch.present is None else batch.present[:, :1]
        places["one view"] = batch._replace(views=first, present=alone)
        places["equal views"] = batch._replace(views=first.expand_as(batch.views))
    for name, place in places.items():
        try:
            if hasattr(case.objective, "check"):
                case.objective.check(place)
            found = _stacked(case.objective(place))
        except ValueError:
            continue
        except Exception as error:
            yield (
                f"expected finite terms or a ValueError for {name}, got "
                f"{in_short(error)}; say what is expected in check(batch)"
            )
            continue
        if not found.isfinite().all():
            listed = [round(float(t), 3) for t in found]
            yield f"expected finite terms or a ValueError for {name}, got {listed}"


def representation(case: _Case) -> Iterator[str]:
    """`represent(x)` has shape (n, dim), each item independent of the others."""
    if not hasattr(case.objective, "represent"):
        yield "expected a method represent(x) -> (n, dim), which embed calls, got none"
        return
    joint = getattr(case.objective, "joint", None)
    if "guide" in getattr(joint, "conditional", ()):
        return  # embed takes q(z|x, c) of the joint itself
    items = case.batch.shape[0]
    z = case.objective.represent(_alone(case, items)).detach()
    if z.dim() != 2 or len(z) != items or not z.isfinite().all():
        yield f"expected finite numbers of shape ({items}, dim), got {tuple(z.shape)}"
        return
    gap = differs(case.objective.represent(_alone(case, 1)).detach(), z[:1])
    if gap:
        yield f"{gap} in represent(x) of an item alone; look for batch statistics"


def _alone(case: _Case, items: int) -> Tensor | tuple[Tensor, ...]:
    """The first view of some items; with several modalities, of each."""
    views = case.batch.views
    if not isinstance(views, tuple):
        return views[:items, 0]
    first = tuple(part[:items, 0] for part in views)
    several = any(isinstance(m, PerModality) for m in case.objective.modules())
    return first if several else first[0]


def _same(case: _Case, moved: Batch, what: str) -> Iterator[str]:
    """Compare the terms of two batches, or their means where terms are random."""
    one, other = (_valued(case, batch) for batch in (case.batch, moved))
    if torch.equal(under_a_seed(one, 0), under_a_seed(one, 1)):
        gap = differs(under_a_seed(other), under_a_seed(one))
        if gap:
            yield f"{gap} with {what}"
        return
    means = [_means(case, batch, i) for i, batch in enumerate((case.batch, moved))]
    error = torch.hypot(means[0].error, means[1].error)
    away = means[0]._replace(error=error).misses(means[1].value)
    for name, far, was, came in zip(
        Terms._fields, away, means[0].value, means[1].value, strict=True
    ):
        if float(far) > BARS:
            yield (
                f"expected the mean {float(was):.5g} of {name}, got {float(came):.5g}, "
                f"{float(far):.0f} standard errors away, with {what}"
            )


def _means(case: _Case, batch: Batch, first: int = 0) -> Estimate:
    """The terms of a batch, or their means over repeated draws."""
    valued = _valued(case, batch)
    with torch.no_grad():
        draws = [under_a_seed(valued, 2 * s + first) for s in range(2)]
        if not torch.equal(*draws):
            more = range(2, case.repeats)
            draws += [under_a_seed(valued, 2 * s + first) for s in more]
    return mean_of(torch.stack(draws))


def _valued(case: _Case, batch: Batch) -> Valued:
    several = isinstance(batch.views, tuple)

    def value(objective: nn.Module, *views: Tensor) -> Tensor:
        like = views[0]
        rest = tree_map_only(Tensor, lambda x: _like(x, like), batch[1:])
        return _stacked(objective(Batch(views if several else like, *rest)))

    inputs = batch.views if isinstance(batch.views, tuple) else (batch.views,)
    return Valued(case.objective, value, inputs)


def _stacked(found: Terms) -> Tensor:
    tensors = [t for t in found if isinstance(t, Tensor)]
    return torch.stack([torch.as_tensor(t).to(tensors[0].device) for t in found])


def _like(x: Tensor, like: Tensor) -> Tensor:
    """On the device of another tensor; numbers in its dtype."""
    return x.to(like) if x.is_floating_point() else x.to(like.device)


def _items(batch: Batch, rows: Tensor) -> Batch:
    """The batch of these items."""
    count = batch.shape[0]

    def chosen(x: Tensor) -> Tensor:
        return x[rows] if x.dim() and len(x) == count else x

    return tree_map_only(Tensor, chosen, batch)
