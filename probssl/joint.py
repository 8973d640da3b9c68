r"""The one distribution, and its guide, in Pyro.

.. math:: p(y, z, x) = p(y) \prod_v p(z_v \mid y) \, p(x_v \mid z_v)

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from collections.abc import Callable
from functools import partial

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .guides import DiagonalGaussian
from .likelihoods import Likelihood
from .priors import Prior
from .terms import Batch

__all__ = ["Joint"]


class Joint(nn.Module):
    r"""Views of items that share a content y, with y integrated out.

    ======================  =============================================
    p(h) = the prior's own  random hyper-parameters, outside the plate
    p(z) = `prior`          z_1..V of each item, event shape (view, dim)
    p(x|z) = `likelihood`   of the decoder's output, for each view
    q(z|x) = `guide`        of the encoder's output
    ======================  =============================================

    It is a plain module with the methods `model` and `guide`, so Pyro's tools take it
    as it is: ``poutine.trace(joint.model)``, ``Predictive``,
    ``MCMC(NUTS(joint.model))``, ``pyro.render_model``. Items are independent in one
    plate, "item".

    Arguments:
        prior: p(z_1..V), with its hyper-parameters.
        likelihood: p(x_v | z_v) from the decoder's output.
        encoder: A module (n, \*event) -> (n, dim).
        decoder: A module (n, dim) -> (n, \*event).
        guide: What makes the guide from the encoder, `guides.DiagonalGaussian`,
            `guides.Coupled` or `guides.Point`.

    Raises:
        ValueError: If the dimensions of prior and encoder differ.
    """

    prior: Prior
    likelihood: Likelihood
    decoder: nn.Module
    posterior: nn.Module
    population: Tensor | None

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        guide: Callable[[nn.Module], nn.Module] = DiagonalGaussian,
    ) -> None:
        super().__init__()
        dim = getattr(encoder, "dim", prior.dim)
        if prior.dim is None or dim != prior.dim:
            raise ValueError(
                f"expected prior and encoder of one dimension, got dim={prior.dim} and "
                f"dim={dim}; build both with the same dim"
            )
        self.prior, self.likelihood, self.decoder = prior, likelihood, decoder
        self.posterior = guide(encoder)
        # The number of items in the data set, by which global sites are weighted.
        self.register_buffer("population", None)

    @property
    def encoder(self) -> nn.Module:
        encoder = self.posterior.encoder
        assert isinstance(encoder, nn.Module)
        return encoder

    @property
    def arguments(self) -> dict[str, object]:
        """What the constructor was called with, for `save`."""
        parts = ("prior", "likelihood", "encoder", "decoder")
        return {part: getattr(self, part) for part in parts} | {
            "guide": type(self.posterior)
        }

    def model(self, batch: Batch) -> None:
        """p(h), p(z_1..V | h), p(x_v | z_v)."""
        items, views = batch.shape
        drawn = {h.name: h.sample() for h in self.prior.random()}
        with pyro.plate("item", items, dim=-1):
            z = pyro.sample("z", self.prior(views, **drawn))
            x = self.decode(z)
            if batch.present is not None:
                x = x.mask(batch.present)
            pyro.sample("x", x.to_event(1), obs=batch.stacked)

    def guide(self, batch: Batch) -> None:
        """q(h), q(z_1..V | x_1..V, h)."""
        items, _ = batch.shape
        drawn = {h.name: h.sample_guide() for h in self.prior.random()}
        with pyro.plate("item", items, dim=-1):
            pyro.sample("z", self.encode(batch, **drawn))

    def encode(self, batch: Batch, **drawn: Tensor) -> TorchDistribution:
        """Return q(z_1..V | x_1..V), event shape (view, dim)."""
        prior = partial(self.prior, batch.shape[1], **drawn)
        return self.posterior(batch.stacked, prior, batch.present)

    def decode(self, z: Tensor) -> TorchDistribution:
        """Return p(x_v | z_v), batch shape (\\*batch, view), event shape that of x."""
        output = self.decoder(z.flatten(0, -2))
        distribution = self.likelihood(output.view(z.shape[:-1] + output.shape[1:]))
        return distribution.to_event(output.dim() - 1)

    def represent(self, x: Tensor, layer: str = "backbone") -> Tensor:
        """The mean of q(z|x), each item seen alone; there is no projector."""
        return self.alone(x).mean.squeeze(1)

    def alone(self, x: Tensor) -> TorchDistribution:
        """Return q(z|x) of items with a single view, event shape (1, dim)."""
        return self.encode(Batch(x.unsqueeze(1)))

    def check(self, batch: Batch) -> None:
        """Raise an error if the batch cannot have come from the model.

        Raises:
            ValueError: If there is one view and a flat p(y), if the views are not what
                the likelihood is a density of, or hold NaN, or if the guide draws what
                the prior gives no density.
        """
        self.likelihood.check(batch.stacked)
        support = self.prior(batch.shape[1]).support
        device = batch.stacked.device
        forked = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(forked):  # a check changes nothing
            drawn = self.encode(batch).sample()
        if not bool(support.check(drawn).all()):
            raise ValueError(
                f"expected draws of {type(self.posterior).__name__} on the support of "
                f"{type(self.prior).__name__}, {support}, got others; give the joint a "
                "guide for this prior"
            )
