"""Each row of the table of limits as a theorem, and before them the inequality."""

import math
from itertools import permutations

import pytest
import torch
from helpers import catalogue
from helpers.catalogue import OBJECTIVES, batch
from helpers.checks import assert_same, value_and_grad
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.limits import CRVAE, VAE, Embedding, LogDet, SimVAE, VICReg
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")


class LinearGaussian:
    """x ~ N(0, C), q(z|x) = N(A x, S), p(x|z) = N(B z, R): all expectations closed."""

    def __init__(self) -> None:
        root = torch.randn(4, 4)
        self.x, self.encoder = root @ root.T + torch.eye(4), torch.randn(2, 4)
        self.noise = torch.tensor([0.3, 0.8]).diag()
        self.z = self.encoder @ self.x @ self.encoder.T + self.noise
        self.cross = self.x @ self.encoder.T

    def exact_decoder(self) -> tuple[Tensor, Tensor]:
        """p(x|z) = q(z|x) p(x) / q(z)."""
        weight = self.cross @ self.z.inverse()
        return weight, self.x - weight @ self.cross.T

    def reconstruction(self, weight: Tensor, residual: Tensor) -> Tensor:
        """E log p(x|z) for the decoder N(weight z, residual)."""
        error = self.x - weight @ self.cross.T - self.cross @ weight.T
        error = error + weight @ self.z @ weight.T
        trace = torch.linalg.solve(residual, error).trace()
        return -0.5 * (trace + (2 * math.pi * residual).logdet())


def entropy(covariance: Tensor) -> Tensor:
    return MultivariateNormal(torch.zeros(len(covariance)), covariance).entropy()


def test_inequality_is_an_equality_at_the_exact_decoder():
    model = LinearGaussian()
    left = model.reconstruction(*model.exact_decoder()) + entropy(model.noise)
    assert_close(left, entropy(model.z) - entropy(model.x))


def test_inequality_is_strict_by_the_divergence_from_a_wrong_decoder():
    model = LinearGaussian()
    weight, residual = model.exact_decoder()
    wrong, wide = weight + 0.1 * torch.randn(4, 2), 1.3 * residual
    left = model.reconstruction(wrong, wide) + entropy(model.noise)
    shift = (weight - wrong) @ model.z @ (weight - wrong).T
    divergence = 0.5 * (
        torch.linalg.solve(wide, residual + shift).trace()
        - 4
        + wide.logdet()
        - residual.logdet()
    )
    assert divergence > 0.01
    assert_close(entropy(model.z) - entropy(model.x) - left, divergence)


def test_elbo_is_below_alignment_plus_entropies_minus_those_of_the_data():
    """The bridge for a whole joint with two views, equality at the exact decoder."""
    model = LinearGaussian()
    prior = ps.priors.Gaussian(2, 0.6)
    share = torch.cat([model.z, 0.4 * model.z, 0.4 * model.z, model.z], 1)
    both = torch.cat(
        [share[:, :4], share[:, 4:]]
    )  # any Cov(z_1, z_2) with equal blocks
    prior_covariance = torch.kron(0.36 * torch.eye(2) + 1.0, torch.eye(2))
    alignment = -0.5 * (
        torch.linalg.solve(prior_covariance, both).trace()
        + (2 * math.pi * prior_covariance).logdet()
    )
    n = 200_000
    z = MultivariateNormal(torch.zeros(4), both).sample((n,)).view(n, 2, 2)
    sampled = prior.log_prob(z)
    assert abs(sampled.mean() - alignment) < 5 * sampled.std() / math.sqrt(n)
    bound = alignment + 2 * entropy(model.z) - 2 * entropy(model.x)
    for decoder, gap in ((model.exact_decoder(), 0.0), ((model.cross, model.x), 1e-2)):
        elbo = alignment
        elbo = elbo + 2 * (model.reconstruction(*decoder) + entropy(model.noise))
        assert bound - elbo >= gap - 1e-9
        assert gap or abs(bound - elbo) < 1e-9


