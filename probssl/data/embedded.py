"""The data set that needs no file: scikit-learn's handwritten digits."""

import numpy as np
import torch

from .splits import Dataset, Split
from .tensors import fixed_split

__all__ = ["digits"]


def digits(seed: int = 0) -> Dataset:
    """The 1,797 digits of 8 × 8 pixels that come with scikit-learn, in {0, 1/16, …, 1}.

    Each pixel counts the ink in a 4 × 4 block of a binary scan, so that a grey level is
    Binomial(16). A fixed quarter of every class is the test set.

    Example:
        >>> digits().train.images.shape
        torch.Size([1346, 1, 8, 8])

    References:
        Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998)
        https://doi.org/10.24432/C50P49
    """
    from sklearn.datasets import load_digits

    counts, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(counts.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    whole = Split(images, torch.from_numpy(labels.astype(np.int64)))
    return fixed_split(whole, levels=16, name="digits", seed=seed)
