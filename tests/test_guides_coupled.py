"""Mixture priors times normal factors: densities, evidences and pathwise gradients."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue, linear
from helpers.checks import assert_mean, refusals
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

import probssl as ps
from probssl.bounds import ELBO, log_weights
from probssl.distributions import (
    CoupledComponents,
    NormalMixture,
    OneFactorNormal,
    SharedComponent,
)
from probssl.priors import Components, Gaussian, Mixture, Prior, TwoTier
from probssl.terms import Batch
from probssl.testing import check_objective

pytestmark = pytest.mark.usefixtures("float64")
FLOOR = 1e-4
DIM, EVENT, CLUSTERS, NOISE, SCALE, Y_SCALE = 2, 5, 3, 0.4, 0.6, 0.8
exact = partial(assert_close, rtol=1e-10, atol=1e-10)


def mixture(dim: int = DIM) -> Mixture:
    """With weights and scales that all differ."""
    prior = Mixture(dim, Components(dim, CLUSTERS, own_scales=True), SCALE)
    nn.init.normal_(prior.logits)
    nn.init.normal_(prior.components.log_scale, std=0.4)
    return prior


def two_tier(dim: int = DIM) -> TwoTier:
    components = Components(dim, CLUSTERS, own_scales=True)
    prior = TwoTier(dim, components, SCALE, Y_SCALE)
    nn.init.normal_(prior.logits)
    nn.init.normal_(components.log_scale, std=0.4)
    return prior


class OneScale(Components):
    """Means, and a single relative scale for all components."""

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.loc, torch.ones_like(self.loc[:1, :1])


def narrow(dim: int = DIM) -> Mixture:
    """Clusters of one scale: views by way of the statistic, y without any spread."""
    prior = Mixture(dim, OneScale(dim, CLUSTERS), SCALE)
    nn.init.normal_(prior.logits)
    return prior


PRIORS = {"mixture": mixture, "two tiers": two_tier, "one scale": narrow}
ALL = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())
BOTH = pytest.mark.parametrize(
    "guide", [ps.guides.Coupled, ps.guides.CoupledLikelihoods]
)


DIVIDED = pytest.mark.parametrize("divided", [False, True])


def below(prior: SharedComponent | OneFactorNormal, divided: bool) -> Normal | None:
    """The normal with the moments of one view, wider than factors of scale below it."""
    return Normal(prior.mean, prior.variance.sqrt()) if divided else None


def log_factors(z: Tensor, loc: Tensor, scale: Tensor, over: Normal | None) -> Tensor:
    value = Normal(loc, scale).log_prob(z)
    return value if over is None else value - over.log_prob(z)


def mask(items: int, views: int) -> Tensor:
    """Views present at random; at least one item has none."""
    present = torch.rand(items, views) < 0.6
    present[0] = False
    return present


@ALL
@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
@DIVIDED
def test_product_with_factors_is_the_mixture_of_the_products(
    make, views, masked, divided
):
    prior = make()(views)
    over = below(prior, divided)
    loc, scale = torch.randn(6, views, DIM), 0.6 * torch.rand(6, views, DIM) + 0.1
    present = mask(6, views) if masked else None
    q = prior.times(loc, scale, present, over=over)
    z = torch.randn(7, 6, views, DIM)
    seen = 1.0 if present is None else present.unsqueeze(-1)
    factors = (seen * log_factors(z, loc, scale, over)).sum((-2, -1))
    # Proportional to prior times factors,
    ratio = prior.log_prob(z) + factors - q.log_prob(z)
    exact(ratio, q.log_evidence.expand(7, 6))
    # and normalised: a mixture of products, each a normal.
    each = q.each().log_prob(z.unsqueeze(-3))
    exact(q.log_prob(z), (q.component.logits + each).logsumexp(-1))


@ALL
@DIVIDED
def test_evidence_is_the_mean_of_the_factors_under_the_prior(make, divided):
    prior, n, present = make()(3), 100_000, mask(4, 3)
    over = below(prior, divided)
    loc, scale = torch.randn(4, 3, DIM), 0.2 * torch.rand(4, 3, DIM) + 0.5
    z = prior.expand((4,)).sample((n,))
    each = present.unsqueeze(-1) * log_factors(z, loc, scale, over)
    q = prior.times(loc, scale, present, over=over)
    assert_mean((each.sum((-2, -1)) - q.log_evidence).exp(), torch.ones(4))


@ALL
@pytest.mark.parametrize("masked", [False, True])
@DIVIDED
def test_samples_follow_the_product(make, masked, divided):
    prior, n = make()(3), 50_000
    loc, scale = torch.randn(4, 3, DIM), 0.5 * torch.rand(4, 3, DIM) + 0.2
    present = mask(4, 3) if masked else None
    q = prior.times(loc, scale, present, over=below(prior, divided))
    z = q.rsample((n,)).detach()
    assert_mean(z, q.mean)
    assert_mean((z - q.mean).square(), q.variance)
    # Together: E cos(t z), of which each component has a closed form.
    t, each = torch.randn(3, DIM), q.each()
    square = (t * each.scale).square().sum((-2, -1))
    square = square + (t * each.loading).sum(-2).square().sum(-1)
    cosine = (-square / 2).exp() * (t * each.loc).sum((-2, -1)).cos()
    assert_mean((t * z).sum((-2, -1)).cos(), (q.component.probs * cosine).sum(-1))


@pytest.mark.parametrize("masked", [False, True])
@DIVIDED
def test_one_component_at_the_origin_is_the_gaussian_product(masked, divided):
    one = TwoTier(DIM, 1, SCALE, Y_SCALE)
    nn.init.zeros_(one.components.loc)
    loc, scale = torch.randn(4, 3, DIM), 0.6 * torch.rand(4, 3, DIM) + 0.2
    present, gaussian = mask(4, 3) if masked else None, Gaussian(DIM, SCALE, Y_SCALE)(3)
    over = below(gaussian, divided)
    left = one(3).times(loc, scale, present, over=over)
    right = gaussian.times(loc, scale, present, over=over)
    z = left.rsample((50_000,)).detach()
    exact(left.log_prob(z), right.log_prob(z))
    exact(left.mean, right.mean)
    exact(left.variance, right.variance)
    assert_mean((z[..., 0, :] - left.mean[:, 0]).square(), right.variance[:, 0])
    product = (z[..., 0, :] - left.mean[:, 0]) * (z[..., 1, :] - left.mean[:, 1])
    assert_mean(product, right.loading[:, 0] * right.loading[:, 1])


@pytest.mark.parametrize("scale", [0.15, 1.0, 10.0])
@pytest.mark.parametrize("r", [1e-2, 5e-4, 1.1e-4])
@pytest.mark.parametrize("masked", [False, True])
def test_product_with_sharp_factors_is_that_of_float64(scale, r, masked):
    prior = Gaussian(DIM, scale)(2)
    loc = prior.sample((50,)).float()
    present = mask(50, 2) if masked else None
    q, narrow = (
        Gaussian(DIM, scale)
        .to(dtype)(2)
        .times(loc.to(dtype), torch.full_like(loc, r, dtype=dtype), present)
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.loc.dtype == torch.float32
    for name in ("loc", "scale", "loading"):
        left, right = getattr(narrow, name).double(), getattr(q, name)
        if name == "loc":  # rounded at the size of z
            assert ((left - right).abs() <= 1e-6 * (1 + right.abs() + scale)).all()
        else:
            assert_close(left, right, rtol=1e-5, atol=0)
    # An independent reference: the dense normal of precision Λ + diag(1 / r²).
    if present is None:
        cov = scale**2 * torch.eye(2) + torch.ones(2, 2)
        dense = (cov.inverse() + torch.eye(2) / r**2).inverse()
        found = narrow.scale.double().square().mT.diag_embed()
        u = narrow.loading.double().mT
        found = found + u.unsqueeze(-1) * u.unsqueeze(-2)
        assert_close(found, dense.expand_as(found), rtol=1e-5, atol=1e-5 * r**2)


def linear_gaussian(
    prior: Prior, guide: type[nn.Module] = ps.guides.Coupled
) -> ps.Joint:
    return linear.linear_gaussian(prior, EVENT, NOISE, guide=guide)


def evidence(joint: ps.Joint, x: Tensor) -> Tensor:
    """Of one item, all of whose views (view, event) are present."""
    if not len(x):
        return torch.zeros(())
    views, prior = len(x), joint.prior(len(x))
    decoder = torch.kron(torch.eye(views), joint.decoder.weight.detach().contiguous())
    each = []
    for k in range(CLUSTERS):
        scale, y_scale = (
            part[k % len(part)].square() for part in (prior.scale, prior.y_scale)
        )
        cov = torch.kron(
            scale * torch.eye(views) + y_scale * torch.ones(views, views),
            torch.eye(DIM),
        )
        cov = decoder @ cov @ decoder.T + NOISE**2 * torch.eye(views * EVENT)
        loc = decoder @ prior.loc[k].repeat(views)
        each.append(MultivariateNormal(loc, cov).log_prob(x.flatten()))
    return (prior.logits.log_softmax(-1) + torch.stack(each)).logsumexp(-1)


@ALL
@BOTH
@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_elbo_is_the_evidence_of_mixture_priors(make, views, guide):
    joint, x = linear_gaussian(make(), guide), torch.randn(6, views, EVENT)
    value = log_weights(joint, Batch(x), particles=3).local()
    exact(value, torch.stack([evidence(joint, item) for item in x]).expand(3, -1))


@ALL
@BOTH
def test_elbo_is_the_evidence_of_the_present_views(make, guide):
    joint, x = linear_gaussian(make(), guide), torch.randn(8, 4, EVENT)
    present = mask(8, 4)
    value = log_weights(joint, Batch(x, present=present), particles=3).local()
    plain = [evidence(joint, x[i, present[i]]) for i in range(8)]
    exact(value, torch.stack(plain).expand(3, -1))


@ALL
def test_drawn_scales_give_the_product_of_each(make):
    prior, present = make(), mask(4, 3)
    loc, scale = torch.randn(4, 3, DIM), torch.rand(4, 3, DIM) + 0.2
    drawn = torch.tensor([[0.4], [0.9]])
    q = prior(3, scale=drawn).times(loc, scale, present)
    z = q.rsample((5,))
    assert q.batch_shape == (2, 4) and z.shape == (5, 2, 4, 3, DIM)
    for row, number in enumerate(drawn.squeeze(-1)):
        alone = prior(3, scale=number).times(loc, scale, present)
        exact(q.log_prob(z)[:, row], alone.log_prob(z[:, row]))
        exact(q.mean[row], alone.mean)


def test_a_random_scale_goes_through_the_bound():
    prior = TwoTier(DIM, CLUSTERS, scale=dist.LogNormal(-1.0, 0.5), y_scale=Y_SCALE)
    joint = linear_gaussian(prior)
    joint.population = torch.tensor(100.0)
    value = sum(ELBO(4)(joint, Batch(torch.randn(6, 2, EVENT))))
    grads = torch.autograd.grad(value, list(prior.parameters()))
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


@pytest.mark.parametrize(
    "dtype, apart, rtol",
    [(torch.float64, 1.0, 1e-9), *((torch.float32, a, 3e-4) for a in (1, 8, 200))],
)
def test_every_sample_in_one_dimension_has_the_closed_form_gradient(dtype, apart, rtol):
    """In one dimension there is one field only, dz = -dF / q(z)."""
    n, loc = 20_000, torch.tensor([-1.0, 0.3, 1.5]) * apart
    logits, scale = torch.tensor([0.2, -1.0, 0.7]), torch.tensor([0.5, 0.9, 0.7])
    parameters = (logits, loc.unsqueeze(-1), scale.unsqueeze(-1))
    each = [part.to(dtype).expand(n, *part.shape).clone() for part in parameters]
    each = [part.requires_grad_() for part in each]
    z = NormalMixture(*each).rsample()
    grads = torch.autograd.grad(z.sum(), each)

    z = z.detach().double()
    noise = (z - loc) / scale
    log_share = logits.log_softmax(-1)
    density = (log_share - 0.5 * noise.square()).exp() / scale / math.sqrt(2 * math.pi)
    total = density.sum(-1, keepdim=True)
    below, above = torch.special.ndtr(noise), torch.special.ndtr(-noise)
    weight, side = log_share.exp(), z < (log_share.exp() * loc).sum()
    change = torch.where(
        side,
        below - (weight * below).sum(-1, keepdim=True),
        (weight * above).sum(-1, keepdim=True) - above,
    )
    share = density / total
    plain = (-weight * change / total, share, share * noise)
    for grad, expected in zip(grads, plain, strict=True):
        assert grad.isfinite().all()
        expected = expected.view_as(grad)
        close = (grad - expected).abs() <= rtol * (expected.abs() + 1e-2)
        assert close.all()


@ALL
@DIVIDED
def test_pathwise_gradient_is_that_of_the_expectation(make, divided):
    """In two views of one dimension, against the trapezoidal rule."""
    prior = make(1)(2)
    parts = {
        "logits": prior.logits,
        "loc": prior.loc,
        "scale": prior.scale,
        "y_scale": prior.y_scale,
        "m": torch.tensor([[0.5], [-1.2]]),
        "r": torch.tensor([[1.1], [0.7]]),
    }
    parts = {name: part.detach().clone() for name, part in parts.items()}
    held = {} if parts["y_scale"].any() else {"y_scale": parts.pop("y_scale")}
    n = 100_000

    def product(values: list[Tensor]) -> CoupledComponents:
        p = dict(zip(parts, values, strict=True)) | held
        scales = p["scale"], p["y_scale"]
        views = SharedComponent(
            p["logits"], p["loc"], *scales, views=2, validate_args=False
        )
        if not divided:
            return views.times(p["m"], p["r"])
        return views.times(p["m"], p["r"] / 2, over=below(views, True))

    def value(z: Tensor) -> Tensor:
        return (z[..., 0, 0] * z[..., 1, 0]).sin() + z[..., 0, 0].tanh()

    line = torch.linspace(-12.0, 12.0, 601)
    nodes = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).unsqueeze(-1)
    single = [part.clone().requires_grad_() for part in parts.values()]
    density = product(single).log_prob(nodes).exp() * 0.04**2
    exact(density.sum(), torch.ones(()))
    expected = torch.autograd.grad((density * value(nodes)).sum(), single)

    many = [p.expand(n, *p.shape).clone().requires_grad_() for p in parts.values()]
    grads = torch.autograd.grad(value(product(many).rsample()).sum(), many)
    for grad, plain in zip(grads, expected, strict=True):
        assert_mean(grad, plain)


def test_pathwise_gradient_of_a_mixture_in_three_dimensions():
    n = 100_000
    parts = [torch.randn(3), torch.randn(3, 3), torch.rand(3, 3) + 0.4]

    def value(z: Tensor) -> Tensor:
        return (z[..., 0] * z[..., 1]).sin() + z[..., 2].square() * z[..., 0].cos()

    x, w = map(torch.tensor, np.polynomial.hermite_e.hermegauss(32))
    grid = torch.stack(torch.meshgrid(x, x, x, indexing="ij"), -1)
    weights = torch.einsum("i,j,k->ijk", w, w, w) / w.sum() ** 3
    single = [part.clone().requires_grad_() for part in parts]
    logits, loc, scale = single
    z = loc[:, None, None, None] + scale[:, None, None, None] * grid
    each = (weights * value(z)).sum((1, 2, 3))
    integral = (logits.softmax(-1) * each).sum()
    expected = torch.autograd.grad(integral, single)

    many = [p.expand(n, *p.shape).clone().requires_grad_() for p in parts]
    z = NormalMixture(*many).rsample()
    grads = torch.autograd.grad(value(z).sum(), many)
    for grad, plain in zip(grads, expected, strict=True):
        assert_mean(grad, plain)
    q = NormalMixture(*parts)
    assert_mean(z.detach(), q.mean)
    assert_mean((z.detach() - q.mean).square(), q.variance)


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_normal_mixture_is_the_mixture_of_its_normals(dim):
    logits, loc = torch.randn(4), torch.randn(5, 4, dim)
    scale = torch.rand(5, 4, 1) + 0.1
    q, z = NormalMixture(logits, loc, scale), torch.randn(7, 5, dim)
    plain = dist.MixtureSameFamily(
        dist.Categorical(logits=logits.expand(5, 4)),
        dist.Normal(loc, scale.expand_as(loc)).to_event(1),
    )
    exact(q.log_prob(z), plain.log_prob(z))
    exact(q.mean, plain.mean)
    exact(q.variance, plain.variance)
    exact(q.expand((3, 5)).log_prob(z[:3]), plain.log_prob(z[:3]))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_far_from_every_component(make, dtype):
    prior = make().to(dtype)
    with torch.no_grad():
        prior.components.loc.mul_(100)
    loc = (30 * torch.randn(50, 2, DIM)).to(dtype).requires_grad_()
    raw = torch.full_like(loc, -3.0).requires_grad_()
    q = prior(2).times(loc, raw.exp())
    z = q.rsample((10,))
    value = prior.log_prob(z) - q.log_prob(z)
    assert z.dtype == dtype and value.isfinite().all()
    wanted = [loc, raw, *prior.parameters()]
    for grad in torch.autograd.grad(value.sum() + z.square().sum(), wanted):
        assert grad.isfinite().all() and grad.dtype == dtype


@ALL
def test_objectives_under_the_coupled_guide_keep_their_laws(make):
    joint = catalogue.joint(make(), event=EVENT, guide=ps.guides.Coupled)
    batch = Batch(torch.randn(6, 3, EVENT), present=mask(6, 3))
    check_objective(ps.limits.SimVAE(joint), batch, repeats=5)


def refused_product() -> None:
    """Own scales beside a content, where arguments are checked."""
    scale, loc = torch.tensor([[0.5], [0.9]]), torch.randn(4, 2, 3)
    parts = torch.zeros(2), torch.randn(2, 3), scale, scale
    SharedComponent(*parts, 2, validate_args=True).times(loc, torch.ones_like(loc))


def refused_prior(prior: Prior) -> Callable[[], object]:
    guide = ps.guides.Coupled(ps.nn.MLPEncoder((EVENT,), DIM))
    return lambda: guide(torch.randn(4, 2, EVENT), partial(prior, 2))


test_products_without_a_closed_form_are_refused = refusals(
    (refused_product, ValueError, "share one scale"),
    (refused_prior(ps.priors.StudentT(DIM)), ValueError, "Independent, Sequence, Mix"),
    (refused_prior(ps.priors.Spherical(DIM, 5.0)), ValueError, "Mixture or TwoTier"),
)


# The guide `Coupled`: the encoder gives the posterior of a single view.

NORMAL = {
    "gaussian": lambda: Gaussian(DIM, SCALE, Y_SCALE),
    "learned": lambda: Gaussian(DIM, ps.learned(0.3)),
    "vectors": lambda: Gaussian(DIM, [0.2, 0.9], [1.5, 0.4]),
    "independent": lambda: ps.priors.Independent(DIM),
}
NORMALS = pytest.mark.parametrize("make", NORMAL.values(), ids=NORMAL.keys())


def guide_of(kind: type[nn.Module] = ps.guides.Coupled) -> nn.Module:
    guide = kind(ps.nn.MLPEncoder((EVENT,), DIM, hidden=(8,)))
    for parameter in guide.parameters():
        nn.init.normal_(parameter, std=0.5)
    return guide


def single(guide: ps.guides.Coupled, x: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """m and s, by hand."""
    one = prior(1)
    loc, raw = guide.single(x)
    share = FLOOR + (1 - FLOOR) * torch.sigmoid(raw)
    return one.mean + one.variance.sqrt() * loc, one.variance.sqrt() * share


@NORMALS
def test_q_of_a_single_view_is_what_the_encoder_says(make):
    prior, guide, x = make(), guide_of(), torch.randn(6, 1, EVENT)
    q, z = guide(x, partial(prior, 1)), torch.randn(9, 6, 1, DIM)
    loc, scale = single(guide, x, prior)
    exact(q.log_prob(z), Normal(loc, scale).log_prob(z).sum((-2, -1)))
    exact(q.mean, loc)
    joint = catalogue.joint(prior, event=EVENT, guide=ps.guides.Coupled)
    unit = prior(1).variance.sqrt().squeeze(0)
    exact(joint.represent(x[:, 0]), unit * joint.encoder(x[:, 0]))


def plain(
    prior: Tensor, flat: bool, m: Tensor, s: Tensor, z: Tensor, seen: Tensor
) -> Tensor:
    """log q of one item and dimension: the prior's precision, plus each view's own.

    The prior is its covariance, or the precision of a flat one.
    """
    own = prior.new_zeros(()) if flat else 1 / prior.diagonal()
    precision = (prior if flat else prior.inverse()) + (seen * (1 / s**2 - own)).diag()
    mean = torch.linalg.solve(precision, seen * m / s**2)
    return MultivariateNormal(mean, precision_matrix=precision).log_prob(z)


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("y_scale", [[1.5, 0.4], math.inf])
def test_log_q_is_that_of_a_plain_multivariate_normal(views, masked, y_scale):
    scale, flat = torch.tensor([0.2, 0.9]), y_scale == math.inf
    prior, guide = Gaussian(DIM, scale, y_scale), guide_of()
    x, z = torch.randn(5, views, EVENT), torch.randn(5, views, DIM)
    present = mask(5, views) if masked else torch.ones(5, views).bool()
    present[:, 0] |= flat  # a flat content needs a view
    q = guide(x, partial(prior, views), present if masked else None)
    if flat:
        loc, raw = guide.single(x)
        spread = nn.functional.softplus(raw) + FLOOR
    else:
        loc, spread = single(guide, x, prior)
    eye, ones = torch.eye(views), torch.ones(views, views)
    rows = []
    for i in range(5):
        each = []
        for d in range(DIM):
            if flat:
                about = (eye - ones / views) / scale[d] ** 2
            else:
                about = scale[d] ** 2 * eye + y_scale[d] ** 2 * ones
            parts = loc[i, :, d], spread[i, :, d], z[i, :, d], present[i].double()
            each.append(plain(about, flat, *parts))
        rows.append(sum(each))
    exact(q.log_prob(z), torch.stack(rows))


@ALL
def test_under_a_mixture_the_normal_of_its_moments_is_divided_out(make):
    prior, guide, x = make(), guide_of(), torch.randn(6, 3, EVENT)
    present, z = mask(6, 3), torch.randn(9, 6, 3, DIM)
    q = guide(x, partial(prior, 3), present)
    # The moments of a mixture.
    means, relative = prior.components()
    variance = (prior.scale() * relative).square()
    if isinstance(prior, TwoTier):
        variance = prior.scale().square() + (prior.y_scale() * relative).square()
    weight = prior.logits.softmax(-1).unsqueeze(-1)
    mean = (weight * means).sum(0)
    square = (weight * (variance + means.square())).sum(0)
    deviation = (square - mean.square()).sqrt()
    # The identity, up to the normaliser of q, and that normaliser.
    loc, raw = guide.single(x)
    share = FLOOR + (1 - FLOOR) * torch.sigmoid(raw)
    own = Normal(mean + deviation * loc, deviation * share).log_prob(z)
    own = (own - Normal(mean, deviation).log_prob(z)) * present.unsqueeze(-1)
    ratio = prior(3).log_prob(z) + own.sum((-2, -1)) - q.log_prob(z)
    exact(ratio, ratio[:1].expand_as(ratio))
    each = q.each().log_prob(z.unsqueeze(-3))
    exact(q.log_prob(z), (q.component.logits + each).logsumexp(-1))


@ALL
def test_q_of_a_known_component_is_q_given_that_component(make):
    prior, guide, x = make(), guide_of(), torch.randn(6, 3, EVENT)
    z, q = torch.randn(9, 6, 3, DIM), guide(x, partial(prior, 3))
    parts = []
    for k in range(CLUSTERS):
        known = torch.full((6,), k)
        given = guide(x, partial(prior, 3, component=known))
        exact(given.log_evidences, q.log_evidences)
        parts.append(given.log_prob(z) + q.component.logits[..., k])
    exact(torch.stack(parts).logsumexp(0), q.log_prob(z))


@pytest.mark.parametrize("make", [*PRIORS.values(), *NORMAL.values()])
def test_importance_weights_of_any_encoder_have_the_evidence_as_their_mean(make):
    """So that log q is normalised where p is, and the ELBO is a lower bound."""
    n, prior = 100_000, make()
    joint, x = linear_gaussian(prior), torch.randn(3, 2, EVENT)
    target = log_weights(joint, Batch(x)).local()
    head = joint.posterior.single.spread  # wider, and elsewhere
    head.bias = nn.Parameter((1.25 * joint.encoder.share).logit())
    joint.encoder.loc = joint.encoder.loc + 0.1
    with torch.no_grad():
        found = log_weights(joint, Batch(x), particles=n).local()
    assert_mean((found - target).exp(), torch.ones(3))
    gap = target.squeeze(0) - found.mean(0)
    assert (gap > 5 * found.std(0) / math.sqrt(n)).all()


def test_drawn_scales_move_the_units():
    prior, guide = Gaussian(DIM, dist.LogNormal(-1.0, 0.5)), guide_of()
    x = torch.randn(4, 3, EVENT)
    drawn = torch.tensor([[0.4], [0.9]])
    q, z = guide(x, partial(prior, 3, scale=drawn)), torch.randn(5, 2, 4, 3, DIM)
    assert q.batch_shape == (2, 4)
    for row, number in enumerate(drawn.squeeze(-1)):
        alone = guide(x, partial(Gaussian(DIM, number.item()), 3))
        exact(q.log_prob(z)[:, row], alone.log_prob(z[:, row]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [*PRIORS.values(), *NORMAL.values()])
@pytest.mark.parametrize("raw", [-40.0, 40.0])
def test_the_narrowest_and_the_widest_view_have_finite_values(make, dtype, raw):
    prior, guide = make().to(dtype), guide_of().to(dtype)
    nn.init.constant_(guide.single.spread.bias, raw)
    x = torch.randn(6, 3, EVENT, dtype=dtype)
    q = guide(x, partial(prior, 3))
    value = prior(3).log_prob(q.rsample()) - q.log_prob(q.rsample())
    assert value.dtype == dtype and value.isfinite().all()
    for grad in torch.autograd.grad(value.sum(), list(guide.parameters())):
        assert grad.isfinite().all()
    if raw > 0 and make in NORMAL.values():  # the prior itself, moved
        alone, (loc, _) = guide(x[:, :1], partial(prior, 1)), single(guide, x, prior)
        assert_close(q.variance, prior(3).variance.expand(6, 3, DIM))
        assert_close(alone.mean, loc[:, :1])


def moved(kind: type[nn.Module], share: float, views: int = 1) -> float:
    """How far the mean of q moves when the m of all views do, of a view so wide.

    The encoders of both guides then see the gradient of the mean times this.
    """
    prior = Gaussian(1, 0.15)
    unit = prior(1).stddev.item()
    guide, scale = kind(nn.Identity(), dim=1), share * unit
    if kind is ps.guides.Coupled:
        head, raw = guide.single.spread, math.log((share - FLOOR) / (1 - share))
    else:
        head = guide.factors.spread
        if kind is ps.guides.CoupledLikelihoods:  # the factor of the same q
            scale = (scale**-2 - unit**-2) ** -0.5
        raw = math.log(math.expm1(scale - FLOOR))
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, raw)
    m = torch.zeros(1, 1, 1, requires_grad=True)
    q = guide(m.expand(1, views, 1), partial(prior, views))
    if views == 1:
        assert q.stddev.item() == pytest.approx(share * unit)
    (grad,) = torch.autograd.grad(q.mean[0, 0, 0], m)
    return grad.item() / (unit if kind is ps.guides.Coupled else 1)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_the_mean_of_q_moves_with_the_encoder_however_wide_q_is(share):
    assert moved(ps.guides.DiagonalGaussian, share) == pytest.approx(1)
    assert moved(ps.guides.Coupled, share) == pytest.approx(1)
    # v / (v + r²), where the factor r of the same q has 1 / r² = 1 / s² - 1 / v
    kind = ps.guides.CoupledLikelihoods
    assert moved(kind, share) == pytest.approx(1 - share**2)


@pytest.mark.parametrize("views", [2, 3, 6])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_the_mean_of_several_views_moves_no_less(share, views):
    """All together they vary by w = σ² + V τ², a view alone by v, at most w."""
    v, w = 0.15**2 + 1, 0.15**2 + views
    own = 1 / (share**2 * v)
    total = own - 1 / v + 1 / w
    assert moved(ps.guides.Coupled, share, views) == pytest.approx(own / total)
    kind, factor = ps.guides.CoupledLikelihoods, own - 1 / v
    assert moved(kind, share, views) == pytest.approx(factor / total)
    assert own / total >= 1 > factor / total


@pytest.mark.parametrize(
    "prior",
    [
        ps.priors.StudentT(DIM),
        ps.priors.Custom(lambda y: dist.Laplace(y, 0.1).to_event(1), dim=DIM),
    ],
)
def test_a_prior_without_a_closed_product_is_named(prior):
    for kind in (ps.guides.Coupled, ps.guides.CoupledLikelihoods):
        guide = kind(ps.nn.MLPEncoder((EVENT,), DIM))
        with pytest.raises(ValueError, match=f"got {type(prior).__name__}; use Diag"):
            guide(torch.randn(4, 2, EVENT), partial(prior, 2))
