"""LeJEPA and VISReg: published losses, and the PMI that they keep, as theorems."""

import math

import pytest
import scipy.stats
import torch
from helpers.checks import assert_mean, assert_same, asymmetry, refusals
from torch import Tensor, nn
from torch.testing import assert_close

from probssl.entropies import EppsPulley
from probssl.limits import LeJEPA, VISReg
from probssl.limits._sketched import SketchedEmbedding
from probssl.priors import Gaussian
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
UNIT = 0.5 * math.log(2 * math.pi * math.e)
KINDS = pytest.mark.parametrize("kind", [LeJEPA, VISReg])
SLICES = 7


def invariance(z: Tensor) -> Tensor:
    """Of views (view, n, dim) to the centroid of all, as released."""
    return (z - z.mean(0)).square().mean()


def sigreg(z: Tensor, a: Tensor) -> Tensor:
    """As released, of one sample (n, dim) and directions (dim, slice)."""
    t = torch.linspace(0, 3, 17)
    window = torch.exp(-t.square() / 2)
    weights = torch.full((17,), 2 * 3 / 16)
    weights[0] = weights[-1] = 3 / 16
    angle = (z @ a).unsqueeze(-1) * t
    apart = (angle.cos().mean(0) - window).square() + angle.sin().mean(0).square()
    return (len(z) * apart @ (weights * window)).mean()


def lejepa(z: Tensor, a: Tensor, weight: float, pooled: bool) -> Tensor:
    samples = [z.flatten(0, 1)] if pooled else list(z)
    statistic = sum(sigreg(x, a) for x in samples) / len(samples)
    return weight * statistic + (1 - weight) * invariance(z)


def visreg(z: Tensor, a: Tensor, weight: float, pooled: bool) -> Tensor:
    z_all, total = z, torch.zeros(())
    samples = [z.flatten(0, 1)] if pooled else list(z)
    for x in samples:
        sd = x.std(0, correction=0)
        places = [(i + 1) / (len(x) + 1) for i in range(len(x))]
        quantiles = torch.tensor(scipy.stats.norm.ppf(places)).unsqueeze(-1)
        u = ((x - x.mean(0)) / (sd.detach() + 1e-4)) @ a
        total = total + (1 - sd).square().mean() + x.mean(0).square().mean()
        total = total + (u.sort(0).values - quantiles).square().mean()
    return weight * total / len(samples) + (1 - weight) * invariance(z_all)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(
    ("kind", "loss", "weight"),
    [
        (LeJEPA, lejepa, 0.05),
        (LeJEPA, lejepa, 0.4),
        (VISReg, visreg, 0.9),
        (VISReg, visreg, 0.6),
    ],
)
def test_lejepa_and_visreg_are_minus_their_loss_times_a_factor(
    kind, loss, weight, views, pooled
):
    items, dim = 9, 4
    objective = kind(nn.Identity(), weight=weight, slices=SLICES, pooled=pooled)
    factor = views * dim / weight
    if kind is LeJEPA:
        factor /= objective.curvature * items * (views if pooled else 1)
    constants = []
    for size in (0.7, 1.6):
        z = (0.2 + size * torch.randn(items, views, dim)).requires_grad_()
        torch.manual_seed(5)
        ours = sum(objective(Batch(z)))
        torch.manual_seed(5)
        a = torch.randn(SLICES, dim, dtype=torch.float32).double().T
        plain = -factor * loss(z.transpose(0, 1), a / a.norm(dim=0), weight, pooled)
        constants.append((ours - plain).detach())
        assert_same(ours - constants[0], plain, z)
    # PMI where views are N(0, I), from its closed form.
    s, t = variances(objective, items, views)
    constant = -(dim / 2) * ((views - 1) * math.log(s) + math.log(t))
    constant += views * dim / 2 * (1 - 1 / t)
    assert_close(constants[0], torch.tensor(constant))


def variances(objective: SketchedEmbedding, items: int, views: int) -> tuple:
    s = objective.variance(items, views)
    return s, views - (views - 1) * s


def test_published_defaults():
    """Var(z|y) and the constants that the docstrings name."""
    one, other = LeJEPA(nn.Identity()), VISReg(nn.Identity())
    assert (one.weight, one.entropy.slices) == (0.05, 1024)
    assert (one.entropy.statistic.knots, one.entropy.statistic.largest) == (17, 3.0)
    assert (other.weight, other.entropy.slices) == (0.9, 4096)
    assert other.entropy.statistic.epsilon == 1e-4
    found = [one.variance(128, 2), one.variance(1024, 2), other.variance(9, 2)]
    found.append(VISReg(nn.Identity(), weight=0.6).variance(9, 2))
    assert [round(s, 2) for s in found] == [0.72, 0.96, 0.89, 0.5]


