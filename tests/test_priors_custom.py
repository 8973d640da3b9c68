"""Priors with a conditional of one's own: against closed forms and plain quadrature."""

import copy
import math
from functools import partial
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import flow
from helpers.checks import assert_mean, seeded
from scipy import stats
from scipy.integrate import quad
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, constraints
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Custom, Gaussian, ImportanceSampling, Quadrature
from probssl.priors import custom as custom_module
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
close = partial(assert_close, rtol=0, atol=1e-8)


def normal(scale: float):
    return lambda y: dist.Normal(y, scale).to_event(1)


def laplace(scale: float):
    return lambda y: dist.Laplace(y, scale).to_event(1)


class LearnedLaplace(nn.Module):
    def __init__(self, start: float = 0.3) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(y, self.log_scale.exp()).to_event(1)


class LearnedNormal(nn.Module):
    def __init__(self, scale: object) -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(scale, "scale")

    def forward(self, y: Tensor, scale: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Normal(y, self.scale() if scale is None else scale).to_event(1)


class Mixing(nn.Module):
    """A conditional whose dimensions depend on all of y."""

    def __init__(self, weight: Tensor, scale: float = 0.3) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), scale

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y + y @ self.weight, self.scale).to_event(1)


def plainly(log_density, kinks: list[float], spread: float) -> float:
    """log of the integral of exp(log_density), by SciPy between the kinks."""
    peak = max(kinks + [0.0], key=log_density)
    steps = (-12.0, -3.0, -1.0, 0.0, 1.0, 3.0, 12.0)
    ends = {k + spread * step for k in [*kinks, peak] for step in steps}
    ends = sorted(ends | {k + step for k in kinks for step in (-12.0, 12.0)})
    total = sum(
        quad(lambda y: math.exp(log_density(y) - log_density(peak)), a, b, limit=200)[0]
        for a, b in zip(ends, ends[1:], strict=False)
    )
    return math.log(total) + log_density(peak)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.5, 1.0, 5.0])
def test_gaussian_conditional_equals_the_closed_form(scale):
    custom, exact = Custom(normal(scale), 3), Gaussian(3, scale)
    for views in (1, 2, 5, 9):
        drawn = exact(views).sample((20,))
        apart, outlying = (1 + scale) * torch.randn(20, views, 3), drawn + 10
        for z in (drawn, apart, outlying, torch.zeros(1, views, 3)):
            close(custom.log_prob(z), exact.log_prob(z))


def log_laplace(away: float, scale: float) -> float:
    return -abs(away) / scale - math.log(2 * scale)


def log_student(away: float, dof: float, scale: float) -> float:
    constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)
    constant -= 0.5 * math.log(dof * math.pi) + math.log(scale)
    return constant - (dof + 1) / 2 * math.log1p((away / scale) ** 2 / dof)


@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "log_density", "numbers", "within"),
    [
        *((dist.Laplace, log_laplace, [scale], 1e-8) for scale in (0.05, 0.3, 2.0)),
        (dist.StudentT, log_student, [3.0, 0.3], 1e-7),
        (dist.StudentT, log_student, [1.0, 1.0], 1e-7),
    ],
)
def test_integral_equals_plain_quadrature(family, log_density, numbers, within, views):
    """Heavy tails whose views disagree have several peaks."""
    *dof, scale = numbers
    prior = Custom(lambda y: family(*dof, y, scale).to_event(1), 1)
    apart = torch.tensor([[-1.5, 1.0], [0.2, 0.3], [-4.0, 6.0]]).repeat(1, 2)
    together = torch.randn(4, 1) + scale * torch.randn(4, views)
    for items in (together, torch.randn(4, views), *[apart[:, :views]] * len(dof)):
        plain = []
        for item in items.tolist():

            def log_joint(y, item=item):
                log_views = sum(log_density(v - y, *numbers) for v in item)
                return log_views - 0.5 * (y * y + math.log(2 * math.pi))

            plain.append(plainly(log_joint, item, scale))
        found = prior.log_prob(items.unsqueeze(-1))
        assert_close(found, torch.tensor(plain), rtol=0, atol=within)


