"""The prior with an effect of each group: densities, bounds, travel, refusals."""

import math
from itertools import product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_mean, refusals, seeded
from helpers.linear import linear_gaussian
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl import hyper
from probssl.bounds import log_weights
from probssl.priors import Gaussian, Grouped

TAU, SCALE, Y_SCALE, NOISE, EVENT = 0.7, 0.4, 0.9, 0.6, 4
GROUPS = torch.tensor([0, 2, 2, 0, 1, 2, -1, -1])  # of the last two nothing is known
N, COUNT = len(GROUPS), 4  # group 3 has no items


def grouped(dim: int = 2, tau: object = TAU, **within: object) -> Grouped:
    within = {"scale": SCALE, "y_scale": Y_SCALE} | within
    return Grouped(Gaussian(dim, **within), "writer", COUNT, tau)


def batch_of(x: Tensor, groups: Tensor = GROUPS) -> ps.Batch:
    return ps.Batch(x, covariates={"writer": groups})


def covariance(groups: Tensor, views: int, tau: object = TAU) -> np.ndarray:
    """Of the views of all items, in one dimension: three sums of squares."""
    rows = list(product(range(len(groups)), range(views)))

    def entry(i: int, v: int, j: int, w: int) -> float:
        group = i == j or (groups[i] == groups[j] and groups[i] >= 0)
        return group * tau**2 + (i == j) * (Y_SCALE**2 + (v == w) * SCALE**2)

    return np.array([[entry(i, v, j, w) for j, w in rows] for i, v in rows])


# The density


@pytest.mark.parametrize("views", [1, 3])
def test_items_of_a_group_have_the_compound_symmetric_covariance(views, float64):
    """u integrated out by Bayes: log p(z) = log p(z, u) - log p(u | z), at any u."""
    tau = torch.tensor([TAU, 0.3])
    prior, z = grouped(tau=tau.tolist()).double(), torch.randn(N, views, 2)
    expected = sum(
        stats.multivariate_normal.logpdf(
            z[..., d].flatten().numpy(), cov=covariance(GROUPS, views, float(tau[d]))
        )
        for d in range(2)
    )
    noise, known = Y_SCALE**2 + SCALE**2 / views, GROUPS >= 0
    member = torch.nn.functional.one_hot(GROUPS[known], COUNT).double()
    precision = member.sum(0).unsqueeze(-1) / noise + tau**-2
    mean = member.T @ z[known].mean(1) / noise / precision
    for u in torch.randn(2, COUNT, 2):
        given = prior(views, covariates={"writer": GROUPS}, u=u).log_prob(z).sum()
        before = dist.Normal(0.0, tau).log_prob(u).sum()
        assert_close(prior.effects.value.log_prob(u), before)
        after = dist.Normal(mean, precision.rsqrt()).log_prob(u).sum()
        assert_close(given + before - after, torch.tensor(expected))


def test_draws_of_the_model_have_that_covariance(float64):
    joint = linear_gaussian(grouped(), EVENT, NOISE).double()
    anything = batch_of(torch.zeros(N, 2, EVENT))
    draws = Predictive(joint.model, num_samples=4000, parallel=True)(anything)
    z = draws["z"][..., 0].flatten(1).detach()
    assert draws["u"].shape == (4000, 1, COUNT, 2)
    pairs = z.unsqueeze(1) * z.unsqueeze(2)
    expected = torch.from_numpy(covariance(GROUPS, 2))
    away = (pairs.mean(0) - expected).abs() / (pairs.std(0) / math.sqrt(4000))
    assert away.max() < 5 and away.min() < 1


def test_effects_have_the_drawn_scale(float64):
    prior = grouped(tau=dist.LogNormal(-0.5, 0.4)).double()
    known = {"group_scale": torch.tensor([[0.2], [3.0]])}
    with pyro.plate("particles", 2, dim=-2):
        conditioned = pyro.condition(prior.sample_hyper, known)
        u = pyro.poutine.trace(conditioned).get_trace().nodes["u"]["fn"]
    assert u.batch_shape == (2, 1) and u.event_shape == (COUNT, 2)
    assert_close(u.stddev, known["group_scale"][..., None, None].expand(u.shape()))
    assert not u.mean.any()


