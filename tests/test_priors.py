"""Laws of every prior, over one table, and closed forms of Gaussian and Spherical."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import factors, uneven
from helpers.checks import assert_mean, refusals
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import probssl as ps
from probssl.distributions import SharedPrecision
from probssl.priors import (
    TSNE,
    Components,
    ContentStyle,
    Custom,
    Gaussian,
    ImportanceSampling,
    Independent,
    Mixture,
    Prior,
    Quadrature,
    Spherical,
    StudentT,
    TwoTier,
    VampComponents,
)
from probssl.testing import check_prior
from probssl.testing.densities import samples_follow
from probssl.testing.proposals import fitted

pytestmark = pytest.mark.usefixtures("float64")
VIEWS = range(1, 9)
exact = partial(assert_close, rtol=1e-10, atol=1e-10)


def laplace(dim: int) -> Custom:
    return Custom(lambda y: dist.Laplace(y, 0.3).to_event(1), dim)


# Each of a dimension, and of scales, which have defaults that all differ.
PRIORS: dict[str, Callable[..., Prior]] = {
    "Gaussian": lambda dim, scale=0.6, y_scale=1.7: Gaussian(dim, scale, y_scale),
    "flat Gaussian": lambda dim, scale=0.6: Gaussian(dim, scale, math.inf),
    "independent": Independent,
    "content and style": lambda dim, scale=0.6: ContentStyle(dim - 1, 1, scale),
    "spherical": lambda dim, concentration=5.0: Spherical(dim, concentration),
    "Student": lambda dim, scale=0.6, dof=3.5, y_scale=1.7: StudentT(
        dim, scale, dof, y_scale
    ),
    "flat Student": lambda dim, scale=0.6, dof=3.5: StudentT(dim, scale, dof, math.inf),
    "t-SNE": lambda dim: TSNE(dim, 0.6, 4.5),
    "mixture": lambda dim, scale=0.6: uneven(Mixture, "own", dim, scale=scale),
    "two tiers": lambda dim, scale=0.6, y_scale=1.3: uneven(
        TwoTier, "own", dim, scale=scale, y_scale=y_scale
    ),
    "vamp": lambda dim, scale=0.6: uneven(Mixture, "vamp", dim, scale=scale),
    "vamp in two tiers": lambda dim: uneven(TwoTier, "vamp", dim, scale=0.6),
    "Laplace": laplace,
}
PROPER = [
    name for name in PRIORS if name not in ("flat Gaussian", "flat Student", "t-SNE")
]
SCALED = {
    "Gaussian": {"scale": [0.1, 0.5, 2.0], "y_scale": [0.2, 1.0, 3.0]},
    "flat Gaussian": {"scale": [0.1, 0.5, 2.0]},
    "content and style": {"scale": [0.1, 0.5, 0.9]},
    "spherical": {"concentration": [0.1, 5.0, 80.0]},
    "Student": {
        "scale": [0.1, 0.5, 2.0],
        "dof": [1.0, 4.0, 9.0],
        "y_scale": [0.2, 1.0, 3.0],
    },
    "flat Student": {"scale": [0.1, 0.5, 2.0], "dof": [1.0, 4.0, 9.0]},
    "mixture": {"scale": [0.1, 0.5, 2.0]},
    "two tiers": {"scale": [0.1, 0.5, 2.0], "y_scale": [0.2, 1.0, 3.0]},
    "vamp": {"scale": [0.1, 0.5, 2.0]},
}
EVERY, EVERY_PROPER = (pytest.mark.parametrize("name", n) for n in (PRIORS, PROPER))
EVERY_SCALED = pytest.mark.parametrize("name", SCALED)


def points(prior: Prior, *shape: int) -> Tensor:
    return prior.on_support(torch.randn(*shape, prior.known_dim()))


@pytest.mark.parametrize("name", [n for n in PRIORS if n not in ("Laplace", "t-SNE")])
def test_a_prior_keeps_the_shipped_laws(name):
    check_prior(PRIORS[name](2), draws=5_000)


@EVERY
def test_order_of_views_and_rotation_do_not_matter(name):
    prior, rotation = PRIORS[name](3), torch.linalg.qr(torch.randn(3, 3)).Q
    z = points(prior, 5, 4)
    value = prior.log_prob(z)
    exact(prior.log_prob(z.flip(1)), value)
    if prior.content_dim is not None:  # rotate the content alone
        content = torch.linalg.qr(torch.randn(2, 2)).Q
        rotation = torch.block_diag(content, torch.eye(1))
    if name != "Laplace" and not hasattr(prior, "components"):
        exact(prior.log_prob(z @ rotation), value)


@EVERY
def test_density_and_posterior_of_present_views_are_those_of_so_many(name):
    prior = PRIORS[name](3)
    masks = ["10110", "01111", "01010", *["00100", "00000"] * prior.proper]
    present = torch.tensor([[m == "1" for m in mask] for mask in masks])
    z, y = points(prior, len(masks), 5), points(prior, len(masks))
    close = assert_close if name == "Laplace" else exact
    found = prior.log_prob(z, present)
    for i, mask in enumerate(present):
        if not mask.any():
            assert_close(found[i], torch.tensor(0.0), rtol=0, atol=1e-8)
            continue
        some = z[i : i + 1, mask]
        close(found[i : i + 1], prior.log_prob(some))
        if not isinstance(prior, Independent | Mixture):
            whole, part = prior.posterior_y(z, present), prior.posterior_y(some)
            content = y[..., : prior.content_dim]
            close(whole.log_prob(content)[i : i + 1], part.log_prob(content[i : i + 1]))
        if isinstance(prior, Mixture | TwoTier):
            share = prior.responsibilities(z, present).probs[i : i + 1]
            exact(share, prior.responsibilities(some).probs)


@EVERY_PROPER
def test_absent_views_are_drawn_from_the_conditional(name):
    prior, n = PRIORS[name](2), 2_000 if name == "Laplace" else 20_000
    z, present = points(prior, 3), torch.tensor([True, False, True])
    views = prior(3)

    def draw(n: int) -> Tensor:
        return views.complete(z.expand(n, -1, -1), present.expand(n, -1)).detach()

    drawn = draw(n)
    mean = views.complete_mean(z, present).detach()
    for each in (drawn, mean.unsqueeze(0)):
        assert_close(each[:, present], z[present].expand(len(each), -1, -1))
    assert_mean(drawn[:, 1], mean[1])

    def log_density(other: Tensor) -> Tensor:
        seen = z[present].expand(*other.shape[:-2], -1, -1)
        return prior.log_prob(torch.cat([seen, other], -2)).detach()

    def sample(n: int) -> dict[str, Tensor]:
        return {"absent views": draw(n)[:, None, 1:2]}

    support = prior(1).support
    proposals = fitted(log_density, drawn[:, None, 1:2], support)
    assert not [*samples_follow(log_density, proposals, sample, n, support)]


@EVERY
def test_kernel_takes_batches_and_pmi_is_its_ratio_to_the_marginal(name):
    prior = PRIORS[name](3)
    a, b = points(prior, 4), points(prior, 5)
    kernel = prior.log_kernel(a, b)
    exact(prior.log_kernel(a.expand(3, 2, -1, -1), b), kernel.expand(3, 2, -1, -1))
    if prior.proper:
        exact(prior.pmi(a, b), kernel - prior.log_prob(b[:, None]))
        exact(Prior.log_kernel(prior, a, b), kernel)
    with pytest.raises(TypeError, match="log_kernel"):
        Prior.log_kernel(prior, a, b, plug_in=True)


@pytest.mark.parametrize(
    "name", ["Gaussian", "independent", "content and style", "Student"]
)
def test_entropy_and_mutual_information_are_means_of_log_densities(name):
    prior = PRIORS[name](3)
    views = prior(2)
    z = views.rsample((40_000,))
    assert_mean(-views.log_prob(z), views.entropy())
    assert_mean(prior.pmi(z[:, :1], z[:, 1:]).flatten(), prior.mutual_information())
    present = torch.tensor([[True, False, True], [True, True, True]])
    plain = torch.stack([prior(2).entropy(), prior(3).entropy()])
    exact(prior(3, present=present).entropy(), plain)


@EVERY_PROPER
def test_samples_have_the_stated_mean_and_variance(name):
    prior = PRIORS[name](2, **({"dof": 9.0} if name == "Student" else {}))
    views = prior(3)
    draws = [views.sample((100_000,))]
    if views.has_rsample:
        draws += [views.rsample((100_000,))]
    for z in draws:
        if name not in ("Laplace", "spherical"):
            assert_mean((z - views.mean).square(), views.variance)
        if name != "Laplace":
            assert_mean(z, views.mean)
    assert views.expand((5,)).sample((2,)).shape == (2, 5, 3, 2)


@EVERY_SCALED
def test_drawn_hyper_parameters_become_the_batch_shape(name):
    build, values = PRIORS[name], SCALED[name]
    prior, drawn = (
        build(2),
        {k: torch.tensor(v).unsqueeze(1) for k, v in values.items()},
    )
    z, rows = points(prior, 5, 3), zip(*values.values(), strict=True)
    each = [build(2, **dict(zip(values, row, strict=True))) for row in rows]
    plain = torch.stack([one.log_prob(z) for one in each])
    many = prior(3, **drawn)
    assert many.batch_shape == (3, 1) and many.event_shape == (3, 2)
    wide = many.expand((3, 5))
    exact(many.log_prob(z), plain)
    exact(wide.log_prob(z), plain)
    exact(wide.log_prob(z[0]), plain[:, :1].expand(3, 5))
    if prior.proper:
        assert wide.sample((4,)).shape == (4, 3, 5, 3, 2)
    present = torch.rand(5, 3) < 0.5
    assert prior(3, present=present, **drawn).batch_shape == (3, 5)


@EVERY_SCALED
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_exact(name, masked):
    prior = PRIORS[name](2)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    given = {"present": mask} if masked else {}
    scales = [torch.tensor(v[1], requires_grad=True) for v in SCALED[name].values()]

    def value(z: Tensor, *values: Tensor) -> Tensor:
        drawn = dict(zip(SCALED[name], values, strict=True))
        return prior(3, **given, **drawn).log_prob(prior.on_support(z))

    z = torch.randn(2, 3, 2, requires_grad=True)
    assert gradcheck(value, (z, *scales))
    assert gradgradcheck(value, (z, *scales))
    assert gradcheck(lambda z: prior.log_kernel(*prior.on_support(z).unbind(0)), z)


@pytest.mark.parametrize("name", [n for n in PRIORS if n != "Laplace"])  # it is slow
def test_no_number_is_read_while_it_runs(name):
    prior, present = PRIORS[name](2), torch.rand(4, 3) < 0.5
    present[:, :2] = True

    def value(z: Tensor) -> Tensor:
        z = prior.on_support(z)
        total = prior.log_prob(z).sum() + prior.log_prob(z, present).sum()
        total = total + prior.log_kernel(z[0], z[1]).sum()
        views = prior(3).complete(z, present)
        return total + views.sum() + prior(3).complete_mean(z, present).sum()

    trace = make_fx(value, tracing_mode="fake", _allow_non_fake_inputs=True)
    assert trace(torch.randn(4, 3, 2))(torch.randn(4, 3, 2)).isfinite()


@pytest.mark.parametrize("guide", [ps.guides.DiagonalGaussian, ps.guides.Point])
@pytest.mark.parametrize("family", [Gaussian, StudentT, Mixture, TwoTier])
def test_a_prior_with_a_random_scale_serves_in_a_joint(family, guide):
    prior = family(2, scale=dist.LogNormal(-1.0, 0.5))
    encoder, decoder = ps.nn.MLPEncoder((3,), 2), ps.nn.MLPDecoder(2, (3,))
    likelihood = ps.likelihoods.Gaussian(0.5)
    joint = ps.Joint(prior, likelihood, encoder, decoder, guide=guide)
    joint.population = torch.tensor(8)
    masked = guide is ps.guides.DiagonalGaussian
    present = torch.rand(8, 3) < 0.7 if masked else None
    batch = ps.Batch(torch.randn(8, 3, 3), present=present)
    value = sum(ps.bounds.IWAE(4)(joint, batch))
    value.backward()
    assert value.isfinite() and all(p.grad.isfinite().all() for p in prior.parameters())


@pytest.mark.parametrize(
    "name", ["Gaussian", "content and style", "Student", "two tiers"]
)
def test_single_precision_is_right_for_nearly_equal_views(name):
    z = torch.randn(100, 1, 8).expand(-1, 2, -1) + 1e-4 * torch.randn(100, 2, 8)
    z, prior = z.float(), PRIORS[name](8, scale=1e-4)
    if name == "two tiers":
        prior.components.float()
    plain, single = prior(2).log_prob(z.double()), prior.float().log_prob(z)
    assert single.dtype == torch.float32
    # Relative to values of some tens, about five units of float32's rounding.
    assert_close(single.double(), plain.double(), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("name", [n for n in PRIORS if n != "Laplace"])
def test_a_prior_comes_back_from_a_folder(name, tmp_path):
    prior = PRIORS[name](2)
    ps.save(prior, tmp_path)
    z, again = points(prior, 4, 3), ps.load(tmp_path)
    assert type(again) is type(prior)
    assert_close(again.log_prob(z), prior.log_prob(z), rtol=0, atol=0)


@EVERY
def test_gauge_dimension_and_repr(name):
    prior = PRIORS[name](3)
    uniform = not prior.proper or name == "spherical"
    assert prior.gauge(3) == (2 if uniform else 3)
    shown = repr(prior)
    assert shown.startswith(f"{type(prior).__name__}(dim=3") and "\n" not in shown
    if name in ("Gaussian", "flat Gaussian", "independent", "spherical", "Student"):
        z = points(prior, 4, 2)
        exact(PRIORS[name](None).log_prob(z), prior.log_prob(z))


def test_a_repr_shows_what_a_prior_is_built_of():
    assert repr(Gaussian(2, ps.learned(0.3), 1.5)) == (
        "Gaussian(dim=2, scale=0.3 (learned, from 0.3), y_scale=1.5)"
    )
    assert "y_scale=inf" in repr(Gaussian(2, 0.3, math.inf))
    assert "integral=Quadrature(24, 8, 3)" in repr(laplace(2))


LEARNED, RANDOM = ps.learned(1.0), dist.LogNormal(0.0, 1.0)
OWN = Components(2, 3, own_scales=True)


def without(method: str) -> Callable[[Tensor], dist.TorchDistribution]:
    """A Laplace conditional that lacks one of its methods."""

    def conditional(y: Tensor) -> dist.TorchDistribution:
        def missing(*_: object) -> Tensor:
            raise NotImplementedError

        kind = type("Laplace", (dist.Independent,), {method: missing})
        return kind(dist.Laplace(y, 0.3), 1)

    return conditional


def hidden() -> Callable[[Tensor], dist.TorchDistribution]:
    scale = nn.Parameter(torch.tensor(0.3))
    return lambda y: dist.Laplace(y, scale).to_event(1)


def custom(conditional: Any, dim: Any = 3, **options: Any) -> Custom:
    return Custom(conditional, dim, **options)


def of_laplace(y: Tensor) -> dist.TorchDistribution:
    return dist.Laplace(y, 0.3).to_event(1)


test_bad_arguments_are_refused = refusals(
    *(
        (partial(family, 2, scale=scale), ValueError, "scale to be a positive.*learned")
        for family in (Gaussian, StudentT, Mixture, TwoTier)
        for scale in (-1.0, math.nan, "wide")
    ),
    (lambda: Gaussian(0), ValueError, "dim as a whole number of at least 1"),
    (lambda: Gaussian(2.5), TypeError, "dim as a whole number"),
    (lambda: Spherical(1), ValueError, "dim as a whole number of at least 2"),
    (lambda: Spherical(None).on_support(torch.ones(3, 1)), ValueError, "more outputs"),
    (lambda: Gaussian(2, 1.0, 0.0), ValueError, "expected y_scale to be a positive"),
    (lambda: ContentStyle(0, 2), ValueError, "content as a .* priors.Independent"),
    (lambda: ContentStyle(2, -1), ValueError, "style as a whole number of at least 0"),
    (lambda: ContentStyle(1, 1, 1.0), ValueError, "scale to be a number between 0 and"),
    (lambda: ContentStyle(1, 1, LEARNED), ValueError, "between 0 and 1, got 1.0"),
    (lambda: ContentStyle(1, 1, RANDOM), ValueError, "over one number between 0 and 1"),
    (lambda: ContentStyle(3, 1, (0.1,) * 4), ValueError, "one number, or 3 of them"),
    (lambda: ContentStyle(3, 1).given(torch.ones(2)), ValueError, "y with 3 dim"),
    (lambda: Gaussian(2, LEARNED, math.inf), ValueError, "y_scale"),
    (lambda: Gaussian(2, LEARNED, LEARNED), ValueError, "at most one free scale"),
    (lambda: StudentT(2, 1.0, math.inf), ValueError, "expected dof to be a positive"),
    (lambda: StudentT(2, 1, 5, 0.0), ValueError, "expected y_scale to be a positive"),
    (lambda: StudentT(2, LEARNED, 5.0, math.inf), ValueError, "y_scale"),
    (lambda: StudentT(2, LEARNED, 5.0, LEARNED), ValueError, "at most one free scale"),
    (
        lambda: SharedPrecision(
            StudentT(2)(2).normal, torch.tensor(-1.0), validate_args=True
        ),
        ValueError,
        "parameter dof",
    ),
    (lambda: Gaussian(3).log_prob(torch.zeros(4, 2, 5)), ValueError, "z with dim 3"),
    (lambda: Gaussian(None)(2), ValueError, "known dimension"),
    (lambda: Mixture(None, 3), TypeError, "dim as a whole number"),
    (
        lambda: Mixture(2).log_kernel(torch.zeros(1, 2), torch.zeros(1, 2), True),
        TypeError,
        "content is a component",
    ),
    (lambda: Mixture(2, 0), ValueError, "components as a whole number of at least 1"),
    (lambda: TwoTier(2, 2.5), TypeError, "components as a whole number"),
    (lambda: Mixture(2, nn.Linear(2, 2)), TypeError, "components as a whole"),
    (lambda: Mixture(3, Components(2, 4)), ValueError, "dim=3 as the prior is, got d"),
    (
        lambda: Mixture(3, VampComponents(factors(2), 4, (3,)))(2),
        ValueError,
        r"means of shape \(4, 3\).*got \(4, 2\)",
    ),
    (lambda: TwoTier(2, 3, y_scale=math.inf), ValueError, "y_scale to be a positive"),
    (lambda: TwoTier(2, 3, LEARNED, LEARNED), ValueError, "at most one free scale"),
    (lambda: Mixture(2, OWN, LEARNED), ValueError, "expected a fixed scale beside"),
    (lambda: TwoTier(2, OWN, LEARNED), ValueError, "expected a fixed scale beside"),
    (lambda: TwoTier(2, OWN, y_scale=LEARNED), ValueError, "a fixed y_scale beside"),
    (lambda: Components(2, 3, spread=0.0), ValueError, "spread as a positive"),
    (
        lambda: Components(2, 0),
        ValueError,
        "components as a whole number of at least 1",
    ),
    (lambda: Components(None, 3), TypeError, "dim as a whole number"),
    (lambda: Components.at(torch.zeros(3)), ValueError, r"shape \(3,\) with 0 numbers"),
    (lambda: Components.at(torch.full((3, 2), math.nan)), ValueError, "with 6 numbers"),
    (lambda: VampComponents(factors(2), 0, (3,)), ValueError, "components as a"),
    (lambda: custom(lambda y: y), TypeError, "got Tensor"),
    (lambda: custom(0.3), TypeError, "conditional as a function, got 0.3"),
    (lambda: custom(lambda y: dist.Laplace(y, 0.3)), ValueError, "to_event"),
    (
        lambda: custom(lambda y: dist.Laplace(y[..., :2], 0.3).to_event(1)),
        ValueError,
        r"got event shape \(2,\)",
    ),
    (
        lambda: custom(lambda y: dist.Laplace(torch.zeros(3), 0.3).to_event(1)),
        ValueError,
        r"expected conditional\(y\) with batch shape \(3, 2\)",
    ),
    (lambda: custom(without("log_prob")), TypeError, "Laplace without; write"),
    (lambda: custom(without("sample")), TypeError, "distribution with sample"),
    (lambda: custom(of_laplace, None), TypeError, "dim as a whole number"),
    (lambda: custom(of_laplace, 0), ValueError, "at least 1"),
    (lambda: custom(hidden()), ValueError, "module for conditional"),
    (
        lambda: custom(of_laplace, y_prior=dist.Normal(0.0, 1.0)),
        ValueError,
        r"write .expand\(\[3\]\)",
    ),
    (lambda: custom(of_laplace, y_prior=2.0), TypeError, "Pyro distribution.*2.0"),
    (
        lambda: custom(of_laplace, y_prior=dist.Poisson(1.0).expand([3]).to_event(1)),
        ValueError,
        "discrete",
    ),
    (lambda: Quadrature(nodes=2), ValueError, "nodes as a whole number of at least 4"),
    (lambda: Quadrature(panels=0), ValueError, "panels as a whole number"),
    (lambda: ImportanceSampling(5), ValueError, "samples as a .* at least 20"),
    (lambda: ImportanceSampling(least=0.5), ValueError, "least as a finite number of"),
    (lambda: laplace(3).log_prob(torch.zeros(2, 2, 4)), ValueError, "z with dim 3"),
    (
        lambda: laplace(3).effective_sample_size(torch.zeros(2, 2, 3)),
        TypeError,
        "quadrature_error",
    ),
)


@pytest.mark.parametrize("name", ["flat Gaussian", "flat Student"])
@pytest.mark.parametrize(
    "misuse",
    [
        lambda prior: prior(2).sample(),
        lambda prior: prior(2).entropy(),
        lambda prior: prior(1),
        lambda prior: prior.pmi(torch.zeros(1, 2), torch.zeros(1, 2)),
        lambda prior: prior.mutual_information(),
    ],
)
def test_flat_content_is_refused_where_it_cannot_serve(name, misuse):
    with pytest.raises(ValueError, match="y_scale"):
        misuse(PRIORS[name](2))


def dense(views: int, scale: float, y_scale: float) -> MultivariateNormal:
    covariance = scale**2 * torch.eye(views) + y_scale**2 * torch.ones(views, views)
    return MultivariateNormal(torch.zeros(views), covariance)


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("views", VIEWS)
def test_gaussian_equals_the_dense_normal(views, dim):
    z = torch.randn(5, views, dim)
    prior = Gaussian(dim, 0.3, 1.7)
    plain = dense(views, 0.3, 1.7).log_prob(z.mT).sum(-1)
    assert_close(prior.log_prob(z), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("views", [2, 3, 8])
def test_flat_prior_is_the_limit_of_wide_ones_at_second_order(views):
    z, flat = torch.randn(7, views, 3), Gaussian(3, 0.3, math.inf)
    # p(y) of density 1 instead of N(0, t): add log of the density at zero.
    gap = [
        Gaussian(3, 0.3, t).log_prob(z)
        + 1.5 * math.log(2 * math.pi * t**2)
        - flat.log_prob(z)
        for t in (1e2, 1e3)
    ]
    assert_close(gap[0] / gap[1], torch.full((7,), 100.0), rtol=1e-3, atol=0)


def test_independent_views_are_standard_normal():
    z, prior = torch.randn(5, 3, 4), Independent(4)
    assert prior.mutual_information() == 0
    assert_close(prior.log_prob(z), dist.Normal(0.0, 1.0).log_prob(z).sum((1, 2)))
    assert_close(prior.pmi(z, z), torch.zeros(5, 3, 3))
    assert_close(prior.log_kernel(z, z)[:, 1], prior.log_prob(z.unsqueeze(-2)))


@pytest.mark.parametrize(
    ("prior", "learned", "random"),
    [
        (Gaussian(2, LEARNED), ["scale.log"], []),
        (ContentStyle(1, 1, ps.learned(0.5)), ["scale.log"], []),
        (StudentT(2, LEARNED, LEARNED), ["scale.log", "dof.log"], []),
        (StudentT(2, dof=RANDOM), ["dof.loc", "dof.log_scale"], ["dof"]),
        (TwoTier(2, 3, LEARNED), ["logits", "components.loc", "scale.log"], []),
        (Mixture(2, 3, learn_weights=False), ["components.loc"], []),
    ],
)
def test_what_is_learned_has_a_name_and_a_gradient(prior, learned, random):
    assert {name for name, _ in prior.named_parameters()} == set(learned)
    assert [hyper.name for hyper in prior.random()] == random
    if not random:
        prior.float().log_prob(torch.randn(6, 2, 2).float()).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in prior.parameters())
    assert not isinstance(prior, Mixture) or "logits" in prior.state_dict()


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("dim", [2, 3, 10, 64, 512, 4_096])
@pytest.mark.parametrize("exponent", range(-3, 9))
def test_spherical_in_float32_is_right_for_nearly_equal_views(exponent, dim, views):
    concentration = 10.0**exponent
    prior, spread = Spherical(dim, concentration), max(1.0, concentration) ** -0.5
    centre = prior.on_support(torch.randn(50, 1, dim))
    z = prior.on_support(centre + spread * torch.randn(50, views, dim)).float()
    exact, single = prior.log_prob(z.double()), prior.float().log_prob(z)
    # 1e-4 nats; thousands of nats have no such digits: a few units in the last place.
    least = 8 * torch.finfo(torch.float32).eps * exact.abs()
    assert ((single - exact).abs() <= least.clamp(min=1e-4)).all()


@pytest.mark.parametrize("dim", [2, 10, 512])
@pytest.mark.parametrize("exponent", range(-3, 9, 2))
def test_the_kernel_of_a_sphere_is_right_in_float32(exponent, dim):
    """Value and gradient, near and far points; `log_prob` says what is right."""
    concentration = 10.0**exponent
    prior, spread = Spherical(dim, concentration), max(1.0, concentration) ** -0.5
    a = prior.on_support(torch.randn(40, dim)).float()
    b = prior.on_support(a + spread * torch.randn(40, dim)).float()
    found = []
    for dtype in (torch.float32, torch.float64):
        prior, x, y = prior.to(dtype), a.to(dtype).requires_grad_(), b.to(dtype)
        kernel = prior.log_kernel(x, y)
        (slope,) = torch.autograd.grad(kernel.diagonal().sum(), x)
        found.append((kernel.detach(), slope))
    (single, slope), (exact, known) = found
    least = 8 * torch.finfo(torch.float32).eps * exact.abs()
    assert ((single - exact).abs() <= least.clamp(min=1e-5)).all()
    rounding = 100 * torch.finfo(torch.float32).eps * concentration
    assert (slope - known).abs().max() <= 1e-5 * known.abs().max() + rounding
    pairs = prior.log_prob(torch.stack([a, b], 1).double())
    assert_close(exact.diagonal(), pairs + ps.special.log_area(dim), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dim, views", [(2, 2), (3, 2), (5, 4)])
def test_spherical_tends_to_the_gaussian_of_its_tangent_at_first_order(dim, views):
    """A flat content in the plane, of density 1 over the area of the sphere."""
    plane, gaps = torch.randn(views, dim - 1), []
    for concentration in (1e4, 1e5):
        step = plane / math.sqrt(concentration)
        angle = step.norm(dim=-1, keepdim=True)
        z = torch.cat([angle.cos(), angle.sin() / angle * step], -1)
        flat = Gaussian(None, concentration**-0.5, math.inf).log_prob(step)
        density = Spherical(dim, concentration).log_prob(z)
        gaps.append(density - flat + ps.special.log_area(dim))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.02)  # O(1 / κ)


def test_spherical_has_a_finite_gradient_where_the_views_cancel():
    z = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    Spherical(3, 5.0).log_prob(z).backward()
    assert z.grad.isfinite().all()
    z.grad = None
    Spherical(3, 5.0).log_kernel(z[:1], z[1:]).sum().backward()
    assert z.grad.isfinite().all()
