"""Contrastive objectives against their losses as printed, and against one another."""

import math
from functools import partial
from itertools import combinations, permutations, product

import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing import assert_close

import probssl as ps
from probssl.limits.clip import CLIP
from probssl.limits.dclw import DCLW
from probssl.limits.instance import InstanceDiscrimination
from probssl.limits.moco import MoCo
from probssl.limits.nnclr import NNCLR
from probssl.limits.siglip import SigLIP
from probssl.limits.simclr import SimCLR
from probssl.terms import Batch

KINDS = {
    "SimCLR": SimCLR,
    "CLIP": CLIP,
    "MoCo": partial(MoCo, dim=4, queue=24),
    "NNCLR": partial(NNCLR, dim=4, queue=24),
    "SigLIP": SigLIP,
    "instance": partial(InstanceDiscrimination, items=9, dim=4),
    "SwAV": partial(ps.limits.SwAV, dim=4, components=5),
    "DINO": partial(ps.limits.DINO, dim=4, components=5),
}
pytestmark = pytest.mark.usefixtures("float64")


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The loss as printed: mean over 2N anchors of -log softmax of the positive."""
    a, b = normalize(a, dim=-1), normalize(b, dim=-1)
    total, n = 0.0, len(a)
    z = torch.cat([a, b])
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        logits = torch.stack([z[i] @ z[k] / temperature for k in others])
        total += cross_entropy(logits, torch.tensor(others.index(j))) / (2 * n)
    return total


@pytest.mark.parametrize("temperature", [0.1, 0.5, 5.0])
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_simclr_is_log_2n_minus_1_minus_nt_xent(dim, temperature):
    z = torch.randn(6, 2, dim, requires_grad=True)
    ours = sum(SimCLR(nn.Identity(), temperature=temperature)(Batch(z)))
    plain = math.log(11) - nt_xent(z[:, 0], z[:, 1], temperature)
    assert_same(ours, plain, z)


def test_simclr_alignment_is_the_density_of_a_view_around_the_other():
    z = normalize(torch.randn(6, 2, 5), dim=-1)
    terms = SimCLR(nn.Identity(), temperature=0.2)(Batch(z))
    uniform = -ps.special.log_area(5)
    kernel = ps.distributions.VonMisesFisher(z[:, 0], torch.tensor(5.0))
    assert_close(terms.alignment, kernel.log_prob(z[:, 1]).mean())
    hot = SimCLR(nn.Identity(), temperature=1e9)(Batch(z))
    assert_close(hot.alignment, torch.tensor(uniform), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_temperature_is_as_given_and_a_learned_one_follows_its_parameter(name):
    fixed = KINDS[name](nn.Identity(), temperature=0.2)
    assert_close(fixed.temperature, torch.tensor(0.2))
    objective = KINDS[name](nn.Identity(), temperature=ps.learned(0.3))
    assert_close(objective.temperature, torch.tensor(0.3))
    for _ in range(2):  # MoCo's first step has no negatives, and so no gradient
        sum(objective(Batch(torch.randn(6, 2, 4), index=torch.arange(6)))).backward()
    log = objective.prior.concentration.log
    assert log.grad.isfinite() and log.grad != 0
    log.data.fill_(math.log(0.5))
    floor = objective.prior.concentration.floor
    assert_close(objective.temperature - floor, torch.tensor(0.5))
    with pytest.raises(AttributeError):
        objective.temperature = 1.0


def test_temperature_is_the_median_of_a_random_one_and_absent_for_other_kernels():
    random = SimCLR(nn.Identity(), temperature=dist.LogNormal(-1.0, 0.5))
    random.prior.concentration.loc.data.fill_(-2.0)
    assert_close(random.temperature, torch.tensor(-2.0).exp())
    assert_close(ps.limits.TSimCLR(nn.Identity()).temperature, torch.tensor(8.0))
    assert not hasattr(ps.limits.LogDet(nn.Identity()), "temperature")


def test_learned_temperature_of_clip_starts_as_published_and_stays_above_a_hundredth():
    objective = CLIP(nn.Identity())
    assert_close(objective.temperature, torch.tensor(0.07))
    objective.prior.concentration.log.data.fill_(-50.0)
    assert_close(objective.temperature, torch.tensor(0.01))
    assert CLIP(nn.Identity(), temperature=0.005)(Batch(torch.randn(6, 2, 5)))


@pytest.mark.parametrize("dim", [2, 5])
def test_decoupled_simclr_is_log_2n_minus_2_minus_the_loss_without_the_positive(dim):
    z = torch.randn(6, 2, dim, requires_grad=True)
    ours = sum(SimCLR(nn.Identity(), temperature=0.3, decoupled=True)(Batch(z)))
    u, loss = normalize(z, dim=-1), 0.0
    for i in range(6):
        for v in (0, 1):
            others = torch.cat([u[k] for k in range(6) if k != i]) @ u[i, v] / 0.3
            loss -= (u[i, v] @ u[i, 1 - v] / 0.3 - others.logsumexp(0)) / 12
    assert_same(ours, math.log(10) - loss, z)


@pytest.mark.parametrize("dim, sigma", [(2, 0.5), (5, 0.1), (5, 3.0)])
def test_dclw_is_log_2n_minus_2_minus_its_loss(dim, sigma):
    z = torch.randn(6, 2, dim, requires_grad=True)
    ours = sum(DCLW(nn.Identity(), temperature=0.3, sigma=sigma)(Batch(z)))
    u, loss = normalize(z, dim=-1), 0.0
    cosines = torch.stack([u[i, 0] @ u[i, 1] for i in range(6)])
    for i in range(6):
        weight = 2 - (cosines[i] / sigma).exp() / (cosines / sigma).exp().mean()
        for v in (0, 1):
            others = torch.cat([u[k] for k in range(6) if k != i]) @ u[i, v] / 0.3
            loss -= (weight * cosines[i] / 0.3 - others.exp().sum().log()) / 12
    assert_same(ours, math.log(10) - loss, z)


def test_dclw_tends_to_decoupled_simclr_at_first_order_in_one_over_sigma():
    """The first order is the variance of the cosines, the rest is of second order."""
    z, rests = torch.randn(6, 2, 4), []
    plain = sum(SimCLR(nn.Identity(), temperature=0.3, decoupled=True)(Batch(z)))
    u = normalize(z, dim=-1)
    variance = (u[:, 0] * u[:, 1]).sum(-1).var(correction=0)
    for sigma in (1e2, 1e3):
        ours = sum(DCLW(nn.Identity(), temperature=0.3, sigma=sigma)(Batch(z)))
        assert ours < plain
        rests.append(ours - plain + variance / (0.3 * sigma))
    assert_close(rests[0] / rests[1], torch.tensor(100.0), rtol=0.05, atol=0)


def test_the_gradient_of_simclr_is_the_decoupled_one_times_a_coupling_of_each_view():
    z = torch.randn(6, 2, 4, requires_grad=True)
    u, coupled, gap = normalize(z, dim=-1), 0.0, math.log(11 / 10)
    for i, v in product(range(6), (0, 1)):
        positive = (u[i, v] @ u[i, 1 - v] / 0.3).exp()
        others = torch.cat([u[k] for k in range(6) if k != i]) @ u[i, v] / 0.3
        coupling = others.exp().sum() / (positive + others.exp().sum())
        decoupled = positive.log() - others.logsumexp(0)
        coupled = coupled + coupling.detach() * decoupled / 12
        gap = gap + coupling.log() / 12
    both = [SimCLR(nn.Identity(), temperature=0.3, decoupled=d) for d in (False, True)]
    ours, apart = (sum(objective(Batch(z))) for objective in both)
    grads = [torch.autograd.grad(x, z, retain_graph=True)[0] for x in (ours, coupled)]
    assert_close(*grads, rtol=1e-10, atol=1e-12)
    assert_close(ours - apart, gap)


@pytest.mark.parametrize("decoupled", [False, True])
def test_queued_representations_are_further_negatives_once_they_are_there(decoupled):
    objective = SimCLR(
        nn.Identity(), temperature=0.3, decoupled=decoupled, queue=7, dim=4
    )
    past = torch.zeros(0, 4)
    own = 4 - 2 * decoupled
    for step in range(5):
        z = torch.randn(2, 2, 4, requires_grad=True)
        u = normalize(z, dim=-1).flatten(0, 1)
        total = math.log(own - 1 + decoupled + len(past))
        for j in range(4):
            near = [k for k in range(4) if k != j and (k != (j ^ 1) or not decoupled)]
            negatives = torch.cat([u[near], past]) @ u[j] / 0.3
            total += (u[j] @ u[j ^ 1] / 0.3 - negatives.logsumexp(0)) / 4
        assert_same(sum(objective(Batch(z))), total, z)
        past = torch.cat([past, u.detach()])[-7:]
        assert len(past) == min(4 * (step + 1), 7)


def test_simclr_of_more_views_is_the_mean_over_ordered_pairs_of_them():
    z = torch.randn(4, 3, 5, requires_grad=True)
    ours = sum(SimCLR(nn.Identity(), temperature=0.4)(Batch(z)))
    u, total = normalize(z, dim=-1).flatten(0, 1), math.log(11)
    for j in range(12):
        others = [u[j] @ u[k] / 0.4 for k in range(12) if k != j]
        mates = [u[j] @ u[k] / 0.4 for k in range(12) if k != j and k // 3 == j // 3]
        total += (torch.stack(mates).mean() - torch.stack(others).logsumexp(0)) / 12
    assert_same(ours, total, z)


def test_clip_is_log_n_minus_the_mean_of_both_cross_entropies():
    images, words = torch.randn(6, 5), torch.randn(6, 3)
    encoder = ps.nn.PerModality([nn.Linear(5, 4), nn.Linear(3, 4)])
    ours = sum(CLIP(encoder)(Batch((images[:, None], words[:, None]))))
    u, w = normalize(encoder.parts[0](images)), normalize(encoder.parts[1](words))
    logits, right = u @ w.T / 0.07, torch.arange(6)
    loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
    assert_same(ours, math.log(6) - loss, encoder.parts[0].weight)


def test_info_nce_is_the_probability_of_the_item_with_the_batch_as_contents():
    z, kappa = torch.randn(6, 2, 4, requires_grad=True), torch.tensor(1 / 0.3)
    ours = sum(CLIP(nn.Identity(), temperature=0.3)(Batch(z)))
    total = math.log(6)
    for v in (0, 1):
        u = normalize(z, dim=-1)
        density = ps.distributions.VonMisesFisher(u[:, 1 - v], kappa)
        for i in range(6):
            p = density.log_prob(u[i, v]).exp()  # p(z|y) for every y of the batch
            total += (p[i] / p.sum()).log() / 12
    assert_same(ours, total, z)


@pytest.mark.parametrize("views", [1, 3])
def test_instance_discrimination_is_log_n_plus_the_log_softmax_over_the_bank(views):
    objective = InstanceDiscrimination(nn.Identity(), 9, temperature=0.2, dim=4)
    index, bank = torch.tensor([7, 0, 3]), objective.bank.clone()
    z = torch.randn(3, views, 4, requires_grad=True)
    logits = normalize(z, dim=-1) @ bank.T / 0.2
    total = math.log(9)
    for row, i in enumerate(index):
        total -= cross_entropy(logits[row], i.expand(views)) / 3
    assert_same(sum(objective(Batch(z, index=index))), total, z)


def test_bank_starts_as_directions_and_follows_the_items_that_were_seen():
    objective = InstanceDiscrimination(nn.Identity(), 9, momentum=0.7, dim=4)
    bank, index = objective.bank.clone(), torch.tensor([7, 0, 3])
    assert_close(bank.norm(dim=-1), torch.ones(9))
    z = torch.randn(3, 2, 4)
    objective(Batch(z, index=index))
    for row, i in enumerate(index):
        mean = normalize(z[row], dim=-1).mean(0)
        bank[i] = normalize(0.7 * bank[i] + 0.3 * mean, dim=0)
    assert_close(objective.bank, bank)


@pytest.mark.parametrize("views", [2, 3])
def test_moco_is_the_log_of_one_and_the_queue_minus_its_loss(views):
    objective = MoCo(nn.Linear(3, 4), temperature=0.3, momentum=0.9, queue=8, dim=4)
    slow, past = nn.Linear(3, 4), torch.zeros(0, 4)
    slow.load_state_dict(objective.encoder.state_dict())
    for _ in range(3):
        with torch.no_grad():
            slow.weight.copy_(0.9 * slow.weight + 0.1 * objective.encoder.weight)
            slow.bias.copy_(0.9 * slow.bias + 0.1 * objective.encoder.bias)
        x = torch.randn(2, views, 3, requires_grad=True)
        query = normalize(objective.encoder(x), dim=-1)
        key = normalize(slow(x), dim=-1).detach()
        losses = []
        for v in range(views):
            for w in set(range(views)) - {v}:
                positive = (query[:, w] * key[:, v]).sum(-1, keepdim=True)
                logits = torch.cat([positive, query[:, w] @ past.T], 1) / 0.3
                losses.append(cross_entropy(logits, torch.zeros(2).long()))
        plain = math.log(1 + len(past)) - torch.stack(losses).mean()
        assert_same(sum(objective(Batch(x))), plain, x)
        past = torch.cat([past, key.flatten(0, 1)])[-8:]
        with torch.no_grad():
            objective.encoder.weight.add_(0.1 * torch.randn(4, 3))
    assert len(past) == 8


@pytest.mark.parametrize("views", [2, 3])
def test_nnclr_is_log_n_minus_its_loss(views):
    """The loss as printed, item by item; softmax over the predictions of a batch."""
    encoder, predictor, past = nn.Linear(3, 4), nn.Linear(4, 4), torch.zeros(0, 4)
    objective = NNCLR(encoder, None, predictor, temperature=0.2, queue=20, dim=4)
    for _ in range(3):
        x = torch.randn(4, views, 3, requires_grad=True)
        z = encoder(x)
        u, p = normalize(z, dim=-1).detach(), normalize(predictor(z), dim=-1)
        losses = []
        for i, (v, w) in product(range(4), permutations(range(views), 2)):
            y = past[(past @ u[i, v]).argmax()] if len(past) else u[i, v]
            logits = torch.stack([y @ p[k, w] / 0.2 for k in range(4)])
            losses.append(cross_entropy(logits, torch.tensor(i)))
        plain = math.log(4) - torch.stack(losses).mean()
        leaves = (x, encoder.weight, predictor.weight)
        assert_same(sum(objective(Batch(x))), plain, leaves)
        past = torch.cat([past, u.flatten(0, 1)])[-20:]
    assert len(past) == 20


def siglip(u: Tensor, v: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss as printed, pair by pair."""
    total = torch.zeros(())
    for i in range(len(u)):
        for j in range(len(v)):
            label = 1.0 if i == j else -1.0
            total = total - (label * (scale * u[i] @ v[j] + bias)).sigmoid().log()
    return total / len(u)


