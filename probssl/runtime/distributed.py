r"""Several processes, each with its share of a batch: what couples items sees them all.

With W processes, each with its own items, an objective gathers the representations and
has the value of the whole batch on every one of them. Gradients of the parameters are
then averaged over the processes, as `DistributedDataParallel` does, and are those of
one process with the whole batch. Values that are means over items, such as an ELBO,
need no gathering: their average is the whole batch's already.

`gather`, `mean` and `shared` are made of torch's functional collectives, so that they
can be traced and compiled together with the objective that calls them.
"""

import atexit
import importlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["agreed", "agreed_bytes", "alone", "anywhere", "average", "broadcast"]
__all__ += ["collected", "first", "gather", "mean", "number", "rank", "shared"]
__all__ += ["start", "wait"]

# What torchrun tells the processes that it starts.
ENVIRONMENT = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class _State(threading.local):  # which, unlike a ContextVar, Dynamo can trace
    alone = False


_state = _State()


def start() -> None:
    """Join the processes that torchrun started, until the program ends.

    On a machine with CUDA each of them has a device of its own, the current one from
    here on. The first alone logs this package's warnings. Nothing happens without
    torchrun, or if torch.distributed is set up.

    Raises:
        ValueError: If there are more processes on the machine than CUDA devices.
    """
    if not distributed.is_available() or distributed.is_initialized():
        return
    if not os.environ.keys() >= ENVIRONMENT or int(os.environ["WORLD_SIZE"]) == 1:
        return
    backend, place = "gloo", int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        devices = torch.cuda.device_count()
        if place >= devices:
            raise ValueError(
                f"expected a CUDA device for each process of a machine, got {devices} "
                f"for process {place + 1}; lower --nproc-per-node, or set "
                "CUDA_VISIBLE_DEVICES= to fit on the CPU"
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    # This module's defaults are the group there is when it is first imported. Dynamo
    # imports it, in a fit; the group would then outlive its end, and its threads, which
    # free tensors, might abort the program while Python shuts down.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group(backend)
    if not first():  # warnings would come from all of them alike
        logging.getLogger(__package__).setLevel(logging.ERROR)
    atexit.register(_end)


def number() -> int:
    """How many processes there are; 1 without torch.distributed, and `alone`."""
    if _state.alone or not distributed.is_available():
        return 1
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if number() == 1 else distributed.get_rank()


def first() -> bool:
    """Whether this is the first of them."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process is the only one, and nothing communicates."""
    before, _state.alone = _state.alone, True
    try:
        yield
    finally:
        _state.alone = before


def gather(x: Shaped[Tensor, "batch *shape"]) -> Shaped[Tensor, "all *shape"]:
    """Return the rows of all processes, in the order of their ranks.

    The gradient of a row is the sum of those from all processes. All must have equally
    many rows.
    """
    return x if number() == 1 else _Gather.apply(x)


def mean(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the mean over the processes; so is the gradient's."""
    return x if number() == 1 else _Mean.apply(x)


def shared(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the first process's x, without a gradient, on all of them."""
    return x if number() == 1 else _called("broadcast", x.detach(), 0)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over the processes, all at once."""
    if number() > 1:
        _together(tensors, lambda flat: _sum(flat) / number())


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process, all at once."""
    if number() > 1:
        _together(tensors, shared)


def anywhere(flag: bool) -> bool:
    """Whether a flag is set on any of the processes."""
    return flag if number() == 1 else bool(collected(torch.tensor(flag)).any())


def collected(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "process *shape"]:
    """Every process's x, a tensor on the CPU, in the order of their ranks."""
    return gather(x[None].to(_host())).cpu() if number() > 1 else x[None]


def agreed(value: Any) -> Any:
    """The first process's value, of anything JSON can hold, on all of them."""
    if number() == 1:
        return value
    return json.loads(agreed_bytes(json.dumps(value).encode() if first() else b""))


def agreed_bytes(data: bytes) -> bytes:
    """The first process's bytes on all of them."""
    if number() == 1:
        return data
    size = int(shared(torch.tensor(len(data), device=_host())))
    content = torch.zeros(size, dtype=torch.uint8)
    if first() and size:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return shared(content.to(_host())).cpu().numpy().tobytes()


def wait() -> None:
    """Go on when all processes have come here."""
    anywhere(False)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _called("all_gather_into_tensor", x, number())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _sum(slope).chunk(number())[rank()]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x) / number()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _sum(slope) / number()


def _sum(x: Tensor) -> Tensor:
    return _called("all_reduce", x, "sum")


def _called(name: str, x: Tensor, argument: Any) -> Tensor:
    """The result of a functional collective among all processes."""
    group = distributed.group.WORLD
    assert group is not None  # there is more than one
    call = getattr(torch.ops._c10d_functional, name)
    result = call(x.contiguous(), argument, group.group_name)
    return torch.ops._c10d_functional.wait_tensor(result)


@torch.no_grad()
def _together(tensors: Sequence[Tensor], call: Callable[[Tensor], Tensor]) -> None:
    """Replace tensors by what becomes of them, one call for all that are alike."""
    alike: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for part in alike.values():
        flat = call(torch.cat([tensor.reshape(-1) for tensor in part]))
        pieces = flat.split([tensor.numel() for tensor in part])
        for tensor, piece in zip(part, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))


def _host() -> str:
    """Where plain values travel: on the CPU, unless only CUDA's tensors can."""
    return "cpu" if "cpu" in distributed.get_backend_config() else "cuda"


def _end() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