@pytest.mark.parametrize("dof", [1.0, 1.5, 3.0])
def test_narrow_content_with_heavy_tails_is_found_far_from_the_views(dof):
    place, scale, views = 50.0, 0.01, [0.0, 0.3]

    def log_joint(y):
        log_views = sum(log_student(v - y, 1.0, 1.0) for v in views)
        return log_views + log_student(y - place, dof, scale)

    content = dist.StudentT(dof, place, scale).expand([1]).to_event(1)
    prior = Custom(lambda y: dist.Cauchy(y, 1.0).to_event(1), 1, y_prior=content)
    found = prior.log_prob(torch.tensor(views).view(1, -1, 1))
    steps = [k * 4.0**p for p in range(-5, 8) for k in (-1, 1)]
    kinks = [*views, place, *(c + s for c in (0.0, place) for s in steps)]
    ends = sorted(kinks)
    total = sum(
        quad(lambda y: math.exp(log_joint(y)), a, b, epsabs=0, limit=200)[0]
        for a, b in zip(ends, ends[1:], strict=False)
    )
    assert_close(found, torch.tensor([math.log(total)]), rtol=0, atol=0.01)


@pytest.mark.parametrize(("scale", "z"), [(0.01, 1.0), (0.01, 2.0), (0.03, 1.0)])
def test_the_error_of_quadrature_counts_a_mirrored_peak(scale, z, float64):
    prior = Custom(lambda y: dist.Normal(y**2, scale).to_event(1), 1)
    points = torch.tensor([[[z], [z + scale]]])
    y = torch.linspace(-4, 4, 400_001)
    log_joint = dist.Normal(0.0, 1.0).log_prob(y)
    for point in points.flatten():
        log_joint = log_joint + dist.Normal(y**2, scale).log_prob(point)
    right = torch.logsumexp(log_joint, 0) + math.log(float(y[1] - y[0]))
    off = (prior.log_prob(points) - right).abs()
    assert_close(prior.quadrature_error(points), off, rtol=0.02, atol=0.01)


def test_conditional_need_not_be_centred():
    z, exact = torch.randn(20, 3, 2), Gaussian(2, 0.3, 2.0)
    prior = Custom(lambda y: dist.Normal(2 * y + 1, 0.3).to_event(1), 2)
    close(prior.log_prob(z), exact.log_prob(z - 1))
    present = torch.tensor([True, False, False]).expand(20, -1)
    mean = exact(3).complete_mean(z - 1, present) + 1
    close(prior(3).complete_mean(z, present), mean)
    prior = Custom(lambda y: dist.LogNormal(2 * y + 1, 0.3).to_event(1), 2)
    close(prior.log_prob(z.exp()), exact.log_prob(z - 1) - z.sum((1, 2)))


def test_two_contents_for_the_same_view_are_both_found():
    prior = Custom(lambda y: dist.Normal(y.abs(), 0.3).to_event(1), 1)
    z = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    # By symmetry twice the integral over positive y, an incomplete Gaussian one.
    variance = 1 + 0.3**2
    positive = dist.Normal(0.0, 1.0).cdf(z / 0.3 / math.sqrt(variance))
    marginal = dist.Normal(0.0, math.sqrt(variance)).log_prob(z)
    plain = (marginal + (2 * positive).log()).flatten()
    # A kink at no view, y = 0: less exact.
    assert_close(prior.log_prob(z), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 2.0, 1e3])
@pytest.mark.parametrize("loc", [0.0, 1.5])
def test_content_may_be_any_gaussian(loc, scale):
    content = dist.Normal(torch.full((2,), loc), scale).to_event(1)
    prior, z = Custom(normal(0.3), 2, y_prior=content), torch.randn(20, 3, 2)
    close(prior.log_prob(z), Gaussian(2, 0.3, scale).log_prob(z - loc))


@pytest.mark.parametrize("stretch", [1e-4, 1e4])
def test_stretching_content_and_views_leaves_the_density_of_both(stretch):
    def build(c: float) -> Custom:
        content = dist.Normal(torch.zeros(1), c).to_event(1)
        conditional = lambda y: dist.Normal(y.abs(), 0.3 * c).to_event(1)  # noqa: E731
        return Custom(conditional, 1, y_prior=content)

    z = torch.rand(10, 2, 1) + 0.5
    value = build(stretch).log_prob(stretch * z) + 2 * math.log(stretch)
    assert_close(value, build(1.0).log_prob(z))


