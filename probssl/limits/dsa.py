r"""DSA: a base objective, and a force between items by whether they are the same.

On the Discriminability of Self-Supervised Representation Learning
(Song et al., 2024)
https://arxiv.org/abs/2407.13541

The choices: those of the base; and a probability :math:`M^{ab}_{ij}` that items i and
j, seen in views a and b, have the same content, :math:`p(y_i = y_j \mid z^a_i, z^b_j)`,
which is 1 for the views of one item. With the distance d of the directions of z and a
score s from 0 to 1, the regulated loss and its anchor are

.. math:: L_w = \log \Big(1 + E_{a, b} \, E_{i, j} \exp \frac{s_i \, d^{ab}_{ij} \,
    (2 M^{ab}_{ij} - 1)}{\tau} \Big), \qquad
    L_a = E_{a, b} \, E_{i \ne j} \, \text{KL}(\tilde M^{ab}_{ij} \,\Vert\, M^{ab}_{ij})

.. math:: \text{value} = \text{base} - w L_w - \lambda L_a, \qquad \tilde M^{ab}_{ij}
    = \exp \big(-\lVert \bar u^a_i - \bar u^b_j \rVert / \tilde \tau \big)

as means over ordered pairs of views, a = b among them, and over ordered pairs of items,
without those of an item in a view with itself. In u, a reference that no gradient
reaches, the items lie as they were before; there :math:`s_i` says how many of the
nearest neighbours of an item are well connected to it (`sameness.neighbour_score`),
which leaves outliers alone. KL is that of two Bernoulli distributions.

Pairs with M above 1/2 attract each other, the more the farther they are apart; those
below repel each other, the less the farther they are. :math:`L_w` by itself would have
no two items be the same: it rises with every M,

.. math:: \frac{\partial L_w}{\partial M} \propto \frac{2 s d}{\tau} \, e^{s d (2 M - 1)
    / \tau} \ge 0, \qquad M = \tilde M - \frac{w}{\lambda} \, \frac{2 s d}{\tau} \,
    \frac{e^{s d (2 M - 1) / \tau}}{1 + E \exp(\dots)} \, M (1 - M)

where a pair is at rest, if any M can be had (across views of N items the difference is
1/N smaller). So M is below what the anchor says, the more the larger w/λ, and without
an anchor it is 0, which leaves repulsion alone. Both gradients reach z and M; that of
:math:`L_w` through M keeps items apart.

The limit: none of the joint. On the graph M has a closed form, and then nothing is
learned but z (`sameness.PriorAffinity`).

Status: heuristic on a derived base. The release learns M of differences within one view
only, and brings its rows to sum 1, so that nearly all pairs repel each other; takes u
of a network that was trained with labels; and has for its anchor 0.01 times the
Frobenius norms of :math:`M - \tilde M`, summed over four matrices: at 256 items and a
root mean square error e about 10 e, where :math:`10 L_a` is at least 20 e².
"""

import math
from copy import deepcopy
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from ..nn import Network, dim_of
from ..runtime.buffers import register_varying
from ..runtime.distributed import gather, world_size
from ..special import square_distances
from ..terms import Batch, Terms
from ._base import Extension
from ._ema import Teacher
from ._pair_affinity import LearnedAffinity, check_neighbours, neighbour_score

__all__ = ["DSA"]