def test_a_new_group_is_integrated_out(float64):
    prior, z = grouped().double(), torch.randn(N, 2, 2)
    wide = Gaussian(2, SCALE, math.hypot(TAU, Y_SCALE)).double()
    new = prior(2, covariates={"writer": torch.full((N,), -1)}, u=torch.randn(4, 2))
    assert_close(new.log_prob(z), wide.log_prob(z))
    assert_close(prior.log_prob(z), wide.log_prob(z))
    assert_close(prior.log_kernel(z[0], z[1]), wide.log_kernel(z[0], z[1]))
    found, known = prior.posterior_y(z), wide.posterior_y(z)
    assert_close(found.mean, known.mean)
    assert_close(found.variance, known.variance)


def test_the_content_of_a_known_group_is_around_its_effect(float64):
    prior, within = grouped().double(), Gaussian(2, SCALE, Y_SCALE).double()
    z, u = torch.randn(3, N, 2, 2), torch.randn(3, 1, COUNT, 2)
    known = GROUPS.clamp(min=0)
    found = prior.posterior_y(z, u=u, covariates={"writer": known})
    shift = u[:, 0, known]
    alone = within.posterior_y(z - shift.unsqueeze(-2))
    assert_close(found.mean, alone.mean + shift)
    assert_close(found.variance, alone.variance)


def test_effects_vanish_with_their_scale_at_second_order(float64):
    z, within = torch.randn(N, 2, 2), Gaussian(2, SCALE, Y_SCALE).double()
    gap = [
        grouped(tau=tau).double().log_prob(z) - within.log_prob(z)
        for tau in (1e-3, 1e-4)
    ]
    assert_close(gap[0] / gap[1], torch.full((N,), 100.0), rtol=1e-3, atol=0)


# The bound


def joint_evidence(joint: ps.Joint, x: Tensor, groups: Tensor = GROUPS) -> float:
    """log p(x_1, …, x_N): all items in one normal distribution."""
    weight = joint.decoder.weight.detach().numpy()
    share = covariance(groups, x.shape[1])
    whole = np.kron(share, weight @ weight.T)
    whole += NOISE**2 * np.eye(len(whole))
    return stats.multivariate_normal.logpdf(x.detach().flatten().numpy(), cov=whole)