@pytest.mark.parametrize(
    "content, low, high",
    [
        (dist.Gamma(2.0, 1.5), 0.0, 20.0),
        (dist.Uniform(-1.0, 2.0), -1.0, 2.0),
        (dist.Laplace(0.3, 0.7), -30.0, 30.0),
        (dist.Cauchy(0.0, 1.0), -4000.0, 4000.0),
    ],
)
def test_content_may_have_any_support(content, low, high):
    prior = Custom(normal(0.3), 1, y_prior=content.expand([1]).to_event(1))
    for item in ([0.4, 0.7], [-0.2, 0.1], [1.9, 2.6]):
        z = torch.tensor(item)
        middle = min(max(float(z.mean()), low), high)

        def integrand(y, z=z):
            y = torch.tensor(y)
            log_prob = content.log_prob(y) + dist.Normal(y, 0.3).log_prob(z).sum()
            return float(log_prob.exp())

        ends = sorted({low, 0.0, 0.3, middle, high, *(middle + t for t in (-3, -1, 3))})
        ends = [e for e in ends if low <= e <= high]
        plain = sum(
            quad(integrand, a, b, epsabs=1e-13, limit=200)[0]
            for a, b in zip(ends, ends[1:], strict=False)
        )
        # The Laplace density has a kink of its own, at none of the views.
        assert_close(
            prior.log_prob(z.view(1, 2, 1)),
            torch.tensor([math.log(plain)]),
            rtol=0,
            atol=1e-4 if isinstance(content, dist.Laplace) else 1e-7,
        )


@pytest.mark.filterwarnings("ignore:expected Quadrature")
def test_reported_error_is_the_true_one():
    z = (1 + 0.3) * torch.randn(30, 2, 1)
    exact = Gaussian(1, 0.3).log_prob(z)
    for rule in (Quadrature(6, 4, 1), Quadrature(4, 8, 1), Quadrature()):
        prior = Custom(normal(0.3), 1, integral=rule)
        error = (prior.log_prob(z) - exact).abs()
        assert_close(prior.quadrature_error(z), error, rtol=1e-3, atol=1e-9)
    assert Custom(normal(0.3), 1, integral=Quadrature(6, 4, 1)).quadrature_error(
        z
    ).max() > (1e-6)


@pytest.mark.parametrize("plug_in", [False, True])
def test_all_of_a_gaussian_conditional_is_the_closed_form(plug_in, monkeypatch):
    ours, exact = Custom(normal(0.3), 3), Gaussian(3, 0.3)
    a, b = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    for numbers in (custom_module.KERNEL_NUMBERS, 100):
        monkeypatch.setattr(custom_module, "KERNEL_NUMBERS", numbers)
        close(ours.log_kernel(a, b, plug_in), exact.log_kernel(a, b, plug_in))
    close(ours.pmi(a, b), exact.pmi(a, b))

    z, y = torch.randn(6, 3, 3), torch.randn(6, 3)
    present = torch.tensor([True, False, False]).expand(6, -1)
    mean = exact(3).complete_mean(z, present)
    close(ours(3).complete_mean(z, present), mean)
    posterior, plain = ours.posterior_y(z), exact.posterior_y(z)
    close(posterior.mean, plain.mean)
    close(posterior.stddev, plain.stddev)
    close(posterior.log_prob(y), plain.log_prob(y))
    assert_mean(posterior.sample((20_000,)), plain.mean)

    value = ours.float().log_prob(z.float())
    assert value.dtype == torch.float32
    assert_close(value.double(), exact.log_prob(z), rtol=0, atol=2e-4)


