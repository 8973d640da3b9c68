r"""Guides q(y | z_1..V) of the content (deep sets), for joints with an explicit y."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import (
    Normal,
    TorchDistribution,
    TransformedDistribution,
    constraints,
)
from torch import Tensor, nn
from torch.distributions import Transform, biject_to
from torch.nn.functional import normalize, softplus

from ..arguments import whole
from ..distributions.sphere import PowerSpherical
from ..nn import dense

__all__ = ["Content", "SphericalContent"]


class _Summary(nn.Module):
    r"""Deep set: a network of a set of views, whatever their order and number.

    .. math:: h(z_1, \dots, z_V)
        = A \, \big[g\big(\tfrac1V \textstyle\sum_v f(z_v), \log V\big), \; \bar z, \;
            \log V\big] + b

    f and g are fully connected networks. A and b start at zero.
    """

    def __init__(self, dim: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        sizes = (whole("dim", dim), *(whole("hidden", width) for width in hidden))
        self.dim = dim
        self.each = nn.Sequential(*dense(*sizes))
        self.together = nn.Sequential(*dense(sizes[-1] + 1, *hidden))
        width = hidden[-1] if hidden else dim + 1
        self.head = nn.Linear(width + dim + 1, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, z: Float[Tensor, "*batch view dim"]
    ) -> Float[Tensor, "*batch output"]:
        if z.dim() < 2 or z.shape[-1] != self.dim:
            raise ValueError(
                f"expected z with shape (*batch, view, {self.dim}), got "
                f"{tuple(z.shape)}; build the guide of the content with the dim of z"
            )
        count = z.new_full((*z.shape[:-2], 1), math.log(z.shape[-2]))
        pooled = self.together(torch.cat([self.each(z).mean(-2), count], -1))
        return self.head(torch.cat([pooled, z.mean(-2), count], -1))


class Content(nn.Module):
    r"""Gaussian q(y|z) around the mean of the views, shifted and scaled by a deep set.

    .. math:: q(y \mid z_1, \dots, z_V) = N(\bar z + h_1(z), \; s(h_2(z))^2)

    For a y of another dimension, or on another support than R^n, it is
    :math:`N(h_1(z), s(h_2(z))^2)`, brought to the support.

    h is a deep set: invariant to permutations of the views, of any number. s is the
    softplus function plus a floor. It starts at :math:`y \sim N(\bar z, s(0)^2)`, and
    the posterior of y under `priors.Gaussian` is of this form.

    Arguments:
        dim: The dimension of z, and of y unless `y_dim` says another.
        hidden: The widths of the hidden layers before and after the mean over views.
        floor: The least standard deviation.
        y_dim: The dimension of y.
        support: The support of y, such as ``dist.constraints.simplex`` or ``positive``;
            by default R^n.

    References:
        Deep Sets (Zaheer et al., 2017)
        https://arxiv.org/abs/1703.06114

    Raises:
        ValueError: If a size is not a positive whole number; when called, if z is not
            of the dimension.
    """

    support: constraints.Constraint = constraints.real_vector

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (64,),
        floor: float = 1e-4,
        *,
        y_dim: int | None = None,
        support: constraints.Constraint | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.floor = dim, tuple(hidden), floor
        self.y_dim = y_dim
        size = dim if y_dim is None else whole("y_dim", y_dim)
        self.map: Transform | None = None
        if support is not None:
            if support.event_dim == 0:
                support = constraints.independent(support, 1)
            self.support = support
            self.map = biject_to(support)
            size = self.map.inverse_shape((size,))[0]
        self.around = size == dim and support is None
        self.summary = _Summary(dim, self.hidden, 2 * size)

    def forward(self, z: Float[Tensor, "*batch view dim"]) -> TorchDistribution:
        """Return q(y | z_1..V), event shape (dim,), or (y_dim,)."""
        loc, raw = self.summary(z).chunk(2, -1)
        loc = z.mean(-2) + loc if self.around else loc
        scale = softplus(raw) + self.floor
        normal = Normal(loc, scale, validate_args=False).to_event(1)
        if self.map is None:
            return normal
        return TransformedDistribution(normal, self.map, validate_args=False)


class SphericalContent(nn.Module):
    r"""Power-spherical q(y|z) around the views' mean direction, for y on a sphere.

    .. math:: q(y \mid z_1, \dots, z_V) \propto (1 + \mu^\top y)^c, \qquad
        \mu \propto \bar z + h_1(z), \quad c = s(h_2(z))

    h and s are as in `Content`. It starts at the direction of the views' mean, which is
    that of the posterior of y under `priors.Spherical`, with a low concentration.

    Arguments:
        dim: The dimension of the space around the sphere, at least 2.
        hidden: The widths of the hidden layers before and after the mean over views.
        floor: The least concentration.

    Raises:
        ValueError: If a size is not a positive whole number, or dim is less than 2;
            when called, if z is not of the dimension.
    """

    support = PowerSpherical.support

    def __init__(
        self, dim: int, hidden: Sequence[int] = (64,), floor: float = 1e-2
    ) -> None:
        super().__init__()
        whole("dim", dim, least=2, hint="use Content for a single dimension")
        self.dim, self.hidden, self.floor = dim, tuple(hidden), floor
        self.summary = _Summary(dim, self.hidden, dim + 1)

    def forward(self, z: Float[Tensor, "*batch view dim"]) -> TorchDistribution:
        """Return q(y | z_1..V), event shape (dim,)."""
        output = self.summary(z)
        loc = normalize(z.mean(-2) + output[..., :-1], dim=-1)
        concentration = softplus(output[..., -1]) + self.floor
        return PowerSpherical(loc, concentration, validate_args=False)
