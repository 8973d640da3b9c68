"""Estimators of H[z] against known entropies."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.checks import refusals
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import (
    Clusters,
    Collision,
    Entropy,
    EppsPulley,
    Equipartition,
    KernelDensity,
    LogDeterminant,
    NearestNeighbour,
    PlugIn,
    Queue,
    QueuedKernelDensity,
    Sketched,
    SlicedWasserstein,
    VarianceCovariance,
)
from probssl.priors import Prior

pytestmark = pytest.mark.usefixtures("float64")
UNIT = 0.5 * math.log(2 * math.pi * math.e)
PRIOR = ps.priors.Gaussian(None, 0.7, y_scale=math.inf)
DIM = 3
Estimate = Callable[[Tensor, Prior], Tensor]


def gaussian_prior(scale: float) -> Prior:
    return ps.priors.Gaussian(DIM, 0.7 * scale)


def student_prior(scale: float) -> Prior:
    return ps.priors.StudentT(DIM, 0.7 * scale, y_scale=math.inf)


def sphere(dim: int) -> Callable[[float], Prior]:
    return lambda _: ps.priors.Spherical(dim, 5.0)


def linear() -> nn.Linear:
    return nn.Linear(DIM, DIM)


def clusters(entropy: Clusters) -> Clusters:
    nn.init.normal_(entropy.centres)
    return entropy


def sketched(statistic: nn.Module) -> Sketched:
    """With the slices of evaluation mode, which are always the same."""
    return Sketched(statistic, 20, standardise=True).eval()


def correlated(size: float) -> torch.Tensor:
    """A unit-variance covariance whose correlations are of the given size."""
    noise = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    noise = (noise + noise.T) / 2
    return torch.eye(6) + size * (noise - noise.diagonal().diag())


def whitened(covariance: torch.Tensor) -> torch.Tensor:
    """Two views whose sample covariance is exactly the one given."""
    z = torch.randn(50, 2, len(covariance))
    z = z - z.mean(0)
    for view in range(2):
        sigma = z[:, view].T @ z[:, view] / 49
        root = torch.linalg.cholesky(covariance) @ torch.linalg.inv(
            torch.linalg.cholesky(sigma)
        )
        z[:, view] = z[:, view] @ root.T
    return z


def test_log_determinant_is_the_entropy_of_the_gaussian_with_this_covariance():
    sigma = correlated(0.1) * 2.0
    exact = MultivariateNormal(torch.zeros(6), sigma + 1e-4 * torch.eye(6)).entropy()
    assert_close(LogDeterminant()(whitened(sigma)), exact)


@pytest.mark.parametrize(
    ("items", "dim", "scale", "rank", "offset"),
    [
        (32, 64, 10.0, 64, 1e3),
        (64, 128, 30.0, 128, 0.0),
        (64, 16, 30.0, 2, 0.0),
        (40, 64, 30.0, 3, 0.0),
    ],
)
def test_log_determinant_in_float32_is_that_in_float64(items, dim, scale, rank, offset):
    """With fewer items than dimensions, and of collapsed z."""
    z = scale * torch.randn(items, 2, rank)
    if rank < dim:
        z = z @ torch.randn(rank, dim) / rank**0.5
    z = z + offset

    def plain(z: Tensor) -> Tensor:
        each = [
            torch.atleast_2d(v.T.cov()) + 1e-4 * torch.eye(dim) for v in z.unbind(1)
        ]
        return dim * UNIT + torch.stack(each).logdet().mean() / 2

    found = []
    for entropy, of in (
        (plain, z),
        (LogDeterminant(), z),
        (LogDeterminant(), z.float()),
        (PlugIn(linear(), LogDeterminant()), z.float()),
    ):
        points = of.clone().requires_grad_()
        args = () if entropy is plain else (PRIOR,)
        value = entropy(points, *args)
        (grad,) = torch.autograd.grad(value, points)
        found.append((value.detach().double(), grad.double()))
    (value, grad), exact, *rounded = found
    assert_close(exact, (value, grad), rtol=1e-6, atol=1e-6)
    for each, slope in rounded:
        assert abs(each - value) < 1e-4
        # without a filter of rounding 0.7 to 1.3 times as large where z has collapsed
        assert (slope - grad).norm() < 0.05 * grad.norm()


def test_log_determinant_of_one_point_has_no_gradient():
    z = torch.full((9, 2, 3), 0.7).float().requires_grad_()
    value = LogDeterminant()(z)
    value.backward()
    assert_close(value.double(), torch.tensor(3 * (UNIT + math.log(1e-4) / 2)))
    assert not z.grad.any()


def test_log_determinant_of_collapsed_z_without_noise_is_minus_infinity():
    z = torch.randn(9, 2, 1).expand(9, 2, 3).clone().requires_grad_()
    value = LogDeterminant(0.0)(z)
    value.backward()
    assert value == -math.inf and bool(z.grad.isnan().all())
    with pytest.raises(ValueError, match="items as a whole number of at least 4"):
        LogDeterminant(0.0)(z[:3])
    with pytest.raises(ValueError, match="epsilon as a finite number of at least 0"):
        LogDeterminant(-1e-4)


def test_log_determinant_bounds_the_entropy_of_a_mixture_from_above():
    n = 20_000
    sign = torch.randint(0, 2, (n, 2, 1)) * 2.0 - 1
    z = 2 * sign + 0.3 * torch.randn(n, 2, 1)
    exact = UNIT + math.log(0.3) + math.log(2)  # the two halves do not overlap
    assert LogDeterminant()(z) > exact + 0.5


def test_variance_term_touches_log_sd_at_one_from_below():
    gaps = []
    for step in (1e-2, 1e-3):
        sigma = (1 - step) ** 2 * torch.eye(3)
        exact = 3 * UNIT + 3 * math.log(1 - step)
        value = VarianceCovariance(epsilon=0.0)(whitened(sigma))
        gaps.append(exact - value)
    assert gaps[0] < 0  # log s = -(1 - s) - (1 - s)²/2 - …
    assert_close(gaps[0] / gaps[1], torch.tensor(100.0), rtol=0.02, atol=0)


def test_covariance_term_is_the_second_order_of_the_log_determinant():
    gaps = []
    for size in (1e-2, 1e-3):
        z = whitened(correlated(size))
        surrogate = VarianceCovariance(0.25, epsilon=0.0)(z)
        gaps.append(LogDeterminant(0.0)(z) - surrogate)
    assert_close(gaps[0] / gaps[1], torch.tensor(1000.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_kernel_estimates_equal_plain_sums(views, together):
    z, prior = torch.randn(5, views, 2), ps.priors.Gaussian(2, 0.7)
    points = z if together else z.flatten(0, 1).unsqueeze(1)
    around = MultivariateNormal(points.unsqueeze(1), 0.49 * torch.eye(2))
    density = around.log_prob(points).sum(-1).exp().fill_diagonal_(0.0)
    others = len(points) - 1
    density_estimate, collision = (
        (entropy.joint if together else entropy)(z, prior)
        for entropy in (KernelDensity(), Collision())
    )
    assert_close(density_estimate, -(density.sum(0) / others).log().mean())
    assert_close(collision, -(density.sum(0) / others).mean().log())


@pytest.mark.parametrize("dim", [1, 3])
def test_log_determinant_of_views_together_is_the_entropy_of_their_joint(dim):
    """The total correlation is that of the sample's own covariance."""
    z = torch.randn(40, 3, dim) + torch.randn(40, 1, dim)
    entropy = LogDeterminant(0.0)
    together = z.flatten(1).T.cov()
    exact = MultivariateNormal(torch.zeros(3 * dim), together).entropy()
    assert_close(entropy.joint(z), exact)
    blocks = torch.block_diag(*(z[:, view].T.cov().view(dim, dim) for view in range(3)))
    shared = 0.5 * (blocks.logdet() - together.logdet())
    assert_close(3 * entropy(z) - entropy.joint(z), shared)
    assert_close(entropy.conditional(z, None), exact - entropy(z))


