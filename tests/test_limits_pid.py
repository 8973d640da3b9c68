"""PID: the cluster tier as terms, and what it says of clusters and of information."""

import itertools
import math

import pytest
import torch
from helpers.catalogue import encoder, projector
from helpers.checks import refusals
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl.limits import BYOL, PID, SimCLR, VICReg
from probssl.limits import pid as room
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
EXACT = {"rtol": 1e-12, "atol": 1e-12}
ITEMS, DIM, CLUSTERS = 20, 4, 3


def on_z(dim: int = DIM, components: int = CLUSTERS, **options: object) -> PID:
    """An objective of z itself."""
    base = SimCLR(nn.Identity())
    options = {"items": ITEMS, "dim": dim, "unit": False} | options
    return PID(base, components, **options)


def at_random(objective: PID) -> PID:
    """With clusters and a classifier drawn at random."""
    with torch.no_grad():
        objective.assignment.copy_(torch.arange(objective.items) % objective.components)
        for parameter in objective.classifier.parameters():
            parameter.normal_()
    return objective


def lumps(
    items: int = ITEMS, clusters: int = CLUSTERS, apart: float = 30.0
) -> tuple[Tensor, Tensor]:
    """Clusters that lie far apart, and which one an item is in."""
    label = torch.arange(items) % clusters
    centre = apart * torch.linalg.qr(torch.randn(DIM, DIM)).Q[:clusters]
    return centre[label] + torch.randn(items, DIM), label


# The value


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("views", [2, 3])
def test_pid_is_the_base_and_a_weighted_log_probability_of_each_view(views, unit):
    objective = at_random(on_z(unit=unit, weight=0.3))
    z, index = torch.randn(9, views, DIM, requires_grad=True), torch.randperm(ITEMS)[:9]
    terms = objective(Batch(z, index=index))
    base, total = SimCLR(nn.Identity())(Batch(z)), 0.0
    w, b = objective.classifier.weight, objective.classifier.bias
    for i in range(9):
        for v in range(views):
            point = z[i, v] / z[i, v].norm() if unit else z[i, v]
            scores = [sum(w[k] * point) + b[k] for k in range(CLUSTERS)]
            own = scores[int(objective.assignment[index[i]])]
            total = total + own - sum(s.exp() for s in scores).log()
    plain = base.alignment + 0.3 * total / 9
    assert_close(terms.entropy, base.entropy, **EXACT)
    assert_close(terms.alignment, plain, rtol=1e-7, atol=1e-7)  # the weight is float32
    leaves = (z, w, b)
    ours, expected = (
        torch.autograd.grad(value, leaves) for value in (terms.alignment, plain)
    )
    for left, right in zip(ours, expected, strict=True):
        assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_without_a_projector_there_is_one_layer():
    objective = PID(SimCLR(encoder()), CLUSTERS, ITEMS, layer="projector")
    assert objective.layer == "backbone"
    assert objective.classifier.in_features == objective.encoder.dim


def test_modalities_share_one_classifier():
    encoders = ps.nn.PerModality([ps.nn.MLPEncoder((n,), DIM) for n in (5, 6)])
    objective = PID(SimCLR(encoders), CLUSTERS, ITEMS, weight=1.0)
    parts = torch.randn(9, 1, 5), torch.randn(9, 1, 6)
    objective = at_random(objective)
    batch = Batch(parts, index=torch.arange(9))
    found = objective(batch).alignment - objective.base(batch).alignment
    z = torch.stack([n(x[:, 0]) for n, x in zip(encoders.parts, parts, strict=True)], 1)
    log_label = objective.responsibilities(z).log_prob(objective.assignment[:9, None])
    assert_close(found, log_label.sum(1).mean())


def test_items_without_a_cluster_count_nothing():
    objective = at_random(on_z(weight=1.0))
    objective.assignment[::2] = -1
    z = torch.randn(ITEMS, 2, DIM)
    found = objective(Batch(z, index=torch.arange(ITEMS))).alignment
    known = objective.responsibilities(z[1::2])
    log_label = known.log_prob(objective.assignment[1::2, None]).sum() / ITEMS
    assert_close(found, SimCLR(nn.Identity())(Batch(z)).alignment + log_label, **EXACT)


