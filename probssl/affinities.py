r"""Affinities: P, the distribution over pairs of stochastic neighbour embedding (SNE).

P is a distribution over ordered pairs of different views of a batch: P_ij is the
probability of drawing view i and then its partner j, P_{j|i} that of the partner alone.
P is fixed before training; the kernel of a prior, Q, is fitted to it
(`limits.NeighbourEmbedding`).

The views determine P. Two views sampled from one item are a positive pair: P is 1 over
the number of such pairs, and sparse. Where the density :math:`\varphi(x_j \mid x_i)` of
a view around a point is known, so that every point may have come from every other, P is
dense:

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
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .arguments import at_least, between, positive, whole
from .arrays import tensor
from .runtime.distributed import gather, world_size
from .special import square_distances
from .terms import Batch, check_batch

__all__ = ["Affinity", "Dense", "Mixup", "Noise", "Overlap", "Perplexity", "Positives"]
__all__ += ["intersection_over_union"]

BISECTIONS, NEWTON_STEPS = 14, 4  # of the search for a precision of given perplexity


class Affinity(nn.Module):
    """The distribution P over the pairs of views of a batch, which sums to one.

    Called with a batch it returns either the pairs within the items of all ranks, shape
    (batch, view, view), or the pairs of all views, shape (batch · view, batch · view),
    items first. No view is its own partner: the diagonal is zero.

    An affinity of your own needs `forward`; and `dense`, whether views of different
    items can be partners, so that one view of each is enough.
    """

    dense = False

    def forward(self, batch: Batch) -> Float[Tensor, "..."]:
        raise NotImplementedError(f"{type(self).__name__} has no forward(batch)")


class Positives(Affinity):
    r"""Positive pairs: the views of an item, :math:`P_{ij} = 1 / N V (V - 1)`."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch view view"]:
        check_batch(batch)
        items, views = batch.shape[0] * world_size(), batch.shape[1]
        partner = _others(views, batch.parts[0])
        return (partner / (items * views * (views - 1))).expand(items, -1, -1)


class Overlap(Affinity):
    r"""Positive pairs weighted by the overlap of their crops (intersection over union).

    .. math:: P_{ij} \propto c + (1 - c) \, \frac{|B_i \cap B_j|}{|B_i \cup B_j|}

    with the boxes B of the crops. `views.Augment` with ``boxes=True`` gives them in
    ``Batch.transform``, shape (batch, view, 4): left, top, right and bottom.

    Arguments:
        floor: The weight c of views without overlap.

    Raises:
        ValueError: If the floor is not from 0 to 1, or a batch has no boxes. With a
            floor of 0 at least one pair of each batch has to overlap, or every view
            with another where P is normalised by view: else P is 0 / 0.
    """

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        self.floor = between("floor", floor, 0, 1, "0.1 is usual")

    def forward(self, batch: Batch) -> Float[Tensor, "batch view view"]:
        boxes = _boxes(batch)
        weight = self.floor + (1 - self.floor) * intersection_over_union(boxes)
        weight = gather(weight * _others(boxes.shape[1], boxes))
        return weight / weight.sum()