class LearnedContent(nn.Module):
    """A normal p(y) with a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(2.0)))

    def forward(self) -> dist.TorchDistribution:
        scale = self.log_scale.exp().expand(2)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)


@pytest.mark.parametrize("learned", ["scale", "y_scale"])
def test_gradients_are_those_of_the_closed_form(learned):
    if learned == "scale":
        prior: Custom = Custom(LearnedNormal(ps.learned(0.3)), 2)
        exact = Gaussian(2, ps.learned(0.3))
    else:
        prior = Custom(normal(0.3), 2, y_prior=LearnedContent())
        exact = Gaussian(2, 0.3, ps.learned(2.0))
    z = torch.randn(10, 3, 2, requires_grad=True)
    ours, plain = (
        torch.autograd.grad(p.log_prob(z).sum(), [z, *p.parameters()])
        for p in (prior, exact)
    )
    for gradient, expected in zip(ours, plain, strict=True):
        close(gradient, expected)


def test_gradients_of_a_density_with_kinks_are_exact():
    prior = Custom(LearnedLaplace(), 2)
    z = torch.randn(4, 2, 2, requires_grad=True)
    assert torch.autograd.gradcheck(prior.log_prob, z)
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), list(prior.parameters()))
    up, down = (Custom(laplace(0.3 * math.exp(e)), 2) for e in (1e-5, -1e-5))
    plain = (up.log_prob(z) - down.log_prob(z)).sum() / 2e-5
    assert_close(gradient, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("panels", [24, 60])
def test_value_and_gradient_are_finite_where_the_density_is_no_number_elsewhere(panels):
    prior = Custom(
        lambda y: dist.Normal(torch.zeros_like(y), y.exp()).to_event(1),
        2,
        integral=Quadrature(panels),
    )
    for z in (torch.full((2, 3, 2), 1e-3), 30 * torch.randn(2, 3, 2)):
        z.requires_grad_()
        value = prior.log_prob(z)
        value.sum().backward()
        assert value.isfinite().all() and z.grad.isfinite().all()


def mixing(scale: float = 0.3) -> tuple[Mixing, MultivariateNormal]:
    """A conditional that is no product, and the closed form for two views."""
    weight = torch.tensor([[0.0, 0.8], [-0.5, 0.2]])
    map_ = torch.eye(2) + weight.T
    content = torch.ones(2, 2).kron(map_ @ map_.T)
    covariance = content + scale**2 * torch.eye(4)
    return Mixing(weight, scale), MultivariateNormal(torch.zeros(4), covariance)


def test_importance_sampling_is_unbiased():
    def content(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros_like(z[..., 0, :]), 1.0).to_event(1)

    conditional, exact = mixing(0.5)
    prior = Custom(conditional, 2, integral=ImportanceSampling(500, content))
    z = exact.sample((3,))
    many = prior.log_prob(z.view(3, 2, 2).expand(200, -1, -1, -1)).detach()
    ratio = (many - exact.log_prob(z)).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / math.sqrt(200)).all()
    present = torch.tensor([True, False])
    alone = MultivariateNormal(torch.zeros(2), exact.covariance_matrix[:2, :2])
    value = prior.log_prob(z.view(3, 2, 2), present.expand(3, -1))
    assert_close(value, alone.log_prob(z[:, :2]), rtol=0, atol=0.3)


def test_default_proposal_is_nearly_the_posterior_of_a_gaussian():
    prior = Custom(normal(0.3), 4, integral=ImportanceSampling(2_000))
    size = prior.effective_sample_size(Gaussian(4, 0.3)(2).sample((10,)))
    # Where q is 1.2 times as wide as p, E[w]² / E[w²] is √(2·1.2² − 1) / 1.2². Of the
    # samples 5 % are of p(y), and 15 % of the others are wide.
    each = math.sqrt(2 * 1.2**2 - 1) / 1.2**2
    expected = 2_000 * 0.95 * 0.85 * each**4
    assert_close(size, torch.full((10,), expected), rtol=0.15, atol=0)


def test_too_small_an_effective_sample_size_is_refused_where_no_gradient_is_wanted():
    def far_off(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
        return dist.Normal(z.mean(-2) + 3, 0.1).to_event(1)

    integral = ImportanceSampling(100, far_off)
    prior, z = Custom(mixing()[0], 2, integral=integral), torch.randn(3, 2, 2)
    with torch.no_grad(), pytest.raises(ValueError, match="effective sample size"):
        prior.log_prob(z)
    assert prior.effective_sample_size(z).min() < 20
    assert prior.log_prob(z).requires_grad
    with pytest.raises(ValueError, match="at least 20"):
        ImportanceSampling(5)


def test_a_content_whose_draws_underflow_is_refused():
    content = dist.Dirichlet(torch.full((5,), 0.001))
    with pytest.raises(ValueError, match="several below.*concentration of at least"):
        Custom(lambda y: dist.Normal(y, 0.1).to_event(1), 5, y_prior=content)


def test_importance_sampling_is_traced_and_follows_one_seed(monkeypatch):
    monkeypatch.setattr("probssl.priors._proposal.STEPS", 2)  # each is traced alike
    prior = Custom(normal(0.3), 2, integral=ImportanceSampling(100))
    z = torch.randn(3, 2, 2)
    traced = make_fx(lambda z: prior.log_prob(z))(z)
    assert_close(seeded(traced, z), seeded(prior.log_prob, z))


def test_drawing_is_traced():
    prior = Custom(laplace(0.3), 2, integral=Quadrature(levels=1))
    z = torch.randn(4, 3, 2)
    present = torch.tensor([True, False, True]).expand(4, -1)

    def draws(z: Tensor) -> tuple[Tensor, ...]:
        views = prior(3)
        return views.complete(z, present), views.rsample((4,)), views.sample((4,))

    assert_close(seeded(make_fx(draws)(z), z), seeded(draws, z))


def test_importance_sampling_from_the_posterior_has_no_error():
    exact, z = Gaussian(2, 0.3), torch.randn(4, 3, 2)

    def posterior(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
        y = exact.posterior_y(z)
        return dist.Normal(y.mean, y.stddev).to_event(1)

    prior = Custom(normal(0.3), 2, integral=ImportanceSampling(30, posterior))
    assert_close(prior.log_prob(z), exact.log_prob(z))
    assert_close(prior.effective_sample_size(z), torch.full((4,), 30.0))


def test_default_proposal_finds_a_content_that_views_do_not_follow_one_to_one():
    turn = torch.randn(4, 4) / 3

    def turned(y: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(y + y.tanh() @ turn, 0.1).to_event(1)

    prior = Custom(turned, 4)
    z = prior(2).sample((100,))
    assert prior.effective_sample_size(z).median() > 100  # of 512
    plain = Custom(turned, 4, integral=ImportanceSampling(512, around_views))
    assert plain.effective_sample_size(z).median() < 20


def around_views(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
    return dist.Normal(z.mean(-2), 0.1).to_event(1)


def test_gradient_under_the_default_proposal_is_nearly_that_of_the_closed_form():
    conditional, exact = mixing(0.5)
    prior = Custom(conditional, 2, integral=ImportanceSampling(20_000))
    z = torch.randn(3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    (plain,) = torch.autograd.grad(exact.log_prob(z.flatten(1)).sum(), z)
    assert_close(gradient, plain, rtol=0.05, atol=0.05)


def test_gradient_of_importance_sampling_is_that_of_the_estimate():
    def follows(z: Tensor, present: Tensor | None) -> dist.TorchDistribution:
        return dist.Normal(z.mean(-2), 0.4).to_event(1)

    prior = Custom(mixing()[0], 2, integral=ImportanceSampling(50, follows))

    def value(z: Tensor) -> Tensor:
        torch.manual_seed(3)
        return prior.log_prob(z)

    assert torch.autograd.gradcheck(value, torch.randn(2, 2, 2, requires_grad=True))


def test_default_proposal_does_not_depend_on_absent_views():
    prior = Custom(normal(0.3), 2, integral=ImportanceSampling(20_000))
    z, present = torch.randn(3, 2, 2), torch.tensor([True, False]).expand(3, -1)
    value = prior.log_prob(torch.cat([z[:, :1], 1e3 + z[:, 1:]], 1), present)
    assert_close(value, Gaussian(2, 0.3).log_prob(z[:, :1]), rtol=0, atol=0.05)


def test_products_over_dimensions_are_told_from_others():
    scales = torch.tensor([0.1, 0.5, 2.0])
    products = [
        lambda y: dist.Laplace(y, scales).to_event(1),
        lambda y: dist.Normal(torch.where(y > 0, y, 0.1 * y), 1.0).to_event(1),
        lambda y: dist.Normal(torch.zeros_like(y), 1.0).to_event(1),
        LearnedLaplace(),
    ]
    others = [
        Mixing(torch.ones(3, 3)),
        Mixing(torch.zeros(3, 3)),  # depends on all of y once it is trained
        lambda y: dist.Normal(torch.where(y[..., :1] > 0, y, -y), 1.0).to_event(1),
        lambda y: dist.Normal(y * y.square().sum(-1, True), 1.0).to_event(1),
        lambda y: dist.MultivariateNormal(y, torch.eye(3)),
    ]
    rule = ImportanceSampling(20)  # the default is examined at length, elsewhere
    for seed in range(4):
        torch.manual_seed(seed)
        assert all(Custom(each, 3, integral=rule).factorised for each in products)
        # Its log_prob rounds by its shape.
        assert Custom(flow, 4, integral=rule).factorised
        assert not any(Custom(each, 3, integral=rule).factorised for each in others)
    assert isinstance(Custom(products[0], 3).integral, Quadrature)
    assert isinstance(Custom(others[0], 3).integral, ImportanceSampling)
    with pytest.raises(ValueError, match="ImportanceSampling"):
        Custom(others[0], 3, integral=Quadrature()).log_prob(torch.randn(2, 2, 3))
    correlated = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + 0.3)
    assert not Custom(normal(0.3), 2, y_prior=correlated).factorised


class Residual(nn.Module):
    """A mixture of the dimensions that has to be learned: it starts at zero."""

    def __init__(self, code: Any) -> None:
        super().__init__()
        self.code, self.mix = code, nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        numbers = y.to(self.mix.weight.dtype)
        return dist.Normal(numbers + self.mix(self.code(numbers)), 0.3).to_event(1)


CODES = dist.Categorical(torch.ones(2, 3)).to_event(1)


@pytest.mark.parametrize("y_prior", [None, CODES])
@pytest.mark.parametrize("code", [torch.tanh, lambda y: (y > 0).to(y.dtype)])
def test_a_dependence_that_training_brings_is_expected(code, y_prior):
    torch.manual_seed(2)
    prior = Custom(Residual(code), 2, y_prior=y_prior)
    assert not prior.factorised and not prior.conditional.mix.weight.any()
    nn.init.normal_(prior.conditional.mix.weight)
    if y_prior is not None:
        z, states = torch.randn(4, 2, 2), torch.cartesian_prod(*2 * [torch.arange(3)])
        each = prior.conditional(states[:, None, None]).log_prob(z).sum(-1)
        assert_close(prior.log_prob(z), each.logsumexp(0) - math.log(9))


class Gated(nn.Module):
    """Numbers from `low` to `low` + 4; with `mix` they depend on all of y."""

    def __init__(self, low: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(low))
        self.register_buffer("mix", torch.zeros(2, 2))

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        base = dist.Beta(2.0 + (y + (y > 0).to(y.dtype) @ self.mix).exp(), 2.0 + 0 * y)
        move = torch.distributions.AffineTransform(self.low, 4.0)
        return dist.TransformedDistribution(base, [move]).to_event(1)


@pytest.mark.parametrize(
    "change, words",
    [("low", "z lies between 0.0 and 4.0"), ("mix", "independent given y")],
)
def test_what_changed_since_a_prior_was_built_is_refused(change, words):
    prior = Custom(Gated(), 2)
    prior.check()
    getattr(prior.conditional, change).fill_(1.0)
    with pytest.raises(ValueError, match=f"{words}, got another one: .* build"):
        prior.check()


def bits() -> dist.TorchDistribution:
    return dist.Bernoulli(torch.tensor([0.3, 0.6])).to_event(1)


def even() -> dist.TorchDistribution:
    return dist.Bernoulli(torch.tensor(0.5))


@pytest.mark.parametrize(
    "conditional, y_prior",
    [
        (lambda y: dist.Normal(4 * y - 2, 0.4).to_event(1), bits),
        (lambda y: dist.Normal(1.0 * y, torch.ones(2)).to_event(1), lambda: CODES),
        (lambda y: dist.Normal(2.0 * y[..., None], torch.ones(2)).to_event(1), even),
        (lambda y: dist.Normal(y @ torch.ones(2, 2), 0.4).to_event(1), bits),
    ],
)
def test_a_discrete_prior_is_what_it_was_when_it_was_built(conditional, y_prior):
    prior = Custom(conditional, 2, y_prior=y_prior())
    prior.check()
    found = ps.evidence(joint(prior), torch.randn(5, 1, 5), particles=10)
    assert all(map(math.isfinite, found.log_evidence))


class Edged(nn.Module):
    """A p(y) that is infinite at its ends, by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shape", torch.tensor([0.5]))

    def forward(self) -> dist.TorchDistribution:
        return dist.Beta(self.shape, self.shape).to_event(1)


