"""What colour pixels have: brightness, contrast, saturation, hue, and none at all."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .ranges import (
    Range,
    check_images,
    checked_range,
    ends,
    per_item,
    probability,
    sometimes,
    uniform,
)

__all__ = ["Colour", "Grey"]


class Colour(nn.Module):
    r"""Brightness, contrast, saturation and hue of each image, in this order.

    With the grey image :math:`g(x)` (0.299, 0.587 and 0.114 of red, green and blue; the
    mean of the channels if they are not three) the first three are linear,

    .. math:: x \to b x, \qquad x \to c x + (1 - c) \overline{g(x)}, \qquad
        x \to s x + (1 - s) g(x)

    and done in one pass; then the values are clamped to [0, 1], and the hue is turned
    in HSV, which keeps the largest and the smallest of the three channels.

    Name what you want: without arguments no colour changes.

    Arguments:
        brightness: Factors b; a number a means (1 - a, 1 + a).
        contrast: Factors c, in the same form.
        saturation: Factors s, in the same form. For RGB images only.
        hue: Full turns, within [-1/2, 1/2]; a number a means (-a, a). For RGB only.
        p: The probability that an item changes at all.

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
        self, x: Float[Tensor, "n channel height width"]
    ) -> Float[Tensor, "n channel height width"]:
        turns = ends(self.hue, 0) != (0, 0)
        fades = ends(self.saturation, 1) != (1, 1)
        what = "saturation and hue" if turns or fades else "brightness and contrast"
        check_images(x, what, colour=turns or fades)
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
    """RGB images without their colour, still with three channels.

    Arguments:
        p: The probability that an item turns grey.
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.p = probability("p", p)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Tensor:
        check_images(x, "greyscale", colour=True)
        return sometimes(self.p, _grey(x).expand_as(x), x)


def _grey(x: Tensor) -> Float[Tensor, "n 1 height width"]:
    """Luma as in Rec. 601 for three channels, their mean for other numbers."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turned(x: Tensor, turn: Float[Tensor, " n"]) -> Float[Tensor, "n 3 height width"]:
    r"""The hue h in HSV turned, with m = min and C = max − min of R, G, B.

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