# With weight 0


@pytest.mark.parametrize("kind", [SimCLR, VICReg, BYOL])
@pytest.mark.parametrize("assigned", [False, True])
def test_with_weight_0_it_is_the_base_bit_for_bit(kind, assigned):
    x = torch.randn(32, 6)

    def fitted(extended: bool) -> tuple[list[float], dict[str, Tensor]]:
        torch.manual_seed(1)
        base = kind(encoder(), projector())
        objective: nn.Module = base
        if extended:
            objective = PID(base, CLUSTERS, 32, weight=0.0)
            if assigned:
                with torch.random.fork_rng():
                    at_random(objective)
        history = ps.fit(
            objective,
            x,
            views=lambda x: x[:, None] + 0.1 * torch.randn(len(x), 2, 6),
            epochs=3,
            batch_size=8,
            progress=False,
        )
        state = {k: v for k, v in base.state_dict().items()}
        return history["value"].tolist(), state | {"rng": torch.get_rng_state()}

    alone, below = fitted(False), fitted(True)
    assert alone[0] == below[0]
    assert_close(below[1], alone[1], rtol=0, atol=0)


# The two tiers


@pytest.mark.parametrize("learn_weights", [False, True])
def test_the_classifier_of_two_tiers_has_their_responsibilities(learn_weights):
    prior = ps.priors.TwoTier(DIM, 5, scale=0.4, y_scale=0.9)
    prior.logits.data.normal_()
    loc, variance = prior.components()[0], torch.tensor(0.4**2 + 0.9**2)
    objective = on_z(components=5)
    bias = prior.component().logits - loc.square().sum(-1) / (2 * variance)
    objective.classifier.load_state_dict({"weight": loc / variance, "bias": bias})
    z = 3 * torch.randn(50, DIM)
    expected = prior.responsibilities(z.unsqueeze(1)).probs
    assert_close(objective.responsibilities(z).probs, expected)


def test_the_classifier_starts_as_that_of_the_clusters_it_was_given():
    z = torch.randn(60, DIM)
    objective = on_z(items=60)
    objective.assign(z)
    label, start = objective.assignment, objective.responsibilities(z).probs
    means = torch.stack([z[label == k].mean(0) for k in range(CLUSTERS)])
    shares = torch.stack([(label == k).double().mean() for k in range(CLUSTERS)])
    variance = sum((z[i] - means[label[i]]).square().sum() for i in range(60)) / (
        60 * DIM
    )
    scales = [float((part * variance).sqrt()) for part in (0.2, 0.8)]
    prior = ps.priors.TwoTier(DIM, CLUSTERS, *scales)
    prior.components.loc.data.copy_(means)
    prior.logits.data.copy_(shares.log())
    expected = prior.responsibilities(z.unsqueeze(1)).probs
    assert_close(start, expected, rtol=1e-6, atol=1e-6)  # scales are float32
    # Means of equal size apart, it is where K-means puts them.
    assert (start.argmax(1) == label).double().mean() > 0.9


def test_the_classifier_of_directions_is_that_of_von_mises_fisher_clusters():
    centre = normalize(torch.randn(CLUSTERS, DIM), dim=-1)
    objective, share = on_z(unit=True), torch.tensor([0.2, 0.3, 0.5])
    objective.classifier.load_state_dict({"weight": 7 * centre, "bias": share.log()})
    z = torch.randn(50, DIM)
    cluster = ps.distributions.VonMisesFisher(centre, torch.tensor(7.0))
    log_density = cluster.log_prob(normalize(z, dim=-1).unsqueeze(1))
    expected = (share.log() + log_density).softmax(-1)
    assert_close(objective.responsibilities(z).probs, expected)


# Information


