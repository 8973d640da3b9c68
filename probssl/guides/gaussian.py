"""Gaussian guides: independent views, correlated dimensions, and coupled views."""

import pyro.distributions as dist
import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import softplus

from .factors import Factors, GaussianFactors, PriorOf, Views, of_views

__all__ = ["Coupled", "DiagonalGaussian", "FullGaussian"]


class _Guide(nn.Module):
    factors: Factors

    @property
    def encoder(self) -> nn.Module:
        return self.factors.encoder


class DiagonalGaussian(_Guide):
    r"""Independent views and dimensions: SimVAE's guide, and the VAE's.

    .. math:: q(z_1, \dots, z_V \mid x) = \prod_v N(z_v \mid m(x_v), r(x_v)^2)

    The posterior of views that share their content is not of this form, so the ELBO
    keeps a gap even with a perfect decoder; `Coupled` closes it. Absent views are drawn
    from the prior given the present ones, and then add nothing to the bound.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.factors = GaussianFactors(encoder)

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> dist.TorchDistribution:
        loc, scale = self.factors(x)
        each = dist.Normal(loc, scale, validate_args=False).to_event(1)
        return of_views(each, prior, present)


class FullGaussian(_Guide):
    r"""Independent views, each a normal with a full covariance over its dimensions.

    .. math:: q(z_1, \dots, z_V \mid x) = \prod_v N(z_v \mid m(x_v), L(x_v) L(x_v)^\top)

    The second head gives the lower triangle of L, d (d + 1) / 2 numbers, its diagonal
    first, which is at least `floor`.
    """

    def __init__(self, encoder: nn.Module, floor: float = 1e-4) -> None:
        super().__init__()
        self.factors = Factors(encoder, lambda dim: dim * (dim + 1) // 2)
        self.floor = floor

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> dist.TorchDistribution:
        loc, raw = self.factors(x)
        dim = loc.shape[-1]
        diagonal = softplus(raw[..., :dim]) + self.floor
        below = torch.tril_indices(dim, dim, -1, device=loc.device)
        tril = diagonal.diag_embed()
        tril[..., below[0], below[1]] = raw[..., dim:]
        each = dist.MultivariateNormal(loc, scale_tril=tril, validate_args=False)
        return of_views(each, prior, present)


class Coupled(_Guide):
    r"""The prior times one normal factor for each present view, normalised.

    .. math:: q(z_1, \dots, z_V \mid x) \propto
        p(z_1, \dots, z_V) \prod_v N(z_v \mid m(x_v), r(x_v)^2)

    In closed form, for any subset of the views, under `priors.Gaussian`, `Independent`,
    `Mixture` and `TwoTier`. It is the exact posterior where the likelihood is a normal
    function of z. Under the mixtures, the component summed out, its samples carry the
    exact gradient as well; see `distributions.NormalMixture`.

    Raises:
        ValueError: Under any other prior: the product of `StudentT`, `Spherical` or
            `Custom` with normal factors has no closed form.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.factors = GaussianFactors(encoder)

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> dist.TorchDistribution:
        joint = prior()
        if not hasattr(joint, "times"):
            raise ValueError(
                "expected a prior whose product with normal factors is closed for the "
                "guide Coupled (Gaussian, Independent, Mixture or TwoTier; StudentT, "
                f"Spherical and Custom have none), got {type(joint).__name__}; use "
                "DiagonalGaussian, or on the sphere guides.PowerSpherical"
            )
        loc, scale = self.factors(x)
        return joint.times(loc, scale, present)
