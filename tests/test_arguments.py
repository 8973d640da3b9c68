"""Arguments are returned as plain values, or refused in one form of message."""

import inspect
import math
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

import probssl as ps
from probssl._arguments import CLASSES
from probssl.arguments import (
    at_least,
    between,
    choice,
    instance,
    positive,
    typed,
    whole,
)


def test_a_part_is_not_replaced_by_a_name_that_only_reads_it():
    """torch keeps a module that is assigned to a property, which never returns it."""
    net, prior = partial(ps.nn.MLPEncoder, (4,), 2, hidden=()), ps.priors.Gaussian(2)
    decoder = ps.nn.MLPDecoder(2, (4,), hidden=())
    joint = ps.Joint(prior, ps.likelihoods.Gaussian(), net(), decoder)
    simclr = ps.limits.SimCLR(net())
    of_base = ps.limits.DSA(simclr), ps.limits.PID(simclr, 3, 100)
    names = [(joint, "encoder"), (joint, "guide"), (joint.posterior, "encoder")]
    names += [(simclr, "network"), (prior, "content")]
    names += [(o, name) for o in of_base for name in ("encoder", "projector")]
    for module, name in names:
        before = dict(module.named_modules())
        with pytest.raises(AttributeError, match=f"{name!r} of .* assign one of"):
            setattr(module, name, net())
        assert dict(module.named_modules()) == before
    joint.posterior = ps.guides.FullGaussian(net())
    assert joint.encoder is joint.posterior.encoder
    simclr.encoder = replaced = net()
    assert of_base[0].encoder is replaced
    joint.posterior.encoder = joint.posterior.encoder  # the same
    assert joint.encoder is joint.posterior.encoder


@pytest.mark.parametrize(
    ("check", "value", "found"),
    [
        (lambda x: positive("x", x), np.float32(0.5), 0.5),
        (lambda x: positive("x", x), torch.tensor(2), 2.0),
        (lambda x: at_least("x", x, 0), 0, 0.0),
        (lambda x: between("x", x, 0, 1), 1, 1.0),
        (lambda x: whole("x", x), np.int64(3), 3),
        (lambda x: whole("x", x, 0), torch.tensor(0), 0),
        (lambda x: choice("x", x, ("a", None)), None, None),
        (lambda x: instance("x", x, int, "an int"), 4, 4),
    ],
)
def test_what_is_in_range_comes_back_as_a_plain_value(check, value, found):
    assert check(value) == found and type(check(value)) is type(found)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (lambda x: positive("x", x, "take 1"), 0, ValueError, "x .*, got 0; take 1"),
        (lambda x: positive("x", x), math.inf, ValueError, "positive finite"),
        (lambda x: positive("x", x), math.nan, ValueError, "got nan"),
        (lambda x: positive("x", x), "1", TypeError, "got '1'"),
        (lambda x: positive("x", x), True, TypeError, "got True"),
        (lambda x: positive("x", x), torch.ones(2), TypeError, "positive"),
        (lambda x: at_least("x", x, 0), -1e-9, ValueError, "at least 0"),
        (lambda x: between("x", x, 0, 1), 1.1, ValueError, "from 0 to 1"),
        (lambda x: between("x", x, 0, 1, open=True), 1, ValueError, "between 0 and 1"),
        (lambda x: whole("x", x), 0, ValueError, "at least 1"),
        (lambda x: whole("x", x, 0, 3), 4, ValueError, "from 0 to 3"),
        (lambda x: whole("x", x), 2.0, TypeError, "whole number"),
        (lambda x: whole("x", x), True, TypeError, "got True"),
        (lambda x: choice("x", x, ("a", "b")), "c", ValueError, "'a', 'b', got 'c'"),
        (lambda x: instance("x", x, int, "an int"), "c", TypeError, "as an int"),
    ],
)
def test_what_is_not_is_refused(check, value, error, message):
    with pytest.raises(error, match=message):
        check(value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ps.fit(None, None, lr=1), r"fit\(objective.*'lr'; .* learning_rate\?"),
        (lambda: ps.fit(None, None, batchsize=1), "did you mean batch_size"),
        (lambda: ps.likelihoods.Gaussian(scal=1), r"Gaussian\(scale.*mean scale\?"),
        (lambda: ps.priors.Gaussian(), r"Gaussian\(dim.*none for .*'dim'"),
        (lambda: ps.likelihoods.Gaussian(1, 1, 1), r"Gaussian\(.*too many"),
        (lambda: ps.compare({}, None, 0), r"compare\(.*give views=…, .* by name"),
        (lambda: ps.likelihoods.Gaussian(1, scale=1), "multiple values .*'scale'"),
    ],
)
def test_arguments_that_a_function_does_not_have_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "make",
    [
        ps.likelihoods.Gaussian,
        lambda x: ps.priors.Gaussian(2, scale=x),
        lambda x: ps.priors.Gaussian(2, scale=dist.LogNormal(x, 1.0)),
        lambda x: ps.limits.SimCLR(torch.nn.Linear(3, 2), temperature=x),
        ps.entropies.LogDeterminant,
    ],
)
def test_a_tensor_that_would_not_be_trained_is_no_number(make):
    x = torch.nn.Parameter(torch.tensor(0.5))
    make(x.detach())
    with pytest.raises(ValueError, match="would not be trained"):
        make(x)


