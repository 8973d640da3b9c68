"""Conditional entropy by plug-in: a bound in value, and a fit in gradient."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import cosine_similarity, normalize
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import KernelDensity, LogDeterminant
from probssl.entropies.plug_in import PlugIn
from probssl.limits._base import Embedding
from probssl.priors import Gaussian, Spherical
from probssl.terms import Batch
from probssl.testing import check_objective

pytestmark = pytest.mark.usefixtures("float64")
RHO = 0.8


def flat(scale: float) -> Gaussian:
    return Gaussian(None, scale, y_scale=math.inf)


def exact_pairs(n: int = 60) -> Tensor:
    """Pairs whose second moments are exactly those of correlation RHO, dim 1."""
    z = torch.randn(n, 2)
    root = torch.linalg.cholesky(z.T @ z / n)
    target = torch.linalg.cholesky(torch.tensor([[1.0, RHO], [RHO, 1.0]]))
    return (z @ torch.linalg.inv(root).T @ target.T).unsqueeze(-1)


def times(factor: float, dim: int = 1) -> nn.Linear:
    predictor = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(predictor.weight).data.mul_(factor)
    return predictor


def conditional_entropy() -> float:
    return 0.5 * math.log(2 * math.pi * math.e * (1 - RHO**2))


@pytest.mark.parametrize(
    ("slope", "scale"),
    [(RHO, 0.6), (0.5, 0.6), (RHO, 0.9), (1.0, 0.3)],
)
def test_value_is_the_conditional_entropy_and_the_divergence_from_it(slope, scale):
    value = PlugIn(times(slope)).conditional(exact_pairs(), flat(scale))
    variance = 1 - RHO**2
    error = (slope - RHO) ** 2  # E (g(z) - E[z'|z])²
    divergence = (variance + error) / scale**2 - 1 - math.log(variance / scale**2)
    assert divergence > 0.05 or (slope, scale) == (RHO, 0.6)  # the true conditional
    assert_close(value - conditional_entropy(), torch.tensor(divergence / 2))


def test_all_views_given_one_are_bounded_by_the_sum_over_the_others():
    rho, dim, views, n = 0.6, 2, 3, 4_000
    content = math.sqrt(rho) * torch.randn(n, 1, dim)
    z = content + math.sqrt(1 - rho) * torch.randn(n, views, dim)
    each = [
        PlugIn(times(rho, dim)).conditional(part, flat(math.sqrt(1 - rho**2)))
        for part in z.split(n // 40)
    ]
    values = torch.stack(each)
    covariance = (1 - rho) * torch.eye(views) + rho
    together = dim * MultivariateNormal(torch.zeros(views), covariance).entropy()
    exact = together - dim * 0.5 * math.log(2 * math.pi * math.e)
    one = dim * 0.5 * math.log(2 * math.pi * math.e * (1 - rho**2))
    bar = 5 * values.std() / math.sqrt(40)
    assert abs(values.mean() - (views - 1) * one) < bar
    assert values.mean() - exact > bar  # the others are dependent, given one


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_value_equals_plain_loops(stop_gradient):
    z, predictor = torch.randn(4, 3, 2), nn.Linear(2, 2)
    total = 0.0
    for item in z:
        for v in range(3):
            for w in range(3):
                if v != w:
                    kernel = MultivariateNormal(predictor(item[v]), 0.49 * torch.eye(2))
                    total -= kernel.log_prob(item[w]) / (4 * 3)  # (V - 1) of a mean
    entropy = PlugIn(predictor, stop_gradient=stop_gradient)
    assert_close(entropy.conditional(z, flat(0.7)), total)


def test_with_the_alignment_of_the_prediction_it_stops_the_gradient_of_the_target():
    """What is left of the gradient is that of SimSiam, by the concentration."""
    kappa, prior = 5.0, Spherical(None, 5.0)
    predictor = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    z = torch.randn(7, 2, 3, requires_grad=True)
    on_sphere = normalize(z, dim=-1)
    y = normalize(predictor(on_sphere), dim=-1)
    alignment = 0.0
    for v, w in ((0, 1), (1, 0)):
        kernel = prior.log_kernel(y[:, v : v + 1], on_sphere[:, w : w + 1], True)
        alignment = alignment + kernel.mean() / 2
    entropy = PlugIn(predictor).conditional(on_sphere, prior)
    assert_close(alignment + entropy, torch.zeros(()))  # the value says nothing
    ours = torch.autograd.grad(alignment + entropy, z)[0]

    target = z.detach()
    p = [predictor(normalize(z[:, v], dim=-1)) for v in range(2)]
    loss = -cosine_similarity(p[0], target[:, 1], dim=-1).mean() / 2
    loss = loss - cosine_similarity(p[1], target[:, 0], dim=-1).mean() / 2
    plain = torch.autograd.grad(-kappa * loss, z)[0]
    assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_predictor_is_fitted_and_the_predicted_view_driven_away():
    z = exact_pairs().requires_grad_()
    predictor, prior = times(0.3), flat(0.5)
    value = PlugIn(predictor).conditional(z, prior)
    along = torch.autograd.grad(value, [z, predictor.weight])
    residual = z.detach().flip(1) - 0.3 * z.detach()  # of each view, as it predicts
    plain = residual.flip(1) / (0.25 * len(z) * 2)
    assert_close(along[0], plain)  # through the predicted view alone
    gradient = (residual * z.detach()).mean() / 0.25
    assert_close(along[1], gradient.reshape(1, 1))  # towards a better prediction


def test_fitted_as_an_objective_it_finds_the_conditional():
    predictor, z = times(0.0), exact_pairs()
    entropy = PlugIn(predictor)
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.1, maximize=True)
    for _ in range(60):
        optimizer.zero_grad()
        entropy.conditional(z, flat(0.6)).backward()
        optimizer.step()
    assert_close(predictor.weight.detach(), torch.tensor([[RHO]]))


@pytest.mark.parametrize("prior", [Gaussian(2, 0.7, math.inf), Spherical(2, 3.0)])
def test_without_stopping_the_gradient_it_is_that_of_the_value(prior):
    predictor = nn.Linear(2, 2)
    entropy = PlugIn(predictor, stop_gradient=False)
    z = torch.randn(4, 3, 2, requires_grad=True)

    def value(z: Tensor, *_: Tensor) -> Tensor:
        return entropy.conditional(prior.on_support(z), prior)

    assert torch.autograd.gradcheck(value, (z, *predictor.parameters()))


def test_embedding_with_a_flat_content_adds_the_conditional_entropy():
    z, predictor = torch.randn(6, 2, 3), nn.Linear(3, 3)
    entropy, prior = PlugIn(predictor), flat(0.5)
    terms = Embedding(nn.Identity(), prior, entropy, all_views=True)(Batch(z))
    assert_close(terms.entropy, entropy.conditional(z, prior), rtol=0, atol=0)
    assert_close(terms.alignment, prior.log_prob(z).mean())
    sphere = Spherical(3, 4.0)
    terms = Embedding(nn.Identity(), sphere, entropy, all_views=True)(Batch(z))
    plain = entropy.conditional(normalize(z, dim=-1), sphere)
    assert_close(terms.entropy, plain, rtol=0, atol=0)


def test_embedding_with_a_proper_content_adds_the_marginal_entropy_as_well():
    z, prior = torch.randn(20, 3, 2), Gaussian(2, 0.5)
    entropy = PlugIn(nn.Linear(2, 2), LogDeterminant())
    terms = Embedding(nn.Identity(), prior, entropy, all_views=True)(Batch(z))
    plain = LogDeterminant()(z) + entropy.conditional(z, prior)
    assert_close(terms.entropy, plain)


@pytest.mark.parametrize("entropy", [LogDeterminant(), KernelDensity()])
def test_conditional_entropy_of_the_others_is_that_of_all_less_that_of_one(entropy):
    z, prior = torch.randn(20, 2, 2), flat(0.5)
    plain = entropy.joint(z, prior) - entropy(z, prior)
    terms = Embedding(nn.Identity(), prior, entropy, all_views=True)(Batch(z))
    assert_close(terms.entropy, plain)


def test_objective_with_a_predictor_keeps_all_laws():
    encoder = ps.nn.MLPEncoder((6,), 3, hidden=(8,))
    predictor = ps.nn.MLPEncoder((3,), 3, hidden=(4,))
    objective = Embedding(encoder, flat(0.5), PlugIn(predictor), all_views=True)
    check_objective(objective, Batch(torch.randn(8, 2, 6)))


def test_a_function_without_a_conditional_form_is_refused_for_all_views():
    with pytest.raises(ValueError, match="make it an Entropy"):
        Embedding(nn.Identity(), flat(0.5), lambda z, prior: z.mean(), all_views=True)
