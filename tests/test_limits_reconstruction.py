"""The reconstruction limits as theorems: denoising and masked autoencoder."""

import itertools
import math

import pytest
import torch
from helpers.checks import assert_same
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl.likelihoods import Bernoulli, Binomial, Categorical, Gaussian
from probssl.limits.denoising import DenoisingAutoencoder
from probssl.limits.masked import MaskedAutoencoder
from probssl.nn import ConvDecoder, ConvEncoder
from probssl.terms import Batch, Terms
from probssl.testing import check_objective

pytestmark = pytest.mark.usefixtures("float64")


def networks(event: tuple[int, ...], dim: int = 3) -> tuple[nn.Module, nn.Module]:
    """Smooth ones, for gradients by differences."""
    flat, encoder = math.prod(event), nn.Sequential(nn.Flatten())
    encoder.append(nn.Linear(flat, dim)).append(nn.Tanh())
    decoder = nn.Sequential(nn.Linear(dim, flat), nn.Unflatten(1, event))
    return encoder, decoder


# Denoising.


@pytest.mark.parametrize("views", [1, 2, 5])
def test_denoising_is_a_squared_error_for_a_gaussian_likelihood(views):
    encoder, decoder = networks((2, 3))
    objective = DenoisingAutoencoder(encoder, decoder, Gaussian(0.7))
    x, corrupted = torch.randn(6, 2, 3), torch.randn(6, views, 2, 3)
    terms = objective(Batch(corrupted, clean=x))
    plain = torch.zeros(())
    for i, v in itertools.product(range(6), range(views)):
        error = x[i] - decoder(encoder(corrupted[i, v][None]))[0]
        plain = plain - error.square().sum() / (2 * 0.7**2) / (6 * views)
    plain = plain - 3 * math.log(2 * math.pi * 0.7**2)
    assert_same(terms.reconstruction, plain, objective.parameters())
    assert sum(terms) == terms.reconstruction


class Halves(nn.Module):
    """A corruption as others write it: none in evaluation mode."""

    def forward(self, x):
        return x / 2 if self.training else x


@pytest.mark.parametrize("noise", [Halves(), nn.Dropout(0.5)])
def test_the_corruption_is_the_same_in_evaluation(noise):
    encoder, decoder = networks((4,))
    objective = DenoisingAutoencoder(encoder, decoder, Gaussian(0.5), noise=noise)
    x = torch.randn(6, 4)
    batch = Batch(x[:, None], clean=x)
    torch.manual_seed(0)
    training = objective.train()(batch).reconstruction
    for place in (objective, nn.ModuleList([objective])):
        place.eval()
        assert noise.training and not decoder.training
        torch.manual_seed(0)
        assert_close(objective(batch).reconstruction, training)


def test_denoising_of_labels_is_a_classifier():
    encoder, decoder = networks((4,))
    objective = DenoisingAutoencoder(encoder, decoder, Categorical(4))
    labels, views = torch.randint(4, (6,)), torch.randn(6, 2, 4)
    ours = sum(objective(Batch(views, clean=torch.eye(4)[labels])))
    logits = decoder(encoder(views.flatten(0, 1)))
    plain = -nn.functional.cross_entropy(logits, labels.repeat_interleave(2))
    assert_same(ours, plain, objective.parameters())


def linear(encoder: Tensor, decoder: Tensor, scale: float) -> DenoisingAutoencoder:
    """Of weights E (dim, event) and D (event, dim)."""
    parts = [nn.Linear(w.shape[1], len(w), bias=False) for w in (encoder, decoder)]
    for part, weight in zip(parts, (encoder, decoder), strict=True):
        part.weight = nn.Parameter(weight)
    return DenoisingAutoencoder(*parts, Gaussian(scale))


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_linear_denoising_is_best_at_the_closed_form_of_reduced_rank_regression(dim):
    """Theorem 3.1 of Van Assel et al., the views being all that there are."""
    n, views, event, scale = 12, 5, 4, 0.6
    x = torch.randn(n, event) @ torch.randn(event, event)
    corrupted = x.unsqueeze(1) + torch.randn(n, views, event)
    second = torch.einsum("nvi,nvj->ij", corrupted, corrupted) / (n * views)
    values, vectors = torch.linalg.eigh(second)
    whiten = vectors @ values.rsqrt().diag() @ vectors.T
    left, phi, right = torch.linalg.svd(x.T @ corrupted.mean(1) / n @ whiten)
    mix = torch.randn(dim, dim)  # any invertible T leaves the product as it is
    encoder = mix @ right[:dim] @ whiten
    decoder = left[:, :dim] @ phi[:dim].diag() @ mix.inverse()
    objective, batch = linear(encoder, decoder, scale), Batch(corrupted, clean=x)

    value = sum(objective(batch))
    least = (x.T @ x / n).trace() - phi[:dim].square().sum()
    constant = -event / 2 * math.log(2 * math.pi * scale**2)
    assert_close(value, -least / (2 * scale**2) + constant, rtol=1e-10, atol=1e-10)
    for grad in torch.autograd.grad(value, list(objective.parameters())):
        assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)
    for size in (1e-3, 1e-1, 1.0):
        near = [w + size * torch.randn_like(w) for w in (encoder, decoder)]
        assert sum(linear(*near, scale)(batch)) < value


