"""Objectives survive a round trip through a folder; what is not ours is refused."""

import contextlib
import copy
import json
import os
import pickle
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import GUIDES, OBJECTIVES, PRIORS, batch, joint
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl import recipes
from probssl._arguments import build, describe


def value(objective: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([torch.as_tensor(term) for term in objective.eval()(batch(1))])


def with_guide(name: str) -> nn.Module:
    guide, prior = GUIDES[name]()
    return ps.limits.SimVAE(joint(prior, guide=guide))


MODELS = OBJECTIVES | {
    name: lambda name=name: with_guide(name) for name in GUIDES if "custom" not in name
}
MODELS |= {
    name: lambda name=name: ps.limits.SimVAE(joint(PRIORS[name]()), ps.bounds.IWAE(3))
    for name in ("narrow", "a scale for each dimension", "own scales", "random scale")
}
MODELS["no network"] = lambda: ps.limits.LogDet(nn.Identity(), scale=0.3)


@pytest.mark.parametrize("name", MODELS)
def test_objective_has_the_same_value_after_a_round_trip(name, tmp_path):
    objective = MODELS[name]()
    if "random" in name:
        objective.joint.population = torch.tensor(100.0)
    objective.train()(batch())  # moves teachers, queues and moments
    before = value(objective)
    loaded = ps.load(ps.save(objective, tmp_path / "run", data="toy"))
    assert type(loaded) is type(objective) and not loaded.training
    assert_close(value(loaded), before, rtol=0, atol=0)
    assert numbers(loaded) == numbers(objective)


@pytest.mark.parametrize("name", recipes.METHODS)
def test_every_recipe_loads_without_a_foreign_part(name, tmp_path):
    ps.load(ps.save(recipes.objective(name, ps.data.digits()), tmp_path))


ENCODER, DECODER = ps.nn.MLPEncoder((5,), 3), ps.nn.MLPDecoder(3, (5,))
KEPT = {
    "a network of two modalities": lambda: ps.limits.SimVAE(
        ps.Joint(
            ps.priors.Gaussian(3),
            (ps.likelihoods.Gaussian(0.1),) * 2,
            ps.nn.PerModality([ENCODER] * 2),
            ps.nn.PerModality([DECODER] * 2),
        )
    ),
    "a frozen encoder": lambda: ps.limits.SimCLR(
        ps.nn.MLPEncoder((5,), 3).requires_grad_(False), ps.nn.Projector(3, 8, 2)
    ),
    "a number given by its reciprocal": lambda: ps.limits.MoCo(
        ps.nn.MLPEncoder((5,), 3),
        queue=4,
        prior=ps.priors.Spherical(None, ps.hyper.Reciprocal(0.2, "temperature")),
    ),
    "parts of any number": lambda: ps.views.Augment(
        ps.views.Noise(0.2), ps.views.Mask(0.5), views=3
    ),
}


def numbers(module: nn.Module) -> list[tuple[str, bool]]:
    return [(name, p.requires_grad) for name, p in module.named_parameters()]


@pytest.mark.parametrize("what", KEPT)
def test_what_a_constructor_was_given_comes_back(what, tmp_path):
    module = KEPT[what]()
    for copied in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        loaded = ps.load(ps.save(copied, tmp_path))
        assert repr(loaded) == repr(module) and numbers(loaded) == numbers(module)


@pytest.mark.parametrize("name", [name for name in GUIDES if "custom" not in name])
def test_objectives_can_be_pickled_with_every_guide(name):
    module = with_guide(name)
    again = pickle.loads(pickle.dumps(module))
    assert_close(value(again), value(module), rtol=0, atol=0)


class Mine(ps.limits.SimCLR):
    def __init__(self, width: int) -> None:
        super().__init__(ps.nn.MLPEncoder((5,), width))


OWN = {
    r"test_saving\.Mine": lambda width: Mine(width),
    "Sequential": lambda width: ps.limits.SimCLR(nn.Sequential(nn.Linear(5, width))),
}


@pytest.mark.parametrize("name", OWN)
def test_classes_of_ones_own_load_into_an_objective_built_again(name, tmp_path):
    objective, again = OWN[name](2), OWN[name](2)
    ps.save(objective, tmp_path)
    with pytest.raises(ValueError, match=f"{name}.*into=objective"):
        ps.load(tmp_path)
    with pytest.raises(ValueError, match="arguments it was saved with"):
        ps.load(tmp_path, into=OWN[name](3))
    assert ps.load(tmp_path, into=again) is again
    assert_close(again.state_dict(), objective.state_dict())


FACTOR = 0.3


def shifted(y: torch.Tensor) -> torch.Tensor:
    return FACTOR * y


def captures(what: str, value: float) -> ps.limits.Embedding:
    """A prior whose p(z|y) is a function that uses a constant of one's own."""
    offset = torch.full((3,), value)
    functions = {
        "s": (lambda s: lambda y: dist.Normal(y, s).to_event(1))(value),
        "offset": lambda y: dist.Normal(y + offset, 1.0).to_event(1),
        "scale": lambda y, scale=value: dist.Normal(y, scale).to_event(1),
        "FACTOR": lambda y: dist.Normal(shifted(y), 1.0).to_event(1),
        "none": lambda y: dist.Normal(y, 1.0).to_event(1),
    }
    prior = ps.priors.Custom(functions[what], dim=3)
    return ps.limits.Embedding(nn.Linear(5, 3), prior, ps.entropies.KernelDensity())


@pytest.mark.parametrize("what", ["s", "offset", "scale", "FACTOR", "none"])
def test_constants_that_functions_use_are_compared(what, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "FACTOR", 0.3)
    ps.save(captures(what, 0.3), tmp_path)
    ps.load(tmp_path, into=captures(what, 0.3))  # no warning
    monkeypatch.setitem(globals(), "FACTOR", 0.6)
    if what == "none":
        ps.load(tmp_path, into=captures(what, 0.6))
        return
    with pytest.warns(UserWarning, match=rf"conditional captures {what} .*0\.6.*0\.3"):
        ps.load(tmp_path, into=captures(what, 0.6))


@pytest.mark.parametrize(
    ("function", "other"),
    [
        (
            lambda y: dist.StudentT(4.0, y, 0.3).to_event(1),
            lambda y: dist.StudentT(4.0, y, 0.9).to_event(1),
        ),
        (
            lambda y: (lambda s: dist.StudentT(4.0, y, s).to_event(1))(0.3),
            lambda y: (lambda s: dist.StudentT(4.0, y, s).to_event(1))(0.9),
        ),
    ],
)
def test_literals_in_functions_are_compared(function, other, tmp_path):
    def build(p_z: Callable) -> ps.limits.Embedding:
        prior = ps.priors.Custom(p_z, dim=3)
        return ps.limits.Embedding(nn.Linear(5, 3), prior, ps.entropies.KernelDensity())

    ps.save(build(function), tmp_path)
    ps.load(tmp_path, into=build(function))  # no warning
    with pytest.warns(
        UserWarning, match=r"captures literals .*0\.9.* instead of .*0\.3"
    ):
        ps.load(tmp_path, into=build(other))


def test_a_folder_without_constants_loads_in_silence(tmp_path):
    ps.save(captures("s", 0.3), tmp_path)
    path = tmp_path / "probssl.json"
    description = json.loads(path.read_text())
    built = description["built"].items()
    description["built"] = {k: v for k, v in built if " captures " not in k}
    del description["digest"]
    path.write_text(json.dumps(description))
    ps.load(tmp_path, into=captures("s", 0.6))


def test_numbers_of_distributions_are_short_in_a_warning(tmp_path):
    def own(*probs: float) -> ps.limits.Embedding:
        p_y = dist.Categorical(torch.tensor(probs))
        prior = ps.priors.Custom(
            lambda y: dist.Normal(y.unsqueeze(-1) * torch.ones(3), 1.0).to_event(1),
            dim=3,
            y_prior=p_y,
        )
        return ps.limits.Embedding(nn.Linear(5, 3), prior, ps.entropies.KernelDensity())

    ps.save(own(0.4, 0.4, 0.2), tmp_path)
    with pytest.warns(UserWarning, match=r"0\.2, 0\.4, 0\.4.* instead of .*0\.4, 0\.4"):
        ps.load(tmp_path, into=own(0.2, 0.4, 0.4))


def test_weights_of_another_objective_are_named(tmp_path):
    joint = ps.Joint(
        ps.priors.Independent(2),
        ps.likelihoods.Gaussian(),
        ps.nn.MLPEncoder((5,), 2),
        ps.nn.MLPDecoder(2, (5,)),
    )
    ps.save(ps.limits.VAE(joint), tmp_path)
    with pytest.raises(ValueError, match="of the class VAE, saved in .*, got SimCLR"):
        ps.load(tmp_path, into=ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 2)))


