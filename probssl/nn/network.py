r"""Networks applied to the views of a batch: one for all views, or one per modality."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from ..arguments import whole
from ..covariates import (
    Covariates,
    Named,
    at_rows,
    declares,
    flat_views,
    of_modalities,
)
from ..runtime.distributed import world_size
from ..runtime.precision import lowered
from ..runtime.randomness import restored_randomness
from .base import LONE, Decoder, Encoder, called_plainly, network, output_of, unmoved
from .mlp import Projector

__all__ = [
    "CHECKED",
    "Network",
    "PerModality",
    "asks",
    "check_items_apart",
    "check_width",
    "dim_of",
    "each_view",
    "given_views",
    "in_evaluation",
    "items_apart",
    "known_dim",
    "masks_of",
    "mixes_rows",
    "nets_of",
    "present_only",
]

CHECKED = 8  # items that are encoded and decoded beside others


class PerModality(nn.Module):
    """One network for each modality, in the order of `Batch.views`.

    Arguments:
        parts: The networks: encoders with one dimension of z, or decoders.

    Raises:
        ValueError: If there is none, or encoders differ in their dimension.
    """

    parts: nn.ModuleList

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        for part in parts:
            network("parts", part, covariates=True)
        dims: set[Any] = {part.dim for part in parts if hasattr(part, "dim")}
        if not parts or len(dims) > 1:
            found = f"the dimensions {sorted(dims)}" if dims else "none"
            raise ValueError(
                "expected a network for each modality, all with one dimension of z, "
                f"got {found}; build all of them with the same dim, and rename an "
                "attribute dim of decoders that is something else"
            )
        self.parts = nn.ModuleList(parts)
        self.dim = dims.pop() if dims else None

    def __len__(self) -> int:
        return len(self.parts)

    def forward(
        self,
        parts: Sequence[Tensor],
        known: Sequence[Covariates | None] | None = None,
    ) -> tuple[Tensor, ...]:
        """Apply each network to the tensor of its modality.

        Arguments:
            known: The covariates of each modality, None of networks that take none.

        Raises:
            ValueError: If the numbers of tensors and networks differ.
        """
        if isinstance(parts, Tensor) or len(parts) != len(self.parts):
            found = "one tensor" if isinstance(parts, Tensor) else f"{len(parts)} parts"
            raise ValueError(
                f"expected {len(self.parts)} parts, one for each modality, got "
                f"{found}; give Batch.views as a tuple of so many tensors"
            )
        known = [None] * len(parts) if known is None else known
        each = zip(self.parts, parts, known, strict=True)
        return tuple(output_of(*one) for one in each)


def asks(module: nn.Module) -> bool:
    """Whether a network, or that of a modality, takes covariates."""
    return any(map(declares, nets_of(module)))


def given_views(
    nets: Sequence[nn.Module],
    covariates: Covariates,
    shapes: Sequence[Sequence[int]],
) -> list[Named | None]:
    r"""The covariates of the rows that each network gets; None where it takes none.

    Arguments:
        shapes: Of each modality the axes that become rows, (\*draws, batch, view).
    """
    each = of_modalities(covariates, [shape[-1] for shape in shapes])
    return [
        flat_views(known, shape) if known is not None and declares(net) else None
        for net, known, shape in zip(nets, each, shapes, strict=True)
    ]


def nets_of(module: nn.Module) -> list[nn.Module]:
    """The networks of the modalities; a list of the module itself if it is for all."""
    return list(module.parts) if isinstance(module, PerModality) else [module]


def masks_of(
    parts: Sequence[Tensor], present: Bool[Tensor, "batch view"]
) -> list[Bool[Tensor, " n"]]:
    """Which of the flattened views of each modality are present."""
    masks = present.split([part.shape[1] for part in parts], 1)
    return [mask.flatten() for mask in masks]


class Network(nn.Module):
    r"""Encoder and projection head (projector) as one network: views to z.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); for several modalities a
            `PerModality`.
        projector: The projection head, a module (n, dim) -> (n, dim').
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(
        self, views: Tensor | tuple[Tensor, ...]
    ) -> Float[Tensor, "batch view dim"]:
        z = each_view(self.encoder, views)
        return z if self.projector is None else each_view(self.projector, z)


def each_view(
    encoder: nn.Module,
    views: Tensor | tuple[Tensor, ...],
    present: Bool[Tensor, "batch view"] | None = None,
    covariates: Covariates | None = None,
) -> Float[Tensor, "batch view dim"]:
    r"""Encode every view of a batch; z of several modalities or sizes is concatenated.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), applied to all views, which may
            have several sizes; or a `PerModality`.
        views: Shape (batch, view, \*event), or a tuple of such tensors. For a
            `PerModality` a tensor with a view for each modality will do.
        present: Which views are present, see `present_only`; None means all.
        covariates: Those of items and views, for encoders that take them.
    """
    if isinstance(encoder, PerModality) and not isinstance(views, tuple):
        views = views.split(1, 1) if views.shape[1] == len(encoder) else views
    parts: tuple[Tensor, ...] = views if isinstance(views, tuple) else (views,)
    flat = [part.flatten(0, 1) for part in parts]
    nets = nets_of(encoder)
    nets = nets * len(parts) if len(nets) < len(parts) else nets
    known: list[Named | None] = [None] * len(parts)
    if covariates is not None:
        shapes = [part.shape[:2] for part in parts]
        known = given_views(nets[: len(parts)], covariates, shapes)
    if present is not None and called_plainly(encoder, type(encoder)):
        rows = zip(nets, flat, masks_of(parts, present), known, strict=True)
        encoded = [
            lowered(present_only, net, x, mask, None, own) for net, x, mask, own in rows
        ]
    elif isinstance(encoder, PerModality):
        own = (known,) if any(one is not None for one in known) else ()
        encoded = lowered(encoder, flat if isinstance(views, tuple) else flat[0], *own)
    else:
        encoded = [
            lowered(output_of, encoder, *one) for one in zip(flat, known, strict=True)
        ]
    z = [
        out.flatten(1).unflatten(0, part.shape[:2])
        for out, part in zip(encoded, parts, strict=True)
    ]
    return z[0] if len(z) == 1 else torch.cat(z, 1)


def present_only(
    net: nn.Module,
    x: Float[Tensor, "n *event"],
    present: Bool[Tensor, " n"],
    call: Callable[..., Any] | None = None,
    covariates: Named | None = None,
) -> Any:
    """Call a network on rows of which some are absent, which then change no other row.

    Where the network `mixes_rows`, it gets the present rows alone, and absent ones the
    output of a present one. Otherwise it gets all rows, whose number then is known
    beforehand, as compiled steps need: absent rows of x hold the values of a present
    one, as in `Batch.parts`. A lone present row, which has no variance, gets the
    running statistics of batch norm, as in evaluation, and does not change them.

    Arguments:
        present: Which rows are present.
        call: A function of x, and of covariates where some are given, that calls the
            network; by default the network itself.
        covariates: Those of the rows.
    """
    call = partial(output_of, net) if call is None else call
    own = () if covariates is None else (covariates,)
    if not mixes_rows(net) and (net.training or not any(map(_is_norm, net.modules()))):
        return call(
            x, *own
        )  # in evaluation other layers than its batch norm may mix rows
    if isinstance(x, FakeTensor) and not mixes_rows(net):
        return call(x, *own)
    if isinstance(x, FakeTensor):
        raise ValueError(
            f"expected all views to be present to trace {type(net).__name__}, "
            "whose batch norm would have another number of rows in every batch, got a "
            "mask; use group or layer norm"
        )
    rows = x[present]
    if len(rows):
        few = () if covariates is None else (at_rows(covariates, present),)
        position = (present.cumsum(0) - 1).clamp(min=0)
        lone = len(rows) == 1
        before = [buffer.clone() for buffer in net.buffers()] if lone else []
        try:
            found = call(rows, *few)
        except ValueError as error:
            if LONE not in str(error) and LONE not in str(error.__cause__):
                raise
            with _evaluated(net):
                for buffer, old in zip(net.buffers(), before, strict=True):
                    buffer.copy_(old)
                found = call(rows, *few)
        return tree_map_only(Tensor, lambda out: out[position], found)
    if world_size() > 1:  # other processes wait for the moments of this one
        few = () if covariates is None else (at_rows(covariates, present),)
        return tree_map_only(Tensor, lambda out: _zeros(out, len(x)), call(rows, *few))
    with _evaluated(net):  # a gradient of zero, and no moments
        return call(x, *own)


@contextmanager
def _evaluated(net: nn.Module) -> Iterator[None]:
    """Let batch norm take its running statistics meanwhile."""
    norms = [(norm, norm.training) for norm in net.modules() if _mixes(norm)]
    try:
        for norm, _ in norms:
            norm.training = False
        yield
    finally:
        for norm, mode in norms:
            norm.training = mode


def _zeros(out: Tensor, n: int) -> Tensor:
    return out.new_zeros(n, *out.shape[1:]) + out.sum()


def mixes_rows(network: nn.Module) -> bool:
    """Whether it holds batch norm that takes its moments over the rows of a call."""
    return any(map(_mixes, network.modules()))


def _mixes(norm: nn.Module) -> bool:
    untracked = isinstance(norm, _BatchNorm) and norm.running_mean is None
    return untracked or (_is_norm(norm) and norm.training)


def _is_norm(norm: nn.Module) -> bool:
    tracked = isinstance(norm, _InstanceNorm) and norm.running_mean is not None
    return tracked or isinstance(norm, _BatchNorm)


@contextmanager
def items_apart(module: nn.Module) -> Iterator[None]:
    """Refuse meanwhile to call batch norm that takes its moments over the rows.

    In evaluation mode this is batch norm without running statistics: what it makes of
    an item changes with the other items. Networks that are not called may have it.

    Raises:
        ValueError: Where it is called.
    """

    def refuse(name: str, norm: nn.Module, inputs: Any) -> None:
        raise ValueError(
            "expected networks that treat items one by one in evaluation mode, got "
            f"batch norm without running statistics, {name} ({type(norm).__name__}), "
            "by which what an item becomes changes with the other items of the batch; "
            "build it with track_running_stats=True and fit again, or take "
            "nn.GroupNorm or nn.LayerNorm"
        )

    mixing = {name: norm for name, norm in module.named_modules() if _mixes(norm)}
    hooks = [
        norm.register_forward_pre_hook(partial(refuse, name or "the network"))
        for name, norm in mixing.items()
    ]
    try:
        with _uncompiled() if mixing else nullcontext():  # compiled, none is called
            yield
    finally:
        for hook in hooks:
            hook.remove()


def check_items_apart(
    module: nn.Module, made: Callable[[Any], Tensor], views: Any
) -> float:
    """Raise a ValueError if what a network makes of an item depends on other items.

    Returned is the largest difference of two calls on the same items, beyond rounding:
    above 0 the network draws random numbers.

    In evaluation mode, on a few items: each half of them, reversed, gives what it gives
    beside the other. Not judged are networks that draw random numbers, batch norm
    without running statistics, and outputs that are not finite.

    Arguments:
        made: What is made of views, a tensor or a nest of them.
        views: Those of a batch.
    """
    views = tree_map_only(Tensor, lambda x: x[:CHECKED], views)
    first = tree_leaves(views)[0]
    half, device = len(first) // 2, first.device
    rows = [part for part in (slice(half), slice(half, None)) if len(first[part])]
    forked = [device] if device.type == "cuda" else []
    with (
        torch.no_grad(),
        restored_randomness(forked),
        unmoved(module),
        in_evaluation(module),
        _uncompiled(),
    ):
        found = made(views)
        moved = (found - made(views)).abs().nan_to_num().amax()
        if mixes_rows(module) or moved > 0:
            return float(moved) if moved > _rounding(found) else 0.0
        halves = [tree_map_only(Tensor, partial(_reversed, i), views) for i in rows]
        apart = torch.cat([made(each).flip(0) for each in halves])
    if not bool((found.isfinite() & apart.isfinite()).all()):
        return 0.0
    spread = (found - found.mean(0)).abs().amax()
    least = 1e-2 * spread + _rounding(found)
    if not bool(((found - apart).abs() <= least).all()):
        raise ValueError(
            f"expected networks of {type(module).__name__} that treat items one by one "
            "in evaluation mode, got an output for an item that changes with the other "
            "items of the batch; give nn.GRU, nn.LSTM and nn.TransformerEncoder "
            "batch_first=True, and let other layers leave axis 0, the items, apart"
        )
    return 0.0


def _rounding(found: Tensor) -> Tensor:
    """How far outputs may differ by the order of sums alone."""
    coarse = found.is_cuda or found.dtype.itemsize < 4  # TF32 and below
    return (1e-3 if coarse else 1e-5) * found.abs().amax()


def _reversed(rows: slice, x: Tensor) -> Tensor:
    return x[rows].flip(0)


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled networks run eagerly meanwhile; nothing is imported to see to that."""
    loaded = "torch._dynamo" in sys.modules  # seconds, if it is not
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; the modes of all modules are restored."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def known_dim(module: nn.Module, name: str = "dim") -> int | None:
    """The dimension of a network's output where its attributes say it, else None.

    Arguments:
        name: The attribute that holds it; else `out_features`, as of a linear layer,
            of the last layer in a sequence.
    """
    found = getattr(module, name, None)
    while found is None and type(module) is nn.Sequential and len(module):
        module = module[-1]
    found = getattr(module, "out_features", None) if found is None else found
    return found if isinstance(found, int) else None


def check_width(name: str, net: nn.Module, before: nn.Module | int | None) -> None:
    """Raise a ValueError if a network takes rows of another width than come before it.

    Only sizes that are certain are compared; the others are met in the first call.

    Arguments:
        before: The network before it, or its number of outputs.
    """
    if isinstance(before, Encoder | Projector):
        before = before.dim if isinstance(before, Encoder) else before.out
    first = net
    while type(first) is nn.Sequential and len(first):
        first = first[0]
    linear = isinstance(first, nn.Linear)
    known = first.in_features if linear else getattr(first, "dim", None)
    if not linear and not isinstance(first, Decoder | Projector):
        return
    if isinstance(before, int) and known != before:
        raise ValueError(
            f"expected a {name} that takes {before} numbers, the output of the network "
            f"before it, got {type(net).__name__} for {known}; build both with one dim"
        )


def dim_of(
    encoder: nn.Module, projector: nn.Module | None = None, dim: int | None = None
) -> int:
    """The dimension of z: `dim` where given, else that of the last network."""
    last, name = (encoder, "dim") if projector is None else (projector, "out")
    found = known_dim(last, name) if dim is None else whole("dim", dim)
    if found is None:
        raise ValueError(
            "expected to know the dimension of z, got a "
            f"{type(last).__name__} that does not tell; give dim=…"
        )
    return found
