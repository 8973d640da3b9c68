"""An objective, Pyro's handlers and backward pass included, as one compiled graph.

`make_fx` runs the objective once on fake tensors and records every operation; Inductor
compiles the record. A graph contains no Python, so it is right only if the objective is
a function of tensors. Plain attributes, the other thing that an objective may depend
on, are part of the key under which a graph is kept, and each new graph is compared with
the objective before its first use.
"""

import pickle
import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_unflatten

from ..runtime.copies import copied, held_by, of_library
from ..runtime.distributed import any_rank
from ..runtime.precision import network_dtype
from ..runtime.randomness import random_state, set_random_state
from ..runtime.unregistered import OF_MODULES, unregistered
from ..runtime.validation import unvalidated
from ..terms import Terms
from .repair import remove_broken, remove_named
from .steps import mutable_state, terms_and_grads

__all__ = ["Graph", "Tensors", "compiled", "drifted", "fixed", "foreign_randomness"]
__all__ += ["held", "inductor"]
__all__ += ["is_plain", "plain_attributes"]

# The largest error of a compiled result relative to its norm, which is due to rounding.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
TOLERANCE_BFLOAT16 = 0.1  # with networks in bfloat16
# Where rounding matters more, the error may be this many times the change that rounding
# the parameters causes, up to MAX_TOLERANCE.
ROUNDINGS, MAX_TOLERANCE = 30.0, 0.03
# Of a step: 1,000 are compiled in about a minute on two cores, 2,000 in several.
MOST_OPERATIONS = 1500


class Tensors(NamedTuple):
    """The tensors of an objective, and a key of all else that a graph depends on."""

    parameters: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    key: tuple[Hashable, ...]  # the last entry the plain attributes

    @classmethod
    def of(cls, objective: nn.Module) -> "Tensors":
        named = objective.named_parameters()
        parameters = {name: p for name, p in named if p.requires_grad}
        state = mutable_state(objective)
        key = _layouts(parameters), _layouts(state), plain_attributes(objective)
        return cls(parameters, state, key)

    def values(self) -> list[Tensor]:
        return [t.detach() for part in self[:2] for t in part.values()]


class Graph(NamedTuple):
    """A compiled function of tensors, and what each of its results is."""

    call: Callable[..., Sequence[Tensor]]
    terms: tuple[float | None, ...]  # None stands for a tensor
    used: tuple[bool, ...]  # whether each parameter has a gradient

    def add(self, tensors: Tensors, leaves: list[Any], share: float) -> Terms:
        """Add the gradient, times a share, to the parameters'; return the terms."""
        values = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with torch.no_grad():
            results = iter(self.call(*tensors.values(), *values))
        terms = Terms(*(next(results) if t is None else t for t in self.terms))
        used = compress(tensors.parameters.values(), self.used)
        for parameter, grad in zip(used, results, strict=True):
            grad = grad if share == 1 else grad.mul_(share)
            if parameter.grad is None:
                parameter.grad = grad
            else:
                parameter.grad += grad
        return terms


def compiled(objective: nn.Module, leaves: list[Any], tree: TreeSpec) -> Graph:
    """Trace, compile and compare; the objective and the random state are unchanged.

    Arguments:
        leaves: Those of the batch, by `tree_flatten`.
    """
    _check_modules(objective)
    copy = copied(objective)
    copy.zero_grad()
    tensors = Tensors.of(copy)
    layout: dict[str, Any] = {}
    eager = _as_function(copy, tensors, leaves, tree, layout)
    values = [*tensors.values(), *(x for x in leaves if isinstance(x, Tensor))]
    before = random_state(values[0].device)
    try:
        with _quiet():
            with _on_all_ranks():
                _check_size(eager, values)
                call = _traced(eager, copy, values)
            with _on_all_ranks():
                _compare(eager, call, values, len(tensors.parameters), before)
    finally:
        set_random_state(before, values[0].device)
    return Graph(call, layout["terms"], layout["used"])


