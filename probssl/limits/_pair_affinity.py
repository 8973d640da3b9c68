r"""Pair affinities: the probability that two items share their content, for all pairs.

.. math:: M_{ij} = p(y_i = y_j \mid z_i, z_j), \qquad
    \log \frac{M_{ij}}{1 - M_{ij}} = \log \frac{p(z_i, z_j)}{p(z_i) \, p(z_j)}
    + \log \frac{p(y_i = y_j)}{p(y_i \ne y_j)}

with y the contents of two items and z their representations, :math:`p(z_i, z_j)` the
density of two views of one content: Bayes' rule. `PriorAffinity` is that closed form
under a proper prior, `LearnedAffinity` a network in its place. Both return log-odds.
Where contents are classes, two that differ are not independent, and the density of the
pair given :math:`y_i \ne y_j` takes the place of :math:`p(z_i) \, p(z_j)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..arguments import whole
from ..arrays import tensor
from ..distributions.supports import support_of
from ..hyper import Learned, Positive
from ..nn.base import check_items, sizes
from ..priors import Prior
from ._base import check_not_random

__all__ = ["LearnedAffinity", "PrincipalComponents", "PriorAffinity"]
__all__ += ["check_neighbours", "neighbour_score"]


class LearnedAffinity(nn.Module):
    r"""A network of two layers on pairs of representations, symmetric in the pair.

    .. math:: g(a, b) = w^\top \sin(A a + B b + c) + w_0, \qquad
        \text{logit}_{ij} = \tfrac12 \big(g(a_i, b_j) + g(b_j, a_i)\big)

    A sine has no flat side on which a unit gets no gradient and dies. By its addition
    theorem the hidden units of all pairs are a product of two matrices, so that n and m
    items need memory O(nm + (n + m) width) and not O(nm width).

    At initialisation B = −A: a function of the difference of the two.

    Arguments:
        dim: The dimension of a representation.
        width: The number of hidden units.
        directions: Whether only the directions of representations count. They are then
            scaled to length :math:`\sqrt{\text{dim}}`, so that a coordinate is about
            1; otherwise representations should have about that scale.

    References:
        Implicit Neural Representations with Periodic Activation Functions
        (Sitzmann et al., 2020)
        https://arxiv.org/abs/2006.09661
    """

    def __init__(self, dim: int, width: int = 64, *, directions: bool = True) -> None:
        super().__init__()
        self.dim, self.width = whole("dim", dim), whole("width", width)
        self.directions = directions
        across, onwards = 1 / math.sqrt(2 * dim), 1 / math.sqrt(width)
        first = torch.empty(width, dim).uniform_(-across, across)
        self.first, self.second = nn.Parameter(first), nn.Parameter(-first)
        self.phase = nn.Parameter(torch.empty(width).uniform_(-math.pi, math.pi))
        self.weight = nn.Parameter(torch.empty(width).uniform_(-onwards, onwards))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self, a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
    ) -> Float[Tensor, "*batch n m"]:
        """Return the log-odds of all pairs.

        Raises:
            ValueError: If the representations have another dimension.
        """
        (first_a, second_a), (first_b, second_b) = self._phases(a), self._phases(b)
        weight = self.weight / 2
        left = [weight * first_a.sin(), weight * first_a.cos()]
        left += [weight * second_a.sin(), weight * second_a.cos()]
        right = [second_b.cos(), second_b.sin(), first_b.cos(), first_b.sin()]
        return torch.cat(left, -1) @ torch.cat(right, -1).mT + self.bias

    def _phases(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The phases that z adds to the units as first and as second of a pair."""
        if z.shape[-1] != self.dim:
            raise ValueError(
                f"expected representations with dim {self.dim} as their last axis, got "
                f"shape {tuple(z.shape)}; give the output of the projector, or else "
                f"of the encoder, or build the affinity with dim={z.shape[-1]}"
            )
        if self.directions:
            z = math.sqrt(self.dim) * normalize(z, dim=-1)
        return z @ self.first.mT, z @ self.second.mT + self.phase


class PriorAffinity(nn.Module):
    r"""The log-odds in closed form under a prior: its `pmi` plus the prior log-odds.

    For a Gaussian content of variance t and views of variance s around it, it is, for
    each dimension,

    .. math:: \log \frac{p(a, b)}{p(a) p(b)} = \frac12 \log \frac{(s + t)^2}{s (s + 2t)}
        - \frac{t^2 (a^2 + b^2) - 2 t (s + t) a b}{2 s (s + t) (s + 2 t)}

    If the scale of z differs from the prior's, the odds are near 0; `priors.Spherical`
    has no scale.

    Where y is a class k, as in `priors.Mixture`, two contents are the same if the
    classes are, and two that differ are not independent:

    .. math:: p(a, b \mid y_i \ne y_j)
        \propto p(a) \, p(b) \sum_{k \ne l} p(k|a) \, p(l|b)

    Arguments:
        prior: p(y) and p(z|y); p(y) integrates to one. A learned scale is fitted.
        odds: The prior odds p(same) / p(different): 1 / (C − 1) for C equally frequent
            contents. ``ps.learned(number)`` fits them.

    Raises:
        ValueError: If p(y) is flat, or discrete without `component` or with one class
            only; a hyper-parameter is random; or the odds are not positive.
    """

    def __init__(self, prior: Prior, odds: float | Learned = 0.1) -> None:
        super().__init__()
        if not prior.proper:
            raise ValueError(
                "expected a prior with a proper p(y), got a flat one, under which one "
                "view alone has no density; give it a finite y_scale, such as 1.0"
            )
        check_not_random(prior)
        self.classes = _of_classes(prior)
        self.prior, self.odds = prior, Positive(odds, "odds")
        if self.odds.random:
            raise ValueError(
                f"expected odds as a number or ps.learned(number), got {odds}; a "
                "distribution of them has no posterior here"
            )

    def forward(
        self, a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
    ) -> Float[Tensor, "*batch n m"]:
        """Return the log-odds of all pairs."""
        a, b = self.prior.on_support(a), self.prior.on_support(b)
        log_odds = self.prior.pmi(a, b) + self.odds().log()
        return log_odds - self._apart(a, b) if self.classes else log_odds

    def _apart(
        self, a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
    ) -> Float[Tensor, "*batch n m"]:
        r""":math:`\log p(a, b \mid k \ne l) / p(a) p(b)`, for classes k and l."""
        of = self.prior.responsibilities
        first, second = (of(z.unsqueeze(-2)).logits for z in (a, b))
        shares = first.exp() @ _others(second).exp().mT
        weights = self.prior.component().logits
        least = torch.finfo(shares.dtype).tiny
        return shares.clamp(min=least).log() - (weights + _others(weights)).logsumexp(0)