def posterior_of(joint: ps.Joint, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of p(u | x), of each group and dimension."""
    with torch.no_grad():
        noise = joint.encoder.scale.square()
        each = Y_SCALE**2 + (SCALE**2 + noise) / x.shape[1]
        known = GROUPS >= 0
        member = torch.nn.functional.one_hot(GROUPS[known], COUNT).to(x)
        precision = member.sum(0).unsqueeze(-1) / each + TAU**-2
        mean = member.T @ (joint.encoder(x).mean(1)[known] / each) / precision
    return mean, precision.rsqrt()


@pytest.fixture
def toy(float64) -> tuple[ps.Joint, ps.Batch]:
    joint = linear_gaussian(grouped().double(), EVENT, NOISE).double()
    joint.population = torch.tensor(float(N))
    return joint.requires_grad_(False), batch_of(torch.randn(N, 2, EVENT))


def set_guide(joint: ps.Joint, mean: Tensor, std: Tensor) -> None:
    joint.prior.effects.loc.copy_(mean)
    joint.prior.effects.log_scale.copy_(std.log())


@pytest.mark.parametrize("bound", [ps.bounds.ELBO(3), ps.bounds.IWAE(3)])
def test_the_bound_is_the_evidence_of_all_items_at_the_exact_posterior(bound, toy):
    joint, batch = toy
    expected = joint_evidence(joint, batch.views)
    set_guide(joint, *posterior_of(joint, batch.views))
    value = sum(bound(joint, batch))
    assert_close(N * value, torch.tensor(expected))


def test_the_bound_is_lower_by_the_divergence_of_the_guide(toy):
    """With z exact given u the gap is KL(q(u) ‖ p(u | x)), in every draw's mean."""
    joint, batch = toy
    mean, std = posterior_of(joint, batch.views)
    set_guide(joint, mean + 0.2, 1.3 * std)
    q, p = dist.Normal(mean + 0.2, 1.3 * std), dist.Normal(mean, std)
    gap = torch.distributions.kl_divergence(q, p).sum()
    terms = log_weights(joint, batch, 4000)
    value = terms.local().sum(1) + N * terms.hyper[:, 0]
    assert_mean(value, joint_evidence(joint, batch.views) - gap)
    assert gap > 0.5


def test_a_guide_that_ignores_the_groups_loses_more(toy):
    """Independent q(z|x), no function of u: never above, and below the coupled one."""
    joint, batch = toy
    set_guide(joint, *posterior_of(joint, batch.views))
    encoder = joint.encoder
    alone = linear_gaussian(
        joint.prior, EVENT, NOISE, guide=ps.guides.DiagonalGaussian
    ).double()
    alone.decoder, alone.posterior.factors.encoder = joint.decoder, encoder
    alone.population = torch.tensor(float(N))
    terms = log_weights(alone, batch, 500)
    value = (terms.local().sum(1) + N * terms.hyper[:, 0]).detach()
    expected = joint_evidence(joint, batch.views)
    assert value.mean() < expected - 5 * value.std() / math.sqrt(500)


def test_effects_count_once_for_all_items(toy):
    """The term of u, and its gradient, are divided by the population."""
    joint, batch = toy
    set_guide(joint, torch.ones(COUNT, 2), torch.full((COUNT, 2), 0.5))
    loc = joint.prior.effects.loc.requires_grad_()
    found = []
    for population in (10.0, 40.0):
        joint.population = torch.tensor(population)
        torch.manual_seed(0)
        hyper = ps.bounds.ELBO(500)(joint, batch).hyper
        found.append(torch.autograd.grad(hyper, loc)[0])
    assert_close(found[0], 4 * found[1])
    # d/dm of E log N(u | 0, tau²) - log N(u | m, s²) is -m / tau², by parts of u.
    assert_close(10 * found[0], -loc.detach() / TAU**2, rtol=0.15, atol=0)


def test_batches_add_up_to_the_bound_of_all_items(toy):
    """At one draw of u, value and gradient: z is exact given u, without noise."""
    joint, batch = toy
    loc = joint.prior.effects.loc.requires_grad_()
    found = []
    for rows in (torch.arange(N), torch.arange(4), torch.arange(4, N)):
        some = batch_of(batch.views[rows], GROUPS[rows])
        value = sum(seeded(ps.bounds.ELBO(), joint, some))
        found.append((value.detach(), *torch.autograd.grad(value, loc)))
    for whole, one, other in zip(*found, strict=True):
        assert_close(whole, (one + other) / 2)


def test_the_scale_of_the_effects_is_that_of_their_guide_at_its_maximum(toy):
    """d ELBO / d tau vanishes where tau² = mean of E q(u²)."""
    _, batch = toy
    joint = linear_gaussian(grouped(tau=ps.learned(TAU)).double(), EVENT, NOISE)
    joint = joint.double().requires_grad_(False)
    joint.population = torch.tensor(float(N))
    log_tau = joint.prior.scale.log.requires_grad_()
    set_guide(joint, torch.full((COUNT, 2), 0.6), torch.full((COUNT, 2), 1e-6))
    for tau, sign in ((0.59, 1), (0.6, 0), (0.61, -1)):
        log_tau.data.fill_(math.log(tau))
        (grad,) = torch.autograd.grad(sum(ps.bounds.ELBO()(joint, batch)[3:4]), log_tau)
        expected = torch.tensor(2 * COUNT / N * ((0.6 / tau) ** 2 - 1))
        assert_close(grad, expected, rtol=1e-4, atol=1e-5)
        assert sign == 0 or grad * sign > 0


def test_hyper_parameters_within_are_those_of_the_prior_within(float64):
    scales = {"scale": dist.LogNormal(-1.0, 0.3), "y_scale": 1.0}
    prior = grouped(tau=dist.LogNormal(-0.5, 0.4), **scales).double()
    assert [h.name for h in prior.random()] == ["scale", "group_scale", "u"]
    drawn = {
        "scale": torch.tensor([[0.3], [0.5]]),
        "group_scale": torch.tensor([[0.2], [2.0]]),
        "u": torch.randn(2, 1, COUNT, 2),
    }
    known = {"writer": GROUPS}
    z = torch.randn(N, 2, 2)
    found = prior(2, covariates=known, **drawn)
    assert found.batch_shape == (2, N)
    for k in range(2):
        one = {name: value[k, 0] for name, value in drawn.items()}
        with prior.at(**one):
            assert_close(found.log_prob(z)[k], prior(2, covariates=known).log_prob(z))
        wide = Gaussian(2, float(one["scale"]), math.hypot(1, one["group_scale"]))
        new = wide.double().log_prob(z)[GROUPS < 0]
        assert_close(found.log_prob(z)[k][GROUPS < 0], new)


def test_the_evidence_of_an_item_is_predictive_over_its_group(toy):
    """N(W m, W (s² + variance of z) Wᵀ + noise), and that of u itself if it is new."""
    joint, batch = toy
    mean, std = torch.randn(COUNT, 2), torch.full((COUNT, 2), 0.3)
    set_guide(joint, mean, std)
    x = batch.views[:, 0]
    data = ps.data.Split(x, covariates=batch.covariates)
    found = ps.evidence(joint, data, particles=2000)
    refined = ps.evidence(joint, data, particles=500, refine=2)
    weight, known = joint.decoder.weight, (GROUPS >= 0).unsqueeze(-1)
    centre = mean[GROUPS.clamp(min=0)].where(known, 0.0)
    spread = torch.where(known, 0.3**2, TAU**2) + Y_SCALE**2 + SCALE**2
    cov = weight @ spread.expand(N, 2).diag_embed() @ weight.T
    cov = cov + NOISE**2 * torch.eye(EVENT)
    exact = MultivariateNormal(centre @ weight.T, cov).log_prob(x).numpy()
    for some, particles in ((found, 2000), (refined, 500)):
        error = np.sqrt(1 / some.ess - 1 / particles)
        away = abs(some.log_evidence - exact)
        assert (away <= 5 * error + 1e-9).all() and error.max() < 0.2
    assert_close(found.log_evidence[-2:], exact[-2:])  # without noise


# Pyro


@pytest.mark.slow
def test_nuts_finds_the_exact_posterior_of_effects_and_scale(float64):
    """z is known; p(tau | z) by quadrature with u integrated out, E[u | z] over it."""
    prior = grouped(1, dist.LogNormal(-0.5, 0.5), scale=SCALE).double()
    groups, z = GROUPS[:6], torch.randn(6, 1, 1)
    joint = ps.Joint(
        prior, ps.likelihoods.Gaussian(1.0), nn.Linear(1, 1), nn.Linear(1, 1)
    ).double()
    model = pyro.condition(joint.requires_grad_(False).model, {"z": z})
    mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=60, disable_progbar=True)
    mcmc.run(batch_of(torch.zeros(6, 1, 1), groups))
    draws, sizes = mcmc.get_samples(), mcmc.diagnostics()

    tau = np.geomspace(0.02, 8, 400)
    known = z.flatten().numpy()
    log_p = stats.lognorm(0.5, scale=math.exp(-0.5)).logpdf(tau) + [
        stats.multivariate_normal.logpdf(known, cov=covariance(groups, 1, t))
        for t in tau
    ]
    weight = np.exp(log_p - log_p.max()) * tau  # d tau = tau d log tau
    weight /= weight.sum()
    noise = Y_SCALE**2 + SCALE**2
    count = np.bincount(groups.numpy(), minlength=COUNT)
    total = np.bincount(groups.numpy(), known, minlength=COUNT) / noise
    mean_u = total / (count / noise + tau[:, None] ** -2)
    for name, exact in (
        ("group_scale", (weight * np.log(tau)).sum()),
        ("u", (weight[:, None] * mean_u).sum(0)),
    ):
        found = draws[name].log() if name == "group_scale" else draws[name][..., 0]
        bar = found.std(0) / sizes[name]["n_eff"].clamp(min=10).sqrt().view(
            found.shape[1:]
        )
        assert ((found.mean(0) - torch.as_tensor(exact)).abs() < 5 * bar).all()
        assert (bar < 0.25).all()


