r"""Advice: joint embedding or reconstruction for these data and views, without labels.

In the linear case the question has an answer (`theory`): a paradigm with k components
recovers what is relevant if the k largest values of its spectrum belong to relevant
directions. `advise` computes both spectra from data and views, and decides for each
direction whether it is relevant: whether the images depart from Gaussian noise along it
(`structure`), or, where examples of the nuisance are given, whether nuisance makes up
less than half of its variance. Everything is repeated on random halves of the images,
which gives intervals.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from sklearn.preprocessing import scale as standardised
from tqdm import tqdm

from ..arguments import between, typed, whole
from ..arrays import finite, gate, raw_bytes
from ..bars import shown
from ..estimates import Interval, intervals, reflected
from .moments import Moments, chance, of_views
from .solutions import Solution, joint_embedding, reconstruction
from .theory import alignment_threshold, critical_noise
from .views import ClosedForm, Flattened, in_parts

__all__ = ["Advice", "Spectrum", "advise", "is_structured", "structure"]

Verdict = Literal["joint embedding", "reconstruction", "either", "neither"]
PARADIGMS: tuple[Literal["joint embedding"], Literal["reconstruction"]]
PARADIGMS = ("joint embedding", "reconstruction")
VERDICTS: dict[tuple[bool, ...], Verdict] = {
    (True, True): "either",
    (True, False): "joint embedding",
    (False, True): "reconstruction",
    (False, False): "neither",
}
MEANING = {
    "joint embedding": "joint embedding: it recovers what is relevant, reconstruction "
    "does not",
    "reconstruction": "reconstruction: it recovers what is relevant, joint embedding "
    "does not",
    "either": "either: both paradigms recover what is relevant",
    "neither": "neither: your views do not vary the nuisance, so that no paradigm "
    "recovers what is relevant",
}
FEWEST_IMAGES = 100
# A structured direction has at least so many nats, and this share of the largest.
STRUCTURED_NATS, STRUCTURED_SHARE = 0.005, 0.05
SIGNIFICANCE = 0.01  # of the test that no direction is structured
# |s| and s exp(-s²/2) of a normal s: the mean of the first; the variances of their
# means times n, where mean and variance of s are estimated too.
MEAN_SIZE = math.sqrt(2 / math.pi)
EVEN_VARIANCE, ODD_VARIANCE = 1 - 3 / math.pi, 3**-1.5 - 1 / 8


class Spectrum(NamedTuple):
    """The directions of one paradigm, the largest value first.

    Arguments:
        values: Its eigenvalues or singular values.
        between: The variance of the images along each direction.
        within: The variance of the views of one image along it, half that of the
            difference of two.
        structure: Nats by which images depart from noise along it.
        relevant: Whether it counts as relevant.
        mixed: How ambiguous the decision is: the sum of p (1 - p) over the shares p of
            relevant variance, where these are known, else 0.
    """

    values: Float[Array, " p"]
    between: Float[Array, " p"]
    within: Float[Array, " p"]
    structure: Float[Array, " p"]
    relevant: Bool[Array, " p"]
    mixed: float


Both = dict[str, Interval]


@dataclass(frozen=True, eq=False)
class Advice:
    r"""The result of `advise`; printed, it is a summary in words.

    Figures come with 90 % intervals over random halves of the images.

    Arguments:
        verdict: "joint embedding", "reconstruction", "either" or "neither": the
            paradigms that recover what is relevant.
        support: The share of random halves of the images with the same verdict.
        n_components: The number of components that the verdict is about.
        recovered: For each paradigm, the share of its components that is relevant.
        thresholds: For each, the alignment above which all of its components are
            relevant. The verdict tolerates a few that are not.
        alignment: How much the views vary the irrelevant directions, relative to the
            images: the root of the ratio of variances.
        noise: The largest irrelevant variance, divided by `theory.critical_noise`:
            above 1 favours joint embedding, below 1 reconstruction. Without irrelevant
            directions it is 0.
        spectra: The directions of each paradigm.
    """

    verdict: Verdict
    support: float
    n_components: int
    recovered: Both
    thresholds: Both
    alignment: Interval
    noise: Interval
    spectra: dict[str, Spectrum]

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain numbers, lists and strings, for JSON."""

        def each(named: dict[str, Any]) -> dict[str, Any]:
            return {name: value._asdict() for name, value in named.items()}

        return {
            "verdict": self.verdict,
            "support": self.support,
            "n_components": self.n_components,
            "alignment": self.alignment._asdict(),
            "noise": self.noise._asdict(),
            "recovered": each(self.recovered),
            "thresholds": each(self.thresholds),
            "spectra": {
                paradigm: {k: np.asarray(v).tolist() for k, v in parts.items()}
                for paradigm, parts in each(self.spectra).items()
            },
        }

    def __str__(self) -> str:
        again = f"  the same on {self.support:.0%} of random halves of the images"
        if not self.n_components:
            nothing = "neither: nothing in these images stands out from Gaussian noise"
            return "\n".join([nothing, again])
        lines = [MEANING[self.verdict], again]
        for paradigm, share in self.recovered.items():
            lines += [
                f"  {paradigm}: of {self.n_components} components a share of "
                f"{share:.2f} is relevant; all are at alignments above "
                f"{self.thresholds[paradigm]:.2f}"
            ]
        if not self.noise.value:
            return "\n".join([*lines, "  no irrelevant direction was found"])
        lines += [
            f"  alignment of the views with what is irrelevant: {self.alignment:.2f}",
            f"  largest irrelevant variance: {self.noise:.2f} times the critical noise "
            "(above 1 favours joint embedding)",
        ]
        return "\n".join(lines)