def vicreg(a: Tensor, b: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """The loss as in the authors' code, on the output of the expander."""
    (n, dim), (invariance, variance, covariance) = a.shape, weights
    loss = invariance * (a - b).square().mean()
    for z in (a, b):
        z = z - z.mean(0)
        loss = loss + variance * (1 - (z.var(0) + 1e-4).sqrt()).relu().mean() / 2
        sigma = z.T @ z / (n - 1)
        loss = loss + covariance * (sigma - sigma.diag().diag()).square().sum() / dim
    return loss


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (10.0, 15.0, 3.0)])
def test_vicreg_is_minus_its_loss_times_d_over_its_variance_weight(weights):
    values = []
    for _ in range(2):
        z = (0.7 * torch.randn(9, 2, 4)).requires_grad_()
        invariance, variance, covariance = weights
        objective = VICReg(
            nn.Identity(),
            invariance=invariance,
            variance=variance,
            covariance=covariance,
        )
        ours, grad = value_and_grad(sum(objective(Batch(z))), z)
        plain, expected = value_and_grad(vicreg(z[:, 0], z[:, 1], weights), z)
        assert_close(grad, -4 / variance * expected, rtol=1e-10, atol=1e-10)
        values.append(ours + 4 / variance * plain)
    assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    # The constant: log N(0; 0, 2 s²) and the entropy of a unit normal.
    s = variance / (4 * invariance)
    constant = -2 * math.log(4 * math.pi * s) + 2 * math.log(2 * math.pi * math.e)
    assert_close(values[0], torch.tensor(constant))


def test_published_vicreg_has_variance_a_quarter_and_a_third_of_the_covariance_weight():
    objective = VICReg(nn.Identity())
    assert_close(objective.prior.scale().square(), torch.tensor(0.25))
    assert_close(0.25 / objective.entropy.covariance, 3.125)


def test_log_det_is_a_distance_and_a_log_determinant():
    z, scale = torch.randn(9, 2, 4, requires_grad=True), 0.7
    ours = sum(LogDet(nn.Identity(), scale=scale, epsilon=0.0)(Batch(z)))
    distance = (z[:, 0] - z[:, 1]).square().sum(-1).mean()
    sigma = [torch.cov(z[:, v].T).logdet() for v in (0, 1)]
    constant = -2 * math.log(4 * math.pi * scale**2) + 2 * math.log(
        2 * math.pi * math.e
    )
    plain = -distance / (4 * scale**2) + (sigma[0] + sigma[1]) / 4 + constant
    assert_same(ours, plain, z)


@pytest.mark.parametrize("views", [2, 3, 5])
def test_log_det_does_not_move_when_z_and_scale_are_stretched_together(views):
    z = torch.randn(9, views, 4)
    once = sum(LogDet(nn.Identity(), scale=0.7, epsilon=0.0)(Batch(z)))
    wide = sum(LogDet(nn.Identity(), scale=2.1, epsilon=0.0)(Batch(3 * z)))
    assert_close(wide, once)


def test_spherical_elbo_is_below_the_evidence_and_has_gradients():
    joint = ps.Joint(
        ps.priors.Spherical(3, ps.learned(20.0)),
        ps.likelihoods.Gaussian(0.5),
        ps.nn.MLPEncoder((5,), 3, hidden=(8,)),
        ps.nn.MLPDecoder(3, (5,), hidden=()),
        guide=ps.guides.PowerSpherical,
    )
    batch = Batch(torch.randn(1, 2, 5))
    joint.check(batch)
    n = 200_000
    with torch.no_grad():
        z = joint.prior(2).sample((n,))
        log_likelihood = joint.decode(z).log_prob(batch.views).sum(-1)
        weight = (log_likelihood - log_likelihood.max()).exp()
        evidence = weight.mean().log() + log_likelihood.max()
        error = weight.std() / weight.mean() / math.sqrt(n)
        elbo = ps.bounds.log_weights(joint, batch, n).local().squeeze(1)
    effective = 1 / elbo.softmax(0).square().sum()
    importance = elbo.logsumexp(0) - math.log(n)
    assert effective > 20
    assert abs(importance - evidence) < 5 * (error + effective.rsqrt())
    assert elbo.mean() < evidence - 1
    sum(ps.bounds.ELBO()(joint, batch)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in joint.parameters())


