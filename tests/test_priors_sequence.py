"""Views in order: closed forms of the chain, filter and smoother, and both worlds."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import catalogue
from helpers.checks import assert_mean, assert_same, refusals
from helpers.linear import linear_gaussian
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.entropies import (
    KernelDensity,
    LogDeterminant,
    NearestNeighbour,
    QueuedKernelDensity,
)
from probssl.limits import Embedding
from probssl.priors import Contraction, Gaussian, Independent, Predictive, Sequence
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
exact = partial(assert_close, rtol=1e-9, atol=1e-9)
DIM = 3
A = np.array([[0.5, 0.4, 0.0], [-0.4, 0.6, 0.2], [0.1, 0.0, -0.7]])
Q = np.array([[0.5, 0.1, 0.0], [0.1, 0.4, -0.1], [0.0, -0.1, 0.3]])
DRIFT, MEAN = [0.3, -0.2, 0.1], [1.0, 0.0, -2.0]
EYE = np.eye(DIM)


def contraction() -> Contraction:
    made = Contraction(DIM)
    torch.manual_seed(5)
    nn.init.normal_(made.matrix)
    return made


def matrix_of(made: Contraction) -> np.ndarray:
    """A by its singular values: those s of M become s / √(1 + s²) of C⁻¹ M."""
    M = made.matrix.detach().numpy()
    return np.linalg.solve(np.linalg.cholesky(EYE + M @ M.T), M)


# The prior, and m, P, A, b, Q written out.
Plain = tuple[np.ndarray, ...]
ZERO = np.zeros(DIM)
CHAINS: dict[str, Callable[[], tuple[Sequence, Plain]]] = {
    "number": lambda: (
        Sequence(DIM, 0.7),
        (ZERO, EYE, 0.7 * EYE, ZERO, (1 - 0.7**2) * EYE),
    ),
    "numbers": lambda: (
        Sequence(DIM, [0.1, -0.5, 0.9], noise=[0.2, 0.3, 0.4], drift=DRIFT),
        (
            np.array(DRIFT) / (1 - np.array([0.1, -0.5, 0.9])),
            np.diag(
                np.array([0.2, 0.3, 0.4]) ** 2 / (1 - np.array([0.01, 0.25, 0.81]))
            ),
            np.diag([0.1, -0.5, 0.9]),
            np.array(DRIFT),
            np.diag([0.04, 0.09, 0.16]),
        ),
    ),
    "matrix": lambda: (
        Sequence(DIM, torch.tensor(A), drift=DRIFT),
        (np.linalg.solve(EYE - A, DRIFT), EYE, A, np.array(DRIFT), EYE - A @ A.T),
    ),
    "contraction": lambda: (
        Sequence(DIM, contraction()),
        (
            ZERO,
            EYE,
            matrix_of(contraction()),
            ZERO,
            EYE - matrix_of(contraction()) @ matrix_of(contraction()).T,
        ),
    ),
    "matrices": lambda: (
        Sequence(DIM, A, Q),
        (ZERO, solve_discrete_lyapunov(A, Q), A, ZERO, Q),
    ),
    "random walk": lambda: (
        Sequence(DIM, 1.0, 0.3, 2.0, drift=0.1, mean=MEAN),
        (np.array(MEAN), 4 * EYE, EYE, np.full(DIM, 0.1), 0.09 * EYE),
    ),
    "growing": lambda: (
        Sequence(DIM, 1.3, torch.tensor(Q), [0.5, 1.0, 1.5]),
        (ZERO, np.diag([0.25, 1.0, 2.25]), 1.3 * EYE, ZERO, Q),
    ),
}


def dense(plain: Plain, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of all views in one vector: Cov(z_s, z_t) = A^(t - s) C_s."""
    m, P, A, b, Q = plain
    loc, each = [m], [P]
    for _ in range(views - 1):
        loc.append(A @ loc[-1] + b)
        each.append(A @ each[-1] @ A.T + Q)
    blocks = np.zeros((views, views, DIM, DIM))
    for s in range(views):
        for t in range(s, views):
            blocks[t, s] = np.linalg.matrix_power(A, t - s) @ each[s]
            blocks[s, t] = blocks[t, s].T
    return np.concatenate(loc), blocks.transpose(0, 2, 1, 3).reshape(2 * (views * DIM,))


def log_normal(z: np.ndarray, loc: np.ndarray, covariance: np.ndarray) -> Tensor:
    return torch.tensor(multivariate_normal(loc, covariance).logpdf(z))


