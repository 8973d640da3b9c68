r"""First and second moments of data and of their views, all that a linear method needs.

For images :math:`x_i`, their views :math:`\tau(x_i)` and the mean view :math:`\bar x_i
= E\, \tau(x_i)` of each,

.. math:: S = \frac1n \sum_i E[\tau(x_i) \tau(x_i)^\top], \quad
    G = \frac1n \sum_i E[\tau_1(x_i) \tau_2(x_i)^\top], \quad
    B = \frac1n \sum_i x_i \bar x_i^\top,

where G is the mean of :math:`\bar x_i \bar x_i^\top` for two views that are independent
given the image, and :math:`\Sigma = S - G` then their within-image covariance. All are
kept around their means and merged by the parallel formula of Chan, Golub and LeVeque
(1983), which loses no digits where a mean is large.

S and G pool the views of a call over their places in it: they are the moments of a pair
of views in random order.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

__all__ = ["Moments", "Swaps", "chance", "of_data", "of_views"]

SIGNIFICANCE = 1e-3  # of the test that views of one call are alike
MANY = 2_048  # images are enough for it


class Swaps(NamedTuple):
    r"""Sums that tell whether views of one call may change places.

    If swapping views v and v + 1 of a call leaves their distribution as it is, then
    each entry of

    .. math:: D = (\tau_v - \tau_{v+1}) \, [\tau_v + \tau_{v+1}, \; s, \; 1]^\top,

    s the sum of the other views, is as likely to have one sign as the other. Its
    symmetric part compares the covariances of the two views, the rest their covariance
    with its transpose. Self-normalised sums of symmetric variables are sub-Gaussian,

    .. math:: P\Big( \Big| \sum_i D_i \Big| \ge t \sqrt{\textstyle \sum_i D_i^2} \Big)
        \le 2 e^{-t^2 / 2},

    whatever their tails (Efron, 1969).

    Arguments:
        sums: Of D over images and calls, (view - 1, e, other).
        squares: Of its squares, times the calls of an image, which may share noise.
    """

    sums: Float[Array, "swap e other"]
    squares: Float[Array, "swap e other"]

    @classmethod
    def of(cls, views: Float[Array, "n call view e"]) -> "Swaps":
        n, calls, many, features = views.shape
        each = _centred(views.reshape(-1, features))[1].reshape(n * calls, many, -1)
        whole, sums, squares = each.sum(1), [], []
        for first, second in pairwise(each.swapaxes(0, 1)):
            apart, both = first - second, first + second
            others = [both, whole - both] if many > 2 else [both]
            other = np.concatenate([*others, np.ones((len(each), 1))], 1)
            sums.append(apart.T @ other)
            squares.append(calls * np.square(apart).T @ np.square(other))
        return cls(np.stack(sums), np.stack(squares))

    def merged(self, other: "Swaps") -> "Swaps":
        """The sums over both sets of images."""
        if self.sums.shape != other.sums.shape:
            raise ValueError(
                "expected as many views in every call, got "
                f"{len(self.sums) + 1} and then {len(other.sums) + 1}"
            )
        return Swaps(self.sums + other.sums, self.squares + other.squares)

    @property
    def differ(self) -> bool:
        """Whether some entry is further from 0 than chance allows."""
        most = 2 * np.log(2 * self.sums.size / SIGNIFICANCE)
        return bool((np.square(self.sums) > most * self.squares).any())


class Moments(NamedTuple):
    """Means and second moments around them, over images and views, in float64.

    Arguments:
        n: The number of images.
        mean: The mean of x, (d,).
        view_mean: The mean of the views, (e,).
        data: The covariance of x, (d, d).
        total: S, the covariance of the views, (e, e).
        between: G, the covariance of two views of an image, (e, e).
        cross: B, the covariance of x and its views, (d, e).
        swaps: Whether drawn views of one call are alike; None where that is not asked.
    """

    n: int
    mean: Float[Array, " d"]
    view_mean: Float[Array, " e"]
    data: Float[Array, "d d"]
    total: Float[Array, "e e"]
    between: Float[Array, "e e"]
    cross: Float[Array, "d e"]
    swaps: Swaps | None = None

    @property
    def within(self) -> Float[Array, "e e"]:
        r""":math:`\Sigma = S - G`, the mean covariance of the views of one image."""
        return self.total - self.between

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets of images together.

        Raises:
            ValueError: If images or views of the two have different features.
        """
        if self.cross.shape != other.cross.shape:
            raise ValueError(
                "expected the same features (image, view) in all parts, got "
                f"{self.cross.shape} and then {other.cross.shape}"
            )
        share = other.n / (self.n + other.n)
        x, view = other.mean - self.mean, other.view_mean - self.view_mean

        def mixed(a: Array, b: Array, left: Array, right: Array) -> Array:
            apart = share * (1 - share) * np.outer(left, right)
            return (1 - share) * a + share * b + apart

        return Moments(
            self.n + other.n,
            self.mean + share * x,
            self.view_mean + share * view,
            mixed(self.data, other.data, x, x),
            mixed(self.total, other.total, view, view),
            mixed(self.between, other.between, view, view),
            mixed(self.cross, other.cross, x, view),
            _swaps(self, other),
        )

    def about(self, mean: float | Array, view_mean: float | Array) -> "Moments":
        """Second moments around these points instead of the means.

        The points replace the means, so that the result cannot be merged any more.
        """
        x, view = self.mean - mean, self.view_mean - view_mean
        return Moments(
            self.n,
            self.mean - x,
            self.view_mean - view,
            self.data + np.outer(x, x),
            self.total + np.outer(view, view),
            self.between + np.outer(view, view),
            self.cross + np.outer(x, view),
        )


