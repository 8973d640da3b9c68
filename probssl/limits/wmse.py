r"""W-MSE: whiten z, then minimise the squared distance of views.

Whitening for Self-Supervised Representation Learning (Ermolov et al., 2021)
https://arxiv.org/abs/2007.06346

The choices: p(y) flat, p(z|y) = N(y, I/4) for whitened z, or with `normalise` p(y)
empirical, y = the other view, and p(z|y) von Mises-Fisher with concentration 2 for
directions; z is kept informative by a constraint, covariance I.

.. math:: w_v = L_v^{-1} (z_v - E z_v), \qquad L_v L_v^\top = \hat \Sigma_v

Whitened z has the Gaussian entropy :math:`\frac d2 \log 2 \pi e`, whatever the encoder.
So log-det at scale 1/2 is, for two views and without `normalise`, the squared distance,
d times the published mean square,

.. math:: E \log p(w_1, w_2) + \hat H[w] = -E \lVert w_1 - w_2 \rVert^2
    - \frac d2 \log \pi + \frac d2 \log 2 \pi e

and for V of them V − 1 times its mean over their pairs. With `normalise`, and as the
mean over pairs for any V,

.. math:: E \log p(\bar w_2 \mid y = \bar w_1) + \log |S^{d-1}| = -E (2 - 2 \cos(w_1,
    w_2)) + \log C_d(2) + 2 + \log |S^{d-1}|

The limit: log-det under a hard constraint, an infinite weight on
:math:`\Sigma = I`, where VICReg and Barlow Twins have a finite one.

Status: identity without `normalise`, to log-det at w; surrogate with it: whitening
fixes the entropy of w, but that of the directions only if w is rotationally symmetric,
as a Gaussian is; :math:`\log |S^{d-1}|` is exact then, and an upper bound otherwise. It
drops what log-det drops, and the covariances of z: before whitening, those of the
representation may be far from white.

A linear map that all views share leaves the value unchanged if it is lower triangular,
such as a stretch of a dimension. Any other map rotates the whitened views, each by its
own covariance.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import alone, between, whole
from ..entropies import Entropy
from ..entropies.gaussian import covariance
from ..priors import Gaussian, Prior, Spherical
from ..runtime.distributed import from_main, gather
from ..special import log_area
from ._base import Embedding
from ._place import FLAT, MOMENTS, NORMAL, OTHER_VIEW, VMF, Place

__all__ = ["WMSE"]


class WMSE(Embedding):
    r"""The distance between whitened views, per item, in nats.

    Arguments:
        encoder, projector: As in `JointEmbedding`; the projector is published with 2
            layers and 64 or 128 dimensions.
        size: The least number of items that are whitened together in training, drawn
            at random; None means the whole batch. It exceeds the dimension of z;
            published is twice that.
        rounds: How often a batch is divided in training; published is 4 for 128
            dimensions.
        normalise: Whether the directions of whitened z are compared, as published.
        epsilon: The weight of I in :math:`(1 - \epsilon) \hat \Sigma + \epsilon I`,
            the covariance used. It keeps the value finite where items are equal;
            published is 0.

    In evaluation mode the batch is whitened as a whole, so that nothing is random.

    Raises:
        ValueError: If size or rounds is below 1, or epsilon not from 0 to 1; in a
            forward pass if fewer items than dim + 1 are whitened together.
    """

    place = Place(
        2021,
        (FLAT, OTHER_VIEW),
        (NORMAL, VMF),
        MOMENTS("whitening"),
        "Euclidean W-MSE is log-det of whitened views",
    )

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module | None = None,
        *,
        size: int | None = None,
        rounds: int = 1,
        normalise: bool = True,
        epsilon: float = 1e-4,
    ) -> None:
        flat = Gaussian(None, 0.5, y_scale=math.inf)
        prior: Prior = Spherical(None, 2.0) if normalise else flat
        super().__init__(
            encoder, prior, _White(), projector=projector, plug_in=normalise
        )
        self.size = None if size is None else whole("size", size)
        self.rounds = whole("rounds", rounds)
        if size is None and rounds > 1:
            alone("rounds", rounds, "without a size, by which a batch is divided")
        self.epsilon = between("epsilon", epsilon, 0, 1, "the default is 1e-4")

    def prepared(self, z: Float[Tensor, "batch view dim"]) -> Tensor:
        """Whitened z of all processes' items, in training in random order."""
        z = gather(z)
        items, _, dim = z.shape
        parts = max(1, items // self.size) if self.size and self.training else 1
        if items // parts <= dim:
            raise ValueError(
                f"expected more items than the {dim} dimensions of z to whiten "
                f"together, got {items // parts}; use larger batches or size, or a "
                "projector to fewer dimensions"
            )
        divided = [z]
        if parts > 1:
            draws = (torch.randperm(items, device=z.device) for _ in range(self.rounds))
            divided = [p for d in draws for p in z[from_main(d)].tensor_split(parts)]
        white = [whitened(part, self.epsilon) for part in divided]
        return self.prior.on_support(torch.cat(white))


class _White(Entropy):
    """The entropy of a white Gaussian, or of its direction on the sphere."""

    def forward(
        self, z: Float[Tensor, "batch view dim"], prior: Prior
    ) -> Float[Tensor, ""]:
        dim = z.shape[-1]
        gaussian = 0.5 * dim * math.log(2 * math.pi * math.e)
        return z.new_tensor(log_area(dim) if isinstance(prior, Spherical) else gaussian)


def whitened(
    z: Float[Tensor, "batch view dim"], epsilon: float
) -> Float[Tensor, "batch view dim"]:
    """Return each view whitened by the Cholesky factor of its own covariance."""
    identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    root, failed = torch.linalg.cholesky_ex(
        torch.lerp(covariance(z), identity, epsilon)
    )
    # NaN marks a failed factorisation: raising would synchronise with the host.
    root = root.masked_fill(failed[:, None, None] > 0, math.nan)
    centred = (z - z.mean(0)).permute(1, 2, 0)
    return torch.linalg.solve_triangular(root, centred, upper=False).permute(2, 0, 1)
