"""Moments of data and views: against enumeration, sampling, and their own parts."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from helpers import linear
from helpers.checks import assert_mean, refusals
from numpy import ndarray as Array
from numpy.testing import assert_allclose

import probssl as ps
from probssl.linear import (
    AdditiveNoise,
    Chain,
    ClosedForm,
    Flattened,
    JointEmbeddingSSL,
    LinearMaps,
    Masking,
)
from probssl.linear.moments import Moments, of_data, of_views

DIM = 3
COVARIANCE = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.4]])
SINGULAR = np.outer([1.0, 2.0, -1.0], [1.0, 2.0, -1.0])
MAPS = np.random.default_rng(7).normal(size=(4, DIM, DIM))
CROPS = np.random.default_rng(8).normal(size=(3, 2, DIM))
VIEWS: dict[str, ClosedForm] = {
    "noise of one variance": AdditiveNoise(0.7),
    "noise of variances": AdditiveNoise([0.1, 0.0, 3.0]),
    "noise of a covariance": AdditiveNoise(COVARIANCE),
    "noise in one direction": AdditiveNoise(SINGULAR),
    "masks filled by means": Masking(0.3),
    "masks filled by zero": Masking(0.6, fill=0.0),
    "masks filled by a number": Masking(0.2, fill=-1.5),
    "maps": LinearMaps(MAPS),
    "maps of unequal probabilities": LinearMaps(MAPS, [0.1, 0.6, 0.0, 0.3]),
    "crops": LinearMaps(CROPS, [5.0, 2.0, 3.0]),
    "a chain of maps": Chain(LinearMaps(MAPS), LinearMaps(CROPS)),
    "a chain of all": Chain(
        Masking(0.4), AdditiveNoise(COVARIANCE), LinearMaps(MAPS), Masking(0.3, 0.5)
    ),
    "a chain in a chain": Chain(
        Chain(LinearMaps(MAPS), AdditiveNoise(0.2)), Masking(0.4, 1.0), AdditiveNoise(1)
    ),
}
Branches = list[tuple[float, Array]]


def rows(n: int = 12, dim: int = DIM) -> Array:
    return linear.rows(n, dim)


def branches(step: ClosedForm, given: Branches) -> Branches:
    """All views of views and their probabilities; points of the moments of noise."""
    if isinstance(step, Chain):
        for one in step.steps:
            given = branches(one, given)
        return given
    mean = sum(share * x.mean(0) for share, x in given)
    return [
        (share * weight, view(x))
        for share, x in given
        for weight, view in views_of(step, mean)
    ]


def views_of(step: ClosedForm, mean: Array) -> Iterable[tuple[float, Callable]]:
    dim = len(mean)
    if isinstance(step, Masking):
        fill = mean if step.fill is None else np.full(dim, step.fill)
        for hidden in np.ndindex(*[2] * dim):
            seen = 1 - np.array(hidden)
            chance = step.probability ** sum(hidden)
            chance *= (1 - step.probability) ** seen.sum()
            yield chance, lambda x, seen=seen: x * seen + fill * (1 - seen)
    elif isinstance(step, LinearMaps):
        share = np.array(step.probabilities or [1.0] * len(step.maps))
        for each, one in zip(share / share.sum(), step.maps, strict=True):
            yield each, lambda x, one=one: x @ one.T
    elif isinstance(step, AdditiveNoise):
        given = np.asarray(step.covariance, float)
        given = given if given.ndim == 2 else given * np.eye(dim)
        values, vectors = np.linalg.eigh(given)
        for point in (vectors * np.sqrt(dim * values.clip(0))).T:
            yield 0.5 / dim, lambda x, point=point: x + point
            yield 0.5 / dim, lambda x, point=point: x - point


@pytest.mark.parametrize("name", VIEWS)
def test_moments_are_those_of_all_views_enumerated(name):
    x, views = rows(), VIEWS[name]
    all_views = branches(views, [(1.0, x)])
    mean_views = sum(share * view for share, view in all_views)

    plain = views.moments(of_data(x)).about(0.0, 0.0)
    assert sum(share for share, _ in all_views) == pytest.approx(1)
    total = sum(share * view.T @ view for share, view in all_views)
    assert_allclose(plain.total, total / len(x), atol=1e-12)
    assert_allclose(plain.between, mean_views.T @ mean_views / len(x), atol=1e-12)
    assert_allclose(plain.cross, x.T @ mean_views / len(x), atol=1e-12)
    assert_allclose(plain.data, x.T @ x / len(x), atol=1e-12)
    centred = views.moments(of_data(x))
    assert_allclose(centred.view_mean, mean_views.mean(0), atol=1e-12)
    around = mean_views - mean_views.mean(0)
    assert_allclose(centred.between, around.T @ around / len(x), atol=1e-12)
    assert_allclose(centred.within, plain.within, atol=1e-12)


def repeated(views: ClosedForm, x: Array, many: int) -> Array:
    """So many views of each row, (many, n, e); all rows have the mean of x."""
    return views(np.tile(x, (many, 1))).reshape(many, len(x), -1)


@pytest.mark.parametrize("name", VIEWS)
def test_moments_are_those_of_drawn_views(name):
    x, views, many = rows(20), VIEWS[name], 1_500
    one, two = repeated(views, x, many), repeated(views, x, many)
    exact = views.moments(of_data(x)).about(0.0, 0.0)

    def products(left: Array, right: Array) -> Array:
        return np.swapaxes(left, -1, -2) @ right / len(x)

    assert_mean(products(one, one), exact.total)
    assert_mean(products(one, two), exact.between)
    assert_mean(products(np.broadcast_to(x, (many, *x.shape)), one), exact.cross)
    assert_mean(one.mean(1), views.moments(of_data(x)).view_mean)


def test_views_follow_the_generator_of_torch():
    for views in VIEWS.values():
        torch.manual_seed(3)
        first = views(rows())
        torch.manual_seed(3)
        assert (views(rows()) == first).all()
        assert (views(rows()) != first).any()


def plain_moments(x: Array, views: Array) -> dict[str, Array]:
    """Sums over images, views, and pairs of different views."""
    n, many, _ = views.shape
    pairs = [(a, b) for a in range(many) for b in range(many) if a != b]
    total = sum(np.outer(view, view) for each in views for view in each)
    between = sum(np.outer(each[a], each[b]) for each in views for a, b in pairs)
    cross = sum(np.outer(x[i], view) for i in range(n) for view in views[i])
    return {
        "data": sum(np.outer(each, each) for each in x) / n,
        "total": total / (n * many),
        "between": between / (n * len(pairs)),
        "cross": cross / (n * many),
    }


@pytest.mark.parametrize("around", ["means", "other points"])
@pytest.mark.parametrize(("n", "many", "dim"), [(9, 4, 2), (5, 2, 6), (1, 3, 1)])
def test_moments_of_drawn_views_are_sums_over_views_and_pairs(n, many, dim, around):
    x, views = rows(n), np.random.default_rng(1).normal(size=(n, many, dim)) + 3
    found, points = of_views(x, views[:, None]), (x.mean(0), views.mean((0, 1)))
    if around == "other points":
        points = np.array([1.0, -2.0, 3.0]), np.linspace(-1, 2, dim)
        found = found.about(*points)
    assert_allclose(found.mean, points[0])
    assert_allclose(found.view_mean, points[1])
    for name, value in plain_moments(x - points[0], views - points[1]).items():
        assert_allclose(getattr(found, name), value, atol=1e-13)
    assert_allclose(found.within, found.total - found.between)


def test_the_between_moment_of_drawn_views_is_unbiased():
    x, views, many = rows(8), AdditiveNoise(COVARIANCE), 1_000
    exact = views.moments(of_data(x)).about(0.0, 0.0).between
    pairs = zip(repeated(views, x, many), repeated(views, x, many), strict=True)
    drawn = [of_views(x, np.stack(pair, 1)[:, None]) for pair in pairs]
    sample = np.stack([each.about(0.0, 0.0).between for each in drawn])
    assert_mean(sample, exact)


SPLITS = {"equal": (20, 20, 20), "unequal": (3, 50, 7), "single rows": (1,) * 60}


def parts_of(x: Array, views: Array | None, sizes: tuple[int, ...]) -> list[Moments]:
    ends = np.cumsum(sizes)
    slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if views is None:
        return [of_data(x[each]) for each in slices]
    return [of_views(x[each], views[each][:, None]) for each in slices]


def merged(parts: list[Moments]) -> Moments:
    first, *others = parts
    for other in others:
        first = first.merged(other)
    return first


def same(one: Moments, two: Moments, within: float = 1e-10) -> None:
    for left, right in zip(one[:-1], two[:-1], strict=True):  # without swaps
        assert np.abs(left - right).max() <= within * np.abs(right).max()


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_merged_parts_have_the_moments_of_the_whole_in_any_order(sizes, drawn):
    x = rows(60)
    views = np.random.default_rng(2).normal(size=(60, 3, 4)) + x[:, :1, None]
    views = views if drawn else None
    whole, parts = parts_of(x, views, (60,))[0], parts_of(x, views, sizes)
    same(merged(parts), whole)
    same(merged(parts[::-1]), whole)
    order = np.random.default_rng(3).permutation(len(parts))
    same(merged([parts[i] for i in order]), whole)
    half = len(parts) // 2
    same(merged(parts[:half]).merged(merged(parts[half:])), whole)


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
def test_moments_lose_no_digits_to_large_means(sizes):
    # Multiples of 2^-20, so that the sums with 1e6 are exact.
    x = np.round(rows(60) * 2**20) / 2**20
    views = np.random.default_rng(2).normal(size=(60, 3, DIM))
    views = x[:, None] + np.round(views * 2**20) / 2**20
    small = of_views(x, views[:, None])
    for large in (
        merged(parts_of(x + 1e6, views + 1e6, sizes)),
        of_views(x + 1e6, views[:, None] + 1e6),
    ):
        for name in ("data", "total", "between", "cross", "within"):
            apart = np.abs(getattr(large, name) - getattr(small, name)).max()
            assert apart <= 1e-10 * np.abs(getattr(small, name)).max()
        assert_allclose(large.mean - 1e6, small.mean, atol=1e-9)


class Batches(torch.nn.Module):
    """A sampler that gives a batch."""

    def __init__(self, present: bool = False) -> None:
        super().__init__()
        self.views, self.present = ps.views.digits(views=3), present

    def forward(self, x: torch.Tensor) -> ps.Batch:
        present = torch.ones(len(x), 3, dtype=torch.bool) if self.present else None
        return ps.Batch(self.views(x), clean=x, present=present)


@pytest.mark.parametrize("make", [lambda: ps.views.digits(views=3), Batches])
def test_samplers_of_images_are_flattened(make):
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    found = Flattened(make(), (1, 8, 8))(images.double().flatten(1).numpy())
    torch.manual_seed(5)
    expected = ps.views.digits(views=3)(images)
    assert found.shape == (6, 3, 64) and found.dtype == np.float64
    assert (found == expected.flatten(2).double().numpy()).all()


def test_views_of_images_are_learned_from():
    x = torch.rand(100, 64).double().numpy()
    views = Flattened(ps.views.digits(), [1, 8, 8])
    found = JointEmbeddingSSL(3, views=views).fit(x)
    assert found.transform(x).shape == (100, 3)
    assert 0 < found.optimum_ < 6


def test_flattened_refuses_other_shapes():
    views, x = Flattened(ps.views.digits(), (1, 8, 8)), np.zeros((4, 60))
    with pytest.raises(ValueError, match=r"64 features, for images of shape \(1, 8"):
        views(x)
    crops = ps.views.MultiCrop(local_size=(4, 4))
    for sampler in (crops, Batches(present=True), lambda x: x[:, 0, 0]):
        with pytest.raises(ValueError, match="one tensor"):
            Flattened(sampler, (1, 8, 8))(np.full((4, 64), 0.5))


test_invalid_views_are_refused = refusals(
    (lambda: AdditiveNoise(-1.0), ValueError, "at least 0"),
    (lambda: AdditiveNoise([1.0, -1.0]), ValueError, "at least 0"),
    (lambda: AdditiveNoise([[1.0, 2.0], [2.0, 1.0]]), ValueError, "got -1"),
    (lambda: AdditiveNoise([[1.0, 0.5], [0.0, 1.0]]), ValueError, "symmetric"),
    (lambda: AdditiveNoise(np.ones((2, 3))), ValueError, r"shape \(2, 3\)"),
    (lambda: AdditiveNoise(np.ones((2, 2, 2))), ValueError, r"shape \(2, 2, 2\)"),
    (lambda: AdditiveNoise(np.nan), ValueError, "NaN"),
    (lambda: AdditiveNoise([1.0, np.inf]), ValueError, "infinity"),
    (lambda: Masking(0.0), ValueError, "between 0 and 1"),
    (lambda: Masking(1.0), ValueError, "between 0 and 1"),
    (lambda: Masking(np.nan), ValueError, "between 0 and 1"),
    (lambda: Masking(0.5, np.inf), ValueError, "finite fill"),
    (lambda: LinearMaps(np.eye(3)), ValueError, r"maps\[None\]"),
    (lambda: LinearMaps(np.ones((0, 3, 3))), ValueError, r"\(0, 3, 3\)"),
    (lambda: LinearMaps([[[np.nan]]]), ValueError, "finite maps"),
    (lambda: LinearMaps(MAPS, [1.0] * 5), ValueError, "expected 4"),
    (lambda: LinearMaps(MAPS, [1, 1, 1, -1]), ValueError, "at least 0"),
    (lambda: LinearMaps(MAPS, [1, 1, 1, np.nan]), ValueError, "at least 0"),
    (lambda: LinearMaps(MAPS, [0.0] * 4), ValueError, "expected 4"),
    (lambda: Chain(), ValueError, "at least one"),
    (
        lambda: AdditiveNoise([1.0, 2.0]).moments(of_data(rows())),
        ValueError,
        "expected noise of 3 features.*got 2",
    ),
    (lambda: AdditiveNoise(np.eye(2))(rows()), ValueError, "got 2"),
    (
        lambda: LinearMaps(MAPS).moments(of_data(rows(5, 4))),
        ValueError,
        "expected maps of 4 features.*got 3",
    ),
    (lambda: LinearMaps(MAPS)(rows(5, 4)), ValueError, "got 3"),
    (lambda: Chain(Masking(0.5), lambda x: x), TypeError, "closed form"),
    (
        lambda: of_data(rows(4)).merged(of_data(rows(4, 2))),
        ValueError,
        r"then \(2, 2\)",
    ),
)


def test_views_show_how_they_were_made():
    chain = Chain(Masking(0.3), AdditiveNoise(np.eye(3)))
    assert repr(chain) == (
        "Chain(steps=(Masking(probability=0.3, fill=None), "
        "AdditiveNoise(covariance=array(3, 3))))"
    )
    assert "Masking(probability=0.3" in repr(JointEmbeddingSSL(views=Masking(0.3)))


def test_a_sampler_may_write_to_its_rows():
    x, found = np.random.default_rng(0).normal(size=(60, 4)), []
    for in_place in (False, True):
        noise = np.random.default_rng(1)

        def views(rows, noise=noise, in_place=in_place):
            if not in_place:
                return rows + 0.5 * noise.normal(size=rows.shape)
            rows += 0.5 * noise.normal(size=rows.shape)
            return rows

        kept = x.copy()
        found.append(ps.linear.ReconstructionSSL(2, views=views, n_views=8).fit(kept))
        np.testing.assert_array_equal(kept, x)
    np.testing.assert_allclose(*(each.spectrum_ for each in found))


class Patches(Masking):
    """Masks two features at a time."""

    def linear(self, mean: Array) -> tuple[Array, Array]:
        return super().linear(mean)

    def spread(self, mean: Array, covariance: Array) -> Array:
        square = covariance + np.outer(mean - self._fill(mean), mean - self._fill(mean))
        pairs = np.kron(np.eye(len(mean) // 2), np.ones((2, 2)))
        return self.probability * (1 - self.probability) * pairs * square

    def __call__(self, x: Array) -> Array:
        hidden = torch.rand(len(x), x.shape[1] // 2).numpy() < self.probability
        return np.where(hidden.repeat(2, 1), self._fill(x.mean(0)), x)


def test_a_subclass_that_draws_other_views_has_moments_of_its_own():
    draw = Patches.__call__
    with pytest.raises(TypeError, match="linear and spread.* in Pairs, got __call__"):
        type("Pairs", (Masking,), {"__call__": draw})
    mixin = type("Drawn", (), {"__call__": draw})
    with pytest.raises(TypeError, match="in Pairs"):
        type("Pairs", (mixin, Masking), {})
    type("Told", (Masking,), {"__call__": draw, "spread": Patches.spread})


def test_a_fitted_subclass_keeps_its_moments():
    x = np.random.default_rng(0).normal(size=(50, 4)) @ np.ones((4, 4)) + np.eye(50, 4)
    for views in (Patches(0.4), Chain(Patches(0.4), AdditiveNoise(0.1))):
        model = JointEmbeddingSSL(2, views=views).fit(x)
        assert model.score(x) == pytest.approx(-model.optimum_)
        assert type(views.fitted(x.mean(0))) is type(views)
