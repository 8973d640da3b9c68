"""Draws from posterior and prior, with their predictives, for ArviZ."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..arguments import typed, whole
from ..arrays import plain
from ..data.batches import Items, Loadable, Views, rows_of
from ..data.splits import Groups, Split
from ..joint import Joint
from ..limits._base import Embedding
from ..terms import Batch
from .containers import Variable, container, provenance
from .items import BAR_DELAY, chunks, evaluating
from .joints import at_covariates, check_proper, check_spread, joint_of

if TYPE_CHECKING:
    import arviz
    import xarray

__all__ = ["to_arviz"]

Draws = dict[str, Tensor]


@typed
def to_arviz(
    objective: nn.Module,
    data: Loadable,
    *,
    draws: int = 500,
    items: int | Sequence[int] = 100,
    views: Views | None = None,
    predictive: bool = True,
) -> "arviz.InferenceData | xarray.DataTree":
    r"""Draw from the posterior and the prior of some items, as a container for ArviZ.

    It is InferenceData for ArviZ 0.2x, a DataTree for 1.x, with the groups

    ====================  =========================================================
    posterior             z (chain, draw, item, view, dim), y (chain, draw, item, dim)
                          if it is explicit (y_dim where it differs), and random
                          hyper-parameters (chain, draw), from the guide
    posterior_predictive  x (chain, draw, item, view, \*event)
    sample_stats          log_p = log p(x, z | h), log_q = log q(z | x, h) of each item
                          (with y, where it is explicit):
                          their difference is the log importance weight;
                          for random hyper-parameters h log_p_hyper and log_q_hyper
    log_likelihood        x: log p(x | z) of each item, given its own z, without absent
                          views
    prior                 z (chain, draw, view, dim) of any item, hyper-parameters
    prior_predictive      x (chain, draw, view, \*event)
    observed_data         x (item, view, \*event), NaN where a view is absent
    constant_data         label (item), if there are labels
    ====================  =========================================================

    Several modalities are x_0, x_1 and so on. With observed contents log_p includes
    the component.

    Draws are independent: there is one chain, and chain diagnostics such as R-hat do
    not apply; use ``az.summary(idata, kind="stats")``. Leave-one-out does not apply
    either: without its item a z has only its prior, so that LOO is `evidence`.

    An objective without a joint, such as SimCLR, has a pseudo-posterior of its random
    hyper-parameters, conditional on the encoder (see `Embedding`), in the groups
    posterior, sample_stats and prior.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one per modality; or a DataLoader that does not shuffle.
        draws: The number of draws.
        items: A number of items, the first ones (`Split.take` draws a random subset),
            or row numbers, which become the coordinates of "item".
        views: A sampler; the posterior is then that given all views of an item. By
            default an item is its only view.
        predictive: Whether to draw x from prior and posterior predictive: in float32
            4 · draws · items · views · pixels bytes, 160 MB for 100 images of MNIST.

    Raises:
        ValueError: If there is no posterior with a density, p(y) is flat, or the data
            are outside the support of the likelihood.
    """
    draws = whole("draws", draws, hint="500 is usual")
    if isinstance(objective, Embedding) and any(objective.prior.random()):
        return container(*_pseudo_posterior(objective, draws))
    joint = joint_of(objective, "a posterior")
    check_proper(joint, "prior and posterior")
    check_spread(joint, "a posterior")
    with evaluating(objective) as like:
        if isinstance(data, DataLoader):
            data = rows_of(data, _needed(items))
        source = Items(data, like, views)
        rows = _rows(items, len(source))
        batch = joint.arranged(source.batch(torch.from_numpy(rows)))
        joint.check(batch)
        after = _many(_posterior, joint, batch, draws, predictive)
        parts = batch.parts  # one item: the prior ignores its data
        anyone = Batch(tuple(x[:1] for x in parts) if joint.several else parts[0][:1])
        before = _many(_prior, joint, anyone, draws, predictive)
    groups = _sampled(joint, after, before) | _observed(joint, data, batch, rows)
    return container(groups, {"item": rows}, _attrs(joint))


def _many(
    draw: Callable[[Joint, Batch, int, bool], Draws],
    joint: Joint,
    batch: Batch,
    draws: int,
    predictive: bool,
) -> dict[str, np.ndarray]:
    """Draws in parts that fit into memory, concatenated on the host."""
    found: dict[str, np.ndarray] = {}
    done, sizes = 0, chunks(draws, batch)
    for n in tqdm(sizes, "draws", delay=BAR_DELAY, unit="part"):
        for name, values in draw(joint, batch, n, predictive).items():
            part = plain(values)
            if name not in found:
                found[name] = np.empty((draws, *part.shape[1:]), part.dtype)
            found[name][done : done + n] = part
        done += n
    return found


def _posterior(joint: Joint, batch: Batch, n: int, predictive: bool) -> Draws:
    with pyro.plate("particles", n, dim=-2):
        guide = poutine.trace(joint.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(joint.model, guide)).get_trace(batch)
    q: dict[str, Any] = dict(guide.nodes)
    p: dict[str, Any] = dict(model.nodes)
    latent = [name for name in ("z", "y") if name in p]
    likelihoods = {f"log_{name}": _log_prob(p[name]) for name in joint.sites}
    rest = latent + ["component"] * ("component" in p)
    log_p = [*likelihoods.values(), *(_log_prob(p[name]) for name in rest)]
    found = {name: q[name]["value"] for name in latent} | {
        **likelihoods,
        "log_p": torch.stack(log_p).sum(0),
        "log_q": torch.stack([_log_prob(q[name]) for name in latent]).sum(0),
    }
    hyper = [h.name for h in joint.prior.random()]
    if hyper:
        found["log_p_hyper"] = torch.cat([_log_prob(p[h]) for h in hyper], 1).sum(1)
        found["log_q_hyper"] = torch.cat([_log_prob(q[h]) for h in hyper], 1).sum(1)
    if predictive:
        sites = {name: (p[name]["fn"], p[name]["value"]) for name in joint.sites}
        found |= {name: at_covariates(*site).sample() for name, site in sites.items()}
    return found | {h: q[h]["value"].squeeze(1) for h in hyper}


def _prior(joint: Joint, batch: Batch, n: int, predictive: bool) -> Draws:
    with pyro.plate("particles", n, dim=-2):
        model = poutine.trace(poutine.uncondition(joint.model)).get_trace(batch)
    p: dict[str, Any] = dict(model.nodes)
    names: list[str] = [name for name in ("z", "y") if name in p]
    names += [*joint.sites] * predictive + [h.name for h in joint.prior.random()]
    return {name: p[name]["value"].squeeze(1) for name in names}


def _log_prob(site: Any) -> Tensor:
    return site["fn"].log_prob(site["value"])


def _named(values: np.ndarray, *axes: str) -> Variable:
    """Draws of one chain; axes that are not named are those of a hyper-parameter."""
    dims = ("dim",) * (values.ndim - 1 - len(axes))
    return ("chain", "draw", *axes, *dims), values[None]


def _number(name: str, values: np.ndarray, dim: int | None) -> Variable:
    """Draws of a hyper-parameter; numbers that are not one a dimension have an axis."""
    own = values.ndim > 1 and values.shape[-1] != dim
    return _named(values, *[f"{name}_dim"] * own)


def _sampled(
    joint: Joint, after: dict[str, np.ndarray], before: dict[str, np.ndarray]
) -> dict[str, dict[str, Variable]]:
    """The groups of draws, with the names of their axes."""
    axes = {"z": ("view", "dim"), "y": ("dim",)}
    if "y" in before and before["y"].shape[-1] != before["z"].shape[-1]:
        axes["y"] = ("y_dim",)
    latent = [name for name in axes if name in before]
    hyper = [name for name in before if name not in {*latent, *joint.sites}]
    groups = {
        "posterior": {n: _named(after[n], "item", *axes[n]) for n in latent},
        "sample_stats": {n: _named(after[n], "item") for n in ("log_p", "log_q")},
        "prior": {n: _named(before[n], *axes[n]) for n in latent},
    }
    dim = before["z"].shape[-1]
    groups["posterior"] |= {n: _number(n, after[n], dim) for n in hyper}
    groups["sample_stats"] |= {n: _named(after[n]) for n in after if n[-6:] == "_hyper"}
    groups["prior"] |= {n: _number(n, before[n], dim) for n in hyper}
    if not joint.likelihood.pseudo:
        groups["log_likelihood"] = {
            name: _named(after[f"log_{name}"], "item") for name in joint.sites
        }
    if joint.sites[0] in after:
        views = {n: _axes(joint, n, before[n].ndim - 2) for n in joint.sites}
        groups["posterior_predictive"] = {
            name: _named(after[name], "item", *own) for name, own in views.items()
        }
        groups["prior_predictive"] = {
            name: _named(before[name], *own) for name, own in views.items()
        }
    return groups


def _observed(
    joint: Joint, data: Loadable, batch: Batch, rows: np.ndarray
) -> dict[str, dict[str, Variable]]:
    parts = list(map(plain, batch.parts))
    if batch.present is not None:
        seen = np.split(plain(batch.present), np.cumsum(batch.widths)[:-1], 1)
        parts = [
            np.where(one.reshape(*one.shape, *[1] * (x.ndim - 2)), x, np.nan)
            for x, one in zip(parts, seen, strict=True)
        ]
    groups: dict[str, dict[str, Variable]] = {"observed_data": {}}
    for name, x in zip(joint.sites, parts, strict=True):
        axes = ("item", *_axes(joint, name, x.ndim - 2))
        groups["observed_data"][name] = axes, x
    labels = data.labels if isinstance(data, Split | Groups) else None
    if labels is not None:
        groups["constant_data"] = {"label": (("item",), plain(labels)[rows])}
    return groups


def _axes(joint: Joint, name: str, event: int) -> tuple[str, ...]:
    """Names for the axes of the views, of one modality those of z."""
    image = ("channel", "height", "width")
    own = image if event == 3 else tuple(f"axis_{i}" for i in range(event))
    axes = ("view", *own)
    return tuple(f"{axis}_{name}" for axis in axes) if joint.several else axes


def _attrs(joint: Joint) -> dict[str, str]:
    attrs = provenance() | {"measure": joint.likelihood.measure}
    if joint.likelihood.pseudo:
        attrs["log_likelihood"] = (
            f"left out: {type(joint.likelihood).__name__} is a pseudo-likelihood, no "
            "density of x"
        )
    return attrs


def _needed(items: int | Sequence[int]) -> int:
    """The number of items to load, of which some are chosen."""
    if isinstance(items, int | np.integer):
        return int(items)
    return max(len(items), int(max(items, default=0)) + 1)


def _rows(items: int | Sequence[int], count: int) -> np.ndarray:
    """The row numbers of the chosen items."""
    if isinstance(items, int | np.integer):
        rows = np.arange(min(int(items), count))
    else:
        rows = np.asarray(items)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    known = rows.ndim == 1 and rows.dtype.kind in "iu" and len(rows) > 0
    if not known or rows.min() < 0 or rows.max() >= count:
        raise ValueError(
            f"expected items as a number of at least 1 or a list of row numbers from 0 "
            f"to {count - 1}, got {items!r}; for instance items=100 or items=[0, 7]"
        )
    return rows.astype(np.int64)


@torch.no_grad()
def _pseudo_posterior(
    objective: Embedding, draws: int
) -> tuple[dict[str, dict[str, Variable]], dict[str, list[str]], dict[str, str]]:
    """Groups, coords and attrs for an objective without a joint."""
    groups: dict[str, dict[str, Variable]] = {"posterior": {}, "prior": {}}
    log_p, log_q = torch.zeros(draws), torch.zeros(draws)
    for h in objective.prior.random():
        q = h.posterior()
        drawn, before = q.sample((draws,)), h.value.sample((draws,))
        dim = objective.prior.dim
        groups["posterior"][h.name] = _number(h.name, plain(drawn), dim)
        groups["prior"][h.name] = _number(h.name, plain(before), dim)
        log_p = log_p + h.value.log_prob(drawn).cpu()
        log_q = log_q + q.log_prob(drawn).cpu()
    groups["sample_stats"] = {
        "log_p_hyper": _named(plain(log_p)),
        "log_q_hyper": _named(plain(log_q)),
    }
    attrs = provenance() | {
        "posterior": "pseudo-posterior: the objective as the log-likelihood of an "
        "item, conditional on the encoder",
    }
    return groups, {}, attrs
