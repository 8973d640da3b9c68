"""Every benchmark runs in a short form; its timings are not tested."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as distributed

import probssl as ps

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def ink(items: int, shape: tuple[int, ...] = (1, 28, 28)) -> torch.Tensor:
    return 255 * torch.randint(2, (items, *shape), dtype=torch.uint8)


def priors(module: ModuleType, results: Path) -> None:
    figures = module.main(blocks=1, steps=1, results=results)
    assert figures["Gaussian"]["ratio"] == 1
    assert all(figure["ms"] > 0 for figure in figures.values())


def multimodal(module: ModuleType, results: Path) -> None:
    pytest.importorskip("multivae", reason="MultiVae is no dependency")
    short = module.experiment
    short.HIDDEN, short.BATCH, short.JUDGE_EPOCHS = (8,), 20, 1
    short.SCORED, short.PARTICLES = 10, 10
    grey = torch.randint(256, (240, 1, 28, 28), dtype=torch.uint8)
    split = ps.data.Split(grey, torch.arange(240) % 10)
    data = ps.data.Dataset(split, split, 255, "noise")
    rows = module.main(1, 1, 60, data, results)
    assert [row["method"] for row in rows] == list(module.MODELS)
    assert all(0 <= row["given 4"] <= 1 and row["log p"] < 0 for row in rows)


def normaliser(module: ModuleType, results: Path) -> None:
    figures = module.main(items=(16,), many=(64,), repeats=1, results=results)
    assert set(figures["seconds"]["16"]) == set(module.PRIORS)
    assert all(size >= 0 for size in figures["megabytes"].values())


def commits(module: ModuleType, results: Path) -> None:
    root = BENCHMARKS.parent
    figures = module.main(root, ("SimCLR",), pairs=2, results=results)
    assert figures["SimCLR"]["here, ms"] > 0
    assert all(module.objective(name) for name in module.NAMES)


def compiling(module: ModuleType, results: Path) -> None:
    def first(name: str, cache: str) -> tuple[float, str]:
        return 2.0, "it draws outside torch" if name == "SimCLR" else ""

    figures = module.main(first=first, results=results)
    assert figures["SimCLR"] == {
        "empty cache, s": 2.0,
        "eager, because": "it draws outside torch",
    }
    assert figures["SimVAE, Gaussian"]["filled cache, s"] == 2.0
    module.ITEMS, module.HIDDEN = 1_000, (8,)  # one step, not long enough to compile
    seconds, reason = module.first_step("SimVAE, Custom, importance sampling")
    assert seconds > 0 and "would take minutes" in reason


def denormals(module: ModuleType, results: Path) -> None:
    figures = module.main(ink(64), steps=10, hidden=(8,), results=results)
    assert set(figures) == {"flushed to zero", "kept"}
    assert all(ms > 0 for parts in figures.values() for ms in parts.values())


def epochs(module: ModuleType, results: Path) -> None:
    few = {"epochs": 1, "trial": 64, "hidden": (16,), "workers": (0,)}
    figures = module.main(ink(128), compiled=None, results=results, **few)
    assert figures["hand-written, default Adam"]["ratio"] == 1
    assert figures["probssl, compiled"]["images/s"] > 0


def faults(module: ModuleType, results: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("faults are injected into forked processes")
    counts = module.main(results, stride=9)["all"]
    assert counts.pop("injected") > 2 * len(module.WRITERS)
    assert not any(counts.values()), counts


def gpu(module: ModuleType, results: Path) -> None:
    shape, split = (3, 32, 32), ps.data.Split
    # ResNet-18 alone would take seconds to build.
    module.simclr_resnet = lambda: ps.limits.SimCLR(ps.nn.ConvEncoder(shape, 8))
    mnist = ps.data.Dataset(split(ink(128)), split(ink(8)), 1, "noise")
    cifar = mnist._replace(train=split(ink(8, shape)), levels=255)
    sizes = module.Sizes(1, 128, 4, 2, 16, steps=2, hidden=(16,))
    figures = module.main(sizes, mnist, cifar, results=results)
    # No number is read back, so that the host never synchronises with a GPU.
    assert figures["waits in 2 steps"] == {"SimVAE": 0, "SimCLR": 0}


def hostile_files(module: ModuleType, results: Path) -> None:
    """`test_reading.py` tries some of the files."""
    several = len(module.KINDS) * [module.Found("refused", "", 0.0)]
    figures = module.main(len(several), results, lambda count: iter(several[:count]))
    assert figures["all"]["files"] == figures["all"]["refused"] == len(several)


def imports(module: ModuleType, results: Path) -> None:
    def first(name: str) -> float:
        return module.STEPS[name]()

    figures = module.main({"json": "import json"}, first, blocks=1, results=results)
    assert figures["first step, by hand"]["ratio"] == 1


def linear(module: ModuleType, results: Path) -> None:
    module.COMPONENTS, module.matrix_ceiling = 2, lambda dtype: 1.0
    figures = module.main(ink(60, (1, 8, 8)), (50, 1, 9), results=results)
    assert all(figure > 0 for figure in figures["seconds"].values())
    assert figures["parts against memory"] < 1e-10


def processes(module: ModuleType, results: Path) -> None:
    def run(world: int, hidden: tuple, steps: int, blocks: int, device: str) -> dict:
        store = distributed.HashStore()
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            return module.measured(hidden, steps, blocks, torch.device(device))
        finally:
            distributed.destroy_process_group()

    few = {"hidden": (16,), "steps": 2, "blocks": 1}
    figures = module.main(2, run=run, results=results, **few)
    assert all(figure["efficiency"] > 0 for figure in figures.values())


def scaling(module: ModuleType, results: Path) -> None:
    axes, few = {"items": (4, 8), "data": (32,)}, {"blocks": 1, "repeats": 1}
    figures = module.main(axes, {"eager": False}, (16,), results=results, **few)
    assert len(figures) == 3
    assert all(figure["ms per step"] > 0 for figure in figures.values())


def steps(module: ModuleType, results: Path) -> None:
    few = {"items": 4, "blocks": 1, "side": 16}
    cases = {
        "SimVAE": module.Case((1, 4, 4), (8,), **few),
        "SimCLR": module.Case((3, 8, 8), ps.nn.ConvEncoder, **few),
    }
    figures = module.main(cases, compiled=False, results=results)
    assert figures["SimVAE"]["steps"]["Pyro"]["to Pyro"] == 1
    for case in figures.values():
        assert all(row["of ceiling"] > 0 for row in case["steps"].values())


FORMS = (
    commits,
    compiling,
    denormals,
    epochs,
    faults,
    gpu,
    hostile_files,
    imports,
    linear,
    multimodal,
    normaliser,
    priors,
    processes,
)
SHORT = {form.__name__: form for form in (*FORMS, scaling, steps)}


def test_every_benchmark_has_a_short_form():
    shared = {"handwritten", "measure", "subjects"}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - shared == set(SHORT)


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module, with the shared modules on its path."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SHORT)
def test_benchmark_runs(name, tmp_path, monkeypatch):
    SHORT[name](loaded(name, monkeypatch), tmp_path / "results.json")
    assert (tmp_path / "results.json").is_file()


@pytest.mark.slow  # every process imports everything
def test_processes_are_launched(tmp_path, monkeypatch):
    module = loaded("processes", monkeypatch)
    figures = module.main(2, (16,), 2, 1, results=tmp_path / "results.json")
    assert set(figures) == {"SimVAE, MLP", "SimCLR, MLP"}


def test_peak_memory_is_that_of_the_call(monkeypatch):
    peak = loaded("measure", monkeypatch).peak_memory
    kept = torch.ones(5_000_000)  # held before, so that it does not count
    assert peak(lambda: kept + 1) == pytest.approx(20, abs=2)
    assert peak(lambda: None) < 2
