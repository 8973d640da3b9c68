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
from .gaps import Gaps, gaps
from .novelty import Novelty, novelty
from .rates import RateDistortion, rate_distortion
from .representation import embed, reconstruct, sample
from .style import Decoded, generate, interpolate, swap, traverse

__all__ = ["Decoded", "Evidence", "EvidenceComparison", "Gaps", "Novelty"]
__all__ += ["PosteriorY", "RateDistortion", "classify", "compare_evidence", "complete"]
__all__ += ["embed", "evidence", "gaps", "generate", "interpolate", "novelty"]
__all__ += ["posterior_y", "rate_distortion", "reconstruct", "sample", "swap"]
__all__ += ["to_arviz", "traverse"]
