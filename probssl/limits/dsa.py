r"""DSA: a base objective plus attraction and repulsion of items by their affinity.

On the Discriminability of Self-Supervised Representation Learning
(Song et al., 2024)
https://arxiv.org/abs/2407.13541

The choices: those of the base; and a probability :math:`M^{ab}_{ij}` that items i and
j, seen in views a and b, have the same content, :math:`p(y_i = y_j \mid z^a_i, z^b_j)`,
which is 1 for the views of one item. Let d be the distance of two z on the unit sphere,
and s the score of an item, from 0 for an outlier to 1. The regulated loss and its
anchor are

.. math:: L_w = \log \Big(1 + E_{a, b} \, E_{i, j} \exp \frac{s_i \, d^{ab}_{ij} \,
    (2 M^{ab}_{ij} - 1)}{\tau} \Big), \qquad
    L_a = E_{a, b} \, E_{i \ne j} \, \text{KL}(\tilde M^{ab}_{ij} \,\Vert\, M^{ab}_{ij})

.. math:: \text{value} = \text{base} - w L_w - \lambda L_a, \qquad \tilde M^{ab}_{ij}
    = \exp \big(-\lVert \bar u^a_i - \bar u^b_j \rVert / \tilde \tau \big)

E averages over ordered pairs of views (a, b), including a = b, and of items (i, j). In
:math:`L_w` an item is not paired with itself in the same view; in the anchor i ≠ j.
u is the output of a reference network behind a stop-gradient, and :math:`\bar u` that
output on the unit sphere. The score :math:`s_i` is the share of the neighbours of item
i whose own neighbours lead back to i (`neighbour_score`). KL is that of two Bernoulli
distributions.

Pairs with M above 1/2 attract each other, more strongly the farther apart they are;
pairs below repel each other, less strongly the farther apart. :math:`L_w` alone would
let no two items be the same, since it rises with every M,

.. math:: \frac{\partial L_w}{\partial M} \propto \frac{2 s d}{\tau} \, e^{s d (2 M - 1)
    / \tau} \ge 0, \qquad M = \tilde M - \frac{w}{\lambda} \, \frac{2 s d}{\tau} \,
    \frac{e^{s d (2 M - 1) / \tau}}{1 + E \exp(\dots)} \, M (1 - M)

where a pair is stationary, if M is a free number for each pair (for pairs in two views
of N items, M̃ − M is smaller by the factor 1 − 1/N). So M lies below M̃, the more the
larger w/λ. Without an anchor M goes to 0, and all pairs repel each other. Both
gradients reach z and M; that of :math:`L_w` through M keeps items apart.

The limit: no limit of the joint gives :math:`L_w`. Under p(y) and p(z|y) of a prior, M
itself has a closed form (`PriorAffinity`); then only z is learned.

Status: heuristic on a derived base. It drops nothing of the base. The authors' code
differs: M comes from differences within one view, with rows that sum to 1, so that
nearly all pairs repel each other; u from a network trained with labels; and the anchor
is 0.01 times the Frobenius norms of :math:`M - \tilde M`, summed over four matrices.
"""

import math
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from ..arguments import alone, at_least, positive, whole
from ..arrays import tensor
from ..nn import Network, dim_of
from ..nn.base import takes
from ..nn.network import check_items_apart, known_dim
from ..runtime.buffers import register_varying
from ..runtime.copies import copied
from ..runtime.distributed import gather, world_size
from ..special import square_distances
from ..terms import Batch, Terms
from ._base import Extension, overrides
from ._ema import Teacher
from ._pair_affinity import LearnedAffinity, check_neighbours, neighbour_score
from ._place import AFFINITY, Conditional, Information, Place

__all__ = ["DSA"]


