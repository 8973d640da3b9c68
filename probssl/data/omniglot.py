"""Omniglot: characters (the content) crossed in full with drawers (the style).

References:
    Human-level concept learning through probabilistic program induction
    (Lake et al., 2015)
    https://doi.org/10.1126/science.aab3050
"""

import os
from pathlib import Path

import numpy as np
import torch

from .splits import Dataset, Split

__all__ = ["omniglot_small"]

_FILE = "omniglot-small.npz"
_TRAINING_DRAWERS = 15  # of the 20 of every alphabet


def omniglot_small(root: str | os.PathLike[str]) -> Dataset:
    """242 characters of 8 alphabets, each drawn by 20 people: 105 × 105, white ink.

    The labels number the characters over all alphabets, the style is the drawer, 1 to
    20, numbered anew in every alphabet. Drawers 1 to 15 train, 16 to 20 test.

    Arguments:
        root: The folder of `omniglot-small.npz`, which holds packed bits.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file does not hold what is expected.
    """
    path = Path(root) / _FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {_FILE} in {Path(root).absolute()}, found none; "
            "give its folder as root"
        )
    with np.load(path, allow_pickle=False) as file:
        keys = ("images", "shape", "alphabet", "character", "drawer")
        if missing := set(keys) - set(file):
            raise ValueError(f"expected {', '.join(sorted(missing))} in {path}")
        packed, shape, alphabet, character, drawer = (file[key] for key in keys)
    height, width = map(int, shape)
    ink = np.unpackbits(packed, axis=1, count=height * width) * np.uint8(255)
    pair = alphabet.astype(np.int64) * 256 + character
    classes = np.unique(pair, return_inverse=True)[1]
    style = torch.from_numpy(drawer.astype(np.int64))
    whole = Split(
        torch.from_numpy(ink).reshape(-1, 1, height, width),
        torch.from_numpy(classes.astype(np.int64)),
        style,
    )
    train = style <= _TRAINING_DRAWERS
    return Dataset(whole.rows(train), whole.rows(~train), 1, "omniglot")
