"""Checks of the arguments of `compare`."""

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Dataset
from ..joint import Joint
from ..nn import PerModality

__all__ = ["MIN_TEST_ITEMS", "check", "check_finite", "check_names", "check_views"]

MIN_TEST_ITEMS = 20  # for entropies and standard errors over items


def check(objectives: dict[str, nn.Module], data: Dataset) -> None:
    """Raise a ValueError for objectives or data that do not compare."""
    if not objectives:
        raise ValueError(
            "expected at least one objective, got none; give {'SimVAE': simvae, …}"
        )
    for part, split in (("training", data.train), ("test", data.test)):
        if split.labels is None:
            raise ValueError(
                f"expected labels for the {part} items of {data.name}, got none; "
                "scores need them: give the data set labels"
            )
    if len(data.test.images) < MIN_TEST_ITEMS:
        raise ValueError(
            f"expected at least {MIN_TEST_ITEMS} test items for entropies and their "
            f"errors, got {len(data.test.images)}; hold out more"
        )
    likelihoods = {}
    for name, objective in objectives.items():
        for module in objective.modules():
            if isinstance(module, PerModality):
                raise ValueError(
                    f"expected encoders of one modality, got {name} with "
                    f"{len(module)} modalities; compare its parts one by one, each on "
                    "its own data: encoder.parts[0]"
                )
        if isinstance(joint := getattr(objective, "joint", None), Joint):
            likelihoods[name] = joint.likelihood
    measures = {name: each.measure for name, each in likelihoods.items()}
    listed = "; ".join(f"{name}: {measure}" for name, measure in measures.items())
    if len({each.pseudo for each in likelihoods.values()}) > 1:
        raise ValueError(
            "expected evidences or pseudo-likelihoods, got both: "
            f"{listed}; a pseudo-likelihood is no density of x: "
            "give all joints one kind of likelihood"
        )
    if len(set(measures.values())) > 1:
        raise ValueError(
            "expected evidences under one measure of the data, got "
            f"{listed}; they are no comparison: give all joints one kind of likelihood"
        )


def check_names(objectives: dict[str, nn.Module], baselines: list[str]) -> None:
    """Raise a ValueError for an objective with the name of a baseline."""
    if both := [name for name in objectives if name in baselines]:
        raise ValueError(
            f"expected other names than those of baselines, got {both[0]!r}; rename "
            "it, or set baselines=False"
        )


def check_finite(name: str, *parts: np.ndarray) -> None:
    """Raise a ValueError for representations with NaN or infinity."""
    bad = sum(int((~np.isfinite(part)).any(1).sum()) for part in parts)
    if bad:
        raise ValueError(
            f"expected finite embeddings, got NaN or infinity for {bad} items by "
            f"{name}; its fit has diverged: lower the learning rate, or leave it out"
        )


def check_views(views: object) -> Tensor:
    """Return the views of a sampler as floats, checked to be at least two per item."""
    views = getattr(views, "views", views)
    if not isinstance(views, Tensor) or views.ndim < 3 or views.shape[1] < 2:
        shape = tuple(views.shape) if isinstance(views, Tensor) else type(views)
        raise ValueError(
            "expected a sampler of 2 views of each item or more, (n, view, *event), "
            f"got {shape}; by default it is recipes.views(data)"
        )
    return views if views.is_floating_point() else views.to(torch.get_default_dtype())
