"""Neural objectives with linear networks have the closed forms as their optimum.

Views come in both orders, (x_1, x_2) and (x_2, x_1), so that each view has the moments
of all of them: those that `JointEmbeddingSSL` sees.
"""

import math

import numpy as np
import pytest
import torch
from helpers.linear import ExactFactors, exact
from numpy.testing import assert_allclose
from scipy.linalg import subspace_angles
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.likelihoods import Gaussian
from probssl.limits import VAE, WMSE, DenoisingAutoencoder, LogDet, VICReg
from probssl.linear import AdditiveNoise, JointEmbeddingSSL, ReconstructionSSL

pytestmark = pytest.mark.usefixtures("float64")
DIM, K, ITEMS = 8, 3, 200
OMEGA = [0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
# An angle costs its square in value: L-BFGS cannot see those below some 1e-8 to 1e-6.
CLOSE = 1e-5


def mixing() -> Tensor:
    """Of a good condition, so that L-BFGS needs few steps."""
    return torch.eye(DIM) + 0.2 * torch.randn(DIM, DIM)


def both_orders(clean: Tensor, views: Tensor) -> ps.Batch:
    return ps.Batch(torch.cat([views, views.flip(1)]), clean=clean.repeat(2, 1))


def drawn() -> ps.Batch:
    """Views with noise of any covariance, and means of their own."""
    clean = torch.randn(ITEMS, DIM) @ mixing() + torch.randn(DIM)
    noise = 0.7 * torch.randn(ITEMS, 2, DIM) @ mixing()
    return both_orders(clean, clean[:, None] + noise + torch.randn(DIM))


def correlated(omega: list[float]) -> ps.Batch:
    """Views whose canonical correlations are just these."""
    scores = torch.randn(ITEMS, 2 * DIM)
    scores = torch.linalg.qr(scores - scores.mean(0))[0] * math.sqrt(ITEMS)
    shared, own = scores.split(DIM, 1)
    shared = shared * ((1 + torch.tensor(omega)) / 2).sqrt()
    own = own * ((1 - torch.tensor(omega)) / 2).sqrt()
    mix = mixing()
    views = torch.stack([shared + own, shared - own], 1) @ mix
    return both_orders(shared @ mix, views)


def closed(
    kind: type[JointEmbeddingSSL] | type[ReconstructionSSL],
    batch: ps.Batch,
    k: int | None = K,
    **settings: object,
) -> JointEmbeddingSSL | ReconstructionSSL:
    """The closed form for these very views."""
    views = batch.views.numpy()
    estimator = kind(k, views=lambda _: views, n_views=2, **settings)
    return estimator.fit(batch.clean.numpy())


def maximised(objective: nn.Module, batch: ps.Batch) -> float:
    """The value where L-BFGS stops, all items in one batch."""
    optimizer = torch.optim.LBFGS(
        objective.parameters(),
        max_iter=2_000,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -torch.as_tensor(sum(objective(batch)))
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float(sum(objective(batch)))


def array(x: Tensor | np.ndarray) -> np.ndarray:
    return x.detach().numpy() if isinstance(x, Tensor) else x


def angle(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    """The largest angle between the rows of either."""
    return float(subspace_angles(array(a).T, array(b).T)[0])


# Joint embedding. Of linear z the alignment is -tr(W (S - G) W') up to constants, and
# these entropies depend on W S W' alone. Whatever W S W' is, the alignment is largest
# with rows of W in the leading eigenspace of (G, S).


def test_log_det_finds_the_joint_embedding():
    batch, encoder = drawn(), nn.Linear(DIM, K, bias=False)
    value = maximised(LogDet(encoder, scale=0.7, epsilon=0.0), batch)
    joint = closed(JointEmbeddingSSL, batch)
    assert angle(encoder.weight, joint.components_) < CLOSE
    other = closed(ReconstructionSSL, batch)
    assert angle(other.components_, joint.components_) > 0.1
    # Not S becomes white but S - G: given its content z has the variance scale².
    weight = array(encoder.weight)
    within = weight @ joint.moments_.within @ weight.T
    assert_allclose(within, 0.7**2 * np.eye(K), atol=1e-6)
    # Its covariances divide by n - 1, those of the closed form by n.
    unbiased = 0.5 * K * math.log(len(batch.views) / (len(batch.views) - 1))
    omega = joint.spectrum_[:K]
    assert_allclose(value - unbiased, -0.5 * np.log(2 * (1 - omega)).sum())
    below = 0.5 * np.log(2 / (1 + omega)).sum()
    assert_allclose(value - unbiased, joint.mutual_information() - below)


def test_whitened_views_find_the_joint_embedding():
    batch, encoder = drawn(), nn.Linear(DIM, K, bias=False)
    value = maximised(WMSE(encoder, normalise=False, epsilon=0.0), batch)
    joint = closed(JointEmbeddingSSL, batch)
    assert angle(encoder.weight, joint.components_) < CLOSE
    unbiased = (len(batch.views) - 1) / len(batch.views)
    constant = 0.5 * K * math.log(2 * math.e)
    assert_allclose(value, constant - joint.optimum_ * unbiased)


def test_vicreg_with_a_heavy_covariance_term_finds_the_joint_embedding():
    # z is not white: Var(z) is smaller the less its views agree.
    batch, encoder = correlated(OMEGA), nn.Linear(DIM, K, bias=False)
    maximised(VICReg(encoder, covariance=100.0), batch)
    joint = closed(JointEmbeddingSSL, batch)
    assert_allclose(joint.spectrum_, OMEGA)
    assert angle(encoder.weight, joint.components_) < CLOSE
    z = (array(batch.views) - joint.moments_.view_mean) @ array(encoder.weight).T
    scales = np.linalg.svd(z.reshape(-1, K), compute_uv=False)
    best = 1 / (4 * (1 - joint.spectrum_[:K]))
    # n - 1, and the 1e-4 that the hinge adds to a variance.
    assert_allclose(scales / math.sqrt(2 * len(z)), best, rtol=5e-3)


def test_vicreg_as_published_stays_within_the_joint_embedding_but_loses_a_direction():
    batch, encoder = correlated(OMEGA), nn.Linear(DIM, K, bias=False)
    value = maximised(VICReg(encoder), batch)
    joint = closed(JointEmbeddingSSL, batch)
    _, sizes, rows = np.linalg.svd(array(encoder.weight), full_matrices=False)
    # Two directions for three rows: its covariance term is too light for the third.
    assert (sizes > 1e-6 * sizes[0]).sum() == 2
    assert angle(rows[:2], joint.components_[:2]) < CLOSE
    # And that is better than the best with all three, uncorrelated.
    best = joint.components_ / (4 * (1 - joint.spectrum_[:K, None]))
    encoder.load_state_dict({"weight": torch.as_tensor(best)})
    assert value > sum(VICReg(encoder)(batch)) + 0.1


# Reconstruction.


@pytest.mark.parametrize("with_mean", [True, False])
def test_a_linear_denoising_autoencoder_is_reconstruction(with_mean):
    batch, scale = drawn(), 0.8
    encoder = nn.Linear(DIM, K, bias=False)
    decoder = nn.Linear(K, DIM, bias=with_mean)
    objective = DenoisingAutoencoder(encoder, decoder, Gaussian(scale))
    value = maximised(objective, batch)
    found = closed(ReconstructionSSL, batch, with_mean=with_mean)
    both = decoder.weight @ encoder.weight
    assert_allclose(array(both), found.decoder_ @ found.components_, atol=1e-6)
    constant = -0.5 * DIM * math.log(2 * math.pi * scale**2)
    assert_allclose(value, constant - found.optimum_ / (2 * scale**2))
    z = found.transform(array(batch.views[:, 0]))
    if with_mean:
        read = decoder(encoder(batch.views[:, 0]))
        assert_allclose(found.inverse_transform(z), array(read), atol=1e-5)


def test_uneven_noise_turns_both_away_from_the_principal_components():
    x = array(torch.randn(ITEMS, DIM) @ torch.randn(DIM, DIM))
    components = np.linalg.svd(x - x.mean(0))[2][:K]
    uneven = np.exp(array(torch.randn(DIM)))
    for kind in (JointEmbeddingSSL, ReconstructionSSL):
        found = kind(K, views=AdditiveNoise(uneven)).fit(x)
        assert angle(found.components_, components) > 0.01


# Probabilistic models.


class SharedContent(nn.Module):
    r"""Probabilistic canonical correlation analysis of exchangeable views.

    .. math:: p(y) = N(0, I), \qquad p(x_v \mid y) = N(W y + m, \Psi)
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(DIM))
        self.weight = nn.Parameter(torch.randn(DIM, K))
        self.root = nn.Parameter(2 * torch.eye(DIM))

    @property
    def noise(self) -> Tensor:
        return self.root @ self.root.T

    def forward(self, batch: ps.Batch) -> ps.Terms:
        shared = self.weight @ self.weight.T
        covariance = shared.repeat(2, 2) + torch.block_diag(self.noise, self.noise)
        mean = self.mean.repeat(2)
        density = MultivariateNormal(mean, covariance, validate_args=False)
        return ps.Terms(alignment=density.log_prob(batch.views.flatten(1)).mean())


def test_probabilistic_canonical_correlation_finds_the_joint_embedding():
    batch, model = correlated(OMEGA), SharedContent()
    value = maximised(model, batch)
    joint = closed(JointEmbeddingSSL, batch)
    # E[y | x_1, x_2] is (I + 2 W' Psi^-1 W)^-1 W' Psi^-1 (x_1 + x_2 - 2 m).
    posterior = torch.linalg.solve(model.noise, model.weight).T
    assert angle(posterior, joint.components_) < CLOSE
    total = joint.moments_.total
    model_total = model.weight @ model.weight.T + model.noise
    assert_allclose(array(model_total), total, atol=1e-5 * np.trace(total))
    # What a shared content adds to the likelihood is the mutual information.
    apart = -DIM * math.log(2 * math.pi * math.e) - np.linalg.slogdet(total)[1]
    assert_allclose(value - apart, joint.mutual_information())


def vae(weight: Tensor, noise: float) -> VAE:
    """With q(z|x) the exact posterior, which is diagonal where W'W is."""
    decoder = nn.Linear(K, DIM, bias=False)
    decoder.weight = nn.Parameter(weight)
    joint = ps.Joint(
        ps.priors.Independent(K),
        Gaussian(noise),
        ExactFactors(weight, noise),
        decoder,
        guide=exact(ps.guides.CoupledLikelihoods),
    )
    return VAE(joint)


def test_a_linear_vae_is_at_its_best_on_principal_components():
    x = torch.randn(ITEMS, DIM) @ torch.randn(DIM, DIM)
    x = x - x.mean(0)
    batch = ps.Batch(x[:, None])
    values, vectors = torch.linalg.eigh(x.T @ x / ITEMS)
    values, vectors = values.flip(0), vectors.flip(1)
    noise = values[K:].mean()
    weight = vectors[:, :K] * (values[:K] - noise).sqrt()
    # The largest evidence a linear-Gaussian model with isotropic noise can have.
    evidence = values[:K].log().sum() + (DIM - K) * noise.log()
    evidence = -0.5 * (evidence + DIM * math.log(2 * math.pi * math.e))
    scale = noise.sqrt().item()
    # At the exact posterior the bound is the same for every draw of z.
    assert_close(torch.as_tensor(sum(vae(weight, scale)(batch))), evidence)
    principal = ReconstructionSSL(K, views=AdditiveNoise(0.0)).fit(array(x))
    assert angle(weight.T, principal.components_) < 1e-10
    for _ in range(20):
        skew = torch.randn(DIM, DIM)
        turned = torch.linalg.matrix_exp(0.02 * (skew - skew.T)) @ weight
        assert sum(vae(turned, scale)(batch)) < evidence
        assert sum(vae(weight, scale * (1 + 0.1 * torch.randn(()).item()))(batch)) < (
            evidence
        )
