"""What `Custom` finds out about p(y) and p(z|y) when it is built: right, or refused."""

import itertools
import math
from functools import cache

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers.checks import refusals
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import probssl as ps
from probssl.priors import Custom, Enumeration, ImportanceSampling, Quadrature

pytestmark = pytest.mark.usefixtures("float64")
MEANS = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [2.0, -1.0]])
NUMBERS = torch.tensor([-1.0, 0.0, 2.0])


def normal(y: Tensor) -> dist.TorchDistribution:
    return dist.Normal(y, 0.3).to_event(1)


def two_peaks(y: Tensor) -> dist.TorchDistribution:
    """A mixture whose weights lack the axes of y."""
    parts = dist.Normal(torch.stack([y, -y], -2), 0.3).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)


def around(f, dim: int = 3):
    return lambda: Custom(lambda y: normal(f(y)), dim)


def bits(*p: float) -> dist.TorchDistribution:
    return dist.Bernoulli(torch.tensor(p)).to_event(1)


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.scale = ps.hyper.Positive(dist.LogNormal(0.0, 1.0), name)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(y, self.scale()).to_event(1)


class BatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return normal(self.norm(y.reshape(-1, 2)).view_as(y))


def gate(y: Tensor) -> dist.TorchDistribution:
    """The first number of y widens all numbers of z, far out."""
    return dist.Normal(y, torch.where(y[..., :1] > 2, 2.0, 0.1).expand_as(y)).to_event(
        1
    )


def two_gates(y: Tensor) -> dist.TorchDistribution:
    wide = (y[..., :1] > 1.5) & (y[..., 1:2] < -1.5)
    return dist.Normal(y, torch.where(wide, 2.0, 0.1).expand_as(y)).to_event(1)


def bit_gate(y: Tensor) -> dist.TorchDistribution:
    scale = torch.where(y[..., :1] > 0.5, 3.0, 0.3).expand_as(y)
    return dist.Normal(torch.zeros_like(y), scale).to_event(1)


def y_prior(content: dist.TorchDistribution, given=normal, dim: int = 2, **options):
    return lambda: Custom(given, dim, y_prior=content, **options)


def classes(**options):
    weights = dist.Categorical(torch.ones(3))
    return y_prior(weights, lambda y: normal(MEANS[y]), **options)


