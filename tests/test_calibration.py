"""Calibration: ranks are uniform for exact posteriors, and for no others."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from helpers import linear
from helpers.checks import refusals
from helpers.linear import ExactFactors, exact
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal
from torch.testing import assert_close

import probssl as ps
from probssl.calibration import (
    Ranks,
    latent_ranks,
    latent_tarp,
    rank,
    simulate,
    simulation_based_calibration,
    tarp,
)

MODELS = Path(__file__).parent.parent / "models"
DIM, EVENT, NOISE, SCALE = 2, 3, 0.4, 0.6
HALF = math.sqrt(0.5)
SURELY, NEVER = 1e-4, 1e-8  # p-values: of what holds, and of what does not


pytestmark = pytest.mark.usefixtures("float64")


def linear_gaussian(
    guide: type[nn.Module] = ps.guides.CoupledLikelihoods,
    scale: object = SCALE,
    content: nn.Module | None = None,
) -> ps.Joint:
    prior, options = (
        ps.priors.Gaussian(DIM, scale),
        {"guide": guide, "content": content},
    )
    joint = linear.linear_gaussian(prior, EVENT, NOISE, **options)
    joint.decoder.requires_grad_(False)
    return joint


def best_of_independent_views(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The ELBO's optimum among q = ∏ N(a l_v, s²), l_v the factor's location.

    With P the precision of two views under the prior and r² the factor's variance,
    s² = 1 / (P_vv + 1/r²) and a = E l² / (E l² + r² + r⁴ P_vv). Returns a, s, r².
    """
    noise = NOISE**2 / weight.square().sum(0)
    own = (SCALE**2 * torch.eye(2) + 1.0).inverse()[0, 0]
    square = SCALE**2 + 1 + noise
    share = square / (square + noise + noise.square() * own)
    return share, (own + 1 / noise).rsqrt(), noise


