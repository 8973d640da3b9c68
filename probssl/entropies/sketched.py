r"""Sketched entropies: the divergence of z from a standard normal, on random slices.

A slice is the projection of z on a random direction a. All slices are standard normal
iff z is (Cramér and Wold), and one dimension is enough to compare distributions.

References:
    LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics
    (Balestriero and LeCun, 2025)
    https://arxiv.org/abs/2511.08544
    VISReg (Wu et al., 2026)
    https://arxiv.org/abs/2606.02572
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from ..arguments import instance, positive, whole
from ..hyper import Positive
from ..priors import Prior
from ..runtime.copies import of_library
from ..runtime.distributed import from_main
from .base import Entropy, Views, coordinates

__all__ = ["EppsPulley", "Sketched", "SlicedWasserstein", "Statistic"]

Sample = Float[Tensor, "view n dim"]
Directions = Float[Tensor, "slice dim"]


class Statistic(nn.Module):
    r"""A divergence of samples from N(0, I), estimated on given slices, in nats.

    Called with samples, of shape (view, n, dim), and unit vectors, of shape (slice,
    dim), it returns one value for each view. It is zero for a standard normal, and for
    N(0, (1 + e) I) it is :math:`\frac d4 e^2`, as the KL divergence, to second order.
    """

    def forward(self, z: Sample, directions: Directions) -> Float[Tensor, "view"]:
        raise NotImplementedError(
            f"{type(self).__name__} has no forward(z, directions)"
        )


class EppsPulley(Statistic):
    r"""The Epps–Pulley statistic of normality, of each slice: LeJEPA's SIGReg.

    It compares the empirical characteristic function of a slice :math:`u = a^\top z`
    with that of a standard normal, :math:`\varphi(t) = e^{-t^2/2}`,

    .. math:: \hat D = \frac dc \, E_a \int w(t) \, \Big| \frac1n \sum_j e^{i t u_j}
        - \varphi(t) \Big|^2 dt, \qquad w(t) = e^{-t^2/2}, \qquad
        c = \int w(t) \, t^4 \varphi(t)^2 \, dt

    by the trapezoidal rule over :math:`[-t_\max, t_\max]`. The published statistic is
    :math:`n c / d` times this one, n the number of items. For N(m, I + E), to second
    order and in the mean over a,

    .. math:: \hat D \approx \lVert m \rVert^2 + \frac{2 \lVert E \rVert_F^2
        + (\operatorname{tr} E)^2}{4 (d + 2)}, \qquad
        \mathrm{KL} \approx \tfrac12 \lVert m \rVert^2 + \tfrac14 \lVert E \rVert_F^2

    A common scale counts as in the KL divergence, a mean twice as much, and
    correlations and differences of variances d/2 + 1 times less.

    It is bounded: samples far away, and a collapsed z, have a finite divergence, whose
    gradient vanishes. It is zero iff the characteristic functions agree at the knots;
    the largest of them is the finest that it sees. For n independent standard normal z
    its mean is :math:`2.2 \, d / n`, not zero.

    Arguments:
        knots: The number of knots t from 0 to the largest; published is 17.
        largest: The largest knot :math:`t_\max`.

    References:
        A Test for Normality Based on the Empirical Characteristic Function
        (Epps and Pulley, 1983)
        https://doi.org/10.1093/biomet/70.3.723

    Raises:
        ValueError: If there are fewer than two knots, or the largest is not positive.
    """

    def __init__(self, knots: int = 17, largest: float = 3.0) -> None:
        super().__init__()
        self.knots = whole("knots", knots, 2, hint="17 is published")
        self.largest = positive("largest", largest, "3 is published")

    @property
    def curvature(self) -> float:
        r"""The constant c by the trapezoidal rule, 0.4824 for the published knots."""
        step, total = self.largest / (self.knots - 1), 0.0
        for k in range(1, self.knots):
            t, end = k * step, k + 1 == self.knots
            total += (1 if end else 2) * step * t**4 * math.exp(-1.5 * t**2)
        return total

    def forward(self, z: Sample, directions: Directions) -> Float[Tensor, "view"]:
        # At t = 0 both characteristic functions are one.
        step, many = self.largest / (self.knots - 1), self.knots - 1
        t = step * torch.arange(1, many + 1, dtype=z.dtype, device=z.device)
        normal = (-t.square() / 2).exp()
        weight = 2 * step * normal  # of t and −t
        weight[-1] /= 2
        real, imaginary = _Waves.apply(z @ directions.mT, step, many)
        apart = (real - normal).square() + imaginary.square()
        return z.shape[-1] / self.curvature * (apart @ weight).mean(-1)


class _Waves(torch.autograd.Function):
    """The means over items of cos(k s u) and sin(k s u), k = 1, 2, …

    The waves are computed again in the backward pass: memory does not grow with k.
    """

    @staticmethod
    def forward(
        u: Float[Tensor, "view n slice"], step: float, many: int
    ) -> tuple[Float[Tensor, "view slice knot"], Float[Tensor, "view slice knot"]]:
        means = [(cos.mean(1), sin.mean(1)) for cos, sin in _waves(u, step, many)]
        real, imaginary = zip(*means, strict=True)
        return torch.stack(real, -1), torch.stack(imaginary, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        u, ctx.step, ctx.many = inputs
        ctx.save_for_backward(u)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, real: Tensor, imaginary: Tensor
    ) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        total = torch.zeros_like(u)
        for k, (cos, sin) in enumerate(_waves(u, ctx.step, ctx.many)):
            share = (k + 1) * ctx.step / u.shape[1]
            total = total.addcmul(cos, share * imaginary[:, None, :, k])
            total = total.addcmul(sin, share * real[:, None, :, k], value=-1)
        return total, None, None


def _waves(u: Tensor, step: float, many: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The cosine and sine of step u, 2 step u, …, by the addition theorem."""
    first = cos, sin = (step * u).cos(), (step * u).sin()
    for k in range(many):
        if k:
            cos, sin = (
                torch.addcmul(cos * first[0], sin, first[1], value=-1),
                torch.addcmul(sin * first[0], cos, first[1]),
            )
        yield cos, sin


