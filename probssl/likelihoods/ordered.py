"""Likelihoods of ordered levels: intervals of a logistic variable."""

import math
from collections.abc import Callable
from typing import cast

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ..arguments import whole
from ..distributions._base import Expandable, Shape
from ..hyper import learned
from .base import Likelihood, Predicted, Spread, refuse, spread, spread_of
from .continuous import shown
from .grey import check_grid

__all__ = ["CutLogistic", "DiscretisedLogistic", "Ordinal"]

CHUNK = 2**20  # numbers that `CutLogistic.mean` holds at once


class DiscretisedLogistic(Likelihood):
    r"""Discretised logistic likelihood of grey levels :math:`x \in \{0, 1/n, …, 1\}`.

    .. math:: p(x \mid z) = \prod F \Big( \frac{x - \mu}{s} + \frac{1}{2 n s} \Big)
        - F \Big( \frac{x - \mu}{s} - \frac{1}{2 n s} \Big), \qquad
        F(t) = \frac{1}{1 + e^{-t}}, \quad \mu = \mathrm{decoder}(z)

    The lowest level has all mass below it, the highest all above it. Other than the
    Binomial, it has a width of its own.

    Arguments:
        levels: The highest level n, 255 for bytes.
        scale: The scale s: a number, ``ps.learned(number)``, one number for each
            element of the last axis, or `Predicted`, by which the decoder returns
            location and scale in a last axis.
        floor: A lower bound of a learned scale.

    Raises:
        ValueError: If there is no level above 0, or the scale is not positive, or a
            distribution.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow
        (Kingma et al., 2016)
        https://arxiv.org/abs/1606.04934
        PixelCNN++ (Salimans et al., 2017)
        https://arxiv.org/abs/1701.05517
    """

    def __init__(
        self,
        levels: int,
        scale: Spread = learned(0.1),  # noqa: B008  a constant
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        self.levels = whole("levels", levels, hint="give the highest grey level")
        self.measure = f"counting, {{0, …, {levels}}} / {levels}"
        self.scale = spread("scale", scale, floor)
        self.per_element = 1 + isinstance(self.scale, Predicted)

    def extra_repr(self) -> str:
        return ", ".join(
            filter(None, (f"levels={self.levels}", shown(scale=self.scale)))
        )

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        parameters = self.split(output)
        scale, (loc,) = spread_of(self.scale, parameters), parameters
        count = torch.arange(self.levels, dtype=loc.dtype, device=loc.device)
        return CutLogistic(loc, scale, (count + 0.5) / self.levels, self.levels)

    def check(self, x: Tensor) -> None:
        super().check(x)
        check_grid(self, x, self.levels)


class Ordinal(Likelihood):
    r"""Cumulative logit likelihood of ordered categories 0, …, K-1.

    .. math:: P(x \le k \mid z) = \frac{1}{1 + e^{-(c_k - a)}}, \qquad
        c_0 < c_1 < \dots < c_{K-2}, \quad a = \mathrm{decoder}(z)

    It is the proportional odds model, for ratings and answers on a scale. The cutpoints
    :math:`c_k` are fitted by gradient; at first all categories are equally probable
    for a = 0.

    Arguments:
        categories: The number K of categories, at least 2.
        features: The number of elements in the last axis of x, such as questions, each
            of which then has cutpoints of its own; by default all share them.

    Raises:
        ValueError: If there are fewer than two categories, or no feature.

    References:
        Regression Models for Ordinal Data (McCullagh, 1980)
        https://doi.org/10.1111/j.2517-6161.1980.tb01109.x
    """

    link = "locations"

    def __init__(self, categories: int, features: int | None = None) -> None:
        super().__init__()
        self.categories = k = whole("categories", categories, least=2)
        self.features = None if features is None else whole("features", features)
        self.measure = f"counting, {{0, …, {k - 1}}}"
        cuts = torch.tensor([math.log(i / (k - i)) for i in range(1, k)])
        if features is not None:
            cuts = cuts.repeat(features, 1)
        self.first = nn.Parameter(cuts[..., :1].clone())
        self.log_gaps = nn.Parameter(cuts.diff(dim=-1).log())

    def extra_repr(self) -> str:
        own = "" if self.features is None else f", features={self.features}"
        return f"categories={self.categories}{own}"

    def cutpoints(self) -> Float[Tensor, "*features cut"]:
        """The increasing cutpoints."""
        return torch.cat([self.first, self.log_gaps.exp()], -1).cumsum(-1)

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        if self.features is not None and output.shape[-1:] != (self.features,):
            raise ValueError(
                f"expected the decoder's output with a last axis of {self.features} "
                f"features, got shape {tuple(output.shape)}; build the decoder with "
                "the event shape of x"
            )
        return CutLogistic(output, output.new_ones(()), self.cutpoints(), 1)

    def check(self, x: Tensor) -> None:
        super().check(x)
        inside = (x >= 0) & (x < self.categories) & (x == x.round())
        if not bool(inside.all()):
            most = self.categories - 1
            hint = "number the categories from 0"
            raise refuse(self, f"categories 0, 1, … {most}", x, hint)


class CutLogistic(Expandable):
    """The interval in which a logistic variable falls: k / unit, from 0 to n / unit.

    Values that are no level have the log-density of the nearest one.

    Arguments:
        loc: The location of the logistic variable.
        scale: Its scale, a tensor that broadcasts with `loc`.
        cuts: The n cutpoints in a last axis, in increasing order; axes before it are
            the last ones of `loc`.
        unit: The divisor of the levels.
    """

    parts = {"loc": 0}

    def __init__(self, loc: Tensor, scale: Tensor, cuts: Tensor, unit: int) -> None:
        self.loc, self.scale, self.cuts, self.unit = loc, scale, cuts, unit
        super().__init__(loc.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(0, self.cuts.shape[-1] / self.unit)

    @property
    def mean(self) -> Tensor:
        return self._sum(lambda k, above: above) / self.unit

    @property
    def variance(self) -> Tensor:
        square = self._sum(lambda k, above: (2 * k + 1) * above)
        return square / self.unit**2 - self.mean.square()

    def _sum(self, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over cutpoints k of a term of the probability to be above them."""
        loc, scale = self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)
        size = max(1, CHUNK // max(1, self.loc.numel()))
        total = torch.zeros_like(self.loc)
        count = torch.arange(self.cuts.shape[-1], dtype=loc.dtype, device=loc.device)
        for k, cuts in zip(count.split(size), self.cuts.split(size, -1), strict=True):
            total = total + term(k, ((loc - cuts) / scale).sigmoid()).sum(-1)
        return total

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        loc = self.loc.expand(self._extended_shape(sample_shape))
        value = loc + self.scale * torch.rand_like(loc).logit()
        above = ((value > cut).to(loc.dtype) for cut in self.cuts.unbind(-1))
        return cast(Tensor, sum(above)) / self.unit

    def log_prob(self, value: Tensor) -> Tensor:
        # log F(u) - F(l) = log F(u) + log F(-l) + log(1 - exp(l - u)), in all tails.
        most = self.cuts.shape[-1]
        k = (value * self.unit).round().nan_to_num(0.0).clamp(0, most).long()
        has_upper, has_lower = k < most, k > 0
        upper, lower = self._cut(k.clamp(max=most - 1)), self._cut((k - 1).clamp(min=0))
        below = logsigmoid((upper - self.loc) / self.scale)
        above = logsigmoid((self.loc - lower) / self.scale)
        inner = has_upper & has_lower
        width = torch.where(inner, (upper - lower) / self.scale, 1.0)
        log_prob = torch.where(inner, (-torch.expm1(-width)).log(), 0.0)
        log_prob = log_prob + torch.where(has_upper, below, 0.0)
        return log_prob + torch.where(has_lower, above, 0.0)

    def _cut(self, k: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(k.shape, self.loc.shape)
        cuts = self.cuts.expand(*shape, -1)
        return cuts.gather(-1, k.expand(shape).unsqueeze(-1)).squeeze(-1)
