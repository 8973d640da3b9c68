"""Checks of the arguments of `compare`."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..arguments import typed
from ..arrays import check_classes, classes, span
from ..data import Dataset, Split
from ..evaluation.probes import LABELS_PER_CLASS, kept
from ..joint import Joint
from ..nn import PerModality
from ..posterior.items import evaluating
from ..posterior.joints import check_unconditional
from ..terms import Batch

__all__ = ["MIN_TEST_ITEMS", "apart", "check", "check_data", "check_finite"]
__all__ += ["check_conditional", "check_names", "check_supports", "check_views"]

MIN_TEST_ITEMS = 20  # for entropies and standard errors over items


@typed
def check_data(data: Dataset, max_train: int | None = None, seed: int = 0) -> None:
    """Raise a ValueError for data without the items or labels that scores need."""
    for part, split in (("training", data.train), ("test", data.test)):
        if not isinstance(split, Split):
            raise TypeError(
                f"expected the {part} items of {data.name} as a Split, got "
                f"{type(split).__name__}; give single items, of which views= makes "
                "pairs: ps.data.arrays"
            )
        if split.labels is None:
            raise ValueError(
                f"expected labels for the {part} items of {data.name}, got none; "
                "scores need them: give the data set labels"
            )
    assert data.train.labels is not None
    check_classes(data.train, data.test)
    if len(data.test) < MIN_TEST_ITEMS:
        raise ValueError(
            f"expected at least {MIN_TEST_ITEMS} test items for entropies and their "
            f"errors, got {len(data.test)}; hold out more"
        )
    y = classes(data.train.labels, len(data.train))
    if len(absent := np.setdiff1d(np.asarray(data.test.labels), y)):
        raise ValueError(
            f"expected test items of the classes of the training items, got "
            f"{absent.tolist()}, of which no training item is; give some, or leave the "
            "class out"
        )
    names, counts = np.unique(y[kept(len(y), max_train, seed)], return_counts=True)
    if counts.min() < LABELS_PER_CLASS:
        raise ValueError(
            f"expected at least {LABELS_PER_CLASS} training items of each class for "
            f"the few-label probe, got {counts.min()} of class "
            f"{names[counts.argmin()]}; give more, or leave the class out"
        )


def check(objectives: Mapping[str, nn.Module]) -> None:
    """Raise an error for objectives that `compare` cannot measure.

    A warning says which of them share parameters.
    """
    if not objectives:
        raise ValueError(
            "expected at least one objective, got none; give {'SimVAE': simvae, …}"
        )
    owners: dict[int, str] = {}
    for name, objective in objectives.items():
        if isinstance(objective, Joint):
            raise TypeError(
                f"expected an objective, got a Joint as {name}; wrap it in "
                "ps.limits.SimVAE(joint)"
            )
        for module in objective.modules():
            if isinstance(module, PerModality):
                raise ValueError(
                    f"expected encoders of one modality, got {name} with "
                    f"{len(module)} modalities; compare its parts one by one, each on "
                    "its own data: encoder.parts[0]"
                )
        # A frozen parameter, which no fit changes, may be shared.
        changed = [p for p in objective.parameters() if p.requires_grad]
        shared = {owners.setdefault(id(p), name) for p in changed}
        for other in sorted(shared - {name}):
            warnings.warn(
                f"expected objectives with parameters of their own, got {other} and "
                f"{name}, which share some: fitting one has changed the other; build "
                "an encoder for each",
                stacklevel=4,
            )


def apart(objectives: Mapping[str, nn.Module]) -> str:
    """The reason why evidences of the objectives do not compare; empty if they do."""
    joints = {name: getattr(each, "joint", None) for name, each in objectives.items()}
    found = {name: j.likelihood for name, j in joints.items() if isinstance(j, Joint)}
    listed = "; ".join(f"{name}: {each.measure}" for name, each in found.items())
    if len({each.pseudo for each in found.values()}) > 1:
        return f"some are pseudo-likelihoods, which are no densities of x ({listed})"
    if len({each.measure for each in found.values()}) > 1:
        return f"densities under several measures of the data ({listed})"
    return ""


def check_names(objectives: Mapping[str, nn.Module], baselines: list[str]) -> None:
    """Raise a ValueError for an objective with the name of a baseline."""
    if both := [name for name in objectives if name in baselines]:
        raise ValueError(
            f"expected other names than those of baselines, got {both[0]!r}; rename "
            "it, or set baselines=False"
        )


def check_finite(
    name: str,
    subject: object,
    items: Sequence[np.ndarray],
    views: Sequence[np.ndarray],
    pair: Tensor,
) -> None:
    """Raise a ValueError for representations with NaN or infinity.

    Arguments:
        items: Representations of items.
        views: Those of views.
        pair: The views.
    """
    bad, worse = (
        sum(int((~np.isfinite(part)).any(1).sum()) for part in parts)
        for parts in (items, views)
    )
    if not bad + worse:
        return
    found = f"{bad} items and {worse} views" if bad else f"{worse} views"
    state = subject.state_dict().values() if isinstance(subject, nn.Module) else ()
    if not all(bool(torch.isfinite(x).all()) for x in state):
        hint = "its fit has diverged: lower the learning rate, or leave it out"
    elif bad:
        hint = "its parameters are finite: give items in the range it was fitted to"
    else:
        low, high = span(pair)
        hint = (
            f"its parameters and all items are finite, so that views from {low:.4g} "
            f"to {high:.4g} are at fault: give compare the views that it was fitted "
            "with (by default they are recipes.views(data))"
        )
    raise ValueError(
        f"expected finite embeddings, got NaN or infinity for {found} by {name}; {hint}"
    )


def check_conditional(objectives: Mapping[str, object]) -> None:
    """Raise a ValueError for a joint with covariates, which compare does not give."""
    for objective in objectives.values():
        joint = getattr(objective, "joint", None)
        if isinstance(joint, Joint):
            check_unconditional(joint, "ps.compare")


def check_supports(objectives: Mapping[str, nn.Module], views: Tensor) -> None:
    """Raise a ValueError if a joint, with its name, cannot have produced the views."""
    for name, objective in objectives.items():
        joint = getattr(objective, "joint", None)
        if not isinstance(joint, Joint):
            continue
        try:
            with evaluating(joint) as like:
                for x in views.split(512):
                    joint.check(Batch(x if like is None else x.to(like)))
        except ValueError as error:
            raise ValueError(
                f"{error}; {name} came upon this in the views of compare: give those "
                "that it was fitted with (by default they are recipes.views(data))"
            ) from error


def check_views(views: object) -> Tensor:
    """Return the views of a sampler as floats, checked to be at least two per item."""
    present = getattr(views, "present", None)
    if present is not None and not bool(present.all()):
        raise ValueError(
            "expected all views of every item from the sampler of compare, got a Batch "
            f"whose present lacks {int((~present).sum())}; compare would take an "
            "absent view for data: give a sampler that draws every view"
        )
    views = getattr(views, "views", views)
    if not isinstance(views, Tensor) or views.ndim < 3 or views.shape[1] < 2:
        shape = tuple(views.shape) if isinstance(views, Tensor) else type(views)
        raise ValueError(
            "expected a sampler of 2 views of each item or more, (n, view, *event), "
            f"got {shape}; by default it is recipes.views(data)"
        )
    return views if views.is_floating_point() else views.to(torch.get_default_dtype())
