"""The mixture priors: closed forms against dense mixtures, and their limits."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import probssl as ps
from probssl.distributions import OneFactorNormal, SharedComponent
from probssl.priors import (
    Components,
    Gaussian,
    Mixture,
    TwoTier,
    VampComponents,
)
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
SCALE, Y_SCALE, CLUSTERS = 0.6, 1.3, 4
exact = partial(assert_close, rtol=1e-12, atol=1e-12)


def uneven(prior: Mixture | TwoTier) -> Mixture | TwoTier:
    """With weights, and where there are any own scales, that all differ."""
    nn.init.normal_(prior.logits)
    if getattr(prior.components, "own_scales", False):
        nn.init.normal_(prior.components.log_scale, std=0.4)
    return prior


def mixture(dim: int = 2) -> Mixture:
    return uneven(Mixture(dim, Components(dim, CLUSTERS, own_scales=True), SCALE))


def two_tier(dim: int = 2) -> TwoTier:
    components = Components(dim, CLUSTERS, own_scales=True)
    return uneven(TwoTier(dim, components, SCALE, Y_SCALE))


class Factors(nn.Module):
    """An encoder with both heads: its scales differ between dimensions."""

    def __init__(self, dim: int = 2) -> None:
        super().__init__()
        self.loc, self.raw = nn.Linear(3, dim), nn.Linear(3, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc(x), self.raw(x).exp()


def vamp(kind: type[Mixture] | type[TwoTier]) -> Mixture | TwoTier:
    components = VampComponents.at(Factors(), torch.randn(CLUSTERS, 3))
    return uneven(kind(2, components, SCALE))


PRIORS = {
    "mixture": mixture,
    "two tiers": two_tier,
    "vamp": partial(vamp, Mixture),
    "vamp in two tiers": partial(vamp, TwoTier),
}
BOTH = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())
Make = Callable[[], Mixture | TwoTier]


def scales(prior: Mixture | TwoTier) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each cluster, and the scales of view and content in it, (K, dim)."""
    loc, relative = prior.components()
    if isinstance(prior, Mixture):
        return loc, (prior.scale() * relative).expand_as(loc), torch.zeros_like(loc)
    scale = prior.scale().expand(loc.shape)
    return loc, scale, (prior.y_scale() * relative).expand_as(loc)


def dense(prior: Mixture | TwoTier, views: int) -> dist.MixtureSameFamily:
    """The same mixture of dense normals, event shape (view · dim,)."""
    loc, scale, y_scale = scales(prior)
    shared = torch.ones(views, views)
    each = [
        torch.kron(torch.eye(views), s.square().diag())
        + torch.kron(shared, t.square().diag())
        for s, t in zip(scale, y_scale, strict=True)
    ]
    normal = dist.MultivariateNormal(loc.repeat(1, views), torch.stack(each))
    return dist.MixtureSameFamily(dist.Categorical(logits=prior.logits), normal)


def assert_one(ratio: Tensor) -> None:
    """The mean is one, to five standard errors."""
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


