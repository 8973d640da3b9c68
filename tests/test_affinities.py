"""P of stochastic neighbour embedding: densities, perplexities, overlaps."""

import math

import pytest
import torch
from helpers.checks import refusals
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl import affinities
from probssl.affinities import Mixup, Noise, Overlap, Perplexity, Positives
from probssl.terms import Batch
from probssl.views import Affine, Augment, PerItem
from probssl.views import Noise as NoisyViews

pytestmark = pytest.mark.usefixtures("float64")
MEANS = [[0.0, 1.0], [2.0, 0.0], [-1.0, -1.0]]


@pytest.fixture
def batch() -> Batch:
    corner = 0.9 * torch.rand(7, 3, 2) - 0.9
    boxes = torch.cat((corner, corner + 0.05 + torch.rand(7, 3, 2) * 0.8), -1)
    return Batch(torch.randn(7, 3, 2), transform=boxes)


EVERY = [
    Positives(),
    Overlap(),
    Overlap(floor=0.0),
    Noise(0.7),
    Noise(0.7, symmetric=True),
    Mixup(torch.tensor(MEANS, dtype=torch.float64), 0.3),
    Perplexity(4.0),
    Perplexity(4.0, symmetric=True),
]


@pytest.mark.parametrize("affinity", EVERY)
def test_p_is_a_distribution_over_pairs_of_different_views(affinity, batch):
    p = affinity(batch)
    assert p.shape == ((21, 21) if affinity.dense else (7, 3, 3))
    assert (p >= 0).all() and not p.diagonal(dim1=-2, dim2=-1).any()
    assert_close(p.sum(), torch.tensor(1.0))


def test_positives_share_the_weight_evenly(batch):
    off = ~torch.eye(3, dtype=torch.bool)
    assert_close(Positives()(batch)[:, off], torch.full((7, 6), 1 / 42.0))


@pytest.mark.parametrize("symmetric", [False, True])
def test_noise_is_the_density_of_the_difference_normalised_for_each_view(
    symmetric, batch
):
    x, plain = batch.views.flatten(0, 1), torch.zeros(21, 21)
    for i in range(21):
        for j in range(21):
            density = math.exp(-float((x[i] - x[j]).square().sum()) / (2 * 0.7**2))
            plain[i, j] = density if i != j else 0.0
    plain = plain / plain.sum(1, keepdim=True) / 21
    plain = (plain + plain.T) / 2 if symmetric else plain
    assert_close(Noise(0.7, symmetric=symmetric)(batch), plain)


@pytest.mark.parametrize("dim", [1, 2])
def test_mixup_is_the_density_of_a_share_of_the_way_between_two_items(dim):
    means = torch.tensor(MEANS)[:, :dim]
    mixup = Mixup(means, 0.3, strength=(0.2, 0.5))
    draws = 400_000
    items = means[torch.randint(3, (2, draws))] + 0.3 * torch.randn(2, draws, dim)
    share = 0.2 + 0.3 * torch.rand(draws, 1)
    delta = share * (items[1] - items[0])
    centre, width = torch.tensor([0.35, -0.2])[:dim], 0.1
    points = torch.stack((torch.zeros(dim), centre))
    density = mixup.log_density(points)[0, 1].exp()
    inside = ((delta - centre).abs() < width / 2).all(1).double()
    error = inside.std() / math.sqrt(draws) / width**dim
    assert_close(density, inside.mean() / width**dim, rtol=0.01, atol=float(5 * error))


def test_the_density_of_mixup_integrates_to_one():
    mixup = Mixup(torch.tensor(MEANS)[:, :1], 0.3, strength=(0.2, 0.5))
    delta = torch.linspace(-4, 4, 401)[:, None]
    density = mixup.log_density(torch.cat((torch.zeros(1, 1), delta)))[0, 1:].exp()
    assert_close(torch.trapezoid(density, delta[:, 0]), torch.tensor(1.0))
    assert_close(density, density.flip(0))