class Weighted(ps.limits.JointEmbedding):
    def __init__(self, encoder: nn.Module, weight: float = 1.0) -> None:
        super().__init__(encoder)
        self.weight = weight

    def value(self, z: torch.Tensor, batch: ps.Batch) -> ps.Terms:
        return ps.Terms(penalty=-self.weight * (z[:, 0] - z[:, 1]).square().mean())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Weighted(nn.Linear(5, 2), 3.0), r"weight 3\.0 instead of 1\.0"),
        (lambda: Weighted(ps.nn.MLPEncoder((5,), 2)), "fit Weighted"),
        (lambda: Mine(2), "fit Mine"),
    ],
)
def test_settings_of_classes_of_ones_own_are_compared(other, message, tmp_path):
    ps.save(Weighted(nn.Linear(5, 2)), tmp_path)
    with pytest.raises((UserWarning, ValueError), match=message):
        ps.load(tmp_path, into=other())
    ps.load(tmp_path, into=Weighted(nn.Linear(5, 2)))


class Holding(Weighted):
    low = 0.02
    table = torch.arange(2.0), {"b": torch.arange(9.0)}

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(nn.Linear(5, 2))
        self.w, self.pair = factor * torch.ones(2), [factor * np.ones(20)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, _: setattr(o, "w", 3 * torch.ones(2)), r"w holds \[3.0, 3.0\] ins"),
        (lambda o, _: o.pair[0].fill(2), "pair holds with checksum"),
        (
            lambda _, patch: patch.setattr(Holding, "low", 0.5),
            r"low holds 0\.5 instead",
        ),
        (
            lambda _, patch: patch.setitem(Holding.table[1], "b", torch.ones(9)),
            "table holds .* with checksum",
        ),
    ],
)
def test_arrays_and_class_attributes_of_ones_own_are_compared(
    change, message, tmp_path, monkeypatch
):
    ps.save(Holding(), tmp_path)
    into = ps.load(tmp_path, into=Holding())  # no warning
    change(into, monkeypatch)
    with pytest.warns(UserWarning, match=message):
        ps.load(tmp_path, into=into)
    path = tmp_path / "probssl.json"  # as it was before these were written
    description = json.loads(path.read_text())
    built = description["built"].items()
    description["built"] = {k: v for k, v in built if not k.endswith(" holds")}
    del description["digest"]
    path.write_text(json.dumps(description))
    ps.load(tmp_path, into=into)