def _of_classes(prior: Prior) -> bool:
    """Whether contents are classes, of which two items may have the same."""
    if prior.dim is None:  # where there are classes the dimension is known
        return False
    try:
        discrete = bool(support_of(prior.content()).is_discrete)
    except TypeError:  # Mixture, whose contents are its components
        discrete = True
    try:
        classes = prior.component().logits.shape[-1]
    except ValueError:
        classes = 0
    if discrete and classes < 2:
        raise ValueError(
            "expected a p(y) with a density, or of two or more numbered classes, got "
            f"{type(prior).__name__} with another; give a Categorical y"
        )
    return discrete


def _others(log_share: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    """The log of what all other classes share, without cancellation."""
    itself = torch.eye(log_share.shape[-1], dtype=torch.bool, device=log_share.device)
    return log_share.unsqueeze(-2).masked_fill(itself, -math.inf).logsumexp(-1)


class PrincipalComponents(nn.Module):
    r"""The first principal components of images: a linear encoder without labels.

    ``PrincipalComponents.of(images, dim)`` fits it. The constructor alone fills it with
    NaN, for `load`.

    Arguments:
        event_shape: The shape of one image.
        dim: The number of components.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, event_shape: Sequence[int], dim: int) -> None:
        super().__init__()
        self.event_shape = sizes(event_shape=event_shape)
        self.dim = whole("dim", dim)
        flat = math.prod(self.event_shape)
        self.register_buffer("mean", torch.full((flat,), math.nan))
        self.register_buffer("components", torch.full((self.dim, flat), math.nan))

    @classmethod
    def of(
        cls, images: Shaped[Any, "n *event"], dim: int = 32, seed: int = 0
    ) -> "PrincipalComponents":
        """Fit the components of a tensor or array of images; bytes are divided by 255.

        Arguments:
            seed: The seed of scikit-learn's solver, where that is random.

        Raises:
            ValueError: If there are fewer images, or numbers in one, than components.
        """
        from sklearn.decomposition import PCA

        x = tensor(images, "images", finite=True)
        found = cls(tuple(x.shape[1:]), dim)
        flat = x.flatten(1).double()
        if min(flat.shape) < dim:
            raise ValueError(
                f"expected at least {dim} images of at least {dim} numbers each, got "
                f"{len(flat)} of {flat.shape[1]}; lower dim, or give more images"
            )
        flat = flat / 255 if x.dtype == torch.uint8 else flat
        mean = flat.mean(0)  # the solver may need numbers near zero
        pca = PCA(dim, random_state=seed).fit((flat - mean).cpu().numpy())
        found.mean.copy_(mean)
        found.components.copy_(torch.from_numpy(pca.components_))
        return found

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n dim"]:
        """Return the components of images; bytes are an error.

        Raises:
            TypeError: If x is no floating-point tensor.
        """
        check_items(x, self.event_shape)
        if not x.is_floating_point():
            raise TypeError(
                f"expected images as floating-point numbers, got {x.dtype}; divide "
                "bytes by 255, as ps.embed does"
            )
        return (x.flatten(1) - self.mean) @ self.components.mT


def neighbour_score(
    u: Float[Tensor, "n k"], neighbours: int = 20, mutual: int = 1
) -> Float[Tensor, " n"]:
    r"""Return the share of each item's neighbours that are well connected to it.

    .. math:: s_i = \frac1k \# \{j \in N(i) : c_{ij} > \mu\}, \qquad
        c_{ij} = \# \{l \in N(j) : i \in N(l)\}

    with N(i) the k nearest neighbours of item i by the cosine of u. It is 0 for an
    outlier, which is no neighbour of its neighbours, and 1 within a dense cluster.
    Time and memory are O(n (n + k²)).

    Arguments:
        neighbours: The number k.
        mutual: The number :math:`\mu`.
    """
    check_neighbours(neighbours, len(u))
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    directions = normalize(u.detach(), dim=-1)
    cosine = (directions @ directions.mT).masked_fill(itself, -math.inf)
    near: Int[Tensor, "n k"] = cosine.topk(neighbours, sorted=False).indices
    is_near = torch.zeros_like(itself).scatter(1, near, True)
    of_near = near[near].flatten(1)  # l, the neighbours of the neighbours j of i
    found = is_near.mT.gather(1, of_near).view(*near.shape, neighbours).sum(-1)
    return (found > mutual).to(u).mean(-1)


def check_neighbours(neighbours: int, items: int) -> None:
    """Raise an error unless there are more items than neighbours."""
    if neighbours >= items:
        raise ValueError(
            f"expected batches of more items than neighbours={neighbours}, got "
            f"{items} items; raise batch_size, or lower neighbours"
        )
