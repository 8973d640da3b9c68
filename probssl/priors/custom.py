r"""A prior with any conditional p(z|y): the way in for densities of your own."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions import Normal, TorchDistribution, validation_enabled
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform

from ..distributions.content import ContentPosterior, Integral, SharedContent
from ..hyper import Positive
from .base import Prior, check_dim
from .quadrature import ImportanceSampling, Quadrature, effective_sample_size

__all__ = ["Custom"]

AT_ONCE = 2**18  # numbers in the pairs of views whose kernel is computed at once


class Custom(Prior):
    r"""Views around a content, for any p(z|y) and p(y); y is integrated out.

    .. math:: p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

    Where p(y) and p(z|y) are products over the dimensions the integral is done by
    deterministic `Quadrature`; else it needs `ImportanceSampling`.

    Arguments:
        conditional: p(z|y): a function of y with shape (\*batch, dim) that returns a
            Pyro distribution with event shape (dim,). One with parameters is a module.
        dim: The dimension of z, and of y.
        y_prior: p(y), event shape (dim,): a Pyro distribution, or a module that returns
            one; by default standard normal.
        integral: How y is integrated out.

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
            y_prior = _mapped(y_prior, torch.clone, {})
        self.y_prior = y_prior
        self.integral = Quadrature() if integral is None else integral
        self.register_buffer("one", torch.ones(()), persistent=False)
        # Of a stream of its own: what is drawn later must not depend on these checks.
        with torch.random.fork_rng(devices=[]):
            y = _content_sample(self.content(), dim)
            self.example = _example(conditional, y[:3])
            _check_parameters(self)
            self.factorised = _is_factorised(conditional, self.content(), y)

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
        conditional = self.conditional
        if drawn:
            columns = {name: value[..., None] for name, value in drawn.items()}
            conditional = partial(conditional, **columns)
        return SharedContent(
            conditional,
            self.content(),
            views,
            self.integral,
            example=self.example,
            factorised=self.factorised,
            batch_shape=torch.broadcast_shapes(*(v.shape for v in drawn.values())),
            present=present,
        )

    def content(self) -> TorchDistribution:
        """Return p(y), event shape (dim,)."""
        if isinstance(self.y_prior, nn.Module):
            content: Any = self.y_prior()
            return content
        if self.y_prior is not None:
            return self.y_prior
        one = self.one.expand(self.known_dim())
        return Normal(torch.zeros_like(one), one, validate_args=False).to_event(1)

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Custom":
        """Move and convert also the tensors of p(y), which is no module."""
        super()._apply(fn, recurse)
        if isinstance(self.y_prior, Distribution):
            self.y_prior = _mapped(self.y_prior, fn, {})
        return self


def _content_sample(content: TorchDistribution, dim: int) -> Float[Tensor, "n 1 dim"]:
    """Some y, after a check that there can be any."""
    if not isinstance(content, Distribution):
        raise ValueError(
            "expected y_prior to be a Pyro distribution, or a module that returns one, "
            f"got {type(content).__name__}; for instance "
            f"dist.Laplace(0.0, 1.0).expand([{dim}]).to_event(1)"
        )
    if content.event_shape != (dim,) or content.batch_shape:
        raise ValueError(
            f"expected y_prior with event shape ({dim},) and no batch shape, got event "
            f"shape {tuple(content.event_shape)} and batch shape "
            f"{tuple(content.batch_shape)}; write .expand([{dim}]).to_event(1)"
        )
    if content.support is not None and content.support.is_discrete:
        raise ValueError(
            "expected a density p(y), got a discrete distribution; sum over a discrete "
            "content in p(z|y) itself, with dist.MixtureSameFamily"
        )
    return content.sample((16, 1))


@torch.no_grad()
def _example(
    conditional: Callable[..., TorchDistribution], y: Float[Tensor, "*batch dim"]
) -> TorchDistribution:
    """p(z|y), after a check of its shapes."""
    example, dim = conditional(y), y.shape[-1]
    if not isinstance(example, Distribution):
        raise TypeError(
            "expected conditional(y) to return a Pyro distribution, got "
            f"{type(example).__name__}; for instance dist.Laplace(y, 0.3).to_event(1)"
        )
    if example.event_shape != (dim,):
        event, batch = tuple(example.event_shape), tuple(example.batch_shape)
        hint = f"build prior and conditional with the same dim, here {dim}"
        if not event and batch[-1:] == (dim,):
            hint = "append .to_event(1), as in dist.Laplace(y, 0.3).to_event(1)"
        raise ValueError(
            f"expected conditional(y) with event shape ({dim},) for y of shape "
            f"{tuple(y.shape)}, got event shape {event} and batch shape {batch}; {hint}"
        )
    if example.batch_shape != y.shape[:-1]:
        raise ValueError(
            f"expected conditional(y) with batch shape {tuple(y.shape[:-1])} for y of "
            f"shape {tuple(y.shape)}, got {tuple(example.batch_shape)}; let every "
            "parameter follow the leading axes of y, and call .to_event(1) once"
        )
    return example


def _check_parameters(prior: Custom) -> None:
    """Raise an error if there are parameters outside the modules."""
    with torch.enable_grad():
        content = prior.content()
        y = content.sample((1,))
        views = prior.conditional(y)
        slopes = {
            "conditional": (prior.conditional, views.log_prob(views.sample())),
            "y_prior": (prior.y_prior, content.log_prob(y)),
        }
    for name, (part, log_prob) in slopes.items():
        if log_prob.requires_grad and not isinstance(part, nn.Module):
            raise ValueError(
                f"expected a module for {name} with parameters, got one of type "
                f"{type(part).__name__}, whose parameters would not be trained, moved "
                "or saved; write an nn.Module whose forward returns the distribution"
            )


@torch.no_grad()
def _is_factorised(
    conditional: Callable[..., TorchDistribution],
    content: TorchDistribution,
    y: Float[Tensor, "n 1 dim"],
) -> bool:
    """Whether p(y) and p(z|y) are products over the dimensions.

    One coordinate of y after the other is made another number, and none at all (which
    also spreads through weights that are zero); all other densities must not notice.
    """
    dim = y.shape[-1]
    if not all(_is_product(part) for part in (content, conditional(y))):
        return False
    with validation_enabled(False):
        z = conditional(y[0]).sample()
        before = conditional(y[0]).base_dist.log_prob(z)
        itself = torch.eye(dim, dtype=torch.bool, device=y.device)
        for other in (*y[1:], torch.full_like(y[0], torch.nan)):
            moved = torch.where(itself, other, y[0])
            after = conditional(moved).base_dist.log_prob(z)
            if not bool(((after == before) | itself).all()):
                return False
    return True


def _is_product(distribution: Distribution) -> bool:
    return (
        isinstance(distribution, Independent)
        and distribution.reinterpreted_batch_ndims == 1
        and not distribution.base_dist.event_shape
    )


def _mapped(part: Any, fn: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    """A copy of a distribution with all its tensors mapped, validation switched off."""
    if isinstance(part, Tensor):
        return fn(part)
    if isinstance(part, list):
        return [_mapped(p, fn, done) for p in part]
    if not isinstance(part, Distribution | Transform):
        return part
    if id(part) not in done:  # a transform and its inverse hold each other
        new = done[id(part)] = copy.copy(part)
        parts = {name: _mapped(p, fn, done) for name, p in vars(part).items()}
        new.__dict__.update(parts)
        if isinstance(new, Distribution):
            new._validate_args = False
    return done[id(part)]
