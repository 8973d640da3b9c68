"""The evidence behind the advice: joint embedding or reconstruction."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..arguments import having, typed
from .style import BLUE, INK, ORANGE, PALE, blank, clean

__all__ = ["advice"]

DIRECTIONS = 60  # of a spectrum
MIN_ALIGNMENT = 0.1  # on the logarithmic axis; smaller values are drawn here


@typed
def advice(found: Any) -> Figure:
    """Draw the spectra of both paradigms, and the alignment that each needs.

    Directions taken for relevant are blue, others orange; a paradigm recovers the
    relevant ones if its components, left of the line, are blue. Where directions of
    both kinds mix, the spectrum with fewer relevant ones decides. All components are
    relevant if the alignment of the views, the vertical line with its interval, exceeds
    the paradigm's threshold.

    Arguments:
        found: The result of `linear.advise`.
    """
    having("found", found, "spectra", "the result of ps.linear.advise")
    figure = blank(10.0, 3.0)
    panels = figure.subplots(1, len(found.spectra) + 1)
    for panel, (name, spectrum) in zip(panels, found.spectra.items(), strict=False):
        _spectrum(panel, spectrum, found.n_components)
        panel.set_title(name, fontsize=10)
    panels[0].set_ylabel("eigen- or singular value")
    _alignments(panels[-1], found)
    said = f"{found.verdict}, on {found.support:.0%} of random halves of the images"
    figure.suptitle(said, fontsize=11)
    return figure


def _spectrum(panel: Axes, spectrum: Any, k: int) -> None:
    clean(panel)
    values = np.asarray(spectrum.values)[:DIRECTIONS]
    relevant = np.asarray(spectrum.relevant)[:DIRECTIONS]
    ranks = np.arange(1, len(values) + 1)
    for chosen, colour, said in (
        (relevant, BLUE, "relevant"),
        (~relevant, ORANGE, "irrelevant"),
    ):
        panel.plot(ranks[chosen], values[chosen], ".", color=colour, label=said)
    if k:
        panel.axvline(k + 0.5, color=PALE, linewidth=1.2, zorder=0)
    panel.set_ylim(bottom=min(0.0, float(values.min())))
    panel.set_xlabel("direction")
    panel.legend(frameon=False, fontsize=8, loc="upper right")


def _alignments(panel: Axes, found: Any) -> None:
    """Thresholds as dots with intervals, over the band of the views' alignment."""
    clean(panel)
    if not found.noise.value:
        panel.text(0.5, 0.5, "nothing irrelevant\nwas found", ha="center", va="center")
        panel.set_axis_off()
        return
    value, low, high = (max(x, MIN_ALIGNMENT) for x in found.alignment)
    panel.axvspan(low / 1.02, high * 1.02, color=PALE, zorder=0)
    panel.axvline(value, color=INK, linewidth=1, label="the views' alignment")
    for row, (name, threshold) in enumerate(found.thresholds.items()):
        at, least, most = (max(x, MIN_ALIGNMENT) for x in threshold)
        panel.plot([least, most], [row, row], color=ORANGE)
        panel.plot(at, row, "o", color=ORANGE, label=None if row else "needed")
        panel.annotate(name, (at, row), (0, 8), textcoords="offset points", ha="center")
    panel.set_xscale("log")
    panel.margins(x=0.35)
    panel.set_ylim(len(found.thresholds) - 0.4, -0.6)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    panel.set_xlabel("alignment")
    panel.legend(frameon=False, fontsize=8, loc="lower center")
