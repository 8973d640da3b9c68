"""Gaussian noise, masking and Gaussian blur."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ..arguments import whole
from .ranges import (
    Range,
    check_floats,
    check_images,
    checked_range,
    ends,
    happens,
    per_item,
    probability,
    sometimes,
    uniform,
    wide,
)

__all__ = ["Blur", "Mask", "Noise"]


class Noise(nn.Module):
    r"""Gaussian noise, :math:`x + \sigma \epsilon`, on items of any shape.

    `Augment` clamps the values of images at the end.

    Arguments:
        scale: The standard deviation σ, in the units of x; a pair is a range from which
            each item draws its own.
        p: The probability that noise is added to an item.

    Raises:
        ValueError: If the scale is not positive and finite.
    """

    def __init__(self, scale: Range = 0.1, *, p: float = 1.0) -> None:
        super().__init__()
        self.scale = checked_range("scale", scale, 0)
        self.p = probability("p", p)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        check_floats(x)
        scale = uniform(ends(self.scale), x.shape[:1], x)
        noisy = torch.randn_like(x).mul_(per_item(scale, x)).add_(x)
        return sometimes(self.p, noisy, x)


class Mask(nn.Module):
    r"""Random masking of elements or square patches, independently of one another.

    Arguments:
        fraction: The probability that one is masked; a pair is a range from which each
            item draws its own.
        patch: The side of the patches in pixels, over all channels, in a grid that
            starts at the top left (``patch=1`` masks whole pixels); None masks single
            elements of items of any shape.
        value: The value that replaces masked ones.
        p: The probability that an item is masked at all.

    References:
        Extracting and Composing Robust Features with Denoising Autoencoders
        (Vincent et al., 2008)
        https://doi.org/10.1145/1390156.1390294
    """

    def __init__(
        self,
        fraction: Range = 0.5,
        *,
        patch: int | None = None,
        value: float = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.fraction = checked_range("fraction", fraction, 0, 1)
        self.patch = None if patch is None else whole("patch", patch)
        self.value, self.p = float(value), probability("p", p)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        check_floats(x)
        fraction = x.new_empty(len(x), dtype=wide(x)).uniform_(*ends(self.fraction))
        fraction = per_item(fraction, x)
        if self.patch is None:
            hidden = happens(fraction, x.shape, x)
        else:
            check_images(x, "Mask with patches")
            height, width = x.shape[-2:]
            rows, columns = (math.ceil(size / self.patch) for size in (height, width))
            hidden = happens(fraction, (len(x), 1, rows, columns), x)
            hidden = hidden.repeat_interleave(self.patch, -2)[..., :height, :]
            hidden = hidden.repeat_interleave(self.patch, -1)[..., :width]
        return sometimes(self.p, x.masked_fill(hidden, self.value), x)


class Blur(nn.Module):
    """Gaussian blur; the border is reflected, so that a constant image is unchanged.

    Arguments:
        scale: The standard deviation in pixels; a pair is a range from which each item
            draws its own.
        size: The width of the kernel in pixels, odd; None means three times the
            largest standard deviation to each side.
        p: The probability that an item is blurred.
    """

    def __init__(
        self, scale: Range = (0.1, 2.0), *, size: int | None = None, p: float = 0.5
    ) -> None:
        super().__init__()
        self.scale = checked_range("scale", scale, 0, positive=True)
        if size is not None and whole("size", size) % 2 == 0:
            raise ValueError(
                f"expected an odd size of the kernel, got {size}; use {size + 1}"
            )
        self.size, self.p = size, probability("p", p)

    def forward(
        self, x: Float[Tensor, "n channel height width"]
    ) -> Float[Tensor, "n channel height width"]:
        check_images(x, "Blur")
        n, channels, height, width = x.shape
        reach = math.ceil(3 * max(ends(self.scale)))
        reach = reach if self.size is None else self.size // 2
        if reach >= min(height, width):
            raise ValueError(
                f"expected images of more than {reach} pixels for a kernel of "
                f"{2 * reach + 1}, got {height} x {width}; give Blur a smaller size"
            )
        scale = uniform(ends(self.scale), (n, 1), x)
        steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = (-(steps / scale).square() / 2).softmax(-1)

        # Each channel of each item is a group of its own, first down, then across.
        kernels = kernel.repeat_interleave(channels, 0)[:, None, :, None]
        image = pad(x, [reach] * 4, mode="reflect").flatten(0, 1)
        image = conv2d(image, kernels, groups=n * channels)
        image = conv2d(image, kernels.mT, groups=n * channels)
        return sometimes(self.p, image.view_as(x), x)
