"""Views of two kinds: a few that show most of an item, and many that show a part."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..terms import Batch
from .augment import Grid
from .geometry import Affine
from .ranges import Range, check_images, checked_integer, checked_range

__all__ = ["MultiCrop"]


class MultiCrop(nn.Module):
    r"""Large and small crops of each image, for SwAV and DINO.

    Both have draws of their own from torch's global generator, and end on the grid of
    the data. Small crops are stretched to the size of the image, or brought to a size
    of their own, which costs less and needs an encoder for any size.

    The published areas are for photographs. Images of a few pixels want larger small
    crops: ``MultiCrop(local_crop=(0.3, 0.6), levels=16)`` for scikit-learn's digits.

    Arguments:
        parts: Modules (n, \*event) -> (n, \*event), through which all crops go.
        views: The number of large crops.
        local: The number of small ones; none gives the large ones alone.
        crop: Fractions of the area that large crops show.
        local_crop: Fractions that small ones show.
        local_size: The height and width of small crops; None keeps those of the image.
        flip: The probability to exchange left and right.
        levels: The number of grey levels minus one, see `Grid`; None rounds nothing.

    References:
        Unsupervised Learning of Visual Features by Contrasting Cluster Assignments
        (Caron et al., 2020)
        https://arxiv.org/abs/2006.09882
        Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021),
        for the areas
        https://arxiv.org/abs/2104.14294

    Example:
        >>> import torch
        >>> sampler = MultiCrop(views=2, local=4, local_size=(4, 4))
        >>> [tuple(part.shape) for part in sampler(torch.rand(5, 1, 8, 8)).views]
        [(5, 2, 1, 8, 8), (5, 4, 1, 4, 4)]
    """

    def __init__(
        self,
        *parts: nn.Module,
        views: int = 2,
        local: int = 6,
        crop: Range = (0.4, 1.0),
        local_crop: Range = (0.05, 0.4),
        local_size: tuple[int, int] | None = None,
        flip: float = 0.0,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, nn.Module):
                raise TypeError(
                    "expected parts to be modules such as Colour(brightness=0.4), got "
                    f"{part!r}; the number of crops is given by name: views=2, local=6"
                )
        if local_size is not None:
            local_size = _size(local_size)
        self.parts = nn.ModuleList(parts)
        self.views = checked_integer("views", views, 1)
        self.local = checked_integer("local", local, 0)
        self.crop = checked_range("crop", crop, 0, 1, positive=True)
        self.local_crop = checked_range("local_crop", local_crop, 0, 1, positive=True)
        self.local_size, self.flip, self.levels = local_size, flip, levels
        self.large = Affine(crop=crop, flip=flip)
        self.small = Affine(crop=local_crop, flip=flip)
        self.grid = Grid(levels)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Batch:
        """Return a batch with the large crops and the small ones as its views."""
        check_images(x, "MultiCrop")
        large = self._crops(x, self.large, self.views)
        if not self.local:
            return Batch(large)
        return Batch((large, self._crops(x, self.small, self.local, self.local_size)))

    def _crops(
        self, x: Tensor, crop: Affine, count: int, size: tuple[int, int] | None = None
    ) -> Float[Tensor, "batch view channel height width"]:
        out = crop(x.repeat_interleave(count, 0))
        if size is not None:
            out = interpolate(out, size, mode="bilinear", antialias=True)
        for part in self.parts:
            out = part(out)
        return self.grid(out).unflatten(0, (len(x), count))


def _size(size: tuple[int, int]) -> tuple[int, int]:
    if isinstance(size, int) or len(size) != 2:
        raise ValueError(
            f"expected local_size as (height, width), got {size!r}; give for instance "
            "(16, 16)"
        )
    height, width = size
    return (
        checked_integer("local_size", height, 1),
        checked_integer("local_size", width, 1),
    )
