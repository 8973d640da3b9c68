"""Several modalities, absent views and observed contents in one joint."""

import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_mean, refusals, seeded, traces
from helpers.linear import ExactFactors, exact
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close
from torch.utils.data import DataLoader

import probssl as ps
from probssl.bounds import ELBO, IWAE, log_weights
from probssl.data.splits import Groups, Split
from probssl.posterior import classify, complete, embed, reconstruct, sample, to_arviz
from probssl.posterior import evidence as evidence_of
from probssl.priors import Gaussian, Mixture, Prior, Spherical, TwoTier
from probssl.terms import Batch
from probssl.testing import check_objective

pytestmark = pytest.mark.usefixtures("float64")
DIM, EVENTS, NOISES = 2, (5, 3), (0.4, 0.7)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def linear_gaussian(
    prior: Prior, guide: Callable = ps.guides.CoupledLikelihoods
) -> ps.Joint:
    """x = W z + noise in each modality; orthogonal columns make factors diagonal."""
    encoders, decoders = [], []
    for event, noise in zip(EVENTS, NOISES, strict=True):
        weight = torch.linalg.qr(torch.randn(event, DIM)).Q * torch.tensor([0.5, 2.0])
        decoders.append(nn.Linear(DIM, event, bias=False))
        decoders[-1].weight = nn.Parameter(weight)
        encoders.append(ExactFactors(weight, noise))
    likelihoods = tuple(ps.likelihoods.Gaussian(noise) for noise in NOISES)
    networks = (ps.nn.PerModality(encoders), ps.nn.PerModality(decoders))
    return ps.Joint(prior, likelihoods, *networks, guide=exact(guide))


def evidence(joint: ps.Joint, batch: Batch, means: Tensor, y_scale: float) -> Tensor:
    """log p(x present | k) of all items and components, by dense linear algebra."""
    views = batch.shape[1]
    share = joint.prior.scale().square() * torch.eye(views) + y_scale**2
    z = torch.kron(share, torch.eye(DIM))
    weights, noises = [], []
    for net, noise, width in zip(
        joint.decoder.parts, NOISES, batch.widths, strict=True
    ):
        weights += [net.weight.detach()] * width
        noises += [torch.full((len(net.weight),), noise**2)] * width
    weight = torch.block_diag(*weights)
    covariance = weight @ z @ weight.T + torch.cat(noises).diag()
    x = torch.cat([part.flatten(1) for part in batch.parts], 1)
    found = []
    lengths = torch.tensor([len(w) for w in weights])
    whole = torch.ones(len(x), views).bool()
    present = whole if batch.present is None else batch.present
    for i, seen in enumerate(present.repeat_interleave(lengths, 1)):
        loc = torch.zeros(int(seen.sum()))
        normal = MultivariateNormal(loc, covariance[seen][:, seen])
        centres = [(weight @ mean.repeat(views))[seen] for mean in means]
        found.append(torch.stack([normal.log_prob(x[i, seen] - c) for c in centres]))
    return torch.stack(found)


def two_modalities(items: int = 6) -> Batch:
    """Two views of one modality and one of the other."""
    return Batch((torch.randn(items, 2, EVENTS[0]), torch.randn(items, 1, EVENTS[1])))


def some_absent(batch: Batch) -> Batch:
    """Every pattern of present views but none; what is absent holds NaN."""
    present = torch.tensor(
        [[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1]]
    ).bool()
    parts = zip(batch.views, present.split(batch.widths, 1), strict=True)
    views = tuple(x.where(seen.unsqueeze(-1), math.nan) for x, seen in parts)
    return batch._replace(views=views, present=present)


@pytest.mark.parametrize("absent", [False, True])
def test_elbo_of_two_modalities_is_the_evidence_under_the_coupled_guide(absent):
    joint, batch = linear_gaussian(Gaussian(DIM, 0.6, 1.3)), two_modalities()
    batch = some_absent(batch) if absent else batch
    joint.check(batch)
    found = log_weights(joint, batch, particles=3).local()
    exact = evidence(joint, batch, torch.zeros(1, DIM), 1.3).squeeze(1)
    assert_close(found, exact.expand(3, -1), **EXACT)


def priors(weights: Tensor) -> list[tuple[Prior, float]]:
    found: list[tuple[Prior, float]] = [
        (Mixture(DIM, 3, 0.6), 0.0),
        (TwoTier(DIM, 3, 0.6, 1.3), 1.3),
    ]
    for prior, _ in found:
        prior.logits.data = weights.log()
    return found


CONTENT = torch.tensor([0, 2, -1, 1, -1, 2])


