"""Joint embedding and reconstruction: optima, equivalences, and scikit-learn's ways."""

import pickle
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas
import pytest
import scipy.linalg
import torch
from helpers.checks import refusals
from helpers.linear import rows
from numpy import ndarray as Array
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import probssl as ps
from probssl.linear import (
    AdditiveNoise,
    Chain,
    Flattened,
    JointEmbeddingSSL,
    LinearMaps,
    Masking,
    ReconstructionSSL,
)
from probssl.linear import views as views_module
from probssl.linear.moments import of_data
from probssl.linear.solutions import joint_embedding, reconstruction

BOTH = [JointEmbeddingSSL, ReconstructionSSL]
both = pytest.mark.parametrize("kind", BOTH)
around = pytest.mark.parametrize("with_mean", [True, False])


def given(views: Array) -> Callable[[Array], Array]:
    """A sampler that draws these."""
    return lambda rows: views


def drawn(x: Array, many: int, dim: int, seed: int = 0) -> Array:
    """Views of other features than those of the rows, some of them their own."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(x.shape[1], dim))
    return (x @ maps)[:, None] + 0.7 * rng.normal(size=(len(x), many, dim)) + 1


def stream(seed: int = 0, many: int = 2) -> Callable[[Array], Array]:
    """A sampler whose draws do not depend on the parts that rows come in."""
    rng = np.random.default_rng(seed)
    return lambda x: x[:, None] + rng.standard_normal((len(x), many, x.shape[1]))


@both
def test_scikit_learns_checks_pass(kind):
    # What is skipped are arrays of other libraries, unless SCIPY_ARRAY_API is set.
    results = check_estimator(kind(2), on_skip=None)
    assert {each["status"] for each in results} <= {"passed", "skipped"}
    assert sum(each["status"] == "passed" for each in results) > 40


# Optima


def problem(seed: int) -> tuple[Array, object, Array, Array, int]:
    """Rows, views, all views of each row and their probabilities, and k."""
    rng = np.random.default_rng(seed)
    n, dim, k = [(30, 4, 2), (7, 10, 3), (5, 12, 2), (50, 6, 5), (12, 3, 1)][seed % 5]
    x = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    if seed % 3 == 0:
        maps = rng.normal(size=(3, dim + 1, dim)) / 3 + np.eye(dim + 1, dim)
        share = rng.dirichlet(np.ones(3))
        return x, LinearMaps(maps, share), np.einsum("jed,nd->nje", maps, x), share, k
    if seed % 3 == 1:
        root = 0.5 * rng.normal(size=(dim, dim))
        points = np.concatenate([root, -root]) * dim**0.5  # of noise of root' root
        share = np.full(2 * dim, 0.5 / dim)
        return x, AdditiveNoise(root.T @ root), x[:, None] + points, share, k
    views = drawn(x, 2, dim, seed)
    return x, given(views), views, np.full(2, 0.5), k


def plain_moments(
    seed: int, with_mean: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cov(x), S, the covariance of two views apart, and B, by sums over all views."""
    x, views, all_views, share, _ = problem(seed)
    if with_mean:
        x = x - x.mean(0)
        all_views = all_views - np.einsum("nve,v->e", all_views, share) / len(x)
    pairs = np.outer(share, share)
    if callable(views) and not hasattr(views, "moments"):  # pairs of different views
        pairs = (1 - np.eye(len(share))) / (len(share) * (len(share) - 1))
    apart = all_views[:, :, None] - all_views[:, None]
    found = (
        np.einsum("nd,nf->df", x, x),
        np.einsum("nve,nvf,v->ef", all_views, all_views, share),
        np.einsum("nabe,nabf,ab->ef", apart, apart, pairs, optimize=True),
        np.einsum("nd,nve,v->de", x, all_views, share),
    )
    data, total, apart, cross = (torch.tensor(each / len(x)) for each in found)
    return data, total, apart, cross


def whitening(total: torch.Tensor) -> torch.Tensor:
    """Coordinates in which descent is quick; what does not vary plays no part."""
    values, vectors = torch.linalg.eigh(total)
    kept = values > 1e-10 * values[-1]
    return vectors[:, kept] * values[kept].rsqrt()


def descended(objective: Callable[..., torch.Tensor], *start: torch.Tensor) -> float:
    """The value that L-BFGS reaches from there."""
    parameters = [each.clone().requires_grad_() for each in start]
    settings = {"tolerance_grad": 1e-7, "tolerance_change": 1e-13, "history_size": 10}
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=500, line_search_fn="strong_wolfe", **settings
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = objective(*parameters)
        value.backward()
        return value

    optimiser.step(closure)
    return float(objective(*parameters).detach())


