"""Baselines: SimVAE and SimCLR hand-written in PyTorch, and SimVAE in Pyro.

One forward pass over all views, closed forms instead of distributions, and nothing from
probssl but the networks of SimCLR. Each returns the loss per item of two views, in
nats, with all constants.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    normalize,
    softplus,
)

import probssl as ps

__all__ = ["PyroSimVAE", "SimCLR", "SimVAE"]

FLOOR = 1e-4  # of the standard deviation of the guide


class SimVAE(nn.Module):
    """SimVAE for two views of binary images; encoder and decoder are mirrored."""

    def __init__(
        self, pixels: int, hidden: tuple[int, ...], dim: int, scale: float
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*_dense(pixels, *hidden))
        self.mean, self.spread = (nn.Linear(hidden[-1], dim) for _ in range(2))
        inner = _dense(dim, *reversed(hidden))
        self.decoder = nn.Sequential(*inner, nn.Linear(hidden[0], pixels))
        self.dim, self.scale = dim, scale

    def forward(self, x: Tensor) -> Tensor:
        """The loss for views (item, 2, pixels)."""
        items = len(x)
        features = self.trunk(x.flatten(0, 1))
        mean = self.mean(features).float()
        spread = softplus(self.spread(features).float()) + FLOOR
        noise = torch.randn_like(mean)
        z = mean + spread * noise
        logits = self.decoder(z).float()
        misfit = binary_cross_entropy_with_logits(
            logits, x.flatten(0, 1), reduction="sum"
        )
        log_q = -(spread.log() + 0.5 * noise.square()).sum()
        first, second = z.unflatten(0, (items, 2)).unbind(1)
        # Sum and difference of the views are independent.
        apart = self.scale**2
        together = 2 + apart
        square = (first - second).square() / apart + (
            first + second
        ).square() / together
        # log 2π cancels between log q and log p.
        constant = items * self.dim * 0.5 * math.log(apart * together)
        return (misfit + log_q + 0.25 * square.sum() + constant) / items

    def copy(self, joint: ps.Joint) -> "SimVAE":
        """Copy the weights of a joint; returns self."""
        factors = joint.posterior.factors
        theirs = (joint.encoder.trunk, joint.encoder.head, factors.spread)
        ours = (self.trunk, self.mean, self.spread, self.decoder)
        for own, other in zip(ours, (*theirs, joint.decoder), strict=True):
            values = other.state_dict().values()
            own.load_state_dict(dict(zip(own.state_dict(), values, strict=True)))
        return self


class PyroSimVAE(SimVAE):
    """The same as a Pyro model and guide, with the loss of Pyro's Trace_ELBO."""

    def __init__(self, *sizes: object) -> None:
        super().__init__(*sizes)  # type: ignore[arg-type]
        views = torch.eye(2) * self.scale**2 + 1.0
        covariance = torch.kron(views, torch.eye(self.dim))
        self.register_buffer("tril", torch.linalg.cholesky(covariance))
        self.loss = Trace_ELBO().differentiable_loss

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        zero = x.new_zeros(2 * self.dim)
        with pyro.plate("item", len(x)):
            prior = dist.MultivariateNormal(zero, scale_tril=self.tril)
            z = pyro.sample("z", prior)  # both views, concatenated
            logits = self.decoder(z.unflatten(-1, (2, self.dim)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", nn.ModuleList([self.trunk, self.mean, self.spread]))
        features = self.trunk(x)
        mean = self.mean(features).flatten(1)
        spread = softplus(self.spread(features)).flatten(1) + FLOOR
        with pyro.plate("item", len(x)):
            pyro.sample("z", dist.Normal(mean, spread).to_event(1))

    def forward(self, x: Tensor) -> Tensor:
        """The loss for views (item, 2, pixels)."""
        return self.loss(self.model, self.guide, x) / len(x)


class SimCLR(nn.Module):
    """NT-Xent of two views, minus the log of the number of other representations."""

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature

    def forward(self, x: Tensor) -> Tensor:
        """The loss for views (item, 2, channel, height, width)."""
        z = normalize(self.encoder(x.flatten(0, 1)).float(), dim=-1)
        logits = z @ z.mT / self.temperature
        logits.fill_diagonal_(-math.inf)
        partner = torch.arange(len(z), device=z.device) ^ 1
        return cross_entropy(logits, partner) - math.log(len(z) - 1)


def _dense(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers
