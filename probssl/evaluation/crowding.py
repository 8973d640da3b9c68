"""Crowding: within-class scatter relative to between-class scatter.

References:
    On the Discriminability of Self-Supervised Representation Learning (Song et al.,
    2024)
    https://arxiv.org/abs/2407.13541
    Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis (Rousseeuw, 1987)
    https://doi.org/10.1016/0377-0427(87)90125-7
    A cluster separation measure (Davies and Bouldin, 1979)
    https://doi.org/10.1109/TPAMI.1979.4766909
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import Array, centred, check_alike, classes, representations
from ..bars import shown
from ..estimates import MIN_RESAMPLES, Interval, Undefined, intervals, reflected
from .collapse import alignment_uniformity_values, normalised

__all__ = ["Crowding", "PerClass", "crowding"]

PRINTED_CLASSES = 10


class PerClass(NamedTuple):
    """The measures of one class: within and margin as in `Crowding`.

    Arguments:
        label: The class, as in the labels.
        items: The number of its items.
        nearest: The distance of its mean to the nearest other mean.
    """

    label: Any
    items: int
    within: float
    nearest: float
    margin: float


class Crowding(NamedTuple):
    """The result of `crowding`; printed, a table. Intervals are bootstrap intervals.

    Arguments:
        crowding: Within over between; smaller is better. Infinite if all class means
            are equal.
        within: The mean squared distance of items to the mean of their class.
        between: The mean squared distance of two class means.
        margin: The mean over items of the distance to the nearest other class mean less
            the distance to their own; larger is better.
        davies_bouldin: The Davies-Bouldin index; smaller is better. Infinite if two
            class means are equal.
        silhouette: The mean silhouette of items, from -1 to 1; larger is better.
        alignment: The mean squared distance of views on the sphere; None without views.
        uniformity: The log-mean Gaussian kernel of items on the sphere; None without
            views if z is not normalised.
        per_class: The measures of each class, in the order of the labels.
    """

    crowding: Interval
    within: Interval
    between: Interval
    margin: Interval
    davies_bouldin: Interval
    silhouette: Interval
    alignment: Interval | None
    uniformity: Interval | None
    per_class: tuple[PerClass, ...]

    def as_dict(self) -> dict[str, Any]:
        """All measures as plain numbers and lists, for JSON; infinity becomes None."""
        overall = {n: each and _plain(each) for n, each in self._overall().items()}
        return overall | {"per_class": [_plain(each) for each in self.per_class]}

    def __str__(self) -> str:
        worst = sorted(self.per_class, key=lambda each: each.margin)[:PRINTED_CLASSES]
        which = f"classes by margin ({len(worst)} of {len(self.per_class)}):"
        wide = max(len("class"), *(len(str(each.label)) for each in worst))
        lines = [f"{name:<15}{each}" for name, each in self._overall().items() if each]
        lines += [which, f"  {'class':<{wide}}   items    within   nearest    margin"]
        lines += [
            f"  {each.label!s:<{wide}}{each.items:>8}{each.within:>10.4g}"
            f"{each.nearest:>10.4g}{each.margin:>10.4g}"
            for each in worst
        ]
        return "\n".join(lines)

    def _overall(self) -> dict[str, Interval | None]:
        return dict(zip(self._fields[:-1], self[:-1], strict=True))


@typed
def crowding(
    z: Float[Array, "n dim"],
    labels: Shaped[Array, " n"],
    *,
    normalise: bool = True,
    views: Float[Array, "n view dim"] | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> Crowding:
    r"""Within-class scatter W over between-class scatter B, and related measures.

    .. math:: \frac{W}{B}, \qquad W = \frac{1}{n} \sum_i \lVert z_i - m_{y_i} \rVert^2,
        \qquad B = \frac{2}{C (C-1)} \sum_{c < d} \lVert m_c - m_d \rVert^2,

    with the means :math:`m_c` of the C classes. It is invariant to rotation and scale
    of z, and to a shift unless items are normalised. Time is O(n²) for silhouette and
    uniformity, and O(n C dim) per resample.

    Overall measures have 90 % intervals by the basic bootstrap, of the logarithm for
    the two ratios. It is stratified: resamples are drawn with replacement within each
    class. For silhouette, alignment and uniformity the per-item values are resampled,
    since the copies of an item in a resample would bias its silhouette. With k items
    per class, W is too small by about W / k and B too large by 2 W / k, so that crowded
    classes look less crowded than they are. The intervals are corrected for this bias,
    the values are not: with many dimensions and few items they lie near an end. Where
    class means nearly coincide in few dimensions the intervals are too narrow.

    Arguments:
        normalise: Whether to scale each item to length 1 first.
        views: Representations of at least two views of each item, for alignment and
            uniformity. By default uniformity is that of z, if it is normalised.
        bootstrap: The number of resamples, at least 20.
        seed: The seed of the resamples.
        progress: Whether to show a progress bar after 3 seconds.

    Raises:
        Undefined: If z is constant: W and B are zero.
        ValueError: For a class with one item, or zero items with `normalise`.
    """
    from sklearn.metrics import silhouette_samples

    check_alike(z, labels, "labels", "index")
    (given,) = representations(z)
    y = classes(labels, len(given))
    names, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            f"expected at least 2 items of each class, got 1 of class "
            f"{names[counts.argmin()]}; give more items or leave this class out"
        )
    bootstrap = whole("bootstrap", bootstrap, MIN_RESAMPLES)
    u = normalised(given) if normalise else given
    order = np.argsort(y, kind="stable")  # a class is a slice from here on
    both = _on_sphere(u, views, normalise)[:, order]
    u = centred(u)[order]
    # below, distances are rounding errors
    rounding = np.finfo(float).eps * max(u.shape) * np.linalg.norm(u, axis=1).max()

    found = _separation(u, counts, rounding)
    if not found.between and not found.within.any():
        raise Undefined(
            "expected representations that differ, got one point for all items: their "
            "crowding is 0 / 0; look for an encoder that has collapsed"
        )
    sorted_y = np.repeat(np.arange(len(counts)), counts)
    of_items = np.vstack([silhouette_samples(u, sorted_y), both])
    random, end = np.random.default_rng(seed), np.cumsum(counts)[sorted_y]
    draws = []
    for _ in tqdm(
        range(bootstrap), "resamples", delay=3, leave=False, **shown(progress)
    ):
        rows = random.integers(end - counts[sorted_y], end)  # within each class
        again = _separation(u[rows], counts, rounding).overall(counts)
        draws.append(np.append(again, of_items[:, rows].mean(1)))
    values = np.append(found.overall(counts), of_items.mean(1))
    overall = intervals(values, _likely(values, np.stack(draws)))
    columns = (names, counts, found.within, found.nearest, found.margin)
    per_class = zip(*(column.tolist() for column in columns), strict=True)
    missing = [None] * (8 - len(overall))  # of alignment and uniformity
    classwise = tuple(PerClass(*row) for row in per_class)
    return Crowding._make([*overall[:6], *missing, *overall[6:], classwise])


def _likely(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Values that the truth may have; crowding and Davies-Bouldin are ratios."""
    likely, ratios = reflected(values, draws), [0, 4]
    # within, between, silhouette, and what follows: uniformity, after alignment if any
    ends = [(0, np.inf), (0, np.inf), (-1, 1), *((0, 4), (-8, 0))[8 - len(values) :]]
    bounded = [1, 2, *range(5, len(values))]
    likely[:, bounded] = likely[:, bounded].clip(*np.transpose(ends))
    with np.errstate(divide="ignore"):
        logs = np.log(values[ratios]), np.log(draws[:, ratios])
    likely[:, ratios] = np.exp(reflected(*logs))
    return likely


