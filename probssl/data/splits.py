"""What a data set is: rows of images, ready-made groups of views, train and test."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

__all__ = ["Dataset", "Groups", "Split"]


class Split(NamedTuple):
    """Images, and what is known about each: the content and the style.

    Arguments:
        images: Bytes in 0..255, which stand for k/255, or floating point in [0, 1];
            arrays that are no images may hold any finite number.
        labels: The content, a class number.
        style: What varies within a class (the writer, the factors of a simulator).
    """

    images: Shaped[Tensor, "n *event"]
    labels: Int[Tensor, " n"] | None = None
    style: Shaped[Tensor, "n *factors"] | None = None

    def rows(self, index: Shaped[Tensor, " m"] | slice) -> "Split":
        """The items with these row numbers, in this order; or where a mask is true."""
        return Split(
            self.images[index],
            None if self.labels is None else self.labels[index],
            None if self.style is None else self.style[index],
        )

    def take(self, n: int, seed: int | None = 0) -> "Split":
        """A random subset of n items, always the same for one seed.

        With ``seed=None`` the first n items; files are often sorted by class, which
        is why this is not the default.
        """
        size = len(self.images)
        if not 0 < n <= size:
            raise ValueError(f"expected n from 1 to the {size} items here, got {n}")
        if seed is None:
            return self.rows(slice(n))
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        return self.rows(order[:n].to(self.images.device))


class Groups(NamedTuple):
    """Natural groups of views, which need no augmentation; made by `groups`.

    Arguments:
        views: The views of each item, with shape (n, view, \\*event); or one such
            tensor for each modality, where their event shapes differ.
        labels: The content of each item, for evaluation: no objective sees it.
        present: Which views were observed; None means all of them.
        content: Observed contents, which reach the objective in `Batch.content`: whole
            numbers, -1 where one is not known.
    """

    views: Shaped[Tensor, "n view *event"] | tuple[Tensor, ...]
    labels: Int[Tensor, " n"] | None = None
    present: Bool[Tensor, "n view"] | None = None
    content: Int[Tensor, " n"] | None = None

    def rows(self, index: Shaped[Tensor, " m"] | slice) -> "Groups":
        """The items with these row numbers, in this order; or where a mask is true."""
        views = self.views
        return Groups(
            tuple(part[index] for part in views)
            if isinstance(views, tuple)
            else views[index],
            None if self.labels is None else self.labels[index],
            None if self.present is None else self.present[index],
            None if self.content is None else self.content[index],
        )


class Dataset(NamedTuple):
    """A training and a test split of one kind of data.

    Arguments:
        levels: The number of grey levels minus one: 1 for binary images, 16 for
            scikit-learn's digits, 255 for bytes; None for what is not quantised.
    """

    train: Split
    test: Split
    levels: int | None
    name: str