class Settings:
    """A configuration with a private setting."""

    def __init__(self, factor: float) -> None:
        self._factor = factor


class Hidden(Weighted):
    """An objective whose settings are private, and a cache."""

    _low = 0.1

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(nn.Linear(5, 2))
        self._scale, self._table = scale, scale * np.arange(3.0)
        self.__mangled = scale
        self.level, self.settings = scale, Settings(scale)
        self._cache, self._last, self._parts = {}, None, []

    @property
    def level(self) -> float:
        return self._level

    @level.setter
    def level(self, value: float) -> None:
        self._level = value

    def value(self, z: torch.Tensor, batch: ps.Batch) -> ps.Terms:
        self._last, self._cache["z"] = z, z
        return ps.Terms(penalty=FACTOR * self._factor() * z.mean())

    def _factor(self) -> float:
        return 0.3 * self._scale * self.__mangled


PRIVATE = {
    "_scale": lambda o, _: setattr(o, "_scale", 3.0),
    "_table": lambda o, _: setattr(o, "_table", np.ones(3)),
    "_level": lambda o, _: setattr(o, "level", 3.0),
    "_Hidden__mangled": lambda o, _: setattr(o, "_Hidden__mangled", 3.0),
    "_low": lambda _, patch: patch.setattr(Hidden, "_low", 0.5),
    "settings with _factor": lambda o, _: setattr(o.settings, "_factor", 3.0),
    "value captures FACTOR": lambda _, patch: patch.setitem(globals(), "FACTOR", 0.6),
    "_factor captures literals": lambda _, patch: patch.setattr(
        Hidden, "_factor", lambda self: 0.9 * self._scale
    ),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_settings_and_constants_of_methods_are_compared(
    name, tmp_path, monkeypatch
):
    used = Hidden()
    used.value(torch.randn(3, 2, 2), None)  # fills the cache
    used._parts.append(1)
    ps.save(used, tmp_path)
    into = ps.load(tmp_path, into=Hidden())  # no warning
    PRIVATE[name](into, monkeypatch)
    with pytest.warns(UserWarning, match=f"got {name}.* instead of"):
        ps.load(tmp_path, into=into)
    path = tmp_path / "probssl.json"  # as it was before these were written
    description = json.loads(path.read_text())
    new = " captures ", " holds", " with "
    built = description["built"].items()
    built = {k: v for k, v in built if not any(word in k for word in new)}
    del description["digest"]
    path.write_text(json.dumps(description | {"built": built}))
    ps.load(tmp_path, into=into)


class Sharp(dist.Normal):
    """A density of one's own that a function makes."""

    def __init__(self, loc: torch.Tensor) -> None:
        super().__init__(loc, FACTOR, validate_args=False)


def test_constants_of_classes_that_functions_make_are_compared(tmp_path, monkeypatch):
    def build() -> ps.limits.Embedding:
        prior = ps.priors.Custom(lambda y: Sharp(y).to_event(1), dim=3)
        return ps.limits.Embedding(nn.Linear(5, 3), prior, ps.entropies.KernelDensity())

    ps.save(build(), tmp_path)
    ps.load(tmp_path, into=build())  # no warning
    monkeypatch.setitem(globals(), "FACTOR", 0.6)
    with pytest.warns(UserWarning, match=r"captures FACTOR 0\.6 instead of 0\.3"):
        ps.load(tmp_path, into=build())


def test_private_names_of_libraries_are_no_settings(tmp_path):
    ps.save(Mine(2), tmp_path)
    built = json.loads((tmp_path / "probssl.json").read_text())["built"]
    assert not [name for name in built if name.split(".")[-1].startswith("_")]


@dataclass
class Options:
    beta: float = 1.0
    shape: tuple[int, ...] = (2, 3)


class Slotted:
    __slots__ = "beta"  # one name alone

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return self.beta * x


class Configured(Weighted):
    """An objective with a configuration, and a mean that `state_dict` leaves out."""

    def __init__(self, cfg: Any, mean: torch.Tensor | None = None) -> None:
        super().__init__(nn.Linear(5, 2))
        self.cfg = cfg
        self.register_buffer("mean", mean, persistent=False)


def closing(cfg: Any) -> Any:
    return lambda x: cfg.beta * x


OBJECTS = {
    "a dataclass": lambda beta: Options(beta),
    "a namespace": lambda beta: SimpleNamespace(beta=beta),
    "parsed arguments": lambda beta: Namespace(beta=beta),
    "slots": lambda beta: Slotted(beta),
    "a mapping": lambda beta: MappingProxyType({"beta": beta}),
    "in a list": lambda beta: [Options(), Options(beta)],
    "in a dictionary": lambda beta: {"a": Options(beta)},
    "in another": lambda beta: SimpleNamespace(inner=Options(beta)),
    "an array": lambda beta: SimpleNamespace(beta=np.full(20, beta)),
    "a bound method": lambda beta: Slotted(beta).scaled,
    "a partial function": lambda beta: partial(torch.mul, other=beta),
    "a closure": lambda beta: closing(Options(beta)),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_an_object_in_a_setting_holds_is_compared(kind, tmp_path):
    make = OBJECTS[kind]
    ps.save(Configured(make(1.0)), tmp_path)
    ps.load(tmp_path, into=Configured(make(1.0)))  # no warning
    with pytest.warns(UserWarning, match=r"cfg.*(beta|other)"):
        ps.load(tmp_path, into=Configured(make(5.0)))


def test_an_attribute_more_in_an_object_is_named(tmp_path):
    ps.save(Configured(SimpleNamespace(beta=1.0)), tmp_path)
    with pytest.warns(UserWarning, match="cfg with attributes beta, gamma instead"):
        ps.load(tmp_path, into=Configured(SimpleNamespace(beta=1.0, gamma=2.0)))


def test_objects_that_hold_each_other_are_saved(tmp_path):
    one = SimpleNamespace(beta=1.0)
    one.other = SimpleNamespace(other=one)
    ps.save(Configured(one), tmp_path)
    ps.load(tmp_path, into=Configured(one))


@pytest.mark.parametrize("many", [1, 30])
def test_buffers_that_a_state_dict_leaves_out_are_compared(many, tmp_path):
    ps.save(Configured(None, torch.full((many,), 0.1)), tmp_path)
    ps.load(tmp_path, into=Configured(None, torch.full((many,), 0.1)))  # no warning
    ps.load(tmp_path, into=Configured(None, torch.full((many,), 0.1)).double())
    with pytest.warns(UserWarning, match="mean holds"):
        ps.load(tmp_path, into=Configured(None, torch.full((many,), 0.2)))


class Stateful(nn.Linear):
    """A layer with a state that is no tensor."""

    _extra: Any = {"calls": 3, "names": ["a", "b"]}

    def get_extra_state(self) -> Any:
        return self._extra

    def set_extra_state(self, state: Any) -> None:
        self._extra = state


def test_an_extra_state_comes_back(tmp_path):
    ps.save(Weighted(Stateful(5, 2)), tmp_path)
    into = Weighted(Stateful(5, 2))
    into.encoder._extra = {"calls": 0}
    assert ps.load(tmp_path, into=into).encoder._extra == Stateful._extra
    saved = Weighted(Stateful(5, 2))
    saved.encoder._extra = {"pair": (1, 2)}  # JSON would make it a list
    with pytest.raises(TypeError, match=r"encoder\._extra_state.*get_extra_state"):
        ps.save(saved, tmp_path)


@pytest.mark.parametrize(
    "buffer",
    [
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.complex128),
    ],
    ids=["sparse", "complex128"],
)
def test_what_safetensors_cannot_hold_is_refused_before_a_fit(buffer, tmp_path):
    objective = Weighted(nn.Linear(5, 2))
    objective.encoder.register_buffer("odd", buffer)
    with pytest.raises(ValueError, match=r"encoder\.odd; keep"):
        ps.save(objective, tmp_path / "saved")
    before = objective.encoder.weight.detach().clone()
    with pytest.raises(ValueError, match=r"objective\.encoder\.odd; keep"):
        ps.fit(
            objective,
            torch.randn(8, 5),
            views=lambda x: torch.stack([x, x], 1),
            checkpoint=tmp_path / "run",
            progress=False,
        )
    assert torch.equal(objective.encoder.weight, before)


def test_buffers_whose_numbers_share_memory_are_fitted_and_loaded(tmp_path):
    """As `expand` makes them: torch can write neither in place."""

    def build() -> Weighted:
        torch.manual_seed(0)
        objective = Weighted(nn.Linear(5, 2))
        objective.encoder.register_buffer("std", torch.tensor(2.0).expand(6))
        return objective

    x, folder = torch.randn(8, 5), tmp_path / "run"
    options = {"views": lambda x: x[:, None] + torch.randn(8, 2, 5), "batch_size": 8}
    options |= {"progress": False, "checkpoint": folder}
    whole = build()
    ps.fit(whole, x, epochs=4, patience=9, accumulate=2, **options)
    ps.save(whole, tmp_path / "saved")
    loaded = ps.load(tmp_path / "saved", into=build())
    assert torch.equal(loaded.encoder.std, torch.full((6,), 2.0))
    assert torch.equal(loaded.encoder.weight, whole.encoder.weight)
    options["accumulate"] = 2
    history = ps.fit(build(), x, epochs=5, patience=9, resume=True, **options)
    assert len(history) == 5


def test_a_refused_load_leaves_the_objective_as_it_was(tmp_path):
    def network(width: int) -> Weighted:
        return Weighted(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, width)))

    ps.save(network(2), tmp_path)
    into = network(3)
    before = {name: x.clone() for name, x in into.state_dict().items()}
    with pytest.raises(ValueError, match="to fit Weighted"):
        ps.load(tmp_path, into=into)
    for name, x in into.state_dict().items():
        assert torch.equal(x, before[name]), name


