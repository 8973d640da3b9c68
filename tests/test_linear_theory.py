"""The thresholds of alignment: against spectra, solutions, and samples that grow."""

import math
from functools import partial
from typing import NamedTuple, get_args

import numpy as np
import pytest
from helpers.checks import assert_mean, mean_and_bar, refusals
from numpy.testing import assert_allclose
from scipy.linalg import subspace_angles

from probssl.linear import (
    AdditiveNoise,
    JointEmbeddingSSL,
    Moments,
    ReconstructionSSL,
    alignment_threshold,
    asymptotic_spectra,
    critical_noise,
    preference,
    recovered,
)
from probssl.linear.solutions import joint_embedding, reconstruction
from probssl.linear.theory import Paradigm

PARADIGMS = ["joint embedding", "reconstruction"]
SOLVED = {"joint embedding": joint_embedding, "reconstruction": reconstruction}
ESTIMATORS = {
    "joint embedding": JointEmbeddingSSL,
    "reconstruction": ReconstructionSSL,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class Problem(NamedTuple):
    signal: np.ndarray
    noise: np.ndarray
    augmentation: np.ndarray

    @property
    def k(self):
        return len(self.signal)


def problem(rng, spread=3.0):
    """Variances over several decades, of one to five directions of either kind."""
    k, r = rng.integers(1, 6, 2)
    parts = [np.exp(rng.uniform(-spread, spread, many)) for many in (k, r, k + r)]
    return Problem(*parts)


def orthogonal(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def views_of(one, basis, alignment):
    noise = np.concatenate([np.zeros(one.k), one.noise])
    spread = one.augmentation + alignment**2 * noise
    return AdditiveNoise((basis * spread) @ basis.T)


def top_are_signal(kept, dropped):
    """Selection itself: the k largest of all values are the first k."""
    order = np.argsort(-np.concatenate([kept, dropped]))
    return set(order[: len(kept)]) == set(range(len(kept)))


def loss(encoder, basis):
    """The sine of the largest angle between the rows and the columns of the basis."""
    return math.sin(subspace_angles(encoder.T, basis)[0])


# The limit itself.


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_signal_is_on_top_exactly_above_the_threshold(paradigm, rng):
    crossed = 0
    for _ in range(2_000):
        one = problem(rng)
        threshold = alignment_threshold(*one, paradigm)
        above = max(threshold * 1.001, 1e-3)
        assert top_are_signal(*asymptotic_spectra(*one, above, paradigm))
        if threshold > 0:
            below = threshold * 0.999
            assert not top_are_signal(*asymptotic_spectra(*one, below, paradigm))
            crossed += 1
    assert 500 < crossed < 2_000  # both kinds of problem were among them


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_solution_spans_the_signal_exactly_above_the_threshold(paradigm, rng):
    for _ in range(200):
        one = problem(rng, spread=1.5)
        basis = orthogonal(rng, len(one.augmentation))
        values = np.concatenate([one.signal, one.noise])
        data = (basis * values) @ basis.T
        zero = np.zeros(len(basis))
        moments = Moments(1, zero, zero, data, data, data, data)
        threshold = alignment_threshold(*one, paradigm)
        cases = [(max(threshold * 1.01, 1e-3), 0.0)]
        # A signal that is lost is lost whole: the angle is 0 or a right one.
        cases += [(threshold * 0.99, 1.0)] if threshold > 0 else []
        for alignment, sine in cases:
            found = SOLVED[paradigm](
                views_of(one, basis, alignment).moments(moments), one.k
            )
            lost = loss(found.encoder, basis[:, : one.k])
            assert_allclose(lost, sine, atol=1e-6)
            assert recovered(*one, alignment, paradigm) == (sine == 0)
            spectra = asymptotic_spectra(*one, alignment, paradigm)
            expected = np.sort(np.concatenate(spectra))[::-1]
            assert_allclose(found.spectrum, expected, rtol=1e-9)


def test_corollary_4_5_holds_and_preference_agrees_with_it(rng):
    seen = {"joint embedding": 0, "reconstruction": 0, "either": 0}
    for _ in range(5_000):
        one = problem(rng)
        joint, other = (alignment_threshold(*one, each) for each in PARADIGMS)
        boundary = critical_noise(one.signal, one.augmentation[: one.k])
        found = preference(*one)
        seen[found] += 1
        if one.noise.max() < boundary:
            assert joint > other or joint == other == 0
            assert found in ("reconstruction", "either")
        if one.noise.min() > boundary:
            assert joint < other or joint == other == 0
            assert found in ("joint embedding", "either")
        expected = "joint embedding" if joint < other else "reconstruction"
        assert found == ("either" if joint == other else expected)
    assert min(seen.values()) > 100


def test_critical_noise_is_eta_squared_over_delta(rng):
    for _ in range(200):
        a, t = np.exp(rng.uniform(-3, 3, (2, 4)))
        eta, delta = (a / np.sqrt(a + t)).min(), (a / (a + t)).min()
        assert_allclose(critical_noise(a, t), eta**2 / delta, rtol=1e-12)
        assert a.min() * (1 - 1e-12) <= critical_noise(a, t) <= a.max() * (1 + 1e-12)
        # The least signal where the augmentation is even.
        assert_allclose(critical_noise(a, rng.uniform(0, 9)), a.min(), rtol=1e-12)
        assert_allclose(critical_noise(a, 0.3 * a), a.min(), rtol=1e-12)
        assert_allclose(critical_noise(a[:1], t[:1]), a[0], rtol=1e-12)


def test_noise_as_strong_as_a_single_signal_makes_the_thresholds_equal(rng):
    for a, t in np.exp(rng.uniform(-3, 3, (200, 2, 1))):
        share = rng.uniform(size=1)
        augmentation = np.concatenate([t + share * t, share * t])
        joint, other = (
            alignment_threshold(a, a, augmentation, each) for each in PARADIGMS
        )
        assert_allclose([joint, other], math.sqrt(t[0] / a[0]))
        assert preference(a, a, augmentation) == "either"
        assert preference(a, 1.01 * a, augmentation) == "joint embedding"
        assert preference(a, 0.99 * a, augmentation) == "reconstruction"


def test_thresholds_and_spectra_do_not_depend_on_units(rng):
    for paradigm in PARADIGMS:
        one = problem(rng)
        scaled = Problem(*(1e6 * part for part in one))
        thresholds = [alignment_threshold(*each, paradigm) for each in (one, scaled)]
        assert_allclose(*thresholds)
        assert preference(*one) == preference(*scaled)


def test_only_reconstruction_needs_more_alignment_for_stronger_noise():
    signal, noise, t = np.array([1.0, 2.0]), np.array([3.0]), np.array([4.0, 1, 0])
    joint, other = (
        [alignment_threshold(signal, c * noise, t, each) for c in (1, 10, 100)]
        for each in PARADIGMS
    )
    assert_allclose(joint, [2, 2, 2])
    assert_allclose(np.square(other), 15 * np.array([1, 10, 100]) - 1)


def test_directions_without_noise_and_supervision_need_no_alignment():
    signal, t = np.array([1.0, 2.0]), np.array([5.0, 5, 0, 1])
    for paradigm in get_args(Paradigm):
        for noise in (np.zeros(2), np.empty(0)):
            augmentation = t[: 2 + len(noise)]
            assert alignment_threshold(signal, noise, augmentation, paradigm) == 0
            assert recovered(signal, noise, augmentation, 0.0, paradigm)
    assert alignment_threshold(signal, np.array([9.0]), 1.0, "supervised") == 0
    assert recovered(signal, np.array([9.0]), 1.0, 0.0, "supervised")
    nothing = asymptotic_spectra(signal, np.zeros(2), t, 1.0, "reconstruction")[1]
    assert_allclose(nothing, 0)


def test_one_number_for_the_augmentation_is_that_for_all_directions(rng):
    *args, augmentation = problem(rng)
    even = np.full_like(augmentation, 0.7)
    for paradigm in PARADIGMS:
        number, each = (alignment_threshold(*args, t, paradigm) for t in (0.7, even))
        assert number == each


# Samples: n and alpha that grow.

BASIS = orthogonal(np.random.default_rng(1), 5)
SIGNAL, NOISE = np.array([3.0, 1.5]), np.array([1.0, 2.0, 0.5])
AUGMENTATION = np.array([2.0, 1.0, 0.5, 0.5, 0.5])


def images(rng, n):
    """Of second moments of the signal that hold exactly, and noise that is drawn."""
    exact = np.linalg.qr(rng.normal(size=(n, 2)))[0] * np.sqrt(n * SIGNAL)
    clean = exact @ BASIS[:, :2].T
    return clean, clean + rng.normal(size=(n, 3)) * np.sqrt(NOISE) @ BASIS[:, 2:].T


def views_at(alignment):
    return views_of(Problem(SIGNAL, NOISE, AUGMENTATION), BASIS, alignment)


def losses(paradigm, rng, sizes, alignment):
    estimator = ESTIMATORS[paradigm](2, views=views_at(alignment), with_mean=False)
    fits = (estimator.fit(images(rng, n)[1]).components_ for n in sizes)
    return [loss(encoder, BASIS[:, :2]) for encoder in fits]


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_above_the_threshold_the_loss_falls_with_the_root_of_n(paradigm, rng):
    alignment = 2 * alignment_threshold(SIGNAL, NOISE, AUGMENTATION, paradigm)
    sizes = (1_000, 16_000)
    small, large = np.transpose(
        [losses(paradigm, rng, sizes, alignment) for _ in range(60)]
    )
    assert_mean(small - 4 * large, 0)  # sixteen times the images, a quarter of the loss
    mean, bar = mean_and_bar(large)
    assert mean > bar and large.max() < 0.1


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_below_the_threshold_no_number_of_images_is_enough(paradigm, rng):
    alignment = 0.5 * alignment_threshold(SIGNAL, NOISE, AUGMENTATION, paradigm)
    for n in (1_000, 16_000):
        # In the limit the sine is 1; the margin is wide for n = 1,000.
        assert losses(paradigm, rng, [n], alignment)[0] > 0.9


def supervised(x, labels, alignment):
    r"""Ridge regression, the mean over all views (Lemma B.1): Y'X (X'X + n Sigma)⁻¹."""
    noise = len(x) * views_at(alignment).covariance
    return np.linalg.solve(x.T @ x + noise, x.T @ labels).T


def excess(rng, n, alignment):
    """The distance from the regression that sees the images without their noise."""
    clean, corrupted = images(rng, n)
    labels = clean @ np.random.default_rng(2).normal(size=(5, 3))
    maps = [supervised(x, labels, alignment) for x in (clean, corrupted)]
    return np.linalg.norm(maps[1] - maps[0])


@pytest.mark.parametrize("paradigm", get_args(Paradigm))
def test_few_images_are_enough_as_the_alignment_grows(paradigm, rng):
    seed, found = rng.integers(1 << 30), []
    for alignment in (1e2, 1e3):
        again = np.random.default_rng(seed)
        if paradigm == "supervised":
            found += [excess(again, 20, alignment)]
        else:
            found += losses(paradigm, again, [20], alignment)
    # It falls with alpha squared; next to 1, alpha squared is 1e4 at least.
    assert_allclose(found[0] / found[1], 100, rtol=1e-2)
    assert paradigm == "supervised" or found[1] < 1e-5


@pytest.mark.parametrize("alignment", [0.0, 1.0])
def test_supervision_ignores_noise_as_images_grow_at_any_alignment(alignment, rng):
    small, large = np.transpose(
        [[excess(rng, n, alignment) for n in (1_000, 16_000)] for _ in range(60)]
    )
    assert_mean(small - 4 * large, 0)


# What is refused.


@pytest.mark.parametrize(
    ("signal", "noise", "augmentation", "message"),
    [
        ([], [1.0], 1.0, "variances .* of the signal"),
        ([0.0, 1], [1.0], 1.0, "belong to the noise"),
        ([-1.0], [1.0], 1.0, "variances .* of the signal"),
        ([math.nan], [1.0], 1.0, "variances .* of the signal"),
        ([[1.0]], [1.0], 1.0, "variances .* of the signal"),
        ([1.0], [-1.0], 1.0, "variances .* of the noise"),
        ([1.0], [math.nan], 1.0, "variances .* of the noise"),
        ([1.0], 1.0, 1.0, "variances .* of the noise"),
        ([1.0], [1.0], [1.0, 2, 3], "or 2: along the 1 directions"),
        ([1.0], [1.0], [1.0], "or 2: along the 1 directions"),
        ([1.0], [1.0], -1.0, "variance of the augmentation"),
        ([1.0], [1.0], [1.0, math.inf], "variance of the augmentation"),
    ],
)
def test_invalid_variances_are_refused(signal, noise, augmentation, message):
    args = np.array(signal), np.array(noise), np.array(augmentation)
    for refuse in (
        lambda: alignment_threshold(*args, "joint embedding"),
        lambda: asymptotic_spectra(*args, 1.0, "reconstruction"),
        lambda: recovered(*args, 1.0, "supervised"),
        lambda: preference(*args),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()


ONES = np.ones(2), np.ones(2), 1.0
WORDS = ValueError, "alignment as a finite number of at least 0"
test_invalid_alignments_and_paradigms_are_refused = refusals(
    *(
        (partial(asymptotic_spectra, *ONES, alignment, "joint embedding"), *WORDS)
        for alignment in (-1.0, math.nan, math.inf)
    ),
    (lambda: asymptotic_spectra(*ONES, 1, "supervised"), ValueError, "no spectrum"),
    (lambda: alignment_threshold(*ONES, "contrastive"), ValueError, "'supervised', 'j"),
    (lambda: critical_noise(ONES[0], np.ones(3)), ValueError, "of the augmentation"),
)


def test_moments_around_zero_tell_no_mutual_information():
    x = np.random.default_rng(0).normal(5.0, 1.0, (100, 2))
    model = ESTIMATORS["joint embedding"](2, with_mean=False).fit(x)
    with pytest.raises(ValueError, match="with_mean=False, under which the mean"):
        model.mutual_information()
