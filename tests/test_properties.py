"""Laws of densities, entropies and objectives at arguments that are searched for.

Hypothesis draws shapes, parameters and points, and shrinks what breaks a law. The
unmarked suite tries a few cases, the same in every run; ``-m slow`` tries many others.
"""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers.catalogue import ITEMS, OBJECTIVES, batch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.distributions.gaussian import OneFactorNormal
from probssl.distributions.sphere import PowerSpherical, VonMisesFisher
from probssl.distributions.student import IsotropicStudentT
from probssl.entropies import (
    Collision,
    KernelDensity,
    LogDeterminant,
    NearestNeighbour,
)
from probssl.priors import Gaussian, Mixture, Prior, Spherical, StudentT

pytestmark = pytest.mark.usefixtures("float64")
Check = Callable[..., None]


def law(few: int, many: int, over: Iterable[str] = ("",), **drawn: Any) -> Any:
    """Try a check at a few drawn arguments, always the same; at many where slow.

    Arguments:
        over: Names, for each of which there is a test that gets it as `name`.
    """
    slow = pytest.param(many, marks=pytest.mark.slow, id="many")

    def wrap(check: Check) -> Check:
        @pytest.mark.parametrize("number", [pytest.param(few, id="few"), slow])
        @pytest.mark.parametrize("name", over)
        def test(name: str, number: int) -> None:
            fixed = {"name": name} if name else {}

            def one(**values: Any) -> None:
                check(**fixed, **values)

            options: Any = {"derandomize": number == few, "database": None}
            settings(max_examples=number, deadline=None, **options)(
                given(**drawn)(one)
            )()

        test.__doc__ = check.__doc__
        return test

    return wrap


positive, dofs = st.floats(0.05, 20.0), st.floats(0.1, 1e6)
seeds, loads = st.integers(0, 2**31 - 1), st.floats(0, 20)
dims, some = st.integers(1, 6), st.integers(1, 4)
several = st.integers(2, 12)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Densities


@law(8, 300, dim=dims, dof=dofs, scale=positive, size=positive, seed=seeds)
def test_the_student_density_is_that_of_scipy(dim, dof, scale, size, seed):
    loc, x = normal(dim, seed=seed), size * normal(5, dim, seed=seed + 1)
    shape = scale**2 * torch.eye(dim).numpy()
    expected = stats.multivariate_t(loc.numpy(), shape, dof).logpdf(x.numpy())
    found = IsotropicStudentT(dof, loc, scale).log_prob(x)
    assert_close(found, torch.tensor(expected).reshape(5), rtol=1e-6, atol=1e-6)


@law(
    8,
    200,
    over=["von Mises-Fisher", "power spherical"],
    dim=st.integers(2, 12),
    concentration=st.floats(0.0, 200.0),
)
def test_densities_on_the_sphere_integrate_to_one(name, dim, concentration):
    """Over the angle from the mean direction, by quadrature."""
    kind = VonMisesFisher if name == "von Mises-Fisher" else PowerSpherical
    loc = torch.eye(dim)[0]
    p = kind(loc, torch.tensor(concentration))
    log_area = math.log(2) + (dim - 1) / 2 * math.log(math.pi)
    log_area -= math.lgamma((dim - 1) / 2)  # of a circle of latitude

    def density(angle: float) -> float:
        x = math.cos(angle) * loc + math.sin(angle) * torch.eye(dim)[1]
        return math.exp(log_area + float(p.log_prob(x))) * math.sin(angle) ** (dim - 2)

    mode = [1 / math.sqrt(1 + concentration)]
    total, _ = integrate.quad(density, 0, math.pi, points=mode, epsabs=1e-9, limit=200)
    assert abs(total - 1) < 1e-7


