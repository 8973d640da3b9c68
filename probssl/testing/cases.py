"""A prior in the hands of its laws, and the views that they are tried on."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..priors import Prior
from .laws import seeded
from .modules import SEED
from .references import Reference

__all__ = ["PriorCase"]


class PriorCase(NamedTuple):
    """A prior in the hands of its laws.

    Arguments:
        prior: The prior, in float64.
        views: The number of views, where one number must do.
        draws: The number of draws of an estimate.
        fits: References and samples for numbers of views, which several laws use.
    """

    prior: Prior
    views: int
    draws: int
    fits: dict[int, tuple[list[Reference], Tensor]]

    @property
    def dim(self) -> int:
        return self.prior.known_dim()

    @property
    def counts(self) -> range:
        """The numbers of views that have a density, up to three."""
        return range(1 if self.prior.proper else 2, 4)

    def typical(self, n: int, views: int) -> Float[Tensor, "n view dim"]:
        """Views on the support: samples, or under a flat p(y) some near each other."""
        if self.prior.proper:
            return self.prior(views).sample((n,)).detach()
        y = torch.randn(n, 1, self.dim)
        return self.prior.on_support(y + 0.3 * torch.randn(n, views, self.dim))

    def log_prob(self, z: Tensor, present: Tensor | None = None) -> Tensor:
        """The log-density; where it is an estimate, always from the same draws."""
        seeded(SEED)
        return self.prior.log_prob(z, present).detach()

    def estimated(self) -> bool:
        """Whether the log-density is itself an estimate from samples."""
        z = self.typical(2, self.views)
        return not torch.equal(self.prior.log_prob(z), self.prior.log_prob(z))