@both
@pytest.mark.parametrize("seed", range(10))
def test_no_descent_gets_below_the_closed_form_and_one_gets_there(kind, seed, float64):
    x, views, *_, k = problem(seed)
    with_mean = seed % 2 == 0
    found = kind(k, views=views, n_views=2, with_mean=with_mean).fit(x)
    data, total, apart, cross = plain_moments(seed, with_mean)
    white = whitening(total)

    def embedding(free: torch.Tensor) -> torch.Tensor:
        """With W = (U S U')^{-1/2} U, which meets the constraint for any U."""
        inner = torch.linalg.cholesky(free @ total @ free.T)
        encoder = torch.linalg.solve_triangular(inner, free, upper=False)
        return (encoder @ apart @ encoder.T).trace()

    def reconstruction(encoder: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        both = decoder @ encoder
        return data.trace() - 2 * (both * cross).sum() + (both @ total * both).sum()

    objective, sizes, own = embedding, [], [found.components_]
    if kind is ReconstructionSSL:
        objective, sizes = reconstruction, [(len(data), k)]
        own += [found.decoder_]
    reached = []
    for _ in range(3):
        start = [torch.randn(k, white.shape[1]), *(torch.randn(size) for size in sizes)]
        reached += [descended(lambda u, *d: objective(u @ white.T, *d), *start)]
    assert min(reached) == pytest.approx(found.optimum_, abs=1e-8)
    value = float(objective(*map(torch.tensor, own)))
    assert value == pytest.approx(found.optimum_, abs=1e-9)


CLOSED = {
    "noise": AdditiveNoise(0.5),
    "masks": Masking(0.4),
    "maps": LinearMaps(np.random.default_rng(1).normal(size=(3, 5, 5))),
    "chain": Chain(Masking(0.3, fill=1.0), AdditiveNoise([0.1, 1.0, 2.0, 0.0, 0.3])),
    "drawn": given(drawn(rows(), 3, 6)),
}


@around
@pytest.mark.parametrize("name", CLOSED)
def test_the_spectrum_gives_the_optimum(name, with_mean):
    x, views = rows(), CLOSED[name]
    joint = JointEmbeddingSSL(3, views=views, with_mean=with_mean).fit(x)
    expected = 2 * (1 - joint.spectrum_[:3]).sum()
    assert joint.optimum_ == pytest.approx(expected, abs=1e-10)
    pixels = ReconstructionSSL(3, views=views, with_mean=with_mean).fit(x)
    size = np.square(x - x.mean(0) * with_mean).sum() / len(x)
    expected = size - np.square(pixels.spectrum_[:3]).sum()
    assert pixels.optimum_ == pytest.approx(expected, abs=1e-10)


@both
@pytest.mark.parametrize("name", CLOSED)
def test_representations_of_views_are_white(kind, name):
    x, views = rows(), CLOSED[name]
    found = kind(3, views=views).fit(x)
    total = found._problem().total
    encoder = found.components_
    assert_allclose(encoder @ total @ encoder.T, np.eye(3), atol=1e-10)
    largest = np.take_along_axis(encoder, np.abs(encoder).argmax(1)[:, None], 1)
    assert (largest > 0).all()
    if name == "drawn":
        z = found.transform(views(x).reshape(-1, 6))
        assert_allclose(z.T @ z / len(z), np.eye(3), atol=1e-10)
        assert_allclose(z.mean(0), 0, atol=1e-12)


@both
@around
@pytest.mark.parametrize("name", CLOSED)
def test_the_score_of_the_same_rows_is_minus_the_optimum(kind, with_mean, name):
    found = kind(3, views=CLOSED[name], with_mean=with_mean).fit(rows())
    assert found.score(rows()) == pytest.approx(-found.optimum_, rel=1e-12)


@both
@around
@pytest.mark.parametrize("name", ["noise", "masks", "maps", "chain"])
def test_the_score_is_the_mean_of_the_scores_of_rows(kind, with_mean, name):
    """No view takes anything from the rows that are scored."""
    found = kind(3, views=CLOSED[name], with_mean=with_mean).fit(rows() + 10)
    other = rows(20, seed=2) + 9
    each = [found.score(row[None]) for row in other]
    assert found.score(other) == pytest.approx(np.mean(each), rel=1e-12)


@both
def test_masked_features_are_scored_with_the_training_mean(kind):
    x, other = rows() + 10, rows(50, seed=2) + 9
    found, known = (
        kind(3, views=views).fit(x) for views in (Masking(0.3), Masking(0.3, x.mean(0)))
    )
    assert found.score(other) == pytest.approx(known.score(other), rel=1e-12)


@around
def test_the_score_of_other_rows_is_their_error_under_the_maps_found(with_mean):
    x, other = rows(seed=1), rows(30, seed=2)
    views, parts = drawn(x, 4, 5), drawn(other, 4, 5, seed=3)
    pixels = ReconstructionSSL(2, views=given(views), with_mean=with_mean).fit(x)
    joint = JointEmbeddingSSL(2, views=given(views), with_mean=with_mean).fit(x)
    z = joint.transform(parts.reshape(-1, 5)).reshape(30, 4, 2)
    apart = ((z[:, :, None] - z[:, None]) ** 2).sum() / (30 * 4 * 3)
    back = pixels.inverse_transform(pixels.transform(parts.reshape(-1, 5)))
    errors = ((other[:, None] - back.reshape(30, 4, 5)) ** 2).sum(-1)
    pixels.views = joint.views = given(parts)
    assert pixels.score(other) == pytest.approx(-errors.mean(), rel=1e-12)
    assert joint.score(other) == pytest.approx(-apart, rel=1e-12)


@both
def test_views_are_drawn_in_parts_that_do_not_matter(kind, monkeypatch):
    x = rows(50)
    whole = kind(2, views=stream(), n_views=2).fit(x)
    monkeypatch.setattr(views_module, "ROWS_AT_ONCE", 7)
    parts = kind(2, views=stream(), n_views=2).fit(x)
    assert_allclose(parts.components_, whole.components_, atol=1e-10)
    assert parts.optimum_ == pytest.approx(whole.optimum_, rel=1e-10)


def test_as_many_views_are_drawn_as_are_wanted():
    counted = []
    for gives, n_views in ((1, 5), (2, 4), (3, 4)):
        calls: list[int] = []

        def sampler(x: Array, gives: int = gives, calls: list[int] = calls) -> Array:
            calls.append(gives)
            views = stream(len(calls), gives)(x)
            return views[:, 0] if gives == 1 else views

        JointEmbeddingSSL(1, views=sampler, n_views=n_views).fit(rows())
        counted.append(sum(calls))
    assert counted == [5, 4, 6]


# Equivalences


def same_up_to_signs(left: Array, right: Array, within: float = 1e-10) -> None:
    """Rows of both, each up to its sign."""
    signs = np.sign((left * right).sum(1, keepdims=True))
    assert np.abs(signs * left - right).max() < within * np.abs(right).max()


@pytest.mark.parametrize("dim", [1, 5])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.7, 100.0])
def test_under_isotropic_noise_both_are_pca(noise, dim):
    x, k = rows(dim=dim), min(3, dim)
    pca = PCA(k, svd_solver="full").fit(x)
    variances = pca.explained_variance_ * (len(x) - 1) / len(x)
    total = variances + noise
    found = ReconstructionSSL(k, views=AdditiveNoise(noise)).fit(x)
    assert_allclose(found.spectrum_[:k] ** 2, variances**2 / total)
    same_up_to_signs((found.decoder_ / found.spectrum_[:k]).T, pca.components_)
    expected = pca.components_ / np.sqrt(total)[:, None]
    same_up_to_signs(found.components_, expected)
    white = pca.transform(x) / np.sqrt(total)
    same_up_to_signs(found.transform(x).T, white.T)
    lost = x.var(0).sum() - (variances**2 / total).sum()
    assert found.optimum_ == pytest.approx(lost, abs=1e-12)
    if noise == 0:
        back = found.inverse_transform(found.transform(x))
        assert_allclose(back, pca.inverse_transform(pca.transform(x)), atol=1e-12)
    else:
        found = JointEmbeddingSSL(k, views=AdditiveNoise(noise)).fit(x)
        assert_allclose(found.spectrum_[:k], variances / total)
        same_up_to_signs(found.components_, expected)
        assert found.optimum_ == pytest.approx(2 * (noise / total).sum())


