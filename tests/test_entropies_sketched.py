"""Sketched divergences from N(0, I): zeros, second orders, collapse, pooled views."""

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers.checks import assert_mean, refusals
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import EppsPulley, Sketched, SlicedWasserstein
from probssl.limits import Embedding
from probssl.priors import ContentStyle, Custom, Gaussian, Spherical
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
UNIT = 0.5 * math.log(2 * math.pi * math.e)
STATISTICS = pytest.mark.parametrize("kind", [EppsPulley, SlicedWasserstein])
LINE = torch.ones(1, 1, dtype=torch.float64)


def quantiles(law: object, n: int = 4000) -> Tensor:
    """Equally likely points of a law with mean 0 and variance 1, of shape (n, 1)."""
    points = torch.tensor(law.ppf((torch.arange(n) + 0.5) / n)).unsqueeze(-1)
    return (points - points.mean()) / points.std(correction=0)


NORMAL = scipy.stats.norm()
OTHERS = {
    "uniform": scipy.stats.uniform(),
    "Laplace": scipy.stats.laplace(),
    "Student-t": scipy.stats.t(5),
    "exponential": scipy.stats.expon(),
    "near normal": scipy.stats.gamma(30),
}


def divergence(kind: type, z: Tensor, directions: Tensor = LINE) -> Tensor:
    """Of one sample, (n, dim)."""
    return kind()(z.unsqueeze(0), directions).squeeze(0)


@STATISTICS
def test_a_slice_has_no_divergence_iff_it_is_standard_normal(kind):
    least = divergence(kind, quantiles(NORMAL))
    assert least < 1e-4
    for law in OTHERS.values():
        assert divergence(kind, quantiles(law)) > 10 * least + 1e-4


@STATISTICS
def test_normal_axes_are_not_enough(kind):
    """(x, ±x) has normal, uncorrelated axes; its diagonals are half zero."""
    x = quantiles(NORMAL)
    z = torch.cat([torch.cat([x, x], 1), torch.cat([x, -x], 1)])
    assert divergence(kind, z, torch.eye(2)) < 1e-4
    diagonals = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    assert divergence(kind, z, diagonals) > 0.1


def test_the_value_is_that_of_the_integral():
    """Many knots up to a large one: the L2 distance of characteristic functions."""
    u, t = torch.tensor([[-1.5], [0.2], [2.0]]), torch.linspace(-9, 9, 4001)
    weight = (-t.square() / 2).exp()
    apart = (torch.exp(1j * t * u).mean(0) - weight).abs().square()
    found = EppsPulley(knots=400, largest=9.0)
    exact = torch.trapezoid(weight * apart, t) / found.curvature
    assert_close(found(u[None], LINE).squeeze(), exact)
    # c = ∫ t⁴ exp(−3 t²/2) dt = √(2π/3)/3; as many knots as are published are enough.
    assert abs(found.curvature - math.sqrt(2 * math.pi / 3) / 3) < 1e-9
    assert abs(EppsPulley().curvature - found.curvature) < 5e-4