def joint(prior: ps.priors.Prior) -> ps.Joint:
    return catalogue.joint(prior, ps.likelihoods.Gaussian(0.4), event=5)


def test_simvae_tends_to_the_vae_at_second_order_as_the_content_vanishes():
    batch, vae = Batch(torch.randn(6, 2, 5)), VAE(joint(ps.priors.Independent(3)))
    gaps = []
    for y_scale in (1e-2, 1e-3):
        scale = math.sqrt(1 - y_scale**2)
        simvae = SimVAE(joint(ps.priors.Gaussian(3, scale, y_scale)))
        state = vae.joint.state_dict()
        simvae.joint.load_state_dict(state, strict=False)
        values = []
        for objective in (simvae, vae):
            torch.manual_seed(5)
            values.append(sum(objective(batch)))
        gaps.append(values[0] - values[1])
    assert_close(gaps[0] / gaps[1], torch.tensor(100.0), rtol=1e-2, atol=0)


def test_cr_vae_is_simvae_up_to_a_constant_for_posteriors_of_one_covariance():
    """Sampled, with the standard error of a squared distance of normal samples."""
    r, s, n, batch = 0.6, 0.3, 4000, Batch(torch.randn(2, 2, 5))
    model = joint(ps.priors.Independent(3))
    head = model.posterior.factors.spread
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, math.log(math.expm1(s - 1e-4)))
    crvae = CRVAE(model, weight=r * s**2 / (1 - r), bound=ps.bounds.ELBO(n))
    prior = ps.priors.Gaussian(3, ((1 - r) / (1 + r)) ** 0.5, (r / (1 + r)) ** 0.5)
    simvae = SimVAE(joint(prior), bound=ps.bounds.ELBO(n))
    simvae.joint.load_state_dict(model.state_dict(), strict=False)
    values = []
    for objective in (simvae, crvae):
        torch.manual_seed(5)
        values.append(sum(objective(batch)).detach())
    constant = 1.5 * math.log((1 + r) / (1 - r)) - r * 3 * s**2 / (1 - r)
    mean = model.posterior.each(batch.views).mean
    distance = (mean[:, 0] - mean[:, 1]).square().sum(-1)
    variance = (8 * s**2 * distance + 2 * 3 * (2 * s**2) ** 2).mean() / (2 * n)
    error = r / (2 * (1 - r)) * variance.sqrt()
    assert abs(values[0] - values[1] - constant) < 5 * error < 0.05


def test_the_penalty_of_cr_vae_is_the_mean_divergence_of_both_orders():
    batch, model = Batch(torch.randn(6, 3, 5)), joint(ps.priors.Independent(3))
    nn.init.normal_(model.posterior.factors.spread.weight)
    q = model.posterior.each(batch.views)
    m, s = q.base_dist.loc, q.base_dist.scale
    total = 0.0
    for v, w in permutations(range(3), 2):  # KL(q_w ‖ q_v), of every dimension
        ratio = (s[:, w] / s[:, v]).square()
        shift = ((m[:, w] - m[:, v]) / s[:, v]).square()
        total += (ratio + shift - 1 - ratio.log()).sum(-1).mean() / 2
    torch.manual_seed(5)
    found = CRVAE(model, weight=0.7)(batch)
    torch.manual_seed(5)
    plain = VAE(model)(batch)
    assert_close(found.penalty, -0.7 * total / 6)
    for name in ("reconstruction", "entropy", "alignment"):
        assert_close(getattr(found, name), getattr(plain, name))


