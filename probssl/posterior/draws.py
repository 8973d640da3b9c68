"""Draws from posterior and prior, with their predictives, for ArviZ."""

import math
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
from ..covariates import rows_at
from ..data.batches import Items, Loadable, Views, rows_of
from ..data.splits import Groups, Split
from ..joint import Joint
from ..limits._base import Embedding
from ..terms import Batch
from .containers import Variable, container, provenance
from .contents import COMPONENT, SHARES, draw_content, with_component
from .evidence import weigh
from .items import BAR_DELAY, chunks, evaluating
from .joints import (
    at_covariates,
    check_density,
    check_guides,
    check_proper,
    check_spread,
    decoded,
    decodes_given,
    joint_of,
)

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
    particles: int | None = None,
    content: bool = True,
) -> "arviz.InferenceData | xarray.DataTree":
    r"""Draw from the posterior and the prior of some items, as a container for ArviZ.

    It is InferenceData for ArviZ 0.2x, a DataTree for 1.x, with the groups

    ====================  =========================================================
    posterior             z (chain, draw, item, view, dim) and random hyper-parameters
                          (chain, draw) from the guide, the effects u of
                          `priors.Grouped` (chain, draw, group, dim); given these and z
                          of all views, absent ones too, from the prior
                          the content y (chain, draw, item, dim), y_dim where its
                          dimension differs, and of a prior with components component
                          (chain, draw, item), component_probs (…, k)
    posterior_predictive  x (chain, draw, item, view, \*event); NaN where an absent view
                          has no covariates for p(x|z)
    sample_stats          log_p = log p(x, z | h), log_q = log q(z | x, h) of each item
                          (with y, where it has a guide of its own):
                          their difference is the log importance weight;
                          for random hyper-parameters h log_p_hyper and log_q_hyper;
                          log_p_x_given_z = log p(x | z), without absent views, if
                          that is a density;
                          with `particles` log_evidence, ess, pareto_k (item)
    prior                 z (chain, draw, view, dim) of any item, hyper-parameters, y,
                          component
    prior_predictive      x (chain, draw, view, \*event); not where p(x|z) is
                          conditional on covariates, which only an item has
    observed_data         x (item, view, \*event), NaN where a view is absent
    constant_data         label (item), if there are labels; label_name, if they have
                          names, "" of items without a label (-1); covariates by name,
                          (item, …), of views (item, view, …)
    ====================  =========================================================

    Several modalities are x_0, x_1 and so on. With observed contents log_p includes
    the component.

    Draws are independent: there is one chain, and chain diagnostics such as R-hat do
    not apply; use ``az.summary(idata, kind="stats")``. Leave-one-out does not apply
    either: without its item a z has only its prior, so that LOO is `evidence`. There is
    no group log_likelihood, from which ArviZ would compute it.

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
        particles: The number of samples for the `evidence` of each item; None leaves
            it out.
        content: Whether to draw y and components; where y is integrated out numerically
            (`priors.Custom`), each draw of z costs one more integral.

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
    if particles is not None:
        particles = whole("particles", particles)
        check_density(joint, "an evidence")
    with evaluating(objective) as like:
        if isinstance(data, DataLoader):
            data = rows_of(data, _needed(items))
        source = Items(data, like, views)
        rows = _rows(items, len(source))
        batch = joint.arranged(source.batch(torch.from_numpy(rows)))
        joint.check(batch)
        check_guides(joint, batch, "a posterior")
        if particles is not None:
            check_guides(joint, batch, "an evidence", weighted=True)
        after = _many(_posterior, joint, batch, draws, predictive, content)
        parts = batch.parts  # one item: the prior ignores its data
        anyone = Batch(
            tuple(x[:1] for x in parts) if joint.several else parts[0][:1],
            covariates=rows_at(batch.covariates, slice(1)),
        )
        drawn = predictive and not decodes_given(joint)
        before = _many(_prior, joint, anyone, draws, drawn, content)
        if particles is not None:
            found = weigh(joint, batch, particles)
            after |= zip(("log_evidence", "ess", "pareto_k"), found, strict=True)
    groups = _sampled(joint, after, before) | _observed(joint, data, batch, rows)
    return container(groups, {"item": rows}, _attrs(joint))


def _many(
    draw: Callable[[Joint, Batch, int, bool, bool], Draws],
    joint: Joint,
    batch: Batch,
    draws: int,
    predictive: bool,
    content: bool,
) -> dict[str, np.ndarray]:
    """Draws in parts that fit into memory, concatenated on the host."""
    found: dict[str, np.ndarray] = {}
    done, sizes = 0, chunks(draws, batch)
    for n in tqdm(sizes, "draws", delay=BAR_DELAY, unit="part"):
        for name, values in draw(joint, batch, n, predictive, content).items():
            part = plain(values)
            if name not in found:
                found[name] = np.empty((draws, *part.shape[1:]), part.dtype)
            found[name][done : done + n] = part
        done += n
    return found


def _posterior(
    joint: Joint, batch: Batch, n: int, predictive: bool, content: bool
) -> Draws:
    with pyro.plate("particles", n, dim=-2):
        guide = poutine.trace(joint.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(joint.model, guide)).get_trace(batch)
    q: dict[str, Any] = dict(guide.nodes)
    p: dict[str, Any] = dict(model.nodes)
    latent = [name for name in ("z", "y") if name in p]
    given_z = {_given_z(name): _log_prob(p[name]) for name in joint.sites}
    rest = latent + ["component"] * ("component" in p)
    log_p = [*given_z.values(), *(_log_prob(p[name]) for name in rest)]
    found = {name: q[name]["value"] for name in latent} | {
        **given_z,
        "log_p": torch.stack(log_p).sum(0),
        "log_q": torch.stack([_log_prob(q[name]) for name in latent]).sum(0),
    }
    hyper = [h.name for h in joint.prior.random()]
    hypers = {h: q[h]["value"] for h in hyper}
    if "y" in found:
        found |= with_component(joint.prior, found["y"], hypers, batch)
    elif content:  # given z of absent views as well: rows are joint draws
        found |= draw_content(
            joint.prior, found["z"], hypers, batch._replace(present=None)
        )
    if hyper:
        found["log_p_hyper"] = torch.cat([_log_prob(p[h]) for h in hyper], 1).sum(1)
        found["log_q_hyper"] = torch.cat([_log_prob(q[h]) for h in hyper], 1).sum(1)
    if predictive:
        found |= zip(joint.sites, _predicted(joint, batch, found["z"]), strict=True)
    return found | {h: q[h]["value"].squeeze(1) for h in hyper}


def _predicted(joint: Joint, batch: Batch, z: Tensor) -> list[Tensor]:
    """Draws of x of all views, each given its own z, at the covariates in the data.

    An absent view has no covariates, and is NaN where p(x|z) takes some.
    """
    drawn = []
    masks = [None] * len(joint.sites)
    if batch.present is not None:
        masks = batch.present.split(batch.widths, 1)
    for p, x, mask in zip(
        decoded(joint, z, batch.widths, batch.covariates),
        batch.parts,
        masks,
        strict=True,
    ):
        at = at_covariates(p, x)
        new = at.sample()
        if at is not p and mask is not None:
            event = (1,) * (new.ndim - 1 - mask.ndim)
            new = new.where(mask.view(*mask.shape, *event), math.nan)
        drawn.append(new)
    return drawn


def _prior(
    joint: Joint, batch: Batch, n: int, predictive: bool, content: bool
) -> Draws:
    with pyro.plate("particles", n, dim=-2):
        model = poutine.trace(poutine.uncondition(joint.model)).get_trace(batch)
    p: dict[str, Any] = dict(model.nodes)
    names: list[str] = [name for name in ("z", "y") if name in p]
    hypers = {h.name: p[h.name]["value"] for h in joint.prior.random()}
    names += [*joint.sites] * predictive + [*hypers]
    found = {name: p[name]["value"] for name in names}
    if "y" in found:
        found |= with_component(joint.prior, found["y"], hypers)
    elif content:
        found |= draw_content(joint.prior, found["z"], hypers, batch)
    found.pop(SHARES, None)
    return {name: value.squeeze(1) for name, value in found.items()}


def _given_z(site: str) -> str:
    return f"log_p_{site}_given_z"


def _log_prob(site: Any) -> Tensor:
    return site["fn"].log_prob(site["value"])


def _named(values: np.ndarray, *axes: str) -> Variable:
    """Draws of one chain; axes that are not named are those of a hyper-parameter."""
    dims = ("dim",) * (values.ndim - 1 - len(axes))
    return ("chain", "draw", *axes, *dims), values[None]


def _number(name: str, values: np.ndarray, dim: int | None) -> Variable:
    """Draws of a hyper-parameter; numbers that are not one a dimension have an axis.

    Those of three axes are the effects of groups, a vector for each.
    """
    if values.ndim == 3:
        return _named(values, "group")
    own = values.ndim > 1 and values.shape[-1] != dim
    return _named(values, *[f"{name}_dim"] * own)


def _sampled(
    joint: Joint, after: dict[str, np.ndarray], before: dict[str, np.ndarray]
) -> dict[str, dict[str, Variable]]:
    """The groups of draws, with the names of their axes."""
    axes: dict[str, tuple[str, ...]] = {"z": ("view", "dim"), COMPONENT: ()}
    axes[SHARES], dim = ("k",), before["z"].shape[-1]
    if "y" in before:
        own = before["y"].shape[1:]
        axes["y"] = ("dim" if own == (dim,) else "y_dim",) * len(own)
    latent = [name for name in axes if name in before]
    hyper = [name for name in before if name not in {*latent, *joint.sites}]
    given_z = [] if joint.likelihood.pseudo else [*map(_given_z, joint.sites)]
    of_items = ["log_p", "log_q", *given_z]
    given = [name for name in axes if name in after]
    measured = ("log_evidence", "ess", "pareto_k")
    groups: dict[str, dict[str, Variable]] = {
        "posterior": {n: _named(after[n], "item", *axes[n]) for n in given},
        "sample_stats": {n: _named(after[n], "item") for n in of_items},
        "prior": {n: _named(before[n], *axes[n]) for n in latent},
    }
    groups["sample_stats"] |= {n: (("item",), after[n]) for n in measured if n in after}
    groups["posterior"] |= {n: _number(n, after[n], dim) for n in hyper}
    groups["sample_stats"] |= {n: _named(after[n]) for n in after if n[-6:] == "_hyper"}
    groups["prior"] |= {n: _number(n, before[n], dim) for n in hyper}
    if joint.sites[0] in after:
        views = {n: _axes(joint, n, after[n].ndim - 3) for n in joint.sites}
        groups["posterior_predictive"] = {
            name: _named(after[name], "item", *own) for name, own in views.items()
        }
        if joint.sites[0] in before:
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
    if isinstance(data, Split | Groups) and data.labels is not None:
        chosen = plain(data.labels)[rows]
        groups["constant_data"] = {"label": (("item",), chosen)}
        if data.classes is not None and chosen.dtype.kind in "iu":
            names = np.array([*data.classes, ""])[chosen]  # -1 is no class
            groups["constant_data"]["label_name"] = ("item",), names
    for name, c in (batch.covariates or {}).items():
        known = groups.setdefault("constant_data", {})
        if name in known:
            raise ValueError(
                f"expected names of covariates other than {name!r}, which is that of "
                "the classes in constant_data; rename it"
            )
        axes = ("item", "view") if c.ndim == 3 else ("item",)
        several = f"{name}_view" if joint.several else "view"
        axes = tuple(several if axis == "view" else axis for axis in axes)
        own = (f"{name}_dim",) * (c.ndim - len(axes))
        known[name] = (*axes, *own), plain(c)
    return groups


def _axes(joint: Joint, name: str, event: int) -> tuple[str, ...]:
    """Names for the axes of the views, of one modality those of z."""
    image = ("channel", "height", "width")
    own = image if event == 3 else tuple(f"axis_{i}" for i in range(event))
    axes = ("view", *own)
    return tuple(f"{axis}_{name}" for axis in axes) if joint.several else axes


def _attrs(joint: Joint) -> dict[str, str]:
    return provenance() | {"measure": joint.likelihood.measure}


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