def test_a_content_that_a_buffer_makes_sparse_is_integrated_as_such():
    assert Custom(normal(0.3), 1, y_prior=Edged()).sparse


def joint(prior: ps.priors.Prior, **options: object) -> ps.Joint:
    return ps.Joint(
        prior,
        ps.likelihoods.Gaussian(0.4),
        ps.nn.MLPEncoder((5,), 2, hidden=(8,)),
        ps.nn.MLPDecoder(2, (5,), hidden=(8,)),
        **options,
    )


def values(objectives: list[nn.Module], batch: Batch) -> list[Tensor]:
    """The terms of objectives with the same weights and the same noise."""
    state, found = objectives[0].joint.state_dict(), []
    for objective in objectives:
        objective.joint.load_state_dict(state, strict=False)
        torch.manual_seed(5)
        found.append(torch.stack([torch.as_tensor(t) for t in objective(batch)]))
    return found


@pytest.mark.parametrize("make", [float, ps.learned, lambda s: dist.LogNormal(s, 0.5)])
def test_simvae_with_a_gaussian_conditional_is_simvae(make):
    scale = make(0.3)
    priors = Custom(LearnedNormal(scale), 2), Gaussian(2, scale)
    objectives = [ps.limits.SimVAE(joint(p), ps.bounds.ELBO(3)) for p in priors]
    for objective, prior in zip(objectives, priors, strict=True):
        for hyper in prior.random():
            with torch.no_grad():
                hyper.loc.fill_(-1.2), hyper.log_scale.fill_(-1.0)
        objective.joint.population = torch.tensor(100.0)
    close(*values(objectives, Batch(torch.randn(6, 2, 5))))


