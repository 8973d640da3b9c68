r"""A prior with any conditional p(z|y): the way in for densities of your own."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import (
    Normal,
    TorchDistribution,
    constraints,
    validation_enabled,
)
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to
from torch.nn.functional import normalize

from ..distributions.content import ContentPosterior, Integral, SharedContent
from ..hyper import Positive, mapped
from .base import Prior, check_dim
from .conditionals import (
    check_parameters,
    content_sample,
    example_of,
    is_factorised,
)
from .importance import ImportanceSampling, effective_sample_size
from .quadrature import Quadrature

__all__ = ["Custom"]

AT_ONCE = 2**18  # numbers in the pairs of views whose kernel is computed at once


class Custom(Prior):
    r"""Views around a content, for any p(z|y) and p(y); y is integrated out.

    .. math:: p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

    Where p(y) and p(z|y) are products over the dimensions the integral is done by
    deterministic `Quadrature`, else by `ImportanceSampling`. Where neither serves, the
    content can be a variable of the model, with a guide of its own:
    ``Joint(…, content=ps.guides.Content(dim))``.

    Arguments:
        conditional: p(z|y): a function of y with shape (\*batch, dim) that returns a
            Pyro distribution with event shape (dim,). One with parameters is a module.
        dim: The dimension of z, and of y.
        y_prior: p(y), event shape (dim,): a Pyro distribution, or a module that returns
            one; by default standard normal.
        integral: How y is integrated out, if not as above.

    Raises:
        TypeError: If conditional is no function, or returns no distribution.
        ValueError: If its event or batch shape is not that of y, if it hides
            parameters, or if p(y) does not fit.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), dim=10)
    """

    one: Tensor

    def __init__(
        self,
        conditional: Callable[..., TorchDistribution],
        dim: int,
        *,
        y_prior: TorchDistribution | nn.Module | None = None,
        integral: Integral | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.known_dim()
        if not callable(conditional):
            raise TypeError(
                "expected conditional to be a function of y, got "
                f"{type(conditional).__name__}; for instance "
                "lambda y: dist.Laplace(y, 0.3).to_event(1)"
            )
        self.conditional = conditional
        if isinstance(y_prior, Distribution):
            y_prior = mapped(y_prior, torch.clone)
        self.y_prior = y_prior
        self.register_buffer("one", torch.ones(()), persistent=False)
        # Of a stream of its own: what is drawn later must not depend on these checks.
        with torch.random.fork_rng(devices=[]):
            y = content_sample(self.content(), dim)
            self.example = example_of(conditional, y[:3])
            check_parameters(conditional, y_prior, self.content())
            self.factorised = is_factorised(conditional, self.content(), y)
        if integral is None:
            integral = Quadrature() if self.factorised else ImportanceSampling()
        self.integral = integral

    def forward(
        self,
        views: int,
        *,
        present: Bool[Tensor, "*batch view"] | None = None,
        **drawn: Tensor,
    ) -> SharedContent:
        """Return the distribution of the views, y integrated out.

        Arguments:
            views: The number of views.
            present: The views whose marginal density is meant; None means all.
            drawn: Values of random hyper-parameters of the conditional, which go to it
                by name; their shape becomes the batch shape.
        """
        return SharedContent(
            self._conditional(drawn),
            self.content(),
            views,
            self.integral,
            example=self.example,
            factorised=self.factorised,
            batch_shape=torch.broadcast_shapes(*(v.shape for v in drawn.values())),
            present=present,
        )

    def content(self, **drawn: Tensor) -> TorchDistribution:
        """Return p(y), event shape (dim,)."""
        if isinstance(self.y_prior, nn.Module):
            content: Any = self.y_prior()
            return content
        if self.y_prior is not None:
            return self.y_prior
        one = self.one.expand(self.known_dim())
        return Normal(torch.zeros_like(one), one, validate_args=False).to_event(1)

    def given(
        self, y: Float[Tensor, "*batch dim"], **drawn: Tensor
    ) -> TorchDistribution:
        """Return p(z|y), event shape (dim,)."""
        with validation_enabled(False):
            return self._conditional(drawn)(y)

    def on_support(self, z: Tensor) -> Tensor:
        """Bring the output of an encoder to the support of p(z|y)."""
        support = self.example.support
        if getattr(support, "base_constraint", support) is constraints.sphere:
            return normalize(z, dim=-1)
        return biject_to(support)(z)

    def random(self) -> Iterator[Positive]:
        """The hyper-parameters of the conditional that are random variables.

        Its `forward` gets them by name where they are drawn.
        """
        if isinstance(self.conditional, nn.Module):
            parts = self.conditional.modules()
            yield from (h for h in parts if isinstance(h, Positive) and h.random)

    def posterior_y(
        self,
        z: Float[Tensor, "*batch view dim"],
        present: Bool[Tensor, "*batch view"] | None = None,
    ) -> ContentPosterior:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, event shape (dim,)."""
        return self.of(z, present).posterior(z)

    def log_kernel(
        self,
        a: Float[Tensor, "*batch n dim"],
        b: Float[Tensor, "*batch m dim"],
        plug_in: bool = False,
    ) -> Float[Tensor, "*batch n m"]:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = \frac{\int p(y) p(z \mid y) p(z' \mid y) \, dy}
            {\int p(y) p(z \mid y) \, dy}

        With `plug_in`, :math:`p(z' = b \mid y = a)`. Without, every pair is an integral
        of its own: meant for hundreds of views, not for thousands.
        """
        if plug_in:
            with validation_enabled(False):
                conditional = self.conditional(a.unsqueeze(-2))
                return conditional.log_prob(b.unsqueeze(-3))
        rows = max(1, AT_ONCE // (2 * b.numel()))
        parts = [super(Custom, self).log_kernel(part, b) for part in a.split(rows, -2)]
        return torch.cat(parts, -2)

    @torch.no_grad()
    def quadrature_error(
        self, z: Float[Tensor, "*batch view dim"]
    ) -> Float[Tensor, "*batch"]:
        """How far log p(z_1..V) is from that of a finer rule, in nats per item.

        Raises:
            TypeError: If y is not integrated out by `Quadrature`.
        """
        if not isinstance(self.integral, Quadrature):
            raise TypeError(
                "expected a prior with Quadrature, got "
                f"{type(self.integral).__name__}; ask for its effective_sample_size(z)"
            )
        finer = copy.copy(self)
        finer.integral = self.integral.finer()
        return (finer.log_prob(z) - self.log_prob(z)).abs()

    @torch.no_grad()
    def effective_sample_size(
        self, z: Float[Tensor, "*batch view dim"]
    ) -> Float[Tensor, "*batch"]:
        """How many samples of p(y|z) those of the proposal are worth, for each item.

        Raises:
            TypeError: If y is not integrated out by `ImportanceSampling`.
        """
        if not isinstance(self.integral, ImportanceSampling):
            raise TypeError(
                "expected a prior with ImportanceSampling, got "
                f"{type(self.integral).__name__}; ask for its quadrature_error(z)"
            )
        with validation_enabled(False):
            return effective_sample_size(self.integral.draw(self.of(z), z)[1])

    def _conditional(
        self, drawn: dict[str, Tensor]
    ) -> Callable[..., TorchDistribution]:
        """p(z|y) for drawn hyper-parameters, which get an axis for the dimensions."""
        columns = {name: value[..., None] for name, value in drawn.items()}
        return partial(self.conditional, **columns) if drawn else self.conditional

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Custom":
        """Move and convert also the tensors of p(y), which is no module."""
        super()._apply(fn, recurse)
        if isinstance(self.y_prior, Distribution):
            self.y_prior = mapped(self.y_prior, fn)
        return self