def given(content: Tensor, log_joint: Tensor) -> Tensor:
    """log p(x, k) where k is known, log p(x) where it is not."""
    one = log_joint.gather(1, content.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(content < 0, log_joint.logsumexp(1), one)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("absent", [False, True])
def test_elbo_with_observed_contents_is_their_joint_evidence(index, absent):
    prior, y_scale = priors(torch.tensor([0.2, 0.3, 0.5]))[index]
    joint, batch = linear_gaussian(prior), two_modalities()
    batch = (some_absent(batch) if absent else batch)._replace(content=CONTENT)
    means, weights = prior.components()[0], prior.logits.log_softmax(0)
    log_joint = weights + evidence(joint, batch, means, y_scale)
    exact = given(CONTENT, log_joint)
    joint.check(batch)
    found = log_weights(joint, batch, particles=3).local()
    assert_close(found, exact.expand(3, -1), **EXACT)
    assert_close(joint.responsibilities(batch), log_joint.softmax(1), **EXACT)
    # The weights and means of the prior: all else is held fixed in `evidence`.
    leaves = [prior.logits, *prior.components.parameters()]
    grads, expected = (
        torch.autograd.grad(value.mean(), leaves, allow_unused=True)
        for value in (found, exact)
    )
    assert all(grad.isfinite().all() for grad in grads if grad is not None)
    assert_close(grads, expected, **EXACT)


def test_the_density_of_observed_contents_counts_as_alignment():
    prior, _ = priors(torch.tensor([0.2, 0.3, 0.5]))[1]
    joint, content = linear_gaussian(prior), CONTENT
    batch = two_modalities()._replace(content=content)
    terms = seeded(ELBO(), joint, batch)
    z = seeded(traces, joint, batch)[0].nodes["z"]["value"]
    each = torch.stack(
        [prior(3, component=torch.tensor(k)).log_prob(z) for k in range(3)]
    )
    each = each + torch.tensor([[0.2], [0.3], [0.5]]).log()
    expected = given(content, each.mT).mean()
    assert_close(terms.alignment, expected)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("absent", [False, True])
def test_the_label_term_is_the_posterior_of_known_components(index, absent):
    prior, y_scale = priors(torch.tensor([0.2, 0.3, 0.5]))[index]
    joint, batch = linear_gaussian(prior), two_modalities()
    batch = (some_absent(batch) if absent else batch)._replace(content=CONTENT)
    means, weights = prior.components()[0], prior.logits.log_softmax(0)
    posterior = (weights + evidence(joint, batch, means, y_scale)).log_softmax(1)
    label = posterior.gather(1, CONTENT.clamp(min=0).unsqueeze(1)).squeeze(1)
    expected = 7.0 * label[CONTENT >= 0].mean()
    exact = seeded(ELBO(), joint, batch)
    for share in (None, torch.tensor(0.25)):  # of the batch, of a data set
        simvae = ps.limits.SimVAE(joint, label_weight=7.0)
        simvae.labelled = share
        found = seeded(simvae, batch)
        scale = 1.0 if share is None else (4 / 6) / 0.25
        assert_close(found.penalty, scale * expected, **EXACT)
        assert_close(found[:4], exact[:4], **EXACT)
    # Items weigh alike, in whichever process or batch they are.
    halves = [
        batch._replace(
            views=tuple(part[half] for part in batch.views),
            present=None if batch.present is None else batch.present[half],
            content=CONTENT[half],
        )
        for half in (slice(3), slice(3, 6))
    ]
    mean = sum(simvae(half).penalty for half in halves) / 2
    assert_close(mean, found.penalty, **EXACT)
    unweighted = seeded(ps.limits.SimVAE(joint, label_weight=0.0), batch)
    assert_close(sum(unweighted), sum(exact), **EXACT)


@pytest.mark.parametrize("bound", [ELBO(3), IWAE(3)])
@pytest.mark.parametrize("scale", [0.6, dist.LogNormal(-0.5, 0.3)])
def test_labels_are_weighed_at_draws_of_a_guide_that_does_not_know_them(bound, scale):
    prior = TwoTier(DIM, 3, scale, 1.3)
    prior.logits.data = torch.tensor([0.2, 0.3, 0.5]).log()
    joint = linear_gaussian(prior, ps.guides.DiagonalGaussian)
    joint.population = torch.tensor(6.0)
    batch = some_absent(two_modalities())._replace(content=CONTENT)
    torch.manual_seed(1)
    guide = joint.guide
    if isinstance(bound, IWAE):  # one scale for all samples
        once = poutine.trace(lambda: [h.sample_guide() for h in prior.random()])
        guide = poutine.replay(guide, trace=once.get_trace())
    with pyro.plate("particles", 3, dim=-2):
        nodes = poutine.trace(guide).get_trace(batch).nodes
    drawn = {h.name: nodes[h.name]["value"] for h in prior.random()}
    options = {"present": batch.present} | drawn
    each = [
        prior(3, component=torch.full((6,), k), **options).log_prob(nodes["z"]["value"])
        for k in range(3)
    ]
    shares = (torch.stack(each, -1) + prior.logits.log_softmax(0)).log_softmax(-1)
    label = shares[:, torch.arange(6), CONTENT].where(CONTENT >= 0, 0.0)
    simvae = ps.limits.SimVAE(joint, bound, label_weight=2.0)
    simvae.labelled = torch.tensor(0.5)
    assert_close(seeded(simvae, batch).penalty, 4.0 * label.mean(), **EXACT)


def test_a_weighted_label_is_as_many_annotators_who_agree():
    """The tempered evidence, by quadrature, is the mean of the importance weights."""
    prior, annotators = Mixture(1, ps.priors.Components.at([[-1.0], [0.7]]), 0.6), 4
    prior.logits.data = torch.tensor([0.3, 0.7]).log()
    decoder = nn.Linear(1, 3)
    encoder = ps.nn.MLPEncoder((3,), 1, hidden=(4,))
    joint = ps.Joint(prior, ps.likelihoods.Gaussian(0.8), encoder, decoder)
    x, k = torch.randn(2, 1, 3), torch.tensor([1, 0])
    batch = Batch(x, content=k)
    weights = log_weights(joint, batch, 20_000, labelled=True)
    log_weight = weights.local() + (annotators - 1) * weights.label
    grid = torch.linspace(-8, 8, 4_001).view(-1, 1, 1)
    log_z = prior.log_prob(grid)
    log_k = prior.logits.log_softmax(0) + torch.distributions.Normal(
        prior.components()[0].mT, 0.6
    ).log_prob(grid.squeeze(-1))
    log_k = (log_k - log_z.unsqueeze(-1))[:, k]
    mean = decoder(grid.squeeze(-1)).unsqueeze(1)
    log_x = torch.distributions.Normal(mean, 0.8).log_prob(x[:, 0]).sum(-1)
    height = (log_x + log_z.unsqueeze(-1) + annotators * log_k).exp()
    exact = torch.trapezoid(height, grid.view(-1), dim=0)
    assert_mean(log_weight.exp() / exact, torch.ones(2))
    simvae = ps.limits.SimVAE(joint, ELBO(20_000), label_weight=annotators - 1.0)
    assert sum(simvae(batch)) < exact.log().mean()


def test_fit_counts_the_labels_and_refuses_them_before_the_first_step():
    joint = ps.Joint(
        TwoTier(DIM, 3, 0.5),
        ps.likelihoods.Gaussian(0.5),
        ps.nn.MLPEncoder((5,), DIM, hidden=(6,)),
        ps.nn.MLPDecoder(DIM, (5,), hidden=(6,)),
    )
    simvae, x = ps.limits.SimVAE(joint), torch.randn(40, 5)
    before = {name: value.clone() for name, value in simvae.state_dict().items()}
    options = {"epochs": 1, "batch_size": 10, "progress": False}
    unknown = torch.full((40,), -1)
    late = unknown.clone()
    late[-1] = 3
    for bad, message in ((unknown, "each of the 40 items"), (late, "0 to 3|-1 to 3")):
        with pytest.raises(ValueError, match=message):
            ps.fit(simvae, x, content=bad, **options)
    assert_close({name: simvae.state_dict()[name] for name in before}, before)
    assert simvae.labelled is None
    known = torch.where(torch.arange(40) < 10, torch.arange(40) % 3, unknown)
    ps.fit(simvae, x, content=known, **options)
    assert_close(simvae.labelled.item(), 0.25)
    ps.fit(simvae, x, **options)
    assert simvae.labelled is None


def test_unknown_contents_change_nothing():
    joint, batch = linear_gaussian(Mixture(DIM, 3)), two_modalities()
    unknown = batch._replace(content=torch.full((6,), -1))
    assert_close(*(seeded(ELBO(2), joint, each) for each in (batch, unknown)))


def test_observed_contents_are_sites_of_their_own_for_pyros_tools():
    joint = linear_gaussian(Mixture(DIM, 3))
    batch = two_modalities()._replace(content=torch.tensor([0, 1, 2, -1, 0, 1]))
    nodes = poutine.trace(joint.model).get_trace(batch).nodes
    sites = ["component", "z", "x_0", "x_1"]
    assert [name for name in nodes if name in sites] == sites
    drawn = Predictive(poutine.uncondition(joint.model), num_samples=7, parallel=True)
    sites = drawn(batch)
    assert sites["component"].shape == (7, 6)
    assert sites["x_0"].shape == (7, 6, 2, 5) and sites["x_1"].shape == (7, 6, 1, 3)


def test_an_explicit_content_is_drawn_in_the_component_that_is_known():
    prior = TwoTier(DIM, 3, 0.6, 1.3)
    known = torch.tensor([2, -1, 0])
    p, y = prior.content(component=known), torch.randn(3, DIM)
    loc = prior.components()[0]
    each = torch.distributions.Normal(loc, 1.3).log_prob(y.unsqueeze(1)).sum(-1)
    whole = (prior.logits.log_softmax(0) + each).logsumexp(1)
    expected = torch.stack([each[0, 2], whole[1], each[2, 0]])
    assert_close(p.log_prob(y), expected)
    joint = linear_gaussian(prior, ps.guides.DiagonalGaussian)
    joint.content = ps.guides.Content(DIM)
    batch = two_modalities()._replace(content=torch.tensor([0, 1, 2, -1, 0, 1]))
    sum(ELBO()(joint, batch)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in joint.parameters())


def checked(content: Tensor) -> Callable[[], None]:
    batch = two_modalities()._replace(content=content)
    return lambda: linear_gaussian(Mixture(DIM, 3)).check(batch)


test_contents_that_are_no_components_are_refused = refusals(
    (checked(torch.tensor([0, 1, 3, 0, 0, 0])), ValueError, "from -1 .* 0 to 3"),
    (checked(torch.tensor([0, 1, -2, 0, 0, 0])), ValueError, "from -1 .* -2 to 1"),
    (checked(torch.zeros(5).long()), ValueError, "6 whole numbers"),
    (checked(torch.zeros(6)), ValueError, "whole numbers"),
)


def test_other_priors_refuse_contents_and_name_those_that_take_them():
    joint, batch = linear_gaussian(Gaussian(DIM)), two_modalities()
    batch = batch._replace(content=torch.zeros(6).long())
    for call in (joint.check, joint.encode, joint.model, joint.responsibilities):
        with pytest.raises(ValueError, match=r"priors\.Mixture"):
            call(batch)


def test_contents_reach_the_objective_by_row_and_labels_do_not():
    seen: list[Batch] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, batch: Batch) -> ps.Terms:
            seen.append(batch)
            return ps.Terms(alignment=self.scale * batch.views.mean())

    x, known = torch.arange(20.0).view(20, 1), torch.arange(20) - 1
    split = ps.data.Split(x, labels=torch.arange(20))
    options = {"epochs": 1, "batch_size": 5, "progress": False}
    ps.fit(Watching(), split, **options)
    assert all(batch.content is None for batch in seen)
    grouped = ps.data.groups(x.unsqueeze(1), content=known.tolist())
    for data, own in ((split, known), (x, known.numpy()), (grouped, None)):
        seen.clear()
        ps.fit(Watching(), data, content=own, **options)
        for batch in seen:
            assert_close(batch.content, batch.views[:, 0, 0].long() - 1)
    for bad, error in (
        (known[:5], ValueError),
        (known - 1, ValueError),
        (known + 0.5, TypeError),
    ):
        with pytest.raises(error, match="content"):
            ps.fit(Watching(), split, content=bad, **options)
    with pytest.raises(ValueError, match="once"):
        ps.fit(Watching(), grouped, content=known, **options)
    assert_close(grouped.rows(torch.tensor([3, 1])).content, torch.tensor([2, 0]))


