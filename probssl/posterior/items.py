"""Evaluation in parts: mode, dtype and device of an objective, memory of draws."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..arguments import whole
from ..data.batches import Items, Loadable, Views, in_order
from ..nn.network import in_evaluation, items_apart
from ..runtime.threads import LOCK
from ..terms import Batch

__all__ = ["BAR_DELAY", "batches", "chunks", "evaluating", "in_parts", "singles"]

BAR_DELAY = 3.0  # seconds before a progress bar shows
DECODED_AT_ONCE = 2048  # representations


@contextmanager
def evaluating(objective: nn.Module) -> Iterator[Tensor | None]:
    """Evaluation mode without gradients; the modes of all modules are restored.

    Other threads, which may evaluate the same objective, wait meanwhile.

    Yields a tensor with the device and dtype of the objective, if it has any. A network
    whose batch norm mixes the items is refused where it is called, see `items_apart`.
    """
    numbers = chain(objective.parameters(), objective.buffers())
    like = next((t for t in numbers if t.is_floating_point()), None)
    with LOCK, in_evaluation(objective), torch.no_grad(), items_apart(objective):
        yield like


def in_parts(items: int, size: int, title: str) -> Iterator[Int[Tensor, " batch"]]:
    """All row numbers, in parts of a batch size; a progress bar shows after 3 s."""
    parts = torch.arange(items).split(whole("batch_size", size))
    yield from tqdm(parts, title, delay=BAR_DELAY, unit="batch")


def batches(
    data: Loadable, like: Tensor | None, views: Views | None, size: int, title: str
) -> Iterator[Batch]:
    """The batches of all items in order; a DataLoader has a batch size of its own."""
    if isinstance(data, DataLoader):
        loads = in_order(data, like, views)
        yield from tqdm(loads, title, delay=BAR_DELAY, unit="batch")
        return
    items = Items(data, like, views)
    for rows in in_parts(len(items), size, title):
        yield items.batch(rows)


def singles(
    data: Loadable,
    like: Tensor | None,
    size: int,
    title: str,
    modalities: int = 1,
    pooled: bool = False,
    conditional: bool = False,
) -> Iterator[Any]:
    """All items in order without augmentation: a tensor, or one for each modality.

    Arguments:
        modalities: The modalities of the objective. The views of `Groups`, and of the
            Batches of a DataLoader, are those if there are several.
        pooled: Whether all views are given as a `Batch`, in which some may be absent.
        conditional: Whether all items are given as a `Batch`, with their covariates.
    """
    if conditional:
        yield from batches(data, like, None, size, title)
        return
    if isinstance(data, DataLoader):
        for batch in batches(data, like, None, size, title):
            if isinstance(batch.views, Tensor) and batch.shape[1] == 1:
                yield batch.stacked[:, 0]
            else:
                yield batch if pooled else _alone(batch, modalities)
        return
    items = Items(data, like)
    for rows in in_parts(len(items), size, title):
        if items.grouped and (modalities > 1 or pooled):
            batch = items.batch(rows)
            yield batch if pooled else _alone(batch, modalities)
        else:
            yield items.alone(rows)


def _alone(batch: Batch, modalities: int) -> tuple[Tensor, ...]:
    """The single view of each modality of a batch."""
    views = batch.views
    if isinstance(views, Tensor) and modalities > 1:
        views = views.split(1, 1)
    if isinstance(views, Tensor) or {view.shape[1] for view in views} != {1}:
        raise TypeError(
            f"expected single items, got batches of {batch.shape[1]} views; "
            "let the DataLoader yield one view of each item"
        )
    if batch.present is not None and not bool(batch.present.all()):
        raise ValueError(
            "expected all views to be present, got some that are absent; take the rows "
            "that have all, data.rows(data.present.all(1)), or fit a Joint of the "
            "modalities, from which embed and complete integrate absent views out"
        )
    return tuple(view[:, 0] for view in views)


def chunks(draws: int, batch: Batch) -> list[int]:
    """Sizes of parts of the draws, small enough for decoding to fit into memory."""
    most = max(1, DECODED_AT_ONCE // math.prod(batch.shape))
    return [min(most, draws - start) for start in range(0, draws, most)]
