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
Data = Split | Tensor | np.ndarray
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
        data: A `Split`, `Groups`, or a tensor or array (n, \*event).
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
        if self.grouped and views is not None:
            raise ValueError(
                "expected no views for Groups, which have their own; leave views out, "
                "or pass a Split of single views"
            )
        self.values, self.sampler = _checked(data), views
        whole = self.values.new_zeros((), dtype=torch.get_default_dtype())
        own = self.values if self.values.is_floating_point() else whole
        self.like = own if like is None else like
        if isinstance(views, nn.Module):
            views.to(self.like.device)

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, size: int, title: str) -> Iterator[Int[Tensor, " batch"]]:
        """All row numbers, in parts; with a progress bar if it takes a while."""
        if size < 1:
            raise ValueError(f"expected batch_size of at least 1, got {size}; raise it")
        parts = torch.arange(len(self)).split(size)
        yield from tqdm(parts, title, delay=PATIENCE, unit="batch")

    def alone(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch *event"]:
        """The items in these rows, each by itself.

        Raises:
            TypeError: If they are groups.
        """
        if self.grouped:
            raise TypeError(
                "expected single items, got Groups; pass one view: groups.views[:, 0]"
            )
        return self._converted(rows)

    def batch(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The items in these rows with their views, and what is known of them."""
        x = self._converted(rows)
        if not self.grouped:
            return self._viewed(x)._replace(index=rows)
        if self.present is None:
            return Batch(x, index=rows)
        present = self.present[rows.to(self.present.device)]
        return Batch(x, index=rows, present=present.to(x.device))

    def _converted(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        x = self.values[rows.to(self.values.device)]
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


def _checked(data: Data | Groups) -> Shaped[Tensor, "item ..."]:
    values: Any = data
    if isinstance(data, Split):
        values = data.images
    elif isinstance(data, Groups):
        values = data.views
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = torch.tensor(values)  # keeps float64 for an objective in float64
    if not isinstance(values, Tensor | np.ndarray):
        hint = "one modality at a time" if isinstance(values, tuple) else "these"
        hint = "its .train or .test" if hasattr(data, "train") else hint
        raise TypeError(
            "expected data to be a Split or a tensor or array (n, *event), got "
            f"{type(data).__name__}; pass {hint}"
        )
    tensor = value_tensor(values, "data")
    check_values(tensor, "data")
    return tensor
