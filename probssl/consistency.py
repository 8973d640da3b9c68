"""Whether the parts of a joint fit together: networks, guides, spaces and shapes.

Each check raises an error that says what was expected, what came and what to do. A
`Joint` runs them when it is built, and in `Joint.check` on the first batch of a fit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils._pytree import tree_map_only

from .arrays import span
from .covariates import declares
from .distributions.supports import ends_of, in_words, is_point, of_pyro, space_of
from .likelihoods import Likelihood
from .likelihoods.base import check_density, check_support, shape_error
from .nn import PerModality
from .nn.base import takes, unmoved
from .nn.network import asks, in_evaluation
from .priors import Grouped, ImportanceSampling, Prior
from .runtime.randomness import restored_randomness
from .terms import Batch

__all__ = [
    "Site",
    "check_absent",
    "check_apart",
    "check_content",
    "check_content_guide",
    "check_covariates",
    "check_guide",
    "check_hypers",
    "check_networks",
    "check_posterior",
    "check_sites",
    "check_views",
    "drawn",
    "guide_of",
    "site_error",
    "takes_covariates",
    "without_sites",
]


class Site(NamedTuple):
    """An observed site: p(x|z) of a modality, its views, and which are present."""

    name: str
    likelihood: Likelihood
    p: TorchDistribution  # batch shape (batch, view)
    x: Tensor
    mask: Tensor | None  # None means all


def guide_of(
    guide: Callable[..., nn.Module], encoder: nn.Module, dim: int
) -> nn.Module:
    """Return the guide of the encoder; raise a TypeError if it is none."""
    if isinstance(guide, nn.Module):
        name = type(guide).__name__
        raise TypeError(
            "expected guide as a class, or a function of the encoder, got an instance "
            f"of {name}; give the class, or guide=lambda encoder: … for arguments"
        )
    try:
        sized = "dim" in signature(guide).parameters
    except ValueError:  # of a built-in class
        sized = False
    takes("guide", guide, encoder, **({"dim": dim} if sized else {}))
    built = guide(encoder, dim=dim) if sized else guide(encoder)
    if isinstance(getattr(built, "encoder", None), nn.Module):
        return built
    raise TypeError(
        "expected a guide with the attribute encoder, a module, got "
        f"{type(built).__name__} without; set self.encoder = encoder in its constructor"
    )


def check_networks(modalities: int | None, **networks: nn.Module) -> None:
    """Raise an error if there is not one network for each modality; None means one."""
    for name, net in networks.items():
        found = len(net) if isinstance(net, PerModality) else None
        if found != modalities:
            raise ValueError(
                f"expected a likelihood and a {name} for each modality, got "
                f"{modalities or 1} and {found or 1}; give as many of both, for "
                "several likelihood=(a, b) and nn.PerModality([a, b]) for the networks"
            )


def check_covariates(prior: Prior, guide: nn.Module, content: nn.Module | None) -> None:
    """Raise a TypeError for parts that take covariates and cannot be given them."""
    grouped = isinstance(prior, Grouped)
    for name, part in (("prior", None if grouped else prior), ("content", content)):
        if part is not None and declares(part):
            raise TypeError(
                f"expected a {name} without covariates, got {type(part).__name__}, "
                "whose forward takes them; only encoder, decoder, likelihood and guide "
                "get them, and of priors priors.Grouped"
            )
    if grouped and content is not None:
        raise TypeError(
            f"expected content=None under priors.Grouped, got {type(content).__name__}"
            ", a guide of y that is not told the group; leave it out: y is integrated "
            "out exactly"
        )
    if asks(_encoder(guide)) and not declares(guide):
        raise TypeError(
            "expected a guide that passes covariates on to its encoder, got "
            f"{type(guide).__name__}, whose forward does not take them; write "
            "forward(self, x, prior, present=None, covariates=None)"
        )


def takes_covariates(guide: nn.Module) -> bool:
    """Whether q(z|x) is conditional on covariates, by its encoder or by itself."""
    each = getattr(guide, "each", None)
    for call in (guide.forward, each):
        module = getattr(getattr(call, "__func__", call), "__module__", "")
        if declares(call) and not str(module).startswith("probssl."):
            return True
    return asks(_encoder(guide))


def _encoder(guide: Any) -> nn.Module:
    encoder: nn.Module = guide.encoder
    return encoder


def check_content(prior: Prior, k: Tensor, items: int) -> None:
    """Raise an error if an observed content is no component of the prior."""
    many = prior.component().param_shape[-1]
    if k.shape != (items,) or k.is_floating_point() or k.is_complex():
        raise ValueError(
            f"expected content as {items} whole numbers, got "
            f"{tuple(k.shape)} {k.dtype}; give one for each item, -1 if unknown"
        )
    if not bool(((k >= -1) & (k < many)).all()):
        raise ValueError(
            f"expected content from -1 (unknown) to {many - 1}, a component of "
            f"{type(prior).__name__}, got {int(k.min())} to {int(k.max())}; "
            "give the prior as many components as there are contents"
        )


def check_log_prob(prior: Prior, p: TorchDistribution, z: Tensor) -> None:
    """Raise a ValueError for a `Prior.log_prob` that is not that of its distribution.

    A joint takes the density of p(z_1..V) that `forward` returns.
    """
    own = type(prior).log_prob is not Prior.log_prob or "log_prob" in vars(prior)
    if own and not torch.allclose(prior.log_prob(z), p.log_prob(z), 1e-4, 1e-3):
        raise ValueError(
            "expected log_prob of the prior to be that of the distribution which "
            f"forward returns, got {type(prior).__name__} with another one, which the "
            "ELBO would leave out; return a distribution of that density in forward"
        )


def check_absent(prior: Prior, p: TorchDistribution) -> None:
    """Raise a TypeError for absent views with a prior that does not take them."""
    taken = signature(prior.forward).parameters.values()
    masks = any(
        each.name == "present" or each.kind is each.VAR_KEYWORD for each in taken
    )
    missing = [m for m in ("complete", "complete_mean") if not hasattr(p, m)]
    if missing or not masks:
        raise TypeError(
            "expected a prior that takes absent views, got "
            f"{type(prior).__name__} without {' and '.join(missing) or 'present'}; let "
            "forward(views, present=mask) return the distribution of the present "
            "views, with methods complete(value, present), which draws the absent "
            "views given the present ones, and complete_mean, or drop such items"
        )


def check_guide(
    guide: nn.Module, prior: Prior, density: Callable[[], TorchDistribution]
) -> None:
    """Raise an error if a guide whose class says its support has another than p."""
    for kind in (guide, *type(guide).__mro__):  # not of a subclass with its own forward
        if kind.__dict__.keys() & {"support", "each", "forward"}:
            declared = kind.__dict__.get("support")
            break
    else:
        return
    support = None if declared is None else _known(density(), "support")
    if declared is None or support is None:
        return
    places = space_of(declared), space_of(support)
    if places == ("vectors", "vectors") and declared is constraints.real_vector:
        p = density()
        tensors = chain(prior.parameters(), prior.buffers())
        far = next(tensors, torch.empty(0)).new_full(p.event_shape, 1e3)
        inside = support.check(far) & support.check(-far)
        places = places[0], "vectors" if bool(inside.all()) else in_words(support)
    if places[0] != places[1]:
        raise _space_error(guide, prior, *places)


def check_content_guide(content: nn.Module, prior: Prior) -> None:
    """Raise a ValueError if a guide of y has another space than p(y), or y none."""
    y = prior.content()
    prior.given(y.sample())
    support = _known(y, "support")
    if support is not None and space_of(support) == "discrete values":
        raise ValueError(
            "expected content=None with a discrete p(y), which the prior sums out "
            "exactly, got a guide; leave it out"
        )
    check_guide(content, prior, prior.content)


def check_posterior(
    guide: nn.Module,
    q: TorchDistribution,
    shape: Sequence[int],
    sites: Callable[[Tensor], list[Site]],
    present: Tensor | None = None,
) -> None:
    """Raise an error if q(z_1..V|x) is none, of another shape, or its mean not finite.

    Where finite views are off the support of p(x|z), with that as the reason. The mean
    of an absent view may be undefined.
    """
    of_pyro("q(z_1..V|x)", q)
    if q.shape() != shape:
        raise ValueError(
            "expected q(z_1..V|x) with batch shape (item,) and event shape (view, dim) "
            f"of the prior, {tuple(shape[1:])}, got {tuple(q.batch_shape)} and "
            f"{tuple(q.event_shape)} of {type(guide).__name__}; mind to_event"
        )
    mean = _known(q, "mean")
    if mean is None or bool(_of_present(mean, present).isfinite().all()):
        return
    found = sites(torch.zeros_like(mean))
    for site in found:
        check_support(*site[1:])
    spans = ", ".join("{:.6g} to {:.6g}".format(*span(site.x)) for site in found)
    raise ValueError(
        "expected a finite mean of q(z|x), got NaN or infinity for views from "
        f"{spans} by {type(guide.encoder).__name__}; give data and views that it "
        "takes (no logarithm of numbers below 0), or lower the learning rate if its "
        "fit has diverged"
    )


@contextmanager
def without_sites(whole: nn.Module) -> Iterator[None]:
    """Raise a ValueError for a `pyro.sample` or `pyro.param` in parts of a joint.

    A joint has the sites x, z, y and hyper-parameters. What a part draws besides has no
    guide, and a parameter that no module holds is neither trained nor saved.
    """
    seen: list[Any] = []

    def show(site: Any) -> bool:
        seen.append(site)
        return False

    try:
        with poutine.block(hide_fn=show):
            yield
    except Exception as error:
        _refuse_sites(whole, seen, error)
        raise
    _refuse_sites(whole, seen)


def _refuse_sites(
    whole: nn.Module, seen: Sequence[Any], cause: Exception | None = None
) -> None:
    held = {id(parameter) for parameter in whole.parameters()}
    for site in seen:
        kind, name = site["type"], site["name"]
        stored: Any = pyro.param(name) if kind == "param" else None
        if stored is not None and id(stored.unconstrained()) not in held:
            way = "which fit neither trains nor saves; make it an nn.Parameter of your "
            way += "module, or ps.hyper.Positive(ps.learned(0.5), name)"
        elif kind == "sample":
            way = "which has no guide; make it a random hyper-parameter of the prior, "
            way += "or a number that is learned"
        else:
            continue
        raise ValueError(
            f"expected no pyro.{kind} in prior, likelihood, networks and guide, whose "
            f"sites the joint itself makes, got the site {name!r}, {way}"
        ) from cause


def site_error(name: str, p: TorchDistribution, q: TorchDistribution) -> ValueError:
    """The error for a q with another event shape than p, or that drops its gradient."""
    if q.event_shape != p.event_shape:
        return ValueError(
            f"expected q({name}|…) with the event shape of p({name}), "
            f"{tuple(p.event_shape)}, got {tuple(q.event_shape)}; build the guide for "
            "this prior (guides.Content(dim, y_dim=…) for y), and mind to_event"
        )
    return ValueError(
        f"expected reparameterised samples of q({name}|…), through which the "
        f"gradient reaches the guide, got {_inner(q)}, which has no rsample; take "
        "a distribution with rsample (on the sphere PowerSpherical), "
        "torch.no_grad() for the value alone, or train with "
        "pyro.infer.SVI(joint.model, joint.guide, …, pyro.infer.Trace_ELBO())"
    )


def _inner(q: Any) -> str:
    """The name of the distribution within others."""
    while hasattr(q, "base_dist"):
        q = q.base_dist
    return type(q).__name__


def check_content_support(prior: Prior) -> None:
    """Raise a ValueError if the support of p(y) moves with random hyper-parameters.

    A guide of y has one support, and would miss what lies beyond it.
    """
    drawn, ends = {h.name: h.draw((3,)) for h in prior.random()}, []
    for i in range(3 if drawn else 0):
        one = {name: values[i] for name, values in drawn.items()}
        with prior.at(**one):
            support = _known(prior.content(), "support")
        if support is None:
            return
        found = [math.nan if end is None else end for end in ends_of(support)]
        ends.append([torch.as_tensor(end).double() for end in found])
    for first, *others in zip(*ends, strict=True):
        if not all(torch.allclose(first, o, 1e-5, equal_nan=True) for o in others):
            raise ValueError(
                f"expected a p(y) of {type(prior).__name__} on one support for a guide "
                f"of y, got ends that move with {', '.join(drawn)}; give y a fixed "
                "support and scale it in p(z|y), or integrate it out: content=None"
            )


def check_hypers(prior: Prior, views: int) -> None:
    """Raise an error if p(z_1..V) does not take drawn hyper-parameters.

    The density for several values together is that for each alone, set by `Prior.at`.
    Not examined are a prior that cannot be sampled and a density that is an estimate.
    """
    n, alone, z = views + 1, [], []
    drawn = {h.name: h.draw((n,)) for h in prior.random()}
    if not drawn:
        return
    for i in range(n):
        one = {name: values[i] for name, values in drawn.items()}
        with prior.at(**one), suppress(NotImplementedError, TypeError):
            p = prior(views)
            z.append(p.sample())
            alone.append(p.log_prob(z[-1]))
    if len(alone) < n:
        return
    problem = "other densities than for each alone"
    try:
        p, many = prior(views, **drawn), torch.stack(z)
        found, again = p.log_prob(many), p.log_prob(many)
        same = torch.allclose(found, torch.stack(alone), 1e-3, 1e-3, equal_nan=True)
        if same or not torch.equal(found, again):
            return
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        problem = str(error).partition("\n")[0]
    name = next(iter(drawn))
    raise ValueError(
        f"expected {type(prior).__name__} to take values of {', '.join(drawn)} for {n} "
        f"items, got {problem}; in forward(self, views, *, present=None, **drawn) take "
        f"self.{name}.over(drawn), which has the axes of items, views and dimensions"
    )


def check_sites(sites: Sequence[Site]) -> None:
    """Raise a ValueError if p(x|z) has no density at the views, or another shape."""
    for name, likelihood, p, x, mask in sites:
        if p.event_shape != x.shape[2:]:
            raise shape_error(name, p.to_event(1), x)
        check_density(likelihood, p, x, mask)


def check_apart(
    joint: nn.Module,
    batch: Batch,
    forked: Sequence[torch.device],
    made: Callable[[Batch, tuple[Tensor, ...], bool], list[Tensor]],
) -> None:
    """Raise an error if absent views change what is made of present ones.

    Arguments:
        made: What is made of the present views: of z first, then of each modality;
            whether latents of absent views are turned as well.
    """
    if batch.present is None:
        return
    batch = batch._replace(present=_with_absent(batch.present))
    some = Batch(batch.views, present=batch.present)
    turned = tree_map_only(Tensor, lambda x: x.flip(0), some)
    others = tuple(part.flip(0) for part in turned.parts)  # filled by other views
    found: list[list[Tensor]] = []
    for parts in (batch.parts, others):
        with restored_randomness(forked), unmoved(joint) as state:
            found.append([*made(batch, parts, bool(found)), *state])
    guide: Any = joint.posterior
    names = [f"the encoder, or {type(guide).__name__},", *["the decoder"] * len(others)]
    names += ["a buffer of the networks"] * len(state)
    for name, one, other in zip(names, *found, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                "expected networks that treat views one by one where some are absent, "
                f"got {name} that changes with what stands for absent views; of layers "
                "that mix the rows of a batch only torch's batch norm, not scripted, "
                "is given the present rows alone: use that, or layer norm; a guide of "
                "your own leaves absent views to guides.Guide by its method each"
            )


def check_views(
    joint: nn.Module,
    z: Tensor,
    sites: Callable[[Tensor], list[Site]],
    decode: Callable[[Sequence[Tensor]], Sequence[TorchDistribution]],
    forked: Sequence[torch.device],
) -> None:
    """Raise a ValueError if p(x_v|z_v) changes with z of another view or item.

    In evaluation mode, in which batch norm mixes no rows. A single view of each item is
    also decoded beside a second one.
    """

    def seeded(call: Callable[[Any], Any], *given: Any) -> Any:
        with restored_randomness(forked):
            return call(*given)

    def log_probs(z: Tensor) -> list[Tensor]:
        return [site.p.log_prob(site.x) for site in sites(z)]

    items, views = (torch.arange(size, device=z.device) for size in z.shape[:2])
    chosen = (items.unsqueeze(1) + views) % 2 == 0  # as on a chessboard
    neighbours = z.roll(1, 1 if len(views) > 1 else 0)
    with in_evaluation(joint):
        found = sites(z)
        first = [site.p.log_prob(site.x) for site in found]
        masks = [True if site.mask is None else site.mask for site in found]
        widths, alone, pairs = [x.shape[1] for x in first], seeded(log_probs, z), []
        for kept in (chosen, ~chosen):
            other = torch.where(kept.unsqueeze(-1), z, neighbours)
            beside = seeded(log_probs, other)
            each = zip(alone, beside, kept.split(widths, 1), masks, strict=True)
            pairs += [(one[rows & m], two[rows & m]) for one, two, rows, m in each]
        # Noise of the decoder would differ between shapes.
        if 1 in widths and all(map(torch.equal, first, alone)):
            wide = decode(
                [torch.cat([one, one.flip(0)], 1) for one in z.split(widths, 1)]
            )
            for site, one, p in zip(found, alone, wide, strict=True):
                two = p.log_prob(torch.cat([site.x, site.x], 1))[:, : one.shape[1]]
                rows = torch.ones_like(one).bool() if site.mask is None else site.mask
                pairs.append((one[rows], two[rows]))
    if not all(torch.allclose(*pair, 1e-4, 1e-3, equal_nan=True) for pair in pairs):
        raise ValueError(
            "expected p(x|z) of a view that changes with its own z alone, got one that "
            "changes with those of other views or items; let decoder and likelihood "
            "count axes from the last, as o.softmax(-1), mix no rows of a batch, and "
            "have batch_first=True in recurrent and attention layers"
        )


def _with_absent(present: Tensor) -> Tensor:
    """The mask; if no view is absent, with one of each second item's marked so."""
    items, views = present.shape
    if views == 1 or not bool(present.all()):
        return present
    item = torch.arange(items, device=present.device).unsqueeze(1)
    view = torch.arange(views, device=present.device)
    return (item % 2 == 0) | (item // 2 % views != view)


def drawn(
    guide: nn.Module,
    q: TorchDistribution,
    prior: Prior,
    p: TorchDistribution | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Draw from a guide; raise an error if that is not on the support of the prior.

    Arguments:
        p: p(z_1..V); None means that q is over y.
        present: The mask of present views, None for all.
    """
    density, p = ("p(y)", prior.content()) if p is None else ("p(z)", p)
    support = _known(p, "support")
    of_pyro(f"q({density[2]}|…)", q)
    own = None if is_point(q) else _known(q, "support")
    if support is not None and own is not None and space_of(own) != space_of(support):
        raise _space_error(guide, prior, space_of(own), space_of(support))
    if q.event_shape != p.event_shape:
        raise site_error(density[2], p, q)
    location = _known(q, "mean") if is_point(q) or own is not None else None
    if location is not None and bool(_of_present(location, present).isnan().any()):
        raise ValueError(
            f"expected numbers in q of {type(guide).__name__}, got NaN; look at the "
            "data and at what the encoder returns for them"
        )
    drawn = q.sample()
    if support is not None and not bool(support.check(drawn).all()):
        raise ValueError(
            f"expected draws of {type(guide).__name__} on the support of {density} "
            f"of {type(prior).__name__}, got others; give the joint a guide "
            "for this prior, on the sphere guides.PowerSpherical or, for y, "
            "guides.SphericalContent"
        )
    outside = drawn.isnan().reshape(len(drawn), -1).any(1)
    if not isinstance(getattr(p, "integral", None), ImportanceSampling):
        outside = ~(p.log_prob(drawn) > -math.inf)  # no estimate
    if bool(outside.any()):
        raise ValueError(
            f"expected draws of {type(guide).__name__} that {density} of "
            f"{type(prior).__name__} can give, got {int(outside.sum())} of "
            f"{outside.numel()} where it is 0 or NaN; take p(z|y) with a support that "
            "does not move, or give the joint a guide for this prior"
        )
    return drawn


def _of_present(mean: Tensor, present: Tensor | None) -> Tensor:
    """The means of the present views; that of an absent one may be undefined."""
    return mean if present is None else mean[present]


def _known(p: Any, name: str) -> Any:
    """An attribute of a distribution, such as its support; None if it has none."""
    try:
        return getattr(p, name)
    except NotImplementedError:
        return None


def _space_error(
    guide: nn.Module, prior: Prior, guided: str, expected: str
) -> ValueError:
    return ValueError(
        f"expected a guide on the space of the prior {type(prior).__name__}, "
        f"{expected}, got {type(guide).__name__} on {guided}, where densities have "
        "another measure; on the sphere take guides.PowerSpherical and for y "
        "guides.SphericalContent, for vectors guides.DiagonalGaussian and "
        "guides.Content, else a guide of your own"
    )