def test_svi_has_the_bound_of_the_package(toy):
    joint, batch = toy
    set_guide(joint, *posterior_of(joint, batch.views))
    loss = Trace_ELBO().loss(joint.model, joint.guide, batch)
    assert_close(-loss, joint_evidence(joint, batch.views))
    assert SVI  # the class that takes both


def test_ranks_draw_one_effect_in_training(monkeypatch):
    """All of them that of rank 0, whose noise is 1 here."""
    monkeypatch.setattr(hyper, "world_size", lambda: 2)
    monkeypatch.setattr(hyper, "from_main", torch.ones_like)
    effects = grouped().effects
    drawn = effects.posterior().expand((3, 1)).rsample()
    expected = effects.loc + effects.log_scale.exp()
    assert_close(drawn, expected.expand(3, 1, COUNT, 2))
    apart = effects.eval().posterior().rsample()
    assert (apart != expected).all()


# Every way through the package


@pytest.fixture(scope="module")
def data() -> ps.data.Split:
    generator = torch.Generator().manual_seed(0)
    g = torch.arange(240) % COUNT
    u = torch.tensor([[-1.5, 0.5], [1.5, 1.0], [0.0, -1.5], [0.5, 0.0]])
    z = u[g] + 0.5 * torch.randn(240, 2, generator=generator)
    x = z @ torch.randn(2, 6, generator=generator)
    x = x + 0.3 * torch.randn(240, 6, generator=generator)
    return ps.data.Split(x, g % 2, covariates={"writer": g})


