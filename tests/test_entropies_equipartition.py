"""The entropy of K equal clusters, and the codes that share the items among them."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.testing import assert_close

import probssl as ps
from probssl.entropies.equipartition import Clusters, Equipartition, sinkhorn

pytestmark = pytest.mark.usefixtures("float64")
UNIT = 0.5 * math.log(2 * math.pi * math.e)


def published(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn's algorithm on one matrix, prototypes by items, as it is printed."""
    q = torch.exp(scores / epsilon).T
    q = q / q.sum()
    components, items = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / components
        q = q / q.sum(0, keepdim=True) / items
    return (q * items).T


def flat(scale: float) -> ps.priors.Gaussian:
    return ps.priors.Gaussian(None, scale, y_scale=math.inf)


def placed(entropy: Clusters, centres: Tensor) -> Clusters:
    with torch.no_grad():
        entropy.centres.copy_(centres)
    return entropy


def plain(z: Tensor, centres: Tensor, scale: float) -> Tensor:
    """log p(z|k) of a Gaussian, dimension by dimension: (item, component)."""
    normal = torch.distributions.Normal(centres, scale)
    return normal.log_prob(z.unsqueeze(1)).sum(-1)


# Codes


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_codes_are_the_published_ones(epsilon, iterations):
    scores = torch.rand(12, 5)
    codes = sinkhorn(scores, epsilon, iterations)
    expected = published(scores, epsilon, iterations)
    assert_close(codes, expected, rtol=1e-10, atol=1e-12)


def test_codes_share_the_items_equally_once_converged():
    codes = sinkhorn(3 * torch.randn(2, 12, 5), 1.0, 2000)
    assert_close(codes.sum(-1), torch.ones(2, 12))
    assert_close(codes.sum(-2), torch.full((2, 5), 12 / 5))


def test_rows_are_distributions_after_any_number_of_iterations():
    for iterations in (0, 1, 2):
        codes = sinkhorn(50 * torch.randn(12, 5), 0.3, iterations)
        assert codes.ge(0).all()
        assert_close(codes.sum(-1), torch.ones(12))
    log_density = torch.randn(12, 5)  # without iterations they are the posterior
    assert_close(sinkhorn(log_density, 1.0, 0), log_density.softmax(-1))


def test_codes_do_not_see_constants_of_an_item_and_follow_order():
    log_density, order = torch.randn(12, 5), torch.randperm(12)
    codes = sinkhorn(log_density, 0.5, 400)
    shifted = sinkhorn(log_density + 100 * torch.randn(12, 1), 0.5, 400)
    assert_close(shifted, codes)
    assert_close(sinkhorn(log_density[order], 0.5, 400), codes[order])


def test_codes_have_no_gradient_and_stand_huge_densities():
    log_density = (1e8 * torch.randn(12, 5)).requires_grad_()
    codes = sinkhorn(log_density, 0.05, 3)
    assert not codes.requires_grad and codes.isfinite().all()
    assert_close(codes.sum(-1), torch.ones(12))


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_no_other_equal_shares_have_a_larger_transport_and_entropy(epsilon):
    log_density = torch.randn(8, 4)
    codes = sinkhorn(log_density, epsilon, 3000)

    def value(q: Tensor) -> Tensor:
        return (q * log_density + epsilon * torch.special.entr(q)).sum()

    for _ in range(50):
        (i, j), (k, m) = torch.randperm(8)[:2], torch.randperm(4)[:2]
        for size in (1e-3, -1e-3):  # the sums of rows and columns stay
            moved = codes.clone()
            moved[i, k] += size
            moved[j, m] += size
            moved[i, m] -= size
            moved[j, k] -= size
            if moved.ge(0).all():
                assert value(moved) < value(codes)


# The entropy


def test_entropy_of_gaussian_clusters_far_apart_is_log_k_plus_that_of_one():
    centres, scale, each = 50 * torch.eye(4)[:, :3], 0.3, 2000
    z = centres.repeat(each, 1).unsqueeze(1) + scale * torch.randn(4 * each, 2, 3)
    entropy = placed(Equipartition(4, 3), centres)
    exact = math.log(4) + 3 * (UNIT + math.log(scale))
    # Of one item, −log p has the variance d/2 of half a chi-squared with d degrees.
    bar = 5 * math.sqrt(1.5 / (2 * 4 * each))
    assert abs(entropy(z, flat(scale)) - exact) < bar


