"""The posterior of the content y: draws given those of z, and its moments."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from jaxtyping import Float, Shaped
from pyro import poutine
from pyro.distributions import Categorical
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import plain
from ..data.batches import Loadable, Views
from ..distributions.supports import has_density_of
from ..joint import Joint
from ..nn.base import takes
from ..priors import Custom, Grouped, Prior
from ..terms import Batch
from .items import BAR_DELAY, chunks, evaluating
from .joints import check_guides, check_proper, check_spread, checked, joint_of

__all__ = ["PosteriorY", "draw_content", "posterior_y", "with_component"]

COMPONENT, SHARES = "component", "component_probs"


class PosteriorY(NamedTuple):
    r"""The posterior of the content of each item, :math:`p(y \mid x_1, \dots, x_V)`.

    Arguments:
        mean: Of the draws, (item, dim); on a sphere inside it. None of classes.
        std: Their standard deviation, (item, dim), or None.
        draws: Of y, (draw, item, dim); of the component, (draw, item), where y is one.
        shares: The posterior of the components, (item, component), None without.
    """

    mean: Float[np.ndarray, "item *dim"] | None
    std: Float[np.ndarray, "item *dim"] | None
    draws: Shaped[np.ndarray, "draw item *dim"]
    shares: Float[np.ndarray, "item component"] | None


@typed
def posterior_y(
    objective: nn.Module,
    data: Loadable,
    *,
    views: Views | None = None,
    draws: int = 100,
    batch_size: int = 64,
) -> PosteriorY:
    r"""Draw from the posterior of the content y of each item.

    .. math:: p(y \mid x_1, \dots, x_V) \approx \int
        p(y \mid z_1, \dots, z_V, h) \, q(z_1, \dots, z_V \mid x, h) \, q(h) \, dz \, dh

    It is exact as far as q is the posterior of z and of the random hyper-parameters h.
    With an explicit content y is drawn from its guide. Observed contents of the data
    are conditioned on; absent views are integrated out.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one per modality; or a DataLoader that does not shuffle.
        views: A sampler of views, all of which are conditioned on. By default an item
            is its only view.
        draws: The number of draws.

    Raises:
        ValueError: If there is no joint distribution, no posterior with a density, a
            flat p(y), or a prior without p(y); or data outside the support of the
            likelihood.
    """
    draws = whole("draws", draws)
    joint = joint_of(objective, "a posterior of y")
    check_proper(joint, "a posterior of y")
    check_spread(joint, "a posterior of y")
    if joint.content is None and not hasattr(joint.prior, "posterior_y"):
        raise ValueError(
            "expected a prior with a content y for its posterior, got "
            f"{type(joint.prior).__name__}, which has none; take priors.Gaussian or "
            "another, or write posterior_y(self, z, present=None, **drawn)"
        )
    parts: list[dict[str, np.ndarray]] = []
    with evaluating(objective) as like:
        for batch in checked(joint, data, like, views, batch_size, "posterior of y"):
            check_guides(joint, batch, "a posterior of y")
            parts.append(_drawn(joint, batch, draws))
    found = {name: np.concatenate([p[name] for p in parts], 1) for name in parts[0]}
    shares = found[SHARES].mean(0) if SHARES in found else None
    if "y" not in found:
        return PosteriorY(None, None, found[COMPONENT], shares)
    y = found["y"]
    if y.dtype.kind != "f":
        return PosteriorY(None, None, y, shares)
    return PosteriorY(y.mean(0), y.std(0), y, shares)


def _drawn(joint: Joint, batch: Batch, draws: int) -> dict[str, np.ndarray]:
    each = []
    for n in tqdm(chunks(draws, batch), "draws", delay=BAR_DELAY, leave=False):
        with pyro.plate("particles", n, dim=-2):
            guide: Any = poutine.trace(joint.guide).get_trace(batch).nodes
        hypers = {h.name: guide[h.name]["value"] for h in joint.prior.random()}
        if "y" in guide:
            found = with_component(joint.prior, guide["y"]["value"], hypers, batch)
        else:
            found = draw_content(joint.prior, guide["z"]["value"], hypers, batch)
        each.append({name: plain(value) for name, value in found.items()})
    return {name: np.concatenate([part[name] for part in each]) for name in each[0]}


def draw_content(
    prior: Prior,
    z: Tensor,
    hypers: Mapping[str, Tensor],
    batch: Batch | None = None,
) -> dict[str, Tensor]:
    """Draw y, or the component with its shares, from p(y, k | z_1..V, h).

    Empty for a prior without ``posterior_y``.

    Arguments:
        z: Shape (draw, item, view, dim).
        hypers: Drawn hyper-parameters, each with the axes (draw, 1).
        batch: The items, with their present views and known components; None where all
            are present and none is known.
    """
    method: Any = getattr(prior, "posterior_y", None)
    if method is None:
        return {}
    present = None if batch is None else batch.present
    given = _given(hypers, batch) | _groups(prior, batch)
    takes("posterior_y", method, z, present, **given)
    y = method(z, present, **given)
    try:
        parts = prior.component().logits.shape[-1]
    except ValueError:  # there are no components
        return {"y": y.sample()}
    mixed = _is_mixture(y)
    shares = y.mixture_distribution if mixed else y
    known = isinstance(shares, torch.distributions.Categorical)
    fits = known and shares.logits.shape[-1] == parts
    if not fits and not isinstance(prior, Custom):
        raise TypeError(
            f"expected posterior_y of {type(prior).__name__}, which has {parts} "
            f"components, as a MixtureSameFamily of {parts}, of which y is drawn, or a "
            f"Categorical, got {type(y).__name__}, or one of another number; build it "
            "as pyro.distributions.MixtureSameFamily"
        )
    if not fits or _later(prior, "responsibilities", "posterior_y"):
        shares = prior.responsibilities(z, present, **given)
    k = shares.sample()
    found = {COMPONENT: k, SHARES: shares.probs}
    if mixed and fits:
        found["y"] = _of_component(y.component_distribution.sample(), k)
    elif isinstance(prior, Custom):
        found["y"] = prior.states()[k]
    return found


def _later(prior: Prior, one: str, other: str) -> bool:
    """Whether one method is of a subclass of the class that has the other."""
    classes = type(prior).__mro__
    first = [next(k for k in classes if name in vars(k)) for name in (one, other)]
    return first[0] is not first[1] and issubclass(*first)


def _groups(prior: Prior, batch: Batch | None) -> dict[str, Any]:
    """The covariates, for a prior that takes them."""
    known = None if batch is None else batch.covariates
    return {"covariates": known} if known and isinstance(prior, Grouped) else {}


def _given(hypers: Mapping[str, Tensor], batch: Batch | None) -> dict[str, Tensor]:
    """Drawn hyper-parameters and known components."""
    known = None if batch is None else batch.content
    return dict(hypers) | ({} if known is None else {COMPONENT: known})


def with_component(
    prior: Prior,
    y: Tensor,
    hypers: Mapping[str, Tensor],
    batch: Batch | None = None,
) -> dict[str, Tensor]:
    """y, and the component drawn from p(k|y) with its shares, if p(y) is a mixture."""
    try:
        mixture = prior.content(**_given(hypers, batch))
    except TypeError:  # p(y) is not known
        return {"y": y}
    if not _is_mixture(mixture):
        return {"y": y}
    each = mixture.component_distribution.log_prob(y.unsqueeze(-2))
    shares = Categorical(logits=mixture.mixture_distribution.logits + each)
    return {"y": y, COMPONENT: shares.sample(), SHARES: shares.probs}


def _is_mixture(y: Any) -> bool:
    """Whether it is a mixture of its components; a subclass may have others."""
    return has_density_of(y, MixtureSameFamily)


def _of_component(y: Tensor, k: Tensor) -> Tensor:
    """The row of the component, y of shape (draw, item, component, dim)."""
    index = k[..., None, None].expand(*k.shape, 1, y.shape[-1])
    return torch.take_along_dim(y, index, -2).squeeze(-2)
