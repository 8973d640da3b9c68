"""Linear-Gaussian joints, x = W z + noise, whose posterior and evidence are known."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import probssl as ps

__all__ = ["ExactFactors", "covariances", "evidence", "linear_gaussian"]


class ExactFactors(nn.Module):
    """The likelihood as a normal function of z, with the raw scale that gives it."""

    def __init__(self, weight: Tensor, noise: float, floor: float = 1e-4) -> None:
        super().__init__()
        self.precision = weight.square().sum(0) / noise**2
        self.weight, self.noise, self.floor = weight, noise, floor

    def forward(self, x: Tensor) -> Tensor:
        loc = x @ self.weight / self.noise**2 / self.precision
        raw = (self.precision.rsqrt() - self.floor).expm1().log()
        return torch.cat([loc, raw.expand_as(loc)], -1)


def linear_gaussian(
    prior: ps.priors.Prior, event: int, noise: float, **options: Any
) -> ps.Joint:
    """x = W z + noise with two orthogonal columns, so that the factors are diagonal.

    The guide is `Coupled` unless another is given.
    """
    weight = torch.linalg.qr(torch.randn(event, 2)).Q * torch.tensor([0.5, 2.0])
    decoder = nn.Linear(2, event, bias=False)
    decoder.weight = nn.Parameter(weight)
    likelihood = ps.likelihoods.Gaussian(noise)
    options = {"guide": ps.guides.Coupled} | options
    return ps.Joint(prior, likelihood, ExactFactors(weight, noise), decoder, **options)


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
