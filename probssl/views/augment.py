"""View samplers: a chain of augmentations, multi-crop, and published recipes."""

import inspect
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..arguments import choice, instance, typed, whole
from ..terms import Batch
from .colour import Colour, Grey, Invert
from .counts import Thinning, check_ends
from .geometry import Affine
from .ranges import (
    Range,
    check_floats,
    check_images,
    check_unit,
    check_values,
    checked_range,
    wide,
)

__all__ = ["Augment", "Grid", "MultiCrop", "PerItem", "digits", "simclr"]
__all__ += ["simvae_cifar10", "simvae_mnist"]

Rounding = Literal["nearest", "random"]


class Grid(nn.Module):
    r"""Quantisation: values in [0, 1] rounded to multiples k / levels.

    To the nearest; a half becomes the even k: with ``levels=1``, 1/2 becomes 0. Or at
    random to one of the two neighbours, so that the mean is x: :math:`k = \lfloor n x +
    u \rfloor` for n levels and u uniform on [0, 1), from torch's global generator. With
    ``levels=1`` each pixel is a draw of Bernoulli(x): dynamic binarisation.

    Arguments:
        levels: The number of grey levels minus one: 1 for binary images, 16 for
            scikit-learn's digits, 255 for bytes; None only clamps.
        rounding: ``"nearest"`` or ``"random"``.

    Raises:
        ValueError: Random rounding without `levels`, or another word.
    """

    def __init__(
        self, levels: int | None = None, rounding: Rounding = "nearest"
    ) -> None:
        super().__init__()
        self.levels = None if levels is None else whole("levels", levels)
        self.rounding = choice("rounding", rounding, get_args(Rounding))
        if levels is None and rounding == "random":
            raise ValueError(
                "expected levels for rounding='random', got None; levels=1 draws "
                "binary pixels"
            )

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        check_floats(x)
        x = x.clamp(0, 1)
        if self.levels is None:
            return x
        own, x = x.dtype, x.to(wide(x)).mul_(self.levels)
        if self.rounding == "random":
            x = x.add_(torch.rand_like(x)).floor_().clamp_(max=self.levels)
        else:
            x = x.round_()
        return x.div_(self.levels).to(own)


def _within(parts: Iterable[nn.Module], *kinds: type[nn.Module]) -> int:
    """How many modules of these kinds there are, those inside others among them."""
    return sum(isinstance(m, kinds) for part in parts for m in part.modules())


def _own(part: nn.Module) -> nn.Module | None:
    """The first module in a part that is neither of the package nor a container."""
    for module in part.modules():
        packaged = type(module).__module__.startswith("probssl.")
        if not packaged and type(module) not in (nn.Sequential, nn.ModuleList):
            return module
    return None


def _check_answers(part: nn.Module, kind: type[nn.Module], way: str) -> None:
    """Raise a ValueError for a subclass whose `forward` alone is of its own."""
    mro, name = type(part).__mro__, type(part).__name__
    forward, other = (
        next(i for i, base in enumerate(mro) if method in vars(base))
        for method in ("forward", way)
    )
    if forward < other:
        raise ValueError(
            f"expected {kind.__name__}, or a subclass with {way} of its own, got "
            f"{name}, whose forward would be left out; define {way} in {name}, or put "
            f"what it adds into a part that follows {kind.__name__}"
        )


