r"""CR-VAE: the VAE of each view, less a divergence between the posteriors of views.

Consistency Regularization for Variational Auto-Encoders (Sinha and Dieng, 2021)
https://arxiv.org/abs/2105.14859

The choices: p(z_v) = N(0, I) for every view, as in the VAE, and a penalty in the place
of the Gaussian p(y), p(z|y) that tie views together; z is kept informative by p(x|z).

.. math:: \text{value} = \sum_v \text{ELBO}(x_v)
    - \lambda \, E_{v \ne w} \mathrm{KL}(q(z \mid x_w) \,\Vert\, q(z \mid x_v))

The published x_v is the clean image, and x_w its augmentation; here all views are
augmented, and E is the mean over both orders.

What it is a limit of: under the Gaussian prior with Var(z) = 1/(1 + r) and correlation
r of two views,

.. math:: \log p(z_1, z_2) = \sum_v \log N(z_v \mid 0, I)
    - \frac{r}{2 (1 - r)} \lVert z_1 - z_2 \rVert^2 + \frac d2 \log \frac{1 + r}{1 - r}

Where all posteriors have one isotropic covariance, q(z|x_v) = N(m_v, s² I), KL is
:math:`\lVert m_1 - m_2 \rVert^2 / 2 s^2`, and the bound of SimVAE is

.. math:: \text{ELBO}(x_1, x_2) = \text{value} - \frac{r d s^2}{1 - r}
    + \frac d2 \log \frac{1 + r}{1 - r}, \qquad \lambda = \frac{r s^2}{1 - r}

So λ is a correlation of views, in units of the noise of the encoder.

The limit: that joint distribution, with the noise of q left out of its alignment.

Status: surrogate of SimVAE: equal up to a constant for posteriors of one isotropic
covariance. Where the covariance is learned, KL falls as the noise grows, whereas SimVAE
charges for the noise. As KL is not negative, the value is a lower bound of
:math:`\sum_v \log p(x_v)`, and has no evidence of views together. It drops the content,
and in it the noise of the encoder.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent as Dimensions
from torch.distributions import Normal, kl_divergence

from ..arguments import at_least
from ..bounds import ELBO, IWAE
from ..joint import Joint
from ..nn.base import unmoved
from ..priors import Independent
from ..runtime.buffers import register_varying
from ..runtime.precision import in_float32
from ..terms import Batch, Terms
from ._base import check_only_views, over_pairs
from ._place import DECODER, GAUSSIAN, NORMAL, Place

__all__ = ["CRVAE"]


class CRVAE(nn.Module):
    r"""The ELBO of independent views less their posteriors' divergence, in nats.

    The encoder runs once more for the divergence.

    Arguments:
        joint: The distribution and its guide: the prior is `priors.Independent`, the
            guide `guides.DiagonalGaussian`.
        weight: The weight :math:`\lambda`; a buffer, which a schedule may
            change.
        bound: The bound, `bounds.ELBO` or `bounds.IWAE`.

    Raises:
        ValueError: If the views of the joint share a content, q(z|x_v) is no normal
            with independent dimensions, or the weight is negative; in a call for fewer
            than two views, and for absent views.
    """

    place = Place(
        2021,
        GAUSSIAN("Gaussian, by a penalty"),
        NORMAL,
        DECODER,
        "CR-VAE is SimVAE up to a constant for posteriors of one covariance",
    )

    weight: Tensor

    def __init__(
        self, joint: Joint, weight: float = 1e-3, bound: ELBO | IWAE = ELBO()
    ) -> None:
        super().__init__()
        if not isinstance(joint.prior, Independent):
            raise ValueError(
                "expected a joint with independent views for CRVAE, got the prior "
                f"{type(joint.prior).__name__}; use priors.Independent(dim), or SimVAE"
            )
        self.joint, self.bound = joint, bound
        check = partial(at_least, least=0, hint="0.001 is a start")
        register_varying(self, "weight", weight, check)

    @in_float32
    def forward(self, batch: Batch) -> Terms:
        self._check_views(batch)
        terms = self.bound(self.joint, batch)
        apart = self.divergence(batch)
        return terms._replace(penalty=-self.weight.to(apart) * apart)

    def divergence(self, batch: Batch) -> Tensor:
        """The mean KL divergence of the posteriors of two views of an item, in nats."""
        views = batch.parts if self.joint.several else batch.stacked
        guide: Any = self.joint.posterior
        given = {"covariates": batch.covariates}
        given = given if "guide" in self.joint.conditional else {}
        with unmoved(guide):  # the bound has moved what a batch norm counts
            q = guide.each(views, **given) if hasattr(guide, "each") else None
        if not isinstance(q, Dimensions) or not isinstance(q.base_dist, Normal):
            raise ValueError(
                "expected a normal q(z|x) with independent dimensions for CRVAE, got "
                f"the guide {type(guide).__name__}; use guides.DiagonalGaussian"
            )
        loc, scale = q.base_dist.loc, q.base_dist.scale
        one = Normal(loc.unsqueeze(2), scale.unsqueeze(2), validate_args=False)
        other = Normal(loc.unsqueeze(1), scale.unsqueeze(1), validate_args=False)
        return over_pairs(kl_divergence(one, other).sum(-1)).mean()

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The mean of q(z|x)."""
        return self.joint.represent(x, layer)

    def check(self, batch: Batch) -> None:
        """Raise an error if the batch cannot have come from the model."""
        self._check_views(batch)
        self.joint.check(batch)
        with torch.no_grad():
            self.divergence(batch)

    def _check_views(self, batch: Batch) -> None:
        check_only_views(self, batch)
        if batch.shape[1] < 2:
            raise ValueError(
                f"expected at least 2 views of each item, got {batch.shape[1]}; give "
                "fit a view sampler, such as views=ps.views.Augment(), or use VAE"
            )