def test_entropy_of_directions_far_apart_is_log_k_plus_that_of_one():
    concentration, each = torch.tensor(400.0), 2000
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    kernel = ps.distributions.VonMisesFisher(axes, concentration.expand(6))
    z = kernel.sample((each,)).reshape(-1, 1, 3)
    prior = ps.priors.Spherical(3, 400.0)
    entropy = placed(Equipartition(6, 3), 7 * axes)  # brought to the sphere
    inner = kernel.log_prob(kernel.sample((20_000,)))[:, 0]
    bar = 5 * inner.std() * math.sqrt(1 / 20_000 + 1 / len(z))
    exact = math.log(6) - inner.mean()
    assert abs(entropy(z, prior) - exact) < bar


def test_entropy_is_the_cross_entropy_plus_the_divergence_of_codes_from_the_posterior():
    z, centres = torch.randn(30, 1, 3), torch.randn(5, 3)
    entropy = placed(Equipartition(5, 3, temperature=0.7), centres)
    log_density = plain(z[:, 0], centres, 0.8)
    cross = math.log(5) - log_density.logsumexp(-1).mean()
    codes = torch.distributions.Categorical(published(log_density, 0.7, 3))
    posterior = torch.distributions.Categorical(logits=log_density)
    gap = kl_divergence(codes, posterior).mean()
    assert gap > 0.01
    assert_close(entropy(z, flat(0.8)), cross + gap)


def test_clusters_are_the_cross_entropy_of_a_mixture():
    z, centres = torch.randn(30, 2, 3), torch.randn(5, 3)
    mixture = ps.priors.Mixture(3, 5, scale=0.8, learn_weights=False)
    with torch.no_grad():
        mixture.components.loc.copy_(centres)
    expected = -mixture.log_prob(z.unsqueeze(2)).mean()
    assert_close(placed(Clusters(5, 3), centres)(z, flat(0.8)), expected)


def test_entropy_of_unequal_clusters_is_too_high_by_how_far_they_are_from_equal():
    share = torch.tensor([0.8, 0.2])
    side = torch.where(torch.rand(4000, 1, 1) < share[0], 20.0, -20.0)
    z = side + 0.5 * torch.randn(4000, 1, 1)
    entropy = placed(Equipartition(2, 1), torch.tensor([[20.0], [-20.0]]))
    exact = UNIT + math.log(0.5) + torch.special.entr(share).sum()
    divergence = math.log(2) - torch.special.entr(share).sum()
    bar = 5 * math.sqrt(0.5 / 4000)
    assert abs(entropy(z, flat(0.5)) - exact - divergence) < bar


def test_gradient_in_z_is_that_of_the_bound_and_in_the_prototypes_reversed():
    z = torch.randn(30, 1, 3, requires_grad=True)
    entropy = Equipartition(5, 3, temperature=0.7)
    gradients = torch.autograd.grad(entropy(z, flat(0.8)), (z, entropy.centres))
    centres = entropy.centres.detach().clone().requires_grad_()
    log_density = plain(z[:, 0], centres, 0.8)
    codes = published(log_density.detach(), 0.7, 3)
    bound = -(codes * log_density).sum(-1).mean()
    expected = torch.autograd.grad(bound, (z, centres))
    assert_close(gradients[0], expected[0], rtol=1e-10, atol=1e-10)
    assert_close(gradients[1], -expected[1], rtol=1e-10, atol=1e-10)


def test_raising_the_value_brings_the_prototypes_to_the_clusters():
    centres = 4 * torch.eye(3)
    z = (centres.repeat(40, 1) + 0.3 * torch.randn(120, 3)).unsqueeze(1)
    start = centres + torch.randn(3, 3)
    entropy, prior = placed(Equipartition(3, 3), start), flat(0.3)
    optimizer = torch.optim.Adam(entropy.parameters(), lr=0.1)
    before = entropy(z, prior).detach()
    for _ in range(100):
        optimizer.zero_grad()
        (-entropy(z, prior)).backward()
        optimizer.step()
    after = entropy(z, prior)
    exact = math.log(3) + 3 * (UNIT + math.log(0.3))
    assert after < before - 1
    assert abs(after - exact) < 5 * math.sqrt(1.5 / 120)


def test_it_serves_any_embedding():
    prior = ps.priors.Gaussian(4, 0.5)
    encoder = ps.nn.MLPEncoder((5,), 4, hidden=(8,))
    objective = ps.limits.Embedding(encoder, prior, Equipartition(3, 4))
    ps.testing.check_objective(objective, ps.Batch(torch.randn(9, 2, 5)))


@pytest.mark.parametrize(
    "temperature, iterations", [(0.0, 3), (math.nan, 3), (1.0, -1)]
)
def test_sinkhorn_refuses_numbers_out_of_range(temperature, iterations):
    with pytest.raises(ValueError, match="expected .* as a"):
        sinkhorn(torch.randn(4, 3), temperature, iterations)
