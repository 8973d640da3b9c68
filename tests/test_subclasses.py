"""Subclasses with a density of their own are not taken for their base classes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import DIM, EVENT, encoder, joint
from torch import Tensor
from torch.distributions import constraints
from torch.testing import assert_close

import probssl as ps
from probssl.distributions.mixture import SharedComponent
from probssl.posterior.representation import own_z


class HalfVonMises(dist.VonMises):
    """The size of an angle, from 0 to π."""

    support = constraints.interval(0.0, math.pi)

    def log_prob(self, value):
        return super().log_prob(value) + math.log(2)

    def sample(self, sample_shape=torch.Size()):
        return super().sample(sample_shape).abs()


class PositiveMixture(dist.MixtureSameFamily):
    """A mixture of normals, cut at 0 as a whole."""

    support = constraints.positive

    def log_prob(self, value):
        above = 1 - self.component_distribution.cdf(torch.zeros(()))
        mass = (self.mixture_distribution.probs * above).sum(-1)
        return super().log_prob(value) - mass.log()

    def sample(self, sample_shape=torch.Size()):
        y = super().sample(sample_shape)
        while bool((y <= 0).any()):
            y = torch.where(y <= 0, super().sample(sample_shape), y)
        return y


def positive_mixture() -> PositiveMixture:
    shares = dist.Categorical(torch.ones(1, 2))
    loc, scale = torch.tensor([[-0.2, 1.0]]), torch.tensor([[0.5, 0.3]])
    return PositiveMixture(shares, dist.Normal(loc, scale), validate_args=False)


@pytest.mark.parametrize(
    "content, top",
    [
        (HalfVonMises(torch.zeros(1), torch.full((1,), 2.0)), math.pi),
        (positive_mixture(), 8.0),
    ],
    ids=["angle", "mixture"],
)
def test_a_content_is_integrated_over_its_own_support(content, top):
    prior = ps.priors.Custom(
        lambda y: dist.Normal(y, 0.4).to_event(1), 1, y_prior=content.to_event(1)
    )
    z = torch.tensor([[[0.3], [0.5]], [[-0.2], [0.1]]])
    step = top / 40_000
    y = (torch.arange(40_000) + 0.5)[:, None] * step
    log_y = content.log_prob(y)[:, 0] + math.log(step)
    each = [dist.Normal(y, 0.4).log_prob(pair[:, 0]).sum(-1) for pair in z]
    exact = torch.stack([(log_y + one).logsumexp(0) for one in each])
    with torch.no_grad():
        assert_close(prior.log_prob(z), exact, rtol=0, atol=2e-3)


def test_data_off_the_own_support_of_a_mixture_are_refused():
    class Positive(ps.likelihoods.Likelihood):
        measure = "length"

        def forward(self, output: Tensor) -> dist.TorchDistribution:
            loc = output.unsqueeze(-1) + torch.tensor([0.0, 1.0])
            shares = dist.Categorical(torch.ones_like(loc))
            parts = dist.Normal(loc, torch.full_like(loc, 0.5))
            return PositiveMixture(shares, parts, validate_args=False)

    model = ps.Joint(
        ps.priors.Gaussian(DIM), Positive(), encoder(), torch.nn.Linear(DIM, EVENT)
    )
    with pytest.raises(ValueError, match="on the support of p.x.z., numbers above 0"):
        ps.evidence(model, -torch.ones(2, EVENT))


STATES = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2)


class Ising(dist.Independent):
    """Two bits that attract each other: no product of its base."""

    def __init__(self, probs):
        super().__init__(dist.Bernoulli(probs, validate_args=False), 1)

    def _energy(self, value):
        return super().log_prob(value) + 1.5 * value.prod(-1)

    def log_prob(self, value):
        return self._energy(value) - self._energy(STATES).logsumexp(0)

    def sample(self, sample_shape=torch.Size()):
        each = dist.Categorical(logits=self.log_prob(STATES))
        return STATES[each.sample(torch.Size(sample_shape))]

    def expand(self, batch_shape, _instance=None):
        return Ising(self.base_dist.probs.expand(*batch_shape, 2))


def test_dependent_bits_are_summed_out_together():
    def given(y: Tensor) -> dist.TorchDistribution:
        return dist.Normal(3 * y - 1.5, 0.7).to_event(1)

    content = Ising(torch.tensor([0.3, 0.4]))
    prior = ps.priors.Custom(given, 2, y_prior=content)
    z = torch.tensor([[[1.3, 1.1], [1.6, 1.2]], [[-1.0, 1.2], [-1.5, 0.9]]])
    each = [given(STATES).log_prob(pair[:, None]).sum(0) for pair in z]
    exact = torch.stack([(content.log_prob(STATES) + one).logsumexp(0) for one in each])
    assert_close(prior.log_prob(z), exact)


class Tilted(dist.MixtureSameFamily):
    """Its components are no longer those of its base."""

    def log_prob(self, value):
        tilt = torch.special.log_ndtr(3 * value).sum(-1)
        return super().log_prob(value) + tilt


def test_components_of_a_subclass_of_a_mixture_are_not_known():
    loc = torch.tensor([[-1.0] * DIM, [1.0] * DIM])
    parts = dist.Categorical(torch.ones(2)), dist.Normal(loc, 1.0).to_event(1)
    for kind, known in ((dist.MixtureSameFamily, True), (Tilted, False)):
        content = kind(*parts, validate_args=False)
        prior = ps.priors.Custom(
            lambda y: dist.Normal(y, 0.3).to_event(1), DIM, y_prior=content
        )
        model = joint(prior, content=ps.guides.Content(DIM))
        found = ps.posterior_y(model, torch.randn(3, EVENT), draws=4)
        assert (found.shares is not None) == known


class Views(SharedComponent):
    """Views of a component with a density of their own."""


class LaplaceMixture(ps.priors.Mixture):
    def forward(self, views, **options):
        p = super().forward(views, **options)
        return Views(p.logits, p.loc, p.scale, p.y_scale, views)


class GivenMixture(LaplaceMixture):
    def given(self, y, **drawn):
        p = self(1)
        loc, scale = torch.broadcast_tensors(p.loc, p.scale)
        return dist.Laplace(loc[y], scale[y]).to_event(1)


def test_views_of_a_component_are_drawn_from_the_own_p_z_given_k():
    with torch.no_grad():
        prior = GivenMixture(DIM, 2, 0.5)
        z = torch.as_tensor(ps.generate(joint(prior), [1], views=20_000).z[0])
        apart = (z - prior(1).loc[1]) / prior(1).scale.expand(2, DIM)[1]
        kurtosis = apart.pow(4).mean(0) / apart.square().mean(0).square()
        assert (kurtosis - 6).abs().max() < 1  # a normal has 3
        with pytest.raises(ValueError, match="a method given"):
            ps.generate(joint(LaplaceMixture(DIM, 2, 0.5)), [1])


class Classes(ps.priors.TwoTier):
    """Two classes of two clusters each."""

    own = torch.tensor([0, 0, 1, 1])

    def component(self):
        share = self.logits.softmax(-1)
        return dist.Categorical(
            torch.stack([share[self.own == c].sum() for c in (0, 1)])
        )

    def responsibilities(self, z, present=None, **given):
        share = self.of(z, present, **given).component(z).probs
        each = [share[..., self.own == c].sum(-1) for c in (0, 1)]
        return dist.Categorical(torch.stack(each, -1))


def test_classes_of_several_clusters_are_classes():
    centres = torch.tensor([[-6.0], [-2.0], [2.0], [6.0]]).expand(4, DIM)
    prior = Classes(DIM, ps.priors.Components.at(centres), scale=0.3, y_scale=0.5)
    model = joint(prior, guide=ps.guides.CoupledLikelihoods)
    x = torch.randn(3, EVENT)
    assert ps.classify(model, x).shape == (3, 2)
    with pytest.raises(TypeError, match="has 2 components.*of another number"):
        ps.posterior_y(model, x)


class TwoModes(dist.MixtureSameFamily):
    """A q(z|x) with a `component` and `log_evidences` of its own."""

    component = dist.Categorical(torch.tensor([0.9, 0.1]))
    log_evidences = torch.tensor([0.0, -5.0])

    @property
    def each(self):  # no q of a view
        return dist.Normal(torch.zeros(1), 99.0)


class TwoModesGuide(ps.guides.DiagonalGaussian):
    def forward(self, x, prior, present=None):
        loc, scale = (part.unsqueeze(1) for part in self.factors(x))
        both = dist.Normal(torch.cat([loc - 1, loc + 1], 1), scale).to_event(2)
        return TwoModes(dist.Categorical(torch.ones(len(x), 2)), both)


class OwnClusters(ps.guides.DiagonalGaussian):
    """Views coupled by a mixture of the guide's own, not by that of the prior."""

    def forward(self, x, prior, present=None):
        views = prior().event_shape[0]
        own = SharedComponent(
            torch.zeros(2),
            torch.tensor([[2.0], [-2.0]]).expand(2, DIM),
            torch.ones(1, 1),
            torch.ones(1, 1),
            views,
        )
        return own.times(*self.factors(x))


