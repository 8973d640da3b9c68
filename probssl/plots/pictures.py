"""Images in grids, and series as lines."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.figure import Figure
from torch import Tensor

from ..arguments import having, typed, whole
from ..arrays import Array, finite, numbers, plain
from .style import BLUE, INK, blank, clean, lines, literal

__all__ = ["grid", "images", "reconstructions", "views"]

MAX_TILES = 1_000
MAX_PANELS = 100  # of lines
TILE_INCHES, FIGURE_INCHES = 0.75, 9.0  # at most
ABSENT_GREY = 0.85
BEYOND = 0.05  # numbers further beyond 0 and 1 than this are noted

Tiles = Float[np.ndarray, "n strip height width 3"]


@typed
def images(
    x: Shaped[Array, "n *view channel height width"],
    rows: int | None = None,
    titles: Sequence[Any] | Array | None = None,
) -> Figure:
    """Draw images in a grid, the views of an item side by side.

    Bytes go from 0 to 255, other numbers from 0 to 1; NaN is grey. Where numbers reach
    beyond, a note below the figure says from where to where.

    Arguments:
        rows: The number of rows of the grid; by default one for ten images.
        titles: One above each image, or above each view.

    Raises:
        ValueError: If they are no images, infinite, too many, or not as many as titles.
    """
    tiles = _tiles(x)
    n, strip = tiles.shape[:2]
    columns = min(n, max(1, 10 // strip))
    if rows is not None:
        columns = math.ceil(n / rows) if rows > 0 else 0
    if titles is None:
        return _grid(tiles, columns)
    having("titles", titles, "__len__", "a sequence, one for each image or view")
    count, what = (n, "images") if strip == 1 else (strip, "views")
    if len(titles) != count:
        raise ValueError(
            f"expected one title for each of the {count} {what}, got {len(titles)}; "
            f"give {count}, or none"
        )
    named = plain(titles) if isinstance(titles, Tensor) else titles
    return _grid(tiles, columns, across=[str(title) for title in named])


@typed
def reconstructions(
    x: Shaped[Array, "n channel height width"],
    reconstruction: Shaped[Array, "n channel height width"],
    columns: int = 10,
) -> Figure:
    """Draw images, each above its reconstruction of the same shape.

    Raises:
        ValueError: If they are no images, or not of one shape.
    """
    above, below = _tiles(x), _tiles(reconstruction)
    if above.shape != below.shape:
        raise ValueError(
            f"expected images and reconstructions of one shape, got {x.shape} and "
            f"{reconstruction.shape}; reconstruct the same rows"
        )
    tiles = np.concatenate([above, below], 1)
    return _grid(tiles, min(columns, len(tiles)), down=["x", "E[x | z]"])


@typed
def views(
    batch_views: Shaped[Array, "n view channel height width"], columns: int = 10
) -> Figure:
    """Draw the views of each item below one another.

    Raises:
        ValueError: If they are no images.
    """
    tiles = _tiles(batch_views)
    names = [f"view {v + 1}" for v in range(tiles.shape[1])]
    return _grid(tiles, min(columns, len(tiles)), down=names)


@typed
def grid(
    x: Shaped[Array, "row column *event"],
    rows: Sequence[Any] | Array | None = None,
    columns: Sequence[Any] | Array | None = None,
    *,
    left: Shaped[Array, "row *event"] | None = None,
    above: Shaped[Array, "column *event"] | None = None,
) -> Figure:
    """Draw items in rows and columns: traversals, swaps, interpolations, views of y.

    Images (channel, height, width) are drawn as by `images`. Series (time,), (time,
    channel) or (channel, time), and rows of tables, are drawn as lines over their
    index, on axes that all share: the longer of two axes is the index, and each channel
    a line.

    Arguments:
        rows: A name for each row, such as the dimensions of a traversal.
        columns: A name for each column, such as its values.
        left: An item beside each row, such as those whose content a swap keeps.
        above: An item above each column, such as those whose style it keeps.

    Raises:
        ValueError: For other shapes, numbers that are not finite, too many items, or
            not as many names or items beside them.
    """
    array = numbers(x, "x")
    event = array.shape[2:]
    if array.ndim not in (3, 4, 5) or 0 in array.shape:
        raise ValueError(
            "expected items (row, column, *event) that are images (channel, height, "
            f"width) or series (time,) or (time, channel), got {array.shape}; of a "
            "traversal take one item, found.x[0]"
        )
    many, wide = array.shape[:2]
    draw = _image_grid if array.ndim == 5 else _line_grid
    return draw(
        array,
        _names("rows", rows, many),
        _names("columns", columns, wide),
        _beside("left", left, (many, *event)),
        _beside("above", above, (wide, *event)),
    )


def _names(what: str, given: Sequence[Any] | Array | None, many: int) -> list[str]:
    """Names, empty where none are given; numbers with three digits."""
    given = [""] * many if given is None else given
    having(what, given, "__len__", "a sequence of names")
    if len(given) != many:
        raise ValueError(
            f"expected a name for each of the {many} {what}, got {len(given)}; leave "
            "them out for none"
        )
    given = plain(given) if isinstance(given, Tensor) else given
    reals = float, np.floating
    return [f"{name:.3g}" if isinstance(name, reals) else str(name) for name in given]


def _beside(
    what: str, given: Array | None, shape: tuple[int, ...]
) -> np.ndarray | None:
    items = None if given is None else numbers(given, what)
    if items is not None and items.shape != shape:
        raise ValueError(
            f"expected items {what} of shape {shape}, got {items.shape}; give one for "
            f"each {'row' if what == 'left' else 'column'}"
        )
    return items


def _image_grid(
    x: np.ndarray,
    rows: list[str],
    columns: list[str],
    left: np.ndarray | None,
    above: np.ndarray | None,
) -> Figure:
    tiles = _tiles(x)
    if above is not None:
        tiles = np.concatenate([_tiles(above[None]), tiles])
    if left is not None:
        blank_corner = [np.ones_like(tiles[:1, :1])] if above is not None else []
        column = np.concatenate([*blank_corner, _tiles(left[:, None])])
        tiles = np.concatenate([column, tiles], 1)
    rows = [""] * (above is not None) + rows
    columns = [""] * (left is not None) + columns
    across = columns if any(columns) else None
    figure = _grid(tiles, 1, across=across, beside=rows if any(rows) else None)
    panel, (height, width) = figure.axes[0], tiles.shape[2:4]
    gap = _gap(height)
    if left is not None:
        panel.axvline(width + gap / 2 - 0.5, color=INK, lw=0.8)
    if above is not None:
        panel.axhline(height + gap / 2 - 0.5, color=INK, lw=0.8)
    return figure


def _line_grid(
    x: np.ndarray,
    rows: list[str],
    columns: list[str],
    left: np.ndarray | None,
    above: np.ndarray | None,
) -> Figure:
    finite(x, "x")
    down, over = left is not None, above is not None
    high, wide = x.shape[0] + over, x.shape[1] + down
    whole("panels", high * wide, 1, MAX_PANELS, "pass some: x[:5, :8]")
    figure = blank(1 + 1.1 * wide, 0.6 + 0.8 * high)
    panels = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
    for (i, j), panel in np.ndenumerate(panels):
        row, column = i - over, j - down
        clean(panel)
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="y", nbins=4)  # else they follow the layout
        if row < 0 and column < 0:
            panel.set_axis_off()
            continue
        one, colour = x[row, column], BLUE
        if left is not None and column < 0:
            one, colour = left[row], INK
        if above is not None and row < 0:
            one, colour = above[column], INK
        panel.plot(lines(one).T, color=colour, lw=1)
        if i == 0 and column >= 0:
            panel.set_title(literal(columns[column], 14), fontsize=8)
        if j == 0 and row >= 0:
            panel.set_ylabel(literal(rows[row], 14), fontsize=8)
    return figure


def _tiles(x: Shaped[Array, "n *view channel height width"]) -> Tiles:
    """Images in colour, black 0 and white 1; each item is a strip of views."""
    array = numbers(x, "images")
    shape = array.shape
    array = array[:, None] if array.ndim == 4 else array
    if array.ndim != 5 or array.shape[2] not in (1, 3) or 0 in shape:
        raise ValueError(
            "expected images of shape (n, channel, height, width), or with views (n, "
            f"view, channel, height, width), with 1 or 3 channels, got {shape}; for "
            "rows of pixels x.reshape(-1, 1, height, width)"
        )
    whole("images", len(array) * array.shape[1], 1, MAX_TILES, "pass some: x[:100]")
    array = array / 255 if array.dtype == np.uint8 else array.astype(float)
    if infinite := int(np.isinf(array).sum()):
        raise ValueError(
            f"expected images of finite numbers, got infinity in {infinite} of "
            f"{array.size}; look for a fit that has diverged"
        )
    array = np.moveaxis(np.where(np.isnan(array), ABSENT_GREY, array), 2, -1)
    return np.broadcast_to(array, array.shape[:-1] + (3,))


def _grid(
    tiles: Tiles,
    columns: int,
    *,
    across: list[str] | None = None,
    down: list[str] | None = None,
    beside: list[str] | None = None,
) -> Figure:
    """Items in a grid, each a strip of views: side by side, or below one another.

    Arguments:
        columns: The number of items in a row.
        across: Titles above each image, or above each view.
        down: Titles to the left of each view; the strips then go down.
        beside: Titles to the left of each row of items.
    """
    columns = whole("rows or columns", columns)
    n, strip, height, width, _ = tiles.shape
    gap = _gap(height)
    apart = gap * 2 if strip > 1 else 0  # between items, beyond that between views
    head = round(0.35 * height) if across and strip == 1 else 0
    row, column = np.divmod(np.arange(n)[:, None], columns)
    view = np.arange(strip)[None]
    if down is None:
        i, j = row + 0 * view, column * strip + view
        top, left = i * (height + gap + head), j * (width + gap) + column * apart
    else:
        i, j = row * strip + view, column + 0 * view
        top, left = i * (height + gap) + row * apart, j * (width + gap)
    low, high = tiles.min(), tiles.max()
    canvas = np.ones((top.max() + height, left.max() + width, 3))
    for item, y, x in zip(tiles, top, left, strict=True):
        for v in range(strip):
            canvas[y[v] : y[v] + height, x[v] : x[v] + width] = item[v].clip(0, 1)
    inch = min(TILE_INCHES / height, FIGURE_INCHES / canvas.shape[1])  # of one pixel
    wide, tall = canvas.shape[1] * inch, canvas.shape[0] * inch
    beyond = low < -BEYOND or high > 1 + BEYOND
    room = (0.35 if across else 0.1) + (0.3 if beyond else 0)
    figure = blank(wide + (0.8 if down or beside else 0.1), tall + room)
    panel = figure.subplots()
    panel.imshow(canvas, interpolation="nearest")
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=9)
    panel.set(xticks=[], yticks=[])
    if beyond:
        note = f"from {low:.3g} to {high:.3g}, drawn from 0 to 1"
        panel.set_xlabel(note, fontsize=7)
    if across:
        points = 72 * inch * width / 0.6  # a letter is 0.6 of its size wide
        size = float(np.clip(points / max(map(len, across)), 6, 9))
        across = [literal(name, int(points / size)) for name in across]
    if across and strip == 1:
        across = across + [""] * (n - len(across))
        for name, y, x in zip(across, top.flat, left.flat, strict=True):
            panel.text(x + width / 2, y - gap, name, ha="center", fontsize=size)
    elif across:
        places = (left[:columns] + width / 2).ravel()
        panel.set_xticks(places, across * columns, fontsize=size)
    elif down:
        names = down * (row[-1, 0] + 1)
        panel.set_yticks((top[::columns] + height / 2).ravel(), names)
    if beside:
        panel.set_yticks(top[::columns, 0] + height / 2, list(map(literal, beside)))
    return figure


def _gap(height: int) -> int:
    """The pixels between two images."""
    return max(1, round(0.08 * height))
