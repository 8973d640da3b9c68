import json
import math

import numpy as np
import pytest
import torch
from helpers.checks import refusals
from sklearn.metrics import davies_bouldin_score

from probssl.evaluation import Crowding, Undefined, alignment_uniformity, crowding

OVERALL = ["crowding", "within", "between", "margin", "davies_bouldin", "silhouette"]


def lumps(counts=(12, 7, 9), dim=3, apart=1.5, seed=0):
    """Classes of unequal size around corners, in mixed order."""
    random = np.random.default_rng(seed)
    y = random.permutation(np.repeat(np.arange(len(counts)), counts))
    corners = apart * random.normal(size=(len(counts), dim))
    return corners[y] + random.normal(size=(len(y), dim)), y


def values(found):
    return [getattr(found, name).value for name in OVERALL]


def distance(a, b):
    return math.sqrt(sum((i - j) ** 2 for i, j in zip(a, b, strict=True)))


def by_loops(z, y):
    """The overall figures and those of the classes, one item after the other."""
    names = sorted(set(y.tolist()))
    means = {c: sum(z[y == c]) / (y == c).sum() for c in names}
    own = [distance(a, means[c]) for a, c in zip(z, y, strict=True)]
    margins, silhouettes = [], []
    for i, c in enumerate(y):
        margins += [min(distance(z[i], means[d]) for d in names if d != c) - own[i]]
        to = {d: sum(distance(z[i], b) for b in z[y == d]) for d in names}
        inner = to[c] / ((y == c).sum() - 1)
        outer = min(to[d] / (y == d).sum() for d in names if d != c)
        silhouettes += [(outer - inner) / max(outer, inner)]
    own, margins = np.array(own), np.array(margins)
    pairs = [(c, d) for c in names for d in names if c != d]
    between = np.mean([distance(means[c], means[d]) ** 2 for c, d in pairs])
    radius = {c: own[y == c].mean() for c in names}
    similar = {
        (c, d): (radius[c] + radius[d]) / distance(means[c], means[d]) for c, d in pairs
    }
    worst = [max(similar[c, d] for d in names if d != c) for c in names]
    within = np.mean(own**2)
    overall = [within / between, within, between, margins.mean(), np.mean(worst)]
    rows = [
        (
            c,
            (y == c).sum(),
            np.mean(own[y == c] ** 2),
            min(distance(means[c], means[d]) for d in names if d != c),
            margins[y == c].mean(),
        )
        for c in names
    ]
    return [*overall, np.mean(silhouettes)], rows


# the figures


@pytest.mark.parametrize(
    "counts, dim, normalise",
    [
        ((12, 7, 9), 3, True),
        ((12, 7, 9), 3, False),
        ((2, 9, 3), 64, True),
        ((5, 4), 1, False),
    ],
)
def test_figures_are_those_of_plain_loops(counts, dim, normalise):
    z, y = lumps(counts, dim, apart=3.0)
    found = crowding(z, y, normalise=normalise, bootstrap=20)
    u = z / np.linalg.norm(z, axis=1, keepdims=True) if normalise else z
    overall, rows = by_loops(u, y)
    assert values(found) == pytest.approx(overall, rel=1e-12, abs=1e-12)
    for row, expected in zip(found.per_class, rows, strict=True):
        assert tuple(row) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_davies_bouldin_index_is_that_of_scikit_learn():
    z, y = lumps((30, 20, 25, 10), dim=5)
    found = crowding(z, y, normalise=False, bootstrap=20).davies_bouldin.value
    assert found == pytest.approx(davies_bouldin_score(z, y), rel=1e-12)


def test_alignment_and_uniformity_are_those_of_the_views():
    z, y = lumps()
    views = np.stack([z, z + np.random.default_rng(1).normal(size=z.shape)], axis=1)
    found = crowding(z, y, views=views, normalise=False, bootstrap=20)
    both = found.alignment.value, found.uniformity.value
    assert both == pytest.approx(alignment_uniformity(views), rel=1e-12)
    alone = crowding(z, y, bootstrap=20)
    assert alone.alignment is None
    uniformity = alignment_uniformity(np.stack([z, z], 1)).uniformity
    assert alone.uniformity.value == pytest.approx(uniformity, rel=1e-12)
    assert crowding(z, y, normalise=False, bootstrap=20).uniformity is None