@pytest.mark.parametrize("guide", [TwoModesGuide, OwnClusters])
def test_components_of_a_guide_are_no_classes(guide):
    """E_q[p(k|z)] by draws of q, within five standard errors."""
    means = torch.tensor([[-2.0], [2.0]]).expand(2, DIM)
    prior = ps.priors.Mixture(DIM, ps.priors.Components.at(means), 0.5)
    with torch.no_grad():
        model = joint(prior, guide=guide)
        x = torch.randn(3, EVENT)
        batch = ps.Batch(x[:, None])
        z = model.encode(batch).sample((4_000,))
        share = prior.responsibilities(z).probs
        found = model.responsibilities(batch, draws=4_000)
        error = 2**0.5 * share.std(0) / len(z) ** 0.5
    assert ((found - share.mean(0)).abs() < 5 * error + 1e-6).all()


def test_the_label_of_a_guide_with_modes_is_that_of_its_draws():
    prior = ps.priors.Mixture(DIM, 2, 0.5)
    model = joint(prior, guide=TwoModesGuide)
    k = torch.tensor([0, 1, -1])
    batch = ps.Batch(torch.randn(3, 1, EVENT), content=k)
    with torch.no_grad():
        found = ps.bounds.log_weights(model, batch, 4_000, labelled=True).label
        z = model.encode(batch).sample((4_000,))
        own = prior.responsibilities(z).logits[:, torch.arange(3), k.clamp(min=0)]
    own = own.where(k >= 0, 0.0)
    error = (2 * own.var(0) / len(z)).sqrt()
    assert ((found.mean(0) - own.mean(0)).abs() <= 5 * error).all()


