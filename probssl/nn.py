r"""Encoders, decoders and projectors: plain networks without a distribution.

An encoder is any module (n, \*event) -> (n, dim), a decoder any module
(n, dim) -> (n, \*event); those here are only the common ones. Leading axes such as
(batch, view) are flattened by the caller. Weights start as torch's defaults.
"""

import math
import operator
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "MLPDecoder",
    "MLPEncoder",
    "Projector",
    "ResNet18Decoder",
    "ResNet18Encoder",
    "dense",
]


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
        self.width, self.dim = _integer("width", width), _integer("dim", dim)
        self.trunk, self.head = trunk, nn.Linear(self.width, self.dim)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n dim"]:
        return self.head(self.trunk(x))


class MLPEncoder(Encoder):
    """Fully connected layers with ReLU; ``hidden=()`` gives a linear encoder.

    Arguments:
        hidden: The widths of the layers between x and the features, the last one
            included.
    """

    def __init__(
        self, event_shape: Sequence[int], dim: int, hidden: Sequence[int] = (256, 256)
    ) -> None:
        shape, hidden = _sizes(event_shape=event_shape), _sizes(hidden=hidden)
        flat = math.prod(shape)
        trunk = nn.Sequential(_Reshape(shape, (flat,)), *dense(flat, *hidden))
        super().__init__(trunk, (flat, *hidden)[-1], dim)
        self.event_shape, self.hidden = shape, hidden