test_what_does_not_fit_together_is_refused = refusals(
    (around(F.normalize), ValueError, "alone and among others.*count axes from the l"),
    (around(lambda y: y.softmax(1)), ValueError, "alone and among others"),
    (around(lambda y: y - y.mean(1, keepdim=True)), ValueError, "alone and amon"),
    (around(lambda y: y.cumsum(1)), ValueError, "alone and among oth"),
    (around(lambda y: y.softmax(0)), ValueError, "alone and among ot"),
    (around(lambda y: y / y.norm(dim=1, keepdim=True)), ValueError, "alone and a"),
    (around(lambda y: y.softmax(2)), ValueError, "Dimension out of range"),
    (around(lambda y: y[:, :1] * torch.ones(3)), ValueError, r"batch shape \(3, 2\)"),
    (around(lambda y: y[:, 1]), ValueError, r"with batch shape \(3, 2\)"),
    (around(lambda y: y @ torch.ones(2, 3)), ValueError, r"take y of shape \(3, 2, 3"),
    (lambda: Custom(two_peaks, 1), ValueError, r"MixtureSameFamily the axes \(3, 2\)"),
    (around(nn.Linear(4, 3)), ValueError, r"got RuntimeError: mat1 and mat2"),
    (lambda: Custom(BatchNorm(), 2), ValueError, "LayerNorm, not batch"),
    (
        y_prior(dist.Delta(torch.zeros(2), event_dim=1)),
        ValueError,
        "in front of an event, got Delta",
    ),
    (
        y_prior(dist.Delta(torch.zeros(2)).to_event(1)),
        ValueError,
        "got Delta; for a fixed y",
    ),
    (
        y_prior(dist.ImproperUniform(dist.constraints.real_vector, (), (2,))),
        ValueError,
        "got ImproperUniform",
    ),
    (y_prior(dist.VonMises3D(torch.ones(3))), ValueError, "got VonMises3D"),
    (y_prior(dist.LKJCholesky(2, 1.0)), ValueError, "vector of its free numbers"),
    (
        y_prior(
            dist.Categorical(torch.tensor([0.5, 0.5, 0.0])), lambda y: normal(MEANS[y])
        ),
        ValueError,
        r"Categorical y_prior of positive probabilities, got 0.*logits=p.log",
    ),
    (
        y_prior(dist.Bernoulli(torch.tensor([1.0, 0.5])).to_event(1)),
        ValueError,
        "Bernoulli y_prior of positive",
    ),
    (classes(integral=ImportanceSampling()), ValueError, "a discrete p.y., a sum, got"),
    (classes(integral=Quadrature()), ValueError, "a sum, got Quadrature"),
    (
        lambda: Custom(normal, 2, integral=Enumeration()),
        ValueError,
        "a density p.y., got Enumeration",
    ),
    (
        y_prior(bits(0.05, 0.5, 0.5), bit_gate, 3, integral=Enumeration(True)),
        ValueError,
        "products over the dimensions for Enumeration",
    ),
    (lambda: Custom(Named("self"), 2), ValueError, "got 'self', taken or twice"),
    (lambda: Custom(Named("k"), 2), ValueError, "got 'k', which another"),
    (lambda: Custom(Named("ess"), 2), ValueError, "got 'ess', which another"),
    (lambda: Custom(normal, 2)("2"), TypeError, "views as a whole number"),
    (lambda: Custom(normal, 2)(-1), ValueError, "views as a whole number of at least"),
    (lambda: Custom(normal, 2).log_prob(torch.zeros(2)), ValueError, "batch, view, d"),
    (
        lambda: Custom(normal, 2).log_prob(torch.zeros(3, 2, 2), torch.ones(3, 2)),
        ValueError,
        r"mask of shape \(3, 2\), bool, got torch.float64",
    ),
    (
        lambda: Custom(normal, 2).log_prob(torch.zeros(3, 2, 2), torch.ones(3).bool()),
        ValueError,
        r"got torch.bool of shape \(3,\)",
    ),
    (
        lambda: Custom(normal, 2).log_kernel(torch.zeros(3, 2), torch.zeros(3, 1)),
        ValueError,
        r"expected b with shape \(\*batch, point, 2\), got \(3, 1\)",
    ),
    (
        lambda: classes()().log_kernel(MEANS, MEANS, plug_in=True),
        TypeError,
        "KernelDensity and other entropies over pairs",
    ),
)


def test_a_kernel_with_no_points_is_empty():
    prior = Custom(normal, 2)
    assert prior.log_kernel(torch.zeros(3, 2), torch.zeros(0, 2)).shape == (3, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given", [gate, two_gates])
def test_a_gate_between_dimensions_is_no_product(given, seed):
    torch.manual_seed(seed)
    assert not Custom(given, 2).factorised
    content = dist.Gamma(2.0, 1.0).expand([2]).to_event(1)
    assert not Custom(gate, 2, y_prior=content).factorised


def test_behind_a_gate_the_integral_is_that_of_a_grid():
    z = torch.tensor([[2.5, 1.0], [2.2, -1.0]]).unsqueeze(1)
    y = torch.arange(-7.995, 8.0, 0.01)  # the jump is between two
    grid = torch.stack(torch.meshgrid(y, y, indexing="ij"), -1).flatten(0, 1)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid).sum(-1)
    log_joint = log_joint + gate(grid).log_prob(z)
    expected = log_joint.logsumexp(1) + 2 * math.log(0.01)
    prior = Custom(gate, 2, integral=ImportanceSampling(4000))
    torch.manual_seed(0)
    found = prior.log_prob(z.expand(50, -1, -1, -1)).exp()
    error = found.std(0) / math.sqrt(50)
    slack = 1e-3 * expected.exp()  # of the grid
    assert bool(((found.mean(0) - expected.exp()).abs() < 5 * error + slack).all())


@pytest.mark.parametrize("seed", range(4))
def test_bits_of_which_one_sets_the_scale_are_summed_together(seed):
    torch.manual_seed(seed)
    p, z = (0.05, 0.5, 0.5), 2 * torch.randn(4, 2, 3)
    prior = Custom(bit_gate, 3, y_prior=bits(*p))
    expected = []
    for item in z.numpy():
        terms = []
        for y in itertools.product((0, 1), repeat=3):
            weight = sum(math.log(q if b else 1 - q) for q, b in zip(p, y, strict=True))
            log_z = stats.norm.logpdf(item, 0, 3.0 if y[0] else 0.3)
            terms.append(weight + log_z.sum())
        expected.append(logsumexp(terms))
    assert_close(prior.log_prob(z), torch.tensor(np.array(expected)))
    assert not prior.factorised