class BestFactors(ExactFactors):
    """Locations and scales of `best_of_independent_views`."""

    def __init__(self, weight: Tensor, noise: float) -> None:
        super().__init__(weight, noise)
        self.share, self.scale, _ = best_of_independent_views(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.share * super().forward(x)


def conjugate(width: float = 1.0, shift: float = 0.0, repeats: int = 4_000) -> Ranks:
    """Ranks of θ ~ N(0, 1) given x ~ N(θ, 1), its posterior N(x/2, 1/2) altered."""
    true = torch.randn(repeats)
    x = true + torch.randn(repeats)
    sd = math.sqrt(0.5)
    posterior = Normal(x / 2 + shift * sd, width * sd)
    return Ranks(rank(true, posterior.sample((99,))), 99)


class TestRanks:
    def test_a_rank_is_the_number_of_draws_below(self):
        draws = torch.tensor([[0.0, 5.0], [1.0, 6.0], [2.0, 7.0]])
        found = rank(torch.tensor([1.5, 4.0]), draws)
        assert found.tolist() == [2, 0]

    def test_their_short_form_says_how_many_there_are(self):
        ranks = Ranks(np.arange(1_000).reshape(500, 2) % 100, 99)
        shown = (
            "Ranks(500 ranks of (2,) values each among 99 draws; 90 % intervals hold"
        )
        assert repr(ranks) == f"{shown} 90%)"

    def test_those_of_exact_posterior_draws_are_uniform(self):
        ranks = conjugate()
        assert ranks.chi_square().p_value > SURELY
        for level in (0.5, 0.9):
            error = 5 * math.sqrt(level * (1 - level) / len(ranks.ranks))
            assert abs(ranks.coverage(level) - level) < error

    @pytest.mark.parametrize(
        "altered", [{"width": 0.8}, {"width": 1.25}, {"shift": 0.2}], ids=str
    )
    def test_those_of_other_posteriors_are_not(self, altered):
        assert conjugate(**altered).chi_square().p_value < NEVER

    def test_a_narrow_posterior_covers_what_it_should(self):
        ranks = conjugate(width=0.8)
        # The ends of a rank among 99 draws are quantiles of order k/100, nearly.
        expected = 2 * stats.norm.cdf(0.8 * stats.norm.ppf(0.95)) - 1
        error = 5 * math.sqrt(expected * (1 - expected) / len(ranks.ranks))
        assert abs(ranks.coverage(0.9) - expected) < error + 0.005

    def test_every_rank_once_covers_each_level_exactly(self):
        for draws in (1, 4, 9, 50, 99):
            ranks = Ranks(np.arange(draws + 1), draws)
            for level in (0.1, 0.5, 0.9, 0.98):
                assert_close(float(ranks.coverage(level)), level)
        assert ranks.counts(20).tolist() == [5] * 20
        assert ranks.chi_square(20).statistic == 0

    def test_bins_of_unequal_width_expect_unequal_counts(self):
        ranks = Ranks(np.arange(100).repeat(3), 99)
        np.testing.assert_allclose(ranks.counts(7), ranks.expected(7))
        assert set(ranks.counts(7)) == {42, 45}

    def test_further_axes_are_judged_by_themselves(self):
        flat, narrow = conjugate(), conjugate(width=0.5)
        both = Ranks(np.stack([flat.ranks, narrow.ranks], 1), 99)
        np.testing.assert_allclose(
            both.chi_square().p_value,
            [flat.chi_square().p_value, narrow.chi_square().p_value],
        )
        assert both.coverage(0.5).tolist() == [flat.coverage(0.5), narrow.coverage(0.5)]

    def test_they_go_through_json(self):
        ranks = Ranks(np.array([[3, 0], [9, 5]]), 9)
        back = Ranks.from_json(ranks.to_json())
        assert back.draws == 9 and back.ranks.tolist() == [[3, 0], [9, 5]]


class TestTarp:
    def test_a_rank_is_the_number_of_draws_nearer_to_the_random_point(self):
        true = torch.tensor([[0.0, 0.0], [4.0, 3.0]])
        draws = torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[-5.0, 0.0], [4.0, 0.0]]])
        # Of item 0 from (4, 3), and of item 1 from (0, 0).
        found = tarp(true, draws, torch.tensor([[4.0, 3.0], [0.0, 0.0]]))
        assert found.ranks.tolist() == [1, 1] and found.draws == 2
        assert tarp(true, draws).ranks.tolist() == [1, 1]

    def test_units_of_the_numbers_are_no_matter(self):
        true, draws = torch.randn(50, 3), torch.randn(19, 50, 3)
        units = torch.tensor([1e-3, 1.0, 1e4])
        same = tarp(units * true, units * draws).ranks
        assert (same == tarp(true, draws).ranks).all()

    def test_it_sees_correlations_that_ranks_of_single_numbers_do_not(self):
        """y ~ N(0, I) given x = sum of y + noise, and draws of its own margins."""
        y = torch.randn(4_000, 2)
        x = y.sum(1) + 0.3 * torch.randn(4_000)
        gain, variance = 1 / 2.09, 1 - 1 / 2.09
        covariance = torch.eye(2) - gain
        loc = gain * x.unsqueeze(-1).expand(-1, 2)
        exact = torch.distributions.MultivariateNormal(loc, covariance)
        apart = Normal(loc, math.sqrt(variance))
        for q, right in ((exact, True), (apart, False)):
            draws = q.sample((99,))
            ranks = Ranks(rank(y, draws), 99)
            assert (ranks.chi_square().p_value > SURELY).all()
            p_value = tarp(y, draws).chi_square().p_value
            assert p_value > SURELY if right else p_value < NEVER

    def test_half_the_variance_is_caught_by_each_test(self):
        """Exact ranks are uniform, and those of draws with half the variance are not.

        By SBC, by the coverage of intervals, and by TARP.
        """
        true = torch.randn(2_000)
        loc, sd = (true + torch.randn(2_000)) / 2, math.sqrt(0.5)
        error = 5 * math.sqrt(0.9 * 0.1 / 2_000)
        for width in (1.0, math.sqrt(0.5)):
            draws = Normal(loc, width * sd).sample((99,))
            sbc_ranks, tarp_ranks = Ranks(rank(true, draws), 99), tarp(true, draws)
            caught = [
                sbc_ranks.chi_square().p_value < NEVER,
                abs(sbc_ranks.coverage(0.9) - 0.9) > error,
                tarp_ranks.chi_square().p_value < NEVER,
            ]
            assert caught == [width < 1] * 3


