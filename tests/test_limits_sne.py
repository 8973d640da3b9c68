"""Contrastive objectives as stochastic neighbour embedding, P and Q as matrices."""

import math

import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_same
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.testing import assert_close

import probssl as ps
from probssl.affinities import Affinity, Noise, Overlap, Perplexity
from probssl.entropies.collision import Collision
from probssl.limits._base import Embedding
from probssl.limits.simclr import SimCLR
from probssl.limits.tsimclr import TSimCLR
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def t_simclr(z: Tensor, dof: float, temperature: float) -> Tensor:
    """The released loss: positives, and one normaliser over all ordered pairs."""
    u, views = z.flatten(0, 1), z.shape[1]
    log_w = -(dof + 1) / 2 * torch.log1p(distances(u) / (temperature * dof))
    itself, mates = torch.eye(len(u)).bool(), together(len(u), views)
    return log_w[~itself].logsumexp(0) - log_w[mates].mean()


def distances(u: Tensor) -> Tensor:
    return (u[:, None] - u).square().sum(-1)


def together(points: int, views: int) -> Tensor:
    """Which ordered pairs are of different views of one item."""
    item = torch.arange(points) // views
    return (item[:, None] == item) & ~torch.eye(points).bool()


@pytest.mark.parametrize("dim", [2, 5, 6, 64])  # a density below 6
@pytest.mark.parametrize("views", [2, 3])
def test_t_simclr_is_the_log_of_all_pairs_minus_its_loss(views, dim):
    z = (2 * torch.randn(5, views, dim)).requires_grad_()
    ours = sum(TSimCLR(nn.Identity())(Batch(z)))
    pairs = 5 * views * (5 * views - 1)
    assert_same(ours, math.log(pairs) - t_simclr(z, 5.0, 8.0), z)


@pytest.mark.parametrize("views", [2, 3])
def test_t_simclr_is_the_divergence_of_t_sne_up_to_a_constant(views):
    z = (2 * torch.randn(5, views, 3)).requires_grad_()
    points = 5 * views
    weight = (1 + distances(z.flatten(0, 1)) / 40) ** -3
    q = weight / (weight - torch.eye(points)).sum()
    mates = together(points, views)
    p = mates / mates.sum()
    divergence = kl(p[mates], q[mates])
    ours = sum(TSimCLR(nn.Identity())(Batch(z)))
    assert_same(ours, math.log((points - 1) / (views - 1)) - divergence, z)


@pytest.mark.parametrize("views", [2, 3])
def test_simclr_is_the_divergence_of_sne_up_to_a_constant(views):
    z = torch.randn(5, views, 3, requires_grad=True)
    u, points = normalize(z, dim=-1).flatten(0, 1), 5 * views
    weight = (u @ u.T / 0.4).exp() * ~torch.eye(points).bool()
    q = weight / weight.sum(1, keepdim=True)
    mates = together(points, views)
    p = mates / mates.sum(1, keepdim=True)
    divergence = kl(p[mates], q[mates]) / points
    ours = sum(SimCLR(nn.Identity(), temperature=0.4)(Batch(z)))
    assert_same(ours, math.log((points - 1) / (views - 1)) - divergence, z)
    # With all pairs as one distribution: the loss plus log 1/(2 n).
    joint = mates / mates.sum()
    loss = math.log(points - 1) - ours
    assert_close(kl(joint[mates], q[mates]), loss - math.log(points * (views - 1)))


def test_t_simclr_tends_to_the_gaussian_kernel_at_first_order_in_one_over_dof():
    z = 2 * torch.randn(6, 2, 3)
    prior = ps.priors.Gaussian(None, math.sqrt(8.0), y_scale=math.inf)
    limit = sum(Embedding(nn.Identity(), prior, Collision(), plug_in=True)(Batch(z)))
    gaps = [sum(TSimCLR(nn.Identity(), dof=n)(Batch(z))) - limit for n in (1e4, 1e5)]
    assert abs(gaps[1]) > 1e-7
    assert_close(gaps[0] / gaps[1], torch.tensor(10.0), rtol=1e-2, atol=0)


