"""Two processes with half the batch each are one process with all of it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
import torch.distributed as distributed
from helpers.catalogue import DIM, EVENT, ITEMS, OBJECTIVES, batch, encoder, joint
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl import limits
from probssl.distributions import PowerSpherical
from probssl.runtime import distributed as processes
from probssl.train import Step, graph
from probssl.train.compiled import CompiledStep

WORLD, STEPS = 2, 2
Outcome = dict[str, Tensor]
TRACED = ("SimCLR", "VICReg", "MoCo", "SimCLR, random temperature")


def random_prior() -> ps.priors.Prior:
    return ps.priors.Gaussian(DIM, dist.LogNormal(math.log(0.5), 0.3))


class Absent(limits.SimVAE):
    """Batch norm in all networks; the second modality is seen in the first process."""

    def __init__(self) -> None:
        def net(inputs: int, outputs: int) -> nn.Module:
            norm = ps.nn.BatchNorm1d(5)
            return nn.Sequential(nn.Linear(inputs, 5), norm, nn.Linear(5, outputs))

        networks = (
            ps.nn.PerModality([net(a, b) for _ in range(2)])
            for a, b in ((EVENT, DIM), (DIM, EVENT))
        )
        both = ps.likelihoods.Gaussian(0.5), ps.likelihoods.Gaussian(0.7)
        super().__init__(ps.Joint(ps.priors.Gaussian(DIM), both, *networks))

    def forward(self, batch: ps.Batch) -> ps.Terms:
        seen = batch.rows < ITEMS // 2 - 1
        present = torch.stack([torch.ones_like(seen), seen], 1)
        return super().forward(batch._replace(present=present))


# With random numbers that are not the items' own, but those of all processes.
RANDOM: dict[str, Callable[[], nn.Module]] = {
    "SimCLR, random temperature": lambda: limits.SimCLR(
        encoder(), temperature=dist.LogNormal(-1.0, 0.5)
    ),
    "SimVAE, random scale": lambda: limits.SimVAE(joint(random_prior())),
    "SimVAE, random scale, three particles": lambda: limits.SimVAE(
        joint(random_prior()), bound=ps.bounds.ELBO(3)
    ),
    "SimVAE, absent views": Absent,
    "W-MSE, divided": lambda: limits.WMSE(encoder(), size=4, rounds=2),
}
ALL = OBJECTIVES | RANDOM


def objective_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    objective = ALL[name]().train()
    for module in objective.modules():
        if "population" in module._buffers:
            module.population = torch.tensor(float(ITEMS))
    return objective


def part_of(rows: Tensor, step: int = 0) -> ps.Batch:
    whole = batch(step)
    return ps.Batch(whole.views[rows], whole.clean[rows], whole.index[rows])


@contextmanager
def noise_of_items(rows: Tensor) -> Iterator[None]:
    """Normal draws that belong to the items, whichever process has them."""
    generator, randn = torch.Generator().manual_seed(3), torch.randn

    def standard_normal(shape: torch.Size, dtype: torch.dtype, device: object):
        # The items are the third axis from the end; the rest is each process's own.
        if len(shape) < 3 or shape[-3] != len(rows):
            return randn(shape, dtype=dtype)
        whole = randn(
            (*shape[:-3], ITEMS, *shape[-2:]), generator=generator, dtype=dtype
        )
        return whole[..., rows, :, :]

    def on_the_sphere(guide: PowerSpherical, shape: torch.Size = ()) -> Tensor:
        """Some draw on the sphere: the exact one rejects, as often as it likes."""
        whole = (*shape, *guide.loc.shape)
        noise = standard_normal(whole, guide.loc.dtype, guide.loc.device)
        return normalize(
            guide.loc + noise / guide.concentration.sqrt()[..., None], dim=-1
        )

    def mask(objective: limits.MaskedAutoencoder, x: Tensor) -> Tensor:
        """Hidden by what is there: a mask that belongs to the item."""
        return x > x.median(-1, keepdim=True).values

    masks = mock.patch.object(limits.MaskedAutoencoder, "mask", mask)
    sphere = mock.patch.object(PowerSpherical, "rsample", on_the_sphere)
    plane = mock.patch("torch.distributions.normal._standard_normal", standard_normal)
    others = mock.patch("torch.randn", standard_normal)
    with masks, sphere, plane, others:
        yield


def outcome(name: str, rows: Tensor) -> Outcome:
    """Values and gradients of some steps on these items, and the state at the end."""
    objective, found = objective_of(name), {}
    torch.manual_seed(processes.rank())
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.01
    )
    for step in range(STEPS):
        part = part_of(rows, step)
        with noise_of_items(rows):
            value = sum(objective(part))
        optimizer.zero_grad()
        (-value).backward()
        found[f"value {step}"] = processes.all_reduce_mean(value.detach())
        for key, parameter in objective.named_parameters():
            if parameter.grad is not None:
                parameter.grad = processes.all_reduce_mean(parameter.grad)
                found[f"gradient {step} of {key}"] = parameter.grad.clone()
        optimizer.step()
    return found | {f"state {k}": v for k, v in objective.state_dict().items()}


def compiled(name: str, rows: Tensor) -> dict[str, Outcome]:
    """The gradient of a batch and the state after it, eager and compiled."""
    found = {}
    for key, kind in {"eager": Step, "compiled": CompiledStep}.items():
        objective = objective_of(name)
        step = kind(objective, torch.optim.SGD(objective.parameters()))
        torch.manual_seed(processes.rank())
        terms = step.gradient(part_of(rows))
        gradient = {k: p.grad for k, p in objective.named_parameters()}
        found[key] = objective.state_dict() | {"terms": torch.tensor(list(terms))}
        found[key] |= {
            f"gradient of {k}": g for k, g in gradient.items() if g is not None
        }
    assert step.reason is None
    return found


def together(rows: Tensor) -> Outcome:
    """What each of the functions does with the rows of this process."""
    mine = float(processes.rank())
    averaged = [torch.full((2, 3), mine).mT, torch.tensor(mine).long(), rows.double()]
    processes.average(averaged[::2])
    equal = [torch.full((2, 3), mine).mT, rows.clone(), torch.tensor(mine > 0)]
    processes.broadcast(equal)
    agreed = processes.broadcast_object({"rank": processes.rank(), "inf": math.inf})
    some, none = processes.any_rank(mine == 1), processes.any_rank(False)
    if processes.is_main():  # if that communicated, it would be out of turn
        for hyper in random_prior().eval().random():
            hyper.posterior().rsample()
    with processes.single_process():
        apart = {"number": processes.world_size(), "first": processes.is_main()}
        apart["anywhere"] = processes.any_rank(mine == 1)
        single = (
            processes.gather(rows),
            processes.all_reduce_mean(rows),
            processes.from_main(rows),
        )
        apart["own"] = all(torch.equal(x, rows) for x in single)
    flags = {
        "some": some,
        "none": none,
        "agreed": agreed == {"rank": 0, "inf": math.inf},
    }
    flags |= apart | {"world": processes.world_size(), "rank": processes.rank()}
    tensors = {f"average {i}": x for i, x in enumerate(averaged)}
    tensors |= {f"broadcast {i}": x for i, x in enumerate(equal)}
    tensors |= {"gather": processes.gather(rows), "shared": processes.from_main(rows)}
    return tensors | {key: torch.tensor(value) for key, value in flags.items()}


def one_of_them(rank: int, folder: str, which: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", place, rank=rank, world_size=WORLD)
    rows = torch.arange(ITEMS).chunk(WORLD)[rank]
    if which == "compiled":
        found = {name: compiled(name, rows) for name in TRACED}
    else:
        found = {name: outcome(name, rows) for name in ALL}
        graph.inductor = lambda traced, values: traced
        found["traced"] = {name: compiled(name, rows) for name in TRACED}
        found["together"] = together(rows)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def all_of_them(folder: Path, which: str) -> list[dict[str, Outcome]]:
    torch.multiprocessing.spawn(one_of_them, (str(folder), which), WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    return all_of_them(tmp_path_factory.mktemp("processes"), "eager")


@pytest.mark.parametrize("name", ALL)
def test_two_processes_have_the_value_gradient_and_state_of_one(name, found, float64):
    alone = outcome(name, torch.arange(ITEMS))
    for rank in range(WORLD):
        assert found[rank][name].keys() == alone.keys()
        for key, value in alone.items():
            assert_close(
                found[rank][name][key], value, rtol=1e-10, atol=1e-10, msg=f"{key}"
            )


@pytest.mark.parametrize("name", TRACED)
def test_a_step_of_two_processes_can_be_traced(name, found):
    for rank in range(WORLD):
        both = found[rank]["traced"][name]
        assert_close(both["compiled"], both["eager"], rtol=1e-10, atol=1e-10)


@pytest.mark.slow  # Inductor takes half a minute for each objective
def test_a_step_of_two_processes_can_be_compiled(tmp_path):
    for found in all_of_them(tmp_path, "compiled"):
        for both in found.values():
            assert_close(both["compiled"], both["eager"], rtol=1e-10, atol=1e-10)


def test_rows_are_gathered_in_the_order_of_the_ranks(found):
    for rank in range(WORLD):
        assert_close(found[rank]["together"]["gather"], torch.arange(ITEMS))


def test_tensors_of_all_kinds_are_averaged_and_shared_at_once(found, float64):
    parts = torch.arange(ITEMS).chunk(WORLD)
    for rank in range(WORLD):
        has = found[rank]["together"]
        assert_close(has["average 0"], torch.full((3, 2), 0.5))
        assert has["average 1"] == rank  # was not among them
        assert_close(has["average 2"], torch.stack(parts).double().mean(0))
        assert_close(has["broadcast 0"], torch.zeros(3, 2))
        assert_close(has["broadcast 1"], parts[0])
        assert not has["broadcast 2"]
        assert_close(has["shared"], parts[0])


def test_flags_and_values_are_those_of_all_and_apart_those_of_one(found):
    for rank in range(WORLD):
        has = found[rank]["together"]
        assert has["world"] == WORLD and has["rank"] == rank
        assert has["some"] and not has["none"] and has["agreed"]
        assert has["number"] == 1 and has["first"] and has["own"]
        assert bool(has["anywhere"]) == (rank == 1)


def test_one_process_gathers_nothing():
    x = torch.randn(3, 2)
    for same in (processes.gather, processes.all_reduce_mean, processes.from_main):
        assert same(x) is x
    assert processes.world_size() == 1 and processes.rank() == 0 and processes.is_main()
    before = x.clone()
    processes.average([x])
    processes.broadcast([x])
    processes.barrier()
    assert torch.equal(x, before) and processes.any_rank(True)
    assert processes.broadcast_object(x) is x


def test_without_torchrun_nothing_is_started(monkeypatch):
    processes.start()
    assert not distributed.is_initialized()
    for name in processes.ENVIRONMENT:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    processes.start()
    assert not distributed.is_initialized()


@pytest.mark.parametrize("kind", [ps.nn.BatchNorm1d, ps.nn.BatchNorm2d])
def test_a_cumulative_average_of_moments_is_torchs_and_can_be_traced(kind, float64):
    shape = (6, 3) if kind is ps.nn.BatchNorm1d else (6, 3, 2, 2)
    ours, theirs = kind(3, momentum=None), getattr(nn, kind.__name__)(3, momentum=None)
    for _ in range(3):
        x = torch.randn(shape)
        assert_close(ours(x), theirs(x))
    assert_close(ours.state_dict(), theirs.state_dict())
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    trace = make_fx(lambda s, y: functional_call(ours, s, (y,)), tracing_mode="fake")
    graph = trace(state, x)
    assert_close(graph(state, x), theirs(x))
    assert_close(state, dict(theirs.state_dict()))
