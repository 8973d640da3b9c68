"""The joint of an objective, and checks of what it can be used for."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..arrays import plain
from ..data.batches import Loadable, Views
from ..guides import Point
from ..joint import Joint
from ..terms import Batch
from .items import batches

__all__ = ["check_density", "check_proper", "check_spread", "checked", "decoded"]
__all__ += ["joint_of", "mean_views"]


def joint_of(objective: nn.Module, what: str) -> Joint:
    """The joint distribution of an objective; raises a ValueError without one."""
    joint = getattr(objective, "joint", objective)
    if not isinstance(joint, Joint):
        raise ValueError(
            f"expected an objective with a joint distribution for {what}, got "
            f"{type(objective).__name__}, which has no p(x, z) and no random "
            "hyper-parameter; fit SimVAE or VAE, or use embed alone"
        )
    return joint


def checked(
    joint: Joint,
    data: Loadable,
    like: Tensor | None,
    views: Views | None,
    size: int,
    title: str,
) -> Iterator[Batch]:
    """The batches of all items in order, each checked for the joint as by `fit`."""
    for given in batches(data, like, views, size, title):
        batch = joint.arranged(given)
        joint.check(batch)
        yield batch


def decoded(
    joint: Joint, z: Tensor, widths: Sequence[int]
) -> tuple[TorchDistribution, ...]:
    """p(x_v | z_v) of each modality; `widths` are their numbers of views."""
    if joint.several:
        return joint.decode(z.split(list(widths), -2))
    return (joint.decode(z),)


def mean_views(joint: Joint, z: Tensor, widths: Sequence[int]) -> list[np.ndarray]:
    """The mean of each p(x_v | z_v).

    Raises:
        ValueError: If p(x|z) has no mean.
    """
    found = []
    for p in decoded(joint, z, widths):
        try:
            mean = plain(p.mean)
        except NotImplementedError:
            mean = np.full(1, np.nan)
        if np.isnan(mean).any() and not bool(z.isnan().any()):
            raise ValueError(
                f"expected a p(x|z) with a mean, got {p}, which has none or NaN; "
                "draw from p(x|z): joint.decode(z).sample()"
            )
        found.append(mean)
    return found


def check_proper(joint: Joint, what: str) -> None:
    """Raise a ValueError if p(y) is flat, so that z has no distribution."""
    device = next(joint.parameters(), torch.empty(0)).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            joint.prior(2).sample()
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"expected a proper p(y) for {what}, got a flat one (y_scale=math.inf), "
            "under which z has no distribution; give the prior a finite y_scale, for "
            "instance y_scale=1.0"
        ) from error


def check_spread(joint: Joint, what: str) -> None:
    """Raise a ValueError if the guide is a point, which has no density."""
    if isinstance(joint.posterior, Point):
        raise ValueError(
            f"expected a guide with a density for {what}, got guides.Point; build the "
            "joint with guides.DiagonalGaussian or guides.Coupled"
        )


def check_density(joint: Joint, what: str) -> None:
    """Raise a ValueError if the likelihood is no density of x."""
    if joint.likelihood.pseudo:
        raise ValueError(
            f"expected a likelihood with a density of x for {what}, got "
            f"{type(joint.likelihood).__name__}, here a pseudo-likelihood; build the "
            "joint with a real one, for instance likelihoods.Binomial(levels)"
        )