def test_t_simclr_moves_with_neither_rotation_nor_translation_nor_a_common_stretch():
    z, objective = torch.randn(7, 2, 4), TSimCLR(nn.Identity())
    value = sum(objective(Batch(z)))
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert_close(sum(objective(Batch(z @ rotation + 3.0))), value)
    wide = TSimCLR(nn.Identity(), temperature=9 * 8.0)
    assert_close(sum(wide(Batch(3 * z))), value)
    assert (sum(objective(Batch(3 * z))) - value).abs() > 0.1


# The family: P dense or sparse, Q of any kernel, one normaliser or one for each view


def gaussian_q(z: Tensor, scale: float, joint: bool) -> Tensor:
    weight = (-distances(z) / (2 * scale**2)).exp() * ~torch.eye(len(z)).bool()
    return weight / weight.sum(None if joint else 1, keepdim=True)


def cauchy_q(z: Tensor) -> Tensor:
    weight = 1 / (1 + distances(z)) * ~torch.eye(len(z)).bool()
    return weight / weight.sum()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    pairs = ~torch.eye(len(p)).bool()
    return kl(p[pairs], q[pairs])


@pytest.fixture
def x() -> Batch:
    return Batch(torch.randn(6, 2, 3))


def flat_z(objective: nn.Module, batch: Batch) -> Tensor:
    return objective.encoder(batch.views.flatten(0, 1))


def linear() -> nn.Linear:
    return nn.Linear(3, 2)


def test_sne_is_the_mean_divergence_of_the_neighbours_of_each_point(x):
    objective = ps.limits.SNE(linear(), Noise(1.5))
    p = 12 * Noise(1.5)(x)  # P_{j|i}
    plain = divergence(p, gaussian_q(flat_z(objective, x), math.sqrt(0.5), False)) / 12
    entropy = -torch.xlogy(p, p).sum() / 12
    leaf = objective.encoder.weight
    assert_same(sum(objective(x)), math.log(11) - entropy - plain, leaf)
    assert_same(objective.divergence(x), plain, leaf)


@pytest.mark.parametrize("affinity", [Noise(1.5, symmetric=True), Perplexity(3.0)])
def test_symmetric_sne_and_t_sne_are_divergences_over_all_pairs(affinity, x):
    p = affinity(x)
    symmetric = ps.limits.SymmetricSNE(linear(), affinity, scale=0.8)
    q = gaussian_q(flat_z(symmetric, x), 0.8, joint=True)
    assert_close(symmetric.divergence(x), divergence(p, q))
    heavy = ps.limits.TSNE(linear(), affinity)
    q = cauchy_q(flat_z(heavy, x))
    assert_close(heavy.divergence(x), divergence(p, q))
    entropy = -torch.xlogy(p, p).sum()
    plain = math.log(12 * 11) - entropy - divergence(p, q)
    assert_same(sum(heavy(x)), plain, heavy.encoder.weight)


def test_t_sne_has_the_published_gradient():
    z = torch.randn(9, 1, 2, requires_grad=True)
    affinity = Fixed(torch.rand(9, 9))
    (grad,) = torch.autograd.grad(
        -sum(ps.limits.TSNE(nn.Identity(), affinity)(Batch(z))), z
    )
    y, p = z.detach().flatten(0, 1), affinity.p
    q, plain = cauchy_q(y), torch.zeros(9, 2)
    for i in range(9):
        for j in range(9):
            pull = (p[i, j] + p[j, i]) / 2 - q[i, j]
            plain[i] += 4 * pull * (y[i] - y[j]) / (1 + (y[i] - y[j]).square().sum())
    assert_close(grad.flatten(0, 1), plain)


class Fixed(Affinity):
    dense = True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.p = weight.fill_diagonal_(0.0) / weight.sum()

    def forward(self, batch: Batch) -> Tensor:
        return self.p


@pytest.mark.parametrize("views", [2, 3])
def test_contrastive_objectives_are_neighbour_embeddings_of_positives(views):
    x = Batch(torch.randn(5, views, 3))
    pairs = {
        TSimCLR(nn.Identity()): (ps.priors.TSNE(None, math.sqrt(8.0), 5.0), True),
        SimCLR(nn.Identity(), temperature=0.5): (ps.priors.Spherical(None, 2.0), False),
    }
    for known, (prior, joint) in pairs.items():
        own = ps.limits.NeighbourEmbedding(nn.Identity(), None, prior, joint=joint)
        for a, b in zip(own(x), known(x), strict=True):
            assert_close(torch.as_tensor(a), torch.as_tensor(b))


