"""Means of the posterior, and what the decoder makes of them."""

from collections.abc import Callable
from typing import Literal, overload

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from ..joint import Joint
from .items import Array, Data, Items, array, evaluating
from .joints import check_proper, joint_of

__all__ = ["embed", "reconstruct", "sample"]


@overload
def embed(
    objective: nn.Module,
    data: Data,
    *,
    layer: str = ...,
    return_std: Literal[False] = False,
    batch_size: int = ...,
) -> Float[Array, "item dim"]: ...


@overload
def embed(
    objective: nn.Module,
    data: Data,
    *,
    layer: str = ...,
    return_std: Literal[True],
    batch_size: int = ...,
) -> tuple[Float[Array, "item dim"], Float[Array, "item dim"]]: ...


def embed(
    objective: nn.Module,
    data: Data,
    *,
    layer: str = "backbone",
    return_std: bool = False,
    batch_size: int = 1024,
) -> Array | tuple[Array, Array]:
    r"""Return the representation of each item seen alone: of a joint the mean of q.

    Arguments:
        objective: An objective, a joint, or a bare encoder.
        data: A `Split`, or a tensor or array (n, \*event); bytes stand for k/255.
        layer: ``"backbone"``, or ``"projector"`` for what the objective compares.
        return_std: Whether to return the standard deviation of q(z|x) as well.

    Raises:
        TypeError: If the data are of no known kind.
        ValueError: If there is no such layer, or q(z|x) has no standard deviation.
    """
    represent = _represent(objective, layer)
    joint = joint_of(objective, "return_std=True") if return_std else None
    means, deviations = [], []
    with evaluating(objective) as like:
        items = Items(data, like)
        for rows in items.rows(batch_size, "embed"):
            x = items.alone(rows)
            means.append(array(represent(x)))
            if joint is not None:
                deviations.append(array(_deviation(joint, x)))
    z = np.concatenate(means)
    return (z, np.concatenate(deviations)) if return_std else z


def reconstruct(
    objective: nn.Module, data: Data, *, batch_size: int = 1024
) -> Float[Array, "item *event"]:
    """Return the mean of p(x | z) where z is the mean of q(z|x), each item seen alone.

    Raises:
        ValueError: If the objective has no decoder.
    """
    joint = joint_of(objective, "reconstructions")
    means = []
    with evaluating(objective) as like:
        items = Items(data, like)
        for rows in items.rows(batch_size, "reconstruct"):
            z = joint.prior.on_support(joint.represent(items.alone(rows)))
            means.append(array(joint.decode(z.unsqueeze(1)).mean.squeeze(1)))
    return np.concatenate(means)


def sample(
    objective: nn.Module, n: int, views: int = 2, *, batch_size: int = 1024
) -> Float[Array, "item view *event"]:
    """Return the mean of p(x_v | z_v) for n draws of z_1..V from the prior.

    Random hyper-parameters stand at the median of their guide.

    Raises:
        ValueError: If the objective has no decoder, or p(y) is flat.
    """
    if min(n, views, batch_size) < 1:
        raise ValueError(
            f"expected n, views and batch_size of at least 1, got {n}, {views} and "
            f"{batch_size}; raise them"
        )
    joint = joint_of(objective, "samples")
    check_proper(joint, "samples")
    means = []
    with evaluating(objective):
        for start in range(0, n, batch_size):
            z = joint.prior(views).sample((min(batch_size, n - start),))
            means.append(array(joint.decode(z).mean))
    return np.concatenate(means)


def _represent(objective: nn.Module, layer: str) -> Callable[[Tensor], Tensor]:
    if layer not in ("backbone", "projector"):
        raise ValueError(
            f'expected layer to be "backbone" or "projector", got {layer!r}; '
            '"backbone" is what probes are usually fitted on'
        )
    if layer == "projector" and getattr(objective, "projector", None) is None:
        raise ValueError(
            f'expected an objective with a projector for layer="projector", got '
            f'{type(objective).__name__} without one; use layer="backbone"'
        )
    represent = getattr(objective, "represent", None)
    if represent is None:
        return lambda x: _encoded(objective(x), objective)
    return lambda x: represent(x, layer)


def _encoded(z: object, encoder: nn.Module) -> Float[Tensor, "batch dim"]:
    if not isinstance(z, Tensor) or z.ndim < 2:
        shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"expected {type(encoder).__name__} to return z of shape (n, dim), got "
            f"{shape}; pass the encoder, or give your objective represent(x, layer)"
        )
    return z.flatten(1)


def _deviation(joint: Joint, x: Tensor) -> Float[Tensor, "batch dim"]:
    q = joint.alone(x)
    try:
        return q.stddev.squeeze(1)
    except NotImplementedError:
        raise ValueError(
            f"expected q(z|x) to have a standard deviation, got {type(q).__name__}, "
            "which has none in closed form; draw from it with to_arviz"
        ) from None
