"""The largest value of a function of one positive number."""

import math
from collections.abc import Callable

__all__ = ["maximiser"]

GRID = 9  # points that bracket the largest of several maxima


def maximiser(
    function: Callable[[float], float], low: float, high: float, xatol: float = 1e-6
) -> float:
    """Return where a function of a positive number is largest, between low and high.

    The best of a few points evenly spread in the logarithm is refined by Brent's method
    between its neighbours.

    Arguments:
        xatol: The accuracy in the logarithm.
    """
    from scipy.optimize import minimize_scalar

    step = math.log(high / low) / (GRID - 1)
    points = [low * math.exp(i * step) for i in range(GRID)]
    best = max(points, key=function)
    found = minimize_scalar(
        lambda t: -function(math.exp(t)),
        bounds=(
            max(math.log(low), math.log(best) - step),
            min(math.log(high), math.log(best) + step),
        ),
        method="bounded",
        options={"xatol": xatol},
    )
    return math.exp(found.x)
