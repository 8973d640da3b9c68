"""Prior and posterior of hyper-parameters."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .style import BLUE, PALE, blank, clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["hyper_parameters"]

BINS = 40


def hyper_parameters(idata: Any) -> "Figure":
    """Draw prior and posterior of each random hyper-parameter, on a logarithmic axis.

    The title has the posterior median and the interval that holds 90 %. Both are scaled
    to the same height: a posterior may be a hundred times as narrow as its prior.

    Arguments:
        idata: What `to_arviz` returned.

    Raises:
        ValueError: If there is no random hyper-parameter in it.
    """
    posterior, prior = idata["posterior"], idata["prior"]
    names = [
        str(name)
        for name, values in posterior.data_vars.items()
        if set(values.dims) <= {"chain", "draw", "dim"}
    ]
    if not names:
        raise ValueError(
            "expected a posterior with random hyper-parameters, got only "
            f"{', '.join(map(str, posterior.data_vars))}; give a scale, concentration "
            "or temperature as a Pyro distribution"
        )
    figure = blank(1 + 3.2 * len(names), 2.6)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _densities(panel, prior[name].values, posterior[name].values, name)
    lines, said = panels[0].get_legend_handles_labels()
    figure.legend(lines, said, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _densities(panel: "Axes", before: np.ndarray, after: np.ndarray, name: str) -> None:
    clean(panel)
    low, median, high = np.quantile(after, [0.05, 0.5, 0.95])
    panel.set_title(f"{name} = {median:.3g}  [{low:.3g}, {high:.3g}]", fontsize=10)
    for values, label, fill in ((before, "prior", True), (after, "posterior", False)):
        low, high = np.quantile(np.log(values), [0.002, 0.998])
        counts, edges = np.histogram(np.log(values), np.linspace(low, high, BINS + 1))
        colour = PALE if fill else BLUE
        height = counts / counts.max()
        panel.stairs(height, np.exp(edges), label=label, color=colour, fill=fill)
    panel.set_xscale("log")
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