def test_sampled_covariance_makes_the_log_determinant_too_low_at_first_order():
    dim, gaps = 4, []
    for n in (20, 200):
        z = torch.randn(n, 40_000 // n, dim)
        each = LogDeterminant(0.0)(z) - dim * UNIT
        gaps.append(float(each))
        half = (torch.arange(n - dim, n) / 2).digamma().sum() + dim * math.log(2)
        exact = 0.5 * (half - dim * math.log(n - 1))  # E log |Σ̂| of a Wishart
        bar = 5 * math.sqrt(dim / (2 * 40_000))  # Var log |Σ̂| ≈ 2 d / n
        assert each < 0 and abs(each - exact) < 2 * bar
    assert gaps[0] < 5 * gaps[1]  # d (d + 1) / 4 n


def test_variance_and_covariance_are_the_entropy_of_unit_normals_and_below_if_less():
    assert_close(
        VarianceCovariance(epsilon=0.0)(whitened(torch.eye(4))), torch.tensor(4 * UNIT)
    )
    narrow = VarianceCovariance(epsilon=0.0)(whitened(correlated(0.1)))
    wide = VarianceCovariance()(whitened(4.0 * torch.eye(3)))
    assert narrow < 6 * UNIT
    assert_close(wide, torch.tensor(3 * UNIT))  # flat above one


# Laws. The prior of each estimator has a scale of 0.7, and c times that for z times c.
Made = tuple[Callable[[], Entropy], Callable[[float], Prior]]
ENTROPIES: dict[str, Made] = {
    "kernel density": (KernelDensity, gaussian_prior),
    "same view": (lambda: KernelDensity(other_views=False), gaussian_prior),
    "other views": (lambda: KernelDensity(same_view=False), gaussian_prior),
    "other items": (lambda: KernelDensity(same_item=False), student_prior),
    "kernel density on the sphere": (KernelDensity, sphere(3)),
    "collision": (Collision, student_prior),
    "collision on the sphere": (Collision, sphere(3)),
    "nearest neighbour": (NearestNeighbour, gaussian_prior),
    "nearest neighbour on the circle": (NearestNeighbour, sphere(2)),
    "nearest neighbour on the sphere": (NearestNeighbour, sphere(5)),
    "log-determinant": (lambda: LogDeterminant(0.0), gaussian_prior),
    "variance and covariance": (VarianceCovariance, gaussian_prior),
    "equipartition": (lambda: clusters(Equipartition(5, DIM)), gaussian_prior),
    "clusters": (lambda: clusters(Clusters(5, DIM)), gaussian_prior),
    "Epps-Pulley": (lambda: sketched(EppsPulley()), gaussian_prior),
    "sliced Wasserstein": (lambda: sketched(SlicedWasserstein()), gaussian_prior),
    "plug-in": (lambda: PlugIn(linear(), LogDeterminant()), gaussian_prior),
}
SKETCHED = {"Epps-Pulley", "sliced Wasserstein"}
AXES = {"variance and covariance", "equipartition", "clusters", "plug-in"} | SKETCHED
SURROGATE = {"equipartition", "plug-in"}  # whose gradient is not that of the value
JOINT = [
    name
    for name, (make, _) in ENTROPIES.items()
    if type(make()).joint is not Entropy.joint
]
# Each estimator of one view, and of all views where there is one.
EVERY = pytest.mark.parametrize(
    ("name", "together"),
    [(name, False) for name in ENTROPIES] + [(name, True) for name in JOINT],
)


def built(name: str, together: bool, scale: float = 1.0) -> tuple[Estimate, Prior]:
    """An estimator, of one view or of all together, and the prior for it."""
    make, prior = ENTROPIES[name]
    torch.manual_seed(4)
    entropy = make()
    if isinstance(entropy, Clusters):
        entropy.centres.data.mul_(scale)
    return entropy.joint if together else entropy, prior(scale)


def dim_of(prior: Prior) -> int:
    return prior.dim or DIM


@EVERY
def test_order_rotation_and_translation_do_not_matter(name, together):
    estimate, prior = built(name, together)
    z = prior.on_support(torch.randn(12, 3, dim_of(prior)))
    value = estimate(z, prior)
    assert_close(estimate(z[torch.randperm(12)], prior), value)
    assert_close(estimate(z.flip(1), prior), value)
    if name not in AXES:
        rotation = torch.linalg.qr(torch.randn(2 * z.shape[-1:])).Q
        assert_close(estimate(z @ rotation, prior), value)
    moves = AXES - {"variance and covariance"} - SKETCHED
    if name not in moves and "on the" not in name:
        assert_close(estimate(z + torch.tensor([3.0, -1.0, 0.5]), prior), value)


@EVERY
def test_scaling_z_adds_the_log_of_the_scale(name, together):
    """To each dimension of each view, with the kernel scaled alike."""
    if "on the" in name or name in ("plug-in", "variance and covariance"):
        return
    z, views = torch.randn(40, 2, DIM), 2 if together else 1
    once, wide = (
        estimate(scale * z, prior)
        for scale in (1.0, 3.0)
        for estimate, prior in [built(name, together, scale)]
    )
    assert_close(wide - once, torch.tensor(views * DIM * math.log(3)))


@EVERY
def test_gradients_are_exact(name, together):
    if name in SURROGATE:
        return
    estimate, prior = built(name, together)
    z = 0.5 * torch.randn(9, 2, dim_of(prior))
    value = lambda z: estimate(prior.on_support(z), prior)  # noqa: E731
    assert torch.autograd.gradcheck(value, z.requires_grad_())


@EVERY
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-9, 1e6])
def test_equal_tiny_and_huge_representations_have_finite_values_and_gradients(
    name, together, size
):
    if "log-determinant" in name or name == "plug-in":
        return  # of a singular covariance without noise
    estimate, prior = built(name, together)
    noise, offset = torch.randn(8, 2, dim_of(prior)), 0.0 if size in (0, 1e6) else 1.0
    z = (size * noise + offset).requires_grad_()
    value = estimate(prior.on_support(z), prior)
    assert value.isfinite()
    assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_log_determinant_is_finite_with_fewer_items_than_dimensions():
    z = torch.randn(4, 2, 16, requires_grad=True)
    value = LogDeterminant()(z)
    value.backward()
    assert value.isfinite() and z.grad.isfinite().all()