class Augment(nn.Module):
    r"""Data augmentation: V random views of each item, independent given the item.

    Every view goes through the augmentations in their order, with its own draws from
    torch's global generator, and is then quantised as the data are. The views of an
    item are positive pairs.

    Items outside [0, 1] are refused where values are clamped, or `Colour` or `Invert`
    is among the parts; what the augmentations themselves move beyond is clamped.
    Counts, where `Thinning` is among the parts, are never clamped, and have no
    `levels`.

    Arguments:
        parts: The augmentations, modules (n, \*event) -> (n, \*event) that draw anew
            for each item; `PerItem` wraps one that draws once per call. By default
            images are rotated by up to 15 degrees, scaled by 0.85 to 1.15 and shifted
            by up to a tenth of their size.
        views: The number V of views.
        levels: The number of grey levels minus one, see `Grid`; None does not quantise.
        clamp: Whether the values are clamped to [0, 1]; None clamps images (channel,
            height, width) only. With `levels` they always are.
        rounding: How values are quantised, see `Grid`.
        boxes: Whether to return a `Batch` whose `transform` holds the boxes that the
            one `Affine` among the parts shows, for `affinities.Overlap`. Parts of your
            own follow it, and move no pixels: the boxes do not know of them.
        shares: Whether to return a `Batch` whose covariates hold the share of counts
            that the one `Thinning` among the parts keeps, ``"share"``, (batch, view,
            1): a factor of the mean of a view.

    Example:
        >>> import torch
        >>> sampler = Augment(Affine(rotate=15), views=2, levels=16)
        >>> sampler(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 2, 1, 8, 8])

    Raises:
        TypeError: If a part is not a module.
        ValueError: If `boxes` is given and there is not exactly one `Affine`, or it is
            inside another part, or a part of your own is before it, or a subclass of
            it has a `forward` without `with_boxes`; if a part returns another number of
            rows, or `levels` is given with ``clamp=False``; if the
            items are not in [0, 1]; if `shares` is given and there is not exactly one
            `Thinning`, or that stands beside what is for values in [0, 1].
    """

    def __init__(
        self,
        *parts: nn.Module,
        views: int = 2,
        levels: int | None = None,
        clamp: bool | None = None,
        boxes: bool = False,
        rounding: Rounding = "nearest",
        shares: bool = False,
    ) -> None:
        super().__init__()
        _check_modules(parts)
        if levels is not None and clamp is False:
            raise ValueError(
                f"expected clamp=True or None with levels={levels}, whose grid lies "
                "within [0, 1], got clamp=False; leave out one of the two"
            )
        default = Affine(rotate=15, scale=(0.85, 1.15), shift=0.1)
        self.parts = nn.ModuleList(parts or [default])
        self.views, self.clamp = whole("views", views), clamp
        self.grid = Grid(levels, rounding)
        self.levels, self.boxes, self.shares = levels, boxes, shares
        self._check_thinning()
        if boxes:
            self._check_boxes()

    def forward(
        self, x: Float[Tensor, "batch *event"]
    ) -> Float[Tensor, "batch view *event"] | Batch:
        if not self._counts:
            check_floats(x)
        clamped = self._clamps(x.ndim)
        if clamped or self._bounded:
            check_values(x, self)
        out, boxes, shares = x.repeat_interleave(self.views, 0), None, None
        for part in self.parts:
            if self.boxes and isinstance(part, Affine):
                out, boxes = part.with_boxes(out)
            elif self.shares and isinstance(part, Thinning):
                out, shares = part.with_shares(out)
            else:
                out = _changed(part, out)
        if clamped:
            out = self.grid(out)
        shape = len(x), self.views
        views = out.unflatten(0, shape)
        if boxes is None and shares is None:
            return views
        transform = None if boxes is None else boxes.unflatten(0, shape)
        known = None if shares is None else {"share": shares.view(*shape, 1)}
        return Batch(views, clean=x, transform=transform, covariates=known)

    def check_range(self, low: float, high: float, ndim: int) -> None:
        """Raise a ValueError if items with `ndim` axes have values that are refused."""
        if self._counts and low < 0:
            check_ends(low, high, torch.float64)
        if self._clamps(ndim) or self._bounded:
            check_unit(low, high, type(self).__name__)

    def _check_boxes(self) -> None:
        """Raise a ValueError unless the boxes are those of all that moves pixels."""
        moves = _within(self.parts, Affine)
        if moves != 1:
            raise ValueError(
                f"expected one Affine among the parts for boxes=True, got {moves}; one "
                "can crop, rotate and shift at once"
            )
        for part in self.parts:
            if isinstance(part, Affine):
                _check_answers(part, Affine, "with_boxes")
                return
            if _within([part], Affine):
                raise ValueError(
                    "expected Affine as a part by itself for boxes=True, got it inside "
                    f"{type(part).__name__}, which hands on no boxes; give its parts "
                    "one by one"
                )
            if (own := _own(part)) is not None:
                raise ValueError(
                    f"expected Affine before {type(own).__name__} for boxes=True, got "
                    "it after: a part that moves pixels first changes the boxes; put "
                    "it behind, where it may change colours, and flip by "
                    "Affine(flip=0.5)"
                )

    def _clamps(self, ndim: int) -> bool:
        images = ndim == 4 and not self._counts if self.clamp is None else self.clamp
        return images or self.levels is not None

    @property
    def _bounded(self) -> bool:
        return _within(self.parts, Colour, Invert) > 0

    @property
    def _counts(self) -> bool:
        return _within(self.parts, Thinning) > 0

    def _check_thinning(self) -> None:
        """Raise a ValueError for thinning beside what is for values in [0, 1]."""
        many = _within(self.parts, Thinning)
        by_itself = [part for part in self.parts if isinstance(part, Thinning)]
        if self.shares and not many == len(by_itself) == 1:
            raise ValueError(
                f"expected one Thinning among the parts for shares=True, got {many}, "
                f"{many - len(by_itself)} of them inside others; one can draw any share"
            )
        if self.shares:
            _check_answers(by_itself[0], Thinning, "with_shares")
        if many and (self.levels is not None or self.clamp or self._bounded):
            raise ValueError(
                "expected no levels, clamp=True, Colour or Invert beside Thinning, "
                "which takes counts 0, 1, …, while these are for grey levels in "
                "[0, 1]; leave them out"
            )


