"""Joint embedding and reconstruction in closed form, their thresholds, and advice.

The linear case of self-supervised learning, with scikit-learn's interface: what each
paradigm recovers can be computed, before anything is trained.
"""

from .estimators import JointEmbeddingSSL, ReconstructionSSL
from .moments import Moments
from .views import AdditiveNoise, Chain, ClosedForm, Flattened, LinearMaps, Masking

__all__ = [
    "AdditiveNoise",
    "Chain",
    "ClosedForm",
    "Flattened",
    "JointEmbeddingSSL",
    "LinearMaps",
    "Masking",
    "Moments",
    "ReconstructionSSL",
]