def test_coupled_guide_is_refused():
    objective = ps.limits.SimVAE(
        joint(Custom(laplace(0.3), 2), guide=ps.guides.Coupled)
    )
    with pytest.raises(ValueError, match="DiagonalGaussian"):
        objective(Batch(torch.randn(6, 2, 5)))


def test_embedding_takes_the_conditional_as_its_kernel():
    z = torch.randn(7, 2, 3)
    custom, exact = (
        ps.limits.Embedding(
            nn.Identity(), prior, ps.entropies.KernelDensity(), plug_in=True
        )
        for prior in (Custom(normal(0.3), 3), Gaussian(3, 0.3))
    )
    assert_close(custom(Batch(z)), exact(Batch(z)))
    # No integral over y is needed, so the conditional may be anything.
    free = Custom(Mixing(torch.ones(3, 3)), 3)
    objective = ps.limits.Embedding(
        nn.Identity(), free, ps.entropies.KernelDensity(), plug_in=True
    )
    sum(objective(Batch(z))).backward()
    assert free.conditional.weight.grad.abs().sum() > 0


def test_p_of_y_follows_the_prior_to_another_precision():
    content = dist.TransformedDistribution(
        dist.Normal(torch.zeros(2).float(), 1.0),
        [dist.transforms.AffineTransform(torch.ones(2).float(), 2.0)],
    ).to_event(1)
    prior = Custom(normal(0.3), 2, y_prior=content)
    assert prior.double().content().base_dist.sample().dtype == torch.float64
    assert prior(2).sample().dtype == torch.float64
    twin = copy.deepcopy(prior).float()
    assert twin(2).sample().dtype == torch.float32
    assert prior(2).sample().dtype == torch.float64
    z = torch.randn(3, 2, 2)
    close(prior.log_prob(z), Gaussian(2, 0.3, 2.0).log_prob(z - 1))