class TestSimulate:
    def test_covariance_of_views_is_that_of_the_model(self):
        joint = linear_gaussian()
        joint.train()
        items, views = 20_000, 3
        drawn = simulate(joint, items, views)
        assert joint.training and drawn.hyper == {} and drawn.y is None
        over_views = SCALE**2 * torch.eye(views) + 1.0
        weight = torch.kron(torch.eye(views), joint.decoder.weight.contiguous())
        z = torch.kron(over_views, torch.eye(DIM))
        x = weight @ z @ weight.T + NOISE**2 * torch.eye(views * EVENT)
        for sample, expected in ((drawn.z, z), (drawn.data.views, x)):
            products = torch.einsum("ni,nj->nij", sample.flatten(1), sample.flatten(1))
            error = 5 * products.std(0) / math.sqrt(items)
            assert (products.mean(0) - expected).abs().lt(error).all()

    def test_hyper_parameters_are_drawn_once_for_all_items(self):
        joint = linear_gaussian(scale=dist.LogNormal(-0.5, 0.7))
        logs = []
        for _ in range(200):
            drawn = simulate(joint, 400)
            scale = drawn.hyper["scale"]
            assert scale.shape == ()
            within = (drawn.z[:, 0] - drawn.z[:, 1]).square().flatten() / 2
            error = 5 * within.std() / math.sqrt(len(within))
            assert abs(within.mean() - scale**2) < error
            logs.append(scale.log())
        assert abs(torch.stack(logs).mean() + 0.5) < 5 * 0.7 / math.sqrt(200)
        assert abs(torch.stack(logs).std() - 0.7) < 5 * 0.7 / math.sqrt(2 * 200)

    def test_an_explicit_content_is_what_the_views_share(self):
        class Anything(nn.Module):
            def forward(self, z: Tensor) -> dist.TorchDistribution:
                return dist.Normal(z.mean(-2), 1.0).to_event(1)

        drawn = simulate(linear_gaussian(content=Anything()), 20_000, views=3)
        assert drawn.y.shape == (20_000, DIM)
        rest = (drawn.z - drawn.y.unsqueeze(1)).flatten()
        error = 5 * rest.square().std() / math.sqrt(len(rest) / 3)
        assert abs(rest.square().mean() - SCALE**2) < error


class ExactContent(nn.Module):
    """p(y | z_1..V) of `priors.Gaussian` with y_scale 1."""

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        precision = 1 + z.shape[-2] / SCALE**2
        loc = z.sum(-2) / SCALE**2 / precision
        return dist.Normal(loc, precision**-0.5).to_event(1)


