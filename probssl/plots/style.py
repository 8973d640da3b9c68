"""Shared by all figures: canvas, colours, conversion of arrays."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "INK", "ORANGE", "PALE", "Array", "blank", "clean", "close", "plain"]

Array = np.ndarray | Tensor

# Two of the colours of Okabe and Ito, and two greys.
BLUE, ORANGE, INK, PALE = "#0072B2", "#D55E00", "#333333", "#DDDDDD"


def blank(width: float, height: float) -> "Figure":
    """A figure, sizes in inches, that pyplot does not keep, lest it be shown twice."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)
    return figure


def close(figures: "Iterable[Figure]") -> None:
    """Free the memory of figures."""
    for figure in figures:
        figure.clear()


def clean(axes: "Axes") -> None:
    """Keep only the left and bottom axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(color="#888888", labelsize=9)


def plain(values: Array) -> np.ndarray:
    """A NumPy array of the values, detached and on the host."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # unknown to NumPy
            values = values.float()
    return np.asarray(values)
