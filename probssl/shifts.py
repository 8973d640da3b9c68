"""Robustness: probes under distribution shift, and transfer to other data sets.

For `shifted`, linear and k-NN probes are fitted to the original training images and
tested on rotated, noisy, inverted or superimposed test images. For `transferred`, they
are fitted and tested on other data sets, with the encoder fixed.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .arguments import typed
from .data import Dataset, Split
from .data.memory import as_float
from .evaluation.probes import knns, linear_probes
from .posterior import embed
from .runtime.randomness import restored_randomness
from .views import Affine, Augment, Background, Invert, Noise

__all__ = ["SHIFTS", "apply", "shifted", "transferred"]

SHIFTS: dict[str, nn.Module] = {
    "rotation": Affine(rotate=45),
    "noise": Noise(0.3),
    "inversion": Invert(),
    "background": Background(1.0),
}
"""Rotation by up to 45 degrees; Gaussian noise of standard deviation 0.3; inversion; a
smooth background of standard deviation 1/4. Images are clipped to [0, 1]."""


@typed
def shifted(
    objective: nn.Module,
    data: Dataset,
    shifts: Mapping[str, nn.Module] | None = None,
    *,
    layer: str = "backbone",
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return ``linear_probe`` and ``knn`` accuracy on original and shifted test images.

    Both are fitted once, to the training images. The original test images have the name
    ``"clean"``.

    Arguments:
        objective: An objective, a joint, or a bare encoder.
        shifts: Modules (n, \\*event) -> (n, \\*event); None means `SHIFTS`, for images
            with values in [0, 1].
        layer: As for `embed`.
        seed: The seed of the shifts; torch's random state is left unchanged.

    Raises:
        ValueError: If there are no labels, a shift changes the shape, or one is named
            ``"clean"``.
    """
    shifts = SHIFTS if shifts is None else shifts
    if "clean" in shifts:
        raise ValueError(
            "expected other names of shifts than 'clean', which the original test "
            "images have, got it among them; rename that shift"
        )
    parts = {name: apply(shift, data.test, seed) for name, shift in shifts.items()}
    return _scores(objective, data.train, {"clean": data.test} | parts, layer)


@typed
def transferred(
    objective: nn.Module, others: Mapping[str, Dataset], *, layer: str = "backbone"
) -> dict[str, dict[str, float]]:
    """Return ``linear_probe`` and ``knn`` accuracy on other data sets (transfer).

    Probes are fitted to each data set; the encoder is fixed and sets the image size.

    Raises:
        ValueError: If there are no labels.
    """
    found: dict[str, dict[str, float]] = {}
    for name, data in others.items():
        found |= _scores(objective, data.train, {name: data.test}, layer)
    return found


@typed
def apply(shift: nn.Module, split: Split, seed: int = 0) -> Split:
    """The shifted items; a ValueError if the shape changes.

    Images (channel, height, width), bytes or floating point in [0, 1], are clipped to
    [0, 1]; items of other shapes, whose values may be any, are not.
    """
    floats = as_float(split)
    with restored_randomness():
        torch.manual_seed(seed)
        moved: Float[Tensor, n * event] = Augment(shift, views=1)(floats)[:, 0]
    if moved.shape != floats.shape:
        raise ValueError(
            f"expected a shift that keeps the shape {tuple(floats.shape)}, got "
            f"{tuple(moved.shape)}; resize what comes out"
        )
    return split._replace(images=moved)


def _scores(
    objective: nn.Module, train: Split, tests: Mapping[str, Split], layer: str
) -> dict[str, dict[str, float]]:
    y = _labels(train)
    parts = {
        name: (embed(objective, part, layer=layer), _labels(part))
        for name, part in tests.items()
    }
    z = embed(objective, train, layer=layer)
    probes, votes = linear_probes(z, y, parts), knns(z, y, parts)
    return {n: {"linear_probe": probes[n], "knn": votes[n]} for n in parts}


def _labels(split: Split) -> Tensor:
    if split.labels is None:
        raise ValueError(
            "expected labels of training and test items, got none; a probe needs them"
        )
    return split.labels
