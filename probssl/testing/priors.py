"""Laws of a prior over the views of an item."""

from collections.abc import Iterator
from inspect import signature
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import biject_to

from ..priors import Prior
from . import modules
from .cases import PriorCase
from .contents import bayes, drawn_hyper_parameters, kernel, plug_in
from .densities import integral, samples_follow
from .laws import Trial, differs, examine, refusal, twin
from .modules import Valued
from .references import LogDensity, Reference, around, fitted, spherical

__all__ = ["check_prior"]

ITEMS = 6  # in laws that are exact
LAWS = (kernel, plug_in, bayes, drawn_hyper_parameters)
OF_NUMBERS = (
    modules.gradients,
    modules.single_precision,
    modules.device,
    modules.state,
    modules.saving,
)


def check_prior(
    prior: Prior, *, views: int = 2, draws: int = 4000, seed: int = 0
) -> None:
    r"""Check a prior of your own against the laws that any :math:`p(z_1..V)` obeys.

    ======================  ======================================================
    shapes                  event (view, dim), batch as that of z, or expanded
    support                 samples are on it, `on_support` leads there
    normalisation           the density integrates to one
    sampling                samples follow the density
    exchangeability         the order of the views does not matter
    marginals               one view integrated out leaves the density of the others
    presence                `present` gives the density of the present views
    kernel                  log_kernel(a, b) = log p(a, b) − log p(a), and integrates
                            to one in b
    plug in                 with `plug_in` too it does, and is `given`
    bayes                   log p(y) + Σ log p(z_v|y) − log p(y|z) = log p(z)
    drawn hyper parameters  become the batch shape; `at` gives the same
    extremes                huge, tiny and equal z give no NaN and no NaN slope
    gradients               in z and in parameters are those of differences
    single precision        float32 stays float32, and close to float64
    device                  all follows z to its device
    state                   in evaluation mode `state_dict` stays
    saving                  loaded, what was saved gives the same log_prob
    tracing                 traced, value and slopes are the eager ones
    ======================  ======================================================

    What a prior says it has not, it need not obey. Under a flat p(y)
    (``prior.proper`` is False) there are no samples, one view has no density, and
    `marginals` stands for `normalisation`. Where `content`, `given` or `log_kernel`
    with `plug_in` refuse by an error "expected …", they are left out.

    All is done on a copy in float64: the prior and the random state stay as they are.
    Integrals are over draws from heavy-tailed densities around the samples, good for up
    to about 10 numbers, views times dim: build the class with a small dim.

    Arguments:
        views: The number of views, where one number must do.
        draws: The number of draws of an estimate, whose bars are five standard errors.
        seed: The seed of all that is drawn.

    Raises:
        LawError: If a law is broken; it names all that are.
        TypeError: If it is no `Prior`.
        ValueError: If its dimension is open.

    Example:
        >>> import probssl as ps
        >>> check_prior(ps.priors.Gaussian(dim=2, scale=0.3), draws=1000)
    """
    if not isinstance(prior, Prior):
        raise TypeError(
            f"expected a ps.priors.Prior, got {type(prior).__name__}; inherit from it, "
            "for its log_prob and log_kernel"
        )
    prior.known_dim()
    case = PriorCase(twin(prior), max(views, 1 if prior.proper else 2), draws, {})
    own = (shapes, support, normalisation, sampling, exchangeability, marginals)
    laws: list[Trial] = [
        (law, lambda: case) for law in (*own, presence, *LAWS, extremes)
    ]
    laws += [(law, lambda: _valued(case, True)) for law in OF_NUMBERS]
    laws += [(modules.tracing, lambda: _valued(case, False))]
    examine(type(prior).__name__, laws, seed)


def shapes(case: PriorCase) -> Iterator[str]:
    """Event (view, dim), batch shape of z or of what it is expanded to."""
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
        if case.prior.proper:
            yield from _shapes_of_samples(case, views)


def _shapes_of_samples(case: PriorCase, views: int) -> Iterator[str]:
    views_of, event = case.prior(views), (views, case.dim)
    for sample, shape in (((), event), ((4,), (4, *event)), ((2, 3), (2, 3, *event))):
        z = views_of.sample(sample)
        if tuple(z.shape) != shape or z.dtype != torch.float64:
            yield (
                f"expected sample({sample}) of shape {shape} in float64, as the prior "
                f"is, got {tuple(z.shape)} in {z.dtype}"
            )


def support(case: PriorCase) -> Iterator[str]:
    """Samples, and what `on_support` makes of any numbers, lie on the support."""
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


def normalisation(case: PriorCase) -> Iterator[str]:
    """The density integrates to one."""
    if not case.prior.proper:
        return
    for views in {1, case.views}:
        log_density, references, _ = _fit(case, views)
        look = "look at the constants in log_prob"
        what = f"the density of {views} views"
        yield from integral(log_density, references, case.draws, what, look)


