r"""The k-nearest-neighbour (Kozachenko–Leonenko) entropy, in R^d and on the sphere.

For every density, the mass within the distance to the k-th of n − 1 neighbours has
:math:`E \log \text{mass} = \psi(k) - \psi(n)`. Divided by the volume of the ball, the
mass is an estimate of the density.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import positive, whole
from ..priors import Prior
from ..special import log_area, square_distances
from ._log_sums import DENSE
from .base import Entropy, Views, coordinates

__all__ = ["NearestNeighbour", "log_ball", "log_cap"]


class NearestNeighbour(Entropy):
    r"""The k-nearest-neighbour (Kozachenko–Leonenko) entropy estimator.

    .. math:: \hat H[z] = \psi(n) - \psi(k) + \frac1n \sum_j \log |B_j|

    :math:`B_j` is the ball around :math:`z_j` up to its k-th nearest neighbour in the
    same view: :math:`|B_j| \propto \varepsilon_j^d`. For a spherical prior it is a cap,
    and :math:`|B_j|` its exact area. There is no bandwidth: scaling z by c adds
    :math:`d \log c`.

    For z uniform on the sphere the estimate is unbiased, for every n and k. Otherwise
    the bias is of the order of the squared distances, :math:`(k / n)^{2/d}` (d − 1 in
    place of d on the sphere): negative in few dimensions, positive in many, where n
    would have to grow exponentially with d. A smaller k has less bias and more
    variance.

    With k = 1 it is the KoLeo regulariser, :math:`L = -\frac1n \sum_j \log
    \varepsilon_j`: in R^d the estimate is −d L plus a constant, exactly. On the sphere,
    where KoLeo is used (DINOv2), it is −(d − 1) L plus a constant, exactly for d = 3,
    and otherwise up to :math:`\frac{(d-1)(d-3)}{8(d+1)} E \varepsilon^2` and higher
    orders: the area of a cap is not quite that of a disc.

    The neighbours are found in blocks: memory is linear in n, time quadratic.

    Arguments:
        k: The rank of the neighbour, 1 for the nearest.
        epsilon: A lower bound of the distances, which keeps the value finite where
            items are equal; equal items get no gradient from each other.

    References:
        Sample Estimate of the Entropy of a Random Vector (Kozachenko and Leonenko,
        1987)
        https://www.mathnet.ru/eng/ppi797
        Estimating Mutual Information (Kraskov et al., 2004)
        https://arxiv.org/abs/cond-mat/0305641
        Spreading Vectors for Similarity Search (Sablayrolles et al., 2019), KoLeo
        https://arxiv.org/abs/1806.03198
        DINOv2: Learning Robust Visual Features without Supervision (Oquab et al., 2024)
        https://arxiv.org/abs/2304.07193

    Raises:
        TypeError: If k is not a whole number.
        ValueError: If k is below 1, epsilon is not positive, or there are at most k
            items.
    """

    def __init__(self, k: int = 3, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.k = whole("k", k, hint="3 is a compromise of bias and variance")
        self.epsilon = positive("epsilon", epsilon)

    def forward(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        each = [self._entropy(v.unsqueeze(1), prior) for v in z.unbind(1)]
        return torch.stack(each).mean()

    def joint(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        r"""Return the joint estimate for all views.

        In R^d it is the entropy of the concatenated views. On the sphere the distance
        is the maximum over the views, and :math:`B_j` a product of caps, whose area is
        exact as well.
        """
        if _on_sphere(prior):
            return self._entropy(z, prior)
        flat = coordinates(z, prior).flatten(1)
        return self._entropy(flat.unsqueeze(1), None)

    def _entropy(
        self, z: Float[Tensor, "batch part dim"], prior: Prior | None
    ) -> Float[Tensor, ""]:
        """The joint entropy of the parts, each with a ball of the same radius."""
        sphere = _on_sphere(prior)
        z = z if sphere else coordinates(z, prior)
        items, parts, dim = z.shape
        hint = (
            "more than k, the rank of the neighbour: use larger batches or a smaller k"
        )
        whole("the number of items", items, self.k + 1, hint=hint)
        gap = z - z[_neighbour(z, self.k)]
        square = gap.square().sum(-1).amax(-1).clamp(min=self.epsilon**2)
        log_volume = log_cap if sphere else log_ball
        digammas = sum(1 / i for i in range(self.k, items))  # ψ(n) - ψ(k)
        return digammas + parts * log_volume(dim, square).mean()


def _on_sphere(prior: Prior | None) -> bool:
    return prior is not None and prior.space == "a sphere"


def log_ball(dim: int, square: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Log volume of a ball in R^dim with the given squared radius."""
    unit = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return unit + dim / 2 * square.log()


