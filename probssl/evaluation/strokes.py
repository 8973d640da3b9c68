"""Style factors of drawn digits and letters, measured from the pixels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from ..arrays import Array, numbers

__all__ = ["Strokes", "strokes"]


class Strokes(NamedTuple):
    """Style factors of each image, in pixels but for the slant.

    Arguments:
        x: The centre of the ink, to the right of the middle of the image.
        y: The same downwards.
        size: The root mean square distance of the ink from its centre.
        slant: How far the ink goes to the right from one row to the next below, by
            linear regression of the column on the row; negative for most handwriting.
        thickness: Twice the area of the ink over its perimeter: the width of a long
            stroke.
    """

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    size: Float[np.ndarray, " n"]
    slant: Float[np.ndarray, " n"]
    thickness: Float[np.ndarray, " n"]

    @property
    def table(self) -> Float[np.ndarray, "n factor"]:
        """All of them as columns, for `style_probe`, `mcc` and their like."""
        return np.stack(self, 1)


def strokes(images: Shaped[Array, "n 1 height width"]) -> Strokes:
    r"""Measure position, size, slant and thickness of bright ink on a dark ground.

    With the ink I of a pixel in row r and column c, weighted means E by ink,

    .. math:: \text{slant} = \frac{\mathrm{Cov}(c, r)}{\mathrm{Var}(r)}, \qquad
        \text{size}^2 = \mathrm{Var}(r) + \mathrm{Var}(c), \qquad
        \text{thickness} = \frac{2 \sum I}{\sum \lVert \nabla I \rVert}

    The sum of the gradient's length is the perimeter of a black and white image with
    edges of some pixels; of differences between neighbours it is about that.

    Arguments:
        images: Grey levels, 0 for the ground: bytes, or numbers from 0 to 1.

    Raises:
        ValueError: For other shapes, numbers that are negative or not finite, or an
            image without ink, or with all of it in one row.
    """
    x = numbers(images, "images").astype(float)
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(
            "expected grey images (n, 1, height, width), got "
            f"{np.shape(images)}; take one channel, images.mean(1, keepdims=True)"
        )
    if not (np.isfinite(x).all() and x.min() >= 0):
        raise ValueError(
            "expected ink from 0, the ground, upwards, got negative or infinite "
            "numbers, or NaN; invert or shift the images first"
        )
    n, height, width = x.shape
    total = x.sum((1, 2))
    rows, columns = (
        np.arange(height) - (height - 1) / 2,
        np.arange(width) - (width - 1) / 2,
    )
    blank = int((total == 0).sum())
    if blank:
        raise ValueError(
            f"expected ink in each image, got none in {blank} of {n}; leave these out"
        )
    y = (x.sum(2) @ rows) / total
    across = (x.sum(1) @ columns) / total
    r, c = rows - y[:, None], columns - across[:, None]
    var_r = (x.sum(2) * r**2).sum(1) / total
    var_c = (x.sum(1) * c**2).sum(1) / total
    if not (var_r > 0).all():
        raise ValueError(
            f"expected ink in several rows of each image for a slant, got "
            f"{int((var_r == 0).sum())} with one; leave these out"
        )
    both = np.einsum("nij,ni,nj->n", x, r, c) / total
    largest = x.max((1, 2), keepdims=True)
    padded = np.pad(x / largest, ((0, 0), (1, 1), (1, 1)))
    down, right = np.gradient(padded, axis=(1, 2))
    perimeter = np.hypot(down, right).sum((1, 2))
    area = (x / largest).sum((1, 2))
    return Strokes(
        across, y, np.sqrt(var_r + var_c), both / var_r, 2 * area / perimeter
    )