def test_mixup_knows_the_directions_that_matter_and_noise_does_not():
    """Components in two of 50 dimensions: along them points are near for mixup."""
    means = torch.zeros(3, 50)
    means[:, :2] = torch.tensor(MEANS)
    across = torch.zeros(3, 50)
    across[1] = 0.8 * torch.nn.functional.normalize(means[1] - means[0], dim=0)
    across[2, 30] = 0.8  # and this way no two means differ
    mixed = Mixup(means, 0.1).log_density(across)[0]
    noisy = Noise(0.5).log_density(across)[0]
    assert mixed[1] - mixed[2] > 10 and abs(noisy[1] - noisy[2]) < 1e-12


@pytest.mark.parametrize("perplexity", [1.01, 1.5, 4.0, 19.0, 19.99])
def test_each_point_has_as_many_neighbours_as_the_perplexity(perplexity, batch):
    p = 21 * Perplexity(perplexity)(batch)
    entropy = -torch.xlogy(p, p).sum(1)
    assert_close(entropy.exp(), torch.full((21,), perplexity))
    square = torch.cdist(batch.views.flatten(0, 1), batch.views.flatten(0, 1)) ** 2
    row, nearer = p[0, 1:].log(), square[0, 1:]
    slope = (row[1:] - row[:-1]) / (nearer[1:] - nearer[:-1])
    assert_close(slope, slope[:1].expand_as(slope))  # Gaussian, of one width


@pytest.mark.parametrize("perplexity", [1.9, 4.0, 5.5])
def test_points_that_nearly_agree_do_not_hide_the_others(perplexity):
    x = torch.randn(10, 3).repeat(2, 1)
    x[10:] += 1e-9 * torch.randn(10, 3)
    p = 20 * Perplexity(perplexity)(Batch(x[:, None]))
    entropy = -torch.xlogy(p, p).sum(1)
    assert_close(entropy.exp(), torch.full((20,), perplexity))


def test_a_perplexity_of_one_leaves_the_nearest():
    x = torch.randn(12, 3)
    square = torch.cdist(x, x).fill_diagonal_(math.inf)
    p = 12 * Perplexity(1.0)(Batch(x[:, None]))
    assert_close(p, torch.eye(12)[square.argmin(1)])


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_a_perplexity_does_not_depend_on_the_units(scale, batch):
    p = Perplexity(4.0)(batch)
    assert_close(Perplexity(4.0)(Batch(scale * batch.views)), p)


def test_equal_points_are_the_neighbours_of_each_other():
    x = torch.cat((torch.zeros(5, 2), 1 + torch.rand(4, 2)))
    p = 9 * Perplexity(3.0)(Batch(x[:, None]))
    assert_close(p[:5, :5].sum(1), torch.ones(5))
    assert Perplexity(3.0)(Batch(torch.zeros(6, 1, 2))).isfinite().all()