def of_data(x: Float[Array, "n d"]) -> Moments:
    """The moments of images that are their own views."""
    mean, x = _centred(x)
    data = _gram(x) / len(x)
    return Moments(len(x), mean, mean, data, data, data, data)


def of_views(x: Float[Array, "n d"], views: Float[Array, "n *call view e"]) -> Moments:
    r"""The moments of images and of at least two random views of each in every call.

    G is :math:`E[\tau_v \tau_w^\top]` of two views of one call, the mean over these
    pairs, and so :math:`E \lVert W(\tau_v - \tau_w) \rVert^2 = 2\, \mathrm{tr}\,
    W (S - G) W^\top` however they depend on one another. Where they are independent
    given the image, it is the unbiased estimate of the covariance of the mean views.
    Views without the axis of calls are those of one call.
    """
    n, *call, many, _ = views.shape
    calls = call[0] if call else 1
    mean, x = _centred(x)
    view_mean, each = _centred(views.reshape(n * calls * many, -1))
    sums = each.reshape(n * calls, many, -1).sum(1)
    squares = _gram(each)
    between = (_gram(sums) - squares) / (len(each) * (many - 1))
    return Moments(
        n,
        mean,
        view_mean,
        _gram(x) / n,
        squares / len(each),
        between,
        x.T @ sums.reshape(n, calls, -1).sum(1) / len(each),
    )


def chance(n: int, features: int, pairs: int = 2) -> float:
    """The correlation that views with nothing in common reach by chance.

    G is then a symmetric matrix with entries of variance 1 / (n pairs), whose largest
    eigenvalue is about twice the root of `features` times their root.

    Arguments:
        pairs: The number of ordered pairs of views of each image.
    """
    return float((2 * features**0.5 + 3) / (n * pairs) ** 0.5)


def _swaps(first: Moments, second: Moments) -> Swaps | None:
    """Those of both, or of the first images where these are many."""
    if first.swaps is None or second.swaps is None:
        return second.swaps if first.swaps is None else first.swaps
    return first.swaps if first.n >= MANY else first.swaps.merged(second.swaps)


def _centred(x: Float[Array, "n d"]) -> tuple[Float[Array, " d"], Float[Array, "n d"]]:
    """The mean, and x less it, without the rounding of a mean far from zero."""
    mean = x.mean(0)
    x = x - mean
    rest = x.mean(0)
    x -= rest
    return mean + rest, x


def _gram(a: Float[Array, "n d"]) -> Float[Array, "d d"]:
    """a'a. NumPy recognises the symmetric product, and computes one half only."""
    return a.T @ a
