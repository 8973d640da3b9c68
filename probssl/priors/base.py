"""What every prior over the views of an item shares."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor, nn

from ..hyper import Positive

__all__ = ["Prior", "check_dim"]


class Prior(nn.Module):
    r"""A prior :math:`p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy`.

    A prior is one object with two faces. Called, ``prior(views)`` returns the Pyro
    distribution of the views with the content y integrated out, event shape
    (view, dim): the alignment term of a generative model. Its `log_kernel` is the
    density of one view given another: the similarity of a contrastive objective.

    A prior of your own needs `dim` and `forward`; for objectives that plug one view in
    for the content, `log_kernel` as well; and for a `Joint` in which the content is a
    variable of its own, `content` and `given`.
    """

    dim: int | None

    def log_prob(
        self,
        z: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> Float[Tensor, "*batch"]:
        r"""Return :math:`\log p(z_1, \dots, z_V)`, in nats per item."""
        return self.of(z, present).log_prob(z)

    def log_kernel(
        self,
        a: Float[Tensor, "*batch n dim"],
        b: Float[Tensor, "*batch m dim"],
        plug_in: bool = False,
    ) -> Float[Tensor, "*batch n m"]:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        With `plug_in`, :math:`\log p(z' = b \mid y = a)`.

        Raises:
            TypeError: With `plug_in`, if the prior has no kernel of its own.
        """
        if plug_in:
            raise TypeError(
                "expected a prior that knows p(z|y), got "
                f"{type(self).__name__} without a method log_kernel(a, b, plug_in); "
                "write one, or use an alignment and an entropy that do not plug in y"
            )
        pairs = torch.broadcast_tensors(a.unsqueeze(-2), b.unsqueeze(-3))
        marginal = self.log_prob(a.unsqueeze(-2)).unsqueeze(-1)
        return self.log_prob(torch.stack(pairs, -2)) - marginal

    def pmi(
        self, a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
    ) -> Float[Tensor, "*batch n m"]:
        r"""Return :math:`\log p(z', z) - \log p(z') p(z)` for all pairs, in nats.

        Raises:
            ValueError: If one view alone has no density, under a flat p(y).
        """
        marginal = self.log_prob(b.unsqueeze(-2))
        return self.log_kernel(a, b) - marginal.unsqueeze(-2)

    def content(self, **drawn: Tensor) -> TorchDistribution:
        """Return p(y), event shape (dim,).

        Raises:
            TypeError: If the content is no point of the space of z.
        """
        raise TypeError(_no_content(self, "content()"))

    def given(
        self, y: Float[Tensor, "*batch dim"], **drawn: Tensor
    ) -> TorchDistribution:
        """Return p(z|y), event shape (dim,); drawn values have the batch shape of y.

        Raises:
            TypeError: If views are not independent given a point of the space of z.
        """
        raise TypeError(_no_content(self, "given(y)"))

    def component(self) -> Categorical:
        """Return p(k), of the component of p(y) that an item belongs to.

        Raises:
            ValueError: If p(y) has no components.
        """
        raise ValueError(_no_components(self))

    def responsibilities(
        self,
        z: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> Categorical:
        r"""Return :math:`p(k \mid z_1, \dots, z_V)`, of the component of an item.

        Raises:
            ValueError: If p(y) has no components.
        """
        raise ValueError(_no_components(self))

    @contextmanager
    def at(self, **drawn: Tensor) -> Iterator["Prior"]:
        """Within it, random hyper-parameters have these values, one for all items.

        Example:
            >>> import pyro.distributions as dist
            >>> import probssl as ps
            >>> prior = ps.priors.Gaussian(2, scale=dist.LogNormal(0.0, 1.0))
            >>> with prior.at(scale=torch.tensor(0.5)):
            ...     log_kernel = prior.log_kernel(torch.zeros(3, 2), torch.ones(4, 2))
        """
        hypers = [h for h in self.random() if h.name in drawn]
        before = [h.drawn for h in hypers]
        try:
            for h in hypers:
                h.drawn = drawn[h.name]
            yield self
        finally:
            for h, value in zip(hypers, before, strict=True):
                h.drawn = value

    def on_support(self, z: Tensor) -> Tensor:
        """Bring the output of an encoder to the space of z: here, all of it."""
        return z

    def gauge(self, views: int) -> int:
        """How many entropies H[z] balance the log-density of so many views.

        V for a proper p(y), V − 1 for a flat or uniform one.
        """
        return views if self.proper else views - 1

    @property
    def proper(self) -> bool:
        """Whether p(y) is a density that integrates to one."""
        return True

    def random(self) -> Iterator[Positive]:
        """The hyper-parameters that are random variables."""
        return (h for h in self.children() if isinstance(h, Positive) and h.random)

    def of(self, z: Tensor, present: Tensor | None = None) -> TorchDistribution:
        """Return the distribution of views shaped like z.

        Raises:
            ValueError: If the last axis of z is not of the prior's dimension.
        """
        if self.dim is not None and z.shape[-1] != self.dim:
            raise ValueError(
                f"expected z with dim {self.dim} as its last axis, got shape "
                f"{tuple(z.shape)}; build the prior with dim={z.shape[-1]} or the "
                f"encoder with {self.dim} outputs"
            )
        options: dict[str, Any] = {} if present is None else {"present": present}
        if self.dim is None:
            options["dim"] = z.shape[-1]
        return self(z.shape[-2], **options)

    def known_dim(self) -> int:
        """The dimension of z.

        Raises:
            ValueError: If the prior leaves it open.
        """
        if self.dim is None:
            raise ValueError(
                "expected a prior with a known dimension, got dim=None; build it with "
                "dim=… to sample from it or to use it in a Joint"
            )
        return self.dim


def _no_content(prior: Prior, method: str) -> str:
    return (
        f"expected a prior with p(y) and p(z|y) of its own, got {type(prior).__name__} "
        f"without a method {method}; integrate the content out: Joint(…, content=None)"
    )


def _no_components(prior: Prior) -> str:
    return (
        "expected a prior with components for observed contents, got "
        f"{type(prior).__name__}; use priors.Mixture or priors.TwoTier, or leave "
        "content out of the batch"
    )


def check_dim(dim: int | None, least: int = 1) -> int | None:
    """Return a dimension that is a whole number of at least `least`, or None."""
    if dim is not None and (not isinstance(dim, int) or dim < least):
        raise ValueError(
            f"expected dim to be a whole number of at least {least}, got {dim!r}; give "
            "the dimension of z, for instance dim=10"
        )
    return dim