@BOTH
@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_of_an_item_are_a_mixture_of_dense_normals(views, make: Make):
    prior, z = make(), torch.randn(6, views, 2)
    plain = dense(prior, views).log_prob(z.flatten(1))
    assert_close(prior.log_prob(z), plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_mixture_is_the_sum_over_clusters_of_independent_views(dim):
    prior, z = mixture(dim), torch.randn(5, 3, dim)
    loc, scale, _ = scales(prior)
    normal = dist.Normal(loc.unsqueeze(-2), scale.unsqueeze(-2)).expand((4, 3, dim))
    family = dist.MixtureSameFamily(
        dist.Categorical(logits=prior.logits), normal.to_event(2)
    )
    exact(prior.log_prob(z), family.log_prob(z))


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("views", [1, 2, 5])
def test_two_tiers_are_the_sum_over_clusters_of_shared_factors(views, dim):
    prior, z = two_tier(dim), torch.randn(5, views, dim)
    loc, scale, y_scale = (p.unsqueeze(-2).expand(-1, views, -1) for p in scales(prior))
    shared = OneFactorNormal(loc, scale, y_scale)
    plain = prior.logits.log_softmax(-1) + shared.log_prob(z.unsqueeze(-3))
    exact(prior.log_prob(z), plain.logsumexp(-1))


def test_two_tiers_with_one_cluster_are_the_gaussian():
    z, a, b, y = (torch.randn(*shape, 3) for shape in ((5, 4), (4,), (6,), (5,)))
    prior, plain = TwoTier(3, 1, SCALE, Y_SCALE), Gaussian(3, SCALE, Y_SCALE)
    nn.init.zeros_(prior.components.loc)
    present = torch.rand(5, 4) < 0.7
    exact(prior.log_prob(z), plain.log_prob(z))
    exact(prior.log_prob(z, present), plain.log_prob(z, present))
    exact(prior.log_kernel(a, b), plain.log_kernel(a, b))
    exact(prior.log_kernel(a, b, True), plain.log_kernel(a, b, True))
    exact(prior.pmi(a, b), plain.pmi(a, b))
    exact(prior.posterior_y(z).log_prob(y), plain.posterior_y(z).log_prob(y))
    exact(prior(3).variance, plain(3).variance)
    seen = plain.posterior_y(z, present).mean.unsqueeze(-2)
    mean = torch.where(present.unsqueeze(-1), z, seen)
    exact(prior(4).complete_mean(z, present), mean)


def test_two_tiers_with_narrow_content_tend_to_the_mixture_at_second_order():
    z, prior = torch.randn(7, 3, 2), Mixture(2, CLUSTERS, SCALE)
    gap = [
        TwoTier(2, prior.components, SCALE, t).log_prob(z) - prior.log_prob(z)
        for t in (1e-2, 1e-3)
    ]
    assert_close(gap[0] / gap[1], torch.full((7,), 100.0), rtol=1e-2, atol=0)


def test_two_tiers_with_wide_content_tend_to_a_flat_one_at_second_order():
    z, flat = torch.randn(7, 3, 2), Gaussian(2, SCALE, math.inf)
    components = Components(2, CLUSTERS)
    # p(y) of density 1 instead of N(m, t): add log of the density at zero.
    gap = [
        TwoTier(2, components, SCALE, t).log_prob(z)
        + math.log(2 * math.pi * t**2)
        - flat.log_prob(z)
        for t in (1e2, 1e3)
    ]
    assert_close(gap[0] / gap[1], torch.full((7,), 100.0), rtol=1e-3, atol=0)


@BOTH
def test_samples_follow_the_density(make: Make):
    prior = make()
    distribution, n = prior(3), 100_000
    z = distribution.sample((n,))
    # A density q has E[q / p] = 1 under samples of p; narrow, so that the bars hold.
    loc, scale, y_scale = scales(prior)
    for k in range(CLUSTERS):
        parts = (loc[k], 0.7 * scale[k], 0.7 * y_scale[k])
        q = OneFactorNormal(*(part.expand(3, 2) for part in parts))
        assert_one((q.log_prob(z) - distribution.log_prob(z)).exp())


@BOTH
def test_responsibilities_satisfy_bayes(make: Make):
    prior, z, k = make(), torch.randn(6, 3, 2), torch.tensor([0, 1, 2, 3, 0, 1])
    family = dense(prior, 3)
    joint = prior.logits.log_softmax(-1)[k]
    joint = joint + family.component_distribution.log_prob(
        z.flatten(1).unsqueeze(1)
    ).gather(1, k.unsqueeze(1)).squeeze(1)
    value = prior.responsibilities(z).log_prob(k) + prior.log_prob(z)
    assert_close(value, joint, rtol=1e-11, atol=1e-11)
    if isinstance(prior, Mixture):
        exact(prior.posterior_y(z).probs, prior.responsibilities(z).probs)


def test_plugged_in_content_is_a_point_for_two_tiers_and_none_for_one():
    a, b = torch.randn(4, 2), torch.randn(5, 2)
    plain = dist.Normal(a[:, None], SCALE).log_prob(b).sum(-1)
    exact(two_tier().log_kernel(a, b, plug_in=True), plain)
    with pytest.raises(TypeError, match="content is a component"):
        mixture().log_kernel(a, b, plug_in=True)


@BOTH
def test_absent_views_are_drawn_from_the_conditional(make: Make):
    prior, z, n = make(), torch.randn(2, 2), 50_000
    present = torch.tensor([True, False])
    drawn = prior(2).complete(z.expand(n, -1, -1), present.expand(n, -1))
    assert_close(drawn[:, 0], z[0].expand(n, -1))
    b = drawn[:, 1]
    kernel = prior.log_kernel(z[:1], b)[0]
    loc, scale, _ = scales(prior)
    for k in range(CLUSTERS):
        q = dist.Normal(loc[k], 0.7 * scale[k]).to_event(1)
        assert_one((q.log_prob(b) - kernel).exp())
    mean = prior(2).complete_mean(z, present)
    assert_close(mean[0], z[0])
    error = 5 * b.std(0) / math.sqrt(n)
    assert ((b.mean(0) - mean[1]).abs() < error).all()


@BOTH
def test_gradient_of_a_completed_item_is_that_of_its_present_views(make: Make):
    z = torch.randn(4, 3, 2, requires_grad=True)
    present = torch.tensor([True, False, True]).expand(4, -1)
    make()(3).complete(z, present).sum().backward()
    assert_close(z.grad, present.unsqueeze(-1).expand(-1, -1, 2).double())


@pytest.mark.parametrize("make", [mixture, two_tier])
def test_log_prob_is_unchanged_by_swapping_and_by_rotating_with_the_means(make: Make):
    prior, z, rotation = make(3), torch.randn(5, 4, 3), torch.randn(3, 3)
    rotation, value = torch.linalg.qr(rotation).Q, prior.log_prob(z)
    exact(prior.log_prob(z.flip(1)), value)
    with torch.no_grad():
        prior.components.loc.copy_(prior.components.loc @ rotation)
        exact(prior.log_prob(z @ rotation), value)
        for part in (prior.logits, prior.components.loc, prior.components.log_scale):
            part.copy_(part.flip(0))
        exact(prior.log_prob(z @ rotation), value)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_exact(masked):
    shapes = (2, 3, 2), (3,), (3, 2), (3, 1), (3, 1)
    z, logits, loc, *logs = (torch.randn(s, requires_grad=True) for s in shapes)
    present = torch.tensor([[True, True, True], [True, False, True]])

    def value(z: Tensor, logits: Tensor, loc: Tensor, *logs: Tensor) -> Tensor:
        given = present if masked else None
        parts = (logits, loc, *(log.exp() for log in logs))
        return SharedComponent(*parts, 3, present=given).log_prob(z)

    assert gradcheck(value, (z, logits, loc, *logs))
    assert gradgradcheck(value, (z, logits, loc, *logs))
    prior = two_tier()
    assert gradcheck(lambda z: prior.log_kernel(z[0], z[1]), z)


def test_what_is_learned_has_a_name_and_a_gradient():
    prior = TwoTier(2, 3, ps.learned(0.4))
    names = {"logits", "components.loc", "scale.log"}
    assert {name for name, _ in prior.named_parameters()} == names
    prior.log_prob(torch.randn(6, 2, 2)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in prior.parameters())
    fixed = Mixture(2, 3, learn_weights=False)
    assert {name for name, _ in fixed.named_parameters()} == {"components.loc"}
    assert "logits" in fixed.state_dict()
    random = TwoTier(2, 3, y_scale=dist.LogNormal(0.0, 0.5))
    assert [hyper.name for hyper in random.random()] == ["y_scale"]


def test_means_start_spread_and_weights_equal():
    means = Components(50, 40, spread=3.0).loc
    deviation = means.std()
    assert abs(deviation - 3) < 5 * 3 / math.sqrt(2 * 2_000)
    assert_close(
        Mixture(2, 4).responsibilities(torch.zeros(0, 1, 2)).probs.shape[-1], 4
    )
    exact(Mixture(2, 4).logits.softmax(-1), torch.full((4,), 0.25))


def test_components_at_pseudo_inputs_follow_the_guide_of_the_joint():
    encoder, decoder = ps.nn.MLPEncoder((3,), 2), ps.nn.MLPDecoder(2, (3,))
    guide, inputs = ps.guides.DiagonalGaussian(encoder), torch.randn(CLUSTERS, 3)
    components = VampComponents.at(guide.factors, inputs)
    prior = Mixture(2, components, learn_weights=False)
    likelihood = ps.likelihoods.Gaussian(0.5)
    joint = ps.Joint(prior, likelihood, encoder, decoder, guide=lambda _: guide)
    loc, scale = components()
    q = guide(inputs.unsqueeze(1), partial(prior, 1))
    assert_close(loc, q.mean.squeeze(1))
    assert_close(scale, q.stddev.squeeze(1))
    z = torch.randn(5, 1, 2)
    each = q.expand((5, CLUSTERS)).log_prob(z.unsqueeze(1))
    plain = each.logsumexp(-1) - math.log(CLUSTERS)
    exact(prior.log_prob(z), plain)
    sum(ps.bounds.ELBO()(joint, Batch(torch.randn(6, 2, 3)))).backward()
    assert components.inputs.grad.abs().sum() > 0
    names = [name for name, _ in joint.named_parameters()]
    assert len(names) == len(set(names)) and "prior.logits" not in names
    still = VampComponents.at(guide.factors, inputs, learn=False)
    assert not [p for p in still.parameters(recurse=False)]
    assert_close(still.inputs, inputs)


@pytest.mark.parametrize("family", [Mixture, TwoTier])
def test_prior_comes_back_from_a_folder(family, tmp_path):
    guide = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((3,), 2))
    given = VampComponents.at(guide.factors, torch.randn(4, 3), learn=False)
    for components in (3, Components(2, 3, own_scales=True), given):
        prior = family(2, components, 0.4)
        for parameter in prior.parameters():
            nn.init.normal_(parameter)
        ps.save(prior, tmp_path)
        z, again = torch.randn(4, 3, 2), ps.load(tmp_path)
        assert type(again) is family
        assert_close(again.log_prob(z), prior.log_prob(z), rtol=0, atol=0)


@pytest.mark.parametrize("own_scales", [False, True])
def test_means_start_at_given_ones_and_are_learned(own_scales):
    means = np.random.default_rng(0).normal(size=(4, 3))
    prior = TwoTier(3, Components.at(means, own_scales), SCALE, Y_SCALE)
    loc, relative = prior.components()
    exact(loc, torch.tensor(means))
    assert len(relative) == (4 if own_scales else 1) and (relative == 1).all()
    assert loc.requires_grad and prior.components.components == 4
    nearest = prior.responsibilities(loc.unsqueeze(1)).probs.argmax(-1)
    assert nearest.tolist() == [0, 1, 2, 3]