@pytest.mark.parametrize("views", [Masking(0.5), AdditiveNoise(2.0)])
def test_reconstructions_have_rank_k_and_larger_errors_under_views(views):
    x = rows()
    found = ReconstructionSSL(2, views=views).fit(x)
    back = found.inverse_transform(found.transform(x))
    assert np.linalg.matrix_rank(back - back.mean(0)) == 2
    least = ReconstructionSSL(2, views=AdditiveNoise(0.0)).fit(x).optimum_
    assert least < np.square(x - back).sum() / len(x) < found.optimum_


def test_reconstruction_is_reduced_rank_regression_on_the_views():
    x = rows()
    views = drawn(x, 3, 4)
    found = ReconstructionSSL(2, views=given(views), n_views=3).fit(x)
    inputs = (views - views.mean((0, 1))).reshape(-1, 4)
    targets = np.repeat(x - x.mean(0), 3, axis=0)
    full = np.linalg.lstsq(inputs, targets)[0]
    kept = np.linalg.svd(inputs @ full)[2][:2]
    both = (found.decoder_ @ found.components_).T
    assert_allclose(both, full @ kept.T @ kept, atol=1e-12)


def test_joint_embedding_is_canonical_correlation_analysis_of_two_views():
    x = rows(60)
    views = drawn(x, 2, 4)
    found = JointEmbeddingSSL(2, views=given(views), n_views=2).fit(x)
    # Either view may be the first.
    one = np.concatenate([views[:, 0], views[:, 1]])
    two = np.concatenate([views[:, 1], views[:, 0]])
    cca = CCA(2, scale=False, max_iter=10_000, tol=1e-14).fit(one, two)
    correlations = [
        np.corrcoef(left, right)[0, 1]
        for left, right in zip(*map(np.transpose, cca.transform(one, two)), strict=True)
    ]
    assert_allclose(found.spectrum_[:2], correlations, atol=1e-8)
    scores = cca.transform(one)
    same_up_to_signs(found.transform(one).T, (scores / scores.std(0)).T, 1e-5)

    around = one.mean(0)
    cross = (one - around).T @ (two - around)
    exact = scipy.linalg.eigh(cross, (one - around).T @ (one - around))[0][::-1]
    assert_allclose(found.spectrum_, exact, atol=1e-12)


