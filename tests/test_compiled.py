"""A compiled step is the step it was compiled from."""

import logging
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.catalogue import (
    DIM,
    EVENT,
    ITEMS,
    OBJECTIVES,
    Everything,
    batch,
    joint,
    noisy,
)
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_map_only

import probssl as ps
from probssl.runtime.precision import Precision
from probssl.train import Step, compiled
from probssl.train.compiled import (
    CompiledStep,
    RecordedStep,
    _obstacle,
    compiled_step,
    worth_compiling,
)
from probssl.train.graph import inductor
from probssl.train.prepare import make_capturable
from probssl.train.repair import remove_broken
from probssl.train.schedules import Schedules

STEPS = 3


class Plain(nn.Module):
    """Linear, with what a test does in `forward`."""

    def __init__(self, act: Callable[["Plain", Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.act, self.factor = nn.Linear(EVENT, DIM), act, 1.0
        self.register_buffer("mean", torch.zeros(()))
        self.generator, self.helpers = np.random.default_rng(0), []
        if act is helped:
            self.helpers = [nn.Linear(DIM, DIM)]
        if act is logged:
            self.linear.register_forward_hook(lambda *_: None)

    def forward(self, batch: ps.Batch) -> ps.Terms:
        value = self.act(self, self.linear(batch.stacked))
        return ps.Terms(alignment=-value.square().mean() * self.factor)


def step_of(kind: type[Step], objective: nn.Module, **options: Any) -> Any:
    """A step of a kind on an objective in training mode."""
    parameters = [p for p in objective.train().parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    return kind(objective, optimizer, **options)


Outcome = tuple[list[Tensor], dict[str, Tensor], Tensor]


def outcome(step: Step, groups: Sequence[Sequence[ps.Batch]] | None = None) -> Outcome:
    """Values of some steps, the state after them, and the next random number."""
    torch.manual_seed(1)
    groups = groups or [[batch(i)] for i in range(STEPS)]
    values = [torch.as_tensor(sum(step(group))) for group in groups]
    return values, step.objective.state_dict(), torch.rand(())


def assert_alike(
    objective: nn.Module,
    tolerance: float = 1e-10,
    groups: Sequence[Sequence[ps.Batch]] | None = None,
    **options: Any,
) -> CompiledStep:
    """Compiled steps, which are returned, against eager ones."""
    kinds = (Step, CompiledStep)
    steps = [step_of(kind, deepcopy(objective), **options) for kind in kinds]
    expected, found = (outcome(step, groups) for step in steps)
    assert steps[1].reason is None
    assert_close(found, expected, rtol=tolerance, atol=tolerance)
    return steps[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_the_same_steps_as_a_graph(name, float64, traced):
    assert_alike(OBJECTIVES[name]())
    assert len(traced) == 1


@pytest.mark.slow  # half a minute for each objective
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_the_same_steps_compiled(name, float64):
    assert_alike(OBJECTIVES[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_takes_the_same_step_compiled_in_float32(name):
    """One step, for rounding errors grow from step to step."""
    assert_alike(OBJECTIVES[name](), 1e-5, groups=[[batch()]])


def labelled() -> tuple[ps.limits.SimVAE, list[list[ps.Batch]]]:
    """An objective and batches of which some items have a known component."""
    simvae = ps.limits.SimVAE(joint(ps.priors.TwoTier(DIM, 3, 0.5)))
    simvae.labelled = torch.tensor(0.5)
    known = [torch.arange(ITEMS) % (3 + i) - 1 for i in range(STEPS)]
    return simvae, [
        [batch(i)._replace(content=k.clamp(max=2))] for i, k in enumerate(known)
    ]


def test_labels_take_the_same_steps_as_a_graph(float64, traced):
    simvae, groups = labelled()
    assert_alike(simvae, groups=groups)
    assert len(traced) == 1


@pytest.mark.slow  # half a minute
def test_labels_take_the_same_steps_compiled(float64):
    simvae, groups = labelled()
    assert_alike(simvae, groups=groups)


class Indexed(nn.Module):
    """Two halves of z, taken by index: its gradient is a sum into indexed places."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 32)

    def forward(self, batch: ps.Batch) -> ps.Terms:
        z = self.net(batch.views)
        first, second = torch.triu_indices(2, 2, 1)
        product = torch.einsum("npi,npj->pij", z[:, first], z[:, second])
        return ps.Terms(penalty=-(product / len(z)).square().mean())


@pytest.mark.slow  # half a minute, and it ends the program where it fails
def test_sums_by_index_stay_within_their_memory_on_two_threads():
    threads, views = torch.get_num_threads(), torch.randn(32, 2, 6)
    torch.set_num_threads(2)
    try:
        assert_alike(Indexed(), 1e-5, groups=[[ps.Batch(views)]])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [0, 3, 64, 327, 328])
def test_a_library_without_its_end_is_removed(size, tmp_path, monkeypatch):
    """Two section headers of 64 bytes begin at byte 200."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    head = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack("<Q10xHH", 200, 64, 2)
    folder = tmp_path / "ab"
    folder.mkdir()
    for name in ("library.so", "source.cpp"):
        (folder / name).write_bytes(head.ljust(328, b".")[:size])
    remove_broken()
    assert (folder / "library.so").exists() == (size == 328)
    assert (folder / "source.cpp").exists() == (size > 0)


def test_what_an_error_names_is_removed_once(tmp_path, monkeypatch):
    """And compiled again, as long as errors name other files."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    keys = ["c" + letter * 51 for letter in "abc"]
    for key in keys:
        file = tmp_path / "xy" / f"{key}.main.cpp"
        file.parent.mkdir(exist_ok=True)
        file.write_text("half a")
    calls: list[object] = []

    def fails(*_: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            raise ImportError("no PyInit", path=f"{tmp_path}/xy/{keys[0]}.main.so")
        if len(calls) == 2:
            try:
                raise OSError(f"compiling {keys[1]}.main.cpp")
            except OSError as error:
                raise RuntimeError("no backend") from error
        raise ValueError(f"again {keys[1]}")

    monkeypatch.setattr("probssl.train.graph._inductor", fails)
    with pytest.raises(ValueError, match="again"):
        inductor(torch.fx.symbolic_trace(nn.Identity()), [torch.ones(1)])
    left = [file.name.partition(".")[0] for file in (tmp_path / "xy").iterdir()]
    assert len(calls) == 3 and left == [keys[2]]


PROGRAM = """
import logging, torch
from torch import nn
import probssl as ps
from probssl.train.compiled import CompiledStep
from torch._dynamo.utils import counters

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
    def forward(self, batch):
        return ps.Terms(alignment=-self.linear(batch.views).tanh().square().mean())

objective = Small()
step = CompiledStep(objective, torch.optim.SGD(objective.parameters(), lr=0.1))
step([ps.Batch(torch.ones(8, 2, 6))])
print(step.reason, counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow  # three processes, each of which compiles
def test_another_process_takes_the_graph_from_the_cache_and_mends_the_cache(tmp_path):
    def run() -> str:
        variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=variables, capture_output=True
        )
        return done.stdout.decode().strip()

    assert run() == "None 0"
    assert run() == "None 1"
    for i, library in enumerate(sorted(tmp_path.glob("??/*.so"))):
        with library.open("r+b") as file:
            file.truncate(i % 2 * 4_000)  # which would end the process if loaded
    assert run() == "None 1"


def test_state_dropout_noise_and_random_scales_are_compiled_with_the_rest(float64):
    assert_alike(Everything())


@pytest.mark.parametrize("options", [{}, {"clip": 0.1}], ids=["free", "clipped"])
def test_accumulated_batches_count_as_one(options, float64, traced):
    batches = [batch(i) for i in range(4)]
    assert_alike(Everything(), groups=[batches[:2], batches[2:]], **options)
    assert len(traced) == 1


def test_there_is_one_graph_for_each_shape(float64, traced):
    groups = [[batch(i, items)] for i, items in enumerate((8, 6, 8, 6, 5))]
    found = assert_alike(OBJECTIVES["SimVAE"](), groups=groups)
    assert len(found.graphs) == len(traced) == 3


def test_a_schedule_moves_a_graph_and_needs_no_other(float64, traced):
    schedules = {"weight": ps.train.linear(1.0, 0.0), "teacher.momentum": abs}
    found = []
    for kind in (Step, CompiledStep):
        torch.manual_seed(0)
        objective = Everything()
        written = Schedules(objective, schedules, STEPS)
        found.append(outcome(step_of(kind, objective, schedules=written)))
    assert_close(*found, rtol=1e-10, atol=1e-10)
    assert len(traced) == 1


def test_an_attribute_that_changes_means_another_graph(float64, traced):
    objective = Plain(lambda self, z: z)
    step = step_of(CompiledStep, objective)
    step.optimizer.param_groups[0]["lr"] = 0.0
    first = step([batch()])
    objective.factor = 2.0
    step.refresh()
    second = step([batch()])
    objective.linear.bias.requires_grad_(False)
    step.refresh()
    step([batch()])
    assert_close(second.alignment, 2 * first.alignment)
    assert len(traced) == 3 and objective.linear.bias.grad is None


@dataclass(slots=True)
class Slots:
    scale: float = 1.0


class Ramp:
    """A schedule, as an object that is called."""

    scale = 1.0

    def __init__(self) -> None:
        self.scale = 1.0

    def __call__(self) -> float:
        return self.scale


CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a configuration": (SimpleNamespace(scale=1.0), lambda x: setattr(x, "scale", 2.0)),
    "slots": (Slots(), lambda x: setattr(x, "scale", 2.0)),
    "a schedule": (Ramp(), lambda x: setattr(x, "scale", 2.0)),
    "a nested dictionary": (
        {"a": {"b": {"c": {"d": {"e": {"scale": 1.0}}}}}},
        lambda x: x["a"]["b"]["c"]["d"]["e"].update(scale=2.0),
    ),
    "a dictionary": ({"scale": 1.0}, lambda x: x.update(scale=2.0)),
    "a list": ([1.0], lambda x: x.__setitem__(0, 2.0)),
    "a tensor": (torch.tensor(1.0), lambda x: x.fill_(2.0)),
    "an array": (np.ones(()), lambda x: x.fill(2.0)),
}


def number(held: Any) -> Any:
    """The number in an attribute of any of these kinds."""
    match held:
        case SimpleNamespace() | Slots() | Ramp():
            return held.scale
        case {"a": _}:
            return held["a"]["b"]["c"]["d"]["e"]["scale"]
        case dict():
            return held["scale"]
        case list():
            return held[0]
        case np.ndarray():
            return float(held)
    return held


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_within_an_attribute_means_another_graph(kind, float64, traced):
    held, change = CHANGES[kind]
    objective = Plain(lambda self, z: z * number(self.held))
    objective.held = deepcopy(held)
    step = step_of(CompiledStep, objective)
    step.optimizer.param_groups[0]["lr"] = 0.0
    first = step([batch()])
    change(objective.held)
    step.refresh()
    assert_close(step([batch()]).alignment, 4 * first.alignment)
    assert step.reason is None and len(traced) == 2


WEIGHT, SETTINGS = [1.0], ModuleType("settings")
SETTINGS.scale = 1.0


class Scaled:
    """An object whose method is passed as a function."""

    common = 1.0

    def __init__(self) -> None:
        self.scale = 1.0

    def times(self, z: Tensor) -> Tensor:
        return z * self.scale

    def common_times(self, z: Tensor) -> Tensor:
        return z * self.common

    @staticmethod
    def shared_times(z: Tensor) -> Tensor:
        return z * WEIGHT[0]


def weighted(z: Tensor, scale: list[float] = WEIGHT, *, by: Any = None) -> Tensor:
    return z * (scale if by is None else by)[0]


def closure(weight: list[float]) -> Callable[[Tensor], Tensor]:
    return lambda z: z * weight[0]


def wrapped(weight: list[float]) -> Callable[[Tensor], Tensor]:
    inner = closure(weight)
    return lambda z: [inner(x) for x in [z]][0]


def recursive(weight: list[float]) -> Callable[..., Tensor]:
    def times(z: Tensor, again: bool = True) -> Tensor:
        return times(z, False) if again else z * weight[0]

    return times


def by_a_network(weight: list[float]) -> Callable[[Tensor], Tensor]:
    """A function of a network that the objective does not know."""
    net = nn.Linear(DIM, DIM, bias=False)
    net.weight = nn.Parameter(torch.eye(DIM), requires_grad=False)

    def write(index: int, value: float) -> None:
        net.weight.copy_(torch.eye(DIM) * value)

    weight.append(write)
    return net.forward


def with_default(weight: list[float]) -> Callable[[Tensor], Tensor]:
    return lambda z, w=weight: z * w[0]


def keyword_only(weight: list[float]) -> Callable[[Tensor], Tensor]:
    return lambda z, *, w=weight: z * w[0]


def class_that_reads(weight: list[float]) -> Callable[[Tensor], Tensor]:
    class Net(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z * weight[0]

    return Net()


HELD = Scaled()
FUNCTIONS: dict[str, tuple[Any, Callable[[list], Any]]] = {
    "a closure": (closure, lambda w: w.__setitem__(0, 2.0)),
    "a closure of a closure": (wrapped, lambda w: w.__setitem__(0, 2.0)),
    "a function of itself": (recursive, lambda w: w.__setitem__(0, 2.0)),
    "a default": (with_default, lambda w: w.__setitem__(0, 2.0)),
    "a named default": (keyword_only, lambda w: w.__setitem__(0, 2.0)),
    "the class of a network": (class_that_reads, lambda w: w.__setitem__(0, 2.0)),
    "a network": (by_a_network, lambda w: w[1](0, 2.0)),
    "an object's method": (lambda w: HELD.times, lambda w: vars(HELD).update(scale=2)),
    "a partial function": (
        lambda w: partial(lambda a, z: z * w[0], None),
        lambda w: w.__setitem__(0, 2.0),
    ),
    "an attribute of a class": (
        lambda w: Scaled().common_times,
        lambda w: setattr(Scaled, "common", 2.0),
    ),
    "a static method": (
        lambda w: Scaled.shared_times,
        lambda w: WEIGHT.__setitem__(0, 2.0),
    ),
    "a global name": (
        lambda w: lambda z: weighted(z, by=WEIGHT),
        lambda w: WEIGHT.__setitem__(0, 2.0),
    ),
    "a module": (
        lambda w: lambda z: z * SETTINGS.scale,
        lambda w: setattr(SETTINGS, "scale", 2.0),
    ),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_changes_within_a_function_means_another_graph(
    kind, float64, traced, monkeypatch
):
    monkeypatch.setitem(globals(), "WEIGHT", [1.0])
    monkeypatch.setattr(HELD, "scale", 1.0)
    monkeypatch.setattr(Scaled, "common", 1.0)
    monkeypatch.setattr(SETTINGS, "scale", 1.0)
    make, change = FUNCTIONS[kind]
    weight: list[Any] = [1.0]
    objective = Plain(lambda self, z: self.function(z))
    objective.function = make(weight)
    step = step_of(CompiledStep, objective)
    step.optimizer.param_groups[0]["lr"] = 0.0
    first = step([batch()])
    step.refresh()
    step([batch()])
    assert len(traced) == 1
    change(weight)
    step.refresh()
    assert_close(step([batch()]).alignment, 4 * first.alignment)
    assert step.reason is None and len(traced) == 2


def test_attributes_that_views_change_are_found_at_the_end_of_an_epoch(
    float64, traced, caplog
):
    objective = Plain(lambda self, z: z)

    def views(x: Tensor) -> Tensor:
        objective.factor += 0.1
        return x.unsqueeze(1)

    x = torch.rand(4 * ITEMS, EVENT)
    ps.fit(objective, x, views=views, epochs=1, batch_size=ITEMS, compile=True)
    assert "changed between the steps of an epoch" in caplog.text


def test_gradients_have_memory_of_their_own(float64, traced):
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.ones(3, 2)) for _ in range(2))
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, batch: ps.Batch) -> ps.Terms:
            return ps.Terms(alignment=(self.a + self.b.T.contiguous().T).sum())

    assert_alike(Sum(), clip=0.5)
    objective = Sum()
    step_of(CompiledStep, objective).gradient(batch())
    assert objective.a.grad.data_ptr() != objective.b.grad.data_ptr()
    assert objective.a.grad.stride() == objective.a.stride()
    assert objective.unused.grad is None


def counted(self: Plain, z: Tensor) -> Tensor:
    self.factor += 0.1
    return z


def many(self: Plain, z: Tensor) -> Tensor:
    for _ in range(1500):
        z = z + 0.001
    return z


def centred(self: Plain, z: Tensor) -> Tensor:
    """With a mean of its own, written as most people would."""
    self.mean = (0.9 * self.mean + 0.1 * z.mean(0)).detach()
    return z - self.mean


def dropped(self: Plain, z: Tensor) -> Tensor:
    return z if np.random.random() < 0.999 else 0 * z


def drawn(self: Plain, z: Tensor) -> Tensor:
    return z * (1 + 1e-5 * self.generator.random())


def logged(self: Plain, z: Tensor) -> Tensor:
    return z


def helped(self: Plain, z: Tensor) -> Tensor:
    return self.helpers[0](z) if self.helpers else z


REASONS = {
    "has a generator": (drawn, "plain attributes"),
    "has hooks": (logged, "has hooks"),
    "hides a network": (helped, "helpers.0 (Linear) is not"),
    "assigns a buffer": (centred, "buffer mean"),
    "rarely drops a layer": (dropped, "of Python or NumPy"),
    "takes minutes": (many, "operations, which would take minutes"),
    "synchronises": (lambda self, z: z if z.sum() > 0 else -z, ".item()"),
    "counts": (counted, "plain attributes"),
    "draws outside torch": (lambda self, z: z * random.random(), "of Python or"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_cannot_be_compiled_runs_eagerly_after_one_warning(
    case, float64, traced, caplog
):
    act, reason = REASONS[case]
    steps, found = [], []
    for kind in (Step, CompiledStep):
        random.seed(0)
        torch.manual_seed(0)
        steps.append(step_of(kind, Plain(act)))
        with caplog.at_level(logging.WARNING):
            found.append(outcome(steps[-1])[1])
    if case != "draws outside torch":  # tracing draws as well
        assert_close(*found)
    assert reason in steps[1].reason
    assert caplog.text.count("is not compiled") == 1


HOOKS = {
    "forward": lambda net: net.register_forward_hook(lambda m, i, out: 2 * out),
    "before": lambda net: net.register_forward_pre_hook(lambda m, i: 2 * i[0]),
    "backward": lambda net: net.register_full_backward_hook(
        lambda m, grad, out: tuple(None if g is None else 2 * g for g in grad)
    ),
    "before backward": lambda net: net.register_full_backward_pre_hook(
        lambda m, grad: tuple(2 * g for g in grad)
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_that_comes_later_ends_the_compiled_steps(kind, float64, traced):
    """As a callback may add one after an epoch: it acts from the next step on."""
    found = []
    for step_kind in (Step, CompiledStep):
        torch.manual_seed(0)
        objective = OBJECTIVES["VICReg"]()
        step = step_of(step_kind, objective)
        outcome(step)
        HOOKS[kind](objective.encoder.head)
        step.refresh()
        found.append(outcome(step)[1])
    assert_close(*found)
    assert len(traced) == 1 and "has hooks" in step.reason


def test_with_too_many_shapes_it_runs_eagerly(float64, traced, monkeypatch):
    monkeypatch.setattr(compiled, "MAX_GRAPHS", 3)
    step = step_of(CompiledStep, OBJECTIVES["VICReg"]())
    groups = [[batch(0, items)] for items in range(2, compiled.MAX_GRAPHS + 4)]
    assert len(outcome(step, groups)[0]) == len(groups)
    assert "one shape" in step.reason


def test_errors_of_an_objective_are_those_of_an_eager_step():
    class Wrong(nn.Linear):
        def forward(self, batch: ps.Batch) -> Tensor:
            return super().forward(batch.stacked)

    with pytest.raises(TypeError, match="return Terms"):
        step_of(CompiledStep, Wrong(EVENT, 1))([batch()])


def test_the_length_of_a_run_decides():
    assert worth_compiling("auto", compiled.COMPILED_STEPS)
    assert not worth_compiling("auto", compiled.COMPILED_STEPS - 1)
    assert not worth_compiling("auto", None)
    assert worth_compiling(True, 1) and not worth_compiling(None, 10**6)
    assert worth_compiling("auto", 1, before=True)
    assert not worth_compiling(False, 1, before=True)


def test_a_fit_says_that_it_compiles_and_ends_where_an_eager_one_does(
    float64, traced, capsys
):
    ends = []
    for choice in (None, True):
        torch.manual_seed(0)
        objective = OBJECTIVES["SimVAE"]()
        x = batch(items=4 * ITEMS).clean
        options = {"epochs": 2, "batch_size": ITEMS, "compile": choice}
        ps.fit(objective, x, views=noisy, **options)
        ends.append(objective.state_dict())
    assert_close(*ends, rtol=1e-10, atol=1e-10)
    assert len(traced) == 1
    assert "compiling" in capsys.readouterr().err


def test_an_optimiser_that_cannot_be_recorded_is_named():
    parameters = [nn.Parameter(torch.ones(2))]
    assert "SGD cannot be captured" in _obstacle(torch.optim.SGD(parameters, lr=0.1))
    assert _obstacle(torch.optim.AdamW(parameters, lr=0.1)) is None


def test_a_scheduler_that_cycles_the_momentum_is_in_no_record():
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.1)
    lr = torch.optim.lr_scheduler
    for cycle in (True, False):
        options = {"total_steps": 9, "cycle_momentum": cycle}
        one = lr.OneCycleLR(optimizer, 0.1, **options)
        both = lr.SequentialLR(optimizer, [lr.ConstantLR(optimizer), one], [3])
        for scheduler in (one, both):
            found = _obstacle(optimizer, scheduler)
            assert ("cycle_momentum=False" in str(found)) is cycle
    assert _obstacle(optimizer, lr.StepLR(optimizer, 3)) is None


class Shrinking(torch.optim.lr_scheduler.StepLR):
    """A schedule of one's own that writes another setting from a step on."""

    start = 0

    def step(self, *arguments: Any) -> None:
        super().step(*arguments)
        if self.last_epoch > self.start:
            self.optimizer.param_groups[0]["weight_decay"] = 0.1 * self.last_epoch


@pytest.mark.parametrize("start", [0, compiled.STEPS_BEFORE_RECORD + 2])
def test_settings_that_a_scheduler_moves_end_the_records(
    start, traced, without_device, caplog
):
    step = step_of(RecordedStep, OBJECTIVES["SimVAE"]())
    step.scheduler = Shrinking(step.optimizer, 100)
    step.scheduler.start = start
    for i in range(compiled.STEPS_BEFORE_RECORD + 4):
        step([batch(i)])
    assert bool(step.records) is (start > 0)
    step.finish()
    assert step.broken and not step.records
    assert caplog.text.count("change from step to step") == 1


def test_the_oldest_record_goes_where_there_are_many(
    traced, without_device, monkeypatch
):
    monkeypatch.setattr(compiled, "MAX_GRAPHS", 2)
    step, kept = step_of(RecordedStep, OBJECTIVES["SimVAE"]()), []
    for decay in (0.1, 0.2, 0.3):
        step.optimizer.param_groups[0]["weight_decay"] = decay
        step.refresh()
        for i in range(compiled.STEPS_BEFORE_RECORD + 1):
            step([batch(i)])
        kept.append(next(reversed(step.records)))
    assert list(step.records) == kept[1:]


def test_what_a_record_would_freeze_lies_in_tensors_that_a_scheduler_follows():
    parameters = [nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    parameters[0].grad = torch.ones(2)
    optimizer.step()
    make_capturable(optimizer, torch.device("cpu"))
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["capturable"] = False  # which asks for a GPU
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert_close(rate, torch.tensor(0.05))
    assert_close(optimizer.state[parameters[0]]["step"], torch.tensor(2.0))


@pytest.fixture
def without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and contexts do nothing, a CUDA graph has no operations."""
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())


class Drawing:
    """A view sampler that draws or counts on the host."""

    def __init__(self, kind: str) -> None:
        self.kind, self.calls = kind, 0
        self.numpy, self.torch = np.random.default_rng(0), torch.Generator()

    def __call__(self, x: ps.Batch) -> ps.Batch:
        match self.kind:
            case "Python":
                random.random()
            case "NumPy":
                np.random.rand()
            case "a generator of NumPy":
                self.numpy.normal()
            case "a generator of torch":
                torch.rand((), generator=self.torch)
            case "a count":
                self.calls += 1
        return x


HOST = ("Python", "NumPy", "a generator of NumPy", "a generator of torch", "a count")


@pytest.mark.parametrize("kind", HOST)
def test_views_that_draw_on_the_host_are_in_no_record(
    kind, traced, without_device, caplog
):
    views = Drawing(kind)
    options = {"views": views, "make": views}
    step = step_of(RecordedStep, OBJECTIVES["SimVAE"](), **options)
    for i in range(compiled.STEPS_BEFORE_RECORD + 3):
        step([batch(i)])
    assert not step.records and "draw random numbers on the host" in caplog.text


def test_the_generator_of_the_host_is_watched_beside_a_device():
    for device, watched in (("cpu", False), ("cuda", True)):
        before = compiled._on_the_host(None, torch.device(device))
        torch.rand(())
        after = compiled._on_the_host(None, torch.device(device))
        assert (before != after) is watched


def test_a_record_depends_on_the_numbers_of_the_views(traced, without_device):
    views = Drawing("nothing")
    step = step_of(RecordedStep, OBJECTIVES["SimVAE"](), views=views)
    for calls in (0, 1):
        views.calls = calls
        step.refresh()
        for i in range(compiled.STEPS_BEFORE_RECORD + 1):
            step([batch(i)])
        assert len(step.records) == calls + 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_is_recorded_after_its_warm_up_or_stays_compiled(
    fails, traced, without_device, monkeypatch, caplog
):
    def record(*_: Any, **__: Any) -> AbstractContextManager[None]:
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", record)
    step = step_of(RecordedStep, OBJECTIVES["SimVAE"]())
    terms = [step([batch(i)]) for i in range(compiled.STEPS_BEFORE_RECORD + 3)]
    assert all(isinstance(each, ps.Terms) for each in terms)
    assert len(step.records) == (0 if fails else 1) and step.items == ITEMS
    assert caplog.text.count("no CUDA graph is recorded: operation not") == fails
    graphs = [record.graph.replay.call_count for record in step.records.values()]
    assert graphs == ([] if fails else [3])
    step.optimizer.param_groups[0]["momentum"] = 0.5  # which a record would freeze
    step.refresh()
    step([batch()])
    assert len(step.records) == len(graphs) and len(step.warmed) == (1 if fails else 2)


# All of them take half a minute; these have what a trace could lose.
QUICK = ("SimVAE", "SimCLR")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=() if k in QUICK else slow) for k in OBJECTIVES]
)
def test_networks_in_bfloat16_are_compiled_as_they_are_run(name, traced):
    precision = Precision(torch.bfloat16)
    assert_alike(OBJECTIVES[name](), 1e-5, groups=[[batch()]], precision=precision)


def test_views_may_lie_in_memory_as_they_like(float64, traced):
    views = batch().views.mT.contiguous().mT
    assert not views.is_contiguous()
    groups = [[batch()], [batch()._replace(views=views)]]
    assert_alike(OBJECTIVES["SimVAE"](), groups=groups)
    assert len(traced) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", OBJECTIVES)
def test_replayed_steps_are_the_eager_ones(name):
    found = []
    for fast in (False, True):
        torch.manual_seed(0)
        objective = OBJECTIVES[name]().cuda().train()
        parameters = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        step = (compiled_step if fast else Step)(objective, optimizer, clip=5.0)
        loads = [tree_map_only(Tensor, Tensor.cuda, batch(i)) for i in range(8)]
        torch.manual_seed(1)
        found.append([float(sum(step([load]))) for load in loads])
    assert_close(*found, rtol=1e-4, atol=1e-4)
