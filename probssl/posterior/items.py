"""Items as batches, and an objective in evaluation mode."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from tqdm import tqdm

from ..data.splits import Groups, Split
from ..data.tensors import check_values, value_tensor
from ..terms import Batch

__all__ = ["PATIENCE", "Array", "Data", "Items", "Views", "array", "chunks"]
__all__ += ["evaluating"]

Array = np.ndarray
Data = Split | Tensor | np.ndarray | tuple[Tensor | np.ndarray, ...]
Views = Callable[[Tensor], Tensor | Batch]

PATIENCE = 3.0  # seconds before a progress bar shows
AT_ONCE = 2048  # representations that are decoded at once


@contextmanager
def evaluating(objective: nn.Module) -> Iterator[Tensor | None]:
    """Evaluation mode without gradients; afterwards the mode that each module had.

    Gives a tensor of the device and the precision of the objective, if it has any.
    """
    modes = [(module, module.training) for module in objective.modules()]
    numbers = chain(objective.parameters(), objective.buffers())
    like = next((t for t in numbers if t.is_floating_point()), None)
    objective.eval()
    try:
        with torch.no_grad():
            yield like
    finally:
        for module, mode in modes:
            module.training = mode


class Items:
    r"""Items that become batches for an objective.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one for each modality.
        like: A tensor of the device and the precision that the objective takes; None
            means those of the data.
        views: A sampler (batch, \*event) -> (batch, view, \*event), or -> Batch. Groups
            have their own views; else without a sampler the items are their only one.

    Raises:
        TypeError: If the data are of no known kind.
        ValueError: If there are no items, NaN or infinity, or both groups and views.
    """

    def __init__(
        self, data: Data | Groups, like: Tensor | None, views: Views | None = None
    ) -> None:
        self.grouped = isinstance(data, Groups)
        self.present = data.present if isinstance(data, Groups) else None
        self.content = data.content if isinstance(data, Groups) else None
        values = _values(data)
        self.several, self.sampler = isinstance(values, tuple), views
        if views is not None and (self.grouped or self.several):
            raise ValueError(
                "expected no views for Groups or several modalities, which have their "
                "own; leave views out, or pass a Split of single views"
            )
        self.parts = _checked(values if isinstance(values, tuple) else (values,))
        one = self.parts[0]
        default = one.new_zeros((), dtype=torch.get_default_dtype())
        own = one if one.is_floating_point() else default
        self.like = own if like is None else like
        if isinstance(views, nn.Module):
            views.to(self.like.device)

    def __len__(self) -> int:
        return len(self.parts[0])

    def rows(self, size: int, title: str) -> Iterator[Int[Tensor, " batch"]]:
        """All row numbers, in parts; with a progress bar if it takes a while."""
        if size < 1:
            raise ValueError(f"expected batch_size of at least 1, got {size}; raise it")
        parts = torch.arange(len(self)).split(size)
        yield from tqdm(parts, title, delay=PATIENCE, unit="batch")

    def alone(
        self, rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch *event"] | tuple[Tensor, ...]:
        """The items in these rows, each by itself; a tuple if so the data are.

        Raises:
            TypeError: If they are groups.
        """
        if self.grouped:
            raise TypeError(
                "expected single items, got Groups; pass one view: groups.views[:, 0]"
                if not self.several
                else "expected single items, got Groups; pass a view of each modality: "
                "tuple(part[:, 0] for part in groups.views)"
            )
        parts = self._converted(rows)
        return parts if self.several else parts[0]

    def batch(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The items in these rows with their views, and what is known of them."""
        parts = self._converted(rows)
        if not self.grouped and not self.several:
            return self._viewed(parts[0])._replace(index=rows)
        if not self.grouped:
            return Batch(tuple(part.unsqueeze(1) for part in parts), index=rows)
        known = (
            None if one is None else one[rows.to(one.device)].to(parts[0].device)
            for one in (self.present, self.content)
        )
        present, content = known
        views = parts if self.several else parts[0]
        return Batch(views, index=rows, present=present, content=content)

    def _converted(self, rows: Int[Tensor, " batch"]) -> tuple[Tensor, ...]:
        return tuple(self._values(part[rows.to(part.device)]) for part in self.parts)

    def _values(self, x: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        values = x.to(self.like.device, self.like.dtype)
        return values / 255 if x.dtype == torch.uint8 else values

    def _viewed(self, x: Float[Tensor, "batch *event"]) -> Batch:
        drawn = x.unsqueeze(1) if self.sampler is None else self.sampler(x)
        batch = drawn if isinstance(drawn, Batch) else Batch(drawn)
        views = batch.views
        if (
            not isinstance(views, Tensor)
            or views.ndim != x.ndim + 1
            or len(views) != len(x)
        ):
            shape = tuple(views.shape) if isinstance(views, Tensor) else type(views)
            raise ValueError(
                f"expected views of shape ({len(x)}, view, *event) for items of shape "
                f"{tuple(x.shape)}, got {shape}; stack them: torch.stack([a, b], dim=1)"
            )
        return batch


def array(values: Tensor) -> Array:
    """A tensor for NumPy, which does not know bfloat16."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def chunks(draws: int, batch: Batch) -> list[int]:
    """Parts of a number of draws, so small that their decoding fits the memory."""
    most = max(1, AT_ONCE // math.prod(batch.shape))
    return [min(most, draws - start) for start in range(0, draws, most)]


def _values(data: Data | Groups) -> Any:
    """What the views are made of; zeros where one of a group is absent."""
    if isinstance(data, Split):
        return data.images
    if hasattr(data, "train"):
        raise TypeError(
            "expected data to be a Split or a tensor or array (n, *event), got "
            f"{type(data).__name__}; pass its .train or .test"
        )
    if not isinstance(data, Groups) or data.present is None:
        return data.views if isinstance(data, Groups) else data
    parts = Batch(data.views, present=data.present).parts
    return parts if isinstance(data.views, tuple) else parts[0]


def _checked(parts: tuple[Any, ...]) -> tuple[Shaped[Tensor, "item ..."], ...]:
    found = []
    for values in parts:
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            values = torch.tensor(values)  # keeps float64 for an objective in float64
        if not isinstance(values, Tensor | np.ndarray):
            raise TypeError(
                "expected data to be a Split, a tensor or array (n, *event), or a "
                f"tuple of these, got {type(values).__name__}; pass one of these"
            )
        found.append(value_tensor(values, "data"))
        check_values(found[-1], "data")
    if len({len(part) for part in found}) > 1:
        raise ValueError(
            "expected as many items in each modality, got "
            f"{[len(part) for part in found]}; mark what is absent in present: "
            "ps.data.groups(views, present=…)"
        )
    return tuple(found)