def plain_overlap(a: Tensor, b: Tensor) -> float:
    wide = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])))
    high = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])))
    areas = [float((c[2] - c[0]) * (c[3] - c[1])) for c in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def test_overlap_is_the_intersection_over_the_union(batch):
    plain = torch.zeros(7, 3, 3)
    for i in range(7):
        for v in range(3):
            for w in range(3):
                a, b = batch.transform[i, v], batch.transform[i, w]
                plain[i, v, w] = (0.2 + 0.8 * plain_overlap(a, b)) * (v != w)
    assert_close(Overlap(0.2)(batch), plain / plain.sum())
    assert_close(Overlap(1.0)(batch), Positives()(batch))


def test_views_tell_the_boxes_they_show():
    """A picture of its own coordinates shows where a view was taken."""
    across = (torch.arange(32.0) * 2 + 1) / 32 - 1
    picture = torch.stack(torch.meshgrid(across, across, indexing="xy"))[None]
    sampler = Augment(Affine(crop=(0.3, 0.6), flip=0.5), boxes=True, clamp=False)
    seen = sampler(picture.expand(6, 2, 32, 32))
    pixels = seen.views.flatten(3)  # x and y of each
    half = (pixels.amax(-1) - pixels.amin(-1)) / 2 * 32 / 31
    middle = (pixels.amax(-1) + pixels.amin(-1)) / 2
    boxes = torch.cat((middle - half, middle + half), -1)
    assert_close(seen.transform, boxes, rtol=0, atol=0.05)
    area = (seen.transform[..., 2:] - seen.transform[..., :2]).prod(-1) / 4
    assert ((area > 0.299) & (area < 0.601)).all()


def test_boxes_leave_the_views_as_they_were():
    x, views = torch.rand(5, 1, 12, 12), {}
    for boxes in (False, True):
        torch.manual_seed(3)
        affine = Affine(rotate=20, crop=(0.5, 1.0), p=0.7)
        views[boxes] = Augment(affine, NoisyViews(0.1), boxes=boxes)(x)
    assert_close(views[True].views, views[False])
    still = Augment(Affine(rotate=20, p=0.0), boxes=True)(x).transform
    assert (still == torch.tensor([-1.0, -1.0, 1.0, 1.0])).all()


def test_overlap_is_fitted_with_the_boxes_that_fit_hands_on():
    sampler = Augment(Affine(crop=(0.3, 1.0)), views=3, boxes=True)
    encoder = ps.nn.MLPEncoder((1, 8, 8), 2, hidden=(8,))
    objective = ps.limits.NeighbourEmbedding(encoder, Overlap())
    images = torch.rand(32, 1, 8, 8)
    history = ps.fit(objective, images, views=sampler, epochs=2, progress=False)
    assert all(map(math.isfinite, history["value"]))


PLAIN = Batch(torch.zeros(7, 3, 2))

test_bad_input_is_refused = refusals(
    (lambda: Noise(0.0), ValueError, "scale as a positive"),
    (lambda: Perplexity(0.5), ValueError, "perplexity as a finite number of at least"),
    (lambda: Perplexity(20.0)(PLAIN), ValueError, "got 20 for 20"),
    (lambda: Overlap(2.0), ValueError, "floor from 0 to 1, got 2"),
    (lambda: Overlap()(PLAIN), ValueError, "boxes=True"),
    (
        lambda: Augment(torch.nn.Identity(), Affine(flip=0.5), boxes=True),
        ValueError,
        "Affine before Identity",
    ),
    (
        lambda: Augment(NoisyViews(0.1), boxes=True),
        ValueError,
        "one Affine among the parts",
    ),
    (
        lambda: Mixup(torch.zeros(2, 2), 1.0, strength=(0.0, 0.5)),
        ValueError,
        "0 < low < high",
    ),
    (lambda: Mixup(torch.zeros(2), 1.0), ValueError, r"means of shape \(component, d"),
    (lambda: Mixup(torch.zeros(2, 2), 0.0), ValueError, "scale as a positive"),
    (lambda: Mixup(torch.zeros(2, 2), 1.0, nodes=0), ValueError, "nodes as a whole"),
    (lambda: Mixup(torch.zeros(2, 3), 1.0)(PLAIN), ValueError, "items of 3 numbers"),
    (
        lambda: Noise(1.0)(Batch(torch.zeros(1, 1, 2))),
        ValueError,
        "number of views .* of at least 2, got 1",
    ),
)


def test_a_loaded_objective_has_its_affinity(tmp_path):
    means = torch.tensor(MEANS)
    objective = ps.limits.TSNE(nn.Identity(), Mixup(means, 0.3, nodes=8))
    loaded = ps.load(ps.save(objective, tmp_path))
    assert_close(loaded.affinity.means, means)
    x = Batch(torch.randn(5, 2, 2))
    assert_close(sum(loaded(x)), sum(objective.eval()(x)))
    assert set(affinities.__all__) >= {type(a).__name__ for a in EVERY}


DENSE = [
    affinities.Perplexity(4.0),
    affinities.Perplexity(4.0, symmetric=True),
    affinities.Noise(1.0),
    affinities.Mixup(torch.zeros(2, 5).fill_diagonal_(1.0), 1.0),
]


@pytest.mark.parametrize("affinity", DENSE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_coarser_numbers_give_the_p_of_the_same_numbers_in_single_precision(
    affinity, dtype
):
    torch.manual_seed(0)
    x = (8 * torch.randn(12, 2, 5)).to(dtype)
    p = affinity(ps.Batch(x))
    assert p.dtype == (torch.float32 if dtype.is_floating_point else torch.float64)
    assert_close(p.double(), affinity(ps.Batch(x.double())), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("affinity", DENSE, ids=repr)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_view_that_is_not_finite_is_refused(affinity, value):
    x = torch.randn(12, 2, 5)
    x[3, 1, 2] = value
    with pytest.raises(ValueError, match="finite numbers in the views of an affinity"):
        affinity(ps.Batch(x))


@pytest.mark.parametrize(
    "affinity", [*DENSE, affinities.Positives(), affinities.Overlap()], ids=repr
)
def test_an_affinity_takes_a_batch(affinity):
    with pytest.raises(TypeError, match=r"expected a Batch, got Tensor; give Batch"):
        affinity(torch.randn(12, 2, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int16])
def test_areas_of_boxes_do_not_overflow_in_coarse_numbers(dtype):
    boxes = torch.tensor([[0, 0, 250, 250], [50, 0, 250, 250]])
    found = affinities.intersection_over_union(boxes.to(dtype))
    assert_close(found.double(), torch.tensor([[1.0, 0.8], [0.8, 1.0]]).double())


def test_boxes_in_another_convention_are_refused():
    for box in ([3.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, math.nan, 1.0]):
        with pytest.raises(ValueError, match="right > left .* got .*width"):
            affinities.intersection_over_union(torch.tensor([[0.0, 0, 1, 1], box]))


class Flip(nn.Module):
    """One draw a call."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1) if torch.rand(()) < 0.5 else x


class Jittered(Affine):
    """Changes values after the crop, unknown to `with_boxes`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Known(Jittered):
    def with_boxes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, boxes = super().with_boxes(x)
        return x + 1, boxes


WRAPPERS = {
    "PerItem": lambda part: PerItem(part),
    "Sequential": lambda part: nn.Sequential(nn.Sequential(part)),
    "Augment": lambda part: Augment(part, views=1),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_boxes_know_of_what_moves_pixels_inside_other_parts(name):
    wrap, crop = WRAPPERS[name], Affine(crop=(0.2, 0.5))
    for part in (Flip(), PerItem(Flip())):
        with pytest.raises(ValueError, match="Affine before Flip"):
            Augment(wrap(part), crop, boxes=True)
        Augment(crop, wrap(part), boxes=True)
    with pytest.raises(ValueError, match="one Affine among the parts .* got 2"):
        Augment(crop, wrap(Affine(flip=0.5)), boxes=True)
    with pytest.raises(ValueError, match="got it inside .*which hands on no boxes"):
        Augment(wrap(crop), boxes=True)
    Augment(wrap(NoisyViews(0.1)), crop, boxes=True)


def test_boxes_of_a_subclass_are_those_of_its_own_method():
    with pytest.raises(ValueError, match="subclass with with_boxes .* got Jittered"):
        Augment(Jittered(crop=(0.5, 1.0)), boxes=True)
    x, part = torch.zeros(3, 1, 8, 8), Known(crop=(0.5, 1.0))
    assert (Augment(part, boxes=True, clamp=False)(x).views == 1).all()