def simvae(scale: object = 0.5, **options: object) -> ps.limits.SimVAE:
    prior = Grouped(Gaussian(2, 0.2), "writer", COUNT, scale)
    joint = ps.Joint(
        prior,
        ps.likelihoods.Gaussian(0.3),
        ps.nn.MLPEncoder((6,), 2, hidden=(8,)),
        ps.nn.MLPDecoder(2, (6,), hidden=(8,)),
        **options,
    )
    return ps.limits.SimVAE(joint)


def fitted(objective: nn.Module, data: object, **options: object) -> nn.Module:
    settings = {"epochs": 2, "batch_size": 60, "progress": False} | options
    ps.fit(objective, data, **settings)
    return objective


@pytest.mark.parametrize("guide", [ps.guides.DiagonalGaussian, ps.guides.Coupled])
def test_everything_takes_the_groups_of_the_data(guide, data, tmp_path):
    model = fitted(simvae(dist.LogNormal(-0.5, 0.5), guide=guide), data)
    assert float(model.joint.population) == 240
    assert ps.embed(model, data).shape == (240, 2)
    new = {"writer": torch.full((240,), -1)}
    few, unseen = data.take(12), data._replace(covariates=new).take(12)
    for some in (few, unseen):
        found = ps.evidence(model, some, particles=30)
        assert np.isfinite(found.log_evidence).all()
        assert ps.posterior_y(model, some, draws=7).draws.shape == (7, 12, 2)
        assert ps.reconstruct(model, some).shape == (12, 6)
    assert (ps.posterior_y(model, few).mean != ps.posterior_y(model, unseen).mean).all()
    drawn = ps.sample(model, 3, 1, covariates={"writer": torch.tensor([0, 1, -1])})
    assert drawn.shape == (3, 1, 6)
    ps.save(model, tmp_path)
    again = ps.load(tmp_path)
    assert repr(again.joint.prior) == repr(model.joint.prior)
    assert_close(ps.embed(again, few), ps.embed(model, few))
    assert_close(again.joint.prior.effects.loc, model.joint.prior.effects.loc)


