"""Joint embedding and reconstruction in closed form, their thresholds, and advice.

The linear case of self-supervised learning, with scikit-learn's interface: what each
paradigm recovers can be computed, before anything is trained.
"""

from .advice import Advice, advise
from .estimators import JointEmbeddingSSL, ReconstructionSSL
from .moments import Moments
from .samplers import Flattened
from .theory import (
    alignment_threshold,
    asymptotic_spectra,
    critical_noise,
    preference,
    recovered,
)
from .views import AdditiveNoise, Chain, ClosedForm, LinearMaps, Masking

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
