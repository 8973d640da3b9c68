"""Numbers that change during a run: schedules, and the buffers that they write."""

import json
import math

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import OBJECTIVES, batch, encoder, joint
from helpers.checks import refusals
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import KernelDensity
from probssl.limits import BYOL, DINO, VAE, Embedding, SimCLR
from probssl.train import cosine, geometric, linear
from probssl.train.schedules import Schedules

EXACT = {"rtol": 1e-12, "atol": 1e-12}
BIT_FOR_BIT = {"rtol": 0, "atol": 0}


def numbers(objective: nn.Module) -> list[str]:
    """The names of all buffers that a schedule may set."""
    named = objective.named_buffers()
    return [k for k, b in named if b.ndim == 0 and b.is_floating_point()]


def vae() -> VAE:
    return VAE(joint(ps.priors.Independent(3)))


# The ready-made functions


def test_cosine_is_half_a_wave_and_that_of_byol():
    ours = cosine(0.996, 1.0)
    for k in range(9):
        published = 1 - (1 - 0.996) * (math.cos(math.pi * k / 8) + 1) / 2
        assert ours(k / 8) == pytest.approx(published, abs=1e-15)
    assert cosine(0.1, 0.7)(0.0) == 0.1 and cosine(0.1, 0.7)(1.0) == 0.7


def test_linear_is_constant_after_its_end():
    ours = linear(0.04, 0.07, until=0.3)
    assert ours(0.0) == 0.04 and ours(0.3) == ours(0.5) == ours(1.0) == 0.07
    assert ours(0.1) == pytest.approx(0.05, abs=1e-15)


def test_geometric_is_exact_at_both_ends_and_the_mean_of_logarithms_between():
    rise = geometric(3e-5, 0.7)
    assert rise(0.0) == 3e-5 and rise(1.0) == 0.7
    between = 0.75 * math.log(3e-5) + 0.25 * math.log(0.7)
    assert math.log(rise(0.25)) == pytest.approx(between)


# Runs


def test_beta_warms_up():
    objective, seen = vae(), []
    ps.fit(
        objective,
        torch.randn(24, 6),
        epochs=2,
        batch_size=6,
        schedules={"beta": linear(0.0, 2.0, until=0.5)},
        on_step=lambda step, terms: seen.append((float(objective.beta), terms)),
        progress=False,
    )
    assert [beta for beta, _ in seen] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
    first = seen[0][1]
    assert first.entropy == first.alignment == 0 != first.reconstruction


def test_a_buffer_may_be_written_in_on_step():
    objective, seen = SimCLR(encoder(), temperature=1.0), []
    temperature = objective.prior.concentration.fixed

    def halve(step: int, terms: ps.Terms) -> None:
        temperature.mul_(0.5)
        seen.append(float(objective.prior.concentration()))

    views = ps.data.Groups(batch(items=24).views)
    ps.fit(objective, views, epochs=1, on_step=halve, batch_size=8, progress=False)
    assert seen == [2.0, 4.0, 8.0]


# Compiled steps


TRACED = ["SimVAE", "VAE", "MoCo", "instance discrimination", "t-SimCLR", "VICReg"]
TRACED += ["BYOL", "SwAV", "DINO"]


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_step_follows_every_number_that_is_a_buffer(name, float64):
    objective, items = OBJECTIVES[name]().train(), batch()
    state = dict(objective.named_parameters()) | dict(objective.named_buffers())
    with torch.no_grad():  # a teacher that is not its network, a queue with something
        for parameter in objective.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        objective(items)

    def step(tensors: dict[str, Tensor]) -> Tensor:
        return torch.as_tensor(sum(functional_call(objective, tensors, (items,))))

    def after(function, changed: str | None = None) -> list[Tensor]:
        """The value, and all that the step has written."""
        tensors = {k: t.detach().clone() for k, t in state.items()}
        if changed is not None:
            tensors[changed].mul_(0.8)
        torch.manual_seed(1)
        return [function(tensors), *tensors.values()]

    copies = {k: t.detach().clone() for k, t in state.items()}
    graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(copies)
    before = after(graph)
    for changed in set(numbers(objective)) - {"label_weight"}:  # there are no labels
        found, expected = after(graph, changed), after(step, changed)
        assert_close(found, expected)
        place = 1 + list(state).index(changed)
        pairs = zip(found, before, strict=True)
        moved = [i for i, (f, b) in enumerate(pairs) if not torch.equal(f, b)]
        assert set(moved) - {place}, f"{changed} changes nothing"


# What is saved


VARYING = ["teacher.momentum", "momentum", "beta"]
VARYING += ["teacher_temperature", "centre_momentum"]


def varied() -> list[nn.Module]:
    """Objectives with numbers that are not those they were built with."""
    objectives = [
        BYOL(encoder(), momentum=0.9),
        DINO(encoder(), components=5),
        vae(),
        OBJECTIVES["MoCo"](),
        OBJECTIVES["instance discrimination"](),
    ]
    for objective in objectives:
        names = [name for name in numbers(objective) if name in VARYING]
        Schedules(objective, dict.fromkeys(names, linear(0.1, 0.4)), 2).set(1)
        assert names and all(objective.get_buffer(name) == 0.25 for name in names)
    return objectives


