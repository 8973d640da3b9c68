"""Mutual information and entropies with errors, against closed forms and long ways."""

import math

import numpy as np
import pytest
import torch

import probssl as ps
from probssl.compare.densities import (
    directions,
    gaussian,
    gaussian_peak,
    kernel_density,
    log_determinant,
    nearest,
    spherical,
    spherical_peak,
    square_distances,
    student,
)
from probssl.entropies import KernelDensity, LogDeterminant
from probssl.entropies.nearest import NearestNeighbour
from probssl.estimates import Undefined, estimate
from probssl.evaluation.collapse import (
    alignment_uniformity,
    alignment_uniformity_values,
    effective_rank,
    effective_rank_values,
)
from probssl.evaluation.information import (
    gaussian_information,
    info_nce,
    nearest_neighbour_information,
)

ESTIMATES = (info_nce, gaussian_information, nearest_neighbour_information)


def pairs(n: int, dim: int, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    """Two Gaussian views (n, 2, dim) around one standard normal content."""
    random = np.random.default_rng(seed)
    content = random.standard_normal((n, 1, dim))
    return content + noise * random.standard_normal((n, 2, dim))


def known(dim: int, noise: float = 0.5) -> float:
    return -dim / 2 * math.log(1 - (1 + noise**2) ** -2)


def repeated(measure, dim: int, times: int = 60, n: int = 200) -> np.ndarray:
    """Values and errors (times, 2) of a measure of fresh samples."""
    samples = (pairs(n, dim, seed=seed) for seed in range(times))
    return np.array([measure(z[:, 0], z[:, 1]) for z in samples])


def leaving_one_out(measure, *arrays) -> float:
    """The jackknife's standard error, the long way."""
    n = len(arrays[0])
    without = [measure(*(np.delete(x, i, 0) for x in arrays)) for i in range(n)]
    return math.sqrt((n - 1) * np.var(without))


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_the_gaussian_estimate_is_unbiased_for_gaussians(dim):
    values = repeated(gaussian_information, dim)[:, 0]
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - known(dim)) < 5 * error
    if dim == 12:  # without correction it is too large by about dim² / 2n
        assert dim**2 / 400 > 10 * error


@pytest.mark.parametrize("noise", [0.3, 1.0, 30.0])
def test_neighbours_find_the_information_of_a_gaussian_pair(noise):
    z = pairs(2_000, 1, noise)
    found = nearest_neighbour_information(z[:, 0], z[:, 1])
    assert abs(found.value - known(1, noise)) < 5 * found.standard_error
    assert found.standard_error < 0.05