def test_denoising_is_below_minus_the_conditional_entropy_and_reaches_it():
    """x ~ N(0, c), a view adds N(0, s): only their second moments count."""
    c, s = 1.7, 0.4
    white = torch.randn(50, 2)
    white = white @ torch.linalg.cholesky((white.T @ white / 50).inverse())
    x = math.sqrt(c) * white[:, :1]
    batch = Batch((x + math.sqrt(s) * white[:, 1:]).unsqueeze(1), clean=x)
    weight, variance = c / (c + s), c * s / (c + s)
    entropy = 0.5 * math.log(2 * math.pi * math.e * variance)
    one = torch.ones(1, 1)

    best = sum(linear(one, weight * one, math.sqrt(variance))(batch))
    assert_close(best, torch.tensor(-entropy), rtol=1e-10, atol=1e-10)
    # H[x] + value is then the mutual information.
    information = 0.5 * math.log(1 + c / s)
    prior = 0.5 * math.log(2 * math.pi * math.e * c)
    assert_close(prior + best, torch.tensor(information))
    for grad, width in itertools.product((0.3, weight, 1.0), (0.5, 0.9, 2.0)):
        scale = math.sqrt(width * variance)
        assert sum(linear(one, grad * one, scale)(batch)) < best - 1e-3


def test_noise_corrupts_the_views_and_never_the_target():
    encoder, decoder = networks((4,))
    halve = nn.Module()
    halve.forward = lambda x: x / 2
    objective = DenoisingAutoencoder(encoder, decoder, Gaussian(0.5), noise=halve)
    without = DenoisingAutoencoder(encoder, decoder, Gaussian(0.5))
    x, views = torch.randn(6, 4), torch.randn(6, 3, 4)
    ours = sum(objective(Batch(views, clean=x)))
    assert_close(ours, sum(without(Batch(views / 2, clean=x))))
    assert_close(objective.represent(x), encoder(x))
    objective.noise = ps.views.Noise(0.3)
    for mode in (objective.train(), objective.eval()):
        values = [sum(mode(Batch(x.unsqueeze(1), clean=x))) for _ in range(2)]
        assert values[0] != values[1]


def test_views_of_several_sizes_are_denoised_to_one_item():
    encoder = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Linear(3, 2))
    objective = DenoisingAutoencoder(encoder, nn.Linear(2, 6), Gaussian())
    x, parts = torch.randn(5, 6), (torch.randn(5, 2, 6), torch.randn(5, 3, 4))
    ours = sum(objective(Batch(parts, clean=x)))
    each = [sum(objective(Batch(p, clean=x))) for p in parts]
    assert_close(ours, (2 * each[0] + 3 * each[1]) / 5)


# Masked.


def fixed(objective: MaskedAutoencoder, hidden: Tensor) -> MaskedAutoencoder:
    """With this mask in place of random ones."""
    objective.mask = lambda x: hidden
    return objective


def masked(event: tuple[int, ...], **options) -> MaskedAutoencoder:
    return MaskedAutoencoder(*networks(event), Gaussian(0.7), **options)


