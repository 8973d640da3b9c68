"""Fully connected networks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from .base import Decoder, Encoder, dense
from .normalisation import BatchNorm1d
from .sizes import Reshape, check_items, integer, sizes

__all__ = ["MLPDecoder", "MLPEncoder", "Projector"]


class MLPEncoder(Encoder):
    """Fully connected layers with ReLU; ``hidden=()`` gives a linear encoder.

    Arguments:
        hidden: The widths of the layers between x and the features, the last one
            included.
    """

    def __init__(
        self, event_shape: Sequence[int], dim: int, hidden: Sequence[int] = (256, 256)
    ) -> None:
        shape, hidden = sizes(event_shape=event_shape), sizes(hidden=hidden)
        flat = math.prod(shape)
        trunk = nn.Sequential(Reshape(shape, (flat,)), *dense(flat, *hidden))
        super().__init__(trunk, (flat, *hidden)[-1], dim)
        self.event_shape, self.hidden = shape, hidden


class MLPDecoder(Decoder):
    """Fully connected layers with ReLU; ``hidden=()`` gives a linear decoder.

    Arguments:
        hidden: The widths of the layers between z and x.
    """

    def __init__(
        self, dim: int, event_shape: Sequence[int], hidden: Sequence[int] = (256, 256)
    ) -> None:
        shape, hidden = sizes(event_shape=event_shape), sizes(hidden=hidden)
        inner = dense(integer("dim", dim), *hidden)
        last = nn.Linear((dim, *hidden)[-1], math.prod(shape))
        super().__init__(nn.Sequential(*inner, last), dim, shape)
        self.hidden = hidden


class Projector(nn.Module):
    """The map between a representation and the space where views are compared.

    Linear layers, each but the last followed by batch norm and ReLU. None has a bias:
    batch norm has its own, and after the last layer one would shift all items alike.

    Arguments:
        dim: The dimension of the representation, which comes in.
        width: The width of the layers between.
        out: The dimension of what goes out.
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
        self.dim, self.width = integer("dim", dim), integer("width", width)
        self.out, self.layers = integer("out", out), integer("layers", layers)
        inner: list[nn.Module] = []
        widths = (self.dim, *[self.width] * (self.layers - 1))
        for a, b in pairwise(widths):
            inner += [nn.Linear(a, b, bias=False), BatchNorm1d(b), nn.ReLU()]
        self.net = nn.Sequential(*inner, nn.Linear(widths[-1], self.out, bias=False))

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n out"]:
        check_items(z, (self.dim,))
        return self.net(z)
