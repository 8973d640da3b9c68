r"""The one distribution, and its guide, in Pyro.

.. math:: p(y, z, x) = p(y) \prod_v p(z_v \mid y) \, p(x_v \mid z_v)

References:
    A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
    https://arxiv.org/abs/2402.01399
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

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
    r"""Views of items that share a content y, which is integrated out, or explicit.

    ======================  =============================================
    p(h) = the prior's own  random hyper-parameters, outside the plate
    p(z) = `prior`          z_1..V of each item, event shape (view, dim)
    p(x|z) = `likelihood`   of the decoder's output, for each view
    q(z|x) = `guide`        of the encoder's output
    q(y|z) = `content`      of z_1..V, if y is to be explicit
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
        content: A guide :math:`q(y \mid z_1, \dots, z_V)`, such as `guides.Content`: a
            module (\*batch, view, dim) -> distribution of y. Then y is a variable of
            the model, and :math:`E_q[\log p(y) + \sum_v \log p(z_v \mid y) - \log q(y
            \mid z)]` stands for :math:`\log p(z_1, \dots, z_V)`, which it is below:
            for priors whose integral over y is not known. By default the prior
            integrates it out.

    Raises:
        ValueError: If the dimensions of prior and encoder differ.
        TypeError: If y is to be explicit and the prior has no p(z|y) of its own.
    """

    prior: Prior
    likelihood: Likelihood
    decoder: nn.Module
    posterior: nn.Module
    content: nn.Module | None
    population: Tensor | None

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        guide: Callable[[nn.Module], nn.Module] = DiagonalGaussian,
        content: nn.Module | None = None,
    ) -> None:
        super().__init__()
        dim = getattr(encoder, "dim", prior.dim)
        if prior.dim is None or dim != prior.dim:
            raise ValueError(
                f"expected prior and encoder of one dimension, got dim={prior.dim} and "
                f"dim={dim}; build both with the same dim"
            )
        self.prior, self.likelihood, self.decoder = prior, likelihood, decoder
        self.posterior, self.content = guide(encoder), content
        if content is not None:
            with torch.random.fork_rng(devices=[]):  # an error now rather than later
                prior.given(prior.content().sample())
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
        parts = ("prior", "likelihood", "encoder", "decoder", "content")
        return {part: getattr(self, part) for part in parts} | {
            "guide": _maker(self.posterior)
        }

    def model(self, batch: Batch) -> None:
        """p(h), p(z_1..V | h), p(x_v | z_v)."""
        items, views = batch.shape
        drawn = {h.name: h.sample() for h in self.prior.random()}
        with pyro.plate("item", items, dim=-1):
            z = pyro.sample("z", self._latents(views, drawn))
            x = self.decode(z)
            if batch.present is not None:
                x = x.mask(batch.present)
            pyro.sample("x", x.to_event(1), obs=batch.stacked)

    def guide(self, batch: Batch) -> None:
        """q(h), q(z_1..V | x_1..V, h), and q(y | z_1..V) if y is explicit."""
        items, _ = batch.shape
        drawn = {h.name: h.sample_guide() for h in self.prior.random()}
        with pyro.plate("item", items, dim=-1):
            z = pyro.sample("z", self.encode(batch, **drawn))
            if self.content is not None:
                pyro.sample("y", self.content(z))

    def encode(self, batch: Batch, **drawn: Tensor) -> TorchDistribution:
        """Return q(z_1..V | x_1..V), event shape (view, dim)."""
        prior = partial(self.prior, batch.shape[1], **drawn)
        return self.posterior(batch.stacked, prior, batch.present)

    def decode(self, z: Tensor) -> TorchDistribution:
        """Return p(x_v | z_v), batch shape (\\*batch, view), event shape that of x."""
        output = self.decoder(z.flatten(0, -2))
        distribution = self.likelihood(output.view(z.shape[:-1] + output.shape[1:]))
        return distribution.to_event(output.dim() - 1)

    def _latents(self, views: int, drawn: dict[str, Tensor]) -> TorchDistribution:
        """p(z_1..V | h), or with an explicit y its site and p(z_1..V | y, h)."""
        if self.content is None:
            return self.prior(views, **drawn)
        y = pyro.sample("y", self.prior.content(**drawn))
        lifted = {h.name: h.lifted(drawn[h.name]) for h in self.prior.random()}
        each = self.prior.given(y.unsqueeze(-2), **lifted)
        return each.expand(y.shape[:-1] + (views,)).to_event(1)

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
                the likelihood is a density of, or hold NaN, or if a guide, of z or of
                y, draws what the prior gives no density.
        """
        self.likelihood.check(batch.stacked)
        support: Any = self.prior(batch.shape[1]).support
        device = batch.stacked.device
        forked = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(forked):  # a check changes nothing
            drawn = self.encode(batch).sample()
            self._check_support(self.posterior, "p(z)", support.check(drawn))
            if self.content is not None:
                support = self.prior.content().support
                y = self.content(drawn).sample()
                self._check_support(self.content, "p(y)", support.check(y))

    def _check_support(self, guide: nn.Module, density: str, inside: Tensor) -> None:
        if not bool(inside.all()):
            raise ValueError(
                f"expected draws of {type(guide).__name__} on the support of {density} "
                f"of {type(self.prior).__name__}, got others; give the joint a guide "
                "for this prior, on the sphere guides.PowerSpherical or, for y, "
                "guides.SphericalContent"
            )


def _maker(guide: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """What makes such a guide from an encoder."""
    names = [name for name in signature(type(guide)).parameters if name != "encoder"]
    options = {name: getattr(guide, name) for name in names if hasattr(guide, name)}
    return partial(type(guide), **options) if options else type(guide)