def test_masked_is_a_squared_error_of_hidden_pixels_given_the_visible_ones():
    objective, x = masked((2, 4, 4)), torch.randn(3, 2, 2, 4, 4)
    hidden = objective.mask(x.flatten(0, 1))
    ours = sum(fixed(objective, hidden)(Batch(x)))
    plain, rows = torch.zeros(()), x.flatten(0, 1)
    for row, m in zip(rows, hidden, strict=True):
        visible = torch.where(m, torch.zeros(()), row)
        output = objective.decoder(objective.encoder(visible[None]))[0]
        for i in m.flatten().nonzero().squeeze(1):
            error = row.flatten()[i] - output.flatten()[i]
            density = -error.square() / (2 * 0.7**2)
            plain = plain + (density - 0.5 * math.log(2 * math.pi * 0.7**2)) / 6
    assert_same(ours, plain, objective.parameters())


def test_pixels_that_are_hidden_never_reach_the_encoder():
    objective, x = masked((8,)), torch.randn(5, 1, 8, requires_grad=True)
    hidden = objective.mask(x[:, 0])
    fixed(objective, hidden)
    seen = []
    objective.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    value = sum(objective(Batch(x)))
    assert torch.equal(seen[0], torch.where(hidden, 0.0, x[:, 0]))
    # Visible pixels count by way of z alone: hold z, and their grad is gone.
    assert torch.autograd.grad(value, x, retain_graph=True)[0].all()
    objective.encoder[1].weight.data.zero_()
    grad = torch.autograd.grad(sum(objective(Batch(x))), x)[0][:, 0]
    assert grad[hidden].all() and not grad[~hidden].any()


@pytest.mark.parametrize(
    "event, patch, share, count",
    [
        ((1, 8, 8), 2, 0.75, 12 * 4),
        ((3, 8, 4), 4, 0.5, 16 * 3),
        ((6, 6), 3, 0.75, 3 * 9),
        ((10,), 7, 0.75, 8),
        ((10,), 2, 0.01, 1),
        ((10,), 2, 0.99, 9),
        ((2,), 2, 0.75, 1),
    ],
)
def test_so_many_whole_patches_are_hidden_in_each_view(event, patch, share, count):
    objective = masked(event, patch=patch, share=share)
    hidden = objective.mask(torch.zeros(64, *event))
    assert hidden.shape == (64, *event) and hidden.dtype == torch.bool
    assert (hidden.flatten(1).sum(1) == count).all()
    if len(event) == 1:
        return
    h, w = event[-2] // patch, event[-1] // patch
    cut = hidden.view(64, -1, h, patch, w, patch)
    corner = cut[:, :1, :, :1, :, :1]  # of the first channel
    assert torch.equal(cut, corner.expand_as(cut))
    assert len(hidden.flatten(1).unique(dim=0)) > 1


def test_all_patches_are_hidden_equally_often_and_pairs_too():
    n, objective = 40_000, masked((5,), share=0.4)
    hidden = objective.mask(torch.zeros(n, 5)).double()
    found, exact = hidden.T @ hidden / n, torch.full((5, 5), 0.1)
    exact.fill_diagonal_(0.4)
    error = 5 * (exact * (1 - exact) / n).sqrt()
    assert ((found - exact).abs() < error).all()


def binary(pixels: int, quarter: bool = False) -> Tensor:
    """All binary images, pixels being 1 with probability ½ (or ¼)."""
    levels = [0.0, 0.0, 0.0, 1.0] if quarter else [0.0, 1.0]
    return torch.tensor(list(itertools.product(levels, repeat=pixels)))


def test_independent_pixels_have_no_more_than_minus_their_entropy():
    x = binary(3, quarter=True).unsqueeze(1)
    decoder = nn.Linear(3, 3)
    objective = MaskedAutoencoder(nn.Identity(), decoder, Bernoulli(), share=0.7)
    fixed(objective, torch.tensor([True, True, False]).expand(64, 3))
    with torch.no_grad():
        decoder.weight.zero_()
        decoder.bias.fill_(math.log(1 / 3))
    value, entropy = sum(objective(Batch(x))), math.log(4) - 0.75 * math.log(3)
    assert_close(value, torch.tensor(-2 * entropy), rtol=1e-10, atol=1e-10)
    for parameter in decoder.parameters():
        (grad,) = torch.autograd.grad(sum(objective(Batch(x))), parameter)
        assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)
    for _ in range(5):
        with torch.no_grad():
            decoder.weight.normal_(), decoder.bias.normal_()
        assert sum(objective(Batch(x))) < value


