"""Representations, reconstructions and samples."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float
from pyro.distributions import Delta, Independent
from torch import Tensor, nn

from ..arguments import choice, typed, whole
from ..arrays import finite, plain
from ..covariates import Covariates, checked_covariates, declares, rows_at
from ..data.batches import Loadable, Target
from ..guides.views import Completed
from ..joint import Joint, mean_of
from ..limits import CRVAE, VAE, JointEmbedding, SimVAE
from ..limits._base import Extension
from ..nn.base import called, is_rows, output_error
from ..nn.network import CHECKED, check_items_apart, nets_of
from ..priors import Grouped
from ..terms import Batch
from .items import evaluating, singles
from .joints import check_proper, decodes_given, joint_of, mean_views

__all__ = ["embed", "embedded", "own_z", "reconstruct", "representation_of"]
__all__ += ["sample"]

SAME = 1e-4  # relative and absolute difference of equal z
LAYERS = ("backbone", "projector", "content")
Images = np.ndarray | Any  # an array; for several modalities a tuple of arrays


@overload
def embed(
    objective: nn.Module,
    data: Loadable,
    *,
    layer: str = ...,
    return_std: Literal[False] = False,
    batch_size: int = ...,
) -> Float[np.ndarray, "item dim"]: ...


@overload
def embed(
    objective: nn.Module,
    data: Loadable,
    *,
    layer: str = ...,
    return_std: Literal[True],
    batch_size: int = ...,
) -> tuple[Float[np.ndarray, "item dim"], Float[np.ndarray, "item dim"]]: ...


@typed
def embed(
    objective: nn.Module,
    data: Loadable,
    *,
    layer: str = "backbone",
    return_std: bool = False,
    batch_size: int = 1024,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    r"""Return the representation z of each item: for a joint the mean of q(z|x).

    Each item is its only view. For several modalities, and for `Groups` of views under
    a joint, z is the mean over those that are present. A ``represent(x)`` of your own,
    where it is not the mean of q(z|x), is called with each view, or with the tuple of
    all modalities. Known contents (labels) in `Groups` are ignored, also where q(z|x)
    could use them. Of `guides.Flow`, mean and standard deviation are averages over 128
    points of q. Random hyper-parameters have the median of their guide. Where q(z|x) is
    conditional on covariates, it is at those of the data (`Split.covariates`).

    Arguments:
        objective: An objective, a joint, or a bare encoder.
        data: A `Split`, a tensor or array (n, \*event), or a tuple of these, one per
            modality; or a DataLoader, as for `fit`, that does not shuffle. The bytes of
            a `Split` are read as k/255. With several modalities also `Groups`, a view
            for each; for a joint `Groups` of any views, some of which may be absent.
        layer: ``"backbone"``, the output of the encoder; ``"projector"``, that of the
            projection head; or ``"content"``, the content dimensions of z under a prior
            that has style dimensions (`priors.ContentStyle`): means of q(z|x), not of
            p(y|x), of the output that the prior is over, a projector's if there is one.
        return_std: Whether to return the standard deviation of z under q(z|x) too; for
            several views that of their mean, :math:`\sqrt{\sum_v s_v^2} / V`.

    A warning says that z is a random draw, of an encoder that draws in evaluation mode.

    Raises:
        TypeError: If the data have an unknown type.
        ValueError: If there is no such layer, q(z|x) has no standard deviation, or one,
            or the content, is asked for of a z of your own, or a standard deviation of
            modalities that are dependent under q (`guides.Coupled`), or the encoder
            returns NaN or infinity, or z of an item changes with others.
    """
    found = embedded(objective, data, layer, return_std, batch_size)
    finite(found[0], "z")
    return (found[0], found[1]) if return_std else found[0]


def embedded(
    objective: nn.Module,
    data: Loadable,
    layer: str = "backbone",
    return_std: bool = False,
    batch_size: int = 1024,
) -> tuple[np.ndarray, ...]:
    """z, and its standard deviation where asked for, whatever the values."""
    content = _content_dim(objective) if layer == "content" else None
    if content is not None:
        projected = getattr(objective, "projector", None) is not None
        layer = "projector" if projected else "backbone"
    represent = representation_of(objective, layer)
    joint = joint_of(objective, "return_std=True") if return_std else None
    means: list[np.ndarray] = []
    deviations: list[np.ndarray] = []
    model, count = _model(objective), _modalities(objective)
    pooled, own = isinstance(model, Joint), _may_differ(objective)
    given = pooled and bool({"guide", "prior"} & {*model.conditional})
    if given and own:
        raise ValueError(
            "expected z to be the mean of q(z|x), which is conditional on covariates, "
            f"got a represent(x) of {type(objective).__name__} of its own, which is "
            "given none; leave it out"
        )
    with evaluating(objective) as like:
        for x in singles(data, like, batch_size, "embed", count, pooled, given):
            if isinstance(x, Batch):
                x = x._replace(content=None)  # a label that is known tells of itself
            if own and not means and (return_std or content or isinstance(x, Batch)):
                own = _differs(represent, model, x)
                if own and return_std:
                    raise _no_deviation(objective)
                if own and content:
                    raise _no_content(objective)
            if isinstance(x, Batch):
                z = _over_views(represent, model, x) if own else model.pooled(x)
            else:
                z = represent(x)
            if not (means or isinstance(x, Batch)):
                _told_if_random(objective, check_items_apart(objective, represent, x))
            means.append(plain(z))
            if joint is not None:
                deviations.append(plain(_deviation(joint, x)))
    z = np.concatenate(means)[:, :content]
    return (z, np.concatenate(deviations)[:, :content]) if return_std else (z,)


@typed
def reconstruct(
    objective: nn.Module, data: Loadable, *, batch_size: int = 1024
) -> Images:
    """Reconstruct each item: the mean of p(x | z) at the mean of q(z|x).

    An array (item, \\*event); for several modalities, a tuple of these. For absent
    views see `complete`. Covariates of p(x|z) are those of the data
    (`Split.covariates`), or within x where its distribution has a method ``given(x)``.
    Random hyper-parameters have the median of their guide.

    Raises:
        ValueError: If the objective has no decoder, or p(x|z) no mean.
    """
    joint = joint_of(objective, "reconstructions")
    found = []
    with evaluating(objective) as like:
        count, given = len(joint.sites), bool(joint.conditional)
        for x in singles(data, like, batch_size, "reconstruct", count, False, given):
            batch = _single_views(joint, x) if given else None
            q = joint.alone(x) if batch is None else joint.encode(batch)
            z = joint.prior.centre(mean_of(q))
            parts = x if isinstance(x, tuple) else (x,)
            parts = parts if batch is None else batch.parts
            known = None if batch is None else batch.covariates
            each = mean_views(joint, z, (1,) * z.shape[1], parts, known)
            single = z.shape[1] == 1 or joint.several  # else items are stacks of views
            found.append([mean.squeeze(1) if single else mean for mean in each])
    return joined(joint, found)


@typed
def sample(
    objective: nn.Module,
    n: int,
    views: int | None = None,
    *,
    covariates: Mapping[str, Any] | None = None,
    batch_size: int = 1024,
) -> Images:
    """Generate items: the mean of p(x_v | z_v) for n draws of z_1..V from the prior.

    An array (item, view, \\*event); for several modalities, a tuple of these. Random
    hyper-parameters have the median of their guide.

    Arguments:
        views: The number of views of each item; by default 2, or one of each modality.
        covariates: Those of the n items, where p(x|z) is conditional on some, or
            the prior on groups, as `Batch.covariates`.

    Raises:
        ValueError: If the objective has no decoder, p(x|z) no mean, or p(y) is flat; if
            covariates are missing, or have no use.
    """
    joint = joint_of(objective, "samples")
    views = (1 if joint.several else 2) if views is None else views
    for name, count in (("n", n), ("views", views), ("batch_size", batch_size)):
        whole(name, count)
    check_proper(joint, "samples")
    widths, parts = (views,) * len(joint.sites), []
    known = None
    if covariates is not None:
        if not (decodes_given(joint) or "prior" in joint.conditional):
            raise ValueError(
                "expected covariates for a decoder or likelihood that takes them, got "
                f"{type(joint.decoder).__name__}, which does not; leave them out"
            )
        known = checked_covariates(covariates, n, sum(widths))
    if isinstance(joint.prior, Grouped):
        joint.prior.check_covariates(known or {})
    with evaluating(objective) as like:
        for start in range(0, n, batch_size):
            few = min(batch_size, n - start)
            rows = rows_at(known, slice(start, start + few))
            if rows is not None and like is not None:
                rows = Target(like.device, like.dtype).covariates(rows)
            z = _drawn(joint, sum(widths), few, rows)
            parts.append(mean_views(joint, z, widths, covariates=rows))
    return joined(joint, parts)


def _drawn(joint: Joint, views: int, n: int, known: Covariates | None) -> Tensor:
    """z of n items from the prior, at their groups if it takes some."""
    if isinstance(joint.prior, Grouped):
        return joint.prior(views, covariates=known).sample()
    return joint.prior(views).sample((n,))


def joined(joint: Joint, parts: list[list[np.ndarray]], axis: int = 0) -> Images:
    """Concatenate parts along an axis; for several modalities a tuple."""
    images = tuple(np.concatenate(each, axis) for each in zip(*parts, strict=True))
    return images if joint.several else images[0]


def _single_views(joint: Joint, batch: Batch) -> Batch:
    """The batch of items with a single view of each modality."""
    batch = joint.arranged(batch)
    if set(batch.widths) != {1} or batch.present is not None:
        raise TypeError(
            f"expected single items, got batches of {batch.shape[1]} views, or some "
            "that are absent; reconstruct a Split of one view, or use complete"
        )
    return batch


def _model(objective: nn.Module) -> Any:
    """The joint distribution, if there is one, or the objective, or its base."""
    base = objective.base if isinstance(objective, Extension) else objective
    joint = getattr(base, "joint", None)
    return joint if isinstance(joint, Joint) else base


def _may_differ(objective: nn.Module) -> bool:
    """Whether a joint's objective has a `represent` that is not the package's."""
    joint = _model(objective)
    if not isinstance(joint, Joint) or not hasattr(objective, "represent"):
        return False
    kinds: list[tuple[nn.Module, type[nn.Module]]] = [(joint, Joint)]
    if objective is not joint:
        known = (kind for kind in (SimVAE, VAE, CRVAE) if isinstance(objective, kind))
        kinds.append((objective, next(known, nn.Module)))
    return any(
        getattr(type(part), name, None) is not getattr(kind, name, None)
        or name in vars(part)
        for part, kind in kinds
        for name in ("represent", "alone")
    )


def _differs(
    represent: Callable[[Any], Tensor],
    joint: Joint,
    x: Batch | Tensor | tuple[Tensor, ...],
) -> bool:
    """Whether a representation of single items is not the mean of q(z|x)."""
    if isinstance(x, Batch):
        parts = joint.arranged(x).parts  # in which absent views are filled
    else:
        single = (x,) if isinstance(x, Tensor) else x
        parts = tuple(part.unsqueeze(1) for part in single)
    few = tuple(part[:CHECKED, :1] for part in parts)
    z = represent(tuple(p[:, 0] for p in few) if joint.several else few[0][:, 0])
    try:
        mean = joint.pooled(Batch(few if joint.several else few[0])).flatten(1)
    except ValueError:  # q(z|x) has no mean
        return True
    return z.shape != mean.shape or not torch.allclose(z.to(mean), mean, SAME, SAME)


def _no_deviation(objective: nn.Module) -> ValueError:
    return ValueError(
        "expected z to be the mean of q(z|x) for return_std=True, got "
        f"{type(objective).__name__}, whose represent(x) is another z, of which q(z|x) "
        "tells no standard deviation; leave return_std out, or draw z of q(z|x) by "
        "to_arviz"
    )


def _no_content(objective: nn.Module) -> ValueError:
    return ValueError(
        'expected z to be the mean of q(z|x) for layer="content", got '
        f"{type(objective).__name__}, whose represent(x) is another z, which has no "
        'content dimensions; use layer="backbone", or embed its joint'
    )


def own_z(objective: nn.Module, data: Loadable) -> bool:
    """Whether a joint's objective represents items by another z than q's mean."""
    if not _may_differ(objective):
        return False
    with evaluating(objective) as like:
        x = next(iter(singles(data, like, CHECKED, "embed", 1, True, False)))
        return _differs(representation_of(objective), _model(objective), x)


def _over_views(
    represent: Callable[[Any], Tensor], joint: Joint, batch: Batch
) -> Float[Tensor, "batch dim"]:
    """The mean of an own representation over the present views of each item."""
    batch = joint.arranged(batch)
    if joint.several:
        complete = batch.present is None or bool(batch.present.all())
        if not complete or set(batch.widths) != {1}:
            raise ValueError(
                "expected a view of each modality for a represent(x) of its own, which "
                "takes all modalities, got several of one, or some that are absent; "
                "take the rows that have all, data.rows(data.present.all(1)), and a "
                "view of each"
            )
        return represent(tuple(part[:, 0] for part in batch.parts))
    x = batch.stacked  # in which absent views are filled
    z = represent(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    if batch.present is None:
        return z.mean(1)
    present = batch.present.unsqueeze(-1)
    return z.where(present, 0.0).sum(1) / present.sum(1)


def _modalities(objective: nn.Module) -> int:
    """The number of modalities whose views are encoded."""
    model = _model(objective)
    if isinstance(model, Joint):
        return len(model.sites)
    return len(nets_of(getattr(model, "encoder", model)))


def _content_dim(objective: nn.Module) -> int:
    """The number of content dimensions under the prior of an objective or joint."""
    prior = getattr(_model(objective), "prior", None)
    found: int | None = getattr(prior, "content_dim", None)
    if found is None:
        where = f"the prior {type(prior).__name__}" if prior is not None else "no prior"
        raise ValueError(
            'expected a prior with content and style dimensions for layer="content", '
            f"got {type(objective).__name__} with {where}; build it with "
            'priors.ContentStyle(content, style), or use layer="backbone"'
        )
    base = _model(objective)
    own = isinstance(base, JointEmbedding) and (
        type(base).represent is not JointEmbedding.represent
        or "represent" in vars(base)
    )
    if own:
        raise ValueError(
            'expected the output of the networks as z for layer="content", got '
            f"{type(base).__name__} with a represent(x) of its own, whose columns may "
            'be others; use layer="backbone", and take the columns of the content'
        )
    return found


def representation_of(
    objective: nn.Module, layer: str = "backbone"
) -> Callable[[Any], Tensor]:
    """The function of items that gives their z, of an objective or encoder."""
    choice("layer", layer, LAYERS, "probes usually take the first")
    if layer == "projector" and getattr(objective, "projector", None) is None:
        raise ValueError(
            f'expected an objective with a projector for layer="projector", got '
            f'{type(objective).__name__} without one; use layer="backbone"'
        )
    represent = getattr(objective, "represent", None)

    def encoded(x: Any) -> Float[Tensor, "batch dim"]:
        if represent is not None:  # one of a user may take x alone
            z = represent(x) if layer == "backbone" else represent(x, layer)
        else:
            z = _called(objective, x)
        first = x if isinstance(x, Tensor) else x[0]
        if not is_rows(z, len(first)):
            raise output_error(objective, first, z)
        return z.flatten(1)

    return encoded


def _told_if_random(objective: nn.Module, moved: float) -> None:
    """Warn that z is one draw of several, which differ by up to so much."""
    if moved > 0:
        name = type(objective).__name__
        warnings.warn(
            "z is one random draw: in evaluation mode two calls of the encoder of "
            f"{name} on the same items differ by up to {moved:.3g}; let it draw where "
            "self.training is true, or take the mean of several calls",
            stacklevel=2,
        )


def _called(objective: nn.Module, x: Any) -> Any:
    """The output of a bare encoder."""
    if declares(objective):
        raise TypeError(
            f"expected an encoder of x alone, got {type(objective).__name__}, whose "
            "forward takes covariates; embed the ps.Joint that it is part of"
        )
    try:
        return called(objective, x)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            "expected an encoder, or an objective with represent(x, layer='backbone') "
            f"-> (n, dim), got {type(objective).__name__}, whose forward does not take "
            f"x alone ({error}); give it def represent(self, x, layer='backbone'): "
            "return self.encoder(x)"
        ) from error


def _deviation(
    joint: Joint, x: Batch | Tensor | tuple[Tensor, ...]
) -> Float[Tensor, "batch dim"]:
    """The standard deviation of z, the mean over the present views."""
    q = joint.encode(x) if isinstance(x, Batch) else joint.alone(x)
    # Of each view, where absent ones follow the prior.
    each = q.each if isinstance(q, Completed) else q
    apart = each is not q or isinstance(q, Independent | Delta)
    if q.event_shape[0] > 1 and not apart:
        raise ValueError(
            "expected views that are independent under q(z|x) for the standard "
            f"deviation of their mean, got {type(q).__name__}; take that of draws by "
            "to_arviz, or leave return_std out"
        )
    try:
        variance = each.stddev.square()
    except NotImplementedError:
        raise ValueError(
            f"expected q(z|x) to have a standard deviation, got {type(q).__name__}, "
            "which has none in closed form; draw from it with to_arviz"
        ) from None
    weight = variance.new_ones(variance.shape[:2])
    if isinstance(x, Batch) and x.present is not None:
        weight = x.present.to(variance.dtype)
    weight = weight.unsqueeze(-1)
    # Absent views have a variance, whose weight is zero.
    return (weight * variance).sum(1).sqrt() / weight.sum(1)
