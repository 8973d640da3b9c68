"""Data sets by name, as the command line asks for them."""

import os
from collections.abc import Callable
from pathlib import Path

from .archives import npz
from .cifar import cifar10
from .embedded import digits
from .folders import image_folder
from .idx import fashion_mnist, mnist
from .omniglot import omniglot_small
from .splits import Dataset

__all__ = ["load"]

_VARIABLE = "PROBSSL_DATA"
_FILES: dict[str, tuple[Callable[[Path], Dataset], str]] = {
    "mnist": (mnist, "mnist"),
    "fashion-mnist": (fashion_mnist, "fashion-mnist"),
    "cifar10": (cifar10, "cifar-10-jpeg"),
    "omniglot": (omniglot_small, "omniglot-small"),
}


def load(
    name_or_path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None
) -> Dataset:
    """A data set by its name, or from a `.npz` file or a folder of pictures.

    The names are digits, mnist (binarised), fashion-mnist, cifar10 and omniglot.

    Arguments:
        root: Where the files of a named data set lie: their folder, or the one that
            holds it as `mnist`, `fashion-mnist`, `cifar-10-jpeg` or `omniglot-small`;
            None means the environment variable `PROBSSL_DATA`.

    Raises:
        FileNotFoundError: Files or folders that are missing, each named.
        ValueError: An unknown name, or `root` for what is read from no such folder.
    """
    name = os.fspath(name_or_path)
    if name in _FILES:
        read, folder = _FILES[name]
        return read(_folder(name, folder, root))
    if root is not None:
        raise ValueError(
            f"expected root with one of {', '.join(_FILES)} only, got it with "
            f"{name!r}; leave it away"
        )
    if name == "digits":
        return digits()
    path = Path(name)
    if path.is_dir():
        return image_folder(path)
    if path.suffix == ".npz":
        return npz(path)
    raise ValueError(
        f"expected digits, {', '.join(_FILES)}, a .npz file or a folder of pictures, "
        f"got {name!r}, which is none of them"
    )


def _folder(name: str, folder: str, root: str | os.PathLike[str] | None) -> Path:
    given = os.environ.get(_VARIABLE) if root is None else root
    if not given:
        raise FileNotFoundError(
            f"expected to be told where the files of {name} lie; pass root= (--root on "
            f"the command line), or set {_VARIABLE} to the folder that holds {folder}"
        )
    inside = Path(given) / folder
    return inside if inside.is_dir() else Path(given)
