"""A one-factor normal model: the Gaussian prior of the views, and its posterior."""

import math

import torch
from torch import Size, Tensor
from torch.distributions import Normal, constraints

from ._base import Present, Shape, Views, ViewsDistribution

__all__ = ["OneFactorNormal", "quotient"]


class OneFactorNormal(ViewsDistribution):
    r"""A one-factor model: normal views around a shared factor, in each dimension.

    .. math:: z_v = \mu_v + u_v f + \sigma_v \epsilon_v, \qquad
        f, \epsilon_v \sim N(0, 1), \qquad
        \mathrm{Cov}[z] = \mathrm{diag}(\sigma^2) + u u^\top

    With :math:`\hat f` the posterior mean of the factor, the log-density is a sum of
    squares, without cancellation where views nearly agree, at a cost linear in the
    number of views:

    .. math:: -\tfrac12 \Big[ \sum_v \frac{(z_v - \mu_v - u_v \hat f)^2}{\sigma_v^2}
        + \hat f^2 + \sum_v \log 2 \pi \sigma_v^2
        + \log\Big(1 + \sum_v \frac{u_v^2}{\sigma_v^2}\Big) \Big]

    A flat factor (density 1 for every :math:`f`) drops :math:`\hat f^2`, the 1 in the
    last logarithm, and one :math:`\log 2 \pi`; it is improper and has no samples.

    Arguments:
        loc: The mean :math:`\mu`, with shape (\*batch, view, dim).
        scale: The standard deviation :math:`\sigma`, broadcastable to it.
        loading: The loading :math:`u`, broadcastable to it.
        flat: Whether the factor has a flat density, not the standard normal one.
        present: The present views, as in `ViewsDistribution`; None means all.
    """

    linear = True
    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "loading": constraints.independent(constraints.real, 2),
    }
    parts = {"loc": 2, "scale": 2, "loading": 2, "present": 1}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        loading: Tensor,
        *,
        flat: bool = False,
        present: Present = None,
        validate_args: bool | None = None,
    ) -> None:
        parts = [loc, scale, loading]
        if present is not None:
            parts.append(present.unsqueeze(-1))
        shape = torch.broadcast_shapes(*(part.shape for part in parts))
        self.loc, self.scale, self.loading = (part.expand(shape) for part in parts[:3])
        self.flat = flat
        self.present = None if present is None else present.expand(shape[:-1])
        super().__init__(shape[:-2], shape[-2:], validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return not self.flat

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        if self.flat:
            return torch.full_like(self.loc, math.inf)
        return self.scale.square() + self.loading.square()

    def rsample(self, sample_shape: Shape = ()) -> Views:
        self._require_proper("samples")
        shape = self._extended_shape(Size(sample_shape))
        factor = self.loc.new_empty(shape[:-2] + (1,) + shape[-1:]).normal_()
        noise = self.loc.new_empty(shape).normal_()
        return self.loc + self.loading * factor + self.scale * noise

    def log_prob(self, value: Views) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        present, precision = self._precision()
        factor, total = self._factor(value, precision)
        rest = value - self.loc - self.loading * factor.unsqueeze(-2)
        square = (rest.square() * precision).sum(-2)
        if not self.flat:
            square = square + factor.square()
        return -0.5 * (square.sum(-1) + self._log_determinant(present, total))

    def entropy(self) -> Tensor:
        r"""The entropy :math:`\frac12 \log |2 \pi e \, \mathrm{Cov}[z]|`, in nats."""
        self._require_proper("an entropy")
        present, precision = self._precision()
        total = (self.loading.square() * precision).sum(-2)
        ones = torch.ones_like(self.scale)
        count = (ones if present is None else ones * present).sum((-2, -1))
        return 0.5 * (count + self._log_determinant(present, total))

    def factor(self, value: Views) -> Normal:
        """Return the posterior of the factor given the views, shape (\\*batch, dim)."""
        _, precision = self._precision()
        mean, total = self._factor(value, precision)
        scale = (total + (not self.flat)).rsqrt()
        return Normal(mean, scale.expand_as(mean), validate_args=False)

    def times(
        self,
        loc: Tensor,
        scale: Tensor,
        present: Tensor | None = None,
        *,
        over: Normal | None = None,
    ) -> "OneFactorNormal":
        r"""Return the normalised product with a normal density for each view.

        .. math:: q(z) \propto p(z) \prod_{v \text{ present}}
            \frac{N(z_v \mid m_v, r_v^2)}{N(z_v \mid \mu_v, s_v^2)}

        Absent views follow the prior given the present ones.

        Arguments:
            over: The normal divided by, no narrower than the first one; None divides by
                nothing.
        """
        precision, gradient = quotient(loc, scale, present, over)
        prior = self.scale.square()
        follow = 1 / (1 + precision * prior)  # how far z_v follows the factor f
        weight = self.loading * follow
        total = (weight * precision * self.loading).sum(-2, keepdim=True)
        total = total + (not self.flat)
        factor = weight * (precision * (loc - self.loc) + gradient)
        factor = factor.sum(-2, keepdim=True) / total
        centre = self.loc + self.loading * factor
        return OneFactorNormal(
            loc + follow * (centre - loc + prior * gradient),
            self.scale * follow.sqrt(),
            weight * total.rsqrt(),
            validate_args=False,
        )

    def _draw_absent(self, value: Tensor, present: Tensor) -> Tensor:
        factor = self.marginal(present).factor(value).rsample().unsqueeze(-2)
        mean = self.loc + self.loading * factor
        return mean + self.scale * torch.randn_like(mean)

    def _mean_absent(self, value: Tensor, present: Tensor) -> Tensor:
        factor = self.marginal(present).factor(value).mean.unsqueeze(-2)
        return self.loc + self.loading * factor

    def _require_proper(self, what: str) -> None:
        if self.flat:
            raise ValueError(
                f"expected a proper p(y) for {what}, got a flat one "
                "(y_scale=math.inf); give the prior a finite y_scale, such as 1.0"
            )

    def _precision(self) -> tuple[Tensor | None, Tensor]:
        precision = self.scale.square().reciprocal()
        if self.present is None:
            return None, precision
        present = self.present.unsqueeze(-1)
        return present, precision * present

    def _factor(self, value: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.loading * precision
        total = (weight * self.loading).sum(-2)
        mean = (weight * (value - self.loc)).sum(-2) / self._plus_prior(total)
        return mean, total

    def _plus_prior(self, total: Tensor) -> Tensor:
        # A flat factor without any present view has precision 0.
        return torch.where(total > 0, total, 1.0) if self.flat else 1 + total

    def _log_determinant(self, present: Tensor | None, total: Tensor) -> Tensor:
        r"""The log-determinant of 2π Cov[z]; with a flat factor its finite part."""
        log_variance = 2 * self.scale.log() + math.log(2 * math.pi)
        if present is not None:
            log_variance = log_variance * present
        each = log_variance.sum(-2) + self._plus_prior(total).log()
        if self.flat:
            each = each - (total > 0) * math.log(2 * math.pi)
        return each.sum(-1)


def quotient(
    loc: Tensor, scale: Tensor, present: Present, over: Normal | None
) -> tuple[Tensor, Tensor | float]:
    r"""Precision and gradient at m of a quotient of normal densities, 0 where absent.

    .. math:: \frac{N(z \mid m, r^2)}{N(z \mid \mu, s^2)} \propto
        e^{-\lambda (z - m)^2 / 2 + \delta (z - m)}, \qquad
        \lambda = r^{-2} - s^{-2}, \qquad \delta = (m - \mu) / s^2

    Both stay finite where the two have one scale and the quotient has no maximum.
    """
    precision = scale.square().reciprocal()
    gradient: Tensor | float = 0.0
    if over is not None:
        below = over.scale.square().reciprocal()
        precision, gradient = precision - below, (loc - over.loc) * below
    if present is not None:
        seen = present.unsqueeze(-1)
        precision = precision * seen
        gradient = gradient if over is None else gradient * seen  # not 0.0 * Boolean
    return precision, gradient