@STATISTICS
@pytest.mark.parametrize(("mean", "variance"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_second_order_in_one_dimension(kind, mean, variance):
    """m² + e²/4, where KL has m²/2 + e²/4: what is left falls with the square."""
    x, left = quantiles(NORMAL, 20_001), []
    for size in (0.2, 0.1):
        found = []
        for sign in (1, -1):  # their mean has no third order
            z = size * mean + math.sqrt(1 + sign * size * variance) * x
            found.append(divergence(kind, z) - divergence(kind, x))
        left.append(sum(found) / 2 / size**2 - mean - variance / 4)
    # VISReg's m² and (1 - s)², and the bias of its quantiles, are exact in m.
    assert left[1].abs() < 0.01
    assert abs(left[1]) < 1e-3 or 3.5 < left[0] / left[1] < 4.5


def test_constants_of_the_published_statistic():
    """SIGReg / n ≈ 0.4824 m² + 0.1205 e²."""
    x, c = quantiles(NORMAL, 20_001), EppsPulley().curvature
    m, e = 0.02, 0.02
    shift, wide = (
        divergence(EppsPulley, x + m),
        divergence(EppsPulley, x * (1 + e) ** 0.5),
    )
    assert abs(c * shift / m**2 - 0.4824) < 5e-4
    assert abs(c * wide / e**2 - 0.1205) < 2.5e-3  # third order
    kl = m**2 / 2, (e - math.log1p(e)) / 2
    assert_close(shift / kl[0], torch.tensor(2.0), rtol=2e-3, atol=0)
    assert_close(wide / kl[1], torch.tensor(1.0), rtol=2e-2, atol=0)


@pytest.mark.parametrize("dim", [1, 3, 16])
def test_averages_over_directions(dim):
    """E (a·m)² = |m|²/d and E (a'Ea)² = (2 |E|² + (tr E)²) / (d (d + 2))."""
    m, e = torch.randn(dim), torch.randn(dim, dim)
    e = (e + e.T) / 2
    a = Sketched(EppsPulley(), 40_000).directions(torch.zeros(2, 2, dim))
    assert_close(a.norm(dim=-1), torch.ones(40_000))
    assert_mean((a @ m).square(), m.square().sum() / dim)
    square = 2 * e.square().sum() + e.trace() ** 2
    assert_mean((a @ e * a).sum(-1).square(), square / (dim * (dim + 2)))


def test_a_common_scale_counts_as_in_the_kl_divergence_and_correlations_less():
    """Slices of N(0, I + E) have variance 1 + a'Ea; by characteristic functions."""
    dim, size = 6, 1e-2
    a = Sketched(EppsPulley(), 4_000).directions(torch.zeros(2, 2, dim))
    correlations = torch.zeros(dim, dim)
    correlations[0, 1] = correlations[1, 0] = 1.0
    t = torch.linspace(-6, 6, 121)
    normal = (-t.square() / 2).exp()
    c = math.sqrt(2 * math.pi / 3) / 3
    for e, times in ((torch.eye(dim), 1.0), (correlations, 2 / (dim + 2))):
        e = size * e
        each = 1 + (a @ e * a).sum(-1, keepdim=True)
        apart = ((-each * t.square() / 2).exp() - normal).square() * normal
        slices = dim / c * torch.trapezoid(apart, t)
        kl = (e.trace() - torch.linalg.slogdet(torch.eye(dim) + e).logabsdet) / 2
        mean, bar = slices.mean(), 5 * slices.std() / len(slices) ** 0.5
        assert abs(mean - times * kl) < bar + 0.02 * kl  # third order


def test_a_correlation_widens_a_slice_of_standardised_dimensions():
    """VISReg's shape: d (1 − √(1 + ρ))² on the diagonal, ρ²/2 for two dimensions."""
    x = torch.cartesian_prod(*[quantiles(NORMAL, 300).squeeze()] * 2)
    diagonal = torch.ones(1, 2) / math.sqrt(2)
    for rho in (0.4, 0.2):
        z = torch.stack([x[:, 0], rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]], 1)
        exact = 2 * (1 - math.sqrt(1 + rho)) ** 2
        found = divergence(SlicedWasserstein, z, diagonal)
        assert_close(found, torch.tensor(exact), rtol=0.02, atol=0)


@pytest.mark.parametrize("n", [20, 80])
def test_a_finite_sample_has_a_divergence_of_order_d_over_n(n):
    dim = 3
    estimate = Sketched(EppsPulley(), 4)
    found = [dim * UNIT - estimate(torch.randn(n, 2, dim)) for _ in range(150)]
    t = torch.linspace(0, 3, 17)
    weight = torch.full((17,), 2 * 3 / 16) * (-t.square() / 2).exp()
    weight[-1] /= 2
    noise = (weight * (1 - (-t.square()).exp())).sum() / EppsPulley().curvature
    assert_close(noise, torch.tensor(2.2), rtol=0.02, atol=0)
    assert_mean(found, noise * dim / n)


def test_pooled_views_have_at_most_the_mean_divergence():
    """By convexity, for any sample; and zero where neither view is normal."""
    for _ in range(5):
        z = torch.randn(9, 3, 2) * torch.rand(3, 2) + torch.randn(3, 2)
        options = {"statistic": EppsPulley(), "slices": 5}
        pooled, each = (Sketched(**options, pooled=p).eval()(z) for p in (True, False))
        assert pooled >= each
    half = quantiles(NORMAL).abs()
    views = torch.stack([half, -half], 1)
    for kind in (EppsPulley, SlicedWasserstein):
        pooled, each = (
            UNIT - Sketched(kind(), 1, pooled=p)(views) for p in (True, False)
        )
        assert pooled < 1e-4 and each > 0.5


def pull(statistic: nn.Module, x: Tensor, size: float, a: Tensor = LINE) -> Tensor:
    """The derivative of the divergence of size · x in the size."""
    scale = torch.tensor(size, requires_grad=True)
    value = statistic((scale * x).unsqueeze(0), a).squeeze()
    return torch.autograd.grad(value, scale)[0]


def test_at_collapse_the_gradient_vanishes_for_one_statistic_and_not_for_the_other():
    x = quantiles(NORMAL, 200)
    near, far = (pull(EppsPulley(), x, size) for size in (1e-4, 1e-3))
    assert_close(far / near, torch.tensor(10.0), rtol=1e-3, atol=0)  # first order
    # −2 of (1 − s)², and of the shape what an epsilon in the denominator leaves.
    found = pull(SlicedWasserstein(epsilon=10.0), x, 1e-5)
    rest = pull(SlicedWasserstein(epsilon=1e4), x, 1e-5)
    assert found.isfinite() and found < rest < -2
    assert_close(rest, torch.tensor(-2.0), rtol=1e-3, atol=0)
    z = torch.zeros(9, 2, 3, requires_grad=True)
    for kind in (EppsPulley, SlicedWasserstein):
        (grad,) = torch.autograd.grad(Sketched(kind(), 4)(z), z)
        assert grad.isfinite().all()


def test_a_stop_gradient_leaves_the_shape_a_pull_on_the_scale():
    """2 d (ρ − κ) / (s + ε), ρ = s / (s + ε), κ = E u q: inwards where ρ > κ.

    In small samples it exceeds the 2 of (1 − s)², but for a z that has collapsed to ε.
    """
    x = torch.randn(128, 8)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    a = torch.nn.functional.normalize(torch.randn(64, 8), dim=-1)
    place = torch.arange(1, 129).double() / 129
    q, u = torch.special.ndtri(place), (x @ a.T).sort(0).values
    kappa, second = (u * q.unsqueeze(1)).mean(), u.square().mean()
    for s in (1e-4, 1e-2, 0.3):
        rho = s / (s + 1e-4)
        shape = 2 * 8 * (rho * second - kappa) / (s + 1e-4)
        found = pull(SlicedWasserstein(), x, s, a)
        assert_close(found, shape - 2 * 8 * (1 - s))
        assert (found > 0) == (s == 1e-2)
    large = torch.randn(512, 64), torch.nn.functional.normalize(torch.randn(64, 64))
    small = large[0][:128], large[1]
    for s in (0.004, 0.01, 0.02):
        assert pull(SlicedWasserstein(), small[0], s, small[1]) > 0
        assert pull(SlicedWasserstein(), large[0], s, large[1]) < 0
    # A standardised sketch has none: its derivative is that of d log s.
    estimate = Sketched(SlicedWasserstein(), 64, standardise=True).eval()
    scale = torch.tensor(0.01, requires_grad=True)
    (grad,) = torch.autograd.grad(estimate((scale * x).unsqueeze(1)), scale)
    assert_close(grad, torch.tensor(800.0))


def plain(kind: type, z: Tensor, a: Tensor) -> Tensor:
    """Entry by entry, of one view."""
    total = torch.zeros(())
    if kind is SlicedWasserstein:
        sd = z.var(0, correction=0).sqrt()
        q = torch.tensor(NORMAL.ppf([(j + 1) / (len(z) + 1) for j in range(len(z))]))
        for direction in a:
            u = ((z - z.mean(0)) / (sd.detach() + 1e-4)) @ direction
            total = total + (u.sort().values - q).square().mean() / len(a)
        moments = z.mean(0).square().sum() + (1 - sd).square().sum()
        return moments + z.shape[1] * total
    step = 3 / 16
    for direction in a:
        for k in range(17):
            t = k * step
            real = (t * (z @ direction)).cos().mean() - math.exp(-(t**2) / 2)
            imaginary = (t * (z @ direction)).sin().mean()
            weight = step * (1 if k in (0, 16) else 2) * math.exp(-(t**2) / 2)
            total = total + weight * (real**2 + imaginary**2) / len(a)
    return z.shape[1] * total / EppsPulley().curvature


@STATISTICS
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("standardise", [False, True])
def test_the_estimate_equals_plain_sums(kind, pooled, standardise):
    z = (0.3 + 1.4 * torch.randn(6, 3, 4)).requires_grad_()
    estimate = Sketched(kind(), 5, pooled=pooled, standardise=standardise)
    torch.manual_seed(7)
    ours = estimate(z)
    torch.manual_seed(7)
    a = torch.randn(5, 4, dtype=torch.float32).double()
    a = a / a.norm(dim=1, keepdim=True)
    samples = [z.flatten(0, 1)] if pooled else z.unbind(1)
    expected = torch.zeros(())
    for x in samples:
        sd = x.std(0, correction=0) if standardise else torch.ones(4)
        x = (x - x.mean(0)) / sd if standardise else x
        expected = expected + 4 * UNIT + sd.log().sum() - plain(kind, x, a)
    expected = expected / len(samples)
    grads = [torch.autograd.grad(v, z, retain_graph=True)[0] for v in (ours, expected)]
    assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_slices_are_fresh_in_training_and_fixed_in_evaluation():
    z, estimate = torch.randn(9, 2, 3), Sketched(EppsPulley(), 4)
    assert estimate(z) != estimate(z)
    estimate.eval()
    state = torch.get_rng_state()
    assert torch.equal(estimate.directions(z), estimate.directions(z))
    assert torch.equal(torch.get_rng_state(), state)
    single = estimate.directions(z.float())
    assert_close(single.double(), estimate.directions(z), rtol=0, atol=1e-6)


# A scale that is free


def shrunk(size: float, **options: bool) -> Tensor:
    """The objective where z and the scale of the prior are so many times smaller."""
    torch.manual_seed(2)
    z = torch.randn(200, 1, 3) + 0.3 * torch.randn(200, 2, 3)
    entropy = Sketched(EppsPulley(), 50, **options).eval()
    objective = Embedding(nn.Identity(), Gaussian(3, 0.3 * size), entropy)
    return torch.as_tensor(sum(objective(Batch(size * z))))


def test_with_its_scale_z_would_shrink_without_end_unless_the_estimate_follows():
    """(V − 1) d log 10 nats for each factor of ten, against a bounded divergence."""
    gain = shrunk(1e-4) - shrunk(1e-3)
    assert_close(gain, torch.tensor(3 * math.log(10)), rtol=1e-3, atol=0)
    gain = shrunk(1e-4, standardise=True) - shrunk(1e-3, standardise=True)
    assert_close(gain, torch.tensor(-3 * math.log(10)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [ps.learned(0.3), dist.Beta(2.0, 5.0)])
def test_a_free_scale_needs_a_standardised_sketch(scale):
    z, prior = torch.randn(9, 2, 3), ContentStyle(3, 0, scale)
    with pytest.raises(ValueError, match="fixed hyper-parameters .* standardise=True"):
        Sketched(EppsPulley())(z, prior)
    assert Sketched(EppsPulley(), 8, standardise=True)(z, prior).isfinite()


def test_a_second_moment_in_the_entropy_would_outgrow_the_divergence():
    """E PMI − Σ D̂ as such grows with the square of a stretch of views that agree."""
    z, prior = torch.randn(50, 1, 3).repeat(1, 2, 1), ContentStyle(3, 0, 0.5)

    def second(z: Tensor, prior: object) -> Tensor:
        estimate = Sketched(EppsPulley(), 9).eval()(z)
        return estimate + (z.square().sum(-1).mean() - 3) / 2

    found = [
        sum(Embedding(nn.Identity(), prior, second)(Batch(size * z)))
        for size in (1e2, 1e3)
    ]
    assert_close(found[1] / found[0], torch.tensor(100.0), rtol=1e-2, atol=0)


Z = torch.zeros(9, 2, 3)
test_bad_arguments_are_refused = refusals(
    (lambda: EppsPulley(1), ValueError, "knots as a whole number of at least 2"),
    (lambda: EppsPulley(largest=0.0), ValueError, "largest as a positive"),
    (lambda: SlicedWasserstein(0.0), ValueError, "epsilon as a positive"),
    (lambda: Sketched("normal"), TypeError, "statistic as a Statistic"),
    (lambda: Sketched(EppsPulley(), 0), ValueError, "slices as a whole number of at l"),
    (lambda: Sketched(EppsPulley())(Z[:1]), ValueError, "number of items .* least 2"),
    (lambda: Sketched(EppsPulley())(Z, Spherical(3)), ValueError, "on a sphere"),
    (lambda: Sketched(EppsPulley()).joint(Z, None), TypeError, "joint .* got Sketched"),
)


class Deep(nn.Module):
    """p(z|y) with a learned scale inside a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([ps.hyper.Positive(ps.learned(0.3), "width")])

    def forward(self, y: Tensor) -> dist.Independent:
        return dist.Normal(y, self.inner[0]()).to_event(1)


def test_a_free_scale_is_found_however_deep_it_lies():
    z, prior = torch.randn(9, 2, 3), ps.priors.Custom(Deep(), 3)
    with pytest.raises(ValueError, match="fixed hyper-parameters .*width=Learned"):
        Sketched(EppsPulley(), 8)(z, prior)


class Narrow(nn.Module):
    """p(z given y) of a learned spread, which is no hyper-parameter of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, y):
        return dist.Normal(y, self.log_scale.exp()).to_event(1)


def test_a_parameter_of_ones_own_prior_is_named_unless_the_sketch_follows_it():
    prior, z = Custom(Narrow(), 3), torch.randn(20, 2, 3)
    with pytest.warns(UserWarning, match="of its own, conditional.log_scale, beside"):
        Sketched(EppsPulley(), 5)(z, prior)
    Sketched(EppsPulley(), 5, standardise=True)(z, prior)
    prior.requires_grad_(False)
    Sketched(EppsPulley(), 5)(z, prior)
