"""Views that are drawn: of rows, or of images by a sampler of theirs."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor
from tqdm import tqdm

__all__ = ["LARGEST", "Flattened", "Sampler", "drawn", "in_parts"]

Sampler = Callable[[Array], Array]
ROWS = 2_048  # of which views are drawn at a time
LARGEST = 1e150  # whose square, and the sum of many such, are still numbers


class Flattened:
    """A sampler of views of images, such as `views.Augment`, for rows of features.

    Arguments:
        sampler: Images (n, \\*event) -> views (n, view, \\*event), or a batch of them,
            in torch's default dtype. Those of `views` take values in [0, 1].
        shape: The event shape of an image, (channel, height, width).

    Raises:
        ValueError: If rows have not that shape, or the sampler gives no views (n, view,
            \\*event): those of several resolutions, or with views left out.
    """

    def __init__(self, sampler: Callable[[Any], Any], shape: Sequence[int]) -> None:
        self.sampler, self.shape = sampler, tuple(shape)

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n view e"]:
        if x.shape[1] != math.prod(self.shape):
            raise ValueError(
                f"expected rows of {math.prod(self.shape)} features, images of shape "
                f"{self.shape}, got {x.shape[1]}"
            )
        images = torch.as_tensor(x, dtype=torch.get_default_dtype())
        with torch.no_grad():
            found = self.sampler(images.reshape(-1, *self.shape))
        views, present = getattr(found, "views", found), getattr(found, "present", None)
        if not isinstance(views, Tensor) or views.ndim < 3 or present is not None:
            raise ValueError(
                "expected a sampler that gives one tensor (n, view, *event), all of "
                f"its views present, got {getattr(views, 'shape', type(views))}"
            )
        return views.flatten(2).to("cpu", torch.float64).numpy()


def drawn(
    views: Sampler, rows: Float[Array, "n d"], many: int
) -> Float[Array, "n view e"]:
    """At least so many views of each row, in float64."""
    parts: list[Array] = []
    while sum(part.shape[1] for part in parts) < many:
        part = np.asarray(views(rows), np.float64)
        if part.ndim not in (2, 3) or len(part) != len(rows) or not part.size:
            raise ValueError(
                f"expected views of shape ({len(rows)}, features) or ({len(rows)}, "
                f"view, features) of {len(rows)} rows, got {part.shape}"
            )
        if not (np.abs(part) < LARGEST).all():
            raise ValueError(
                f"expected views with entries below {LARGEST:g}, got NaN, infinity or "
                "larger ones among them"
            )
        parts.append(part[:, None] if part.ndim == 2 else part)
    return np.concatenate(parts, 1)


def in_parts(
    views: Sampler, x: Float[Array, "n d"], many: int, progress: bool
) -> Iterator[tuple[Float[Array, "part d"], Float[Array, "part view e"]]]:
    """Some rows and at least so many views of each, then the next ones."""
    starts = range(0, len(x), ROWS)
    for start in tqdm(starts, "views", disable=not progress, leave=False):
        rows = x[start : start + ROWS]
        yield rows, drawn(views, rows, many)
