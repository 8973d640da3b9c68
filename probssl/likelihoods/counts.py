"""Likelihoods of counts, such as reads of genes or words of documents."""

from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ..arguments import at_least
from ..distributions._base import Expandable, Shape
from ..hyper import Learned, learned
from .base import Likelihood, Predicted, Spread, refuse, spread, spread_of
from .continuous import shown

__all__ = ["Counts", "NegativeBinomial", "Poisson"]

HUGE = 690.0  # the logarithm of a mean that float64 still holds
SMALL = 1e-8  # a dispersion below which densities would cancel, also in float64
POISSON = "take Poisson(), which such counts are to seven digits"
LARGE = 1e15  # a Poisson count so large is its mean to seven digits


class Poisson(Likelihood):
    r"""Poisson likelihood of counts :math:`x \in \{0, 1, \dots\}`.

    .. math:: \log p(x \mid z) = \sum x \, a - e^a - \log x!, \qquad
        a = \mathrm{decoder}(z)

    The decoder's output is the logarithm of the mean. Zero-inflated, a count is 0 with
    probability :math:`\pi = 1 / (1 + e^{-b})` whatever its mean, and the decoder
    returns (a, b) in a last axis:

    .. math:: p_0(x) = \pi \, [x = 0] + (1 - \pi) \, p(x)

    Arguments:
        zero_inflated: Whether there are more zeros than the mean explains.
    """

    measure = "counting, {0, 1, …}"
    link = "logarithms of means"

    def __init__(self, *, zero_inflated: bool = False) -> None:
        super().__init__()
        self.zero_inflated = zero_inflated
        self.per_element = 1 + zero_inflated

    def extra_repr(self) -> str:
        return "zero_inflated=True" * self.zero_inflated

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        log_mean, *gate = self.split(output)
        return Counts(log_mean, None, *gate)

    def check(self, x: Tensor) -> None:
        super().check(x)
        if not bool(((x >= 0) & (x == x.round())).all()):
            raise refuse(self, "counts 0, 1, …", x, "give the counts themselves")


class NegativeBinomial(Poisson):
    r"""Negative binomial likelihood of counts: mean :math:`\mu`, dispersion α.

    .. math:: p(x \mid z) = \prod \frac{\Gamma(x + r)}{\Gamma(r) \, x!}
        \Big( \frac{r}{r + \mu} \Big)^r \Big( \frac{\mu}{r + \mu} \Big)^x, \qquad
        \mu = e^a, \quad a = \mathrm{decoder}(z), \quad r = 1 / \alpha

    Its variance is :math:`\mu + \alpha \mu^2`, for :math:`\alpha \to 0` that of the
    Poisson. The decoder returns in a last axis, if there are several: a, the logit b of
    a zero if zero-inflated as in `Poisson`, and a predicted dispersion.

    Arguments:
        dispersion: α: a number, ``ps.learned(number)``, one number for each element of
            the last axis, as for each gene, or `Predicted`. Some packages call its
            reciprocal r the (inverse) dispersion.
        zero_inflated: Whether there are more zeros than mean and dispersion explain.
        floor: A lower bound of a learned dispersion.

    Raises:
        ValueError: If the dispersion is not positive, or a distribution.

    References:
        Deep Generative Modeling for Single-Cell Transcriptomics (Lopez et al., 2018)
        https://doi.org/10.1038/s41592-018-0229-2
    """

    def __init__(
        self,
        dispersion: Spread = learned(1.0),  # noqa: B008  a constant
        *,
        zero_inflated: bool = False,
        floor: float = 1e-4,
    ) -> None:
        super().__init__(zero_inflated=zero_inflated)
        self.dispersion = spread("dispersion", dispersion, floor)
        least: Any = floor if isinstance(dispersion, Learned) else dispersion
        least = dispersion.low if isinstance(dispersion, Predicted) else least
        at_least("the dispersion and its floor", float(np.min(least)), SMALL, POISSON)
        self.per_element += isinstance(self.dispersion, Predicted)

    def extra_repr(self) -> str:
        parts = super().extra_repr(), shown(dispersion=self.dispersion)
        return ", ".join(filter(None, parts))

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        parameters = self.split(output)
        dispersion = spread_of(self.dispersion, parameters)
        log_mean, *gate = parameters
        return Counts(log_mean, dispersion, *gate)


class Counts(Expandable):
    """Poisson or negative binomial counts, with further zeros if there is a gate.

    Densities are computed in float64: they are small differences of large numbers.

    Arguments:
        log_mean: The logarithm of the mean, without further zeros.
        dispersion: (variance - mean) / mean², a tensor that broadcasts with
            `log_mean`; None means 0, the Poisson.
        gate: The logit of a zero whatever the mean; None means none.
    """

    parts = {"log_mean": 0, "gate": 0}
    support = constraints.nonnegative_integer

    def __init__(
        self, log_mean: Tensor, dispersion: Tensor | None, gate: Tensor | None = None
    ) -> None:
        self.log_mean, self.dispersion, self.gate = log_mean, dispersion, gate
        super().__init__(log_mean.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        mean = self.log_mean.exp()
        return mean if self.gate is None else mean * (-self.gate).sigmoid()

    @property
    def variance(self) -> Tensor:
        mean, alpha = self.log_mean.exp(), self.dispersion
        variance = mean if alpha is None else mean + alpha * mean.square()
        if self.gate is None:
            return variance
        zero = self.gate.sigmoid()
        return (1 - zero) * (variance + zero * mean.square())

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        rate = self.log_mean.exp().expand(self._extended_shape(sample_shape))
        if self.dispersion is not None:
            r = self.dispersion.reciprocal().expand_as(rate)
            rate = rate * dist.Gamma(r, r, validate_args=False).sample()
        count = torch.poisson(rate.clamp(max=LARGE))
        count = torch.where(rate < LARGE, count, rate)
        if self.gate is None:
            return count
        return count * torch.bernoulli((-self.gate).sigmoid().expand_as(count))

    def log_prob(self, value: Tensor) -> Tensor:
        x, a = value.double(), self.log_mean.double()
        if (
            self.gate is not None
        ):  # a zero has the gradient 0 in a, not 0 times infinity
            a = torch.where(x == 0, a.clamp(max=HUGE), a)
        log_prob = x * a - (x + 1).lgamma()
        if self.dispersion is None:
            log_prob = log_prob - a.exp()
        else:
            alpha = self.dispersion.double()
            r = alpha.reciprocal()
            rising = (x + r).lgamma() - r.lgamma() + x * alpha.log()
            # Not softplus, which returns its asymptote above 20.
            log_prob = log_prob + rising + (x + r) * logsigmoid(-a - alpha.log())
        if self.gate is not None:
            gate = self.gate.double()
            log_prob = logsigmoid(-gate) + log_prob
            zero = torch.logaddexp(logsigmoid(gate), log_prob)
            log_prob = torch.where(x == 0, zero, log_prob)
        return log_prob.to(self.log_mean.dtype)