def mlp(guide: Callable = ps.guides.DiagonalGaussian, prior: Prior | None = None):
    likelihoods = (ps.likelihoods.Gaussian(ps.learned(0.5)), ps.likelihoods.Binomial(4))
    encoders = [ps.nn.MLPEncoder((n,), DIM, hidden=(6,)) for n in EVENTS]
    decoders = [ps.nn.MLPDecoder(DIM, (n,), hidden=(6,)) for n in EVENTS]
    networks = (ps.nn.PerModality(encoders), ps.nn.PerModality(decoders))
    prior = Gaussian(DIM, 0.5) if prior is None else prior
    return ps.Joint(prior, likelihoods, *networks, guide=guide)


def measured(items: int = 5) -> Batch:
    """Two views of a real vector, one of grey levels."""
    grey = torch.randint(0, 5, (items, 1, EVENTS[1])) / 4.0
    return Batch((torch.randn(items, 2, EVENTS[0]), grey))


GUIDES = ("DiagonalGaussian", "Coupled", "FullGaussian", "Flow")


@pytest.mark.parametrize("name", GUIDES)
def test_absent_modalities_hold_anything_and_change_nothing(name):
    if name == "Flow":
        pytest.importorskip("zuko")
    joint, batch = mlp(getattr(ps.guides, name)), measured()
    present = torch.tensor([[True, True, False]] * 5)
    values = []
    for filler in (math.nan, 7.0):
        grey = torch.full_like(batch.views[1], filler)
        absent = Batch((batch.views[0], grey), present=present)
        joint.check(absent)
        value = sum(seeded(ELBO(3), joint, absent))
        grads = torch.autograd.grad(value, list(joint.parameters()), allow_unused=True)
        values.append([value, *(grad for grad in grads if grad is not None)])
    assert all(v.isfinite().all() for v in values[0])
    assert_close(*values)