KERNELS = {
    "shrinks": lambda y: dist.Normal(0.5 * y, 0.7).to_event(1),
    "shifts": lambda y: dist.Normal(y + 0.5, 0.7).to_event(1),
    "widens": lambda y: dist.Normal(y, 0.3 + 0.6 * y.sigmoid()).to_event(1),
}


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_not_symmetric_has_partners_as_contents(name, joint):
    """KL(P ‖ Q) by plain formulas, of P over pairs of views and over all pairs."""
    kernel, x = KERNELS[name], Batch(torch.randn(6, 2, 2))
    z = x.views.flatten(0, 1)
    log_q = kernel(z).log_prob(z.unsqueeze(1))  # row i: z_i around each partner
    log_q = log_q.masked_fill(torch.eye(12, dtype=torch.bool), -math.inf)
    log_q = log_q - (log_q.logsumexp((0, 1)) if joint else log_q.logsumexp(1, True))
    prior = ps.priors.Custom(kernel, dim=2)
    for affinity in (ps.affinities.Positives(), ps.affinities.Noise(0.7)):
        objective = ps.limits.NeighbourEmbedding(
            nn.Identity(), affinity, prior, joint=joint
        )
        p = affinity(x) if affinity.dense else torch.block_diag(*affinity(x))
        p = p if joint else p / p.sum(1, keepdim=True)
        exact = torch.xlogy(p, p).sum() - (p * log_q.where(p > 0, 0.0)).sum()
        assert_close(objective.divergence(x), exact if joint else exact / 12)


def test_views_that_overlap_more_are_drawn_closer(x):
    """A Gaussian kernel pulls by the distance, as often as a pair is drawn."""
    boxes = torch.tensor([[-1.0, -1, 1, 1], [-1, -1, 1, 0.9], [-1, -1, 0, 0.1]])
    boxes = boxes.expand(4, 3, 4)
    z = torch.randn(4, 1, 2) * 5 + torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    z.requires_grad_()
    prior = ps.priors.Gaussian(None, 1.0, y_scale=math.inf)
    objective = ps.limits.NeighbourEmbedding(nn.Identity(), Overlap(), prior)
    x = Batch(z, transform=boxes)
    (grad,) = torch.autograd.grad(objective(x).alignment, z)
    p = Overlap()(x)
    assert (p[:, 0, 1] > 2 * p[:, 0, 2]).all()
    assert_close(grad[:, 1, 0], -2 * (p[:, 0, 1] + 2 * p[:, 1, 2]))
    assert_close(grad[:, 2, 0], 2 * (p[:, 0, 2] + 2 * p[:, 1, 2]))


def test_rows_of_their_own_give_every_view_the_same_weight():
    boxes = torch.rand(4, 3, 4) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    x = Batch(torch.randn(4, 3, 2), transform=boxes)
    objective = ps.limits.NeighbourEmbedding(nn.Identity(), Overlap(), joint=False)
    assert_close(objective.weights(x).sum(-1), torch.full((4, 3), 1 / 12.0))
    assert objective.divergence(x) > 0


def test_a_queue_widens_what_each_view_is_compared_with(x):
    objective = ps.limits.NeighbourEmbedding(
        nn.Identity(), joint=False, queue=20, dim=3
    )
    objective(x)  # 12 of 20 places
    z, queued = torch.randn(6, 2, 3, requires_grad=True), x.views.flatten(0, 1)
    u = z.flatten(0, 1)
    log_w = (-distances(u).log1p()).masked_fill(torch.eye(12).bool(), -math.inf)
    more = -torch.log1p((u[:, None] - queued).square().sum(-1))
    sums = torch.cat((log_w, more), 1).logsumexp(1)
    plain = log_w[together(12, 2)].mean() - sums.mean()
    assert_close(objective.eval().divergence(Batch(z)), -plain)
    assert_same(sum(objective(Batch(z))), math.log(23) + plain, z)