@pytest.mark.parametrize("normalise", [True, False])
def test_two_point_masses_have_no_scatter_within(normalise):
    points = np.array([[0.6, 0.8, 0.0], [0.1, 0.2, 0.7]])
    y = np.array([0, 1, 1, 0, 1, 0, 1])
    found = crowding(points[y], y, normalise=normalise, bootstrap=20)
    if normalise:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    apart = np.linalg.norm(points[0] - points[1])
    for name in ["crowding", "within", "davies_bouldin"]:
        assert getattr(found, name) == (0, 0, 0)
    assert found.between == pytest.approx([apart**2] * 3, rel=1e-12)
    assert found.margin == pytest.approx([apart] * 3, rel=1e-12)
    # scikit-learn takes equal points to be apart by rounding error, 1e-8 at most
    assert found.silhouette == pytest.approx([1] * 3, abs=1e-7)


def test_equal_class_means_crowd_without_bound():
    z = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    found = crowding(z, [0, 0, 1, 1], normalise=False, bootstrap=20)
    assert values(found)[:3] == [math.inf, 2.5, 0]
    assert found.davies_bouldin.value == math.inf
    assert found.margin.value == 0
    assert not any(math.isnan(end) for each in found[:6] for end in each)


def test_equal_means_of_two_classes_of_three_are_infinite_for_davies_bouldin_only():
    # the means of 5 and of 7 such points differ by rounding
    point, third = np.random.default_rng(4).normal(size=(2, 3))
    points, y = np.stack([point, point, third]), np.repeat([0, 1, 2], 7)
    found = crowding(points[y[2:]], y[2:], normalise=False, bootstrap=20)
    between = 2 / 3 * distance(point, third) ** 2
    assert values(found)[:3] == pytest.approx([0, 0, between], rel=1e-12)
    assert found.davies_bouldin == (math.inf,) * 3


@pytest.mark.parametrize("point", [[1.0, 0.0], [0.1, 0.7], [1e6 / 3, 0.1]])
@pytest.mark.parametrize("normalise", [True, False])
def test_one_point_for_all_items_has_no_crowding(point, normalise):
    with pytest.raises(Undefined, match="one point for all items"):
        crowding(np.tile(point, (7, 1)), [0, 1, 1, 0, 2, 2, 1], normalise=normalise)


# what does not change them


TURN = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
LENGTHS = np.random.default_rng(3).uniform(0.1, 10, size=(28, 1))


@pytest.mark.parametrize(
    ("move", "normalise"),
    [
        (lambda z: z @ TURN, True),
        (lambda z: z @ TURN, False),
        (lambda z: z * LENGTHS, True),
    ],
)
def test_rotations_and_lengths_of_directions_change_nothing(move, normalise):
    z, y = lumps()
    first, moved = (
        crowding(each, y, normalise=normalise, bootstrap=20) for each in (z, move(z))
    )
    for one, other in zip(first[:6], moved[:6], strict=True):
        assert one == pytest.approx(other, rel=1e-10)


def test_lengths_of_items_count_without_normalising():
    z, y = lumps()
    plain = crowding(z * LENGTHS, y, normalise=False, bootstrap=20)
    assert plain.within.value > 2 * crowding(z, y, bootstrap=20).within.value


def test_shift_and_scale_change_no_ratio():
    z, y = lumps()
    first, moved = (
        crowding(each, y, normalise=False, bootstrap=20) for each in (z, 3 * z + 50)
    )
    powers = {"crowding": 0, "davies_bouldin": 0, "silhouette": 0}
    for name, power in (powers | {"within": 2, "margin": 1}).items():
        scaled = [3**power * end for end in getattr(first, name)]
        assert getattr(moved, name) == pytest.approx(scaled, rel=1e-9), name


@pytest.mark.parametrize("move", [lambda z: z + 1e9, lambda z: z * 1e-8])
def test_offset_and_unit_separate_no_equal_means(move):
    z, y = lumps()
    once, again = (
        crowding(each, y, normalise=False, bootstrap=20) for each in (z, move(z))
    )
    for name in ("crowding", "davies_bouldin", "silhouette"):
        pair = getattr(once, name).value, getattr(again, name).value
        assert pair[1] == pytest.approx(pair[0], rel=1e-6)
    fine = np.column_stack([1e9 * np.ones(len(y)), 1e-6 * z])
    found = crowding(fine, y, normalise=False, bootstrap=20)
    assert found.crowding.value == pytest.approx(once.crowding.value, rel=1e-6)


