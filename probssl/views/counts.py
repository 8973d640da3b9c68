"""Binomial thinning of counts, such as reads of genes or words of documents."""

from weakref import WeakSet

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ..arrays import span
from .ranges import Range, checked_range, ends, looked_at, per_item, wide

__all__ = ["Thinning", "check_counts"]

LARGEST = 2**46  # of larger counts torch's binomial draws are off in float64
_LOOKED: WeakSet[nn.Module] = WeakSet()  # modules whose first batch had counts


class Thinning(nn.Module):
    r"""Binomial thinning of counts: each unit is kept with probability p.

    .. math:: x' \mid x, p \sim \mathrm{Binomial}(x, p), \qquad
        p \sim U(\mathrm{low}, \mathrm{high})

    It is the same experiment with a share p of the depth: a Poisson count of mean
    :math:`\mu` stays one, of mean :math:`p \mu`, and a negative binomial count stays
    one of mean :math:`p \mu` and the same dispersion. Each item draws one p for all
    its elements, in `Augment` each view of it. Given the mean, what is kept of a
    Poisson count is independent of what is not.

    Counts are 0, 1, … in floating point or whole numbers, and keep their type. Counts
    beyond those that are exact in their type are refused: above :math:`2^{24}` in
    float32, above :math:`2^{46}` in float64 and in whole numbers. `Mask` sets elements
    to 0, and so drops features of counts.

    Arguments:
        share: The probability p; a pair is a range from which each item draws its own.

    Example:
        >>> import torch
        >>> Thinning((0.3, 0.9))(torch.tensor([[0.0, 3.0, 1000.0]])).shape
        torch.Size([1, 3])

    Raises:
        TypeError: When called with anything but a tensor of numbers.
        ValueError: If `share` is not within (0, 1]; when called with negative numbers,
            fractions, NaN, or counts that are too large for their type.

    References:
        Molecular Cross-Validation for Single-Cell RNA-seq (Batson et al., 2019)
        https://doi.org/10.1101/786269
    """

    def __init__(self, share: Range = (0.3, 0.9)) -> None:
        super().__init__()
        self.share = checked_range("share", share, 0, 1, positive=True)

    def forward(self, x: Shaped[Tensor, "n *event"]) -> Shaped[Tensor, "n *event"]:
        return self.with_shares(x)[0]

    def with_shares(
        self, x: Shaped[Tensor, "n *event"]
    ) -> tuple[Shaped[Tensor, "n *event"], Float[Tensor, " n"]]:
        """Return the thinned counts, and the share p that each item drew."""
        check_counts(x, self)
        count = x.to(wide(x) if x.is_floating_point() else torch.float64)
        share = count.new_empty(len(x)).uniform_(*ends(self.share))
        kept = torch.binomial(count, per_item(share, x).expand_as(count))
        return kept.to(x.dtype), share if x.is_floating_point() else share.float()


def check_counts(x: Tensor, module: nn.Module) -> None:
    """Raise an error unless x holds counts that its type tells apart.

    On a device only the first batch of a module is looked at, as in `check_values`.
    """
    if not isinstance(x, Tensor) or x.dtype == torch.bool or x.is_complex():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"expected a tensor of counts for Thinning, got {kind}; give "
            "torch.as_tensor(x).float()"
        )
    if x.layout != torch.strided:
        raise TypeError(
            "expected a dense tensor of counts for Thinning, got a sparse one; give "
            "x.to_dense()"
        )
    if looked_at(x, module, _LOOKED):
        whole = not x.is_floating_point() or bool((x == x.floor()).all())
        check_ends(*span(x), x.dtype, whole)


def check_ends(low: float, high: float, dtype: torch.dtype, whole: bool = True) -> None:
    """Raise a ValueError unless numbers from `low` to `high` are counts."""
    exact = 2 / torch.finfo(dtype).eps if dtype.is_floating_point else LARGEST
    most = min(exact, LARGEST)
    if whole and 0 <= low <= high <= most:
        return
    wanted, hint = "counts 0, 1, …", "give the counts themselves, not their logarithms"
    if whole and low >= 0:
        wanted = f"counts up to {most:.0f}, all of which are exact in {dtype},"
        hint = "fit in float64, objective.double(), or give counts of a coarser unit"
    elif 0 <= low <= high <= 1:
        hint += "; bytes of a data set are read as k/255: give counts as floats"
    came = f"numbers from {low:.6g} to {high:.6g}" + ", with fractions" * (not whole)
    raise ValueError(f"expected {wanted} for Thinning, got {came}; {hint}")
