"""Representations and labels as NumPy arrays, checked once where they come in."""

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["Array", "classes", "finite", "labels", "plain", "representations"]
__all__ += ["train_test"]

Array = np.ndarray | Tensor


def plain(values: Array) -> np.ndarray:
    """Values as a NumPy array on the CPU, detached from the autograd graph."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # unknown to NumPy
            values = values.float()
    return np.asarray(values)


def finite(values: Array) -> np.ndarray:
    """Values in float64; raises a ValueError where one is not finite."""
    array = plain(values).astype(np.float64, copy=False)
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"expected finite numbers, got NaN or infinity in {bad} of {array.size}; "
            "look for a fit that has diverged, or leave these items out"
        )
    return array


def representations(*parts: Float[Array, "n dim"]) -> list[np.ndarray]:
    """Representations z, shape (n, dim), of one or several data sets, in float64."""
    arrays = [finite(z) for z in parts]
    for z in arrays:
        if z.ndim != 2 or 0 in z.shape:
            raise ValueError(
                f"expected representations (n, dim), got {z.shape}; flatten further "
                "axes by z.reshape(len(z), -1), or take one view by z[:, 0]"
            )
    if len({z.shape[1] for z in arrays}) > 1:
        raise ValueError(
            "expected representations of one dimension, got "
            f"{[z.shape for z in arrays]}; embed all of them by the same encoder"
        )
    return arrays


def labels(y: Shaped[Array, " n"], items: int) -> np.ndarray:
    """Discrete labels, shape (n,), one for each item."""
    array = plain(y)
    if array.ndim != 1:
        raise ValueError(
            f"expected labels (n,), got {array.shape}; take one column, or y.argmax(1) "
            "of a one-hot code"
        )
    if len(array) != items:
        raise ValueError(
            f"expected a label for each representation, got {items} representations "
            f"and {len(array)} labels; give them in the same order"
        )
    if array.dtype.kind == "f" and (array != np.floor(array)).any():
        raise ValueError(
            f"expected classes, got the label {array[array != np.floor(array)][0]}; "
            "give continuous factors to style_probe"
        )
    return array


def classes(y: Shaped[Array, " n"], items: int) -> np.ndarray:
    """Discrete labels of at least two classes."""
    array = labels(y, items)
    if len(found := np.unique(array)) < 2:
        raise ValueError(
            f"expected labels of at least two classes, got {found} only; shuffle the "
            "items before taking some of them"
        )
    return array


def train_test(
    z_train: Float[Array, "n dim"],
    y_train: Shaped[Array, " n"],
    z_test: Float[Array, "m dim"],
    y_test: Shaped[Array, " m"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A labelled training set and test set, checked for agreement."""
    z_train, z_test = representations(z_train, z_test)
    y_train, y_test = classes(y_train, len(z_train)), labels(y_test, len(z_test))
    if not np.isin(y_test, y_train).any():
        raise ValueError(
            "expected classes that occur in training and in test, got "
            f"{np.unique(y_train)[:5]} ... and {np.unique(y_test)[:5]} ...; split "
            "the items within classes, not between them"
        )
    return z_train, y_train, z_test, y_test