@typed
def advise(
    X: Any,
    views: Callable[[Any], Any],
    *,
    n_components: int = 16,
    nuisance: Any = None,
    tolerance: float = 0.2,
    n_views: int = 4,
    max_features: int = 100,
    halves: int = 50,
    progress: bool = True,
) -> Advice:
    r"""Advise joint embedding or reconstruction for these data and views, unsupervised.

    The linear theory is applied to the first principal components of the images, before
    any network is trained. Without `nuisance`, structure counts as relevant: a relevant
    direction along which images are Gaussian and independent of all others looks like
    noise.

    Arguments:
        X: Rows (n, d), images (n, \*event), or a `data.Split`, whose labels are not
            used; bytes are divided by 255. At least 100 items.
        views: A sampler of augmented views. For images, tensors and splits it takes
            tensors, such as `views.Augment`; for an array of rows it takes rows, as the
            estimators do.
        n_components: The dimension of the representation; reduced to the number of
            relevant directions if these are fewer.
        nuisance: Examples of variation known to be irrelevant, such as background
            alone: rows (m, d) or images (m, \*event), at least 100.
        tolerance: The share of components that may be irrelevant.
        n_views: The number of views drawn of each image, as for the estimators; a
            sampler of several views is called twice at least.
        max_features: The number of principal components of the images; never more than
            a tenth of the number of images.
        halves: The number of random halves of the images on which everything is
            repeated. A bootstrap would not do: duplicates of an image are structure.
        progress: Show a progress bar.

    Raises:
        TypeError: If a number is not of its type.
        ValueError: If there are fewer than 100 images, data or views are not finite,
            views have another shape than images or share nothing within an image, or a
            number is out of its range.
    """
    rows, shape = _rows(X)
    whole("n_components", n_components)
    if between("tolerance", tolerance, 0, 1) == 1:
        raise ValueError("expected a tolerance below 1, which tolerates all, got 1")
    whole("n_views", n_views, 2)
    whole("max_features", max_features)
    whole("halves", halves)
    sampler = views
    if shape is not None and not isinstance(views, ClosedForm):
        sampler = Flattened(views, shape)
    project = _principal(rows, min(max_features, len(rows) // 10))
    known = None
    if nuisance is not None:
        examples = project(_rows(nuisance)[0], "examples of the nuisance")
        known = np.atleast_2d(np.cov(examples, rowvar=False))
    parts = in_parts(sampler, rows, n_views, progress, calls=2)
    seen = np.concatenate([project(views, "views") for _, views in parts])
    images = project(rows, "images")
    _check_views(images, seen)
    _remark_dependent(seen)

    def judge(chosen: Array) -> _Judgement:
        return _judged(images[chosen], seen[chosen], known, n_components, tolerance)

    found = judge(np.arange(len(rows)))
    bar = tqdm(range(halves), "halves", leave=False, **shown(progress))
    half = len(rows) // 2
    again = [judge(torch.randperm(len(rows))[:half].numpy()) for _ in bar]
    figures = np.array([each.figures for each in again])
    values, most = np.array(found.figures), [1, 1, *[np.inf] * 4]  # two shares
    likely = reflected(values, figures).clip(0, most)
    *pairs, alignment, noise = intervals(values, likely)
    return Advice(
        found.verdict,
        float(np.mean([each.verdict == found.verdict for each in again])),
        found.k,
        dict(zip(PARADIGMS, pairs[:2], strict=True)),
        dict(zip(PARADIGMS, pairs[2:], strict=True)),
        alignment,
        noise,
        dict(zip(PARADIGMS, found.spectra, strict=True)),
    )


# The data, in principal components


def _rows(X: Any) -> tuple[Float[Array, "n d"], tuple[int, ...] | None]:
    """Rows in float64, and the shape of an item if the sampler takes tensors."""
    said = hasattr(X, "images")
    X = gate(getattr(X, "images", X), "X")
    shape = tuple(X.shape)
    if len(shape) < 2 or shape[0] < FEWEST_IMAGES:
        raise ValueError(
            f"expected at least {FEWEST_IMAGES} rows (n, d) or images (n, *event), got "
            f"shape {shape}; no structure shows in fewer"
        )
    bytes_ = X.dtype in (torch.uint8, np.uint8)
    if bytes_ and not said:
        raise ValueError(raw_bytes("X"))
    scale = 255.0 if bytes_ else 1.0
    rows = finite(X, "X").reshape(shape[0], -1) / scale
    tensor = isinstance(X, torch.Tensor)
    return rows, shape[1:] if len(shape) > 2 or tensor else None


def _principal(
    rows: Float[Array, "n d"], most: int
) -> Callable[[Float[Array, "*n d"], str], Float[Array, "*n p"]]:
    """A map of named rows to the principal components with nonzero variance."""
    from sklearn.decomposition import PCA

    if not np.ptp(rows, 0).any():
        raise ValueError("expected images that differ, but all of them are the same")
    mean = rows.mean(0)  # the solver may need numbers near zero
    pca = PCA(min(most, *rows.shape), random_state=0).fit(rows - mean)
    variances = pca.explained_variance_
    kept = pca.components_[variances > 1e-10 * variances[0]]

    def project(x: Float[Array, "*n d"], what: str) -> Float[Array, "*n p"]:
        if x.shape[-1] != rows.shape[1]:
            raise ValueError(
                f"expected {what} of {rows.shape[1]} features, like the images, got "
                f"{x.shape[-1]}; there is no advice where features are selected or "
                "mixed"
            )
        return (x - mean) @ kept.T

    return project


def _check_views(
    images: Float[Array, "n p"], views: Float[Array, "n call view p"]
) -> None:
    """Raise an error unless views of one image correlate more than by chance."""
    n, calls, many, features = views.shape
    most = chance(n, features, calls * many * (many - 1))
    common = joint_embedding(of_views(images, views)).spectrum[0]
    if not common > most:
        raise ValueError(
            "expected views that show their image, but two views of one have nothing "
            f"in common (a correlation of {common:.2f}, where chance gives up to "
            f"{most:.2f}); check that the sampler keeps the order of the images, and "
            "draws the views of a call alike"
        )


def _remark_dependent(views: Float[Array, "n call view p"]) -> None:
    """Warn of views of one call that depend on one another given the image.

    Given independence, products of views of one call and of different calls have one
    mean for each feature; five standard errors are allowed.
    """
    n, calls, many, _ = views.shape
    if calls == 1:
        return
    each = views - views.mean((0, 1, 2))
    sums, squares = each.sum(2), np.square(each).sum((1, 2))
    within = (np.square(sums).sum(1) - squares) / (calls * many * (many - 1))
    across = np.square(sums.sum(1)) - np.square(sums).sum(1)
    apart = within - across / (calls * (calls - 1) * many**2)
    rounding = 1e-9 * np.abs(within).mean(0)
    if (np.abs(apart.mean(0)) > 5 * apart.std(0) / n**0.5 + rounding).any():
        warnings.warn(
            "expected views of one call that are independent given their image, got "
            "others than views of different calls show: the verdict holds for pairs of "
            "one call, but thresholds, alignment and noise are those of independent "
            "views; draw each view by itself for these",
            stacklevel=4,
        )


# Structure: which directions are more than noise


def structure(
    features: Float[Array, "n p"],
) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
    r"""Nats by which each feature departs from independent Gaussian noise; p-values.

    Noise with many small causes is Gaussian and independent of what an image shows;
    clusters, strokes and edges are neither. With standardised features s and :math:`a =
    |s|`, of mean m and correlations :math:`\rho`,

    .. math:: \frac{E[s_i e^{-s_i^2 / 2}]^2}{2 (3^{-3/2} - 1/8)}
        + \frac{(E\, a_i - m)^2}{2 (1 - 3 / \pi)}
        + \frac12 \sum_{j \ne i} \big[\rho(a_i, a_j)^2 + \rho(a_i, s_j)^2
        + \rho(s_i, a_j)^2\big], \qquad m = \sqrt{2 / \pi}.

    The first two terms are Hyvärinen's negentropy of one feature, which is robust to
    heavy tails. The others are the mutual information with the rest, to second order.
    Under Gaussian noise 2n times the sum is a chi-square variable, one square for each
    term: that gives the p-value, and the mean, which is subtracted.

    References:
        New Approximations of Differential Entropy for Independent Component Analysis
        and Projection Pursuit (Hyvärinen, 1998)
        Advances in Neural Information Processing Systems 10, page 273
    """
    from scipy import stats

    n, many = features.shape
    s = standardised(features)
    a = np.abs(s)
    odd = np.mean(s * np.exp(-(s**2) / 2), 0) ** 2 / ODD_VARIANCE
    even = (a.mean(0) - MEAN_SIZE) ** 2 / EVEN_VARIANCE
    a = standardised(a)
    sizes, mixed = a.T @ a / n, a.T @ s / n
    shared = sum(_off_diagonal(part) for part in (sizes, mixed, mixed.T))
    index, freedom = (odd + even + shared) / 2, 2 + 3 * (many - 1)
    return index - freedom / (2 * n), stats.chi2.sf(2 * n * index, freedom)


def is_structured(
    index: Float[Array, " p"], p_value: Float[Array, " p"], largest: float
) -> Bool[Array, " p"]:
    """Whether features are more than noise, significantly and by a relevant amount.

    Arguments:
        largest: The index of the most structured feature; a small share of it leaks
            into features that are noise otherwise.
    """
    least = max(STRUCTURED_NATS, STRUCTURED_SHARE * largest)
    return (index > least) & (p_value < SIGNIFICANCE / len(index))


def _off_diagonal(part: Float[Array, "p p"]) -> Float[Array, " p"]:
    return np.square(part).sum(1) - np.square(np.diagonal(part))


# The verdict


class _Judgement(NamedTuple):
    """A verdict on k components, its figures, and the spectra of both paradigms.

    The figures are two of recovered, two of thresholds, alignment and noise.
    """

    verdict: Verdict
    k: int
    figures: list[float]
    spectra: tuple[Spectrum, Spectrum]


def _judged(
    images: Float[Array, "n p"],
    views: Float[Array, "n call view p"],
    nuisance: Float[Array, "p p"] | None,
    n_components: int,
    tolerance: float,
) -> _Judgement:
    """The verdict on principal components of images and of their views.

    Directions mix where a spectrum has nearly equal values. The spectrum with fewer
    relevant directions separates them better, and decides which ones are relevant.
    """
    moments = of_views(images, views)
    solutions = joint_embedding(moments), reconstruction(moments)
    spectra = _spectra(images, moments, solutions, nuisance)
    joint, other = ((part.mixed, int(part.relevant.sum())) for part in spectra)
    clearer = int(other < joint)
    k = min(n_components, (joint, other)[clearer][1])
    if not k:
        return _Judgement("neither", 0, [0.0] * 6, spectra)
    # In whitened coordinates, where the directions of either paradigm are orthonormal.
    relevant = solutions[clearer].encoder[spectra[clearer].relevant].T
    shares = [
        np.square(each.encoder[:k] @ moments.total @ relevant).sum() / k
        for each in solutions
    ]
    verdict = VERDICTS[tuple(bool(share >= 1 - tolerance) for share in shares)]
    return _Judgement(verdict, k, [*shares, *_figures(spectra[clearer], k)], spectra)


def _spectra(
    images: Float[Array, "n p"],
    moments: Moments,
    solutions: tuple[Solution, Solution],
    nuisance: Float[Array, "p p"] | None,
) -> tuple[Spectrum, Spectrum]:
    encoders = [solution.encoder for solution in solutions]
    found = [structure(images @ encoder.T) for encoder in encoders]
    largest = max(index.max() for index, _ in found)
    spectra = []
    for solution, encoder, (index, p_value) in zip(
        solutions, encoders, found, strict=True
    ):
        relevant, mixed = is_structured(index, p_value, largest), 0.0
        if nuisance is not None:
            share = _along(encoder, nuisance) / _along(encoder, moments.data)
            relevant, share = share < 0.5, share.clip(0, 1)
            mixed = float(np.sum(share * (1 - share)))
        # Along z = w x the views have the pattern S w, and z the variance 1.
        size = np.square(encoder @ moments.total).sum(1)
        between, within = (
            size * _along(encoder, part) for part in (moments.between, moments.within)
        )
        values = solution.spectrum
        spectra.append(Spectrum(values, between, within, index, relevant, mixed))
    return spectra[0], spectra[1]


def _figures(spectrum: Spectrum, k: int) -> list[float]:
    """The thresholds of both paradigms, the alignment, and the relative noise."""
    relevant, within = spectrum.relevant, spectrum.within
    # The estimate is unbiased, so that variances near 0 may be negative.
    variances = spectrum.between.clip(1e-9 * np.abs(spectrum.between).max())
    signal, spread = variances[relevant][:k], within[relevant][:k].clip(0)
    noise, varied = variances[~relevant], within[~relevant]
    if not len(noise):
        return [0.0] * 4
    augmentation = np.concatenate([spread, np.zeros(len(noise))])
    thresholds = [
        alignment_threshold(signal, noise, augmentation, paradigm)
        for paradigm in PARADIGMS
    ]
    alignment = np.sqrt(varied.sum().clip(0) / noise.sum())
    return [*thresholds, alignment, noise.max() / critical_noise(signal, spread)]


def _along(
    encoder: Float[Array, "k p"], second: Float[Array, "p p"]
) -> Float[Array, " k"]:
    """The variance of each component under these second moments."""
    return np.sum((encoder @ second) * encoder, 1)
