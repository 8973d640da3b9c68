"""Advice without labels: right where the linear theory knows the answer."""

import json
import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checks import assert_mean

import probssl as ps
from probssl.linear import AdditiveNoise, Flattened, advise
from probssl.linear.advice import is_structured, structure
from probssl.linear.theory import (
    alignment_threshold,
    asymptotic_spectra,
    critical_noise,
)

VERDICTS = ["joint embedding", "reconstruction", "either", "neither"]
IMAGES, CASES, MARGIN = 3_000, 20, 1.5


def sources(many: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Independent signals of variance 1: clusters, heavy tails, a skewed one."""
    kinds = [
        lambda: rng.choice([-1.0, 1.0], many) + 0.3 * rng.normal(size=many),
        lambda: rng.choice([0.0, 0.0, 1.0], many) + 0.2 * rng.normal(size=many),
        lambda: rng.laplace(size=many),
        lambda: rng.exponential(size=many),
    ]
    found = np.stack([kinds[rng.integers(4)]() for _ in range(k)], 1)
    return (found - found.mean(0)) / found.std(0)


class Case(NamedTuple):
    """Variances of signal, noise and views, and the alignment."""

    signal: np.ndarray
    noise: np.ndarray
    theta: np.ndarray
    alpha: float


def problem(verdict: str, rng: np.random.Generator) -> Case:
    """Variances, drawn until the theory has this verdict, away from its boundary."""
    while True:
        k, r = rng.integers(2, 5), rng.integers(3, 15)
        signal = rng.uniform(1, 4, k)
        noise = 10 ** rng.uniform(-1.5, 2.5) * rng.uniform(0.5, 1, r)
        theta, alpha = 10 ** rng.uniform(-2, 0.3, k + r), 10 ** rng.uniform(-1, 1)
        good = []
        for paradigm in ("joint embedding", "reconstruction"):
            kept, left = asymptotic_spectra(signal, noise, theta, alpha, paradigm)
            if paradigm == "joint embedding":  # between to within, as a distance is
                kept, left = kept / (1 - kept), left / (1 - left)
            gap = math.log(kept.min() / left.max())
            good.append(None if abs(gap) < math.log(MARGIN) else gap > 0)
        if None not in good and _NAMES[good[0], good[1]] == verdict:
            return Case(signal, noise, theta, alpha)


RECOVERED = [(True, False), (False, True), (True, True), (False, False)]
_NAMES = dict(zip(RECOVERED, VERDICTS, strict=True))


def drawn(
    case: Case, rng: np.random.Generator, gaussian: bool = False
) -> tuple[np.ndarray, AdditiveNoise, np.ndarray]:
    """Images of a case, their views, and more of the noise, in a random basis."""
    k, r = len(case.signal), len(case.noise)
    basis = np.linalg.qr(rng.normal(size=(k + r, k + r)))[0]
    signal = rng.normal(size=(IMAGES, k)) if gaussian else sources(IMAGES, k, rng)
    noise, more = rng.normal(size=(2, IMAGES, r)) * np.sqrt(case.noise)
    variances = case.theta + np.append(np.zeros(k), case.alpha**2 * case.noise)
    covariance = (basis * variances) @ basis.T
    images = np.concatenate([signal * np.sqrt(case.signal), noise], 1) @ basis.T
    views = AdditiveNoise((covariance + covariance.T) / 2)
    return images, views, more @ basis[:, k:].T


@pytest.mark.parametrize("verdict", VERDICTS)
def test_advice_is_right_on_nine_of_ten_constructed_cases(verdict):
    rng, right = np.random.default_rng(VERDICTS.index(verdict)), 0
    for _ in range(CASES):
        images, views, _ = drawn(problem(verdict, rng), rng)
        found = advise(images, views, halves=1, progress=False)
        right += found.verdict == verdict
    assert right >= 18


def test_dependent_views_of_a_call_are_told():
    images, views, _ = drawn(CASE, np.random.default_rng(0))

    def sampler(x: np.ndarray) -> np.ndarray:
        return np.stack([views(x), views(x)], 1)

    def opposed(x: np.ndarray) -> np.ndarray:
        return np.stack([one := views(x), 2 * x - one], 1)

    def halves(x: np.ndarray) -> np.ndarray:
        white = np.random.default_rng(1).hypergeometric(
            x.astype(int), 20 - x.astype(int), 10
        )
        return np.stack([white, x - white], 1)

    options = {"halves": 1, "progress": False}
    assert advise(images, sampler, **options).verdict == "joint embedding"
    with pytest.warns(UserWarning, match="independent given their image"):
        advise(images, opposed, **options)
    counts = np.random.default_rng(2).binomial(20, 0.5, (3_000, 5))
    with pytest.raises(ValueError, match="nothing in common"):
        advise(counts, halves, **options)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_examples_of_the_noise_distinguish_a_gaussian_signal(verdict):
    rng, right, unseen = np.random.default_rng(VERDICTS.index(verdict)), 0, 0
    for _ in range(5):
        images, views, noise = drawn(problem(verdict, rng), rng, gaussian=True)
        alone = advise(images, views, halves=1, progress=False)
        unseen += alone.n_components == 0
        found = advise(images, views, nuisance=noise, halves=1, progress=False)
        right += found.verdict == verdict
    assert right == 5
    assert unseen >= 4  # one in a hundred is taken for structure by chance


CASE = Case(
    signal=np.array([2.0, 3.0]),
    noise=np.array([40.0, 30.0, 20.0]),
    theta=np.full(5, 0.1),
    alpha=0.5,
)


def test_the_figures_of_an_advice_are_those_of_the_theory():
    torch.manual_seed(0)
    images, views, _ = drawn(CASE, np.random.default_rng(0))
    found = advise(images, views, halves=20, progress=False)
    assert found.verdict == "joint embedding" and found.support == 1
    assert found.n_components == 2
    assert found.recovered["joint embedding"].value > 0.99
    assert found.recovered["reconstruction"].value < 0.01
    # What views add of their own counts as alignment.
    covered = CASE.theta[2:] + CASE.alpha**2 * CASE.noise
    alignment = math.sqrt(covered.sum() / CASE.noise.sum())
    theta = np.append(CASE.theta[:2], np.zeros(3))
    expected = {
        paradigm: alignment_threshold(CASE.signal, CASE.noise, theta, paradigm)
        for paradigm in found.thresholds
    }
    largest = CASE.noise.max() / critical_noise(CASE.signal, CASE.theta[:2])
    pairs = [(found.alignment, alignment), (found.noise, largest)]
    pairs += [(found.thresholds[name], value) for name, value in expected.items()]
    for estimate, value in pairs:
        spread = estimate.high - estimate.low  # 3.3 standard errors
        assert estimate.low <= estimate.value <= estimate.high
        assert abs(estimate.value - value) < 5 * spread / 3.3
        assert spread < 0.4 * value


def test_neither_labels_nor_the_unit_of_the_data_matter():
    images, views, _ = drawn(CASE, np.random.default_rng(0))
    labels, data = torch.arange(IMAGES), torch.as_tensor(images)
    found = []
    for x, sampler in (
        (images, views),
        (ps.data.Split(data, labels), views),
        (1e3 * images, lambda x: 1e3 * views(x / 1e3)),
    ):
        torch.manual_seed(0)
        found.append(advise(x, sampler, halves=3, progress=False).as_dict())
    for other in found[1:]:
        for name in ("verdict", "n_components", "support"):
            assert other[name] == found[0][name]
        for name in ("alignment", "noise"):
            for part, value in found[0][name].items():
                assert other[name][part] == pytest.approx(value, rel=1e-6)


def test_a_sampler_of_images_serves_images_and_one_of_rows_serves_rows():
    images = ps.data.digits().train.images
    views, found = ps.views.digits(), []
    for x, sampler in (
        (images, views),
        (images.flatten(1).double().numpy(), Flattened(views, (1, 8, 8))),
    ):
        torch.manual_seed(0)
        found.append(advise(x, sampler, n_components=10, halves=2, progress=False))
    assert str(found[0]) == str(found[1])
    assert found[0].verdict == "either"


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, np.ndarray.tolist])
def test_a_module_takes_tensors_whatever_the_rows_are(kind):
    rows = np.random.default_rng(0).laplace(size=(200, 5)).astype(np.float32)
    views, found = ps.views.Augment(ps.views.Noise(0.5)), []
    options = {"n_components": 2, "halves": 2, "progress": False}
    for x in (torch.tensor(rows), kind(rows)):
        torch.manual_seed(0)
        found.append(str(advise(x, views, **options)))
    assert found[0] == found[1]
    torch.manual_seed(0)
    one = ps.linear.JointEmbeddingSSL(2, views=views).fit(rows).spectrum_
    torch.manual_seed(0)
    other = ps.linear.JointEmbeddingSSL(2, views=Flattened(views, (5,))).fit(rows)
    np.testing.assert_array_equal(one, other.spectrum_)


def test_an_advice_is_printed_plotted_and_saved():
    torch.manual_seed(0)
    images, views, _ = drawn(CASE, np.random.default_rng(0))
    found = advise(images, views, halves=3, progress=False)
    assert "joint embedding: it recovers" in str(found)
    assert "of 2 components" in str(found) and "100% of random halves" in str(found)
    again = json.loads(json.dumps(found.as_dict()))
    assert again["recovered"]["joint embedding"]["value"] == pytest.approx(1, abs=0.01)
    assert len(again["spectra"]["reconstruction"]["values"]) == 5
    figure = ps.plots.advice(found)
    assert [panel.get_title() for panel in figure.axes[:2]] == list(found.spectra)
    assert len(figure.axes) == 3


def test_gaussian_noise_alone_has_no_components():
    torch.manual_seed(0)
    noise = np.random.default_rng(0).normal(size=(1_000, 6))
    found = advise(noise, AdditiveNoise(0.5), halves=2, progress=False)
    assert found.verdict == "neither" and found.n_components == 0
    assert "nothing in these images stands out" in str(found)
    assert ps.plots.advice(found).axes


def test_gaussian_noise_has_no_structure():
    rng, least, found = np.random.default_rng(0), [], []
    for _ in range(200):
        noise = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 8))
        white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise.T))).T
        index, p_value = structure(white)
        least.append(p_value.min())
        found.append(index.mean())
        assert not is_structured(index, p_value, index.max()).any() or least[-1] < 0.005
    assert_mean(np.array(found), 0)
    rejected = np.mean(np.array(least) < 0.05 / 8)
    assert rejected < 0.05 + 5 * math.sqrt(0.05 * 0.95 / 200)


def test_structure_is_the_plain_formula_and_sees_dependence_alone():
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (2_000, 2))
    size = np.abs(rng.normal(size=(2_000, 1)))  # normal each, but of one size
    x = np.concatenate([size * signs, rng.normal(size=(2_000, 2))], 1)
    index, p_value = structure(x)
    s = (x - x.mean(0)) / x.std(0)
    a = abs(s)
    for i in range(4):
        odd = np.mean(s[:, i] * np.exp(-(s[:, i] ** 2) / 2)) ** 2
        even = (a[:, i].mean() - math.sqrt(2 / math.pi)) ** 2
        plain = odd / (2 * (3**-1.5 - 1 / 8)) + even / (2 * (1 - 3 / math.pi))
        for j in range(4):
            if j != i:
                pairs = (a[:, i], a[:, j]), (a[:, i], s[:, j]), (s[:, i], a[:, j])
                plain += sum(np.corrcoef(*pair)[0, 1] ** 2 for pair in pairs) / 2
        assert index[i] == pytest.approx(plain - 11 / 4_000, rel=1e-9, abs=1e-12)
    relevant = is_structured(index, p_value, index.max())
    assert relevant.tolist() == [True, True, False, False]


def test_structure_of_features_with_one_or_two_values_is_finite():
    x = np.stack([np.tile([-1.0, 1.0], 500), np.zeros(1_000)], 1)
    index, p_value = structure(x)
    assert np.isfinite(index).all() and np.isfinite(p_value).all()
    assert index[0] > 0.1


GOOD = np.random.default_rng(0).normal(size=(200, 6))
NOISY = AdditiveNoise(0.5)


@pytest.mark.parametrize(
    ("x", "views", "options", "message"),
    [
        (GOOD[:99], NOISY, {}, "at least 100 rows"),
        (GOOD[0], NOISY, {}, "at least 100 rows"),
        (np.where(GOOD > 2, np.nan, GOOD), NOISY, {}, "finite numbers"),
        (np.ones((200, 6)), NOISY, {}, "all of them are the same"),
        (GOOD, lambda x: x * np.nan, {}, "NaN, infinity"),
        (GOOD, lambda x: x[:, :3], {}, "views of 6 features"),
        (GOOD, lambda x: x[:100], {}, "of 200 rows"),
        (GOOD, lambda x: x, {}, "all views of each image agree"),
        (GOOD, lambda x: np.random.permutation(x), {}, "keeps the order"),
        (GOOD, NOISY, {"n_views": 1}, "n_views as a whole number of at least 2"),
        (GOOD, NOISY, {"n_components": 0}, "n_components"),
        (GOOD, NOISY, {"halves": 0}, "halves as a whole number of at least 1"),
        (GOOD, NOISY, {"tolerance": 1.0}, "tolerance"),
        (GOOD, NOISY, {"nuisance": GOOD[:, :3]}, "nuisance of 6 features"),
    ],
)
def test_bad_input_is_refused_before_any_work(x, views, options, message):
    with pytest.raises(ValueError, match=message):
        advise(x, views, progress=False, **options)


def test_the_progress_bar_is_shown_by_default(capsys):
    advise(GOOD, NOISY, halves=2)
    assert "halves" in capsys.readouterr().err
    advise(GOOD, NOISY, halves=2, progress=False)
    assert not capsys.readouterr().err


ROOT = Path(__file__).parent.parent
JOINT, OTHER = ("SimCLR", "VICReg"), ("SimVAE", "denoising autoencoder")


@pytest.mark.parametrize("matching", [False, True])
def test_the_advice_for_mnist_under_a_strong_background_agrees_with_training(
    matching, data_root, monkeypatch
):
    path = ROOT / "models" / "paradigms_under_noise.py"
    spec = spec_from_file_location(path.stem, path)
    model = module_from_spec(spec)
    spec.loader.exec_module(model)
    monkeypatch.setenv("PROBSSL_DATA", str(data_root))
    data, ratio = model.mnist(), 2.0
    sampler = model.views(model.amplitude(data, ratio), matching)
    torch.manual_seed(0)
    images = model.noisy(data, ratio).train
    verdict = advise(images, sampler, halves=1, progress=False).verdict
    results = ROOT / "benchmarks" / "results" / f"{path.stem}.json"
    probes: dict[str, list[float]] = {}
    for row in json.loads(results.read_text())["rows"]:
        if row["ratio"] == ratio and row["matching"] == matching:
            probes.setdefault(row["method"], []).append(row["linear_probe"])
    joint = [min(probes[name]) for name in JOINT]
    other = [max(probes[name]) for name in OTHER]
    if matching:
        assert verdict == "joint embedding" and min(joint) > max(other) + 0.2
    else:
        assert verdict == "neither"
        assert max(map(max, (probes[name] for name in JOINT + OTHER))) < 0.3
