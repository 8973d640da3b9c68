"""Data sets by name, from a NumPy archive, or from folders of pictures."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from ..arguments import typed, whole
from ..bars import at_terminal
from ..reading import archive, check_declared, guarded, opened, within
from .memory import arrays
from .published import cifar10, digits, fashion_mnist, mnist, omniglot_small
from .splits import Dataset, Split, fixed_split

__all__ = ["image_folder", "load", "npz"]

_SUFFIXES = tuple(
    ".png .jpg .jpeg .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm".split()
)
_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
# Pictures of other kinds, which are refused so that none is left out in silence: they
# may have more than 8 bits, several pictures, or programs in them.
_OTHERS = ".avif .avifs .dcm .dng .eps .exr .fits .hdr .heic .heif .ico .j2k .jfif .jp2"
_OTHERS += " .jpe .jxl .nef .pcx .pfm .psd .qoi .raw .svg .tga .xpm .apng .cr2 .arw"
_GREY, _COLOURED = ("1", "L", "LA"), ("P", "RGB", "RGBA")
_PICTURE = "a picture of 8 bits a channel"

_VARIABLE = "PROBSSL_DATA"
_FILES: dict[str, tuple[Callable[..., Dataset], str]] = {
    "mnist": (mnist, "mnist"),
    "fashion-mnist": (fashion_mnist, "fashion-mnist"),
    "cifar10": (cifar10, "cifar-10-jpeg"),
    "omniglot": (omniglot_small, "omniglot-small"),
}


@typed
def load(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset:
    """A data set by its name, or from a `.npz` file or a folder of pictures.

    The names are digits, mnist (binarised), fashion-mnist, cifar10 and omniglot.

    Arguments:
        root: The folder of the files of a named data set, or the folder that holds
            it as `mnist`, `fashion-mnist`, `cifar-10-jpeg` or `omniglot-small`;
            None means the environment variable `PROBSSL_DATA`.
        options: Those of the function of this name, such as ``binary=False`` of
            `mnist`.

    Raises:
        FileNotFoundError: Missing files or folders, each named.
        TypeError: An unknown option.
        ValueError: An unknown name, or `root` where none is used.
    """
    name = os.fspath(name_or_path)
    if name in _FILES:
        read, folder = _FILES[name]
        return read(_folder(name, folder, root), **options)
    named = ", ".join(_FILES)
    if root is not None:
        raise ValueError(
            f"expected root with one of {named} only, got it with {name!r}; omit it"
        )
    if name == "digits":
        return digits(**options)
    path = Path(name)
    if path.is_dir():
        return image_folder(path, **options)
    if path.suffix == ".npz":
        return npz(path, **options)
    raise ValueError(
        f"expected digits, {named}, a .npz file or a folder of pictures, got {name!r}, "
        "which is none of them"
    )


def _folder(name: str, folder: str, root: str | os.PathLike[str] | None) -> Path:
    given = os.environ.get(_VARIABLE) if root is None else root
    if not given:
        raise FileNotFoundError(
            f"expected the folder of the files of {name}, got none; pass root= (on the "
            f"command line --root), or set {_VARIABLE} to the folder of {folder}"
        )
    inside = Path(given) / folder
    return inside if inside.is_dir() else Path(given)


_IMAGES = ("images", "images_train", "x", "x_train")
_LABELS = ("labels", "labels_train", "y", "y_train")
_WAY_OUT = "save arrays of numbers, labels also as strings, under the keys of npz"
_TEST_IMAGES, _TEST_LABELS = ("images_test", "x_test"), ("labels_test", "y_test")


@typed
def npz(path: str | os.PathLike[str]) -> Dataset:
    """A data set from a NumPy archive: images or vectors, with or without labels.

    The keys are `images` (or `x`), `labels` (`y`), `images_test` (`x_test`),
    `labels_test` (`y_test`), also as `images_train` and so on; all but the first are
    optional. Without test images a fixed quarter is set aside. A number `levels` is
    the number of grey levels minus one (see `arrays`), by default 255 for bytes with
    the axes of images; bytes of other shapes need it.

    Images (n, height, width) get a channel axis; one or three channels that come last
    are moved to the front. Other shapes are kept.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A damaged archive, no images, an unknown key, pickled objects, axes
            that can be read in two ways, and what `arrays` refuses.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"expected a .npz file at {path.absolute()}")
    with guarded(path, "images or vectors, with or without labels", _WAY_OUT):
        return _made(_read(path), path)


