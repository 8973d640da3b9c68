r"""A prior with any p(y) and any conditional density p(z|y)."""

import copy
import math
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro import poutine
from pyro.distributions import (
    Categorical,
    Delta,
    MaskedDistribution,
    Normal,
    TorchDistribution,
    validation_enabled,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, biject_to
from torch.nn.functional import normalize

from ..arguments import instance, whole
from ..distributions.content import ContentPosterior, Integral, SharedContent
from ..distributions.supports import (
    alike,
    dimensions,
    from_real,
    is_sphere,
    space_of,
    states_of,
    support_of,
    values_of,
)
from ..hyper import Positive, mapped, random_in
from ..special import effective_sample_size
from .base import Drawn, Pairs, Points, Present, Prior, Views, check_dim
from .integrals import Enumeration, ImportanceSampling, Quadrature, poor

__all__ = ["Custom"]

RESERVED = {"x", "y", "z", "item", "views", "present", "component", "particles"}
RESERVED |= {"self"}  # of Python
MASS_ERROR = 0.05  # nats: of p(y) by quadrature, without views to narrow it
MOST_CHANGES, CHANGED_NUMBERS = 4096, 2**20  # of y, to find out what depends on it
KERNEL_NUMBERS = 2**18  # numbers in the pairs of views of one block of the kernel

Conditional = Callable[..., TorchDistribution]


class Custom(Prior):
    r"""A prior with any p(y) and any p(z|y), of which y is integrated out.

    .. math:: p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

    A discrete y with finitely many values is summed out exactly, by `Enumeration`.
    Where p(y) and p(z|y) are products over the dimensions the integral is deterministic
    `Quadrature`, else `ImportanceSampling`. Where none is accurate, make the content
    a latent variable with a guide: ``Joint(…, content=ps.guides.Content(dim))``.

    Random hyper-parameters, a `ps.hyper.Positive` with a distribution, may be anywhere
    in the modules of p(z|y) and p(y). Called, one gives the value that is drawn, with a
    last axis of length one for the dimensions (or that of the values for each
    dimension); a `forward` with an argument of its name is given the same value.

    Arguments:
        conditional: p(z|y): a function of y with shape (\*batch, \*event of y) that
            returns a Pyro distribution with event shape (dim,). With parameters it is
            a module.
        dim: The dimension of z.
        y_prior: p(y): a Pyro distribution, or a module that returns one; by default
            standard normal in dim dimensions. A density has event shape (k,) for any k;
            a discrete p(y) event shape () or (k,) and at most 4,096 values.
        integral: The rule of integration over y; None chooses as above.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), dim=10)
        >>> means = torch.randn(3, 10)  # of three classes
        >>> classes = dist.Categorical(torch.ones(3))
        >>> prior = Custom(
        ...     lambda y: dist.Normal(means[y], 0.3).to_event(1), 10, y_prior=classes
        ... )

    Raises:
        TypeError: If conditional is not a function, or returns no distribution.
        ValueError: If its event or batch shape is wrong, if it has parameters outside a
            module, if p(y) does not fit, or if a random hyper-parameter cannot be a
            site: `pyro.sample` in a module, two of one name, or one without effect.
    """

    one: Tensor
    watched: Tensor
    integral: Integral

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
        # In training how many items had a small effective sample size, of how many.
        self.register_buffer("watched", torch.zeros(2), persistent=False)
        # The checks leave the state of the random generator unchanged.
        with torch.random.fork_rng(devices=[]):
            content = self.content()
            y = _content_sample(content, dim)
            _check_sites(self, y[:3])
            given = self._conditional({})
            self._example = _example_of(given, y[:3], dim)
            _check_parameters(self, given, content)
            _check_hypers(self, y[:5, 0])
            self.discrete = support_of(content).is_discrete
            self.factorised = _is_factorised(given, content, y[:, 0])
            self.alike = not self.discrete and alike(content, self._example)
            self.integral = integral or self._default_integral(given(y[:, :1]))
        _check_integral(self, content)

    def _default_integral(self, views: TorchDistribution) -> Integral:
        if self.discrete:
            return Enumeration(self.factorised)
        if self.factorised and self._mass_is_found(views):
            return Quadrature()
        return ImportanceSampling()

    @torch.no_grad()
    def _mass_is_found(self, views: TorchDistribution) -> bool:
        """Whether quadrature integrates p(y) to one; of `Independent` not examined."""
        if isinstance(self.content(), Independent):
            return True
        self.integral, z = Quadrature().finer(), views.sample()
        none = torch.zeros(z.shape[:2], dtype=torch.bool, device=z.device)
        log_mass = self(1, present=none).nodes(z)[1].logsumexp(0)
        return bool((log_mass.abs() < MASS_ERROR).all())

    def _shown(self) -> list[str]:
        parts = {"conditional": self.conditional, "y_prior": self.y_prior}
        names = {
            name: getattr(part, "__name__", type(part).__name__)
            for name, part in parts.items()
            if part is not None and not isinstance(part, nn.Module)
        }
        shown = [f"{name}={kind}" for name, kind in names.items()]
        hidden = "discrete", "factorised", "alike"
        own = [text for text in super()._shown() if not text.startswith(hidden)]
        return [*own, *shown, f"integral={self.integral}"]

    def forward(
        self,
        views: int,
        *,
        present: Present = None,
        component: Int[Tensor, "*batch"] | None = None,
        **drawn: Tensor,
    ) -> SharedContent:
        """Return the distribution of the views, y integrated out.

        Arguments:
            component: Known values of a discrete y, as rows of `states`, which are
                conditioned on; -1 where it is unknown and summed out.

        Drawn values of random hyper-parameters reach p(z|y) and p(y) by name.
        """
        views = whole("views", views)
        if component is not None:
            self.component()  # an error if p(y) has no classes
        shapes = [h.batch_of(drawn[h.name]) for h in self.random() if h.name in drawn]
        return SharedContent(
            self._conditional(drawn),
            self.content(**drawn),
            views,
            self.integral,
            example=self._example,
            factorised=self.factorised,
            batch_shape=torch.broadcast_shapes(*shapes),
            present=present,
            known=component,
            watch=self.watched if self.training else None,
        )

    def content(self, **drawn: Tensor) -> TorchDistribution:
        """Return p(y)."""
        if isinstance(self.y_prior, nn.Module):
            content: Any = self._with(self.y_prior, drawn)()
            return content
        if self.y_prior is not None:
            return self.y_prior
        one = self.one.expand(self.known_dim())
        return Normal(torch.zeros_like(one), one, validate_args=False).to_event(1)

    def given(self, y: Tensor, **drawn: Tensor) -> TorchDistribution:
        """Return p(z|y), event shape (dim,)."""
        with validation_enabled(False):
            return self._conditional(drawn)(y)

    def on_support(self, z: Tensor) -> Tensor:
        """Map the output of an encoder to the support of p(z|y)."""
        if is_sphere(support_of(self._example)):
            return normalize(z, dim=-1)
        to_support = biject_to(support_of(self._example))
        needed = to_support.inverse_shape(self._example.event_shape)[-1]
        if z.shape[-1] != needed:
            raise ValueError(
                f"expected {needed} numbers for a z with dim {self.dim} on "
                f"{space_of(support_of(self._example))}, got {z.shape[-1]}; give the "
                f"network {needed} outputs"
            )
        return to_support(z)

    def centre(self, mean: Tensor) -> Tensor:
        """Normalise on a sphere; elsewhere the mean is on the support already."""
        on_sphere = is_sphere(support_of(self._example))
        return normalize(mean, dim=-1) if on_sphere else mean

    def random(self) -> Iterator[Positive]:
        """The random hyper-parameters of p(z|y) and p(y)."""
        return random_in(self)

    def states(self) -> Float[Tensor, "state *event"]:
        """All values of a discrete y.

        Raises:
            ValueError: If p(y) is not discrete.
        """
        return states_of(self.content())

    def component(self) -> Categorical:
        """Return p(y) of a discrete y over its `states`, as classes.

        Raises:
            ValueError: If p(y) is not discrete, has random hyper-parameters, or is
                summed out separately in each dimension.
        """
        if not self.discrete or self.integral.each or any(random_in(self.y_prior)):
            raise ValueError(
                "expected a discrete p(y) without random hyper-parameters for classes, "
                f"got {self!r}; give y_prior=dist.Categorical(…), without which there "
                "are no classes"
            )
        log_prob = self.content().log_prob(self.states())
        return Categorical(logits=log_prob, validate_args=False)

    def responsibilities(self, z: Views, present: Present = None) -> Categorical:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)` over the `states` of y."""
        self.component()
        share = self.posterior_y(z, present).log_share
        return Categorical(logits=share.movedim(0, -1), validate_args=False)

    def posterior_y(self, z: Views, present: Present = None) -> ContentPosterior:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, event shape (dim,)."""
        return self.of(z, present).posterior(z)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        .. math:: p(z' \mid z) = \frac{\int p(y) p(z \mid y) p(z' \mid y) \, dy}
            {\int p(y) p(z \mid y) \, dy}

        With `plug_in`, :math:`p(z' = b \mid y = a)`. Without, every pair needs an
        integral: feasible for hundreds of views, not for thousands.

        Raises:
            TypeError: With `plug_in`, if y is discrete, or on another support than z.
        """
        for name, points in (("a", a), ("b", b)):
            if points.ndim < 2 or points.shape[-1] != self.dim:
                raise ValueError(
                    f"expected {name} with shape (*batch, point, {self.dim}), got "
                    f"{tuple(points.shape)}; the last axis is the dimension of z"
                )
        if plug_in:
            if not self.alike:
                raise TypeError(
                    "expected p(y) on the support of z where a view replaces y, as for "
                    "plug_in=True, KernelDensity and other entropies over pairs, got "
                    f"{self.content()} for z in {self.dim} dimensions; bring a p(y) "
                    "over points like z, or leave plug_in out and take an entropy "
                    "without a kernel, such as LogDeterminant()"
                )
            with validation_enabled(False):
                a, b = torch.broadcast_tensors(a.unsqueeze(-2), b.unsqueeze(-3))
                return self._conditional({})(a).log_prob(b)
        rows = max(1, KERNEL_NUMBERS // max(1, 2 * b.numel()))
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

    def remark(self) -> str | None:
        """A warning, if importance sampling was poor in the steps since the last call.

        It is poor for an item whose effective sample size is below the rule's `least`:
        log p is then too low by about 1 / (2 ESS) nats.
        """
        few, items = self.watched.tolist()
        self.watched.zero_()
        least = getattr(self.integral, "least", 0.0)
        return poor(least, few / items) if few else None

    def _conditional(self, drawn: Drawn) -> Conditional:
        """p(z|y), a function of y, for drawn hyper-parameters."""
        return self._with(self.conditional, drawn)

    def _with(self, part: Callable[..., Any], drawn: Drawn) -> Callable[..., Any]:
        """A part in which random hyper-parameters have drawn values.

        A value is given an axis for the dimensions where it is one number.
        """
        hypers = list(random_in(part))
        if not hypers:
            return part
        taken = signature(getattr(part, "forward", part)).parameters.values()
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken)
        named = [h for h in hypers if any_name or h.name in {p.name for p in taken}]
        columns = {h.name: h.column(drawn[h.name]) for h in hypers if h.name in drawn}

        def call(*arguments: Tensor) -> Any:
            with self.at(**columns):
                values = {h.name: Positive.forward(h) for h in named}
                return part(*arguments, **values)

        return call

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Custom":
        """Move and convert also the tensors of a p(y) that is not a module."""
        super()._apply(fn, recurse)
        if isinstance(self.y_prior, Distribution):
            self.y_prior = mapped(self.y_prior, fn)
        return self


def _content_sample(content: TorchDistribution, dim: int) -> Float[Tensor, "n 2 *k"]:
    """Samples of p(y), after checks of its class and shapes."""
    if not isinstance(content, Distribution):
        raise ValueError(
            "expected y_prior to be a Pyro distribution, or a module that returns one, "
            f"got {type(content).__name__}; for instance "
            f"dist.Laplace(0.0, 1.0).expand([{dim}]).to_event(1)"
        )
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
    try:
        y = content.sample((16, 2))
        rows = content.log_prob(y.flatten(0, 1)).view(16, 2)
        proper = torch.allclose(content.log_prob(y), rows)
    except (NotImplementedError, RuntimeError):
        proper = False
    if not proper or isinstance(inner, Delta):
        raise ValueError(
            "expected y_prior with samples and a normalised density, with any number "
            f"of axes in front of an event, got {type(inner).__name__}; for a fixed y "
            "write it into p(z|y), for an improper one take a wide normal"
        )
    return y


@torch.no_grad()
def _example_of(
    conditional: Conditional, y: Float[Tensor, "n 2 *k"], dim: int
) -> TorchDistribution:
    """p(z|y) of some y, after checks of its class and shapes, and of each y alone."""
    example = _called(conditional, y)
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
    if support_of(example).is_discrete:
        raise ValueError(
            f"expected a density p(z|y), got {type(example).__name__}, a discrete "
            "distribution; z is a point of R^n or of a part of it"
        )
    _check_shape(example, y, y.shape[:2], dim)
    z = example.sample()
    with validation_enabled(False):
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


def _check_parameters(
    prior: Custom, conditional: Conditional, content: TorchDistribution
) -> None:
    """Raise an error if a density depends on parameters outside a module."""
    with torch.enable_grad():
        y = content.sample((1,))
        views = conditional(y)
        log_probs = {
            "conditional": (prior.conditional, views.log_prob(views.sample())),
            "y_prior": (prior.y_prior, content.log_prob(y)),
        }
    for name, (part, log_prob) in log_probs.items():
        if log_prob.requires_grad and not isinstance(part, nn.Module):
            raise ValueError(
                f"expected a module for {name} with parameters, got one of type "
                f"{type(part).__name__}, whose parameters would not be trained, moved "
                "or saved; write an nn.Module whose forward returns the distribution"
            )


def _check_sites(prior: Custom, y: Tensor) -> None:
    """Raise an error for names that no site can have, or for sites of another kind."""
    names = [h.name for h in prior.random()]
    wrong = {n for n in names if n in RESERVED or names.count(n) > 1}
    if wrong:
        raise ValueError(
            "expected random hyper-parameters with a name of their own, got "
            f"{', '.join(map(repr, sorted(wrong)))}, taken or twice; name each: "
            "ps.hyper.Positive(distribution, name)"
        )
    with poutine.trace() as trace:
        prior.content()
        _called(prior._conditional({}), y)
    sites = [k for k, site in trace.trace.nodes.items() if site["type"] == "sample"]
    if sites:
        raise ValueError(
            f"expected p(y) and p(z|y) without pyro.sample, got the site {sites[0]!r}, "
            "which would be drawn anew at every call; make it a hyper-parameter: "
            "self.scale = ps.hyper.Positive(distribution, name), and call self.scale()"
        )


@torch.no_grad()
def _check_hypers(prior: Custom, y: Float[Tensor, "n *event"]) -> None:
    """Raise an error if p(y) and p(z|y) do not take drawn hyper-parameters.

    The densities for three values together are those for each alone, and differ.
    """
    for h in prior.random():
        drawn, found = h.value.sample((3, 1)), None
        with validation_enabled(False):
            z = prior._conditional({})(y).sample()
            each = [_log_probs(prior, {h.name: value[0]}, y, z) for value in drawn]
            alone, wide = (
                torch.stack(each, 1),
                (y.expand(3, *y.shape), z.expand(3, *z.shape)),
            )
            try:
                found = _log_probs(prior, {h.name: drawn}, *wide)
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


def _log_probs(prior: Custom, drawn: Drawn, y: Tensor, z: Tensor) -> Tensor:
    """log p(y) and log p(z|y), stacked, for drawn hyper-parameters."""
    log_content = prior.content(**drawn).log_prob(y)
    return torch.stack([log_content, prior._conditional(drawn)(y).log_prob(z)])


@torch.no_grad()
def _is_factorised(
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
    with validation_enabled(False):
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


def _check_integral(prior: Custom, content: TorchDistribution) -> None:
    """Raise an error for a rule of integration that does not fit p(y) and p(z|y)."""
    rule = prior.integral
    if prior.discrete and not prior.factorised:
        states_of(content)  # an error if they are too many
    wrong = (Quadrature, ImportanceSampling) if prior.discrete else Enumeration
    if isinstance(rule, wrong):
        kind = "a discrete p(y), a sum," if prior.discrete else "a density p(y),"
        raise ValueError(
            f"expected an integral for {kind} got {rule}; leave integral out, which "
            "takes one that fits"
        )
    if isinstance(rule, Enumeration) and rule.each and not prior.factorised:
        raise ValueError(
            "expected p(y) and p(z|y) to be products over the dimensions for "
            "Enumeration(each=True), got a dependence between them; write "
            "Enumeration(), the sum over all values of y"
        )


def _is_product(distribution: Distribution) -> bool:
    """Whether it is one of independent numbers, or of one number."""
    each = dimensions(distribution)
    return each is not None and support_of(each).event_dim == 0
