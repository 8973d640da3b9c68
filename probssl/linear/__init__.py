"""Linear self-supervised learning in closed form: estimators, thresholds, and advice.

Linear joint embedding and linear reconstruction as scikit-learn estimators, the theory
of which of the two recovers the signal, and `advise`, which applies it to data and
views before any network is trained.
"""

from .advice import Advice, advise
from .estimators import JointEmbeddingSSL, ReconstructionSSL
from .moments import Moments
from .theory import (
    alignment_threshold,
    asymptotic_spectra,
    critical_noise,
    preference,
    recovered,
)
from .views import (
    AdditiveNoise,
    Chain,
    ClosedForm,
    Flattened,
    LinearMaps,
    Masking,
)

__all__ = [
    "AdditiveNoise",
    "Advice",
    "Chain",
    "ClosedForm",
    "Flattened",
    "JointEmbeddingSSL",
    "LinearMaps",
    "Masking",
    "Moments",
    "ReconstructionSSL",
    "advise",
    "alignment_threshold",
    "asymptotic_spectra",
    "critical_noise",
    "preference",
    "recovered",
]
