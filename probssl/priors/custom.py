r"""A prior with any p(y) and any conditional density p(z|y)."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import (
    Normal,
    TorchDistribution,
    constraints,
    validation_enabled,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, biject_to
from torch.nn.functional import normalize

from ..arguments import instance
from ..distributions.content import ContentPosterior, Integral, SharedContent
from ..hyper import Positive, mapped
from ..special import effective_sample_size
from .base import Drawn, Pairs, Points, Present, Prior, Vectors, Views, check_dim
from .integrals import ImportanceSampling, Quadrature

__all__ = ["Custom"]

KERNEL_NUMBERS = 2**18  # numbers in the pairs of views of one block of the kernel

Conditional = Callable[..., TorchDistribution]


class Custom(Prior):
    r"""A prior with any p(y) and any p(z|y); y is integrated out numerically.

    .. math:: p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

    Where p(y) and p(z|y) are products over the dimensions the integral is deterministic
    `Quadrature`, else `ImportanceSampling`. Where neither is accurate, make the content
    a latent variable with a guide: ``Joint(…, content=ps.guides.Content(dim))``.

    Arguments:
        conditional: p(z|y): a function of y with shape (\*batch, dim) that returns a
            Pyro distribution with event shape (dim,). With parameters it is a module.
        dim: The dimension of z, and of y.
        y_prior: p(y), event shape (dim,): a Pyro distribution, or a module that returns
            one; by default standard normal.
        integral: The rule of integration over y; None chooses as above.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), dim=10)

    Raises:
        TypeError: If conditional is not a function, or returns no distribution.
        ValueError: If its event or batch shape is not that of y, if it has parameters
            outside a module, or if p(y) does not fit.
    """

    one: Tensor

    def __init__(
        self,
        conditional: Conditional,
        dim: int,
        *,
        y_prior: TorchDistribution | nn.Module | None = None,
        integral: Integral | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.known_dim()
        hint = "for instance lambda y: dist.Laplace(y, 0.3).to_event(1)"
        self.conditional = instance(
            "conditional", conditional, Callable, "a function of y", hint
        )
        if isinstance(y_prior, Distribution):
            y_prior = mapped(y_prior, torch.clone)
        self.y_prior = y_prior
        self.register_buffer("one", torch.ones(()), persistent=False)
        # The checks leave the state of the random generator unchanged.
        with torch.random.fork_rng(devices=[]):
            y = _content_sample(self.content(), dim)
            self._example = _example_of(conditional, y[:3])
            _check_parameters(conditional, y_prior, self.content())
            self.factorised = _is_factorised(conditional, self.content(), y)
        if integral is None:
            integral = Quadrature() if self.factorised else ImportanceSampling()
        self.integral = integral

    def _shown(self) -> list[str]:
        parts = {"conditional": self.conditional, "y_prior": self.y_prior}
        names = {
            name: getattr(part, "__name__", type(part).__name__)
            for name, part in parts.items()
            if part is not None and not isinstance(part, nn.Module)
        }
        shown = [f"{name}={kind}" for name, kind in names.items()]
        return [*super()._shown(), *shown, f"integral={self.integral}"]

    def forward(
        self, views: int, *, present: Present = None, **drawn: Tensor
    ) -> SharedContent:
        """Return the distribution of the views, y integrated out.

        Drawn values of random hyper-parameters go to the conditional by name.
        """
        return SharedContent(
            self._conditional(drawn),
            self.content(),
            views,
            self.integral,
            example=self._example,
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

    def given(self, y: Vectors, **drawn: Tensor) -> TorchDistribution:
        """Return p(z|y), event shape (dim,)."""
        with validation_enabled(False):
            return self._conditional(drawn)(y)

    def on_support(self, z: Tensor) -> Tensor:
        """Map the output of an encoder to the support of p(z|y)."""
        support = self._example.support
        if getattr(support, "base_constraint", support) is constraints.sphere:
            return normalize(z, dim=-1)
        return biject_to(support)(z)

    def random(self) -> Iterator[Positive]:
        """The random hyper-parameters of the conditional.

        Its `forward` receives drawn values by name.
        """
        if isinstance(self.conditional, nn.Module):
            parts = self.conditional.modules()
            yield from (h for h in parts if isinstance(h, Positive) and h.random)

    def posterior_y(self, z: Views, present: Present = None) -> ContentPosterior:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, event shape (dim,)."""
        return self.of(z, present).posterior(z)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = \frac{\int p(y) p(z \mid y) p(z' \mid y) \, dy}
            {\int p(y) p(z \mid y) \, dy}

        With `plug_in`, :math:`p(z' = b \mid y = a)`. Without, every pair needs an
        integral: feasible for hundreds of views, not for thousands.
        """
        if plug_in:
            with validation_enabled(False):
                conditional = self.conditional(a.unsqueeze(-2))
                return conditional.log_prob(b.unsqueeze(-3))
        rows = max(1, KERNEL_NUMBERS // (2 * b.numel()))
        parts = [super(Custom, self).log_kernel(part, b) for part in a.split(rows, -2)]
        return torch.cat(parts, -2)

    @torch.no_grad()
    def quadrature_error(self, z: Views) -> Float[Tensor, "*batch"]:
        """Return how far log p(z_1..V) is from a finer rule, in nats per item.

        Raises:
            TypeError: If y is not integrated out by `Quadrature`.
        """
        hint = "use effective_sample_size(z)"
        rule = instance("integral", self.integral, Quadrature, "Quadrature", hint)
        finer = copy.copy(self)
        finer.integral = rule.finer()
        return (finer.log_prob(z) - self.log_prob(z)).abs()

    @torch.no_grad()
    def effective_sample_size(self, z: Views) -> Float[Tensor, "*batch"]:
        """Return the effective sample size of the proposal for p(y|z), by item.

        Raises:
            TypeError: If y is not integrated out by `ImportanceSampling`.
        """
        kind, hint = ImportanceSampling, "use quadrature_error(z)"
        rule = instance("integral", self.integral, kind, "ImportanceSampling", hint)
        with validation_enabled(False):
            return effective_sample_size(rule.draw(self.of(z), z)[1])

    def _conditional(self, drawn: Drawn) -> Conditional:
        """p(z|y) for drawn hyper-parameters, with an added axis for the dimensions."""
        columns = {name: value[..., None] for name, value in drawn.items()}
        return partial(self.conditional, **columns) if drawn else self.conditional

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Custom":
        """Move and convert also the tensors of a p(y) that is not a module."""
        super()._apply(fn, recurse)
        if isinstance(self.y_prior, Distribution):
            self.y_prior = mapped(self.y_prior, fn)
        return self


def _content_sample(content: TorchDistribution, dim: int) -> Float[Tensor, "n 1 dim"]:
    """Samples of p(y), after checks of its class and shapes."""
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
def _example_of(conditional: Conditional, y: Vectors) -> TorchDistribution:
    """p(z|y) of some y, after checks of its class and shapes."""
    example, dim = conditional(y), y.shape[-1]
    hint = "for instance dist.Laplace(y, 0.3).to_event(1)"
    instance("conditional(y)", example, Distribution, "a Pyro distribution", hint)
    for method in ("sample", "log_prob"):
        try:
            argument = example.sample() if method == "log_prob" else ()
            getattr(example, method)(argument)
        except NotImplementedError as error:
            raise TypeError(
                f"expected conditional(y) to return a distribution with {method}, got "
                f"{type(example).__name__} without; write its method {method}"
            ) from error
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


def _check_parameters(
    conditional: Conditional, y_prior: object, content: TorchDistribution
) -> None:
    """Raise an error if a density depends on parameters outside a module."""
    with torch.enable_grad():
        y = content.sample((1,))
        views = conditional(y)
        log_probs = {
            "conditional": (conditional, views.log_prob(views.sample())),
            "y_prior": (y_prior, content.log_prob(y)),
        }
    for name, (part, log_prob) in log_probs.items():
        if log_prob.requires_grad and not isinstance(part, nn.Module):
            raise ValueError(
                f"expected a module for {name} with parameters, got one of type "
                f"{type(part).__name__}, whose parameters would not be trained, moved "
                "or saved; write an nn.Module whose forward returns the distribution"
            )


@torch.no_grad()
def _is_factorised(
    conditional: Conditional, content: TorchDistribution, y: Float[Tensor, "n 1 dim"]
) -> bool:
    """Whether p(y) and p(z|y) are products over the dimensions.

    Each coordinate of y in turn is changed to other numbers and to NaN, which spreads
    even through zero weights; the densities of other dimensions must not change.
    """
    dim = y.shape[-1]
    if not all(_is_product(part) for part in (content, conditional(y))):
        return False
    with validation_enabled(False):
        z = conditional(y[0]).sample()
        # Of the shape of `moved`, since rounding may differ between shapes.
        before = conditional(y[0].repeat(dim, 1)).base_dist.log_prob(z)
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
