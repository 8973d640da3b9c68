"""Likelihoods (observation models) p(x | z) with the decoder's output as parameter."""

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .arguments import whole
from .hyper import Learned, Positive

__all__ = ["Bernoulli", "Binomial", "Categorical", "Gaussian", "GreyLevels"]
__all__ += ["Likelihood", "OneHot"]

PSEUDO = "none (pseudo-likelihood)"  # the measure of what is no density
Shape = Size | list[int] | tuple[int, ...]


class Likelihood(nn.Module):
    """A likelihood p(x|z): `forward` maps a decoder's output to the distribution of x.

    A likelihood of your own overrides `forward` and, where x is restricted, `check`.
    The shape of what `forward` returns, batch and event, is that of x; an output with
    several parameters for each element of x has another one.

    Attributes:
        measure: The reference measure of the density. Evidences are comparable under
            the same measure only.
        pseudo: Whether it is only a pseudo-likelihood, which gives no evidence.
        elementwise: Whether elements of x are independent given z. If not, vectors in
            the last axis are sampled as a whole, and `log_prob` gives summands whose
            sum over that axis is the log-probability.
    """

    measure: str = "Lebesgue"
    pseudo: bool = False
    elementwise: bool = True

    def check(self, x: Tensor) -> None:
        """Raise a ValueError if x is outside the support of this likelihood."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError(
                "expected finite data, got NaN or infinite values; remove or impute "
                "them (a whole absent view is marked in Batch.present)"
            )


class Bernoulli(Likelihood):
    r"""Bernoulli likelihood of binary pixels: minus the binary cross-entropy.

    .. math:: \log p(x \mid z) = \sum x \, a - \log(1 + e^a), \qquad
        a = \mathrm{decoder}(z)

    Arguments:
        grey: Whether to accept values between 0 and 1, as many released VAEs do. The
            formula is then a pseudo-likelihood, no density of x.
    """

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
    r"""Binomial likelihood of grey levels :math:`x \in \{0, 1/n, \dots, 1\}`.

    .. math:: \log p(x \mid z) = \sum \log \binom{n}{n x}
        + n \, (x \, a - \log(1 + e^a)), \qquad a = \mathrm{decoder}(z)

    Arguments:
        levels: The highest level n, 16 for scikit-learn's digits.
    """

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
        _check_unit_interval(x, f"Binomial({self.levels})")
        count = x * self.levels
        if not bool(((count - count.round()).abs() < 1e-3).all()):
            raise ValueError(
                f"expected grey levels k/{self.levels} for Binomial({self.levels}), "
                "got values between them; let the views end on the grid "
                f"(levels={self.levels}) or use a Gaussian likelihood"
            )


class Categorical(Likelihood):
    r"""Categorical likelihood of a class, such as a label: one-hot in the last axis.

    .. math:: \log p(x \mid z) = \sum_c x_c \, \Big( a_c - \log \sum_{c'} e^{a_{c'}}
        \Big), \qquad a = \mathrm{decoder}(z)

    It is minus the cross-entropy. Classes along the other axes are independent given z.

    Arguments:
        classes: The number of classes, the length of the last axis.
        soft: Whether to accept class probabilities, such as smoothed labels. The
            formula is then a pseudo-likelihood, no density of x.

    Raises:
        ValueError: If there are fewer than two classes.
    """

    elementwise = False

    def __init__(self, classes: int, soft: bool = False) -> None:
        super().__init__()
        self.classes = whole("classes", classes, least=2)
        self.soft = self.pseudo = soft
        self.measure = PSEUDO if soft else f"counting, {classes} classes"

    def extra_repr(self) -> str:
        return f"classes={self.classes}" + ", soft=True" * self.soft

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
    r"""Gaussian likelihood of real values; the decoder's output is the mean.

    .. math:: p(x \mid z) = N(\mathrm{decoder}(z), \sigma^2 I)

    Arguments:
        scale: The standard deviation :math:`\sigma`, a number or ``learned(number)``.
        floor: A lower bound of a learned scale. Without it the density of pixels that
            the decoder predicts exactly grows without bound.

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
    """A binomial count of `levels` trials, divided by `levels`: the grid k/levels.

    Between grid points `log_prob` is the continuous extension of the formula.
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
        # Not softplus, which returns its asymptote above 20.
        log_prob = self.levels * (value * self.logits + logsigmoid(-self.logits))
        if self.levels == 1:
            return log_prob
        n = torch.full((), self.levels + 1.0, dtype=value.dtype, device=value.device)
        count = value * self.levels + 1
        return log_prob + n.lgamma() - count.lgamma() - (n + 1 - count).lgamma()


class OneHot(dist.TorchDistribution):
    r"""One-hot vectors in the last axis, sampled as a whole.

    The classes belong to the batch shape, as the elements of other likelihoods do:
    `log_prob` has a summand :math:`x_c \log p_c` for each class, of which only the sum
    over classes, that of ``to_event(1)``, is a log-probability. For class probabilities
    x the sum is minus the cross-entropy.
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
