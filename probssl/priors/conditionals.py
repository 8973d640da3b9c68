"""What a p(y) and a p(z|y) of one's own must be, checked before any work is done."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution, validation_enabled
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

__all__ = ["check_parameters", "content_sample", "example_of", "is_factorised"]

Conditional = Callable[..., TorchDistribution]


def content_sample(content: TorchDistribution, dim: int) -> Float[Tensor, "n 1 dim"]:
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
def example_of(
    conditional: Conditional, y: Float[Tensor, "*batch dim"]
) -> TorchDistribution:
    """p(z|y), after a check of its shapes."""
    example, dim = conditional(y), y.shape[-1]
    if not isinstance(example, Distribution):
        raise TypeError(
            "expected conditional(y) to return a Pyro distribution, got "
            f"{type(example).__name__}; for instance dist.Laplace(y, 0.3).to_event(1)"
        )
    for method in ("sample", "log_prob"):
        _check_method(example, method)
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


def check_parameters(
    conditional: Conditional, y_prior: object, content: TorchDistribution
) -> None:
    """Raise an error if there are parameters outside the modules."""
    with torch.enable_grad():
        y = content.sample((1,))
        views = conditional(y)
        slopes = {
            "conditional": (conditional, views.log_prob(views.sample())),
            "y_prior": (y_prior, content.log_prob(y)),
        }
    for name, (part, log_prob) in slopes.items():
        if log_prob.requires_grad and not isinstance(part, nn.Module):
            raise ValueError(
                f"expected a module for {name} with parameters, got one of type "
                f"{type(part).__name__}, whose parameters would not be trained, moved "
                "or saved; write an nn.Module whose forward returns the distribution"
            )


@torch.no_grad()
def is_factorised(
    conditional: Conditional,
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


def _check_method(example: Distribution, method: str) -> None:
    """Raise an error if the distribution does not do what it is for."""
    try:
        argument = example.sample() if method == "log_prob" else ()
        getattr(example, method)(argument)
    except NotImplementedError as error:
        raise TypeError(
            f"expected conditional(y) to return a distribution with {method}, got "
            f"{type(example).__name__} without; write its method {method}"
        ) from error