def label_entropy(n: int) -> float:
    """n times the entropy of a label that is positive once in n."""
    return math.log(n) + (n - 1) * math.log(n / (n - 1))


@pytest.mark.parametrize("views", [2, 3])
def test_siglip_is_the_entropy_of_labels_minus_its_loss(views):
    objective = SigLIP(nn.Identity(), temperature=ps.learned(0.3), bias=-2.0)
    z = torch.randn(6, views, 5, requires_grad=True)
    u, bias = normalize(z, dim=-1), objective.bias
    pairs = list(combinations(range(views), 2))
    scale = 1 / objective.temperature
    losses = [siglip(u[:, v], u[:, w], scale, bias) for v, w in pairs]
    plain = label_entropy(6) - sum(losses) / len(losses)
    leaves = (z, bias, objective.prior.concentration.log)
    assert_same(sum(objective(Batch(z))), plain, leaves)


def test_siglip_starts_as_published_and_takes_two_modalities():
    encoder = ps.nn.PerModality([nn.Linear(5, 4), nn.Linear(3, 4)])
    images, words = torch.randn(6, 5), torch.randn(6, 3)
    ours = sum(SigLIP(encoder)(Batch((images[:, None], words[:, None]))))
    u, w = normalize(encoder.parts[0](images)), normalize(encoder.parts[1](words))
    loss = siglip(u, w, torch.tensor(10.0), torch.tensor(-10.0))
    assert_same(ours, label_entropy(6) - loss, encoder.parts[0].weight)


