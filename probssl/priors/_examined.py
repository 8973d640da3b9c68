"""What p(y) and p(z|y) of a prior are, examined on draws when it is built.

Each check raises an error that says what was expected, what came and what to do.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Delta,
    MaskedDistribution,
    OneHotCategorical,
    TorchDistribution,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from ..arguments import instance
from ..distributions.content import Integral
from ..distributions.supports import (
    dimensions,
    ends_of,
    from_real,
    in_words,
    of_pyro,
    states_of,
    support_of,
    values_of,
)
from ..hyper import Positive
from ..runtime.validation import unvalidated
from .base import Drawn
from .integrals import Enumeration, ImportanceSampling, Quadrature

__all__ = ["Conditional", "check_hypers", "check_integral", "check_parameters"]
__all__ += ["check_sites", "content_sample", "example_of", "is_factorised"]

RESERVED = {"x", "y", "z", "item", "views", "present", "component", "particles"}
RESERVED |= {"self"}  # of Python
MOST_CHANGES, CHANGED_NUMBERS = 4096, 2**20  # of y, to find out what depends on it

Conditional = Callable[..., TorchDistribution]
Content = Callable[..., TorchDistribution]


def _check_possible(content: Any) -> None:
    """Raise a ValueError for values of probability 0, which torch counts as 1e-7."""
    binary = isinstance(content, Bernoulli | Binomial)
    own = getattr(content, "_categorical", content)  # of a one-hot one
    probs = vars(own).get("probs")
    known = binary or isinstance(content, Categorical | OneHotCategorical)
    if not known or probs is None or not torch.equal(own._param, probs):
        return
    if bool((probs == 0).any()) or binary and bool((probs == 1).any()):
        raise ValueError(
            f"expected a {type(content).__name__} y_prior of positive probabilities, "
            "got 0, for which log_prob of torch has that of 1e-7 though it is never "
            "drawn: leave such values out; a Categorical also takes logits=p.log()"
        )


def content_sample(content: TorchDistribution, dim: int) -> Float[Tensor, "n 2 *k"]:
    """Samples of p(y), after checks of its class and shapes."""
    if not isinstance(content, Distribution):
        raise ValueError(
            "expected y_prior to be a Pyro distribution, or a module that returns one, "
            f"got {type(content).__name__}; for instance "
            f"dist.Laplace(0.0, 1.0).expand([{dim}]).to_event(1)"
        )
    of_pyro("y_prior", content)
    discrete: Any = support_of(content).is_discrete
    shape, batch = tuple(content.event_shape), tuple(content.batch_shape)
    if len(shape) not in ((0, 1) if discrete else (1,)) or batch:
        event = "(k,), or () of a discrete one," if discrete else "(k,)"
        hint = f"write .expand([{dim}]).to_event(1)"
        if len(shape) > 1:
            hint = "write one over the vector of its free numbers, and p(z|y) of that"
        raise ValueError(
            f"expected y_prior with event shape {event} and no batch shape, got event "
            f"shape {shape} and batch shape {batch}; {hint}"
        )
    if discrete:
        values_of(content.base_dist if isinstance(content, Independent) else content)
    inner: Any = content
    while isinstance(inner, Independent | MaskedDistribution):
        inner = inner.base_dist
    if discrete:
        _check_possible(inner)
    try:
        y = content.sample((16, 2))
        rows = content.log_prob(y.flatten(0, 1)).view(16, 2)
        proper = torch.allclose(content.log_prob(y), rows)
        low, high = ends_of(support_of(content))
        off = [] if low is None else [y < low]
        off += [] if high is None else [y > high]
    except (NotImplementedError, RuntimeError):
        proper = False
    if not proper or isinstance(inner, Delta):
        raise ValueError(
            "expected y_prior with samples and a normalised density, with any number "
            f"of axes in front of an event, got {type(inner).__name__}; for a fixed y "
            "write it into p(z|y), for an improper one take a wide normal"
        )
    wrong = [float(y[each][0]) for each in off if bool(each.any())]
    if wrong:
        raise ValueError(
            "expected y_prior with draws on its support, "
            f"{in_words(support_of(content))}, got {wrong[0]:.4g}; write a subclass of "
            f"{type(inner).__name__} with an attribute support = constraints.…, for "
            "that of a class or transform in it is wrong"
        )
    return y


@torch.no_grad()
def example_of(
    conditional: Conditional, y: Float[Tensor, "n 2 *k"], dim: int
) -> TorchDistribution:
    """p(z|y) of some y, after checks of its class and shapes, and of each y alone."""
    example = _called(conditional, y)
    hint = "for instance dist.Laplace(y, 0.3).to_event(1)"
    instance("conditional(y)", example, Distribution, "a Pyro distribution", hint)
    of_pyro("conditional(y)", example)
    for method in ("sample", "log_prob"):
        try:
            argument = example.sample() if method == "log_prob" else ()
            getattr(example, method)(argument)
        except NotImplementedError as error:
            raise TypeError(
                f"expected conditional(y) to return a distribution with {method}, got "
                f"{type(example).__name__} without; write its method {method}"
            ) from error
        except (RuntimeError, IndexError) as error:
            lead = tuple(y.shape[:2])
            raise ValueError(
                f"expected conditional(y) to return a distribution with {method} for y "
                f"of shape {tuple(y.shape)}, got {type(error).__name__}: {error}; give "
                f"all parts of {type(example).__name__} the axes {lead} of y, as in "
                "Categorical(weights.expand(y.shape[:-1] + weights.shape))"
            ) from error
    if support_of(example).is_discrete:
        raise ValueError(
            f"expected a density p(z|y), got {type(example).__name__}, a discrete "
            "distribution; z is a point of R^n or of a part of it"
        )
    _check_shape(example, y, y.shape[:2], dim)
    z = example.sample()
    with unvalidated():
        together = example.log_prob(z).flatten()
        rows, points = y.flatten(0, 1).split(1), z.flatten(0, 1).split(1)
        each = [_called(conditional, row) for row in rows]
        _check_shape(each[0], rows[0], rows[0].shape[:1], dim)
        alone = [p.log_prob(point) for p, point in zip(each, points, strict=True)]
        _check_rows(torch.cat(alone), together)
        more = _called(conditional, y.unsqueeze(0))  # with one more axis
        _check_shape(more, y.unsqueeze(0), (1, *y.shape[:2]), dim)
        _check_rows(more.log_prob(z.unsqueeze(0)).flatten(), together)
    return example


def _called(conditional: Conditional, y: Tensor) -> TorchDistribution:
    """p(z|y), or an error that names the shape of y."""
    try:
        return conditional(y)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        if reason.startswith("expected"):
            raise
        raise ValueError(
            f"expected conditional(y) to take y of shape {tuple(y.shape)}, got "
            f"{type(error).__name__}: {reason}; y has any number of axes in front of "
            "its event: count axes from the last, give networks as many inputs, and "
            "take LayerNorm, not batch normalisation, which mixes items"
        ) from error


def _check_shape(
    found: TorchDistribution, y: Tensor, batch_shape: tuple[int, ...], dim: int
) -> None:
    """Raise an error unless p(z|y) has the batch axes of y and the event (dim,)."""
    event, batch = tuple(found.event_shape), tuple(found.batch_shape)
    if event != (dim,):
        hint = f"build prior and conditional with the same dim, here {dim}"
        if not event and batch[-1:] == (dim,):
            hint = "append .to_event(1), as in dist.Laplace(y, 0.3).to_event(1)"
        raise ValueError(
            f"expected conditional(y) with event shape ({dim},) for y of shape "
            f"{tuple(y.shape)}, got event shape {event} and batch shape {batch}; {hint}"
        )
    if batch != batch_shape:
        raise ValueError(
            f"expected conditional(y) with batch shape {tuple(batch_shape)} for y of "
            f"shape {tuple(y.shape)}, got {batch}; let every parameter follow the "
            "leading axes of y, and call .to_event(1) once"
        )


def _check_rows(found: Float[Tensor, " n"], expected: Float[Tensor, " n"]) -> None:
    """Raise an error unless log p(z|y) is the same for y alone and among others."""
    if torch.allclose(found, expected, 1e-3, 1e-3):
        return
    worst = int((found - expected).abs().nan_to_num(math.inf).argmax())
    raise ValueError(
        "expected the same log p(z|y) for y alone and among others, got "
        f"{found[worst].item():.4g} and {expected[worst].item():.4g}; in front of its "
        "event y has any number of axes: count axes from the last, as in "
        "y.softmax(-1), not from the first; networks that draw random numbers or mix "
        "items, as dropout and batch normalisation do, give no density: use "
        "LayerNorm, or none"
    )


def check_parameters(name: str, part: Any, y: Tensor, density: Conditional) -> None:
    """Raise an error if a density depends on parameters outside a module."""
    with torch.enable_grad():
        p = density(y)
        log_prob = p.log_prob(p.sample())
    if log_prob.requires_grad and not isinstance(part, nn.Module):
        raise ValueError(
            f"expected a module for {name} with parameters, got one of type "
            f"{type(part).__name__}, whose parameters would not be trained, moved "
            "or saved; write an nn.Module whose forward returns the distribution"
        )


def check_sites(
    hypers: Sequence[Positive], content: Content, conditional: Conditional, y: Tensor
) -> None:
    """Raise an error for names that no site can have, or for sites of another kind."""
    names = [h.name for h in hypers]
    wrong = {n for n in names if n in RESERVED or names.count(n) > 1}
    if wrong:
        raise ValueError(
            "expected random hyper-parameters with a name of their own, got "
            f"{', '.join(map(repr, sorted(wrong)))}, taken or twice; name each: "
            "ps.hyper.Positive(distribution, name)"
        )
    with poutine.trace() as trace:
        content()
        _called(conditional, y)
    sites = [k for k, site in trace.trace.nodes.items() if site["type"] == "sample"]
    if sites:
        raise ValueError(
            f"expected p(y) and p(z|y) without pyro.sample, got the site {sites[0]!r}, "
            "which would be drawn anew at every call; make it a hyper-parameter: "
            "self.scale = ps.hyper.Positive(distribution, name), and call self.scale()"
        )


@torch.no_grad()
def check_hypers(
    hypers: Sequence[Positive],
    content: Content,
    conditional: Callable[[Drawn], Conditional],
    y: Float[Tensor, "n *event"],
) -> None:
    """Raise an error if p(y) and p(z|y) do not take drawn hyper-parameters.

    The densities for three values together are those for each alone, and differ.
    """

    def log_probs(drawn: Drawn, y: Tensor, z: Tensor) -> Tensor:
        log_content = content(**drawn).log_prob(y)
        return torch.stack([log_content, conditional(drawn)(y).log_prob(z)])

    for h in hypers:
        drawn, found = h.value.sample((3, 1)), None
        with unvalidated():
            z = conditional({})(y).sample()
            each = [log_probs({h.name: value[0]}, y, z) for value in drawn]
            alone, wide = (
                torch.stack(each, 1),
                (y.expand(3, *y.shape), z.expand(3, *z.shape)),
            )
            try:
                found = log_probs({h.name: drawn}, *wide)
                problem = "other densities than for each value alone"
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                problem = str(error).partition("\n")[0]
        if found is None or not torch.allclose(
            found, alone, 1e-3, 1e-3, equal_nan=True
        ):
            shape = tuple(h.column(drawn).shape)
            raise ValueError(
                f"expected p(y) and p(z|y) to take values of {h.name!r}, {shape}, "
                f"for three sets of {len(y)} items, got {problem}; in forward(self, y) "
                f"the hyper-parameter, called, has shape (*batch, {shape[-1]}), as an "
                f"argument of that name has, forward(self, y, {h.name}): let it "
                "broadcast with y, and before a matrix add one more axis, [..., None]"
            )
        if all(torch.allclose(value, alone[:, 0], equal_nan=True) for value in each):
            raise ValueError(
                f"expected {h.name!r} to change p(y) or p(z|y), got the same densities "
                "for three values; call the hyper-parameter in forward, not before, or "
                f"take it as an argument: forward(self, y, {h.name})"
            )


@torch.no_grad()
def is_factorised(
    conditional: Conditional, content: TorchDistribution, y: Float[Tensor, "n *k"]
) -> bool:
    """Whether p(y) and p(z|y) are products over the dimensions.

    Some coordinates of y are changed, to any value of a discrete y or to numbers within
    and far outside of p(y), and each in turn to NaN, which spreads even through zero
    weights. The densities of other dimensions must not change.
    """
    example = conditional(y)
    if not (_is_product(content) and _is_product(example)):
        return False
    if content.event_shape != example.event_shape:
        return False
    (dim,) = content.event_shape
    if dim == 1:
        return True
    many = max(len(y), min(MOST_CHANGES, CHANGED_NUMBERS // dim))
    one, other = _anywhere(content, many), _anywhere(content, many)
    some = torch.rand(one.shape, device=one.device) < 0.5
    changes = [(one, other, some)]
    if y.is_floating_point():
        itself = torch.eye(dim, dtype=torch.bool, device=y.device)
        changes += [(y[:1].expand(dim, dim), torch.full_like(y[:1], torch.nan), itself)]
    with unvalidated():
        for before, new, changed in changes:
            try:
                z = dimensions(conditional(content.sample((len(before),)))).sample()
                after = dimensions(conditional(torch.where(changed, new, before)))
                pair = dimensions(conditional(before)).log_prob(z), after.log_prob(z)
            except (IndexError, RuntimeError):  # y is an index
                return False
            # Of the same shape, since rounding may differ between shapes.
            if not bool((torch.isclose(*pair, 0, 0, equal_nan=True) | changed).all()):
                return False
    return True


def _anywhere(content: TorchDistribution, n: int) -> Float[Tensor, "n k"]:
    """Values of a product p(y), all alike often, or numbers up to a thousand widths."""
    base, y = dimensions(content), content.sample((n,))
    if support_of(base).is_discrete:
        values = values_of(base).flatten()
        return values[torch.randint(len(values), y.shape, device=y.device)]
    transform = from_real(base)
    u = transform.inv(y)
    middle = u.median(0).values
    width = (u - middle).abs().median(0).values
    away = torch.rand_like(u).sub(0.5).sign() * 2 ** (10 * torch.rand_like(u))
    far = torch.rand_like(u) < 0.5
    return torch.where(far, transform(middle + width * away), y)


def check_integral(
    rule: Integral, content: TorchDistribution, factorised: bool
) -> None:
    """Raise an error for a rule of integration that does not fit p(y) and p(z|y)."""
    discrete: Any = support_of(content).is_discrete
    if discrete and not factorised:
        states_of(content)  # an error if they are too many
    wrong = (Quadrature, ImportanceSampling) if discrete else Enumeration
    if isinstance(rule, wrong):
        kind = "a discrete p(y), a sum," if discrete else "a density p(y),"
        raise ValueError(
            f"expected an integral for {kind} got {rule}; leave integral out, which "
            "takes one that fits"
        )
    if isinstance(rule, Enumeration) and rule.each and not factorised:
        raise ValueError(
            "expected p(y) and p(z|y) to be products over the dimensions for "
            "Enumeration(each=True), got a dependence between them; write "
            "Enumeration(), the sum over all values of y"
        )


def _is_product(distribution: Distribution) -> bool:
    """Whether it is one of independent numbers, or of one number."""
    each = dimensions(distribution)
    return each is not None and support_of(each).event_dim == 0
