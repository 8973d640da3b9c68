"""Objectives whose z is one of K classes, against their papers and plain tables."""

import math
from itertools import product

import pytest
import torch
from helpers.checks import assert_same
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.limits import CLIP, RPM, CategoricalMatching
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


def value(objective: nn.Module, z: Tensor) -> Tensor:
    return torch.as_tensor(sum(objective(Batch(z))))


def table(z: Tensor) -> Tensor:
    """The joint distribution of classes, item by item, pair by pair in both orders."""
    views, classes = z.shape[1:]
    total = torch.zeros(classes, classes)
    for item in z.softmax(-1):
        for v, w in product(range(views), repeat=2):
            if v != w:
                total = total + torch.outer(item[v], item[w])
    return total / (len(z) * views * (views - 1))


def prior(classes: int, match: float) -> Tensor:
    """As printed, by β."""
    beta = math.log((classes - 1) * match / (1 - match))
    kernel = (beta * torch.eye(classes)).exp()
    return kernel / (classes * (math.exp(beta) + classes - 1))


@pytest.mark.parametrize("match", [0.2, 0.95])
@pytest.mark.parametrize("views", [2, 3])
def test_categorical_matching_is_minus_the_divergence_of_its_table_from_the_prior(
    views, match
):
    z = torch.randn(7, views, 4, requires_grad=True)
    found, t = CategoricalMatching(nn.Identity(), match=match)(Batch(z)), table(z)
    p = prior(4, match)
    assert_close(p.sum(), torch.tensor(1.0))
    assert_close(p.trace(), torch.tensor(match))
    assert_same(sum(found), -(t * (t / p).log()).sum(), z)
    assert_same(found.entropy, -(t * t.log()).sum(), z)


def test_the_loss_of_the_authors_code_on_pairs_in_both_orders():
    """Of softmax outputs z1, z2 with temperature 1/β: −invariance − H/β."""
    z = torch.randn(7, 2, 4, requires_grad=True)
    both, beta = torch.cat([z, z.flip(1)]), math.log(3 * 0.9 / 0.1)
    p, q = both.softmax(-1).unbind(1)
    cross = torch.einsum("ij,ik->jk", p, q) / len(p)
    loss = -torch.einsum("ij,ij->i", p, q).mean() + (cross * cross.log()).sum() / beta
    constant = -math.log(4) - math.log(math.exp(beta) + 3)
    ours = value(CategoricalMatching(nn.Identity(), match=0.9), z)
    assert_same(ours, constant - beta * loss, z)


def test_without_all_views_it_is_a_bound_on_the_mutual_information_that_is_fitted():
    z = torch.randn(7, 2, 4, requires_grad=True)
    t = table(z)
    single = t.sum(0)
    mutual = (t * (t / torch.outer(single, single)).log()).sum()
    fitted = CategoricalMatching(nn.Identity(), match=None, all_views=False)
    assert_same(value(fitted, z), mutual, z)
    for match in (0.1, 0.3, 0.9):
        bound = CategoricalMatching(nn.Identity(), match=match, all_views=False)
        gap = (t * (t / prior(4, match)).log()).sum()
        assert_same(value(bound, z), mutual - gap, z)
        assert gap > 0


def test_the_prior_is_that_of_a_content_behind_a_symmetric_channel():
    keep = 0.8
    channel = torch.full((4, 4), (1 - keep) / 3).fill_diagonal_(keep)
    match = keep**2 + (1 - keep) ** 2 / 3
    assert_close(channel @ channel / 4, prior(4, match))


def test_the_value_is_zero_at_the_prior_itself():
    """Items whose views are certain, in the shares of the prior for m = 1/2."""
    pairs = [(k, k) for k in range(4) for _ in range(3)]
    pairs += [(k, m) for k in range(4) for m in range(4) if k != m]
    z = 1e3 * torch.eye(4)[torch.tensor(pairs)]
    found = value(CategoricalMatching(nn.Identity(), match=0.5), z)
    assert_close(found, torch.tensor(0.0))


