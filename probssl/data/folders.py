"""Pictures in folders, one folder for each class."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from .splits import Dataset, Split
from .tensors import fixed_split

__all__ = ["image_folder"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY, _COLOURED = ("1", "L", "LA"), ("P", "RGB", "RGBA")


def image_folder(
    root: str | os.PathLike[str], size: int | tuple[int, int] | None = None
) -> Dataset:
    """Pictures from CLASS/\\*.png and .jpg; the labels number the sorted classes.

    The classes lie in `root` itself, and a fixed quarter of each is the test set, or in
    `root/train` and `root/test`. If all pictures are grey they have one channel,
    otherwise three; transparency is dropped. Needs Pillow.

    Arguments:
        size: Resize to this height and width, whatever the proportions were; None
            expects pictures of one size.

    Raises:
        FileNotFoundError: No such folder, or one without pictures.
        ImportError: Pillow is missing.
        ValueError: Pictures of several sizes, damaged or with more than 8 bits.
    """
    root = Path(root)
    name = root.absolute().name
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder at {root.absolute()}")
    if not ((root / "train").is_dir() and (root / "test").is_dir()):
        files = _files(root)
        images = _pixels(files, size)
        return fixed_split(Split(images, _classes(files, files)), 255, name)
    train, test = _files(root / "train"), _files(root / "test")
    images = _pixels(train + test, size)
    return Dataset(
        Split(images[: len(train)], _classes(train, train + test)),
        Split(images[len(train) :], _classes(test, train + test)),
        255,
        name,
    )


def _files(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.glob("*/*")
        if path.suffix.lower() in _SUFFIXES and not path.parent.name.startswith(".")
    )
    if not files:
        raise FileNotFoundError(
            f"expected pictures CLASS/*{', *'.join(_SUFFIXES)} in {folder.absolute()}, "
            "found none"
        )
    return files


def _classes(files: list[Path], together: list[Path]) -> Tensor:
    names = sorted({path.parent.name for path in together})
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[path.parent.name] for path in files])


def _pixels(
    files: list[Path], size: int | tuple[int, int] | None
) -> UInt8[Tensor, "n channel height width"]:
    shape = (size, size) if isinstance(size, int) else size
    pictures = [
        _picture(path, shape)
        for path in tqdm(files, "pictures", leave=False, disable=None)
    ]
    for path, picture in zip(files, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            raise ValueError(
                "expected pictures of one size, got (height, width) "
                f"{pictures[0].shape[:2]} in {files[0]} and {picture.shape[:2]} in "
                f"{path}; give size= to resize them"
            )
    channels = max(picture.shape[2] for picture in pictures)
    stacked = np.empty((len(files), *pictures[0].shape[:2], channels), np.uint8)
    for row, picture in zip(stacked, pictures, strict=True):
        row[...] = picture  # a grey one fills all three channels
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _picture(
    path: Path, shape: tuple[int, int] | None
) -> UInt8[np.ndarray, "height width channel"]:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures need Pillow: pip install pillow") from error
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            if file.mode not in _GREY + _COLOURED:
                raise ValueError(f"got mode {file.mode}, not 8 bits a channel")
            # A palette may hold transparency, which only RGBA takes over in full.
            flat = file.convert("RGBA") if file.mode == "P" else file
            image = flat.convert("L" if file.mode in _GREY else "RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if shape is not None:
        image = image.resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, -1)