def test_reconstruction_is_the_sum_over_modalities():
    joint, batch = mlp(), measured()
    terms = seeded(ELBO(), joint, batch)
    guide, model = seeded(traces, joint, batch)
    each = [model.nodes[name]["log_prob"] for name in ("x_0", "x_1")]
    assert_close(terms.reconstruction, sum(each).mean())
    z = guide.nodes["z"]["value"]
    p = joint.decode(z.split((2, 1), -2))
    plain = [q.log_prob(x).sum(1) for q, x in zip(p, batch.views, strict=True)]
    assert_close(terms.reconstruction, sum(plain).mean())


def test_one_view_of_each_modality_may_be_one_tensor():
    joint = linear_gaussian(Gaussian(DIM))
    joint.decoder.parts[1] = nn.Linear(DIM, EVENTS[0])
    joint.posterior.factors.encoder.parts[1] = joint.encoder.parts[0]
    x = torch.randn(4, 2, EVENTS[0])
    batches = (Batch(views) for views in (x, x.split(1, 1)))
    assert_close(*(seeded(IWAE(3), joint, batch) for batch in batches))


SOME = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [1, 0, 0]]).bool()
KNOWN = torch.tensor([0, -1, 2, 1, -1])


@pytest.mark.parametrize(
    "guide, prior, known",
    [
        (ps.guides.DiagonalGaussian, lambda: Gaussian(DIM, 0.5), {"present": SOME}),
        (ps.guides.PowerSpherical, lambda: Spherical(DIM, 4.0), {"present": SOME}),
        (ps.guides.Coupled, lambda: Gaussian(DIM, 0.5), {}),
        (ps.guides.Coupled, lambda: TwoTier(DIM, 3, 0.5), {"content": KNOWN}),
    ],
    ids=["absent", "sphere", "coupled", "contents"],
)
def test_two_modalities_keep_the_laws_of_objectives(guide, prior, known):
    batch = measured()._replace(**known)
    check_objective(ps.limits.SimVAE(mlp(guide, prior())), batch, repeats=5)


def test_the_measure_of_two_modalities_is_the_product():
    assert mlp().likelihood.measure == "Lebesgue × counting, {0, …, 4} / 4"


def built(
    several: tuple[bool, bool, bool], modalities: int = 2
) -> Callable[[], object]:
    """A joint of which likelihood, encoder or decoder may be one for all modalities."""
    parts = ps.likelihoods.Gaussian(), ps.nn.MLPEncoder((3,), DIM)
    one = [*parts, ps.nn.MLPDecoder(DIM, (3,))]
    many = [(one[0],) * modalities, *(ps.nn.PerModality([net, net]) for net in one[1:])]
    given = [b if each else a for a, b, each in zip(one, many, several, strict=True)]
    return lambda: ps.Joint(Gaussian(DIM), *given)


def checking(*views: Tensor) -> Callable[[], None]:
    return lambda: mlp().check(Batch(views if len(views) > 1 else views[0]))


def checking_one_modality() -> None:
    views = torch.ones(2, 1, 3), torch.ones(2, 1, 3)
    built((False, False, False))().check(Batch(views))


