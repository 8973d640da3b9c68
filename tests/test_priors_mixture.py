"""The mixture priors: closed forms against dense mixtures, and their limits."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import uneven
from helpers.checks import seeded
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.data import DataLoader

import probssl as ps
from probssl.distributions.mixture import SharedComponent
from probssl.priors import (
    Components,
    Custom,
    Gaussian,
    Mixture,
    Prior,
    TwoTier,
    VampComponents,
)
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
SCALE, Y_SCALE, CLUSTERS = 0.6, 1.3, 4
exact = partial(assert_close, rtol=1e-12, atol=1e-12)


mixture = partial(uneven, Mixture, "own", scale=SCALE)
two_tier = partial(uneven, TwoTier, "own", scale=SCALE, y_scale=Y_SCALE)
PRIORS = {
    "mixture": mixture,
    "two tiers": two_tier,
    "vamp": partial(uneven, Mixture, "vamp", scale=SCALE),
    "vamp in two tiers": partial(uneven, TwoTier, "vamp", scale=SCALE),
}
BOTH = pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS.keys())
Make = Callable[..., Mixture | TwoTier]


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


@BOTH
@pytest.mark.parametrize("dim", [1, 3, 64, 256])
@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_of_an_item_are_a_mixture_of_dense_normals(views, dim, make: Make):
    prior, z = make(dim), torch.randn(6, views, dim)
    plain = dense(prior, views).log_prob(z.flatten(1))
    assert_close(prior.log_prob(z), plain, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("views", [1, 3])
def test_single_precision_is_as_exact_near_narrow_components_far_from_the_origin(views):
    loc, scale = 100 + torch.randn(200, 8), torch.rand(200, 1).exp() / 1000
    z = loc[:, None] + scale.unsqueeze(-1) * torch.randn(200, views, 8)
    parts = [p.float() for p in (torch.zeros(200), loc, scale, 0 * scale)]
    z = z.float()
    found = SharedComponent(*parts, views).log_prob(z)
    assert found.dtype == torch.float32
    wide = SharedComponent(*(p.double() for p in parts), views).log_prob(z.double())
    each = dist.Normal(parts[1].double(), parts[2].double()).to_event(1)
    plain = each.log_prob(z.double().unsqueeze(2)).sum(1).logsumexp(-1) - math.log(200)
    assert_close(wide, plain, rtol=0, atol=1e-7)
    assert_close(found.double(), plain, rtol=1e-5, atol=0)


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


@BOTH
def test_gradient_of_a_completed_item_is_that_of_its_present_views(make: Make):
    z = torch.randn(4, 3, 2, requires_grad=True)
    present = torch.tensor([True, False, True]).expand(4, -1)
    make()(3).complete(z, present).sum().backward()
    assert_close(z.grad, present.unsqueeze(-1).expand(-1, -1, 2).double())


@pytest.mark.parametrize("make", [mixture, two_tier])
def test_rotating_with_the_means_and_reordering_them_changes_nothing(
    make: Make,
):
    prior, z, rotation = make(3), torch.randn(5, 4, 3), torch.randn(3, 3)
    rotation, value = torch.linalg.qr(rotation).Q, prior.log_prob(z)
    with torch.no_grad():
        prior.components.loc.copy_(prior.components.loc @ rotation)
        exact(prior.log_prob(z @ rotation), value)
        for part in (prior.logits, prior.components.loc, prior.components.log_scale):
            part.copy_(part.flip(0))
        exact(prior.log_prob(z @ rotation), value)


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


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_in_weights_means_and_scales_are_exact(masked):
    shapes = (2, 3, 2), (3,), (3, 2), (3, 1), (3, 1)
    z, logits, loc, *logs = (torch.randn(s, requires_grad=True) for s in shapes)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    present = mask if masked else None

    def value(z: Tensor, logits: Tensor, loc: Tensor, *logs: Tensor) -> Tensor:
        parts = (logits, loc, *(log.exp() for log in logs))
        return SharedComponent(*parts, 3, present=present).log_prob(z)

    assert gradcheck(value, (z, logits, loc, *logs))
    assert gradgradcheck(value, (z, logits, loc, *logs))


def clustered(items: int = 300) -> tuple[Tensor, Tensor]:
    """Items of four clusters, some seven standard deviations apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(items) % 4
    noise = torch.randn(items, 6, generator=generator, dtype=torch.float64)
    return torch.eye(4, 6)[labels] + 0.2 * noise, labels


