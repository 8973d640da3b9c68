"""Custom priors whose p(y) has mass where y rounds to an end of its support."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from scipy.integrate import quad
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from probssl.priors import Custom, ImportanceSampling, Quadrature

SCALE = 0.3
VIEWS = [[0.05, 0.1], [0.9, 1.1], [0.5, 0.4]]


def plain(a: float, b: float, z: list[float]) -> float:
    """log of the integral of a Beta(a, b) and views of y, over its logit, by SciPy."""

    def joint(u: float) -> float:
        log_p = a * special.log_expit(u) + b * special.log_expit(-u)
        log_p -= special.betaln(a, b)
        views = stats.norm.logpdf(z, special.expit(u), SCALE).sum()
        return math.exp(log_p + views)

    ends = [0.0] + [s * 10**k for s in (1.0, 3.0) for k in range(4)]
    ends = sorted({*ends, *(-e for e in ends)})
    parts = [quad(joint, *pair, epsabs=0)[0] for pair in zip(ends, ends[1:], strict=0)]
    return math.log(sum(parts))


def normal(y):
    return dist.Normal(y[..., :1], SCALE).to_event(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [0.05, 0.1, 0.2, 0.5, 1.0])
def test_a_sparse_beta_is_integrated_up_to_its_ends(concentration, dtype):
    one = torch.tensor([concentration], dtype=dtype)
    prior = Custom(normal, 1, y_prior=dist.Beta(one, one).to_event(1)).to(dtype)
    assert isinstance(prior.integral, Quadrature)
    z = torch.tensor(VIEWS, dtype=dtype).unsqueeze(-1)
    expected = torch.tensor([plain(concentration, concentration, v) for v in VIEWS])
    assert_close(prior.log_prob(z).float(), expected, rtol=0, atol=5e-3)
    assert prior.quadrature_error(z).max() < 5e-3


@pytest.mark.filterwarnings("ignore:importance sampling")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [0.05, 0.2, 1.0])
def test_a_sparse_dirichlet_is_integrated_up_to_its_corners(concentration, dtype):
    """One number of three is Beta, and the views are of that one."""
    content = dist.Dirichlet(torch.full((3,), concentration, dtype=dtype))
    prior = Custom(normal, 1, y_prior=content).to(dtype)
    assert isinstance(prior.integral, ImportanceSampling)
    z = torch.tensor(VIEWS, dtype=dtype).unsqueeze(-1).expand(40, -1, -1, -1)
    found = prior.log_prob(z).double().exp()
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    expected = [plain(concentration, 2 * concentration, v) for v in VIEWS]
    assert ((mean - torch.tensor(expected).exp()).abs() < 5 * error).all()
    assert (error < 0.05 * mean).all()


class Learned(nn.Module):
    def __init__(self, concentration: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor([math.log(concentration)]))

    def forward(self):
        return dist.Beta(self.log.exp(), self.log.exp()).to_event(1)


def test_a_learned_concentration_has_the_gradient_of_the_integral():
    content, step = Learned(0.1), 1e-3
    prior = Custom(normal, 1, y_prior=content)
    log_prob = prior.log_prob(torch.tensor(VIEWS).unsqueeze(-1))
    for found, views in zip(log_prob, VIEWS, strict=True):
        (gradient,) = torch.autograd.grad(found, content.log, retain_graph=True)
        high, low = (0.1 * math.exp(s) for s in (step, -step))
        expected = (plain(high, high, views) - plain(low, low, views)) / (2 * step)
        assert gradient.item() == pytest.approx(expected, rel=0.01, abs=2e-3)


def test_a_p_of_y_that_becomes_sparse_is_found_by_the_estimate_of_the_error():
    content = Learned(2.0)
    prior = Custom(normal, 1, y_prior=content)
    prior.sparse = False
    with torch.no_grad():
        content.log.fill_(math.log(0.05))
    z = torch.tensor(VIEWS).unsqueeze(-1)
    assert prior.quadrature_error(z).max() > 0.3


# p(y), SciPy's of the same numbers, and views.
EXTREME = {
    "sparse gamma": (dist.Gamma(0.01, 1.0), stats.gamma(0.01)),
    "sparse rare gamma": (dist.Gamma(0.05, 1e6), stats.gamma(0.05, scale=1e-6)),
    "wide log-normal": (dist.LogNormal(0.0, 3.0), stats.lognorm(3.0)),
    "tiny half-Cauchy": (dist.HalfCauchy(1e-6), stats.halfcauchy(scale=1e-6)),
    "heavy Student-t": (dist.StudentT(0.5), stats.t(0.5)),
    "tiny uniform": (dist.Uniform(0.0, 1e-6), stats.uniform(0, 1e-6)),
    "wide uniform": (dist.Uniform(-1.0, 1e4), stats.uniform(-1, 10001)),
    "Kumaraswamy": (dist.Kumaraswamy(0.05, 1.0), stats.beta(0.05, 1.0)),
}


@pytest.mark.parametrize("name", EXTREME)
def test_extreme_contents_are_integrated_in_single_precision(name):
    """Against the sum over intervals of the views at y times the mass of y."""
    content, plainly = EXTREME[name]
    prior = Custom(normal, 1, y_prior=content.expand([1]).to_event(1))
    z = torch.tensor([*VIEWS, [7.0, 6.8]])
    small = torch.logspace(-300, 1.1, 100_001, dtype=torch.double)
    even = torch.linspace(-5, 12, 200_001, dtype=torch.double)
    ends = torch.cat([even, small, -small]).clamp(-5, 12).unique()
    middle = ((ends[1:] + ends[:-1]) / 2).unsqueeze(-1)
    mass = torch.as_tensor(plainly.cdf(ends.numpy())).diff()
    views = dist.Normal(middle, SCALE).log_prob(z.double().unsqueeze(1)).sum(-1)
    expected = (views.exp() * mass).sum(-1).log()
    found = prior.log_prob(z.unsqueeze(-1))
    assert_close(found.double(), expected, rtol=0, atol=5e-3)


def test_a_sparse_content_is_traced():
    content = dist.Beta(0.1, 0.1).expand([2]).to_event(1)
    prior = Custom(lambda y: dist.Normal(y, SCALE).to_event(1), 2, y_prior=content)
    z = torch.rand(3, 2, 2)
    traced = make_fx(lambda z: prior.log_prob(z))(z)
    assert_close(traced(z), prior.log_prob(z))