def test_t_moco_is_the_heavy_tail_over_one_key_and_the_queue(x):
    objective = ps.limits.MoCo(
        nn.Identity(), queue=20, dim=3, prior=ps.priors.TSNE(None, math.sqrt(0.2), 5.0)
    )
    objective(x)
    z = torch.randn(6, 2, 3, requires_grad=True)
    queued, plain = x.views.flatten(0, 1), torch.zeros(())
    for i in range(6):
        for v in range(2):
            keys = torch.cat((z[i, 1 - v][None].detach(), queued))
            square = (z[i, v] - keys).square().sum(1)
            log_w = -3 * torch.log1p(square / (0.2 * 5.0))
            plain = plain + log_w[0] - log_w.logsumexp(0)
    assert_same(sum(objective.eval()(Batch(z))), math.log(13) + plain / 12, z)


def test_one_view_of_each_item_is_enough_for_a_dense_p_only():
    x = Batch(torch.randn(8, 1, 3))
    assert ps.limits.TSNE(nn.Identity(), Perplexity(3.0)).divergence(x) > 0
    with pytest.raises(ValueError, match="at least 2 views each, got 8 with 1"):
        ps.limits.NeighbourEmbedding(nn.Identity())(x)
    with pytest.raises(ValueError, match="more other points in a batch"):
        ps.limits.TSNE(nn.Identity())(x)
    with pytest.raises(ValueError, match=r"got 1 items with 1"):
        ps.limits.TSNE(nn.Identity(), Noise(1.0))(Batch(torch.zeros(1, 1, 3)))


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e6])
def test_the_family_is_finite_for_tiny_and_huge_representations(scale):
    z = (scale * torch.randn(8, 2, 3)).requires_grad_()
    x = Batch(torch.randn(8, 2, 3))
    for make in (ps.limits.SNE, ps.limits.SymmetricSNE, ps.limits.TSNE):
        objective = make(Given(z), Noise(1.0))
        (grad,) = torch.autograd.grad(sum(objective(x)), z)
        assert grad.isfinite().all() and objective.divergence(x).isfinite()


class Given(nn.Module):
    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z.flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.z


class Softmax(Affinity):
    """A distribution of the partners of each view: rows that sum to one."""

    dense = True

    def __init__(self, factor: float, diagonal: float = -math.inf) -> None:
        super().__init__()
        self.factor, self.diagonal = factor, diagonal

    def forward(self, batch: Batch) -> Tensor:
        x = batch.stacked.flatten(0, 1)
        own = torch.eye(len(x)).bool()
        logits = (-distances(x)).masked_fill(own, self.diagonal)
        return self.factor * logits.softmax(1) / len(x)


def test_an_affinity_is_a_distribution_over_pairs(x):
    right = ps.limits.NeighbourEmbedding(linear(), Softmax(1.0))
    right.check(x)
    p, z = right.weights(x), flat_z(right, x)
    assert_close(right.divergence(x), divergence(p, cauchy_q(z)))
    points = len(p)
    for affinity in (Softmax(points), Softmax(-1.0), Softmax(1.0, 0.0)):
        objective = ps.limits.NeighbourEmbedding(linear(), affinity)
        for call in (objective.check, objective.divergence):
            with pytest.raises(ValueError, match="distribution over pairs"):
                call(x)
    rows = ps.limits.NeighbourEmbedding(linear(), Softmax(points), joint=False)
    rows.check(x)  # which it normalises itself
    objective = ps.limits.NeighbourEmbedding(linear(), Softmax(1.0))
    objective.affinity.dense = False
    with pytest.raises(ValueError, match="an affinity of shape"):
        objective.check(x)


def test_an_affinity_that_changes_the_batch_is_refused_and_the_batch_stays():
    class Cosine(ps.affinities.Affinity):
        dense = True

        def forward(self, batch):
            v = batch.stacked.flatten(0, 1)
            v /= v.norm(dim=1, keepdim=True)
            p = (3 * v @ v.T).exp() * (1 - torch.eye(len(v)))
            return p / p.sum()

    views = 2 + torch.randn(10, 2, 3)
    batch = ps.Batch(views.clone())
    objective = ps.limits.NeighbourEmbedding(torch.nn.Linear(3, 2), Cosine())
    with pytest.raises(ValueError, match="the affinity Cosine to leave the items"):
        objective.divergence(batch)
    assert torch.equal(batch.views, views)