def test_cr_vae_moves_batch_norm_once_and_refuses_what_has_no_divergence():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    networks = ps.nn.Encoder(net, 4, 3), ps.nn.MLPDecoder(3, (5,))
    likelihood, prior = ps.likelihoods.Gaussian(0.5), ps.priors.Independent(3)
    objective = CRVAE(ps.Joint(prior, likelihood, *networks))
    objective(Batch(torch.randn(6, 2, 5)))
    assert net[1].num_batches_tracked == 1
    flow = ps.Joint(prior, likelihood, *networks, guide=ps.guides.FullGaussian)
    batch = Batch(torch.randn(6, 2, 5))
    for call in (CRVAE(flow), CRVAE(flow).check):
        with pytest.raises(ValueError, match="use guides.DiagonalGaussian"):
            call(batch)
    with pytest.raises(ValueError, match="at least 2 views of each item, got 1"):
        objective(Batch(torch.randn(6, 1, 5)))
    with pytest.raises(ValueError, match="absent views"):
        objective(batch._replace(present=torch.ones(6, 2).bool()))
    with pytest.raises(
        ValueError, match="independent views for CRVAE, got the prior G"
    ):
        CRVAE(joint(ps.priors.Gaussian(3)))
    with pytest.raises(ValueError, match="weight"):
        CRVAE(objective.joint, weight=-1.0)


def test_beta_weights_the_divergence_alone():
    batch, model = Batch(torch.randn(6, 1, 5)), joint(ps.priors.Independent(3))
    terms = []
    for beta in (1.0, 4.0):
        torch.manual_seed(5)
        terms.append(VAE(model, beta=beta)(batch))
    assert_close(terms[1].reconstruction, terms[0].reconstruction)
    assert_close(terms[1].entropy, 4 * terms[0].entropy)
    assert_close(terms[1].alignment, 4 * terms[0].alignment)


def test_any_prior_and_entropy_make_an_objective():
    prior, z = ps.priors.Gaussian(4, 0.5), torch.randn(7, 3, 4)
    objective = Embedding(nn.Identity(), prior, ps.entropies.LogDeterminant())
    terms = objective(Batch(z))
    assert_close(terms.alignment, prior.log_prob(z).mean())
    # A proper p(y) is balanced by one entropy for each view.
    assert_close(terms.entropy, 3 * ps.entropies.LogDeterminant()(z))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_obeys_the_laws(name):
    """The order of items and of views, corner cases, precision, state, tracing, …"""
    ps.testing.check_objective(OBJECTIVES[name](), batch(), repeats=10)


def untruthful(net: nn.Module) -> nn.Module:
    """Make the truth value of a network an error, as that of `torch.compile`."""

    def length(self: nn.Module) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    net.__class__ = type("Untruthful", (type(net),), {"__len__": length})
    return net


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_truth_value_of_networks_is_not_asked_for(name, monkeypatch):
    found = []
    for truthful in (True, False):
        if not truthful:
            for part in ("encoder", "projector"):
                make = getattr(catalogue, part)
                made = lambda *args, make=make: untruthful(make(*args))  # noqa: E731
                monkeypatch.setattr(catalogue, part, made)
        torch.manual_seed(0)
        objective = OBJECTIVES[name]()
        value = sum(objective(batch()))
        z = objective.eval().represent(batch().clean, layer="projector")
        found.append((value.detach(), z.detach()))
    assert_close(*found)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("method", [ps.limits.SimCLR, ps.limits.SimSiam])
def test_a_compiled_projector_is_one(method):
    projector = torch.compile(catalogue.projector(), backend="eager")
    objective = method(catalogue.encoder(), projector).eval()
    x = batch().clean
    z = objective.represent(x, layer="projector")
    assert torch.equal(z, projector(objective.represent(x)))


class Sequences(nn.Module):
    """An encoder of sequences (n, time, 2) by a layer that is given as torch has it."""

    def __init__(self, kind: str, batch_first: bool) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        if kind == "attention":
            one = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=batch_first)
            self.layer = nn.TransformerEncoder(one, 1, enable_nested_tensor=False)
        else:
            self.layer = getattr(nn, kind)(4, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.lift(x))
        return self.head((h if isinstance(h, Tensor) else h[0]).mean(1))