def sampling(case: PriorCase) -> Iterator[str]:
    """Samples follow the density."""
    if not case.prior.proper:
        return
    for views in {1, case.views}:
        log_density, references, samples = _fit(case, views)
        what = f"samples of {views} views"
        yield from samples_follow(log_density, references, samples, what)


def exchangeability(case: PriorCase) -> Iterator[str]:
    """Views in another order have the same density."""
    z = case.typical(ITEMS, 3)
    for order in permutations(range(3)):
        gap = differs(case.log_prob(z[:, list(order)]), case.log_prob(z))
        if gap:
            yield f"{gap} with the views in the order {order}; treat views alike"
            return


def marginals(case: PriorCase) -> Iterator[str]:
    """One view integrated out leaves the density of the others."""
    for views in [count for count in case.counts if count - 1 in case.counts]:
        others = case.typical(2, views)[:, 1:]
        log_others = case.prior.log_prob(others).detach()

        def log_density(
            z: Tensor, others: Tensor = others, less: Tensor = log_others
        ) -> Tensor:
            z = torch.cat([z, others.expand(len(z), *others.shape)], 2)
            return case.prior.log_prob(z).detach() - less

        constraint = case.prior(1 if case.prior.proper else 2).support
        n = case.draws
        references = around(log_density, others[:, :1], constraint, n)
        what = f"p(z_1..{views}) / p(z_2..{views}) in z_1"
        look = "the density of fewer views is not the integral of that of more"
        yield from integral(log_density, references, n, what, look)


def presence(case: PriorCase) -> Iterator[str]:
    """The density of the present views is that of as many views."""
    if "present" not in signature(case.prior.forward).parameters:
        return
    z = case.typical(ITEMS, 3)
    for mask in ((1, 1, 0), (0, 1, 1), (1, 1, 1), *[(0, 1, 0)] * case.prior.proper):
        present = torch.tensor(mask).bool()
        absent = ~present.unsqueeze(-1)
        garbage = torch.where(absent, case.prior.on_support(torch.randn_like(z)), z)
        found = case.log_prob(garbage, present.expand(ITEMS, -1))
        gap = differs(found, case.log_prob(z[:, present]))
        if gap:
            yield f"{gap} with present={mask}; sum absent views out of every term"


def extremes(case: PriorCase) -> Iterator[str]:
    """Huge, tiny and equal z give no NaN, nor do slopes."""
    constraint = case.prior(case.views).support
    z = case.typical(ITEMS, case.views)
    places = {
        "equal views": z[:, :1].expand_as(z),
        "all items equal": z[:1].expand_as(z),
    }
    if spherical(constraint):
        opposite = torch.tensor([(-1.0) ** v for v in range(case.views)])
        places["opposite views"] = z[:, :1] * opposite.unsqueeze(-1)
    else:
        transform = biject_to(constraint)
        u = transform.inv(z)
        real = bool((transform(-u.abs()) < 0).any())
        for size in (1e6, 1e-12, 0.0) if real else (10.0, 1e-12, 0.0):
            places[f"z about {size:g}"] = transform(size * u)
    for name, place in places.items():
        place = place.detach().clone().requires_grad_()
        value = case.prior.log_prob(place)
        (slope,) = torch.autograd.grad(value[value.isfinite()].sum(), place)
        if value.isnan().any() or slope.isnan().any():
            what = "log_prob" if value.isnan().any() else "a slope of log_prob"
            yield f"expected no NaN for {name}, got one in {what}"


def _fit(
    case: PriorCase, views: int
) -> tuple[LogDensity, list[Reference], Float[Tensor, "n 1 view dim"]]:
    """The density of so many views, references for it, and samples, all of one item."""

    def log_density(z: Tensor) -> Tensor:
        return case.prior.log_prob(z).detach()

    if views not in case.fits:
        samples = case.prior(views).sample((case.draws,)).detach().unsqueeze(1)
        support = case.prior(views).support
        case.fits[views] = fitted(log_density, samples, support), samples
    return log_density, *case.fits[views]


def _valued(case: PriorCase, all_kernels: bool) -> Valued:
    """log_prob and the kernels as one tensor; or of them only what training calls."""
    a, b = case.typical(3, case.views)[:, 0], case.typical(4, case.views)[:, 0]
    plugged = refusal(case.prior.log_kernel, a, b, plug_in=True) is not None

    def value(prior: Prior, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        parts = [prior.log_prob(z)]
        if all_kernels or not plugged:
            parts += [prior.log_kernel(a, b).flatten()]
        if plugged:
            parts += [prior.log_kernel(a, b, plug_in=True).flatten()]
        return torch.cat(parts)

    return Valued(case.prior, value, (case.typical(ITEMS, case.views), a, b))