CHANGES = {
    "a layer of the same shape": lambda o: setattr(o.encoder.trunk, "2", nn.Tanh()),
    "a layer of another shape": lambda o: setattr(o.encoder, "head", nn.Linear(64, 2)),
    "a setting": lambda o: setattr(o, "plug_in", False),
    "a method": lambda o: setattr(o.encoder, "forward", lambda x: x),
    "a partial method": lambda o: setattr(o.encoder, "forward", partial(max, 1)),
    "a tuple": lambda o: setattr(o.encoder, "sizes", ("a", [1, {"b": None}])),
    "a type of numbers": lambda o: setattr(o.encoder, "numbers", torch.float16),
    "a hook": lambda o: o.encoder.register_forward_hook(lambda *_: None),
    "a tied weight": lambda o: setattr(
        o.encoder.head, "weight", o.encoder.trunk[3].weight
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_objective_loads_only_into_one_with_the_same_changes(
    change, tmp_path
):
    def build() -> nn.Module:
        encoder = ps.nn.MLPEncoder((5,), 64, hidden=(64, 64))
        return ps.limits.SimCLR(encoder, ps.nn.Projector(64, 64, 2))

    objective, again = build(), build()
    CHANGES[change](objective)
    with pytest.warns(UserWarning, match="instead of"):
        ps.save(objective, tmp_path)
    with pytest.raises(ValueError, match="instead of"):
        ps.load(tmp_path)
    with pytest.raises(ValueError, match=r"same (arguments and )?changes|fit SimCLR"):
        ps.load(tmp_path, into=build())
    CHANGES[change](again)
    assert ps.load(tmp_path, into=again) is again
    assert_close(again.state_dict(), objective.state_dict())


class Blank:
    """A function as an object, without settings that a file could hold."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def random_scale(width: float) -> nn.Module:
    encoder = ps.nn.MLPEncoder((5,), 3)
    return ps.limits.SimCLR(encoder, None, dist.LogNormal(-1.0, width))


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (OBJECTIVES["VAE"], lambda o: setattr(o, "bound", ps.bounds.IWAE(100))),
        (OBJECTIVES["denoising autoencoder"], lambda o: setattr(o, "noise", Blank())),
        (
            lambda: random_scale(0.5),
            lambda o: setattr(
                o.prior, "concentration", random_scale(2.0).prior.concentration
            ),
        ),
    ],
    ids=["a bound", "an object that is called", "a distribution"],
)
def test_a_changed_setting_of_any_kind_is_no_silent_loss(build, change, tmp_path):
    objective, again = build(), build()
    change(objective)
    with pytest.warns(UserWarning, match="instead of"):
        ps.save(objective, tmp_path)
    with pytest.raises(ValueError, match="instead of"):
        ps.load(tmp_path)
    with pytest.raises(ValueError, match="same arguments and changes"):
        ps.load(tmp_path, into=again)
    change(again)
    ps.load(tmp_path, into=again)


def test_a_random_number_in_another_precision_is_no_change(tmp_path):
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        loaded = ps.load(ps.save(random_scale(0.3).to(kind), tmp_path))
        assert loaded.prior.concentration.loc.dtype == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoupled": True}, r"entropy\.same_item"),
        ({"temperature": 0.1}, r"value 0\.5 instead of 0\.1"),
        ({"temperature": ps.learned(0.1)}, "fit SimCLR"),
    ],
)
def test_arguments_beside_a_foreign_network_are_compared(options, message, tmp_path):
    ps.save(ps.limits.SimCLR(nn.Linear(6, 3), **options), tmp_path)
    with pytest.raises((UserWarning, ValueError), match=message):
        ps.load(tmp_path, into=ps.limits.SimCLR(nn.Linear(6, 3)))
    ps.load(tmp_path, into=ps.limits.SimCLR(nn.Linear(6, 3), **options))


def test_what_compiled_itself_is_saved_as_what_it_is(tmp_path):
    objective = ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3))
    objective.compile(backend="eager")
    objective.encoder.compile(backend="eager")
    loaded = ps.load(ps.save(objective, tmp_path))
    assert_close(loaded.state_dict(), objective.state_dict(), rtol=0, atol=0)


def test_what_torch_compiled_is_saved_as_what_it_is(tmp_path):
    objective = ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3))
    state = objective.state_dict()
    objective.encoder = torch.compile(objective.encoder, backend="eager")
    loaded = ps.load(ps.save(torch.compile(objective, backend="eager"), tmp_path))
    assert_close(loaded.state_dict(), state, rtol=0, atol=0)
    objective.encoder._orig_mod.requires_grad_(False)
    ps.load(ps.save(objective, tmp_path), into=objective)
    assert_close(objective.encoder._orig_mod.head.weight, state["encoder.head.weight"])
    assert not any(p.requires_grad for p in ps.load(tmp_path).parameters())


def test_double_precision_is_kept_to_the_last_bit(float64, tmp_path):
    objective = OBJECTIVES["SimVAE"]()
    before, items = value(objective), batch(1)
    ps.save(objective, tmp_path)
    torch.set_default_dtype(torch.float32)
    loaded = ps.load(tmp_path)
    torch.manual_seed(0)
    found = torch.stack([torch.as_tensor(t) for t in loaded(items)])
    assert_close(found, before, rtol=0, atol=0)
    assert loaded.joint.prior(2).rsample().dtype == torch.float64


NETWORK = '"class": "limits.SimCLR"'
REFUSED = {
    (NETWORK, '"class": "os.system"'): "only parts of probssl",
    (NETWORK, '"class": "limits.torch"'): "only parts of probssl",
    (NETWORK, '"class": "antigravity.geohash"'): "only parts of probssl",
    ("LogNormal", "__builtins__"): "distribution of Pyro",
    ("5\n", "50000000\n"): "far fewer",
    ('"dim"', '"dime"'): "got 'dime'",
    ('"float32"', '"load"'): "no dtype 'load'",
    ('"arguments"', '"same"'): "unhashable",
    ('"format"', '"formal"'): "as ps.save writes it",
    ('"format": 3', '"format": 99'): "newer probssl",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change[1])
def test_a_description_that_ps_save_did_not_write_is_refused(change, tmp_path):
    """No name in it causes an import, no number takes memory."""
    temperature = dist.LogNormal(-1.0, 0.5)
    ps.save(ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3), None, temperature), tmp_path)
    path = tmp_path / "probssl.json"
    text = path.read_text()
    assert change[0] in text
    text = re.sub(r',\n  "digest": "\w+"', "", text)  # or it would be seen first
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=REFUSED[change]):
        ps.load(tmp_path)


def test_a_distribution_is_built_from_the_form_it_was_given():
    normal = dist.MultivariateNormal(torch.zeros(2), covariance_matrix=2 * torch.eye(2))
    categorical = dist.Categorical(logits=torch.tensor([0.0, 1.0]))
    assert normal.precision_matrix.shape == (2, 2)  # now it knows two forms
    for given, value in ((normal, torch.ones(2)), (categorical, torch.tensor(1))):
        before = given.log_prob(value)
        assert_close(build(describe(given)).log_prob(value), before)


def pair_of_normals(share: float, place: float = 1.0) -> dist.TorchDistribution:
    places = torch.tensor([[-1.0], [place]])
    each = dist.Normal(places, 0.5).to_event(1)
    shares = dist.Categorical(torch.tensor([share, 1 - share]))
    return dist.MixtureSameFamily(shares, each)


def moved(scale: float, base: float = 1.0) -> dist.TorchDistribution:
    steps = [
        dist.transforms.AffineTransform(0.0, scale),
        dist.transforms.ExpTransform(),
    ]
    normal = dist.Normal(torch.zeros(1), base)
    return dist.TransformedDistribution(normal, [*steps, steps[1].inv]).to_event(1)


class Times(dist.transforms.AffineTransform):
    """A transform of one's own."""

    def __init__(self, factor: float) -> None:
        super().__init__(0.0, factor)
        self.factor = factor


MADE_OF_OTHERS = {
    "shares": (pair_of_normals(0.5), pair_of_normals(0.9)),
    "places": (pair_of_normals(0.5), pair_of_normals(0.5, 2.0)),
    "transform": (moved(1.0), moved(2.0)),
    "base": (moved(1.0), moved(1.0, 2.0)),
    "masked": (moved(1.0).mask(True), moved(2.0).mask(True)),
    "temperature": tuple(
        dist.RelaxedBernoulli(torch.tensor(t), probs=torch.tensor([0.3])).to_event(1)
        for t in (0.5, 2.0)
    ),
    "transform of one's own": tuple(
        dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0), [Times(2.0 * k)])
        for k in (1, 2)
    ),
}


