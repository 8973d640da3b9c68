"""Content and style dimensions: closed forms, the evidence, and both worlds."""

import math
from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue
from helpers.checks import assert_mean, assert_same, refusals
from helpers.linear import linear_gaussian
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import KernelDensity, LogDeterminant
from probssl.limits import Embedding
from probssl.priors import ContentStyle, Gaussian, Independent
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
CONTENT, STYLE, SCALES = 3, 2, (0.1, 0.5, 0.9)
exact = partial(assert_close, rtol=1e-10, atol=1e-10)


def covariance(views: int, scales: tuple[float, ...], style: int) -> Tensor:
    """Cov of all views in one vector, entry by entry."""
    dim = len(scales) + style
    found = torch.zeros(views * dim, views * dim)
    for v in range(views):
        for w in range(views):
            for i in range(dim):
                shared = 1 - scales[i] ** 2 if i < len(scales) else 0.0
                found[v * dim + i, w * dim + i] = 1.0 if v == w else shared
    return found


@pytest.mark.parametrize("views", [1, 2, 3, 4])
@pytest.mark.parametrize("scales", [SCALES, (0.3, 0.3, 0.3)])
def test_density_is_the_dense_normal_for_any_subset_of_the_views(views, scales):
    same = len(set(scales)) == 1
    prior = ContentStyle(CONTENT, STYLE, scales[0] if same else scales)
    dim, z = CONTENT + STYLE, torch.randn(6, views, CONTENT + STYLE)
    full = covariance(views, scales, STYLE)
    dense = MultivariateNormal(torch.zeros(views * dim), full)
    exact(prior.log_prob(z), dense.log_prob(z.flatten(1)))
    present = torch.rand(6, views) < 0.6
    found = prior.log_prob(z, present)
    for i, mask in enumerate(present):
        rows = mask.repeat_interleave(dim)
        if not mask.any():
            exact(found[i], torch.tensor(0.0))
            continue
        part = MultivariateNormal(torch.zeros(int(rows.sum())), full[rows][:, rows])
        exact(found[i], part.log_prob(z[i].flatten()[rows]))


@pytest.mark.parametrize("float_type", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 0.15, 0.9999, ps.learned(0.4), SCALES])
def test_every_dimension_has_variance_one_at_every_scale(scale, float_type):
    prior = ContentStyle(CONTENT, STYLE, scale).to(float_type)
    one = torch.ones(4, CONTENT + STYLE, dtype=float_type)
    assert_close(prior(4).variance, one)
    for parameter in prior.parameters():
        for real in (-3.0, 0.0, 5.0):  # a learned scale, wherever it went
            with torch.no_grad():
                parameter.fill_(real)
            assert_close(prior(4).variance, one)


def test_a_random_scale_keeps_variance_one_given_its_value_and_on_average():
    prior, n = ContentStyle(1, 1, dist.Beta(2.0, 2.0)), 100_000
    (hyper,) = prior.random()
    drawn = prior(2, scale=hyper.value.sample((n,)))
    assert_close(drawn.variance, torch.ones(n, 2, 2))
    z = drawn.sample()
    assert_mean(z.square(), torch.ones(2, 2))
    share = 1 - hyper.value.variance - hyper.value.mean**2  # 1 − E σ²
    assert_mean(z.prod(1), torch.stack([share, torch.tensor(0.0)]))


def test_it_is_the_gaussian_of_the_content_times_normals_of_the_style():
    prior = ContentStyle(CONTENT, STYLE, SCALES)
    content = Gaussian(CONTENT, SCALES, [math.sqrt(1 - s**2) for s in SCALES])
    z, y = torch.randn(7, 3, CONTENT + STYLE), torch.randn(7, CONTENT)
    c, s = z.split([CONTENT, STYLE], -1)
    a, b = z[:4, 0], z[4:, 0]
    exact(prior.log_prob(z), content.log_prob(c) + Independent(STYLE).log_prob(s))
    exact(prior.pmi(a, b), content.pmi(c[:4, 0], c[4:, 0]))
    exact(prior.mutual_information(), content.mutual_information())
    exact(prior.content().log_prob(y), content.content().log_prob(y))
    exact(prior.posterior_y(z).log_prob(y), content.posterior_y(c).log_prob(y))
    alone = prior.posterior_y(z[:, :1]).mean
    exact(alone, (1 - torch.tensor(SCALES).square()) * c[:, 0])
    for plug_in in (False, True):
        kernel = prior.log_kernel(a, b, plug_in)
        apart = kernel - content.log_kernel(c[:4, 0], c[4:, 0], plug_in)
        exact(apart, Normal(0, 1).log_prob(s[4:, 0]).sum(-1).expand(4, -1))
    exact(
        ContentStyle(2, 0, 0.6).log_prob(z[..., :2]),
        Gaussian(2, 0.6, 0.8).log_prob(c[..., :2]),
    )


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_elbo_of_the_exact_guide_is_the_evidence(views):
    scale, noise, event, items = 0.4, 0.3, 5, 6
    joint = linear_gaussian(ContentStyle(1, 1, scale), event, noise)
    weight = joint.decoder.weight.detach()
    latent = covariance(views, (scale,), 1)
    decoder = torch.block_diag(*[weight] * views)
    dense = decoder @ latent @ decoder.T + noise**2 * torch.eye(views * event)
    x, present = torch.randn(items, views, event), torch.rand(items, views) < 0.6
    present[:, 0] = True
    found = ps.bounds.log_weights(joint, Batch(x), 3).local()
    evidence = MultivariateNormal(torch.zeros(len(dense)), dense).log_prob(x.flatten(1))
    exact(found, evidence.expand_as(found))
    found = ps.bounds.log_weights(joint, Batch(x, present=present), 3).local()
    for i, mask in enumerate(present):
        rows = mask.repeat_interleave(event)
        part = MultivariateNormal(torch.zeros(int(rows.sum())), dense[rows][:, rows])
        exact(found[:, i], part.log_prob(x[i].flatten()[rows]).expand(len(found)))


