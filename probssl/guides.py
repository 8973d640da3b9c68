r"""Guides q(z_1..V | x_1..V): what the output of an encoder means.

Called with the views, the prior and the mask of present views, a guide returns a
distribution with event shape (view, dim). The prior comes as a function,
``prior(present=mask)``, so that a guide can follow it where a view is absent.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Delta, TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from .distributions.gaussian import OneFactorNormal
from .nn import Encoder

__all__ = ["Coupled", "DiagonalGaussian", "GaussianFactors", "Point"]

Shape = Size | list[int] | tuple[int, ...]

PriorOf = Callable[..., Any]  # a distribution of the views, as `Prior` returns


class GaussianFactors(nn.Module):
    r"""One normal factor :math:`N(z_v \mid m(x_v), r(x_v)^2)` for each view.

    An `nn.Encoder` gives m by its own head; a second head on the same trunk, made
    here, gives r. Any other module must return both, as 2·dim outputs.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), or (n, 2·dim).
        floor: The least standard deviation, so that no log-density is infinite.
    """

    def __init__(self, encoder: nn.Module, floor: float = 1e-4) -> None:
        super().__init__()
        self.encoder, self.floor = encoder, floor
        self.spread: nn.Linear | None = None
        if isinstance(encoder, Encoder):
            self.spread = nn.Linear(encoder.width, encoder.dim)

    def forward(self, x: Float[Tensor, "batch view ..."]) -> tuple[Tensor, Tensor]:
        """Return m and r, each with shape (batch, view, dim)."""
        flat = x.flatten(0, 1)
        if self.spread is None or not isinstance(self.encoder, Encoder):
            output = self.encoder(flat)
            if output.dim() != 2 or output.shape[1] % 2:
                raise ValueError(
                    "expected the encoder to return (n, 2·dim) outputs, locations and "
                    f"raw scales, got {tuple(output.shape)}; wrap its trunk as "
                    "ps.nn.Encoder(trunk, width, dim), which adds both heads"
                )
            loc, raw = output.chunk(2, -1)
        else:
            features = self.encoder.trunk(flat)
            loc, raw = self.encoder.head(features), self.spread(features)
        shape = x.shape[:2] + loc.shape[1:]
        return loc.view(shape), softplus(raw).view(shape) + self.floor


class Point(nn.Module):
    """q puts all its mass on the encoder's output; its entropy is left out."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        x: Float[Tensor, "batch view ..."],
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> TorchDistribution:
        if present is not None:
            raise ValueError(
                "expected all views to be present for the guide Point, got a mask; "
                "use DiagonalGaussian or Coupled, which follow the prior where a view "
                "is absent"
            )
        loc = self.encoder(x.flatten(0, 1)).view(*x.shape[:2], -1)
        return Delta(loc, event_dim=2, validate_args=False)


class DiagonalGaussian(nn.Module):
    r"""Independent views: SimVAE's guide, and the VAE's.

    .. math:: q(z_1, \dots, z_V \mid x) = \prod_v N(z_v \mid m(x_v), r(x_v)^2)

    The posterior of views that share their content is not of this form, so the ELBO
    keeps a gap even with a perfect decoder; `Coupled` closes it. Absent views are drawn
    from the prior given the present ones, and then add nothing to the bound.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.factors = GaussianFactors(encoder)

    @property
    def encoder(self) -> nn.Module:
        return self.factors.encoder

    def forward(
        self,
        x: Float[Tensor, "batch view ..."],
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> TorchDistribution:
        loc, scale = self.factors(x)
        if present is None:
            zero = torch.zeros_like(loc)
            return OneFactorNormal(loc, scale, zero, validate_args=False)
        return _Completed(loc, scale, prior, present)


class Coupled(nn.Module):
    r"""The prior times one normal factor for each present view, normalised.

    .. math:: q(z_1, \dots, z_V \mid x) \propto
        p(z_1, \dots, z_V) \prod_v N(z_v \mid m(x_v), r(x_v)^2)

    In closed form, for any subset of the views. It is the exact posterior where the
    likelihood is a normal function of z.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.factors = GaussianFactors(encoder)

    @property
    def encoder(self) -> nn.Module:
        return self.factors.encoder

    def forward(
        self,
        x: Float[Tensor, "batch view ..."],
        prior: PriorOf,
        present: Bool[Tensor, "batch view"] | None = None,
    ) -> TorchDistribution:
        joint = prior()
        if not hasattr(joint, "times"):
            raise ValueError(
                "expected a prior whose product with normal factors is closed for the "
                f"guide Coupled, got {type(joint).__name__}; use DiagonalGaussian"
            )
        loc, scale = self.factors(x)
        return joint.times(loc, scale, present)


class _Completed(TorchDistribution):
    r"""Present views from their factors, absent ones from the prior given them.

    .. math:: q(z) = \prod_{\text{present}} N(z_v \mid m_v, r_v^2) \;
        p(z_\text{absent} \mid z_\text{present})
    """

    arg_constraints = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, prior: PriorOf, present: Tensor
    ) -> None:
        self.prior, self.present = prior, present
        zero = torch.zeros_like(loc)
        self.factors = OneFactorNormal(
            loc, scale, zero, present=present, validate_args=False
        )
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.prior().complete_mean(self.factors.loc, self.present)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        z = self.factors.rsample(sample_shape)
        return self.prior().complete(z, self.present)

    def log_prob(self, value: Tensor) -> Tensor:
        absent = self.prior().log_prob(value)
        absent = absent - self.prior(present=self.present).log_prob(value)
        return self.factors.log_prob(value) + absent

    def expand(
        self, batch_shape: Shape, _instance: "_Completed | None" = None
    ) -> "_Completed":
        shape = Size(batch_shape) + self.event_shape
        return _Completed(
            self.factors.loc.expand(shape),
            self.factors.scale.expand(shape),
            self.prior,
            self.present.expand(shape[:-1]),
        )