@pytest.mark.parametrize("what", MADE_OF_OTHERS)
def test_distributions_made_of_others_are_described_and_compared(what, tmp_path):
    one, other = MADE_OF_OTHERS[what]
    if what not in ("masked", "transform of one's own"):
        again, draws = build(json.loads(json.dumps(describe(one)))), one.sample((5,))
        assert_close(again.log_prob(draws), one.log_prob(draws))
    assert describe(one) != describe(other)


@pytest.mark.parametrize("last", range(4))
def test_a_save_that_dies_leaves_all_of_one_objective(last, tmp_path, monkeypatch):
    old, new = (ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3)) for _ in range(2))
    ps.save(old, tmp_path, who="old")
    replace, calls = os.replace, iter(range(10))

    def dying(*paths: Path) -> None:
        if next(calls) == last:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", dying)
    for _ in range(2):  # the second one over what the first one left
        with contextlib.suppress(KeyboardInterrupt):
            ps.save(new, tmp_path, who="new")
        found = ps.load(tmp_path).encoder.head.weight
        who = json.loads((tmp_path / "probssl.json").read_text())["notes"]["who"]
        assert_close(found, {"old": old, "new": new}[who].encoder.head.weight)


def test_damaged_weights_are_refused_by_name_and_can_be_replaced(tmp_path):
    run, weights = tmp_path / "run", tmp_path / "run" / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"probssl\.json"):
        ps.load(tmp_path)
    for folder in (run, tmp_path / "other"):
        ps.save(ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3)), folder)
    for broken in (b"", weights.read_bytes()[:40]):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="model.safetensors .* damaged"):
            ps.load(run)
    shutil.copy(tmp_path / "other" / weights.name, weights)
    with pytest.raises(ValueError, match="same save"):
        ps.load(run)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        ps.load(run)
    weights.with_suffix(".safetensors.new").write_bytes(b"")  # of a save that died
    ps.load(ps.save(ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3)), run))


