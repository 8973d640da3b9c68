"""Settings of any kind are compared by content, and the same content never differs."""

import array
import collections
import datetime
import decimal
import fractions
import functools
import json
import operator
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.interpolate import CubicSpline
from torch import nn

import probssl as ps
from probssl._compared import differences, look, uncompared
from probssl.bounds import local_log_prob


class Slot:
    """An object of one's own, with a cache that is no setting."""

    def __init__(self, a: Any) -> None:
        self.a, self._cache = a, {}

    def used(self, x: Any) -> Any:
        self._cache[x] = x
        return self.a * x


class Steps(collections.deque):
    """A list of one's own that a library's class holds."""


class Network(nn.Module):
    """An encoder with a setting."""

    def __init__(self, setting: Any = None) -> None:
        super().__init__()
        self.net, self.setting = nn.Linear(3, 2), setting


def times(k: float) -> Callable:
    return lambda x: k * x


def local(k: float) -> Callable:
    class Local:
        scale = k

    return lambda x: Local.scale * x


def itself(k: float) -> list:
    found: list = [k]
    found.append(found)
    return found


def turned(k: float) -> Slot:
    """An object with a function that closes over it."""
    slot = Slot(k)
    slot.a = lambda x: slot.a, k
    return slot


def masked(k: int) -> np.ndarray:
    return np.ma.masked_array([1, 2], mask=[k == 1, k == 2])


affine = dist.transforms.AffineTransform
KINDS: dict[str, Callable[[int], Any]] = {
    "slice": lambda k: slice(0, k),
    "slices": lambda k: (Ellipsis, [slice(0, k)]),
    "series": lambda k: pd.Series([k]),
    "frame": lambda k: pd.DataFrame({"a": [k], "b": ["c"]}),
    "index": lambda k: pd.Index([k]),
    "deque": lambda k: collections.deque([k]),
    "own deque": lambda k: Steps([k]),
    "spline": lambda k: CubicSpline([0, 1, 2], [0, k, 2]),
    "transform": lambda k: affine(0.0, float(k)),
    "transforms": lambda k: [torch.distributions.ComposeTransform([affine(0.0, k)])],
    "sparse": lambda k: (torch.eye(3) * k).to_sparse(),
    "sparse tensors": lambda k: collections.deque([(torch.eye(2) * k).to_sparse()]),
    "numbers": lambda k: array.array("d", [k]),
    "bytes": lambda k: bytearray([k]),
    "fraction": lambda k: fractions.Fraction(k, 3),
    "decimal": lambda k: {"a": decimal.Decimal(k)},
    "keys": lambda k: {fractions.Fraction(k, 3): 1},
    "date": lambda k: datetime.date(2000, 1, k),
    "numpy's date": lambda k: np.datetime64(f"2000-01-0{k}"),
    "path": lambda k: pathlib.PurePosixPath(str(k)),
    "pattern": lambda k: re.compile(str(k)),
    "constraint": lambda k: dist.constraints.interval(0, k),
    "polynomial": lambda k: np.polynomial.Polynomial([k]),
    "poly1d": lambda k: np.poly1d([1, k]),
    "vectorised": lambda k: np.vectorize(times(k)),
    "objects": lambda k: np.array([k, None], dtype=object),
    "masked": masked,
    "getter": lambda k: operator.itemgetter(k),
    "cached": lambda k: functools.lru_cache(times(k)),
    "functions": lambda k: [times(1), {"a": times(k)}],
    "deque of functions": lambda k: collections.deque([times(k)]),
    "deque of objects": lambda k: collections.deque([Slot(k)]),
    "object": lambda k: Slot(collections.deque([k])),
    "local class": local,
    "itself": itself,
    "object with itself": turned,
    "tensors": lambda k: collections.deque([torch.full((3,), k), torch.ones(2)[:k]]),
    "names": lambda k: collections.deque([{f"a{i}" for i in range(9 * k)}]),
    "frozen": lambda k: collections.deque([frozenset([None, "b", (k, "a")])]),
    "mixed keys": lambda k: collections.deque([{None: 1, "a": k, 2: 3, ("b",): 4}]),
    "class": lambda k: collections.deque([[Slot, Network, Steps][k]]),
    "bound": lambda k: pd.Series([k]).mul,
}