def test_neighbours_are_those_of_a_plain_loop():
    from scipy.special import digamma

    z = pairs(40, 2)
    far = np.linalg.norm(z - z.mean(0), axis=-1)
    distances = np.linalg.norm(z[:, None] - z, axis=-1) / np.median(far, 0)
    expected = digamma(4) + digamma(40)
    for i in range(40):
        others = [j for j in range(40) if j != i]
        reach = sorted(max(distances[i, j]) for j in others)[3]
        for view in range(2):
            count = sum(distances[i, j, view] < reach for j in others)
            expected -= digamma(count + 1) / 40
    found = nearest_neighbour_information(z[:, 0], z[:, 1], k=4)
    assert found.value == pytest.approx(expected, rel=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    z = pairs(50, 2)
    once = nearest_neighbour_information(z[:, 0], z[:, 1])
    monkeypatch.setattr("probssl.evaluation.information.DISTANCES_AT_ONCE", 300)
    in_blocks = nearest_neighbour_information(z[:, 0], z[:, 1])
    assert in_blocks == pytest.approx(once, rel=1e-12)


def test_info_nce_is_the_best_of_all_temperatures_and_below_log_n():
    z = pairs(100, 3)
    u = z / np.linalg.norm(z, axis=-1, keepdims=True)
    cosine = u[:, 0] @ u[:, 1].T

    def bound(temperature: float) -> float:
        log_kernel = torch.as_tensor(cosine / temperature)
        rows, columns = (log_kernel.log_softmax(axis) for axis in (0, 1))
        both = (rows.diagonal() + columns.diagonal()).mean() / 2
        return float(both) + math.log(100)

    best = max(bound(t) for t in np.geomspace(0.01, 10, 2_000))
    found = info_nce(z[:, 0], z[:, 1]).value
    assert best <= found < best + 1e-4
    assert found < math.log(100)
    assert info_nce(z[:, 0], z[:, 0]).value == pytest.approx(math.log(100), abs=1e-3)


@pytest.mark.parametrize("offset", [1e6, 1e8])
def test_info_nce_is_right_where_directions_nearly_agree(offset):
    z = pairs(100, 3)
    u = z + np.longdouble(offset)
    u = u / np.sqrt((u**2).sum(-1, keepdims=True))
    square = ((u[:, 0, None] - u[None, :, 1]) ** 2).sum(-1)
    square = torch.as_tensor((square / square.mean()).astype(float))

    def bound(temperature: float) -> float:
        rows, columns = ((-square / temperature).log_softmax(axis) for axis in (0, 1))
        both = (rows.diagonal() + columns.diagonal()).mean() / 2
        return float(both) + math.log(100)

    best = max(bound(t) for t in np.geomspace(1e-3, 100, 2_000))
    found = info_nce(z[:, 0] + offset, z[:, 1] + offset).value
    assert found == pytest.approx(best, abs=1e-3)


def test_info_nce_is_below_the_information():
    assert info_nce(*pairs(1_000, 3).transpose(1, 0, 2)).value < known(3)


def test_views_of_different_items_share_no_information():
    z = pairs(500, 3)
    for measure in ESTIMATES:
        value, error = measure(z[:, 0], z[::-1, 1])
        assert abs(value) < 5 * error + 2 / 500  # and the optimism of InfoNCE


@pytest.mark.parametrize("measure", ESTIMATES)
def test_information_does_not_move_when_z_is_rescaled_or_rotated(measure):
    z = pairs(80, 4)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    moved, swapped = 1e3 * z @ rotation, z[::-1, ::-1]
    once = measure(z[:, 0], z[:, 1])
    assert measure(moved[:, 0], moved[:, 1]) == pytest.approx(once, rel=1e-6)
    again = measure(swapped[:, 0], swapped[:, 1])
    assert again.value == pytest.approx(once.value, rel=1e-6)
    # the parts of the items that give the error of neighbours are other ones
    close = 0.6 if measure is nearest_neighbour_information else 1e-6
    assert again.standard_error == pytest.approx(once.standard_error, rel=close)


def test_units_and_offsets_change_no_canonical_correlation():
    z = pairs(200, 3)
    once = gaussian_information(z[:, 0], z[:, 1])
    for unit, offset in ((1e8, 0), (1e-8, 0), (1, 1e9), (1e-3, 1e9)):
        moved = z * [1, unit, 1 / unit] + [0, 0, offset]
        found = gaussian_information(moved[:, 0], moved[:, 1])
        assert found == pytest.approx(once, rel=1e-6)
    far = nearest_neighbour_information(z[:, 0] + 1e9, z[:, 1] - 1e9)
    assert far == pytest.approx(nearest_neighbour_information(*z.swapaxes(0, 1)))


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_neighbours_of_views_in_different_units_find_the_same(unit):
    """By the maximum of distances in two units the smaller one would be ignored."""
    z = pairs(200, 2)
    once = nearest_neighbour_information(z[:, 0], z[:, 1])
    apart = nearest_neighbour_information(z[:, 0], unit * z[:, 1])
    assert apart == pytest.approx(once) and once.value > 5 * once.standard_error


@pytest.mark.parametrize("measure", ESTIMATES)
def test_standard_errors_are_those_of_repeated_samples(measure):
    values, errors = repeated(measure, 3).T
    ratio = errors.mean() / values.std(ddof=1)
    noise = 5 / math.sqrt(2 * len(values))  # five relative errors of a deviation
    assert 1 / (1 + noise) < ratio
    assert ratio < 1.3 + noise


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_the_error_of_neighbours_is_that_of_repeated_draws(rho):
    """At independence too, where the jackknife gives 1.8 times the deviation."""
    random, found = np.random.default_rng(0), []
    for _ in range(80):
        a, noise = random.normal(size=(2, 150, 1))
        b = rho * a + math.sqrt(1 - rho**2) * noise
        found.append(nearest_neighbour_information(a, b))
    values, errors = np.transpose(found)
    ratio = math.sqrt(np.square(errors).mean()) / values.std(ddof=1)
    bar = 5 / math.sqrt(2 * len(values))  # of a deviation
    assert 0.9 / (1 + bar) < ratio < 1.1 * (1 + bar) < 1.6


def test_few_items_have_an_unknown_error():
    z = pairs(6, 1)
    few = nearest_neighbour_information(z[:5, 0], z[:5, 1])
    assert math.isfinite(few.value) and math.isnan(few.standard_error)
    assert nearest_neighbour_information(z[:, 0], z[:, 1]).standard_error > 0


def test_errors_are_those_of_leaving_items_out():
    z = pairs(60, 2)
    value, error = info_nce(z[:, 0], z[:, 1])
    long_way = leaving_one_out(lambda a, b: info_nce(a, b).value, z[:, 0], z[:, 1])
    assert error == pytest.approx(long_way, rel=0.1 + 2 / 60)  # to first order


def test_errors_of_rank_and_distances_are_those_of_leaving_items_out():
    z = pairs(150, 4) * [1, 2, 3, 4]
    error = estimate(effective_rank_values(z[:, 0])).standard_error
    assert error == pytest.approx(leaving_one_out(effective_rank, z[:, 0]), rel=0.1)
    for place, values in enumerate(alignment_uniformity_values(z)):
        long_way = leaving_one_out(lambda z, i=place: alignment_uniformity(z)[i], z)
        assert estimate(values).standard_error == pytest.approx(long_way, rel=0.1)
        assert values.mean() == pytest.approx(alignment_uniformity(z)[place])


class TestDensities:
    """Values of items against the estimators of the objectives."""

    z = torch.from_numpy(pairs(120, 3))

    def test_entropies_are_those_of_the_estimators(self):
        square = square_distances(self.z)
        unit = directions(self.z)
        cases = [
            (log_determinant(self.z), LogDeterminant(0.0)(self.z)),
            (nearest(square, 3), NearestNeighbour(3)(self.z)),
        ]
        flat = best(lambda h: ps.priors.Gaussian(None, h, math.inf), self.z)
        sphere = best(lambda h: ps.priors.Spherical(None, 1 / h**2), unit)
        chord = square_distances(unit)
        cases += [
            (kernel_density(square, 3, gaussian_peak), flat),
            (kernel_density(chord, 3, spherical_peak), sphere),
        ]
        for values, expected in cases:
            assert float(values.mean()) == pytest.approx(float(expected), abs=2e-3)

    def test_no_other_scale_is_likelier(self):
        unit = directions(self.z)
        likeliest = [
            (gaussian, self.z, lambda s: ps.priors.Gaussian(None, s, math.inf)),
            (student, self.z, lambda s: ps.priors.StudentT(None, s, 5.0, math.inf)),
            (spherical, unit, lambda s: ps.priors.Spherical(None, 1 / s**2)),
        ]
        for values, z, prior in likeliest:
            each = [
                float(prior(s).double().balanced(z).mean())
                for s in np.geomspace(0.1, 3, 80)
            ]
            gap = float(values(z).mean()) - max(each)
            assert 0 <= gap + 1e-9 < 1e-2

    @pytest.mark.parametrize("name", ["log_det", "kernel", "nearest", "spherical"])
    def test_errors_are_those_of_leaving_items_out(self, name):
        measures = {
            "log_det": log_determinant,
            "kernel": lambda z: kernel_density(square_distances(z), 3, gaussian_peak),
            "nearest": lambda z: nearest(square_distances(z), 3),
            "spherical": lambda z: spherical(directions(z)),
        }
        measure, z = measures[name], self.z[:40].numpy()
        error = estimate(measure(self.z[:40])).standard_error
        long_way = leaving_one_out(
            lambda z: float(measure(torch.from_numpy(z)).mean()), z
        )
        assert error == pytest.approx(long_way, rel=0.15)


def best(prior, z: torch.Tensor) -> float:
    """The least kernel density entropy of all bandwidths, by the entropies' class."""
    density = KernelDensity(other_views=False)
    widths = np.geomspace(0.2, 1.2, 60)
    return min(float(density(z, prior(h).double())) for h in widths)


class TestUndefined:
    def test_reasons_are_given(self):
        z, same = pairs(30, 2), np.ones((30, 2))
        with pytest.raises(Undefined, match="infinite"):
            gaussian_information(z[:, 0], z[:, 0])
        with pytest.raises(Undefined, match="equal"):
            gaussian_information(z[:, 0], same)
        with pytest.raises(Undefined, match="equal"):
            nearest_neighbour_information(same, z[:, 0])
        with pytest.raises(Undefined, match="one direction"):
            info_nce(same, same)
        with pytest.raises(Undefined, match="zero"):
            info_nce(0 * same, same)
        wide = pairs(30, 20)
        with pytest.raises(Undefined, match="too few"):
            gaussian_information(wide[:, 0], wide[:, 1])

    def test_ties_have_no_density(self):
        random = np.random.default_rng(0)
        codes = [np.eye(4)[random.integers(0, 4, 300)] for _ in range(2)]
        greys = np.float32(random.integers(0, 17, (2, 300, 3)) / np.float32(16))
        tenths = np.round(random.normal(size=(2, 300, 2)), 1)
        counts = random.poisson(3, (2, 300, 1))
        twice = np.tile(random.normal(size=(2, 150, 2)), (1, 2, 1))
        for a, b in (codes, greys, tenths, counts, twice, (codes[0], twice[0])):
            with pytest.raises(Undefined, match="no density"):
                nearest_neighbour_information(a, b)
        z = random.normal(size=(300, 2, 2))
        for few in (z, z.astype(np.float32), z.astype(np.float16)):
            value, error = nearest_neighbour_information(few[:, 0], few[:, 1])
            assert abs(value) < 5 * error

    def test_constant_dimensions_add_no_information(self):
        z = pairs(60, 2)
        wider = np.concatenate([z, np.full((60, 2, 3), 7.0)], -1)
        for measure in (gaussian_information, nearest_neighbour_information):
            once, again = measure(z[:, 0], z[:, 1]), measure(wider[:, 0], wider[:, 1])
            assert again == pytest.approx(once, rel=1e-9)

    def test_misuse_is_explained(self):
        z = pairs(30, 2)
        with pytest.raises(ValueError, match="same 3 items"):
            info_nce(z[:, 0], z[:9, 1])
        with pytest.raises(ValueError, match="k as .* from 1 to 28"):
            nearest_neighbour_information(z[:, 0], z[:, 1], k=29)