def test_views_tell_twice_the_redundant_part_and_both_unique_ones():
    """Of discrete views, with the best classifier of each, in nats."""
    count = torch.randint(1, 6, (3, 4, 2))
    table = (count / count.sum()).numpy()
    cells = [
        cell
        for cell in itertools.product(range(3), range(4), range(2))
        for _ in range(int(count[cell]))
    ]
    label = torch.tensor([t for *_, t in cells])
    z = torch.zeros(len(cells), 2, 7)  # where a view is which of its values
    for i, (first, second, _) in enumerate(cells):
        z[i, 0, first] = z[i, 1, 3 + second] = 1
    objective = on_z(7, 2, items=len(cells), weight=1.0)
    given = torch.cat([count.sum(1), count.sum(0)]).double()  # (value, label)
    given = given / given.sum(1, keepdim=True)
    with torch.no_grad():
        objective.classifier.weight.copy_(given.log().mT)
        objective.assignment.copy_(label)
    batch = Batch(z, index=torch.arange(len(cells)))
    below = SimCLR(nn.Identity())(batch).alignment
    added = (objective(batch).alignment - below).detach()
    entropy = -sum(p * math.log(p) for p in table.sum((0, 1)))
    parts = ps.information.discrete(table)
    expected = 2 * parts.redundant + parts.unique_1 + parts.unique_2
    assert float(added) + 2 * entropy == pytest.approx(expected, abs=1e-9)

    objective.classifier.weight.data.add_(0.3 * torch.randn(2, 7))  # any other: less
    worse = (objective(batch).alignment - below).detach()
    assert float(worse) + 2 * entropy < expected - 1e-4


# Clusters


@pytest.mark.parametrize("unit", [False, True])
def test_clusters_far_apart_are_found(unit):
    z, label = lumps()
    objective = on_z(unit=unit)
    objective.assign(z.numpy())
    assert ps.evaluation.matched_accuracy(objective.assignment, label) == 1
    probability = objective.responsibilities(z).probs
    assert (probability.argmax(1) == objective.assignment).all()


def test_a_refresh_keeps_the_numbers_of_clusters_and_the_classifier():
    z, _ = lumps(60)
    objective = on_z(items=60)
    objective.assign(z)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    for seed in range(1, 6):
        objective.assign(z, seed)
        assert_close(objective.state_dict(), before, rtol=0, atol=0)


def test_how_clusters_are_numbered_does_not_matter():
    before, found = torch.randint(5, (200,)), torch.randint(5, (200,))
    once = room._matched(found, before, 5)
    for _ in range(10):
        order = torch.randperm(5)
        assert torch.equal(room._matched(order[found], before, 5), once)


def test_the_matching_keeps_as_many_items_as_any_renumbering():
    before, found = torch.randint(4, (50,)), torch.randint(4, (50,))
    kept = (room._matched(found, before, 4) == before).sum()
    every = [torch.tensor(order)[found] for order in itertools.permutations(range(4))]
    assert kept == max((renamed == before).sum() for renamed in every)


def test_clusters_that_are_points_make_finite_weights():
    objective = on_z()
    objective.assign(torch.eye(DIM)[torch.arange(ITEMS) % CLUSTERS])
    found = objective.classifier.weight
    assert found.isfinite().all() and found.abs().max() > 10


# What is refused


def indexed(index: Tensor | None) -> Batch:
    return Batch(torch.randn(9, 2, DIM), index=index)


test_batches_and_representations_that_do_not_fit_are_refused = refusals(
    (lambda: on_z()(indexed(None)), ValueError, "expected Batch.index"),
    (lambda: on_z().check(indexed(None)), ValueError, "Batch.index"),
    (
        lambda: on_z().check(indexed(torch.arange(15, 24))),
        ValueError,
        "rows from 0 to 19.*got 15 to 23",
    ),
    (lambda: on_z(dim=5)(indexed(torch.arange(9))), ValueError, "dim 5, as the class"),
    (lambda: on_z().assign(torch.randn(19, DIM)), ValueError, r"4\), got \(19, 4\)"),
    (lambda: on_z().assign(torch.full((20, DIM), math.nan)), ValueError, "finite z"),
    (
        lambda: on_z().assign(torch.eye(2, DIM)[torch.arange(20) % 2]),
        ValueError,
        "expected 3 clusters, got 2 distinct ones among 20 items",
    ),
)


def test_items_are_counted_before_any_work_is_lost():
    objective, x = PID(SimCLR(encoder()), CLUSTERS, 30), torch.randn(24, 2, 6)
    with pytest.raises(ValueError, match="the 30 items.*got 24"):
        ps.fit(objective, ps.data.Groups(x), epochs=1, progress=False)