def test_equal_pixels_are_worth_their_mutual_information():
    """x₁ = x₂: what is hidden is known, and H[x_m] + value rises to log 2."""
    x = torch.tensor([0.0, 1.0]).repeat(2, 1).T.unsqueeze(1)
    decoder = nn.Linear(2, 2)
    objective = MaskedAutoencoder(nn.Identity(), decoder, Bernoulli(), share=0.5)
    gaps = []
    for grad in (10.0, 20.0):
        with torch.no_grad():
            decoder.weight.copy_(grad * torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
            decoder.bias.fill_(-grad)
        gaps.append(-sum(objective(Batch(x))))
    for grad, gap in zip((10.0, 20.0), gaps, strict=True):
        assert_close(gap, torch.tensor(math.log1p(math.exp(-grad))))


def test_masks_are_drawn_anew_and_follow_the_seed():
    objective, batch = masked((8,)), Batch(torch.randn(5, 2, 8))
    for mode in (objective.train(), objective.eval()):
        values = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            values.append(sum(mode(batch)))
        assert values[0] == values[1] != values[2]


# Both.


def tied(objective: nn.Module, x: Tensor) -> Terms:
    torch.manual_seed(3)
    return objective(Batch(x.unsqueeze(1), clean=x))


@pytest.mark.parametrize("kind", [DenoisingAutoencoder, MaskedAutoencoder])
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e6])
def test_equal_and_extreme_items_have_finite_values_and_grads(kind, size):
    objective = kind(*networks((4,)), Gaussian(0.5))
    x = (size * torch.randn(1, 4)).repeat(6, 1).requires_grad_()
    value = sum(tied(objective, x))
    leaves = [x, *objective.parameters()]
    grads = torch.autograd.grad(value, leaves)
    assert value.isfinite() and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kind", [DenoisingAutoencoder, MaskedAutoencoder])
def test_gradients_are_exact(kind):
    objective = kind(*networks((4,)), Gaussian(ps.learned(0.5)))
    x = torch.randn(5, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sum(tied(objective, x)), x)


@pytest.mark.parametrize("kind", [DenoisingAutoencoder, MaskedAutoencoder])
def test_objectives_with_convolutions_obey_the_laws(kind):
    event, options = (3, 8, 8), {"channels": (4, 8)}
    nets = ConvEncoder(event, 2, **options), ConvDecoder(2, event, **options)
    clean = torch.randint(17, (4, *event)) / 16
    views = torch.randint(17, (4, 2, *event)) / 16
    check_objective(kind(*nets, Binomial(16)), Batch(views, clean), repeats=10)


@pytest.mark.parametrize(
    "views, message",
    [
        (
            torch.zeros(4, 1, 1, 7, 8),
            r"whole patches of edge 2, got event shape \(1, 7, 8\)",
        ),
        (torch.zeros(4, 1, 1, 2, 2), "at least 2 whole patches"),
        (torch.zeros(4, 1, 1), "at least 2 whole patches"),
        (torch.full((4, 1, 8), math.nan), "NaN"),
        ((torch.zeros(4, 1, 8), torch.zeros(4, 1, 8)), "one modality"),
    ],
)
def test_views_that_cannot_be_masked_are_refused(views, message):
    with pytest.raises(ValueError, match=message):
        masked((8,)).check(Batch(views))


def test_a_batch_without_what_is_needed_is_refused():
    x, views = torch.zeros(4, 8), torch.zeros(4, 2, 8)
    denoising = DenoisingAutoencoder(*networks((8,)), Bernoulli())
    absent = torch.ones(4, 2).bool()
    for call in (denoising, denoising.check):
        with pytest.raises(ValueError, match="fit sets it"):
            call(Batch(views))
        with pytest.raises(ValueError, match="views to be present"):
            call(Batch(views, clean=x, present=absent))
    with pytest.raises(ValueError, match="binary"):
        denoising.check(Batch(views, clean=x + 0.5))
    denoising.check(Batch(views + 0.5, clean=x))  # views may be anything
    with pytest.raises(ValueError, match="views to be present"):
        masked((8,))(Batch(views, present=absent))
    for objective in (denoising, masked((8,))):
        objective.decoder = nn.Linear(3, 1)
        with pytest.raises(ValueError, match="output_shape"):
            objective(Batch(views, clean=x))
