"""Maps of representations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from pandas import Series, factorize
from pandas.api.types import is_float_dtype, is_numeric_dtype

from ..arguments import typed, whole
from ..arrays import (
    Array,
    finite,
    gate,
    numbers,
    plain,
    representations,
    unlabelled,
)
from .style import INK, blank, clean, literal

__all__ = ["latent_map", "latent_maps"]

# Tol's muted scheme, in an order of our own, with a grey for the tenth class.
COLOURS = ["#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE"]
COLOURS += ["#882255", "#44AA99", "#AA4499", "#999933", "#555555"]
MARKERS = "o^s"
UNLABELLED = "#BBBBBB"
COLUMNS = 4  # maps side by side

# What holds 90 % of a standard normal, in the plane and on the line.
RADIUS_OF_90 = math.sqrt(-2 * math.log(0.1))
Z_OF_90 = 1.6449


@typed
def latent_map(
    z: Float[Array, "n dim"],
    labels: Shaped[Array, " n"] | Sequence[Any] | None = None,
    std: Float[Array, "n dim"] | None = None,
    *,
    ellipses: int = 40,
) -> Figure:
    """Draw representations in the plane, coloured by label.

    More than two dimensions are projected on the first two principal axes; a single one
    is drawn against the number of the item.

    Arguments:
        labels: Up to 30 classes, or numbers, which get a scale of colours. Items whose
            label is None or NaN are grey; so are those of -1, no class, among the
            labels of a data set whose classes have names.
        std: The standard deviations of q(z|x); an ellipse (in one dimension a bar) then
            holds 90 % of a normal with these and without correlations, which q of
            `guides.DiagonalGaussian` is.
        ellipses: The number of items that have an ellipse, spread evenly over the rows.

    Raises:
        ValueError: If z is not finite or not of shape (n, dim), or if labels or std are
            not of the same items, or not finite.
    """
    z = representations(z, squared=False)[0]
    if std is not None:
        std = finite(std, "std")
        if std.shape != z.shape or std.min() < 0:
            raise ValueError(
                f"expected std of the shape {z.shape} of z, none negative, got "
                f"{std.shape} from {std.min():.3g}; take both from one "
                "ps.embed(..., return_std=True)"
            )
    xy, axes, names = _projected(z)
    figure = blank(7.0, 5.4)
    panel = figure.subplots()
    clean(panel)
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])
    colours = _points(panel, xy, labels)
    ellipses = whole("ellipses", ellipses, 0, hint="0 draws none")
    rows = np.unique(np.linspace(0, len(z) - 1, ellipses).round().astype(int))
    if z.shape[1] == 1:
        if std is not None and ellipses > 0:
            x, y = xy[rows].T
            bars = Z_OF_90 * std[rows, 0]
            panel.errorbar(x, y, xerr=bars, fmt="none", ecolor=colours[rows], zorder=0)
            panel.set_title("bars hold 90 % of q(z | x)", loc="right", fontsize=9)
        return figure
    panel.set_aspect("equal", adjustable="datalim")
    if std is not None and ellipses > 0:
        covariance = np.einsum("ad,nd,bd->nab", axes, std[rows] ** 2, axes)
        _ellipses(panel, xy[rows], covariance, colours[rows])
    return figure


@typed
def latent_maps(
    maps: Mapping[str, Float[Array, "n 2"]],
    labels: Shaped[Array, " n"] | Sequence[Any] | None = None,
) -> Figure:
    """Draw several maps of the same items side by side, each under its name.

    Only relative positions matter: the axes have no numbers. Names of classes that are
    too many or too long for the maps go into a legend.

    Arguments:
        maps: Coordinates in the plane, by the name of the method.
        labels: As for `latent_map`.

    Raises:
        ValueError: If there are no maps, or one is not finite, not of two dimensions,
            or not of as many items as the first.
    """
    places = {name: numbers(z, name) for name, z in maps.items()}
    shapes = {z.shape for z in places.values()}
    (shape, *others) = shapes or {()}
    known = all(np.isfinite(z).all() for z in places.values())
    if others or len(shape) != 2 or shape[1] != 2 or not shape[0] or not known:
        found = ", ".join(f"{name} {z.shape}" for name, z in places.items())
        raise ValueError(
            "expected finite maps of shape (n, 2), all of the same items, got "
            f"{found or 'none'}; give each as an array with a row for every item"
        )
    wide = min(COLUMNS, len(places))
    high = math.ceil(len(places) / wide)
    figure = blank(3.9 * wide + 0.6, 4.2 * high)
    panels = figure.subplots(high, wide, squeeze=False).ravel()
    for panel in panels[len(places) :]:
        panel.remove()
    panels = panels[: len(places)]
    for panel, (name, xy) in zip(panels, places.items(), strict=True):
        panel.set_title(literal(name), fontsize=11, color=INK)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.set_aspect("equal", adjustable="datalim")
        _points(panel, xy, labels, legend=None if panel is panels[-1] else False)
    return figure


def _projected(
    z: Float[np.ndarray, "n dim"],
) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Items in the plane, the axes (2, dim) that span it, and their names."""
    if z.shape[1] == 1:
        rows = np.arange(len(z))[:, None]
        return np.hstack([z, rows]), np.eye(1, 2).T, ("z, dimension 0", "item")
    if z.shape[1] == 2:
        return z, np.eye(2), ("z, dimension 0", "z, dimension 1")
    centred = z - z.mean(0)
    padded = np.vstack([centred, np.zeros((1, z.shape[1]))])  # at least two rows
    _, size, axes = np.linalg.svd(padded, full_matrices=False)
    # The sign of an axis is arbitrary: its largest entry shall be positive.
    axes = axes[:2] * np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(1)])[:, None]
    share = size[:2] ** 2 / max((size**2).sum(), np.finfo(float).tiny)
    first, second = (f"principal axis {i + 1} ({s:.0%})" for i, s in enumerate(share))
    return centred @ axes.T, axes, (first, second)


