"""Laws of a prior over the views of an item."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from itertools import permutations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import biject_to

from ..arguments import instance, whole
from ..distributions.supports import is_sphere
from ..priors import Prior
from ..runtime.randomness import restored_randomness
from . import modules
from .densities import (
    LARGEST_ERROR,
    LEAST_DRAWS,
    independent,
    integral,
    mean_is_that_of_samples,
    samples_follow,
)
from .laws import (
    BARS,
    LawError,
    Trial,
    differs,
    examine,
    mean_of,
    precision,
    seeded,
    twin,
    unless_declined,
)
from .modules import SEED, Valued
from .proposals import (
    END_OF_REALS,
    LogDensity,
    Proposal,
    around,
    farthest,
    fitted,
)

__all__ = ["check_prior"]

ITEMS = 6  # in laws that are exact
CHEAP = 2  # times as many draws where densities are exact, in one law
CONTENTS = 20  # times as many draws of p(y), in one law
REPEATS = 10  # of a log-density that is an estimate


def check_prior(
    prior: Prior, *, views: int = 2, draws: int = 4000, seed: int = 0
) -> None:
    r"""Check a prior of your own against the laws of any density :math:`p(z_1..V)`.

    ======================  ======================================================
    shapes                  event (view, dim); batch of z, or as expanded
    support                 samples, and the outputs of `on_support` and `centre`, lie
                            on the support; points of R^n or of a sphere stay
    normalisation           the density integrates to one
    sampling                samples follow the density, also those of `rsample`, and
                            after `expand`, where items are independent
    exchangeability         the order of the views does not matter, unless it counts
                            (``prior.ordered``)
    marginals               integrating out a view gives the density of the others; of
                            views in order, the last one
    presence                `present` gives the density of the present views; of views
                            in order, the integral over the absent ones
    kernel                  log_kernel(a, b) = log p(a, b) − log p(a), and integrates
                            to one in b
    plug in                 so does the kernel with `plug_in`, which equals `given`
    pairs                   pmi(a, b) = log p(a, b) − log p(a) − log p(b), and its mean
                            over pairs is `mutual_information`
    balance                 balanced(z) = log p(z) − (V − g) log p(z_1) for the `gauge`
                            g, which is V, or V − 1 where p(z_1) is constant
    bayes                   log p(y) + Σ log p(z_v|y) − log p(y|z) = log p(z)
    contents                the mean of ∏ p(z_v|y) over draws of p(y) is p(z), and over
                            draws of p(y|k) it is p(z|k)
    components              p(k) p(z|k), summed over k, is p(z); its shares are the
                            responsibilities, and p(y|z) of a y that is k
    completion              `complete` draws absent views given present ones, and
                            `complete_mean` is their mean
    drawn hyper parameters  become the batch shape; `at` gives the same
    extremes                no NaN for huge, tiny and equal z, nor in gradients
    gradients               equal finite differences, in z and in parameters
    single precision        float32 stays float32, and close to float64
    device                  all tensors follow z to its device
    state                   `state_dict` does not change in evaluation mode
    saving                  saved and loaded, log_prob is the same
    tracing                 traced, value and gradients are the eager ones
    ======================  ======================================================

    A prior need not have everything. Under a flat p(y) (``prior.proper`` is False)
    there are no samples, one view has no density, and `marginals` replaces
    `normalisation`. `content`, `given` and `log_kernel` with `plug_in` may decline by
    an error "expected …"; their laws are then skipped.

    A log-density that is itself an estimate, as under `ImportanceSampling`, is repeated
    and judged by its own error bars.

    At the default draws, samples that are shifted by a tenth of their standard
    deviation, or 5 % too wide, are found where the density is exact.

    The check runs on a copy in float64. Integrals are importance-sampling estimates
    with heavy-tailed proposals, good for up to about 10 numbers, views times dim: build
    the class with a small dim.

    Arguments:
        prior: The prior, with a known dim.
        views: The number of views, for laws that use one number; under a flat p(y) at
            least two.
        draws: The number of draws of an estimate, at least 100; error bars are five
            standard errors.
        seed: The seed of all draws.

    Raises:
        LawError: If a law is broken; it names all that are.
        TypeError: If it is not a `Prior`.
        ValueError: If its dim is None, a number is out of range, or the support of
            p(z|y) moves with y.

    Example:
        >>> import probssl as ps
        >>> check_prior(ps.priors.Gaussian(dim=2, scale=0.3), draws=1000)
    """
    hint = "inherit from it, for its log_prob and log_kernel"
    instance("prior", prior, Prior, "a ps.priors.Prior", hint)
    prior.known_dim()
    if getattr(prior, "moves", False):
        raise ValueError(
            "expected a p(z|y) with one support for every y, on whose points laws are "
            "examined, got one whose ends move; compare log_prob with an integral over "
            "y of your own"
        )
    seed = whole("seed", seed, 0, 2**32 - 1)
    draws = whole("draws", draws, LEAST_DRAWS, hint="4000 are usual")
    least = 1 if prior.proper else 2
    case = _Case(twin(prior), whole("views", views, least), draws, {})
    _follows(case, type(prior).__name__)
    own = (shapes, support, normalisation, sampling, exchangeability, marginals)
    more = (presence, kernel, plug_in, pairs, balance, bayes, contents, components)
    last = (completion, drawn_hyper_parameters, extremes)
    laws: list[Trial] = [(law, lambda: case) for law in (*own, *more, *last)]
    laws += [(law, lambda: _valued(case, True)) for law in modules.UNTRACED]
    laws += [(modules.tracing, lambda: _valued(case, False))]
    examine(type(prior).__name__, laws, seed)


def _follows(case: "_Case", name: str) -> None:
    """Raise a LawError if tensors do not follow the prior to float64."""
    with restored_randomness(), precision(torch.float64):
        dtype = case.typical(1, case.views).dtype
    if dtype != torch.float64:
        fault = (
            f"expected samples in float64, as of prior.double(), got {dtype}; a tensor "
            "that no module holds, as one that a lambda uses, stays as it is and where "
            "it is: hold it in a module as self.register_buffer(name, tensor)"
        )
        raise LawError(name, [("single precision", fault)])


class _Case(NamedTuple):
    """A prior in float64, with settings.

    Arguments:
        fits: Proposals and samples by number of views, which several laws share.
    """

    prior: Prior
    views: int
    draws: int
    fits: dict[int, tuple[list[Proposal], Tensor]]

    @property
    def dim(self) -> int:
        return self.prior.known_dim()

    @property
    def counts(self) -> range:
        """The numbers of views that have a density, up to three."""
        return range(1 if self.prior.proper else 2, 4)

    def typical(self, n: int, views: int) -> Float[Tensor, "n view dim"]:
        """Views on the support: samples, or under a flat p(y) views near each other."""
        if self.prior.proper:
            return self.prior(views).sample((n,)).detach()
        y = torch.randn(n, 1, self.dim)
        return self.prior.on_support(y + 0.3 * torch.randn(n, views, self.dim))

    def log_prob(self, z: Tensor, present: Tensor | None = None) -> Tensor:
        """The log-density; an estimated one from the same draws each time."""
        seeded(SEED)
        return self.prior.log_prob(z, present).detach()

    def estimated(self) -> bool:
        """Whether the log-density is a random estimate."""
        z = self.typical(2, self.views)
        return not torch.equal(self.prior.log_prob(z), self.prior.log_prob(z))


def shapes(case: _Case) -> Iterator[str]:
    """Event (view, dim), and the batch shape of z or of the expansion."""
    for views in case.counts:
        views_of, event = case.prior(views), (views, case.dim)
        z = case.typical(ITEMS, views)
        if views_of.event_shape != event or views_of.batch_shape:
            found = tuple(views_of.batch_shape), tuple(views_of.event_shape)
            yield (
                f"expected batch shape () and event shape {event} from prior({views}), "
                f"got {found[0]} and {found[1]}; look at .to_event and at forward"
            )
            continue
        wide = z.expand(2, *z.shape)
        expanded = views_of.expand((ITEMS,))
        for name, value, shape in (
            ("log_prob(z)", case.log_prob(z), (ITEMS,)),
            ("log_prob(z) with two batch axes", case.log_prob(wide), (2, ITEMS)),
            ("expand(…).log_prob(z)", expanded.log_prob(z), (ITEMS,)),
        ):
            if tuple(value.shape) != shape:
                found = tuple(value.shape)
                yield f"expected shape {shape} of {name}, got {found}; look at .sum(-1)"
        for sample in ((), (4,), (2, 3)) if case.prior.proper else ():
            drawn, shape = views_of.sample(sample), (*sample, *event)
            if tuple(drawn.shape) != shape or drawn.dtype != torch.float64:
                yield (
                    f"expected sample({sample}) of shape {shape} in float64, like the "
                    f"prior, got {tuple(drawn.shape)} in {drawn.dtype}"
                )


def support(case: _Case) -> Iterator[str]:
    """Samples, and the outputs of `on_support`, lie on the support."""
    for views in case.counts:
        constraint = case.prior(views).support
        raw = case.prior.on_support(torch.randn(ITEMS, views, case.dim))
        places = {"on_support(z)": raw, "samples": case.typical(case.draws, views)}
        for name, z in places.items():
            if not bool(constraint.check(z).all()):
                yield (
                    f"expected {name} on the support {constraint} of {views} views, "
                    "got others"
                )
            elif not case.log_prob(z).isfinite().all():
                yield f"expected a finite log_prob at {name} of {views} views"
            else:
                continue
            return
        yield from _stays(case, places["samples"][:ITEMS], constraint)


def _stays(case: _Case, z: Tensor, constraint: Any) -> Iterator[str]:
    """Points of the support are mapped to themselves, means to the support.

    A point mass has the point as its mean. Objectives map means of z again by
    `on_support`, which on R^n and a sphere is therefore a projection.
    """
    maps: dict[str, Callable[[Tensor], Tensor]] = {"centre(z)": case.prior.centre}
    if is_sphere(constraint) or farthest(biject_to(constraint)) == END_OF_REALS:
        maps["on_support(z)"] = case.prior.on_support
    for name, function in maps.items():
        gap = differs(function(z), z)
        if gap:
            yield f"{gap} in {name} against z, for z on the support {constraint}"
            return
    mean = case.prior.centre((z + z.roll(1, 0)) / 2)
    if not bool(constraint.check(mean).all()):
        yield (
            f"expected centre(m) on the support {constraint} for a mean m of points "
            "there, got others"
        )


def normalisation(case: _Case) -> Iterator[str]:
    """The density integrates to one."""
    if not case.prior.proper:
        return
    for views in {1, case.views}:
        log_density, proposals, samples = _fit(case, views)
        look = "look at the constants in log_prob"
        what = f"the density of {views} views"
        yield from integral(log_density, proposals, case.draws, what, look, samples)


def sampling(case: _Case) -> Iterator[str]:
    """Samples follow the density, and those of a batch are independent."""
    if not case.prior.proper:
        return
    for views in {1, case.views}:
        log_density, proposals, _ = _fit(case, views)
        views_of = case.prior(views)
        methods = ("sample", "rsample")[: 1 + views_of.has_rsample]

        def sample(
            n: int, views_of: Any = views_of, methods: Sequence[str] = methods
        ) -> dict[str, Tensor]:
            drawn = {}
            for name in methods:
                alone = getattr(views_of, name)((n,))
                batch = getattr(views_of.expand((n,)), name)()
                what = f"{name} of {views_of.event_shape[0]} views"
                drawn[what] = alone.detach().unsqueeze(1)
                drawn[f"{what} after expand"] = batch.detach().unsqueeze(1)
            return drawn

        n = case.draws if case.estimated() else CHEAP * case.draws
        on = views_of.support
        yield from samples_follow(log_density, proposals, sample, n, on)
        several, items = views_of.expand((ITEMS,)), {}
        for name in methods:
            drawn = getattr(several, name)((case.draws,)).detach()
            items[f"{name} of {views} views after expand"] = drawn.flatten(2)
        yield from independent(items, "items")


def exchangeability(case: _Case) -> Iterator[str]:
    """Views in another order have the same density, unless their order counts."""
    if case.prior.ordered:
        return
    z = case.typical(ITEMS, 3)
    for order in permutations(range(3)):
        turned = partial(case.prior.log_prob, z[:, list(order)])
        gap = _differ(case, turned, partial(case.prior.log_prob, z))
        if gap:
            yield f"{gap} with the views in the order {order}; treat views alike"
            return


def marginals(case: _Case) -> Iterator[str]:
    """Integrating out a view gives the density of the others."""
    for views in [count for count in case.counts if count - 1 in case.counts]:
        place = views - 1 if case.prior.ordered else 0
        z = case.typical(2, views)
        others = torch.cat([z[:, :place], z[:, place + 1 :]], 1)
        log_others = case.prior.log_prob(others).detach()

        def log_density(
            z: Tensor,
            others: Tensor = others,
            less: Tensor = log_others,
            place: int = place,
        ) -> Tensor:
            z = _among(z, others, place)
            return case.prior.log_prob(z).detach() - less

        constraint = case.prior(1 if case.prior.proper else 2).support
        n = case.draws
        proposals = around(log_density, z[:, place : place + 1], constraint, n)
        what = f"p(z_1..{views}) / p(the others) in z_{place + 1}"
        look = "the density of fewer views is not the integral of that of more"
        yield from integral(log_density, proposals, n, what, look)


def presence(case: _Case) -> Iterator[str]:
    """With `present`, the density is that of the present views alone."""
    if "present" not in signature(case.prior.forward).parameters:
        return
    if case.prior.ordered:
        yield from _presence_in_order(case)
        return
    z = case.typical(ITEMS, 3)
    for mask in ((1, 1, 0), (0, 1, 1), (1, 1, 1), *[(0, 1, 0)] * case.prior.proper):
        present = torch.tensor(mask).bool()
        absent = ~present.unsqueeze(-1)
        garbage = torch.where(absent, case.prior.on_support(torch.randn_like(z)), z)
        masked = partial(case.prior.log_prob, garbage, present.expand(ITEMS, -1))
        gap = _differ(case, masked, partial(case.prior.log_prob, z[:, present]))
        if gap:
            yield f"{gap} with present={mask}; sum absent views out of every term"


def _presence_in_order(case: _Case) -> Iterator[str]:
    """The density of the present views is the integral of all over the absent one."""
    for place in range(3):
        z = case.typical(2, 3)
        others = torch.cat([z[:, :place], z[:, place + 1 :]], 1)
        present = (torch.arange(3) != place).expand(2, -1)
        less = case.prior.log_prob(z, present).detach()

        def log_density(
            one: Tensor,
            others: Tensor = others,
            less: Tensor = less,
            place: int = place,
        ) -> Tensor:
            return case.prior.log_prob(_among(one, others, place)).detach() - less

        constraint = case.prior(1 if case.prior.proper else 2).support
        proposals = around(log_density, z[:, place : place + 1], constraint, case.draws)
        what = f"p(z_1..3) / p(the present) in z_{place + 1}"
        look = f"the density with view {place + 1} absent is not that integral"
        yield from integral(log_density, proposals, case.draws, what, look)


def _among(one: Tensor, others: Tensor, place: int) -> Tensor:
    """A view of shape (n, item, 1, dim), put among others of each item at its place."""
    others = others.expand(len(one), *others.shape)
    return torch.cat([others[:, :, :place], one, others[:, :, place:]], 2)


def kernel(case: _Case) -> Iterator[str]:
    """It is log p(a, b) − log p(a), and integrates to one in b."""
    yield from _kernel_is_conditional(case, "")
    look = "it is normalised in b, its second argument, for each a"
    yield from _kernel_integrates(case, False, look)


def plug_in(case: _Case) -> Iterator[str]:
    """The same with the content plugged in; the kernel is then `given`."""
    a, b = case.typical(3, 2)[:, 0], case.typical(4, 2)[:, 0]
    found = unless_declined(case.prior.log_kernel, a, b, plug_in=True)
    if found is None:
        return
    look = "log_kernel(a, b, plug_in=True) is log p(z=b | y=a), with its constant"
    yield from _kernel_integrates(case, True, look)
    y = a.unsqueeze(1).expand(-1, len(b), -1)
    given = unless_declined(case.prior.given, y)
    gap = differs(found, given.log_prob(b)) if given is not None else None
    if gap:
        yield f"{gap} in log_kernel(a, b, plug_in=True) against given(a).log_prob(b)"


def pairs(case: _Case) -> Iterator[str]:
    """The pointwise mutual information is that of the density, as is its mean."""
    prior: Any = case.prior
    if not prior.proper or case.estimated():
        return
    a, b = case.typical(3, 2)[:, 0], case.typical(4, 2)[:, 1]
    found = unless_declined(prior.pmi, a, b)
    if found is not None:
        both = torch.stack(torch.broadcast_tensors(a.unsqueeze(1), b), -2)
        gap = differs(found, _pmi(prior, both), 1e-5, 1e-5)
        if gap:
            yield f"{gap} in pmi(a, b) against log p(a, b) − log p(a) − log p(b)"
    if not hasattr(prior, "mutual_information"):
        return
    declared = unless_declined(prior.mutual_information)
    if declared is None:
        return
    declared = torch.as_tensor(declared).detach()
    drawn = mean_of(_pmi(prior, case.typical(CHEAP * case.draws, 2)))
    if not float(drawn.misses(declared)) <= BARS:
        yield (
            f"expected mutual_information() {float(drawn.value):.4g} ± "
            f"{float(drawn.error):.2g}, the mean of log p(z, z') − log p(z) − "
            f"log p(z') over samples, got {float(declared):.4g}"
        )


def _pmi(prior: Prior, pairs: Float[Tensor, "*batch 2 dim"]) -> Float[Tensor, "*batch"]:
    one, other = pairs.split(1, -2)
    value = prior.log_prob(pairs) - prior.log_prob(one)
    if prior.ordered:  # the second view may have another density than the first
        second = torch.tensor([False, True]).expand(pairs.shape[:-1])
        return (value - prior.log_prob(pairs, second)).detach()
    return (value - prior.log_prob(other)).detach()


def balance(case: _Case) -> Iterator[str]:
    """The log-density that g entropies balance leaves out (V − g) log p(z_1)."""
    prior, proper = case.prior, case.prior.proper
    if case.estimated():
        return
    for views in case.counts:
        z, g = case.typical(ITEMS, views), prior.gauge(views)
        one = prior.log_prob(z[:, :1]) if proper else torch.zeros(ITEMS)
        uniform = differs(one, one[:1].expand_as(one)) is None
        known = [views] * proper + [views - 1] * uniform
        if g not in known:
            yield (
                f"expected gauge({views}) {' or '.join(map(str, known))}, got {g}; it "
                "is V, or V − 1 where one view alone is uniform or p(y) flat"
            )
            return
        gap = differs(prior.balanced(z), prior.log_prob(z) - (views - g) * one)
        if gap:
            yield f"{gap} in balanced(z) against log p(z) − (V − g) log p(z_1)"
            return


def bayes(case: _Case) -> Iterator[str]:
    """p(y) ∏ p(z_v|y) / p(y|z) is p(z), whatever y."""
    prior: Any = case.prior
    z = case.typical(4, 3)
    if not hasattr(prior, "posterior_y"):
        return
    seeded(SEED)  # an estimated evidence is then that of log_prob
    posterior = prior.posterior_y(z)
    content = unless_declined(prior.content)
    if not posterior.event_shape or (content is None and prior.proper):
        return
    y = posterior.sample((5,)).detach()
    shared = y.unsqueeze(2).expand(*y.shape[:2], z.shape[1], *posterior.event_shape)
    given = unless_declined(prior.given, shared)
    if given is None:
        return
    value = given.log_prob(z).sum(-1) - posterior.log_prob(y)
    value = value + content.log_prob(y) if content is not None else value
    expected = case.log_prob(z).expand_as(value)
    if content is None:  # the constant of a flat p(y) is arbitrary
        expected = expected + (value - expected).mean()
    gap = differs(value, expected, 1e-6, 1e-5)
    if gap:
        yield (
            f"{gap} in log p(y) + Σ log p(z_v|y) − log p(y|z) against log_prob(z); "
            "look at content, given and posterior_y"
        )


def contents(case: _Case) -> Iterator[str]:
    """The mean of ∏ p(z_v|y) over draws of p(y), or p(y|k), is p(z), or p(z|k)."""
    prior: Any = case.prior
    content = unless_declined(prior.content)
    if case.estimated() or content is None or not content.event_shape:
        return
    n = CONTENTS * case.draws
    yield from _mean_of_given(case, content, prior(case.views), n, "content()")
    weights = unless_declined(prior.component)
    if weights is None or "component" not in signature(prior.content).parameters:
        return
    count = weights.logits.shape[-1]
    for k in range(count):
        known = torch.tensor(k)
        content, views = (
            prior.content(component=known),
            prior(case.views, component=known),
        )
        what = f"content(component={k})"
        faults = list(_mean_of_given(case, content, views, max(n // count, 1000), what))
        yield from faults
        if faults:
            return


def _mean_of_given(
    case: _Case, content: Any, views: Any, n: int, what: str
) -> Iterator[str]:
    """The mean of ∏ p(z_v|y) over n draws of a p(y) is the density of the views."""
    z = (
        views.sample((4,)).detach()
        if case.prior.proper
        else case.typical(4, case.views)
    )
    y = content.sample((n, 1)).detach()
    given = unless_declined(case.prior.given, y.unsqueeze(-2))
    if given is None:
        return
    log_w = given.log_prob(z).sum(-1).detach()
    top = log_w.max(0).values
    mean = mean_of((log_w - top).exp())
    error = mean.error / mean.value
    away = (mean.value.log() + top - views.log_prob(z).detach()).abs()
    off = (away > BARS * error + 1e-6) & (error < LARGEST_ERROR / 2)
    if off.any():
        worst = int(away.where(off, 0.0).argmax())
        yield (
            f"expected the mean of given(y) over draws of {what} to be the density "
            f"of forward, got a difference of {float(away[worst]):.3g} ± "
            f"{float(error[worst]):.2g} nats; look at content and given"
        )


def components(case: _Case) -> Iterator[str]:
    """The sum of p(k) p(z | component = k) is p(z); its shares: responsibilities."""
    prior: Any = case.prior
    weights = unless_declined(prior.component)
    if weights is None or case.estimated():
        return
    z, log_share = case.typical(ITEMS, 3), weights.logits
    for mask in ((1, 1, 1), (1, 0, 1)):
        present = torch.tensor(mask).bool().expand(ITEMS, -1)
        seen = None if all(mask) else present
        options = {} if seen is None else {"present": seen}
        each = [
            prior(3, component=torch.full((ITEMS,), k), **options).log_prob(z)
            for k in range(len(log_share))
        ]
        joint = torch.stack(each, -1) + log_share
        look = f"with present={mask}; look at component() and forward(component=k)"
        gap = differs(joint.logsumexp(-1), prior.log_prob(z, seen))
        if gap:
            yield f"{gap} in the sum over components {look}"
        gap = differs(joint.softmax(-1), prior.responsibilities(z, seen).probs)
        if gap:
            yield f"{gap} in responsibilities {look}"
        if not hasattr(prior, "posterior_y"):
            continue
        posterior = prior.posterior_y(z, **options)
        if not posterior.event_shape:  # y is the component
            states = getattr(prior, "states", lambda: torch.arange(len(log_share)))()
            found = posterior.log_prob(states.unsqueeze(-1)).exp().mT
            gap = differs(found, joint.softmax(-1))
            if gap:
                yield f"{gap} in posterior_y {look}"


def completion(case: _Case) -> Iterator[str]:
    """`complete` draws absent views given present ones; `complete_mean` is the mean."""
    masked = "present" in signature(case.prior.forward).parameters
    if not (case.prior.proper and masked) or case.estimated():
        return
    z, present = case.typical(1, 3)[0], torch.tensor([True, False, True])
    views, seen = case.prior(3), z[present]

    def log_density(other: Tensor) -> Tensor:
        first, last = seen.expand(*other.shape[:-2], -1, -1).split(1, -2)
        return case.prior.log_prob(torch.cat([first, other, last], -2)).detach()

    def sample(n: int) -> dict[str, Tensor]:
        drawn = views.complete(z.expand(n, -1, -1), present.expand(n, -1)).detach()
        return {"complete": drawn[:, None, 1:2]}

    drawn, support = sample(case.draws)["complete"], case.prior(1).support
    proposals = fitted(log_density, drawn, support)
    yield from samples_follow(log_density, proposals, sample, case.draws, support)
    mean = unless_declined(views.complete_mean, z, present)
    if mean is not None:
        of_draws = mean_is_that_of_samples(drawn[:, 0, 0], mean[1].detach())
        yield from (f"{fault}, complete_mean" for fault in of_draws)


def drawn_hyper_parameters(case: _Case) -> Iterator[str]:
    """Drawn values become the batch shape; `at` gives the same densities."""
    hypers = list(case.prior.random())
    if not hypers:
        return
    drawn = {h.name: h.value.sample((3, 1)) for h in hypers}
    views, z = case.prior(case.views, **drawn), case.typical(5, case.views)
    if views.batch_shape != (3, 1):
        yield (
            f"expected batch shape (3, 1) from drawn values of that shape, got "
            f"{tuple(views.batch_shape)}; unsqueeze values over view and dim"
        )
        return
    shape = (3, 1, case.views, case.dim)
    if case.prior.proper and tuple(views.sample().shape) != shape:
        yield f"expected samples of shape {shape}, got {tuple(views.sample().shape)}"
    seeded(SEED)
    together = views.log_prob(z)
    for k in range(3):
        values = {name: value[k, 0] for name, value in drawn.items()}
        with case.prior.at(**values):
            alone = case.log_prob(z)
            yield from _kernel_is_conditional(case, " at drawn values")
        gap = None if case.estimated() else differs(together[k], alone)
        if gap:
            yield f"{gap} in prior(views, **drawn) against `with prior.at(**drawn)`"


def extremes(case: _Case) -> Iterator[str]:
    """No NaN for huge, tiny and equal z, nor in gradients."""
    constraint = case.prior(case.views).support
    z = case.typical(ITEMS, case.views)
    places = {
        "equal views": z[:, :1].expand_as(z),
        "all items equal": z[:1].expand_as(z),
    }
    if is_sphere(constraint):
        opposite = torch.tensor([(-1.0) ** v for v in range(case.views)])
        places["opposite views"] = z[:, :1] * opposite.unsqueeze(-1)
    else:
        transform = biject_to(constraint)
        u = transform.inv(z)
        real = farthest(transform) == END_OF_REALS
        for size in (1e6, 1e-12, 0.0) if real else (10.0, 1e-12, 0.0):
            far = size * u if real else (size * u).clamp(min=-20, max=20)
            places[f"z about {size:g}"] = transform(far)
    for name, place in places.items():
        place = place.detach().clone().requires_grad_()
        value = case.prior.log_prob(place)
        (grad,) = torch.autograd.grad(value[value.isfinite()].sum(), place)
        if value.isnan().any() or grad.isnan().any():
            what = "log_prob" if value.isnan().any() else "the gradient of log_prob"
            yield f"expected no NaN for {name}, got one in {what}"


def _differ(
    case: _Case, found: Callable[[], Tensor], expected: Callable[[], Tensor]
) -> str | None:
    """How two log-densities differ; estimates by more than their own error bars.

    The bars are five standard errors over repeated estimates, and the bias of the log
    of an estimate, half its variance.
    """
    if not case.estimated():
        return differs(found(), expected())
    draws = []
    for seed in range(REPEATS):
        seeded(SEED + 1 + seed)
        draws.append(torch.stack([found().detach(), expected().detach()]))
    values = torch.stack(draws)
    gap = mean_of(values[:, 0] - values[:, 1])
    bar = BARS * gap.error + values.var(0).sum(0) / 2
    over = (gap.value.abs() - bar).nan_to_num(math.inf)
    if float(over.max()) <= 1e-6:
        return None
    worst = int(over.argmax())
    came, was = values.mean(0)[:, worst].tolist()
    return f"expected {was:.6g} ± {float(bar[worst]):.2g}, got {came:.6g}"


def _kernel_is_conditional(case: _Case, where: str) -> Iterator[str]:
    if case.estimated():  # both are estimates, from different draws
        return
    prior = case.prior
    a, b = case.typical(3, 2)[:, 0], case.typical(4, 2)[:, 1]
    found = prior.log_kernel(a, b)
    if tuple(found.shape) != (3, 4):
        yield f"expected shape (3, 4) of log_kernel(a, b), got {tuple(found.shape)}"
        return
    pairs = torch.stack(torch.broadcast_tensors(a.unsqueeze(1), b), -2)
    expected = prior.log_prob(pairs)
    if prior.proper:
        expected = expected - prior.log_prob(a.unsqueeze(1)).unsqueeze(1)
    else:  # the constant of a flat p(y) is arbitrary
        expected = expected + (found - expected).mean()
    gap = differs(found, expected, 1e-5, 1e-5)
    if gap:
        yield f"{gap} in log_kernel(a, b) against log p(a, b) − log p(a){where}"


def _kernel_integrates(case: _Case, plug_in: bool, look: str) -> Iterator[str]:
    a = case.typical(1, 2)[:, :1]

    def log_density(z: Tensor) -> Tensor:
        b = z.squeeze(2).transpose(0, 1)
        return case.prior.log_kernel(a, b, plug_in).squeeze(1).mT.detach()

    constraint = case.prior(1 if case.prior.proper else 2).support
    proposals = around(log_density, a, constraint, case.draws)
    what = "log_kernel(a, b, plug_in=True)" if plug_in else "log_kernel(a, b)"
    yield from integral(log_density, proposals, case.draws, f"{what} in b", look)


def _fit(
    case: _Case, views: int
) -> tuple[LogDensity, list[Proposal], Float[Tensor, "n 1 view dim"]]:
    """The density of so many views of one item, proposals for it, and samples."""

    def log_density(z: Tensor) -> Tensor:
        return case.prior.log_prob(z).detach()

    if views not in case.fits:
        samples = case.prior(views).sample((case.draws,)).detach().unsqueeze(1)
        support = case.prior(views).support
        case.fits[views] = fitted(log_density, samples, support), samples
    return log_density, *case.fits[views]


def _valued(case: _Case, all_kernels: bool) -> Valued:
    """log_prob and the kernels as one tensor, or only those that training calls."""
    a, b = case.typical(3, case.views)[:, 0], case.typical(4, case.views)[:, 0]
    plugged = unless_declined(case.prior.log_kernel, a, b, plug_in=True) is not None

    def value(prior: Prior, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        parts = [prior.log_prob(z)]
        if all_kernels or not plugged:
            parts += [prior.log_kernel(a, b).flatten()]
        if plugged:
            parts += [prior.log_kernel(a, b, plug_in=True).flatten()]
        return torch.cat(parts)

    return Valued(case.prior, value, (case.typical(ITEMS, case.views), a, b))