@pytest.mark.parametrize(
    "content, given, values, weights",
    [
        (bits(*[0.3] * 20), normal, [0, 1], [0.7, 0.3]),
        (
            dist.Binomial(4, torch.full((20,), 0.3)).to_event(1),
            normal,
            range(5),
            stats.binom.pmf(range(5), 4, 0.3),
        ),
        (
            dist.Categorical(torch.tensor([1.0, 2.0, 5.0]).expand(20, 3)).to_event(1),
            lambda y: normal(NUMBERS[y]),
            NUMBERS.tolist(),
            [0.125, 0.25, 0.625],
        ),
    ],
    ids=["bits", "counts", "classes"],
)
def test_a_discrete_product_is_summed_in_each_dimension(
    content, given, values, weights
):
    prior, z = Custom(given, 20, y_prior=content), torch.randn(3, 2, 20)
    each = [
        math.log(w) + stats.norm.logpdf(z.numpy(), y, 0.3).sum(1)
        for y, w in zip(values, weights, strict=True)
    ]
    expected = torch.tensor(logsumexp(each, axis=0).sum(-1))
    assert_close(prior.log_prob(z), expected)


CONTENTS = {
    "inverse gamma": (dist.InverseGamma, (2.0, 1.0), stats.invgamma(2.0)),
    "gamma": (dist.Gamma, (0.9, 1.0), stats.gamma(0.9)),
    "sparse gamma": (dist.Gamma, (0.3, 1.0), stats.gamma(0.3)),
    "chi squared": (dist.Chi2, (1.0,), stats.chi2(1)),
    "Weibull": (dist.Weibull, (1.0, 0.7), stats.weibull_min(0.7)),
}


@cache
def log_mass(name: str, z: float) -> float:
    """log of the integral over y of p(y) N(z | y, 0.2²), of SciPy's densities."""
    plain, (nodes, weights) = CONTENTS[name][2], np.polynomial.legendre.leggauss(200)

    def integral(a: float, b: float) -> float:  # over log y: no infinite density
        u = (a + b) / 2 + (b - a) / 2 * nodes
        log_joint = plain.logpdf(np.exp(u)) + u + stats.norm.logpdf(z, np.exp(u), 0.2)
        return (b - a) / 2 * float(weights @ np.exp(log_joint))

    ends = [-700.0, -60.0, -20.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 1.5, 2.0, 4.0]
    ends += [math.log(max(z, 1e-3))]
    ends = sorted(ends)
    pairs = zip(ends, ends[1:], strict=False)
    return math.log(sum(integral(a, b) for a, b in pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONTENTS)
def test_quadrature_is_that_of_scipy_where_p_of_y_is_infinite_or_zero_at_an_end(
    name, dtype
):
    family, numbers, _ = CONTENTS[name]
    numbers = [torch.tensor(n, dtype=dtype) for n in numbers]
    content = family(*numbers).expand([2]).to_event(1)
    prior = Custom(lambda y: dist.Normal(y, 0.2).to_event(1), 2, y_prior=content)
    assert isinstance(prior.integral, Quadrature)
    places = [-0.1, 0.3, 1.0, 4.0]

    z = torch.tensor(places, dtype=dtype).view(-1, 1, 1).expand(-1, 1, 2)
    z = z.clone().requires_grad_()
    found = prior.to(dtype).log_prob(z)
    expected = torch.tensor([2 * log_mass(name, place) for place in places])
    within = 1e-6 if dtype == torch.float64 else 1e-4
    assert_close(found.double(), expected, rtol=0, atol=within)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    step = 1e-4
    slope = [
        (log_mass(name, p + step) - log_mass(name, p - step)) / (2 * step)
        for p in places
    ]
    slope = torch.tensor(slope).view(-1, 1, 1).expand(-1, 1, 2)
    assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-3)
    assert prior.log_kernel(z[:, 0], z[:, 0]).isfinite().all()


