"""Distributions on the sphere and Student-t: densities, samples, entropies, limits."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from helpers.checks import assert_mean, refusals
from pyro import poutine
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import normalize
from torch.testing import assert_close

from probssl.distributions import (
    IsotropicStudentT,
    NormalMixture,
    OneFactorNormal,
    PowerSpherical,
    SharedComponent,
    SharedDirection,
    SharedPrecision,
    SphericalUniform,
    VonMisesFisher,
)
from probssl.distributions.sphere import Stereographic
from probssl.special import digamma_difference, log_area

pytestmark = pytest.mark.usefixtures("float64")

ON_SPHERE = [VonMisesFisher, PowerSpherical]
Around = type[VonMisesFisher] | type[PowerSpherical]


def direction(dim: int) -> Tensor:
    """A direction with no symmetry: every coordinate differs, the first is negative."""
    return normalize(torch.linspace(-1.3, 2.1, dim), dim=0)


def uniform(dim: int, n: int) -> Tensor:
    return normalize(torch.randn(n, dim), dim=-1)


@pytest.mark.parametrize("cls", ON_SPHERE)
@pytest.mark.parametrize(
    "dim, kappa", [(2, 0.7), (2, 6.0), (3, 4.0), (5, 4.0), (64, 9.0)]
)
def test_density_integrates_to_one(cls: Around, dim, kappa):
    z = uniform(dim, 50_000)
    log_ratio = cls(direction(dim), kappa).log_prob(z) + log_area(dim)
    assert_mean(log_ratio.exp(), 1.0)


@pytest.mark.parametrize("cls", ON_SPHERE)
@pytest.mark.parametrize("dim", [2, 3, 5, 64])
@pytest.mark.parametrize("kappa", [0.0, 1.5, 30.0, 1e6])
def test_samples_have_the_mean_and_the_entropy(cls: Around, dim, kappa):
    around = cls(direction(dim), kappa)
    z = around.sample((20_000,))
    assert_close(z.norm(dim=-1), torch.ones(20_000))
    assert_mean(z, around.mean)
    # How far the samples fall from the mode, where the mean cannot tell.
    assert_mean((z - around.loc).square().sum(-1) / 2, around._shortfall())
    assert_mean(-around.log_prob(z), around.entropy())
    assert_mean((z - around.mean).square(), around.variance)
    shortfall = around._shortfall()
    assert_close(around.variance.sum(), shortfall * (2 - shortfall))  # 1 - |E z|²


@pytest.mark.parametrize("cls", ON_SPHERE)
@pytest.mark.parametrize("dim", [2, 3, 40])
def test_cosines_of_samples_follow_the_marginal_density(cls: Around, dim):
    around = cls(direction(dim), 5.0)
    angle = torch.linspace(0, math.pi, 20_001)
    z = torch.stack([angle.cos(), angle.sin()], -1)
    z = torch.nn.functional.pad(z, (0, dim - 2))
    first = torch.eye(dim)[0]
    density = cls(first, 5.0).log_prob(z).exp() * angle.sin() ** (dim - 2)
    cdf = torch.cumulative_trapezoid(density, angle)
    cdf = torch.nn.functional.pad(cdf, (1, 0)) / cdf[-1]
    cosine = around.sample((20_000,)) @ around.loc
    sample, grid, cdf = cosine.clamp(-1, 1).acos().numpy(), angle.numpy(), cdf.numpy()
    test = scipy.stats.kstest(sample, lambda x: np.interp(x, grid, cdf))
    assert test.pvalue > 1e-6  # as rare as five standard errors


@pytest.mark.parametrize("cls", ON_SPHERE)
def test_samples_are_uniform_around_the_mode(cls: Around):
    loc = direction(4)
    z = cls(loc, 3.0).sample((50_000,))
    tangent = z - (z @ loc).unsqueeze(-1) * loc
    product = tangent.unsqueeze(-1) * tangent.unsqueeze(-2)
    plane = torch.eye(4) - torch.outer(loc, loc)
    share = (tangent.square().sum(-1) / 3).mean()
    assert_mean(tangent, 0.0)
    assert_mean(product, share * plane)


@pytest.mark.parametrize("cls", ON_SPHERE)
@pytest.mark.parametrize("axis", [1.0, -1.0])
def test_samples_are_right_around_either_pole(cls: Around, axis):
    loc = axis * torch.eye(3)[0]
    z = cls(loc, 1e8).sample((1_000,))
    assert (z - loc).norm(dim=-1).max() < 1e-3


@pytest.mark.parametrize("dim", [2, 3, 64])
def test_uniform_is_the_limit_of_zero_concentration(dim):
    sphere = SphericalUniform(dim)
    z = sphere.sample((1_000,))
    assert_close(z.norm(dim=-1), torch.ones(1_000))
    assert_mean(z, sphere.mean)
    assert_mean(z.square(), 1 / dim)
    for cls in ON_SPHERE:
        around = cls(direction(dim), 0.0)
        assert_close(around.log_prob(z), sphere.log_prob(z))
        assert_close(around.entropy(), sphere.entropy())
        assert_close(around.mean, sphere.mean)


def test_von_mises_fisher_agrees_with_scipy():
    loc, z = direction(5), uniform(5, 100)
    for kappa in (0.3, 5.0, 300.0):
        theirs = scipy.stats.vonmises_fisher(loc.numpy(), kappa)
        ours = VonMisesFisher(loc, kappa)
        assert_close(ours.log_prob(z), torch.from_numpy(theirs.logpdf(z.numpy())))
        assert ours.entropy().item() == pytest.approx(theirs.entropy())


def test_student_agrees_with_the_general_one_and_with_scipy():
    loc, z = torch.tensor([0.3, -1.0, 2.0]), torch.randn(50, 3)
    ours = IsotropicStudentT(4.2, loc, 0.6)
    general = dist.MultivariateStudentT(torch.tensor(4.2), loc, 0.6 * torch.eye(3))
    assert_close(ours.log_prob(z), general.log_prob(z))
    assert_close(ours.mean, general.mean)
    assert_close(ours.variance, general.variance)
    theirs = scipy.stats.multivariate_t(loc.numpy(), 0.36 * torch.eye(3).numpy(), 4.2)
    assert ours.entropy().item() == pytest.approx(theirs.entropy())


def test_student_in_one_dimension_is_the_univariate_one():
    z, dof = torch.randn(20, 1), torch.tensor([0.7, 1.5, 9.0]).unsqueeze(-1)
    ours = IsotropicStudentT(dof, torch.tensor([0.4]), 2.0)
    univariate = dist.StudentT(dof, 0.4, 2.0)
    assert_close(ours.log_prob(z), univariate.log_prob(z.squeeze(-1)))
    assert_close(ours.entropy(), univariate.entropy())
    assert_close(ours.mean, univariate.mean.unsqueeze(-1), equal_nan=True)
    assert_close(ours.variance, univariate.variance.unsqueeze(-1), equal_nan=True)


@pytest.mark.parametrize("dof", [0.8, 3.0, 50.0])
def test_student_samples_have_the_entropy_and_the_tails(dof):
    student = IsotropicStudentT(dof, torch.tensor([1.0, -3.0, 0.5]), 0.4)
    z = student.sample((50_000,))
    assert_mean(-student.log_prob(z), student.entropy())
    assert_mean(torch.tanh(z - student.loc), 0.0)
    # Q / d is Fisher's F.
    quotient = ((z - student.loc) / 0.4).square().mean(-1)
    assert scipy.stats.kstest(quotient.numpy(), scipy.stats.f(3, dof).cdf).pvalue > 1e-6


@pytest.mark.parametrize("dim", [2, 3, 16])
@pytest.mark.parametrize("kappa", [0.3, 20.0, 1e4])
def test_power_spherical_samples_carry_the_gradient_of_the_mean(dim, kappa):
    n = 20_000
    raw = (2 * direction(dim)).expand(n, dim).requires_grad_()
    concentration = torch.full((n,), kappa, requires_grad=True)
    z = PowerSpherical(normalize(raw, dim=-1), concentration).rsample()
    weight = torch.linspace(1.0, -2.0, dim)
    by_raw, by_kappa = grad((z @ weight).sum(), (raw, concentration))

    raw = (2 * direction(dim)).requires_grad_()
    concentration = torch.tensor(kappa, requires_grad=True)
    mean = PowerSpherical(normalize(raw, dim=-1), concentration).mean @ weight
    raw_truth, kappa_truth = grad(mean, (raw, concentration))
    assert_mean(by_raw, raw_truth)
    assert_mean(by_kappa, kappa_truth)


def test_student_samples_carry_the_gradient_of_the_tails():
    n, dim, held = 50_000, 3, 0.7
    dof = torch.full((n,), 2.5, requires_grad=True)
    scale = torch.full((n,), held, requires_grad=True)
    loc = torch.zeros(n, dim, requires_grad=True)
    square = IsotropicStudentT(dof, loc, scale).rsample().square().sum(-1)

    # With Q = |z|² / σ², E log(1 + Q / ν) = ψ((ν + d) / 2) - ψ(ν / 2).
    (by_dof,) = grad(
        torch.log1p(square / (dof * held**2)).sum(), dof, retain_graph=True
    )
    nu = torch.tensor(2.5, requires_grad=True)
    assert_mean(by_dof, grad(digamma_difference(nu / 2, dim / 2), nu)[0])

    # With σ held inside the logarithm, by σ: 2 / σ · E Q / (ν + Q), a beta variable.
    tail = torch.log1p(square / (2.5 * held**2))
    by_scale, by_loc = grad(tail.sum(), (scale, loc))
    assert_mean(by_scale, 2 / held * dim / (2.5 + dim))
    assert_mean(by_loc, 0.0)


@pytest.mark.parametrize("cls", ON_SPHERE)
@pytest.mark.parametrize("dim, kappa", [(2, 0.5), (3, 8.0), (64, 200.0)])
def test_divergences_agree_with_samples(cls: Around, dim, kappa):
    p = cls(direction(dim), kappa)
    other = normalize(direction(dim) + 0.3 * direction(dim).flip(0), dim=0)
    z = p.sample((50_000,))
    for q in (VonMisesFisher(other, 0.8 * kappa), SphericalUniform(dim)):
        assert_mean(p.log_prob(z) - q.log_prob(z), kl_divergence(p, q))


def test_divergence_between_equals_is_zero_and_between_neighbours_second_order():
    p = VonMisesFisher(direction(6), 1e6)
    assert kl_divergence(p, p).item() == 0
    gap = [kl_divergence(p, VonMisesFisher(p.loc, 1e6 * (1 + e))) for e in (1e-2, 1e-3)]
    assert gap[0] / gap[1] == pytest.approx(100, rel=0.02)


def gradients_agree(function: Callable[..., Tensor], *inputs: Tensor) -> bool:
    return gradcheck(function, [x.clone().requires_grad_() for x in inputs])


@pytest.mark.parametrize("cls", ON_SPHERE)
def test_gradients_on_the_sphere_agree_with_finite_differences(cls: Around):
    raw, z, kappa = torch.randn(3, 4), uniform(4, 3), torch.tensor([0.5, 4.0, 90.0])
    other = uniform(4, 3)

    def build(raw: Tensor, kappa: Tensor) -> VonMisesFisher | PowerSpherical:
        return cls(normalize(raw, dim=-1), kappa)

    def to_other(raw: Tensor, kappa: Tensor) -> Tensor:
        return kl_divergence(build(raw, kappa), VonMisesFisher(other, 3 * kappa))

    assert gradients_agree(lambda r, k: build(r, k).log_prob(z), raw, kappa)
    assert gradients_agree(lambda r, k: build(r, k).entropy(), raw, kappa)
    assert gradients_agree(lambda r, k: build(r, k).mean, raw, kappa)
    assert gradients_agree(to_other, raw, kappa)


def test_gradients_of_student_agree_with_finite_differences():
    dof, scale = torch.tensor([0.6, 3.0, 80.0]), torch.tensor([0.3, 1.0, 2.0])
    loc, z = torch.randn(3, 4), torch.randn(3, 4)
    build = IsotropicStudentT
    assert gradients_agree(lambda *a: build(*a).log_prob(z), dof, loc, scale)
    assert gradients_agree(lambda *a: build(*a).entropy(), dof, loc, scale)


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_von_mises_fisher_tends_to_a_gaussian_at_first_order(dim):
    loc = torch.eye(dim)[0]
    plane = torch.linspace(-0.9, 1.4, dim - 1)
    log_normal = dist.Normal(0.0, 1.0).log_prob(plane).sum()
    gaps = []
    for kappa in (1e4, 1e5):
        step = plane / math.sqrt(kappa)
        angle = step.norm()
        z = torch.cat([angle.cos().view(1), angle.sin() / angle * step])
        density = VonMisesFisher(loc, kappa).log_prob(z)
        gaps.append(density - (dim - 1) / 2 * math.log(kappa) - log_normal)
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)  # O(1 / κ)


def test_student_tends_to_the_normal_at_first_order():
    loc, z = torch.tensor([0.2, -1.0, 0.5]), torch.tensor([1.0, 0.3, -0.4])
    normal = dist.Normal(loc, 0.7).to_event(1)
    for value in (lambda d: d.log_prob(z), lambda d: d.entropy()):
        gaps = [
            value(IsotropicStudentT(dof, loc, 0.7)) - value(normal)
            for dof in (1e4, 1e5)
        ]
        assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.01)  # O(1 / ν)


@pytest.mark.parametrize("cls", ON_SPHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kappa", [0.0, 1e-8, 1e8])
def test_extreme_concentrations_stay_finite(cls: Around, dtype, kappa):
    loc = direction(3).to(dtype).requires_grad_()
    concentration = torch.tensor(kappa, dtype=dtype, requires_grad=True)
    around = cls(loc, concentration, validate_args=False)
    z = around.sample((1_000,))
    assert z.dtype == dtype
    for value in (around.log_prob(z), around.entropy(), around.mean):
        assert value.dtype == dtype
        derivatives = grad(value.sum(), (loc, concentration), allow_unused=True)
        assert value.isfinite().all()
        assert all(d is None or d.isfinite().all() for d in derivatives)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim, kappa", [(2, 0.0), (2, 1e8), (3, 0.0), (512, 1e-8)])
def test_gradients_of_samples_stay_finite(dtype, dim, kappa):
    loc = direction(dim).to(dtype).requires_grad_()
    concentration = torch.tensor(kappa, dtype=dtype, requires_grad=True)
    z = PowerSpherical(loc, concentration, validate_args=False).rsample((10_000,))
    weight = torch.linspace(1.0, -2.0, dim, dtype=dtype)
    assert all(
        d.isfinite().all() for d in grad((z @ weight).sum(), (loc, concentration))
    )


def test_power_spherical_vanishes_opposite_to_the_mode():
    loc = direction(3)
    assert PowerSpherical(loc, 2.0).log_prob(-loc).item() == -math.inf
    flat = PowerSpherical(loc, 0.0).log_prob(-loc)
    assert_close(flat, torch.tensor(-log_area(3)))


def vectors(batch: tuple[int, ...]) -> dict[str, dist.TorchDistribution]:
    """A distribution of each class over vectors of 5 numbers."""
    loc = normalize(torch.randn(*batch, 5), dim=-1)
    positive, many = torch.rand(batch) + 1, torch.randn(*batch, 3, 5)
    return {
        "von Mises-Fisher": VonMisesFisher(loc, positive),
        "power spherical": PowerSpherical(loc, positive),
        "uniform": SphericalUniform(5, batch),
        "Student": IsotropicStudentT(positive, loc, positive),
        "mixture": NormalMixture(many[..., 0], many, many.exp()),
    }


def items(batch: tuple[int, ...]) -> dict[str, dist.TorchDistribution]:
    """A distribution of each class over items of 3 views, of 2 numbers each."""
    positive, many = torch.rand(batch) + 1, torch.randn(*batch, 3, 2)
    present = torch.tensor([True, False, True]).expand(*batch, 3)
    normal = OneFactorNormal(many, many.exp(), many.cos())
    shared = SharedComponent(
        many[..., 0], many, torch.full((1, 2), 0.7), torch.full((3, 2), 0.4), 3
    )
    return {
        "one factor": normal,
        "present views": OneFactorNormal(many, many.exp(), many, present=present),
        "direction": SharedDirection(positive, 3, 2),
        "precision": SharedPrecision(normal, positive),
        "component": shared,
        "coupled": shared.times(many, many.exp()),
    }


EVERY = pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make in (vectors, items) for name in make((2,))]
)


@EVERY
def test_shapes_expand_as_in_torch(make, name):
    original = make((3,))[name]
    expanded, event = original.expand((2, 3)), original.event_shape
    assert type(expanded) is type(original)
    assert event == ((5,) if make is vectors else (3, 2))
    for each, batch in ((original, (3,)), (expanded, (2, 3))):
        assert each.batch_shape == batch and each.event_shape == event
        assert each.event_dim == each.support.event_dim == len(event)
        assert each().shape == (*batch, *event)
        assert each.sample((4, 1)).shape == (4, 1, *batch, *event)
        assert each.mean.shape == (*batch, *event)
        assert each.log_prob(each.sample((4,))).shape == (4, *batch)
        if name in vectors(()) and name != "mixture":
            assert each.entropy().shape == batch
    z = original.sample()
    assert_close(expanded.log_prob(z), original.log_prob(z).expand(2, 3))
    assert expanded._validate_args == original._validate_args
    assert expanded.support.check(expanded.sample()).all()


@pytest.mark.parametrize("name", vectors(()))
def test_pyro_plates_events_and_masks(name):
    def model() -> None:
        with pyro.plate("item", 6, dim=-1):
            pyro.sample("z", vectors(())[name])
            pair = vectors((2,))[name]
            pyro.sample("pair", pair.to_event(1).mask(torch.arange(6) < 2))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (6,)
    pair = trace.nodes["pair"]
    assert pair["value"].shape == (6, 2, 5)
    assert (pair["log_prob"][2:] == 0).all() and (pair["log_prob"][:2] != 0).all()


def test_samples_are_reparameterised_but_for_rejections_and_choices():
    found = {**vectors(()), **items(())}
    without = {name for name, law in found.items() if not law.has_rsample}
    assert without == {"von Mises-Fisher", "direction", "component"}
    loc = direction(3).requires_grad_()
    assert not VonMisesFisher(loc, 2.0)().requires_grad
    assert PowerSpherical(loc, 2.0)().requires_grad


@pytest.mark.parametrize("cls", ON_SPHERE)
def test_broadcasting_reaches_the_batch_of_both_arguments(cls: Around):
    around = cls(uniform(5, 3), torch.ones(2, 1))
    assert around.batch_shape == (2, 3)
    assert around.loc.shape == (2, 3, 5) and around.concentration.shape == (2, 3)


def evaluate(loc: Tensor, kappa: Tensor, z: Tensor) -> Tensor:
    fisher = VonMisesFisher(loc, kappa, validate_args=False)
    power = PowerSpherical(loc, kappa, validate_args=False)
    student = IsotropicStudentT(kappa, loc, 0.3, validate_args=False)
    value = fisher.log_prob(power.rsample()) + power.log_prob(z) + power.entropy()
    return value + student.log_prob(student.rsample()) + kl_divergence(power, fisher)


def test_all_but_rejection_can_be_traced():
    loc, z = uniform(4, 3), uniform(4, 3)
    graph = make_fx(evaluate, tracing_mode="real")(loc, torch.ones(3), z)
    kappa = torch.tensor([0.1, 30.0, 1e6])
    torch.manual_seed(1)
    expected = evaluate(loc, kappa, z)
    torch.manual_seed(1)
    assert_close(graph(loc, kappa, z), expected)


def test_gradient_of_mixture_weights_is_exact_where_that_of_pyro_is_not():
    n, logits = 100_000, torch.zeros(2)
    loc, scale = torch.tensor([[1.5, 1.5], [-1.5, 1.5]]), torch.ones(2, 2)
    share, product = logits.softmax(0), loc.prod(-1)  # E[z_1 z_2 | k]
    exact = share * (product - share @ product)
    line = torch.linspace(-9.0, 9.0, 301)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    weights = logits.clone().requires_grad_()
    density = NormalMixture(weights, loc, scale).log_prob(z).exp()
    (by_quadrature,) = grad((density * z.prod(-1)).sum() * 0.06**2, weights)
    assert_close(by_quadrature, exact)

    each = [part.expand(n, 2, 2) for part in (loc, scale)]
    weights = logits.expand(n, 2).clone().requires_grad_()
    assert_mean(
        grad(NormalMixture(weights, *each).rsample().prod(-1).sum(), weights)[0], exact
    )
    weights = logits.expand(n, 2).clone().requires_grad_()
    z = dist.MixtureOfDiagNormals(*each, weights).rsample()
    (pyro_gradient,) = grad(z.prod(-1).sum(), weights)
    assert (pyro_gradient.mean(0) - exact).abs().min() > 1.0  # the size is 1.125


# Validation is asked for: once torch.compile has run, torch's default is off.
LOC = torch.tensor([0.6, 0.8, 0.0])
CHECKED = {"validate_args": True}

test_bad_arguments_are_refused = refusals(
    *(
        (partial(call, cls), ValueError, message)
        for cls in ON_SPHERE
        for call, message in (
            (lambda c: c(LOC, -1.0, **CHECKED), "parameter concentration"),
            (lambda c: c(2 * LOC, 1.0, **CHECKED), "parameter loc"),
            (lambda c: c(torch.ones(4, 1), 1.0), "expected loc with shape"),
            (
                lambda c: c(torch.eye(4)[:3], torch.ones(4)),
                "expected concentration to broadcast",
            ),
            (lambda c: c(LOC, 1.0, **CHECKED).log_prob(2 * LOC), "within the support"),
            (lambda c: c(LOC, 1.0, **CHECKED).log_prob(LOC[:2]), "event_shape"),
            (
                lambda c: kl_divergence(c(LOC, 1.0), SphericalUniform(4)),
                "same sphere, got dim 3 and 4",
            ),
        )
    ),
    (lambda: SphericalUniform(1), ValueError, "dim as a whole number of at least 2"),
    (
        lambda: IsotropicStudentT(0.0, torch.zeros(2), **CHECKED),
        ValueError,
        "parameter dof",
    ),
    (
        lambda: IsotropicStudentT(1.0, torch.zeros(2), -1.0, **CHECKED),
        ValueError,
        "parameter scale",
    ),
    (
        lambda: IsotropicStudentT(1.0, torch.tensor(0.0)),
        ValueError,
        "expected loc with shape",
    ),
    (
        lambda: IsotropicStudentT(torch.ones(3), torch.zeros(4, 2)),
        ValueError,
        "expected dof and scale to broadcast",
    ),
)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_stereographic_projection_keeps_areas(dim):
    """Its inverse, its Jacobian by autograd, and the uniform density as a Student-t."""
    axis = torch.eye(dim)[0]
    pole = torch.stack([direction(dim), axis, -axis, *uniform(dim, 2)])
    projection, u = Stereographic(pole), torch.randn(5, dim - 1)
    z = projection(u)
    assert_close(z.norm(dim=-1), torch.ones(5))
    assert_close(projection.inv(z), u)
    assert_close(projection(torch.zeros_like(u)), pole)
    each = torch.autograd.functional.jacobian(projection, u)
    log_det = projection.log_abs_det_jacobian(u, z)
    for i in range(5):
        own = each[i, :, i]  # (dim, dim - 1)
        assert_close(torch.linalg.det(own.T @ own).log() / 2, log_det[i])
    shape = np.eye(dim - 1) / (dim - 1)
    student = scipy.stats.multivariate_t(np.zeros(dim - 1), shape, df=dim - 1)
    expected = torch.as_tensor(student.logpdf(u.numpy())).view(5)
    assert_close(log_det - log_area(dim), expected)
