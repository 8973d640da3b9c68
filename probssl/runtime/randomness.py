"""The state of torch's global generators: kept in checkpoints, held in validation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from .distributed import broadcast_object, gather_to_cpu, is_main, rank, world_size

__all__ = ["drawn_order", "go_on", "random_state", "random_states"]
__all__ += ["same_randomness", "set_random_state"]


def drawn_order() -> Generator:
    """A generator for the order of the items, seeded by the first process.

    The others draw their noise, from here on, from a seed that is made of it.
    """
    seed = broadcast_object(int(torch.randint(2**63 - 1, ())))
    _seed_others(seed)
    return Generator().manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the CPU's generator and of the device's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go back to a state; that of another kind of device is passed over."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def random_states(device: torch.device, order: Generator) -> list[dict[str, Tensor]]:
    """The states of all processes, with that of the order of their items."""
    state = random_state(device) | {"order": order.get_state()}
    every = {name: gather_to_cpu(part) for name, part in state.items()}
    return [{name: every[name][i] for name in state} for i in range(world_size())]


def go_on(
    states: Sequence[Mapping[str, Tensor]], device: torch.device, order: Generator
) -> None:
    """Go back to the states of all processes.

    If there are more or fewer now, the first one has its own, the order of the items
    included; the others have noise from a new seed, which follows from the order.
    """
    if len(states) == world_size():
        set_random_state(states[rank()], device)
        order.set_state(states[rank()]["order"])
        return
    order.set_state(states[0]["order"])
    if is_main():
        set_random_state(states[0], device)
    fork = order.clone_state()
    _seed_others(int(torch.randint(2**63 - 1, (), generator=fork)))


@contextmanager
def same_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the same random numbers every time; leave the generators as they were."""
    before = random_state(device)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(before, device)


def _seed_others(seed: int) -> None:
    """Seed the global generators of all processes but the first."""
    if not is_main():
        torch.manual_seed((seed + rank()) % 2**63)