test_modalities_that_do_not_match_are_refused = refusals(
    (built((False, True, True)), ValueError, "decoder for each modality, got 1 and 2"),
    (built((True, False, True)), ValueError, "encoder for each modality, got 2 and 1"),
    (built((True, True, False)), ValueError, "decoder for each modality, got 2 and 1"),
    (built((True, True, True), 3), ValueError, "each modality, got 3 and 2"),
    (checking(torch.ones(2, 3, 3)), ValueError, r"2 modalities, got \(2, 3, 3\)"),
    (checking(*[torch.ones(2, 1, 3)] * 3), ValueError, "2 modalities, got 3"),
    (lambda: mlp().decode(torch.ones(2, 2, DIM)), ValueError, "one for each modality"),
    (checking(torch.ones(2, 1, 5), torch.ones(2, 1, 3) / 3), ValueError, "grey lev"),
    (checking_one_modality, ValueError, "one modality"),
)


class TestSphere:
    """Absent views under a content on the sphere."""

    @staticmethod
    def joint() -> ps.Joint:
        return mlp(ps.guides.PowerSpherical, Spherical(DIM, 4.0))

    def test_absent_views_follow_the_prior_given_the_present_ones(self):
        n, prior = 8_000, Spherical(3, 4.0)
        z = nn.functional.normalize(torch.randn(1, 3, 3), dim=-1)
        present = torch.tensor([[True, True, False]])
        views = prior(3)
        drawn = views.complete(z.expand(n, 3, 3), present)
        assert_close(drawn[:, :2], z.expand(n, 3, 3)[:, :2])
        last = drawn[:, 2]
        assert_close(last.norm(dim=-1), torch.ones(n))
        assert_mean(last, views.complete_mean(z, present)[0, 2])
        # Against uniform points: the conditional density has this mean, too.
        u = nn.functional.normalize(torch.randn(n, 3), dim=-1)
        both = torch.cat([z[:, :2].expand(n, 2, 3), u.unsqueeze(1)], 1)
        log_ratio = prior.log_prob(both) - prior.log_prob(z, present)
        weight = (log_ratio + ps.special.log_area(3)).exp()
        assert_mean(weight, 1.0)
        moment = weight * u.square()[:, 0]
        error = torch.hypot(moment.std(), last[:, 0].square().std()) / math.sqrt(n)
        assert abs(moment.mean() - last[:, 0].square().mean()) < 5 * error

    @pytest.mark.parametrize("dim", [2, 3, 16])
    @pytest.mark.parametrize("concentration", [0.0, 2.0, 200.0])
    def test_a_draw_of_few_proposals_is_a_sample(self, dim, concentration):
        loc = nn.functional.normalize(torch.randn(dim), dim=-1)
        p = ps.distributions.VonMisesFisher(loc, concentration)
        assert_mean(p.expand((4_000,)).draw() @ loc, p.mean @ loc)

    def test_the_bound_does_not_depend_on_what_is_drawn_for_absent_views(self):
        joint, batch = self.joint(), measured()
        present = torch.tensor([[True, True, False]] * 5)
        parts, without = batch.parts, joint.encode(batch._replace(present=present))
        z, values = without.rsample(), []
        for other in (z, torch.cat([z[:, :2], -z[:, 2:]], 1)):
            q = joint.encode(batch._replace(present=present)).log_prob(other)
            values.append(joint.prior.log_prob(other) - q)
        assert_close(*values)
        alone = joint.prior.log_prob(z[:, :2])
        q = joint.encode(Batch((parts[0], parts[1]))).base_dist.log_prob(z)[:, :2]
        assert_close(values[0], alone - q.sum(1))