@EVERY
def test_value_and_gradient_are_those_of_the_trace(name, together):
    estimate, prior = built(name, together)

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = estimate(prior.on_support(z), prior)
        return value, torch.autograd.grad(value, z)[0]

    z = torch.randn(9, 2, dim_of(prior))
    trace = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)
    for traced, eager in zip(trace(torch.zeros_like(z))(z), step(z), strict=True):
        assert_close(traced, eager)


@EVERY
def test_single_precision_is_that_of_the_input(name, together):
    estimate, prior = built(name, together)
    z = prior.on_support(torch.randn(30, 2, dim_of(prior)))
    value = estimate(z, prior)
    if isinstance(module := getattr(estimate, "__self__", estimate), nn.Module):
        module.float()
    single = estimate(z.float(), prior.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), value, rtol=1e-5, atol=1e-5)


Z = torch.zeros(9, 2, 5)

test_bad_arguments_are_refused = refusals(
    (lambda: LogDeterminant()(Z[:1]), ValueError, "number of items .* of at least 2"),
    (
        lambda: Collision()(Z[:1, :1], PRIOR),
        ValueError,
        "representations .* at least 2",
    ),
    (
        lambda: Collision().joint(Z[:1], PRIOR),
        ValueError,
        "representations .* at least 2",
    ),
    (
        lambda: KernelDensity(same_view=False, other_views=False),
        ValueError,
        "leave same_view or other_views at True",
    ),
    (
        lambda: KernelDensity(other_views=False)(Z[:1], PRIOR),
        ValueError,
        "neighbours .* got 0; use larger",
    ),
    (lambda: Queue(0, 3), ValueError, "size as a whole number of at least 1"),
    (lambda: Queue(5, 0), ValueError, "dim as a whole number of at least 1"),
    (lambda: Queue(4, 3).log_sums(PRIOR, Z[0]), ValueError, "dimension 3"),
    (lambda: NearestNeighbour(0), ValueError, "k as a whole number of at least 1"),
    (lambda: NearestNeighbour(epsilon=0.0), ValueError, "epsilon as a positive"),
    (lambda: NearestNeighbour()(Z[:3]), ValueError, "items .* of at least 4"),
    (lambda: Equipartition(1, 4), ValueError, "components as a whole number of"),
    (lambda: Equipartition(3, 0), ValueError, "dim as a whole number of at least 1"),
    (lambda: Equipartition(3, 4, temperature=0.0), ValueError, "temperature as a pos"),
    (lambda: Equipartition(3, 4, iterations=0), ValueError, "at least 1.*Clusters"),
    (
        lambda: LogDeterminant(-1.0),
        ValueError,
        "epsilon as a finite number of at least 0",
    ),
    (lambda: VarianceCovariance(math.nan), ValueError, "covariance as a finite number"),
    (lambda: Equipartition(3, 4)(Z, PRIOR), ValueError, "dim=5"),
    (lambda: PlugIn(nn.Identity())(Z, PRIOR), ValueError, "give PlugIn a marginal"),
    (
        lambda: PlugIn(nn.Identity()).conditional(Z[:, :1], PRIOR),
        ValueError,
        "views .* at least 2",
    ),
)


@pytest.mark.parametrize(
    "entropy", [VarianceCovariance(), QueuedKernelDensity(9, 5), Equipartition(3, 5)]
)
def test_an_entropy_without_a_joint_form_says_so(entropy):
    objective = ps.limits.Embedding(nn.Identity(), PRIOR, entropy, all_views=True)
    for call in (lambda: entropy.joint(Z, PRIOR), lambda: objective(ps.Batch(Z))):
        with pytest.raises(TypeError, match=f"joint .* got {type(entropy).__name__}"):
            call()