def test_the_deviation_of_z_is_that_of_q_whatever_its_attributes():
    model = joint(ps.priors.Independent(DIM), guide=TwoModesGuide)
    x = torch.randn(3, EVENT)
    found = torch.as_tensor(ps.embed(model, x, return_std=True)[1])
    with torch.no_grad():
        assert_close(found, model.alone(x).stddev[:, 0])


class LaplaceViews(SharedComponent):
    def log_prob(self, value):
        return dist.Laplace(0.0, 1.0).log_prob(value).sum((-1, -2))


class OfLaplaceViews(ps.priors.Mixture):
    def forward(self, views, **options):
        p = super().forward(views, **options)
        return LaplaceViews(p.logits, p.loc, p.scale, p.y_scale, views)


def test_the_product_of_another_density_is_not_that_of_the_base():
    model = joint(OfLaplaceViews(DIM, 2, 0.5), guide=ps.guides.Coupled)
    with pytest.raises(ValueError, match="closed for the guide Coupled"):
        model.encode(ps.Batch(torch.randn(3, 2, EVENT)))


class Skewed(dist.Independent):
    def log_prob(self, value):
        tilt = torch.special.log_ndtr(value - self.base_dist.loc).sum((-1, -2))
        return super().log_prob(value) + tilt


class SkewedGuide(ps.guides.DiagonalGaussian):
    def forward(self, *args, **options):
        return Skewed(super().forward(*args, **options).base_dist, 2)


def test_a_guide_of_its_own_density_has_no_divergence_in_closed_form():
    model = joint(ps.priors.Independent(DIM), guide=SkewedGuide)
    found = ps.posterior.rate_distortion(model, torch.randn(5, EVENT))
    assert found.kl_per_dimension is None


class Masked(ps.likelihoods.Likelihood):
    measure = "length"

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        seen = torch.arange(output.shape[-1]) % 2 == 0
        return dist.Normal(output, 1.0).mask(seen.expand(output.shape)).to_event(1)


