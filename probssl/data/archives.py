"""Any arrays from one NumPy archive."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .memory import arrays
from .splits import Dataset

__all__ = ["npz"]

_IMAGES = ("images", "images_train", "x", "x_train")
_LABELS = ("labels", "labels_train", "y", "y_train")
_TEST_IMAGES, _TEST_LABELS = ("images_test", "x_test"), ("labels_test", "y_test")


def npz(path: str | os.PathLike[str]) -> Dataset:
    """The arrays of a `.npz`: images or vectors, with or without labels.

    The keys are `images` (or `x`), `labels` (`y`), `images_test` (`x_test`),
    `labels_test` (`y_test`), also as `images_train` and so on; all but the first are
    optional. Without test images a fixed quarter is set aside. A number `levels` says
    how many grey levels there are (see `arrays`).

    Images (n, height, width) are given a channel, images with one or three channels
    last have them moved to the front. All else stays as it stands.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No archive, no images, pickled objects, axes that can be read in
            two ways, and what `arrays` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a .npz file at {path.absolute()}")
    content = _read(path)
    images = _first(content, _IMAGES)
    if images is None:
        raise ValueError(
            f"expected one of {', '.join(_IMAGES)} in {path}, got "
            f"{', '.join(content) or 'an empty archive'}"
        )
    test = _first(content, _TEST_IMAGES)
    levels = content.get("levels")
    return arrays(
        _channel_first(images, path),
        _first(content, _LABELS),
        test=None if test is None else _channel_first(test, path),
        test_labels=_first(content, _TEST_LABELS),
        levels=None if levels is None else levels.item(),
        name=path.stem,
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"expected an archive written by numpy.savez at {path}, got another format"
        )
    known = {*_IMAGES, *_LABELS, *_TEST_IMAGES, *_TEST_LABELS, "levels"}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file if key in known}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read: {error}; save plain arrays of numbers or strings"
        ) from error


def _first(
    content: Mapping[str, np.ndarray], keys: tuple[str, ...]
) -> np.ndarray | None:
    return next((content[key] for key in keys if key in content), None)


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
            "probssl.data.arrays takes any shape as it stands"
        )
    return np.moveaxis(images, 3, 1) if last else images
