"""Importance sampling of a y whose p(y|z) has many modes, against quadrature."""

import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from probssl.priors import Custom, ImportanceSampling

pytestmark = pytest.mark.usefixtures("float64")


def vector(loc: Tensor, scale: float) -> dist.TorchDistribution:
    return dist.Normal(loc, scale).to_event(1)


def ring(n: int) -> dist.TorchDistribution:
    angle = torch.arange(n) * 2 * math.pi / n
    loc = 4 * torch.stack([angle.cos(), angle.sin()], -1)
    return dist.MixtureSameFamily(
        dist.Categorical(torch.arange(1.0, n + 1)),
        dist.Independent(dist.Normal(loc, torch.full((n, 2), 0.15)), 1),
    )


def round_normal() -> dist.TorchDistribution:
    return dist.MultivariateNormal(torch.zeros(2), 3 * torch.eye(2))


# p(y), and p(z|y).
CASES = {
    "five components": (lambda: ring(5), lambda y: vector(y.abs(), 0.1)),
    "eight components": (lambda: ring(8), lambda y: vector(y.abs(), 0.1)),
    "eight, of one radius": (
        lambda: ring(8),
        lambda y: vector(y.norm(dim=-1, keepdim=True).expand(y.shape), 0.1),
    ),
    "eight, squared": (lambda: ring(8), lambda y: vector(y**2, 1.0)),
    "four signs": (round_normal, lambda y: vector(y.abs(), 0.1)),
}


def plain(content, conditional, z: Tensor) -> Tensor:
    """log p of the views by the sum over a grid of y."""
    line = torch.linspace(-8, 8, 801)
    y = torch.cartesian_prod(line, line)
    each = conditional(y)
    log_content = content.log_prob(y) + 2 * math.log(16 / 800)
    views = [sum(each.log_prob(v) for v in item) for item in z]
    return torch.stack([(log_content + log_p).logsumexp(0) for log_p in views])


@pytest.mark.parametrize("name", CASES)
def test_all_modes_are_found_by_default(name):
    content, conditional = CASES[name][0](), CASES[name][1]
    prior = Custom(conditional, 2, y_prior=content)
    assert isinstance(prior.integral, ImportanceSampling)
    z = prior(2).sample((8,))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "importance sampling of y has")
        found = torch.stack([prior.log_prob(z) for _ in range(12)]).exp()
    ratio = found / plain(content, conditional, z).exp()
    error = ratio.std(0) / len(ratio) ** 0.5
    assert ((ratio.mean(0) - 1).abs() < 5 * error + 0.01).all(), ratio.mean(0)
    assert (error < 0.05).all()


def narrow(y: Tensor) -> dist.TorchDistribution:
    return vector(y.abs(), 0.01)


@pytest.mark.filterwarnings("ignore:importance sampling of y has")
def test_modes_that_three_starts_miss_are_warned_of():
    prior = Custom(narrow, 2, y_prior=round_normal(), integral=ImportanceSampling())
    z = prior(2).sample((20,))
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match=r"misses modes.*starts=12"):
            prior.log_prob(z)
        prior.integral = ImportanceSampling(starts=12, least=5)
        prior.log_prob(z)  # without a warning


class Folded(nn.Module):
    """z is y, or the more its absolute value the more it is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.fold = nn.Parameter(torch.zeros(()))

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return vector(y + self.fold * (y.abs() - y), 0.1)


def test_modes_that_training_has_made_are_remarked():
    prior = Custom(Folded(), 2, y_prior=round_normal())
    assert prior.integral.starts == 3 and prior.remark() is None
    prior.conditional.fold.data.fill_(1.0)
    assert "misses modes" in prior.remark()