def log_cap(dim: int, square: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Log area of a cap of the unit sphere of R^dim.

    With the squared chord :math:`c = \varepsilon^2` from its centre to its rim,

    .. math:: \log |S^{d-1}| + \log I_{c / 4}(\tfrac{d-1}2, \tfrac{d-1}2)

    with the regularised incomplete beta function I. Computed in float64, with an error
    below 1e-12 for dim up to 512 and all c in (0, 4].

    Arguments:
        dim: The dimension of the space around the sphere, at least 2.
        square: The squared chord; values above 4 give the whole sphere.
    """
    share = (square.double() / 4).clamp(max=1)
    return log_area(dim) + _LogShare.apply(share, (dim - 1) / 2).to(square.dtype)


class _LogShare(torch.autograd.Function):
    r"""The log of the incomplete beta function :math:`I_x(a, a)`, for 0 < x ≤ 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, half: float) -> Tensor:
        small = torch.minimum(x, 1 - x)
        lesser = _log_lesser_share(small, half)
        return torch.where(x > 0.5, torch.log1p(-lesser.exp()), lesser)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.half = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, value = ctx.saved_tensors
        x = x.clamp(max=1 - 1e-15)  # for a < 1 the derivative at 1 is infinite
        density = (ctx.half - 1) * (x.log() + torch.log1p(-x)) - _log_beta(ctx.half)
        return grad * (density - value).exp(), None


def _log_beta(half: float) -> float:
    return 2 * math.lgamma(half) - math.lgamma(2 * half)


def _log_lesser_share(x: Tensor, half: float) -> Tensor:
    """The same for x up to 1/2, by a continued fraction (DLMF 8.17.22)."""
    value = torch.ones_like(x)
    # The number of terms is exact to rounding at x = 1/2, the slowest convergence.
    for term in range(24 + math.ceil(3 * math.sqrt(half)), 0, -1):
        i = term // 2
        if term % 2:
            rate = -(half + i) * (2 * half + i) / ((half + 2 * i) * (half + 2 * i + 1))
        else:
            rate = i * (half - i) / ((half + 2 * i - 1) * (half + 2 * i))
        value = 1 + rate * x / value
    log_power = half * (x.log() + torch.log1p(-x)) - math.log(half)
    return log_power - _log_beta(half) - value.log()


@torch.no_grad()
def _neighbour(z: Float[Tensor, "batch part dim"], k: int) -> Int[Tensor, " batch"]:
    """The k-th neighbour of each item, by the maximum distance over its parts."""
    items, parts, _ = z.shape
    z, number = z.transpose(0, 1), torch.arange(items, device=z.device)
    found = []
    # Matrix products are several times as fast as exact differences. A neighbour that
    # rounding misplaces is equally near, and the caller takes its distance exactly.
    for block in number.split(max(1, DENSE // (items * parts))):
        square = square_distances(z[:, block], z).amax(0)
        square.masked_fill_(block[:, None] == number, math.inf)
        found.append(square.topk(k, largest=False).indices[:, -1])
    return torch.cat(found)
