"""What changes the light of an image, and not what it shows."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .ranges import (
    check_floats,
    check_images,
    checked_integer,
    checked_range,
    probability,
    sometimes,
)

__all__ = ["Background", "Invert"]

DEVIATION = 0.25  # of light and shade around one half


class Background(nn.Module):
    r"""Light and shade over an image, of each image its own, :math:`x + a (b - 1/2)`.

    b is of mean 1/2 and standard deviation 1/4: products of the longest cosines down
    and across, with normal amplitudes.

    Nothing is clamped here; `Augment` does so at the end.

    Arguments:
        amplitude: The number a.
        waves: The number of cosines, down and across.
        p: The probability that an image is changed.
    """

    def __init__(self, amplitude: float = 1.0, waves: int = 4, *, p: float = 1.0):
        super().__init__()
        checked_range("amplitude", (amplitude, amplitude), 0)
        self.amplitude, self.waves = amplitude, checked_integer("waves", waves, 1)
        self.p = probability("p", p)

    def forward(
        self, x: Float[Tensor, "n channel height width"]
    ) -> Float[Tensor, "n channel height width"]:
        check_images(x, "Background")
        return sometimes(self.p, x + self.amplitude * (self.draw(x) - 0.5), x)

    def draw(self, like: Float[Tensor, "n channel height width"]) -> Tensor:
        """Backgrounds b of the shape of these images."""
        sides = like.shape[-2:]
        down, across = (_cosines(size, self.waves).to(like) for size in sides)
        shape = (*like.shape[:2], self.waves, self.waves)
        amplitudes = torch.randn(shape, device=like.device).to(like)
        return 0.5 + DEVIATION * (down @ amplitudes @ across.mT)


class Invert(nn.Module):
    r"""Bright becomes dark, :math:`1 - x`.

    Arguments:
        p: The probability that an item is inverted.
    """

    def __init__(self, p: float = 1.0) -> None:
        super().__init__()
        self.p = probability("p", p)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        check_floats(x)
        return sometimes(self.p, 1 - x, x)


@lru_cache
def _cosines(size: int, waves: int) -> Float[Tensor, "size wave"]:
    """The longest, scaled so that their squares sum to 1 on average."""
    at, wave = torch.arange(size)[:, None] + 0.5, torch.arange(waves)
    cosines = torch.cos(torch.pi * wave * at / size)
    return cosines / cosines.square().sum(1).mean().sqrt()