def masks(items: int, views: int) -> Tensor:
    """Any subsets of the views, all and none among them."""
    mask = torch.rand(items, views) < 0.5
    mask[0], mask[1] = True, False
    return mask


@pytest.mark.parametrize("views", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", CHAINS)
def test_density_is_the_dense_normal_for_any_subset_of_the_views(name, views):
    prior, plain = CHAINS[name]()
    loc, covariance = dense(plain, views)
    z, present, p = torch.randn(6, views, DIM), masks(6, views), prior(views)
    flat = z.flatten(1).numpy()
    exact(prior.log_prob(z), log_normal(flat, loc, covariance))
    exact(p.mean.flatten(), torch.tensor(loc))
    exact(p.variance.flatten(), torch.tensor(covariance.diagonal().copy()))
    whole = multivariate_normal(loc, covariance)
    exact(p.entropy(), torch.tensor(whole.entropy()))
    found, entropy = prior.log_prob(z, present), p.marginal(present).entropy()
    for i, mask in enumerate(present):
        rows = mask.repeat_interleave(DIM).numpy()
        if not rows.any():
            exact(found[i], torch.tensor(0.0))
            exact(entropy[i], torch.tensor(0.0))
            continue
        part = loc[rows], covariance[rows][:, rows]
        exact(found[i], log_normal(flat[i][rows], *part))
        exact(entropy[i], torch.tensor(multivariate_normal(*part).entropy()))


@pytest.mark.parametrize("name", CHAINS)
def test_the_smoother_conditions_the_dense_normal(name):
    prior, plain = CHAINS[name]()
    loc, covariance = dense(plain, 5)
    z, present = torch.randn(8, 5, DIM), masks(8, 5)
    mean = prior(5).complete_mean(z, present)
    for i, mask in enumerate(present):
        rows = mask.repeat_interleave(DIM).numpy()
        flat, expected = z[i].flatten().numpy(), loc.copy()
        if rows.any():
            gain = np.linalg.solve(covariance[rows][:, rows], covariance[rows])
            expected = loc + (flat[rows] - loc[rows]) @ gain
        exact(mean[i].flatten(), torch.tensor(np.where(rows, flat, expected)))


def test_draws_of_absent_views_have_their_conditional_moments():
    prior, plain = CHAINS["matrix"]()
    loc, covariance = dense(plain, 4)
    present = torch.tensor([False, True, False, True])
    rows, z, n = present.repeat_interleave(DIM).numpy(), torch.randn(4, DIM), 40_000
    drawn = prior(4).complete(z.expand(n, -1, -1), present.expand(n, -1))
    assert (drawn[:, present] == z[present]).all()
    own = covariance[~rows][:, rows] @ np.linalg.inv(covariance[rows][:, rows])
    mean = loc[~rows] + own @ (z.flatten().numpy()[rows] - loc[rows])
    rest = covariance[~rows][:, ~rows] - own @ covariance[rows][:, ~rows]
    away = drawn[:, ~present].flatten(1) - torch.tensor(mean)
    assert_mean(away, torch.zeros(len(mean)))
    assert_mean(away[:, :, None] * away[:, None], torch.tensor(rest))


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_the_product_with_factors_is_the_dense_one(name, divided):
    prior, plain = CHAINS[name]()
    views, items = 4, 5
    loc, covariance = dense(plain, views)
    m, r, z = (torch.randn(items, views, DIM) for _ in range(3))
    present, p = masks(items, views), prior.requires_grad_(False)(views)
    over = p.matched() if divided else None
    r = r.abs().add(0.1) if over is None else over.scale * (0.1 + 0.8 * r.sigmoid())
    product = p.times(m, r, present, over=over)
    inverse = np.linalg.inv(covariance)
    for i in range(items):
        seen = present[i].repeat_interleave(DIM).numpy()
        factor = seen / r[i].flatten().numpy() ** 2
        linear = inverse @ loc + factor * m[i].flatten().numpy()
        precision = inverse + np.diag(factor)
        if over is not None:
            below = seen / over.variance.flatten().numpy()
            precision -= np.diag(below)
            linear -= below * loc
        spread = np.linalg.inv(precision)
        exact(product.mean[i].flatten(), torch.tensor(spread @ linear))
        exact(product.variance[i].flatten(), torch.tensor(spread.diagonal().copy()))
        expected = log_normal(z[i].flatten().numpy(), spread @ linear, spread)
        exact(product.log_prob(z)[i], expected)


@pytest.mark.parametrize("r", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("a", [0.3, 0.99])
def test_the_product_with_sharp_factors_in_float32_is_that_of_float64(a, r):
    m = torch.randn(6, 5, DIM)

    def product(kind: torch.dtype, matrix: bool) -> Tensor:
        chain = Sequence(DIM, a * torch.eye(DIM) if matrix else a).to(kind)(5)
        found = chain.times(m.to(kind), torch.full_like(m, r, dtype=kind))
        return torch.stack([found.mean, r + found.stddev]).double()

    rounding = 4 * torch.finfo(torch.float32).eps * float(m.abs().max())
    for matrix in (False, True):
        found, right = product(torch.float32, matrix), product(torch.float64, matrix)
        assert_close(found, right, rtol=0, atol=rounding + 1e-4 * r)


@pytest.mark.parametrize("a", [0.1, 0.6, 0.99])
def test_two_views_of_a_stationary_chain_are_those_of_a_shared_content(a):
    """Cov(z_1, z_2) = a is τ², and σ² = 1 - a, of `Gaussian`; not so for three."""
    chain, shared = Sequence(DIM, a), Gaussian(DIM, math.sqrt(1 - a), math.sqrt(a))
    z = torch.randn(7, 2, DIM)
    exact(chain.log_prob(z), shared.log_prob(z))
    exact(chain.log_prob(z[:, :1]), shared.log_prob(z[:, :1]))
    one, other = z[:4, 0], z[4:, 1]
    exact(chain.log_kernel(one, other), shared.log_kernel(one, other))
    exact(chain.pmi(one, other), shared.pmi(one, other))
    exact(chain.mutual_information(), shared.mutual_information())
    three = torch.randn(7, 3, DIM)
    assert (chain.log_prob(three) - shared.log_prob(three)).abs().max() > 0.01


def test_without_memory_views_are_independent():
    z = torch.randn(6, 4, DIM)
    exact(Sequence(DIM, 0.0).log_prob(z), Independent(DIM).log_prob(z))


def test_a_random_walk_has_the_covariance_of_the_earlier_time():
    walk, step, start, views = Sequence(1, 1.0, 0.5, 0.8), 0.25, 0.64, 6
    time = torch.arange(views, dtype=torch.double)
    covariance = start + step * torch.minimum(time[:, None], time)
    z = torch.randn(5, views, 1)
    plain = MultivariateNormal(torch.zeros(views), covariance)
    exact(walk.log_prob(z), plain.log_prob(z.squeeze(-1)))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_contraction_has_a_spectral_norm_below_one(size):
    made = Contraction(5, 0.4)
    exact(made()[0], 0.4 * torch.eye(5))
    nn.init.normal_(made.matrix, std=size)
    matrix, tril = made()
    assert torch.linalg.matrix_norm(matrix, 2) < 1
    exact(tril @ tril.mT, torch.eye(5) - matrix @ matrix.mT)
    single = torch.linalg.svdvals(made.matrix)
    exact(torch.linalg.svdvals(matrix), (single / (1 + single**2).sqrt()))


def test_every_contraction_is_reached():
    wanted = torch.tensor(A)
    tril = torch.linalg.cholesky(torch.eye(DIM) - wanted @ wanted.mT)
    made = Contraction(DIM)
    with torch.no_grad():
        made.matrix.copy_(torch.linalg.solve_triangular(tril, wanted, upper=False))
    exact(made()[0], wanted)


def test_a_learned_chain_finds_that_of_the_data():
    truth = Sequence(DIM, torch.tensor(A))
    z = truth(20).sample((800,))
    prior = Sequence(DIM, Contraction(DIM, 0.1))
    optimizer = torch.optim.LBFGS(prior.parameters(), line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -prior.log_prob(z).mean() / 20
        value.backward()
        return value

    optimizer.step(loss)
    # 15,200 pairs: a standard error of at most 0.008 in each entry.
    assert_close(prior.transition()[0], torch.tensor(A), rtol=0, atol=0.04)


@pytest.mark.parametrize("guide", ["Coupled", "CoupledLikelihoods"])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_elbo_of_the_exact_guide_is_the_evidence(views, guide):
    noise, event, items, transition = 0.3, 5, 6, (0.9, -0.4)
    options = {} if guide == "CoupledLikelihoods" else {"guide": ps.guides.Coupled}
    joint = linear_gaussian(Sequence(2, transition), event, noise, **options)
    weight = joint.decoder.weight.detach()
    lag = (torch.arange(views)[:, None] - torch.arange(views)).abs()
    latent = torch.stack([torch.tensor(a).double() ** lag for a in transition], -1)
    latent = latent.diag_embed().permute(0, 2, 1, 3).reshape(2 * views, 2 * views)
    decoder = torch.block_diag(*[weight] * views)
    covariance = decoder @ latent @ decoder.T + noise**2 * torch.eye(views * event)
    x, present = torch.randn(items, views, event), masks(items, views)
    present[:, -1] |= ~present.any(1)
    found = ps.bounds.log_weights(joint, Batch(x), 3).local()
    zero = torch.zeros(len(covariance))
    evidence = MultivariateNormal(zero, covariance).log_prob(x.flatten(1))
    exact(found, evidence.expand_as(found))
    found = ps.bounds.log_weights(joint, Batch(x, present=present), 3).local()
    for i, mask in enumerate(present):
        rows = mask.repeat_interleave(event)
        part = MultivariateNormal(zero[rows], covariance[rows][:, rows])
        exact(found[:, i], part.log_prob(x[i].flatten()[rows]).expand(3))


def rotation(dim: int = DIM) -> nn.Module:
    """A linear predictor."""
    net = nn.Linear(dim, dim)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(A)[:dim, :dim])
        net.bias.copy_(torch.tensor(DRIFT)[:dim])
    return net


@pytest.mark.parametrize("views", [2, 4])
def test_a_linear_predictor_gives_the_linear_chain_up_to_the_first_view(views):
    chain = Sequence(DIM, A, noise=0.4, drift=DRIFT)
    z = torch.randn(6, views, DIM, requires_grad=True)
    flat = Predictive(DIM, rotation(), scale=0.4)
    assert_same(
        flat.log_prob(z).sum(),
        (chain.log_prob(z) - chain.log_prob(z[:, :1])).sum(),
        z,
    )
    started = Sequence(DIM, A, noise=0.4, start=1.5, drift=DRIFT)
    proper = Predictive(DIM, rotation(), scale=0.4, start=1.5)
    exact(proper.log_prob(z), started.log_prob(z))
    exact(flat.log_kernel(z[0], z[1]), chain.log_kernel(z[0], z[1]))


def test_a_predictor_of_the_truth_reaches_the_information_of_the_views():
    """log p(z_2|z_1) + H[z_2] is I(z_1; z_2) at the truth, and less elsewhere."""
    chain = Sequence(DIM, 0.8)
    z, entropy = chain(2).sample((4_000,)), chain(1).entropy()
    net = nn.Linear(DIM, DIM, bias=False)
    for slope in (0.8, 0.5, 1.0):
        nn.init.zeros_(net.weight)
        with torch.no_grad():
            net.weight.add_(slope * torch.eye(DIM))
        prior = Predictive(DIM, net, scale=math.sqrt(1 - 0.8**2))
        below = DIM * (slope - 0.8) ** 2 / (2 * (1 - 0.8**2))
        value = prior.log_prob(z).detach() + entropy
        assert_mean(value, chain.mutual_information() - below)
    objective = Embedding(nn.Identity(), prior, LogDeterminant())
    terms = objective(Batch(z))
    exact(terms.alignment, prior.log_prob(z).mean())
    assert prior.gauge(2) == 1
    assert_close(terms.entropy, entropy, rtol=0, atol=0.1)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("directed", [False, True])
def test_with_plug_in_it_is_contrastive_predictive_coding(views, directed):
    """The mean over t of log p(z_t | z_t-1), and over the views before of all items."""
    chain = Sequence(DIM, A, noise=0.4, drift=DRIFT)
    prior = Predictive(DIM, rotation(), 0.4) if directed else chain
    z = torch.randn(5, views, DIM, requires_grad=True)
    objective = Embedding(nn.Identity(), prior, KernelDensity(), plug_in=True)

    def log_p(b: Tensor, a: Tensor) -> Tensor:
        mean = torch.tensor(A) @ a + torch.tensor(DRIFT)
        covariance = 0.16 * torch.eye(DIM)
        return MultivariateNormal(mean, covariance).log_prob(b)

    times = range(1, views)
    ahead = [log_p(z[i, t], z[i, t - 1]) for i in range(5) for t in times]
    sums = [
        torch.stack([log_p(z[j, t], z[i, t - 1]) for i in range(5)]).logsumexp(0)
        - math.log(5)
        for j in range(5)
        for t in times
    ]
    plain = torch.stack(ahead).mean() - torch.stack(sums).mean()
    assert_same(sum(objective(Batch(z))), plain, z, 1e-8, 1e-8)


def drifting(n: int) -> tuple[Tensor, Tensor]:
    """Views in order whose spread shrinks, of shape (n, 3, 1), and their covariance."""
    z = [10 * torch.randn(n, 1)]
    for _ in range(2):
        z.append(0.1 * z[-1] + torch.randn(n, 1))
    z = torch.stack(z, 1)
    return z, torch.cov(z.squeeze(-1).mT)


ENTROPIES = LogDeterminant(0.0), NearestNeighbour()


@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize(
    ("directed", "plug_in"), [(True, False), (True, True), (False, True)]
)
def test_the_first_view_is_predicted_by_none(entropy, directed, plug_in):
    """The bound is tight at the truth, for views of different spreads."""
    z, sigma = drifting(4_000)
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 0.1)
    nn.init.zeros_(net.bias)
    chain = Sequence(1, 0.1, noise=1.0, start=10.0)
    prior = Predictive(1, net, scale=1.0) if directed else chain
    objective = Embedding(nn.Identity(), prior, entropy, plug_in=plug_in)
    value = sum(objective(Batch(z)))
    steps = [sigma[t : t + 2, t : t + 2] for t in range(2)]
    each = [s.diagonal().log().sum() - torch.logdet(s) for s in steps]
    whole = sigma.diagonal().log().sum() - torch.logdet(sigma)
    information = (torch.stack(each).mean() if plug_in else whole) / 2
    assert_close(value.detach(), information, rtol=0, atol=0.06)


@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("plug_in", [False, True])
def test_with_all_views_it_is_minus_a_divergence_given_the_first(entropy, plug_in):
    z, _ = drifting(4_000)
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.1)
    options = {"plug_in": plug_in, "all_views": True}
    prior = Predictive(1, net, scale=1.0)
    value = sum(Embedding(nn.Identity(), prior, entropy, **options)(Batch(z)))
    assert_close(value.detach(), value.new_zeros(()), rtol=0, atol=0.06)