class ConvEncoder(Encoder):
    """A small convolutional net; each layer halves the image, rounding up.

    The features are the last maps, flattened, so that they know where things are.
    Each image is normalised on its own, over channels and pixels (group norm with one
    group): training and evaluation agree, and batches may be of any size.

    Arguments:
        event_shape: (channel, height, width), at least 2 ** len(channels) pixels high
            and wide; meant for 8 to 64.
        channels: The number of channels after each halving.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        dim: int,
        channels: Sequence[int] = (32, 64, 128),
    ) -> None:
        shape, channels = _sizes(event_shape=event_shape), _sizes(channels=channels)
        *_, (height, width) = _halvings(shape, len(channels))
        layers: list[nn.Module] = [_Reshape(shape, shape)]
        for a, b in pairwise((shape[0], *channels)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(1, b), nn.ReLU()]
        features = (shape[0], *channels)[-1] * height * width
        super().__init__(nn.Sequential(*layers, nn.Flatten()), features, dim)
        self.event_shape, self.channels = shape, channels


class ResNet18Encoder(Encoder):
    """The ResNet with 18 layers in its form for small images; 512 features.

    The first convolution is 3 x 3 with stride 1 and there is no max-pooling; the
    features are averages over the last maps. Meant for 28 to 64 pixels, at least 8.

    References:
        Deep Residual Learning for Image Recognition (He et al., 2016)
        https://arxiv.org/abs/1512.03385
    """

    def __init__(self, event_shape: Sequence[int], dim: int) -> None:
        shape = _sizes(event_shape=event_shape)
        _halvings(shape, 3)  # for its error alone: pooling takes any size
        trunk = nn.Sequential(
            _Reshape(shape, shape),
            *(_conv3(shape[0], 64), nn.BatchNorm2d(64), nn.ReLU()),
            *(_Block(64, 64), _Block(64, 64)),
            *(_Block(64, 128, stride=2), _Block(128, 128)),
            *(_Block(128, 256, stride=2), _Block(256, 256)),
            *(_Block(256, 512, stride=2), _Block(512, 512)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        super().__init__(trunk, 512, dim)
        self.event_shape = shape


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
            _integer("dim", dim),
            _sizes(event_shape=event_shape),
        )
        self.net = net

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n *event"]:
        _check(z, (self.dim,))
        return self.net(z).reshape(len(z), *self.event_shape)


class MLPDecoder(Decoder):
    """Fully connected layers with ReLU; ``hidden=()`` gives a linear decoder.

    Arguments:
        hidden: The widths of the layers between z and x.
    """

    def __init__(
        self, dim: int, event_shape: Sequence[int], hidden: Sequence[int] = (256, 256)
    ) -> None:
        shape, hidden = _sizes(event_shape=event_shape), _sizes(hidden=hidden)
        inner = dense(_integer("dim", dim), *hidden)
        last = nn.Linear((dim, *hidden)[-1], math.prod(shape))
        super().__init__(nn.Sequential(*inner, last), dim, shape)
        self.hidden = hidden


class ConvDecoder(Decoder):
    """The mirror of `ConvEncoder`: each layer doubles the image.

    Kernels have 4 pixels along an even side and 3 along an odd one, so that every
    size is met exactly.

    Arguments:
        event_shape: (channel, height, width), at least 2 ** len(channels) pixels high
            and wide; meant for 8 to 64.
        channels: The number of channels before each doubling, the last one first, as
            in `ConvEncoder`.
    """

    def __init__(
        self,
        dim: int,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
    ) -> None:
        shape, channels = _sizes(event_shape=event_shape), _sizes(channels=channels)
        *larger, smallest = _halvings(shape, len(channels))
        maps = ((shape[0], *channels)[-1], *smallest)
        flat = math.prod(maps)
        layers: list[nn.Module] = [nn.Linear(_integer("dim", dim), flat)]
        layers += [_Reshape((flat,), maps)]
        widths = pairwise((*reversed(channels), shape[0]))
        for (a, b), size in zip(widths, reversed(larger), strict=True):
            kernel = (4 - size[0] % 2, 4 - size[1] % 2)
            layers += [nn.GroupNorm(1, a), nn.ReLU()]
            layers += [nn.ConvTranspose2d(a, b, kernel, stride=2, padding=1)]
        super().__init__(nn.Sequential(*layers), dim, shape)
        self.channels = channels


class ResNet18Decoder(Decoder):
    """The ResNet with 18 layers turned round: nearest neighbours enlarge the maps.

    Meant for 28 to 64 pixels, at least 8.
    """

    def __init__(self, dim: int, event_shape: Sequence[int]) -> None:
        shape = _sizes(event_shape=event_shape)
        full, half, quarter, eighth = _halvings(shape, 3)
        flat = 512 * math.prod(eighth)
        net = nn.Sequential(
            *(nn.Linear(_integer("dim", dim), flat), _Reshape((flat,), (512, *eighth))),
            *(_Block(512, 512), _Block(512, 512), nn.Upsample(quarter)),
            *(_Block(512, 256), _Block(256, 256), nn.Upsample(half)),
            *(_Block(256, 128), _Block(128, 128), nn.Upsample(full)),
            *(_Block(128, 64), _Block(64, 64)),
            nn.Conv2d(64, shape[0], 3, padding=1),
        )
        super().__init__(net, dim, shape)


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
        self.dim, self.width = _integer("dim", dim), _integer("width", width)
        self.out, self.layers = _integer("out", out), _integer("layers", layers)
        inner: list[nn.Module] = []
        widths = (self.dim, *[self.width] * (self.layers - 1))
        for a, b in pairwise(widths):
            inner += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        self.net = nn.Sequential(*inner, nn.Linear(widths[-1], self.out, bias=False))

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n out"]:
        _check(z, (self.dim,))
        return self.net(z)


class _Reshape(nn.Module):
    """Items of one shape as items of another; the first module of every trunk."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.before)
        return x.reshape(len(x), *self.after)


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *(_conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(_conv3(outputs, outputs), nn.BatchNorm2d(outputs)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def dense(*widths: int) -> list[nn.Module]:
    """Linear layers between these widths, each with a rectifier behind it."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers


def _halvings(shape: tuple[int, ...], times: int) -> list[tuple[int, int]]:
    """The sizes of an image halved again and again, rounding up, the largest first."""
    least = 2**times
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(
            f"expected event_shape (channel, height, width) of at least {least} x "
            f"{least} pixels, got {shape}; take a fully connected network instead"
        )
    sizes = [(shape[1], shape[2])]
    for _ in range(times):
        sizes += [((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2)]
    return sizes


def _check(x: Tensor, event_shape: tuple[int, ...]) -> None:
    if x.shape[1:] != event_shape or x.ndim == 0:
        expected = ", ".join(["n", *map(str, event_shape)])
        raise ValueError(
            f"expected ({expected}), got {tuple(x.shape)}; put all items along one "
            "first axis, as x.flatten(0, 1) does for views (batch, view, ...)"
        )


def _integer(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"expected {name} as a positive integer, got {value!r}")
    return number


def _sizes(**named: Sequence[int]) -> tuple[int, ...]:
    ((name, values),) = named.items()
    try:
        sizes = tuple(map(operator.index, values))
    except TypeError:
        sizes = (0,)
    if min(sizes, default=1) < 1:
        raise ValueError(
            f"expected {name} as a tuple of positive integers, got {values!r}; data x "
            "(n, ...) have event shape tuple(x.shape[1:]), (50,) for rows of 50 numbers"
        )
    return sizes