class PerItem(nn.Module):
    r"""An augmentation that is called for one item at a time, so that each has a draw.

    Transforms of torchvision draw once per call, for all items of a batch alike. One
    call per item takes longer.

    Arguments:
        part: The augmentation, a module (1, \*event) -> (1, \*event).

    Example:
        >>> import torch
        >>> part = torch.nn.RReLU()  # or RandomHorizontalFlip() of torchvision
        >>> Augment(PerItem(part), views=2)(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 2, 1, 8, 8])
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        _check_modules((part,))
        self.part = part

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *changed"]:
        return torch.cat([self.part(one) for one in x.split(1)])


class MultiCrop(nn.Module):
    r"""Multi-crop: global and local views of each image, for SwAV and DINO.

    All crops are drawn independently from torch's global generator and then quantised
    as the data are. Images outside [0, 1] are refused. Local crops are resized to the
    size of the image, or to a smaller one, which costs less and needs an encoder for
    any size.

    The published areas are for photographs. For images of a few pixels use larger local
    crops: ``MultiCrop(local_crop=(0.3, 0.6), levels=16)`` for scikit-learn's digits.

    Arguments:
        parts: The augmentations after the crop, modules (n, \*event) -> (n, \*event).
        views: The number of global crops.
        local: The number of local crops; with 0 the global ones are the only part.
        crop: The area of global crops, as a fraction.
        local_crop: The area of local crops, as a fraction.
        local_size: The height and width of local crops in pixels; None means those of
            the image.
        flip: The probability of a horizontal flip.
        levels: The number of grey levels minus one, see `Grid`; None does not quantise.

    References:
        Unsupervised Learning of Visual Features by Contrasting Cluster Assignments
        (Caron et al., 2020)
        https://arxiv.org/abs/2006.09882
        Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021),
        for the areas
        https://arxiv.org/abs/2104.14294

    Example:
        >>> import torch
        >>> sampler = MultiCrop(views=2, local=4, local_size=(4, 4))
        >>> [tuple(part.shape) for part in sampler(torch.rand(5, 1, 8, 8)).views]
        [(5, 2, 1, 8, 8), (5, 4, 1, 4, 4)]
    """

    def __init__(
        self,
        *parts: nn.Module,
        views: int = 2,
        local: int = 6,
        crop: Range = (0.4, 1.0),
        local_crop: Range = (0.05, 0.4),
        local_size: tuple[int, int] | None = None,
        flip: float = 0.0,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        _check_modules(parts)
        if local_size is not None:
            if isinstance(local_size, int) or len(local_size) != 2:
                raise ValueError(
                    f"expected local_size as (height, width), got {local_size!r}; for "
                    "instance (16, 16)"
                )
            height, width = (whole("local_size", size) for size in local_size)
            local_size = height, width
        self.parts = nn.ModuleList(parts)
        self.views = whole("views", views)
        self.local = whole("local", local, 0)
        checked_range("local_crop", local_crop, 0, 1, positive=True)
        self.local_size = local_size
        self.large = Affine(crop=crop, flip=flip)
        self.small = Affine(crop=local_crop, flip=flip)
        self.grid = Grid(levels)

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Batch:
        """Return a batch whose views are the global and the local crops."""
        check_images(x, "MultiCrop")
        check_values(x, self)
        large = self._crops(x, self.large, self.views)
        if not self.local:
            return Batch(large)
        return Batch((large, self._crops(x, self.small, self.local, self.local_size)))

    def _crops(
        self, x: Tensor, crop: Affine, count: int, size: tuple[int, int] | None = None
    ) -> Float[Tensor, "batch view channel height width"]:
        out = crop(x.repeat_interleave(count, 0))
        if size is not None:
            own, out = out.dtype, out.to(wide(out))  # the CPU resizes no other types
            out = interpolate(out, size, mode="bilinear", antialias=True).to(own)
        for part in self.parts:
            out = _changed(part, out)
        return self.grid(out).unflatten(0, (len(x), count))

    def check_range(self, low: float, high: float, ndim: int) -> None:
        """Raise a ValueError if items have values that are refused."""
        check_unit(low, high, type(self).__name__)


@typed
def digits(
    views: int = 2, levels: int | None = 16, rounding: Rounding = "nearest"
) -> Augment:
    """Small rotations, scalings and shifts for images of 8 × 8 pixels.

    They are smaller than the default: a tenth of 8 pixels is most of a stroke. Grey
    levels are those of scikit-learn's digits.
    """
    affine = Affine(rotate=10, scale=(0.9, 1.1), shift=0.06)
    return Augment(affine, views=views, levels=levels, rounding=rounding)


@typed
def simclr(views: int = 2, levels: int | None = 255) -> Augment:
    """SimCLR's augmentation of small colour images.

    Random resized crop of at least a fifth of the area, horizontal flip, colour jitter
    and grayscale; without the Gaussian blur, as for CIFAR.

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