def _points(
    panel: Axes,
    xy: Float[np.ndarray, "n 2"],
    labels: Shaped[Array, " n"] | Sequence[Any] | None,
    legend: bool | None = True,
) -> Float[np.ndarray, "n 4"]:
    """Draw the items; return the colour of each.

    Arguments:
        legend: Whether classes get one; None if their names are not written on the map.
    """
    size = float(np.clip(12_000 / len(xy), 3, 25))
    if labels is None:
        panel.scatter(xy[:, 0], xy[:, 1], size, COLOURS[0], alpha=0.6, linewidths=0)
        return to_rgba_array([COLOURS[0]] * len(xy))
    found: Any = labels
    if not (hasattr(labels, "isna") or isinstance(labels, np.ma.MaskedArray)):
        found = plain(gate(labels, "labels", words=True))
    if found.shape != (len(xy),):
        raise ValueError(
            f"expected one label for each of the {len(xy)} items, got shape "
            f"{found.shape}; pass the labels of the same rows, (n,)"
        )
    # pandas finds the type of what is listed; None stands for no label.
    values = Series(found.tolist() if found.dtype == object else found)
    values = values.reset_index(drop=True)
    known = values.notna().to_numpy() & ~unlabelled(labels)
    colours = to_rgba_array([UNLABELLED] * len(xy))
    if not known.all():
        x, y = xy[~known].T
        panel.scatter(x, y, size, UNLABELLED, linewidths=0, label="no label", zorder=0)
    if not known.any():
        return colours
    given, xy = values[known], xy[known]
    code, classes = factorize(given, sort=True)
    if len(classes) <= len(COLOURS) * len(MARKERS):
        colours[known] = _classes(panel, xy, classes, code, size, legend)
    else:
        if not is_numeric_dtype(given):
            raise ValueError(
                f"expected at most {len(COLOURS) * len(MARKERS)} classes that are no "
                f"numbers, got {len(classes)}; draw some of them"
            )
        shades = finite(given.to_numpy(dtype=float))
        drawn = panel.scatter(
            xy[:, 0], xy[:, 1], size, shades, cmap="viridis", linewidths=0
        )
        bar = "label" if known.all() else "label (grey: none)"
        panel.figure.colorbar(drawn, ax=panel, label=bar, fraction=0.05)
        colours[known] = drawn.to_rgba(shades)
    return colours


def _classes(
    panel: Axes,
    xy: np.ndarray,
    classes: Any,
    code: np.ndarray,
    size: float,
    legend: bool | None,
) -> Float[np.ndarray, "n 4"]:
    colours = to_rgba_array(COLOURS)[code % len(COLOURS)]
    for i, marker in enumerate(MARKERS):
        rows = code // len(COLOURS) == i  # all classes at once: none covers another
        x, y = xy[rows].T
        panel.scatter(x, y, size, colours[rows], marker=marker, linewidths=0)
    if is_float_dtype(classes) and all(float(name).is_integer() for name in classes):
        classes = classes.astype(int)
    names = [literal(name) for name in classes]
    written = len(names) <= len(COLOURS) and max(map(len, names)) < 3
    if written:
        white = [withStroke(linewidth=3, foreground="white")]
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
        style |= {"fontsize": 12, "weight": "bold", "path_effects": white, "zorder": 4}
        for i, name in enumerate(names):
            x, y = np.median(xy[code == i], 0)
            panel.text(x, y, name, **style)
    if legend or (legend is None and not written):
        handles = [
            Line2D([], [], linestyle="", marker=MARKERS[i // 10], color=COLOURS[i % 10])
            for i in range(len(names))
        ]
        bare, unnamed = panel.get_legend_handles_labels()  # items without a label
        place: dict[str, Any] = {"loc": "outside right upper", "frameon": False}
        figure = panel.figure.figure
        place["ncols"] = 1 + len(names) // 16
        _make_room(
            figure, figure.legend([*handles, *bare], [*names, *unnamed], **place)
        )
    return colours


def _make_room(figure: Figure, legend: Legend) -> None:
    """Widen, and if need be heighten, a figure by what its legend takes."""
    box = legend.get_window_extent()
    width, height = figure.get_size_inches()
    wide, high = box.width / figure.dpi, box.height / figure.dpi
    spare = 1.2  # a narrow legend fits into the figure
    figure.set_size_inches(width + max(0, wide - spare), max(height, high + 0.2))


def _ellipses(
    panel: Axes, xy: np.ndarray, covariance: np.ndarray, colours: np.ndarray
) -> None:
    variance, axes = np.linalg.eigh(covariance)
    radius = RADIUS_OF_90 * np.sqrt(variance.clip(min=0))
    angle = np.degrees(np.arctan2(axes[:, 1, 1], axes[:, 0, 1]))
    style: dict[str, Any] = {
        "facecolors": "none",
        "edgecolors": colours,
        "linewidths": 1.2,
    }
    style |= {"units": "xy", "offsets": xy, "offset_transform": panel.transData}
    wide, high = 2 * radius.T[::-1]
    panel.add_collection(EllipseCollection(wide, high, angle, **style))
    reach = RADIUS_OF_90 * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    panel.update_datalim(np.concatenate([xy - reach, xy + reach]))
    panel.autoscale_view()
    said = "ellipses hold 90 % of q(z | x), its dimensions taken as independent"
    panel.set_title(said, loc="right", fontsize=9)
