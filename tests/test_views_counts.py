"""Thinning of counts: the laws that it keeps, its draws, and what it refuses."""

import numpy as np
import pytest
import torch
from helpers.checks import assert_mean, refusals, seeded
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Binomial
from torch.testing import assert_close

import probssl as ps
from probssl.likelihoods.counts import Counts
from probssl.views import Augment, Colour, Invert, Mask, Noise, Thinning

MOST = 400  # beyond which the counts of these tests have no mass
TOTALS = torch.arange(MOST + 1.0, dtype=torch.float64)


def thinned(log_p: Tensor, share: Tensor) -> Tensor:
    """The probabilities of x' by the exact sum over x."""
    kept = Binomial(TOTALS, probs=share, validate_args=False)
    rows = TOTALS.unsqueeze(1)
    given = kept.log_prob(rows.clamp(max=TOTALS)).exp().where(rows <= TOTALS, 0.0)
    return given @ log_p.exp()


@pytest.mark.parametrize("dispersion", [None, 0.1, 1.5])
@pytest.mark.parametrize("share", [0.1, 0.7, 0.999])
def test_poisson_and_negative_binomial_counts_stay_what_they_are(dispersion, share):
    alpha = None if dispersion is None else torch.tensor(dispersion).double()
    mean, share = torch.tensor(8.0).double(), torch.tensor(share).double()
    whole, part = (Counts(m.log(), alpha) for m in (mean, share * mean))
    log_p = whole.log_prob(TOTALS)
    assert_close(log_p.exp().sum().item(), 1.0, rtol=0, atol=1e-12)
    expected = part.log_prob(TOTALS).exp()
    assert_close(thinned(log_p, share), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 9, 60, 2**24])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_count_keeps_a_binomial_part(count, share):
    """The probability integral transform of the draws is uniform."""
    n, cells = 100_000, 50
    drawn = Thinning(share)(torch.full((n, 1), float(count))).double().numpy()
    law, rng = stats.binom(count, share), np.random.default_rng(0)
    place = law.cdf(drawn) - rng.random(drawn.shape) * law.pmf(drawn)
    found = np.histogram(place, cells, (0, 1))[0]
    chi = ((found - n / cells) ** 2 / (n / cells)).sum()
    assert abs(chi - (cells - 1)) < 5 * (2 * (cells - 1)) ** 0.5


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_thinned_draws_have_mean_and_variance_of_their_law(alpha, float64):
    share, n = (0.3, 0.9), 40_000
    dispersion = None if alpha is None else torch.tensor(alpha)
    x = Counts(torch.full((n, 1), 6.0).log(), dispersion).sample()
    kept, drawn = Thinning(share).with_shares(x)
    assert share[0] <= drawn.min() and drawn.max() <= share[1]
    assert_mean(drawn, 0.6)
    assert_mean((drawn - 0.6).square(), 0.6**2 / 12)
    mean = 6 * drawn
    assert_mean(kept.squeeze(1) - mean, 0.0)
    variance = mean + (alpha or 0.0) * mean.square()
    assert_mean((kept.squeeze(1) - mean).square() - variance, 0.0)


def test_halves_of_a_poisson_count_are_independent(float64):
    x = torch.poisson(torch.full((50_000, 1), 5.0))
    kept = Thinning(0.4)(x)
    assert_mean((kept - 2.0) * (x - kept - 3.0), 0.0)


def test_all_elements_of_a_view_share_one_draw_and_views_do_not(float64):
    x = torch.full((300, 400), 1000.0)
    batch = Augment(Thinning((0.2, 0.8)), views=2, shares=True)(x)
    share = batch.covariates["share"]
    assert share.shape == (300, 2, 1) and torch.equal(batch.clean, x)
    error = (share * (1 - share) / 1000 / 400).sqrt()
    mean = batch.views.mean(-1, keepdim=True) / 1000
    assert ((mean - share).abs() < 5 * error).all()
    one, other = (share - 0.5).squeeze(-1).unbind(1)
    assert_mean(one * other, 0.0)
    torch.manual_seed(7)
    views = Augment(Thinning((0.2, 0.8)), views=2)(x)
    torch.manual_seed(7)
    again = Augment(Thinning((0.2, 0.8)), views=2, shares=True)(x).views
    assert torch.equal(views, again)


KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_counts_keep_their_type_and_stay_counts(dtype):
    x = torch.randint(200, (50, 7)).to(dtype)
    before, part = x.clone(), Thinning((0.1, 0.9))
    kept = seeded(part, x)
    assert kept.dtype == dtype and torch.equal(x, before)
    assert (kept >= 0).all() and (kept <= x).all() and (kept == kept.long()).all()
    assert torch.equal(seeded(part, x), kept) and not torch.equal(part(x), kept)
    assert torch.equal(Thinning(1.0)(x), x)


def test_counts_of_any_shape_are_not_clamped():
    images = torch.randint(50, (6, 1, 4, 4)).float()
    views = Augment(Thinning((0.9, 1.0)), Mask(0.2))(images)
    assert views.shape == (6, 2, 1, 4, 4) and views.max() > 1
    assert (views == views.round()).all()


def test_saved_thinning_draws_the_same(tmp_path):
    sampler = Augment(Thinning((0.2, 0.8)), Mask(0.1), views=3, shares=True)
    x = torch.randint(9, (4, 5)).float()
    again = ps.load(ps.save(sampler, tmp_path))
    assert torch.equal(seeded(again, x).views, seeded(sampler, x).views)


def fitted(x: object, views: nn.Module) -> None:
    joint = ps.Joint(
        ps.priors.Gaussian(2),
        ps.likelihoods.Poisson(),
        ps.nn.MLPEncoder((5,), 2, hidden=(8,)),
        ps.nn.MLPDecoder(2, (5,), hidden=(8,)),
    )
    objective = ps.limits.SimVAE(joint)
    ps.fit(objective, x, views=views, epochs=1, batch_size=8, progress=False)


def test_memory_maps_and_streams_of_counts_are_thinned(tmp_path, caplog):
    x = np.random.default_rng(0).poisson(5, (24, 5)).astype(np.int32)
    kept = np.memmap(tmp_path / "x", np.int32, "w+", shape=x.shape)
    kept[:] = x
    for data in (x, kept, torch.from_numpy(x).float()):
        fitted(data, Augment(Thinning()))
    assert "same seed" not in caplog.text


X = torch.randint(9, (20, 5)).float()
test_what_holds_no_counts_is_refused = refusals(
    (lambda: Thinning(0), ValueError, r"share.*within \(0, 1\]"),
    (lambda: Thinning((0.9, 0.3)), ValueError, "lower end first"),
    (lambda: Thinning(1.1), ValueError, "share"),
    (lambda: Thinning()(X - 1), ValueError, "counts 0, 1, .*from -1 .*not their log"),
    (lambda: Thinning()(X + 0.5), ValueError, "with fractions; give the counts"),
    (lambda: Thinning()(X / 255), ValueError, "k/255: give counts as floats"),
    (lambda: Thinning()(X / 0), ValueError, "nan to nan"),
    (lambda: Thinning()(X + 2.0**25), ValueError, "16777216.*float32.*in float64"),
    (lambda: Thinning()(X.half() + 2048), ValueError, "2048.*float16"),
    (lambda: Thinning()(X.double() + 2.0**47), ValueError, "70368744177664"),
    (lambda: Thinning()(X > 1), TypeError, "torch.bool"),
    (lambda: Thinning()(X.numpy()), TypeError, "ndarray"),
    (lambda: Thinning()(X.to_sparse()), TypeError, "sparse.*to_dense"),
    (lambda: fitted(X - 1, Augment(Thinning())), ValueError, "counts 0, 1, "),
    (lambda: fitted(X + 0.5, Augment(Thinning())), ValueError, "with fractions"),
    (lambda: fitted(X, Augment(Noise(), Thinning())), ValueError, "for Thinning"),
    (lambda: fitted(X, Augment(Thinning(), Noise())), ValueError, "for Poisson"),
    (lambda: fitted(X.to_sparse(), Augment(Thinning())), TypeError, "sparse tensor"),
    (lambda: Augment(Thinning(), levels=16), ValueError, "no levels.*beside Thinning"),
    (lambda: Augment(Thinning(), clamp=True), ValueError, "clamp=True"),
    (lambda: Augment(Thinning(), Colour()), ValueError, "Colour or Invert"),
    (lambda: Augment(Invert(), Thinning()), ValueError, "Colour or Invert"),
    (lambda: Augment(Mask(), shares=True), ValueError, "one Thinning.*got 0"),
    (
        lambda: Augment(Thinning(), Thinning(), shares=True),
        ValueError,
        "one Thinning.*got 2",
    ),
)