@typed
def simvae_mnist(views: int = 2, levels: int | None = 1) -> Augment:
    """SimVAE's augmentation of binary MNIST; of Fashion-MNIST with ``levels=255``.

    Random resized crops and vertical flips, as in its authors' code.

    References:
        A Probabilistic Model behind Self-Supervised Learning (Bizeul et al., 2024)
        https://arxiv.org/abs/2402.01399
    """
    crop = Affine(crop=(0.4, 1.0), ratio=(0.75, 1.3), vertical_flip=0.5)
    return Augment(crop, views=views, levels=levels)


@typed
def simvae_cifar10(views: int = 2, levels: int | None = 255) -> Augment:
    """SimVAE's augmentation of CIFAR-10.

    Strong colour jitter, random resized crops and vertical flips.

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


def _changed(part: nn.Module, x: Tensor) -> Tensor:
    """One augmentation; those before it may have left [0, 1]."""
    inside = isinstance(part, Colour | Invert) and _takes_inside(part)
    changed = part(x, inside=True) if inside else part(x)
    if not isinstance(changed, Tensor) or len(changed) != len(x):
        got = type(changed).__name__
        if isinstance(changed, Tensor):
            got = f"{len(changed)} rows"
        raise ValueError(
            f"expected {type(part).__name__} to return as many rows as it got, "
            f"{len(x)}, the same items in their order, got {got}; Augment makes the "
            "views: its parts change each item once"
        )
    return changed


def _takes_inside(part: nn.Module) -> bool:
    """Whether its `forward` has the argument, as one of your own may not."""
    return "inside" in inspect.signature(part.forward).parameters


def _check_modules(parts: tuple[nn.Module, ...]) -> None:
    hint = "the number of views is a keyword argument: views=2"
    for part in parts:
        instance("parts", part, nn.Module, "modules such as Affine(rotate=15)", hint)