def test_names_of_classes_and_order_of_items_change_no_figure():
    z, y = lumps()
    names, order = np.array(["b", "c", "a"]), np.random.default_rng(4).permutation(28)
    first, renamed = (
        crowding(*data, bootstrap=20) for data in ((z, y), (z[order], names[y][order]))
    )
    assert values(renamed) == pytest.approx(values(first), rel=1e-12)
    assert [row.label for row in renamed.per_class] == ["a", "b", "c"]
    for row, old in zip(renamed.per_class, (2, 0, 1), strict=True):
        assert row[1:] == pytest.approx(first.per_class[old][1:], rel=1e-12)


def test_tensors_are_taken_as_arrays_are():
    z, y = lumps()
    tensors = torch.tensor(z, requires_grad=True), torch.tensor(y)
    assert crowding(*tensors, bootstrap=20) == crowding(z, y, bootstrap=20)


# the intervals


def test_a_seed_gives_the_same_intervals_again():
    z, y = lumps()
    first, other = crowding(z, y, seed=1), crowding(z, y, seed=2)
    assert crowding(z, y, seed=1) == first != other
    assert values(first) == values(other)


def test_intervals_cover_the_truth_at_about_their_rate():
    """Gaussians of scale s = 0.5 in 3 dimensions: W = 3 s², corners are given."""
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    y, repeats = np.repeat([0, 1, 2], [60, 80, 100]), 50
    truth = {"within": 0.75, "between": 10 / 3, "crowding": 0.225}
    covered = dict.fromkeys(truth, 0)
    for seed in range(repeats):
        noise = np.random.default_rng(seed).normal(size=(len(y), 3))
        z = corners[y] + 0.5 * noise
        found = crowding(z, y, normalise=False, bootstrap=60, seed=seed)
        for name, true in truth.items():
            interval = getattr(found, name)
            covered[name] += interval.low <= true <= interval.high
    # From the 4th to the 57th of 60 draws the rate is 53/61 = 0.87: 43 of 50 with a
    # standard error of 2.4. All of 50 are covered with a chance of 0.87^50 = 1e-3.
    for hits in covered.values():
        assert 43 - 5 * 2.4 <= hits < repeats


@pytest.mark.parametrize(("dim", "count", "spread"), [(20, 5, 0.4), (3, 3, 1.0)])
def test_intervals_are_corrected_for_the_bias_of_few_items(dim, count, spread):
    """60 items a class: in 20 dimensions B is too large by more than its error."""
    repeats, covered = 40, np.zeros(3)
    for seed in range(repeats):
        random = np.random.default_rng(seed)
        corners = spread * random.normal(size=(count, dim))
        apart = np.square(corners[:, None] - corners).sum(-1)
        between = apart.sum() / (count * (count - 1))
        y = np.repeat(np.arange(count), 60)
        z = corners[y] + random.normal(size=(len(y), dim))
        found = crowding(z, y, normalise=False, bootstrap=60, progress=False)
        for place, true in enumerate((dim / between, dim, between)):
            covered[place] += found[place].low <= true <= found[place].high
        assert all(each.low <= each.value <= each.high for each in found[:6])
    # 80 % less the two standard errors of 40
    assert (covered / repeats > 0.8 - 2 * math.sqrt(0.8 * 0.2 / repeats)).all()


@pytest.mark.parametrize("views", [True, False])
def test_no_interval_leaves_the_range_of_its_figure(views):
    random, y = np.random.default_rng(0), np.repeat([0, 1], 12)
    z = np.eye(2)[y] + 1e-3 * random.normal(size=(24, 2))
    z[0], z[12] = z[12], z[0]  # one item of each class among the others
    pairs = np.stack([z, z], 1)
    pairs[5, 1] = pairs[20, 0]  # and one pair of views that are apart
    options = {"views": pairs} if views else {"normalise": False}
    found = crowding(z, y, **options, progress=False)
    assert 0.6 < found.silhouette.value < found.silhouette.high == 1
    far = crowding(pairs[:, 0], np.roll(y, 11), normalise=False, progress=False)
    assert far.silhouette.low >= -1
    if views:
        assert found.alignment.low == 0 < found.alignment.value
        assert -8 <= found.uniformity.low and found.uniformity.high <= 0


