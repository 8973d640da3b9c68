"""DSA against plain double loops, and whether two items are the same against Bayes."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers.catalogue import encoder, projector
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import binary_cross_entropy_with_logits, normalize
from torch.testing import assert_close

import probssl as ps
from probssl.limits import (
    DSA,
    LearnedAffinity,
    PrincipalComponents,
    PriorAffinity,
    SimCLR,
)
from probssl.limits._pair_affinity import neighbour_score
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


def dsa(**options) -> DSA:
    """On z themselves, with z as its own reference."""
    base = SimCLR(nn.Identity())
    return DSA(
        base, **{"reference": nn.Identity(), "dim": 4, "neighbours": 3} | options
    )


def items(count: int = 7, views: int = 2) -> Batch:
    clean = torch.randn(count, 4)
    return Batch(clean[:, None] + 0.5 * torch.randn(count, views, 4), clean)


# The score of neighbours


def plain_score(u: Tensor, neighbours: int, mutual: int) -> Tensor:
    u, near = normalize(u, dim=1), []
    for i in range(len(u)):
        others = sorted(
            (j for j in range(len(u)) if j != i), key=lambda j: -u[i] @ u[j]
        )
        near.append(others[:neighbours])
    score = []
    for i in range(len(u)):
        good = 0
        for j in near[i]:
            good += sum(i in near[k] for k in near[j]) > mutual
        score.append(good / neighbours)
    return torch.tensor(score)


@pytest.mark.parametrize(("neighbours", "mutual"), [(1, 0), (4, 0), (5, 2), (29, 3)])
def test_score_is_that_of_a_double_loop(neighbours, mutual):
    u = torch.randn(30, 3)
    score = neighbour_score(u, neighbours, mutual)
    assert torch.equal(score, plain_score(u, neighbours, mutual))
    if neighbours == 5:
        assert len(score.unique()) > 2


def test_outlier_has_score_0_and_a_crowd_score_1():
    crowd = torch.tensor([1.0, 0.0, 0.0]) + 0.1 * torch.randn(12, 3)
    outlier = torch.tensor([[-1.0, 0.0, 0.0]])
    score = neighbour_score(torch.cat([crowd, outlier]), 11)
    assert_close(score, torch.cat([torch.ones(12), torch.zeros(1)]))


def test_score_has_no_gradient_and_ignores_lengths():
    u = torch.randn(20, 3, requires_grad=True)
    score = neighbour_score(u, 5)
    assert not score.requires_grad
    assert torch.equal(neighbour_score(torch.rand(20, 1) * u, 5), score)


# The value


def plain_penalty(
    objective: DSA, batch: Batch, z: Tensor
) -> tuple[Tensor, Tensor, list[float]]:
    """L_w and L_a pair by pair, with u the views themselves."""
    count, views, _ = z.shape
    score = plain_score(batch.clean, objective.neighbours, objective.mutual)
    zn, un = normalize(z, dim=-1), normalize(batch.views, dim=-1)
    regulated, anchor = torch.zeros(()), torch.zeros(())
    for a in range(views):
        for b in range(views):
            forces, apart = [], []
            for i in range(count):
                for j in range(count):
                    if i == j and a == b:
                        continue
                    pair = (z[i, a][None], z[j, b][None])
                    m = objective.affinity(*pair).sigmoid().squeeze()
                    if i != j:
                        p = torch.exp(-(un[i, a] - un[j, b]).norm() / 0.7)
                        kl = p * (p / m).log() + (1 - p) * ((1 - p) / (1 - m)).log()
                        apart.append(kl)
                    m = torch.ones(()) if i == j else m
                    d = (zn[i, a] - zn[j, b]).norm()
                    forces.append(torch.exp(score[i] * d * (2 * m - 1) / 0.3))
            regulated = regulated + torch.stack(forces).mean() / views**2
            anchor = anchor + torch.stack(apart).mean() / views**2
    return torch.log(1 + regulated), anchor, score.tolist()


@pytest.mark.parametrize("views", [2, 3])
def test_dsa_has_the_value_and_grad_of_a_double_loop(views):
    batch = items(views=views)
    objective = dsa(
        weight=1.7, anchor=0.4, temperature=0.3, reference_temperature=0.7, mutual=0
    )
    z = batch.views.clone().requires_grad_()
    ours = sum(objective(batch._replace(views=z)))
    regulated, anchor, score = plain_penalty(objective, batch, z)
    assert len(set(score)) > 1
    base = sum(objective.base(Batch(z)))
    plain = base - 1.7 * regulated - 0.4 * anchor
    leaves = [z, *objective.affinity.parameters()]
    assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    for left, right in zip(
        torch.autograd.grad(ours, leaves),
        torch.autograd.grad(plain, leaves),
        strict=True,
    ):
        assert_close(left, right, rtol=1e-8, atol=1e-10)


def test_without_a_clean_image_the_score_is_that_of_the_mean_view():
    batch = items(20)
    mean = batch._replace(clean=batch.views.mean(1))
    objective = dsa()
    assert_close(objective(batch._replace(clean=None)), objective(mean))
    far = mean._replace(clean=torch.randn(20, 4))
    assert (objective(far).penalty - objective(mean).penalty).abs() > 1e-6


def test_views_of_one_item_attract_each_other_whatever_the_affinity():
    z = normalize(torch.randn(6, 2, 4), dim=-1).requires_grad_()
    unsure = torch.zeros(12, 12)  # M = 1/2, which is no force
    loss = dsa()._regulated(z, unsure, torch.rand(6) + 0.1)
    (grad,) = torch.autograd.grad(loss, z)
    toward = z.flip(1) - z
    toward = toward - (toward * z).sum(-1, keepdim=True) * z  # along the sphere
    assert_close(normalize(-grad, dim=-1), normalize(toward, dim=-1))


def test_forces_on_an_affinity_are_those_of_the_docstring():
    objective, batch = dsa(temperature=0.8), items()
    log_odds, score = torch.randn(14, 14, requires_grad=True), torch.rand(7) + 0.1
    regulated = objective._regulated(batch.views, log_odds, score)
    anchor = objective._anchor(batch.views, log_odds)
    grads = [torch.autograd.grad(x, log_odds)[0] for x in (regulated, anchor)]
    point = torch.arange(14)
    others = (point // 2)[:, None] != point // 2
    across = (point % 2)[:, None] != point % 2
    m, e = log_odds.detach().sigmoid(), normalize(batch.views.flatten(0, 1), dim=-1)
    d, s = torch.cdist(e, e), score.repeat_interleave(2)[:, None]
    force = 2 * s * d / 0.8 * (s * d * (2 * m - 1) / 0.8).exp() / regulated.exp()
    pairs = 4 * torch.where(across, 49, 42)
    plain = [force * m * (1 - m) / pairs, (m - (-d / 0.5).exp()) / (4 * 42)]
    for found, expected in zip(grads, plain, strict=True):
        assert_close(found[others], expected[others])
        assert (found[~others] == 0).all()


# Corners


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_grad_are_finite_for_zeros_and_one_hot_z(dtype):
    for views in (
        torch.zeros(9, 2, 4),
        torch.eye(4).repeat(3, 1)[:9, None].repeat(1, 2, 1),
    ):
        z = views.to(dtype).requires_grad_()
        objective = dsa(temperature=1e-3).to(dtype)
        value = objective(Batch(z)).penalty
        value.backward()
        assert value.isfinite() and z.grad.isfinite().all()


def test_anchor_is_finite_where_an_affinity_is_sure():
    objective, u = dsa(), torch.randn(7, 2, 4)
    for odds in (1e4, -1e4):
        log_odds = torch.full((14, 14), odds, requires_grad=True)
        value = objective._anchor(u, log_odds)
        (grad,) = torch.autograd.grad(value, log_odds)
        assert value.isfinite() and grad.isfinite().all() and grad.any()


def test_anchor_is_zero_at_the_reference_and_positive_elsewhere():
    objective, u = dsa(), torch.randn(7, 2, 4)
    e = normalize(u.flatten(0, 1), dim=-1)
    log_odds = (-torch.cdist(e, e) / 0.5).exp().clamp(max=1 - 1e-12).logit()
    assert_close(objective._anchor(u, log_odds), torch.zeros(()), rtol=0, atol=1e-9)
    assert objective._anchor(u, log_odds + 0.1) > 1e-4


# The learned affinity


@pytest.mark.parametrize("directions", [True, False])
def test_learned_affinity_is_two_layers_on_a_pair_in_both_orders(directions):
    net, a, b = LearnedAffinity(3, 5, directions=directions), *torch.randn(2, 4, 3)
    nn.init.normal_(net.second)
    joint = torch.cat([net.first, net.second], 1)
    for i in range(4):
        for j in range(4):
            x, y = a[i], b[j]
            if directions:
                x, y = (math.sqrt(3) * normalize(v, dim=0) for v in (x, y))
            logits = [
                net.weight @ torch.sin(joint @ torch.cat(pair) + net.phase) + net.bias
                for pair in ((x, y), (y, x))
            ]
            assert_close(net(a, b)[i, j], sum(logits) / 2)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("directions", [True, False])
def test_no_unit_of_the_learned_affinity_is_dead(directions, size):
    for z in (size * torch.randn(9, 4), size * torch.eye(4), size * torch.ones(3, 4)):
        net = LearnedAffinity(4, 200, directions=directions)
        net(z, z).square().sum().backward()
        for parameter in (net.first, net.second, net.phase, net.weight):
            assert parameter.grad.isfinite().all()
        assert net.phase.grad.abs().min() > 0
        assert net.weight.grad.abs().min() > 0


def test_learned_affinity_never_holds_the_hidden_units_of_all_pairs():
    net, z = LearnedAffinity(4, 50), torch.randn(40, 4, requires_grad=True)
    sizes = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    )
    with hooks:
        net(z, z).sum().backward()
    assert max(sizes) <= 4 * 50 * 40


# The closed form


def pairs_of(
    prior: ps.priors.Prior, count: int, odds: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of z from the model, and whether they have the same content."""
    same = torch.rand(count) < odds / (1 + odds)
    both, others = prior(2).sample((count,)), prior(2).sample((count,))
    a, b = both.unbind(1)
    return a, b.where(same[:, None], others[:, 1]), same.to(a)