def plain_attributes(objective: nn.Module) -> Hashable:
    """Modes, plain attributes and hooks of all modules, and what is frozen.

    A graph contains their values as constants, those within lists, dictionaries and
    configurations too, and those that functions and classes hold.
    """
    return _of_modules(objective, {id(module) for module in objective.modules()})


def _of_modules(objective: nn.Module, seen: set[int], depth: int = 10) -> Hashable:
    return tuple(
        (
            name,
            _fixed(type(module), seen, depth),
            *(
                (k, _fixed(x, seen, depth))
                for k, x in vars(module).items()
                if k not in OF_MODULES
            ),
            *(p.requires_grad for p in module.parameters(recurse=False)),
            _hooked(module),
        )
        for name, module in objective.named_modules()
    )


def drifted(before: Mapping[str, Hashable], objective: nn.Module) -> list[str]:
    """The names of `held` numbers that have changed since."""
    now = held(objective)
    return [name for name in before if now.get(name) != before[name]]


def held(objective: nn.Module) -> dict[str, Hashable]:
    """Numbers, tensors and arrays in plain attributes; of libraries, in public ones."""
    kinds = int | float | Tensor | np.ndarray
    return {
        f"{name}.{key}".lstrip("."): fixed(x)
        for name, module in objective.named_modules()
        for key, x in vars(module).items()
        if key not in OF_MODULES and key != "training" and isinstance(x, kinds)
        if key[0] != "_" or not of_library(type(module).__module__)
    }


def _hooked(module: nn.Module) -> bool:
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def fixed(value: Any) -> Hashable:
    """What a graph keeps of a value that is no part of the objective."""
    return _fixed(value, set(), 10)


def _fixed(value: Any, seen: set[int], depth: int) -> Hashable:
    """What a graph keeps of a value: its numbers, or which object it is.

    Arguments:
        seen: The addresses of objects whose numbers are in the key already; all of
            these live as long as the objective.
    """
    if is_plain(value):
        return value
    if isinstance(value, Tensor):
        return _Same(value), None if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return _Same(value), hash(value.tobytes())
    if isinstance(value, random.Random):
        return _Same(value), value.getstate()
    if isinstance(value, np.random.Generator | np.random.RandomState):
        return _Same(value), pickle.dumps(value)
    if isinstance(value, torch.Generator) and value.device.type == "cpu":
        return _Same(value), value.get_state().numpy().tobytes()
    if not depth or id(value) in seen:
        return _Same(value)
    seen.add(id(value))
    if isinstance(value, nn.Module):  # which the objective does not know
        seen.update(map(id, value.modules()))
        held = dict(enumerate(chain(value.parameters(), value.buffers())))
        return _of_modules(value, seen, depth - 1), _inside(held, seen, depth)
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), _inside(dict(enumerate(value)), seen, depth)
    if isinstance(value, Mapping):
        return type(value), _inside(value, seen, depth)
    inner = held_by(value)
    if inner is None:
        return _Same(value)
    kind = _Same(value) if callable(value) else type(value)
    return kind, _inside(inner, seen, depth)


def _inside(held: Mapping[Any, Any], seen: set[int], depth: int) -> Hashable:
    return tuple((str(k), _fixed(x, seen, depth - 1)) for k, x in held.items())


def _check_modules(objective: nn.Module) -> None:
    """Raise a ValueError for hooks, and for networks that the objective does not know.

    A graph would not run the first, nor move the second.
    """
    for name, module in objective.named_modules():
        if _hooked(module):
            raise ValueError(
                f"{name or type(module).__name__} has hooks, which a graph would not "
                "run; remove them"
            )
    for name, part in unregistered(objective, functions=False).items():
        raise ValueError(
            f"{name} ({type(part).__name__}) is not registered, and a graph would not "
            "move it; keep it in a ModuleList or ModuleDict"
        )


