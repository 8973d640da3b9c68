"""Distances of all pairs, of which kernels are functions."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["square_distances"]


def square_distances(
    a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
) -> Float[Tensor, "*batch n m"]:
    r"""Return :math:`\lVert a_i - b_j \rVert^2` by one matrix product."""
    # Centred first: the products then lose as little as the spread of z allows.
    centre = b.detach().mean(-2, keepdim=True)
    a, b = a - centre, b - centre
    square = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (square - 2 * a @ b.mT).clamp(min=0)