def test_to_arviz_has_the_effects_of_groups_and_their_scale(data):
    model = fitted(simvae(dist.LogNormal(-0.5, 0.5)), data)
    idata = ps.to_arviz(model, data, draws=40, items=[3, 8], particles=30)
    u, tau = idata.posterior["u"], idata.posterior["group_scale"]
    assert u.dims == ("chain", "draw", "group", "dim") and u.shape == (1, 40, COUNT, 2)
    assert u.coords["group"].values.tolist() == list(range(COUNT))
    assert tau.dims == ("chain", "draw")
    share = tau**2 / (tau**2 + 1)
    assert ((share > 0) & (share < 1)).all()
    assert idata.prior["u"].dims == ("chain", "draw", "group", "dim")
    assert idata.constant_data["writer"].values.tolist() == [3, 0]
    loc, spread = model.joint.prior.effects.loc, model.joint.prior.effects.log_scale
    loc, spread = loc.detach().numpy(), spread.detach().exp().numpy()
    away = (u[0].mean("draw").values - loc) / spread
    assert abs(away).max() < 5 / math.sqrt(40)


def test_the_posterior_of_y_given_u_is_drawn_with_it(data):
    """Of a group whose items lie together y is around u, and not around 0."""
    model = fitted(simvae(), data)
    with torch.no_grad():
        model.joint.prior.effects.loc.copy_(50.0 * torch.ones(COUNT, 2))
        model.joint.prior.prior.y_scale.fixed.fill_(1e-3)
        model.joint.prior.scale.fixed.fill_(1e-3)
    assert abs(ps.posterior_y(model, data.take(5)).mean - 50).max() < 1
    new = data._replace(covariates={"writer": torch.full((240,), -1)})
    assert abs(ps.posterior_y(model, new.take(5)).mean).max() < 1
    mixed = {"writer": torch.tensor([0, -1, 3])}
    drawn = seeded(ps.sample, model, 3, 1, covariates=mixed)
    with torch.no_grad():
        z = seeded(model.joint.prior(1, covariates=mixed).sample)
        assert_close(drawn, model.joint.decode(z).mean.numpy())
    assert (z[::2] > 48).all() and z[1].abs().max() < 2


def test_the_fit_finds_the_effects_and_their_share(data):
    """Half of the variance of y is that of the groups, whose means are known."""
    torch.manual_seed(0)
    prior = Grouped(Gaussian(2, 0.2, ps.learned(1.0)), "writer", COUNT, ps.learned(1.0))
    g = data.covariates["writer"]
    u = torch.tensor([[-1.5, 0.5], [1.5, 1.0], [0.0, -1.5], [0.5, 0.0]])
    z = u[g] + 0.5 * torch.randn(240, 2)
    x = z.unsqueeze(1) + 0.2 * torch.randn(240, 2, 2)
    joint = ps.Joint(prior, ps.likelihoods.Gaussian(0.01), nn.Identity(), nn.Identity())
    joint.posterior.requires_grad_(False)
    nn.init.constant_(joint.posterior.factors.spread.bias, -6.0)
    groups = ps.data.groups(list(x.unbind(1)), covariates={"writer": g})
    fitted(ps.limits.SimVAE(joint), groups, epochs=25, learning_rate=2e-2)
    own = torch.stack([x[g == k].mean((0, 1)) for k in range(COUNT)])
    assert_close(prior.effects.loc.detach(), own, rtol=0, atol=0.15)
    assert 0.4 < prior.prior.y_scale().item() < 0.6
    expected = own.square().mean().sqrt()
    assert_close(prior.scale().detach(), expected, rtol=0.1, atol=0)


def test_a_compiled_fit_reads_the_groups_of_each_batch(data, traced):
    start = simvae(dist.LogNormal(-0.5, 0.5))
    state = {k: v.clone() for k, v in start.state_dict().items()}
    found = []
    for compiled in (True, False):
        start.load_state_dict(state)
        torch.manual_seed(0)
        fitted(start, data, compile=compiled)
        found.append([p.detach().clone() for p in start.parameters()])
    assert traced
    for one, two in zip(*found, strict=True):
        assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_absent_views_follow_the_group(float64):
    """An item without any view but an absent one has p(z | u) for it."""
    joint = linear_gaussian(grouped().double(), EVENT, NOISE).double()
    joint.requires_grad_(False)
    set_guide(joint, torch.full((COUNT, 2), 30.0), torch.full((COUNT, 2), 1e-3))
    present = torch.tensor([[True, False]]).expand(N, 2)
    batch = batch_of(torch.zeros(N, 2, EVENT))._replace(present=present)
    mean = joint.encode(batch).mean[:, 1]
    p = joint.prior(2, covariates=batch.covariates)
    assert_close(mean, p.complete_mean(joint.encode(batch).mean, present)[:, 1])
    assert (mean[GROUPS >= 0] > 5).all() and (mean[GROUPS < 0].abs() < 5).all()