class DSA(Extension):
    r"""A base objective minus the regulated loss and its anchor, which are no nats.

    Any number of views that the base can take does. The score is that of u of
    `Batch.clean`; without it, of the mean of u over the views of an item.

    Arguments:
        base: An objective without a decoder, such as ``SimCLR(encoder, projector)``.
        reference: A module (n, \*event) -> (n, k) that gives u and never saw labels,
            such as `limits.PrincipalComponents`, an untrained encoder, or one that was
            fitted before. A copy of it is kept, as it is in evaluation mode, and never
            trained. None means an average of the encoder of the base over the steps.
        affinity: A module of z, shapes (n, dim) and (m, dim), that gives the log-odds
            of M, shape (n, m): `limits.PriorAffinity`, or by default a
            `limits.LearnedAffinity`.
        neighbours: How many neighbours the score looks at; batches have more items.
        mutual: The score counts those that more than so many of their own neighbours
            connect with the item; from 0 to neighbours − 1.
        weight: The weight w of the regulated loss, a buffer that a schedule may set.
        anchor: The weight λ of the anchor, likewise.
        temperature: The temperature :math:`\tau` of the regulated loss.
        reference_temperature: The temperature :math:`\tilde \tau`. With 0.5 two views
            count as the same rather than not where the cosine of u is above 0.94, with
            2 where it is above 0.04, which suits principal components.
        momentum: The share of the average that stays in a step, where that is the
            reference; ``teacher.momentum`` has the present one.
        dim: The dimension of z, for networks that do not tell theirs.

    Raises:
        TypeError: If the base has a decoder.
        ValueError: If a number is out of range, the dimension is needed and not known,
            or a batch has no more items than neighbours.
    """

    reference: nn.Module | None
    teacher: Teacher | None
    weight: Tensor
    anchor: Tensor

    def __init__(
        self,
        base: nn.Module,
        reference: nn.Module | None = None,
        affinity: nn.Module | None = None,
        *,
        neighbours: int = 20,
        mutual: int = 1,
        weight: float = 1.0,
        anchor: float = 10.0,
        temperature: float = 0.5,
        reference_temperature: float = 0.5,
        momentum: float = 0.99,
        dim: int | None = None,
    ) -> None:
        super().__init__(base)
        _check_numbers(neighbours, mutual, weight, anchor)
        _check_temperatures(temperature, reference_temperature)
        if affinity is None:
            affinity = LearnedAffinity(dim_of(self.encoder, self.projector, dim))
        self.affinity, self.reference, self.teacher = affinity, None, None
        if reference is None:
            self.teacher = Teacher(Network(self.encoder), momentum)
        else:
            self.reference = deepcopy(reference).requires_grad_(False).eval()
        self.neighbours, self.mutual = neighbours, mutual
        register_varying(self, "weight", weight)
        register_varying(self, "anchor", anchor)
        self.temperature = temperature
        self.reference_temperature = reference_temperature

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but a given reference, which stays in evaluation."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def extended(
        self,
        terms: Terms,
        backbone: Float[Tensor, "batch view dim"],
        z: Float[Tensor, "batch view out"],
        batch: Batch,
    ) -> Terms:
        _check_views(z, batch)
        if self.teacher is not None:
            self.teacher.follow(Network(self.encoder))
        references, whole = self._references(batch)

        score = neighbour_score(gather(whole), self.neighbours, self.mutual)
        z, references = gather(z), gather(references)
        points = z.flatten(0, 1)
        log_odds = self.affinity(points, points)
        regulated = self._regulated(z, log_odds, score)
        anchor = self._anchor(references, log_odds)
        penalty = -self.weight * regulated - self.anchor * anchor
        return terms._replace(penalty=terms.penalty + penalty)

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch, or it has too few items."""
        super().check(batch)
        items, _ = batch.shape
        check_neighbours(self.neighbours, items * world_size())

    @torch.no_grad()
    def same(
        self, a: Float[Any, "n dim"], b: Float[Any, "m dim"] | None = None
    ) -> Float[Tensor, "n m"]:
        """Return the probability M of having the same content, for all pairs.

        Arguments:
            a: What `embed` returns with ``layer="projector"``, or without a projector
                ``layer="backbone"``: a tensor or array.
            b: Others likewise; None means a itself.
        """
        first = torch.as_tensor(a).to(self.weight)
        second = first if b is None else torch.as_tensor(b).to(self.weight)
        return self.affinity(first, second).sigmoid()

    @torch.no_grad()
    def _references(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "batch view k"], Float[Tensor, "batch k"]]:
        """u of the views, and of the items."""
        network = self.teacher if self.reference is None else Network(self.reference)
        assert network is not None  # one of the two is there
        u = network(batch.views)
        if batch.clean is None:
            return u, u.mean(1)
        return u, network(batch.clean.unsqueeze(1)).squeeze(1)

    def _regulated(
        self,
        z: Float[Tensor, "batch view dim"],
        log_odds: Float[Tensor, "point point"],
        score: Float[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """L_w, where a point is a view of an item, and items come first."""
        items, views, _ = z.shape
        own = _own(items, views, z.device)
        sign = (log_odds / 2).tanh().masked_fill(own, 1.0)  # 2 M − 1
        distance = _distances(z.flatten(0, 1))
        exponent = score.repeat_interleave(views).unsqueeze(1) * distance * sign
        exponent = (exponent / self.temperature).view(items, views, items, views)

        # Of each pair of views the mean over its pairs of items, in log space.
        alike = torch.eye(views, device=z.device).view(views, 1, views)
        pairs = views**2 * items * (items - alike.to(exponent))
        itself = torch.eye(len(own), dtype=torch.bool, device=z.device)
        share = exponent - pairs.log()
        share = share.masked_fill(itself.view(share.shape), -math.inf)
        total = share.flatten().logsumexp(0)
        return total.logaddexp(torch.zeros_like(total))

    def _anchor(
        self,
        u: Float[Tensor, "batch view k"],
        log_odds: Float[Tensor, "point point"],
    ) -> Float[Tensor, ""]:
        """L_a, over pairs of different items."""
        items, views, _ = u.shape
        log_p = -_distances(u.flatten(0, 1)) / self.reference_temperature
        p, rest = log_p.exp(), -log_p.expm1()
        entropy = -(p * log_p + rest * rest.clamp(min=1e-30).log())  # 0 log 0 = 0
        cross = binary_cross_entropy_with_logits(log_odds, p, reduction="none")
        divergence = (cross - entropy).masked_fill(_own(items, views, u.device), 0.0)
        return divergence.sum() / (views**2 * items * (items - 1))


def _distances(z: Float[Tensor, "n dim"]) -> Float[Tensor, "n n"]:
    """Those of directions; with a gradient of 0 where there is no distance."""
    directions = normalize(z, dim=-1)
    # The slope of the root is infinite at 0; 1e-12 is far below rounding in float32.
    return square_distances(directions, directions).clamp(min=1e-12).sqrt()


def _own(items: int, views: int, device: torch.device) -> Bool[Tensor, "point point"]:
    """Which pairs of points are views of one item."""
    item = torch.arange(items, device=device).repeat_interleave(views)
    return item.unsqueeze(1) == item


def _check_views(z: Tensor, batch: Batch) -> None:
    if tuple(z.shape[:2]) != batch.shape:
        raise ValueError(
            f"expected a base with one z for each of the {batch.shape} views (batch, "
            f"view), got z of shape {tuple(z.shape)}; take a base, such as SimCLR, "
            "that encodes every view"
        )


def _check_numbers(neighbours: int, mutual: int, weight: float, anchor: float) -> None:
    if not isinstance(neighbours, int) or neighbours < 1:
        raise ValueError(
            "expected neighbours as a whole number of at least 1, got "
            f"{neighbours!r}; 20 is published, for batches of 256"
        )
    if not isinstance(mutual, int) or not 0 <= mutual < neighbours:
        raise ValueError(
            f"expected mutual as a whole number from 0 to {neighbours - 1}, got "
            f"{mutual!r}; 1 is published, and {neighbours} or more connect no items"
        )
    if not weight >= 0 or not anchor >= 0:
        raise ValueError(
            f"expected weight and anchor of at least 0, got {weight} and {anchor}; "
            "0 leaves out the regulated loss or its anchor"
        )


def _check_temperatures(temperature: float, reference_temperature: float) -> None:
    if not temperature > 0 or not reference_temperature > 0:
        raise ValueError(
            "expected positive temperatures, got temperature="
            f"{temperature} and reference_temperature={reference_temperature}; 0.5 is "
            "published for both"
        )
