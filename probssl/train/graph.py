"""An objective, Pyro's handlers and gradient included, as one compiled graph.

`make_fx` runs the objective once on tensors without numbers and writes down what
happens to them; Inductor compiles that. In the graph there is no Python left, so it is
only as good as the objective is a function of tensors. What else it depends on, its
plain attributes, is part of the key under which a graph is kept; and before a graph is
used, it is compared with the objective.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import deterministic
from torch.utils._pytree import TreeSpec, tree_unflatten

from ..runtime.distributed import any_rank
from ..runtime.precision import network_dtype
from ..runtime.randomness import random_state, set_random_state
from ..terms import Terms
from .steps import parts_of, written

__all__ = ["Graph", "Tensors", "compiled", "is_plain", "plain"]

# How far a compiled gradient may be off, relative to its norm: rounding, not more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
LOWERED = 0.1  # where networks are in bfloat16
# Where rounding matters more, it may be off by as much as so many roundings of the
# parameters bring about, up to this.
ROUNDINGS, DOUBT = 30.0, 0.03


class Tensors(NamedTuple):
    """The tensors of an objective, and what else a graph of it depends on."""

    parameters: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    key: Hashable

    @classmethod
    def of(cls, objective: nn.Module) -> "Tensors":
        named = objective.named_parameters()
        parameters = {name: p for name, p in named if p.requires_grad}
        state = written(objective)
        key = _kinds(parameters), _kinds(state), plain(objective)
        return cls(parameters, state, key)

    def values(self) -> list[Tensor]:
        return [t.detach() for part in self[:2] for t in part.values()]


class Graph(NamedTuple):
    """A compiled function of tensors, and where its results belong."""

    call: Callable[..., Sequence[Tensor]]
    terms: tuple[float | None, ...]  # None stands for a tensor
    used: tuple[bool, ...]  # the parameters that have a gradient

    def add(self, tensors: Tensors, leaves: list[Any], share: float) -> Terms:
        values = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with torch.no_grad():
            results = iter(self.call(*tensors.values(), *values))
        terms = Terms(*(next(results) if t is None else t for t in self.terms))
        for used, parameter in zip(self.used, tensors.parameters.values(), strict=True):
            if used:
                _add_to(parameter, next(results), share)
        return terms


def plain(objective: nn.Module) -> Hashable:
    """What a graph of an objective freezes: modes and attributes that are no tensors.

    Numbers, texts and tuples of them, in all modules, and which parameters are frozen.
    """
    return tuple(
        (name, type(module), *_plain_items(vars(module)), *_frozen(module))
        for name, module in objective.named_modules()
    )


def _frozen(module: nn.Module) -> list[bool]:
    return [p.requires_grad for p in module.parameters(recurse=False)]


def _plain_items(attributes: dict[str, Any]) -> Iterator[Hashable]:
    for name, value in attributes.items():
        if is_plain(value):
            yield name, value


def is_plain(value: Any) -> bool:
    """Whether it is a number, a text, None, or a tuple of these."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _kinds(tensors: Mapping[str, Tensor]) -> Hashable:
    return tuple(
        (name, x.shape, x.stride(), x.dtype, x.device) for name, x in tensors.items()
    )


def _add_to(parameter: Tensor, slope: Tensor, share: float) -> None:
    slope = slope if share == 1 else slope.mul_(share)
    if parameter.grad is None:
        parameter.grad = slope
    else:
        parameter.grad += slope


