"""Random resized crop, rotation, scaling, translation and flips, in one resampling."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from ..arguments import choice
from .ranges import (
    Range,
    check_images,
    checked_range,
    ends,
    happens,
    per_item,
    probability,
    uniform,
)

__all__ = ["Affine"]

CROP_TRIES = 10  # draws of a box until one fits into the image


class Affine(nn.Module):
    r"""Random resized crop, flips, rotation, scaling and translation of each image.

    All are one affine map, resampled once, bilinearly: the crop is stretched to full
    size, flipped, scaled and rotated about its centre, then shifted. In units of
    pixels, so that images that are not square do not shear, the pixel at :math:`q` from
    the centre takes the value at

    .. math:: D_b F R_\theta^{-1} (q - t) / s + c

    where :math:`D_b` shrinks to the box and :math:`c` is its centre.

    Without arguments the image is unchanged. Each item draws its own values, uniformly.

    Arguments:
        rotate: Rotation in degrees, counter-clockwise; a number a means (-a, a).
        scale: Zoom factors; above 1 enlarges. Below about 1/2 bilinear sampling
            aliases.
        shift: Translation down and to the right, drawn independently, as fractions of
            the height and of the width; a number a means (-a, a).
        crop: The area of a random resized crop, as a fraction; None crops nothing.
        ratio: The aspect ratio of the crop, width over height in pixels. Area and
            logarithm of the ratio are uniform over the boxes that fit; where none of
            ten draws fits, the first takes the nearest ratio that does.
        flip: The probability of a horizontal flip.
        vertical_flip: The probability of a vertical flip.
        p: The probability that an item is transformed at all.
        padding: The values outside the image: ``"zeros"``, its ``"border"``, or its
            ``"reflection"``.

    References:
        Going Deeper with Convolutions (Szegedy et al., 2015), for the crop
        https://arxiv.org/abs/1409.4842

    Example:
        >>> Affine(rotate=15, scale=(0.85, 1.15))(torch.rand(5, 1, 28, 28)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        *,
        rotate: Range = 0.0,
        scale: Range = (1.0, 1.0),
        shift: Range = 0.0,
        crop: Range | None = None,
        ratio: Range = (3 / 4, 4 / 3),
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        p: float = 1.0,
        padding: Literal["zeros", "border", "reflection"] = "zeros",
    ) -> None:
        super().__init__()
        self.rotate = checked_range("rotate", rotate, -math.inf, centre=0)
        self.scale = checked_range("scale", scale, 0, positive=True)
        self.shift = checked_range("shift", shift, -math.inf, centre=0)
        if crop is not None:
            crop = checked_range("crop", crop, 0, 1, positive=True)
        self.crop = crop
        self.ratio = checked_range("ratio", ratio, 0, positive=True)
        self.flip = probability("flip", flip)
        self.vertical_flip = probability("vertical_flip", vertical_flip)
        self.p = probability("p", p)
        self.padding = choice("padding", padding, ("zeros", "border", "reflection"))

    def forward(
        self, x: Float[Tensor, "n channel height width"]
    ) -> Float[Tensor, "n channel height width"]:
        return self.with_boxes(x)[0]

    def with_boxes(
        self, x: Float[Tensor, "n channel height width"]
    ) -> tuple[Float[Tensor, "n channel height width"], Float[Tensor, "n 4"]]:
        """Return the transformed images and the boxes of the original that they show.

        A box is left, top, right and bottom, where the whole image is -1, -1, 1, 1. For
        a rotated image it is the bounding box.
        """
        check_images(x, "Affine")
        linear, offset = self._map(x)
        across, down = (
            torch.arange(1 - size, size, 2, dtype=x.dtype, device=x.device) / size
            for size in (x.shape[-1], x.shape[-2])
        )
        row, column = linear[..., 0, None] * across, linear[..., 1, None] * down
        # As affine_grid does, but x and y stay two planes, which is faster on a CPU.
        grid = row.unsqueeze(2) + (column + offset.unsqueeze(2)).unsqueeze(3)
        grid = grid.permute(0, 2, 3, 1)
        moved = grid_sample(x, grid, padding_mode=self.padding, align_corners=False)
        reach = linear.abs().sum(-1)
        boxes = torch.cat((offset - reach, offset + reach), -1)
        if self.p == 1:
            return moved, boxes
        chosen = happens(self.p, x.shape[:1], x)
        whole = boxes.new_tensor((-1.0, -1.0, 1.0, 1.0))
        return (
            moved.where(per_item(chosen, x), x),
            boxes.where(chosen[:, None], whole),
        )

    def _map(self, x: Tensor) -> tuple[Float[Tensor, "n 2 2"], Float[Tensor, "n 2"]]:
        """A and b of the sampling position A u + b, in halves of width and height."""
        n, (height, width) = len(x), x.shape[-2:]
        angle = uniform(ends(self.rotate, 0), (n,), x) * (math.pi / 180)
        scale = uniform(ends(self.scale), (n,), x)
        right, down = 2 * uniform(ends(self.shift, 0), (2, n), x)
        (wide, high), (left, top) = self._box(x)
        wide = torch.where(happens(self.flip, (n,), x), -wide, wide)
        high = torch.where(happens(self.vertical_flip, (n,), x), -high, high)

        cos, sin = angle.cos() / scale, angle.sin() / scale
        a, b = wide * cos, -wide * sin * (height / width)
        c, d = high * sin * (width / height), high * cos
        linear = torch.stack((a, b, c, d), -1).view(n, 2, 2)
        offset = (left - a * right - b * down, top - c * right - d * down)
        return linear, torch.stack(offset, -1)

    def _box(self, x: Tensor) -> tuple[Float[Tensor, "2 n"], Float[Tensor, "2 n"]]:
        """The size and the centre of each crop, across and down, in the same units."""
        if self.crop is None:
            return x.new_ones(2, len(x)), x.new_zeros(2, len(x))
        height, width = x.shape[-2:]
        low, high = map(math.log, ends(self.ratio))
        shape = (CROP_TRIES, len(x))
        area = uniform(ends(self.crop), shape, x)
        ratio = uniform((low, high), shape, x).exp()
        ratio = ratio * (height / width)  # of the fractions, no longer of the pixels

        fits = (area <= ratio) & (ratio <= 1 / area)
        first = fits.int().argmax(0, keepdim=True)  # the first draw where none fits
        area, ratio = area.gather(0, first)[0], ratio.gather(0, first)[0]
        ratio = ratio.clamp(area, 1 / area)

        size = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()))
        return size, (1 - size) * uniform((-1.0, 1.0), size.shape, x)