class _Same:
    """An object, equal to itself alone; kept, so that no other gets its address."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def is_plain(value: Any) -> bool:
    """Whether it is a number, a string, None, or a tuple of these."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def inductor(
    graph: torch.fx.GraphModule, values: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """Compile a traced graph; its random numbers remain those of the eager code.

    Files that an interrupted process left damaged in the compiler's cache are built
    anew.
    """
    remove_broken()
    removed: set[str] = set()
    while True:
        try:
            return _inductor(graph, values)
        except Exception as error:
            found = remove_named(error, removed)
            if not found:
                raise
            removed |= found


def _inductor(
    graph: torch.fx.GraphModule, values: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    # These imports take a second, which not every run needs.
    from torch import _inductor
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Without an environment of shapes Inductor does not keep its graphs in the cache;
    # with one it takes sizes of real inputs as variables.
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs: list[Any] = [fake.from_tensor(x, static_shapes=True) for x in values]
    with tracing(TracingContext(fake)), _eager_index_put(values[0].device):
        return _inductor.compile(graph, inputs, options={"fallback_random": True})


@contextmanager
def _eager_index_put(device: torch.device) -> Iterator[None]:
    """Leave accumulating `index_put`, the backward pass of z[:, index], to ATen.

    In two-dimensional tiles the C++ of Inductor in torch 2.13 adds the tile's rows to
    the index twice and writes beyond the memory (`atomic_add_vec`, with more than one
    thread): issue 191837 of pytorch/pytorch.
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


def _layouts(tensors: Mapping[str, Tensor]) -> Hashable:
    return tuple(
        (name, x.shape, x.stride(), x.dtype, x.device) for name, x in tensors.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pyro's validation, which synchronises, and the compiler's warnings."""
    with unvalidated(), warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


@contextmanager
def _on_all_ranks() -> Iterator[None]:
    """Fail on all ranks if one fails, so that all make the same kind of step."""
    try:
        yield
    except Exception:
        any_rank(True)
        raise
    if any_rank(False):
        raise ValueError("another process could not compile it")


def _as_function(
    objective: nn.Module,
    tensors: Tensors,
    leaves: list[Any],
    tree: TreeSpec,
    layout: dict[str, Any],
) -> Callable[..., list[Tensor]]:
    """Terms and gradient as a function of all tensors; a call fills in the layout."""
    watched = _Watched(objective)

    def run(*values: Tensor) -> list[Tensor]:
        rest = iter(values)
        parameters = [next(rest).detach().requires_grad_() for _ in tensors.parameters]
        names = (f"objective.{k}" for k in chain(tensors.parameters, tensors.state))
        state = (next(rest) for _ in tensors.state)
        named = dict(zip(names, chain(parameters, state), strict=True))
        batch = tree_unflatten(
            [next(rest) if isinstance(x, Tensor) else x for x in leaves], tree
        )
        with torch.enable_grad():
            terms, grads = terms_and_grads(
                lambda b: functional_call(watched, named, (b,)), batch, parameters
            )
        layout["terms"] = tuple(None if isinstance(t, Tensor) else t for t in terms)
        layout["used"] = tuple(grad is not None for grad in grads)
        return [
            *(t.detach() for t in terms if isinstance(t, Tensor)),
            *_separate(grads, parameters),
        ]

    return run


class _Watched(nn.Module):
    """An objective that keeps its buffers: a graph writes to them in place only."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any) -> Any:
        before = dict(self.objective.named_buffers())
        terms = self.objective(batch)
        after = dict(self.objective.named_buffers())
        for name in before.keys() | after.keys():
            if before.get(name) is not after.get(name):
                raise ValueError(
                    f"forward assigns another tensor to the buffer {name}, which a "
                    "graph cannot; write in place: buffer.copy_(…)"
                )
        return terms


def _separate(
    grads: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Each gradient in memory of its own, with the strides of its parameter."""
    seen: set[int] = set()
    for grad, parameter in zip(grads, parameters, strict=True):
        if grad is None:
            continue
        storage = grad.untyped_storage()._cdata
        if storage in seen or grad.stride() != parameter.stride():
            grad = torch.empty_like(parameter).copy_(grad)
        seen.add(storage)
        yield grad


def _check_size(eager: Callable[..., list[Tensor]], values: Sequence[Tensor]) -> None:
    """Raise a ValueError if the step would take minutes to compile."""
    with torch.no_grad(), _Operations() as made:
        eager(*(value.clone() for value in values))
    if made.count > MOST_OPERATIONS:
        raise ValueError(
            f"one step makes {made.count:,} operations, which would take minutes to "
            f"compile; at most {MOST_OPERATIONS:,} are. If most of them integrate y "
            "out of a prior, make y a variable of the model: "
            "Joint(…, content=ps.guides.Content(dim))"
        )


class _Operations(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _traced(
    eager: Callable[..., list[Tensor]], copy: nn.Module, values: list[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """The function of a copy of the objective, traced and compiled."""
    before, drawn = plain_attributes(copy), foreign_randomness()
    trace = make_fx(eager, tracing_mode="fake", _allow_non_fake_inputs=True)
    try:
        graph = trace(*values)
    except Exception as error:
        raise ValueError(
            "tracing failed; look for .item(), float(tensor), `if tensor:` or x[mask] "
            f"in forward ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    if foreign_randomness() != drawn:
        raise ValueError(
            "forward draws random numbers of Python or NumPy, which a graph would "
            "freeze; draw with torch.rand"
        )
    if plain_attributes(copy) != before:
        raise ValueError(
            "forward changes plain attributes, which a graph cannot; keep them in "
            "buffers and change these in place"
        )
    return inductor(graph, values)


def foreign_randomness() -> Hashable:
    """The states of Python's and NumPy's global generators."""
    return random.getstate(), pickle.dumps(np.random.get_state())


def _compare(
    eager: Callable[..., list[Tensor]],
    call: Callable[..., Sequence[Tensor]],
    values: list[Tensor],
    n_parameters: int,
    state: dict[str, Tensor],
) -> None:
    """Raise a ValueError unless both return and write the same, from one random state.

    The parameters are the first of the values. Moving them by one rounding error shows
    how much rounding matters: in float32 the third digit of a deep network's gradient
    may be in doubt.
    """
    near = [*map(_rounded, values[:n_parameters]), *values[n_parameters:]]
    expected, moved, found = (
        _results(function, inputs, state)
        for function, inputs in ((eager, values), (eager, near), (call, values))
    )
    lowered = network_dtype(values[0].device.type) is not None
    largest = max(map(_norm, expected))
    for one, other, result in zip(expected, moved, found, strict=True):
        # A result that is zero but for rounding is compared with the largest result.
        size = _norm(one) + 1e-3 * largest
        tolerance = TOLERANCE_BFLOAT16 if lowered else TOLERANCE.get(one.dtype, 0.0)
        doubt = min(ROUNDINGS * _distance(one, other), MAX_TOLERANCE * size)
        error = _distance(one, result)
        if not error <= max(tolerance * size, doubt):
            raise ValueError(
                f"the graph is off by {error:.1e} in a term, a gradient or a buffer of "
                f"norm {_norm(one):.1e}; the objective depends on something that is "
                "not a tensor, or the graph draws its random numbers in another order, "
                "as for dropout of attention"
            )


def _results(
    function: Callable[..., Sequence[Tensor]],
    values: list[Tensor],
    state: dict[str, Tensor],
) -> list[Tensor]:
    """What a function returns and writes, called on copies from one random state."""
    copies = [value.clone() for value in values]
    set_random_state(state, values[0].device)
    with torch.no_grad():
        return [*function(*copies), *copies]


def _rounded(value: Tensor) -> Tensor:
    """The numbers moved by one rounding error, up or down at random."""
    sign = torch.rand_like(value).sub(0.5).sign()
    return value * (1 + torch.finfo(value.dtype).eps * sign)


def _distance(a: Tensor, b: Tensor) -> float:
    """The Euclidean distance of two tensors; equal infinities have distance zero."""
    return float((a.double() - b.double()).masked_fill(a == b, 0.0).norm())


def _norm(value: Tensor) -> float:
    """The Euclidean norm of the finite entries."""
    return float(value.double().nan_to_num(0.0, 0.0, 0.0).norm())
