"""Comparisons of methods: dot plots and heat maps."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.ma import masked_invalid
from pandas import DataFrame

from ..arguments import having, typed
from ..estimates import places
from .style import BLUE, INK, PALE, blank, clean, literal

__all__ = ["comparison", "matrix", "terms"]

SCORE_TITLES = {
    "linear_probe": "linear probe",
    "few_label_probe": "few-label probe",
    "knn": "5-NN",
    "cluster_accuracy": "cluster accuracy",
    "nmi": "NMI",
    "ari": "ARI",
}
NATS = ["reconstruction", "entropy", "alignment", "hyper", "penalty", "value", "elbo"]
NATS += ["gaussian_alignment", "gaussian_entropy", "information"]
MATRIX_TITLES = {
    "log_det": "Gaussian\n+ log-det",
    "gaussian_kernel": "Gaussian\n+ KDE",
    "gaussian_nearest": "Gaussian\n+ neighbours",
    "student_nearest": "Student-t\n+ neighbours",
    "spherical_kernel": "sphere\n+ KDE",
    "info_nce": "I(z; z′)\nInfoNCE",
    "gaussian_information": "I(z; z′)\nGaussian",
    "nearest_information": "I(z; z′)\nneighbours",
    "decoded": "log p(x|z)\ndecoder",
    "frozen_elbo": "frozen\nELBO",
    "frozen_evidence": "frozen\nlog p(x)",
    "effective_rank": "effective\nrank",
    "view_distance": "distance\nof views",
    "uniformity": "uniformity",
}
LONG = 1e6  # from here on numbers are written with an exponent
LESS_IS_BETTER = ("view_distance", "uniformity", "seconds")


@typed
def comparison(table: Any, scores: Sequence[str] | None = None) -> Figure:
    """Draw the scores of methods as dots, one panel for each score, the best filled.

    A column with the suffix ``_se`` is the error bar.

    Arguments:
        table: The result of `compare`, or a table with one row for each method and
            scores as columns; NaN where missing.
        scores: The columns to draw; by default those of `evaluation.scores` whose
            largest value is 1.

    Raises:
        ValueError: If a column is missing, or there is none to draw.
    """
    table = _frame(table, "table")
    wanted = list(SCORE_TITLES) if scores is None else scores
    chosen = _columns(table, wanted, scores is None)
    figure = blank(1.6 + 1.6 * len(chosen), 1.0 + 0.32 * len(table))
    panels = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for panel, name in zip(panels, chosen, strict=True):
        _dots(panel, table, name)
    panels[0].set_yticks(range(len(table)), _methods(table))
    panels[0].set_ylim(len(table) - 0.5, -0.5)
    return figure


@typed
def terms(table: Any, columns: Sequence[str] | None = None) -> Figure:
    """Draw measured terms as a table in colour, in nats per item.

    The darker, the higher within its column.

    Arguments:
        table: The result of `compare`, or a table with one row for each method and
            terms as columns; NaN where missing.
        columns: The columns to draw; by default the terms and their sums.

    Raises:
        ValueError: As `comparison`.
    """
    table = _frame(table, "table")
    chosen = _columns(table, NATS if columns is None else columns, columns is None)
    values = table[chosen].to_numpy(dtype=float)
    texts = [[_written(value, 2) for value in row] for row in values]
    figure = blank(1.8 + 1.15 * len(chosen), 1.2 + 0.36 * len(table))
    panel = figure.subplots()
    _heat(panel, values, texts)
    _label(panel, table, [_title(name) for name in chosen])
    _explain(figure, "nats per item; the darker, the higher within its column")
    return figure


@typed
def matrix(table: Any, columns: Sequence[str] | None = None) -> Figure:
    """Draw the scale-invariant measures of a comparison as a heat map, with errors.

    The darker, the better within its column; a column with the suffix ``_se`` is its
    standard error.

    Arguments:
        table: The result of `compare`, or its `matrix`, with one row for each method;
            NaN where missing.
        columns: The columns to draw; by default those of a comparison.

    Raises:
        ValueError: As `comparison`.
    """
    table = _frame(table, "matrix")
    wanted = list(MATRIX_TITLES) if columns is None else columns
    chosen = _columns(table, wanted, columns is None)
    values = table[chosen].to_numpy(dtype=float)
    bars = table.reindex(columns=[f"{name}_se" for name in chosen]).to_numpy(float)
    texts = [
        [_with_error(value, bar) for value, bar in zip(*row, strict=True)]
        for row in zip(values, bars, strict=True)
    ]
    signs = [-1 if name in LESS_IS_BETTER else 1 for name in chosen]
    figure = blank(1.8 + 1.0 * len(chosen), 1.3 + 0.46 * len(table))
    panel = figure.subplots()
    _heat(panel, values * signs, texts)
    _label(panel, table, [MATRIX_TITLES.get(name, _title(name)) for name in chosen])
    units = "nats per item, but for rank, distance and uniformity; ± standard error"
    _explain(figure, f"{units}; the darker, the better within its column")
    return figure


def _frame(source: Any, name: str) -> DataFrame:
    """A table as it is, or that of a `Comparison`, by its name."""
    if isinstance(source, DataFrame):
        return source
    found: DataFrame = having("table", source, name, "a Comparison or a DataFrame")
    return found


def _heat(panel: Axes, values: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """Texts on colours, the darker, the higher within a column; grey where missing.

    Infinities have the colours of the ends of the finite numbers.
    """
    inside = masked_invalid(values)
    low, high = inside.min(0).filled(0), inside.max(0).filled(0)
    share = np.clip(values, low, high) - low
    share /= np.where(high > low, high - low, np.inf)
    colours = colormaps["Blues"](0.05 + 0.5 * share)  # light enough for dark ink
    colours[np.isnan(values)] = (0.95, 0.95, 0.95, 1.0)
    panel.imshow(colours, aspect="auto")
    for (i, j), _ in np.ndenumerate(values):
        panel.text(j, i, texts[i][j], ha="center", va="center", color=INK, fontsize=9)


def _label(panel: Axes, table: DataFrame, titles: list[str]) -> None:
    panel.set_xticks(range(len(titles)), titles)
    panel.set_yticks(range(len(table)), _methods(table))
    panel.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9)
    panel.spines[:].set_visible(False)


def _explain(figure: Figure, text: str) -> None:
    """Write below a figure, in lines as wide as it is."""
    letters = int(figure.get_figwidth() / 0.08)
    figure.supxlabel(fill(text, max(20, letters)), fontsize=9)


def _methods(table: DataFrame) -> list[str]:
    return [literal(method) for method in table.index]


def _written(value: float, digits: int) -> str:
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}" if abs(value) < LONG else f"{value:.2e}"
    return text.replace("-", "−")


def _with_error(value: float, error: float) -> str:
    """The value, and below it its error, both to the error's first digit."""
    if not (np.isfinite(value) and np.isfinite(error) and error > 0):
        return _written(value, 2)
    digits, power = places(value, error)
    end = f"e{power:+03d}".replace("-", "−") if power else ""
    shown, last = (_written(x / 10.0**power, digits) for x in (value, error))
    return f"{shown}{end}\n± {last}{end}"