class Narrow(nn.Module):
    """A guide whose draws have half the variance around the same mean."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide, self.encoder = guide, guide.encoder

    def forward(self, x: Tensor, prior: object, present: object = None) -> object:
        q = self.guide(x, prior, present)
        to_mean = [
            dist.transforms.AffineTransform(q.mean * (1 - HALF), HALF, event_dim=2)
        ]
        return dist.TransformedDistribution(q, to_mean)


def halved(joint: ps.Joint) -> ps.Joint:
    joint.posterior = Narrow(joint.posterior)
    return joint


class TestLatentRanks:
    def test_those_of_the_exact_guide_are_uniform(self):
        ranks = latent_ranks(linear_gaussian(), items=3_000, views=3)
        assert ranks.ranks.shape == (3_000, 3, DIM)
        assert (ranks.chi_square().p_value > SURELY).all()

    def test_those_of_independent_views_are_too_narrow_by_as_much_as_computed(self):
        joint = linear_gaussian(ps.guides.DiagonalGaussian)
        encoder = BestFactors(joint.decoder.weight, NOISE)
        joint.posterior = exact(ps.guides.DiagonalGaussian)(encoder, DIM)
        ranks = latent_ranks(joint, items=3_000)
        share, scale, noise = best_of_independent_views(joint.decoder.weight)
        missed = ((1 - share) ** 2 * (SCALE**2 + 1) + share**2 * noise).sqrt()
        z = 1.645 * scale / missed  # of the interval that should hold 90 %
        expected = Normal(0.0, 1.0).cdf(z) * 2 - 1
        assert expected.min() < 0.85
        assert (ranks.chi_square().p_value[:, 0] < NEVER).all()
        error = 5 * (expected * (1 - expected) / 3_000).sqrt()
        # The ends of a rank among 99 draws are quantiles of order k/100, nearly.
        found = torch.from_numpy(ranks.coverage(0.9))
        assert (found - expected).abs().lt(error + 0.005).all()

    def test_those_of_the_likelihood_alone_are_uniform_too(self):
        """What ranks do not see: z - x and q(z|x) - x are alike with a flat prior."""
        joint = linear_gaussian(ps.guides.DiagonalGaussian)  # with the exact factors
        ranks = latent_ranks(joint, items=3_000)
        assert (ranks.chi_square().p_value > SURELY).all()

    @pytest.mark.parametrize("content", [None, "Content"])
    def test_tarp_of_z_and_y_is_uniform_for_the_exact_guides_alone(self, content):
        joint = linear_gaussian()
        if content:  # the posterior of y given z, by the head of the guide
            joint.content = ExactContent()
        found = latent_tarp(joint, items=2_000, views=2, batch_size=700)
        assert sorted(found) == ["y", "z"]
        for ranks in found.values():
            assert ranks.ranks.shape == (2_000,)
            assert ranks.chi_square().p_value > SURELY
        found = latent_tarp(halved(joint), items=2_000, views=2)
        assert found["z"].chi_square().p_value < NEVER

    def test_half_the_variance_of_a_guide_is_caught_by_each_test(self):
        ranks = latent_ranks(halved(linear_gaussian()), items=2_000)
        assert (ranks.chi_square().p_value < NEVER).all()
        error = 5 * math.sqrt(0.9 * 0.1 / 2_000)
        assert (ranks.coverage(0.9) < 0.9 - error).all()
        found = latent_tarp(halved(linear_gaussian()), items=2_000)
        assert found["z"].chi_square().p_value < NEVER

    def test_priors_without_a_continuous_content_have_tarp_of_z_alone(self):
        joint = linear_gaussian()
        joint.prior = ps.priors.Mixture(DIM, 3, SCALE)
        joint.posterior = ps.guides.Coupled(joint.encoder, dim=DIM)
        assert [*latent_tarp(joint, items=20)] == ["z"]

    def test_a_batch_is_no_matter(self):
        ranks = latent_ranks(linear_gaussian(), items=10, batch_size=4, draws=7)
        assert ranks.ranks.shape == (10, 2, DIM) and ranks.ranks.max() <= 7


def exact_moments(joint: ps.Joint, x: Tensor, width: float = 1.0) -> None:
    """Give q(scale) the moments of the exact posterior of log scale, found on a grid.

    The columns of the decoder are orthogonal: their factors are all there is to z.
    """
    loc, noise = (part.detach() for part in joint.posterior.factors(x))
    u, views = torch.linspace(-4.0, 2.0, 601), x.shape[1]
    log_p = joint.prior.scale.value.log_prob(u.exp()) + u
    for d in range(DIM):
        within = (2 * u).exp() + noise[0, 0, d] ** 2
        mean = loc[..., d].mean(1)
        apart = (loc[..., d] - mean[:, None]).square().sum()
        for square, variance, count in (
            (views * mean.square().sum(), within + views, len(x)),
            (apart, within, len(x) * (views - 1)),
        ):
            log_p = log_p - 0.5 * (square / variance + count * variance.log())
    weight = log_p.softmax(0)
    mean = (weight * u).sum()
    sd = (weight * (u - mean).square()).sum().sqrt()
    joint.prior.scale.loc.data = mean
    joint.prior.scale.log_scale.data = (width * sd).log()


class TestSimulationBasedCalibration:
    def calibrated(self, width: float) -> dict[str, Ranks]:
        return simulation_based_calibration(
            lambda: linear_gaussian(scale=dist.LogNormal(-0.3, 0.4)),
            lambda joint, data: exact_moments(joint, data.views, width),
            items=80,
            repeats=400,
            jointly=True,
        )

    def test_ranks_of_the_exact_posterior_are_uniform(self):
        found = self.calibrated(1.0)
        assert found["tarp"].chi_square().p_value > SURELY
        ranks = found["scale"]
        assert ranks.ranks.shape == (400,) and ranks.draws == 99
        assert ranks.chi_square().p_value > SURELY

    def test_ranks_of_half_its_width_are_not(self):
        found = self.calibrated(0.5)
        assert found["tarp"].chi_square().p_value < NEVER
        ranks = found["scale"]
        assert ranks.chi_square().p_value < NEVER
        assert ranks.coverage(0.9) < 0.75

    def test_a_scale_for_each_dimension_is_ranked_for_each(self):
        each = dist.LogNormal(torch.zeros(DIM), 0.4).to_event(1)
        ranks = simulation_based_calibration(
            lambda: ps.limits.SimVAE(linear_gaussian(scale=each)),
            lambda objective, data: None,  # only shapes are asked for
            items=2,
            repeats=5,
            jointly=True,
        )
        assert ranks["scale"].ranks.shape == (5, DIM)
        assert ranks["tarp"].ranks.shape == (5,)


def flat() -> ps.Joint:
    joint = linear_gaussian()
    joint.prior = ps.priors.Gaussian(DIM, SCALE, y_scale=math.inf)
    return joint


FEW, SIMCLR = Ranks(np.arange(20), 99), ps.limits.SimCLR(nn.Linear(2, 2))
sbc, point = simulation_based_calibration, ps.guides.Point
test_mistakes_are_explained = refusals(
    (lambda: rank(torch.tensor(1.5), torch.ones(3, 2)), ValueError, "first axis"),
    (lambda: FEW.chi_square(10), ValueError, "fewer bins or more repeats"),
    (lambda: FEW.coverage(90), ValueError, "between 0 and 1"),
    (lambda: simulate(linear_gaussian(), 0), ValueError, "items as a whole number"),
    (lambda: simulate(SIMCLR, 5), ValueError, "no p"),
    (lambda: simulate(flat(), 5), ValueError, "y_scale"),
    (lambda: latent_ranks(linear_gaussian(point)), ValueError, "Point"),
    (lambda: tarp(torch.ones(1, 2), torch.ones(9, 1, 2)), ValueError, "2 items"),
    (lambda: tarp(torch.ones(3, 2), torch.ones(9, 3)), ValueError, "first axis"),
    (
        lambda: tarp(torch.ones(3, 2), torch.ones(9, 3, 2), torch.ones(2)),
        ValueError,
        "references of shape",
    ),
    (lambda: latent_tarp(linear_gaussian(), 1), ValueError, "items as"),
    (
        lambda: sbc(linear_gaussian, lambda joint, data: None),
        ValueError,
        "latent_ranks",
    ),
)


@pytest.mark.slow
def test_fitted_posteriors_of_the_scale_are_calibrated(tmp_path):
    torch.set_default_dtype(torch.float32)
    path = MODELS / "scale_calibration.py"
    spec = importlib.util.spec_from_file_location("scale_calibration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    figures = module.main(results=tmp_path / "scale_ranks.json")
    assert module.REPEATS >= 300
    assert figures["p_value"] > 0.01
    assert figures["mean KL(q‖p)"] < 0.05


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, torch.tensor, list])
def test_ranks_of_any_whole_numbers_are_counted_alike(kind):
    given = np.arange(100).repeat(3)
    convert = kind if kind in (torch.tensor, list) else given.astype
    found = Ranks(convert(given) if convert is kind else convert(kind), 99)
    assert found.ranks.dtype == np.int64
    assert found.counts(10).tolist() == [30] * 10
    assert found.chi_square().statistic == 0


def test_what_are_no_ranks_is_refused():
    for ranks, draws, words in (
        ([0.5, 1.0], 9, "whole numbers in ranks"),
        ([[True]], 9, "whole numbers in ranks"),
        ([0, 10], 9, "from 0 to the number of draws, 9, got them from 0 to 10"),
        ([-1, 0], 9, "got them from -1"),
        (np.zeros((0, 2), int), 9, "one repeat or more"),
        ([0], 0, "draws as"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            Ranks(ranks, draws)
    broken = torch.tensor([[math.nan], [0.0]])
    with pytest.raises(ValueError, match="finite numbers in draws"):
        rank(torch.zeros(1), broken)


def test_several_modalities_are_refused():
    parts = [ps.nn.MLPEncoder((n,), 2, hidden=(8,)) for n in (3, 4)]
    decoders = [ps.nn.MLPDecoder(2, (n,), hidden=(8,)) for n in (3, 4)]
    encoder, decoder = ps.nn.PerModality(parts), ps.nn.PerModality(decoders)
    given = ps.priors.Gaussian(2, 0.5), [ps.likelihoods.Gaussian(0.3)] * 2
    joint = ps.Joint(*given, encoder, decoder)
    for call in (simulate, latent_ranks, latent_tarp):
        with pytest.raises(ValueError, match="joint of one modality .*, got 2; draw"):
            call(joint, 5)