@law(8, 300, views=some, dim=dims, scale=positive, load=loads, seed=seeds)
def test_the_one_factor_density_is_that_of_its_covariance(
    views, dim, scale, load, seed
):
    """Without the absent views, whatever their values are."""
    loc, loading = (
        normal(views, dim, seed=seed),
        load * normal(views, dim, seed=seed + 1),
    )
    scales = scale * normal(views, dim, seed=seed + 2).exp()
    z = loc + scale * normal(views, dim, seed=seed + 3)
    present = normal(views, seed=seed + 4) > -0.5
    p = OneFactorNormal(loc, scales, loading, present=present)
    expected = torch.zeros(())
    for d in range(dim):
        u, here = loading[present, d], scales[present, d].square().diag()
        if len(u):
            q = MultivariateNormal(loc[present, d], here + u[:, None] * u)
            expected = expected + q.log_prob(z[present, d])
    assert_close(p.log_prob(z), expected, rtol=1e-6, atol=1e-6)


def prior_of(name: str, dim: int, scale: float, y_scale: float, seed: int) -> Prior:
    torch.manual_seed(seed)
    if name == "Spherical":
        return Spherical(dim + 1, 1 / scale)
    if name == "StudentT":
        return StudentT(dim, scale, 1 + y_scale, y_scale=y_scale)
    return (
        Mixture(dim, 3, scale) if name == "Mixture" else Gaussian(dim, scale, y_scale)
    )


@law(
    5,
    100,
    over=["Gaussian", "StudentT", "Mixture", "Spherical"],
    dim=dims,
    views=some,
    scale=positive,
    y_scale=positive,
    seed=seeds,
)
def test_views_are_exchangeable_and_kernels_conditional(
    name, dim, views, scale, y_scale, seed
):
    """log p(b | a) = log p(a, b) - log p(a); the order of views changes nothing."""
    prior = prior_of(name, dim, scale, y_scale, seed)
    z = prior.on_support(normal(4, views + 1, prior.known_dim(), seed=seed + 1))
    value = prior.log_prob(z)
    assert bool(value.isfinite().all())
    assert_close(prior.log_prob(z.flip(1)), value, rtol=1e-9, atol=1e-8)
    a, b = z[:, 0], z[:, 1]
    expected = prior.log_prob(z[:, :2]) - prior.log_prob(z[:, :1])
    found = prior.log_kernel(a, b).diagonal()
    assert_close(found, expected, rtol=1e-7, atol=1e-7)


# Entropies


@law(
    8,
    200,
    items=several,
    views=some,
    dim=dims,
    scale=positive,
    seed=seeds,
)
def test_kernel_entropies_are_their_plain_formulas(items, views, dim, scale, seed):
    z, prior = normal(items, views, dim, seed=seed), Gaussian(dim, scale)
    flat = z.flatten(0, 1)
    log_k = torch.distributions.Normal(flat[:, None], scale).log_prob(flat).sum(-1)
    log_k = log_k.masked_fill(torch.eye(len(flat), dtype=torch.bool), -math.inf)
    count = len(flat) - 1
    expected = math.log(count) - log_k.logsumexp(0).mean()
    assert_close(KernelDensity()(z, prior), expected, rtol=1e-9, atol=1e-9)
    expected = math.log(count * len(flat)) - log_k.flatten().logsumexp(0)
    assert_close(Collision()(z, prior), expected, rtol=1e-9, atol=1e-9)


@law(5, 200, extra=st.integers(1, 9), views=some, dim=dims, seed=seeds)
def test_the_log_determinant_follows_affine_maps(extra, views, dim, seed):
    """H[A z + b] = H[z] + log |det A|; it is the entropy of a normal distribution."""
    z = normal(dim + 1 + extra, views, dim, seed=seed)
    matrix = torch.linalg.qr(normal(dim, dim, seed=seed + 1)).Q
    matrix = matrix * normal(dim, seed=seed + 2).exp()
    estimate = LogDeterminant(epsilon=0)
    moved = estimate(z @ matrix + normal(dim, seed=seed + 3))
    assert_close(moved, estimate(z) + matrix.slogdet().logabsdet, rtol=1e-7, atol=1e-7)
    each = [torch.cov(v.T).reshape(dim, dim) for v in z.unbind(1)]
    plain = [MultivariateNormal(torch.zeros(dim), c).entropy() for c in each]
    assert_close(estimate(z), torch.stack(plain).mean(), rtol=1e-7, atol=1e-7)