class TestCompletion:
    """What the posterior functions make of modalities."""

    def test_absent_views_come_from_the_exact_conditional_of_a_linear_model(self):
        joint = linear_gaussian(Gaussian(DIM, 0.6, 1.3))
        x = two_modalities(4)
        groups = Groups(x.views, present=torch.tensor([[True, True, False]] * 4))
        found = complete(joint, groups)
        # E[x absent | x present], by dense linear algebra.
        share = 0.36 * torch.eye(3) + 1.69
        weight = torch.block_diag(
            *(joint.decoder.parts[m].weight.detach() for m in (0, 0, 1))
        )
        covariance = weight @ torch.kron(share, torch.eye(DIM)) @ weight.T
        seen = covariance[:10, :10] + 0.16 * torch.eye(10)
        signal = torch.linalg.solve(seen, x.views[0].flatten(1).T)
        exact = (covariance[10:, :10] @ signal).T.unsqueeze(1)
        assert_close(torch.from_numpy(found[1]), exact)
        assert [part.shape for part in found] == [(4, 2, 5), (4, 1, 3)]
        drawn = complete(joint, x._replace(present=groups.present), draws=4_000)[1]
        assert drawn.shape == (4_000, 4, 1, 3)
        assert_mean(drawn, exact.numpy())

    def test_of_one_modality_there_is_one_array(self):
        net, out = ps.nn.MLPEncoder((3,), DIM), ps.nn.MLPDecoder(DIM, (3,))
        joint = ps.Joint(Gaussian(DIM), ps.likelihoods.Gaussian(), net, out)
        present = torch.tensor([[True, False], [True, True]])
        groups = ps.data.groups(torch.randn(2, 2, 3), present=present)
        assert complete(joint, groups).shape == (2, 2, 3)
        assert complete(joint, groups, draws=5).shape == (5, 2, 2, 3)
        with pytest.raises(ValueError, match="draws"):
            complete(joint, groups, draws=0)

    def test_representations_are_means_over_the_modalities_that_are_there(self):
        joint, n = mlp(), 4
        joint.eval()
        x = torch.randn(n, EVENTS[0]), torch.randint(0, 5, (n, EVENTS[1])) / 4.0
        z = joint.posterior.factors(tuple(part.unsqueeze(1) for part in x))[0]
        found = embed(joint, x)
        assert_close(torch.from_numpy(found), z.mean(1).detach())
        again, deviation = embed(joint, x, return_std=True)
        assert_close(again, found)
        q = joint.encode(Batch(tuple(part.unsqueeze(1) for part in x)))
        drawn = q.sample((20_000,)).mean(-2).std(0)
        assert_close(torch.from_numpy(deviation), drawn, rtol=0.04, atol=0)
        present = torch.tensor(
            [[True, True], [True, False], [False, True]] + [[True] * 2]
        )
        groups = ps.data.groups(x, present=present)
        plain = [row[seen].mean(0) for row, seen in zip(z, present, strict=True)]
        found, std = embed(joint, groups, return_std=True)
        assert_close(torch.from_numpy(found), torch.stack(plain).detach())
        of_views = q.stddev.detach().numpy()
        assert_close(std[[0, 3]], deviation[[0, 3]])
        assert_close(std[[1, 2]], of_views[[1, 2], [0, 1]])

    @pytest.mark.parametrize("guide", [ps.guides.DiagonalGaussian, ps.guides.Coupled])
    def test_representations_do_not_know_the_labels(self, guide):
        joint, x = mlp(guide, TwoTier(DIM, 3, 0.3, 0.3)), measured(6)
        groups = Groups(x.views, content=torch.arange(6) % 3)
        assert_close(embed(joint, groups), embed(joint, Groups(x.views)))
        batch = Batch(x.views, content=groups.content)
        loader = DataLoader([batch], batch_size=None, collate_fn=lambda batch: batch)
        assert_close(embed(joint, loader), embed(joint, Groups(x.views)))

    def test_spread_of_a_mean_needs_independent_modalities(self):
        joint, groups = mlp(ps.guides.Coupled), Groups(measured(4).views)
        with pytest.raises(ValueError, match="independent under q"):
            embed(joint, groups, return_std=True)

    @pytest.mark.parametrize("form", ["stacked", "a tuple", "a loader"])
    def test_groups_of_one_event_shape_are_modalities_too(self, form):
        encoders = [ps.nn.MLPEncoder((6,), DIM) for _ in range(2)]
        decoders = [ps.nn.MLPDecoder(DIM, (6,)) for _ in range(2)]
        nets = ps.nn.PerModality(encoders), ps.nn.PerModality(decoders)
        likelihoods = ps.likelihoods.Gaussian(0.4), ps.likelihoods.Gaussian(0.7)
        joint = ps.Joint(Gaussian(DIM, 0.5), likelihoods, *nets)
        x, present = torch.randn(30, 2, 6), torch.rand(30, 2) < 0.6
        present[:, 0] |= ~present.any(1)
        with torch.no_grad():
            z = torch.stack([net(x[:, i]) for i, net in enumerate(encoders)], 1)
            spread = joint.posterior.factors(x.split(1, 1))[1]

        def given(present=None):
            views = x.split(1, 1) if form == "a tuple" else x
            if form != "a loader":
                return Groups(views, present=present)
            masks = [None] * 2 if present is None else present.split([20, 10])
            each = zip(x.split([20, 10]), masks, strict=True)
            batches = [Batch(part, present=mask) for part, mask in each]
            return torch.utils.data.DataLoader(batches, batch_size=None)

        rows = zip(z, present, strict=True)
        exact = torch.stack([row[seen].mean(0) for row, seen in rows])
        for objective in (joint, ps.limits.SimVAE(joint)):
            for mask in (None, present | True):
                found = embed(objective, given(mask), return_std=True)
                np.testing.assert_allclose(found[0], z.mean(1), rtol=1e-10)
                of_mean = spread.square().sum(1).sqrt() / 2
                np.testing.assert_allclose(found[1], of_mean, rtol=1e-10)
            found = embed(objective, given(present), return_std=True)
            np.testing.assert_allclose(found[0], exact, rtol=1e-10)
            rows = zip(spread, present, strict=True)
            of_mean = [
                row[seen].square().sum(0).sqrt() / seen.sum() for row, seen in rows
            ]
            np.testing.assert_allclose(found[1], torch.stack(of_mean), rtol=1e-10)
        pair, clip = tuple(x.unbind(1)), ps.limits.CLIP(nets[0])
        np.testing.assert_allclose(embed(clip, given()), embed(clip, pair))
        np.testing.assert_allclose(
            reconstruct(joint, given()), reconstruct(joint, pair)
        )
        for call in (lambda x: embed(clip, x), lambda x: reconstruct(joint, x)):
            with pytest.raises(ValueError, match=r"all views to be present.*complete"):
                call(given(present))

    def test_groups_of_other_modalities_are_refused(self):
        joint, x = mlp(), torch.randn(4, 3, 5)
        for call in (embed, reconstruct):
            with pytest.raises(ValueError, match="2 modalities, got"):
                call(joint, ps.data.groups(x))
        clip = ps.limits.CLIP(joint.encoder)
        with pytest.raises(ValueError, match="2 parts, .* got 3"):
            embed(clip, ps.data.groups(x))
        several = Batch((torch.randn(4, 2, 5), torch.randn(4, 1, 3)))
        with pytest.raises(TypeError, match="single items, got .* 3 views"):
            embed(clip, Groups(several.views))

    def test_samples_reconstructions_and_evidences_have_a_part_for_each_modality(self):
        joint, n = mlp(), 4
        x = torch.randn(n, EVENTS[0]), torch.randint(0, 5, (n, EVENTS[1])) / 4.0
        assert [part.shape for part in reconstruct(joint, x)] == [(n, 5), (n, 3)]
        assert [part.shape for part in sample(joint, 3)] == [(3, 1, 5), (3, 1, 3)]
        assert sample(joint, 3, 2)[1].shape == (3, 2, 3)
        assert evidence_of(joint, x, particles=5).log_evidence.shape == (n,)
        idata = to_arviz(joint, measured_groups(), draws=6)
        assert idata.posterior_predictive["x_1"].shape == (1, 6, 5, 1, 3)
        assert idata.observed_data["x_0"].isnull().sum() == 5
        log_p = sum(idata.sample_stats[f"log_p_x_{i}_given_z"] for i in (0, 1))
        assert (idata.sample_stats["log_p"] != log_p).all()

    def test_observed_contents_are_part_of_the_evidence(self):
        joint, batch = linear_gaussian(Mixture(DIM, 3, 0.6)), two_modalities()
        means = joint.prior.components()[0].detach()
        log_joint = math.log(1 / 3) + evidence(joint, batch, means, 0.0)
        groups, exact = Groups(batch.views, content=CONTENT), given(CONTENT, log_joint)
        found = evidence_of(joint, groups, particles=2).log_evidence
        assert_close(torch.from_numpy(found), exact)
        assert_close(torch.from_numpy(classify(joint, groups)), log_joint.softmax(1))
        idata = to_arviz(joint, groups, draws=3)
        weight = idata.sample_stats["log_p"] - idata.sample_stats["log_q"]
        assert_close(torch.from_numpy(weight.values)[0], exact.expand(3, -1))

    def test_classes_without_closed_form_are_means_over_draws(self):
        joint, batch = mlp(prior=TwoTier(DIM, 3, 0.5)), measured()
        share = joint.responsibilities(batch, draws=4_000)
        z = joint.encode(batch).sample((4_000,))
        each = joint.prior.responsibilities(z).probs
        error = 5 * math.sqrt(2) * each.std(0) / math.sqrt(4_000)
        assert ((share - each.mean(0)).abs() < error).all()
        assert_close(share.sum(1), torch.ones(5))

    def test_data_that_do_not_fit_are_refused(self):
        joint, x = mlp(), torch.randn(4, 5)
        with pytest.raises(ValueError, match="as many items"):
            embed(joint, (x, x[:3, :3]))
        with pytest.raises(ValueError, match="no views"):
            evidence_of(joint, (x, x[:, :3]), views=lambda x: x)
        with pytest.raises(TypeError, match="one of these"):
            embed(joint, (x, "x"))
        with pytest.raises(ValueError, match=r"priors\.Mixture"):
            classify(joint, (x, torch.zeros(4, 3)))


