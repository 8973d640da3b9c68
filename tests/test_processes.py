"""Two processes with half the batch each are one process with all of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as distributed
from catalogue import ITEMS, OBJECTIVES, batch
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl import limits, processes
from probssl.distributions import PowerSpherical

WORLD, STEPS = 2, 2
Outcome = dict[str, Tensor]


@contextmanager
def noise_of_items(rows: Tensor) -> Iterator[None]:
    """Normal draws that belong to the items, whichever process has them."""
    generator = torch.Generator().manual_seed(3)

    def standard_normal(shape: torch.Size, dtype: torch.dtype, device: object):
        # The items are the third axis from the end; what has no items is shared.
        if len(shape) < 3 or shape[-3] != len(rows):
            return torch.randn(shape, generator=generator, dtype=dtype)
        whole = torch.randn(
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
    with masks, sphere, plane:
        yield


def outcome(name: str, rows: Tensor) -> Outcome:
    """Values and gradients of some steps on these items, and the state at the end."""
    torch.manual_seed(0)
    objective, found = OBJECTIVES[name]().train(), {}
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.01
    )
    for step in range(STEPS):
        whole = batch(step)
        part = ps.Batch(whole.views[rows], whole.clean[rows], whole.index[rows])
        with noise_of_items(rows):
            value = sum(objective(part))
        optimizer.zero_grad()
        (-value).backward()
        found[f"value {step}"] = processes.mean(value.detach())
        for key, parameter in objective.named_parameters():
            if parameter.grad is not None:
                parameter.grad = processes.mean(parameter.grad)
                found[f"gradient {step} of {key}"] = parameter.grad.clone()
        optimizer.step()
    return found | {f"state {k}": v for k, v in objective.state_dict().items()}


def one_of_them(rank: int, folder: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", place, rank=rank, world_size=WORLD)
    rows = torch.arange(ITEMS).chunk(WORLD)[rank]
    found = {name: outcome(name, rows) for name in OBJECTIVES}
    found["gather"] = {"x": processes.gather(rows), "n": torch.tensor(WORLD)}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_them, (str(folder),), WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_have_the_value_gradient_and_state_of_one(name, found, float64):
    alone = outcome(name, torch.arange(ITEMS))
    for rank in range(WORLD):
        assert found[rank][name].keys() == alone.keys()
        for key, value in alone.items():
            assert_close(
                found[rank][name][key], value, rtol=1e-10, atol=1e-10, msg=f"{key}"
            )


def test_rows_are_gathered_in_the_order_of_the_ranks(found):
    for rank in range(WORLD):
        assert_close(found[rank]["gather"]["x"], torch.arange(ITEMS))


def test_one_process_gathers_nothing():
    x = torch.randn(3, 2)
    assert processes.gather(x) is x and processes.mean(x) is x
    assert processes.number() == 1