@pytest.mark.parametrize(
    "make",
    [
        lambda prior: ps.limits.MoCo(ps.nn.MLPEncoder((2,), 2), prior=prior),
        lambda prior: ps.limits.NeighbourEmbedding(nn.Identity(), prior=prior),
        lambda prior: ps.limits.SigLIP(nn.Identity(), prior=prior),
    ],
)
def test_objectives_that_pair_views_both_ways_refuse_an_order(make):
    with pytest.raises(TypeError, match="exchangeable.* got Sequence, of views in ord"):
        make(Sequence(2, 0.5))


def test_a_queue_keeps_no_order():
    queue = QueuedKernelDensity(8, 1)
    prior = Predictive(1, nn.Linear(1, 1), scale=1.0)
    objective = Embedding(nn.Identity(), prior, queue, plug_in=True)
    with pytest.raises(TypeError, match="without a queue beside Predictive"):
        objective(Batch(torch.randn(5, 2, 1)))


def test_a_series_is_fitted_saved_and_filled(tmp_path):
    prior = Sequence(2, ps.learned(0.9))
    x = torch.cumsum(torch.randn(60, 5, catalogue.EVENT), 1).tanh()
    present = torch.rand(60, 5) < 0.8
    present[:, 0] = True
    series = ps.data.groups(x, present=present)
    objective = ps.limits.SimVAE(catalogue.joint(prior, guide=ps.guides.Coupled))
    objective = objective.double()
    ps.fit(objective, series, epochs=2, batch_size=20, progress=False)
    again = ps.load(ps.save(objective, tmp_path))
    assert again.joint.prior.transition().item() != 0.9
    filled = [ps.complete(each, series) for each in (objective, again)]
    assert_close(*filled, rtol=0, atol=0)
    assert filled[0].shape == x.shape
    idata = ps.to_arviz(objective, series, draws=5, items=3)
    sizes = idata.posterior.sizes
    assert (sizes["view"], sizes["dim"], sizes["draw"]) == (5, 2, 5)
    assert np.isfinite(ps.evidence(objective, series, particles=5).log_evidence).all()


