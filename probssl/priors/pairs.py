"""Distances of all pairs, of which kernels are functions."""

import math

from jaxtyping import Float
from torch import Tensor

__all__ = ["log_normal", "square_distances"]


def square_distances(
    a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"]
) -> Float[Tensor, "*batch n m"]:
    r"""Return :math:`\lVert a_i - b_j \rVert^2` by one matrix product."""
    # Centred first: the products then lose as little as the spread of z allows.
    centre = b.detach().mean(-2, keepdim=True)
    a, b = a - centre, b - centre
    square = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (square - 2 * a @ b.mT).clamp(min=0)


def log_normal(
    a: Float[Tensor, "*batch n dim"], b: Float[Tensor, "*batch m dim"], scale: Tensor
) -> Float[Tensor, "*batch n m"]:
    r"""Return :math:`\log N(b_j \mid a_i, \text{scale}^2)`.

    Arguments:
        scale: Broadcastable to a and to b: one number, or one for each dimension.
    """
    square = square_distances(a / scale, b / scale)
    log_variance = 2 * scale.log().mean(-1, keepdim=True) + math.log(2 * math.pi)
    return -0.5 * (square + a.shape[-1] * log_variance)
