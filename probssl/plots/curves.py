"""Learning curves: the value and its terms against the epoch."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from ..arguments import counted, having, typed
from .style import BLUE, ORANGE, blank, clean, literal

__all__ = ["learning_curves"]

CURVES = ("value", "reconstruction", "entropy", "alignment", "hyper", "penalty")


@typed
def learning_curves(history: Any) -> Figure:
    """Draw the value of an objective and each of its terms against the epoch.

    A term that is zero throughout is left out; validation is dashed. The title says how
    many numbers are not finite and so are missing from the curve.

    Arguments:
        history: The result of `fit`, or a table with the columns epoch, value, the
            terms, and the same with ``valid_`` before them. Or several of these by
            name, as `Comparison.curves`: a panel for each shows its value, on one
            scale, from which the first tenth of the epochs may fall off.

    Raises:
        ValueError: If there is no epoch, or nothing to draw.
    """
    if isinstance(history, Mapping):
        return _side_by_side(history)
    table = _table(history)
    given = [name for name in CURVES if name in table.columns]
    names = [name for name in given if table[name].any()]
    if not given or table.empty:
        raise ValueError(
            f"expected at least one epoch and one of the columns {', '.join(CURVES)}, "
            f"got {counted(len(table), 'epoch')} and "
            f"{', '.join(table.columns) or 'no column'}; pass what ps.fit returned"
        )
    if not names:
        found = "NaN" if table[given].isna().all(axis=None) else "0 or NaN"
        raise ValueError(
            f"expected a number other than 0 and NaN in {', '.join(given)}, got only "
            f"{found} in {counted(len(table), 'epoch')}; pass a history with such "
            "numbers"
        )
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = blank(1 + 2.7 * columns, 0.4 + 2.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _curve(panel, table, name)
    for panel in panels[len(names) :]:
        panel.remove()
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("nats per item", fontsize=10)
    if any(f"valid_{name}" in table.columns for name in names):
        lines, said = panels[0].get_legend_handles_labels()
        figure.legend(lines, said, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _table(history: Any) -> DataFrame:
    """The table of a history, with the epochs as its index."""
    table = getattr(history, "table", history)
    having("history", table, "columns", "what ps.fit returned, or a DataFrame")
    return table.set_index("epoch") if "epoch" in table.columns else table


def _side_by_side(histories: Mapping[str, Any]) -> Figure:
    """The value of each history in a panel of its own, all on one scale."""
    tables = {name: _table(history) for name, history in histories.items()}
    bad = [k for k, t in tables.items() if t.empty or "value" not in t.columns]
    if bad or not tables:
        raise ValueError(
            "expected histories by name, each of at least one epoch with a value, got "
            f"{', '.join(map(str, bad)) or 'none'} without; give those that "
            "compare(evidence=1000).curves has"
        )
    columns = min(4, len(tables))
    rows = math.ceil(len(tables) / columns)
    figure = blank(1 + 2.1 * columns, 0.6 + 1.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    seen = []
    for panel, (name, table) in zip(panels, tables.items(), strict=False):
        _curve(panel, table, "value")
        panel.set_title(literal(name), fontsize=10)
        late = table.iloc[len(table) // 10 :].filter(regex="^(valid_)?value$")
        seen.append(late.to_numpy(dtype=float).ravel())
    for panel in panels[len(tables) :]:
        panel.remove()
    shown = np.concatenate(seen)
    shown = shown[np.isfinite(shown)]
    if shown.size and (width := np.ptp(shown)) > 0:
        panels[0].set_ylim(shown.min() - 0.05 * width, shown.max() + 0.05 * width)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("nats per item", fontsize=10)
    lines, said = panels[0].get_legend_handles_labels()
    figure.legend(lines, said, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _curve(panel: Axes, table: DataFrame, name: str) -> None:
    clean(panel)
    penalised = "penalty" in table.columns and table["penalty"].any()
    foreign = penalised and name in ("value", "penalty")
    bad = int((~np.isfinite(table[name])).sum())
    notes = ["not nats"] * bool(foreign) + [f"{bad} not finite"] * bool(bad)
    panel.set_title(name + (f" ({', '.join(notes)})" if notes else ""), fontsize=10)
    marker = "." if len(table) < 30 else ""
    panel.plot(table.index, table[name], color=BLUE, marker=marker, label="training")
    valid = f"valid_{name}"
    if valid in table.columns:
        values = table[valid].dropna()
        line = panel.plot(values.index, values, "--", color=ORANGE, marker=marker)
        line[0].set_label("validation")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