def test_a_drawn_transition_has_a_site_and_the_batch_shape():
    prior = Sequence(2, dist.Beta(5.0, 2.0))
    drawn = torch.tensor([[0.2], [0.9]])
    z = torch.randn(5, 4, 2)
    found = prior(4, transition=drawn).log_prob(z)
    expected = [Sequence(2, a).log_prob(z) for a in (0.2, 0.9)]
    exact(found, torch.stack(expected))


def joint_of_a_network() -> ps.Joint:
    prior = Predictive(catalogue.DIM, nn.Linear(catalogue.DIM, catalogue.DIM), 0.5, 1.0)
    return catalogue.joint(prior)


def test_a_predictor_serves_as_the_dynamics_of_a_joint():
    joint = joint_of_a_network()
    x = torch.randn(30, 4, catalogue.EVENT)
    ps.fit(ps.limits.SimVAE(joint), ps.data.groups(x), epochs=2, progress=False)
    assert joint.prior.predictor.weight.grad is not None
    assert ps.sample(joint, 3, views=4).shape == (3, 4, catalogue.EVENT)


class Wide(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 3)


def refused_mask() -> Tensor:
    mask = torch.tensor([[True, False]])
    return Predictive(2, nn.Linear(2, 2)).log_prob(torch.randn(1, 2, 2), mask)


