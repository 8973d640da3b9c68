"""What a fitted objective says, against plain loops and linear-Gaussian models."""

import math
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.checks import refusals, seeded
from helpers.linear import covariances
from helpers.linear import evidence as exact_evidence
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

import probssl as ps
from probssl.bounds import log_weights
from probssl.data import Split, groups
from probssl.data.batches import Items
from probssl.posterior import embed, evidence, reconstruct, sample, to_arviz
from probssl.posterior.containers import pareto_k
from probssl.terms import Batch

pytestmark = pytest.mark.usefixtures("float64")
DIM, EVENT, NOISE, SCALE, Y_SCALE = 2, 5, 0.4, 0.6, 1.3
IMAGE = (1, 4, 4)


def linear_gaussian(
    guide: type[nn.Module] = ps.guides.CoupledLikelihoods, **prior
) -> ps.Joint:
    scales = {"scale": SCALE, "y_scale": Y_SCALE} | prior
    prior = ps.priors.Gaussian(DIM, **scales)
    return linear.linear_gaussian(prior, EVENT, NOISE, guide=guide)


def exact_posterior(joint: ps.Joint, x: Tensor) -> MultivariateNormal:
    z, decoder, _ = covariances(joint, x.shape[1])
    precision = z.inverse() + decoder.T @ decoder / NOISE**2
    mean = torch.linalg.solve(precision, decoder.T @ x.flatten(1).T / NOISE**2)
    return MultivariateNormal(mean.T, precision_matrix=precision)