def test_building_a_prior_draws_no_random_numbers():
    state = torch.random.get_rng_state()
    Custom(LearnedLaplace(), 3)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("conditional", ["positive", "sphere", "real"])
def test_outputs_of_an_encoder_are_brought_to_the_support(conditional):
    families = {
        "positive": lambda y: dist.LogNormal(y, 0.3).to_event(1),
        "sphere": lambda y: ps.distributions.VonMisesFisher(
            torch.nn.functional.normalize(y, dim=-1), torch.tensor(5.0)
        ).expand(y.shape[:-1]),
        "real": laplace(0.3),
    }
    prior, z = Custom(families[conditional], 3), torch.randn(4, 2, 3)
    assert prior(2).support.check(prior.on_support(z)).all()
    assert torch.equal(prior.on_support(z), z) == (conditional == "real")


def test_an_encoder_has_one_output_less_than_a_simplex_has_dimensions():
    views = lambda y: dist.Dirichlet(20 * y + 0.1)  # noqa: E731
    prior = Custom(views, 3, y_prior=dist.Dirichlet(torch.ones(3)))
    assert prior(2).support.check(prior.on_support(torch.randn(4, 2, 2))).all()
    entropy = ps.entropies.KernelDensity()
    batch = ps.Batch(torch.randn(16, 2, 5))
    build = lambda out: ps.limits.Embedding(  # noqa: E731
        torch.nn.Linear(5, out), prior, entropy, plug_in=True
    )
    with pytest.raises(ValueError, match="on a simplex, got 3; give the network 2 out"):
        build(3)(batch)
    assert torch.isfinite(sum(build(2)(batch)))


def mixture(loc, scale, weight):
    """A mixture of normals with event shape (1,), as a stranger writes it."""
    loc, scale = (torch.tensor(x).unsqueeze(-1) for x in (loc, scale))
    weights = dist.Categorical(torch.tensor(weight))
    return dist.MixtureSameFamily(weights, dist.Normal(loc, scale).to_event(1))


