r"""SimCLR's prior: content uniform on the sphere, von Mises-Fisher views.

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
    Understanding Contrastive Representation Learning through Alignment and Uniformity
    on the Hypersphere (Wang and Isola, 2020)
    https://arxiv.org/abs/2005.10242
"""

import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..distributions import SharedDirection, SphericalUniform, VonMisesFisher
from ..hyper import Learned, Positive
from ..special import log_area, log_vmf_normaliser, square_distances
from .base import Pairs, Points, Present, Prior, Vectors, Views, check_dim

__all__ = ["Spherical"]


class Spherical(Prior):
    r"""Von Mises-Fisher views around a uniform direction, integrated out exactly.

    .. math:: p(y) = U(S^{d-1}), \qquad
        p(z_v \mid y) = C_d(\kappa) e^{\kappa z_v^\top y}

    .. math:: \log p(z_1, \dots, z_V) = V \log C_d(\kappa)
        - \log C_d(\kappa \lVert \textstyle\sum_v z_v \rVert) - \log |S^{d-1}|

    Densities are with respect to the area of the sphere.

    Arguments:
        dim: The dimension d of the space the sphere lies in; None takes it from z, for
            objectives without samples.
        concentration: The concentration :math:`\kappa` of a view around its content;
            ``hyper.Reciprocal`` gives it as the reciprocal of a temperature.

    Raises:
        ValueError: If dim is below 2, or the concentration is not positive.
    """

    def __init__(
        self,
        dim: int | None,
        concentration: float | Learned | dist.TorchDistribution | Positive = 10.0,
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim, least=2)
        if not isinstance(concentration, Positive):
            concentration = Positive(concentration, "concentration")
        self.concentration = concentration

    def gauge(self, views: int) -> int:
        """Return V − 1: a uniform p(y) has no location, as a flat one."""
        return views - 1

    def balanced(self, z: Views) -> Float[Tensor, "*batch"]:
        r"""Return :math:`\log p(z_2, \dots, z_V \mid z_1)`: one view is uniform."""
        return self.log_prob(z) + log_area(z.shape[-1])

    @property
    def space(self) -> str:
        """A sphere."""
        return "a sphere"

    def forward(
        self,
        views: int,
        *,
        present: Present = None,
        dim: int | None = None,
        **drawn: Tensor,
    ) -> SharedDirection:
        """Return the distribution of the views, y integrated out."""
        return SharedDirection(
            self.concentration.of(drawn),
            views,
            dim or self.known_dim(),
            present=present,
            validate_args=False,
        )

    def on_support(self, z: Tensor) -> Tensor:
        """Normalise to length 1."""
        if z.shape[-1] < 2:  # its direction would have no gradient
            raise ValueError(
                f"expected z with at least 2 dimensions for a sphere, got "
                f"{z.shape[-1]}; give the encoder more outputs"
            )
        return normalize(z, dim=-1)

    def centre(self, mean: Tensor) -> Tensor:
        """Normalise to length 1."""
        return self.on_support(mean)

    def content(self, **drawn: Tensor) -> SphericalUniform:
        """Return p(y), uniform on the sphere, event shape (dim,)."""
        like = self.concentration()
        return SphericalUniform(
            self.known_dim(), dtype=like.dtype, device=like.device, validate_args=False
        )

    def given(self, y: Vectors, **drawn: Tensor) -> VonMisesFisher:
        """Return p(z|y), event shape (dim,)."""
        concentration = self.concentration.of(drawn).expand(y.shape[:-1])
        return VonMisesFisher(y, concentration, validate_args=False)

    def posterior_y(
        self, z: Views, present: Present = None, **drawn: Tensor
    ) -> VonMisesFisher:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, von Mises-Fisher about the sum."""
        return self.of(z, present, **drawn).direction(z)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: 2 \log C_d(\kappa) - \log C_d(\kappa \lVert a + b \rVert)

        With `plug_in`, :math:`\log C_d(\kappa) + \kappa a^\top b`: SimCLR's similarity
        (the cosine over the temperature), with its constant. Its error is that of a
        cosine, about the unit roundoff of z, times κ; without it, that of κ ‖a − b‖².
        """
        dim, kappa = a.shape[-1], self.concentration.over()
        once = log_vmf_normaliser(dim, kappa, scaled=True)
        if plug_in:
            return once + kappa * (a @ b.mT - 1)
        # κ (2 - ‖a + b‖), which in cosines would cancel where a and b nearly agree.
        length = square_distances(a, -b).clamp(min=1e-30).sqrt()
        shortfall = square_distances(a, b) / (2 + length)
        both = log_vmf_normaliser(dim, kappa * length, scaled=True)
        return 2 * once - both - kappa * shortfall