def test_silhouettes_are_resampled_item_by_item():
    from sklearn.metrics import silhouette_samples

    z, y = lumps((20, 20, 20))
    found = crowding(z, y, normalise=False, bootstrap=1_000).silhouette
    each = silhouette_samples(z, y)
    error = math.sqrt(sum(each[y == c].var() * 20 for c in range(3))) / 60
    # A normal quantile of a mean of 60. From 1,000 draws a quantile has an error of
    # 0.067 standard deviations: five of them are 0.33. Resampled silhouettes of all
    # items would lie higher by more than this.
    for end, quantile in ((found.low, -1.645), (found.high, 1.645)):
        assert (end - found.value) / error == pytest.approx(quantile, abs=0.33)


def test_alignment_is_resampled_within_classes():
    z, y = lumps()
    turn = 0.1 * (1 + y)  # one angle of two views for each class
    views = np.stack([np.eye(2)[y * 0], np.stack([np.cos(turn), np.sin(turn)], 1)], 1)
    found = crowding(z, y, views=views, bootstrap=20).alignment
    assert found == pytest.approx([np.mean(2 - 2 * np.cos(turn))] * 3, rel=1e-12)


# what is printed and written


def test_all_figures_are_plain_in_json_and_infinity_is_none():
    z = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    found = crowding(z, ["b", "b", "a", "a"], normalise=False, bootstrap=20)
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert read == found.as_dict()
    assert list(read) == list(Crowding._fields)
    assert read["crowding"]["value"] is None
    assert read["within"]["value"] == 2.5
    assert read["uniformity"] is None
    row = {"label": "a", "items": 2, "within": 4.0, "nearest": 0.0, "margin": 0.0}
    assert read["per_class"][0] == row


def test_printed_are_all_figures_and_the_classes_of_smallest_margin():
    z, y = lumps((4,) * 12)
    found = crowding(z, y, bootstrap=20)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[:7]] == [*OVERALL, "uniformity"]
    assert lines[1] == f"within         {found.within}"
    assert lines[7] == "classes by margin (10 of 12):"
    margins = [float(line.split()[-1]) for line in lines[9:]]
    assert len(margins) == 10 and margins == sorted(margins)
    assert margins[0] == pytest.approx(min(row.margin for row in found.per_class), 1e-3)


# errors


Z, Y = lumps()
BAD, ZERO = Z.copy(), Z.copy()
BAD[3, 1], ZERO[3] = np.nan, 0


test_bad_data_are_refused = refusals(
    (lambda: crowding(Z, Y * 0), ValueError, "at least two classes"),
    (
        lambda: crowding(Z, np.arange(28)),
        ValueError,
        "at least 2 items of each class, got 1",
    ),
    (lambda: crowding(Z, [9, *[0, 1, 2] * 9]), ValueError, "got 1 of class 9"),
    (lambda: crowding(BAD, Y), ValueError, "NaN or infinity in 1 of 84"),
    (lambda: crowding(Z, Y[:-1]), ValueError, "28 representations and 27 labels"),
    (lambda: crowding(Z, Y + 0.5), ValueError, "expected classes"),
    (lambda: crowding(Z[:, None], Y), ValueError, r"\(n, dim\), got \(28, 1, 3\)"),
    (lambda: crowding(ZERO, Y), ValueError, "1 representations that are zero"),
    (lambda: crowding(Z, Y, bootstrap=19), ValueError, "at least 20, got 19"),
    (lambda: crowding(Z, Y, views=Z), ValueError, r"\(n, view, dim\)"),
    (
        lambda: crowding(Z, Y, views=np.ones((27, 2, 3))),
        ValueError,
        "views of 27 items",
    ),
)


def test_zero_is_a_point_like_another_without_normalising():
    found = crowding(ZERO, Y, normalise=False, bootstrap=20)
    assert values(found) == pytest.approx(by_loops(ZERO, Y)[0], rel=1e-12)
