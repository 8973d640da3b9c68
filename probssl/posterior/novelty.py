"""Novelty of items: their evidence, the information of their views, and the place of z.

References:
    Do Deep Generative Models Know What They Don't Know? (Nalisnick et al., 2019), for
    how the evidence alone can fail
    https://arxiv.org/abs/1810.09136
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ..arguments import alone, typed, whole
from ..covariates import Covariates, of_modalities
from ..data.batches import Loadable, Views
from ..evaluation.novelty import log_kernel_density, neighbour_distance
from ..terms import Batch
from .evidence import Evidence, Run
from .items import batches, evaluating
from .representation import embed

__all__ = ["Novelty", "novelty"]


class Novelty(NamedTuple):
    r"""Quantities that tell novel items from known ones; None where not asked for.

    Arguments:
        evidence: The `Evidence`, :math:`\log p(x_1, \dots, x_V)` of each item.
        information: The pointwise mutual information of the views of each item, in
            nats, :math:`\log p(x_1, \dots, x_V) - \sum_v \log p(x_v)`: for two views
            the log odds, at even prior odds, that they have one content against two.
        log_density: The log kernel density of z among that of the reference, in nats.
        distance: The distance of z to its k-th nearest neighbour in the reference.
    """

    evidence: Evidence | None
    information: Float[np.ndarray, " item"] | None
    log_density: Float[np.ndarray, " item"] | None
    distance: Float[np.ndarray, " item"] | None

    def __repr__(self) -> str:
        of = next(iter(self.scores.values()), np.empty(0))
        return f"Novelty({len(of):,} items; scores: {', '.join(self.scores) or 'none'})"

    @property
    def scores(self) -> dict[str, Float[np.ndarray, " item"]]:
        """Each quantity with the sign by which novel items have larger scores."""
        evidence = None if self.evidence is None else self.evidence.log_evidence
        found = {
            "evidence": (-1, evidence),
            "information": (-1, self.information),
            "log_density": (-1, self.log_density),
            "distance": (1, self.distance),
        }
        return {name: sign * x for name, (sign, x) in found.items() if x is not None}


@typed
def novelty(
    objective: nn.Module,
    data: Loadable,
    reference: Loadable | None = None,
    *,
    particles: int | None = None,
    views: Views | None = None,
    k: int = 5,
    layer: str = "backbone",
    batch_size: int = 64,
) -> Novelty:
    r"""Score the novelty of each item, by its evidence and by its place among others.

    The evidence alone may be higher for novel items that are simpler than the known
    ones. The information of the views is a ratio, in which what is simple for each view
    cancels:

    .. math:: \log \frac{p(x_1, x_2)}{p(x_1) \, p(x_2)}

    It says whether the views have one content, and is more also for novel items whose
    views hardly differ. Known contents of `Groups` are ignored.

    Arguments:
        objective: For `particles` one with a joint distribution; else as for `embed`.
        data: The items; for their information `Groups` of views, or `views`.
        reference: Known items, such as those of training, to whose z that of each item
            is compared; None leaves out `log_density` and `distance`.
        particles: The number of samples of each `evidence`; None leaves out `evidence`
            and `information`.
        views: A sampler of the views whose evidence is estimated; z is that of the item
            itself. By default an item is its only view.
        k: The rank of the neighbour.
        layer: As for `embed`.

    Raises:
        ValueError: If neither reference nor particles are given, views without
            particles, and as `evidence` and `embed` do.
    """
    if reference is None and particles is None:
        raise ValueError(
            "expected a reference, known items for the place of z, or particles for "
            "the evidence, got neither; give reference=train, or particles=100"
        )
    density = distance = None
    evidence = information = None
    if particles is None:
        alone("views", views, "without particles", "give particles=100")
    else:
        evidence, information = _evidence(
            objective, data, whole("particles", particles), views, batch_size
        )
    if reference is not None:
        z = embed(objective, data, layer=layer)
        known = embed(objective, reference, layer=layer)
        density = log_kernel_density(known, z)
        distance = neighbour_distance(known, z, k)
    return Novelty(evidence, information, density, distance)


def _evidence(
    objective: nn.Module,
    data: Loadable,
    particles: int,
    views: Views | None,
    size: int,
) -> tuple[Evidence, Float[np.ndarray, " item"] | None]:
    """The evidence of all views, and less those of single ones where there are more."""
    together, singles = Run(objective, particles, 0, 0), list[Run]()
    with evaluating(objective) as like:
        for batch in batches(data, like, views, size, "evidence"):
            batch = batch._replace(content=None)
            together.add(batch)
            parts = _single(together.joint.arranged(batch))
            singles = singles or [Run(objective, particles, 0, 0) for _ in parts]
            for run, part in zip(singles, parts, strict=True):
                run.add(part)
    found = together.evidence()
    if len(singles) < 2:
        return found, None
    apart = sum(run.evidence().log_evidence for run in singles)
    return found, found.log_evidence - apart


def _single(batch: Batch) -> list[Batch]:
    """A batch for each view, in which it is the only one."""
    number = batch.shape[1]
    if number == 1:
        return []
    if batch.present is not None and not bool(batch.present.all()):
        raise ValueError(
            "expected all views to be present for their information, got some that are "
            "absent; take the rows that have all, data.rows(data.present.all(1))"
        )
    if isinstance(batch.views, torch.Tensor):
        return [
            Batch(batch.views[:, v : v + 1], covariates=_of_view(batch, v))
            for v in range(number)
        ]
    device = batch.parts[0].device
    masks = torch.eye(number, dtype=torch.bool, device=device)
    present = masks.unsqueeze(1).expand(-1, batch.shape[0], -1)
    return [batch._replace(present=mask, content=None) for mask in present]


def _of_view(batch: Batch, v: int) -> Covariates | None:
    """The covariates of one of the views."""
    known = of_modalities(batch.covariates, [1] * batch.shape[1])
    return known[v]