# What annotations say


class Measured(Protocol):
    def measure(self) -> float: ...


class Scale:
    def measure(self) -> float:
        return 1.0


class PathOf(os.PathLike):
    def __fspath__(self) -> str:
        return "x"


@typed
def everything(
    *,
    number: float = 0.0,
    count: int | None = None,
    switch: bool = False,
    name: str = "",
    path: str | os.PathLike[str] = "",
    sizes: Sequence[int] = (),
    ends: tuple[float, float] = (0.0, 1.0),
    by_name: Mapping[str, nn.Module] | None = None,
    each: Callable[[Tensor], Tensor] | None = None,
    make: Callable[..., nn.Module] = nn.Identity,
    method: Literal["one", "two"] = "one",
    mode: bool | Literal["auto"] = "auto",
    module: nn.Module | None = None,
    like: Measured | None = None,
    p: TorchDistribution | None = None,
    many: int | Sequence[int] = 1,
    z: Tensor | None = None,
    seed: int = 0,
) -> dict[str, object]:
    """Return what is given."""
    given = locals().copy()
    defaults = everything.__wrapped__.__kwdefaults__
    return {k: v for k, v in given.items() if v is not defaults[k]}


def double(x: Tensor) -> Tensor:
    return 2 * x


class Doubler:
    def double(self, x: Tensor) -> Tensor:
        return 2 * x


COMPILED = torch.compile(nn.Linear(1, 1), backend="eager")
ACCEPTED = {
    "number": [1, 2**2000, np.float16(0.5), np.int8(1), torch.tensor(0.5), Fraction(1)],
    "count": [np.uint8(3), torch.tensor(3), np.array(3), None],
    "switch": [True, np.True_],
    "name": [np.str_("x")],
    "path": ["x", Path("x"), PathOf()],
    "sizes": [[1], (2,), range(2), np.arange(2), torch.tensor([1]), torch.Size([1])]
    + [deque([np.int64(1)]), nn.ParameterList()],
    "ends": [[0, 1], np.zeros(2), torch.zeros(2), (np.float32(0), torch.tensor(1))],
    "by_name": [{}, MappingProxyType({"a": nn.Identity()}), OrderedDict()],
    "each": [double, lambda x: x, partial(double), Doubler().double, nn.Linear(1, 1)]
    + [abs, torch.relu, COMPILED, lambda *x: x[0]],
    "make": [nn.Linear, lambda *_: nn.Identity(), partial(nn.Linear, 2)],
    "method": ["two", np.str_("one")],
    "mode": [True, np.False_],
    "module": [nn.ModuleList(), COMPILED],
    "like": [Scale()],
    "p": [dist.Normal(0, 1), torch.distributions.Normal(0.0, 1.0)],
    "many": [np.int64(2), [1, 2], np.array([3]), torch.tensor([3]), range(2)],
    "z": [1, "x", object()],  # arrays are checked where they are read
    "seed": [1, np.int64(2**32 - 1), torch.tensor(5)],
}
REFUSED = {
    "number": (True, np.True_, torch.tensor(True), "1", b"1", bytearray(b"1"), 1j)
    + (
        np.complex64(1),
        torch.tensor(1j),
        np.timedelta64(1, "s"),
        torch.zeros(2),
        None,
        int,
    ),
    "count": (1.0, "1", True, torch.tensor(True), torch.tensor(1.0), [1], int),
    "switch": (1, 0.0, None, "True", []),
    "name": (b"x", None, Path("x"), str),
    "path": (b"x", 1, None, Path),
    "sizes": (1, "12", {1: 1}, {1, 2}, [1.5], [True], list, list[int], torch.tensor(1)),
    "ends": ((1,), (1, 2, 3), ("a", "b"), np.zeros(3), 1.0),
    "by_name": ([], {"a": 1}, {"a": nn.Linear}, "a", dict),
    "each": (
        1,
        "x",
        nn.Linear,
        lambda: 0,
        lambda a, b: a,
        nn.Bilinear(1, 1, 1),
    ),
    "make": (1, dict, list, None),
    "method": ("three", None, 1, b"one"),
    "mode": ("never", None, 1),
    "module": (nn.Linear, double, "x", {}),
    "like": (object(), Scale, 1),
    "p": (dist.Normal, 1.0, lambda: 0),
    "many": (1.5, [1.5], "12", None),
    "seed": (-1, 2**32, 1.5, None, True, "0"),
}


