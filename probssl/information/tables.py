"""Discrete variables, of which a table of probabilities says all."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from .broja import least_information
from .parts import Decomposition, parts

__all__ = ["discrete"]

NOTHING = 1e-16  # probabilities below change no part by more than rounding does
ROUNDING = 1e-6  # how far from one the sum of float32 probabilities may be


def discrete(
    joint: Float[np.ndarray, "first second target"],
    measure: Literal["broja", "i_min"] = "broja",
) -> Decomposition:
    r"""The parts for discrete variables with probabilities :math:`p(z_1, z_2, t)`.

    `"broja"` takes as unique what one view tells and the other does not under every q
    that has p's pairs :math:`(z_1, t)` and :math:`(z_2, t)`:

    .. math:: U_1 = \min_q I_q(t; z_1 \mid z_2) = \min_q I_q(t; z_1, z_2) - I(t; z_2)

    The minimum is exact to 1e-11 nats. Time grows with the cube, memory with the square
    of the number of values of :math:`(z_1, z_2, t)`: a thousand of them take seconds,
    some thousands minutes.

    `"i_min"` takes as redundant what the view that tells less about a value t tells, on
    average over t. It compares amounts, not contents: of two independent bits,
    :math:`t = (z_1, z_2)`, it calls one redundant.

    .. math:: R = \sum_t p(t) \min_i \sum_{z_i} p(z_i \mid t)
        \log \frac{p(z_i \mid t)}{p(z_i)}

    Example:
        The exclusive or of two fair bits, of which one alone tells nothing:

        >>> xor = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]]) / 4
        >>> print(f"{discrete(xor).synergistic / np.log(2):.6f} bit")
        1.000000 bit

    Raises:
        ArithmeticError: If the minimum is not found, which is a defect.
        ValueError: If `joint` has other than three axes or is no distribution, or there
            is no such measure.

    References:
        Quantifying unique information (Bertschinger et al., 2014)
        https://arxiv.org/abs/1311.2852
        Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
        https://arxiv.org/abs/1004.2515
    """
    p = _probabilities(joint)
    pairs = p.sum(1), p.sum(0)
    specific = [_specific_information(pair) for pair in pairs]
    alone = float(specific[0].sum()), float(specific[1].sum())
    both = float(_specific_information(p.reshape(-1, p.shape[2])).sum())
    if measure == "i_min":
        redundant = float(np.minimum(*specific).sum())
    elif measure == "broja":
        redundant = alone[0] + alone[1] - least_information(np.where(p < NOTHING, 0, p))
    else:
        raise ValueError(f'expected "broja" or "i_min", got {measure!r}; choose one')
    return parts(*alone, both, redundant=redundant)


def _specific_information(
    pair: Float[np.ndarray, "z target"],
) -> Float[np.ndarray, " target"]:
    r"""What z tells about each t, :math:`\sum_z p(z, t) \log p(z, t) / p(z) p(t)`."""
    from scipy.special import xlogy

    apart = pair.sum(1, keepdims=True) * pair.sum(0)
    ratio = np.divide(pair, apart, out=np.ones_like(pair), where=pair > 0)
    return xlogy(pair, ratio).sum(0)


def _probabilities(joint: np.ndarray) -> np.ndarray:
    p = np.asarray(joint, dtype=float)
    if p.ndim != 3 or not p.size:
        raise ValueError(
            f"expected axes (first, second, target), got shape {p.shape}; give "
            "p[z1, z2, t]"
        )
    if not (p >= 0).all() or not abs(p.sum() - 1) < ROUNDING:
        raise ValueError(
            "expected probabilities of at least 0 with sum 1, got smallest "
            f"{p.min():.3g} and sum {p.sum():.9g}; divide counts by their sum"
        )
    return p / p.sum()
