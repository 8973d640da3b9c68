"""The four parts of known distributions: tables of probabilities, and Gaussians."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ..arguments import choice, typed
from ..arrays import doubles, numbers
from .broja import least_information

__all__ = ["Decomposition", "discrete", "gaussian", "parts"]

NEGLIGIBLE = 1e-16  # probability: smaller ones change no part by more than rounding
SUM_ERROR = 1e-6  # of float32 probabilities, whose sum should be 1
ASYMMETRY = 1e-6  # of float32 correlations, which should be symmetric
LEAST_EIGENVALUE = 1e-12  # of correlations: smaller ones are rounding errors


class Decomposition(NamedTuple):
    r"""The four parts of the mutual information :math:`I(z_1, z_2; t)`, in nats."""

    redundant: float
    unique_1: float
    unique_2: float
    synergistic: float

    @property
    def total(self) -> float:
        r"""The information of both views, :math:`I(z_1, z_2; t)`."""
        return sum(self)

    @property
    def first(self) -> float:
        r"""The information of the first view, :math:`I(z_1; t) = R + U_1`."""
        return self.redundant + self.unique_1

    @property
    def second(self) -> float:
        r"""The information of the second view, :math:`I(z_2; t) = R + U_2`."""
        return self.redundant + self.unique_2


def parts(
    first: float, second: float, both: float, *, redundant: float
) -> Decomposition:
    """The decomposition with these informations, and no part below 0."""
    first, second = max(first, 0.0), max(second, 0.0)
    both = max(both, first, second)
    redundant = min(max(redundant, first + second - both, 0.0), first, second)
    unique_1, unique_2 = first - redundant, second - redundant
    # `both` and `first` before `unique_2`: no difference below zero by rounding
    synergistic = max(both - first - unique_2, 0.0)
    return Decomposition(redundant, unique_1, unique_2, synergistic)


# Discrete variables


@typed
def discrete(
    joint: Float[np.ndarray, "first second target"],
    measure: Literal["broja", "i_min"] = "broja",
) -> Decomposition:
    r"""The parts of discrete variables with probabilities :math:`p(z_1, z_2, t)`.

    `"broja"` (Bertschinger, Rauh, Olbrich, Jost and Ay) minimises over all q that share
    the pairs :math:`(z_1, t)` and :math:`(z_2, t)` with p. Unique is the information of
    one view that the other lacks under every such q:

    .. math:: U_1 = \min_q I_q(t; z_1 \mid z_2) = \min_q I_q(t; z_1, z_2) - I(t; z_2)

    The minimum is exact to 1e-11 nats. Time grows with the cube, memory with the square
    of the number of values of :math:`(z_1, z_2, t)`: a thousand of them take seconds,
    some thousands minutes.

    `"i_min"` (Williams and Beer) averages over t the smaller of the informations of the
    two views about t. It compares amounts, not contents: of two independent bits,
    :math:`t = (z_1, z_2)`, it calls one redundant.

    .. math:: R = \sum_t p(t) \min_i \sum_{z_i} p(z_i \mid t)
        \log \frac{p(z_i \mid t)}{p(z_i)}

    Example:
        The exclusive or of two fair bits, of which one alone is uninformative:

        >>> xor = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]]) / 4
        >>> print(f"{discrete(xor).synergistic / np.log(2):.6f} bit")
        1.000000 bit

    Raises:
        ArithmeticError: If the minimum is not found, which is a bug.
        ValueError: If `joint` does not have three axes, is not a distribution, or the
            measure is another.

    References:
        Quantifying unique information (Bertschinger et al., 2014)
        https://arxiv.org/abs/1311.2852
        Nonnegative Decomposition of Multivariate Information (Williams and Beer, 2010)
        https://arxiv.org/abs/1004.2515
    """
    choice("measure", measure, ("broja", "i_min"))
    p = doubles(joint, "joint")
    if p.ndim != 3 or not p.size:
        raise ValueError(
            f"expected axes (first, second, target), got shape {p.shape}; give "
            "p[z1, z2, t]"
        )
    if not (p >= 0).all() or not abs(p.sum() - 1) < SUM_ERROR:
        raise ValueError(
            "expected probabilities of at least 0 with sum 1, got smallest "
            f"{p.min():.3g} and sum {p.sum():.9g}; divide counts by their sum"
        )
    p = p / p.sum()
    specific = [_specific_information(pair) for pair in (p.sum(1), p.sum(0))]
    alone = float(specific[0].sum()), float(specific[1].sum())
    both = float(_specific_information(p.reshape(-1, p.shape[2])).sum())
    if measure == "i_min":
        redundant = float(np.minimum(*specific).sum())
    else:
        least = least_information(np.where(p < NEGLIGIBLE, 0, p))
        redundant = alone[0] + alone[1] - least
    return parts(*alone, both, redundant=redundant)


def _specific_information(
    pair: Float[np.ndarray, "z target"],
) -> Float[np.ndarray, " target"]:
    r"""Information about each t, :math:`\sum_z p(z, t) \log p(z, t) / p(z) p(t)`."""
    from scipy.special import rel_entr

    return rel_entr(pair, pair.sum(1, keepdims=True) * pair.sum(0)).sum(0)


# Gaussian variables


@typed
def gaussian(
    covariance: Float[np.ndarray, "dim dim"],
    first: Sequence[int],
    second: Sequence[int],
    target: Sequence[int],
) -> Decomposition:
    r"""The parts of jointly Gaussian variables, by minimum mutual information (MMI).

    .. math:: R = \min\{I(z_1; t), I(z_2; t)\}, \qquad
        I(a; t) = \frac12 \log \frac{|\Sigma_a| \, |\Sigma_t|}{|\Sigma_{at}|}

    The less informative view has nothing unique. For a target of one dimension every
    measure gives these parts if its parts are at least 0 and its R depends on the pairs
    :math:`(z_1, t)` and :math:`(z_2, t)` alone, as :math:`I_\text{min}` and BROJA do.
    For a target of several dimensions MMI is a choice: other measures can find
    something unique in both views.

    Arguments:
        covariance: The covariance of all variables, in any units.
        first: The dimensions of :math:`z_1`, as indices into `covariance`.
        second: The dimensions of :math:`z_2`.
        target: The dimensions of t.

    Raises:
        ValueError: If the matrix is not a covariance or is singular in these
            dimensions, or the lists are empty, overlap or are out of range.

    References:
        Exploration of synergistic and redundant information sharing in static and
        dynamical Gaussian systems (Barrett, 2015)
        https://arxiv.org/abs/1411.2832
    """
    sets = _indices(first, second, target, dim=len(np.atleast_1d(covariance)))
    used = np.concatenate(sets)
    correlation = _correlation(doubles(covariance, "covariance"), used)
    ends = np.cumsum([len(indices) for indices in sets])
    one, two, goal = np.split(np.arange(len(used)), ends[:-1])

    def log_determinant(*chosen: np.ndarray) -> float:
        rows = np.concatenate(chosen)
        return float(np.linalg.slogdet(correlation[np.ix_(rows, rows)])[1])

    def information(*views: np.ndarray) -> float:
        apart = log_determinant(*views) + log_determinant(goal)
        return (apart - log_determinant(*views, goal)) / 2

    alone = information(one), information(two)
    return parts(*alone, information(one, two), redundant=min(alone))


def _indices(*lists: Sequence[int], dim: int) -> list[np.ndarray]:
    sets = [numbers(indices, "first, second and target") for indices in lists]
    if any(indices.ndim != 1 or not indices.size for indices in sets):
        raise ValueError(
            "expected lists of one index or more for first, second and target, got "
            f"shapes {[indices.shape for indices in sets]}; name each one's dimensions"
        )
    used = np.concatenate(sets)
    integers = all(indices.dtype.kind in "iu" for indices in sets)
    if not integers or used.min() < 0 or used.max() >= dim:
        raise ValueError(
            f"expected indices from 0 to {dim - 1}, got {used.tolist()}; count the "
            "rows of the covariance from 0"
        )
    if len(set(used.tolist())) < len(used):
        raise ValueError(
            f"expected lists that do not overlap, got {[s.tolist() for s in sets]}; "
            "give each dimension to one of first, second and target"
        )
    return sets


def _correlation(covariance: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The correlations of these dimensions, in their order."""
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(
            f"expected a square covariance, got shape {covariance.shape}; give that of "
            "all variables together"
        )
    chosen = covariance[np.ix_(used, used)]
    variance = chosen.diagonal()
    if not np.isfinite(chosen).all() or not (variance > 0).all():
        raise ValueError(
            f"expected finite numbers and variances above 0, got variances {variance}; "
            "leave out what does not vary"
        )
    scale = np.sqrt(variance)
    correlation = chosen / scale / scale[:, None]
    if np.abs(correlation - correlation.T).max() > ASYMMETRY:
        raise ValueError("expected a symmetric covariance, got another; symmetrise it")
    correlation = (correlation + correlation.T) / 2
    least = np.linalg.eigvalsh(correlation)[0]
    if least < LEAST_EIGENVALUE:
        raise ValueError(
            "expected a positive definite covariance, got correlations with smallest "
            f"eigenvalue {least:.2g}; leave out dimensions that others determine"
        )
    return correlation
