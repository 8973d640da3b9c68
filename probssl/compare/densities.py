r"""Alignment and entropy estimators of z, as one value per item, in nats and float64.

Each function returns values (n,) whose mean is the estimate. They are its influence
function or its jackknife values, so that their spread is its standard error; a scale or
bandwidth fitted by maximum likelihood adds nothing to first order. The error of a sum
of estimates is that of the sum of their values, covariances included.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..entropies.gaussian import covariance
from ..entropies.nearest import log_ball
from ..estimates import Undefined
from ..evaluation.information import maximiser
from ..priors import Gaussian, Spherical, StudentT
from ..special import log_area, log_vmf_normaliser
from ..special import square_distances as pairwise

__all__ = ["directions", "full_rank", "gaussian", "gaussian_peak", "kernel_density"]
__all__ += ["log_determinant", "nearest", "off_sphere", "spherical", "spherical_peak"]
__all__ += ["square_distances", "student"]

Values = Float[Tensor, " n"]
Latents = Float[Tensor, "n view dim"]
Peak = Callable[[Tensor, int], Tensor]

SAME_VIEWS = 1e-12  # times the mean square of z: closer views count as equal
RANK_TOLERANCE = 1e-6  # times the largest singular value: rounding of float32 encoders
NEIGHBOUR = 3


def gaussian(z: Latents) -> Values:
    r"""Log-density under a flat p(y) and a Gaussian p(z|y) of maximum-likelihood scale.

    .. math:: \hat \sigma^2 = \frac{E \sum_v \lVert z_v - \bar z \rVert^2}{(V - 1) d}
    """
    prior = Gaussian(None, math.sqrt(_variance(z)), y_scale=math.inf).to(z.dtype)
    return prior.log_prob(z)


def student(z: Latents) -> Values:
    """Log-density under a flat p(y) and a Student-t p(z|y) of maximum-likelihood scale.

    With 5 degrees of freedom, shared by the views.
    """
    scale, (views, dim) = math.sqrt(_variance(z)), z.shape[1:]
    unit = StudentT(None, y_scale=math.inf).to(z.dtype)(views, dim=dim)

    def log_prob(scale: float) -> Values:
        return unit.log_prob(z / scale) - (views - 1) * dim * math.log(scale)

    return log_prob(_argmax(log_prob, scale / 1e3, 10 * scale))


def spherical(u: Latents) -> Values:
    r"""Log-density on the sphere, y uniform, at the maximum-likelihood concentration.

    .. math:: \log p(z_2, \dots, z_V \mid z_1)
        = \log p(z_1, \dots, z_V) + \log |S^{d-1}|

    One view alone is uniform. Under a flat p(y) its density is 1, so that there the
    joint log-density is the conditional one.
    """
    apart, (views, dim) = _apart(u, 1.0), u.shape[1:]
    prior = Spherical(None).to(u.dtype)

    def log_prob(concentration: float) -> Values:
        drawn = u.new_tensor(concentration)
        joint = prior(views, dim=dim, concentration=drawn).log_prob(u)
        return joint + log_area(dim)

    # where directions nearly agree, the maximum is near dim / apart
    return log_prob(_argmax(log_prob, 1e-3, 10 * dim / apart + 1))


def _argmax(log_prob: Callable[[float], Values], low: float, high: float) -> float:
    return maximiser(lambda s: float(log_prob(s).mean()), low, high)


def log_determinant(z: Latents) -> Values:
    r"""`LogDeterminant` entropy: a Gaussian of equal covariance, mean over views.

    .. math:: \tfrac12 \log |2 \pi e \hat \Sigma| + \tfrac12 (m_i - \bar m), \qquad
        m_i = (z_i - \bar z)^\top \hat \Sigma^{-1} (z_i - \bar z)
    """
    factor = torch.linalg.cholesky(covariance(z))
    centred = (z - z.mean(0)).permute(1, 2, 0)
    white = torch.linalg.solve_triangular(factor, centred, upper=False)
    length = white.square().sum(1).mean(0)
    log_factor = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1).mean()
    entropy = log_factor + z.shape[-1] / 2 * math.log(2 * math.pi * math.e)
    return entropy + (length - length.mean()) / 2


def nearest(square: Float[Tensor, "view n n"], dim: int) -> Values:
    """`NearestNeighbour` entropy by the third neighbour, mean over views.

    The values are those of the jackknife: where the item left out was a neighbour, the
    next one takes its place.
    """
    n = square.shape[-1]
    found = square.topk(NEIGHBOUR + 2, largest=False)  # the first is the item itself
    volumes = log_ball(dim, found.values[..., -2:])
    reach, beyond = volumes.unbind(-1)
    if not reach.isfinite().all():
        raise Undefined(
            f"{int(reach.isinf().sum())} representations coincide with {NEIGHBOUR} "
            "others: they have no density"
        )
    neighbours = found.indices[..., 1:-1].flatten(1)
    gain = (beyond - reach).repeat_interleave(NEIGHBOUR, -1)
    adds = reach - torch.zeros_like(reach).scatter_add(-1, neighbours, gain)
    digammas = sum(1 / i for i in range(NEIGHBOUR, n))  # ψ(n) - ψ(k)
    return digammas + (reach.mean() + adds - adds.mean(-1, keepdim=True)).mean(0)


def kernel_density(square: Float[Tensor, "view n n"], dim: int, peak: Peak) -> Values:
    r"""Leave-one-out kernel density entropy at the maximum-likelihood bandwidth.

    .. math:: \log k_{ij} = \log k(0) - \tfrac12 \beta \lVert z_i - z_j \rVert^2

    with :math:`\beta = 1 / h^2` of a Gaussian, :math:`\kappa` of a von Mises-Fisher
    kernel, one for all views. It is a cross-entropy, and so exceeds H[z] by the
    divergence of the density from its kernel estimate.
    """
    n = square.shape[-1]
    around = square.masked_fill(torch.eye(n, dtype=torch.bool), math.inf)
    near = around.amin(-1, keepdim=True)
    if not float(near.mean()) > 0:
        raise Undefined("all representations coincide with others: no density")
    beyond = around - near  # each sum has a term of 1 at least, and none larger

    def kernels(precision: float) -> tuple[Tensor, Tensor]:
        kernel = beyond.mul(-precision / 2).exp_()
        return kernel, kernel.sum(-1)

    def log_densities(precision: float, sums: Tensor) -> Tensor:
        centre = peak(square.new_tensor(precision), dim) - math.log(n - 1)
        return sums.log() - precision / 2 * near.squeeze(-1) + centre

    def likelihood(precision: float) -> float:
        return float(log_densities(precision, kernels(precision)[1]).mean())

    low, high = 0.01 * dim / float(square.mean()), 10 * dim / float(near.mean())
    precision = maximiser(likelihood, low, high, xatol=1e-4)
    kernel, sums = kernels(precision)
    # an item adds its share of their sums to the densities of the others
    shares = (kernel / sums.unsqueeze(-1)).sum(-2)
    return (1 - shares - log_densities(precision, sums)).mean(0)


def gaussian_peak(precision: Tensor, dim: int) -> Tensor:
    """The log-density of a Gaussian kernel at its centre."""
    return dim / 2 * (precision / (2 * math.pi)).log()


def spherical_peak(precision: Tensor, dim: int) -> Tensor:
    """The log-density of a von Mises-Fisher kernel at its centre."""
    return log_vmf_normaliser(dim, precision, scaled=True)


def square_distances(z: Latents) -> Float[Tensor, "view n n"]:
    """Squared distances within each view, exactly 0 only between equal items."""
    z = z.transpose(0, 1)
    return pairwise(z, z, exact=True)


def directions(z: Latents) -> Latents:
    """z on the unit sphere; raises `Undefined` in one dimension or for a zero z."""
    if z.shape[-1] < 2:
        raise Undefined("z has one dimension: directions need at least 2")
    lengths = z.norm(dim=-1)
    if not lengths.all():
        raise Undefined(f"{int((lengths == 0).sum())} representations are zero")
    return normalize(z, dim=-1)


def full_rank(z: Latents, centre: bool = True) -> Latents:
    """z; raises `Undefined` if it does not span its dimensions, without a density."""
    size = spread = torch.linalg.svdvals(z.transpose(0, 1))
    if centre:
        spread = torch.linalg.svdvals((z - z.mean(0)).transpose(0, 1))
    rank = int((spread > RANK_TOLERANCE * size.amax(-1, keepdim=True)).sum(-1).min())
    if rank < z.shape[-1]:
        raise Undefined(
            f"{len(z)} representations span {rank} of {z.shape[-1]} dimensions: no "
            "density"
        )
    return z


def off_sphere(z: Latents) -> Latents:
    """z; raises `Undefined` if it lies on a sphere, without a density in space."""
    lengths = z.norm(dim=-1)
    if lengths.std() < RANK_TOLERANCE * lengths.mean():
        raise Undefined("z lies on a sphere: a density is one on it, not in space")
    return z


def _apart(z: Latents, typical: float) -> float:
    """Mean square of a view from the mean of its item, over its degrees of freedom."""
    n, views, _ = z.shape
    square = float((z - z.mean(1, keepdim=True)).square().sum()) / (n * (views - 1))
    if not square > SAME_VIEWS * typical:
        raise Undefined("the views agree exactly: no scale has the maximum likelihood")
    return square


def _variance(z: Latents) -> float:
    spread = float((z - z.mean((0, 1))).square().sum(-1).mean())
    return _apart(z, spread) / z.shape[-1]