def two_views(x: Tensor) -> Tensor:
    return x[:, None] + 0.1 * torch.randn(len(x), 2, *x.shape[1:])


class Classes(nn.Module):
    """p(z|y) of an own prior whose y is one of several classes."""

    learning_rate_factor = 10.0

    def __init__(self, dim: int, components: int, scale: float) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.randn(components, dim)), scale

    def forward(self, y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.loc[y], self.scale).to_event(1)


def own(dim: int, components: int, scale: float) -> Prior:
    given, classes = Classes(dim, components, scale), torch.ones(components)
    return Custom(given, dim, y_prior=dist.Categorical(classes))


def labelled(family: Callable[..., Prior], **options: float) -> ps.limits.SimVAE:
    torch.manual_seed(0)
    encoder = ps.nn.MLPEncoder((6,), 2, hidden=(16,))
    decoder = ps.nn.MLPDecoder(2, (6,), hidden=(16,))
    likelihood, prior = ps.likelihoods.Gaussian(0.3), family(2, 4, 0.3)
    joint = ps.Joint(prior, likelihood, encoder, decoder)
    return ps.limits.SimVAE(joint, **options)


FEW = torch.where(torch.arange(300) < 30, torch.arange(300) % 4, -1)
FIT = {"views": two_views, "content": FEW, "batch_size": 50, "learning_rate": 1e-2}
FIT |= {"progress": False}


@pytest.mark.parametrize("family", [Mixture, TwoTier, own])
def test_few_labels_make_components_classes(family):
    """At least as right as the nearest labelled mean of z: here, always."""
    (x, labels), simvae = clustered(), labelled(family)
    ps.fit(simvae, x, epochs=25, **FIT)
    z = torch.as_tensor(ps.embed(simvae, x))
    means = torch.stack([z[FEW == k].mean(0) for k in range(4)])
    found = torch.as_tensor(ps.classify(simvae, x)).argmax(1)
    nearest = torch.cdist(z, means).argmin(1)
    right, other = ((k == labels).double().mean() for k in (found, nearest))
    assert right >= max(other, 0.99)


def test_labels_weigh_the_same_under_an_own_prior_of_the_same_classes():
    mixture, custom = labelled(Mixture), labelled(own)
    custom.joint.load_state_dict(mixture.joint.state_dict(), strict=False)
    mixture.joint.prior.components.loc.data = custom.joint.prior.conditional.loc.data
    x, known = clustered(8)[0], torch.arange(8) % 5 - 1
    terms = [
        seeded(each, Batch(x[:, None], content=known)) for each in (mixture, custom)
    ]
    exact(*terms)


def test_labelled_fits_resume_and_load_as_they_were(tmp_path):
    x, _ = clustered()
    run = FIT | {"checkpoint": tmp_path / "run"}
    through, halved, resumed = (labelled(TwoTier, label_weight=2.0) for _ in range(3))
    seeded(ps.fit, through, x, **FIT, epochs=3)
    seeded(ps.fit, halved, x, **run, epochs=2)
    seeded(ps.fit, resumed, x, **run, epochs=3, resume=True)
    assert_close(resumed.state_dict(), through.state_dict(), rtol=0, atol=0)
    ps.save(resumed, tmp_path / "saved")
    loaded = ps.load(tmp_path / "saved")
    assert loaded.label_weight == 2.0
    found = [seeded(ps.classify, each, x) for each in (loaded, through)]
    assert (found[0] == found[1]).all()


def loader(x: Tensor, content: list[int | None]) -> DataLoader:
    """Batches of two items of one view, with contents or without any."""
    pairs = zip(x[: 2 * len(content)].split(2), content, strict=True)
    load = [
        Batch(part[:, None], content=k if k is None else torch.tensor([k, -1]))
        for part, k in pairs
    ]
    return DataLoader(load, batch_size=None, generator=torch.Generator())


