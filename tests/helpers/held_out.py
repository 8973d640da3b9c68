"""Whether what a script fits and chooses depends on items that it holds out.

`watched` keeps the first calls of `main` and `choose` in a short form; `check` makes
them again with other test images, and with other images at the end of the training
split, which is for validation. What does not depend on them is equal bit by bit: the
parameters after each step of each optimiser, and all figures of other items. What was
chosen by hand on test images cannot be seen so; a score that `main` computes on them
and does not return can.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from inspect import BoundArguments, signature
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import probssl as ps
from probssl.train.run import EarlyStopping, Run

SOURCES = ("digits", "fashion_mnist", "load", "mnist")
PROBES = ("few_label_probe", "knn", "knns", "linear_probe", "linear_probes")
PROBES += ("crowding", "mlp_probe")
World = Callable[[ps.data.Dataset], ps.data.Dataset]


@dataclass
class Call:
    """A call of a script's function, what it fitted, and what it found.

    Arguments:
        sources: The functions of `probssl.data` that it may read, as they were.
        steps: The sum of the parameters after each step of an optimiser, and at the
            end of each fit, which may go back to the best epoch.
        rows: The epochs of each fit, with what compares them.
        scores: What probes found on test items, by their labels.
        found: The result of the call.
    """

    function: Callable[..., Any]
    bound: BoundArguments
    sources: dict[str, Callable[..., ps.data.Dataset]]
    steps: list[float] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    found: Any = None

    def figures(self) -> dict[str, Any]:
        """The numbers and words of the result by their places; no times."""
        return {k: v for k, v in _leaves(self.found) if "second" not in k}


def other_test(data: ps.data.Dataset) -> ps.data.Dataset:
    """Test images in another order, mirrored, beside labels that stay."""
    return data._replace(test=_exchanged(data.test, len(data.test)))


def other_end(data: ps.data.Dataset) -> ps.data.Dataset:
    """Likewise for the last twentieth of the training images, which validates."""
    return data._replace(train=_exchanged(data.train, max(2, len(data.train) // 20)))


def _exchanged(split: ps.data.Split, last: int) -> ps.data.Split:
    images = torch.as_tensor(split.images).clone()
    images[-last:] = images[-last:].flip(0, -1)
    return split._replace(images=images)


@contextmanager
def watched(module: ModuleType) -> Iterator[dict[str, Call]]:
    """Record the first calls of `main` and of `choose`, from the same seed."""
    calls: dict[str, Call] = {}
    names = [name for name in ("main", "choose") if hasattr(module, name)]

    def recording(name: str) -> Callable[..., Any]:
        function = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            if name in calls:
                return function(*args, **options)
            bound = signature(function).bind(*args, **options)
            sources = {source: getattr(ps.data, source) for source in SOURCES}
            calls[name] = _made(Call(function, bound, sources), lambda data: data)
            return calls[name].found

        call.__doc__ = function.__doc__
        return call

    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(module, name, recording(name)))
        yield calls


def check(calls: Mapping[str, Call], folder: Path, chosen_on: str | None) -> None:
    """Assert that no fit, no choice and no validation figure depends on test items.

    Where the last training images are for validation, also that no fit depends on them,
    and that figures with this name do.
    """
    main, others = calls["main"], {}
    for name, call in calls.items():
        others[name] = _again(call, other_test, folder / "test" / name)
        found = [(each.steps, repr(each.rows)) for each in (call, others[name])]
        assert found[0] == found[1], "a fit depends on test images"
        lost = [x for x in call.scores if x not in call.figures().values()]
        assert not lost, f"scores of test images that are not reported: {lost}"
    if "choose" in calls:
        chosen = others["choose"].figures() == calls["choose"].figures()
        assert chosen, "a choice depends on test images"
    moved = _moved(main, others["main"])
    assert not any("validation" in place for place in moved), moved
    held = any("validation" in place for place in main.figures())
    if chosen_on == "validation":
        shown = "expected validation figures, choose(), or no figure of test images"
        assert held or "choose" in calls or not moved, shown
    if held:
        other = _again(main, other_end, folder / "validation")
        assert other.steps == main.steps, "a fit depends on validation images"
        moved = _moved(main, other)
        assert moved and all("validation" in place for place in moved), moved


def _again(call: Call, world: World, folder: Path) -> Call:
    """The same call in another world, which writes to another folder."""
    folder.mkdir(parents=True)
    arguments = _changed(call.bound.arguments, world, folder)
    bound = BoundArguments(call.bound.signature, arguments)
    return _made(Call(call.function, bound, call.sources), world)


def _moved(one: Call, other: Call) -> list[str]:
    """The places of the figures that differ; NaN is equal to NaN."""
    a, b = one.figures(), other.figures()
    places = [*a, *(b.keys() - a.keys())]
    return [place for place in places if repr(a.get(place)) != repr(b.get(place))]


def _made(made: Call, world: World) -> Call:
    tests = [data.test.labels for data in _data_of(made.bound.arguments)]

    def source(name: str) -> Callable[..., ps.data.Dataset]:
        read = made.sources[name]

        def load(*args: Any, **options: Any) -> ps.data.Dataset:
            found = world(read(*args, **options))
            tests.append(found.test.labels)
            return found

        return load

    def probe(name: str) -> Callable[..., Any]:
        own = getattr(ps.evaluation, name)

        def measured(*args: Any, **options: Any) -> Any:
            found = own(*args, **options)
            made.scores += _scores_of(args, found, tests)
            return found

        return measured

    def record(parameters: Iterable[torch.Tensor]) -> None:
        made.steps.append(sum(float(p.detach().double().sum()) for p in parameters))

    def step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        fitted = [p for group in optimizer.param_groups for p in group["params"]]
        # The proposals of `evidence` are fitted to test items, and are no parameters.
        record(p for p in fitted if isinstance(p, torch.nn.Parameter))

    restore, finish = EarlyStopping.restore, Run.finish

    def finished(run: Run, row: dict[str, float], count: int) -> bool:
        made.rows.append({k: v for k, v in row.items() if k != "seconds"})
        return finish(run, row, count)

    def ended(stopping: EarlyStopping, objective: torch.nn.Module) -> None:
        restore(stopping, objective)
        record(objective.parameters())

    torch.manual_seed(0)
    with ExitStack() as stack:
        for name in SOURCES:
            stack.enter_context(mock.patch.object(ps.data, name, source(name)))
        for name in PROBES:
            stack.enter_context(mock.patch.object(ps.evaluation, name, probe(name)))
        stack.enter_context(mock.patch.object(EarlyStopping, "restore", ended))
        stack.enter_context(mock.patch.object(Run, "finish", finished))
        stack.callback(register_optimizer_step_post_hook(step).remove)
        made.found = made.function(*made.bound.args, **made.bound.kwargs)
    return made


def _scores_of(args: tuple[Any, ...], found: Any, tests: list[Any]) -> list[float]:
    """The scores of a probe whose items have the labels of a test split."""

    def is_test(labels: Any) -> bool:
        return any(
            known is not None
            and len(known) == len(labels)
            and bool((torch.as_tensor(known) == torch.as_tensor(labels)).all())
            for known in tests
        )

    if isinstance(found, Mapping):
        return [v for k, v in found.items() if is_test(args[2][k][1])]
    value = getattr(found, "mean", found)
    value = getattr(getattr(found, "crowding", None), "value", value)
    return [float(value)] if is_test(args[-1]) else []


def _data_of(value: Any) -> Iterator[ps.data.Dataset]:
    if isinstance(value, ps.data.Dataset):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _data_of(each)


def _changed(value: Any, world: World, folder: Path) -> Any:
    if isinstance(value, ps.data.Dataset):
        return world(value)
    if isinstance(value, Mapping):
        return {k: _changed(each, world, folder) for k, each in value.items()}
    return folder / value.name if isinstance(value, Path) else value


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from _leaves(each, f"{place}/{i}")
    else:
        yield place, value