def test_present_numbers_are_saved(tmp_path):
    for objective in varied():
        ps.save(objective, tmp_path)
        loaded = ps.load(tmp_path)
        assert_close(loaded.state_dict(), objective.state_dict(), **BIT_FOR_BIT)


def test_folders_from_before_they_were_buffers_can_be_read(tmp_path):
    """They tell what the objective was built with, which then did not change."""
    path, described = tmp_path / "model.safetensors", tmp_path / "probssl.json"
    for objective in varied():
        ps.save(objective, tmp_path)
        kept, text = load_file(path), json.loads(described.read_text())
        missing = [name for name in VARYING if kept.pop(name, None) is not None]
        save_file(kept, path)
        for name in missing:
            text["objective"]["arguments"][name.removeprefix("teacher.")] = 0.75
        del text["weights"], text["digest"]  # which they had not
        described.write_text(json.dumps(text))
        loaded = ps.load(tmp_path)
        assert missing and all(loaded.get_buffer(name) == 0.75 for name in missing)


def test_numbers_follow_the_precision_of_the_objective():
    objective = BYOL(encoder(), momentum=0.75)
    schedules = Schedules(objective, {"teacher.momentum": linear(0.1, 0.1)}, 1)
    objective.double()
    schedules.set(0)
    assert objective.teacher.momentum == torch.tensor(0.1, dtype=torch.float64)


# What is refused


def test_a_module_that_two_parts_share_is_known_by_both_names():
    objective = nn.ModuleDict({"one": vae()})
    objective["other"] = objective["one"]
    schedules = {"one.beta": linear(0.5, 0.5), "other.beta": linear(0.5, 0.5)}
    Schedules(objective, schedules, 1).set(0)
    assert objective["one"].beta == 0.5


def test_a_temperature_is_scheduled_by_its_name():
    simclr = SimCLR(encoder(), temperature=0.5)
    dsa, pid = ps.limits.DSA(simclr, neighbours=2), ps.limits.PID(simclr, 2, 10)
    for objective, name in (
        (simclr, "temperature"),
        (pid, "temperature"),
        (dsa, "base.prior.temperature"),  # it has a temperature of its own
    ):
        Schedules(objective, {name: linear(0.5, 0.1)}, 10).set(10)
        assert simclr.temperature.item() == pytest.approx(0.1)
        assert simclr.prior.concentration().item() == pytest.approx(10.0)
    with pytest.raises(ValueError, match="'temperature'.*got 'prior.concentration.f"):
        Schedules(simclr, {"prior.concentration.fixed": linear(2.0, 10.0)}, 10)
    simclr.population = torch.tensor(10.0)
    with pytest.raises(ValueError, match="schedules as one of 'temperature', got"):
        Schedules(simclr, {"population": linear(1.0, 5.0)}, 10)
    own = nn.ModuleDict({"one": simclr})
    own.register_buffer("temperature", torch.tensor(3.0))
    both = {"temperature": linear(1.0, 2.0), "one.prior.temperature": linear(0.5, 0.2)}
    Schedules(own, both, 10).set(10)
    assert own.get_buffer("temperature") == 2.0
    assert simclr.temperature.item() == pytest.approx(0.2)
    two = nn.ModuleDict({"one": simclr, "other": SimCLR(encoder(), temperature=1.0)})
    Schedules(two, {"other.prior.temperature": linear(1.0, 0.2)}, 10).set(10)
    assert two["other"].temperature.item() == pytest.approx(0.2)


def scheduled(schedule: object, total: int | None = 10) -> Schedules:
    return Schedules(vae(), {"beta": schedule}, total)


def byol_with(name: str) -> Schedules:
    return Schedules(BYOL(encoder()), {name: cosine(0.9, 1.0)}, 10)


def dino_with(name: str) -> Schedules:
    objective = DINO(encoder(), components=5)
    objective.register_buffer("steps", torch.tensor(0))
    return Schedules(objective, {name: linear(0.0, 1.0)}, 10)


def within_own_prior(name: str) -> Schedules:
    prior = ps.priors.Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), 2)
    return Schedules(Embedding(encoder(), prior, KernelDensity()), {name: abs}, 10)


