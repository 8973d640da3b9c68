"""The state of torch's global random generators, for checkpoints and validation."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from .distributed import broadcast_object, gather_to_cpu, is_main, rank, world_size
from .threads import LOCK

__all__ = ["order_generator", "random_state", "random_states", "restored_randomness"]
__all__ += ["same_randomness", "set_random_state", "set_random_states"]


def order_generator() -> Generator:
    """A generator for the order of the items, with a seed drawn on rank 0.

    It reseeds the global generators of the other ranks from the same seed, each anew.
    """
    with LOCK:  # lest another thread restores the state and draws the same seed
        seed = broadcast_object(int(torch.randint(2**63 - 1, ())))
    _seed_others(seed)
    return Generator().manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore a state; states of other device types are ignored."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def random_states(device: torch.device, order: Generator) -> list[dict[str, Tensor]]:
    """The states of all ranks, and of the generator of the order of the items."""
    state = random_state(device) | {"order": order.get_state()}
    every = {name: gather_to_cpu(part) for name, part in state.items()}
    return [{name: every[name][i] for name in state} for i in range(world_size())]


def set_random_states(
    states: Sequence[Mapping[str, Tensor]], device: torch.device, order: Generator
) -> None:
    """Restore the states of all ranks.

    With another world size, rank 0 gets its own state and the order of the items; the
    other ranks are reseeded from the order.
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
def restored_randomness(devices: Sequence[Any] | None = ()) -> Iterator[None]:
    """A context after which the random state of the CPU, and of devices, is restored.

    Other threads wait meanwhile, lest they draw the same numbers again.

    Arguments:
        devices: CUDA devices; None means all.
    """
    with LOCK, torch.random.fork_rng(devices):
        yield


class same_randomness:
    """A context with a fixed seed, after which the random state is restored.

    It holds no lock: Lightning enters it in one hook, and leaves it in another unless
    an error comes between. A class: one written as a generator would restore the state
    whenever it is collected, if an error has kept the context from its end.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device

    def __enter__(self) -> None:
        self.before = random_state(self.device)
        torch.default_generator.manual_seed(self.seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(self.seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        set_random_state(self.before, self.device)


def _seed_others(seed: int) -> None:
    """Seed the global generators of all ranks but rank 0."""
    if not is_main():
        torch.manual_seed((seed + rank()) % 2**63)
