"""Posteriors: ranks and coverage of calibration, prior and posterior of parameters."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)
from scipy.stats import binom

from ..arguments import having, typed
from ..arrays import finite
from .style import BLUE, INK, ORANGE, PALE, blank, clean, lines, literal

__all__ = ["expected_coverage", "hyper_parameters", "predictive_intervals", "ranks"]

DENSITY_BINS = 40
WIDEST = 10  # panels of ranks side by side
MOST = 50  # panels of a figure
CHANNELS = 8  # of a series; of more numbers at a time it is none
COLUMNS = 4  # panels of hyper-parameters side by side
LEVELS = 201  # of the band of expected coverage
LONGEST = 36  # characters in a line above such a panel
FEWEST = 20  # draws of an interval of 90 %


@typed
def ranks(ranks: Any, *, bins: int = 10, ax: Axes | None = None) -> Figure:
    """Draw the histogram of ranks, over the band that holds 99 % of uniform counts.

    The band holds for each bin by itself: one bin in a hundred leaves it by chance.
    Further axes of the ranks (the views and dimensions of z) have a panel each.

    Arguments:
        ranks: The result of `calibration`: whole numbers `ranks` from 0 to `draws`,
            independent along their first axis.
        ax: The axes to draw into, for ranks of a single quantity; None makes a figure.

    Raises:
        ValueError: If there are no ranks, no bins, more than 50 quantities, or several
            for one pair of axes.
    """
    found = having("ranks", ranks, "ranks", "a result of ps.calibration, Ranks")
    columns = np.asarray(found).reshape(len(found), -1)
    n, quantities = columns.shape
    most = MOST if ax is None else 1
    if not n or not 1 <= quantities <= most or not 1 <= bins <= ranks.draws + 1:
        raise ValueError(
            f"expected at least 1 rank of 1 to {most} quantities, and from 1 to "
            f"{ranks.draws + 1} bins, got {n} ranks of {quantities} and {bins} bins; "
            "pass a part of them: Ranks(r.ranks[:, 0, 0], r.draws)"
        )
    if not 0 <= columns.min() <= columns.max() <= ranks.draws:
        raise ValueError(
            f"expected ranks from 0 to {ranks.draws}, the number of draws, got from "
            f"{columns.min()} to {columns.max()}; give the draws that ranked them"
        )
    said = f"rank among {ranks.draws} draws; grey: 99 % of uniform counts"
    if ax is not None:
        _histogram(ax, columns[:, 0], ranks.draws, bins)
        ax.set_xlabel(said)
        ax.set_ylabel("count")
        return ax.figure.figure  # the whole of a subfigure
    shape = np.shape(ranks.ranks)[1:]
    wide = shape[-1] if len(shape) > 1 else quantities
    wide = wide if wide <= WIDEST else math.ceil(quantities**0.5)
    high = math.ceil(quantities / wide)
    figure = blank(4.4, 2.8) if quantities == 1 else blank(1 + 1.6 * wide, 1 + high)
    panels = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    places = zip(panels.ravel(), columns.T, np.ndindex(*shape), strict=False)
    for panel, column, place in places:
        _histogram(panel, column, ranks.draws, bins)
        panel.set_title(", ".join(map(str, place)), fontsize=9)
    for panel in panels.ravel()[quantities:]:
        panel.remove()
    figure.supxlabel(said, fontsize=10)
    figure.supylabel("count", fontsize=10)
    return figure


def _histogram(panel: Axes, ranks: np.ndarray, draws: int, bins: int) -> None:
    clean(panel)
    bin_of = np.arange(draws + 1) * bins // (draws + 1)
    counts = np.bincount(bin_of[ranks], minlength=bins)
    share = np.bincount(bin_of, minlength=bins) / (draws + 1)
    edges = np.append(0, np.cumsum(share * (draws + 1))) - 0.5
    low, high = binom.ppf([[0.005], [0.995]], len(ranks), share)
    panel.stairs(high, edges, baseline=low, fill=True, color=PALE)
    panel.stairs(len(ranks) * share, edges, baseline=None, color="#888888", lw=1)
    panel.stairs(counts, edges, baseline=None, color=BLUE, lw=1.5)
    panel.set_xlim(edges[0], edges[-1])
    panel.set_ylim(0, max(panel.get_ylim()[1], 1.1 * counts.max(), 1.1 * high.max()))
    panel.tick_params(labelcolor=INK)


@typed
def expected_coverage(found: Any, *, ax: Axes | None = None) -> Figure:
    """Draw how often credible regions hold the true value, against what they say.

    A calibrated posterior follows the diagonal, to within the band that holds 99 % of
    such curves at each level by itself. One that is too narrow crosses it: its small
    regions hold too many true values, its large ones too few.

    Arguments:
        found: TARP's ranks, `calibration.Ranks` of one number for each item; or a
            mapping of these, by name, of as many items.
        ax: The axes to draw into; None makes a figure.

    Raises:
        ValueError: If there are no ranks, several quantities in one, or different
            numbers of items.
    """
    named = found if isinstance(found, Mapping) else {"": found}
    for one in named.values():
        having("found", one, "ranks", "a result of ps.calibration.tarp, Ranks")
    shapes = {np.shape(one.ranks) for one in named.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        raise ValueError(
            "expected ranks (item,) of as many items in all, got shapes "
            f"{[np.shape(one.ranks) for one in named.values()]}; TARP has one rank for "
            "each item, plots.ranks draws those of several quantities"
        )
    figure = blank(3.8, 3.6) if ax is None else ax.figure.figure
    panel = figure.subplots() if ax is None else ax
    clean(panel)
    level = np.linspace(0, 1, LEVELS)
    low, high = binom.ppf([[0.005], [0.995]], shape[0], level) / shape[0]
    panel.fill_between(level, low, high, color=PALE, lw=0)
    panel.plot([0, 1], [0, 1], color="#888888", lw=1)
    colours = [BLUE, ORANGE, INK, "#009E73", "#CC79A7"]  # of Okabe and Ito
    for (name, one), colour in zip(named.items(), cycle(colours), strict=False):
        cells = one.draws + 1
        share = np.bincount(np.asarray(one.ranks), minlength=cells).cumsum() / shape[0]
        steps = np.append(0, share)
        at = np.arange(cells + 1) / cells
        panel.plot(at, steps, color=colour, lw=1.5, label=literal(name))
    panel.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="credibility level; grey: 99 % if calibrated"
    )
    panel.set_ylabel("expected coverage")
    panel.set_aspect("equal")
    if isinstance(found, Mapping):
        panel.legend(frameon=False)
    return figure


def hyper_parameters(idata: Any) -> Figure:
    """Draw prior and posterior of each random hyper-parameter, on a logarithmic axis.

    One that has several numbers, such as one for each dimension, has as many panels.
    The title has the posterior median and the interval that holds 90 %. Both are scaled
    to the same height: a posterior may be a hundred times as narrow as its prior.

    Arguments:
        idata: The result of `to_arviz`.

    Raises:
        ValueError: If it has no random hyper-parameter, more than 50 numbers of them,
            or a draw is not finite.
    """
    posterior, prior = idata["posterior"], idata["prior"]
    numbers: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name, values in posterior.data_vars.items():
        if "item" in values.dims:
            continue
        axes = [values[axis].values for axis in values.dims[2:]]
        for place in np.ndindex(*values.shape[2:]):
            at = ", ".join(str(axis[i]) for axis, i in zip(axes, place, strict=True))
            title = literal(name, 18) + f"[{at}]" * bool(at)
            before, after = (x[name].values[..., *place] for x in (prior, posterior))
            numbers.append((title, before, after))
    if not numbers:
        raise ValueError(
            "expected a posterior with random hyper-parameters, got only "
            f"{', '.join(map(str, posterior.data_vars))}; give a scale, concentration "
            "or temperature as a Pyro distribution"
        )
    if len(numbers) > MOST:
        raise ValueError(
            f"expected at most {MOST} numbers of random hyper-parameters, got "
            f"{len(numbers)}; pass a part of them: idata.isel(dim=slice({MOST}))"
        )
    wide = min(COLUMNS, len(numbers))
    high = math.ceil(len(numbers) / wide)
    figure = blank(1 + 3.2 * wide, 0.4 + 2.2 * high)
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    for panel in panels[len(numbers) :]:
        panel.remove()
    for panel, (title, before, after) in zip(panels, numbers, strict=False):
        _densities(panel, before, after, title)
    lines, said = panels[0].get_legend_handles_labels()
    figure.legend(lines, said, loc="outside lower center", ncols=2, frameon=False)
    return figure


@typed
def predictive_intervals(idata: Any, *, items: int = 4, variable: str = "x") -> Figure:
    r"""Draw observed series, counts or rows of tables over their predictive intervals.

    The bands hold the central 50 % and 90 % of the draws of
    :math:`p(\tilde x \mid x) = \int p(\tilde x \mid z) \, q(z \mid x) \, dz` at each
    number of an item, by itself. Numbers outside the wider band are orange. Above each
    panel stands the share of its numbers within: of new data from the model about 0.9,
    of the data that z was inferred from rather more. Each item has a panel for each of
    its views; a series of several channels, (time, channel) or (channel, time) with the
    longer axis as time, one for each of up to 8 channels. Other items, such as images,
    are one row of numbers.

    Arguments:
        idata: The result of `to_arviz`, with `posterior_predictive`.
        items: The number of items, the first ones.
        variable: The name of the data, of several modalities one of them.

    Raises:
        ValueError: Without the variable, for fewer than 20 draws, or more than 50
            panels.
    """
    found = []
    for group in ("posterior_predictive", "observed_data"):
        try:
            found.append(idata[group][variable])
        except (KeyError, TypeError, AttributeError):
            raise ValueError(
                f"expected {variable!r} in the group {group} for predictive intervals, "
                f"got {type(idata).__name__} without; give ps.to_arviz(objective, data)"
            ) from None
    drawn, seen = found
    first = {"item": slice(min(items, seen.sizes["item"]))}
    seat = {"view", f"view_{variable}"}.intersection(seen.dims)
    order = ("item", *seat)
    x = seen.isel(first).transpose(*order, ...).to_numpy()
    draws = drawn.isel(first).stack(every=("chain", "draw"))
    each = draws.transpose("every", *order, ...).to_numpy()
    channels = 1
    if x.ndim == len(order) + 2 and min(x.shape[-2:]) <= CHANNELS:
        x, each = lines(x), lines(each)
        channels = x.shape[-2]
    panels = math.prod(x.shape[: len(order)]) * channels
    x, each = x.reshape(panels, -1), each.reshape(len(each), panels, -1)
    if len(each) < FEWEST or not 1 <= panels <= MOST:
        raise ValueError(
            f"expected at least {FEWEST} draws, and from 1 to {MOST} panels, got "
            f"{len(each)} and {panels}; raise draws in to_arviz, or give fewer items"
        )
    numbers, many = (
        seen.isel(first)["item"].to_numpy(),
        math.prod(seen.sizes[dim] for dim in seat),
    )
    names = [f"item {literal(n, 8)}" for n in numbers for _ in range(many)]
    if many > 1:
        names = [f"{name}, view {i % many}" for i, name in enumerate(names)]
    if channels > 1:
        names = [f"{name}, channel {c}" for name in names for c in range(channels)]
    low, lower, upper, high = np.quantile(each, (0.05, 0.25, 0.75, 0.95), axis=0)
    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    figure = blank(2.6 * columns, 1.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    place = np.arange(x.shape[1])
    for i, panel in enumerate(axes):
        if i >= panels:
            panel.set_axis_off()
            continue
        clean(panel)
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="y", nbins=4)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for ends, shade in (((low, high), 0.25), ((lower, upper), 0.45)):
            panel.fill_between(
                place, *(end[i] for end in ends), color=BLUE, alpha=shade, lw=0
            )
        known = np.isfinite(x[i])
        inside = (low[i] <= x[i]) & (x[i] <= high[i])
        for part, colour in ((known & inside, INK), (known & ~inside, ORANGE)):
            panel.plot(place[part], x[i][part], ".", color=colour, ms=4)
        share = f"{inside[known].mean():.2f}" if known.any() else "absent"
        panel.set_title(f"{names[i]}: {share}", fontsize=9)
    figure.supxlabel(
        "place in the item; bands: 50 % and 90 % of draws; above: share within 90 %",
        fontsize=8,
    )
    return figure


def _densities(panel: Axes, before: np.ndarray, after: np.ndarray, name: str) -> None:
    clean(panel)
    before, after = finite(before), finite(after)
    low, median, high = np.quantile(after, [0.05, 0.5, 0.95])
    value, interval = f"{name} = {median:.3g}", f"[{low:.3g}, {high:.3g}]"
    apart = "  " if len(value + interval) < LONGEST else "\n"
    panel.set_title(value + apart + interval, fontsize=10)
    for values, label, fill in ((before, "prior", True), (after, "posterior", False)):
        low, high = np.quantile(np.log(values), [0.002, 0.998])
        counts, edges = np.histogram(
            np.log(values), np.linspace(low, high, DENSITY_BINS + 1)
        )
        colour = PALE if fill else BLUE
        height = counts / counts.max()
        panel.stairs(height, np.exp(edges), label=label, color=colour, fill=fill)
    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter(NullFormatter())
    left, right = panel.get_xlim()
    if right < 100 * left:  # powers of ten are too far apart
        near = right < 10 * left
        locator = MaxNLocator(4) if near else LogLocator(subs=(1, 2, 5))
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
