"""SwAV, deep clustering and DINO as limits with a categorical content."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_same, asymmetry, refusals
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

import probssl as ps
from probssl.entropies.equipartition import sinkhorn
from probssl.limits._prototypes import swapped
from probssl.limits.deep_clustering import DeepClustering
from probssl.limits.dino import DINO
from probssl.limits.swav import SwAV
from probssl.terms import Batch
from probssl.train import fit_rounds

pytestmark = pytest.mark.usefixtures("float64")
ITEMS = 20


def swav(**options) -> SwAV:
    return SwAV(nn.Identity(), components=5, dim=4, **options)


def dino(**options) -> DINO:
    return DINO(nn.Identity(), components=5, dim=4, **options).eval()


def deep_clustering(**options) -> DeepClustering:
    return DeepClustering(nn.Identity(), 5, ITEMS, dim=4, **options)


def batch(views: int | Tensor = 2, items: int = 9) -> Batch:
    z = torch.randn(items, views, 4) if isinstance(views, int) else views
    return Batch(z, index=torch.randperm(ITEMS)[: len(z)])


def published_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    q = torch.exp(scores.detach() / epsilon).T
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def swapped_loss(
    scores: list[Tensor], codes: list[Tensor], temperature: float
) -> Tensor:
    """Mean over coded views and others, of −Σ q log softmax, item by item."""
    total, pairs = torch.zeros(()), 0
    for w, code in enumerate(codes):
        for v, score in enumerate(scores):
            if v == w:
                continue
            pairs += 1
            for q, s in zip(code, score, strict=True):
                total = total - (q * (s / temperature).log_softmax(0)).sum() / len(code)
    return total / pairs


# SwAV


@pytest.mark.parametrize(("views", "large"), [(2, 2), (3, 3), (5, 2)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.2, 1)])
def test_swav_is_log_k_minus_the_published_loss(views, large, epsilon, iterations):
    """Codes come from views of the first size, and all others predict them."""
    z = torch.randn(9, views, 4, requires_grad=True)
    objective = swav(epsilon=epsilon, iterations=iterations)
    centres = objective.entropy.centres
    parts = z if large == views else tuple(z.split((large, views - large), 1))
    ours = sum(objective(Batch(parts)))
    directions = normalize(centres, dim=1)
    scores = [normalize(z[:, v], dim=1) @ directions.T for v in range(views)]
    codes = [published_codes(s, epsilon, iterations) for s in scores[:large]]
    plain = math.log(5) - swapped_loss(scores, codes, 0.1)
    assert_same(ours, plain, (z, centres))


def test_swav_takes_codes_from_every_modality():
    encoder = ps.nn.PerModality(
        [ps.nn.MLPEncoder((3,), 4, hidden=()), ps.nn.MLPEncoder((6,), 4, hidden=())]
    )
    objective = SwAV(encoder, components=5)
    a, b = torch.randn(9, 1, 3), torch.randn(9, 1, 6)
    z = torch.stack(encoder((a[:, 0], b[:, 0])), 1)
    alone = swav()
    alone.entropy.load_state_dict(objective.entropy.state_dict())
    assert_close(sum(objective(Batch((a, b)))), sum(alone(Batch(z))))


def test_swav_terms_are_densities_of_the_mixture():
    objective, data = swav(temperature=0.2), batch()
    z = normalize(data.views, dim=-1)
    directions = normalize(objective.entropy.centres, dim=1)
    kernel = ps.distributions.VonMisesFisher(directions, torch.full((5,), 5.0))
    log_density = kernel.log_prob(z.unsqueeze(2))  # (item, view, component)
    terms = objective(data)
    mixture = log_density.logsumexp(-1) - math.log(5)
    assert_close(terms.entropy, -mixture.mean())
    codes = [published_codes(z[:, v] @ directions.T, 0.05, 3) for v in (0, 1)]
    alignment = sum((codes[1 - v] * log_density[:, v]).sum() for v in (0, 1)) / 18
    assert_close(terms.alignment, alignment)


def test_with_the_posterior_for_a_code_alignment_and_entropy_of_y_are_the_likelihood():
    """What SwAV approximates: the bound of log p(z_1, …, z_V), tight at p(y|z)."""
    prior = ps.priors.Mixture(4, 5, scale=0.7, learn_weights=False)
    z = torch.randn(9, 3, 4)
    posterior = prior.posterior_y(z).probs
    centres, _ = prior.components()
    normal = torch.distributions.Normal(centres, 0.7)
    log_density = normal.log_prob(z.unsqueeze(2)).sum((1, -1))  # of all views
    bound = (posterior * (log_density - (5 * posterior).log())).sum(-1)
    assert_close(bound, prior.log_prob(z))


def test_equal_codes_for_all_clusters_give_a_bound_on_the_information():
    log_density = 2 * torch.randn(1, 12, 5)
    codes = sinkhorn(log_density, 0.5, 2000)
    views = torch.cat([log_density, log_density])
    value = sum(swapped(codes, views))
    joint = codes[0] / 12  # of the item and y, with equal shares of y
    information = (joint * (joint / joint.sum(0) / joint.sum(1, True)).log()).sum()
    assert value < information
    tight = codes.clamp(min=1e-30).log()
    assert_close(sum(swapped(codes, torch.cat([tight, tight]))), information)


# DINO


def test_dino_follows_the_published_rule_for_two_steps():
    """Teacher first, then the loss, then the centre; with plain gradient descent."""
    torch.manual_seed(1)
    encoder = nn.Linear(3, 4)
    objective = DINO(encoder, components=5, dim=4, momentum=0.7).train()
    student = [encoder.weight, encoder.bias, objective.entropy.centres]
    student = [p.detach().clone().requires_grad_() for p in student]
    teacher, centre = [p.detach().clone() for p in student], torch.zeros(5)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)

    def scores(parameters: list[Tensor], x: Tensor) -> list[Tensor]:
        weight, bias, centres = parameters
        z = normalize(x @ weight.T + bias, dim=-1)
        return [z[:, v] @ normalize(centres, dim=-1).T for v in range(x.shape[1])]

    for _ in range(2):
        large, small = torch.randn(9, 2, 3), torch.randn(9, 3, 3)
        ours = sum(objective(Batch((large, small))))
        optimizer.zero_grad()
        (-ours).backward()
        optimizer.step()

        teacher = [
            0.7 * t + 0.3 * s.detach() for t, s in zip(teacher, student, strict=True)
        ]
        logits = scores(teacher, large)
        codes = [((t - centre) / 0.04).softmax(-1) for t in logits]
        seen = scores(student, torch.cat([large, small], 1))
        plain = math.log(5) - swapped_loss(seen, codes, 0.1)
        grads = torch.autograd.grad(plain, student)
        student = [
            (s + g).detach().requires_grad_()
            for s, g in zip(student, grads, strict=True)
        ]
        centre = 0.9 * centre + 0.1 * torch.cat(logits).mean(0)
        assert_close(ours, plain, rtol=1e-10, atol=1e-10)
        assert_close(objective.centre, centre, rtol=1e-10, atol=1e-10)
    found = [encoder.weight, encoder.bias, objective.entropy.centres]
    assert_close(found, student, rtol=1e-10, atol=1e-10)


def test_centre_gives_all_clusters_the_same_share_where_all_items_are_one():
    objective = dino(centre_momentum=0.0).train()
    data = Batch(torch.ones(9, 2, 4))
    objective(data)  # moves the centre to the items
    logits = objective.teacher(data.views)
    codes = ((logits - objective.centre) / 0.04).softmax(-1)
    assert_close(codes, torch.full((9, 2, 5), 0.2))


def steps(objective: nn.Module, data: Batch) -> Callable[[Tensor], Tensor]:
    """The gradient of the value in z, as a function of z."""

    def update(z: Tensor) -> Tensor:
        z = z.detach().clone().requires_grad_()
        return torch.autograd.grad(sum(objective(data._replace(views=z))), z)[0]

    return update


def test_steps_of_swav_and_dino_follow_the_gradient_of_no_scalar():
    z = torch.randn(3, 2, 4)
    for objective in (swav(epsilon=0.5), dino(teacher_temperature=0.5, momentum=0.0)):
        assert asymmetry(steps(objective, Batch(z)), z) > 0.1
    assert asymmetry(steps(deep_clustering(), batch(2, 3)), z) < 1e-6


# Deep clustering


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.5, 2.0])
def test_deep_clustering_is_log_k_minus_cross_entropy(views, scale):
    prior = None if scale is None else ps.priors.Gaussian(None, scale)
    objective = deep_clustering(prior=prior)
    z = torch.randn(ITEMS, views, 4, requires_grad=True)
    centres = objective.entropy.centres
    ours = sum(objective(Batch(z, index=torch.arange(ITEMS))))
    if scale is None:
        features = normalize(z, dim=-1)
        weight, bias = 10 * normalize(centres, dim=-1), torch.zeros(5)
    else:
        features, weight = z, centres / scale**2
        bias = -centres.square().sum(1) / (2 * scale**2)
    losses = [
        cross_entropy(features[:, v] @ weight.T + bias, objective.assignment)
        for v in range(views)
    ]
    plain = math.log(5) - sum(losses) / views  # all clusters have four items
    assert_same(ours, plain, (z, centres))


def test_weights_draw_items_uniformly_over_clusters():
    objective, plain = deep_clustering(), deep_clustering(balanced=False)
    plain.entropy.load_state_dict(objective.entropy.state_dict())
    z = torch.randn(ITEMS, 4)
    z[:12] = z[0] + 1e-3 * z[:12]  # one large cluster
    for each in (objective, plain):
        centres = each.entropy.centres.detach().clone()
        each.assign(z)
        with torch.no_grad():
            each.entropy.centres.copy_(centres)
    sizes = objective.assignment.bincount(minlength=5)
    assert sizes.max() >= 12 and sizes.min() >= 1
    one = [Batch(z[i].view(1, 1, 4), index=torch.tensor([i])) for i in range(ITEMS)]
    values = torch.stack([torch.as_tensor(sum(plain(b))) for b in one])
    uniformly = torch.stack(
        [values[objective.assignment == k].mean() for k in range(5)]
    )
    whole = Batch(z.unsqueeze(1), index=torch.arange(ITEMS))
    assert_close(sum(objective(whole)), uniformly.mean())
    assert_close(sum(plain(whole)), values.mean())
    shares = objective.weight[objective.assignment]
    assert_close(shares.mean(), torch.ones(()))


def test_entropy_of_deep_clustering_is_the_cross_entropy_of_its_mixture():
    objective = deep_clustering(prior=ps.priors.Gaussian(None, 0.8))
    mixture = ps.priors.Mixture(4, 5, scale=0.8, learn_weights=False)
    with torch.no_grad():
        mixture.components.loc.copy_(objective.entropy.centres)
    z = torch.randn(ITEMS, 2, 4)
    terms = objective(Batch(z, index=torch.arange(ITEMS)))
    assert_close(terms.entropy, -mixture.log_prob(z.unsqueeze(2)).mean())


def test_assigning_finds_clusters_and_their_means():
    centres = torch.cat([torch.eye(4), -torch.ones(1, 4)])
    truth = torch.randint(5, (ITEMS,))
    truth[:5] = torch.arange(5)
    z = centres[truth] + 1e-3 * torch.randn(ITEMS, 4)
    prior = ps.priors.Gaussian(None, 0.1)
    objective = deep_clustering(prior=prior)
    for given in (z, z.numpy()):
        objective.assign(given)
        means = objective.entropy.centres.detach()
        for k in range(5):
            inside = objective.assignment == k
            assert len(truth[inside].unique()) == 1
            assert_close(means[k], z[inside].mean(0))
    terms = objective(Batch(z.unsqueeze(1), index=torch.arange(ITEMS)))
    assert abs(sum(terms) - math.log(5)) < 1e-6


def test_a_cluster_without_items_has_no_weight():
    objective = deep_clustering()
    two = torch.arange(ITEMS) % 2
    objective.assignment.copy_(two)
    objective.weight.copy_(objective._weights(two))
    assert_close(objective.weight.sort().values, torch.tensor([0.0, 0, 0, 1, 1]))
    assert sum(objective(batch())).isfinite()


# All of them


def test_value_of_deep_clustering_ignores_a_stretch_of_z_clusters_and_scale():
    once, wide = (
        deep_clustering(prior=ps.priors.Gaussian(None, scale)) for scale in (1.0, 3.0)
    )
    data = batch()
    wide.load_state_dict(once.state_dict() | {"prior.scale.fixed": torch.tensor(3.0)})
    with torch.no_grad():
        wide.entropy.centres.mul_(3)
    found = wide(data._replace(views=3 * data.views))
    assert_close(sum(found), sum(once(data)))
    stretch = torch.tensor(4 * math.log(3)) * once.weight[once.assignment].mean()
    assert_close(found.entropy - once(data).entropy, stretch)


# Training


def rounds(**options) -> tuple[ps.History, list[Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    encoder = ps.nn.MLPEncoder((3,), 2, hidden=(8,))
    objective, seen = DeepClustering(encoder, components=4, items=40), []

    def assign() -> None:
        objective.assign(ps.embed(objective, x))
        seen.append(objective.assignment.clone())

    options = {"rounds": 3, "epochs": 2, "batch_size": 20, "progress": False} | options
    return fit_rounds(objective, x, assign, **options), seen


def test_centres_on_a_part_of_the_space_are_mapped_to_it_once():
    """Of positive z they are found among the logarithms that the network returns."""
    prior = ps.priors.Custom(lambda y: dist.LogNormal(y, 0.3).to_event(1), 2)
    objective = DeepClustering(nn.Identity(), 3, 30, dim=2, prior=prior)
    z = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]).repeat(10, 1)
    objective.assign(z + 1e-3 * torch.randn(30, 2))
    found = objective.entropy.centres.detach()
    assert_close(found[found[:, 0].argsort()], z[:3], atol=0.01, rtol=0)


def test_rounds_assign_before_each_fit_and_count_through():
    history, seen = rounds()
    assert len(seen) == 3
    assert history["round"].tolist() == [1, 1, 2, 2, 3, 3]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["step"].tolist() == [2, 4, 6, 8, 10, 12]


def test_one_round_is_an_assignment_and_a_fit():
    history, seen = rounds(rounds=1)
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    encoder = ps.nn.MLPEncoder((3,), 2, hidden=(8,))
    objective = DeepClustering(encoder, components=4, items=40)
    objective.assign(ps.embed(objective, x))
    once = ps.fit(objective, x, epochs=2, batch_size=20, progress=False)
    assert torch.equal(objective.assignment, seen[0])
    assert history["value"].tolist() == once["value"].tolist()


def test_rounds_may_have_epochs_of_their_own():
    history, seen = rounds(epochs=[2, 1, 1])
    assert len(seen) == 3 and history["round"].tolist() == [1, 1, 2, 3]
    with pytest.raises(ValueError, match="epochs of 3 rounds, got 2 numbers"):
        rounds(epochs=[2, 1])


@pytest.mark.parametrize("epochs", [3, 19])
def test_a_recipe_fits_for_as_many_epochs_as_asked(epochs):
    data = ps.data.arrays(torch.randn(30, 3), test=torch.randn(20, 3))
    objective = DeepClustering(ps.nn.MLPEncoder((3,), 2, hidden=(8,)), 4, 30)
    history = ps.recipes.fit(objective, data, epochs=epochs, progress=False)
    assert len(history) == epochs and history["round"][-1] == min(epochs, 10)


def test_a_round_that_is_stopped_is_the_last():
    calls = []

    def stop(epoch: int, row: dict[str, float]) -> bool:
        calls.append(epoch)
        return len(calls) == 3

    history, seen = rounds(on_epoch=stop, epochs=2)
    assert calls == [1, 2, 1] and len(seen) == 2
    assert history["epoch"].tolist() == [1, 2, 3]


test_rounds_refuse_what_holds_one_fit_only = refusals(
    (lambda: rounds(valid=torch.zeros(20, 2, 4)), ValueError, "no validation data"),
    (lambda: rounds(checkpoint="here"), ValueError, "no checkpoint for a fit in round"),
    (lambda: rounds(rounds=0), ValueError, "rounds as a whole number"),
)