def nt_xent(z: Tensor, scale: float, same_item: bool = True) -> Tensor:
    """log(neighbours) minus NT-Xent with −‖a − b‖² / 2σ² as similarity, plainly."""
    items, views, _ = z.shape
    total, pairs = torch.tensor(0.0), 0

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return -(a - b).square().sum() / (2 * scale**2)

    for i in range(items):
        for v in range(views):
            others = [
                similarity(z[i, v], z[j, w])
                for j in range(items)
                for w in range(views)
                if (j != i) or (same_item and w != v)
            ]
            below = torch.stack(others).logsumexp(0) - math.log(len(others))
            for w in range(views):
                if w != v:
                    total = total + similarity(z[i, v], z[i, w]) - below
                    pairs += 1
    return total / pairs


ALIGNED: dict[str, Callable[[Tensor, ps.priors.Prior], Tensor]] = {
    "SimCLR": lambda z, p: Embedding(nn.Identity(), p, KernelDensity(), plug_in=True)(
        Batch(z)
    ),
    "decoupled": lambda z, p: Embedding(
        nn.Identity(), p, KernelDensity(same_item=False), plug_in=True
    )(Batch(z)),
    "y integrated out": lambda z, p: Embedding(nn.Identity(), p, KernelDensity())(
        Batch(z)
    ),
    "MoCo": lambda z, p: moco(z, p),
}


def moco(z: Tensor, prior: ps.priors.Prior) -> ps.Terms:
    objective = ps.limits.MoCo(nn.Identity(), queue=12, dim=z.shape[-1], prior=prior)
    objective(Batch(z.detach().flip(0)))  # fills the queue
    return objective(Batch(z))


@pytest.mark.parametrize("name", ALIGNED)
@pytest.mark.parametrize("views", [2, 3])
def test_a_contrastive_objective_sees_the_content_alone(name, views):
    scale, y_scale = 0.4, math.sqrt(1 - 0.4**2)
    x = torch.randn(6, views, 4)
    weight = torch.randn(4, CONTENT + STYLE, requires_grad=True)
    z = x @ weight
    whole = sum(ALIGNED[name](z, ContentStyle(CONTENT, STYLE, scale)))
    c = z[..., :CONTENT]
    part = sum(ALIGNED[name](c, Gaussian(CONTENT, scale, y_scale)))
    assert_same(whole, part, weight)
    (slope,) = torch.autograd.grad(whole, weight, retain_graph=True)
    content, style = slope.split([CONTENT, STYLE], -1)
    assert content.abs().max() > 1e-3
    exact(style, torch.zeros_like(style))
    if name in ("SimCLR", "decoupled"):
        assert_same(whole, nt_xent(c, scale, name == "SimCLR"), weight)


def test_an_entropy_of_all_of_z_keeps_the_style_informative():
    """At the best scale of the style its gradient is 0, and it falls towards there."""
    prior = ContentStyle(1, 1, 0.4)
    z = prior(2).sample((4_000,))

    def value(factor: float) -> Tensor:
        wide = z * torch.tensor([1.0, factor])
        return sum(Embedding(nn.Identity(), prior, LogDeterminant())(Batch(wide)))

    assert value(1.0) > value(0.5) and value(1.0) > value(2.0)


