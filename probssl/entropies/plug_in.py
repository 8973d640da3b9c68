r"""Conditional entropy by a predictor (plug-in): the cross-entropy of another view."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import whole
from ..nn.base import network
from ..priors import Prior
from ..runtime.precision import lowered
from .base import Entropy, Views

__all__ = ["PlugIn"]


class PlugIn(Entropy):
    r"""The cross-entropy of a view under a predictor of another: BYOL and SimSiam.

    .. math:: \hat H[z_w \mid z_v] = -E_{v \ne w} \log p(z_w \mid y = g(z_v))
        \ge H[z_w \mid z_v]

    with the predictor g and the kernel of the prior: an upper bound, with equality iff
    they are the true conditional. For an item with V views,

    .. math:: \hat H[z_2, \dots, z_V \mid z_1] = (V - 1) \, \hat H[z_w \mid z_v]

    averaged over the first view. ``Embedding(…, all_views=True)`` adds this to an
    alignment under a flat or uniform p(y), and needs no entropy of a single view. A
    proper p(y) needs one: `marginal`.

    The objective maximises the entropy, but the predictor has to minimise the bound, to
    make it tight. So with `stop_gradient` the gradient is not that of the value:

    - the predictor gets the reversed gradient: it is fitted;
    - the representation gets the gradient through the predicted view :math:`z_w` alone.
      The dropped gradient, through :math:`z_v`, has mean zero under the true
      conditional, for changes of :math:`z_v` that depend on :math:`z_v`.

    Added to the log-density of the prediction, :math:`E \log p(z_w \mid y = g(z_v))`,
    only the gradient through :math:`g(z_v)` remains: that of BYOL and SimSiam, which
    stop the gradient of the target.

    Arguments:
        predictor: A module g, (n, dim) -> (n, dim), whose output is mapped to the
            support of the prior.
        marginal: The estimator of H[z] of one view; only a proper p(y) needs it.
        stop_gradient: Whether the gradient is as above. If False it is that of the
            value, and the predictor should be frozen.

    References:
        Understanding Self-Supervised Learning via Latent Distribution Matching (2026)
        https://arxiv.org/abs/2605.03517
        Exploring Simple Siamese Representation Learning (Chen and He, 2021)
        https://arxiv.org/abs/2011.10566

    Raises:
        ValueError: If H[z] of one view is needed and `marginal` is None, or if there
            are fewer than two views.
    """

    def __init__(
        self,
        predictor: nn.Module,
        marginal: Entropy | None = None,
        *,
        stop_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.predictor = network("predictor", predictor)
        self.marginal = marginal
        self.stop_gradient = stop_gradient

    def forward(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        if self.marginal is None:
            raise ValueError(
                "expected an estimator of H[z] of one view, got marginal=None; give "
                "PlugIn a marginal, such as LogDeterminant(), or use all_views=True "
                "with a flat or uniform p(y)"
            )
        return self.marginal(z, prior)

    def joint(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return :math:`\hat H[z_1] + \hat H[z_2, \dots, z_V \mid z_1]`."""
        first = z[:, :1] if prior.ordered else z
        return self(first, prior) + self.conditional(z, prior)

    def conditional(self, z: Views, prior: Prior) -> Float[Tensor, ""]:
        r"""Return :math:`\hat H[z_2, \dots, z_V \mid z_1]`."""
        hint = "give a sampler that makes more, such as ps.views.Augment()"
        views = whole("the number of views", z.shape[1], 2, hint=hint)
        log_kernel = prior.log_kernel(self._predicted(z, prior), z, plug_in=True)
        if prior.ordered:
            return -log_kernel.diagonal(1, -2, -1).sum(-1).mean()
        itself = torch.eye(views, dtype=torch.bool, device=z.device)
        return -log_kernel.masked_fill(itself, 0.0).sum((-2, -1)).mean() / views

    def _predicted(self, z: Tensor, prior: Prior) -> Views:
        seen = z.detach() if self.stop_gradient else z
        y = lowered(self.predictor, seen.flatten(0, 1)).unflatten(0, z.shape[:2])
        y = prior.on_support(y)
        return 2 * y.detach() - y if self.stop_gradient else y  # gradient times −1
