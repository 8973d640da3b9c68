"""Advice without labels: right where the linear theory knows the answer."""

import math

import numpy as np
import pytest
import torch

import probssl as ps
from probssl.linear import AdditiveNoise, advise
from probssl.linear.structure import is_structured, structure
from probssl.linear.theory import asymptotic_spectra

VERDICTS = ["joint embedding", "reconstruction", "either", "neither"]
IMAGES, CASES, MARGIN = 3_000, 20, 1.5


def sources(many: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Independent signals of variance 1: two clusters, unequal clusters, exponential."""
    kinds = [
        lambda: rng.choice([-1.0, 1.0], many) + 0.3 * rng.normal(size=many),
        lambda: rng.choice([0.0, 0.0, 1.0], many) + 0.2 * rng.normal(size=many),
        lambda: rng.laplace(size=many),
        lambda: rng.exponential(size=many),
    ]
    found = np.stack([kinds[rng.integers(4)]() for _ in range(k)], 1)
    return (found - found.mean(0)) / found.std(0)


def problem(verdict: str, rng: np.random.Generator) -> dict:
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
        names = {(True, True): "either", (False, False): "neither"}
        names |= {(True, False): "joint embedding", (False, True): "reconstruction"}
        if None not in good and names[tuple(good)] == verdict:
            return {"signal": signal, "noise": noise, "theta": theta, "alpha": alpha}


def drawn(
    case: dict, rng: np.random.Generator, mix: bool = True
) -> tuple[np.ndarray, AdditiveNoise]:
    """Images of a case and their views, in a random orthogonal basis."""
    k, r = len(case["signal"]), len(case["noise"])
    basis = np.linalg.qr(rng.normal(size=(k + r, k + r)))[0] if mix else np.eye(k + r)
    signal = sources(IMAGES, k, rng) * np.sqrt(case["signal"])
    noise = rng.normal(size=(IMAGES, r)) * np.sqrt(case["noise"])
    variances = case["theta"].copy()
    variances[k:] += case["alpha"] ** 2 * case["noise"]
    covariance = (basis * variances) @ basis.T
    images = np.concatenate([signal, noise], 1) @ basis.T
    return images, AdditiveNoise((covariance + covariance.T) / 2)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_it_is_right_on_nine_of_ten_constructed_cases(verdict):
    rng = np.random.default_rng(VERDICTS.index(verdict))
    right = 0
    for _ in range(CASES):
        images, views = drawn(problem(verdict, rng), rng)
        found = advise(images, views, halves=1, progress=False)
        right += found.verdict == verdict
    assert right >= 18