def test_the_check_of_a_prior_says_once_which_tensors_do_not_follow():
    means = MEANS.float()
    weights = dist.Categorical(torch.ones(3))
    prior = Custom(lambda y: normal(means[y]), 2, y_prior=weights)
    with pytest.raises(ps.testing.LawError, match="register_buffer") as error:
        ps.testing.check_prior(prior, draws=200)
    assert str(error.value).count("expected") == 1


def sine(frequency: float):
    return lambda y: dist.Normal(torch.sin(frequency * y), 0.1).to_event(1)


def shifted(y: Tensor) -> dist.TorchDistribution:
    """A view near y, or one time in ten close to y + 3."""
    means, scales = torch.stack([y, y + 3], -1), torch.tensor([1.0, 0.01])
    part = dist.Normal(means, scales.expand_as(means))
    chosen = dist.Categorical(torch.tensor([0.9, 0.1]).expand_as(means))
    return dist.MixtureSameFamily(chosen, part).to_event(1)


PEAKS = {
    "angle": (sine(4.0), lambda: dist.VonMises(torch.tensor([0.5]), 2.0).to_event(1)),
    "normal": (sine(4.0), lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1)),
    "uniform": (sine(3.0), lambda: dist.Uniform(torch.zeros(1), 6.3).to_event(1)),
    "half Cauchy": (sine(4.0), lambda: dist.HalfCauchy(torch.ones(1)).to_event(1)),
    "shifted": (shifted, lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1)),
}


@pytest.mark.parametrize("name", PEAKS)
def test_a_posterior_of_y_with_many_peaks_is_integrated_or_sampled(name):
    conditional, content = PEAKS[name][0], PEAKS[name][1]()
    prior = Custom(conditional, 1, y_prior=content)
    with torch.no_grad():
        z = prior(2).sample((20,))
        found, error = prior.log_prob(z), torch.tensor(0.0)
        if isinstance(prior.integral, ImportanceSampling):
            error = 5 * prior.effective_sample_size(z).rsqrt()
    # The trapezoid rule in u on a grid that resolves all peaks.
    inside = torch.linspace(-9, 9, 100_001)[1:-1]
    low, high = {"angle": (-math.pi, math.pi), "uniform": (0.0, 6.3)}.get(name, (0, 0))
    y = inside if high == 0 else low + (high - low) * (inside + 9) / 18
    log_dy = torch.tensor(18 / 100_000 if high == 0 else (high - low) / 100_000).log()
    if name == "half Cauchy":
        y, log_dy = inside.exp(), log_dy + inside
    y = y.unsqueeze(-1)
    log_content = content.log_prob(y) + log_dy
    each = conditional(y.unsqueeze(1))
    exact = [(log_content + each.log_prob(x).sum(1)).logsumexp(0) for x in z]
    assert ((found - torch.stack(exact)).abs() < 1e-3 + error).all()


def test_quadrature_that_misses_peaks_is_refused_in_use_and_at_the_first_batch():
    conditional, content = PEAKS["angle"][0], PEAKS["angle"][1]()
    prior = Custom(conditional, 1, y_prior=content, integral=Quadrature())
    z = prior(2).sample((50,))
    for method in (lambda: prior.log_prob(z), prior.check):
        with pytest.raises(ValueError, match=r"nats per item.*peaks=8.*Importance"):
            method()
    joint = ps.Joint(
        prior,
        ps.likelihoods.Gaussian(0.5),
        ps.nn.MLPEncoder((3,), 1, hidden=(4,)),
        ps.nn.MLPDecoder(1, (3,), hidden=(4,)),
    )
    with pytest.raises(ValueError, match=r"nats per item.*peaks=8"):
        ps.fit(ps.limits.SimVAE(joint), torch.randn(6, 2, 3), epochs=1)


class Waves(nn.Module):
    """Waves in y, of a frequency that can be learned."""

    def __init__(self) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(0.1))

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(torch.sin(self.frequency * y), 0.1).to_event(1)


def test_quadrature_that_training_has_spoilt_makes_a_remark():
    prior = Custom(Waves(), 1)
    assert isinstance(prior.integral, Quadrature) and prior.remark() is None
    prior.conditional.frequency.data.fill_(8.0)
    assert "nats per item" in prior.remark()
    assert prior.remark() is None  # the third of the calls examines nothing


