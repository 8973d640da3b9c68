import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checks import refusals
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import probssl as ps
from probssl.data import groups
from probssl.evaluation import (
    active_units,
    alignment_uniformity,
    cluster,
    crowding,
    effective_rank,
    few_label_probe,
    knn,
    linear_probe,
    matched_accuracy,
    mlp_probe,
    nearest_neighbour_information,
    rankme,
    scores,
    style_probe,
)

KEYS = ["linear_probe", "few_label_probe", "few_label_probe_se", "knn"]
KEYS += ["cluster_accuracy", "nmi", "ari", "effective_rank"]
PROBES = [linear_probe, mlp_probe, knn, lambda *data: few_label_probe(*data).mean]


def lumps(n=60, classes=3, dim=2, apart=100.0, seed=0):
    """Classes of equal size around corners that are far apart."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % classes
    corners = apart * np.random.default_rng(99).normal(size=(classes, dim))
    return corners[y] + random.normal(size=(n, dim)), y


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x / 16, y, test_size=0.25, stratify=y, random_state=0
    )
    return x_train, y_train, x_test, y_test


@pytest.mark.parametrize("move", [lambda z: z + 1e9, lambda z: z * 1e-200])
def test_the_rank_does_not_depend_on_offset_and_unit(move):
    z = np.random.default_rng(0).normal(size=(200, 3)) * [1, 1e-3, 1e-2]
    assert effective_rank(move(z)) == pytest.approx(effective_rank(z), rel=1e-6)
    one = np.append(z[:, :1], np.full((200, 1), 1e9 / 3), 1)
    assert effective_rank(one) == 1 and effective_rank(one[:, 1:]) == 0


def test_views_come_as_an_array_or_a_tuple():
    z = np.random.default_rng(0).normal(size=(30, 2, 3))
    both = z[:, 0], z[:, 1]
    assert alignment_uniformity(both) == alignment_uniformity(z)
    with pytest.raises(TypeError, match="may be items or views; give tuple"):
        alignment_uniformity(list(both))


def test_directions_of_numbers_of_any_size():
    z = np.random.default_rng(0).normal(size=(30, 2, 3))
    for unit in (1e-200, 1e200):
        assert alignment_uniformity(z * unit) == pytest.approx(alignment_uniformity(z))


# probes and neighbours


@pytest.mark.parametrize("probe", PROBES)
def test_classes_far_apart_are_read_without_error(probe):
    assert probe(*lumps(seed=1), *lumps(seed=2)) == 1


@pytest.mark.parametrize("probe", PROBES[:3])
def test_labels_without_relation_to_z_are_read_at_chance(probe):
    random, m = np.random.default_rng(0), 2_000
    z, y = random.normal(size=(100, 3)), random.integers(4, size=100)
    z_test, y_test = random.normal(size=(m, 3)), random.integers(4, size=m)
    # test labels are independent of every guess: accuracy is binomial with p = 1/4
    error = math.sqrt(1 / 4 * 3 / 4 / m)
    assert abs(probe(z, y, z_test, y_test) - 1 / 4) < 5 * error


@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_linear_probe_minimises_the_penalised_cross_entropy(penalty):
    # so many dimensions for so few items that the penalty decides
    z, y = lumps(45, 3, 30, apart=0.3, seed=1)
    z_test, y_test = lumps(2_000, 3, 30, apart=0.3, seed=2)
    a, b = (torch.tensor((x - z.mean(0)) / z.std(0)) for x in (z, z_test))
    weight = torch.zeros(30, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-9)

    def loss():
        optimizer.zero_grad()
        log_p = torch.log_softmax(a @ weight + bias, dim=1)[range(45), y]
        value = -log_p.sum() + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    expected = np.mean((b @ weight + bias).argmax(1).numpy() == y_test)
    assert 0.4 < expected < 0.95
    # optima found to some 1e-4 each: few of 2,000 items may lie between them
    measured = linear_probe(z, y, z_test, y_test, penalty=penalty)
    assert abs(measured - expected) <= 3 / 2_000
    other = linear_probe(z, y, z_test, y_test, penalty=1 / penalty)
    assert abs(other - expected) > 9 / 2_000


def test_linear_probe_does_not_see_the_units_of_a_dimension():
    z, y = lumps(150, 3, 4, apart=1.0, seed=1)
    z_test, y_test = lumps(400, 3, 4, apart=1.0, seed=2)
    units, origin = np.array([1e-6, 1.0, 1e3, 1e9]), np.array([0.0, -7.0, 1e3, 1e9])
    moved = linear_probe(z * units + origin, y, z_test * units + origin, y_test)
    assert moved == linear_probe(z, y, z_test, y_test)


def test_mlp_probe_reads_what_a_linear_probe_cannot():
    random = np.random.default_rng(0)
    z, z_test = random.normal(size=(600, 2)), random.normal(size=(600, 2))
    data = z, z[:, 0] * z[:, 1] > 0, z_test, z_test[:, 0] * z_test[:, 1] > 0
    assert linear_probe(*data) < 0.7 < 0.95 < mlp_probe(*data)


def test_few_label_probe_with_all_labels_is_the_linear_probe():
    z, y = lumps(30, 3, 4, apart=0.5, seed=1)
    z_test, y_test = lumps(400, 3, 4, apart=0.5, seed=2)
    mean, error, _ = few_label_probe(z, y, z_test, y_test, labels_per_class=10)
    assert mean == pytest.approx(linear_probe(z, y, z_test, y_test), rel=1e-12)
    assert error == pytest.approx(0, abs=1e-12)


def test_standard_error_of_few_label_probe_is_over_its_draws():
    data = *lumps(900, 3, 4, apart=1.0, seed=1), *lumps(300, 3, 4, apart=1.0, seed=2)
    two, three = (few_label_probe(*data, repeats=n) for n in (2, 3))
    assert three.draws[:2] == two.draws and len(set(three.draws)) > 1
    assert three.mean == pytest.approx(np.mean(three.draws), rel=1e-12)
    error = math.sqrt(sum((a - three.mean) ** 2 for a in three.draws) / 2 / 3)
    assert error > 0 and three.standard_error == pytest.approx(error, rel=1e-9)


def test_draws_of_few_labels_are_those_of_the_seed():
    data = *lumps(900, 3, 4, apart=1.0, seed=1), *lumps(300, 3, 4, apart=1.0, seed=2)
    a, b = few_label_probe(*data), few_label_probe(*data, repeats=80, seed=1)
    assert a == few_label_probe(*data) and a != b
    assert abs(a.mean - b.mean) < 5 * math.hypot(a.standard_error, b.standard_error)


@pytest.mark.parametrize("dim, offset", [(3, 0.0), (20, 0.0), (20, 1e8)])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_knn_is_the_vote_of_the_nearest(k, dim, offset):
    z, y = lumps(80, 4, dim, apart=0.5, seed=1)
    z_test, y_test = lumps(90, 4, dim, apart=0.5, seed=2)
    z, z_test = z + offset, z_test + offset
    far = ((z_test[:, None] - z[None]) ** 2).sum(-1)
    nearest = y[far.argsort(1)[:, :k]]
    guess = [np.bincount(row).argmax() for row in nearest]  # ties: the smaller label
    assert knn(z, y, z_test, y_test, k) == np.mean(guess == y_test)


@pytest.mark.parametrize("dim", [3, 20])
def test_neighbours_of_items_with_a_code_for_missing_values_are_those_by_differences(
    dim,
):
    """-1e9 in a column leaves nothing of the others in a product of two items."""
    z, y = lumps(80, 4, dim, apart=0.5, seed=1)
    z_test, y_test = lumps(90, 4, dim, apart=0.5, seed=2)
    z, z_test = z.copy(), z_test.copy()
    z[::3, 0], z_test[::4, 0], z[::5, 1] = -1e9, -1e9, 1e12
    square = np.square(z_test[:, None] - z).sum(-1)
    near = square.argsort(1, kind="stable")[:, :5]
    votes = [np.bincount(y[row]).argmax() for row in near]
    assert knn(z, y, z_test, y_test, 5) == np.mean(votes == y_test)
    reach = np.sqrt(np.take_along_axis(square, near[:, 4:], 1)[:, 0])
    found = ps.evaluation.neighbour_distance(z, z_test, 5)
    np.testing.assert_allclose(found, reach, rtol=1e-7)
    own = np.square(z[:, None] - z).sum(-1)
    np.fill_diagonal(own, np.inf)
    x = torch.tensor(z)
    sampled = ps.maps.Neighbourhood(x, 5).near.sort(1).values
    assert np.array_equal(sampled, np.sort(own.argsort(1)[:, :5], 1))


def test_an_item_with_many_copies_is_no_neighbour_of_itself():
    x = torch.tensor([[0.0]] * 4 + [[5.0]])
    near = ps.maps.Neighbourhood(x, 2).near
    assert all(i not in row for i, row in enumerate(near.tolist()))
    assert all(x[row].eq(0).all() for row in near)


def test_knn_with_a_temperature_weighs_votes_by_their_cosines():
    z, y = lumps(80, 4, 3, apart=0.5, seed=1)
    z_test, y_test = lumps(90, 4, 3, apart=0.5, seed=2)
    a, b = (torch.nn.functional.normalize(torch.tensor(x)) for x in (z_test, z))
    cosine, rows = (a @ b.mT).topk(20)
    votes = torch.zeros(len(a), 4, dtype=a.dtype)
    votes.scatter_add_(1, torch.tensor(y)[rows], (cosine / 0.1).exp())
    right = (votes.argmax(1).numpy() == y_test).mean()
    found = [knn(z * s, y, z_test, y_test, 20, temperature=0.1) for s in (1, 1e-3)]
    assert found == [right, right]


def test_knn_with_a_temperature_does_not_see_how_far_from_zero_z_lie():
    """Directions that nearly agree; by products of them cosines are lost."""
    z, y = lumps(80, 4, 20, apart=0.5, seed=1)
    z_test, y_test = lumps(90, 4, 20, apart=0.5, seed=2)
    for offset in (1e6, 1e8):
        u, v = (x + np.longdouble(offset) for x in (z_test, z))
        u, v = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (u, v))
        nearest = ((u[:, None] - v[None]) ** 2).sum(-1).argmin(1)
        found = knn(z + offset, y, z_test + offset, y_test, 1, temperature=1.0)
        assert found == np.mean(y[nearest] == y_test)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 3e-5])
def test_linear_probe_finds_classes_that_differ_little(apart):
    """A nuisance much larger than the class, the same for both."""
    nuisance, y, _ = np.meshgrid(np.linspace(-1, 1, 10), [0, 1], range(10))
    nuisance, y = nuisance.ravel(), y.ravel()
    side = apart * (2 * y - 1)
    z = np.column_stack([nuisance + side, nuisance - side])
    assert linear_probe(z, y, z, y) == 1.0


# clustering


def test_classes_far_apart_are_found_as_clusters():
    assert cluster(*lumps(90, 4, 3)) == pytest.approx((1, 1, 1), abs=1e-12)


def test_matched_accuracy_does_not_see_the_names_of_clusters():
    y = np.random.default_rng(0).integers(5, size=100)
    assert matched_accuracy(np.array([3, 0, 4, 1, 2])[y], y) == 1


@pytest.mark.parametrize("k", [2, 4, 6])
def test_matched_accuracy_is_the_best_of_all_matchings(k):
    random = np.random.default_rng(k)
    assigned, y = random.integers(k, size=50), random.integers(4, size=50)
    larger = max(k, 4)  # clusters matched to names beyond 3 have no class
    matchings = itertools.permutations(range(larger), k)
    best = max(np.mean(np.array(p)[assigned] == y) for p in matchings)
    assert matched_accuracy(assigned, y) == pytest.approx(best, rel=1e-12)


def test_labels_without_relation_to_z_have_rand_index_zero():
    z, y = lumps(120, 3, 2)
    random = np.random.default_rng(0)
    ari = np.array([cluster(z, random.permutation(y)).ari for _ in range(30)])
    assert abs(ari.mean()) < 5 * ari.std(ddof=1) / math.sqrt(30)


@pytest.mark.parametrize("dim", [3, 80])
def test_clustering_does_not_see_rotation_shift_and_scale(dim):
    z, y = lumps(200, 4, dim, apart=1.5 / math.sqrt(dim))
    moved = 1e-5 * z @ rotation(dim) + 3.0
    assert cluster(moved, y) == pytest.approx(cluster(z, y), rel=1e-12)
    assert cluster(z, y).accuracy < 1


def test_a_collapsed_encoder_has_one_cluster():
    y = np.array([0, 0, 0, 1, 1, 2])
    assert cluster(np.ones((6, 4)), y) == pytest.approx((1 / 2, 0, 0), abs=1e-12)


# collapse


def with_spectrum(spectrum, n=50):
    """Centred representations with just these singular values."""
    random = np.random.default_rng(0)
    raw = random.normal(size=(n, len(spectrum)))
    left = np.linalg.qr(raw - raw.mean(0))[0]
    return left * np.array(spectrum) @ rotation(len(spectrum))


@pytest.mark.parametrize("spectrum", [(3.0,), (1.0, 1.0, 1.0), (5.0, 2.0, 1.0, 0.5)])
def test_effective_rank_is_the_exponential_entropy_of_the_spectrum(spectrum):
    p = [s / sum(spectrum) for s in spectrum]
    expected = math.prod(q**-q for q in p)
    assert effective_rank(with_spectrum(spectrum)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 64])
def test_effective_rank_of_an_isotropic_gaussian_is_its_dimension(dim):
    n = 20_000
    rank = effective_rank(np.random.default_rng(0).normal(size=(n, dim)))
    # relative spread of singular values sqrt(dim / 4n): rank = dim (1 - dim / 8n)
    assert dim * (1 - dim / n) < rank <= dim * (1 + 1e-12)


def test_active_units_of_probabilistic_pca_are_its_large_eigenvalues():
    """The posterior mean of a unit has variance 1 - s²/λ over x, exactly."""
    noise, spectrum = 1.0, np.array([4.0, 1.5, 1.0102, 1.0100, 1.0])
    x = np.random.default_rng(0).normal(size=(200, 5))
    white = np.linalg.qr(x - x.mean(0))[0] * 200**0.5
    mean = white * np.sqrt(spectrum) * np.sqrt(spectrum - noise) / spectrum
    assert mean.var(0) == pytest.approx(1 - noise / spectrum, abs=1e-12)
    assert active_units(mean) == 3  # λ > 1 / 0.99 = 1.01010…
    assert active_units(mean + 7) == 3 and active_units(mean, least=0.3) == 2


def test_effective_rank_does_not_see_rotation_shift_and_scale():
    z = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(1, 7)
    moved = 1e-4 * z @ rotation(6) + 100.0
    assert effective_rank(moved) == pytest.approx(effective_rank(z), rel=1e-9)


def test_effective_rank_counts_only_dimensions_in_use():
    z = np.random.default_rng(0).normal(size=(40, 2))
    wide = np.concatenate([z, z, np.full((40, 3), 0.1)], axis=1)
    assert 1 < effective_rank(wide) <= 2


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_representation_has_effective_rank_zero(value):
    assert effective_rank(np.full((1_000, 8), value)) == 0


def test_rankme_is_the_effective_rank_without_centring():
    z = with_spectrum((5.0, 2.0, 1.0))
    p = np.array([5.0, 2.0, 1.0]) / 8 + 1e-7
    expected = math.exp(-(p * np.log(p)).sum())
    assert rankme(z) == pytest.approx(expected, rel=1e-12)
    assert rankme(z) == pytest.approx(effective_rank(z), rel=1e-5)
    # a constant has one direction; the ε of the others adds 2e-7 log 1e7
    assert rankme(np.full((30, 3), 7.0)) == pytest.approx(1, abs=1e-5)
    assert rankme(np.zeros((30, 3))) == 0


@pytest.mark.parametrize(("n", "views"), [(2, 2), (9, 3), (1_500, 2)])
def test_alignment_and_uniformity_are_means_over_pairs(n, views):
    z = np.random.default_rng(0).normal(size=(n, views, 4)) + 0.5
    u = z / np.sqrt((z**2).sum(-1, keepdims=True))
    pairs = list(itertools.combinations(range(views), 2))
    alignment = np.mean([((u[:, v] - u[:, w]) ** 2).sum(-1) for v, w in pairs])
    off = ~np.eye(n, dtype=bool)
    uniformity = []
    for v in range(views):
        squared = ((u[:, None, v] - u[None, :, v]) ** 2).sum(-1)
        uniformity.append(np.log(np.exp(-2 * squared)[off].mean()))
    expected = alignment, np.mean(uniformity)
    assert alignment_uniformity(z) == pytest.approx(expected, rel=1e-10)


def test_identical_views_along_the_axes_have_alignment_0_and_uniformity_minus_4():
    z = np.stack([np.eye(7), 3 * np.eye(7)], axis=1)
    assert alignment_uniformity(z) == pytest.approx((0, -4), abs=1e-12)


def test_alignment_and_uniformity_do_not_see_rotation_and_length():
    random = np.random.default_rng(0)
    z, length = random.normal(size=(20, 2, 5)), random.uniform(1, 9, size=(20, 2, 1))
    moved = alignment_uniformity(length * z @ rotation(5))
    assert moved == pytest.approx(alignment_uniformity(z), rel=1e-10)


# style


def test_continuous_style_is_read_up_to_its_noise():
    random, m = np.random.default_rng(0), 4_000
    z = random.normal(size=(2 * m, 3))
    noise = random.normal(size=2 * m)
    s = np.stack([z[:, 0] + noise, z @ [1.0, 2.0, 2.0], noise], axis=1)
    noisy, clean, none = style_probe(z[:m], s[:m], z[m:], s[m:])
    # R² = 1 - noise / total, of two chi-squares: relative error below sqrt(4 / m)
    assert abs(noisy - 1 / 2) < 5 * 1 / 2 * math.sqrt(4 / m)
    assert abs(clean - 1) < 1e-6  # the ridge costs 1 / m², squared
    assert abs(none) < 5 * 3 / m + 5 * math.sqrt(4 / m) * 3 / m


def test_discrete_style_is_read_by_the_linear_probe():
    z, y = lumps(100, 3, 4, apart=1.0, seed=1)
    z_test, y_test = lumps(200, 3, 4, apart=1.0, seed=2)
    other, other_test = y % 2, y_test % 2
    s, s_test = np.stack([y, other], axis=1), np.stack([y_test, other_test], axis=1)
    expected = [
        linear_probe(z, y, z_test, y_test),
        linear_probe(z, other, z_test, other_test),
    ]
    assert style_probe(z, s, z_test, s_test) == expected
    assert style_probe(z, y, z_test, y_test) == expected[:1]
    names = np.array(["thin", "thick", "round"])
    assert style_probe(z, names[y], z_test, names[y_test]) == expected[:1]
    for values in ([0.0, 1.0, 2.0], [0.5, 1.25, 2.0]):  # classes by their type
        kinds = [pd.Categorical(np.array(values)[k]) for k in (y, y_test)]
        assert style_probe(z, kinds[0], z_test, kinds[1]) == expected[:1]
        assert linear_probe(z, kinds[0], z_test, kinds[1]) == expected[0]
        assert ps.evaluation.sap(z, kinds[0]) == ps.evaluation.sap(z, y)


# scores


def test_scores_are_those_of_each_function(digits):
    x_train, y_train, x_test, y_test = (part[:300] for part in digits)
    table = scores(x_train, y_train, x_test, y_test, seed=3)
    assert list(table) == KEYS
    assert all(type(value) is float for value in table.values())
    data = x_train, y_train, x_test, y_test
    expected = [linear_probe(*data), *few_label_probe(*data, seed=3)[:2], knn(*data)]
    expected += [*cluster(x_test, y_test, seed=3), effective_rank(x_test)]
    assert list(table.values()) == pytest.approx(expected, rel=1e-12)


def test_max_train_bounds_the_training_part(digits):
    whole = scores(*digits)
    assert scores(*digits, max_train=len(digits[0])) == whole
    part = scores(*digits, max_train=200)
    assert part["knn"] < whole["knn"] and part["linear_probe"] < whole["linear_probe"]
    assert part["nmi"] == whole["nmi"]  # of the test part


def test_scores_of_digits_are_the_known_ones(digits):
    x_train, y_train, x_test, y_test = digits
    pca = PCA(10, svd_solver="full").fit(x_train)
    z_train, z_test = pca.transform(x_train), pca.transform(x_test)
    raw = scores(x_train, y_train, x_test, y_test)
    reduced = scores(z_train, y_train, z_test, y_test)
    known = [(raw, "linear_probe", 0.97), (raw, "knn", 0.98)]
    known += [(reduced, "linear_probe", 0.93), (reduced, "knn", 0.98)]
    known += [(reduced, "few_label_probe", 0.84)]
    for table, key, value in known:
        error = math.sqrt(value * (1 - value) / len(y_test))  # of the test items
        assert abs(table[key] - value) < 5 * error, key
    assert 9 < reduced["effective_rank"] <= 10 < raw["effective_rank"] <= 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_are_taken_as_arrays_are(dtype):
    z, y = lumps(60, 3, 2, apart=1.0)
    z = torch.tensor(z, dtype=dtype, requires_grad=True)
    y = torch.tensor(y)
    plain, labels = z.detach().double().numpy(), y.numpy()
    assert scores(z, y, z, y) == scores(plain, labels, plain, labels)
    pairs, same = torch.stack([z, z + 1], 1), np.stack([plain, plain + 1], 1)
    if dtype != torch.bfloat16:  # z + 1 rounds there
        expected = pytest.approx(alignment_uniformity(same), rel=1e-5)
        assert alignment_uniformity(pairs) == expected


# errors

Z, Y = lumps(60, 3, 2)
NAN = np.where(np.arange(120).reshape(60, 2) == 7, np.nan, Z)


@pytest.mark.parametrize("probe", [*PROBES, scores])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((Z, Y[:-1], Z, Y), "got 60 representations and 59 labels"),
        ((Z, Y, Z[:9], Y), "got 9 representations and 60 labels"),
        ((NAN, Y, Z, Y), "NaN or infinity in 1 of 120"),
        ((Z, Y, NAN, Y), "diverged"),
        ((Z, Y * 0, Z, Y), "at least two classes"),
        ((Z, Y, Z, Y + 9), "within classes"),
        ((Z, Y, Z[:, :1], Y), r"one dimension, got \[\(60, 2\), \(60, 1\)\]"),
        ((Z[:, :, None], Y, Z, Y), r"expected representations \(n, dim\)"),
        ((Z, np.eye(3)[Y], Z, Y), r"expected labels \(n,\).*got \(60, 3\).*argmax"),
        ((Z, Z[:, 0], Z, Y), "expected classes.*style_probe"),
    ],
)
def test_probes_refuse_data_that_do_not_fit(probe, data, message):
    with pytest.raises(ValueError, match=message):
        probe(*data)


CASES = (
    (lambda: knn(Z, Y, Z, Y, k=61), "k as .* from 1 to 60, got 61; .* training"),
    (lambda: knn(Z, Y, Z, Y, k=0), "got 0"),
    (lambda: knn(Z, Y, Z, Y, temperature=0.0), "temperature.*0.1 is usual"),
    (lambda: knn(0 * Z, Y, Z, Y, temperature=0.1), "a direction.*got one that is zero"),
    (lambda: cluster(Z, Y, k=61), "k as .* from 1 to 60, got 61"),
    (lambda: cluster(Z, Y[:-1]), "got 60 representations and 59 labels"),
    (lambda: cluster(Z, 0 * Y), "at least two classes"),
    (lambda: cluster(NAN, Y), "NaN"),
    (
        lambda: few_label_probe(Z[:12], Y[:12], Z, Y),
        "from 1 to 4, got 5; class 0 has",
    ),
    (lambda: few_label_probe(Z, Y, Z, Y, labels_per_class=0), "from 1"),
    (lambda: few_label_probe(Z, Y, Z, Y, repeats=1), "repeats as .* at least 2"),
    (lambda: linear_probe(Z, Y, Z, Y, penalty=0.0), "penalty as a positive"),
    (lambda: effective_rank(NAN), "NaN"),
    (lambda: effective_rank(Z[None]), r"\(n, dim\), got \(1, 60, 2\)"),
    (lambda: rankme(NAN), "NaN"),
    (lambda: alignment_uniformity(Z), r"\(n, view, dim\).*got \(60, 2\)"),
    (lambda: alignment_uniformity(Z[:, None]), "2 views"),
    (lambda: alignment_uniformity(np.zeros((3, 2, 4))), "6 representations"),
    (lambda: style_probe(Z, Z[:9], Z, Z), r"style factors \(60,\) or"),
    (lambda: style_probe(Z, Z, Z, Z[:, 0]), "2 and 1"),
    (lambda: style_probe(Z, Z, Z, 0 * Z), "that varies"),
    (lambda: style_probe(Z, NAN, Z, Z), "NaN"),
    (lambda: style_probe(NAN, Z, Z, Z), "NaN"),
)
test_errors_say_what_came = refusals(
    (
        lambda: style_probe(Z, Y, Z, Z[:, 0]),
        TypeError,
        "of one kind .* int64 and float",
    ),
    (
        lambda: style_probe(Z, Z[:, 0], Z, Y),
        TypeError,
        "of one kind .* float64 and int",
    ),
    (lambda: knn(Z, Y.astype(str), Z, Y), TypeError, "one kind .*, got '0' and 0;"),
    *((call, ValueError, message) for call, message in CASES),
)


def test_probe_with_more_dimensions_than_items_equals_the_full_fit():
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    z = random.normal(size=(40, 100)) + random.normal(size=(4, 100))[labels]
    other = random.normal(size=(500, 100))
    full = LogisticRegression(C=1.0, max_iter=10_000, tol=1e-10)
    scale = StandardScaler().fit(z)
    expected = full.fit(scale.transform(z), labels).predict(scale.transform(other))
    assert len(set(expected)) > 2
    assert linear_probe(z, labels, other, expected) > 0.995  # but for ties in rounding


def softmax_regression(z, y, penalty):
    """The weights of the documented objective, by L-BFGS on the formula."""
    z = torch.as_tensor((z - z.mean(0)) / z.std(0))
    y = torch.as_tensor(y)
    weight = torch.zeros(z.shape[1], int(y.max()) + 1, dtype=torch.double)
    intercept = torch.zeros(weight.shape[1], dtype=torch.double)
    values = [weight.requires_grad_(), intercept.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        values, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        log_p = (z @ weight + intercept).log_softmax(1)
        loss = -log_p[range(len(y)), y].sum() + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach().numpy(), intercept.detach().numpy()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("n", [90, 12])  # 12: fewer items than dimensions
def test_the_linear_probe_minimises_its_objective(classes, penalty, n):
    random = np.random.default_rng(0)
    y = np.r_[np.arange(classes), random.integers(classes, size=n - classes)]
    y[: n // 2] = 0  # classes of several sizes, so that the penalty moves the border
    y[:classes] = np.arange(classes)
    z = random.normal(size=(n, 15)) + random.normal(size=(classes, 15))[y]
    there = random.normal(size=(4_000, 15))
    weight, intercept = softmax_regression(z, y, penalty)
    scores = ((there - z.mean(0)) / z.std(0)) @ weight + intercept
    best = np.sort(scores, axis=1)
    clear = best[:, -1] - best[:, -2] > scores.std() / 20  # beyond the fit's tolerance
    answers = scores.argmax(1)[clear]
    assert linear_probe(z, y, there[clear], answers, penalty=penalty) == 1
    other, shift = softmax_regression(z, y, 2 * penalty)
    moved = ((there - z.mean(0)) / z.std(0) @ other + shift)[clear].argmax(1)
    assert (moved != answers).any()  # another penalty would show


def test_a_list_of_style_factors_is_the_array_of_them():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 3))
    for s in (z[:, 0], np.round(3 * z[:, 0]), np.arange(60) % 3, z[:, :2]):
        expected = style_probe(z, s, z, s)
        found = style_probe(z, s.tolist(), z, s.tolist())
        assert found == expected


def test_columns_of_a_frame_of_factors_are_each_of_their_kind():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 3))
    part = rng.permutation(200) % 5
    names = np.where(z[:, 1] > 0, "left", "right")
    columns = {"part": part, "angle": z[:, 0], "side": names, "up": z[:, 2] > 0}
    frame = pd.DataFrame(columns)
    known, asked = slice(100), slice(100, None)
    found = style_probe(z[known], frame[known], z[asked], frame[asked])
    each = [
        style_probe(z[known], s[known], z[asked], s[asked])[0] for s in columns.values()
    ]
    assert found == each
    rows = list(zip(*map(np.ndarray.tolist, columns.values()), strict=True))
    lists = rows[known], rows[asked]
    assert style_probe(z[known], lists[0], z[asked], lists[1]) == each
    objects = frame.to_numpy(object)
    assert style_probe(z[known], objects[known], z[asked], objects[asked]) == each
    assert found[0] == linear_probe(z[known], part[known], z[asked], part[asked])
    assert found[1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("unit", [1e-160, 1e160])
def test_numbers_whose_squares_are_lost_are_refused(unit):
    z, y, *_ = lumps()
    for call in (
        lambda: knn(z * unit, y, z * unit, y),
        lambda: linear_probe(z * unit, y, z * unit, y),
        lambda: crowding(z * unit, y),
        lambda: cluster(z * unit, y),
        lambda: nearest_neighbour_information(z * unit, z * unit),
    ):
        with pytest.raises(ValueError, match="squares float64 holds.*rescale them"):
            call()
    small = unit ** (130 / 160)
    assert knn(z * small, y, z * small, y) == knn(z, y, z, y)


def test_labels_of_two_kinds_are_refused():
    z, y, *_ = lumps()
    for probe in (*PROBES[:3], style_probe):
        with pytest.raises(TypeError, match="labels of one kind.*code them alike"):
            probe(z, y, z, y.astype(str))


def test_views_stacked_along_the_first_axis_are_named():
    one, other = np.random.default_rng(0).normal(size=(2, 50, 3))
    with pytest.warns(UserWarning, match=r"2 items with 50 views.*axis=1"):
        alignment_uniformity(np.stack([one, other]))
    with pytest.warns(UserWarning, match=r"2 items with 50 views.*axis=1"):
        groups(np.stack([one, other]))
    groups([one, other]), alignment_uniformity((one, other))  # no warning
    groups(np.stack([one, other], 1)), groups(np.zeros((9, 50, 3)))