def _columns(table: DataFrame, wanted: Sequence[str], optional: bool) -> list[str]:
    found = [name for name in wanted if name in table and table[name].notna().any()]
    if not found or (not optional and len(found) < len(wanted)):
        raise ValueError(
            f"expected a table with the columns {', '.join(wanted)}, got "
            f"{', '.join(map(str, table.columns))}; name those to draw"
        )
    return found


def _dots(panel: Axes, table: DataFrame, name: str) -> None:
    clean(panel)
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.set_title(
        SCORE_TITLES.get(name, literal(name.replace("_", " "))), fontsize=10
    )
    values, rows = table[name].to_numpy(dtype=float), range(len(table))
    inside = masked_invalid(values)
    bars = np.zeros(len(table))
    if f"{name}_se" in table:
        errors = table[f"{name}_se"].to_numpy(dtype=float)
        bars = np.where(np.isfinite(errors) & np.isfinite(values), errors, 0)
        panel.errorbar(inside, rows, xerr=bars, fmt="none", ecolor=BLUE, zorder=1)
    low = (inside - bars).min() if inside.count() else 0.0
    high = (inside + bars).max() if inside.count() else 0.0
    best = inside.min() if name in LESS_IS_BETTER else inside.max()
    faces = np.where((inside == best).filled(False), BLUE, "white")
    panel.scatter(inside, rows, s=45, c=faces, edgecolors=BLUE, zorder=2)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
    style |= {"color": INK, "fontsize": 8}
    for row, value, bar in zip(rows, values, bars, strict=True):
        panel.axhline(row, color=PALE, linewidth=1, zorder=0)
        place = value + bar if np.isfinite(value) else low
        text = _written(value, 3).removeprefix("0")
        panel.annotate(text, (place, row), (9, 0), bbox=box, **style)
    span = max(high - low, 0.02)
    panel.set_xlim(low - 0.12 * span, high + 0.45 * span)


def _title(name: str) -> str:
    title = name.replace("gaussian_", "Gaussian\n").replace("_", " ")
    title = "ELBO" if name == "elbo" else literal(title)
    return title + ("\n(not nats)" if name == "penalty" else "")