class _Separation(NamedTuple):
    """Scatter, distance to the nearest mean and margin per class; B and DB overall."""

    within: np.ndarray
    nearest: np.ndarray
    margin: np.ndarray
    between: float
    davies_bouldin: float

    def overall(self, counts: np.ndarray) -> np.ndarray:
        """Crowding, within, between, margin, Davies-Bouldin: means over items."""
        within = np.average(self.within, weights=counts)
        margin = np.average(self.margin, weights=counts)
        ratio = _ratio(within, self.between)
        return np.array([ratio, within, self.between, margin, self.davies_bouldin])


def _separation(z: np.ndarray, counts: np.ndarray, rounding: float) -> _Separation:
    """The measures of items sorted by class."""
    from scipy.spatial.distance import pdist, squareform

    def lengths(differences: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(differences, axis=1)
        return np.where(norm > rounding, norm, 0)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(values, np.cumsum(counts) - counts)
        return (sums.T / counts).T

    y, means = np.repeat(np.arange(len(counts)), counts), mean(z)
    own = lengths(z - means[y])
    closeness = z @ means.T - np.square(means).sum(1) / 2
    closeness[np.arange(len(z)), y] = -np.inf
    other = lengths(z - means[closeness.argmax(1)])

    pairs = pdist(means)
    pairs[pairs <= rounding] = 0
    apart, radius = squareform(pairs), mean(own)
    np.fill_diagonal(apart, np.inf)
    return _Separation(
        within=mean(np.square(own)),
        nearest=apart.min(1),
        margin=mean(other - own),
        between=float(np.square(pairs).mean()),
        davies_bouldin=_ratio(radius[:, None] + radius, apart).max(1).mean(),
    )


def _on_sphere(
    z: np.ndarray, views: Array | None, normalise: bool
) -> Float[np.ndarray, "figure n"]:
    """Values of each item: alignment and uniformity, uniformity only, or neither."""
    if views is not None:
        alignment, uniformity = alignment_uniformity_values(views)
        if len(alignment) != len(z):
            raise ValueError(
                f"got {len(z)} representations and views of {len(alignment)} items; "
                "give views of the same items, in the same order"
            )
        return np.stack([alignment, uniformity])
    if normalise:
        return alignment_uniformity_values(np.stack([z, z], axis=1))[1][None]
    return np.empty((0, len(z)))


def _ratio(a: Any, b: Any) -> Any:
    """a / b, infinite where b is zero: equal means are not separated."""
    return np.divide(a, b, out=np.full(np.shape(b), np.inf), where=np.asarray(b) > 0)


def _plain(row: Interval | PerClass) -> dict[str, Any]:
    infinite = [name for name, value in row._asdict().items() if value == math.inf]
    return row._asdict() | dict.fromkeys(infinite)