@pytest.mark.parametrize(
    "present", [None, torch.tensor([[True, False], [False, True]])]
)
def test_quadrature_examines_items_of_any_shape_and_mask(present):
    conditional, content = PEAKS["angle"][0], PEAKS["angle"][1]()
    prior = Custom(conditional, 1, y_prior=content, integral=Quadrature())
    z = prior(2).sample((40, 2))
    with torch.no_grad(), pytest.raises(ValueError, match="nats per item"):
        prior.log_prob(z, present)


@pytest.mark.filterwarnings("ignore:p.z.y. jumps at an end:UserWarning")
def test_a_density_that_quadrature_finds_nowhere_is_an_error():
    def box(y: Tensor) -> dist.TorchDistribution:
        return dist.Uniform(y + 2.99, y + 3.01, validate_args=False).to_event(1)

    prior = Custom(box, 1, integral=Quadrature())
    z = torch.full((4, 2, 1), 3.3)  # far from y, about 0.3
    for method in (lambda: prior.log_prob(z), prior.check):
        with pytest.raises(ValueError, match="got inf"):
            method()


def test_calls_of_a_rule_change_nothing_that_is_saved():
    rule, content = Quadrature(128, peaks=8), PEAKS["normal"][1]()
    prior = Custom(sine(4.0), 1, y_prior=content, integral=rule)
    before = {"panels": 128, "nodes": 8, "levels": 3, "peaks": 8}
    with torch.no_grad():
        prior.log_prob(prior(2).sample((5,)))
    assert rule._calls == 1
    assert {k: v for k, v in vars(rule).items() if k[0] != "_"} == before
    assert "peaks" not in vars(Quadrature())


OFF = {
    "log-normal": lambda y: dist.LogNormal(y, 0.5).to_event(1),
    "exponential": lambda y: dist.Exponential(y.exp()).to_event(1),
    "beta": lambda y: dist.Beta(2 + y.square(), 2.0).to_event(1),
}


@pytest.mark.parametrize("name", OFF)
def test_views_off_the_support_of_z_have_no_density(name):
    prior = Custom(OFF[name], 1)
    z = torch.tensor([0.2, 0.4, -0.1, 0.4, math.nan, 0.4]).view(3, 2, 1)
    inside, outside, nan = prior.log_prob(z)
    assert inside.isfinite() and outside == -math.inf and nan.isnan()
    second = torch.tensor([False, True]).expand(3, 2)
    assert prior.log_prob(z, second).isfinite().all()


def of_torch(loc: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.Independent(torch.distributions.Normal(loc, 0.3), 1)


test_distributions_of_torch_are_refused = refusals(
    (
        lambda: ps.priors.Gaussian(2, torch.distributions.LogNormal(-1.0, 0.5)),
        TypeError,
        r"prior of scale.*take pyro\.distributions\.LogNormal",
    ),
    (
        lambda: Custom(normal, 2, y_prior=of_torch(torch.zeros(2))),
        TypeError,
        r"y_prior.*take pyro\.distributions\.Independent",
    ),
    (lambda: Custom(of_torch, 2), TypeError, r"conditional\(y\).*take pyro"),
)


class RandomWaves(nn.Module):
    """Waves in y, of a random frequency, one for each draw."""

    def __init__(self, median: float) -> None:
        super().__init__()
        self.frequency = ps.hyper.Positive(
            dist.LogNormal(math.log(median), 0.3), "frequency"
        )

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(torch.sin(self.frequency() * y), 0.1).to_event(1)


@pytest.mark.parametrize("shape", [(), (3, 1)])
def test_quadrature_is_examined_at_drawn_hyper_parameters(shape):
    prior = Custom(RandomWaves(0.1), 1, integral=Quadrature())
    assert prior.remark() is None
    slow, quick = torch.full(shape, 0.1), torch.full(shape, 8.0)
    with torch.no_grad():
        z = prior(2, frequency=torch.tensor(8.0)).sample((40,))
        found = prior(2, frequency=slow).log_prob(z * 1e-2)
        assert found.shape == (*shape[:1], 40)
        prior.integral = Quadrature()
        with pytest.raises(ValueError, match="nats per item"):
            prior(2, frequency=quick).log_prob(z)


def test_training_examines_quadrature_at_drawn_hyper_parameters():
    prior = Custom(RandomWaves(0.1), 1, integral=Quadrature())
    assert prior.remark() is None
    prior.conditional.frequency.log_scale.data.fill_(math.log(5.0))
    assert "nats per item" in prior.remark()