def cases(table):
    return [
        pytest.param(k, v, id=f"{k}-{i}") for k in table for i, v in enumerate(table[k])
    ]


@pytest.mark.parametrize(("name", "value"), cases(ACCEPTED))
def test_what_an_annotation_allows_is_accepted(name, value):
    found = everything(**{name: value})[name] if value is not None else None
    scalar = isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0
    if scalar and name in ("count", "many", "seed"):
        assert type(found) is int and found == value
    else:
        assert found is value


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_what_an_annotation_does_not_allow_is_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=f"expected {name} as .*, got "):
        everything(**{name: value})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": "x"}, "count as a whole number or None, got 'x'"),
        ({"ends": 1}, "ends as a sequence of 2, each a number, got 1"),
        ({"by_name": 1}, "by_name as a dictionary to a torch.nn.Module or None, got 1"),
        ({"each": 1}, "each as a function of 1 argument or None, got 1"),
        ({"mode": 1}, "mode as True or False or 'auto', got 1"),
        ({"method": 1}, "method as one of 'one', 'two', got 1"),
        ({"like": 1}, "like as a Measured, with measure or None, got 1"),
        ({"p": 1}, "p as a Pyro distribution or None, got 1"),
        ({"seed": -1}, "seed as a whole number from 0 to 4294967295, got -1"),
        ({"module": abs}, "wrap it in a torch.nn.Module"),
        ({"module": nn.Linear}, "build an object of the class"),
    ],
)
def test_messages_say_what_was_expected_what_came_and_what_to_do(given, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        everything(**given)
    assert words in str(caught.value)


# Every constructor


def constructors():
    for name, kind in CLASSES.items():
        ours = str(getattr(kind.__init__, "__module__", "")).startswith("probssl")
        if ours and not issubclass(kind, tuple | nn.Identity):
            parameters = inspect.signature(kind).parameters.values()
            for p in parameters:
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                    yield name, p.name


def encoder() -> nn.Module:
    return ps.nn.MLPEncoder((3,), 4, hidden=())


def decoder() -> nn.Module:
    return ps.nn.MLPDecoder(4, (3,), hidden=())


def joint(prior: str = "Independent") -> ps.Joint:
    parts = ps.likelihoods.Gaussian(0.1), encoder(), decoder()
    return ps.Joint(getattr(ps.priors, prior)(4), *parts)


# What the arguments without a default can be.
VALUES: dict[str, Callable[[], object]] = {
    "rows": lambda: list(ps.limits.table()),
    "base": lambda: ps.limits.SimCLR(encoder()),
    "categories": lambda: 3,
    "classes": lambda: 3,
    "components": lambda: 3,
    "content": lambda: 3,
    "conditional": lambda: lambda y: dist.Normal(y, 1.0).to_event(1),
    "count": lambda: 5,
    "decoder": decoder,
    "dim": lambda: 4,
    "encoder": encoder,
    "entropy": ps.entropies.LogDeterminant,
    "event_shape": lambda: (3, 16, 16),
    "factors": lambda: ps.guides.GaussianFactors(encoder()),
    "groups": lambda: "writer",
    "items": lambda: 8,
    "joint": joint,
    "levels": lambda: 16,
    "likelihood": lambda: ps.likelihoods.Gaussian(0.1),
    "means": lambda: torch.randn(3, 4),
    "net": lambda: nn.Linear(4, 768),
    "num_features": lambda: 4,
    "parts": lambda: [encoder()],
    "predictor": lambda: nn.Linear(4, 4),
    "prior": lambda: ps.priors.Gaussian(4),
    "scale": lambda: 0.5,
    "size": lambda: 16,
    "spread": lambda: int,
    "part": nn.Identity,
    "statistic": ps.entropies.EppsPulley,
    "style": lambda: 1,
    "trunk": lambda: nn.Linear(3, 5),
    "value": lambda: 1.0,
    "width": lambda: 5,
}
OTHERS: dict[tuple[str, str], Callable[[], object]] = {
    ("hyper.Fraction", "value"): lambda: 0.5,
    ("limits.PriorAffinity", "prior"): lambda: ps.priors.Mixture(4, 3),
}


@pytest.mark.parametrize(("name", "argument"), list(constructors()))
def test_every_argument_of_every_constructor_refuses_an_object(name, argument):
    kind = CLASSES[name]
    parameters = inspect.signature(kind).parameters
    given = {
        k: OTHERS.get((name, k), VALUES[k])()
        for k, p in parameters.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    kind(**given)
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(**given | {argument: object()})
    text = str(caught.value)
    assert text.startswith("expected") and ", got " in text