def test_labels_in_validation_weigh_by_their_own_share():
    x, labels = clustered()
    few, found = torch.where(torch.arange(300) % 3 == 0, labels, -1), []
    valid = ps.data.Groups(x[:, None], content=few)
    still = {"progress": False, "batch_size": 50, "learning_rate": 1e-30, "epochs": 1}
    for known in (FEW, labels):
        simvae = labelled(Mixture)
        history = ps.fit(simvae, x, content=known, valid=valid, **still)
        found.append(history["valid_penalty"])
        assert_close(float(simvae.labelled), float((known >= 0).double().mean()))
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_validation_has_contents_beside_augmented_training():
    (x, labels), histories = clustered(), []
    views, few = two_views(x[:60]), labels[:60]
    halves = zip(views.split(30), few.split(30), strict=True)
    batches = [Batch(v, content=k) for v, k in halves]
    loader = DataLoader(batches, batch_size=None, generator=torch.Generator())
    for valid in (ps.data.groups(views, content=few), loader):
        simvae = labelled(Mixture)
        torch.manual_seed(1)
        histories.append(ps.fit(simvae, x, valid=valid, epochs=2, **FIT)["valid_value"])
    np.testing.assert_allclose(*histories, rtol=1e-5)


def test_contents_may_be_whole_floats():
    (x, _), values = clustered(), []
    for content in (FEW, FEW.double(), pd.Series(FEW.tolist()).astype(float)):
        simvae = labelled(Mixture)
        options = FIT | {"content": content, "epochs": 1}
        values.append(ps.fit(simvae, x, **options)["value"])
    assert values[0] == values[1] == values[2]
    for odd in (0.5, math.inf, 2.0**60):
        with pytest.raises((TypeError, ValueError), match="whole numbers in content"):
            ps.fit(simvae, x, **FIT | {"content": torch.full((300,), odd)})
    batch = Batch(x[:3, None], content=torch.tensor([0.0, -1.0, 2.0]))
    ps.fit(simvae, DataLoader([batch], batch_size=None), epochs=1, progress=False)


def test_a_share_that_the_user_set_stays_where_fit_cannot_count_it():
    (x, labels), simvae = clustered(), labelled(Mixture)
    loader = DataLoader([Batch(x[:, None], content=FEW)], batch_size=None)
    simvae.labelled = torch.tensor(0.25)
    ps.fit(simvae, loader, epochs=1, progress=False)
    assert simvae.labelled == 0.25
    ps.fit(simvae, x, content=labels, epochs=1, progress=False)
    assert simvae.labelled == 1
    ps.fit(simvae, loader, epochs=1, progress=False)
    assert simvae.labelled is None


WRONG = pytest.mark.parametrize(
    ("content", "match"),
    [([0, -2], "from -1 .unknown., got -2"), ([0, 1, 4], "to 3, a component of Mixt")],
)


@WRONG
def test_contents_are_refused_in_whatever_batch_they_come(content, match):
    (x, _), fit = clustered(), partial(ps.fit, epochs=1, progress=False)
    with pytest.raises(ValueError, match=match):
        fit(labelled(Mixture), loader(x, content))
    with pytest.raises(ValueError, match=match):
        fit(labelled(Mixture), x, valid=loader(x, content))
    with pytest.raises(ValueError, match=match):
        ps.classify(labelled(Mixture), loader(x, content))


