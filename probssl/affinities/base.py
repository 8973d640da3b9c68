"""What a P of a batch looks like."""

from jaxtyping import Float
from torch import Tensor, nn

from ..terms import Batch

__all__ = ["Affinity"]


class Affinity(nn.Module):
    """P of a batch, which sums to one.

    Called with a batch it returns either the pairs within the items of all processes,
    shape (batch, view, view), or those of all their views, shape (batch · view,
    batch · view), items first. No view is its own partner: the diagonal is zero.

    An affinity of your own needs `forward`; and `dense`, whether views of different
    items can belong together, so that one view of each is enough.
    """

    dense = False

    def forward(self, batch: Batch) -> Float[Tensor, "..."]:
        raise NotImplementedError(f"{type(self).__name__} has no forward(batch)")