# Refusals


def fit_with(groups: object, **options: object) -> object:
    x = torch.randn(40, 6)
    given = {} if groups is None else {"covariates": {"writer": groups}}
    return fitted(simvae(), x, **given, **options)


K = torch.arange(40) % COUNT
test_what_does_not_fit_is_refused = refusals(
    (
        lambda: Grouped(ps.priors.StudentT(2), "writer", 4),
        TypeError,
        "priors.Gaussian within Grouped.*got StudentT",
    ),
    (lambda: Grouped(ps.priors.Spherical(3, 5.0), "writer", 4), TypeError, "Spherical"),
    (lambda: Grouped(ps.priors.Mixture(2, 3), "writer", 4), TypeError, "got Mixture"),
    (lambda: Grouped(Gaussian(2, 1.0, math.inf), "writer", 4), ValueError, "flat one"),
    (lambda: Grouped(Gaussian(None), "writer", 4), ValueError, "known dimension"),
    (lambda: Grouped(Gaussian(2), "writer", 0), ValueError, "count"),
    (lambda: Grouped(Gaussian(2), 3, 4), TypeError, "groups"),
    (lambda: Grouped(Gaussian(2), "writer", 4, -1.0), ValueError, "group_scale"),
    (lambda: fit_with(None), ValueError, "covariate 'writer'.*got none"),
    (lambda: fit_with(K + 1), ValueError, "groups from 0 to 3.*got 1 to 4"),
    (lambda: fit_with(K - 2), ValueError, "or -1 for one .*got -2"),
    (
        lambda: fit_with(torch.cat([K[1:], torch.tensor([9])]), batch_size=4),
        ValueError,
        "groups from 0 to 3.*got 0 to 9",
    ),
    (lambda: fit_with(K.float()), ValueError, "whole numbers of shape"),
    (lambda: fit_with(K.view(-1, 1)), ValueError, r"shape \(40, 1\)|of shape"),
    (lambda: ps.evidence(simvae(), torch.randn(4, 6)), ValueError, "'writer'"),
    (lambda: ps.sample(simvae(), 4), ValueError, "'writer'"),
    (
        lambda: ps.sample(simvae(), 2, covariates={"writer": torch.tensor([0, 4])}),
        ValueError,
        "groups from 0 to 3",
    ),
    (
        lambda: ps.embed(simvae(guide=ps.guides.Coupled), torch.randn(4, 6)),
        ValueError,
        "'writer'",
    ),
    (lambda: simvae(content=ps.guides.Content(2)), TypeError, "content=None under"),
    (
        lambda: ps.limits.Embedding(
            nn.Identity(), grouped(), ps.entropies.LogDeterminant()
        ),
        TypeError,
        "prior without groups",
    ),
    (
        lambda: ps.limits.MoCo(nn.Identity(), prior=grouped(), queue=8),
        TypeError,
        "prior without groups",
    ),
    (
        lambda: ps.posterior.rate_distortion(
            simvae(), ps.data.Split(torch.randn(40, 6), covariates={"writer": K})
        ),
        ValueError,
        "one p.z. of all items",
    ),
    (
        lambda: ps.calibration.simulate(simvae(), 5),
        ValueError,
        "without covariates for a simulation, got one with some in its prior",
    ),
    (
        lambda: ps.compare(
            {"a": simvae()},
            ps.data.arrays(torch.randn(160, 6), K.repeat(4).numpy()),
            views=ps.views.Augment(nn.Identity()),
        ),
        ValueError,
        "without covariates for ps.compare",
    ),
)
