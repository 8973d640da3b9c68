"""Laws of a guide q(z_1..V | x_1..V)."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from inspect import signature
from typing import NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..arguments import typed, whole
from ..arrays import tensor
from ..distributions.supports import is_point, narrower
from ..priors import Prior
from . import modules
from .densities import (
    LEAST_DRAWS,
    independent,
    integral,
    mean_is_that_of_samples,
    pathwise_is_score,
    samples_follow,
    spread_is_that_of_samples,
)
from .laws import Note, Trial, differs, examine, twin, unless_declined
from .modules import Valued
from .proposals import LogDensity, Proposal, fitted

__all__ = ["check_guide"]

INTEGRATED_ITEMS = 2
OF_DENSITIES = (modules.gradients, modules.single_precision)
OF_NUMBERS = (modules.device, modules.state, modules.saving, modules.tracing)


@typed
def check_guide(
    guide: nn.Module,
    prior: Prior,
    x: Float[Tensor, "batch view *event"],
    *,
    draws: int = 4000,
    seed: int = 0,
) -> None:
    r"""Check a guide of your own against the laws of any :math:`q(z_1..V \mid x_1..V)`.

    ========================  ====================================================
    shapes                    batch (item,), event (view, dim)
    support                   samples lie on the support of the prior, and the density
                              has all of it, as `evidence` needs
    normalisation             the density of each item integrates to one
    sampling                  samples, and those of `rsample`, follow the density, and
                              those of items are independent
    mean                      samples have the mean of the distribution, as in `embed`
    spread                    samples have its standard deviation, up to a factor of
                              1.25, as in `embed` with `return_std`
    reparameterised gradient  gradients through `rsample` equal the score-function ones
    independent items         q of an item depends on no other item
    corner cases              one item, one view and equal views work
    absent views              with `present`, the pixels of absent views do not matter,
                              and samples follow the density
    gradients                 and float32, device, state, saving, tracing: as in
                              `check_prior`
    ========================  ====================================================

    For a point estimate (a Delta) the laws of densities are skipped. A guide may
    decline `present` by an error "expected …". Without `rsample` there is no law of the
    reparameterised gradient, and a warning says that `fit` refuses the guide.

    Arguments:
        guide: A module called as ``guide(x, prior_of, present)``, like `ps.guides`.
        prior: The prior that it is used with.
        x: Views of at least two items.
        draws: The number of draws of an estimate, at least 100; error bars are five
            standard errors.
        seed: The seed of all draws.

    Raises:
        LawError: If a law is broken; it names all that are.
        ValueError: If there are fewer than two items, numbers that are not finite among
            them, or too few draws.

    Example:
        >>> import probssl as ps
        >>> guide = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((3,), 2, hidden=(4,)))
        >>> check_guide(guide, ps.priors.Gaussian(2), torch.randn(3, 2, 3), draws=1000)
    """
    if len(x) < 2:
        raise ValueError(
            f"expected at least 2 items, got {len(x)}; some laws compare two"
        )
    draws = whole("draws", draws, LEAST_DRAWS, hint="4000 are usual")
    x = tensor(x, "x", finite=True).cpu().double()
    case = _Case(twin(_Pair(guide, prior)), x, draws, {})
    own = (shapes, support, normalisation, sampling, mean, spread)
    more = (reparameterised_gradient, independent_items, corner_cases, absent_views)
    laws: list[Trial] = [(law, lambda: case) for law in (*own, *more)]
    laws += [(law, lambda: _valued(case, False)) for law in OF_DENSITIES]
    laws += [(law, lambda: _valued(case, True)) for law in OF_NUMBERS]
    examine(type(guide).__name__, laws, seed)


class _Pair(nn.Module):
    """A guide and its prior as one module, so that both are moved and saved."""

    guide: nn.Module
    prior: Prior

    def __init__(self, guide: nn.Module, prior: Prior) -> None:
        super().__init__()
        self.guide, self.prior = guide, prior

    def forward(self, x: Tensor, present: Tensor | None = None) -> TorchDistribution:
        prior_of = partial(self.prior, x.shape[1])
        distribution: TorchDistribution = self.guide(x, prior_of, present)
        return distribution


class _Case(NamedTuple):
    q: _Pair
    x: Tensor
    draws: int
    fits: dict[bool, tuple[list[Proposal], Tensor]]  # by whether views are absent

    @property
    def prior(self) -> Prior:
        return self.q.prior

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.x.shape[:2], self.prior.known_dim())


def shapes(case: _Case) -> Iterator[str]:
    """Batch (item,), event (view, dim), one log-density for each item."""
    q, (items, *event) = case.q(case.x), case.shape
    if tuple(q.batch_shape) != (items,) or tuple(q.event_shape) != tuple(event):
        yield (
            f"expected batch shape ({items},) and event shape {tuple(event)}, got "
            f"{tuple(q.batch_shape)} and {tuple(q.event_shape)}; look at .to_event"
        )
        return
    for sample in ((), (3,), (2, 3)):
        z = q.rsample(sample) if q.has_rsample else q.sample(sample)
        found = tuple(z.shape), tuple(q.log_prob(z).shape)
        if found != ((*sample, items, *event), (*sample, items)):
            yield (
                f"expected samples of shape {(*sample, items, *event)} and their "
                f"log_prob of {(*sample, items)}, got {found[0]} and {found[1]}"
            )


def support(case: _Case) -> Iterator[str]:
    """Samples lie on the support of the prior, and the density has all of it."""
    constraint = case.prior(case.x.shape[1]).support
    if not bool(constraint.check(case.q(case.x).sample((100,))).all()):
        yield (
            f"expected samples on the support of {type(case.prior).__name__}, "
            f"{constraint}, got others; give this prior another guide"
        )
    q = case.q(case.x)
    lacking = narrower(q, case.prior(case.x.shape[1])) if case.prior.proper else None
    if lacking is not None and not is_point(q):
        yield (
            f"expected the support of {type(case.prior).__name__}, {lacking[1]}, got "
            f"{lacking[0]}, on which importance weights give only a bound of the "
            "evidence; take a q with a density on all of it"
        )


def normalisation(case: _Case) -> Iterator[str]:
    """The density of each item integrates to one."""
    q = case.q(case.x)
    if is_point(q):
        if not torch.equal(q.log_prob(q.sample()), torch.zeros(len(case.x))):
            yield "expected log_prob 0 of a Delta at its point, got another value"
        return
    density, proposals, samples = _fit(case, q, None)
    look = "look at the constants in log_prob"
    yield from integral(density, proposals, case.draws, "q of an item", look, samples)


def sampling(case: _Case, present: Tensor | None = None) -> Iterator[str]:
    """Samples of each item follow its density."""
    q = case.q(case.x, present)
    if is_point(q):
        return
    density, proposals, _ = _fit(case, q, present)
    methods = ("sample", "rsample")[: 1 + q.has_rsample]

    def sample(n: int) -> dict[str, Tensor]:
        each = {name: getattr(q, name)((n,)).detach() for name in methods}
        return {
            f"{name} of an item": z[:, :INTEGRATED_ITEMS] for name, z in each.items()
        }

    on = case.prior(case.x.shape[1]).support
    yield from samples_follow(density, proposals, sample, case.draws, on)
    drawn = {name: getattr(q, name)((case.draws,)).detach() for name in methods}
    items = {name: z.flatten(2) for name, z in drawn.items()}
    yield from independent(items, "items")


def mean(case: _Case) -> Iterator[str]:
    """Samples have the mean of the distribution."""
    q = case.q(case.x)
    try:
        expected = q.mean.detach()
    except NotImplementedError:
        yield (
            f"expected a mean, which embed and reconstruct need, got none of "
            f"{type(q).__name__}; give the distribution a property mean"
        )
        return
    samples = q.sample((case.draws,)).detach()
    yield from mean_is_that_of_samples(samples, expected)


def spread(case: _Case) -> Iterator[str]:
    """Samples have the standard deviation of the distribution."""
    q = case.q(case.x)
    with suppress(NotImplementedError):  # embed then refuses return_std
        stddev, samples = q.stddev.detach(), q.sample((case.draws,)).detach()
        yield from spread_is_that_of_samples(samples, stddev)


def reparameterised_gradient(case: _Case) -> Iterator[str]:
    """Gradients of an expectation through `rsample` are the score-function ones."""
    q = case.q(case.x)
    if is_point(q):
        return
    if not q.has_rsample:
        yield Note(
            "its samples carry no gradient (no rsample): fit refuses to train it"
        )
        return
    named = [(k, p) for k, p in case.q.guide.named_parameters() if p.requires_grad]
    if named:
        yield from pathwise_is_score(lambda: case.q(case.x), named, case.draws)


def independent_items(case: _Case) -> Iterator[str]:
    """q of one item does not change with another, nor with their number."""
    z, other = case.q(case.x).sample(), case.x.clone()
    other[1:] = torch.randn_like(other[1:])
    expected = _at(case.q(case.x), z)[:1]
    for what, x in (("other items beside it", other), ("no other", case.x[:1])):
        gap = differs(_at(case.q(x), z[: len(x)])[:1], expected)
        if gap:
            yield (
                f"{gap} in q of an item with {what}; look for batch statistics, "
                "such as batch norm in training mode"
            )


def corner_cases(case: _Case) -> Iterator[str]:
    """One item, one view and equal views work."""
    views = case.x.shape[1]
    places = {"one item": case.x[:1], "equal views": case.x[:, :1].expand_as(case.x)}
    if case.prior.proper:
        places["one view"] = case.x[:, :1]
    for name, x in places.items():
        q = case.q(x)
        z = q.sample()
        if tuple(z.shape) != (*x.shape[:2], case.shape[2]):
            yield f"expected z for {name} with {views} views, got {tuple(z.shape)}"
        elif not (z.isfinite().all() and q.log_prob(z).isfinite().all()):
            yield f"expected finite samples and log_prob for {name}, got others"


def absent_views(case: _Case) -> Iterator[str]:
    """Pixels of absent views do not matter, and samples follow the density."""
    items, views = case.x.shape[:2]
    named = signature(case.q.guide.forward).parameters
    if "present" not in named or views < 2:
        return
    present = torch.ones(items, views).bool()
    present[:, -1] = False
    present[-1] = True
    if not case.prior.proper and views < 3:
        present[:, -1] = True  # a flat p(y) needs two
    q = unless_declined(case.q, case.x, present)
    if q is None or is_point(q):
        return
    absent = (~present).view(items, views, *[1] * (case.x.dim() - 2))
    z, other = q.sample(), torch.where(absent, case.x + 7, case.x)
    gap = differs(_at(case.q(other, present), z), _at(q, z))
    if gap:
        yield f"{gap} in log q with other pixels in absent views; mask them"
    yield from sampling(case, present)


def _fit(
    case: _Case, q: TorchDistribution, present: Tensor | None
) -> tuple[LogDensity, list[Proposal], Float[Tensor, "n item view dim"]]:
    """The density of the first items, proposals for it, and samples."""
    rest = q.sample().detach()[INTEGRATED_ITEMS:]

    def log_density(z: Tensor) -> Tensor:
        z = torch.cat([z, rest.expand(len(z), *rest.shape)], 1)
        return q.log_prob(z)[:, :INTEGRATED_ITEMS].detach()

    masked = present is not None
    if masked not in case.fits:
        samples = q.sample((case.draws,)).detach()[:, :INTEGRATED_ITEMS]
        support = case.prior(case.x.shape[1]).support
        case.fits[masked] = fitted(log_density, samples, support), samples
    return log_density, *case.fits[masked]


def _at(q: TorchDistribution, z: Tensor) -> Tensor:
    """The log-density at z; for a Delta, its point."""
    return q.sample().flatten(1).sum(1) if is_point(q) else q.log_prob(z)


def _valued(case: _Case, drawing: bool) -> Valued:
    z = case.q(case.x).sample().detach()

    def value(pair: _Pair, x: Tensor, z: Tensor) -> Tensor:
        q = pair(x)
        if is_point(q):
            return q.rsample().flatten()
        parts = [q.log_prob(z)]
        if drawing and q.has_rsample:
            parts += [q.rsample().flatten()]
        return torch.cat(parts)

    return Valued(case.q, value, (case.x, z))
