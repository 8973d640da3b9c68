"""What all figures share: paper, colours, and arrays of any origin."""

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
    """A figure of so many inches that pyplot does not keep, so none is shown twice."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)
    return figure


def close(figures: "Iterable[Figure]") -> None:
    """Free what figures hold, all at once, once they are written."""
    for figure in figures:
        figure.clear()


def clean(axes: "Axes") -> None:
    """Leave only the frame that is read from."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(color="#888888", labelsize=9)


def plain(values: Array) -> np.ndarray:
    """Values as a NumPy array, off the graph and the device."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # unknown to NumPy
            values = values.float()
    return np.asarray(values)