def test_a_schedule_writes_the_match():
    objective = CategoricalMatching(ps.nn.MLPEncoder((3,), 4, hidden=(8,)), match=0.3)
    x, rise = torch.randn(8, 2, 3), ps.train.linear(0.5, 0.9)
    options = {"epochs": 4, "batch_size": 8, "progress": False}
    ps.fit(objective, ps.data.groups(x), schedules={"match": rise}, **options)
    assert_close(float(objective.match), rise(0.75))
    with pytest.raises(ValueError, match="float32 rounds 0.999999999 to it"):
        ps.limits.CategoricalMatching(nn.Identity(), match=1 - 1e-9)
    with pytest.raises(ValueError, match="match.* strictly between 0 and 1"):
        ps.fit(
            objective,
            ps.data.groups(x),
            schedules={"match": ps.train.linear(0.5, 1.0)},
            **options,
        )


# The recognition-parametrised model


def rpm(classes: int) -> RPM:
    objective = RPM(nn.Identity(), components=classes)
    nn.init.normal_(objective.logits)
    return objective


def ratios(z: Tensor, weights: Tensor) -> Tensor:
    """p(x_1, …, x_V) over its marginals for all combinations of views, N^V of them."""
    f = z.softmax(-1)
    means, found = f.mean(0), []
    for rows in product(range(len(z)), repeat=z.shape[1]):
        each = weights
        for v, i in enumerate(rows):
            each = each * f[i, v] / means[v]
        found.append(each.sum())
    return torch.stack(found).view([len(z)] * z.shape[1])


@pytest.mark.parametrize(("n", "views"), [(6, 2), (4, 3)])
def test_rpm_is_the_likelihood_ratio_of_a_distribution_over_all_combinations(n, views):
    z, objective = torch.randn(n, views, 5, requires_grad=True), rpm(5)
    every = ratios(z, objective.logits.softmax(-1))
    rows = (torch.arange(n),) * views
    assert_same(value(objective, z), every[rows].log().mean(), (z, objective.logits))
    assert_close(every.sum(), torch.tensor(float(n**views)))
    assert value(objective, z) <= (views - 1) * math.log(n)


@pytest.mark.parametrize("views", [2, 3])
def test_the_ceiling_of_a_batch_is_reached_where_each_item_is_a_class(views):
    z = 1e3 * torch.eye(6).unsqueeze(1).repeat(1, views, 1)
    found = value(RPM(nn.Identity(), components=6), z)
    assert_close(found, torch.tensor((views - 1) * math.log(6)))


def population() -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of symbols in the shares of a mixture of two classes, and p(k, x), I."""
    given = torch.tensor([[2.0, 1.0, 1.0], [0.0, 1.0, 3.0]]) / 4
    law = given.T @ given / 2
    symbols = [
        (a, b)
        for a in range(3)
        for b in range(3)
        for _ in range(round(32 * law[a, b].item()))
    ]
    single = law.sum(0)
    mutual = torch.special.xlogy(law, law / torch.outer(single, single)).sum()
    return torch.eye(3)[torch.tensor(symbols)], given / 2, mutual


def test_rpm_is_the_mutual_information_where_its_factors_are_the_posteriors():
    x, joint, mutual = population()
    encoder = nn.Linear(3, 2, bias=False)
    encoder.weight.data.copy_(joint.clamp(min=1e-300).log())
    assert len(x) == 32
    assert_close(value(RPM(encoder, components=2), x), mutual)


def test_rpm_is_at_most_the_mutual_information_of_the_views():
    x, _, mutual = population()
    for _ in range(20):
        objective = RPM(nn.Linear(3, 4), components=4)
        nn.init.normal_(objective.encoder.weight, std=3.0)
        nn.init.normal_(objective.logits)
        assert value(objective, x) < mutual


def test_with_instances_as_classes_rpm_is_info_nce_plus_a_divergence():
    similarity = torch.randn(6, 6, requires_grad=True)
    z = torch.stack([similarity, 1e3 * torch.eye(6)], 1)
    chosen = similarity.softmax(-1)
    info_nce = math.log(6) + chosen.diagonal().log().mean()
    divergence = -(6 * chosen.mean(0)).log().mean()
    found = value(RPM(nn.Identity(), components=6), z)
    assert_same(found, info_nce + divergence, similarity)
    assert divergence > 0


def test_that_is_info_nce_itself_where_all_instances_are_chosen_equally():
    angle = torch.arange(6) * math.pi / 3
    views = torch.stack([angle, angle + 0.2], 1)
    u = torch.stack([views.cos(), views.sin()], -1)
    similarity = u[:, 0] @ u[:, 1].T / 0.3
    z = torch.stack([similarity, 1e3 * torch.eye(6)], 1)
    found = value(RPM(nn.Identity(), components=6), z)
    assert_close(found, value(CLIP(nn.Identity(), temperature=0.3), u))
