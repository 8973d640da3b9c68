"""Likelihoods p(x | z): what the output of a decoder means."""

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .hyper import Learned, Positive

__all__ = ["Bernoulli", "Binomial", "Categorical", "Gaussian", "GreyLevels"]
__all__ += ["Likelihood", "OneHot"]

Shape = Size | list[int] | tuple[int, ...]


class Likelihood(nn.Module):
    """A likelihood: `forward` turns a decoder's output into the distribution of x.

    Attributes:
        measure: What a density is a density of. Evidences compare under one measure.
        pseudo: Whether it is only a pseudo-likelihood, without evidence.
        elementwise: Whether elements of x are independent given z. If not, vectors in
            the last axis are drawn as a whole, and `log_prob` gives summands whose sum
            over that axis is the log-probability.
    """

    measure: str = "Lebesgue"
    pseudo: bool = False
    elementwise: bool = True

    def check(self, x: Tensor) -> None:
        """Raise an error if x cannot have come from this likelihood."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "expected finite data, got NaN or infinite values; remove or impute "
                "them (a whole absent view is marked in Batch.present)"
            )


class Bernoulli(Likelihood):
    r"""Binary pixels.

    .. math:: \log p(x \mid z) = \sum x \, a - \log(1 + e^a), \qquad
        a = \mathrm{decoder}(z)

    Arguments:
        grey: Whether to admit values between 0 and 1, as many released VAEs do. The
            formula is then no density of x, only a pseudo-likelihood.
    """

    def __init__(self, grey: bool = False) -> None:
        super().__init__()
        self.grey = self.pseudo = grey
        self.measure = "none (pseudo-likelihood)" if grey else "counting, {0, 1}"

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return GreyLevels(1, output)

    def check(self, x: Tensor) -> None:
        super().check(x)
        if self.grey:
            _check_unit_interval(x, "Bernoulli(grey=True)")
        elif not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(
                "expected binary pixels (0 or 1) for Bernoulli, got values between "
                f"{float(x.min()):.3g} and {float(x.max()):.3g}; binarise the data and "
                "the views (levels=1), use Binomial or Gaussian, or accept the "
                "pseudo-likelihood Bernoulli(grey=True)"
            )


class Binomial(Likelihood):
    r"""Grey levels :math:`x \in \{0, 1/n, \dots, 1\}`, each a count of n.

    .. math:: \log p(x \mid z) = \sum \log \binom{n}{n x}
        + n \, (x \, a - \log(1 + e^a)), \qquad a = \mathrm{decoder}(z)

    Arguments:
        levels: The number n of the highest level, 16 for scikit-learn's digits.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        if not isinstance(levels, int) or levels < 1:
            raise ValueError(
                f"expected levels to be a positive whole number, got {levels!r}; give "
                "the number of the highest grey level, for instance 16"
            )
        self.levels = levels
        self.measure = f"counting, {{0, …, {levels}}} / {levels}"

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return GreyLevels(self.levels, output)

    def check(self, x: Tensor) -> None:
        super().check(x)
        _check_unit_interval(x, f"Binomial({self.levels})")
        count = x * self.levels
        if not bool(((count - count.round()).abs() < 1e-3).all()):
            raise ValueError(
                f"expected grey levels k/{self.levels} for Binomial({self.levels}), "
                "got values between them; let the views end on the grid "
                f"(levels={self.levels}) or use a Gaussian likelihood"
            )


