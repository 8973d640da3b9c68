r"""Alignment thresholds: how much views must vary the noise to recover the signal.

The model: images are signal and noise along the columns of one orthogonal matrix Q,
k directions of signal with variances :math:`a_i = \kappa_i^2 / n`, r directions of
noise with variances :math:`\gamma_j`. A view adds noise of two kinds, :math:`\tau(x) =
x + \theta + \alpha g`: :math:`\theta` of any covariance :math:`\Theta = Q\,
\mathrm{diag}(t)\, Q^\top`, g of the covariance :math:`\Gamma` of the noise in the
images. The alignment :math:`\alpha \ge 0` is the strength with which views vary what
should be ignored. As :math:`n \to \infty` the moments of `moments` become diagonal,

.. math:: S = Q\, \mathrm{diag}(a + t,\; t + (1 + \alpha^2) \gamma)\, Q^\top, \qquad
    G = B = Q\, \mathrm{diag}(a, \gamma)\, Q^\top

and with them the spectra. An encoder of k rows keeps the k largest values, and recovers
the signal if all k belong to it.

Joint-Embedding vs Reconstruction: Provable Benefits of Latent Space Prediction for
Self-Supervised Learning (Van Assel et al., 2025), Propositions 4.2 to 4.4 and
Corollary 4.5
https://arxiv.org/abs/2505.12477
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from ..arguments import at_least, choice, typed
from ..arrays import doubles

__all__ = [
    "Paradigm",
    "Preference",
    "alignment_threshold",
    "asymptotic_spectra",
    "critical_noise",
    "preference",
    "recovered",
]

Paradigm = Literal["supervised", "joint embedding", "reconstruction"]
Preference = Literal["joint embedding", "reconstruction", "either"]


@typed
def alignment_threshold(
    signal: Float[Array, " k"],
    noise: Float[Array, " r"],
    augmentation: float | Float[Array, " k+r"],
    paradigm: Paradigm,
) -> float:
    r"""The alignment above which the signal is recovered as :math:`n \to \infty`.

    .. math:: \alpha^2_\text{JE} &= \max_i \frac{t_i}{a_i}
        - \min_j \frac{t_{k+j}}{\gamma_j} \\
        \alpha^2_\text{RC} &= \max_j \Big[ \frac{\gamma_j}{\eta^2}
        - \frac{t_{k+j}}{\gamma_j} - 1 \Big], \qquad
        \eta = \min_i \frac{a_i}{\sqrt{a_i + t_i}}

    and 0 where that is negative: then no alignment is needed. Joint embedding needs
    views that vary the noise by a larger share than the signal, however strong the
    noise is. Reconstruction needs more alignment the stronger the noise is. Supervised
    regression needs none.

    Arguments:
        signal: The variances a of the signal, all positive.
        noise: The variances :math:`\gamma` of the noise in the images, at least 0.
            Directions of variance 0 compete with no signal.
        augmentation: The variances t of :math:`\theta`, along the directions of the
            signal first, or one for all directions.
        paradigm: "supervised", "joint embedding" or "reconstruction".

    Raises:
        ValueError: If the variances are not finite numbers of these shapes, or the
            paradigm is another.
    """
    problem = _checked(signal, noise, augmentation, paradigm)
    return math.sqrt(_squared_threshold(problem, paradigm))


@typed
def asymptotic_spectra(
    signal: Float[Array, " k"],
    noise: Float[Array, " r"],
    augmentation: float | Float[Array, " k+r"],
    alignment: float,
    paradigm: Paradigm,
) -> tuple[Float[Array, " k"], Float[Array, " r"]]:
    r"""The values of `spectrum_` of signal and noise as :math:`n \to \infty`.

    .. math:: \omega_i &= \frac{a_i}{a_i + t_i}, \qquad \omega_{k+j} =
        \frac{\gamma_j}{t_{k+j} + (1 + \alpha^2) \gamma_j} \\
        \phi_i &= \frac{a_i}{\sqrt{a_i + t_i}}, \qquad \phi_{k+j} =
        \frac{\gamma_j}{\sqrt{t_{k+j} + (1 + \alpha^2) \gamma_j}}

    :math:`\omega` is the spectrum of joint embedding, :math:`\phi` that of
    reconstruction, in the order of the arguments, not sorted. Both are 0 where nothing
    varies.

    Arguments:
        signal, noise, augmentation: As in `alignment_threshold`.
        alignment: :math:`\alpha`, at least 0.
        paradigm: "joint embedding" or "reconstruction"; supervised regression has no
            spectrum.

    Raises:
        TypeError: If the alignment is not a number.
        ValueError: If the variances are not finite numbers of these shapes, the
            alignment is negative, or the paradigm is another.
    """
    a, gamma, t, u = _checked(signal, noise, augmentation, paradigm)
    if paradigm == "supervised":
        raise ValueError(
            "expected 'joint embedding' or 'reconstruction', got 'supervised', which "
            "has no spectrum: it recovers the signal at every alignment"
        )
    alignment = at_least("alignment", alignment, 0)
    power = 1.0 if paradigm == "joint embedding" else 0.5
    total = u + (1 + alignment**2) * gamma
    shares = np.divide(gamma, total**power, where=gamma > 0, out=np.zeros_like(gamma))
    return a / (a + t) ** power, shares


@typed
def recovered(
    signal: Float[Array, " k"],
    noise: Float[Array, " r"],
    augmentation: float | Float[Array, " k+r"],
    alignment: float,
    paradigm: Paradigm,
) -> bool:
    r"""Whether the first k components are the signal's as :math:`n \to \infty`.

    Arguments and errors as in `asymptotic_spectra`; "supervised" always recovers it.
    """
    if paradigm == "supervised":
        _checked(signal, noise, augmentation, paradigm)
        return True
    kept, dropped = asymptotic_spectra(signal, noise, augmentation, alignment, paradigm)
    return bool(kept.min() > dropped.max(initial=0.0))


@typed
def critical_noise(
    signal: Float[Array, " k"], augmentation: float | Float[Array, " k"]
) -> float:
    r"""The noise variance below which reconstruction needs less alignment.

    .. math:: \frac{\eta^2}{\delta} = \min_i \frac{a_i^2}{a_i + t_i} \Big/
        \min_i \frac{a_i}{a_i + t_i}

    If all noise is weaker, :math:`\alpha_\text{JE} > \alpha_\text{RC}`; if all noise is
    stronger, :math:`\alpha_\text{JE} < \alpha_\text{RC}`; unless both are 0. The value
    lies between the smallest and the largest a. It is the smallest where t is the same
    in all directions, or the same share of the signal.

    Arguments:
        signal: The variances a of the signal, all positive.
        augmentation: The variances t of :math:`\theta` along the directions of the
            signal, or one for all of them.

    Raises:
        ValueError: If the variances are not finite numbers of these shapes.
    """
    a, _, t, _ = _checked(signal, np.empty(0), augmentation, "supervised")
    total = 1 + t / a
    return float(total.max() / (total / a).max())


@typed
def preference(
    signal: Float[Array, " k"],
    noise: Float[Array, " r"],
    augmentation: float | Float[Array, " k+r"],
) -> Preference:
    r"""The paradigm with the lower alignment threshold.

    It recovers the signal under more views. "either" means that the thresholds are
    equal, usually 0. If all noise variances lie below, or all above, `critical_noise`,
    that alone decides (Corollary 4.5).

    Arguments and errors as in `alignment_threshold`.
    """
    problem = _checked(signal, noise, augmentation, "supervised")
    joint = _squared_threshold(problem, "joint embedding")
    reconstruction = _squared_threshold(problem, "reconstruction")
    # Dimensionless, but differences of terms that may cancel up to rounding.
    if math.isclose(joint, reconstruction, rel_tol=1e-9, abs_tol=1e-9):
        return "either"
    return "joint embedding" if joint < reconstruction else "reconstruction"


class _Problem(NamedTuple):
    """Variances of signal and noise, and of the augmentation along each."""

    a: Float[Array, " k"]
    gamma: Float[Array, " r"]
    t: Float[Array, " k"]
    u: Float[Array, " r"]


def _squared_threshold(problem: _Problem, paradigm: Paradigm) -> float:
    a, gamma, t, u = problem
    gamma, u = gamma[gamma > 0], u[gamma > 0]
    if paradigm == "supervised":
        return 0.0
    if paradigm == "joint embedding":
        needed = (t / a).max() - u / gamma
    else:
        needed = gamma * ((1 + t / a) / a).max() - u / gamma - 1
    return float(needed.max(initial=0.0))


def _checked(
    signal: Array, noise: Array, augmentation: float | Array, paradigm: Paradigm
) -> _Problem:
    """The variances as float64, with the augmentation split into signal and noise."""
    choice("paradigm", paradigm, get_args(Paradigm))
    a, gamma = doubles(signal, "signal"), doubles(noise, "noise")
    t = doubles(augmentation, "augmentation")
    if a.ndim != 1 or not len(a) or not ((a > 0) & (a < np.inf)).all():
        raise ValueError(
            f"expected positive, finite variances (k,) of the signal, got {signal}; "
            "directions without signal belong to the noise"
        )
    if gamma.ndim != 1 or not ((gamma >= 0) & (gamma < np.inf)).all():
        raise ValueError(
            f"expected finite variances (r,) of the noise, of at least 0, got {noise}"
        )
    many = len(a) + len(gamma)
    if t.shape not in ((), (many,)) or not ((t >= 0) & (t < np.inf)).all():
        raise ValueError(
            "expected one finite variance of the augmentation, of at least 0, or "
            f"{many}: along the {len(a)} directions of the signal, then along the "
            f"{len(gamma)} of the noise, got {augmentation}"
        )
    t = np.broadcast_to(t, many)
    return _Problem(a, gamma, t[: len(a)], t[len(a) :])
