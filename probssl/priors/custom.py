r"""A prior with any p(y) and any conditional density p(z|y)."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions import (
    Categorical,
    Normal,
    TorchDistribution,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, biject_to
from torch.nn.functional import normalize

from ..arguments import instance, whole
from ..distributions.content import ContentPosterior, Integral, Rows, SharedContent
from ..distributions.supports import (
    alike,
    common_support,
    ends_of,
    has_jumps,
    is_real,
    is_sphere,
    samples_of_states,
    space_of,
    states_of,
    support_of,
    within,
)
from ..hyper import Positive, mapped, random_in
from ..runtime.randomness import restored_randomness
from ..runtime.validation import unvalidated
from ..special import effective_sample_size
from ._examined import (
    Conditional,
    check_hypers,
    check_integral,
    check_parameters,
    check_sites,
    content_sample,
    example_of,
    is_factorised,
)
from ._unconstrained import is_sparse
from .base import Drawn, Pairs, Points, Present, Prior, Views, check_dim
from .integrals import (
    EXAMINED,
    LARGEST_ERROR,
    Enumeration,
    ImportanceSampling,
    Quadrature,
    inaccurate,
    poor,
)

__all__ = ["Custom"]

MASS_ERROR = 0.05  # nats: of p(y) by quadrature, without views to narrow it
STARTS = 16  # of importance sampling where draws of the prior have many modes
SAMPLED = 32  # items drawn to examine importance sampling
MOVES = (0.1, 1.0)  # standard deviations of changes of the parameters
ACCURATE = 0.01  # nats per item, of draws of the prior: quadrature is chosen
KERNEL_NUMBERS = 2**18  # numbers in the pairs of views of one block of the kernel


class Custom(Prior):
    r"""A prior with any p(y) and any p(z|y), of which y is integrated out.

    .. math:: p(z_1, \dots, z_V) = \int p(y) \prod_v p(z_v \mid y) \, dy

    A discrete y with finitely many values is summed out exactly, by `Enumeration`.
    Where p(y) and p(z|y) are products over the dimensions the integral is deterministic
    `Quadrature`, with more panels where draws of the prior have p(y|z) with several
    peaks, else or where that is not accurate `ImportanceSampling`. Where none is, make
    the content a latent variable: ``Joint(…, content=ps.guides.Content(dim))``. A Beta
    or Dirichlet p(y) of concentration below 0.3 has mass at its ends that single
    precision does not resolve, nor the estimate of the error; ``double()`` helps.

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
    sparse = True  # whether p(y) has mass where y rounds to an end of its support
    _remarks = 0  # how often `remark` was called

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
        with restored_randomness():
            content = self.content()
            y = content_sample(content, dim)
            given, hypers = self._conditional({}), list(self.random())
            check_sites(hypers, self.content, given, y[:3])
            self._example = example_of(given, y[:3], dim)
            check_parameters("conditional", conditional, y[:1, 0], given)
            check_parameters("y_prior", y_prior, y[:1, 0], lambda _: content)
            check_hypers(hypers, self.content, self._conditional, y[:5, 0])
            self.discrete = support_of(content).is_discrete
            with unvalidated():
                every = given(samples_of_states(content) if self.discrete else y)
            own = conditional if isinstance(conditional, nn.Module) else nn.Module()
            free = any(p.requires_grad for p in own.parameters())
            self._space = common_support(every, free)
            # Whether the support of p(z|y) has ends that differ by y, or are learned.
            self.moves = self._space[1] and is_real(self._space[0])
            jumps = self.moves and not self.discrete and has_jumps(every)
            self.factorised = self._is_factorised(y[:, 0])
            self.alike = not self.discrete and alike(content, self._example)
            # A learned p(y) may become sparse.
            learned = isinstance(y_prior, nn.Module) and y_prior.state_dict()
            self.sparse = not self.discrete and (
                bool(learned) or is_sparse(content, y.new_empty(0))
            )
            self.integral = integral or self._default_integral(given(y[:, :1]))
        check_integral(self.integral, content, self.factorised)
        if jumps:
            warnings.warn(
                "p(z|y) jumps at an end of its support, which y or learning moves: "
                "log p is right, its gradient lacks the term of that end, and so a fit "
                "goes astray; take noise whose density is 0 at its ends, such as "
                "Gamma(3.0, rate) in place of Exponential(rate)",
                stacklevel=3,
            )

    def _default_integral(self, views: TorchDistribution) -> Integral:
        if self.discrete:
            return Enumeration(self.factorised)
        if self.factorised and self._mass_is_found(views):
            error = []
            for rule in (Quadrature(), Quadrature(48)):
                self.integral = rule
                error.append(float(self._error_at_draws().max()))
                if error[-1] < ACCURATE:
                    return rule
            if error[0] < LARGEST_ERROR:
                return Quadrature()
            self.integral = Quadrature(128, peaks=8)
            if float(self._error_at_draws().mean()) < ACCURATE:
                return self.integral
        sampling = ImportanceSampling()
        self.integral = sampling
        return ImportanceSampling(starts=STARTS) if self._missed(sampling) else sampling

    @torch.no_grad()
    def _is_factorised(self, y: Tensor) -> bool:
        """Whether p(y) and p(z|y) are products over the dimensions.

        Also after some changes of the parameters: learning may move weights from zero.
        """
        parts = (self.conditional, self.y_prior)
        modules = [part for part in parts if isinstance(part, nn.Module)]
        moved = [p for m in modules for p in m.parameters() if p.requires_grad]
        kept = [p.clone() for p in moved]
        if not is_factorised(self._conditional({}), self.content(), y):
            return False
        try:
            for size in MOVES if moved else ():
                for p, before in zip(moved, kept, strict=True):
                    p.copy_(before + size * torch.randn_like(before))
                # Changed parameters may have no density; then nothing is learned.
                with suppress(Exception), unvalidated():
                    if not is_factorised(self._conditional({}), self.content(), y):
                        return False
            return True
        finally:
            for p, before in zip(moved, kept, strict=True):
                p.copy_(before)

    @torch.no_grad()
    def _check_unchanged(self) -> None:
        """Raise a ValueError if p(z|y) has another structure or support than before."""
        cuda = [self.one.device] if self.one.is_cuda else []
        with restored_randomness(cuda), unvalidated():
            given, content = self._conditional({}), self.content()
            y = content.sample((16,))
            every = given(samples_of_states(content) if self.discrete else y)
            now = ends_of(common_support(every, free=False)[0])
            split = not self.factorised or is_factorised(given, content, y)
        before = ends_of(self._space[0])
        same = all(_alike(*pair) for pair in zip(before, now, strict=True))
        if not split or not (same or self.moves):
            changed = "the dimensions are independent given y"
            if split:
                changed = f"z lies between {before[0]} and {before[1]}"
            raise ValueError(
                f"expected p(z|y) as it was when the prior was built, where {changed}, "
                "got another one: parameters or buffers have changed since; build "
                "ps.priors.Custom(…) anew with these"
            )

    def check(self) -> None:
        """Raise a ValueError for what the prior was not built for.

        That is another support or dependence of dimensions than then, or quadrature
        that is wrong for draws of the prior itself.
        """
        if self.one.is_meta:
            return
        self._check_unchanged()
        if isinstance(self.integral, Quadrature):
            error = self._error_at_draws()
            if float(error.mean()) > LARGEST_ERROR:
                raise ValueError(inaccurate(self.integral, error))

    def _missed(self, rule: ImportanceSampling) -> str | None:
        """A warning, if the rule misses modes for items drawn from the prior."""
        if rule.proposal is not None:
            return None
        with self._views_at_draws(SAMPLED) as (views, z), unvalidated():
            return rule.missed(views, z, rule.draw(views, z)[1]) if len(z) else None

    @contextmanager
    def _views_at_draws(self, n: int) -> Iterator[tuple[SharedContent, Views]]:
        """The distribution of two views, and so many items drawn from it.

        Random hyper-parameters are drawn for each item from their guides.
        """
        cuda = [self.one.device] if self.one.is_cuda else []
        with torch.no_grad(), restored_randomness(cuda):
            drawn = {h.name: h.draw((n,)) for h in self.random()}
            z = self(2, **drawn).sample(() if drawn else (n,))
            some = z.flatten(1).isfinite().all(1)  # tails may leave the dtype
            few = {name: value[some] for name, value in drawn.items()}
            yield self(2, **few), z[some]

    def _error_at_draws(self) -> Float[Tensor, " n"]:
        """The error of quadrature for two views of some items, drawn from the prior."""
        n = max(1, EXAMINED // self.known_dim())
        with self._views_at_draws(n) as (views, z):
            return self._error(views, z).nan_to_num(math.inf)

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
        hidden = "moves", "discrete", "factorised", "alike", "sparse"
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
        hypers = [h for h in self.random() if h.name in drawn]
        shapes = [h.batch_of(drawn[h.name]) for h in hypers]

        def rebuilt(rows: Rows) -> tuple[Conditional, TorchDistribution]:
            axes = {h.name: 0 if h.size is None else 1 for h in hypers}
            few = {name: rows(drawn[name], count) for name, count in axes.items()}
            return self._conditional(few), self.content(**few)

        return SharedContent(
            self._conditional(drawn),
            self.content(**drawn),
            views,
            self.integral,
            example=self._example,
            space=self._space,
            factorised=self.factorised,
            batch_shape=torch.broadcast_shapes(*shapes),
            present=present,
            known=component,
            watch=self.watched if self.training else None,
            sparse=self.sparse,
            rebuilt=rebuilt,
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
        with unvalidated():
            return self._conditional(drawn)(y)

    def on_support(self, z: Tensor) -> Tensor:
        """Map the output of an encoder to the support of p(z|y)."""
        support = self._space[0]
        if is_sphere(support):
            return normalize(z, dim=-1)
        to_support = biject_to(support)
        needed = to_support.inverse_shape(self._example.event_shape)[-1]
        if z.shape[-1] != needed:
            raise ValueError(
                f"expected {needed} numbers for a z with dim {self.dim} on "
                f"{space_of(support)}, got {z.shape[-1]}; give the "
                f"network {needed} outputs"
            )
        return to_support(z)

    def centre(self, mean: Tensor) -> Tensor:
        """Normalise on a sphere; elsewhere the mean is on the support already."""
        on_sphere = is_sphere(self._space[0])
        return normalize(mean, dim=-1) if on_sphere else mean

    @property
    def space(self) -> str:
        """That of p(z|y)."""
        return space_of(self._space[0])

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

    def responsibilities(
        self, z: Views, present: Present = None, **given: Tensor
    ) -> Categorical:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)` over the `states` of y."""
        self.component()
        share = self.posterior_y(z, present, **given).log_share
        return Categorical(logits=share.movedim(0, -1), validate_args=False)

    def posterior_y(
        self, z: Views, present: Present = None, **given: Tensor
    ) -> ContentPosterior:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, event shape (dim,)."""
        return self.of(z, present, **given).posterior(z)

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
            with unvalidated():
                a, b = torch.broadcast_tensors(a.unsqueeze(-2), b.unsqueeze(-3))
                views = self._conditional({})(a)
                found = views.log_prob(b)
                moves = self._space[1]
                return found.where(within(views, b), -math.inf) if moves else found
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
        instance("integral", self.integral, Quadrature, "Quadrature", hint)
        return self._error(self.of(z), z)

    def _error(self, views: SharedContent, z: Views) -> Float[Tensor, "*batch"]:
        rule: Any = self.integral
        views.integral = itself = copy.copy(rule)
        itself._calls = None
        coarse = views.log_prob(z)
        views.integral, views.sparse = rule.finer(), True
        return (views.log_prob(z) - coarse).abs()

    @torch.no_grad()
    def effective_sample_size(self, z: Views) -> Float[Tensor, "*batch"]:
        """Return the effective sample size of the proposal for p(y|z), by item.

        Raises:
            TypeError: If y is not integrated out by `ImportanceSampling`.
        """
        kind, hint = ImportanceSampling, "use quadrature_error(z)"
        rule = instance("integral", self.integral, kind, "ImportanceSampling", hint)
        with unvalidated():
            return effective_sample_size(rule.draw(self.of(z), z)[1])

    def remark(self) -> str | None:
        """A warning, if importance sampling was poor in the steps since the last call.

        It is poor for an item whose effective sample size is below the rule's `least`:
        log p is then too low by about 1 / (2 ESS) nats. Of a prior with parameters the
        rule is also examined at draws of the prior, in the first, second, fourth,
        eighth … call.
        """
        self._remarks += 1
        found = None
        trained = next(self.parameters(), None) is not None
        if trained and not self._remarks & (self._remarks - 1):
            if isinstance(self.integral, ImportanceSampling):
                found = self._missed(self.integral)
            try:
                self.check()
            except ValueError as error:
                found = str(error)
        if isinstance(self.integral, Quadrature):
            return found
        few, items = self.watched.tolist()
        self.watched.zero_()
        least = getattr(self.integral, "least", 0.0)
        return poor(least, few / items) if few else found

    def _conditional(self, drawn: Drawn) -> Conditional:
        """p(z|y), a function of y, for drawn hyper-parameters."""
        return self._with(self.conditional, drawn)

    def _with(self, part: Callable[..., Any], drawn: Drawn) -> Callable[..., Any]:
        """A part in which random hyper-parameters have drawn values.

        A value, also one that `at` has set, is given an axis for the dimensions where
        it is one number.
        """
        hypers = list(random_in(part))
        if not hypers:
            return part
        taken = signature(getattr(part, "forward", part)).parameters.values()
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken)
        named = [h for h in hypers if any_name or h.name in {p.name for p in taken}]
        columns = {
            h.name: h.column(value)
            for h in hypers
            if (value := drawn.get(h.name, h.drawn)) is not None
        }

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


def _alike(one: float | Tensor | None, other: float | Tensor | None) -> bool:
    """Whether two ends of a support are the same; None is no end."""
    if one is None or other is None:
        return one is other
    first, second = (torch.as_tensor(end).double().cpu() for end in (one, other))
    return bool(torch.isclose(first, second, rtol=1e-5, atol=1e-6).all())
