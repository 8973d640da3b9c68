r"""What each item adds to alignments and entropies of z, in nats, in float64.

Each function returns values (n,) of the items. Their mean is the estimate; their spread
is its error, since they are its influence function, or what leaving out the item takes
from it: a scale or bandwidth fitted by maximum likelihood adds nothing to first order.
Sums of estimates are sums of values, whose errors then know of each other.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..entropies import LogDeterminant
from ..entropies.gaussian import covariance
from ..entropies.nearest import log_ball
from ..estimates import Undefined
from ..evaluation.maximum import maximiser
from ..priors import Gaussian, Spherical, StudentT
from ..special import log_vmf_normaliser
from ..special import square_distances as pairwise

__all__ = ["directions", "full_rank", "gaussian", "gaussian_peak", "kernel_density"]
__all__ += ["log_determinant", "nearest", "off_sphere", "spherical", "spherical_peak"]
__all__ += ["square_distances", "student"]

Values = Float[Tensor, " n"]
Latents = Float[Tensor, "n view dim"]
Peak = Callable[[Tensor, int], Tensor]

AGREED = 1e-12  # of the mean square of z: views no further apart agree
ROUNDING = 1e-6  # of the largest singular value of z, which encoders in float32 reach
NEIGHBOUR = 3


def gaussian(z: Latents) -> Values:
    r"""Log-density under a flat p(y) and a Gaussian p(z|y) of the likeliest scale.

    .. math:: \hat \sigma^2 = \frac{E \sum_v \lVert z_v - \bar z \rVert^2}{(V - 1) d}
    """
    prior = Gaussian(None, math.sqrt(_variance(z)), y_scale=math.inf).to(z.dtype)
    return prior.log_prob(z)


def student(z: Latents) -> Values:
    """Log-density under a flat p(y) and a Student-t p(z|y) of the likeliest scale.

    With 5 degrees of freedom, shared by the views.
    """
    scale = math.sqrt(_variance(z))

    def log_prob(scale: float) -> Values:
        prior = StudentT(None, scale, y_scale=math.inf).to(z.dtype)
        return prior.log_prob(z)

    return log_prob(
        maximiser(lambda s: float(log_prob(s).mean()), scale / 1e3, 10 * scale)
    )


def spherical(u: Latents) -> Values:
    r"""Log-density on the sphere, y uniform, of the likeliest concentration of p(z|y).

    In the gauge :math:`(V - 1) H[z]`: a uniform p(y) pairs with it as a flat one does.
    """
    apart = _apart(u, 1.0)

    def log_prob(concentration: float) -> Values:
        return Spherical(None, concentration).to(u.dtype).log_prob(u)

    # for directions that nearly agree the likeliest concentration is dim / apart
    best = maximiser(
        lambda k: float(log_prob(k).mean()), 1e-3, 10 * u.shape[-1] / apart + 1
    )
    return log_prob(best)


def log_determinant(z: Latents) -> Values:
    r"""Entropy of a Gaussian of the same covariance, a mean over views.

    .. math:: \tfrac12 \log |2 \pi e \hat \Sigma| + \tfrac12 (m_i - \bar m), \qquad
        m_i = (z_i - \bar z)^\top \hat \Sigma^{-1} (z_i - \bar z)
    """
    factor = torch.linalg.cholesky(covariance(z))
    centred = (z - z.mean(0)).permute(1, 2, 0)
    white = torch.linalg.solve_triangular(factor, centred, upper=False)
    length = white.square().sum(1).mean(0)
    return LogDeterminant(epsilon=0.0)(z) + (length - length.mean()) / 2


def nearest(square: Float[Tensor, "view n n"], dim: int) -> Values:
    """`NearestNeighbour` entropy by the third neighbour, a mean over views.

    Items are left out one by one for what each adds: where it was a neighbour, the
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
    r"""Leave-one-out kernel density entropy of the likeliest bandwidth.

    .. math:: \log k_{ij} = \log k(0) - \tfrac12 \beta \lVert z_i - z_j \rVert^2

    with :math:`\beta = 1 / h^2` of a Gaussian, :math:`\kappa` of a von Mises-Fisher
    kernel, one for all views. It is a cross-entropy and so too high, by the divergence
    of the density from the smoothed one.
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
    # as a neighbour, an item adds to the density of others its share of their sums
    shares = (kernel / sums.unsqueeze(-1)).sum(-2)
    return (1 - shares - log_densities(precision, sums)).mean(0)


def gaussian_peak(precision: Tensor, dim: int) -> Tensor:
    return dim / 2 * (precision / (2 * math.pi)).log()


def spherical_peak(precision: Tensor, dim: int) -> Tensor:
    return log_vmf_normaliser(dim, precision, scaled=True)


def square_distances(z: Latents) -> Float[Tensor, "view n n"]:
    """Squared distances within each view; exactly zero only where items coincide."""
    z = z.transpose(0, 1)
    return pairwise(z, z, exact=True)


def directions(z: Latents) -> Latents:
    """z on the unit sphere.

    Raises:
        Undefined: If there is no sphere, or no direction.
    """
    if z.shape[-1] < 2:
        raise Undefined("in one dimension there is no sphere to be on")
    lengths = z.norm(dim=-1)
    if not lengths.all():
        raise Undefined(f"{int((lengths == 0).sum())} representations are zero")
    return normalize(z, dim=-1)


def full_rank(z: Latents, centre: bool = True) -> Latents:
    """z, unless there are dimensions in which it does not vary."""
    centred = z - z.mean(0) if centre else z
    spread, size = (torch.linalg.svdvals(x.transpose(0, 1)) for x in (centred, z))
    rank = int((spread > ROUNDING * size.amax(-1, keepdim=True)).sum(-1).min())
    if rank < z.shape[-1]:
        raise Undefined(
            f"{len(z)} representations span {rank} of {z.shape[-1]} dimensions: no "
            "density"
        )
    return z


def off_sphere(z: Latents) -> Latents:
    """z, unless all of it has one length, and so a density on the sphere only."""
    lengths = z.norm(dim=-1)
    if lengths.std() < ROUNDING * lengths.mean():
        raise Undefined("z lies on a sphere: a density is one on it, not in space")
    return z


def _apart(z: Latents, typical: float) -> float:
    """Mean square of a view from the mean of its item, over its degrees of freedom."""
    n, views, _ = z.shape
    square = float((z - z.mean(1, keepdim=True)).square().sum()) / (n * (views - 1))
    if not square > AGREED * typical:
        raise Undefined("the views agree exactly: no scale is the likeliest")
    return square


def _variance(z: Latents) -> float:
    spread = float((z - z.mean((0, 1))).square().sum(-1).mean())
    return _apart(z, spread) / z.shape[-1]