def pair_by_pair(affinity: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    return affinity(a[:, None], b[:, None]).flatten()


@pytest.mark.parametrize("dim", [1, 3])
def test_gaussian_log_odds_are_those_of_the_densities_and_the_formula(dim):
    scale, y_scale, odds = 0.6, 1.3, 0.25
    a, b = torch.randn(5, dim), torch.randn(4, dim)
    prior = ps.priors.Gaussian(dim, scale, y_scale)
    found = PriorAffinity(prior, odds)(a, b)
    s, t = scale**2, y_scale**2
    covariance = torch.tensor([[s + t, t], [t, s + t]])
    together = MultivariateNormal(torch.zeros(2), covariance)
    alone = torch.distributions.Normal(0.0, math.sqrt(s + t))
    for i in range(5):
        for j in range(4):
            density = together.log_prob(torch.stack([a[i], b[j]], -1)).sum()
            density = density - alone.log_prob(a[i]).sum() - alone.log_prob(b[j]).sum()
            assert_close(found[i, j], density + math.log(odds))
            square = t**2 * (a[i] ** 2 + b[j] ** 2) - 2 * t * (s + t) * a[i] * b[j]
            formula = math.log((s + t) ** 2 / (s * (s + 2 * t))) / 2
            formula = formula - square / (2 * s * (s + t) * (s + 2 * t))
            assert_close(formula.sum() + math.log(odds), found[i, j])


@pytest.mark.parametrize("kind", [ps.priors.Gaussian, ps.priors.Spherical])
def test_closed_form_is_the_posterior_that_two_items_are_the_same(kind):
    """A logistic regression of the truth on the log-odds is the identity."""
    odds, count, spherical = 0.4, 20_000, kind is ps.priors.Spherical
    prior = kind(3, 30.0) if spherical else kind(2, 0.6, 1.3)
    a, b, same = pairs_of(prior, count, odds)
    log_odds = pair_by_pair(PriorAffinity(prior, odds), a, b).detach()
    m = log_odds.sigmoid()
    # The score of intercept and grad at (0, 1) has mean 0 and a known covariance.
    regressors = torch.stack([torch.ones_like(m), log_odds])
    score = regressors * (same - m)
    error = score.std(1) * math.sqrt(count)
    assert (score.sum(1).abs() < 5 * error).all()
    information = (regressors * m * (1 - m)) @ regressors.mT
    away = torch.linalg.solve(information, score.sum(1))  # a step of Newton's method
    bars = information.inverse().diagonal().sqrt()
    assert (away.abs() < 5 * bars).all() and bars.max() < 0.05
    for inside in log_odds.argsort().chunk(10):  # reliability, where any are the same
        variance = (m * (1 - m))[inside].sum()
        assert variance < 20 or (same - m)[inside].sum().abs() < 5 * variance.sqrt()
    # Other odds before the pairs are seen are noticed.
    wrong = same - (log_odds + 0.3).sigmoid()
    assert wrong.mean().abs() > 5 * wrong.std() / math.sqrt(count)


def classes(kind: str, weights: Tensor, means: Tensor) -> ps.priors.Prior:
    """Normals of standard deviation 0.7 around the mean of a class."""
    if kind == "Custom":
        return ps.priors.Custom(
            lambda k: dist.Normal(means[k], 0.7).to_event(1),
            dim=means.shape[1],
            y_prior=dist.Categorical(weights),
        )
    prior = ps.priors.Mixture(means.shape[1], len(means), scale=0.7)
    with torch.no_grad():
        prior.components.loc.copy_(means)
        prior.logits.copy_(weights.log())
    return prior


@pytest.mark.parametrize("weights", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("kind", ["Mixture", "Custom"])
def test_two_items_of_different_classes_are_no_independent_items(kind, weights):
    """Every pair of classes summed; and with the odds of C classes, p(k = l | a, b)."""
    weights, means = torch.tensor(weights), 2 * torch.randn(4, 2)
    prior, odds = classes(kind, weights, means), 0.4
    a, b = means[:3] + 0.3, torch.cat([means, torch.randn(2, 2)])
    near = [
        torch.distributions.Normal(means, 0.7).log_prob(z[:, None]).sum(-1).exp()
        for z in (a, b)
    ]
    together = torch.einsum("ik,jl,k,l->ijkl", *near, weights, weights)
    same = torch.einsum("ik,jk,k->ij", *near, weights)
    apart = (together.sum((2, 3)) - together.diagonal(0, 2, 3).sum(-1)) / (
        1 - weights.square().sum()
    )
    found = PriorAffinity(prior, odds)(a, b)
    assert_close(found, (same / apart).log() + math.log(odds), rtol=1e-7, atol=1e-7)
    if weights.std() == 0:
        m = PriorAffinity(prior, 1 / 3)(a, b).sigmoid()
        equal = together.diagonal(0, 2, 3).sum(-1) / together.sum((2, 3))
        assert_close(m, equal)
    far = PriorAffinity(prior, odds).float()(1e3 * a.float(), 1e3 * b.float())
    assert not far.isnan().any()


def test_learned_affinity_approaches_the_closed_form_on_pairs_from_the_model():
    prior, odds = ps.priors.Gaussian(2, 0.6, 1.3), 0.4
    closed, net = PriorAffinity(prior, odds), LearnedAffinity(2, directions=False)
    optimiser = torch.optim.Adam(net.parameters(), 0.03, fused=True)
    a, b, same = pairs_of(prior, 2000, odds)
    exact, gaps = pair_by_pair(closed, a, b).sigmoid(), []
    gaps.append((pair_by_pair(net, a, b).detach().sigmoid() - exact).square().mean())
    for _ in range(200):
        x, y, truth = pairs_of(prior, 200, odds)
        loss = binary_cross_entropy_with_logits(pair_by_pair(net, x, y), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gaps.append((pair_by_pair(net, a, b).detach().sigmoid() - exact).square().mean())
    assert gaps[1] < 0.1 * gaps[0]


def test_closed_form_follows_directions_or_points_as_its_prior_does():
    a = torch.randn(5, 3)
    spherical = PriorAffinity(ps.priors.Spherical(None, 5.0))
    assert_close(spherical(a, a), spherical(7 * a, a))
    gaussian = PriorAffinity(ps.priors.Gaussian(None))
    assert (gaussian(a, a) - gaussian(7 * a, a)).abs().max() > 1


# The reference


def test_given_reference_is_a_frozen_copy_in_evaluation_mode():
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    objective = DSA(SimCLR(encoder()), net, neighbours=3).train()
    state = {k: v.clone() for k, v in objective.reference.state_dict().items()}
    batch = Batch(torch.randn(8, 2, 6), torch.randn(8, 6))
    sum(objective(batch)).backward()
    assert objective.training and not objective.reference.training
    assert_close(objective.reference.state_dict(), state, rtol=0, atol=0)
    assert not any(p.requires_grad for p in objective.reference.parameters())
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_average_of_the_encoder_moves_at_the_start_of_a_training_step_only():
    objective = DSA(SimCLR(encoder()), neighbours=3, momentum=0.75)
    batch = Batch(torch.randn(8, 2, 6))
    with torch.no_grad():
        objective.encoder.head.bias += 1
    before = objective.teacher.network.encoder.head.bias.clone()
    objective.eval()(batch)
    assert torch.equal(objective.teacher.network.encoder.head.bias, before)
    objective.train()(batch)
    assert_close(objective.teacher.network.encoder.head.bias, before + 0.25)
    # And it is what u comes from.
    terms = objective.eval()(batch)
    with torch.no_grad():
        objective.teacher.network.encoder.head.bias += torch.randn(3)
    assert (objective(batch).penalty - terms.penalty).abs() > 1e-6


def test_principal_components_are_those_of_the_images():
    images = torch.randint(0, 256, (50, 1, 3, 4), dtype=torch.uint8)
    found = PrincipalComponents.of(images, 5)
    x = images.double() / 255
    centred = x.flatten(1) - x.flatten(1).mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    u = found(x)
    assert_close(u.abs(), (centred @ axes[:5].T).abs())
    assert not list(found.parameters())
    with pytest.raises(TypeError, match="divide bytes by 255"):
        found(images)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_principal_components_do_not_depend_on_the_mean(offset):
    x = (offset + torch.randn(200, 4) * torch.tensor([3.0, 2.0, 0.5, 0.3])).float()
    axes = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False)[2]
    found = PrincipalComponents.of(x, 2).components.double()
    assert_close((found @ axes[:2].T).abs(), torch.eye(2), rtol=0, atol=1e-5)


# Use


def modalities() -> nn.Module:
    parts = [ps.nn.MLPEncoder((n,), 4, hidden=()) for n in (3, 6)]
    return ps.nn.PerModality(parts)


VARIANTS = {
    "EMA": lambda: DSA(SimCLR(encoder(), projector()), neighbours=3, momentum=0.9),
    "own encoder": lambda: DSA(SimCLR(net := encoder()), net, neighbours=3, mutual=2),
    "closed form": lambda: DSA(
        ps.limits.BYOL(encoder()),
        PrincipalComponents.of(torch.randn(20, 6), 3),
        PriorAffinity(ps.priors.Spherical(None, ps.learned(4.0)), ps.learned(0.2)),
        neighbours=3,
    ),
    "VICReg": lambda: DSA(ps.limits.VICReg(encoder(), projector()), neighbours=3),
    "MoCo": lambda: DSA(ps.limits.MoCo(encoder(), queue=24), neighbours=3),
    "SwAV": lambda: DSA(ps.limits.SwAV(encoder(), components=5), neighbours=3),
    "one view": lambda: DSA(ps.limits.DeepClustering(encoder(), 4, 8), neighbours=3),
    "modalities": lambda: DSA(SimCLR(modalities()), neighbours=3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_any_base_reference_and_affinity_is_trained_and_saved(name, tmp_path):
    objective, views = VARIANTS[name](), torch.randn(8, 2, 6)
    if name == "one view":
        views = views[:, :1]
    if name == "modalities":
        views = torch.randn(8, 1, 3), torch.randn(8, 1, 6)
    batch = Batch(views, None if name == "modalities" else torch.randn(8, 6))
    batch = batch._replace(index=torch.arange(8))
    for _ in range(2):  # MoCo's first step has no negatives, and so no gradient
        value = sum(objective.train()(batch))
        value.backward()
    trained = [k for k, p in objective.named_parameters() if p.requires_grad]
    for key, parameter in objective.named_parameters():
        assert (parameter.grad is not None) == (key in trained)
        if key in trained:
            assert parameter.grad.isfinite().all() and parameter.grad.any()
    ps.save(objective.eval(), tmp_path)
    again = ps.load(tmp_path)
    assert torch.equal(torch.as_tensor(sum(again(batch))), sum(objective(batch)))
    assert trained == [k for k, p in again.named_parameters() if p.requires_grad]


def test_views_of_several_sizes_are_all_looked_at():
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    objective = DSA(ps.limits.SwAV(pooled, components=5, dim=3), neighbours=3, dim=3)
    views = torch.randn(8, 2, 1, 6, 6), torch.randn(8, 3, 1, 4, 4)
    batch = Batch(views, torch.randn(8, 1, 6, 6))
    moved = (views[0], views[1] + torch.randn(8, 3, 1, 4, 4))
    terms = [objective(b) for b in (batch, batch._replace(views=moved))]
    assert (terms[0].penalty - terms[1].penalty).abs() > 1e-6


def test_same_gives_a_probability_for_every_pair():
    objective = DSA(SimCLR(encoder(), projector()), neighbours=3)
    x, y = torch.randn(9, 6), torch.randn(5, 6)
    a, b = (ps.embed(objective, each, layer="projector") for each in (x, y))
    found = objective.same(a, b)
    assert found.shape == (9, 5) and ((found > 0) & (found < 1)).all()
    expected = objective.affinity(torch.as_tensor(a), torch.as_tensor(b)).sigmoid()
    assert_close(found, expected.detach())
    assert_close(objective.same(a), objective.same(a, a))


def test_items_of_one_class_are_found_to_be_the_same():
    from sklearn.metrics import roc_auc_score

    labels = torch.arange(64) % 4
    x = 3 * torch.eye(4)[labels] + 0.3 * torch.randn(64, 4)
    objective = DSA(
        SimCLR(ps.nn.MLPEncoder((4,), 3, hidden=(16,))),
        nn.Identity(),
        neighbours=8,
        reference_temperature=1.0,
    )
    ps.fit(
        objective,
        x,
        views=lambda x: x[:, None] + 0.3 * torch.randn(len(x), 2, 4),
        epochs=30,
        batch_size=32,
        learning_rate=2e-2,
    )
    pairs = torch.ones(64, 64).triu(1).bool()
    truth = (labels[:, None] == labels)[pairs]
    found = objective.same(ps.embed(objective, x))[pairs]
    assert roc_auc_score(truth, found) > 0.95


def test_batches_must_have_more_items_than_neighbours():
    objective = dsa(neighbours=7)
    for call in (objective, objective.check):
        with pytest.raises(ValueError, match="neighbours=7, got 7 items"):
            call(items(7))
    assert sum(objective(items(8))).isfinite()


def test_base_must_give_a_z_for_each_view():
    class Halved(SimCLR):
        def layers(self, views: Tensor) -> tuple[Tensor, Tensor]:
            return super().layers(views[:, :2])

    with pytest.raises(TypeError, match="reference for a base whose layers"):
        DSA(Halved(nn.Identity()), dim=4)
    objective = DSA(Halved(nn.Identity()), nn.Identity(), dim=4, neighbours=3)
    with pytest.raises(ValueError, match="one z for each of the"):
        objective(items(views=3))


def test_pairs_of_another_layer_than_is_compared_are_refused():
    """Whatever the affinity: one on the sphere takes vectors of any length."""
    base = ps.limits.SimCLR(nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 3)))
    affinity = PriorAffinity(ps.priors.Spherical(None, 5.0))
    dsa = DSA(base, nn.Linear(5, 2), affinity, neighbours=2)
    x = torch.randn(6, 5)
    right = torch.as_tensor(ps.embed(dsa, x, layer="projector"))
    assert dsa.same(right).shape == (6, 6)
    wrong = ps.embed(dsa, x)
    for pair in ((wrong,), (right, wrong), (right[0],)):
        with pytest.raises(ValueError, match=r"\(n, 3\), got .*layer='projector'"):
            dsa.same(*pair)
