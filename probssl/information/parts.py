"""The four parts, and what every measure owes them."""

from typing import NamedTuple

__all__ = ["Decomposition", "parts"]


class Decomposition(NamedTuple):
    r"""The four parts of :math:`I(z_1, z_2; t)`, in nats."""

    redundant: float
    unique_1: float
    unique_2: float
    synergistic: float

    @property
    def total(self) -> float:
        r"""The information of both, :math:`I(z_1, z_2; t)`."""
        return sum(self)

    @property
    def first(self) -> float:
        r"""The information of the first alone, :math:`I(z_1; t) = R + U_1`."""
        return self.redundant + self.unique_1

    @property
    def second(self) -> float:
        r"""The information of the second alone, :math:`I(z_2; t) = R + U_2`."""
        return self.redundant + self.unique_2


def parts(
    first: float, second: float, both: float, *, redundant: float
) -> Decomposition:
    """The parts, all of which are at least 0 but for rounding."""
    first, second = max(first, 0.0), max(second, 0.0)
    both = max(both, first, second)
    redundant = min(max(redundant, first + second - both, 0.0), first, second)
    unique_1, unique_2 = first - redundant, second - redundant
    # `both` and `first` before `unique_2`: no difference below zero by rounding
    synergistic = max(both - first - unique_2, 0.0)
    return Decomposition(redundant, unique_1, unique_2, synergistic)
