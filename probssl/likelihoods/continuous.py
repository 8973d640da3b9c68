"""Likelihoods of real values."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..distributions._base import Expandable, Shape
from ..hyper import Learned, Positive
from ..special import log_gamma_ratio
from .base import Likelihood, Predicted, Spread, spread, spread_of

__all__ = ["Gaussian", "HeteroscedasticGaussian", "Laplace", "StudentT", "UnivariateT"]


class _Scaled(Likelihood):
    """A location from the decoder and a scale, of the distribution `family`."""

    family: Callable[..., dist.TorchDistribution]

    def __init__(self, scale: Spread = 0.1, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor, self.scale = floor, spread("scale", scale, floor)
        self.per_element = 1 + isinstance(self.scale, Predicted)

    def extra_repr(self) -> str:
        return shown(scale=self.scale)

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        parameters = self.split(output)
        scale = spread_of(self.scale, parameters)
        return self.family(parameters[0], scale, validate_args=False)


class Gaussian(_Scaled):
    r"""Gaussian likelihood of real values; the decoder's output is the mean.

    .. math:: p(x \mid z) = N(\mathrm{decoder}(z), \sigma^2 I)

    Arguments:
        scale: The standard deviation :math:`\sigma`: a number, ``ps.learned(number)``,
            one number for each element of the last axis, or `Predicted`.
        floor: A lower bound of a learned scale. Without it the density of pixels that
            the decoder predicts exactly grows without bound.

    Raises:
        ValueError: If the scale is not positive, or a distribution.
    """

    family = dist.Normal


class HeteroscedasticGaussian(Gaussian):
    r"""Gaussian likelihood whose decoder predicts mean and standard deviation.

    .. math:: p(x \mid z) = \prod_i N(x_i \mid \mu_i, \sigma_i^2), \qquad
        \sigma_i = \mathrm{low}^{1 - s_i} \, \mathrm{high}^{s_i}, \qquad
        s_i = 1 / (1 + e^{-a_i})

    The decoder returns :math:`(\mu_i, a_i)` in a last axis. It is ``Gaussian(
    Predicted(low, high))``. The lower bound keeps the density bounded; where it is far
    below the noise of the data, the gradients of well predicted elements,
    :math:`(x_i - \mu_i) / \sigma_i^2`, drown those of the others.

    Arguments:
        low: The lower bound of the standard deviation.
        high: The upper bound.

    Raises:
        ValueError: If the bounds are not positive, or not ordered.

    References:
        On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic
        Neural Networks (Seitzer et al., 2022)
        https://arxiv.org/abs/2203.09168
    """

    def __init__(self, low: float = 1e-2, high: float = 10.0) -> None:
        super().__init__(Predicted(low, high))


class Laplace(_Scaled):
    r"""Laplace likelihood of real values; the decoder's output is the median.

    .. math:: \log p(x \mid z) = -\sum_i \frac{|x_i - \mu_i|}{b} - \log 2 b, \qquad
        \mu = \mathrm{decoder}(z)

    Minus the mean absolute error, but for constants: less sensitive to outliers than
    the Gaussian.

    Arguments:
        scale: The mean absolute deviation b, as in `Gaussian`.
        floor: A lower bound of a learned scale.

    Raises:
        ValueError: If the scale is not positive, or a distribution.
    """

    family = dist.Laplace


class StudentT(_Scaled):
    r"""Student-t likelihood of real values with outliers; the output is the location.

    .. math:: p(x \mid z) = \prod_i \frac{\Gamma((\nu + 1) / 2)}
        {\Gamma(\nu / 2) \sqrt{\pi \nu} \, \sigma} \Big( 1 +
        \frac{(x_i - \mu_i)^2}{\nu \sigma^2} \Big)^{-(\nu + 1) / 2}, \qquad
        \mu = \mathrm{decoder}(z)

    Arguments:
        scale: The scale :math:`\sigma`, as in `Gaussian`. The standard deviation is
            :math:`\sigma \sqrt{\nu / (\nu - 2)}`, infinite for :math:`\nu \le 2`.
        dof: The degrees of freedom :math:`\nu > 1`, a number or ``ps.learned(number)``:
            from 1 down, x has no mean to reconstruct.
        floor: A lower bound of a learned scale.

    Raises:
        ValueError: If the scale is not positive, the degrees of freedom are not above
            1, or one of them is a distribution.

    References:
        Robust Statistical Modeling Using the t Distribution (Lange et al., 1989)
        https://doi.org/10.1080/01621459.1989.10478852
    """

    def __init__(
        self, scale: Spread = 0.1, dof: float | Learned = 4.0, floor: float = 1e-3
    ) -> None:
        super().__init__(scale, floor)
        hint = "give a number above 1, or ps.learned(number)"
        self.dof = spread("dof", dof, 1.0, hint)
        if not isinstance(self.dof, Positive) or not bool((self.dof() > 1).all()):
            raise ValueError(
                f"expected dof above 1, as a number or ps.learned(number), got {dof}; "
                "with fewer degrees of freedom x has no mean"
            )

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        parameters = self.split(output)
        scale = spread_of(self.scale, parameters)
        return UnivariateT(spread_of(self.dof, parameters), parameters[0], scale)


class UnivariateT(Expandable):
    """Student's t, exact in float32 for many degrees of freedom as well.

    Arguments:
        dof: Degrees of freedom, a tensor that broadcasts with `loc`.
        loc: The location.
        scale: The scale, a tensor that broadcasts with `loc`.
    """

    parts = {"loc": 0}
    support = constraints.real

    def __init__(self, dof: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.df, self.loc, self.scale = dof, loc, scale
        super().__init__(loc.shape, validate_args=False)

    @property
    def plain(self) -> dist.TorchDistribution:
        return dist.StudentT(self.df, self.loc, self.scale, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.plain.mean

    @property
    def variance(self) -> Tensor:
        return self.plain.variance

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.plain.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        square = ((value - self.loc) / self.scale).square()
        peak = log_gamma_ratio(self.df / 2, 0.5) - (math.pi * self.df).log() / 2
        tail = (self.df + 1) / 2 * torch.log1p(square / self.df)
        return peak - self.scale.log() - tail


def shown(**spreads: Positive | Predicted) -> str:
    """The predicted spreads; others are modules, which are shown as such."""
    return ", ".join(
        f"{name}={value}"
        for name, value in spreads.items()
        if isinstance(value, Predicted)
    )
