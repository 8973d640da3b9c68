"""Linear-Gaussian joints with known posterior and evidence, and correlated rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import probssl as ps

__all__ = ["ExactFactors", "ExactPosterior", "coupled", "covariances", "evidence"]
__all__ += ["exact", "linear_gaussian", "rows"]

FLOOR = 1e-4  # of the scales of guides


def rows(n: int = 40, dim: int = 5, seed: int = 0) -> np.ndarray:
    """Correlated features of different means."""
    rng = np.random.default_rng(seed)
    mix, mean = rng.normal(size=(dim, dim)), rng.normal(size=dim)
    return rng.normal(size=(n, dim)) @ mix + mean


class ExactFactors(nn.Module):
    """The likelihood as a normal function of z: its location; `scale` is its scale."""

    def __init__(self, weight: Tensor, noise: float) -> None:
        super().__init__()
        self.precision = weight.square().sum(0) / noise**2
        self.weight, self.noise = weight, noise
        self.scale = self.precision.rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight / self.noise**2 / self.precision


class ExactPosterior(ExactFactors):
    """The mean of one view's posterior in units of p(z), which `Coupled` expects.

    p(z) is the normal with the prior's moments; `share` is the posterior's standard
    deviation in these units.
    """

    def __init__(self, weight: Tensor, noise: float, prior: ps.priors.Prior) -> None:
        super().__init__(weight, noise)
        with torch.no_grad():
            one = prior(1)
            self.loc, variance = one.mean.squeeze(0), one.variance.squeeze(0)
        self.unit = variance.sqrt()
        self.share = (1 + variance * self.precision).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.unit * self.precision * self.share.square()
        return weight * (super().forward(x) - self.loc)


def coupled(encoder: nn.Module, dim: int) -> ps.guides.Coupled:
    """The guide `Coupled` of an `ExactPosterior`."""
    guide = ps.guides.Coupled(encoder, dim=dim)
    head = guide.single.spread.requires_grad_(False)
    nn.init.zeros_(head.weight)
    head.bias.copy_(((encoder.share - FLOOR) / (1 - FLOOR)).logit())
    return guide


def exact(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A guide of the kind whose factors have the scale of the encoder, whatever x.

    For `Coupled`, whose factors depend on the prior, there is `coupled`.
    """

    if kind is ps.guides.Point:
        return kind

    def make(encoder: nn.Module, dim: int) -> nn.Module:
        guide = kind(encoder, dim=dim)
        spread = guide.factors.spread
        several = isinstance(spread, nn.ModuleList)
        nets, heads = (encoder.parts, spread) if several else ([encoder], [spread])
        for net, head in zip(nets, heads, strict=True):
            raw = torch.as_tensor(net.scale - FLOOR).expm1().log()
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(raw.expand(dim))
        guide.factors.spread.requires_grad_(False)
        return guide

    return make


def linear_gaussian(
    prior: ps.priors.Prior, event: int, noise: float, **options: Any
) -> ps.Joint:
    """x = W z + noise with two orthogonal columns, so that the factors are diagonal.

    The guide is `CoupledLikelihoods` unless another is given.
    """
    weight = torch.linalg.qr(torch.randn(event, 2)).Q * torch.tensor([0.5, 2.0])
    decoder = nn.Linear(2, event, bias=False)
    decoder.weight = nn.Parameter(weight)
    likelihood = ps.likelihoods.Gaussian(noise)
    kind, encoder = options.get("guide"), ExactFactors(weight, noise)
    options["guide"] = exact(kind or ps.guides.CoupledLikelihoods)
    if kind is ps.guides.Coupled:
        encoder = ExactPosterior(weight, noise, prior)
        options["guide"] = coupled
    return ps.Joint(prior, likelihood, encoder, decoder, **options)


def covariances(joint: ps.Joint, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cov(z), the stacked decoder, and Cov(x), all views of an item in one vector.

    The prior is `priors.Gaussian` with numbers for its scales.
    """
    share = joint.prior.scale().square() * torch.eye(views)
    share = (share + joint.prior.y_scale().square()).detach()
    weight = joint.decoder.weight.detach().contiguous()
    z = torch.kron(share, torch.eye(weight.shape[1]))
    decoder = torch.kron(torch.eye(views), weight)
    noise = joint.likelihood.scale().detach().square()
    return z, decoder, decoder @ z @ decoder.T + noise * torch.eye(len(decoder))


def evidence(joint: ps.Joint, x: Tensor) -> Tensor:
    """log p(x_1, …, x_V) of every item of x (item, view, event)."""
    covariance = covariances(joint, x.shape[1])[2]
    loc = torch.zeros(len(covariance))
    return MultivariateNormal(loc, covariance).log_prob(x.flatten(1))
