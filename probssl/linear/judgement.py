r"""Which of its directions each paradigm takes, and which of them are relevant.

Directions mix where a spectrum has nearly equal values; the spectrum in which fewer of
them are relevant sets them apart better, and decides which ones are.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from .moments import Moments, of_views
from .solutions import Solution, joint_embedding, reconstruction
from .structure import is_structured, structure
from .theory import alignment_threshold, critical_noise

__all__ = ["PARADIGMS", "Judgement", "Spectrum", "Verdict", "judged"]

Verdict = Literal["joint embedding", "reconstruction", "either", "neither"]
PARADIGMS: tuple[Literal["joint embedding"], Literal["reconstruction"]]
PARADIGMS = ("joint embedding", "reconstruction")
VERDICTS: dict[tuple[bool, ...], Verdict] = {
    (True, True): "either",
    (True, False): "joint embedding",
    (False, True): "reconstruction",
    (False, False): "neither",
}


class Spectrum(NamedTuple):
    """The directions of a paradigm, the largest value first.

    Arguments:
        values: Its eigen- or singular values.
        between: Variance of the images along each direction.
        within: Variance of the views of one image.
        structure: Nats by which images depart from noise along it.
        relevant: Whether it is taken for relevant.
        mixed: How far from clear that is: the sum of p (1 - p) over the shares p of
            relevant variance, where these are known.
    """

    values: Float[Array, " p"]
    between: Float[Array, " p"]
    within: Float[Array, " p"]
    structure: Float[Array, " p"]
    relevant: Bool[Array, " p"]
    mixed: float


class Judgement(NamedTuple):
    """A verdict on k components and its figures, those of both paradigms in order."""

    verdict: Verdict
    k: int
    recovered: tuple[float, float]
    thresholds: tuple[float, float]
    alignment: float
    noise: float
    spectra: tuple[Spectrum, Spectrum]


def judged(
    images: Float[Array, "n p"],
    views: Float[Array, "n view p"],
    nuisance: Float[Array, "p p"] | None,
    n_components: int,
    tolerance: float,
) -> Judgement:
    """The verdict on the first principal components of images and of their views.

    Arguments:
        nuisance: The covariance of what is known to be irrelevant; without it what is
            not structured is.
        n_components: At most; there are no more than relevant directions.
        tolerance: The share of components that may be irrelevant.
    """
    moments = of_views(images, views)
    solutions = joint_embedding(moments), reconstruction(moments)
    spectra = _spectra(images, moments, solutions, nuisance)
    # A fuller sum, or more directions, come of mixing.
    joint, other = ((part.mixed, int(part.relevant.sum())) for part in spectra)
    clearer = int(other < joint)
    k = min(n_components, (joint, other)[clearer][1])
    if not k:
        return Judgement("neither", 0, (0.0, 0.0), (0.0, 0.0), 0.0, 0.0, spectra)
    shares = _shares(moments, solutions, spectra, clearer, k)
    good = [share >= 1 - tolerance for share in shares]
    figures = _figures(spectra[clearer], k)
    return Judgement(VERDICTS[tuple(good)], k, shares, *figures, spectra)


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


def _shares(
    moments: Moments,
    solutions: tuple[Solution, Solution],
    spectra: tuple[Spectrum, Spectrum],
    clearer: int,
    k: int,
) -> tuple[float, float]:
    """The share of the first k components of each paradigm that is relevant.

    In whitened coordinates, where the directions of either are orthonormal.
    """
    relevant = solutions[clearer].encoder[spectra[clearer].relevant]
    joint, other = (
        np.square(solution.encoder[:k] @ moments.total @ relevant.T).sum() / k
        for solution in solutions
    )
    return float(joint), float(other)


def _figures(spectrum: Spectrum, k: int) -> tuple[tuple[float, float], float, float]:
    """The thresholds of both paradigms, the alignment, and how large the noise is."""
    relevant, within = spectrum.relevant, spectrum.within
    # Estimated without bias, what is nearly 0 may lie below.
    between = spectrum.between.clip(1e-9 * np.abs(spectrum.between).max())
    signal, spread = between[relevant][:k], within[relevant][:k]
    noise, covered = between[~relevant], within[~relevant]
    if not len(noise):
        return (0.0, 0.0), 0.0, 0.0
    augmentation = np.concatenate([spread.clip(0), np.zeros(len(noise))])
    joint, other = (
        alignment_threshold(signal, noise, augmentation, paradigm)
        for paradigm in PARADIGMS
    )
    alignment = float(np.sqrt(covered.sum().clip(0) / noise.sum()))
    size = float(noise.max() / critical_noise(signal, spread.clip(0)))
    return (joint, other), alignment, size


def _along(
    encoder: Float[Array, "k p"], second: Float[Array, "p p"]
) -> Float[Array, " k"]:
    """The variance of each component under these second moments."""
    return np.sum((encoder @ second) * encoder, 1)