def test_masked_pixels_distort_nothing():
    model = ps.Joint(
        ps.priors.Independent(DIM), Masked(), encoder(), torch.nn.Linear(DIM, EVENT)
    )
    x, odd = torch.randn(4, EVENT), torch.arange(EVENT) % 2 == 1
    with torch.no_grad():
        mean = model.decoder(
            model.encode(ps.Batch(x[:, None])).sample((4_000,))[:, :, 0]
        )
        log_p = dist.Normal(mean, 1.0).log_prob(x)[..., ~odd].sum(-1)
    torch.manual_seed(0)
    many = ps.posterior.rate_distortion(model, x, draws=4_000)
    error = log_p.std(0).div(4_000**0.5).mean()
    assert abs(many.distortion.value + float(log_p.mean())) < 10 * float(error)


class Halved(ps.limits.SimVAE):
    def represent(self, x, layer="backbone"):
        return super().represent(x, layer) / 2


class HalvedJoint(ps.Joint):
    def represent(self, x, layer="backbone"):
        return super().represent(x, layer) / 2


class Headed(torch.nn.Module):
    """An objective of one's own with a joint."""

    def __init__(self, model, head):
        super().__init__()
        self.joint, self.head = model, head

    def forward(self, batch):
        return ps.bounds.ELBO()(self.joint, batch)

    def represent(self, x):
        return self.head(self.joint.represent(x))


def parts_of(model):
    return model.prior, model.likelihood, model.encoder, model.decoder


def halved(guide=ps.guides.DiagonalGaussian):
    model = joint(ps.priors.Gaussian(DIM, 0.5), guide=guide)
    other = HalvedJoint(*parts_of(model), guide=guide)
    head = torch.nn.Linear(DIM, 2, bias=False)
    return Halved(model), ps.limits.SimVAE(other), other, Headed(model, head)


@pytest.mark.parametrize("index", range(4))
def test_an_own_represent_counts_for_groups_of_views(index):
    objective, x = halved()[index], torch.randn(4, 3, EVENT)
    present = torch.tensor([[True, True, True]] * 3 + [[False, True, True]])
    with torch.no_grad():
        z = objective.represent(x.flatten(0, 1)).unflatten(0, (4, 3))
    mean = torch.stack([*z[:3].mean(1), z[3, 1:].mean(0)])
    groups = ps.data.groups(x, present=present)
    assert_close(torch.as_tensor(ps.embed(objective, groups)), mean)
    found = ps.novelty(objective, groups, groups, k=1)
    assert found.distance.max() == 0
    for data in (x[:, 0], groups):
        with pytest.raises(ValueError, match="another z"):
            ps.embed(objective, data, return_std=True)


def test_an_own_represent_that_is_the_mean_of_q_has_its_deviation():
    model = joint(ps.priors.Gaussian(DIM, 0.5), guide=ps.guides.Coupled)
    objective, x = Headed(model, torch.nn.Identity()), torch.randn(4, 2, EVENT)
    for ask in (
        lambda part: ps.embed(part, x[:, 0], return_std=True)[1],
        lambda part: ps.embed(part, ps.data.groups(x)),  # of both views together
    ):
        assert (ask(objective) == ask(model)).all()


def test_an_own_represent_takes_all_modalities():
    model = ps.Joint(
        ps.priors.Gaussian(DIM, 0.5),
        (ps.likelihoods.Gaussian(), ps.likelihoods.Gaussian()),
        ps.nn.PerModality([encoder(), encoder()]),
        ps.nn.PerModality([torch.nn.Linear(DIM, EVENT) for _ in range(2)]),
    )
    objective = Halved(model)
    a, b = torch.randn(2, 4, EVENT)
    groups = ps.data.groups((a, b))
    assert (ps.embed(objective, groups) == ps.embed(objective, (a, b))).all()
    present = torch.tensor([[True, True]] * 3 + [[True, False]])
    absent = ps.data.groups((a, b), present=present)
    with pytest.raises(ValueError, match="a view of each modality"):
        ps.embed(objective, absent)


class Shifted(ps.Joint):
    """p(x|z) of another mean, by the public `decode`."""

    def decode(self, z):
        found = super().decode(z)
        each = found if isinstance(found, tuple) else (found,)
        moved = tuple(dist.Normal(p.mean + 3.0, 0.5).to_event(1) for p in each)
        return moved if isinstance(found, tuple) else moved[0]