LEARNED = ps.learned(0.5)
test_bad_arguments_are_refused = refusals(
    (lambda: Sequence(0), ValueError, "dim as a whole number of at least 1"),
    (lambda: Sequence(2, 1.0), ValueError, "spectral norm below 1 .*got 1; .*noise"),
    (lambda: Sequence(2, 1.0, 0.1), ValueError, "spectral radius below 1 of a stat"),
    (lambda: Sequence(2, 1.0, None, 1.0), ValueError, "norm below 1 where noise is"),
    (lambda: Sequence(2, ps.learned(1.5)), ValueError, "finite number .* got 1.5"),
    (lambda: Sequence(2, math.nan), ValueError, "transition to be a finite number"),
    (lambda: Sequence(2, dist.LogNormal(0.0, 1.0)), ValueError, "transition to be"),
    (lambda: Sequence(2, (0.1, 0.2, 0.3)), ValueError, "one number, or 2 of them"),
    (lambda: Sequence(2, torch.eye(3) / 2), ValueError, r"shape \(2, 2\), got"),
    (lambda: Sequence(2, Contraction(3)), ValueError, r"shape \(2, 2\), got"),
    (lambda: Sequence(2, 0.5, -1.0), ValueError, "expected noise to be a positive"),
    (lambda: Sequence(2, 0.5, -torch.eye(2)), ValueError, "noise as a symmetric pos"),
    (lambda: Sequence(2, 0.5, [[1.0, 0.5], [0.0, 1.0]]), ValueError, "symmetric"),
    (lambda: Sequence(2, 0.5, LEARNED), ValueError, "a fixed start .*got start=None"),
    (lambda: Sequence(2, 0.5, LEARNED, LEARNED), ValueError, "got start=a free one"),
    (lambda: Sequence(2, drift=[1.0]), ValueError, "drift as one number, or 2"),
    (lambda: Sequence(2, mean=math.inf), ValueError, "finite numbers in mean"),
    (
        lambda: Sequence(2, torch.eye(2, requires_grad=True) / 2),
        ValueError,
        "priors.Contraction is a learned matrix",
    ),
    (lambda: Sequence(2).given(torch.ones(2)), TypeError, "got Sequence without"),
    (lambda: Contraction(2, 1.0), ValueError, "value strictly between 0 and 1"),
    (lambda: Predictive(2, Wide()), ValueError, r"outputs \(n, 2\), as z, got Wide"),
    (
        lambda: Predictive(2, nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))),
        ValueError,
        "treats rows one by one",
    ),
    (lambda: Predictive(2, nn.BatchNorm1d(2)), ValueError, "treats rows one by one"),
    (lambda: Predictive(2, nn.Linear(2, 2), LEARNED), ValueError, "start=math.inf"),
    (
        lambda: Predictive(2, nn.Linear(2, 2), LEARNED, LEARNED),
        ValueError,
        "fixed start beside a learned",
    ),
    (lambda: Predictive(2, nn.Linear(2, 2))(1), ValueError, "one view has no density"),
    (lambda: Predictive(2, nn.Linear(2, 2))(2).sample(), ValueError, "proper p"),
    (refused_mask, ValueError, "use priors.Sequence, or drop"),
    (
        lambda: Predictive(2, nn.Linear(2, 2)).pmi(torch.ones(1, 2), torch.ones(1, 2)),
        TypeError,
        "second view has a density",
    ),
)
