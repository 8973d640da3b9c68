r"""Where the components of a mixture are: learned, or at the posteriors of inputs.

A module with the attribute `number`, the number K of components, that returns their
means and scales, shapes (component, dim) and any that broadcasts to it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .base import check_dim

__all__ = ["Components", "VampComponents", "check_number"]


class Components(nn.Module):
    r"""Means :math:`m_k` that are learned, and relative scales, equal or learned.

    The means start as draws of :math:`N(0, \text{spread}^2 I)` from torch's generator,
    or `at` given ones, the relative scales at 1.

    Example:
        >>> import torch
        >>> from sklearn.cluster import KMeans
        >>> import probssl as ps
        >>> z = torch.randn(200, 2)  # as of a model that was fitted without clusters
        >>> means = KMeans(5, random_state=0).fit(z).cluster_centers_
        >>> ps.priors.TwoTier(2, ps.priors.Components.at(means))(3).event_shape
        torch.Size([3, 2])

    Arguments:
        dim: The dimension of z.
        number: The number K of components.
        spread: The standard deviation of the means at the start.
        own_scales: Whether the components differ in scale.

    Raises:
        ValueError: If dim or number is not a whole number of at least 1, or the spread
            is not positive.
    """

    def __init__(
        self, dim: int, number: int, spread: float = 1.0, own_scales: bool = False
    ) -> None:
        super().__init__()
        if check_dim(dim) is None:
            raise ValueError(
                "expected dim to be a whole number, got None; the means need it: give "
                "the dimension of z, for instance dim=10"
            )
        if not 0 < spread < math.inf:
            raise ValueError(
                f"expected spread to be a positive finite number, got {spread!r}; 1.0 "
                "starts the means as standard normal draws"
            )
        self.dim, self.number = dim, check_number(number)
        self.spread, self.own_scales = spread, own_scales
        self.loc = nn.Parameter(spread * torch.randn(number, dim))
        self.log_scale = nn.Parameter(torch.zeros(number, 1)) if own_scales else None

    @classmethod
    def at(
        cls, means: Float[Any, "component dim"], own_scales: bool = False
    ) -> "Components":
        """Start at these means, a tensor or array; those of clusters of z, say.

        From random means a fit may end with all items in a few of the components.

        Raises:
            ValueError: If there are not two axes, or not all numbers are finite.
        """
        means = torch.as_tensor(means)
        if means.ndim != 2 or not means.isfinite().all():
            raise ValueError(
                "expected finite means, shape (component, dim), got shape "
                f"{tuple(means.shape)} with {int((~means.isfinite()).sum())} numbers "
                "that are not finite; KMeans(…).fit(z).cluster_centers_ has such means"
            )
        components = cls(means.shape[1], len(means), own_scales=own_scales)
        with torch.no_grad():
            components.loc.copy_(means)
        return components

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the means and the relative scales."""
        if self.log_scale is None:
            return self.loc, torch.ones_like(self.loc[:1, :1])  # one for all
        return self.loc, self.log_scale.exp()


class VampComponents(nn.Module):
    r"""Components at the encoder's posteriors of K pseudo-inputs: the VampPrior.

    .. math:: p(z) = \frac1K \sum_k q(z \mid u_k)

    They cost one pass of K inputs through the encoder each time. The encoder meant is
    that of the guide: build the guide first, and hand it to `Joint` by
    ``guide=lambda encoder: guide``.

    Example:
        >>> import probssl as ps
        >>> guide = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((6,), 2))
        >>> components = ps.priors.VampComponents.at(guide.factors, torch.rand(50, 6))
        >>> ps.priors.Mixture(2, components, learn_weights=False)(3).event_shape
        torch.Size([3, 2])

    Arguments:
        factors: A module (batch, view, \*event) -> means and standard deviations,
            (batch, view, dim) each, such as `guides.GaussianFactors`.
        number: The number K of pseudo-inputs.
        event_shape: The shape of one input. They start as uniform draws from [0, 1);
            `at` starts them at given ones.
        learn: Whether the pseudo-inputs are learned.

    Raises:
        ValueError: If the number is not a whole number of at least 1.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018)
        https://arxiv.org/abs/1705.07120
    """

    inputs: Tensor

    def __init__(
        self,
        factors: nn.Module,
        number: int,
        event_shape: Sequence[int],
        learn: bool = True,
    ) -> None:
        super().__init__()
        self.factors, self.number = factors, check_number(number)
        self.event_shape, self.learn = tuple(event_shape), learn
        inputs = torch.rand(number, *self.event_shape)
        if learn:
            self.inputs = nn.Parameter(inputs)
        else:
            self.register_buffer("inputs", inputs)

    @classmethod
    def at(
        cls,
        factors: nn.Module,
        inputs: Float[Tensor, "component *event"],
        learn: bool = True,
    ) -> "VampComponents":
        """Start at, or if nothing is learned keep, the given inputs."""
        components = cls(factors, len(inputs), inputs.shape[1:], learn)
        with torch.no_grad():
            components.inputs.copy_(inputs)
        return components

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the means and standard deviations, (component, dim) each."""
        loc, scale = self.factors(self.inputs.unsqueeze(1))
        return loc.squeeze(1), scale.squeeze(1)


def check_number(number: Any) -> int:
    """Return a number of components that is a whole number of at least 1."""
    if not isinstance(number, int) or number < 1:
        raise ValueError(
            "expected a whole number of components of at least 1, or a module with "
            f"such an attribute number, got {number!r}; give for instance 10"
        )
    return number
