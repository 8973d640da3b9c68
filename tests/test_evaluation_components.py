"""The number of clusters by held-out likelihood, on clusters of which it is known."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold

from probssl.evaluation import number_of_components


def lumps(
    clusters: int, n: int = 200, dim: int = 2, apart: float = 6.0, seed: int = 0
) -> np.ndarray:
    """Normal clusters on a circle, or one at its centre."""
    random = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(n) % clusters) / clusters
    z = random.normal(size=(n, dim))
    if clusters > 1:
        radius = apart / (2 * np.sin(np.pi / clusters))
        z[:, :2] += radius * np.stack([np.cos(angle), np.sin(angle)], 1)
    return z


@pytest.mark.parametrize("clusters", [1, 4])
def test_the_fewest_that_are_as_good_as_the_best_are_those_there_are(clusters):
    z = lumps(clusters, 160)
    found = number_of_components(z, range(1, 7), folds=3, progress=False)
    assert found.fewest == clusters <= found.best


@pytest.mark.parametrize("covariance", ["full", "spherical", "diag"])
def test_any_shape_of_covariance_will_do(covariance):
    z = lumps(4, dim=3)
    options = {"covariance": covariance, "folds": 3, "progress": False}
    assert number_of_components(z, (2, 3, 4, 6), **options).fewest == 4


def test_the_log_density_is_that_of_items_held_out():
    z, numbers = lumps(3), (1, 3)
    found = number_of_components(z, numbers, folds=4, seed=2, progress=False)
    scaled = (z - z.mean(0)) / np.sqrt(z.var(0).mean())
    split = list(KFold(4, shuffle=True, random_state=2).split(z))
    each = np.empty((2, len(z)))
    for row, number in enumerate(numbers):
        for train, test in split:
            options = {"covariance_type": "tied", "n_init": 3, "reg_covar": 0.01}
            mixture = GaussianMixture(number, random_state=2, **options)
            each[row, test] = mixture.fit(scaled[train]).score_samples(scaled[test])
    np.testing.assert_allclose(found.log_density, each.mean(1), rtol=1e-3)
    assert found.best == 3
    gap = each[0] - each[1]
    np.testing.assert_allclose(found.difference, [gap.mean(), 0], rtol=1e-2)
    error = gap.std(ddof=1) / np.sqrt(len(z))
    np.testing.assert_allclose(found.standard_error, [error, 0], rtol=1e-2)


def test_shift_rotation_and_unit_of_z_do_not_matter():
    z = lumps(3, dim=3)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    moved = torch.as_tensor(1e-3 * z @ turn + 50)
    once = number_of_components(z, (2, 3, 4), folds=3, progress=False)
    again = number_of_components(moved, (4, 2, 3, 3), folds=3, progress=False)
    assert again.candidates == once.candidates == (2, 3, 4)
    np.testing.assert_allclose(again.log_density, once.log_density, rtol=0.02)
    assert again.fewest == once.fewest == 3


def test_the_table_has_a_row_for_each_candidate():
    found = number_of_components(lumps(2), (1, 2), progress=False)
    assert found.table.index.tolist() == [1, 2]
    assert found.table["difference"].tolist() == found.difference.tolist()


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (lumps(2, 20), {"candidates": (2, 17)}, "from 1 to 16, got 17"),
        (lumps(2, 20), {"candidates": ()}, "expected candidates"),
        (lumps(2, 20), {"candidates": (0, 2)}, "expected candidates as"),
        (lumps(2, 20), {"folds": 1}, "folds as .* from 2 to 20"),
        (
            np.repeat(lumps(2, 5), 8, 0),
            {"candidates": (2, 3)},
            r"distinct items.*\] and 5",
        ),
        (lumps(2, 20)[:, 0], {}, "representations"),
        (np.full((20, 2), np.nan), {}, "finite"),
    ],
)
def test_bad_arguments_are_refused(z, options, message):
    with pytest.raises(ValueError, match=message):
        number_of_components(z, progress=False, **options)