class Dense(Affinity):
    r"""A dense P over all views of a batch, from a density of differences.

    .. math:: P_{ij} = \frac1M \, \frac{\varphi(x_j - x_i)}
        {\sum_{k \ne i} \varphi(x_k - x_i)}

    A subclass of your own needs `log_density`. Time and memory grow with the square of
    the number M of views in a batch.

    Arguments:
        symmetric: Whether P becomes :math:`(P + P^\top) / 2`, as in symmetric SNE and
            t-SNE. For a symmetric kernel that changes the divergence, but not its
            gradient.
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
        x = _points(batch)
        whole("the number of views", len(x), 2, hint="use larger batches")
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        p = self.log_density(x).masked_fill(itself, -math.inf).softmax(1) / len(x)
        return (p + p.T) / 2 if self.symmetric else p


class Noise(Dense):
    r"""Gaussian noise as data augmentation, :math:`\varphi = N(0, s^2 I)`.

    This is the P of SNE with one bandwidth for all points. The difference of two noisy
    views of one point, each of standard deviation s, has :math:`\sqrt2 \, s`.

    Arguments:
        scale: The standard deviation s, in the units of x.
        symmetric: See `Dense`.

    Raises:
        ValueError: If the scale is not positive and finite.
    """

    def __init__(self, scale: float, *, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        self.scale = positive("scale", scale, "without noise use Positives")

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        return -square_distances(x, x, exact=True) / (2 * self.scale**2)


class Mixup(Dense):
    r"""Mixup as data augmentation: views :math:`x_i + \lambda (x_j - x_i)`.

    For items from a mixture of K Gaussians :math:`N(m_k, s^2 I)` of equal weight, and
    :math:`\lambda` uniform between two numbers, a difference has the density

    .. math:: \varphi(\delta) = E_\lambda \frac{1}{K^2} \sum_{k, l}
        N(\delta \mid \lambda (m_k - m_l), \; 2 \lambda^2 s^2 I)

    which favours the directions in which items differ. Gauss-Legendre quadrature gives
    the mean over :math:`\lambda`.

    Arguments:
        means: The means :math:`m_k`, shape (component, d).
        scale: The standard deviation s of each component.
        strength: The range of :math:`\lambda`, above 0, where the density diverges.
        nodes: The number of nodes of the quadrature.
        symmetric: See `Dense`; this φ is even.

    References:
        mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
        https://arxiv.org/abs/1710.09412

    Raises:
        ValueError: If a number is out of range, if the means do not have two axes, or
            if the items of a batch have another dimension.
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
        means = tensor(means, "means", finite=True)
        low, high = strength
        if means.ndim != 2:
            raise ValueError(
                f"expected means of shape (component, d), got {tuple(means.shape)}; "
                "sklearn.mixture.GaussianMixture finds means and scales"
            )
        if not 0 < low < high <= 1:
            raise ValueError(
                f"expected strength as 0 < low < high <= 1, got {strength}; (0.1, 0.5) "
                "is usual"
            )
        self.register_buffer("means", means)
        self.scale, self.strength = positive("scale", scale), strength
        self.nodes = whole("nodes", nodes)

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        dim = self.means.shape[1]
        if x.shape[1] != dim:
            raise ValueError(
                f"expected items of {dim} numbers, as in the means, got {x.shape[1]}; "
                "give the means of these items"
            )
        means, square = self.means.to(x), square_distances(x, x, exact=True)
        along = (means[:, None] - means).flatten(0, 1)  # m_k - m_l of all k and l
        length, shadow = along.square().sum(1), x @ along.T
        ahead = shadow - shadow[:, None]  # (x_j - x_i) · (m_k - m_l), at [i, j]
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
    r"""Gaussian neighbours with a bandwidth for each point, as in SNE and t-SNE.

    .. math:: P_{j \mid i} \propto \exp(-\beta_i \lVert x_i - x_j \rVert^2), \qquad
        e^{H(P_{\cdot \mid i})} = \text{perplexity}

    :math:`\beta_i` is exact to rounding. A point that coincides with so many others
    that the entropy cannot be this low takes the smallest bandwidth of the search.

    Arguments:
        perplexity: The effective number of neighbours of each point.
        symmetric: See `Dense`.

    References:
        Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
        https://jmlr.org/papers/v9/vandermaaten08a.html

    Raises:
        ValueError: If the perplexity is below 1, or not below the number of other
            points in a batch.
    """

    def __init__(self, perplexity: float = 30.0, *, symmetric: bool = False) -> None:
        super().__init__(symmetric)
        self.perplexity = at_least("perplexity", perplexity, 1, "30 is usual")

    def log_density(self, x: Float[Tensor, "point d"]) -> Float[Tensor, "point point"]:
        others = len(x) - 1
        if self.perplexity >= others:
            raise ValueError(
                f"expected more other points in a batch than the perplexity, got "
                f"{others} for {self.perplexity:g}; use larger batches or lower it"
            )
        square = square_distances(x, x, exact=True).fill_diagonal_(math.inf)
        # The distance of the last neighbour that this entropy needs sets the scale.
        number = math.floor(self.perplexity) + 1
        needed = square.topk(number, largest=False).values[:, -1:]
        nearest = square.where(square > 0, math.inf).amin(1, keepdim=True)
        ratio = square / needed.where(needed > 0, nearest.nan_to_num(posinf=1.0))
        return -_precisions(ratio, math.log(self.perplexity)) * ratio


