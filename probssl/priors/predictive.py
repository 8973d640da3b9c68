r"""A directed prior of views in order: a network predicts each from the one before.

References:
    Representation Learning with Contrastive Predictive Coding (van den Oord et al.,
    2018)
    https://arxiv.org/abs/1807.03748
    The IM Algorithm: A Variational Approach to Information Maximization (Barber and
    Agakov, 2003)
    https://papers.nips.cc/paper/2410
    Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture
    (Assran et al., 2023)
    https://arxiv.org/abs/2301.08243
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import whole
from ..distributions.markov import Autoregressive
from ..hyper import Positive
from ..nn.base import called, network, unmoved
from ..runtime.precision import lowered
from ..runtime.randomness import restored_randomness
from .base import DIM_HINT, Drawn, Pairs, Points, Prior, Scale, Vectors, log_normal

__all__ = ["Predictive"]


class Predictive(Prior):
    r"""A directed Markov chain: a network predicts each view from the one before.

    .. math:: p(z_1) = N(0, \tau^2 I), \qquad
        p(z_t \mid z_{t-1}) = N(f(z_{t-1}), \sigma^2 I)

    With two views it is the form of a joint-embedding predictive architecture (JEPA):
    the first view is the context, the second the target, and f the predictor. The order
    of the views counts. With a linear f it is a `Sequence`.

    By default p(z_1) is flat with density 1, for alignment terms only, as under
    ``Gaussian(dim, y_scale=math.inf)``. The objective ``limits.Embedding(encoder,
    Predictive(dim, predictor, scale), entropy)`` is then

    .. math:: E \log p(z_2 \mid z_1) + H[z_2] \le I(z_1; z_2),

    the bound of Barber and Agakov, tight where f and :math:`\sigma` give the true
    conditional. The entropy, which the user chooses, keeps z informative: here no
    stop-gradient, no momentum encoder. With ``plug_in=True`` and
    ``entropies.KernelDensity`` it is contrastive predictive coding (CPC) with a normal
    kernel. A finite `start` gives a `Joint` with nonlinear dynamics.

    An absent view has no closed form, unlike under `Sequence`.

    Arguments:
        dim: The dimension of z.
        predictor: f, a module (n, dim) -> (n, dim) that treats rows one by one.
        scale: The standard deviation :math:`\sigma`, one number or one for each
            dimension.
        start: The standard deviation :math:`\tau` of the first view, likewise;
            ``math.inf`` is a flat density.

    Raises:
        ValueError: If the predictor returns another shape or mixes rows, if a scale is
            not positive, if both scales are free, or if a free one meets a flat p(z_1).
            When called, if a view is absent.

    Example:
        >>> import probssl as ps
        >>> prior = Predictive(8, ps.nn.MLPEncoder((8,), 8), scale=0.3)
    """

    dim: int
    ordered = True
    scale: Positive
    start: Positive | float

    def __init__(
        self,
        dim: int,
        predictor: nn.Module,
        scale: Scale = 1.0,
        start: Scale = math.inf,
    ) -> None:
        super().__init__()
        self.dim = whole("dim", dim, hint=DIM_HINT)
        self.predictor = network("predictor", predictor)
        self.scale = Positive(scale, "scale", dim=dim)
        flat = isinstance(start, float) and start == math.inf
        self.start = math.inf if flat else Positive(start, "start", dim=dim)
        if self.scale.free and (flat or self.start.free):  # type: ignore[union-attr]
            came = "a flat one, start=math.inf" if flat else "a free one"
            raise ValueError(
                "expected a fixed start beside a learned or random scale, got "
                f"{came}; rescaling z "
                "trades one for the other: fix scale, or give start a number"
            )
        self._check_rows()

    @property
    def proper(self) -> bool:
        return self.start != math.inf

    # Without `present` among its arguments, by which a prior says that it takes masks.
    def forward(  # type: ignore[override]
        self, views: int, **drawn: Tensor
    ) -> Autoregressive:
        """Return the distribution of the views, event shape (view, dim).

        Raises:
            ValueError: If a view is absent, or under a flat p(z_1) with a single view.
        """
        if drawn.pop("present", None) is not None:
            raise ValueError(
                "expected all views to be present for priors.Predictive, whose network "
                "has no integral over an absent one, got a mask; use priors.Sequence, "
                "or drop the incomplete items"
            )
        hint = "under a flat p(z_1), start=math.inf, one view has no density"
        views = whole("views", views, 1 if self.proper else 2, hint=hint)
        start = None
        if isinstance(self.start, Positive):
            start = self._row(self.start, drawn)
        scale = self._row(self.scale, drawn)
        return Autoregressive(self._predicted, views, scale, start, validate_args=False)

    def log_kernel(self, a: Points, b: Points, plug_in: bool = False) -> Pairs:
        r"""Return :math:`\log p(z_{t+1} = b \mid z_t = a) = \log N(b \mid f(a),
        \sigma^2)`, for all pairs, normalised in b.

        With `plug_in` it is the same: a view stands for the content of the next one.
        """
        return log_normal(self._predicted(a), b, self.scale.over())

    def pmi(self, a: Points, b: Points) -> Pairs:
        """Raise a TypeError: the second view alone has no density in closed form."""
        raise TypeError(
            "expected a prior whose second view has a density in closed form, got "
            "Predictive; use priors.Sequence, or log_kernel"
        )

    def _row(self, part: Positive, drawn: Drawn) -> Float[Tensor, "*batch dim"]:
        value = part.over(drawn).squeeze(-2)
        return value.expand(*value.shape[:-1], self.dim)

    def _predicted(self, z: Vectors) -> Vectors:
        """f of any number of vectors."""
        rows = z.reshape(-1, self.dim)
        found: Tensor = lowered(called, self.predictor, rows)
        return found.view(z.shape)

    @torch.no_grad()
    def _check_rows(self) -> None:
        """Raise a ValueError unless f keeps the shape and treats rows one by one."""
        like = next(self.predictor.parameters(), torch.empty(0))
        with restored_randomness(), unmoved(self.predictor):
            z = torch.randn(5, self.dim).to(like)
            found = called(self.predictor, z)
            name, shape = type(self.predictor).__name__, getattr(found, "shape", None)
            if shape != z.shape:
                came = tuple(shape) if shape is not None else type(found)
                raise ValueError(
                    f"expected predictor with outputs (n, {self.dim}), as z, got "
                    f"{name} with {came} for "
                    f"{tuple(z.shape)}; give it as many outputs as inputs"
                )
            try:
                alone = torch.cat([called(self.predictor, row) for row in z.split(1)])
                apart = torch.allclose(alone, found, 1e-3, 1e-4)
            except ValueError:  # of batch norm, for a single row
                apart = False
        if not apart:
            raise ValueError(
                "expected a predictor that treats rows one by one, as a mean of "
                f"p(z_t given z_t-1) does, got {name}, which draws random numbers or "
                "mixes items, as dropout and batch normalisation do; use LayerNorm, "
                "or none"
            )