class Categorical(Likelihood):
    r"""One class of several, such as a label: x is one-hot in its last axis.

    .. math:: \log p(x \mid z) = \sum_c x_c \, \Big( a_c - \log \sum_{c'} e^{a_{c'}}
        \Big), \qquad a = \mathrm{decoder}(z)

    Axes before the last one hold classes that are independent given z.

    Arguments:
        classes: The number of classes, the length of the last axis.
        soft: Whether to admit probabilities of the classes, as smoothed labels are.
            The formula is then no density of x, only a pseudo-likelihood.

    Raises:
        ValueError: If there are less than two classes.
    """

    elementwise = False

    def __init__(self, classes: int, soft: bool = False) -> None:
        super().__init__()
        if not isinstance(classes, int) or classes < 2:
            raise ValueError(
                f"expected classes to be a whole number of at least 2, got {classes!r};"
                " give the number of classes, for instance 10"
            )
        self.classes, self.soft, self.pseudo = classes, soft, soft
        counting = f"counting, {classes} classes"
        self.measure = "none (pseudo-likelihood)" if soft else counting

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        self._check_last_axis(output, "the decoder's output")
        return OneHot(output)

    def check(self, x: Tensor) -> None:
        super().check(x)
        self._check_last_axis(x, "x")
        one = ((x.sum(-1) - 1).abs() < 1e-3).all() & (x >= 0).all()
        hard = ((x == 0) | (x == 1)).all()
        if not bool(one & (hard | self.soft)):
            form = "probabilities that sum to 1" if self.soft else "one-hot vectors"
            raise ValueError(
                f"expected {form} in the last axis for Categorical, got other values "
                f"between {float(x.min()):.3g} and {float(x.max()):.3g}; give "
                f"torch.nn.functional.one_hot(labels, {self.classes}) as floats, or "
                "probabilities to the pseudo-likelihood Categorical(…, soft=True)"
            )

    def _check_last_axis(self, x: Tensor, what: str) -> None:
        if x.shape[-1:] != (self.classes,):
            raise ValueError(
                f"expected {what} to have a last axis of {self.classes} classes, got "
                f"shape {tuple(x.shape)}; give it the event shape ({self.classes},)"
            )


class Gaussian(Likelihood):
    r"""Real values around the output of the decoder.

    .. math:: p(x \mid z) = N(\mathrm{decoder}(z), \sigma^2 I)

    Arguments:
        scale: The standard deviation :math:`\sigma`, a number or ``learned(number)``.
        floor: What a learned scale cannot fall below. Without a floor the density of
            pixels that a decoder knows exactly grows without bound.

    Raises:
        ValueError: If the scale is not positive, or a distribution.
    """

    def __init__(self, scale: float | Learned = 0.1, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        least = floor if isinstance(scale, Learned) else 0.0
        self.scale = Positive(scale, "scale", floor=least)
        if self.scale.random:
            raise ValueError(
                "expected scale to be a number or ps.learned(number), got a "
                "distribution; random hyper-parameters are those of the prior"
            )

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Normal(output, self.scale(), validate_args=False)


class GreyLevels(dist.TorchDistribution):
    """A binomial count of `levels`, divided by it: grey values on the grid k/levels.

    Between the grid's values `log_prob` is the continuous extension of the formula.
    """

    arg_constraints = {"logits": constraints.real}
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

    def expand(
        self, batch_shape: Shape, _instance: "GreyLevels | None" = None
    ) -> "GreyLevels":
        return GreyLevels(self.levels, self.logits.expand(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        if self.levels == 1:
            coin = dist.Bernoulli(logits=self.logits, validate_args=False)
            return coin.sample(sample_shape)
        count = dist.Binomial(self.levels, logits=self.logits, validate_args=False)
        return count.sample(sample_shape) / self.levels

    def log_prob(self, value: Tensor) -> Tensor:
        # Not softplus, which rounds to its asymptote from 20 on.
        log_prob = self.levels * (value * self.logits + logsigmoid(-self.logits))
        if self.levels == 1:
            return log_prob
        n = torch.full((), self.levels + 1.0, dtype=value.dtype, device=value.device)
        count = value * self.levels + 1
        return log_prob + n.lgamma() - count.lgamma() - (n + 1 - count).lgamma()


class OneHot(dist.TorchDistribution):
    r"""One-hot vectors in the last axis, drawn as a whole.

    The classes are counted among the batch shape, as the elements of other likelihoods
    are: `log_prob` gives each class its own summand :math:`x_c \log p_c`, of which only
    the sum over classes, that of ``to_event(1)``, is a log-probability. For
    probabilities x it is minus the cross-entropy.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.softmax(-1)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def expand(self, batch_shape: Shape, _instance: "OneHot | None" = None) -> "OneHot":
        return OneHot(self.logits.expand(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        whole = dist.OneHotCategorical(logits=self.logits, validate_args=False)
        return whole.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.logits.log_softmax(-1)


def _check_unit_interval(x: Tensor, name: str) -> None:
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"expected values from 0 to 1 for {name}, got {float(x.min()):.3g} to "
            f"{float(x.max()):.3g}; divide bytes by 255"
        )
