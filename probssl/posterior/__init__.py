"""What a fitted objective says: representations, posteriors, evidences and samples.

Everything here runs in evaluation mode without gradients, on the device and in the
precision of the objective, and leaves the objective as it was. Bytes are read as k/255.
Random draws follow ``torch.manual_seed``.
"""

from .completion import classify, complete
from .draws import to_arviz
from .evidence import Evidence, evidence
from .representation import embed, reconstruct, sample

__all__ = [
    "Evidence",
    "classify",
    "complete",
    "embed",
    "evidence",
    "reconstruct",
    "sample",
    "to_arviz",
]
