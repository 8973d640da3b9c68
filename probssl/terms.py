"""What goes into an objective, `Batch`, and what comes out of it, `Terms`."""

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Batch", "Terms", "check_rows"]


class Batch(NamedTuple):
    """Views of a batch of items, and what is known about them.

    Arguments:
        views: The views x, with shape (batch, view, \\*event); or one such tensor for
            each modality or resolution.
        clean: The untouched originals, with shape (batch, \\*event).
        index: The rows of the items in their data set, with shape (batch,).
        present: Which views were observed, bool, with shape (batch, view); None means
            all of them.
        transform: What the view sampler did (boxes, masks).
        content: Observed contents, whole numbers with shape (batch,): the component of
            the prior that an item belongs to, -1 where it is not known.
    """

    views: Tensor | tuple[Tensor, ...]
    clean: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index
    present: Tensor | None = None
    transform: Any | None = None
    content: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of items and of views."""
        if isinstance(self.views, tuple):
            return len(self.views[0]), sum(self.widths)
        return self.views.shape[0], self.views.shape[1]

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of views of each modality."""
        parts = self.views if isinstance(self.views, tuple) else (self.views,)
        return tuple(part.shape[1] for part in parts)

    @property
    def rows(self) -> Tensor:
        """`index`, where the items must be known.

        Raises:
            ValueError: If they are not.
        """
        if self.index is None:
            raise ValueError(
                "expected Batch.index, the rows of the items in the training set, got "
                "None; give fit a Split, Groups or tensor, not a DataLoader"
            )
        return self.index

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The views of each modality; zeros, whatever was there, where one is absent.

        Views that are one tensor are one part.
        """
        parts = self.views if isinstance(self.views, tuple) else (self.views,)
        if self.present is None:
            return parts
        seen = self.present.split(self.widths, 1)
        return tuple(
            part.masked_fill(~one.view(one.shape + (1,) * (part.dim() - 2)), 0)
            for part, one in zip(parts, seen, strict=True)
        )

    @property
    def stacked(self) -> Tensor:
        """The views as one tensor; zeros, whatever was there, where one is absent.

        Raises:
            ValueError: If there are several modalities.
        """
        if isinstance(self.views, tuple):
            raise ValueError(
                "expected views of one modality, a tensor (batch, view, *event), got "
                f"{len(self.views)} tensors; this objective takes a single modality"
            )
        return self.parts[0]


class Terms(NamedTuple):
    """Summands of an objective, their weights applied; the larger the better.

    The first four are log-densities or entropies, in nats per item, averaged over the
    batch, with all their constants; `penalty` holds what has no density (not nats).
    What is not in play is zero. The value of the objective is ``sum(terms)``.
    """

    reconstruction: Tensor | float = 0.0
    entropy: Tensor | float = 0.0
    alignment: Tensor | float = 0.0
    hyper: Tensor | float = 0.0
    penalty: Tensor | float = 0.0


def check_rows(batch: Batch, items: int) -> None:
    """Raise a ValueError for items that are not known, or not among so many."""
    low, high = int(batch.rows.min()), int(batch.rows.max())
    if low < 0 or high >= items:
        raise ValueError(
            f"expected rows from 0 to {items - 1} in Batch.index, got {low} to {high}; "
            "build the objective with items=len(data), and measure it on its training "
            "data only"
        )
