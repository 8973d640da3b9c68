"""The input of an objective, `Batch`, and its value, `Terms`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "HeldOut", "Terms", "check_batch", "check_rows", "check_terms"]


class Batch(NamedTuple):
    """A batch of items, each with several views (augmented samples, modalities).

    Arguments:
        views: The views x, shape (batch, view, \\*event); or one such tensor for each
            modality or resolution.
        clean: The items before data augmentation, shape (batch, \\*event).
        index: The row of each item in its data set, shape (batch,).
        present: Mask of the observed views, bool, shape (batch, view); None means all.
        transform: The parameters of the data augmentation (boxes, masks).
        content: Observed contents (labels), whole numbers, shape (batch,): the
            component of the prior that an item belongs to, -1 where unknown.
        covariates: What p(x|z) and q(z|x) are conditional on, by name: library size,
            batch, time. Of each item (batch,) or (batch, k); of each view, which has
            three axes, (batch, view, k). Parts of a `Joint` whose `forward` takes
            `covariates` get them, others do not.
    """

    views: Tensor | tuple[Tensor, ...]
    clean: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index
    present: Tensor | None = None
    transform: Any | None = None
    content: Tensor | None = None
    covariates: dict[str, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of items and of views, all modalities together."""
        if isinstance(self.views, Tensor):
            return self.views.shape[0], self.views.shape[1]
        check_batch(self)
        return len(self.views[0]), sum(self.widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of views of each modality."""
        parts = self.views if isinstance(self.views, tuple) else (self.views,)
        return tuple(part.shape[1] for part in parts)

    @property
    def rows(self) -> Tensor:
        """The rows of the items in the data set: `index`, which must be given."""
        if self.index is None:
            raise ValueError(
                "expected Batch.index, the rows of the items in the training set, got "
                "None; give fit a Split, Groups or tensor, not a DataLoader"
            )
        return self.index

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The views of each modality; absent views are copies of a present one.

        They are zero where the modality has none. If `views` is one tensor there is one
        part.
        """
        check_batch(self)
        parts = self.views if isinstance(self.views, tuple) else (self.views,)
        if self.present is None:
            return parts
        seen = self.present.split(self.widths, 1)
        return tuple(map(_filled, parts, seen))

    @property
    def stacked(self) -> Tensor:
        """The views as one tensor, in which absent views are filled as in `parts`."""
        if isinstance(self.views, tuple):
            raise ValueError(
                "expected views of one modality, a tensor (batch, view, *event), got "
                f"{len(self.views)} tensors; this objective takes a single modality: "
                "views of it are ps.data.groups([a, b])"
            )
        return self.parts[0]


class HeldOut(Batch):
    """A batch of validation items, which have no rows in the training set."""

    __slots__ = ()

    @property
    def index(self) -> Tensor:  # type: ignore[override]
        raise ValueError(
            "expected no validation data for an objective that reads Batch.index, the "
            "row of a training item, got other items; leave valid out, and measure "
            "them in on_epoch, by ps.embed(objective, held_out)"
        )


class Terms(NamedTuple):
    """The terms of an objective, weights applied: the loss is minus their sum.

    The first four are log-densities or entropies, in nats per item, with all constants,
    averaged over the batch. `penalty` holds terms that are no density (not nats). Terms
    that an objective does not have are zero.
    """

    reconstruction: Tensor | float = 0.0
    entropy: Tensor | float = 0.0
    alignment: Tensor | float = 0.0
    hyper: Tensor | float = 0.0
    penalty: Tensor | float = 0.0


def _filled(x: Tensor, present: Tensor) -> Tensor:
    """Put the first present view in the place of absent ones."""
    # Values that a network and a likelihood take: a gradient of 0 times NaN is NaN.
    first = present.flatten().int().argmax().view(1)
    view = x.flatten(0, 1).index_select(0, first).masked_fill(~present.any(), 0)
    return torch.where(present.view(present.shape + (1,) * (x.dim() - 2)), x, view)


def check_batch(batch: object) -> None:
    """Raise a TypeError for what is no batch of tensors, such as a tensor of views."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"expected a Batch, got {type(batch).__name__}; give Batch(views), with "
            "views of shape (batch, view, *event)"
        )
    views, present = batch.views, batch.present
    for x in views if isinstance(views, tuple) else (views,):
        if not isinstance(x, Tensor):
            raise TypeError(
                "expected Batch.views as a tensor, or a tuple with one for each "
                f"modality, got {_kind(x)}; give torch.as_tensor(views)"
            )
    seen = present is None or isinstance(present, Tensor)
    if not seen or (present is not None and present.dtype != torch.bool):
        raise TypeError(
            "expected Batch.present as a tensor of Booleans, got "
            f"{_kind(present)}; give torch.as_tensor(present).bool()"
        )


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def check_rows(batch: Batch, items: int, population: Tensor | None) -> None:
    """Raise a ValueError if `index` is None or has rows outside 0 to items - 1.

    Arguments:
        population: The number of items in the data set, if known.
    """
    if population is not None and population != items:
        raise ValueError(
            f"expected the {items} items that the objective was built with, got "
            f"{int(population)}; build it with items=len(data)"
        )
    low, high = int(batch.rows.min()), int(batch.rows.max())
    if low < 0 or high >= items:
        raise ValueError(
            f"expected rows from 0 to {items - 1} in Batch.index, got {low} to {high}; "
            "build the objective with items=len(data), and measure it on its training "
            "data only"
        )


def check_terms(terms: object) -> Terms:
    """Return the terms; raise a TypeError if they are none."""
    if not isinstance(terms, Terms):
        raise TypeError(
            f"expected the objective to return Terms, got {type(terms).__name__}; "
            "return, for example, Terms(reconstruction=…, alignment=…)"
        )
    return terms
