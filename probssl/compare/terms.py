"""Alignment, entropy and information terms of one encoder, with unit weights."""

import itertools
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..bounds import ELBO
from ..estimates import Estimate, Undefined, estimate
from ..evaluation import gaussian_information, info_nce, nearest_neighbour_information
from ..evaluation.collapse import alignment_uniformity_values
from ..joint import Joint
from ..posterior.items import evaluating
from ..terms import Batch
from .densities import (
    directions,
    full_rank,
    gaussian,
    gaussian_peak,
    kernel_density,
    log_determinant,
    nearest,
    off_sphere,
    spherical,
    spherical_peak,
    square_distances,
    student,
)

__all__ = ["FAILED", "SUMS", "Measured", "attempt", "attempted", "own_terms"]
__all__ += ["representation_terms"]

T = TypeVar("T")

FAILURES = ArithmeticError, MemoryError, RuntimeError, ValueError  # of one measure
FAILED = "not measured"  # begins the reason for such a measure

PARTS_OF_ITEMS = 20  # the spread of their means is the error of a bound

# Alignment and entropy whose sum is invariant to the scale of z.
SUMS = {
    "log_det": ("gaussian_alignment", "gaussian_entropy"),
    "gaussian_kernel": ("gaussian_alignment", "kernel_entropy"),
    "gaussian_nearest": ("gaussian_alignment", "nearest_entropy"),
    "student_nearest": ("student_alignment", "nearest_entropy"),
    "spherical_kernel": ("spherical_alignment", "spherical_entropy"),
}


class Measured(NamedTuple):
    """The measures of one encoder, by name.

    Arguments:
        terms: Alignments and entropies, in nats per item.
        matrix: Measures that are invariant to scale and rotation of z.
        left_out: For each missing measure the reason.
    """

    terms: dict[str, Estimate]
    matrix: dict[str, Estimate]
    left_out: dict[str, str]


def representation_terms(z: Float[Tensor, "n view dim"]) -> Measured:
    r"""Alignment under every prior, H[z] by every estimator, their sums, and I(z; z').

    With flat or uniform p(y), under which one view alone has a constant density, and a
    scale by maximum likelihood. The sums

    .. math:: \hat I = E \log p(z_2, \dots, z_V \mid z_1) + (V - 1) \hat H[z]

    are invariant to scale and rotation of z and, except on the sphere, to shifts. For
    two views each is a lower bound on their mutual information if :math:`\hat H` is
    exact; log-determinant and kernel density overestimate it. The estimates of mutual
    information are those of the first two views.
    """
    z = z.double()
    n, views, dim = z.shape
    flat = cache(lambda: full_rank(z))
    unit = cache(lambda: directions(z))
    spread_out = cache(lambda: full_rank(unit(), centre=False))
    square = cache(lambda: square_distances(off_sphere(flat())))
    chord = cache(lambda: square_distances(spread_out()))
    makers: dict[str, Callable[[], Tensor]] = {
        "gaussian_alignment": lambda: gaussian(flat()),
        "gaussian_entropy": lambda: log_determinant(flat()),
        "student_alignment": lambda: student(flat()),
        "kernel_entropy": lambda: kernel_density(square(), dim, gaussian_peak),
        "nearest_entropy": lambda: nearest(square(), dim),
        "spherical_alignment": lambda: spherical(spread_out()),
        "spherical_entropy": lambda: kernel_density(chord(), dim, spherical_peak),
    }
    found, left_out = attempt(makers)
    values = {
        name: (views - 1) * value if name.endswith("entropy") else value
        for name, value in found.items()
    }
    terms = {name: estimate(value) for name, value in values.items()}
    sums = {}
    for name, parts in SUMS.items():
        if missing := [left_out[part] for part in parts if part in left_out]:
            left_out[name] = missing[0]
        else:
            sums[name] = estimate(values[parts[0]] + values[parts[1]])

    first, second = z[:, 0], z[:, 1]
    spread = cache(lambda: alignment_uniformity_values(unit()))
    no_gauge: dict[str, Callable[[], Estimate]] = {
        "info_nce": lambda: info_nce(first, second),
        "gaussian_information": lambda: gaussian_information(first, second),
        "nearest_information": lambda: nearest_neighbour_information(first, second),
        "view_distance": lambda: estimate(spread()[0]),
        "uniformity": lambda: estimate(spread()[1]),
    }
    matrix, undefined = attempt(no_gauge)
    return Measured(terms, sums | matrix, left_out | undefined)


def attempt(
    makers: Mapping[str, Callable[[], T]],
) -> tuple[dict[str, T], dict[str, str]]:
    """The measures that are defined, by name, and the reasons of the others."""
    left_out: dict[str, str] = {}
    tried = {name: attempted(make, left_out, name) for name, make in makers.items()}
    return {k: found for k, found in tried.items() if found is not None}, left_out


def attempted(make: Callable[[], T], left_out: dict[str, str], *names: str) -> T | None:
    """A measure, or None if it is undefined or fails; then the reason is noted.

    Arguments:
        left_out: Gets the reason under these names.
    """
    try:
        return make()
    except Undefined as error:
        left_out |= dict.fromkeys(names, str(error))
    except FAILURES as error:
        reason = f"{FAILED} ({type(error).__name__}: {error})".splitlines()[0]
        left_out |= dict.fromkeys(names, reason)
    return None


def own_terms(
    objective: object, views: Float[Tensor, "n view *event"], particles: int = 8
) -> dict[str, Estimate]:
    """The terms of the ELBO of a joint for all views of an item, in nats.

    Unit weights, whatever those of the objective; empty without a joint with a proper
    p(y). Errors are those of the means of twenty parts of the items.
    """
    joint = getattr(objective, "joint", None)
    if not isinstance(joint, Joint) or not joint.prior.proper:
        return {}
    parts = torch.arange(len(views)).tensor_split(min(PARTS_OF_ITEMS, len(views)))
    sizes, values = [], []
    with evaluating(joint) as like:
        for rows in itertools.chain.from_iterable(part.split(512) for part in parts):
            x = views[rows] if like is None else views[rows].to(like)
            terms = ELBO(particles)(joint, Batch(x))[:3]
            sizes.append(len(rows))
            values.append([float(term) for term in terms])
    table = np.array([[*row, sum(row)] for row in values])
    shares = np.array(sizes) / sum(sizes)
    means = shares @ table
    errors = np.sqrt(shares @ np.square(table - means) / max(1, len(table) - 1))
    names = ("reconstruction", "entropy", "alignment", "elbo")
    pairs = zip(means.tolist(), errors.tolist(), strict=True)
    return {name: Estimate(*pair) for name, pair in zip(names, pairs, strict=True)}