def _made(content: Mapping[str, np.ndarray], path: Path) -> Dataset:
    images = _first(content, _IMAGES)
    if images is None:
        raise ValueError(
            f"expected one of {', '.join(_IMAGES)} in {path}, got "
            f"{', '.join(content) or 'an empty archive'}"
        )
    test = _first(content, _TEST_IMAGES)
    levels = content.get("levels")
    if levels is not None and levels.size != 1:
        raise ValueError(
            f"expected levels in {path} as one number, the number of grey levels minus "
            f"one, got an array of shape {levels.shape}; save levels=16"
        )
    first = _channel_first(images, path)
    if levels is None and first.ndim == 4 and first.dtype == np.uint8:
        levels = np.array(255)
    return arrays(
        first,
        _first(content, _LABELS),
        test=None if test is None else _channel_first(test, path),
        test_labels=_first(content, _TEST_LABELS),
        levels=_number(levels),
        name=path.stem,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file; each key is known."""
    known = {*_IMAGES, *_LABELS, *_TEST_IMAGES, *_TEST_LABELS, "levels"}
    content = archive(path)
    for key in content.keys() - known:
        raise ValueError(
            f"expected keys among {', '.join(sorted(known))} in {path}, got {key!r}; "
            "rename it, or leave it out"
        )
    return content


def _number(levels: Any) -> Any:
    """The number in an array of one; others unchanged, which `arrays` refuses."""
    return levels.item() if getattr(levels, "size", 0) == 1 else levels


def _first(
    content: Mapping[str, np.ndarray], keys: tuple[str, ...]
) -> np.ndarray | None:
    found = [key for key in keys if key in content]
    if len(found) > 1:
        raise ValueError(
            f"expected one of {', '.join(keys)} in the archive, got "
            f"{' and '.join(found)}; save one of them"
        )
    return content[found[0]] if found else None


def _channel_first(images: np.ndarray, path: Path) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        return images
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise ValueError(
            "expected images (n, height, width), (n, channel, height, width) or "
            "(n, height, width, channel) with one or three channels, got shape "
            f"{images.shape} in {path}, which is "
            f"{'two of these' if first else 'none'}; "
            "probssl.data.arrays takes any shape"
        )
    return np.moveaxis(images, 3, 1) if last else images


@typed
def image_folder(
    root: str | os.PathLike[str], size: int | tuple[int, int] | None = None
) -> Dataset:
    """A data set from picture files: .png, .jpg, .bmp, .gif, .tif, .webp or .ppm.

    They lie in one folder for each class, CLASS/\\*.png. The labels number the sorted
    classes. Their folders lie in `root` itself, and a
    fixed quarter of each is the test set, or in `root/train` and `root/test`. If all
    pictures are grey they have one channel, otherwise three; transparency is dropped,
    the EXIF orientation is applied.

    Arguments:
        size: Resize to this height and width, whatever the proportions were; None
            expects pictures of one size.

    Raises:
        FileNotFoundError: No such folder, or one without pictures.
        ValueError: A class without pictures; pictures of several sizes, damaged, with
            more than 8 bits a channel, of several frames, of other kinds such as .heic;
            a link that leads out of `root`; more pixels than fit into memory.
    """
    root = Path(root)
    name = root.absolute().name
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder at {root.absolute()}")
    parts = [root / "train", root / "test"]
    parted = all(part.is_dir() for part in parts)
    files, *held_out = (_files(part, root) for part in (parts if parted else [root]))
    n = len(files)
    files = sum(held_out, start=files)
    folders = [path.parent.name for path in files]
    names, classes = np.unique(folders, return_inverse=True)
    whole = Split(
        _pixels(files, size), torch.from_numpy(classes), classes=tuple(names.tolist())
    )
    if not parted:
        return fixed_split(whole, 255, name)
    return Dataset(whole.rows(slice(n)), whole.rows(slice(n, None)), 255, name)


def _files(folder: Path, root: Path) -> list[Path]:
    files: list[Path] = []
    for kind in sorted(folder.iterdir()):
        if kind.name.startswith("."):
            continue
        if kind.is_symlink():
            within(kind, root).stat()  # a broken link is no class that may vanish
        if not kind.is_dir():
            continue
        found = sorted(kind.iterdir())
        for path in found:
            if path.suffix.lower() in _OTHERS.split() and path.name[0] != ".":
                raise ValueError(
                    f"expected pictures *{', *'.join(_SUFFIXES)}, got {path}; convert "
                    "it, for instance to PNG, or remove it"
                )
        pictures = [
            p
            for p in found
            if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")
        ]
        if not pictures:
            raise ValueError(
                f"expected pictures *{', *'.join(_SUFFIXES)} in every class folder, "
                f"got none in {kind.absolute()}; add some or remove the folder, and "
                "name folders of two splits train and test"
            )
        files += [within(picture, root) for picture in pictures]
    if not files:
        raise FileNotFoundError(
            f"expected pictures CLASS/*{', *'.join(_SUFFIXES)} in {folder.absolute()}, "
            "found none"
        )
    return files


def _pixels(
    files: list[Path], size: int | tuple[int, int] | None
) -> UInt8[Tensor, "n channel height width"]:
    shape = (size, size) if isinstance(size, int) else size
    for side in shape or ():
        whole("size", side, hint="give the height and the width in pixels")
    pictures: list[np.ndarray] = []
    for path in tqdm(files, "pictures", leave=False, **at_terminal()):
        with guarded(path, _PICTURE, "convert it, or remove it"):
            pictures.append(_picture(path, shape))
        if pictures[-1].shape[:2] != pictures[0].shape[:2]:
            raise ValueError(
                "expected pictures of one size, got (height, width) "
                f"{pictures[0].shape[:2]} in {files[0]} and {pictures[-1].shape[:2]} "
                f"in {path}; give size= to resize them"
            )
        if len(pictures) == 1:
            _check_memory(pictures[0].nbytes * len(files), len(files))
    channels = max(picture.shape[2] for picture in pictures)
    stacked = np.empty((len(files), *pictures[0].shape[:2], channels), np.uint8)
    for row, picture in zip(stacked, pictures, strict=True):
        row[...] = picture  # a grey one fills all three channels
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _check_memory(needed: int, n: int) -> None:
    """Raise a ValueError for more bytes than the memory that the system has free."""
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 2 * needed > free + 2 * 2**30:  # of which the system may free some more
            raise ValueError(
                f"expected {n:,} pictures that fit into memory, got about "
                f"{2 * needed / 1e9:.1f} GB of pixels, {free / 1e9:.1f} GB are free; "
                "give size= to make them smaller"
            )


def _picture(
    path: Path, shape: tuple[int, int] | None
) -> UInt8[np.ndarray, "height width channel"]:
    from PIL import Image, ImageOps

    with (
        opened(path) as opened_file,
        warnings.catch_warnings(),
        Image.open(opened_file, formats=_PILLOW_FORMATS) as file,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        size = os.fstat(opened_file.fileno()).st_size
        check_declared(path, size, file.width * file.height * len(file.getbands()))
        if (many := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
            raise ValueError(
                f"expected one picture, got {many} frames; save each alone"
            )
        deep = file.format == "PPM" and _deep(file.tile)
        # Pillow gives colours of 16 bits as 8, without a word.
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV", "PA", "RGBX", "La", "RGBa"):
            raise ValueError(
                f"expected grey levels or RGB, got {file.mode}; convert it"
            )
        if file.mode not in _GREY + _COLOURED or ";16" in str(file.tile) or deep:
            raise ValueError(
                f"expected 8 bits a channel, got mode {file.mode} with more"
            )
        upright = ImageOps.exif_transpose(file)
        # A palette may hold transparency, which only RGBA takes over in full.
        flat = upright.convert("RGBA") if file.mode == "P" else upright
        image = flat.convert("L" if file.mode in _GREY else "RGB")
    if shape is not None:
        image = image.resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, -1)


def _deep(tiles: Any) -> bool:
    """Whether a portable pixmap has a largest value above 255."""
    return any(isinstance(t[3], tuple) and t[3][-1] > 255 for t in tiles)