NO_BUFFER, ONE_NUMBER = r"one of .*'teacher\.momentum'.*, got", "is one real number"
UNTIL, FINITE = "until above 0 and at most 1", "finite numbers, got"
test_bad_arguments_are_refused = refusals(
    (lambda: linear(0.0, 1.0, until=0.0), ValueError, UNTIL),
    (lambda: linear(0.0, 1.0, until=-1.0), ValueError, UNTIL),
    (lambda: linear(0.0, 1.0, until=1.5), ValueError, UNTIL),
    (lambda: linear(0.0, 1.0, until=math.nan), ValueError, UNTIL),
    (lambda: geometric(0.0, 1.0), ValueError, r"use linear\(0.0, end\)"),
    (lambda: geometric(1, -1), ValueError, "end as a positive finite number"),
    (lambda: byol_with("momentum"), ValueError, NO_BUFFER),
    (lambda: byol_with("network.0.weight"), ValueError, NO_BUFFER),
    (lambda: within_own_prior("prior.one"), ValueError, ONE_NUMBER),
    (lambda: dino_with("centre"), ValueError, ONE_NUMBER),
    (lambda: dino_with("steps"), ValueError, ONE_NUMBER),
    (lambda: scheduled(abs, total=None), ValueError, "data of known length"),
    (lambda: scheduled(lambda t: math.nan), ValueError, FINITE),
    (lambda: scheduled(lambda t: math.inf), ValueError, FINITE),
    (lambda: scheduled(lambda t: math.nan if t == 1 else 1.0), ValueError, FINITE),
    (lambda: scheduled(lambda t: None), TypeError, "to return a number"),
    (lambda: scheduled(lambda t: "1"), TypeError, "to return a number"),
    (lambda: scheduled(lambda t: torch.tensor(1.0)), TypeError, "to return a number"),
)


def test_a_number_that_is_not_finite_is_refused_in_its_step():
    inside = scheduled(lambda t: math.inf if t == 0.5 else 1.0)
    inside.set(4)
    with pytest.raises(ValueError, match=r"finite numbers, got .* at t = 0\.5"):
        inside.set(5)


@pytest.mark.parametrize("bad", [-1.0, 0.0])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_scheduled_hyper_parameter_stays_in_its_range(bad, at):
    objective = nn.ModuleDict({"prior": ps.priors.Spherical(3, 5.0)})

    def schedule(share: float) -> float:
        return bad if share == at else 5.0

    name = "prior.concentration.fixed"
    with pytest.raises(
        ValueError, match=f"as concentration is, got {bad} at t = {at:g};"
    ):
        Schedules(objective, {name: schedule}, 10).set(5)
    Schedules(objective, {name: linear(5.0, 2.0)}, 10).set(5)
    assert "concentration=3.5 (set, from 5.0)" in repr(objective)


RANGES = {  # bad and good numbers of every buffer with a range
    "VAE": ("beta", -0.1, 0.0),
    "SimVAE": ("label_weight", -0.1, 2.0),
    "DINO": ("teacher_temperature", 0.0, 0.1),
    "DINO, centre": ("centre_momentum", 1.1, 1.0),
    "InstanceDiscrimination": ("momentum", 1.0, 0.0),
    "BYOL": ("teacher.momentum", 1.01, 1.0),
    "MoCo": ("teacher.momentum", -0.01, 0.0),
    "PID": ("weight", -1.0, 0.0),
    "DSA": ("anchor", -1.0, 3.0),
    "DSA, weight": ("weight", -1.0, 3.0),
}


def ranged(name: str) -> nn.Module:
    """The objective of a row of RANGES."""
    prior = ps.priors.Independent(2) if name == "VAE" else ps.priors.Gaussian(2)
    joint = ps.Joint(
        prior=prior,
        likelihood=ps.likelihoods.Gaussian(),
        encoder=nn.Linear(3, 2),
        decoder=nn.Linear(2, 3),
    )
    encoder, limits = nn.Linear(3, 4), ps.limits
    base = limits.SimCLR(encoder)
    return {
        "VAE": lambda: limits.VAE(joint),
        "SimVAE": lambda: limits.SimVAE(joint),
        "DINO": lambda: limits.DINO(encoder, components=3),
        "InstanceDiscrimination": lambda: limits.InstanceDiscrimination(encoder, 9),
        "BYOL": lambda: limits.BYOL(encoder, dim=4),
        "MoCo": lambda: limits.MoCo(encoder, queue=8, dim=4),
        "PID": lambda: limits.PID(base, 3, 9, dim=4),
        "DSA": lambda: limits.DSA(base, dim=4),
    }[name.split(",")[0]]()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_scheduled_number_stays_in_the_range_of_its_argument(name, at):
    buffer, bad, good = RANGES[name]
    objective = ranged(name)

    def schedule(share: float) -> float:
        return bad if share == at else good

    wanted = f"schedule of {buffer!r} at t = {at:g} .*got {bad}"
    with pytest.raises(ValueError, match=f"{wanted}|{buffer!r} at t = {at:g} below 1"):
        Schedules(objective, {buffer: schedule}, 10).set(5)
    Schedules(objective, {buffer: lambda t: good}, 10).set(5)
    assert float(objective.get_buffer(buffer)) == good


def test_every_registered_number_has_its_range_tested():
    tested = {RANGES[name][0] for name in RANGES}
    for name in RANGES:
        for place, module in ranged(name).named_modules():
            for leaf in vars(module).get("_varying", ()):
                assert f"{place}.{leaf}".lstrip(".") in tested