def test_notes_take_numbers_of_numpy_and_refuse_by_name_what_json_cannot_hold(tmp_path):
    simclr = ps.limits.SimCLR(torch.nn.Linear(3, 2))
    notes = {"a": np.float32(0.5), "b": {"c": [np.int64(2), torch.tensor(3)]}}
    ps.save(simclr, tmp_path, **notes)
    found = json.loads((tmp_path / "probssl.json").read_text())["notes"]
    assert found == {"a": 0.5, "b": {"c": [2, 3]}}
    with pytest.raises(ValueError, match="finite numbers in the note a, got nan"):
        ps.save(simclr, tmp_path, a=float("nan"))
    with pytest.raises(TypeError, match="dictionaries in the note b, got .<object"):
        ps.save(simclr, tmp_path, b=[object()])
    with pytest.raises(ValueError, match="note c that differ as text.* got 1, 1;"):
        ps.save(simclr, tmp_path, c={"by width": {1: 0.5, "1": 0.7}})


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder.*run; give another"):
        ps.save(ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3)), tmp_path / "run")


def test_a_module_without_numbers_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"meta\) at weight; build"):
        ps.save(nn.Linear(3, 2, device="meta"), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "3"},
        {"extra": [1]},
        {"frozen": None},
        {"objective": [1]},
        {"dtype": "int64"},
        {"dtype": "float5"},
        {"dtype": "nn"},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused_by_name(change, tmp_path):
    ps.save(ps.limits.SimCLR(ps.nn.MLPEncoder((5,), 3)), tmp_path)
    path = tmp_path / "probssl.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"probssl\.json as .* damaged"):
        ps.load(tmp_path)