@law(5, 200, k=st.integers(1, 4), dim=dims, size=positive, views=some, seed=seeds)
def test_the_nearest_neighbour_entropy_follows_similarities(k, dim, size, views, seed):
    """H[c Q z + b] = H[z] + d log c; it is the formula of Kozachenko and Leonenko."""
    z, estimate = normal(k + 5, views, dim, seed=seed), NearestNeighbour(k, 1e-9)
    turn = torch.linalg.qr(normal(dim, dim, seed=seed + 1)).Q
    moved = estimate(size * z @ turn + normal(dim, seed=seed + 2))
    found = estimate(z)
    assert_close(moved, found + dim * math.log(size), rtol=1e-8, atol=1e-8)
    each = z.transpose(0, 1)
    distance = torch.cdist(each, each).sort(-1).values[..., k]
    ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    n = torch.tensor(float(len(z)))
    plain = n.digamma() - torch.tensor(float(k)).digamma() + ball
    assert_close(found, plain + dim * distance.log().mean(), rtol=1e-7, atol=1e-7)


# Objectives

NOISY = {"masked autoencoder", "denoising autoencoder", "t-SNE of noise"}
NOISY |= {name for name in OBJECTIVES if "VAE" in name or name == "IWAE"}


def value(objective: nn.Module, given: ps.Batch) -> Tensor:
    """The sum of the terms of a copy, always with the same random numbers."""
    torch.manual_seed(1)
    terms = deepcopy(objective)(given)
    assert all(math.isfinite(float(torch.as_tensor(t).detach())) for t in terms)
    return sum(terms, start=torch.zeros(()))


def moved(given: ps.Batch, rows: Tensor) -> ps.Batch:
    """The items in another order."""
    assert given.clean is not None and given.index is not None
    return ps.Batch(given.views[rows], given.clean[rows], given.index[rows])


@law(1, 30, over=OBJECTIVES, seed=seeds, size=st.floats(0.1, 10.0))
def test_objectives_are_finite_alike_in_float32_and_in_any_order_of_items(
    name, seed, size
):
    torch.manual_seed(seed)
    objective, given = OBJECTIVES[name](), batch(seed)
    given = given._replace(views=size * given.views, clean=size * given.clean)
    found = value(objective, given).detach()
    single = deepcopy(objective).float()
    low = ps.Batch(given.views.float(), given.clean.float(), given.index)
    if name not in NOISY:  # whose random numbers depend on the dtype
        assert_close(value(single, low).double(), found, rtol=2e-2, atol=2e-2)
        turned = value(objective, moved(given, torch.randperm(ITEMS)))
        assert_close(turned, found, rtol=1e-7, atol=1e-7)


# Without: stop-gradients, teachers that follow the parameters, samples by rejection.
WITHOUT = {"BYOL", "SimSiam", "SwAV", "DINO", "DSA", "MoCo", "t-MoCo", "PID"}
WITHOUT |= {"NNCLR", "TiCo", "VISReg", "spherical SimVAE"}


@law(1, 20, over=[n for n in OBJECTIVES if n not in WITHOUT], seed=seeds)
def test_gradients_are_finite_differences(name, seed):
    """Along a random direction of all parameters."""
    torch.manual_seed(seed)
    objective, given = OBJECTIVES[name](), batch(seed)
    made = deepcopy(objective)
    torch.manual_seed(1)
    sum(made(given), start=torch.zeros(())).backward()
    step, slope = 1e-6, torch.zeros(())
    ends = deepcopy(objective), deepcopy(objective)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p, *both in zip(*(m.parameters() for m in (made, *ends)), strict=True):
            direction = torch.randn_like(p)
            if p.requires_grad:
                slope += 0 if p.grad is None else (p.grad * direction).sum()
                both[0].sub_(step * direction)
                both[1].add_(step * direction)
        low, high = (value(end, given) for end in ends)
    assert_close((high - low) / (2 * step), slope, rtol=1e-4, atol=1e-4)
