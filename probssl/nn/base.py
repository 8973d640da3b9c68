"""What the networks share: a trunk and a head, and a net from z to x."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from .sizes import check_items, integer, sizes

__all__ = ["Decoder", "Encoder", "dense"]


class Encoder(nn.Module):
    r"""A representation as a linear map of features, z = head(trunk(x)).

    A guide that also needs a scale puts a second head on the same `trunk`.

    Arguments:
        trunk: The network (n, \*event) -> (n, width).
        width: The number of features that `trunk` returns.
        dim: The dimension of z.
    """

    def __init__(self, trunk: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.width, self.dim = integer("width", width), integer("dim", dim)
        self.trunk, self.head = trunk, nn.Linear(self.width, self.dim)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n dim"]:
        return self.head(self.trunk(x))


class Decoder(nn.Module):
    r"""A network from z to what a likelihood takes, as logits or a mean: unbounded.

    Arguments:
        net: The network from (n, dim) to (n, \*event), or to as many numbers in
            another shape.
        dim: The dimension of z.
        event_shape: The shape of one x.
    """

    def __init__(self, net: nn.Module, dim: int, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.event_shape = (
            integer("dim", dim),
            sizes(event_shape=event_shape),
        )
        self.net = net

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n *event"]:
        check_items(z, (self.dim,))
        return self.net(z).reshape(len(z), *self.event_shape)


def dense(*widths: int) -> list[nn.Module]:
    """Linear layers between these widths, each with a rectifier behind it."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers
