"""Style: what the representations keep beside the content."""

import numpy as np
from jaxtyping import Float, Shaped

from ..arrays import Array, finite, plain, representations
from .probes import linear_probe

__all__ = ["style_probe"]


def style_probe(
    z_train: Float[Array, "n dim"],
    s_train: Shaped[Array, "n *factor"],
    z_test: Float[Array, "m dim"],
    s_test: Shaped[Array, "m *factor"],
) -> list[float]:
    r"""How well each style factor is read off z by a linear map, at most 1.

    A factor of floating-point numbers is continuous: the test :math:`R^2` of ridge
    regression (weight 1) on standardised z, 0 for a guess of the mean. Integers, truth
    values and names are discrete: the accuracy of `linear_probe`. Factors of both kinds
    do not fit in one array; give them one after the other.
    """
    z_train, z_test = representations(z_train, z_test)
    s_train, s_test = _factors(s_train, len(z_train)), _factors(s_test, len(z_test))
    if s_train.shape[1] != s_test.shape[1]:
        raise ValueError(
            f"expected the same style factors in training and test, got "
            f"{s_train.shape[1]} and {s_test.shape[1]}"
        )
    probe = _ridge if s_train.dtype.kind == "f" else linear_probe
    pairs = zip(s_train.T, s_test.T, strict=True)
    return [probe(z_train, train, z_test, test) for train, test in pairs]


def _factors(s: Array, items: int) -> np.ndarray:
    array = plain(s)
    if array.ndim not in (1, 2) or len(array) != items:
        raise ValueError(
            f"expected style factors ({items},) or ({items}, factors) for as many "
            f"representations, got {array.shape}; give one row per item"
        )
    return array.reshape(items, -1)


def _ridge(
    z_train: np.ndarray, s_train: np.ndarray, z_test: np.ndarray, s_test: np.ndarray
) -> float:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    s_train, s_test = finite(s_train), finite(s_test)
    if np.ptp(s_test) == 0:
        raise ValueError(
            f"expected a style factor that varies, got {s_test[0]} for all test items; "
            "leave this factor out"
        )
    return float(
        make_pipeline(StandardScaler(), Ridge(1.0))
        .fit(z_train, s_train)
        .score(z_test, s_test)
    )