def assert_mean(found: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Means over draws, to five standard errors."""
    error = 5 * (variance / len(found)).sqrt()
    assert ((found.mean(0) - mean).abs() < error).all()


def assert_variance(found: Tensor, variance: Tensor) -> None:
    """Variances of normal draws, to five standard errors."""
    error = 5 * variance * math.sqrt(2 / len(found))
    assert ((found.var(0) - variance).abs() < error).all()


def predicted(found) -> Tensor:
    return values(found, "posterior_predictive", "x")


def images(**options) -> ps.Joint:
    """A small joint of images, with all the parts a fitted one has."""
    return ps.Joint(
        ps.priors.Gaussian(3, **({"scale": 0.4} | options)),
        ps.likelihoods.Binomial(4),
        ps.nn.MLPEncoder(IMAGE, 3, hidden=(8,)),
        ps.nn.MLPDecoder(3, IMAGE, hidden=(8,)),
    )


def twice(x: Tensor) -> Tensor:
    """A view sampler: the item and its mirror image."""
    return torch.stack([x, x.flip(-1)], 1)


def grey(n: int) -> Tensor:
    return torch.randint(0, 5, (n, *IMAGE)) / 4.0


class TestEmbed:
    def test_it_equals_the_plain_loop(self):
        simvae, x = ps.limits.SimVAE(images()), grey(25)
        expected = torch.cat([simvae.represent(part) for part in x.split(10)])
        for data in (x, x.numpy(), Split(x)):
            z = embed(simvae, data, batch_size=10)
            assert isinstance(z, np.ndarray) and z.shape == (25, 3)
            assert_close(torch.from_numpy(z), expected.detach())

    def test_the_standard_deviation_is_that_of_an_item_seen_alone(self):
        joint, x = linear_gaussian(), torch.randn(4, EVENT)
        exact = exact_posterior(joint, x.unsqueeze(1))
        z, std = embed(ps.limits.SimVAE(joint), x, return_std=True)
        assert_close(torch.from_numpy(z), exact.mean)
        assert_close(torch.from_numpy(std), exact.stddev)

    def test_bytes_stand_for_fractions_of_255(self):
        x = torch.randint(0, 256, (6, *IMAGE), dtype=torch.uint8)
        encoder = ps.nn.MLPEncoder(IMAGE, 3)
        assert_close(embed(encoder, Split(x)), embed(encoder, x / 255.0))

    def test_it_follows_the_precision_of_the_objective(self):
        encoder, x = ps.nn.MLPEncoder(IMAGE, 3), torch.rand(6, *IMAGE)
        z = embed(encoder, x.float())
        assert z.dtype == np.float64
        assert embed(encoder.float(), x).dtype == np.float32
        assert embed(encoder.bfloat16(), x).dtype == np.float32
        assert embed(nn.Identity(), torch.rand(6, 2).float()).dtype == np.float32

    def test_it_runs_in_evaluation_mode_and_restores_every_mode(self):
        class Watched(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(2)
                self.seen: list[tuple[bool, bool]] = []

            def forward(self, x: Tensor) -> Tensor:
                self.seen.append((self.training, torch.is_grad_enabled()))
                return self.norm(x)

        model = Watched()
        model.norm.eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        embed(model, torch.randn(8, 2), batch_size=3)
        assert set(model.seen) == {(False, False)} and len(model.seen) >= 3
        assert model.training and not model.norm.training
        assert_close(model.state_dict(), before)

    def test_the_mode_is_restored_after_an_error(self):
        encoder = ps.nn.MLPEncoder((3,), 2)
        with pytest.raises(ValueError, match="expected"):
            embed(encoder, torch.randn(4, 2))
        assert encoder.training and encoder.trunk.training

    def test_the_projector_is_given_on_request(self):
        encoder = ps.nn.MLPEncoder(IMAGE, 3)
        simclr = ps.limits.SimCLR(encoder, ps.nn.Projector(3, 8, 4)).eval()
        x = grey(6)
        assert_close(torch.from_numpy(embed(simclr, x)), encoder(x).detach())
        projected = simclr.projector(encoder(x)).detach()
        assert_close(torch.from_numpy(embed(simclr, x, layer="projector")), projected)


class TestEvidence:
    @pytest.mark.parametrize("views", [1, 2, 3])
    def test_it_is_exact_under_the_exact_posterior(self, views):
        joint, x = linear_gaussian(), torch.randn(7, views, EVENT)
        found = evidence(joint, groups(x), particles=30, batch_size=3)
        expected = exact_evidence(joint, x)
        assert_close(torch.from_numpy(found.log_evidence), expected)
        assert_close(found.ess, np.full(7, 30.0))
        assert np.isnan(found.pareto_k).all()
        assert found.mean == pytest.approx(float(expected.mean()))
        error = float(expected.std() / math.sqrt(7))
        assert found.standard_error == pytest.approx(error)
        assert found.measure == "Lebesgue"

    def test_it_comes_near_from_below_under_a_wrong_guide(self):
        joint = linear_gaussian(ps.guides.DiagonalGaussian)
        x = torch.randn(1000, 2, EVENT)
        found = evidence(joint, groups(x), particles=200)
        gap = exact_evidence(joint, x).numpy() - found.log_evidence
        error = gap.std() / math.sqrt(1000)
        assert -5 * error < gap.mean() < 0.2
        assert (found.ess > 1).all() and (found.ess < 200).all()
        assert np.isfinite(found.pareto_k).all()

    def test_one_view_is_the_default_and_a_sampler_gives_more(self):
        joint, x = linear_gaussian(), torch.randn(4, EVENT)
        alone = evidence(ps.limits.SimVAE(joint), x, particles=2)
        both = evidence(joint, x, particles=2, views=twice)
        for found, views in ((alone, x.unsqueeze(1)), (both, twice(x))):
            exact = exact_evidence(joint, views)
            assert_close(torch.from_numpy(found.log_evidence), exact)

    def test_its_short_forms_fit_a_few_lines(self):
        joint = linear_gaussian()
        found = evidence(joint, torch.randn(500, EVENT), particles=5)
        assert len(repr(found)) < 200 and "items: 500" in repr(found)
        near = found._replace(log_evidence=np.array([1.2340, 1.2341, 1.2342]))
        assert "mean: 1.23410 ± 0.00006 nats" in repr(near)
        assert f"{found.mean:.2f} ±" in found._repr_html_()

    def test_random_hyper_parameters_are_averaged_over(self):
        joint = linear_gaussian(scale=dist.LogNormal(-1.0, 0.5))
        joint.population = torch.tensor(100)
        found = evidence(joint, torch.randn(4, EVENT), particles=50)
        assert np.isfinite(found.log_evidence).all() and (found.ess < 50).all()


class TestParetoK:
    def test_it_finds_the_tail_of_exponential_log_weights(self):
        """The weights exp(k e), e standard exponential, are Pareto of shape k."""
        rng, shapes = np.random.default_rng(0), np.array([0.2, 0.5, 0.9])
        weights = shapes[:, None] * rng.exponential(size=(40, 3, 2000))
        k = np.mean([pareto_k(each) for each in weights], axis=0)
        # The fit has a weak prior of 10 observations around 1/2, in a tail of 135.
        expected = (135 * shapes + 10 * 0.5) / 145
        error = (1 + shapes) / math.sqrt(135 * 40)
        assert (np.abs(k - expected) < 5 * error).all()

    def test_it_is_not_a_number_where_there_is_no_tail(self):
        log_weights = np.random.default_rng(0).normal(size=(2, 100))
        log_weights[0] = -300.0
        assert np.isnan(pareto_k(log_weights)).tolist() == [True, False]
        assert np.isnan(pareto_k(log_weights[:, :24])).all()


def values(container, group: str, name: str) -> Tensor:
    """A variable of either generation's container."""
    return torch.from_numpy(container[group][name].values)


def log_ratio(container) -> Tensor:
    """The log importance weights of draws, (draw, item)."""
    stats = (values(container, "sample_stats", name) for name in ("log_p", "log_q"))
    return torch.sub(*stats)[0]


class TestToArviz:
    def test_shapes_axes_and_coordinates(self):
        labels = torch.arange(8) % 3
        data = Split(grey(8), labels)
        found = to_arviz(images(), data, draws=6, items=[5, 2, 7], views=twice)
        posterior = found["posterior"]["z"]
        assert posterior.dims == ("chain", "draw", "item", "view", "dim")
        assert posterior.shape == (1, 6, 3, 2, 3)
        assert posterior["item"].values.tolist() == [5, 2, 7]
        assert posterior["view"].values.tolist() == [0, 1]
        predicted = found["posterior_predictive"]["x"]
        assert predicted.dims[2:] == ("item", "view", "channel", "height", "width")
        assert predicted.shape == (1, 6, 3, 2, *IMAGE)
        assert set(np.unique(predicted * 4)) <= {0, 1, 2, 3, 4}
        assert found["prior"]["z"].dims == ("chain", "draw", "view", "dim")
        assert found["prior_predictive"]["x"].shape == (1, 6, 2, *IMAGE)
        assert found["sample_stats"]["log_p_x_given_z"].dims[1:] == ("draw", "item")
        assert_close(values(found, "observed_data", "x"), twice(data.images[[5, 2, 7]]))
        assert values(found, "constant_data", "label").tolist() == [2, 2, 1]

    def test_it_says_how_it_came_about(self):
        found = to_arviz(images(), grey(4), draws=2)
        for attrs in (found.attrs, found["posterior"].attrs, found["prior"].attrs):
            assert attrs["inference"] == "SVI"
            assert attrs["inference_library"] == "pyro-ppl"
            assert attrs["inference_library_version"].startswith("1.9")
            assert attrs["measure"] == "counting, {0, …, 4} / 4"

    @pytest.mark.parametrize(
        ("n", "options", "count"),
        [(120, {}, 100), (12, {}, 12), (12, {"items": 3}, 3)],
    )
    def test_the_first_hundred_items_are_the_default(self, n, options, count):
        found = to_arviz(images(), grey(n), draws=2, **options)
        assert found["posterior"]["z"].shape[2] == count

    def test_log_weights_are_those_of_the_bound(self):
        joint, x = images(), grey(5)
        expected = seeded(log_weights, joint, Batch(twice(x)), 20)
        torch.manual_seed(1)
        found = to_arviz(joint, x, draws=20, views=twice)
        assert_close(log_ratio(found), sum(expected[:3]).detach())
        log_q = values(found, "sample_stats", "log_q")[0]
        assert_close(-log_q, expected.entropy.detach())
        likelihood = values(found, "sample_stats", "log_p_x_given_z")[0]
        assert_close(likelihood, expected.reconstruction.detach())

    @pytest.mark.parametrize("views", [1, 2])
    def test_draws_follow_the_exact_posterior(self, views):
        draws, joint, x = 20_000, linear_gaussian(), torch.randn(3, views, EVENT)
        exact = exact_posterior(joint, x)
        found = to_arviz(joint, groups(x), draws=draws, predictive=False)
        z = values(found, "posterior", "z")[0].flatten(2)
        assert_mean(z, exact.mean, exact.variance)
        assert_variance(z, exact.variance)
        assert_close(log_ratio(found), exact_evidence(joint, x).expand(draws, -1))
        assert "posterior_predictive" not in found and "prior_predictive" not in found

    def test_predictive_draws_follow_the_exact_predictive_distribution(self):
        joint, x = linear_gaussian(), torch.randn(2, 2, EVENT)
        found = to_arviz(joint, groups(x), draws=20_000)
        exact, (_, decoder, covariance) = (
            exact_posterior(joint, x),
            covariances(joint, 2),
        )
        after = values(found, "posterior_predictive", "x")[0].flatten(2)
        spread = decoder @ exact.covariance_matrix @ decoder.T
        variance = spread.diagonal(dim1=-2, dim2=-1) + NOISE**2
        assert_mean(after, exact.mean @ decoder.T, variance)
        before = values(found, "prior_predictive", "x")[0].flatten(1)
        assert_variance(before, covariance.diagonal())

    def test_random_hyper_parameters_have_draws_of_their_own(self):
        joint = images(scale=dist.LogNormal(-1.0, 0.5))
        found = to_arviz(joint, grey(4), draws=3_000, predictive=False)
        scale, before = (values(found, g, "scale") for g in ("posterior", "prior"))
        assert scale.shape == before.shape == (1, 3_000)
        error = 5 * 0.5 / math.sqrt(3_000)
        assert abs(before.log().mean() + 1) < error
        assert abs(scale.log().mean() - joint.prior.scale.loc) < 2 * error
        q = dist.LogNormal(joint.prior.scale.loc, joint.prior.scale.log_scale.exp())
        for name, density in (("p", dist.LogNormal(-1.0, 0.5)), ("q", q)):
            log_prob = values(found, "sample_stats", f"log_{name}_hyper")
            assert_close(log_prob, density.log_prob(scale).detach())

    def test_absent_views_are_nan_and_add_nothing(self):
        joint, x = linear_gaussian(), torch.randn(3, 2, EVENT)
        present = torch.tensor([[True, True], [True, False], [False, True]])
        found = to_arviz(joint, groups(x, present=present), draws=4)
        observed = values(found, "observed_data", "x")
        assert (observed.isnan().all(-1) == ~present).all()
        alone = torch.stack([x[1, 0], x[2, 1]]).unsqueeze(1)
        expected = exact_evidence(joint, alone).expand(4, -1)
        assert_close(log_ratio(found)[:, 1:], expected)

    def test_absent_views_are_predicted_from_their_own_z(self):
        """Batch norm makes the decoder leave absent rows out where they are masked."""
        joint, x = linear_gaussian(), torch.randn(4, 2, EVENT)
        joint.decoder = nn.Sequential(nn.BatchNorm1d(DIM, affine=False), joint.decoder)
        present = torch.tensor([[True, True], [True, False], [False, True], [True] * 2])
        found = to_arviz(joint, groups(x, present=present), draws=400)
        z, drawn = (values(found, "posterior", "z"), predicted(found))
        with torch.no_grad():
            mean = joint.eval().decode(z).mean
        assert_close(
            (drawn - mean).std(1), torch.full_like(mean[:, 0], NOISE), rtol=0.2, atol=0
        )

    def test_y_and_z_of_an_absent_view_are_drawn_together(self):
        joint, x = linear_gaussian(), torch.randn(2, 2, EVENT)
        present = torch.tensor([[True, False], [True, True]])
        found = to_arviz(
            joint, groups(x, present=present), draws=20_000, predictive=False
        )
        z, y = (values(found, "posterior", name)[0] for name in "zy")
        away = (z - y.unsqueeze(2))[:, 0, 1]  # N(0, scale²), whatever q(z|x) is
        assert_variance(away, torch.full((DIM,), SCALE**2))

    def test_absent_views_have_no_covariates(self):
        class Sized(dist.Normal):
            def given(self, x):
                return dist.Normal(self.loc + x, self.scale)

        class Shifted(ps.likelihoods.Gaussian):
            def forward(self, output):
                return Sized(output, NOISE).to_event(1)

        joint, x = linear_gaussian(), 100 + torch.randn(3, 2, EVENT)
        joint.likelihood = Shifted(NOISE)
        present = torch.tensor([[True, True], [True, False], [False, True]])
        found = predicted(to_arviz(joint, groups(x, present=present), draws=20))[0]
        assert (found.isnan().all(-1) == ~present).all()
        assert (found[:, present] > 50).all()

    def test_pseudo_likelihoods_have_no_log_likelihood(self):
        joint = images()
        joint.likelihood = ps.likelihoods.Bernoulli(grey=True)
        found = to_arviz(joint, grey(4), draws=2)
        assert "log_p_x_given_z" not in found["sample_stats"]
        assert "pseudo-likelihood" in found.attrs["measure"]

    def test_arviz_summarises_and_stores_it(self, tmp_path):
        found = to_arviz(images(), grey(4), draws=50)
        az = pytest.importorskip("arviz")
        summary = az.summary(found, var_names=["z"], kind="stats")
        assert len(summary) == 4 * 3
        mean = values(found, "posterior", "z").mean((0, 1)).ravel()
        assert np.abs(summary["mean"].astype(float) - mean.numpy()).max() < 0.01
        found.to_netcdf(str(tmp_path / "posterior.nc"))
        again = az.from_netcdf(str(tmp_path / "posterior.nc"))
        for group in ("posterior", "sample_stats", "observed_data", "prior"):
            for name, left in found[group].data_vars.items():
                assert left.equals(again[group][name])
        assert again["posterior"].attrs["inference"] == "SVI"


class LogNormals(ps.guides.Guide):
    """Independent log-normal views, with the encoder's output as their location."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def each(self, x: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(self.encoder(x), 0.2).to_event(1)


class TestDecoder:
    def test_a_reconstruction_is_the_decoded_mean(self):
        joint, x = linear_gaussian(), torch.randn(7, EVENT)
        mean = exact_posterior(joint, x.unsqueeze(1)).mean
        expected = mean @ joint.decoder.weight.detach().T
        found = reconstruct(ps.limits.SimVAE(joint), x, batch_size=3)
        assert_close(torch.from_numpy(found), expected)

    def test_the_mean_of_positive_z_is_decoded_as_it_is(self):
        joint = ps.Joint(
            ps.priors.Custom(lambda y: dist.LogNormal(y, 0.3).to_event(1), DIM),
            ps.likelihoods.Gaussian(0.5),
            nn.Linear(EVENT, DIM),
            nn.Linear(DIM, EVENT),
            guide=LogNormals,
        )
        x = torch.randn(7, EVENT)
        expected = joint.decoder((joint.encoder(x) + 0.2**2 / 2).exp()).detach()
        assert_close(torch.from_numpy(reconstruct(joint, x)), expected)
        found = ps.posterior.complete(joint, groups(x.unsqueeze(1)))
        assert_close(torch.from_numpy(found).squeeze(1), expected)

    def test_samples_have_the_covariance_of_the_decoded_prior(self):
        n, joint = 50_000, linear_gaussian()
        x = torch.from_numpy(sample(joint, n)).flatten(1)
        z, decoder, _ = covariances(joint, 2)
        exact = decoder @ z @ decoder.T
        scale = exact.diagonal()
        error = 5 * ((scale[:, None] * scale + exact.square()) / n).sqrt()
        assert ((x.T @ x / n - exact).abs() < error).all()

    def test_shapes_and_modes(self):
        joint = images().train()
        assert sample(joint, 5, views=3, batch_size=2).shape == (5, 3, *IMAGE)
        assert reconstruct(joint, grey(5)).shape == (5, *IMAGE)
        assert joint.training and joint.decoder.training


class TestItems:
    def test_a_sampler_may_return_a_batch(self):
        items = Items(grey(4), torch.zeros(1), lambda x: Batch(twice(x)))
        batch = items.batch(torch.tensor([3, 1]))
        assert batch.shape == (2, 2) and batch.index.tolist() == [3, 1]


def simclr() -> ps.limits.SimCLR:
    return ps.limits.SimCLR(ps.nn.MLPEncoder(IMAGE, 3))


def pseudo() -> ps.Joint:
    joint = linear_gaussian()
    joint.likelihood = ps.likelihoods.Bernoulli(grey=True)
    return joint


X, FLAT = torch.zeros(4, EVENT), {"y_scale": math.inf}
PAIRS = groups(torch.zeros(4, 2, 3))
test_what_an_objective_cannot_do_is_refused = refusals(
    (lambda: embed(simclr(), grey(4), layer="head"), ValueError, "backbone"),
    (lambda: embed(simclr(), grey(4), layer="projector"), ValueError, "without one"),
    (lambda: embed(simclr(), grey(4), return_std=True), ValueError, "got SimCLR"),
    (lambda: embed(simclr(), ps.data.arrays(grey(8))), TypeError, r"\.train or"),
    (lambda: embed(simclr(), PAIRS), TypeError, r"views\[:, 0\]"),
    (
        lambda: embed(nn.Flatten(0), torch.ones(4, 1)),
        ValueError,
        r"dim\) for \(4, 1\), got shape \(4,\)",
    ),
    (lambda: embed(simclr(), grey(4) * math.nan), ValueError, "NaN"),
    (lambda: embed(simclr(), grey(4), batch_size=0), ValueError, "batch_size"),
    (lambda: evidence(linear_gaussian(**FLAT), X), ValueError, "y_scale"),
    (lambda: evidence(linear_gaussian(ps.guides.Point), X), ValueError, "guides.Point"),
    (lambda: evidence(simclr(), grey(4)), ValueError, "evidence, got SimCLR"),
    (lambda: evidence(pseudo(), X), ValueError, "pseudo-likelihood"),
    (lambda: evidence(linear_gaussian(), X, particles=0), ValueError, "particles"),
    (lambda: evidence(images(), torch.rand(4, *IMAGE)), ValueError, "grey levels"),
    (lambda: to_arviz(images(**FLAT), grey(4), views=twice), ValueError, "y_scale"),
    (lambda: to_arviz(linear_gaussian(ps.guides.Point), X), ValueError, "Point"),
    (lambda: to_arviz(simclr(), grey(4)), ValueError, "a posterior, got SimCLR"),
    (lambda: to_arviz(images(), torch.rand(4, *IMAGE)), ValueError, "grey levels"),
    (lambda: to_arviz(images(), grey(4), items=[4]), ValueError, "0 to 3"),
    (lambda: to_arviz(images(), grey(4), items=0), ValueError, "row numbers"),
    (lambda: to_arviz(images(), grey(4), items=[0.5]), TypeError, "whole"),
    (lambda: to_arviz(images(), grey(4), items=[]), ValueError, "row numbers"),
    (lambda: to_arviz(images(), grey(4), draws=0), ValueError, "draws"),
    (lambda: sample(images(**FLAT), 4), ValueError, "y_scale"),
    (lambda: sample(simclr(), 4), ValueError, "samples, got SimCLR"),
    (lambda: sample(images(), 0), ValueError, "at least 1"),
    (lambda: reconstruct(simclr(), grey(4)), ValueError, "reconstructions, got SimCLR"),
    (
        lambda: Items(grey(4), X[0], lambda x: x).batch(torch.arange(2)),
        ValueError,
        "torch.stack",
    ),
    (lambda: Items(PAIRS, X[0], twice), ValueError, "Groups"),
)


@pytest.mark.parametrize("measured", [ps.evidence, ps.classify, ps.to_arviz])
def test_views_off_the_support_of_the_likelihood_are_refused(measured):
    networks = ps.nn.MLPEncoder((5,), 2), ps.nn.MLPDecoder(2, (5,))
    prior = ps.priors.TwoTier(2, components=3)
    joint = ps.Joint(prior, ps.likelihoods.Poisson(), *networks)
    x = torch.poisson(torch.full((30, 5), 3.0))
    measured(joint, x)
    with pytest.raises(ValueError, match="expected counts 0, 1"):
        measured(joint, x, views=lambda x: torch.stack([x, x + 0.5], 1))


class Around(nn.Module):
    """p(z | k) of an own prior: the normals of a `Mixture`."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)

    def forward(self, k: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.means[k.long()], SCALE).to_event(1)


class TestWeighted:
    """p(k|x) against the sum over components of normal densities of x."""

    MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.5], [0.2, -1.0]])

    def joint(self, kind: str, guide: type[nn.Module]) -> ps.Joint:
        means = self.MEANS.double()
        if kind == "own":
            classes = dist.Categorical(torch.ones(3))
            prior = ps.priors.Custom(Around(means), DIM, y_prior=classes)
        else:
            components = ps.priors.Components.at(means)
            prior = ps.priors.Mixture(DIM, components, SCALE)
        torch.manual_seed(1)
        encoder, decoder = nn.Linear(EVENT, DIM), nn.Linear(DIM, EVENT, bias=False)
        likelihood = ps.likelihoods.Gaussian(1.5)
        with torch.no_grad():  # a guide that is off, but not far
            a = decoder.weight
            weight = torch.linalg.solve(a.T @ a + 1.5**2 * torch.eye(DIM), a.T)
            encoder.weight.copy_(weight)
            encoder.bias.fill_(0.2)
        joint = ps.Joint(prior, likelihood, encoder, decoder, guide=guide)
        for name, weight in joint.posterior.named_parameters():
            if "encoder" not in name:  # the spread is wide, and the same everywhere
                nn.init.constant_(weight, 1.0 if name.endswith("bias") else 0.0)
        return joint

    def exact(self, joint: ps.Joint, x: Tensor) -> Tensor:
        """p(k | x_1..V): given k, views are independent normals."""
        a = joint.decoder.weight.detach()
        covariance = SCALE**2 * a @ a.T + 1.5**2 * torch.eye(EVENT)
        loc = (self.MEANS.double() @ a.T).unsqueeze(1)
        each = MultivariateNormal(loc, covariance).log_prob(x[:, None])
        return each.sum(-1).softmax(-1)

    @pytest.mark.parametrize(
        "kind, guide",
        [
            ("mixture", "DiagonalGaussian"),
            ("mixture", "Coupled"),
            ("own", "DiagonalGaussian"),
        ],
    )
    def test_weighted_draws_give_the_posterior_of_the_component(self, kind, guide):
        joint = self.joint(kind, getattr(ps.guides, guide))
        x = torch.randn(6, 1, EVENT)
        right, data = self.exact(joint, x).numpy(), groups(x)
        found = ps.classify(joint, data, draws=8_000, weighted=True)
        by_guide = ps.classify(joint, data, draws=8_000)
        assert abs(found - right).max() < 0.05 < abs(by_guide - right).max()
        assert_close(found.sum(1), np.ones(6))

    def test_a_large_pareto_k_is_said(self):
        joint = self.joint("mixture", ps.guides.DiagonalGaussian)
        joint.likelihood = ps.likelihoods.Gaussian(0.02)
        with pytest.warns(UserWarning, match=r"Pareto k̂ is above 0.7 for . of 3 items"):
            ps.classify(joint, torch.randn(3, EVENT), draws=100, weighted=True)

    def test_weights_need_a_density(self):
        joint = self.joint("mixture", ps.guides.Point)
        with pytest.raises(ValueError, match="weighted draws"):
            ps.classify(joint, torch.randn(3, EVENT), weighted=True)


