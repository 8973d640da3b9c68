"""Swaps, traversals, interpolations and views of a content, against closed forms."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.catalogue import DIM, EVENT, decoder, encoder, joint, spherical_joint
from scipy.linalg import expm
from scipy.stats import kstest, norm
from torch import Tensor
from torch.testing import assert_close

import probssl as ps
from probssl.data import groups
from probssl.distributions import VonMisesFisher
from probssl.posterior import style

pytestmark = pytest.mark.usefixtures("float64")
NOISE, SCALE, Y_SCALE = 0.4, 0.6, 1.3


def x(n: int = 4) -> Tensor:
    return torch.randn(n, EVENT)


def means(model: ps.Joint, data: Tensor) -> np.ndarray:
    """The representations on the support of z."""
    z = torch.from_numpy(ps.embed(model, data))
    return model.prior.centre(z).numpy()


def decoded(model: ps.Joint, z: np.ndarray) -> np.ndarray:
    lead = torch.from_numpy(z).flatten(0, -2).unsqueeze(1)
    mean = model.decode(lead).mean.detach().numpy()
    return mean.reshape(*z.shape[:-1], EVENT)


# Swaps


def test_a_swap_is_the_residual_added_to_the_content():
    model, a, b = joint(ps.priors.Gaussian(DIM, SCALE, Y_SCALE)), x(3), x(4)
    share = Y_SCALE**2 / (Y_SCALE**2 + SCALE**2)  # E[y|z] = share z
    z_a, z_b = means(model, a), means(model, b)
    found = ps.swap(model, a, b)
    expected = share * z_a[:, None] + (1 - share) * z_b[None]
    np.testing.assert_allclose(found.z, expected)
    np.testing.assert_allclose(found.x, decoded(model, expected))


def test_a_swap_keeps_the_style_dimensions_and_splits_those_of_the_content():
    model = joint(ps.priors.ContentStyle(2, 1, SCALE))
    a, b = x(3), x(2)
    z_a, z_b = means(model, a)[:, None], means(model, b)[None]
    found, share = ps.swap(model, a, b).z, 1 - SCALE**2
    np.testing.assert_allclose(found[..., 2], np.broadcast_to(z_b[..., 2], (3, 2)))
    expected = share * z_a[..., :2] + (1 - share) * z_b[..., :2]
    np.testing.assert_allclose(found[..., :2], expected)


def test_a_swap_of_components_has_the_mean_and_scale_of_the_other():
    a, b, scales = x(6), x(5), torch.tensor([0.05, 0.1, 0.2])
    parts = ps.priors.Components(DIM, 3, own_scales=True)
    model = joint(ps.priors.Mixture(DIM, parts, 1.0))
    z_a, z_b = means(model, a), means(model, b)
    parts.loc.data = torch.from_numpy(z_a[:3])  # components are those of some items
    parts.log_scale.data = scales.log().unsqueeze(-1)
    near, deviation = z_a[:3], scales.numpy()
    k_a, k_b = (
        norm(near, deviation[:, None]).logpdf(z[:, None]).sum(-1).argmax(1)
        for z in (z_a, z_b)
    )
    assert len(set(k_a)) == 3
    noise = (z_b - near[k_b]) / deviation[k_b, None]
    expected = near[k_a][:, None] + deviation[k_a, None, None] * noise[None]
    np.testing.assert_allclose(ps.swap(model, a, b).z, expected)


def test_a_swap_on_the_sphere_turns_the_views_in_the_plane_of_the_contents():
    model, data = spherical_joint(), [torch.randn(3, 2, EVENT) for _ in range(2)]
    z_a, z_b = (means(model, v.flatten(0, 1)).reshape(3, 2, DIM) for v in data)
    y_a, y_b = (
        v.sum(1) / np.linalg.norm(v.sum(1), axis=1)[:, None] for v in (z_a, z_b)
    )
    found = ps.swap(model, *(groups(v.numpy()) for v in data))
    assert found.x.shape == (3, 3, 2, EVENT)
    for i, j in np.ndindex(3, 3):
        turn = np.outer(y_a[i], y_b[j]) - np.outer(y_b[j], y_a[i])
        sine = np.linalg.norm(turn) / math.sqrt(2)
        angle = math.atan2(sine, y_a[i] @ y_b[j])
        rotation = expm(angle / sine * turn)
        np.testing.assert_allclose(rotation @ y_b[j], y_a[i], atol=1e-12)
        np.testing.assert_allclose(found.z[i, j], z_b[j] @ rotation.T, atol=1e-12)


def content_and_residual(model: ps.Joint, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (y, e) given x = W (y + e) + noise, both in one vector."""
    weight = model.decoder.weight.detach()
    both = torch.cat([weight, weight], 1) / NOISE
    precision = torch.tensor([Y_SCALE, Y_SCALE, SCALE, SCALE]).pow(-2).diag()
    covariance = (precision + both.T @ both).inverse()
    return x @ both @ covariance / NOISE, covariance