def test_contents_of_validation_are_refused_before_the_fit():
    (x, _), seen = clustered(), []
    valid = ps.data.Groups(x[:5, None], content=torch.tensor([0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="to 3, a component of Mixture"):
        ps.fit(labelled(Mixture), x, valid=valid, on_step=lambda *_: seen.append(1))
    assert not seen


def test_draws_know_the_contents_that_a_loader_yields():
    (x, _), simvae = clustered(), labelled(Mixture)
    content = torch.tensor([2, -1, -1, -1, 1, -1])
    log_p = [
        seeded(ps.to_arviz, simvae, data, draws=5).sample_stats["log_p"]
        for data in (
            loader(x, [2, None, 1]),
            ps.data.Groups(x[:6, None], content=content),
        )
    ]
    np.testing.assert_allclose(*log_p, rtol=1e-12)
    plain = seeded(ps.to_arviz, simvae, x[:6], draws=5).sample_stats["log_p"]
    assert (np.abs(plain - log_p[0]).max(("chain", "draw")) > 0).sum() == 2


class Fixed(nn.Module):
    """Components with given scales."""

    def __init__(self, scale: object, dim: int = 2) -> None:
        super().__init__()
        self.components, self.scale = 3, scale
        self.loc = nn.Parameter(torch.arange(3.0 * dim).view(3, dim))

    def forward(self) -> tuple[Tensor, object]:
        return self.loc, self.scale


def test_a_guide_in_place_of_its_factors_is_refused():
    guide = ps.guides.DiagonalGaussian(ps.nn.MLPEncoder((3,), 2))
    with pytest.raises(TypeError, match="factors of a guide.*give guide.factors"):
        VampComponents.at(guide, np.random.rand(5, 3))


def vamp_of(guide: type[nn.Module]) -> VampComponents:
    encoder = ps.nn.MLPEncoder((3,), 1, hidden=(4,))
    return VampComponents.at(guide(encoder).factors, np.random.rand(5, 3))


@pytest.mark.parametrize("family", [Mixture, TwoTier])
@pytest.mark.parametrize(
    "scale, match",
    [
        (-torch.ones(3, 1), "scales from -1 to -1"),
        (torch.tensor([[1.0], [0.0], [2.0]]), "scales from 0 to 2"),
        (torch.full((3, 2), math.inf), "scales from inf"),
        (torch.full((3, 2), math.nan), "scales from nan"),
        (torch.ones(3), r"\(3, 2\) or \(3, 1\), got \(3, 2\) and \(3,\)"),
        (torch.ones(2), r"and \(2,\)"),
        (torch.ones(2, 1), r"and \(2, 1\)"),
    ],
)
def test_scales_of_own_components_that_are_no_deviations_are_refused(
    family, scale, match
):
    with pytest.raises(ValueError, match=match):
        family(2, Fixed(scale))


def test_what_components_must_return_is_named():
    with pytest.raises(TypeError, match="two tensors, means and scales"):
        Mixture(2, Fixed(1.0))
    with pytest.raises(ValueError, match=r"means of shape \(3, 3\).*got \(3, 2\)"):
        Mixture(3, Fixed(torch.ones(3, 1)))
    with pytest.raises(TypeError, match=r"raw numbers.*GaussianFactors"):
        vamp_of(ps.guides.FullGaussian)
    with pytest.raises(ValueError, match="finite numbers in inputs"):
        VampComponents.at(nn.Identity(), torch.full((2, 3), math.nan))


def test_components_whose_scales_turn_negative_are_refused_before_a_fit():
    own = Fixed(torch.ones(3, 1))
    prior = Mixture(2, own)
    own.scale = -own.scale
    encoder, decoder = ps.nn.MLPEncoder((3,), 2), ps.nn.MLPDecoder(2, (3,))
    likelihood = ps.likelihoods.Gaussian(0.5)
    joint = ps.Joint(prior, likelihood, encoder, decoder)
    with pytest.raises(ValueError, match="scales from -1 to -1"):
        ps.fit(ps.limits.SimVAE(joint), torch.randn(6, 2, 3), epochs=1)


def test_a_vamp_prior_is_the_mean_of_the_posteriors_of_its_inputs():
    components = vamp_of(ps.guides.DiagonalGaussian)
    prior = Mixture(1, components, learn_weights=False)
    loc, scale = components.factors(components.inputs.unsqueeze(1))
    z = torch.randn(4, 1, 1)
    log_q = dist.Normal(loc.flatten(), scale.flatten()).log_prob(z.squeeze(-1))
    exact(prior.log_prob(z), log_q.logsumexp(1) - math.log(5))


def test_components_start_at_the_means_of_a_data_frame():
    z, labels = np.random.randn(30, 2), np.arange(30) % 3
    means = pd.DataFrame(z).groupby(labels + 2).mean()
    exact(Components.at(means)()[0].detach(), torch.tensor(means.to_numpy(copy=True)))
