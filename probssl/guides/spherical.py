"""The guide on the sphere."""

from jaxtyping import Bool
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from ..distributions.sphere import PowerSpherical as PowerSphericalDensity
from .factors import Factors, PriorOf, Views, of_views

__all__ = ["PowerSpherical"]


class PowerSpherical(nn.Module):
    r"""Independent views, each power-spherical: the guide for `priors.Spherical`.

    .. math:: q(z_1, \dots, z_V \mid x) \propto \prod_v (1 + m(x_v)^\top z_v)^{c(x_v)}

    The encoder's output is normalised to the mean direction m; the second head gives
    the concentration c. Unlike von Mises-Fisher it is reparameterised. Absent views are
    drawn from the prior given the present ones. No gradient passes through these draws,
    and none is lost: the bound does not depend on what is drawn, for

    .. math:: \log p(z_1, \dots, z_V) - \log p(z_\text{absent} \mid z_\text{present})
        = \log p(z_\text{present}).

    Arguments:
        encoder: A module (n, \*event) -> (n, dim); see `Factors`.
        floor: The least concentration.

    References:
        The Power Spherical distribution (De Cao and Aziz, 2020)
        https://arxiv.org/abs/2006.04437
    """

    def __init__(self, encoder: nn.Module, floor: float = 1e-2) -> None:
        super().__init__()
        self.factors, self.floor = Factors(encoder, lambda dim: 1), floor

    @property
    def encoder(self) -> nn.Module:
        return self.factors.encoder

    def forward(
        self,
        x: Views,
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> TorchDistribution:
        loc, raw = self.factors(x)
        concentration = softplus(raw.squeeze(-1)) + self.floor
        each = PowerSphericalDensity(
            normalize(loc, dim=-1), concentration, validate_args=False
        )
        return of_views(each, prior, present)
