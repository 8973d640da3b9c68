"""Hyper-parameters: positive numbers that are fixed, learned or random."""

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

__all__ = ["Learned", "Positive", "learned"]


class Learned(NamedTuple):
    """A positive number that is fitted by gradient, and where it starts."""

    value: float


def learned(value: float) -> Learned:
    """Mark a hyper-parameter as learned, starting from `value`.

    Example:
        >>> learned(0.4)
        Learned(value=0.4)
    """
    return Learned(value)


class Positive(nn.Module):
    r"""A positive hyper-parameter :math:`\theta`.

    A number is kept in a buffer; `learned` makes :math:`\log(\theta - \text{floor})` a
    parameter; a Pyro distribution makes it a random variable with the guide
    :math:`q(\log \theta) = N(m, s^2)`.

    Arguments:
        value: The number, ``learned(number)``, or a Pyro distribution over positive
            numbers.
        name: What errors and Pyro sites call it.
        floor: A lower bound that a learned value cannot cross.

    Raises:
        ValueError: If the value is not a positive, finite number above the floor.
    """

    value: Any  # a number, Learned, or a Pyro distribution
    fixed: Tensor

    def __init__(
        self,
        value: "float | Learned | dist.TorchDistribution | Positive",
        name: str = "scale",
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.value = value.value if isinstance(value, Positive) else value
        self.name, self.floor = name, floor
        if isinstance(self.value, torch.distributions.Distribution):
            _check_positive_support(self.value, name)
            start = self.value.sample((1_001,)).log()
            self.loc = nn.Parameter(start.median())
            self.log_scale = nn.Parameter(start.std().clamp(1e-2, 1.0).log())
            return
        number = self.value
        if isinstance(number, Learned):
            number = number.value
        if not isinstance(number, int | float) or not floor < number < math.inf:
            raise ValueError(
                f"expected {name} to be a positive finite number"
                f"{f' above {floor:g}' if floor else ''}, got {number!r}; give a "
                "number, ps.learned(number) or a Pyro distribution over such numbers"
            )
        if self.learned:
            self.log = nn.Parameter(torch.tensor(math.log(number - floor)))
        else:
            self.register_buffer("fixed", torch.tensor(float(number)))

    @property
    def learned(self) -> bool:
        return isinstance(self.value, Learned)

    @property
    def random(self) -> bool:
        return isinstance(self.value, torch.distributions.Distribution)

    @property
    def free(self) -> bool:
        """Whether it is learned or random."""
        return self.learned or self.random

    def forward(self) -> Tensor:
        """The present value; of a random one the median of its guide."""
        if self.random:
            return self.loc.exp()
        return self.floor + self.log.exp() if self.learned else self.fixed

    def sample(self) -> Tensor:
        """Draw it from its prior: a Pyro site."""
        return pyro.sample(self.name, self.value)

    def sample_guide(self) -> Tensor:
        """Draw it from its guide: a Pyro site."""
        guide = dist.LogNormal(self.loc, self.log_scale.exp(), validate_args=False)
        return pyro.sample(self.name, guide)

    def extra_repr(self) -> str:
        return f"{self.name}={self.value}"


def _check_positive_support(value: Any, name: str) -> None:
    draws = value.sample((1_001,))
    if value.event_shape or value.batch_shape or not bool((draws > 0).all()):
        raise ValueError(
            f"expected the distribution of {name} to be over one positive number, got "
            f"{value}; use for instance pyro.distributions.LogNormal(-1.0, 1.0)"
        )
