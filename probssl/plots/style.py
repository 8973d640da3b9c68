"""Shared by all figures: canvas, axes and colours."""

from collections.abc import Iterable

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["BLUE", "INK", "ORANGE", "PALE", "blank", "clean", "close", "shorten"]

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


def shorten(name: str, longest: int) -> str:
    """A name of at most `longest` characters, its middle replaced by … where it is cut.

    The middle goes, since names often differ at their ends.
    """
    if len(name) <= longest:
        return name
    head = longest // 2
    return f"{name[:head]}…{name[len(name) - (longest - head - 1) :]}"


def clean(axes: Axes) -> None:
    """Keep only the left and bottom axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(color="#888888", labelsize=9)
