r"""Which views belong together: the P of stochastic neighbour embedding.

P is a distribution over ordered pairs of different views, of a batch as a whole: P_ij
is the probability to draw view i and then its partner j, and P_{j|i} of the partner
alone. It says what is alike before anything is learned; the kernel of a prior, which is
Q, is fitted to it (`limits.NeighbourEmbedding`).

What makes views is what makes P. Of two views drawn from one item nothing is known but
that they belong together: P is 1 over the number of such pairs, and sparse. Where the
density :math:`\varphi(x_j \mid x_i)` of a view around a point is known, so that any
point may have come of any other, P is dense:

.. math:: P_{j \mid i} = \frac{\varphi(x_j \mid x_i)}
    {\sum_{k \ne i} \varphi(x_k \mid x_i)}, \qquad P_{ij} = \frac1M P_{j \mid i}

References:
    Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
    (Hu et al., 2023)
    https://arxiv.org/abs/2205.14814
    Stochastic Neighbor Embedding (Hinton and Roweis, 2002)
    https://papers.nips.cc/paper/2276-stochastic-neighbor-embedding
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .processes import gather, number
from .terms import Batch

__all__ = ["Affinity", "Dense", "Mixup", "Noise", "Overlap", "Perplexity"]
__all__ += ["Positives"]


class Affinity(nn.Module):
    """P of a batch, which sums to one.

    Called with a batch it returns either the pairs within the items of all processes,
    shape (batch, view, view), or those of all their views, shape (batch · view,
    batch · view), items first. No view is its own partner: the diagonal is zero.

    An affinity of your own needs `forward`; and `dense`, whether views of different
    items can belong together, so that one view of each is enough.
    """

    dense = False

    def forward(self, batch: Batch) -> Float[Tensor, "..."]:
        raise NotImplementedError(f"{type(self).__name__} has no forward(batch)")


class Positives(Affinity):
    r"""Any two views of one item alike, :math:`P_{ij} = 1 / N V (V - 1)`."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch view view"]:
        items, views = batch.shape
        partner = _others(views, batch.stacked)
        return (partner / (items * number() * views * (views - 1))).expand(
            items * number(), views, views
        )


class Overlap(Affinity):
    r"""Views of one item, the more the larger the part of it that both show.

    .. math:: P_{ij} \propto c + (1 - c) \, \frac{|B_i \cap B_j|}{|B_i \cup B_j|}

    with the boxes B that views show. `views.Augment` tells them with ``boxes=True``:
    ``Batch.transform``, of shape (batch, view, 4), left, top, right and bottom.

    Arguments:
        floor: The weight c of views that have nothing in common.

    Raises:
        ValueError: If the floor is not from 0 to 1, or a batch has no boxes. With a
            floor of 0 at least one pair of each batch has to overlap.
    """

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        if not 0 <= floor <= 1:
            raise ValueError(f"expected floor from 0 to 1, got {floor}; 0.1 is usual")
        self.floor = floor

    def forward(self, batch: Batch) -> Float[Tensor, "batch view view"]:
        boxes = _boxes(batch)
        weight = self.floor + (1 - self.floor) * intersection_over_union(boxes)
        weight = gather(weight * _others(boxes.shape[1], boxes))
        return weight / weight.sum()


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

    :math:`\beta_i` is found by bisection, to rounding. Points that agree in so many
    others that the entropy cannot be so low take the narrowest width there is.

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
        # Of each point in units of its nearest neighbour's, where that is not itself.
        nearest = square.masked_fill(square == 0, math.inf).amin(1, keepdim=True)
        ratio = square / nearest.nan_to_num(posinf=1.0)
        low, high = (ratio.new_full((len(x), 1), end) for end in (-30.0, 30.0))
        for _ in range(60):
            middle = (low + high) / 2
            log_p = (-middle.exp() * ratio).log_softmax(1)
            entropy = -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(1, keepdim=True)
            wide = entropy > math.log(self.perplexity)
            low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
        return -((low + high) / 2).exp() * ratio


def intersection_over_union(
    boxes: Float[Tensor, "*batch view 4"],
) -> Float[Tensor, "*batch view view"]:
    """Return the area that two boxes share, over that which either covers."""
    a, b = boxes.unsqueeze(-2), boxes.unsqueeze(-3)
    size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    both = size.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return both / (area.unsqueeze(-1) + area.unsqueeze(-2) - both)


def _boxes(batch: Batch) -> Float[Tensor, "batch view 4"]:
    boxes: Any = batch.transform
    if not isinstance(boxes, Tensor) or boxes.shape != (*batch.shape, 4):
        found = tuple(boxes.shape) if isinstance(boxes, Tensor) else boxes
        raise ValueError(
            f"expected boxes of shape {(*batch.shape, 4)} in Batch.transform, got "
            f"{found}; give fit views=ps.views.Augment(..., boxes=True)"
        )
    return boxes


def _others(views: int, like: Tensor) -> Float[Tensor, "view view"]:
    """One where views differ, in the precision of densities."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.get_default_dtype()
    return 1 - torch.eye(views, dtype=dtype, device=like.device)


def _square_distances(x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
    """Of all pairs; exactly zero for equal points, and symmetric."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
