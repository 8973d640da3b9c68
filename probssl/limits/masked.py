r"""Masked autoencoder (MAE): reconstruct hidden patches from the visible ones.

Masked Autoencoders Are Scalable Vision Learners (He et al., 2022)
https://arxiv.org/abs/2111.06377

The choices: p(y) absent, p(z) flat; z is kept informative by p(x|z) of the hidden part
of a view, with z the representation of the visible part. A fixed share of the patches
is hidden, all such sets m being equally likely:

.. math:: E_m \sum_{i \in m} \log p(x_i \mid z), \qquad z = f(x \odot (1 - m))

For a Gaussian likelihood that is the published squared error, summed over the hidden
pixels, times :math:`-1 / 2 \sigma^2`, plus a constant.

The limit: q → a point; the exact log-likelihood of a model of
:math:`x_m \mid x_{\setminus m}` remains, whose pixels are independent given z. As in
the inequality behind `Embedding`, for each set m and any encoder and decoder

.. math:: E \sum_{i \in m} \log p(x_i \mid z) \le -H[x_m \mid z]
    \le -H[x_m \mid x_{\setminus m}], \qquad
    H[x_m] + E \sum_{i \in m} \log p(x_i \mid z) \le I(x_m; z)

so z has to hold the information of the visible part on the hidden one.

Status: exact bound of its own: below :math:`-H[x_m \mid x_{\setminus m}]`. It drops the
content, the noise of the encoder, the density of z, and the dependence of hidden pixels
given z; and of the paper the transformer, which skips hidden patches where the encoder
here gets zeros, and the normalised patches.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..arguments import between, whole
from ..hyper import check_declared
from ..likelihoods import Likelihood
from ..likelihoods.base import check_output
from ..nn.base import check_no_covariates, network, output_of
from ..nn.network import check_items_apart, check_width
from ..runtime.precision import in_float32, lowered
from ..terms import Batch, Terms
from ._base import check_only_views, represented
from ._place import ABSENT, DECODER, NONE, Place

__all__ = ["MaskedAutoencoder"]


class MaskedAutoencoder(nn.Module):
    r"""The log-likelihood of hidden patches given the others, per item, in nats.

    One view is enough; with several the value is their mean. Patches are drawn from
    torch's global generator at each call, in evaluation mode as well.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim), which gets zeros where x is hidden.
        decoder: A module (n, dim) -> (n, \*event).
        likelihood: p(x|z) from the decoder's output, its elements independent.
        share: The share of hidden patches, rounded to whole patches: at least one, at
            most all but one. Published is 0.75.
        patch: The edge of an image patch in pixels; all channels are hidden together.
            Published is 16 for images of 224, a grid of 14 by 14. Rows of numbers are
            hidden feature by feature, whatever `patch` is.

    Raises:
        ValueError: If the share is not between 0 and 1, the edge is no positive whole
            number or does not divide an image, or a batch has absent views or another
            shape than the decoder's output.
    """

    place = Place(
        2022,
        ABSENT,
        NONE("flat"),
        DECODER("p(hidden x|z)"),
        "Masked is a squared error of hidden pixels given the visible ones",
    )

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        share: float = 0.75,
        patch: int = 2,
    ) -> None:
        super().__init__()
        share = between("share", share, 0, 1, "0.75 is published", open=True)
        patch = whole("patch", patch, hint="it divides height and width, such as 2")
        if not likelihood.elementwise:
            raise ValueError(
                "expected a likelihood of independent elements, got "
                f"{type(likelihood).__name__}, whose classes cannot be hidden one by "
                "one; use DenoisingAutoencoder"
            )
        network("encoder", encoder)
        check_width("decoder", network("decoder", decoder), encoder)
        check_no_covariates(likelihood=likelihood)
        check_output(likelihood, decoder)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.share, self.patch = share, patch

    @in_float32
    def forward(self, batch: Batch) -> Terms:
        check_only_views(self, batch)
        x = batch.stacked.flatten(0, 1)
        hidden = self.mask(x)
        output = self._output(x.masked_fill(hidden, 0.0))
        distribution = self.likelihood(output)
        if distribution.batch_shape != x.shape:
            raise ValueError(
                f"expected a density for each element of views {tuple(x.shape)}, got "
                f"{tuple(distribution.batch_shape)} for the decoder's output "
                f"{tuple(output.shape)}; build the decoder with "
                "event_shape=likelihood.output_shape(the shape of x)"
            )
        log_prob = distribution.log_prob(x).masked_fill(~hidden, 0.0)
        return Terms(reconstruction=log_prob.flatten(1).sum(1).mean())

    def _output(self, x: Tensor) -> Tensor:
        """The decoder's output for z of x."""
        z = represented(self.encoder, x)
        output: Tensor = lowered(output_of, self.decoder, z)
        return output

    def mask(self, x: Float[Tensor, "n *event"]) -> Bool[Tensor, "n *event"]:
        """Draw which elements are hidden, the same number of patches for each item."""
        grid = self._grid(x.shape[1:])
        patches = math.prod(grid)
        count = min(max(round(self.share * patches), 1), patches - 1)
        # Not in the dtype of x: in half precision ties would prefer some patches.
        noise = torch.rand(len(x), patches, dtype=torch.float32, device=x.device)
        hidden = (noise.argsort(-1) < count).view(len(x), *grid)
        if len(grid) == 1:
            return hidden
        for axis in (-2, -1):
            hidden = hidden.repeat_interleave(self.patch, axis)
        channels = (1,) * (x.dim() - 3)
        return hidden.view(len(x), *channels, *x.shape[-2:]).expand_as(x)

    def _grid(self, event: torch.Size) -> tuple[int, ...]:
        """The number of patches along each axis that is divided into patches."""
        edges = tuple(event[-2:])
        patch = self.patch if len(edges) == 2 else 1
        grid = tuple(edge // patch for edge in edges)
        if any(edge % patch for edge in edges) or math.prod(grid) < 2:
            raise ValueError(
                f"expected items of at least 2 whole patches of edge {patch}, got "
                f"event shape {tuple(event)}; take a smaller patch that divides it"
            )
        return grid

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The encoder's output for x, with nothing hidden."""
        return represented(self.encoder, x)

    def check(self, batch: Batch) -> None:
        """Raise an error if views are absent, patches do not fit, or x is no data."""
        check_declared(self)
        check_only_views(self, batch)
        self._grid(batch.stacked.shape[2:])
        self.likelihood.check(batch.stacked)
        check_items_apart(self, self._output, batch.stacked.flatten(0, 1))
