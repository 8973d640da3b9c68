"""Shared by all figures: canvas, axes and colours."""

from collections.abc import Iterable

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "INK", "ORANGE", "PALE", "blank", "clean", "close", "lines"]
__all__ += ["literal"]

# Two of the colours of Okabe and Ito, and two greys.
BLUE, ORANGE, INK, PALE = "#0072B2", "#D55E00", "#333333", "#DDDDDD"


def blank(width: float, height: float) -> Figure:
    """A figure, sizes in inches, that pyplot does not keep, lest it be shown twice."""
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    pyplot.close(figure)
    return figure


def close(figures: Iterable[Figure]) -> None:
    """Free the memory of figures."""
    for figure in figures:
        figure.clear()


def lines(series: np.ndarray) -> np.ndarray:
    """Series (…, channel, time), of which the longer of the last two axes is time.

    A series of one axis has one channel.
    """
    if series.ndim < 2:
        return series[None]
    short = series.shape[-1] < series.shape[-2]
    return series.swapaxes(-1, -2) if short else series


def literal(name: object, longest: int = 40) -> str:
    """A name from outside, of at most `longest` characters, without formulae.

    Where it is cut … replaces the middle, since names often differ at their ends.
    Matplotlib would set what is between two dollars as a formula.
    """
    text = str(name)
    if len(text) > longest:
        head = longest // 2
        text = f"{text[:head]}…{text[len(text) - (longest - head - 1) :]}"
    return text.replace("$", r"\$")


def clean(axes: Axes) -> None:
    """Keep only the left and bottom axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(color="#888888", labelsize=9)