def measured_groups() -> Groups:
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]])
    return Groups(measured().views, present=present.bool())


class TestDigits:
    """Real data, a few seconds of training: halves of digits, digits and labels."""

    @pytest.fixture(autouse=True)
    def single(self, float64: None) -> None:
        torch.set_default_dtype(torch.float32)

    @staticmethod
    def fitted(groups: Groups, likelihoods: tuple, shapes: list, dim: int) -> ps.Joint:
        encoders = [ps.nn.MLPEncoder(shape, dim, hidden=(64,)) for shape in shapes]
        decoders = [ps.nn.MLPDecoder(dim, shape, hidden=(64,)) for shape in shapes]
        joint = ps.Joint(
            Gaussian(dim, 0.3),
            likelihoods,
            ps.nn.PerModality(encoders),
            ps.nn.PerModality(decoders),
            guide=ps.guides.Coupled,
        )
        options = {"epochs": 15, "learning_rate": 3e-3, "progress": False}
        ps.fit(ps.limits.SimVAE(joint), groups, **options)
        return joint

    @staticmethod
    def some(n: int, share: float) -> Tensor:
        present = torch.rand(n, 2) < share
        present[:, 0] |= ~present.any(1)
        return present

    def test_one_half_of_a_digit_tells_of_the_other(self):
        digits = ps.data.digits()
        train, test = halves(digits.train), halves(digits.test)
        present = self.some(len(train[0]), 0.7)
        assert 0.2 < 1 - present.double().mean() < 0.35
        likelihoods = (ps.likelihoods.Binomial(16),) * 2
        groups = Groups(train, present=present)
        joint = self.fitted(groups, likelihoods, [(1, 8, 4)] * 2, 8)

        seen = torch.tensor([[True, False]]).expand(len(test[0]), 2)
        with torch.no_grad():
            z = joint.encode(Batch(test, present=seen)).sample((64,))
            each = joint.decode(z.split(1, -2))[1].to_event(1).log_prob(test[1])
        found = each.logsumexp(0) - math.log(64)
        mean = (16 * train[1].sum(0) + 0.5) / (16 * len(train[1]) + 1)
        plain = ps.likelihoods.GreyLevels(16, mean.logit()).to_event(4)
        gain = found - plain.log_prob(test[1])
        assert gain.mean() > 20 + 5 * gain.std() / math.sqrt(len(gain))
        assert complete(joint, Groups(test, present=seen))[1].shape == test[1].shape

    def test_a_label_is_a_modality_of_its_own(self):
        digits = ps.data.digits()
        train, test = ((s.images.unsqueeze(1), one_hot(s)) for s in digits[:2])
        present = torch.ones(len(train[0]), 2).bool()
        present[:, 1] = torch.rand(len(present)) < 0.5
        likelihoods = ps.likelihoods.Binomial(16), ps.likelihoods.Categorical(10)
        groups = Groups(train, present=present)
        joint = self.fitted(groups, likelihoods, [(1, 8, 8), (10,)], 10)

        n, image_only = len(test[0]), torch.tensor([[True, False]])
        labels = digits.test.labels
        found = complete(joint, Groups(test, present=image_only.expand(n, 2)))[1]
        share = torch.from_numpy(found)[:, 0].gather(1, labels.unsqueeze(1))
        right = torch.from_numpy(found)[:, 0].argmax(1) == labels
        assert right.double().mean() > 0.1 + 5 * math.sqrt(0.25 / n)
        assert share.log().mean() > math.log(0.1)
        # An image of the label is nearer to its own class than to another one.
        images = complete(joint, Groups(test, present=~image_only.expand(n, 2)))[0]
        logits = torch.from_numpy(images).clamp(1e-3, 1 - 1e-3).logit()
        p = ps.likelihoods.GreyLevels(16, logits).to_event(4)
        q = ps.likelihoods.GreyLevels(16, logits.roll(1, 0)).to_event(4)
        gain = (p.log_prob(test[0]) - q.log_prob(test[0]))[labels != labels.roll(1, 0)]
        assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain))