MIXTURE = ([-2.0, 0.3, 4.0], [0.1, 0.7, 1.5], [0.3, 0.5, 0.2])
SCALAR = {  # p(y) of one number, and its density by SciPy
    "mixture": (
        lambda: mixture(*MIXTURE),
        lambda y: sum(
            w * stats.norm.pdf(y, m, s) for m, s, w in zip(*MIXTURE, strict=True)
        ),
    ),
    "narrow and far": (
        lambda: mixture([-300.0, 3.0], [2e-3, 0.5], [0.5, 0.5]),
        lambda y: (stats.norm.pdf(y, -300, 2e-3) + stats.norm.pdf(y, 3, 0.5)) / 2,
    ),
    "normal": (
        lambda: dist.MultivariateNormal(torch.ones(1), 4 * torch.eye(1)),
        lambda y: stats.norm.pdf(y, 1, 2),
    ),
    "log-normal": (
        lambda: dist.TransformedDistribution(
            dist.Normal(torch.zeros(1), 1.0).to_event(1),
            [torch.distributions.ExpTransform()],
        ),
        lambda y: stats.lognorm.pdf(y, 1.0),
    ),
    "gamma": (
        lambda: dist.Gamma(2.0, 1.0).expand([1]).to_event(1),
        lambda y: stats.gamma.pdf(y, 2.0),
    ),
    "Student-t": (
        lambda: dist.StudentT(3.0, 1.0, 0.5).expand([1]).to_event(1),
        lambda y: stats.t.pdf(y, 3.0, 1.0, 0.5),
    ),
}


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("z", [[0.2, 0.5], [3.9, 3.1, 3.4], [1.5]])
def test_one_number_is_integrated_by_quadrature_whatever_its_class(name, z):
    content, density = SCALAR[name][0](), SCALAR[name][1]
    covariance = 0.09 * torch.eye(1)
    for given in (normal(0.3), lambda y: dist.MultivariateNormal(y, covariance)):
        prior = Custom(given, 1, y_prior=content)
        assert isinstance(prior.integral, Quadrature)

        def joint(y):
            return density(y) * math.prod(stats.norm.pdf(v, y, 0.3) for v in z)

        ends = [-9.0, -2.5, -2.0, -1.5, 0.0, *z, 2.0, 5.0, 9.0]
        low = 0.0 if name in ("log-normal", "gamma") else ends[0]
        ends = sorted({end for end in ends if end >= low})
        total = sum(
            quad(joint, a, b, epsabs=0, epsrel=1e-11, limit=200)[0]
            for a, b in zip(ends, ends[1:], strict=False)
        )
        views = torch.tensor(z).view(1, -1, 1)
        close(prior.log_prob(views), torch.tensor([math.log(total)]))
        assert prior.quadrature_error(views).item() < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [0.1, 0.3])
def test_a_density_that_is_infinite_at_zero_has_a_finite_integral(concentration, dtype):
    content = dist.Gamma(torch.tensor(concentration, dtype=dtype), 1.0)
    prior = Custom(normal(0.3), 2, y_prior=content.expand([2]).to_event(1)).to(dtype)
    assert isinstance(prior.integral, Quadrature)
    z = torch.tensor([0.02, 0.5, 1.0], dtype=dtype).view(3, 1, 1).expand(3, 2, 2)
    found = prior.log_prob(z) / 2  # two equal dimensions
    y = seeded(dist.Gamma(concentration, 1.0).sample, (200_000,))
    pairs = dist.Normal(y.double().unsqueeze(-1), 0.3).log_prob(z[:, 0, 0].double())
    weight = (2 * pairs).exp()
    expected, error = weight.mean(0), weight.std(0) / len(y) ** 0.5
    assert bool(((found.double().exp() - expected).abs() < 5 * error).all())


class Parts(dist.TorchDistribution):
    """Two normals, one narrow and far, that do not say that they are two."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.Normal(torch.tensor([-300.0, 3.0]), torch.tensor([2e-3, 0.5])),
    )

    def __init__(self, batch_shape=()) -> None:
        super().__init__(torch.Size(batch_shape), torch.Size([1]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Parts(batch_shape)

    def sample(self, sample_shape=()):
        return self.mixture.sample((*sample_shape, *self.batch_shape, 1))

    def log_prob(self, value):
        return self.mixture.log_prob(value).sum(-1)


def test_a_part_of_p_of_y_that_quadrature_misses_leaves_importance_sampling():
    prior = Custom(normal(0.3), 1, y_prior=Parts())
    assert isinstance(prior.integral, ImportanceSampling)


def test_importance_sampling_takes_one_z_without_axes_in_front():
    weights = dist.Categorical(torch.tensor([0.3, 0.7]))
    parts = dist.Normal(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.6).to_event(1)
    content = dist.MixtureSameFamily(weights, parts)
    prior = Custom(lambda y: dist.Laplace(y, 0.5).to_event(1), 2, y_prior=content)
    one = prior(2).log_prob(torch.zeros(2, 2))
    many = prior(2).log_prob(torch.zeros(4, 2, 2))
    assert one.shape == () and (one - many.mean()).abs() < 0.5