def test_the_posterior_of_a_random_scale_is_that_of_quadrature():
    prior = dist.Beta(2.0, 5.0)
    z = ContentStyle(2, 1, 0.3)(2).sample((60,))
    objective = Embedding(nn.Identity(), ContentStyle(2, 1, prior), LogDeterminant())
    objective.population = torch.tensor(60.0)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 800)
    for _ in range(800):
        optimizer.zero_grad()
        (-sum(objective(Batch(z)))).backward()
        optimizer.step()
        decay.step()
    grid = torch.linspace(0, 1, 4_001)[1:-1]
    log_p = prior.log_prob(grid)
    for i in range(2):  # the content, one dimension after the other
        normals = MultivariateNormal(
            torch.zeros(2),
            (1 - grid**2)[:, None, None] + (grid**2)[:, None, None] * torch.eye(2),
        )
        log_p = log_p + normals.log_prob(z[:, None, :, i]).sum(0)
    log_p = log_p - log_p.logsumexp(0) + math.log(4_000)
    log_q = objective.prior.scale.posterior().log_prob(grid).detach()
    assert (log_q.exp() * (log_q - log_p)).mean() < 0.05
    wide = prior.log_prob(grid)
    assert (wide.exp() * (wide - log_p)).mean() > 1.0  # not trivial


def joint(scale: object = 0.3, **options: object) -> ps.Joint:
    return catalogue.joint(ContentStyle(2, 1, scale), event=4, **options)


def pair(x: Tensor) -> Tensor:
    return x.unsqueeze(1) + 0.1 * torch.randn(len(x), 2, *x.shape[1:])


@pytest.mark.parametrize("guide", [ps.guides.DiagonalGaussian, ps.guides.Coupled])
def test_the_content_layer_is_the_first_dimensions_of_the_mean(guide, tmp_path):
    x, objective = torch.randn(9, 4), ps.limits.SimVAE(joint(guide=guide))
    for model in (objective, objective.joint, ps.load(ps.save(objective, tmp_path))):
        z, std = ps.embed(model, x, return_std=True)
        found = ps.embed(model, x, layer="content", return_std=True)
        assert_close(found, (z[:, :2], std[:, :2]), rtol=0, atol=0)
    # It is not E[y|x], which for one view is nearer to 0.
    q = objective.joint.alone(x)
    y = objective.joint.prior.posterior_y(q.mean).mean.detach()
    assert_close(torch.as_tensor(found[0]) * (1 - 0.3**2), y)


def test_the_content_layer_is_of_the_output_that_the_prior_is_over():
    prior, x = ContentStyle(3, 1, 0.3), torch.randn(8, catalogue.EVENT)
    embedding = partial(Embedding, prior=prior, entropy=KernelDensity(), plug_in=True)
    plain = embedding(catalogue.encoder(dim=4))
    projected = embedding(catalogue.encoder(), projector=nn.Linear(catalogue.DIM, 4))
    extended = ps.limits.DSA(projected, neighbours=2)
    for objective, layer in (
        (plain, "backbone"),
        (projected, "projector"),
        (extended, "projector"),
    ):
        found = ps.embed(objective, x, layer="content")
        assert_close(found, ps.embed(objective, x, layer=layer)[:, :3], rtol=0, atol=0)


test_without_content_dimensions_there_is_no_such_layer = refusals(
    *(
        (
            lambda objective=objective: ps.embed(
                objective(), torch.randn(4, catalogue.EVENT), layer="content"
            ),
            ValueError,
            message,
        )
        for objective, message in (
            (catalogue.OBJECTIVES["SimVAE"], "SimVAE with the prior Gaussian"),
            (catalogue.OBJECTIVES["VAE"], "prior Independent; build it with priors.C"),
            (catalogue.OBJECTIVES["SimCLR"], "SimCLR with the prior Spherical"),
            (catalogue.OBJECTIVES["VICReg"], "VICReg with"),
            (catalogue.encoder, "MLPEncoder with no prior"),
        )
    )
)


def test_a_random_scale_of_each_content_dimension_has_an_axis_of_its_own():
    scale = dist.Beta(2.0, 5.0).expand((2,)).to_event(1)
    idata = ps.to_arviz(joint(scale), torch.randn(5, 4), draws=7)
    for group in (idata.posterior, idata.prior):
        assert group["scale"].dims == ("chain", "draw", "scale_dim")
        assert group["scale"].shape == (1, 7, 2)
    assert idata.posterior["z"].shape == (1, 7, 5, 1, 3)


def test_a_random_scale_and_an_explicit_content_open_in_arviz():
    content = ps.guides.Content(3, y_dim=2)
    objective = ps.limits.SimVAE(joint(dist.Beta(2.0, 5.0), content=content))
    x = torch.randn(20, 4)
    ps.fit(objective, x, views=pair, epochs=2, progress=False)
    idata = ps.to_arviz(objective, x, draws=50, items=3, views=pair)
    assert idata.posterior["y"].shape == (1, 50, 3, 2)
    assert idata.posterior["z"].shape == (1, 50, 3, 2, 3)
    for group in (idata.posterior, idata.prior):
        assert ((group["scale"] > 0) & (group["scale"] < 1)).all()
    assert ps.sample(objective, 5, 3).shape == (5, 3, 4)
    assert ps.evidence(objective, x[:5], views=pair).log_evidence.shape == (5,)