@pytest.mark.parametrize("modalities", [1, 2])
def test_an_own_decode_is_p_x_given_z_everywhere(modalities):
    nets = [torch.nn.Linear(DIM, EVENT) for _ in range(modalities)]
    several = modalities > 1
    model = Shifted(
        ps.priors.Gaussian(DIM, 0.5),
        (ps.likelihoods.Gaussian(0.5),) * 2
        if several
        else ps.likelihoods.Gaussian(0.5),
        ps.nn.PerModality([encoder(), encoder()]) if several else encoder(),
        ps.nn.PerModality(nets) if several else nets[0],
    )
    batch = ps.Batch(torch.randn(4, 2, EVENT) + 3)
    model.check(batch)
    with torch.no_grad():
        trace = pyro.poutine.trace(model.model).get_trace(batch)
        z, views = trace.nodes["z"]["value"], batch.views
        log_p = sum(
            dist.Normal(net(z[:, v]) + 3.0, 0.5).log_prob(views[:, v]).sum(-1)
            for v, net in enumerate(nets * (2 // modalities))
        )
        log_z = trace.nodes["z"]["fn"].log_prob(z)
        assert_close(trace.log_prob_sum(), (log_p + log_z).sum())


class EachOfCoupled(ps.guides.Coupled):
    def each(self, x, present=None):
        return dist.Normal(self.single(x, present)[0], 1.0).to_event(1)


class WiderPrior(ps.priors.Gaussian):
    def log_prob(self, z, present=None):
        return super().log_prob(z, present) / 2


def test_methods_that_a_joint_would_pass_by_are_refused():
    batch = ps.Batch(torch.randn(4, 2, EVENT))
    with pytest.raises(TypeError, match="EachOfCoupled with a method each"):
        joint(ps.priors.Gaussian(DIM, 0.5), guide=EachOfCoupled).encode(batch)
    with pytest.raises(ValueError, match="got WiderPrior with another one"):
        joint(WiderPrior(DIM, 0.5)).check(batch)


class OwnShares(ps.priors.Mixture):
    def posterior_y(self, z, present=None, **given):
        return dist.Categorical(torch.tensor([0.9, 0.1]).expand(*z.shape[:-2], 2))


class OwnContents(ps.priors.TwoTier):
    def posterior_y(self, z, present=None, **given):
        y = super().posterior_y(z, present, **given).component_distribution
        shares = torch.tensor([0.9, 0.1]).expand(y.batch_shape)
        return dist.MixtureSameFamily(dist.Categorical(shares), y)


class OwnResponsibilities(ps.priors.TwoTier):
    def responsibilities(self, z, present=None, **given):
        return dist.Categorical(torch.tensor([0.9, 0.1]).expand(*z.shape[:-2], 2))


@pytest.mark.parametrize("kind", [OwnShares, OwnContents, OwnResponsibilities])
def test_the_component_is_that_of_an_own_posterior_y(kind):
    found = ps.posterior_y(joint(kind(DIM, 2)), torch.randn(3, EVENT), draws=400)
    assert abs(found.shares - [0.9, 0.1]).max() < 1e-5


def test_an_own_represent_has_no_content():
    model = joint(ps.priors.ContentStyle(DIM - 1, 1, scale=0.5))
    x = torch.randn(4, EVENT)
    own = Headed(model, torch.nn.Linear(DIM, DIM))
    with pytest.raises(ValueError, match="no content dimensions"):
        ps.embed(own, x, layer="content")
    same = Headed(model, torch.nn.Identity())
    assert_close(
        torch.as_tensor(ps.embed(same, x, layer="content")),
        torch.as_tensor(ps.embed(model, x, layer="content")),
    )


def test_an_own_represent_of_an_embedding_has_no_content():
    class Features(ps.limits.Embedding):
        def represent(self, x, layer="backbone"):
            return 2 * super().represent(x, layer)

    parts = ps.priors.ContentStyle(2, 1, 0.3), ps.entropies.KernelDensity()
    x, encoder = torch.randn(5, 4), ps.nn.MLPEncoder((4,), 3)
    plain = ps.limits.Embedding(encoder, *parts, plug_in=True)
    assert ps.embed(plain, x, layer="content").shape == (5, 2)
    with pytest.raises(ValueError, match="output of the networks .*take the columns"):
        ps.embed(Features(encoder, *parts, plug_in=True), x, layer="content")


def test_an_own_represent_is_told_from_the_mean_of_q():
    model, x = joint(ps.priors.Gaussian(DIM, 0.5)), torch.randn(4, EVENT)
    own = Headed(model, torch.nn.Linear(DIM, DIM))
    assert own_z(own, x) and not own_z(Headed(model, torch.nn.Identity()), x)
