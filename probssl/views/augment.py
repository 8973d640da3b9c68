"""Views of items: parts one after the other, and the published recipes."""

from jaxtyping import Float
from torch import Tensor, nn

from ..terms import Batch
from .colour import Colour, Grey
from .geometry import Affine
from .ranges import check_floats, checked_integer

__all__ = ["Augment", "Grid", "digits", "simclr", "simvae_cifar10", "simvae_mnist"]


class Grid(nn.Module):
    """Values in [0, 1], rounded to the nearest k / levels.

    A half is rounded to the even k, so that with ``levels=1`` ink needs more than 1/2.

    Arguments:
        levels: The number of grey levels minus one: 1 for binary images, 16 for
            scikit-learn's digits, 255 for bytes; None only clamps.
    """

    def __init__(self, levels: int | None = None) -> None:
        super().__init__()
        self.levels = None if levels is None else checked_integer("levels", levels, 1)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        check_floats(x)
        x = x.clamp(0, 1)
        if self.levels is None:
            return x
        return x.mul_(self.levels).round_().div_(self.levels)


class Augment(nn.Module):
    r"""Views :math:`x_1, \dots, x_V` of each item, independent of each other given it.

    Every view goes through the parts in their order, with draws of its own from torch's
    global generator, and ends on the grid of the data.

    Arguments:
        parts: Modules (n, \*event) -> (n, \*event). Without any, images are rotated by
            up to 15 degrees, scaled by 0.85 to 1.15 and shifted by up to a tenth.
        views: The number V of views.
        levels: The number of grey levels minus one, see `Grid`; None rounds nothing.
        clamp: Whether the values are clamped to [0, 1]; None clamps images (channel,
            height, width) and nothing else. With `levels` they always are.
        boxes: Whether to return a `Batch`, with the boxes that the one `Affine` among
            the parts shows as its transform, for `affinities.Overlap`.

    Raises:
        TypeError: If a part is no module.
        ValueError: If boxes are asked for and there is not one `Affine`, or the grid
            and `clamp` do not go together.

    Example:
        >>> import torch
        >>> sampler = Augment(Affine(rotate=15), views=2, levels=16)
        >>> sampler(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 2, 1, 8, 8])
    """

    def __init__(
        self,
        *parts: nn.Module,
        views: int = 2,
        levels: int | None = None,
        clamp: bool | None = None,
        boxes: bool = False,
    ) -> None:
        super().__init__()
        for part in parts:
            if not isinstance(part, nn.Module):
                raise TypeError(
                    "expected parts to be modules such as Affine(rotate=15), got "
                    f"{part!r}; the number of views is given by name: views=2"
                )
        if levels is not None and clamp is False:
            raise ValueError(
                f"expected clamp=True or None with levels={levels}, whose grid lies "
                "within [0, 1], got clamp=False; leave out one of the two"
            )
        default = Affine(rotate=15, scale=(0.85, 1.15), shift=0.1)
        self.parts = nn.ModuleList(parts or [default])
        self.views, self.clamp = checked_integer("views", views, 1), clamp
        self.grid = Grid(levels)
        self.levels, self.boxes = levels, boxes
        moves = sum(isinstance(part, Affine) for part in self.parts)
        if boxes and moves != 1:
            raise ValueError(
                f"expected one Affine among the parts for boxes=True, got {moves}; one "
                "can crop, turn and shift at once"
            )

    def forward(
        self, x: Float[Tensor, "batch *event"]
    ) -> Float[Tensor, "batch view *event"] | Batch:
        check_floats(x)
        out, boxes = x.repeat_interleave(self.views, 0), None
        for part in self.parts:
            if self.boxes and isinstance(part, Affine):
                out, boxes = part.with_boxes(out)
            else:
                out = part(out)
        images = x.ndim == 4 if self.clamp is None else self.clamp
        if images or self.levels is not None:
            out = self.grid(out)
        shape = len(x), self.views
        views = out.unflatten(0, shape)
        if boxes is None:
            return views
        return Batch(views, clean=x, transform=boxes.unflatten(0, shape))


def digits(views: int = 2) -> Augment:
    """Small affine maps, for scikit-learn's digits with their 16 levels above zero.

    Smaller than by default: a tenth of 8 pixels is most of a stroke.
    """
    affine = Affine(rotate=10, scale=(0.9, 1.1), shift=0.06)
    return Augment(affine, views=views, levels=16)


def simclr(views: int = 2, levels: int | None = 255) -> Augment:
    """SimCLR's views of small colour images: crop, flip, colour jitter, grey.

    The crops are those used for CIFAR, at least a fifth of the area, without blur.

    References:
        A Simple Framework for Contrastive Learning of Visual Representations
        (Chen et al., 2020)
        https://arxiv.org/abs/2002.05709
        Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
        (Hu et al., 2023), for the numbers
        https://arxiv.org/abs/2205.14814
    """
    return Augment(
        Affine(crop=(0.2, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5),
        Colour(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grey(p=0.2),
        views=views,
        levels=levels,
    )


def simvae_mnist(views: int = 2, levels: int | None = 1) -> Augment:
    """SimVAE's views of MNIST, binary; with ``levels=255`` those of Fashion-MNIST.

    Crops and vertical flips, as in its authors' code.

    References:
        A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
        https://arxiv.org/abs/2402.01399
    """
    crop = Affine(crop=(0.4, 1.0), ratio=(0.75, 1.3), vertical_flip=0.5)
    return Augment(crop, views=views, levels=levels)


def simvae_cifar10(views: int = 2, levels: int | None = 255) -> Augment:
    """SimVAE's views of CIFAR-10: strong colour jitter, crops, vertical flips.

    References:
        A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
        https://arxiv.org/abs/2402.01399
    """
    return Augment(
        Colour(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2),
        Affine(crop=(0.6, 1.0), ratio=(0.75, 1.3), vertical_flip=0.5),
        views=views,
        levels=levels,
    )