class SlicedWasserstein(Statistic):
    r"""VISReg's statistic: means, scales, and Wasserstein distances of slices.

    With the mean :math:`m_i` and the standard deviation :math:`s_i` of dimension i, the
    sorted slices :math:`u_{(j)}` of :math:`\hat z = (z - m) / s` are compared with
    quantiles of a standard normal (a Wasserstein-2 distance):

    .. math:: \hat D = \sum_i m_i^2 + \sum_i (1 - s_i)^2 + d \, E_a \frac1n \sum_j
        \Big( u_{(j)} - \Phi^{-1}\Big(\frac{j}{n + 1}\Big) \Big)^2

    The published sum is :math:`\hat D / d`. For N(m, I + E), to second order and in the
    mean over a, with :math:`E_0` the off-diagonal part of E,

    .. math:: \hat D \approx \lVert m \rVert^2 + \tfrac14 \sum_i E_{ii}^2
        + \frac{\lVert E_0 \rVert_F^2}{2 (d + 2)}

    The scale of a dimension counts as in the KL divergence, a mean twice as much, and
    correlations d/2 + 1 times less. Where z collapses the gradient of (1 − s)² is −2,
    while that of `EppsPulley` vanishes.

    As published the standard deviation has no gradient in :math:`\hat z`
    (stop-gradient), and so the gradient is that of no scalar. It leaves the slices a
    pull on the scale, for a common one of

    .. math:: \frac{2 d \, (\rho - \kappa)}{s + \epsilon}, \qquad
        \rho = \frac{s}{s + \epsilon}, \qquad \kappa = E_a \frac1n \sum_j
        \frac{u_{(j)}}{\rho} \, \Phi^{-1}\Big(\frac{j}{n + 1}\Big) < 1

    which is inwards for :math:`\rho > \kappa` and exceeds the 2 d of the scales where
    s is below about 1 − κ: few items, or slices far from normal, shrink a small z to
    :math:`s \approx \epsilon \kappa / (1 - \kappa)`. Normal z of 128 items in 64
    dimensions shrink at s from 0.004 to 0.02, those of 512 items do not. There is no
    such pull in `Sketched` with `standardise`.

    Arguments:
        epsilon: Added to a standard deviation before it divides.

    Raises:
        ValueError: If epsilon is not positive.
    """

    def __init__(self, epsilon: float = 1e-4) -> None:
        super().__init__()
        self.epsilon = positive("epsilon", epsilon, "1e-4 is published")

    def forward(self, z: Sample, directions: Directions) -> Float[Tensor, "view"]:
        mean, scale = z.mean(1), z.std(1, correction=0)
        moments = mean.square().sum(-1) + (1 - scale).square().sum(-1)
        shape = (z - mean.unsqueeze(1)) / (scale.detach() + self.epsilon).unsqueeze(1)
        items, dim = z.shape[1:]
        place = torch.arange(1, items + 1, dtype=z.dtype, device=z.device) / (items + 1)
        quantiles = torch.special.ndtri(place)
        # Along the last axis, where they are contiguous, numbers are sorted faster.
        slices = (directions @ shape.mT).sort(-1).values
        return moments + dim * (slices - quantiles).square().mean((-2, -1))


class Sketched(Entropy):
    r"""The entropy of a standard normal, less the divergence of z from it on slices.

    .. math:: \hat H[z] = \tfrac d2 \log 2 \pi e - \hat D(z \,\Vert\, N(0, I))

    With the KL divergence in place of :math:`\hat D` that is H[z] for every z with
    :math:`E \lVert z \rVert^2 = d`. Beside a prior under which a view is N(0, I), such
    as ``ContentStyle(dim, 0, scale)``, it is then the mean PMI of the views less the
    divergence of each from the prior's marginal,

    .. math:: E \log p(z_1, \dots, z_V) + \sum_v H[z_v]
        = E \, \mathrm{PMI}(z_1, \dots, z_V) - \sum_v \mathrm{KL}(q(z_v) \,\Vert\, N)

    The mean of :math:`\lVert z \rVert^2` does not count beyond :math:`\hat D`: with a
    bounded :math:`\hat D` it would make the estimate grow without bound with z.

    With `standardise` the estimate follows the standard deviation :math:`s_i` of each
    dimension, by a change of variables to :math:`\hat z_i = (z_i - m_i) / s_i`,

    .. math:: \hat H[z] = \sum_i \log s_i + \tfrac d2 \log 2 \pi e
        - \hat D(\hat z \,\Vert\, N(0, I))

    A learned or random scale of the prior needs that: else z and scale could shrink
    together by any factor k, which the alignment rewards by (V − 1) d log 1/k, while
    the divergence of a collapsed z is finite.

    In training mode slices are drawn in every call, the same in all processes; in
    evaluation mode they are always the same. Rotations of z change the value, but not
    its mean over slices, unless the dimensions are standardised first.

    Arguments:
        statistic: The divergence on slices, `EppsPulley` or `SlicedWasserstein`.
        slices: The number of random directions.
        pooled: Whether all views are one sample. That leaves the views free to differ,
            as long as their mixture is normal. The divergence of a mixture is at most
            the mean of those of its parts, for `EppsPulley` on any sample.
        standardise: Whether the estimate follows the scale of z.

    Raises:
        TypeError: If the statistic is no `Statistic`, or slices no whole number.
        ValueError: If slices is below 1; in a call if there are fewer than two items,
            or z lies on a sphere, or, without `standardise`, if the prior has a learned
            or random hyper-parameter. A `UserWarning` names a parameter of a module of
            one's own in the prior, which may be a scale.
    """

    def __init__(
        self,
        statistic: Statistic,
        slices: int = 1024,
        *,
        pooled: bool = False,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        wanted = "a Statistic, such as EppsPulley()"
        self.statistic = instance("statistic", statistic, Statistic, wanted)
        self.slices = whole("slices", slices, hint="1024 is a start")
        self.pooled, self.standardise = pooled, standardise

    def forward(self, z: Views, prior: Prior | None = None) -> Float[Tensor, ""]:
        z = coordinates(z, prior)
        whole("the number of items", len(z), 2, hint="use larger batches")
        if not self.standardise:
            _check_fixed(prior)
        sample = z.flatten(0, 1).unsqueeze(0) if self.pooled else z.transpose(0, 1)
        log_scale: Tensor | float = 0.0
        if self.standardise:
            sample, log_scale = _standardised(sample)
        divergence = self.statistic(sample, self.directions(z)).mean()
        unit = 0.5 * z.shape[-1] * math.log(2 * math.pi * math.e)
        return unit + log_scale - divergence

    def directions(self, z: Views) -> Directions:
        """Unit vectors for z, uniform on the sphere, drawn alike for every dtype."""
        shape = (self.slices, z.shape[-1])
        if self.training:
            normal = from_main(torch.randn(shape, dtype=torch.float32, device=z.device))
        else:
            seed = torch.Generator().manual_seed(0)
            normal = torch.randn(shape, generator=seed, dtype=torch.float32)
        return normalize(normal.to(z), dim=-1)


def _standardised(z: Sample) -> tuple[Sample, Float[Tensor, ""]]:
    """z with mean 0 and variance 1, and the sum of its log standard deviations."""
    variance = z.var(1, correction=0).clamp(min=torch.finfo(z.dtype).tiny)
    centred = z - z.mean(1, keepdim=True)
    return centred * variance.rsqrt().unsqueeze(1), variance.log().sum(-1).mean() / 2


def _check_fixed(prior: Prior | None) -> None:
    """Raise a ValueError for a prior with a free hyper-parameter.

    A parameter of a conditional of one's own is a scale or none: a warning names it.
    """
    if prior is None:
        return
    for hyper in prior.modules():
        if isinstance(hyper, Positive) and hyper.free:
            raise ValueError(
                f"expected a prior with fixed hyper-parameters beside a sketch, got "
                f"{hyper.name}={hyper.value}, with which z would shrink without end: "
                "the sketch of a collapsed z is finite; give a number, or Sketched(…, "
                "standardise=True)"
            )
    for name, parameter in prior.named_parameters():
        owner = prior.get_submodule(name.rpartition(".")[0])
        if parameter.requires_grad and not of_library(type(owner).__module__):
            warnings.warn(
                f"the prior has a parameter of its own, {name}, beside a sketch; if it "
                "sets a scale, z shrinks with it without end: the sketch of a "
                "collapsed z is finite; fix it by requires_grad_(False), or take "
                "Sketched(…, standardise=True)",
                stacklevel=3,
            )