def of_sequences(name: str, encoder: nn.Module) -> nn.Module:
    decoder = nn.Sequential(nn.Linear(3, 10), nn.Unflatten(1, (5, 2)))
    parts, gaussian = (encoder, decoder), ps.likelihoods.Gaussian(0.5)
    if name == "Joint":
        return ps.Joint(ps.priors.Gaussian(3, 1.0), gaussian, *parts)
    if name == "MaskedAutoencoder":
        return ps.limits.MaskedAutoencoder(*parts, gaussian, patch=1)
    if name == "DenoisingAutoencoder":
        return ps.limits.DenoisingAutoencoder(*parts, gaussian)
    return getattr(ps.limits, name)(encoder)


@pytest.mark.parametrize("kind", ["GRU", "LSTM", "attention"])
@pytest.mark.parametrize(
    "name", ["SimCLR", "WMSE", "Joint", "DenoisingAutoencoder", "MaskedAutoencoder"]
)
def test_items_are_no_points_of_time(name, kind):
    x = torch.randn(9, 2, 5, 2)
    batch = Batch(x, clean=x[:, 0])
    of_sequences(name, Sequences(kind, batch_first=True)).check(batch)
    with pytest.raises(ValueError, match="batch_first=True"):
        of_sequences(name, Sequences(kind, batch_first=False)).check(batch)


def test_networks_that_draw_or_mix_in_training_alone_are_not_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(())

    x = Batch(torch.randn(9, 2, 4))
    norm = nn.BatchNorm1d(3)
    for net in (Noisy(4, 3), nn.Sequential(nn.Linear(4, 3), norm, nn.Dropout(0.5))):
        ps.limits.SimCLR(net).check(x)
        assert net.training
    assert norm.num_batches_tracked == 0
    ps.limits.SimCLR(nn.Linear(4, 3).eval()).check(Batch(1e6 + torch.randn(2, 2, 4)))
    ps.limits.SimCLR(nn.Identity()).check(x)


def test_overridden_layers_are_what_represents_items():
    class Standardised(ps.limits.SimCLR):
        def layers(self, views, present=None):
            return super().layers((views - 100) / 5, present)

    objective = Standardised(nn.Linear(4, 3), nn.Linear(3, 2))
    x = 100 + 5 * torch.randn(6, 4)
    for layer, place in (("backbone", 0), ("projector", 1)):
        z = objective.layers(x[:, None])[place].squeeze(1).detach().numpy()
        assert_close(ps.embed(objective, x, layer=layer), z)
    for build in (ps.limits.BYOL, ps.limits.MoCo):
        own = type("Own", (build,), {"layers": Standardised.layers})
        with pytest.raises(TypeError, match="put it into the encoder"):
            own(nn.Linear(4, 3), nn.Identity(), dim=3)


def test_overridden_latents_need_an_own_representation_of_items():
    def latents(self, batch):
        return super(type(self), self).latents(batch._replace(views=-batch.views))

    own = type("Own", (ps.limits.SimCLR,), {"latents": latents})
    objective, x = own(nn.Linear(4, 3)), torch.randn(6, 4)
    assert objective(Batch(torch.randn(6, 2, 4))).alignment.isfinite()
    for call in (ps.embed, lambda o, x: ps.limits.PID(o, 3, 6).represent(x)):
        with pytest.raises(TypeError, match="latents"):
            call(objective, x)
    for build in (ps.limits.BYOL, ps.limits.MoCo):
        with pytest.raises(TypeError, match="whose latents are overridden"):
            type("Own", (build,), {"latents": latents})(nn.Linear(4, 3))
    own.represent = lambda self, x, layer="backbone": self.encoder(-x)
    assert_close(ps.embed(objective, x), objective.encoder(-x).detach().numpy())


@pytest.mark.parametrize("build", [ps.limits.SimCLR, ps.limits.WMSE])
def test_one_encoder_of_two_modalities_represents_by_the_mean(build):
    objective = build(nn.Linear(4, 3))
    a, b = torch.randn(2, 6, 4)
    z = (objective.encoder(a) + objective.encoder(b)) / 2
    assert_close(ps.embed(objective, (a, b)), z.detach().numpy())