@KINDS
@pytest.mark.parametrize("views", [2, 3, 8])
@pytest.mark.parametrize("weight", [1e-6, 0.05, 0.9, 1 - 1e-6])
def test_the_weight_is_a_variance_between_zero_and_one(kind, views, weight):
    """1 / r = 1 / s − 1 / t, and each view of the prior is N(0, I)."""
    objective = kind(nn.Identity(), weight=weight)
    s, t = variances(objective, 50, views)
    assert 0 < s < 1
    # 1 / s − 1 / t without cancellation.
    expected = s * t / (views * (1 - s))
    assert_close(objective.radius(50, views), expected, rtol=1e-7, atol=0)
    prior = objective.prior(50, views).double()
    assert_close(prior(1, dim=3).variance, torch.ones(1, 3), rtol=1e-6, atol=0)


@KINDS
@pytest.mark.parametrize("views", [2, 3])
def test_the_alignment_is_the_log_density_at_unit_second_moments(kind, views):
    """And PMI − Σ log N is what it says: the distance, the moments, a constant."""
    items, dim, objective = 9, 4, kind(nn.Identity(), weight=0.3)
    s, t = variances(objective, items, views)
    z, prior = torch.randn(items, views, dim), exact(s)
    moments = z.square().sum((1, 2)).mean()
    found = objective(Batch(z)).alignment
    log_density = prior.log_prob(z).mean()
    assert_close(found, log_density + (moments - views * dim) / (2 * t))
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    pmi = (prior.log_prob(z) - normal).mean()
    apart = (z - z.mean(1, keepdim=True)).square().sum((1, 2)).mean()
    closed = -apart / (2 * objective.radius(items, views)) + (1 - 1 / t) * moments / 2
    closed = closed - dim / 2 * ((views - 1) * math.log(s) + math.log(t))
    assert_close(pmi, closed)
    if views == 2:
        assert_close(pmi, prior.pmi(z[:, 0], z[:, 1]).diagonal().mean())


def exact(s: float) -> Gaussian:
    """The prior in float64, whose fixed numbers are float64 as well."""
    return Gaussian(None, math.sqrt(s), math.sqrt(1 - s))


def test_at_the_model_the_value_is_the_mutual_information():
    """Less the divergence of finite samples, which is V d times one of a slice."""
    items, views, dim = 40, 2, 3
    objective = LeJEPA(nn.Identity(), slices=4)
    prior = objective.prior(items, views)
    information = Gaussian(dim, prior.scale(), prior.y_scale()).mutual_information()
    t = torch.linspace(0, 3, 17)
    weight = torch.full((17,), 2 * 3 / 16) * (-t.square() / 2).exp()
    weight[-1] /= 2
    noise = (weight * (1 - (-t.square()).exp())).sum() / EppsPulley().curvature
    law = prior(views, dim=dim)
    found = [sum(objective(Batch(law.sample((items,))))) for _ in range(120)]
    assert_mean(found, information - views * dim * noise / items)


@KINDS
def test_the_gradient_is_that_of_a_scalar_but_for_a_stop_gradient(kind):
    objective = kind(nn.Identity(), slices=5).eval()

    def update(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(torch.as_tensor(sum(objective(Batch(z)))), z)[0]

    found = asymmetry(update, 0.5 * torch.randn(5, 2, 2))
    assert found < 1e-6 if kind is LeJEPA else found > 1e-2


@KINDS
def test_pooled_views_may_differ_as_long_as_their_mixture_is_normal(kind):
    places = (torch.arange(500) + 0.5) / 500
    half = torch.special.ndtri(places).abs().unsqueeze(-1)
    z = torch.stack([half, -half], 1)
    pooled, each = (
        2 * UNIT - kind(nn.Identity(), slices=4, pooled=p)(Batch(z)).entropy
        for p in (True, False)
    )
    assert pooled < 1e-2 < 1 < each


test_bad_arguments_are_refused = refusals(
    (lambda: LeJEPA(nn.Identity(), weight=0.0), ValueError, "weight strictly between"),
    (lambda: VISReg(nn.Identity(), weight=1.0), ValueError, "weight strictly between"),
    (lambda: VISReg(nn.Identity(), slices=0), ValueError, "slices as a whole number"),
    (lambda: LeJEPA(nn.Identity(), slices=2.5), TypeError, "slices as a whole number"),
)
