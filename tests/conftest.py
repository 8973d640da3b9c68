"""Fixtures of all tests: seed, float64, short fits, the folder of real data."""

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import matplotlib
import pytest
import torch

import probssl as ps
from probssl.evaluation import probes
from probssl.runtime.threads import LOCK
from probssl.runtime.validation import validation_kept

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
# The longest files, which start first: at the end one worker would run alone.
LONGEST = [
    f"test_{name}.py"
    for name in (
        "models",
        "testing",
        "compare",
        "notebooks",
        "priors_custom",
        "own_parts",
        "compiled",
        "docs",
        "limits",
        "guides_coupled",
    )
]


def pytest_configure() -> None:
    """Load zuko, which switches validation off, and ArviZ, which warns once a day."""
    with warnings.catch_warnings(action="ignore"):
        importlib.import_module("arviz")
    with validation_kept(), suppress(ImportError):
        importlib.import_module("zuko")


def pytest_xdist_setupnodes() -> None:
    """Workers, and the programs that they start, share the cores."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in whose order workers take them."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True, scope="session")
def quiet() -> None:
    """Keep torch from logging every traced operation, as it does under pytest."""
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """A seed; and no test keeps other threads waiting."""
    torch.manual_seed(0)
    yield
    assert LOCK._holder is None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the same order in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def float64() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Graphs run as they are traced, without Inductor; a list of them."""
    made: list[object] = []
    compile = lambda traced, values: made.append(traced) or traced  # noqa: E731
    monkeypatch.setattr("probssl.train.graph.inductor", compile)
    return made


@pytest.fixture
def short_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit decoders of `compare` and proposals briefly, draw few labels."""
    # `probssl.compare` is the function, which hides the module of the same name.
    decoding = importlib.import_module("probssl.compare.decoding")
    monkeypatch.setattr(decoding, "STEPS", 20)
    implied = importlib.import_module("probssl.compare.implied")
    for name, value in {"PARTICLES": 20, "REFINE": 3, "ELBO_PARTICLES": 2}.items():
        monkeypatch.setattr(implied, name, value)
    few = partial(probes.few_label_probe, repeats=5)
    monkeypatch.setattr(probes, "few_label_probe", few)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit and measure on fewer than a quarter of the digits."""
    data = ps.data.digits()
    few = data._replace(train=data.train.take(300), test=data.test.take(150))
    monkeypatch.setattr(ps.data, "digits", lambda: few)


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("PROBSSL_DATA", ROOT.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set PROBSSL_DATA to their folder")
    return root
