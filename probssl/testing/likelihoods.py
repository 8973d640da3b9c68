"""Laws of a likelihood p(x | z)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from ..arguments import typed, whole
from ..arrays import tensor
from ..covariates import declares
from ..distributions.supports import is_sphere, support_of
from ..joint import given_z
from ..likelihoods import Likelihood
from ..nn.base import sizes
from ..runtime.validation import unvalidated
from . import modules
from .densities import (
    LEAST_DRAWS,
    independent,
    integral,
    mean_is_that_of_samples,
    samples_follow,
)
from .laws import BARS, Estimate, Note, Trial, differs, examine, in_short, mean_of, twin
from .modules import Valued
from .proposals import LogDensity, Proposal, fitted, within

__all__ = ["check_likelihood"]

ITEMS = 3  # of an output that is drawn
MOST_ELEMENTS = 16  # of an output, whose densities are integrated
MOST_VALUES = 100_000  # over which a sum runs
OTHERS, HALVINGS = 4, 40  # other outputs, and how often one comes nearer
LARGEST = 1e9  # a sample beyond it, or beyond its reciprocal, is no data


@typed
def check_likelihood(
    likelihood: Likelihood,
    output: Float[Tensor, "n *output"] | None = None,
    *,
    event_shape: Sequence[int] | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> None:
    r"""Check a likelihood of your own against the laws of any :math:`p(x \mid z)`.

    ================  ============================================================
    shapes            the leading axes are those of the output, the others those of x
    measure           it begins with "counting" where the support is discrete
    normalisation     the density sums or integrates to one, for every element of x
    sampling          samples follow the density
    independence      elements and items are drawn independently
    mean              samples have the mean of the distribution
    own samples       `check` accepts samples, and raises a ValueError for NaN;
                      samples are on the support
    extremes          no NaN for huge and tiny outputs, nor in gradients
    gradients         float32, device, state, saving, tracing: as in `check_prior`
    ================  ============================================================

    Elements are those of the batch shape; where the distribution has an event shape,
    as a multivariate normal has, each event is a whole. Of more than 16 elements, 16 at
    random have their densities and samples compared, each in one of the items. The
    extreme ends of a support, as numbers beyond 1e100, are left out of integrals by the
    share of samples there. A `pseudo` likelihood need not
    be normalised, nor do its samples follow it. Where `measure` begins with "counting",
    sums run over all values that were drawn.

    A likelihood that cannot be compiled, or has no mean, breaks no law: a warning says
    so.

    Arguments:
        likelihood: The likelihood.
        output: An example of a decoder's output, for a few items; by default normal
            draws of the shape `Likelihood.output_shape` of the event shape.
        event_shape: The shape of one x, which is then a law as well.
        draws: The number of draws of an estimate, at least 100; error bars are five
            standard errors.
        seed: The seed of all draws.

    Raises:
        LawError: If a law is broken; it names all that are.
        TypeError: If it is not a `Likelihood`, returns no distribution of Pyro, or
            neither `output` nor `event_shape` is given.
        ValueError: If `output` is empty or not finite, a size is not positive, or there
            are too few draws.

    Example:
        >>> import probssl as ps
        >>> check_likelihood(ps.likelihoods.Binomial(16), torch.randn(3, 4))
        >>> check_likelihood(ps.likelihoods.Poisson(), event_shape=(4,))
    """
    event = None if event_shape is None else sizes(event_shape=event_shape)
    draws = whole("draws", draws, LEAST_DRAWS, hint="4000 are usual")
    if declares(likelihood):
        raise TypeError(
            "expected a likelihood of the decoder's output alone, got "
            f"{type(likelihood).__name__}, whose forward takes covariates; check it at "
            "some: a subclass whose forward(self, output) gives it these"
        )
    if output is None:
        if event is None:
            raise TypeError(
                "expected an output of the decoder or event_shape, got neither; give "
                "event_shape=(4,), the shape of one x"
            )
        generator = torch.Generator().manual_seed(seed)
        shape = (ITEMS, *likelihood.output_shape(event))
        output = torch.randn(shape, generator=generator)
    output = tensor(output, "output", finite=True).cpu().double()
    case = _Case(twin(likelihood), output, draws, event, seed, {})
    with suppress(RuntimeError, ValueError):  # laws report them
        case.of(case.output)
    own = (shapes, measure, normalisation, sampling, independence, mean)
    laws: list[Trial] = [
        (_unvalidated(law), lambda: case) for law in (*own, own_samples, extremes)
    ]
    numerical = (*modules.UNTRACED, modules.tracing)
    laws += [(law, lambda: _valued(case)) for law in numerical]
    examine(type(likelihood).__name__, laws, seed)


def _unvalidated(law: Callable[[Any], Iterator[str]]) -> Any:
    """A law without validation by Pyro, which refuses draws rounded to an end."""

    @wraps(law)
    def quiet(case: Any) -> Iterator[str]:
        with unvalidated():
            yield from law(case)

    return quiet


class _Case(NamedTuple):
    likelihood: Likelihood
    output: Tensor
    draws: int
    event: tuple[int, ...] | None
    seed: int
    fits: dict[str, tuple[list[Proposal], Tensor]]  # which several laws share

    @property
    def counts(self) -> bool:
        support: Any = self.support
        return self.likelihood.measure.startswith("counting") or support.is_discrete

    @property
    def shape(self) -> torch.Size:
        """That of x."""
        return self.of(self.output).shape()

    @property
    def support(self) -> constraints.Constraint:
        """That of the distribution; of an angle, one period."""
        p = self.of(self.output)
        try:
            return support_of(p)
        except ValueError:  # of a distribution that declares none
            return constraints.independent(constraints.real, len(p.event_shape))

    @property
    def of_items(self) -> constraints.Constraint:
        """The support of `items`."""
        support: Any = self.support
        return constraints.independent(support, 2 - support.event_dim)

    @property
    def obstacle(self) -> str | None:
        """Why a density cannot be integrated here, if it cannot."""
        support = self.support
        if self.axes > 2:
            return f"on events of {self.axes} axes"
        if any(isinstance(v, Tensor) and v.ndim for v in vars(support).values()):
            return "on a support that depends on the output"
        try:
            is_sphere(support) or biject_to(support)
        except NotImplementedError:
            return f"on the support {support}"
        return None

    @property
    def scattered(self) -> bool:
        """Whether most draws are values of their own, as vectors of many counts are."""
        drawn = self.elements()[:, 0]
        return bool(self.axes) and len(drawn.unique(dim=0)) > len(drawn) / 2

    @property
    def axes(self) -> int:
        """The number of axes, the last ones of x, that are sampled as a whole."""
        return len(self.of(self.output).event_shape) or 1 - self.likelihood.elementwise

    @property
    def whole(self) -> torch.Size:
        """The shape of a part of x with a density of its own, () for an element."""
        return self.shape[len(self.shape) - self.axes :]

    @property
    def chosen(self) -> Tensor:
        """The parts that are judged: each element once, or some at random."""
        items, parts = self.shape[0], self.shape.numel() // self.whole.numel()
        each = parts // items  # of an item
        k = torch.arange(max(min(each, MOST_ELEMENTS), min(items, parts)))
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(each, generator=generator)
        return (k // each + k % each) % items * each + order[k % each]

    def of(self, output: Tensor) -> TorchDistribution:
        """p(x|z), whose independent elements are in the batch shape."""
        p = given_z(self.likelihood, output, output.shape[:0])
        while isinstance(p, dist.Independent):
            p = p.base_dist
        return p

    def sample(self, n: int | None = None) -> Float[Tensor, "draw *output"]:
        return self.of(self.output).sample((n or self.draws,)).detach().double()

    def values(self) -> Float[Tensor, "value *whole"]:
        """All values drawn for several sizes of output, and whole numbers between."""
        sizes = (0.0, 0.5, 1.0, 2.0, 4.0)
        drawn = [self.of(s * self.output).sample((self.draws,)) for s in sizes]
        values = torch.cat([self.parts(x.double()).unique(dim=0) for x in drawn])
        small = (values.abs() < LARGEST).reshape(len(values), -1).all(1)
        values = values[small].unique(dim=0)
        if self.axes or not bool((values == values.round()).all()):
            return values
        low, high = int(values[0]), int(values[-1])
        many = high - low < MOST_VALUES
        return torch.arange(low, high + 1.0) if many else values

    def parts(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "part *whole"]:
        """The parts with a density each, in one axis."""
        return x.reshape(-1, *self.whole)

    def elements(self, n: int | None = None) -> Float[Tensor, "draw element *whole"]:
        """Samples of the chosen parts of x."""
        x = self.sample(n)
        return x.reshape(len(x), -1, *self.whole)[:, self.chosen]

    def items(self, n: int) -> Float[Tensor, "draw element view dim"]:
        """The same as items with views of some numbers."""
        x = self.elements(n)
        return x.reshape(*x.shape[:2], *(1,) * (2 - self.axes), *self.whole)

    def ends(self, x: Float[Tensor, "*shape"]) -> Tensor:
        """Where parts of x are rounded to an end of the support."""
        if self.counts or self.obstacle or is_sphere(self.support):
            return torch.zeros_like(x).bool()
        parts = self.parts(x)
        ends = ~within(parts, biject_to(self.support))
        return ends.reshape(-1, *(1,) * self.axes).expand_as(parts).reshape(x.shape)

    def numbers(self, x: Float[Tensor, "*n whole"]) -> Float[Tensor, "*n"]:
        """One number for each part, which identifies it."""
        if not self.axes:
            return x
        x = x.flatten(-self.axes)
        return x @ torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype)

    def over(
        self, values: Float[Tensor, "value *whole"]
    ) -> Float[Tensor, "value element"]:
        """The log-densities of the chosen parts at all values."""
        x = values.unsqueeze(1).expand(-1, len(self.chosen), *self.whole)
        return self.log_prob(x)

    def log_prob(
        self, x: Float[Tensor, "n element *whole"]
    ) -> Float[Tensor, "n element"]:
        """The log-density of the chosen parts, the others being as they may."""
        p = self.of(self.output)
        others = self.parts(p.sample().to(x)).expand(len(x), -1, *self.whole)
        x = others.index_copy(1, self.chosen, x).view(-1, *self.shape)
        log_prob = p.to_event(self.axes - len(p.event_shape)).log_prob(x)
        return log_prob.flatten(1)[:, self.chosen].detach()

    def fit(
        self,
    ) -> tuple[LogDensity, list[Proposal], Float[Tensor, "n item view dim"]]:
        """The density of parts as items with views of some numbers; proposals."""

        def density(x: Tensor) -> Tensor:
            return self.log_prob(x.reshape(*x.shape[:2], *self.whole))

        if "x" not in self.fits:
            samples = self.items(self.draws)
            self.fits["x"] = fitted(density, samples, self.of_items), samples
        return density, *self.fits["x"]


def shapes(case: _Case) -> Iterator[str]:
    """One distribution of x for every item, whatever axes are in front."""
    event = case.event
    if event is None:
        event = tuple(case.shape[1:])
    wide = case.output.expand(2, *case.output.shape)
    for output in (case.output, case.output[:1], wide):
        lead = output.shape[: output.dim() - case.output.dim() + 1]
        p = given_z(case.likelihood, output, lead)
        if p.event_shape != event:
            yield (
                f"expected a distribution of shape {(*lead, *event)} for an output of "
                f"shape {tuple(output.shape)}, got {tuple(p.shape())}; count axes from "
                "the last"
            )
            return
        x = p.sample()
        log_prob = p.log_prob(x)
        if x.shape != lead + p.event_shape or log_prob.shape != lead:
            yield (
                f"expected x of shape {(*lead, *event)} and {tuple(lead)} "
                f"log-densities, got {tuple(x.shape)} and {tuple(log_prob.shape)}"
            )
            return
    plain = case.of(case.output).log_prob(x[0])
    alone = case.of(case.output[:1]).log_prob(x[0, :1])
    if gap := differs(alone, plain[:1]):
        yield f"{gap} for one item alone against the same in a batch"
    if gap := differs(case.of(wide).log_prob(x)[0], plain):
        yield f"{gap} with an axis in front against without; count axes from the last"


def measure(case: _Case) -> Iterator[str]:
    """It begins with "counting" where the support is discrete."""
    name = case.likelihood.measure
    if case.counts and not (case.likelihood.pseudo or name.startswith("counting")):
        yield (
            f"expected a measure that begins with 'counting' on {case.support}, got "
            f"{name!r}; set for instance measure = 'counting, 0, 1, …'"
        )


def normalisation(case: _Case) -> Iterator[str]:
    """The density sums or integrates to one, for every element."""
    if case.likelihood.pseudo:
        return
    look = "look at the constants in log_prob, or declare pseudo = True"
    if not case.counts and case.obstacle:
        yield Note(f"its density, {case.obstacle}, was not integrated")
        return
    if not case.counts:
        density, proposals, samples = case.fit()
        what = "p(x) of one element"
        yield from integral(density, proposals, case.draws, what, look, samples)
        return
    if case.scattered:
        yield Note(
            "its density was not summed: its values are too many to be drawn; check it "
            "with a smaller event_shape"
        )
        return
    values = case.values()
    total = case.over(values).exp().sum(0)
    missing = (1 - total - _unseen(case, values)).clamp(min=0)
    over = missing.maximum(total - 1 - 1e-6).nan_to_num(math.inf)
    worst = total[over.argmax()]
    if float(over.max()) > 0:
        yield (
            f"expected the sum over {len(values)} values to be 1, got "
            f"{float(worst):.6g}; log_prob is off by {float(worst.log()):.3g} nats: "
            f"{look}"
        )


def sampling(case: _Case) -> Iterator[str]:
    """Samples follow the density."""
    if case.likelihood.pseudo:
        return
    if not case.counts and case.obstacle:
        return
    if not case.counts:
        density, proposals, _ = case.fit()

        def sample(n: int) -> dict[str, Tensor]:
            return {"samples of x": case.items(n)}

        n, support = case.draws, case.of_items
        yield from samples_follow(density, proposals, sample, n, support)
        return
    whole = (_ratios, _exchanges) if case.axes else ()
    for law in whole if case.scattered else (_frequencies, *whole):
        for fault in law(case):
            yield f"expected samples to follow log_prob, got {fault}; look at sample"
            return


def _frequencies(case: _Case) -> Iterator[str]:
    """Means of cosines over samples are those under the density of all values.

    Values that were never drawn are missing from the sum: means may differ by twice
    their probability.
    """
    values, drawn = case.values(), case.numbers(case.elements())
    slack = 2 * _unseen(case, values)
    share, values = case.over(values).softmax(0), case.numbers(values)
    for frequency in (0.5, 1.0, 2.0, 4.0):
        scale = frequency / values.std().clamp(min=1e-12)
        wave = torch.cos(scale * values).unsqueeze(1)
        expected = (share * wave).sum(0)
        variance = (share * (wave - expected).square()).sum(0)
        found = mean_of(torch.cos(scale * drawn))
        # A sample without rare values has too short an error bar of its own.
        error = torch.hypot(found.error, (variance / case.draws).sqrt())
        near = found.value + (expected - found.value).clamp(min=-slack, max=slack)
        away = Estimate(near, error).misses(expected)
        if float(away.max()) > BARS:
            yield f"means that differ by {float(away.max()):.0f} standard errors"


def _ratios(case: _Case) -> Iterator[str]:
    r"""The density of another output has the integral 1, :math:`E_p[p' / p] = 1`.

    The other output is near enough for the logarithm of the ratio to have a standard
    deviation of at most 1, so that the weights have no long tail.
    """
    x = case.elements()
    log_prob = case.log_prob(x)
    for _ in range(OTHERS):
        step = torch.randn_like(case.output)
        for _ in range(HALVINGS):
            other = case._replace(output=case.output + step)
            log_ratio = other.log_prob(x) - log_prob
            if bool((log_ratio.std(0) <= 1).all()):
                break
            step = step / 2
        if not bool(case.log_prob(other.elements()).isfinite().all()):
            continue  # its support is another
        ratio = mean_of(log_ratio.exp())
        away = ratio.misses(1.0)
        if float(away.max()) > BARS:
            i = int(away.argmax())
            bar = f"{float(ratio.value[i]):.4g} ± {float(ratio.error[i]):.2g}"
            yield (
                f"{bar} instead of 1 for the mean of p'(x) / p(x), where p' belongs to "
                "another output"
            )


def _exchanges(case: _Case) -> Iterator[str]:
    r"""A Metropolis step keeps the means of samples that follow the density.

    .. math:: E[a \, (f(x') - f(x))] = 0, \qquad a = \min(1, p(x') / p(x))

    From x to x' one unit moves from one element of a vector to another, which keeps its
    sum; f is the log-density, and the sum of squares. x' stays within the least and
    largest values that were drawn, and on the support.
    """
    x = case.sample()
    low, high = x.amin(0), x.amax(0)
    parts = x.flatten(x.dim() - case.axes).reshape(case.draws, -1, case.whole.numel())
    places = (parts != parts[:1]).any(0).any(0).nonzero().flatten()
    drawn = parts[..., places]
    if len(places) < 2 or not bool((drawn == drawn.round()).all()):
        return
    first = torch.randint(len(places), parts.shape[:2])
    second = torch.randint(1, len(places), parts.shape[:2]) + first
    unit = torch.zeros_like(parts)
    for place, sign in ((first, 1.0), (second % len(places), -1.0)):
        unit.scatter_(-1, places[place].unsqueeze(-1), sign)
    moved = x + unit.view_as(x)
    inside = (moved >= low) & (moved <= high)
    support: Any = case.support
    on = support.check(moved)
    inside &= on.reshape(*on.shape, *(1,) * (x.dim() - on.dim()))
    inside = inside.reshape(parts.shape).all(-1, keepdim=True)
    moved = torch.where(inside, moved.reshape(parts.shape), parts)

    parts, moved = (
        each[:, case.chosen].unflatten(-1, case.whole) for each in (parts, moved)
    )
    gain = case.log_prob(moved) - case.log_prob(parts)
    accepted = gain.exp().clamp(max=1)
    squares = (moved.square() - parts.square()).flatten(2).sum(-1)
    for name, change in (("log_prob", gain), ("the sum of squares", squares)):
        found = mean_of(torch.where(accepted > 0, accepted * change, 0.0))
        away = found.misses(0.0)
        if float(away.max()) > BARS:
            yield (
                f"{name} off by {float(away.max()):.0f} standard errors, where one "
                "unit moves between two elements"
            )


def _unseen(case: _Case, values: Tensor) -> Float[Tensor, " element"]:
    """Bounds on the probability of values that were never drawn."""
    fresh = case.elements()
    both, place = torch.cat([values, case.parts(fresh)]).unique(
        dim=0, return_inverse=True
    )
    seen = torch.zeros(len(both)).bool().scatter(0, place[: len(values)], True)
    new = (~seen[place[len(values) :]]).view(fresh.shape[:2])
    bound = mean_of(new.double())
    return 25 / case.draws + bound.value + BARS * bound.error


def independence(case: _Case) -> Iterator[str]:
    """Elements and items are drawn independently."""
    if not case.likelihood.pseudo:
        x = case.sample().reshape(case.draws, -1, case.whole.numel())
        yield from independent({"samples of x": x}, "elements and items")


def mean(case: _Case) -> Iterator[str]:
    """Samples have the mean of the distribution."""
    p = case.of(case.output)
    try:
        expected = p.mean
    except NotImplementedError:
        expected = torch.tensor(math.nan)
    if bool(expected.isnan().any()):
        yield Note("it has no mean: ps.reconstruct and ps.sample refuse it")
    # The mean of a circular or spherical distribution is one of directions.
    elif not (isinstance(p, dist.VonMises) or is_sphere(case.support)):
        deviation: Tensor | None = None
        with suppress(NotImplementedError):
            deviation = p.stddev.detach()
        yield from mean_is_that_of_samples(case.sample(), expected.detach(), deviation)


def own_samples(case: _Case) -> Iterator[str]:
    """`check` and the support accept samples; NaN raises a ValueError."""
    x = case.sample()
    support: Any = case.support
    if not bool(support.check(x).all()):
        yield f"expected samples on the support, {support}, got others"
    x = x.flatten(0, 1)
    try:
        case.likelihood.check(x)
    except ValueError as error:
        yield f"expected check to accept its own samples, got {in_short(error)}"
    try:
        case.likelihood.check(torch.full_like(x, torch.nan))
    except ValueError:
        return
    yield "expected a ValueError from check for NaN; call super().check(x) in it"


def extremes(case: _Case) -> Iterator[str]:
    """No NaN for samples of huge and tiny outputs, nor in gradients."""
    ordinary = case.of(case.output).sample().double()
    for size in (0.0, 1e-12, 30.0, 1e4):
        output = (size * case.output).requires_grad_()
        with torch.no_grad():
            x = case.of(output).sample().double()
        size_of_x = x.abs()
        data = (size_of_x < LARGEST) & (case.counts | (size_of_x > 1 / LARGEST))
        x = torch.where(data, x, ordinary)
        value = case.of(output).log_prob(x)
        if value.isnan().any() and (ends := case.ends(x)).any():
            yield Note(
                f"its samples for outputs about ±{size:g} round to an end of the "
                "support, where its density is NaN; keep outputs in a range"
            )
            x = torch.where(ends, ordinary, x)
            value = case.of(output).log_prob(x)
        # Items with an infinite density have no gradient.
        finite = (
            value.flatten(1).isfinite().all(1) if value.ndim > 1 else value.isfinite()
        )
        (grad,) = torch.autograd.grad(value[finite].sum(), output)
        broken = grad.isnan() & finite.reshape(-1, *[1] * (grad.ndim - 1))
        if value.isnan().any():
            broken = value.isnan()
        if broken.any() and (beyond := _beyond(case.of(output))):
            yield Note(
                f"its {beyond} rounds to 0 or infinity for outputs about ±{size:g}, "
                "where its density is NaN; keep it in a range, as "
                "o.sigmoid() between two bounds"
            )
        elif broken.any():
            place = tuple(broken.nonzero()[0].tolist())
            found = "log_prob" if value.isnan().any() else "the gradient of log_prob"
            like = broken.shape == output.shape[: broken.ndim]  # else of the item
            row = output.detach()[place if like else place[:1]].flatten().tolist()
            shown = ", ".join(f"{number:.4g}" for number in row[:6])
            yield (
                f"expected no NaN for outputs about ±{size:g}, got one in {found} at "
                f"{place}, for the output {shown}{', …' * (len(row) > 6)}; mind "
                "0 · inf and inf - inf: compute with logarithms (logsigmoid, logaddexp)"
            )


def _beyond(p: Distribution) -> str | None:
    """The name of a parameter that has left its range by rounding, if any."""
    for name, part in vars(p).items():
        if isinstance(part, Distribution):
            found = _beyond(part)
            if found:
                return found
        elif isinstance(part, Tensor) and name in p.arg_constraints:
            inside = p.arg_constraints[name].check(part)
            if not (bool(inside.all()) and bool(part.isfinite().all())):
                return name
    return None


def _valued(case: _Case) -> Valued:
    x = case.of(case.output).sample()

    def value(likelihood: Likelihood, output: Tensor) -> Tensor:
        return likelihood(output).log_prob(x.to(output))

    return Valued(case.likelihood, value, (case.output,))