@pytest.mark.parametrize("family", [ps.priors.Spherical, ps.priors.Gaussian])
def test_logits_of_a_prior_are_its_pointwise_mutual_information_and_log_odds(family):
    z, prior = torch.randn(6, 2, 4, requires_grad=True), family(4, 0.5)
    objective = SigLIP(nn.Identity(), prior=prior)
    a, b = prior.on_support(z).unbind(1)
    loss = torch.zeros(())
    for i, j in product(range(6), repeat=2):
        both = torch.stack([a[i], b[j]])
        ratio = prior.log_prob(both) - sum(prior.log_prob(x[None]) for x in both)
        odds = (ratio.exp() / 5) ** (1 if i == j else -1)
        loss = loss - (odds / (1 + odds)).log() / 6
    assert_same(sum(objective(Batch(z))), label_entropy(6) - loss, z)
    with pytest.raises(ValueError, match="proper prior"):
        SigLIP(nn.Identity(), prior=ps.priors.Gaussian(4, y_scale=math.inf))
    with pytest.raises(ValueError, match="bias"):
        SigLIP(nn.Identity(), prior=prior, bias=1.0)


def densities() -> tuple[Tensor, Tensor, Tensor]:
    """p(a, b), p(a) p(b) and their log-ratio by `pmi`, as masses of a grid."""
    prior = ps.priors.Gaussian(1, 0.7)
    x = torch.linspace(-9.0, 9.0, 241).unsqueeze(1)
    step, single = (x[1] - x[0]).item(), prior.log_prob(x.unsqueeze(1)).exp()
    pmi = prior.pmi(x, x)
    product_ = torch.outer(single, single) * step**2
    assert_close((product_ * pmi.exp()).sum(), torch.tensor(1.0))
    return product_ * pmi.exp(), product_, pmi