def test_drawn_swaps_have_the_posterior_of_content_and_residual():
    prior, n = ps.priors.Gaussian(2, SCALE, Y_SCALE), 20_000
    model = linear.linear_gaussian(prior, EVENT, NOISE)
    a, b = x(2), x(3)
    found = torch.from_numpy(ps.swap(model, a, b, draws=n).z)
    mean_a, covariance = content_and_residual(model, a)
    mean_b, _ = content_and_residual(model, b)
    mean = mean_a[:, None, :2] + mean_b[None, :, 2:]
    total = covariance[:2, :2] + covariance[2:, 2:]
    error = (total.diagonal() / n).sqrt()
    assert ((found.mean(0) - mean).abs() < 5 * error).all()
    apart = found - found.mean(0)
    spread = torch.einsum("nabi,nabj->abij", apart, apart) / n
    variance = total.diagonal()
    bound = ((total.square() + variance[:, None] * variance) / n).sqrt()
    assert ((spread - total).abs() < 5 * bound).all()


PRIORS = {
    "Gaussian": lambda: ps.priors.Gaussian(2, SCALE, Y_SCALE),
    "ContentStyle": lambda: ps.priors.ContentStyle(1, 1, SCALE),
    "TwoTier": lambda: ps.priors.TwoTier(2, 3, SCALE, 0.7),
    "Mixture": lambda: ps.priors.Mixture(2, 3, SCALE),
    "Spherical": lambda: ps.priors.Spherical(3, 5.0),
    "Custom": lambda: ps.priors.Custom(lambda y: dist.Laplace(y, SCALE).to_event(1), 2),
    "CustomStates": lambda: ps.priors.Custom(
        lambda k: dist.Normal(
            torch.tensor([[-1.0, 2.0], [0.5, 0.0]])[k], 0.5 + k.unsqueeze(-1)
        ).to_event(1),
        2,
        y_prior=dist.Categorical(torch.tensor([0.3, 0.7])),
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_swaps_of_draws_of_the_prior_have_its_distribution(name):
    prior, n = PRIORS[name](), 400 if name == "Custom" else 4_000
    kind = ps.guides.PowerSpherical if name == "Spherical" else ps.guides.Point
    model = joint(prior, guide=kind)
    with torch.no_grad():
        a, b, other = (prior(1).sample((n,)) for _ in range(3))
        y_a, y_b, y = (style._content(model, z, drawn=True) for z in (a, b, other))
        axes = style._axes_of_y(prior)
        p_a, p_b, p = (
            style._given(prior, v.unsqueeze(-1 - axes)) for v in (y_a, y_b, y)
        )
        found = style._moved(b, p_b, p_a)
        assert_close(p_a.log_prob(found).shape, torch.Size((n, 1)))
        pairs = [(p_a.log_prob(found), p.log_prob(p.sample()))]
    pairs += [(found @ v, other @ v) for v in torch.randn(4, found.shape[-1])]
    for one, two in pairs:
        assert kstest(one.flatten().numpy(), two.flatten().numpy()).pvalue > 1e-6


class Tilted(dist.Normal):
    """A density of its own: a subclass of a normal is no normal."""

    def log_prob(self, value):
        tilt = torch.special.log_ndtr((value - self.loc) / self.scale)
        return super().log_prob(value) + tilt + math.log(2)


def test_swaps_are_refused_where_style_is_no_residual():
    a = x(2)
    refused = {
        "dependent given it": joint(ps.priors.StudentT(DIM)),
        "no content": joint(ps.priors.Independent(DIM)),
        "flat": joint(ps.priors.Gaussian(DIM, 1.0, math.inf)),
        "with a residual": joint(
            ps.priors.Custom(lambda y: dist.StudentT(5.0, y, 1.0).to_event(1), DIM)
        ),
        "give draws=100": spherical_joint(),
    }
    for words, model in refused.items():
        with pytest.raises(ValueError, match=words):
            ps.swap(model, a, a)
    with pytest.raises(ValueError, match="joint distribution for a swap"):
        ps.swap(ps.limits.SimCLR(encoder()), a, a)
    with pytest.raises(ValueError, match="guide with a density"):
        ps.swap(joint(ps.priors.Gaussian(DIM), guide=ps.guides.Point), a, a, draws=3)
    left = dist.Normal(torch.zeros(DIM), 1.0)
    with pytest.raises(ValueError, match="with a residual.*got Tilted"):
        style._moved(left.loc, Tilted(left.loc, 1.0), Tilted(left.loc, 1.0))
    one, two = (
        VonMisesFisher(loc, torch.tensor(k))
        for loc, k in zip(torch.eye(3)[:2], (5.0, 6.0), strict=True)
    )
    with pytest.raises(ValueError, match="of one concentration"):
        style._moved(torch.eye(3)[:1], one, two)
    opposite = torch.eye(3)[:1]
    with pytest.raises(ValueError, match="not opposite"):
        style._turned(opposite, opposite, -opposite)


def test_a_swap_takes_the_content_of_its_own_guide():
    prior = ps.priors.Gaussian(DIM, SCALE, Y_SCALE)
    model, a, b = joint(prior, content=ps.guides.Content(DIM)), x(3), x(2)
    z_a, z_b = (torch.from_numpy(means(model, v)).unsqueeze(1) for v in (a, b))
    with torch.no_grad():
        y_a, y_b = model.content(z_a).mean, model.content(z_b).mean
    expected = y_a[:, None] + (z_b.squeeze(1) - y_b)[None]
    assert_close(torch.from_numpy(ps.swap(model, a, b).z), expected)
    n = 4_000
    drawn = torch.from_numpy(ps.swap(model, a[:1], b[:1], draws=n).z)[:, 0, 0]
    with torch.no_grad():
        one, two = (model.alone(v[:1]).sample((n,)) for v in (a, b))
        again = (
            model.content(one).sample() + two[..., 0, :] - model.content(two).sample()
        )
    for i in range(DIM):
        assert kstest(drawn[:, i].numpy(), again[:, 0, i].numpy()).pvalue > 1e-6


# Traversals and interpolations


def test_a_traversal_moves_one_dimension():
    model, data = joint(ps.priors.Gaussian(DIM)), x(2)
    z, found = means(model, data), ps.traverse(model, data, [2, 0], values=[-1.0, 3.0])
    expected = np.broadcast_to(z[:, None, None], (2, 2, 2, DIM)).copy()
    expected[:, 0, :, 2] = expected[:, 1, :, 0] = [-1.0, 3.0]
    np.testing.assert_allclose(found.z, expected)
    np.testing.assert_allclose(found.x, decoded(model, expected))
    assert ps.traverse(model, data).z.shape == (2, DIM, 7, DIM)


def test_a_traversal_of_a_sphere_stays_on_it_and_on_the_great_circle():
    model, data = spherical_joint(), x(2)
    z, found = means(model, data), ps.traverse(model, data, values=[-0.5, 0.0, 0.7]).z
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)
    for i, d in np.ndindex(2, DIM):
        np.testing.assert_allclose(found[i, d, :, d], [-0.5, 0.0, 0.7], atol=1e-12)
        rest = np.delete(found[i, d], d, 1)
        rest /= np.linalg.norm(rest, axis=1, keepdims=True)
        before = np.delete(z[i], d)
        expected = np.broadcast_to(before / np.linalg.norm(before), rest.shape)
        np.testing.assert_allclose(rest, expected)


def test_an_interpolation_is_a_line():
    model, a, b = joint(ps.priors.Gaussian(DIM)), x(3), x(3)
    found, t = ps.interpolate(model, a, b, 5), np.linspace(0, 1, 5)[:, None]
    expected = (1 - t) * means(model, a)[:, None] + t * means(model, b)[:, None]
    np.testing.assert_allclose(found.z, expected)
    np.testing.assert_allclose(found.x, decoded(model, found.z))


def test_an_interpolation_on_a_sphere_has_equal_steps_of_a_great_circle():
    model, a, b = spherical_joint(), x(3), x(3)
    found = ps.interpolate(model, a, b, 6).z
    z_a, z_b = means(model, a), means(model, b)
    np.testing.assert_allclose(found[:, 0], z_a)
    np.testing.assert_allclose(found[:, -1], z_b)
    for i in range(3):
        angle = math.acos(z_a[i] @ z_b[i])
        steps = np.arccos((found[i, 1:] * found[i, :-1]).sum(-1))
        np.testing.assert_allclose(steps, angle / 5)
        assert np.linalg.matrix_rank(found[i], tol=1e-9) == 2
    np.testing.assert_allclose(ps.interpolate(model, a, a, 3).z[:, 1], z_a)


def test_traversals_and_interpolations_are_refused_with_a_way_out():
    model, sphere, data = joint(ps.priors.Gaussian(DIM)), spherical_joint(), x(2)
    for words, options in {
        "from 0 to 2": {"dims": [3]},
        "at least one dimension": {"dims": []},
        "finite numbers": {"values": [math.nan]},
    }.items():
        with pytest.raises(ValueError, match=words):
            ps.traverse(model, data, **options)
    with pytest.raises(ValueError, match="from -1 to 1"):
        ps.traverse(sphere, data, values=[1.5])
    with pytest.raises(ValueError, match="as many items"):
        ps.interpolate(model, data, x(3))
    with pytest.raises(ValueError, match="at least 2"):
        ps.interpolate(model, data, data, 1)
    with pytest.raises(ValueError, match="not opposite"):
        style._great_circle(torch.eye(3)[:1], -torch.eye(3)[:1], torch.ones(1))


class LogNormal(ps.guides.Guide):
    """A q(z|x) of positive numbers."""

    support = dist.constraints.independent(dist.constraints.positive, 1)

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def each(self, x: Tensor, present: Tensor | None = None) -> dist.TorchDistribution:
        loc = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return dist.LogNormal(loc, 0.3).to_event(1)


def test_a_traversal_stays_where_z_has_a_density():
    prior = ps.priors.Custom(
        lambda y: dist.Gamma(torch.full_like(y, 5.0), 5.0 / y).to_event(1),
        DIM,
        y_prior=dist.Gamma(torch.full((DIM,), 3.0), 3.0).to_event(1),
    )
    model, data = joint(prior, guide=LogNormal), x(2)
    with pytest.raises(ValueError, match="numbers of at least 0, got from -2 to"):
        ps.traverse(model, data)
    found = ps.traverse(model, data, values=[0.5, 1.0]).z
    assert (found[:, 1, :, 1] == [0.5, 1.0]).all()


# Views of a content


def test_generated_views_have_the_moments_of_p_x_given_y():
    prior, n = ps.priors.Gaussian(2, SCALE, Y_SCALE), 20_000
    model, y = linear.linear_gaussian(prior, EVENT, NOISE), torch.tensor([0.7, -1.1])
    weight = model.decoder.weight.detach()
    for mean in (True, False):
        drawn = ps.generate(model, y.expand(n, 2), views=2, mean=mean).x
        assert drawn.shape == (n, 2, EVENT)
        drawn = torch.from_numpy(drawn).flatten(1)
        noise = 0.0 if mean else NOISE**2
        one = SCALE**2 * weight @ weight.T + noise * torch.eye(EVENT)
        covariance, loc = torch.block_diag(one, one), (weight @ y).repeat(2)
        variance = covariance.diagonal()
        assert ((drawn.mean(0) - loc).abs() < 5 * (variance / n).sqrt()).all()
        bound = ((covariance.square() + variance[:, None] * variance) / n).sqrt()
        assert ((drawn.T.cov() - covariance).abs() < 5 * bound).all()


def test_views_are_generated_from_contents_of_every_kind():
    with torch.no_grad():
        mixture = joint(ps.priors.Mixture(2, 3, 0.01))
        found = ps.generate(mixture, [2, 0], views=4)
        assert found.x.shape == (2, 4, EVENT)
        gap = found.z - mixture.prior.components()[0][[2, 0]].numpy()[:, None]
        assert np.abs(gap).max() < 0.05
        states = joint(PRIORS["CustomStates"]())
        assert ps.generate(states, np.array([1, 0, 1])).z.shape == (3, 1, 2)
        z = torch.from_numpy(ps.generate(spherical_joint(), torch.eye(3), views=9).z)
        assert_close(z.norm(dim=-1), torch.ones(3, 9))
        styled = joint(ps.priors.ContentStyle(2, 1, 0.2))
        assert ps.generate(styled, torch.zeros(5, 2)).x.shape == (5, 1, EVENT)


class Levels(dist.TorchDistribution):
    """A discrete y whose values are not 0, 1, …"""

    arg_constraints, has_enumerate_support = {}, True
    support = torch.distributions.constraints.integer_interval(2, 7)
    values, shares = torch.tensor([2, 3, 7]), torch.tensor([0.2, 0.3, 0.5])

    def __init__(self):
        super().__init__(validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return self

    def sample(self, shape=torch.Size()):
        drawn = torch.multinomial(self.shares, max(1, torch.Size(shape).numel()), True)
        return self.values[drawn].reshape(shape)

    def log_prob(self, y):
        same = y.unsqueeze(-1) == self.values
        return torch.where(same, self.shares.log(), -math.inf).amax(-1)

    def enumerate_support(self, expand=True):
        return self.values


def around(y: Tensor) -> dist.TorchDistribution:
    return dist.Normal(y.unsqueeze(-1).expand(*y.shape, DIM) + 0.0, 0.05).to_event(1)


def test_draws_of_a_discrete_content_are_contents_to_generate_from():
    bits = dist.Bernoulli(torch.full((DIM,), 0.5)).to_event(1)
    binomial = dist.Binomial(3, torch.tensor(0.5))
    for prior in (
        ps.priors.Custom(around, DIM, y_prior=Levels()),
        ps.priors.Custom(around, DIM, y_prior=binomial),
        ps.priors.Custom(lambda y: dist.Normal(y, 0.05).to_event(1), DIM, y_prior=bits),
    ):
        model = joint(prior)
        y = ps.posterior_y(model, x(), draws=2).draws[0]
        with torch.no_grad():
            z = ps.generate(model, y, views=3).z
            near = y.reshape(len(y), 1, -1)
            assert np.abs(z - near).max() < 0.4
            with pytest.raises(ValueError, match="values that p.y. has.*posterior_y"):
                ps.generate(model, y + 20)


def test_contents_off_the_support_are_refused():
    for words, model, y in (
        ("support of p.y", spherical_joint(), 2 * torch.eye(3)),
        (r"shape \(item, 3\)", spherical_joint(), torch.ones(2, 2)),
        ("finite", joint(ps.priors.Gaussian(DIM)), torch.full((1, DIM), math.nan)),
        ("from 0 to 2", joint(ps.priors.Mixture(2, 3)), [3]),
        ("no content", joint(ps.priors.Independent(DIM)), torch.ones(2, DIM)),
    ):
        with pytest.raises(ValueError, match=words):
            ps.generate(model, y)
    model = joint(ps.priors.TwoTier(DIM, 2))
    with pytest.raises(ValueError, match="draws it of classes"):
        ps.generate(model, [0, 1])
    with torch.no_grad():
        y = model.prior.content(component=torch.tensor([0, 1])).sample()
        assert ps.generate(model, y).z.shape == (2, 1, DIM)
    with pytest.raises(TypeError, match="whole numbers"):
        ps.generate(joint(ps.priors.Mixture(2, 3)), [0.5])


def test_several_modalities_are_swapped_and_generated_together():
    likelihoods = [ps.likelihoods.Gaussian(0.5), ps.likelihoods.Gaussian(0.5)]
    encoders = ps.nn.PerModality([encoder(), encoder(event=5)])
    decoders = ps.nn.PerModality([decoder(), decoder(event=5)])
    model = ps.Joint(ps.priors.Gaussian(DIM), likelihoods, encoders, decoders)
    a, b = (x(2), torch.randn(2, 5)), (x(3), torch.randn(3, 5))
    found = ps.swap(model, a, b)
    assert found.z.shape == (2, 3, 2, DIM)
    assert [part.shape for part in found.x] == [(2, 3, 1, EVENT), (2, 3, 1, 5)]
    assert ps.generate(model, torch.zeros(4, DIM)).x[1].shape == (4, 1, 5)


def test_state_and_mode_of_the_objective_stay_as_they_were():
    model, data = joint(ps.priors.Gaussian(DIM)).train(), x(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ps.traverse(model, data), ps.swap(model, data, data, draws=2)
    ps.interpolate(model, data, data), ps.generate(model, torch.zeros(1, DIM))
    assert model.training
    assert_close(model.state_dict(), before, rtol=0, atol=0)
