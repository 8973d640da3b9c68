r"""Denoising autoencoder: reconstruct the clean item from a corrupted view.

Extracting and Composing Robust Features with Denoising Autoencoders
(Vincent et al., 2008)
https://doi.org/10.1145/1390156.1390294
Joint Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction for
Self-Supervised Learning (Van Assel et al., 2025), whose reconstruction objective it is
for a Gaussian likelihood
https://arxiv.org/abs/2505.12477

The choices: p(y) absent, p(z) flat; z is kept informative by p(x|z) of the clean item
x, with z the representation of a corrupted view :math:`\tilde x_v`.

.. math:: \frac1V \sum_v E \log p(x \mid z_v), \quad z_v = f(\tilde x_v), \qquad
    \text{for } N(g(z), \sigma^2 I) \text{:} \quad
    - \frac{1}{2 \sigma^2 V} \sum_v E \lVert x - g(f(\tilde x_v)) \rVert^2
    - \frac d2 \log 2 \pi \sigma^2

The limit: q → a point; the log-likelihood of a model of :math:`x \mid \tilde x`
remains. The inequality behind `Embedding`, for a decoder of the clean item, reads

.. math:: E \log p(x \mid z) \le -H[x \mid z] \le -H[x \mid \tilde x], \qquad
    H[x] + E \log p(x \mid z) \le I(x; z)

The first is an equality iff the decoder is the exact posterior of x given z, the second
iff z holds all that :math:`\tilde x` tells about x.

Status: exact bound of its own: below :math:`-H[x \mid \tilde x]`, for any encoder and
decoder. It drops the content, the noise of the encoder and the density of z: it has no
evidence of x and no z to sample.
"""

from collections.abc import Callable
from functools import partial
from typing import Self

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..hyper import check_declared
from ..joint import given_z
from ..likelihoods import Likelihood
from ..likelihoods.base import check_output
from ..nn import each_view
from ..nn.base import called, check_no_covariates, network, output_of
from ..nn.network import check_items_apart, check_width
from ..runtime.precision import in_float32, lowered
from ..terms import Batch, Terms
from ._base import check_only_views, represented
from ._place import ABSENT, DECODER, NONE, Place

__all__ = ["DenoisingAutoencoder"]


class DenoisingAutoencoder(nn.Module):
    r"""The log-likelihood of the clean item given a corrupted view, per item, in nats.

    One view is enough; with several the value is their mean.

    Arguments:
        encoder: A module (n, \*event) -> (n, dim).
        decoder: A module (n, dim) -> (n, \*event), where the event is that of x.
        likelihood: p(x|z) from the decoder's output.
        noise: A module (n, \*event) -> (n, \*event) that corrupts the views further,
            such as `views.Noise` or `nn.Dropout`, in training and in evaluation, since
            the corruption is part of the measured quantity: it stays in training mode.
            By default the augmentation is the corruption.

    Raises:
        ValueError: If a batch has no `clean`, absent views, or another shape than the
            decoder's output.
    """

    place = Place(
        2008,
        ABSENT,
        NONE("flat"),
        DECODER("p(clean x|z)"),
        "Denoising is below minus the conditional entropy and reaches it",
    )

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        noise: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        network("encoder", encoder)
        check_width("decoder", network("decoder", decoder), encoder)
        check_no_covariates(likelihood=likelihood, noise=noise)
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        check_output(likelihood, decoder)
        self.noise = noise

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the noise, which stays in training mode."""
        super().train(mode)
        if isinstance(self.noise, nn.Module):
            self.noise.train()
        return self

    @in_float32
    def forward(self, batch: Batch) -> Terms:
        check_only_views(self, batch)
        clean, views = _clean(batch).unsqueeze(1), batch.views
        if (noise := self.noise) is not None:
            views = tree_map(partial(_corrupted, noise), views)
        output = self._output(views)
        distribution = given_z(self.likelihood, output, output.shape[:2])
        shape = distribution.event_shape
        if shape != clean.shape[2:]:
            raise ValueError(
                "expected p(x|z) of the shape of clean items, "
                f"{tuple(clean.shape[2:])}, got {tuple(shape)}; build the decoder with "
                "event_shape=likelihood.output_shape(that shape)"
            )
        return Terms(reconstruction=distribution.log_prob(clean).mean())

    def _output(self, views: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The decoder's output for z of each view."""
        z = each_view(self.encoder, views)
        output: Tensor = lowered(output_of, self.decoder, z.flatten(0, 1))
        return output.unflatten(0, z.shape[:2])

    def represent(
        self, x: Tensor | tuple[Tensor, ...], layer: str = "backbone"
    ) -> Tensor:
        """The encoder's output for x, without noise."""
        return represented(self.encoder, x)

    def check(self, batch: Batch) -> None:
        """Raise an error if views are absent, or the likelihood refuses clean items."""
        check_declared(self)
        check_only_views(self, batch)
        self.likelihood.check(_clean(batch))
        check_items_apart(self, self._output, batch.views)


def _corrupted(noise: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    x = views.flatten(0, 1)
    found = called(noise, x)
    if getattr(found, "shape", None) != x.shape:
        got = getattr(found, "shape", type(found).__name__)
        raise ValueError(
            f"expected noise to return a tensor of the shape {tuple(x.shape)} of its "
            f"input, got {got}; give a module such as ps.views.Noise(0.1)"
        )
    return found.view_as(views)


def _clean(batch: Batch) -> Tensor:
    if batch.clean is None:
        raise ValueError(
            "expected clean items beside their views, got clean=None; fit sets it but "
            "for Groups, otherwise give Batch(views, clean=…)"
        )
    return batch.clean