def expected(logits: Tensor, n: int) -> Tensor:
    """SigLIP's value over the whole population, for any function as logits."""
    together, apart, _ = densities()
    positive = (together * logits.sigmoid().log()).sum()
    negative = (n - 1) * (apart * (-logits).sigmoid().log()).sum()
    return label_entropy(n) + positive + negative


def test_siglip_is_largest_at_the_pointwise_mutual_information_and_log_odds():
    together, _, pmi = densities()
    best = (pmi - math.log(7)).requires_grad_()
    found = expected(best, 8)
    assert_close(torch.autograd.grad(found, best)[0], torch.zeros_like(pmi))
    for change in (torch.ones_like(pmi), torch.randn_like(pmi), pmi):
        assert expected(best + 0.3 * change, 8) < found
    assert found < (together * pmi).sum()  # the mutual information


def test_siglip_tends_to_a_bound_on_mutual_information_at_first_order():
    """E s + 1 − E e^s over independent pairs, for s = l + log(N − 1) of one's own."""
    together, apart, pmi = densities()
    score = 0.8 * pmi + 0.1
    limit = (together * score).sum() + 1 - (apart * score.exp()).sum()
    gaps = [expected(score - math.log(n - 1), n) - limit for n in (10**4, 10**5)]
    assert_close(gaps[0] / gaps[1], torch.tensor(10.0), rtol=0.02, atol=0)
    assert limit < (together * pmi).sum()
