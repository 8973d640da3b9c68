"""The joint of an objective, and checks of what it can be used for."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pyro.distributions import Independent, MaskedDistribution, TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn

from ..arrays import plain
from ..covariates import Covariates, given
from ..data.batches import Loadable, Views
from ..distributions.supports import is_point, narrower
from ..guides import Point
from ..guides.views import Completed
from ..joint import Joint
from ..runtime.randomness import restored_randomness
from ..terms import Batch
from .items import batches

__all__ = ["at_covariates", "check_density", "check_guides", "check_no_covariates"]
__all__ += ["check_one_prior", "check_unconditional"]
__all__ += ["check_proper", "check_spread", "checked", "decoded", "decodes_given"]
__all__ += ["joint_of", "mean_views"]


def joint_of(objective: nn.Module, what: str) -> Joint:
    """The joint distribution of an objective; raises a ValueError without one."""
    joint = getattr(objective, "joint", objective)
    if not isinstance(joint, Joint):
        raise ValueError(
            f"expected an objective with a joint distribution for {what}, got "
            f"{type(objective).__name__}, which has no p(x, z) and no random "
            "hyper-parameter; fit SimVAE or VAE, or use embed alone, whose argmax is "
            "the class where the outputs are logits of classes"
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
    for taken in batches(data, like, views, size, title):
        batch = joint.arranged(taken)
        joint.check(batch)
        yield batch


def decoded(
    joint: Joint,
    z: Tensor,
    widths: Sequence[int],
    covariates: Covariates | None = None,
) -> tuple[TorchDistribution, ...]:
    """p(x_v | z_v) of each modality; `widths` are their numbers of views.

    Arguments:
        covariates: Those of the items, for parts that take them.
    """
    known = given(covariates if decodes_given(joint) else None)
    if joint.several:
        return joint.decode(z.split(list(widths), -2), **known)
    return (joint.decode(z, **known),)


def check_unconditional(joint: Joint, what: str) -> None:
    """Raise a ValueError for a joint whose parts take covariates."""
    if joint.conditional:
        raise ValueError(
            f"expected a joint without covariates for {what}, got one with some in its "
            f"{' and '.join(joint.conditional)}; draw z by ps.to_arviz, and decode it "
            "at covariates of your own: joint.decode(z, covariates)"
        )


def check_one_prior(joint: Joint, what: str) -> None:
    """Raise a ValueError if items of different groups have different priors."""
    if "prior" in joint.conditional:
        raise ValueError(
            f"expected one p(z) of all items for {what}, got "
            f"{type(joint.prior).__name__}, under which each group has its own; "
            "compare q(z|x) with the prior of each item by evidence(…) or to_arviz(…)"
        )


def decodes_given(joint: Joint) -> bool:
    """Whether p(x|z) is conditional on covariates."""
    return bool({"decoder", "likelihood"} & {*joint.conditional})


def at_covariates(p: TorchDistribution, x: Tensor) -> TorchDistribution:
    """p(x|z) at the covariates in x, where its distribution has a method `given`."""
    if isinstance(p, Independent | MaskedDistribution | ExpandedDistribution):
        inside: TorchDistribution = at_covariates(p.base_dist, x)
        if inside is p.base_dist:
            return p
        if isinstance(p, Independent):
            return inside.to_event(p.reinterpreted_batch_ndims)
        return inside.mask(p._mask) if isinstance(p, MaskedDistribution) else inside
    given = getattr(p, "given", None)
    if given is None:
        return p
    at: TorchDistribution = given(x.expand(torch.broadcast_shapes(x.shape, p.shape())))
    return at


def check_no_covariates(p: TorchDistribution) -> None:
    """Raise a ValueError if p(x|z) has covariates, which absent views lack."""
    while isinstance(p, Independent | MaskedDistribution | ExpandedDistribution):
        p = p.base_dist
    if hasattr(p, "given"):
        raise ValueError(
            "expected a p(x|z) without covariates, which absent views lack, got "
            f"{type(p).__name__} with a method given; draw z by to_arviz, and give "
            "p(x|z) of joint.decode(z) the covariates"
        )


def mean_views(
    joint: Joint,
    z: Tensor,
    widths: Sequence[int],
    parts: Sequence[Tensor] | None = None,
    covariates: Covariates | None = None,
) -> list[np.ndarray]:
    """The mean of each p(x_v | z_v), at the covariates in x if there are any.

    Arguments:
        parts: x of each modality.
        covariates: Those of the items, as for `decoded`.

    Raises:
        ValueError: If p(x|z) has no mean.
    """
    found = []
    for i, p in enumerate(decoded(joint, z, widths, covariates)):
        if parts is not None:
            p = at_covariates(p, parts[i].reshape(p.shape()))
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
        with restored_randomness([device] if device.type == "cuda" else []):
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
        raise _no_density("guides.Point", what)


def check_guides(
    joint: Joint, batch: Batch, what: str, *, weighted: bool = False
) -> None:
    """Raise a ValueError if a guide gives a point mass for a batch.

    Arguments:
        weighted: Whether draws have importance weights: the guides must then have all
            of the support of the prior.
    """
    device = batch.parts[0].device
    with restored_randomness([device] if device.type == "cuda" else []):
        q = joint.encode(batch)
        z = q.sample((3,))
        pairs = [(joint.posterior, q, joint.prior(batch.shape[1]), z, batch.present)]
        if joint.content is not None:
            y = joint.content(z[0])
            p = joint.prior.content()
            pairs.append((joint.content, y, p, y.sample((3,)), None))
    for guide, q, p, draws, present in pairs:
        name = type(guide).__name__
        moved = draws != draws[:1]
        if present is not None:
            moved = moved & present.unsqueeze(-1)
        alike = ~moved.movedim(1, 0).flatten(1).any(1)  # of each item
        if is_point(q) or bool(alike.any()):
            raise _no_density(f"{name}, which returns a point mass", what)
        each = q.each if isinstance(q, Completed) else q  # of the present views
        lacking = narrower(each, p) if weighted else None
        if lacking is not None:
            own, whole = lacking
            raise ValueError(
                f"expected a guide with all of the support of the prior for {what}, "
                f"got {name} on {own}, and {type(joint.prior).__name__} on {whole}: "
                "importance weights lack what lies outside, and give a lower bound "
                "only, however many draws; take a guide on that support, or for the "
                "evidence refine=500, a proposal on all of it"
            )


def _no_density(got: str, what: str) -> ValueError:
    return ValueError(
        f"expected a guide with a density for {what}, got {got}; build the joint with "
        "guides.DiagonalGaussian or guides.Coupled"
    )


def check_density(joint: Joint, what: str) -> None:
    """Raise a ValueError if the likelihood is no density of x."""
    if joint.likelihood.pseudo:
        raise ValueError(
            f"expected a likelihood with a density of x for {what}, got "
            f"{type(joint.likelihood).__name__}, here a pseudo-likelihood; build the "
            "joint with a real one, for instance likelihoods.Binomial(levels)"
        )