class Exposed(dist.TorchDistribution):
    """Poisson counts given an exposure, the last element of x."""

    arg_constraints, support = {}, dist.constraints.real_vector

    def __init__(self, share: Tensor, exposure: Tensor | float = 10.0) -> None:
        self.share = share
        self.exposure = torch.as_tensor(exposure).expand(*share.shape[:-1], 1)
        shape = share.shape[:-1], torch.Size([share.shape[-1] + 1])
        super().__init__(*shape, validate_args=False)

    def given(self, x: Tensor) -> "Exposed":
        return Exposed(self.share, x[..., -1:])

    @property
    def mean(self) -> Tensor:
        return torch.cat([self.share * self.exposure, self.exposure], -1)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        mean = self.mean.expand(*sample_shape, *self.shape())
        return torch.cat([torch.poisson(mean[..., :-1]), mean[..., -1:]], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        rate = self.share * x[..., -1:]
        return dist.Poisson(rate, validate_args=False).log_prob(x[..., :-1]).sum(-1)


class Exposure(ps.likelihoods.Likelihood):
    measure = "counting, given the exposure"
    masked = False

    def forward(self, output: Tensor) -> dist.TorchDistribution:
        made = Exposed(output.softmax(-1))
        return made.mask(True) if self.masked else made


def test_predictions_are_at_the_covariates_of_the_item():
    net, out = nn.Linear(5, DIM), nn.Linear(DIM, 4)
    joint = ps.Joint(ps.priors.Gaussian(DIM), Exposure(), net, out)
    exposure = torch.tensor([[1.0], [50.0], [2000.0]])
    x = torch.cat([torch.poisson(exposure.expand(-1, 4) / 4), exposure], 1)
    mean = torch.as_tensor(reconstruct(joint, x))
    assert_close(mean[:, :-1].sum(1, keepdim=True), exposure)
    for data, views in ((x, None), (x, lambda x: torch.stack([x, x], 1))):
        idata = to_arviz(joint, data, draws=400, views=views)
        drawn = torch.as_tensor(idata.posterior_predictive["x"].values)[0]
        assert_mean(drawn[..., 0, :-1].sum(-1), exposure[:, 0], exposure[:, 0])
        assert (drawn[..., -1:] == exposure.unsqueeze(1)).all()
        before = torch.as_tensor(idata.prior_predictive["x"].values)[0]
        assert (before[..., -1] == 10).all()
    for masked in (False, True):
        joint.likelihood.masked = masked
        with pytest.raises(ValueError, match="without covariates"):
            ps.posterior.complete(joint, groups(x.unsqueeze(1)))


class Covariate(nn.Linear):
    """An encoder that fails in its own words for items of another shape."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :3]) + x[:, 3:] * torch.ones(2)


@pytest.mark.parametrize("called", [embed, evidence, ps.classify, to_arviz])
def test_an_error_inside_an_own_encoder_is_told_the_shape_of_its_input(called):
    prior = ps.priors.Mixture(DIM, 3)
    decoder = ps.nn.MLPDecoder(DIM, (5,))
    encoder = Covariate(3, DIM)
    joint = ps.Joint(prior, ps.likelihoods.Gaussian(), encoder, decoder)
    assert embed(joint, torch.randn(4, 5)).shape == (4, DIM)
    with pytest.raises(RuntimeError, match="size of tensor a") as raised:
        called(joint, torch.randn(4, 6))
    note = "inside Covariate, given 4 items or views of shape (6,)"
    assert any(note in each for each in getattr(raised.value, "__notes__", [note]))


def test_a_prior_without_classes_says_which_have_them():
    joint = linear_gaussian()
    with pytest.raises(ValueError, match=r"got Gaussian; use .*priors\.Custom with"):
        ps.classify(joint, torch.randn(4, EVENT))


class AnnotatedData:
    X, shape = np.ones((4, 5)), (4, 5)


class Annotated(NamedTuple):
    X: np.ndarray
    obs: list[str]


def test_data_of_another_package_are_told_their_matrix():
    for data in (AnnotatedData(), Annotated(np.ones((4, 5)), list("abca"))):
        message = rf"got {type(data).__name__}; pass its \.X, of a sparse matrix"
        with pytest.raises(TypeError, match=message):
            embed(linear_gaussian(), data)
        with pytest.raises(TypeError, match=r"give its \.X, of a sparse matrix"):
            ps.data.arrays(data)


class Mixes(nn.Module):
    """z less its mean over items, or over their largest; far from zero or not."""

    def __init__(self, kind: str, offset: float = 0.0) -> None:
        super().__init__()
        self.net, self.kind, self.offset = nn.Linear(5, 3), kind, offset

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        if self.kind == "sparse":
            return z.to_sparse()
        if self.kind == "mean":
            return z - z.mean(0) + self.offset
        return z / z.abs().max() if self.kind == "largest" else z + self.offset


@pytest.mark.parametrize("kind, offset", [("mean", 0.0), ("mean", 300), ("largest", 0)])
def test_a_bare_encoder_whose_z_depends_on_the_batch_is_refused(kind, offset):
    x = torch.randn(24, 5)
    with pytest.raises(ValueError, match="networks of Mixes that treat items one by"):
        ps.embed(Mixes(kind, offset), x)
    apart = Mixes("", 1e4)
    few = ps.embed(apart, x, batch_size=5)
    np.testing.assert_allclose(few, ps.embed(apart, x), rtol=1e-6)
    with pytest.raises(ValueError, match=r"got shape \(24, 3\), torch.float.., sparse"):
        ps.embed(Mixes("sparse"), x)


def test_zero_weights_are_below_the_tail_of_pareto_k():
    log_weights = np.random.default_rng(0).exponential(0.9, size=(2, 1_000))
    log_weights[1] = np.random.default_rng(1).normal(size=1_000)
    some = log_weights.copy()
    some[:, log_weights.argmin(1)] = -np.inf
    np.testing.assert_allclose(pareto_k(some), pareto_k(log_weights), rtol=1e-6)
    assert pareto_k(some)[0] > 0.7 > pareto_k(some)[1]
    mostly = np.full((1, 1_000), -np.inf)
    assert np.isinf(pareto_k(mostly)).all()
    mostly[0, :3] = 0.0, 1.0, 2.0
    assert pareto_k(mostly)[0] > 0.7


def test_z_of_repeated_measurements_is_the_mean_over_those_present():
    """NaN stands for an absent one, which no network sees."""
    joint = ps.Joint(
        *(ps.priors.Gaussian(2, 0.5), ps.likelihoods.Gaussian(0.5)),
        *(ps.nn.MLPEncoder((3,), 2), ps.nn.MLPDecoder(2, (3,))),
    )
    x, present = torch.randn(4, 2, 3), torch.tensor([[1, 1], [1, 0], [0, 1], [1, 1]])
    each = np.stack([embed(joint, x[:, v]) for v in (0, 1)], 1)
    weight = present.numpy()[..., None]
    expected = (weight * each).sum(1) / weight.sum(1)
    x[present == 0] = torch.nan
    found = embed(joint, groups(x, present=present.bool()))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="mark absent views as False in present="):
        groups(x)


class Noisy(ps.nn.MLPEncoder):
    """Draws noise in evaluation mode too, or only in training."""

    always = True

    def forward(self, x):
        z = super().forward(x)
        drawn = self.always or self.training
        return z + 0.1 * torch.randn_like(z) if drawn else z


def test_embed_says_that_z_is_a_random_draw():
    encoder, x = Noisy((3,), 2), torch.randn(9, 3)
    objective = ps.limits.SimCLR(encoder)
    for each in (encoder, objective):
        name = type(each).__name__
        with pytest.warns(UserWarning, match=f"one random draw.*{name}.*differ by"):
            ps.embed(each, x)
    encoder.always = False
    assert np.array_equal(ps.embed(objective, x), ps.embed(encoder, x))


class TestNetworksThatMixItems:
    """Batch norm without running statistics takes its moments over the items."""

    @staticmethod
    def joint(mixed: str) -> ps.Joint:
        def norm(name: str) -> nn.Module:
            return nn.BatchNorm1d(6, track_running_stats=name != mixed)

        encoder = nn.Sequential(nn.Linear(4, 6), norm("encoder"), nn.Linear(6, 2))
        decoder = nn.Sequential(nn.Linear(2, 6), norm("decoder"), nn.Linear(6, 4))
        prior = ps.priors.TwoTier(2, components=2)
        return ps.Joint(prior, ps.likelihoods.Gaussian(1.0), encoder, decoder)

    x = torch.randn(6, 4)
    ENCODED = {
        "embed": lambda joint, x: ps.embed(joint, x),
        "reconstruct": lambda joint, x: ps.reconstruct(joint, x),
        "traverse": lambda joint, x: ps.traverse(joint, x),
        "swap": lambda joint, x: ps.swap(joint, x, x),
        "interpolate": lambda joint, x: ps.interpolate(joint, x[:1], x[1:2]),
        "classify": lambda joint, x: ps.classify(joint, x),
        "evidence": lambda joint, x: ps.evidence(joint, x),
        "refined": lambda joint, x: ps.evidence(joint, x, refine=2),
        "gaps": lambda joint, x: ps.gaps(joint, x),
        "posterior_y": lambda joint, x: ps.posterior_y(joint, x),
        "to_arviz": lambda joint, x: ps.to_arviz(joint, x, draws=3),
        "novelty": lambda joint, x: ps.novelty(joint, x, reference=x),
        "complete": lambda joint, x: ps.complete(
            joint,
            ps.data.groups([x, x], present=torch.tensor([[True, False]]).expand(6, 2)),
        ),
    }
    DECODED = {
        "sample": lambda joint, x: ps.sample(joint, 3),
        "generate": lambda joint, x: ps.generate(joint, x[:3, :2]),
    }

    @pytest.mark.parametrize(
        ("mixed", "name"),
        [
            *(("encoder", name) for name in ENCODED),
            *(("decoder", name) for name in ("reconstruct", "evidence", "swap")),
            *(("decoder", name) for name in DECODED),
        ],
    )
    def test_are_refused_where_they_are_called(self, mixed, name):
        call = (self.ENCODED | self.DECODED)[name]
        with pytest.raises(ValueError, match="without running.*track_running_stats"):
            call(self.joint(mixed), self.x)

    def test_are_left_alone_where_they_are_not(self):
        joint = self.joint("decoder")
        alone = [ps.embed(joint, x[None]) for x in self.x]
        np.testing.assert_allclose(
            ps.embed(joint, self.x), np.concatenate(alone), rtol=1e-5, atol=1e-6
        )
        assert ps.sample(self.joint("encoder"), 3).shape == (3, 2, 4)
        objective = ps.limits.SimCLR(
            nn.Sequential(nn.Linear(4, 2)),
            nn.Sequential(
                nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False)
            ),
        )
        assert ps.embed(objective, self.x).shape == (6, 2)
        with pytest.raises(ValueError, match=r"projector\.1 \(BatchNorm1d\)"):
            ps.embed(objective, self.x, layer="projector")
        assert not any(module._forward_pre_hooks for module in objective.modules())
