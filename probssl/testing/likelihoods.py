"""Laws of a likelihood p(x | z)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..arguments import instance
from ..likelihoods import Likelihood
from . import modules
from .densities import integral, mean_is_that_of_samples, samples_follow
from .laws import BARS, Trial, differs, examine, in_short, mean_of, twin
from .modules import Valued
from .proposals import LogDensity, Proposal, fitted

__all__ = ["check_likelihood"]

MOST_ELEMENTS = 5  # of an output, whose densities are integrated


def check_likelihood(
    likelihood: Likelihood,
    output: Float[Tensor, "n *event"],
    *,
    draws: int = 4000,
    seed: int = 0,
) -> None:
    r"""Check a likelihood of your own against the laws of any :math:`p(x \mid z)`.

    ================  ============================================================
    shapes            the leading axes are those of the output, the others those of x
    normalisation     the density sums or integrates to one, for every element of x
    sampling          samples follow the density
    mean              samples have the mean of the distribution
    own samples       `check` accepts samples, and raises a ValueError for NaN
    extremes          no NaN for huge and tiny outputs, nor in gradients
    gradients         float32, device, state, saving, tracing: as in `check_prior`
    ================  ============================================================

    A `pseudo` likelihood need not be normalised, nor do its samples follow it. Where
    `measure` begins with "counting", sums run over all values that were drawn.

    Arguments:
        likelihood: The likelihood.
        output: An example of a decoder's output, for a few items.
        draws: The number of draws of an estimate; error bars are five standard errors.
        seed: The seed of all draws.

    Raises:
        LawError: If a law is broken; it names all that are.
        TypeError: If it is not a `Likelihood`.

    Example:
        >>> import probssl as ps
        >>> check_likelihood(ps.likelihoods.Binomial(16), torch.randn(3, 4))
    """
    hint = "inherit from it, for measure, pseudo and check"
    expected = "a ps.likelihoods.Likelihood"
    instance("likelihood", likelihood, Likelihood, expected, hint)
    case = _Case(twin(likelihood), output.detach().cpu().double(), draws)
    own = (shapes, normalisation, sampling, mean, own_samples, extremes)
    laws: list[Trial] = [(law, lambda: case) for law in own]
    numerical = (*modules.UNTRACED, modules.tracing)
    laws += [(law, lambda: _valued(case)) for law in numerical]
    examine(type(likelihood).__name__, laws, seed)


class _Case(NamedTuple):
    likelihood: Likelihood
    output: Tensor
    draws: int

    @property
    def counts(self) -> bool:
        return self.likelihood.measure.startswith("counting")

    @property
    def shape(self) -> torch.Size:
        """That of x."""
        return self.of(self.output).shape()

    def of(self, output: Tensor) -> TorchDistribution:
        distribution: TorchDistribution = self.likelihood(output)
        return distribution

    def sample(self) -> Float[Tensor, "draw *output"]:
        return self.of(self.output).sample((self.draws,)).detach()

    def values(self) -> Float[Tensor, "value *whole"]:
        """All values drawn, for outputs of several sizes."""
        sizes = (0.0, 0.5, 1.0, 2.0, 4.0)
        drawn = [self.of(s * self.output).sample((self.draws,)) for s in sizes]
        return torch.cat([self.parts(x).unique(dim=0) for x in drawn]).unique(dim=0)

    def parts(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "part *whole"]:
        """The parts with a density each: elements, or vectors in the last axis."""
        return x.flatten() if self.likelihood.elementwise else x.flatten(0, -2)

    def elements(self) -> Float[Tensor, "draw element"]:
        """Samples of the first elements of x; vectors as one number each."""
        return self.numbers(self.sample()).flatten(1)[:, :MOST_ELEMENTS]

    def numbers(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*numbers"]:
        """One number for each part, which identifies it."""
        if self.likelihood.elementwise:
            return x
        return x @ torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype)

    def over(
        self, values: Float[Tensor, "value *whole"]
    ) -> Float[Tensor, "value element"]:
        """The log-densities of the first elements, or vectors, at all values."""
        if self.likelihood.elementwise:
            elements = min(MOST_ELEMENTS, self.shape.numel())
            return self.log_prob(values.unsqueeze(1).expand(-1, elements))
        distribution = self.of(self.output).to_event(1)
        lead = [1] * (len(self.shape) - 1)
        log_prob = distribution.log_prob(values.unflatten(0, (-1, *lead)))
        return log_prob.flatten(1)[:, :MOST_ELEMENTS].detach()

    def log_prob(self, x: Float[Tensor, "n element"]) -> Float[Tensor, "n element"]:
        """The log-density of the first elements, the others being as they may."""
        distribution = self.of(self.output)
        whole = distribution.sample().expand(len(x), *self.shape).flatten(1)
        whole = torch.cat([x, whole[:, x.shape[1] :]], 1)
        log_prob = distribution.log_prob(whole.view(-1, *self.shape))
        return log_prob.flatten(1)[:, : x.shape[1]].detach()

    def fit(self) -> tuple[LogDensity, list[Proposal], Float[Tensor, "n item 1 1"]]:
        """The density of elements as items with one view of one number; proposals."""

        def density(x: Tensor) -> Tensor:
            return self.log_prob(x.flatten(2).squeeze(2))

        samples = self.elements()[..., None, None]
        support = constraints.independent(self.of(self.output).support, 2)
        return density, fitted(density, samples, support), samples


def shapes(case: _Case) -> Iterator[str]:
    """One distribution of x for every item, whatever axes are in front."""
    event = tuple(case.of(case.output).shape()[1:])
    wide = case.output.expand(2, *case.output.shape)
    for output in (case.output, case.output[:1], wide):
        distribution = case.of(output)
        lead = tuple(output.shape[: output.dim() - case.output.dim() + 1])
        found = tuple(distribution.shape())
        if found != lead + event:
            yield (
                f"expected a distribution of shape {lead + event} for an output of "
                f"shape {tuple(output.shape)}, got {found}; count axes from the last"
            )
            return
        x = distribution.sample()
        axes = len(distribution.batch_shape) - len(lead)
        log_prob = distribution.to_event(axes).log_prob(x)
        if tuple(x.shape) != found or tuple(log_prob.shape) != lead:
            yield (
                f"expected x of shape {found} and {lead} log-densities, got "
                f"{tuple(x.shape)} and {tuple(log_prob.shape)}"
            )
            return
    gap = differs(
        case.of(case.output[:1]).log_prob(x[0, :1]),
        case.of(case.output).log_prob(x[0])[:1],
    )
    if gap:
        yield f"{gap} for one item alone against the same in a batch"


def normalisation(case: _Case) -> Iterator[str]:
    """The density sums or integrates to one, for every element."""
    if case.likelihood.pseudo:
        return
    look = "look at the constants in log_prob, or declare pseudo = True"
    if not case.counts:
        density, proposals, _ = case.fit()
        yield from integral(density, proposals, case.draws, "p(x) of one element", look)
        return
    values = case.values()
    total = case.over(values).exp().sum(0)
    # Values that were never drawn have about this probability at most.
    unseen = 25 / case.draws
    worst = total[(total - 1).abs().argmax()]
    if not -unseen <= float(worst - 1) <= 1e-6:
        yield (
            f"expected the sum over {len(values)} values to be 1, got "
            f"{float(worst):.6g}; log_prob is off by {float(worst.log()):.3g} nats: "
            f"{look}"
        )


def sampling(case: _Case) -> Iterator[str]:
    """Samples follow the density."""
    if case.likelihood.pseudo:
        return
    if not case.counts:
        density, proposals, samples = case.fit()
        yield from samples_follow(density, proposals, samples, "samples of x")
        return
    values, drawn = case.values(), case.elements()
    share, values = case.over(values).softmax(0), case.numbers(values)
    for frequency in (0.5, 1.0, 2.0, 4.0):
        scale = frequency / values.std().clamp(min=1e-12)
        expected = (share * torch.cos(scale * values).unsqueeze(1)).sum(0)
        away = mean_of(torch.cos(scale * drawn)).misses(expected)
        if float(away.max()) > BARS:
            yield (
                "expected samples to follow log_prob, got means that differ by "
                f"{float(away.max()):.0f} standard errors; look at sample"
            )
            return


def mean(case: _Case) -> Iterator[str]:
    """Samples have the mean of the distribution."""
    yield from mean_is_that_of_samples(case.sample(), case.of(case.output).mean)


def own_samples(case: _Case) -> Iterator[str]:
    """`check` accepts samples, and raises a ValueError for NaN."""
    x = case.sample().flatten(0, 1)
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
    for size in (0.0, 1e-12, 1e4):
        output = (size * case.output).requires_grad_()
        with torch.no_grad():
            x = case.of(output).sample()
        value = case.of(output).log_prob(x)
        (grad,) = torch.autograd.grad(value[value.isfinite()].sum(), output)
        if value.isnan().any() or grad.isnan().any():
            yield f"expected no NaN for outputs about {size:g}, got one"


def _valued(case: _Case) -> Valued:
    x = case.of(case.output).sample()

    def value(likelihood: Likelihood, output: Tensor) -> Tensor:
        return likelihood(output).log_prob(x.to(output))

    return Valued(case.likelihood, value, (case.output,))