def halves(split: Split) -> tuple[Tensor, Tensor]:
    images = split.images.unsqueeze(1)
    return images[..., :4], images[..., 4:]


def one_hot(split: Split) -> Tensor:
    return nn.functional.one_hot(split.labels, 10).float().unsqueeze(1)


class Normed(nn.Sequential):
    """Batch norm between two layers; with `mixed` another layer that mixes rows."""

    def __init__(self, before, after, mixed=False, norm=True):
        norms = [nn.BatchNorm1d(8)] if norm else []
        super().__init__(nn.Linear(before, 8), *norms, nn.Tanh(), nn.Linear(8, after))
        self.dim, self.mixed = after, mixed

    def forward(self, x):
        z = super().forward(x)
        return z - z.mean(0) if self.mixed else z


def of_six(encoder, decoder=None):
    decoder = nn.Linear(3, 6) if decoder is None else decoder
    parts = ps.priors.Gaussian(3, 0.5), ps.likelihoods.Gaussian(0.5), encoder, decoder
    return ps.limits.SimVAE(ps.Joint(*parts))


def test_a_lone_present_view_gets_the_running_statistics():
    encoder = Normed(6, 3)
    encoder(torch.randn(50, 6))
    before, x = [b.clone() for b in encoder.buffers()], torch.randn(4, 6)
    present = torch.tensor([False, True, False, False])
    z = ps.nn.network.present_only(encoder, x, present)
    assert_close(z[1:2], encoder.eval()(x[1:2]))
    assert all(map(torch.equal, before, encoder.buffers()))
    left = torch.tensor([[True, False]]).expand(20, 2)
    pairs = ps.data.groups(torch.randn(20, 2, 6), present=left)
    objective = of_six(Normed(6, 3), Normed(3, 6)).to(torch.get_default_dtype())
    history = ps.fit(objective, pairs, epochs=2, batch_size=1, progress=False)
    assert all(map(math.isfinite, history["value"]))


def test_batch_norm_of_one_row_names_the_way_out():
    loader = torch.utils.data.DataLoader(torch.randn(9, 6), batch_size=4)
    for data, options in ((torch.randn(9, 6), {"batch_size": 1}), (loader, {})):
        with pytest.raises(ValueError, match=r"at least two items.*drop_last=True"):
            ps.fit(of_six(Normed(6, 3)), data, progress=False, **options)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_mixing_is_found_where_the_first_batch_has_no_absent_view(half):
    x, present = torch.randn(40, 2, 6), torch.ones(40, 2, dtype=torch.bool)
    present[-1, 0] = False
    nets = {"encoder": nn.Linear(6, 3), "decoder": nn.Linear(3, 6)}
    sizes = {"encoder": (6, 3), "decoder": (3, 6)}
    pairs = ps.data.groups(x, present=present)
    ps.fit(of_six(**nets), pairs, epochs=1, batch_size=8, progress=False)
    nets[half] = Normed(*sizes[half], mixed=True, norm=False)
    batches = [ps.Batch(x[:8]), ps.Batch(x[-8:], present=present[-8:])]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    for data, options in ((pairs, {"batch_size": 8}), (loader, {})):
        found = f"the {half}.* that changes.*not scripted"
        # What mixes items is refused whether views are absent or not.
        found += "|mix no rows of a batch|changes with the other items of the batch"
        with pytest.raises(ValueError, match=found):
            ps.fit(of_six(**nets), data, epochs=1, progress=False, **options)


def test_networks_with_batch_norm_get_present_rows_alone_in_evaluation_too():
    encoder, present = Normed(6, 3, mixed=True).eval(), torch.rand(20) < 0.6
    x = torch.randn(20, 6)
    z = ps.nn.network.present_only(encoder, x, present)
    assert_close(z[present], encoder(x[present]))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.half])
def test_networks_of_several_dtypes_are_refused(half):
    for nets in (
        (Normed(6, 3).to(half), None),
        (Normed(6, 3), nn.Linear(3, 6).to(half)),
    ):
        with pytest.raises(ValueError, match="one dtype with .float"):
            ps.fit(of_six(*nets), torch.randn(8, 6), progress=False)