@contextmanager
def _quiet() -> Iterator[None]:
    """No validation, which asks the host, and no warnings of the compiler's own."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def compiled(objective: nn.Module, leaves: list[Any], tree: TreeSpec) -> Graph:
    """Trace, compile and check; the objective and the random state stay as they are."""
    copy = deepcopy(objective)
    copy.zero_grad()
    tensors = Tensors.of(copy)
    layout: dict[str, Any] = {}
    run = _function(copy, tensors, leaves, tree, layout)
    values = [*tensors.values(), *(x for x in leaves if isinstance(x, Tensor))]
    random = random_state(values[0].device)
    with _quiet():
        with _on_all():
            call = _called(run, copy, values)
        with _on_all():
            _check(run, call, values, len(tensors.parameters), random)
    return Graph(call, layout["terms"], layout["used"])


@contextmanager
def _on_all() -> Iterator[None]:
    """What fails in one process fails in all, as they have to make the same steps."""
    try:
        yield
    except Exception:
        any_rank(True)
        raise
    if any_rank(False):
        raise ValueError("another process could not compile it")


def _called(
    run: Callable[..., list[Tensor]], copy: nn.Module, values: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """The function of a copy of the objective, traced and compiled."""
    before = plain(copy)
    trace = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)
    try:
        graph = trace(*values)
    except Exception as error:
        raise ValueError(
            "it cannot be traced; look for .item(), float(tensor) or `if tensor:` in "
            f"forward ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    if plain(copy) != before:
        raise ValueError(
            "forward changes plain attributes, which a graph cannot; keep them in "
            "buffers and change these in place"
        )
    return optimised(graph, values)


def _function(
    objective: nn.Module,
    tensors: Tensors,
    leaves: list[Any],
    tree: TreeSpec,
    layout: dict[str, Any],
) -> Callable[..., list[Tensor]]:
    """Terms and gradient as a function of all tensors; writes down their layout."""
    names = [*tensors.parameters, *tensors.state]
    many = len(tensors.parameters)

    def run(*values: Tensor) -> list[Tensor]:
        named = dict(zip(names, values, strict=False))
        for name in names[:many]:
            named[name] = named[name].detach().requires_grad_()
        rest = iter(values[len(names) :])
        batch = tree_unflatten(
            [next(rest) if isinstance(x, Tensor) else x for x in leaves], tree
        )
        leading = [named[name] for name in names[:many]]
        with torch.enable_grad():
            terms, slopes = parts_of(
                lambda b: functional_call(objective, named, (b,)), batch, leading
            )
        layout["terms"] = tuple(None if isinstance(t, Tensor) else t for t in terms)
        layout["used"] = tuple(slope is not None for slope in slopes)
        return [
            *(t.detach() for t in terms if isinstance(t, Tensor)),
            *_apart(slopes, leading),
        ]

    return run


def _apart(
    slopes: Sequence[Tensor | None], leading: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Each gradient in memory of its own, which is laid out as the parameter's."""
    seen: set[int] = set()
    for slope, parameter in zip(slopes, leading, strict=True):
        if slope is None:
            continue
        place = slope.untyped_storage()._cdata
        if place in seen or slope.stride() != parameter.stride():
            slope = torch.empty_like(parameter).copy_(slope)
        seen.add(place)
        yield slope


def _check(
    run: Callable[..., list[Tensor]],
    call: Callable[..., Sequence[Tensor]],
    values: list[Tensor],
    many: int,
    random: dict[str, Tensor],
) -> None:
    """Raise an error unless both give and write the same, from one random state.

    How much rounding matters is seen by moving the parameters, which are so many of the
    values, by a rounding error: a deep network in float32 may well have the third digit
    of its gradient in doubt.
    """
    near = [*map(_moved, values[:many]), *values[many:]]
    eager, moved, result = (
        _results(function, inputs, random)
        for function, inputs in ((run, values), (run, near), (call, values))
    )
    set_random_state(random, values[0].device)
    lowered = network_dtype(values[0].device.type) is not None
    largest = max(map(_norm, eager))
    for expected, other, found in zip(eager, moved, result, strict=True):
        # What is zero but for rounding is held against the largest of all.
        size = _norm(expected) + 1e-3 * largest
        least = LOWERED if lowered else TOLERANCE.get(expected.dtype, 0.0)
        doubt = min(ROUNDINGS * _distance(expected, other), DOUBT * size)
        _compare(expected, found, max(least * size, doubt))


def _results(
    function: Callable[..., Sequence[Tensor]],
    values: list[Tensor],
    random: dict[str, Tensor],
) -> list[Tensor]:
    """What a function gives and writes, called on copies from one random state."""
    copies = [value.clone() for value in values]
    set_random_state(random, values[0].device)
    with torch.no_grad():
        return [*function(*copies), *copies]


def _moved(value: Tensor) -> Tensor:
    """Numbers that are off by one rounding, up or down."""
    sign = torch.rand_like(value).sub(0.5).sign()
    return value * (1 + torch.finfo(value.dtype).eps * sign)


def _compare(expected: Tensor, found: Tensor, most: float) -> None:
    off = _distance(expected, found)
    if not off <= most:
        raise ValueError(
            f"the graph is off by {off:.1e}, where the objective has a term, a "
            f"gradient or a state of norm {_norm(expected):.1e}; it depends on "
            "something that is no tensor"
        )


def _distance(a: Tensor, b: Tensor) -> float:
    """That of two tensors, in which infinities may agree."""
    return float((a.double() - b.double()).masked_fill(a == b, 0.0).norm())


def _norm(value: Tensor) -> float:
    """The Euclidean norm of what is finite."""
    return float(value.double().nan_to_num(0.0, 0.0, 0.0).norm())


def optimised(
    graph: torch.fx.GraphModule, values: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """A graph of tensors as compiled code, which draws the random numbers it draws."""
    from torch import _inductor  # takes a second, which not every run needs

    inputs: list[Any] = list(values)
    with _sums_by_index_as_they_are(values[0].device):
        return _inductor.compile(graph, inputs, options={"fallback_random": True})


@contextmanager
def _sums_by_index_as_they_are(device: torch.device) -> Iterator[None]:
    """Leave `index_put` with accumulation, the way back of z[:, index], to ATen.

    In tiles of two dimensions Inductor's C++ of torch 2.13 adds the tile's rows to the
    index twice, and writes beyond the memory (`atomic_add_vec`, more than one thread):
    issue 191837 of pytorch/pytorch.
    """
    if device.type != "cpu":
        yield
        return
    memory: Any = deterministic  # a module with a property
    mode, fill = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill
