r"""Student-t priors: a Gaussian prior with one random precision for each item.

References:
    Multivariate T-Distributions and Their Applications (Kotz and Nadarajah, 2004)
    https://doi.org/10.1017/CBO9780511550683
    Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
    https://jmlr.org/papers/v9/vandermaaten08a.html
    Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
    (Hu et al., 2023)
    https://arxiv.org/abs/2205.14814
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributions.student import IsotropicStudentT, SharedPrecision
from ..hyper import Positive
from ..special import log_gamma_ratio, square_distances
from .base import (
    Drawn,
    Pairs,
    Points,
    Present,
    Prior,
    Scale,
    Views,
    check_dim,
    check_scales,
    content_scale,
    one_factor,
)

__all__ = ["TSNE", "StudentT"]

# With c the constant of the Gamma density, the square of a draw overflows in float32
# with probability c (3e-39)^(dof / 2): 2e-10 for one half, 1 % for a twentieth.
MIN_DOF = 0.5


class StudentT(Prior):
    r"""Student-t views: views and content of an item share one random precision g.

    .. math:: g \sim \mathrm{Gamma}(\tfrac\nu2, \tfrac\nu2), \qquad
        y \mid g \sim N(0, \tfrac{\tau^2}g I), \qquad
        z_v \mid y, g \sim N(y, \tfrac{\sigma^2}g I)

    The views of an item are then jointly Student-t. With m = V·d,

    .. math:: p(z_1, \dots, z_V)
        = \frac{\Gamma((\nu + m) / 2)}{\Gamma(\nu / 2) \, (\nu \pi)^{m/2}}
        \big(\sigma^{2(V-1)} (\sigma^2 + V \tau^2)\big)^{-d/2}
        \Big(1 + \frac Q\nu\Big)^{-(\nu + m) / 2}

    .. math:: Q = \frac{\sum_v \lVert z_v - \bar z \rVert^2}{\sigma^2}
        + \frac{\lVert \bar z \rVert^2}{\tau^2 + \sigma^2 / V}

    For large ν it is `Gaussian` up to O(1/ν). The content is y together with g: given y
    alone the views still share g.

    ``y_scale=math.inf`` makes p(y) flat with density 1 for every g, for alignment terms
    only, as in `Gaussian`: then m = (V − 1)·d, the last term of Q vanishes, and
    :math:`\sigma^2 + V \tau^2` becomes V.

    Arguments:
        dim: The dimension of z; None takes it from z, for objectives without samples.
        scale: The scale :math:`\sigma` of a view given y, less than the standard
            deviation.
        dof: The degrees of freedom :math:`\nu`, at least 0.5 under a proper p(y):
            draws of fewer overflow in float32.
        y_scale: The scale :math:`\tau` of the content.

    Raises:
        ValueError: If a scale or dof is not positive or too small, if both scales are
            free, or if a free scale meets a flat p(y).
    """

    scale: Positive
    dof: Positive
    y_scale: Positive | float

    def __init__(
        self,
        dim: int | None,
        scale: Scale = 1.0,
        dof: Scale = 5.0,
        y_scale: Scale = 1.0,
    ) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.scale, self.dof = Positive(scale, "scale"), Positive(dof, "dof")
        self.y_scale = content_scale(y_scale)
        check_scales(self.scale, self.y_scale)
        value = self.dof.value.value if self.dof.learned else self.dof.value
        if self.proper and not self.dof.random and value < MIN_DOF:
            raise ValueError(
                f"expected dof of at least {MIN_DOF:g}, got {value:g}; with fewer "
                "degrees of freedom draws overflow in float32"
            )

    @property
    def proper(self) -> bool:
        return self.y_scale != math.inf

    def forward(
        self,
        views: int,
        *,
        present: Present = None,
        dim: int | None = None,
        **drawn: Tensor,
    ) -> SharedPrecision:
        """Return the distribution of the views, y and g integrated out."""
        dim = dim or self.known_dim()
        *scales, dof = self._values(dim, drawn)
        scale, y_scale = (value[..., None, None] for value in scales)
        flat = not self.proper
        normal = one_factor((views, dim), scale, y_scale, flat, present)
        return SharedPrecision(normal, dof, validate_args=False)

    def posterior_y(
        self, z: Views, present: Present = None, **drawn: Tensor
    ) -> IsotropicStudentT:
        r"""Return :math:`p(y \mid z_1, \dots, z_V)`, Student-t, event shape (dim,).

        Its degrees of freedom are ν + m.
        """
        views = self.of(z, present, **drawn)
        factor, precision = views.normal.factor(z), views.precision(z)
        _, loading, _ = self._values(z.shape[-1], drawn)
        mean = precision.concentration / precision.rate
        scale = loading * factor.stddev[..., 0] * mean.rsqrt()
        dof = 2 * precision.concentration
        return IsotropicStudentT(dof, loading * factor.mean, scale, validate_args=False)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        With :math:`t_\nu(\mu, s)` a Student-t of centre μ and squared scale s,
        :math:`\rho = \tau^2 / (\tau^2 + \sigma^2)`, and g inferred from z as well,

        .. math:: p(z' \mid z) = t_{\nu + d}\Big(\rho z, \; \sigma^2 (1 + \rho)
            \frac{\nu + \lVert z \rVert^2 / (\tau^2 + \sigma^2)}{\nu + d}\Big)

        With `plug_in`, :math:`p(z' = b \mid y = a) = t_{\nu + d}(a, \sigma^2
        \frac{\nu + \lVert a \rVert^2 / \tau^2}{\nu + d})`. Under a flat p(y) one view,
        or y, does not inform on g: :math:`t_\nu(z, 2 \sigma^2)` and
        :math:`t_\nu(a, \sigma^2)`.
        """
        dim = a.shape[-1]
        scale, y_scale, dof = (v[..., None, None] for v in self._values(dim, {}))
        variance, content = scale.square(), y_scale.square()
        if self.proper:
            total = content if plug_in else content + variance
            shrink = content / total
            spread = variance if plug_in else variance * (1 + shrink)
            # dof times the squared scale
            width = spread * (dof + a.square().sum(-1, keepdim=True) / total)
            a, dof = shrink * a, dof + dim
        else:
            width = dof * variance * (1 if plug_in else 2)
        tail = torch.log1p(square_distances(a, b) / width)
        peak = log_gamma_ratio(dof / 2, dim / 2) - dim / 2 * (math.pi * width).log()
        return peak - (dof + dim) / 2 * tail

    def mutual_information(self) -> Float[Tensor, ""]:
        r"""Return :math:`I(z; z') = 2 H[z] - H[z, z']`, in nats.

        It is positive even for :math:`\tau \ll \sigma`, since the views share g.
        """
        return 2 * self(1).entropy() - self(2).entropy()

    def _values(self, dim: int, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
        """The scale, the loading of the content (1 if it is flat), and dof."""
        scale, dof = self.scale.of(drawn), self.dof.of(drawn)
        if not isinstance(self.y_scale, Positive):
            return scale, torch.ones_like(scale), dof
        return scale, self.y_scale.of(drawn), dof


class TSNE(StudentT):
    r"""The kernel of t-SNE and t-SimCLR, of exponent (ν + 1) / 2, under a flat p(y).

    .. math:: p(z' \mid y) \propto
        \Big(1 + \frac{\lVert z' - y \rVert^2}{\nu \sigma^2}\Big)^{-(\nu + 1) / 2}

    In every dimension the exponent is that of one dimension. Where d < ν + 1 the kernel
    is a density, that of `StudentT` with ν + 1 − d degrees of freedom and
    :math:`\sigma^2 \nu / (\nu + 1 - d)` in place of :math:`\sigma^2`; all methods work.
    Where d ≥ ν + 1 its integral is infinite: only the kernel with `plug_in` remains,
    without a constant, and only differences of it are meaningful.

    The temperature of t-SimCLR, in :math:`1 + \lVert z' - y \rVert^2 / (\nu \,
    \text{temperature})`, is :math:`\sigma^2` with y plugged in, and :math:`2 \sigma^2`
    with y integrated out.

    Arguments:
        dim: The dimension of z; None takes it from z.
        scale: The scale :math:`\sigma` of a view given y.
        dof: The degrees of freedom :math:`\nu`, a number.

    Raises:
        ValueError: If scale or dof is not a positive number; when called, if there is
            no density in the dimension of z.
    """

    def __init__(self, dim: int | None, scale: float = 1.0, dof: float = 5.0) -> None:
        super().__init__(dim, scale, dof, math.inf)

    def normalised(self, dim: int) -> bool:
        """Whether the kernel is a density in this dimension."""
        return dim < self.dof.value + 1

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z' = b \mid z = a)`, normalised in b, for all pairs.

        With `plug_in`, :math:`\log p(z' = b \mid y = a)`: where dim ≥ dof + 1 this is
        no density, and the value is 0 at b = a.

        Raises:
            ValueError: Without `plug_in`, where there is no density.
        """
        if self.normalised(a.shape[-1]) or not plug_in:
            return super().log_kernel(a, b, plug_in)
        dof = self.dof()
        width = dof * self.scale().square()
        return -(dof + 1) / 2 * torch.log1p(square_distances(a, b) / width)

    def _values(self, dim: int, drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
        if not self.normalised(dim):
            raise ValueError(
                f"expected dim < dof + 1 for a density, got dim={dim} and "
                f"dof={self.dof.value:g}; use log_kernel(a, b, plug_in=True), which is "
                "unnormalised there, or StudentT, a density in any dimension"
            )
        scale, loading, dof = super()._values(dim, drawn)
        reduced = dof + 1 - dim
        return scale * (dof / reduced).sqrt(), loading, reduced