def test_joint_embedding_is_invariant_to_invertible_maps_of_the_data():
    x, rng = rows(), np.random.default_rng(4)
    views, mix = drawn(x, 3, 5), rng.normal(size=(5, 5))
    one = JointEmbeddingSSL(3, views=given(views)).fit(x)
    two = JointEmbeddingSSL(3, views=given(views @ mix + 2)).fit(x @ mix)
    assert_allclose(two.spectrum_, one.spectrum_, atol=1e-10)
    moved = two.transform(views[:, 0] @ mix + 2)
    same_up_to_signs(moved.T, one.transform(views[:, 0]).T, 1e-8)


def test_reconstruction_is_invariant_to_rotations_and_invertible_maps_of_views():
    x, rng = rows(), np.random.default_rng(4)
    views, mix = drawn(x, 3, 5), rng.normal(size=(5, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    one = ReconstructionSSL(3, views=given(views)).fit(x)
    two = ReconstructionSSL(3, views=given(views @ mix)).fit(x @ rotation)
    assert_allclose(two.spectrum_, one.spectrum_, atol=1e-10)
    same_up_to_signs(two.decoder_.T, (rotation.T @ one.decoder_).T, 1e-8)


def test_units_do_not_matter_to_joint_embedding_under_masks():
    x, units = rows(), np.array([1e-3, 1.0, 10.0, 1e3, 7.0])
    one = JointEmbeddingSSL(2, views=Masking(0.3)).fit(x)
    two = JointEmbeddingSSL(2, views=Masking(0.3)).fit(x * units)
    assert_allclose(two.spectrum_, one.spectrum_, atol=1e-8)
    same_up_to_signs(two.transform(x * units).T, one.transform(x).T, 1e-7)


@pytest.mark.parametrize("scale", [1e-140, 1e-6, 1e6, 1e140])
def test_the_scale_of_the_data_moves_through(scale):
    x = rows()
    one = JointEmbeddingSSL(2).fit(x)
    two = JointEmbeddingSSL(2).fit(x * scale)
    assert_allclose(two.spectrum_, one.spectrum_, rtol=1e-10)
    assert_allclose(two.components_ * scale, one.components_, atol=1e-8)
    one, two = ReconstructionSSL(2).fit(x), ReconstructionSSL(2).fit(x * scale)
    assert_allclose(two.spectrum_ / scale, one.spectrum_, rtol=1e-10)
    assert_allclose(two.decoder_ / scale, one.decoder_, atol=1e-8)
    assert two.optimum_ / scale**2 == pytest.approx(one.optimum_)


def test_the_mutual_information_is_that_of_two_gaussian_views():
    x = rows()
    found = JointEmbeddingSSL(views=AdditiveNoise(0.7)).fit(x)
    of_one = np.cov(x.T, bias=True) + 0.7 * np.eye(5)
    of_both = np.block([[of_one, of_one - 0.7 * np.eye(5)]] * 2)
    of_both[5:] = np.roll(of_both[5:], 5, axis=1)
    exact = np.linalg.slogdet(of_one)[1] - 0.5 * np.linalg.slogdet(of_both)[1]
    assert found.mutual_information() == pytest.approx(exact, abs=1e-10)


def halves(x: Array) -> Array:
    """Counts of 20 divided at random into two halves of 10 each."""
    white = np.random.default_rng(1).hypergeometric(
        x.astype(int), 20 - x.astype(int), 10
    )
    return np.stack([white, x - white], 1)


def opposed(x: Array) -> Array:
    """Antithetic views x + e and x - e."""
    noise = 2.0 * np.random.default_rng(1).normal(size=x.shape)
    return np.stack([x + noise, x - noise], 1)


@pytest.mark.parametrize("n_views", [2, 4, 7])
def test_pairs_are_of_one_call_however_they_depend_on_one_another(n_views):
    n, dim, rng = 20_000, 4, np.random.default_rng(0)
    found = JointEmbeddingSSL(views=halves, n_views=n_views)
    found.fit(rng.binomial(20, [0.2, 0.5, 0.5, 0.7], (n, dim)))
    assert np.abs(found.spectrum_).max() < 5 * (dim / n) ** 0.5  # independent counts
    assert found.mutual_information() < 5 * dim**2 / n
    x = rng.normal(size=(n, dim)) * [1.0, 2.0, 3.0, 4.0]
    found = JointEmbeddingSSL(views=opposed, n_views=n_views).fit(x)
    a, t = np.array([1.0, 4.0, 9.0, 16.0]), 4.0
    correlations = (a - t) / (a + t)
    assert_allclose(found.spectrum_, correlations[::-1], atol=5 * n**-0.5)
    exact = -0.5 * np.log1p(-np.square(correlations)).sum()
    assert found.mutual_information() == pytest.approx(exact, abs=5 * (dim / n) ** 0.5)


def test_calls_of_independent_views_agree_with_the_closed_form():
    x, errors = np.random.default_rng(0).normal(size=(4_000, 3)) * [1, 2, 3], []
    exact = JointEmbeddingSSL(views=AdditiveNoise(1.0)).fit(x).mutual_information()
    for seed in range(20):
        found = JointEmbeddingSSL(views=stream(seed), n_views=4).fit(x)
        errors.append(found.mutual_information() - exact)
    bar = np.std(errors, ddof=1) / len(errors) ** 0.5
    assert abs(np.mean(errors)) < 5 * bar + 3**2 / len(x)  # and the bias of 1/n


TURN = np.array([[0.0, -1.0], [1.0, 0.0]])


def turned(seed: int, noise: float) -> Callable[[Array], Array]:
    """Rows, and rows turned by a quarter with noise."""
    rng = np.random.default_rng(seed)

    def draw(x: Array) -> Array:
        return np.stack([x, x @ TURN.T + noise * rng.normal(size=x.shape)], 1)

    return draw


def test_views_of_different_kinds_have_no_mutual_information_by_pooled_moments():
    """S and G of x and Rx + e, for x of unit covariance and a quarter turn R.

    S is (1 + s² / 2) I and G, the symmetric part of R, is 0, while the two views share
    all of x up to the noise e: log(1 + 1 / s²) nats in two dimensions.
    """
    n, noise = 20_000, 0.3
    x = np.random.default_rng(0).normal(size=(n, 2))
    pairs = turned(1, noise)
    found = JointEmbeddingSSL(views=pairs, n_views=2).fit(x)
    assert_allclose(found.moments_.total, (1 + noise**2 / 2) * np.eye(2), atol=0.05)
    assert_allclose(found.spectrum_, 0, atol=5 * n**-0.5)
    first, second = np.moveaxis(pairs(x), 1, 0)
    two = np.cov(first.T, second.T)
    logs = [np.linalg.slogdet(part)[1] for part in (two[:2, :2], two[2:, 2:], two)]
    information = (logs[0] + logs[1] - logs[2]) / 2
    assert information == pytest.approx(np.log1p(noise**-2), abs=0.1)
    with pytest.raises(ValueError, match="views of one call that are drawn alike"):
        found.mutual_information()


OTHERS = {  # views of a call that differ in one moment
    "variance": lambda x, e, f: [x + 0.5 * e, x + f],
    "mean": lambda x, e, f: [x + e, x + f + 0.5],
    "partner": lambda x, e, f: [x + e, x + e[::-1], x + e],
    "last": lambda x, e, f: [x + e, x + f, x + f[::-1], x],
}


@pytest.mark.parametrize("name", OTHERS)
def test_views_that_differ_by_their_place_are_told_from_views_that_do_not(name):
    n, rng = 3_000, np.random.default_rng(0)
    x = 1e3 + rng.normal(size=(n, 3))

    def draw(x: Array) -> Array:
        return np.stack(OTHERS[name](x, *rng.normal(size=(2, *x.shape))), 1)

    parts = JointEmbeddingSSL(views=draw)
    for part in np.split(x, 30):
        parts.partial_fit(part)
    for found in (parts, JointEmbeddingSSL(views=draw).fit(x)):
        with pytest.raises(ValueError, match="differ by their place"):
            found.mutual_information()


def test_views_that_are_alike_are_seldom_taken_for_different_ones():
    """Whatever their tails, and where all calls share their noise."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.standard_cauchy(size=(300, 3))
        pair = rng.standard_cauchy(size=(300, 2, 3))
        views = lambda x, pair=pair: x[:, None] + pair  # noqa: E731
        found = JointEmbeddingSSL(views=views, n_views=8).fit(x)
        assert not found.moments_.swaps.differ


def test_calls_give_as_many_views_each():
    widths = iter([2, 3])
    sampler = lambda x: np.stack([x] * next(widths), 1)  # noqa: E731
    with pytest.raises(ValueError, match="as many views and features in every call"):
        JointEmbeddingSSL(1, views=sampler, n_views=4).fit(rows())


def test_the_mutual_information_is_infinite_where_views_do_not_vary():
    noise = AdditiveNoise([0.0, 1.0, 1.0, 1.0, 1.0])
    assert JointEmbeddingSSL(1, views=noise).fit(rows()).mutual_information() > 15
    noise = AdditiveNoise([0.0, 1.0])
    x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert JointEmbeddingSSL(1, views=noise).fit(x).mutual_information() == np.inf


def test_correlations_estimated_below_zero_add_no_information():
    views = np.random.default_rng(0).normal(size=(40, 2, 6))
    found = JointEmbeddingSSL(5, views=given(views), n_views=2).fit(rows())
    positive = found.spectrum_[:5][found.spectrum_[:5] > 0]
    assert 0 < len(positive) < 5
    expected = -0.5 * np.log1p(-(positive**2)).sum()
    assert found.mutual_information() == pytest.approx(expected)


# More features than rows, ridges, and directions without variance


def test_units_and_offsets_change_no_information():
    """And neither do features without variance, far from zero."""
    x, noise = rows(300, 3), np.array([0.5, 1.0, 2.0])
    once = JointEmbeddingSSL(views=AdditiveNoise(noise)).fit(x).mutual_information()
    for unit in ([1e8, 1, 1e-8], [1e-4, 1e4, 1]):
        for offset in (0, 1e9):
            moved = np.column_stack([(x + offset) * unit, np.full(300, 1e9 / 3)])
            views = AdditiveNoise(np.append(noise * np.square(unit), 0))
            model = JointEmbeddingSSL(views=views).fit(moved)
            assert model.mutual_information() == pytest.approx(once, rel=1e-6)


def test_with_more_features_than_rows_maps_lie_in_the_span_of_the_rows():
    x = rows(6, 10)
    x = x - x.mean(0)
    outside = np.eye(10) - np.linalg.pinv(x) @ x
    maps = LinearMaps(np.stack([np.eye(10), 0.5 * np.eye(10)]))
    noise = AdditiveNoise(x.T @ np.diag([1, 2, 3, 4, 5, 6]) @ x)
    for views, kind in product((maps, noise), BOTH):
        found = kind(5, views=views).fit(x)
        assert len(found.spectrum_) == 5
        assert np.abs(found.components_ @ outside).max() < 1e-10
        with pytest.raises(ValueError, match="at most 5 comp.*got 6; give more"):
            kind(6, views=views).fit(x)


@both
def test_a_ridge_is_noise_of_the_views(kind):
    for x in (rows(), rows(6, 10)):
        dim = x.shape[1]
        views = LinearMaps(np.stack([np.eye(dim), np.diag(np.arange(dim))]))
        found = kind(2, views=views, ridge=0.2).fit(x)
        variance = 0.2 * np.trace(found._problem().total) / dim
        noisy = kind(2, views=Chain(views, AdditiveNoise(variance))).fit(x)
        assert_allclose(found.components_, noisy.components_, atol=1e-10)
        assert_allclose(found.spectrum_, noisy.spectrum_, atol=1e-10)
        maps = found.components_ * np.sqrt(2)  # two views, each with its noise
        if kind is ReconstructionSSL:
            maps = found.decoder_ @ found.components_
        share = variance * np.square(maps).sum()
        assert found.optimum_ + share == pytest.approx(noisy.optimum_, abs=1e-10)


@both
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_constant_features_are_left_out(kind, constant):
    x = rows()
    padded = np.insert(x, 2, constant, axis=1)
    found, plain = kind(3).fit(padded), kind(3).fit(x)
    assert_allclose(np.delete(found.components_, 2, 1), plain.components_, atol=1e-10)
    assert_allclose(found.components_[:, 2], 0, atol=1e-12)
    assert_allclose(found.spectrum_, plain.spectrum_, atol=1e-10)


@both
def test_features_that_others_sum_to_are_no_directions(kind):
    for n in (50, 2_000):
        mix = np.concatenate([np.eye(5), np.ones((5, 2))], 1)
        moved = (stream()(rows(n)) @ mix) + 100.0
        assert len(kind(views=given(moved), n_views=2).fit(rows(n)).spectrum_) == 5


@both
def test_all_components_are_kept_by_default(kind):
    assert kind().fit(rows()).components_.shape == (5, 5)
    taller = LinearMaps(np.random.default_rng(0).normal(size=(9, 7, 5)))
    found = kind(views=taller).fit(rows())
    assert len(found.components_) == (7 if kind is JointEmbeddingSSL else 5)


# What is refused


NO_VIEWS = r"such as Masking\(0.5\), or a function"
REFUSED = {
    "a class": ({"views": Masking}, rows(), NO_VIEWS),
    "a number": ({"views": 0.5}, rows(), NO_VIEWS),
    "a name": ({"views": "masks"}, rows(), NO_VIEWS),
    "an array": ({"views": np.eye(5)}, rows(), NO_VIEWS),
    "more components than rows": ({"n_components": 4}, rows(3), "at most 3.*got 4"),
    "more than features": ({"n_components": 6}, rows(), "n_features = 5, got 6"),
    "one row": ({}, rows(1), "1 sample"),
    "too large": (
        {},
        np.insert(rows(), 3, -1e151, axis=0),
        "below 1e\\+150.*got 1e\\+151; rescale",
    ),
    "too small": ({}, rows() * 1e-160, "squares underflow"),
    "constant": ({}, np.ones((9, 2)), "all of them are constant"),
    "no component": (
        {"n_components": 0},
        rows(),
        "n_components as a whole number of at least 1, got 0",
    ),
    "half a component": ({"n_components": 2.5}, rows(), "whole number.*got 2.5"),
    "named components": ({"n_components": "all"}, rows(), "got 'all'"),
    "one view": ({"n_views": 1}, rows(), "n_views.*at least 2, got 1"),
    "negative ridge": ({"ridge": -0.1}, rows(), "ridge.*at least 0, got -0.1"),
    "infinite ridge": ({"ridge": np.inf}, rows(), "ridge as a finite.*got inf"),
    "NaN in views": (
        {"views": lambda x: np.where(x > 1, np.nan, x)},
        rows(),
        "expected views with entries below.*NaN",
    ),
    "views of other rows": (
        {"views": lambda x: x[1:]},
        rows(),
        r"\(40, features\).*of 40 rows, got \(39, 5\)",
    ),
    "views of one axis": ({"views": lambda x: x[:, 0]}, rows(), r"got \(40,\)"),
    "no views": ({"views": lambda x: x[:, None][:, :0]}, rows(), r"\(40, 0, 5\)"),
    "views of no features": ({"views": lambda x: x[:, :0]}, rows(), r"got \(40, 0\)"),
    "noise of 2 features": (
        {"views": AdditiveNoise([1.0, 1.0])},
        rows(),
        "expected noise of 5 features, like the data, got 2",
    ),
}


@both
@pytest.mark.parametrize("name", REFUSED)
def test_unusable_settings_and_data_are_refused(kind, name):
    settings, x, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words):
        kind(**settings).fit(x)


@pytest.mark.parametrize(
    "views", [AdditiveNoise(0.0), lambda x: x, given(np.repeat(rows()[:, None], 3, 1))]
)
def test_views_that_change_nothing_are_for_reconstruction_only(views):
    with pytest.raises(ValueError, match="all views of each image agree.*Reconstr"):
        JointEmbeddingSSL(2, views=views).fit(rows())
    found = ReconstructionSSL(5, views=views).fit(rows())
    assert found.optimum_ == pytest.approx(0, abs=1e-12)


@both
def test_features_are_those_of_the_fit(kind):
    found = kind(2, views=given(drawn(rows(), 3, 6))).fit(rows())
    with pytest.raises(ValueError, match="4 features.*expecting 5"):
        found.score(rows()[:, :4])
    with pytest.raises(ValueError, match="6 features, like the views, got 5"):
        found.transform(rows())
    with pytest.raises(ValueError, match=r"got \(5, 6\) and then \(5, 4\)"):
        found.set_params(views=given(drawn(rows(), 3, 4))).partial_fit(rows())


WIDE = LinearMaps(np.random.default_rng(0).normal(size=(9, 7, 5)))
MOMENTS = WIDE.moments(of_data(rows()))
FOUND = ReconstructionSSL(2).fit(rows())
test_invalid_reconstructions_are_refused = refusals(
    (lambda: FOUND.inverse_transform(rows()), ValueError, r"\(n, 2\), got \(40, 5\)"),
    (lambda: FOUND.inverse_transform([[0.0, np.nan]]), ValueError, "NaN"),
    (lambda: reconstruction(MOMENTS, 6), ValueError, "at most 5 comp.*image, got 6"),
    (
        lambda: ReconstructionSSL(6, views=WIDE).partial_fit(rows()).components_,
        ValueError,
        "at most 5 components.*image, got 6",
    ),
    (lambda: ReconstructionSSL().inverse_transform(rows()), NotFittedError, "fitted"),
    (lambda: JointEmbeddingSSL().mutual_information(), NotFittedError, "fitted"),
)


def test_joint_embedding_has_more_components_than_images_have_features():
    assert len(joint_embedding(MOMENTS, 6).encoder) == 6


@both
def test_an_unfitted_estimator_raises(kind):
    for use in ("transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(kind(), use)(rows())
    for name in ("components_", "spectrum_", "optimum_", "decoder_"):
        assert not hasattr(kind(), name)


# Scikit-learn's ways


@both
@pytest.mark.parametrize("name", CLOSED)
def test_fitting_in_parts_is_fitting_the_whole(kind, name):
    x = rows()
    whole, parts = (
        kind(3, views=stream() if name == "drawn" else CLOSED[name], n_views=2)
        for _ in range(2)
    )
    whole.fit(x)
    for start, end in ((0, 1), (1, 4), (4, 39), (39, 40)):
        parts.partial_fit(x[start:end])
        if start > 0:
            parts.components_  # noqa: B018  # solving in between changes nothing
    assert_allclose(parts.components_, whole.components_, atol=1e-10)
    assert_allclose(parts.transform(x), whole.transform(x), atol=1e-10)
    assert parts.optimum_ == pytest.approx(whole.optimum_, rel=1e-10)
    assert parts.moments_.n == 40


@both
def test_a_fit_that_fails_says_so_again(kind):
    found = kind(2, views=AdditiveNoise(1.0)).fit(rows())
    with pytest.raises(ValueError, match="constant"):
        found.set_params(views=AdditiveNoise(0.0)).fit(np.ones((9, 5)))
    with pytest.raises(ValueError, match="constant"):
        found.transform(rows())


@both
def test_a_fit_discards_earlier_rows(kind):
    found = kind(2).fit(rows(seed=1)).partial_fit(rows(seed=2)).fit(rows())
    assert_allclose(found.components_, kind(2).fit(rows()).components_, atol=1e-12)


@both
def test_estimators_are_pickled_and_cloned(kind):
    image = Flattened(ps.views.digits(), (1, 8, 8))
    for views, x in ((None, rows()), (CLOSED["chain"], rows()), (image, rows(20, 64))):
        x = x - x.min()
        x /= x.max()
        found = kind(2, views=views, n_views=2, ridge=0.1).fit(x)
        again = pickle.loads(pickle.dumps(found))
        assert (again.transform(x) == found.transform(x)).all()
        copy = clone(found)
        assert not hasattr(copy, "components_")
        torch.manual_seed(1)
        copy.fit(x)
        torch.manual_seed(1)
        assert (copy.components_ == found.fit(x).components_).all()


@both
def test_tables_and_names_go_in_and_come_out(kind):
    x = pandas.DataFrame(rows(), columns=list("abcde"))
    found = kind(2).set_output(transform="pandas").fit(x)
    z = found.transform(x)
    names = [f"{kind.__name__.lower()}{i}" for i in range(2)]
    assert list(z.columns) == list(found.get_feature_names_out()) == names
    assert_allclose(z, kind(2).fit(rows()).transform(rows()), atol=1e-12)
    assert list(found.feature_names_in_) == list("abcde")


@both
def test_numbers_of_single_precision_are_taken_as_they_are(kind):
    single = rows().astype(np.float32)
    found, exact = kind(2).fit(single), kind(2).fit(single.astype(float))
    assert found.components_.dtype == np.float64
    assert (found.components_ == exact.components_).all()
    assert (found.transform(single) == exact.transform(single.astype(float))).all()


def test_estimators_work_in_pipelines_and_searches():
    x = rows(200, 8)
    pipeline = make_pipeline(StandardScaler(), ReconstructionSSL(views=Masking(0.2)))
    grid = {"reconstructionssl__n_components": [1, 2, 5]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(x)
    scores = search.cv_results_["mean_test_score"]
    assert (np.diff(scores) > 0).all() and search.best_index_ == 2
    assert search.transform(x).shape == (200, 5)
    # Every component of joint embedding takes from the score.
    search = GridSearchCV(JointEmbeddingSSL(), {"n_components": [1, 2, 5]}, cv=3).fit(x)
    assert search.best_params_ == {"n_components": 1}


@both
def test_progress_is_shown_on_request_only(kind, capsys):
    views = given(drawn(rows(), 2, 5))
    kind(2, views=views).fit(rows())
    assert capsys.readouterr() == ("", "")
    kind(2, views=views, verbose=True).fit(rows())
    shown = capsys.readouterr()
    assert "views" in shown.err and not shown.out