def looks(k: int) -> dict[str, dict[str, str]]:
    """The look of each kind with a setting of this number."""
    return {name: look(Network(make(k))) for name, make in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_of_any_kind_is_compared(kind):
    one, again, other = (look(Network(KINDS[kind](k))) for k in (1, 1, 2))
    assert not differences(again, one) and not uncompared(one)
    assert any(line.startswith("setting") for line in differences(other, one))


UNIT = 1.0


def nested(x: Any) -> Any:
    return [UNIT * part for part in x], list(map(lambda part: part + UNIT, x))


def test_a_global_of_a_comprehension_is_compared(monkeypatch):
    first = look(Network(nested))
    monkeypatch.setitem(globals(), "UNIT", 2.0)
    assert any(
        "UNIT 2.0 instead of 1.0" in x
        for x in differences(look(Network(nested)), first)
    )


def test_a_private_buffer_that_no_state_dict_has_is_compared():
    def network(k: float) -> nn.Module:
        found = Network()
        found.register_buffer("_mask", torch.full((3,), k), persistent=False)
        return found

    assert differences(look(network(1.0)), look(network(2.0)))
    assert not differences(look(network(1.0)), look(network(1.0)))


@pytest.mark.parametrize("form", ["logits", "probs"])
@pytest.mark.parametrize("family", [dist.Categorical, dist.Bernoulli])
def test_a_distribution_that_was_drawn_from_is_no_other(family, form):
    numbers = torch.tensor([0.2, 0.3, 0.5])
    one, other = (family(**{form: numbers}) for _ in range(2))
    one.sample(), one.entropy(), one.log_prob(one.sample())
    assert not differences(look(Network(one)), look(Network(other)))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_distributions_that_differ_little_differ(kind):
    def network(place: float) -> nn.Module:
        return Network(dist.Normal(torch.tensor(place, dtype=kind), 0.1))

    assert differences(look(network(1000.0)), look(network(1001.0)))
    assert not differences(look(network(0.3)), look(network(0.3)))


def test_checksums_are_those_of_every_other_process():
    code = "import json, test_compared as t; print(json.dumps(t.looks(1)))"
    folder = str(Path(__file__).parent)
    paths = os.pathsep.join([folder, str(Path(folder).parent)])
    known = looks(1)
    run = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": paths}
    found = json.loads(subprocess.check_output(run, env=env, text=True))
    assert found == known


CHANGING = {
    "generator": (lambda: np.random.default_rng(0), lambda g: g.random()),
    "torch's generator": (torch.Generator, lambda g: torch.rand(1, generator=g)),
    "Python's generator": (lambda: random.Random(0), lambda g: g.random()),
    "cache": (lambda: collections.deque([Slot(1)]), lambda d: d[0].used(3)),
    "remembered calls": (lambda: functools.lru_cache(times(2)), lambda f: f(3)),
    "transform": (lambda: affine(0.0, 2.0, cache_size=1), lambda t: t(torch.ones(2))),
}


@pytest.mark.parametrize("kind", CHANGING)
def test_what_use_changes_is_no_difference(kind):
    make, use = CHANGING[kind]
    used = make()
    use(used)
    assert not differences(look(Network(used)), look(Network(make())))


def test_a_handle_of_a_hook_is_no_difference():
    found = []
    for _ in range(2):
        network = Network()
        network.setting = network.net.register_forward_hook(lambda *_: None)
        found.append(look(network))
    assert not differences(*found)


def simclr(setting: Any) -> nn.Module:
    return ps.limits.SimCLR(Network(setting))


def test_load_names_a_setting_with_another_content(tmp_path):
    ps.save(simclr(slice(0, 2)), tmp_path)
    ps.load(tmp_path, into=simclr(slice(0, 2)))  # no warning
    with pytest.warns(UserWarning, match=r"encoder\.setting with value .* slice with"):
        ps.load(tmp_path, into=simclr(slice(2, 4)))
    path = tmp_path / "probssl.json"  # as it was before checksums
    description = json.loads(path.read_text())
    built = description["built"].items()
    description["built"] = {k: v for k, v in built if " with value" not in k}
    del description["digest"]
    path.write_text(json.dumps(description))
    ps.load(tmp_path, into=simclr(slice(2, 4)))


def test_a_changed_setting_with_another_content_is_named(tmp_path):
    def build(k: int) -> nn.Module:
        objective = ps.limits.SimCLR(ps.nn.MLPEncoder((3,), 2))
        objective.encoder.setting = slice(0, k)
        return objective

    with pytest.warns(UserWarning, match="setting slice instead of nothing"):
        ps.save(build(1), tmp_path)
    ps.load(tmp_path, into=build(1))  # no warning
    with pytest.warns(UserWarning, match=r"encoder\.setting with value"):
        ps.load(tmp_path, into=build(2))


@pytest.mark.parametrize("make", [threading.Lock, lambda: (k for k in "ab")])
def test_what_cannot_be_compared_is_named(make, tmp_path):
    words = r"can compare, got encoder\.setting \((lock|generator)\)"
    with pytest.warns(UserWarning, match=words):
        ps.save(simclr(make()), tmp_path)
    with pytest.warns(UserWarning, match=words):
        ps.load(tmp_path, into=simclr(make()))


HIDDEN: dict[str, Callable[[nn.Module], Any]] = {
    "list": lambda net: [net],
    "dictionary": lambda net: {"a": ([nn.Tanh()], [net])},
    "object": lambda net: types.SimpleNamespace(net=net),
    "own object": lambda net: Slot([net]),
    "deque": lambda net: collections.deque([net]),
    "function": lambda net: lambda x: net(x),
    "partial": lambda net: functools.partial(nn.functional.linear, weight=net.weight),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_networks_that_are_not_registered_are_named(kind, tmp_path):
    def build(frozen: bool) -> nn.Module:
        torch.manual_seed(0)
        return simclr(HIDDEN[kind](nn.Linear(3, 3).requires_grad_(not frozen)))

    words = r"registered, got encoder\.setting\..* \((Linear|Parameter)\)"
    with pytest.warns(UserWarning, match=words):
        ps.save(build(False), tmp_path)
    with pytest.warns(UserWarning, match=words):
        ps.load(tmp_path, into=build(False))
    if kind != "partial":  # a tensor without gradient is compared by its numbers
        with pytest.warns(UserWarning, match="which no file holds"):
            ps.save(build(True), tmp_path)


def test_a_network_in_the_body_of_a_class_is_named(tmp_path):
    class Shared(Network):
        first, others = nn.Linear(3, 3), {"last": nn.Linear(2, 2)}

    objective = ps.limits.SimCLR(Shared())
    with pytest.warns(UserWarning, match=r"got encoder\.first \(Linear\) and 1 more"):
        ps.save(objective, tmp_path)


class Listed(Network):
    """An encoder whose first layer is in a list."""

    dim = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.setting[0](x))


@pytest.mark.parametrize("frozen", [False, True])
def test_fit_names_networks_that_it_does_not_train(frozen, recwarn):
    layer = nn.Linear(3, 3).requires_grad_(not frozen)
    objective = ps.limits.SimCLR(Listed([layer]))
    options = {"epochs": 1, "progress": False, "compile": False}
    views = ps.views.Augment(ps.views.Noise(0.3), views=2, clamp=False)
    ps.fit(objective, torch.randn(8, 3), views=views, **options)
    said = [str(w.message) for w in recwarn if "fit does not train" in str(w.message)]
    assert len(said) == (not frozen)
    assert frozen or "encoder.setting.0 (Linear)" in said[0]


def test_networks_that_are_registered_elsewhere_are_not_named(tmp_path):
    objective = simclr(None)
    encoder = objective.encoder
    encoder.setting = [encoder.net, nn.ReLU(), encoder.net.weight, objective]
    ps.save(objective, tmp_path)  # no warning


def test_data_off_a_support_that_moves_with_z_are_refused_in_words():
    def model() -> None:
        with pyro.plate("batch", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(False))
            support = dist.Uniform(z, z + 0.1, validate_args=checked)
            pyro.sample("x", support, obs=torch.full((2,), 100.0))

    checked = True
    with pytest.raises(ValueError, match="'x' on the support of its Uniform .*-inf"):
        local_log_prob(poutine.trace(model).get_trace())
    checked = False
    assert local_log_prob(poutine.trace(model).get_trace()).isneginf().all()