def intersection_over_union(
    boxes: Float[Tensor, "*batch view 4"],
) -> Float[Tensor, "*batch view view"]:
    """Return the intersection over union (IoU) of all pairs of boxes of an item.

    Raises:
        ValueError: If boxes are not left, top, right and bottom; whether right is
            beyond left, and bottom below top, is read on the CPU alone.
    """
    if not isinstance(boxes, Tensor) or boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise ValueError(
            "expected boxes (…, view, 4), a tensor of left, top, right and bottom, got "
            f"{getattr(boxes, 'shape', type(boxes).__name__)}; Batch.transform has them"
        )
    boxes = boxes.float() if boxes.itemsize < 4 else boxes  # areas are large numbers
    if _read_here(boxes) and not bool((boxes[..., 2:] > boxes[..., :2]).all()):
        wrong = boxes[~(boxes[..., 2:] > boxes[..., :2]).all(-1)][0].tolist()
        raise ValueError(
            "expected boxes as left, top, right and bottom, with right > left and "
            f"bottom > top, got {wrong}; add the corner to a width and a height"
        )
    a, b = boxes.unsqueeze(-2), boxes.unsqueeze(-3)
    size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    both = size.clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return both / (area.unsqueeze(-1) + area.unsqueeze(-2) - both)


def _points(batch: Batch) -> Float[Tensor, "point d"]:
    """The views of all ranks in single precision or better.

    They are read, and refused unless finite, on the CPU alone.
    """
    check_batch(batch)
    x = gather(batch.stacked)
    if _read_here(x):
        x = tensor(x, "the views of an affinity", finite=True)
    if x.itemsize < 4 or not x.is_floating_point():
        x = x.float() if x.is_floating_point() else x.double()
    return x.flatten(2).flatten(0, 1)


def _read_here(x: Tensor) -> bool:
    """Whether numbers may be read: elsewhere that would synchronise with the host."""
    return type(x) is Tensor and x.device.type == "cpu" and get_proxy_mode() is None


def _boxes(batch: Batch) -> Float[Tensor, "batch view 4"]:
    check_batch(batch)
    boxes: Any = batch.transform
    if not isinstance(boxes, Tensor) or boxes.shape != (*batch.shape, 4):
        found = tuple(boxes.shape) if isinstance(boxes, Tensor) else boxes
        raise ValueError(
            f"expected boxes of shape {(*batch.shape, 4)} in Batch.transform, got "
            f"{found}; give fit views=ps.views.Augment(..., boxes=True)"
        )
    return boxes


def _others(views: int, like: Tensor) -> Float[Tensor, "view view"]:
    """One off the diagonal, zero on it, in the dtype of densities."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.get_default_dtype()
    return 1 - torch.eye(views, dtype=dtype, device=like.device)


def _precisions(
    square: Float[Tensor, "point point"], entropy: float
) -> Float[Tensor, "point 1"]:
    """The precision at which the neighbours of each point have this entropy.

    It lies between exp(-30) and exp(30). Bisection finds its logarithm within 0.004; a
    Newton step that leaves the bracket is replaced by a bisection.
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
            derivative = precision.square() * (second - mean.square())
            ahead = middle + excess / derivative
            half = torch.where((low <= ahead) & (ahead <= high), ahead, half)
        middle = half
    return middle.exp()
