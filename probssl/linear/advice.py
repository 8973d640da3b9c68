r"""Joint embedding or reconstruction for these data and these views? Without labels.

In the linear case the question has an answer (`theory`): a paradigm of k components
recovers what is relevant if the k largest values of its spectrum belong to relevant
directions. So the spectra are computed, and it is asked of each direction whether it
is relevant: whether images are structured along it (`structure`), or, where the
nuisance is known, whether less than half of its variance is nuisance.

Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction for
Self-Supervised Learning (Van Assel et al., 2025)
https://arxiv.org/abs/2505.12477
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from tqdm import tqdm

from ..estimates import Interval
from .judgement import PARADIGMS, Judgement, Spectrum, Verdict, judged
from .moments import of_views
from .samplers import Flattened, in_parts
from .solutions import joint_embedding
from .views import ClosedForm

__all__ = ["Advice", "advise"]

LEAST = 100  # images, below which nothing can be told from noise
SAID = {
    "joint embedding": "joint embedding: it recovers what is relevant, reconstruction "
    "does not",
    "reconstruction": "reconstruction: it recovers what is relevant, joint embedding "
    "does not",
    "either": "either: both paradigms recover what is relevant",
    "neither": "neither: your views do not cover the nuisance, so that no paradigm "
    "will recover what is relevant",
}


Both = dict[str, Interval]


@dataclass(frozen=True, eq=False)
class Advice:
    r"""What `advise` found; printed, it says so in words.

    Figures come with where 90 % of their values on random halves of the images lie.

    Arguments:
        verdict: "joint embedding", "reconstruction", "either" or "neither".
        support: The share of random halves of the images with the same verdict.
        n_components: How many components it is about.
        recovered: For each paradigm the share of its components that is relevant.
        thresholds: For each the alignment from which on all its components are
            relevant, the last one too; the verdict tolerates a few that are not.
        alignment: By how much the views vary the irrelevant directions, relative to
            the images: the root of the ratio of variances.
        noise: The largest variance of an irrelevant direction relative to
            `theory.critical_noise`: above 1 it is large, which favours joint
            embedding, below it is small. Without irrelevant directions it is 0.
        spectra: For each paradigm its directions.
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
        """All figures as plain numbers, lists and texts, for JSON."""
        found: dict[str, Any] = {
            "verdict": self.verdict,
            "support": self.support,
            "n_components": self.n_components,
            "alignment": self.alignment._asdict(),
            "noise": self.noise._asdict(),
        }
        for name, both in (
            ("recovered", self.recovered),
            ("thresholds", self.thresholds),
        ):
            found[name] = {paradigm: x._asdict() for paradigm, x in both.items()}
        found["spectra"] = {
            paradigm: {
                name: np.asarray(part).tolist()
                for name, part in spectrum._asdict().items()
            }
            for paradigm, spectrum in self.spectra.items()
        }
        return found

    def __str__(self) -> str:
        again = f"  the same on {self.support:.0%} of random halves of the images"
        if not self.n_components:
            nothing = "neither: nothing in these images stands out from Gaussian noise"
            return "\n".join([nothing, again])
        lines = [SAID[self.verdict], again]
        for paradigm, share in self.recovered.items():
            lines += [
                f"  {paradigm}: of {self.n_components} components a share of "
                f"{share:.2f} is relevant; all are at alignments above "
                f"{self.thresholds[paradigm]:.2f}"
            ]
        if self.noise.value:
            lines += [
                "  alignment of the views with what is irrelevant: "
                f"{self.alignment:.2f}",
                f"  largest irrelevant variance: {self.noise:.2f} times that at which "
                "the paradigms part",
            ]
        else:
            lines += ["  no irrelevant direction was found"]
        return "\n".join(lines)


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
    r"""Which paradigm suits these data under these views, judged without labels.

    The answer is that of the linear theory, for the first principal components of the
    images. It takes for relevant what is structured: a relevant direction along which
    images are Gaussian and independent of all else cannot be told from noise, unless
    `nuisance` says what noise is.

    Arguments:
        X: Rows (n, d), images (n, \*event), or a `data.Split`, whose labels are not
            looked at; bytes are divided by 255.
        views: A sampler of views. Images, tensors and splits ask for one of tensors,
            such as `views.Augment`; rows that are an array for one of rows, as the
            estimators take it.
        n_components: Of the representation; as many as there are relevant directions,
            if these are fewer.
        nuisance: Examples of variation that is known to be irrelevant, background
            alone for instance: rows (m, d) or images (m, \*event), at least 100.
        tolerance: The share of components that may be irrelevant.
        n_views: How many views of each image are drawn.
        max_features: How many principal components of the images are looked at; never
            more than a tenth of their number.
        halves: On how many random halves of the images everything is done again. They
            are drawn without replacement, for copies of an image are structure.
        progress: Show a progress bar.

    Raises:
        ValueError: If there are fewer than 100 images, data or views are not finite,
            views have another shape than images or nothing in common with one another,
            or a number is out of its range.
    """
    rows, shape = _rows(X)
    _check(n_components, tolerance, n_views, max_features, halves)
    sampler = views
    if shape is not None and not isinstance(views, ClosedForm):
        sampler = Flattened(views, shape)
    project = _principal(rows, min(max_features, len(rows) // 10))
    dim = rows.shape[1]
    known = None if nuisance is None else _covariance(project, nuisance, dim)
    parts = in_parts(sampler, rows, n_views, progress)
    seen = np.concatenate([_projected(project, views, dim) for _, views in parts])
    images = project(rows)
    _check_views(images, seen)

    def found(chosen: Array) -> Judgement:
        return judged(images[chosen], seen[chosen], known, n_components, tolerance)

    whole = found(np.arange(len(rows)))
    bar = tqdm(range(halves), "halves", disable=not progress, leave=False)
    half = len(rows) // 2
    return _summed_up(
        whole, [found(torch.randperm(len(rows))[:half].numpy()) for _ in bar]
    )


def _summed_up(whole: Judgement, parts: list[Judgement]) -> Advice:
    def estimate(figure: Callable[[Judgement], float]) -> Interval:
        low, high = np.quantile([figure(part) for part in parts], [0.05, 0.95])
        return Interval(figure(whole), float(low), float(high))

    def each(figure: Callable[[Judgement], tuple[float, float]]) -> Both:
        joint, other = PARADIGMS
        return {
            joint: estimate(lambda found: figure(found)[0]),
            other: estimate(lambda found: figure(found)[1]),
        }

    return Advice(
        whole.verdict,
        float(np.mean([part.verdict == whole.verdict for part in parts])),
        whole.k,
        each(lambda found: found.recovered),
        each(lambda found: found.thresholds),
        estimate(lambda found: found.alignment),
        estimate(lambda found: found.noise),
        dict(zip(PARADIGMS, whole.spectra, strict=True)),
    )


def _rows(X: Any) -> tuple[Float[Array, "n d"], tuple[int, ...] | None]:
    """Rows in float64, and the shape of an item if views are drawn of tensors."""
    X = getattr(X, "images", X)
    tensor = X.detach().cpu() if isinstance(X, torch.Tensor) else None
    values = np.asarray(X if tensor is None else tensor.numpy())
    scale = 255.0 if values.dtype == np.uint8 else 1.0
    if values.ndim < 2 or len(values) < LEAST:
        raise ValueError(
            f"expected at least {LEAST} rows (n, d) or images (n, *event), got shape "
            f"{values.shape}; below that nothing can be told from noise"
        )
    rows = values.reshape(len(values), -1).astype(np.float64) / scale
    if not np.isfinite(rows).all():
        raise ValueError(
            "expected finite data, got NaN or infinity among them; leave these out"
        )
    return rows, values.shape[1:] if values.ndim > 2 or tensor is not None else None


def _check(
    n_components: int,
    tolerance: float,
    n_views: int,
    max_features: int,
    halves: int,
) -> None:
    if min(n_components, max_features, halves) < 1:
        raise ValueError(
            "expected n_components, max_features and halves of at least 1, got "
            f"{n_components}, {max_features} and {halves}"
        )
    if n_views < 2:
        raise ValueError(
            f"expected n_views of at least 2, whose difference is what views vary by, "
            f"got {n_views}"
        )
    if not 0 <= tolerance < 1:
        raise ValueError(f"expected 0 <= tolerance < 1, got {tolerance}")


def _check_views(images: Float[Array, "n p"], views: Float[Array, "n view p"]) -> None:
    """That views of one image have more in common than chance gives them.

    By chance G is a symmetric matrix of variances 1 / (n v (v - 1)), whose largest
    eigenvalue is about twice the root of p times their root.
    """
    n, many, features = views.shape
    chance = (2 * features**0.5 + 3) / (n * many * (many - 1)) ** 0.5
    common = joint_embedding(of_views(images, views)).spectrum[0]
    if not common > chance:
        raise ValueError(
            "expected views that show their image, but two views of one have nothing "
            f"in common (a correlation of {common:.2f}, where chance gives up to "
            f"{chance:.2f}); look whether the sampler keeps the order of the images"
        )


def _principal(
    rows: Float[Array, "n d"], most: int
) -> Callable[[Float[Array, "*n d"]], Float[Array, "*n p"]]:
    """A map to the principal components that vary."""
    from sklearn.decomposition import PCA

    if not np.ptp(rows, 0).any():
        raise ValueError("expected images that differ, but all of them are the same")
    pca = PCA(min(most, *rows.shape), random_state=0).fit(rows)
    variances = pca.explained_variance_
    kept = pca.components_[variances > 1e-10 * variances[0]]
    return lambda x: (x - pca.mean_) @ kept.T


def _projected(
    project: Callable[[Array], Array], views: Float[Array, "part view e"], dim: int
) -> Float[Array, "part view p"]:
    if views.shape[2] != dim:
        raise ValueError(
            f"expected views of {dim} features, as the images have, got "
            f"{views.shape[2]}; views that only choose or mix features have no advice"
        )
    return project(views)


def _covariance(
    project: Callable[[Array], Array], nuisance: Any, dim: int
) -> Float[Array, "p p"]:
    """That of examples of the nuisance, in principal components of the images."""
    examples, _ = _rows(nuisance)
    if examples.shape[1] != dim:
        raise ValueError(
            f"expected examples of the nuisance with {dim} features, as the images "
            f"have, got {examples.shape[1]}"
        )
    return np.atleast_2d(np.cov(project(examples), rowvar=False))
