r"""SNE, symmetric SNE and t-SNE as objectives: neighbours that an affinity P gives.

Stochastic Neighbor Embedding (Hinton and Roweis, 2002)
https://papers.nips.cc/paper/2276-stochastic-neighbor-embedding
Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
https://jmlr.org/papers/v9/vandermaaten08a.html
Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
(Hu et al., 2023)
https://arxiv.org/abs/2205.14814

The choices: p(y) empirical, y = another view; p(z|y) the kernel of any prior; an
affinity P, one of `affinities`, says which views share their content; z is kept
informative by the kernel's normaliser, one for each view (a kernel density estimate of
H[z]) or one for all pairs (the collision entropy).

With M views in all, and Q the kernel of view i around its partner j, normalised as P
is: :math:`Q_{j \mid i} \propto p(z_i \mid y = z_j)` is the probability that j is the
content of i, and

.. math:: \sum_{i \ne j} P_{ij} \log p(z_i \mid y = z_j) + \hat H[z]
    = \log (M - 1) - \bar H(P_{j \mid i}) - KL(P_{j \mid i} \,\|\, Q_{j \mid i})

averaged over the views i with equal weights, where each has its normaliser; and

.. math:: \sum_{i \ne j} P_{ij} \log p(z_i \mid y = z_j) + \hat H_2[z]
    = \log M (M - 1) - H(P) - KL(P \,\|\, Q)

with one normaliser: minus the divergence of SNE, symmetric SNE and t-SNE, up to a
constant of P, which has no parameters.

The limit: q → a point, the content plugged in, and H[z] → the estimate, in the bound
behind `Embedding`, with pairs drawn from P. With P uniform over the views of an item it
is SimCLR on the sphere, and t-SimCLR under `priors.TSNE` with one normaliser.

Status: identity, with :math:`H_2` for H if there is one normaliser. It drops the
decoder, the noise of the encoder, and the uncertainty of y.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..affinities import Affinity, Perplexity, Positives
from ..arguments import alone
from ..arrays import left_alone
from ..entropies import Collision, KernelDensity, QueuedKernelDensity
from ..nn import dim_of
from ..priors import TSNE as HeavyTail
from ..priors import Gaussian, Prior
from ..runtime.distributed import world_size
from ..terms import Batch, Terms, check_batch
from ._base import Embedding, check_exchangeable, check_only_views
from ._place import AFFINITY, COLLISION, KERNEL, NORMAL, STUDENT, VMF, Place

__all__ = ["SNE", "TSNE", "NeighbourEmbedding", "SymmetricSNE"]


class NeighbourEmbedding(Embedding):
    r"""Alignment of the pairs of P plus an entropy of z, per view, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        affinity: The affinity P; None means `affinities.Positives`. For a dense one, a
            view per item is enough, and time and memory grow with the square of their
            number.
        prior: The prior whose kernel is Q; None means t-SNE's, ``priors.TSNE(None, 1.0,
            1.0)``, with the tail of a Cauchy distribution in two dimensions.
        joint: Whether one normaliser serves all pairs, as in symmetric SNE, t-SNE and
            t-SimCLR. Otherwise each view has its own, as in SNE and InfoNCE, and equal
            weight, whatever P is.
        queue: The number of negatives from earlier batches, without a gradient; only
            with ``joint=False``.
        dim: The dimension of z for the queue, if the networks have no attribute `out`
            or `dim`.

    Raises:
        ValueError: If there is a queue and one normaliser, or the dimension is needed
            and not known; in a forward pass if P needs more views than there are.
    """

    place = Place(
        2023,
        AFFINITY("a partner from P"),
        2 * (NORMAL("any kernel"), VMF("any kernel"), STUDENT("any kernel")),
        3 * (KERNEL("normaliser of Q"),) + 3 * (COLLISION("normaliser of Q"),),
        "Contrastive objectives are neighbour embeddings of positives",
    )

    def __init__(
        self,
        encoder: nn.Module,
        affinity: Affinity | None = None,
        prior: Prior | None = None,
        projector: nn.Module | None = None,
        *,
        joint: bool = True,
        queue: int = 0,
        dim: int | None = None,
    ) -> None:
        if joint:
            hint = "with joint=False each view has its own, which a queue widens"
            alone("queue", queue or None, "for one normaliser of all pairs", hint)
        entropy = Collision() if joint else KernelDensity()
        if not queue:
            alone("dim", dim, "without a queue")
        else:
            entropy = QueuedKernelDensity(queue, dim_of(encoder, projector, dim))
        prior = HeavyTail(None, 1.0, 1.0) if prior is None else prior
        check_exchangeable(prior)
        super().__init__(encoder, prior, entropy, projector=projector, plug_in=True)
        self.affinity = Positives() if affinity is None else affinity
        self.joint = joint

    def check_shape(self, batch: Batch) -> None:
        """Raise an error if the batch is too small for P; one view may be enough."""
        if not self.affinity.dense:
            return super().check_shape(batch)
        check_batch(batch)
        items, views = batch.shape
        if items * views < 2:
            raise ValueError(
                f"expected at least 2 views in all, got {items} items with {views}; "
                "use larger batches"
            )
        check_only_views(self, batch)

    def check(self, batch: Batch) -> None:
        """Raise an error if the objective cannot take the batch, or P is none."""
        super().check(batch)
        self._check_affinity(batch)

    @torch.no_grad()
    def _check_affinity(self, batch: Batch) -> None:
        """Raise a ValueError unless P is a distribution over pairs of views."""
        parts = [part.clone() for part in batch.parts]
        copy = batch._replace(views=tuple(parts) if len(parts) > 1 else parts[0])
        name = type(self.affinity).__name__
        with left_alone(f"the affinity {name}", *parts):
            p, (items, views) = self.affinity(copy), batch.shape
        items = items * world_size()
        many = items * views
        shape = (many, many) if self.affinity.dense else (items, views, views)
        if not isinstance(p, Tensor) or p.shape != shape:
            raise ValueError(
                f"expected an affinity of shape {shape} for {items} items with {views} "
                f"views, got {tuple(getattr(p, 'shape', ()))} from {name}; return a "
                "probability for each pair, dense = True for those of all views"
            )
        total = float(p.sum())
        if not bool((p >= 0).all()) or bool((p.diagonal(0, -2, -1) > 0).any()):
            found = "negative, NaN, or not zero on the diagonal"
        elif self.joint and abs(total - 1) > 1e-3:
            found = f"a sum of {total:.6g}"
        else:
            return
        raise ValueError(
            "expected an affinity that is a distribution over pairs of different views "
            f"and sums to 1, got {found} from {name}; return p / p.sum() of p ≥ 0 with "
            "a diagonal of zeros"
        )

    def divergence(self, batch: Batch) -> Float[Tensor, ""]:
        r"""Return KL(P ‖ Q) in nats, in the mean over views if not `joint`.

        A fit minimises it. It is 0 where Q is P. Representations in the queue count as
        partners to which P gives no weight.
        """
        self._check_affinity(batch)
        p = self.weights(batch)
        views = p.shape[:-1].numel()
        others = torch.tensor(views - 1)
        if isinstance(self.entropy, QueuedKernelDensity):
            others = others + self.entropy.queue.filled
        terms = self(batch)
        most = (others * views).to(p).log() + torch.xlogy(p, p).sum()
        return most - terms.alignment - terms.entropy

    def weights(self, batch: Batch) -> Float[Tensor, "..."]:
        """Return P; if not `joint`, with the same weight for each view."""
        p = self.affinity(batch)
        if self.joint:
            return p
        mass = p.sum(-1, keepdim=True)
        return p / mass / mass.numel()

    def estimate(self, z: Float[Tensor, "batch view dim"], batch: Batch) -> Terms:
        p = self.weights(batch)
        points = z.flatten(0, 1) if self.affinity.dense else z
        # The partner is the content: rows are views, as in P and in the entropy.
        log_kernel = self.prior.log_kernel(points, points, plug_in=True).mT
        # A kernel may be infinite at its centre, where P is zero.
        alignment = (p * log_kernel.where(p > 0, 0.0)).sum()
        return Terms(entropy=self.entropy(z, self.prior), alignment=alignment)


class SNE(NeighbourEmbedding):
    r"""Stochastic neighbour embedding: a Gaussian kernel, normalised for each view.

    .. math:: Q_{j \mid i} = \frac{\exp(-\lVert z_i - z_j \rVert^2 / 2 \sigma^2)}
        {\sum_{k \ne i} \exp(-\lVert z_i - z_k \rVert^2 / 2 \sigma^2)}

    Arguments:
        encoder, projector: As in `JointEmbedding`.
        affinity: The affinity P; None means `affinities.Perplexity` with 30 neighbours.
        scale: The standard deviation σ, in the units of z; with :math:`\sqrt{1/2}` the
            exponent is the squared distance.

    Raises:
        ValueError: If the scale is not positive.
    """

    place = Place(
        2002,
        AFFINITY("a partner from P"),
        NORMAL,
        KERNEL("a normaliser of each view"),
        "SNE is the mean divergence of the neighbours of each point",
    )

    symmetric = False

    def __init__(
        self,
        encoder: nn.Module,
        affinity: Affinity | None = None,
        projector: nn.Module | None = None,
        *,
        scale: float = math.sqrt(0.5),
    ) -> None:
        if affinity is None:
            affinity = Perplexity(symmetric=self.symmetric)
        prior = Gaussian(None, scale, y_scale=math.inf)
        super().__init__(encoder, affinity, prior, projector, joint=self.symmetric)


class SymmetricSNE(SNE):
    r"""Symmetric SNE: a Gaussian kernel, normalised over all pairs.

    .. math:: Q_{ij} = \frac{\exp(-\lVert z_i - z_j \rVert^2 / 2 \sigma^2)}
        {\sum_{k \ne l} \exp(-\lVert z_k - z_l \rVert^2 / 2 \sigma^2)}

    The arguments are those of `SNE`; the default P is symmetric.
    """

    place = Place(
        2008,
        AFFINITY("a partner from P"),
        NORMAL,
        COLLISION("one normaliser"),
        "Symmetric SNE and t-SNE are divergences over all pairs",
    )

    symmetric = True


class TSNE(NeighbourEmbedding):
    r"""t-SNE: the kernel of a Cauchy distribution in 2-D, normalised over all pairs.

    .. math:: Q_{ij} = \frac{(1 + \lVert z_i - z_j \rVert^2)^{-1}}
        {\sum_{k \ne l} (1 + \lVert z_k - z_l \rVert^2)^{-1}}

    Arguments:
        encoder, projector: As in `JointEmbedding`; z of two dimensions make a map.
        affinity: The affinity P; None means a symmetric `affinities.Perplexity`.
        dof: The degrees of freedom ν, with the exponent (ν + 1) / 2 and distances
            divided by :math:`\sqrt \nu`.

    Raises:
        ValueError: If dof is not positive.
    """

    place = Place(
        2008,
        AFFINITY("a partner from P"),
        STUDENT,
        COLLISION("one normaliser"),
        "t-SNE has the published gradient",
    )

    def __init__(
        self,
        encoder: nn.Module,
        affinity: Affinity | None = None,
        projector: nn.Module | None = None,
        *,
        dof: float = 1.0,
    ) -> None:
        affinity = Perplexity(symmetric=True) if affinity is None else affinity
        super().__init__(encoder, affinity, HeavyTail(None, 1.0, dof), projector)
