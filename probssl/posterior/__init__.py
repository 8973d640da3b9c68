"""Inference with a fitted objective: representations, posteriors, evidence, samples.

All functions run in evaluation mode without gradients, on the device and in the dtype
of the objective, whose state they leave unchanged. Bytes are read as k/255. The seed
is ``torch.manual_seed``.
"""

from .comparison import EvidenceComparison, compare_evidence
from .completion import classify, complete
from .contents import PosteriorY, posterior_y
from .draws import to_arviz
from .evidence import Evidence, evidence
from .novelty import Novelty, novelty
from .representation import embed, reconstruct, sample
from .style import Decoded, generate, interpolate, swap, traverse

__all__ = ["Decoded", "Evidence", "EvidenceComparison", "PosteriorY", "classify"]
__all__ += ["compare_evidence", "complete", "embed", "evidence", "generate"]
__all__ += [
    "Novelty",
    "interpolate",
    "novelty",
    "posterior_y",
    "reconstruct",
    "sample",
    "swap",
]
__all__ += ["to_arviz", "traverse"]
