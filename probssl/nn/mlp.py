"""Fully connected networks (MLPs) and the projection head."""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from ..arguments import whole
from .base import Decoder, Encoder, Reshape, check_items, dense, sizes
from .normalisation import BatchNorm1d

__all__ = ["MLPDecoder", "MLPEncoder", "Projector"]


class MLPEncoder(Encoder):
    """An MLP encoder with ReLU; ``hidden=()`` gives a linear encoder.

    Arguments:
        hidden: The widths of the hidden layers, of which the last gives the features.
    """

    def __init__(
        self, event_shape: Sequence[int], dim: int, hidden: Sequence[int] = (256, 256)
    ) -> None:
        shape, hidden = sizes(event_shape=event_shape), sizes(hidden=hidden)
        flat = math.prod(shape)
        trunk = nn.Sequential(Reshape(shape, (flat,)), *dense(flat, *hidden))
        super().__init__(trunk, (flat, *hidden)[-1], dim)


class MLPDecoder(Decoder):
    """An MLP decoder with ReLU; ``hidden=()`` gives a linear decoder.

    Arguments:
        hidden: The widths of the hidden layers.
    """

    def __init__(
        self, dim: int, event_shape: Sequence[int], hidden: Sequence[int] = (256, 256)
    ) -> None:
        shape, hidden = sizes(event_shape=event_shape), sizes(hidden=hidden)
        inner = dense(whole("dim", dim), *hidden)
        last = nn.Linear((dim, *hidden)[-1], math.prod(shape))
        super().__init__(nn.Sequential(*inner, last), dim, shape)


class Projector(nn.Module):
    """A projection head: from a representation to the space where views are compared.

    Linear layers without a bias, each but the last followed by batch norm and ReLU.
    Batch norm has its own bias; one after the last layer would shift all items alike.

    Arguments:
        dim: The dimension of the representation, its input.
        width: The width of the hidden layers.
        out: The dimension of the output.
        layers: The number of linear layers; 1 gives a linear map, SimCLR has 2 and
            VICReg 3.

    References:
        A Simple Framework for Contrastive Learning (Chen et al., 2020)
        https://arxiv.org/abs/2002.05709
    """

    def __init__(
        self, dim: int, width: int = 512, out: int = 128, layers: int = 2
    ) -> None:
        super().__init__()
        self.dim, self.width = whole("dim", dim), whole("width", width)
        self.out, self.layers = whole("out", out), whole("layers", layers)
        inner: list[nn.Module] = []
        widths = (self.dim, *[self.width] * (self.layers - 1))
        for a, b in pairwise(widths):
            inner += [nn.Linear(a, b, bias=False), BatchNorm1d(b), nn.ReLU()]
        self.net = nn.Sequential(*inner, nn.Linear(widths[-1], self.out, bias=False))

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n out"]:
        check_items(z, (self.dim,))
        return self.net(z)
