"""Likelihoods of grey levels and of binary pixels."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ..arguments import whole
from ..distributions._base import Expandable, Shape
from .base import PSEUDO, Likelihood, refuse

__all__ = ["Bernoulli", "Binomial", "GreyLevels", "check_grid"]

TABLE = 2**16  # levels from which binomial coefficients are computed for each pixel


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood of binary pixels: minus the binary cross-entropy.

    .. math:: \log p(x \mid z) = \sum x \, a - \log(1 + e^a), \qquad
        a = \mathrm{decoder}(z)

    Arguments:
        grey: Whether to accept values between 0 and 1, as many released VAEs do. The
            formula is then a pseudo-likelihood, no density of x.
    """

    link = "logits"

    def __init__(self, grey: bool = False) -> None:
        super().__init__()
        self.grey = self.pseudo = grey
        self.measure = PSEUDO if grey else "counting, {0, 1}"

    def extra_repr(self) -> str:
        return "grey=True" if self.grey else ""

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return GreyLevels(1, output)

    def check(self, x: Tensor) -> None:
        super().check(x)
        if not self.grey and not bool(((x == 0) | (x == 1)).all()):
            hint = "binarise the data and the views (levels=1)"
            raise refuse(self, "binary pixels (0 or 1)", x, hint)
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise refuse(self, "values from 0 to 1", x)


class Binomial(Likelihood):
    r"""Binomial likelihood of grey levels :math:`x \in \{0, 1/n, \dots, 1\}`.

    .. math:: \log p(x \mid z) = \sum \log \binom{n}{n x}
        + n \, (x \, a - \log(1 + e^a)), \qquad a = \mathrm{decoder}(z)

    Arguments:
        levels: The highest level n, 16 for scikit-learn's digits.
    """

    link = "logits"

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = whole("levels", levels, hint="give the highest grey level")
        self.measure = f"counting, {{0, …, {levels}}} / {levels}"

    def extra_repr(self) -> str:
        return f"levels={self.levels}"

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return GreyLevels(self.levels, output)

    def check(self, x: Tensor) -> None:
        super().check(x)
        check_grid(self, x, self.levels)


class GreyLevels(Expandable):
    """A binomial count of `levels` trials, divided by `levels`: the grid k/levels.

    Between grid points `log_prob` has the binomial coefficient of the nearest one.
    """

    parts = {"logits": 0}
    support = constraints.unit_interval

    def __init__(self, levels: int, logits: Tensor) -> None:
        self.levels, self.logits = levels, logits
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean) / self.levels

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        if self.levels == 1:
            coin = dist.Bernoulli(logits=self.logits, validate_args=False)
            return coin.sample(sample_shape)
        count = dist.Binomial(self.levels, logits=self.logits, validate_args=False)
        return count.sample(sample_shape) / self.levels

    def log_prob(self, value: Tensor) -> Tensor:
        n, dtype = self.levels, torch.result_type(value, self.logits)
        x, a = value, self.logits
        if n > 255:  # a small difference of numbers that float32 would round
            x, a = x.double(), a.double()
        log_prob = n * (x * a + logsigmoid(-a))  # not softplus: its asymptote above 20
        if n == 1:
            return log_prob
        return (log_prob + _log_choices(n, x * n)).to(dtype)


def _log_choices(n: int, count: Tensor) -> Tensor:
    """log C(n, k) for the nearest whole number k, computed in float64."""
    if n >= TABLE:
        k = count.double().round()
        top = torch.full_like(k, n + 1.0)
        return top.lgamma() - (k + 1).lgamma() - (top - k).lgamma()
    log = torch.arange(1.0, n + 2, dtype=torch.double, device=count.device).lgamma()
    outside = log.new_full((1,), -torch.inf)
    choices = torch.cat([outside, log[-1] - log - log.flip(0), outside])
    return choices.to(count.dtype)[(count.round() + 1).clamp(0, n + 2).long()]


def check_grid(likelihood: Likelihood, x: Tensor, levels: int) -> None:
    """Raise a ValueError unless x holds the grey levels k / levels from 0 to 1."""
    count = x * levels
    fits = (x >= 0) & (x <= 1) & ((count - count.round()).abs() < 1e-3)
    if not bool(fits.all()):
        wanted = f"grey levels k/{levels} from 0 to 1"
        raise refuse(likelihood, wanted, x)