class DSA(Extension):
    r"""A base objective minus the regulated loss and its anchor, which are not in nats.

    It takes any number of views that the base takes. The score is that of u of
    `Batch.clean`; without it, of the mean of u over the views of an item.

    Arguments:
        base: A `JointEmbedding`, such as ``SimCLR(encoder, projector)``.
        reference: A module (n, \*event) -> (n, k) for u, trained without labels, such
            as `PrincipalComponents`, an untrained encoder, or one fitted before. A copy
            is kept, frozen and in evaluation mode. None means an EMA of the base's
            encoder.
        affinity: A module of z, shapes (n, dim) and (m, dim), that returns the log-odds
            of M, shape (n, m): `PriorAffinity`, or by default a `LearnedAffinity`.
        neighbours: The number of neighbours in the score; batches need more items.
        mutual: A neighbour of an item counts if more than this number of its own
            neighbours have the item among their neighbours; from 0 to neighbours − 1.
        weight: The weight w of the regulated loss; a buffer, which a schedule may set.
        anchor: The weight λ of the anchor, likewise.
        temperature: The temperature :math:`\tau` of the regulated loss.
        reference_temperature: The temperature :math:`\tilde \tau`. With 0.5 two views
            count as the same where the cosine of u is above 0.94, with 2 where it is
            above 0.04, which suits principal components.
        momentum: The initial share of the EMA that stays in a step, if that is the
            reference; the buffer ``teacher.momentum`` holds it. None means 0.99.
        dim: The dimension of z, for networks without an attribute `out` or `dim`.

    Raises:
        TypeError: If the base is no `JointEmbedding`, overrides `forward` or `latents`,
            or has hooks; or overrides `layers`, and there is no reference.
        ValueError: If a number is out of range, the dimension is needed and not known,
            or a batch has no more items than neighbours.
    """

    place = Place(
        2024,
        AFFINITY("learned affinity"),
        Conditional("its base's"),
        Information("its base's, a regulator"),
        "DSA has the value and grad of a double loop",
    )

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
        momentum: float | None = None,
        dim: int | None = None,
    ) -> None:
        super().__init__(base)
        self.neighbours = whole("neighbours", neighbours, hint="20 is published")
        self.mutual = whole("mutual", mutual, 0, neighbours - 1, "1 is published")
        check = partial(at_least, least=0, hint="0 leaves it out of the loss")
        register_varying(self, "weight", weight, check)
        register_varying(self, "anchor", anchor, check)
        self.temperature = positive("temperature", temperature, "0.5 is published")
        self.reference_temperature = positive(
            "reference_temperature", reference_temperature, "0.5 is published"
        )
        if affinity is None:
            affinity = LearnedAffinity(dim_of(self.encoder, self.projector, dim))
        else:
            alone("dim", dim, "beside an affinity")
            takes("affinity", affinity, None, None)
        self.affinity, self.reference, self.teacher = affinity, None, None
        if reference is None and overrides(self.base, "layers"):
            raise TypeError(
                "expected a reference for a base whose layers(views) are overridden, "
                "which the EMA of its encoder alone would leave out, got "
                f"{type(base).__name__}; give reference=…, or put them into the encoder"
            )
        if reference is None:
            momentum = 0.99 if momentum is None else momentum
            self.teacher = Teacher(Network(self.encoder), momentum)
        else:
            alone("momentum", momentum, "beside a reference")
            self.reference = copied(reference).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but a given reference, which stays in evaluation mode."""
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
        if tuple(z.shape[:2]) != batch.shape:
            raise ValueError(
                f"expected a base with one z for each of the {batch.shape} views "
                f"(batch, view), got z of shape {tuple(z.shape)}; take a base, such as "
                "SimCLR, that encodes every view"
            )
        if self.teacher is not None:
            self.teacher.follow(Network(self.encoder))
        references, of_items = self._references(batch)

        score = neighbour_score(gather(of_items), self.neighbours, self.mutual)
        z, references = gather(z), gather(references)
        points = z.flatten(0, 1)
        log_odds = self.affinity(points, points)
        if log_odds.shape != (len(points), len(points)):
            raise ValueError(
                f"expected an affinity that returns a log-odds for each pair, shape "
                f"({len(points)}, {len(points)}), got {tuple(log_odds.shape)}; "
                "PriorAffinity is one"
            )
        regulated = self._regulated(z, log_odds, score)
        anchor = self._anchor(references, log_odds)
        weight, by_anchor = self.weight.to(anchor), self.anchor.to(anchor)
        penalty = -weight * regulated - by_anchor * anchor
        return terms._replace(penalty=terms.penalty + penalty)

    def check(self, batch: Batch) -> None:
        """Raise an error if the base cannot take the batch, or it has too few items.

        Also if the reference mixes items.
        """
        super().check(batch)
        if self.reference is not None:
            check_items_apart(self, Network(self.reference), batch.views)
        items, _ = batch.shape
        check_neighbours(self.neighbours, items * world_size())

    @torch.no_grad()
    def same(
        self, a: Float[Any, "n dim"], b: Float[Any, "m dim"] | None = None
    ) -> Float[Tensor, "n m"]:
        """Return the probability M of the same content, for all pairs.

        Arguments:
            a: The output of `embed` with ``layer="projector"``, or without a projector
                ``layer="backbone"``: a tensor or array. A projector of equal width
                cannot be told from the encoder by its output.
            b: Likewise for other items; None means a itself.

        Raises:
            ValueError: If they are not of the width of that layer.
        """
        first = self._compared(a, "a")
        second = first if b is None else self._compared(b, "b")
        like = next(self.affinity.parameters(), first)
        return self.affinity(first.to(like), second.to(like)).sigmoid()

    def _compared(self, z: Any, name: str) -> Float[Tensor, "n dim"]:
        """z as a tensor of the width of the base's output, where that is known."""
        found = tensor(z, name, finite=True)
        if self.projector is None:
            layer, width = "backbone", known_dim(self.encoder)
        else:
            layer, width = "projector", known_dim(self.projector, "out")
        if found.dim() != 2 or width not in (None, found.shape[1]):
            raise ValueError(
                f"expected {name} of shape (n, {width or 'dim'}), got "
                f"{tuple(found.shape)}; give ps.embed(dsa, data, layer={layer!r})"
            )
        return found

    @torch.no_grad()
    def _references(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "batch view k"], Float[Tensor, "batch k"]]:
        """u of the views, and of the items."""
        given = self.reference
        network: Any = self.teacher if given is None else Network(given)
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

        # For each pair of views the mean over its pairs of items, in log space.
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
    """Distances of directions, with gradient 0 where the distance is 0."""
    directions = normalize(z, dim=-1)
    # The gradient of the root is infinite at 0; 1e-12 is far below rounding in float32.
    return square_distances(directions, directions).clamp(min=1e-12).sqrt()


def _own(items: int, views: int, device: torch.device) -> Bool[Tensor, "point point"]:
    """The pairs of points that are views of one item."""
    item = torch.arange(items, device=device).repeat_interleave(views)
    return item.unsqueeze(1) == item
