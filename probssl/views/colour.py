"""Colour jitter, grayscale, inversion, and random light and shade."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import at_least, whole
from .ranges import (
    Range,
    check_floats,
    check_images,
    check_values,
    checked_range,
    ends,
    per_item,
    probability,
    sometimes,
    uniform,
)

__all__ = ["Background", "Colour", "Grey", "Invert"]

DEVIATION = 0.25  # of Background around one half


class Colour(nn.Module):
    r"""Colour jitter: brightness, contrast, saturation and hue, in this order.

    With the grey image :math:`g(x)` (0.299, 0.587 and 0.114 of red, green and blue; the
    mean of the channels if they are not three) the first three are linear,

    .. math:: x \to b x, \qquad x \to c x + (1 - c) \overline{g(x)}, \qquad
        x \to s x + (1 - s) g(x)

    and done in one pass; then the values are clamped to [0, 1], and the hue is rotated
    in HSV, which keeps the largest and the smallest of the three channels. Without
    arguments the image is unchanged.

    Images outside [0, 1] are refused. Within `Augment` the images are checked before
    the first augmentation, and the results of others are clamped.

    Arguments:
        brightness: The range of b; a number a means (1 - a, 1 + a).
        contrast: The range of c, in the same form.
        saturation: The range of s, in the same form. For RGB images only.
        hue: Rotations of the hue in full turns, within [-1/2, 1/2]; a number a means
            (-a, a). For RGB images only.
        p: The probability that an item is changed at all.

    References:
        Color Gamut Transform Pairs (Smith, 1978), for HSV
        https://doi.org/10.1145/965139.807361
    """

    def __init__(
        self,
        *,
        brightness: Range = 0.0,
        contrast: Range = 0.0,
        saturation: Range = 0.0,
        hue: Range = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.brightness = checked_range("brightness", brightness, 0, centre=1)
        self.contrast = checked_range("contrast", contrast, 0, centre=1)
        self.saturation = checked_range("saturation", saturation, 0, centre=1)
        self.hue = checked_range("hue", hue, -0.5, 0.5, centre=0)
        self.p = probability("p", p)

    def forward(
        self, x: Float[Tensor, "n channel height width"], inside: bool = False
    ) -> Float[Tensor, "n channel height width"]:
        turns = ends(self.hue, 0) != (0, 0)
        fades = ends(self.saturation, 1) != (1, 1)
        what = "saturation and hue" if turns or fades else "brightness and contrast"
        check_images(x, what, colour=turns or fades)
        if not inside:
            check_values(x, self)
        changed = self._linear(x).clamp_(0, 1)
        if turns:
            changed = _turned(changed, uniform(ends(self.hue, 0), x.shape[:1], x))
        return sometimes(self.p, changed, x)

    def _linear(self, x: Tensor) -> Tensor:
        b, c, s = (
            per_item(uniform(ends(value, 1), x.shape[:1], x), x)
            for value in (self.brightness, self.contrast, self.saturation)
        )
        grey = _grey(x)
        mean = grey.mean((-2, -1), keepdim=True)
        offset = grey.mul_(b * c * (1 - s)).add_(b * (1 - c) * mean)
        return torch.addcmul(offset, b * c * s, x)


class Grey(nn.Module):
    """Random grayscale: RGB images without colour, still with three channels.

    Arguments:
        p: The probability that an item becomes grey.
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = probability("p", p)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Tensor:
        check_images(x, "greyscale", colour=True)
        return sometimes(self.p, _grey(x).expand_as(x), x)


class Background(nn.Module):
    r"""A random illumination of each image, :math:`x + a (b - 1/2)`.

    b has mean 1/2 and standard deviation 1/4: products of the longest cosines down and
    across, with normal amplitudes. `Augment` clamps the values at the end.

    Arguments:
        amplitude: The number a, in the units of x.
        waves: The number of cosines, down and across.
        p: The probability that an image is changed.
    """

    def __init__(self, amplitude: float = 1.0, waves: int = 4, *, p: float = 1.0):
        super().__init__()
        self.amplitude = at_least("amplitude", amplitude, 0)
        self.waves = whole("waves", waves)
        self.p = probability("p", p)

    def forward(
        self, x: Float[Tensor, "n channel height width"]
    ) -> Float[Tensor, "n channel height width"]:
        check_images(x, "Background")
        return sometimes(self.p, x + self.amplitude * (self.draw(x) - 0.5), x)

    def draw(self, like: Float[Tensor, "n channel height width"]) -> Tensor:
        """Draw backgrounds b with the shape of these images."""
        sides = like.shape[-2:]
        down, across = (_cosines(size, self.waves).to(like) for size in sides)
        shape = (*like.shape[:2], self.waves, self.waves)
        amplitudes = torch.randn(shape, device=like.device).to(like)
        return 0.5 + DEVIATION * (down @ amplitudes @ across.mT)


class Invert(nn.Module):
    r"""Random inversion of the grey levels, :math:`1 - x`, of images in [0, 1].

    Arguments:
        p: The probability that an item is inverted.
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__()
        self.p = probability("p", p)

    def forward(
        self, x: Float[Tensor, "n *event"], inside: bool = False
    ) -> Float[Tensor, "n *event"]:
        check_floats(x)
        if not inside:
            check_values(x, self)
        return sometimes(self.p, 1 - x, x)


def _grey(x: Tensor) -> Float[Tensor, "n 1 height width"]:
    """Luma as in Rec. 601 for three channels, their mean for other numbers."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turned(x: Tensor, turn: Float[Tensor, " n"]) -> Float[Tensor, "n 3 height width"]:
    r"""Images with the hue h in HSV rotated, with m = min and C = max − min of R, G, B.

    .. math:: 6 h = \pm \left(1 + \frac{G + B - R - m}{C}\right) \in [-3, 3], \qquad
        x_k = m + C \min(1, \max(0, |6 \{h - k / 3\} - 3| - 1)), \quad k = 0, 1, 2

    with the sign of G − B, and the fractional part in braces.
    """
    red, green, blue = x.split(1, 1)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)

    # Grey has no hue: its numerator and its chroma are zero.
    fold = (green + blue).sub_(red).sub_(low)
    fold = fold.div_(chroma.clamp_min(torch.finfo(x.dtype).tiny)).add_(1).div_(6)
    hue = torch.copysign(fold, green - blue) + per_item(turn, x)

    channels = torch.arange(3, dtype=x.dtype, device=x.device).view(3, 1, 1) / 3
    wave = hue + (2 - channels)  # two turns more: frac wants no negative number
    wave = wave.frac_().mul_(6).sub_(3).abs_().sub_(1).clamp_(0, 1)
    return wave.mul_(chroma).add_(low)


@lru_cache
def _cosines(size: int, waves: int) -> Float[Tensor, "size wave"]:
    """The longest cosines, scaled so that their squares sum to 1 on average."""
    at, wave = torch.arange(size)[:, None] + 0.5, torch.arange(waves)
    cosines = torch.cos(torch.pi * wave * at / size)
    return cosines / cosines.square().sum(1).mean().sqrt()
