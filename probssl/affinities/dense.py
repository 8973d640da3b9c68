"""Views of all items, by the density of a view around a point."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..runtime.distributed import gather
from ..terms import Batch
from .base import Affinity

__all__ = ["Dense", "Mixup", "Noise", "Perplexity"]

BISECTIONS, NEWTON_STEPS = 14, 4  # in search of a perplexity


class Dense(Affinity):
    r"""All views of a batch, by a density of differences.

    .. math:: P_{ij} = \frac1M \, \frac{\varphi(x_j - x_i)}
        {\sum_{k \ne i} \varphi(x_k - x_i)}

    One of your own gives `log_density`. Time and memory grow with the square of the
    number M of views in a batch.

    Arguments:
        symmetric: Whether P becomes :math:`(P + P^\top) / 2`, as in symmetric SNE and
            t-SNE. Under a kernel that is symmetric itself that changes the divergence,
            but not its gradient.
    """

    dense = True

    def __init__(self, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        r"""Return :math:`\log \varphi(x_j - x_i)`, row i and column j, up to a
        constant of each row."""
        raise NotImplementedError(f"{type(self).__name__} has no log_density(x)")

    @torch.no_grad()
    def forward(self, batch: Batch) -> Float[Tensor, "point point"]:
        x = gather(batch.stacked).flatten(2).flatten(0, 1)
        if len(x) < 2:
            raise ValueError(
                f"expected at least 2 views in a batch, got {len(x)}; use larger ones"
            )
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        p = self.log_density(x).masked_fill(itself, -math.inf).softmax(1) / len(x)
        return (p + p.T) / 2 if self.symmetric else p


class Noise(Dense):
    r"""Views that are the item plus Gaussian noise, :math:`\varphi = N(0, s^2 I)`.

    That is the P of SNE with one width for all points. Between two noisy views of one
    point, each with deviation s, the difference has :math:`\sqrt2 \, s`.

    Arguments:
        scale: The standard deviation s, in the units of x.
        symmetric: See `Dense`.

    Raises:
        ValueError: If the scale is not positive and finite.
    """

    def __init__(self, scale: float, *, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        if not 0 < scale < math.inf:
            raise ValueError(
                f"expected a positive finite scale of the noise, got {scale}; without "
                "noise only the views of one item belong together: use Positives"
            )
        self.scale = scale

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        return -_square_distances(x) / (2 * self.scale**2)


class Mixup(Dense):
    r"""Views on the way to another item, :math:`x_i + \lambda (x_j - x_i)`.

    With items that come from a mixture of K Gaussians :math:`N(m_k, s^2 I)` of equal
    weight, and :math:`\lambda` uniform between two numbers, a difference is of density

    .. math:: \varphi(\delta) = E_\lambda \frac{1}{K^2} \sum_{k, l}
        N(\delta \mid \lambda (m_k - m_l), \; 2 \lambda^2 s^2 I)

    so that it knows the directions in which items differ, however many others there
    are. The mean over :math:`\lambda` is taken by Gauss-Legendre quadrature.

    Arguments:
        means: The means :math:`m_k`, shape (component, d).
        scale: The standard deviation s of each.
        strength: The range of :math:`\lambda`. It begins above 0, where the density
            has no limit.
        nodes: The number of nodes of the quadrature.
        symmetric: See `Dense`; this density is that of its negative.

    Raises:
        ValueError: If a number is out of its range, means have no two axes, or items of
            a batch are not of their dimension.

    References:
        mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
        https://arxiv.org/abs/1710.09412
    """

    means: Tensor

    def __init__(
        self,
        means: Float[Tensor, "component d"],
        scale: float,
        *,
        strength: tuple[float, float] = (0.1, 0.5),
        nodes: int = 32,
        symmetric: bool = False,
    ) -> None:
        super().__init__(symmetric)
        means = torch.as_tensor(means)
        low, high = strength
        if means.ndim != 2 or not 0 < scale < math.inf or nodes < 1:
            raise ValueError(
                "expected means (component, d), a positive scale and a node, got "
                f"shape {tuple(means.shape)}, {scale} and {nodes}; "
                "sklearn.mixture.GaussianMixture finds means and scales"
            )
        if not 0 < low < high <= 1:
            raise ValueError(
                f"expected strength as 0 < low < high <= 1, got {strength}; (0.1, 0.5) "
                "is usual"
            )
        self.register_buffer("means", means)
        self.scale, self.strength, self.nodes = scale, strength, nodes

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        dim = self.means.shape[1]
        if x.shape[1] != dim:
            raise ValueError(
                f"expected items of {dim} numbers, as the means have, got {x.shape[1]}"
                "; give the means of these items"
            )
        means, square = self.means.to(x), _square_distances(x)
        along = (means[:, None] - means).flatten(0, 1)  # m_k - m_l of all k and l
        length, shadow = along.square().sum(1), x @ along.T
        ahead = shadow - shadow[:, None]  # of x_j - x_i along each, at [i, j]
        nodes, weights = np.polynomial.legendre.leggauss(self.nodes)
        low, high = self.strength
        log_density = torch.full_like(square, -math.inf)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            t = (low + high) / 2 + (high - low) / 2 * node
            variance = 2 * (t * self.scale) ** 2
            nearer = (2 * t * ahead - t**2 * length).div_(2 * variance).logsumexp(-1)
            peak = math.log(weight) - dim / 2 * math.log(2 * math.pi * variance)
            log_density = log_density.logaddexp(nearer - square / (2 * variance) + peak)
        return log_density - 2 * math.log(len(means)) - math.log(2)


class Perplexity(Dense):
    r"""Gaussian neighbours, each point with a width of its own, as in SNE and t-SNE.

    .. math:: P_{j \mid i} \propto \exp(-\beta_i \lVert x_i - x_j \rVert^2), \qquad
        e^{H(P_{\cdot \mid i})} = \text{perplexity}

    :math:`\beta_i` is found to rounding. Points that agree in so many others that the
    entropy cannot be so low take the narrowest width there is.

    Arguments:
        perplexity: The effective number of neighbours of each point.
        symmetric: See `Dense`.

    Raises:
        ValueError: If the perplexity is below 1, or if a batch has not more points than
            that besides the one in question.

    References:
        Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
        https://jmlr.org/papers/v9/vandermaaten08a.html
    """

    def __init__(self, perplexity: float = 30.0, *, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        if not 1 <= perplexity < math.inf:
            raise ValueError(
                f"expected a perplexity of at least 1, got {perplexity}; 30 is usual"
            )
        self.perplexity = perplexity

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        others = len(x) - 1
        if self.perplexity >= others:
            raise ValueError(
                f"expected more other points in a batch than the perplexity, got "
                f"{others} for {self.perplexity:g}; use larger batches or lower it"
            )
        square = _square_distances(x).fill_diagonal_(math.inf)
        # The last neighbour that such an entropy needs says how wide to look.
        number = math.floor(self.perplexity) + 1
        needed = square.topk(number, largest=False).values[:, -1:]
        nearest = square.where(square > 0, math.inf).amin(1, keepdim=True)
        ratio = square / needed.where(needed > 0, nearest.nan_to_num(posinf=1.0))
        return -_precisions(ratio, math.log(self.perplexity)) * ratio


def _precisions(
    square: Float[Tensor, "point point"], entropy: float
) -> Float[Tensor, "point 1"]:
    """The precision at which the neighbours of each point have this entropy.

    The widest and the narrowest are exp(-30) and exp(30). Bisection comes within 0.004
    of the logarithm, and a Newton step that leaves the bracket is replaced by another.
    """
    apart = square - square.amin(1, keepdim=True)  # the nearest has weight 1
    finite = apart.where(apart < math.inf, 0.0)
    low, high = (square.new_full((len(square), 1), end) for end in (-30.0, 30.0))
    middle = (low + high) / 2
    for step in range(BISECTIONS + NEWTON_STEPS):
        precision = middle.exp()
        p = (-precision * apart).softmax(1)
        weighted = p * finite
        mean, second = weighted.sum(1, True), (weighted * finite).sum(1, True)
        excess = precision * mean - p.amax(1, True).log() - entropy
        low = torch.where(excess > 0, middle, low)
        high = torch.where(excess > 0, high, middle)
        half = (low + high) / 2
        if step >= BISECTIONS:
            slope = precision.square() * (second - mean.square())
            ahead = middle + excess / slope
            half = torch.where((low <= ahead) & (ahead <= high), ahead, half)
        middle = half
    return middle.exp()


def _square_distances(x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
    """Of all pairs; exactly zero for equal points, and symmetric."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
