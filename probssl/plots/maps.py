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
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ..arrays import Array, plain
from .style import INK, blank, clean

__all__ = ["latent_map", "latent_maps"]

# Tol's muted scheme, in an order of our own, with a grey for the tenth class.
COLOURS = ["#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE"]
COLOURS += ["#882255", "#44AA99", "#AA4499", "#999933", "#555555"]
MARKERS = "o^s"
RADIUS_OF_90 = math.sqrt(
    -2 * math.log(0.1)
)  # holds 90 % of a standard normal in the plane


def latent_map(
    z: Float[Array, "n dim"],
    labels: Shaped[Array, " n"] | Sequence[Any] | None = None,
    std: Float[Array, "n dim"] | None = None,
    *,
    ellipses: int = 40,
) -> Figure:
    """Draw representations in the plane, coloured by label.

    More than two dimensions are projected on the first two principal axes.

    Arguments:
        labels: Up to 30 classes, or numbers, which get a scale of colours.
        std: The standard deviations of q(z|x); an ellipse then holds 90 % of it.
        ellipses: The number of items that have an ellipse, spread evenly over the rows.

    Raises:
        ValueError: If z is not finite or has fewer than two dimensions, or if labels or
            std are not of the same items.
    """
    z = plain(z)
    if z.ndim != 2 or min(z.shape) < 2 or not np.isfinite(z).all():
        raise ValueError(
            "expected finite z of shape (n, dim), both at least 2, got "
            f"{z.shape}; take one view by z[:, 0]"
        )
    xy, axes, names = _projected(z)
    figure = blank(7.0, 5.4)
    panel = figure.subplots()
    clean(panel)
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])
    panel.set_aspect("equal", adjustable="datalim")
    colours = _points(panel, xy, labels)
    if std is not None and ellipses > 0:
        std = plain(std)
        if std.shape != z.shape:
            raise ValueError(
                f"expected std of the shape {z.shape} of z, got {std.shape}; take both "
                "from one ps.embed(..., return_std=True)"
            )
        rows = np.unique(np.linspace(0, len(z) - 1, ellipses).round().astype(int))
        covariance = np.einsum("ad,nd,bd->nab", axes, std[rows] ** 2, axes)
        _ellipses(panel, xy[rows], covariance, colours[rows])
    return figure


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
    places = {name: plain(z) for name, z in maps.items()}
    shapes = {z.shape for z in places.values()}
    (shape, *others) = shapes or {()}
    finite = all(np.isfinite(z).all() for z in places.values())
    if others or len(shape) != 2 or shape[1] != 2 or not finite:
        found = ", ".join(f"{name} {z.shape}" for name, z in places.items())
        raise ValueError(
            "expected finite maps of shape (n, 2), all of the same items, got "
            f"{found or 'none'}; give each as an array with a row for every item"
        )
    figure = blank(3.9 * len(places) + 0.6, 4.2)
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    for panel, (name, xy) in zip(panels, places.items(), strict=True):
        panel.set_title(name, fontsize=11, color=INK)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.set_aspect("equal", adjustable="datalim")
        _points(panel, xy, labels, legend=None if panel is panels[-1] else False)
    return figure


def _projected(
    z: Float[np.ndarray, "n dim"],
) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Items in the plane, the axes (2, dim) that span it, and their names."""
    if z.shape[1] == 2:
        return z, np.eye(2), ("z, dimension 0", "z, dimension 1")
    centred = z.astype(np.float64) - z.mean(0)
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
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
    values = plain(labels) if not isinstance(labels, Sequence) else np.asarray(labels)
    if values.shape != (len(xy),):
        raise ValueError(
            f"expected one label for each of the {len(xy)} items, got {values.shape}; "
            "pass the labels of the same rows"
        )
    classes, code = np.unique(values, return_inverse=True)
    if len(classes) <= len(COLOURS) * len(MARKERS):
        return _classes(panel, xy, classes, code, size, legend)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"expected at most {len(COLOURS) * len(MARKERS)} classes that are no "
            f"numbers, got {len(classes)}; draw some of them"
        )
    drawn = panel.scatter(
        xy[:, 0], xy[:, 1], size, values, cmap="viridis", linewidths=0
    )
    panel.figure.colorbar(drawn, ax=panel, label="label", fraction=0.05)
    return drawn.to_rgba(values)


def _classes(
    panel: Axes,
    xy: np.ndarray,
    classes: np.ndarray,
    code: np.ndarray,
    size: float,
    legend: bool | None,
) -> Float[np.ndarray, "n 4"]:
    colours = to_rgba_array(COLOURS)[code % len(COLOURS)]
    for i, marker in enumerate(MARKERS):
        rows = code // len(COLOURS) == i  # all classes at once: none covers another
        x, y = xy[rows].T
        panel.scatter(x, y, size, colours[rows], marker=marker, linewidths=0)
    names = [str(name) for name in classes]
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
        place: dict[str, Any] = {"loc": "outside right upper", "frameon": False}
        panel.figure.legend(handles, names, ncols=1 + len(names) // 16, **place)
    return colours


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
    panel.set_title("ellipses hold 90 % of q(z | x)", loc="right", fontsize=9)
