r"""Data parallelism over processes (ranks), for objectives that couple items.

Each of W ranks has its share of a batch. An objective that couples items all-gathers
the representations, so that every rank has the value of the whole batch. The gradients
of the parameters are averaged over the ranks (all-reduce), as in
`DistributedDataParallel`, and equal those of one process with the whole batch. Values
that are means over items, such as an ELBO, need no gathering.

`gather`, `all_reduce_mean` and `from_main` call torch's functional collectives, so that
they are traced and compiled with the objective. Rank 0 is the main process.
"""

import atexit
import importlib
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

__all__ = ["all_reduce_mean", "any_rank", "average", "barrier", "broadcast"]
__all__ += ["broadcast_object", "from_main", "gather", "gather_to_cpu", "is_main"]
__all__ += ["rank", "single_process", "start", "world_size"]

# The variables that torchrun sets for the processes that it starts.
ENVIRONMENT = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


class _State(threading.local):  # Dynamo cannot trace a ContextVar
    single = False


_state = _State()


def start() -> None:
    """Join the process group of torchrun, until the program ends.

    On a machine with CUDA each rank gets a device of its own, which becomes the current
    one. Only rank 0 logs this package's warnings. Without torchrun, or if
    torch.distributed is initialised already, nothing happens.

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
                f"for local rank {place}; lower --nproc-per-node, or set "
                "CUDA_VISIBLE_DEVICES= to fit on the CPU"
            )
        torch.cuda.set_device(place)
        backend = "cpu:gloo,cuda:nccl"
    # Default arguments of this module keep the process group that exists at its first
    # import. If Dynamo imported it during a fit, the group's threads would outlive
    # destroy_process_group and could abort the program while Python shuts down.
    importlib.import_module("torch.distributed.nn.functional")
    distributed.init_process_group(backend)
    if not is_main():  # every rank would log the same warnings
        logging.getLogger("probssl").setLevel(logging.ERROR)
    atexit.register(_end)


def world_size() -> int:
    """The number of ranks; 1 without torch.distributed and in `single_process`."""
    if _state.single or not distributed.is_available():
        return 1
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The rank of this process, from 0."""
    return 0 if world_size() == 1 else distributed.get_rank()


def is_main() -> bool:
    """Whether this is the main process, of rank 0."""
    return rank() == 0


@contextmanager
def single_process() -> Iterator[None]:
    """A context without communication: the world size is 1."""
    before, _state.single = _state.single, True
    try:
        yield
    finally:
        _state.single = before


def gather(x: Shaped[Tensor, "batch *shape"]) -> Shaped[Tensor, "all *shape"]:
    """All-gather: the rows of all ranks, in the order of the ranks.

    The gradient of a row is the sum of the gradients of all ranks. All ranks must have
    the same number of rows.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def all_reduce_mean(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """All-reduce: the mean over the ranks; the gradient is averaged as well."""
    return x if world_size() == 1 else _Mean.apply(x)


def from_main(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Broadcast: the tensor of rank 0 on all ranks, without a gradient."""
    return x if world_size() == 1 else _collective("broadcast", x.detach(), 0)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by their means over the ranks (all-reduce)."""
    if world_size() > 1:
        _replace(tensors, lambda flat: _sum(flat) / world_size())


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replace tensors in place by those of rank 0 (broadcast)."""
    if world_size() > 1:
        _replace(tensors, from_main)


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank."""
    return flag if world_size() == 1 else bool(gather_to_cpu(torch.tensor(flag)).any())


def gather_to_cpu(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "process *shape"]:
    """All-gather a tensor to the CPU; the first axis of the result is the rank."""
    if world_size() == 1:
        return x[None]
    # Plain values need a CUDA device if the backend takes nothing else.
    host = "cpu" if "cpu" in distributed.get_backend_config() else "cuda"
    return gather(x[None].to(host)).cpu()


def broadcast_object(value: Any) -> Any:
    """The value of rank 0, which is pickled, on all ranks."""
    values = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Wait until all ranks are here."""
    any_rank(False)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _collective("all_gather_into_tensor", x, world_size())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad).chunk(world_size())[rank()]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x) / world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad) / world_size()


def _sum(x: Tensor) -> Tensor:
    return _collective("all_reduce", x, "sum")


def _collective(name: str, x: Tensor, argument: Any) -> Tensor:
    """The result of a functional collective over all ranks."""
    group = distributed.group.WORLD
    assert group is not None  # the world size is above 1
    call = getattr(torch.ops._c10d_functional, name)
    result = call(x.contiguous(), argument, group.group_name)
    return torch.ops._c10d_functional.wait_tensor(result)


@torch.no_grad()
def _replace(tensors: Sequence[Tensor], call: Callable[[Tensor], Tensor]) -> None:
    """Apply a collective in place, one call for each device and dtype."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for group in groups.values():
        flat = call(torch.cat([tensor.reshape(-1) for tensor in group]))
        pieces = flat.split([tensor.numel() for tensor in group])
        for tensor, piece in zip(group, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))


def _end() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
